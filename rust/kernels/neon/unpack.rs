//! Blocks of each type -> registers of 128 bits: the integers of 32 weights of a row at a time, the scales of four rows.

#![allow(clippy::needless_range_loop)] // no closures, see the products

use std::arch::aarch64::*;

use crate::kernels::vector::aarch64::from_f16;
use crate::quant::*;

/// What is read of a block of four rows at once: scales and offsets, `[group][row]`, or with `HALVES`
/// `[2 * group + half][row]`.
#[derive(Clone, Copy)]
pub struct Scales {
    pub d: [float32x4_t; 16],
    pub m: [float32x4_t; 16],
}

impl Scales {
    /// Nothing yet.
    // SAFETY: registers of floats, for which zeros are a value.
    pub const ZERO: Self = unsafe { std::mem::zeroed() };
}

/// A quantised type that can be unpacked.
pub trait Unpack: Block {
    /// Whether integers are too large to be signed bytes as they are raised, and are 128 less.
    const SIGNED: bool = Self::LARGEST > 127;
    /// Whether integers are raised by `BIAS`.
    const BIASED: bool = !Self::SIGNED && !Self::MINS;
    /// Groups whose bits lie in the same bytes: a group's place among them is known to the compiler, and shifts by it are part
    /// of an instruction. 1, 2 or 4.
    const SPAN: usize = 1;

    /// The integers of group `J` of the `SPAN` groups from `SPAN * s` on of the block at `p`, in their natural order, raised
    /// by the bias unless `SIGNED`.
    ///
    /// # Safety
    /// - `p` is valid for reads of a block that has these groups.
    unsafe fn integers<const J: usize>(p: *const u8, s: usize) -> [int8x16_t; 2];

    /// The scales of all groups of the blocks at `rows`.
    ///
    /// # Safety
    /// - Each of `rows` is valid for reads of a block.
    unsafe fn scales(rows: &[*const u8; 4], to: &mut Scales);
}

/// What [`Unpack`] asks for, by [`Block::group`].
macro_rules! by_group {
    () => {
        #[inline(always)]
        unsafe fn integers<const J: usize>(p: *const u8, s: usize) -> [int8x16_t; 2] {
            // SAFETY: a block is there, by the caller's promise; its alignment is 1.
            let group = unsafe { p.cast::<Self>().read() }.group(s);
            let q = group.q.map(|q| if Self::SIGNED { q ^ 0x80 } else { q });
            // SAFETY: 32 bytes are there.
            unsafe { load(q.as_ptr(), 0) }
        }

        #[inline(always)]
        unsafe fn scales(rows: &[*const u8; 4], to: &mut Scales) {
            let halves = if Self::HALVES { 2 } else { 1 };
            for i in 0..Self::GROUPS {
                for half in 0..halves {
                    let (mut d, mut m) = ([0.0; 4], [0.0; 4]);
                    for (r, row) in rows.iter().enumerate() {
                        // SAFETY: a block is there, by the caller's promise; its alignment is 1.
                        let group = unsafe { row.cast::<Self>().read() }.group(i);
                        (d[r], m[r]) = (group.d[half], group.m[half]);
                    }
                    // SAFETY: four floats each.
                    unsafe {
                        to.d[halves * i + half] = vld1q_f32(d.as_ptr());
                        to.m[halves * i + half] = vld1q_f32(m.as_ptr());
                    }
                }
            }
        }
    };
}

impl<B: Block> Unpack for Generic<B> {
    by_group!();
}

impl Unpack for BlockIQ2_XXS {
    by_group!();
}
impl Unpack for BlockIQ2_XS {
    by_group!();
}
impl Unpack for BlockIQ2_S {
    by_group!();
}
impl Unpack for BlockIQ3_XXS {
    by_group!();
}
impl Unpack for BlockIQ3_S {
    by_group!();
}

/// 32 bytes.
///
/// # Safety
/// - `p` is valid for reads of them from `at` on.
#[inline(always)]
unsafe fn load(p: *const u8, at: usize) -> [int8x16_t; 2] {
    // SAFETY: the caller's promise.
    unsafe { [vld1q_s8(p.add(at).cast()), vld1q_s8(p.add(at + 16).cast())] }
}

