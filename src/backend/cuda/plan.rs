//! What calls keep in working memory, sized before the first of them. Long calls go in chunks of tokens that fit it.

use super::driver::Block;
use super::model::CudaModel;
use super::params::{DevicePtr, EXACT_KEYS, Token, WINNOW_LATENTS};
use crate::backend::{DeviceWorkspace, Limits, Screen};
use crate::error::{Result, fail};
use crate::sae::Sae;

/// Working memory that a call may take for its tokens together, where one token does not take more.
const BUDGET: usize = 128 << 20;
/// The same for merging, which does little with much.
const MERGE_BUDGET: usize = 32 << 20;
/// Tokens of a chunk at most: grids have a limit of 65535 in their second dimension.
const MAX_CHUNK: usize = 1 << 15;
/// More ranges than this win nothing where all scores of a token are taken.
const MAX_RANGES: usize = 128;
/// Keys wanted of a token, up to which ranges of latents are gone through in parallel first.
const MAX_WINNOWED: usize = WINNOW_LATENTS / 4;
/// Latents that may wait where the tokens of a call are few: then that their list is longer costs little, and that it is
/// shortened less often saves launches, each of which would leave most of the device idle.
const WAITING_TOGETHER: usize = 1 << 18;
/// The same of one token.
const WAITING_ALONE: usize = 1 << 14;
/// Of latents that do not compete, one in so many may wait.
const LIKELY_SHARE: usize = 16;
/// Arrays start at multiples of so many bytes.
const ALIGN: usize = 256;
/// Shards whose features are merged at the speed that memory is sized for; more go in smaller chunks.
const PARTS: usize = 4;
/// The most shards.
pub(super) const MAX_PARTS: usize = 64;

/// What never changes between calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Latents.
    pub n: usize,
    /// Length of a row of x″, with the zeros behind it.
    pub padded: usize,
    /// Length of a rounded row.
    pub rounded: usize,
    pub d_out: usize,
    /// How many of a token's candidates are active at most, where there is such a number.
    pub k: Option<usize>,
    /// Latents that cannot be chosen apart.
    pub group: usize,
    /// Whether winners win by something else than their values.
    pub ranked: bool,
    /// Whether scores are bounded first.
    pub screened: bool,
    pub has_skip: bool,
    pub limits: Limits,
}

/// What is kept of the tokens of a call that encodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoding {
    /// Keys that the call wants of a token, at most.
    pub limit: usize,
    /// Keys found for it: more where winning and being listed are different things.
    pub gathered: usize,
    /// From one token's keys to the next's.
    pub kept_stride: usize,
    /// How many latents may wait for their exact scores.
    pub capacity: usize,
}

/// Bytes of working memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    per_token: usize,
    fixed: usize,
}

impl Need {
    /// Also an array of so many bytes for each token.
    pub(super) fn and(self, per_token: usize) -> Self {
        // Each array may begin with a gap, and have one element more than tokens.
        let fixed = if per_token == 0 { 0 } else { 2 * ALIGN };
        Self { per_token: self.per_token + per_token, fixed: self.fixed + fixed }
    }

    fn bytes(&self, tokens: usize, budget: usize) -> usize {
        let wanted = tokens.min(MAX_CHUNK).saturating_mul(self.per_token);
        self.fixed + wanted.min(budget.max(self.per_token))
    }
}

impl Encoding {
    /// Ranges of latents that are gone through apart where all scores of a token are taken, so that more of the device works for it.
    pub(super) fn ranges(&self, n: usize) -> usize {
        match self.gathered {
            gathered if gathered <= EXACT_KEYS => {
                (self.capacity / gathered.max(1)).min(n.div_ceil(EXACT_KEYS)).clamp(1, MAX_RANGES)
            }
            _ => 1,
        }
    }
}

impl Plan {
    pub(super) fn new(sae: &Sae, limits: Limits, screen: Screen) -> Self {
        let spec = sae.spec();
        let group = match spec.architecture {
            crate::sae::Architecture::GroupMax { k } => spec.whole_latents() / k,
            _ => 1,
        };
        let k = spec.architecture.k();
        let can_be_screened = sae.weights().glu.is_none() && group == 1;
        // Few latents are scored as fast as they are bounded; so are many of which many win.
        let wanted = match screen {
            Screen::Never => false,
            Screen::Always => true,
            Screen::Auto => Screen::pays(spec.n_latents, k),
        };
        Self {
            n: spec.n_latents,
            padded: spec.d_in.next_multiple_of(16),
            rounded: spec.d_in.next_multiple_of(8),
            d_out: spec.d_out,
            k,
            group,
            ranked: spec.select_by_decoder_norm && k.is_some(),
            screened: wanted && can_be_screened,
            has_skip: sae.weights().w_skip.is_some(),
            limits,
        }
    }

