//! The types of blocks of 256 whose groups have small integers for scales: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS; and
//! IQ4_NL, which is a group of IQ4_XS.
//!
//! Each group is fitted by itself. Then the scales are fitted as a group of their own, each counting as much as an error of it
//! would cost. Then, with scales that can be written, each group takes the best integers again, also with the next larger
//! and the next smaller scale; and at last the scale of the scales is that of a regression over all of the block.

use super::fit::{Integers, Levels, Points, Scaled, array, byte, costs, extreme, inverse, sum};
use super::round::nibbles;
use super::{Encode, f16_bytes, rounded_to_f16};
use crate::quant::{BlockIQ4_NL, BlockIQ4_XS, BlockQ2_K, BlockQ3_K, BlockQ4_K, BlockQ5_K, BlockQ6_K, IQ4_TABLE};

/// `N` numbers, the first one and by how much each is more than the one before.
const fn from_by<const N: usize>(first: f32, step: f32) -> [f32; N] {
    let mut out = [first; N];
    let mut i = 1;
    while i < N {
        out[i] = first + i as f32 * step;
        i += 1;
    }
    out
}

/// `x = d * scales * q`.
struct Symmetric<const N: usize, const G: usize> {
    d: f32,
    scales: [f32; G],
    q: [[f32; N]; G],
}

/// What sets a symmetric type apart.
#[derive(Clone, Copy)]
struct SymmetricType<L> {
    levels: L,
    /// What the largest number is divided by its scale, for the scales that are tried.
    tries: &'static [f32],
    scales: Integers,
}

impl<L: Levels + Copy> SymmetricType<L> {
    #[inline(always)]
    fn encode<const N: usize, const G: usize>(self, x: &[f32], importance: Option<&[f32]>) -> Symmetric<N, G> {
        let x: &[f32; 256] = x.try_into().expect("a block of 256");
        let groups: &[[f32; N]] = x.as_chunks().0;
        let mut w = [[0.0; N]; G];
        let (mut scales, mut scale_costs) = ([0.0; G], [0.0; G]);
        for g in 0..G {
            w[g] = costs(importance.map(|all| &all[g * N..]));
            let first = inverse(extreme(&groups[g]));
            let inverses = self.tries.iter().map(|level| level * first);
            let fit = Points { x: &groups[g], w: &w[g] }.scale(self.levels, inverses);
            scales[g] = fit.d;
            scale_costs[g] = sum::<N>(|i| w[g][i] * fit.q[i] * fit.q[i]);
        }
        let first = inverse(extreme(&scales));
        let Integers(least, _) = self.scales;
        let inverses = (-9..=9).map(|step| (least + 0.1 * step as f32) * first);
        let fit = Points { x: &scales, w: &scale_costs }.scale(self.scales, inverses);
        let mut block = Symmetric { d: rounded_to_f16(fit.d), scales: fit.q, q: [[0.0; N]; G] };
        let mut error = self.assign(groups, &w, &mut block, 1.0);
        for _ in 0..2 {
            let (mut xq, mut qq) = (0.0, 0.0);
            for g in 0..G {
                let (q, scale) = (&block.q[g], block.scales[g]);
                xq += scale * sum::<N>(|i| w[g][i] * groups[g][i] * q[i]);
                qq += scale * scale * sum::<N>(|i| w[g][i] * q[i] * q[i]);
            }
            let mut other = Symmetric { d: rounded_to_f16(xq * inverse(qq)), ..block };
            let other_error = self.assign(groups, &w, &mut other, 1.0);
            if other_error.is_nan() || other_error >= error {
                break;
            }
            (block, error) = (other, other_error);
        }
        block
    }

    /// Gives each group its best levels, with its scale or one `reach` away; gives the error.
    #[inline(always)]
    fn assign<const N: usize, const G: usize>(
        self,
        groups: &[[f32; N]],
        w: &[[f32; N]; G],
        block: &mut Symmetric<N, G>,
        reach: f32,
    ) -> f32 {
        let Integers(least, most) = self.scales;
        let mut total = 0.0;
        for g in 0..G {
            let points = Points { x: &groups[g], w: &w[g] };
            let middle = block.scales[g];
            let mut best = f32::INFINITY;
            for scale in [middle, middle - reach, middle + reach] {
                if scale < least || scale > most {
                    continue;
                }
                let d = block.d * scale;
                let q = points.levels(self.levels, inverse(d));
                let error = points.error(|i| d * q[i]);
                if error < best {
                    (best, block.scales[g], block.q[g]) = (error, scale, q);
                }
            }
            total += best;
        }
        total
    }
}

