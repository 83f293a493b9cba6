//! Models made of weights in memory.

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::boundary::{array, boundary, check_flags, count, present, text};
use super::convention::sae_convention;
use super::handle::put;
use super::load::{LoadChoice, sae_load_options, sae_release};
use super::model::{
    SAE_ARCHITECTURE_ABS_TOP_K, SAE_ARCHITECTURE_GATED, SAE_ARCHITECTURE_GROUP_MAX, SAE_ARCHITECTURE_JUMP_RELU,
    SAE_ARCHITECTURE_RELU, SAE_ARCHITECTURE_TOP_K, SAE_MODEL_CENTERS, SAE_MODEL_KEEPS_B_DEC, SAE_MODEL_RESCALES,
    SAE_MODEL_SELECTS, SAE_MODEL_STAYS_NORMALIZED, read_normalization, sae_model,
};
use super::sized::{self, sized};
use super::status::{sae_error, sae_status};
use super::tensor::sae_tensor;
use crate::error::{Error, Result, Status, fail};
use crate::features::check_tensor;
use crate::sae::{Architecture, Gate, Glu, Matrix, Sae, Spec, Weights};
use crate::tensor::{DType, Storage, Tensor};

/// What a model made of weights in memory shall be.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_model_desc {
    /// `sizeof(sae_model_desc)`; `SAE_MODEL_DESC_INIT` sets it.
    pub struct_size: usize,
    /// Width of the input; of a crosscoder, all its layers together.
    pub d_in: i64,
    /// Width of the output; 0: `d_in`.
    pub d_out: i64,
    /// Layers of the language model that are read at once; 0: one.
    pub layers_in: i64,
    /// Layers that are written at once; 0: one.
    pub layers_out: i64,
    /// Latents given.
    pub n_latents: i64,
    /// Index of the first of them, if they are a shard of a larger model.
    pub first_latent: i64,
    /// Latents of that larger model; 0: this is no shard.
    pub shard_of: i64,
    /// Latents kept per token, for `SAE_ARCHITECTURE_TOP_K`, `_ABS_TOP_K` and `_GROUP_MAX` (groups) alone.
    pub k: i64,
    /// How many of the first latents make a smaller model, for each size that a Matryoshka SAE was trained at, ascending up
    /// to all.
    pub prefixes: *const i64,
    /// How many of these sizes; 0 for others.
    pub n_prefixes: usize,
    /// What the inputs must look like; NULL: not known.
    pub convention: *const sae_convention,
    /// `SAE_ARCHITECTURE_…`.
    pub architecture: i32,
    /// `SAE_NORMALIZATION_…`.
    pub normalization: i32,
    /// `SAE_MODEL_KEEPS_B_DEC`, `_STAYS_NORMALIZED`, `_RESCALES`, `_SELECTS`, `_CENTERS`. A skip path is there if W_skip is
    /// given, a GLU encoder if W_glu is.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}
sized!(sae_model_desc: d_in, d_out, layers_in, layers_out, n_latents, first_latent, shard_of, k, prefixes, n_prefixes, convention, architecture, normalization, flags, reserved);

/// A weight tensor with its name: "W_enc" `[n_latents, d_in]`, "W_dec" `[n_latents, d_out]`, "b_enc" `[n_latents]`, "b_dec" `[d_out]`,
/// "threshold" `[n_latents]` for JumpReLU, "r_mag" and "b_gate" `[n_latents]` for a gated SAE (whose "b_enc" is the bias of the
/// magnitudes), "W_glu" `[n_latents, d_in]` and "b_glu" `[n_latents]` for a GLU encoder, "W_skip" `[d_out, d_in]` for a skip path.
/// f32, f16 or bf16; in the large matrices a latent is a row. "b_enc", "b_dec" and "b_glu" are 0 if they are not given.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_named_tensor {
    /// The name.
    pub name: *const c_char,
    /// The numbers.
    pub tensor: sae_tensor,
}

/// Makes a model of weights in memory, which are copied, or with `SAE_LOAD_BORROW` (in `options`) used where they are: then they
/// must stay as they are until `release` is called, matrices must have no gaps between rows, and vectors are copied still.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_from_weights(
    desc: *const sae_model_desc,
    weights: *const sae_named_tensor,
    n_weights: usize,
    options: *const sae_load_options,
    out: *mut *mut sae_model,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's pointers.
        let (spec, weights, options) = unsafe {
            (read_desc(desc)?, Named::read(array("weights", weights, n_weights)?)?, LoadChoice::read(options)?)
        };
        let load = &options.load;
        options.refuse_files()?;
        spec.check().map_err(|e| e.at("desc"))?;
        let release = Arc::new(Release { armed: AtomicBool::new(false), call: options.borrow });
        let borrow = options.borrow.is_some().then_some(&release);
        // SAFETY: with a borrow, the caller promises that the memory stays until it is released.
        let weights = unsafe { weights.gather(&spec, borrow)? };
        let mut sae = Sae::new(spec, weights)?;
        if let Some((first, count)) = load.latents {
            refuse_copy(borrow, "options.n_latents")?;
            sae = sae.shard(first, count)?;
        }
        let w = sae.weights();
        if let Some(dtype) = load.dtype
            && w.matrices().any(|(_, m)| m.dtype() != dtype)
        {
            refuse_copy(borrow, "options.dtype")?;
            sae = sae.to_dtype(dtype)?;
        }
        let model = sae_model::new(sae, options.gpu, None, &[])?;
        // From here on the model has the memory, and nothing can fail.
        release.armed.store(true, Ordering::Release);
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, model) };
        Ok(())
    })
}

