//! A tensor as it lies in a file, and how it is brought into memory: whole, in part, transposed, converted, scaled or
//! mapped, never holding more than the result and one strip.

use std::fmt::Display;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::file::File;
use super::mapped::Kind;
use super::product::Product;
use crate::error::{Error, Result, Status, fail};
use crate::sae::Matrix;
use crate::tensor::{AlignedBytes, DType, Storage};

#[cfg(target_endian = "big")]
compile_error!("files hold little-endian numbers, which are read, mapped and written here as the machine's own");

/// Bytes that are read at a time where a matrix cannot be read in one piece.
const STRIP: usize = 8 << 20;

/// The type of stored elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StoredType {
    F64,
    F32,
    F16,
    BF16,
    /// Nothing that weights are read from; its name and bytes per element.
    Other(String, usize),
}

impl StoredType {
    /// Bytes per element.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Other(_, size) => *size,
        }
    }

    /// The type in which its values are kept if nothing else is asked for.
    fn kept_as(&self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            _ => DType::F32,
        }
    }
}

/// Where a tensor lies. Its bounds were checked when it was made.
#[derive(Clone)]
pub(super) struct StoredTensor {
    name: String,
    file: File,
    dtype: StoredType,
    shape: Vec<usize>,
    /// In elements.
    strides: Vec<usize>,
    /// The first element's byte in the file.
    start: u64,
}

impl StoredTensor {
    /// A tensor in the `bytes` bytes from `start` on, row-major unless `strides` (in elements) are given. Refuses what
    /// lies outside them, and shapes with more elements than they hold.
    pub(super) fn new(
        name: &str,
        file: &File,
        dtype: StoredType,
        shape: &[usize],
        strides: Option<&[usize]>,
        start: u64,
        bytes: u64,
    ) -> Result<Self> {
        let tensor = Self {
            name: name.to_owned(),
            file: file.clone(),
            strides: strides.map_or_else(|| row_major(shape), <[usize]>::to_vec),
            shape: shape.to_vec(),
            dtype,
            start,
        };
        let available = bytes.min(file.len().saturating_sub(start)) / tensor.dtype.size().max(1) as u64;
        let needed = tensor.needed_elements();
        if tensor.strides.len() != shape.len() || needed.is_none_or(|needed| needed > available) {
            let strides = &tensor.strides;
            return Err(tensor.err(
                Status::Format,
                format!("shape {shape:?} with strides {strides:?} does not fit the {available} elements stored for it"),
            ));
        }
        Ok(tensor)
    }

    /// The elements that its place must have: up to its last, and no fewer than its shape counts.
    fn needed_elements(&self) -> Option<u64> {
        let mut count = 1u64;
        let mut last = 0u64;
        for (&len, &stride) in std::iter::zip(&self.shape, &self.strides) {
            count = count.checked_mul(len as u64)?;
            last = last.checked_add((len.saturating_sub(1) as u64).checked_mul(stride as u64)?)?;
        }
        if count == 0 { Some(0) } else { Some(count.max(last.checked_add(1)?)) }
    }

    fn err(&self, status: Status, message: impl Display) -> Error {
        self.file.err(Error::new(status, format!("{}: {message}", self.name)))
    }

    /// The length of each dimension.
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Refuses another shape, and types that weights are not read from.
    pub(super) fn expect(self, shape: &[usize]) -> Result<Self> {
        if self.shape != shape {
            return Err(self.err(Status::Format, format!("expected shape {shape:?}, found {:?}", self.shape)));
        }
        match &self.dtype {
            StoredType::Other(found, _) => {
                Err(self.err(Status::Format, format!("expected f64, f32, f16 or bf16, found {found}")))
            }
            _ => Ok(self),
        }
    }

