//! The encoder: scores of a tile of tokens against a block of latents at a time, of which only what can still be among
//! the wanted is kept. Nothing of size [T, n] exists.

use std::ops::Range;

use super::Kernels;
use super::encoder::Encoder;
use super::kernels::int8::Token;
use super::prepare::Prepared;
use super::scratch::{BLOCK, DENSE_ROWS, RowScratch, Scratch, Slots, TILE_ROWS};
use super::screen::screen_tile;
use super::select::{Kept, Key, Largest, capacity, sort};
use crate::backend::{Order, Pool, Wanted};
use crate::sae::int8::PANEL;

/// A token, encoded.
pub(crate) struct Encoded<'a> {
    /// Its number.
    pub row: usize,
    /// What preparing it gave.
    pub prepared: Prepared,
    /// Its strongest active latents, as many as were asked for, in order.
    pub keys: &'a mut [Key],
    /// How many are active in all.
    pub active: usize,
}

impl Encoded<'_> {
    /// The activation of a latent, 0 if it is not active, NaN if the token is not finite.
    pub(crate) fn activation(&self, feature: i32) -> f32 {
        if self.prepared == Prepared::NotFinite {
            return f32::NAN;
        }
        self.keys.iter().find(|key| key.index() == feature).map_or(0.0, |key| key.value())
    }
}

/// Who computes, and where.
#[derive(Clone, Copy)]
pub(crate) struct Workers<'a> {
    pub kernels: Kernels,
    pub pool: &'a Pool,
    pub slots: &'a Slots<'a>,
}

/// See [`Job::prepare`].
pub(crate) type Prepare<'a> = &'a (dyn Fn(usize, &mut [f32], &mut [f32]) -> Prepared + Sync);

/// What to encode and how much to keep.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub encoder: Encoder<'a>,
    /// Tokens.
    pub rows: usize,
    /// Keys kept per token.
    pub limit: usize,
    pub order: Order,
    /// Fills in the vector of a token. The second slice is scratch of the same length.
    pub prepare: Prepare<'a>,
}

impl Job<'_> {
    /// Keys gathered per token: all that win where they win by something else than their values, and where latents that
    /// cannot win are not even counted.
    pub(crate) fn gathered(&self) -> usize {
        let competing = self.encoder.int8.is_some() && self.encoder.selection.k().is_some();
        if competing || self.encoder.rank_scale.is_some() { self.encoder.limit(usize::MAX) } else { self.limit }
    }
}

/// Encodes all tokens and gives each to `sink` once, on whatever thread.
pub(crate) fn encode(workers: &Workers<'_>, job: &Job<'_>, sink: &(dyn Fn(Encoded<'_>, &mut RowScratch<'_>) + Sync)) {
    let threads = workers.pool.threads().min(workers.slots.len());
    let tiles = job.rows.div_ceil(workers.slots.plan().tile_rows(job.gathered()));
    if tiles == 1 && threads > 1 {
        return encode_split(workers, job, threads, sink);
    }
    // As many equal tiles for each thread.
    let tile_rows = job.rows.div_ceil(tiles.next_multiple_of(threads).max(1)).max(1);
    workers.pool.run_ranges(job.rows.div_ceil(tile_rows), &|slot, tiles| {
        // SAFETY: no two ranges run with the same slot at once.
        let mut scratch = unsafe { workers.slots.get(slot) };
        for tile in tiles {
            let rows = tile * tile_rows..((tile + 1) * tile_rows).min(job.rows);
            let mut state = TileState::default();
            prepare_tile(job, rows.clone(), &mut state, &mut scratch);
            score_tile(workers.kernels, job, rows.len(), 0..job.encoder.n(), &mut state, &mut scratch);
            finish_tile(workers.kernels, job, rows, &mut state, &mut scratch, sink);
        }
    });
}

