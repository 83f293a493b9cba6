//! The numbers kept of a feature: how often, how strong, how distributed.

use bytemuck::{Pod, Zeroable};

/// Bins of a histogram.
pub const BINS: usize = 64;
/// Bins from one power of two to the next.
const PER_OCTAVE_BITS: u32 = 2;
const SHIFT: u32 = f32::MANTISSA_DIGITS - 1 - PER_OCTAVE_BITS;

/// Counts and sums over the tokens on which a feature is active. Sums are of activations `a`, in f64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Statistics {
    pub(super) count: u64,
    /// Σa, Σa², Σa³, Σa⁴.
    pub(super) sums: [f64; 4],
    /// The largest and the smallest activation; 0 if there is none.
    pub(super) max: f32,
    pub(super) min: f32,
    /// Activations too small for the histogram: less than 2⁻¹⁵ of the largest, or so.
    pub(super) below: u64,
    /// The histogram's highest bin, of all that f32 has.
    pub(super) top_bin: u64,
}

impl Statistics {
    /// The largest |a|.
    pub(super) fn magnitude(&self) -> f32 {
        self.max.max(-self.min)
    }

    pub(super) fn add(&mut self, histogram: &mut [u64], value: f32) {
        let a = f64::from(value);
        let square = a * a;
        for (sum, power) in self.sums.iter_mut().zip([a, square, square * a, square * square]) {
            *sum += power;
        }
        self.extremes(value, value);
        self.count += 1;
        self.count_in(histogram, bin(value), 1);
    }

    /// Adds what was seen elsewhere.
    pub(super) fn merge(&mut self, histogram: &mut [u64], other: &Self, others: &[u64]) {
        if other.count == 0 {
            return;
        }
        for (sum, other) in self.sums.iter_mut().zip(other.sums) {
            *sum += other;
        }
        self.extremes(other.max, other.min);
        self.count += other.count;
        self.below += other.below;
        for (bin, count) in other.bins(others) {
            self.count_in(histogram, bin, count);
        }
    }

    fn extremes(&mut self, max: f32, min: f32) {
        let first = self.count == 0;
        self.max = if first { max } else { self.max.max(max) };
        self.min = if first { min } else { self.min.min(min) };
    }

    /// Of all bins of f32 the histogram keeps [`BINS`] up to the highest that was ever filled, each at its number modulo
    /// [`BINS`]. What falls out below was below at the end as well, so that the order in which values come does not matter.
    fn count_in(&mut self, histogram: &mut [u64], bin: u64, count: u64) {
        let bins = BINS as u64;
        if bin > self.top_bin {
            let fresh = (self.top_bin + 1).max((bin + 1).saturating_sub(bins))..=bin;
            for bin in fresh {
                self.below += std::mem::take(&mut histogram[(bin % bins) as usize]);
            }
            self.top_bin = bin;
        }
        match bin + bins > self.top_bin {
            true => histogram[(bin % bins) as usize] += count,
            false => self.below += count,
        }
    }

    /// The bins with something in them, from the lowest on.
    pub(super) fn bins(&self, histogram: &[u64]) -> impl Iterator<Item = (u64, u64)> {
        let bins = BINS as u64;
        let all = (self.top_bin + 1).saturating_sub(bins)..=self.top_bin;
        all.map(move |bin| (bin, histogram[(bin % bins) as usize])).filter(|&(_, count)| count > 0)
    }
}

/// The bin of |value|: four to an octave.
pub(super) fn bin(value: f32) -> u64 {
    u64::from(value.abs().to_bits() >> SHIFT)
}

/// Where a bin begins.
pub(super) fn edge(bin: u64) -> f32 {
    f32::from_bits((bin as u32) << SHIFT)
}

/// The power of two, as its exponent, that is above |value| and at most twice that; of no value the lowest.
pub(super) fn range(value: f32) -> i32 {
    // As f64, every f32 is a normal number.
    let exponent = f64::from(value).to_bits() >> 52 & 0x7ff;
    exponent as i32 - 1022
}

/// In which of `intervals` equal parts of [0, 2^range) |value| lies.
pub(super) fn interval(value: f32, range: i32, intervals: usize) -> usize {
    // Both the product and the quotient are exact.
    let part = f64::from(value.abs()) * intervals as f64 / 2f64.powi(range);
    (part as usize).min(intervals - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_does_not_depend_on_the_order() {
        let values = [1.0f32, 1.2, 1e-4, 3.0, 2.9, 1e-9, 70.0, 1e6, 0.5, f32::MAX, 1e-45, 1e6, 80.0];
        let made = |values: &[f32]| {
            let (mut statistics, mut histogram) = (Statistics::default(), [0; BINS]);
            values.iter().for_each(|&value| statistics.add(&mut histogram, value));
            let all = statistics.below + histogram.iter().sum::<u64>();
            assert_eq!(all, values.len() as u64);
            let bins: Vec<_> = statistics.bins(&histogram).collect();
            (statistics.below, statistics.top_bin, bins)
        };
        for len in 1..=values.len() {
            let some = &values[..len];
            let highest = some.iter().map(|&v| bin(v)).max().unwrap();
            let mut expected = std::collections::BTreeMap::new();
            for &value in some.iter().filter(|&&v| bin(v) + BINS as u64 > highest) {
                *expected.entry(bin(value)).or_insert(0) += 1;
            }
            let mut orders = vec![some.to_vec(), some.iter().rev().copied().collect()];
            orders.push([&some[len / 2..], &some[..len / 2]].concat());
            for order in orders {
                let (below, top, bins) = made(&order);
                assert_eq!((top, bins), (highest, expected.clone().into_iter().collect::<Vec<_>>()));
                assert_eq!(below, len as u64 - expected.values().sum::<u64>());
            }
        }
    }

    #[test]
    fn bins_and_intervals_are_where_they_are_said_to_be() {
        for value in [1e-45f32, 1e-40, 0.3, 1.0, 1.5, 7.99, 1e30, f32::MAX] {
            assert!(edge(bin(value)) <= value && value < edge(bin(value) + 1) || bin(value) == 0, "{value}");
            let limit = 2f64.powi(range(value));
            assert!(f64::from(value) < limit && limit <= 2.0 * f64::from(value), "{value}");
            for wider in range(value)..range(value) + 5 {
                let (narrow, wide) = (interval(value, wider, 10), interval(-value, wider + 1, 10));
                assert_eq!(narrow / 2, wide, "two intervals become one");
            }
            assert!(interval(value, range(value), 10) >= 5);
        }
        assert_eq!((edge(bin(4.0)), edge(bin(4.0) + 1), edge(bin(4.0) + 4)), (4.0, 5.0, 8.0));
    }
}
