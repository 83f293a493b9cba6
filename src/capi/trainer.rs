//! Trainers: an SAE from activations as they flow by.

use std::ffi::c_char;
use std::path::Path;

use super::boundary::{array, boundary, check_flags, count, present, required_text};
use super::collective::{ranks_or_alone, sae_collective};
use super::convention::sae_convention;
use super::handle::{Exclusive, Handle, get, put, take_back};
use super::log::{SAE_LOG_INFO, log};
use super::model::{read_normalization, sae_model};
use super::pool::{pool_or_serial, sae_pool};
use super::run::{SAE_RUN_FAST, SAE_RUN_ROUND_SUM, read_stream, sae_run};
use super::sized::{self, Output, sized};
use super::status::{sae_error, sae_status};
use super::tensor::{given, needed, sae_tensor};
use crate::backend::Pool;
use crate::collective::Ranks;
use crate::error::{Result, fail};
use crate::training::{Batch, Export, Parameter, Penalty, Recipe, Scaling, TrainOptions, Trainer};

/// One training run: its weights, the optimizer's state and counters. For one thread at a time; a call that
/// comes while another runs is refused with `SAE_ERROR_BAD_STATE`.
pub struct sae_trainer(Exclusive<Trainer>);

impl Handle for sae_trainer {}

/// No auxiliary loss on dead latents.
pub const SAE_TRAIN_NO_AUX: u32 = 1;
/// No moving average of the weights, which saves its memory.
pub const SAE_TRAIN_NO_EMA: u32 = 2;

/// Train a transcoder: batches have targets, which is what is reconstructed, and b_dec is not subtracted from the inputs.
pub const SAE_TRAIN_TRANSCODER: u32 = 4;
/// Give a transcoder a skip path: `W_skip x` is added to what it reconstructs.
pub const SAE_TRAIN_SKIP: u32 = 8;

/// The k largest of each token (Gao et al. 2024).
pub const SAE_RECIPE_TOP_K: i32 = 0;
/// TopK by the losses of k and 4 k together, for an SAE that serves any k between and beyond (Gao et al. 2024).
pub const SAE_RECIPE_MULTI_TOP_K: i32 = 1;
/// The k largest of each token of a batch on average; exported with a threshold (Bussmann et al. 2024).
pub const SAE_RECIPE_BATCH_TOP_K: i32 = 2;
/// BatchTopK of which every prefix is an SAE too (Bussmann et al. 2025).
pub const SAE_RECIPE_MATRYOSHKA: i32 = 3;
/// The k largest in magnitude of each token, with their signs (Zhu et al. 2025).
pub const SAE_RECIPE_ABS_TOP_K: i32 = 4;
/// All positive pre-activations, with an L1 penalty (Bricken et al. 2023, Conerly et al. 2024).
pub const SAE_RECIPE_RELU: i32 = 5;
/// Those beyond trained thresholds, with a penalty on their number (Rajamanoharan et al. 2024).
pub const SAE_RECIPE_JUMP_RELU: i32 = 6;
/// Those whose gates are open, with an L1 penalty on the gates (Rajamanoharan et al. 2024).
pub const SAE_RECIPE_GATED: i32 = 7;

/// L0: the number of active latents.
pub const SAE_PENALTY_STEP: i32 = 0;
/// The sum of tanh(4 z), nearly their number.
pub const SAE_PENALTY_TANH: i32 = 1;
/// The square of how far their number is from `target_l0`, times 2 / `target_l0`.
pub const SAE_PENALTY_QUADRATIC: i32 = 2;

/// `SAE_SCALING_ROOT_WIDTH` for recipes with a penalty, unless each token is normalised, and for crosscoders; else
/// `SAE_SCALING_NONE`.
pub const SAE_SCALING_RECIPE: i32 = 0;
/// Activations are trained on as they are.
pub const SAE_SCALING_NONE: i32 = 1;
/// They are multiplied so that their mean norm is sqrt(d), in each layer of a crosscoder.
pub const SAE_SCALING_ROOT_WIDTH: i32 = 2;
/// They are multiplied so that the mean square of their norm is 1.
pub const SAE_SCALING_UNIT_SQUARE: i32 = 3;

