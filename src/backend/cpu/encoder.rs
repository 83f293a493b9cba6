//! What a latent's score is, for each architecture: from dot products to pre-activations, and which of them may become
//! active. Each step is one loop over a block of latents; an architecture is the steps it takes.

use std::ops::Range;

use super::Kernels;
use super::rows::Rows;
use super::scratch::Scratch;
use super::select::{Key, Selection};
use crate::backend::{Screen, Wanted};
use crate::sae::Sae;
use crate::sae::int8::Int8Rows;

/// The encoding half of an SAE.
#[derive(Clone, Copy)]
pub(crate) struct Encoder<'a> {
    /// `[n, d]`.
    pub w_enc: Rows<'a>,
    /// `[n]`.
    pub b_enc: &'a [f32],
    /// `[n]` each: Gated's `exp(r_mag)` and `b_gate`.
    pub gate: Option<(&'a [f32], &'a [f32])>,
    /// `[n, d]` and `[n]`: the second encoder of a gated linear unit.
    pub glu: Option<(Rows<'a>, &'a [f32])>,
    /// `[n]`: what pre-activations are multiplied by.
    pub scale: Option<&'a [f32]>,
    /// `[n]`: what they must exceed, besides 0.
    pub threshold: Option<&'a [f32]>,
    /// `[n]`: by what pre-activations are multiplied to be compared with thresholds.
    pub threshold_scale: Option<&'a [f32]>,
    /// `[n]`: by what they are multiplied to compete; scores are products then.
    pub rank_scale: Option<&'a [f32]>,
    /// Which candidates are active.
    pub selection: Selection,
    /// Index of the first latent.
    pub first_latent: usize,
    /// W_enc as bytes, where scores are to be bounded first.
    pub int8: Option<&'a Int8Rows>,
}

/// A latent's score as a function of its dot product, `factor · dot + bias`.
pub(crate) struct Affine {
    /// At least 0.
    pub factor: f32,
    pub bias: f32,
    /// What scores must exceed.
    pub threshold: f32,
    /// At least the sum of the magnitudes of the terms without the dot product, at every step on the way.
    pub magnitude: f32,
    /// The most that the dot product is multiplied by on the way, at least 1.
    pub peak: f32,
}

impl<'a> Encoder<'a> {
    pub(crate) fn of(sae: &'a Sae) -> Self {
        let (spec, weights) = (sae.spec(), sae.weights());
        let selection = Selection::of(spec);
        let select_by = sae.decoder_norms().filter(|_| spec.select_by_decoder_norm);
        Self {
            w_enc: Rows::Matrix(&weights.w_enc),
            b_enc: &weights.b_enc,
            gate: weights.gate.as_ref().map(|gate| (sae.magnitude_gains(), gate.b_gate.as_slice())),
            glu: weights.glu.as_ref().map(|glu| (Rows::Matrix(&glu.w), glu.b.as_slice())),
            scale: sae.decoder_norms().filter(|_| spec.rescale_by_decoder_norm),
            threshold: weights.threshold.as_deref(),
            threshold_scale: select_by.filter(|_| weights.threshold.is_some()),
            rank_scale: select_by.filter(|_| selection.k().is_some()),
            selection,
            first_latent: spec.first_latent,
            int8: None,
        }
    }

    /// The same with scores bounded by bytes first, where there are such.
    pub(crate) fn screened(self, int8: Option<&'a Int8Rows>) -> Self {
        Self { int8, ..self }
    }

    /// Whether products of bytes can bound the scores.
    pub(crate) fn can_be_screened(&self) -> bool {
        self.glu.is_none() && self.selection.group() == 1 && Int8Rows::fits(self.d())
    }

    /// See [`Screen::pays`].
    pub(crate) fn pays_to_screen(&self) -> bool {
        Screen::pays(self.n(), self.selection.k())
    }

    /// A plain TopK encoder.
    pub(crate) fn top_k(w_enc: Rows<'a>, b_enc: &'a [f32], k: usize) -> Self {
        Self {
            w_enc,
            b_enc,
            gate: None,
            glu: None,
            scale: None,
            threshold: None,
            threshold_scale: None,
            rank_scale: None,
            selection: Selection::TopK(k),
            first_latent: 0,
            int8: None,
        }
    }

    pub(crate) fn n(&self) -> usize {
        self.b_enc.len()
    }

    pub(crate) fn d(&self) -> usize {
        self.w_enc.d()
    }

    /// How many of a token's candidates are active.
    pub(crate) fn active(&self, candidates: usize) -> usize {
        candidates.min(self.selection.k().unwrap_or(usize::MAX))
    }

    /// How many keys to keep of a token whose features may have `width` slots.
    pub(crate) fn limit(&self, width: usize) -> usize {
        width.min(self.n()).min(self.selection.k().unwrap_or(usize::MAX))
    }

    /// Scores of some latents for some tokens of a tile, left in the scratch `[rows, latents]`: their pre-activations, or
    /// those alone of candidates, with 0 for the other latents.
    pub(crate) fn score(
        &self,
        kernels: Kernels,
        latents: Range<usize>,
        rows: Range<usize>,
        wanted: Wanted,
        scratch: &mut Scratch<'_>,
    ) {
        let (d, first, count) = (self.d(), latents.start, latents.len());
        let x = &scratch.x[rows.start * d..rows.end * d];
        let rows = rows.len();
        let scores = &mut scratch.scores[..rows * count];
        let second = &mut scratch.second[..rows * count];
        kernels.scores(x, self.w_enc.get(kernels, (first, count), rows, scratch.weights), d, scores);
        if let Some((w_glu, _)) = self.glu {
            kernels.scores(x, w_glu.get(kernels, (first, count), rows, scratch.weights), d, second);
        }
        for (scores, second) in scores.chunks_exact_mut(count).zip(second.chunks_exact(count)) {
            self.finish(first, wanted, scores, second);
        }
    }

