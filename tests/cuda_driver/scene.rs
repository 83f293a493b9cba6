//! A model on the device and on the processor, and calls whose results can be compared.

use std::sync::Arc;

use sae::backend::cuda::CudaModel;
use sae::backend::{Run, Stream};
use sae::features::Features;
use sae::sae::Sae;
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use sae::tensor::{Tensor, TensorMut};

use crate::common::cases::Case;
use crate::common::placed::Place;

pub(crate) const ROWS: usize = 3;
pub(crate) const D: usize = 16;
const WIDTH: usize = 4;

/// TopK, so that latents compete, and few enough to be quick.
pub(crate) fn sae() -> Arc<Sae> {
    let case = Case::plain(D, 40, ROWS, WIDTH);
    Arc::new(case.sae(&mut case.rng()))
}

pub(crate) fn on_device(sae: &Arc<Sae>) -> Session {
    Session::new(CudaModel::new(Arc::clone(sae), 0).unwrap(), options()).unwrap()
}

pub(crate) fn on_processor(sae: &Arc<Sae>) -> Session {
    Session::new(Arc::clone(sae), options()).unwrap()
}

pub(crate) fn options() -> SessionOptions {
    SessionOptions { max_tokens: ROWS, max_width: WIDTH, ..SessionOptions::default() }
}

/// Activations that differ by their number.
pub(crate) fn activations(number: usize) -> Vec<f32> {
    let mut numbers = crate::common::cases::numbers(number as u64 + 1);
    (0..ROWS * D).map(|_| numbers.weight()).collect()
}

/// Edits that differ by their number, and need to know who won.
pub(crate) fn edits(number: usize) -> [Edit; 2] {
    let strength = number as f32 + 0.5;
    [
        Edit::new((number % 40) as i32, EditOp::Add, strength),
        Edit::new(((number + 7) % 40) as i32, EditOp::Set, strength),
    ]
}

/// One call's memory: what it reads, and what it writes.
pub(crate) struct Memory {
    x: Vec<f32>,
    features: Features,
    out: Vec<f32>,
}

impl Memory {
    pub(crate) fn new(number: usize) -> Self {
        Self { x: activations(number), features: Features::new(ROWS, WIDTH, 0), out: vec![7.0; ROWS * D] }
    }

    pub(crate) fn encode(&mut self, session: &mut Session, stream: Stream) -> sae::Result<()> {
        let place = Place::of(session);
        let x = place.read(Tensor::new(&self.x, &[ROWS, D]).unwrap());
        session.encode(Run { stream, ..Run::default() }, x.into(), place.features_mut(self.features.view_mut()))
    }

    /// Steers by the session's edits, out of place.
    pub(crate) fn steer(&mut self, session: &mut Session, stream: Stream) -> sae::Result<()> {
        let place = Place::of(session);
        let x = place.read(Tensor::new(&self.x, &[ROWS, D]).unwrap());
        let out = place.write(TensorMut::new(&mut self.out, &[ROWS, D]).unwrap());
        session.steer(Run { stream, ..Run::default() }, x.into(), Steer::default(), out)
    }

    pub(crate) fn results(&self) -> (Vec<i32>, Vec<u32>, Vec<i32>, Vec<u32>) {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
        let Features { indices, values, counts, .. } = &self.features;
        (indices.clone(), bits(values), counts.clone(), bits(&self.out))
    }
}
