//! `sae train`: SAEs trained from activations in files, as a configuration says.

mod chart;
mod config;
mod progress;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args;
use sae::Status;
use sae::backend::Pool;
use sae::formats::{self, SaveOptions};
use sae::tensor::DType;
use sae::training::TrainOptions;
use sae::training::data::{Rows, ShardOptions, Shards, Source};
use sae::training::run::{Measured, Member, Plan, Rollback, TrainingRun};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::output::{Failure, Outcome, Result, grouped, print};
use config::{Config, ExportOptions, HeldOut, Type};
use progress::Progress;

/// The copy of the configuration in the run's folder.
const CONFIG: &str = "config.toml";
/// The report in the run's folder.
const REPORT: &str = "report.html";

/// Train SAEs from activations in files.
///
/// Exit code 0: the run is at its end; 1: it diverged; 2: it could not be done. Ctrl-C and SIGTERM make a checkpoint
/// first, and give 130 and 143.
#[derive(Args)]
pub(crate) struct Train {
    /// The configuration, in TOML.
    config: PathBuf,
    /// Go on from the newest checkpoint in the run's folder; start if there is none.
    #[arg(long)]
    resume: bool,
    /// Threads, instead of those of the configuration; 0: one per core. The numbers do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Check the configuration and the data, say what would be done, and do nothing.
    #[arg(long)]
    check: bool,
}

impl Train {
    pub(crate) fn run(&self) -> Result {
        let config = Config::read(&self.config)?;
        let (source, held_out) = open(&config)?;
        let plan = Plan {
            folder: config.folder.clone(),
            options: config.options.clone(),
            members: config.members.clone(),
            source,
            held_out,
            pool: Pool::new(self.threads.unwrap_or(config.threads))?,
        };
        check_export(&plan, &config.export)?;
        if self.check {
            print(&summary(&plan, config.held_out.data.is_some())?)?;
            return Ok(Outcome::Done);
        }
        let run = if self.resume { TrainingRun::resume(plan) } else { TrainingRun::start(plan) };
        let mut run = run.map_err(|error| match error.status() {
            Status::BadState if !self.resume => Failure::Message(format!("{} (to resume: --resume)", error.message())),
            _ => Failure::from(error),
        })?;
        run.write(CONFIG, &config.text)?;
        self.go(&mut run, &config)
    }

    fn go(&self, run: &mut TrainingRun, config: &Config) -> Result {
        let before = run.step();
        match work(run) {
            Ok(None) => {}
            Ok(Some(signal)) => {
                let kept = run.checkpoint();
                report(run, config, &[])?;
                let (step, config) = (grouped(run.step()), self.config.display());
                let kept = match kept {
                    Ok(path) => format!("the checkpoint is {}", path.display()),
                    Err(error) if error.status() == Status::NotFinite => {
                        format!("no checkpoint was made: {}", error.message())
                    }
                    Err(error) => return Err(error.into()),
                };
                eprintln!(
                    "sae: interrupted after step {step}; {kept}; `sae train --resume {config}` goes on from the newest"
                );
                return Ok(Outcome::Interrupted(signal));
            }
            Err(error) => {
                // What came before can be looked at.
                report(run, config, &[]).ok();
                return ended(error);
            }
        }
        let measured = run.evaluate()?;
        let kept = if run.step() > before { run.checkpoint().map(drop) } else { Ok(()) };
        // What was trained for so long is shown and written as far as it can be, whatever fails.
        let report = report(run, config, &measured);
        if let Err(error) = kept {
            return ended(error);
        }
        let exported = export(run, &config.export)?;
        print(&finished(run, &measured, &exported, &report?))?;
        Ok(Outcome::Done)
    }
}

/// The end of a run by an error: divergence is an outcome.
fn ended(error: sae::Error) -> Result {
    if error.status() != Status::NotFinite {
        return Err(error.into());
    }
    eprintln!("sae: {}", error.message());
    Ok(Outcome::No)
}

/// Makes steps until there are no more, or a signal asks to stop, and gives its number.
fn work(run: &mut TrainingRun) -> sae::Result<Option<u8>> {
    let asked = signals()?;
    let progress = Progress::new(run);
    let mut told = run.rollbacks().len();
    while let Some(records) = run.advance()? {
        let records = records.to_vec();
        progress.show(run, &records);
        for Rollback { from, to, rate, reason, .. } in &run.rollbacks()[told..] {
            progress
                .say(&format!("sae: {reason}; back from step {from} to {to}, and on at {rate} of its learning rate"));
        }
        told = run.rollbacks().len();
        match asked.load(Ordering::Relaxed) {
            0 => {}
            signal => return Ok(Some(signal as u8)),
        }
    }
    Ok(None)
}

