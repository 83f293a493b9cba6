//! A model on the device and on the processor, and calls whose results can be compared.

use std::sync::Arc;

use sae::backend::cuda::CudaModel;
use sae::backend::{Run, Screen, Stream};
use sae::features::Features;
use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use sae::tensor::{Tensor, TensorMut};

use crate::common::cases::{Numbers, numbers};
use crate::common::placed::Place;

pub(crate) const ROWS: usize = 3;
pub(crate) const D: usize = 16;
const N: usize = 40;
const WIDTH: usize = 4;

/// Whole numbers that bf16 holds, whose sums f32 holds: products of tensor cores are the canonical scores.
fn whole(numbers: &mut Numbers, len: usize, most: usize) -> Vec<f32> {
    (0..len).map(|_| numbers.below(2 * most + 1) as f32 - most as f32).collect()
}

/// TopK, so that latents compete, and few enough to be quick.
pub(crate) fn sae() -> Arc<Sae> {
    let numbers = &mut numbers(5);
    let mut matrix = || Matrix::from_f32(&whole(numbers, N * D, 3), N, D).unwrap();
    let (w_enc, w_dec) = (matrix(), matrix());
    let weights = Weights::new(w_enc, whole(numbers, N, 9), w_dec, whole(numbers, D, 9));
    Arc::new(Sae::new(Spec::new(Architecture::TopK { k: WIDTH }, D, N), weights).unwrap())
}

pub(crate) fn on_device(sae: &Arc<Sae>) -> Session {
    on_device_by(sae, 0)
}

/// Every second seed has scores bounded first, or taken from the products by calls that are fast.
pub(crate) fn on_device_by(sae: &Arc<Sae>, seed: i64) -> Session {
    let screen = if seed % 2 == 0 { Screen::Never } else { Screen::Always };
    Session::new(CudaModel::new(Arc::clone(sae), 0).unwrap(), SessionOptions { screen, ..options() }).unwrap()
}

pub(crate) fn on_processor(sae: &Arc<Sae>) -> Session {
    Session::new(Arc::clone(sae), options()).unwrap()
}

pub(crate) fn options() -> SessionOptions {
    SessionOptions { max_tokens: ROWS, max_width: WIDTH, ..SessionOptions::default() }
}

/// Activations that differ by their number; every second number has a token that is too large to be bounded.
pub(crate) fn activations(number: usize) -> Vec<f32> {
    let mut x = whole(&mut numbers(number as u64 + 1), ROWS * D, 20);
    if number % 2 == 1 {
        x[D..2 * D].iter_mut().for_each(|v| *v *= 2f32.powi(116));
    }
    x
}

/// Edits that differ by their number, and need to know who won.
pub(crate) fn edits(number: usize) -> [Edit; 2] {
    let strength = number as f32 + 0.5;
    [Edit::new((number % N) as i32, EditOp::Add, strength), Edit::new(((number + 7) % N) as i32, EditOp::Set, strength)]
}

/// One call's memory: what it reads, and what it writes.
pub(crate) struct Memory {
    fast: bool,
    x: Vec<f32>,
    features: Features,
    out: Vec<f32>,
}

impl Memory {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            fast: number % 3 == 1,
            x: activations(number),
            features: Features::new(ROWS, WIDTH, 0),
            out: vec![7.0; ROWS * D],
        }
    }

    pub(crate) fn encode(&mut self, session: &mut Session, stream: Stream) -> sae::Result<()> {
        let place = Place::of(session);
        let x = place.read(Tensor::new(&self.x, &[ROWS, D]).unwrap());
        session.encode(
            Run { stream, fast: self.fast, ..Run::default() },
            x.into(),
            place.features_mut(self.features.view_mut()),
        )
    }

    /// Steers by the session's edits, out of place.
    pub(crate) fn steer(&mut self, session: &mut Session, stream: Stream) -> sae::Result<()> {
        let place = Place::of(session);
        let x = place.read(Tensor::new(&self.x, &[ROWS, D]).unwrap());
        let out = place.write(TensorMut::new(&mut self.out, &[ROWS, D]).unwrap());
        session.steer(Run { stream, fast: self.fast, ..Run::default() }, x.into(), Steer::default(), out)
    }

    pub(crate) fn results(&self) -> (Vec<i32>, Vec<u32>, Vec<i32>, Vec<u32>) {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
        let Features { indices, values, counts, .. } = &self.features;
        (indices.clone(), bits(values), counts.clone(), bits(&self.out))
    }
}
