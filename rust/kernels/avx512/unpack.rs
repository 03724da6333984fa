//! Blocks of each type -> registers, AVX-512 with VBMI.
//!
//! Every type is unpacked in steps of 128 weights, four groups of 32: the integers of a row in two registers, the first
//! halves of the groups in one, the second halves in the other, one group a 128-bit lane, as unsigned bytes; and the scales
//! of four rows together, a lane of four floats per group. The rows of one token and the strips of a batch both start from
//! here.
//!
//! Nothing here has the features of the set by itself: see [`super`].

#![allow(clippy::needless_range_loop)] // no closures, see the products

use std::arch::x86_64::*;

use crate::kernels::x86;
use crate::quant::*;

/// Scales of a step of four rows: lane `4 * g + i` is that of group `g` of row `i`.
#[derive(Clone, Copy)]
pub struct Scales {
    /// Of the first halves of the groups; of the second as well unless `HALVES`.
    pub d: __m512,
    pub d_hi: __m512,
    /// Offsets likewise, if `MINS`.
    pub m: __m512,
    pub m_hi: __m512,
}

/// A quantised type that can be unpacked, in units of some steps.
pub trait Unpack: Block {
    /// Bytes of a unit.
    const UNIT: usize;
    /// Steps of a unit.
    const STEPS: usize;
    /// What the scales of the steps of a unit of four rows come from.
    type Shared: Copy;

    /// Reads what the steps of a unit share.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - Each of `rows` is valid for reads of `UNIT` bytes, or the type has blocks of less than a step.
    unsafe fn shared(rows: &[*const u8; 4]) -> Self::Shared;

    /// The integers of step `s` of the unit at `p`, which is row `i` of those that `shared` came from: byte `16 * g + k` of
    /// the two registers is weight `k` and `16 + k` of group `g`.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - `p` is valid for reads of `UNIT` bytes, or with `TAIL` of `left` bytes: what is past them reads as zero.
    unsafe fn integers<const TAIL: bool>(
        p: *const u8,
        left: usize,
        shared: &Self::Shared,
        i: usize,
        s: usize,
    ) -> [__m512i; 2];

    /// The scales of step `s` of the units at `rows`, from which `shared` came.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - Each of `rows` is valid for reads as in `integers`.
    unsafe fn scales<const TAIL: bool>(rows: &[*const u8; 4], left: usize, shared: &Self::Shared, s: usize) -> Scales;
}

/// Blocks in a step, or one.
const fn blocks_of_unit<B: Block>() -> usize {
    if B::GROUPS < 4 { 4 / B::GROUPS } else { 1 }
}

/// Group `g` of step `s` of the unit at `p`, if that lies within `left` bytes.
///
/// # Safety
/// - `p` is valid for reads of `left` bytes.
#[inline(always)]
unsafe fn generic_group<B: Block>(p: *const u8, left: usize, s: usize, g: usize) -> Option<Group> {
    let (weight, len) = (128 * s + 32 * g, B::DTYPE.block_len());
    let at = weight / len * size_of::<B>();
    // SAFETY: a block is there; its alignment is 1.
    (at + size_of::<B>() <= left).then(|| unsafe { p.add(at).cast::<B>().read() }.group(weight % len / 32))
}

impl<B: Block> Unpack for Generic<B> {
    const UNIT: usize = blocks_of_unit::<B>() * size_of::<B>();
    const STEPS: usize = if B::GROUPS < 4 { 1 } else { B::GROUPS / 4 };
    type Shared = ();

    #[inline(always)]
    unsafe fn shared(_: &[*const u8; 4]) {}

    #[inline(always)]
    unsafe fn integers<const TAIL: bool>(p: *const u8, left: usize, _: &(), _: usize, s: usize) -> [__m512i; 2] {
        let left = if TAIL { left } else { Self::UNIT };
        let mut bytes = [[0u8; 64]; 2];
        for g in 0..4 {
            // SAFETY: so many bytes are there, by the caller's promise.
            if let Some(group) = unsafe { generic_group::<B>(p, left, s, g) } {
                bytes[0][16 * g..16 * g + 16].copy_from_slice(&group.q[..16]);
                bytes[1][16 * g..16 * g + 16].copy_from_slice(&group.q[16..]);
            }
        }
        // SAFETY: 64 bytes each; the CPU has the features, by the caller's promise.
        unsafe { [_mm512_loadu_si512(bytes[0].as_ptr().cast()), _mm512_loadu_si512(bytes[1].as_ptr().cast())] }
    }

    #[inline(always)]
    unsafe fn scales<const TAIL: bool>(rows: &[*const u8; 4], left: usize, _: &(), s: usize) -> Scales {
        let left = if TAIL { left } else { Self::UNIT };
        let (mut d, mut m) = ([[0.0f32; 16]; 2], [[0.0f32; 16]; 2]);
        for g in 0..4 {
            for i in 0..4 {
                // SAFETY: so many bytes are there, by the caller's promise.
                if let Some(group) = unsafe { generic_group::<B>(rows[i], left, s, g) } {
                    for half in 0..2 {
                        (d[half][4 * g + i], m[half][4 * g + i]) = (group.d[half], group.m[half]);
                    }
                }
            }
        }
        // SAFETY: 16 floats each; the CPU has the features, by the caller's promise.
        unsafe {
            Scales {
                d: _mm512_loadu_ps(d[0].as_ptr()),
                d_hi: _mm512_loadu_ps(d[1].as_ptr()),
                m: _mm512_loadu_ps(m[0].as_ptr()),
                m_hi: _mm512_loadu_ps(m[1].as_ptr()),
            }
        }
    }
}

/// 64 bytes at `p + at`; with `TAIL` only those of the first `left` from `p`, then zeros.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn load<const TAIL: bool>(p: *const u8, at: usize, left: usize) -> __m512i {
    // SAFETY: the bytes and the features are the caller's promise; masked bytes are not accessed.
    unsafe {
        if TAIL {
            let n = left.saturating_sub(at);
            let mask = if n >= 64 { u64::MAX } else { (1 << n) - 1 };
            _mm512_maskz_loadu_epi8(mask, p.wrapping_add(at).cast())
        } else {
            _mm512_loadu_si512(p.add(at).cast())
        }
    }
}

/// 32 bytes at `p + at`, in both halves.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn load_twice(p: *const u8, at: usize) -> __m512i {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(p.add(at).cast())) }
}

#[repr(align(64))]
struct Indices<T, const N: usize>([T; N]);

