//! A training run on the processor: sparse throughout, nothing of size [T, n] exists.
//!
//! Rows of a batch and rows of weights are the two ways work is cut, in blocks of fixed size; every sum has one order, so
//! that the number of threads does not show in the results.

mod activation;
mod aux;
mod backward;
mod batch_top_k;
mod codes;
mod dense;
mod forward;
mod gather;
mod levels;
mod optimizer;
mod peers;
mod resample;
mod state;
mod sums;

use activation::{Activation, Gates};
use batch_top_k::Selector;
use forward::{FitSums, Problem, Reconstruction};
use gather::Batch;
use levels::Levels;
use peers::Peers;
use resample::LastBatch;
use state::{Parameters, State};

use super::Kernels;
use super::blocks::{blocks, for_each, panels};
use super::encode::Workers;
use super::encoder::Encoder;
use super::rounding::Round;
use super::rows::Rows;
use super::scratch::{Plan, ScreenPlan, Slots};
use super::select::Selection;
use crate::backend::Pool;
use crate::backend::training::{
    BatchSums, LossParameters, Parameter, Resampling, Role, Rule, StepParameters, Training, TrainingRows, TrainingShape,
};
use crate::collective::{Axis, Ranks};
use crate::error::{Error, Result, Status, fail};
use crate::sae::int8::{Int8Rows, PANEL};
use crate::sae::{Architecture, Spec};
use crate::tensor::{AlignedBytes, Array};

/// Slots of codes that there is memory for where any number of latents may be active: such batches are gone through in blocks
/// of tokens.
const UNBOUNDED_SLOTS: usize = 1 << 21;

/// One run: its numbers, and memory for a batch of the largest size.
pub struct CpuTraining {
    shape: TrainingShape,
    spec: Spec,
    kernels: Kernels,
    pool: Pool,
    peers: Peers,
    state: State,
    batch: Batch,
    /// `[T, d_out]`, with a skip path: what it gives, then what the gradient by it is made of.
    skipped: Array<f32>,
    main: Reconstruction,
    /// `[T]`: the square of what was left of each row of the last batch.
    errors: Array<f64>,
    /// How many rows that had.
    last: usize,
    /// Rows of a batch that are gone through together.
    rows: usize,
    /// Where latents of all tokens compete.
    selector: Option<Selector>,
    aux: Option<aux::Aux>,
    lists: backward::LatentLists,
    plan: Plan,
    workers: AlignedBytes,
}

impl CpuTraining {
    /// A run with all numbers zero.
    pub fn new(shape: TrainingShape, pool: Pool, kernels: Kernels) -> Result<Self> {
        Self::among(shape, pool, kernels, Ranks::alone())
    }

