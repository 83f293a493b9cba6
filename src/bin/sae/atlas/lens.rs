//! What a feature writes: which tokens its decoder row raises and lowers, and which other rows point the same way. Both are products
//! of rows and a matrix, which an SAE of that matrix computes as its scores.

use std::sync::Arc;

use sae::backend::{Pool, Run, Wanted};
use sae::features::Features;
use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions};
use sae::tensor::{DType, Tensor, TensorMut};
use serde::Serialize;

use super::vocabulary::Vocabulary;
use crate::activations::{Activations, Place};
use crate::output::{Failure, Result};

/// Tokens, and other features, that are shown.
const SHOWN: usize = 10;
/// Bins of the histogram of logits.
const BINS: usize = 40;
/// Rows that are multiplied together.
const TOGETHER: usize = 16;

/// What is known of a decoder row.
#[derive(Serialize, Clone, Default)]
pub(super) struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lens: Option<Lens>,
    /// The latents of the largest cosines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) near: Option<Vec<(usize, f32)>>,
}

/// A feature's direct effect on logits: W_dec · unembedding.
#[derive(Serialize, Clone)]
pub(super) struct Lens {
    pub(super) up: Vec<(String, f32)>,
    pub(super) down: Vec<(String, f32)>,
    /// All logits, in equal bins from the least to the largest.
    pub(super) histogram: Vec<u64>,
    pub(super) from: f32,
    pub(super) to: f32,
}

/// Computes what decoder rows write, some features at a time.
pub(super) struct Decoder {
    sae: Arc<Sae>,
    unembedding: Option<Session>,
    directions: Option<Session>,
}

impl Decoder {
    /// Of an SAE, with an unembedding `[vocabulary, d_out]` if there is one, and nearest directions if they are wanted.
    pub(super) fn new(sae: Arc<Sae>, unembedding: Option<&Place>, near: bool, pool: &Pool) -> Result<Self> {
        let d = sae.spec().d_out;
        let unembedding = match unembedding {
            Some(place) => {
                let read = Activations::read(place, d)?;
                Some(scores(Matrix::from_f32(&read.values, read.tokens, d)?, 1, pool)?)
            }
            None => None,
        };
        let n = sae.spec().n_latents;
        let directions = match near && n > 1 {
            true => {
                let mut scratch = vec![0.0; d];
                let rows = Matrix::build(DType::F32, n, d, |row, to| {
                    unit(sae.weights().w_dec.row_f32(row, &mut scratch), to);
                    Ok(())
                })?;
                Some(scores(rows, (SHOWN + 1).min(n), pool)?)
            }
            false => None,
        };
        Ok(Self { sae, unembedding, directions })
    }

    /// What the rows of latents, counted from the first, write.
    pub(super) fn written(&mut self, latents: std::ops::Range<usize>, vocabulary: &Vocabulary) -> Result<Vec<Written>> {
        let mut written = Vec::new();
        let mut start = latents.start;
        while start < latents.end {
            let end = (start + TOGETHER).min(latents.end);
            written.extend(self.some(start..end, vocabulary)?);
            start = end;
        }
        Ok(written)
    }