/// The data, and the rows held out of them.
fn open(config: &Config) -> Result<(Box<dyn Source>, Option<Rows>)> {
    let open = |options: &ShardOptions| {
        Shards::open(options).map_err(|error| Failure::Message(format!("[data] {}", error.message())))
    };
    let mut source = open(&config.data)?;
    let HeldOut { rows, data } = &config.held_out;
    // No more memory than there are rows.
    let room = |of: &Shards| {
        let there = of.len().map_or(usize::MAX, |len| usize::try_from(len).unwrap_or(usize::MAX));
        Rows::new(of.layout(), there.min(*rows))
            .map_err(|e| Failure::Message(format!("[data] held_out: {}", e.message())))
    };
    let held_out = match data {
        _ if *rows == 0 => return Ok((Box::new(source), None)),
        Some(data) => {
            let mut other = open(data)?;
            let mut held_out = room(&other)?;
            other.next(&mut held_out)?;
            held_out
        }
        None => {
            let there = source.len().unwrap_or(u64::MAX);
            if (*rows as u64).saturating_mul(2) > there {
                return Err(Failure::Message(format!(
                    "[data] held_out is {rows} rows, more than half of the {there} that there are; say fewer, or 0 for none"
                )));
            }
            let mut held_out = room(&source)?;
            source.next(&mut held_out)?;
            held_out
        }
    };
    Ok((Box::new(source), Some(held_out)))
}

/// The number of the signal that asked to stop, 0 until one does. A second one ends the process at once.
fn signals() -> sae::Result<Arc<AtomicUsize>> {
    let asked = Arc::new(AtomicUsize::new(0));
    let again = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let register = || {
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
            signal_hook::flag::register(signal, Arc::clone(&again))?;
            signal_hook::flag::register_usize(signal, Arc::clone(&asked), signal as usize)
        };
        register().map_err(|e: std::io::Error| sae::Error::from(e).at(format!("signal {signal}")))?;
    }
    Ok(asked)
}

/// How SAEs are written, and under which name: the native format is a file, the others are folders or files as they like.
fn saving(options: &ExportOptions) -> (SaveOptions, &'static str) {
    let dtype = options.dtype.map(|dtype| match dtype {
        Type::F32 => DType::F32,
        Type::F16 => DType::F16,
        Type::Bf16 => DType::BF16,
    });
    let name = if options.format.as_deref().is_none_or(|f| f == "native") { "sae.safetensors" } else { "sae" };
    (SaveOptions { format: options.format.clone(), dtype }, name)
}

/// Refuses a format that cannot say what is trained, before anything is: a small SAE of each kind is written.
fn check_export(plan: &Plan, options: &ExportOptions) -> Result<()> {
    let (save, _) = saving(options);
    let folder = tempfile::tempdir().map_err(|e| Failure::Message(format!("[export] no temporary folder: {e}")))?;
    for Member { name: member, options, .. } in plan.resolve()?.1 {
        let path = folder.path().join(&member);
        formats::save(&options.specimen()?, &path, &save).map_err(|error| {
            let message = error.message().replace(&format!("{}: ", path.display()), "");
            Failure::Message(format!("[export] {member} cannot be written so: {message}"))
        })?;
    }
    Ok(())
}

/// Writes the SAEs, and gives where.
fn export(run: &TrainingRun, options: &ExportOptions) -> Result<Vec<PathBuf>> {
    let (save, name) = saving(options);
    // One that cannot be written does not keep the others from it.
    let saved: Vec<Result<PathBuf>> = run
        .export()?
        .into_iter()
        .map(|(member, sae)| {
            let path = run.folder().join(member).join(name);
            formats::save(&sae, &path, &save)?;
            Ok(path)
        })
        .collect();
    saved.into_iter().collect()
}

/// Writes the report, and gives where.
fn report(run: &TrainingRun, config: &Config, measured: &[Measured]) -> Result<PathBuf> {
    Ok(run.write(REPORT, &report::html(run, &config.text, measured)?)?)
}

/// What would be done; rows held out may be of other files.
fn summary(plan: &Plan, other: bool) -> Result<String> {
    let (options, members) = plan.resolve()?;
    let layout = plan.source.layout();
    let shape: Vec<String> = layout.shape(1)[1..].iter().map(usize::to_string).collect();
    let rows = plan.source.len().map_or("no end of".to_owned(), grouped);
    let held = grouped(plan.held_out.as_ref().map_or(0, Rows::len) as u64);
    let held =
        if other { format!("; {held} of other files are held out") } else { format!(", of which {held} are held out") };
    let mut text = format!("rows [{}] of {}: {rows}{held}\n", shape.join(", "), layout.dtype);
    text += &format!("a step: {} × {} rows\n", options.accumulate, grouped(options.batch as u64));
    for Member { name, options, .. } in &members {
        let TrainOptions { d, n_latents, learning_rate, dead_after_tokens, .. } = options.resolve()?;
        let (n, dead) = (grouped(n_latents as u64), grouped(dead_after_tokens));
        text += &format!("{name}: {n} latents of {d}, learning rate {learning_rate:e}, dead after {dead} tokens\n");
    }
    Ok(text)
}

/// What was done.
fn finished(run: &TrainingRun, measured: &[Measured], exported: &[PathBuf], report: &Path) -> String {
    let (steps, rows) = (grouped(run.step()), grouped(run.rows_given()));
    let mut text = format!("{}: {steps} steps, {rows} rows\n", run.folder().display());
    for (i, path) in exported.iter().enumerate() {
        text += &format!("{}", path.display());
        if let Some(Measured { evaluation, .. }) = measured.get(i) {
            let of = &evaluation.metrics;
            let (held, dead) = (grouped(of.rows as u64), 100.0 * of.dead_share);
            text += &format!(
                ": FVU {:.4}, L0 {:.1}, {dead:.1} % without activation, on {held} rows held out",
                of.fvu, of.l0
            );
        }
        text += "\n";
    }
    text + &format!("{}\n", report.display())
}
