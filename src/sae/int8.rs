//! An encoder's rows a second time, as 8-bit integers, and what rounding them lost: enough to bound every dot product at
//! a quarter of the reading, and of most of the arithmetic.

use crate::error::Result;
use crate::tensor::Array;

/// Rows kept together.
pub(crate) const PANEL: usize = 16;
/// Rows are filled up with zeros to a multiple of this.
const STEP: usize = 64;
/// The longest rows: sums of products of bytes stay within 32 bits.
const MAX_D: usize = 1 << 16;

/// Length of a row with the zeros behind it.
pub(crate) fn padded(d: usize) -> usize {
    d.next_multiple_of(STEP)
}

/// Rows `w ≈ scale · q`, q whole numbers from −127 to 127.
///
/// Sixteen rows lie together in a panel, four columns of each at a time, `[n / 16][d / 4][16][4]`: what the processors'
/// products of bytes read.
pub(crate) struct Int8Rows {
    d: usize,
    q: Array<i8>,
    scale: Array<f32>,
    lost: Array<f32>,
    norm: Array<f32>,
    sum: Array<i32>,
}

/// What is kept of each row of some panels, besides its numbers.
#[derive(Clone, Copy)]
pub(crate) struct RowFacts<'a> {
    /// What `q` is multiplied by.
    pub scale: &'a [f32],
    /// At least `‖w − scale · q‖`.
    pub lost: &'a [f32],
    /// At least `‖scale · q‖`, and `‖w‖`.
    pub norm: &'a [f32],
    /// `Σ q`.
    pub sum: &'a [i32],
}

/// What a number may lose of a step of the scale, computed in f32.
const HALF_STEP: f32 = 0.501;

impl RowFacts<'_> {
    /// At least the magnitude of what each number of a row has lost: all there was where there are no steps.
    pub(crate) fn most(&self, row: usize) -> f32 {
        most_lost(self.scale[row], self.lost[row])
    }
}

fn most_lost(scale: f32, lost: f32) -> f32 {
    if scale > 0.0 { scale * HALF_STEP } else { lost }
}

/// One panel, to be written.
pub(crate) struct PanelMut<'a> {
    pub q: &'a mut [i8],
    pub scale: &'a mut [f32],
    pub lost: &'a mut [f32],
    pub norm: &'a mut [f32],
    pub sum: &'a mut [i32],
}

impl Int8Rows {
    /// Whether rows of this length can be kept so.
    pub(crate) fn fits(d: usize) -> bool {
        (1..=MAX_D).contains(&d)
    }

    /// Bytes that `n` rows of length `d` take.
    pub(crate) fn byte_size(n: usize, d: usize) -> usize {
        n.next_multiple_of(PANEL) * (padded(d) + 16)
    }

    /// `n` rows of zeros.
    pub(crate) fn zeroed(n: usize, d: usize) -> Result<Self> {
        let rows = n.next_multiple_of(PANEL);
        Ok(Self {
            d,
            q: Array::zeroed(rows.saturating_mul(padded(d)))?,
            scale: Array::zeroed(rows)?,
            lost: Array::zeroed(rows)?,
            norm: Array::zeroed(rows)?,
            sum: Array::zeroed(rows)?,
        })
    }

    /// Length of a row.
    pub(crate) fn d(&self) -> usize {
        self.d
    }

    /// Length of a row with the zeros behind it.
    pub(crate) fn padded(&self) -> usize {
        padded(self.d)
    }

    /// The numbers of `count` panels.
    pub(crate) fn panels(&self, first: usize, count: usize) -> &[i8] {
        let size = PANEL * self.padded();
        &self.q[first * size..(first + count) * size]
    }

    /// What is known of the rows of `count` panels.
    pub(crate) fn facts(&self, first: usize, count: usize) -> RowFacts<'_> {
        let rows = first * PANEL..(first + count) * PANEL;
        RowFacts {
            scale: &self.scale[rows.clone()],
            lost: &self.lost[rows.clone()],
            norm: &self.norm[rows.clone()],
            sum: &self.sum[rows],
        }
    }

    /// All panels as if they were one, to be cut up.
    pub(crate) fn all_mut(&mut self) -> PanelMut<'_> {
        let Self { q, scale, lost, norm, sum, .. } = self;
        PanelMut { q, scale, lost, norm, sum }
    }
}

impl PanelMut<'_> {
    /// Rounds up to 16 rows of length `d`.
    #[inline(always)]
    pub(crate) fn set(&mut self, rows: &[f32], d: usize) {
        for (i, w) in rows.chunks_exact(d).enumerate() {
            let mut sum = 0;
            let mut columns = self.q.chunks_exact_mut(4 * PANEL);
            let rounded = round(w, 127.0, |q| {
                for (four, column) in q.as_chunks::<4>().0.iter().zip(&mut columns) {
                    column[4 * i..4 * i + 4].copy_from_slice(&four.map(|q| q as i8));
                }
                sum += q.iter().sum::<i32>();
            });
            (self.scale[i], self.lost[i], self.norm[i]) = (rounded.scale, rounded.lost, rounded.norm);
            self.sum[i] = sum;
        }
    }
}