/// `x = d * scales * q - m * mins`.
#[derive(Clone, Copy)]
struct Sloped<const N: usize, const G: usize> {
    d: f32,
    m: f32,
    scales: [f32; G],
    mins: [f32; G],
    q: [[f32; N]; G],
}

/// What sets a type with minima apart.
#[derive(Clone, Copy)]
struct SlopedType {
    top: f32,
    /// By how much the range of the integers is varied for the first scale, in tenths.
    vary: (i32, i32),
    /// The largest scale and minimum.
    largest: f32,
}

impl SlopedType {
    #[inline(always)]
    fn encode<const N: usize, const G: usize>(self, x: &[f32], importance: Option<&[f32]>) -> Sloped<N, G> {
        let x: &[f32; 256] = x.try_into().expect("a block of 256");
        let groups: &[[f32; N]] = x.as_chunks().0;
        let mut w = [[0.0; N]; G];
        let (mut scales, mut scale_costs, mut mins, mut min_costs) = ([0.0; G], [0.0; G], [0.0; G], [0.0; G]);
        for g in 0..G {
            w[g] = costs(importance.map(|all| &all[g * N..]));
            let factors = (self.vary.0..=self.vary.1).map(|step| self.top + 0.1 * step as f32);
            let fit = Points { x: &groups[g], w: &w[g] }.affine(self.top, factors);
            (scales[g], mins[g]) = (fit.d, fit.m);
            scale_costs[g] = sum::<N>(|i| w[g][i] * fit.q[i] * fit.q[i]);
            min_costs[g] = sum::<N>(|i| w[g][i]);
        }
        let (fit_d, fit_m) = (self.fit(&scales, &scale_costs), self.fit(&mins, &min_costs));
        let (d, m) = (rounded_to_f16(fit_d.d), rounded_to_f16(fit_m.d));
        let mut block = Sloped { d, m, scales: fit_d.q, mins: fit_m.q, q: [[0.0; N]; G] };
        let mut error = self.assign(groups, &w, &mut block);
        for _ in 0..2 {
            let (d, m) = Self::regress(groups, &w, &block);
            let mut other = Sloped { d: rounded_to_f16(d), m: rounded_to_f16(m), ..block };
            let other_error = self.assign(groups, &w, &mut other);
            if other_error.is_nan() || other_error >= error {
                break;
            }
            (block, error) = (other, other_error);
        }
        block
    }

    /// Scales of scales, or of minima.
    #[inline(always)]
    fn fit<const G: usize>(self, x: &[f32; G], w: &[f32; G]) -> Scaled<G> {
        let first = inverse(extreme(x));
        let inverses = (-9..=9).map(|step| (self.largest + 0.1 * step as f32) * first);
        Points { x, w }.scale(Integers(0.0, self.largest), inverses)
    }

    /// The two scales that are best for all the integers of a block.
    #[inline(always)]
    fn regress<const N: usize, const G: usize>(
        groups: &[[f32; N]],
        w: &[[f32; N]; G],
        block: &Sloped<N, G>,
    ) -> (f32, f32) {
        let (mut aa, mut ab, mut bb, mut xa, mut xb) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for g in 0..G {
            let (q, scale, min) = (&block.q[g], block.scales[g], block.mins[g]);
            aa += scale * scale * sum::<N>(|i| w[g][i] * q[i] * q[i]);
            ab += scale * min * sum::<N>(|i| w[g][i] * q[i]);
            bb += min * min * sum::<N>(|i| w[g][i]);
            xa += scale * sum::<N>(|i| w[g][i] * groups[g][i] * q[i]);
            xb += min * sum::<N>(|i| w[g][i] * groups[g][i]);
        }
        let determinant = aa * bb - ab * ab;
        let (d, m) = ((bb * xa - ab * xb) / determinant, (ab * xa - aa * xb) / determinant);
        if determinant > 0.0 && d > 0.0 && m >= 0.0 { (d, m) } else { (xa * inverse(aa), 0.0) }
    }

