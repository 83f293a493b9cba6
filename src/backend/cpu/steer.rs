//! Steering: the effect of edits on a token, as a change added to its activation vector.

use super::Kernels;
use super::core::Core;
use super::decode::Decoder;
use super::encode::Encoder;
use super::prepare::{Prepared, output_scale};
use super::scratch::{RowScratch, Scratch};
use crate::backend::{Input, Steering};
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

/// One steering call.
pub(crate) struct Steer<'a> {
    pub core: &'a Core,
    pub table: &'a EditTable,
    pub input: &'a Input<'a>,
    pub steering: &'a Steering<'a>,
    pub encoder: Encoder<'a>,
    pub decoder: Decoder<'a>,
}

impl Steer<'_> {
    /// The slot a row asks for.
    pub(crate) fn slot(&self, row: usize) -> Option<i32> {
        self.steering.row_slot.map(|slots| slots.element::<i32>(row))
    }

    /// A row's edits, if it is to be steered at all.
    pub(crate) fn edits(&self, row: usize) -> Option<&[Edit]> {
        self.table.get(self.slot(row).unwrap_or(0)).filter(|edits| !edits.is_empty())
    }

    /// Steers a row from what is known of it, or from single latents.
    pub(crate) fn steer_alone(&self, row: usize, scratch: &mut Scratch<'_>) {
        let Some(edits) = self.edits(row) else { return self.leave_alone(row) };
        if let Some(known) = &self.steering.known {
            if known.counts.element::<i32>(row) < 0 {
                return self.leave_alone(row);
            }
            let mut state = [0.0; 2];
            if let Some(given) = &known.row_state {
                let given = given.row::<f32>(row);
                state[..given.len()].copy_from_slice(given);
            }
            return self.apply(row, edits, state, &mut scratch.row, |feature, _| known.activation(row, feature));
        }
        let d = self.core.sae.spec().d_in;
        let x = &mut scratch.x[..d];
        match self.core.prepare(self.input, row, x, &mut scratch.row.raw[..d]) {
            Prepared::NotFinite => self.leave_alone(row),
            Prepared::Ready(state) => self.apply(row, edits, state, &mut scratch.row, |feature, weights| {
                let latent = self.decoder.local(feature);
                latent.map_or(0.0, |i| self.core.activation_alone(&self.encoder, i, x, weights))
            }),
        }
    }

    pub(crate) fn apply(
        &self,
        row: usize,
        edits: &[Edit],
        state: [f32; 2],
        scratch: &mut RowScratch<'_>,
        activation: impl FnMut(i32, &mut [f32]) -> f32,
    ) {
        let spec = self.core.sae.spec();
        if !sum_edits(self.core.kernels, &self.decoder, edits, scratch, spec.d_out, activation) {
            return self.leave_alone(row);
        }
        let RowScratch { sum, raw, .. } = scratch;
        let (delta, y) = (&mut sum[..spec.d_out], &mut raw[..spec.d_out]);
        self.steering.y.read_row(row, y);
        let scale = output_scale(spec, state);
        delta.iter_mut().zip(&*y).for_each(|(delta, y)| *delta = delta.mul_add(scale, *y));
        // SAFETY: each row is worked on by one thread, which has read all it needs of it.
        unsafe { self.steering.out.shared_write_row(row, delta) };
    }

    /// The row keeps its bits.
    pub(crate) fn leave_alone(&self, row: usize) {
        if !self.steering.out.as_ref().same_as(&self.steering.y) {
            // SAFETY: each row is worked on by one thread; the session checked that y and out do not overlap.
            unsafe { self.steering.out.shared_copy_row(row, &self.steering.y, row) };
        }
    }
}

/// Sums up the edits' effect in the decoder's space; says whether there is any. `activation` tells a latent's z.
fn sum_edits(
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
