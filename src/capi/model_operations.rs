//! Models made into other models, on the same device.

use std::ffi::{CString, c_char};
use std::sync::LazyLock;

use super::boundary::{array, boundary, count, present};
use super::handle::{get, put};
use super::model::sae_model;
use super::pool::{pool_or_serial, sae_pool};
use super::status::{c_text, sae_error, sae_status};
use super::tensor::{needed, sae_tensor};
use crate::error::Result;
use crate::formats;
use crate::sae::Sae;

/// Makes a model whose decoder rows have norm 1, the norms moved into its encoder. Reconstructions stay the same; so do
/// features where the norms multiplied them already (`SAE_MODEL_RESCALES`), else they grow by the norms. Refused where
/// other latents would win then (TopK and its like without `SAE_MODEL_RESCALES` or `SAE_MODEL_SELECTS`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_fold_decoder_norms(
    model: *const sae_model,
    out: *mut *mut sae_model,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    unsafe { remake(model, out, error, Sae::fold_decoder_norms) }
}

/// Makes a model that takes x as this one takes `x · scale`, and gives its outputs on the scale of x.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_fold_activation_scale(
    model: *const sae_model,
    scale: f32,
    out: *mut *mut sae_model,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    unsafe { remake(model, out, error, |sae| sae.fold_activation_scale(scale)) }
}

/// Makes a model that keeps another number of latents per token.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_with_k(
    model: *const sae_model,
    k: i64,
    out: *mut *mut sae_model,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    unsafe { remake(model, out, error, |sae| sae.with_k(count("k", k)?)) }
}

/// Makes a model of the latents `ids` alone, numbered from 0 in that order. Where latents compete, they now compete among
/// themselves, with the same k; of GroupMax, whole groups can be taken.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_subset(
    model: *const sae_model,
    ids: *const i32,
    n_ids: usize,
    out: *mut *mut sae_model,
    error: *mut *mut sae_error,
) -> sae_status {
    let subset = |sae: &Sae| {
        // SAFETY: the caller's pointer.
        let ids = unsafe { array("ids", ids, n_ids)? };
        sae.subset(&ids.iter().map(|id| count("ids", i64::from(*id))).collect::<Result<Vec<_>>>()?)
    };
    // SAFETY: the caller's pointers.
    unsafe { remake(model, out, error, subset) }
}

/// Makes a model of the first `n_latents` latents: for Matryoshka SAEs one of `sae_info.prefixes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_prefix(
    model: *const sae_model,
    n_latents: i64,
    out: *mut *mut sae_model,
    error: *mut *mut sae_error,
) -> sae_status {
    // SAFETY: the caller's pointers.
    unsafe { remake(model, out, error, |sae| sae.prefix(count("n_latents", n_latents)?)) }
}

/// Makes a JumpReLU model of a TopK one, whose latents then do not compete: their one threshold is such that on the
/// tokens of `sample` `[T, d_in]` (f32, f16, bf16; those that are not finite are left out) k latents are active on average.
/// `pool` NULL: the calling thread alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_with_threshold(
    model: *const sae_model,
    sample: *const sae_tensor,
    pool: *const sae_pool,
    out: *mut *mut sae_model,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's pointers.
        let (model, sample, pool) =
            unsafe { (get("model", model)?, needed("sample", sample)?.read("sample")?, pool_or_serial("pool", pool)?) };
        let made = crate::evaluation::threshold::fixed_threshold(model.sae(), &sample, pool)?;
        let made = sae_model::of(model.model.another(made)?, None, &[]);
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, made) };
        Ok(())
    })
}

/// The name of a format that is read, by its number from 0 on; NULL after the last. `writes`, unless it is NULL, becomes 1 if
/// models are saved in it too, else 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_format_name(number: usize, writes: *mut i32) -> *const c_char {
    static NAMES: LazyLock<Vec<(CString, bool)>> =
        LazyLock::new(|| formats::names().map(|(name, saves)| (c_text(name), saves)).collect());
    let Some((name, saves)) = NAMES.get(number) else { return std::ptr::null() };
    if !writes.is_null() && writes.is_aligned() {
        // SAFETY: the caller's place for a number.
        unsafe { writes.write(i32::from(*saves)) };
    }
    name.as_ptr()
}

/// Makes another model of one; it came from no file.
///
/// # Safety
/// The pointers must be what they say.
unsafe fn remake(
    model: *const sae_model,
    out: *mut *mut sae_model,
    error: *mut *mut sae_error,
    make: impl FnOnce(&Sae) -> Result<Sae>,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's handle.
        let model = unsafe { get("model", model)? };
        let made = make(model.sae())?;
        let made = sae_model::of(model.model.another(made)?, None, &[]);
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, made) };
        Ok(())
    })
}
