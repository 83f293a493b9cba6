//! One stream of work over one SAE: the hot calls. Every argument is checked here, before anything is written; the
//! backend behind it then cannot fail for the caller's mistakes.
//!
//! ```
//! use std::sync::Arc;
//! use sae::backend::Run;
//! use sae::features::Features;
//! use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
//! use sae::session::{Session, SessionOptions};
//! use sae::tensor::Tensor;
//!
//! let identity = Matrix::from_f32(&[1.0, 0.0, 0.0, 1.0], 2, 2)?;
//! let weights = Weights::new(identity.clone(), vec![0.0; 2], identity, vec![0.0; 2]);
//! let sae = Arc::new(Sae::new(Spec::new(Architecture::TopK { k: 1 }, 2, 2), weights)?);
//! let mut session = Session::new(sae, SessionOptions::default())?;
//!
//! let x = [0.5, 2.0, -1.0, -3.0]; // two tokens
//! let mut features = Features::new(2, 1, 0);
//! session.encode(Run::default(), Tensor::new(&x, &[2, 2])?.into(), features.view_mut())?;
//! assert_eq!(features.row(0).collect::<Vec<_>>(), [(1, 2.0)]);
//! assert_eq!(features.counts, [1, 0]);
//! # Ok::<(), sae::Error>(())
//! ```
//!
//! Shapes: `x`, `addend` `[T, d_in]`; `x_hat`, `y`, `out` `[T, d_out]`; T from 0 to the session's `max_tokens`; f32, f16 or
//! bf16. Crosscoders take `[T, layers, d]` as well, wherever the layers lie. Memory is reserved when
//! the session is made; the calls allocate nothing.

use std::sync::Arc;

use crate::backend::cpu::{CpuSession, Kernels};
use crate::backend::cuda::{CudaModel, CudaSession};
use crate::backend::{Input, Limits, Operations, Pool, Run, Screen, Steering, Stream, Wanted};
use crate::error::{Result, fail};
use crate::features::{FeaturesMut, FeaturesRef, check_tensor};
use crate::sae::{Sae, Spec};
use crate::steering::{Edit, check_edits};
use crate::tensor::{DType, Device, DeviceKind, Tensor, TensorMut};

/// An SAE where it is computed with.
#[derive(Clone)]
pub enum Model {
    /// On the processor.
    Cpu(Arc<Sae>),
    /// On a GPU.
    Cuda(Arc<CudaModel>),
}

impl Model {
    /// The SAE.
    pub fn sae(&self) -> &Arc<Sae> {
        match self {
            Self::Cpu(sae) => sae,
            Self::Cuda(model) => model.sae(),
        }
    }

    /// Another SAE on the same device.
    pub fn another(&self, sae: Sae) -> Result<Self> {
        let sae = Arc::new(sae);
        Ok(match self {
            Self::Cpu(_) => sae.into(),
            Self::Cuda(model) => CudaModel::on(sae, Arc::clone(model.driver()))?.into(),
        })
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu(_) => Device::CPU,
            Self::Cuda(model) => model.device(),
        }
    }
}

impl From<Arc<Sae>> for Model {
    fn from(sae: Arc<Sae>) -> Self {
        Self::Cpu(sae)
    }
}

impl From<Arc<CudaModel>> for Model {
    fn from(model: Arc<CudaModel>) -> Self {
        Self::Cuda(model)
    }
}

/// What a session is made for.
#[derive(Clone)]
pub struct SessionOptions {
    /// The most tokens per call.
    pub max_tokens: usize,
    /// The most slots per token in features; 0 means k for TopK, else the lesser of 1024 and the number of latents.
    pub max_width: usize,
    /// How many lists of edits there can be.
    pub slots: usize,
    /// How many edits a list can have.
    pub edits_per_slot: usize,
    /// Who computes, on the processor.
    pub pool: Pool,
    /// The host brings the working memory with every call ([`Run::workspace`]).
    pub host_workspace: bool,
    /// Instruction set of the processor; `None`: [`Kernels::best`].
    pub kernels: Option<Kernels>,
    /// Whether scores are bounded first, by products of bytes or, on a GPU, of bf16.
    pub screen: Screen,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            max_tokens: 512,
            max_width: 0,
            slots: 1,
            edits_per_slot: 16,
            pool: Pool::serial(),
            host_workspace: false,
            kernels: None,
            screen: Screen::Auto,
        }
    }
}

