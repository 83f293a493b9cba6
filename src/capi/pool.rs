//! Threads.

use std::ffi::c_void;

use super::boundary::{boundary, present};
use super::handle::{Handle, get, put, take_back};
use super::status::{sae_error, sae_status};
use crate::backend::Pool;
use crate::error::{Result, fail};

/// Threads that sessions and trainers may share. Results do not depend on how many there are. Counted: sessions and
/// trainers keep what they need of it, so it may be freed before them.
pub struct sae_pool(Pool);

impl Handle for sae_pool {}

/// A piece of work that the library hands to the host's threads.
pub type sae_task = Option<unsafe extern "C" fn(arg: *mut c_void, i: usize)>;

/// The host's way to run things in parallel: calls `task(arg, i)` once for each `i` in `0..n`, in any order and on any
/// threads, possibly one after another, and returns when all are done. Must be callable from every thread that calls the
/// library with it.
pub type sae_parallel_for =
    Option<unsafe extern "C" fn(context: *mut c_void, n: usize, task: sae_task, arg: *mut c_void)>;

/// Makes a pool of `threads` threads, of which the calling one is the first and the others are the library's own; 0: one
/// per core. Handing work to the others takes a lock and wakes them; with one thread, or the host's, calls do neither. A
/// process made by fork has none of the others: it needs a pool of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_pool_create(
    threads: i32,
    out: *mut *mut sae_pool,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        let pool = Pool::new(thread_count(threads)?)?;
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_pool(pool)) };
        Ok(())
    })
}

/// Uses the host's threads through its own `parallel_for`, of which up to `threads` run at once. A call then takes no lock
/// and wakes no thread of the library's. `context` is handed back. Both must stay valid while the pool, or a session or
/// trainer made with it, lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_pool_from_host(
    threads: i32,
    parallel_for: sae_parallel_for,
    context: *mut c_void,
    out: *mut *mut sae_pool,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        let Some(parallel_for) = parallel_for else { return fail!(InvalidArgument, "parallel_for: is NULL") };
        // SAFETY: the caller's promise; the types differ only in that `task` could be null, which it never is.
        let pool = unsafe {
            let parallel_for = std::mem::transmute::<
                unsafe extern "C" fn(*mut c_void, usize, sae_task, *mut c_void),
                crate::backend::ParallelFor,
            >(parallel_for);
            Pool::from_host(thread_count(threads)?, parallel_for, context)?
        };
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_pool(pool)) };
        Ok(())
    })
}

/// How many threads run at once; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_pool_threads(pool: *const sae_pool) -> i32 {
    // SAFETY: the caller's handle.
    unsafe { pool.as_ref() }.map_or(0, |pool| pool.0.threads() as i32)
}

/// Frees a pool; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_pool_free(pool: *mut sae_pool) {
    // SAFETY: the caller's handle, which it gives up.
    unsafe { take_back(pool) };
}

fn thread_count(threads: i32) -> Result<usize> {
    match usize::try_from(threads) {
        Ok(threads) => Ok(threads),
        Err(_) => fail!(InvalidArgument, "threads: {threads} is not a count"),
    }
}

/// The pool of an options struct; NULL: the calling thread alone.
///
/// # Safety
/// A pointer that is neither null nor misaligned must be a handle.
pub(super) unsafe fn pool_or_serial(name: &str, pool: *const sae_pool) -> Result<Pool> {
    if pool.is_null() {
        return Ok(Pool::serial());
    }
    // SAFETY: the caller's promise.
    unsafe { get(name, pool) }.map(|pool| pool.0.clone())
}
