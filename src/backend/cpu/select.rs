//! Which candidates are active, and exact selection of the largest by keys whose integer order is the order of features.

use crate::backend::Order;
use crate::sae::{Architecture, Spec};

/// Which of a token's candidates are active.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Selection {
    /// All.
    All,
    /// The k largest.
    TopK(usize),
    /// The k largest in magnitude; negative ones are candidates too.
    AbsTopK(usize),
    /// The largest of each of k groups of neighbours.
    GroupMax {
        /// Groups of the whole SAE.
        k: usize,
        /// Latents of a group.
        size: usize,
    },
}

impl Selection {
    pub(crate) fn of(spec: &Spec) -> Self {
        match spec.architecture {
            Architecture::Relu | Architecture::JumpRelu | Architecture::Gated => Self::All,
            Architecture::TopK { k } => Self::TopK(k),
            Architecture::AbsTopK { k } => Self::AbsTopK(k),
            Architecture::GroupMax { k } => Self::GroupMax { k, size: spec.whole_latents() / k },
        }
    }

    /// The most that can be active, where there is such a number: then candidates compete.
    pub(crate) fn k(self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::TopK(k) | Self::AbsTopK(k) | Self::GroupMax { k, .. } => Some(k),
        }
    }

    /// How many neighbouring latents cannot be chosen apart.
    pub(crate) fn group(self) -> usize {
        if let Self::GroupMax { size, .. } = self { size } else { 1 }
    }
}

/// An active latent in 64 bits: |value| above, then the index so that lower ones are larger, then the sign. Greater keys
/// come first: by value descending, ties by the lower index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct Key(u64);

impl Key {
    /// `index` must not be negative.
    pub(crate) fn new(value: f32, index: i32) -> Self {
        let magnitude = u64::from(value.abs().to_bits());
        let low = ((i32::MAX - index) as u32) << 1 | u32::from(value.is_sign_negative());
        Self(magnitude << 32 | u64::from(low))
    }

    pub(crate) fn value(self) -> f32 {
        let sign = (self.0 as u32 & 1) << 31;
        f32::from_bits((self.0 >> 32) as u32 | sign)
    }

    pub(crate) fn index(self) -> i32 {
        i32::MAX - (self.0 as u32 >> 1) as i32
    }

    /// Two numbers kept where a key could be.
    pub(crate) fn count(found: usize, candidates: usize) -> Self {
        Self((found as u64) << 32 | candidates as u64)
    }

    pub(crate) fn as_count(self) -> (usize, usize) {
        ((self.0 >> 32) as usize, self.0 as u32 as usize)
    }

    /// Ascends with the index.
    fn by_index(self) -> u32 {
        !(self.0 as u32)
    }
}

/// Brings keys into the order in which features are listed.
pub(crate) fn sort(keys: &mut [Key], order: Order) {
    match order {
        Order::Value => keys.sort_unstable_by(|a, b| b.cmp(a)),
        Order::Index => keys.sort_unstable_by_key(|key| key.by_index()),
    }
}

/// How many keys a buffer needs to keep the `limit` largest of a stream: room to gather some before the next sweep.
pub(crate) fn capacity(limit: usize) -> usize {
    limit + limit.clamp(64, 1024)
}

/// The largest of a stream of keys, in a borrowed buffer of [`capacity`] keys.
pub(crate) struct Largest<'a> {
    keys: &'a mut [Key],
    state: &'a mut Kept,
    limit: usize,
}

/// How far a [`Largest`] has come.
#[derive(Clone, Copy, Default)]
pub(crate) struct Kept {
    len: usize,
    floor: f32,
}

impl Kept {
    /// A buffer that already holds `len` keys.
    pub(crate) fn filled(len: usize) -> Self {
        Self { len, floor: 0.0 }
    }
}

impl<'a> Largest<'a> {
    pub(crate) fn new(keys: &'a mut [Key], state: &'a mut Kept, limit: usize) -> Self {
        debug_assert!(keys.len() >= capacity(limit));
        Self { keys, state, limit }
    }

    /// Values below this one cannot be among the largest: enough are above it already.
    pub(crate) fn floor(&self) -> f32 {
        self.state.floor
    }

    pub(crate) fn push(&mut self, key: Key) {
        if self.limit == 0 {
            return;
        }
        if self.state.len == self.keys.len() {
            self.sweep();
        }
        self.keys[self.state.len] = key;
        self.state.len += 1;
    }

    /// Drops all but the largest and raises the floor.
    pub(crate) fn sweep(&mut self) {
        if self.state.len >= self.limit && self.limit > 0 {
            let kept = &mut self.keys[..self.state.len];
            let (_, last, _) = kept.select_nth_unstable_by(self.limit - 1, |a, b| b.cmp(a));
            self.state.floor = last.value().abs();
            self.state.len = self.limit;
        }
    }

    /// The largest, unsorted.
    pub(crate) fn finish(mut self) -> &'a mut [Key] {
        self.sweep();
        &mut self.keys[..self.state.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_keep_value_index_and_order() {
        for (value, index) in [(1.5, 0), (-2.0, 7), (0.0, i32::MAX), (f32::MAX, 3), (-1e-45, 9)] {
            let key = Key::new(value, index);
            assert_eq!((key.value(), key.index()), (value, index));
        }
        assert!(Key::new(2.0, 5) > Key::new(1.0, 4));
        assert!(Key::new(2.0, 4) > Key::new(-2.0, 5));
        assert!(Key::new(-3.0, 9) > Key::new(2.0, 1));
        assert!(Key::new(0.5, 4).by_index() < Key::new(0.7, 5).by_index());
    }

    proptest! {
        #[test]
        fn the_largest_are_kept(values in prop::collection::vec(0u8..20, 0..900), limit in 0usize..80) {
            let all: Vec<Key> = values.iter().enumerate().map(|(i, &v)| Key::new(f32::from(v), i as i32)).collect();
            let mut buffer = vec![Key::new(0.0, 0); capacity(limit)];
            let mut state = Kept::default();
            for &key in &all {
                let mut largest = Largest::new(&mut buffer, &mut state, limit);
                if key.value() > largest.floor() || largest.floor() == 0.0 {
                    largest.push(key);
                }
            }
            let found = Largest::new(&mut buffer, &mut state, limit).finish();
            found.sort_unstable_by(|a, b| b.cmp(a));
            let mut expected = all;
            expected.sort_unstable_by(|a, b| b.cmp(a));
            expected.truncate(limit);
            prop_assert!(found == expected);
        }
    }
}
