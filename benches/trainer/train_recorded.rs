//! Trains an SAE on recorded activations: `train_recorded JOB.json`, as `benches/trainer/recorded.py` calls it.
//!
//! The recording is `[rows, d]` f16 without a header; `order` lists the rows to train on, as u32, one after another, so that
//! another trainer can be given the same. The first of them, at most 32,768, start the run.

use std::path::PathBuf;

use half::f16;
use sae::backend::Pool;
use sae::tensor::Tensor;
use sae::training::{Export, TrainOptions, Trainer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Job {
    /// The recording.
    activations: PathBuf,
    /// Which rows, in what order.
    order: PathBuf,
    /// Rows per step.
    batch: usize,
    /// Threads; 0: all cores.
    threads: usize,
    options: TrainOptions,
    /// Where to save the weights, and their moving average.
    weights: PathBuf,
    ema: PathBuf,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: train_recorded JOB.json")?;
    let job: Job = serde_json::from_slice(&std::fs::read(path)?)?;
    let activations = std::fs::read(&job.activations)?;
    let activations: Vec<f16> = activations.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b)).collect();
    let order = std::fs::read(&job.order)?;
    let order: Vec<u32> = order.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
    let d = job.options.d;
    let gather = |rows: &[u32]| -> Vec<f16> {
        rows.iter().flat_map(|&row| &activations[row as usize * d..(row as usize + 1) * d]).copied().collect()
    };

    let mut trainer = Trainer::new(&job.options, Pool::new(job.threads)?)?;
    let sample = gather(&order[..order.len().min(32_768)]);
    trainer.init_from(&Tensor::new(&sample, &[sample.len() / d, d])?)?;
    let steps = order.len().div_ceil(job.batch);
    for (step, rows) in order.chunks(job.batch).enumerate() {
        let x = gather(rows);
        let stats = trainer.step(&Tensor::new(&x, &[rows.len(), d])?.into())?;
        if step % 20 == 19 || step + 1 == steps {
            eprint!(
                "\rstep {} of {steps}  FVU {:.4}  L0 {:.1}  dead {}  |gradient| {:.3}   ",
                stats.step, stats.fvu, stats.l0, stats.dead, stats.grad_norm
            );
        }
    }
    eprintln!();
    for (what, path) in [(Export::Weights, &job.weights), (Export::Ema, &job.ema)] {
        sae::formats::save(&trainer.export(what)?, path, &sae::formats::SaveOptions::default())?;
    }
    Ok(())
}
