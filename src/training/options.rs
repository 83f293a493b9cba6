//! How a run is made. A zero means the default, here and in the C ABI alike.

use serde::{Deserialize, Serialize};

use super::{Penalty, Recipe, Scaling, export};
use crate::backend::training::{Parameter, TrainingShape};
use crate::error::{Error, Result, fail};
use crate::sae::{Convention, Normalization, Sae, Spec};

/// What a run is made with. Only `d`, `n_latents` and `k` have no default; zeros elsewhere stand for what is said there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// What is trained, and by which loss.
    pub recipe: Recipe,
    /// Width of the activations; of a crosscoder's, that of each layer.
    pub d: usize,
    /// Layers of the model that are read and written at once, by a crosscoder: batches are `[T, layers, d]` then. 0: 1.
    pub layers: usize,
    /// Train a transcoder: batches have targets, which is what is reconstructed, and b_dec is not subtracted from the inputs.
    pub transcoder: bool,
    /// Width of a transcoder's targets. 0: `d`.
    pub d_out: usize,
    /// Give a transcoder a skip path: `W_skip x` is added to what it reconstructs (Paulo et al. 2025, arXiv 2501.18823).
    pub skip: bool,
    /// What is not trained: it stays as the run's start has it.
    pub frozen: Vec<Parameter>,
    /// Number of latents.
    pub n_latents: usize,
    /// Latents kept per token; by recipes where a batch's tokens compete, on average. For recipes that count none, 0.
    pub k: usize,
    /// Latents kept at the start of the run, where that is another number. 0: `k`.
    pub k_start: usize,
    /// Optimizer steps over which `k_start` becomes `k`, linearly.
    pub k_anneal_steps: u64,
    /// For Matryoshka: the sizes of the nested SAEs, ascending up to `n_latents`. Empty: a sixteenth of the latents, an
    /// eighth, a quarter, a half, and all.
    pub prefixes: Vec<usize>,
    /// By what the squared error of each is multiplied in the loss. Empty: 1.
    pub prefix_weights: Vec<f32>,
    /// The coefficient λ of what holds activations down, for recipes that count none: as in the papers, against squared errors
    /// summed over `d`; the loss as a whole is then divided by `d · normalizer`. 0: 1 for JumpReLU; for ReLU and Gated `0.03 √d`
    /// for activations whose mean norm is √d, 0.03 where the mean square of it is 1: the middle of the 0.012 to 0.06 (Gated: 0.08)
    /// that dictionary_learning's demonstration trains with. An L1 grows with the norm where squared errors grow with its square,
    /// so one number does not do for every width: 5 (Conerly et al. 2024) is 0.03 √d at a d of 28,000. What L0 it leads to
    /// depends on the activations; a larger one leads to a smaller.
    pub sparsity_coefficient: f32,
    /// Optimizer steps over which λ rises from 0. 0: none.
    pub sparsity_warmup_steps: u64,
    /// For JumpReLU: what λ multiplies.
    pub penalty: Penalty,
    /// For the penalty `quadratic`: the number of active latents that it pulls to. It has no default.
    pub target_l0: f32,
    /// For JumpReLU: how far around a threshold its gradient is estimated, ε. 0: 0.05.
    pub bandwidth: f32,
    /// For JumpReLU: the thresholds of a run that starts from random weights, or from an SAE that has none. 0: 0.01.
    pub initial_threshold: f32,
    /// Dead latents that AuxK uses per token. 0: d / 2 rounded down, at least 1, at most `n_latents`.
    pub k_aux: usize,
    /// AuxK's coefficient α. 0: 1/32.
    pub aux_coefficient: f32,
    /// No AuxK at all; recipes that count no latents have none anyway.
    pub no_aux: bool,
    /// Tokens without firing after which a latent is dead. 0: 10,000,000, or 5 % of `total_tokens` if that is less.
    pub dead_after_tokens: u64,
    /// Optimizer steps after each of which dead latents start anew from badly explained tokens of its batch (Bricken et al. 2023).
    /// 0: never. Instead of AuxK, so recipes that have it need `no_aux`.
    pub resample_every: u64,
    /// Adam's learning rate. 0: `2e-4 / √(n_latents / 2¹⁴)`.
    pub learning_rate: f32,
    /// Optimizer steps over which the learning rate rises from 0. 0: none.
    pub warmup_steps: u64,
    /// Planned length of the run in tokens. 0: not known. The run may end sooner or later.
    pub total_tokens: u64,
    /// The last part of `total_tokens` over which the learning rate falls to 0. 0: none.
    pub decay_fraction: f32,
    /// Adam's β₁. 0: 0.9, but 0 for JumpReLU and Gated, whose papers have it so.
    pub adam_beta1: f32,
    /// Adam's β₂. 0: 0.999.
    pub adam_beta2: f32,
    /// Adam's ε. 0: 6.25e-10.
    pub adam_epsilon: f32,
    /// Global norm that gradients are clipped to. 0: no clipping.
    pub clip_norm: f32,
    /// Decay of the weights' moving average. 0: 0.999.
    pub ema_decay: f32,
    /// No moving average, which saves its memory.
    pub no_ema: bool,
    /// Seed of the initial weights and of what resampling draws, the only random numbers of a run.
    pub seed: u64,
    /// The most tokens a batch may have. 0: 8192. The numbers do not depend on it, memory does: about `8 d + 24 k` bytes for
    /// each (Multi-TopK: `16 d + 112 k`; BatchTopK: `8 d + 56 k`; Matryoshka as BatchTopK, with `4 d` more for each prefix
    /// and `4 k`; ReLU, JumpReLU and Gated: `8 d`, and 48, 64 and 96 MB for all together), beside 41 for each of `n_latents` · `d` (33 without the moving average, 1 less where no 8-bit copy of the
    /// encoder speeds the run up) and, with AuxK, up to `64 d + 16384` for each of `k_aux`.
    pub max_batch_tokens: usize,
    /// What is done to activations first; the loss is then of the normalised ones.
    pub normalization: Normalization,
    /// What activations are multiplied by before anything else.
    pub scaling: Scaling,
    /// What the inputs look like, to be written into what is exported.
    pub convention: Convention,
}

