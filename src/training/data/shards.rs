//! Activations kept in files, mapped and read in order or shuffled.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use super::files;
use super::fingerprint::Fingerprint;
use super::order::Order;
use super::shard::Shard;
use super::{Layout, Position, Rows, Source};
use crate::error::{Error, Result, fail};
use crate::formats::mapped::Arrays;

/// What is read, and in which order.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardOptions {
    /// Files, folders of them, or patterns (`runs/*/acts_*.safetensors`), in the order in which they are read; what a folder
    /// or a pattern stands for is sorted by name.
    pub paths: Vec<PathBuf>,
    /// The tensor of each file; `None`: the only one of two or more dimensions that are floats.
    pub tensor: Option<String>,
    /// The tensor beside it, i32 or i64, that tells each token's document: `[T]`, `[B, C]`, or `[B]` for whole contexts.
    /// For an array `a.npy`, which has no names, it is the file `a.NAME.npy`. `None`: in tensors `[B, C, d]` each context
    /// is a document, numbered from 0 over all files; in others all tokens are of document 0.
    pub documents: Option<String>,
    /// The tensor beside it, i32 or i64, that tells each token's position in its document, found like `documents`.
    /// `None`: in tensors `[B, C, d]` the position is the index in C.
    pub positions: Option<String>,
    /// The tensor beside it, i32 or i64, of the tokens themselves, found like `documents`. Rows do not come with it:
    /// [`Shards::told`] tells it.
    pub tokens: Option<String>,
    /// Positions that are kept: `1..u64::MAX` leaves out the first token, an attention sink. Default: all.
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
            tokens: None,
            keep_positions: EVERY,
            layered: false,
            shuffle: None,
            epochs: 0,
        }
    }
}

/// Every position.
const EVERY: Range<u64> = 0..u64::MAX;

/// How stored rows are shuffled: in each epoch the blocks of rows anew, and then the rows of each window of blocks. It takes
/// 4 bytes for each block and for each row of a window, and the place in it is a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shuffle {
    /// Of the order.
    pub seed: u64,
    /// Neighbouring rows that are moved together. 0: 256.
    pub block_rows: usize,
    /// Blocks whose rows are mixed. 0: 1024.
    pub window_blocks: usize,
}

/// What is told of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its document; 0 where none is known.
    pub document: i64,
    /// Its position in the document, if that is known.
    pub position: Option<u64>,
    /// The token, if that is known.
    pub token: Option<i64>,
}

/// A source of activations in files, memory-mapped: safetensors, npy, npz (as `numpy.savez` writes it), torch, and Arrow's (as
/// `datasets` and so SAELens write them). They must not be changed meanwhile: whoever truncates a mapped file is the end of the process that reads it.
pub struct Shards {
    layout: Layout,
    shards: Vec<Shard>,
    /// The first row of each shard, and the number of all.
    starts: Vec<u64>,
    keep: Range<u64>,
    order: Order,
    epochs: u64,
    /// Rows kept in each epoch.
    kept: u64,
    position: Position,
}