    /// The whole numbers of a tensor of the given shape, none negative. For what counts something.
    pub(super) fn expect_counts(&self, shape: &[usize]) -> Result<Vec<usize>> {
        if self.shape != shape || self.strides != row_major(shape) {
            return Err(self.err(Status::Format, format!("expected shape {shape:?}, found {:?}", self.shape)));
        }
        let size = match &self.dtype {
            StoredType::Other(name, size) if ["i32", "i64"].contains(&name.to_lowercase().as_str()) => *size,
            other => return Err(self.err(Status::Format, format!("expected whole numbers, found {other:?}"))),
        };
        let mut bytes = vec![0; shape.iter().product::<usize>() * size];
        self.file.read_at(self.start, &mut bytes)?;
        let count = |bytes: &[u8]| {
            let number = bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
            // Negative numbers have the highest bit of their type.
            let negative = number >> (8 * size - 1) == 1;
            usize::try_from(number).ok().filter(|_| !negative)
        };
        let counts: Option<Vec<usize>> = bytes.chunks_exact(size).map(count).collect();
        counts.ok_or_else(|| self.err(Status::Format, "a negative number"))
    }

    /// What the elements are, for those who read them where they lie.
    pub(super) fn kind(&self) -> Kind {
        match &self.dtype {
            StoredType::F32 => Kind::Float(DType::F32),
            StoredType::F16 => Kind::Float(DType::F16),
            StoredType::BF16 => Kind::Float(DType::BF16),
            StoredType::F64 => Kind::Other("f64".to_owned()),
            StoredType::Other(name, size) => match name.to_lowercase().as_str() {
                "i32" | "i64" | "<i4" | "<i8" => Kind::Whole(*size),
                _ => Kind::Other(name.clone()),
            },
        }
    }

    /// Its bytes mapped, at any alignment, and its shape.
    pub(super) fn mapped_bytes(&self) -> Result<(Storage, &[usize])> {
        let elements: usize = self.shape.iter().product();
        if elements > 0 && self.strides != row_major(&self.shape) {
            let (shape, strides) = (&self.shape, &self.strides);
            let message =
                format!("shape {shape:?} lies with strides {strides:?}; only row-major arrays are read in place");
            return Err(self.err(Status::Unsupported, message));
        }
        let Some(map) = self.file.map()? else {
            return Err(
                self.err(Status::Unsupported, "is compressed; only arrays stored as they are are read in place")
            );
        };
        // Within the file, as was checked when the tensor was made.
        let bytes = map.slice(self.start as usize, elements * self.dtype.size()).map_err(|e| e.at(&self.name))?;
        Ok((bytes, &self.shape))
    }

    /// The same elements with rows and columns exchanged.
    pub(super) fn transposed(mut self) -> Self {
        self.shape.reverse();
        self.strides.reverse();
        self
    }

    /// The entries `first..first + count` of the first dimension, which must be there.
    pub(super) fn slice(self, first: usize, count: usize) -> Self {
        self.narrow(0, first, count)
    }

    /// The entries `first..first + count` of a dimension, which must be there.
    pub(super) fn narrow(mut self, axis: usize, first: usize, count: usize) -> Self {
        assert!(first + count <= self.shape[axis], "a checked range");
        self.start += (first * self.strides[axis] * self.dtype.size()) as u64;
        self.shape[axis] = count;
        self
    }

    /// A dimension and the one behind it as one.
    pub(super) fn flattened(mut self, axis: usize) -> Result<Self> {
        let (outer, inner) = (axis, axis + 1);
        let apart = self.shape[outer] > 1 && self.strides[outer] != self.shape[inner] * self.strides[inner];
        if apart {
            let strides = &self.strides;
            return Err(self.err(Status::Unsupported, format!("strides {strides:?}: the elements do not lie together")));
        }
        let len = self.shape.remove(axis);
        self.shape[axis] *= len;
        self.strides.remove(axis);
        Ok(self)
    }

    /// The values of a vector times a factor, in order, as f32; `name` is what a value that f32 cannot hold is called.
    pub(super) fn scaled_values(&self, name: &str, factor: f64) -> Result<Vec<f32>> {
        let mut values = self.values()?;
        if factor != 1.0 {
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let stored = self.value_at(i * self.strides[0])?;
            refuse_rounded(format_args!("{name}[{i}]"), stored, factor, DType::F32)?;
        }
        Ok(values)
    }

