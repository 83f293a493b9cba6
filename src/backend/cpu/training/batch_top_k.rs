//! The `k · T` largest scores of a batch.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::codes::Codes;
use super::forward::as_given;
use super::peers::Peers;
use crate::backend::Order;
use crate::backend::cpu::encode::{Job, Workers, encode};
use crate::backend::cpu::encoder::Encoder;
use crate::backend::cpu::select::Selection;
use crate::error::Result;
use crate::tensor::Array;

/// What the smallest kept score of a batch is multiplied by to guess which scores of the next cannot matter.
const GUESS: f32 = 0.9;

/// Of each row so many times as many scores are looked at as rows keep on average: lists of all would leave room for few rows
/// in a tile. Should a row keep that many, all are looked at.
const SHARE: usize = 8;

/// A score of the batch.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Candidate {
    /// The row above, the latent below.
    place: u64,
    score: f32,
    unused: u32,
}

/// Memory for the largest scores of a batch.
pub(super) struct Selector {
    candidates: Array<Candidate>,
    /// `[n]`: what scores must exceed to be looked at.
    floors: Array<f32>,
}

impl Selector {
    /// To keep up to `most` scores.
    pub(super) fn new(most: usize, n_latents: usize) -> Result<Self> {
        // Room to gather as many again before the smaller half is dropped.
        Ok(Self { candidates: Array::zeroed(most.saturating_mul(2))?, floors: Array::zeroed(n_latents)? })
    }

    /// Makes codes of the `kept` largest positive scores of all ranks, as far as they are of this one; of equals those of
    /// earlier rows win, then of lower latents. Gives the smallest of them, if there are any.
    pub(super) fn select(
        &mut self,
        workers: &Workers<'_>,
        encoder: &Encoder<'_>,
        inputs: &[f32],
        kept: usize,
        codes: &mut Codes,
        peers: &Peers,
    ) -> Result<Option<f32>> {
        let encoder = Encoder { selection: Selection::All, ..*encoder };
        // What is surely too small is not even gathered. Should the guess prove too high, nothing is taken for granted.
        let guess = self.floors[0];
        let Self { candidates, floors } = self;
        let (n, rows) = (floors.len(), inputs.len() / encoder.d());
        let some = (SHARE * kept / rows.max(1)).min(n);
        let guessed = Encoder { threshold: Some(floors), ..encoder };
        let whole = Encoder { int8: None, ..encoder };
        let mut gather = |encoder, limit| gather(workers, encoder, inputs, (kept, limit), candidates);
        let of_guess = (guess > 0.0).then(|| gather(&guessed, some)).filter(Gathered::is_sure);
        // What one rank must look at anew, all do.
        let unsure = peers.sum(usize::from(of_guess.is_none()))?;
        let enough = peers.sum(of_guess.as_ref().map_or(0, |found| found.len))? >= kept;
        let of_guess = of_guess.filter(|_| unsure == 0 && enough);
        let mut anew = || [some, n].into_iter().map(|limit| gather(&whole, limit)).find(Gathered::is_sure);
        let found = of_guess.or_else(&mut anew).unwrap_or_default().len;
        let (found, all) = keep_largest(&mut candidates[..found], kept, peers)?;
        let winners = &mut candidates[..found];
        let smallest = peers.least(winners.iter().map(|candidate| candidate.score).min_by(f32::total_cmp))?;
        winners.sort_unstable_by_key(|candidate| candidate.place);
        floors.fill(smallest.filter(|_| all == kept).map_or(0.0, |smallest| GUESS * smallest));
        list(winners, rows, codes);
        Ok(smallest)
    }
}

/// Brings those candidates to the front that are among the `kept` largest of all ranks; tells how many, and how many all
/// ranks have.
fn keep_largest(candidates: &mut [Candidate], kept: usize, peers: &Peers) -> Result<(usize, usize)> {
    let all = peers.sum(candidates.len())?;
    if all <= kept || kept == 0 {
        return Ok((candidates.len().min(kept), all.min(kept)));
    }
    // Positive numbers order as their bits do. Places are of all ranks' rows and latents.
    let by_score = |candidate: &Candidate| u64::from(!candidate.score.to_bits());
    let by_place = |candidate: &Candidate| peers.place_of(candidate.place);
    let (last, before) = peers.nth(&candidates.iter().map(by_score), 4, kept)?;
    let equals = candidates.iter().filter(|candidate| by_score(candidate) == last);
    let (last_place, _) = peers.nth(&equals.map(by_place), 8, kept - before)?;
    let mut count = 0;
    for i in 0..candidates.len() {
        let score = by_score(&candidates[i]);
        if score < last || score == last && by_place(&candidates[i]) <= last_place {
            candidates.swap(count, i);
            count += 1;
        }
    }
    Ok((count, kept))
}

/// What was brought together.
#[derive(Default)]
struct Gathered {
    len: usize,
    /// The smallest of them.
    smallest: Option<f32>,
    /// What rows had beyond their limit is not above this.
    cut: Option<f32>,
    full: bool,
}

impl Gathered {
    /// Whether nothing is missing that belongs to the largest.
    fn is_sure(&self) -> bool {
        self.cut.is_none_or(|cut| self.full && self.smallest.is_some_and(|smallest| cut < smallest))
    }
}

