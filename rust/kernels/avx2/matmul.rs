//! Matrix products in registers of 256 bits: AVX2, and AVX-VNNI if `VNNI`.
//!
//! Two ways through a matrix, both from [`Unpack`], that give the same bits:
//!
//! - [`rows`], for one token or a few: rows are streamed in place, eight at a time, unpacked in registers and multiplied
//!   with up to four tokens. The integer products of a group are added across until a lane holds a row.
//! - [`strip`], for a batch: rows are unpacked into scratch that stays in the cache, transposed so that a lane holds a row,
//!   and multiplied with all tokens.
//!
//! The order of the float additions is that of a lane in both: a row's groups one after another, and every
//! [`BLOCK_GROUPS`] of them the sum goes to the result. What is added in integers may be added in any order.
//!
//! Without `dpbusd`, `maddubs` multiplies unsigned weights with signed activations and adds pairs in 16 bits. Integers up
//! to 63 fit, and the sums of several pairs of small ones; larger ones (Q8_0, IQ4) go by magnitude and sign,
//! `|w| * (a with the sign of w)`, one pair at a time. With it all weights are raised until they are unsigned, and the
//! products of four are added to a sum of 32 bits in one instruction.
//!
//! No closures and no iterator adaptors where there are registers: code that is generic over a closure lacks the features
//! of the set, and every intrinsic in it would be a call.

#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;
use std::ops::Range;
use std::ptr::{null, null_mut};

use super::panel::{self, Ahead, Group};
use super::unpack::{Scales, Unpack};
use super::{avx2, avxvnni};
use crate::kernels::activations::{QuantizedRow, Rows};
use crate::kernels::matmul::{Matmul, STRIP};

/// How far ahead of the reads of eight rows to prefetch, in bytes, at least; whole sets of rows, as in the AVX-512 kernels.
const PREFETCH: usize = 8192;
/// From this distance on, what is prefetched goes to the L2 cache only: in the L1 cache it would not stay until it is needed.
const FAR: usize = 16 << 10;
/// Tokens that share unpacked rows.
const ROW_TOKENS: usize = 3;

/// `out[t][r] (+)= w[r] . x[t]` for the rows `rows` and all tokens of `job`.
///
/// # Safety
/// - The CPU has the features of the set, and AVX-VNNI if `VNNI`.
/// - `rows` are rows of `job.w`, which is of type `U`, and no other worker writes the same rows of `job.out`.
pub unsafe fn rows<U: Unpack, const VNNI: bool>(job: &Matmul, rows: Range<usize>) {
    for t in job.tokens.clone().step_by(ROW_TOKENS) {
        // SAFETY: the caller's promises.
        unsafe {
            match job.tokens.end - t {
                1 => some_tokens::<U, VNNI, 1>(job, rows.clone(), t),
                2 => some_tokens::<U, VNNI, 2>(job, rows.clone(), t),
                _ => some_tokens::<U, VNNI, ROW_TOKENS>(job, rows.clone(), t),
            }
        }
    }
}

/// Rows for the `T` tokens from `t`: through the door of the set.
///
/// # Safety
/// - As for [`rows`], and the tokens are those of `job`.
unsafe fn some_tokens<U: Unpack, const VNNI: bool, const T: usize>(job: &Matmul, rows: Range<usize>, t: usize) {
    // SAFETY: the caller's promises.
    unsafe { if VNNI { tokens_rows_vnni::<U, T>(job, rows, t) } else { tokens_rows::<U, T>(job, rows, t) } }
}

/// The doors of the products: `$features` gives them those of a set.
macro_rules! doors {
    (@way $way:ident) => { $way };
    (@way) => { DPBUSD };
    ($features:ident, vnni: $vnni:literal, $tokens_rows:ident, $tile:ident $(, $way:ident)?) => {
        $features! {
            /// Rows for the `T` tokens from `t`.
            ///
            /// # Safety
            /// - The matrix, of type `U`, has these rows, and the activations these tokens; nobody else writes their results.
            unsafe fn $tokens_rows<U: Unpack, const T: usize>(job: &Matmul, rows: Range<usize>, t: usize) {
                let x = Rows::<T>::new(job.x, t, 0, U::HALVES);
                let mut r = rows.start;
                while r < rows.end {
                    // Eight rows or, at the end of a matrix, one: then all of the eight are the same.
                    let n = if rows.end - r >= 8 { 8 } else { 1 };
                    // SAFETY: the features are those of this function; the rest is the caller's promise.
                    unsafe { dots::<U, $vnni, T>(job, r, n, t, &x) };
                    r += n;
                }
            }

            /// 16 rows times the `T` tokens from `t`.
            ///
            /// # Safety
            /// - The block is unpacked, of a type with these facts, and the tokens are there; nobody else writes the results.
            unsafe fn $tile<const HALVES: bool, const MINS: bool $(, const $way: Way)?, const T: usize, const FETCH: bool>(
                block: &Unpacked,
                t: usize,
                ahead: &mut Ahead,
            ) {
                // SAFETY: the features are those of this function; the rest is the caller's promise.
                unsafe { block.tile::<HALVES, MINS, { doors!(@way $($way)?) }, T, FETCH>(t, ahead) }
            }
        }
    };
}
doors!(avx2, vnni: false, tokens_rows, tile, WAY);
doors!(avxvnni, vnni: true, tokens_rows_vnni, tile_vnni);