/// W_enc is not trained.
pub const SAE_FREEZE_W_ENC: u32 = 1;
/// b_enc is not trained.
pub const SAE_FREEZE_B_ENC: u32 = 2;
/// W_dec is not trained.
pub const SAE_FREEZE_W_DEC: u32 = 4;
/// b_dec is not trained.
pub const SAE_FREEZE_B_DEC: u32 = 8;
/// JumpReLU's thresholds are not trained.
pub const SAE_FREEZE_THRESHOLD: u32 = 16;
/// The gates' biases are not trained.
pub const SAE_FREEZE_B_GATE: u32 = 32;
/// The logarithms of the magnitudes' factors are not trained.
pub const SAE_FREEZE_R_MAG: u32 = 64;
/// The skip path is not trained.
pub const SAE_FREEZE_W_SKIP: u32 = 128;

/// How a run is made. `d`, `n_latents` and, for recipes that keep a number of latents, `k` must be set; zero is a good default
/// of all others. What a recipe has no use for must be zero.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_train_options {
    /// `sizeof(sae_train_options)`; `SAE_TRAIN_OPTIONS_INIT` sets it.
    pub struct_size: usize,
    /// Width of the activations; of a crosscoder's, that of each layer.
    pub d: i64,
    /// Number of latents.
    pub n_latents: i64,
    /// Latents kept per token, on average where a batch's tokens compete; 0 for recipes with a penalty.
    pub k: i64,
    /// Dead latents that the auxiliary loss uses per token; 0: d / 2.
    pub k_aux: i64,
    /// The most tokens of a batch; 0: 8192.
    pub max_batch_tokens: i64,
    /// Tokens without firing after which a latent is dead; 0: 10,000,000, or 5 % of `total_tokens` if that is less.
    pub dead_after_tokens: u64,
    /// Optimizer steps over which the learning rate rises from 0; 0: none.
    pub warmup_steps: u64,
    /// Planned length of the run in tokens; 0: not known. It may end sooner or later.
    pub total_tokens: u64,
    /// Seed of the initial weights and of what resampling draws, the only random numbers of a run.
    pub seed: u64,
    /// Who computes; NULL: the calling thread alone. The numbers do not depend on it.
    pub pool: *const sae_pool,
    /// What the inputs look like, to be kept with what is exported; NULL: not known.
    pub convention: *const sae_convention,
    /// Adam's learning rate; 0: 2e-4 / sqrt(n_latents / 16384).
    pub learning_rate: f32,
    /// The last part of `total_tokens`, 0 to 1, over which the learning rate falls to 0.
    pub decay_fraction: f32,
    /// The auxiliary loss's coefficient; 0: 1/32.
    pub aux_coefficient: f32,
    /// Adam's beta 1; 0: 0.9, but 0 for JumpReLU and Gated.
    pub adam_beta1: f32,
    /// Adam's beta 2; 0: 0.999.
    pub adam_beta2: f32,
    /// Adam's epsilon; 0: 6.25e-10.
    pub adam_epsilon: f32,
    /// Global norm that gradients are clipped to; 0: no clipping.
    pub clip_norm: f32,
    /// Decay of the weights' moving average; 0: 0.999.
    pub ema_decay: f32,
    /// What is done to activations first: `SAE_NORMALIZATION_NONE` or `SAE_NORMALIZATION_LAYER_NORM`.
    pub normalization: i32,
    /// `SAE_TRAIN_NO_AUX`, `SAE_TRAIN_NO_EMA`, `SAE_TRAIN_TRANSCODER`, `SAE_TRAIN_SKIP`.
    pub flags: u32,
    /// Width of a transcoder's targets; 0: `d`.
    pub d_out: i64,
    /// Latents kept at the start of the run; 0: `k`.
    pub k_start: i64,
    /// Optimizer steps over which `k_start` becomes `k`, linearly.
    pub k_anneal_steps: u64,
    /// For Matryoshka, `[n_prefixes]`: the sizes of the nested SAEs, ascending up to `n_latents`; NULL: a sixteenth of the latents,
    /// an eighth, a quarter, a half, and all.
    pub prefixes: *const i64,
    /// `[n_prefixes]`: by what the squared error of each is multiplied in the loss; NULL: 1.
    pub prefix_weights: *const f32,
    /// How many there are.
    pub n_prefixes: i64,
    /// Optimizer steps over which the penalty's coefficient rises from 0; 0: none.
    pub sparsity_warmup_steps: u64,
    /// Optimizer steps after each of which dead latents start anew from badly explained tokens (Bricken et al. 2023); 0: never.
    /// Instead of the auxiliary loss: recipes that have it need `SAE_TRAIN_NO_AUX`.
    pub resample_every: u64,
    /// The penalty's coefficient, against squared errors summed over the width, as in the papers; 0: 1 for JumpReLU, and for ReLU
    /// and Gated 0.03 sqrt(`d`), or 0.03 by `SAE_SCALING_UNIT_SQUARE`.
    pub sparsity_coefficient: f32,
    /// For `SAE_PENALTY_QUADRATIC`: the number of active latents that it pulls to.
    pub target_l0: f32,
    /// For JumpReLU: how far around a threshold its gradient is estimated; 0: 0.05.
    pub bandwidth: f32,
    /// For JumpReLU: the thresholds at the start; 0: 0.01.
    pub initial_threshold: f32,
    /// What is trained, and by which loss: `SAE_RECIPE_…`.
    pub recipe: i32,
    /// For JumpReLU: `SAE_PENALTY_…`.
    pub penalty: i32,
    /// What activations are multiplied by before anything else, which is folded into exports: `SAE_SCALING_…`.
    pub scaling: i32,
    /// What stays as the run's start has it: `SAE_FREEZE_…`.
    pub frozen: u32,
    /// Layers of the model that are read and written at once, by a crosscoder; 0: 1. With more, what is said to be `[T, d]` is
    /// `[T, layers, d]`.
    pub layers: i64,
    /// The other processes of the run, which all need the same options and make the same calls, but for batches; NULL: there
    /// are none. What is refused to one of them is refused to all.
    pub collective: *const sae_collective,
}
sized!(sae_train_options: d, n_latents, k, k_aux, max_batch_tokens, dead_after_tokens, warmup_steps, total_tokens, seed,
    pool, convention, learning_rate, decay_fraction, aux_coefficient, adam_beta1, adam_beta2, adam_epsilon, clip_norm,
    ema_decay, normalization, flags; d_out, k_start, k_anneal_steps, prefixes, prefix_weights, n_prefixes,
    sparsity_warmup_steps, resample_every, sparsity_coefficient, target_l0, bandwidth, initial_threshold, recipe, penalty,
    scaling, frozen, layers, collective);