/// 16 bytes.
///
/// # Safety
/// - `p` is valid for reads of them from `at` on.
#[inline(always)]
unsafe fn load16(p: *const u8, at: usize) -> uint8x16_t {
    // SAFETY: the caller's promise.
    unsafe { vld1q_u8(p.add(at)) }
}

/// # Safety
/// - `p` is valid for reads of four bytes from `at` on.
#[inline(always)]
unsafe fn dword(p: *const u8, at: usize) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { p.add(at).cast::<u32>().read_unaligned() }
}

/// The f16 at `at` of each row.
///
/// # Safety
/// - Each of `rows` is valid for reads of two bytes from `at` on.
#[inline(always)]
unsafe fn f16s(rows: &[*const u8; 4], at: usize) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let [a, b, c, d] = *rows;
        let x = vld1_dup_u16(a.add(at).cast());
        let x = vld1_lane_u16::<1>(b.add(at).cast(), x);
        let x = vld1_lane_u16::<2>(c.add(at).cast(), x);
        from_f16(vld1_lane_u16::<3>(d.add(at).cast(), x))
    }
}

/// 16 columns of four rows of signed bytes, as floats.
#[inline(always)]
fn columns([a, b, c, d]: [int8x16_t; 4]) -> [float32x4_t; 16] {
    // SAFETY: registers only, and NEON is part of AArch64.
    unsafe {
        let mut to = [vdupq_n_f32(0.0); 16];
        let (ac, bd) = ([vzip1q_s8(a, c), vzip2q_s8(a, c)], [vzip1q_s8(b, d), vzip2q_s8(b, d)]);
        for half in 0..2 {
            let fours = [vzip1q_s8(ac[half], bd[half]), vzip2q_s8(ac[half], bd[half])];
            for i in 0..2 {
                let (low, high) = (vmovl_s8(vget_low_s8(fours[i])), vmovl_high_s8(fours[i]));
                let at = 8 * half + 4 * i;
                to[at] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
                to[at + 1] = vcvtq_f32_s32(vmovl_high_s16(low));
                to[at + 2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
                to[at + 3] = vcvtq_f32_s32(vmovl_high_s16(high));
            }
        }
        to
    }
}

/// The low nibbles of 16 bytes, or the high ones.
#[inline(always)]
fn nibbles(z: uint8x16_t, high: bool) -> uint8x16_t {
    // SAFETY: registers only, and NEON is part of AArch64.
    unsafe { if high { vshrq_n_u8::<4>(z) } else { vandq_u8(z, vdupq_n_u8(15)) } }
}

/// The bytes of either half, as signed ones.
#[inline(always)]
fn signed(halves: [uint8x16_t; 2]) -> [int8x16_t; 2] {
    // SAFETY: registers only, and NEON is part of AArch64.
    unsafe {
        let [low, high] = halves;
        [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)]
    }
}

/// Codes to the values of a table, less `by`.
#[inline(always)]
fn look_up(table: &[u8; 16], codes: [uint8x16_t; 2], by: u8) -> [int8x16_t; 2] {
    // SAFETY: the table has 16 bytes, and a code that is larger is zero; NEON is part of AArch64.
    unsafe {
        let table = vsubq_u8(vld1q_u8(table.as_ptr()), vdupq_n_u8(by));
        let [low, high] = codes;
        signed([vqtbl1q_u8(table, low), vqtbl1q_u8(table, high)])
    }
}

/// 16 bytes of nibbles: the low ones, then the high ones.
///
/// # Safety
/// - `p` is valid for reads of them from `at` on.
#[inline(always)]
unsafe fn low_high(p: *const u8, at: usize) -> [uint8x16_t; 2] {
    // SAFETY: the caller's promise.
    let z = unsafe { load16(p, at) };
    [nibbles(z, false), nibbles(z, true)]
}

