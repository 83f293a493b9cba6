//! The native format: one safetensors file, laid out as it is computed with, so that it can be mapped.
//!
//! `__metadata__` holds one entry, `libsae`, whose text is JSON:
//!
//! ```json
//! {"version": 1, "spec": {
//!   "architecture": {"name": "top_k", "k": 32},
//!   "d_in": 768, "d_out": 768, "n_latents": 32768, "first_latent": 0, "shard_of": 0,
//!   "normalization": "layer_norm", "denormalize_output": true,
//!   "subtract_b_dec": true, "rescale_by_decoder_norm": false,
//!   "convention": {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_post",
//!                  "prepend_bos": true, "context_size": 64, "excluded_positions": [0],
//!                  "centered_writing_weights": true, "folded_layer_norm": false}}}
//! ```
//!
//! | field of `spec` | meaning |
//! |---|---|
//! | `architecture` | `{"name": "top_k", "k": …}`, `{"name": "relu"}` or `{"name": "jump_relu"}` |
//! | `d_in`, `d_out` | widths of input and output |
//! | `n_latents` | latents in this file |
//! | `first_latent` | global index of the first of them; 0 if absent |
//! | `shard_of` | latents of the whole SAE, if this is a shard of one; 0 or absent if it is whole |
//! | `normalization` | `none` (if absent), `layer_norm` or `constant_norm` |
//! | `denormalize_output` | whether decoding undoes the normalisation |
//! | `subtract_b_dec` | whether `b_dec` is subtracted from the input |
//! | `rescale_by_decoder_norm` | whether pre-activations are multiplied by `‖W_dec[i]‖`; false if absent |
//! | `convention` | what the inputs must look like, as in [`Convention`](crate::sae::Convention); unknown fields absent |
//!
//! | tensor | shape | type |
//! |---|---|---|
//! | `W_enc` | `[n_latents, d_in]` | f32, f16 or bf16 |
//! | `W_dec` | `[n_latents, d_out]` | f32, f16 or bf16 |
//! | `W_skip` | `[d_out, d_in]`, only with a skip path | f32, f16 or bf16 |
//! | `b_enc` | `[n_latents]` | f32 |
//! | `b_dec` | `[d_out]` | f32 |
//! | `threshold` | `[n_latents]`, only for `jump_relu` | f32 |
//! | `padding.0`, `padding.1`, … | bytes that align the next tensor | u8 |
//!
//! Matrices are row-major and come first; every tensor starts at a multiple of 64 bytes of the file. A reader needs only
//! element alignment, so a file rewritten by other safetensors libraries still loads. Files of a newer version, and
//! fields or tensors that are not in these tables, are refused.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::draft::{Draft, Vector};
use super::source::Source;
use super::stored::{StoredMatrix, misfit};
use super::{Format, LoadOptions, SaveOptions};
use crate::atomic;
use crate::error::{Error, Result, Status, fail};
use crate::sae::{Architecture, Matrix, Sae, Spec};
use crate::tensor::{AlignedBytes, DType};

pub(super) const FORMAT: Format = Format { name: "native", title: "libsae's own", recognise, read };

/// The entry of `__metadata__`.
const KEY: &str = "libsae";
/// The version this library writes, and the only one there has been.
const VERSION: u64 = 1;
/// Rows are converted and written about this many bytes at a time.
const BLOCK: usize = 1 << 20;

/// The text of the entry, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    version: u64,
    spec: Spec,
}

fn recognise(source: &Source) -> bool {
    source.safetensors().any(|file| file.metadata.contains_key(KEY))
}

