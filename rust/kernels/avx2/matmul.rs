//! Matrix products, AVX2.
//!
//! The same two ways as in the AVX-512 set: [`rows`] in place for a few tokens, [`strip`] unpacked and transposed
//! for a batch. Without `dpbusd`, `maddubs` multiplies unsigned weights with signed activations and adds pairs in
//! 16 bits. Integers up to 63 fit, and the sums of several pairs of small ones; larger ones (Q8_0, IQ4) go by
//! magnitude and sign, `|w| * (a with the sign of w)`, one pair at a time.

#![allow(clippy::needless_range_loop)] // see `dots`

use std::arch::x86_64::*;
use std::ops::Range;

use super::unpack::Unpack;
use crate::kernels::activations::QuantizedRow;
use crate::kernels::matmul::{Matmul, STRIP};

/// How far ahead of the reads of `R` rows to prefetch, in bytes, at least; whole sets of rows, as in the AVX-512 kernels.
const PREFETCH: usize = 8192;

/// `out[t][r] (+)= w[r] . x[t]` for the rows `rows` and all tokens of `job`.
///
/// # Safety
/// - The CPU has the features of this module.
/// - No other worker writes the same rows of `job.out`.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn rows<U: Unpack>(job: &Matmul, rows: Range<usize>) {
    let tokens = job.x.tokens();
    let mut t = 0;
    while t < tokens {
        // SAFETY: rows and tokens are in range, and the caller has these rows to itself.
        unsafe {
            match tokens - t {
                1 => tokens_rows::<U, 1>(job, rows.clone(), t),
                _ => tokens_rows::<U, 2>(job, rows.clone(), t),
            }
        }
        t += 2;
    }
}

/// Rows for the `T` tokens from `t`, two rows at a time.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tokens_rows<U: Unpack, const T: usize>(job: &Matmul, rows: Range<usize>, t: usize) {
    let mut r = rows.start;
    // SAFETY: the caller's promises.
    unsafe {
        while r + 2 <= rows.end {
            dots::<U, 2, T>(job, r, t);
            r += 2;
        }
        if r < rows.end {
            dots::<U, 1, T>(job, r, t);
        }
    }
}

/// Adds the products of the integers `q` with `a` in pairs of pairs: eight sums of four.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<U: Unpack>(q: __m256i, a: __m256i) -> __m256i {
    let pairs = if U::SIGNED {
        _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(a, q))
    } else {
        _mm256_maddubs_epi16(q, a)
    };
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// The products of the `R` rows from `r` with the `T` tokens from `t`.
///
/// No closures and no iterator adaptors from here on: code that is generic over a closure lacks the features of this
/// module, and every intrinsic in it would be a call.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<U: Unpack, const R: usize, const T: usize>(job: &Matmul, r: usize, t: usize) {
    let row_bytes = job.w.row_bytes();
    let block = size_of::<U>();
    let groups = U::DTYPE.block_len() / 32;
    let ahead_by = PREFETCH.next_multiple_of(R * row_bytes);
    let (mut qs, mut d) = ([std::ptr::null::<i8>(); T], [std::ptr::null::<f32>(); T]);
    for j in 0..T {
        qs[j] = job.x.qs(t + j).as_ptr();
        d[j] = job.x.d(t + j).as_ptr();
    }
    // SAFETY: the matrix has these rows, and the activations as many groups; the caller has these rows to itself.
    unsafe {
        let w = job.w.bytes().as_ptr().add(r * row_bytes);
        let one = _mm256_set1_epi16(1);
        let mut sums = [[_mm256_setzero_ps(); T]; R];
        for b in 0..row_bytes / block {
            let ahead = w.wrapping_add(ahead_by + b * R * block);
            for line in 0..(R * block).div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast());
            }
            let mut shared = [U::shared(w.add(b * block)); R];
            for i in 1..R {
                shared[i] = U::shared(w.add(i * row_bytes + b * block));
            }
            for g in 0..groups {
                let at = b * groups + g;
                let mut a = [_mm256_setzero_si256(); T];
                let mut da = [_mm256_setzero_ps(); T];
                // BIAS times, or for MINS one times, the sums of four activations
                let mut four = [_mm256_setzero_si256(); T];
                let by = _mm256_set1_epi8(if U::MINS { 1 } else { U::BIAS as i8 });
                for j in 0..T {
                    a[j] = _mm256_loadu_si256(qs[j].add(32 * at).cast());
                    da[j] = _mm256_broadcast_ss(&*d[j].add(at));
                    four[j] = _mm256_madd_epi16(_mm256_maddubs_epi16(by, a[j]), one);
                }
                for i in 0..R {
                    let w = U::unpack(w.add(i * row_bytes + b * block), &shared[i], g);
                    for j in 0..T {
                        let mut product = dot::<U>(w.q, a[j]);
                        if !U::MINS && !U::SIGNED {
                            product = _mm256_sub_epi32(product, four[j]);
                        }
                        let scale = _mm256_mul_ps(w.d, da[j]);
                        sums[i][j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), scale, sums[i][j]);
                        if U::MINS {
                            let sum = _mm256_mul_ps(_mm256_cvtepi32_ps(four[j]), da[j]);
                            sums[i][j] = _mm256_fmadd_ps(w.m, sum, sums[i][j]);
                        }
                    }
                }
            }
        }
        for i in 0..R {
            for j in 0..T {
                let sum = sums[i][j];
                let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
                let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
                job.write(t + j, r + i, _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum))));
            }
        }
    }
}

