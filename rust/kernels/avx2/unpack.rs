//! Blocks of each type -> registers of 256 bits: the integers of 32 weights of a row, or of two rows, at a time, the scales of
//! eight rows.
//!
//! Nothing here has the features of the set by itself: see [`super`].

#![allow(clippy::needless_range_loop)] // no closures, see the products

use std::arch::x86_64::*;

use crate::kernels::x86;
use crate::quant::*;

/// What is read of a block of eight rows at once: scales and offsets, `[group][row]`, or with `HALVES`
/// `[2 * group + half][row]`.
///
/// Those that are floats when they are read are in `d` and `m`; those that are bytes remain bytes until they are needed,
/// which is less to write and to read again.
#[derive(Clone, Copy)]
pub struct Scales {
    d: [__m256; 16],
    m: [__m256; 16],
    /// `[column][row]`: the scales, then the offsets; each times its number of `by`.
    columns: [[i8; 8]; 32],
    by: [__m256; 2],
    /// `[row][group]`, a bit a weight: the signs of types that store fewer bits than that.
    pub signs: [[u32; 8]; 8],
}

impl Scales {
    /// Nothing yet.
    // SAFETY: registers of floats, for which zeros are a value.
    pub const ZERO: Self = unsafe { std::mem::zeroed() };

    /// Bytes to floats, times number `by`.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    #[inline(always)]
    unsafe fn column(&self, i: usize, by: usize) -> __m256 {
        // SAFETY: eight bytes are there; the features are the caller's promise.
        unsafe {
            let bytes = _mm_loadl_epi64(self.columns[i].as_ptr().cast());
            _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), self.by[by])
        }
    }
}

/// A quantised type that can be unpacked.
pub trait Unpack: Block {
    /// Whether integers are too large for `maddubs` and go by sign and magnitude.
    const SIGNED: bool = Self::LARGEST > 127;
    /// The largest magnitude, of a type that stores magnitudes and signs. Its integers are put together for a batch only;
    /// before that it costs less to give the signs to the activations.
    const MAGNITUDE: Option<u8> = None;
    /// If scales are bytes, [`Scales::columns`]: which is the first of the offsets.
    const BYTES: Option<usize> = None;
    /// How many groups [`Unpack::two_rows`] reads at a time: those whose bits lie in the same bytes. 0 if it reads none.
    const SPAN: usize = 0;
    /// Whether groups are unpacked four at a time, see [`Unpack::four_groups`]: those of 256 weights whose scales are for
    /// halves, but for those that have signs of their own.
    const FOURS: bool = Self::HALVES && Self::MAGNITUDE.is_none() && Self::GROUPS == 8;

    /// The integers of group `i` of the block at `p`, in their natural order: unsigned bytes or, if `SIGNED` and not
    /// `RAISED`, signed ones less the bias. `signs` are those of [`Scales::signs`].
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - `p` is valid for reads of a block, and `i` is a group of it.
    unsafe fn integers<const RAISED: bool>(p: *const u8, i: usize, signs: u32) -> __m256i;

    /// The same of two rows and of the `SPAN` groups from `SPAN * s` on, `[group][half]`: 16 weights of row `a`, then 16 of
    /// row `b`. Where the halves of a row go through different steps anyway, as nibbles do, that is no more work, and half of
    /// adding across is done.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - `a` and `b` are valid for reads of a block that has these groups.
    #[inline(always)]
    unsafe fn two_rows<const RAISED: bool>(_a: *const u8, _b: *const u8, _s: usize) -> [[__m256i; 2]; 2] {
        unreachable!("only with a SPAN")
    }

    /// The integers of the four groups from `4 * s` on of the block at `p`: less work than one after another where their bits
    /// lie in the same bytes, as in those of the types of 2, 3 and 6 bits.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - `p` is valid for reads of a block that has these groups; the type has no signs of its own.
    #[inline(always)]
    unsafe fn four_groups<const RAISED: bool>(p: *const u8, s: usize) -> [__m256i; 4] {
        // SAFETY: the caller's promises.
        unsafe {
            let mut q = [_mm256_setzero_si256(); 4];
            for g in 0..4 {
                q[g] = Self::integers::<RAISED>(p, 4 * s + g, 0);
            }
            q
        }
    }

