//! What norms rows have: the median of the last of them.

use crate::error::Result;
use crate::tensor::try_vec;

/// Norms that are looked back on.
const KEPT: usize = 1024;

/// The last norms, in the order in which they came and in that of their size.
pub(super) struct Norms {
    came: Vec<f32>,
    /// Where the oldest is, once there are [`KEPT`].
    oldest: usize,
    sorted: Vec<f32>,
}

impl Norms {
    /// Bytes that they take.
    pub(super) const BYTES: u64 = 8 * KEPT as u64;

    pub(super) fn new() -> Result<Self> {
        let (mut came, mut sorted) = (try_vec(0.0, KEPT)?, try_vec(0.0, KEPT)?);
        came.clear();
        sorted.clear();
        Ok(Self { came, oldest: 0, sorted })
    }

    /// How many are known.
    pub(super) fn len(&self) -> usize {
        self.came.len()
    }

    /// Takes in the norm of the next row.
    pub(super) fn add(&mut self, norm: f32) {
        if self.came.len() < KEPT {
            self.came.push(norm);
        } else {
            let old = std::mem::replace(&mut self.came[self.oldest], norm);
            self.oldest = (self.oldest + 1) % KEPT;
            self.sorted.remove(self.place(old));
        }
        self.sorted.insert(self.place(norm), norm);
    }

    /// Before which of the sorted a norm comes.
    fn place(&self, norm: f32) -> usize {
        self.sorted.partition_point(|n| n.total_cmp(&norm).is_lt())
    }

    /// The lower of the two in the middle; 0 while none is known.
    pub(super) fn median(&self) -> f32 {
        self.sorted.get(self.sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
    }

    /// All of them, the oldest first.
    pub(super) fn in_order(&self) -> impl Iterator<Item = f32> {
        let (new, old) = self.came.split_at(self.oldest);
        old.iter().chain(new).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_last() {
        let mut norms = Norms::new().unwrap();
        assert_eq!(norms.median(), 0.0);
        let mut all = Vec::new();
        for i in 0..5000u32 {
            // Many of them the same.
            let norm = (i.wrapping_mul(2_654_435_761) >> 25) as f32;
            norms.add(norm);
            all.push(norm);
            let last = &all[all.len().saturating_sub(KEPT)..];
            if i % 97 == 0 || i == 1023 || i == 1024 {
                let mut sorted = last.to_vec();
                sorted.sort_by(f32::total_cmp);
                assert_eq!(norms.median(), sorted[(sorted.len() - 1) / 2]);
                assert!(norms.in_order().eq(last.iter().copied()));
            }
        }
        assert_eq!(norms.came.capacity(), KEPT);
        assert_eq!(norms.sorted.capacity(), KEPT);
    }
}
