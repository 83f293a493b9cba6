//! The order in which stored rows are gone through.

use super::Shuffle;
use super::random::{shuffle, stream};
use crate::error::{Result, fail};
use crate::tensor::try_vec;

const BLOCK_ROWS: usize = 256;
const WINDOW_BLOCKS: usize = 1024;
/// More rows than are mixed at once, and more epochs or windows than are gone through, with numbers of 32 bits.
const MOST: usize = u32::MAX as usize;

/// The order of the rows of one epoch.
pub(super) enum Order {
    Stored { rows: u64 },
    Shuffled(Shuffled),
}

/// Blocks of neighbouring rows in random order; the rows of so many blocks, a window, are then mixed.
pub(super) struct Shuffled {
    rows: u64,
    seed: u64,
    block_rows: u64,
    window_blocks: usize,
    epoch: u64,
    /// The blocks in this epoch's order.
    blocks: Vec<u32>,
    window: Window,
}

/// The rows of a window, in memory that is taken once.
struct Window {
    index: usize,
    /// Rows of this epoch before it, and its own.
    start: u64,
    rows: u64,
    /// Which of the window's rows comes when; empty: not yet drawn.
    order: Vec<u32>,
    /// Where each of its blocks begins among its rows, and what row that is.
    starts: Vec<(u32, u64)>,
}

impl Shuffle {
    /// With its defaults filled in.
    pub(super) fn resolve(&self) -> Result<Self> {
        let or = |value, default| if value == 0 { default } else { value };
        let (block_rows, window_blocks) = (or(self.block_rows, BLOCK_ROWS), or(self.window_blocks, WINDOW_BLOCKS));
        if block_rows.checked_mul(window_blocks).is_none_or(|rows| rows > MOST) {
            return fail!(
                InvalidArgument,
                "shuffle: windows of {window_blocks} blocks of {block_rows} rows have more than {MOST} rows"
            );
        }
        Ok(Self { seed: self.seed, block_rows, window_blocks })
    }
}

impl Order {
    /// The order of so many rows; `shuffle` with its defaults filled in.
    pub(super) fn new(rows: u64, shuffle: Option<&Shuffle>) -> Result<Self> {
        let Some(Shuffle { seed, block_rows, window_blocks }) = shuffle else { return Ok(Self::Stored { rows }) };
        let block_rows = *block_rows as u64;
        let Some(count) = usize::try_from(rows.div_ceil(block_rows)).ok().filter(|&count| count <= MOST) else {
            return fail!(
                InvalidArgument,
                "shuffle: {rows} rows have too many blocks of {block_rows}; make blocks larger"
            );
        };
        let mut order = Shuffled {
            rows,
            seed: *seed,
            block_rows,
            window_blocks: *window_blocks,
            epoch: 0,
            blocks: try_vec(0, count)?,
            window: Window::with_room(
                rows.min(block_rows * *window_blocks as u64) as usize,
                count.min(*window_blocks),
            )?,
        };
        order.begin(0);
        Ok(Self::Shuffled(order))
    }

    /// Goes on to an epoch.
    pub(super) fn begin(&mut self, epoch: u64) {
        if let Self::Shuffled(order) = self {
            order.begin(epoch);
        }
    }

    /// The row that comes at a place of the epoch, which must be below the number of rows.
    pub(super) fn row(&mut self, place: u64) -> u64 {
        match self {
            Self::Stored { rows } => {
                assert!(place < *rows, "place {place} of {rows}");
                place
            }
            Self::Shuffled(order) => order.row(place),
        }
    }
}

impl Shuffled {
    fn begin(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.blocks.iter_mut().zip(0..).for_each(|(block, i)| *block = i);
        shuffle(&mut stream(self.seed, epoch << 32), &mut self.blocks);
        self.enter(0, 0);
    }

    fn row(&mut self, place: u64) -> u64 {
        assert!(place < self.rows, "place {place} of {}", self.rows);
        if place < self.window.start {
            self.enter(0, 0);
        }
        while place - self.window.start >= self.window.rows {
            self.enter(self.window.index + 1, self.window.start + self.window.rows);
        }
        if self.window.order.is_empty() {
            self.draw();
        }
        let Window { start, order, starts, .. } = &self.window;
        let row = order[(place - start) as usize];
        let (first, block) = starts[starts.partition_point(|(first, _)| *first <= row) - 1];
        block + u64::from(row - first)
    }

    fn block_len(&self, block: u32) -> u64 {
        self.block_rows.min(self.rows - u64::from(block) * self.block_rows)
    }

    fn window_blocks(&self) -> &[u32] {
        let first = self.window.index * self.window_blocks;
        &self.blocks[first..(first + self.window_blocks).min(self.blocks.len())]
    }

    /// Goes to a window, before which there are `start` rows. Its order is drawn when a row of it is asked for.
    fn enter(&mut self, index: usize, start: u64) {
        (self.window.index, self.window.start) = (index, start);
        self.window.order.clear();
        self.window.rows = self.window_blocks().iter().map(|&block| self.block_len(block)).sum();
    }

    /// Draws the order of the window's rows.
    fn draw(&mut self) {
        let first = self.window.index * self.window_blocks;
        let mut rng = stream(self.seed, self.epoch << 32 | (self.window.index as u64 + 1));
        let Window { order, starts, .. } = &mut self.window;
        starts.clear();
        let mut rows = 0;
        for &block in self.blocks[first..].iter().take(self.window_blocks) {
            let start = u64::from(block) * self.block_rows;
            starts.push((rows, start));
            rows += self.block_rows.min(self.rows - start) as u32;
        }
        order.extend(0..rows);
        shuffle(&mut rng, order);
    }
}

impl Window {
    /// None yet, but room for so many rows of so many blocks.
    fn with_room(rows: usize, blocks: usize) -> Result<Self> {
        let (mut order, mut starts) = (try_vec(0, rows)?, try_vec((0, 0), blocks)?);
        order.clear();
        starts.clear();
        Ok(Self { index: 0, start: 0, rows: 0, order, starts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(order: &mut Order, epoch: u64, rows: u64) -> Vec<u64> {
        order.begin(epoch);
        (0..rows).map(|place| order.row(place)).collect()
    }

    #[test]
    fn every_row_comes_once_in_every_epoch() {
        for (rows, block_rows, window_blocks) in [(1, 1, 1), (10, 3, 2), (1000, 7, 5), (1000, 256, 1024), (64, 8, 2)] {
            let shuffle = Shuffle { seed: 5, block_rows, window_blocks }.resolve().unwrap();
            let mut order = Order::new(rows, Some(&shuffle)).unwrap();
            let (first, second) = (epoch(&mut order, 0, rows), epoch(&mut order, 1, rows));
            for found in [&first, &second] {
                let mut sorted = found.clone();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..rows));
            }
            assert!(rows == 1 || first != second);
            // Any place can be gone to, in any order.
            order.begin(0);
            for place in (0..rows).rev().step_by(3) {
                assert_eq!(order.row(place), first[place as usize]);
            }
        }
        let mut order = Order::new(9, None).unwrap();
        assert!(epoch(&mut order, 4, 9).into_iter().eq(0..9));
    }

    #[test]
    fn windows_that_are_too_large_are_refused() {
        assert!(Shuffle { seed: 0, block_rows: 1 << 20, window_blocks: 1 << 20 }.resolve().is_err());
        assert!(Order::new(u64::MAX, Some(&Shuffle::default().resolve().unwrap())).is_err());
    }
}