    /// Gives each group its best integers and minimum, with its scale or the next one; gives the error.
    #[inline(always)]
    fn assign<const N: usize, const G: usize>(
        self,
        groups: &[[f32; N]],
        w: &[[f32; N]; G],
        block: &mut Sloped<N, G>,
    ) -> f32 {
        let levels = Integers(0.0, self.top);
        let inverse_m = inverse(block.m);
        let mut total = 0.0;
        for g in 0..G {
            let (x, w) = (&groups[g], &w[g]);
            let points = Points { x, w };
            let (sw, sx) = (sum::<N>(|i| w[i]), sum::<N>(|i| w[i] * x[i]));
            let (scale, min) = (block.scales[g], block.mins[g]);
            let mut best = f32::INFINITY;
            for scale in [scale, scale - 1.0, scale + 1.0] {
                if scale < 0.0 || scale > self.largest {
                    continue;
                }
                let d = block.d * scale;
                let inverse_d = inverse(d);
                let mut min = min;
                // The minimum that is best for the integers of the first one, and theirs.
                for _ in 0..2 {
                    let m = block.m * min;
                    let q: [f32; N] = array(|i| levels.nearest((x[i] + m) * inverse_d));
                    let error = points.error(|i| d * q[i] - m);
                    if error < best {
                        (best, block.scales[g], block.mins[g], block.q[g]) = (error, scale, min, q);
                    }
                    let wanted = (d * sum::<N>(|i| w[i] * q[i]) - sx) * inverse(sw);
                    let next = Integers(0.0, self.largest).nearest(wanted * inverse_m);
                    if next == min {
                        break;
                    }
                    min = next;
                }
            }
            total += best;
        }
        total
    }
}

/// The 6-bit scales and minima of Q4_K and Q5_K, see `scale_min_6bit` of the types.
#[inline(always)]
fn scales_6bit(scales: &[f32; 8], mins: &[f32; 8]) -> [u8; 12] {
    let (s, m) = (scales.map(byte), mins.map(byte));
    array(|i| match i {
        0..4 => s[i] | s[i + 4] >> 4 << 6,
        4..8 => m[i - 4] | m[i] >> 4 << 6,
        _ => (s[i - 4] & 15) | (m[i - 4] & 15) << 4,
    })
}

/// Integers of a block, weight by weight.
#[inline(always)]
fn flat<const N: usize, const G: usize>(q: &[[f32; N]; G], raise: f32) -> [u8; 256] {
    array(|i| byte(q[i / N][i % N] + raise))
}

/// Pairs of bits: byte `k` of half `h` has those of weights `128 h + 32 j + k` at bit `2 j`.
#[inline(always)]
fn pairs(q: impl Fn(usize) -> u8) -> [u8; 64] {
    array(|i| (0..4).fold(0, |byte, j| byte | (q(i / 32 * 128 + 32 * j + i % 32) & 3) << (2 * j)))
}

impl Encode for BlockQ2_K {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let kind = SlopedType { top: 3.0, vary: (-5, 10), largest: 15.0 };
        let block = kind.encode::<16, 16>(x, importance);
        let q = flat(&block.q, 0.0);
        Self {
            scales: array(|g| byte(block.scales[g]) | byte(block.mins[g]) << 4),
            qs: pairs(|i| q[i]),
            d: f16_bytes(block.d),
            dmin: f16_bytes(block.m),
        }
    }
}

impl Encode for BlockQ4_K {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let kind = SlopedType { top: 15.0, vary: (-10, 10), largest: 63.0 };
        let block = kind.encode::<32, 8>(x, importance);
        let q = flat(&block.q, 0.0);
        Self {
            d: f16_bytes(block.d),
            dmin: f16_bytes(block.m),
            scales: scales_6bit(&block.scales, &block.mins),
            qs: array(|i| q[i / 32 * 64 + i % 32] | q[i / 32 * 64 + 32 + i % 32] << 4),
        }
    }
}

impl Encode for BlockQ5_K {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let kind = SlopedType { top: 31.0, vary: (-5, 10), largest: 63.0 };
        let block = kind.encode::<32, 8>(x, importance);
        let q = flat(&block.q, 0.0);
        Self {
            d: f16_bytes(block.d),
            dmin: f16_bytes(block.m),
            scales: scales_6bit(&block.scales, &block.mins),
            qh: array(|k| (0..8).fold(0, |byte, i| byte | (q[32 * i + k] >> 4) << i)),
            qs: array(|i| (q[i / 32 * 64 + i % 32] & 15) | q[i / 32 * 64 + 32 + i % 32] << 4),
        }
    }
}

