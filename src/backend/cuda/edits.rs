//! Lists of edits in the device's memory, which never moves: a captured graph finds there what was set since.

use std::sync::Arc;

use super::driver::{Block, Driver, StreamHandle};
use super::params::{self, DevicePtr, Edits, edit_op};
use crate::backend::Limits;
use crate::error::Result;
use crate::steering::{Edit, EditOp};

/// Bytes of an edit there.
const SIZE: usize = size_of::<params::Edit>();

/// Lists of edits of a session.
pub(super) struct EditTable {
    edits: Block,
    lengths: Block,
    limits: Limits,
}

impl EditTable {
    pub(super) fn new(driver: &Arc<dyn Driver>, limits: Limits) -> Result<Self> {
        let Limits { slots, edits_per_slot, .. } = limits;
        Ok(Self {
            edits: Block::zeroed(driver, slots * edits_per_slot * SIZE)?,
            lengths: Block::zeroed(driver, slots * 4)?,
            limits,
        })
    }

    /// Puts a new list in place once the stream has done what it was given before; should the driver fail half-way, the list
    /// is empty. Words are given by value, so that nothing of the host's must stay until then.
    pub(super) fn set(&self, driver: &dyn Driver, stream: StreamHandle, slot: usize, edits: &[Edit]) -> Result<()> {
        let length = DevicePtr(self.lengths.at().0 + 4 * slot as u64);
        // SAFETY: within the table, as the session checked.
        unsafe { driver.fill(length, 0, 1, stream)? };
        let mut at = self.edits.at().0 + (slot * self.limits.edits_per_slot * SIZE) as u64;
        for edit in edits {
            let edit = [converted(edit)];
            let words: &[u32] = bytemuck::cast_slice(&edit);
            for run in words.chunk_by(PartialEq::eq) {
                // SAFETY: within the table, as the session checked.
                unsafe { driver.fill(DevicePtr(at), run[0], run.len(), stream)? };
                at += 4 * run.len() as u64;
            }
        }
        // SAFETY: as above.
        unsafe { driver.fill(length, edits.len() as u32, 1, stream) }
    }

    /// What kernels are told, but for the rows' slots.
    pub(super) fn edits(&self) -> Edits {
        Edits {
            edits: self.edits.at(),
            lengths: self.lengths.at(),
            row_slot: DevicePtr::NULL,
            row_slot_stride: 0,
            slots: self.limits.slots as i32,
            per_slot: self.limits.edits_per_slot as i32,
        }
    }
}

fn converted(edit: &Edit) -> params::Edit {
    params::Edit {
        feature: edit.feature,
        op: match edit.op {
            EditOp::Add => edit_op::ADD,
            EditOp::Set => edit_op::SET,
            EditOp::Scale => edit_op::SCALE,
            EditOp::Ablate => edit_op::ABLATE,
        },
        strength: edit.strength,
        limit: edit.limit,
        only_active: i32::from(edit.only_active),
        ..params::Edit::default()
    }
}
