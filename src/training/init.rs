//! How a run starts: what a first sample tells, and random weights.

use std::ops::Range;
use std::sync::Mutex;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::Scaling;
use crate::backend::Pool;
use crate::backend::cpu::{Kernels, Prepared, normalize_row};
use crate::error::{Result, fail};
use crate::sae::{Architecture, Normalization, Reference, Spec};
use crate::tensor::{Array, Tensor, try_vec};

/// The most rows of a sample that are used.
const SAMPLE_ROWS: usize = 32_768;
/// Random unit vectors whose reconstructions scale the encoder.
pub(super) const PROBES: usize = 256;
/// Rows that one body of the median sums.
const ROWS: usize = 256;
/// The first stream of random numbers that belongs to a step.
const STEPS: u64 = 1 << 32;
/// Where the search for the median ends: steps, and the movement relative to the mean distance.
const MEDIAN_STEPS: usize = 100;
const MEDIAN_TOLERANCE: f64 = 1e-6;

/// The usable rows of a first sample, normalised.
pub(super) struct Sample {
    d: usize,
    rows: Vec<f32>,
    /// Their norms before normalisation, ascending.
    norms: Vec<f32>,
}

/// Sums over the rows of a sample.
struct Sums<'a> {
    rows: &'a mut [f64],
    weights: f64,
    distances: f64,
}

impl Sample {
    /// Reads a sample `[S, d]`: rows that are not finite are left out, and of too many, some at even distances are taken.
    pub(super) fn read(name: &str, sample: &Tensor<'_>, normalization: Normalization) -> Result<Self> {
        let (found, d) = (sample.rows(), sample.shape()[1..].iter().product());
        let count = found.min(SAMPLE_ROWS);
        // As a batch's rows are made ready, but for b_dec, which is yet to be found.
        let kernels = Kernels::best()?;
        let mut spec = Spec::new(Architecture::Relu, d, 1);
        (spec.normalization, spec.subtract_b_dec) = (normalization, false);
        let mut rows = try_vec(0.0, count * d)?;
        let mut norms = Vec::with_capacity(count);
        for i in 0..count {
            let x = &mut rows[norms.len() * d..(norms.len() + 1) * d];
            sample.read_row(i * found / count, x);
            let norm = kernels.dot(x, x).sqrt();
            let prepared = normalize_row(kernels, &spec, &[], x);
            if prepared != Prepared::NotFinite && kernels.dot(x, x).is_finite() {
                norms.push(norm);
            }
        }
        let usable = norms.len();
        norms.sort_by(f32::total_cmp);
        rows.truncate(usable * d);
        if usable < 2 {
            return fail!(
                InvalidTensor,
                "{name}: at least 2 rows of finite numbers are needed, found {usable} among {found}"
            );
        }
        Ok(Self { d, rows, norms })
    }

    /// What each of so many layers of all activations is to be multiplied by.
    pub(super) fn scales(&self, scaling: Scaling, layers: usize) -> Result<Vec<f32>> {
        let (kernels, d) = (Kernels::best()?, self.d / layers);
        let scale_of = |layer: usize| {
            let parts = self.rows.chunks_exact(d).skip(layer).step_by(layers);
            let mut norms: Vec<f32> = parts.map(|x| kernels.dot(x, x).sqrt()).collect();
            // Small ones first, for the sum's sake.
            norms.sort_by(f32::total_cmp);
            let (norms, count) = (norms.iter().map(|norm| f64::from(*norm)), norms.len() as f64);
            let scale = match scaling {
                Scaling::Recipe | Scaling::None => 1.0,
                Scaling::RootWidth => (d as f64).sqrt() * count / norms.sum::<f64>(),
                Scaling::UnitSquare => (count / norms.map(|norm| norm.powi(2)).sum::<f64>()).sqrt(),
            } as f32;
            if !(scale > 0.0 && scale.is_finite()) {
                let of = if layers > 1 { format!(" of layer {layer}") } else { String::new() };
                return fail!(InvalidTensor, "the rows' norms{of} ask for a factor of {scale}, which is none");
            }
            Ok(scale)
        };
        (0..layers).map(scale_of).collect()
    }

