//! Q4_0: 4 bits a weight, 4.5 with its share of the scale. `w = d * (q - 8)`.
//!
//! ```text
//! byte 0..2  d   f16
//! byte 2..18 qs  high nibble: weight 16 + j, low nibble: weight j
//! ```

use super::{Block, DType, Group, f16, nibbles};

/// A block of Q4_0.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ4_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Low nibbles are weights 0 to 15, high nibbles 16 to 31.
    pub qs: [u8; 16],
}

impl Block for BlockQ4_0 {
    const DTYPE: DType = DType::Q4_0;
    const BIAS: u8 = 8;
    const LARGEST: u8 = 15;

    fn group(&self, _i: usize) -> Group {
        let d = f16(self.d);
        Group { q: nibbles(&self.qs), d: [d; 2], m: [0.0; 2] }
    }
}
