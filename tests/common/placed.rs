//! The host's memory, said to be where a session's model is: what stands in for a GPU reads it like its own.
#![allow(unsafe_code)]

use sae::backend::Input;
use sae::features::{FeaturesMut, FeaturesRef};
use sae::session::Session;
use sae::tensor::{Device, Tensor, TensorMut};

/// Where tensors are said to be.
#[derive(Clone, Copy)]
pub struct Place(Device);

impl Place {
    /// Where a session's model is.
    pub fn of(session: &Session) -> Self {
        Self(session.device())
    }

    pub fn read<'a>(self, t: Tensor<'a>) -> Tensor<'a> {
        let (shape, strides) = (t.shape(), strides(t.strides()));
        // SAFETY: the same memory, for as long.
        unsafe { Tensor::from_raw(t.as_ptr(), t.dtype(), self.0, shape, Some(&strides[..shape.len()])).unwrap() }
    }

    #[allow(clippy::needless_pass_by_value, reason = "what is to be written has one owner")]
    pub fn write<'a>(self, t: TensorMut<'a>) -> TensorMut<'a> {
        let (shape, strides) = (t.shape(), strides(t.strides()));
        let data = t.as_ptr().cast_mut();
        // SAFETY: the same memory, for as long.
        unsafe { TensorMut::from_raw(data, t.dtype(), self.0, shape, Some(&strides[..shape.len()])).unwrap() }
    }

    pub fn input<'a>(self, input: Input<'a>) -> Input<'a> {
        Input { x: self.read(input.x), addend: input.addend.map(|addend| self.read(addend)), ..input }
    }

    pub fn features<'a>(self, f: FeaturesRef<'a>) -> FeaturesRef<'a> {
        FeaturesRef {
            values: self.read(f.values),
            indices: self.read(f.indices),
            counts: self.read(f.counts),
            row_state: f.row_state.map(|state| self.read(state)),
        }
    }

    pub fn features_mut<'a>(self, f: FeaturesMut<'a>) -> FeaturesMut<'a> {
        FeaturesMut {
            values: self.write(f.values),
            indices: self.write(f.indices),
            counts: self.write(f.counts),
            row_state: f.row_state.map(|state| self.write(state)),
        }
    }
}

fn strides(of: &[usize]) -> [i64; 3] {
    std::array::from_fn(|axis| of.get(axis).map_or(0, |&stride| stride as i64))
}
