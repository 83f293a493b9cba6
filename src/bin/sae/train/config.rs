//! The configuration of a run: a TOML file with the tables `[run]`, `[data]` and `[export]` and a `[[sae]]` for each SAE. A key that is not
//! known is refused with the nearest that is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sae::formats::{self, LoadOptions};
use sae::training::data::{ShardOptions, Shuffle};
use sae::training::run::{Member, RunOptions};
use sae::training::{Export, TrainOptions};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::output::{Failure, Result};

/// Keys further than this from a known one are not taken for slips.
const SIMILAR: f64 = 0.7;
/// Rows held out where nothing is said.
const HELD_OUT: usize = 16_384;

/// What the file says.
pub(super) struct Config {
    /// The file's text.
    pub(super) text: String,
    pub(super) folder: PathBuf,
    pub(super) threads: usize,
    pub(super) options: RunOptions,
    pub(super) data: ShardOptions,
    pub(super) held_out: HeldOut,
    pub(super) members: Vec<Member>,
    pub(super) export: ExportOptions,
}

/// Which rows are measured and not trained on.
pub(super) struct HeldOut {
    pub(super) rows: usize,
    /// Of files of their own; `None`: the first that the source gives.
    pub(super) data: Option<ShardOptions>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    run: Table,
    data: Data,
    #[serde(default)]
    export: ExportOptions,
    #[serde(default)]
    sae: Vec<Table>,
}

/// `[data]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    paths: Vec<PathBuf>,
    tensor: Option<String>,
    documents: Option<String>,
    positions: Option<String>,
    #[serde(default)]
    first_position: u64,
    end_position: Option<u64>,
    #[serde(default)]
    layered: bool,
    #[serde(default = "yes")]
    shuffle: bool,
    seed: Option<u64>,
    block_rows: Option<usize>,
    window_blocks: Option<usize>,
    #[serde(default)]
    epochs: u64,
    held_out: Option<usize>,
    held_out_paths: Option<Vec<PathBuf>>,
}

fn yes() -> bool {
    true
}

/// `[export]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ExportOptions {
    pub(super) format: Option<String>,
    pub(super) dtype: Option<Type>,
    weights: Option<What>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum Type {
    F32,
    F16,
    Bf16,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum What {
    Ema,
    Last,
}

impl Config {
    /// Reads and checks it. Paths are relative to the file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|e| Failure::Message(format!("{}: {e}", path.display())))?;
        let base = path.parent().unwrap_or(Path::new(""));
        Self::parse(text, base).map_err(|failure| match failure {
            Failure::Message(message) => Failure::Message(format!("{}: {message}", path.display())),
            other => other,
        })
    }

    fn parse(text: String, base: &Path) -> Result<Self> {
        let File { mut run, data, export, sae } = toml::from_str(&text).map_err(|e| Failure::Message(told(&e, &[])))?;
        let at = |path: &PathBuf| base.join(path);
        let folder: PathBuf = take(&mut run, "[run]", "folder")?.ok_or_else(|| missing("[run]", "folder"))?;
        let threads = take(&mut run, "[run]", "threads")?.unwrap_or(0);
        let options: RunOptions = rest(run, "[run]", &["folder", "threads"])?;
        let (data, held_out) = data.options(base)?;
        if sae.is_empty() {
            return Err(Failure::Message("no [[sae]]: say at least n_latents and k of one".to_owned()));
        }
        let single = sae.len() == 1;
        let members = sae.into_iter().enumerate().map(|(i, table)| member(table, i, single, base, export.weights));
        let members = members.collect::<Result<Vec<_>>>()?;
        if let Some(format) = &export.format {
            let known: Vec<&str> = formats::names().filter(|(_, saved)| *saved).map(|(name, _)| name).collect();
            if !known.contains(&format.as_str()) {
                let known = known.join(", ");
                return Err(Failure::Message(format!("[export] format: expected one of {known}, not {format:?}")));
            }
        }
        Ok(Self { folder: at(&folder), threads, options, data, held_out, members, export, text })
    }
}