    fn some(&mut self, latents: std::ops::Range<usize>, vocabulary: &Vocabulary) -> Result<Vec<Written>> {
        let (d, first) = (self.sae.spec().d_out, self.sae.spec().first_latent);
        let count = latents.len();
        let mut rows = vec![0.0; count * d];
        let mut scratch = vec![0.0; d];
        for (to, latent) in rows.chunks_exact_mut(d).zip(latents.clone()) {
            to.copy_from_slice(self.sae.weights().w_dec.row_f32(latent, &mut scratch));
        }
        let mut written = vec![Written::default(); count];
        if let Some(session) = &mut self.unembedding {
            let n = session.sae().spec().n_latents;
            let mut logits = vec![0.0; count * n];
            let out = TensorMut::new(&mut logits, &[count, n])?;
            session.encode_dense(
                Run::default(),
                Tensor::new(&rows, &[count, d])?.into(),
                Wanted::PreActivations,
                out,
            )?;
            for (written, logits) in written.iter_mut().zip(logits.chunks_exact(n)) {
                written.lens = Some(lens(logits, vocabulary));
            }
        }
        if let Some(session) = &mut self.directions {
            for row in rows.chunks_exact_mut(d) {
                unit(row, &mut scratch);
                row.copy_from_slice(&scratch);
            }
            let width = session.sae().spec().max_active();
            let mut features = Features::new(count, width, 0);
            session.encode(Run::default(), Tensor::new(&rows, &[count, d])?.into(), features.view_mut())?;
            for (row, (written, latent)) in written.iter_mut().zip(latents).enumerate() {
                let others = features.row(row).filter(|&(other, _)| other as usize != latent).take(SHOWN);
                written.near = Some(others.map(|(other, cosine)| (first + other as usize, cosine)).collect());
            }
        }
        Ok(written)
    }
}

/// A session whose scores are the products of its inputs and the rows of a matrix.
fn scores(rows: Matrix, k: usize, pool: &Pool) -> Result<Session> {
    let (n, d) = (rows.rows(), rows.cols());
    if n > i32::MAX as usize {
        return Err(Failure::Message(format!("{n} rows are too many")));
    }
    let spec = Spec::new(Architecture::TopK { k }, d, n);
    let sae = Sae::new(spec, Weights::new(rows.clone(), vec![0.0; n], rows, vec![0.0; d]))?;
    let options = SessionOptions { max_tokens: TOGETHER, pool: pool.clone(), ..SessionOptions::default() };
    Ok(Session::new(Arc::new(sae), options)?)
}

/// A row at length 1; 0 stays.
fn unit(row: &[f32], to: &mut [f32]) {
    let norm = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    for (to, &v) in to.iter_mut().zip(row) {
        *to = if norm > 0.0 { (f64::from(v) / norm) as f32 } else { 0.0 };
    }
}

fn lens(logits: &[f32], vocabulary: &Vocabulary) -> Lens {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let shown = SHOWN.min(order.len());
    let mut pick = |down: bool| {
        let by = |a: &usize, b: &usize| {
            let (a, b) = if down { (b, a) } else { (a, b) };
            logits[*b].total_cmp(&logits[*a])
        };
        if shown < order.len() {
            order.select_nth_unstable_by(shown, by);
        }
        order[..shown].sort_by(by);
        order[..shown].iter().map(|&token| (vocabulary.text(token as i32), logits[token])).collect::<Vec<_>>()
    };
    let (up, down) = (pick(false), pick(true));
    let (from, to) = (down.first().map_or(0.0, |d| d.1), up.first().map_or(0.0, |u| u.1));
    let mut histogram = vec![0; BINS];
    for &logit in logits {
        let place = if to > from { (logit - from) / (to - from) * BINS as f32 } else { 0.0 };
        histogram[(place as usize).min(BINS - 1)] += 1;
    }
    Lens { up, down, histogram, from, to }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lens_shows_both_ends() {
        let logits: Vec<f32> = (0..100).map(|i| (i * 37 % 100) as f32 - 20.0).collect();
        let lens = lens(&logits, &Vocabulary::default());
        let values = |pairs: &[(String, f32)]| pairs.iter().map(|p| p.1).collect::<Vec<_>>();
        assert_eq!(values(&lens.up), (70..80).rev().map(|v| v as f32).collect::<Vec<_>>());
        assert_eq!(values(&lens.down), (-20..-10).map(|v| v as f32).collect::<Vec<_>>());
        assert_eq!(lens.up[0].0, format!("⟨{}⟩", logits.iter().position(|&l| l == 79.0).unwrap()));
        assert_eq!((lens.histogram.iter().sum::<u64>(), lens.from, lens.to), (100, -20.0, 79.0));
    }
}
