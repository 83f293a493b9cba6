//! What a format's reader hands on: the spec, and where each weight lies. From here all formats go one way.

use super::stored::{StoredMatrix, StoredTensor};
use super::{LoadOptions, Memory};
use crate::error::{Error, Result, Status, fail};
use crate::sae::{Convention, Sae, Spec, Weights};

/// A vector on its way into memory.
#[derive(Clone)]
pub(super) enum Vector {
    /// Values in the file, each to be multiplied by a factor.
    Stored(StoredTensor, f64),
    /// Values computed from the file's.
    Values(Vec<f32>),
}

impl Vector {
    /// The values of a tensor of one dimension, as they are.
    pub(super) fn stored(tensor: StoredTensor) -> Self {
        Self::Stored(tensor, 1.0)
    }

    fn len(&self) -> usize {
        match self {
            Self::Stored(tensor, _) => tensor.shape()[0],
            Self::Values(values) => values.len(),
        }
    }

    fn slice(self, first: usize, count: usize) -> Self {
        match self {
            Self::Stored(tensor, factor) => Self::Stored(tensor.slice(first, count), factor),
            Self::Values(values) => Self::Values(values[first..first + count].to_vec()),
        }
    }

    fn load(self, name: &str) -> Result<Vec<f32>> {
        match self {
            Self::Values(values) => Ok(values),
            Self::Stored(tensor, factor) => tensor.scaled_values(name, factor),
        }
    }
}

/// An SAE of which no weight has been read.
pub(super) struct Draft {
    /// All the latents that are stored.
    pub(super) spec: Spec,
    /// `[n_latents, d_in]`.
    pub(super) w_enc: StoredMatrix,
    /// `[n_latents]`.
    pub(super) b_enc: Vector,
    /// `[n_latents, d_out]`.
    pub(super) w_dec: StoredMatrix,
    /// `[d_out]`.
    pub(super) b_dec: Vector,
    /// `[n_latents]`.
    pub(super) threshold: Option<Vector>,
    /// `[d_out, d_in]`.
    pub(super) w_skip: Option<StoredMatrix>,
    /// What was inferred, assumed or left aside, in words.
    pub(super) notes: Vec<String>,
}

impl Draft {
    /// Replaces what the files say of their inputs by what the caller knows.
    pub(super) fn override_convention(&mut self, known: &Convention) {
        let own = &mut self.spec.convention;
        let known = known.clone();
        own.model_name = known.model_name.or(own.model_name.take());
        own.hook_point = known.hook_point.or(own.hook_point.take());
        own.hook_point_out = known.hook_point_out.or(own.hook_point_out.take());
        own.prepend_bos = known.prepend_bos.or(own.prepend_bos);
        own.context_size = known.context_size.or(own.context_size);
        own.centered_writing_weights = known.centered_writing_weights.or(own.centered_writing_weights);
        own.folded_layer_norm = known.folded_layer_norm.or(own.folded_layer_norm);
        if !known.excluded_positions.is_empty() {
            own.excluded_positions = known.excluded_positions;
        }
    }

    /// Reads the weights.
    pub(super) fn finish(self, options: &LoadOptions) -> Result<Sae> {
        let Draft { spec, w_enc, b_enc, w_dec, b_dec, threshold, w_skip, .. } = self.narrowed(options)?;
        let (dtype, map) = (options.dtype, options.map);
        let read = || {
            let weights = Weights {
                w_enc: w_enc.load("W_enc", dtype, map)?,
                b_enc: b_enc.load("b_enc")?,
                w_dec: w_dec.load("W_dec", dtype, map)?,
                b_dec: b_dec.load("b_dec")?,
                threshold: threshold.map(|v| v.load("threshold")).transpose()?,
                w_skip: w_skip.map(|m| m.load("W_skip", dtype, map)).transpose()?,
            };
            Sae::new(spec, weights)
        };
        // What would be the caller's fault if the caller had made the SAE is the file's here.
        read().map_err(|e| match e.status() {
            Status::InvalidArgument => Error::new(Status::Format, e.message()),
            _ => e,
        })
    }

    /// The bytes that [`Self::finish`] will need.
    pub(super) fn memory(self, options: &LoadOptions) -> Result<Memory> {
        let draft = self.narrowed(options)?;
        let mut memory = Memory::default();
        let vectors = [Some(&draft.b_enc), Some(&draft.b_dec), draft.threshold.as_ref()];
        memory.resident += 4 * vectors.iter().flatten().map(|v| v.len() as u64).sum::<u64>();
        if draft.spec.rescale_by_decoder_norm {
            memory.resident += 4 * draft.spec.n_latents as u64;
        }
        let mut scratch = 0;
        for matrix in [Some(&draft.w_enc), Some(&draft.w_dec), draft.w_skip.as_ref()].into_iter().flatten() {
            match matrix.byte_size(options.dtype, options.map) {
                (bytes, true) => memory.mapped += bytes,
                (bytes, false) => memory.resident += bytes,
            }
            scratch = scratch.max(matrix.scratch_size(options.dtype));
        }
        memory.peak = memory.resident + scratch;
        Ok(memory)
    }

    /// Only the latents that were asked for.
    fn narrowed(self, options: &LoadOptions) -> Result<Self> {
        let Some((first, count)) = options.latents else {
            return Ok(self);
        };
        let n = self.spec.n_latents;
        if count == 0 || first.checked_add(count).is_none_or(|end| end > n) {
            return fail!(InvalidArgument, "latents {first}..+{count} are not a part of the {n} stored");
        }
        let (first_latent, shard_of) = (self.spec.first_latent.saturating_add(first), self.spec.whole_latents());
        Ok(Self {
            spec: Spec { n_latents: count, first_latent, shard_of, ..self.spec },
            w_enc: self.w_enc.slice(first, count),
            b_enc: self.b_enc.slice(first, count),
            w_dec: self.w_dec.slice(first, count),
            threshold: self.threshold.map(|threshold| threshold.slice(first, count)),
            ..self
        })
    }
}
