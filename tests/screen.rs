//! The screen by bytes against exact scores, on what is made to break it: results are the same to the bit on every
//! instruction set.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::cases::{Numbers, numbers};
use common::oracle;
use proptest::prelude::*;
use sae::backend::cpu::Kernels;
use sae::backend::{Order, Pool, Run, Screen, Wanted};
use sae::features::Features;
use sae::sae::{Architecture, Gate, Matrix, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions};
use sae::tensor::{DType, Tensor, TensorMut};

/// Rows of W_enc, and how tokens relate to them.
#[derive(Clone, Copy, Debug)]
enum Rows {
    /// All the same: every score ties.
    Same,
    /// The same but for one number in each, by a millionth: scores closer together than any bound of bytes.
    Close,
    /// Norms up to 1e30 apart.
    Apart,
    /// One number dwarfs the others of its row.
    Outlier,
    /// Whole rows of zeros.
    Zeros,
    /// Numbers below what f32 keeps in full.
    Denormal,
    /// Numbers whose products leave f32.
    Huge,
    /// −1, 0 or 1.
    Few,
    Smooth,
}

#[derive(Clone, Copy, Debug)]
enum Tokens {
    /// Smooth, and with one number of a row 1e4, 1e8 … times the others.
    Outlier,
    /// Each a multiple of a row of W_enc.
    Rows,
    /// Up to 1e30 apart.
    Apart,
    /// Heavy tails; zeros and what is not finite among them.
    Mixed,
}

#[derive(Clone, Copy, Debug)]
enum Biases {
    Zero,
    Smooth,
    /// What makes some scores exactly 0, or the next number above or below.
    Cancelling,
    /// Most latents are far from active.
    Low,
    Huge,
}

#[derive(Clone, Debug)]
struct Attack {
    seed: u64,
    architecture: u8,
    d: usize,
    n: usize,
    tokens: usize,
    k: usize,
    width: usize,
    rows: Rows,
    x: Tokens,
    biases: Biases,
    dtype: DType,
    rescale: bool,
    select: bool,
}

fn attacks() -> impl Strategy<Value = Attack> {
    let rows = prop::sample::select(vec![
        Rows::Same,
        Rows::Close,
        Rows::Apart,
        Rows::Outlier,
        Rows::Zeros,
        Rows::Denormal,
        Rows::Huge,
        Rows::Few,
        Rows::Smooth,
    ]);
    let x = prop::sample::select(vec![Tokens::Outlier, Tokens::Rows, Tokens::Apart, Tokens::Mixed]);
    let biases =
        prop::sample::select(vec![Biases::Zero, Biases::Smooth, Biases::Cancelling, Biases::Low, Biases::Huge]);
    let d = prop::sample::select(vec![1, 2, 15, 16, 17, 63, 64, 65, 130, 300]);
    let n = prop_oneof![1usize..70, Just(128), Just(257), Just(700)];
    let tokens = prop::sample::select(vec![1usize, 2, 4, 5, 6, 33, 127, 129]);
    let dtype = prop::sample::select(vec![DType::F32, DType::F32, DType::BF16, DType::F16]);
    let k = prop_oneof![Just(1usize), 2usize..20, Just(usize::MAX), Just(usize::MAX - 1)];
    let kinds = (0u8..5, k, 0usize..30, rows, x, biases, dtype, any::<bool>(), any::<bool>());
    (any::<u64>(), (d, n, tokens), kinds).prop_map(
        |(seed, (d, n, tokens), (architecture, k, width, rows, x, biases, dtype, rescale, select))| {
            // All latents, and all but one.
            let k = if k > n { (n - (usize::MAX - k).min(n - 1)).max(1) } else { k };
            let width = width.min(n);
            Attack {
                seed,
                architecture,
                d,
                n,
                tokens,
                k,
                width,
                rows,
                x,
                biases,
                dtype,
                rescale,
                select: select && !rescale,
            }
        },
    )
}

/// 10 to a power between ± the limit.
fn power(numbers: &mut Numbers, limit: f32) -> f32 {
    10f32.powf(numbers.unit() * limit)
}

