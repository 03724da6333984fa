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

    /// The integers of step `s` of the unit at `p`: byte `16 * g + k` of the two registers is weight `k` and `16 + k` of
    /// group `g`.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - `p` is valid for reads of `UNIT` bytes, or with `TAIL` of `left` bytes: what is past them reads as zero.
    unsafe fn integers<const TAIL: bool>(p: *const u8, left: usize, s: usize) -> [__m512i; 2];

    /// The scales of step `s` of the units at `rows`, from which `shared` came.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - Each of `rows` is valid for reads as in `integers`.
    unsafe fn scales<const TAIL: bool>(rows: &[*const u8; 4], left: usize, shared: &Self::Shared, s: usize) -> Scales;
}

/// Blocks in a step, or one.
const fn blocks_of_unit<B: Block>() -> usize {
    if B::DTYPE.block_len() < 128 { 128 / B::DTYPE.block_len() } else { 1 }
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
    const STEPS: usize = if B::DTYPE.block_len() < 128 { 1 } else { B::DTYPE.block_len() / 128 };
    type Shared = ();

    #[inline(always)]
    unsafe fn shared(_: &[*const u8; 4]) {}

    #[inline(always)]
    unsafe fn integers<const TAIL: bool>(p: *const u8, left: usize, s: usize) -> [__m512i; 2] {
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
            unsafe fn integers<const TAIL: bool>(p: *const u8, left: usize, _: usize) -> [__m512i; 2] {
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
    unsafe fn integers<const TAIL: bool>(p: *const u8, left: usize, _: usize) -> [__m512i; 2] {
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
    unsafe fn integers<const TAIL: bool>(p: *const u8, left: usize, _: usize) -> [__m512i; 2] {
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
            unsafe fn integers<const TAIL: bool>($p: *const u8, _: usize, $s: usize) -> [__m512i; 2] {
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
        let numbers = floats(x86::scales_mins_6bit(p));
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
