//! Models: loaded, saved, asked.

use std::ffi::{CString, c_char};
use std::sync::Arc;

use super::boundary::{boundary, check_flags, count, present, required_text, text};
use super::convention::say;
use super::handle::{Handle, get, give, put, take_back};
use super::load::{LoadChoice, sae_load_options};
use super::log::{SAE_LOG_INFO, SAE_LOG_WARNING, log};
use super::sized::{self, Output, sized};
use super::status::{c_text, sae_error, sae_status};
use super::tensor::{needed, sae_device, sae_dtype, sae_tensor};
use crate::backend::cuda::CudaModel;
use crate::error::{Result, fail};
use crate::formats::{self, SaveOptions};
use crate::sae::{Architecture, Convention, Matrix, Normalization, Sae};
use crate::session::Model;
use crate::tensor::DType;

/// An SAE: what it is, and its weights. Never changes; any number of threads may use it at once. Counted: sessions keep the
/// weights they need, so it may be freed before them.
pub struct sae_model {
    pub(super) model: Model,
    texts: Texts,
    prefixes: Vec<i64>,
}

impl Handle for sae_model {}

/// Keeps the `k` largest pre-activations that are positive.
pub const SAE_ARCHITECTURE_TOP_K: i32 = 1;
/// Keeps every positive pre-activation.
pub const SAE_ARCHITECTURE_RELU: i32 = 2;
/// Keeps a pre-activation that is positive and above its latent's threshold.
pub const SAE_ARCHITECTURE_JUMP_RELU: i32 = 3;
/// Keeps the `k` pre-activations largest in magnitude, with their signs.
pub const SAE_ARCHITECTURE_ABS_TOP_K: i32 = 4;
/// Keeps the largest of each of `k` groups of neighbouring latents, if it is positive.
pub const SAE_ARCHITECTURE_GROUP_MAX: i32 = 5;
/// Keeps a positive pre-activation whose gate is open.
pub const SAE_ARCHITECTURE_GATED: i32 = 6;

/// Inputs are taken as they are.
pub const SAE_NORMALIZATION_NONE: i32 = 0;
/// Each token is brought to mean 0 and standard deviation 1, which decoding undoes.
pub const SAE_NORMALIZATION_LAYER_NORM: i32 = 1;
/// Each token is scaled to norm sqrt(d), which decoding undoes.
pub const SAE_NORMALIZATION_CONSTANT_NORM: i32 = 2;

/// b_dec is not subtracted from the input before encoding.
pub const SAE_MODEL_KEEPS_B_DEC: u32 = 1;
/// Decoding does not undo the normalization of the input.
pub const SAE_MODEL_STAYS_NORMALIZED: u32 = 2;
/// Pre-activations are multiplied by the norms of their decoder rows, activations divided by them before decoding.
pub const SAE_MODEL_RESCALES: u32 = 4;
/// There is a skip path, W_skip, from the raw input to the output.
pub const SAE_MODEL_HAS_SKIP: u32 = 8;
/// Each token's mean is subtracted before all else, and added back at the end.
pub const SAE_MODEL_CENTERS: u32 = 16;
/// Latents are chosen by their pre-activations times the norms of their decoder rows; activations stay without the factor.
pub const SAE_MODEL_SELECTS: u32 = 32;
/// Pre-activations are multiplied by the sigmoid of a second encoder's, W_glu and b_glu.
pub const SAE_MODEL_HAS_GLU: u32 = 64;

/// How to save. NULL or all zero: in the library's own format, with the types that the matrices have.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_save_options {
    /// `sizeof(sae_save_options)`; `SAE_SAVE_OPTIONS_INIT` sets it.
    pub struct_size: usize,
    /// The format's name, "native" if NULL; `sae_format_name` lists those that are written.
    pub format: *const c_char,
    /// The type to write matrices in, f32, f16 or bf16; zero: as they are kept.
    pub dtype: sae_dtype,
    /// 0.
    pub flags: u32,
}
sized!(sae_save_options: format, dtype, flags);

