//! Slots for the bytes of rows: the first in memory, the others in a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::options::{Plan, Room};
use crate::error::{Error, Result, fail};
use crate::tensor::AlignedBytes;

/// The slots.
pub(super) struct Store {
    row_bytes: usize,
    memory: AlignedBytes,
    memory_rows: usize,
    file: Option<Spill>,
}

/// A file without a name, and room for one row of it.
struct Spill {
    file: File,
    row: AlignedBytes,
}

impl Store {
    pub(super) fn new(plan: &Plan, room: &Room, row_bytes: usize) -> Result<Self> {
        let file = match &room.spill_folder {
            Some(folder) if plan.spill_rows > 0 => {
                let bytes = plan.memory().spill_bytes;
                let open = || spill_file(folder, bytes);
                Some(Spill {
                    file: open().map_err(|e: Error| e.at(format_args!("spill_folder {}", folder.display())))?,
                    row: AlignedBytes::zeroed(row_bytes)?,
                })
            }
            _ => None,
        };
        let memory = AlignedBytes::zeroed(plan.memory_rows.saturating_mul(row_bytes))?;
        Ok(Self { row_bytes, memory, memory_rows: plan.memory_rows, file })
    }

    /// Keeps a row in a slot.
    pub(super) fn write(&mut self, slot: u32, row: &[u8]) -> Result<()> {
        let (slot, bytes) = (slot as usize, self.row_bytes);
        if slot < self.memory_rows {
            self.memory.as_mut_slice()[slot * bytes..][..bytes].copy_from_slice(row);
            return Ok(());
        }
        let spill = self.spill(slot)?;
        spill.file.write_all(row).map_err(|e| Error::from(e).at("a row could not be written to the spill file"))
    }

    /// The row in a slot, aligned for its type.
    pub(super) fn read(&mut self, slot: u32) -> Result<&[u8]> {
        let (slot, bytes) = (slot as usize, self.row_bytes);
        if slot < self.memory_rows {
            return Ok(&self.memory.as_slice()[slot * bytes..][..bytes]);
        }
        let Spill { file, row } = self.spill(slot)?;
        let read = file.read_exact(row.as_mut_slice());
        read.map_err(|e| Error::from(e).at("a row could not be read from the spill file"))?;
        Ok(row.as_slice())
    }

    /// The file, at a slot's place.
    fn spill(&mut self, slot: usize) -> Result<&mut Spill> {
        let at = (slot - self.memory_rows) as u64 * self.row_bytes as u64;
        let Some(spill) = &mut self.file else { return fail!(Internal, "slot {slot} is in no file") };
        spill.file.seek(SeekFrom::Start(at))?;
        Ok(spill)
    }
}

fn spill_file(folder: &Path, bytes: u64) -> Result<File> {
    let file = tempfile::tempfile_in(folder)?;
    file.set_len(bytes)?;
    Ok(file)
}

#[cfg(test)]
impl Store {
    /// Another file takes the place of the one there is.
    pub(super) fn replace_file(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file.as_mut().unwrap().file, file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;
    use crate::training::data::{BufferOptions, Layout};

    #[test]
    fn slots_may_lie_beyond_four_gigabytes() {
        let dir = tempfile::tempdir().unwrap();
        // Rows of 1 MiB, of which few are ever written: the file has holes.
        let mut options = BufferOptions::new(Layout::vectors(1 << 18, DType::F32));
        options.room = Room { memory_bytes: 10 << 20, spill_bytes: 5 << 30, spill_folder: Some(dir.path().into()) };
        let plan = Plan::new(&options, None).unwrap();
        assert_eq!(plan.spill_rows, 5 << 10);
        let mut store = Store::new(&plan, &options.room, 1 << 20).unwrap();
        let slots = [0, plan.memory_rows as u32, 2500, plan.capacity() as u32 - 1];
        for (slot, byte) in std::iter::zip(slots, 1..) {
            store.write(slot, &vec![byte; 1 << 20]).unwrap();
        }
        for (slot, byte) in std::iter::zip(slots, 1..) {
            assert!(store.read(slot).unwrap().iter().all(|&found| found == byte));
        }
        assert!(store.read(4000).unwrap().iter().all(|&found| found == 0));
        #[cfg(unix)]
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
        assert_eq!(store.file.unwrap().file.metadata().unwrap().len(), 5 << 30);
    }
}
