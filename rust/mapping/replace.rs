//! Writing a file so that nobody ever sees half of it: beside it, then renamed over it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::is_mapped_here;
use crate::error::{Error, Result};

/// Writes the file at `path`, or replaces it, in one step: others see the old file or the new one, whole. Who has the
/// old one mapped keeps it.
///
/// # Errors
/// Those of `write`; [`Error::File`] if the file cannot be written, or if this process has it mapped. The file at
/// `path` is as it was then.
pub fn replace_file<T>(path: &Path, write: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf()); // through a link, not over it
    let fail = |source| Error::File { path: path.clone(), source };
    if let Ok(old) = fs::metadata(path) {
        if !old.is_file() {
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file: not replaced")));
        }
        if is_mapped_here((old.dev(), old.ino())) {
            let what = "is in use by this process: close it first, or write to another file";
            return Err(fail(io::Error::new(io::ErrorKind::ResourceBusy, what)));
        }
    }
    let (mut file, temporary) = create_beside(path).map_err(fail)?;
    let written = write(&mut file).and_then(|value| {
        file.sync_all().map_err(fail)?;
        fs::rename(&temporary, path).map_err(fail)?;
        Ok(value)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // the first error is the one to report
    } else if let Some(folder) = path.parent().and_then(|folder| File::open(folder).ok()) {
        let _ = folder.sync_all(); // not every file system can; the file itself is safe
    }
    written
}

/// A new file in the folder of `path`, with a name that nobody else uses.
fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name =
        path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "is not the name of a file"))?;
    loop {
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(temporary);
        match File::options().read(true).write(true).create_new(true).open(&temporary) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            file => return Ok((file?, temporary)),
        }
    }
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
}
