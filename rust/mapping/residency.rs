//! What of a map is in memory, and bringing it there.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use super::{Mapping, Storage};
use crate::error::{Error, Result};
use crate::threads::Interrupt;

use super::faults::{guarded, page_size};

/// Bytes that are asked about or read in one system call.
const STEP: usize = 16 << 20;

impl Mapping {
    /// Whether [`Mapping::resident`] is a fact. Since Linux 5.2 the kernel tells only who owns the file, may write to it or
    /// has `CAP_FOWNER`; to others it says that everything is in memory.
    pub fn residency_known(&self) -> bool {
        let Storage::Map { file, .. } = &self.storage else { return true };
        // SAFETY: no preconditions.
        let user = unsafe { libc::geteuid() };
        file.metadata().is_ok_and(|meta| meta.uid() == user) || may_write(file) || has_fowner()
    }

    /// How many of the bytes `range` are in memory now, in the page cache that all processes share; all of them where
    /// that is not known, see [`Mapping::residency_known`].
    ///
    /// # Panics
    /// If the range does not lie in the file.
    pub fn resident(&self, range: Range<usize>) -> usize {
        if !self.is_mapped() {
            return range.len();
        }
        let mut pages = Vec::new();
        let mut resident = 0;
        for part in self.pages(range.clone()) {
            pages.resize(part.len().div_ceil(page_size()), 0u8);
            // SAFETY: the range lies in the map, and there is a byte for each of its pages.
            let failed = unsafe { libc::mincore(self.address(part.start), part.len(), pages.as_mut_ptr()) } != 0;
            for (i, _) in pages.iter().enumerate().filter(|(_, page)| failed || **page & 1 == 1) {
                let start = part.start + i * page_size();
                resident += (start + page_size()).min(range.end).saturating_sub(start.max(range.start));
            }
        }
        resident
    }

    /// Has what is read of the bytes `range` from now on read in large pages, where the file system has such.
    ///
    /// # Panics
    /// If the range does not lie in the file.
    pub fn prefer_large_pages(&self, range: Range<usize>) {
        if self.is_mapped() {
            let start = range.start - range.start % page_size();
            assert!(start <= range.end && range.end <= self.as_slice().len());
            // SAFETY: the range lies in the map. It is advice: whether it is taken does not matter.
            unsafe { libc::madvise(self.address(start), range.end - start, libc::MADV_HUGEPAGE) };
        }
    }

    /// Has the bytes `range` read soon, without waiting for them. They come in small pages: for little things.
    ///
    /// # Panics
    /// If the range does not lie in the file.
    pub fn will_need(&self, range: Range<usize>) {
        if self.is_mapped() {
            for part in self.pages(range) {
                // SAFETY: the range lies in the map. It is advice: whether it is taken does not matter.
                unsafe { libc::madvise(self.address(part.start), part.len(), libc::MADV_WILLNEED) };
            }
        }
    }

    /// Reads the bytes `range` into memory and waits for them.
    ///
    /// # Errors
    /// [`Error::File`] if they cannot be read, [`Error::Changed`], [`Error::Interrupted`].
    ///
    /// # Panics
    /// If the range does not lie in the file.
    pub fn read_in(&self, range: Range<usize>, interrupt: &Interrupt) -> Result<()> {
        if !self.is_mapped() {
            return Ok(());
        }
        self.prefer_large_pages(range.clone());
        for part in self.pages(range) {
            if interrupt.poll(0) {
                return Err(Error::Interrupted);
            }
            // SAFETY: the range lies in the map. A page that cannot be read is an error here, not a signal.
            if unsafe { libc::madvise(self.address(part.start), part.len(), libc::MADV_POPULATE_READ) } != 0 {
                let e = io::Error::last_os_error();
                if e.raw_os_error() != Some(libc::EINVAL) {
                    self.check()?;
                    let what = format!("cannot read bytes {} to {}: {e}", part.start, part.end);
                    return Err(Error::File { path: self.path.clone(), source: io::Error::new(e.kind(), what) });
                }
                // Linux before 5.14: touch each page.
                let _guarded = guarded();
                for at in part.step_by(page_size()) {
                    std::hint::black_box(self.as_slice().get(at));
                }
                self.check_pages()?;
            }
        }
        Ok(())
    }

