//! A run on disk, whole: one safetensors file in the checkpoint's folder, `checkpoint.safetensors`. Its tensors are the weights
//! under their names, and `adam_m.`, `adam_v.`, `ema.` and (between accumulated batches) `gradient.` of each, all f32, and
//! `tokens_since_fired` as u64 `[n]`. Its metadata hold one entry, `libsae_checkpoint`, a JSON object of version, options and
//! progress.
//!
//! A save writes a new file, makes sure it is on the disk, and renames it over the old one: killed at any moment, the folder
//! holds one complete checkpoint, the old or the new.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View, serialize_to_file};
use serde::{Deserialize, Serialize};

use super::{Progress, TrainOptions};
use crate::backend::training::{Parameter, Role, Training};
use crate::error::{Error, Result, Status, fail};
use crate::tensor::Storage;

/// The file in the folder.
const FILE: &str = "checkpoint.safetensors";
/// The entry of the metadata.
const KEY: &str = "libsae_checkpoint";
/// Of the layout described above.
const VERSION: u32 = 1;
/// How files being written are named; one that is left over is of a save that was killed.
const PARTIAL: (&str, &str) = (".checkpoint-", ".partial");
const UNFIRED: &str = "tokens_since_fired";

/// The metadata's entry.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    version: u32,
    options: TrainOptions,
    progress: Progress,
}