    /// What activations are multiplied with: unsigned bytes, and bytes whose signs are first given to the activations if
    /// the type is `SIGNED` or has a `MAGNITUDE`.
    ///
    /// # Safety
    /// - As for `integers`.
    #[inline(always)]
    unsafe fn factors(p: *const u8, i: usize, signs: u32) -> [__m256i; 2] {
        // SAFETY: the caller's promises.
        unsafe {
            let q = Self::integers::<false>(p, i, signs);
            if Self::SIGNED { [_mm256_abs_epi8(q), q] } else { [q, q] }
        }
    }

    /// The scales of all groups of the blocks at `rows`.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    /// - Each of `rows` is valid for reads of a block.
    unsafe fn scales(rows: &[*const u8; 8], to: &mut Scales);

    /// Scale `i` of each row, of those that `scales` read.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    #[inline(always)]
    unsafe fn scale(of: &Scales, i: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { if Self::BYTES.is_some() { of.column(i, 0) } else { of.d[i] } }
    }

    /// Offset `i` of each row, if `MINS`.
    ///
    /// # Safety
    /// - The CPU has the features of the set.
    #[inline(always)]
    unsafe fn offset(of: &Scales, i: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { if let Some(first) = Self::BYTES { of.column(first + i, 1) } else { of.m[i] } }
    }
}

impl<B: Block> Unpack for Generic<B> {
    #[inline(always)]
    unsafe fn integers<const RAISED: bool>(p: *const u8, i: usize, _: u32) -> __m256i {
        // SAFETY: a block is there, by the caller's promise; its alignment is 1.
        let group = unsafe { p.cast::<B>().read() }.group(i);
        let lower = if Self::SIGNED && !RAISED { B::BIAS } else { 0 };
        let mut q = group.q;
        for i in 0..32 {
            q[i] = q[i].wrapping_sub(lower);
        }
        // SAFETY: 32 bytes are there; the CPU has the features, by the caller's promise.
        unsafe { _mm256_loadu_si256(q.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn scales(rows: &[*const u8; 8], to: &mut Scales) {
        let halves = if B::HALVES { 2 } else { 1 };
        for i in 0..B::GROUPS {
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

/// Codes to the values of a table, less `by`.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn look_up(table: &[u8; 16], codes: __m256i, by: u8) -> __m256i {
    // SAFETY: the table has 16 bytes; the features are the caller's promise.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        let table = _mm256_sub_epi8(table, _mm256_set1_epi8(by as i8));
        _mm256_shuffle_epi8(table, codes)
    }
}

/// What is taken off the table of the IQ4 types, which is raised by 128.
#[inline(always)]
const fn iq4_bias(raised: bool) -> u8 {
    if raised { 0 } else { 128 }
}

/// Signed bytes, raised by 128 if that is wanted.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn raise<const RAISED: bool>(q: __m256i) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe { if RAISED { _mm256_xor_si256(q, _mm256_set1_epi8(-128)) } else { q } }
}

/// 16 bytes of each of two rows.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read, from `at` on, lies in the block at each pointer.
#[inline(always)]
unsafe fn of_both(a: *const u8, b: *const u8, at: usize) -> __m256i {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe { _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load16(a, at)), load16(b, at)) }
}

/// Low nibbles and high nibbles.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn low_high(z: __m256i) -> [__m256i; 2] {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let nibble = _mm256_set1_epi8(15);
        [_mm256_and_si256(z, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(z), nibble)]
    }
}