impl<T, const N: usize> Indices<T, N> {
    /// # Safety
    /// - The CPU has the features of the set.
    #[inline(always)]
    unsafe fn get(&self) -> __m512i {
        const { assert!(size_of::<[T; N]>() == 64) }
        // SAFETY: 64 bytes, aligned; the features are the caller's promise.
        unsafe { _mm512_load_si512(self.0.as_ptr().cast()) }
    }
}

/// Of four blocks of `block` bytes, loaded as 64 bytes at 0 and 64 at `4 * block - 64`: the index, for a permutation of
/// both loads, of byte `at`.
const fn index(block: usize, at: usize) -> usize {
    if at < 64 { at } else { 64 + at - (4 * block - 64) }
}

/// Indices of the 16 bytes at `offset` of each of four blocks.
const fn quarters(block: usize, offset: usize) -> Indices<u8, 64> {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        out[i] = index(block, i / 16 * block + offset + i % 16) as u8;
        i += 1;
    }
    Indices(out)
}

/// Indices of the word at `offset` of each of four blocks, four times each, in the lower half.
const fn words(block: usize, offset: usize) -> Indices<u16, 32> {
    let mut out = [0; 32];
    let mut i = 0;
    while i < 16 {
        let at = i / 4 * block + offset;
        out[i] = if at < 64 { at / 2 } else { 32 + (at - (4 * block - 64)) / 2 } as u16;
        i += 1;
    }
    Indices(out)
}

/// Indices of the dword at `offset` of each of four blocks, four times each, as bytes.
const fn dwords_of(block: usize, offset: usize) -> Indices<u8, 64> {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        out[i] = index(block, i / 16 * block + offset + i % 4) as u8;
        i += 1;
    }
    Indices(out)
}

/// Bit offsets, for a multishift of a dword that is repeated, that bring bit `first + i` to bit 4 of byte `i` of a lane.
const fn fifth_bits(first: u8) -> Indices<u8, 64> {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        out[i] = (first + (i % 16) as u8 + 28) % 32;
        i += 1;
    }
    Indices(out)
}

/// The f16 that `words` index in the loads at 0 and at `second` of each row, as floats.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn f16s<const TAIL: bool>(rows: &[*const u8; 4], second: usize, at: &Indices<u16, 32>, left: usize) -> __m512 {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut words = [_mm256_setzero_si256(); 4];
        for i in 0..4 {
            let (z0, z1) = (load::<TAIL>(rows[i], 0, left), load::<TAIL>(rows[i], second, left));
            words[i] = _mm512_castsi512_si256(_mm512_permutex2var_epi16(z0, at.get(), z1));
        }
        let ab = _mm256_blend_epi16::<0x22>(words[0], words[1]);
        let cd = _mm256_blend_epi16::<0x88>(words[2], words[3]);
        _mm512_cvtph_ps(_mm256_blend_epi32::<0xaa>(ab, cd))
    }
}

/// Lane `first + stride * g` of row `i` in lane `4 * g + i`.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn spread(rows: &[__m512; 4], first: usize, stride: usize) -> __m512 {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let group = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        let of = _mm512_mullo_epi32(group, _mm512_set1_epi32(stride as i32));
        let of = _mm512_add_epi32(of, _mm512_set1_epi32(first as i32));
        let z = _mm512_permutexvar_ps(of, rows[0]);
        let z = _mm512_mask_permutexvar_ps(z, 0x2222, of, rows[1]);
        let z = _mm512_mask_permutexvar_ps(z, 0x4444, of, rows[2]);
        _mm512_mask_permutexvar_ps(z, 0x8888, of, rows[3])
    }
}

/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn low_nibbles(z: __m512i) -> __m512i {
    // SAFETY: the features are the caller's promise.
    unsafe { _mm512_and_si512(z, _mm512_set1_epi8(15)) }
}

/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn high_nibbles(z: __m512i) -> __m512i {
    // SAFETY: the features are the caller's promise.
    unsafe { low_nibbles(_mm512_srli_epi16::<4>(z)) }
}

/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn zero() -> __m512 {
    // SAFETY: the features are the caller's promise.
    unsafe { _mm512_setzero_ps() }
}

/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn table(codes: &[u8; 16]) -> __m512i {
    // SAFETY: 16 bytes are there; the features are the caller's promise.
    unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(codes.as_ptr().cast())) }
}

/// The types of 32 weights a block: a unit is four blocks, a step.
///
/// `$d`, `$m`, `$qh`, `$qs` are byte offsets in the block; `$codes` maps nibbles to values.
macro_rules! unpack_32 {
    ($block:ident, d: $d:expr, qs: $qs:expr $(, m: $m:expr)? $(, qh: $qh:expr)? $(, codes: $codes:expr)?) => {
        impl Unpack for $block {
            const UNIT: usize = 4 * size_of::<$block>();
            const STEPS: usize = 1;
            type Shared = ();

            #[inline(always)]
            unsafe fn shared(_: &[*const u8; 4]) {}

            #[inline(always)]
            unsafe fn integers<const TAIL: bool>(p: *const u8, left: usize, _: &(), _: usize, _: usize) -> [__m512i; 2] {
                const BLOCK: usize = size_of::<$block>();
                static QS: Indices<u8, 64> = quarters(BLOCK, $qs);
                // SAFETY: both loads lie within the unit; the features are the caller's promise.
                unsafe {
                    let z0 = load::<TAIL>(p, 0, left);
                    let z1 = load::<TAIL>(p, 4 * BLOCK - 64, left);
                    let qs = _mm512_permutex2var_epi8(z0, QS.get(), z1);
                    let (lo, hi) = (low_nibbles(qs), high_nibbles(qs));
                    $(
                        static QH: Indices<u8, 64> = dwords_of(BLOCK, $qh);
                        static FIRST: Indices<u8, 64> = fifth_bits(0);
                        static SECOND: Indices<u8, 64> = fifth_bits(16);
                        let qh = _mm512_permutex2var_epi8(z0, QH.get(), z1);
                        let bit = _mm512_set1_epi8(16);
                        let lo = _mm512_or_si512(lo, _mm512_and_si512(_mm512_multishift_epi64_epi8(FIRST.get(), qh), bit));
                        let hi = _mm512_or_si512(hi, _mm512_and_si512(_mm512_multishift_epi64_epi8(SECOND.get(), qh), bit));
                    )?
                    $(
                        let (lo, hi) = (_mm512_shuffle_epi8(table(&$codes), lo), _mm512_shuffle_epi8(table(&$codes), hi));
                    )?
                    [lo, hi]
                }
            }

            #[inline(always)]
            unsafe fn scales<const TAIL: bool>(rows: &[*const u8; 4], left: usize, _: &(), _: usize) -> Scales {
                const BLOCK: usize = size_of::<$block>();
                static D: Indices<u16, 32> = words(BLOCK, $d);
                // SAFETY: as above.
                unsafe {
                    let d = f16s::<TAIL>(rows, 4 * BLOCK - 64, &D, left);
                    #[allow(unused_mut, unused_assignments)]
                    let mut m = zero();
                    $(
                        static M: Indices<u16, 32> = words(BLOCK, $m);
                        m = f16s::<TAIL>(rows, 4 * BLOCK - 64, &M, left);
                    )?
                    Scales { d, d_hi: d, m, m_hi: m }
                }
            }
        }
    };
}

