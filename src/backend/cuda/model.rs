//! An SAE's weights in a device's memory, shared by all sessions over it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::driver::{Block, Driver, Inside, OwnStream, Shape};
use super::launch::{dtype, launch};
use super::nvidia::NvidiaDriver;
use super::params::{self, Bound, BoundsParams, DevicePtr, Latents, selection};
use crate::error::Result;
use crate::sae::{Architecture, Matrix, Sae, Spec};
use crate::tensor::{AlignedBytes, DType, Device, DeviceKind};

/// Where arrays start: what the driver aligns to anyway.
const ALIGN: usize = 256;
/// Rows that tensor cores read start at multiples of so many elements.
const STEP: usize = 8;

/// An SAE on a device. The host keeps its weights too: to be read, saved and made into other SAEs.
pub struct CudaModel {
    sae: Arc<Sae>,
    driver: Arc<dyn Driver>,
    /// One block for all weights, and where they are in it.
    _memory: Block,
    arrays: Arrays,
    /// What bounds scores, while anybody uses it.
    screen: Mutex<Weak<Screen>>,
}

/// Where the weights are.
struct Arrays {
    w_enc: params::Matrix,
    w_dec: params::Matrix,
    w_glu: Option<params::Matrix>,
    w_skip: Option<params::Matrix>,
    b_enc: DevicePtr,
    b_dec: DevicePtr,
    threshold: DevicePtr,
    gain: DevicePtr,
    b_gate: DevicePtr,
    b_glu: DevicePtr,
    norms: DevicePtr,
    zeros: DevicePtr,
}

/// W_enc in bf16, and how far scores can be from what it gives.
pub(super) struct Screen {
    /// The rounded W_enc; empty if W_enc is bf16 as it is.
    rounded: Block,
    bounds: Block,
    peaks: Block,
}

/// What kernels are told of a [`Screen`].
#[derive(Clone, Copy)]
pub(super) struct Screened {
    pub w: DevicePtr,
    pub stride: usize,
    pub bounds: DevicePtr,
    pub peaks: DevicePtr,
}

impl CudaModel {
    /// Copies an SAE to the GPU of a number.
    pub fn new(sae: Arc<Sae>, ordinal: i32) -> Result<Arc<Self>> {
        Self::on(sae, NvidiaDriver::open(ordinal)?)
    }

    /// Copies an SAE to a device.
    pub fn on(sae: Arc<Sae>, driver: Arc<dyn Driver>) -> Result<Arc<Self>> {
        let mut size = 0;
        lay_out(&sae, &mut |_, bytes| {
            size += bytes.next_multiple_of(ALIGN);
            Ok(DevicePtr::NULL)
        })?;
        let mut memory = Block::new(&driver, size)?;
        let mut used = 0;
        let arrays = lay_out(&sae, &mut |source, bytes| {
            let start = used;
            used += bytes.next_multiple_of(ALIGN);
            source.write(&mut memory, start)?;
            Ok(DevicePtr(memory.at().0 + start as u64))
        })?;
        Ok(Arc::new(Self { sae, driver, _memory: memory, arrays, screen: Mutex::default() }))
    }

    /// Bytes of the device's memory that [`Self::new`] takes.
    pub fn memory(sae: &Sae) -> usize {
        let mut size = 0;
        let sum = lay_out(sae, &mut |_, bytes| {
            size += bytes.next_multiple_of(ALIGN);
            Ok(DevicePtr::NULL)
        });
        sum.expect("nothing is copied");
        size
    }

    /// The SAE.
    pub fn sae(&self) -> &Arc<Sae> {
        &self.sae
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        Device { kind: DeviceKind::Cuda, id: self.driver.facts().ordinal }
    }