/// Makes a run. It is started by `sae_trainer_init_from` or `sae_trainer_warm_start`. It takes about 41 bytes for each of
/// `n_latents` · `d` (33 without the moving average, 1 less where no 8-bit copy of the encoder speeds it up), and for each
/// token of the largest batch 8 `d` + 24 `k` by TopK, 16 `d` + 112 `k` by Multi-TopK, 8 `d` + 56 `k` by BatchTopK, with 4 `d` more
/// for each prefix of Matryoshka; recipes with a penalty take 8 `d`, and 48 to 96 MB for all tokens together.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_create(
    options: *const sae_train_options,
    out: *mut *mut sae_trainer,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's pointers.
        let (options, pool, ranks) = unsafe { sized::require("options", options)?.read()? };
        let trainer = Trainer::among(&options, pool, ranks).map_err(|e| e.at("options"))?;
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_trainer(Exclusive::new(trainer))) };
        Ok(())
    })
}

/// Starts a run from a first sample `[S, d]`, some thousand tokens that look like the rest: b_dec becomes its geometric median,
/// the loss is divided by its variance, and random weights are scaled to it. Tokens that are not finite are left out.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_init_from(
    trainer: *mut sae_trainer,
    sample: *const sae_tensor,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (trainer, sample) = unsafe { (get("trainer", trainer)?, needed("sample", sample)?.read("sample")?) };
        trainer.0.enter("trainer")?.init_from(&sample)
    })
}

