//! The weights of an SAE, checked against its spec.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::int8::Int8Rows;
use super::{Architecture, Matrix, Spec};
use crate::error::{Result, fail};
use crate::tensor::DType;

/// The weights, laid out as they are computed with: one contiguous row per latent in both large matrices.
#[derive(Clone)]
pub struct Weights {
    /// `[n_latents, d_in]`: row i is latent i's encoder direction.
    pub w_enc: Matrix,
    /// `[n_latents]`.
    pub b_enc: Vec<f32>,
    /// `[n_latents, d_out]`: row i is latent i's decoder direction.
    pub w_dec: Matrix,
    /// `[d_out]`.
    pub b_dec: Vec<f32>,
    /// `[n_latents]`, for JumpReLU; compared with the (rescaled) pre-activation.
    pub threshold: Option<Vec<f32>>,
    /// For Gated.
    pub gate: Option<Gate>,
    /// A second encoder that the pre-activations are multiplied by.
    pub glu: Option<Glu>,
    /// `[d_out, d_in]`: the skip path of a transcoder, applied to the raw input.
    pub w_skip: Option<Matrix>,
}

/// What a gated SAE has besides: with `dot = W_enc[i] · x″`, latent i's gate is open if `dot + b_gate[i] > 0`, and its
/// pre-activation is `dot · exp(r_mag[i]) + b_enc[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// `[n_latents]`: the logarithm of the magnitude's factor.
    pub r_mag: Vec<f32>,
    /// `[n_latents]`.
    pub b_gate: Vec<f32>,
}

/// A gated linear unit: pre-activations are multiplied by `sigmoid(w · x″ + b)`.
#[derive(Clone)]
pub struct Glu {
    /// `[n_latents, d_in]`.
    pub w: Matrix,
    /// `[n_latents]`.
    pub b: Vec<f32>,
}

impl Weights {
    /// Weights without the parts that only some architectures have.
    pub fn new(w_enc: Matrix, b_enc: Vec<f32>, w_dec: Matrix, b_dec: Vec<f32>) -> Self {
        Self { w_enc, b_enc, w_dec, b_dec, threshold: None, gate: None, glu: None, w_skip: None }
    }

    /// The matrices with their names.
    pub fn matrices(&self) -> impl Iterator<Item = (&'static str, &Matrix)> {
        let glu = self.glu.as_ref().map(|glu| &glu.w);
        [("W_enc", Some(&self.w_enc)), ("W_dec", Some(&self.w_dec)), ("W_glu", glu), ("W_skip", self.w_skip.as_ref())]
            .into_iter()
            .filter_map(|(name, matrix)| Some((name, matrix?)))
    }

    /// The vectors with their names.
    pub fn vectors(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        let gate = self.gate.as_ref();
        [
            ("b_enc", Some(&self.b_enc)),
            ("b_dec", Some(&self.b_dec)),
            ("threshold", self.threshold.as_ref()),
            ("r_mag", gate.map(|gate| &gate.r_mag)),
            ("b_gate", gate.map(|gate| &gate.b_gate)),
            ("b_glu", self.glu.as_ref().map(|glu| &glu.b)),
        ]
        .into_iter()
        .filter_map(|(name, vector)| Some((name, vector?.as_slice())))
    }
}

/// A complete SAE: spec and weights that fit each other and hold finite numbers only.
pub struct Sae {
    spec: Spec,
    weights: Weights,
    /// `‖W_dec[i]‖` where encoding needs it, else empty.
    decoder_norms: Vec<f32>,
    /// `exp(r_mag[i])` of a gated SAE, else empty.
    magnitude_gains: Vec<f32>,
    /// W_enc as bytes, while anybody uses it.
    int8: Mutex<Weak<Int8Rows>>,
}