/// The products of the `n` rows from `r`, eight or one, with the `T` tokens from `t`, whose rows are `x`.
///
/// Nothing in the loop over blocks is decided by what does not change in it: the compiler would make a copy of it all for
/// either case.
///
/// # Safety
/// - The CPU has the features of the set.
/// - The matrix, of type `U`, has the rows, and `x` is of its tokens; nobody else writes the results.
#[inline(always)]
unsafe fn dots<U: Unpack, const VNNI: bool, const T: usize>(job: &Matmul, r: usize, n: usize, t: usize, x: &Rows<T>) {
    let row_bytes = job.w.row_bytes();
    let block = size_of::<U>();
    let (blocks, per_block) = (row_bytes / block, U::GROUPS);
    let stride = if n == 8 { row_bytes } else { 0 };
    let ahead_by = PREFETCH.next_multiple_of(8 * row_bytes);
    let far = ahead_by > FAR;
    let shift = shift::<U>();
    // SAFETY: the matrix has these rows, and the activations as many groups; the results lie in `out`.
    unsafe {
        let w = job.w.bytes().as_ptr().add(r * row_bytes);
        let mut totals = [_mm256_set1_ps(-0.0); T]; // that is what changes nothing that is added to it
        if job.accumulate {
            for j in 0..T {
                let out = job.at(t + j, r);
                totals[j] = if n == 8 { _mm256_loadu_ps(out) } else { _mm256_set1_ps(*out) };
            }
        }
        let mut scales = Scales::ZERO; // once: it is too large to be cleared for each block
        for first in (0..blocks).step_by(BLOCK_GROUPS / per_block) {
            let mut sums = [_mm256_setzero_ps(); T];
            for b in first..(first + BLOCK_GROUPS / per_block).min(blocks) {
                let ahead = w.wrapping_add(ahead_by + b * 8 * block);
                // Two pointers that move, and distances: the compiler would move eight.
                let (p0, p3) = (opaque(w.add(b * block)), opaque(w.add(b * block + 3 * stride)));
                let p = [
                    p0,
                    p0.add(stride),
                    p0.add(2 * stride),
                    p3,
                    p0.add(4 * stride),
                    p3.add(2 * stride),
                    p3.add(3 * stride),
                    p3.add(4 * stride),
                ];
                U::scales(&p, &mut scales);
                let span = if U::SPAN > 0 {
                    U::SPAN
                } else if U::FOURS {
                    4
                } else {
                    1
                };
                let lines = (8 * block).div_ceil(64 * (per_block / span));
                for s in 0..per_block / span {
                    // A few at a time: there are no more than ten to sixteen places for lines on their way.
                    for line in 0..lines {
                        let line = ahead.wrapping_add(64 * (s * lines + line)).cast();
                        if far { _mm_prefetch::<_MM_HINT_T1>(line) } else { _mm_prefetch::<_MM_HINT_T0>(line) }
                    }
                    let at = b * per_block + s * span;
                    if U::SPAN > 0 {
                        add_span::<U, VNNI, T>(&mut sums, &p, &scales, s, x, at, shift);
                    } else if span == 4 {
                        add_four_groups::<U, VNNI, T>(&mut sums, &p, &scales, s, x, at, shift);
                    } else {
                        add_group::<U, VNNI, T>(&mut sums, &p, &scales, s, x, at, shift);
                    }
                }
            }
            for j in 0..T {
                totals[j] = _mm256_add_ps(totals[j], sums[j]);
            }
        }
        for j in 0..T {
            let out = job.at(t + j, r);
            if n == 8 {
                _mm256_storeu_ps(out, totals[j]);
            } else {
                *out = _mm256_cvtss_f32(totals[j]);
            }
        }
    }
}

/// The same pointer, of which the compiler does not know where it comes from.
#[inline(always)]
#[allow(clippy::pointers_in_nomem_asm_block)] // nothing is read through it
fn opaque(p: *const u8) -> *const u8 {
    let mut p = p;
    // SAFETY: nothing is done.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags)) };
    p
}

