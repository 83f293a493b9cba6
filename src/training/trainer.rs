//! The run itself: batches in, statistics out; start, save, resume, export.

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::checkpoint;
use super::data::Fingerprint;
use super::init::{PROBES, Sample, random_unit_rows, uniform_numbers};
use super::stats::Scales;
use super::{FIRED, Progress, Recipe, StepStats, TrainOptions, export, schedule, warm_start};
use crate::backend::cpu::Kernels;
use crate::backend::cpu::training::CpuTraining;
use crate::backend::training::{
    BatchSums, LossParameters, Parameter, Resampling, Role, StepParameters, Training, TrainingRows,
};
use crate::backend::{Input, Pool};
use crate::collective::{Axis, Ranks};
use crate::error::{Error, Result, Status, fail};
use crate::features::{check_host, check_tensor};
use crate::sae::{Normalization, Reference, Sae};
use crate::tensor::{DType, Tensor, try_vec};

/// Why tensors must be in the host's memory.
const ON_CPU: &str = "training runs on the cpu";

/// What one call trains on.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// `[T, d]`, of crosscoders `[T, layers, d]`, wherever the layers lie; f32, f16 or bf16.
    pub x: Tensor<'a>,
    /// As x: `x + addend`, formed in f32, is trained on.
    pub addend: Option<Tensor<'a>>,
    /// Round `x + addend` to x's type, as engines do that write the sum back before they read it.
    pub round_sum: bool,
    /// `[T, d_out]`, f32, f16 or bf16: what a transcoder reconstructs; absent for an autoencoder.
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

/// What a run starts from, on the scale it is trained on.
struct Samples {
    input: Sample,
    /// For transcoders.
    target: Option<Sample>,
    scales: Scales,
}

/// What samples tell, which all ranks start from alike.
#[derive(Serialize, Deserialize)]
struct Findings {
    normalizer: f64,
    scales: Scales,
    reference: Reference,
    /// The norm that reconstructions of unit vectors shall have.
    expected: f64,
}

/// One training run: weights, optimizer state and counters.
pub struct Trainer {
    options: TrainOptions,
    pool: Pool,
    ranks: Ranks,
    backend: Box<dyn Training>,
    /// `None` until the run is started.
    progress: Option<Progress>,
}

impl Trainer {
    /// A run that has yet to be started with [`Self::init_from`] or [`Self::warm_start`].
    pub fn new(options: &TrainOptions, pool: Pool) -> Result<Self> {
        Self::among(options, pool, Ranks::alone())
    }

    /// [`Self::new`] of one process of several, which all need the same options. Each holds its part of the latents, and steps
    /// by its own tokens. Ranks start, step, save and export together: where one of them is refused, all are.
    pub fn among(options: &TrainOptions, pool: Pool, ranks: Ranks) -> Result<Self> {
        let word = options.resolve().and_then(|options| Ok((fingerprint_of(&options)?, options)));
        let all = word.as_ref().map_or(0, |(word, _)| *word);
        let (_, options) = ranks.agree_on(word, "options", all)?;
        let make = || {
            if options.resample_every > 0 && !ranks.is_alone() {
                return fail!(Unsupported, "resample_every is given, but several processes cannot resample; use AuxK");
            }
            let shape = options.shape().shard(ranks.part(options.n_latents));
            CpuTraining::among(shape, pool.clone(), Kernels::best()?, ranks.clone())
        };
        let backend = Box::new(ranks.agree(make())?);
        Ok(Self { options, pool, ranks, backend, progress: None })
    }

    /// The options, every default filled in.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// How far the run has come; `None` until it is started.
    pub fn progress(&self) -> Option<&Progress> {
        self.progress.as_ref()
    }

    /// The latents that this process holds.
    pub fn latents(&self) -> Range<usize> {
        self.ranks.part(self.options.n_latents)
    }

    /// Starts a run from a first sample `[S, d]` (of a crosscoder `[S, layers, d]`): b_dec becomes its geometric median, its variance the loss's normaliser, and
    /// the random weights are scaled. Rows that are not finite are left out; of more than 32,768 rows, that many are
    /// taken at even distances. Of several ranks, the sample of rank 0 counts.
    pub fn init_from(&mut self, sample: &Tensor<'_>) -> Result<()> {
        self.init(sample, None)
    }

    /// [`Self::init_from`] for a transcoder: a first sample of inputs `[S, d]` and one of their targets `[S, d_out]`. b_dec
    /// becomes the targets' geometric median, their variance the loss's normaliser.
    pub fn init_transcoder(&mut self, sample: &Tensor<'_>, target: &Tensor<'_>) -> Result<()> {
        self.init(sample, Some(target))
    }

