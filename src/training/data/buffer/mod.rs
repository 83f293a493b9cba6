//! The shuffle buffer: takes activations in any order and number, as an engine computes them, and gives batches drawn from all
//! over what it holds.
//!
//! **Mixing.** Rows are given once at least half of the capacity is held; a batch is at most that half, and drawn uniformly
//! at random, without replacement, from all rows held at that moment. So each row given was as likely as at least capacity / 2
//! others. Where documents are kept, rows of at least `min_documents` of them must be held too; a full buffer gives nevertheless,
//! and counts that. After [`Buffer::close`] what is left is given, to the last row.
//!
//! **Nothing is dropped in silence.** A push takes the rows for which there is room and says how many, or waits. Rows that are
//! left out are counted: those of the mask, those that are not finite (as they would be held: rounded to the buffer's type),
//! and attention sinks, whose norm exceeds `max_norm` or `sink_multiple` times the median of the last 1,024 rows. (The first
//! 256 rows are judged once all of them are there, or half the capacity, before any of them is given.) Of `[T, layers, d]` the
//! norm is that of all layers together. At every moment `pushed = masked + not_finite + sinks + taken + held`.
//!
//! **The same bits.** What is given depends on the seed and on the sequence of pushes and takes alone, not on where rows are
//! held. With [`Buffer::save`] and [`Buffer::restore`] the sequence may be broken anywhere.
//!
//! **Threads.** Any number may push and take at once; one waits for the other where it was asked to. With more than one, which
//! rows are held when a batch is drawn depends on their speed; one that fills and empties in turn repeats itself.

mod held;
mod norms;
mod options;
mod rows_in;
mod saved;
mod store;

pub use options::{BufferMemory, BufferOptions, Choice, Room};
pub use rows_in::Push;

use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use self::held::Held;
use self::options::Plan;
use super::{Layout, Rows, Source};
use crate::atomic;
use crate::error::{Error, Result, Status, fail};
use crate::features::check_tensor;
use crate::tensor::{DType, TensorMut};

/// Whether a call waits where it cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It does not.
    No,
    /// As long as it takes: until it can, or the buffer is closed.
    Forever,
    /// At most so long.
    AtMost(Duration),
}

/// What came of asking for rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// So many were given.
    Rows(usize),
    /// Too few are held yet.
    NotYet,
    /// The buffer was closed, and everything has been given.
    End,
}

/// How a buffer fares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BufferStats {
    /// Rows that were taken from those who push, whatever became of them.
    pub pushed: u64,
    /// Rows left out by the mask.
    pub masked: u64,
    /// Rows left out because they were not finite.
    pub not_finite: u64,
    /// Rows left out because of their norm.
    pub sinks: u64,
    /// Rows given.
    pub taken: u64,
    /// Rows held.
    pub held: usize,
    /// Rows that can be held.
    pub capacity: usize,
    /// Batches given because the buffer was full, from fewer documents than were asked for.
    pub unmixed: u64,
    /// The running median of norms; 0 if sinks are not judged by it, or none is known.
    pub median_norm: f32,
    /// Whether it was closed.
    pub closed: bool,
}

/// A shuffle buffer, for any number of threads.
pub struct Buffer {
    held: Mutex<Held>,
    /// Rows may be given, or will never come.
    rows: Condvar,
    /// Rows may be taken in, or never again.
    room: Condvar,
    layout: Layout,
    documents: bool,
}

impl Buffer {
    /// An empty buffer; it takes all its memory now.
    pub fn new(options: &BufferOptions) -> Result<Self> {
        Ok(Self::of(Held::new(options, Plan::new(options, None)?)?))
    }

    /// What a buffer of these options takes; nothing is allocated to find out.
    pub fn memory(options: &BufferOptions) -> Result<BufferMemory> {
        Ok(Plan::new(options, None)?.memory())
    }

    fn of(held: Held) -> Self {
        Self {
            layout: held.options.layout,
            documents: held.options.choice.documents,
            held: Mutex::new(held),
            rows: Condvar::new(),
            room: Condvar::new(),
        }
    }

    /// What a row is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// What it was made with.
    pub fn options(&self) -> Result<BufferOptions> {
        Ok(self.lock()?.options.clone())
    }

