//! The launches that calls are made of: from activations to keys.

use std::ops::Range;

use super::driver::{Driver, Shape, StreamHandle};
use super::launch::{launch, own_vectors, vectors};
use super::model::Screened;
use super::params::{self, *};
use super::plan::{Encoding, Memory};
use super::session::CudaSession;
use crate::backend::{Input, Order};
use crate::error::Result;
use crate::sae::Normalization;

/// A call in hand.
pub(super) struct Call<'a> {
    pub inside: &'a dyn Driver,
    pub stream: StreamHandle,
    pub memory: Memory,
    pub order: Order,
    /// What bf16 products are made of, if they are good enough for scores.
    pub fast: Option<Screened>,
}

impl Call<'_> {
    /// Starts a kernel.
    ///
    /// # Safety
    /// See [`Driver::launch`].
    pub(super) unsafe fn launch<P: Params>(&self, grid: (usize, usize), block: u32, params: &P) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_shaped(Shape { grid: (grid.0 as u32, grid.1 as u32), block, shared: 0 }, params) }
    }

    /// Scores of all latents.
    ///
    /// # Safety
    /// See [`Driver::launch`].
    unsafe fn launch_score(&self, params: ScoreParams) -> Result<()> {
        let (n, rows) = (params.latents.n as usize, params.rows as usize);
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                1 => self.launch((n.div_ceil(SCORE_LATENTS), 1), 256, &ScoreOneParams { score: params }),
                _ => self.launch((n.div_ceil(SCORE_LATENTS) * rows.div_ceil(SCORE_TOKENS), 1), 256, &params),
            }
        }
    }

    /// # Safety
    /// See [`Driver::launch`].
    unsafe fn launch_shaped<P: Params>(&self, shape: Shape, params: &P) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { launch(self.inside, self.stream, shape, params) }
    }
}

/// Chunks of so many rows.
pub(super) fn chunks(rows: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(chunk).map(move |first| first..rows.min(first + chunk))
}

/// Where a chunk's tokens are prepared.
#[derive(Clone, Copy, Default)]
pub(super) struct Prepared {
    pub x: DevicePtr,
    pub tokens: DevicePtr,
    /// `x + addend` alone, where it is wanted.
    pub raw: DevicePtr,
    /// Which tokens are wanted; null: all.
    pub wanted: DevicePtr,
    rounded: DevicePtr,
    overflowed: DevicePtr,
}

/// Where a chunk's tokens are encoded.
#[derive(Clone, Copy)]
pub(super) struct Encoded {
    pub encoding: Encoding,
    pub kept: DevicePtr,
    /// Latents that wait, and what is known of them; or scores of all latents, and the best of groups or ranges.
    waiting: DevicePtr,
    lower: DevicePtr,
    scores: DevicePtr,
    best: DevicePtr,
}

pub(super) fn normalization(of: Normalization) -> i32 {
    match of {
        Normalization::None => params::normalization::NONE,
        Normalization::LayerNorm => params::normalization::LAYER_NORM,
        Normalization::ConstantNorm => params::normalization::CONSTANT_NORM,
    }
}

pub(super) fn order(of: Order) -> i32 {
    match of {
        Order::Value => params::order::BY_VALUE,
        Order::Index => params::order::BY_INDEX,
    }
}

impl CudaSession {
    /// Room to prepare a chunk's tokens.
    pub(super) fn take_prepared(&self, memory: &mut Memory, chunk: usize) -> Prepared {
        Prepared {
            x: memory.take(4 * chunk * self.plan.padded),
            tokens: memory.take(chunk * size_of::<Token>()),
            ..Prepared::default()
        }
    }

    /// Room for their bf16 images.
    pub(super) fn take_rounded(&self, memory: &mut Memory, chunk: usize, prepared: &mut Prepared) {
        prepared.rounded = memory.take(2 * chunk * self.plan.rounded);
        prepared.overflowed = memory.take(4 * (1 + chunk));
    }

    /// Room to encode them.
    pub(super) fn take_encoded(
        &self,
        memory: &mut Memory,
        chunk: usize,
        encoding: Encoding,
        prepared: &mut Prepared,
    ) -> Encoded {
        let plan = &self.plan;
        let kept = memory.take(8 * chunk * encoding.kept_stride);
        let mut encoded = Encoded {
            encoding,
            kept,
            waiting: DevicePtr::NULL,
            lower: DevicePtr::NULL,
            scores: DevicePtr::NULL,
            best: DevicePtr::NULL,
        };
        if plan.screened {
            self.take_rounded(memory, chunk, prepared);
            encoded.waiting = memory.take(8 * chunk * encoding.capacity);
            encoded.lower = memory.take(4 * chunk * encoding.capacity);
        } else {
            encoded.scores = memory.take(4 * chunk * plan.n);
            encoded.best = memory.take(8 * chunk * plan.best(&encoding));
        }
        encoded
    }

