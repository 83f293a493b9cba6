//! Borrowed, strided views of activations and results, in DLPack's terms. A view is checked once, when it is made;
//! afterwards rows are read and written without further questions.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{DType, Element};
use crate::error::{Result, fail};

/// The most dimensions a tensor may have.
pub const MAX_DIMS: usize = 3;

/// What kind of memory a device has. The numbers are DLPack's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DeviceKind {
    /// Ordinary host memory.
    Cpu = 1,
    /// Memory of an NVIDIA GPU.
    Cuda = 2,
    /// Host memory pinned for CUDA; the CPU reads it like its own.
    CudaHost = 3,
    /// CUDA managed memory; both sides read it.
    CudaManaged = 13,
}

/// A device: its kind and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// What kind of memory.
    pub kind: DeviceKind,
    /// Which of them.
    pub id: i32,
}

impl Device {
    /// The host's processor.
    pub const CPU: Self = Self { kind: DeviceKind::Cpu, id: 0 };

    /// Whether the processor can read and write it directly.
    pub fn is_host(self) -> bool {
        self.kind != DeviceKind::Cuda
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            DeviceKind::Cpu => f.write_str("cpu"),
            DeviceKind::Cuda => write!(f, "cuda:{}", self.id),
            DeviceKind::CudaHost => write!(f, "cuda_host:{}", self.id),
            DeviceKind::CudaManaged => write!(f, "cuda_managed:{}", self.id),
        }
    }
}

/// A checked strided view; the memory's rights are those of the wrapper around it.
#[derive(Clone, Copy)]
struct Raw {
    data: *mut u8,
    dtype: DType,
    device: Device,
    ndim: usize,
    shape: [usize; MAX_DIMS],
    /// In elements; never negative.
    strides: [usize; MAX_DIMS],
}

impl Raw {
    fn new(
        data: *mut u8,
        dtype: DType,
        device: Device,
        shape: &[usize],
        strides: Option<&[i64]>,
        writable: bool,
    ) -> Result<Self> {
        let ndim = shape.len();
        if ndim == 0 || ndim > MAX_DIMS {
            return fail!(InvalidTensor, "a tensor has 1 to {MAX_DIMS} dimensions, this one {ndim}");
        }
        let mut raw = Self { data, dtype, device, ndim, shape: [1; MAX_DIMS], strides: [0; MAX_DIMS] };
        if strides.is_some_and(|strides| strides.len() != ndim) {
            return fail!(InvalidTensor, "{ndim} dimensions have {} strides", strides.map_or(0, <[i64]>::len));
        }
        raw.shape[..ndim].copy_from_slice(shape);
        let overflow = || format!("shape {shape:?} of {dtype} is larger than the address space");
        let mut row_major = 1usize;
        for axis in (0..ndim).rev() {
            raw.strides[axis] = match strides {
                None => row_major,
                Some(s) if s[axis] < 0 => {
                    return fail!(InvalidTensor, "stride {} of dimension {axis} is negative", s[axis]);
                }
                // Where there is nothing to step over, any stride means the same.
                Some(_) if shape[axis] <= 1 => row_major,
                Some(s) => s[axis] as usize,
            };
            let Some(next) = row_major.checked_mul(shape[axis].max(1)) else {
                return fail!(InvalidTensor, "{}", overflow());
            };
            row_major = next;
        }
        if raw.is_empty() {
            return Ok(raw);
        }
        if raw.strides[ndim - 1] != 1 {
            return fail!(InvalidTensor, "the innermost stride must be 1, not {}", raw.strides[ndim - 1]);
        }
        let fits = |end: usize| end <= isize::MAX as usize && (data as usize).checked_add(end).is_some();
        if !raw.extent_bytes().is_some_and(fits) {
            return fail!(InvalidTensor, "{} with strides {:?}", overflow(), &raw.strides[..ndim]);
        }
        if writable {
            // The outer dimensions in either order, by their strides: layers may lie within tokens or tokens within layers.
            let mut inner = shape[ndim - 1];
            let mut outer = [ndim.saturating_sub(2), 0];
            outer.sort_by_key(|&axis| raw.strides[axis]);
            for axis in outer.into_iter().take(ndim - 1) {
                if shape[axis] > 1 && raw.strides[axis] < inner {
                    return fail!(
                        InvalidTensor,
                        "stride {} of dimension {axis} makes written rows overlap; it must be at least {inner}",
                        raw.strides[axis]
                    );
                }
                // Cannot overflow: the extent was checked above.
                inner = inner.max(raw.strides[axis] * (shape[axis] - 1) + inner);
            }
        }
        if data.is_null() {
            return fail!(InvalidTensor, "the data pointer is null, but shape {shape:?} has elements");
        }
        if !(data as usize).is_multiple_of(dtype.size()) {
            return fail!(
                InvalidTensor,
                "data pointer {data:p} is not aligned to the {} bytes of {dtype}",
                dtype.size()
            );
        }
        Ok(raw)
    }

