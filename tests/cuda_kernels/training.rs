//! Gradients and the optimizer's step, against a training run on the processor.

use bytemuck::Zeroable;
use proptest::prelude::*;
use sae::backend::cpu::{Kernels, training::CpuTraining};
use sae::backend::cuda::params::*;
use sae::backend::training::{LossParameters, Parameter, Role, StepParameters, Training, TrainingRows, TrainingShape};
use sae::backend::{Input, Pool};
use sae::sae::{Architecture, Matrix as Weights, Normalization, Sae, Spec};
use sae::tensor::{DType, Tensor};

use crate::common::cases::numbers;
use crate::config;
use crate::encode::same;
use crate::rig::{FeatureMemory, Memory, Rig, Route, at, at_mut, launch, round_up};

const LOSS: LossParameters = LossParameters {
    k: 0,
    normalizer: 1.7,
    aux_coefficient: 0.25,
    sparsity_coefficient: 0.0,
    fired: 1e-3,
    dead_after_tokens: 5000,
};

/// Everything kept of the three parameters that latents have.
struct Run {
    d: usize,
    n: usize,
    /// W_enc, b_enc, W_dec of weights, gradients, first and second moments, and moving averages.
    numbers: [[Vec<f32>; 3]; 5],
    touched: Vec<i32>,
}

const ROLES: [Role; 5] = [Role::Weight, Role::Gradient, Role::FirstMoment, Role::SecondMoment, Role::Ema];
const PARAMETERS: [Parameter; 3] = [Parameter::WEnc, Parameter::BEnc, Parameter::WDec];

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn steps_are_those_of_the_processor(
        d in 1usize..70, n in 1usize..90, k in 1usize..12, rows in 1usize..150, normalization in 0usize..2, common: bool, seed in 0u64..1000,
    ) {
        let mut numbers = numbers(seed);
        let normalization = if d > 1 { [Normalization::None, Normalization::LayerNorm][normalization] } else { Normalization::None };
        let shape = TrainingShape { k_aux: 0, max_tokens: rows, ema: true, normalization, ..TrainingShape::top_k(k.min(n), d, n) };
        let mut cpu = CpuTraining::new(shape.clone(), Pool::serial(), Kernels::named("scalar").unwrap()).unwrap();
        let mut weights: [Vec<f32>; 4] = [n * d, n, n * d, d].map(|len| (0..len).map(|_| numbers.unit()).collect());
        // One latent that every token has makes a long list.
        if common {
            weights[1][n / 2] = 50.0;
        }
        for (parameter, values) in [Parameter::WEnc, Parameter::BEnc, Parameter::WDec, Parameter::BDec].iter().zip(&weights) {
            cpu.write(Role::Weight, *parameter, values).unwrap();
        }
        let zeros = || [vec![0.0; n * d], vec![0.0; n], vec![0.0; n * d]];
        let [w_enc, b_enc, w_dec, mut b_dec] = weights;
        // Gradients of untouched rows may be anything.
        let gradient = [vec![f32::NAN; n * d], vec![0.0; n], vec![f32::NAN; n * d]];
        let mut run = Run {
            d,
            n,
            numbers: [[w_enc, b_enc, w_dec], gradient, zeros(), zeros(), zeros()],
            touched: vec![0; n],
        };
        for step in 1..=2u64 {
            for _ in 0..2 {
                let x: Vec<f32> = (0..rows * d).map(|_| numbers.unit() * 3.0).collect();
                let input = Input::from(Tensor::new(&x, &[rows, d]).unwrap());
                cpu.accumulate(&TrainingRows::from(input), &LOSS).unwrap();
                run.accumulate(&shape, &b_dec, &x, seed % 4);
            }
            for (which, parameter) in PARAMETERS.iter().enumerate() {
                let width = run.numbers[1][which].len() / n;
                for (i, touched) in run.touched.iter().enumerate().filter(|_| width == d && which != 1) {
                    if *touched == 0 {
                        run.numbers[1][which][i * d..(i + 1) * d].fill(0.0);
                    }
                }
                run.compare(&cpu, 1, which, *parameter)?;
            }
            let options = StepParameters {
                tokens: 2 * rows as u64, step, learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, clip_norm: 0.0, ema_decay: 0.99,
            };
            cpu.apply(&options).unwrap();
            run.apply(&options, seed % 4);
            for role in [0, 2, 3, 4] {
                for (which, parameter) in PARAMETERS.iter().enumerate() {
                    run.compare(&cpu, role, which, *parameter)?;
                }
            }
            cpu.read(Role::Weight, Parameter::BDec, &mut b_dec).unwrap();
        }
    }
}

