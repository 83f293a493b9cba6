//! Tensors as C describes them.

use std::ffi::c_void;
use std::fmt::Display;

use super::boundary::present;
use crate::error::{Result, fail};
use crate::tensor::{DType, Device, DeviceKind, MAX_DIMS, Tensor, TensorMut};

/// Ordinary host memory.
pub const SAE_DEVICE_CPU: i32 = 1;
/// Memory of an NVIDIA GPU.
pub const SAE_DEVICE_CUDA: i32 = 2;
/// Host memory pinned for CUDA; the CPU reads it like its own.
pub const SAE_DEVICE_CUDA_HOST: i32 = 3;
/// CUDA managed memory.
pub const SAE_DEVICE_CUDA_MANAGED: i32 = 13;

/// A device, in DLPack's codes. All zero stands for the CPU where a device is chosen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_device {
    /// `SAE_DEVICE_CPU` and so on.
    pub device_type: i32,
    /// Which of them; 0 for the CPU.
    pub device_id: i32,
}

/// Signed integers; with 32 bits the type of indices.
pub const SAE_DTYPE_INT: u8 = 0;
/// IEEE floating point: f32, f16.
pub const SAE_DTYPE_FLOAT: u8 = 2;
/// bfloat16.
pub const SAE_DTYPE_BFLOAT: u8 = 4;

/// An element type, in DLPack's codes: f32 is `{SAE_DTYPE_FLOAT, 32, 1}`, f16 `{SAE_DTYPE_FLOAT, 16, 1}`, bf16
/// `{SAE_DTYPE_BFLOAT, 16, 1}`, i32 `{SAE_DTYPE_INT, 32, 1}`. All zero stands for "as it is" where a type is chosen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_dtype {
    /// `SAE_DTYPE_FLOAT` and so on.
    pub code: u8,
    /// Bits of an element.
    pub bits: u8,
    /// 1.
    pub lanes: u16,
}

/// A borrowed view of memory, laid out exactly like DLPack's `DLTensor`. 1 to 3 dimensions, of which the innermost has
/// stride 1; outer strides are free, but written rows must not overlap. A dimension may be 0; then nothing else matters. All
/// zero (`data` NULL, `ndim` 0) stands for an absent tensor. A call looks at it while it runs, not longer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_tensor {
    /// Start of the memory, aligned to an element with `byte_offset` added.
    pub data: *mut c_void,
    /// Where the memory is.
    pub device: sae_device,
    /// Number of dimensions.
    pub ndim: i32,
    /// Type of an element.
    pub dtype: sae_dtype,
    /// `ndim` lengths.
    pub shape: *mut i64,
    /// `ndim` steps in elements, not negative; NULL: row-major without gaps.
    pub strides: *mut i64,
    /// Bytes from `data` to the first element.
    pub byte_offset: u64,
}

// DLPack's layout, field by field.
#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<sae_tensor>() == 48 && align_of::<sae_tensor>() == 8);
    assert!(offset_of!(sae_tensor, data) == 0 && offset_of!(sae_tensor, device) == 8);
    assert!(offset_of!(sae_tensor, ndim) == 16 && offset_of!(sae_tensor, dtype) == 20);
    assert!(offset_of!(sae_tensor, shape) == 24 && offset_of!(sae_tensor, strides) == 32);
    assert!(offset_of!(sae_tensor, byte_offset) == 40);
    assert!(size_of::<sae_device>() == 8 && size_of::<sae_dtype>() == 4);
};

impl sae_device {
    pub(super) fn of(device: Device) -> Self {
        Self { device_type: device.kind as i32, device_id: device.id }
    }

    fn read(self) -> Result<Device> {
        let kind = match self.device_type {
            SAE_DEVICE_CPU => DeviceKind::Cpu,
            SAE_DEVICE_CUDA => DeviceKind::Cuda,
            SAE_DEVICE_CUDA_HOST => DeviceKind::CudaHost,
            SAE_DEVICE_CUDA_MANAGED => DeviceKind::CudaManaged,
            other => return fail!(InvalidTensor, "device.device_type: {other} is not known"),
        };
        if self.device_id < 0 || (kind == DeviceKind::Cpu && self.device_id != 0) {
            return fail!(InvalidTensor, "device.device_id: there is no device {} of this type", self.device_id);
        }
        Ok(Device { kind, id: self.device_id })
    }

    /// Where a model shall live: on the GPU of a number, or on the CPU.
    pub(super) fn choose(self, name: &str) -> Result<Option<i32>> {
        if (self.device_type, self.device_id) == (0, 0) {
            return Ok(None);
        }
        match self.read() {
            Ok(device) if device == Device::CPU => Ok(None),
            Ok(Device { kind: DeviceKind::Cuda, id }) => Ok(Some(id)),
            Ok(device) => fail!(Unsupported, "{name}.device: models live on cpu or cuda, not on {device}"),
            Err(e) => fail!(InvalidArgument, "{name}.{}", e.message()),
        }
    }
}

impl sae_dtype {
    pub(super) fn of(dtype: DType) -> Self {
        let (code, bits) = match dtype {
            DType::F32 => (SAE_DTYPE_FLOAT, 32),
            DType::F16 => (SAE_DTYPE_FLOAT, 16),
            DType::BF16 => (SAE_DTYPE_BFLOAT, 16),
            DType::I32 => (SAE_DTYPE_INT, 32),
        };
        Self { code, bits, lanes: 1 }
    }

    fn read(self) -> Result<DType> {
        match (self.code, self.bits, self.lanes) {
            (SAE_DTYPE_FLOAT, 32, 1) => Ok(DType::F32),
            (SAE_DTYPE_FLOAT, 16, 1) => Ok(DType::F16),
            (SAE_DTYPE_BFLOAT, 16, 1) => Ok(DType::BF16),
            (SAE_DTYPE_INT, 32, 1) => Ok(DType::I32),
            (code, bits, lanes) => {
                fail!(InvalidTensor, "dtype: code {code} of {bits} bits in {lanes} lanes is not f32, f16, bf16 or i32")
            }
        }
    }