/// Adds the products of the `SPAN` groups from `SPAN * s` on of the blocks at `p` with the groups of the activations from `at`
/// on: rows `k` and `k + 4` at a time, so that a lane of what comes out holds what it holds in a tile.
///
/// # Safety
/// - The CPU has the features of the set.
/// - Each of `p` is valid for reads of a block of type `U` with these groups, and so is `x`.
#[inline(always)]
unsafe fn add_span<U: Unpack, const VNNI: bool, const T: usize>(
    sums: &mut [__m256; T],
    p: &[*const u8; 8],
    scales: &Scales,
    s: usize,
    x: &Rows<T>,
    at: usize,
    shift: __m256i,
) {
    debug_assert!(!U::HALVES && U::MAGNITUDE.is_none() && U::SPAN <= 2);
    let narrow = if VNNI { 0 } else { const { narrow_levels(U::LARGEST) } };
    // SAFETY: blocks are there, and the activations as many groups; the features are the caller's promise.
    unsafe {
        let zero = _mm256_setzero_si256();
        let mut a = [[[zero; 2]; 2]; T];
        for j in 0..T {
            for g in 0..U::SPAN {
                for half in 0..2 {
                    let a16 = x.qs[j].add(32 * (at + g) + 16 * half);
                    a[j][g][half] = _mm256_broadcastsi128_si256(_mm_loadu_si128(a16.cast()));
                }
            }
        }
        // `[group][token]`: rows 0 1 | 4 5, then 2 3 | 6 7.
        let mut four = [[[zero; T]; 2]; 2];
        for k in 0..2 {
            let mut first = [[zero; T]; 2];
            for i in 0..2 {
                let row = 2 * k + i;
                let q = U::two_rows::<VNNI>(p[row], p[row + 4], s);
                for g in 0..U::SPAN {
                    for j in 0..T {
                        let mut sum = dot_halves::<U, VNNI>(q[g], a[j][g]);
                        if i == 0 {
                            first[g][j] = sum;
                        } else {
                            sum = add_quarters(first[g][j], sum, narrow == 0);
                            four[k][g][j] = if narrow == 1 { widen(sum) } else { sum };
                        }
                    }
                }
            }
        }
        for g in 0..U::SPAN {
            for j in 0..T {
                // Not by `map`: its closure has no AVX2, and where it is not inlined each cast is a call.
                let (a, b) = (_mm256_castsi256_ps(four[0][g][j]), _mm256_castsi256_ps(four[1][g][j]));
                let even = _mm256_castps_si256(_mm256_shuffle_ps::<0x88>(a, b));
                let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0xdd>(a, b));
                let sum = add(even, odd, narrow < 2);
                let sum = if narrow == 2 { widen(sum) } else { sum };
                scale::<U, VNNI, T>(sums, sum, scales, j, U::SPAN * s + g, 0, x, at + g, shift);
            }
        }
    }
}

/// Adds the products of the four groups from `4 * s` on of the blocks at `p` with the groups of the activations from `at` on,
/// two rows at a time.
///
/// # Safety
/// - The CPU has the features of the set.
/// - Each of `p` is valid for reads of a block of type `U` with these groups, and so is `x`.
#[inline(always)]
unsafe fn add_four_groups<U: Unpack, const VNNI: bool, const T: usize>(
    sums: &mut [__m256; T],
    p: &[*const u8; 8],
    scales: &Scales,
    s: usize,
    x: &Rows<T>,
    at: usize,
    shift: __m256i,
) {
    debug_assert!(U::LARGEST <= 63); // four products in 16 bits
    // SAFETY: blocks are there, and the activations as many groups; the features are the caller's promise.
    unsafe {
        let zero = _mm256_setzero_si256();
        // `[group][token]`: the first halves of four rows, then the second halves.
        let mut four = [[[zero; T]; 4]; 2];
        for k in 0..2 {
            let mut two = [[[zero; T]; 4]; 2];
            for i in 0..2 {
                let row = 4 * k + 2 * i;
                let (a, b) = (U::four_groups::<VNNI>(p[row], s), U::four_groups::<VNNI>(p[row + 1], s));
                for g in 0..4 {
                    for j in 0..T {
                        let x = _mm256_loadu_si256(x.qs[j].add(32 * (at + g)).cast());
                        let (a, b) = (products::<VNNI>([a[g]; 2], x, false), products::<VNNI>([b[g]; 2], x, false));
                        let sum = add_quarters(a, b, VNNI);
                        two[i][g][j] = if VNNI { sum } else { widen(sum) };
                    }
                }
            }
            for g in 0..4 {
                for j in 0..T {
                    four[k][g][j] = _mm256_hadd_epi32(two[0][g][j], two[1][g][j]);
                }
            }
        }
        for g in 0..4 {
            for j in 0..T {
                let (a, b) = (four[0][g][j], four[1][g][j]);
                let halves = [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b)];
                for half in 0..2 {
                    scale::<U, VNNI, T>(sums, halves[half], scales, j, 4 * s + g, half, x, at + g, shift);
                }
            }
        }
    }
}