/// A single tile's latents are split among the threads, and their findings merged.
fn encode_split(
    workers: &Workers<'_>,
    job: &Job<'_>,
    splits: usize,
    sink: &(dyn Fn(Encoded<'_>, &mut RowScratch<'_>) + Sync),
) {
    let group = if job.encoder.int8.is_some() { PANEL } else { job.encoder.selection.group() };
    let groups = job.encoder.n().div_ceil(group);
    let capacity = capacity(job.gathered());
    workers.pool.run(splits, &|split| {
        // SAFETY: each split's number is given once.
        let mut scratch = unsafe { workers.slots.get(split) };
        let mut state = TileState::default();
        prepare_tile(job, 0..job.rows, &mut state, &mut scratch);
        let end = groups * (split + 1) / splits * group;
        let latents = groups * split / splits * group..end.min(job.encoder.n());
        score_tile(workers.kernels, job, job.rows, latents, &mut state, &mut scratch);
        // The findings stay in the slot: up to `limit` keys per row, and their number in the place of the last key.
        for row in 0..job.rows {
            let keys = &mut scratch.keys[row * capacity..(row + 1) * capacity];
            let found = Largest::new(keys, &mut state.kept[row], job.gathered()).finish().len();
            keys[capacity - 1] = Key::count(found, state.candidates[row]);
        }
    });
    // SAFETY: the first pass is over, and this thread alone goes on.
    let mut scratch = unsafe { workers.slots.get(0) };
    let mut state = TileState::default();
    prepare_tile(job, 0..job.rows, &mut state, &mut scratch);
    for row in 0..job.rows {
        let (found, candidates) = scratch.keys[(row + 1) * capacity - 1].as_count();
        state.kept[row] = Kept::filled(found);
        state.candidates[row] = candidates;
    }
    for split in 1..splits {
        // SAFETY: as above, and it is another slot than the first.
        let other = unsafe { workers.slots.get(split) };
        for row in 0..job.rows {
            let span = row * capacity..(row + 1) * capacity;
            let (found, candidates) = other.keys[span.end - 1].as_count();
            let mut largest = Largest::new(&mut scratch.keys[span.clone()], &mut state.kept[row], job.gathered());
            other.keys[span][..found].iter().for_each(|&key| largest.push(key));
            state.candidates[row] += candidates;
        }
    }
    finish_tile(workers.kernels, job, 0..job.rows, &mut state, &mut scratch, sink);
}

/// How far the tokens of a tile have come.
pub(crate) struct TileState {
    pub prepared: [Prepared; TILE_ROWS],
    pub kept: [Kept; TILE_ROWS],
    /// How many latents, or groups of them, can be active.
    pub candidates: [usize; TILE_ROWS],
    /// Of a group that is not yet complete, the strongest so far.
    best: [Option<Key>; TILE_ROWS],
    /// What bounds need to know.
    pub tokens: [Token; TILE_ROWS],
    /// How many latents wait to be scored exactly.
    pub waiting: [usize; TILE_ROWS],
    /// How many may, before they are gone through.
    pub due: [usize; TILE_ROWS],
}

impl Default for TileState {
    fn default() -> Self {
        Self {
            prepared: [Prepared::NotFinite; TILE_ROWS],
            kept: [Kept::default(); TILE_ROWS],
            candidates: [0; TILE_ROWS],
            best: [None; TILE_ROWS],
            tokens: [Token::default(); TILE_ROWS],
            waiting: [0; TILE_ROWS],
            due: [0; TILE_ROWS],
        }
    }
}

fn prepare_tile(job: &Job<'_>, rows: Range<usize>, state: &mut TileState, scratch: &mut Scratch<'_>) {
    let d = job.encoder.d();
    for (i, row) in rows.enumerate() {
        let x = &mut scratch.x[i * d..(i + 1) * d];
        state.prepared[i] = (job.prepare)(row, x, &mut scratch.row.raw[..d]);
        if state.prepared[i] == Prepared::NotFinite {
            x.fill(0.0);
        }
    }
}

fn score_tile(
    kernels: Kernels,
    job: &Job<'_>,
    rows: usize,
    mut latents: Range<usize>,
    state: &mut TileState,
    scratch: &mut Scratch<'_>,
) {
    if let Some(int8) = job.encoder.int8 {
        latents.start += screen_tile(kernels, job, int8, rows, latents.clone(), state, scratch);
    }
    for first in (0..rows).step_by(DENSE_ROWS) {
        let rows = first..rows.min(first + DENSE_ROWS);
        score_rows(kernels, job, rows, latents.clone(), state, scratch);
    }
}