impl Run {
    fn compare(&self, cpu: &CpuTraining, role: usize, which: usize, parameter: Parameter) -> Result<(), TestCaseError> {
        let found = &self.numbers[role][which];
        let mut expected = vec![0.0; found.len()];
        cpu.read(ROLES[role], parameter, &mut expected).unwrap();
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            prop_assert!(same(*found, *expected), "{:?} {parameter:?}[{i}]: {found} for {expected}", ROLES[role]);
        }
        Ok(())
    }

    fn accumulate(&mut self, shape: &TrainingShape, b_dec: &[f32], x: &[f32], seed: u64) {
        let (d, n, k, rows) = (self.d, self.n, shape.k, x.len() / self.d);
        let mut spec = Spec::new(Architecture::TopK { k }, d, n);
        spec.normalization = shape.normalization;
        let [w_enc, b_enc, w_dec] = &self.numbers[0];
        let matrix = |w: &[f32]| Weights::from_f32(w, n, d).unwrap();
        let weights = sae::sae::Weights::new(matrix(w_enc), b_enc.clone(), matrix(w_dec), b_dec.to_vec());
        let mut rig = Rig::new(Sae::new(spec, weights).unwrap(), seed);
        let mut memory = Memory::plain(DType::F32, rows, d);
        memory.fill(x);
        let mut prepared = rig.prepare(memory.vectors(), None, rows, None, false);
        let codes = FeatureMemory::new(DType::F32, rows, k, rig.sae.spec().row_state_width());
        rig.encode(&mut prepared, Route::Dense, k, order::BY_INDEX, Some(&codes));

        let (pull, padded) = ((2.0 / (d as f64 * LOSS.normalizer)) as f32, round_up(d, 16));
        let (mut leftover, mut pulls, mut errors) =
            (vec![f32::NAN; rows * padded], vec![f32::NAN; rows * k], vec![f64::NAN; rows]);
        let (mut starts, mut ends, mut slots) = (vec![0u32; n + 1], vec![7u32; n], vec![7u32; rows * k]);
        let params = ExplainParams {
            codes: codes.params(),
            ids: DevicePtr::NULL,
            targets: at(&prepared.x),
            w_dec: at(&self.numbers[0][2]),
            leftover: at_mut(&mut leftover),
            pulls: at_mut(&mut pulls),
            errors: at_mut(&mut errors),
            starts: at_mut(&mut starts),
            padded: padded as i64,
            rows: rows as i32,
            d: d as i32,
            pull,
            reserved: 0,
        };
        launch([rows, 1], 256, 0, &params, seed);
        let params = ListsParams { starts: at_mut(&mut starts), ends: at_mut(&mut ends), n: n as i32, reserved: 0 };
        launch([1, 1], 1024, 0, &params, seed);
        let params = FillParams {
            codes: codes.params(),
            ids: DevicePtr::NULL,
            ends: at_mut(&mut ends),
            slots: at_mut(&mut slots),
            rows: rows as i32,
            reserved: 0,
        };
        launch([(rows * k).div_ceil(256), 1], 256, 0, &params, seed);
        let [g_enc, g_bias, g_dec] = &mut self.numbers[1];
        let params = BackwardParams {
            codes: codes.params(),
            starts: at(&starts),
            slots: at_mut(&mut slots),
            inputs: at(&prepared.x),
            leftover: at(&leftover),
            pulls: at(&pulls),
            w_enc: at_mut(g_enc),
            w_dec: at_mut(g_dec),
            b_enc: at_mut(g_bias),
            touched: at_mut(&mut self.touched),
            padded: padded as i64,
            d: d as i32,
            pull,
        };
        launch([n, 1], 128, 0, &params, seed);
    }

    fn apply(&mut self, step: &StepParameters, seed: u64) {
        let (d, n) = (self.d, self.n);
        let stride = round_up(d, 8);
        let mut rounded = vec![7u16; n * stride];
        let [w, g, m, v, ema] = &mut self.numbers;
        let correction = |beta: f64| 1.0 - beta.powf(step.step as f64);
        for which in 0..3 {
            let (rows, d) = if which == 1 { (1, n) } else { (n, d) };
            let params = UpdateParams {
                w: at_mut(&mut w[which]),
                m: at_mut(&mut m[which]),
                v: at_mut(&mut v[which]),
                ema: at_mut(&mut ema[which]),
                g: at(&g[which]),
                touched: if which == 1 { DevicePtr::NULL } else { at(&self.touched) },
                rounded: if which == 0 { at_mut(&mut rounded) } else { DevicePtr::NULL },
                stride: d as i64,
                rounded_stride: stride as i64,
                d: d as i32,
                is_decoder: i32::from(which == 2),
                gradient_scale: (1.0 / step.tokens as f64) as f32,
                beta1: step.beta1 as f32,
                beta2: step.beta2 as f32,
                rate: (step.learning_rate / correction(step.beta1)) as f32,
                root_scale: correction(step.beta2).sqrt().recip() as f32,
                epsilon: step.epsilon as f32,
                ema_decay: step.ema_decay as f32,
                ..UpdateParams::zeroed()
            };
            launch([rows, 1], 256, 0, &params, seed);
        }
        for (i, bits) in rounded.iter().enumerate() {
            let weight = if i % stride < d { w[0][i / stride * d + i % stride] } else { 0.0 };
            let expected = if weight.abs() < 1e-30 { 0.0 } else { half::bf16::from_f32(weight).to_f32() };
            assert_eq!(half::bf16::from_bits(*bits).to_f32().to_bits(), expected.to_bits());
        }
        g[1].fill(0.0);
        self.touched.fill(0);
    }
}
