//! Blocks of eight rows -> scratch of a batch, transposed: a lane holds a row.
//!
//! For all sets of x86: shuffles within lanes of 128 bits are what there is, whatever the width.
//!
//! Nothing here has features by itself: it becomes part of a function that has.

#![allow(clippy::needless_range_loop)] // no closures, see the products

use std::arch::x86_64::*;
use std::ops::Range;
use std::ptr::null;

use super::unpack::{Scales, Unpack};
use crate::kernels::matmul::Matmul;

/// 32 weights of each of `ROWS` rows.
#[repr(C, align(64))]
pub struct Group<const ROWS: usize> {
    /// `[dword][row]`: four weights of each row.
    pub q: [[i32; ROWS]; 8],
    /// `[half][row]`; without HALVES the first half only.
    pub d: [[f32; ROWS]; 2],
    pub m: [[f32; ROWS]; 2],
}

// SAFETY: arrays of numbers, for which zeros are a value.
unsafe impl<const ROWS: usize> bytemuck::Zeroable for Group<ROWS> {}

/// What is unpacked next, fetched to the L2 cache while what was unpacked is multiplied: memory is read all the time, and not
/// waited for in between. No gain: fetching while unpacking as well, or from there to the L1 cache a little ahead of use, or to
/// the L1 cache at once; every second line, for the hardware to fetch the others, loses a quarter with 12 tokens (Zen 5).
pub struct Ahead {
    line: *const u8,
    end: *const u8,   // of the part of its row
    part: usize,      // bytes of it
    row_bytes: usize, // to the next row
    left: usize,      // lines
    at_once: usize,   // lines
}

impl Ahead {
    /// What comes after the groups from `first` on of the rows `rows`, of which `block` at most are unpacked at a time, in
    /// `steps` steps: the next groups of the same rows, or the first of as many rows after them.
    pub fn new<U: Unpack>(job: &Matmul, rows: &Range<usize>, first: usize, block: usize, steps: usize) -> Self {
        let groups = job.x.n() / 32;
        let (row, first) = if first + block < groups { (rows.start, first + block) } else { (rows.end, 0) };
        let part = offset_of_group::<U>((groups - first).min(block));
        let left = rows.len() * (part.div_ceil(64) + 1);
        // Spread over all steps; where these are many, over the last, so that most tiles go without.
        let at_once = if 2 * steps >= 3 * left { 4 } else { left.div_ceil(steps.max(1)) };
        let mut ahead = Self { line: null(), end: null(), part, row_bytes: job.w.row_bytes(), left, at_once };
        ahead.begin_row(start::<U>(job, row, first).wrapping_add(part));
        ahead
    }

    #[inline(always)]
    fn begin_row(&mut self, end: *const u8) {
        self.end = end;
        self.line = end.wrapping_sub(self.part);
        self.line = self.line.wrapping_sub(self.line as usize % 64);
    }

    /// Whether all of it has been asked for.
    #[inline(always)]
    fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Whether it is time to ask, `steps` before it is wanted: not so early that it would be gone again.
    #[inline(always)]
    pub fn is_due(&self, steps: usize) -> bool {
        self.left > 0 && steps * self.at_once <= 2 * self.left
    }

    /// A step.
    #[inline(always)]
    pub fn fetch(&mut self) {
        // What is known of it stays in memory: a tile has no register to spare.
        if std::hint::black_box(&*self).is_done() {
            return;
        }
        self.left = self.left.saturating_sub(self.at_once);
        for _ in 0..self.at_once {
            // SAFETY: wherever it points, nothing is read.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.line.cast()) }
            self.line = self.line.wrapping_add(64);
            if self.line >= self.end {
                self.begin_row(self.end.wrapping_add(self.row_bytes));
            }
        }
    }
}

/// Where group `group` of row `row` is, the first of a block; behind the last row, where it would be.
#[inline(always)]
fn start<U: Unpack>(job: &Matmul, row: usize, group: usize) -> *const u8 {
    job.w.bytes().as_ptr().wrapping_add(row * job.w.row_bytes() + offset_of_group::<U>(group))
}

/// Bytes of a row before its group `group`, the first of a block.
#[inline(always)]
fn offset_of_group<U: Unpack>(group: usize) -> usize {
    group / U::GROUPS * size_of::<U>()
}

/// Where group `group` of each of the rows `rows` is; rows past the end repeat the last one.
///
/// Once, and kept in memory: to find the eight pointers of a block would be as many instructions as half of its unpacking.
#[inline(always)]
pub fn starts<U: Unpack, const ROWS: usize>(job: &Matmul, rows: &Range<usize>, group: usize) -> [*const u8; ROWS] {
    let (first, row_bytes) = (start::<U>(job, rows.start, group), job.w.row_bytes());
    let mut starts = [first; ROWS];
    for i in 0..ROWS {
        starts[i] = first.wrapping_add(i.min(rows.len() - 1) * row_bytes);
    }
    std::hint::black_box(starts)
}

