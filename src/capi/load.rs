//! How to load.

use std::ffi::{c_char, c_void};

use super::boundary::{check_flags, count, text};
use super::convention::{read_say, sae_convention};
use super::model::{SAE_NORMALIZATION_NONE, read_normalization};
use super::sized::{self, sized};
use super::tensor::{sae_device, sae_dtype};
use crate::error::{Result, fail};
use crate::formats::{LoadOptions, Selection};

/// Leave the matrices in the file and page them in as they are read. The file must then not change while the model lives.
pub const SAE_LOAD_MAP: u32 = 1;
/// `sae_model_from_weights` uses the caller's matrices where they are, instead of copying them.
pub const SAE_LOAD_BORROW: u32 = 2;
/// Subtract each token's mean, and add it back after decoding: for SAEs of models whose writing weights were centred
/// (`sae_info.centered_writing_weights`), fed by an engine that does not do that.
pub const SAE_LOAD_CENTER: u32 = 4;

/// Active latents are chosen as the files say.
pub const SAE_SELECTION_STORED: i32 = 0;
/// The k largest are active.
pub const SAE_SELECTION_TOP_K: i32 = 1;
/// Those above the threshold are active.
pub const SAE_SELECTION_THRESHOLD: i32 = 2;

/// Tells the owner of borrowed memory that nobody uses it any more. May come on any thread.
pub type sae_release = Option<unsafe extern "C" fn(context: *mut c_void)>;

/// How to load. NULL or all zero: everything as the file has it, copied into memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_load_options {
    /// `sizeof(sae_load_options)`; `SAE_LOAD_OPTIONS_INIT` sets it.
    pub struct_size: usize,
    /// The format's name, to skip recognition; `sae_format_name` lists them.
    pub format: *const c_char,
    /// Which model, where the path holds several: the name of a file, with or without its extension, or of a directory.
    pub member: *const c_char,
    /// What the file does not say, or says wrongly: each field that is set replaces the file's.
    pub convention: *const sae_convention,
    /// Load these of the stored latents alone; they keep their indices. For hosts that shard latents over devices.
    pub first_latent: i64,
    /// How many from `first_latent` on; 0: all.
    pub n_latents: i64,
    /// Load so many of the first latents alone, as a model of their own (Matryoshka: `sae_info.prefixes`); 0: all.
    pub prefix: i64,
    /// How many latents are kept per token, for files that do not say it, or to use another number; 0: the file's.
    pub k: i64,
    /// With `SAE_LOAD_BORROW`: called once, when the last user of the matrices is gone. Never if the call fails.
    pub release: sae_release,
    /// Handed to `release`.
    pub release_context: *mut c_void,
    /// Where the model shall live; zero: the CPU. On an NVIDIA GPU (`SAE_DEVICE_CUDA`) its weights are copied there, and the
    /// host keeps them too. Where there is none that serves: `SAE_ERROR_NO_DEVICE`, with the reason.
    pub device: sae_device,
    /// The type to keep matrices in, f32, f16 or bf16; zero: as stored. Vectors are always f32.
    pub dtype: sae_dtype,
    /// `SAE_LOAD_…`.
    pub flags: u32,
    /// The factor by which training multiplied activations, for files that say that there was one but not which; it
    /// is folded into the weights. 0: none.
    pub activation_scale: f32,
    /// `SAE_SELECTION_…`, for files that hold both a k and a threshold.
    pub selection: i32,
    /// Whether b_dec is subtracted from the input, for files that do not say it, or to decide otherwise: `SAE_YES`,
    /// `SAE_NO`, `SAE_UNKNOWN`.
    pub subtract_b_dec: i32,
    /// `SAE_NORMALIZATION_…`, for files that do not say what is done to each token before encoding; 0: as the file says.
    pub normalization: i32,
}
sized!(sae_load_options: format, member, convention, first_latent, n_latents, prefix, k, release, release_context, device, dtype,
    flags, activation_scale, selection, subtract_b_dec, normalization);