unpack_32!(BlockQ4_0, d: 0, qs: 2);
unpack_32!(BlockQ4_1, d: 0, qs: 4, m: 2);
unpack_32!(BlockQ5_0, d: 0, qs: 6, qh: 2);
unpack_32!(BlockQ5_1, d: 0, qs: 8, m: 2, qh: 4);
unpack_32!(BlockIQ4_NL, d: 0, qs: 2, codes: IQ4_TABLE);

impl Unpack for BlockMXFP4 {
    const UNIT: usize = 4 * 17;
    const STEPS: usize = 1;
    type Shared = ();

    #[inline(always)]
    unsafe fn shared(_: &[*const u8; 4]) {}

    #[inline(always)]
    unsafe fn integers<const TAIL: bool>(p: *const u8, left: usize, _: &(), _: usize, _: usize) -> [__m512i; 2] {
        static QS: Indices<u8, 64> = quarters(17, 1);
        // SAFETY: both loads lie within the unit; the features are the caller's promise.
        unsafe {
            let (z0, z1) = (load::<TAIL>(p, 0, left), load::<TAIL>(p, 4, left));
            let qs = _mm512_permutex2var_epi8(z0, QS.get(), z1);
            let codes = table(&MXFP4_TABLE);
            [_mm512_shuffle_epi8(codes, low_nibbles(qs)), _mm512_shuffle_epi8(codes, high_nibbles(qs))]
        }
    }

    #[inline(always)]
    unsafe fn scales<const TAIL: bool>(rows: &[*const u8; 4], left: usize, _: &(), _: usize) -> Scales {
        static E: Indices<u8, 64> = dwords_of(17, 0); // the exponent in the lowest byte of each dword
        // SAFETY: as above.
        unsafe {
            let mut each = [_mm512_setzero_si512(); 4];
            for i in 0..4 {
                each[i] = _mm512_permutexvar_epi8(E.get(), load::<TAIL>(rows[i], 0, left));
            }
            let ab = _mm512_mask_blend_epi32(0x2222, each[0], each[1]);
            let cd = _mm512_mask_blend_epi32(0x8888, each[2], each[3]);
            let e = _mm512_and_si512(_mm512_mask_blend_epi32(0xcccc, ab, cd), _mm512_set1_epi32(255));
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
            let small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
            let bits = _mm512_mask_sllv_epi32(normal, small, _mm512_set1_epi32(0x0020_0000), e);
            let d = _mm512_castsi512_ps(bits);
            Scales { d, d_hi: d, m: zero(), m_hi: zero() }
        }
    }
}

impl Unpack for BlockNVFP4 {
    const UNIT: usize = 2 * 36;
    const STEPS: usize = 1;
    type Shared = ();

    #[inline(always)]
    unsafe fn shared(_: &[*const u8; 4]) {}

    #[inline(always)]
    unsafe fn integers<const TAIL: bool>(p: *const u8, left: usize, _: &(), _: usize, _: usize) -> [__m512i; 2] {
        /// Indices of the 8 bytes of a half of each group, twice.
        const fn eight_bytes(half: usize) -> Indices<u8, 64> {
            let mut out = [0; 64];
            let mut i = 0;
            while i < 64 {
                let (block, group) = (i / 32, i / 16 % 2);
                let at = 36 * block + 4 + 16 * group + 8 * half + i % 8;
                out[i] = if at < 64 { at } else { 64 + at - 8 } as u8;
                i += 1;
            }
            Indices(out)
        }
        static HALVES: [Indices<u8, 64>; 2] = [eight_bytes(0), eight_bytes(1)];
        // SAFETY: both loads lie within the unit; the features are the caller's promise.
        unsafe {
            let (z0, z1) = (load::<TAIL>(p, 0, left), load::<TAIL>(p, 8, left));
            let shifts = _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4);
            let mut out = [z0; 2];
            for half in 0..2 {
                let bytes = _mm512_permutex2var_epi8(z0, HALVES[half].get(), z1);
                let codes = low_nibbles(_mm512_srlv_epi64(bytes, shifts));
                out[half] = _mm512_shuffle_epi8(table(&MXFP4_TABLE), codes);
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn scales<const TAIL: bool>(rows: &[*const u8; 4], left: usize, _: &(), _: usize) -> Scales {
        /// Indices of the scale of a half of each group, in the lowest byte of each dword.
        const fn scales_of(half: usize) -> Indices<u8, 64> {
            let mut out = [0; 64];
            let mut i = 0;
            while i < 64 {
                out[i] = (36 * (i / 32) + 2 * (i / 16 % 2) + half) as u8;
                i += 1;
            }
            Indices(out)
        }
        static HALVES: [Indices<u8, 64>; 2] = [scales_of(0), scales_of(1)];
        // SAFETY: as above.
        unsafe {
            let mut d = [zero(); 2];
            let nan = _mm512_set1_epi32(0x7f);
            for half in 0..2 {
                let mut each = [_mm512_setzero_si512(); 4];
                for i in 0..4 {
                    each[i] = _mm512_permutexvar_epi8(HALVES[half].get(), load::<TAIL>(rows[i], 0, left));
                }
                let ab = _mm512_mask_blend_epi32(0x2222, each[0], each[1]);
                let cd = _mm512_mask_blend_epi32(0x8888, each[2], each[3]);
                let byte = _mm512_and_si512(_mm512_mask_blend_epi32(0xcccc, ab, cd), _mm512_set1_epi32(255));
                // Exponent and mantissa where an f16 has them: too small by 2^8, of which half is wanted. As floats the
                // smallest would be subnormal, which takes a hundred times as long.
                let is_number = _mm512_cmpneq_epi32_mask(byte, nan);
                let bits = _mm512_maskz_slli_epi32::<7>(is_number, _mm512_and_si512(byte, nan));
                let f16s = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits));
                d[half] = _mm512_mul_ps(f16s, _mm512_set1_ps(128.0));
            }
            Scales { d: d[0], d_hi: d[1], m: zero(), m_hi: zero() }
        }
    }
}