/// Unpacks a block of each of the rows `p`, to the lanes from `lane` on of its groups at `to`. With `DPBUSD` integers are raised
/// by 128, of all types but those with MINS: their products then need the same correction.
///
/// # Safety
/// - The CPU has AVX2, FMA and F16C.
/// - Each of `p` is valid for reads of a block of type `U`; the first of `to`, as many as the block has groups, are the
///   caller's own, with eight lanes from `lane` on, which is a multiple of eight.
#[inline(always)]
pub unsafe fn unpack<U: Unpack, const DPBUSD: bool, const ROWS: usize>(
    p: &[*const u8; 8],
    scales: &mut Scales,
    to: &[*mut Group<ROWS>; 8],
    lane: usize,
) {
    let per_block = U::GROUPS;
    let halves = if U::HALVES { 2 } else { 1 };
    // SAFETY: the caller's promises.
    unsafe {
        U::scales(p, scales);
        for g in 0..per_block {
            for half in 0..halves {
                let d = (&raw mut (*to[g]).d[half]).cast::<f32>().add(lane);
                _mm256_storeu_ps(d, U::scale(scales, halves * g + half));
                if U::MINS {
                    let m = (&raw mut (*to[g]).m[half]).cast::<f32>().add(lane);
                    _mm256_storeu_ps(m, U::offset(scales, halves * g + half));
                }
            }
        }
        let raise = if DPBUSD && !U::MINS { 128u8.wrapping_sub(U::BIAS) } else { 0 };
        if let Some(spans) = per_block.checked_div(U::SPAN) {
            for s in 0..spans {
                let mut q = [[[_mm256_setzero_si256(); 2]; 2]; 4];
                for i in 0..4 {
                    q[i] = U::two_rows::<DPBUSD>(p[i], p[i + 4], s);
                }
                for g in 0..U::SPAN {
                    for half in 0..2 {
                        let columns = transpose_four(q[0][g][half], q[1][g][half], q[2][g][half], q[3][g][half]);
                        for i in 0..4 {
                            store(to[U::SPAN * s + g], 4 * half + i, lane, columns[i], raise);
                        }
                    }
                }
            }
        } else if U::FOURS {
            for s in 0..per_block / 4 {
                let mut q = [[_mm256_setzero_si256(); 8]; 4];
                for i in 0..8 {
                    let four = U::four_groups::<DPBUSD>(p[i], s);
                    for g in 0..4 {
                        q[g][i] = four[g];
                    }
                }
                for g in 0..4 {
                    let columns = transpose(q[g]);
                    for dword in 0..8 {
                        store(to[4 * s + g], dword, lane, columns[dword], raise);
                    }
                }
            }
        } else {
            for g in 0..per_block {
                let mut q = [_mm256_setzero_si256(); 8];
                for i in 0..8 {
                    q[i] = U::integers::<DPBUSD>(p[i], g, scales.signs[i][g]);
                }
                let columns = transpose(q);
                for dword in 0..8 {
                    store(to[g], dword, lane, columns[dword], raise);
                }
            }
        }
    }
}

/// # Safety
/// - The CPU has AVX2; `to` is the caller's own, and has eight lanes from `lane` on.
#[inline(always)]
unsafe fn store<const ROWS: usize>(to: *mut Group<ROWS>, dword: usize, lane: usize, column: __m256i, raise: u8) {
    // SAFETY: the caller's promises.
    unsafe {
        let column = if raise == 0 { column } else { _mm256_add_epi8(column, _mm256_set1_epi8(raise as i8)) };
        _mm256_storeu_si256((&raw mut (*to).q[dword]).cast::<i32>().add(lane).cast(), column);
    }
}

/// Eight rows of eight dwords to eight columns.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
pub unsafe fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let upper = transpose_four(r[0], r[1], r[2], r[3]);
        let lower = transpose_four(r[4], r[5], r[6], r[7]);
        let mut columns = r;
        for i in 0..4 {
            columns[i] = _mm256_permute2x128_si256::<0x20>(upper[i], lower[i]);
            columns[4 + i] = _mm256_permute2x128_si256::<0x31>(upper[i], lower[i]);
        }
        columns
    }
}

/// Dwords 0 and 4, 1 and 5, 2 and 6, 3 and 7 of four rows, one of each pair in each half.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn transpose_four(a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> [__m256i; 4] {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab_low, cd_low),
            _mm256_unpackhi_epi64(ab_low, cd_low),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}
