//! Threads that help whoever has work, while he works himself: who wakes late finds nothing left, and nobody has waited.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, Result, Status};

/// Callers who may have help at a time; more of them work alone, since their list is not to grow.
const CALLERS: usize = 64;

/// The threads, which have ended when this is dropped: the host may then unload the library.
pub(super) struct Helpers {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// Where the threads are: a fork does not take them along.
    process: u32,
}

#[derive(Default)]
struct Shared {
    board: Mutex<Board>,
    /// There is work, or the end.
    posted: Condvar,
    /// Some job has lost its last helper, or a thread has begun.
    changed: Condvar,
}

/// What is to be done.
#[derive(Default)]
struct Board {
    jobs: Vec<Posted>,
    /// Threads that have begun.
    ready: usize,
    ended: bool,
}

/// A job on the board. Its caller takes it down, and waits for its helpers, before it ends.
struct Posted(*const Job<'static>);

// SAFETY: a job is shared by threads only while it is on the board or has helpers, and all of it that they use is `Sync`
// but for `helpers`, which only holders of the board's lock touch.
unsafe impl Send for Posted {}

/// `body(i)` for each `i` below `n`.
struct Job<'a> {
    body: &'a (dyn Fn(usize) + Sync),
    n: usize,
    /// The first that nobody has taken.
    next: AtomicUsize,
    /// Threads at it besides the caller's; belongs to whoever holds the board.
    helpers: Cell<usize>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job<'_> {
    /// Takes what nobody has taken until nothing is left.
    fn work(&self) {
        let work = || {
            while let Some(i) = take(&self.next, self.n) {
                (self.body)(i);
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            *unpoisoned(self.panic.lock()) = Some(panic);
        }
    }

    fn has_more(&self) -> bool {
        self.next.load(Ordering::Relaxed) < self.n
    }
}

impl Helpers {
    pub(super) fn new(threads: usize) -> Result<Self> {
        let mut helpers =
            Self { shared: Arc::default(), handles: Vec::with_capacity(threads), process: std::process::id() };
        helpers.shared.board().jobs.reserve(CALLERS);
        for i in 1..=threads {
            let shared = Arc::clone(&helpers.shared);
            let started = Builder::new().name(format!("sae-{i}")).spawn(move || shared.help());
            helpers.handles.push(started.map_err(|e| {
                Error::new(Status::OutOfMemory, format!("of {threads} threads, the {i}th could not be started: {e}"))
            })?);
        }
        // What a thread needs of memory at its start is not to fall into a hot call.
        let mut board = helpers.shared.board();
        while board.ready < threads {
            board = unpoisoned(helpers.shared.changed.wait(board));
        }
        drop(board);
        Ok(helpers)
    }

    pub(super) fn count(&self) -> usize {
        self.handles.len()
    }

    /// Runs `body(i)` once for each `i` in `0..n`.
    pub(super) fn run(&self, n: usize, body: &(dyn Fn(usize) + Sync)) {
        let job = Job { body, n, next: AtomicUsize::new(0), helpers: Cell::new(0), panic: Mutex::new(None) };
        let posted = std::ptr::from_ref(&job).cast();
        let mut board = self.shared.board();
        if board.jobs.len() == CALLERS {
            drop(board);
            return (0..n).for_each(body);
        }
        board.jobs.push(Posted(posted));
        drop(board);
        if n > self.handles.len() {
            self.shared.posted.notify_all();
        } else {
            (1..n).for_each(|_| self.shared.posted.notify_one());
        }
        job.work();
        let mut board = self.shared.board();
        board.jobs.retain(|other| other.0 != posted);
        while job.helpers.get() > 0 {
            board = unpoisoned(self.shared.changed.wait(board));
        }
        drop(board);
        if let Some(panic) = unpoisoned(job.panic.into_inner()) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return std::mem::take(&mut self.handles).into_iter().for_each(std::mem::forget);
        }
        self.shared.board().ended = true;
        self.shared.posted.notify_all();
        // A thread that panicked said so where it ran.
        self.handles.drain(..).for_each(|handle| drop(handle.join()));
    }
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        unpoisoned(self.board.lock())
    }

    /// What each thread does.
    fn help(&self) {
        let mut board = self.board();
        board.ready += 1;
        self.changed.notify_all();
        while !board.ended {
            // SAFETY: jobs on the board live, and the board is ours.
            let job = board.jobs.iter().map(|posted| unsafe { &*posted.0 }).find(|job| job.has_more());
            let Some(job) = job else {
                board = unpoisoned(self.posted.wait(board));
                continue;
            };
            job.helpers.set(job.helpers.get() + 1);
            drop(board);
            job.work();
            board = self.board();
            job.helpers.set(job.helpers.get() - 1);
            if job.helpers.get() == 0 {
                self.changed.notify_all();
            }
        }
    }
}

/// The next number below `n` that nobody has taken.
pub(super) fn take(next: &AtomicUsize, n: usize) -> Option<usize> {
    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < n)
}

/// Nothing that can panic runs while a lock is held.
fn unpoisoned<T>(lock: std::result::Result<T, PoisonError<T>>) -> T {
    lock.unwrap_or_else(PoisonError::into_inner)
}
