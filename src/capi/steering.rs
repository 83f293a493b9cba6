//! Edits, and who is steered by them.

use super::boundary::{array, boundary, check_flags};
use super::features::sae_features;
use super::handle::get;
use super::run::sae_run;
use super::session::{State, enter, sae_session};
use super::sized::{self, sized};
use super::status::{sae_error, sae_status};
use super::tensor::{given, sae_tensor};
use crate::error::{Result, fail};
use crate::session::Steer;
use crate::steering::{Edit, EditOp};

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
/// twice. On failure the old list stays, but for `SAE_ERROR_DEVICE_FAULT`: then the
/// slot's list is the old one or empty. On a GPU, calls and launches of graphs from now on steer by the new list, and those
/// before by the old one; beside a capture this becomes no part of the graph.
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
