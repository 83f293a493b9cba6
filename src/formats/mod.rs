//! Which files load, and how an SAE is saved.
//!
//! Every on-disk format is one file here that answers two questions: is this yours? (by content, never by name) and what
//! does it say? The answer is a draft: the spec, and where each weight lies. Reading, transposing, converting, mapping,
//! sharding and counting memory are then the same for all.
//!
//! To add a format: one file with a `FORMAT`, its `mod` line and its entry in `FORMATS`.

mod activations;
mod archive;
mod arrow;
mod circuit_tracer;
mod config;
mod dictionary_learning;
mod draft;
mod file;
mod gemma_scope;
mod linear;
pub(crate) mod mapped;
mod members;
pub mod native;
mod npz;
mod openai;
mod openmoss;
mod options;
mod part;
mod product;
mod qwen_scope;
mod saelens;
mod safetensors;
mod source;
mod sparsify;
mod stored;
mod tensors;
mod torch;
mod writing;
mod yaml;

pub use activations::{Activations, activations};
pub use members::members;
pub use options::{LoadOptions, Loaded, Memory, SaveOptions, Selection};

use std::path::Path;

use crate::error::{Error, Result, fail};
use crate::sae::Sae;
use draft::Draft;
use source::Source;

/// One on-disk format.
struct Format {
    /// What [`LoadOptions::format`] calls it.
    name: &'static str,
    /// What people call it.
    title: &'static str,
    /// Whether the files' content says they are of this format, even if broken or of a kind that is refused.
    recognise: fn(&Source) -> bool,
    /// What the files say.
    read: fn(&Source, &LoadOptions) -> Result<Draft>,
    /// Writes an SAE, where that is done: to a file, or to a directory if the format is one.
    save: Option<Save>,
}

type Save = fn(&Sae, &Path, &SaveOptions) -> Result<()>;

/// Every format, in the order in which they are asked.
const FORMATS: &[&Format] = &[
    &native::FORMAT,
    &saelens::FORMAT,
    &openai::FORMAT,
    &sparsify::FORMAT,
    // Their torch files are told from dictionary_learning's by the configuration beside them alone.
    &openmoss::LLAMA_SCOPE,
    &openmoss::FORMAT,
    &dictionary_learning::CROSSCODER,
    &dictionary_learning::FORMAT,
    &gemma_scope::FORMAT,
    &circuit_tracer::FORMAT,
    &linear::GOODFIRE,
    &qwen_scope::FORMAT,
    &linear::DEEPSEEK_R1,
];

/// Loads an SAE from a file, or from a directory that holds one.
pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Loaded> {
    let path = path.as_ref();
    open(path, options).and_then(|source| load_source(&source, options)).map_err(|e| e.at(path.display()))
}

/// Loads an SAE from files in memory, given with the names they would have in a directory. The bytes are copied.
pub fn load_bytes(files: &[(&str, &[u8])], options: &LoadOptions) -> Result<Loaded> {
    load_source(&Source::from_bytes(files)?, options)
}

/// The bytes that [`load`] with the same options will need; no weight is allocated to find out.
pub fn memory(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Memory> {
    let path = path.as_ref();
    open(path, options).and_then(|source| draft(&source, options)?.1.memory(options)).map_err(|e| e.at(path.display()))
}

/// The formats' names, and those of them that can be saved.
pub fn names() -> impl Iterator<Item = (&'static str, bool)> {
    FORMATS.iter().map(|format| (format.name, format.save.is_some()))
}

/// Saves an SAE, in the [`native`] format unless another is named. Every file appears whole or not at all: on any failure the
/// one that was there before is untouched. What a format cannot say is refused by name, and nothing is written.
pub fn save(sae: &Sae, path: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
    let path = path.as_ref();
    options.check()?;
    let format = named(options.format.as_deref().unwrap_or(native::FORMAT.name))?;
    let Some(save) = format.save else {
        let known = FORMATS.iter().filter(|format| format.save.is_some()).map(|format| format.name);
        let known = known.collect::<Vec<_>>().join(", ");
        return fail!(Unsupported, "format: {} is read but not written; {known} are", format.name);
    };
    save(sae, path, options).map_err(|e| e.at(path.display()))
}

/// What lies at a path, or its member. A directory without an SAE of its own, but with others in it, has to be asked for one.
fn open(path: &Path, options: &LoadOptions) -> Result<Source> {
    let source = Source::open(path, options.member.as_deref())?;
    let plain = options.member.is_none() && options.format.is_none();
    if plain && path.is_dir() && recognised(&source).is_none() {
        let members = members(path)?;
        if !members.is_empty() {
            let names = source::some_of(members.iter().map(String::as_str));
            return fail!(InvalidArgument, "several SAEs ({names}): name one as member");
        }
    }
    Ok(source)
}

fn recognised(source: &Source) -> Option<&'static Format> {
    FORMATS.iter().copied().find(|format| (format.recognise)(source))
}

fn load_source(source: &Source, options: &LoadOptions) -> Result<Loaded> {
    let (format, draft) = draft(source, options)?;
    let notes = draft.notes.clone();
    Ok(Loaded { sae: draft.finish(options)?, format: format.name, notes })
}

fn draft(source: &Source, options: &LoadOptions) -> Result<(&'static Format, Draft)> {
    options.check()?;
    let format = choose(source, options.format.as_deref())?;
    let draft = (format.read)(source, options)?.overridden(options)?;
    Ok((format, draft))
}

fn choose(source: &Source, wanted: Option<&str>) -> Result<&'static Format> {
    if let Some(name) = wanted {
        return named(name);
    }
    if let Some(format) = recognised(source) {
        return Ok(format);
    }
    source.first_fault()?;
    let known = FORMATS.iter().map(|format| format.title).collect::<Vec<_>>().join(", ");
    fail!(Format, "not an SAE of a known format ({known}); found {}", source.describe())
}

fn named(name: &str) -> Result<&'static Format> {
    FORMATS.iter().copied().find(|format| format.name == name).ok_or_else(|| {
        let known = FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", ");
        Error::new(crate::Status::InvalidArgument, format!("format: expected one of {known}, not {name:?}"))
    })
}
