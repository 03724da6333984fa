//! Blocks of each type -> registers, AVX2: the integers of 32 weights of a row at a time, the scales of eight rows.
//!
//! Nothing here has the features of the set by itself: see [`super`].

#![allow(clippy::needless_range_loop)] // no closures, see the products

use std::arch::x86_64::*;

use crate::kernels::x86;
use crate::quant::*;

/// What is read of a block of eight rows at once: scales and offsets, `[group][row]`, or with `HALVES`
/// `[2 * group + half][row]`.
#[derive(Clone, Copy)]
pub struct Scales {
    pub d: [__m256; 16],
    /// If `MINS`.
    pub m: [__m256; 16],
    /// `[row][group]`, a bit a weight: the signs of types that store fewer bits than that.
    pub signs: [[u32; 8]; 8],
}

impl Scales {
    /// Nothing yet.
    // SAFETY: registers of floats, for which zeros are a value.
    pub const ZERO: Self = unsafe { std::mem::zeroed() };
}

/// A quantised type that can be unpacked.
pub trait Unpack: Block {
    /// Whether integers are too large for `maddubs` and go by sign and magnitude.
    const SIGNED: bool = Self::LARGEST > 127;
    /// The largest magnitude, of a type that stores magnitudes and signs. Its integers are put together for a batch only;
    /// before that it costs less to give the signs to the activations.
    const MAGNITUDE: Option<u8> = None;

    /// The integers of group `i` of the block at `p`, in their natural order: unsigned bytes or, if `SIGNED`, signed ones
    /// less the bias. `signs` are those of [`Scales::signs`].
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - `p` is valid for reads of a block, and `i` is a group of it.
    unsafe fn integers(p: *const u8, i: usize, signs: u32) -> __m256i;

    /// What activations are multiplied with: unsigned bytes, and bytes whose signs are first given to the activations if
    /// the type is `SIGNED` or has a `MAGNITUDE`.
    ///
    /// # Safety
    /// - As for `integers`.
    #[inline(always)]
    unsafe fn factors(p: *const u8, i: usize, signs: u32) -> [__m256i; 2] {
        // SAFETY: the caller's promises.
        unsafe {
            let q = Self::integers(p, i, signs);
            if Self::SIGNED { [_mm256_abs_epi8(q), q] } else { [q, q] }
        }
    }

    /// The scales of all groups of the blocks at `rows`.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - Each of `rows` is valid for reads of a block.
    unsafe fn scales(rows: &[*const u8; 8], to: &mut Scales);
}

impl<B: Block> Unpack for Generic<B> {
    #[inline(always)]
    unsafe fn integers(p: *const u8, i: usize, _: u32) -> __m256i {
        // SAFETY: a block is there, by the caller's promise; its alignment is 1.
        let group = unsafe { p.cast::<B>().read() }.group(i);
        let raised = if Self::SIGNED { B::BIAS } else { 0 };
        let q = group.q.map(|q| q.wrapping_sub(raised));
        // SAFETY: 32 bytes are there; the CPU has the features, by the caller's promise.
        unsafe { _mm256_loadu_si256(q.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn scales(rows: &[*const u8; 8], to: &mut Scales) {
        let halves = if B::HALVES { 2 } else { 1 };
        for i in 0..B::DTYPE.block_len() / 32 {
            for half in 0..halves {
                let (mut d, mut m) = ([0.0; 8], [0.0; 8]);
                for (r, row) in rows.iter().enumerate() {
                    // SAFETY: a block is there, by the caller's promise; its alignment is 1.
                    let group = unsafe { row.cast::<B>().read() }.group(i);
                    (d[r], m[r]) = (group.d[half], group.m[half]);
                }
                // SAFETY: eight floats each; the CPU has the features, by the caller's promise.
                unsafe {
                    to.d[halves * i + half] = _mm256_loadu_ps(d.as_ptr());
                    to.m[halves * i + half] = _mm256_loadu_ps(m.as_ptr());
                }
            }
        }
    }
}

/// The f16 at `at` of each row.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given, lies in the block at each pointer.
#[inline(always)]
unsafe fn f16s(rows: &[*const u8; 8], at: usize) -> __m256 {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut words = [0i16; 8];
        for i in 0..8 {
            words[i] = rows[i].add(at).cast::<i16>().read_unaligned();
        }
        let [a, b, c, d, e, f, g, h] = words;
        _mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h))
    }
}

