//! Sessions: the hot calls.

use std::ffi::c_void;
use std::ops::Range;

use super::boundary::{array, boundary, check_flags, count, present};
use super::features::sae_features;
use super::handle::{Exclusive, Handle, get, put, take_back};
use super::model::{sae_memory, sae_model};
use super::pool::{pool_or_serial, sae_pool};
use super::sized::{self, Output, sized};
use super::status::{sae_error, sae_status};
use super::tensor::{given, needed, sae_tensor};
use crate::backend::{Input, Order, Run, Wanted};
use crate::error::{Result, fail};
use crate::features::{FeaturesMut, FeaturesRef};
use crate::session::{Session, SessionOptions, Steer};
use crate::steering::{Edit, EditOp};
use crate::tensor::{Tensor, TensorMut};

/// One stream of work over one model: working memory and the hot calls, which allocate nothing. For one thread at a
/// time; a call that comes while another runs is refused with `SAE_ERROR_BAD_STATE`. Sessions are independent of each other.
pub struct sae_session(Exclusive<State>);

impl Handle for sae_session {}

struct State {
    session: Session,
    run_flags: u32,
    /// Room to convert edits in.
    edits: Vec<Edit>,
}

/// Allow scores that are repeatable on one device but not bit for bit the same on all. The CPU's are the same anyway.
pub const SAE_RUN_FAST: u32 = 1;
/// List features by index instead of strongest first.
pub const SAE_RUN_ORDER_INDEX: u32 = 2;
/// Round `x + addend` to x's type, as engines do that write the sum back before they read it.
pub const SAE_RUN_ROUND_SUM: u32 = 4;

const RUN_FLAGS: u32 = SAE_RUN_FAST | SAE_RUN_ORDER_INDEX | SAE_RUN_ROUND_SUM;

/// The session's own stream.
pub const SAE_STREAM_SESSION: i32 = 0;
/// The host's, in `sae_run.stream`; for models on a GPU alone.
pub const SAE_STREAM_HOST: i32 = 1;
/// Return when the work is done. On the CPU, calls always do.
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
    /// Working memory for this call, aligned to 64 bytes, instead of the session's. May be shared by sessions that run one
    /// after another. Must not overlap the tensors.
    pub workspace: *mut c_void,
    /// Its bytes; `sae_session_memory` says how many are needed.
    pub workspace_size: usize,
}
sized!(sae_run: flags, stream_kind, stream, workspace, workspace_size);

/// The host brings working memory with each call; the session keeps none.
pub const SAE_SESSION_HOST_WORKSPACE: u32 = 1;

/// What a session is made for. NULL or all zero: the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_session_options {
    /// `sizeof(sae_session_options)`; `SAE_SESSION_OPTIONS_INIT` sets it.
    pub struct_size: usize,
    /// The most tokens per call; 0: 512. More are an error, not a silent split.
    pub max_tokens: i64,
    /// The most slots per token in features; 0: k for TopK, else 1024, at most `n_latents`.
    pub max_width: i64,
    /// How many lists of edits there can be; 0: 1.
    pub slots: i64,
    /// How many edits a list can have; 0: 16.
    pub edits_per_slot: i64,
    /// Who computes; NULL: the calling thread alone.
    pub pool: *const sae_pool,
    /// `SAE_SESSION_…`.
    pub flags: u32,
    /// `SAE_RUN_…` for every call.
    pub run_flags: u32,
}
sized!(sae_session_options: max_tokens, max_width, slots, edits_per_slot, pool, flags, run_flags);

/// Makes a session, with all the memory its calls will need.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_session_create(
    model: *const sae_model,
    options: *const sae_session_options,
    out: *mut *mut sae_session,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's pointers.
        let (model, (options, run_flags)) = unsafe { (get("model", model)?, sae_session_options::read(options)?) };
        let session = Session::new(model.sae.clone(), options)?;
        let edits = Vec::with_capacity(session.limits().edits_per_slot);
        let state = State { session, run_flags, edits };
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_session(Exclusive::new(state))) };
        Ok(())
    })
}

/// Tells what such a session would need.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_session_memory(
    model: *const sae_model,
    options: *const sae_session_options,
    out: *mut sae_memory,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (model, (options, _), out) =
            unsafe { (get("model", model)?, sae_session_options::read(options)?, Output::new("out", out)?) };
        let memory = Session::memory(&model.sae, &options)?;
        let own = if options.host_workspace { 0 } else { memory.workspace };
        let resident = (memory.kept + own) as u64;
        out.write(&sae_memory {
            struct_size: 0,
            resident,
            mapped: 0,
            peak: resident,
            workspace: memory.workspace as u64,
        });
        Ok(())
    })
}

