//! Blocks of each type -> registers, AVX-512 with VBMI.
//!
//! Every type is unpacked to the same form, a [`Step`] of 128 weights: four groups of 32, the first
//! halves of the groups in `lo`, the second halves in `hi`, one group a 128-bit lane, as unsigned bytes.
//! A dword of `dpbusd` then belongs to one group, so a scale vector repeats each group's scale four
//! times. The row kernel and the strip of a batch both start from here.

use std::arch::x86_64::*;

use crate::quant::*;

/// 128 weights: weight `k` of group `g` is `d * (q - BIAS) + m` with `q` in byte `16 * g + k % 16` of `lo` or `hi`.
#[derive(Clone, Copy)]
pub struct Step {
    pub lo: __m512i,
    pub hi: __m512i,
    /// Scales of `lo`; of `hi` as well unless `HALVES`. Each four times.
    pub d: __m512,
    pub d_hi: __m512,
    /// Offsets likewise, if `MINS`.
    pub m: __m512,
    pub m_hi: __m512,
}

impl Step {
    /// Nothing yet.
    // SAFETY: registers of integers and floats, for which zeros are a value.
    pub const ZERO: Self = unsafe { std::mem::zeroed() };
}

/// A quantised type that can be unpacked in units of some steps.
pub trait Unpack: Block {
    /// Bytes of a unit.
    const UNIT: usize;
    /// Steps of a unit.
    const STEPS: usize;
    /// Whether scales belong to 16 weights rather than 32.
    const HALVES: bool = false;
    /// Whether weights have an offset.
    const MINS: bool = false;
    /// What the steps of a unit share.
    type Shared: Copy;

    /// Reads what the steps of the unit at `p` share.
    ///
    /// # Safety
    /// - The CPU has the features of this module.
    /// - `p` is valid for `UNIT` bytes, or with `TAIL` for `left` bytes: what is past them reads as zero.
    unsafe fn shared<const TAIL: bool>(p: *const u8, left: usize) -> Self::Shared;

    /// Unpacks step `s` of the unit at `p`.
    ///
    /// # Safety
    /// As for `shared`.
    unsafe fn step<const TAIL: bool>(p: *const u8, left: usize, shared: &Self::Shared, s: usize) -> Step;
}

/// 64 bytes at `p + at`; with `TAIL` only those of the first `left` from `p`, then zeros.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn load<const TAIL: bool>(p: *const u8, at: usize, left: usize) -> __m512i {
    // SAFETY: the caller's promise about `p`; masked bytes are not accessed.
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
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn load_twice(p: *const u8, at: usize) -> __m512i {
    // SAFETY: the caller's promise about `p`.
    unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(p.add(at).cast())) }
}

#[repr(align(64))]
struct Indices<T, const N: usize>([T; N]);

impl<T, const N: usize> Indices<T, N> {
    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    fn get(&self) -> __m512i {
        // SAFETY: 64 bytes, aligned.
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
const fn dwords(block: usize, offset: usize) -> Indices<u8, 64> {
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

/// The four f16 that `words` index, as floats.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn scales4(z0: __m512i, z1: __m512i, at: &Indices<u16, 32>) -> __m512 {
    _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutex2var_epi16(z0, at.get(), z1)))
}

#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn low_nibbles(z: __m512i) -> __m512i {
    _mm512_and_si512(z, _mm512_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn high_nibbles(z: __m512i) -> __m512i {
    low_nibbles(_mm512_srli_epi16::<4>(z))
}

#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn zero() -> __m512 {
    _mm512_setzero_ps()
}

