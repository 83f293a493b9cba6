//! What the library says besides errors.

use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use super::boundary::boundary;
use super::status::{sae_error, sae_status};
use crate::error::fail;

/// Something failed where no call could report it.
pub const SAE_LOG_ERROR: i32 = 1;
/// Something was assumed that may be wrong, such as what a file does not say.
pub const SAE_LOG_WARNING: i32 = 2;
/// Something was done: a model loaded, a checkpoint saved.
pub const SAE_LOG_INFO: i32 = 3;

/// Gets a line of `length` bytes of UTF-8, also ended by a NUL that is not counted, without a line break. It is called on
/// the thread whose call has something to say, never under a lock, and may call the library.
pub type sae_log_callback =
    Option<unsafe extern "C" fn(level: i32, message: *const c_char, length: usize, context: *mut c_void)>;

struct Listener {
    callback: unsafe extern "C" fn(i32, *const c_char, usize, *mut c_void),
    context: *mut c_void,
    level: i32,
}

// SAFETY: the caller promised that the callback may be called with `context` from any thread.
unsafe impl Send for Listener {}
// SAFETY: as above.
unsafe impl Sync for Listener {}

static LISTENER: OnceLock<Listener> = OnceLock::new();

/// Has everything up to `level` told to `callback`, for the whole process and for good: it can be set once, a second
/// call is refused with `SAE_ERROR_BAD_STATE`. `context` is handed back and must stay valid. Without it nothing is logged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_log_set(
    callback: sae_log_callback,
    level: i32,
    context: *mut c_void,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        let Some(callback) = callback else { return fail!(InvalidArgument, "callback: is NULL") };
        if !(SAE_LOG_ERROR..=SAE_LOG_INFO).contains(&level) {
            return fail!(InvalidArgument, "level: expected {SAE_LOG_ERROR} to {SAE_LOG_INFO}, found {level}");
        }
        match LISTENER.set(Listener { callback, context, level }) {
            Ok(()) => Ok(()),
            Err(_) => fail!(BadState, "callback: one is set already, and stays"),
        }
    })
}

/// Says something, if anyone listens.
pub(super) fn log(level: i32, message: impl FnOnce() -> String) {
    if let Some(listener) = LISTENER.get()
        && level <= listener.level
    {
        let text = super::status::c_text(&message().replace('\n', " "));
        let length = text.as_bytes().len();
        // SAFETY: the text lives until the call returns; the rest is the promise of the one who set the callback.
        unsafe { (listener.callback)(level, text.as_ptr(), length, listener.context) };
    }
}
