//! A dense row-major matrix of weights, in the type it is kept in.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::error::{Error, Result, Status, fail};
use crate::tensor::{AlignedBytes, DType, Storage};

/// `[rows, cols]`, row-major without gaps; for an SAE one row per latent, so that every use reads contiguous rows.
#[derive(Clone)]
pub struct Matrix {
    storage: Storage,
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl Matrix {
    /// Wraps bytes, which must be exactly as many as the shape needs and aligned for the type.
    pub fn new(storage: Storage, dtype: DType, rows: usize, cols: usize) -> Result<Self> {
        if !dtype.is_float() {
            return fail!(InvalidArgument, "weights are floats, not {dtype}");
        }
        let bytes = Self::byte_size(dtype, rows, cols)?;
        if storage.bytes().len() != bytes {
            let found = storage.bytes().len();
            return fail!(InvalidArgument, "[{rows}, {cols}] of {dtype} is {bytes} bytes, not {found}");
        }
        if !(storage.bytes().as_ptr() as usize).is_multiple_of(dtype.size()) {
            return fail!(InvalidArgument, "weights of {dtype} must be aligned to {} bytes", dtype.size());
        }
        Ok(Self { storage, dtype, rows, cols })
    }

    /// Copies f32 values.
    pub fn from_f32(values: &[f32], rows: usize, cols: usize) -> Result<Self> {
        Self::new(Storage::copy_of(values)?, DType::F32, rows, cols)
    }

    /// Fills a new matrix row by row: `write` gets each row's number and its f32 values to set, which are then rounded
    /// to `dtype`.
    pub fn build(
        dtype: DType,
        rows: usize,
        cols: usize,
        mut write: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let mut block = AlignedBytes::zeroed(Self::byte_size(dtype, rows, cols)?)?;
        let mut row_values = vec![0.0; cols];
        for (row, bytes) in block.as_mut_slice().chunks_exact_mut((cols * dtype.size()).max(1)).enumerate() {
            match dtype {
                DType::F32 => write(row, bytemuck::cast_slice_mut(bytes))?,
                DType::F16 => {
                    write(row, &mut row_values)?;
                    bytemuck::cast_slice_mut::<u8, f16>(bytes).convert_from_f32_slice(&row_values);
                }
                DType::BF16 => {
                    write(row, &mut row_values)?;
                    bytemuck::cast_slice_mut::<u8, bf16>(bytes).convert_from_f32_slice(&row_values);
                }
                DType::I32 => return fail!(InvalidArgument, "weights are floats, not {dtype}"),
            }
        }
        Self::new(Storage::owned(block), dtype, rows, cols)
    }

    fn byte_size(dtype: DType, rows: usize, cols: usize) -> Result<usize> {
        rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size())).ok_or_else(|| {
            Error::new(Status::InvalidArgument, format!("[{rows}, {cols}] of {dtype} is larger than memory"))
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The type the weights are kept in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The bytes, row-major, little-endian.
    pub fn bytes(&self) -> &[u8] {
        self.storage.bytes()
    }

    /// Whether the other matrix is this one, in the same memory: tied weights.
    pub fn shares_memory_with(&self, other: &Self) -> bool {
        std::ptr::eq(self.bytes(), other.bytes()) && (self.dtype, self.rows) == (other.dtype, other.rows)
    }

    /// Whether the bytes are a mapped file's.
    pub fn is_mapped(&self) -> bool {
        self.storage.is_mapped()
    }

    /// Rows `first..first + count` as f32: the weights themselves if they are f32, else converted (exactly) into
    /// `scratch`, which must hold `count · cols` values.
    pub fn rows_f32<'a>(&'a self, first: usize, count: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        let size = self.cols * self.dtype.size();
        let bytes = &self.bytes()[first * size..(first + count) * size];
        match self.dtype {
            DType::F32 => bytemuck::cast_slice(bytes),
            DType::F16 => {
                let out = &mut scratch[..count * self.cols];
                bytemuck::cast_slice::<u8, f16>(bytes).convert_to_f32_slice(out);
                out
            }
            DType::BF16 => {
                let out = &mut scratch[..count * self.cols];
                bytemuck::cast_slice::<u8, bf16>(bytes).convert_to_f32_slice(out);
                out
            }
            DType::I32 => unreachable!("Matrix::new refuses integers"),
        }
    }

    /// One row as f32; see [`Self::rows_f32`].
    pub fn row_f32<'a>(&'a self, row: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        self.rows_f32(row, 1, scratch)
    }

    /// The Euclidean norm of each row, summed in f64 and rounded once.
    pub fn row_norms(&self) -> Vec<f32> {
        let mut scratch = vec![0.0; self.cols];
        (0..self.rows)
            .map(|row| {
                let squares = self.row_f32(row, &mut scratch).iter().map(|&w| f64::from(w) * f64::from(w));
                squares.sum::<f64>().sqrt() as f32
            })
            .collect()
    }

    /// The rows `first..first + count` alone: shared if mapped, copied if not.
    pub fn slice_rows(&self, first: usize, count: usize) -> Result<Self> {
        let size = self.cols * self.dtype.size();
        let storage = match self.storage.is_mapped() {
            true => self.storage.slice(first * size, count * size)?,
            false => Storage::copy_of(&self.bytes()[first * size..(first + count) * size])?,
        };
        Self::new(storage, self.dtype, count, self.cols)
    }

    /// The same values kept in another type, rounded to nearest.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        let mut scratch = vec![0.0; self.cols];
        Self::build(dtype, self.rows, self.cols, |row, out| {
            out.copy_from_slice(self.row_f32(row, &mut scratch));
            Ok(())
        })
    }

    /// The first element that is not a finite number, as (row, column).
    pub fn first_non_finite(&self) -> Option<(usize, usize)> {
        let mut scratch = vec![0.0; self.cols];
        (0..self.rows).find_map(|row| {
            let values = self.row_f32(row, &mut scratch);
            if all_finite(values) { None } else { values.iter().position(|w| !w.is_finite()).map(|col| (row, col)) }
        })
    }
}

/// Whether there is no infinity among the numbers, nor anything that is no number.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    // No branch inside the loop, and no number waits for the one before it.
    !values.iter().fold(false, |found, v| found | !v.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_in_every_type() {
        let values = [1.0, -2.0, 0.5, 4.0, 8.0, -16.0];
        let f32s = Matrix::from_f32(&values, 3, 2).unwrap();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let matrix = f32s.to_dtype(dtype).unwrap();
            assert_eq!(matrix.bytes().len(), 6 * dtype.size());
            let mut scratch = [0.0; 4];
            assert_eq!(matrix.rows_f32(1, 2, &mut scratch), &values[2..]);
            assert_eq!(matrix.slice_rows(2, 1).unwrap().row_f32(0, &mut scratch), &values[4..]);
        }
        assert_eq!(f32s.row_norms()[0], 5f32.sqrt());
        assert!(Matrix::from_f32(&values, 2, 2).is_err());
        assert!(Matrix::from_f32(&values, usize::MAX, 2).is_err());
    }

    #[test]
    fn non_finite_weights_are_found() {
        let mut values = vec![0.5f32; 12];
        assert_eq!(Matrix::from_f32(&values, 3, 4).unwrap().first_non_finite(), None);
        values[6] = f32::NEG_INFINITY;
        assert_eq!(Matrix::from_f32(&values, 3, 4).unwrap().first_non_finite(), Some((1, 2)));
        values[6] = f32::MAX;
        assert_eq!(Matrix::from_f32(&values, 3, 4).unwrap().first_non_finite(), None);
    }
}