/// The same with a fifth bit from the dword that comes right before.
///
/// # Safety
/// - `p` is valid for reads of 20 bytes from `at` on.
#[inline(always)]
unsafe fn five_bits(p: *const u8, at: usize) -> [int8x16_t; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut q = low_high(p, at + 4);
        let bits = vreinterpretq_u8_u32(vld1q_dup_u32(p.add(at).cast()));
        let bit = vreinterpretq_u8_u64(vdupq_n_u64(u64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128])));
        for half in 0..2 {
            let byte = 0x0202_0202_0202_0202 * half as u64;
            let byte = vcombine_u64(vcreate_u64(byte), vcreate_u64(byte + 0x0101_0101_0101_0101));
            let set = vtstq_u8(vqtbl1q_u8(bits, vreinterpretq_u8_u64(byte)), bit);
            q[half] = vbslq_u8(vdupq_n_u8(16), set, q[half]);
        }
        signed(q)
    }
}

/// The types of 32 weights a block.
macro_rules! unpack_32 {
    ($block:ident, |$p:ident| q: $q:expr, |$rows:ident| d: $d:expr $(, m: $m:expr)?) => {
        impl Unpack for $block {
            #[inline(always)]
            unsafe fn integers<const J: usize>($p: *const u8, _: usize) -> [int8x16_t; 2] {
                // SAFETY: all reads lie in the block.
                unsafe { $q }
            }

            #[inline(always)]
            unsafe fn scales($rows: &[*const u8; 4], to: &mut Scales) {
                // SAFETY: as above.
                unsafe {
                    to.d[0] = $d;
                    $(to.m[0] = $m;)?
                }
            }
        }
    };
}

unpack_32!(BlockQ4_0, |p| q: signed(low_high(p, 2)), |rows| d: f16s(rows, 0));
unpack_32!(BlockQ4_1, |p| q: signed(low_high(p, 4)), |rows| d: f16s(rows, 0), m: f16s(rows, 2));
unpack_32!(BlockQ5_0, |p| q: five_bits(p, 2), |rows| d: f16s(rows, 0));
unpack_32!(BlockQ5_1, |p| q: five_bits(p, 4), |rows| d: f16s(rows, 0), m: f16s(rows, 2));
unpack_32!(BlockQ8_0, |p| q: load(p, 2), |rows| d: f16s(rows, 0));
unpack_32!(BlockIQ4_NL, |p| q: look_up(&IQ4_TABLE, low_high(p, 2), 128), |rows| d: f16s(rows, 0));
unpack_32!(BlockMXFP4, |p| q: look_up(&MXFP4_TABLE, low_high(p, 1), 0), |rows| d: {
    let [a, b, c, d] = *rows;
    let scales = [mxfp4_scale(*a), mxfp4_scale(*b), mxfp4_scale(*c), mxfp4_scale(*d)];
    vld1q_f32(scales.as_ptr())
});

/// The types of more weights a block: `$scales` reads scales, and offsets if there are any.
macro_rules! unpack_more {
    ($block:ident, span: $span:literal, scales: $scales:ident, |$p:ident, $s:ident| $q:expr) => {
        impl Unpack for $block {
            const SPAN: usize = $span;

            #[inline(always)]
            unsafe fn integers<const J: usize>($p: *const u8, $s: usize) -> [int8x16_t; 2] {
                // SAFETY: all reads lie in the block.
                unsafe { $q }
            }

            #[inline(always)]
            unsafe fn scales(rows: &[*const u8; 4], to: &mut Scales) {
                // SAFETY: as above.
                unsafe { $scales(rows, to) }
            }
        }
    };
}

/// `to[i] = by * columns[i]`
#[inline(always)]
fn scaled(to: &mut [float32x4_t], columns: &[float32x4_t], by: float32x4_t) {
    // SAFETY: registers only, and NEON is part of AArch64.
    unsafe {
        for i in 0..columns.len() {
            to[i] = vmulq_f32(columns[i], by);
        }
    }
}

/// The 6-bit scales and minima of Q4_K and Q5_K.
///
/// # Safety
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_6bit(rows: &[*const u8; 4], to: &mut Scales) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut bytes = [vdupq_n_s8(0); 4];
        for i in 0..4 {
            // See `scale_min_6bit`. In general registers, which have nothing else to do.
            let (a, b, c) = (dword(rows[i], 4), dword(rows[i], 8), dword(rows[i], 12));
            let scales = [a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030];
            let mins = [b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030];
            bytes[i] = of_dwords([scales[0], scales[1], mins[0], mins[1]]);
        }
        let columns = columns(bytes);
        scaled(&mut to.d[..8], &columns[..8], f16s(rows, 0));
        scaled(&mut to.m[..8], &columns[8..], vnegq_f32(f16s(rows, 2)));
    }
}