    /// Has the bytes `range`, which are in memory, lie there in large pages: a file that was written (downloaded, copied) is
    /// in small ones. The kernel puts pages together where it can do that; if not, and if `drop` says so, they are dropped
    /// and read again. Pages that others use stay what they are.
    ///
    /// # Errors
    /// As for [`Mapping::read_in`].
    ///
    /// # Panics
    /// If the range does not lie in the file.
    pub fn enlarge_pages(&self, range: Range<usize>, drop: bool, interrupt: &Interrupt) -> Result<()> {
        let Storage::Map { file, .. } = &self.storage else { return Ok(()) };
        for part in self.pages(range) {
            // SAFETY: the range lies in the map; what is read there stays the same.
            let collapsed = unsafe { libc::madvise(self.address(part.start), part.len(), libc::MADV_COLLAPSE) } == 0;
            if !collapsed && drop {
                let (at, len) = (part.start as libc::off_t, part.len() as libc::off_t);
                // SAFETY: as above: the pages come back when they are touched. What was not written to the disk yet, or is
                // used by others, stays in memory.
                unsafe {
                    libc::madvise(self.address(part.start), part.len(), libc::MADV_DONTNEED);
                    libc::posix_fadvise(file.as_raw_fd(), at, len, libc::POSIX_FADV_DONTNEED);
                }
            }
            self.read_in(part, interrupt)?;
        }
        Ok(())
    }

    /// Waits until what was written to the file is on the disk.
    pub fn sync(&self) {
        if let Storage::Map { file, .. } = &self.storage {
            let _ = file.sync_data(); // what is not there cannot be dropped from memory, that is all
        }
    }

    pub(super) fn prefault(&self, interrupt: &Interrupt) -> Result<()> {
        self.read_in(0..self.as_slice().len(), interrupt)
    }

    /// Keeps the file in memory for as long as it is open.
    ///
    /// # Errors
    /// [`Error::File`] if this process may not lock so much.
    pub fn lock(&self) -> Result<()> {
        let bytes = self.as_slice();
        // SAFETY: the bytes are ours. Unmapping or freeing them unlocks them.
        if unsafe { libc::mlock(bytes.as_ptr().cast(), bytes.len()) } == 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        self.check()?;
        let what = match e.raw_os_error() {
            Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN) => {
                let limit = memlock_limit().map_or("unlimited".into(), |limit| format!("{} KiB", limit >> 10));
                format!(
                    "cannot lock {} MiB in memory: RLIMIT_MEMLOCK is {limit}; raise it (ulimit -l, LimitMEMLOCK= in \
                     systemd, --ulimit memlock=-1 in Docker) or do not lock",
                    bytes.len() >> 20
                )
            }
            _ => format!("cannot lock it in memory: {e}"),
        };
        Err(Error::File { path: self.path.clone(), source: io::Error::new(e.kind(), what) })
    }

    /// The range in steps, from the start of a page on.
    fn pages(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        assert!(range.start <= range.end && range.end <= self.as_slice().len());
        let start = range.start - range.start % page_size();
        let end = if range.is_empty() { start } else { range.end };
        (start..end).step_by(STEP).map(move |at| at..(at + STEP).min(end))
    }

    fn address(&self, offset: usize) -> *mut c_void {
        debug_assert!(matches!(self.storage, Storage::Map { .. }));
        self.as_slice()[offset..].as_ptr().cast_mut().cast()
    }
}

/// Whether this process may write to a file that it has opened for reading.
fn may_write(file: &File) -> bool {
    let path = format!("/proc/self/fd/{}\0", file.as_raw_fd());
    // SAFETY: the path ends with a zero.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr().cast(), libc::W_OK, libc::AT_EACCESS) == 0 }
}

/// Whether this process passes for the owner of any file.
fn has_fowner() -> bool {
    const VERSION_3: u32 = 0x2008_0522;
    const CAP_FOWNER: u32 = 3;
    let header = [VERSION_3, 0]; // of this thread
    let mut sets = [0u32; 6]; // effective, permitted, inheritable of the capabilities below 32; the same of those above
    // SAFETY: version 3 reads two words and writes six.
    let known = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) } == 0;
    known && sets[0] >> CAP_FOWNER & 1 == 1
}

/// Bytes that this process may lock; None if there is no limit.
fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to `limit` only.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } == 0;
    (known && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