impl Encode for BlockQ3_K {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let kind = SymmetricType {
            levels: Integers(-4.0, 3.0),
            tries: &const { from_by::<19>(-4.9, 0.1) },
            scales: Integers(-32.0, 31.0),
        };
        let block = kind.encode::<16, 16>(x, importance);
        let q = flat(&block.q, 4.0);
        let s = block.scales.map(|s| byte(s + 32.0));
        Self {
            hmask: array(|k| (0..8).fold(0, |byte, i| byte | (q[32 * i + k] >> 2) << i)),
            qs: pairs(|i| q[i]),
            scales: array(|i| match i {
                0..8 => (s[i] & 15) | (s[i + 8] & 15) << 4,
                _ => (0..4).fold(0, |byte, j| byte | s[4 * j + i - 8] >> 4 << (2 * j)),
            }),
            d: f16_bytes(block.d),
        }
    }
}

impl Encode for BlockQ6_K {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let kind = SymmetricType {
            levels: Integers(-32.0, 31.0),
            tries: &const { from_by::<19>(-32.9, 0.1) },
            scales: Integers(-128.0, 127.0),
        };
        let block = kind.encode::<16, 16>(x, importance);
        let q = flat(&block.q, 32.0);
        // Byte `k` of quarter `c` holds weights `64 c' + k` and, 64 further on, its fellow.
        let at = |i: usize| i / 64 * 128 + i % 64;
        Self {
            ql: array(|i| (q[at(i)] & 15) | q[at(i) + 64] << 4),
            qh: pairs(|i| q[i] >> 4),
            scales: block.scales.map(byte),
            d: f16_bytes(block.d),
        }
    }
}

/// The values of IQ4_NL and IQ4_XS.
#[derive(Clone, Copy)]
struct Table;

impl Table {
    /// The value of a code.
    const fn value(code: usize) -> f32 {
        IQ4_TABLE[code] as f32 - 128.0
    }
}

impl Levels for Table {
    #[inline(always)]
    fn nearest(&self, x: f32) -> f32 {
        let mut value = const { Self::value(0) };
        for code in 1..16 {
            let (before, here) = (Self::value(code - 1), Self::value(code));
            value += if x >= 0.5 * (before + here) { here - before } else { 0.0 };
        }
        value
    }
}

/// The codes of values of the table.
#[inline(always)]
fn codes(values: &[f32; 32]) -> [u8; 32] {
    array(|i| (1..16).fold(0, |code, next| code + u8::from(values[i] >= Table::value(next))))
}

const IQ4_XS: SymmetricType<Table> = SymmetricType {
    levels: Table,
    // The table has more room below zero than above, so that often the other end is the better one.
    tries: &const {
        let (below, above) = (from_by::<15>(-134.0, 1.0), from_by::<8>(106.0, 3.0));
        let mut tries = [0.0; 23];
        let mut i = 0;
        while i < 23 {
            tries[i] = if i < 15 { below[i] } else { above[i - 15] };
            i += 1;
        }
        tries
    },
    scales: Integers(-32.0, 31.0),
};

impl Encode for BlockIQ4_XS {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let block = IQ4_XS.encode::<32, 8>(x, importance);
        let s = block.scales.map(|s| byte(s + 32.0));
        let high = (0..8).fold(0, |bits, i| bits | u16::from(s[i] >> 4) << (2 * i));
        Self {
            d: f16_bytes(block.d),
            scales_h: high.to_le_bytes(),
            scales_l: array(|i| (s[2 * i] & 15) | s[2 * i + 1] << 4),
            qs: std::array::from_fn(|i| nibbles(&codes(&block.q[i]))),
        }
    }
}

impl Encode for BlockIQ4_NL {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let x: &[f32; 32] = x.try_into().expect("a block of 32");
        let kind = IQ4_XS;
        let w = costs(importance);
        let points = Points { x, w: &w };
        let first = inverse(extreme(x));
        let inverses = kind.tries.iter().map(|level| level * first);
        let d = rounded_to_f16(points.scale(kind.levels, inverses).d);
        Self { d: f16_bytes(d), qs: nibbles(&codes(&points.levels(Table, inverse(d)))) }
    }
}
