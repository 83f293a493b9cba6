//! Rows as they are handed in, and as they are held.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::backend::Input;
use crate::backend::cpu::read_row;
use crate::error::{Result, fail};
use crate::features::{check_host, check_tensor};
use crate::tensor::{AlignedBytes, DType, Tensor, try_vec};
use crate::training::data::{Layout, Rows};

/// Why tensors must be in the host's memory.
const READS: &str = "the buffer reads host memory";

/// Rows to be mixed.
#[derive(Clone, Copy)]
pub struct Push<'a> {
    /// `[T, d]`, or `[T, layers, d]` as the buffer's layout says; f32, f16 or bf16, rounded to the buffer's type if that is
    /// another.
    pub x: Tensor<'a>,
    /// Like `x`: `x + addend`, formed in f32, is held.
    pub addend: Option<Tensor<'a>>,
    /// Round the sum to x's type first, as engines do that write it back before reading it.
    pub round_sum: bool,
    /// `[T]` i32: rows with 0 are left out.
    pub row_mask: Option<Tensor<'a>>,
    /// `[T]`: the document of each row, if the buffer keeps documents.
    pub documents: Option<&'a [i64]>,
    /// Rows at the front that are passed over: those an earlier call has already taken.
    pub first: usize,
}

impl<'a> From<Tensor<'a>> for Push<'a> {
    fn from(x: Tensor<'a>) -> Self {
        Self { x, addend: None, round_sum: false, row_mask: None, documents: None, first: 0 }
    }
}

impl<'a> From<&'a Rows> for Push<'a> {
    fn from(rows: &'a Rows) -> Self {
        Self { documents: Some(rows.documents()), ..rows.tensor().into() }
    }
}

impl Push<'_> {
    /// Refuses what does not fit the buffer.
    pub(super) fn check(&self, layout: &Layout, documents: bool) -> Result<()> {
        let rows = self.x.rows();
        let shape = layout.shape(rows);
        let floats = |name: &str, tensor: &Tensor<'_>| {
            check_tensor(name, tensor, &shape, DType::is_float, "f32, f16 or bf16")
                .and_then(|()| check_host(name, tensor, READS))
        };
        floats("x", &self.x)?;
        if let Some(addend) = &self.addend {
            floats("addend", addend)?;
        }
        if let Some(mask) = &self.row_mask {
            check_tensor("row_mask", mask, &[rows], |t| t == DType::I32, "i32")?;
            check_host("row_mask", mask, READS)?;
        }
        match self.documents.map(<[i64]>::len) {
            None if documents => fail!(InvalidArgument, "documents: are kept by this buffer, but not given"),
            Some(found) if found != rows => fail!(InvalidArgument, "documents: {found} for {rows} rows"),
            _ if self.first > rows => fail!(InvalidArgument, "first: {} is beyond the {rows} rows", self.first),
            _ => Ok(()),
        }
    }

    pub(super) fn is_masked(&self, row: usize) -> bool {
        self.row_mask.is_some_and(|mask| mask.element::<i32>(row) == 0)
    }

    pub(super) fn document(&self, row: usize) -> i64 {
        self.documents.map_or(0, |documents| documents[row])
    }
}

/// One row on its way in.
pub(super) struct Incoming {
    dtype: DType,
    values: Vec<f32>,
    addend: Vec<f32>,
    bytes: AlignedBytes,
}

impl Incoming {
    pub(super) fn new(layout: &Layout) -> Result<Self> {
        let len = layout.row_len();
        let (values, addend) = (try_vec(0.0, len)?, try_vec(0.0, len)?);
        Ok(Self { dtype: layout.dtype, values, addend, bytes: AlignedBytes::zeroed(layout.row_bytes())? })
    }

    /// Makes a row ready: its values become those that will be held.
    pub(super) fn read(&mut self, rows: &Push<'_>, row: usize) {
        let Self { dtype, values, addend, bytes } = self;
        read_row(&Input { x: rows.x, addend: rows.addend, round_sum: rows.round_sum }, row, addend, values);
        // What is judged of a row is judged of it as it is held.
        match dtype {
            DType::F16 => {
                let held: &mut [f16] = bytemuck::cast_slice_mut(bytes.as_mut_slice());
                held.convert_from_f32_slice(values);
                held.convert_to_f32_slice(values);
            }
            DType::BF16 => {
                let held: &mut [bf16] = bytemuck::cast_slice_mut(bytes.as_mut_slice());
                held.convert_from_f32_slice(values);
                held.convert_to_f32_slice(values);
            }
            _ => bytes.as_mut_slice().copy_from_slice(bytemuck::cast_slice(values)),
        }
    }

    /// Takes the bytes of a row that was held before.
    pub(super) fn set(&mut self, row: &[u8]) {
        self.bytes.as_mut_slice().copy_from_slice(row);
    }

    /// Numbers of a row to work in, while none is on its way.
    pub(super) fn scratch(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The bytes to be held.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// The Euclidean norm; NaN if a value is not finite.
    pub(super) fn norm(&self) -> f32 {
        // Squares of f32 and their sums do not overflow f64.
        let squares = self.values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        if squares.is_finite() { squares.sqrt() as f32 } else { f32::NAN }
    }
}