/// Adds the products of group `g` of the blocks at `p` with group `at` of the activations, a row at a time.
///
/// # Safety
/// - The CPU has the features of the set.
/// - Each of `p` is valid for reads of a block of type `U`, `g` is a group of it, and `x` has a group `at`.
#[inline(always)]
unsafe fn add_group<U: Unpack, const VNNI: bool, const T: usize>(
    sums: &mut [__m256; T],
    p: &[*const u8; 8],
    scales: &Scales,
    g: usize,
    x: &Rows<T>,
    at: usize,
    shift: __m256i,
) {
    // SAFETY: blocks are there, and the activations as many groups; the features are the caller's promise.
    unsafe {
        let mut a = [_mm256_setzero_si256(); T];
        for j in 0..T {
            a[j] = _mm256_loadu_si256(x.qs[j].add(32 * at).cast());
        }
        // Four rows at a time: fewer registers.
        let mut four = [[_mm256_setzero_si256(); 2]; T];
        for k in 0..2 {
            let rows = if U::HALVES {
                [4 * k, 4 * k + 1, 4 * k + 2, 4 * k + 3]
            } else {
                [2 * k, 2 * k + 4, 2 * k + 1, 2 * k + 5]
            };
            let mut q = [[_mm256_setzero_si256(); 2]; 4];
            for i in 0..4 {
                let (p, signs) = (p[rows[i]], scales.signs[rows[i]][g]);
                q[i] = if VNNI && U::MAGNITUDE.is_none() {
                    [U::integers::<true>(p, g, signs); 2]
                } else {
                    U::factors(p, g, signs)
                };
            }
            for j in 0..T {
                four[j][k] = dot_four::<U, VNNI>(&q, a[j]);
            }
        }
        for j in 0..T {
            let [first, second] = four[j];
            if U::HALVES {
                let halves = [
                    _mm256_permute2x128_si256::<0x20>(first, second),
                    _mm256_permute2x128_si256::<0x31>(first, second),
                ];
                scale::<U, VNNI, T>(sums, halves[0], scales, j, g, 0, x, at, shift);
                scale::<U, VNNI, T>(sums, halves[1], scales, j, g, 1, x, at, shift);
            } else {
                scale::<U, VNNI, T>(sums, _mm256_hadd_epi32(first, second), scales, j, g, 0, x, at, shift);
            }
        }
    }
}

/// Adds `product`, the sums of group `g` of eight rows with group `at` of token `j`, or of half `half` of it, times their
/// scales.
///
/// # Safety
/// - The CPU has the features of the set, and `x` has a group `at`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // it becomes part of its two callers
unsafe fn scale<U: Unpack, const VNNI: bool, const T: usize>(
    sums: &mut [__m256; T],
    product: __m256i,
    scales: &Scales,
    j: usize,
    g: usize,
    half: usize,
    x: &Rows<T>,
    at: usize,
    shift: __m256i,
) {
    let halves = if U::HALVES { 2 } else { 1 };
    // SAFETY: the activations have the group; the features are the caller's promise.
    unsafe {
        let da = _mm256_broadcast_ss(&*x.d[j].add(at));
        let mut product = product;
        if !U::MINS && (VNNI || !U::SIGNED) && U::MAGNITUDE.is_none() {
            let bias = _mm256_set1_epi32(x.bias[j].add(halves * at + half).read());
            product = _mm256_add_epi32(product, _mm256_srav_epi32(bias, shift));
        }
        let scale = _mm256_mul_ps(U::scale(scales, halves * g + half), da);
        sums[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), scale, sums[j]);
        if U::MINS {
            let sum = _mm256_broadcast_ss(&*x.sum[j].add(halves * at + half));
            sums[j] = _mm256_fmadd_ps(U::offset(scales, halves * g + half), sum, sums[j]);
        }
    }
}

/// By what to shift -128 times a sum of activations right to get -`BIAS` times the sum. The compiler does not see through it:
/// it would shift before it broadcasts, in a general register, and take four instructions for two.
fn shift<U: Unpack>() -> __m256i {
    const { assert!(U::MINS || U::BIAS.is_power_of_two()) }
    let by = if U::MINS { 0 } else { 128u8.ilog2() - U::BIAS.ilog2() };
    std::hint::black_box(bytemuck::cast([by; 8]))
}

/// How often registers of products of integers up to `largest` can be added across in 16 bits, where sums are twice as many a
/// register as in 32. A product is up to 127 times the integer, and up to 32767 fits: pairs up to 127 (of magnitudes), four
/// products up to 63, which two halves of a group make, eight up to 31, sixteen up to 15.
const fn narrow_levels(largest: u8) -> usize {
    match largest {
        0..=15 => 2,
        16..=31 => 1,
        _ => 0,
    }
}

/// Pairs of 16 bits added to each other.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn widen(pairs: __m256i) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe { _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)) }
}

/// The products of `factors`, see [`Unpack::factors`], with `a`: in pairs, 16 bits, or with `VNNI` in fours, 32 bits.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn products<const VNNI: bool>(factors: [__m256i; 2], a: __m256i, signed: bool) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let a = if signed { _mm256_sign_epi8(a, factors[1]) } else { a };
        if VNNI {
            _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), factors[0], a)
        } else {
            _mm256_maddubs_epi16(factors[0], a)
        }
    }
}

