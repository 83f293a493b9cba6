//! The run itself: batches in, statistics out; start, save, resume, export.

use std::path::Path;

use super::checkpoint;
use super::init::{PROBES, Sample, random_unit_rows};
use super::schedule;
use super::{FIRED, Progress, StepStats, TrainOptions};
use crate::backend::cpu::Kernels;
use crate::backend::cpu::training::CpuTraining;
use crate::backend::training::{BatchSums, LossParameters, Parameter, Role, StepParameters, Training, TrainingRows};
use crate::backend::{Input, Pool};
use crate::error::{Result, fail};
use crate::features::check_tensor;
use crate::sae::{Matrix, Normalization, Reference, Sae, Spec, Weights};
use crate::tensor::{Array, DType, Tensor, try_vec};

/// What one call trains on.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// `[T, d]`, f32, f16 or bf16.
    pub x: Tensor<'a>,
    /// `[T, d]`: `x + addend`, formed in f32, is trained on.
    pub addend: Option<Tensor<'a>>,
    /// Round `x + addend` to x's type, as engines do that write the sum back before they read it.
    pub round_sum: bool,
    /// What to reconstruct instead of the input; transcoders cannot be trained yet, so it must be absent.
    pub target: Option<Tensor<'a>>,
    /// `[T]` i32: rows with 0 are left out.
    pub row_mask: Option<Tensor<'a>>,
    /// Keep the gradients and make no step; the next call without it makes one with the mean over all tokens since.
    pub accumulate: bool,
}

impl<'a> From<Tensor<'a>> for Batch<'a> {
    fn from(x: Tensor<'a>) -> Self {
        Self { x, addend: None, round_sum: false, target: None, row_mask: None, accumulate: false }
    }
}

/// Which weights to export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Export {
    /// Those of the last step.
    Weights,
    /// Their moving average over the steps, bias-corrected, decoder rows scaled to unit norm.
    Ema,
}

/// One training run: weights, optimizer state and counters.
pub struct Trainer {
    options: TrainOptions,
    pool: Pool,
    backend: Box<dyn Training>,
    /// `None` until the run is started.
    progress: Option<Progress>,
}

impl Trainer {
    /// A run that has yet to be started with [`Self::init_from`] or [`Self::warm_start`].
    pub fn new(options: &TrainOptions, pool: Pool) -> Result<Self> {
        let options = options.resolve()?;
        let backend = Box::new(CpuTraining::new(options.shape(), pool.clone(), Kernels::best()?)?);
        Ok(Self { options, pool, backend, progress: None })
    }

    /// The options, every default filled in.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// How far the run has come; `None` until it is started.
    pub fn progress(&self) -> Option<&Progress> {
        self.progress.as_ref()
    }

    /// Starts a run from a first sample `[S, d]`: b_dec becomes its geometric median, its variance the loss's normaliser, and
    /// the random weights are scaled. Rows that are not finite are left out; of more than 32,768 rows, that many are
    /// taken at even distances.
    pub fn init_from(&mut self, sample: &Tensor<'_>) -> Result<()> {
        let sample = self.read_sample(sample)?;
        let normalizer = sample.variance()?;
        let TrainOptions { d, n_latents, k, seed, .. } = self.options;
        // The encoder starts as the decoder, scaled so that unit vectors come back with unit norm, on average.
        let mut rows = random_unit_rows(seed, 0, n_latents, d)?;
        self.backend.write(Role::Weight, Parameter::WDec, &rows)?;
        self.backend.write(Role::Weight, Parameter::WEnc, &rows)?;
        let probes = random_unit_rows(seed, 1, PROBES, d)?;
        let mut norms = [0.0; PROBES];
        let at_once = self.options.max_batch_tokens;
        for (probes, norms) in probes.chunks(at_once * d).zip(norms.chunks_mut(at_once)) {
            self.backend.reconstruction_norms(probes, k, norms)?;
        }
        let norm = norms.iter().sum::<f64>() / PROBES as f64;
        if norm > 0.0 {
            rows.iter_mut().for_each(|w| *w = (f64::from(*w) / norm) as f32);
        }
        self.backend.write(Role::Weight, Parameter::WEnc, &rows)?;
        self.backend.write(Role::Weight, Parameter::BDec, &sample.geometric_median(&self.pool)?)?;
        self.progress = Some(Progress::start(normalizer, sample.reference()));
        Ok(())
    }

