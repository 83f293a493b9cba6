//! Which slots of a token's codes each of a loss's reconstructions is made of.

use crate::backend::Order;
use crate::backend::training::{Level, MULTI_WEIGHT};

/// How reconstructions build on each other: each takes in further slots.
#[derive(Clone, Copy)]
pub(super) enum Levels<'a> {
    /// There is one, of all slots.
    One,
    /// The first is of the so many largest, the second of all.
    ByRank(usize),
    /// Each is of a prefix of the latents.
    ByIndex(&'a [Level]),
}

impl<'a> Levels<'a> {
    /// Those of one row, where it is known how many of its slots are `firsts`.
    pub(super) fn of_row(self, row: usize, firsts: &[u32]) -> Levels<'a> {
        match (self, firsts.get(row)) {
            (Self::ByRank(_), Some(&first)) => Self::ByRank(first as usize),
            _ => self,
        }
    }

    pub(super) fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::ByRank(_) => 2,
            Self::ByIndex(levels) => levels.len(),
        }
    }

    /// What a reconstruction's squared error is multiplied by.
    pub(super) fn weight(self, level: usize) -> f32 {
        match self {
            Self::One => 1.0,
            Self::ByRank(_) => [1.0, MULTI_WEIGHT][level],
            Self::ByIndex(levels) => levels[level].weight,
        }
    }

    /// The one that stands for the SAE.
    pub(super) fn main(self) -> usize {
        match self {
            Self::One | Self::ByRank(_) => 0,
            Self::ByIndex(levels) => levels.len() - 1,
        }
    }

    /// How slots must be ordered.
    pub(super) fn order(self) -> Order {
        match self {
            Self::One | Self::ByIndex(_) => Order::Index,
            Self::ByRank(_) => Order::Value,
        }
    }

    /// The slots of a token that a reconstruction is made of: those before this one.
    pub(super) fn end(self, level: usize, latents: &[u32]) -> usize {
        match self {
            Self::ByRank(k) if level == 0 => k.min(latents.len()),
            Self::One | Self::ByRank(_) => latents.len(),
            Self::ByIndex(levels) => latents.partition_point(|&latent| (latent as usize) < levels[level].prefix),
        }
    }

    /// The first reconstruction that a slot is part of: the slot's place in its token's list, and its latent.
    pub(super) fn of(self, place: usize, latent: u32) -> usize {
        match self {
            Self::One => 0,
            Self::ByRank(k) => usize::from(place >= k),
            Self::ByIndex(levels) => levels.partition_point(|level| level.prefix <= latent as usize),
        }
    }
}