impl Attack {
    fn w_enc(&self, numbers: &mut Numbers) -> Vec<f32> {
        let Self { d, n, .. } = *self;
        let base: Vec<f32> = (0..d).map(|_| numbers.unit()).collect();
        let mut row = |i: usize| -> Vec<f32> {
            match self.rows {
                Rows::Same => base.clone(),
                Rows::Close => {
                    let mut row = base.clone();
                    row[i % d] *= 1.0 + 1e-6 * (i % 7) as f32;
                    row
                }
                Rows::Apart => {
                    let scale = power(numbers, 15.0);
                    (0..d).map(|_| numbers.unit() * scale).collect()
                }
                Rows::Outlier => {
                    let mut row: Vec<f32> = (0..d).map(|_| numbers.unit()).collect();
                    row[numbers.below(d)] *= power(numbers, 8.0);
                    row
                }
                Rows::Zeros if !i.is_multiple_of(3) => vec![0.0; d],
                Rows::Denormal => (0..d).map(|_| numbers.unit() * 1e-39).collect(),
                Rows::Huge => {
                    let scale = [1e20, 1e36, 1.0][numbers.below(3)];
                    (0..d).map(|_| numbers.unit() * scale).collect()
                }
                Rows::Few => (0..d).map(|_| numbers.below(3) as f32 - 1.0).collect(),
                Rows::Smooth | Rows::Zeros => (0..d).map(|_| numbers.unit()).collect(),
            }
        };
        let most = if self.dtype == DType::F16 { 60000.0 } else { f32::MAX };
        (0..n).flat_map(&mut row).map(|v| v.clamp(-most, most)).collect()
    }

    fn activations(&self, numbers: &mut Numbers, w: &[f32]) -> Vec<f32> {
        let d = self.d;
        let mut row = |t: usize| -> Vec<f32> {
            let mut smooth: Vec<f32> = (0..d).map(|_| numbers.unit()).collect();
            match self.x {
                Tokens::Outlier => {
                    smooth[numbers.below(d)] = [1e4, -1e8, 1e16, 1.0][t % 4];
                    smooth
                }
                Tokens::Rows => {
                    let i = numbers.below(self.n);
                    w[i * d..(i + 1) * d].iter().map(|w| w * [1.0, 1e-3, -1.0][t % 3]).collect()
                }
                Tokens::Apart => {
                    let scale = power(numbers, 15.0);
                    smooth.iter().map(|v| v * scale).collect()
                }
                Tokens::Mixed => match t % 5 {
                    0 => smooth.iter().map(|v| v / (1.0001 - v.abs()).powi(2)).collect(),
                    1 => vec![-0.0; d],
                    2 => smooth.iter().map(|v| v * 1e-40).collect(),
                    3 if t % 2 == 1 => {
                        smooth[numbers.below(d)] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][t % 3];
                        smooth
                    }
                    _ => smooth,
                },
            }
        };
        (0..self.tokens).flat_map(&mut row).collect()
    }

    /// The SAE, its thresholds and cancelling biases being exact scores of tokens.
    fn sae(&self, numbers: &mut Numbers) -> (Arc<Sae>, Vec<f32>) {
        let Self { d, n, k, .. } = *self;
        let w = self.w_enc(numbers);
        let x = self.activations(numbers, &w);
        let architecture = match self.architecture {
            0 => Architecture::TopK { k },
            1 => Architecture::Relu,
            2 => Architecture::JumpRelu,
            3 => Architecture::AbsTopK { k },
            _ => Architecture::Gated,
        };
        let mut spec = Spec::new(architecture, d, n);
        (spec.rescale_by_decoder_norm, spec.select_by_decoder_norm) = (self.rescale, self.select);
        spec.subtract_b_dec = false;
        let w_dec: Vec<f32> =
            (0..n * d).map(|i| if i % d == 0 { power(numbers, 6.0) } else { numbers.unit() }).collect();
        let b_enc = match self.biases {
            Biases::Zero | Biases::Cancelling => vec![0.0; n],
            Biases::Smooth => (0..n).map(|_| numbers.unit()).collect(),
            Biases::Low => (0..n).map(|i| if i % 9 == 0 { 0.1 } else { -20.0 }).collect(),
            Biases::Huge => (0..n).map(|_| numbers.unit() * 1e30).collect(),
        };
        let mut vector = |scale: f32| (0..n).map(|_| numbers.unit() * scale).collect::<Vec<f32>>();
        let mut weights = Weights {
            threshold: (self.architecture == 2).then(|| vec![0.0; n]),
            gate: (self.architecture == 4).then(|| Gate { r_mag: vector(60.0), b_gate: vector(1.0) }),
            ..Weights::new(
                Matrix::from_f32(&w, n, d).unwrap().to_dtype(self.dtype).unwrap(),
                b_enc,
                Matrix::from_f32(&w_dec, n, d).unwrap(),
                vec![0.0; d],
            )
        };
        // A score of each latent for a token, and its neighbours.
        let plain = Sae::new(spec.clone(), weights.clone()).unwrap();
        let scores: Vec<f32> = {
            let finite = x.chunks(d).find(|x| x.iter().all(|v| v.is_finite()));
            let token = finite.and_then(|x| oracle::encode(&plain, x));
            token.map_or(vec![0.0; n], |token| token.pre_activations)
        };
        let near = |i: usize| match (i % 4, scores[i]) {
            (_, v) if !v.is_finite() || v.abs() > 1e37 => 0.0,
            (1, v) => v.next_up(),
            (2, v) => v.next_down(),
            (_, v) => v,
        };
        if let Some(threshold) = &mut weights.threshold {
            threshold.iter_mut().enumerate().for_each(|(i, t)| *t = near(i));
        } else if matches!(self.biases, Biases::Cancelling) && weights.gate.is_none() && !self.rescale {
            weights.b_enc.iter_mut().enumerate().for_each(|(i, b)| *b = -near(i));
        }
        (Arc::new(Sae::new(spec, weights).unwrap()), x)
    }
}

