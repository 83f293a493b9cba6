//! The loop: batches from the source to every SAE, and what falls due between steps.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::checkpoints::Checkpoints;
use super::member::{Measured, Member, MemberState, Working};
use super::metrics::STEPS;
use super::options::Agreed;
use super::{RunOptions, StepRecord};
use crate::atomic;
use crate::backend::Pool;
use crate::error::{Error, Result, Status, fail};
use crate::sae::Sae;
use crate::training::Export;
use crate::training::data::{Layout, Position, Rows, Source};

/// The folder of the checkpoints.
const CHECKPOINTS: &str = "checkpoints";
/// Held while a process works in the folder.
const LOCK: &str = "run.lock";
/// How long one waits for it.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// What else is in the folder, with what the tool puts there, and cannot be an SAE's.
const RESERVED: [&str; 4] = [CHECKPOINTS, LOCK, "config.toml", "report.html"];
/// A checkpoint's own file.
const STATE: &str = "run.json";
/// Of that file.
const VERSION: u32 = 1;

/// What a run is made of.
pub struct Plan {
    /// Where it writes.
    pub folder: PathBuf,
    /// How it goes.
    pub options: RunOptions,
    /// The SAEs, each by its name.
    pub members: Vec<Member>,
    /// The activations, from where the source is now. After a resume the source must be at the same place before.
    pub source: Box<dyn Source>,
    /// Rows that are measured now and then and are not in the source.
    pub held_out: Option<Rows>,
    /// Who computes. The numbers do not depend on it.
    pub pool: Pool,
}

impl Plan {
    /// The options of the run with every default filled in, and the SAEs with what the source tells; refuses what cannot be
    /// run, by name.
    pub fn resolve(&self) -> Result<(RunOptions, Vec<Member>)> {
        let options = self.options.resolve()?;
        let layout = self.source.layout();
        check(&self.members, self.held_out.as_ref(), layout)?;
        if self.source.is_empty() {
            return no_rows();
        }
        let planned = planned(&options, self.source.as_ref(), &self.source.position()).unwrap_or(0);
        let resolved = self.members.iter().map(|member| {
            let mut of = member.options.clone();
            of.d = if of.d == 0 { layout.d } else { of.d };
            of.transcoder |= member.target_layer.is_some();
            of.total_tokens = if of.total_tokens == 0 { planned } else { of.total_tokens };
            // No more memory than there are rows.
            let most = self.source.len().map_or(usize::MAX, |len| usize::try_from(len).unwrap_or(usize::MAX));
            of.max_batch_tokens = of.max_batch_tokens.max(options.batch.min(most.max(1)));
            let resolved = of.resolve().map_err(|e| e.at(&member.name))?;
            if member.export == Some(Export::Ema) && resolved.no_ema {
                let name = &member.name;
                return fail!(
                    InvalidArgument,
                    "{name}: the moving average is to be exported, but no_ema says there is none"
                );
            }
            Ok(Member { options: of, ..member.clone() })
        });
        let members = resolved.collect::<Result<_>>()?;
        Ok((options, members))
    }
}

/// What a checkpoint keeps of the run.
#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    #[serde(flatten)]
    agreed: Agreed,
    step: u64,
    /// Where the source was at the start, and is now.
    start: Position,
    position: Position,
    elapsed: f64,
    evaluated: Option<u64>,
    members: Vec<MemberState>,
    #[serde(default)]
    rollbacks: Vec<Rollback>,
}

/// That a run went back to its last good state, and on from there at a lower rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollback {
    /// The step at which it diverged.
    pub from: u64,
    /// The step it went back to.
    pub to: u64,
    /// The SAE that diverged.
    pub sae: String,
    /// What its learning rates are multiplied by since.
    pub rate: f64,
    /// What was wrong.
    pub reason: String,
}