/// The coefficient of an L1 of activations whose norm's mean square is 1.
const L1: f32 = 0.03;

impl TrainOptions {
    /// The same options with every default filled in; refuses what cannot be trained, naming the option.
    pub fn resolve(&self) -> Result<Self> {
        let or = |value: f32, default: f32| if value == 0.0 { default } else { value };
        let n = self.n_latents;
        let known_length = if self.total_tokens == 0 { u64::MAX } else { self.total_tokens };
        let prefixes = match &self.prefixes[..] {
            [] => self.recipe.default_prefixes(n),
            given => given.to_vec(),
        };
        let d_out = if self.d_out == 0 { self.d } else { self.d_out };
        let (counts, penalized) = (self.recipe.counts_latents(), self.recipe.is_penalized());
        let jumps = self.recipe == Recipe::JumpRelu;
        let resolved = Self {
            sparsity_coefficient: match self.recipe {
                _ if !penalized => self.sparsity_coefficient,
                Recipe::Relu | Recipe::Gated => {
                    let norm = if self.scaling == Scaling::UnitSquare { 1.0 } else { (self.d as f32).sqrt() };
                    or(self.sparsity_coefficient, L1 * norm)
                }
                _ => or(self.sparsity_coefficient, 1.0),
            },
            bandwidth: if jumps { or(self.bandwidth, 0.05) } else { self.bandwidth },
            initial_threshold: if jumps { or(self.initial_threshold, 0.01) } else { self.initial_threshold },
            no_aux: self.no_aux || !counts,
            scaling: match self.scaling {
                Scaling::Recipe if (penalized || self.layers > 1) && self.normalization == Normalization::None => {
                    Scaling::RootWidth
                }
                Scaling::Recipe => Scaling::None,
                given => given,
            },
            k_start: if self.k_start == 0 { self.k } else { self.k_start },
            prefix_weights: match &self.prefix_weights[..] {
                [] => vec![1.0; prefixes.len()],
                given => given.to_vec(),
            },
            prefixes,
            d_out,
            layers: self.layers.max(1),
            k_aux: if self.k_aux == 0 && counts { (d_out / 2).clamp(1, n.max(1)) } else { self.k_aux },
            aux_coefficient: or(self.aux_coefficient, if counts { 1.0 / 32.0 } else { 0.0 }),
            dead_after_tokens: match self.dead_after_tokens {
                0 => (known_length / 20).clamp(1, 10_000_000),
                given => given,
            },
            learning_rate: or(self.learning_rate, (2e-4 / (n as f64 / 16384.0).sqrt()) as f32),
            adam_beta1: or(self.adam_beta1, self.recipe.adam_beta1()),
            adam_beta2: or(self.adam_beta2, 0.999),
            adam_epsilon: or(self.adam_epsilon, 6.25e-10),
            ema_decay: or(self.ema_decay, 0.999),
            max_batch_tokens: if self.max_batch_tokens == 0 { 8192 } else { self.max_batch_tokens },
            ..self.clone()
        };
        resolved.check()?;
        Ok(resolved)
    }

