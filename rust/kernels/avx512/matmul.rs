//! Matrix products, AVX-512 VNNI.
//!
//! Two ways through a matrix, both from [`Unpack`], that give the same bits:
//!
//! - [`rows`], for one token or a few: rows are streamed in place, four at a time, unpacked in registers and multiplied with
//!   `T` tokens at once. `dpbusd` leaves four sums per group and row; those are added across, so that a register holds the
//!   sums of four rows and four groups.
//! - [`strip`], for a batch: 32 rows are unpacked into scratch that stays in the cache, transposed so that a lane holds a row,
//!   and multiplied with all tokens, six at a time: 12 integer and 12 float sums in registers.
//!
//! The order of the float additions is the same in both. A row has four sums, one for each group of a step, to which the
//! groups are added one after another; every [`BLOCK_STEPS`] steps the four are added to the result, one after another. What is added in integers may be added in any order.
//!
//! The integer products: `dpbusd` multiplies unsigned weights with signed activations. Weights are raised
//! by `BIAS`; the sum is corrected by starting the accumulator at `-BIAS * sum(a)`, which is exact. A tile reads these sums;
//! where rows are streamed, two more `dpbusd` a step make them: to spread four sums of memory over a register costs more.
//!
//! No closures and no iterator adaptors where there are registers: code that is generic over a closure lacks the features
//! of the set, and every intrinsic in it would be a call.

#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;
use std::ops::Range;
use std::ptr::{null, null_mut};

use super::avx512;
use super::unpack::{Scales, Unpack};
use crate::kernels::activations::{QuantizedRow, Rows, STEP};
use crate::kernels::avx2::panel::{self, Ahead, Group};
use crate::kernels::avx2::unpack;
use crate::kernels::matmul::{Matmul, STRIP};

/// How far ahead of the reads of four rows to prefetch, in bytes, at least: the hardware stops at each page, this does not.
/// Rounded up to whole sets of rows, and a set is fetched in the order in which it lies in memory, not row by row: one
/// stream a thread. Where two cores share one link to the memory that makes a third (Zen 5, 2 threads, Q4_0: 70 GMAC/s
/// with four streams, 93 with one, which is 105 % of what plain loads read; Q8_0 40 and 50, Q6_K 49 and 65).
const PREFETCH: usize = 8192;
/// From this distance on, what is prefetched goes to the L2 cache only: in the L1 cache it would not stay until it is needed.
const FAR: usize = 16 << 10;
/// Tokens that share unpacked rows: as many as there are before a batch begins, see `strip_tokens`.
const ROW_TOKENS: usize = 8;

/// `out[t][r] (+)= w[r] . x[t]` for the rows `rows` and all tokens of `job`.
///
/// # Safety
/// - The CPU has the features of the set.
/// - `rows` are rows of `job.w`, which is of type `U`, and no other worker writes the same rows of `job.out`.
pub unsafe fn rows<U: Unpack>(job: &Matmul, rows: Range<usize>) {
    for t in job.tokens.clone().step_by(ROW_TOKENS) {
        // SAFETY: the caller's promises.
        unsafe {
            match job.tokens.end - t {
                1 => tokens_rows::<U, 1>(job, rows.clone(), t),
                2 => tokens_rows::<U, 2>(job, rows.clone(), t),
                3 => tokens_rows::<U, 3>(job, rows.clone(), t),
                4 => tokens_rows::<U, 4>(job, rows.clone(), t),
                5 => tokens_rows::<U, 5>(job, rows.clone(), t),
                6 => tokens_rows::<U, 6>(job, rows.clone(), t),
                7 => tokens_rows::<U, 7>(job, rows.clone(), t),
                _ => tokens_rows::<U, ROW_TOKENS>(job, rows.clone(), t),
            }
        }
    }
}

avx512! {
    /// Rows for the `T` tokens from `t`.
    ///
    /// # Safety
    /// - The matrix, of type `U`, has these rows, and the activations these tokens; nobody else writes their results.
    unsafe fn tokens_rows<U: Unpack, const T: usize>(job: &Matmul, rows: Range<usize>, t: usize) {
        let x = Rows::<T>::new(job.x, t, 0, U::HALVES);
        let mut r = rows.start;
        while r < rows.end {
            // Four rows or, at the end of a matrix, one: then all of the four are the same.
            let n = if rows.end - r >= 4 { 4 } else { 1 };
            // SAFETY: the features are those of this function; the rest is the caller's promise.
            unsafe { dots::<U, T>(job, r, n, t, &x) };
            r += n;
        }
    }
}

