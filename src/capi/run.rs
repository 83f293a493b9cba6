//! How one call runs.

use std::ffi::c_void;
use std::fmt::Display;
use std::ops::Range;

use super::boundary::check_flags;
use super::features::sae_features;
use super::sized::{self, sized};
use super::tensor::{given, needed, sae_tensor};
use crate::backend::{DeviceWorkspace, Input, Order, Run, Stream};
use crate::error::{Result, fail};
use crate::features::{FeaturesMut, FeaturesRef};
use crate::tensor::{Device, DeviceKind, Tensor, TensorMut};

/// Allow scores that are repeatable on one device but not bit for bit the same on all. The CPU's are the same anyway.
pub const SAE_RUN_FAST: u32 = 1;
/// List features by index instead of strongest first.
pub const SAE_RUN_ORDER_INDEX: u32 = 2;
/// Round `x + addend` to x's type, as engines do that write the sum back before they read it.
pub const SAE_RUN_ROUND_SUM: u32 = 4;

pub(super) const RUN_FLAGS: u32 = SAE_RUN_FAST | SAE_RUN_ORDER_INDEX | SAE_RUN_ROUND_SUM;

/// The session's own stream. `sae_session_wait` waits for what is on it; what a call reads must be there before the call.
pub const SAE_STREAM_SESSION: i32 = 0;
/// The host's, in `sae_run.stream`, of which NULL is the default one; for models on a GPU alone. It must be of the device's
/// primary context. Calls of one session come one after another on the device, whatever their streams, and so do its edits.
/// While the stream is captured, calls become part of the graph, whose launches take their turn likewise.
pub const SAE_STREAM_HOST: i32 = 1;
/// The session's own stream, and the call returns when the work is done. On the CPU, calls always do.
pub const SAE_STREAM_SYNCHRONOUS: i32 = 2;

/// How one call runs. NULL or all zero: as the session was made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_run {
    /// `sizeof(sae_run)`; `SAE_RUN_INIT` sets it.
    pub struct_size: usize,
    /// `SAE_RUN_…`, added to the session's.
    pub flags: u32,
    /// `SAE_STREAM_…`.
    pub stream_kind: i32,
    /// The host's stream, with `SAE_STREAM_HOST`.
    pub stream: *mut c_void,
    /// Working memory for this call, aligned to 64 bytes, instead of the session's; on a GPU, of its memory and aligned to 256
    /// bytes. May be shared by sessions that run one after another. Must not overlap the tensors.
    pub workspace: *mut c_void,
    /// Its bytes; `sae_session_memory` says how many are needed.
    pub workspace_size: usize,
}
sized!(sae_run: flags, stream_kind, stream, workspace, workspace_size);

/// One hot call: how it runs, and the tensors it is given, none of which may lie in the workspace.
pub(super) struct Call<'a> {
    pub(super) run: Run<'a>,
    round_sum: bool,
    workspace: Range<usize>,
}

impl<'a> Call<'a> {
    /// What a call to a session on `device` is told.
    pub(super) unsafe fn new(pointer: *const sae_run, flags: u32, device: Device) -> Result<Self> {
        let on_gpu = device.kind == DeviceKind::Cuda;
        let mut call = Self { run: Run::default(), round_sum: false, workspace: 0..0 };
        let mut flags = flags;
        // SAFETY: the caller's pointer.
        if let Some(given) = unsafe { sized::read("run", pointer)? } {
            check_flags("run.flags", given.flags, RUN_FLAGS)?;
            flags |= given.flags;
            call.run.stream = read_stream(&given, on_gpu)?;
            let (start, size) = (given.workspace.cast::<u8>(), given.workspace_size);
            if !start.is_null() {
                if size > isize::MAX as usize || start.addr().checked_add(size).is_none() {
                    return fail!(InvalidArgument, "run.workspace_size: {size} bytes lead beyond memory");
                }
                if on_gpu {
                    call.run.device_workspace = Some(DeviceWorkspace { at: start.addr() as u64, size });
                } else {
                    // SAFETY: the caller's memory, for this call; what overlaps it is refused.
                    call.run.workspace = Some(unsafe { std::slice::from_raw_parts_mut(start, size) });
                }
                call.workspace = start.addr()..start.addr() + size;
            } else if size > 0 {
                return fail!(InvalidArgument, "run.workspace: is NULL, but workspace_size is {size}");
            }
        }
        call.run.fast = flags & SAE_RUN_FAST != 0;
        call.run.order = if flags & SAE_RUN_ORDER_INDEX != 0 { Order::Index } else { Order::Value };
        call.round_sum = flags & SAE_RUN_ROUND_SUM != 0;
        Ok(call)
    }

