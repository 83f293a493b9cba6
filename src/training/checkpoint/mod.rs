//! A run on disk, whole: one safetensors file in the checkpoint's folder, `checkpoint.safetensors`. Its tensors are the weights
//! under their names, and `adam_m.`, `adam_v.`, `ema.` and (between accumulated batches) `gradient.` of each, all f32, and
//! `tokens_since_fired` as u64 `[n]`. Its metadata hold one entry, `libsae_checkpoint`, a JSON object of version, options and
//! progress.
//!
//! Of several ranks those that hold different latents each write theirs into a file beside it, and the entry names these `parts`
//! in the latents' order. Their tensors have the same names, but rows of their own latents alone; what latents have no rows of stays in
//! the first file. So it does not matter by how many ranks a checkpoint was written, nor by how many it is read.
//!
//! A save writes a new file, makes sure it is on the disk, and renames it over the old one: killed at any moment, the folder
//! holds one complete checkpoint, the old or the new. Parts come under names that no part had before, and those of the old
//! checkpoint go when the new one is there.

mod parts;

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorInfo};
use serde::{Deserialize, Serialize};

use super::stats::Scales;
use super::{Progress, TrainOptions};
use crate::atomic;
use crate::backend::training::{Parameter, Role, Training, TrainingShape};
use crate::collective::Ranks;
use crate::container::Container;
use crate::error::{Error, Result, fail};
use crate::tensor::{Array, Storage};
use parts::{Part, Parts};

/// The file in the folder.
const FILE: &str = "checkpoint.safetensors";
/// Of the layout described above.
const CONTAINER: Container = Container { name: "checkpoint", key: "libsae_checkpoint", version: 1 };
/// More than any run counts; what is added to less does not wrap.
const MAX_COUNT: u64 = 1 << 63;
const UNFIRED: &str = "tokens_since_fired";

/// The metadata's entry.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    version: u32,
    options: TrainOptions,
    progress: Progress,
    /// Where the latents' rows are, if not here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part>,
}

/// A tensor of a checkpoint.
struct Entry {
    name: String,
    content: Content,
    dims: Vec<usize>,
}

/// The numbers of a run of some shape, in the order in which they are written: the wider type first, so that all are aligned.
fn tensors(options: &TrainOptions, progress: &Progress, shape: &TrainingShape) -> Vec<Entry> {
    let roles = [
        ("", Role::Weight, true),
        ("adam_m.", Role::FirstMoment, true),
        ("adam_v.", Role::SecondMoment, true),
        ("ema.", Role::Ema, !options.no_ema),
        ("gradient.", Role::Gradient, progress.pending_tokens > 0),
    ];
    let unfired = Entry { name: UNFIRED.to_owned(), content: Content::Unfired, dims: vec![shape.n_latents] };
    let mut all = vec![unfired];
    for (prefix, role, _) in roles.into_iter().filter(|(_, _, kept)| *kept) {
        for parameter in shape.parameters() {
            let dims = shape.dims(parameter);
            let name = format!("{prefix}{}", parameter.name());
            all.push(Entry { name, content: Content::Numbers(role, parameter), dims });
        }
    }
    all
}

/// What a tensor holds.
#[derive(Clone, Copy)]
enum Content {
    Numbers(Role, Parameter),
    Unfired,
}

impl Content {
    fn dtype(self) -> Dtype {
        match self {
            Self::Numbers(..) => Dtype::F32,
            Self::Unfired => Dtype::U64,
        }
    }

    /// Whether it has a row for each latent.
    fn is_of_latents(self) -> bool {
        match self {
            Self::Numbers(_, parameter) => parameter.is_of_latents(),
            Self::Unfired => true,
        }
    }
}

impl Entry {
    fn len(&self) -> usize {
        self.dims.iter().product()
    }

    fn bytes(&self) -> usize {
        self.len() * self.content.dtype().bitsize() / 8
    }

    /// What the header says of it, and where it ends.
    fn info(&self, start: usize) -> (TensorInfo, usize) {
        let end = start + self.bytes();
        (TensorInfo { dtype: self.content.dtype(), shape: self.dims.clone(), data_offsets: (start, end) }, end)
    }

    /// Writes its bytes. One tensor at a time is in memory.
    fn write(&self, backend: &dyn Training, out: &mut dyn std::io::Write) -> Result<()> {
        match self.content {
            Content::Numbers(role, parameter) => {
                let mut values = Array::zeroed(self.len())?;
                backend.read(role, parameter, &mut values)?;
                self.check(role, &values)?;
                out.write_all(bytemuck::cast_slice(&values))?;
            }
            Content::Unfired => {
                let mut values = Array::<u64>::zeroed(self.len())?;
                backend.read_unfired(&mut values)?;
                out.write_all(bytemuck::cast_slice(&values))?;
            }
        }
        Ok(())
    }

