//! Atlases: what was seen of each feature.

use std::ffi::c_char;
use std::path::Path;

use super::boundary::{array, boundary, count, present, required_text};
use super::features::sae_features;
use super::handle::{Exclusive, Handle, get, put, take_back};
use super::log::{SAE_LOG_INFO, log};
use super::sized::{self, Output, sized};
use super::status::{sae_error, sae_status};
use super::tensor::{needed, sae_tensor};
use crate::atlas::{Atlas, AtlasOptions, BINS, Context, Observed, WindowKind};
use crate::error::{Result, fail};
use crate::features::{check_host, check_tensor};
use crate::tensor::DType;

/// An atlas watches features flow by and keeps of each latent how often and how strongly it was active, and the texts in which it
/// was: the windows of tokens around its highest peaks, and around activations drawn at random. In one pass, and in memory that is
/// known before. It serves one thread at a time; threads that have an atlas each merge them at the end.
pub struct sae_atlas(Exclusive<Atlas>);

impl Handle for sae_atlas {}

/// What an atlas keeps. `n_latents` must be set; zero is a good default of all others, and where 0 would mean something else, -1 is
/// none. Atlases of the same options merge; `max_width` and `max_documents` may differ.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_atlas_options {
    /// `sizeof(sae_atlas_options)`; `SAE_ATLAS_OPTIONS_INIT` sets it.
    pub struct_size: usize,
    /// Latents.
    pub n_latents: i64,
    /// The index of the first of them, where features come from a shard of latents.
    pub first_latent: i64,
    /// Of what is drawn.
    pub seed: u64,
    /// Windows kept of each latent around its highest peaks: 20 (-1: none).
    pub top: i32,
    /// Windows drawn from each of 10 equal intervals of the latent's activations: 5 (-1: none).
    pub per_interval: i32,
    /// Windows drawn from all tokens on which the latent is active: 10 (-1: none).
    pub random: i32,
    /// Tokens before the peak in top windows: 47 (-1: none).
    pub top_before: i32,
    /// Tokens after it: 16 (-1: none).
    pub top_after: i32,
    /// Tokens before the activation in drawn windows: 23 (-1: none).
    pub drawn_before: i32,
    /// Tokens after it: 8 (-1: none).
    pub drawn_after: i32,
    /// The most slots per token that features come with: 512.
    pub max_width: i32,
    /// Documents whose tokens may come by turns: 64. One more, and that which has waited longest is ended.
    pub max_documents: i32,
    /// 0.
    pub reserved: i32,
}
sized!(sae_atlas_options: n_latents, first_latent, seed, top, per_interval, random, top_before, top_after, drawn_before,
    drawn_after, max_width, max_documents, reserved);

/// Tells the most bytes of memory that an atlas of these options ever takes; nothing is allocated to find out.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_memory(
    options: *const sae_atlas_options,
    bytes: *mut u64,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("bytes", bytes)?;
        // SAFETY: the caller's pointer.
        let options = unsafe { sized::require("options", options)? }.read()?;
        let memory = options.memory().map_err(|e| e.at("options"))?;
        // SAFETY: the caller's place for a number.
        unsafe { bytes.write(memory) };
        Ok(())
    })
}

/// Makes an atlas that has seen nothing yet. It takes its memory now, but for the tokens of open documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_create(
    options: *const sae_atlas_options,
    out: *mut *mut sae_atlas,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's pointer.
        let options = unsafe { sized::require("options", options)? }.read()?;
        let atlas = Atlas::new(&options).map_err(|e| e.at("options"))?;
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_atlas(Exclusive::new(atlas))) };
        Ok(())
    })
}