#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn table(codes: &[u8; 16]) -> __m512i {
    // SAFETY: 16 bytes are there.
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
            $(const MINS: bool = { let _: usize = $m; true };)?
            type Shared = ();

            #[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
            unsafe fn shared<const TAIL: bool>(_: *const u8, _: usize) {}

            #[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
            unsafe fn step<const TAIL: bool>(p: *const u8, left: usize, _: &(), _: usize) -> Step {
                const BLOCK: usize = size_of::<$block>();
                static QS: Indices<u8, 64> = quarters(BLOCK, $qs);
                static D: Indices<u16, 32> = words(BLOCK, $d);
                // SAFETY: both loads lie within the unit; the features are the caller's promise.
                unsafe {
                    let z0 = load::<TAIL>(p, 0, left);
                    let z1 = load::<TAIL>(p, 4 * BLOCK - 64, left);
                    let qs = _mm512_permutex2var_epi8(z0, QS.get(), z1);
                    let (lo, hi) = (low_nibbles(qs), high_nibbles(qs));
                    $(
                        static QH: Indices<u8, 64> = dwords(BLOCK, $qh);
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
                    let d = scales4(z0, z1, &D);
                    #[allow(unused_mut, unused_assignments)]
                    let mut m = zero();
                    $(
                        static M: Indices<u16, 32> = words(BLOCK, $m);
                        m = scales4(z0, z1, &M);
                    )?
                    Step { lo, hi, d, d_hi: d, m, m_hi: m }
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

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn shared<const TAIL: bool>(_: *const u8, _: usize) {}

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn step<const TAIL: bool>(p: *const u8, left: usize, _: &(), _: usize) -> Step {
        static QS: Indices<u8, 64> = quarters(17, 1);
        static E: Indices<u8, 64> = dwords(17, 0); // the exponent in the lowest byte of each dword
        // SAFETY: both loads lie within the unit; the features are the caller's promise.
        unsafe {
            let z0 = load::<TAIL>(p, 0, left);
            let z1 = load::<TAIL>(p, 4, left);
            let qs = _mm512_permutex2var_epi8(z0, QS.get(), z1);
            let codes = table(&MXFP4_TABLE);
            let e = _mm512_and_si512(_mm512_permutex2var_epi8(z0, E.get(), z1), _mm512_set1_epi32(255));
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
            let small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
            let bits = _mm512_mask_sllv_epi32(normal, small, _mm512_set1_epi32(0x0020_0000), e);
            let d = _mm512_castsi512_ps(bits);
            let (lo, hi) = (_mm512_shuffle_epi8(codes, low_nibbles(qs)), _mm512_shuffle_epi8(codes, high_nibbles(qs)));
            Step { lo, hi, d, d_hi: d, m: zero(), m_hi: zero() }
        }
    }
}

/// The 32 bytes at `p + at` of one Q8_0 block, and those of the next.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn two_blocks<const TAIL: bool>(p: *const u8, at: usize, left: usize) -> __m512i {
    // SAFETY: the caller's promise about `p`.
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

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn shared<const TAIL: bool>(_: *const u8, _: usize) {}

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn step<const TAIL: bool>(p: *const u8, left: usize, _: &(), _: usize) -> Step {
        // Scales are the words 0, 17, 34, 51 of the unit: two in the load at 0, two in the load at 64.
        static D: Indices<u16, 32> = Indices([
            0, 0, 0, 0, 17, 17, 17, 17, 34, 34, 34, 34, 51, 51, 51, 51, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ]);
        // SAFETY: all loads lie within the unit; the features are the caller's promise.
        unsafe {
            let sign = _mm512_set1_epi8(-128);
            let b01 = two_blocks::<TAIL>(p, 2, left);
            let b23 = two_blocks::<TAIL>(p, 70, left);
            let lo = _mm512_xor_si512(_mm512_shuffle_i64x2::<0x88>(b01, b23), sign);
            let hi = _mm512_xor_si512(_mm512_shuffle_i64x2::<0xdd>(b01, b23), sign);
            let d = scales4(load::<TAIL>(p, 0, left), load::<TAIL>(p, 64, left), &D);
            Step { lo, hi, d, d_hi: d, m: zero(), m_hi: zero() }
        }
    }
}

/// One f16 in all lanes.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn scale(p: *const u8, at: usize) -> __m512 {
    // SAFETY: the caller's promise about `p`.
    unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(p.add(at).cast::<i16>().read_unaligned())) }
}