/// Memory a session needs, of the device that its model is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionMemory {
    /// Working memory: the session's, or brought by the host with each call; aligned to 64 bytes, on a GPU to 256.
    pub workspace: usize,
    /// Kept by the session besides.
    pub kept: usize,
    /// Shared by all sessions of the model that bound scores first.
    pub shared: usize,
}

/// One stream of work over one SAE. A session is used by one thread at a time; sessions are independent of each other.
pub struct Session {
    sae: Arc<Sae>,
    device: Device,
    limits: Limits,
    kernels: Kernels,
    /// For each slot, whether its edits depend on activations.
    needs_activations: Vec<bool>,
    operations: Box<dyn Operations>,
}

/// A caller's arguments of [`Session::steer`] beyond the activations themselves.
#[derive(Clone, Copy, Default)]
pub struct Steer<'a> {
    /// `[T]` i32: each row's slot, −1 to leave it alone; absent: slot 0 for all.
    pub row_slot: Option<Tensor<'a>>,
    /// Features of these rows, if they are already encoded.
    pub known: Option<FeaturesRef<'a>>,
    /// What is edited, if not x: a transcoder's output site.
    pub y: Option<Tensor<'a>>,
}

impl Session {
    /// Reserves everything the calls will need.
    pub fn new(model: impl Into<Model>, options: SessionOptions) -> Result<Self> {
        let model = model.into();
        let (sae, device) = (Arc::clone(model.sae()), model.device());
        let limits = limits(&sae, &options)?;
        let kernels = options.kernels.map_or_else(Kernels::best, Ok)?;
        let SessionOptions { pool, screen, host_workspace, .. } = options;
        let operations: Box<dyn Operations> = match model {
            Model::Cpu(sae) => Box::new(CpuSession::new(sae, limits, pool, kernels, screen, host_workspace)?),
            Model::Cuda(model) => Box::new(CudaSession::new(model, limits, screen, host_workspace)?),
        };
        Ok(Self { sae, device, limits, kernels, needs_activations: vec![false; limits.slots], operations })
    }

    /// What [`Self::new`] would reserve.
    pub fn memory(model: &Model, options: &SessionOptions) -> Result<SessionMemory> {
        let limits = limits(model.sae(), options)?;
        let (workspace, kept, shared) = match model {
            Model::Cpu(sae) => {
                let kernels = options.kernels.map_or_else(Kernels::best, Ok)?;
                CpuSession::memory(sae, limits, &options.pool, kernels, options.screen)
            }
            Model::Cuda(model) => CudaSession::memory(model.sae(), limits, options.screen),
        };
        Ok(SessionMemory { workspace, kept, shared })
    }

    /// The SAE it works with.
    pub fn sae(&self) -> &Arc<Sae> {
        &self.sae
    }

    /// Where its model is, and its tensors must be.
    pub fn device(&self) -> Device {
        self.device
    }

    /// What it was made for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The instruction set in use, on the processor.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Bytes of working memory that every call needs.
    pub fn workspace_size(&self) -> usize {
        self.operations.workspace_size()
    }

    /// Sparse features of each token.
    pub fn encode(&mut self, run: Run<'_>, input: Input<'_>, out: FeaturesMut<'_>) -> Result<()> {
        self.check_input(&input)?;
        self.check_features("out", &out.as_ref(), input.x.rows())?;
        disjoint(out.as_ref().tensors(), inputs(&input), None)?;
        self.check_run(&run)?;
        self.operations.encode(run, input, out)
    }

