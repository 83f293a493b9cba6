//! A sparse autoencoder inside a model that runs in candle: features of its tensors, and its tensors steered, in candle's own
//! memory, in f32, f16 or bf16. The last dimension is the activation vector, all before it are tokens.
//!
//! Copy this file into your crate, or depend on it by path. On candle's CPU device; tensors elsewhere are refused.
//!
//! ```
//! # fn main() -> candle_core::Result<()> {
//! use candle_core::{DType, Device, Tensor};
//! use sae_candle::Sae;
//!
//! # let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/sae.safetensors");
//! let sae = Sae::load(data, 512, 1)?;
//! let hidden = Tensor::randn(0f32, 1., (1, 7, sae.d()), &Device::Cpu)?; // between two of your model's layers
//! let features = sae.encode(&hidden)?;
//! assert_eq!(features.values.dims(), &[1, 7, 16]);
//!
//! sae.set_edits(0, &[sae_candle::Edit::new(12, sae_candle::EditOp::Add, 4.0)])?;
//! sae.steer(&hidden)?; // in place
//! # Ok(())
//! # }
//! ```

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{CpuStorage, Error, InplaceOp1, Layout, Result, Storage, Tensor};
use sae::backend::{Input, Pool, Run};
use sae::formats::{self, LoadOptions};
use sae::session::{Session, SessionOptions};
pub use sae::steering::{Edit, EditOp};
use sae::tensor;

/// An SAE and the memory to use it. Shared by threads, it serves one after another: give each its own where they meet.
pub struct Sae {
    session: Mutex<Session>,
    d: usize,
    d_out: usize,
    width: usize,
}

/// Sparse features of tokens, as candle's tensors.
#[derive(Clone)]
pub struct Features {
    /// `[..., width]` f32, the strongest first, 0 where unused.
    pub values: Tensor,
    /// `[..., width]` i64, −1 where unused.
    pub indices: Tensor,
    /// `[...]` i64: how many latents are active; −1 if the token is not finite.
    pub counts: Tensor,
    found: Arc<sae::features::Features>,
}

impl Sae {
    /// Loads an SAE, for calls of up to `max_tokens`, with `slots` lists of edits.
    pub fn load(path: impl AsRef<Path>, max_tokens: usize, slots: usize) -> Result<Self> {
        let sae = Arc::new(formats::load(path, &LoadOptions::default()).map_err(Error::wrap)?.sae);
        let pool = Pool::new(0).map_err(Error::wrap)?;
        let options = SessionOptions { max_tokens, slots, pool, ..SessionOptions::default() };
        let session = Session::new(Arc::clone(&sae), options).map_err(Error::wrap)?;
        let (d, d_out, width) = (sae.spec().d_in, sae.spec().d_out, session.limits().max_width);
        Ok(Self { session: Mutex::new(session), d, d_out, width })
    }

    /// Length of the activation vectors.
    pub fn d(&self) -> usize {
        self.d
    }

    /// Features of `x` `[..., d]`.
    pub fn encode(&self, x: &Tensor) -> Result<Features> {
        let tokens = tokens(x.dims())?;
        let rows: usize = tokens.iter().product();
        let mut session = self.session()?;
        let mut found = sae::features::Features::new(rows, self.width, session.sae().spec().row_state_width());
        with_view(x, |x| session.encode(Run::default(), Input::from(x), found.view_mut()).map_err(Error::wrap))?;
        let wide = [tokens, &[self.width]].concat();
        let device = x.device();
        Ok(Features {
            values: Tensor::from_slice(&found.values, wide.as_slice(), device)?,
            indices: Tensor::from_iter(found.indices.iter().map(|&i| i64::from(i)), device)?
                .reshape(wide.as_slice())?,
            counts: Tensor::from_iter(found.counts.iter().map(|&n| i64::from(n)), device)?.reshape(tokens)?,
            found: Arc::new(found),
        })
    }

    /// The activation vectors `[..., d_out]` f32 that features stand for; `x` is the raw input, which models with a skip path need.
    pub fn decode(&self, features: &Features, x: Option<&Tensor>) -> Result<Tensor> {
        let tokens = features.counts.dims();
        let rows = features.found.rows();
        let mut out = vec![0f32; rows * self.d_out];
        let view = tensor::TensorMut::new(&mut out, &[rows, self.d_out]).map_err(Error::wrap)?;
        let mut session = self.session()?;
        let found = features.found.view();
        match x {
            Some(x) => with_view(x, |x| session.decode(Run::default(), found, Some(x), view).map_err(Error::wrap))?,
            None => session.decode(Run::default(), found, None, view).map_err(Error::wrap)?,
        }
        Tensor::from_vec(out, [tokens, &[self.d_out]].concat(), features.values.device())
    }