    fn init(&mut self, sample: &Tensor<'_>, target: Option<&Tensor<'_>>) -> Result<()> {
        let TrainOptions { layers, k, seed, .. } = self.options;
        let shape = self.options.shape();
        let (d, d_out) = (shape.d, shape.d_out);
        let mut b_dec = try_vec(0.0, d_out)?;
        let found = self.find(sample, target, |outputs| {
            b_dec = outputs.geometric_median(&self.pool)?;
            Ok(())
        })?;
        let ranks = self.ranks.clone();
        ranks.broadcast_all(&mut b_dec)?;
        let part = self.latents();
        // The encoder starts as the decoder, scaled so that unit vectors come back with unit norm, on average. A transcoder's
        // starts apart, and what comes back is on the scale of the targets' deviation.
        let mut start = || {
            let mut rows = random_unit_rows(seed, 0, part.clone(), d)?;
            if layers > 1 {
                for row in rows.chunks_exact_mut(d) {
                    let norm = warm_start::decoder_norm(row, layers);
                    row.iter_mut().for_each(|w| *w /= norm);
                }
            }
            if target.is_some() {
                let rows = random_unit_rows(seed, 2, part.clone(), d_out)?;
                self.backend.write(Role::Weight, Parameter::WDec, &rows)?;
            } else {
                self.backend.write(Role::Weight, Parameter::WDec, &rows)?;
            }
            self.backend.write(Role::Weight, Parameter::WEnc, &rows)?;
            let probes = random_unit_rows(seed, 1, 0..PROBES, d)?;
            let mut norms = [0.0; PROBES];
            let at_once = self.options.max_batch_tokens;
            for (probes, norms) in probes.chunks(at_once * d).zip(norms.chunks_mut(at_once)) {
                self.backend.reconstruction_norms(probes, k, norms)?;
            }
            let norm = norms.iter().sum::<f64>() / PROBES as f64;
            if norm > 0.0 {
                rows.iter_mut().for_each(|w| *w = (f64::from(*w) / norm * found.expected) as f32);
            }
            self.backend.write(Role::Weight, Parameter::WEnc, &rows)?;
            self.backend.write(Role::Weight, Parameter::BDec, &b_dec)?;
            if layers > 1 {
                // As if b_dec were subtracted from the input.
                let product =
                    |row: &[f32]| row.iter().zip(&b_dec).map(|(&w, &b)| f64::from(w) * f64::from(b)).sum::<f64>();
                let biases: Vec<f32> = rows.chunks_exact(d).map(|row| -product(row) as f32).collect();
                let gate = (self.options.recipe == Recipe::Gated).then_some(Parameter::BGate);
                for parameter in [Some(Parameter::BEnc), gate].into_iter().flatten() {
                    self.backend.write(Role::Weight, parameter, &biases)?;
                }
            }
            if self.options.recipe == Recipe::JumpRelu {
                let thresholds = try_vec(self.options.initial_threshold, part.len())?;
                self.backend.write(Role::Weight, Parameter::Threshold, &thresholds)?;
            }
            Ok(())
        };
        ranks.settle(start())?;
        self.progress = Some(Progress::start(found.normalizer, found.scales, found.reference));
        Ok(())
    }

    /// Starts a run from the weights of an SAE; the sample `[S, d]` gives the loss's normaliser. The SAE must be a whole
    /// autoencoder of the same sizes and normalisation, of an architecture that the recipe trains or can start from, that has
    /// no skip path and writes where it reads: what the run would not keep is refused. Decoder rows are scaled to unit norm,
    /// and the encoder inversely, which leaves each latent's contribution as it was.
    pub fn warm_start(&mut self, sae: &Sae, sample: &Tensor<'_>) -> Result<()> {
        self.start_from(sae, sample, None)
    }

    /// [`Self::warm_start`] for a transcoder: with samples of inputs `[S, d]` and of their targets `[S, d_out]`.
    pub fn warm_start_transcoder(&mut self, sae: &Sae, sample: &Tensor<'_>, target: &Tensor<'_>) -> Result<()> {
        self.start_from(sae, sample, Some(target))
    }

