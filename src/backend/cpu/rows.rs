//! Rows of weights, in whatever type and wherever they are kept.

use std::ops::Range;

use bytemuck::cast_slice;
use half::{bf16, f16};

use super::Kernels;
use crate::sae::Matrix;
use crate::tensor::DType;

/// So many tokens are sooner multiplied with weights that are widened anew for each of them.
const FEW: usize = 4;

/// Weights in their own type.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl Values<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::BF16(values) => values.len(),
        }
    }

    fn part(self, span: Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[span]),
            Self::F16(values) => Self::F16(&values[span]),
            Self::BF16(values) => Self::BF16(&values[span]),
        }
    }
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

    /// The rows from `first` on, for `tokens` to be multiplied with: in their own type if those are few, else widened once
    /// for all of them, in `scratch`.
    pub(crate) fn get(
        self,
        kernels: Kernels,
        (first, count): (usize, usize),
        tokens: usize,
        scratch: &'a mut [f32],
    ) -> Values<'a> {
        let d = self.d();
        let span = first * d..(first + count) * d;
        let values = match self {
            Self::Matrix(m) => Values::from(m).part(span),
            Self::F32 { values, .. } => return Values::F32(&values[span]),
            Self::Picked { values, ids, .. } => {
                return Values::F32(pick(values, d, &ids[first..first + count], scratch));
            }
        };
        if tokens <= FEW || matches!(values, Values::F32(_)) {
            return values;
        }
        let out = &mut scratch[..count * d];
        kernels.widen(values, out);
        Values::F32(out)
    }
}

/// Brings rows together in `out`.
pub(crate) fn pick<'a>(values: &[f32], d: usize, ids: &[u32], out: &'a mut [f32]) -> &'a [f32] {
    let out = &mut out[..ids.len() * d];
    for (row, &id) in out.chunks_exact_mut(d).zip(ids) {
        row.copy_from_slice(&values[id as usize * d..(id as usize + 1) * d]);
    }
    out
}
