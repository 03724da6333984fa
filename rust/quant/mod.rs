//! The tensor types of GGUF, one file a type, and the table of them all.
//!
//! Each file holds a type's bits in words and in a picture, its `#[repr(C)]` block struct (alignment 1,
//! so that any file offset will do), and how a block falls into groups of 32 integers with their
//! scales. From that follow the reference dequantisation and the scalar kernels: the slow, obvious
//! twins of every fast kernel.
//!
//! Sources: the GGUF specification and `ggml-common.h` of ggml define the types; the block layouts
//! are facts of the format.

/// Declares `DType` and its table: name, id in the file, weights a block, bytes a block and, for the types that kernels
/// compute with in blocks, the type of a block. The first word is `$`, for the macro that comes of it.
macro_rules! dtypes {
    ($d:tt $($(#[$doc:meta])* $name:ident = $id:literal, $weights:literal, $bytes:literal $(=> $block:ty)?;)*) => {
        /// How the numbers of a tensor are encoded. Named as GGUF names them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types)]
        #[non_exhaustive]
        pub enum DType {
            $($(#[$doc])* $name,)*
        }

        impl DType {
            /// Every type, in the order of the ids.
            pub const ALL: &[DType] = &[$(DType::$name),*];

            /// The type with this id in a GGUF file.
            pub fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(DType::$name),)* _ => None }
            }

            /// The id in a GGUF file.
            pub const fn id(self) -> u32 {
                match self { $(DType::$name => $id,)* }
            }

            /// The name in GGUF's spelling.
            pub const fn name(self) -> &'static str {
                match self { $(DType::$name => stringify!($name),)* }
            }

            /// Weights in a block.
            pub const fn block_len(self) -> usize {
                match self { $(DType::$name => $weights,)* }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(DType::$name => $bytes,)* }
            }
        }

        /// The type of a block by the name of its `DType`, for `with_quantized!`.
        #[allow(non_camel_case_types)]
        pub(crate) mod blocks {
            use super::*;

            $($(pub type $name = $block;)?)*
        }

        $($(const _: () = assert!(size_of::<$block>() == $bytes && align_of::<$block>() == 1);)?)*

        /// `with_quantized!(dtype, |B| expression, other)`: the expression with `B` the type of a block, or `other` if
        /// `dtype` is not a type that kernels compute with in blocks.
        macro_rules! with_quantized {
            ($d dtype:expr, |$d b:ident| $d body:expr, $d other:expr) => {
                match $d dtype {
                    $($(crate::quant::DType::$name => {
                        const _: &str = stringify!($block); // what repeats this arm for types that have one
                        type $d b = crate::quant::blocks::$name;
                        $d body
                    })?)*
                    _ => $d other,
                }
            };
        }
    };
}