    /// Starts a run from the weights of an SAE; the sample `[S, d]` gives the loss's normaliser. The SAE must be a whole
    /// TopK or ReLU autoencoder of the same sizes and normalisation that subtracts b_dec, does not rescale, has no skip
    /// path and writes where it reads: what the run would not keep is refused. Decoder rows are scaled to unit norm, and
    /// the encoder inversely, which leaves each latent's contribution as it was.
    pub fn warm_start(&mut self, sae: &Sae, sample: &Tensor<'_>) -> Result<()> {
        self.check_warm_start(sae)?;
        let sample = self.read_sample(sample)?;
        let normalizer = sample.variance()?;
        let TrainOptions { d, n_latents, .. } = self.options;
        let weights = sae.weights();
        let mut rows = Array::zeroed(n_latents * d)?;
        read_rows(&weights.w_dec, &mut rows);
        let mut norms = Array::<f32>::zeroed(n_latents)?;
        for (i, (norm, row)) in norms.iter_mut().zip(rows.chunks_exact(d)).enumerate() {
            *norm = norm_of(row);
            if *norm == 0.0 || !norm.is_finite() {
                return fail!(InvalidArgument, "model: W_dec row {i} has norm {norm} and cannot be scaled to 1");
            }
        }
        scale_rows(&mut rows, d, |i| 1.0 / f64::from(norms[i]));
        self.backend.write(Role::Weight, Parameter::WDec, &rows)?;
        read_rows(&weights.w_enc, &mut rows);
        scale_rows(&mut rows, d, |i| f64::from(norms[i]));
        self.backend.write(Role::Weight, Parameter::WEnc, &rows)?;
        norms.iter_mut().zip(&weights.b_enc).for_each(|(norm, b)| *norm *= b);
        self.backend.write(Role::Weight, Parameter::BEnc, &norms)?;
        self.backend.write(Role::Weight, Parameter::BDec, &weights.b_dec)?;
        self.progress = Some(Progress::start(normalizer, sample.reference()));
        Ok(())
    }

    fn check_warm_start(&self, sae: &Sae) -> Result<()> {
        let (spec, ours) = (sae.spec(), self.options.spec());
        if spec.is_shard() {
            let (first, whole) = (spec.first_latent, spec.whole_latents());
            return fail!(
                Unsupported,
                "model: is a shard, latents {first}..+{} of {whole}; train on the whole SAE",
                spec.n_latents
            );
        }
        let sizes = |s: &Spec| (s.d_in, s.d_out, s.n_latents);
        if sizes(spec) != sizes(&ours) {
            return fail!(
                InvalidArgument,
                "model: d_in {}, d_out {} and n_latents {} do not fit a run of d {} and n_latents {}",
                spec.d_in,
                spec.d_out,
                spec.n_latents,
                ours.d_in,
                ours.n_latents
            );
        }
        if spec.normalization != ours.normalization {
            return fail!(
                InvalidArgument,
                "model: normalization is {:?}, the run's is {:?}",
                spec.normalization,
                ours.normalization
            );
        }
        let recipe = self.options.recipe;
        if !recipe.starts_from(spec.architecture) {
            let (found, recipe) = (spec.architecture.name(), recipe.name());
            return fail!(Unsupported, "model: a {found} SAE cannot be trained on by recipe {recipe}");
        }
        // What a run does not make would be lost without a word.
        let hooks = (&spec.convention.hook_point, &spec.convention.hook_point_out);
        let missing = [
            (!spec.subtract_b_dec, "it does not subtract b_dec from its input (subtract_b_dec is false)"),
            (spec.rescale_by_decoder_norm, "it rescales by the decoder's norms (rescale_by_decoder_norm)"),
            (spec.select_by_decoder_norm, "it selects by the decoder's norms (select_by_decoder_norm)"),
            (spec.center, "it centres its inputs (center)"),
            (sae.weights().glu.is_some(), "its encoder is a gated linear unit (W_glu)"),
            (sae.weights().w_skip.is_some(), "it has a skip path (W_skip)"),
            (
                !spec.denormalize_output && spec.normalization != Normalization::None,
                "its output stays normalised (denormalize_output is false)",
            ),
            (
                hooks.1.is_some() && hooks.0 != hooks.1,
                "its output belongs elsewhere than its input (hook_point_out), as a transcoder's does",
            ),
        ];
        match missing.iter().find(|(found, _)| *found) {
            Some((_, what)) => fail!(Unsupported, "model: {what}, which training does not do; it would be lost"),
            None => Ok(()),
        }
    }

    fn read_sample(&self, sample: &Tensor<'_>) -> Result<Sample> {
        if self.progress.is_some() {
            return fail!(BadState, "the run is already started; make a new trainer to start another");
        }
        self.check_rows("sample", sample, sample.rows())?;
        Sample::read(sample, self.options.normalization)
    }

