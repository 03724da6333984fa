//! Matrix products, AVX-512 VNNI.
//!
//! Two ways through a matrix, both from [`Unpack`]:
//!
//! - [`rows`], for one token or a few: rows are streamed in place, `R` at a time, each unpacked in registers and
//!   multiplied with `T` tokens at once. Lanes hold different `k`; they are summed at the end of a row.
//! - [`strip`], for a batch: 32 rows are unpacked into scratch that stays in the cache, transposed so that a
//!   lane holds a row, and multiplied with all tokens, six at a time: 12 integer and 12 float sums in registers.
//!
//! The integer products: `dpbusd` multiplies unsigned weights with signed activations. Weights are raised
//! by `BIAS`; the sum is corrected by starting the accumulator at `-BIAS * sum(a)`, which is exact and free.

#![allow(clippy::needless_range_loop)] // see `dots`

use std::arch::x86_64::*;
use std::ops::Range;

use super::unpack::{Step, Unpack};
use crate::kernels::activations::{Activations, QuantizedRow, STEP};
use crate::kernels::matmul::{Matmul, STRIP};

/// How far ahead of the reads of `R` rows to prefetch, in bytes, at least: the hardware stops at each page, this does not.
/// Rounded up to whole sets of `R` rows, and a set is fetched in the order in which it lies in memory, not row by row: one
/// stream a thread. Where two cores share one link to the memory that makes a third (Zen 5, 2 threads, Q4_0: 70 GMAC/s
/// with four streams, 93 with one, which is 105 % of what plain loads read; Q8_0 40 and 50, Q6_K 49 and 65).
const PREFETCH: usize = 8192;

/// `out[t][r] (+)= w[r] . x[t]` for the rows `rows` and all tokens of `job`.
///
/// # Safety
/// - The CPU has the features of this module.
/// - No other worker writes the same rows of `job.out`.
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
pub unsafe fn rows<U: Unpack>(job: &Matmul, rows: Range<usize>) {
    let tokens = job.x.tokens();
    let mut t = 0;
    while t < tokens {
        // SAFETY: the caller's promises.
        unsafe {
            match tokens - t {
                1 => tokens_rows::<U, 2, 1>(job, rows.clone(), t),
                2 => tokens_rows::<U, 2, 2>(job, rows.clone(), t),
                3 => tokens_rows::<U, 2, 3>(job, rows.clone(), t),
                4 => tokens_rows::<U, 2, 4>(job, rows.clone(), t),
                5 => tokens_rows::<U, 2, 5>(job, rows.clone(), t),
                6 => tokens_rows::<U, 2, 6>(job, rows.clone(), t),
                7 => tokens_rows::<U, 2, 7>(job, rows.clone(), t),
                _ => tokens_rows::<U, 2, 8>(job, rows.clone(), t),
            }
        }
        t += 8;
    }
}

/// Rows for the `T` tokens from `t`, `R` rows at a time.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn tokens_rows<U: Unpack, const R: usize, const T: usize>(job: &Matmul, rows: Range<usize>, t: usize) {
    let row_bytes = job.w.row_bytes();
    let w = job.w.bytes().as_ptr();
    let mut r = rows.start;
    // SAFETY: rows and tokens are in range, and the caller has these rows to itself.
    unsafe {
        while r + R <= rows.end {
            dots::<U, R, T>(job, w.add(r * row_bytes), row_bytes, r, t);
            r += R;
        }
        while r < rows.end {
            dots::<U, 1, T>(job, w.add(r * row_bytes), row_bytes, r, t);
            r += 1;
        }
    }
}