    /// `√mean(‖x‖²)`.
    pub(super) fn root_mean_square(&self) -> f64 {
        let squares: f64 = self.rows.iter().map(|v| f64::from(*v).powi(2)).sum();
        (squares * self.d as f64 / self.rows.len() as f64).sqrt()
    }

    /// Multiplies the rows, layer by layer.
    pub(super) fn multiply(&mut self, scales: &[f32]) {
        let parts = self.rows.chunks_exact_mut(self.d / scales.len());
        parts.zip(scales.iter().cycle()).for_each(|(x, scale)| x.iter_mut().for_each(|v| *v *= scale));
    }

    /// What the norms of healthy inputs are.
    pub(super) fn reference(&self) -> Reference {
        let quantile = |q: usize| f64::from(self.norms[(self.norms.len() - 1) * q / 4]);
        let (median, spread) = (quantile(2), quantile(3) - quantile(1));
        let known = (median > 0.0 && median.is_finite()).then_some(median);
        Reference { norm: known, norm_spread: known.map(|median| spread / median), ..Reference::default() }
    }

    /// `mean((x − mean_rows(x))²)`, by which the squared error is divided.
    pub(super) fn variance(&self) -> Result<f64> {
        let mut mean = vec![0.0f64; self.d];
        for row in self.rows.chunks_exact(self.d) {
            add(&mut mean, row, 1.0);
        }
        let count = (self.rows.len() / self.d) as f64;
        mean.iter_mut().for_each(|m| *m /= count);
        let squares = self.rows.chunks_exact(self.d).map(|row| squared_distance(row, &mean));
        let variance = squares.sum::<f64>() / self.rows.len() as f64;
        if !(variance > 0.0 && variance.is_finite()) {
            return fail!(InvalidTensor, "sample: its rows do not vary, or too much: their variance is {variance}");
        }
        Ok(variance)
    }

    /// The point with the least sum of distances to the rows (Weiszfeld's algorithm): a centre that a few huge tokens do
    /// not move.
    pub(super) fn geometric_median(&self, pool: &Pool) -> Result<Vec<f32>> {
        let blocks = self.rows.chunks(ROWS * self.d).len();
        let mut sums = Array::zeroed(blocks * self.d)?;
        self.weighted_sums(pool, None, &mut sums);
        let count = (self.rows.len() / self.d) as f64;
        let mut median: Vec<f64> = sums[..self.d].iter().map(|m| m / count).collect();
        for _ in 0..MEDIAN_STEPS {
            let (weight, distance) = self.weighted_sums(pool, Some(&median), &mut sums);
            let mut moved = 0.0;
            for (m, sum) in median.iter_mut().zip(&sums[..self.d]) {
                let next = sum / weight;
                moved += (next - *m) * (next - *m);
                *m = next;
            }
            if moved.sqrt() <= MEDIAN_TOLERANCE * distance / count {
                break;
            }
        }
        Ok(median.iter().map(|&m| m as f32).collect())
    }

    /// Sum of the rows, each divided by its distance from `centre` if there is one, into the first `d` of `sums`, which has
    /// room for that of each block; gives the sum of those weights, and of distances. Blocks of rows are summed apart and
    /// then in order, so threads do not show.
    fn weighted_sums(&self, pool: &Pool, centre: Option<&[f64]>, sums: &mut [f64]) -> (f64, f64) {
        sums.fill(0.0);
        let rows: Vec<&[f32]> = self.rows.chunks(ROWS * self.d).collect();
        let blocks = sums.chunks_exact_mut(self.d).map(|rows| Mutex::new(Sums { rows, weights: 0.0, distances: 0.0 }));
        let blocks: Vec<_> = blocks.collect();
        pool.run(rows.len(), &|i| {
            let mut sums = blocks[i].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            for row in rows[i].chunks_exact(self.d) {
                let distance = centre.map_or(1.0, |centre| squared_distance(row, centre).sqrt());
                // A row at the centre itself would weigh infinitely.
                let weight = 1.0 / distance.max(1e-12);
                add(sums.rows, row, weight);
                sums.weights += weight;
                sums.distances += distance;
            }
        });
        let mut blocks = blocks.into_iter().map(|sums| sums.into_inner().unwrap_or_else(|p| p.into_inner()));
        let Some(total) = blocks.next() else { return (0.0, 0.0) };
        blocks.fold((total.weights, total.distances), |(weights, distances), block| {
            total.rows.iter_mut().zip(&*block.rows).for_each(|(t, s)| *t += s);
            (weights + block.weights, distances + block.distances)
        })
    }
}