/// The products of the `n` rows from `r`, four or one, with the `T` tokens from `t`, whose rows are `x`.
///
/// Nothing in the loop over blocks is decided by what does not change in it: the compiler would make a copy of it all for
/// either case.
///
/// # Safety
/// - The CPU has the features of the set.
/// - The matrix, of type `U`, has the rows, and `x` is of its tokens; nobody else writes the results.
#[inline(always)]
unsafe fn dots<U: Unpack, const T: usize>(job: &Matmul, r: usize, n: usize, t: usize, x: &Rows<T>) {
    let row_bytes = job.w.row_bytes();
    let stride = if n == 4 { row_bytes } else { 0 };
    let mask = if n == 4 { 0b1111 } else { 0b0001 };
    let ahead_by = PREFETCH.next_multiple_of(4 * row_bytes);
    let far = ahead_by > FAR;
    let (units, left) = (row_bytes / U::UNIT, row_bytes % U::UNIT);
    let steps = job.x.n().div_ceil(STEP);
    let tail = if left != 0 { units } else { usize::MAX };
    // SAFETY: the matrix has these rows, `x` rows that are padded to whole steps, and `out` the results; the features are the
    // caller's promise.
    unsafe {
        let w = job.w.bytes().as_ptr().add(r * row_bytes);
        let mut totals = [_mm_set1_ps(-0.0); T]; // that is what changes nothing that is added to it
        if job.accumulate {
            for j in 0..T {
                totals[j] = _mm_maskz_loadu_ps(mask, job.at(t + j, r));
            }
        }
        for first in (0..steps).step_by(BLOCK_STEPS) {
            let mut sums = [_mm512_setzero_ps(); T];
            for u in first / U::STEPS..((first + BLOCK_STEPS) / U::STEPS).min(units) {
                let ahead = w.wrapping_add(ahead_by + u * 4 * U::UNIT);
                let p = w.add(u * U::UNIT);
                let p = [p, p.add(stride), p.add(2 * stride), p.add(3 * stride)];
                let shared = U::shared(&p);
                let lines = (4 * U::UNIT).div_ceil(64 * U::STEPS);
                for s in 0..U::STEPS {
                    // A few at a time: there are no more than ten to sixteen places for lines on their way.
                    for line in s * lines..(s + 1) * lines {
                        let line = ahead.wrapping_add(64 * line).cast();
                        if far { _mm_prefetch::<_MM_HINT_T1>(line) } else { _mm_prefetch::<_MM_HINT_T0>(line) }
                    }
                    add_step::<U, T, false>(&mut sums, &p, 0, &shared, s, x, u * U::STEPS + s);
                }
            }
            if U::STEPS == 1 && tail < first + BLOCK_STEPS {
                let p = w.add(units * U::UNIT);
                let p = [p, p.add(stride), p.add(2 * stride), p.add(3 * stride)];
                let shared = U::shared(&p);
                add_step::<U, T, true>(&mut sums, &p, left, &shared, 0, x, units);
            }
            for j in 0..T {
                let parts = quarters(sums[j]);
                for g in 0..4 {
                    totals[j] = _mm_add_ps(totals[j], parts[g]);
                }
            }
        }
        for j in 0..T {
            _mm_mask_storeu_ps(job.at(t + j, r), mask, totals[j]);
        }
    }
}