/// 16 bytes.
#[inline(always)]
fn of_dwords([a, b, c, d]: [u32; 4]) -> int8x16_t {
    // SAFETY: registers only, and NEON is part of AArch64.
    unsafe {
        let two = |low: u32, high: u32| vcreate_s8(u64::from(high) << 32 | u64::from(low));
        vcombine_s8(two(a, b), two(c, d))
    }
}

/// The 8-bit scales of Q6_K.
///
/// # Safety
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_8bit(rows: &[*const u8; 4], to: &mut Scales) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut bytes = [vdupq_n_s8(0); 4];
        for i in 0..4 {
            bytes[i] = vld1q_s8(rows[i].add(192).cast());
        }
        scaled(&mut to.d, &columns(bytes), f16s(rows, 208));
    }
}

/// The 4-bit scales and minima of Q2_K.
///
/// # Safety
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_4bit(rows: &[*const u8; 4], to: &mut Scales) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut scales, mut mins) = ([vdupq_n_s8(0); 4], [vdupq_n_s8(0); 4]);
        for i in 0..4 {
            [scales[i], mins[i]] = signed(low_high(rows[i], 0));
        }
        scaled(&mut to.d, &columns(scales), f16s(rows, 80));
        scaled(&mut to.m, &columns(mins), vnegq_f32(f16s(rows, 82)));
    }
}

/// The 6-bit scales of Q3_K.
///
/// # Safety
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_q3(rows: &[*const u8; 4], to: &mut Scales) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut bytes = [vdupq_n_s8(0); 4];
        for i in 0..4 {
            let (low, high, two) = (dword(rows[i], 96), dword(rows[i], 100), dword(rows[i], 104));
            let scale = |nibbles: u32, pairs: u32| nibbles & 0x0f0f_0f0f | (pairs & 0x0303_0303) << 4;
            let raised = of_dwords([
                scale(low, two),
                scale(high, two >> 2),
                scale(low >> 4, two >> 4),
                scale(high >> 4, two >> 6),
            ]);
            bytes[i] = vsubq_s8(raised, vdupq_n_s8(32));
        }
        scaled(&mut to.d, &columns(bytes), f16s(rows, 108));
    }
}

/// The 6-bit scales of IQ4_XS.
///
/// # Safety
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_iq4(rows: &[*const u8; 4], to: &mut Scales) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut bytes = [vdupq_n_s8(0); 4];
        for i in 0..4 {
            // Nibble i of bytes 4 to 8; bits 2i and 2i + 1 of bytes 2 to 4.
            let z = vcreate_u8(u64::from(dword(rows[i], 4)));
            let low = vzip1_u8(vand_u8(z, vdup_n_u8(15)), vshr_n_u8::<4>(z));
            let pairs = vld1q_dup_u16(rows[i].add(2).cast());
            let down = vcombine_s16(vcreate_s16(0xfffa_fffc_fffe_0000), vcreate_s16(0xfff2_fff4_fff6_fff8));
            let high = vand_u8(vmovn_u16(vshlq_u16(pairs, down)), vdup_n_u8(3));
            let raised = vreinterpret_s8_u8(vorr_u8(low, vshl_n_u8::<4>(high)));
            bytes[i] = vcombine_s8(vsub_s8(raised, vdup_n_s8(32)), vdup_n_s8(0));
        }
        scaled(&mut to.d[..8], &columns(bytes)[..8], f16s(rows, 0));
    }
}

/// The 8-bit float scales of NVFP4.
///
/// # Safety
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_nvfp4(rows: &[*const u8; 4], to: &mut Scales) {
    let [a, b, c, d] = *rows;
    for i in 0..4 {
        // SAFETY: four bytes are there, by the caller's promise, and four floats.
        unsafe {
            let scales = [*a.add(i), *b.add(i), *c.add(i), *d.add(i)].map(nvfp4_scale);
            to.d[i] = vld1q_f32(scales.as_ptr());
        }
    }
}

