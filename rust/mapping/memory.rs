//! Memory of this process, over which parts of a file can be laid: shared until they are written to.
//!
//! This is how a saved key-value cache comes back: its pages are those of the file, one copy for all processes that read
//! them. A page that is written to becomes this process's own, and the file never changes (`MAP_PRIVATE`). Who uses the
//! memory sees no difference.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Identity;
use super::faults::{self, Guard, page_size};
use super::watch::Watch;
use crate::error::{Error, Result};

/// Zeroed memory, straight from the system: a page costs nothing until it is written to.
pub struct Memory {
    // In the order in which they are dropped: nobody guards a range that is no longer mapped.
    laid: Option<Laid>,
    map: memmap2::MmapMut,
}

/// The file whose parts were laid over the memory.
struct Laid {
    guard: Guard,
    file: File,
    path: PathBuf,
    watch: Watch,
}

impl Memory {
    /// `len` zeros.
    ///
    /// # Errors
    /// What the operating system says: no such memory, most likely.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        Ok(Self { laid: None, map: memmap2::MmapMut::map_anon(len.max(1))? })
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.map
    }

    /// Its bytes, to write to.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// Lays parts of a file over the memory, each `(at, offset, len)`: `len` bytes of the file from `offset` come to `at`.
    ///
    /// Parts that lie on page boundaries in both are mapped, and the rest of their last page comes with them. Others are
    /// read, as are all where the system does not map.
    ///
    /// Takes the memory and gives it back, so that nobody sees it half done.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read, [`Error::Changed`] if it is no longer what it was at `identity`.
    ///
    /// # Panics
    /// If a part does not lie in the memory, or files were laid over it before.
    pub fn lay(
        mut self,
        file: File,
        path: &Path,
        identity: Identity,
        parts: impl Iterator<Item = (usize, usize, usize)>,
    ) -> Result<Self> {
        assert!(self.laid.is_none(), "one file at a time");
        // Before the first part, so that no page of the file is ever without a guard.
        let guard = Guard::writable(&self.map);
        let meta = file.metadata().map_err(|source| Error::File { path: path.into(), source })?;
        // Its contents are not watched: pages that were written to are no longer the file's.
        let watch = Watch::new(&file, &meta, false);
        self.laid = Some(Laid { guard, file, path: path.into(), watch });
        if Identity::of(&meta) != identity {
            return Err(Error::Changed { path: path.into(), what: "it was written to".into() });
        }
        for (at, offset, len) in parts {
            self.lay_part(at, offset, len).map_err(|source| Error::File { path: path.into(), source })?;
        }
        self.check()?;
        Ok(self)
    }

    fn lay_part(&mut self, at: usize, offset: usize, len: usize) -> io::Result<()> {
        let file = &self.laid.as_ref().expect("set by the caller").file;
        let target = &mut self.map[at..][..len];
        let page = page_size();
        if len == 0 {
            return Ok(());
        }
        if at.is_multiple_of(page) && offset.is_multiple_of(page) {
            // Not MAP_POPULATE: in a map that may be written to that is a write to each page, so a copy.
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let (start, offset) = (target.as_mut_ptr().cast(), offset as libc::off_t);
            // SAFETY: the range lies in our own map, of which `target` is the only borrow, and `MAP_FIXED` replaces
            // whole pages of it: those of `target`, the last of which may reach to the end of the page, as the map
            // does. That the file may change meanwhile is for `check` to find, and pages that are gone for the guard.
            unsafe {
                if libc::mmap(start, len, protection, flags, file.as_raw_fd(), offset) != libc::MAP_FAILED {
                    return Ok(());
                }
                // Too many maps, or a file system without them: reading will do. The failure may have left a hole.
                if libc::mmap(start, len, protection, flags | libc::MAP_ANONYMOUS, -1, 0) == libc::MAP_FAILED {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        file.read_exact_at(target, offset as u64)
    }

    /// Whether the file that was laid over the memory is still what it was; see [`Mapping::check`](super::Mapping::check).
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check(&self) -> Result<()> {
        let Some(Laid { guard, file, path, watch }) = &self.laid else { return Ok(()) };
        faults::keep_installed();
        match watch.damage(file, &[], guard) {
            None => Ok(()),
            Some(what) => Err(Error::Changed { path: path.clone(), what }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(name: &str, contents: &[u8]) -> (PathBuf, File, Identity) {
        let path = std::env::temp_dir().join(format!("llama_rs-{name}-{}", std::process::id()));
        File::create(&path).unwrap().write_all(contents).unwrap();
        let file = File::open(&path).unwrap();
        let identity = Identity::of(&file.metadata().unwrap());
        (path, file, identity)
    }

    #[test]
    fn parts_of_a_file_come_and_writing_to_them_leaves_the_file_alone() {
        let page = page_size();
        let contents: Vec<u8> = (0..3 * page).map(|i| (i / 7) as u8).collect();
        let (path, opened, identity) = file("memory", &contents);
        let memory = Memory::zeroed(8 * page).unwrap();
        assert!(memory.as_slice().iter().all(|&b| b == 0));
        // two pages mapped, a part that is on no boundary read
        let parts = [(4 * page, page, 2 * page), (100, 50, 60)];
        let mut memory = memory.lay(opened, &path, identity, parts.into_iter()).unwrap();
        assert_eq!(memory.as_slice()[4 * page..6 * page], contents[page..]);
        assert_eq!(memory.as_slice()[100..160], contents[50..110]);
        assert!(memory.as_slice()[6 * page..].iter().all(|&b| b == 0));
        memory.as_mut_slice()[4 * page..].fill(9);
        memory.check().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), contents);
        std::fs::remove_file(&path).unwrap();
        memory.check().unwrap(); // unlinked, but ours
    }

    #[test]
    fn a_file_that_is_cut_short_is_found_and_the_memory_can_still_be_used() {
        let page = page_size();
        let (path, opened, identity) = file("memory-cut", &vec![7; 4 * page]);
        let memory = Memory::zeroed(4 * page).unwrap();
        let mut memory = memory.lay(opened, &path, identity, [(0, 0, 4 * page)].into_iter()).unwrap();
        assert_eq!(memory.as_slice()[0], 7);
        File::options().write(true).open(&path).unwrap().set_len(page as u64).unwrap();
        assert_eq!(memory.as_slice()[2 * page], 0); // was SIGBUS
        memory.as_mut_slice()[2 * page + 1] = 1;
        memory.as_mut_slice()[3 * page] = 1;
        let e = memory.check().unwrap_err();
        assert!(matches!(e, Error::Changed { .. }), "{e}");
        std::fs::remove_file(&path).unwrap();
    }
}
