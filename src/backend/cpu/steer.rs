//! Steering: the effect of edits on a token, as a change added to its activation vector.

use super::Kernels;
use super::decode::Decoder;
use super::scratch::RowScratch;
use crate::steering::{Edit, EditOp};

/// Lists of edits of a session, in memory that never moves or grows.
pub(crate) struct EditTable {
    edits: Vec<Edit>,
    lens: Vec<usize>,
    per_slot: usize,
}

impl EditTable {
    pub(crate) fn new(slots: usize, per_slot: usize) -> Self {
        let none = Edit::new(-1, EditOp::Add, 0.0);
        Self { edits: vec![none; slots * per_slot], lens: vec![0; slots], per_slot }
    }

    pub(crate) fn set(&mut self, slot: usize, edits: &[Edit]) {
        self.edits[slot * self.per_slot..][..edits.len()].copy_from_slice(edits);
        self.lens[slot] = edits.len();
    }

    /// The edits of a slot; `None` if there is no such slot.
    pub(crate) fn get(&self, slot: i32) -> Option<&[Edit]> {
        let slot = usize::try_from(slot).ok().filter(|&s| s < self.lens.len())?;
        Some(&self.edits[slot * self.per_slot..][..self.lens[slot]])
    }
}

/// Sums up the edits' effect in the decoder's space; says whether there is any. `activation` tells a latent's z.
pub(crate) fn sum_edits(
    kernels: Kernels,
    decoder: &Decoder<'_>,
    edits: &[Edit],
    scratch: &mut RowScratch<'_>,
    d_out: usize,
    mut activation: impl FnMut(i32, &mut [f32]) -> f32,
) -> bool {
    let mut any = false;
    for edit in edits {
        let z = if edit.needs_activation() { activation(edit.feature, scratch.weights) } else { 0.0 };
        let delta = edit.delta(z);
        if delta == 0.0 {
            continue;
        }
        if !any {
            scratch.sum[..d_out].fill(0.0);
            any = true;
        }
        decoder.add(kernels, edit.feature, delta, scratch.weights, &mut scratch.sum[..d_out]);
    }
    any
}
