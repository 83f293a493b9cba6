//! The safetensors container: a JSON header that names each tensor's type, shape and place, then the bytes.

use std::collections::HashMap;
use std::fmt;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::file::File;
use super::stored::{StoredTensor, StoredType};
use crate::error::{Error, Result, Status, fail};

/// More bytes than the header of any SAE has; the format's own limit is 100 MB.
const MAX_HEADER: u64 = 16 << 20;

/// A file whose header was read and found sound; the tensors are still on disk.
pub(super) struct Safetensors {
    file: File,
    /// The `__metadata__` of the header.
    pub(super) metadata: HashMap<String, String>,
    /// In the order of their bytes.
    tensors: Vec<(String, TensorInfo)>,
    data_start: u64,
}

impl Safetensors {
    /// Reads and checks the header: its size, duplicate names, holes, overlaps, sizes that do not fit shapes, and that
    /// the bytes are exactly as many as it says.
    pub(super) fn read(file: &File) -> Result<Self> {
        let mut len = [0; 8];
        file.read_at(0, &mut len)?;
        let len = u64::from_le_bytes(len);
        if len > MAX_HEADER || len > file.len() - 8 {
            let rest = file.len() - 8;
            return fail!(
                Format,
                "safetensors header of {len} bytes; {rest} follow, and at most {MAX_HEADER} are read"
            );
        }
        let mut header = vec![0; len as usize];
        file.read_at(8, &mut header)?;
        let broken = |e: &dyn fmt::Display| Error::new(Status::Format, format!("broken safetensors header: {e}"));
        let Header { metadata, mut tensors } = serde_json::from_slice(&header).map_err(|e| broken(&e))?;
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let data_len = Metadata::new(None, tensors.clone()).map_err(|e| broken(&e))?.data_len() as u64;
        let data_start = 8 + len;
        if data_len != file.len() - data_start {
            let found = file.len() - data_start;
            return fail!(Format, "the safetensors header describes {data_len} bytes of tensors, the file has {found}");
        }
        Ok(Self { file: file.clone(), metadata, tensors, data_start })
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The tensors' names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// Whether a tensor of that name is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names().any(|n| n == name)
    }

    /// The tensor of that name, if it is there.
    pub(super) fn find(&self, name: &str) -> Result<Option<StoredTensor>> {
        let Some((_, info)) = self.tensors.iter().find(|(n, _)| n == name) else {
            return Ok(None);
        };
        let dtype = match info.dtype {
            Dtype::F64 => StoredType::F64,
            Dtype::F32 => StoredType::F32,
            Dtype::F16 => StoredType::F16,
            Dtype::BF16 => StoredType::BF16,
            other => StoredType::Other(other.to_string(), other.bitsize() / 8),
        };
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        StoredTensor::new(name, &self.file, dtype, &info.shape, None, self.data_start + start, end - start).map(Some)
    }

    /// The tensor of that name, which must be there.
    pub(super) fn get(&self, name: &str) -> Result<StoredTensor> {
        self.find(name)?.ok_or_else(|| {
            let found = self.names().take(12).collect::<Vec<_>>().join(", ");
            self.file.err(Error::new(Status::Format, format!("tensor {name} is missing; found {found}")))
        })
    }

    /// Refuses tensors that are not among those whose meaning is known.
    pub(super) fn refuse_others(&self, known: &[&str], what: &str) -> Result<()> {
        match self.names().find(|name| !known.contains(name)) {
            Some(name) => Err(self.file.err(Error::new(
                Status::Unsupported,
                format!("tensor {name} is not part of {what}, which has {}", known.join(", ")),
            ))),
            None => Ok(()),
        }
    }
}

/// The header as it is written, refusing names that come twice.
struct Header {
    metadata: HashMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut metadata = None;
                let mut tensors: HashMap<String, TensorInfo> = HashMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let twice = match name.as_str() {
                        "__metadata__" => metadata.replace(map.next_value()?).is_some(),
                        _ => tensors.insert(name.clone(), map.next_value()?).is_some(),
                    };
                    if twice {
                        return Err(A::Error::custom(format!("{name} comes twice")));
                    }
                }
                Ok(Header { metadata: metadata.unwrap_or_default(), tensors: tensors.into_iter().collect() })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