    /// Its values, in order, with the precision they are stored in. Refuses such as are not finite.
    pub(super) fn values_f64(&self) -> Result<Vec<f64>> {
        let values: Vec<f64> = if self.dtype == StoredType::F64 && self.strides == row_major(&self.shape) {
            let mut bytes = AlignedBytes::zeroed(self.shape.iter().product::<usize>() * self.dtype.size())?;
            self.file.read_at(self.start, bytes.as_mut_slice())?;
            bytemuck::cast_slice(bytes.as_slice()).to_vec()
        } else {
            self.values()?.into_iter().map(f64::from).collect()
        };
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(self.err(Status::NotFinite, format!("value {i} is {}, not a finite number", values[i]))),
            None => Ok(values),
        }
    }

    /// Its values, in order, as f32. For vectors and scalars.
    pub(super) fn values(&self) -> Result<Vec<f32>> {
        // No more than the file has bytes, which may still be more than there is memory.
        let count = self.shape.iter().product();
        let mut values = Vec::new();
        let reserved = values.try_reserve_exact(count);
        reserved.map_err(|_| self.err(Status::OutOfMemory, format!("{count} values could not be allocated")))?;
        values.resize(count, 0.0);
        if self.strides == row_major(&self.shape) {
            let mut bytes = AlignedBytes::zeroed(count * self.dtype.size())?;
            self.file.read_at(self.start, bytes.as_mut_slice())?;
            self.decode(bytes.as_slice(), &mut values)?;
        } else if self.shape.len() == 1 {
            for (i, value) in values.iter_mut().enumerate() {
                let mut bytes = AlignedBytes::zeroed(self.dtype.size())?;
                self.file.read_at(self.byte_at(i * self.strides[0]), bytes.as_mut_slice())?;
                self.decode(bytes.as_slice(), std::slice::from_mut(value))?;
            }
        } else {
            return Err(self.err(Status::Unsupported, format!("strides {:?} are not read", self.strides)));
        }
        Ok(values)
    }

    /// One element, as it is stored.
    fn value_at(&self, element: usize) -> Result<f64> {
        let mut bytes = AlignedBytes::zeroed(self.dtype.size())?;
        self.file.read_at(self.byte_at(element), bytes.as_mut_slice())?;
        if self.dtype == StoredType::F64 {
            return Ok(bytemuck::cast_slice(bytes.as_slice())[0]);
        }
        let mut value = [0.0];
        self.decode(bytes.as_slice(), &mut value)?;
        Ok(value[0].into())
    }

    fn byte_at(&self, element: usize) -> u64 {
        self.start + (element * self.dtype.size()) as u64
    }

    /// Converts aligned bytes to f32, exactly except for f64, which is rounded.
    fn decode(&self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        match &self.dtype {
            StoredType::F32 => out.copy_from_slice(bytemuck::cast_slice(bytes)),
            StoredType::F16 => bytemuck::cast_slice::<u8, f16>(bytes).convert_to_f32_slice(out),
            StoredType::BF16 => bytemuck::cast_slice::<u8, bf16>(bytes).convert_to_f32_slice(out),
            StoredType::F64 => {
                for (out, &value) in std::iter::zip(out, bytemuck::cast_slice::<u8, f64>(bytes)) {
                    *out = value as f32;
                }
            }
            StoredType::Other(found, _) => {
                return Err(self.err(Status::Format, format!("expected floats, found {found}")));
            }
        }
        Ok(())
    }
}

/// Refuses a stored element that is not finite once scaled and rounded, unless it was not finite to begin with.
fn refuse_rounded(place: impl Display, stored: f64, factor: f64, dtype: DType) -> Result<()> {
    match stored {
        _ if !stored.is_finite() => Ok(()),
        _ if (stored as f32).is_finite() => Err(misfit(place, stored * factor, dtype)),
        _ => Err(misfit(place, stored, dtype)),
    }
}

/// The error for a weight that a type would round to infinity.
pub(super) fn misfit(place: impl Display, value: f64, dtype: DType) -> Error {
    // The shortest digits that tell the value apart.
    let narrow = value as f32;
    let value = if f64::from(narrow) == value { format!("{narrow:e}") } else { format!("{value:e}") };
    Error::new(Status::NotFinite, format!("{place} = {value} does not fit {dtype}"))
}

/// Strides of a row-major tensor; saturating, for shapes that are refused anyway.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