    /// [`Self::new`] of one rank of several, whose latents `shape` has.
    pub fn among(shape: TrainingShape, pool: Pool, kernels: Kernels, ranks: Ranks) -> Result<Self> {
        check_ranks(&shape, &ranks)?;
        let &TrainingShape { d, d_out, n_latents, whole_latents, k, k_aux, max_tokens, .. } = &shape;
        let (whole_width, levels) = (shape.rule.width(k, whole_latents), shape.rule.levels());
        let width = whole_width.min(n_latents);
        let unbounded = shape.rule.is_unbounded();
        if unbounded && k_aux > 0 {
            return fail!(Internal, "AuxK needs a rule that keeps k latents");
        }
        // As many on all ranks.
        let most_latents = ranks.part_of(whole_latents, ranks.count(Axis::Latents) - 1).len();
        let rows = if unbounded { (UNBOUNDED_SLOTS / most_latents).clamp(1, max_tokens) } else { max_tokens };
        let aux_rows = aux::ROWS.min(max_tokens);
        let by_batch = matches!(shape.rule, Rule::BatchTopK { .. });
        // All that a batch's tokens win may be won by those of one rank.
        let share = if by_batch { ranks.count(Axis::Data) } else { 1 };
        let most = rows.saturating_mul(width).saturating_mul(share);
        let entries = most.max(aux_rows.saturating_mul(k_aux));
        if entries.max(max_tokens.saturating_mul(levels)) > u32::MAX as usize {
            return fail!(
                InvalidArgument,
                "max_batch_tokens {max_tokens} times {width} latents of each (k {k}), or {aux_rows} times k_aux {k_aux}, \
                 must be below 2^32"
            );
        }
        let mut spec = Spec::new(Architecture::TopK { k }, d, n_latents);
        spec.normalization = shape.normalization;
        spec.subtract_b_dec = shape.subtracts_b_dec();
        let mut state = State::zeroed(&shape)?;
        let plain = encoder(&shape, &state.weights, None, width);
        let screened = !unbounded && kernels.fast_products && plain.can_be_screened() && plain.pays_to_screen();
        if screened {
            state.int8 = Some(Int8Rows::zeroed(n_latents, d)?);
        }
        let limit = if by_batch { n_latents } else { width }.max(k_aux);
        let screen = screened.then(|| ScreenPlan::new(d, Some(width)));
        let now = Current { weights: &state.weights, derived: &state.derived, int8: None };
        let extra = problem(&shape, now, k, 0.0, 0.0).activation.extras().len();
        let plan = Plan { d: d.max(d_out), limit, width: 0, tokens: max_tokens, screen };
        // What latents compete for, in the batch and in AuxK.
        let slots = if unbounded { (1, 1) } else { (rows, whole_width) };
        let keys = (slots.0.max(aux_rows), slots.1.max(k_aux));
        let peers = Peers::new(ranks, &shape, keys.0, keys.1)?;
        let ranks = &peers.ranks;
        Ok(Self {
            kernels,
            state,
            batch: Batch::new(&shape)?,
            skipped: Array::zeroed(if shape.skip { max_tokens.saturating_mul(d_out) } else { 0 })?,
            main: Reconstruction::new(rows, d_out, width * share, levels, extra)?.among_peers(ranks)?,
            errors: Array::zeroed(max_tokens)?,
            last: 0,
            rows,
            selector: by_batch.then(|| Selector::new(max_tokens * k * share, n_latents)).transpose()?,
            aux: (k_aux > 0).then(|| aux::Aux::new(&shape, aux_rows, ranks)).transpose()?,
            lists: backward::LatentLists::new(n_latents, entries, levels, extra)?,
            peers,
            workers: AlignedBytes::zeroed(plan.bytes().saturating_mul(pool.threads()))?,
            plan,
            pool,
            spec,
            shape,
        })
    }

    /// Rounds all of W_enc anew.
    fn round_encoder(&mut self) {
        let (State { weights, int8, .. }, d, kernels) = (&mut self.state, self.shape.d, self.kernels);
        if let Some(int8) = int8 {
            for_each(&self.pool, (blocks(&mut weights.w_enc, PANEL * d), panels(int8)), |_, (rows, panel)| {
                kernels.run(Round { panel, rows, d });
            });
        }
    }

    fn check_length(&self, parameter: Parameter, found: usize) -> Result<()> {
        let wanted = self.state.weights.get(parameter).len();
        if wanted != found {
            return fail!(Internal, "{} has {wanted} numbers, not {found}", parameter.name());
        }
        Ok(())
    }
}