    /// Who does what is asked of the device.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// The encoding half; see `Encoder::of` of the CPU.
    pub(super) fn latents(&self) -> Latents {
        let (spec, a) = (self.sae.spec(), &self.arrays);
        let when = |flag: bool, array| if flag { array } else { DevicePtr::NULL };
        let (selection, k, group) = match spec.architecture {
            Architecture::Relu | Architecture::JumpRelu | Architecture::Gated => (selection::ALL, 0, 1),
            Architecture::TopK { k } => (selection::TOP_K, k, 1),
            Architecture::AbsTopK { k } => (selection::ABS_TOP_K, k, 1),
            Architecture::GroupMax { k } => (selection::GROUP_MAX, k, spec.whole_latents() / k),
        };
        let has_threshold = spec.architecture == Architecture::JumpRelu;
        Latents {
            w_enc: a.w_enc,
            w_glu: a.w_glu.unwrap_or_default(),
            b_enc: a.b_enc,
            gain: a.gain,
            b_gate: a.b_gate,
            b_glu: a.b_glu,
            scale: when(spec.rescale_by_decoder_norm, a.norms),
            threshold: a.threshold,
            threshold_scale: when(spec.select_by_decoder_norm && has_threshold, a.norms),
            rank_scale: when(spec.select_by_decoder_norm && spec.architecture.latents_compete(), a.norms),
            n: spec.n_latents as i32,
            d: spec.d_in as i32,
            first: spec.first_latent as i32,
            selection,
            k: k.min(i32::MAX as usize) as i32,
            group: group as i32,
        }
    }

    /// The skip path as an encoder whose dot products are wanted.
    pub(super) fn skip(&self) -> Option<Latents> {
        let Spec { d_in, d_out, .. } = *self.sae.spec();
        let w_enc = self.arrays.w_skip?;
        Some(Latents {
            w_enc,
            b_enc: self.arrays.zeros,
            n: d_out as i32,
            d: d_in as i32,
            group: 1,
            ..Latents::default()
        })
    }

    pub(super) fn w_dec(&self) -> params::Matrix {
        self.arrays.w_dec
    }

    pub(super) fn b_dec(&self) -> DevicePtr {
        self.arrays.b_dec
    }

    /// What values are divided by before decoding.
    pub(super) fn norms(&self) -> DevicePtr {
        if self.sae.spec().rescale_by_decoder_norm { self.arrays.norms } else { DevicePtr::NULL }
    }

    /// What bounds scores; made for the first session that asks, and shared while one of them keeps it.
    pub(super) fn screen(&self) -> Result<Arc<Screen>> {
        let mut shared = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(screen) = shared.upgrade() {
            return Ok(screen);
        }
        let screen = Arc::new(self.make_screen()?);
        *shared = Arc::downgrade(&screen);
        Ok(screen)
    }

    /// Bytes of the device's memory that this takes.
    pub(super) fn screen_memory(sae: &Sae) -> usize {
        let n = sae.spec().n_latents;
        rounded_bytes(sae) + n * size_of::<Bound>() + PEAKS
    }

    fn make_screen(&self) -> Result<Screen> {
        let (driver, n) = (&self.driver, self.sae.spec().n_latents);
        let screen = Screen {
            rounded: Block::new(driver, rounded_bytes(&self.sae))?,
            bounds: Block::new(driver, n * size_of::<Bound>())?,
            peaks: Block::zeroed(driver, PEAKS)?,
        };
        let params = BoundsParams {
            latents: self.latents(),
            rounded: screen.rounded.at(),
            bounds: screen.bounds.at(),
            peaks: screen.peaks.at(),
            rounded_stride: stride(&self.sae) as i64,
        };
        let stream = OwnStream::new(driver)?;
        let inside = Inside::new(&**driver)?;
        let shape = Shape { grid: (n.div_ceil(8) as u32, 1), block: 256, shared: 0 };
        // SAFETY: the arrays are as long as the kernel's description says, and stay until it is done.
        unsafe { launch(&*inside, stream.handle(), shape, &params)? };
        inside.synchronize(stream.handle())?;
        drop(inside);
        Ok(screen)
    }

    /// What kernels are told of a screen.
    pub(super) fn screened(&self, screen: &Screen) -> Screened {
        let w = if screen.rounded.bytes() > 0 { screen.rounded.at() } else { self.arrays.w_enc.data };
        Screened { w, stride: stride(&self.sae), bounds: screen.bounds.at(), peaks: screen.peaks.at() }
    }
}

/// Two numbers of 32 bits.
const PEAKS: usize = 8;