/// The products of two rows, see [`Unpack::two_rows`], with the halves of a group, each in both lanes: the sums of a lane are
/// those of a row, in 16 bits if [`narrow_levels`] says so.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn dot_halves<U: Unpack, const VNNI: bool>(q: [__m256i; 2], a: [__m256i; 2]) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        if VNNI {
            let first = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), q[0], a[0]);
            return _mm256_dpbusd_avx_epi32(first, q[1], a[1]);
        }
        let mut pairs = [_mm256_setzero_si256(); 2];
        for half in 0..2 {
            let factors = if U::SIGNED { [_mm256_abs_epi8(q[half]), q[half]] } else { [q[half]; 2] };
            pairs[half] = products::<false>(factors, a[half], U::SIGNED);
            if U::LARGEST > 63 {
                pairs[half] = widen(pairs[half]);
            }
        }
        let sum = add(pairs[0], pairs[1], U::LARGEST > 63);
        if const { narrow_levels(U::LARGEST) } == 0 && U::LARGEST <= 63 { widen(sum) } else { sum }
    }
}

/// The products of the factors of four rows with `a`, added up to 32 bits as [`add_group`] wants them: with HALVES the sums
/// of the first halves of the four rows, then of the second halves; else two sums of each of rows 0 and 2, then of 1 and 3.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn dot_four<U: Unpack, const VNNI: bool>(q: &[[__m256i; 2]; 4], a: __m256i) -> __m256i {
    let (signed, largest) = match U::MAGNITUDE {
        Some(magnitude) => (true, magnitude),
        None => (U::SIGNED && !VNNI, U::LARGEST),
    };
    // See [`narrow_levels`]: with HALVES two of a pair are added to each other, else four in two levels.
    let (wide_first, wide_second) = (VNNI || largest > 63, VNNI || U::HALVES || largest > 31);
    // SAFETY: the features are the caller's promise.
    unsafe {
        let mut p = [_mm256_setzero_si256(); 4];
        for i in 0..4 {
            p[i] = products::<VNNI>(q[i], a, signed);
            if wide_first && !VNNI {
                p[i] = widen(p[i]);
            }
        }
        let mut two = if U::HALVES {
            [add_quarters(p[0], p[1], wide_first), add_quarters(p[2], p[3], wide_first)]
        } else {
            [add_lanes(p[0], p[1], wide_first), add_lanes(p[2], p[3], wide_first)]
        };
        if wide_second && !wide_first {
            two = [widen(two[0]), widen(two[1])];
        }
        if U::HALVES {
            return _mm256_hadd_epi32(two[0], two[1]);
        }
        let sum = add_quarters(two[0], two[1], wide_second);
        if wide_second { sum } else { widen(sum) }
    }
}

/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn add(a: __m256i, b: __m256i, wide: bool) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe { if wide { _mm256_add_epi32(a, b) } else { _mm256_add_epi16(a, b) } }
}

/// The halves of `a` added to each other, in the lower half, and those of `b` in the upper.
///
/// Here and below a blend and a shuffle rather than two shuffles: there is one port for those.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn add_lanes(a: __m256i, b: __m256i, wide: bool) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe { add(_mm256_blend_epi32::<0xf0>(a, b), _mm256_permute2x128_si256::<0x21>(a, b), wide) }
}

/// The same within each lane.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn add_quarters(a: __m256i, b: __m256i, wide: bool) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe { add(_mm256_blend_epi32::<0xcc>(a, b), _mm256_alignr_epi8::<8>(b, a), wide) }
}

/// Groups that are unpacked at a time for a batch, 1024 weights a row, and that are summed before they go to the result: a
/// panel of 16 KiB and scales, so that it remains in the smallest L1 cache there is (32 KiB) while all tokens pass by. Twice
/// as many come from the L2 cache for every tile, through a path that is 32 bytes wide on many a machine.
const BLOCK_GROUPS: usize = 32;
/// Rows of a tile: two registers.
const PANEL: usize = 16;
/// Tokens of a tile: 6 integer and 6 float sums.
const TILE: usize = 3;

/// How products are added up in a tile: this many dwords in 16 bits, 1 to 8, or by magnitude and sign, or with `dpbusd`.
type Way = usize;
const SIGNED: Way = 0;
const DPBUSD: Way = 32;

/// Scratch of a worker: a block of a panel, unpacked.
#[derive(bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Scratch {
    groups: [Group<PANEL>; BLOCK_GROUPS],
}

thread_local! {
    static SCRATCH: std::cell::UnsafeCell<Option<Box<Scratch>>> = const { std::cell::UnsafeCell::new(None) };
}

/// `out[t][r] (+)= w[r] . x[t]` for the up to `STRIP` rows `rows` and the tokens `tokens` of `job`.
///
/// # Safety
/// - The CPU has the features of the set, and AVX-VNNI if `VNNI`.
/// - `rows` and `tokens` are rows and tokens of `job`, whose matrix is of type `U`; no other worker writes their results.
pub unsafe fn strip<U: Unpack, const VNNI: bool>(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    const { assert!(STRIP.is_multiple_of(PANEL)) };
    SCRATCH.with(|cell| {
        // SAFETY: this thread's own, and `strip` does not call itself.
        let scratch = unsafe { &mut *cell.get() };
        let scratch = scratch.get_or_insert_with(bytemuck::allocation::zeroed_box);
        for start in rows.clone().step_by(PANEL) {
            // SAFETY: the caller's promises.
            unsafe { panel::<U, VNNI>(scratch, job, start..(start + PANEL).min(rows.end), tokens.clone()) }
        }
    });
}

