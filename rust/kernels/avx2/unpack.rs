//! Blocks of each type -> registers, AVX2: 32 weights at a time, in their natural order.

use std::arch::x86_64::*;

use crate::quant::*;

/// 32 weights: weight `k` is `d * (q - BIAS) + m`, with the scales of the first 16 in the lower half.
#[derive(Clone, Copy)]
pub struct Group8 {
    /// Unsigned bytes; for `SIGNED` types signed ones, less the bias.
    pub q: __m256i,
    pub d: __m256,
    pub m: __m256,
}

/// Scales and offsets of the groups of a block: of each group or, with HALVES, of each half.
#[derive(Clone, Copy)]
pub struct Scales {
    d: [f32; 16],
    m: [f32; 16],
}

/// A quantised type that can be unpacked in groups.
pub trait Unpack: Block {
    /// Whether scales belong to 16 weights rather than 32.
    const HALVES: bool = false;
    /// Whether weights have an offset.
    const MINS: bool = false;
    /// The largest integer. `maddubs` adds two products in 16 bits: those of large integers do not fit.
    const LARGEST: u8;
    /// Whether integers are too large for `maddubs` and go by sign and magnitude.
    const SIGNED: bool = Self::LARGEST > 127;
    /// What the groups of a block share.
    type Shared: Copy;

    /// Reads what the groups of the block at `p` share.
    ///
    /// # Safety
    /// - The CPU has the features of this module, and `p` is a whole block.
    unsafe fn shared(p: *const u8) -> Self::Shared;

    /// Unpacks group `i` of the block at `p`.
    ///
    /// # Safety
    /// As for `shared`.
    unsafe fn unpack(p: *const u8, shared: &Self::Shared, i: usize) -> Group8;
}

/// The f16 at `at`, in all lanes.
///
/// Broadcast before it is converted: a single word would be inserted into a register that something else waits for, and
/// that made a chain of the whole loop (Q4_0: 37 GMAC/s).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f16(p: *const u8, at: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(p.add(at).cast::<i16>().read_unaligned())) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load16(p: *const u8, at: usize) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe { _mm_loadu_si128(p.add(at).cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load32(p: *const u8, at: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(p.add(at).cast()) }
}

/// 16 bytes: low nibbles, then high nibbles.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(p: *const u8, at: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let qs = load16(p, at);
        let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(qs), _mm_srli_epi16::<4>(qs));
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    }
}

/// Bits `2j` and up of 32 bytes, as many as `mask` has.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bits(z: __m256i, shift: usize, mask: i8) -> __m256i {
    let shifted = _mm256_srl_epi16(z, _mm_cvtsi32_si128(shift as i32));
    _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
}

/// 16 in the bytes whose bit of the dword at `p + at` is set, else zero.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fifth_bits(p: *const u8, at: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let dword = _mm256_set1_epi32(p.add(at).cast::<i32>().read_unaligned());
        let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let bit = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(dword, byte), bit), bit);
        _mm256_and_si256(set, _mm256_set1_epi8(16))
    }
}

/// Codes to the signed values of a table that is raised by `bias`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn look_up(table: &[u8; 16], codes: __m256i, bias: u8) -> __m256i {
    // SAFETY: 16 bytes are there.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        _mm256_sub_epi8(_mm256_shuffle_epi8(table, codes), _mm256_set1_epi8(bias as i8))
    }
}

/// The scale of group `i`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn both(scales: &[f32; 16], i: usize) -> __m256 {
    _mm256_set1_ps(scales[i])
}

/// The two scales of group `i`, each in its half.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pair(scales: &[f32; 16], i: usize) -> __m256 {
    _mm256_set_m128(_mm_set1_ps(scales[2 * i + 1]), _mm_set1_ps(scales[2 * i]))
}

macro_rules! unpack_32 {
    ($block:ident, largest: $largest:expr, |$p:ident| d: $d:expr, q: $qs:expr $(, m: $m:expr)?) => {
        impl Unpack for $block {
            $(const MINS: bool = { let _: usize = $m; true };)?
            const LARGEST: u8 = $largest;
            type Shared = ();

            #[inline]
#[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn shared(_: *const u8) {}

            #[inline]
#[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn unpack($p: *const u8, _: &(), _: usize) -> Group8 {
                // SAFETY: all reads lie in the block; the features are the caller's promise.
                unsafe {
                    #[allow(unused_mut, unused_assignments)]
                    let mut m = _mm256_setzero_ps();
                    $(m = f16($p, $m);)?
                    Group8 { q: $qs, d: $d, m }
                }
            }
        }
    };
}

