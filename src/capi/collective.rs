//! The host's communicator, for runs of more than one process.

use std::ffi::c_void;

use super::boundary::count;
use super::sized::{self, sized};
use crate::collective::{Axis, Collective, Ranks};
use crate::error::{Result, fail};

/// Ranks that hold the same latents and see different tokens.
pub const SAE_AXIS_DATA: i32 = 0;
/// Ranks that see the same tokens and hold different latents.
pub const SAE_AXIS_LATENTS: i32 = 1;

/// The most bytes that a rank gives in one call of a communicator.
pub const SAE_COLLECTIVE_MAX_BYTES: i32 = 67108864;

/// Brings together what all ranks of an axis have: `bytes` of each, into `all`, in their order.
pub type sae_all_gather = Option<
    unsafe extern "C" fn(context: *mut c_void, axis: i32, mine: *const c_void, bytes: usize, all: *mut c_void) -> i32,
>;
/// Replaces the numbers by their sums over an axis.
pub type sae_all_reduce_sum =
    Option<unsafe extern "C" fn(context: *mut c_void, axis: i32, values: *mut f32, count: usize) -> i32>;
/// Sums over an axis, of which each rank gets its part of `count` numbers into `mine`; `values` has as many for each rank.
pub type sae_reduce_scatter_sum = Option<
    unsafe extern "C" fn(context: *mut c_void, axis: i32, values: *const f32, mine: *mut f32, count: usize) -> i32,
>;
/// Replaces the numbers by the least of each over an axis.
pub type sae_all_reduce_min =
    Option<unsafe extern "C" fn(context: *mut c_void, axis: i32, values: *mut i64, count: usize) -> i32>;
/// Replaces the bytes by those of the rank in place `root` of an axis.
pub type sae_broadcast =
    Option<unsafe extern "C" fn(context: *mut c_void, axis: i32, root: i32, bytes: *mut c_void, count: usize) -> i32>;

/// How the processes of one run reach each other: the host fills in its communicator's functions. Processes stand in a grid of
/// `data_ranks` rows of `latent_ranks` each, numbered row after row. Those of a row (`SAE_AXIS_LATENTS`) get the same batches
/// and hold different latents; those of a column (`SAE_AXIS_DATA`) hold the same latents and get different batches.
///
/// A function returns 0 once its result is there, or anything else if it cannot be had: the trainer's call then fails with
/// `SAE_ERROR_COLLECTIVE`, and so does every later one. To give up on a process that does not answer is the host's part. All
/// ranks of an axis make the same calls in the same order, with the same counts, from the thread that calls the trainer,
/// one at a time, and with at most `SAE_COLLECTIVE_MAX_BYTES` of each rank's. Only `all_gather` must be there; the others
/// spare traffic, and must give all ranks the same bits, and the same numbers the same bits every time.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_collective {
    /// `sizeof(sae_collective)`; `SAE_COLLECTIVE_INIT` sets it.
    pub struct_size: usize,
    /// This process's number, from 0.
    pub rank: i64,
    /// Rows of the grid: over how many ranks tokens are split; 0: 1.
    pub data_ranks: i64,
    /// Ranks of a row: over how many latents are split; 0: 1.
    pub latent_ranks: i64,
    /// Handed back to the functions. It and they must stay valid while a trainer made with them lives.
    pub context: *mut c_void,
    /// Must be there.
    pub all_gather: sae_all_gather,
    /// NULL: numbers are gathered, and summed in the order of ranks.
    pub all_reduce_sum: sae_all_reduce_sum,
    /// Asked for where `all_reduce_sum` is NULL; NULL: as there.
    pub reduce_scatter_sum: sae_reduce_scatter_sum,
    /// NULL: numbers are gathered.
    pub all_reduce_min: sae_all_reduce_min,
    /// NULL: all ranks' bytes are gathered.
    pub broadcast: sae_broadcast,
}
sized!(sae_collective: rank, data_ranks, latent_ranks, context, all_gather, all_reduce_sum, reduce_scatter_sum,
    all_reduce_min, broadcast);