/// # Safety
/// - The CPU has the features of the set, and AVX-VNNI if `VNNI`.
/// - `rows` and `tokens` are rows and tokens of `job`, whose matrix is of type `U`; no other worker writes their results.
unsafe fn panel<U: Unpack, const VNNI: bool>(
    scratch: &mut Scratch,
    job: &Matmul,
    rows: Range<usize>,
    tokens: Range<usize>,
) {
    let way = match U::LARGEST {
        _ if VNNI => DPBUSD,
        _ if U::SIGNED => SIGNED,
        // 2 * 127 * LARGEST each, up to 32767
        0..=15 => 8,
        16..=31 => 4,
        32..=63 => 2,
        _ => 1,
    };
    let groups = job.x.n() / 32;
    for first in (0..groups).step_by(BLOCK_GROUPS) {
        let n = BLOCK_GROUPS.min(groups - first);
        // SAFETY: the caller's promises.
        unsafe { unpack_panel::<U, VNNI>(scratch, job, rows.clone(), first, n) };
        let block = Unpacked { scratch, job, rows: rows.clone(), first, n, shift: shift::<U>() };
        let ahead = &mut Ahead::new::<U>(job, &rows, first, BLOCK_GROUPS, n * tokens.len().div_ceil(TILE));
        /// One body for all types that are alike.
        macro_rules! products {
            ($(($halves:literal, $mins:literal, $way:tt)),*) => {
                match (U::HALVES, U::MINS, way) {
                    $(($halves, $mins, $way) => block.products::<$halves, $mins, { $way }>(tokens.clone(), ahead),)*
                    other => unreachable!("types with {other:?}"),
                }
            };
        }
        // SAFETY: the block is unpacked; the rest is the caller's promise.
        unsafe {
            products!(
                (false, false, DPBUSD),
                (false, true, DPBUSD),
                (true, false, DPBUSD),
                (true, true, DPBUSD),
                (false, false, SIGNED),
                (false, false, 1),
                (false, false, 4),
                (false, false, 8),
                (false, true, 4),
                (false, true, 8),
                (true, false, 1),
                (true, false, 2),
                (true, false, 4),
                (true, false, 8),
                (true, true, 8)
            );
        }
    }
}

avx2! {
    /// Unpacks the groups `first .. first + n` of up to `PANEL` rows.
    ///
    /// # Safety
    /// - The matrix, of type `U`, has these rows and groups; `n` is at most `BLOCK_GROUPS`, and of whole blocks.
    unsafe fn unpack_panel<U: Unpack, const VNNI: bool>(
        scratch: &mut Scratch,
        job: &Matmul,
        rows: Range<usize>,
        first: usize,
        n: usize,
    ) {
        // SAFETY: the features are those of this function; the rest is the caller's promise.
        unsafe { unpack_panel_in::<U, VNNI>(scratch, job, rows, first, n) }
    }

    /// What is added up goes on from here, in registers. The compiler knows that integers may be added in any order, adds up
    /// one result after another, and keeps the weights, of which there are more, on the stack meanwhile: 250 instructions for
    /// 16 rows, 3 tokens and 32 weights of Q4_0 rather than 180.
    #[inline]
    fn keep<const T: usize>(sums: &mut [[__m256i; 2]; T]) {
        for j in 0..T {
            for p in 0..2 {
                // SAFETY: nothing is done.
                unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) sums[j][p], options(nomem, nostack, preserves_flags)) }
            }
        }
    }
}

/// # Safety
/// - The CPU has the features of the set.
/// - As for `unpack_panel`.
#[inline(always)]
unsafe fn unpack_panel_in<U: Unpack, const VNNI: bool>(
    scratch: &mut Scratch,
    job: &Matmul,
    rows: Range<usize>,
    first: usize,
    n: usize,
) {
    let per_block = U::GROUPS;
    let starts = panel::starts::<U, PANEL>(job, &rows, first);
    let mut scales = Scales::ZERO;
    for eight in 0..rows.len().div_ceil(8) {
        for b in 0..n / per_block {
            let mut p = [null(); 8];
            let mut to = [null_mut(); 8];
            for i in 0..8 {
                p[i] = starts[8 * eight + i].wrapping_add(b * size_of::<U>());
            }
            for g in 0..per_block {
                to[g] = &raw mut scratch.groups[b * per_block + g];
            }
            // SAFETY: blocks lie in a row, scratch has room for BLOCK_GROUPS groups (whole blocks); the features are the
            // caller's promise.
            unsafe { panel::unpack::<U, VNNI, PANEL>(&p, &mut scales, &to, 8 * eight) };
        }
    }
}

/// A block of a panel, unpacked, and where its products go.
struct Unpacked<'a, 'j> {
    scratch: &'a Scratch,
    job: &'a Matmul<'j>,
    rows: Range<usize>,
    first: usize,
    n: usize,
    shift: __m256i,
}

