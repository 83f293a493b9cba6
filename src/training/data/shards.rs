//! Activations kept in files.

use std::ops::Range;
use std::path::PathBuf;

use super::{Layout, Position, Rows, Source};
use crate::error::{Result, fail};

/// What is read, and in which order.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardOptions {
    /// Files, folders of them, or patterns (`runs/*/acts_*.safetensors`), in the order in which they are read; what a folder
    /// or a pattern stands for is sorted by name.
    pub paths: Vec<PathBuf>,
    /// The tensor of each file; `None`: the only one of two or more dimensions that are floats.
    pub tensor: Option<String>,
    /// The tensor beside it, i32 or i64, that tells each token's document.
    pub documents: Option<String>,
    /// The tensor beside it, i32 or i64, that tells each token's position in its document. `None`: in tensors
    /// `[B, C, d]` the position is the index in C.
    pub positions: Option<String>,
    /// Positions that are kept: `1..` without the first token, an attention sink. Default: all.
    pub keep_positions: Range<u64>,
    /// Tensors are `[T, layers, d]` (or `[B, C, layers, d]`) and not `[T, d]` (or `[B, C, d]`).
    pub layered: bool,
    /// The order; `None`: as stored.
    pub shuffle: Option<Shuffle>,
    /// How many times the whole is gone through; 0: once. `u64::MAX`: without end.
    pub epochs: u64,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            tensor: None,
            documents: None,
            positions: None,
            keep_positions: 0..u64::MAX,
            layered: false,
            shuffle: None,
            epochs: 0,
        }
    }
}

/// How stored rows are shuffled: in each epoch the blocks of rows anew, and then the rows of each window of blocks. No
/// memory is needed for it, and the place in it is a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shuffle {
    /// Of the order.
    pub seed: u64,
    /// Neighbouring rows that are moved together. 0: 256.
    pub block_rows: usize,
    /// Blocks whose rows are mixed. 0: 1024.
    pub window_blocks: usize,
}

/// A source of activations in files, memory-mapped: safetensors, npy, npz (not compressed) and torch files.
pub struct Shards {
    layout: Layout,
}

impl Shards {
    /// Opens the files and checks all of them.
    pub fn open(options: &ShardOptions) -> Result<Self> {
        fail!(Unsupported, "{} paths: not read yet", options.paths.len())
    }
}

impl Source for Shards {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn len(&self) -> Option<u64> {
        None
    }

    fn next(&mut self, rows: &mut Rows) -> Result<usize> {
        rows.clear();
        Ok(0)
    }

    fn position(&self) -> Position {
        Position::default()
    }

    fn seek(&mut self, _: &Position) -> Result<()> {
        fail!(Unsupported, "not read yet")
    }
}