    /// How it fares.
    pub fn stats(&self) -> Result<BufferStats> {
        let held = self.lock()?;
        let counts = held.counts;
        Ok(BufferStats {
            pushed: counts.pushed,
            masked: counts.masked,
            not_finite: counts.not_finite,
            sinks: counts.sinks,
            taken: counts.taken,
            held: held.len(),
            capacity: held.plan.capacity(),
            unmixed: counts.unmixed,
            median_norm: held.norms.median(),
            closed: held.closed,
        })
    }

    /// Takes in rows, and tells how many: all from `first` on, unless there is no room for them, and no waiting, or the
    /// buffer is closed meanwhile. Refused if it is closed already.
    pub fn push(&self, rows: &Push<'_>, wait: Wait) -> Result<usize> {
        rows.check(&self.layout, self.documents)?;
        let (mut rows, all) = (*rows, rows.x.rows() - rows.first);
        let mut taken = 0;
        let mut held = self.lock()?;
        let until = Until::new(wait);
        loop {
            if held.closed && taken == 0 {
                return fail!(BadState, "the buffer is closed and takes no more rows");
            }
            if held.closed {
                return Ok(taken);
            }
            let more = match held.push(&rows) {
                // Rows taken while waiting are told first; the next call meets the fault again.
                Err(_) if taken > 0 => return Ok(taken),
                more => more?,
            };
            (taken, rows.first) = (taken + more, rows.first + more);
            if held.is_ready() {
                self.rows.notify_all();
            }
            if taken == all || !held.is_full() {
                return Ok(taken);
            }
            match until.wait(&self.room, held)? {
                Some(again) => held = again,
                None => return Ok(taken),
            }
        }
    }

    /// Replaces what is in `rows` by as many as it has room for, drawn from those held: fewer only at the end. `rows` has room
    /// for at most half the capacity.
    pub fn take(&self, rows: &mut Rows, wait: Wait) -> Result<Taken> {
        if rows.layout() != self.layout {
            return fail!(InvalidArgument, "rows: are {:?}, the buffer's {:?}", rows.layout(), self.layout);
        }
        rows.clear();
        let taken = self.draw(rows.room(), wait, |_, row, _, document| rows.push(row, document));
        if taken.is_err() {
            rows.clear();
        }
        taken
    }

    /// The same into memory of the caller: `[T, d]` or `[T, layers, d]`, of the buffer's type or f32, and `[T]` documents. If
    /// rows cannot be read from the spill file, what is in `out` is not defined, but the rows are still held.
    pub fn take_into(&self, out: &mut TensorMut<'_>, mut documents: Option<&mut [i64]>, wait: Wait) -> Result<Taken> {
        let (rows, dtype) = (out.rows(), self.layout.dtype);
        let accepts = |found| found == dtype || found == DType::F32;
        let expected = if dtype == DType::F32 { "f32".to_owned() } else { format!("{dtype} or f32") };
        check_tensor("out", &out.as_ref(), &self.layout.shape(rows), accepts, &expected)?;
        if !out.device().is_host() {
            return fail!(Unsupported, "out: the buffer writes host memory, but this is on {}", out.device());
        }
        if let Some(found) = documents.as_ref().map(|d| d.len()).filter(|&found| found != rows) {
            return fail!(InvalidArgument, "documents: {found} for {rows} rows");
        }
        if documents.is_some() && !self.documents {
            return fail!(InvalidArgument, "documents: are not kept by this buffer");
        }
        self.draw(rows, wait, |i, bytes, values, document| {
            let row = self.layout.row(bytes);
            if out.dtype() == dtype {
                out.copy_row(i, &row, 0);
            } else {
                row.read_row(0, values);
                out.write_row(i, values);
            }
            if let Some(documents) = &mut documents {
                documents[i] = document;
            }
        })
    }

    fn draw(&self, count: usize, wait: Wait, out: impl FnMut(usize, &[u8], &mut [f32], i64)) -> Result<Taken> {
        let mut held = self.lock()?;
        let half = held.half();
        if count > half {
            return fail!(
                InvalidArgument,
                "{count} rows at once are more than half the buffer's capacity of {}; at most {half} are given",
                held.plan.capacity()
            );
        }
        let until = Until::new(wait);
        while !held.is_ready() {
            match until.wait(&self.rows, held)? {
                Some(again) => held = again,
                None => return Ok(Taken::NotYet),
            }
        }
        if held.closed && held.len() == 0 {
            return Ok(Taken::End);
        }
        let count = count.min(held.len());
        held.take(count, out)?;
        self.room.notify_all();
        Ok(Taken::Rows(count))
    }

