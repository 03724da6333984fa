//! NVFP4: floats of 4 bits (E2M1) as in MXFP4, a float of 8 bits (E4M3 without its sign) per 16. `w = d * TABLE[q]`.
//!
//! A scale of the whole tensor is stored beside it, and multiplied with what comes of it.
//!
//! ```text
//! byte 0..4   d   E4M3 per 16 weights; half of it counts, as the table holds twice the values
//! byte 4..36  qs  8 bytes per 16 weights: high nibble: weight 8 + j, low nibble: weight j
//! ```

use super::{Block, DType, Group, MXFP4_TABLE};

/// A block of NVFP4.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockNVFP4 {
    /// Scales, E4M3.
    pub d: [u8; 4],
    /// Nibbles of each 16 weights.
    pub qs: [[u8; 8]; 4],
}

impl Block for BlockNVFP4 {
    const DTYPE: DType = DType::NVFP4;
    const BIAS: u8 = 16;
    const LARGEST: u8 = 31;
    const HALVES: bool = true;

    fn group(&self, i: usize) -> Group {
        let code = |k: usize| {
            let byte = self.qs[2 * i + k / 16][k % 8];
            if k % 16 < 8 { byte & 15 } else { byte >> 4 }
        };
        Group {
            q: std::array::from_fn(|k| MXFP4_TABLE[usize::from(code(k))]),
            d: [0, 1].map(|h| nvfp4_scale(self.d[2 * i + h])),
            m: [0.0; 2],
        }
    }
}

/// Half of an E4M3, whose sign does not count, and whose NaN is zero.
pub fn nvfp4_scale(e: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(e >> 3 & 15), f32::from(e & 7));
    match (e, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa / 1024.0,
        _ => (8.0 + mantissa) * f32::from_bits((exponent + 127 - 11) << 23),
    }
}
