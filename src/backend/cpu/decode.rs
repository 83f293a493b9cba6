//! The decoder: a gather of decoder rows, summed in the order of the slots.

use super::Kernels;

use super::prepare::denormalize_row;
use super::rows::Rows;
use crate::sae::{Matrix, Sae, Spec};

/// Features added at once.
const BATCH: usize = 64;

/// The decoding half of an SAE.
#[derive(Clone, Copy)]
pub(crate) struct Decoder<'a> {
    spec: &'a Spec,
    w_dec: Rows<'a>,
    b_dec: &'a [f32],
    norms: Option<&'a [f32]>,
    w_skip: Option<&'a Matrix>,
}

impl<'a> Decoder<'a> {
    pub(crate) fn of(sae: &'a Sae) -> Self {
        let weights = sae.weights();
        Self {
            spec: sae.spec(),
            w_dec: Rows::Matrix(&weights.w_dec),
            b_dec: &weights.b_dec,
            norms: sae.decoder_norms().filter(|_| sae.spec().rescale_by_decoder_norm),
            w_skip: weights.w_skip.as_ref(),
        }
    }

    /// Adds features, global indices and their z, to a sum in the decoder's space, one after another. An index of −1 is none;
    /// says how many others name no latent.
    pub(crate) fn add(&self, kernels: Kernels, features: impl Iterator<Item = (i32, f32)>, sum: &mut [f32]) -> u64 {
        let (mut ids, mut factors, mut filled, mut unknown) = ([0; BATCH], [0.0; BATCH], 0, 0);
        for (index, z) in features {
            let Some(i) = self.local(index) else {
                unknown += u64::from(index != -1);
                continue;
            };
            (ids[filled], factors[filled]) = (i as u32, self.norms.map_or(z, |norms| z / norms[i]));
            filled += 1;
            if filled == BATCH {
                kernels.add_rows_at(sum, self.w_dec, &ids, &factors);
                filled = 0;
            }
        }
        kernels.add_rows_at(sum, self.w_dec, &ids[..filled], &factors[..filled]);
        unknown
    }

    /// Where a latent's weights are, by its global index.
    pub(crate) fn local(&self, index: i32) -> Option<usize> {
        let i = usize::try_from(index).ok()?.checked_sub(self.spec.first_latent)?;
        (i < self.spec.n_latents).then_some(i)
    }

    /// The start of a reconstruction.
    pub(crate) fn start(&self, sum: &mut [f32]) {
        sum.copy_from_slice(self.b_dec);
    }

    /// The end of a reconstruction but for the skip path: back to the model's scale.
    pub(crate) fn finish(&self, kernels: Kernels, state: [f32; 2], row: &mut [f32], sum: &mut [f32]) {
        denormalize_row(kernels, self.spec, state, sum, &mut row[..sum.len()]);
    }

    /// What the skip path adds to the reconstructions of tokens, `[tokens, d_out]`, from their raw inputs.
    pub(crate) fn skip(&self, kernels: Kernels, raw: &[f32], out: &mut [f32]) {
        if let Some(w_skip) = self.w_skip {
            kernels.scores(raw, w_skip.into(), self.spec.d_in, out);
        }
    }

    pub(crate) fn has_skip(&self) -> bool {
        self.w_skip.is_some()
    }
}
