//! A session's operations on a GPU: each is a sequence of launches, which allocates nothing and waits for nothing, so that it
//! can be captured into a graph. Nothing it decides depends on what tensors hold.

use std::sync::Arc;

use super::call::Call;
use super::driver::{Block, Counter, Driver, Inside, OwnStream, StreamHandle};
use super::edits::EditTable;
use super::model::{CudaModel, Screen, Screened};
use super::order::{Captures, Sequence};
use super::params::Latents;
use super::plan::{MAX_PARTS, Plan, Workspace, kept};
use crate::backend::{self, Input, Limits, Operations, Run, Steering, Stream, Wanted};
use crate::error::{Result, fail};
use crate::features::{FeaturesMut, FeaturesRef};
use crate::sae::Sae;
use crate::steering::Edit;
use crate::tensor::{Tensor, TensorMut, try_vec};

/// One session's state on a GPU.
pub struct CudaSession {
    pub(super) held: Arc<Held>,
    pub(super) screened: Option<Screened>,
    pub(super) latents: Latents,
    pub(super) skip: Option<Latents>,
    pub(super) plan: Plan,
    /// For each list of edits, whether they depend on activations.
    pub(super) needs_activations: Vec<bool>,
    stream: OwnStream,
    /// The captures that hold a call already, and so keep what calls need.
    captures: Captures,
}

/// What launches need to be there: kept by the session, and by every graph that was captured from it.
pub(super) struct Held {
    sequence: Sequence,
    pub(super) edits: EditTable,
    pub(super) ignored: Counter,
    /// What nobody reads: where kernels count again what was counted before.
    pub(super) unread: Counter,
    workspace: Workspace,
    /// What bounds scores, if they are bounded.
    screen: Option<Arc<Screen>>,
    pub(super) model: Arc<CudaModel>,
}

impl Held {
    fn driver(&self) -> &dyn Driver {
        &**self.model.driver()
    }
}

impl Drop for Held {
    /// Memory is given back once the device is done with it. That is waited for here: giving memory back waits for the device
    /// anyway, and what would be put off might find nobody to do it.
    fn drop(&mut self) {
        // What a broken device says is of no use any more.
        let _ = Inside::new(self.driver()).and_then(|inside| self.sequence.wait(&*inside));
    }
}

impl CudaSession {
    /// Reserves everything the calls will need. With `host_workspace` each call brings the working memory itself.
    pub fn new(model: Arc<CudaModel>, limits: Limits, screen: backend::Screen, host_workspace: bool) -> Result<Self> {
        let plan = Plan::new(model.sae(), limits, screen);
        let driver = model.driver();
        let screen = plan.screened.then(|| model.screen()).transpose()?;
        let size = plan.workspace();
        let own = (!host_workspace).then(|| Block::new(driver, size)).transpose()?;
        let stream = OwnStream::new(driver)?;
        let held = Held {
            sequence: Sequence::new(driver)?,
            edits: EditTable::new(driver, limits)?,
            ignored: Counter::new(driver)?,
            unread: Counter::new(driver)?,
            workspace: Workspace::new(own, size),
            screen,
            model,
        };
        Ok(Self {
            screened: held.screen.as_ref().map(|screen| held.model.screened(screen)),
            latents: held.model.latents(),
            skip: held.model.skip(),
            plan,
            needs_activations: try_vec(false, limits.slots)?,
            stream,
            captures: Captures::none(),
            held: Arc::new(held),
        })
    }

    /// Bytes of the device's memory: for working, for everything else a session keeps, and for what it shares with others of
    /// the SAE, before it is made.
    pub fn memory(sae: &Sae, limits: Limits, screen: backend::Screen) -> (usize, usize, usize) {
        let plan = Plan::new(sae, limits, screen);
        (plan.workspace(), kept(limits), plan.shared(sae))
    }