/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given, lies in the block at each pointer.
#[inline(always)]
unsafe fn load16(p: *const u8, at: usize) -> __m128i {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe { _mm_loadu_si128(p.add(at).cast()) }
}

/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given, lies in the block at each pointer.
#[inline(always)]
unsafe fn load32(p: *const u8, at: usize) -> __m256i {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe { _mm256_loadu_si256(p.add(at).cast()) }
}

/// 16 bytes: low nibbles, then high nibbles.
///
/// A broadcast load and a shift by lanes: inserting the upper half would take the shuffle port, which the sums need.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given, lies in the block at each pointer.
#[inline(always)]
unsafe fn nibbles(p: *const u8, at: usize) -> __m256i {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let both = _mm256_broadcastsi128_si256(load16(p, at));
        let shifted = _mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 4, 4));
        _mm256_and_si256(shifted, _mm256_set1_epi8(15))
    }
}

/// Bits from `shift` on of 32 bytes, those that `mask` has.
///
/// A shift by lanes: its counts are one register for all rows, whether or not the loop over groups is unrolled.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn bits(z: __m256i, shift: usize, mask: i8) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let shifted = _mm256_srlv_epi64(z, _mm256_set1_epi64x(shift as i64));
        _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
    }
}

/// 16 in the bytes whose bit of the dword at `p + at` is set, else zero.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given, lies in the block at each pointer.
#[inline(always)]
unsafe fn fifth_bits(p: *const u8, at: usize) -> __m256i {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let dword = _mm256_set1_epi32(p.add(at).cast::<i32>().read_unaligned());
        let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let bit = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(dword, byte), bit), bit);
        _mm256_and_si256(set, _mm256_set1_epi8(16))
    }
}

/// Codes to the signed values of a table that is raised by `bias`.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn look_up(table: &[u8; 16], codes: __m256i, bias: u8) -> __m256i {
    // SAFETY: the table has 16 bytes; the features are the caller's promise.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        let table = _mm256_sub_epi8(table, _mm256_set1_epi8(bias as i8));
        _mm256_shuffle_epi8(table, codes)
    }
}

/// Powers of two for the exponents of eight rows, see [`mxfp4_scale`].
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on if that is given, lies in the block at each pointer.
#[inline(always)]
unsafe fn exponents(rows: &[*const u8; 8]) -> __m256 {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut e = [0i32; 8];
        for i in 0..8 {
            e[i] = i32::from(*rows[i]);
        }
        let [a, b, c, d, e, f, g, h] = e;
        let e = _mm256_setr_epi32(a, b, c, d, e, f, g, h);
        let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
        let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
        let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
        _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small))
    }
}

/// The types of 32 weights a block.
macro_rules! unpack_32 {
    ($block:ident, |$p:ident| q: $q:expr, |$rows:ident| d: $d:expr $(, m: $m:expr)?) => {
        impl Unpack for $block {
            #[inline(always)]
            unsafe fn integers($p: *const u8, _: usize, _: u32) -> __m256i {
                // SAFETY: all reads lie in the block; the features are the caller's promise.
                unsafe { $q }
            }

            #[inline(always)]
            unsafe fn scales($rows: &[*const u8; 8], to: &mut Scales) {
                // SAFETY: as above.
                unsafe {
                    to.d[0] = $d;
                    $(to.m[0] = $m;)?
                }
            }
        }
    };
}

