//! The few coordinates of a token that dwarf the others, as residual streams have them. What rounding a weight row `w` to
//! `ŵ` has cost the score is bounded twice as well apart: by `max |w_j − ŵ_j| Σ |x_j|` over these, and by
//! `‖w − ŵ‖ ‖x‖` over the rest.

use super::kernels::Loop;
use crate::sae::int8::up;

/// Each pass leaves fewer coordinates to the rest, whose size says what is large.
const PASSES: usize = 3;

/// A token in two parts.
#[derive(Clone, Copy, Default)]
pub(super) struct Parts {
    /// At least `Σ |x_j|` of the outliers.
    pub outliers: f32,
    /// At least the norm of the rest.
    pub rest: f32,
}

impl Parts {
    /// What the bound comes to, where rounding is off by half a step at most and by a twelfth of its square on average; in
    /// units of the bound of a token of norm 1 without outliers.
    pub(super) fn cost(self, d: usize) -> f32 {
        self.rest + self.outliers * 0.5 / (d as f32 / 12.0).sqrt()
    }
}

/// Finds the parts of a vector that make the bound least, near enough.
pub(super) struct Part<'a>(pub &'a [f32]);

impl Loop for Part<'_> {
    type Output = Parts;

    #[inline(always)]
    fn run(self) -> Parts {
        let d = self.0.len();
        let mut best = parts(self.0, f32::INFINITY);
        let mut rest = best.rest;
        for _ in 0..PASSES {
            // Taking a coordinate out of the rest pays from √12 times the rest's mean square on.
            let found = parts(self.0, rest * (12.0 / d as f32).sqrt());
            rest = found.rest;
            if found.cost(d) < best.cost(d) {
                best = found;
            }
        }
        best
    }
}

/// The parts above and below a size.
#[inline(always)]
fn parts(x: &[f32], above: f32) -> Parts {
    let (mut outliers, mut squares) = ([0.0f32; 16], [0.0f32; 16]);
    let mut add = |l: usize, x: f32| {
        let size = x.abs();
        let out = size > above;
        outliers[l] += if out { size } else { 0.0 };
        squares[l] += if out { 0.0 } else { size * size };
    };
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        (0..16).for_each(|l| add(l, chunk[l]));
    }
    rest.iter().enumerate().for_each(|(l, &x)| add(l, x));
    // In f64, and with room for what each f32 operation above may have lost, and for squares below f32's least.
    let slack = 1.0 + (x.len() as f64 / 16.0 + 16.0) * f64::from(f32::EPSILON);
    let sum = |lanes: [f32; 16]| lanes.iter().map(|&v| f64::from(v)).sum::<f64>() * slack;
    let tiny = x.len() as f64 * f64::from(f32::MIN_POSITIVE);
    Parts { outliers: up(sum(outliers)), rest: up((sum(squares) + tiny).sqrt()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn some_split_explains_the_parts(
            x in prop::collection::vec(prop_oneof![-1.0f32..1.0, -1000.0f32..1000.0, Just(0.0), Just(1e-30), Just(1e-40), Just(1e20), Just(f32::MAX)], 1..300),
        ) {
            let found = Part(&x).run();
            // Outliers are the largest, so they are known by their number.
            let mut sizes: Vec<f64> = x.iter().map(|v| f64::from(v.abs())).collect();
            sizes.sort_by(|a, b| b.total_cmp(a));
            let holds = (0..=sizes.len()).any(|count| {
                let outliers: f64 = sizes[..count].iter().sum();
                let rest = sizes[count..].iter().map(|v| v * v).sum::<f64>().sqrt();
                outliers <= f64::from(found.outliers) && rest <= f64::from(found.rest)
            });
            prop_assert!(holds, "{} and {} cover no split", found.outliers, found.rest);
            prop_assert!(found.cost(x.len()) <= parts(&x, f32::INFINITY).cost(x.len()));
        }
    }

    #[test]
    fn one_giant_is_taken_out() {
        let mut x = vec![1.0f32; 768];
        x[5] = 3000.0;
        let found = Part(&x).run();
        assert!((found.outliers - 3000.0).abs() < 1.0 && (found.rest - 27.7).abs() < 0.1);
        assert!(Part(&[0.0; 40]).run().cost(40) < 1e-15);
    }
}