/// `sae_trainer_init_from` for a transcoder: a first sample of inputs `[S, d]` and one of their targets `[S, d_out]`. b_dec
/// becomes the targets' geometric median, and the loss is divided by their variance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_init_transcoder(
    trainer: *mut sae_trainer,
    sample: *const sae_tensor,
    target: *const sae_tensor,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (trainer, sample, target) = unsafe {
            let (sample, target) =
                (needed("sample", sample)?.read("sample")?, needed("target", target)?.read("target")?);
            (get("trainer", trainer)?, sample, target)
        };
        trainer.0.enter("trainer")?.init_transcoder(&sample, &target)
    })
}

/// `sae_trainer_warm_start` for a transcoder: with samples of inputs `[S, d]` and of their targets `[S, d_out]`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_warm_start_transcoder(
    trainer: *mut sae_trainer,
    model: *const sae_model,
    sample: *const sae_tensor,
    target: *const sae_tensor,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (trainer, model, sample, target) = unsafe {
            let (sample, target) =
                (needed("sample", sample)?.read("sample")?, needed("target", target)?.read("target")?);
            (get("trainer", trainer)?, get("model", model)?, sample, target)
        };
        trainer.0.enter("trainer")?.warm_start_transcoder(model.sae(), &sample, &target)
    })
}

/// Starts a run from the weights of a model of the same sizes, of an architecture that the recipe trains or can start from; the
/// loss is divided by the variance of the sample `[S, d]`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_warm_start(
    trainer: *mut sae_trainer,
    model: *const sae_model,
    sample: *const sae_tensor,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (trainer, model, sample) =
            unsafe { (get("trainer", trainer)?, get("model", model)?, needed("sample", sample)?.read("sample")?) };
        trainer.0.enter("trainer")?.warm_start(model.sae(), &sample)
    })
}

/// Keep the gradients and make no step; the next call without it makes one with the mean over all tokens since. The auxiliary
/// loss is a ratio of each call's own tokens, weighted by their number, and a latent may die or fire between calls: with it,
/// accumulated calls are close to one large batch, not equal to it. `SAE_RECIPE_BATCH_TOP_K` and `SAE_RECIPE_MATRYOSHKA` let
/// tokens compete within one call alone, and resampling sees the last call's tokens alone.
pub const SAE_BATCH_ACCUMULATE: u32 = 1;

/// What one call trains on.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_train_batch {
    /// `sizeof(sae_train_batch)`; `SAE_TRAIN_BATCH_INIT` sets it.
    pub struct_size: usize,
    /// `[T, d]` (of a crosscoder `[T, layers, d]`), f32, f16 or bf16; T from 0 to `max_batch_tokens`.
    pub x: *const sae_tensor,
    /// As x: x + addend is trained on, formed in f32; NULL: x.
    pub addend: *const sae_tensor,
    /// `[T, d_out]`, f32, f16 or bf16: what a transcoder reconstructs; NULL for an autoencoder.
    pub target: *const sae_tensor,
    /// `[T]`, i32: tokens with 0 are left out, such as the attention sink; NULL: all count.
    pub row_mask: *const sae_tensor,
    /// `SAE_BATCH_ACCUMULATE`.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}
sized!(sae_train_batch: x, addend, target, row_mask, flags, reserved);