    /// Activations of chosen latents: `ids` `[m]` i32 of global indices, `out` `[T, m]`. For TopK a latent that is not
    /// among the k largest has activation 0. Rows that are not finite become NaN; ids out of range count as 0.
    pub fn encode_selected(
        &mut self,
        run: Run<'_>,
        input: Input<'_>,
        ids: Tensor<'_>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        self.refuse_shard("single activations")?;
        self.check_input(&input)?;
        let m = ids.rows();
        check_tensor("ids", &ids, &[m], |t| t == DType::I32, "i32")?;
        self.check_vectors("out", &out.as_ref(), &[input.x.rows(), m])?;
        self.check_device("ids", &ids)?;
        disjoint([("out", out.as_ref())], inputs(&input).chain([("ids", ids)]), None)?;
        self.check_run(&run)?;
        self.operations.encode_selected(run, input, ids, out)
    }

    /// All activations or pre-activations, `z` `[T, n_latents]`. Rows that are not finite become NaN.
    pub fn encode_dense(&mut self, run: Run<'_>, input: Input<'_>, what: Wanted, z: TensorMut<'_>) -> Result<()> {
        if what == Wanted::Activations {
            self.refuse_shard("dense activations")?;
        }
        self.check_input(&input)?;
        self.check_vectors("z", &z.as_ref(), &[input.x.rows(), self.sae.spec().n_latents])?;
        disjoint([("z", z.as_ref())], inputs(&input), None)?;
        self.check_run(&run)?;
        self.operations.encode_dense(run, input, what, z)
    }

    /// Activation vectors from features. `x` is the raw input, which models with a skip path need and others ignore.
    pub fn decode(
        &mut self,
        run: Run<'_>,
        features: FeaturesRef<'_>,
        x: Option<Tensor<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        let rows = features.rows();
        self.check_features("features", &features, rows)?;
        self.check_outputs("x_hat", &out.as_ref(), rows)?;
        let x = if self.sae.weights().w_skip.is_some() { x } else { None };
        match &x {
            Some(x) => self.check_inputs("x", x, rows)?,
            None if self.sae.weights().w_skip.is_some() => {
                return fail!(InvalidArgument, "x: this model has a skip path, whose raw input is needed");
            }
            None => {}
        }
        let read = features.tensors().chain(x.map(|x| ("x", x)));
        disjoint([("x_hat", out.as_ref())], read, Some(("x_hat", "x")))?;
        self.check_run(&run)?;
        self.operations.decode(run, features, x, out)
    }

    /// Encode and decode at once, from all active latents in the order of their values; `features` gets as many as fit.
    pub fn reconstruct(
        &mut self,
        run: Run<'_>,
        input: Input<'_>,
        features: Option<FeaturesMut<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        self.check_input(&input)?;
        self.check_outputs("x_hat", &out.as_ref(), input.x.rows())?;
        if let Some(features) = &features {
            self.check_features("out", &features.as_ref(), input.x.rows())?;
        }
        let features_ref = features.as_ref().map(FeaturesMut::as_ref);
        let written = features_ref.iter().flat_map(FeaturesRef::tensors).chain([("x_hat", out.as_ref())]);
        disjoint(written, inputs(&input), Some(("x_hat", "x")))?;
        self.check_run(&run)?;
        self.operations.reconstruct(run, input, features, out)
    }

    /// Replaces the list of edits in a slot; an empty one steers nothing.
    pub fn set_edits(&mut self, slot: usize, edits: &[Edit]) -> Result<()> {
        let spec = self.sae.spec();
        if slot >= self.limits.slots {
            return fail!(InvalidArgument, "slot: {slot} is not one of the session's {}", self.limits.slots);
        }
        if edits.len() > self.limits.edits_per_slot {
            let (found, most) = (edits.len(), self.limits.edits_per_slot);
            return fail!(InvalidArgument, "n_edits: {found}, but the session was made for {most} per slot");
        }
        check_edits(edits, spec.first_latent..spec.first_latent + spec.n_latents)?;
        self.operations.set_edits(slot, edits)?;
        self.needs_activations[slot] = edits.iter().any(Edit::needs_activation);
        Ok(())
    }