    fn is_empty(&self) -> bool {
        self.shape[..self.ndim].contains(&0)
    }

    /// Bytes from the first element to the end of the last; `None` if they overflow.
    fn extent_bytes(&self) -> Option<usize> {
        if self.is_empty() {
            return Some(0);
        }
        let mut last = 0usize;
        for axis in 0..self.ndim {
            last = last.checked_add(self.strides[axis].checked_mul(self.shape[axis] - 1)?)?;
        }
        last.checked_add(1)?.checked_mul(self.dtype.size())
    }

    fn span(&self) -> Range<usize> {
        let start = self.data as usize;
        start..start + self.extent_bytes().unwrap_or(0)
    }

    fn shape(&self) -> &[usize] {
        &self.shape[..self.ndim]
    }

    fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Elements of a row.
    fn row_len(&self) -> usize {
        self.layers() * self.part_len()
    }

    /// Parts of a row: a crosscoder's layers.
    fn layers(&self) -> usize {
        if self.ndim == 3 { self.shape[1] } else { 1 }
    }

    /// Elements of a part, which lie next to each other.
    fn part_len(&self) -> usize {
        self.shape[self.ndim - 1]
    }

    /// Elements from the first to the last of a row.
    fn row_extent(&self) -> usize {
        if self.ndim == 3 { self.strides[1] * (self.shape[1] - 1) + self.part_len() } else { self.part_len() }
    }

    /// Pointer to a part of a row, which a caller reads or writes `part_len` elements of.
    fn part_ptr(&self, row: usize, layer: usize) -> *mut u8 {
        assert!(row < self.rows() && layer < self.layers(), "row {row}, {layer} of {:?}", self.shape());
        assert!(self.device.is_host(), "{} memory is not read by the CPU", self.device);
        let row_offset = if self.ndim > 1 { row * self.strides[0] } else { 0 };
        let offset = row_offset + if self.ndim == 3 { layer * self.strides[1] } else { 0 };
        // In bounds of the extent, which fits isize: checked at construction.
        self.data.wrapping_add(offset * self.dtype.size())
    }
}

/// A tensor to read.
#[derive(Clone, Copy)]
pub struct Tensor<'a>(Raw, PhantomData<&'a [u8]>);

/// A tensor to write.
pub struct TensorMut<'a>(Raw, PhantomData<&'a mut [u8]>);

// SAFETY: a `Tensor` is a `&[T]` of plain numbers with strides.
unsafe impl Send for Tensor<'_> {}
// SAFETY: as above.
unsafe impl Sync for Tensor<'_> {}
// SAFETY: a `TensorMut` is a `&mut [T]` of plain numbers with strides.
unsafe impl Send for TensorMut<'_> {}
// SAFETY: shared access gives no way to write, except the `shared_` functions, which are unsafe.
unsafe impl Sync for TensorMut<'_> {}