/// What a call tells about itself. Losses, FVU and L0 are of its own tokens, under the weights they were computed with.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_train_stats {
    /// `sizeof(sae_train_stats)`; `SAE_TRAIN_STATS_INIT` sets it.
    pub struct_size: usize,
    /// Optimizer steps made so far.
    pub step: u64,
    /// Tokens trained on since the run began.
    pub tokens_seen: u64,
    /// Tokens of this call that were trained on.
    pub tokens: u64,
    /// Tokens left out by the row mask.
    pub tokens_masked: u64,
    /// Tokens left out because they were not finite, or too large for their square to be.
    pub tokens_not_finite: u64,
    /// Latents that are dead after this call.
    pub dead: u64,
    /// What is minimised: `mse + aux + sparsity`.
    pub loss: f64,
    /// The reconstruction's part, divided by the first sample's variance.
    pub mse: f64,
    /// The auxiliary loss's part, its coefficient included; for Gated, what the gates alone reconstruct.
    pub aux: f64,
    /// Fraction of variance unexplained, 0 to 1 and beyond.
    pub fvu: f64,
    /// Mean count of active latents per token.
    pub l0: f64,
    /// Dead latents as a share of all.
    pub dead_fraction: f64,
    /// Global norm of the gradient before clipping; 0 if no step was made.
    pub grad_norm: f64,
    /// Learning rate of the step; 0 if no step was made.
    pub learning_rate: f64,
    /// 1 if this call made an optimizer step, 0 if its gradients wait.
    pub applied: i32,
    /// 0.
    pub reserved: u32,
    /// The penalty's part, its coefficient included; 0 for recipes without one.
    pub sparsity: f64,
    /// Latents that started anew after the step.
    pub resampled: u64,
}
sized!(sae_train_stats: step, tokens_seen, tokens, tokens_masked, tokens_not_finite, dead, loss, mse, aux, fvu, l0,
    dead_fraction, grad_norm, learning_rate, applied, reserved; sparsity, resampled);

/// Trains on a batch: one optimizer step, unless it accumulates. `stats` may be NULL; of `run`, `SAE_RUN_FAST` and
/// `SAE_RUN_ROUND_SUM` are known. A call that is refused changes nothing. If the gradient is not finite
/// (`SAE_ERROR_NOT_FINITE`), it is dropped, with all that was accumulated, and the weights stay as they are; the batch still
/// counts in `rows_given` and `tokens_seen`, and for latents that did not fire.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_train_step(
    trainer: *mut sae_trainer,
    run: *const sae_run,
    batch: *const sae_train_batch,
    stats: *mut sae_train_stats,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (trainer, batch, stats) = unsafe {
            let round_sum = check_run(run)?;
            let stats = if stats.is_null() { None } else { Some(Output::new("stats", stats)?) };
            let batch = Batch { round_sum, ..sized::require("batch", batch)?.read()? };
            (get("trainer", trainer)?, batch, stats)
        };
        let made = trainer.0.enter("trainer")?.step(&batch)?;
        if let Some(stats) = stats {
            stats.write(&sae_train_stats {
                struct_size: 0,
                step: made.step,
                tokens_seen: made.tokens_seen,
                tokens: made.tokens as u64,
                tokens_masked: made.tokens_masked as u64,
                tokens_not_finite: made.tokens_not_finite as u64,
                dead: made.dead as u64,
                loss: made.loss,
                mse: made.mse,
                aux: made.aux,
                fvu: made.fvu,
                l0: made.l0,
                dead_fraction: made.dead_fraction,
                grad_norm: made.grad_norm,
                learning_rate: made.learning_rate,
                applied: i32::from(made.applied),
                reserved: 0,
                sparsity: made.sparsity,
                resampled: made.resampled as u64,
            });
        }
        Ok(())
    })
}

/// From the next step on, learning rates are the schedule's times `rate`, until it is set again; checkpoints keep it. A run that
/// diverged (`SAE_ERROR_NOT_FINITE`, or a loss that rises) may be resumed from its last checkpoint and go on with less.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_set_rate(
    trainer: *mut sae_trainer,
    rate: f64,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's handle.
        let trainer = unsafe { get("trainer", trainer)? };
        trainer.0.enter("trainer")?.set_rate(rate)
    })
}