/// What rounding a vector `v` to `scale · q` came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounded {
    /// What the whole numbers `q` are multiplied by; 0 if they all are 0.
    pub scale: f32,
    /// At least `‖v − scale · q‖`.
    pub lost: f32,
    /// At least `‖scale · q‖`, and `‖v‖`.
    pub norm: f32,
}

/// Rounds a vector to whole numbers from −`levels` to `levels`, which `write` gets 16 at a time, filled up with zeros.
/// Vectors that are too large for a bound in f32 get an infinite one.
#[inline(always)]
pub(crate) fn round(v: &[f32], levels: f32, mut write: impl FnMut(&[i32; 16])) -> Rounded {
    let mut largest = [0.0f32; 16];
    for_each_16(v, |v| largest.iter_mut().zip(v).for_each(|(l, v)| *l = l.max(v.abs())));
    let largest = largest.into_iter().fold(0.0, f32::max);
    // Where 1 / scale would leave f32, all is lost.
    let inverse = if largest > 1e-30 { levels / largest } else { 0.0 };
    let (mut lost, mut squares) = ([0.0f32; 16], [0.0f32; 16]);
    for_each_16(v, |v| {
        let mut q = [0; 16];
        for l in 0..16 {
            let exact = v[l] * inverse;
            // What is not a number stays so in what is lost.
            let (nearest, whole) = nearest(exact.max(-levels).min(levels));
            q[l] = whole;
            lost[l] += (exact - nearest) * (exact - nearest);
            squares[l] += nearest * nearest;
        }
        write(&q);
    });
    // In f64, and with room for what each f32 operation above may have lost.
    let (d, epsilon) = (v.len() as f64, f64::from(f32::EPSILON));
    let slack = 1.0 + (d / 16.0 + 16.0) * epsilon;
    let root = |lanes: [f32; 16]| lanes.iter().map(|&v| f64::from(v)).sum::<f64>().sqrt() * slack;
    let (scale, tiny) = match inverse {
        0.0 => (0.0, f64::from(largest) * d.sqrt() * slack),
        _ => (inverse.recip(), 0.0),
    };
    let norm = root(squares) * f64::from(scale);
    let lost = root(lost) * f64::from(scale) + 8.0 * epsilon * norm + tiny;
    Rounded { scale, lost: up(lost), norm: up(norm + lost) }
}

/// At least `v`, which is not negative.
#[inline(always)]
pub(crate) fn up(v: f64) -> f32 {
    if v == 0.0 { 0.0 } else { (v as f32).next_up() }
}

/// The nearest whole number of one below 2²², without a call or a branch on any processor.
#[inline(always)]
fn nearest(v: f32) -> (f32, i32) {
    const SHIFT: f32 = 12_582_912.0;
    let shifted = v + SHIFT;
    (shifted - SHIFT, shifted.to_bits() as i32 - SHIFT.to_bits() as i32)
}

#[inline(always)]
fn for_each_16(v: &[f32], mut body: impl FnMut(&[f32; 16])) {
    let (chunks, rest) = v.as_chunks::<16>();
    chunks.iter().for_each(&mut body);
    if !rest.is_empty() {
        let mut last = [0.0; 16];
        last[..rest.len()].copy_from_slice(rest);
        body(&last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exact_norm(v: impl Iterator<Item = f64>) -> f64 {
        v.map(|v| v * v).sum::<f64>().sqrt()
    }

    proptest! {
        #[test]
        fn what_is_lost_is_bounded(
            v in prop::collection::vec(-1.0f32..1.0, 1..150), power in -140i32..128, outlier in prop::option::of(-1e6f32..1e6),
            levels in prop::sample::select(vec![127.0f32, 32512.0]),
        ) {
            let mut v: Vec<f32> = v.iter().map(|v| v * 2f32.powi(power)).collect();
            if let Some(outlier) = outlier {
                v[0] *= outlier;
            }
            prop_assume!(v.iter().all(|v| v.is_finite()));
            let mut q = Vec::new();
            let rounded = round(&v, levels, |part| q.extend_from_slice(part));
            prop_assert!(q.len() == v.len().next_multiple_of(16) && q[v.len()..].iter().all(|&q| q == 0));
            prop_assert!(q.iter().all(|q| q.abs() <= levels as i32));
            let kept = |i: usize| f64::from(q[i]) * f64::from(rounded.scale);
            let lost = exact_norm(v.iter().enumerate().map(|(i, &v)| f64::from(v) - kept(i)));
            prop_assert!(f64::from(rounded.lost) >= lost, "{} lost, {lost} in truth", rounded.lost);
            let most = most_lost(rounded.scale, rounded.lost);
            let lost_most = v.iter().enumerate().map(|(i, &v)| (f64::from(v) - kept(i)).abs()).fold(0.0, f64::max);
            prop_assert!(levels > 127.0 || f64::from(most) >= lost_most, "{most} at most, {lost_most} in truth");
            for norm in [exact_norm(v.iter().map(|&v| f64::from(v))), exact_norm((0..v.len()).map(kept))] {
                prop_assert!(f64::from(rounded.norm) >= norm);
            }
        }
    }
}