/// Lane `first + stride * g` of `scales` in the four lanes of group `g`.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn spread(scales: __m512, first: usize, stride: usize) -> __m512 {
    let (f, s) = (first as i32, stride as i32);

    let of = _mm512_setr_epi32(
        f,
        f,
        f,
        f,
        f + s,
        f + s,
        f + s,
        f + s,
        f + 2 * s,
        f + 2 * s,
        f + 2 * s,
        f + 2 * s,
        f + 3 * s,
        f + 3 * s,
        f + 3 * s,
        f + 3 * s,
    );
    _mm512_permutexvar_ps(of, scales)
}

/// The 6-bit scales and minima of a Q4_K or Q5_K block: lanes 0..8 are `d * scale`, lanes 8..16 `-dmin * min`.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn scales_6bit(p: *const u8) -> __m512 {
    // SAFETY: `p` is a whole block.
    unsafe {
        let [a, b, c] = p.add(4).cast::<[u32; 3]>().read_unaligned();
        let low_scales = a & 0x3f3f_3f3f;
        let low_mins = b & 0x3f3f_3f3f;
        let high_scales = c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030;
        let high_mins = c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030;
        let bytes = _mm_setr_epi32(low_scales as i32, high_scales as i32, low_mins as i32, high_mins as i32);
        let numbers = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
        // d in the lanes of the scales, -dmin in those of the minima
        let both = p.cast::<u32>().read_unaligned() ^ 0x8000_0000;
        let both = _mm512_cvtph_ps(_mm256_set1_epi32(both as i32));
        let pick = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        _mm512_mul_ps(numbers, _mm512_permutexvar_ps(pick, both))
    }
}

/// Low and high nibbles of 64 bytes that hold groups 0 | 2 (low) and 1 | 3 (high), to first and second halves.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn halves_of_chunks(even: __m512i, odd: __m512i) -> (__m512i, __m512i) {
    let first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    let second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    (_mm512_permutex2var_epi64(even, first, odd), _mm512_permutex2var_epi64(even, second, odd))
}

/// Groups 0, 1 and groups 2, 3 to first and second halves.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn halves_of_pairs(g01: __m512i, g23: __m512i) -> (__m512i, __m512i) {
    (_mm512_shuffle_i64x2::<0x88>(g01, g23), _mm512_shuffle_i64x2::<0xdd>(g01, g23))
}

/// `value` in the bytes of 32-byte half `h` of which bit `bits[h]` of `z` is set, else zero.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn where_bit(z: __m512i, bits: [u32; 2], value: i8) -> __m512i {
    let (a, b) = ((1u32 << bits[0]) as i8, (1u32 << bits[1]) as i8);
    let bit = _mm512_inserti64x4::<1>(_mm512_set1_epi8(a), _mm256_set1_epi8(b));
    _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(z, bit), _mm512_set1_epi8(value))
}

impl Unpack for BlockQ4_K {
    const UNIT: usize = 144;
    const STEPS: usize = 2;
    const MINS: bool = true;
    type Shared = __m512;

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn shared<const TAIL: bool>(p: *const u8, _: usize) -> __m512 {
        // SAFETY: `p` is a whole block: rows of this type have no tail.
        unsafe { scales_6bit(p) }
    }

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn step<const TAIL: bool>(p: *const u8, _: usize, shared: &__m512, s: usize) -> Step {
        // SAFETY: as above.
        unsafe {
            let qs = load::<false>(p, 16 + 64 * s, 0);
            let (lo, hi) = halves_of_chunks(low_nibbles(qs), high_nibbles(qs));
            let (d, m) = (spread(*shared, 4 * s, 1), spread(*shared, 8 + 4 * s, 1));
            Step { lo, hi, d, d_hi: d, m, m_hi: m }
        }
    }
}