fn refuse_copy(borrow: Option<&Arc<Release>>, name: &str) -> Result<()> {
    match borrow {
        None => Ok(()),
        Some(_) => fail!(InvalidArgument, "{name}: would copy the matrices, but SAE_LOAD_BORROW is set"),
    }
}

unsafe fn read_desc(pointer: *const sae_model_desc) -> Result<Spec> {
    // SAFETY: the caller's pointers.
    let (desc, convention, prefixes) = unsafe {
        let desc = sized::require("desc", pointer)?;
        let prefixes = array("desc.prefixes", desc.prefixes, desc.n_prefixes)?;
        (desc, sae_convention::read("desc.convention", desc.convention)?, prefixes)
    };
    let known =
        SAE_MODEL_KEEPS_B_DEC | SAE_MODEL_STAYS_NORMALIZED | SAE_MODEL_RESCALES | SAE_MODEL_SELECTS | SAE_MODEL_CENTERS;
    check_flags("desc.flags", desc.flags, known)?;
    if desc.reserved != 0 {
        return fail!(InvalidArgument, "desc.reserved: {} is not known; leave it 0", desc.reserved);
    }
    let k = count("desc.k", desc.k)?;
    let architecture = match desc.architecture {
        SAE_ARCHITECTURE_TOP_K => Architecture::TopK { k },
        SAE_ARCHITECTURE_ABS_TOP_K => Architecture::AbsTopK { k },
        SAE_ARCHITECTURE_GROUP_MAX => Architecture::GroupMax { k },
        _ if k != 0 => return fail!(InvalidArgument, "desc.k: is {k}, but this architecture has no such number"),
        SAE_ARCHITECTURE_RELU => Architecture::Relu,
        SAE_ARCHITECTURE_JUMP_RELU => Architecture::JumpRelu,
        SAE_ARCHITECTURE_GATED => Architecture::Gated,
        other => return fail!(InvalidArgument, "desc.architecture: {other} is not known"),
    };
    let normalization = read_normalization("desc", desc.normalization)?;
    let d_in = count("desc.d_in", desc.d_in)?;
    let layers = |name, layers| count(name, layers).map(|layers| layers.max(1));
    Ok(Spec {
        architecture,
        d_in,
        d_out: if desc.d_out == 0 { d_in } else { count("desc.d_out", desc.d_out)? },
        layers_in: layers("desc.layers_in", desc.layers_in)?,
        layers_out: layers("desc.layers_out", desc.layers_out)?,
        n_latents: count("desc.n_latents", desc.n_latents)?,
        first_latent: count("desc.first_latent", desc.first_latent)?,
        shard_of: count("desc.shard_of", desc.shard_of)?,
        center: desc.flags & SAE_MODEL_CENTERS != 0,
        normalization,
        denormalize_output: desc.flags & SAE_MODEL_STAYS_NORMALIZED == 0,
        subtract_b_dec: desc.flags & SAE_MODEL_KEEPS_B_DEC == 0,
        rescale_by_decoder_norm: desc.flags & SAE_MODEL_RESCALES != 0,
        select_by_decoder_norm: desc.flags & SAE_MODEL_SELECTS != 0,
        prefixes: prefixes.iter().map(|n| count("desc.prefixes", *n)).collect::<Result<_>>()?,
        convention,
    })
}

/// Calls the owner of borrowed matrices when the last of them is gone, once the model was made.
struct Release {
    armed: AtomicBool,
    call: Option<(sae_release, *mut c_void)>,
}

// SAFETY: the caller promised that the callback may come on any thread.
unsafe impl Send for Release {}
// SAFETY: as above.
unsafe impl Sync for Release {}

impl Drop for Release {
    fn drop(&mut self) {
        if let Some((Some(release), context)) = self.call
            && self.armed.load(Ordering::Acquire)
        {
            // SAFETY: the caller's own function with its own argument.
            unsafe { release(context) };
        }
    }
}

const NAMES: [&str; 10] =
    ["W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip", "W_glu", "b_glu", "r_mag", "b_gate"];

/// The caller's weights, in the order of [`NAMES`].
#[derive(Default)]
struct Named<'a>([Option<Tensor<'a>>; NAMES.len()]);