/// The products of the `R` rows from `r`, at `w`, with the `T` tokens from `t`.
///
/// No closures and no iterator adaptors from here on: code that is generic over a closure lacks the features of this
/// module, and every intrinsic in it would be a call.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn dots<U: Unpack, const R: usize, const T: usize>(
    job: &Matmul,
    w: *const u8,
    row_bytes: usize,
    r: usize,
    t: usize,
) {
    let x = Rows::<T>::new::<U>(job.x, t);
    let ahead_by = PREFETCH.next_multiple_of(R * row_bytes);
    // SAFETY: `w` holds R rows, `x` padded rows; a step covers the same k in all of them.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); T]; R];
        let units = row_bytes / U::UNIT;
        for u in 0..units {
            let ahead = w.wrapping_add(ahead_by + u * R * U::UNIT);
            for line in 0..(R * U::UNIT).div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast());
            }
            for s in 0..U::STEPS {
                let mut steps = [Step::ZERO; R];
                for i in 0..R {
                    let p = w.add(i * row_bytes + u * U::UNIT);
                    let shared = U::shared::<false>(p, 0);
                    steps[i] = U::step::<false>(p, 0, &shared, s);
                }
                add::<U, R, T>(&mut sums, &steps, &x, U::STEPS * u + s);
            }
        }
        let left = row_bytes % U::UNIT;
        if U::STEPS == 1 && left != 0 {
            let mut steps = [Step::ZERO; R];
            for i in 0..R {
                let p = w.add(i * row_bytes + units * U::UNIT);
                let shared = U::shared::<true>(p, left);
                steps[i] = U::step::<true>(p, left, &shared, 0);
            }
            add::<U, R, T>(&mut sums, &steps, &x, units);
        }
        for i in 0..R {
            for j in 0..T {
                job.write(t + j, r + i, _mm512_reduce_add_ps(sums[i][j]));
            }
        }
    }
}

/// The activations of `T` tokens.
struct Rows<const T: usize> {
    qs: [*const i8; T],
    d: [*const f32; T],
    /// -128 times the sums of `qs`, per 32 or with HALVES per 16.
    bias: [*const i32; T],
    /// `d` times the sums of `qs`, likewise: what offsets are multiplied with.
    sum: [*const f32; T],
}

impl<const T: usize> Rows<T> {
    fn new<U: Unpack>(x: &Activations, t: usize) -> Self {
        use std::ptr::null;
        let mut rows = Self { qs: [null(); T], d: [null(); T], bias: [null(); T], sum: [null(); T] };
        for j in 0..T {
            rows.qs[j] = x.qs(t + j).as_ptr();
            rows.d[j] = x.d(t + j).as_ptr();
            rows.bias[j] = if U::HALVES { x.bias16(t + j).as_ptr() } else { x.bias32(t + j).as_ptr() };
            rows.sum[j] = if U::HALVES { x.sum16(t + j).as_ptr() } else { x.sum32(t + j).as_ptr() };
        }
        rows
    }
}