impl Sae {
    /// Joins a spec and weights; refuses shapes that do not fit and numbers that are not finite.
    pub fn new(spec: Spec, weights: Weights) -> Result<Self> {
        spec.check()?;
        let Spec { d_in, d_out, n_latents: n, .. } = spec;
        check_matrix("W_enc", &weights.w_enc, n, d_in)?;
        check_matrix("W_dec", &weights.w_dec, n, d_out)?;
        check_vector("b_enc", &weights.b_enc, n)?;
        check_vector("b_dec", &weights.b_dec, d_out)?;
        if let Some(w_skip) = &weights.w_skip {
            check_matrix("W_skip", w_skip, d_out, d_in)?;
        }
        let has = |name: &str, given: bool, needed: bool| match (given, needed) {
            (false, true) => {
                fail!(InvalidArgument, "{name} [{n}] is missing, which {} needs", spec.architecture.name())
            }
            (true, false) => fail!(InvalidArgument, "{name} is given, but {} has none", spec.architecture.name()),
            _ => Ok(()),
        };
        has("threshold", weights.threshold.is_some(), spec.architecture == Architecture::JumpRelu)?;
        has("r_mag", weights.gate.is_some(), spec.architecture == Architecture::Gated)?;
        for (name, vector) in weights.vectors().filter(|(name, _)| !name.ends_with("_dec") && *name != "b_enc") {
            check_vector(name, vector, n)?;
        }
        if let Some(glu) = &weights.glu {
            check_matrix("W_glu", &glu.w, n, d_in)?;
        }
        let decoder_norms = if spec.uses_decoder_norms() { weights.w_dec.row_norms() } else { Vec::new() };
        if let Some(i) = decoder_norms.iter().position(|&norm| norm == 0.0 || !norm.is_finite()) {
            return fail!(
                NotFinite,
                "W_dec row {i} has norm {}, by which activations cannot be divided",
                decoder_norms[i]
            );
        }
        // From a crate rather than the system, so that results do not depend on the machine.
        let r_mag = weights.gate.as_ref().map_or(&[][..], |gate| &gate.r_mag);
        let magnitude_gains: Vec<f32> = r_mag.iter().map(|&r| libm::expf(r)).collect();
        if let Some(i) = magnitude_gains.iter().position(|gain| !gain.is_finite()) {
            return fail!(NotFinite, "r_mag[{i}] is {}, whose exponential is not a finite number", r_mag[i]);
        }
        Ok(Self { spec, weights, decoder_norms, magnitude_gains, int8: Mutex::default() })
    }

    /// What it is.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its numbers.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// `‖W_dec[i]‖` for each latent where encoding needs it.
    pub fn decoder_norms(&self) -> Option<&[f32]> {
        self.spec.uses_decoder_norms().then_some(&self.decoder_norms)
    }

    /// `exp(r_mag[i])` for each latent of a gated SAE, else empty.
    pub fn magnitude_gains(&self) -> &[f32] {
        &self.magnitude_gains
    }

    /// W_enc as bytes; made by the first who asks, and shared by all who do while one of them keeps it.
    pub(crate) fn int8_encoder(&self, round: impl FnOnce(&Matrix) -> Result<Int8Rows>) -> Result<Arc<Int8Rows>> {
        let shared = || self.int8.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(int8) = shared().upgrade() {
            return Ok(int8);
        }
        // Not under the lock: it may be a host's threads that round, which may ask for the same meanwhile.
        let made = Arc::new(round(&self.weights.w_enc)?);
        let mut shared = shared();
        if let Some(int8) = shared.upgrade() {
            return Ok(int8);
        }
        *shared = Arc::downgrade(&made);
        Ok(made)
    }

    /// Spec and weights, to make another SAE of.
    pub fn into_parts(self) -> (Spec, Weights) {
        (self.spec, self.weights)
    }

    /// The latents `first..first + count` (of those held here) alone, under their global indices, for a host that shards
    /// latents across devices. TopK then keeps up to k on each shard; merging the shards' features gives the whole's.
    /// A shard decodes its own latents, counts others as ignored, and adds b_dec like the whole, so a host that sums the
    /// shards' outputs takes it off all but one.
    pub fn shard(&self, first: usize, count: usize) -> Result<Self> {
        let n = self.spec.n_latents;
        if count == 0 || first.checked_add(count).is_none_or(|end| end > n) {
            return fail!(InvalidArgument, "latents {first}..+{count} are not a part of 0..{n}");
        }
        let (first_latent, shard_of) = (self.spec.first_latent + first, self.spec.whole_latents());
        let spec = Spec { n_latents: count, first_latent, shard_of, ..self.spec.clone() };
        Self::new(spec, self.part(first, count)?)
    }