/// [`nibbles`] of two rows, as [`Unpack::two_rows`] has them.
///
/// # Safety
/// - As for [`of_both`].
#[inline(always)]
unsafe fn nibbles_of_both(a: *const u8, b: *const u8, at: usize) -> [__m256i; 2] {
    // SAFETY: the caller's promises.
    unsafe { low_high(of_both(a, b, at)) }
}

/// The same with [`fifth_bits`], whose dword comes right before the nibbles.
///
/// # Safety
/// - As for [`of_both`].
#[inline(always)]
unsafe fn five_bits_of_both(a: *const u8, b: *const u8, at: usize) -> [__m256i; 2] {
    // SAFETY: the caller's promises.
    unsafe {
        let mut q = nibbles_of_both(a, b, at + 4);
        let dwords = of_both(a, b, at);
        let bit = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
        for half in 0..2 {
            let first = 0x0202_0202_0202_0202 * half as i64;
            let (first, second) = (first, first + 0x0101_0101_0101_0101);
            let spread = _mm256_shuffle_epi8(dwords, _mm256_setr_epi64x(first, second, first, second));
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
            q[half] = _mm256_or_si256(q[half], _mm256_and_si256(set, _mm256_set1_epi8(16)));
        }
        q
    }
}

/// Codes of two rows to the values of a table, see [`look_up`].
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn look_both_up(table: &[u8; 16], [low, high]: [__m256i; 2], by: u8) -> [__m256i; 2] {
    // SAFETY: the features are the caller's promise.
    unsafe { [look_up(table, low, by), look_up(table, high, by)] }
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
    ($block:ident, |$p:ident| q: $q:expr, |$a:ident, $b:ident| two: $two:expr, |$rows:ident| d: $d:expr $(, m: $m:expr)?) => {
        impl Unpack for $block {
            const SPAN: usize = 1;

            #[inline(always)]
            unsafe fn integers<const RAISED: bool>($p: *const u8, _: usize, _: u32) -> __m256i {
                // SAFETY: all reads lie in the block; the features are the caller's promise.
                unsafe { $q }
            }

            #[inline(always)]
            unsafe fn two_rows<const RAISED: bool>($a: *const u8, $b: *const u8, _: usize) -> [[__m256i; 2]; 2] {
                // SAFETY: as above.
                unsafe { [$two, [_mm256_setzero_si256(); 2]] }
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

unpack_32!(BlockQ4_0, |p| q: nibbles(p, 2), |a, b| two: nibbles_of_both(a, b, 2), |rows| d: f16s(rows, 0));
unpack_32!(
    BlockQ4_1,
    |p| q: nibbles(p, 4),
    |a, b| two: nibbles_of_both(a, b, 4),
    |rows| d: f16s(rows, 0), m: f16s(rows, 2)
);
unpack_32!(
    BlockQ5_0,
    |p| q: _mm256_or_si256(nibbles(p, 6), fifth_bits(p, 2)),
    |a, b| two: five_bits_of_both(a, b, 2),
    |rows| d: f16s(rows, 0)
);
unpack_32!(
    BlockQ5_1,
    |p| q: _mm256_or_si256(nibbles(p, 8), fifth_bits(p, 4)),
    |a, b| two: five_bits_of_both(a, b, 4),
    |rows| d: f16s(rows, 0), m: f16s(rows, 2)
);
unpack_32!(
    BlockQ8_0,
    |p| q: raise::<RAISED>(load32(p, 2)),
    |a, b| two: [raise::<RAISED>(of_both(a, b, 2)), raise::<RAISED>(of_both(a, b, 18))],
    |rows| d: f16s(rows, 0)
);
unpack_32!(
    BlockIQ4_NL,
    |p| q: look_up(&IQ4_TABLE, nibbles(p, 2), iq4_bias(RAISED)),
    |a, b| two: look_both_up(&IQ4_TABLE, nibbles_of_both(a, b, 2), iq4_bias(RAISED)),
    |rows| d: f16s(rows, 0)
);
unpack_32!(
    BlockMXFP4,
    |p| q: look_up(&MXFP4_TABLE, nibbles(p, 1), 0),
    |a, b| two: look_both_up(&MXFP4_TABLE, nibbles_of_both(a, b, 1), 0),
    |rows| d: exponents(rows)
);

impl Unpack for BlockNVFP4 {
    #[inline(always)]
    unsafe fn integers<const RAISED: bool>(p: *const u8, i: usize, _: u32) -> __m256i {
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

/// The types of 256 weights a block: `$q` reads the integers of group `$i`, `$two` those of `$span` groups of two rows,
/// `$scales` the scales, whose offsets begin at column `$offsets`.
macro_rules! unpack_256 {
    ($block:ident, scales: $scales:ident, offsets: $offsets:literal, |$p:ident, $i:ident| $q:expr
     $(, two: |$a:ident, $b:ident, $s:ident| $span:literal: $two:expr)?
     $(, four: |$row:ident, $at:ident| $four:expr)?) => {
        impl Unpack for $block {
            const BYTES: Option<usize> = Some($offsets);
            $(const SPAN: usize = $span;)?

            #[inline(always)]
            unsafe fn integers<const RAISED: bool>($p: *const u8, $i: usize, _: u32) -> __m256i {
                // SAFETY: all reads lie in the block; the features are the caller's promise.
                unsafe { $q }
            }

            $(
                #[inline(always)]
                unsafe fn four_groups<const RAISED: bool>($row: *const u8, $at: usize) -> [__m256i; 4] {
                    // SAFETY: as above.
                    unsafe { $four }
                }
            )?

            $(
                #[inline(always)]
                unsafe fn two_rows<const RAISED: bool>($a: *const u8, $b: *const u8, $s: usize) -> [[__m256i; 2]; 2] {
                    // SAFETY: as above.
                    unsafe { $two }
                }
            )?

            #[inline(always)]
            unsafe fn scales(rows: &[*const u8; 8], to: &mut Scales) {
                // SAFETY: as above.
                unsafe { $scales(rows, to) }
            }
        }
    };
}

/// 16 bytes of each row to 16 columns, from `first` on; the rows come as `k` and `k + 4` in the two lanes.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn columns(r: &[__m256i; 4], to: &mut Scales, first: usize) {
    // SAFETY: four columns of eight bytes each; the features are the caller's promise.
    unsafe {
        let (ab, ab_high) = (_mm256_unpacklo_epi8(r[0], r[1]), _mm256_unpackhi_epi8(r[0], r[1]));
        let (cd, cd_high) = (_mm256_unpacklo_epi8(r[2], r[3]), _mm256_unpackhi_epi8(r[2], r[3]));
        // Bytes 4q.. of rows 0 to 3, then of rows 4 to 7.
        let quads = [
            _mm256_unpacklo_epi16(ab, cd),
            _mm256_unpackhi_epi16(ab, cd),
            _mm256_unpacklo_epi16(ab_high, cd_high),
            _mm256_unpackhi_epi16(ab_high, cd_high),
        ];
        for q in 0..4 {
            let four = _mm256_permutevar8x32_epi32(quads[q], _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(to.columns[first + 4 * q..].as_mut_ptr().cast(), four);
        }
    }
}

/// `$read(a, b)` of rows `k` and `k + 4`, for the four `k`.
macro_rules! both {
    ($rows:expr, |$a:ident, $b:ident| $read:expr) => {{
        let mut read = [_mm256_setzero_si256(); 4];
        for i in 0..4 {
            let ($a, $b) = ($rows[i], $rows[i + 4]);
            read[i] = $read;
        }
        read
    }};
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
        columns(&both!(rows, |a, b| x86::scales_mins_6bit(of_both(a, b, 0))), to, 0);
        to.by = [f16s(rows, 0), minus(f16s(rows, 2))];
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
        columns(&both!(rows, |a, b| of_both(a, b, 192)), to, 0);
        to.by[0] = f16s(rows, 208);
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
        let mut scales = both!(rows, |a, b| of_both(a, b, 0));
        let mut mins = scales;
        for i in 0..4 {
            [scales[i], mins[i]] = low_high(scales[i]);
        }
        columns(&scales, to, 0);
        columns(&mins, to, 16);
        to.by = [f16s(rows, 80), minus(f16s(rows, 82))];
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
        columns(&both!(rows, |a, b| _mm256_set_m128i(x86::scales_q3(b), x86::scales_q3(a))), to, 0);
        to.by[0] = f16s(rows, 108);
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
        columns(&both!(rows, |a, b| _mm256_set_m128i(x86::scales_iq4_xs(b), x86::scales_iq4_xs(a))), to, 0);
        to.by[0] = f16s(rows, 0);
    }
}

/// The nibbles of 32 bytes at `at` of two rows: two groups.
///
/// # Safety
/// - As for [`of_both`].
#[inline(always)]
unsafe fn nibbles_of_groups(a: *const u8, b: *const u8, at: usize) -> [[__m256i; 2]; 2] {
    // SAFETY: the caller's promises.
    unsafe {
        let [first, second] = [low_high(of_both(a, b, at)), low_high(of_both(a, b, at + 16))];
        [[first[0], second[0]], [first[1], second[1]]]
    }
}

unpack_256!(
    BlockQ4_K,
    scales: scales_6bit, offsets: 8,
    |p, i| bits(load32(p, 16 + i / 2 * 32), i % 2 * 4, 15),
    two: |a, b, s| 2: nibbles_of_groups(a, b, 16 + 32 * s)
);
unpack_256!(
    BlockQ5_K,
    scales: scales_6bit, offsets: 8,
    |p, i| {
        let low = bits(load32(p, 48 + i / 2 * 32), i % 2 * 4, 15);
        _mm256_or_si256(low, _mm256_slli_epi16::<4>(bits(load32(p, 16), i, 1)))
    },
    two: |a, b, s| 2: {
        let mut q = nibbles_of_groups(a, b, 48 + 32 * s);
        for half in 0..2 {
            // Bits 2s and 2s + 1 of a byte, as its lowest two.
            let two = _mm256_srlv_epi64(of_both(a, b, 16 + 16 * half), _mm256_set1_epi64x(2 * s as i64));
            let first = _mm256_slli_epi16::<4>(_mm256_and_si256(two, _mm256_set1_epi8(1)));
            let second = _mm256_slli_epi16::<3>(_mm256_and_si256(two, _mm256_set1_epi8(2)));
            q[0][half] = _mm256_or_si256(q[0][half], first);
            q[1][half] = _mm256_or_si256(q[1][half], second);
        }
        q
    }
);
/// The pairs of bits of 32 bytes: four groups, the lowest first.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn quarters(z: __m256i) -> [__m256i; 4] {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let three = _mm256_set1_epi8(3);
        [
            _mm256_and_si256(z, three),
            _mm256_and_si256(_mm256_srli_epi16::<2>(z), three),
            _mm256_and_si256(_mm256_srli_epi16::<4>(z), three),
            _mm256_and_si256(_mm256_srli_epi16::<6>(z), three),
        ]
    }
}

unpack_256!(
    BlockQ6_K,
    scales: scales_8bit, offsets: 16,
    |p, i| {
        let low = bits(load32(p, i / 4 * 64 + i % 2 * 32), i % 4 / 2 * 4, 15);
        _mm256_or_si256(low, _mm256_slli_epi16::<4>(bits(load32(p, 128 + i / 4 * 32), i % 4 * 2, 3)))
    },
    four: |p, s| {
        let ([a, c], [b, d]) = (low_high(load32(p, 64 * s)), low_high(load32(p, 64 * s + 32)));
        let (high, two) = (load32(p, 128 + 32 * s), _mm256_set1_epi8(0x30));
        [
            _mm256_or_si256(a, _mm256_and_si256(_mm256_slli_epi16::<4>(high), two)),
            _mm256_or_si256(b, _mm256_and_si256(_mm256_slli_epi16::<2>(high), two)),
            _mm256_or_si256(c, _mm256_and_si256(high, two)),
            _mm256_or_si256(d, _mm256_and_si256(_mm256_srli_epi16::<2>(high), two)),
        ]
    }
);
unpack_256!(
    BlockQ2_K,
    scales: scales_4bit, offsets: 16,
    |p, i| bits(load32(p, 16 + i / 4 * 32), i % 4 * 2, 3),
    four: |p, s| quarters(load32(p, 16 + 32 * s))
);
unpack_256!(
    BlockQ3_K,
    scales: scales_q3, offsets: 16,
    |p, i| {
        let low = bits(load32(p, 32 + i / 4 * 32), i % 4 * 2, 3);
        _mm256_or_si256(low, _mm256_slli_epi16::<2>(bits(load32(p, 0), i, 1)))
    },
    four: |p, s| {
        let [a, b, c, d] = quarters(load32(p, 32 + 32 * s));
        // Bits 4s to 4s + 3 of a byte, as its lowest four.
        let high = _mm256_srlv_epi64(load32(p, 0), _mm256_set1_epi64x(4 * s as i64));
        [
            _mm256_or_si256(a, _mm256_slli_epi16::<2>(_mm256_and_si256(high, _mm256_set1_epi8(1)))),
            _mm256_or_si256(b, _mm256_slli_epi16::<1>(_mm256_and_si256(high, _mm256_set1_epi8(2)))),
            _mm256_or_si256(c, _mm256_and_si256(high, _mm256_set1_epi8(4))),
            _mm256_or_si256(d, _mm256_and_si256(_mm256_srli_epi16::<1>(high), _mm256_set1_epi8(4))),
        ]
    }
);
unpack_256!(
    BlockIQ4_XS,
    scales: scales_iq4, offsets: 16,
    |p, i| look_up(&IQ4_TABLE, nibbles(p, 8 + 16 * i), iq4_bias(RAISED)),
    two: |a, b, s| 1: [
        look_both_up(&IQ4_TABLE, nibbles_of_both(a, b, 8 + 16 * s), iq4_bias(RAISED)),
        [_mm256_setzero_si256(); 2]
    ]
);

/// 8 magnitudes of each of four words.
///
/// A gather takes as long as four loads, but the indices come in a register: shifts and masks of each, in general registers,
/// took most of the time.
///
/// # Safety
/// - The CPU has the features of the set.
/// - Each of `indices` is less than `N`.
#[inline(always)]
unsafe fn eights<const N: usize>(grid: &[[u8; 8]; N], indices: __m128i) -> __m256i {
    // SAFETY: the caller's promises.
    unsafe { _mm256_i32gather_epi64::<8>(grid.as_ptr().cast(), indices) }
}

/// 4 magnitudes of each of eight words.
///
/// # Safety
/// - As for [`eights`].
#[inline(always)]
unsafe fn fours<const N: usize>(grid: &[[u8; 4]; N], indices: __m256i) -> __m256i {
    // SAFETY: the caller's promises.
    unsafe { _mm256_i32gather_epi32::<4>(grid.as_ptr().cast(), indices) }
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
        let columns = super::panel::transpose(numbers);
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

/// `2 n + 1` for the nibbles `n` of the lower half of each lane.
///
/// # Safety
/// - The CPU has the features of the set.
#[inline(always)]
unsafe fn odd(z: __m256i) -> __m256i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let both = _mm256_unpacklo_epi8(z, _mm256_srli_epi16::<4>(z));
        let twice = _mm256_slli_epi16::<1>(_mm256_and_si256(both, _mm256_set1_epi8(15)));
        _mm256_or_si256(twice, _mm256_set1_epi8(1))
    }
}

/// 16 nibbles at `at` of each row, for 16 weights each: `d * (n + 1/2) / 4`.
///
/// # Safety
/// - The CPU has the features of the set.
/// - What is read lies in the block at each pointer.
#[inline(always)]
unsafe fn scales_iq2(rows: &[*const u8; 8], at: usize, to: &mut Scales) {
    // SAFETY: the bytes and the features are the caller's promise.
    unsafe {
        let bytes = both!(rows, |a, b| {
            let (a, b) = (_mm_loadl_epi64(a.add(at).cast()), _mm_loadl_epi64(b.add(at).cast()));
            odd(_mm256_set_m128i(b, a))
        });
        columns(&bytes, to, 0);
        to.by[0] = _mm256_mul_ps(f16s(rows, 0), _mm256_set1_ps(0.125));
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
        let bytes = both!(rows, |a, b| {
            let (a, b) = (_mm_cvtsi32_si128(dword(a, 106) as i32), _mm_cvtsi32_si128(dword(b, 106) as i32));
            odd(_mm256_set_m128i(b, a))
        });
        columns(&bytes, to, 0);
        to.by[0] = f16s(rows, 0);
    }
}

/// The types with a codebook: `$magnitudes` reads those of group `$i`, `$bits` its signs, which may be `$shared`.
macro_rules! unpack_codes {
    ($block:ident, largest: $largest:literal, bytes: $bytes:expr, scales: $scales:ident, |$p:ident, $i:ident, $shared:ident|
     $magnitudes:expr, signs: $signs:expr) => {
        impl Unpack for $block {
            const MAGNITUDE: Option<u8> = Some($largest);
            const BYTES: Option<usize> = $bytes;

            #[inline(always)]
            unsafe fn integers<const RAISED: bool>(p: *const u8, i: usize, signs: u32) -> __m256i {
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

unpack_codes!(BlockIQ2_XXS, largest: 43, bytes: None, scales: scales_iq2_xxs, |p, i, signs| {
    eights::<256>(&grids::IQ2_XXS_GRID, _mm_cvtepu8_epi32(_mm_cvtsi32_si128(dword(p, 2 + 8 * i) as i32)))
}, signs: signs);
unpack_codes!(BlockIQ2_XS, largest: 43, bytes: Some(16), scales: scales_iq2_xs, |p, i, signs| {
    let words = _mm_cvtepu16_epi32(_mm_loadl_epi64(p.add(2 + 8 * i).cast()));
    eights::<512>(&grids::IQ2_XS_GRID, _mm_and_si128(words, _mm_set1_epi32(511)))
}, signs: signs);
unpack_codes!(BlockIQ2_S, largest: 43, bytes: Some(16), scales: scales_iq2_s, |p, i, _signs| {
    let low = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(dword(p, 2 + 4 * i) as i32));
    let high = _mm_sllv_epi32(_mm_set1_epi32(i32::from(*p.add(66 + i))), _mm_setr_epi32(8, 6, 4, 2));
    eights::<1024>(&grids::IQ2_S_GRID, _mm_or_si128(low, _mm_and_si128(high, _mm_set1_epi32(0x300))))
}, signs: dword(p, 34 + 4 * i));
unpack_codes!(BlockIQ3_XXS, largest: 62, bytes: None, scales: scales_iq3_xxs, |p, i, signs| {
    fours::<256>(&grids::IQ3_XXS_GRID, _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(2 + 8 * i).cast())))
}, signs: signs);
unpack_codes!(BlockIQ3_S, largest: 15, bytes: Some(16), scales: scales_iq3_s, |p, i, _signs| {
    let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(2 + 8 * i).cast()));
    let high = _mm256_sllv_epi32(_mm256_set1_epi32(i32::from(*p.add(66 + i))), _mm256_setr_epi32(8, 7, 6, 5, 4, 3, 2, 1));
    fours::<512>(&grids::IQ3_S_GRID, _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi32(0x100))))
}, signs: dword(p, 74 + 4 * i));