/// The 32 bytes at `p + at` of one Q8_0 block, and those of the next.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn two_blocks<const TAIL: bool>(p: *const u8, at: usize, left: usize) -> __m512i {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        if TAIL {
            let first = load::<true>(p, at, left.min(at + 32));
            let second = load::<true>(p, at + 34, left.min(at + 66));
            _mm512_inserti64x4::<1>(first, _mm512_castsi512_si256(second))
        } else {
            let first = _mm512_castsi256_si512(_mm256_loadu_si256(p.add(at).cast()));
            _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(p.add(at + 34).cast()))
        }
    }
}

impl Unpack for BlockQ8_0 {
    const UNIT: usize = 4 * 34;
    const STEPS: usize = 1;
    type Shared = ();

    #[inline(always)]
    unsafe fn shared(_: &[*const u8; 4]) {}

    #[inline(always)]
    unsafe fn integers<const TAIL: bool>(p: *const u8, left: usize, _: &(), _: usize, _: usize) -> [__m512i; 2] {
        // SAFETY: all loads lie within the unit; the features are the caller's promise.
        unsafe {
            let sign = _mm512_set1_epi8(-128);
            let b01 = two_blocks::<TAIL>(p, 2, left);
            let b23 = two_blocks::<TAIL>(p, 70, left);
            let lo = _mm512_xor_si512(_mm512_shuffle_i64x2::<0x88>(b01, b23), sign);
            let hi = _mm512_xor_si512(_mm512_shuffle_i64x2::<0xdd>(b01, b23), sign);
            [lo, hi]
        }
    }

    #[inline(always)]
    unsafe fn scales<const TAIL: bool>(rows: &[*const u8; 4], left: usize, _: &(), _: usize) -> Scales {
        // The words 0, 17, 34, 51 of the unit: two in the load at 0, two in the load at 64.
        static D: Indices<u16, 32> = Indices([
            0, 0, 0, 0, 17, 17, 17, 17, 34, 34, 34, 34, 51, 51, 51, 51, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ]);
        // SAFETY: as above.
        unsafe {
            let d = f16s::<TAIL>(rows, 64, &D, left);
            Scales { d, d_hi: d, m: zero(), m_hi: zero() }
        }
    }
}

/// The types of 256 weights a block: a unit is a block, two steps. Rows have whole blocks: there is no tail.
///
/// `$scales` reads the scales of a row's block, 16 floats, and its offsets if it has some: scales and offsets are taken
/// from it for step `$s` with `spread`, each of four rows. `$q` reads integers.
macro_rules! unpack_256 {
    ($block:ident, |$p:ident, $s:ident| $q:expr, scales: $scales:ident -> $n:literal, |$shared:ident, $t:ident|
     d: $d:expr $(, d_hi: $d_hi:expr)? $(, m: $m:expr)? $(, m_hi: $m_hi:expr)?) => {
        impl Unpack for $block {
            const UNIT: usize = size_of::<$block>();
            const STEPS: usize = 2;
            type Shared = [[__m512; 4]; $n];

            #[inline(always)]
            unsafe fn shared(rows: &[*const u8; 4]) -> Self::Shared {
                // SAFETY: whole blocks; the features are the caller's promise.
                unsafe {
                    let mut shared = [[zero(); 4]; $n];
                    for i in 0..4 {
                        let numbers: [__m512; $n] = $scales(rows[i]);
                        for n in 0..$n {
                            shared[n][i] = numbers[n];
                        }
                    }
                    shared
                }
            }

            #[inline(always)]
            unsafe fn integers<const TAIL: bool>(
                $p: *const u8,
                _: usize,
                _: &Self::Shared,
                _: usize,
                $s: usize,
            ) -> [__m512i; 2] {
                // SAFETY: all reads lie in the block; the features are the caller's promise.
                unsafe { $q }
            }

            #[inline(always)]
            unsafe fn scales<const TAIL: bool>(
                _: &[*const u8; 4],
                _: usize,
                $shared: &Self::Shared,
                $t: usize,
            ) -> Scales {
                // SAFETY: as above.
                unsafe {
                    #[allow(unused_mut)]
                    let mut scales = Scales { d: $d, d_hi: zero(), m: zero(), m_hi: zero() };
                    $(scales.d_hi = $d_hi;)?
                    $(scales.m = $m;)?
                    $(scales.m_hi = $m_hi;)?
                    scales
                }
            }
        }
    };
}

/// One f16 in all lanes.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn scale(p: *const u8, at: usize) -> __m512 {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(p.add(at).cast::<i16>().read_unaligned())) }
}

/// 16 signed bytes as floats.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn floats(bytes: __m128i) -> __m512 {
    // SAFETY: the features are the caller's promise.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)) }
}

/// The 6-bit scales and minima of a Q4_K or Q5_K block: lanes 0..8 are `d * scale`, lanes 8..16 `-dmin * min`.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn scales_6bit(p: *const u8) -> [__m512; 1] {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let first = _mm256_castsi128_si256(_mm_loadu_si128(p.cast()));
        let numbers = floats(_mm256_castsi256_si128(x86::scales_mins_6bit(first)));
        // d in the lanes of the scales, -dmin in those of the minima
        let both = p.cast::<u32>().read_unaligned() ^ 0x8000_0000;
        let both = _mm512_cvtph_ps(_mm256_set1_epi32(both as i32));
        let pick = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        [_mm512_mul_ps(numbers, _mm512_permutexvar_ps(pick, both))]
    }
}

/// Q6_K: 16 signed bytes.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn scales_8bit(p: *const u8) -> [__m512; 1] {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe { [_mm512_mul_ps(floats(_mm_loadu_si128(p.add(192).cast())), scale(p, 208))] }
}

/// Q2_K: 16 scales and 16 minima of 4 bits.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn scales_4bit(p: *const u8) -> [__m512; 2] {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        let scales = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)));
        let mins = _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes));
        let minus = _mm512_sub_ps(zero(), scale(p, 82));
        [_mm512_mul_ps(scales, scale(p, 80)), _mm512_mul_ps(mins, minus)]
    }
}

/// Q3_K: 16 scales of 6 bits, raised by 32.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn scales_q3(p: *const u8) -> [__m512; 1] {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe { [_mm512_mul_ps(floats(x86::scales_q3(p)), scale(p, 108))] }
}

/// IQ4_XS: 8 scales of 6 bits, raised by 32.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn scales_iq4(p: *const u8) -> [__m512; 1] {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe { [_mm512_mul_ps(floats(x86::scales_iq4_xs(p)), scale(p, 0))] }
}