dtypes! { $
    /// 32-bit IEEE float.
    F32 = 0, 1, 4;
    /// 16-bit IEEE float.
    F16 = 1, 1, 2;
    /// 4 bits, scale per 32.
    Q4_0 = 2, 32, 18 => BlockQ4_0;
    /// 4 bits, scale and minimum per 32.
    Q4_1 = 3, 32, 20 => BlockQ4_1;
    /// 5 bits, scale per 32.
    Q5_0 = 6, 32, 22 => BlockQ5_0;
    /// 5 bits, scale and minimum per 32.
    Q5_1 = 7, 32, 24 => BlockQ5_1;
    /// 8 bits, scale per 32.
    Q8_0 = 8, 32, 34 => BlockQ8_0;
    /// 8 bits, scale and sum per 32 (activations only).
    Q8_1 = 9, 32, 36;
    /// 2 bits, 4-bit scales and minima per 16 in blocks of 256.
    Q2_K = 10, 256, 84 => BlockQ2_K;
    /// 3 bits, 6-bit scales per 16 in blocks of 256.
    Q3_K = 11, 256, 110 => BlockQ3_K;
    /// 4 bits, 6-bit scales and minima per 32 in blocks of 256.
    Q4_K = 12, 256, 144 => BlockQ4_K;
    /// 5 bits, 6-bit scales and minima per 32 in blocks of 256.
    Q5_K = 13, 256, 176 => BlockQ5_K;
    /// 6 bits, 8-bit scales per 16 in blocks of 256.
    Q6_K = 14, 256, 210 => BlockQ6_K;
    /// 8 bits, float scale per 256 (activations only).
    Q8_K = 15, 256, 292;
    /// Codebook, 2.06 bits.
    IQ2_XXS = 16, 256, 66 => BlockIQ2_XXS;
    /// Codebook, 2.31 bits.
    IQ2_XS = 17, 256, 74 => BlockIQ2_XS;
    /// Codebook, 3.06 bits.
    IQ3_XXS = 18, 256, 98 => BlockIQ3_XXS;
    /// Codebook, 1.56 bits.
    IQ1_S = 19, 256, 50 => Generic<BlockIQ1_S>;
    /// 4 bits into a non-linear table, scale per 32.
    IQ4_NL = 20, 32, 18 => BlockIQ4_NL;
    /// Codebook, 3.44 bits.
    IQ3_S = 21, 256, 110 => BlockIQ3_S;
    /// Codebook, 2.56 bits.
    IQ2_S = 22, 256, 82 => BlockIQ2_S;
    /// 4 bits into a non-linear table, 6-bit scales per 32 in blocks of 256.
    IQ4_XS = 23, 256, 136 => BlockIQ4_XS;
    /// 8-bit integer.
    I8 = 24, 1, 1;
    /// 16-bit integer.
    I16 = 25, 1, 2;
    /// 32-bit integer.
    I32 = 26, 1, 4;
    /// 64-bit integer.
    I64 = 27, 1, 8;
    /// 64-bit IEEE float.
    F64 = 28, 1, 8;
    /// Codebook, 1.75 bits.
    IQ1_M = 29, 256, 56 => Generic<BlockIQ1_M>;
    /// The upper half of a 32-bit float.
    BF16 = 30, 1, 2;
    /// Ternary, 1.69 bits.
    TQ1_0 = 34, 256, 54 => Generic<BlockTQ1_0>;
    /// Ternary, 2.06 bits.
    TQ2_0 = 35, 256, 66 => Generic<BlockTQ2_0>;
    /// 4-bit floats (E2M1) with a power-of-two scale per 32, OCP MX.
    MXFP4 = 39, 32, 17 => BlockMXFP4;
    /// 4-bit floats (E2M1) with an 8-bit float (E4M3) per 16; a scale of the tensor is stored beside it.
    NVFP4 = 40, 64, 36 => BlockNVFP4;
    /// 1 bit, scale per 128.
    Q1_0 = 41, 128, 18 => Generic<BlockQ1_0>;
    /// 2 bits, scale per 64.
    Q2_0 = 42, 64, 18 => Generic<BlockQ2_0>;
}

impl DType {
    /// Bytes of a row of `n` weights, or `None` if `n` is not a whole number of blocks or overflows.
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// 32 consecutive weights as integers and scales.
///
/// Weight `i` is `d[i / 16] * (q[i] - BIAS) + m[i / 16]`; types with one scale per 32 repeat it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// The integers, raised by the type's `BIAS` so that none is negative.
    pub q: [u8; 32],
    /// Scale of each half.
    pub d: [f32; 2],
    /// Offset of each half; zero for types without minima.
    pub m: [f32; 2],
}

/// A block of a quantised type, as it lies in the file.
pub trait Block: bytemuck::Pod {
    /// Which type it is.
    const DTYPE: DType;
    /// What was added to each integer to make it unsigned: 0 or a power of two, and 0 with `MINS`.
    const BIAS: u8;
    /// No integer of a group is larger, raised by the bias. Above 127 the bias is 128.
    const LARGEST: u8;
    /// Whether scales belong to 16 weights rather than 32.
    const HALVES: bool = false;
    /// Whether weights have offsets.
    const MINS: bool = false;
    /// Groups of 32 weights in a block.
    const GROUPS: usize = Self::DTYPE.block_len() / 32;

    /// Group `i` of the block: weights `32 * i ..`.
    fn group(&self, i: usize) -> Group;
}

/// A block that kernels read through [`Block::group`] alone: slowly, but with every instruction set. What a type starts
/// with, until somebody writes its unpackers by hand and measures them.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Generic<B>(B);

// SAFETY: nothing but a `B`, which is such a type.
unsafe impl<B: bytemuck::Zeroable> bytemuck::Zeroable for Generic<B> {}
// SAFETY: as above.
unsafe impl<B: bytemuck::Pod> bytemuck::Pod for Generic<B> {}