/// A stored matrix on its way into memory: oriented as it is computed with (one row per latent), and what its rows and
/// then its elements are to be multiplied by.
#[derive(Clone)]
pub(super) struct StoredMatrix {
    tensor: StoredTensor,
    product: Option<Product>,
    factor: f64,
    /// What each row goes on with: the columns of these, one after the other.
    right: Vec<StoredMatrix>,
}

impl StoredMatrix {
    /// Takes a tensor of two dimensions, already oriented.
    pub(super) fn new(tensor: StoredTensor) -> Result<Self> {
        let (rows, cols) = match tensor.shape() {
            &[rows, cols] => (rows, cols),
            other => return Err(tensor.err(Status::Format, format!("expected a matrix, found shape {other:?}"))),
        };
        if rows > 1 && cols > 1 && !tensor.strides.contains(&1) {
            let strides = &tensor.strides;
            return Err(tensor.err(Status::Unsupported, format!("strides {strides:?}: one of them must be 1")));
        }
        Ok(Self { tensor, product: None, factor: 1.0, right: Vec::new() })
    }

    /// Matrices of as many rows each, side by side. There must be one.
    pub(super) fn joined(parts: Vec<Self>) -> Result<Self> {
        let mut parts = parts.into_iter();
        let Some(left) = parts.next() else {
            return fail!(Format, "a matrix of no layers");
        };
        let right: Vec<Self> = parts.collect();
        match right.iter().find(|part| part.rows() != left.rows()) {
            Some(part) => {
                Err(part.tensor.err(Status::Format, format!("expected {} rows, found {}", left.rows(), part.rows())))
            }
            None => Ok(Self { right, ..left }),
        }
    }

    /// Whether the other is the same matrix of the same file.
    pub(super) fn is(&self, other: &Self) -> bool {
        let place = |m: &Self| (m.tensor.start, m.tensor.shape.clone(), m.tensor.strides.clone());
        let plain = |m: &Self| m.product.is_none() && m.right.is_empty();
        let plain = plain(self) && plain(other);
        self.tensor.file.is(&other.tensor.file) && place(self) == place(other) && self.factor == other.factor && plain
    }

    /// The same matrix, every element multiplied by `factor`.
    pub(super) fn scaled(self, factor: f64) -> Self {
        let right = self.right.into_iter().map(|part| part.scaled(factor)).collect();
        Self { factor: self.factor * factor, right, ..self }
    }

    /// The same matrix, every row multiplied by a square one.
    pub(super) fn times(self, product: Product) -> Self {
        Self { product: Some(product), ..self }
    }

    /// The rows `first..first + count`, which must be there.
    pub(super) fn slice(self, first: usize, count: usize) -> Self {
        let product = self.product.map(|product| product.from(first));
        let right = self.right.into_iter().map(|part| part.slice(first, count)).collect();
        Self { tensor: self.tensor.slice(first, count), product, right, ..self }
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.tensor.shape[0]
    }

    /// Columns of its own tensor.
    fn cols(&self) -> usize {
        self.tensor.shape[1]
    }

    /// Columns of all parts.
    fn width(&self) -> usize {
        self.parts().map(Self::cols).sum()
    }