impl Unpack for BlockQ5_K {
    const UNIT: usize = 176;
    const STEPS: usize = 2;
    const MINS: bool = true;
    type Shared = __m512;

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn shared<const TAIL: bool>(p: *const u8, _: usize) -> __m512 {
        // SAFETY: `p` is a whole block: rows of this type have no tail.
        unsafe { scales_6bit(p) }
    }

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn step<const TAIL: bool>(p: *const u8, _: usize, shared: &__m512, s: usize) -> Step {
        // SAFETY: as above.
        unsafe {
            let qs = load::<false>(p, 48 + 64 * s, 0);
            let qh = load_twice(p, 16);
            let g = 4 * s as u32;
            let even = _mm512_or_si512(low_nibbles(qs), where_bit(qh, [g, g + 2], 16));
            let odd = _mm512_or_si512(high_nibbles(qs), where_bit(qh, [g + 1, g + 3], 16));
            let (lo, hi) = halves_of_chunks(even, odd);
            let (d, m) = (spread(*shared, 4 * s, 1), spread(*shared, 8 + 4 * s, 1));
            Step { lo, hi, d, d_hi: d, m, m_hi: m }
        }
    }
}

impl Unpack for BlockQ6_K {
    const UNIT: usize = 210;
    const STEPS: usize = 2;
    const HALVES: bool = true;
    type Shared = __m512;

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn shared<const TAIL: bool>(p: *const u8, _: usize) -> __m512 {
        // SAFETY: `p` is a whole block: rows of this type have no tail.
        unsafe {
            let scales = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.add(192).cast()));
            _mm512_mul_ps(_mm512_cvtepi32_ps(scales), scale(p, 208))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn step<const TAIL: bool>(p: *const u8, _: usize, shared: &__m512, s: usize) -> Step {
        /// Bit offsets that bring bits `2j` and `2j + 1` of each byte to bits 4 and 5, `j = from` in the first
        /// 32 bytes, `from + 1` in the others.
        const fn pairs(from: usize) -> Indices<u8, 64> {
            let mut out = [0; 64];
            let mut i = 0;
            while i < 64 {
                out[i] = ((8 * (i % 8) + 2 * (from + i / 32) + 60) % 64) as u8;
                i += 1;
            }
            Indices(out)
        }
        static G01: Indices<u8, 64> = pairs(0);
        static G23: Indices<u8, 64> = pairs(2);
        // SAFETY: as above.
        unsafe {
            let ql = load::<false>(p, 64 * s, 0);
            let qh = load_twice(p, 128 + 32 * s);
            let high = _mm512_set1_epi8(0x30);
            let g01 = _mm512_and_si512(_mm512_multishift_epi64_epi8(G01.get(), qh), high);
            let g23 = _mm512_and_si512(_mm512_multishift_epi64_epi8(G23.get(), qh), high);
            let (lo, hi) =
                halves_of_pairs(_mm512_or_si512(low_nibbles(ql), g01), _mm512_or_si512(high_nibbles(ql), g23));
            let (d, d_hi) = (spread(*shared, 8 * s, 2), spread(*shared, 8 * s + 1, 2));
            Step { lo, hi, d, d_hi, m: zero(), m_hi: zero() }
        }
    }
}

/// Groups 0 to 3 of a half whose 32 bytes hold two bits of each: as bytes, groups 0 | 1 and 2 | 3.
#[inline]
#[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
unsafe fn two_bits(p: *const u8, at: usize) -> (__m512i, __m512i) {
    // SAFETY: the caller's promise about `p`.
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

impl Unpack for BlockQ2_K {
    const UNIT: usize = 84;
    const STEPS: usize = 2;
    const HALVES: bool = true;
    const MINS: bool = true;
    type Shared = (__m512, __m512);

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn shared<const TAIL: bool>(p: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: `p` is a whole block: rows of this type have no tail.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let scales = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)));
            let mins = _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes));
            let minus = _mm512_sub_ps(zero(), scale(p, 82));
            (_mm512_mul_ps(scales, scale(p, 80)), _mm512_mul_ps(mins, minus))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn step<const TAIL: bool>(p: *const u8, _: usize, (scales, mins): &(__m512, __m512), s: usize) -> Step {
        // SAFETY: as above.
        unsafe {
            let (g01, g23) = two_bits(p, 16 + 32 * s);
            let (lo, hi) = halves_of_pairs(g01, g23);
            let (d, d_hi) = (spread(*scales, 8 * s, 2), spread(*scales, 8 * s + 1, 2));
            let (m, m_hi) = (spread(*mins, 8 * s, 2), spread(*mins, 8 * s + 1, 2));
            Step { lo, hi, d, d_hi, m, m_hi }
        }
    }
}

