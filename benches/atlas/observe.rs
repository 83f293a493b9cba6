//! What an atlas costs: time beside encoding, and memory beside its stated bound.
//!
//! `cargo run --release --example atlas -- cost` encodes random activations (n = 32768, k = 32, d = 768) on one thread and has an
//! atlas watch the features. `… -- memory [TOKENS] [LATENTS]` has one of 131,072 latents watch 10 million tokens of made-up
//! features, 32 each, most of rare latents and some of frequent ones, and tells the memory of the process.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use sae::Result;
use sae::atlas::{Atlas, AtlasOptions, Observed};
use sae::backend::{Pool, Run};
use sae::features::Features;
use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions};
use sae::tensor::Tensor;

const K: usize = 32;
const TOGETHER: usize = 256;
/// Tokens of a document.
const DOCUMENT: usize = 256;
/// What comes on top of the bound: each of an atlas's 14 arrays ends within a large page, and the process touches some of its own.
const PAGES: u64 = (14 + 4) * (2 << 20);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| arguments.get(i).and_then(|text| text.parse().ok()).unwrap_or(default);
    match arguments.first().map(String::as_str) {
        Some("cost") => cost(number(1, 16_384)),
        Some("memory") => memory(number(1, 10_000_000), number(2, 131_072)),
        _ => {
            eprintln!("atlas cost [TOKENS] | memory [TOKENS] [LATENTS]");
            Ok(())
        }
    }
}

/// Numbers in -1..1.
fn uniform(rng: &mut impl RngCore) -> f32 {
    rng.next_u32() as f32 / (1u32 << 31) as f32 - 1.0
}

fn cost(tokens: usize) -> Result<()> {
    let (n, d) = (32_768, 768);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let values: Vec<f32> = (0..n * d).map(|_| uniform(&mut rng)).collect();
    let matrix = Matrix::from_f32(&values, n, d)?;
    let weights = Weights::new(matrix.clone(), vec![0.0; n], matrix, vec![0.0; d]);
    let sae = Arc::new(Sae::new(Spec::new(Architecture::TopK { k: K }, d, n), weights)?);
    let options = SessionOptions { max_tokens: TOGETHER, pool: Pool::serial(), ..SessionOptions::default() };
    let mut session = Session::new(sae, options)?;
    let mut atlas = Atlas::new(&AtlasOptions { n_latents: n, max_width: K, ..AtlasOptions::default() })?;
    let mut features = Features::new(TOGETHER, K, 0);
    let ids: Vec<i32> = (0..TOGETHER as i32).collect();
    let (mut encoding, mut observing) = (Duration::ZERO, Duration::ZERO);
    for call in 0..tokens.div_ceil(TOGETHER) {
        let x: Vec<f32> = (0..TOGETHER * d).map(|_| uniform(&mut rng)).collect();
        let start = Instant::now();
        session.encode(Run::default(), Tensor::new(&x, &[TOGETHER, d])?.into(), features.view_mut())?;
        encoding += start.elapsed();
        let documents = [call as i64; TOGETHER];
        let start = Instant::now();
        atlas.observe(&Observed { documents: Some(&documents), ..Observed::new(features.view(), &ids) })?;
        observing += start.elapsed();
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / tokens as f64;
    println!(
        "n 32768, k 32, d 768, one thread, {tokens} tokens: encode {:.1} µs per token, observe {:.2} µs, {:.1} % of it",
        each(encoding),
        each(observing),
        100.0 * observing.as_secs_f64() / encoding.as_secs_f64()
    );
    Ok(())
}

fn memory(tokens: usize, n: usize) -> Result<()> {
    let options = AtlasOptions { n_latents: n, max_width: K, ..AtlasOptions::default() };
    let before = resident();
    let mut atlas = Atlas::new(&options)?;
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut features = Features::new(TOGETHER, K, 0);
    features.counts.fill(K as i32);
    let mut making = Duration::ZERO;
    let start = Instant::now();
    for call in 0..tokens.div_ceil(TOGETHER) {
        let made = Instant::now();
        for (index, value) in features.indices.iter_mut().zip(&mut features.values) {
            // Densities that fall off as those of real latents do, over about three powers of ten.
            let u = (rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
            *index = ((u * u * n as f32) as usize).min(n - 1) as i32;
            *value = 0.1 - (1.0 - (rng.next_u32() >> 8) as f32 / (1 << 24) as f32).ln();
        }
        let ids: [i32; TOGETHER] = std::array::from_fn(|i| (call + i * 37) as i32 % 50_000);
        let documents: [i64; TOGETHER] = std::array::from_fn(|i| ((call * TOGETHER + i) / DOCUMENT) as i64);
        making += made.elapsed();
        atlas.observe(&Observed { documents: Some(&documents), ..Observed::new(features.view(), &ids) })?;
    }
    atlas.finish();
    let seconds = (start.elapsed() - making).as_secs_f64();
    let (bound, taken) = (options.memory()?, resident() - before);
    let live = atlas.latents().filter(|&latent| atlas.count(latent).is_ok_and(|count| count > 0)).count();
    println!(
        "{n} latents ({live} live), {tokens} tokens: {:.2} µs per token, one thread; bound {:.0} MB, taken {:.0} MB, {}",
        seconds * 1e6 / tokens as f64,
        bound as f64 / 1e6,
        taken as f64 / 1e6,
        if taken <= bound + PAGES { "held" } else { "NOT HELD" }
    );
    black_box(&atlas);
    Ok(())
}

/// Bytes of memory of the process, at most so far.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