    fn check_rows(&self, name: &str, tensor: &Tensor<'_>, rows: usize) -> Result<()> {
        check_tensor(name, tensor, &[rows, self.options.d], DType::is_float, "f32, f16 or bf16")?;
        check_host(name, tensor)
    }

    /// Trains on a batch of at most `max_batch_tokens` rows. A call that is refused changes nothing. Should the gradient
    /// not be finite ([`Status::NotFinite`](crate::Status::NotFinite)), it is dropped, with all that was accumulated, and
    /// weights, optimizer and moving average stay as they are; but the batch counts as given and seen, also for latents
    /// that did not fire.
    pub fn step(&mut self, batch: &Batch<'_>) -> Result<StepStats> {
        let rows = self.check_batch(batch)?;
        let Some(progress) = &mut self.progress else {
            return fail!(BadState, "the run is not started; call init_from with a first sample");
        };
        let loss = LossParameters {
            k: schedule::k(&self.options, progress.step + 1),
            normalizer: progress.normalizer,
            aux_coefficient: f64::from(self.options.aux_coefficient),
            fired: FIRED,
            dead_after_tokens: self.options.dead_after_tokens,
        };
        let sums = self.backend.accumulate(&rows, &loss)?;
        progress.rows_given += batch.x.rows() as u64;
        progress.tokens_seen += sums.tokens as u64;
        progress.pending_tokens += sums.tokens as u64;
        let mut stats = statistics(&sums, &self.options, progress);
        progress.observe(&stats, sums.smallest);
        if batch.accumulate || progress.pending_tokens == 0 {
            return Ok(stats);
        }
        let tokens = std::mem::take(&mut progress.pending_tokens);
        let step = StepParameters {
            tokens,
            step: progress.step + 1,
            learning_rate: schedule::learning_rate(&self.options, progress.step + 1, progress.tokens_seen - tokens),
            beta1: f64::from(self.options.adam_beta1),
            beta2: f64::from(self.options.adam_beta2),
            epsilon: f64::from(self.options.adam_epsilon),
            clip_norm: f64::from(self.options.clip_norm),
            ema_decay: f64::from(self.options.ema_decay),
        };
        stats.grad_norm = self.backend.apply(&step)?;
        if !stats.grad_norm.is_finite() {
            return fail!(
                NotFinite,
                "step {}: the gradient's norm is {}; the gradient was dropped and the weights kept",
                step.step,
                stats.grad_norm
            );
        }
        progress.step = step.step;
        (stats.step, stats.applied, stats.learning_rate) = (step.step, true, step.learning_rate);
        Ok(stats)
    }

