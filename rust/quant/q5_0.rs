//! Q5_0: 5 bits a weight, 5.5 with its share of the scale. `w = d * (q - 16)`.
//!
//! ```text
//! byte 0..2  d   f16
//! byte 2..6  qh  bit k: fifth bit of weight k
//! byte 6..22 qs  high nibble: weight 16 + j, low nibble: weight j
//! ```

use super::{Block, DType, Group, f16, nibbles5};

/// A block of Q5_0.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ5_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Bit k is the fifth bit of weight k.
    pub qh: [u8; 4],
    /// Low nibbles are weights 0 to 15, high nibbles 16 to 31.
    pub qs: [u8; 16],
}

impl Block for BlockQ5_0 {
    const DTYPE: DType = DType::Q5_0;
    const BIAS: u8 = 16;
    const LARGEST: u8 = 31;

    fn group(&self, _i: usize) -> Group {
        let d = f16(self.d);
        Group { q: nibbles5(&self.qs, &self.qh), d: [d; 2], m: [0.0; 2] }
    }
}