/// Adds the products of step `s` of the units at `p` with step `at` of the activations.
///
/// # Safety
/// - The CPU has the features of the set.
/// - Each of `p` is valid for reads of a unit of type `U`, with `TAIL` of `left` bytes of it; `x` has a step `at`.
#[inline(always)]
unsafe fn add_step<U: Unpack, const T: usize, const TAIL: bool>(
    sums: &mut [__m512; T],
    p: &[*const u8; 4],
    left: usize,
    shared: &U::Shared,
    s: usize,
    x: &Rows<T>,
    at: usize,
) {
    // SAFETY: the units are there, and the rows of activations are padded to whole steps, with a register's worth behind the
    // last scales; the features are the caller's promise.
    unsafe {
        let mut q = [[_mm512_setzero_si512(); 2]; 4];
        for i in 0..4 {
            q[i] = U::integers::<TAIL>(p[i], left, shared, i, s);
        }
        let Scales { d, d_hi, m, m_hi } = U::scales::<TAIL>(p, left, shared, s);
        for j in 0..T {
            let lo = _mm512_load_si512(x.qs[j].add(at * STEP).cast());
            let hi = _mm512_load_si512(x.qs[j].add(at * STEP + 64).cast());
            let da = each_four(_mm512_loadu_ps(x.d[j].add(at * 4)));
            let zero = _mm512_setzero_si512();
            let (mut start, mut start_hi) = (zero, zero);
            if !U::MINS {
                let bias = _mm512_set1_epi8(U::BIAS as i8);
                (start, start_hi) = (_mm512_dpbusd_epi32(zero, bias, lo), _mm512_dpbusd_epi32(zero, bias, hi));
                if !U::HALVES {
                    start = _mm512_dpbusd_epi32(start, bias, hi);
                }
                (start, start_hi) = (_mm512_sub_epi32(zero, start), _mm512_sub_epi32(zero, start_hi));
            }
            let mut products = [zero; 4];
            let mut products_hi = [zero; 4];
            for i in 0..4 {
                products[i] = _mm512_dpbusd_epi32(start, q[i][0], lo);
                if U::HALVES {
                    products_hi[i] = _mm512_dpbusd_epi32(start_hi, q[i][1], hi);
                } else {
                    products[i] = _mm512_dpbusd_epi32(products[i], q[i][1], hi);
                }
            }
            let (mut first, mut second) = (zero_ps(), zero_ps());
            if U::MINS && U::HALVES {
                let both = _mm256_loadu_ps(x.sum[j].add(at * 8));
                (first, second) = (each_of_eight(both, 0), each_of_eight(both, 1));
            } else if U::MINS {
                first = each_four(_mm512_loadu_ps(x.sum[j].add(at * 4)));
            }
            sums[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(across::<U>(&products)), _mm512_mul_ps(d, da), sums[j]);
            if U::MINS {
                sums[j] = _mm512_fmadd_ps(m, first, sums[j]);
            }
            if U::HALVES {
                let product = _mm512_cvtepi32_ps(across::<U>(&products_hi));
                sums[j] = _mm512_fmadd_ps(product, _mm512_mul_ps(d_hi, da), sums[j]);
                if U::MINS {
                    sums[j] = _mm512_fmadd_ps(m_hi, second, sums[j]);
                }
            }
        }
    }
}

/// The four sums of each group and row: lane `4 * g + i` is that of group `g` and row `i`.
///
/// In 16 bits as far as sums of type `U` fit: a pack and a product with ones for each two registers. Else with a blend and a
/// shuffle, rather than two shuffles: there is one port for those.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn across<U: Unpack>(p: &[__m512i; 4]) -> __m512i {
    let largest = const { largest_product::<U>() };
    // SAFETY: the features are the caller's promise.
    unsafe {
        let ones = _mm512_set1_epi16(1);
        let mut two = [_mm512_setzero_si512(); 2];
        for i in 0..2 {
            let (a, b) = (p[2 * i], p[2 * i + 1]);
            two[i] = if largest <= i16::MAX as u32 {
                _mm512_madd_epi16(_mm512_packs_epi32(a, b), ones)
            } else {
                // halves of a lane: the lower of a and the upper of b, the upper of a and the lower of b
                let (straight, crossed) = (_mm512_mask_blend_epi64(0b1010_1010, a, b), _mm512_alignr_epi8::<8>(b, a));
                _mm512_add_epi32(straight, crossed)
            };
        }
        if 2 * largest <= i16::MAX as u32 {
            return _mm512_madd_epi16(_mm512_packs_epi32(two[0], two[1]), ones);
        }
        let two = [_mm512_castsi512_ps(two[0]), _mm512_castsi512_ps(two[1])];
        let (even, odd) = (_mm512_shuffle_ps::<0x88>(two[0], two[1]), _mm512_shuffle_ps::<0xdd>(two[0], two[1]));
        _mm512_add_epi32(_mm512_castps_si512(even), _mm512_castps_si512(odd))
    }
}