/// Bytes that hold groups 0 | 2 and 1 | 3, to first and second halves.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn halves_of_chunks(even: __m512i, odd: __m512i) -> [__m512i; 2] {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
        let second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
        [_mm512_permutex2var_epi64(even, first, odd), _mm512_permutex2var_epi64(even, second, odd)]
    }
}

/// Groups 0, 1 and groups 2, 3 to first and second halves.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn halves_of_pairs(g01: __m512i, g23: __m512i) -> [__m512i; 2] {
    // SAFETY: the features are the caller's promise.
    unsafe { [_mm512_shuffle_i64x2::<0x88>(g01, g23), _mm512_shuffle_i64x2::<0xdd>(g01, g23)] }
}

/// `value` in the bytes of 32-byte half `h` of which bit `bits[h]` of `z` is set, else zero.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn where_bit(z: __m512i, bits: [usize; 2], value: i8) -> __m512i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let (a, b) = ((1u32 << bits[0]) as i8, (1u32 << bits[1]) as i8);
        let bit = _mm512_inserti64x4::<1>(_mm512_set1_epi8(a), _mm256_set1_epi8(b));
        _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(z, bit), _mm512_set1_epi8(value))
    }
}

/// Groups 0 to 3 of a half whose 32 bytes hold two bits of each: as bytes, groups 0 | 1 and 2 | 3.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given and with `TAIL` within `left` bytes, lies in the unit at each pointer.
#[inline(always)]
unsafe fn two_bits(p: *const u8, at: usize) -> (__m512i, __m512i) {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let qs = load_twice(p, at);
        let three = _mm512_set1_epi8(3);
        let by01 = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(2));
        let by23 = _mm512_inserti64x4::<1>(_mm512_set1_epi16(4), _mm256_set1_epi16(6));
        let g01 = _mm512_and_si512(_mm512_srlv_epi16(qs, by01), three);
        let g23 = _mm512_and_si512(_mm512_srlv_epi16(qs, by23), three);
        (g01, g23)
    }
}

/// Bit offsets that bring bits `2j` and `2j + 1` of each byte to bits 4 and 5, `j = from` in the first 32 bytes, `from + 1`
/// in the others.
const fn high_pairs(from: usize) -> Indices<u8, 64> {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        out[i] = ((8 * (i % 8) + 2 * (from + i / 32) + 60) % 64) as u8;
        i += 1;
    }
    Indices(out)
}

unpack_256!(BlockQ4_K, |p, s| {
    let qs = load::<false>(p, 16 + 64 * s, 0);
    halves_of_chunks(low_nibbles(qs), high_nibbles(qs))
}, scales: scales_6bit -> 1, |numbers, s| d: spread(&numbers[0], 4 * s, 1), m: spread(&numbers[0], 8 + 4 * s, 1));

unpack_256!(BlockQ5_K, |p, s| {
    let qs = load::<false>(p, 48 + 64 * s, 0);
    let qh = load_twice(p, 16);
    let even = _mm512_or_si512(low_nibbles(qs), where_bit(qh, [4 * s, 4 * s + 2], 16));
    let odd = _mm512_or_si512(high_nibbles(qs), where_bit(qh, [4 * s + 1, 4 * s + 3], 16));
    halves_of_chunks(even, odd)
}, scales: scales_6bit -> 1, |numbers, s| d: spread(&numbers[0], 4 * s, 1), m: spread(&numbers[0], 8 + 4 * s, 1));

unpack_256!(BlockQ6_K, |p, s| {
    static G01: Indices<u8, 64> = high_pairs(0);
    static G23: Indices<u8, 64> = high_pairs(2);
    let ql = load::<false>(p, 64 * s, 0);
    let qh = load_twice(p, 128 + 32 * s);
    let high = _mm512_set1_epi8(0x30);
    let g01 = _mm512_and_si512(_mm512_multishift_epi64_epi8(G01.get(), qh), high);
    let g23 = _mm512_and_si512(_mm512_multishift_epi64_epi8(G23.get(), qh), high);
    halves_of_pairs(_mm512_or_si512(low_nibbles(ql), g01), _mm512_or_si512(high_nibbles(ql), g23))
}, scales: scales_8bit -> 1, |numbers, s| d: spread(&numbers[0], 8 * s, 2), d_hi: spread(&numbers[0], 8 * s + 1, 2));

unpack_256!(BlockQ2_K, |p, s| {
    let (g01, g23) = two_bits(p, 16 + 32 * s);
    halves_of_pairs(g01, g23)
}, scales: scales_4bit -> 2, |numbers, s|
    d: spread(&numbers[0], 8 * s, 2), d_hi: spread(&numbers[0], 8 * s + 1, 2),
    m: spread(&numbers[1], 8 * s, 2), m_hi: spread(&numbers[1], 8 * s + 1, 2));

unpack_256!(BlockQ3_K, |p, s| {
    let (g01, g23) = two_bits(p, 32 + 32 * s);
    let hmask = load_twice(p, 0);
    let g01 = _mm512_or_si512(g01, where_bit(hmask, [4 * s, 4 * s + 1], 4));
    let g23 = _mm512_or_si512(g23, where_bit(hmask, [4 * s + 2, 4 * s + 3], 4));
    halves_of_pairs(g01, g23)
}, scales: scales_q3 -> 1, |numbers, s| d: spread(&numbers[0], 8 * s, 2), d_hi: spread(&numbers[0], 8 * s + 1, 2));

unpack_256!(BlockIQ4_XS, |p, s| {
    let qs = load::<false>(p, 8 + 64 * s, 0);
    let codes = table(&IQ4_TABLE);
    [_mm512_shuffle_epi8(codes, low_nibbles(qs)), _mm512_shuffle_epi8(codes, high_nibbles(qs))]
}, scales: scales_iq4 -> 1, |numbers, s| d: spread(&numbers[0], 4 * s, 1));

/// What the steps of four blocks of a codebook share: their words of the codebook, `N` registers a row, their signs, and
/// the scales of each row.
///
/// The words are looked up in registers, 64 at a time: `vpermi2b` goes through 128 bytes. Gathers from memory take a load
/// for each word, and on some CPUs much more.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Codes<const N: usize> {
    /// Words of 8 or of 4 weights, in the order of [`eights`] or [`fours`].
    words: [[__m512i; N]; 4],
    /// `[pair of rows]`: a bit a weight, 64 of row 0 or 2 for each half of each step, then as many of row 1 or 3.
    signs: [__m512i; 2],
    d: [__m512; 4],
}

impl<const N: usize> Codes<N> {
    /// Nothing yet.
    // SAFETY: registers, for which zeros are a value.
    const ZERO: Self = unsafe { std::mem::zeroed() };
}

