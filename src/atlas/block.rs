//! A few consecutive tokens of a document, and the features on them, gathered by feature.

use crate::error::{Error, Result, Status};

/// An activation: a feature, counted from the atlas's first, on the token at an offset into a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) feature: u32,
    pub(super) offset: u32,
    pub(super) value: f32,
}

/// Consecutive tokens, for which there is room from the beginning.
pub(super) struct Block {
    pub(super) tokens: Vec<i32>,
    /// In the order they came until the block is sorted, then by feature and offset.
    entries: Vec<Entry>,
}

impl Block {
    /// Room for so many tokens, of so many features each.
    pub(super) fn new(tokens: usize, features: usize) -> Result<Self> {
        let mut block = Self { tokens: Vec::new(), entries: Vec::new() };
        let no_room = |_| Error::new(Status::OutOfMemory, "there is no memory for the tokens of open documents");
        block.tokens.try_reserve_exact(tokens).map_err(no_room)?;
        block.entries.try_reserve_exact(tokens * features).map_err(no_room)?;
        Ok(block)
    }

    /// Adds a token; its features follow.
    pub(super) fn push(&mut self, token: i32) {
        self.tokens.push(token);
    }

    /// Adds a feature of the last token.
    pub(super) fn add(&mut self, feature: u32, value: f32) {
        self.entries.push(Entry { feature, offset: self.tokens.len() as u32 - 1, value });
    }

    /// Gathers the activations of each feature. Of a feature that is listed twice on a token, the largest is meant.
    pub(super) fn sort(&mut self) {
        let place = |entry: &Entry| u64::from(entry.feature) << 32 | u64::from(entry.offset);
        let size = |entry: &Entry| (!entry.value.abs().to_bits(), entry.value.to_bits());
        self.entries.sort_unstable_by_key(|entry| (place(entry), size(entry)));
        self.entries.dedup_by_key(|entry| place(entry));
    }

    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        self.entries.clear();
    }

    /// The activations of each feature.
    pub(super) fn groups(&self) -> impl Iterator<Item = &[Entry]> {
        self.entries.chunk_by(|a, b| a.feature == b.feature)
    }

    /// The activations of one feature.
    fn group(&self, feature: u32) -> &[Entry] {
        let start = self.entries.partition_point(|entry| entry.feature < feature);
        let rest = &self.entries[start..];
        &rest[..rest.partition_point(|entry| entry.feature == feature)]
    }
}

/// A block between its neighbours, which are empty at the ends of what was seen of the document.
pub(super) struct Neighbourhood<'a> {
    pub(super) document: i64,
    /// The position of the block's first token.
    pub(super) position: u64,
    pub(super) blocks: [&'a Block; 3],
}

impl<'a> Neighbourhood<'a> {
    pub(super) fn here(&self) -> &'a Block {
        self.blocks[1]
    }

    /// A feature's activations, each with its place relative to the block's first token.
    pub(super) fn around(&self, feature: u32) -> impl Iterator<Item = (i64, f32)> + use<'a> {
        let [before, here, _] = self.blocks;
        let starts = [-(before.tokens.len() as i64), 0, here.tokens.len() as i64];
        let blocks = self.blocks.into_iter().zip(starts);
        blocks.flat_map(move |(block, start)| {
            block.group(feature).iter().map(move |entry| (start + i64::from(entry.offset), entry.value))
        })
    }

    /// The tokens at places from `from` to before `to`, as far as there are any, and the place of the first of them.
    pub(super) fn tokens(&self, from: i64, to: i64) -> (i64, impl Iterator<Item = i32> + use<'a>) {
        let [before, here, after] = self.blocks.map(|block| block.tokens.as_slice());
        let first = -(before.len() as i64);
        let last = (here.len() + after.len()) as i64;
        let (from, to) = (from.max(first), to.min(last));
        let all = before.iter().chain(here).chain(after).copied();
        (from, all.skip((from - first) as usize).take((to - from) as usize))
    }
}