/// Load options, understood.
#[derive(Default)]
pub(super) struct LoadChoice {
    pub(super) load: LoadOptions,
    /// Whether the caller's matrices are used where they are, and what to call when they are not any more.
    pub(super) borrow: Option<(sae_release, *mut c_void)>,
    /// The number of the GPU that the model shall live on.
    pub(super) gpu: Option<i32>,
}

impl LoadChoice {
    /// The options behind a pointer; NULL: the defaults.
    ///
    /// # Safety
    /// What it points to must be so.
    pub(super) unsafe fn read(pointer: *const sae_load_options) -> Result<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            let Some(given) = sized::read("options", pointer)? else { return Ok(Self::default()) };
            check_flags("options.flags", given.flags, SAE_LOAD_MAP | SAE_LOAD_BORROW | SAE_LOAD_CENTER)?;
            let gpu = given.device.choose("options")?;
            let (first, n) =
                (count("options.first_latent", given.first_latent)?, count("options.n_latents", given.n_latents)?);
            if first > 0 && n == 0 {
                return fail!(InvalidArgument, "options.n_latents: is 0, but first_latent is {first}; say how many");
            }
            let borrow = given.flags & SAE_LOAD_BORROW != 0;
            if !borrow && given.release.is_some() {
                return fail!(InvalidArgument, "options.release: is set, but SAE_LOAD_BORROW is not");
            }
            let (prefix, k) = (count("options.prefix", given.prefix)?, count("options.k", given.k)?);
            let load = LoadOptions {
                format: text("options.format", given.format)?.map(str::to_owned),
                member: text("options.member", given.member)?.map(str::to_owned),
                dtype: given.dtype.choose("options")?,
                map: given.flags & SAE_LOAD_MAP != 0,
                latents: (n > 0).then_some((first, n)),
                prefix: (prefix > 0).then_some(prefix),
                k: (k > 0).then_some(k),
                selection: match given.selection {
                    SAE_SELECTION_STORED => None,
                    SAE_SELECTION_TOP_K => Some(Selection::TopK),
                    SAE_SELECTION_THRESHOLD => Some(Selection::Threshold),
                    other => return fail!(InvalidArgument, "options.selection: {other} is not known"),
                },
                subtract_b_dec: read_say("options.subtract_b_dec", given.subtract_b_dec)?,
                normalization: match given.normalization {
                    SAE_NORMALIZATION_NONE => None,
                    code => Some(read_normalization("options", code)?),
                },
                center: given.flags & SAE_LOAD_CENTER != 0,
                activation_scale: (given.activation_scale != 0.0).then_some(given.activation_scale),
                convention: sae_convention::read("options.convention", given.convention)?,
            };
            Ok(Self { load, borrow: borrow.then_some((given.release, given.release_context)), gpu })
        }
    }

    /// Refuses what is for files alone.
    pub(super) fn refuse_files(&self) -> Result<()> {
        let load = &self.load;
        for (given, name) in [
            (load.format.is_some(), "format"),
            (load.member.is_some(), "member"),
            (load.map, "SAE_LOAD_MAP"),
            (load.center, "SAE_LOAD_CENTER"),
            (load.prefix.is_some(), "prefix"),
            (load.k.is_some(), "k"),
            (load.selection.is_some(), "selection"),
            (load.subtract_b_dec.is_some(), "subtract_b_dec"),
            (load.normalization.is_some(), "normalization"),
            (load.activation_scale.is_some(), "activation_scale"),
        ] {
            if given {
                return fail!(
                    InvalidArgument,
                    "options: {name} is for files; what weights in memory are is said by desc"
                );
            }
        }
        Ok(())
    }

    /// Refuses what is for weights in memory alone.
    pub(super) fn refuse_borrow(&self) -> Result<()> {
        match self.borrow {
            None => Ok(()),
            Some(_) => fail!(
                InvalidArgument,
                "options.flags: SAE_LOAD_BORROW is for weights in memory; SAE_LOAD_MAP maps a file"
            ),
        }
    }
}
