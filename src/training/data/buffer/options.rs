//! What a buffer is made with, and what it then takes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::norms::Norms;
use crate::error::{Result, fail};
use crate::training::data::Layout;

/// What is held in memory if nothing is said: 1 GiB.
pub(super) const MEMORY: u64 = 1 << 30;
/// Bytes that the count of a document takes at most: a table of twice as many entries as rows, to the next power of two.
const DOCUMENT_COUNT: u64 = 80;
/// A few numbers, whatever the size.
const SMALL: u64 = 4096;
/// Slots have numbers of 32 bits.
pub(super) const MAX_CAPACITY: u64 = u32::MAX as u64;

/// What a buffer is made with. Zeros stand for what is said there.
#[derive(Clone, Debug, PartialEq)]
pub struct BufferOptions {
    /// What a row is, and the type in which it is held.
    pub layout: Layout,
    /// Where rows are held.
    pub room: Room,
    /// How rows are chosen.
    pub choice: Choice,
}

impl BufferOptions {
    /// The defaults for rows of a layout.
    pub fn new(layout: Layout) -> Self {
        Self { layout, room: Room::default(), choice: Choice::default() }
    }
}

/// Where rows are held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Room {
    /// The most bytes of memory the buffer takes, all that it needs counted. 0: 1 GiB.
    pub memory_bytes: u64,
    /// Size of the file that holds what does not fit into memory. 0: none.
    pub spill_bytes: u64,
    /// The folder of that file, which has no name and is gone when the buffer is, or the process.
    pub spill_folder: Option<PathBuf>,
}

/// How rows are chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// Of the order in which rows are given.
    pub seed: u64,
    /// Rows come with their document's number, and are given with it.
    pub documents: bool,
    /// Documents of which rows must be held before any are given, unless the buffer is full. 0: 1.
    pub min_documents: u64,
    /// Rows whose norm exceeds this many times the running median are left out: attention sinks. 0: none are.
    pub sink_multiple: f32,
    /// Rows whose norm exceeds this are left out. 0: none are.
    pub max_norm: f32,
    /// Rows that are not finite are held like others, instead of left out.
    pub keep_not_finite: bool,
}

/// What a buffer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferMemory {
    /// Rows that are held at most.
    pub capacity: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the file.
    pub spill_bytes: u64,
}

/// Resolved options: how many rows go where.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) memory_rows: usize,
    pub(super) spill_rows: usize,
    fixed: u64,
    /// Bytes of a row in memory beside its own.
    each: u64,
    row_bytes: u64,
}

impl Plan {
    /// As many rows as fit; not more than `most`.
    pub(super) fn new(options: &BufferOptions, most: Option<usize>) -> Result<Self> {
        let BufferOptions { layout, room, choice } = options;
        layout.check()?;
        choice.check()?;
        room.check()?;
        let row_bytes = layout.row_bytes() as u64;
        let fixed = SMALL + Norms::BYTES + 8 * layout.row_len() as u64 + 2 * row_bytes;
        let each =
            4 + if choice.documents { 8 } else { 0 } + if choice.counts_documents() { DOCUMENT_COUNT } else { 0 };
        let most = most.map_or(MAX_CAPACITY, |most| MAX_CAPACITY.min(most as u64));
        let memory = if room.memory_bytes == 0 { MEMORY } else { room.memory_bytes };
        // The file is as large as was asked for, unless that is more than is needed.
        let wanted = room.spill_bytes / row_bytes;
        let left = memory.checked_sub(fixed).and_then(|left| left.checked_sub(wanted.min(most).saturating_mul(each)));
        let memory_rows = left.map_or(0, |left| left / (row_bytes + each)).min(most);
        let spill_rows = wanted.min(most - memory_rows);
        if left.is_none() || memory_rows + spill_rows < 2 {
            let least = fixed + wanted.min(most).saturating_mul(each) + 2 * (row_bytes + each);
            return fail!(
                InvalidArgument,
                "memory_bytes: {memory} are too few for rows of {row_bytes} bytes and what is kept of each row; at least \
                 {least} are needed"
            );
        }
        Ok(Self { memory_rows: memory_rows as usize, spill_rows: spill_rows as usize, fixed, each, row_bytes })
    }

    pub(super) fn capacity(&self) -> usize {
        self.memory_rows + self.spill_rows
    }

    pub(super) fn memory(&self) -> BufferMemory {
        let (capacity, memory_rows) = (self.capacity() as u64, self.memory_rows as u64);
        BufferMemory {
            capacity: self.capacity(),
            memory_bytes: self.fixed + capacity * self.each + memory_rows * self.row_bytes,
            spill_bytes: self.spill_rows as u64 * self.row_bytes,
        }
    }
}

impl Room {
    pub(super) fn check(&self) -> Result<()> {
        match (&self.spill_folder, self.spill_bytes) {
            (None, 1..) => fail!(InvalidArgument, "spill_folder: say where the {} spill_bytes go", self.spill_bytes),
            (Some(_), 0) => fail!(InvalidArgument, "spill_bytes: is 0, but a spill_folder is given"),
            _ => Ok(()),
        }
    }
}

impl Choice {
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("sink_multiple", self.sink_multiple), ("max_norm", self.max_norm)] {
            if !(value >= 0.0 && value.is_finite()) {
                return fail!(InvalidArgument, "{name} must be a positive number, or 0 for none, not {value}");
            }
        }
        if self.sink_multiple != 0.0 && self.sink_multiple <= 1.0 {
            let found = self.sink_multiple;
            return fail!(
                InvalidArgument,
                "sink_multiple must be above 1, or 0 for none, not {found}: half of all would go"
            );
        }
        if self.min_documents > 1 && !self.documents {
            return fail!(InvalidArgument, "min_documents is {}, but documents are not kept", self.min_documents);
        }
        Ok(())
    }

    /// Whether it must be known how many documents there are.
    pub(super) fn counts_documents(&self) -> bool {
        self.min_documents > 1
    }
}