impl<'a> Tensor<'a> {
    /// A dense view of a slice with the given shape, whose product must be the slice's length.
    pub fn new<T: Element>(values: &'a [T], shape: &[usize]) -> Result<Self> {
        check_len(values.len(), shape)?;
        Raw::new(values.as_ptr().cast_mut().cast(), T::DTYPE, Device::CPU, shape, None, false)
            .map(|raw| Self(raw, PhantomData))
    }

    /// A view of `[rows, cols]` whose rows start `stride` elements apart.
    pub fn strided<T: Element>(values: &'a [T], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        check_strided(values.len(), rows, cols, stride)?;
        let strides = [stride as i64, 1];
        Raw::new(values.as_ptr().cast_mut().cast(), T::DTYPE, Device::CPU, &[rows, cols], Some(&strides), false)
            .map(|raw| Self(raw, PhantomData))
    }

    /// A view of memory described by pointer; everything that can be checked is.
    ///
    /// # Safety
    /// Unless a dimension is 0, the described elements must be readable for `'a` on `device`, and not written
    /// meanwhile except through a tensor that a call accepts as aliasing this one.
    pub unsafe fn from_raw(
        data: *const u8,
        dtype: DType,
        device: Device,
        shape: &[usize],
        strides: Option<&[i64]>,
    ) -> Result<Self> {
        Raw::new(data.cast_mut(), dtype, device, shape, strides, false).map(|raw| Self(raw, PhantomData))
    }

    /// The row as a slice of its own type, which must be `T`; of at most two dimensions.
    pub fn row<T: Element>(&self, row: usize) -> &'a [T] {
        assert!(self.0.ndim <= 2, "rows of {:?} are not contiguous", self.0.shape());
        self.part(row, 0)
    }

    fn part<T: Element>(&self, row: usize, layer: usize) -> &'a [T] {
        assert_eq!(self.0.dtype, T::DTYPE, "element type");
        if self.0.part_len() == 0 {
            return &[];
        }
        let at = self.0.part_ptr(row, layer).cast::<T>();
        // SAFETY: host memory, aligned and in bounds by `Raw::new` and `part_ptr`; readable for 'a by the maker's promise.
        unsafe { std::slice::from_raw_parts(at, self.0.part_len()) }
    }

    /// An element of a one-dimensional tensor.
    pub fn element<T: Element>(&self, i: usize) -> T {
        assert!(self.0.ndim == 1 && i < self.0.rows(), "element {i} of {:?}", self.0.shape());
        assert_eq!(self.0.dtype, T::DTYPE, "element type");
        assert!(self.0.device.is_host(), "{} memory is not read by the CPU", self.0.device);
        // SAFETY: host memory, aligned and in bounds, as just checked; readable for 'a by the maker's promise.
        unsafe { *self.0.data.cast::<T>().add(i) }
    }

    /// Copies a row of floats into `out`, converted (exactly) to f32; layers one after another.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.0.row_len());
        for (layer, out) in out.chunks_exact_mut(self.0.part_len().max(1)).enumerate() {
            match self.0.dtype {
                DType::F32 => out.copy_from_slice(self.part::<f32>(row, layer)),
                DType::F16 => self.part::<f16>(row, layer).convert_to_f32_slice(out),
                DType::BF16 => self.part::<bf16>(row, layer).convert_to_f32_slice(out),
                DType::I32 => unreachable!("floats are read, this tensor is i32"),
            }
        }
    }
}

impl<'a> TensorMut<'a> {
    /// A dense view of a slice with the given shape, whose product must be the slice's length.
    pub fn new<T: Element>(values: &'a mut [T], shape: &[usize]) -> Result<Self> {
        check_len(values.len(), shape)?;
        Raw::new(values.as_mut_ptr().cast(), T::DTYPE, Device::CPU, shape, None, true).map(|raw| Self(raw, PhantomData))
    }

    /// A view of `[rows, cols]` whose rows start `stride` elements apart.
    pub fn strided<T: Element>(values: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        check_strided(values.len(), rows, cols, stride)?;
        let strides = [stride as i64, 1];
        Raw::new(values.as_mut_ptr().cast(), T::DTYPE, Device::CPU, &[rows, cols], Some(&strides), true)
            .map(|raw| Self(raw, PhantomData))
    }