/// The largest sum of products that `dpbusd` leaves in a lane, see [`add_step`]: of four weights, or without HALVES of eight.
const fn largest_product<U: Unpack>() -> u32 {
    let (bias, above) = (U::BIAS as u32, U::LARGEST as u32 - U::BIAS as u32);
    let weight = if above > bias { above } else { bias };
    127 * weight * if U::HALVES { 4 } else { 8 }
}

/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn zero_ps() -> __m512 {
    // SAFETY: the features are the caller's promise.
    unsafe { _mm512_setzero_ps() }
}

/// Number `g` in all four lanes of group `g`.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn each_four(x: __m512) -> __m512 {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let group = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        _mm512_permutexvar_ps(group, x)
    }
}

/// Number `2 * g + half` in all four lanes of group `g`.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn each_of_eight(x: __m256, half: i32) -> __m512 {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let group = _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
        _mm512_permutexvar_ps(_mm512_add_epi32(group, _mm512_set1_epi32(half)), _mm512_castps256_ps512(x))
    }
}

/// Steps that are unpacked at a time for a batch, 2048 weights a row, 64 KiB and scales; and that are summed before they go
/// to the result. They stream from the L2 cache, which costs less than to begin and end a tile more often: 4 steps, in the L1
/// cache, made 60 % of the integer peak, 8 made 64 %, 16 make 70 % (Zen 5, rows of 2048).
const BLOCK_STEPS: usize = 16;
/// Tokens of a tile.
const TILE: usize = 6;

/// Scratch of a worker: a block of a strip, unpacked.
#[derive(bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Scratch {
    /// `[group of a step][step]`. One step more than there is, so that the groups of a step do not share cache sets.
    groups: [[Group<STRIP>; BLOCK_STEPS + 1]; 4],
}

thread_local! {
    static SCRATCH: std::cell::UnsafeCell<Option<Box<Scratch>>> = const { std::cell::UnsafeCell::new(None) };
}

/// `out[t][r] (+)= w[r] . x[t]` for the up to `STRIP` rows `rows` and the tokens `tokens` of `job`.
///
/// # Safety
/// - The CPU has the features of the set.
/// - `rows` and `tokens` are rows and tokens of `job`, whose matrix is of type `U`; no other worker writes their results.
pub unsafe fn strip<U: unpack::Unpack>(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    SCRATCH.with(|cell| {
        // SAFETY: this thread's own, and `strip` does not call itself.
        let scratch = unsafe { &mut *cell.get() };
        let scratch = scratch.get_or_insert_with(bytemuck::allocation::zeroed_box);
        let steps = job.x.n().div_ceil(STEP);
        for first in (0..steps).step_by(BLOCK_STEPS) {
            let n = BLOCK_STEPS.min(steps - first);
            // SAFETY: the caller's promises.
            unsafe { unpack_strip::<U>(scratch, job, rows.clone(), first, n) };
            let block = Unpacked { scratch, job, rows: rows.clone(), first, steps: n };
            let tiles = tokens.len().div_ceil(TILE);
            let ahead = &mut Ahead::new::<U>(job, &rows, 4 * first, 4 * BLOCK_STEPS, 4 * n * tiles);
            // SAFETY: the block is unpacked; the rest is the caller's promise.
            unsafe {
                match (U::HALVES, U::MINS) {
                    (false, false) => block.products::<false, false>(tokens.clone(), ahead),
                    (false, true) => block.products::<false, true>(tokens.clone(), ahead),
                    (true, false) => block.products::<true, false>(tokens.clone(), ahead),
                    (true, true) => block.products::<true, true>(tokens.clone(), ahead),
                }
            }
        }
    });
}

