//! Random SAEs and activations, kind and unkind.

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use sae::sae::{Architecture, Gate, Glu, Matrix, Normalization, Sae, Spec, Weights};
use sae::tensor::DType;

/// A random SAE and activations for it.
#[derive(Debug, Clone)]
pub struct Case {
    pub seed: u64,
    pub d_in: usize,
    pub d_out: usize,
    pub n: usize,
    pub rows: usize,
    /// TopK, ReLU, JumpReLU, AbsTopK, GroupMax, Gated.
    pub architecture: u8,
    /// GroupMax: how many groups are held here, which divides `n`.
    pub k: usize,
    pub normalization: u8,
    pub center: bool,
    /// Crosscoders read several, and write as many or one.
    pub layers: usize,
    pub subtract: bool,
    pub rescale: bool,
    pub select: bool,
    pub glu: bool,
    pub skip: bool,
    pub weights: u8,
    pub first_latent: usize,
    pub values: u8,
}

impl Case {
    /// TopK without anything more, to vary.
    pub fn plain(d: usize, n: usize, rows: usize, k: usize) -> Self {
        Self {
            seed: 5,
            d_in: d,
            d_out: d,
            n,
            rows,
            architecture: 0,
            k,
            normalization: 0,
            center: false,
            layers: 1,
            subtract: true,
            rescale: false,
            select: false,
            glu: false,
            skip: false,
            weights: 0,
            first_latent: 0,
            values: 0,
        }
    }

    pub fn any() -> impl Strategy<Value = Self> {
        let sizes =
            (1usize..50, prop_oneof![3 => Just(None), 1 => (1usize..40).prop_map(Some)], 1usize..120, 0usize..70);
        let layers = prop_oneof![3 => Just(1usize), 1 => 2usize..5];
        let kinds = (0u8..6, 1usize..20, 0u8..3, 0u8..3, 0u8..6, layers);
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        (any::<u64>(), sizes, kinds, flags, prop_oneof![Just(0usize), 1usize..1000]).prop_map(
            |(
                seed,
                (d_in, d_out, n, rows),
                (architecture, k, normalization, weights, values, layers),
                (center, subtract, rescale, select, glu, skip),
                first_latent,
            )| {
                let d_in = d_in * layers;
                let d_out = d_out.unwrap_or(d_in);
                let case = Self {
                    seed,
                    d_in,
                    d_out,
                    n,
                    rows,
                    architecture,
                    k,
                    normalization: if layers > 1 { 0 } else { normalization },
                    center: center && layers == 1,
                    layers,
                    subtract: subtract && d_out == d_in,
                    rescale,
                    select: select && !rescale,
                    glu,
                    skip,
                    weights,
                    first_latent,
                    values,
                };
                case.in_groups()
            },
        )
    }

    /// Sizes that whole groups make, where there are any.
    fn in_groups(self) -> Self {
        if self.architecture != 4 {
            return self;
        }
        let k = self.k.min(self.n);
        let size = self.n / k;
        Self { k, n: size * k, first_latent: self.first_latent / size * size, ..self }
    }

    pub fn layers_out(&self) -> usize {
        if self.d_in == self.d_out { self.layers } else { 1 }
    }

    /// Latents that must stay together.
    pub fn group(&self) -> usize {
        if self.architecture == 4 { self.n / self.k } else { 1 }
    }

    /// The same, but not a shard if a shard could not do what is tested.
    pub fn whole_if_competing(self) -> Self {
        let first_latent = if self.shards_compete() { 0 } else { self.first_latent };
        Self { first_latent, ..self }
    }

    fn shards_compete(&self) -> bool {
        matches!(self.architecture, 0 | 3)
    }

    /// The same, but so that its shards can be merged.
    pub fn mergeable(self) -> Self {
        let select = self.select && !self.shards_compete();
        Self { select, ..self }
    }

    pub fn rng(&self) -> Numbers {
        Numbers { rng: ChaCha8Rng::seed_from_u64(self.seed), kind: self.values }
    }

