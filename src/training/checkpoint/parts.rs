//! The parts of a checkpoint that ranks write, each with the rows of its own latents.

use std::fs;
use std::ops::Range;
use std::path::Path;

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::{Entry, broken, check_tensors, infos, map};
use crate::atomic;
use crate::backend::training::Training;
use crate::collective::{Axis, Ranks};
use crate::container::Container;
use crate::error::{Error, Result, fail};
use crate::tensor::Storage;
use crate::training::Progress;

const CONTAINER: Container = Container { name: "part of a checkpoint", key: "libsae_checkpoint_part", version: 1 };
/// How the names of parts begin; then come the save's number, the part's, and of how many.
const PREFIX: &str = "checkpoint.";
/// What stands between a save's number and the part's.
const MIDDLE: &str = ".part-";
const SUFFIX: &str = ".safetensors";

/// What a checkpoint says of one of its parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    file: String,
    first_latent: usize,
    n_latents: usize,
    bytes: u64,
}

/// A part's own entry.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    version: u32,
    save: u64,
    step: u64,
    first_latent: usize,
    n_latents: usize,
}

/// The number of the save that a part belongs to.
fn save_of(file: &str) -> Option<u64> {
    let (save, rest) = file.strip_prefix(PREFIX)?.split_once(MIDDLE)?;
    rest.ends_with(SUFFIX).then(|| save.parse().ok())?
}

/// Has each rank write its part, and gives all of them; all ranks come to the same. Ranks that hold the same latents leave it to
/// the first of them.
pub(super) fn write(
    folder: &Path,
    progress: &Progress,
    (entries, backend): (&[Entry], &dyn Training),
    (ranks, n): (&Ranks, usize),
) -> Result<Vec<Part>> {
    let begin = || {
        if progress.pending_tokens > 0 && ranks.count(Axis::Data) > 1 {
            return fail!(
                BadState,
                "gradients of accumulated batches are spread over {} ranks; save after the step that applies them",
                ranks.count(Axis::Data)
            );
        }
        if ranks.rank() > 0 {
            return Ok(0);
        }
        atomic::create_dir_all(folder)?;
        // A number that no part there has: what is written is of no other checkpoint.
        let names = fs::read_dir(folder)?.flatten().map(|entry| entry.file_name());
        Ok(names.filter_map(|name| save_of(name.to_str()?)).max().map_or(1, |last| last.saturating_add(1)))
    };
    let mut save = [ranks.agree(begin())?];
    ranks.broadcast_all(&mut save)?;
    let count = ranks.count(Axis::Latents);
    let part = |place: usize| {
        let latents = ranks.part_of(n, place);
        let file = format!("{PREFIX}{}{MIDDLE}{}-of-{count}{SUFFIX}", save[0], place + 1);
        Part { file, first_latent: latents.start, n_latents: latents.len(), bytes: 0 }
    };
    let own = part(ranks.place(Axis::Latents));
    let body = || {
        if ranks.place(Axis::Data) > 0 {
            return Ok(0);
        }
        let Part { first_latent, n_latents, .. } = own;
        let facts = Facts { version: CONTAINER.version, save: save[0], step: progress.step, first_latent, n_latents };
        let header = CONTAINER.header(&facts, infos(entries))?;
        super::write(&folder.join(&own.file), &header, entries, backend)?;
        Ok((header.len() + entries.iter().map(Entry::bytes).sum::<usize>()) as u64)
    };
    let written = ranks.agree(body().map_err(|e: Error| e.at(&own.file)));
    let bytes = written.inspect_err(|_| drop(fs::remove_file(folder.join(&own.file))))?;
    let mut all = vec![0; count];
    ranks.gather(Axis::Latents, &[bytes], &mut all)?;
    Ok(all.into_iter().enumerate().map(|(place, bytes)| Part { bytes, ..part(place) }).collect())
}

/// Refuses parts that are not here as they were written elsewhere.
pub(super) fn check(folder: &Path, parts: &[Part]) -> Result<()> {
    for Part { file, bytes, .. } in parts {
        let found = fs::metadata(folder.join(file)).map(|found| found.len());
        if found.as_ref().ok() != Some(bytes) {
            let found = found.map_or_else(|error| error.to_string(), |found| format!("{found} bytes"));
            return fail!(
                Io,
                "{file}: a rank wrote {bytes} bytes, but rank 0 finds: {found}; the folder must be the same for all ranks"
            );
        }
    }
    Ok(())
}

/// Removes the parts of other checkpoints, and what killed writes left over. That they cannot be removed does no harm.
pub(super) fn remove_others(folder: &Path, parts: &[Part]) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let stays = save_of(&name).is_none() || parts.iter().any(|part| part.file == name);
        if !stays || atomic::is_leftover(&name, PREFIX) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// The parts of a checkpoint, opened.
pub(super) struct Parts(Vec<(Part, Storage)>);

impl Parts {
    /// Those that a checkpoint of `n` latents names.
    pub(super) fn open(folder: &Path, parts: &[Part], n: usize) -> Result<Self> {
        let mut end = 0;
        for Part { file, first_latent, n_latents, .. } in parts {
            if save_of(file).is_none() || file.contains(['/', '\\']) {
                return Err(broken(format!("{file:?} is no name of a part")));
            }
            if *first_latent != end || *n_latents == 0 || *n_latents > n - end {
                return Err(broken(format!(
                    "part {file} has latents {first_latent}..+{n_latents}, after 0..{end} of {n}"
                )));
            }
            end += n_latents;
        }
        if !parts.is_empty() && end != n {
            return Err(broken(format!("its parts have {end} of {n} latents")));
        }
        let open = |part: &Part| Ok((part.clone(), map(folder, &part.file)?));
        parts.iter().map(open).collect::<Result<_>>().map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses parts that have not the tensors `wanted` of their latents.
    pub(super) fn check(&self, wanted: impl Fn(Range<usize>) -> Vec<Entry>) -> Result<()> {
        for (part, bytes) in &self.0 {
            let check = || {
                let facts: Facts = CONTAINER.facts(bytes.bytes())?;
                let Part { file, first_latent, n_latents, .. } = part;
                if (facts.first_latent, facts.n_latents, Some(facts.save)) != (*first_latent, *n_latents, save_of(file))
                {
                    let Facts { save, first_latent, n_latents, .. } = facts;
                    return Err(broken(format!("it is of save {save}, latents {first_latent}..+{n_latents}")));
                }
                if part.bytes != bytes.bytes().len() as u64 {
                    return Err(broken(format!("it has {} bytes, not {}", bytes.bytes().len(), part.bytes)));
                }
                check_tensors(bytes.bytes(), &wanted(*first_latent..first_latent + n_latents))
            };
            check().map_err(|e: Error| e.at(&part.file))?;
        }
        Ok(())
    }

    /// The rows of some latents.
    pub(super) fn read(&self, name: &str, latents: &Range<usize>, to: &mut [u8]) -> Result<()> {
        let size = to.len() / latents.len();
        for (part, bytes) in &self.0 {
            let (first, end) = (part.first_latent, part.first_latent + part.n_latents);
            let shared = latents.start.max(first)..latents.end.min(end);
            if shared.is_empty() {
                continue;
            }
            let found = SafeTensors::deserialize(bytes.bytes()).map_err(broken)?;
            let from =
                &found.tensor(name).map_err(broken)?.data()[(shared.start - first) * size..][..shared.len() * size];
            to[(shared.start - latents.start) * size..][..from.len()].copy_from_slice(from);
        }
        Ok(())
    }
}