impl Unpack for BlockQ3_K {
    const UNIT: usize = 110;
    const STEPS: usize = 2;
    const HALVES: bool = true;
    type Shared = __m512;

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn shared<const TAIL: bool>(p: *const u8, _: usize) -> __m512 {
        // SAFETY: `p` is a whole block: rows of this type have no tail.
        unsafe {
            let [a, b, c] = p.add(96).cast::<[u32; 3]>().read_unaligned();
            let (nibbles, pairs) = (0x0f0f_0f0f, 0x0303_0303);
            let bytes = _mm_setr_epi32(
                (a & nibbles | (c & pairs) << 4) as i32,
                (b & nibbles | (c >> 2 & pairs) << 4) as i32,
                (a >> 4 & nibbles | (c >> 4 & pairs) << 4) as i32,
                (b >> 4 & nibbles | (c >> 6 & pairs) << 4) as i32,
            );
            let scales = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(32));
            _mm512_mul_ps(_mm512_cvtepi32_ps(scales), scale(p, 108))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn step<const TAIL: bool>(p: *const u8, _: usize, shared: &__m512, s: usize) -> Step {
        // SAFETY: as above.
        unsafe {
            let (g01, g23) = two_bits(p, 32 + 32 * s);
            let hmask = load_twice(p, 0);
            let g = 4 * s as u32;
            let g01 = _mm512_or_si512(g01, where_bit(hmask, [g, g + 1], 4));
            let g23 = _mm512_or_si512(g23, where_bit(hmask, [g + 2, g + 3], 4));
            let (lo, hi) = halves_of_pairs(g01, g23);
            let (d, d_hi) = (spread(*shared, 8 * s, 2), spread(*shared, 8 * s + 1, 2));
            Step { lo, hi, d, d_hi, m: zero(), m_hi: zero() }
        }
    }
}

impl Unpack for BlockIQ4_XS {
    const UNIT: usize = 136;
    const STEPS: usize = 2;
    type Shared = __m512;

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn shared<const TAIL: bool>(p: *const u8, _: usize) -> __m512 {
        // SAFETY: `p` is a whole block: rows of this type have no tail.
        unsafe {
            let low = _mm512_set1_epi32(p.add(4).cast::<i32>().read_unaligned());
            let high = _mm512_set1_epi32(i32::from(p.add(2).cast::<i16>().read_unaligned()));
            let i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0);
            let low = _mm512_and_si512(_mm512_srlv_epi32(low, _mm512_slli_epi32::<2>(i)), _mm512_set1_epi32(15));
            let high = _mm512_and_si512(_mm512_srlv_epi32(high, _mm512_slli_epi32::<1>(i)), _mm512_set1_epi32(3));
            let scales = _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
            let scales = _mm512_sub_epi32(scales, _mm512_set1_epi32(32));
            _mm512_mul_ps(_mm512_cvtepi32_ps(scales), scale(p, 0))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512vl,avx512dq,avx512vbmi,avx512vnni")]
    unsafe fn step<const TAIL: bool>(p: *const u8, _: usize, shared: &__m512, s: usize) -> Step {
        // SAFETY: as above.
        unsafe {
            let qs = load::<false>(p, 8 + 64 * s, 0);
            let codes = table(&IQ4_TABLE);
            let (lo, hi) = (_mm512_shuffle_epi8(codes, low_nibbles(qs)), _mm512_shuffle_epi8(codes, high_nibbles(qs)));
            let d = spread(*shared, 4 * s, 1);
            Step { lo, hi, d, d_hi: d, m: zero(), m_hi: zero() }
        }
    }
}