    /// Reads its bytes, which `fill` brings.
    fn read(&self, fill: impl FnOnce(&mut [u8]) -> Result<()>, backend: &mut dyn Training) -> Result<()> {
        match self.content {
            Content::Numbers(role, parameter) => {
                let mut values = Array::zeroed(self.len())?;
                fill(bytemuck::cast_slice_mut(&mut values))?;
                self.check(role, &values)?;
                backend.write(role, parameter, &values)
            }
            Content::Unfired => {
                let mut values = Array::<u64>::zeroed(self.len())?;
                fill(bytemuck::cast_slice_mut(&mut values))?;
                backend.write_unfired(&values)
            }
        }
    }

    /// Refuses numbers that a run cannot go on from.
    fn check(&self, role: Role, values: &[f32]) -> Result<()> {
        let name = &self.name;
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(i) if role == Role::Gradient => fail!(
                NotFinite,
                "{name} holds {} at {i}: the next step will drop what is accumulated; save after it",
                values[i]
            ),
            Some(i) => fail!(NotFinite, "{name} holds {} at {i}", values[i]),
        }
    }
}

/// Writes a checkpoint; the last one stays until this one is complete.
pub(super) fn save(
    folder: &Path,
    options: &TrainOptions,
    progress: &Progress,
    backend: &dyn Training,
    ranks: &Ranks,
) -> Result<()> {
    let shape = options.shape().shard(ranks.part(options.n_latents));
    let entries = tensors(options, progress, &shape);
    if ranks.is_alone() {
        atomic::create_dir_all(folder)?;
        write_head(folder, options, progress, (&entries, backend), Vec::new())?;
        parts::remove_others(folder, &[]);
        return Ok(());
    }
    let (of_latents, common): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.content.is_of_latents());
    let saving = parts::write(folder, progress, (&of_latents, backend), (ranks, options.n_latents))?;
    let head = || {
        parts::check(folder, &saving)?;
        write_head(folder, options, progress, (&common, backend), saving.clone())
    };
    ranks.agree(if ranks.rank() == 0 { head() } else { Ok(()) })?;
    if ranks.rank() == 0 {
        parts::remove_others(folder, &saving);
    }
    Ok(())
}

/// Writes the file by which a checkpoint is known.
fn write_head(
    folder: &Path,
    options: &TrainOptions,
    progress: &Progress,
    (entries, backend): (&[Entry], &dyn Training),
    parts: Vec<Part>,
) -> Result<()> {
    let facts = Facts { version: CONTAINER.version, options: options.clone(), progress: progress.clone(), parts };
    let header = CONTAINER.header(&facts, infos(entries))?;
    write(&folder.join(FILE), &header, entries, backend)
}

/// Writes a file of a checkpoint.
fn write(path: &Path, header: &[u8], entries: &[Entry], backend: &dyn Training) -> Result<()> {
    atomic::remove_leftovers(path);
    atomic::write(path, |out| {
        out.write_all(header)?;
        entries.iter().try_for_each(|entry| entry.write(backend, out))
    })
}

fn infos(entries: &[Entry]) -> Vec<(String, TensorInfo)> {
    let mut end = 0;
    let infos = entries.iter().map(|entry| {
        let info;
        (info, end) = entry.info(end);
        (entry.name.clone(), info)
    });
    infos.collect()
}

/// A checkpoint whose names, types and shapes were found sound.
pub(super) struct Stored {
    head: Storage,
    facts: Facts,
    parts: Parts,
}

/// Opens the checkpoint in a folder.
pub(super) fn open(folder: &Path) -> Result<Stored> {
    let head = map(folder, FILE)?;
    let mut facts: Facts = CONTAINER.facts(head.bytes()).map_err(|e| e.at(FILE))?;
    // Of options that there were not yet when it was made, it says nothing.
    facts.options = facts.options.resolve().map_err(broken).map_err(|e| e.at(FILE))?;
    check_facts(&facts).map_err(|e| e.at(FILE))?;
    let parts = Parts::open(folder, &facts.parts, facts.options.n_latents).map_err(|e| e.at(FILE))?;
    let stored = Stored { head, facts, parts };
    stored.check()?;
    Ok(stored)
}

fn map(folder: &Path, name: &str) -> Result<Storage> {
    let file = File::open(folder.join(name)).map_err(|e| Error::from(e).at(name))?;
    Storage::map(&file).map_err(|e| e.at(name))
}