/// Bytes that something needs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_memory {
    /// `sizeof(sae_memory)`; `SAE_MEMORY_INIT` sets it.
    pub struct_size: usize,
    /// Held as long as the object lives.
    pub resident: u64,
    /// Mapped from a file: address space, paged in as it is read.
    pub mapped: u64,
    /// The most that is allocated at any moment of making it, `resident` included.
    pub peak: u64,
    /// Of a session: working memory, in `resident` (on a GPU, in `device`) unless the host brings it with each call
    /// (`sae_run.workspace`).
    pub workspace: u64,
    /// Held in the GPU's memory, if the model is on one; of a model without the gaps between arrays. The host keeps the
    /// weights too (`resident`, or with `SAE_LOAD_MAP` `mapped`).
    pub device: u64,
}
sized!(sae_memory: resident, mapped, peak, workspace, device);

/// What a model is. Texts are valid until the model is freed, and NULL where nothing is known.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_info {
    /// `sizeof(sae_info)`; `SAE_INFO_INIT` sets it.
    pub struct_size: usize,
    /// `SAE_ARCHITECTURE_…`.
    pub architecture: i32,
    /// `SAE_NORMALIZATION_…`.
    pub normalization: i32,
    /// `SAE_MODEL_…`.
    pub flags: u32,
    /// The type that matrices are kept in.
    pub dtype: sae_dtype,
    /// Where the model lives.
    pub device: sae_device,
    /// Width of the input; of a crosscoder, all its layers together.
    pub d_in: i64,
    /// Width of the output; differs from `d_in` for transcoders and crosscoders alone.
    pub d_out: i64,
    /// Layers of the language model that are read at once, each `d_in / layers_in` wide; 1 but for crosscoders.
    pub layers_in: i64,
    /// Layers that are written at once.
    pub layers_out: i64,
    /// Latents held here.
    pub n_latents: i64,
    /// Index of the first of them; not 0 for a shard alone.
    pub first_latent: i64,
    /// Latents of the whole model, if this is a shard of one; 0: it is whole.
    pub shard_of: i64,
    /// Latents kept per token; 0 where the architecture has no such number.
    pub k: i64,
    /// How many of the first latents make a smaller model, for each size that a Matryoshka SAE was trained at, ascending;
    /// valid until the model is freed.
    pub prefixes: *const i64,
    /// How many of these sizes; 0 for others.
    pub n_prefixes: usize,
    /// Floats per token that features carry for decoding, `sae_features.row_state`: the token's mean, if the model
    /// subtracted one, then what it divided by (the deviation of `SAE_NORMALIZATION_LAYER_NORM`) or multiplied by
    /// (`sqrt(d) / norm` of `SAE_NORMALIZATION_CONSTANT_NORM`). 0 where decoding undoes nothing.
    pub row_state_width: i64,
    /// Bytes of the weights.
    pub bytes: u64,
    /// The format it was loaded from, as `sae_format_name` names it; NULL if it came from no file.
    pub format: *const c_char,
    /// What loading inferred, assumed or left aside, in words, one note a line; NULL if nothing.
    pub notes: *const c_char,
    /// The language model whose activations it was trained on.
    pub model_name: *const c_char,
    /// Where the input is read, as the file names it.
    pub hook_point: *const c_char,
    /// The same as TransformerLens names it, where it was understood: `blocks.8.hook_resid_post`.
    pub hook_point_transformer_lens: *const c_char,
    /// The same as the Hugging Face module whose output it is: `model.layers.8`.
    pub hook_point_hugging_face: *const c_char,
    /// The same as the tensor of llama.cpp's graph: `l_out-8`.
    pub hook_point_ggml: *const c_char,
    /// Where the output belongs, if elsewhere (transcoders), as the file names it.
    pub hook_point_out: *const c_char,
    /// The same as TransformerLens names it.
    pub hook_point_out_transformer_lens: *const c_char,
    /// The same as the Hugging Face module whose output it is.
    pub hook_point_out_hugging_face: *const c_char,
    /// The same as the tensor of llama.cpp's graph.
    pub hook_point_out_ggml: *const c_char,
    /// Token positions left out of training; valid until the model is freed.
    pub excluded_positions: *const u32,
    /// How many of them.
    pub n_excluded_positions: usize,
    /// Tokens per context in training; 0: unknown.
    pub context_size: u32,
    /// Whether texts began with the beginning-of-sequence token: `SAE_YES`, `SAE_NO`, `SAE_UNKNOWN`.
    pub prepend_bos: i32,
    /// Whether the language model's writing weights were centred, so that inputs have mean 0. An engine's do not.
    pub centered_writing_weights: i32,
    /// Whether the language model's LayerNorm weights were folded into the next layer.
    pub folded_layer_norm: i32,
}
sized!(sae_info: architecture, normalization, flags, dtype, device, d_in, d_out, layers_in, layers_out, n_latents, first_latent,
    shard_of, k, prefixes, n_prefixes, row_state_width,
    bytes, format, notes, model_name, hook_point, hook_point_transformer_lens, hook_point_hugging_face, hook_point_ggml,
    hook_point_out, hook_point_out_transformer_lens, hook_point_out_hugging_face, hook_point_out_ggml, excluded_positions, n_excluded_positions, context_size, prepend_bos,
    centered_writing_weights, folded_layer_norm);