const _: () = assert!(SAE_COLLECTIVE_MAX_BYTES as usize == crate::collective::MAX_BYTES);
const _: () = assert!(SAE_AXIS_DATA == Axis::Data as i32 && SAE_AXIS_LATENTS == Axis::Latents as i32);

/// The ranks of an options struct; NULL: this process is alone.
///
/// # Safety
/// A pointer that is neither null nor misaligned must point to such a struct, whose functions do what it says.
pub(super) unsafe fn ranks_or_alone(name: &str, collective: *const sae_collective) -> Result<Ranks> {
    // SAFETY: the caller's promise.
    let Some(table) = (unsafe { sized::read(name, collective)? }) else { return Ok(Ranks::alone()) };
    if table.all_gather.is_none() {
        return fail!(InvalidArgument, "{name}.all_gather: is NULL, but ranks need it");
    }
    let number = |field: &str, value: i64| count(&format!("{name}.{field}"), value);
    let (data, latents) = (number("data_ranks", table.data_ranks)?, number("latent_ranks", table.latent_ranks)?);
    let rank = number("rank", table.rank)?;
    Ranks::new(Box::new(Host(table)), rank, data.max(1), latents.max(1)).map_err(|e| e.at(name))
}

struct Host(sae_collective);

// SAFETY: the host promised that its functions may be called with the context from whatever thread calls the trainer, one at
// a time.
unsafe impl Send for Host {}
// SAFETY: as above; trainers are entered by one thread at a time.
unsafe impl Sync for Host {}

impl Collective for Host {
    fn all_gather(&self, axis: Axis, mine: &[u8], all: &mut [u8]) -> Result<()> {
        let Some(function) = self.0.all_gather else { return fail!(Internal, "all_gather is NULL") };
        // SAFETY: the host's own function; both slices are as long as it is told, times the ranks of the axis.
        answer(unsafe {
            function(self.0.context, axis as i32, mine.as_ptr().cast(), mine.len(), all.as_mut_ptr().cast())
        })
    }

    fn all_reduce_sum(&self, axis: Axis, values: &mut [f32]) -> Option<Result<()>> {
        let function = self.0.all_reduce_sum?;
        // SAFETY: the host's own function, told how long the slice is.
        Some(answer(unsafe { function(self.0.context, axis as i32, values.as_mut_ptr(), values.len()) }))
    }

    fn reduce_scatter_sum(&self, axis: Axis, values: &[f32], mine: &mut [f32]) -> Option<Result<()>> {
        let function = self.0.reduce_scatter_sum?;
        let context = self.0.context;
        // SAFETY: the host's own function, told how long a part is; `values` has one for each rank of the axis.
        Some(answer(unsafe { function(context, axis as i32, values.as_ptr(), mine.as_mut_ptr(), mine.len()) }))
    }

    fn all_reduce_min(&self, axis: Axis, values: &mut [i64]) -> Option<Result<()>> {
        let function = self.0.all_reduce_min?;
        // SAFETY: the host's own function, told how long the slice is.
        Some(answer(unsafe { function(self.0.context, axis as i32, values.as_mut_ptr(), values.len()) }))
    }

    fn broadcast(&self, axis: Axis, root: usize, bytes: &mut [u8]) -> Option<Result<()>> {
        let function = self.0.broadcast?;
        let context = self.0.context;
        // SAFETY: the host's own function, told how long the slice is.
        Some(answer(unsafe { function(context, axis as i32, root as i32, bytes.as_mut_ptr().cast(), bytes.len()) }))
    }
}

/// What the host's function returned.
fn answer(returned: i32) -> Result<()> {
    match returned {
        0 => Ok(()),
        other => fail!(Collective, "the host's communicator returned {other}"),
    }
}
