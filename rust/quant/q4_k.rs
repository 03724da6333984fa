//! Q4_K: 4 bits a weight, 4.5 with its share of the scales. `w = d * scale * q - dmin * min`.
//!
//! ```text
//! byte   0..2   d       f16
//! byte   2..4   dmin    f16
//! byte   4..16  scales  8 groups x (6-bit scale, 6-bit minimum)
//! byte  16..144 qs      4 x 32 bytes: low nibbles are group 2c, high nibbles group 2c + 1
//! ```

use super::{Block, DType, Group, f16, scale_min_6bit};

/// A block of Q4_K.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ4_K {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// 6-bit scales and minima of the 8 groups, see `scale_min_6bit`.
    pub scales: [u8; 12],
    /// Nibbles.
    pub qs: [u8; 128],
}

impl Block for BlockQ4_K {
    const DTYPE: DType = DType::Q4_K;
    const BIAS: u8 = 0;
    const LARGEST: u8 = 15;
    const MINS: bool = true;

    fn group(&self, i: usize) -> Group {
        let (scale, min) = scale_min_6bit(&self.scales, i);
        let qs = &self.qs[i / 2 * 32..][..32];
        Group {
            q: std::array::from_fn(|k| qs[k] >> (i % 2 * 4) & 15),
            d: [f16(self.d) * f32::from(scale); 2],
            m: [-(f16(self.dmin) * f32::from(min)); 2],
        }
    }
}