/// A codebook of `N` words, a plane for the low bytes and one for the high bytes.
#[repr(C, align(64))]
struct Codebook<const N: usize>([[u8; N]; 2]);

const fn planes<const N: usize>(words: &[u16; N]) -> Codebook<N> {
    let mut out = [[0; N]; 2];
    let mut i = 0;
    while i < N {
        [out[0][i], out[1][i]] = words[i].to_le_bytes();
        i += 1;
    }
    Codebook(out)
}

static IQ2_XXS: Codebook<256> = planes(&grids::IQ2_XXS);
static IQ2_XS: Codebook<512> = planes(&grids::IQ2_XS);
static IQ2_S: Codebook<1024> = planes(&grids::IQ2_S);
static IQ3_XXS: Codebook<256> = planes(&grids::IQ3_XXS);
static IQ3_S: Codebook<512> = planes(&grids::IQ3_S);

impl<const N: usize> Codebook<N> {
    /// The low and the high bytes of 64 words, whose numbers have these low bytes and, where there are more than 256 words,
    /// bit 8 and bit 9 in the masks.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    #[inline(always)]
    unsafe fn look_up(&self, low: __m512i, bit_8: u64, bit_9: u64) -> [__m512i; 2] {
        // SAFETY: the features are the caller's promise; `of_256` is asked for parts that there are.
        unsafe {
            let mut out = [_mm512_setzero_si512(); 2];
            for plane in 0..2 {
                let mut quarters = [_mm512_setzero_si512(); 4];
                for i in 0..N / 256 {
                    quarters[i] = of_256(self.0[plane].as_ptr().add(256 * i), low);
                }
                for i in 0..N / 512 {
                    quarters[i] = _mm512_mask_blend_epi8(bit_8, quarters[2 * i], quarters[2 * i + 1]);
                }
                out[plane] =
                    if N > 512 { _mm512_mask_blend_epi8(bit_9, quarters[0], quarters[1]) } else { quarters[0] };
            }
            out
        }
    }
}

/// 64 of 256 bytes.
///
/// # Safety
/// - The CPU has the features of the set.
/// - `table` is valid for reads of 256 bytes, and aligned to 64.
#[inline(always)]
unsafe fn of_256(table: *const u8, at: __m512i) -> __m512i {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut parts = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            parts[i] = _mm512_load_si512(table.add(64 * i).cast());
        }
        let lower = _mm512_permutex2var_epi8(parts[0], at, parts[1]);
        let upper = _mm512_permutex2var_epi8(parts[2], at, parts[3]);
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(at), lower, upper)
    }
}

/// Indices of 32 bytes of the words of 8 weights of one of two rows, from their low and high bytes: for each half of a step
/// 16 bytes, the first words of the four groups and then the second, see [`eights`].
const fn words_of_eight(row: usize) -> Indices<u8, 64> {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        let (step, half, word, group) = (i / 32, i / 16 % 2, i / 8 % 2, i / 2 % 4);
        out[i] = (i % 2 * 64 + 32 * row + 16 * step + 4 * group + 2 * half + word) as u8;
        i += 1;
    }
    Indices(out)
}

/// Indices of the words of 4 weights of one step of a row, from their low and high bytes: for each half 32 bytes, groups 0
/// and 2 and then 1 and 3, see [`fours`].
const fn words_of_four(step: usize) -> Indices<u8, 64> {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        let (half, group, word) = (i / 32, i / 16 % 2 + i / 4 % 2 * 2, i / 8 % 2 * 2 + i / 2 % 2);
        out[i] = (i % 2 * 64 + 32 * step + 8 * group + 4 * half + word) as u8;
        i += 1;
    }
    Indices(out)
}

/// Indices of the bytes of signs of two rows, so that eight of them are the signs of a half of a step.
const fn halves_of_signs() -> Indices<u8, 64> {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        let (row_and_step, half, group, word) = (i / 16, i / 8 % 2, i / 2 % 4, i % 2);
        out[i] = (16 * row_and_step + 4 * group + 2 * half + word) as u8;
        i += 1;
    }
    Indices(out)
}

/// The 128 bytes of signs with an even number of negative ones, by their first seven bits.
#[repr(C, align(64))]
struct EvenSigns([u8; 128]);

static EVEN_SIGNS: EvenSigns = {
    let mut out = [0; 128];
    let mut i = 0u8;
    while i < 128 {
        out[i as usize] = i | (i.count_ones() as u8 & 1) << 7;
        i += 1;
    }
    EvenSigns(out)
};

/// Bytes of signs from bytes whose lower seven bits they are.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn even_signs(seven: __m512i) -> __m512i {
    // SAFETY: 128 bytes are there; the features are the caller's promise.
    unsafe {
        let table = EVEN_SIGNS.0.as_ptr();
        let (first, second) = (_mm512_load_si512(table.cast()), _mm512_load_si512(table.add(64).cast()));
        _mm512_permutex2var_epi8(first, seven, second)
    }
}

/// The same of dwords of 4 x 7 bits.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn even_signs_of_words(words: __m512i) -> __m512i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let fields = _mm512_set1_epi64(i64::from_le_bytes([0, 7, 14, 21, 32, 39, 46, 53]));
        even_signs(_mm512_multishift_epi64_epi8(fields, words))
    }
}

/// 64 of the values of a codebook, raised by `bias`, over and over: only the lowest bits of an index count.
const fn values<const N: usize>(values: [u8; N], bias: u8) -> Indices<u8, 64> {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        let at = i % N.next_power_of_two();
        out[i] = bias + if at < N { values[at] } else { 0 };
        i += 1;
    }
    Indices(out)
}

static IQ2_VALUES: Indices<u8, 64> = values(grids::IQ2_VALUES, BlockIQ2_XXS::BIAS);
static IQ3_XXS_VALUES: Indices<u8, 64> = values(grids::IQ3_XXS_VALUES, BlockIQ3_XXS::BIAS);
static IQ3_S_VALUES: Indices<u8, 64> = values(grids::IQ3_S_VALUES, BlockIQ3_S::BIAS);

