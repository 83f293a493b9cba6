//! A file that grows by whole entries, and that a resumed run cuts back to where its checkpoint was.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result, fail};

/// One such file. Entries go to the system as they come, so that a killed process loses none; [`Self::sync`] puts them on the disk.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    /// Opens a file to go on after its first `length` bytes; what follows them stays until [`Self::cut`]. A file that is no longer
    /// there begins anew; one that is shorter was changed by others and is refused.
    pub(super) fn open(path: &Path, length: u64) -> Result<Self> {
        let open = || {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
            let found = file.metadata()?.len();
            if 0 < found && found < length {
                return fail!(
                    Io,
                    "has {found} bytes, but had {length} when the checkpoint was made; move it away to begin a new one"
                );
            }
            Ok(Self { path: path.to_owned(), file, length: length.min(found) })
        };
        open().map_err(|e: Error| e.at(path.display()))
    }

    /// Cuts off what follows, to begin to write.
    pub(super) fn cut(&mut self) -> Result<()> {
        let cut = self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
        cut.map(drop).map_err(|e| Error::from(e).at(self.path.display()))
    }

    /// How many bytes it has.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Adds an entry. Of one that cannot be written whole, nothing stays.
    pub(super) fn append(&mut self, entry: &[u8]) -> Result<()> {
        if let Err(error) = self.file.write_all(entry) {
            self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::Start(self.length))).ok();
            return Err(Error::from(error).at(self.path.display()));
        }
        self.length += entry.len() as u64;
        Ok(())
    }

    /// Makes sure that it is on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::from(e).at(self.path.display()))
    }
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    #[test]
    fn a_resumed_file_goes_on_from_where_the_checkpoint_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path, 0).unwrap();
        log.cut().unwrap();
        log.append(b"one\n").unwrap();
        let kept = log.length();
        log.append(b"two\n").unwrap();
        drop(log);
        let mut log = Log::open(&path, kept).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n", "opened, it is as it was");
        log.cut().unwrap();
        log.append(b"2\n").unwrap();
        log.sync().unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), log.length()), (b"one\n2\n".to_vec(), 6));
        let error = Log::open(&path, 7).err().unwrap();
        assert!(error.status() == Status::Io && error.message().contains("has 6 bytes, but had 7"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one\n2\n", "a refused file is left as it was");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Log::open(&path, 7).unwrap().length(), 0);
        assert_eq!(Log::open(&dir.path().join("no/such"), 0).err().unwrap().status(), Status::Io);
    }
}
