//! A tensor as it lies in the file: bytes, type, shape.

use crate::mapping::Bytes;
use crate::quant::DType;

/// A view of a tensor's bytes. Cheap to clone; it keeps the file mapped.
///
/// `shape` is in the file's order: `shape[0]` is the length of a row and varies fastest (numpy would
/// print it last). Whoever makes one has checked that `bytes` holds exactly the tensor.
#[derive(Debug, Clone)]
pub struct TensorView {
    /// The blocks, as they lie in the file.
    pub bytes: Bytes,
    /// How the blocks are encoded.
    pub dtype: DType,
    /// Length of each dimension, fastest first; one to four of them.
    pub shape: Vec<usize>,
}

impl TensorView {
    /// Length of a row: `shape[0]`.
    pub fn row_len(&self) -> usize {
        self.shape[0]
    }

    /// Number of rows: the product of all dimensions but the first.
    pub fn n_rows(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.row_len()).expect("checked when the view was made")
    }

    /// Row `i`, as it lies in the file.
    pub fn row(&self, i: usize) -> &[u8] {
        let n = self.row_bytes();
        &self.bytes[i * n..(i + 1) * n]
    }
}