/// `z` shifted down by so many bits.
#[inline(always)]
fn down(z: uint8x16_t, by: usize) -> uint8x16_t {
    // SAFETY: registers only, and NEON is part of AArch64.
    unsafe { vshlq_u8(z, vdupq_n_s8(-(by as i8))) }
}

unpack_more!(BlockQ4_K, span: 2, scales: scales_6bit, |p, s| {
    let at = 16 + 32 * s;
    signed([nibbles(load16(p, at), J == 1), nibbles(load16(p, at + 16), J == 1)])
});
unpack_more!(BlockQ5_K, span: 2, scales: scales_6bit, |p, s| {
    let mut q = [vdupq_n_u8(0); 2];
    for half in 0..2 {
        let low = load16(p, 48 + 32 * s + 16 * half);
        let low = if J == 1 { vshrq_n_u8::<4>(low) } else { low };
        // The fifth bit comes to where it belongs, with whatever is above it.
        let high = down(load16(p, 16 + 16 * half), 2 * s + J);
        q[half] = vandq_u8(vsliq_n_u8::<4>(low, high), vdupq_n_u8(31));
    }
    signed(q)
});
unpack_more!(BlockQ6_K, span: 4, scales: scales_8bit, |p, s| {
    let mut q = [vdupq_n_u8(0); 2];
    for half in 0..2 {
        let low = load16(p, 64 * s + 32 * (J % 2) + 16 * half);
        let high = load16(p, 128 + 32 * s + 16 * half);
        let upper = vdupq_n_u8(0x30);
        q[half] = match J {
            0 => vandq_u8(vsliq_n_u8::<4>(low, high), vdupq_n_u8(0x3f)),
            1 => vandq_u8(vsliq_n_u8::<4>(low, vshrq_n_u8::<2>(high)), vdupq_n_u8(0x3f)),
            2 => vbslq_u8(upper, high, vshrq_n_u8::<4>(low)),
            _ => vbslq_u8(upper, vshrq_n_u8::<2>(high), vshrq_n_u8::<4>(low)),
        };
    }
    signed(q)
});

/// Pair `J` of the bits of 16 bytes.
#[inline(always)]
fn quarter<const J: usize>(z: uint8x16_t) -> uint8x16_t {
    // SAFETY: registers only, and NEON is part of AArch64.
    unsafe {
        let shifted = match J {
            0 => z,
            1 => vshrq_n_u8::<2>(z),
            2 => vshrq_n_u8::<4>(z),
            _ => return vshrq_n_u8::<6>(z),
        };
        vandq_u8(shifted, vdupq_n_u8(3))
    }
}

unpack_more!(BlockQ2_K, span: 4, scales: scales_4bit, |p, s| {
    let at = 16 + 32 * s;
    signed([quarter::<J>(load16(p, at)), quarter::<J>(load16(p, at + 16))])
});
unpack_more!(BlockQ3_K, span: 4, scales: scales_q3, |p, s| {
    let mut q = [vdupq_n_u8(0); 2];
    for half in 0..2 {
        let low = quarter::<J>(load16(p, 32 + 32 * s + 16 * half));
        let high = down(load16(p, 16 * half), 4 * s + J);
        q[half] = vandq_u8(vsliq_n_u8::<2>(low, high), vdupq_n_u8(7));
    }
    signed(q)
});
unpack_more!(BlockIQ4_XS, span: 1, scales: scales_iq4, |p, s| look_up(&IQ4_TABLE, low_high(p, 8 + 16 * s), 128));
unpack_more!(BlockNVFP4, span: 1, scales: scales_nvfp4, |p, s| {
    // Low nibbles of 8 bytes, then their high ones, twice.
    let z = load16(p, 4 + 16 * s);
    let (low, high) = (vreinterpretq_u64_u8(nibbles(z, false)), vreinterpretq_u64_u8(nibbles(z, true)));
    let codes = [vreinterpretq_u8_u64(vzip1q_u64(low, high)), vreinterpretq_u8_u64(vzip2q_u64(low, high))];
    look_up(&MXFP4_TABLE, codes, 0)
});