/// Loads a model from a file, or from a directory that holds one; `path` is UTF-8. The format is recognised by content.
/// A file that is not sound is refused with `SAE_ERROR_FORMAT`, weights that are not finite with `SAE_ERROR_NOT_FINITE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_load(
    path: *const c_char,
    options: *const sae_load_options,
    out: *mut *mut sae_model,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's pointers.
        let (path, options) = unsafe { (required_text("path", path)?, LoadChoice::read(options)?) };
        options.refuse_borrow()?;
        let loaded = formats::load(path, &options.load)?;
        let spec = loaded.sae.spec();
        log(SAE_LOG_INFO, || {
            let (name, n, d) = (spec.architecture.name(), spec.n_latents, spec.d_in);
            format!("{path}: loaded {name} SAE of {n} latents over {d}, {} bytes", loaded.sae.byte_size())
        });
        for note in &loaded.notes {
            log(SAE_LOG_WARNING, || format!("{path}: {note}"));
        }
        let model = sae_model::new(loaded.sae, options.gpu, Some(loaded.format), &loaded.notes)?;
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, model) };
        Ok(())
    })
}

/// Tells what loading a file with these options would need; no weight is read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_memory(
    path: *const c_char,
    options: *const sae_load_options,
    out: *mut sae_memory,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (out, path, options) =
            unsafe { (Output::new("out", out)?, required_text("path", path)?, LoadChoice::read(options)?) };
        options.refuse_borrow()?;
        let formats::Memory { resident, mapped, peak } = formats::memory(path, &options.load)?;
        let device = if options.gpu.is_some() { resident + mapped } else { 0 };
        out.write(&sae_memory { struct_size: 0, resident, mapped, peak, workspace: 0, device });
        Ok(())
    })
}

/// Saves a model, in the library's own format (a safetensors file) unless another is named; `path` is a directory where the
/// format is one. Files appear whole or not at all: on failure, what was there is untouched. What a format cannot say is
/// refused by name, with `SAE_ERROR_UNSUPPORTED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_save(
    model: *const sae_model,
    path: *const c_char,
    options: *const sae_save_options,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (model, path, options) =
            unsafe { (get("model", model)?, required_text("path", path)?, sized::read("options", options)?) };
        let mut save = SaveOptions::default();
        if let Some(options) = options {
            check_flags("options.flags", options.flags, 0)?;
            save.dtype = options.dtype.choose("options")?;
            // SAFETY: the caller's text.
            save.format = unsafe { text("options.format", options.format)? }.map(str::to_owned);
        }
        formats::save(model.sae(), path, &save)?;
        log(SAE_LOG_INFO, || format!("{path}: saved"));
        Ok(())
    })
}

