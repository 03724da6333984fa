//! Matrix products in registers of 128 bits.
//!
//! Two ways through a matrix, both from [`Unpack`], that give the same bits:
//!
//! - [`rows`], for one token or a few: rows are streamed in place, four at a time, unpacked in registers and multiplied with up
//!   to three tokens. The four sums of each row are added across until a lane holds a row.
//! - [`strip`], for a batch: rows are unpacked into scratch that stays in the L1 cache, four rows side by side as the
//!   instruction wants them, and multiplied with all tokens. The order of the integers there is that of a [`Layout`].
//!
//! The order of the float additions is that of a lane in both: a row's groups one after another, and every [`BLOCK_GROUPS`] of
//! them the sum goes to the result. What is added in integers may be added in any order, and no integer is rounded: all three
//! sets give the same bits.
//!
//! Both operands are signed bytes. Unsigned weights (all but those of [`Unpack::SIGNED`]) are less than 128 and may be taken
//! for signed ones: `rows` takes their bias off with the sum of the activations, for four rows at once; `strip` when they are
//! unpacked.
//!
//! What that comes to, counted in the code that rustc 1.97 makes (vector arithmetic; loads and the rest go by other ports):
//!
//! | | of 32 weights | instructions | of which multiply integers |
//! |---|---|---|---|
//! | `rows` | 4 rows of Q4_0, 1 token | 29: 7.3 a row, for 18 bytes | 8 |
//! | `strip`, `sdot` | 8 rows, 4 tokens | 97, with offsets 105 | 64: 66 % of the peak, 61 % |
//! | `strip`, `smmla` | 8 rows, 4 tokens | about 76, with offsets 86 | 32, each worth two `sdot`: about 42 %, 37 % |
//!
//! No time is measured. Where the CPU has four such pipes, `rows` reads up to 10 bytes a cycle. In the tile of `smmla` what is
//! paid per group (conversion, scale, multiply-add, the zips of tokens) weighs as much as the products.
//!
//! `sdot` and `smmla` are written as assembly: their intrinsics are newer than the Rust that this asks for.

#![allow(clippy::needless_range_loop)] // loops over registers stay plain, see the AVX-512 kernels

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::unpack::{Scales, Unpack};
use super::{dotprod, i8mm};
use crate::kernels::activations::{QuantizedRow, Rows};
use crate::kernels::matmul::{Matmul, STRIP};

/// Tokens that share unpacked rows.
const ROW_TOKENS: usize = 3;
/// Groups that are unpacked at a time for a batch, 1024 weights a row, and that are summed before they go to the result: a
/// panel of 16 KiB and scales, in the smallest L1 cache there is (32 KiB).
const BLOCK_GROUPS: usize = 32;
/// Rows of a panel: two tiles, which share the activations' way from the L2 cache.
const PANEL: usize = 16;
/// Rows of a tile.
const TILE_ROWS: usize = 8;
/// Tokens of a tile: 8 integer and 8 float sums of the 32 registers, for either instruction.
const TILE: usize = 4;

/// How 16 products of a row are added to four lanes, in whatever order.
pub trait Product {
    /// `acc + w * a`
    ///
    /// # Safety
    /// - The CPU has the feature.
    unsafe fn add(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t;

    /// [`tokens_rows`] through the door of the set.
    ///
    /// # Safety
    /// - The CPU has the feature, and as there.
    unsafe fn enter<U: Unpack, const T: usize>(job: &Matmul, rows: Range<usize>, t: usize);
}

/// By multiplications of 8 bits to 16: for any CPU.
pub struct Multiply;

impl Product for Multiply {
    #[inline(always)]
    unsafe fn add(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        // Two products of up to 128 * 127 fit into 16 bits.
        // SAFETY: registers only, and NEON is part of AArch64.
        unsafe { vpadalq_s16(acc, vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), w, a)) }
    }

    unsafe fn enter<U: Unpack, const T: usize>(job: &Matmul, rows: Range<usize>, t: usize) {
        // SAFETY: the caller's promise.
        unsafe { tokens_rows::<U, Self, T>(job, rows, t) }
    }
}

/// By `sdot`.
pub struct Dot;

