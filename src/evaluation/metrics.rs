//! How well an SAE reconstructs activations: FVU, L0, dead latents, what its errors have in common.
//!
//! ```
//! use std::sync::Arc;
//! use sae::backend::Pool;
//! use sae::evaluation::metrics::Meter;
//! use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
//!
//! let identity = Matrix::from_f32(&[1.0, 0.0, 0.0, 1.0], 2, 2)?;
//! let weights = Weights::new(identity.clone(), vec![0.0; 2], identity, vec![0.0; 2]);
//! let sae = Arc::new(Sae::new(Spec::new(Architecture::TopK { k: 1 }, 2, 2), weights)?);
//! let mut meter = Meter::new(&sae, &Pool::serial())?;
//! for x in [[2.0, 0.0], [1.0, 0.0], [3.0, 1.0]] {
//!     meter.push(&x, &x)?;
//! }
//! let metrics = meter.finish()?;
//! assert_eq!((metrics.rows, metrics.l0, metrics.dead), (3, 1.0, 1));
//! assert!((metrics.fvu - 1.0 / (2.0 + 2.0 / 3.0)).abs() < 1e-12); // 1 is lost, of a variation of 2 and 2/3
//! # Ok::<(), sae::Error>(())
//! ```

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::{Pool, Run};
use crate::error::Result;
use crate::features::Features;
use crate::sae::Sae;
use crate::session::{Session, SessionOptions};
use crate::tensor::{Tensor, TensorMut};

/// The most rows that wait to be reconstructed together.
const ROWS: usize = 256;
/// The most feature slots of such rows, so that dense architectures take no more memory than others.
const SLOTS: usize = 1 << 22;

/// What was measured, over the finite rows of a sample. Sums are kept in f64.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Rows that were measured.
    pub rows: usize,
    /// Rows that were not, because they or their target are not finite.
    pub rows_not_finite: usize,
    /// Fraction of variance unexplained: `Σ‖x̂ − x‖² / Σ‖x − mean_rows(x)‖²`. 0 of rows that do not vary.
    pub fvu: f64,
    /// `mean‖x̂ − x‖²`, per element.
    pub mse: f64,
    /// Mean count of active latents per row.
    pub l0: f64,
    /// Latents that were active on no row of this sample; on few rows, most latents are.
    pub dead: usize,
    /// The same as a share of all latents.
    pub dead_share: f64,
    /// Mean of ‖x‖.
    pub norm: f64,
    /// `Σ‖x̂‖ / Σ‖x‖`: below 1, reconstructions shrink.
    pub norm_ratio: f64,
    /// Mean cosine of x̂ and x.
    pub cosine: f64,
    /// `‖mean(x̂ − x)‖² / mean‖x̂ − x‖²`: the share of the error that is the same in every row, which training removes.
    pub bias: f64,
    /// Cosine of mean_rows(x) and b_dec; 0 if one of them is 0.
    pub mean_to_b_dec: f64,
    /// The share of Σ‖x‖² that lies in the rows' means, `Σ d·mean(x)² / Σ‖x‖²`: about 1/d, and 0 for centred rows.
    pub row_means: f64,
    /// The same of x̂.
    pub row_means_hat: f64,
}

/// Measures rows as they come, in bounded memory.
pub struct Meter {
    session: Session,
    /// Rows that wait: inputs, targets, and room for their reconstructions and features.
    waiting: usize,
    chunk: usize,
    x: Vec<f32>,
    target: Vec<f32>,
    x_hat: Vec<f32>,
    features: Features,
    sums: Sums,
}

/// What has been summed so far.
#[derive(Clone, Default)]
struct Sums {
    rows: usize,
    rows_not_finite: usize,
    /// Welford's running mean of the targets, and the sum of squared deviations from it.
    mean: Vec<f64>,
    deviation: f64,
    error: Vec<f64>,
    squared_error: f64,
    active: u64,
    /// For each latent, the rows on which it was active.
    active_rows: Vec<u64>,
    norm: f64,
    norm_hat: f64,
    cosine: f64,
    /// Squared norms, and what of them lies in the rows' means: of x, of x̂.
    squares: [f64; 2],
    means: [f64; 2],
}

impl Meter {
    /// A meter for rows of this SAE.
    pub fn new(sae: &Arc<Sae>, pool: &Pool) -> Result<Self> {
        let spec = sae.spec();
        let width = spec.max_active();
        let chunk = (SLOTS / width).clamp(1, ROWS);
        let options =
            SessionOptions { max_tokens: chunk, max_width: width, pool: pool.clone(), ..SessionOptions::default() };
        Ok(Self {
            session: Session::new(Arc::clone(sae), options)?,
            waiting: 0,
            chunk,
            x: vec![0.0; chunk * spec.d_in],
            target: vec![0.0; chunk * spec.d_out],
            x_hat: vec![0.0; chunk * spec.d_out],
            features: Features::new(chunk, width, spec.row_state_width()),
            sums: Sums::new(spec.d_out, spec.n_latents),
        })
    }