avx512! {
    /// Unpacks the steps `first .. first + n` of the rows of a strip.
    ///
    /// # Safety
    /// - The matrix, of type `U`, has these rows and steps; `n` is at most `BLOCK_STEPS`.
    unsafe fn unpack_strip<U: unpack::Unpack>(
        scratch: &mut Scratch,
        job: &Matmul,
        rows: Range<usize>,
        first: usize,
        n: usize,
    ) {
        // SAFETY: the features are those of this function; the rest is the caller's promise.
        unsafe { unpack_strip_in::<U>(scratch, job, rows, first, n) }
    }

    /// 32 rows times the `T` tokens from `t`.
    ///
    /// # Safety
    /// - The block is unpacked, of a type with these facts, and the tokens are there; nobody else writes the results.
    unsafe fn tile<const HALVES: bool, const MINS: bool, const T: usize, const FETCH: bool>(
        block: &Unpacked,
        t: usize,
        ahead: &mut Ahead,
    ) {
        // SAFETY: the features are those of this function; the rest is the caller's promise.
        unsafe { block.tile::<HALVES, MINS, T, FETCH>(t, ahead) }
    }
}

/// The four lanes of each group.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn quarters(z: __m512) -> [__m128; 4] {
    // SAFETY: the features are the caller's promise.
    unsafe {
        [
            _mm512_castps512_ps128(z),
            _mm512_extractf32x4_ps::<1>(z),
            _mm512_extractf32x4_ps::<2>(z),
            _mm512_extractf32x4_ps::<3>(z),
        ]
    }
}

/// # Safety
/// - The CPU has the features of the set.
/// - As for `unpack_strip`.
#[inline(always)]
unsafe fn unpack_strip_in<U: unpack::Unpack>(
    scratch: &mut Scratch,
    job: &Matmul,
    rows: Range<usize>,
    first: usize,
    n: usize,
) {
    let per_block = U::GROUPS;
    // The last step of a row may have less than four groups.
    let groups = (job.x.n() / 32 - 4 * first).min(4 * n);
    let starts = panel::starts::<U, STRIP>(job, &rows, 4 * first);
    let mut scales = unpack::Scales::ZERO;
    for b in 0..groups / per_block {
        // The eights of a block one after another: lines of scratch are whole while they are in the L1 cache.
        for eight in 0..rows.len().div_ceil(8) {
            let mut p = [null(); 8];
            let mut to = [null_mut(); 8];
            for i in 0..8 {
                p[i] = starts[8 * eight + i].wrapping_add(b * size_of::<U>());
            }
            for g in 0..per_block {
                let group = b * per_block + g;
                to[g] = &raw mut scratch.groups[group % 4][group / 4];
            }
            // SAFETY: blocks lie in a row, scratch has room for BLOCK_STEPS steps, which are whole blocks or part of one; the
            // features are the caller's promise.
            unsafe { panel::unpack::<U, true, STRIP>(&p, &mut scales, &to, 8 * eight) };
        }
    }
    // What is not there must not be a NaN of before.
    for group in groups..4 * n {
        let group = &mut scratch.groups[group % 4][group / 4];
        (group.d, group.m) = ([[0.0; STRIP]; 2], [[0.0; STRIP]; 2]);
    }
}

/// A block of a strip, unpacked, and where its products go.
struct Unpacked<'a, 'j> {
    scratch: &'a Scratch,
    job: &'a Matmul<'j>,
    rows: Range<usize>,
    first: usize,
    steps: usize,
}

impl Unpacked<'_, '_> {
    /// Times the tokens `tokens`.
    ///
    /// # Safety
    /// - As for `tile`.
    unsafe fn products<const HALVES: bool, const MINS: bool>(&self, tokens: Range<usize>, ahead: &mut Ahead) {
        let mut t = tokens.start;
        while t < tokens.end {
            // All of about the same width: 9 tokens are 5 and 4, not 6 and 3.
            let left = tokens.end - t;
            let tiles = left.div_ceil(TILE);
            let width = left.div_ceil(tiles);
            // SAFETY: these tokens are there; the rest is the caller's promise.
            unsafe {
                match width {
                    1 => tile::<HALVES, MINS, 1, true>(self, t, ahead),
                    2 => tile::<HALVES, MINS, 2, true>(self, t, ahead),
                    3 => tile::<HALVES, MINS, 3, true>(self, t, ahead),
                    4 => tile::<HALVES, MINS, 4, true>(self, t, ahead),
                    5 => tile::<HALVES, MINS, 5, true>(self, t, ahead),
                    _ if ahead.is_due(4 * self.steps * tiles) => tile::<HALVES, MINS, TILE, true>(self, t, ahead),
                    _ => tile::<HALVES, MINS, TILE, false>(self, t, ahead),
                }
            }
            t += width;
        }
    }

