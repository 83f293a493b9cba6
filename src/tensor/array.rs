//! Numbers in a block of our own.

use std::marker::PhantomData;

use super::{AlignedBytes, Storage};
use crate::error::{Error, Result, Status};

/// Aligned numbers, zero at first. That there is no room for them is an error, not the end of the process.
pub struct Array<T> {
    bytes: AlignedBytes,
    numbers: PhantomData<T>,
}

impl<T: bytemuck::Pod> Array<T> {
    /// `len` zeros, or [`Status::OutOfMemory`].
    pub fn zeroed(len: usize) -> Result<Self> {
        let bytes = AlignedBytes::zeroed(len.saturating_mul(size_of::<T>()))?;
        Ok(Self { bytes, numbers: PhantomData })
    }

    /// The numbers as weights are kept, without a copy.
    pub fn into_storage(self) -> Storage {
        Storage::owned(self.bytes)
    }
}

impl<T: bytemuck::Pod> std::ops::Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(self.bytes.as_slice())
    }
}

impl<T: bytemuck::Pod> std::ops::DerefMut for Array<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes.as_mut_slice())
    }
}

/// A vector of `len` copies of a value, or [`Status::OutOfMemory`].
pub fn try_vec<T: Clone>(value: T, len: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| {
        Error::new(Status::OutOfMemory, format!("{len} numbers of {} bytes could not be allocated", size_of::<T>()))
    })?;
    values.resize(len, value);
    Ok(values)
}
