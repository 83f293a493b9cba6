//! A golden of training: tensors by name, f32 or f64.

use safetensors::SafeTensors;

pub(crate) struct Golden(Vec<u8>);

impl Golden {
    /// A file below tests/golden.
    pub(crate) fn read(file: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
        Self(std::fs::read(format!("{folder}/{file}")).unwrap())
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        self.bytes(name).unwrap().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    pub(crate) fn f64(&self, name: &str) -> Vec<f64> {
        self.bytes(name).unwrap().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect()
    }

    /// The numbers of a tensor, if there is one of the name.
    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).ok().map(|tensor| tensor.data())
    }
}