    fn start_from(&mut self, sae: &Sae, sample: &Tensor<'_>, target: Option<&Tensor<'_>>) -> Result<()> {
        self.ranks.agree(warm_start::check(sae, &self.options))?;
        let found = self.find(sample, target, |_| Ok(()))?;
        let part = self.latents();
        let written = if self.ranks.is_alone() {
            warm_start::write(sae, &self.options, &found.scales, self.backend.as_mut())
        } else {
            let shard = sae.shard(part.start, part.len());
            shard.and_then(|sae| warm_start::write(&sae, &self.options, &found.scales, self.backend.as_mut()))
        };
        self.ranks.agree(written)?;
        self.progress = Some(Progress::start(found.normalizer, found.scales, found.reference));
        Ok(())
    }

    /// What the samples tell; of several ranks, rank 0 tells it to the others, and has a look at them itself.
    fn find(
        &self,
        sample: &Tensor<'_>,
        target: Option<&Tensor<'_>>,
        look: impl FnOnce(&Sample) -> Result<()>,
    ) -> Result<Findings> {
        self.ranks.check()?;
        let found = self.check_samples(sample, target).and_then(|()| {
            if self.ranks.rank() > 0 {
                return Ok(Vec::new());
            }
            let Samples { input, target, scales } = self.read_samples(sample, target)?;
            let outputs = target.as_ref().unwrap_or(&input);
            let normalizer = outputs.variance()?;
            look(outputs)?;
            let expected = match target {
                Some(_) => (normalizer * self.options.d_out as f64).sqrt() / input.root_mean_square(),
                None => 1.0,
            };
            if !expected.is_finite() {
                return fail!(InvalidTensor, "sample: all of its rows are zero");
            }
            let found = Findings { normalizer, scales, reference: input.reference(), expected };
            serde_json::to_vec(&found).map_err(|error| internal(&error))
        });
        let mut found = self.ranks.agree(found)?;
        self.ranks.broadcast_bytes(&mut found)?;
        serde_json::from_slice(&found).map_err(|error| internal(&error))
    }

    fn check_samples(&self, sample: &Tensor<'_>, target: Option<&Tensor<'_>>) -> Result<()> {
        if self.progress.is_some() {
            return fail!(BadState, "the run is already started; make a new trainer to start another");
        }
        self.check_target(target.is_some())?;
        self.check_input("sample", sample, sample.rows())?;
        let shape = [sample.rows(), self.options.d_out];
        target.map_or(Ok(()), |target| self.check_rows("target", target, &shape))
    }

