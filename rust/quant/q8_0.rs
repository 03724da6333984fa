//! Q8_0: 8 bits a weight, 8.5 with its share of the scale. `w = d * q`, q signed.
//!
//! ```text
//! byte 0..2  d   f16
//! byte 2..34 qs  i8 each
//! ```

use super::{Block, DType, Group, f16};

/// A block of Q8_0.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ8_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// The weights, i8.
    pub qs: [u8; 32],
}

impl Block for BlockQ8_0 {
    const DTYPE: DType = DType::Q8_0;
    const BIAS: u8 = 128;
    const LARGEST: u8 = 255;

    fn group(&self, _i: usize) -> Group {
        let d = f16(self.d);
        Group { q: self.qs.map(|q| q ^ 0x80), d: [d; 2], m: [0.0; 2] }
    }
}