unpack_32!(BlockQ4_0, |p| q: nibbles(p, 2), |rows| d: f16s(rows, 0));
unpack_32!(BlockQ4_1, |p| q: nibbles(p, 4), |rows| d: f16s(rows, 0), m: f16s(rows, 2));
unpack_32!(BlockQ5_0, |p| q: _mm256_or_si256(nibbles(p, 6), fifth_bits(p, 2)), |rows| d: f16s(rows, 0));
unpack_32!(BlockQ5_1, |p| q: _mm256_or_si256(nibbles(p, 8), fifth_bits(p, 4)), |rows| d: f16s(rows, 0), m: f16s(rows, 2));
unpack_32!(BlockQ8_0, |p| q: load32(p, 2), |rows| d: f16s(rows, 0));
unpack_32!(BlockIQ4_NL, |p| q: look_up(&IQ4_TABLE, nibbles(p, 2), 128), |rows| d: f16s(rows, 0));
unpack_32!(BlockMXFP4, |p| q: look_up(&MXFP4_TABLE, nibbles(p, 1), 0), |rows| d: exponents(rows));

impl Unpack for BlockNVFP4 {
    #[inline(always)]
    unsafe fn integers(p: *const u8, i: usize, _: u32) -> __m256i {
        // SAFETY: the reads lie in the block; the features are the caller's promise.
        unsafe {
            // Eight bytes are 16 weights: low nibbles, then high nibbles.
            let twice = _mm256_permute4x64_epi64::<0b01_01_00_00>(_mm256_castsi128_si256(load16(p, 4 + 16 * i)));
            let shifted = _mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 4, 0, 4));
            let codes = _mm256_and_si256(shifted, _mm256_set1_epi8(15));
            look_up(&MXFP4_TABLE, codes, 0)
        }
    }

    #[inline(always)]
    unsafe fn scales(rows: &[*const u8; 8], to: &mut Scales) {
        // SAFETY: as above.
        unsafe {
            let mut words = [0; 8];
            for i in 0..8 {
                words[i] = dword(rows[i], 0) as i32;
            }
            let [a, b, c, d, e, f, g, h] = words;
            let words = _mm256_setr_epi32(a, b, c, d, e, f, g, h);
            let nan = _mm256_set1_epi32(0x7f);
            for k in 0..4 {
                let byte = _mm256_srlv_epi32(words, _mm256_set1_epi32(8 * k));
                let byte = _mm256_and_si256(byte, _mm256_set1_epi32(0xff));
                // Exponent and mantissa where an f16 has them: too small by 2^8, of which half is wanted. As floats the
                // smallest would be subnormal, which takes a hundred times as long.
                let bits = _mm256_slli_epi32::<7>(_mm256_and_si256(byte, nan));
                let bits = _mm256_andnot_si256(_mm256_cmpeq_epi32(byte, nan), bits);
                let bits = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256::<1>(bits));
                to.d[k as usize] = _mm256_mul_ps(_mm256_cvtph_ps(bits), _mm256_set1_ps(128.0));
            }
        }
    }
}

/// The types of 256 weights a block: `$q` reads the integers of group `$i`, `$scales` the scales.
macro_rules! unpack_256 {
    ($block:ident, scales: $scales:ident, |$p:ident, $i:ident| $q:expr) => {
        impl Unpack for $block {
            #[inline(always)]
            unsafe fn integers($p: *const u8, $i: usize, _: u32) -> __m256i {
                // SAFETY: all reads lie in the block; the features are the caller's promise.
                unsafe { $q }
            }

            #[inline(always)]
            unsafe fn scales(rows: &[*const u8; 8], to: &mut Scales) {
                // SAFETY: as above.
                unsafe { $scales(rows, to) }
            }
        }
    };
}

