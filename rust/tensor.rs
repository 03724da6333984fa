//! A tensor as it lies in the file: bytes, type, shape.

use std::ops::Range;

use crate::mapping::Bytes;
use crate::quant::DType;

/// A view of a tensor's bytes. Cheap to clone; it keeps the file mapped.
///
/// `shape` is in the file's order: `shape[0]` is the length of a row and varies fastest (numpy would print it last).
/// The bytes are exactly those of the tensor: [`TensorView::new`] compares, and nobody else makes one. Kernels rely
/// on it.
#[derive(Debug, Clone)]
pub struct TensorView {
    bytes: Bytes,
    dtype: DType,
    shape: Vec<usize>,
    row_bytes: usize,
}

impl TensorView {
    /// A tensor of this type and shape over `bytes`; `None` if it does not have exactly so many, if rows are not whole
    /// blocks, or if there is no dimension or an empty one.
    pub fn new(bytes: Bytes, dtype: DType, shape: &[usize]) -> Option<Self> {
        let (&row, others) = shape.split_first()?;
        if shape.contains(&0) {
            return None;
        }
        let row_bytes = dtype.row_bytes(row)?;
        let size = others.iter().try_fold(row_bytes, |size, &n| size.checked_mul(n))?;
        (size == bytes.len()).then(|| Self { bytes, dtype, shape: shape.to_vec(), row_bytes })
    }

    /// The blocks, as they lie in the file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How the blocks are encoded.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Length of each dimension, fastest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

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
        self.row_bytes
    }

    /// Row `i`, as it lies in the file.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> &[u8] {
        assert!(i < self.n_rows(), "row {i} of {}", self.n_rows());
        &self.bytes[i * self.row_bytes..][..self.row_bytes]
    }

    /// The rows `range` as a matrix of their own: one of several that a file keeps in one tensor. `None` if there are not
    /// so many.
    pub fn rows(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.n_rows() {
            return None;
        }
        let start = self.bytes.offset();
        let bytes = start + range.start * self.row_bytes..start + range.end * self.row_bytes;
        Self::new(Bytes::new(self.bytes.mapping(), bytes)?, self.dtype, &[self.row_len(), range.len()])
    }

    /// The elements `range` of a vector as one of their own. `None` if it is no vector, if there are not so many, or if they
    /// are not whole blocks.
    pub fn elements(&self, range: Range<usize>) -> Option<Self> {
        if self.n_rows() != 1 || range.start > range.end || range.end > self.row_len() {
            return None;
        }
        let start = self.bytes.offset();
        let bytes = start + self.dtype.row_bytes(range.start)?..start + self.dtype.row_bytes(range.end)?;
        Self::new(Bytes::new(self.bytes.mapping(), bytes)?, self.dtype, &[range.len()])
    }
}