fn broken(error: impl std::fmt::Display) -> Error {
    CONTAINER.broken(error)
}

fn check_facts(facts: &Facts) -> Result<()> {
    let Facts { options, progress, .. } = facts;
    if !(progress.normalizer > 0.0 && progress.normalizer.is_finite()) {
        return Err(broken(format!("its normalizer is {}", progress.normalizer)));
    }
    if !(progress.rate > 0.0 && progress.rate.is_finite()) {
        return Err(broken(format!("its rate is {}, not a positive number", progress.rate)));
    }
    let Scales { input, output, layers } = &progress.scales;
    let wanted = if options.layers > 1 { options.layers } else { 0 };
    if layers.len() != wanted {
        return Err(broken(format!("it has scales of {} layers, not of {wanted}", layers.len())));
    }
    let scales = [("input", input), ("output", output)].into_iter().chain(layers.iter().map(|s| ("layers", s)));
    for (name, &scale) in scales {
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(broken(format!("its {name} scale is {scale}, not a positive number")));
        }
    }
    let thresholds = [Some(progress.threshold), progress.before.map(|(_, threshold)| threshold)];
    if let Some(threshold) = thresholds.into_iter().flatten().find(|threshold| !threshold.is_sound()) {
        return Err(broken(format!("its threshold is {threshold:?}: no average of positive numbers")));
    }
    let Progress { step, rows_given, tokens_seen, pending_tokens, .. } = *progress;
    let counts = [
        ("rows_given", rows_given, "2^63", MAX_COUNT),
        ("tokens_seen", tokens_seen, "rows_given", rows_given),
        ("pending_tokens", pending_tokens, "tokens_seen", tokens_seen),
        ("step", step, "tokens_seen", tokens_seen),
    ];
    for (name, count, limit, most) in counts {
        if count > most {
            return Err(broken(format!("{name} is {count}, above {limit}")));
        }
    }
    Ok(())
}

/// Refuses a file whose tensors are not these.
fn check_tensors(bytes: &[u8], wanted: &[Entry]) -> Result<()> {
    let found = SafeTensors::deserialize(bytes).map_err(broken)?;
    if let Some(name) = found.names().into_iter().find(|&name| wanted.iter().all(|entry| entry.name != name)) {
        return Err(broken(format!("tensor {name} does not belong to it")));
    }
    for Entry { name, content, dims } in wanted {
        let tensor = found.tensor(name).map_err(broken)?;
        if (tensor.dtype(), tensor.shape()) != (content.dtype(), dims) {
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            return Err(broken(format!("{name} must be {:?} {dims:?}, not {dtype:?} {shape:?}", content.dtype())));
        }
    }
    Ok(())
}

impl Stored {
    /// The options the run was made with, resolved.
    pub(super) fn options(&self) -> &TrainOptions {
        &self.facts.options
    }

    fn check(&self) -> Result<()> {
        let Facts { options, progress, parts, .. } = &self.facts;
        let shape = options.shape();
        let mut wanted = tensors(options, progress, &shape);
        if !parts.is_empty() {
            wanted.retain(|entry| !entry.content.is_of_latents());
        }
        check_tensors(self.head.bytes(), &wanted).map_err(|e| e.at(FILE))?;
        self.parts.check(|latents| {
            let mut wanted = tensors(options, progress, &shape.shard(latents));
            wanted.retain(|entry| entry.content.is_of_latents());
            wanted
        })
    }

    /// Hands the numbers of some latents, and what all have in common, to a backend made for these options.
    /// Of several ranks that hold the same latents, the first takes the gradients that were accumulated: their sum counts.
    pub(super) fn load(&self, latents: Range<usize>, gradients: bool, backend: &mut dyn Training) -> Result<Progress> {
        let Facts { options, progress, .. } = &self.facts;
        let head = SafeTensors::deserialize(self.head.bytes()).map_err(broken)?;
        for entry in tensors(options, progress, &options.shape().shard(latents.clone())) {
            if !gradients && matches!(entry.content, Content::Numbers(Role::Gradient, _)) {
                continue;
            }
            let name = &entry.name;
            let fill = |to: &mut [u8]| {
                if entry.content.is_of_latents() && !self.parts.is_empty() {
                    return self.parts.read(name, &latents, to);
                }
                let from = head.tensor(name).map_err(broken)?.data();
                let start = if entry.content.is_of_latents() { latents.start * (to.len() / latents.len()) } else { 0 };
                to.copy_from_slice(&from[start..start + to.len()]);
                Ok(())
            };
            entry.read(fill, backend).map_err(|e| e.at(FILE))?;
        }
        Ok(progress.clone())
    }
}
