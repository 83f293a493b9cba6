//! What the library's own files beside models share: safetensors whose metadata hold one entry, a JSON object with a version.

use std::fmt::Display;

use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Status, fail};

/// What a header's length is a multiple of.
const ALIGN: usize = 8;

/// A kind of file.
pub(crate) struct Container {
    /// What messages call it.
    pub name: &'static str,
    /// The entry of the metadata.
    pub key: &'static str,
    /// The entry's `version`.
    pub version: u32,
}

impl Container {
    /// All that stands before the tensors' numbers: the header's length, and the JSON header, filled with spaces so that the
    /// numbers after it are aligned.
    pub(crate) fn header(&self, facts: &impl Serialize, tensors: Vec<(String, TensorInfo)>) -> Result<Vec<u8>> {
        let internal = |e: &dyn Display| Error::new(Status::Internal, format!("the header cannot be made: {e}"));
        let facts = serde_json::to_string(facts).map_err(|e| internal(&e))?;
        let metadata = Metadata::new(Some([(self.key.to_owned(), facts)].into()), tensors).map_err(|e| internal(&e))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|e| internal(&e))?;
        header.resize(header.len().next_multiple_of(ALIGN), b' ');
        Ok([&(header.len() as u64).to_le_bytes(), &header[..]].concat())
    }

    /// The entry of a file, if it is of the version that is known.
    pub(crate) fn facts<F: DeserializeOwned>(&self, bytes: &[u8]) -> Result<F> {
        #[derive(Deserialize)]
        struct VersionAlone {
            version: u32,
        }
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| self.broken(e))?;
        let entry = metadata.metadata().as_ref().and_then(|entries| entries.get(self.key));
        let Some(text) = entry else { return Err(self.broken(format!("its metadata lack {}", self.key))) };
        let VersionAlone { version } = serde_json::from_str(text).map_err(|e| self.broken(e))?;
        if version != self.version {
            let Self { name, version: known, .. } = self;
            return fail!(Unsupported, "{name} version {version} is not known; this library reads version {known}");
        }
        serde_json::from_str(text).map_err(|e| self.broken(e))
    }

    /// What is wrong with a file.
    pub(crate) fn broken(&self, error: impl Display) -> Error {
        Error::new(Status::Format, format!("not a sound {}: {error}", self.name))
    }
}