    /// Adds a row: the input `[d_in]`, and what its reconstruction is compared with `[d_out]`, the input itself unless
    /// the SAE is a transcoder.
    pub fn push(&mut self, x: &[f32], target: &[f32]) -> Result<()> {
        let at = self.waiting;
        self.x[at * x.len()..(at + 1) * x.len()].copy_from_slice(x);
        self.target[at * target.len()..(at + 1) * target.len()].copy_from_slice(target);
        self.waiting += 1;
        if self.waiting == self.chunk { self.flush() } else { Ok(()) }
    }

    /// For each latent, on how many rows it was active, since the meter was made or last finished.
    pub fn active_rows(&mut self) -> Result<&[u64]> {
        self.flush()?;
        Ok(&self.sums.active_rows)
    }

    /// What was measured since the meter was made or last asked.
    pub fn finish(&mut self) -> Result<Metrics> {
        self.flush()?;
        let sae = Arc::clone(self.session.sae());
        let (d_out, n) = (sae.spec().d_out, sae.spec().n_latents);
        let sums = std::mem::replace(&mut self.sums, Sums::new(d_out, n));
        Ok(sums.metrics(&sae.weights().b_dec))
    }

    fn flush(&mut self) -> Result<()> {
        let (rows, spec) = (std::mem::take(&mut self.waiting), self.session.sae().spec().clone());
        if rows == 0 {
            return Ok(());
        }
        let x = Tensor::new(&self.x[..rows * spec.d_in], &[rows, spec.d_in])?;
        let out = TensorMut::new(&mut self.x_hat[..rows * spec.d_out], &[rows, spec.d_out])?;
        // A last, shorter chunk gets features of its own length.
        if self.features.rows() != rows {
            self.features = Features::new(rows, self.features.width, self.features.row_state_width);
        }
        self.session.reconstruct(Run::default(), x.into(), Some(self.features.view_mut()), out)?;
        let pairs = self.target.chunks_exact(spec.d_out).zip(self.x_hat.chunks_exact(spec.d_out));
        for (row, (target, x_hat)) in pairs.take(rows).enumerate() {
            if self.features.counts[row] < 0 || target.iter().chain(x_hat).any(|v| !v.is_finite()) {
                self.sums.rows_not_finite += 1;
                continue;
            }
            self.sums.active += self.features.counts[row] as u64;
            for (latent, _) in self.features.row(row) {
                self.sums.active_rows[latent as usize - spec.first_latent] += 1;
            }
            self.sums.add(target, x_hat);
        }
        Ok(())
    }
}

impl Sums {
    fn new(d_out: usize, n_latents: usize) -> Self {
        Self { mean: vec![0.0; d_out], error: vec![0.0; d_out], active_rows: vec![0; n_latents], ..Self::default() }
    }

    fn add(&mut self, x: &[f32], x_hat: &[f32]) {
        self.rows += 1;
        let weight = 1.0 / self.rows as f64;
        let (mut norm, mut norm_hat, mut dot, mut sums) = (0.0, 0.0, 0.0, [0.0; 2]);
        for (j, (&x, &x_hat)) in x.iter().zip(x_hat).enumerate() {
            let (x, x_hat) = (f64::from(x), f64::from(x_hat));
            let (error, before) = (x_hat - x, x - self.mean[j]);
            self.mean[j] += before * weight;
            self.deviation += before * (x - self.mean[j]);
            self.error[j] += error;
            self.squared_error += error * error;
            norm += x * x;
            norm_hat += x_hat * x_hat;
            dot += x * x_hat;
            sums[0] += x;
            sums[1] += x_hat;
        }
        for (i, squares) in [norm, norm_hat].into_iter().enumerate() {
            self.squares[i] += squares;
            self.means[i] += sums[i] * sums[i] / x.len() as f64;
        }
        self.norm += norm.sqrt();
        self.norm_hat += norm_hat.sqrt();
        self.cosine += ratio(dot, (norm * norm_hat).sqrt());
    }

    fn metrics(self, b_dec: &[f32]) -> Metrics {
        let rows = self.rows as f64;
        let squares = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>();
        let b: Vec<f64> = b_dec.iter().map(|&b| f64::from(b)).collect();
        let dot: f64 = self.mean.iter().zip(&b).map(|(m, b)| m * b).sum();
        let dead = self.active_rows.iter().filter(|rows| **rows == 0).count();
        Metrics {
            rows: self.rows,
            rows_not_finite: self.rows_not_finite,
            fvu: ratio(self.squared_error, self.deviation),
            mse: ratio(self.squared_error, rows * self.mean.len() as f64),
            l0: ratio(self.active as f64, rows),
            dead,
            dead_share: dead as f64 / self.active_rows.len() as f64,
            norm: ratio(self.norm, rows),
            norm_ratio: ratio(self.norm_hat, self.norm),
            cosine: ratio(self.cosine, rows),
            bias: ratio(squares(&self.error), rows * self.squared_error),
            mean_to_b_dec: ratio(dot, (squares(&self.mean) * squares(&b)).sqrt()),
            row_means: ratio(self.means[0], self.squares[0]),
            row_means_hat: ratio(self.means[1], self.squares[1]),
        }
    }
}

/// `a / b`, and 0 where there is nothing to divide by.
pub(super) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}
