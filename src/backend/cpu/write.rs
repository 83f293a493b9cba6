//! Results into the host's memory.

use half::{bf16, f16};

use super::prepare::Prepared;
use super::select::Key;
use crate::features::FeaturesMut;
use crate::tensor::{DType, Element, TensorMut};

/// Features as the host wants them, written by workers that each own their rows.
pub(crate) struct FeatureSink<'a> {
    out: FeaturesMut<'a>,
    width: usize,
}

impl<'a> FeatureSink<'a> {
    pub(crate) fn new(out: FeaturesMut<'a>) -> Self {
        let width = out.width();
        Self { out, width }
    }

    /// Slots per token.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Writes one token: keys in their order, as many as fit.
    ///
    /// # Safety
    /// No two threads may write the same row.
    pub(crate) unsafe fn write(&self, row: usize, keys: &[Key], active: usize, prepared: Prepared) {
        let keys = &keys[..keys.len().min(self.width)];
        // SAFETY: the caller's promise, for each of the tensors.
        unsafe {
            match self.out.values.dtype() {
                DType::F32 => self.values(row, keys, |v| v),
                // Beyond the type's range the largest finite number stands, since an infinity would poison decoding.
                DType::F16 => self.values(row, keys, |v| f16::from_f32(v.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))),
                DType::BF16 => {
                    self.values(row, keys, |v| bf16::from_f32(v.clamp(bf16::MIN.to_f32(), bf16::MAX.to_f32())));
                }
                DType::I32 => unreachable!("the session checked that values are floats"),
            }
            let indices = self.out.indices.shared_row_mut::<i32>(row);
            indices[keys.len()..].fill(-1);
            indices.iter_mut().zip(keys).for_each(|(to, key)| *to = key.index());
            let count = if prepared == Prepared::NotFinite { -1 } else { active.min(i32::MAX as usize) as i32 };
            self.out.counts.shared_set(row, count);
            if let Some(state) = &self.out.row_state {
                let to = state.shared_row_mut::<f32>(row);
                match prepared {
                    Prepared::NotFinite => to.fill(f32::NAN),
                    Prepared::Ready(values) => to.copy_from_slice(&values[..to.len()]),
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::write`].
    unsafe fn values<T: Element>(&self, row: usize, keys: &[Key], convert: impl Fn(f32) -> T) {
        // SAFETY: the caller's promise.
        let to = unsafe { self.out.values.shared_row_mut::<T>(row) };
        to[keys.len()..].fill(T::zeroed());
        to.iter_mut().zip(keys).for_each(|(to, key)| *to = convert(key.value()));
    }
}

/// Writes one row of f32 values with every value set to NaN.
///
/// # Safety
/// No two threads may write the same row.
pub(crate) unsafe fn write_nan(out: &TensorMut<'_>, row: usize, scratch: &mut [f32]) {
    scratch.fill(f32::NAN);
    // SAFETY: the caller's promise.
    unsafe { out.shared_write_row(row, scratch) };
}
