//! Working memory of one worker, cut out of the session's: sized before the first call, never more.

use std::cell::UnsafeCell;

use super::kernels::int8::{Survivor, WIDTH};
use super::select::{Key, capacity};
use crate::sae::int8::{PANEL, padded};

/// Tokens scored together: their vectors stay in cache while the weights stream by.
pub(crate) const DENSE_ROWS: usize = 32;
/// Tokens encoded together at most. Bytes are a quarter as long, and gone through four times as fast.
pub(crate) const TILE_ROWS: usize = 128;
/// Latents scored together.
pub(crate) const BLOCK: usize = 48;
/// Keys a worker may gather for a whole tile; for longer lists the tile shrinks to fewer tokens.
const TILE_KEYS: usize = 1 << 20;

/// What the scratch of one worker must hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The wider of input and output.
    pub d: usize,
    /// The most keys kept per token by any call.
    pub limit: usize,
    /// The most slots of features read per token.
    pub width: usize,
    /// The most tokens per call.
    pub tokens: usize,
    /// If scores are bounded by bytes first.
    pub screen: Option<ScreenPlan>,
}

/// What bounding scores needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScreenPlan {
    /// Length of a row of bytes.
    pub padded: usize,
    /// How many latents may wait to be scored exactly, for each token.
    pub pending: usize,
}

impl ScreenPlan {
    /// For rows of length `d`, `k` latents of which win if they compete.
    pub(crate) fn new(d: usize, k: Option<usize>) -> Self {
        Self { padded: padded(d), pending: k.unwrap_or(0).saturating_mul(4).max(1024) }
    }
}

impl Plan {
    /// Tokens per tile when `limit` keys are kept of each.
    pub(crate) fn tile_rows(&self, limit: usize) -> usize {
        (TILE_KEYS / capacity(limit)).clamp(1, self.rows())
    }

    /// The most tokens per tile.
    fn rows(&self) -> usize {
        let most = self.screen.map_or(DENSE_ROWS, |screen| (TILE_KEYS / screen.pending).clamp(1, TILE_ROWS));
        self.tokens.clamp(1, most)
    }

    fn keys(&self) -> usize {
        // Enough for every limit up to this one: a smaller limit may make a larger tile, but not beyond TILE_KEYS.
        let one = capacity(self.limit);
        let waiting = self.screen.map_or(0, |screen| self.rows() * screen.pending);
        (self.rows() * one).min(TILE_KEYS.max(one)) + waiting
    }

    fn floats(&self) -> usize {
        let rows = self.rows();
        let screen = self.screen.map_or(0, |ScreenPlan { padded, pending }| {
            // Two rows of bytes each, their products, what survives, and what is known of what waits.
            rows * (2 * padded / 4 + 2 * WIDTH + SURVIVOR * WIDTH + pending) + SURVIVOR * PANEL + 3 * pending
        });
        let dense = rows.min(DENSE_ROWS);
        rows * self.d + 2 * dense * BLOCK + BLOCK * self.d + 3 * self.d + self.width + screen
    }

    /// Bytes of one worker's scratch, a multiple of 64.
    pub(crate) fn bytes(&self) -> usize {
        (8 * self.keys() + 4 * self.floats()).next_multiple_of(64)
    }

    /// Cuts one worker's memory up.
    pub(crate) fn cut<'a>(&self, memory: &'a mut [u8]) -> Scratch<'a> {
        let (keys, floats) = memory.split_at_mut(8 * self.keys());
        let mut floats: &mut [f32] = bytemuck::cast_slice_mut(floats);
        let mut take = |n: usize| {
            let (part, rest) = std::mem::take(&mut floats).split_at_mut(n);
            floats = rest;
            part
        };
        let keys: &mut [Key] = bytemuck::cast_slice_mut(keys);
        let (rows, dense) = (self.rows(), self.rows().min(DENSE_ROWS));
        let ScreenPlan { padded, pending } = self.screen.unwrap_or(ScreenPlan { padded: 0, pending: 0 });
        let width = if self.screen.is_some() { WIDTH } else { 0 };
        let (waiting, keys) = keys.split_at_mut(rows * pending);
        Scratch {
            x: take(rows * self.d),
            scores: take(dense * BLOCK),
            second: take(dense * BLOCK),
            weights: take(BLOCK * self.d),
            screen: ScreenScratch {
                bytes: bytemuck::cast_slice_mut(take(2 * rows * padded / 4)),
                products: bytemuck::cast_slice_mut(take(2 * rows * width)),
                survivors: bytemuck::cast_slice_mut(take(if width > 0 {
                    SURVIVOR * (rows * width + PANEL)
                } else {
                    0
                })),
                lower: take(rows * pending),
                sorted: bytemuck::cast_slice_mut(take(pending)),
                ids: bytemuck::cast_slice_mut(take(pending)),
                dots: take(pending),
                waiting,
            },
            row: RowScratch {
                sum: take(self.d),
                weights: take(self.d),
                raw: take(self.d),
                values: take(self.width),
                steered: None,
            },
            keys,
        }
    }
}