/// Sparse features of each token of `x` `[T, d_in]`, or of `x + addend` if `addend` is not NULL (the sum is formed in f32). A token
/// that is not finite gets no features and count -1; the call succeeds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_encode(
    session: *mut sae_session,
    run: *const sae_run,
    x: *const sae_tensor,
    addend: *const sae_tensor,
    out: *const sae_features,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    enter(session, run, error, |session, call| unsafe {
        let (input, out) = (call.input(x, addend)?, call.features_mut("out", out)?);
        session.encode(call.run, input, out)
    })
}

/// Activations of the latents `ids` `[m]` (i32, global indices) alone, into `out` `[T, m]`. With TopK, a latent that is not among a
/// token's k largest has activation 0. An id out of range counts as inactive; a token that is not finite gives NaN.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_encode_selected(
    session: *mut sae_session,
    run: *const sae_run,
    x: *const sae_tensor,
    addend: *const sae_tensor,
    ids: *const sae_tensor,
    out: *const sae_tensor,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    enter(session, run, error, |session, call| unsafe {
        let (input, ids, out) = (call.input(x, addend)?, call.tensor("ids", ids)?, call.tensor_mut("out", out)?);
        session.encode_selected(call.run, input, ids, out)
    })
}

/// Activations: 0 where a latent is not active.
pub const SAE_DENSE_ACTIVATIONS: i32 = 0;
/// Pre-activations.
pub const SAE_DENSE_PRE_ACTIVATIONS: i32 = 1;

/// All activations or pre-activations, into `z` `[T, n_latents]`. A token that is not finite gives NaN.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_encode_dense(
    session: *mut sae_session,
    run: *const sae_run,
    x: *const sae_tensor,
    what: i32,
    z: *const sae_tensor,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    enter(session, run, error, |session, call| unsafe {
        let what = match what {
            SAE_DENSE_ACTIVATIONS => Wanted::Activations,
            SAE_DENSE_PRE_ACTIVATIONS => Wanted::PreActivations,
            other => return fail!(InvalidArgument, "what: {other} is not known"),
        };
        let (input, z) = (call.input(x, std::ptr::null())?, call.tensor_mut("z", z)?);
        session.encode_dense(call.run, input, what, z)
    })
}

/// Activation vectors from features, into `x_hat` `[T, d_out]`. `x` is the raw input, which models with a skip path need; else it may
/// be NULL. A token with count -1 gives NaN; an index out of range is left out and counted, see `sae_session_status`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_decode(
    session: *mut sae_session,
    run: *const sae_run,
    features: *const sae_features,
    x: *const sae_tensor,
    x_hat: *const sae_tensor,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    enter(session, run, error, |session, call| unsafe {
        let features = call.features("features", features)?;
        let (x, x_hat) = (call.optional("x", x)?, call.tensor_mut("x_hat", x_hat)?);
        session.decode(call.run, features, x, x_hat)
    })
}

/// Encodes and decodes at once, from all active latents; `x_hat` may be `x` itself. `out` (NULL: not wanted) gets as many
/// features as fit it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_reconstruct(
    session: *mut sae_session,
    run: *const sae_run,
    x: *const sae_tensor,
    addend: *const sae_tensor,
    out: *const sae_features,
    x_hat: *const sae_tensor,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    enter(session, run, error, |session, call| unsafe {
        let input = call.input(x, addend)?;
        let out = if out.is_null() { None } else { Some(call.features_mut("out", out)?) };
        let x_hat = call.tensor_mut("x_hat", x_hat)?;
        session.reconstruct(call.run, input, out, x_hat)
    })
}

/// Add `strength` to the activation, active or not.
pub const SAE_EDIT_ADD: i32 = 0;
/// Make the activation `strength`.
pub const SAE_EDIT_SET: i32 = 1;
/// Multiply the activation by `strength`.
pub const SAE_EDIT_SCALE: i32 = 2;
/// Make the activation 0.
pub const SAE_EDIT_ABLATE: i32 = 3;

/// Leave tokens alone on which the latent is not active.
pub const SAE_EDIT_ONLY_ACTIVE: u32 = 1;