/// 16 bytes of each row to 16 columns, two a register, each of the eight rows.
///
/// Transposed as bytes and converted afterwards: as floats it would be four times as much to move.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn columns(r: &[__m128i; 8]) -> [__m128i; 8] {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let mut c = *r;
        for half in 0..2 {
            let r = &r[4 * half..4 * half + 4];
            let (ab, ab_high) = (_mm_unpacklo_epi8(r[0], r[1]), _mm_unpackhi_epi8(r[0], r[1]));
            let (cd, cd_high) = (_mm_unpacklo_epi8(r[2], r[3]), _mm_unpackhi_epi8(r[2], r[3]));
            // bytes 4q.. of the four rows
            c[4 * half] = _mm_unpacklo_epi16(ab, cd);
            c[4 * half + 1] = _mm_unpackhi_epi16(ab, cd);
            c[4 * half + 2] = _mm_unpacklo_epi16(ab_high, cd_high);
            c[4 * half + 3] = _mm_unpackhi_epi16(ab_high, cd_high);
        }
        let mut columns = c;
        for q in 0..4 {
            columns[2 * q] = _mm_unpacklo_epi32(c[q], c[4 + q]);
            columns[2 * q + 1] = _mm_unpackhi_epi32(c[q], c[4 + q]);
        }
        columns
    }
}

/// `to[i] = by * column i` for the columns of signed bytes from `first` on, as many as `to` has.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn times(to: &mut [__m256], columns: &[__m128i; 8], first: usize, by: __m256) {
    // SAFETY: the features are the caller's promise.
    unsafe {
        for i in 0..to.len() {
            let two = columns[(first + i) / 2];
            let column = if (first + i).is_multiple_of(2) { two } else { _mm_unpackhi_epi64(two, two) };
            to[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(column)), by);
        }
    }
}

/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn minus(x: __m256) -> __m256 {
    // SAFETY: the features are the caller's promise.
    unsafe { _mm256_sub_ps(_mm256_setzero_ps(), x) }
}

/// Q4_K and Q5_K: 8 scales and 8 minima of 6 bits.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_6bit(rows: &[*const u8; 8], to: &mut Scales) {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut bytes = [_mm_setzero_si128(); 8];
        for i in 0..8 {
            bytes[i] = x86::scales_mins_6bit(rows[i]);
        }
        let columns = columns(&bytes);
        times(&mut to.d[..8], &columns, 0, f16s(rows, 0));
        times(&mut to.m[..8], &columns, 8, minus(f16s(rows, 2)));
    }
}

/// Q6_K: 16 signed bytes.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_8bit(rows: &[*const u8; 8], to: &mut Scales) {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut bytes = [_mm_setzero_si128(); 8];
        for i in 0..8 {
            bytes[i] = load16(rows[i], 192);
        }
        times(&mut to.d, &columns(&bytes), 0, f16s(rows, 208));
    }
}

/// Q2_K: 16 scales and minima of 4 bits.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_4bit(rows: &[*const u8; 8], to: &mut Scales) {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let (mut scales, mut mins) = ([_mm_setzero_si128(); 8], [_mm_setzero_si128(); 8]);
        let nibble = _mm_set1_epi8(15);
        for i in 0..8 {
            scales[i] = load16(rows[i], 0);
        }
        scales = columns(&scales);
        for i in 0..8 {
            mins[i] = _mm_and_si128(_mm_srli_epi16::<4>(scales[i]), nibble);
            scales[i] = _mm_and_si128(scales[i], nibble);
        }
        times(&mut to.d, &scales, 0, f16s(rows, 80));
        times(&mut to.m, &mins, 0, minus(f16s(rows, 82)));
    }
}

/// Q3_K: 16 scales of 6 bits, raised by 32.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_q3(rows: &[*const u8; 8], to: &mut Scales) {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut bytes = [_mm_setzero_si128(); 8];
        for i in 0..8 {
            bytes[i] = x86::scales_q3(rows[i]);
        }
        times(&mut to.d, &columns(&bytes), 0, f16s(rows, 108));
    }
}

/// IQ4_XS: 8 scales of 6 bits, raised by 32.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_iq4(rows: &[*const u8; 8], to: &mut Scales) {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut bytes = [_mm_setzero_si128(); 8];
        for i in 0..8 {
            bytes[i] = x86::scales_iq4_xs(rows[i]);
        }
        times(&mut to.d[..8], &columns(&bytes), 0, f16s(rows, 0));
    }
}

