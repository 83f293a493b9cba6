//! Sessions: the hot calls.

use std::ffi::{CString, c_char};
use std::sync::LazyLock;

use super::boundary::{boundary, check_flags, count, present, text};
use super::features::sae_features;
use super::handle::{Exclusive, Handle, get, put, take_back};
use super::model::{sae_memory, sae_model};
use super::pool::{pool_or_serial, sae_pool};
use super::run::{Call, RUN_FLAGS, sae_run};
use super::sized::{self, Output, sized};
use super::status::{c_text, sae_error, sae_status};
use super::tensor::sae_tensor;
use crate::backend::cpu::Kernels;
use crate::backend::{Screen, Wanted};
use crate::error::{Result, fail};
use crate::session::{Session, SessionOptions};
use crate::steering::Edit;

/// One stream of work over one model: working memory and the hot calls, which allocate nothing. For one thread at a
/// time; a call that comes while another runs is refused with `SAE_ERROR_BAD_STATE`. Sessions are independent of each other.
pub struct sae_session(pub(super) Exclusive<State>, Option<Kernels>);

impl Handle for sae_session {}

/// What a session keeps.
pub(super) struct State {
    pub(super) session: Session,
    run_flags: u32,
    /// Room to convert edits in.
    pub(super) edits: Vec<Edit>,
}

/// The host brings working memory with each call; the session keeps none.
pub const SAE_SESSION_HOST_WORKSPACE: u32 = 1;
/// No copy of W_enc as bytes. By default encoding first bounds every score by products of 8-bit integers (on a GPU of bf16), where that is faster
/// and the architecture allows it, and takes exact scores only of latents that can still matter: results are the same to the
/// bit. The copy takes `n_latents * d_in` bytes and a little more (on a GPU twice as many, or none of weights in bf16), which
/// all sessions of a model share.
pub const SAE_SESSION_NO_SCREEN: u32 = 2;
/// Such a copy even where W_enc is a mapped file's, which by default is not copied into memory, or where it is slower.
pub const SAE_SESSION_SCREEN: u32 = 4;

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
    /// Who computes on the CPU; NULL: the calling thread alone.
    pub pool: *const sae_pool,
    /// `SAE_SESSION_…`.
    pub flags: u32,
    /// `SAE_RUN_…` for every call.
    pub run_flags: u32,
    /// The instruction set, by a name that `sae_kernels_name` lists; NULL: the fastest, or what the environment variable
    /// `SAE_KERNELS` names. Results are the same to the bit.
    pub kernels: *const c_char,
}
sized!(sae_session_options: max_tokens, max_width, slots, edits_per_slot, pool, flags, run_flags; kernels);

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
        let session = Session::new(model.model.clone(), options)?;
        let edits = Vec::with_capacity(session.limits().edits_per_slot);
        let kernels = (!model.is_on_gpu()).then_some(session.kernels());
        let state = State { session, run_flags, edits };
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_session(Exclusive::new(state), kernels)) };
        Ok(())
    })
}

/// Tells what such a session would need; a copy of W_enc that sessions of the model share is counted for each.
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
        let memory = Session::memory(&model.model, &options)?;
        let own = if options.host_workspace { 0 } else { memory.workspace };
        let held = (memory.kept + memory.shared + own) as u64;
        let (resident, device) = if model.is_on_gpu() { (0, held) } else { (held, 0) };
        out.write(&sae_memory {
            struct_size: 0,
            resident,
            mapped: 0,
            peak: resident,
            workspace: memory.workspace as u64,
            device,
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
            let own = sized::require(format_args!("parts[{i}]"), part)?.struct_size;
            if own != size {
                return fail!(InvalidArgument, "parts[{i}].struct_size: is {own}, but that of parts[0] is {size}");
            }
            call.features(format_args!("parts[{i}]"), part)
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
        let state = session.0.enter("session")?;
        state.session.fault()?;
        match state.session.ignored_indices() {
            0 => Ok(()),
            n => fail!(
                InvalidArgument,
                "{n} indices or slots were out of range and taken for -1 since the session was made"
            ),
        }
    })
}

/// Waits until everything that the session was asked for is done, on whatever stream: its own calls and edits, those on the
/// host's streams, and launches of graphs that calls were captured into. Tells a fault of the device. On the CPU calls are done
/// when they return.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_session_wait(session: *mut sae_session, error: *mut *mut sae_error) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's handle.
        let session = unsafe { get("session", session)? };
        session.0.enter("session")?.session.synchronize()
    })
}

/// The instruction sets this machine runs, slowest first.
static KERNELS: LazyLock<Vec<CString>> =
    LazyLock::new(|| Kernels::all_supported().iter().map(|kernels| c_text(kernels.name)).collect());

/// The name of an instruction set that this machine runs, by its number from 0 on, slowest first; NULL after the last.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_kernels_name(number: usize) -> *const c_char {
    KERNELS.get(number).map_or(std::ptr::null(), |name| name.as_ptr())
}

/// The name of the instruction set that a session uses, if it computes on the CPU; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_session_kernels(session: *const sae_session) -> *const c_char {
    // SAFETY: the caller's handle.
    let Some(session) = (unsafe { session.as_ref() }) else { return std::ptr::null() };
    let Some(kernels) = session.1 else { return std::ptr::null() };
    let used = KERNELS.iter().find(|name| name.as_bytes() == kernels.name.as_bytes());
    used.map_or(std::ptr::null(), |name| name.as_ptr())
}

/// Frees a session; NULL is nothing. On a GPU, what it was asked for is waited for first; a graph that calls were captured into
/// keeps what it needs of the session and its model, and may be launched on.
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
        let screens = SAE_SESSION_NO_SCREEN | SAE_SESSION_SCREEN;
        check_flags("options.flags", given.flags, SAE_SESSION_HOST_WORKSPACE | screens)?;
        let screen = match given.flags & screens {
            0 => Screen::Auto,
            SAE_SESSION_NO_SCREEN => Screen::Never,
            SAE_SESSION_SCREEN => Screen::Always,
            _ => {
                return fail!(
                    InvalidArgument,
                    "options.flags: SAE_SESSION_NO_SCREEN and SAE_SESSION_SCREEN contradict"
                );
            }
        };
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
            // SAFETY: the caller's text.
            kernels: unsafe { text("options.kernels", given.kernels)? }
                .map(|name| Kernels::named(name).map_err(|e| e.at("options.kernels")))
                .transpose()?,
            screen,
        };
        Ok((options, given.run_flags))
    }
}

/// Enters a session for a hot call.
pub(super) fn enter(
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
            let call = Call::new(run, state.run_flags, state.session.device())?;
            body(&mut state.session, call)
        }
    })
}
