//! Ranks that hold other latents of the same tokens: which of all latents are active is decided together, and what is left
//! over is known to all. What ranks exchange for a token is `k` keys, and as many numbers as it is wide.

use super::activation::Activation;
use super::codes::{Codes, spans};
use super::forward::{Problem, Reconstruction};
use super::levels::Levels;
use crate::backend::cpu::blocks::{blocks, for_each};
use crate::backend::cpu::encode::Workers;
use crate::backend::cpu::select::Key;
use crate::backend::training::{BatchSums, Penalty, TrainingShape};
use crate::collective::{Axis, Ranks};
use crate::error::{Result, fail};
use crate::tensor::Array;

/// Keys of all ranks that are brought together at once.
const KEYS: usize = 1 << 20;

/// The other ranks, and memory for what they tell.
pub(super) struct Peers {
    pub ranks: Ranks,
    first_latent: usize,
    /// Rows of the batch that ranks before this one have.
    first_row: usize,
    mine: Array<Key>,
    all: Array<Key>,
}

impl Peers {
    /// For up to so many rows at once, up to `width` latents of each.
    pub(super) fn new(ranks: Ranks, shape: &TrainingShape, rows: usize, width: usize) -> Result<Self> {
        let count = ranks.count(Axis::Latents);
        let keys = if count > 1 { rows.saturating_mul(width).min((KEYS / count).max(width)) } else { 0 };
        let all = Array::zeroed(keys.saturating_mul(count))?;
        Ok(Self { ranks, first_latent: shape.first_latent, first_row: 0, mine: Array::zeroed(keys)?, all })
    }

    /// Rows whose keys are brought together at once: as many on all ranks, whatever there is memory for.
    fn rows_at_once(count: usize, width: usize) -> usize {
        (KEYS / count.saturating_mul(width).max(1)).max(1)
    }

    /// From what each rank read of its batch to what all have; refuses where ranks that hold different latents read different
    /// rows. All ranks come to the same.
    pub(super) fn meet(&mut self, sums: &mut BatchSums, rows: &[&[f32]]) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(());
        }
        let BatchSums { tokens, tokens_masked, tokens_not_finite, .. } = *sums;
        let all = self.ranks.gather_all([
            tokens as u64,
            tokens_masked as u64,
            tokens_not_finite as u64,
            if self.ranks.count(Axis::Latents) > 1 { fingerprint(rows) } else { 0 },
        ])?;
        let mut total = [0; 3];
        for (row, ranks) in all.chunks(self.ranks.count(Axis::Latents)).enumerate() {
            if let Some(other) = ranks.iter().position(|rank| *rank != ranks[0]) {
                let first = row * ranks.len();
                return fail!(
                    InvalidTensor,
                    "batch: rank {} was given other rows than rank {first}, which holds other latents; both need the same",
                    first + other
                );
            }
            if row == self.ranks.place(Axis::Data) {
                self.first_row = total[0];
            }
            total.iter_mut().zip(ranks[0]).for_each(|(total, count)| *total += count as usize);
        }
        [sums.tokens, sums.tokens_masked, sums.tokens_not_finite] = total;
        Ok(())
    }

    /// [`Reconstruction::fit`], of the latents of all ranks; `width` of each row at most are active where latents compete.
    pub(super) fn fit(
        &mut self,
        workers: &Workers<'_>,
        problem: &Problem<'_>,
        width: usize,
        main: &mut Reconstruction,
    ) -> Result<()> {
        if self.ranks.count(Axis::Latents) == 1 {
            main.fit(workers, problem, width);
            return Ok(());
        }
        main.encode_only(workers, problem, width);
        if problem.encoder.selection.k().is_some() {
            self.compete(workers, main.codes_mut(), width, problem.levels)?;
        }
        self.explain(workers, problem, main)
    }

    /// [`Reconstruction::explain`], by the codes of all ranks.
    pub(super) fn explain(
        &self,
        workers: &Workers<'_>,
        problem: &Problem<'_>,
        main: &mut Reconstruction,
    ) -> Result<()> {
        if self.ranks.count(Axis::Latents) == 1 {
            main.explain(workers, problem);
            return Ok(());
        }
        let place = self.ranks.place(Axis::Latents);
        main.begin(workers, problem, place == 0);
        self.ranks.sum(Axis::Latents, main.partial(problem.levels))?;
        let together = matches!(problem.activation, Activation::JumpRelu { rule, .. }
            if matches!(rule.penalty, Penalty::Quadratic { .. }));
        if together {
            let mut l0: Vec<f32> = main.active().map(|active| active as f32).collect();
            self.ranks.sum(Axis::Latents, &mut l0)?;
            main.set_l0(&l0);
        }
        main.finish(workers, problem);
        if together && place > 0 {
            main.forget_penalties();
        }
        Ok(())
    }

    /// Of the `width` largest scores of each rank, keeps those that are among the `width` largest of all: by value, and of
    /// equals by the lower latent. What is larger here than a row's `width` largest need not be known.
    fn compete(&mut self, workers: &Workers<'_>, codes: &mut Codes, width: usize, levels: Levels<'_>) -> Result<()> {
        let count = self.ranks.count(Axis::Latents);
        let at_once = Self::rows_at_once(count, width);
        for first in (0..codes.rows).step_by(at_once) {
            let rows = at_once.min(codes.rows - first);
            let (mine, all) = (&mut self.mine[..rows * width], &mut self.all[..rows * width * count]);
            let first_latent = self.first_latent;
            let key_of = |latent: u32, value: f32| Key::new(value, (first_latent + latent as usize) as i32);
            // No latent has the key of zero bits.
            mine.fill(bytemuck::Zeroable::zeroed());
            for (row, keys) in mine.chunks_exact_mut(width).enumerate() {
                let start = codes.starts[first + row] as usize;
                let slots = start..start + codes.counts[first + row] as usize;
                let scores = codes.indices[slots.clone()].iter().zip(&codes.values[slots]);
                keys.iter_mut().zip(scores).for_each(|(key, (&latent, &value))| *key = key_of(latent, value));
            }
            self.ranks.gather(Axis::Latents, mine, all)?;
            let all = &*all;
            let Codes { starts, counts, indices, values, firsts, .. } = &mut *codes;
            let starts = &starts[first..=first + rows];
            let parts = (
                blocks(&mut counts[first..first + rows], 1),
                (spans(indices, starts, 1), spans(values, starts, 1)),
                blocks(&mut firsts[first..first + rows], 1),
            );
            for_each(workers.pool, parts, |row, (count, (indices, values), firsts)| {
                let ranks = all.chunks_exact(rows * width);
                let mut keys: Vec<Key> =
                    ranks.flat_map(|keys| &keys[row * width..(row + 1) * width]).copied().collect();
                let (_, &mut least, _) = keys.select_nth_unstable_by(width - 1, |a, b| b.cmp(a));
                let least_first = match levels {
                    Levels::ByRank(k) if k < width => {
                        let (_, &mut least, _) = keys[..width].select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
                        least
                    }
                    _ => least,
                };
                let (mut kept, mut among_first) = (0, 0);
                for slot in 0..count[0] as usize {
                    let key = key_of(indices[slot], values[slot]);
                    if key >= least {
                        (indices[kept], values[kept]) = (indices[slot], values[slot]);
                        kept += 1;
                        among_first += u32::from(key >= least_first);
                    }
                }
                (count[0], firsts[0]) = (kept as u32, among_first);
            });
        }
        Ok(())
    }
}

