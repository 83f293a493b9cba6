//! One SAE of a run: its trainer, what it reads of each row, its files, and whether it goes well.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::RunOptions;
use super::metrics::{Evaluation, Files, Lengths, StepRecord};
use super::watch::Watch;
use crate::backend::Pool;
use crate::error::{Error, Result, fail};
use crate::evaluation::metrics::Meter;
use crate::sae::Sae;
use crate::tensor::Tensor;
use crate::training::data::Rows;
use crate::training::{Batch, Export, StepStats, TrainOptions, Trainer};

/// An SAE that is to be trained in a run.
#[derive(Clone)]
pub struct Member {
    /// Of its folder: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// How it is trained. Where they are 0, `d` and `total_tokens` are those of the source; `max_batch_tokens` is at least a
    /// batch.
    pub options: TrainOptions,
    /// The layer that it reads of rows `[layers, d]`; `None`: all of them.
    pub layer: Option<usize>,
    /// The layer that it reconstructs, as a transcoder, if another.
    pub target_layer: Option<usize>,
    /// Start from these weights instead of random ones.
    pub warm_start: Option<Arc<Sae>>,
    /// What is measured and exported; `None`: the moving average, where there is one.
    pub export: Option<Export>,
}

impl Member {
    /// An SAE that reads whole rows and starts from random weights.
    pub fn new(name: &str, options: TrainOptions) -> Self {
        Self { name: name.to_owned(), options, layer: None, target_layer: None, warm_start: None, export: None }
    }

    /// What it reads of rows.
    fn input<'a>(&self, rows: &'a Rows) -> Result<Tensor<'a>> {
        self.layer.map_or_else(|| Ok(rows.tensor()), |layer| rows.layer(layer))
    }

    /// What it reconstructs, if that is not what it reads.
    fn target<'a>(&self, rows: &'a Rows) -> Result<Option<Tensor<'a>>> {
        self.target_layer.map(|layer| rows.layer(layer)).transpose()
    }
}

/// What was measured of an SAE on the rows held out.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The SAE's name.
    pub name: String,
    /// What is written to `evaluation.jsonl` of it.
    pub evaluation: Evaluation,
    /// For each latent, on how many of the rows it was active.
    pub active_rows: Vec<u64>,
}

/// What a checkpoint keeps of an SAE beside what its trainer keeps.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemberState {
    pub(super) name: String,
    layer: Option<usize>,
    target_layer: Option<usize>,
    watch: Watch,
    files: Lengths,
}

/// An SAE at work.
pub(super) struct Working {
    pub(super) member: Member,
    pub(super) trainer: Trainer,
    files: Files,
    watch: Watch,
    /// Statistics of the calls since the last step.
    calls: Vec<StepStats>,
}

impl Working {
    /// A new one, started from the sample.
    pub(super) fn start(member: &Member, folder: &Path, sample: &Rows, pool: &Pool) -> Result<Self> {
        let mut trainer = Trainer::new(&member.options, pool.clone())?;
        let (input, target) = (member.input(sample)?, member.target(sample)?);
        match (&member.warm_start, target) {
            (None, None) => trainer.init_from(&input)?,
            (None, Some(target)) => trainer.init_transcoder(&input, &target)?,
            (Some(sae), None) => trainer.warm_start(sae, &input)?,
            (Some(sae), Some(target)) => trainer.warm_start_transcoder(sae, &input, &target)?,
        }
        Self::of(member, folder, trainer, Watch::default(), Lengths::default())
    }

    /// One that goes on from a checkpoint. Where nothing was `said` of how long its run is planned, that is as it was.
    pub(super) fn resume(
        member: &Member,
        said: u64,
        folder: &Path,
        checkpoint: &Path,
        state: &MemberState,
        pool: &Pool,
    ) -> Result<Self> {
        for (what, now, then) in
            [("layer", member.layer, state.layer), ("target_layer", member.target_layer, state.target_layer)]
        {
            if now != then {
                let said = |layer: Option<usize>| layer.map_or("none".to_owned(), |layer| layer.to_string());
                let (now, then) = (said(now), said(then));
                return fail!(InvalidArgument, "{what} is {now}, but the checkpoint was made with {then}");
            }
        }
        let options = TrainOptions { total_tokens: said, ..member.options.clone() };
        let trainer = Trainer::resume(&checkpoint.join(&member.name), &options, pool.clone())?;
        let (then, now) = (trainer.options(), member.options.total_tokens);
        if now != then.total_tokens && then.decay_fraction > 0.0 {
            return fail!(
                InvalidArgument,
                "tokens: the run was planned for {} rows, over the last of which the learning rate falls (decay_fraction), but is to \
                 have {now} now; leave tokens as it was, or say total_tokens = {} to keep to that plan",
                then.total_tokens,
                then.total_tokens
            );
        }
        Self::of(member, folder, trainer, state.watch.clone(), state.files)
    }