unpack_256!(BlockQ4_K, scales: scales_6bit, |p, i| bits(load32(p, 16 + i / 2 * 32), i % 2 * 4, 15));
unpack_256!(BlockQ5_K, scales: scales_6bit, |p, i| {
    let low = bits(load32(p, 48 + i / 2 * 32), i % 2 * 4, 15);
    _mm256_or_si256(low, _mm256_slli_epi16::<4>(bits(load32(p, 16), i, 1)))
});
unpack_256!(BlockQ6_K, scales: scales_8bit, |p, i| {
    let low = bits(load32(p, i / 4 * 64 + i % 2 * 32), i % 4 / 2 * 4, 15);
    _mm256_or_si256(low, _mm256_slli_epi16::<4>(bits(load32(p, 128 + i / 4 * 32), i % 4 * 2, 3)))
});
unpack_256!(BlockQ2_K, scales: scales_4bit, |p, i| bits(load32(p, 16 + i / 4 * 32), i % 4 * 2, 3));
unpack_256!(BlockQ3_K, scales: scales_q3, |p, i| {
    let low = bits(load32(p, 32 + i / 4 * 32), i % 4 * 2, 3);
    _mm256_or_si256(low, _mm256_slli_epi16::<2>(bits(load32(p, 0), i, 1)))
});
unpack_256!(BlockIQ4_XS, scales: scales_iq4, |p, i| look_up(&IQ4_TABLE, nibbles(p, 8 + 16 * i), 128));

/// 8 magnitudes of each of four words.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn eights(grid: &[[u8; 8]], indices: [u32; 4]) -> __m256i {
    let [a, b, c, d] = indices.map(|i| i64::from_le_bytes(grid[i as usize]));
    // SAFETY: the features are the caller's promise.
    unsafe { _mm256_setr_epi64x(a, b, c, d) }
}

/// 4 magnitudes of each of eight words.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn fours(grid: &[[u8; 4]], indices: [u32; 8]) -> __m256i {
    let [a, b, c, d, e, f, g, h] = indices.map(|i| i32::from_le_bytes(grid[i as usize]));
    // SAFETY: the features are the caller's promise.
    unsafe { _mm256_setr_epi32(a, b, c, d, e, f, g, h) }
}

/// -1 in the bytes whose bit of `signs` is set, else 1.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn ones(signs: u32) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let bit = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
        let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(signs as i32), byte);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
        _mm256_or_si256(set, _mm256_set1_epi8(1))
    }
}

/// # Safety
/// - `p` is valid for reads of four bytes from `at` on.
#[inline(always)]
unsafe fn dword(p: *const u8, at: usize) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { p.add(at).cast::<u32>().read_unaligned() }
}

/// # Safety
/// - `p` is valid for reads of eight bytes from `at` on.
#[inline(always)]
unsafe fn qword(p: *const u8, at: usize) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { p.add(at).cast::<u64>().read_unaligned() }
}

/// Signs from dwords of 4 x 7 bits: the eighth of each byte makes the number of negative ones even.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn even_signs_of_words(words: __m256i) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let field = _mm256_set1_epi32(0x7f);
        let mut fields = _mm256_and_si256(words, field);
        fields =
            _mm256_or_si256(fields, _mm256_and_si256(_mm256_slli_epi32::<1>(words), _mm256_slli_epi32::<8>(field)));
        fields =
            _mm256_or_si256(fields, _mm256_and_si256(_mm256_slli_epi32::<2>(words), _mm256_slli_epi32::<16>(field)));
        fields =
            _mm256_or_si256(fields, _mm256_and_si256(_mm256_slli_epi32::<3>(words), _mm256_slli_epi32::<24>(field)));
        even_signs(fields)
    }
}

/// Bytes of signs from bytes of seven bits.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn even_signs(seven: __m256i) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        // The parity of a nibble, in the uppermost bit.
        let parity = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0,
        ));
        let nibble = _mm256_set1_epi8(15);
        let low = _mm256_shuffle_epi8(parity, _mm256_and_si256(seven, nibble));
        let high = _mm256_shuffle_epi8(parity, _mm256_and_si256(_mm256_srli_epi16::<4>(seven), nibble));
        _mm256_or_si256(seven, _mm256_xor_si256(low, high))
    }
}