/// Groups of a strip that are unpacked at a time: 2048 weights a row, 32 KiB and scales. 16 groups made 213 GMAC/s, 64 make
/// 238 (Q4_0, 512 tokens, Zen 5).
const BLOCK_GROUPS: usize = 64;
/// Rows of a tile: two registers.
const PANEL: usize = 16;
/// Tokens of a tile: 6 integer and 6 float sums.
const TILE: usize = 3;

/// Scratch of a worker: a block of a panel, unpacked.
#[derive(bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Scratch {
    /// `[group][dword][row]`: four weights of each row.
    q: [[[i32; PANEL]; 8]; BLOCK_GROUPS],
    /// `[group][half][row]`
    d: [[[f32; PANEL]; 2]; BLOCK_GROUPS],
    m: [[[f32; PANEL]; 2]; BLOCK_GROUPS],
}

thread_local! {
    static SCRATCH: std::cell::UnsafeCell<Option<Box<Scratch>>> = const { std::cell::UnsafeCell::new(None) };
}

/// `out[t][r] (+)= w[r] . x[t]` for the up to `STRIP` rows `rows` and the tokens `tokens` of `job`.
///
/// # Safety
/// - The CPU has the features of this module.
/// - No other worker writes the same rows and tokens of `job.out`.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn strip<U: Unpack>(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    const { assert!(STRIP.is_multiple_of(PANEL)) };
    SCRATCH.with(|cell| {
        // SAFETY: this thread's own, and `strip` does not call itself.
        let scratch = unsafe { &mut *cell.get() };
        let scratch = scratch.get_or_insert_with(bytemuck::allocation::zeroed_box);
        for start in rows.clone().step_by(PANEL) {
            // SAFETY: the caller's promises.
            unsafe { panel::<U>(scratch, job, start..(start + PANEL).min(rows.end), tokens.clone()) }
        }
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panel<U: Unpack>(scratch: &mut Scratch, job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    let groups = job.x.n() / 32;
    for first in (0..groups).step_by(BLOCK_GROUPS) {
        let n = BLOCK_GROUPS.min(groups - first);
        // SAFETY: the caller's promises.
        unsafe {
            unpack_panel::<U>(scratch, job, rows.clone(), first, n);
            let accumulate = job.accumulate || first > 0;
            for t in tokens.clone().step_by(TILE) {
                match tokens.end - t {
                    1 => tile::<U, 1>(scratch, job, rows.clone(), t, first, n, accumulate),
                    2 => tile::<U, 2>(scratch, job, rows.clone(), t, first, n, accumulate),
                    _ => tile::<U, TILE>(scratch, job, rows.clone(), t, first, n, accumulate),
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_panel<U: Unpack>(scratch: &mut Scratch, job: &Matmul, rows: Range<usize>, first: usize, n: usize) {
    let per_block = U::DTYPE.block_len() / 32;
    let row_bytes = job.w.row_bytes();
    let w = job.w.bytes().as_ptr();
    // The next block of the same rows, or the first block of the next panel's rows.
    let (block, at) = (BLOCK_GROUPS / per_block * size_of::<U>(), first / per_block * size_of::<U>());
    let ahead_by = if at + block < row_bytes { block } else { (PANEL * row_bytes).wrapping_sub(at) };
    // SAFETY: rows past the end of the panel repeat its last one, blocks lie in a row, scratch has room for BLOCK_GROUPS
    // groups (whole blocks); register operations of features that the caller has.
    unsafe {
        for eight in 0..PANEL / 8 {
            for b in 0..n / per_block {
                let mut shared = [None; 8];
                for g in 0..per_block {
                    let at = b * per_block + g;
                    let mut q = [_mm256_setzero_si256(); 8];
                    for i in 0..8 {
                        let row = 8 * eight + i;
                        let r = (rows.start + row).min(rows.end - 1);
                        let p = w.add(r * row_bytes + (first / per_block + b) * size_of::<U>());
                        if g == 0 {
                            for line in 0..size_of::<U>().div_ceil(64) {
                                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead_by + 64 * line).cast());
                            }
                            shared[i] = Some(U::shared(p));
                        }
                        let Some(shared) = &shared[i] else { unreachable!("set for group 0") };
                        let group = U::unpack(p, shared, g);
                        q[i] = group.q;
                        scratch.d[at][0][row] = _mm256_cvtss_f32(group.d);
                        scratch.d[at][1][row] = _mm_cvtss_f32(_mm256_extractf128_ps::<1>(group.d));
                        scratch.m[at][0][row] = _mm256_cvtss_f32(group.m);
                        scratch.m[at][1][row] = _mm_cvtss_f32(_mm256_extractf128_ps::<1>(group.m));
                    }
                    let columns = transpose(q);
                    for dword in 0..8 {
                        let to = scratch.q[at][dword].as_mut_ptr().add(8 * eight);
                        _mm256_store_si256(to.cast(), columns[dword]);
                    }
                }
            }
        }
    }
}

/// Eight rows of eight dwords to eight columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    let upper = transpose_four(r[0], r[1], r[2], r[3]);
    let lower = transpose_four(r[4], r[5], r[6], r[7]);
    let mut columns = r;
    for i in 0..4 {
        columns[i] = _mm256_permute2x128_si256::<0x20>(upper[i], lower[i]);
        columns[4 + i] = _mm256_permute2x128_si256::<0x31>(upper[i], lower[i]);
    }
    columns
}

/// Dwords 0 and 4, 1 and 5, 2 and 6, 3 and 7 of four rows, one of each pair in each half.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transpose_four(a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> [__m256i; 4] {
    let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// 16 rows times the `T` tokens from `t`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<U: Unpack, const T: usize>(
    scratch: &Scratch,
    job: &Matmul,
    rows: Range<usize>,
    t: usize,
    first: usize,
    n: usize,
    accumulate: bool,
) {
    let x = job.x;
    let (mut qs, mut bias16) = ([std::ptr::null::<i8>(); T], [std::ptr::null::<i32>(); T]);
    let (mut d, mut sum16, mut sum32) =
        ([std::ptr::null::<f32>(); T], [std::ptr::null::<f32>(); T], [std::ptr::null::<f32>(); T]);
    for j in 0..T {
        qs[j] = x.qs(t + j)[32 * first..].as_ptr();
        d[j] = x.d(t + j)[first..].as_ptr();
        bias16[j] = x.bias16(t + j)[2 * first..].as_ptr();
        sum16[j] = x.sum16(t + j)[2 * first..].as_ptr();
        sum32[j] = x.sum32(t + j)[first..].as_ptr();
    }
    // Dwords whose products can be added in 16 bits: 2 * 127 * LARGEST each, up to 32767. The scales change every
    // 4 dwords with HALVES, else every 8.
    let together = match U::LARGEST {
        0..=15 => 8,
        16..=31 => 4,
        32..=63 => 2,
        _ => 1,
    };
    let span = if U::HALVES { 4 } else { 8 };
    // SAFETY: scratch holds n groups, and the rows of activations reach as far; the caller has the rows of `out` to
    // itself; register operations of features that the caller has.
    unsafe {
        let one = _mm256_set1_epi16(1);
        let mut sums = [[_mm256_setzero_ps(); 2]; T];
        for g in 0..n {
            for half in 0..8 / span {
                let mut acc = [[_mm256_setzero_si256(); 2]; T];
                let run = if together < span { together } else { span };
                let mut start = 0;
                while start < span {
                    let mut pairs = [[_mm256_setzero_si256(); 2]; T];
                    for i in 0..run {
                        let dword = half * span + start + i;
                        let w = scratch.q[g][dword].as_ptr();
                        let w = [_mm256_load_si256(w.cast()), _mm256_load_si256(w.add(8).cast())];
                        for j in 0..T {
                            let a = qs[j].add(32 * g + 4 * dword).cast::<i32>().read_unaligned();
                            let a = _mm256_set1_epi32(a);
                            for p in 0..2 {
                                let product = if U::SIGNED {
                                    _mm256_maddubs_epi16(_mm256_abs_epi8(w[p]), _mm256_sign_epi8(a, w[p]))
                                } else {
                                    _mm256_maddubs_epi16(w[p], a)
                                };
                                pairs[j][p] = if i == 0 { product } else { _mm256_add_epi16(pairs[j][p], product) };
                            }
                        }
                    }
                    for j in 0..T {
                        for p in 0..2 {
                            let four = _mm256_madd_epi16(pairs[j][p], one);
                            acc[j][p] = if start == 0 { four } else { _mm256_add_epi32(acc[j][p], four) };
                        }
                    }
                    start += run;
                }
                let dw = scratch.d[g][half].as_ptr();
                let dw = [_mm256_load_ps(dw), _mm256_load_ps(dw.add(8))];
                let m = scratch.m[g][half].as_ptr();
                let m = [_mm256_load_ps(m), _mm256_load_ps(m.add(8))];
                for j in 0..T {
                    let da = _mm256_set1_ps(*d[j].add(g));
                    // bias16 is -128 times the sum of 16 activations
                    let bias = if U::MINS || U::SIGNED {
                        0
                    } else if U::HALVES {
                        *bias16[j].add(2 * g + half) / (128 / i32::from(U::BIAS))
                    } else {
                        (*bias16[j].add(2 * g) + *bias16[j].add(2 * g + 1)) / (128 / i32::from(U::BIAS))
                    };
                    let bias = _mm256_set1_epi32(bias);
                    let sum = if U::HALVES { *sum16[j].add(2 * g + half) } else { *sum32[j].add(g) };
                    let sum = _mm256_set1_ps(sum);
                    for p in 0..2 {
                        let product = _mm256_cvtepi32_ps(_mm256_add_epi32(acc[j][p], bias));
                        sums[j][p] = _mm256_fmadd_ps(product, _mm256_mul_ps(dw[p], da), sums[j][p]);
                        if U::MINS {
                            sums[j][p] = _mm256_fmadd_ps(m[p], sum, sums[j][p]);
                        }
                    }
                }
            }
        }
        for j in 0..T {
            let mut products = [0.0f32; PANEL];
            _mm256_storeu_ps(products.as_mut_ptr(), sums[j][0]);
            _mm256_storeu_ps(products.as_mut_ptr().add(8), sums[j][1]);
            let start = (t + j) * job.out_stride;
            let out = job.out.slice(start + rows.start..start + rows.end);
            for (out, product) in out.iter_mut().zip(products) {
                *out = if accumulate { *out + product } else { product };
            }
        }
    }
}

/// Quantises a row in its natural order, see [`QuantizedRow`].
#[target_feature(enable = "avx2,fma,f16c")]
pub fn quantize(x: &[f32], row: QuantizedRow) {
    row.qs[x.len()..].fill(0);
    for (g, d) in row.d.iter_mut().enumerate() {
        *d = 0.0;
        let (mut first, mut second) = (0, 0);
        if let Some(x) = x.get(32 * g..32 * g + 32) {
            let minus = _mm256_set1_ps(-0.0);
            let infinity = _mm256_set1_ps(f32::INFINITY);
            let mut v = [_mm256_setzero_ps(); 4];
            let mut max = _mm256_setzero_ps();
            let mut finite = 0xff;
            for i in 0..4 {
                // SAFETY: 32 floats are there.
                v[i] = unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) };
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
            // SAFETY: the slice has room for 32 bytes.
            unsafe { _mm256_storeu_si256(row.qs[32 * g..32 * g + 32].as_mut_ptr().cast(), bytes) };
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
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum(v: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
}