    /// A small SAE of the kind that is exported, to find out beforehand what can be done with such.
    pub fn specimen(&self) -> Result<Sae> {
        export::specimen(&self.resolve()?)
    }

    /// Refuses resolved options that cannot be trained.
    fn check(&self) -> Result<()> {
        self.recipe.check(self)?;
        self.check_paths()?;
        self.check_layers()?;
        self.spec().check().map_err(|error| {
            // The spec speaks of d_in and d_out; here both are `d`.
            let message = error.message().replace("d_in", "d");
            Error::new(error.status(), if self.transcoder { message } else { message.replace("d_out", "d") })
        })?;
        let counts = self.recipe.counts_latents();
        for (name, value, max, applies) in [
            ("k", self.k, self.n_latents, counts),
            ("k_start", self.k_start, self.n_latents, counts),
            ("k_aux", self.k_aux, self.n_latents, counts),
            ("max_batch_tokens", self.max_batch_tokens, 1 << 24, true),
        ] {
            if !applies {
                continue;
            }
            if value == 0 || value > max {
                return fail!(InvalidArgument, "{name} must be between 1 and {max}, not {value}");
            }
        }
        if self.k_start != self.k && self.k_anneal_steps == 0 {
            let Self { k_start, k, .. } = self;
            return fail!(InvalidArgument, "k_start {k_start} becomes k {k} over k_anneal_steps, which is 0");
        }
        if self.k_start == self.k && self.k_anneal_steps > 0 {
            return fail!(InvalidArgument, "k_anneal_steps is given, but k_start is k: nothing is to change");
        }
        let jumps = self.recipe == Recipe::JumpRelu;
        for (name, value, applies) in [
            ("learning_rate", self.learning_rate, true),
            ("adam_epsilon", self.adam_epsilon, true),
            ("aux_coefficient", self.aux_coefficient, counts),
            ("sparsity_coefficient", self.sparsity_coefficient, self.recipe.is_penalized()),
            ("bandwidth", self.bandwidth, jumps),
            ("initial_threshold", self.initial_threshold, jumps),
        ] {
            if applies && !(value > 0.0 && value.is_finite()) {
                return fail!(InvalidArgument, "{name} must be a positive number, not {value}");
            }
        }
        for (name, value) in
            [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2), ("ema_decay", self.ema_decay)]
        {
            // Some recipes' own β₁ is 0.
            let the_recipes_own = name == "adam_beta1" && value == self.recipe.adam_beta1();
            let between = value > 0.0 && value < 1.0;
            if !between && !the_recipes_own {
                return fail!(InvalidArgument, "{name} must lie between 0 and 1, not {value}");
            }
        }
        if !(self.clip_norm >= 0.0 && self.clip_norm.is_finite()) {
            return fail!(
                InvalidArgument,
                "clip_norm must be a positive number, or 0 for none, not {}",
                self.clip_norm
            );
        }
        if !(0.0..=1.0).contains(&self.decay_fraction) {
            return fail!(InvalidArgument, "decay_fraction must lie between 0 and 1, not {}", self.decay_fraction);
        }
        if self.decay_fraction > 0.0 && self.total_tokens == 0 {
            return fail!(InvalidArgument, "decay_fraction needs total_tokens, which is 0");
        }
        if self.normalization != Normalization::None && !matches!(self.scaling, Scaling::Recipe | Scaling::None) {
            return fail!(
                InvalidArgument,
                "scaling and normalization are both given: each token is normalised, so no factor before it matters"
            );
        }
        match self.normalization {
            Normalization::None => Ok(()),
            Normalization::LayerNorm if self.d > 1 => Ok(()),
            Normalization::LayerNorm => fail!(InvalidArgument, "normalization layer_norm needs d of at least 2"),
            Normalization::ConstantNorm => fail!(Unsupported, "normalization constant_norm cannot be trained yet"),
        }
    }

    /// Refuses layers that cannot be read and written at once.
    fn check_layers(&self) -> Result<()> {
        let Self { d, layers, .. } = *self;
        if layers > 1 && self.transcoder {
            return fail!(InvalidArgument, "layers {layers} and transcoder: a crosscoder reconstructs what it reads");
        }
        if layers > 1 && self.normalization != Normalization::None {
            return fail!(
                InvalidArgument,
                "layers {layers} and normalization: layers together are not normalised; scaling brings each to one size"
            );
        }
        if layers > 1 && layers.checked_mul(d).is_none_or(|width| width > i32::MAX as usize) {
            return fail!(InvalidArgument, "layers {layers} of d {d} are more than {} numbers a token", i32::MAX);
        }
        Ok(())
    }

    /// Numbers of a token: all layers, one after another.
    pub(super) fn width(&self) -> usize {
        self.layers.saturating_mul(self.d)
    }

    /// Refuses what goes in and out otherwise than it can, and to leave alone what there is not.
    fn check_paths(&self) -> Result<()> {
        let Self { d, d_out, transcoder, skip, .. } = *self;
        if !transcoder && d_out != d {
            return fail!(InvalidArgument, "d_out {d_out} is not d {d}, which needs transcoder");
        }
        if !transcoder && skip {
            return fail!(InvalidArgument, "skip needs transcoder: an autoencoder would copy its input");
        }
        if skip && self.normalization != Normalization::None {
            return fail!(
                InvalidArgument,
                "skip and normalization are both given: a skip path takes the input as it is"
            );
        }
        if self.resample_every > 0 && !self.no_aux {
            return fail!(
                InvalidArgument,
                "resample_every is given beside AuxK: latents that start anew would not stay dead for it; set no_aux"
            );
        }
        let kept = |parameter: &&Parameter| !matches!(parameter, Parameter::BDec | Parameter::WSkip);
        if let Some(frozen) = self.frozen.iter().find(kept).filter(|_| self.resample_every > 0) {
            let name = frozen.name();
            return fail!(InvalidArgument, "resample_every and frozen {name}: latents that start anew would change it");
        }
        let shape = self.shape();
        for (i, parameter) in self.frozen.iter().enumerate() {
            let name = parameter.name();
            if shape.parameters().all(|trained| trained != *parameter) {
                return fail!(InvalidArgument, "frozen: there is no {name} by recipe {}", self.recipe.name());
            }
            if self.frozen[..i].contains(parameter) {
                return fail!(InvalidArgument, "frozen: {name} is given twice");
            }
        }
        if self.frozen.len() == shape.parameters().count() {
            return fail!(InvalidArgument, "frozen: everything is, so there is nothing to train");
        }
        Ok(())
    }

    /// What the run makes.
    pub(super) fn spec(&self) -> Spec {
        self.recipe.spec(self)
    }

    /// What a backend needs to know of resolved options.
    pub(super) fn shape(&self) -> TrainingShape {
        TrainingShape {
            rule: self.recipe.rule(self),
            d: self.width(),
            d_out: self.layers.saturating_mul(self.d_out),
            layers: self.layers,
            transcoder: self.transcoder,
            skip: self.skip,
            frozen: self.frozen.clone(),
            n_latents: self.n_latents,
            first_latent: 0,
            whole_latents: self.n_latents,
            k: self.k.max(self.k_start),
            k_aux: if self.no_aux { 0 } else { self.k_aux },
            max_tokens: self.max_batch_tokens,
            ema: !self.no_ema,
            normalization: self.normalization,
        }
    }

    /// The options of a resumed run: `stored`, of which `self` may repeat what it likes, but contradict only what the
    /// numbers do not depend on.
    pub(super) fn resume(&self, stored: &Self) -> Result<Self> {
        let unsaid = Self::default();
        macro_rules! agree {
            ($($field:ident),* $(,)?) => {$(
                if self.$field != unsaid.$field && self.$field != stored.$field {
                    return fail!(
                        InvalidArgument,
                        "{} is {}, but the checkpoint was made with {}; leave it at its default to keep that",
                        stringify!($field),
                        written(&self.$field),
                        written(&stored.$field)
                    );
                }
            )*};
        }
        agree!(
            recipe,
            d,
            layers,
            transcoder,
            d_out,
            skip,
            frozen,
            n_latents,
            k,
            k_start,
            k_anneal_steps,
            prefixes,
            prefix_weights,
            sparsity_coefficient,
            sparsity_warmup_steps,
            penalty,
            target_l0,
            bandwidth,
            initial_threshold,
            k_aux,
            aux_coefficient,
            no_aux,
            dead_after_tokens,
            resample_every,
            learning_rate,
            warmup_steps,
            total_tokens,
            decay_fraction,
            adam_beta1,
            adam_beta2,
            adam_epsilon,
            clip_norm,
            ema_decay,
            no_ema,
            seed,
            normalization,
            scaling,
            convention,
        );
        let max_batch_tokens = match self.max_batch_tokens {
            0 => stored.max_batch_tokens,
            given => given,
        };
        Self { max_batch_tokens, ..stored.clone() }.resolve()
    }
}

/// A value as configurations have it.
pub(super) fn written(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