/// A run at work.
pub struct TrainingRun {
    folder: PathBuf,
    options: RunOptions,
    /// What is trained, as it was given but for what the source tells, and how long the runs were said to be.
    planned: Vec<Member>,
    said: Vec<u64>,
    members: Vec<Working>,
    /// The one of them at work, should it fail.
    at: usize,
    rollbacks: Vec<Rollback>,
    source: Box<dyn Source>,
    start: Position,
    held_out: Option<Rows>,
    pool: Pool,
    checkpoints: Checkpoints,
    step: u64,
    /// Steps of the last checkpoint and the last measurement.
    saved: u64,
    evaluated: Option<u64>,
    records: Vec<StepRecord>,
    /// The batch at hand, and the one after it where the step is of several.
    rows: Rows,
    ahead: Rows,
    /// Seconds of work before this process, when it began to work, and when the step at hand began.
    before: f64,
    since: Instant,
    began: Instant,
    failed: bool,
    _lock: File,
}

impl TrainingRun {
    /// Starts a run in a folder that holds none.
    pub fn start(plan: Plan) -> Result<Self> {
        let folder = plan.folder.clone();
        Self::open(plan, false).map_err(|e| e.at(folder.display()))
    }

    /// Goes on from the newest checkpoint; starts the run if there is none. Options of the run may change where the numbers do
    /// not depend on them; those of SAEs as [`Trainer::resume`](crate::training::Trainer::resume) says.
    pub fn resume(plan: Plan) -> Result<Self> {
        let folder = plan.folder.clone();
        Self::open(plan, true).map_err(|e| e.at(folder.display()))
    }

    fn open(plan: Plan, resume: bool) -> Result<Self> {
        let (options, planned) = plan.resolve()?;
        let said = plan.members.iter().map(|member| member.options.total_tokens).collect::<Vec<_>>();
        let Plan { folder, source, held_out, pool, .. } = plan;
        let layout = source.layout();
        atomic::create_dir_all(&folder)?;
        let lock = lock(&folder.join(LOCK))?;
        let checkpoints =
            Checkpoints { folder: folder.join(CHECKPOINTS), keep: options.keep, keep_every: options.keep_every };
        let newest = checkpoints.newest()?;
        if let Some((step, _)) = newest.as_ref().filter(|_| !resume) {
            return fail!(BadState, "holds a run, which has come to step {step}; resume it, or choose another folder");
        }
        if newest.is_none() && !resume {
            refuse_left_metrics(&planned, &folder)?;
        }
        let room = |rows| room(layout, source.as_ref(), rows).map_err(|e| e.at("batch"));
        let rows = room(options.batch)?;
        let ahead = room(if options.accumulate > 1 { options.batch } else { 0 })?;
        let mut run = Self {
            rows,
            ahead,
            folder,
            options,
            records: Vec::with_capacity(planned.len()),
            members: Vec::new(),
            planned,
            said,
            at: 0,
            rollbacks: Vec::new(),
            start: source.position(),
            source,
            held_out,
            pool,
            checkpoints,
            step: 0,
            saved: 0,
            evaluated: None,
            before: 0.0,
            since: Instant::now(),
            began: Instant::now(),
            failed: false,
            _lock: lock,
        };
        if let Some(state) = run.restore(newest)? {
            (run.rollbacks, run.before) = (state.rollbacks, state.elapsed);
        }
        run.members.iter_mut().try_for_each(|member| member.begin().map_err(|error| member.named(error)))?;
        (run.since, run.began) = (Instant::now(), Instant::now());
        Ok(run)
    }