    /// The first `count` latents as an SAE of their own: one of the smaller SAEs within a Matryoshka SAE, which was trained
    /// to stand alone.
    pub fn prefix(&self, count: usize) -> Result<Self> {
        let spec = self.spec.prefix(count)?;
        Self::new(spec, self.part(0, count)?)
    }

    fn part(&self, first: usize, count: usize) -> Result<Weights> {
        let part = |v: &[f32]| v[first..first + count].to_vec();
        let w = &self.weights;
        let w_enc = w.w_enc.slice_rows(first, count)?;
        let tied = w.w_dec.shares_memory_with(&w.w_enc);
        Ok(Weights {
            w_dec: if tied { w_enc.clone() } else { w.w_dec.slice_rows(first, count)? },
            w_enc,
            b_enc: part(&w.b_enc),
            b_dec: w.b_dec.clone(),
            threshold: w.threshold.as_deref().map(part),
            gate: w.gate.as_ref().map(|gate| Gate { r_mag: part(&gate.r_mag), b_gate: part(&gate.b_gate) }),
            glu: match &w.glu {
                Some(glu) => Some(Glu { w: glu.w.slice_rows(first, count)?, b: part(&glu.b) }),
                None => None,
            },
            w_skip: w.w_skip.clone(),
        })
    }

    /// The same SAE with its matrices kept in another type. Rescaling norms are taken of the rounded decoder.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let w = &self.weights;
        let w_enc = w.w_enc.to_dtype(dtype)?;
        let tied = w.w_dec.shares_memory_with(&w.w_enc);
        let weights = Weights {
            w_dec: if tied { w_enc.clone() } else { w.w_dec.to_dtype(dtype)? },
            w_enc,
            glu: match &w.glu {
                Some(glu) => Some(Glu { w: glu.w.to_dtype(dtype)?, b: glu.b.clone() }),
                None => None,
            },
            w_skip: w.w_skip.as_ref().map(|m| m.to_dtype(dtype)).transpose()?,
            ..w.clone()
        };
        Self::new(self.spec.clone(), weights)
    }

    /// Bytes its weights take.
    pub fn byte_size(&self) -> usize {
        let w = &self.weights;
        let tied = if w.w_dec.shares_memory_with(&w.w_enc) { w.w_dec.bytes().len() } else { 0 };
        let matrices = w.matrices().map(|(_, m)| m.bytes().len()).sum::<usize>() - tied;
        let vectors: usize = self.weights.vectors().map(|(_, v)| v.len()).sum();
        matrices + 4 * (vectors + self.decoder_norms.len() + self.magnitude_gains.len())
    }
}

fn check_matrix(name: &str, matrix: &Matrix, rows: usize, cols: usize) -> Result<()> {
    if (matrix.rows(), matrix.cols()) != (rows, cols) {
        let (r, c) = (matrix.rows(), matrix.cols());
        return fail!(InvalidArgument, "{name} must be [{rows}, {cols}], not [{r}, {c}]");
    }
    if let Some((row, col)) = matrix.first_non_finite() {
        return fail!(NotFinite, "{name}[{row}, {col}] is not a finite number");
    }
    Ok(())
}

