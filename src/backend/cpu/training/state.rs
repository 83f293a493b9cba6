//! The numbers of a run in the processor's memory.

use crate::backend::training::{Parameter, Rule, TrainingShape};
use crate::collective::{Axis, Ranks};
use crate::error::Result;
use crate::sae::int8::Int8Rows;
use crate::tensor::Array;

/// One number for each weight: the weights themselves, a moment, the gradient.
pub(super) struct Parameters {
    pub w_enc: Array<f32>,
    pub b_enc: Array<f32>,
    pub w_dec: Array<f32>,
    pub b_dec: Array<f32>,
    /// These are empty where the rule has none.
    pub threshold: Array<f32>,
    pub b_gate: Array<f32>,
    pub r_mag: Array<f32>,
    /// So is this, without a skip path.
    pub w_skip: Array<f32>,
}

impl Parameters {
    pub(super) fn zeroed(shape: &TrainingShape) -> Result<Self> {
        let array = |parameter: Parameter| {
            let there = shape.parameters().any(|there| there == parameter);
            Array::zeroed(if there { shape.len(parameter) } else { 0 })
        };
        Ok(Self {
            w_enc: array(Parameter::WEnc)?,
            b_enc: array(Parameter::BEnc)?,
            w_dec: array(Parameter::WDec)?,
            b_dec: array(Parameter::BDec)?,
            threshold: array(Parameter::Threshold)?,
            b_gate: array(Parameter::BGate)?,
            r_mag: array(Parameter::RMag)?,
            w_skip: array(Parameter::WSkip)?,
        })
    }

    pub(super) fn get(&self, parameter: Parameter) -> &[f32] {
        match parameter {
            Parameter::WEnc => &self.w_enc,
            Parameter::BEnc => &self.b_enc,
            Parameter::WDec => &self.w_dec,
            Parameter::BDec => &self.b_dec,
            Parameter::Threshold => &self.threshold,
            Parameter::BGate => &self.b_gate,
            Parameter::RMag => &self.r_mag,
            Parameter::WSkip => &self.w_skip,
        }
    }

    pub(super) fn get_mut(&mut self, parameter: Parameter) -> &mut [f32] {
        match parameter {
            Parameter::WEnc => &mut self.w_enc,
            Parameter::BEnc => &mut self.b_enc,
            Parameter::WDec => &mut self.w_dec,
            Parameter::BDec => &mut self.b_dec,
            Parameter::Threshold => &mut self.threshold,
            Parameter::BGate => &mut self.b_gate,
            Parameter::RMag => &mut self.r_mag,
            Parameter::WSkip => &mut self.w_skip,
        }
    }
}

/// Sums of gradients.
pub(super) struct Gradient {
    pub sums: Parameters,
    /// `[n]`: 1 where a latent has sums. The others' rows of W_enc and W_dec are zero, whatever is in that memory: most of
    /// it need be neither cleared nor read.
    pub touched: Array<u8>,
}

impl Gradient {
    fn zeroed(shape: &TrainingShape) -> Result<Self> {
        Ok(Self { sums: Parameters::zeroed(shape)?, touched: Array::zeroed(shape.n_latents)? })
    }

    pub(super) fn clear(&mut self) {
        self.touched.fill(0);
        let Parameters { b_enc, b_dec, threshold, b_gate, r_mag, w_skip, .. } = &mut self.sums;
        [b_enc, b_dec, threshold, b_gate, r_mag, w_skip].into_iter().for_each(|sums| sums.fill(0.0));
    }

    /// Becomes that of all ranks that hold these latents.
    pub(super) fn sum_up(&mut self, ranks: &Ranks) -> Result<()> {
        if ranks.count(Axis::Data) == 1 {
            return Ok(());
        }
        for matrix in [&mut self.sums.w_enc, &mut self.sums.w_dec] {
            clear_untouched(&self.touched, matrix);
        }
        self.touched.fill(1);
        let Parameters { w_enc, b_enc, w_dec, b_dec, threshold, b_gate, r_mag, w_skip } = &mut self.sums;
        let all = [w_enc, b_enc, w_dec, b_dec, threshold, b_gate, r_mag, w_skip];
        all.into_iter().try_for_each(|sums| ranks.sum(Axis::Data, sums))
    }

    /// Copies one parameter's gradient out.
    pub(super) fn read(&self, parameter: Parameter, out: &mut [f32]) {
        out.copy_from_slice(self.sums.get(parameter));
        if matches!(parameter, Parameter::WEnc | Parameter::WDec) {
            clear_untouched(&self.touched, out);
        }
    }

    /// Replaces one parameter's gradient.
    pub(super) fn write(&mut self, parameter: Parameter, values: &[f32]) {
        for matrix in [&mut self.sums.w_enc, &mut self.sums.w_dec] {
            clear_untouched(&self.touched, matrix);
        }
        self.touched.fill(1);
        self.sums.get_mut(parameter).copy_from_slice(values);
    }
}

/// Makes the rows zero that stand for zero.
fn clear_untouched(touched: &[u8], matrix: &mut [f32]) {
    let d = matrix.len() / touched.len();
    let rows = matrix.chunks_exact_mut(d).zip(touched);
    rows.filter(|(_, touched)| **touched == 0).for_each(|(row, _)| row.fill(0.0));
}

/// Everything that lives as long as the run.
pub(super) struct State {
    pub weights: Parameters,
    pub first_moment: Parameters,
    pub second_moment: Parameters,
    pub ema: Option<Parameters>,
    /// If the rule has such. JumpReLU's `[2, n]`: what scores must exceed to play a part, and b_enc raised so that these are
    /// positive. Gated's `[n]`: `exp(r_mag)`.
    pub derived: Array<f32>,
    /// W_enc as bytes, at all times the same rows, if scores are bounded first.
    pub int8: Option<Int8Rows>,
    pub gradient: Gradient,
    /// `[n]`: tokens since each latent fired.
    pub unfired: Array<u64>,
    /// What a step finds out about the gradient.
    pub measures: Measures,
}

/// What a step finds out about the gradient before it applies it.
pub(super) struct Measures {
    /// `[n, layers]`: how much of each row of W_dec is to be taken off its gradient, where there is any.
    pub parallel: Array<f32>,
    /// `[n / MEASURED]`: the gradient's square without that.
    pub squares: Array<f64>,
    /// `[n / MEASURED, d]`: what b_dec's gradient gets through the encoder.
    pub paths: Array<f32>,
}

/// Latents measured together.
pub(super) const MEASURED: usize = 64;

impl State {
    pub(super) fn zeroed(shape: &TrainingShape) -> Result<Self> {
        let measured = shape.n_latents.div_ceil(MEASURED);
        Ok(Self {
            weights: Parameters::zeroed(shape)?,
            first_moment: Parameters::zeroed(shape)?,
            second_moment: Parameters::zeroed(shape)?,
            ema: shape.ema.then(|| Parameters::zeroed(shape)).transpose()?,
            derived: Array::zeroed(match shape.rule {
                Rule::JumpRelu(_) => shape.n_latents.saturating_mul(2),
                Rule::Gated => shape.n_latents,
                _ => 0,
            })?,
            int8: None,
            gradient: Gradient::zeroed(shape)?,
            unfired: Array::zeroed(shape.n_latents)?,
            measures: Measures {
                parallel: Array::zeroed(shape.n_latents.saturating_mul(shape.layers))?,
                squares: Array::zeroed(measured)?,
                paths: Array::zeroed(measured.saturating_mul(shape.d))?,
            },
        })
    }
}