fn read(source: &Source, options: &LoadOptions) -> Result<Draft> {
    let mut files = source.safetensors().filter(|file| file.metadata.contains_key(KEY));
    let Some(file) = files.next() else {
        source.first_fault()?;
        return fail!(Format, "no safetensors file with {KEY:?} in its metadata");
    };
    if let Some(other) = files.next() {
        let (a, b) = (file.file().name(), other.file().name());
        return fail!(InvalidArgument, "the directory holds several SAEs ({a}, {b}); name the file to load");
    }
    if options.activation_scale.is_some() {
        return fail!(InvalidArgument, "activation_scale: this file's weights have no scale left open");
    }
    let spec = read_spec(&file.metadata[KEY]).map_err(|e| file.file().err(e))?;
    let known = ["W_enc", "W_dec", "W_skip", "b_enc", "b_dec", "threshold"];
    if let Some(name) = file.names().find(|name| !known.contains(name) && !name.starts_with("padding.")) {
        return Err(file.file().err(Error::new(Status::Unsupported, format!("unknown tensor {name}"))));
    }
    let Spec { n_latents: n, d_in, d_out, .. } = spec;
    let matrix = |name, rows, cols| StoredMatrix::new(file.get(name)?.expect(&[rows, cols])?);
    let vector = |name, len| -> Result<Vector> { Ok(Vector::stored(file.get(name)?.expect(&[len])?)) };
    let thresholded = spec.architecture == Architecture::JumpRelu || file.has("threshold");
    Ok(Draft {
        w_enc: matrix("W_enc", n, d_in)?,
        b_enc: vector("b_enc", n)?,
        w_dec: matrix("W_dec", n, d_out)?,
        b_dec: vector("b_dec", d_out)?,
        threshold: if thresholded { Some(vector("threshold", n)?) } else { None },
        w_skip: if file.has("W_skip") { Some(matrix("W_skip", d_out, d_in)?) } else { None },
        spec,
        notes: Vec::new(),
    })
}

fn read_spec(text: &str) -> Result<Spec> {
    let broken = |e: &dyn Display| Error::new(Status::Format, format!("metadata {KEY:?}: {e}"));
    // Before all else: a newer version may have any fields.
    let value: Value = serde_json::from_str(text).map_err(|e| broken(&e))?;
    match value["version"].as_u64() {
        Some(VERSION) => {}
        Some(newer) => {
            return fail!(Unsupported, "native format version {newer}; this library reads version {VERSION}");
        }
        None => return Err(broken(&"version: expected a whole number")),
    }
    let Entry { spec, .. } = serde_json::from_value(value).map_err(|e| broken(&e))?;
    spec.check().map_err(|e| broken(&e))?;
    Ok(spec)
}