    /// A view of memory described by pointer; everything that can be checked is.
    ///
    /// # Safety
    /// Unless a dimension is 0, the described elements must be readable and writable for `'a` on `device`, and nobody
    /// else may touch them except through a tensor that a call accepts as aliasing this one.
    pub unsafe fn from_raw(
        data: *mut u8,
        dtype: DType,
        device: Device,
        shape: &[usize],
        strides: Option<&[i64]>,
    ) -> Result<Self> {
        Raw::new(data, dtype, device, shape, strides, true).map(|raw| Self(raw, PhantomData))
    }

    /// The same tensor, to read.
    pub fn as_ref(&self) -> Tensor<'_> {
        Tensor(self.0, PhantomData)
    }

    /// The same tensor, for a shorter while.
    pub fn reborrow(&mut self) -> TensorMut<'_> {
        TensorMut(self.0, PhantomData)
    }

    /// The row as a slice of its own type, which must be `T`; of at most two dimensions.
    pub fn row_mut<T: Element>(&mut self, row: usize) -> &mut [T] {
        // SAFETY: borrowed mutably, so no other handle to the row is in use.
        unsafe { self.shared_row_mut(row) }
    }

    /// Writes f32 values into a row, rounded to the tensor's type; layers one after another.
    pub fn write_row(&mut self, row: usize, values: &[f32]) {
        // SAFETY: borrowed mutably, so no other handle to the row is in use.
        unsafe { self.shared_write_row(row, values) }
    }

    /// Copies a row of another tensor of the same type and row length, bit for bit.
    pub fn copy_row(&mut self, row: usize, from: &Tensor<'_>, from_row: usize) {
        // SAFETY: borrowed mutably, so no other handle to the row is in use; what `from` looks at is not written meanwhile.
        unsafe { self.shared_copy_row(row, from, from_row) }
    }

    /// [`Self::row_mut`] for workers that share the tensor and write different rows.
    ///
    /// # Safety
    /// No two threads may hold the same row.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn shared_row_mut<T: Element>(&self, row: usize) -> &mut [T] {
        assert!(self.0.ndim <= 2, "rows of {:?} are not contiguous", self.0.shape());
        // SAFETY: the caller's promise, handed on.
        unsafe { self.shared_part_mut(row, 0) }
    }

    /// # Safety
    /// As [`Self::shared_row_mut`].
    #[allow(clippy::mut_from_ref)]
    unsafe fn shared_part_mut<T: Element>(&self, row: usize, layer: usize) -> &mut [T] {
        assert_eq!(self.0.dtype, T::DTYPE, "element type");
        if self.0.part_len() == 0 {
            return &mut [];
        }
        let at = self.0.part_ptr(row, layer).cast::<T>();
        // SAFETY: host memory, aligned, in bounds and parts disjoint by `Raw::new` and `part_ptr`; writable by the
        // maker's promise; exclusive by the caller's.
        unsafe { std::slice::from_raw_parts_mut(at, self.0.part_len()) }
    }

    /// Writes an element of a one-dimensional tensor.
    ///
    /// # Safety
    /// No two threads may write the same element.
    pub(crate) unsafe fn shared_set<T: Element>(&self, i: usize, value: T) {
        assert!(self.0.ndim == 1 && i < self.0.rows(), "element {i} of {:?}", self.0.shape());
        assert_eq!(self.0.dtype, T::DTYPE, "element type");
        assert!(self.0.device.is_host(), "{} memory is not written by the CPU", self.0.device);
        // SAFETY: host memory, aligned and in bounds, as just checked; writable by the maker's promise, exclusive by
        // the caller's.
        unsafe { *self.0.data.cast::<T>().add(i) = value };
    }

    /// Writes f32 values, rounded to the tensor's type, into a range of a row; of at most two dimensions.
    ///
    /// # Safety
    /// No two threads may hold the same row.
    pub(crate) unsafe fn shared_write_part(&self, row: usize, start: usize, values: &[f32]) {
        assert!(self.0.ndim <= 2, "rows of {:?} are not contiguous", self.0.shape());
        // SAFETY: the caller's promise, handed on.
        unsafe { self.shared_write(row, 0, start, values) };
    }

    /// # Safety
    /// As [`Self::shared_write_part`].
    unsafe fn shared_write(&self, row: usize, layer: usize, start: usize, values: &[f32]) {
        let range = start..start + values.len();
        // SAFETY: the caller's promise, handed on.
        unsafe {
            match self.0.dtype {
                DType::F32 => self.shared_part_mut::<f32>(row, layer)[range].copy_from_slice(values),
                DType::F16 => self.shared_part_mut::<f16>(row, layer)[range].convert_from_f32_slice(values),
                DType::BF16 => self.shared_part_mut::<bf16>(row, layer)[range].convert_from_f32_slice(values),
                DType::I32 => unreachable!("floats are written, this tensor is i32"),
            }
        }
    }

    /// Copies a row of another tensor of the same type and row length, bit for bit.
    ///
    /// # Safety
    /// No two threads may hold the same row; the rows must be the same or not overlap.
    pub(crate) unsafe fn shared_copy_row(&self, row: usize, from: &Tensor<'_>, from_row: usize) {
        let (to, from) = (&self.0, &from.0);
        assert_eq!((to.dtype, to.row_len()), (from.dtype, from.row_len()));
        // Either may have its layers apart.
        let step = to.part_len().min(from.part_len());
        assert!(step == 0 || to.part_len().is_multiple_of(step) && from.part_len().is_multiple_of(step));
        let at = |raw: &Raw, row, start| {
            raw.part_ptr(row, start / raw.part_len()).wrapping_add(start % raw.part_len() * raw.dtype.size())
        };
        for start in (0..to.row_len()).step_by(step.max(1)) {
            let (from, to) = (at(from, from_row, start), at(to, row, start));
            // SAFETY: both are host memory in bounds; `copy` allows them to be one and the same.
            unsafe { std::ptr::copy(from, to, step * self.0.dtype.size()) };
        }
    }

    /// [`Self::write_row`] for workers that share the tensor and write different rows.
    ///
    /// # Safety
    /// No two threads may hold the same row.
    pub(crate) unsafe fn shared_write_row(&self, row: usize, values: &[f32]) {
        assert_eq!(values.len(), self.0.row_len());
        for (layer, values) in values.chunks_exact(self.0.part_len().max(1)).enumerate() {
            // SAFETY: the caller's promise, handed on.
            unsafe { self.shared_write(row, layer, 0, values) };
        }
    }
}