/// The numbers in a checkpoint, by name.
fn tensors(options: &TrainOptions, progress: &Progress) -> BTreeMap<String, (Content, Vec<usize>)> {
    let roles = [
        ("", Role::Weight, true),
        ("adam_m.", Role::FirstMoment, true),
        ("adam_v.", Role::SecondMoment, true),
        ("ema.", Role::Ema, !options.no_ema),
        ("gradient.", Role::Gradient, progress.pending_tokens > 0),
    ];
    let mut all = BTreeMap::from([(UNFIRED.to_owned(), (Content::Unfired, vec![options.n_latents]))]);
    for (prefix, role, _) in roles.into_iter().filter(|(_, _, kept)| *kept) {
        for parameter in Parameter::ALL {
            let dims = parameter.dims(options.n_latents, options.d);
            all.insert(format!("{prefix}{}", parameter.name()), (Content::Numbers(role, parameter), dims));
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
}

/// A tensor read from the backend when its turn to be written comes, so that one at a time is in memory.
struct Lazy<'a> {
    backend: &'a dyn Training,
    content: Content,
    dims: Vec<usize>,
    failure: &'a RefCell<Option<Error>>,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        self.content.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.dims
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let len = self.dims.iter().product();
        let (bytes, outcome) = match self.content {
            Content::Numbers(role, parameter) => {
                let mut values = vec![0f32; len];
                let outcome = self.backend.read(role, parameter, &mut values);
                (values.iter().flat_map(|v| v.to_le_bytes()).collect(), outcome)
            }
            Content::Unfired => {
                let mut values = vec![0u64; len];
                let outcome = self.backend.read_unfired(&mut values);
                (values.iter().flat_map(|v| v.to_le_bytes()).collect(), outcome)
            }
        };
        // The container's writer cannot be told; the save is called off afterwards.
        if let Err(error) = outcome {
            self.failure.borrow_mut().get_or_insert(error);
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.dims.iter().product::<usize>() * self.dtype().bitsize() / 8
    }
}

/// Writes a checkpoint; the last one stays until this one is complete.
pub(super) fn save(folder: &Path, options: &TrainOptions, progress: &Progress, backend: &dyn Training) -> Result<()> {
    fs::create_dir_all(folder)?;
    remove_leftovers(folder);
    let facts = Facts { version: VERSION, options: options.clone(), progress: progress.clone() };
    let facts = serde_json::to_string(&facts).map_err(|e| Error::new(Status::Internal, e.to_string()))?;
    let failure = RefCell::new(None);
    let views = tensors(options, progress)
        .into_iter()
        .map(|(name, (content, dims))| (name, Lazy { backend, content, dims, failure: &failure }));

    let mut builder = tempfile::Builder::new();
    builder.prefix(PARTIAL.0).suffix(PARTIAL.1);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let partial = builder.tempfile_in(folder)?;
    let metadata = HashMap::from([(KEY.to_owned(), facts)]);
    serialize_to_file(views, Some(metadata), partial.path()).map_err(|e| Error::new(Status::Io, e.to_string()))?;
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    partial.as_file().sync_all()?;
    partial.persist(folder.join(FILE)).map_err(|e| e.error)?;
    // The new name is safe once the folder is on the disk too.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// Removes what killed saves left over. That it cannot be removed does no harm.
fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PARTIAL.0) && name.ends_with(PARTIAL.1) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// A checkpoint whose names, types and shapes were found sound.
pub(super) struct Stored {
    bytes: Storage,
    facts: Facts,
}

/// Opens the checkpoint in a folder.
pub(super) fn open(folder: &Path) -> Result<Stored> {
    let file = File::open(folder.join(FILE)).map_err(|e| Error::from(e).at(FILE))?;
    let stored = Storage::map(&file).map_err(|e| e.at(FILE)).and_then(|bytes| {
        let facts = read_facts(bytes.bytes()).map_err(|e| e.at(FILE))?;
        Ok(Stored { bytes, facts })
    })?;
    stored.check().map_err(|e| e.at(FILE))?;
    Ok(stored)
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::new(Status::Format, format!("not a sound checkpoint: {error}"))
}

fn read_facts(bytes: &[u8]) -> Result<Facts> {
    #[derive(Deserialize)]
    struct VersionAlone {
        version: u32,
    }
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let entry = metadata.metadata().as_ref().and_then(|entries| entries.get(KEY));
    let Some(text) = entry else { return Err(broken(format!("its metadata lack {KEY}"))) };
    let VersionAlone { version } = serde_json::from_str(text).map_err(broken)?;
    if version != VERSION {
        return fail!(Unsupported, "checkpoint version {version} is not known; this library reads version {VERSION}");
    }
    serde_json::from_str(text).map_err(broken)
}

impl Stored {
    /// The options the run was made with, resolved.
    pub(super) fn options(&self) -> &TrainOptions {
        &self.facts.options
    }

    fn check(&self) -> Result<()> {
        let Facts { options, progress, .. } = &self.facts;
        options.resolve().map_err(broken)?;
        if !(progress.normalizer > 0.0 && progress.normalizer.is_finite()) {
            return Err(broken(format!("its normalizer is {}", progress.normalizer)));
        }
        let found = SafeTensors::deserialize(self.bytes.bytes()).map_err(broken)?;
        let wanted = tensors(options, progress);
        if let Some(name) = found.names().into_iter().find(|name| !wanted.contains_key(*name)) {
            return Err(broken(format!("tensor {name} does not belong to it")));
        }
        for (name, (content, dims)) in &wanted {
            let tensor = found.tensor(name).map_err(broken)?;
            if (tensor.dtype(), tensor.shape()) != (content.dtype(), dims) {
                let (dtype, shape) = (tensor.dtype(), tensor.shape());
                return Err(broken(format!("{name} must be {:?} {dims:?}, not {dtype:?} {shape:?}", content.dtype())));
            }
        }
        Ok(())
    }

    /// Hands the numbers to a backend made for these options.
    pub(super) fn load(&self, backend: &mut dyn Training) -> Result<Progress> {
        let Facts { options, progress, .. } = &self.facts;
        let found = SafeTensors::deserialize(self.bytes.bytes()).map_err(broken)?;
        for (name, (content, _)) in tensors(options, progress) {
            let bytes = found.tensor(&name).map_err(broken)?.data();
            match content {
                Content::Numbers(role, parameter) => {
                    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
                    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                        return fail!(NotFinite, "{FILE}: {name} holds {} at {i}", values[i]);
                    }
                    backend.write(role, parameter, &values)?;
                }
                Content::Unfired => {
                    let values: Vec<u64> = bytes.as_chunks().0.iter().map(|&b| u64::from_le_bytes(b)).collect();
                    backend.write_unfired(&values)?;
                }
            }
        }
        Ok(progress.clone())
    }
}