/// What is written of one tensor.
enum Data<'a> {
    Matrix(&'a Matrix, DType),
    Vector(&'a [f32]),
    Padding(usize),
}

impl Data<'_> {
    fn info(&self, start: usize) -> TensorInfo {
        let (dtype, shape, size) = match *self {
            Data::Matrix(m, dtype) => (dtype, vec![m.rows(), m.cols()], m.rows() * m.cols() * dtype.size()),
            Data::Vector(v) => (DType::F32, vec![v.len()], 4 * v.len()),
            Data::Padding(len) => {
                return TensorInfo { dtype: Dtype::U8, shape: vec![len], data_offsets: (start, start + len) };
            }
        };
        let dtype = match dtype {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        TensorInfo { dtype, shape, data_offsets: (start, start + size) }
    }

    /// Writes it; `rescales`: activations will be divided by the rows' norms.
    fn write(&self, name: &str, rescales: bool, out: &mut dyn Write) -> Result<()> {
        match *self {
            Data::Vector(v) => out.write_all(bytemuck::cast_slice(v))?,
            Data::Padding(len) => out.write_all(&vec![0; len])?,
            Data::Matrix(m, dtype) if m.dtype() == dtype => out.write_all(m.bytes())?,
            Data::Matrix(m, dtype) => {
                let rows = (BLOCK / (4 * m.cols())).clamp(1, m.rows());
                for first in (0..m.rows()).step_by(rows) {
                    let count = rows.min(m.rows() - first);
                    let strip = m.slice_rows(first, count)?;
                    let rounded = strip.to_dtype(dtype)?;
                    check_rounded(name, first, &strip, &rounded, rescales)?;
                    out.write_all(rounded.bytes())?;
                }
            }
        }
        Ok(())
    }
}

/// Refuses a strip, of the rows from `first` on, that would not load again: rounded, it must still be weights.
fn check_rounded(name: &str, first: usize, strip: &Matrix, rounded: &Matrix, rescales: bool) -> Result<()> {
    let dtype = rounded.dtype();
    if let Some((row, col)) = rounded.first_non_finite() {
        let value = strip.row_f32(row, &mut vec![0.0; strip.cols()])[col];
        return Err(misfit(format_args!("{name}[{}, {col}]", first + row), value.into(), dtype));
    }
    let norms = if rescales { rounded.row_norms() } else { Vec::new() };
    if let Some(i) = norms.iter().position(|&norm| norm == 0.0 || !norm.is_finite()) {
        let (row, norm) = (first + i, norms[i]);
        return fail!(NotFinite, "{name} row {row} has norm {norm} in {dtype}, by which activations cannot be divided");
    }
    Ok(())
}

pub(super) fn save(sae: &Sae, path: &Path, options: &SaveOptions) -> Result<()> {
    if let Some(dtype) = options.dtype
        && !dtype.is_float()
    {
        return fail!(InvalidArgument, "dtype: weights are written in f32, f16 or bf16, not {dtype}");
    }
    let w = sae.weights();
    let matrix = |m| Data::Matrix(m, options.dtype.unwrap_or(Matrix::dtype(m)));
    let tensors = [
        ("W_enc", Some(matrix(&w.w_enc))),
        ("W_dec", Some(matrix(&w.w_dec))),
        ("W_skip", w.w_skip.as_ref().map(matrix)),
        ("b_enc", Some(Data::Vector(&w.b_enc))),
        ("b_dec", Some(Data::Vector(&w.b_dec))),
        ("threshold", w.threshold.as_deref().map(Data::Vector)),
    ];
    let tensors = padded(tensors.into_iter().filter_map(|(name, data)| Some((name.to_owned(), data?))));
    let header = header(sae.spec(), &tensors)?;
    atomic::write(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let rescales = |name: &str| name == "W_dec" && sae.spec().rescale_by_decoder_norm;
        tensors.iter().try_for_each(|(name, data)| data.write(name, rescales(name), out))
    })
}

/// Puts padding where the next tensor would not start at a multiple of 64: safetensors files must not have holes.
fn padded<'a>(tensors: impl Iterator<Item = (String, Data<'a>)>) -> Vec<(String, Data<'a>)> {
    let mut out: Vec<(String, Data<'a>)> = Vec::new();
    let (mut end, mut paddings) = (0, 0);
    for (name, data) in tensors {
        let gap = usize::next_multiple_of(end, AlignedBytes::ALIGN) - end;
        if gap > 0 {
            out.push((format!("padding.{paddings}"), Data::Padding(gap)));
            paddings += 1;
        }
        end = data.info(end + gap).data_offsets.1;
        out.push((name, data));
    }
    out
}

/// The JSON header, filled with spaces so that the bytes after it start at a multiple of 64.
fn header(spec: &Spec, tensors: &[(String, Data<'_>)]) -> Result<Vec<u8>> {
    let internal = |e: &dyn Display| Error::new(Status::Internal, format!("the header cannot be written: {e}"));
    let mut end = 0;
    let infos = tensors.iter().map(|(name, data)| {
        let info = data.info(end);
        end = info.data_offsets.1;
        (name.clone(), info)
    });
    let entry = Entry { version: VERSION, spec: spec.clone() };
    let entry = serde_json::to_string(&entry).map_err(|e| internal(&e))?;
    let metadata = Some([(KEY.to_owned(), entry)].into());
    let metadata = Metadata::new(metadata, infos.collect()).map_err(|e| internal(&e))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| internal(&e))?;
    let whole = (8 + header.len()).next_multiple_of(AlignedBytes::ALIGN);
    header.resize(whole - 8, b' ');
    Ok(header)
}