fn check_vector(name: &str, vector: &[f32], len: usize) -> Result<()> {
    if vector.len() != len {
        return fail!(InvalidArgument, "{name} must be [{len}], not [{}]", vector.len());
    }
    if let Some(i) = vector.iter().position(|v| !v.is_finite()) {
        return fail!(NotFinite, "{name}[{i}] is {}, not a finite number", vector[i]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    fn parts() -> (Spec, Weights) {
        let weights = Weights {
            w_enc: Matrix::from_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, 2).unwrap(),
            b_enc: vec![0.1, 0.2, 0.3],
            w_dec: Matrix::from_f32(&[3.0, 4.0, 0.0, 1.0, 1.0, 0.0], 3, 2).unwrap(),
            b_dec: vec![0.0, 1.0],
            threshold: None,
            gate: None,
            glu: None,
            w_skip: None,
        };
        (Spec::new(Architecture::TopK { k: 2 }, 2, 3), weights)
    }

    #[test]
    fn misfits_are_refused_by_name() {
        type Spoil = fn(&mut Spec, &mut Weights);
        let spoils: [(&str, Status, Spoil); 9] = [
            ("r_mag[1]", Status::NotFinite, |s, w| {
                s.architecture = Architecture::Gated;
                w.gate = Some(Gate { r_mag: vec![0.0, 89.0, 0.0], b_gate: vec![0.0; 3] });
            }),
            ("W_enc", Status::InvalidArgument, |s, _| s.n_latents = 4),
            ("b_enc", Status::InvalidArgument, |_, w| w.b_enc.truncate(2)),
            ("b_dec[1]", Status::NotFinite, |_, w| w.b_dec[1] = f32::NAN),
            ("threshold", Status::InvalidArgument, |s, _| s.architecture = Architecture::JumpRelu),
            ("threshold", Status::InvalidArgument, |_, w| w.threshold = Some(vec![0.0; 3])),
            ("k must", Status::InvalidArgument, |s, _| s.architecture = Architecture::TopK { k: 0 }),
            ("W_dec[0, 1]", Status::NotFinite, |_, w| {
                w.w_dec = Matrix::from_f32(&[3.0, f32::INFINITY, 0.0, 1.0, 1.0, 0.0], 3, 2).unwrap();
            }),
            ("W_dec row 1", Status::NotFinite, |s, w| {
                s.rescale_by_decoder_norm = true;
                w.w_dec = Matrix::from_f32(&[3.0, 4.0, 0.0, 0.0, 1.0, 0.0], 3, 2).unwrap();
            }),
        ];
        for (name, status, spoil) in spoils {
            let (mut spec, mut weights) = parts();
            spoil(&mut spec, &mut weights);
            let error = Sae::new(spec, weights).err().unwrap();
            assert_eq!(error.status(), status, "{error}");
            assert!(error.message().contains(name), "{error} does not name {name}");
        }
    }

    #[test]
    fn prefixes_are_saes_of_their_own() {
        let (mut spec, weights) = parts();
        spec.prefixes = vec![2, 3];
        let whole = Sae::new(spec, weights).unwrap();
        let prefix = whole.prefix(2).unwrap();
        assert_eq!((prefix.spec().n_latents, prefix.spec().is_shard(), &*prefix.spec().prefixes), (2, false, &[2][..]));
        assert_eq!((&*prefix.weights().b_enc, prefix.weights().w_dec.rows()), (&[0.1, 0.2][..], 2));
        for count in [0, 1, 4] {
            let error = whole.prefix(count).err().unwrap();
            assert!(error.message().contains("prefix"), "{error}");
        }
        assert!(whole.shard(0, 2).unwrap().prefix(2).is_err());
        let (mut spec, weights) = parts();
        spec.architecture = Architecture::GroupMax { k: 1 };
        let groups = Sae::new(spec, weights).unwrap();
        assert!(groups.prefix(2).is_err() && groups.prefix(3).is_ok());
    }

    #[test]
    fn shards_keep_global_indices() {
        let (mut spec, weights) = parts();
        spec.rescale_by_decoder_norm = true;
        let whole = Sae::new(spec, weights).unwrap();
        assert_eq!(whole.decoder_norms().unwrap(), [5.0, 1.0, 1.0]);
        let shard = whole.shard(1, 2).unwrap().shard(1, 1).unwrap();
        assert_eq!((shard.spec().first_latent, shard.spec().n_latents), (2, 1));
        assert_eq!(shard.weights().w_enc.row_f32(0, &mut []), &[5.0, 6.0]);
        assert!(whole.shard(2, 2).is_err() && whole.shard(0, 0).is_err() && whole.shard(usize::MAX, 1).is_err());
    }
}
