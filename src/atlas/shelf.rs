//! Where windows are kept: for each feature and class so many, of which those of the best rank stay.

use std::cmp::Ordering;

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::block::Neighbourhood;
use super::options::Context;
use crate::error::Result;
use crate::tensor::Array;

/// What is kept of a window beside its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Head {
    /// The lower, the better.
    pub(super) key: u64,
    pub(super) document: i64,
    /// Of the token that the window is around.
    pub(super) position: u64,
    /// The activation there.
    pub(super) value: f32,
    /// Which of the window's tokens that is.
    pub(super) at: u16,
    /// Tokens of the window; 0: there is none.
    pub(super) len: u16,
}

impl Head {
    /// By key, then in the order of documents: a rank that no two windows of a feature share.
    pub(super) fn rank(&self, other: &Self) -> Ordering {
        let place = |head: &Self| (head.key, head.document, head.position);
        place(self).cmp(&place(other))
    }
}

/// Windows of one width. Slots of a feature are classes after classes; those of a class are filled from its first on.
pub(super) struct Shelf {
    pub(super) context: Context,
    pub(super) classes: usize,
    pub(super) per_class: usize,
    heads: Array<Head>,
    tokens: Array<i32>,
    /// bf16.
    activations: Array<u16>,
    /// Of each class the key that a window must not exceed to be kept.
    limits: Array<u64>,
}

impl Shelf {
    /// Bytes of a window's token and the activation there.
    pub(super) const TOKEN_BYTES: usize = size_of::<i32>() + size_of::<u16>();

    pub(super) fn new(n: usize, classes: usize, per_class: usize, context: Context) -> Result<Self> {
        let slots = n * classes * per_class;
        let mut limits = Array::zeroed(n * classes)?;
        limits.fill(if per_class == 0 { 0 } else { u64::MAX });
        Ok(Self {
            context,
            classes,
            per_class,
            heads: Array::zeroed(slots)?,
            tokens: Array::zeroed(slots.saturating_mul(context.width()))?,
            activations: Array::zeroed(slots.saturating_mul(context.width()))?,
            limits,
        })
    }

    /// Whether a window of this key may be kept: a quick look before it is made.
    pub(super) fn accepts(&self, feature: u32, class: usize, key: u64) -> bool {
        key <= self.limits[feature as usize * self.classes + class] && self.per_class > 0
    }

    /// Keeps the window around an activation if its rank is good enough. `place` is relative to the neighbourhood's block.
    pub(super) fn offer(
        &mut self,
        feature: u32,
        class: usize,
        key: u64,
        (place, value): (i64, f32),
        from: &Neighbourhood<'_>,
    ) {
        let position = from.position + place as u64;
        let head = Head { key, document: from.document, position, value, at: 0, len: 0 };
        let Some(slot) = self.slot(feature, class, &head) else { return };
        let Context { before, after } = self.context;
        let (first, tokens) = from.tokens(place - before as i64, place + after as i64 + 1);
        let (to_tokens, to_activations) = self.window_mut(slot);
        let mut len = 0;
        for (to, token) in to_tokens.iter_mut().zip(tokens) {
            *to = token;
            len += 1;
        }
        to_activations.fill(0);
        for (place, value) in from.around(feature) {
            if (first..first + len).contains(&place) {
                to_activations[(place - first) as usize] = rounded(value);
            }
        }
        self.heads[slot] = Head { at: (place - first) as u16, len: len as u16, ..head };
        self.limit(feature, class);
    }

    /// Keeps a window of another shelf, if its rank is good enough.
    pub(super) fn take(&mut self, feature: u32, class: usize, window: (&Head, &[i32], &[u16])) {
        let (head, tokens, activations) = window;
        let Some(slot) = self.slot(feature, class, head) else { return };
        let (to_tokens, to_activations) = self.window_mut(slot);
        to_tokens.copy_from_slice(tokens);
        to_activations.copy_from_slice(activations);
        self.heads[slot] = *head;
        self.limit(feature, class);
    }

    /// Puts a feature's windows into other classes, each keeping the best.
    pub(super) fn regroup(&mut self, feature: u32, class: impl Fn(&Head) -> usize) {
        let slots = self.slots(feature);
        let width = self.context.width();
        let filled: Vec<usize> = slots.clone().filter(|&slot| self.heads[slot].len > 0).collect();
        let windows: Vec<_> = filled
            .iter()
            .map(|&slot| {
                let at = slot * width..(slot + 1) * width;
                (self.heads[slot], self.tokens[at.clone()].to_vec(), self.activations[at].to_vec())
            })
            .collect();
        self.heads[slots].fill(Head::default());
        let limits = feature as usize * self.classes..(feature as usize + 1) * self.classes;
        self.limits[limits].fill(if self.per_class == 0 { 0 } else { u64::MAX });
        for (head, tokens, activations) in &windows {
            self.take(feature, class(head), (head, tokens, activations));
        }
    }

    /// The windows of a class, the best first.
    pub(super) fn sorted(&self, feature: u32, class: usize) -> Vec<(&Head, &[i32], &[u16])> {
        let mut slots: Vec<usize> = self.class(feature, class).filter(|&slot| self.heads[slot].len > 0).collect();
        slots.sort_unstable_by(|&a, &b| self.heads[a].rank(&self.heads[b]));
        let width = self.context.width();
        let window = |slot: usize| {
            let at = slot * width..(slot + 1) * width;
            (&self.heads[slot], &self.tokens[at.clone()], &self.activations[at])
        };
        slots.into_iter().map(window).collect()
    }

    /// How many windows a class has.
    pub(super) fn len(&self, feature: u32, class: usize) -> usize {
        self.heads[self.class(feature, class)].iter().take_while(|head| head.len > 0).count()
    }

    fn slots(&self, feature: u32) -> std::ops::Range<usize> {
        let each = self.classes * self.per_class;
        feature as usize * each..(feature as usize + 1) * each
    }

    fn class(&self, feature: u32, class: usize) -> std::ops::Range<usize> {
        let start = self.slots(feature).start + class * self.per_class;
        start..start + self.per_class
    }

    /// Where a window goes: a slot that is free, or that of the worst window, if that is worse.
    fn slot(&self, feature: u32, class: usize, head: &Head) -> Option<usize> {
        let slots = self.class(feature, class);
        let free = slots.start + self.len(feature, class);
        if free < slots.end {
            return Some(free);
        }
        let worst = slots.max_by(|&a, &b| self.heads[a].rank(&self.heads[b]))?;
        (head.rank(&self.heads[worst]) == Ordering::Less).then_some(worst)
    }

    fn limit(&mut self, feature: u32, class: usize) {
        let heads = &self.heads[self.class(feature, class)];
        let worst = heads.iter().map(|head| if head.len == 0 { u64::MAX } else { head.key }).max();
        self.limits[feature as usize * self.classes + class] = worst.unwrap_or(0);
    }

    fn window_mut(&mut self, slot: usize) -> (&mut [i32], &mut [u16]) {
        let width = self.context.width();
        let at = slot * width..(slot + 1) * width;
        let (tokens, activations) = (&mut self.tokens[at.clone()], &mut self.activations[at]);
        // What a shorter window leaves of a longer one would be saved with it.
        tokens.fill(0);
        (tokens, activations)
    }
}

/// As bf16, the largest of which stands for all that are larger.
fn rounded(value: f32) -> u16 {
    let rounded = bf16::from_f32(value);
    if rounded.is_finite() { rounded.to_bits() } else { bf16::MAX.to_bits() | rounded.to_bits() & 0x8000 }
}
