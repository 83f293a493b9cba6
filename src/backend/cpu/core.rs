//! What every operation of a session starts from: the SAE, who computes, and where.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Kernels;
use super::encode::{Encoded, Job, Workers, encode};
use super::encoder::Encoder;
use super::prepare::{Prepared, normalize_row, read_row};
use super::scratch::{Plan, RowScratch, Scratch, Slots};
use crate::backend::{Input, Order, Pool};
use crate::sae::Sae;
use crate::sae::int8::Int8Rows;

/// What does not change during a call.
pub(crate) struct Core {
    pub sae: Arc<Sae>,
    /// Its W_enc as bytes, where scores are to be bounded first.
    pub int8: Option<Arc<Int8Rows>>,
    pub pool: Pool,
    pub kernels: Kernels,
    pub plan: Plan,
    pub max_tokens: usize,
    pub ignored: AtomicU64,
}

impl Core {
    /// Cuts the working memory up: a list of rows, and the workers' slots.
    pub(crate) fn cut<'a>(&self, memory: &'a mut [u8]) -> (&'a mut [u32], Slots<'a>) {
        let (rows, slots) = memory.split_at_mut((4 * self.max_tokens).next_multiple_of(64));
        (bytemuck::cast_slice_mut(rows), Slots::new(slots, self.plan))
    }

    /// Encodes tokens, keeping up to `limit` of each one's active latents, and gives each token to `sink` once. The tokens
    /// are rows `0..rows` of the input, or those that `listed` names.
    pub(crate) fn encode(
        &self,
        slots: &Slots<'_>,
        input: &Input<'_>,
        listed: Option<&[u32]>,
        (limit, order): (usize, Order),
        sink: &(dyn Fn(Encoded<'_>, &mut RowScratch<'_>) + Sync),
    ) {
        let encoder = Encoder::of(&self.sae).screened(self.int8.as_deref());
        let row = |i: usize| listed.map_or(i, |rows| rows[i] as usize);
        let job = Job {
            encoder,
            rows: listed.map_or(input.x.rows(), <[u32]>::len),
            limit: encoder.limit(limit),
            order,
            prepare: &|i, x, raw| self.prepare(input, row(i), x, raw),
        };
        let workers = Workers { kernels: self.kernels, pool: &self.pool, slots };
        encode(&workers, &job, &|token, scratch| sink(Encoded { row: row(token.row), ..token }, scratch));
    }

    /// Reads and normalises one token.
    pub(crate) fn prepare(&self, input: &Input<'_>, row: usize, x: &mut [f32], raw: &mut [f32]) -> Prepared {
        read_row(input, row, raw, x);
        normalize_row(self.kernels, self.sae.spec(), &self.sae.weights().b_dec, x)
    }

    pub(crate) fn ignore(&self, count: u64) {
        if count > 0 {
            self.ignored.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Runs `body` for every row, each worker with its own scratch.
    pub(crate) fn each_row(&self, slots: &Slots<'_>, rows: usize, body: &(dyn Fn(usize, &mut Scratch<'_>) + Sync)) {
        self.pool.run_ranges(rows, &|slot, range| {
            // SAFETY: no two ranges run with the same slot at once.
            let mut scratch = unsafe { slots.get(slot) };
            range.for_each(|row| body(row, &mut scratch));
        });
    }
}
