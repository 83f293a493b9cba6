//! Who runs in parallel: this thread alone, threads of our own, or the host's.

use std::ffi::c_void;
use std::sync::Arc;

use crate::error::{Error, Result, Status, fail};

/// A set of threads that sessions and trainers may share. Results never depend on how many there are.
#[derive(Clone)]
pub struct Pool(Kind);

#[derive(Clone)]
enum Kind {
    Serial,
    Own(Arc<Own>),
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

/// Threads of our own, which have ended when this is dropped: the host may then unload the library.
struct Own {
    /// `None` while it is being dropped.
    pool: Option<rayon_core::ThreadPool>,
    handles: Vec<std::thread::JoinHandle<()>>,
}

impl Own {
    fn run(&self, n: usize, body: &(dyn Fn(usize) + Sync)) {
        match &self.pool {
            Some(pool) => pool.install(|| halve(0, n, body)),
            None => (0..n).for_each(body),
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.pool.take());
        // A thread that panicked said so where it ran.
        self.handles.drain(..).for_each(|handle| drop(handle.join()));
    }
}

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

    /// `threads` threads of our own, whose queue takes a lock and now and then a little memory; 0 means one per core.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        check_threads(threads)?;
        if threads == 1 {
            return Ok(Self::serial());
        }
        let mut handles = Vec::with_capacity(threads);
        let pool = rayon_core::ThreadPoolBuilder::new()
            .num_threads(threads)
            .spawn_handler(|thread| {
                let named = std::thread::Builder::new().name(format!("sae-{}", thread.index()));
                handles.push(named.spawn(|| thread.run())?);
                Ok(())
            })
            .build()
            .map_err(|e| Error::new(Status::OutOfMemory, format!("{threads} threads could not be started: {e}")))?;
        Ok(Self(Kind::Own(Arc::new(Own { pool: Some(pool), handles }))))
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
            Kind::Own(own) => own.handles.len(),
            Kind::Host(host) => host.threads,
        }
    }

    /// Runs `body(i)` once for each `i` in `0..n`, possibly serially; no body may wait for another.
    pub fn run(&self, n: usize, body: &(dyn Fn(usize) + Sync)) {
        match &self.0 {
            _ if n <= 1 => (0..n).for_each(body),
            Kind::Serial => (0..n).for_each(body),
            Kind::Own(own) => own.run(n, body),
            Kind::Host(host) => host.run(n, body),
        }
    }

    /// Splits `0..items` into at most `threads` contiguous ranges and runs `body(range number, range)` for each.
    pub fn run_ranges(&self, items: usize, body: &(dyn Fn(usize, std::ops::Range<usize>) + Sync)) {
        let parts = self.threads().min(items);
        self.run(parts, &|i| body(i, items * i / parts..items * (i + 1) / parts));
    }
}

fn check_threads(threads: usize) -> Result<()> {
    if threads == 0 || threads > Pool::MAX_THREADS {
        return fail!(InvalidArgument, "threads must be between 1 and {}, not {threads}", Pool::MAX_THREADS);
    }
    Ok(())
}

/// Fork-join by halves: rayon's cheapest form, whose jobs live on the stack.
fn halve(first: usize, n: usize, body: &(dyn Fn(usize) + Sync)) {
    match n {
        0 => {}
        1 => body(first),
        _ => {
            rayon_core::join(|| halve(first, n / 2, body), || halve(first + n / 2, n - n / 2, body));
        }
    }
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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
                let covered = AtomicUsize::new(0);
                pool.run_ranges(n, &|_, range| {
                    covered.fetch_add(range.len(), Ordering::Relaxed);
                });
                assert_eq!(covered.into_inner(), n);
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
        }
    }
}
