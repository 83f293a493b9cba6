//! What an atlas keeps, and the memory it takes for that.

use serde::{Deserialize, Serialize};

use super::block::Entry;
use super::shelf::{Head, Shelf};
use super::statistics::{BINS, Statistics};
use crate::error::{Result, fail};

/// Intervals of the range of a feature's activations from which windows are drawn. Even, since two become one where the range
/// doubles; as the range is a power of two, at least half of them are in use.
pub const INTERVALS: usize = 10;
/// More tokens than a window has.
const MAX_WINDOW: usize = 1024;
/// More windows of one kind than are kept of a feature.
const MAX_WINDOWS: usize = 1000;
/// More slots per token than features have.
const MAX_WIDTH: usize = 1 << 20;
/// More documents than are open at a time.
const MAX_DOCUMENTS: usize = 4096;
/// Fewer tokens than this are not settled together.
const MIN_BLOCK: usize = 32;

/// The tokens around one that make a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Tokens before it.
    pub before: usize,
    /// Tokens after it.
    pub after: usize,
}

impl Context {
    /// Tokens of a window.
    pub fn width(&self) -> usize {
        self.before + 1 + self.after
    }

    fn check(&self, name: &str) -> Result<()> {
        if self.before >= MAX_WINDOW || self.after >= MAX_WINDOW || self.width() > MAX_WINDOW {
            let Self { before, after } = self;
            return fail!(InvalidArgument, "{name}: {before} before and {after} after exceed {MAX_WINDOW} tokens");
        }
        Ok(())
    }
}

/// What an atlas keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AtlasOptions {
    /// Latents.
    pub n_latents: usize,
    /// The index of the first of them, where features come from a shard of an SAE.
    pub first_latent: usize,
    /// Windows of each feature with the highest peaks. Default: 20.
    pub top: usize,
    /// Windows drawn at random from each of [`INTERVALS`] intervals of the feature's activations. Default: 5.
    pub per_interval: usize,
    /// Windows drawn at random from all tokens on which the feature is active. Default: 10.
    pub random: usize,
    /// The tokens of top windows. Default: 47 before and 16 after.
    pub top_context: Context,
    /// The tokens of drawn windows. Default: 23 before and 8 after.
    pub drawn_context: Context,
    /// The most slots per token that features come with. Default: 512.
    pub max_width: usize,
    /// Documents whose tokens may come by turns; one more, and that which has waited longest is ended. Default: 64.
    pub max_documents: usize,
    /// Of what is drawn.
    pub seed: u64,
}

impl Default for AtlasOptions {
    fn default() -> Self {
        Self {
            n_latents: 0,
            first_latent: 0,
            top: 20,
            per_interval: 5,
            random: 10,
            top_context: Context { before: 47, after: 16 },
            drawn_context: Context { before: 23, after: 8 },
            max_width: 512,
            max_documents: 64,
            seed: 0,
        }
    }
}

impl AtlasOptions {
    /// Refuses what no atlas can keep.
    pub fn check(&self) -> Result<()> {
        let most = i32::MAX as usize;
        if self.n_latents == 0 || self.n_latents > most || self.first_latent > most - self.n_latents {
            let Self { n_latents, first_latent, .. } = self;
            return fail!(
                InvalidArgument,
                "n_latents: {n_latents} from {first_latent} on; expected 1 to {most} in all"
            );
        }
        for (name, given) in [("top", self.top), ("per_interval", self.per_interval), ("random", self.random)] {
            if given > MAX_WINDOWS {
                return fail!(InvalidArgument, "{name}: {given} windows of a feature; the most is {MAX_WINDOWS}");
            }
        }
        for (name, given, most) in
            [("max_width", self.max_width, MAX_WIDTH), ("max_documents", self.max_documents, MAX_DOCUMENTS)]
        {
            if given == 0 || given > most {
                return fail!(InvalidArgument, "{name}: expected 1 to {most}, found {given}");
            }
        }
        self.top_context.check("top_context")?;
        self.drawn_context.check("drawn_context")
    }

    /// The most bytes that an atlas of these options ever takes; nothing is allocated to find out.
    pub fn memory(&self) -> Result<u64> {
        self.check()?;
        let feature = size_of::<Statistics>() + BINS * size_of::<u64>();
        let shelf = |classes: usize, per_class: usize, context: Context| {
            let window = size_of::<Head>() + context.width() * Shelf::TOKEN_BYTES;
            classes * (per_class * window + size_of::<u64>())
        };
        let shelves = shelf(1, self.top, self.top_context)
            + shelf(INTERVALS, self.per_interval, self.drawn_context)
            + shelf(1, self.random, self.drawn_context);
        let token = size_of::<i32>() + self.max_width * size_of::<Entry>();
        let open = self.max_documents * 3 * self.block() * token;
        let row = self.max_width * size_of::<(u32, f32)>();
        Ok(self.n_latents as u64 * (feature + shelves) as u64 + (open + row) as u64)
    }

    /// Tokens that are settled together: as many as a window reaches to either side, so that it lies within three blocks.
    pub(super) fn block(&self) -> usize {
        let Self { top_context: top, drawn_context: drawn, .. } = self;
        [MIN_BLOCK, top.before, top.after, drawn.before, drawn.after].into_iter().max().unwrap_or(MIN_BLOCK)
    }

    /// Whether the same observations make the same atlas: all but the room for what comes by turns.
    pub(super) fn same_content(&self, other: &Self) -> bool {
        let plain = |of: &Self| Self { max_width: 0, max_documents: 0, ..of.clone() };
        plain(self) == plain(other)
    }
}
