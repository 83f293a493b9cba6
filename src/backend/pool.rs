//! Who runs in parallel: this thread alone, threads of our own, or the host's.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::helpers::{Helpers, take};
use crate::error::{Result, fail};

/// Ranges for each thread: small enough that nobody waits long for the last one.
const PARTS: usize = 8;

/// A set of threads that sessions and trainers may share. Results never depend on how many there are.
#[derive(Clone)]
pub struct Pool(Kind);

#[derive(Clone)]
enum Kind {
    Serial,
    Own(Arc<Helpers>),
    Host(Arc<Host>),
}

/// The host's way to run things in parallel: calls `body(arg, i)` once for each `i` in `0..n`, in any order and on any
/// threads, possibly one after another, and returns when all are done.
pub type ParallelFor = unsafe extern "C" fn(
    context: *mut c_void,
    n: usize,
    body: unsafe extern "C" fn(*mut c_void, usize),
    arg: *mut c_void,
);

struct Host {
    threads: usize,
    parallel_for: ParallelFor,
    context: *mut c_void,
}

// SAFETY: whoever made it promised that `parallel_for` may be called with `context` from any thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Pool {
    /// The most threads a pool may have.
    pub const MAX_THREADS: usize = 1024;

    /// The calling thread alone: no locks, no wake-ups.
    pub fn serial() -> Self {
        Self(Kind::Serial)
    }

    /// `threads` threads, of which the caller is one; 0 means one per core. What they are to do they find under a lock.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        check_threads(threads)?;
        Ok(Self(if threads == 1 { Kind::Serial } else { Kind::Own(Arc::new(Helpers::new(threads - 1)?)) }))
    }

    /// The host's own threads.
    ///
    /// # Safety
    /// `parallel_for` must do what [`ParallelFor`] says, and be callable with `context` from any thread, while the pool or
    /// anything made with it lives.
    pub unsafe fn from_host(threads: usize, parallel_for: ParallelFor, context: *mut c_void) -> Result<Self> {
        check_threads(threads)?;
        Ok(Self(Kind::Host(Arc::new(Host { threads, parallel_for, context }))))
    }

    /// How many bodies can run at once.
    pub fn threads(&self) -> usize {
        match &self.0 {
            Kind::Serial => 1,
            Kind::Own(helpers) => helpers.count() + 1,
            Kind::Host(host) => host.threads,
        }
    }

    /// Runs `body(i)` once for each `i` in `0..n`, possibly serially; no body may wait for another.
    pub fn run(&self, n: usize, body: &(dyn Fn(usize) + Sync)) {
        match &self.0 {
            _ if n <= 1 => (0..n).for_each(body),
            Kind::Serial => (0..n).for_each(body),
            Kind::Own(helpers) => helpers.run(n, body),
            Kind::Host(host) => host.run(n, body),
        }
    }

    /// Covers `0..items` by ranges and runs `body(slot, range)` for each; no two run with the same slot at once, and slots
    /// are numbers below [`Self::threads`]. Who is free takes the next range.
    pub fn run_ranges(&self, items: usize, body: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let slots = self.threads().min(items);
        if slots == 1 {
            return body(0, 0..items);
        }
        let parts = items.min(slots * PARTS);
        let next = AtomicUsize::new(0);
        self.run(slots, &|slot| {
            while let Some(part) = take(&next, parts) {
                body(slot, items * part / parts..items * (part + 1) / parts);
            }
        });
    }
}

fn check_threads(threads: usize) -> Result<()> {
    if threads == 0 || threads > Pool::MAX_THREADS {
        return fail!(InvalidArgument, "threads must be between 1 and {}, not {threads}", Pool::MAX_THREADS);
    }
    Ok(())
}

impl Host {
    fn run(&self, n: usize, body: &(dyn Fn(usize) + Sync)) {
        struct Call<'a> {
            body: &'a (dyn Fn(usize) + Sync),
            panicked: std::sync::atomic::AtomicBool,
        }
        unsafe extern "C" fn trampoline(arg: *mut c_void, i: usize) {
            // SAFETY: `arg` is the `Call` below, which outlives the host's call.
            let call = unsafe { &*arg.cast::<Call<'_>>() };
            // A panic must not unwind through the host's frames.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (call.body)(i))).is_err() {
                call.panicked.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let call = Call { body, panicked: false.into() };
        // SAFETY: the maker promised that the function may be called so; `call` lives until it returns.
        unsafe { (self.parallel_for)(self.context, n, trampoline, std::ptr::from_ref(&call).cast_mut().cast()) };
        assert!(!call.panicked.into_inner(), "a parallel body panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    unsafe extern "C" fn backwards(
        _: *mut c_void,
        n: usize,
        body: unsafe extern "C" fn(*mut c_void, usize),
        arg: *mut c_void,
    ) {
        for i in (0..n).rev() {
            // SAFETY: the library's own body with its own argument.
            unsafe { body(arg, i) };
        }
    }

    fn pools() -> Vec<Pool> {
        // SAFETY: `backwards` runs each body once and ignores its context.
        let host = unsafe { Pool::from_host(3, backwards, std::ptr::null_mut()).unwrap() };
        vec![Pool::serial(), Pool::new(2).unwrap(), Pool::new(5).unwrap(), host]
    }

    #[test]
    fn each_body_runs_once() {
        for pool in pools() {
            for n in [0, 1, 2, 7, 100] {
                let counts: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                let covered: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                let busy: Vec<_> = (0..pool.threads()).map(|_| AtomicUsize::new(0)).collect();
                pool.run_ranges(n, &|slot, range| {
                    assert_eq!(busy[slot].fetch_add(1, Ordering::Relaxed), 0, "one slot, two ranges at once");
                    range.for_each(|i| _ = covered[i].fetch_add(1, Ordering::Relaxed));
                    busy[slot].fetch_sub(1, Ordering::Relaxed);
                });
                assert!(covered.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
        assert!(Pool::new(Pool::MAX_THREADS + 1).is_err());
    }

    #[test]
    fn a_panic_crosses_the_host_as_a_panic() {
        for pool in pools() {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(4, &|i| assert_ne!(i, 2, "on purpose"));
            }));
            assert!(result.is_err());
            // And the threads are there for the next.
            let sum = AtomicUsize::new(0);
            pool.run(100, &|i| _ = sum.fetch_add(i, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn many_callers_share_a_pool_and_bodies_may_call_it_again() {
        let pool = Pool::new(3).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    for n in 0..200 {
                        let sum = AtomicUsize::new(0);
                        pool.run(n, &|i| {
                            pool.run(i % 3, &|_| _ = sum.fetch_add(1, Ordering::Relaxed));
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        let expected = (0..n).map(|i| i + i % 3).sum::<usize>();
                        assert_eq!(sum.into_inner(), expected);
                    }
                });
            }
        });
    }
}