/// Tells what a model is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_info(
    model: *const sae_model,
    out: *mut sae_info,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (model, out) = unsafe { (get("model", model)?, Output::new("out", out)?) };
        out.write(&model.info());
        Ok(())
    })
}

/// Encoder directions, `[n_latents, d_in]`.
pub const SAE_WEIGHT_W_ENC: i32 = 1;
/// Decoder directions, `[n_latents, d_out]`.
pub const SAE_WEIGHT_W_DEC: i32 = 2;
/// Encoder biases, `[n_latents]`.
pub const SAE_WEIGHT_B_ENC: i32 = 3;
/// The decoder's bias, `[d_out]`.
pub const SAE_WEIGHT_B_DEC: i32 = 4;
/// JumpReLU's thresholds, `[n_latents]`.
pub const SAE_WEIGHT_THRESHOLD: i32 = 5;
/// The skip path, `[d_out, d_in]`.
pub const SAE_WEIGHT_W_SKIP: i32 = 6;
/// The second encoder of a GLU, `[n_latents, d_in]`.
pub const SAE_WEIGHT_W_GLU: i32 = 7;
/// Its biases, `[n_latents]`.
pub const SAE_WEIGHT_B_GLU: i32 = 8;
/// Logarithms of the factors of a gated SAE's magnitudes, `[n_latents]`; `SAE_WEIGHT_B_ENC` is their bias.
pub const SAE_WEIGHT_R_MAG: i32 = 9;
/// Biases of a gated SAE's gates, `[n_latents]`.
pub const SAE_WEIGHT_B_GATE: i32 = 10;

/// Copies weights: `rows` rows of a matrix into `out` `[rows, columns]`, or as many numbers of a vector into `out` `[rows]`, in
/// f32, f16 or bf16. `first` is the index of the first latent, or of the first row or number where there are no latents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_read(
    model: *const sae_model,
    which: i32,
    first: i64,
    rows: i64,
    out: *const sae_tensor,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (model, mut out) = unsafe { (get("model", model)?, needed("out", out)?.write("out")?) };
        let (first, rows) = (count("first", first)?, count("rows", rows)?);
        let (sae, w) = (model.sae(), model.sae().weights());
        let latents = sae.spec().first_latent;
        let name = match which {
            SAE_WEIGHT_W_ENC => "W_enc",
            SAE_WEIGHT_W_DEC => "W_dec",
            SAE_WEIGHT_B_ENC => "b_enc",
            SAE_WEIGHT_B_DEC => "b_dec",
            SAE_WEIGHT_THRESHOLD => "threshold",
            SAE_WEIGHT_W_SKIP => "W_skip",
            SAE_WEIGHT_W_GLU => "W_glu",
            SAE_WEIGHT_B_GLU => "b_glu",
            SAE_WEIGHT_R_MAG => "r_mag",
            SAE_WEIGHT_B_GATE => "b_gate",
            other => return fail!(InvalidArgument, "which: {other} is not known"),
        };
        let start = if matches!(which, SAE_WEIGHT_B_DEC | SAE_WEIGHT_W_SKIP) { 0 } else { latents };
        let matrix = w.matrices().find(|(known, _)| *known == name).map(|(_, matrix)| Source::Matrix(matrix));
        let vector = || w.vectors().find(|(known, _)| *known == name).map(|(_, vector)| Source::Vector(vector));
        let Some(source) = matrix.or_else(vector) else {
            return fail!(Unsupported, "which: this model has no {name}");
        };
        let (shape, len) = match source {
            Source::Matrix(matrix) => (&[rows, matrix.cols()][..], matrix.rows()),
            Source::Vector(vector) => (&[rows][..], vector.len()),
        };
        let Some(offset) = first.checked_sub(start).filter(|offset| rows <= len && *offset <= len - rows) else {
            return fail!(InvalidArgument, "first: {first}..+{rows} is not a part of {start}..{}", start + len);
        };
        crate::features::check_tensor("out", &out.as_ref(), shape, DType::is_float, "f32, f16 or bf16")?;
        if !out.as_ref().device().is_host() {
            return fail!(InvalidTensor, "out: is on {}, but weights are read on cpu", out.as_ref().device());
        }
        match source {
            Source::Matrix(matrix) => {
                let mut scratch = vec![0.0; matrix.cols()];
                (0..rows).for_each(|row| out.write_row(row, matrix.row_f32(offset + row, &mut scratch)));
            }
            Source::Vector(_) if rows == 0 => {}
            Source::Vector(vector) => out.write_row(0, &vector[offset..offset + rows]),
        }
        Ok(())
    })
}