    /// Changes activations by their slots' edits: `out = y + change`. Rows left alone keep their bits.
    pub fn steer(&mut self, run: Run<'_>, input: Input<'_>, steer: Steer<'_>, out: TensorMut<'_>) -> Result<()> {
        self.check_input(&input)?;
        let spec = self.sae.spec();
        let rows = input.x.rows();
        self.check_steering(rows, &steer)?;
        if steer.y.is_none() && spec.d_in != spec.d_out {
            return fail!(
                InvalidArgument,
                "y: this model reads vectors of {} and writes vectors of {}, so what is edited cannot be x",
                spec.d_in,
                spec.d_out
            );
        }
        let y = steer.y.unwrap_or(input.x);
        self.check_outputs("y", &y, rows)?;
        self.check_outputs("out", &out.as_ref(), rows)?;
        if y.dtype() != out.dtype() {
            return fail!(InvalidTensor, "out: expected {} like y, found {}", y.dtype(), out.dtype());
        }
        let known = steer.known.iter().flat_map(FeaturesRef::tensors);
        let read = inputs(&input).chain(steer.row_slot.map(|t| ("row_slot", t))).chain(known);
        disjoint([("out", out.as_ref())], read, Some(("out", "x")))?;
        disjoint([("out", out.as_ref())], [("y", y)], Some(("out", "y")))?;
        let steering = Steering { row_slot: steer.row_slot, known: steer.known, y: Some(y), out };
        self.check_run(&run)?;
        self.operations.steer(run, Some(input), steering)
    }

    /// [`Self::steer`] of `x` itself.
    pub fn steer_in_place(&mut self, run: Run<'_>, x: TensorMut<'_>, row_slot: Option<Tensor<'_>>) -> Result<()> {
        let spec = self.sae.spec();
        if spec.d_in != spec.d_out {
            let Spec { d_in, d_out, .. } = spec;
            return fail!(InvalidArgument, "x: vectors of {d_in} are read and vectors of {d_out} are edited");
        }
        let rows = x.rows();
        self.check_inputs("x", &x.as_ref(), rows)?;
        self.check_outputs("x", &x.as_ref(), rows)?;
        self.check_steering(rows, &Steer { row_slot, ..Steer::default() })?;
        disjoint([("x", x.as_ref())], row_slot.map(|t| ("row_slot", t)), None)?;
        self.check_run(&run)?;
        self.operations.steer(run, None, Steering { row_slot, known: None, y: None, out: x })
    }

    fn check_steering(&self, rows: usize, steer: &Steer<'_>) -> Result<()> {
        if let Some(row_slot) = &steer.row_slot {
            check_tensor("row_slot", row_slot, &[rows], |t| t == DType::I32, "i32")?;
            self.check_device("row_slot", row_slot)?;
        }
        if let Some(known) = &steer.known {
            self.check_features("known", known, rows)?;
        }
        let complete = steer.known.is_some_and(|known| known.width() >= self.sae.spec().max_active());
        if !complete && self.needs_activations.contains(&true) {
            self.refuse_shard("steering by the activation of latents without the whole's features (known)")?;
        }
        Ok(())
    }

    /// Which latents of a TopK SAE are active, a shard cannot tell alone.
    fn refuse_shard(&self, what: &str) -> Result<()> {
        let spec = self.sae.spec();
        if spec.is_shard() && spec.architecture.shards_compete() {
            let name = spec.architecture.name();
            return fail!(Unsupported, "{what} on a shard of a {name} SAE: encode the shards and merge their features");
        }
        Ok(())
    }

