//! From tensors and structures to launches.

use super::driver::{Driver, Shape, StreamHandle};
use super::params::{self, DevicePtr, Features, Params, Vectors};
use crate::error::Result;
use crate::features::{FeaturesMut, FeaturesRef};
use crate::tensor::{DType, Tensor};

/// Starts a kernel; a grid of no blocks is nothing to start.
///
/// # Safety
/// See [`Driver::launch`].
pub(super) unsafe fn launch<P: Params>(
    driver: &dyn Driver,
    stream: StreamHandle,
    shape: Shape,
    params: &P,
) -> Result<()> {
    if shape.grid.0 == 0 || shape.grid.1 == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise; the structure is the kernel's by its type.
    unsafe { driver.launch(P::KERNEL, shape, stream, bytemuck::bytes_of(params)) }
}

/// As kernels know it.
pub(super) fn dtype(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => params::dtype::F32,
        DType::F16 => params::dtype::F16,
        DType::BF16 => params::dtype::BF16,
        DType::I32 => unreachable!("the session checked that it is of floats"),
    }
}

/// An address some elements on.
pub(super) fn offset(at: DevicePtr, elements: i64, size: usize) -> DevicePtr {
    if at == DevicePtr::NULL { at } else { DevicePtr(at.0.wrapping_add_signed(elements * size as i64)) }
}

fn address(tensor: &Tensor<'_>) -> DevicePtr {
    DevicePtr(tensor.as_ptr().addr() as u64)
}

/// A tensor of vectors, from a row on.
pub(super) fn vectors(tensor: &Tensor<'_>, first: usize) -> Vectors {
    let (shape, strides) = (tensor.shape(), tensor.strides());
    let (layer_stride, layer_size) = match shape {
        [_, _, size] => (strides[1], *size),
        _ => (0, shape[shape.len() - 1]),
    };
    let row_stride = strides[0] as i64;
    Vectors {
        data: offset(address(tensor), first as i64 * row_stride, tensor.dtype().size()),
        row_stride,
        layer_stride: layer_stride as i64,
        layer_size: layer_size as i32,
        dtype: dtype(tensor.dtype()),
    }
}

/// Numbers of ours, `stride` apart.
pub(super) fn own_vectors(data: DevicePtr, stride: usize, len: usize) -> Vectors {
    Vectors { data, row_stride: stride as i64, layer_stride: 0, layer_size: len as i32, dtype: params::dtype::F32 }
}

/// A one-dimensional tensor of whole numbers, from an element on, and how far they are apart.
pub(super) fn integers(tensor: &Tensor<'_>, first: usize) -> (DevicePtr, i64) {
    let stride = tensor.strides()[0] as i64;
    (offset(address(tensor), first as i64 * stride, 4), stride)
}

/// Features, from a row on.
pub(super) fn features(given: &FeaturesRef<'_>, first: usize) -> Features {
    let row = |tensor: &Tensor<'_>| {
        let stride = tensor.strides()[0] as i64;
        (offset(address(tensor), first as i64 * stride, tensor.dtype().size()), stride)
    };
    let (values, values_stride) = row(&given.values);
    let (indices, indices_stride) = row(&given.indices);
    let (counts, counts_stride) = row(&given.counts);
    // A null pointer would mean that there are no features; where there are no slots, it means nothing.
    let values = if values == DevicePtr::NULL { counts } else { values };
    let (row_state, state_stride) = given.row_state.as_ref().map_or((DevicePtr::NULL, 0), row);
    Features {
        values,
        indices,
        counts,
        row_state,
        values_stride,
        indices_stride,
        counts_stride,
        state_stride,
        width: given.width() as i32,
        dtype: dtype(given.values.dtype()),
        state_width: given.row_state.as_ref().map_or(0, |state| state.shape()[1]) as i32,
        reserved: 0,
    }
}

/// [`features`] to write; none at all if there are none.
pub(super) fn features_or_none(given: Option<&FeaturesMut<'_>>, first: usize) -> Features {
    given.map_or_else(Features::default, |given| features(&given.as_ref(), first))
}