/// The integers of step `s` of row `i` from words of 8 weights.
///
/// The words of a half of a step are read from memory into all lanes, which takes no shuffle; a shift then brings the two
/// of its group to each lane.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn eights(codes: &Codes<1>, values: &Indices<u8, 64>, bias: u8, i: usize, s: usize) -> [__m512i; 2] {
    static FIELDS: Indices<u8, 64> = {
        let mut out = [0; 64];
        let mut i = 0;
        while i < 64 {
            out[i] = (i / 16 * 16 + 2 * (i % 8)) as u8;
            i += 1;
        }
        Indices(out)
    };
    // SAFETY: 16 of the 64 bytes of a row; the features are the caller's promise.
    unsafe {
        let mut out = [_mm512_setzero_si512(); 2];
        for half in 0..2 {
            let words = codes.words[i].as_ptr().cast::<__m128i>().add(2 * s + half);
            let words = _mm512_broadcast_i32x4(words.read());
            out[half] = with_signs(codes, FIELDS.get(), words, values, bias, i, 2 * s + half);
        }
        out
    }
}

/// The same from words of 4 weights.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn fours(codes: &Codes<2>, values: &Indices<u8, 64>, bias: u8, i: usize, s: usize) -> [__m512i; 2] {
    static FIELDS: Indices<u8, 64> = {
        let mut out = [0; 64];
        let mut i = 0;
        while i < 64 {
            out[i] = (i / 32 * 32 + 4 * (i % 8)) as u8;
            i += 1;
        }
        Indices(out)
    };
    // SAFETY: 32 of the 128 bytes of a row; the features are the caller's promise.
    unsafe {
        let mut out = [_mm512_setzero_si512(); 2];
        for half in 0..2 {
            let words = codes.words[i].as_ptr().cast::<__m256i>().add(2 * s + half);
            let words = _mm512_broadcast_i64x4(words.read());
            out[half] = with_signs(codes, FIELDS.get(), words, values, bias, i, 2 * s + half);
        }
        out
    }
}

/// The values of `words`, whose indices begin at the bits `fields`, negative where the signs of half `at` of row `i` say so.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn with_signs<const N: usize>(
    codes: &Codes<N>,
    fields: __m512i,
    words: __m512i,
    values: &Indices<u8, 64>,
    bias: u8,
    i: usize,
    at: usize,
) -> __m512i {
    // SAFETY: 8 of the 128 bytes of signs; the features are the caller's promise.
    unsafe {
        let raised = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(fields, words), values.get());
        let negative = codes.signs.as_ptr().cast::<u64>().add(4 * i + at).read();
        _mm512_mask_sub_epi8(raised, negative, _mm512_set1_epi8((2 * bias) as i8), raised)
    }
}

/// 32 bytes of each of two rows.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read from `at` on lies in the block at each pointer.
#[inline(always)]
unsafe fn load_two(rows: &[*const u8; 4], pair: usize, at: usize) -> __m512i {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let first = _mm512_castsi256_si512(_mm256_loadu_si256(rows[2 * pair].add(at).cast()));
        _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(rows[2 * pair + 1].add(at).cast()))
    }
}

/// Puts the words of 8 weights of two rows, from their low and high bytes, and their signs where [`eights`] reads them.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn put_eights(codes: &mut Codes<1>, pair: usize, words: [__m512i; 2], signs: __m512i) {
    static FIRST: Indices<u8, 64> = words_of_eight(0);
    static SECOND: Indices<u8, 64> = words_of_eight(1);
    // SAFETY: the features are the caller's promise.
    unsafe {
        codes.words[2 * pair] = [_mm512_permutex2var_epi8(words[0], FIRST.get(), words[1])];
        codes.words[2 * pair + 1] = [_mm512_permutex2var_epi8(words[0], SECOND.get(), words[1])];
        put_signs(codes, pair, signs);
    }
}

/// Puts the signs of two rows where [`with_signs`] reads them.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn put_signs<const N: usize>(codes: &mut Codes<N>, pair: usize, signs: __m512i) {
    static SIGNS: Indices<u8, 64> = halves_of_signs();
    // SAFETY: the features are the caller's promise.
    unsafe { codes.signs[pair] = _mm512_permutexvar_epi8(SIGNS.get(), signs) }
}

/// Puts the words of 4 weights of a row, from their low and high bytes, where [`fours`] reads them.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn put_fours(codes: &mut Codes<2>, i: usize, words: [__m512i; 2]) {
    static FIRST: Indices<u8, 64> = words_of_four(0);
    static SECOND: Indices<u8, 64> = words_of_four(1);
    // SAFETY: the features are the caller's promise.
    unsafe {
        codes.words[i] = [
            _mm512_permutex2var_epi8(words[0], FIRST.get(), words[1]),
            _mm512_permutex2var_epi8(words[0], SECOND.get(), words[1]),
        ];
    }
}

/// `by * (n + 1/2)`
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn and_a_half(n: __m512i, by: __m512) -> __m512 {
    // SAFETY: the features are the caller's promise.
    unsafe { _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(n), _mm512_set1_ps(0.5)), by) }
}

/// 16 nibbles at `p`.
///
/// # Safety
/// - The CPU has the features of the set.
/// - `p` is valid for reads of 8 bytes.
#[inline(always)]
unsafe fn sixteen_nibbles(p: *const u8) -> __m512i {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let bytes = _mm_loadl_epi64(p.cast());
        let both = _mm_unpacklo_epi8(bytes, _mm_srli_epi16::<4>(bytes));
        _mm512_cvtepu8_epi32(_mm_and_si128(both, _mm_set1_epi8(15)))
    }
}

/// IQ2_XXS.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn codes_iq2_xxs(rows: &[*const u8; 4]) -> Codes<1> {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut codes = Codes::ZERO;
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        for pair in 0..2 {
            let (a, b) = (load::<false>(rows[2 * pair], 2, 0), load::<false>(rows[2 * pair + 1], 2, 0));
            let indices = _mm512_permutex2var_epi32(a, even, b);
            let words = _mm512_permutex2var_epi32(a, odd, b);
            put_eights(&mut codes, pair, IQ2_XXS.look_up(indices, 0, 0), even_signs_of_words(words));
            for (i, z) in [(2 * pair, a), (2 * pair + 1, b)] {
                let quarter = _mm512_mul_ps(scale(rows[i], 0), _mm512_set1_ps(0.25));
                codes.d[i] = and_a_half(_mm512_srli_epi32::<28>(z), quarter);
            }
        }
        codes
    }
}