/// What a run is, and how far it has come: after `sae_trainer_resume`, the host's data continues at `rows_given`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_train_progress {
    /// `sizeof(sae_train_progress)`; `SAE_TRAIN_PROGRESS_INIT` sets it.
    pub struct_size: usize,
    /// Width of the activations.
    pub d: i64,
    /// Number of latents.
    pub n_latents: i64,
    /// Latents kept per token.
    pub k: i64,
    /// The most tokens of a batch.
    pub max_batch_tokens: i64,
    /// Planned length of the run in tokens; 0: not known.
    pub total_tokens: u64,
    /// Optimizer steps made so far.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens_seen: u64,
    /// Rows of all batches so far, those left out included.
    pub rows_given: u64,
    /// 1 if the run was started, 0 if not.
    pub started: i32,
    /// 0.
    pub reserved: u32,
}
sized!(sae_train_progress: d, n_latents, k, max_batch_tokens, total_tokens, step, tokens_seen, rows_given, started,
    reserved);

/// Tells what a run is, and how far it has come.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_progress(
    trainer: *mut sae_trainer,
    out: *mut sae_train_progress,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (trainer, out) = unsafe { (get("trainer", trainer)?, Output::new("out", out)?) };
        let trainer = trainer.0.enter("trainer")?;
        let (options, progress) = (trainer.options(), trainer.progress());
        out.write(&sae_train_progress {
            struct_size: 0,
            d: options.d as i64,
            n_latents: options.n_latents as i64,
            k: options.k as i64,
            max_batch_tokens: options.max_batch_tokens as i64,
            total_tokens: options.total_tokens,
            step: progress.map_or(0, |p| p.step),
            tokens_seen: progress.map_or(0, |p| p.tokens_seen),
            rows_given: progress.map_or(0, |p| p.rows_given),
            started: i32::from(progress.is_some()),
            reserved: 0,
        });
        Ok(())
    })
}

/// Saves all that is needed to continue to the same bits into a directory, which is made if it is not there. Whatever
/// happens, the directory holds the last complete checkpoint. Of several processes each writes its part, into one directory
/// that is the same for all.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_save(
    trainer: *mut sae_trainer,
    dir: *const c_char,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (trainer, dir) = unsafe { (get("trainer", trainer)?, required_text("dir", dir)?) };
        let trainer = trainer.0.enter("trainer")?;
        trainer.save(Path::new(dir))?;
        log(SAE_LOG_INFO, || format!("{dir}: checkpoint saved"));
        Ok(())
    })
}

/// Continues a run from its last checkpoint. `options` may be NULL; what is set in them must agree with the checkpoint, except
/// for `pool`, `max_batch_tokens` and `collective`: as many processes go on as there are now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_resume(
    dir: *const c_char,
    options: *const sae_train_options,
    out: *mut *mut sae_trainer,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's pointers.
        let (dir, (options, pool, ranks)) = unsafe {
            let options = sized::read("options", options)?.map(|options| options.read()).transpose()?;
            let defaults = || (TrainOptions::default(), Pool::serial(), Ranks::alone());
            (required_text("dir", dir)?, options.unwrap_or_else(defaults))
        };
        let trainer = Trainer::resume_among(Path::new(dir), &options, pool, ranks)?;
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_trainer(Exclusive::new(trainer))) };
        Ok(())
    })
}

/// The weights of the last step.
pub const SAE_EXPORT_WEIGHTS: i32 = 0;
/// Their moving average over the steps, which often reconstructs better.
pub const SAE_EXPORT_EMA: i32 = 1;

/// Makes a model of what was trained so far: `SAE_EXPORT_WEIGHTS` or `SAE_EXPORT_EMA`. Decoder rows have norm 1; of a crosscoder,
/// the norms of their layers add up to 1 on the scale of training. Of several processes, all must call, and each gets the whole.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_export(
    trainer: *mut sae_trainer,
    what: i32,
    out: *mut *mut sae_model,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        let what = match what {
            SAE_EXPORT_WEIGHTS => Export::Weights,
            SAE_EXPORT_EMA => Export::Ema,
            other => return fail!(InvalidArgument, "what: {other} is not known"),
        };
        // SAFETY: the caller's handle.
        let trainer = unsafe { get("trainer", trainer)? };
        let sae = trainer.0.enter("trainer")?.export(what)?;
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_model::new(sae, None, None, &[])?) };
        Ok(())
    })
}

