//! MXFP4 of the OCP microscaling formats: floats of 4 bits (E2M1), a power of two per 32. `w = d * TABLE[q]`.
//!
//! ```text
//! byte 0     e   the scale is 2^(e - 128): half of the format's own, as the table holds twice the values
//! byte 1..17 qs  high nibble: weight 16 + j, low nibble: weight j
//! ```

use super::{Block, DType, Group, nibbles};

/// A block of MXFP4.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockMXFP4 {
    /// Exponent of the scale, E8M0.
    pub e: u8,
    /// Low nibbles are weights 0 to 15, high nibbles 16 to 31.
    pub qs: [u8; 16],
}

impl Block for BlockMXFP4 {
    const DTYPE: DType = DType::MXFP4;
    const BIAS: u8 = 16;
    const LARGEST: u8 = 31;

    fn group(&self, _i: usize) -> Group {
        let d = mxfp4_scale(self.e);
        Group { q: nibbles(&self.qs).map(|q| MXFP4_TABLE[usize::from(q)]), d: [d; 2], m: [0.0; 2] }
    }
}

/// Twice the values of the 16 E2M1 codes, raised by 16.
pub const MXFP4_TABLE: [u8; 16] = [16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4];

/// 2^(e - 128), also where that is subnormal.
pub fn mxfp4_scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}