impl CpuTraining {
    /// The losses and gradients of the batch that was read; `sums` has the tokens of all ranks.
    fn add(&mut self, mut sums: BatchSums, loss: &LossParameters) -> Result<BatchSums> {
        let Self { shape, state, batch, skipped, main, kernels, pool, peers, .. } = self;
        if sums.tokens == 0 {
            sums.dead = dead(&peers.ranks, &state.unfired, loss)?;
            return Ok(sums);
        }
        let (d, d_out, tokens) = (shape.d, shape.d_out, self.last);
        let k = if loss.k == 0 { shape.k } else { loss.k };
        sums.squared_deviation =
            sums::squared_deviation(pool, batch.targets(tokens), d_out, sums.tokens, &peers.ranks)?;
        if shape.skip {
            batch.skip(*kernels, pool, tokens, &state.weights.w_skip, skipped);
        }
        let (inputs, targets) = (&batch.inputs[..tokens * d], batch.targets(tokens));
        let slots = Slots::new(self.workers.as_mut_slice(), self.plan);
        let workers = Workers { kernels: *kernels, pool, slots: &slots };
        let pull = 2.0 / (d_out as f64 * loss.normalizer);
        derive(shape, state);
        state.unfired.iter_mut().for_each(|unfired| *unfired = unfired.saturating_add(sums.tokens as u64));
        let (mut fitted, mut row) = (FitSums::default(), 0);
        // A rank without tokens of its own has its say all the same.
        for block in 0..tokens.div_ceil(self.rows).max(1) {
            let rows = block * self.rows..tokens.min((block + 1) * self.rows);
            let inputs = &inputs[rows.start * d..rows.end * d];
            let targets = &targets[rows.start * d_out..rows.end * d_out];
            let now = Current { weights: &state.weights, derived: &state.derived, int8: state.int8.as_ref() };
            let all = problem(shape, now, k, pull, loss.sparsity_coefficient);
            let problem = Problem { inputs, targets, ..all };
            sums.smallest =
                fit(&workers, &problem, (sums.tokens, k), main, self.selector.as_mut(), (shape, &mut *peers))?;
            fitted.add(main.sums());
            self.errors[row..].iter_mut().zip(main.squares()).for_each(|(to, square)| *to = square);
            row += main.codes().rows;
            backward::add(&workers, &problem, main, &mut self.lists, &mut state.gradient);
            backward::add_bias(&workers, &problem, main, &mut state.gradient.sums.b_dec);
            if shape.skip {
                let w_skip = &mut state.gradient.sums.w_skip;
                backward::add_skip(&workers, &problem, main, d_out, skipped, w_skip);
            }
            main.mark_fired(problem.levels, &mut state.unfired, loss.fired);
        }
        // A latent that fired on one rank did so for all that hold it.
        peers.ranks.min(Axis::Data, &mut state.unfired)?;
        fitted.sum_up(&peers.ranks)?;
        sums.squared_error = fitted.squared_error;
        sums.reconstruction = fitted.reconstruction;
        sums.penalty = fitted.penalty;
        sums.aux_loss = pull / 2.0 * fitted.gates / sums.tokens as f64;
        sums.active = fitted.active;
        sums.dead = dead(&peers.ranks, &state.unfired, loss)?;
        if let Some(aux) = &mut self.aux {
            let batch = aux::Explained { inputs, errors: main.leftover(), tokens: sums.tokens, dead: sums.dead };
            sums.aux_loss = aux.add(&workers, state, &mut self.lists, &batch, loss, peers)?;
        }
        Ok(sums)
    }
}

impl Training for CpuTraining {
    fn accumulate(&mut self, rows: &TrainingRows<'_>, loss: &LossParameters) -> Result<BatchSums> {
        let Self { batch, kernels, pool, state, .. } = self;
        let mut sums = batch.gather(*kernels, pool, rows, &self.spec, &state.weights.b_dec);
        self.last = sums.tokens;
        let read = [&batch.inputs[..sums.tokens * self.shape.d], batch.targets(sums.tokens)];
        self.peers.meet(&mut sums, &read)?;
        let ranks = self.peers.ranks.clone();
        ranks.settle(self.add(sums, loss))
    }

    fn apply(&mut self, step: &StepParameters) -> Result<f64> {
        derive(&self.shape, &mut self.state);
        let ranks = &self.peers.ranks;
        ranks.settle(optimizer::apply(self.kernels, &self.pool, &mut self.state, &self.shape, step, ranks))
    }

    fn resample(&mut self, how: &mut Resampling<'_>) -> Result<usize> {
        let (inputs, targets) = (&self.batch.inputs[..self.last * self.shape.d], self.batch.targets(self.last));
        let batch = LastBatch { inputs, targets, errors: &self.errors[..self.last] };
        let made = resample::resample(self.kernels, &mut self.state, self.shape.layers, &batch, how)?;
        if made > 0 {
            self.round_encoder();
        }
        Ok(made)
    }

