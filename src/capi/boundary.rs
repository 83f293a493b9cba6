//! Where the ABI ends: nothing passes but a status.

use std::any::Any;
use std::ffi::{CStr, c_char};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::log::{SAE_LOG_ERROR, log};
use super::status::{SAE_OK, sae_error, sae_status};
use crate::error::{Error, Result, Status, fail};

/// Runs a call; reports failure, and a panic as [`Status::Internal`]. `error` is written on failure alone.
pub(super) fn boundary(error: *mut *mut sae_error, call: impl FnOnce() -> Result<()>) -> sae_status {
    let outcome = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(internal(&*panic)));
    let Err(failure) = outcome else { return SAE_OK };
    let status = failure.status() as sae_status;
    if !error.is_null() {
        let made = super::handle::give(sae_error::new(&failure));
        // SAFETY: the caller's `sae_error **` points to a place for a pointer; its alignment does not matter here.
        unsafe { error.write_unaligned(made) };
    }
    status
}

/// Runs what cannot report: a release.
pub(super) fn quiet_boundary(call: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
        let error = internal(&*panic);
        let _ = catch_unwind(|| log(SAE_LOG_ERROR, || error.message().to_owned()));
    }
}

fn internal(panic: &(dyn Any + Send)) -> Error {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("no message");
    Error::new(Status::Internal, format!("a fault of the library itself, please report it: {said}"))
}

/// A pointer that must be there.
pub(super) fn present<T>(name: impl Display, pointer: *const T) -> Result<()> {
    if pointer.is_null() {
        return fail!(InvalidArgument, "{name}: is NULL");
    }
    if !pointer.is_aligned() {
        return fail!(InvalidArgument, "{name}: {pointer:p} is not aligned to {} bytes", align_of::<T>());
    }
    Ok(())
}

/// `count` elements; the pointer does not matter if there are none.
///
/// # Safety
/// A pointer that passes the checks must point to `count` elements, readable for `'a`.
pub(super) unsafe fn array<'a, T>(name: &str, pointer: *const T, count: usize) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    present(name, pointer)?;
    if count.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return fail!(InvalidArgument, "{name}: {count} elements are more than memory holds");
    }
    // SAFETY: not null, aligned, and no larger than memory, as just checked; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// A text, which may be absent.
///
/// # Safety
/// A pointer that is not null must point to a C string, readable for `'a`.
pub(super) unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    match text.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => fail!(InvalidArgument, "{name}: {text:?} is not UTF-8"),
    }
}

/// A text that must be there.
///
/// # Safety
/// A pointer that is not null must point to a C string, readable for `'a`.
pub(super) unsafe fn required_text<'a>(name: &str, pointer: *const c_char) -> Result<&'a str> {
    present(name, pointer)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { text(name, pointer)? }.expect("it is not null, as just checked"))
}

/// Refuses flags that this version does not know.
pub(super) fn check_flags(name: &str, flags: u32, known: u32) -> Result<()> {
    let unknown = flags & !known;
    if unknown != 0 {
        return fail!(InvalidArgument, "{name}: bits {unknown:#x} of {flags:#x} are not known; known are {known:#x}");
    }
    Ok(())
}

/// A count that the ABI carries as `int64_t`.
pub(super) fn count(name: &str, value: i64) -> Result<usize> {
    match usize::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) => fail!(InvalidArgument, "{name}: {value} is not a count"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_statuses() {
        let mut error = std::ptr::null_mut();
        let status = boundary(&mut error, || panic!("on {}", "purpose"));
        assert_eq!(status, Status::Internal as sae_status);
        // SAFETY: just written by `boundary`.
        let message = unsafe { CStr::from_ptr(super::super::sae_error_message(error)) };
        assert!(message.to_str().unwrap().ends_with("on purpose"));
        // SAFETY: as above; freed once.
        unsafe { super::super::sae_error_free(error) };
        assert_eq!(boundary(std::ptr::null_mut(), || panic!("unheard")), Status::Internal as sae_status);
        quiet_boundary(|| panic!("while freeing"));
    }
}