    /// Features of latent shards (of a model like this one, under global indices) into those of the whole. Parts must be as
    /// wide as what `out` can hold of a token, and share no latents. Order is by the parts' values: give f32 ones for the
    /// whole's own order.
    pub fn merge(&mut self, run: Run<'_>, parts: &[FeaturesRef<'_>], out: FeaturesMut<'_>) -> Result<()> {
        let spec = self.sae.spec();
        if spec.select_by_decoder_norm && spec.architecture.shards_compete() {
            let name = spec.architecture.name();
            return fail!(
                Unsupported,
                "parts: this {name} SAE chooses latents by their decoders' norms, which features do not tell"
            );
        }
        let rows = out.as_ref().rows();
        if parts.is_empty() {
            return fail!(InvalidArgument, "parts: at least one shard's features are needed");
        }
        self.check_features("out", &out.as_ref(), rows)?;
        for (i, part) in parts.iter().enumerate() {
            self.check_features("part", part, rows).map_err(|e| e.at(format_args!("parts[{i}]")))?;
            let (width, kept) = (part.width(), out.width().min(self.sae.spec().architecture.k().unwrap_or(usize::MAX)));
            if width < kept {
                return fail!(InvalidArgument, "parts[{i}]: width {width}, but out keeps up to {kept} of each token");
            }
        }
        disjoint(out.as_ref().tensors(), parts.iter().flat_map(FeaturesRef::tensors), None)?;
        self.check_run(&run)?;
        self.operations.merge(run, parts, out)
    }

    /// Indices and slots out of range that calls took for −1 since the session was made.
    pub fn ignored_indices(&self) -> u64 {
        self.operations.ignored_indices()
    }

    /// Faults of the device so far; never waits.
    pub fn fault(&self) -> Result<()> {
        self.operations.fault()
    }

    /// Waits until everything that was asked for is done, on whatever stream, and so are launches of graphs that calls were
    /// captured into. On the CPU it always is.
    pub fn synchronize(&self) -> Result<()> {
        self.operations.synchronize()
    }

    /// Refuses a stream or a workspace of another device than the model's.
    fn check_run(&self, run: &Run<'_>) -> Result<()> {
        let device = self.device;
        match (device.kind, run.stream) {
            (DeviceKind::Cpu, Stream::Host(_)) => {
                fail!(Unsupported, "stream: a host's stream is for models on a GPU; this one is on {device}")
            }
            (DeviceKind::Cpu, _) if run.device_workspace.is_some() => {
                fail!(InvalidArgument, "device_workspace: is a GPU's memory, but the model is on {device}")
            }
            (DeviceKind::Cuda, _) if run.workspace.is_some() => {
                fail!(InvalidArgument, "workspace: is the host's memory, but the model is on {device}")
            }
            _ => Ok(()),
        }
    }

    fn check_input(&self, input: &Input<'_>) -> Result<()> {
        let rows = input.x.rows();
        self.check_inputs("x", &input.x, rows)?;
        match &input.addend {
            Some(addend) => self.check_inputs("addend", addend, rows),
            None => Ok(()),
        }
    }

    /// Checks what the SAE reads.
    fn check_inputs(&self, name: &str, tensor: &Tensor<'_>, rows: usize) -> Result<()> {
        let Spec { d_in, layers_in, .. } = *self.sae.spec();
        self.check_layers(name, tensor, rows, (layers_in, d_in))
    }

    /// Checks what the SAE writes.
    fn check_outputs(&self, name: &str, tensor: &Tensor<'_>, rows: usize) -> Result<()> {
        let Spec { d_out, layers_out, .. } = *self.sae.spec();
        self.check_layers(name, tensor, rows, (layers_out, d_out))
    }

    /// Checks `[rows, d]` floats, or, where there are several layers, `[rows, layers, d / layers]`.
    fn check_layers(&self, name: &str, tensor: &Tensor<'_>, rows: usize, (layers, d): (usize, usize)) -> Result<()> {
        match tensor.shape().len() {
            3 if layers > 1 => self.check_vectors(name, tensor, &[rows, layers, d / layers]),
            _ => self.check_vectors(name, tensor, &[rows, d]),
        }
    }

    /// Checks floats of a shape, of which the first dimension is tokens, in memory the device can reach.
    fn check_vectors(&self, name: &str, tensor: &Tensor<'_>, shape: &[usize]) -> Result<()> {
        check_tensor(name, tensor, shape, DType::is_float, "f32, f16 or bf16")?;
        self.check_device(name, tensor)?;
        self.check_tokens(shape[0]).map_err(|e| e.at(name))
    }

    /// Refuses memory that the model's device does not reach.
    fn check_device(&self, name: &str, tensor: &Tensor<'_>) -> Result<()> {
        let (own, other) = (self.device, tensor.device());
        let reached = match own.kind {
            DeviceKind::Cuda => other == own || other.kind == DeviceKind::CudaManaged,
            _ => other.is_host(),
        };
        if !reached {
            return fail!(InvalidTensor, "{name}: is on {other}, but the model is on {own}");
        }
        Ok(())
    }

    fn check_tokens(&self, rows: usize) -> Result<()> {
        let most = self.limits.max_tokens;
        if rows > most {
            return fail!(InvalidArgument, "{rows} tokens, but the session was made for at most {most} per call");
        }
        Ok(())
    }

    fn check_features(&self, name: &str, features: &FeaturesRef<'_>, rows: usize) -> Result<()> {
        let check = || {
            features.check(rows, self.sae.spec().row_state_width())?;
            features.tensors().try_for_each(|(name, tensor)| self.check_device(name, &tensor))?;
            self.check_tokens(rows)?;
            if features.width() > self.limits.max_width {
                let (width, most) = (features.width(), self.limits.max_width);
                return fail!(InvalidArgument, "width {width}, but the session was made for at most {most}");
            }
            Ok(())
        };
        check().map_err(|e| e.at(name))
    }
}

