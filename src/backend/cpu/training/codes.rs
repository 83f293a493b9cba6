//! Sparse codes of rows, as lists of slots.

use std::marker::PhantomData;
use std::ops::Range;

use super::levels::Levels;
use crate::backend::cpu::blocks::Parts;
use crate::error::Result;
use crate::tensor::Array;

/// Sparse codes of rows. Each row has a span of slots, of which it uses the first.
pub(super) struct Codes {
    pub rows: usize,
    /// `[rows + 1]`: where each row's span starts.
    pub starts: Array<u32>,
    /// `[rows]`: slots in use.
    pub counts: Array<u32>,
    /// Latents.
    pub indices: Array<u32>,
    /// Their activations.
    pub values: Array<f32>,
    /// The loss's gradient by each score.
    pub pulls: Array<f32>,
    /// Gradients by the rule's own parameters, `extra` of them: of each row `[extra, slots in use]`, from `extra` times its
    /// start on.
    pub extras: Array<f32>,
    pub extra: usize,
    /// `[rows]`, where other ranks hold further codes of the rows: slots here that are among a row's largest, as
    /// [`Levels::ByRank`] counts them.
    pub firsts: Array<u32>,
}

impl Codes {
    /// For rows with spans of `width` slots each, with `extra` numbers more for each slot.
    pub(super) fn new(max_rows: usize, width: usize, extra: usize) -> Result<Self> {
        let slots = max_rows.saturating_mul(width);
        let mut codes = Self {
            rows: 0,
            starts: Array::zeroed(max_rows + 1)?,
            counts: Array::zeroed(max_rows)?,
            indices: Array::zeroed(slots)?,
            values: Array::zeroed(slots)?,
            pulls: Array::zeroed(slots)?,
            extras: Array::zeroed(slots.saturating_mul(extra))?,
            extra,
            firsts: Array::zeroed(0)?,
        };
        codes.spread(width);
        Ok(codes)
    }

    /// Gives each row a span of `width` slots.
    pub(super) fn spread(&mut self, width: usize) {
        self.starts.iter_mut().enumerate().for_each(|(row, start)| *start = (row * width) as u32);
    }

    /// What reconstructions of a row are made of.
    pub(super) fn levels<'a>(&self, row: usize, levels: Levels<'a>) -> Levels<'a> {
        levels.of_row(row, &self.firsts)
    }

    /// The slots in use, row by row.
    pub(super) fn used(&self) -> impl DoubleEndedIterator<Item = (usize, Range<usize>)> {
        let counts = self.counts[..self.rows].iter().enumerate();
        counts.map(|(row, &n)| (row, self.starts[row] as usize..self.starts[row] as usize + n as usize))
    }
}

/// An array cut into the spans of rows, for [`for_each`](crate::backend::cpu::blocks::for_each).
pub(super) struct Spans<'a, T> {
    data: *mut T,
    starts: &'a [u32],
    /// Numbers of a slot.
    each: usize,
    borrow: PhantomData<&'a mut [T]>,
}

/// Cuts an array with `each` numbers of a slot into the spans between `starts`, one fewer than there are of those.
pub(super) fn spans<'a, T>(data: &'a mut [T], starts: &'a [u32], each: usize) -> Spans<'a, T> {
    assert!(starts.is_sorted() && starts.last().is_none_or(|&end| end as usize * each <= data.len()));
    Spans { data: data.as_mut_ptr(), starts, each, borrow: PhantomData }
}

// SAFETY: it stands for `&mut [T]`, whose parts go to one thread each.
unsafe impl<T: Send> Sync for Spans<'_, T> {}

// SAFETY: starts ascend, so spans are disjoint ranges of one slice.
unsafe impl<'a, T: Send> Parts for Spans<'a, T> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    unsafe fn part(&self, i: usize) -> &'a mut [T] {
        let [start, end] = [i, i + 1].map(|i| self.starts[i] as usize * self.each);
        // SAFETY: within the slice borrowed for 'a, as `spans` checked; not in use by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), end - start) }
    }
}
