//! A sample of a file's contents, to tell whether somebody wrote over it without leaving a trace in its times.
//!
//! The file is a row of cells, of 16 KiB or of a 65,536th of it if that is more. In each there is a spot: a line of the
//! cache at a place that nobody can guess from the cell's. Its hash is noted when it is first seen, and compared from
//! then on, in rounds that go over the file again and again. So what is written over a whole cell is found, and of less a
//! part: of a file of 100 MB one that changed in 16 KiB, once the first twelve rounds have been.
//!
//! A sample brings nothing into memory: only pages that this process has used already are looked at, as its page table
//! has it in `/proc/self/pagemap`. And it costs a thousandth of the time: who is asked often looks seldom.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::faults::{guarded, page_size};

/// Bytes of a spot: a line of the cache.
const SPOT: usize = 64;
/// Bytes of a cell, at least.
const CELL_MIN: usize = 16 << 10;
/// Cells of a file, at most; each costs four bytes.
const CELLS_MAX: usize = 1 << 16;
/// Bytes of the file that lie in a group of cells, whose pages are asked about in one call.
const GROUP: usize = 1 << 20;
/// Groups of a round: some 50 microseconds.
const ROUND: usize = 8;
/// What a round is taken to have cost at most, in nanoseconds: the rest is another process that had the core.
const ROUND_MAX: u64 = 150_000;
/// What the rounds may take at once, in nanoseconds, and then the part of the time that passes.
const FREE: u64 = 1_000_000;
const SHARE: u64 = 1_000;
/// Spots that are noted when the file is opened, as far as they are in the page cache.
const AT_FIRST: usize = 32;

/// What is known of a file's contents.
#[derive(Debug)]
pub(super) struct Samples {
    cell: usize,
    seen: Box<[AtomicU32]>, // a hash of each cell's spot; 0 if it has not been seen
    group: usize,           // cells
    stride: usize,          // from one group to the next that is looked at; all come in turn
    turn: AtomicUsize,
    since: Instant,
    spent: AtomicU64, // nanoseconds
}

impl Samples {
    /// Of a file of `len` bytes; notes a few spots of `file` that are in the page cache.
    pub(super) fn new(len: usize, file: &File) -> Self {
        let cell = CELL_MIN.max(len.div_ceil(CELLS_MAX)).next_multiple_of(page_size());
        let cells = len.div_ceil(cell);
        let group = (GROUP / cell).max(1);
        let groups = cells.div_ceil(group).max(1);
        // Near the golden section of them, so that few are spread evenly; without a common divisor, so that all come.
        let mut stride = groups * 618 / 1000 + 1;
        while gcd(stride, groups) > 1 {
            stride += 1;
        }
        let samples = Self {
            cell,
            seen: (0..cells).map(|_| AtomicU32::new(0)).collect(),
            group,
            stride,
            turn: AtomicUsize::new(0),
            since: Instant::now(),
            spent: AtomicU64::new(0),
        };
        for i in 0..AT_FIRST.min(cells) {
            let cell = i * cells / AT_FIRST.min(cells);
            let spot = samples.spot(cell, len);
            let mut bytes = [0u8; SPOT];
            let part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: spot.len() };
            // SAFETY: writes to `bytes` only, and no more than is there; it does not wait for a disk.
            let n = unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, spot.start as libc::off_t, libc::RWF_NOWAIT) };
            if n == spot.len() as isize {
                samples.seen[cell].store(hash(&bytes[..spot.len()]), Ordering::Relaxed);
            }
        }
        samples
    }

    /// Looks at some more of the map, if it is time to. Gives whether all is as it was, as far as is known.
    pub(super) fn round(&self, bytes: &[u8]) -> bool {
        let elapsed = || self.since.elapsed().as_nanos() as u64;
        let start = elapsed();
        if self.spent.load(Ordering::Relaxed) > FREE + start / SHARE {
            return true;
        }
        let mut same = true;
        match File::open("/proc/self/pagemap") {
            Err(_) => _ = self.spent.fetch_max(u64::MAX / 2, Ordering::Relaxed), // never again
            Ok(pages) => {
                let _guarded = guarded();
                let groups = self.seen.len().div_ceil(self.group);
                let mut used = vec![0; GROUP / page_size() * 8];
                let mut nothing = 0;
                for _ in 0..ROUND.min(groups) {
                    let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                    let cells = turn.wrapping_mul(self.stride) % groups * self.group..;
                    let cells = cells.start..(cells.start + self.group).min(self.seen.len());
                    let looked = self.look(bytes, cells, &pages, &mut used);
                    same &= looked.is_none_or(|same| same);
                    nothing += usize::from(looked.is_none());
                    if nothing == 2 {
                        break; // it has hardly been used
                    }
                }
            }
        }
        self.spent.fetch_add((elapsed() - start).min(ROUND_MAX), Ordering::Relaxed);
        same
    }

    /// Looks at the used ones of a group of cells: whether they are as they were; None if none is used.
    fn look(&self, bytes: &[u8], cells: Range<usize>, pages: &File, used: &mut [u8]) -> Option<bool> {
        let page = page_size();
        let first = (bytes.as_ptr() as usize + self.spot(cells.start, bytes.len()).start) / page;
        let index = |cell: usize| (bytes.as_ptr() as usize + self.spot(cell, bytes.len()).start) / page - first;
        let used = &mut used[..8 * (index(cells.end - 1) + 1)];
        pages.read_exact_at(used, 8 * first as u64).ok()?;
        let mut same = None;
        for cell in cells {
            // The highest bit: the page is there, for this process.
            if used[8 * index(cell) + 7] & 0x80 != 0 {
                let now = self.hash(bytes, cell);
                let before = self.seen[cell].compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
                same = Some(same.unwrap_or(true) && before.map_or_else(|before| before == now, |_| true));
            }
        }
        same
    }

    /// Whether all spots that were seen are as they were. Reads them again, from the disk if need be.
    pub(super) fn all_as_seen(&self, bytes: &[u8]) -> bool {
        let _guarded = guarded();
        self.seen.iter().enumerate().all(|(cell, seen)| {
            let seen = seen.load(Ordering::Relaxed);
            seen == 0 || seen == self.hash(bytes, cell)
        })
    }

    /// Where in the file the spot of a cell is.
    fn spot(&self, cell: usize, len: usize) -> Range<usize> {
        let start = cell * self.cell;
        let lines = (self.cell.min(len - start) / SPOT).max(1);
        let at = start + mix(cell as u64) as usize % lines * SPOT;
        at..(at + SPOT).min(len)
    }

    fn hash(&self, bytes: &[u8], cell: usize) -> u32 {
        let mut copy = [0u8; SPOT];
        let spot = &bytes[self.spot(cell, bytes.len())];
        copy[..spot.len()].copy_from_slice(spot); // read once, whoever writes
        hash(&copy[..spot.len()])
    }
}

/// Not 0.
fn hash(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    let all = words.fold(bytes.len() as u64, |all, word| mix(all ^ word));
    (all as u32).max(1)
}

/// A bijection that changes half of the bits when one changes (the finaliser of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
