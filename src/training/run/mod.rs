//! A whole training run: one or several SAEs over the same activations, with checkpoints, metrics, and measurements on rows
//! held out, until the data or the planned tokens end.
//!
//! ```no_run
//! # fn main() -> sae::Result<()> {
//! use sae::backend::Pool;
//! use sae::training::TrainOptions;
//! use sae::training::data::{Rows, ShardOptions, Shards, Source};
//! use sae::training::run::{Member, Plan, RunOptions, TrainingRun};
//!
//! let mut source = Shards::open(&ShardOptions { paths: vec!["activations/".into()], ..Default::default() })?;
//! let mut held_out = Rows::new(source.layout(), 16_384)?;
//! source.next(&mut held_out)?; // the run begins where the source is
//! let of = |k| TrainOptions { d: 768, n_latents: 16_384, k, ..TrainOptions::default() };
//! let plan = Plan {
//!     folder: "runs/first".into(),
//!     options: RunOptions { batch: 4096, ..RunOptions::default() },
//!     members: vec![Member::new("k32", of(32)), Member::new("k64", of(64))],
//!     source: Box::new(source),
//!     held_out: Some(held_out),
//!     pool: Pool::new(0)?,
//! };
//! let mut run = TrainingRun::resume(plan)?; // from the newest checkpoint, or from the start
//! while let Some(records) = run.advance()? {
//!     println!("step {}: FVU {:.4} and {:.4}", records[0].step, records[0].fvu, records[1].fvu);
//! }
//! let (evaluations, path) = (run.evaluate()?, run.checkpoint()?);
//! # let _ = (evaluations, path); Ok(()) }
//! ```
//!
//! The folder holds
//!
//! ```text
//! checkpoints/step-000000001000/    complete, or not there: run.json, and for each SAE a folder as Trainer::save writes it
//! checkpoints/latest                a link to the newest
//! NAME/metrics.jsonl                an object for each step; evaluation.jsonl: for each measurement on rows held out
//! NAME/events.out.tfevents          the same for TensorBoard
//! run.lock                          held by the process that works in the folder
//! ```
//!
//! Killed at any moment, a run goes on from its newest checkpoint to the same bits as if it had never ended, on any number
//! of threads; the metrics have no step twice and none is missing.

mod checkpoints;
mod driver;
mod events;
mod log;
mod member;
mod metrics;
mod options;
mod watch;

pub use driver::{Plan, Rollback, TrainingRun};
pub use member::{Measured, Member};
pub use metrics::{EVALUATIONS, Evaluation, STEPS, StepRecord};
pub use options::RunOptions;