impl Unpacked<'_, '_> {
    /// Times the tokens `tokens`.
    ///
    /// # Safety
    /// - As for `tile`; the CPU has AVX-VNNI if `WAY` is `DPBUSD`.
    unsafe fn products<const HALVES: bool, const MINS: bool, const WAY: Way>(
        &self,
        tokens: Range<usize>,
        ahead: &mut Ahead,
    ) {
        let mut t = tokens.start;
        while t < tokens.end {
            // All of about the same width: 4 tokens are 2 and 2, not 3 and 1.
            let left = tokens.end - t;
            let tiles = left.div_ceil(TILE);
            let width = left.div_ceil(tiles);
            macro_rules! tile {
                ($width:literal, $fetch:literal) => {
                    if WAY == DPBUSD {
                        tile_vnni::<HALVES, MINS, $width, $fetch>(self, t, ahead)
                    } else {
                        tile::<HALVES, MINS, WAY, $width, $fetch>(self, t, ahead)
                    }
                };
            }
            // SAFETY: these tokens are there; the rest is the caller's promise.
            unsafe {
                match width {
                    1 => tile!(1, true),
                    2 => tile!(2, true),
                    _ if ahead.is_due(self.n * tiles) => tile!(3, true),
                    _ => tile!(3, false),
                }
            }
            t += width;
        }
    }

    /// # Safety
    /// - The CPU has the features of the set, and AVX-VNNI if `WAY` is `DPBUSD`.
    /// - As for the function `tile`.
    #[inline(always)]
    unsafe fn tile<const HALVES: bool, const MINS: bool, const WAY: Way, const T: usize, const FETCH: bool>(
        &self,
        t: usize,
        ahead: &mut Ahead,
    ) {
        let x = Rows::<T>::new(self.job.x, t, self.first, HALVES);
        // SAFETY: scratch holds `n` groups, and the rows of activations reach as far; the caller has the rows of `out` to
        // itself, and the features.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; T];
            for j in 0..T {
                // Each token's results are in a page of their own: they come while products are computed.
                _mm_prefetch::<_MM_HINT_ET0>(self.job.at(t + j, self.rows.start).cast());
            }
            for g in 0..self.n {
                if FETCH {
                    ahead.fetch();
                }
                self.add::<HALVES, MINS, WAY, T>(&mut sums, &x, g, 0);
                if HALVES {
                    self.add::<HALVES, MINS, WAY, T>(&mut sums, &x, g, 1);
                }
            }
            let is_first = self.first == 0 && !self.job.accumulate;
            for j in 0..T {
                let out = self.job.at(t + j, self.rows.start);
                for p in 0..2 {
                    let (out, lanes) = (out.wrapping_add(8 * p), self.rows.len().saturating_sub(8 * p));
                    if lanes >= 8 {
                        let before = if is_first { _mm256_set1_ps(-0.0) } else { _mm256_loadu_ps(out) };
                        _mm256_storeu_ps(out, _mm256_add_ps(before, sums[j][p]));
                    } else {
                        let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), lane);
                        let before = if is_first { _mm256_set1_ps(-0.0) } else { _mm256_maskload_ps(out, mask) };
                        _mm256_maskstore_ps(out, mask, _mm256_add_ps(before, sums[j][p]));
                    }
                }
            }
        }
    }

    /// Adds the products of group `g`; with HALVES those of one half of it.
    ///
    /// # Safety
    /// - The CPU has the features of the set, and AVX-VNNI if `WAY` is `DPBUSD`.
    /// - The block has this group, and so has `x`.
    #[inline(always)]
    unsafe fn add<const HALVES: bool, const MINS: bool, const WAY: Way, const T: usize>(
        &self,
        sums: &mut [[__m256; 2]; T],
        x: &Rows<T>,
        g: usize,
        half: usize,
    ) {
        let (group, halves) = (&self.scratch.groups[g], if HALVES { 2 } else { 1 });
        let (span, at) = (8 / halves, halves * g + half);
        // SAFETY: the rows of activations reach as far, and the features are there, by the caller's promise.
        unsafe {
            let mut acc = [[_mm256_setzero_si256(); 2]; T];
            let mut w = [_mm256_setzero_si256(); 2];
            if WAY == DPBUSD {
                for j in 0..T {
                    if !MINS {
                        acc[j] = [_mm256_set1_epi32(x.bias[j].add(at).read()); 2];
                    }
                }
                for dword in half * span..(half + 1) * span {
                    for p in 0..2 {
                        w[p] = _mm256_load_si256(group.q[dword].as_ptr().add(8 * p).cast());
                    }
                    for j in 0..T {
                        let a = x.qs[j].add(32 * g + 4 * dword).cast::<i32>().read_unaligned();
                        let a = _mm256_set1_epi32(a);
                        for p in 0..2 {
                            acc[j][p] = _mm256_dpbusd_avx_epi32(acc[j][p], w[p], a);
                        }
                    }
                }
            } else {
                // Scales change every 4 dwords with HALVES, else every 8.
                let run = if WAY == SIGNED {
                    1
                } else if WAY < span {
                    WAY
                } else {
                    span
                };
                for start in (0..span).step_by(run) {
                    let mut added = [[_mm256_setzero_si256(); 2]; T];
                    for i in 0..run {
                        let dword = half * span + start + i;
                        let mut factors = [[_mm256_setzero_si256(); 2]; 2];
                        for p in 0..2 {
                            w[p] = _mm256_load_si256(group.q[dword].as_ptr().add(8 * p).cast());
                            factors[p] = if WAY == SIGNED { [_mm256_abs_epi8(w[p]), w[p]] } else { [w[p]; 2] };
                        }
                        for j in 0..T {
                            let a = x.qs[j].add(32 * g + 4 * dword).cast::<i32>().read_unaligned();
                            let a = _mm256_set1_epi32(a);
                            for p in 0..2 {
                                let product = products::<false>(factors[p], a, WAY == SIGNED);
                                added[j][p] = if i == 0 { product } else { _mm256_add_epi16(added[j][p], product) };
                            }
                        }
                        keep(&mut added);
                    }
                    for j in 0..T {
                        for p in 0..2 {
                            let four = widen(added[j][p]);
                            acc[j][p] = if start == 0 { four } else { _mm256_add_epi32(acc[j][p], four) };
                        }
                    }
                }
            }
            let (d, m) = (group.d[half].as_ptr(), group.m[half].as_ptr());
            for j in 0..T {
                let da = _mm256_set1_ps(*x.d[j].add(g));
                let bias = if !MINS && WAY != SIGNED && WAY != DPBUSD {
                    _mm256_srav_epi32(_mm256_set1_epi32(x.bias[j].add(at).read()), self.shift)
                } else {
                    _mm256_setzero_si256()
                };
                for p in 0..2 {
                    let scale = _mm256_mul_ps(_mm256_load_ps(d.add(8 * p)), da);
                    let product = _mm256_cvtepi32_ps(_mm256_add_epi32(acc[j][p], bias));
                    sums[j][p] = _mm256_fmadd_ps(product, scale, sums[j][p]);
                    if MINS {
                        let sum = _mm256_set1_ps(*x.sum[j].add(at));
                        sums[j][p] = _mm256_fmadd_ps(_mm256_load_ps(m.add(8 * p)), sum, sums[j][p]);
                    }
                }
            }
        }
    }
}