/// Has the atlas watch T tokens, whose features are in host memory. `tokens` is `[T]`, i32: whatever numbers the host has for them.
/// `documents` are T numbers, or NULL: all are of document 0. Tokens of a document come in order, those of several documents may
/// come by turns, and a document may span calls. `positions` are the T tokens' positions in their documents, or NULL: each follows
/// the last token of its document; windows do not reach across a gap. Tokens of count -1, or with a feature that is not finite, are
/// counted apart. If the call is refused, none of the tokens was seen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_observe(
    atlas: *const sae_atlas,
    features: *const sae_features,
    tokens: *const sae_tensor,
    documents: *const i64,
    positions: *const i64,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (atlas, features, tokens) = unsafe {
            let why = "an atlas reads the host's memory; copy the features there first";
            let features =
                sae_features::read("features", features, &|name, tensor| check_host(&name.to_string(), tensor, why))?;
            (get("atlas", atlas)?, features, needed("tokens", tokens)?.read("tokens")?)
        };
        let rows = features.rows();
        check_tensor("tokens", &tokens, &[rows], |dtype| dtype == DType::I32, "i32")?;
        check_host("tokens", &tokens, "an atlas reads the host's memory; copy the tokens there first")?;
        // SAFETY: a dense row of so many numbers on the host, as was just checked, by the caller's promise readable; so are T
        // documents and positions.
        let (tokens, documents, positions) = unsafe {
            let optional = |name, numbers: *const i64| match numbers.is_null() {
                true => Ok(None),
                false => array(name, numbers, rows).map(Some),
            };
            let tokens = array("tokens", tokens.as_ptr().cast::<i32>(), rows)?;
            (tokens, optional("documents", documents)?, optional("positions", positions)?)
        };
        atlas.0.enter("atlas")?.observe(&Observed { features, tokens, documents, positions })
    })
}

/// Ends all documents: the last tokens of open ones, which were held back because windows reach beyond them, are counted too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_finish(atlas: *const sae_atlas, error: *mut *mut sae_error) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's handle.
        unsafe { get("atlas", atlas)? }.0.enter("atlas")?.finish();
        Ok(())
    })
}

/// Adds what `other` has seen, which stays as it is. Documents of both are ended; no document may be in both. The result is that
/// of one atlas that has seen everything, but for the rounding of sums.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_merge(
    atlas: *const sae_atlas,
    other: *const sae_atlas,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's handles.
        let (atlas, other) = unsafe { (get("atlas", atlas)?, get("other", other)?) };
        if std::ptr::eq(atlas, other) {
            return fail!(InvalidArgument, "other: is the atlas itself");
        }
        let (mut atlas, mut other) = (atlas.0.enter("atlas")?, other.0.enter("other")?);
        atlas.merge(&mut other)
    })
}

/// Saves the atlas into a file that appears whole or not at all. All documents are ended before. The same atlas has the same bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_save(
    atlas: *const sae_atlas,
    path: *const c_char,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (atlas, path) = unsafe { (get("atlas", atlas)?, required_text("path", path)?) };
        atlas.0.enter("atlas")?.save(Path::new(path))?;
        log(SAE_LOG_INFO, || format!("{path}: atlas saved"));
        Ok(())
    })
}

/// Loads an atlas that was saved; what it sees from then on is added. It is refused if it takes more than `max_bytes` of memory, 0:
/// 8 GiB.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_load(
    path: *const c_char,
    max_bytes: u64,
    out: *mut *mut sae_atlas,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's text.
        let atlas = Atlas::load(Path::new(unsafe { required_text("path", path)? }), max_bytes)?;
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_atlas(Exclusive::new(atlas))) };
        Ok(())
    })
}

/// What an atlas is, and has seen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_atlas_info {
    /// `sizeof(sae_atlas_info)`; `SAE_ATLAS_INFO_INIT` sets it.
    pub struct_size: usize,
    /// Latents.
    pub n_latents: i64,
    /// The index of the first of them.
    pub first_latent: i64,
    /// Tokens seen.
    pub tokens: u64,
    /// Tokens of them whose features were not counted, because they were not finite.
    pub not_finite: u64,
    /// Tokens on which more latents were active than were listed; only those were counted.
    pub cut: u64,
    /// Stretches of consecutive tokens; with documents that come whole, documents.
    pub stretches: u64,
    /// The most tokens that a window has.
    pub max_window: i64,
}
sized!(sae_atlas_info: n_latents, first_latent, tokens, not_finite, cut, stretches, max_window);