/// IQ2_XS.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn codes_iq2_xs(rows: &[*const u8; 4]) -> Codes<1> {
    static LOW: Indices<u8, 64> = {
        let mut out = [0; 64];
        let mut i = 0;
        while i < 64 {
            out[i] = 2 * i as u8;
            i += 1;
        }
        Indices(out)
    };
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut codes = Codes::ZERO;
        let one = _mm512_set1_epi8(1);
        for pair in 0..2 {
            let (a, b) = (load::<false>(rows[2 * pair], 2, 0), load::<false>(rows[2 * pair + 1], 2, 0));
            let low = _mm512_permutex2var_epi8(a, LOW.get(), b);
            let high = _mm512_permutex2var_epi8(a, _mm512_add_epi8(LOW.get(), one), b);
            let words = IQ2_XS.look_up(low, _mm512_test_epi8_mask(high, one), 0);
            put_eights(&mut codes, pair, words, even_signs(_mm512_srli_epi16::<1>(high)));
            for i in 2 * pair..2 * pair + 2 {
                let quarter = _mm512_mul_ps(scale(rows[i], 0), _mm512_set1_ps(0.25));
                codes.d[i] = and_a_half(sixteen_nibbles(rows[i].add(66)), quarter);
            }
        }
        codes
    }
}

/// IQ2_S.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn codes_iq2_s(rows: &[*const u8; 4]) -> Codes<1> {
    static EACH_FOUR: Indices<u8, 64> = {
        let mut out = [0; 64];
        let mut i = 0;
        while i < 64 {
            out[i] = i as u8 / 4;
            i += 1;
        }
        Indices(out)
    };
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut codes = Codes::ZERO;
        for pair in 0..2 {
            let (a, b) = (rows[2 * pair].add(66).cast(), rows[2 * pair + 1].add(66).cast());
            let qh = _mm_unpacklo_epi64(_mm_loadl_epi64(a), _mm_loadl_epi64(b));
            let qh = _mm512_permutexvar_epi8(EACH_FOUR.get(), _mm512_castsi128_si512(qh));
            let bit_8 = _mm512_test_epi8_mask(qh, _mm512_set1_epi32(0x4010_0401));
            let bit_9 = _mm512_test_epi8_mask(qh, _mm512_set1_epi32(0x8020_0802u32 as i32));
            let words = IQ2_S.look_up(load_two(rows, pair, 2), bit_8, bit_9);
            put_eights(&mut codes, pair, words, load_two(rows, pair, 34));
            for i in 2 * pair..2 * pair + 2 {
                let quarter = _mm512_mul_ps(scale(rows[i], 0), _mm512_set1_ps(0.25));
                codes.d[i] = and_a_half(sixteen_nibbles(rows[i].add(74)), quarter);
            }
        }
        codes
    }
}

/// IQ3_XXS.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn codes_iq3_xxs(rows: &[*const u8; 4]) -> Codes<2> {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut codes = Codes::ZERO;
        for pair in 0..2 {
            put_signs(&mut codes, pair, even_signs_of_words(load_two(rows, pair, 66)));
        }
        for i in 0..4 {
            put_fours(&mut codes, i, IQ3_XXS.look_up(load::<false>(rows[i], 2, 0), 0, 0));
            let words = _mm512_castsi256_si512(_mm256_loadu_si256(rows[i].add(66).cast()));
            let half = _mm512_mul_ps(scale(rows[i], 0), _mm512_set1_ps(0.5));
            codes.d[i] = and_a_half(_mm512_srli_epi32::<28>(words), half);
        }
        codes
    }
}

/// IQ3_S.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn codes_iq3_s(rows: &[*const u8; 4]) -> Codes<2> {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut codes = Codes::ZERO;
        for pair in 0..2 {
            put_signs(&mut codes, pair, load_two(rows, pair, 74));
        }
        for i in 0..4 {
            let bit_8 = rows[i].add(66).cast::<u64>().read_unaligned();
            put_fours(&mut codes, i, IQ3_S.look_up(load::<false>(rows[i], 2, 0), bit_8, 0));
            let nibbles = _mm512_set1_epi32(rows[i].add(106).cast::<i32>().read_unaligned());
            let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0);
            let nibbles = _mm512_and_si512(_mm512_srlv_epi32(nibbles, shifts), _mm512_set1_epi32(15));
            // d * (2 s + 1) = 2 d * (s + 1/2)
            let twice = _mm512_add_ps(scale(rows[i], 0), scale(rows[i], 0));
            codes.d[i] = and_a_half(nibbles, twice);
        }
        codes
    }
}

/// The types with a codebook: `$first` and `$stride` are where the scales of a step begin, and from one group to the next.
macro_rules! unpack_codes {
    ($block:ident, words: $n:literal, $codes:ident, $integers:ident, $values:ident, d: |$s:ident| $first:expr, $stride:literal
     $(, d_hi: $second:expr)?) => {
        impl Unpack for $block {
            const UNIT: usize = size_of::<$block>();
            const STEPS: usize = 2;
            type Shared = Codes<$n>;

            #[inline(always)]
            unsafe fn shared(rows: &[*const u8; 4]) -> Codes<$n> {
                // SAFETY: whole blocks; the features are the caller's promise.
                unsafe { $codes(rows) }
            }

            #[inline(always)]
            unsafe fn integers<const TAIL: bool>(
                _: *const u8,
                _: usize,
                codes: &Codes<$n>,
                i: usize,
                s: usize,
            ) -> [__m512i; 2] {
                // In memory: taken apart in registers, the words would need a shuffle each to come to all lanes.
                let codes = std::hint::black_box(codes);
                // SAFETY: the features are the caller's promise.
                unsafe { $integers(codes, &$values, Self::BIAS, i, s) }
            }

            #[inline(always)]
            unsafe fn scales<const TAIL: bool>(
                _: &[*const u8; 4],
                _: usize,
                codes: &Codes<$n>,
                $s: usize,
            ) -> Scales {
                // SAFETY: as above.
                unsafe {
                    #[allow(unused_mut)]
                    let mut scales = Scales { d: spread(&codes.d, $first, $stride), d_hi: zero(), m: zero(), m_hi: zero() };
                    $(scales.d_hi = spread(&codes.d, $second, $stride);)?
                    scales
                }
            }
        }
    };
}

unpack_codes!(BlockIQ2_XXS, words: 1, codes_iq2_xxs, eights, IQ2_VALUES, d: |s| 8 * s + 1, 2);
unpack_codes!(BlockIQ2_XS, words: 1, codes_iq2_xs, eights, IQ2_VALUES, d: |s| 8 * s, 2, d_hi: 8 * s + 1);
unpack_codes!(BlockIQ2_S, words: 1, codes_iq2_s, eights, IQ2_VALUES, d: |s| 8 * s, 2, d_hi: 8 * s + 1);
unpack_codes!(BlockIQ3_XXS, words: 2, codes_iq3_xxs, fours, IQ3_XXS_VALUES, d: |s| 4 * s, 1);
unpack_codes!(BlockIQ3_S, words: 2, codes_iq3_s, fours, IQ3_S_VALUES, d: |s| 4 * s, 1);