/// What [`sae_model_read`] reads of.
enum Source<'a> {
    Matrix(&'a Matrix),
    Vector(&'a [f32]),
}

/// Frees a model; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_model_free(model: *mut sae_model) {
    // SAFETY: the caller's handle, which it gives up.
    unsafe { take_back(model) };
}

/// A handle to a model made in Rust, for a program whose other parts speak C; [`sae_model_free`] gives it back.
pub fn handle_of(model: impl Into<Model>) -> *mut sae_model {
    give(sae_model::of(model.into(), None, &[]))
}

/// What a model's info points to.
#[derive(Default)]
struct Texts {
    format: Option<CString>,
    notes: Option<CString>,
    model_name: Option<CString>,
    hook_point: Option<CString>,
    transformer_lens: Option<CString>,
    hugging_face: Option<CString>,
    ggml: Option<CString>,
    hook_point_out: Option<CString>,
    transformer_lens_out: Option<CString>,
    hugging_face_out: Option<CString>,
    ggml_out: Option<CString>,
}

impl sae_model {
    /// A model on the GPU of a number, or on the CPU.
    pub(super) fn new(sae: Sae, gpu: Option<i32>, format: Option<&str>, notes: &[String]) -> Result<Self> {
        let sae = Arc::new(sae);
        let model = match gpu {
            None => Model::Cpu(sae),
            Some(ordinal) => CudaModel::new(sae, ordinal).map_err(|e| e.at("options.device"))?.into(),
        };
        Ok(Self::of(model, format, notes))
    }

    pub(super) fn of(model: Model, format: Option<&str>, notes: &[String]) -> Self {
        let sae = model.sae();
        let convention = &sae.spec().convention;
        let Convention { model_name, hook_point, hook_point_out, .. } = convention;
        let (names, names_out) = (convention.hook_names(), convention.hook_names_out());
        let owned = |text: String| c_text(&text);
        let texts = Texts {
            format: format.map(c_text),
            notes: (!notes.is_empty()).then(|| c_text(&notes.join("\n"))),
            model_name: model_name.as_deref().map(c_text),
            hook_point: hook_point.as_ref().map(|hook| c_text(hook.name())),
            transformer_lens: names.transformer_lens.map(owned),
            hugging_face: names.hugging_face.map(owned),
            ggml: names.ggml.map(owned),
            hook_point_out: hook_point_out.as_ref().map(|hook| c_text(hook.name())),
            transformer_lens_out: names_out.transformer_lens.map(owned),
            hugging_face_out: names_out.hugging_face.map(owned),
            ggml_out: names_out.ggml.map(owned),
        };
        let prefixes = sae.spec().prefixes.iter().map(|n| *n as i64).collect();
        Self { model, texts, prefixes }
    }

    pub(super) fn sae(&self) -> &Arc<Sae> {
        self.model.sae()
    }

    pub(super) fn is_on_gpu(&self) -> bool {
        matches!(self.model, Model::Cuda(_))
    }