/// One change to one latent. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_edit {
    /// Index of the latent.
    pub feature: i32,
    /// `SAE_EDIT_ADD`, `SAE_EDIT_SET`, `SAE_EDIT_SCALE`, `SAE_EDIT_ABLATE`.
    pub op: i32,
    /// By how much, in units of the latent's activation.
    pub strength: f32,
    /// The change of the activation is clamped to ±`limit`; 0: no limit.
    pub limit: f32,
    /// `SAE_EDIT_ONLY_ACTIVE`.
    pub flags: u32,
    /// 0.
    pub reserved: [u32; 3],
}

const _: () = assert!(size_of::<sae_edit>() == 32);

/// Replaces the list of edits in a slot; none: the slot steers nothing. The edits are copied. A list may not name a latent
/// twice. On failure the old list stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_set_edits(
    session: *mut sae_session,
    slot: i32,
    edits: *const sae_edit,
    n_edits: usize,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (session, edits) = unsafe { (get("session", session)?, array("edits", edits, n_edits)?) };
        let mut state = session.0.enter("session")?;
        let State { session, edits: converted, .. } = &mut *state;
        let limits = session.limits();
        let Some(slot) = usize::try_from(slot).ok().filter(|slot| *slot < limits.slots) else {
            return fail!(InvalidArgument, "slot: {slot} is not one of the session's {}", limits.slots);
        };
        if edits.len() > limits.edits_per_slot {
            let most = limits.edits_per_slot;
            return fail!(InvalidArgument, "n_edits: {n_edits}, but the session was made for {most} per slot");
        }
        converted.clear();
        for (i, edit) in edits.iter().enumerate() {
            converted.push(edit.read().map_err(|e| e.at(format_args!("edits[{i}]")))?);
        }
        session.set_edits(slot, converted)
    })
}

/// Whom to steer, and where. NULL or all zero: every token by slot 0, in place.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_steering {
    /// `sizeof(sae_steering)`; `SAE_STEERING_INIT` sets it.
    pub struct_size: usize,
    /// `[T]`, i32: each token's slot; -1: leave it alone. NULL: slot 0 for all.
    pub row_slot: *const sae_tensor,
    /// Features of these tokens, if they are already encoded; NULL: what the edits need is computed.
    pub known: *const sae_features,
    /// `[T, d_out]`: what is edited; NULL: `x`. For a transcoder, x is read at one place and y written at another.
    pub y: *const sae_tensor,
    /// `[T, d_out]`, of y's type: where the result goes; NULL: y, in place.
    pub out: *const sae_tensor,
}
sized!(sae_steering: row_slot, known, y, out);

/// Changes activations by the edits of their slots: `out = y + scale · Σ δ_i · W_dec[i]`, with δ_i the change of latent i's
/// activation and `scale` what the model's normalization divided the token by. The part of y that the model does not
/// reconstruct is thereby kept. Tokens left alone keep their bits, as do tokens that are not finite. With TopK, whether a
/// latent is active depends on all others: edits other than ADD on every token cost an encode, unless `known` is given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_steer(
    session: *mut sae_session,
    run: *const sae_run,
    x: *const sae_tensor,
    addend: *const sae_tensor,
    steering: *const sae_steering,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    enter(session, run, error, |session, call| unsafe {
        let steering = sized::read("steering", steering)?.unwrap_or(sae_steering {
            struct_size: 0,
            row_slot: std::ptr::null(),
            known: std::ptr::null(),
            y: std::ptr::null(),
            out: std::ptr::null(),
        });
        let (y, out) = (given("y", steering.y)?, given("out", steering.out)?);
        let row_slot = call.optional("row_slot", steering.row_slot)?;
        if y.is_none() && out.is_none() && steering.known.is_null() && given("addend", addend)?.is_none() {
            let x = call.tensor_mut("x", x)?;
            return session.steer_in_place(call.run, x, row_slot);
        }
        let input = call.input(x, addend)?;
        let steer = Steer {
            row_slot,
            known: match steering.known {
                absent if absent.is_null() => None,
                known => Some(call.features("known", known)?),
            },
            y: call.optional("y", steering.y)?,
        };
        let out = match (out, y) {
            (Some(out), _) => call.tensor_mut("out", out)?,
            (None, Some(y)) => call.tensor_mut("y", y)?,
            (None, None) => call.tensor_mut("x", x)?,
        };
        session.steer(call.run, input, steer, out)
    })
}

/// The most shards that `sae_features_merge` takes.
pub const SAE_MAX_PARTS: usize = 64;