    /// Reads and normalises a chunk's tokens.
    pub(super) fn prepare(
        &self,
        call: &Call<'_>,
        input: &Input<'_>,
        rows: &Range<usize>,
        prepared: &Prepared,
    ) -> Result<()> {
        let spec = self.held.model.sae().spec();
        let params = PrepareParams {
            x: vectors(&input.x, rows.start),
            addend: input.addend.as_ref().map_or_else(Vectors::default, |addend| vectors(addend, rows.start)),
            b_dec: if spec.subtract_b_dec { self.held.model.b_dec() } else { DevicePtr::NULL },
            wanted: prepared.wanted,
            out: prepared.x,
            raw: prepared.raw,
            rounded: prepared.rounded,
            tokens: prepared.tokens,
            overflowed: prepared.overflowed,
            peaks: self.screened.filter(|_| prepared.rounded != DevicePtr::NULL).map_or(DevicePtr::NULL, |s| s.peaks),
            padded: self.plan.padded as i64,
            rounded_stride: self.plan.rounded as i64,
            rows: rows.len() as i32,
            d: spec.d_in as i32,
            normalization: normalization(spec.normalization),
            center: i32::from(spec.center),
            round_sum: i32::from(input.round_sum),
            reserved: 0,
        };
        // SAFETY: the tensors were checked, the rest was cut out of the working memory for this chunk.
        unsafe {
            if prepared.overflowed != DevicePtr::NULL {
                call.inside.fill(prepared.overflowed, 0, 1, call.stream)?;
            }
            call.launch((rows.len(), 1), 128, &params)
        }
    }

    /// Finds the keys of a chunk's tokens, strongest first, and lists them as features if any are given.
    pub(super) fn find(
        &self,
        call: &Call<'_>,
        rows: usize,
        prepared: &Prepared,
        encoded: &Encoded,
        (out, order): (params::Features, i32),
    ) -> Result<()> {
        let Encoding { gathered, kept_stride, capacity, .. } = encoded.encoding;
        let plan = &self.plan;
        let mut select = SelectParams {
            latents: self.latents,
            x: prepared.x,
            tokens: prepared.tokens,
            kept: encoded.kept,
            out,
            padded: plan.padded as i64,
            kept_stride: kept_stride as i64,
            rows: rows as i32,
            gathered: gathered as i32,
            order,
            ..SelectParams::default()
        };
        if let Some(screened) = self.screened {
            match call.fast {
                Some(screened) => self.score_fast(call, rows, prepared, encoded, &screened)?,
                None => self.bound(call, rows, prepared, encoded, &screened)?,
            }
            select.keys = encoded.waiting;
            select.keys_stride = capacity as i64;
            select.length = -(capacity as i32);
        } else {
            self.score(call, rows, prepared, own_vectors(encoded.scores, plan.n, plan.n), what::ACTIVATIONS)?;
            if plan.group > 1 {
                let groups = plan.groups();
                let best = GroupBestParams {
                    scores: encoded.scores,
                    keys: encoded.best,
                    scores_stride: plan.n as i64,
                    keys_stride: groups as i64,
                    rows: rows as i32,
                    n: plan.n as i32,
                    group: plan.group as i32,
                    first: self.latents.first,
                };
                // SAFETY: cut out of the working memory for this chunk.
                unsafe { call.launch((groups.div_ceil(256), rows), 256, &best)? };
                select.keys = encoded.best;
                select.keys_stride = groups as i64;
                select.length = groups as i32;
            } else if plan.best(&encoded.encoding) > 0 {
                let keys = plan.best(&encoded.encoding);
                let winnow = WinnowParams {
                    scores: encoded.scores,
                    keys: encoded.best,
                    tokens: prepared.tokens,
                    scores_stride: plan.n as i64,
                    keys_stride: keys as i64,
                    rows: rows as i32,
                    n: plan.n as i32,
                    first: self.latents.first,
                    gathered: gathered as i32,
                };
                // SAFETY: as above.
                unsafe { call.launch((plan.n.div_ceil(WINNOW_LATENTS), rows), 256, &winnow)? };
                select.keys = encoded.best;
                select.keys_stride = keys as i64;
                select.length = -(keys as i32);
                select.counted = 1;
            } else {
                select.scores = encoded.scores;
                select.scores_stride = plan.n as i64;
            }
        }
        // SAFETY: cut out of the working memory for this chunk; the features were checked.
        unsafe { call.launch((rows, 1), 256, &select) }
    }

