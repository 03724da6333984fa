//! LLaMA models that are ready at once: a memory-mapped GGUF engine whose kernels read the file as it lies.

pub mod arch;
pub mod checkpoint;
pub mod error;
pub mod formats;
pub mod generate;
mod hash;
pub mod kernels;
pub mod mapping;
pub mod measure;
pub mod model;
#[cfg(feature = "python")]
mod python;
pub mod quant;
pub mod sampling;
pub mod tensor;
pub mod threads;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, FormatError, Result};