    /// # Safety
    /// - The CPU has the features of the set.
    /// - As for the function `tile`.
    #[inline(always)]
    unsafe fn tile<const HALVES: bool, const MINS: bool, const T: usize, const FETCH: bool>(
        &self,
        t: usize,
        ahead: &mut Ahead,
    ) {
        let x = Rows::<T>::new(self.job.x, t, self.first * 4, HALVES);
        // SAFETY: scratch holds `steps` steps, and the rows of activations reach as far; the caller has the
        // rows of `out` to itself, and the features.
        unsafe {
            let mut totals = [[_mm512_set1_ps(-0.0); 2]; T]; // that is what changes nothing that is added to it
            for j in 0..T {
                // Each token's results are in a page of their own: they come while the first group is computed.
                let out = self.job.at(t + j, self.rows.start).cast();
                _mm_prefetch::<_MM_HINT_ET0>(out);
                _mm_prefetch::<_MM_HINT_ET0>(out.wrapping_add(64));
            }
            for g in 0..4 {
                let mut sums = [[_mm512_setzero_ps(); 2]; T];
                for s in 0..self.steps {
                    if FETCH {
                        ahead.fetch();
                    }
                    self.add::<HALVES, MINS, T>(&mut sums, &x, s, g, 0);
                    if HALVES {
                        self.add::<HALVES, MINS, T>(&mut sums, &x, s, g, 1);
                    }
                }
                if g == 0 && (self.job.accumulate || self.first > 0) {
                    for j in 0..T {
                        totals[j] = self.read(t + j);
                    }
                }
                for j in 0..T {
                    for p in 0..2 {
                        totals[j][p] = _mm512_add_ps(totals[j][p], sums[j][p]);
                    }
                }
            }
            for j in 0..T {
                self.write(t + j, totals[j]);
            }
        }
    }

    /// Adds the products of group `g` of step `s`; with HALVES those of one half of it.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - The block has this step, and so has `x`.
    #[inline(always)]
    unsafe fn add<const HALVES: bool, const MINS: bool, const T: usize>(
        &self,
        sums: &mut [[__m512; 2]; T],
        x: &Rows<T>,
        s: usize,
        g: usize,
        half: usize,
    ) {
        let (group, halves) = (&self.scratch.groups[g][s], if HALVES { 2 } else { 1 });
        let (at, first) = (s * 4 + g, s * STEP + 16 * g);
        // SAFETY: the rows of activations reach as far, and the features are there, by the caller's promise.
        unsafe {
            let mut acc = [[_mm512_setzero_si512(); 2]; T];
            if !MINS {
                for j in 0..T {
                    acc[j] = [_mm512_set1_epi32(x.bias[j].add(at * halves + half).read()); 2];
                }
            }
            for quad in if HALVES { half..half + 1 } else { 0..2 } {
                for i in 0..4 {
                    let w = group.q[4 * quad + i].as_ptr();
                    let w = [_mm512_load_si512(w.cast()), _mm512_load_si512(w.add(16).cast())];
                    for j in 0..T {
                        let a = x.qs[j].add(first + 64 * quad + 4 * i);
                        let a = _mm512_set1_epi32(a.cast::<i32>().read_unaligned());
                        acc[j][0] = _mm512_dpbusd_epi32(acc[j][0], w[0], a);
                        acc[j][1] = _mm512_dpbusd_epi32(acc[j][1], w[1], a);
                    }
                }
            }
            let d = group.d[half].as_ptr();
            let d = [_mm512_load_ps(d), _mm512_load_ps(d.add(16))];
            for j in 0..T {
                let da = _mm512_set1_ps(x.d[j].add(at).read());
                for p in 0..2 {
                    let scale = _mm512_mul_ps(d[p], da);
                    sums[j][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[j][p]), scale, sums[j][p]);
                }
            }
            if MINS {
                let m = group.m[half].as_ptr();
                let m = [_mm512_load_ps(m), _mm512_load_ps(m.add(16))];
                for j in 0..T {
                    let sum = _mm512_set1_ps(x.sum[j].add(at * halves + half).read());
                    sums[j][0] = _mm512_fmadd_ps(m[0], sum, sums[j][0]);
                    sums[j][1] = _mm512_fmadd_ps(m[1], sum, sums[j][1]);
                }
            }
        }
    }

    /// Which of the 16 rows from `16 * p` on there are.
    #[inline(always)]
    fn mask(&self, p: usize) -> u16 {
        let n = self.rows.len().saturating_sub(16 * p).min(16);
        ((1u32 << n) - 1) as u16
    }

    /// The results of 32 rows with token `t` so far.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - `t` is a token of the job, and nobody else writes its results of these rows.
    #[inline(always)]
    unsafe fn read(&self, t: usize) -> [__m512; 2] {
        let out = self.job.at(t, self.rows.start);
        // SAFETY: masked to the rows of the strip, which lie in `out` and are the caller's own, as are the features.
        unsafe { [_mm512_maskz_loadu_ps(self.mask(0), out), _mm512_maskz_loadu_ps(self.mask(1), out.wrapping_add(16))] }
    }

    /// Writes them.
    ///
    /// # Safety
    /// - As for `read`.
    #[inline(always)]
    unsafe fn write(&self, t: usize, sums: [__m512; 2]) {
        let out = self.job.at(t, self.rows.start);
        // SAFETY: as in `read`.
        unsafe {
            _mm512_mask_storeu_ps(out, self.mask(0), sums[0]);
            _mm512_mask_storeu_ps(out.wrapping_add(16), self.mask(1), sums[1]);
        }
    }
}

