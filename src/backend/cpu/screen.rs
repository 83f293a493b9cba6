//! The encoder at the price of bytes: products of 8-bit integers bound every score from both sides, and only latents that
//! can still be among the wanted get their exact one. What comes out is what exact scores alone would give.
//!
//! With `ŵ` and `x̂` what rounding left, `|w · x − ŵ · x̂| ≤ ‖w − ŵ‖ ‖x‖ + ‖ŵ‖ ‖x − x̂‖` (Cauchy and Schwarz), and less where
//! few coordinates of x dwarf the others ([`Parts`](super::outliers::Parts)). The canonical dot
//! product's own rounding is within `γ ‖w‖ ‖x‖`, γ = (d / 16 + 6) · 2⁻²⁴, and that of the few operations around it within
//! 2⁻¹⁹ of the terms' magnitudes, both generous. Sums of products of bytes are exact.

use std::ops::Range;

use super::Kernels;
use super::encode::{Job, TileState};
use super::encoder::Encoder;
use super::kernels::int8::{Product, Sieve, Token, WIDTH};
use super::outliers::Part;
use super::prepare::Prepared;
use super::scratch::{Scratch, ScreenScratch};
use super::select::{Key, Largest, capacity};
use crate::sae::int8::{Int8Rows, PANEL, round};

/// How many times 2⁻²⁴ of the terms' magnitudes the operations around a product may lose.
const SLACK: f32 = 32.0 / (1 << 24) as f32;
/// Below this, times what it is multiplied by, numbers lose what no relative bound covers.
const TINY: f32 = 1e-30;
/// Beyond this, sums may leave f32.
const HUGE: f32 = 1e37;
/// Fewer tokens than this are waited for by memory rather than arithmetic, and get 16 bits.
const FEW: usize = 5;
/// Tokens whose 8-bit numbers lose more than this share of what bounds count of them get 16 bits: a few of their
/// coordinates dwarf the others.
const COARSE: f32 = 1.0 / 64.0;
/// A screen that lets more than one of so many pass is not worth its price.
const SHARE: usize = 16;

/// Scores `latents` of a tile's tokens, as far as it takes to know the wanted; tells how many were dealt with before it
/// proved not to be worth its price.
pub(crate) fn screen_tile(
    kernels: Kernels,
    job: &Job<'_>,
    int8: &Int8Rows,
    rows: usize,
    latents: Range<usize>,
    state: &mut TileState,
    scratch: &mut Scratch<'_>,
) -> usize {
    let mut tile = Tile { kernels, job, state, exact: 0, scratch };
    let (bytes, largest) = tile.round_tokens(rows, int8);
    for first in latents.clone().step_by(WIDTH) {
        let count = WIDTH.min((latents.end - first).next_multiple_of(PANEL));
        let (panel, panels) = (first / PANEL, count / PANEL);
        let bounds = Bounds::of(&job.encoder, int8, first, count, largest);
        let ScreenScratch { bytes: x, products, survivors, .. } = &mut tile.scratch.screen;
        let products = &mut products[..bytes * count];
        let facts = int8.facts(panel, panels);
        let x = &x[..bytes * int8.padded()];
        let product = Product { x, w: int8.panels(panel, panels), sums: facts.sum, padded: int8.padded() };
        kernels.product(&product, products);
        let found = kernels.sift(&bounds.sieve(products, &tile.state.tokens[..rows], count), survivors);
        for i in 0..found {
            let survivor = tile.scratch.screen.survivors[i];
            let latent = first + survivor.latent as usize;
            if latent < latents.end {
                tile.wait(survivor.row as usize, latent, survivor.upper, survivor.lower);
            }
        }
        if tile.exact * SHARE > latents.len() * rows {
            (0..rows).for_each(|row| tile.settle(row));
            return (first + count).min(latents.end) - latents.start;
        }
    }
    (0..rows).for_each(|row| {
        tile.sweep(row);
        tile.settle(row);
    });
    latents.len()
}

/// A tile at work.
struct Tile<'a, 'b> {
    kernels: Kernels,
    job: &'a Job<'a>,
    state: &'a mut TileState,
    /// Exact scores taken.
    exact: usize,
    scratch: &'a mut Scratch<'b>,
}