/// Tells what an atlas is, and has seen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_get(
    atlas: *const sae_atlas,
    out: *mut sae_atlas_info,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (atlas, out) = unsafe { (get("atlas", atlas)?, Output::new("out", out)?) };
        let atlas = atlas.0.enter("atlas")?;
        let (options, totals) = (atlas.options(), atlas.totals());
        out.write(&sae_atlas_info {
            struct_size: 0,
            n_latents: options.n_latents as i64,
            first_latent: options.first_latent as i64,
            tokens: totals.tokens,
            not_finite: totals.not_finite,
            cut: totals.cut,
            stretches: totals.stretches,
            max_window: options.top_context.width().max(options.drawn_context.width()) as i64,
        });
        Ok(())
    })
}

/// Bins of a histogram.
pub const SAE_ATLAS_BINS: usize = 64;
const _: () = assert!(SAE_ATLAS_BINS == 64 && SAE_ATLAS_BINS == BINS);

/// The numbers of a latent, but for the last tokens of open documents. With N tokens seen, `E[aⁿ]` is Σaⁿ / N, the skew
/// `E[a³] / E[a²]^1.5`, and the kurtosis `E[a⁴] / E[a²]²`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_atlas_feature {
    /// `sizeof(sae_atlas_feature)`; `SAE_ATLAS_FEATURE_INIT` sets it.
    pub struct_size: usize,
    /// Tokens on which it is active.
    pub count: u64,
    /// Σa, Σa², Σa³, Σa⁴ over them.
    pub sums: [f64; 4],
    /// Its largest activation; 0 if it is never active.
    pub max: f32,
    /// Its smallest.
    pub min: f32,
    /// Windows around its highest peaks.
    pub n_top: i32,
    /// Windows drawn from intervals.
    pub n_intervals: i32,
    /// Windows drawn from all.
    pub n_random: i32,
    /// Bins of the histogram in use: those with something in them, from the lowest on.
    pub n_bins: i32,
    /// Activations smaller than the lowest bin that could be kept.
    pub below: u64,
    /// Where bins begin, by |a|. Four bins are an octave.
    pub bin_from: [f32; 64],
    /// Where bins end.
    pub bin_to: [f32; 64],
    /// How many |a| lie in each.
    pub bin_count: [u64; 64],
}
sized!(sae_atlas_feature: count, sums, max, min, n_top, n_intervals, n_random, n_bins, below, bin_from, bin_to, bin_count);

/// Tells the numbers of a latent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_read(
    atlas: *const sae_atlas,
    latent: i64,
    out: *mut sae_atlas_feature,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (atlas, out) = unsafe { (get("atlas", atlas)?, Output::new("out", out)?) };
        let (atlas, latent) = (atlas.0.enter("atlas")?, count("latent", latent)?);
        let feature = atlas.feature(latent)?;
        let windows = |kind| atlas.n_windows(latent, kind).map(|n| n as i32);
        let mut told = sae_atlas_feature {
            struct_size: 0,
            count: feature.count,
            sums: feature.sums,
            max: feature.max,
            min: feature.min,
            n_top: windows(WindowKind::Top)?,
            n_intervals: windows(WindowKind::Intervals)?,
            n_random: windows(WindowKind::Random)?,
            n_bins: feature.histogram.len() as i32,
            below: feature.below,
            bin_from: [0.0; SAE_ATLAS_BINS],
            bin_to: [0.0; SAE_ATLAS_BINS],
            bin_count: [0; SAE_ATLAS_BINS],
        };
        for (i, bin) in feature.histogram.iter().enumerate() {
            (told.bin_from[i], told.bin_to[i], told.bin_count[i]) = (bin.from, bin.to, bin.count);
        }
        out.write(&told);
        Ok(())
    })
}

/// Windows around the highest peaks, the highest first.
pub const SAE_WINDOWS_TOP: i32 = 0;
/// Windows drawn from intervals, the highest interval first.
pub const SAE_WINDOWS_INTERVALS: i32 = 1;
/// Windows drawn from all activations.
pub const SAE_WINDOWS_RANDOM: i32 = 2;

/// A window: tokens around an activation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_atlas_window {
    /// `sizeof(sae_atlas_window)`; `SAE_ATLAS_WINDOW_INIT` sets it.
    pub struct_size: usize,
    /// The document.
    pub document: i64,
    /// The position of the activation in the document.
    pub position: i64,
    /// The activation.
    pub value: f32,
    /// Which of the window's tokens it is on.
    pub at: i32,
    /// Tokens of the window.
    pub length: i32,
    /// In which of 10 equal parts of 0 to the power of two above the latent's largest |a| it lies.
    pub interval: i32,
}
sized!(sae_atlas_window: document, position, value, at, length, interval);