/// What ranks decide together where latents of a whole batch compete.
impl Peers {
    /// The sum over all ranks.
    pub(super) fn sum(&self, count: usize) -> Result<usize> {
        let mut sum = [count as u64];
        self.sum_all(&mut sum)?;
        Ok(sum[0] as usize)
    }

    /// The least positive number of all ranks.
    pub(super) fn least(&self, own: Option<f32>) -> Result<Option<f32>> {
        // They order as their bits do.
        let mut bits = [own.map_or(u64::from(u32::MAX), |own| u64::from(own.to_bits()))];
        self.ranks.min(Axis::Latents, &mut bits)?;
        self.ranks.min(Axis::Data, &mut bits)?;
        Ok((bits[0] < u64::from(u32::MAX)).then(|| f32::from_bits(bits[0] as u32)))
    }

    /// A row and latent here, the one above the other, as those of the whole batch and SAE.
    pub(super) fn place_of(&self, place: u64) -> u64 {
        place + ((self.first_row as u64) << 32) + self.first_latent as u64
    }

    /// Of the keys of all ranks, which have so many bytes, the one in place `n` (from 1, at most as many as there are) in
    /// rising order, and how many are below it. A byte at a time, ranks tell how many keys go on with each.
    pub(super) fn nth(&self, keys: &(impl Iterator<Item = u64> + Clone), bytes: u32, n: usize) -> Result<(u64, usize)> {
        let (mut prefix, mut left) = (0u64, n as u64);
        for shift in (0..bytes).rev().map(|byte| 8 * byte) {
            let mut counts = [0u64; 256];
            let above = |key: u64| key.checked_shr(shift + 8).unwrap_or(0);
            for key in keys.clone().filter(|key| above(*key) == prefix) {
                counts[(key >> shift & 0xFF) as usize] += 1;
            }
            self.sum_all(&mut counts)?;
            let mut byte = 0;
            while byte < 255 && counts[byte] < left {
                left -= counts[byte];
                byte += 1;
            }
            prefix = prefix << 8 | byte as u64;
        }
        Ok((prefix, n - left as usize))
    }

    fn sum_all(&self, counts: &mut [u64]) -> Result<()> {
        self.ranks.sum_u64(Axis::Latents, counts)?;
        self.ranks.sum_u64(Axis::Data, counts)
    }
}

/// What tells rows apart that should be the same.
fn fingerprint(rows: &[&[f32]]) -> u64 {
    let numbers = rows.iter().flat_map(|rows| rows.iter());
    numbers.fold(0, |hash: u64, v| (hash ^ u64::from(v.to_bits())).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29))
}