impl<B: Block> Block for Generic<B> {
    const DTYPE: DType = B::DTYPE;
    const BIAS: u8 = B::BIAS;
    const LARGEST: u8 = B::LARGEST;
    const HALVES: bool = B::HALVES;
    const MINS: bool = B::MINS;

    fn group(&self, i: usize) -> Group {
        self.0.group(i)
    }
}

pub(crate) mod grids;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod nvfp4;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod tq1_0;
mod tq2_0;

pub use iq1_m::BlockIQ1_M;
pub use iq1_s::BlockIQ1_S;
pub use iq2_s::BlockIQ2_S;
pub use iq2_xs::BlockIQ2_XS;
pub use iq2_xxs::BlockIQ2_XXS;
pub use iq3_s::BlockIQ3_S;
pub use iq3_xxs::BlockIQ3_XXS;
pub use iq4_nl::{BlockIQ4_NL, IQ4_TABLE};
pub use iq4_xs::BlockIQ4_XS;
pub use mxfp4::{BlockMXFP4, MXFP4_TABLE, mxfp4_scale};
pub use nvfp4::{BlockNVFP4, nvfp4_scale};
pub use q1_0::BlockQ1_0;
pub use q2_0::BlockQ2_0;
pub use q2_k::BlockQ2_K;
pub use q3_k::BlockQ3_K;
pub use q4_0::BlockQ4_0;
pub use q4_1::BlockQ4_1;
pub use q4_k::BlockQ4_K;
pub use q5_0::BlockQ5_0;
pub use q5_1::BlockQ5_1;
pub use q5_k::BlockQ5_K;
pub use q6_k::BlockQ6_K;
pub use q8_0::BlockQ8_0;
pub use tq1_0::BlockTQ1_0;
pub use tq2_0::BlockTQ2_0;

#[allow(clippy::single_component_path_imports)] // it makes a path of the macro, for other rooms
pub(crate) use with_quantized;

impl DType {
    /// Whether it is a block type that the kernels compute with.
    pub fn is_quantized(self) -> bool {
        with_quantized!(self, |B| B::DTYPE == self, false)
    }

    /// Whether a matrix of this type can be multiplied with.
    pub fn is_supported(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16) || self.is_quantized()
    }
}

/// Writes the weights in `bytes` to `out` as floats: the reference, slow and obvious.
///
/// # Panics
/// If `bytes` does not hold `out.len()` weights of a supported `dtype` (see [`DType::is_supported`]).
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()), "{dtype} bytes do not match");
    match dtype {
        DType::F32 => convert(bytes, out, f32::from_le_bytes),
        DType::F16 => convert(bytes, out, f16),
        DType::BF16 => convert(bytes, out, bf16),
        _ => with_quantized!(dtype, |B| dequantize_blocks::<B>(bytes, out), panic!("cannot dequantize {dtype}")),
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], to_f32: fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = to_f32(*bytes);
    }
}

fn dequantize_blocks<B: Block>(bytes: &[u8], out: &mut [f32]) {
    let blocks: &[B] = bytemuck::cast_slice(bytes);
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(B::DTYPE.block_len())) {
        for (i, out) in out.chunks_exact_mut(32).enumerate() {
            let g = block.group(i);
            for (k, out) in out.iter_mut().enumerate() {
                *out = g.d[k / 16] * (f32::from(g.q[k]) - f32::from(B::BIAS)) + g.m[k / 16];
            }
        }
    }
}

/// A 16-bit float as it lies in a block.
pub(crate) fn f16(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

pub(crate) fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// 16 bytes of nibbles: the low ones are weights 0 to 15, the high ones 16 to 31.
fn nibbles(qs: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|k| if k < 16 { qs[k] & 15 } else { qs[k - 16] >> 4 })
}

/// Nibbles with a fifth bit from bit `k` of `qh`.
fn nibbles5(qs: &[u8; 16], qh: &[u8; 4]) -> [u8; 32] {
    let (low, high) = (nibbles(qs), u32::from_le_bytes(*qh));
    std::array::from_fn(|k| low[k] | ((high >> k & 1) << 4) as u8)
}

/// Nibble `i` of `bytes`, the low one of a byte first.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (i % 2 * 4) & 15
}