/// Values and indices of features, counts, and the reconstruction.
type Outcome = (Vec<u32>, Vec<i32>, Vec<i32>, Vec<u32>);

fn outcome(sae: &Arc<Sae>, x: &[f32], width: usize, kernels: Kernels, threads: usize, screen: Screen) -> Outcome {
    let (d, n) = (sae.spec().d_in, sae.spec().n_latents);
    let tokens = x.len() / d;
    let options = SessionOptions {
        max_tokens: tokens,
        max_width: n,
        pool: Pool::new(threads).unwrap(),
        kernels: Some(kernels),
        screen,
        ..SessionOptions::default()
    };
    let mut session = Session::new(Arc::clone(sae), options).unwrap();
    let x = Tensor::new(x, &[tokens, d]).unwrap();
    let mut features = Features::new(tokens, width, 0);
    session.encode(Run { order: Order::Value, ..Run::default() }, x.into(), features.view_mut()).unwrap();
    let mut x_hat = vec![7.0; tokens * d];
    session.reconstruct(Run::default(), x.into(), None, TensorMut::new(&mut x_hat, &[tokens, d]).unwrap()).unwrap();
    let bits = |v: &[f32]| v.iter().map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() }).collect();
    (bits(&features.values), features.indices, features.counts, bits(&x_hat))
}

/// That every set and number of threads gives what exact scores give.
fn check(sae: &Arc<Sae>, x: &[f32], width: usize, what: &dyn std::fmt::Debug) {
    let expected = outcome(sae, x, width, Kernels::named("scalar").unwrap(), 1, Screen::Never);
    for kernels in Kernels::all_supported() {
        for (threads, screen) in [(1, Screen::Always), (3, Screen::Always), (1, Screen::Never), (2, Screen::Auto)] {
            let found = outcome(sae, x, width, kernels, threads, screen);
            let way = format!("{} × {threads}, {screen:?}", kernels.name);
            assert_eq!(found.2, expected.2, "counts, {way}, {what:?}");
            assert_eq!(found.1, expected.1, "indices, {way}, {what:?}");
            assert!(found == expected, "values, {way}, {what:?}");
        }
    }
}

proptest! {
    #[test]
    fn nothing_gets_lost(attack in attacks()) {
        let (sae, x) = attack.sae(&mut numbers(attack.seed));
        check(&sae, &x, attack.width, &attack);
        // Exact scores themselves are the definition.
        let found = outcome(&sae, &x, attack.n, Kernels::best().unwrap(), 1, Screen::Always);
        for (t, x) in x.chunks(attack.d).enumerate().take(3) {
            let Some(token) = oracle::encode(&sae, x) else {
                prop_assert_eq!(found.2[t], -1);
                continue;
            };
            prop_assert_eq!(found.2[t] as usize, token.active.len());
            let values = &found.0[t * attack.n..][..token.active.len()];
            let indices = &found.1[t * attack.n..][..token.active.len()];
            let listed: Vec<_> = indices.iter().copied().zip(values.iter().map(|&v| f32::from_bits(v))).collect();
            prop_assert_eq!(&listed, &token.active);
        }
    }
}

/// Sizes at which 8-bit sums are long, blocks do not come out even, and screens give up midway.
#[test]
fn long_vectors_and_many_latents() {
    for (i, (d, n, tokens)) in
        [(4096, 130, 33), (4095, 48, 1), (1000, 3000, 5), (64, 20_000, 2)].into_iter().enumerate()
    {
        for (rows, x) in [
            (Rows::Smooth, Tokens::Mixed),
            (Rows::Close, Tokens::Rows),
            (Rows::Same, Tokens::Outlier),
            (Rows::Apart, Tokens::Outlier),
        ] {
            for architecture in 0..4 {
                let attack = Attack {
                    seed: i as u64,
                    architecture,
                    d,
                    n,
                    tokens,
                    k: 40,
                    width: 40,
                    rows,
                    x,
                    biases: Biases::Cancelling,
                    dtype: DType::F32,
                    rescale: false,
                    select: architecture == 0,
                };
                let (sae, x) = attack.sae(&mut numbers(attack.seed));
                check(&sae, &x, attack.width, &attack);
            }
        }
    }
}