impl Shards {
    /// Opens the files and checks all of them: they must hold rows of one layout, and none may be empty.
    pub fn open(options: &ShardOptions) -> Result<Self> {
        let keep = options.keep_positions.clone();
        if keep.is_empty() {
            return fail!(InvalidArgument, "keep_positions: {keep:?} keeps none");
        }
        let (mut shards, mut starts, mut first_document) = (Vec::<Shard>::new(), vec![0], 0);
        let mut kept = 0;
        let mut data = Fingerprint::new();
        for path in files::find(options)? {
            let mut open = || {
                data.add(path.file_name().unwrap_or_default().as_encoded_bytes());
                data.add(&fs::metadata(&path)?.len().to_le_bytes());
                let parts = Arrays::open(&path)?;
                if parts.is_empty() {
                    return fail!(InvalidArgument, "is empty");
                }
                for part in &parts {
                    let shard = Shard::new(&path, part, options, first_document)?;
                    check(&shard, shards.first(), &keep)?;
                    shard.tell(&mut data);
                    kept += shard.count(&keep);
                    first_document += shard.contexts();
                    starts.push(starts[starts.len() - 1] + shard.rows());
                    shards.push(shard);
                }
                Ok(())
            };
            open().map_err(|e: Error| e.at(path.display()))?;
        }
        let Some(layout) = shards.first().map(Shard::layout) else {
            return fail!(InvalidArgument, "paths: name at least one file");
        };
        if kept == 0 {
            return fail!(InvalidArgument, "keep_positions: {keep:?} keeps no row of the files");
        }
        let rows = starts[shards.len()];
        let shuffle = options.shuffle.as_ref().map(Shuffle::resolve).transpose()?;
        for named in [&options.documents, &options.positions] {
            data.add(named.as_deref().unwrap_or_default().as_bytes());
        }
        let of = format!(
            "{} parts, {rows} rows {:?} {}, {kept} kept of positions {keep:?}, data {data}, {}",
            shards.len(),
            layout.shape(1)[1..].to_vec(),
            layout.dtype,
            match &shuffle {
                Some(s) => format!("seed {}, {} blocks of {}", s.seed, s.window_blocks, s.block_rows),
                None => "as stored".to_owned(),
            }
        );
        let order = Order::new(rows, shuffle.as_ref())?;
        let position = Position { of, ..Position::default() };
        Ok(Self { layout, shards, starts, keep, order, epochs: options.epochs.max(1), kept, position })
    }

    /// Rows of all files, those left out included.
    fn rows(&self) -> u64 {
        self.starts[self.shards.len()]
    }

    /// What is told of a stored row, counted over all files, those left out included.
    pub fn told(&self, row: u64) -> Option<Told> {
        (row < self.rows()).then(|| {
            let (shard, row) = self.find(row);
            Told { document: shard.document(row), position: shard.position(row), token: shard.token(row) }
        })
    }

    /// The shard in which a row lies, and where.
    fn find(&self, row: u64) -> (&Shard, u64) {
        let shard = self.starts.partition_point(|&start| start <= row) - 1;
        (&self.shards[shard], row - self.starts[shard])
    }
}

/// Refuses a shard that does not go with the first, or does not tell the positions of which some are to be kept.
fn check(shard: &Shard, first: Option<&Shard>, keep: &Range<u64>) -> Result<()> {
    let found = shard.describe();
    if *keep != EVERY && !shard.tells_positions() {
        return fail!(
            InvalidArgument,
            "keep_positions: {found} tells no positions; name a tensor that does as positions"
        );
    }
    match first {
        Some(first) if first.layout() != shard.layout() => {
            fail!(InvalidArgument, "{found} does not go with {}", first.describe_with_path())
        }
        _ => Ok(()),
    }
}

impl Source for Shards {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn len(&self) -> Option<u64> {
        self.kept.checked_mul(self.epochs).filter(|_| self.epochs < u64::MAX)
    }

    fn next(&mut self, rows: &mut Rows) -> Result<usize> {
        if rows.layout() != self.layout {
            return fail!(InvalidArgument, "rows: are {:?}, the source's {:?}", rows.layout(), self.layout);
        }
        rows.clear();
        while rows.len() < rows.room() && self.position.epoch < self.epochs {
            let row = self.order.row(self.position.row);
            let (shard, row) = self.find(row);
            if self.keep == EVERY || shard.position(row).is_some_and(|position| self.keep.contains(&position)) {
                rows.push(shard.row(row), shard.document(row));
            }
            self.position.row += 1;
            if self.position.row == self.rows() {
                self.position.row = 0;
                self.position.epoch += 1;
                self.order.begin(self.position.epoch);
            }
        }
        self.position.given += rows.len() as u64;
        Ok(rows.len())
    }

    fn position(&self) -> Position {
        self.position.clone()
    }

    fn seek(&mut self, position: &Position) -> Result<()> {
        if position.of != self.position.of {
            return fail!(
                InvalidArgument,
                "position: is of {:?}, but this source is {:?}; open it with the same files and options",
                position.of,
                self.position.of
            );
        }
        let ended = position.epoch >= self.epochs && position.row > 0;
        if ended || position.epoch > self.epochs || position.row >= self.rows() {
            return fail!(
                InvalidArgument,
                "position: row {} of epoch {} is beyond the end",
                position.row,
                position.epoch
            );
        }
        self.position = position.clone();
        self.order.begin(position.epoch);
        Ok(())
    }
}
