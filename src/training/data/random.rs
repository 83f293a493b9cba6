//! Random orders, the same for the same seed on every machine.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Numbers of one of the streams of a seed.
pub(super) fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// A whole number below `n`, which is not 0, each as likely as any other (Lemire, arXiv 1805.10941).
pub(super) fn below(rng: &mut impl RngCore, n: u64) -> u64 {
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(n);
        // Of the 2^64 numbers, 2^64 mod n are one too many for a fair share.
        if product as u64 >= n.wrapping_neg() % n {
            return (product >> 64) as u64;
        }
    }
}

/// Brings numbers into a random order, every order as likely as any other.
pub(super) fn shuffle(rng: &mut impl RngCore, numbers: &mut [u32]) {
    for left in (2..=numbers.len()).rev() {
        numbers.swap(left - 1, below(rng, left as u64) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out numbers that are laid down.
    struct Given<'a>(&'a [u64]);

    impl RngCore for Given<'_> {
        fn next_u64(&mut self) -> u64 {
            let (first, rest) = self.0.split_first().unwrap();
            self.0 = rest;
            *first
        }

        fn next_u32(&mut self) -> u32 {
            unreachable!()
        }

        fn fill_bytes(&mut self, _: &mut [u8]) {
            unreachable!()
        }
    }

    #[test]
    fn shares_are_fair() {
        assert_eq!(below(&mut Given(&[u64::MAX]), 7), 6);
        assert_eq!(below(&mut Given(&[1 << 63]), 2), 1);
        assert_eq!(below(&mut Given(&[u64::MAX - 3]), u64::MAX), u64::MAX - 4);
        // 2^64 mod 7 is 2: the products 0 and 1 above a multiple of 2^64 are drawn again.
        assert_eq!(below(&mut Given(&[0, 5]), 7), 0);
        let mut rng = stream(3, 1);
        let mut seen = [0; 5];
        (0..50_000).for_each(|_| seen[below(&mut rng, 5) as usize] += 1);
        assert!(seen.iter().all(|&count: &i32| count.abs_diff(10_000) < 400), "{seen:?}");
        assert_ne!(stream(3, 1).next_u64(), stream(3, 2).next_u64());
    }

    #[test]
    fn every_order_is_as_likely() {
        let mut rng = stream(1, 0);
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..24_000 {
            let mut numbers = [0, 1, 2, 3];
            shuffle(&mut rng, &mut numbers);
            *seen.entry(numbers).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 24);
        let chi: f64 = seen.values().map(|&n: &i32| f64::from(n - 1000).powi(2) / 1000.0).sum();
        assert!(chi < 49.7, "chi² of 23 degrees exceeds this once in a thousand times: {chi}");
    }
}