    fn read_samples(&self, sample: &Tensor<'_>, target: Option<&Tensor<'_>>) -> Result<Samples> {
        let TrainOptions { normalization, scaling, layers, .. } = self.options;
        let read = |name: &str, sample: &Tensor<'_>, normalization| -> Result<(Sample, Scales)> {
            let mut sample = Sample::read(name, sample, normalization)?;
            let scales = sample.scales(scaling, layers).map_err(|e| e.at(name))?;
            sample.multiply(&scales);
            Ok((sample, Scales::of(scales)))
        };
        let (input, scales) = read("sample", sample, normalization)?;
        let Some(target) = target else { return Ok(Samples { input, target: None, scales }) };
        let (target, Scales { output, .. }) = read("target", target, Normalization::None)?;
        Ok(Samples { input, target: Some(target), scales: Scales { output, ..scales } })
    }

    fn check_target(&self, given: bool) -> Result<()> {
        match (given, self.options.transcoder) {
            (true, false) => {
                fail!(InvalidArgument, "target: an autoencoder has none; leave it absent or set transcoder")
            }
            (false, true) => fail!(InvalidArgument, "target: is missing, which a transcoder reconstructs"),
            _ => Ok(()),
        }
    }

    /// Checks `[rows, d]`, or, where there are several layers, `[rows, layers, d]`, which may lie side by side.
    fn check_input(&self, name: &str, tensor: &Tensor<'_>, rows: usize) -> Result<()> {
        match self.options.layers {
            layers if layers > 1 && tensor.shape() != [rows, self.options.width()] => {
                self.check_rows(name, tensor, &[rows, layers, self.options.d])
            }
            _ => self.check_rows(name, tensor, &[rows, self.options.width()]),
        }
    }

    fn check_rows(&self, name: &str, tensor: &Tensor<'_>, shape: &[usize]) -> Result<()> {
        check_tensor(name, tensor, shape, DType::is_float, "f32, f16 or bf16")?;
        check_host(name, tensor, ON_CPU)
    }

    /// Trains on a batch of at most `max_batch_tokens` rows. A call that is refused changes nothing. Should the gradient
    /// not be finite ([`Status::NotFinite`](crate::Status::NotFinite)), it is dropped, with all that was accumulated, and
    /// weights, optimizer and moving average stay as they are, and so does what was measured; but the batch counts as given
    /// and seen, also for latents that did not fire.
    pub fn step(&mut self, batch: &Batch<'_>) -> Result<StepStats> {
        self.ranks.check()?;
        let not_started = || Error::new(Status::BadState, "the run is not started; call init_from with a first sample");
        let started = self.progress.as_ref().map(|_| ()).ok_or_else(not_started);
        self.ranks.agree_on(self.check_batch(batch).and(started), "accumulate", batch.accumulate.into())?;
        let progress = self.progress.as_mut().ok_or_else(not_started)?;
        let loss = LossParameters {
            k: schedule::k(&self.options, progress.step + 1),
            normalizer: progress.normalizer,
            aux_coefficient: f64::from(self.options.aux_coefficient),
            sparsity_coefficient: schedule::sparsity_coefficient(&self.options, progress.step + 1),
            fired: FIRED,
            dead_after_tokens: self.options.dead_after_tokens,
        };
        let input = Input { x: batch.x, addend: batch.addend, round_sum: batch.round_sum };
        let target = batch.target.map(|target| (target, progress.scales.output));
        let rows = TrainingRows { input, scales: progress.scales.inputs(), target, mask: batch.row_mask };
        let sums = self.backend.accumulate(&rows, &loss)?;
        progress.rows_given += (sums.tokens + sums.tokens_masked + sums.tokens_not_finite) as u64;
        progress.tokens_seen += sums.tokens as u64;
        progress.pending_tokens += sums.tokens as u64;
        let mut stats = statistics(&sums, &loss, &self.options, progress);
        progress.observe(&stats, sums.smallest);
        if batch.accumulate || progress.pending_tokens == 0 {
            return Ok(stats);
        }
        let tokens = std::mem::take(&mut progress.pending_tokens);
        let step = StepParameters {
            tokens,
            step: progress.step + 1,
            learning_rate: progress.rate
                * schedule::learning_rate(&self.options, progress.step + 1, progress.tokens_seen - tokens),
            beta1: f64::from(self.options.adam_beta1),
            beta2: f64::from(self.options.adam_beta2),
            epsilon: f64::from(self.options.adam_epsilon),
            clip_norm: f64::from(self.options.clip_norm),
            ema_decay: f64::from(self.options.ema_decay),
        };
        stats.grad_norm = self.backend.apply(&step)?;
        progress.settle(stats.grad_norm.is_finite());
        if !stats.grad_norm.is_finite() {
            return fail!(
                NotFinite,
                "step {}: the gradient's norm is {}; the gradient was dropped and the weights kept",
                step.step,
                stats.grad_norm
            );
        }
        progress.step = step.step;
        if self.options.resample_every > 0 && step.step.is_multiple_of(self.options.resample_every) {
            stats.resampled = resample(self.backend.as_mut(), &self.options, step.step)?;
        }
        (stats.step, stats.applied, stats.learning_rate) = (step.step, true, step.learning_rate);
        Ok(stats)
    }

    fn check_batch(&self, batch: &Batch<'_>) -> Result<()> {
        let rows = batch.x.rows();
        self.check_input("x", &batch.x, rows)?;
        if rows > self.options.max_batch_tokens {
            let most = self.options.max_batch_tokens;
            return fail!(InvalidTensor, "x: {rows} rows are more than max_batch_tokens, which is {most}");
        }
        if let Some(addend) = &batch.addend {
            self.check_input("addend", addend, rows)?;
        }
        self.check_target(batch.target.is_some())?;
        if let Some(target) = &batch.target {
            self.check_rows("target", target, &[rows, self.options.d_out])?;
        }
        if let Some(mask) = &batch.row_mask {
            check_tensor("row_mask", mask, &[rows], |t| t == DType::I32, "i32")?;
            check_host("row_mask", mask, ON_CPU)?;
        }
        Ok(())
    }

    /// From the next step on learning rates are the schedule's times this, until it is set again; a checkpoint keeps it. A run that
    /// diverged may go on from its last good state with less. Ranks set the same.
    pub fn set_rate(&mut self, rate: f64) -> Result<()> {
        let check = || match &self.progress {
            _ if !(rate > 0.0 && rate.is_finite()) => {
                fail!(InvalidArgument, "rate must be a positive number, not {rate}")
            }
            None => fail!(BadState, "the run is not started, so it has no rate"),
            Some(_) => Ok(()),
        };
        self.ranks.agree_on(check(), "rate", rate.to_bits())?;
        if let Some(progress) = &mut self.progress {
            progress.rate = rate;
        }
        Ok(())
    }

    /// Saves everything needed to go on to the same bits into a folder, atomically: whatever happens, the folder holds
    /// the last complete checkpoint. Random numbers follow from the seed and the step, so nothing more is kept of them. Of several
    /// ranks each writes the latents that it holds, into one folder that all can reach.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.ranks.check()?;
        let Some(progress) = &self.progress else {
            return fail!(BadState, "the run is not started, so there is nothing to save");
        };
        checkpoint::save(folder, &self.options, progress, self.backend.as_ref(), &self.ranks)
            .map_err(|error| error.at(folder.display()))
    }

    /// Goes on from a checkpoint. Options left at their default are as stored; given ones must agree with the stored,
    /// except `max_batch_tokens`.
    pub fn resume(folder: &Path, options: &TrainOptions, pool: Pool) -> Result<Self> {
        Self::resume_among(folder, options, pool, Ranks::alone())
    }

    /// [`Self::resume`] of one process of several; as many as there are now, whatever number saved.
    pub fn resume_among(folder: &Path, options: &TrainOptions, pool: Pool, ranks: Ranks) -> Result<Self> {
        let resume = || {
            let stored = checkpoint::open(folder).and_then(|stored| Ok((options.resume(stored.options())?, stored)));
            let (options, stored) = ranks.agree(stored)?;
            let mut trainer = Self::among(&options, pool, ranks)?;
            let first = trainer.ranks.place(Axis::Data) == 0;
            let loaded = stored.load(trainer.latents(), first, trainer.backend.as_mut());
            let word = loaded.as_ref().map_or(Ok(0), fingerprint_of)?;
            trainer.progress = Some(trainer.ranks.agree_on(loaded, "checkpoint", word)?);
            Ok(trainer)
        };
        resume().map_err(|error: crate::Error| error.at(folder.display()))
    }

    /// The SAE as trained so far. Decoder rows have unit norm; a crosscoder's have that on the scale of training, which is another
    /// for each layer. Its convention's reference, where the options leave it open, is
    /// what the run has measured. Of several ranks each gets the whole.
    pub fn export(&self, what: Export) -> Result<Sae> {
        self.ranks.check()?;
        let Some(progress) = &self.progress else {
            return fail!(BadState, "the run is not started, so there is nothing to export");
        };
        export::export(&self.options, progress, (self.backend.as_ref(), &self.ranks), what)
    }
}

