//! Small runs over made-up activations.

use std::collections::BTreeMap;
use std::path::Path;

use sae::backend::Pool;
use sae::tensor::DType;
use sae::training::data::{Layout, Position, Rows, Source};
use sae::training::run::{Member, Plan, RunOptions, StepRecord, TrainingRun};
use sae::training::{Recipe, TrainOptions};
use sae::{Error, Result, Status};

pub(crate) const D: usize = 12;

/// Sums of three of 24 fixed directions, a row for each number.
pub(crate) struct Planted {
    pub(crate) rows: u64,
    pub(crate) layers: Option<usize>,
    pub(crate) at: u64,
    /// What becomes of rows from here on.
    pub(crate) spoiled: Option<(u64, f32)>,
}

impl Planted {
    pub(crate) fn new(rows: u64) -> Self {
        Self { rows, layers: None, at: 0, spoiled: None }
    }

    fn row(&self, row: u64, out: &mut [f32]) {
        for (layer, out) in out.chunks_exact_mut(D).enumerate() {
            out.fill(0.1 * layer as f32);
            for i in 0..3 {
                let feature = hash(row * 3 + i) % 24;
                let strength = 0.5 + unit(hash(row * 3 + i) >> 8);
                for (j, x) in out.iter_mut().enumerate() {
                    *x += strength * (unit(hash((1 << 40) + feature * 100 + j as u64)) - 0.5);
                }
            }
            match self.spoiled {
                Some((first, factor)) if row >= first => out.iter_mut().for_each(|x| *x *= factor),
                _ => {}
            }
        }
    }
}

fn hash(x: u64) -> u64 {
    let x = (x ^ x >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ x >> 32
}

fn unit(x: u64) -> f32 {
    (x & 0xffff) as f32 / 65536.0
}

impl Source for Planted {
    fn layout(&self) -> Layout {
        Layout { layers: self.layers, d: D, dtype: DType::F32 }
    }

    fn len(&self) -> Option<u64> {
        Some(self.rows)
    }

    fn next(&mut self, rows: &mut Rows) -> Result<usize> {
        rows.clear();
        let mut values = vec![0.0; self.layout().row_len()];
        while rows.len() < rows.room() && self.at < self.rows {
            self.row(self.at, &mut values);
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_ne_bytes()).collect();
            rows.push(&bytes, 0);
            self.at += 1;
        }
        Ok(rows.len())
    }

    fn position(&self) -> Position {
        Position { row: self.at, given: self.at, of: format!("{} planted rows", self.rows), ..Position::default() }
    }

    fn seek(&mut self, position: &Position) -> Result<()> {
        if position.of != self.position().of {
            return Err(Error::new(Status::InvalidArgument, "a place in other data"));
        }
        self.at = position.row;
        Ok(())
    }
}

/// Two SAEs of different sizes and recipes.
pub(crate) fn members() -> Vec<Member> {
    let of = |n_latents, k| TrainOptions {
        d: D,
        n_latents,
        k,
        seed: 7,
        learning_rate: 3e-3,
        dead_after_tokens: 100,
        warmup_steps: 10,
        decay_fraction: 0.2,
        ..TrainOptions::default()
    };
    let large = TrainOptions { recipe: Recipe::BatchTopK, ..of(96, 3) };
    vec![Member::new("small", of(24, 3)), Member::new("large", large)]
}

pub(crate) fn options() -> RunOptions {
    RunOptions { batch: 32, sample: 256, checkpoint_every: 10, keep: 2, evaluate_every: 20, ..RunOptions::default() }
}

/// A run of `rows` rows, after 64 that are held out.
pub(crate) fn plan(folder: &Path, rows: u64) -> Plan {
    let mut source = Planted::new(64 + rows);
    let mut held_out = Rows::new(source.layout(), 64).unwrap();
    source.next(&mut held_out).unwrap();
    Plan {
        folder: folder.to_owned(),
        options: options(),
        members: members(),
        source: Box::new(source),
        held_out: Some(held_out),
        pool: Pool::serial(),
    }
}

/// Goes on to the end, and makes a last checkpoint.
pub(crate) fn finish(run: &mut TrainingRun) {
    while run.advance().unwrap().is_some() {}
    run.evaluate().unwrap();
    run.checkpoint().unwrap();
}

/// The bytes of every file below a folder, by its path.
pub(crate) fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                all.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    all
}

/// The steps that a run has told of, without what depends on the clock.
pub(crate) fn records(folder: &Path, name: &str) -> Vec<StepRecord> {
    let text = std::fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
    let record = |line| StepRecord { tokens_per_second: 0.0, elapsed: 0.0, ..serde_json::from_str(line).unwrap() };
    text.lines().map(record).collect()
}
