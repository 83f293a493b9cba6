//! What the processes of one training run tell each other. The library moves no bytes itself: the host has a way already (MPI,
//! a TCP store, its engine's communicator), and lends it as a [`Collective`]. [`Ranks`] is what the rest of the library sees:
//! where this process stands, and sums, minima and decisions that all processes come to alike.
//!
//! Processes stand in a grid of `data` × `latents` ranks. Those of one row, along the axis of latents, see the same tokens
//! and hold different latents; those of one column, along the axis of data, hold the same latents and see different tokens.

mod ranks;
mod threads;

pub use ranks::Ranks;
pub use threads::{members, threads};

use crate::error::Result;

/// A direction in the grid of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Axis {
    /// Ranks that hold the same latents and see different tokens.
    Data = 0,
    /// Ranks that see the same tokens and hold different latents.
    Latents = 1,
}

impl Axis {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Latents => "latents",
        }
    }
}

/// The host's communicator. All ranks of an axis make the same calls in the same order, with as many numbers; they are made by
/// the thread that calls the trainer, one at a time, with at most [`MAX_BYTES`] of a rank's. A call returns once the result is
/// there; it is the host's to give up, with an error, on a rank that does not answer.
///
/// [`Self::all_gather`] suffices. What else is offered must give all ranks the same bits, and the same numbers the same bits every time: then so do runs.
pub trait Collective: Send + Sync {
    /// Gives `mine` and gets those of all ranks of the axis, one after another.
    fn all_gather(&self, axis: Axis, mine: &[u8], all: &mut [u8]) -> Result<()>;

    /// Replaces the numbers by their sums over the ranks of the axis. `None`: not offered; they are gathered, and summed in the
    /// order of ranks.
    fn all_reduce_sum(&self, _axis: Axis, _values: &mut [f32]) -> Option<Result<()>> {
        None
    }

    /// Sums over the ranks, of which each gets its part: as many numbers as `mine` has, from its place times that on. `None`: not
    /// offered. It is asked for where [`Self::all_reduce_sum`] is not offered.
    fn reduce_scatter_sum(&self, _axis: Axis, _values: &[f32], _mine: &mut [f32]) -> Option<Result<()>> {
        None
    }

    /// Replaces the numbers by the least of each over the ranks of the axis. `None`: not offered.
    fn all_reduce_min(&self, _axis: Axis, _values: &mut [i64]) -> Option<Result<()>> {
        None
    }

    /// Replaces the bytes by those of the rank in place `root` of the axis. `None`: not offered.
    fn broadcast(&self, _axis: Axis, _root: usize, _bytes: &mut [u8]) -> Option<Result<()>> {
        None
    }
}

/// The most bytes that a rank gives in one call.
pub const MAX_BYTES: usize = 1 << 26;