/// Frees a trainer; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_trainer_free(trainer: *mut sae_trainer) {
    // SAFETY: the caller's handle, which it gives up.
    unsafe { take_back(trainer) };
}

/// The recipes by their numbers.
const RECIPES: [Recipe; 8] = [
    Recipe::TopK,
    Recipe::MultiTopK,
    Recipe::BatchTopK,
    Recipe::Matryoshka,
    Recipe::AbsTopK,
    Recipe::Relu,
    Recipe::JumpRelu,
    Recipe::Gated,
];

/// The scalings by their numbers.
const SCALINGS: [Scaling; 4] = [Scaling::Recipe, Scaling::None, Scaling::RootWidth, Scaling::UnitSquare];

/// What can be left alone.
const FREEZE: [(u32, Parameter); 8] = [
    (SAE_FREEZE_W_ENC, Parameter::WEnc),
    (SAE_FREEZE_B_ENC, Parameter::BEnc),
    (SAE_FREEZE_W_DEC, Parameter::WDec),
    (SAE_FREEZE_B_DEC, Parameter::BDec),
    (SAE_FREEZE_THRESHOLD, Parameter::Threshold),
    (SAE_FREEZE_B_GATE, Parameter::BGate),
    (SAE_FREEZE_R_MAG, Parameter::RMag),
    (SAE_FREEZE_W_SKIP, Parameter::WSkip),
];

/// What a number stands for.
fn named<T: Copy>(name: &str, number: i32, known: &[T]) -> Result<T> {
    match usize::try_from(number).ok().and_then(|number| known.get(number)) {
        Some(found) => Ok(*found),
        None => fail!(InvalidArgument, "{name}: {number} is not known; there are 0 to {}", known.len() - 1),
    }
}

impl sae_train_options {
    /// # Safety
    /// What the pointers point to must be so.
    unsafe fn read(&self) -> Result<(TrainOptions, Pool, Ranks)> {
        let flags = SAE_TRAIN_NO_AUX | SAE_TRAIN_NO_EMA | SAE_TRAIN_TRANSCODER | SAE_TRAIN_SKIP;
        check_flags("options.flags", self.flags, flags)?;
        check_flags("options.frozen", self.frozen, FREEZE.iter().map(|(flag, _)| flag).sum())?;
        // SAFETY: the caller's promise.
        let (prefixes, prefix_weights) = unsafe { self.read_prefixes()? };
        // SAFETY: the caller's promise.
        let (pool, ranks, convention) = unsafe {
            (
                pool_or_serial("options.pool", self.pool)?,
                ranks_or_alone("options.collective", self.collective)?,
                sae_convention::read("options.convention", self.convention)?,
            )
        };
        let options = TrainOptions {
            d: count("options.d", self.d)?,
            layers: count("options.layers", self.layers)?,
            n_latents: count("options.n_latents", self.n_latents)?,
            k: count("options.k", self.k)?,
            k_aux: count("options.k_aux", self.k_aux)?,
            aux_coefficient: self.aux_coefficient,
            no_aux: self.flags & SAE_TRAIN_NO_AUX != 0,
            dead_after_tokens: self.dead_after_tokens,
            learning_rate: self.learning_rate,
            warmup_steps: self.warmup_steps,
            total_tokens: self.total_tokens,
            decay_fraction: self.decay_fraction,
            adam_beta1: self.adam_beta1,
            adam_beta2: self.adam_beta2,
            adam_epsilon: self.adam_epsilon,
            clip_norm: self.clip_norm,
            ema_decay: self.ema_decay,
            no_ema: self.flags & SAE_TRAIN_NO_EMA != 0,
            seed: self.seed,
            max_batch_tokens: count("options.max_batch_tokens", self.max_batch_tokens)?,
            normalization: read_normalization("options", self.normalization)?,
            convention,
            transcoder: self.flags & SAE_TRAIN_TRANSCODER != 0,
            skip: self.flags & SAE_TRAIN_SKIP != 0,
            d_out: count("options.d_out", self.d_out)?,
            k_start: count("options.k_start", self.k_start)?,
            k_anneal_steps: self.k_anneal_steps,
            prefixes,
            prefix_weights,
            sparsity_warmup_steps: self.sparsity_warmup_steps,
            resample_every: self.resample_every,
            sparsity_coefficient: self.sparsity_coefficient,
            target_l0: self.target_l0,
            bandwidth: self.bandwidth,
            initial_threshold: self.initial_threshold,
            recipe: named("options.recipe", self.recipe, &RECIPES)?,
            penalty: named("options.penalty", self.penalty, &[Penalty::Step, Penalty::Tanh, Penalty::Quadratic])?,
            scaling: named("options.scaling", self.scaling, &SCALINGS)?,
            frozen: FREEZE
                .iter()
                .filter(|(flag, _)| self.frozen & flag != 0)
                .map(|(_, parameter)| *parameter)
                .collect(),
        };
        Ok((options, pool, ranks))
    }