/// Features of latent shards of a model, under global indices, into those of the whole. `parts` is an array of `n_parts`
/// structs, of equal `struct_size`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_features_merge(
    session: *mut sae_session,
    run: *const sae_run,
    parts: *const sae_features,
    n_parts: usize,
    out: *const sae_features,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    enter(session, run, error, |session, call| unsafe {
        if n_parts == 0 || n_parts > SAE_MAX_PARTS {
            return fail!(InvalidArgument, "n_parts: expected 1 to {SAE_MAX_PARTS}, found {n_parts}");
        }
        // The elements lie as far apart as the caller's version of the struct is long.
        let size = sized::require("parts[0]", parts)?.struct_size;
        let part = |i: usize| {
            let part = parts.wrapping_byte_add(i * size);
            let own = sized::require("parts", part)?.struct_size;
            if own != size {
                return fail!(InvalidArgument, "parts[{i}].struct_size: is {own}, but that of parts[0] is {size}");
            }
            call.features("parts", part).map_err(|e| e.at(format_args!("[{i}]")))
        };
        let mut read = [part(0)?; SAE_MAX_PARTS];
        for (i, place) in read[..n_parts].iter_mut().enumerate() {
            *place = part(i)?;
        }
        let out = call.features_mut("out", out)?;
        session.merge(call.run, &read[..n_parts], out)
    })
}

/// Faults of the device, and indices and slots out of range that calls took for -1 since the session was made. Never waits.
/// `SAE_OK`: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_session_status(session: *mut sae_session, error: *mut *mut sae_error) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's handle.
        let session = unsafe { get("session", session)? };
        match session.0.enter("session")?.session.ignored_indices() {
            0 => Ok(()),
            n => fail!(
                InvalidArgument,
                "{n} indices or slots were out of range and taken for -1 since the session was made"
            ),
        }
    })
}

/// Frees a session; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_session_free(session: *mut sae_session) {
    // SAFETY: the caller's handle, which it gives up.
    unsafe { take_back(session) };
}

impl sae_session_options {
    /// The options behind a pointer, and the flags of every run.
    ///
    /// # Safety
    /// What it points to must be so.
    unsafe fn read(pointer: *const Self) -> Result<(SessionOptions, u32)> {
        let defaults = SessionOptions::default();
        // SAFETY: the caller's promise.
        let Some(given) = (unsafe { sized::read("options", pointer)? }) else { return Ok((defaults, 0)) };
        check_flags("options.flags", given.flags, SAE_SESSION_HOST_WORKSPACE)?;
        check_flags("options.run_flags", given.run_flags, RUN_FLAGS)?;
        let or = |name: &str, value: i64, default: usize| match value {
            0 => Ok(default),
            value => count(name, value),
        };
        let options = SessionOptions {
            max_tokens: or("options.max_tokens", given.max_tokens, defaults.max_tokens)?,
            max_width: or("options.max_width", given.max_width, defaults.max_width)?,
            slots: or("options.slots", given.slots, defaults.slots)?,
            edits_per_slot: or("options.edits_per_slot", given.edits_per_slot, defaults.edits_per_slot)?,
            // SAFETY: the caller's handle.
            pool: unsafe { pool_or_serial("options.pool", given.pool)? },
            host_workspace: given.flags & SAE_SESSION_HOST_WORKSPACE != 0,
            kernels: None,
        };
        Ok((options, given.run_flags))
    }
}

impl sae_edit {
    fn read(&self) -> Result<Edit> {
        check_flags("flags", self.flags, SAE_EDIT_ONLY_ACTIVE)?;
        if self.reserved != [0; 3] {
            return fail!(InvalidArgument, "reserved: {:?} is not known; leave it 0", self.reserved);
        }
        let op = match self.op {
            SAE_EDIT_ADD => EditOp::Add,
            SAE_EDIT_SET => EditOp::Set,
            SAE_EDIT_SCALE => EditOp::Scale,
            SAE_EDIT_ABLATE => EditOp::Ablate,
            other => return fail!(InvalidArgument, "op: {other} is not known"),
        };
        let only_active = self.flags & SAE_EDIT_ONLY_ACTIVE != 0;
        Ok(Edit { feature: self.feature, op, strength: self.strength, limit: self.limit, only_active })
    }
}