    fn parts(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.right)
    }

    /// Elements from the start of a row to the next, if the elements of each row lie together.
    fn row_stride(&self) -> Option<usize> {
        let [row, col] = [self.tensor.strides[0], self.tensor.strides[1]];
        (col == 1 || self.cols() == 1).then_some(if self.rows() == 1 { self.cols() } else { row })
    }

    fn dtype(&self, wanted: Option<DType>) -> DType {
        wanted.unwrap_or_else(|| self.tensor.dtype.kept_as())
    }

    /// Whether its bytes in the file are those it has in memory.
    fn lies_as_kept(&self, dtype: DType) -> bool {
        let same_type = matches!(
            (&self.tensor.dtype, dtype),
            (StoredType::F32, DType::F32) | (StoredType::F16, DType::F16) | (StoredType::BF16, DType::BF16)
        );
        let plain = self.factor == 1.0 && self.product.is_none() && self.right.is_empty();
        same_type && plain && self.row_stride() == Some(self.cols())
    }

    fn is_mappable(&self, dtype: DType) -> bool {
        let aligned = self.tensor.start.is_multiple_of(dtype.size() as u64);
        self.lies_as_kept(dtype) && aligned && self.tensor.file.is_mappable()
    }

    /// Bytes it takes in memory, and whether they are mapped ones.
    pub(super) fn byte_size(&self, dtype: Option<DType>, map: bool) -> (u64, bool) {
        let dtype = self.dtype(dtype);
        // Cannot overflow: the elements lie in the file, and a kept one is at most twice a stored one.
        ((self.rows() * self.width() * dtype.size()) as u64, map && self.is_mappable(dtype))
    }

    /// Bytes needed besides the result while it is read.
    pub(super) fn scratch_size(&self, dtype: Option<DType>) -> u64 {
        let held = self.tensor.file.held();
        let right: u64 = self.right.iter().map(|part| part.scratch_size(dtype)).sum();
        match self.lies_as_kept(self.dtype(dtype)) {
            true => held,
            false => {
                let strip = self.strip_rows() * self.cols();
                let products = self.product.as_ref().map_or(0, |product| product.byte_size() + 4 * strip);
                held + right + (strip * self.tensor.dtype.size() + 4 * self.cols() + products) as u64
            }
        }
    }

    fn strip_rows(&self) -> usize {
        (STRIP / (self.cols() * self.tensor.dtype.size()).max(1)).clamp(1, self.rows().max(1))
    }

    /// Reads or maps it; `name` is what a value that the type cannot hold is called.
    pub(super) fn load(&self, name: &str, dtype: Option<DType>, map: bool) -> Result<Matrix> {
        let dtype = self.dtype(dtype);
        let (rows, cols) = (self.rows(), self.width());
        let len = rows * cols * dtype.size();
        if map
            && self.is_mappable(dtype)
            && let Some(whole) = self.tensor.file.map()?
        {
            return Matrix::new(whole.slice(self.tensor.start as usize, len)?, dtype, rows, cols);
        }
        if self.lies_as_kept(dtype) {
            let mut block = AlignedBytes::zeroed(len)?;
            self.tensor.file.read_at(self.tensor.start, block.as_mut_slice())?;
            return Matrix::new(crate::tensor::Storage::owned(block), dtype, rows, cols);
        }
        let mut strips = self.strips()?;
        let matrix = Matrix::build(dtype, rows, cols, |row, out| next_row(&mut strips, row, out))?;
        if let Some((row, col)) = matrix.first_non_finite() {
            let mut within = col;
            let part = self.parts().find(|part| {
                let there = within < part.cols();
                within -= if there { 0 } else { part.cols() };
                there
            });
            // What a product makes of finite numbers is not any one of them.
            if let Some(Self { tensor, product: None, factor, .. }) = part {
                let stored = tensor.value_at(row * tensor.strides[0] + within * tensor.strides[1])?;
                refuse_rounded(format_args!("{name}[{row}, {col}]"), stored, *factor, dtype)?;
            }
        }
        Ok(matrix)
    }

    fn strips(&self) -> Result<Vec<Strips<'_>>> {
        self.parts().map(Strips::new).collect()
    }

    /// Reads it row by row, keeping none.
    pub(super) fn for_each_row(&self, mut take: impl FnMut(&[f32])) -> Result<()> {
        let (mut strips, mut row) = (self.strips()?, vec![0.0; self.width()]);
        (0..self.rows()).try_for_each(|i| {
            next_row(&mut strips, i, &mut row)?;
            take(&row);
            Ok(())
        })
    }

    /// Reads `count` rows from `first` on: one after the other if rows lie together, else column after column.
    fn read_strip(&self, first: usize, count: usize, strip: &mut [u8]) -> Result<()> {
        let tensor = &self.tensor;
        let size = tensor.dtype.size();
        match self.row_stride() {
            Some(stride) if stride == self.cols() => {
                tensor.file.read_at(tensor.byte_at(first * stride), &mut strip[..count * stride * size])
            }
            Some(stride) => {
                let rows = strip.chunks_exact_mut((self.cols() * size).max(1)).take(count).enumerate();
                rows.into_iter().try_for_each(|(i, out)| tensor.file.read_at(tensor.byte_at((first + i) * stride), out))
            }
            None => {
                let columns = strip.chunks_exact_mut(count * size).take(self.cols()).enumerate();
                columns.into_iter().try_for_each(|(col, out)| {
                    tensor.file.read_at(tensor.byte_at(first + col * tensor.strides[1]), out)
                })
            }
        }
    }

    /// One row of a strip of `held` rows, as f32.
    fn decode_row(&self, row: usize, held: usize, strip: &[u8], out: &mut [f32]) -> Result<()> {
        let size = self.tensor.dtype.size();
        let cols = self.cols();
        if self.row_stride().is_some() {
            return self.tensor.decode(&strip[row * cols * size..(row + 1) * cols * size], out);
        }
        fn gather<T: bytemuck::AnyBitPattern>(
            strip: &[u8],
            row: usize,
            held: usize,
            out: &mut [f32],
            to: fn(T) -> f32,
        ) {
            let elements: &[T] = bytemuck::cast_slice(&strip[..held * out.len() * size_of::<T>()]);
            for (out, column) in std::iter::zip(out, elements.chunks_exact(held)) {
                *out = to(column[row]);
            }
        }
        match &self.tensor.dtype {
            StoredType::F32 => gather::<f32>(strip, row, held, out, |w| w),
            StoredType::F64 => gather::<f64>(strip, row, held, out, |w| w as f32),
            StoredType::F16 => gather::<f16>(strip, row, held, out, f16::to_f32),
            StoredType::BF16 => gather::<bf16>(strip, row, held, out, bf16::to_f32),
            StoredType::Other(found, _) => return fail!(Format, "expected floats, found {found}"),
        }
        Ok(())
    }
}

