//! Tensors that are read where they lie: whole files mapped, nothing converted. For data larger than memory.

use std::path::Path;

use super::arrow::{self, Batch};
use super::file::File;
use super::npz;
use super::source::Source;
use super::stored::StoredTensor;
use crate::error::{Result, fail};
use crate::tensor::{DType, Storage};

/// A file of arrays, or a part of one that has its own.
pub(crate) struct Arrays(Held);

enum Held {
    /// Several, by name.
    Named(Source),
    /// One, which has no name.
    One(File),
    /// Columns of some records.
    Batch(Batch),
}

/// An array where it lies.
pub(crate) struct Mapped {
    /// Row-major, at any alignment.
    pub(crate) bytes: Storage,
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<usize>,
}

/// What its elements are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Float(DType),
    /// Signed whole numbers of so many bytes.
    Whole(usize),
    /// Something else, and what it is called.
    Other(String),
}

impl Kind {
    /// What it is called.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Float(dtype) => dtype.to_string(),
            Self::Whole(size) => format!("i{}", 8 * size),
            Self::Other(name) => name.clone(),
        }
    }
}

impl Arrays {
    /// Opens a safetensors, npy, npz or torch file, or one of Arrow's, which has as many parts as it has batches of records.
    pub(crate) fn open(path: &Path) -> Result<Vec<Self>> {
        if !path.is_file() {
            return fail!(Io, "is not a file, or not there");
        }
        let file = File::open(path, String::new())?;
        if npz::is_array(&file)? {
            return Ok(vec![Self(Held::One(file))]);
        }
        if arrow::is(&file)? {
            return Ok(arrow::batches(&file)?.into_iter().map(|batch| Self(Held::Batch(batch))).collect());
        }
        let source = Source::open(path, None)?;
        if source.weights().next().is_none() {
            source.first_fault()?;
            return fail!(
                Format,
                "not a file of arrays (numpy, safetensors, torch, Arrow); found {}",
                source.describe()
            );
        }
        Ok(vec![Self(Held::Named(source))])
    }

    /// Whether it is one array without a name.
    pub(crate) fn is_one(&self) -> bool {
        matches!(self.0, Held::One(_))
    }

    /// The arrays' names; none if there is one that has none.
    pub(crate) fn names(&self) -> Vec<&str> {
        match &self.0 {
            // What lies beside the file has a name there; the file itself has none.
            Held::Named(source) => {
                source.tensors().filter(|(file, _)| file.is_empty()).flat_map(|(_, tensors)| tensors.names()).collect()
            }
            Held::One(_) => Vec::new(),
            Held::Batch(batch) => batch.names(),
        }
    }

    /// The array of that name, of those that [`Self::names`] tells, or the one without.
    pub(crate) fn map(&self, name: &str) -> Result<Mapped> {
        let tensor = match &self.0 {
            Held::Named(source) => match source.tensors().find(|(file, _)| file.is_empty()) {
                Some((_, tensors)) => tensors.get(name)?,
                None => return fail!(Internal, "the file has no arrays any more"),
            },
            Held::One(file) => npz::array(file)?,
            Held::Batch(batch) => return batch.map(name),
        };
        tensor.mapped()
    }
}

impl StoredTensor {
    /// The tensor where it lies in its file, which must be row-major there and not compressed.
    fn mapped(&self) -> Result<Mapped> {
        let (bytes, shape) = self.mapped_bytes()?;
        Ok(Mapped { bytes, kind: self.kind(), shape: shape.to_vec() })
    }
}