impl Product for Dot {
    #[inline(always)]
    unsafe fn add(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        let mut acc = acc;
        // SAFETY: registers only; the feature is the caller's promise.
        unsafe {
            asm!("sdot {:v}.4s, {:v}.16b, {:v}.16b", inout(vreg) acc, in(vreg) w, in(vreg) a,
                 options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }

    unsafe fn enter<U: Unpack, const T: usize>(job: &Matmul, rows: Range<usize>, t: usize) {
        dotprod! {
            unsafe fn run<U: Unpack, const T: usize>(job: &Matmul, rows: Range<usize>, t: usize) {
                // SAFETY: the features are those of this function; the rest is the caller's promise.
                unsafe { tokens_rows::<U, Dot, T>(job, rows, t) }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { run::<U, T>(job, rows, t) }
    }
}

/// `out[t][r] (+)= w[r] . x[t]` for the rows `rows` and the tokens `tokens` of `job`.
///
/// # Safety
/// - The CPU has the feature of `P`.
/// - `rows` and `tokens` are rows and tokens of `job`, whose matrix is of type `U`; no other worker writes their results.
pub unsafe fn rows<U: Unpack, P: Product>(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    for t in tokens.clone().step_by(ROW_TOKENS) {
        // SAFETY: the caller's promises.
        unsafe {
            match tokens.end - t {
                1 => P::enter::<U, 1>(job, rows.clone(), t),
                2 => P::enter::<U, 2>(job, rows.clone(), t),
                _ => P::enter::<U, ROW_TOKENS>(job, rows.clone(), t),
            }
        }
    }
}

/// Rows for the `T` tokens from `t`.
///
/// # Safety
/// - As for [`rows`], and the tokens are those of `job`.
#[inline(always)]
unsafe fn tokens_rows<U: Unpack, P: Product, const T: usize>(job: &Matmul, rows: Range<usize>, t: usize) {
    let x = Rows::<T>::new(job.x, t, 0, U::HALVES);
    let mut r = rows.start;
    while r < rows.end {
        // Four rows or, at the end of a matrix, one: then all of the four are the same.
        let n = if rows.end - r >= 4 { 4 } else { 1 };
        // SAFETY: the caller's promise.
        unsafe { dots::<U, P, T>(job, r, n, t, &x) };
        r += n;
    }
}

/// The products of the `n` rows from `r`, four or one, with the `T` tokens from `t`, whose rows are `x`.
///
/// # Safety
/// - The CPU has the feature of `P`.
/// - The matrix, of type `U`, has the rows, and `x` is of its tokens; nobody else writes the results.
#[inline(always)]
unsafe fn dots<U: Unpack, P: Product, const T: usize>(job: &Matmul, r: usize, n: usize, t: usize, x: &Rows<T>) {
    let row_bytes = job.w.row_bytes();
    let block = size_of::<U>();
    let (blocks, per_block) = (row_bytes / block, U::GROUPS);
    let stride = if n == 4 { row_bytes } else { 0 };
    // SAFETY: the matrix has these rows, and the activations as many groups; the results lie in `out`.
    unsafe {
        let w = job.w.bytes().as_ptr().add(r * row_bytes);
        let mut totals = [vdupq_n_f32(-0.0); T]; // that is what changes nothing that is added to it
        if job.accumulate {
            for j in 0..T {
                let out = job.at(t + j, r);
                totals[j] = if n == 4 { vld1q_f32(out) } else { vdupq_n_f32(*out) };
            }
        }
        let mut scales = Scales::ZERO; // once: it is too large to be cleared for each block
        for first in (0..blocks).step_by(BLOCK_GROUPS / per_block) {
            let mut sums = [vdupq_n_f32(0.0); T];
            for b in first..(first + BLOCK_GROUPS / per_block).min(blocks) {
                let p = w.add(b * block);
                let p = [p, p.add(stride), p.add(2 * stride), p.add(3 * stride)];
                U::scales(&p, &mut scales);
                for s in 0..per_block / U::SPAN {
                    let g = s * U::SPAN;
                    let at = b * per_block + g;
                    add_group::<U, P, 0, T>(&mut sums, &p, s, &scales, g, x, at);
                    if U::SPAN > 1 {
                        add_group::<U, P, 1, T>(&mut sums, &p, s, &scales, g + 1, x, at + 1);
                    }
                    if U::SPAN > 2 {
                        add_group::<U, P, 2, T>(&mut sums, &p, s, &scales, g + 2, x, at + 2);
                        add_group::<U, P, 3, T>(&mut sums, &p, s, &scales, g + 3, x, at + 3);
                    }
                }
            }
            for j in 0..T {
                totals[j] = vaddq_f32(totals[j], sums[j]);
            }
        }
        for j in 0..T {
            let out = job.at(t + j, r);
            if n == 4 {
                vst1q_f32(out, totals[j]);
            } else {
                *out = vgetq_lane_f32::<0>(totals[j]);
            }
        }
    }
}

/// Adds the products of group `J` of span `s`, group `g` of the blocks at `p`, with group `at` of the activations.
///
/// # Safety
/// - The CPU has the feature of `P`.
/// - Each of `p` is valid for reads of a block of type `U` that has the group, and so is `x`.
#[inline(always)]
unsafe fn add_group<U: Unpack, P: Product, const J: usize, const T: usize>(
    sums: &mut [float32x4_t; T],
    p: &[*const u8; 4],
    s: usize,
    scales: &Scales,
    g: usize,
    x: &Rows<T>,
    at: usize,
) {
    let halves = if U::HALVES { 2 } else { 1 };
    // SAFETY: the blocks are there, and the activations as many groups; the feature is the caller's promise.
    unsafe {
        for half in 0..halves {
            let zero = vdupq_n_s32(0);
            let mut a = [[vdupq_n_s8(0); 2]; T];
            for j in 0..T {
                let qs = x.qs[j].add(32 * at);
                a[j] = [vld1q_s8(qs), vld1q_s8(qs.add(16))];
            }
            let mut four = [[zero; 4]; T];
            for i in 0..4 {
                let q = U::integers::<J>(p[i], s);
                for j in 0..T {
                    four[j][i] = if U::HALVES {
                        P::add(zero, q[half], a[j][half])
                    } else {
                        P::add(P::add(zero, q[0], a[j][0]), q[1], a[j][1])
                    };
                }
            }
            for j in 0..T {
                let [a, b, c, d] = four[j];
                let mut product = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
                if U::BIASED {
                    let bias = *x.bias[j].add(halves * at + half);
                    product = vaddq_s32(product, vdupq_n_s32(bias >> (128u8.ilog2() - U::BIAS.ilog2())));
                }
                let scale = vmulq_n_f32(scales.d[halves * g + half], *x.d[j].add(at));
                sums[j] = vfmaq_f32(sums[j], vcvtq_f32_s32(product), scale);
                if U::MINS {
                    let sum = *x.sum[j].add(halves * at + half);
                    sums[j] = vfmaq_n_f32(sums[j], scales.m[halves * g + half], sum);
                }
            }
        }
    }
}

/// How the integers of four rows lie in the scratch of a batch, and what multiplies them.
pub trait Layout {
    /// 16 integers of each of four rows, in its order.
    fn turn(q: [int8x16_t; 4]) -> [int8x16_t; 4];

    /// Up to `TILE_ROWS` rows of a panel, those from `first` on, times the `n` tokens from `t`, one to `TILE`; through the
    /// door of the set.
    ///
    /// # Safety
    /// - The CPU has the feature.
    /// - The block is unpacked with this layout, of a type with these facts, and has the rows; the tokens are there. Nobody
    ///   else writes the results.
    unsafe fn tile<const HALVES: bool, const MINS: bool>(block: &Unpacked, first: usize, t: usize, n: usize);
}

/// `[dword][row]`: `sdot` by an element multiplies four integers of each row with four of a token.
pub struct ByDot;

impl Layout for ByDot {
    #[inline(always)]
    fn turn([a, b, c, d]: [int8x16_t; 4]) -> [int8x16_t; 4] {
        // SAFETY: registers only, and NEON is part of AArch64.
        unsafe {
            let (a, b) = (vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
            let (c, d) = (vreinterpretq_s32_s8(c), vreinterpretq_s32_s8(d));
            let (ac_low, ac_high) = (vzip1q_s32(a, c), vzip2q_s32(a, c));
            let (bd_low, bd_high) = (vzip1q_s32(b, d), vzip2q_s32(b, d));
            [
                vreinterpretq_s8_s32(vzip1q_s32(ac_low, bd_low)),
                vreinterpretq_s8_s32(vzip2q_s32(ac_low, bd_low)),
                vreinterpretq_s8_s32(vzip1q_s32(ac_high, bd_high)),
                vreinterpretq_s8_s32(vzip2q_s32(ac_high, bd_high)),
            ]
        }
    }

    unsafe fn tile<const HALVES: bool, const MINS: bool>(block: &Unpacked, first: usize, t: usize, n: usize) {
        dotprod! {
            unsafe fn run<const HALVES: bool, const MINS: bool, const T: usize>(block: &Unpacked, first: usize, t: usize) {
                // SAFETY: the features are those of this function; the rest is the caller's promise.
                unsafe { block.tile_by_dot::<HALVES, MINS, T>(first, t) }
            }
        }
        // SAFETY: the caller's promises.
        unsafe {
            match n {
                1 => run::<HALVES, MINS, 1>(block, first, t),
                2 => run::<HALVES, MINS, 2>(block, first, t),
                3 => run::<HALVES, MINS, 3>(block, first, t),
                _ => run::<HALVES, MINS, TILE>(block, first, t),
            }
        }
    }
}

/// `[8 integers][pair of rows]`: `smmla` multiplies eight integers of two rows with eight of two tokens.
pub struct ByMatrix;

impl Layout for ByMatrix {
    #[inline(always)]
    fn turn([a, b, c, d]: [int8x16_t; 4]) -> [int8x16_t; 4] {
        // SAFETY: registers only, and NEON is part of AArch64.
        unsafe {
            let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
            let (c, d) = (vreinterpretq_s64_s8(c), vreinterpretq_s64_s8(d));
            [
                vreinterpretq_s8_s64(vzip1q_s64(a, b)),
                vreinterpretq_s8_s64(vzip1q_s64(c, d)),
                vreinterpretq_s8_s64(vzip2q_s64(a, b)),
                vreinterpretq_s8_s64(vzip2q_s64(c, d)),
            ]
        }
    }

    unsafe fn tile<const HALVES: bool, const MINS: bool>(block: &Unpacked, first: usize, t: usize, n: usize) {
        i8mm! {
            unsafe fn run<const HALVES: bool, const MINS: bool, const P: usize>(
                block: &Unpacked,
                first: usize,
                t: usize,
                n: usize,
            ) {
                // SAFETY: the features are those of this function; the rest is the caller's promise.
                unsafe { block.tile_by_matrix::<HALVES, MINS, P>(first, t, n) }
            }
        }
        // SAFETY: the caller's promises.
        unsafe {
            match n {
                1 | 2 => run::<HALVES, MINS, 1>(block, first, t, n),
                _ => run::<HALVES, MINS, { TILE / 2 }>(block, first, t, n),
            }
        }
    }
}

/// 32 weights of each row of a panel.
#[repr(C, align(64))]
struct Group {
    /// `[quad of rows][half]`: 16 integers of each of four rows, as [`Layout::turn`] has them.
    q: [[[[i8; 16]; 4]; 2]; PANEL / 4],
    /// `[half][row]`; without HALVES the first half only.
    d: [[f32; PANEL]; 2],
    m: [[f32; PANEL]; 2],
}

// SAFETY: arrays of numbers, for which zeros are a value.
unsafe impl bytemuck::Zeroable for Group {}

/// Scratch of a worker: a block of a panel, unpacked.
#[derive(bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Scratch {
    groups: [Group; BLOCK_GROUPS],
}

thread_local! {
    static SCRATCH: std::cell::UnsafeCell<Option<Box<Scratch>>> = const { std::cell::UnsafeCell::new(None) };
}

/// `out[t][r] (+)= w[r] . x[t]` for the up to `STRIP` rows `rows` and the tokens `tokens` of `job`.
///
/// # Safety
/// - The CPU has the feature of `L`.
/// - `rows` and `tokens` are rows and tokens of `job`, whose matrix is of type `U`; no other worker writes their results.
pub unsafe fn strip<U: Unpack, L: Layout>(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    const { assert!(STRIP.is_multiple_of(PANEL)) };
    SCRATCH.with(|cell| {
        // SAFETY: this thread's own, and `strip` does not call itself.
        let scratch = unsafe { &mut *cell.get() };
        let scratch = scratch.get_or_insert_with(bytemuck::allocation::zeroed_box);
        for start in rows.clone().step_by(PANEL) {
            // SAFETY: the caller's promises.
            unsafe { panel::<U, L>(scratch, job, start..(start + PANEL).min(rows.end), tokens.clone()) }
        }
    });
}

/// # Safety
/// - As for [`strip`], of up to `PANEL` rows.
unsafe fn panel<U: Unpack, L: Layout>(scratch: &mut Scratch, job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    let groups = job.x.n() / 32;
    for first in (0..groups).step_by(BLOCK_GROUPS) {
        let n = BLOCK_GROUPS.min(groups - first);
        // SAFETY: the caller's promises; one body for all types that are alike.
        unsafe {
            unpack_panel::<U, L>(scratch, job, rows.clone(), first, n);
            let block = Unpacked { scratch, job, rows: rows.clone(), first, n };
            match (U::HALVES, U::MINS) {
                (false, false) => block.products::<false, false, L>(tokens.clone()),
                (false, true) => block.products::<false, true, L>(tokens.clone()),
                (true, false) => block.products::<true, false, L>(tokens.clone()),
                (true, true) => block.products::<true, true, L>(tokens.clone()),
            }
        }
    }
}

/// Unpacks the groups `first .. first + n` of up to `PANEL` rows.
///
/// # Safety
/// - The matrix, of type `U`, has these rows and groups; `n` is at most `BLOCK_GROUPS`, and of whole blocks.
unsafe fn unpack_panel<U: Unpack, L: Layout>(
    scratch: &mut Scratch,
    job: &Matmul,
    rows: Range<usize>,
    first: usize,
    n: usize,
) {
    let per_block = U::GROUPS;
    let row_bytes = job.w.row_bytes();
    let mut scales = Scales::ZERO;
    for quad in 0..rows.len().div_ceil(4) {
        for b in 0..n / per_block {
            let mut p = [job.w.bytes().as_ptr(); 4];
            for i in 0..4 {
                // Where there are no four rows, the last one is there several times.
                let r = (rows.start + 4 * quad + i).min(rows.end - 1);
                p[i] = p[i].wrapping_add(r * row_bytes + (first / per_block + b) * size_of::<U>());
            }
            // SAFETY: the rows and the blocks are there, by the caller's promise.
            unsafe {
                U::scales(&p, &mut scales);
                for s in 0..per_block / U::SPAN {
                    let g = s * U::SPAN;
                    let to = &mut scratch.groups[b * per_block + g..][..U::SPAN];
                    unpack_group::<U, L, 0>(&p, s, &scales, g, quad, &mut to[0]);
                    if U::SPAN > 1 {
                        unpack_group::<U, L, 1>(&p, s, &scales, g + 1, quad, &mut to[1]);
                    }
                    if U::SPAN > 2 {
                        unpack_group::<U, L, 2>(&p, s, &scales, g + 2, quad, &mut to[2]);
                        unpack_group::<U, L, 3>(&p, s, &scales, g + 3, quad, &mut to[3]);
                    }
                }
            }
        }
    }
}

/// Group `J` of span `s`, group `g` of the blocks at `p`, to four rows of `to`.
///
/// # Safety
/// - Each of `p` is valid for reads of a block of type `U` that has the group.
#[inline(always)]
unsafe fn unpack_group<U: Unpack, L: Layout, const J: usize>(
    p: &[*const u8; 4],
    s: usize,
    scales: &Scales,
    g: usize,
    quad: usize,
    to: &mut Group,
) {
    let halves = if U::HALVES { 2 } else { 1 };
    // SAFETY: the blocks are there, by the caller's promise, and what is written has the size of a register.
    unsafe {
        let mut q = [[vdupq_n_s8(0); 4]; 2];
        for i in 0..4 {
            let of_row = U::integers::<J>(p[i], s);
            for half in 0..2 {
                q[half][i] = of_row[half];
                if U::BIASED {
                    q[half][i] = vsubq_s8(q[half][i], vdupq_n_s8(U::BIAS as i8));
                }
            }
        }
        for half in 0..2 {
            let turned = L::turn(q[half]);
            for i in 0..4 {
                vst1q_s8(to.q[quad][half][i].as_mut_ptr(), turned[i]);
            }
        }
        for half in 0..halves {
            vst1q_f32(to.d[half][4 * quad..][..4].as_mut_ptr(), scales.d[halves * g + half]);
            if U::MINS {
                vst1q_f32(to.m[half][4 * quad..][..4].as_mut_ptr(), scales.m[halves * g + half]);
            }
        }
    }
}

/// A block of a panel in scratch: the groups `first .. first + n` of some rows.
pub struct Unpacked<'a> {
    scratch: &'a Scratch,
    job: &'a Matmul<'a>,
    rows: Range<usize>,
    first: usize,
    n: usize,
}

impl Unpacked<'_> {
    /// # Safety
    /// - As for [`Layout::tile`], with these tokens and all rows.
    unsafe fn products<const HALVES: bool, const MINS: bool, L: Layout>(&self, tokens: Range<usize>) {
        for t in tokens.clone().step_by(TILE) {
            for first in (0..self.rows.len()).step_by(TILE_ROWS) {
                // SAFETY: the caller's promises.
                unsafe { L::tile::<HALVES, MINS>(self, first, t, TILE.min(tokens.end - t)) }
            }
        }
    }

    /// Adds up to four sums to the results of token `t`, those of the rows of the panel from `first` on.
    ///
    /// # Safety
    /// - The panel has such a row, and the job the token; nobody else writes the results.
    #[inline(always)]
    unsafe fn store(&self, sums: float32x4_t, first: usize, t: usize) {
        let out = self.job.at(t, self.rows.start + first);
        let add = self.job.accumulate || self.first > 0;
        let rows = (self.rows.len() - first).min(4);
        // SAFETY: as many results are there, and the caller's own.
        unsafe {
            if rows == 4 {
                // Minus zero is what changes nothing that is added to it.
                let before = if add { vld1q_f32(out) } else { vdupq_n_f32(-0.0) };
                vst1q_f32(out, vaddq_f32(before, sums));
            } else {
                let mut of_rows = [0.0; 4];
                vst1q_f32(of_rows.as_mut_ptr(), sums);
                for i in 0..rows {
                    let before = if add { *out.add(i) } else { -0.0 };
                    *out.add(i) = before + of_rows[i];
                }
            }
        }
    }

    /// Up to `TILE_ROWS` rows, those from `first` on, times the `T` tokens from `t`.
    ///
    /// # Safety
    /// - The CPU has `sdot`, and as for [`Layout::tile`].
    #[inline(always)]
    unsafe fn tile_by_dot<const HALVES: bool, const MINS: bool, const T: usize>(&self, first: usize, t: usize) {
        let x = Rows::<T>::new(self.job.x, t, self.first, HALVES);
        let halves = if HALVES { 2 } else { 1 };
        let quad = first / 4;
        // SAFETY: the rows of activations reach as far, and the feature is there, by the caller's promise.
        unsafe {
            let mut sums = [[vdupq_n_f32(0.0); 2]; T];
            for (g, group) in self.scratch.groups[..self.n].iter().enumerate() {
                for half in 0..halves {
                    let mut acc = [[vdupq_n_s32(0); 2]; T];
                    for part in half..half + 3 - halves {
                        let mut a = [vdupq_n_s8(0); T];
                        for j in 0..T {
                            a[j] = vld1q_s8(x.qs[j].add(32 * g + 16 * part));
                        }
                        macro_rules! dword {
                            ($dword:literal) => {
                                for p in 0..2 {
                                    let w = vld1q_s8(group.q[quad + p][part][$dword].as_ptr());
                                    for j in 0..T {
                                        acc[j][p] = dot_lane::<$dword>(acc[j][p], w, a[j]);
                                    }
                                }
                            };
                        }
                        dword!(0);
                        dword!(1);
                        dword!(2);
                        dword!(3);
                    }
                    for j in 0..T {
                        let da = *x.d[j].add(g);
                        for p in 0..2 {
                            let scale = vmulq_n_f32(vld1q_f32(group.d[half][first + 4 * p..].as_ptr()), da);
                            sums[j][p] = vfmaq_f32(sums[j][p], vcvtq_f32_s32(acc[j][p]), scale);
                            if MINS {
                                let m = vld1q_f32(group.m[half][first + 4 * p..].as_ptr());
                                sums[j][p] = vfmaq_n_f32(sums[j][p], m, *x.sum[j].add(halves * g + half));
                            }
                        }
                    }
                }
            }
            for j in 0..T {
                for p in 0..2 {
                    if first + 4 * p < self.rows.len() {
                        self.store(sums[j][p], first + 4 * p, t + j);
                    }
                }
            }
        }
    }

    /// Up to `TILE_ROWS` rows, those from `first` on, times the `n` tokens from `t`, by `P` pairs. A lane holds a row and a
    /// token of a pair: `[row 0, token 0], [row 0, token 1], [row 1, token 0], [row 1, token 1]`.
    ///
    /// # Safety
    /// - The CPU has `smmla`, and as for [`Layout::tile`].
    #[inline(always)]
    unsafe fn tile_by_matrix<const HALVES: bool, const MINS: bool, const P: usize>(
        &self,
        first: usize,
        t: usize,
        n: usize,
    ) {
        // A token without another one is a pair with itself.
        let token = |j: usize| Rows::<1>::new(self.job.x, t + j.min(n - 1), self.first, HALVES);
        let x: [[Rows<1>; 2]; P] = std::array::from_fn(|j| [token(2 * j), token(2 * j + 1)]);
        let halves = if HALVES { 2 } else { 1 };
        let quad = first / 4;
        // SAFETY: the rows of activations reach as far, and the feature is there, by the caller's promise.
        unsafe {
            let mut sums = [[vdupq_n_f32(0.0); 4]; P];
            for (g, group) in self.scratch.groups[..self.n].iter().enumerate() {
                for half in 0..halves {
                    let mut acc = [[vdupq_n_s32(0); 4]; P];
                    for part in half..half + 3 - halves {
                        let mut a = [[vdupq_n_s8(0); 2]; P];
                        for j in 0..P {
                            let even = vld1q_s64(x[j][0].qs[0].add(32 * g + 16 * part).cast());
                            let odd = vld1q_s64(x[j][1].qs[0].add(32 * g + 16 * part).cast());
                            a[j] = [
                                vreinterpretq_s8_s64(vzip1q_s64(even, odd)),
                                vreinterpretq_s8_s64(vzip2q_s64(even, odd)),
                            ];
                        }
                        for eight in 0..2 {
                            for pair in 0..4 {
                                let w = vld1q_s8(group.q[quad + pair / 2][part][2 * eight + pair % 2].as_ptr());
                                for j in 0..P {
                                    acc[j][pair] = matrices(acc[j][pair], w, a[j][eight]);
                                }
                            }
                        }
                    }
                    for p in 0..2 {
                        let d = vld1q_f32(group.d[half][first + 4 * p..].as_ptr());
                        let m = vld1q_f32(group.m[half][first + 4 * p..].as_ptr());
                        let (d, m) = ([vzip1q_f32(d, d), vzip2q_f32(d, d)], [vzip1q_f32(m, m), vzip2q_f32(m, m)]);
                        for j in 0..P {
                            let da = pair_of(x[j][0].d[0].add(g), x[j][1].d[0].add(g));
                            for i in 0..2 {
                                let (sum, product) = (&mut sums[j][2 * p + i], vcvtq_f32_s32(acc[j][2 * p + i]));
                                *sum = vfmaq_f32(*sum, product, vmulq_f32(d[i], da));
                                if MINS {
                                    let at = halves * g + half;
                                    let of_tokens = pair_of(x[j][0].sum[0].add(at), x[j][1].sum[0].add(at));
                                    *sum = vfmaq_f32(*sum, m[i], of_tokens);
                                }
                            }
                        }
                    }
                }
            }
            for j in 0..P {
                for p in 0..2 {
                    if first + 4 * p >= self.rows.len() {
                        break;
                    }
                    let (a, b) = (sums[j][2 * p], sums[j][2 * p + 1]);
                    self.store(vuzp1q_f32(a, b), first + 4 * p, t + 2 * j);
                    if 2 * j + 1 < n {
                        self.store(vuzp2q_f32(a, b), first + 4 * p, t + 2 * j + 1);
                    }
                }
            }
        }
    }
}

/// Two numbers, twice.
///
/// # Safety
/// - Both are valid for reads.
#[inline(always)]
unsafe fn pair_of(a: *const f32, b: *const f32) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let two = vld1_lane_f32::<1>(b, vld1_dup_f32(a));
        vcombine_f32(two, two)
    }
}

