//! From a path to a [`Checkpoint`]: metadata and tensors of a model file, validated once.
//!
//! One file a format. Parsers hold no unsafe code, use checked arithmetic over a byte slice, allocate
//! nothing by a size that the file declares, and hand out views that cannot fail.

pub mod gguf;

pub use gguf::{Array, Checkpoint, Metadata, StringArray, TensorInfo, Value, ValueType, open, open_with};
