//! Writing a file so that nobody ever sees half of it: without a name, or beside it, then renamed over it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::is_mapped_here;
use crate::error::{Error, Result};

/// Writes the file at `path`, or replaces it, in one step: others see the old file or the new one, whole. Who has the
/// old one mapped keeps it. Mode and owner of the old one stay, as far as the system allows.
///
/// Where the file system can (`O_TMPFILE`), nothing stays behind of a process that is killed while it writes.
///
/// # Errors
/// Those of `write`; [`Error::File`] if the file cannot be written, or if this process has it mapped. The file at `path` is as
/// it was then.
pub fn replace_file<T>(path: &Path, write: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    let path = &behind_links(path);
    let fail = |source| Error::File { path: path.clone(), source };
    let old = fs::metadata(path).ok();
    if let Some(old) = &old {
        if !old.is_file() {
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file: not replaced")));
        }
        if is_mapped_here((old.dev(), old.ino())) {
            let what = "is in use by this process: close it first, or write to another file";
            return Err(fail(io::Error::new(io::ErrorKind::ResourceBusy, what)));
        }
    }
    let mut new = New::create(path).map_err(fail)?;
    if let Some(old) = &old {
        // Before a byte is in it: what the old one hid, the new one hides. Changing the owner is for root.
        let _ = fchown(&new.file, Some(old.uid()), Some(old.gid()));
        new.file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777)).map_err(fail)?;
    }
    let value = write(&mut new.file)?;
    new.file.sync_all().map_err(fail)?;
    new.rename_to(path).map_err(fail)?;
    if let Some(folder) = path.parent().and_then(|folder| File::open(folder).ok()) {
        let _ = folder.sync_all(); // not every file system can; the file itself is safe
    }
    Ok(value)
}

/// The name of the file itself, behind links: they stay. The file need not be there.
fn behind_links(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    for _ in 0..40 {
        // As many as Linux follows; a loop of links is found by whoever opens it.
        let Ok(next) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(next);
    }
    fs::canonicalize(&path).unwrap_or(path)
}

/// A new file in a folder: without a name, or with one that nobody else uses; that goes with it.
struct New {
    file: File,
    name: Option<PathBuf>,
    folder: PathBuf,
}

impl New {
    fn create(path: &Path) -> io::Result<Self> {
        if path.file_name().is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not the name of a file"));
        }
        let folder =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
        let nameless = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o666).open(&folder);
        if let Ok(file) = nameless {
            return Ok(Self { file, name: None, folder });
        }
        loop {
            let name = unused_name(&folder);
            match File::options().read(true).write(true).create_new(true).open(&name) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                file => return Ok(Self { file: file?, name: Some(name), folder }),
            }
        }
    }

    fn rename_to(mut self, path: &Path) -> io::Result<()> {
        while self.name.is_none() {
            // A link cannot replace a file, so it gets a name first, for a moment.
            let name = unused_name(&self.folder);
            let source = CString::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
            let target = CString::new(name.as_os_str().as_bytes())?;
            let at = libc::AT_FDCWD;
            // SAFETY: both are strings that end with a zero and live until the call returns.
            match unsafe { libc::linkat(at, source.as_ptr(), at, target.as_ptr(), libc::AT_SYMLINK_FOLLOW) } {
                0 => self.name = Some(name),
                _ => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::AlreadyExists => {}
                    e => return Err(e),
                },
            }
        }
        fs::rename(self.name.as_ref().expect("it has one by now"), path)?;
        self.name = None; // it is another's name
        Ok(())
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = fs::remove_file(name); // the first error is the one to report
        }
    }
}

/// A name in a folder; short, whatever the file is called.
fn unused_name(folder: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    folder.join(format!(".llama_rs-{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::mapping::Mapping;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("llama_rs-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn write(path: &Path, text: &str) -> Result<()> {
        replace_file(path, |file| {
            file.write_all(text.as_bytes()).map_err(|source| Error::File { path: path.into(), source })
        })
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let folder = folder("replace");
        let path = folder.join("file");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        let failed = replace_file(&path, |file| {
            file.write_all(b"three").unwrap();
            Err::<(), _>(Error::Interrupted)
        });
        assert!(matches!(failed, Err(Error::Interrupted)));
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file stays");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_that_is_mapped_here_is_not_replaced() {
        let folder = folder("replace-mapped");
        let (path, link) = (folder.join("file"), folder.join("link"));
        write(&path, "one").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let map = Mapping::open(&path).unwrap();
        for path in [&path, &link] {
            let e = write(path, "two").unwrap_err().to_string();
            assert!(e.contains("in use by this process"), "{e}");
        }
        drop(map);
        write(&link, "two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(link.is_symlink());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn mode_and_long_names_stay() {
        let folder = folder("replace-mode");
        let path = folder.join("n".repeat(255));
        write(&path, "one").unwrap();
        for mode in [0o600, 0o640, 0o604] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            write(&path, "two").unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }
}