/// Enters a session for a hot call.
fn enter(
    session: *mut sae_session,
    run: *const sae_run,
    error: *mut *mut sae_error,
    body: impl for<'a> FnOnce(&mut Session, Call<'a>) -> Result<()>,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        unsafe {
            let session = get("session", session)?;
            let mut state = session.0.enter("session")?;
            let call = Call::new(run, state.run_flags)?;
            body(&mut state.session, call)
        }
    })
}

/// One hot call: how it runs, and the tensors it is given, none of which may lie in the workspace.
struct Call<'a> {
    run: Run<'a>,
    round_sum: bool,
    workspace: Range<usize>,
}

impl<'a> Call<'a> {
    unsafe fn new(pointer: *const sae_run, flags: u32) -> Result<Self> {
        let mut call = Self { run: Run::default(), round_sum: false, workspace: 0..0 };
        let mut flags = flags;
        // SAFETY: the caller's pointer.
        if let Some(given) = unsafe { sized::read("run", pointer)? } {
            check_flags("run.flags", given.flags, RUN_FLAGS)?;
            flags |= given.flags;
            check_stream(&given)?;
            let (start, size) = (given.workspace.cast::<u8>(), given.workspace_size);
            if !start.is_null() {
                if size > isize::MAX as usize || start.addr().checked_add(size).is_none() {
                    return fail!(InvalidArgument, "run.workspace_size: {size} bytes lead beyond memory");
                }
                // SAFETY: the caller's memory, for this call; what overlaps it is refused.
                call.run.workspace = Some(unsafe { std::slice::from_raw_parts_mut(start, size) });
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
    fn check(&self, name: &str, tensor: &Tensor<'_>) -> Result<()> {
        let span = tensor.span();
        if !span.is_empty() && span.start < self.workspace.end && self.workspace.start < span.end {
            return fail!(InvalidTensor, "{name}: overlaps run.workspace");
        }
        Ok(())
    }

    unsafe fn tensor<'t>(&self, name: &str, pointer: *const sae_tensor) -> Result<Tensor<'t>> {
        // SAFETY: the caller's pointers.
        let tensor = unsafe { needed(name, pointer)?.read(name)? };
        self.check(name, &tensor)?;
        Ok(tensor)
    }

    unsafe fn optional<'t>(&self, name: &str, pointer: *const sae_tensor) -> Result<Option<Tensor<'t>>> {
        // SAFETY: the caller's pointers.
        match unsafe { given(name, pointer)? } {
            // SAFETY: as above.
            Some(tensor) => unsafe { self.tensor(name, tensor) }.map(Some),
            None => Ok(None),
        }
    }

    unsafe fn tensor_mut<'t>(&self, name: &str, pointer: *const sae_tensor) -> Result<TensorMut<'t>> {
        // SAFETY: the caller's pointers.
        let tensor = unsafe { needed(name, pointer)?.write(name)? };
        self.check(name, &tensor.as_ref())?;
        Ok(tensor)
    }

    unsafe fn input<'t>(&self, x: *const sae_tensor, addend: *const sae_tensor) -> Result<Input<'t>> {
        // SAFETY: the caller's pointers.
        unsafe {
            Ok(Input { x: self.tensor("x", x)?, addend: self.optional("addend", addend)?, round_sum: self.round_sum })
        }
    }

    unsafe fn features<'t>(&self, name: &str, pointer: *const sae_features) -> Result<FeaturesRef<'t>> {
        // SAFETY: the caller's pointers.
        unsafe { sae_features::read(name, pointer, &|field, tensor| self.check(field, tensor)) }
    }

    unsafe fn features_mut<'t>(&self, name: &str, pointer: *const sae_features) -> Result<FeaturesMut<'t>> {
        // SAFETY: the caller's pointers.
        unsafe { sae_features::write(name, pointer, &|field, tensor| self.check(field, tensor)) }
    }
}

/// On the CPU a call runs on the calling thread or its pool, and is done when it returns.
pub(super) fn check_stream(run: &sae_run) -> Result<()> {
    match run.stream_kind {
        SAE_STREAM_HOST => {
            fail!(Unsupported, "run.stream_kind: a host's stream is for models on a GPU; this one is on cpu")
        }
        SAE_STREAM_SESSION | SAE_STREAM_SYNCHRONOUS if run.stream.is_null() => Ok(()),
        SAE_STREAM_SESSION | SAE_STREAM_SYNCHRONOUS => {
            fail!(InvalidArgument, "run.stream: is set, but run.stream_kind is not SAE_STREAM_HOST")
        }
        other => fail!(InvalidArgument, "run.stream_kind: {other} is not known"),
    }
}