    fn reconstruction_norms(&mut self, rows: &[f32], k: usize, norms: &mut [f64]) -> Result<()> {
        let (d, d_out) = (self.shape.d, self.shape.d_out);
        let slots = Slots::new(self.workers.as_mut_slice(), self.plan);
        let workers = Workers { kernels: self.kernels, pool: &self.pool, slots: &slots };
        // What is left of zero is the reconstruction, negated. Between batches their memory is free.
        let zeros = self.batch.zero_targets(rows.len() / d);
        derive(&self.shape, &mut self.state);
        let State { weights, derived, int8, .. } = &self.state;
        let now = Current { weights, derived, int8: int8.as_ref() };
        let all = problem(&self.shape, now, k, 0.0, 0.0);
        // Rows that competed would leave their norms to chance, and to how many are gone through together.
        if self.selector.is_some() {
            self.main.codes_mut().spread(k.min(self.shape.n_latents));
        }
        let blocks = rows.chunks(self.rows * d).zip(zeros.chunks(self.rows * d_out)).zip(norms.chunks_mut(self.rows));
        for ((inputs, targets), norms) in blocks {
            let problem = Problem { inputs, targets, ..all };
            fit(&workers, &problem, (0, k), &mut self.main, None, (&self.shape, &mut self.peers))?;
            norms.iter_mut().zip(self.main.squares()).for_each(|(to, square)| *to = square.sqrt());
        }
        Ok(())
    }

    fn read(&self, role: Role, parameter: Parameter, out: &mut [f32]) -> Result<()> {
        self.check_length(parameter, out.len())?;
        let from = match role {
            Role::Weight => &self.state.weights,
            Role::FirstMoment => &self.state.first_moment,
            Role::SecondMoment => &self.state.second_moment,
            Role::Ema => self.state.ema.as_ref().ok_or_else(no_ema)?,
            Role::Gradient => {
                self.state.gradient.read(parameter, out);
                return Ok(());
            }
        };
        out.copy_from_slice(from.get(parameter));
        Ok(())
    }

    fn write(&mut self, role: Role, parameter: Parameter, values: &[f32]) -> Result<()> {
        self.check_length(parameter, values.len())?;
        let to = match role {
            Role::Weight => &mut self.state.weights,
            Role::FirstMoment => &mut self.state.first_moment,
            Role::SecondMoment => &mut self.state.second_moment,
            Role::Ema => self.state.ema.as_mut().ok_or_else(no_ema)?,
            Role::Gradient => {
                self.state.gradient.write(parameter, values);
                return Ok(());
            }
        };
        to.get_mut(parameter).copy_from_slice(values);
        if (role, parameter) == (Role::Weight, Parameter::WEnc) {
            self.round_encoder();
        }
        Ok(())
    }

    fn read_unfired(&self, out: &mut [u64]) -> Result<()> {
        out.copy_from_slice(&self.state.unfired);
        Ok(())
    }

    fn write_unfired(&mut self, tokens: &[u64]) -> Result<()> {
        self.state.unfired.copy_from_slice(tokens);
        Ok(())
    }
}

/// What a batch is computed with.
#[derive(Clone, Copy)]
struct Current<'a> {
    weights: &'a Parameters,
    derived: &'a [f32],
    int8: Option<&'a Int8Rows>,
}

/// What a batch is encoded with, and what its codes shall explain, but for the rows. `k` latents of each are kept; the loss
/// pulls by `pull`, of which `sparsity` times the half goes to what holds activations down.
fn problem<'a>(shape: &'a TrainingShape, now: Current<'a>, k: usize, pull: f64, sparsity: f64) -> Problem<'a> {
    let Current { weights, derived, int8 } = now;
    let encoder = encoder(shape, weights, int8, shape.rule.width(k, shape.whole_latents).min(shape.n_latents));
    let coefficient = (sparsity * pull / 2.0) as f32;
    let (encoder, activation) = match &shape.rule {
        Rule::TopK | Rule::AbsTopK | Rule::MultiTopK | Rule::BatchTopK { .. } => (encoder, Activation::Score),
        Rule::Relu => (encoder, Activation::Relu { coefficient }),
        Rule::JumpRelu(rule) => {
            let threshold = &weights.threshold;
            let (floors, raised) = derived.split_at(shape.n_latents);
            let near = Encoder { threshold: Some(floors), b_enc: raised, ..encoder };
            (near, Activation::JumpRelu { rule, threshold, coefficient })
        }
        Rule::Gated => {
            let Parameters { b_gate, b_enc, .. } = weights;
            let gates = Gates { gains: derived, b_gate, b_enc, coefficient };
            (Encoder { b_enc: b_gate, ..encoder }, Activation::Gated(gates))
        }
    };
    let levels = match &shape.rule {
        Rule::BatchTopK { levels } if levels.len() > 1 => Levels::ByIndex(levels),
        Rule::MultiTopK => Levels::ByRank(k),
        _ => Levels::One,
    };
    Problem { encoder, ids: None, inputs: &[], targets: &[], w_dec: &weights.w_dec, pull, levels, activation }
}