    /// The sizes of the prefixes and their weights; nothing where there is no pointer.
    ///
    /// # Safety
    /// Pointers that are not NULL must point to `n_prefixes` numbers.
    unsafe fn read_prefixes(&self) -> Result<(Vec<usize>, Vec<f32>)> {
        let Self { prefixes, prefix_weights, n_prefixes, n_latents, .. } = *self;
        let (len, none) = (count("options.n_prefixes", n_prefixes)?, prefixes.is_null() && prefix_weights.is_null());
        // A resumed run's options may leave n_latents out.
        if n_prefixes > n_latents && n_latents > 0 {
            return fail!(InvalidArgument, "options.n_prefixes: {len} is more than n_latents, which is {n_latents}");
        }
        if none != (len == 0) {
            let what = if none { "prefixes and prefix_weights are NULL" } else { "it must tell how many are given" };
            return fail!(InvalidArgument, "options.n_prefixes: is {len}, but {what}");
        }
        let given = |pointer_is_null: bool| if pointer_is_null { 0 } else { len };
        // SAFETY: the caller's promise.
        let (sizes, weights) = unsafe {
            (
                array("options.prefixes", prefixes, given(prefixes.is_null()))?,
                array("options.prefix_weights", prefix_weights, given(prefix_weights.is_null()))?,
            )
        };
        let sizes = sizes.iter().map(|size| count("options.prefixes", *size)).collect::<Result<_>>()?;
        Ok((sizes, weights.to_vec()))
    }
}

impl sae_train_batch {
    /// # Safety
    /// What the tensors describe must be so, for `'a`.
    unsafe fn read<'a>(&self) -> Result<Batch<'a>> {
        check_flags("batch.flags", self.flags, SAE_BATCH_ACCUMULATE)?;
        if self.reserved != 0 {
            return fail!(InvalidArgument, "batch.reserved: {} is not known; leave it 0", self.reserved);
        }
        // SAFETY: the caller's promise.
        unsafe {
            let optional =
                |name: &str, tensor| given(name, tensor)?.map(|tensor: &sae_tensor| tensor.read(name)).transpose();
            Ok(Batch {
                x: needed("x", self.x)?.read("x")?,
                addend: optional("addend", self.addend)?,
                round_sum: false,
                target: optional("target", self.target)?,
                row_mask: optional("row_mask", self.row_mask)?,
                accumulate: self.flags & SAE_BATCH_ACCUMULATE != 0,
            })
        }
    }
}

/// Refuses ways to run that training has not; whether x + addend is rounded.
unsafe fn check_run(run: *const sae_run) -> Result<bool> {
    // SAFETY: the caller's pointer.
    let Some(run) = (unsafe { sized::read("run", run)? }) else { return Ok(false) };
    check_flags("run.flags", run.flags, SAE_RUN_FAST | SAE_RUN_ROUND_SUM)?;
    if !run.workspace.is_null() || run.workspace_size > 0 {
        return fail!(Unsupported, "run.workspace: a trainer works in its own memory; leave it NULL");
    }
    read_stream(&run, false)?;
    Ok(run.flags & SAE_RUN_ROUND_SUM != 0)
}