    /// Runs a call that nothing more speaks against.
    fn call(&mut self, run: &Run<'_>, body: impl FnOnce(&Self, Call<'_>) -> Result<()>) -> Result<()> {
        self.call_if(run, |_, _| Ok(()), |session, call, ()| body(session, call))
    }

    /// Runs a call: finds its stream, its memory and its place in the sequence, and waits at the end if that was asked for.
    /// Whether it may be is asked before anything is put on the stream, or into the host's graph if it is `captured`.
    fn call_if<T>(
        &mut self,
        run: &Run<'_>,
        may: impl FnOnce(&Self, bool) -> Result<T>,
        body: impl FnOnce(&Self, Call<'_>, T) -> Result<()>,
    ) -> Result<()> {
        let held = Arc::clone(&self.held);
        let memory = held.workspace.get(run.device_workspace)?;
        let inside = Inside::new(held.driver())?;
        let (stream, capture) = match run.stream {
            // Nobody else knows it, so that nobody captures it.
            Stream::Session | Stream::Synchronous => (self.stream.handle(), None),
            Stream::Host(handle) => {
                let stream = StreamHandle(handle);
                inside.check_stream(stream)?;
                (stream, inside.capture(stream)?)
            }
        };
        let allowed = may(self, capture.is_some())?;
        let captured = capture.map(|capture| self.captures.place(capture));
        if captured.is_some_and(|captured| !captured.joins) {
            inside.pin(stream, Arc::clone(&held) as _)?;
        }
        held.sequence.begin(&*inside, stream, captured)?;
        // Chosen by decoder norms, winners are listed by canonical values, which may come in another order and be negative.
        let fast = self.screened.filter(|_| run.fast && !self.plan.ranked);
        let call = Call { inside: &*inside, stream, memory, order: run.order, fast };
        let result = body(self, call, allowed);
        // Of a call that failed half-way, too, something may be under way.
        let ended = held.sequence.end(&*inside, stream, captured);
        if let (Ok(()), Some(capture)) = (&ended, capture) {
            self.captures.remember(capture);
        }
        result.and(ended)?;
        if run.stream == Stream::Synchronous { held.sequence.wait(&*inside) } else { Ok(()) }
    }
}

impl Operations for CudaSession {
    fn workspace_size(&self) -> usize {
        self.held.workspace.size()
    }

    fn encode(&mut self, run: Run<'_>, input: Input<'_>, out: FeaturesMut<'_>) -> Result<()> {
        self.call(&run, |session, call| session.encode(call, &input, &out))
    }

    fn encode_selected(&mut self, run: Run<'_>, input: Input<'_>, ids: Tensor<'_>, out: TensorMut<'_>) -> Result<()> {
        self.call(&run, |session, call| session.encode_selected(call, &input, &ids, &out.as_ref()))
    }

    fn encode_dense(&mut self, run: Run<'_>, input: Input<'_>, what: Wanted, z: TensorMut<'_>) -> Result<()> {
        self.call(&run, |session, call| session.encode_dense(call, &input, what, &z.as_ref()))
    }

    fn decode(
        &mut self,
        run: Run<'_>,
        features: FeaturesRef<'_>,
        x: Option<Tensor<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        self.call(&run, |session, call| session.decode(call, &features, x.as_ref(), &out.as_ref()))
    }

    fn reconstruct(
        &mut self,
        run: Run<'_>,
        input: Input<'_>,
        features: Option<FeaturesMut<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        self.call(&run, |session, call| session.reconstruct(call, &input, features.as_ref(), &out.as_ref()))
    }

    fn set_edits(&mut self, slot: usize, edits: &[Edit]) -> Result<()> {
        let (held, stream) = (&self.held, self.stream.handle());
        let inside = Inside::new(held.driver())?;
        let needs_activations = edits.iter().any(Edit::needs_activation);
        // Should the driver fail half-way, what the list may need is not forgotten.
        self.needs_activations[slot] |= needs_activations;
        held.sequence.begin(&*inside, stream, None)?;
        let result = held.edits.set(&*inside, stream, slot, edits);
        result.and(held.sequence.end(&*inside, stream, None))?;
        self.needs_activations[slot] = needs_activations;
        Ok(())
    }

    fn steer(&mut self, run: Run<'_>, input: Option<Input<'_>>, steering: Steering<'_>) -> Result<()> {
        self.call_if(
            &run,
            |session, captured| session.may_encode(captured, &steering),
            |session, call, encodes| session.steer(call, input, &steering, encodes),
        )
    }

    fn merge(&mut self, run: Run<'_>, parts: &[FeaturesRef<'_>], out: FeaturesMut<'_>) -> Result<()> {
        if parts.len() > MAX_PARTS {
            return fail!(InvalidArgument, "parts: at most {MAX_PARTS} are merged at once, not {}", parts.len());
        }
        self.call(&run, |session, call| session.merge(call, parts, &out))
    }

    fn ignored_indices(&self) -> u64 {
        self.held.ignored.value()
    }

    fn fault(&self) -> Result<()> {
        Inside::new(self.held.driver())?.fault(self.stream.handle())
    }

    fn synchronize(&self) -> Result<()> {
        self.held.sequence.wait(&*Inside::new(self.held.driver())?)
    }
}