impl<'a> Named<'a> {
    /// # Safety
    /// What the tensors describe must be so.
    unsafe fn read(weights: &'a [sae_named_tensor]) -> Result<Self> {
        let mut named = Self::default();
        for (i, weight) in weights.iter().enumerate() {
            // SAFETY: the caller's promise.
            let Some(name) = unsafe { text("name", weight.name) }.map_err(|e| e.at(format_args!("weights[{i}]")))?
            else {
                return fail!(InvalidArgument, "weights[{i}].name: is NULL");
            };
            let Some(which) = NAMES.iter().position(|known| *known == name) else {
                return fail!(
                    InvalidArgument,
                    "weights[{i}].name: expected one of {}, found {name:?}",
                    NAMES.join(", ")
                );
            };
            // SAFETY: the caller's promise.
            let tensor = unsafe { weight.tensor.read(name)? };
            if !tensor.device().is_host() {
                return fail!(InvalidTensor, "{name}: is on {}, but weights are taken from cpu", tensor.device());
            }
            if named.0[which].replace(tensor).is_some() {
                return fail!(InvalidArgument, "weights[{i}].name: {name:?} is given twice");
            }
        }
        Ok(named)
    }

    /// # Safety
    /// With a borrow, the memory must stay readable and unchanged until it is released.
    unsafe fn gather(&self, spec: &Spec, borrow: Option<&Arc<Release>>) -> Result<Weights> {
        let Spec { n_latents: n, d_in, d_out, .. } = *spec;
        let [w_enc, w_dec, b_enc, b_dec, threshold, w_skip, w_glu, b_glu, r_mag, b_gate] = &self.0;
        // SAFETY: the caller's promise.
        let matrix = |name, tensor, rows, cols| unsafe { matrix(name, tensor, rows, cols, borrow) };
        let missing = |name| Error::new(Status::InvalidArgument, format!("weights: {name} is missing"));
        let zeros = |len| move || Ok(vec![0.0; len]);
        Ok(Weights {
            w_enc: matrix("W_enc", w_enc.as_ref().ok_or_else(|| missing("W_enc"))?, n, d_in)?,
            b_enc: b_enc.as_ref().map_or_else(zeros(n), |b| vector("b_enc", b, n))?,
            w_dec: matrix("W_dec", w_dec.as_ref().ok_or_else(|| missing("W_dec"))?, n, d_out)?,
            b_dec: b_dec.as_ref().map_or_else(zeros(d_out), |b| vector("b_dec", b, d_out))?,
            threshold: threshold.as_ref().map(|t| vector("threshold", t, n)).transpose()?,
            gate: match (r_mag, b_gate) {
                (None, None) => None,
                (Some(r_mag), Some(b_gate)) => {
                    Some(Gate { r_mag: vector("r_mag", r_mag, n)?, b_gate: vector("b_gate", b_gate, n)? })
                }
                (Some(_), None) => return Err(missing("b_gate")),
                (None, Some(_)) => return Err(missing("r_mag")),
            },
            glu: match (w_glu, b_glu) {
                (None, None) => None,
                (None, Some(_)) => return Err(missing("W_glu")),
                (Some(w), b) => Some(Glu {
                    w: matrix("W_glu", w, n, d_in)?,
                    b: b.as_ref().map_or_else(zeros(n), |b| vector("b_glu", b, n))?,
                }),
            },
            w_skip: w_skip.as_ref().map(|w| matrix("W_skip", w, d_out, d_in)).transpose()?,
        })
    }
}

fn vector(name: &str, tensor: &Tensor<'_>, len: usize) -> Result<Vec<f32>> {
    check_tensor(name, tensor, &[len], DType::is_float, "f32, f16 or bf16")?;
    let mut values = vec![0.0; len];
    tensor.read_row(0, &mut values);
    Ok(values)
}

/// # Safety
/// With a borrow, the memory must stay readable and unchanged until it is released.
unsafe fn matrix(
    name: &str,
    tensor: &Tensor<'_>,
    rows: usize,
    cols: usize,
    borrow: Option<&Arc<Release>>,
) -> Result<Matrix> {
    check_tensor(name, tensor, &[rows, cols], DType::is_float, "f32, f16 or bf16")?;
    let Some(release) = borrow else {
        return Matrix::build(tensor.dtype(), rows, cols, |row, out| {
            tensor.read_row(row, out);
            Ok(())
        });
    };
    let (span, bytes) = (tensor.span(), rows * cols * tensor.dtype().size());
    if span.len() != bytes {
        return fail!(InvalidTensor, "{name}: has gaps between rows, so SAE_LOAD_BORROW cannot use it where it is");
    }
    let release = Arc::clone(release);
    // SAFETY: readable as the tensor was checked, and for as long as needed by the caller's promise.
    let storage = unsafe { Storage::borrowed(tensor.as_ptr(), bytes, Some(Box::new(move || drop(release)))) };
    Matrix::new(storage, tensor.dtype(), rows, cols)
}