impl Tile<'_, '_> {
    /// Rounds the tile's tokens to bytes; tells how many rows of bytes there are, and the largest norm of a token.
    fn round_tokens(&mut self, rows: usize, int8: &Int8Rows) -> (usize, f32) {
        let (d, padded) = (int8.d(), int8.padded());
        let canonical = (d as f32 / 16.0 + 6.0) / (1 << 24) as f32;
        let (mut fine, mut largest) = (rows, 0.0f32);
        for row in 0..rows {
            let x = &self.scratch.x[row * d..(row + 1) * d];
            let (bytes, more) = self.scratch.screen.bytes.split_at_mut(rows * padded);
            let bytes = &mut bytes[row * padded..(row + 1) * padded];
            let mut chunks = bytes.chunks_exact_mut(16);
            let mut rounded = round(x, 127.0, |q| {
                if let Some(to) = chunks.next() {
                    to.iter_mut().zip(q).for_each(|(to, q)| *to = (q + 128) as u8);
                }
            });
            chunks.for_each(|rest| rest.fill(128));
            let parts = self.kernels.run(Part(x));
            let mut token = Token::default();
            if rows < FEW || rounded.lost > COARSE * parts.cost(d) {
                let start = (fine - rows) * padded;
                let (mut high, mut low) =
                    (bytes.chunks_exact_mut(16), more[start..start + padded].chunks_exact_mut(16));
                rounded = round(x, 127.0 * 256.0, |q| {
                    for (l, (high, low)) in
                        high.next().into_iter().flatten().zip(low.next().into_iter().flatten()).enumerate()
                    {
                        let upper = (q[l] + 128) >> 8;
                        (*high, *low) = ((upper + 128) as u8, (q[l] - 256 * upper + 128) as u8);
                    }
                });
                low.for_each(|rest| rest.fill(128));
                token.fine = fine;
                fine += 1;
            }
            let not_finite = self.state.prepared[row] == Prepared::NotFinite;
            self.state.tokens[row] = Token {
                scale: rounded.scale,
                rest: parts.rest * (1.0 + SLACK),
                outliers: parts.outliers * (1.0 + SLACK),
                dx: (rounded.lost + rounded.norm * (canonical + SLACK)) * (1.0 + SLACK),
                floor: if not_finite { f32::INFINITY } else { f32::from_bits(1) },
                ..token
            };
            largest = largest.max(rounded.norm * (1.0 + SLACK));
            (self.state.waiting[row], self.state.due[row]) = (0, self.scratch.screen.sorted.len() / 8);
        }
        (fine, largest)
    }

    /// Puts a latent that may matter aside.
    fn wait(&mut self, row: usize, latent: usize, upper: f32, lower: f32) {
        let room = self.scratch.screen.sorted.len();
        if self.state.waiting[row] == self.state.due[row] {
            self.sweep(row);
            if 4 * self.state.waiting[row] > room {
                self.lift(row);
            }
            if 2 * self.state.waiting[row] > room {
                self.settle(row);
            }
            // A floor that rises early keeps most latents from ever waiting.
            self.state.due[row] = (2 * self.state.waiting[row]).clamp(room / 8, room);
        }
        let at = row * room + self.state.waiting[row];
        self.scratch.screen.waiting[at] = Key::new(upper, latent as i32);
        self.scratch.screen.lower[at] = lower;
        self.state.waiting[row] += 1;
    }