    /// Takes the SAEs from a checkpoint, or starts them if there is none; their files stay as they are.
    fn restore(&mut self, checkpoint: Option<(u64, PathBuf)>) -> Result<Option<State>> {
        self.members.clear();
        let Some((step, path)) = checkpoint else {
            self.source.seek(&self.start)?;
            let sample = room(self.source.layout(), self.source.as_ref(), self.options.sample);
            let sample = sample.map_err(|e| e.at("sample"))?;
            self.members = start_all(&self.planned, &self.folder, self.source.as_mut(), sample, &self.pool)?;
            (self.step, self.saved, self.evaluated) = (0, 0, None);
            return Ok(None);
        };
        let (state, members) = self.resume_all(&path, step).map_err(|e| e.at(path.display()))?;
        self.source.seek(&state.position)?;
        self.members = members;
        (self.step, self.saved, self.evaluated) = (step, step, state.evaluated);
        Ok(Some(state))
    }

    /// Reads a checkpoint.
    fn resume_all(&self, path: &Path, step: u64) -> Result<(State, Vec<Working>)> {
        let Self { planned: members, folder, start, options, pool, .. } = self;
        let broken =
            |e: &dyn std::fmt::Display| Error::new(Status::Format, format!("{STATE}: not a sound checkpoint: {e}"));
        let text = fs::read_to_string(path.join(STATE)).map_err(|e| Error::from(e).at(STATE))?;
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| broken(&e))?;
        if value["version"] != VERSION {
            return fail!(
                Unsupported,
                "{STATE}: version {} is not known; this library reads {VERSION}",
                value["version"]
            );
        }
        let state: State = serde_json::from_value(value).map_err(|e| broken(&e))?;
        let given = state.position.given.checked_sub(state.start.given);
        let Some(given) = given.filter(|&given| state.step == step && step <= given) else {
            return fail!(
                Format,
                "{STATE}: not a sound checkpoint: step {} after rows {} to {}, in the folder of step {step}",
                state.step,
                state.start.given,
                state.position.given
            );
        };
        options.agreed().check(&state.agreed)?;
        if *start != state.start {
            return fail!(
                InvalidArgument,
                "the run began at {} of its source, but the source is at {start}: data or options are others, or the rows held out",
                state.start
            );
        }
        let list = |names: &mut dyn Iterator<Item = &String>| names.cloned().collect::<Vec<_>>().join(", ");
        let (now, then) =
            (list(&mut members.iter().map(|member| &member.name)), list(&mut state.members.iter().map(|of| &of.name)));
        if now != then {
            return fail!(InvalidArgument, "the SAEs are {now}, but the checkpoint was made with {then}");
        }
        let resumed = members.iter().zip(&state.members).zip(&self.said).map(|((member, of), &said)| {
            Working::resume(member, said, folder, path, of, pool).map_err(|e| e.at(&member.name))
        });
        let resumed = resumed.collect::<Result<Vec<Working>>>()?;
        for Working { member, trainer, .. } in &resumed {
            let of = trainer.progress().map_or(0, |progress| progress.rows_given);
            if of != given {
                let name = &member.name;
                return fail!(Format, "{STATE}: not a sound checkpoint: {given} rows were given, but {of} to {name}");
            }
        }
        Ok((state, resumed))
    }

    /// Goes back to the last good state, from where the SAE that diverged goes on at a lower rate. The others go on as they did,
    /// to the same bits.
    fn roll_back(&mut self, error: &Error) -> Result<()> {
        let mut rates: Vec<f64> = self.members.iter().map(Working::rate).collect();
        rates[self.at] *= self.options.divergence_rate;
        let from = self.step;
        self.restore(self.checkpoints.newest()?)?;
        let sae = self.planned[self.at].name.clone();
        let (to, rate, reason) = (self.step, rates[self.at], error.message().to_owned());
        self.rollbacks.push(Rollback { from, to, sae, rate, reason });
        for (member, rate) in self.members.iter_mut().zip(rates) {
            member.set_rate(rate).and_then(|()| member.begin()).map_err(|error| member.named(error))?;
        }
        Ok(())
    }

    /// Makes one step with every SAE, and what falls due after it: a line of metrics, a measurement, a checkpoint. Gives what
    /// the SAEs tell, in their order; `None` at the end of the run. If a gradient is not finite or a loss diverges, the run goes
    /// back to the last good state and on at a lower rate, where that is left to try, and the step that is told is the one
    /// after it; else the error names the SAE, the step and the last good state, and the run has ended.
    pub fn advance(&mut self) -> Result<Option<&[StepRecord]>> {
        if self.failed {
            return fail!(BadState, "the run has ended with an error; resume it from its last checkpoint");
        }
        loop {
            match self.step_and_tell() {
                Ok(true) => break,
                Ok(false) => return Ok(None),
                Err(error) => {
                    self.failed = true;
                    let may = error.status() == Status::NotFinite && !self.members.is_empty();
                    if !may || self.rollbacks.len() as u64 >= self.options.divergence_tries {
                        return Err(self.with_last_state(error));
                    }
                    self.roll_back(&error)?;
                    self.failed = false;
                }
            }
        }
        if self.step.is_multiple_of(self.options.evaluate_every) {
            self.evaluate()?;
        }
        // While a loss is beyond its bound, the last good state is not replaced.
        let due = self.step / self.options.checkpoint_every > self.saved / self.options.checkpoint_every;
        if due && self.members.iter().all(Working::is_well) {
            self.checkpoint()?;
        }
        Ok(Some(&self.records))
    }

    /// One step and its metrics; false if the run is at its end.
    fn step_and_tell(&mut self) -> Result<bool> {
        self.began = Instant::now();
        if self.rows_left() == Some(0) || !self.make_step()? {
            // Rows that are not fit to train on are no training.
            let idle = self.members.iter().find(|member| 2 * member.steps_made() < self.step);
            return match idle {
                Some(member) => {
                    let (steps, made) = (self.step, member.steps_made());
                    let message = format!("of {steps} steps only {made} had rows that were fit to train on");
                    Err(member.named(Error::new(Status::NotFinite, message)))
                }
                None => Ok(false),
            };
        }
        self.tell()?;
        Ok(true)
    }

    /// Reads and trains on the batches of a step; false if there is none left.
    fn make_step(&mut self) -> Result<bool> {
        if self.source.next(&mut self.rows)? == 0 {
            return Ok(false);
        }
        self.step += 1;
        for batch in 1..=self.options.accumulate {
            let more = batch < self.options.accumulate && self.source.next(&mut self.ahead)? > 0;
            for (at, member) in self.members.iter_mut().enumerate() {
                self.at = at;
                member.train(&self.rows, more).map_err(|error| member.named(error))?;
            }
            if !more {
                break;
            }
            std::mem::swap(&mut self.rows, &mut self.ahead);
        }
        Ok(true)
    }

    /// Writes the step's metrics.
    fn tell(&mut self) -> Result<()> {
        let elapsed = self.elapsed();
        let seconds = self.began.elapsed().as_secs_f64();
        self.records.clear();
        let all = StepRecord { step: self.step, elapsed, rollbacks: self.rollbacks.len(), ..StepRecord::default() };
        for (at, member) in self.members.iter_mut().enumerate() {
            self.at = at;
            let record = member.stepped(all, seconds, &self.options);
            self.records.push(record.map_err(|error| member.named(error))?);
        }
        Ok(())
    }

    fn with_last_state(&self, error: Error) -> Error {
        if error.status() != Status::NotFinite {
            return error;
        }
        let last = match self.checkpoints.newest() {
            Ok(Some((step, path))) => format!("the last good state, of step {step}, is {}", path.display()),
            _ => "there is no earlier checkpoint".to_owned(),
        };
        Error::new(error.status(), format!("{}; {last}", error.message()))
    }

    /// Measures every SAE, as it would be exported, on the rows held out; nothing if there are none. What was not measured at
    /// this step before is written to the metrics.
    pub fn evaluate(&mut self) -> Result<Vec<Measured>> {
        let Some(held_out) = self.held_out.as_ref().filter(|_| self.step > 0) else { return Ok(Vec::new()) };
        let log = self.evaluated != Some(self.step);
        let measured = self
            .members
            .iter_mut()
            .map(|member| member.measure(self.step, held_out, log, &self.pool).map_err(|error| member.named(error)));
        let measured = measured.collect::<Result<_>>()?;
        self.evaluated = Some(self.step);
        Ok(measured)
    }

    /// Makes a checkpoint of where the run is, and gives its folder. While a loss is above its bound it is refused, and the error
    /// names the last good state.
    pub fn checkpoint(&mut self) -> Result<PathBuf> {
        if self.failed {
            return fail!(BadState, "the run has ended with an error, and what it is now is not worth keeping");
        }
        if let Some(member) = self.members.iter().find(|member| !member.is_well()) {
            let message = format!("step {}: the loss is above its bound, and such a state is not kept", self.step);
            return Err(self.with_last_state(member.named(Error::new(Status::NotFinite, message))));
        }
        let path = self.checkpoints.write(self.step, |folder| {
            let members = self.members.iter().map(|member| member.save(folder).map_err(|e| member.named(e)));
            let state = State {
                version: VERSION,
                agreed: self.options.agreed(),
                step: self.step,
                start: self.start.clone(),
                position: self.source.position(),
                elapsed: self.elapsed(),
                evaluated: self.evaluated,
                members: members.collect::<Result<_>>()?,
                rollbacks: self.rollbacks.clone(),
            };
            let text = serde_json::to_string_pretty(&state)
                .map_err(|e| Error::new(Status::Internal, format!("{STATE} cannot be written: {e}")))?;
            atomic::write(&folder.join(STATE), |out| Ok(out.write_all(text.as_bytes())?)).map_err(|e| e.at(STATE))
        })?;
        self.saved = self.step;
        Ok(path)
    }

    /// The SAEs as they are exported now, each with its name.
    pub fn export(&self) -> Result<Vec<(String, Sae)>> {
        let exported = self.members.iter().map(|member| Ok((member.member.name.clone(), member.export()?)));
        exported.collect()
    }

    /// Writes a text of the caller's into the folder, so that it appears whole or not at all; tells where.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        atomic::remove_leftovers(&path);
        atomic::write(&path, |out| Ok(out.write_all(text.as_bytes())?)).map_err(|e| e.at(path.display()))?;
        Ok(path)
    }

    /// Where it writes.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The options, every default filled in.
    pub fn options(&self) -> &RunOptions {
        &self.options
    }

    /// The SAEs' names, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.member.name.as_str())
    }

    /// How many latents each has.
    pub fn latents(&self) -> impl Iterator<Item = usize> {
        self.members.iter().map(|member| member.trainer.options().n_latents)
    }

    /// How often and why it went back to an earlier state, in that order.
    pub fn rollbacks(&self) -> &[Rollback] {
        &self.rollbacks
    }

    /// Steps made.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Rows given to the SAEs since the run began.
    pub fn rows_given(&self) -> u64 {
        self.source.position().given.saturating_sub(self.start.given)
    }

    /// Rows that the whole run will give, as far as that is known.
    pub fn rows_planned(&self) -> Option<u64> {
        planned(&self.options, self.source.as_ref(), &self.start)
    }

    fn rows_left(&self) -> Option<u64> {
        self.rows_planned().map(|planned| planned.saturating_sub(self.rows_given()))
    }

    /// Seconds that the run has worked, before it was resumed too.
    fn elapsed(&self) -> f64 {
        self.before + self.since.elapsed().as_secs_f64()
    }
}

