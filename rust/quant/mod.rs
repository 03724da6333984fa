//! The tensor types of GGUF, one file a type, and the table of them all.
//!
//! Each file holds a type's bits in words and in a picture, its `#[repr(C)]` block struct (alignment 1,
//! so that any file offset will do), and how a block falls into groups of 32 integers with their
//! scales. From that follow the reference dequantisation and the scalar kernels: the slow, obvious
//! twins of every fast kernel.
//!
//! Sources: the GGUF specification and `ggml-common.h` of ggml define the types; the block layouts
//! are facts of the format.

/// Declares `DType` and its table: name, id in the file, weights a block, bytes a block.
macro_rules! dtypes {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $weights:literal, $bytes:literal;)*) => {
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
    };
}

dtypes! {
    /// 32-bit IEEE float.
    F32 = 0, 1, 4;
    /// 16-bit IEEE float.
    F16 = 1, 1, 2;
    /// 4 bits, scale per 32.
    Q4_0 = 2, 32, 18;
    /// 4 bits, scale and minimum per 32.
    Q4_1 = 3, 32, 20;
    /// 5 bits, scale per 32.
    Q5_0 = 6, 32, 22;
    /// 5 bits, scale and minimum per 32.
    Q5_1 = 7, 32, 24;
    /// 8 bits, scale per 32.
    Q8_0 = 8, 32, 34;
    /// 8 bits, scale and sum per 32 (activations only).
    Q8_1 = 9, 32, 36;
    /// 2 bits, 4-bit scales and minima per 16 in blocks of 256.
    Q2_K = 10, 256, 84;
    /// 3 bits, 6-bit scales per 16 in blocks of 256.
    Q3_K = 11, 256, 110;
    /// 4 bits, 6-bit scales and minima per 32 in blocks of 256.
    Q4_K = 12, 256, 144;
    /// 5 bits, 6-bit scales and minima per 32 in blocks of 256.
    Q5_K = 13, 256, 176;
    /// 6 bits, 8-bit scales per 16 in blocks of 256.
    Q6_K = 14, 256, 210;
    /// 8 bits, float scale per 256 (activations only).
    Q8_K = 15, 256, 292;
    /// Codebook, 2.06 bits.
    IQ2_XXS = 16, 256, 66;
    /// Codebook, 2.31 bits.
    IQ2_XS = 17, 256, 74;
    /// Codebook, 3.06 bits.
    IQ3_XXS = 18, 256, 98;
    /// Codebook, 1.56 bits.
    IQ1_S = 19, 256, 50;
    /// 4 bits into a non-linear table, scale per 32.
    IQ4_NL = 20, 32, 18;
    /// Codebook, 3.44 bits.
    IQ3_S = 21, 256, 110;
    /// Codebook, 2.56 bits.
    IQ2_S = 22, 256, 82;
    /// 4 bits into a non-linear table, 6-bit scales per 32 in blocks of 256.
    IQ4_XS = 23, 256, 136;
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
    IQ1_M = 29, 256, 56;
    /// The upper half of a 32-bit float.
    BF16 = 30, 1, 2;
    /// Ternary, 1.69 bits.
    TQ1_0 = 34, 256, 54;
    /// Ternary, 2.06 bits.
    TQ2_0 = 35, 256, 66;
    /// 4-bit floats (E2M1) with a power-of-two scale per 32, OCP MX.
    MXFP4 = 39, 32, 17;
}

impl DType {
    /// Whether a matrix of this type can be computed with.
    pub const fn is_supported(self) -> bool {
        use DType::*;
        matches!(
            self,
            F32 | F16
                | BF16
                | Q8_0
                | Q4_0
                | Q4_1
                | Q5_0
                | Q5_1
                | Q2_K
                | Q3_K
                | Q4_K
                | Q5_K
                | Q6_K
                | IQ4_NL
                | IQ4_XS
                | MXFP4
        )
    }

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