/// Adds the products of step `at` of `R` rows with `T` tokens.
///
/// Scales stand in all four lanes of their group, what belongs to the whole of a group in the first of them only.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn add<U: Unpack, const R: usize, const T: usize>(
    sums: &mut [[__m512; T]; R],
    w: &[Step; R],
    x: &Rows<T>,
    at: usize,
) {
    let group = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    let (first, second) =
        (_mm512_slli_epi32::<1>(group), _mm512_add_epi32(_mm512_slli_epi32::<1>(group), _mm512_set1_epi32(1)));
    const ONE: u16 = 0x1111;
    // SAFETY: the rows of activations are padded to whole steps; register operations of features that the caller has.
    unsafe {
        for j in 0..T {
            let lo = _mm512_load_si512(x.qs[j].add(at * STEP).cast());
            let hi = _mm512_load_si512(x.qs[j].add(at * STEP + 64).cast());
            let d = _mm512_castps128_ps512(_mm_loadu_ps(x.d[j].add(at * 4)));
            let d = _mm512_permutexvar_ps(group, d);
            let zero = _mm512_setzero_si512();
            let (mut start, mut start_hi) = (zero, zero);
            let (mut sum, mut sum_hi) = (_mm512_setzero_ps(), _mm512_setzero_ps());
            match (U::MINS, U::HALVES) {
                (false, false) => {
                    let bias = _mm512_castsi128_si512(_mm_loadu_si128(x.bias[j].add(at * 4).cast()));
                    start = raised::<U>(_mm512_maskz_permutexvar_epi32(ONE, group, bias));
                }
                (false, true) => {
                    let bias = _mm512_castsi256_si512(_mm256_loadu_si256(x.bias[j].add(at * 8).cast()));
                    start = raised::<U>(_mm512_maskz_permutexvar_epi32(ONE, first, bias));
                    start_hi = raised::<U>(_mm512_maskz_permutexvar_epi32(ONE, second, bias));
                }
                (true, false) => {
                    let s = _mm512_castps128_ps512(_mm_loadu_ps(x.sum[j].add(at * 4)));
                    sum = _mm512_maskz_permutexvar_ps(ONE, group, s);
                }
                (true, true) => {
                    let s = _mm512_castps256_ps512(_mm256_loadu_ps(x.sum[j].add(at * 8)));
                    sum = _mm512_maskz_permutexvar_ps(ONE, first, s);
                    sum_hi = _mm512_maskz_permutexvar_ps(ONE, second, s);
                }
            }
            for i in 0..R {
                let (w, to) = (&w[i], &mut sums[i][j]);
                let first = _mm512_dpbusd_epi32(start, w.lo, lo);
                if U::HALVES {
                    let second = _mm512_dpbusd_epi32(start_hi, w.hi, hi);
                    *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(first), _mm512_mul_ps(w.d, d), *to);
                    *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), _mm512_mul_ps(w.d_hi, d), *to);
                } else {
                    let both = _mm512_dpbusd_epi32(first, w.hi, hi);
                    *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(both), _mm512_mul_ps(w.d, d), *to);
                }
                if U::MINS {
                    *to = _mm512_fmadd_ps(w.m, sum, *to);
                    if U::HALVES {
                        *to = _mm512_fmadd_ps(w.m_hi, sum_hi, *to);
                    }
                }
            }
        }
    }
}

/// Where the integer sums of a type start, from -128 times the sum of the activations.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn raised<U: Unpack>(bias: __m512i) -> __m512i {
    const { assert!(U::MINS || U::BIAS.is_power_of_two()) }
    _mm512_sra_epi32(bias, _mm_cvtsi32_si128(128u32.ilog2() as i32 - U::BIAS.ilog2() as i32))
}

/// Steps of a strip that are unpacked at a time: 2048 weights a row, 64 KiB and scales. They stream from the L2 cache, which
/// costs less than to begin and end a tile more often: 4 steps, in the L1 cache, made 60 % of the integer peak, 8 made
/// 64 %, 16 make 70 % (Zen 5, rows of 2048).
const BLOCK_STEPS: usize = 16;
/// Tokens of a tile.
const TILE: usize = 6;

/// Scratch of a worker: a block of a strip, unpacked.
#[derive(bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Scratch {
    /// A row-major copy of one step of 16 rows, before it is transposed.
    staged: [[u8; STEP]; 16],
    staged_scales: [[[f32; 4]; 16]; 4], // d, d_hi, m, m_hi of each row
    /// `[step][dword of lo, then of hi][row]`: four weights of each row.
    q: [[[i32; STRIP]; 32]; BLOCK_STEPS],
    /// `[step][group][row]`, or with halves `[step][group][half][row]`.
    d: [[[f32; STRIP]; 8]; BLOCK_STEPS],
    m: [[[f32; STRIP]; 8]; BLOCK_STEPS],
}

thread_local! {
    static SCRATCH: std::cell::UnsafeCell<Option<Box<Scratch>>> = const { std::cell::UnsafeCell::new(None) };
}

/// `out[t][r] (+)= w[r] . x[t]` for the up to `STRIP` rows `rows` and the tokens `tokens` of `job`.
///
/// # Safety
/// - The CPU has the features of this module.
/// - No other worker writes the same rows and tokens of `job.out`.
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
pub unsafe fn strip<U: Unpack>(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    SCRATCH.with(|cell| {
        // SAFETY: this thread's own, and `strip` does not call itself.
        let scratch = unsafe { &mut *cell.get() };
        let scratch = scratch.get_or_insert_with(bytemuck::allocation::zeroed_box);
        // SAFETY: the caller's promises.
        unsafe { strip_in::<U>(scratch, job, rows, tokens) }
    });
}