/// Gives a window of a latent, the `index`th of its kind: what it is, and, each unless NULL, its tokens and the latent's activations
/// on them (as bf16 holds them), into room for `max_window` numbers each, of which `length` are written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_read_window(
    atlas: *const sae_atlas,
    latent: i64,
    kind: i32,
    index: i64,
    out: *mut sae_atlas_window,
    tokens: *mut i32,
    activations: *mut f32,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (atlas, out) = unsafe { (get("atlas", atlas)?, Output::new("out", out)?) };
        let atlas = atlas.0.enter("atlas")?;
        let kind = match kind {
            SAE_WINDOWS_TOP => WindowKind::Top,
            SAE_WINDOWS_INTERVALS => WindowKind::Intervals,
            SAE_WINDOWS_RANDOM => WindowKind::Random,
            _ => return fail!(InvalidArgument, "kind: {kind} is not one of SAE_WINDOWS_…"),
        };
        let windows = atlas.windows(count("latent", latent)?, kind)?;
        let Some(window) = windows.get(count("index", index)?) else {
            return fail!(InvalidArgument, "index: {index} is not one of the latent's {} windows", windows.len());
        };
        // SAFETY: the caller's room, for more numbers than any window has.
        unsafe {
            let tokens = room("tokens", tokens, window.tokens.len())?;
            let activations = room("activations", activations, window.tokens.len())?;
            tokens.copy_from_slice(&window.tokens[..tokens.len()]);
            activations.copy_from_slice(&window.activations[..activations.len()]);
        }
        out.write(&sae_atlas_window {
            struct_size: 0,
            document: window.document,
            position: window.position as i64,
            value: window.value,
            at: window.at as i32,
            length: window.tokens.len() as i32,
            interval: window.interval as i32,
        });
        Ok(())
    })
}

/// Frees an atlas; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_atlas_free(atlas: *mut sae_atlas) {
    // SAFETY: the caller's handle, which it gives up.
    unsafe { take_back(atlas) };
}

/// Room for `len` numbers; none if the pointer is NULL.
///
/// # Safety
/// A pointer that is neither null nor misaligned must point to so many numbers, which nobody else uses for `'a`.
unsafe fn room<'a, T>(name: &str, pointer: *mut T, len: usize) -> Result<&'a mut [T]> {
    if pointer.is_null() {
        return Ok(&mut []);
    }
    present(name, pointer)?;
    // SAFETY: not null and aligned, as just checked; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, len) })
}

impl sae_atlas_options {
    fn read(&self) -> Result<AtlasOptions> {
        if self.reserved != 0 {
            return fail!(InvalidArgument, "options.reserved: {} is not known; leave it 0", self.reserved);
        }
        let defaults = AtlasOptions::default();
        let chosen = |name: &str, value: i32, default: usize| match value {
            0 => Ok(default),
            -1 => Ok(0),
            _ => count(&format!("options.{name}"), value.into()),
        };
        let context = |[before, after]: [(&str, i32); 2], default: Context| -> Result<Context> {
            Ok(Context {
                before: chosen(before.0, before.1, default.before)?,
                after: chosen(after.0, after.1, default.after)?,
            })
        };
        Ok(AtlasOptions {
            n_latents: count("options.n_latents", self.n_latents)?,
            first_latent: count("options.first_latent", self.first_latent)?,
            top: chosen("top", self.top, defaults.top)?,
            per_interval: chosen("per_interval", self.per_interval, defaults.per_interval)?,
            random: chosen("random", self.random, defaults.random)?,
            top_context: context(
                [("top_before", self.top_before), ("top_after", self.top_after)],
                defaults.top_context,
            )?,
            drawn_context: context(
                [("drawn_before", self.drawn_before), ("drawn_after", self.drawn_after)],
                defaults.drawn_context,
            )?,
            max_width: chosen("max_width", self.max_width, defaults.max_width)?,
            max_documents: chosen("max_documents", self.max_documents, defaults.max_documents)?,
            seed: self.seed,
        })
    }
}