/// The signs of 8 weights from 7 bits: the eighth makes their number even.
fn sign_7bit(seven: u8) -> u8 {
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// The signs of 32 weights from the 28 low bits of `word`.
fn signs_7bit(word: u32) -> u32 {
    u32::from_le_bytes([0, 7, 14, 21].map(|bit| sign_7bit((word >> bit & 127) as u8)))
}

/// 32 magnitudes, negative where the bit of `signs` is set, raised by `bias`.
fn signed(magnitudes: &[u8], signs: u32, bias: u8) -> [u8; 32] {
    std::array::from_fn(|k| if signs >> k & 1 == 1 { bias - magnitudes[k] } else { bias + magnitudes[k] })
}

/// Ternary weights, raised by 1, to eighths, shifted by one of them up or `down`, raised by `bias`.
fn shifted(ternary: [u8; 8], down: bool, bias: u8) -> [u8; 8] {
    ternary.map(|t| 8 * t + (bias - 8) + 1 - 2 * u8::from(down))
}

/// The 6-bit scale and minimum of group `i` of a Q4_K or Q5_K block.
///
/// ```text
/// byte  0..4   mm ssssss   scale of group 0..4, and two high bits of the scale of group 4..8
/// byte  4..8   mm mmmmmm   minimum of group 0..4, and two high bits of the minimum of group 4..8
/// byte  8..12  mmmm ssss   low nibbles of minimum and scale of group 4..8
/// ```
fn scale_min_6bit(scales: &[u8; 12], i: usize) -> (u8, u8) {
    if i < 4 {
        (scales[i] & 63, scales[i + 4] & 63)
    } else {
        let low = scales[i + 4];
        (low & 15 | scales[i - 4] >> 6 << 4, low >> 4 | scales[i] >> 6 << 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of random bits with plain scales, and what `dequantize` of the Python package gguf 0.19.0 makes of them: a line
    /// with the type and the bytes, a line with the weights.
    const GOLDEN: &str = include_str!("golden.txt");

    #[test]
    fn blocks_have_the_weights_that_gguf_gives_them() {
        let mut seen = Vec::new();
        let mut lines = GOLDEN.lines();
        while let (Some(block), Some(weights)) = (lines.next(), lines.next()) {
            let (name, digits) = block.split_once(' ').unwrap();
            let dtype = *DType::ALL.iter().find(|dtype| dtype.name() == name).unwrap();
            let digits = digits.as_bytes().as_chunks::<2>().0;
            let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            let bytes: Vec<u8> = digits.iter().map(byte).collect();
            let expected: Vec<f32> = weights.split(' ').map(|x| x.parse().unwrap()).collect();
            let mut got = vec![f32::NAN; expected.len()];
            dequantize(dtype, &bytes, &mut got);
            assert_eq!(got, expected, "{name}");
            seen.push(dtype);
        }
        let supported: Vec<_> = DType::ALL.iter().copied().filter(|dtype| dtype.is_supported()).collect();
        assert_eq!(seen, supported, "every type that kernels compute with");
    }

    /// Kernels choose their instructions by what a type says of its groups.
    #[test]
    fn groups_are_what_their_types_say() {
        fn check<B: Block>() {
            let (name, facts) = (B::DTYPE, (B::BIAS, B::LARGEST, B::HALVES, B::MINS));
            assert!(B::BIAS.is_power_of_two() != (B::BIAS == 0) && (B::BIAS == 0 || !B::MINS), "{name} {facts:?}");
            assert!(B::LARGEST <= 127 || B::BIAS == 128, "{name} {facts:?}");
            assert!(B::BIAS > 0 || B::MINS, "{name} {facts:?}");
            let mut state = 1u64;
            let mut bytes = vec![0u8; size_of::<B>()];
            for _ in 0..200 {
                for byte in &mut bytes {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = (state >> 56) as u8;
                }
                let block: B = *bytemuck::from_bytes(&bytes);
                for group in (0..B::GROUPS).map(|i| block.group(i)) {
                    assert!(group.q.iter().all(|&q| q <= B::LARGEST), "{name}: {group:?}");
                    let [d, m] = [group.d, group.m].map(|x| x.map(f32::to_bits));
                    assert!(B::HALVES || (d[0] == d[1] && m[0] == m[1]), "{name}: {group:?}");
                    assert!(B::MINS || group.m == [0.0; 2], "{name}: {group:?}");
                }
            }
        }
        for dtype in DType::ALL {
            with_quantized!(dtype, |B| check::<B>(), ());
        }
    }
}