    /// Scores of all latents for a chunk's tokens.
    pub(super) fn score(
        &self,
        call: &Call<'_>,
        rows: usize,
        prepared: &Prepared,
        out: Vectors,
        what: i32,
    ) -> Result<()> {
        let params = ScoreParams {
            latents: self.latents,
            x: prepared.x,
            tokens: prepared.tokens,
            out,
            padded: self.plan.padded as i64,
            rows: rows as i32,
            what,
        };
        // SAFETY: as above.
        unsafe { call.launch_score(params) }
    }

    /// What a skip path adds, `[rows, d_out]` into `out`, from the raw inputs.
    pub(super) fn skip(
        &self,
        call: &Call<'_>,
        rows: usize,
        latents: Latents,
        raw: DevicePtr,
        out: DevicePtr,
    ) -> Result<()> {
        let d_out = self.plan.d_out;
        let params = ScoreParams {
            latents,
            x: raw,
            tokens: DevicePtr::NULL,
            out: own_vectors(out, d_out, d_out),
            padded: self.plan.padded as i64,
            rows: rows as i32,
            what: what::DOTS,
        };
        // SAFETY: cut out of the working memory for this chunk.
        unsafe { call.launch_score(params) }
    }

    /// The keys of latents that may matter, found by bounds: what waits becomes keys.
    fn bound(
        &self,
        call: &Call<'_>,
        rows: usize,
        prepared: &Prepared,
        encoded: &Encoded,
        screened: &Screened,
    ) -> Result<()> {
        let (plan, capacity) = (&self.plan, encoded.encoding.capacity as i64);
        for latents in self.ranges(encoded) {
            let screen = ScreenParams {
                x: prepared.rounded,
                w: screened.w,
                bounds: screened.bounds,
                tokens: prepared.tokens,
                waiting: encoded.waiting,
                lower: encoded.lower,
                x_stride: plan.rounded as i64,
                w_stride: screened.stride as i64,
                capacity,
                rows: rows as i32,
                d: self.latents.d,
                first: latents.start as i32,
                count: latents.len() as i32,
                magnitude: i32::from(self.latents.selection == selection::ABS_TOP_K),
                reserved: 0,
            };
            // SAFETY: the weights are the model's, the rest was cut out of the working memory for this chunk.
            unsafe { call.launch_shaped(tiles(latents.len(), rows), &screen)? };
            self.tighten(call, rows, prepared, encoded)?;
        }
        let rescore = RescoreParams {
            latents: self.latents,
            x: prepared.x,
            tokens: prepared.tokens,
            waiting: encoded.waiting,
            lower: encoded.lower,
            padded: plan.padded as i64,
            capacity,
            rows: rows as i32,
            reserved: 0,
        };
        let blocks = (blocks_at_once(call) / rows).clamp(1, RESCORE_BLOCKS);
        // SAFETY: as above.
        unsafe { call.launch((rows, blocks), 256, &rescore)? };
        self.score_overflowed(call, rows, prepared, encoded)
    }

    /// The keys of latents that may matter by scores that are bf16 products: what waits are keys.
    fn score_fast(
        &self,
        call: &Call<'_>,
        rows: usize,
        prepared: &Prepared,
        encoded: &Encoded,
        screened: &Screened,
    ) -> Result<()> {
        for latents in self.ranges(encoded) {
            let fast = FastParams {
                latents: self.latents,
                x: prepared.rounded,
                w: screened.w,
                tokens: prepared.tokens,
                waiting: encoded.waiting,
                lower: encoded.lower,
                x_stride: self.plan.rounded as i64,
                w_stride: screened.stride as i64,
                capacity: encoded.encoding.capacity as i64,
                rows: rows as i32,
                first: latents.start as i32,
                count: latents.len() as i32,
                reserved: 0,
            };
            // SAFETY: the weights are the model's, the rest was cut out of the working memory for this chunk.
            unsafe { call.launch_shaped(tiles(latents.len(), rows), &fast)? };
            self.tighten(call, rows, prepared, encoded)?;
        }
        self.score_overflowed(call, rows, prepared, encoded)
    }