    /// Groups, or latents.
    pub(super) fn groups(&self) -> usize {
        self.n / self.group
    }

    /// Keys of a token that are found first, where scores are not selected from at once: the best of groups, or the largest of
    /// each of many ranges of latents.
    pub(super) fn best(&self, encoding: &Encoding) -> usize {
        match encoding.gathered {
            _ if self.group > 1 => self.groups(),
            gathered @ 1..=MAX_WINNOWED if self.n > 2 * WINNOW_LATENTS => gathered * self.n.div_ceil(WINNOW_LATENTS),
            _ => 0,
        }
    }

    /// What a call of so many tokens keeps that wants `limit` keys of each at most.
    pub(super) fn encoding(&self, limit: usize, rows: usize) -> Encoding {
        let most = self.n.min(self.k.unwrap_or(usize::MAX));
        let limit = limit.min(most);
        let gathered = if (self.screened && self.k.is_some()) || self.ranked { most } else { limit };
        let likely = match self.k {
            Some(k) => k.min(self.n).saturating_mul(4),
            None => (self.n / LIKELY_SHARE).clamp(2048, WAITING_ALONE),
        };
        let few = (WAITING_TOGETHER / rows.max(1).next_power_of_two()).min(WAITING_ALONE).min(self.n);
        Encoding {
            limit,
            gathered,
            kept_stride: gathered.max(1).next_power_of_two(),
            capacity: likely.max(gathered + 1024).max(few).next_multiple_of(128),
        }
    }

    /// x″ and what is known of the tokens.
    pub(super) fn prepared(&self) -> Need {
        Need::default().and(4 * self.padded).and(size_of::<Token>())
    }

    /// What scores of all latents are made from, at once for the host.
    pub(super) fn scored(&self, fast: bool) -> Need {
        if fast { self.prepared().and(2 * self.rounded).and(4) } else { self.prepared() }
    }

    pub(super) fn encoded(&self, encoding: &Encoding) -> Need {
        let need = self.scored(self.screened).and(8 * encoding.kept_stride);
        if self.screened {
            need.and(8 * encoding.capacity).and(4 * encoding.capacity)
        } else {
            need.and(4 * self.n).and(8 * self.best(encoding))
        }
    }

    /// What a skip path reads, and what comes of it.
    pub(super) fn skipped(&self, need: Need) -> Need {
        if self.has_skip { need.and(4 * self.padded).and(4 * self.d_out) } else { need }
    }

    pub(super) fn reconstructed(&self, encoding: &Encoding, width: usize) -> Need {
        self.skipped(self.encoded(encoding)).and(8 * width.max(1).next_power_of_two())
    }

    pub(super) fn steered(&self, encoding: Option<&Encoding>) -> Need {
        let need = encoding.map_or_else(|| self.prepared(), |encoding| self.encoded(encoding));
        need.and(4).and(4 * self.limits.edits_per_slot.max(1))
    }

    /// Keys of all parts, the largest of them, and what is known of the tokens.
    pub(super) fn merged(&self, keys: usize, limit: usize) -> Need {
        Need::default().and(8 * keys.max(1)).and(8 * limit.max(1).next_power_of_two()).and(size_of::<Token>())
    }

    /// Bytes that every call finds enough.
    pub(super) fn workspace(&self) -> usize {
        let Limits { max_tokens, max_width, .. } = self.limits;
        let merged = |parts: usize| self.merged(parts * max_width, max_width.min(self.k.unwrap_or(usize::MAX)));
        let others = [
            self.steered(None).bytes(max_tokens, BUDGET),
            self.skipped(Need::default()).bytes(max_tokens, BUDGET),
            merged(PARTS).bytes(max_tokens, MERGE_BUDGET),
            merged(MAX_PARTS).bytes(1, 0),
        ];
        // Calls of fewer tokens may need more than those of most: there are steps at the powers of two.
        let steps =
            std::iter::successors(Some(1usize), |rows| rows.checked_mul(2)).take_while(|rows| *rows < max_tokens);
        let encoding = steps.chain([max_tokens]).flat_map(|rows| self.encoding_calls(rows));
        encoding.chain(others).fold(0, usize::max).next_multiple_of(ALIGN)
    }