    /// Takes in no more rows, and ends all waiting: those who push are told how many rows were taken, those who take get what is
    /// left, to the last row. Either side may call it, once the stream ends or no more is wanted.
    pub fn close(&self) -> Result<()> {
        self.lock()?.close();
        self.rows.notify_all();
        self.room.notify_all();
        Ok(())
    }

    /// Fills the buffer from a source, so many rows at a time as `at_once` was made for, and closes it where the source ends.
    /// What fills and takes in turn, in one thread, repeats itself. On failure, and where another thread closes the buffer
    /// meanwhile, the source is at the first row that was not taken.
    pub fn fill(&self, source: &mut dyn Source, at_once: &mut Rows) -> Result<()> {
        loop {
            let BufferStats { held, capacity, closed, .. } = self.stats()?;
            if closed || held == capacity {
                return Ok(());
            }
            at_once.set_room(capacity - held);
            let before = source.position();
            if source.next(at_once)? == 0 {
                return self.close();
            }
            let (taken, pushed) = self.push_all(at_once);
            if taken < at_once.len() {
                source.seek(&before)?;
                at_once.set_room(taken);
                if taken > 0 {
                    source.next(at_once)?;
                }
            }
            pushed?;
        }
    }

    /// Takes in rows until all are in, the buffer is closed, or one cannot be held; tells how many were taken.
    fn push_all(&self, rows: &Rows) -> (usize, Result<()>) {
        let mut push = Push::from(rows);
        while push.first < rows.len() {
            // There is room for them, unless others push too.
            match self.push(&push, Wait::Forever) {
                Ok(taken) => push.first += taken,
                // That it was closed meanwhile is no failure.
                Err(error) => {
                    return (push.first, self.stats().and_then(|stats| if stats.closed { Ok(()) } else { Err(error) }));
                }
            }
        }
        (push.first, Ok(()))
    }

    /// Writes all that decides what comes next into a safetensors file, which appears whole or not at all: the rows as `x`, in the
    /// buffer's type, so that [`Shards`](super::Shards) read it too; `documents`, `norms`, and the rest in its metadata. Others
    /// wait while it is written, but not until it is on the disk.
    pub fn save(&self, path: &Path) -> Result<()> {
        atomic::remove_leftovers(path);
        atomic::write(path, |out| saved::write(out, &mut *self.lock()?)).map_err(|e| e.at(path.display()))
    }

    /// A buffer as it was saved. Where its rows are held may be chosen anew, if there is room for as many; `None`: as they were, but
    /// in memory alone, and in at most 1 GiB.
    pub fn restore(path: &Path, room: Option<&Room>) -> Result<Self> {
        saved::restore(path, room).map(Self::of).map_err(|e| e.at(path.display()))
    }

    fn lock(&self) -> Result<MutexGuard<'_, Held>> {
        self.held.lock().map_err(|_| poisoned())
    }
}

/// A panic while rows moved may have left them half moved.
fn poisoned() -> Error {
    Error::new(Status::BadState, "an earlier call failed within the library and left the buffer unusable; free it")
}

/// How long is waited.
enum Until {
    Now,
    Whenever,
    Then(Instant),
}

impl Until {
    fn new(wait: Wait) -> Self {
        match wait {
            Wait::No => Self::Now,
            Wait::Forever => Self::Whenever,
            // A time that no clock reaches is for ever.
            Wait::AtMost(time) => Instant::now().checked_add(time).map_or(Self::Whenever, Self::Then),
        }
    }

    /// Waits until something may have changed; `None` if the time is up.
    fn wait<'a>(&self, changed: &Condvar, held: MutexGuard<'a, Held>) -> Result<Option<MutexGuard<'a, Held>>> {
        match self {
            Self::Now => Ok(None),
            Self::Whenever => changed.wait(held).map(Some).map_err(|_| poisoned()),
            Self::Then(end) => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                changed.wait_timeout(held, left).map(|(held, _)| Some(held)).map_err(|_| poisoned())
            }
        }
    }
}
