//! Activations to train on that need no model: each row is the sum of four of 256 planted features, 64 wide, and some noise; f16
//! in npy files.
//!
//! `cargo run --release --example planted -- FOLDER`

use std::f64::consts::TAU;
use std::fs::{File, create_dir_all};
use std::io::{BufWriter, Result, Write};
use std::path::Path;

use half::f16;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

const D: usize = 64;
const FEATURES: usize = 256;
const ACTIVE: usize = 4;

struct Random(ChaCha8Rng);

impl Random {
    /// Between 0 and 1, neither of them.
    fn uniform(&mut self) -> f64 {
        (f64::from(self.0.next_u32()) + 0.5) / (f64::from(u32::MAX) + 1.0)
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (TAU * self.uniform()).cos()
    }
}

/// Writes `files` files of `rows` rows each.
pub(crate) fn write(folder: &Path, files: u64, rows: usize) -> Result<()> {
    create_dir_all(folder)?;
    let mut random = Random(ChaCha8Rng::seed_from_u64(0));
    let features: Vec<f64> = (0..FEATURES * D).map(|_| random.normal() / (D as f64).sqrt()).collect();
    for file in 0..files {
        let mut random = Random(ChaCha8Rng::seed_from_u64(1 + file));
        let mut out = BufWriter::new(File::create(folder.join(format!("planted_{file:03}.npy")))?);
        // Version 1.0: the header's length, and the header, which ends where a multiple of 64 bytes does.
        let header = format!("{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {D}), }}");
        out.write_all(b"\x93NUMPY\x01\x00\x76\x00")?;
        writeln!(out, "{header:<117}")?;
        for _ in 0..rows {
            let mut row = [0.0; D];
            for _ in 0..ACTIVE {
                // Some features are much more frequent than others.
                let feature = (FEATURES as f64 * random.uniform().powi(2)) as usize;
                let strength = 0.5 - random.uniform().ln();
                row.iter_mut().zip(&features[feature * D..]).for_each(|(x, f)| *x += strength * f);
            }
            for x in row {
                out.write_all(&f16::from_f64(x + 0.01 * random.normal()).to_le_bytes())?;
            }
        }
        out.flush()?;
    }
    Ok(())
}

#[allow(dead_code)]
fn main() -> Result<()> {
    let folder = std::env::args().nth(1).expect("usage: planted FOLDER");
    write(Path::new(&folder), 4, 100_000)
}