unpack_32!(BlockQ4_0, largest: 15, |p| d: f16(p, 0), q: nibbles(p, 2));
unpack_32!(BlockQ4_1, largest: 15, |p| d: f16(p, 0), q: nibbles(p, 4), m: 2);
unpack_32!(BlockQ5_0, largest: 31, |p| d: f16(p, 0), q: _mm256_or_si256(nibbles(p, 6), fifth_bits(p, 2)));
unpack_32!(BlockQ5_1, largest: 31, |p| d: f16(p, 0), q: _mm256_or_si256(nibbles(p, 8), fifth_bits(p, 4)), m: 2);
unpack_32!(BlockQ8_0, largest: 255, |p| d: f16(p, 0), q: load32(p, 2));
unpack_32!(BlockIQ4_NL, largest: 255, |p| d: f16(p, 0), q: look_up(&IQ4_TABLE, nibbles(p, 2), 128));
unpack_32!(BlockMXFP4, largest: 31, |p| d: _mm256_set1_ps(mxfp4_scale(*p)), q: look_up(&MXFP4_TABLE, nibbles(p, 1), 0));

/// The types of 256 weights a block: `$scales` reads the scales of a block, `$q` the integers of group `$i`.
macro_rules! unpack_256 {
    ($block:ident, largest: $largest:expr, halves: $halves:expr, mins: $mins:expr, scales: $scales:ident,
     q: |$p:ident, $i:ident| $q:expr) => {
        impl Unpack for $block {
            const HALVES: bool = $halves;
            const MINS: bool = $mins;
            const LARGEST: u8 = $largest;
            type Shared = Scales;

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn shared(p: *const u8) -> Scales {
                // SAFETY: the caller's promise.
                unsafe { $scales(p) }
            }

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn unpack($p: *const u8, shared: &Scales, $i: usize) -> Group8 {
                // SAFETY: all reads lie in the block; the features are the caller's promise.
                unsafe {
                    let d = if $halves { pair(&shared.d, $i) } else { both(&shared.d, $i) };
                    let m = match ($mins, $halves) {
                        (false, _) => _mm256_setzero_ps(),
                        (true, true) => pair(&shared.m, $i),
                        (true, false) => both(&shared.m, $i),
                    };
                    Group8 { q: $q, d, m }
                }
            }
        }
    };
}

/// 16 bytes as floats times `by`, eight at a time.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn times(bytes: __m128i, by: __m256) -> [__m256; 2] {
    let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    let high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)));
    [_mm256_mul_ps(low, by), _mm256_mul_ps(high, by)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn minus(x: __m256) -> __m256 {
    _mm256_sub_ps(_mm256_setzero_ps(), x)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scales_of(d: [__m256; 2], m: [__m256; 2]) -> Scales {
    let mut scales = Scales { d: [0.0; 16], m: [0.0; 16] };
    // SAFETY: 16 floats are there.
    unsafe {
        _mm256_storeu_ps(scales.d.as_mut_ptr(), d[0]);
        _mm256_storeu_ps(scales.d.as_mut_ptr().add(8), d[1]);
        _mm256_storeu_ps(scales.m.as_mut_ptr(), m[0]);
        _mm256_storeu_ps(scales.m.as_mut_ptr().add(8), m[1]);
    }
    scales
}

/// Q4_K and Q5_K: 8 scales and 8 minima of 6 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales_6bit(p: *const u8) -> Scales {
    // SAFETY: `p` is a whole block.
    unsafe {
        let [a, b, c] = p.add(4).cast::<[u32; 3]>().read_unaligned();
        let low_scales = a & 0x3f3f_3f3f;
        let low_mins = b & 0x3f3f_3f3f;
        let high_scales = c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030;
        let high_mins = c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030;
        let bytes = _mm_setr_epi32(low_scales as i32, high_scales as i32, low_mins as i32, high_mins as i32);
        let (d, m) = (times(bytes, f16(p, 0)), times(bytes, minus(f16(p, 2))));
        scales_of([d[0], d[0]], [m[1], m[1]])
    }
}

/// Q6_K: 16 signed bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales_8bit(p: *const u8) -> Scales {
    // SAFETY: `p` is a whole block.
    unsafe { scales_of(times(load16(p, 192), f16(p, 208)), [_mm256_setzero_ps(); 2]) }
}

