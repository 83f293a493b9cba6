//! Statuses, errors and versions.

use std::ffi::{CString, c_char};

use super::handle::{Handle, take_back};
use crate::error::{Error, Status};

/// What a call returns: `SAE_OK`, or what kind of failure it was.
pub type sae_status = i32;

/// Done.
pub const SAE_OK: sae_status = 0;
/// An option, flag, count or pointer is not acceptable.
pub const SAE_ERROR_INVALID_ARGUMENT: sae_status = 1;
/// A tensor's data pointer, dtype, shape, strides, device or overlap is not acceptable.
pub const SAE_ERROR_INVALID_TENSOR: sae_status = 2;
/// What was asked for is understood, but this build, model or device does not do it.
pub const SAE_ERROR_UNSUPPORTED: sae_status = 3;
/// A file could not be opened, read or written.
pub const SAE_ERROR_IO: sae_status = 4;
/// A file was read, but its content is not what its format promises.
pub const SAE_ERROR_FORMAT: sae_status = 5;
/// Memory could not be had.
pub const SAE_ERROR_OUT_OF_MEMORY: sae_status = 6;
/// The device asked for is not there.
pub const SAE_ERROR_NO_DEVICE: sae_status = 7;
/// The device reported a fault, in this call or an earlier one.
pub const SAE_ERROR_DEVICE_FAULT: sae_status = 8;
/// A number that must be finite is not: a weight, a statistic, a loss.
pub const SAE_ERROR_NOT_FINITE: sae_status = 9;
/// The call does not fit the state the object is in.
pub const SAE_ERROR_BAD_STATE: sae_status = 10;
/// A fault of the library itself; please report it.
pub const SAE_ERROR_INTERNAL: sae_status = 11;
/// Other processes of the run could not be reached: one was lost, or the host's communicator failed.
pub const SAE_ERROR_COLLECTIVE: sae_status = 12;

const _: () = {
    assert!(SAE_ERROR_INVALID_ARGUMENT == Status::InvalidArgument as i32);
    assert!(SAE_ERROR_INVALID_TENSOR == Status::InvalidTensor as i32);
    assert!(SAE_ERROR_UNSUPPORTED == Status::Unsupported as i32);
    assert!(SAE_ERROR_IO == Status::Io as i32);
    assert!(SAE_ERROR_FORMAT == Status::Format as i32);
    assert!(SAE_ERROR_OUT_OF_MEMORY == Status::OutOfMemory as i32);
    assert!(SAE_ERROR_NO_DEVICE == Status::NoDevice as i32);
    assert!(SAE_ERROR_DEVICE_FAULT == Status::DeviceFault as i32);
    assert!(SAE_ERROR_NOT_FINITE == Status::NotFinite as i32);
    assert!(SAE_ERROR_BAD_STATE == Status::BadState as i32);
    assert!(SAE_ERROR_INTERNAL == Status::Internal as i32);
    assert!(SAE_ERROR_COLLECTIVE == Status::Collective as i32);
};

/// A failure: its status, and a message that names the thing, what was expected and what was found. Free it.
pub struct sae_error {
    status: Status,
    message: CString,
}

impl Handle for sae_error {}

impl sae_error {
    pub(super) fn new(error: &Error) -> Self {
        Self { status: error.status(), message: c_text(error.message()) }
    }
}

/// A text as C has it; a NUL inside, which C could not see past, is left out.
pub(super) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

/// The status of an error; `SAE_OK` for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_error_status(error: *const sae_error) -> sae_status {
    // SAFETY: the caller's handle.
    unsafe { error.as_ref() }.map_or(SAE_OK, |error| error.status as sae_status)
}

/// The message of an error, valid until it is freed; "" for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_error_message(error: *const sae_error) -> *const c_char {
    // SAFETY: the caller's handle.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// Frees an error; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_error_free(error: *mut sae_error) {
    // SAFETY: the caller's handle, which it gives up.
    unsafe { take_back(error) };
}

/// The name of a status, such as "SAE_ERROR_IO"; "unknown status" for a number that is none. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn sae_status_name(status: sae_status) -> *const c_char {
    match status {
        SAE_OK => c"SAE_OK",
        SAE_ERROR_INVALID_ARGUMENT => c"SAE_ERROR_INVALID_ARGUMENT",
        SAE_ERROR_INVALID_TENSOR => c"SAE_ERROR_INVALID_TENSOR",
        SAE_ERROR_UNSUPPORTED => c"SAE_ERROR_UNSUPPORTED",
        SAE_ERROR_IO => c"SAE_ERROR_IO",
        SAE_ERROR_FORMAT => c"SAE_ERROR_FORMAT",
        SAE_ERROR_OUT_OF_MEMORY => c"SAE_ERROR_OUT_OF_MEMORY",
        SAE_ERROR_NO_DEVICE => c"SAE_ERROR_NO_DEVICE",
        SAE_ERROR_DEVICE_FAULT => c"SAE_ERROR_DEVICE_FAULT",
        SAE_ERROR_NOT_FINITE => c"SAE_ERROR_NOT_FINITE",
        SAE_ERROR_BAD_STATE => c"SAE_ERROR_BAD_STATE",
        SAE_ERROR_INTERNAL => c"SAE_ERROR_INTERNAL",
        SAE_ERROR_COLLECTIVE => c"SAE_ERROR_COLLECTIVE",
        _ => c"unknown status",
    }
    .as_ptr()
}

/// The ABI this header describes. A library of the same number runs programs compiled against any earlier header of it;
/// while it is 0, there are no promises yet.
pub const SAE_ABI_VERSION: u32 = 0;

/// The ABI of the library that is loaded; compare with `SAE_ABI_VERSION`.
#[unsafe(no_mangle)]
pub extern "C" fn sae_abi_version() -> u32 {
    SAE_ABI_VERSION
}

/// The release of the library that is loaded, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn sae_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
