//! Sparse features as C describes them.

use std::fmt::{self, Display};

use super::sized::{self, sized};
use super::tensor::sae_tensor;
use crate::error::Result;
use crate::features::{FeaturesMut, FeaturesRef};
use crate::tensor::Tensor;

/// Sparse features of T tokens, in the caller's memory: for each token, up to `width` active latents. The shapes do not
/// depend on the data. Listed are the strongest first (ties: the lower index first), or by index with
/// `SAE_RUN_ORDER_INDEX`; if more are active than `width`, the strongest stay.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_features {
    /// `sizeof(sae_features)`; `SAE_FEATURES_INIT` sets it.
    pub struct_size: usize,
    /// `[T, width]`, f32, f16 or bf16: activations; unused slots hold 0.
    pub values: sae_tensor,
    /// `[T, width]`, i32: global indices of the latents; unused slots hold -1.
    pub indices: sae_tensor,
    /// `[T]`, i32: how many latents were active, even if more than `width`; -1 if the token was not finite.
    pub counts: sae_tensor,
    /// `[T, row_state_width]`, f32: what decoding needs of each token, see `sae_info`; absent if that width is 0.
    pub row_state: sae_tensor,
}
sized!(sae_features: values, indices, counts, row_state);

/// Looks at each tensor of some features, by name, to refuse it.
pub(super) type Check<'c> = &'c dyn Fn(fmt::Arguments<'_>, &Tensor<'_>) -> Result<()>;

impl sae_features {
    /// The features behind a pointer, to read.
    ///
    /// # Safety
    /// What it describes must be so, for `'a`.
    pub(super) unsafe fn read<'a>(
        name: impl Display + Copy,
        pointer: *const Self,
        check: Check<'_>,
    ) -> Result<FeaturesRef<'a>> {
        // SAFETY: the caller's promise.
        unsafe {
            let features = sized::require(name, pointer)?;
            let read = |field: &str, tensor: &sae_tensor| -> Result<_> {
                let tensor = tensor.read(format_args!("{name}.{field}"))?;
                check(format_args!("{name}.{field}"), &tensor)?;
                Ok(tensor)
            };
            Ok(FeaturesRef {
                values: read("values", &features.values)?,
                indices: read("indices", &features.indices)?,
                counts: read("counts", &features.counts)?,
                row_state: match &features.row_state {
                    absent if absent.is_absent() => None,
                    given => Some(read("row_state", given)?),
                },
            })
        }
    }

    /// The features behind a pointer, to write.
    ///
    /// # Safety
    /// As [`Self::read`], and nobody else may use the memory for `'a`.
    pub(super) unsafe fn write<'a>(
        name: impl Display + Copy,
        pointer: *const Self,
        check: Check<'_>,
    ) -> Result<FeaturesMut<'a>> {
        // SAFETY: the caller's promise.
        unsafe {
            let features = sized::require(name, pointer)?;
            let write = |field: &str, tensor: &sae_tensor| -> Result<_> {
                let tensor = tensor.write(format_args!("{name}.{field}"))?;
                check(format_args!("{name}.{field}"), &tensor.as_ref())?;
                Ok(tensor)
            };
            Ok(FeaturesMut {
                values: write("values", &features.values)?,
                indices: write("indices", &features.indices)?,
                counts: write("counts", &features.counts)?,
                row_state: match &features.row_state {
                    absent if absent.is_absent() => None,
                    given => Some(write("row_state", given)?),
                },
            })
        }
    }
}