/// Q2_K: 16 scales and minima of 4 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales_4bit(p: *const u8) -> Scales {
    // SAFETY: `p` is a whole block.
    unsafe {
        let (bytes, nibble) = (load16(p, 0), _mm_set1_epi8(15));
        let scales = _mm_and_si128(bytes, nibble);
        let mins = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
        scales_of(times(scales, f16(p, 80)), times(mins, minus(f16(p, 82))))
    }
}

/// Q3_K: 16 scales of 6 bits, raised by 32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales_q3(p: *const u8) -> Scales {
    // SAFETY: `p` is a whole block.
    unsafe {
        let [a, b, c] = p.add(96).cast::<[u32; 3]>().read_unaligned();
        let (nibbles, pairs) = (0x0f0f_0f0f, 0x0303_0303);
        let bytes = _mm_setr_epi32(
            (a & nibbles | (c & pairs) << 4) as i32,
            (b & nibbles | (c >> 2 & pairs) << 4) as i32,
            (a >> 4 & nibbles | (c >> 4 & pairs) << 4) as i32,
            (b >> 4 & nibbles | (c >> 6 & pairs) << 4) as i32,
        );
        scales_of(times(_mm_sub_epi8(bytes, _mm_set1_epi8(32)), f16(p, 108)), [_mm256_setzero_ps(); 2])
    }
}

/// IQ4_XS: 8 scales of 6 bits, raised by 32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales_iq4(p: *const u8) -> Scales {
    // SAFETY: `p` is a whole block.
    unsafe {
        let i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let low = _mm256_set1_epi32(p.add(4).cast::<i32>().read_unaligned());
        let high = _mm256_set1_epi32(i32::from(p.add(2).cast::<i16>().read_unaligned()));
        let low = _mm256_and_si256(_mm256_srlv_epi32(low, _mm256_slli_epi32::<2>(i)), _mm256_set1_epi32(15));
        let high = _mm256_and_si256(_mm256_srlv_epi32(high, _mm256_slli_epi32::<1>(i)), _mm256_set1_epi32(3));
        let scales = _mm256_or_si256(low, _mm256_slli_epi32::<4>(high));
        let scales = _mm256_cvtepi32_ps(_mm256_sub_epi32(scales, _mm256_set1_epi32(32)));
        scales_of([_mm256_mul_ps(scales, f16(p, 0)); 2], [_mm256_setzero_ps(); 2])
    }
}

unpack_256!(BlockQ4_K, largest: 15, halves: false, mins: true,scales: scales_6bit, q: |p, i| bits(load32(p, 16 + i / 2 * 32), i % 2 * 4, 15));
unpack_256!(BlockQ5_K, largest: 31, halves: false, mins: true,scales: scales_6bit, q: |p, i| {
    let low = bits(load32(p, 48 + i / 2 * 32), i % 2 * 4, 15);
    _mm256_or_si256(low, _mm256_slli_epi16::<4>(bits(load32(p, 16), i, 1)))
});
unpack_256!(BlockQ6_K, largest: 63, halves: true, mins: false,scales: scales_8bit, q: |p, i| {
    let low = bits(load32(p, i / 4 * 64 + i % 2 * 32), i % 4 / 2 * 4, 15);
    _mm256_or_si256(low, _mm256_slli_epi16::<4>(bits(load32(p, 128 + i / 4 * 32), i % 4 * 2, 3)))
});
unpack_256!(BlockQ2_K, largest: 3, halves: true, mins: true,scales: scales_4bit, q: |p, i| bits(load32(p, 16 + i / 4 * 32), i % 4 * 2, 3));
unpack_256!(BlockQ3_K, largest: 7, halves: true, mins: false,scales: scales_q3, q: |p, i| {
    let low = bits(load32(p, 32 + i / 4 * 32), i % 4 * 2, 3);
    _mm256_or_si256(low, _mm256_slli_epi16::<2>(bits(load32(p, 0), i, 1)))
});
unpack_256!(BlockIQ4_XS, largest: 255, halves: false, mins: false,scales: scales_iq4, q: |p, i| look_up(&IQ4_TABLE, nibbles(p, 8 + 16 * i), 128));
