//! A session's operations on a GPU: each is a sequence of launches, which allocates nothing and waits for nothing, so that it
//! can be captured into a graph. Nothing it decides depends on what tensors hold.

use std::sync::Arc;

use super::call::Call;
use super::driver::{Block, Counter, Inside, OwnStream, StreamHandle};
use super::edits::EditTable;
use super::model::{CudaModel, Screen, Screened};
use super::params::Latents;
use super::plan::{Plan, Workspace, kept};
use crate::backend::{self, Input, Limits, Operations, Run, Steering, Stream, Wanted};
use crate::error::{Result, fail};
use crate::features::{FeaturesMut, FeaturesRef};
use crate::sae::Sae;
use crate::steering::Edit;
use crate::tensor::{Tensor, TensorMut};

/// One session's state on a GPU.
pub struct CudaSession {
    pub(super) model: Arc<CudaModel>,
    /// What bounds scores, if they are bounded.
    _screen: Option<Arc<Screen>>,
    pub(super) screened: Option<Screened>,
    pub(super) latents: Latents,
    pub(super) skip: Option<Latents>,
    pub(super) plan: Plan,
    pub(super) edits: EditTable,
    pub(super) ignored: Counter,
    /// What nobody reads: where kernels count again what was counted before.
    pub(super) unread: Counter,
    workspace: Workspace,
    stream: OwnStream,
    /// The stream of the latest call, which edits are ordered on.
    latest: Option<StreamHandle>,
}

impl CudaSession {
    /// Reserves everything the calls will need. With `host_workspace` each call brings the working memory itself.
    pub fn new(model: Arc<CudaModel>, limits: Limits, screen: backend::Screen, host_workspace: bool) -> Result<Self> {
        let plan = Plan::new(model.sae(), limits, screen);
        let driver = model.driver();
        let screen = plan.screened.then(|| model.screen()).transpose()?;
        let size = plan.workspace();
        let own = (!host_workspace).then(|| Block::new(driver, size)).transpose()?;
        Ok(Self {
            screened: screen.as_ref().map(|screen| model.screened(screen)),
            _screen: screen,
            latents: model.latents(),
            skip: model.skip(),
            plan,
            edits: EditTable::new(driver, limits)?,
            ignored: Counter::new(driver)?,
            unread: Counter::new(driver)?,
            workspace: Workspace::new(own, size),
            stream: OwnStream::new(driver)?,
            latest: None,
            model,
        })
    }

    /// Bytes of the device's memory: for working, for everything else a session keeps, and for what it shares with others of
    /// the SAE, before it is made.
    pub fn memory(sae: &Sae, limits: Limits, screen: backend::Screen) -> (usize, usize, usize) {
        let plan = Plan::new(sae, limits, screen);
        (plan.workspace(), kept(limits), plan.shared(sae))
    }

    /// Runs a call: finds its stream and its memory, and waits at the end if that was asked for.
    fn call(&mut self, run: &Run<'_>, body: impl FnOnce(&Self, Call<'_>) -> Result<()>) -> Result<()> {
        let memory = self.workspace.get(run.device_workspace)?;
        let driver = Arc::clone(self.model.driver());
        let inside = Inside::new(&*driver)?;
        let (stream, wait) = match run.stream {
            Stream::Session => (self.stream.handle(), false),
            Stream::Synchronous => (self.stream.handle(), true),
            Stream::Host(handle) => {
                let stream = StreamHandle(handle);
                if self.latest != Some(stream) {
                    inside.check_stream(stream)?;
                }
                (stream, false)
            }
        };
        self.latest = Some(stream);
        body(self, Call { inside: &*inside, stream, memory, order: run.order })?;
        if wait { inside.synchronize(stream) } else { Ok(()) }
    }
}

impl Operations for CudaSession {
    fn workspace_size(&self) -> usize {
        self.workspace.size()
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
        let driver = Arc::clone(self.model.driver());
        let inside = Inside::new(&*driver)?;
        let stream = self.latest.unwrap_or(self.stream.handle());
        if inside.is_capturing(stream)? {
            return fail!(BadState, "edits cannot be set while the stream is being captured; set them between replays");
        }
        self.edits.set(&*inside, stream, slot, edits)?;
        // Before the first call nobody knows on which stream that will be.
        if self.latest.is_none() { inside.synchronize(stream) } else { Ok(()) }
    }

    fn steer(&mut self, run: Run<'_>, input: Option<Input<'_>>, steering: Steering<'_>) -> Result<()> {
        self.call(&run, |session, call| session.steer(call, input, &steering))
    }

    fn merge(&mut self, run: Run<'_>, parts: &[FeaturesRef<'_>], out: FeaturesMut<'_>) -> Result<()> {
        self.call(&run, |session, call| session.merge(call, parts, &out))
    }

    fn ignored_indices(&self) -> u64 {
        self.ignored.value()
    }

    fn fault(&self) -> Result<()> {
        Inside::new(&**self.model.driver())?.fault(self.stream.handle())
    }

    fn synchronize(&self) -> Result<()> {
        Inside::new(&**self.model.driver())?.synchronize(self.stream.handle())
    }
}