fn score_rows(
    kernels: Kernels,
    job: &Job<'_>,
    rows: Range<usize>,
    latents: Range<usize>,
    state: &mut TileState,
    scratch: &mut Scratch<'_>,
) {
    let encoder = &job.encoder;
    let (group, capacity) = (encoder.selection.group(), capacity(job.gathered()));
    for first in latents.clone().step_by(BLOCK) {
        let count = BLOCK.min(latents.end - first);
        encoder.score(kernels, first..first + count, rows.clone(), Wanted::Activations, scratch);
        for (row, scores) in rows.clone().zip(scratch.scores[..rows.len() * count].chunks_exact(count)) {
            let keys = &mut scratch.keys[row * capacity..(row + 1) * capacity];
            let mut largest = Largest::new(keys, &mut state.kept[row], job.gathered());
            let index = encoder.first_latent + first;
            state.candidates[row] += match group {
                1 => gather(scores, index, &mut largest),
                size => gather_groups(scores, index, size, &mut state.best[row], &mut largest),
            };
        }
    }
}

/// Takes the scores of neighbouring latents, of which the first is `index`; tells how many are candidates.
fn gather(scores: &[f32], index: usize, largest: &mut Largest<'_>) -> usize {
    for (c, &score) in scores.iter().enumerate() {
        // Equal to the floor is not enough: indices ascend, and ties go to the lower.
        if score.abs() > largest.floor() {
            largest.push(Key::new(score, (index + c) as i32));
        }
    }
    scores.iter().filter(|score| **score != 0.0).count()
}

/// [`gather`], of the largest of each group; `best` is what was found of a group that began before.
fn gather_groups(
    scores: &[f32],
    index: usize,
    size: usize,
    best: &mut Option<Key>,
    largest: &mut Largest<'_>,
) -> usize {
    let (mut rest, mut index, mut candidates) = (scores, index, 0);
    while !rest.is_empty() {
        let missing = size - index % size;
        let (part, after) = rest.split_at(missing.min(rest.len()));
        for (i, &score) in (index..).zip(part) {
            if score > best.map_or(0.0, Key::value) {
                *best = Some(Key::new(score, i as i32));
            }
        }
        if part.len() == missing
            && let Some(key) = best.take()
        {
            candidates += 1;
            if key.value() > largest.floor() {
                largest.push(key);
            }
        }
        (rest, index) = (after, index + part.len());
    }
    candidates
}

fn finish_tile(
    kernels: Kernels,
    job: &Job<'_>,
    rows: Range<usize>,
    state: &mut TileState,
    scratch: &mut Scratch<'_>,
    sink: &(dyn Fn(Encoded<'_>, &mut RowScratch<'_>) + Sync),
) {
    let (d, capacity) = (job.encoder.d(), capacity(job.gathered()));
    for (i, row) in rows.enumerate() {
        let keys = &mut scratch.keys[i * capacity..(i + 1) * capacity];
        let mut keys = Largest::new(keys, &mut state.kept[i], job.gathered()).finish();
        if job.gathered() > job.limit || job.encoder.rank_scale.is_some() {
            if job.encoder.rank_scale.is_some() {
                let x = &scratch.x[i * d..(i + 1) * d];
                keys.iter_mut().for_each(|key| *key = job.encoder.unranked(kernels, *key, x));
            }
            sort(keys, Order::Value);
            let limit = keys.len().min(job.limit);
            keys = &mut keys[..limit];
        }
        let prepared = state.prepared[i];
        let finite = prepared != Prepared::NotFinite;
        sort(keys, job.order);
        let encoded = Encoded {
            row,
            prepared,
            keys: if finite { keys } else { &mut [] },
            active: if finite { job.encoder.active(state.candidates[i]) } else { 0 },
        };
        sink(encoded, &mut scratch.row);
    }
}