macro_rules! shared_queries {
    ($($type:ident),*) => {$(
        impl $type<'_> {
            /// The element type.
            pub fn dtype(&self) -> DType {
                self.0.dtype
            }

            /// Where the memory is.
            pub fn device(&self) -> Device {
                self.0.device
            }

            /// The length of each dimension.
            pub fn shape(&self) -> &[usize] {
                self.0.shape()
            }

            /// The step of each dimension, in elements.
            pub fn strides(&self) -> &[usize] {
                &self.0.strides[..self.0.ndim]
            }

            /// The length of the first dimension: tokens.
            pub fn rows(&self) -> usize {
                self.0.rows()
            }

            /// The first element's address.
            pub fn as_ptr(&self) -> *const u8 {
                self.0.data
            }

            /// The first and past-the-last byte's addresses.
            pub fn span(&self) -> Range<usize> {
                self.0.span()
            }
        }
    )*};
}
shared_queries!(Tensor, TensorMut);

impl Tensor<'_> {
    /// Whether the other tensor describes exactly the same elements.
    pub fn same_as(&self, other: &Tensor<'_>) -> bool {
        let (a, b) = (&self.0, &other.0);
        a.data == b.data
            && a.dtype == b.dtype
            && a.device == b.device
            && a.shape() == b.shape()
            && a.strides == b.strides
    }

    /// Whether the two share a byte. Interleaved rows of one buffer count as sharing if their spans do, unless they are
    /// columns of one row-major matrix.
    pub fn overlaps(&self, other: &Tensor<'_>) -> bool {
        let (a, b) = (self.span(), other.span());
        if a.is_empty() || b.is_empty() || a.start >= b.end || b.start >= a.end {
            return false;
        }
        !self.is_other_column_block(other)
    }

    /// Two blocks of columns of one matrix interleave without sharing an element: same row pitch, disjoint columns.
    fn is_other_column_block(&self, other: &Tensor<'_>) -> bool {
        let (a, b) = (&self.0, &other.0);
        let pitch = a.strides[0] * a.dtype.size();
        if a.ndim < 2 || b.ndim < 2 || pitch == 0 || pitch != b.strides[0] * b.dtype.size() {
            return false;
        }
        let (first, second) = if a.data <= b.data { (a, b) } else { (b, a) };
        let offset = (second.data as usize - first.data as usize) % pitch;
        let (first_width, second_width) =
            (first.row_extent() * first.dtype.size(), second.row_extent() * second.dtype.size());
        offset >= first_width && offset + second_width <= pitch
    }
}

