//! Q6_K: 6 bits a weight, 6.5625 with its share of the scales. `w = d * scale * (q - 32)`.
//!
//! Groups 0 to 3 are the first half of the block, 4 to 7 the second; `j` counts within a half.
//!
//! ```text
//! byte   0..128 ql      2 halves x 2 x 32 bytes: low nibbles are groups j = 0, 1, high nibbles j = 2, 3
//! byte 128..192 qh      2 halves x 32 bytes: bits 2j and 2j + 1 are the high bits of group j
//! byte 192..208 scales  i8 per 16 weights
//! byte 208..210 d       f16
//! ```

use super::{Block, DType, Group, f16};

/// A block of Q6_K.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ6_K {
    /// Low nibbles.
    pub ql: [u8; 128],
    /// High pairs of bits.
    pub qh: [u8; 64],
    /// Scales, i8, per 16 weights.
    pub scales: [u8; 16],
    /// Scale, f16.
    pub d: [u8; 2],
}

impl Block for BlockQ6_K {
    const DTYPE: DType = DType::Q6_K;
    const BIAS: u8 = 32;
    const LARGEST: u8 = 63;
    const HALVES: bool = true;

    fn group(&self, i: usize) -> Group {
        let (half, j) = (i / 4, i % 4);
        let ql = &self.ql[half * 64 + j % 2 * 32..][..32];
        let qh = &self.qh[half * 32..][..32];
        Group {
            q: std::array::from_fn(|k| ql[k] >> (j / 2 * 4) & 15 | (qh[k] >> (2 * j) & 3) << 4),
            d: std::array::from_fn(|h| f16(self.d) * f32::from(self.scales[2 * i + h] as i8)),
            m: [0.0; 2],
        }
    }
}
