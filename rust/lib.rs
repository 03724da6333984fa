//! LLaMA models that are ready at once: a memory-mapped GGUF engine whose kernels read the file as it lies.

pub mod error;
pub mod formats;
pub mod generate;
pub mod kernels;
pub mod mapping;
pub mod model;
pub mod quant;
pub mod sampling;
pub mod tensor;
pub mod threads;
pub mod tokenizer;

pub use error::{Error, FormatError, Result};