    /// Bytes for each kind of call that encodes so many tokens.
    fn encoding_calls(&self, rows: usize) -> [usize; 4] {
        let width = self.limits.max_width;
        let (few, all) = (self.encoding(width, rows), self.encoding(usize::MAX, rows));
        // Narrow calls may need more than wide ones, which are not winnowed.
        let winnowed = self.encoding(width.min(MAX_WINNOWED), rows);
        [
            self.encoded(&few),
            self.encoded(&winnowed),
            self.reconstructed(&all, width),
            self.steered(self.k.is_some().then_some(&all)),
        ]
        .map(|need| need.bytes(rows, BUDGET))
    }

    /// Bytes of the device's memory that sessions of the SAE share.
    pub(super) fn shared(&self, sae: &Sae) -> usize {
        if self.screened { CudaModel::screen_memory(sae) } else { 0 }
    }
}

/// Working memory: the session's own, or what a call brings.
pub(super) struct Workspace {
    own: Option<Block>,
    size: usize,
}

impl Workspace {
    pub(super) fn new(own: Option<Block>, size: usize) -> Self {
        Self { own, size }
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The memory for one call.
    pub(super) fn get(&self, brought: Option<DeviceWorkspace>) -> Result<Memory> {
        let size = self.size;
        match (brought, &self.own) {
            (Some(memory), _) if memory.size < size => {
                let found = memory.size;
                fail!(InvalidArgument, "the workspace must hold {size} bytes, this one holds {found}")
            }
            (Some(memory), _) if !memory.at.is_multiple_of(ALIGN as u64) || memory.at == 0 => {
                fail!(InvalidArgument, "the workspace must be aligned to {ALIGN} bytes")
            }
            (Some(memory), _) => Ok(Memory { at: memory.at, left: size }),
            (None, Some(own)) => Ok(Memory { at: own.at().0, left: size }),
            (None, None) => fail!(
                InvalidArgument,
                "this session was made to run in the host's workspace: bring {size} bytes of the device's memory with each call"
            ),
        }
    }
}

/// Working memory of a call, being cut up.
pub(super) struct Memory {
    at: u64,
    left: usize,
}

impl Memory {
    /// Tokens of a chunk, for a call of `rows`; chunks are of equal size.
    pub(super) fn chunk(&self, need: &Need, rows: usize) -> usize {
        let most = self.left.saturating_sub(need.fixed) / need.per_token.max(1);
        let most = most.clamp(1, MAX_CHUNK);
        rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
    }

    /// An array.
    pub(super) fn take(&mut self, bytes: usize) -> DevicePtr {
        if bytes == 0 {
            return DevicePtr::NULL;
        }
        let bytes = bytes.next_multiple_of(ALIGN);
        assert!(bytes <= self.left, "the working memory was sized for this");
        let at = DevicePtr(self.at);
        (self.at, self.left) = (self.at + bytes as u64, self.left - bytes);
        at
    }
}

/// What a session keeps besides working memory: edits, how many there are in each list, and a counter.
pub(super) fn kept(limits: Limits) -> usize {
    limits.slots * (limits.edits_per_slot * size_of::<super::params::Edit>() + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_latents_take_less_than_200_mb_to_work_in() {
        let limits = Limits { max_tokens: 8192, max_width: 64, slots: 1, edits_per_slot: 16 };
        let plan = Plan {
            n: 1 << 20,
            padded: 2304,
            rounded: 2304,
            d_out: 2304,
            k: Some(64),
            group: 1,
            ranked: false,
            screened: true,
            has_skip: false,
            limits,
        };
        assert!(plan.workspace() < 200_000_000, "{}", plan.workspace());
        // Nor do chunks become so small that weights are read again and again.
        let memory = Memory { at: 256, left: plan.workspace() };
        assert!(memory.chunk(&plan.encoded(&plan.encoding(64, 8192)), 8192) >= 4096);
    }
}