#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn strip_in<U: Unpack>(scratch: &mut Scratch, job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    let steps = job.x.n().div_ceil(STEP);
    let mut first = 0;
    while first < steps {
        let n = BLOCK_STEPS.min(steps - first);
        // SAFETY: the caller's promises.
        unsafe {
            for panel in 0..STRIP / 16 {
                unpack_panel::<U>(scratch, job, rows.clone(), panel, first, n);
            }
            let accumulate = job.accumulate || first > 0;
            let mut t = tokens.start;
            while t < tokens.end {
                let tile = Tile { scratch, job, rows: rows.clone(), first, steps: n, accumulate };
                // All of about the same width: 8 tokens are 4 and 4, not 6 and 2.
                let left = tokens.end - t;
                let width = left.div_ceil(left.div_ceil(TILE));
                match width {
                    1 => tile.run::<U, 1>(t),
                    2 => tile.run::<U, 2>(t),
                    3 => tile.run::<U, 3>(t),
                    4 => tile.run::<U, 4>(t),
                    5 => tile.run::<U, 5>(t),
                    _ => tile.run::<U, TILE>(t),
                }
                t += width;
            }
        }
        first += n;
    }
}

/// Unpacks the steps `first .. first + n` of rows `16 * panel ..` of the strip.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn unpack_panel<U: Unpack>(
    scratch: &mut Scratch,
    job: &Matmul,
    rows: Range<usize>,
    panel: usize,
    first: usize,
    n: usize,
) {
    let row_bytes = job.w.row_bytes();
    let w = job.w.bytes().as_ptr();
    // SAFETY: rows past the end of the strip repeat its last one, steps lie in a row; scratch has room for
    // BLOCK_STEPS steps; register operations of features that the caller has.
    unsafe {
        let raise = _mm512_set1_epi8(if U::MINS { 0 } else { 128u8.wrapping_sub(U::BIAS) as i8 });
        // The next block of the same rows, or the first block of the rows of the next strip.
        let block = BLOCK_STEPS * U::UNIT / U::STEPS;
        let at = first * U::UNIT / U::STEPS;
        let ahead_by = if at + block < row_bytes { block } else { (STRIP * row_bytes).wrapping_sub(at) };
        for s in 0..n {
            let (unit, s_in_unit) = ((first + s) / U::STEPS, (first + s) % U::STEPS);
            for i in 0..16 {
                let row = (rows.start + 16 * panel + i).min(rows.end - 1);
                let p = w.add(row * row_bytes + unit * U::UNIT);
                let left = row_bytes - unit * U::UNIT;
                let ahead = p.wrapping_add(ahead_by);
                for line in 0..(U::UNIT / U::STEPS).div_ceil(64) {
                    _mm_prefetch::<_MM_HINT_T0>(
                        ahead.wrapping_add(64 * line + s_in_unit * (U::UNIT / U::STEPS)).cast(),
                    );
                }
                let step = if left >= U::UNIT {
                    let shared = U::shared::<false>(p, left);
                    U::step::<false>(p, left, &shared, s_in_unit)
                } else {
                    let shared = U::shared::<true>(p, left);
                    U::step::<true>(p, left, &shared, s_in_unit)
                };
                let staged = scratch.staged[i].as_mut_ptr();
                _mm512_store_si512(staged.cast(), _mm512_add_epi8(step.lo, raise));
                _mm512_store_si512(staged.add(64).cast(), _mm512_add_epi8(step.hi, raise));
                stage(&mut scratch.staged_scales[0][i], step.d);
                if U::HALVES {
                    stage(&mut scratch.staged_scales[1][i], step.d_hi);
                }
                if U::MINS {
                    stage(&mut scratch.staged_scales[2][i], step.m);
                    if U::HALVES {
                        stage(&mut scratch.staged_scales[3][i], step.m_hi);
                    }
                }
            }
            for quad in 0..8 {
                let columns = transpose(scratch.staged.as_ptr().cast::<u8>().add(16 * quad), STEP);
                for j in 0..4 {
                    let to = scratch.q[s][4 * quad + j].as_mut_ptr().add(16 * panel);
                    _mm512_store_si512(to.cast(), columns[j]);
                }
            }
            for half in 0..if U::HALVES { 2 } else { 1 } {
                let d = transpose(scratch.staged_scales[half].as_ptr().cast(), 16);
                let m = transpose(scratch.staged_scales[2 + half].as_ptr().cast(), 16);
                for g in 0..4 {
                    let at = if U::HALVES { 2 * g + half } else { g };
                    _mm512_store_si512(scratch.d[s][at].as_mut_ptr().add(16 * panel).cast(), d[g]);
                    if U::MINS {
                        _mm512_store_si512(scratch.m[s][at].as_mut_ptr().add(16 * panel).cast(), m[g]);
                    }
                }
            }
        }
    }
}