/// Numbers of 32 bits in a [`Survivor`].
const SURVIVOR: usize = size_of::<Survivor>() / 4;

/// One worker's memory.
pub(crate) struct Scratch<'a> {
    /// Keys gathered for each token of the tile.
    pub keys: &'a mut [Key],
    /// The tile's prepared vectors.
    pub x: &'a mut [f32],
    /// Scores of a block of latents.
    pub scores: &'a mut [f32],
    /// Their dot products with a second encoder.
    pub second: &'a mut [f32],
    /// Weights of a block of latents, converted.
    pub weights: &'a mut [f32],
    /// For scores bounded by bytes.
    pub screen: ScreenScratch<'a>,
    /// For the token in hand.
    pub row: RowScratch<'a>,
}

/// Memory for scores bounded by bytes; empty if they are not.
pub(crate) struct ScreenScratch<'a> {
    /// The tile's tokens, rounded; behind them those rounded more finely.
    pub bytes: &'a mut [u8],
    /// Their products with a block of latents.
    pub products: &'a mut [i32],
    /// The latents of a block that may matter.
    pub survivors: &'a mut [Survivor],
    /// For each token, the latents that wait to be scored exactly, with upper bounds.
    pub waiting: &'a mut [Key],
    /// Their lower bounds.
    pub lower: &'a mut [f32],
    /// A token's lower bounds, being sorted.
    pub sorted: &'a mut [u32],
    /// A token's latents, being scored.
    pub ids: &'a mut [u32],
    /// Their dot products.
    pub dots: &'a mut [f32],
}

/// Memory for work on one token.
pub(crate) struct RowScratch<'a> {
    /// A vector being summed up.
    pub sum: &'a mut [f32],
    /// A row of weights, converted.
    pub weights: &'a mut [f32],
    /// The host's vector, converted.
    pub raw: &'a mut [f32],
    /// A token's feature values, converted.
    pub values: &'a mut [f32],
    /// While steering: the slot whose effect `sum` holds.
    pub steered: Option<i32>,
}

/// The workers' memories, handed out by number to bodies that run at the same time.
pub(crate) struct Slots<'a> {
    memory: &'a [UnsafeCell<u8>],
    plan: Plan,
}

// SAFETY: each slot is used by one thread at a time, as `Slots::get` demands.
unsafe impl Sync for Slots<'_> {}

impl<'a> Slots<'a> {
    pub(crate) fn new(memory: &'a mut [u8], plan: Plan) -> Self {
        let len = memory.len();
        // SAFETY: `UnsafeCell<u8>` has the layout of `u8`, and the exclusive borrow is held for 'a.
        let memory = unsafe { std::slice::from_raw_parts(memory.as_mut_ptr().cast::<UnsafeCell<u8>>(), len) };
        Self { memory, plan }
    }

    /// What each worker's memory holds.
    pub(crate) fn plan(&self) -> Plan {
        self.plan
    }

    /// How many workers there is memory for.
    pub(crate) fn len(&self) -> usize {
        self.memory.len() / self.plan.bytes()
    }

    /// The memory of worker `slot`.
    ///
    /// # Safety
    /// No two live `Scratch` may be of the same slot.
    pub(crate) unsafe fn get(&self, slot: usize) -> Scratch<'a> {
        let size = self.plan.bytes();
        let part = &self.memory[slot * size..(slot + 1) * size];
        // SAFETY: in bounds; exclusive by the caller's promise.
        let part = unsafe { std::slice::from_raw_parts_mut(part.as_ptr().cast_mut().cast::<u8>(), size) };
        self.plan.cut(part)
    }
}
