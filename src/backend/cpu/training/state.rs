//! The numbers of a run in the processor's memory.

use crate::backend::training::{Parameter, TrainingShape};
use crate::error::Result;
use crate::tensor::Array;

/// One number for each weight: the weights themselves, a moment, the gradient.
pub(super) struct Parameters {
    pub w_enc: Array<f32>,
    pub b_enc: Array<f32>,
    pub w_dec: Array<f32>,
    pub b_dec: Array<f32>,
}

impl Parameters {
    pub(super) fn zeroed(shape: &TrainingShape) -> Result<Self> {
        let matrix = shape.n_latents.saturating_mul(shape.d);
        Ok(Self {
            w_enc: Array::zeroed(matrix)?,
            b_enc: Array::zeroed(shape.n_latents)?,
            w_dec: Array::zeroed(matrix)?,
            b_dec: Array::zeroed(shape.d)?,
        })
    }

    pub(super) fn get(&self, parameter: Parameter) -> &[f32] {
        match parameter {
            Parameter::WEnc => &self.w_enc,
            Parameter::BEnc => &self.b_enc,
            Parameter::WDec => &self.w_dec,
            Parameter::BDec => &self.b_dec,
        }
    }

    pub(super) fn get_mut(&mut self, parameter: Parameter) -> &mut [f32] {
        match parameter {
            Parameter::WEnc => &mut self.w_enc,
            Parameter::BEnc => &mut self.b_enc,
            Parameter::WDec => &mut self.w_dec,
            Parameter::BDec => &mut self.b_dec,
        }
    }

    pub(super) fn fill_zero(&mut self) {
        for parameter in Parameter::ALL {
            self.get_mut(parameter).fill(0.0);
        }
    }
}

/// Everything that lives as long as the run.
pub(super) struct State {
    pub weights: Parameters,
    pub first_moment: Parameters,
    pub second_moment: Parameters,
    pub ema: Option<Parameters>,
    pub gradient: Parameters,
    /// `[n]`: tokens since each latent fired.
    pub unfired: Array<u64>,
    /// `[n]`: each latent's share of the gradient's square, while a step is made.
    pub squares: Array<f64>,
}

impl State {
    pub(super) fn zeroed(shape: &TrainingShape) -> Result<Self> {
        Ok(Self {
            weights: Parameters::zeroed(shape)?,
            first_moment: Parameters::zeroed(shape)?,
            second_moment: Parameters::zeroed(shape)?,
            ema: shape.ema.then(|| Parameters::zeroed(shape)).transpose()?,
            gradient: Parameters::zeroed(shape)?,
            unfired: Array::zeroed(shape.n_latents)?,
            squares: Array::zeroed(shape.n_latents)?,
        })
    }
}