/// The next row of matrices side by side.
fn next_row(strips: &mut [Strips<'_>], row: usize, mut out: &mut [f32]) -> Result<()> {
    strips.iter_mut().try_for_each(|strips| {
        let (own, rest) = std::mem::take(&mut out).split_at_mut(strips.matrix.cols());
        out = rest;
        strips.row(row, own)
    })
}

/// A matrix as it is read: the strip of it that holds the present row.
struct Strips<'a> {
    matrix: &'a StoredMatrix,
    /// As stored.
    strip: AlignedBytes,
    /// After the product, if there is one.
    product: Option<AlignedBytes>,
}

impl<'a> Strips<'a> {
    fn new(matrix: &'a StoredMatrix) -> Result<Self> {
        let len = matrix.strip_rows() * matrix.cols();
        let strip = AlignedBytes::zeroed(len * matrix.tensor.dtype.size())?;
        let product = matrix.product.as_ref().map(|_| AlignedBytes::zeroed(4 * len)).transpose()?;
        Ok(Self { matrix, strip, product })
    }

    /// The next row; rows are asked for in order.
    fn row(&mut self, row: usize, out: &mut [f32]) -> Result<()> {
        let Self { matrix, strip, product } = self;
        let (rows, cols, strip_rows) = (matrix.rows(), matrix.cols(), matrix.strip_rows());
        let within = row % strip_rows;
        let held = strip_rows.min(rows - (row - within));
        if within == 0 {
            matrix.read_strip(row, held, strip.as_mut_slice())?;
        }
        match (&matrix.product, product) {
            (Some(product), Some(values)) => {
                let values: &mut [f32] = bytemuck::cast_slice_mut(values.as_mut_slice());
                if within == 0 {
                    let values = &mut values[..held * cols];
                    let each = values.chunks_exact_mut(cols.max(1)).enumerate();
                    each.into_iter().try_for_each(|(i, out)| matrix.decode_row(i, held, strip.as_slice(), out))?;
                    product.apply(row, cols, values);
                }
                out.copy_from_slice(&values[within * cols..][..cols]);
            }
            _ => matrix.decode_row(within, held, strip.as_slice(), out)?,
        }
        if matrix.factor != 1.0 {
            out.iter_mut().for_each(|w| *w = (f64::from(*w) * matrix.factor) as f32);
        }
        Ok(())
    }
}
