//! Writing a file so that it appears whole or not at all.

use std::fs;
use std::io::Write;
#[cfg(unix)]
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, fail};

/// More links in a row than a path may have, as in Linux.
const MAX_LINKS: usize = 40;
/// How the names of files being written end.
const SUFFIX: &str = ".partial";

/// Writes beside the target, makes sure the bytes are on the disk, then takes the target's name and mode. On failure the
/// temporary file is removed and whatever was at the target is untouched.
pub(crate) fn write(path: &Path, body: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let path = followed(path)?;
    let old = fs::metadata(&path).ok();
    match &old {
        Some(old) if old.is_dir() => return fail!(Io, "is a directory; give the name of a file in it"),
        Some(old) if !old.is_file() => {
            return fail!(Io, "is not a file (but a device, pipe or socket) and is not replaced");
        }
        _ => {}
    }
    let (parent, prefix) = (parent(&path), prefix(&path));
    let write = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(SUFFIX);
        // What the old file kept from others is at no moment theirs to read.
        #[cfg(unix)]
        builder.permissions(old.as_ref().map_or_else(|| PermissionsExt::from_mode(0o666), fs::Metadata::permissions));
        let mut file = builder.tempfile_in(parent)?;
        #[cfg(unix)]
        if let Some(old) = &old {
            file.as_file().set_permissions(old.permissions())?;
        }
        body(file.as_file_mut())?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|e| e.error)?;
        // The new name is on the disk once its directory is.
        sync(parent);
        Ok(())
    };
    write().map_err(|e: Error| {
        let old = if old.is_some() { "; the file that was there is unchanged" } else { "" };
        Error::new(e.status(), format!("not saved: {}{old}", e.message()))
    })
}

/// Removes what killed writes to the same path left over. That it cannot be removed does no harm.
pub(crate) fn remove_leftovers(path: &Path) {
    let Ok(path) = followed(path) else { return };
    let prefix = prefix(&path);
    for entry in fs::read_dir(parent(&path)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(SUFFIX) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// Whether a killed write left this name over, of a file whose name begins so.
pub(crate) fn is_leftover(name: &str, beginning: &str) -> bool {
    name.strip_prefix('.').is_some_and(|name| name.starts_with(beginning)) && name.ends_with(SUFFIX)
}

/// Makes a directory and those above it that are not there, on the disk too.
pub(crate) fn create_dir_all(path: &Path) -> Result<()> {
    let missing = path.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
    let missing: Vec<&Path> = missing.collect();
    fs::create_dir_all(path)?;
    missing.into_iter().rev().for_each(|path| sync(parent(path)));
    Ok(())
}

/// Gives a complete directory, or a link, the name by which it is known, on the disk too. The target is no directory with
/// something in it.
pub(crate) fn publish(from: &Path, to: &Path) -> Result<()> {
    sync(from);
    fs::rename(from, to)?;
    sync(parent(to));
    Ok(())
}

/// Makes sure that a directory's names are on the disk; where directories cannot be synced, that is the system's.
pub(crate) fn sync(directory: &Path) {
    #[cfg(unix)]
    fs::File::open(directory).and_then(|directory| directory.sync_all()).ok();
    #[cfg(not(unix))]
    let _ = directory;
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// How files being written are named: after the target, of whose name only so much is taken that theirs is not too long.
fn prefix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(".{}.", name.chars().take(32).collect::<String>())
}

/// Where the links that the path may be lead, be anything there or not: a link's target is replaced, not the link.
fn followed(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(path),
        }
    }
    fail!(Io, "more than {MAX_LINKS} symbolic links in a row")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

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

    #[test]
    fn leftovers_of_the_same_file_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["model", ".model.aB3.partial", ".other.aB3.partial", ".model.aB3", "model.partial"] {
            fs::write(dir.path().join(name), b"left").unwrap();
        }
        remove_leftovers(&dir.path().join("model"));
        remove_leftovers(&dir.path().join("no such directory").join("model"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        assert!(!dir.path().join(".model.aB3.partial").exists());
    }

    #[test]
    fn names_may_be_as_long_as_the_system_takes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["n".repeat(250), "ä".repeat(120)] {
            let path = dir.path().join("new").join("below").join(name);
            create_dir_all(parent(&path)).unwrap();
            write(&path, |out| Ok(out.write_all(b"new")?)).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
        }
        assert_eq!(
            create_dir_all(&dir.path().join("new/below/").join("n".repeat(250))).unwrap_err().status(),
            Status::Io
        );
    }

    #[cfg(unix)]
    #[test]
    fn the_old_files_mode_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        for mode in [0o600, 0o400, 0o666, 0o750] {
            fs::write(&path, b"old").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let mode_of = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
            write(&path, |out| {
                // Not even while it is written may others read what they could not read before.
                let partial = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).find(|p| *p != path);
                assert_eq!(mode_of(&partial.unwrap()) & !mode, 0);
                Ok(out.write_all(b"new")?)
            })
            .unwrap();
            assert_eq!((mode_of(&path), fs::read(&path).unwrap()), (mode, b"new".to_vec()));
            fs::remove_file(&path).unwrap();
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_even_to_where_nothing_is_yet() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("below")).unwrap();
        symlink("below/link", at("first")).unwrap();
        symlink("../target", at("below/link")).unwrap();
        for text in [&b"one"[..], b"two"] {
            write(&at("first"), |out| Ok(out.write_all(text)?)).unwrap();
            assert!(at("first").is_symlink() && at("below/link").is_symlink() && !at("target").is_symlink());
            assert_eq!(fs::read(at("target")).unwrap(), text);
        }
        symlink("round", at("round")).unwrap();
        let error = write(&at("round"), |out| Ok(out.write_all(b"new")?)).unwrap_err();
        assert!(error.status() == Status::Io && error.message().contains("links"), "{error}");
        assert!(at("round").is_symlink());
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_a_file_is_not_replaced() {
        use std::os::unix::fs::FileTypeExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = write(&path, |out| Ok(out.write_all(b"new")?)).unwrap_err();
        assert!(error.status() == Status::Io && error.message().contains("not a file"), "{error}");
        assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    }
}