    fn check_batch<'a>(&self, batch: &Batch<'a>) -> Result<TrainingRows<'a>> {
        let rows = batch.x.rows();
        self.check_rows("x", &batch.x, rows)?;
        if rows > self.options.max_batch_tokens {
            let most = self.options.max_batch_tokens;
            return fail!(InvalidTensor, "x: {rows} rows are more than max_batch_tokens, which is {most}");
        }
        if let Some(addend) = &batch.addend {
            self.check_rows("addend", addend, rows)?;
        }
        if batch.target.is_some() {
            return fail!(Unsupported, "target: transcoders cannot be trained yet; leave it absent");
        }
        if let Some(mask) = &batch.row_mask {
            check_tensor("row_mask", mask, &[rows], |t| t == DType::I32, "i32")?;
            check_host("row_mask", mask)?;
        }
        let input = Input { x: batch.x, addend: batch.addend, round_sum: batch.round_sum };
        Ok(TrainingRows { input, mask: batch.row_mask })
    }

    /// Saves everything needed to go on to the same bits into a folder, atomically: whatever happens, the folder holds
    /// the last complete checkpoint. Random numbers are drawn at the start only, so the seed is all there is of them.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let Some(progress) = &self.progress else {
            return fail!(BadState, "the run is not started, so there is nothing to save");
        };
        checkpoint::save(folder, &self.options, progress, self.backend.as_ref())
            .map_err(|error| error.at(folder.display()))
    }

    /// Goes on from a checkpoint. Options left at their default are as stored; given ones must agree with the stored,
    /// except `max_batch_tokens`.
    pub fn resume(folder: &Path, options: &TrainOptions, pool: Pool) -> Result<Self> {
        let resume = || {
            let stored = checkpoint::open(folder)?;
            let mut trainer = Self::new(&options.resume(stored.options())?, pool)?;
            trainer.progress = Some(stored.load(trainer.backend.as_mut())?);
            Ok(trainer)
        };
        resume().map_err(|error: crate::Error| error.at(folder.display()))
    }

    /// The SAE as trained so far. Decoder rows have unit norm. Its convention's reference, where the options leave it open, is
    /// what the run has measured.
    pub fn export(&self, what: Export) -> Result<Sae> {
        let Some(progress) = &self.progress else {
            return fail!(BadState, "the run is not started, so there is nothing to export");
        };
        let (role, correction) = match what {
            Export::Weights => (Role::Weight, 1.0),
            Export::Ema if self.options.no_ema => {
                return fail!(BadState, "no_ema was asked for, so there is no moving average to export");
            }
            Export::Ema if progress.step == 0 => {
                return fail!(BadState, "the moving average is empty before the first step");
            }
            Export::Ema => {
                let decay = f64::from(self.options.ema_decay);
                (Role::Ema, 1.0 / (1.0 - decay.powf(progress.step as f64)))
            }
        };
        let TrainOptions { d, n_latents: n, .. } = self.options;
        let read = |parameter: Parameter, values: &mut [f32]| -> Result<()> {
            self.backend.read(role, parameter, values)?;
            if role == Role::Ema {
                values.iter_mut().for_each(|v| *v = (f64::from(*v) * correction) as f32);
            }
            Ok(())
        };
        let (mut w_enc, mut w_dec) = (Array::zeroed(n * d)?, Array::zeroed(n * d)?);
        let (mut b_enc, mut b_dec) = (try_vec(0.0, n)?, try_vec(0.0, d)?);
        read(Parameter::WEnc, &mut w_enc)?;
        read(Parameter::BEnc, &mut b_enc)?;
        read(Parameter::WDec, &mut w_dec)?;
        read(Parameter::BDec, &mut b_dec)?;
        if role == Role::Ema {
            for row in w_dec.chunks_exact_mut(d) {
                let norm = norm_of(row);
                scale_rows(row, d, |_| if norm > 0.0 { 1.0 / f64::from(norm) } else { 1.0 });
            }
        }
        let matrix = |values: Array<f32>| Matrix::new(values.into_storage(), DType::F32, n, d);
        let mut weights = Weights::new(matrix(w_enc)?, b_enc, matrix(w_dec)?, b_dec);
        if self.options.recipe.competes_over_batch() {
            weights.threshold = Some(try_vec(progress.threshold.value(), n)?);
        }
        let mut spec = self.options.spec();
        // What is measured of normalised rows is not what others would measure of the inputs.
        let fvu = progress.reference.fvu.filter(|_| spec.normalization == Normalization::None);
        let measured = Reference { fvu, ..progress.reference };
        spec.convention.reference = Some(spec.convention.reference.unwrap_or_default().or(Some(measured)));
        Sae::new(spec, weights)
    }
}

fn check_host(name: &str, tensor: &Tensor<'_>) -> Result<()> {
    if !tensor.device().is_host() {
        return fail!(Unsupported, "{name}: training runs on the cpu, but the data is on {}", tensor.device());
    }
    Ok(())
}

/// All rows of a matrix, as f32.
fn read_rows(matrix: &Matrix, out: &mut [f32]) {
    if matrix.dtype() == DType::F32 {
        out.copy_from_slice(matrix.rows_f32(0, matrix.rows(), &mut []));
    } else {
        matrix.rows_f32(0, matrix.rows(), out);
    }
}

/// The Euclidean norm, summed in f64 and rounded once.
fn norm_of(row: &[f32]) -> f32 {
    row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt() as f32
}

fn scale_rows(rows: &mut [f32], d: usize, scale: impl Fn(usize) -> f64) {
    for (i, row) in rows.chunks_exact_mut(d).enumerate() {
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * scale(i)) as f32);
    }
}

/// What a batch's sums say, before a step is made.
fn statistics(sums: &BatchSums, options: &TrainOptions, progress: &Progress) -> StepStats {
    let tokens = sums.tokens.max(1) as f64;
    let mse = sums.reconstruction / (tokens * options.d as f64 * progress.normalizer);
    StepStats {
        step: progress.step,
        applied: false,
        tokens: sums.tokens,
        tokens_masked: sums.tokens_masked,
        tokens_not_finite: sums.tokens_not_finite,
        tokens_seen: progress.tokens_seen,
        loss: mse + sums.aux_loss,
        mse,
        aux: sums.aux_loss,
        sparsity: 0.0,
        fvu: if sums.squared_deviation > 0.0 { sums.squared_error / sums.squared_deviation } else { 0.0 },
        l0: sums.active as f64 / tokens,
        dead: sums.dead,
        dead_fraction: sums.dead as f64 / options.n_latents as f64,
        grad_norm: 0.0,
        learning_rate: 0.0,
    }
}