    fn info(&self) -> sae_info {
        let spec = self.sae().spec();
        let (texts, convention) = (&self.texts, &spec.convention);
        let text = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        sae_info {
            struct_size: 0,
            architecture: match spec.architecture {
                Architecture::TopK { .. } => SAE_ARCHITECTURE_TOP_K,
                Architecture::Relu => SAE_ARCHITECTURE_RELU,
                Architecture::JumpRelu => SAE_ARCHITECTURE_JUMP_RELU,
                Architecture::AbsTopK { .. } => SAE_ARCHITECTURE_ABS_TOP_K,
                Architecture::GroupMax { .. } => SAE_ARCHITECTURE_GROUP_MAX,
                Architecture::Gated => SAE_ARCHITECTURE_GATED,
            },
            normalization: match spec.normalization {
                Normalization::None => SAE_NORMALIZATION_NONE,
                Normalization::LayerNorm => SAE_NORMALIZATION_LAYER_NORM,
                Normalization::ConstantNorm => SAE_NORMALIZATION_CONSTANT_NORM,
            },
            flags: flag(!spec.subtract_b_dec, SAE_MODEL_KEEPS_B_DEC)
                | flag(!spec.denormalize_output, SAE_MODEL_STAYS_NORMALIZED)
                | flag(spec.rescale_by_decoder_norm, SAE_MODEL_RESCALES)
                | flag(self.sae().weights().w_skip.is_some(), SAE_MODEL_HAS_SKIP)
                | flag(spec.center, SAE_MODEL_CENTERS)
                | flag(spec.select_by_decoder_norm, SAE_MODEL_SELECTS)
                | flag(self.sae().weights().glu.is_some(), SAE_MODEL_HAS_GLU),
            dtype: sae_dtype::of(self.sae().weights().w_enc.dtype()),
            device: sae_device::of(self.model.device()),
            d_in: spec.d_in as i64,
            d_out: spec.d_out as i64,
            layers_in: spec.layers_in as i64,
            layers_out: spec.layers_out as i64,
            n_latents: spec.n_latents as i64,
            first_latent: spec.first_latent as i64,
            shard_of: spec.shard_of as i64,
            k: spec.architecture.k().unwrap_or(0) as i64,
            prefixes: if self.prefixes.is_empty() { std::ptr::null() } else { self.prefixes.as_ptr() },
            n_prefixes: self.prefixes.len(),
            row_state_width: spec.row_state_width() as i64,
            bytes: self.sae().byte_size() as u64,
            format: text(&texts.format),
            notes: text(&texts.notes),
            model_name: text(&texts.model_name),
            hook_point: text(&texts.hook_point),
            hook_point_transformer_lens: text(&texts.transformer_lens),
            hook_point_hugging_face: text(&texts.hugging_face),
            hook_point_ggml: text(&texts.ggml),
            hook_point_out: text(&texts.hook_point_out),
            hook_point_out_transformer_lens: text(&texts.transformer_lens_out),
            hook_point_out_hugging_face: text(&texts.hugging_face_out),
            hook_point_out_ggml: text(&texts.ggml_out),
            excluded_positions: match convention.excluded_positions.as_slice() {
                [] => std::ptr::null(),
                positions => positions.as_ptr(),
            },
            n_excluded_positions: convention.excluded_positions.len(),
            context_size: convention.context_size.unwrap_or(0),
            prepend_bos: say(convention.prepend_bos),
            centered_writing_weights: say(convention.centered_writing_weights),
            folded_layer_norm: say(convention.folded_layer_norm),
        }
    }
}

pub(super) fn read_normalization(name: &str, code: i32) -> Result<Normalization> {
    match code {
        SAE_NORMALIZATION_NONE => Ok(Normalization::None),
        SAE_NORMALIZATION_LAYER_NORM => Ok(Normalization::LayerNorm),
        SAE_NORMALIZATION_CONSTANT_NORM => Ok(Normalization::ConstantNorm),
        other => fail!(InvalidArgument, "{name}.normalization: {other} is not known"),
    }
}
