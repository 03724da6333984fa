//! What the instruction sets of x86 share: the scales of the types whose bits are scattered, as bytes.
//!
//! Nothing here has features by itself: it becomes part of a function that has.

use std::arch::x86_64::*;

/// The 6-bit scales of the 8 groups of a Q4_K or Q5_K block, then the minima, from its first 16 bytes; of two blocks at once.
///
/// # Safety
/// - The CPU has AVX2.
#[inline(always)]
pub unsafe fn scales_mins_6bit(all: __m256i) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        // `all` is d and dmin, a, b, c, see `scale_min_6bit`
        let low = _mm256_shuffle_epi32::<0b11_10_11_01>(all); // a, c, b, c
        let low = _mm256_srlv_epi32(low, _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4));
        let mask = _mm_setr_epi32(0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f);
        let low = _mm256_and_si256(low, _mm256_broadcastsi128_si256(mask));
        let high = _mm256_srli_epi32::<2>(_mm256_shuffle_epi32::<0b10_10_01_01>(all)); // a, a, b, b
        let high = _mm256_and_si256(high, _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0x3030_3030, 0, 0x3030_3030)));
        _mm256_or_si256(low, high)
    }
}

/// The 16 scales of a Q3_K block.
///
/// # Safety
/// - The CPU has AVX2.
/// - `p` is valid for reads of a block.
#[inline(always)]
pub unsafe fn scales_q3(p: *const u8) -> __m128i {
    // SAFETY: the last 16 bytes of the block end in 12 of scales and 2 of d; the features are the caller's promise.
    unsafe {
        let all = _mm_loadu_si128(p.add(94).cast());
        // Nibbles of bytes 0..8, the low ones, then the high ones; pairs of bits of bytes 8..12.
        let low = _mm_shuffle_epi8(all, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
        let low = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 4, 4)), _mm_set1_epi8(15));
        let high = _mm_shuffle_epi8(all, _mm_set1_epi32(0x0d0c_0b0a));
        let high = _mm_and_si128(_mm_srlv_epi32(high, _mm_setr_epi32(0, 2, 4, 6)), _mm_set1_epi8(3));
        let raised = _mm_or_si128(low, _mm_slli_epi32::<4>(high));
        _mm_sub_epi8(raised, _mm_set1_epi8(32))
    }
}

/// The scales of the 8 groups of an IQ4_XS block.
///
/// # Safety
/// - The CPU has AVX2.
/// - `p` is valid for reads of a block.
#[inline(always)]
pub unsafe fn scales_iq4_xs(p: *const u8) -> __m128i {
    // SAFETY: bytes 2..8 are the scales; the features are the caller's promise.
    unsafe {
        let all = _mm_loadl_epi64(p.cast());
        // Nibble i of bytes 4..8; bits 2i and 2i + 1 of bytes 2..4, in one of four shifted copies.
        let nibble = _mm_set1_epi8(15);
        let (even, odd) = (_mm_and_si128(all, nibble), _mm_and_si128(_mm_srli_epi16::<4>(all), nibble));
        let low = _mm_srli_si128::<8>(_mm_unpacklo_epi8(even, odd));
        let copies = _mm_shuffle_epi8(all, _mm_setr_epi8(2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3));
        let copies = _mm_srlv_epi32(copies, _mm_setr_epi32(0, 2, 4, 6));
        let high = _mm_shuffle_epi8(copies, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0));
        let high = _mm_slli_epi32::<4>(_mm_and_si128(high, _mm_set1_epi8(3)));
        _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32))
    }
}