/// Brings the `kept` largest scores together, in no order, of each row those of at most `limit`.
fn gather(
    workers: &Workers<'_>,
    encoder: &Encoder<'_>,
    inputs: &[f32],
    (kept, limit): (usize, usize),
    candidates: &mut [Candidate],
) -> Gathered {
    let d = encoder.d();
    let largest = Mutex::new(Largest { candidates: &mut *candidates, len: 0, kept, floor: 0.0 });
    // Scores are positive, and so in the order of their bits.
    let cut = AtomicU32::new(0);
    let prepare = as_given(inputs, d);
    let job = Job { encoder: *encoder, rows: inputs.len() / d, limit, order: Order::Index, prepare: &prepare };
    encode(workers, &job, &|encoded, _| {
        if encoded.active > encoded.keys.len() {
            let least = encoded.keys.iter().map(|key| key.value().to_bits()).min();
            cut.fetch_max(least.unwrap_or(0), Ordering::Relaxed);
        }
        let mut largest = largest.lock().unwrap_or_else(PoisonError::into_inner);
        for key in encoded.keys.iter() {
            let place = (encoded.row as u64) << 32 | key.index() as u64;
            largest.push(Candidate { place, score: key.value(), unused: 0 });
        }
    });
    let mut largest = largest.into_inner().unwrap_or_else(PoisonError::into_inner);
    largest.sweep();
    let len = largest.len;
    let smallest = candidates[..len].iter().map(|candidate| candidate.score).min_by(f32::total_cmp);
    let cut = Some(f32::from_bits(cut.into_inner())).filter(|cut| *cut > 0.0);
    Gathered { len, smallest, cut, full: len == kept }
}

/// The largest of a stream. They do not depend on its order.
struct Largest<'a> {
    candidates: &'a mut [Candidate],
    len: usize,
    kept: usize,
    /// Smaller scores are not among them.
    floor: f32,
}

impl Largest<'_> {
    fn push(&mut self, candidate: Candidate) {
        if candidate.score < self.floor {
            return;
        }
        if self.len == self.candidates.len() {
            self.sweep();
        }
        self.candidates[self.len] = candidate;
        self.len += 1;
    }

    /// Drops all but the largest.
    fn sweep(&mut self) {
        if self.len > self.kept {
            let all = &mut self.candidates[..self.len];
            let order = |a: &Candidate, b: &Candidate| b.score.total_cmp(&a.score).then(a.place.cmp(&b.place));
            let (_, last, _) = all.select_nth_unstable_by(self.kept - 1, order);
            self.floor = last.score;
            self.len = self.kept;
        }
    }
}

/// Candidates in the order of their places, as codes.
fn list(winners: &[Candidate], rows: usize, codes: &mut Codes) {
    codes.rows = rows;
    codes.counts[..rows].fill(0);
    for (slot, winner) in winners.iter().enumerate() {
        codes.counts[(winner.place >> 32) as usize] += 1;
        (codes.indices[slot], codes.values[slot]) = (winner.place as u32, winner.score);
    }
    let mut end = 0;
    for row in 0..rows {
        codes.starts[row] = end;
        end += codes.counts[row];
    }
    codes.starts[rows] = end;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Pool;
    use crate::backend::cpu::Kernels;
    use crate::backend::cpu::rows::Rows;
    use crate::backend::cpu::scratch::{Plan, Slots};
    use crate::backend::training::TrainingShape;
    use crate::collective::Ranks;
    use crate::tensor::AlignedBytes;

    /// Numbers that look random, few of them different, so that scores tie within and between rows.
    fn numbers(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1013 % 5) as f32 - 2.0).collect()
    }

    #[test]
    fn the_largest_of_a_batch_are_those_of_a_sort() {
        let (d, n, k, most) = (3, 37, 4, 29);
        let (w_enc, b_enc) = (numbers(1, n * d), vec![0.25; n]);
        let encoder = Encoder::top_k(Rows::F32 { values: &w_enc, d }, &b_enc, k);
        let kernels = Kernels::best().unwrap();
        for threads in [1, 3] {
            let pool = Pool::new(threads).unwrap();
            let plan = Plan { d, limit: n, width: 0, tokens: most, screen: None };
            let mut memory = AlignedBytes::zeroed(plan.bytes() * threads).unwrap();
            let mut selector = Selector::new(most * k, n).unwrap();
            let mut codes = Codes::new(most, k, 0).unwrap();
            let peers = Peers::new(Ranks::alone(), &TrainingShape::top_k(k, d, n), most, k).unwrap();
            // The guesses of large batches are too high for those that follow them, and for those with few positive scores.
            for (round, (rows, scale)) in
                [(29, 1.0), (29, 100.0), (5, 0.01), (1, 1.0), (29, -1.0), (7, 0.0), (29, 3.0)].into_iter().enumerate()
            {
                let inputs: Vec<f32> = numbers(round + 2, rows * d).iter().map(|v| v * scale).collect();
                let mut all: Vec<(f32, usize, usize)> = Vec::new();
                for (row, x) in inputs.chunks(d).enumerate() {
                    for (i, w) in w_enc.chunks(d).enumerate() {
                        all.push((kernels.dot(w, x) + b_enc[i], row, i));
                    }
                }
                all.retain(|(score, ..)| *score > 0.0);
                all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
                all.truncate(k * rows);
                let smallest = all.last().map(|(score, ..)| *score);
                all.sort_by_key(|&(_, row, i)| (row, i));

                let slots = Slots::new(memory.as_mut_slice(), plan);
                let workers = Workers { kernels, pool: &pool, slots: &slots };
                let selected = selector.select(&workers, &encoder, &inputs, k * rows, &mut codes, &peers);
                assert_eq!(selected.unwrap(), smallest, "{round}");
                let found = codes.used().flat_map(|(row, slots)| slots.map(move |slot| (row, slot)));
                let found: Vec<_> =
                    found.map(|(row, slot)| (codes.values[slot], row, codes.indices[slot] as usize)).collect();
                assert_eq!(found, all, "{round}, {threads} threads");
            }
        }
    }
}