    /// Replaces the edits of a slot.
    pub fn set_edits(&self, slot: usize, edits: &[Edit]) -> Result<()> {
        self.session()?.set_edits(slot, edits).map_err(Error::wrap)
    }

    /// Steers `x` in place by the edits of slot 0.
    pub fn steer(&self, x: &Tensor) -> Result<()> {
        x.inplace_op1(&Steer { sae: self, row_slot: None })
    }

    /// Steers each token of `x` in place by the edits of its own slot; −1 leaves it alone.
    pub fn steer_rows(&self, x: &Tensor, row_slot: &[i32]) -> Result<()> {
        x.inplace_op1(&Steer { sae: self, row_slot: Some(row_slot) })
    }

    fn session(&self) -> Result<MutexGuard<'_, Session>> {
        self.session.lock().map_err(|_| Error::msg("a thread panicked while it used this SAE"))
    }
}

/// Steering as candle runs it.
struct Steer<'a> {
    sae: &'a Sae,
    row_slot: Option<&'a [i32]>,
}

impl InplaceOp1 for Steer<'_> {
    fn name(&self) -> &'static str {
        "sae-steer"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let rows = Rows::of(layout)?;
        let view = match storage {
            CpuStorage::F32(values) => rows.view_mut(values),
            CpuStorage::F16(values) => rows.view_mut(values),
            CpuStorage::BF16(values) => rows.view_mut(values),
            other => candle_core::bail!(
                "sae-steer: expected f32, f16 or bf16, found {:?}",
                candle_core::backend::BackendStorage::dtype(other)
            ),
        }?;
        let row_slot =
            self.row_slot.map(|slots| tensor::Tensor::new(slots, &[slots.len()])).transpose().map_err(Error::wrap)?;
        self.sae.session()?.steer_in_place(Run::default(), view, row_slot).map_err(Error::wrap)
    }
}

/// Where the rows of a tensor lie in its storage.
struct Rows {
    start: usize,
    rows: usize,
    d: usize,
    stride: usize,
}

impl Rows {
    fn of(layout: &Layout) -> Result<Self> {
        let (dims, strides) = (layout.dims(), layout.stride());
        let (tokens, d) = (tokens(dims)?, dims[dims.len() - 1]);
        let rows: usize = tokens.iter().product();
        // The dimensions of tokens must be one after another, with one step from each token to the next.
        let lengths = tokens.iter().zip(strides).filter(|(n, _)| **n != 1);
        let (mut stride, mut inner) = (None, 1);
        for (&n, &step) in lengths.rev() {
            let first = *stride.get_or_insert(step);
            if rows > 0 && step != first * inner {
                candle_core::bail!(
                    "sae: expected tokens at equal distances, found strides {strides:?} of {dims:?}; call contiguous()"
                );
            }
            inner *= n;
        }
        if rows > 0 && d > 1 && strides[dims.len() - 1] != 1 {
            candle_core::bail!(
                "sae: expected vectors without gaps, found strides {strides:?} of {dims:?}; call contiguous()"
            );
        }
        Ok(Self { start: layout.start_offset(), rows, d, stride: stride.unwrap_or(d) })
    }

    fn span(&self) -> std::ops::Range<usize> {
        let len = if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.d };
        self.start..self.start + len
    }

    fn view<'a, T: tensor::Element>(&self, values: &'a [T]) -> Result<tensor::Tensor<'a>> {
        tensor::Tensor::strided(&values[self.span()], self.rows, self.d, self.stride).map_err(Error::wrap)
    }

    fn view_mut<'a, T: tensor::Element>(&self, values: &'a mut [T]) -> Result<tensor::TensorMut<'a>> {
        tensor::TensorMut::strided(&mut values[self.span()], self.rows, self.d, self.stride).map_err(Error::wrap)
    }
}

/// The dimensions of the tokens.
fn tokens(dims: &[usize]) -> Result<&[usize]> {
    match dims.split_last() {
        Some((_, tokens)) => Ok(tokens),
        None => candle_core::bail!("sae: expected [..., d], found a scalar"),
    }
}

/// Hands a candle tensor over where it lies.
fn with_view<T>(x: &Tensor, body: impl FnOnce(tensor::Tensor<'_>) -> Result<T>) -> Result<T> {
    let (storage, layout) = x.storage_and_layout();
    let rows = Rows::of(layout)?;
    let view = match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => rows.view(values),
        Storage::Cpu(CpuStorage::F16(values)) => rows.view(values),
        Storage::Cpu(CpuStorage::BF16(values)) => rows.view(values),
        Storage::Cpu(_) => candle_core::bail!("sae: expected f32, f16 or bf16, found {:?}", x.dtype()),
        _ => candle_core::bail!(
            "sae: expected a tensor on the CPU, found one on {:?}; call to_device(&Device::Cpu)",
            x.device()
        ),
    };
    body(view?)
}