    /// Of the latents that wait, enough may be known to be above others.
    fn sweep(&mut self, row: usize) {
        let (Some(k), waiting) = (self.job.encoder.selection.k(), self.state.waiting[row]) else { return };
        if waiting < k {
            return;
        }
        let ScreenScratch { lower, sorted, .. } = &mut self.scratch.screen;
        let start = row * sorted.len();
        let (lower, sorted) = (&lower[start..start + waiting], &mut sorted[..waiting]);
        // Positive numbers order as their bits do.
        for (to, &lower) in sorted.iter_mut().zip(lower) {
            *to = if lower > 0.0 { lower.to_bits() } else { 0 };
        }
        let (_, &mut kth, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        let token = &mut self.state.tokens[row];
        token.floor = token.floor.max(f32::from_bits(kth));
        self.prune(row);
    }

    /// Drops the latents that the floor has risen above.
    fn prune(&mut self, row: usize) {
        let ScreenScratch { waiting: keys, lower, sorted, .. } = &mut self.scratch.screen;
        let (token, start, mut kept) = (&self.state.tokens[row], row * sorted.len(), row * sorted.len());
        for i in start..start + self.state.waiting[row] {
            let stays = !token.rules_out(keys[i].value());
            (keys[kept], lower[kept]) = (keys[i], lower[i]);
            kept += usize::from(stays);
        }
        self.state.waiting[row] = kept - start;
    }

    /// Takes the exact scores of the likeliest, whose least is a better floor than bounds are.
    fn lift(&mut self, row: usize) {
        let (Some(k), waiting) = (self.job.encoder.selection.k(), self.state.waiting[row]) else { return };
        if waiting <= k {
            return;
        }
        let ScreenScratch { waiting: keys, lower, sorted, ids, .. } = &mut self.scratch.screen;
        let start = row * sorted.len();
        let (keys, lower) = (&mut keys[start..start + waiting], &mut lower[start..start + waiting]);
        let sorted = &mut sorted[..waiting];
        sorted.iter_mut().zip(&*keys).for_each(|(to, key)| *to = key.value().to_bits());
        let (_, &mut kth, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        let (mut taken, mut kept) = (0, 0);
        for i in 0..waiting {
            if taken < k && keys[i].value().to_bits() >= kth {
                ids[taken] = keys[i].index() as u32;
                taken += 1;
            } else {
                (keys[kept], lower[kept]) = (keys[i], lower[i]);
                kept += 1;
            }
        }
        self.state.waiting[row] = kept;
        self.score(row, taken);
        self.prune(row);
    }

    /// Takes the exact scores of the latents that wait. Where latents compete, the likeliest first: what they come to may
    /// spare the others.
    fn settle(&mut self, row: usize) {
        self.lift(row);
        let ScreenScratch { waiting: keys, sorted, ids, .. } = &mut self.scratch.screen;
        let (start, count) = (row * sorted.len(), std::mem::take(&mut self.state.waiting[row]));
        ids.iter_mut().zip(&keys[start..start + count]).for_each(|(id, key)| *id = key.index() as u32);
        self.score(row, count);
    }

    /// Takes the exact scores of the first `count` latents of the list.
    fn score(&mut self, row: usize, count: usize) {
        self.exact += count;
        let Self { kernels, job, state, scratch, .. } = self;
        let Job { encoder, .. } = job;
        let (d, capacity) = (encoder.d(), capacity(job.gathered()));
        let (ids, dots) = (&scratch.screen.ids[..count], &mut scratch.screen.dots[..count]);
        let x = &scratch.x[row * d..(row + 1) * d];
        kernels.dots_at(x, encoder.w_enc, ids, dots);
        let keys = &mut scratch.keys[row * capacity..(row + 1) * capacity];
        let mut largest = Largest::new(keys, &mut state.kept[row], job.gathered());
        for (&id, dot) in ids.iter().zip(dots) {
            let score = encoder.candidate(id as usize, *dot);
            if score != 0.0 {
                state.candidates[row] += 1;
                largest.push(Key::new(score, (encoder.first_latent + id as usize) as i32));
            }
        }
        if encoder.selection.k().is_some() {
            largest.sweep();
            let token = &mut state.tokens[row];
            token.floor = token.floor.max(largest.floor());
        }
    }
}

/// What turns the products of a block of latents into bounds.
struct Bounds {
    scale: [f32; WIDTH],
    bias: [f32; WIDTH],
    reach: [f32; WIDTH],
    lost: [f32; WIDTH],
    most: [f32; WIDTH],
    norm: [f32; WIDTH],
    magnitude: bool,
}

impl Bounds {
    /// Of the latents from `first` on, for tokens whose norm is at most `largest`.
    fn of(encoder: &Encoder<'_>, int8: &Int8Rows, first: usize, count: usize, largest: f32) -> Self {
        let zeros = [0.0; WIDTH];
        let mut bounds = Self {
            scale: zeros,
            bias: zeros,
            reach: [f32::NEG_INFINITY; WIDTH],
            lost: zeros,
            most: zeros,
            norm: zeros,
            magnitude: encoder.is_signed(),
        };
        let facts = int8.facts(first / PANEL, count / PANEL);
        for c in 0..count.min(encoder.n() - first) {
            let affine = encoder.affine(first + c);
            let factor = affine.factor;
            bounds.scale[c] = facts.scale[c] * factor;
            bounds.bias[c] = affine.bias;
            let (lost, norm) = (facts.lost[c] * (1.0 + SLACK), facts.norm[c] * (1.0 + SLACK));
            bounds.norm[c] = norm * factor;
            bounds.most[c] = facts.most(c) * (1.0 + SLACK) * factor;
            let tiny = if norm > 0.0 || affine.magnitude > 0.0 { TINY * affine.peak.max(largest) } else { 0.0 };
            bounds.reach[c] = tiny + SLACK * affine.magnitude - affine.threshold;
            // Where a sum or product may leave f32, nothing is known.
            let fits = (norm * largest + 1.0) * affine.peak + affine.magnitude < HUGE;
            bounds.lost[c] = if fits { lost * factor } else { f32::INFINITY };
        }
        bounds
    }

    fn sieve<'a>(&'a self, products: &'a [i32], tokens: &'a [Token], count: usize) -> Sieve<'a> {
        Sieve {
            products,
            tokens,
            scale: &self.scale[..count],
            bias: &self.bias[..count],
            reach: &self.reach[..count],
            lost: &self.lost[..count],
            most: &self.most[..count],
            norm: &self.norm[..count],
            magnitude: self.magnitude,
        }
    }
}