/// A number that tells whether ranks have the same.
fn fingerprint_of(what: &impl Serialize) -> Result<u64> {
    let mut fingerprint = Fingerprint::new();
    fingerprint.add(&serde_json::to_vec(what).map_err(|error| internal(&error))?);
    Ok(fingerprint.value())
}

fn internal(error: &serde_json::Error) -> Error {
    Error::new(Status::Internal, error.to_string())
}

/// Starts dead latents anew. What is drawn depends on the seed and the step alone, so that nothing of it need be stored.
fn resample(backend: &mut dyn Training, options: &TrainOptions, step: u64) -> Result<usize> {
    let mut draw = uniform_numbers(options.seed, step);
    backend.resample(&mut Resampling {
        dead_after_tokens: options.dead_after_tokens,
        threshold: options.initial_threshold,
        ema_weight: (1.0 - f64::from(options.ema_decay).powf(step as f64)) as f32,
        draw: &mut draw,
    })
}

/// What a batch's sums say, before a step is made.
fn statistics(sums: &BatchSums, loss: &LossParameters, options: &TrainOptions, progress: &Progress) -> StepStats {
    let tokens = sums.tokens.max(1) as f64;
    let whole = tokens * (options.layers * options.d_out) as f64 * progress.normalizer;
    let (mse, sparsity) = (sums.reconstruction / whole, loss.sparsity_coefficient * sums.penalty / whole);
    StepStats {
        step: progress.step,
        applied: false,
        tokens: sums.tokens,
        tokens_masked: sums.tokens_masked,
        tokens_not_finite: sums.tokens_not_finite,
        tokens_seen: progress.tokens_seen,
        loss: mse + sums.aux_loss + sparsity,
        mse,
        aux: sums.aux_loss,
        sparsity,
        fvu: if sums.squared_deviation > 0.0 { sums.squared_error / sums.squared_deviation } else { 0.0 },
        l0: sums.active as f64 / tokens,
        dead: sums.dead,
        dead_fraction: sums.dead as f64 / options.n_latents as f64,
        resampled: 0,
        grad_norm: 0.0,
        learning_rate: 0.0,
    }
}