fn check_len(len: usize, shape: &[usize]) -> Result<()> {
    let wanted = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    if wanted != Some(len) {
        return fail!(InvalidTensor, "shape {shape:?} does not describe {len} elements");
    }
    Ok(())
}

fn check_strided(len: usize, rows: usize, cols: usize, stride: usize) -> Result<()> {
    let end = match rows {
        0 => Some(0),
        _ => (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(cols)),
    };
    if stride > i64::MAX as usize || end.is_none_or(|end| end > len) {
        return fail!(InvalidTensor, "{rows} rows of {cols}, {stride} apart, do not fit {len} elements");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(shape: &[usize], strides: Option<&[i64]>, writable: bool) -> Result<()> {
        let data = 64 as *mut u8;
        Raw::new(data, DType::F32, Device::CPU, shape, strides, writable).map(|_| ())
    }

    #[test]
    fn shapes_and_strides_are_checked() {
        raw(&[2, 3], None, true).unwrap();
        raw(&[2, 3], Some(&[0, 1]), false).unwrap();
        raw(&[2, 3, 4], Some(&[12, 4, 1]), true).unwrap();
        raw(&[2, 3, 4], Some(&[4, 8, 1]), true).unwrap();
        raw(&[2, 3, 4], Some(&[0, 4, 1]), false).unwrap();
        raw(&[2, 1], Some(&[5, 77]), true).unwrap();
        raw(&[0, 3], Some(&[i64::MAX, 1]), true).unwrap();
        for (shape, strides, writable) in [
            (&[][..], None, false),
            (&[1, 1, 1, 1], None, false),
            (&[usize::MAX, 2], None, false),
            (&[1 << 62], None, false),
            (&[2, 3], Some(&[-3, 1][..]), false),
            (&[2, 3], Some(&[3, 2]), false),
            (&[2, 3], Some(&[i64::MAX, 1]), false),
            (&[2, 3], Some(&[2, 1]), true),
            (&[2, 2, 3], Some(&[5, 3, 1]), true),
            (&[2, 2, 3], Some(&[3, 5, 1]), true),
            (&[2, 2, 3], Some(&[0, 3, 1]), true),
            (&[2, 2, 3], Some(&[3, 3, 1]), true),
            (&[2, 3], Some(&[1]), false),
            (&[2, 3], Some(&[3, 1, 1]), false),
        ] {
            let error = raw(shape, strides, writable).unwrap_err();
            assert_eq!(error.status(), crate::Status::InvalidTensor, "{shape:?} {strides:?}: {error}");
        }
        let last = (usize::MAX - 7) as *mut u8;
        assert!(Raw::new(last, DType::F32, Device::CPU, &[4], None, false).is_err());
        assert!(Raw::new(std::ptr::null_mut(), DType::F32, Device::CPU, &[1], None, false).is_err());
        assert!(Raw::new(std::ptr::null_mut(), DType::F32, Device::CPU, &[0], None, false).is_ok());
        assert!(Raw::new(66 as *mut u8, DType::F32, Device::CPU, &[1], None, false).is_err());
        assert!(Raw::new(66 as *mut u8, DType::F16, Device::CPU, &[1], None, false).is_ok());
    }

    #[test]
    fn rows_are_converted() {
        let values = [f16::from_f32(1.5), f16::NAN, f16::from_f32(-2.0), f16::ONE, f16::ONE, f16::ONE];
        let tensor = Tensor::strided(&values, 2, 2, 3).unwrap();
        let mut row = [0.0; 2];
        tensor.read_row(0, &mut row);
        assert!(row[0] == 1.5 && row[1].is_nan());
        tensor.read_row(1, &mut row);
        assert_eq!(row, [1.0, 1.0]);
        let mut out = [bf16::ZERO; 4];
        TensorMut::new(&mut out, &[2, 2]).unwrap().write_row(1, &[3.0, -0.5]);
        assert_eq!(out.map(bf16::to_f32), [0.0, 0.0, 3.0, -0.5]);
    }

    #[test]
    fn layers_are_read_and_written_wherever_they_lie() {
        // [layers, tokens, width] in memory, seen as [tokens, layers, width].
        let mut values: [f32; 12] = std::array::from_fn(|i| i as f32);
        let (data, shape, strides) = (values.as_mut_ptr().cast(), [2, 3, 2], [2, 4, 1]);
        // SAFETY: within `values`, which nothing else uses meanwhile.
        let mut out = unsafe { TensorMut::from_raw(data, DType::F32, Device::CPU, &shape, Some(&strides)).unwrap() };
        let mut row = [0.0; 6];
        out.as_ref().read_row(1, &mut row);
        assert_eq!(row, [2.0, 3.0, 6.0, 7.0, 10.0, 11.0]);
        let others = [0.5f32, 1.5, 2.5, 3.5, 4.5, 5.5];
        out.write_row(0, &others);
        // SAFETY: one thread; the rows do not overlap.
        unsafe { out.shared_copy_row(1, &Tensor::new(&others, &[1, 6]).unwrap(), 0) };
        assert_eq!(values, [0.5, 1.5, 0.5, 1.5, 2.5, 3.5, 2.5, 3.5, 4.5, 5.5, 4.5, 5.5]);
    }

    #[test]
    fn overlap_is_seen_and_columns_are_told_apart() {
        let values = [0f32; 24];
        let all = Tensor::new(&values, &[4, 6]).unwrap();
        let left = Tensor::strided(&values, 4, 3, 6).unwrap();
        let right = Tensor::strided(&values[3..], 4, 3, 6).unwrap();
        let middle = Tensor::strided(&values[2..], 4, 3, 6).unwrap();
        assert!(all.overlaps(&left) && left.overlaps(&all) && all.same_as(&all) && !all.same_as(&left));
        assert!(!left.overlaps(&right) && !right.overlaps(&left));
        assert!(left.overlaps(&middle) && middle.overlaps(&right));
        let layers = |at: usize, count: usize| {
            let data = values[at..].as_ptr().cast();
            // SAFETY: within `values`.
            unsafe { Tensor::from_raw(data, DType::F32, Device::CPU, &[2, count, 3], Some(&[12, 3, 1])).unwrap() }
        };
        assert!(!layers(0, 2).overlaps(&layers(6, 2)) && layers(0, 2).overlaps(&layers(3, 2)));
        let one = Tensor::strided(&values[..6], 1, 6, 6).unwrap();
        assert!(one.same_as(&Tensor::strided(&values, 1, 6, 400).unwrap()), "one row has no stride");
        assert!(!all.overlaps(&Tensor::new(&[0f32; 0], &[0, 6]).unwrap()));
    }
}
