//! The types of blocks with one scale: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, TQ1_0, TQ2_0, MXFP4.
//!
//! Without importances they are rounded as everybody rounds them: the scale is that of the largest number, and the bytes are
//! those of the Python package gguf and of llama.cpp. With importances the scale is searched for.

use super::fit::{Integers, Levels, Points, array, byte, costs, extreme, inverse};
use super::{Encode, f16_bytes, half_away};
use crate::quant::{
    BlockMXFP4, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, BlockTQ1_0, BlockTQ2_0, mxfp4_scale,
};

/// Nibbles: weight `k` low, weight `16 + k` high.
#[inline(always)]
pub(super) fn nibbles(q: &[u8; 32]) -> [u8; 16] {
    array(|k| (q[k] & 15) | q[k + 16] << 4)
}

/// The fifth bits.
#[inline(always)]
fn fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    array(|i| (0..8).fold(0, |byte, k| byte | (q[8 * i + k] >> 4) << k))
}

/// `x = d * (q - top)` with `q` below `2 * top`: the scale and the integers.
#[inline(always)]
fn symmetric(x: &[f32], importance: Option<&[f32]>, top: f32) -> (f32, [u8; 32]) {
    let x: &[f32; 32] = x.try_into().expect("a block of 32");
    if let Some(importance) = importance {
        let w = costs(Some(importance));
        let first = inverse(extreme(x));
        let inverses = (-9..=9).map(|step| -(top + 0.1 * step as f32) * first);
        let fit = Points { x, w: &w }.scale(Integers(-top, top - 1.0), inverses);
        return (fit.d, array(|i| byte(fit.q[i] + top)));
    }
    let d = extreme(x) / -top;
    let inverse = inverse(d);
    (d, array(|i| byte((x[i] * inverse + (top + 0.5)).floor().min(2.0 * top - 1.0))))
}

/// `x = d * q + m` with `q` up to `top`: the scale, the offset and the integers.
#[inline(always)]
fn affine(x: &[f32], importance: Option<&[f32]>, top: f32) -> (f32, f32, [u8; 32]) {
    let x: &[f32; 32] = x.try_into().expect("a block of 32");
    if let Some(importance) = importance {
        let w = costs(Some(importance));
        let fit = Points { x, w: &w }.affine(top, (0..=36).map(|step| top - 0.9 + 0.05 * step as f32));
        return (fit.d, -fit.m, array(|i| byte(fit.q[i])));
    }
    let (min, max) = x[1..].iter().fold((x[0], x[0]), |(min, max), &x| (min.min(x), max.max(x)));
    let d = (max - min) / top;
    let inverse = inverse(d);
    (d, min, array(|i| byte(((x[i] - min) * inverse + 0.5).floor().min(top))))
}

impl Encode for BlockQ8_0 {
    #[inline(always)]
    fn encode(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let d = extreme(x).abs() / 127.0;
        let inverse = inverse(d);
        Self { d: f16_bytes(d), qs: array(|i| byte(half_away(x[i] * inverse))) }
    }
}

impl Encode for BlockQ4_0 {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let (d, q) = symmetric(x, importance, 8.0);
        Self { d: f16_bytes(d), qs: nibbles(&q) }
    }
}

impl Encode for BlockQ5_0 {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let (d, q) = symmetric(x, importance, 16.0);
        Self { d: f16_bytes(d), qh: fifth_bits(&q), qs: nibbles(&q) }
    }
}

impl Encode for BlockQ4_1 {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let (d, m, q) = affine(x, importance, 15.0);
        Self { d: f16_bytes(d), m: f16_bytes(m), qs: nibbles(&q) }
    }
}

impl Encode for BlockQ5_1 {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let (d, m, q) = affine(x, importance, 31.0);
        Self { d: f16_bytes(d), m: f16_bytes(m), qh: fifth_bits(&q), qs: nibbles(&q) }
    }
}

/// Signs of a block of ternary weights, raised by one, where they are more than half of the largest; and that one.
#[inline(always)]
fn ternary(x: &[f32]) -> (f32, [u8; 256]) {
    let d = extreme(x).abs();
    let inverse = inverse(d);
    (d, array(|i| byte(half_away(x[i] * inverse) + 1.0)))
}

impl Encode for BlockTQ1_0 {
    #[inline(always)]
    fn encode(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let (d, q) = ternary(x);
        // The byte is the smallest fraction of 256 whose digits these are.
        let byte = |digits: [u8; 5]| {
            let value = digits.iter().fold(0u16, |value, &digit| 3 * value + u16::from(digit));
            ((value * 256).div_ceil(243)) as u8
        };
        Self {
            qs: array(|i| match i {
                0..32 => byte(array(|n| q[32 * n + i])),
                _ => byte(array(|n| q[160 + 16 * n + i - 32])),
            }),
            qh: array(|i| byte(array(|n| if n < 4 { q[240 + 4 * n + i] } else { 0 }))),
            d: f16_bytes(d),
        }
    }
}

impl Encode for BlockTQ2_0 {
    #[inline(always)]
    fn encode(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let (d, q) = ternary(x);
        let qs = array(|i| (0..4).fold(0, |byte, n| byte | q[i / 32 * 128 + 32 * n + i % 32] << (2 * n)));
        Self { qs, d: f16_bytes(d) }
    }
}

/// The magnitudes of E2M1, twice, as their codes: 0, 1, 2, 3, 4, 6, 8, 12. Halves go to the smaller one.
struct Magnitudes;

impl Levels for Magnitudes {
    #[inline(always)]
    fn nearest(&self, x: f32) -> f32 {
        let borders = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];
        borders.iter().map(|&border| if x > border { 1.0 } else { 0.0 }).sum()
    }
}

impl Encode for BlockMXFP4 {
    #[inline(always)]
    fn encode(x: &[f32], _importance: Option<&[f32]>) -> Self {
        let largest = extreme(x).abs();
        // The largest is 4 to 8 scales: E2M1 ends at 6.
        let e = if largest > 0.0 { (largest.log2().floor() + 125.0).clamp(0.0, 254.0) as u8 } else { 0 };
        let d = mxfp4_scale(e);
        let code = |x: f32| {
            let code = byte(Magnitudes.nearest(x.abs() / d));
            if x < 0.0 && code > 0 { code + 8 } else { code }
        };
        Self { e, qs: nibbles(&array(|i| code(x[i]))) }
    }
}