    /// Such scores of all latents for a chunk's tokens.
    pub(super) fn product(
        &self,
        call: &Call<'_>,
        rows: usize,
        prepared: &Prepared,
        screened: &Screened,
        (out, what): (Vectors, i32),
    ) -> Result<()> {
        let params = ProductParams {
            latents: self.latents,
            x: prepared.rounded,
            w: screened.w,
            tokens: prepared.tokens,
            out,
            x_stride: self.plan.rounded as i64,
            w_stride: screened.stride as i64,
            rows: rows as i32,
            what,
        };
        // SAFETY: as above; the tensor was checked.
        unsafe { call.launch_shaped(tiles(self.plan.n, rows), &params) }
    }

    fn ranges(&self, encoded: &Encoded) -> impl Iterator<Item = Range<usize>> + use<> {
        ranges(self.plan.n, self.plan.k.map(|_| encoded.encoding.capacity))
    }

    /// Between two ranges of latents: lists become as short as they can.
    fn tighten(&self, call: &Call<'_>, rows: usize, prepared: &Prepared, encoded: &Encoded) -> Result<()> {
        let params = TightenParams {
            tokens: prepared.tokens,
            waiting: encoded.waiting,
            lower: encoded.lower,
            overflowed: prepared.overflowed,
            capacity: encoded.encoding.capacity as i64,
            rows: rows as i32,
            k: self.plan.k.map_or(0, |k| k.min(self.plan.n)) as i32,
        };
        // SAFETY: cut out of the working memory for this chunk.
        unsafe { call.launch((rows, 1), 256, &params) }
    }

    /// The keys of tokens whose lists were too short.
    fn score_overflowed(&self, call: &Call<'_>, rows: usize, prepared: &Prepared, encoded: &Encoded) -> Result<()> {
        let (plan, Encoding { gathered, capacity, .. }) = (&self.plan, encoded.encoding);
        let ranges = encoded.encoding.ranges(plan.n);
        let params = ExactParams {
            latents: self.latents,
            x: prepared.x,
            tokens: prepared.tokens,
            waiting: encoded.waiting,
            overflowed: prepared.overflowed,
            padded: plan.padded as i64,
            capacity: capacity as i64,
            gathered: gathered as i32,
            ranges: ranges as i32,
        };
        let together = if gathered <= EXACT_KEYS { EXACT_TOKENS } else { 1 };
        let blocks = (rows.div_ceil(together) * ranges).min(blocks_at_once(call));
        // SAFETY: as above.
        unsafe { call.launch((blocks, 1), 256, &params) }
    }
}

/// The shape of a launch in which each block multiplies a tile.
fn tiles(latents: usize, rows: usize) -> Shape {
    let blocks = latents.div_ceil(SCREEN_LATENTS) * rows.div_ceil(SCREEN_TOKENS);
    Shape { grid: (blocks as u32, 1), block: 256, shared: SCREEN_SHARED }
}

fn blocks_at_once(call: &Call<'_>) -> usize {
    call.inside.facts().multiprocessors as usize * BLOCKS_AT_ONCE
}

/// Blocks of 256 threads that a multiprocessor runs at once, with the registers that scores take.
const BLOCKS_AT_ONCE: usize = 2;

/// Blocks at most that share the exact scores of one token.
const RESCORE_BLOCKS: usize = 32;

/// In which parts latents are gone through: where they compete, the first are as many as may wait, and each further part is
/// twice what came before, so that of each about as many are likely to wait as are wanted twice over.
fn ranges(n: usize, first: Option<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    std::iter::from_fn(move || {
        let start = end;
        end = match first {
            None => n,
            Some(first) if start == 0 => n.min(first),
            Some(_) => n.min(start.saturating_mul(3).next_multiple_of(SCREEN_LATENTS)),
        };
        (start < n).then_some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_all_latents_once_and_grow() {
        for (n, first) in
            [(1, Some(1152)), (5000, Some(1152)), (70_000, Some(1152)), (70_000, None), (2304, Some(1152))]
        {
            let found: Vec<_> = ranges(n, first).collect();
            assert!(found[0].start == 0 && found.last().is_some_and(|last| last.end == n));
            assert!(found.windows(2).all(|pair| pair[0].end == pair[1].start && pair[1].start % SCREEN_LATENTS == 0));
            assert!(first.is_none_or(|first| found[0].len() <= first) && found.len() <= 5, "{found:?}");
        }
    }

    #[test]
    fn chunks_cover_all_rows_once() {
        assert_eq!(chunks(7, 3).collect::<Vec<_>>(), [0..3, 3..6, 6..7]);
        assert_eq!(chunks(0, 3).count(), 0);
    }
}