    /// The type that numbers shall be kept in; `None`: nothing is said.
    pub(super) fn choose(self, name: &str) -> Result<Option<DType>> {
        if (self.code, self.bits, self.lanes) == (0, 0, 0) {
            return Ok(None);
        }
        match self.read() {
            Ok(dtype) if dtype.is_float() => Ok(Some(dtype)),
            Ok(dtype) => fail!(InvalidArgument, "{name}.dtype: expected f32, f16 or bf16, found {dtype}"),
            Err(e) => fail!(InvalidArgument, "{name}.{}", e.message()),
        }
    }
}

/// What a [`sae_tensor`] says, in numbers that fit; nothing is allocated.
struct Described {
    data: *mut u8,
    dtype: DType,
    device: Device,
    ndim: usize,
    shape: [usize; MAX_DIMS],
    strides: Option<[i64; MAX_DIMS]>,
}

impl sae_tensor {
    pub(super) fn is_absent(&self) -> bool {
        self.data.is_null() && self.ndim == 0
    }

    /// # Safety
    /// `shape` and `strides` must point to `ndim` numbers if they are neither null nor misaligned.
    unsafe fn describe(&self) -> Result<Described> {
        if self.is_absent() {
            return fail!(InvalidTensor, "is absent (data NULL, ndim 0), but needed");
        }
        let Some(ndim) = usize::try_from(self.ndim).ok().filter(|n| (1..=MAX_DIMS).contains(n)) else {
            return fail!(InvalidTensor, "ndim: expected 1 to {MAX_DIMS}, found {}", self.ndim);
        };
        let dtype = self.dtype.read()?;
        let device = self.device.read()?;
        // SAFETY: the caller's promise.
        let sizes = unsafe { dims("shape", self.shape, ndim)? };
        let mut shape = [0; MAX_DIMS];
        for (axis, &size) in sizes[..ndim].iter().enumerate() {
            shape[axis] = match usize::try_from(size) {
                Ok(size) => size,
                Err(_) => return fail!(InvalidTensor, "shape[{axis}]: {size} is not a length"),
            };
        }
        // SAFETY: the caller's promise.
        let strides = if self.strides.is_null() { None } else { Some(unsafe { dims("strides", self.strides, ndim)? }) };
        let mut data = self.data.cast::<u8>();
        // A null pointer stays null, to be found out where there are elements.
        if !data.is_null() {
            let offset = usize::try_from(self.byte_offset).ok();
            if offset.and_then(|offset| data.addr().checked_add(offset)).is_none() {
                return fail!(InvalidTensor, "byte_offset: {} leads beyond memory", self.byte_offset);
            }
            data = data.wrapping_add(self.byte_offset as usize);
        }
        Ok(Described { data, dtype, device, ndim, shape, strides })
    }

    /// The tensor, to read.
    ///
    /// # Safety
    /// What it describes must be so, for `'a`; what is to be written must not be read meanwhile, but by a call that allows it.
    pub(super) unsafe fn read<'a>(&self, name: impl Display) -> Result<Tensor<'a>> {
        let read = || {
            // SAFETY: the caller's promise.
            unsafe {
                let Described { data, dtype, device, ndim, shape, strides } = self.describe()?;
                Tensor::from_raw(data, dtype, device, &shape[..ndim], strides.as_ref().map(|s| &s[..ndim]))
            }
        };
        read().map_err(|e| e.at(name))
    }

    /// The tensor, to write.
    ///
    /// # Safety
    /// As [`Self::read`], and nobody else may use the memory for `'a`.
    pub(super) unsafe fn write<'a>(&self, name: impl Display) -> Result<TensorMut<'a>> {
        let write = || {
            // SAFETY: the caller's promise.
            unsafe {
                let Described { data, dtype, device, ndim, shape, strides } = self.describe()?;
                TensorMut::from_raw(data, dtype, device, &shape[..ndim], strides.as_ref().map(|s| &s[..ndim]))
            }
        };
        write().map_err(|e| e.at(name))
    }
}

unsafe fn dims(name: &str, pointer: *const i64, ndim: usize) -> Result<[i64; MAX_DIMS]> {
    if pointer.is_null() || !pointer.is_aligned() {
        return fail!(InvalidTensor, "{name}: {ndim} numbers are needed, but the pointer is {pointer:p}");
    }
    let mut numbers = [0; MAX_DIMS];
    // SAFETY: `ndim`, at most `MAX_DIMS`, numbers are readable by the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(pointer, numbers.as_mut_ptr(), ndim) };
    Ok(numbers)
}

/// The description behind a pointer to a tensor; `None` if the tensor is absent either way: NULL, or all zero.
///
/// # Safety
/// A pointer that is neither null nor misaligned must point to a `sae_tensor`, for `'a`.
pub(super) unsafe fn given<'a>(name: &str, tensor: *const sae_tensor) -> Result<Option<&'a sae_tensor>> {
    if tensor.is_null() {
        return Ok(None);
    }
    present(name, tensor)?;
    // SAFETY: the caller's promise.
    Ok(Some(unsafe { &*tensor }).filter(|tensor| !tensor.is_absent()))
}

/// The description behind a pointer to a tensor that must be there; an absent one is refused when it is read.
///
/// # Safety
/// As [`given`].
pub(super) unsafe fn needed<'a>(name: &str, tensor: *const sae_tensor) -> Result<&'a sae_tensor> {
    present(name, tensor)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { &*tensor })
}
