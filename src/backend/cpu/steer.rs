//! Steering: the effect of edits on a token, as a change added to its activation vector.

use super::Kernels;
use super::core::Core;
use super::decode::Decoder;
use super::encoder::Encoder;
use super::prepare::{Prepared, output_scale};
use super::scratch::{RowScratch, Scratch};
use crate::backend::{Input, Steering, Wanted};
use crate::error::{Error, Result};
use crate::features::FeaturesRef;
use crate::sae::all_finite;
use crate::steering::{Edit, EditOp};
use crate::tensor::{Tensor, try_vec};

/// Lists of edits of a session, in memory that never moves or grows.
pub(crate) struct EditTable {
    edits: Vec<Edit>,
    lens: Vec<usize>,
    per_slot: usize,
}

impl EditTable {
    pub(crate) fn new(slots: usize, per_slot: usize) -> Result<Self> {
        let out_of_memory = |error: Error| {
            Error::new(error.status(), format!("{slots} slots of {per_slot} edits could not be allocated"))
        };
        let edits = try_vec(Edit::new(-1, EditOp::Add, 0.0), slots * per_slot).map_err(out_of_memory)?;
        let lens = try_vec(0, slots).map_err(out_of_memory)?;
        Ok(Self { edits, lens, per_slot })
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

    /// The features given of a row, unless they were cut short and lack what its edits need.
    fn known(&self, row: usize, edits: &[Edit]) -> Option<&FeaturesRef<'_>> {
        let known = self.steering.known.as_ref()?;
        let listed = |edit: &Edit| known.indices.row::<i32>(row).contains(&edit.feature);
        let complete = known.counts.element::<i32>(row) <= known.width() as i32;
        (complete || edits.iter().all(|edit| !edit.needs_activation() || listed(edit))).then_some(known)
    }

    /// Whether a row's edits need to know which of the competing latents won.
    pub(crate) fn must_encode(&self, row: usize) -> bool {
        self.encoder.selection.k().is_some()
            && self
                .edits(row)
                .is_some_and(|edits| edits.iter().any(Edit::needs_activation) && self.known(row, edits).is_none())
    }

    /// Steers a row from what is known of it, or from single latents.
    pub(crate) fn steer_alone(&self, row: usize, scratch: &mut Scratch<'_>) {
        let Some(edits) = self.edits(row) else { return self.leave_alone(row) };
        if let Some(known) = self.known(row, edits) {
            if known.counts.element::<i32>(row) < 0 {
                return self.leave_alone(row);
            }
            let state = known.state(row);
            return self.apply(row, edits, state, &mut scratch.row, |feature| known.activation(row, feature));
        }
        let d = self.core.sae.spec().d_in;
        let x = &mut scratch.x[..d];
        match self.core.prepare(self.input, row, x, &mut scratch.row.raw[..d]) {
            Prepared::NotFinite => self.leave_alone(row),
            Prepared::Ready(state) => self.apply(row, edits, state, &mut scratch.row, |feature| {
                let latent = self.decoder.local(feature);
                let z = |i| self.encoder.score_alone(self.core.kernels, i, x, Wanted::Activations);
                latent.map_or(0.0, z)
            }),
        }
    }

    pub(crate) fn apply(
        &self,
        row: usize,
        edits: &[Edit],
        state: [f32; 2],
        scratch: &mut RowScratch<'_>,
        activation: impl FnMut(i32) -> f32,
    ) {
        let spec = self.core.sae.spec();
        let (delta, y) = (&mut scratch.sum[..spec.d_out], &mut scratch.raw[..spec.d_out]);
        // Rows that follow each other often share a list, whose effect is one if it depends on no activation.
        let slot = self.slot(row).unwrap_or(0);
        if scratch.steered != Some(slot) {
            scratch.steered = None;
            if !sum_edits(self.core.kernels, &self.decoder, edits, delta, activation) {
                return self.leave_alone(row);
            }
            scratch.steered = Some(slot).filter(|_| !edits.iter().any(Edit::needs_activation));
        }
        self.y().read_row(row, y);
        if !all_finite(y) {
            return self.leave_alone(row);
        }
        self.core.kernels.axpy(output_scale(spec, state), delta, y);
        // SAFETY: each row is worked on by one thread, which has read all it needs of it.
        unsafe { self.steering.out.shared_write_row(row, y) };
    }

    /// What is edited.
    fn y(&self) -> Tensor<'_> {
        self.steering.y.unwrap_or(self.steering.out.as_ref())
    }

    /// The row keeps its bits.
    pub(crate) fn leave_alone(&self, row: usize) {
        if !self.steering.out.as_ref().same_as(&self.y()) {
            // SAFETY: each row is worked on by one thread; the session checked that y and out do not overlap.
            unsafe { self.steering.out.shared_copy_row(row, &self.y(), row) };
        }
    }
}

/// Sums up the edits' effect in the decoder's space; says whether there is any, and it is finite. `activation` tells a
/// latent's z.
fn sum_edits(
    kernels: Kernels,
    decoder: &Decoder<'_>,
    edits: &[Edit],
    sum: &mut [f32],
    mut activation: impl FnMut(i32) -> f32,
) -> bool {
    let (mut any, mut finite) = (false, true);
    let deltas = edits.iter().map(|edit| {
        let z = if edit.needs_activation() { activation(edit.feature) } else { 0.0 };
        (edit.feature, edit.delta(z))
    });
    let deltas = deltas.take_while(|(_, delta)| {
        finite = delta.is_finite();
        finite
    });
    sum.fill(0.0);
    decoder.add(kernels, deltas.filter(|(_, delta)| *delta != 0.0).inspect(|_| any = true), sum);
    any && finite
}