/// Elements of a row of W_enc in bf16.
fn stride(sae: &Sae) -> usize {
    sae.spec().d_in.next_multiple_of(STEP)
}

fn rounded_bytes(sae: &Sae) -> usize {
    let is_bf16 = sae.weights().w_enc.dtype() == DType::BF16;
    if is_bf16 { 0 } else { sae.spec().n_latents * stride(sae) * 2 }
}

/// What is copied to the device.
enum Source<'a> {
    Matrix(&'a Matrix, usize),
    Vector(&'a [f32]),
    Zeros(usize),
}

impl Source<'_> {
    fn write(&self, memory: &mut Block, start: usize) -> Result<()> {
        match self {
            Self::Vector(values) => memory.write(start, bytemuck::cast_slice(values)),
            Self::Zeros(bytes) => memory.write(start, AlignedBytes::zeroed(*bytes)?.as_slice()),
            Self::Matrix(matrix, stride) if *stride == matrix.cols() => memory.write(start, matrix.bytes()),
            Self::Matrix(matrix, stride) => {
                // A few rows at a time, with zeros behind each.
                let size = matrix.dtype().size();
                let (from, to) = (matrix.cols() * size, stride * size);
                let at_once = (1usize << 20).div_ceil(to).min(matrix.rows());
                let mut staged = AlignedBytes::zeroed(at_once * to)?;
                for (i, rows) in matrix.bytes().chunks(at_once * from).enumerate() {
                    for (to, from) in staged.as_mut_slice().chunks_exact_mut(to).zip(rows.chunks_exact(from)) {
                        to[..from.len()].copy_from_slice(from);
                    }
                    memory.write(start + i * at_once * to, &staged.as_slice()[..rows.len() / from * to])?;
                }
                Ok(())
            }
        }
    }
}

/// Finds a place for everything that is copied: `place` gets what and how many bytes.
fn lay_out(sae: &Sae, place: &mut dyn FnMut(Source<'_>, usize) -> Result<DevicePtr>) -> Result<Arrays> {
    let (spec, w) = (sae.spec(), sae.weights());
    let mut matrix = |matrix: &Matrix, stride: usize| -> Result<params::Matrix> {
        let bytes = matrix.rows() * stride * matrix.dtype().size();
        let data = place(Source::Matrix(matrix, stride), bytes)?;
        Ok(params::Matrix { data, stride: stride as i64, dtype: dtype(matrix.dtype()), reserved: 0 })
    };
    // Tensor cores read bf16 as it is.
    let screened = w.w_enc.dtype() == DType::BF16;
    let w_enc = matrix(&w.w_enc, if screened { stride(sae) } else { spec.d_in })?;
    let tied = w.w_dec.shares_memory_with(&w.w_enc);
    let w_dec = if tied { w_enc } else { matrix(&w.w_dec, spec.d_out)? };
    let w_glu = w.glu.as_ref().map(|glu| matrix(&glu.w, spec.d_in)).transpose()?;
    let w_skip = w.w_skip.as_ref().map(|w| matrix(w, spec.d_in)).transpose()?;
    let mut vector = |values: Option<&[f32]>| -> Result<DevicePtr> {
        match values {
            None | Some([]) => Ok(DevicePtr::NULL),
            Some(values) => place(Source::Vector(values), size_of_val(values)),
        }
    };
    let arrays = Arrays {
        w_enc,
        w_dec,
        w_glu,
        w_skip,
        b_enc: vector(Some(&w.b_enc))?,
        b_dec: vector(Some(&w.b_dec))?,
        threshold: vector(w.threshold.as_deref())?,
        gain: vector(Some(sae.magnitude_gains()))?,
        b_gate: vector(w.gate.as_ref().map(|gate| &*gate.b_gate))?,
        b_glu: vector(w.glu.as_ref().map(|glu| &*glu.b))?,
        norms: vector(sae.decoder_norms())?,
        zeros: DevicePtr::NULL,
    };
    let zeros = match w.w_skip {
        Some(_) => place(Source::Zeros(4 * spec.d_out), 4 * spec.d_out)?,
        None => DevicePtr::NULL,
    };
    Ok(Arrays { zeros, ..arrays })
}