fn limits(sae: &Sae, options: &SessionOptions) -> Result<Limits> {
    let spec = sae.spec();
    let max_width = match options.max_width {
        0 => spec.architecture.k().unwrap_or(1024).min(spec.n_latents),
        width => width,
    };
    for (name, value) in [
        ("max_tokens", options.max_tokens),
        ("max_width", max_width),
        ("slots", options.slots),
        ("edits_per_slot", options.edits_per_slot),
    ] {
        // Far above any use, far below where sizes could overflow; lists are compared edit by edit.
        let most = match name {
            "edits_per_slot" => 4096,
            "slots" => 1 << 20,
            _ => 1 << 28,
        };
        if value > most {
            return fail!(InvalidArgument, "{name}: {value} is more than {most}");
        }
    }
    if options.max_tokens == 0 {
        return fail!(InvalidArgument, "max_tokens: must be at least 1");
    }
    if options.slots.saturating_mul(options.edits_per_slot) > 1 << 24 {
        let (slots, edits) = (options.slots, options.edits_per_slot);
        return fail!(InvalidArgument, "slots: {slots} of {edits} edits are too many");
    }
    Ok(Limits {
        max_tokens: options.max_tokens,
        max_width,
        slots: options.slots,
        edits_per_slot: options.edits_per_slot,
    })
}

fn inputs<'a>(input: &Input<'a>) -> impl Iterator<Item = (&'static str, Tensor<'a>)> + use<'a> {
    [("x", Some(input.x)), ("addend", input.addend)].into_iter().filter_map(|(name, tensor)| Some((name, tensor?)))
}

/// Refuses written tensors that share memory with each other or with read ones, except the named pair if it is exactly
/// the same tensor.
fn disjoint<'a>(
    written: impl IntoIterator<Item = (&'static str, Tensor<'a>)>,
    read: impl IntoIterator<Item = (&'static str, Tensor<'a>)>,
    in_place: Option<(&str, &str)>,
) -> Result<()> {
    // At most 5 tensors are written (x_hat and features); no memory is allocated for the comparison.
    let mut outputs: [Option<(&str, Tensor<'_>)>; 5] = [None; 5];
    for (i, (name, tensor)) in written.into_iter().enumerate() {
        for (other_name, other) in outputs.iter().flatten() {
            if tensor.overlaps(other) {
                return fail!(InvalidTensor, "{name} and {other_name} overlap, but both are written");
            }
        }
        outputs[i] = Some((name, tensor));
    }
    for (read_name, read) in read {
        for (name, tensor) in outputs.iter().flatten() {
            let same = in_place == Some((*name, read_name)) && tensor.same_as(&read);
            if tensor.overlaps(&read) && !same {
                return fail!(InvalidTensor, "{name} overlaps {read_name}, which is read while {name} is written");
            }
        }
    }
    Ok(())
}
