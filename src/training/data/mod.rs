//! Where a run's activations come from.
//!
//! A [`Source`] is a stream of rows that knows its place and returns to it. [`Shards`] is the one for activations kept in
//! files; [`Buffer`] mixes what a host pushes as its engine computes it. Both hand out [`Rows`], which keep the type they
//! were stored in and are lent to as many trainers as there are.
//!
//! ```no_run
//! # fn main() -> sae::Result<()> {
//! # let mut trainers: Vec<sae::training::Trainer> = Vec::new();
//! use sae::training::data::{Rows, ShardOptions, Shards, Shuffle, Source};
//!
//! let options = ShardOptions { paths: vec!["activations/".into()], shuffle: Some(Shuffle::default()), ..Default::default() };
//! let mut source = Shards::open(&options)?;
//! let mut rows = Rows::new(source.layout(), 4096)?;
//! while source.next(&mut rows)? > 0 {
//!     for trainer in &mut trainers {
//!         trainer.step(&rows.tensor().into())?;
//!     }
//!     let place = source.position(); // to be kept with the trainers' checkpoints, and sought after a resume
//! }
//! # Ok(()) }
//! ```

mod buffer;
mod files;
mod fingerprint;
mod order;
mod random;
mod rows;
mod shard;
mod shards;

pub(super) use fingerprint::Fingerprint;

pub use buffer::{Buffer, BufferMemory, BufferOptions, BufferStats, Choice, Push, Room, Taken, Wait};
pub use rows::{Layout, Rows};
pub use shards::{ShardOptions, Shards, Shuffle, Told};

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// A stream of activations that can be left and taken up again.
pub trait Source: Send {
    /// What a row is.
    fn layout(&self) -> Layout;

    /// Rows that are given in all, every epoch counted; `None` if that is not known or there is no end.
    fn len(&self) -> Option<u64>;

    /// Replaces what is in `rows` by the next rows, as many as it has room for, fewer only where the stream ends. Gives their
    /// number: 0 at the end. After an error nothing is lost: the stream is where it was.
    fn next(&mut self, rows: &mut Rows) -> Result<usize>;

    /// The place of the next row.
    fn position(&self) -> Position;

    /// Goes to a place that a source of the same data and options has told: the same rows follow as did there.
    fn seek(&mut self, position: &Position) -> Result<()>;

    /// Whether nothing is ever given.
    fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }
}

/// A place in a source. The numbers mean something to the kind of source that told them alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Times the whole has been gone through.
    pub epoch: u64,
    /// Stored rows gone by in this epoch, those left out included.
    pub row: u64,
    /// Rows given since the beginning.
    pub given: u64,
    /// Tells data and options apart, so that the place is not sought in others. Folders are not part of it: data may be moved.
    pub of: String,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, row, given, of } = self;
        write!(f, "row {row} of epoch {epoch} ({given} given) of {of}")
    }
}