impl Data {
    fn options(self, base: &Path) -> Result<(ShardOptions, HeldOut)> {
        let conflict = |message: &str| Err(Failure::Message(format!("[data] {message}")));
        let given = [
            ("seed", self.seed.is_some()),
            ("block_rows", self.block_rows.is_some()),
            ("window_blocks", self.window_blocks.is_some()),
        ];
        if let Some((name, _)) = given.iter().find(|(_, given)| *given && !self.shuffle) {
            return conflict(&format!("{name} is of the shuffle, but shuffle is false"));
        }
        let rows = self.held_out.unwrap_or(HELD_OUT);
        if rows > 0 && self.held_out_paths.is_none() && self.epochs > 1 {
            return conflict(
                "epochs: rows that are held out of the first epoch would be trained on in the next; name other files as held_out_paths, \
                 or say held_out = 0",
            );
        }
        if rows == 0 && self.held_out_paths.is_some() {
            return conflict("held_out is 0, but held_out_paths names files");
        }
        let end = self.end_position.unwrap_or(u64::MAX);
        if end <= self.first_position {
            return conflict(&format!(
                "end_position is {end}, not above first_position, which is {}",
                self.first_position
            ));
        }
        let at = |paths: Vec<PathBuf>| paths.iter().map(|path| base.join(path)).collect::<Vec<_>>();
        let seed = self.seed.unwrap_or(0);
        let (block_rows, window_blocks) = (self.block_rows.unwrap_or(0), self.window_blocks.unwrap_or(0));
        let options = ShardOptions {
            paths: at(self.paths),
            tensor: self.tensor,
            documents: self.documents,
            positions: self.positions,
            tokens: None,
            keep_positions: self.first_position..end,
            layered: self.layered,
            shuffle: self.shuffle.then_some(Shuffle { seed, block_rows, window_blocks }),
            epochs: self.epochs,
        };
        let data = self.held_out_paths.map(|paths| ShardOptions { paths: at(paths), epochs: 0, ..options.clone() });
        Ok((options, HeldOut { rows, data }))
    }
}

/// One `[[sae]]`: some keys of the run's, all others are options of training.
fn member(mut table: Table, i: usize, single: bool, base: &Path, what: Option<What>) -> Result<Member> {
    const OWN: [&str; 4] = ["name", "layer", "target_layer", "warm_start"];
    let place = format!("[[sae]] {}", i + 1);
    let name: Option<String> = take(&mut table, &place, OWN[0])?;
    let name = name.unwrap_or_else(|| if single { "sae".to_owned() } else { format!("sae{}", i + 1) });
    let place = format!("[[sae]] {name}");
    let layer = take(&mut table, &place, OWN[1])?;
    let target_layer = take(&mut table, &place, OWN[2])?;
    let start: Option<PathBuf> = take(&mut table, &place, OWN[3])?;
    let options: TrainOptions = rest(table, &place, &OWN)?;
    let load = |path: PathBuf| formats::load(base.join(path), &LoadOptions { map: true, ..LoadOptions::default() });
    let warm_start = start.map(load).transpose()?.map(|loaded| Arc::new(loaded.sae));
    let export = what.map(|what| match what {
        What::Ema => Export::Ema,
        What::Last => Export::Weights,
    });
    Ok(Member { layer, target_layer, warm_start, export, ..Member::new(&name, options) })
}

/// Takes a key out of a table.
fn take<T: DeserializeOwned>(table: &mut Table, place: &str, key: &str) -> Result<Option<T>> {
    let value = table.remove(key).map(Value::try_into).transpose();
    value.map_err(|e| Failure::Message(format!("{place} {key}: {}", e.message())))
}

/// What is left of a table.
fn rest<T: DeserializeOwned>(table: Table, place: &str, taken: &[&str]) -> Result<T> {
    table.try_into().map_err(|e| Failure::Message(format!("{place} {}", told(&e, taken))))
}

fn missing(place: &str, key: &str) -> Failure {
    Failure::Message(format!("{place} {key} is missing"))
}

/// What an error says; of a key that is not known, which known one is the nearest, of those it lists and others.
fn told(error: &toml::de::Error, others: &[&str]) -> String {
    let text = error.to_string();
    let text = text.trim_end();
    let Some((_, rest)) = error.message().split_once("unknown field `") else { return text.to_owned() };
    let mut names = rest.split('`').step_by(2);
    let Some(key) = names.next() else { return text.to_owned() };
    let likeness = |name: &&str| strsim::jaro_winkler(key, name);
    let nearest = names.chain(others.iter().copied()).max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    // Of the whole text the first line tells the place.
    let place = text.lines().next().and_then(|line| line.strip_prefix("TOML parse error at "));
    let place = place.map_or(String::new(), |place| format!("{place}: "));
    match nearest.filter(|name| likeness(name) > SIMILAR) {
        Some(nearest) => format!("{place}unknown key {key}; did you mean {nearest}?"),
        None => text.to_owned(),
    }
}