/// Rows of a whole run: those asked for, or all that there are, if they end sooner.
fn planned(options: &RunOptions, source: &dyn Source, start: &Position) -> Option<u64> {
    let there = source.len().map(|len| len.saturating_sub(start.given));
    match (options.tokens, there) {
        (0, there) => there,
        (tokens, there) => Some(there.map_or(tokens, |there| there.min(tokens))),
    }
}

/// Memory for so many rows, or as many as there are.
fn room(layout: Layout, source: &dyn Source, rows: usize) -> Result<Rows> {
    let there = source.len().map_or(usize::MAX, |len| usize::try_from(len).unwrap_or(usize::MAX));
    Rows::new(layout, rows.min(there))
}

fn no_rows<T>() -> Result<T> {
    fail!(InvalidArgument, "the source gives no row to train on")
}

/// A run that starts would begin these files anew.
fn refuse_left_metrics(members: &[Member], folder: &Path) -> Result<()> {
    for Member { name, .. } in members {
        if fs::metadata(folder.join(name).join(STEPS)).is_ok_and(|file| file.len() > 0) {
            return fail!(
                BadState,
                "{name}/{STEPS} tells of a run of which there is no checkpoint; move it away or choose another folder, or resume, \
                 which begins it anew"
            );
        }
    }
    Ok(())
}