fn add(sum: &mut [f64], row: &[f32], weight: f64) {
    sum.iter_mut().zip(row).for_each(|(s, &x)| *s += weight * f64::from(x));
}

fn squared_distance(row: &[f32], centre: &[f64]) -> f64 {
    row.iter().zip(centre).map(|(&x, c)| (f64::from(x) - c) * (f64::from(x) - c)).sum()
}

/// Random numbers from 0 to below 1 for one step of a run.
pub(super) fn uniform_numbers(seed: u64, step: u64) -> impl FnMut() -> f64 {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(STEPS + step);
    move || f64::from(random.next_u32()) / (f64::from(u32::MAX) + 1.0)
}

/// The `rows` of a sequence of random unit vectors of length `d`: uniform in the cube, scaled. Only arithmetic that every
/// machine rounds alike, so a seed means the same everywhere.
pub(super) fn random_unit_rows(seed: u64, stream: u64, rows: Range<usize>, d: usize) -> Result<Array<f32>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    let mut values = Array::zeroed(rows.len().saturating_mul(d))?;
    let mut row = vec![0.0f64; d];
    let mut draw = |row: &mut [f64]| loop {
        row.fill_with(|| f64::from(random.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0);
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        if norm > 1e-3 {
            return norm;
        }
    };
    for _ in 0..rows.start {
        draw(&mut row);
    }
    for out in values.chunks_exact_mut(d) {
        let norm = draw(&mut row);
        out.iter_mut().zip(&row).for_each(|(out, v)| *out = (v / norm) as f32);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: &[f32], d: usize) -> Sample {
        Sample::read("sample", &Tensor::new(values, &[values.len() / d, d]).unwrap(), Normalization::None).unwrap()
    }

    #[test]
    fn the_median_resists_outliers_and_minimises_distances() {
        let mut values = random_unit_rows(7, 0, 0..1001, 5).unwrap();
        values.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 5) as f32);
        values[..5].fill(1e6);
        let sample = sample(&values, 5);
        let median = sample.geometric_median(&Pool::serial()).unwrap();
        assert!(median.iter().enumerate().all(|(j, m)| (m - j as f32).abs() < 0.1), "{median:?}");
        let total = |centre: &[f64]| -> f64 {
            sample.rows.chunks_exact(5).map(|row| squared_distance(row, centre).sqrt()).sum()
        };
        let at: Vec<f64> = median.iter().map(|&m| f64::from(m)).collect();
        for j in 0..5 {
            for step in [-1e-3, 1e-3] {
                let mut near = at.clone();
                near[j] += step;
                assert!(total(&near) > total(&at), "{j} {step}");
            }
        }
        assert_eq!(median, sample.geometric_median(&Pool::new(3).unwrap()).unwrap());
    }

    #[test]
    fn samples_are_checked() {
        let read = |values: &[f32]| {
            let tensor = Tensor::new(values, &[values.len() / 2, 2]).unwrap();
            Sample::read("sample", &tensor, Normalization::None)
        };
        let sample = read(&[1.0, 2.0, f32::NAN, 0.0, 3.0, 2.0]).unwrap();
        assert_eq!(sample.rows, [1.0, 2.0, 3.0, 2.0]);
        assert_eq!(sample.variance().unwrap(), 0.5);
        assert!(read(&[1.0, 2.0, f32::INFINITY, 0.0]).is_err());
        assert!(read(&[]).is_err());
        assert!(read(&[1.0, 2.0, 1.0, 2.0]).unwrap().variance().is_err());
    }

    #[test]
    fn random_rows_follow_the_seed() {
        let rows = |seed, stream| random_unit_rows(seed, stream, 0..40, 17).unwrap();
        assert!(*rows(3, 1) == *rows(3, 1) && *rows(3, 1) != *rows(4, 1) && *rows(3, 1) != *rows(3, 2));
        assert_eq!(*random_unit_rows(3, 1, 7..12, 17).unwrap(), rows(3, 1)[7 * 17..12 * 17]);
        for row in rows(3, 1).chunks_exact(17) {
            assert!((row.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
