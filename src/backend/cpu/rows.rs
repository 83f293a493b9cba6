//! Rows of weights, in whatever type and wherever they are kept.

use std::ops::Range;

use bytemuck::cast_slice;
use half::{bf16, f16};

use crate::sae::Matrix;
use crate::tensor::DType;

/// Weights in their own type.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl<'a> From<&'a Matrix> for Values<'a> {
    fn from(matrix: &'a Matrix) -> Self {
        match matrix.dtype() {
            DType::F32 => Self::F32(cast_slice(matrix.bytes())),
            DType::F16 => Self::F16(cast_slice(matrix.bytes())),
            DType::BF16 => Self::BF16(cast_slice(matrix.bytes())),
            DType::I32 => unreachable!("Matrix::new refuses integers"),
        }
    }
}

/// Rows of weights, whoever keeps them.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// A model's matrix, in its own type.
    Matrix(&'a Matrix),
    /// Plain numbers, `[n, d]`: a trainer's.
    F32 {
        /// The numbers.
        values: &'a [f32],
        /// Length of a row.
        d: usize,
    },
    /// Some rows of such numbers.
    Picked {
        /// The numbers.
        values: &'a [f32],
        /// Length of a row.
        d: usize,
        /// Which rows.
        ids: &'a [u32],
    },
}

impl<'a> Rows<'a> {
    pub(crate) fn d(self) -> usize {
        match self {
            Self::Matrix(m) => m.cols(),
            Self::F32 { d, .. } | Self::Picked { d, .. } => d,
        }
    }

    /// Gives `body` the weights and the places of the listed rows in them, all of which exist: the whole list at once, or
    /// spans of it.
    pub(crate) fn place(self, ids: &[u32], mut body: impl FnMut(Values<'a>, &[u32], Range<usize>)) {
        let within = |ids: &[u32], n: usize| assert!(ids.iter().all(|&id| (id as usize) < n), "no such row");
        match self {
            Self::Matrix(m) => {
                within(ids, m.rows());
                body(m.into(), ids, 0..ids.len());
            }
            Self::F32 { values, d } => {
                within(ids, values.len() / d);
                body(Values::F32(values), ids, 0..ids.len());
            }
            Self::Picked { values, d, ids: picked } => {
                for (i, &id) in ids.iter().enumerate() {
                    let row = [picked[id as usize]];
                    within(&row, values.len() / d);
                    body(Values::F32(values), &row, i..i + 1);
                }
            }
        }
    }

    /// Rows as f32, converted into `scratch` where they are kept in another type.
    pub(crate) fn get(self, first: usize, count: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        match self {
            Self::Matrix(m) => m.rows_f32(first, count, scratch),
            Self::F32 { values, d } => &values[first * d..(first + count) * d],
            Self::Picked { values, d, ids } => {
                let out = &mut scratch[..count * d];
                for (row, &id) in out.chunks_exact_mut(d).zip(&ids[first..first + count]) {
                    row.copy_from_slice(&values[id as usize * d..(id as usize + 1) * d]);
                }
                out
            }
        }
    }
}