    fn of(member: &Member, folder: &Path, trainer: Trainer, watch: Watch, lengths: Lengths) -> Result<Self> {
        let files = Files::open(&folder.join(&member.name), lengths)?;
        Ok(Self { member: member.clone(), trainer, files, watch, calls: Vec::new() })
    }

    /// Begins to write to its files, once all that may be refused was not.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.files.begin()
    }

    /// Trains on a batch.
    pub(super) fn train(&mut self, rows: &Rows, accumulate: bool) -> Result<()> {
        let batch = Batch { target: self.member.target(rows)?, accumulate, ..self.member.input(rows)?.into() };
        self.calls.push(self.trainer.step(&batch)?);
        Ok(())
    }

    /// Tells of the step that was made, with what all SAEs share of it, and whether the run goes well.
    pub(super) fn stepped(&mut self, with: StepRecord, seconds: f64, options: &RunOptions) -> Result<StepRecord> {
        let calls = std::mem::take(&mut self.calls);
        let tokens: usize = calls.iter().map(|call| call.tokens).sum();
        let StepRecord { step, elapsed, rollbacks, .. } = with;
        let tokens_per_second = tokens as f64 / seconds.max(1e-9);
        let record = StepRecord { step, tokens_per_second, elapsed, rollbacks, ..StepRecord::of(&calls) };
        self.files.step(&record)?;
        match tokens {
            0 => self.watch.observe_unfit(step, options)?,
            _ => self.watch.observe(step, record.loss, options)?,
        }
        Ok(record)
    }

    /// How many steps it made; it makes none of rows that are not fit to train on.
    pub(super) fn steps_made(&self) -> u64 {
        self.trainer.progress().map_or(0, |progress| progress.step)
    }

    /// What learning rates are multiplied by.
    pub(super) fn rate(&self) -> f64 {
        self.trainer.progress().map_or(1.0, |progress| progress.rate)
    }

    /// Sets that.
    pub(super) fn set_rate(&mut self, rate: f64) -> Result<()> {
        self.trainer.set_rate(rate)
    }

    /// Whether its state is worth keeping.
    pub(super) fn is_well(&self) -> bool {
        self.watch.is_well()
    }

    /// What is to be exported.
    pub(super) fn export(&self) -> Result<Sae> {
        let ema = !self.trainer.options().no_ema && self.steps_made() > 0;
        let there_is = if ema { Export::Ema } else { Export::Weights };
        self.trainer.export(self.member.export.unwrap_or(there_is))
    }

    /// Measures what would be exported, in a copy of the weights.
    pub(super) fn measure(&mut self, step: u64, held_out: &Rows, log: bool, pool: &Pool) -> Result<Measured> {
        let sae = Arc::new(self.export()?);
        let input = self.member.input(held_out)?;
        let target = self.member.target(held_out)?.unwrap_or(input);
        let spec = sae.spec();
        let (mut x, mut y) = (vec![0.0; spec.d_in], vec![0.0; spec.d_out]);
        let mut meter = Meter::new(&sae, pool)?;
        for row in 0..held_out.len() {
            input.read_row(row, &mut x);
            target.read_row(row, &mut y);
            meter.push(&x, &y)?;
        }
        let active_rows = meter.active_rows()?.to_vec();
        let tokens = self.trainer.progress().map_or(0, |progress| progress.tokens_seen);
        let evaluation = Evaluation { step, tokens, metrics: meter.finish()? };
        if log {
            self.files.evaluation(&evaluation)?;
        }
        Ok(Measured { name: self.member.name.clone(), evaluation, active_rows })
    }

    /// Writes what it is into a checkpoint, and its files to the disk.
    pub(super) fn save(&self, checkpoint: &Path) -> Result<MemberState> {
        self.trainer.save(&checkpoint.join(&self.member.name))?;
        Ok(MemberState {
            name: self.member.name.clone(),
            layer: self.member.layer,
            target_layer: self.member.target_layer,
            watch: self.watch.clone(),
            files: self.files.sync()?,
        })
    }

    /// The same error, with the SAE's name.
    pub(super) fn named(&self, error: Error) -> Error {
        error.at(&self.member.name)
    }
}