/// Quantises a row in its natural order, see [`QuantizedRow`].
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
pub unsafe fn quantize(x: &[f32], row: QuantizedRow) {
    row.qs[x.len()..].fill(0);
    for (g, d) in row.d.iter_mut().enumerate() {
        *d = 0.0;
        let (mut first, mut second) = (0, 0);
        if let Some(x) = x.get(32 * g..32 * g + 32) {
            let qs = &mut row.qs[32 * g..32 * g + 32];
            // SAFETY: 32 floats and 32 bytes are there; the features are the caller's promise.
            unsafe {
                let minus = _mm256_set1_ps(-0.0);
                let infinity = _mm256_set1_ps(f32::INFINITY);
                let mut v = [_mm256_setzero_ps(); 4];
                let mut max = _mm256_setzero_ps();
                let mut finite = 0xff;
                for i in 0..4 {
                    v[i] = _mm256_loadu_ps(x.as_ptr().add(8 * i));
                    let abs = _mm256_andnot_ps(minus, v[i]);
                    max = _mm256_max_ps(max, abs);
                    finite &= _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(abs, infinity));
                }
                let max = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps::<1>(max));
                let max = _mm_max_ps(max, _mm_movehl_ps(max, max));
                let max = _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
                // A NaN or infinity must not vanish, and a maximum does not tell: its group becomes NaN.
                *d = if finite == 0xff { max / 127.0 } else { f32::NAN };
                let inverse = _mm256_set1_ps(if max > 0.0 { 127.0 / max } else { 0.0 });
                let mut q = [_mm256_setzero_si256(); 4];
                for i in 0..4 {
                    q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
                }
                first = sum(_mm256_add_epi32(q[0], q[1]));
                second = sum(_mm256_add_epi32(q[2], q[3]));
                // Packing works within halves: dwords of four come out in the order 0 2 4 6 | 1 3 5 7.
                let bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
                let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
                _mm256_storeu_si256(qs.as_mut_ptr().cast(), bytes);
            }
        }
        // Of NaN and infinity come integers of any size, and a NaN in `d`: wrap, for nobody will see them.
        let both = first.wrapping_add(second);
        row.bias16[2 * g] = first.wrapping_mul(-128);
        row.bias16[2 * g + 1] = second.wrapping_mul(-128);
        row.bias32[g] = both.wrapping_mul(-128);
        row.sum16[2 * g] = *d * first as f32;
        row.sum16[2 * g + 1] = *d * second as f32;
        row.sum32[g] = *d * both as f32;
    }
}

/// Sum of the lanes.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn sum(v: __m256i) -> i32 {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
    }
}