/// Keeps the scales of the four groups of a step.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn stage(to: &mut [f32; 4], scales: __m512) {
    let each = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    let four = _mm512_castps512_ps128(_mm512_permutexvar_ps(each, scales));
    // SAFETY: four floats are there.
    unsafe { _mm_storeu_ps(to.as_mut_ptr(), four) }
}

/// Four dwords of each of 16 rows, `stride` bytes apart, as four columns of 16.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn transpose(p: *const u8, stride: usize) -> [__m512i; 4] {
    // SAFETY: the caller has 16 rows of 16 bytes at `p`; register operations of features that it has.
    unsafe {
        // Lane l of v[i] is row 4 * l + i.
        let mut v = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            // Masked broadcasts rather than inserts: those need the ports of the shuffles below.
            let row = p.add(i * stride);
            let z = _mm512_broadcast_i32x4(_mm_loadu_si128(row.cast()));
            let z = _mm512_mask_broadcast_i32x4(z, 0x00f0, _mm_loadu_si128(row.add(4 * stride).cast()));
            let z = _mm512_mask_broadcast_i32x4(z, 0x0f00, _mm_loadu_si128(row.add(8 * stride).cast()));
            v[i] = _mm512_mask_broadcast_i32x4(z, 0xf000, _mm_loadu_si128(row.add(12 * stride).cast()));
        }
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

/// A block of a strip and where its products go.
struct Tile<'a, 'j> {
    scratch: &'a Scratch,
    job: &'a Matmul<'j>,
    rows: Range<usize>,
    first: usize,
    steps: usize,
    accumulate: bool,
}

