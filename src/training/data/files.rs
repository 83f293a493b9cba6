//! Which files are meant.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ShardOptions;
use crate::error::{Error, Result, Status, fail};

/// What files of arrays are called.
const EXTENSIONS: [&str; 6] = ["safetensors", "npy", "npz", "pt", "pth", "arrow"];
/// What lists the files of a dataset.
const DATASET: &str = "state.json";
/// More files than any run reads.
const MAX_FILES: usize = 30_000;

/// The files that the paths stand for.
pub(super) fn find(options: &ShardOptions) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in &options.paths {
        let files = match fs::metadata(path) {
            Ok(kind) if kind.is_dir() => folder(path),
            Ok(_) => Ok(vec![path.clone()]),
            Err(e) => match path.to_str().filter(|text| text.contains(['*', '?', '['])) {
                Some(pattern) => matching(pattern),
                None => Err(e.into()),
            },
        };
        let mut files = files.map_err(|e| e.at(path.display()))?;
        if files.len() > 1 {
            files.retain(|file| !is_beside(file, options));
        }
        found.append(&mut files);
        if found.len() > MAX_FILES {
            return fail!(InvalidArgument, "paths: stand for more than {MAX_FILES} files");
        }
    }
    Ok(found)
}

/// The files of arrays in a folder, by name.
fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    if fs::exists(path.join(DATASET))? {
        return dataset(path).map_err(|e| e.at(DATASET));
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let known = path.extension().is_some_and(|found| EXTENSIONS.iter().any(|known| found == *known));
        if known && path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return fail!(InvalidArgument, "holds no file of arrays ({})", EXTENSIONS.join(", "));
    }
    files.sort();
    Ok(files)
}

/// The files of a dataset as Hugging Face's `datasets` saves it, in its order: others of Arrow's may lie there too.
fn dataset(path: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct State {
        #[serde(rename = "_data_files")]
        data_files: Vec<DataFile>,
        /// Of an order other than that of the files.
        #[serde(rename = "_indices_files", default)]
        indices_files: Option<Vec<serde_json::Value>>,
    }
    #[derive(Deserialize)]
    struct DataFile {
        filename: PathBuf,
    }
    let state = fs::read_to_string(path.join(DATASET))?;
    let State { data_files, indices_files } = serde_json::from_str(&state)
        .map_err(|e| Error::new(Status::Format, format!("not the state of a dataset: {e}")))?;
    if data_files.is_empty() {
        return fail!(InvalidArgument, "the dataset has no files");
    }
    if indices_files.is_some_and(|files| !files.is_empty()) {
        return fail!(
            Unsupported,
            "the dataset is a shuffled view of its files; save it after Dataset.flatten_indices()"
        );
    }
    let name = |DataFile { filename }: DataFile| match filename.file_name() {
        Some(name) if name == filename => Ok(path.join(name)),
        _ => fail!(Format, "{filename:?} is not the name of a file"),
    };
    data_files.into_iter().map(name).collect()
}

/// The files of a pattern, by name.
fn matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let broken = |e: &dyn std::fmt::Display| Error::new(Status::InvalidArgument, format!("not a sound pattern: {e}"));
    let mut files = Vec::new();
    for path in glob::glob(pattern).map_err(|e| broken(&e))? {
        let path = path.map_err(|e| Error::from(std::io::Error::from(e)))?;
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return fail!(Io, "no file is named so");
    }
    Ok(files)
}

/// Where the numbers of that name lie for an array that has no names: `a.NAME.npy` beside `a.npy`.
pub(super) fn beside(path: &Path, name: &str) -> PathBuf {
    path.with_extension(format!("{name}.npy"))
}

/// Whether a file is one of those that lie beside an array.
fn is_beside(path: &Path, options: &ShardOptions) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    [&options.documents, &options.positions, &options.tokens]
        .into_iter()
        .flatten()
        .any(|beside| name.ends_with(&format!(".{beside}.npy")))
}