    pub fn sae(&self, numbers: &mut Numbers) -> Sae {
        let whole = if self.first_latent > 0 { self.first_latent + self.n + 5 * self.group() } else { self.n };
        let architecture = match self.architecture {
            0 => Architecture::TopK { k: self.k },
            1 => Architecture::Relu,
            2 => Architecture::JumpRelu,
            3 => Architecture::AbsTopK { k: self.k },
            4 => Architecture::GroupMax { k: whole / self.group() },
            _ => Architecture::Gated,
        };
        let mut spec = Spec::new(architecture, self.d_in, self.n);
        spec.d_out = self.d_out;
        spec.first_latent = self.first_latent;
        spec.shard_of = if self.first_latent > 0 { whole } else { 0 };
        spec.normalization =
            [Normalization::None, Normalization::LayerNorm, Normalization::ConstantNorm][self.normalization as usize];
        spec.center = self.center;
        (spec.layers_in, spec.layers_out) = (self.layers, self.layers_out());
        spec.denormalize_output = self.d_in == self.d_out;
        spec.subtract_b_dec = self.subtract;
        spec.rescale_by_decoder_norm = self.rescale;
        spec.select_by_decoder_norm = self.select;
        let dtype = [DType::F32, DType::F16, DType::BF16][self.weights as usize];
        let huge = self.values == 2 && dtype != DType::F16;
        let mut matrix = |rows: usize, cols: usize, huge: bool| {
            // A first column away from 0 keeps decoder norms positive; a huge one makes products with them infinite.
            let first = |i: usize| if huge && i.is_multiple_of(7 * cols) { 1e30 } else { 0.5 };
            let values: Vec<f32> =
                (0..rows * cols).map(|i| if i % cols == 0 { first(i) } else { numbers.weight() }).collect();
            Matrix::from_f32(&values, rows, cols).unwrap().to_dtype(dtype).unwrap()
        };
        let (w_enc, w_dec) = (matrix(self.n, self.d_in, false), matrix(self.n, self.d_out, huge));
        let w_skip = self.skip.then(|| matrix(self.d_out, self.d_in, false));
        let w_glu = self.glu.then(|| matrix(self.n, self.d_in, false));
        let mut vector = |len: usize| (0..len).map(|_| numbers.weight()).collect::<Vec<f32>>();
        let b_enc = if self.values == 5 { vec![-60.0; self.n] } else { vector(self.n) };
        let gate = (self.architecture == 5).then(|| {
            let mut r_mag = vector(self.n);
            if self.values == 2 {
                // Factors from 0 to nearly infinity.
                r_mag.iter_mut().enumerate().for_each(|(i, r)| *r = [*r, -200.0, 88.5, -88.0][i % 4]);
            }
            Gate { r_mag, b_gate: vector(self.n) }
        });
        let weights = Weights {
            w_enc,
            w_dec,
            w_skip,
            gate,
            glu: w_glu.map(|w| Glu { w, b: vector(self.n) }),
            b_enc,
            b_dec: vector(self.d_out),
            threshold: (self.architecture == 2).then(|| vector(self.n)),
        };
        Sae::new(spec, weights).unwrap()
    }
}

/// Smooth numbers.
pub fn numbers(seed: u64) -> Numbers {
    Numbers { rng: ChaCha8Rng::seed_from_u64(seed), kind: 0 }
}

/// A source of numbers of one kind: smooth, tied, huge, with broken rows, zero, or with nothing positive to come of them.
pub struct Numbers {
    rng: ChaCha8Rng,
    kind: u8,
}

impl Numbers {
    pub fn below(&mut self, n: usize) -> usize {
        (self.rng.next_u64() % n.max(1) as u64) as usize
    }

    pub fn unit(&mut self) -> f32 {
        self.rng.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0
    }

    pub fn weight(&mut self) -> f32 {
        if self.kind == 1 { self.below(3) as f32 - 1.0 } else { self.unit() }
    }

    pub fn activation(&mut self) -> f32 {
        let (kind, rare) = (self.kind, self.below(100));
        match kind {
            1 => self.below(3) as f32 - 1.0,
            2 if rare < 3 => [3e38, -3e38, 1e30, -1e-40, 0.0][self.below(5)],
            4 => [0.0, -0.0][rare % 2],
            3 if rare < 1 => [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][self.below(3)],
            _ => self.unit() * 4.0,
        }
    }

    pub fn activations(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.activation()).collect()
    }
}
