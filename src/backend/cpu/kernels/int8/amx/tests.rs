//! The loop over tiles in plain Rust, and the instructions themselves: by the processor if it has them, else carried out
//! where they are refused.

mod twin;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod emulator;

use proptest::prelude::*;

use super::super::{Product, scalar_product};
use super::Tiles;
use twin::Twin;

/// Bytes of tokens and latents, and each latent's sum.
#[derive(Debug)]
struct Case {
    x: Vec<u8>,
    w: Vec<i8>,
    sums: Vec<i32>,
    padded: usize,
}

impl Case {
    fn new((rows, panels, steps): (usize, usize, usize), x: impl Fn(usize) -> u8, w: impl Fn(usize) -> i8) -> Self {
        let padded = 64 * steps;
        let w: Vec<i8> = (0..panels * 16 * padded).map(w).collect();
        let sum = |latent: usize| -> i32 {
            let panel = &w[latent / 16 * 16 * padded..][..16 * padded];
            panel.chunks_exact(64).flat_map(|row| &row[latent % 16 * 4..][..4]).map(|&w| i32::from(w)).sum()
        };
        let sums = (0..16 * panels).map(sum).collect();
        Self { x: (0..rows * padded).map(x).collect(), w, sums, padded }
    }

    /// What some tiles make of it, which must be what the oracle does.
    fn check(&self, tiles: &mut impl Tiles) {
        let product = Product { x: &self.x, w: &self.w, sums: &self.sums, padded: self.padded };
        let mut expected = vec![7; product.rows() * self.sums.len()];
        let mut found = expected.clone();
        // SAFETY: the shapes fit; the tiles are there, as those who call say.
        unsafe {
            scalar_product(&product, &mut expected);
            super::multiply(tiles, &product, &mut found);
        }
        assert!(found == expected, "{} tokens, {} latents, {} long", product.rows(), self.sums.len(), self.padded);
    }
}

fn any_case() -> impl Strategy<Value = Case> {
    let shape = (1usize..70, 1usize..3, 1usize..4);
    (shape, prop::collection::vec(any::<u8>(), 113), 1usize..100)
        .prop_map(|(shape, seed, step)| Case::new(shape, |i| seed[i * step % 113], |i| seed[(i * 17 + 5) % 113] as i8))
}

/// The largest sums there are, of either sign.
fn extremes() -> impl Iterator<Item = Case> {
    let signs = [(0, -127), (0, 127), (255, -127), (255, 127)];
    signs.into_iter().map(|(x, w)| Case::new((17, 2, 1024), move |_| x, move |_| w))
}

proptest! {
    #[test]
    fn the_loop_over_tiles_is_the_oracle(case in any_case()) {
        let mut twin = Twin::default();
        case.check(&mut twin);
        prop_assert!(twin.is_released());
    }
}

#[test]
fn the_largest_sums_fit() {
    extremes().for_each(|case| case.check(&mut Twin::default()));
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod of_the_processor {
    use super::super::instructions::{Instructions, supported};
    use super::*;

    /// Has the instructions carried out; tells how many were so far in this thread, if not by the processor.
    fn carried_out() -> Option<u64> {
        (!supported()).then(emulator::install)
    }

    proptest! {
        #[test]
        fn the_instructions_are_the_oracle(case in any_case()) {
            let before = carried_out();
            case.check(&mut Instructions);
            let after = carried_out();
            prop_assert!(after.is_none() || after > before);
        }
    }

    #[test]
    fn the_largest_sums_are_the_instructions_too() {
        carried_out();
        extremes().for_each(|case| case.check(&mut Instructions));
    }
}