/// What is asked for all at once is the same too.
#[test]
fn dense_activations_agree_with_screened_ones() {
    let attack = Attack {
        seed: 3,
        architecture: 2,
        d: 65,
        n: 257,
        tokens: 37,
        k: 1,
        width: 0,
        rows: Rows::Smooth,
        x: Tokens::Mixed,
        biases: Biases::Smooth,
        dtype: DType::BF16,
        rescale: true,
        select: false,
    };
    let (sae, x) = attack.sae(&mut numbers(attack.seed));
    let kernels = Kernels::best().unwrap();
    let (values, indices, counts, _) = outcome(&sae, &x, attack.n, kernels, 1, Screen::Always);
    let mut session = Session::new(Arc::clone(&sae), SessionOptions::default()).unwrap();
    let mut z = vec![7.0; attack.tokens * attack.n];
    let input = Tensor::new(&x, &[attack.tokens, attack.d]).unwrap();
    let out = TensorMut::new(&mut z, &[attack.tokens, attack.n]).unwrap();
    session.encode_dense(Run::default(), input.into(), Wanted::Activations, out).unwrap();
    for (t, z) in z.chunks(attack.n).enumerate().filter(|(t, _)| counts[*t] >= 0) {
        let mut listed = vec![0.0; attack.n];
        for slot in (t * attack.n..(t + 1) * attack.n).filter(|&slot| indices[slot] >= 0) {
            listed[indices[slot] as usize] = f32::from_bits(values[slot]);
        }
        assert_eq!(z, listed);
    }
    assert!(counts.iter().any(|&count| count > 10), "{counts:?}");
}

/// A TopK SAE with every row of W_enc one number, and every row of W_dec of one norm, by which scores are multiplied.
fn even_sae(w: &[f32], b_enc: Vec<f32>, norm: f32, k: usize) -> Arc<Sae> {
    const D: usize = 64;
    let n = w.len();
    let w_enc: Vec<f32> = w.iter().flat_map(|&w| [w; D]).collect();
    let w_dec: Vec<f32> = (0..n * D).map(|i| if i % D == 0 { norm } else { 0.0 }).collect();
    let matrix = |values: &[f32]| Matrix::from_f32(values, n, D).unwrap();
    let mut spec = Spec::new(Architecture::TopK { k }, D, n);
    (spec.rescale_by_decoder_norm, spec.subtract_b_dec) = (true, false);
    Arc::new(Sae::new(spec, Weights::new(matrix(&w_enc), b_enc, matrix(&w_dec), vec![0.0; D])).unwrap())
}

/// Where factors lie below what f32 can say, and what they are multiplied by far above.
#[test]
fn small_factors_of_large_tokens() {
    let w: Vec<f32> = (0..64).map(|i| 1e-31 * (1.0 + (i * 37 % 64) as f32 / 64.0)).collect();
    check(&even_sae(&w, vec![0.0; 64], 1e-20, 2), &[1e36; 2 * 64], 2, &"small factors");
}

/// A score that is infinite before it is multiplied by a small norm belongs to no active latent, and spares no other.
#[test]
fn scores_that_leave_f32_on_the_way() {
    let mut w: Vec<f32> = (0..64).map(|i| 1.0 + i as f32 / 64.0).collect();
    w[0] = 1e33;
    let mut b_enc = vec![0.0; 64];
    b_enc[0] = f32::MAX;
    let sae = even_sae(&w, b_enc, 1e-10, 1);
    check(&sae, &[1.0; 6 * 64], 1, &"infinite on the way");
    assert_eq!(outcome(&sae, &[1.0; 64], 1, Kernels::best().unwrap(), 1, Screen::Always).1, [63]);
}

/// The waiting list's memory follows from the latents there are, not from a k beyond them, and stays small for large ones.
#[test]
fn memory_follows_from_the_latents_there_are() {
    let w: Vec<f32> = (0..3000).map(|i| i as f32 / 3000.0).collect();
    let whole = even_sae(&w, vec![0.0; 3000], 1.0, 2900);
    let shard = Arc::new(whole.shard(100, 64).unwrap());
    for (sae, most) in [(&whole, 40 << 20), (&shard, 8 << 20)] {
        let options = SessionOptions { screen: Screen::Always, ..SessionOptions::default() };
        let memory = Session::memory(&Arc::clone(sae).into(), &options).unwrap();
        assert!(memory.workspace < most, "{memory:?}");
    }
    check(&shard, &[1.0; 5 * 64], 64, &"a shard with fewer latents than k");
}