/// Starts every SAE from the next rows of the source, which is then where it was.
fn start_all(
    members: &[Member],
    folder: &Path,
    source: &mut dyn Source,
    mut sample: Rows,
    pool: &Pool,
) -> Result<Vec<Working>> {
    let place = source.position();
    if source.next(&mut sample)? == 0 {
        return no_rows();
    }
    source.seek(&place)?;
    let start = |member| Working::start(member, folder, &sample, pool).map_err(|e| e.at(&member.name));
    members.iter().map(start).collect()
}

fn check(members: &[Member], held_out: Option<&Rows>, layout: Layout) -> Result<()> {
    if members.is_empty() {
        return fail!(InvalidArgument, "no SAE to train");
    }
    if let Some(of) = held_out.map(Rows::layout).filter(|of| (of.layers, of.d) != (layout.layers, layout.d)) {
        return fail!(
            InvalidArgument,
            "rows held out are {:?}, those of the source {:?}",
            of.shape(1).split_off(1),
            layout.shape(1).split_off(1)
        );
    }
    let mut names = BTreeSet::new();
    for Member { name, layer, target_layer, options, .. } in members {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty()
            || name.starts_with('.')
            || !name.chars().all(known)
            || RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
            || name.ends_with(".partial")
        {
            return fail!(
                InvalidArgument,
                "{name:?} cannot name an SAE's folder: expected letters, digits, -, _ and ., not .partial at the end, and none of {}",
                RESERVED.join(", ")
            );
        }
        if !names.insert(name) {
            return fail!(InvalidArgument, "two SAEs are called {name}");
        }
        let layers = layout.layers.unwrap_or(1);
        for (what, layer) in [("layer", layer), ("target_layer", target_layer)] {
            if let Some(layer) = layer.filter(|&layer| layer >= layers) {
                return fail!(InvalidArgument, "{name}: {what} is {layer}, but rows have {layers} layers");
            }
        }
        match (layout.layers, layer, options.layers) {
            (Some(found), None, 0 | 1) if found > 1 => {
                return fail!(
                    InvalidArgument,
                    "{name}: rows have {found} layers; say which is read (layer, 0 to {}), or layers = {found} for a crosscoder of \
                     all of them",
                    found - 1
                );
            }
            (_, Some(layer), of) if of > 1 => {
                return fail!(InvalidArgument, "{name}: layers {of} and layer {layer}: a crosscoder reads all layers");
            }
            (_, None, of) if of > 1 && of != layers => {
                return fail!(InvalidArgument, "{name}: layers is {of}, but rows have {layers}");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes the folder for this process, as long as the file lives. A process that was just killed may hold it a little longer.
fn lock(path: &Path) -> Result<File> {
    let lock = || {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_WAIT => std::thread::sleep(LOCK_WAIT / 50),
                Err(TryLockError::WouldBlock) => return fail!(BadState, "another process works in this folder"),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
    };
    lock().map_err(|e: Error| e.at(path.display()))
}