/// `to[i] = by * (n + 1/2)` for the numbers `n` of group `i` of each row, dwords.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn and_a_half(to: &mut [__m256], numbers: [__m256i; 8], by: __m256) {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let columns = super::matmul::transpose(numbers);
        for i in 0..8 {
            to[i] = _mm256_mul_ps(_mm256_add_ps(_mm256_cvtepi32_ps(columns[i]), _mm256_set1_ps(0.5)), by);
        }
    }
}

/// IQ2_XXS and IQ3_XXS: dwords of 4 x 7 signs and 4 bits of scale, `$words` reads those of a row.
macro_rules! signs_and_scales {
    ($name:ident, |$p:ident| $words:expr, $by:literal) => {
        /// # Safety
        /// - The CPU has the features of the set.
        /// - What is read lies in the block at each pointer.
        #[inline(always)]
        unsafe fn $name(rows: &[*const u8; 8], to: &mut Scales) {
            // SAFETY: the bytes and the features are the caller's promise.
            unsafe {
                let mut scales = [_mm256_setzero_si256(); 8];
                for i in 0..8 {
                    let $p = rows[i];
                    let words = $words;
                    scales[i] = _mm256_srli_epi32::<28>(words);
                    _mm256_storeu_si256(to.signs[i].as_mut_ptr().cast(), even_signs_of_words(words));
                }
                and_a_half(&mut to.d[..8], scales, _mm256_mul_ps(f16s(rows, 0), _mm256_set1_ps($by)));
            }
        }
    };
}

signs_and_scales!(
    scales_iq2_xxs,
    |p| {
        // The odd dwords of 64 bytes.
        let (a, b) = (_mm256_castsi256_ps(load32(p, 2)), _mm256_castsi256_ps(load32(p, 34)));
        _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, b)))
    },
    0.25
);
signs_and_scales!(scales_iq3_xxs, |p| load32(p, 66), 0.5);

/// 16 nibbles at `at` of each row, for 16 weights each: `d * (n + 1/2) / 4`.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_iq2(rows: &[*const u8; 8], at: usize, to: &mut Scales) {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut bytes = [_mm_setzero_si128(); 8];
        for i in 0..8 {
            let both = _mm_loadl_epi64(rows[i].add(at).cast());
            let both = _mm_unpacklo_epi8(both, _mm_srli_epi16::<4>(both));
            // 2 n + 1
            let twice = _mm_slli_epi16::<1>(_mm_and_si128(both, _mm_set1_epi8(15)));
            bytes[i] = _mm_or_si128(twice, _mm_set1_epi8(1));
        }
        times(&mut to.d, &columns(&bytes), 0, _mm256_mul_ps(f16s(rows, 0), _mm256_set1_ps(0.125)));
    }
}

/// IQ2_XS.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_iq2_xs(rows: &[*const u8; 8], to: &mut Scales) {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        for i in 0..8 {
            // The upper 7 bits of 32 words, as bytes in their order.
            let (a, b) = (_mm256_srli_epi16::<9>(load32(rows[i], 2)), _mm256_srli_epi16::<9>(load32(rows[i], 34)));
            let seven = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(a, b));
            _mm256_storeu_si256(to.signs[i].as_mut_ptr().cast(), even_signs(seven));
        }
        scales_iq2(rows, 66, to);
    }
}

/// IQ2_S.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_iq2_s(rows: &[*const u8; 8], to: &mut Scales) {
    // SAFETY: the caller's promises.
    unsafe { scales_iq2(rows, 74, to) }
}