/// The encoder as it is now, keeping the `width` largest of a token.
fn encoder<'a>(
    shape: &TrainingShape,
    weights: &'a Parameters,
    int8: Option<&'a Int8Rows>,
    width: usize,
) -> Encoder<'a> {
    let rows = Rows::F32 { values: &weights.w_enc, d: shape.d };
    let selection = match shape.rule {
        Rule::TopK | Rule::MultiTopK | Rule::BatchTopK { .. } => Selection::TopK(width),
        Rule::AbsTopK => Selection::AbsTopK(width),
        Rule::Relu | Rule::JumpRelu(_) | Rule::Gated => Selection::All,
    };
    Encoder { selection, ..Encoder::top_k(rows, &weights.b_enc, width) }.screened(int8)
}

/// Brings up to date what follows from the weights.
fn derive(shape: &TrainingShape, state: &mut State) {
    let State { weights, derived, .. } = state;
    match &shape.rule {
        Rule::JumpRelu(rule) => {
            let (floors, raised) = derived.split_at_mut(shape.n_latents);
            for (i, (floor, raised)) in floors.iter_mut().zip(raised).enumerate() {
                let theta = weights.threshold[i];
                (*floor, *raised) = (rule.floor(theta), weights.b_enc[i] + rule.lift(theta));
            }
        }
        Rule::Gated => derived.iter_mut().zip(&*weights.r_mag).for_each(|(gain, r)| *gain = libm::expf(*r)),
        Rule::TopK | Rule::MultiTopK | Rule::AbsTopK | Rule::BatchTopK { .. } | Rule::Relu => {}
    }
}

/// Encodes and explains; `k` latents of each token are kept, of which there are so many on all ranks. Gives the smallest
/// activation where the batch chooses.
fn fit(
    workers: &Workers<'_>,
    problem: &Problem<'_>,
    (tokens, k): (usize, usize),
    main: &mut Reconstruction,
    selector: Option<&mut Selector>,
    (shape, peers): (&TrainingShape, &mut Peers),
) -> Result<Option<f32>> {
    let Some(selector) = selector else {
        peers.fit(workers, problem, shape.rule.width(k, shape.whole_latents), main)?;
        return Ok(None);
    };
    let smallest = selector.select(workers, &problem.encoder, problem.inputs, tokens * k, main.codes_mut(), peers)?;
    peers.explain(workers, problem, main)?;
    Ok(smallest)
}

/// Refuses rules by which ranks cannot work together yet.
fn check_ranks(shape: &TrainingShape, ranks: &Ranks) -> Result<()> {
    let latents = ranks.count(Axis::Latents);
    if latents > shape.whole_latents {
        return fail!(
            InvalidArgument,
            "latent_ranks {latents} are more than n_latents, which is {}",
            shape.whole_latents
        );
    }
    match shape.rule {
        Rule::Gated if latents > 1 => {
            fail!(Unsupported, "gated SAEs are trained with all latents on each rank, not with latent_ranks {latents}")
        }
        _ => Ok(()),
    }
}

/// How many latents are dead, on all ranks.
fn dead(ranks: &Ranks, unfired: &[u64], loss: &LossParameters) -> Result<usize> {
    let mut dead = [unfired.iter().filter(|&&tokens| tokens >= loss.dead_after_tokens).count() as u64];
    ranks.sum_u64(Axis::Latents, &mut dead)?;
    Ok(dead[0] as usize)
}

fn no_ema() -> Error {
    Error::new(Status::BadState, "this run keeps no moving average of the weights (no_ema)")
}