    /// Refuses a tensor in the workspace.
    fn check(&self, name: impl Display, tensor: &Tensor<'_>) -> Result<()> {
        let span = tensor.span();
        if !span.is_empty() && span.start < self.workspace.end && self.workspace.start < span.end {
            return fail!(InvalidTensor, "{name}: overlaps run.workspace");
        }
        Ok(())
    }

    pub(super) unsafe fn tensor<'t>(&self, name: &str, pointer: *const sae_tensor) -> Result<Tensor<'t>> {
        // SAFETY: the caller's pointers.
        let tensor = unsafe { needed(name, pointer)?.read(name)? };
        self.check(name, &tensor)?;
        Ok(tensor)
    }

    pub(super) unsafe fn optional<'t>(&self, name: &str, pointer: *const sae_tensor) -> Result<Option<Tensor<'t>>> {
        // SAFETY: the caller's pointers.
        match unsafe { given(name, pointer)? } {
            // SAFETY: as above.
            Some(tensor) => unsafe { self.tensor(name, tensor) }.map(Some),
            None => Ok(None),
        }
    }

    pub(super) unsafe fn tensor_mut<'t>(&self, name: &str, pointer: *const sae_tensor) -> Result<TensorMut<'t>> {
        // SAFETY: the caller's pointers.
        let tensor = unsafe { needed(name, pointer)?.write(name)? };
        self.check(name, &tensor.as_ref())?;
        Ok(tensor)
    }

    pub(super) unsafe fn input<'t>(&self, x: *const sae_tensor, addend: *const sae_tensor) -> Result<Input<'t>> {
        // SAFETY: the caller's pointers.
        unsafe {
            Ok(Input { x: self.tensor("x", x)?, addend: self.optional("addend", addend)?, round_sum: self.round_sum })
        }
    }

    pub(super) unsafe fn features<'t>(
        &self,
        name: impl Display + Copy,
        pointer: *const sae_features,
    ) -> Result<FeaturesRef<'t>> {
        // SAFETY: the caller's pointers.
        unsafe { sae_features::read(name, pointer, &|field, tensor| self.check(field, tensor)) }
    }

    pub(super) unsafe fn features_mut<'t>(
        &self,
        name: impl Display + Copy,
        pointer: *const sae_features,
    ) -> Result<FeaturesMut<'t>> {
        // SAFETY: the caller's pointers.
        unsafe { sae_features::write(name, pointer, &|field, tensor| self.check(field, tensor)) }
    }
}

/// Where a call's work goes. On the CPU it runs on the calling thread or its pool, and is done when it returns.
pub(super) fn read_stream(run: &sae_run, on_gpu: bool) -> Result<Stream> {
    match run.stream_kind {
        SAE_STREAM_HOST if on_gpu => Ok(Stream::Host(run.stream.addr() as u64)),
        SAE_STREAM_HOST => {
            fail!(Unsupported, "run.stream_kind: a host's stream is for models on a GPU; this one is on cpu")
        }
        SAE_STREAM_SESSION if run.stream.is_null() => Ok(Stream::Session),
        SAE_STREAM_SYNCHRONOUS if run.stream.is_null() => Ok(Stream::Synchronous),
        SAE_STREAM_SESSION | SAE_STREAM_SYNCHRONOUS => {
            fail!(InvalidArgument, "run.stream: is set, but run.stream_kind is not SAE_STREAM_HOST")
        }
        other => fail!(InvalidArgument, "run.stream_kind: {other} is not known"),
    }
}
