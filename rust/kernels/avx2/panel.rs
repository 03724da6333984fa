//! Blocks of eight rows -> scratch of a batch, transposed: a lane holds a row.
//!
//! For all sets of x86: shuffles within lanes of 128 bits are what there is, whatever the width.
//!
//! Nothing here has features by itself: it becomes part of a function that has.

#![allow(clippy::needless_range_loop)] // no closures, see the products

use std::arch::x86_64::*;

use super::unpack::{Scales, Unpack};

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

/// Unpacks a block of each of the rows `p`, to the lanes from `lane` on of its groups at `to`, and prefetches what lies
/// `ahead_by` bytes ahead. With `DPBUSD` integers are raised by 128, of all types but those with MINS: their products then
/// need the same correction.
///
/// # Safety
/// - The CPU has AVX2, FMA and F16C.
/// - Each of `p` is valid for reads of a block of type `U`; the first of `to`, as many as the block has groups, are the
///   caller's own, with eight lanes from `lane` on, which is a multiple of eight.
#[inline(always)]
pub unsafe fn unpack<U: Unpack, const DPBUSD: bool, const ROWS: usize>(
    p: &[*const u8; 8],
    ahead_by: usize,
    scales: &mut Scales,
    to: &[*mut Group<ROWS>; 8],
    lane: usize,
) {
    let per_block = U::GROUPS;
    let halves = if U::HALVES { 2 } else { 1 };
    // SAFETY: the caller's promises.
    unsafe {
        for i in 0..8 {
            for line in 0..size_of::<U>().div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(p[i].wrapping_add(ahead_by + 64 * line).cast());
            }
        }
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
