//! Who owns what the ABI's handles point to. Every cast between a handle and its Rust value is here.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

use super::boundary::{present, quiet_boundary};
use crate::error::{Result, fail};

/// What an opaque handle points to: a value in a box of its own, from [`give`] to [`take_back`].
pub(super) trait Handle {}

/// Hands a value to the caller.
pub(super) fn give<T: Handle>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// Looks at the value of a handle.
///
/// # Safety
/// A handle that is neither null nor misaligned must come from [`give`] and not have gone back.
pub(super) unsafe fn get<'a, T: Handle>(name: &str, handle: *const T) -> Result<&'a T> {
    present(name, handle)?;
    // SAFETY: the caller's promise; values are only ever shared, see `Exclusive`.
    Ok(unsafe { &*handle })
}

/// Takes a value back and drops it; null is nothing.
///
/// # Safety
/// A handle that is not null must come from [`give`] and not have gone back, and nobody may use it any more.
pub(super) unsafe fn take_back<T: Handle>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: the caller's promise.
        quiet_boundary(|| drop(unsafe { Box::from_raw(handle) }));
    }
}

/// Writes a new handle into the place that was checked with [`present`] before the work began.
///
/// # Safety
/// `place` must be writable.
pub(super) unsafe fn put<T: Handle>(place: *mut *mut T, value: T) {
    // SAFETY: the caller's promise.
    unsafe { place.write(give(value)) };
}

/// What one thread uses at a time. A call that comes while another runs is refused instead of racing with it. After a
/// panic the value may be half changed, so that it serves no more.
pub(super) struct Exclusive<T> {
    busy: AtomicBool,
    broken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `enter` lets one thread at the value at a time.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    pub(super) fn new(value: T) -> Self {
        Self { busy: AtomicBool::new(false), broken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Access to the value until the guard is dropped.
    pub(super) fn enter(&self, name: &str) -> Result<Entered<'_, T>> {
        if self.busy.swap(true, Ordering::Acquire) {
            return fail!(BadState, "{name}: is in use by another call; it serves one thread at a time");
        }
        let entered = Entered(self);
        if self.broken.load(Ordering::Relaxed) {
            return fail!(BadState, "{name}: an earlier call failed within the library and left it unusable; free it");
        }
        Ok(entered)
    }
}

/// Access to the value of an [`Exclusive`].
pub(super) struct Entered<'a, T>(&'a Exclusive<T>);

impl<T> Deref for Entered<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one, see `enter`.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Entered<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard is the only one, see `enter`.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Entered<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
        }
        self.0.busy.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_entry_is_refused() {
        let value = Exclusive::new(1);
        let mut first = value.enter("session").unwrap();
        *first += 1;
        assert_eq!(value.enter("session").err().unwrap().status(), crate::Status::BadState);
        drop(first);
        assert_eq!(*value.enter("session").unwrap(), 2);
    }

    #[test]
    fn after_a_panic_it_serves_no_more() {
        let value = Exclusive::new(1);
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _entered = value.enter("trainer").unwrap();
            panic!("on purpose");
        }));
        assert!(panic.is_err());
        for _ in 0..2 {
            let error = value.enter("trainer").err().unwrap();
            assert_eq!(error.status(), crate::Status::BadState);
            assert!(error.message().contains("free it"), "{error}");
        }
    }
}
