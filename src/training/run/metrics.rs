//! What a run tells while it goes: per SAE a folder with one JSON object a line for each step (`metrics.jsonl`) and each
//! measurement on rows held out (`evaluation.jsonl`), and the same for TensorBoard (`events.out.tfevents`).
//!
//! A checkpoint remembers how long the files were, and a resumed run cuts them back to that: no step is there twice, none is
//! missing.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use super::events;
use super::log::{Log, now};
use crate::atomic;
use crate::error::{Error, Result, Status};
use crate::evaluation::metrics::Metrics;
use crate::training::StepStats;

/// The files' names.
pub const STEPS: &str = "metrics.jsonl";
/// Of the measurements on rows held out.
pub const EVALUATIONS: &str = "evaluation.jsonl";
/// TensorBoard knows its files by the word in their names.
const EVENTS: &str = "events.out.tfevents";

/// One line of `metrics.jsonl`: an optimizer step. Where none of its rows was fit to train on, there was no loss and no gradient:
/// what belongs to them is not a number, `null` in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Tokens trained on since the run began.
    pub tokens: u64,
    /// Tokens of this step that were left out, because they were not finite or too large for their square to be.
    #[serde(default)]
    pub tokens_not_finite: usize,
    /// What is minimised.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// The reconstruction's part of it.
    #[serde(deserialize_with = "number")]
    pub mse: f64,
    /// AuxK's part, its coefficient included.
    #[serde(deserialize_with = "number")]
    pub aux: f64,
    /// The sparsity penalty's part, its coefficient included.
    #[serde(deserialize_with = "number")]
    pub sparsity: f64,
    /// Fraction of variance unexplained, of this step's tokens.
    #[serde(deserialize_with = "number")]
    pub fvu: f64,
    /// Mean count of active latents per token.
    #[serde(deserialize_with = "number")]
    pub l0: f64,
    /// Latents that are dead.
    pub dead: usize,
    /// Latents that started anew after the step.
    #[serde(default)]
    pub resampled: usize,
    /// Learning rate.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// How often the run went back, because an SAE of it diverged, before this step was made as it is told.
    #[serde(default)]
    pub rollbacks: usize,
    /// Tokens per second of this step, in which its rows were read and all SAEs of the run trained on them.
    pub tokens_per_second: f64,
    /// Seconds that the run has worked, before it was resumed too.
    pub elapsed: f64,
}

impl StepRecord {
    /// Of the calls that made a step, at least one: means over their tokens, and counts as they are after the last.
    pub(super) fn of(calls: &[StepStats]) -> Self {
        let last = calls.last().copied().unwrap_or_default();
        let tokens: usize = calls.iter().map(|call| call.tokens).sum();
        // Without any token, 0 / 0.
        let mean = |value: fn(&StepStats) -> f64| {
            calls.iter().map(|call| value(call) * call.tokens as f64).sum::<f64>() / tokens as f64
        };
        let made = |value: f64| if last.applied { value } else { f64::NAN };
        Self {
            step: last.step,
            tokens: last.tokens_seen,
            tokens_not_finite: calls.iter().map(|call| call.tokens_not_finite).sum(),
            loss: mean(|call| call.loss),
            mse: mean(|call| call.mse),
            aux: mean(|call| call.aux),
            sparsity: mean(|call| call.sparsity),
            fvu: mean(|call| call.fvu),
            l0: mean(|call| call.l0),
            dead: last.dead,
            resampled: last.resampled,
            lr: made(last.learning_rate),
            grad_norm: made(last.grad_norm),
            ..Self::default()
        }
    }

    /// What there is of numbers.
    fn scalars(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all = [
            ("tokens", self.tokens as f64),
            ("tokens_not_finite", self.tokens_not_finite as f64),
            ("loss", self.loss),
            ("mse", self.mse),
            ("aux", self.aux),
            ("sparsity", self.sparsity),
            ("fvu", self.fvu),
            ("l0", self.l0),
            ("dead", self.dead as f64),
            ("resampled", self.resampled as f64),
            ("lr", self.lr),
            ("grad_norm", self.grad_norm),
            ("rollbacks", self.rollbacks as f64),
            ("tokens_per_second", self.tokens_per_second),
            ("elapsed", self.elapsed),
        ];
        all.into_iter().filter(|(_, value)| value.is_finite())
    }
}

/// A number, of which JSON cannot say that it is none.
fn number<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// One line of `evaluation.jsonl`: what was measured on the rows held out after a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The step.
    pub step: u64,
    /// Tokens trained on by then.
    pub tokens: u64,
    /// What was measured.
    #[serde(flatten)]
    pub metrics: Metrics,
}

/// How long the files of an SAE are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lengths {
    steps: u64,
    evaluations: u64,
    events: u64,
}

/// The files of one SAE.
pub(super) struct Files {
    steps: Log,
    evaluations: Log,
    events: Log,
}

impl Files {
    /// Opens them in a folder to go on from where they had these lengths; they stay as they are until [`Self::begin`].
    pub(super) fn open(folder: &Path, lengths: Lengths) -> Result<Self> {
        atomic::create_dir_all(folder).map_err(|e| e.at(folder.display()))?;
        let files = Self {
            steps: Log::open(&folder.join(STEPS), lengths.steps)?,
            evaluations: Log::open(&folder.join(EVALUATIONS), lengths.evaluations)?,
            events: Log::open(&folder.join(EVENTS), lengths.events)?,
        };
        atomic::sync(folder);
        Ok(files)
    }

    /// Cuts off what was told after the checkpoint.
    pub(super) fn begin(&mut self) -> Result<()> {
        for log in [&mut self.steps, &mut self.evaluations, &mut self.events] {
            log.cut()?;
        }
        if self.events.length() == 0 {
            self.events.append(&events::opening(now()))?;
        }
        Ok(())
    }

    pub(super) fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.steps.append(&line(record)?)?;
        self.events.append(&events::scalars(now(), record.step, record.scalars()))
    }

    pub(super) fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        let Metrics { fvu, l0, dead, cosine, norm_ratio, .. } = evaluation.metrics;
        let scalars = [
            ("held_out/fvu", fvu),
            ("held_out/l0", l0),
            ("held_out/dead", dead as f64),
            ("held_out/cosine", cosine),
            ("held_out/norm_ratio", norm_ratio),
        ];
        self.evaluations.append(&line(evaluation)?)?;
        self.events.append(&events::scalars(now(), evaluation.step, scalars))
    }

    /// Makes sure that they are on the disk, and tells how long they are.
    pub(super) fn sync(&self) -> Result<Lengths> {
        for log in [&self.steps, &self.evaluations, &self.events] {
            log.sync()?;
        }
        let (steps, evaluations, events) = (self.steps.length(), self.evaluations.length(), self.events.length());
        Ok(Lengths { steps, evaluations, events })
    }
}

fn line(record: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)
        .map_err(|e| Error::new(Status::Internal, format!("a record cannot be written: {e}")))?;
    line.push(b'\n');
    Ok(line)
}