    /// [`Self::score`] of one latent for one token.
    pub(crate) fn score_alone(&self, kernels: Kernels, i: usize, x: &[f32], wanted: Wanted) -> f32 {
        let (mut score, mut second) = ([0.0], [0.0]);
        kernels.dots_at(x, self.w_enc, &[i as u32], &mut score);
        if let Some((w_glu, _)) = self.glu {
            kernels.dots_at(x, w_glu, &[i as u32], &mut second);
        }
        self.finish(i, wanted, &mut score, &second);
        score[0]
    }

    /// The score of a latent from its dot product, 0 unless it is a candidate; without a second encoder.
    pub(crate) fn candidate(&self, i: usize, dot: f32) -> f32 {
        let mut score = [dot];
        self.activate(i, &mut score, &[]);
        score[0]
    }

    /// How a latent's score follows from its dot product, up to rounding; without a second encoder.
    pub(crate) fn affine(&self, i: usize) -> Affine {
        let at = |v: Option<&[f32]>| v.map_or(1.0, |v| v[i]);
        let (mut after, mut peak) = (1.0f32, 1.0f32);
        for factor in [at(self.scale), at(self.rank_scale), at(self.threshold_scale)] {
            after *= factor;
            peak = peak.max(after);
        }
        let bias = self.b_enc[i] * after;
        let threshold = self.threshold.map_or(0.0, |threshold| threshold[i]);
        let magnitude = self.b_enc[i].abs() * peak + threshold.abs();
        let plain = Affine { factor: after, bias, threshold: threshold.max(0.0), magnitude, peak };
        let Some((gain, b_gate)) = self.gate else { return plain };
        // The gate is open from where `dot = −b_gate`.
        let gate = gain[i] * b_gate[i];
        Affine {
            factor: after * gain[i],
            threshold: plain.threshold.max(bias - gate * after),
            magnitude: 2.0 * magnitude + gate.abs() * peak + b_gate[i].abs(),
            peak: peak.max(peak * gain[i]),
            ..plain
        }
    }

    /// Whether negative scores are candidates too.
    pub(crate) fn is_signed(&self) -> bool {
        matches!(self.selection, Selection::AbsTopK(_))
    }

    /// The key of a latent that has won by its product with [`Self::rank_scale`], with its pre-activation instead.
    pub(crate) fn unranked(&self, kernels: Kernels, key: Key, x: &[f32]) -> Key {
        let i = key.index() as usize - self.first_latent;
        Key::new(self.score_alone(kernels, i, x, Wanted::PreActivations), key.index())
    }

    /// Scores in place of the dot products of the latents from `first` on; `second` holds those with the second encoder,
    /// if there is one.
    fn finish(&self, first: usize, wanted: Wanted, dots: &mut [f32], second: &[f32]) {
        match wanted {
            Wanted::PreActivations => self.pre_activate(first, dots, second),
            Wanted::Activations => self.activate(first, dots, second),
        }
    }

    fn pre_activate(&self, first: usize, dots: &mut [f32], second: &[f32]) {
        let latents = first..first + dots.len();
        let b_enc = &self.b_enc[latents.clone()];
        match self.gate {
            Some((gain, _)) => {
                let gain = &gain[latents.clone()];
                dots.iter_mut().zip(gain).zip(b_enc).for_each(|((h, gain), b)| *h = *h * gain + b);
            }
            None => dots.iter_mut().zip(b_enc).for_each(|(h, b)| *h += b),
        }
        if let Some((_, b_glu)) = self.glu {
            let open = second.iter().zip(&b_glu[latents.clone()]).map(|(dot, b)| sigmoid(dot + b));
            dots.iter_mut().zip(open).for_each(|(h, open)| *h *= open);
        }
        if let Some(scale) = self.scale {
            dots.iter_mut().zip(&scale[latents]).for_each(|(h, scale)| *h *= scale);
        }
    }

    fn activate(&self, first: usize, dots: &mut [f32], second: &[f32]) {
        let latents = first..first + dots.len();
        if let Some((_, b_gate)) = self.gate {
            // A latent behind a closed gate gets no number, which is never a candidate.
            let gates = &b_gate[latents.clone()];
            dots.iter_mut().zip(gates).for_each(|(dot, b)| *dot = if *dot + b > 0.0 { *dot } else { f32::NAN });
        }
        self.pre_activate(first, dots, second);
        if let Some(scale) = self.rank_scale {
            dots.iter_mut().zip(&scale[latents.clone()]).for_each(|(h, scale)| *h *= scale);
        }
        match self.selection {
            Selection::AbsTopK(_) => dots.iter_mut().for_each(|h| *h = if h.is_finite() { *h } else { 0.0 }),
            _ => dots.iter_mut().for_each(|h| *h = if (*h > 0.0) & (*h < f32::INFINITY) { *h } else { 0.0 }),
        }
        let Some(threshold) = self.threshold else { return };
        let passes = dots.iter_mut().zip(&threshold[latents.clone()]);
        match self.threshold_scale {
            None => passes.for_each(|(h, threshold)| *h = if *h > *threshold { *h } else { 0.0 }),
            Some(scale) => passes.zip(&scale[latents]).for_each(|((h, threshold), scale)| {
                *h = if *h * scale > *threshold { *h } else { 0.0 };
            }),
        }
    }
}

/// `1 / (1 + exp(−v))`, the same on every machine.
fn sigmoid(v: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-v))
}