/// Quantises a row, see [`QuantizedRow`].
///
/// Within a step the first halves of the four groups come first, then the second halves: the order of [`Unpack::integers`].
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
pub unsafe fn quantize(x: &[f32], row: QuantizedRow) {
    let groups = x.len() / 32;
    for g in 0..row.d.len() {
        let at = g / 4 * STEP + g % 4 * 16;
        let x = if g < groups { &x[32 * g..32 * g + 32] } else { &[0.0; 32] };
        let qs = row.qs[at..at + 80].as_mut_ptr();
        // SAFETY: 32 floats are there, and both halves of the step lie in `qs`, which is padded to whole steps; the features
        // are the caller's promise.
        unsafe {
            let (lo, hi) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16)));
            let (abs_lo, abs_hi) = (_mm512_abs_ps(lo), _mm512_abs_ps(hi));
            let max = _mm512_reduce_max_ps(_mm512_max_ps(abs_lo, abs_hi));
            // A NaN or infinity must not vanish, and a maximum does not tell: its group becomes NaN.
            let infinity = _mm512_set1_ps(f32::INFINITY);
            let finite = _mm512_cmplt_ps_mask(abs_lo, infinity) & _mm512_cmplt_ps_mask(abs_hi, infinity) == u16::MAX;
            let d = if finite { max / 127.0 } else { f32::NAN };
            let inverse = _mm512_set1_ps(if max > 0.0 { 127.0 / max } else { 0.0 });
            let lo = _mm512_cvtps_epi32(_mm512_mul_ps(lo, inverse));
            let hi = _mm512_cvtps_epi32(_mm512_mul_ps(hi, inverse));
            let (first, second) = (_mm512_reduce_add_epi32(lo), _mm512_reduce_add_epi32(hi));
            _mm_storeu_si128(qs.cast(), _mm512_cvtsepi32_epi8(lo));
            _mm_storeu_si128(qs.add(64).cast(), _mm512_cvtsepi32_epi8(hi));
            row.d[g] = d;
            // Of NaN and infinity come integers of any size, and a NaN in `d`: wrap, for nobody will see them.
            let both = first.wrapping_add(second);
            row.bias16[2 * g] = first.wrapping_mul(-128);
            row.bias16[2 * g + 1] = second.wrapping_mul(-128);
            row.bias32[g] = both.wrapping_mul(-128);
            row.sum16[2 * g] = d * first as f32;
            row.sum16[2 * g + 1] = d * second as f32;
            row.sum32[g] = d * both as f32;
        }
    }
}
