//! Memory of this process: zeroed, or a part of a file, shared until it is written to.
//!
//! The second is how a saved key-value cache comes back: its pages are those of the file, one copy for all processes that
//! read them. A page that is written to becomes this process's own, and the file never changes (`MAP_PRIVATE`). Who uses
//! the memory sees no difference.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Identity;
use super::faults::{self, Guard};
use super::watch::Watch;
use crate::error::{Error, Result};

/// Memory, straight from the system: a page of zeros costs nothing until it is written to, one of a file until it is read.
pub struct Memory {
    // In the order in which they are dropped: nobody guards a range that is no longer mapped.
    laid: Option<Laid>,
    map: memmap2::MmapRaw,
}

/// The file that a memory is a part of.
struct Laid {
    guard: Guard,
    file: File,
    path: PathBuf,
    watch: Watch,
}

/// From this size on, memory is asked for in large pages: two of them, so that what is not used of the last one is little
/// beside the rest. Keys and values are read a quarter faster from them than from pages of 4 KiB.
#[cfg(target_os = "linux")]
const LARGE: usize = 4 << 20;

impl Memory {
    /// `len` zeros.
    ///
    /// # Errors
    /// What the operating system says: no such memory, most likely.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let map = memmap2::MmapMut::map_anon(len.max(1))?;
        #[cfg(target_os = "linux")]
        if len >= LARGE {
            // Where the system has none to give, small ones are as good.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { laid: None, map: map.into() })
    }

    /// `len` bytes of a file from `offset`, which is a multiple of the size of a page where they are to be mapped. On file
    /// systems that cannot map they are read.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read, [`Error::Changed`] if it is no longer what it was at `identity`.
    pub fn of_file(file: File, path: &Path, identity: Identity, offset: usize, len: usize) -> Result<Self> {
        let fail = |source| Error::File { path: path.into(), source };
        // SAFETY: a private map, of which nobody has another view. That the file may change meanwhile is for `check` to
        // find, and pages that are gone for the guard.
        let map = unsafe { memmap2::MmapOptions::new().offset(offset as u64).len(len.max(1)).map_copy(&file) };
        let map: memmap2::MmapRaw = match map {
            Ok(map) => map.into(),
            Err(_) => {
                let mut map = memmap2::MmapMut::map_anon(len.max(1)).map_err(fail)?;
                file.read_exact_at(&mut map[..len], offset as u64).map_err(fail)?;
                map.into()
            }
        };
        // SAFETY: the range is that of the map, and nobody writes to it while the slice is there; it is not read.
        let guard = Guard::writable(unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) });
        let meta = file.metadata().map_err(fail)?;
        if Identity::of(&meta) != identity {
            return Err(Error::Changed { path: path.into(), what: "it was written to".into() });
        }
        // Its contents are not watched: pages that were written to are no longer the file's.
        let watch = Watch::new(&file, &meta, false);
        let memory = Self { laid: Some(Laid { guard, file, path: path.into(), watch }), map };
        memory.check()?;
        Ok(memory)
    }

    /// Where it starts. For whoever shares its parts out; see `kv::Block`.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// How many bytes there are, at least one.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Gives the pages of a range back to the system. What is read there afterwards is zeros or the file again.
    ///
    /// # Safety
    /// - Nobody has a reference to the range.
    pub unsafe fn discard(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len());
        // SAFETY: the range lies in our own map; the caller says that nobody looks at it.
        unsafe { libc::madvise(self.as_mut_ptr().add(range.start).cast(), range.len(), libc::MADV_DONTNEED) };
    }

    /// Whether the file that it is a part of is still what it was; see [`Mapping::check`](super::Mapping::check).
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

    use super::super::page_size;
    use super::*;

    fn file(name: &str, contents: &[u8]) -> (PathBuf, File, Identity) {
        let path = std::env::temp_dir().join(format!("llama_rs-{name}-{}", std::process::id()));
        File::create(&path).unwrap().write_all(contents).unwrap();
        let file = File::open(&path).unwrap();
        let identity = Identity::of(&file.metadata().unwrap());
        (path, file, identity)
    }

    fn bytes(memory: &mut Memory) -> &mut [u8] {
        // SAFETY: all of it, and the test has the only reference.
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr(), memory.len()) }
    }

    #[test]
    fn a_part_of_a_file_comes_and_writing_to_it_leaves_the_file_alone() {
        let page = page_size();
        let contents: Vec<u8> = (0..3 * page).map(|i| (i / 7) as u8).collect();
        let (path, opened, identity) = file("memory", &contents);
        let mut memory = Memory::of_file(opened, &path, identity, page, 2 * page).unwrap();
        assert_eq!(*bytes(&mut memory), contents[page..]);
        bytes(&mut memory)[page..].fill(9);
        memory.check().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), contents);
        std::fs::remove_file(&path).unwrap();
        memory.check().unwrap(); // unlinked, but ours
        // SAFETY: nobody has a reference.
        unsafe { memory.discard(page..2 * page) };
        assert_eq!(*bytes(&mut memory), contents[page..]);
    }

    #[test]
    fn a_file_that_is_cut_short_is_found_and_the_memory_can_still_be_used() {
        let page = page_size();
        let (path, opened, identity) = file("memory-cut", &vec![7; 4 * page]);
        let mut memory = Memory::of_file(opened, &path, identity, 0, 4 * page).unwrap();
        assert_eq!(bytes(&mut memory)[0], 7);
        File::options().write(true).open(&path).unwrap().set_len(page as u64).unwrap();
        assert_eq!(bytes(&mut memory)[2 * page], 0); // was SIGBUS
        bytes(&mut memory)[2 * page + 1] = 1;
        bytes(&mut memory)[3 * page] = 1;
        let e = memory.check().unwrap_err();
        assert!(matches!(e, Error::Changed { .. }), "{e}");
        std::fs::remove_file(&path).unwrap();
    }
}