/// IQ3_S: 8 nibbles, `d * (2 n + 1)`.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_iq3_s(rows: &[*const u8; 8], to: &mut Scales) {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let mut bytes = [_mm_setzero_si128(); 8];
        for i in 0..8 {
            let both = _mm_cvtsi32_si128(dword(rows[i], 106) as i32);
            let both = _mm_unpacklo_epi8(both, _mm_srli_epi16::<4>(both));
            let twice = _mm_slli_epi16::<1>(_mm_and_si128(both, _mm_set1_epi8(15)));
            bytes[i] = _mm_or_si128(twice, _mm_set1_epi8(1));
        }
        times(&mut to.d[..8], &columns(&bytes), 0, f16s(rows, 0));
    }
}

/// The types with a codebook: `$magnitudes` reads those of group `$i`, `$bits` its signs, which may be `$shared`.
macro_rules! unpack_codes {
    ($block:ident, largest: $largest:literal, scales: $scales:ident, |$p:ident, $i:ident, $shared:ident|
     $magnitudes:expr, signs: $signs:expr) => {
        impl Unpack for $block {
            const MAGNITUDE: Option<u8> = Some($largest);

            #[inline(always)]
            unsafe fn integers(p: *const u8, i: usize, signs: u32) -> __m256i {
                // SAFETY: the caller's promises.
                unsafe {
                    let [magnitudes, signs] = Self::factors(p, i, signs);
                    _mm256_add_epi8(_mm256_sign_epi8(magnitudes, signs), _mm256_set1_epi8(Self::BIAS as i8))
                }
            }

            #[inline(always)]
            unsafe fn factors($p: *const u8, $i: usize, $shared: u32) -> [__m256i; 2] {
                // SAFETY: all reads lie in the block; the features are the caller's promise.
                unsafe { [$magnitudes, ones($signs)] }
            }

            #[inline(always)]
            unsafe fn scales(rows: &[*const u8; 8], to: &mut Scales) {
                // SAFETY: as above.
                unsafe { $scales(rows, to) }
            }
        }
    };
}

unpack_codes!(BlockIQ2_XXS, largest: 43, scales: scales_iq2_xxs, |p, i, signs| {
    let n = dword(p, 2 + 8 * i);
    eights(&grids::IQ2_XXS_GRID, [n & 255, n >> 8 & 255, n >> 16 & 255, n >> 24])
}, signs: signs);
unpack_codes!(BlockIQ2_XS, largest: 43, scales: scales_iq2_xs, |p, i, signs| {
    let n = qword(p, 2 + 8 * i);
    eights(&grids::IQ2_XS_GRID, [n, n >> 16, n >> 32, n >> 48].map(|n| n as u32 & 511))
}, signs: signs);
unpack_codes!(BlockIQ2_S, largest: 43, scales: scales_iq2_s, |p, i, _signs| {
    let (n, high) = (dword(p, 2 + 4 * i), u32::from(*p.add(66 + i)));
    let [a, b, c, d] = [high << 8 & 0x300, high << 6 & 0x300, high << 4 & 0x300, high << 2 & 0x300];
    eights(&grids::IQ2_S_GRID, [n & 255 | a, n >> 8 & 255 | b, n >> 16 & 255 | c, n >> 24 | d])
}, signs: dword(p, 34 + 4 * i));
unpack_codes!(BlockIQ3_XXS, largest: 62, scales: scales_iq3_xxs, |p, i, signs| {
    let n = qword(p, 2 + 8 * i);
    fours(&grids::IQ3_XXS_GRID, [n, n >> 8, n >> 16, n >> 24, n >> 32, n >> 40, n >> 48, n >> 56].map(|n| n as u32 & 255))
}, signs: signs);
unpack_codes!(BlockIQ3_S, largest: 15, scales: scales_iq3_s, |p, i, _signs| {
    let (n, high) = (qword(p, 2 + 8 * i), u32::from(*p.add(66 + i)));
    let low = [n, n >> 8, n >> 16, n >> 24, n >> 32, n >> 40, n >> 48, n >> 56];
    let mut indices = [0; 8];
    for l in 0..8 {
        indices[l] = low[l] as u32 & 255 | high << (8 - l) & 256;
    }
    fours(&grids::IQ3_S_GRID, indices)
}, signs: dword(p, 74 + 4 * i));
