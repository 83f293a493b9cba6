//! Writing a file so that it appears whole or not at all.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result, Status};

/// Writes beside the target, makes sure the bytes are on the disk, then takes the target's name. On failure the temporary
/// file is removed and whatever was at the target is untouched.
pub(super) fn write(path: &Path, body: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    // A link is followed, so that its target is replaced and not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if path.is_dir() {
        return Err(Error::new(Status::Io, "is a directory; give the name of a file in it"));
    }
    let had = path.exists();
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".").suffix(".partial");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(parent)?;
        body(file.as_file_mut())?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|e| e.error)?;
        // The new name is on the disk once its directory is; where directories cannot be synced, that is the system's.
        #[cfg(unix)]
        fs::File::open(parent).and_then(|directory| directory.sync_all()).ok();
        Ok(())
    };
    write().map_err(|e: Error| {
        let old = if had { "; the file that was there is unchanged" } else { "" };
        Error::new(e.status(), format!("not saved: {}{old}", e.message()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_leaves_the_old_file_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        write(&path, |out| Ok(out.write_all(b"old")?)).unwrap();
        let error = write(&path, |out| {
            out.write_all(b"new, but ")?;
            Ok(fs::File::options().write(true).open("/dev/full")?.write_all(b"the disk is full")?)
        })
        .unwrap_err();
        assert_eq!(error.status(), Status::Io);
        assert!(error.message().contains("No space left") && error.message().contains("unchanged"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");
        let nowhere = dir.path().join("no such directory").join("model");
        assert_eq!(write(&nowhere, |_| Ok(())).unwrap_err().status(), Status::Io);
        assert_eq!(write(dir.path(), |_| Ok(())).unwrap_err().status(), Status::Io);
    }
}
