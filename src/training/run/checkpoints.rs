//! The checkpoints of a run: a folder of folders `step-000000001000`, each complete, and `latest`, a link to the newest.
//!
//! A checkpoint is written into a folder with another name and takes its own when all of it is on the disk; one that is no longer
//! kept gives up its name before it is removed. So whatever has such a name is complete, whenever the process was killed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::atomic;
use crate::error::{Error, Result};

const PREFIX: &str = "step-";
/// The link to the newest; systems without links that anyone may make have none.
#[cfg(unix)]
const LATEST: &str = "latest";
/// How the names of what is not, or no longer, a checkpoint end; they begin with a dot.
const PARTIAL: &str = ".partial";
const REMOVED: &str = ".removed";

/// Where they are, and which are kept.
pub(super) struct Checkpoints {
    pub(super) folder: PathBuf,
    /// So many of the newest.
    pub(super) keep: usize,
    /// And all whose step is a multiple of this, if it is not 0.
    pub(super) keep_every: u64,
}

impl Checkpoints {
    /// The newest, if there is any: its step and where it is.
    pub(super) fn newest(&self) -> Result<Option<(u64, PathBuf)>> {
        let steps = self.steps()?;
        Ok(steps.last().map(|&step| (step, self.path(step))))
    }

    /// Has `body` fill a folder, which then becomes the checkpoint of that step; those no longer kept are removed. If it fails,
    /// the others stay as they were.
    pub(super) fn write(&self, step: u64, body: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path(step);
        let write = || {
            atomic::create_dir_all(&self.folder)?;
            self.remove_leftovers();
            if !path.exists() {
                let partial = self.hidden(step, PARTIAL);
                fs::create_dir(&partial).map_err(|e| Error::from(e).at(partial.display()))?;
                let filled = body(&partial).and_then(|()| atomic::publish(&partial, &path));
                filled.inspect_err(|_| drop(fs::remove_dir_all(&partial)))?;
            }
            // The link is for people; a run does not read it, nor end for it.
            self.link(step).ok();
            Ok(())
        };
        write().map_err(|error: Error| {
            let last = match self.newest() {
                Ok(Some((_, last))) => format!("the last complete checkpoint is {}", last.display()),
                _ => "there is no earlier checkpoint".to_owned(),
            };
            let message = format!("the checkpoint of step {step} was not saved ({last}): {}", error.message());
            Error::new(error.status(), message).at(self.folder.display())
        })?;
        self.prune()?;
        Ok(path)
    }

    /// Of all that are there, in rising order.
    fn steps(&self) -> Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| Error::from(e).at(self.folder.display()))?,
        };
        let step = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse::<u64>().ok();
        let mut steps: Vec<u64> = entries.flatten().filter_map(step).filter(|&s| self.path(s).is_dir()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step:012}"))
    }

    fn hidden(&self, step: u64, suffix: &str) -> PathBuf {
        self.folder.join(format!(".{PREFIX}{step:012}{suffix}"))
    }

    /// Lets `latest` lead to a checkpoint that is complete, at no moment to nothing.
    #[cfg(unix)]
    fn link(&self, step: u64) -> Result<()> {
        let (path, partial) = (self.path(step), self.folder.join(format!(".{LATEST}{PARTIAL}")));
        fs::remove_file(&partial).ok();
        std::os::unix::fs::symlink(path.file_name().unwrap_or_default(), &partial)?;
        atomic::publish(&partial, &self.folder.join(LATEST))
    }

    #[cfg(not(unix))]
    fn link(&self, _: u64) -> Result<()> {
        Ok(())
    }

    /// Removes those that are no longer kept. One that cannot be removed wholly is tried again with the next checkpoint.
    fn prune(&self) -> Result<()> {
        let steps = self.steps()?;
        let old = &steps[..steps.len().saturating_sub(self.keep.max(1))];
        for &step in old.iter().filter(|&&step| self.keep_every == 0 || step % self.keep_every != 0) {
            let removed = self.hidden(step, REMOVED);
            if fs::rename(self.path(step), &removed).is_ok() {
                fs::remove_dir_all(&removed).ok();
            }
        }
        Ok(())
    }

    /// Removes what a killed process left over.
    fn remove_leftovers(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let ours = name.starts_with(&format!(".{PREFIX}")) && (name.ends_with(PARTIAL) || name.ends_with(REMOVED));
            if ours {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;
    use crate::error::fail;

    fn checkpoints(folder: &Path, keep: usize, keep_every: u64) -> Checkpoints {
        Checkpoints { folder: folder.to_owned(), keep, keep_every }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    fn fill(folder: &Path, text: &str) -> Result<()> {
        Ok(fs::write(folder.join("state"), text)?)
    }

    #[test]
    fn the_newest_and_every_mth_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/checkpoints");
        let all = checkpoints(&folder, 2, 40);
        assert_eq!(all.newest().unwrap(), None);
        for step in (10..=100).step_by(10) {
            let path = all.write(step, |folder| fill(folder, &step.to_string())).unwrap();
            assert_eq!(all.newest().unwrap(), Some((step, path)));
            #[cfg(unix)]
            assert_eq!(fs::read_to_string(folder.join("latest/state")).unwrap(), step.to_string());
        }
        let kept = ["latest", "step-000000000040", "step-000000000080", "step-000000000090", "step-000000000100"];
        assert_eq!(names(&folder), if cfg!(unix) { &kept[..] } else { &kept[1..] });
        // What is complete is not written again.
        all.write(100, |_| panic!("it is there")).unwrap();
    }

    #[test]
    fn a_checkpoint_that_fails_leaves_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("checkpoints");
        let all = checkpoints(&folder, 1, 0);
        let full = |folder: &Path| {
            fill(folder, "half")?;
            fail!(Io, "no space left on device")
        };
        let error = all.write(1, full).unwrap_err();
        assert!(error.message().contains("there is no earlier checkpoint"), "{error}");
        all.write(1, |folder| fill(folder, "one")).unwrap();
        let before = names(&folder);
        let error = all.write(2, full).unwrap_err();
        assert_eq!(error.status(), Status::Io);
        for word in [folder.to_str().unwrap(), "step 2", "no space left", "step-000000000001"] {
            assert!(error.message().contains(word), "{word}: {error}");
        }
        assert_eq!(names(&folder), before);
        assert_eq!(fs::read_to_string(folder.join("step-000000000001/state")).unwrap(), "one");
        fs::write(dir.path().join("file"), "").unwrap();
        let nowhere = checkpoints(&dir.path().join("file/checkpoints"), 1, 0);
        let error = nowhere.write(1, |_| Ok(())).unwrap_err();
        assert!(error.status() == Status::Io && error.message().contains("file/checkpoints"), "{error}");
    }

    #[test]
    fn what_a_killed_process_left_is_no_checkpoint_and_goes_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let all = checkpoints(dir.path(), 3, 0);
        for left in [".step-000000000009.partial", ".step-000000000001.removed", "step-x", "other"] {
            fs::create_dir(dir.path().join(left)).unwrap();
            fill(&dir.path().join(left), "left").unwrap();
        }
        fs::write(dir.path().join("step-000000000099"), "a file").unwrap();
        assert_eq!(all.newest().unwrap(), None);
        all.write(9, |folder| fill(folder, "nine")).unwrap();
        let kept = ["latest", "other", "step-000000000009", "step-000000000099", "step-x"];
        assert_eq!(names(dir.path()), if cfg!(unix) { &kept[..] } else { &kept[1..] });
    }
}