impl Tile<'_, '_> {
    /// 32 rows times the `T` tokens from `t`.
    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn run<U: Unpack, const T: usize>(&self, t: usize) {
        let x = self.job.x;
        let groups = self.first * 4;
        let (mut qs, mut d) = ([std::ptr::null(); T], [std::ptr::null(); T]);
        let (mut bias, mut sum) = ([std::ptr::null(); T], [std::ptr::null(); T]);
        for j in 0..T {
            qs[j] = x.qs(t + j)[self.first * STEP..].as_ptr();
            d[j] = x.d(t + j)[groups..].as_ptr();
            bias[j] =
                if U::HALVES { x.bias16(t + j)[2 * groups..].as_ptr() } else { x.bias32(t + j)[groups..].as_ptr() };
            sum[j] = if U::HALVES { x.sum16(t + j)[2 * groups..].as_ptr() } else { x.sum32(t + j)[groups..].as_ptr() };
        }
        let halves = if U::HALVES { 2 } else { 1 };
        // SAFETY: scratch holds `steps` steps, and the rows of activations reach as far; the caller has the
        // rows of `out` to itself; register operations of features that the caller has.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; T];
            for s in 0..self.steps {
                for g in 0..4 {
                    for half in 0..halves {
                        let at = s * 4 + g;
                        let mut acc = [[_mm512_setzero_si512(); 2]; T];
                        if !U::MINS {
                            for j in 0..T {
                                acc[j] = [_mm512_set1_epi32(bias[j].add(at * halves + half).read()); 2];
                            }
                        }
                        for quad in if U::HALVES { half..half + 1 } else { 0..2 } {
                            for i in 0..4 {
                                let dword = 16 * quad + 4 * g + i;
                                let w = self.scratch.q[s][dword].as_ptr();
                                let w = [_mm512_load_si512(w.cast()), _mm512_load_si512(w.add(16).cast())];
                                for j in 0..T {
                                    let a = qs[j].add(s * STEP + 4 * dword).cast::<i32>().read_unaligned();
                                    let a = _mm512_set1_epi32(a);
                                    acc[j][0] = _mm512_dpbusd_epi32(acc[j][0], w[0], a);
                                    acc[j][1] = _mm512_dpbusd_epi32(acc[j][1], w[1], a);
                                }
                            }
                        }
                        let column = g * halves + half;
                        let dw = self.scratch.d[s][column].as_ptr();
                        let dw = [_mm512_load_ps(dw), _mm512_load_ps(dw.add(16))];
                        for j in 0..T {
                            let da = _mm512_set1_ps(d[j].add(at).read());
                            for p in 0..2 {
                                let scale = _mm512_mul_ps(dw[p], da);
                                sums[j][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[j][p]), scale, sums[j][p]);
                            }
                        }
                        if U::MINS {
                            let m = self.scratch.m[s][column].as_ptr();
                            let m = [_mm512_load_ps(m), _mm512_load_ps(m.add(16))];
                            for j in 0..T {
                                let sum = _mm512_set1_ps(sum[j].add(at * halves + half).read());
                                sums[j][0] = _mm512_fmadd_ps(m[0], sum, sums[j][0]);
                                sums[j][1] = _mm512_fmadd_ps(m[1], sum, sums[j][1]);
                            }
                        }
                    }
                }
            }
            for j in 0..T {
                write(self.job, t + j, self.rows.clone(), sums[j], self.accumulate);
            }
        }
    }
}

/// Writes or adds the products of 32 rows with token `t`.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn write(job: &Matmul, t: usize, rows: Range<usize>, sums: [__m512; 2], accumulate: bool) {
    let out = job.out.as_ptr(t * job.out_stride + rows.start);
    for p in 0..2 {
        let n = rows.len().saturating_sub(16 * p).min(16);
        let mask = ((1u32 << n) - 1) as u16;
        let out = out.wrapping_add(16 * p);
        // SAFETY: masked to the rows of the strip, which lie in `out` and are the caller's own.
        unsafe {
            let sum = if accumulate { _mm512_add_ps(sums[p], _mm512_maskz_loadu_ps(mask, out)) } else { sums[p] };
            _mm512_mask_storeu_ps(out, mask, sum);
        }
    }
}

/// Quantises a row, see [`QuantizedRow`].
///
/// Within a step the first halves of the four groups come first, then the second halves: the order of [`Step`].
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
pub fn quantize(x: &[f32], row: QuantizedRow) {
    let groups = x.len() / 32;
    for g in 0..row.d.len() {
        let at = g / 4 * STEP + g % 4 * 16;
        let (lo, hi) = if g < groups {
            let x = &x[32 * g..32 * g + 32];
            // SAFETY: 32 floats are there.
            unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x[16..].as_ptr())) }
        } else {
            (_mm512_setzero_ps(), _mm512_setzero_ps())
        };
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
        // SAFETY: both halves of the step lie in `qs`, which is padded to whole steps.
        unsafe {
            let qs = row.qs[at..at + 80].as_mut_ptr();
            _mm_storeu_si128(qs.cast(), _mm512_cvtsepi32_epi8(lo));
            _mm_storeu_si128(qs.add(64).cast(), _mm512_cvtsepi32_epi8(hi));
        }
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