/// `acc[i] + w[4 i .. 4 i + 4] . a[4 LANE .. 4 LANE + 4]`
///
/// # Safety
/// - The CPU has the dot product.
#[inline(always)]
unsafe fn dot_lane<const LANE: i32>(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    let mut acc = acc;
    // SAFETY: registers only; the feature is the caller's promise.
    unsafe {
        asm!("sdot {:v}.4s, {:v}.16b, {:v}.4b[{lane}]", inout(vreg) acc, in(vreg) w, in(vreg) a, lane = const LANE,
             options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// `acc[2 i + j] + w[8 i .. 8 i + 8] . a[8 j .. 8 j + 8]`
///
/// # Safety
/// - The CPU has products of matrices.
#[inline(always)]
unsafe fn matrices(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    let mut acc = acc;
    // SAFETY: registers only; the feature is the caller's promise.
    unsafe {
        asm!("smmla {:v}.4s, {:v}.16b, {:v}.16b", inout(vreg) acc, in(vreg) w, in(vreg) a,
             options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// Quantises a row in its natural order, see [`QuantizedRow`].
pub fn quantize(x: &[f32], row: QuantizedRow) {
    row.qs[x.len()..].fill(0);
    for (g, d) in row.d.iter_mut().enumerate() {
        *d = 0.0;
        let (mut first, mut second) = (0, 0);
        if let Some(x) = x.get(32 * g..32 * g + 32) {
            let qs = &mut row.qs[32 * g..32 * g + 32];
            // SAFETY: 32 floats and 32 bytes are there.
            unsafe {
                let mut v = [vdupq_n_f32(0.0); 8];
                let mut largest = vdupq_n_f32(0.0);
                for i in 0..8 {
                    v[i] = vld1q_f32(x.as_ptr().add(4 * i));
                    largest = vmaxq_f32(largest, vabsq_f32(v[i]));
                }
                let max = vmaxvq_f32(largest); // NaN if one of them is
                // A NaN or infinity must not vanish: its group becomes NaN.
                *d = if max < f32::INFINITY { max / 127.0 } else { f32::NAN };
                let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
                let mut q = [vdupq_n_s32(0); 8];
                for i in 0..8 {
                    q[i] = vcvtnq_s32_f32(vmulq_n_f32(v[i], inverse));
                }
                let mut sums = [0; 2];
                for half in 0..2 {
                    let (a, b, c, d) = (q[4 * half], q[4 * half + 1], q[4 * half + 2], q[4 * half + 3]);
                    sums[half] = vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
                    let (low, high) = (vqmovn_high_s32(vqmovn_s32(a), b), vqmovn_high_s32(vqmovn_s32(c), d));
                    vst1q_s8(qs[16 * half..].as_mut_ptr(), vqmovn_high_s16(vqmovn_s16(low), high));
                }
                [first, second] = sums;
            }
        }
        row.bias16[2 * g] = -128 * first;
        row.bias16[2 * g + 1] = -128 * second;
        row.bias32[g] = -128 * (first + second);
        row.sum16[2 * g] = *d * first as f32;
        row.sum16[2 * g + 1] = *d * second as f32;
        row.sum32[g] = *d * (first + second) as f32;
    }
}
