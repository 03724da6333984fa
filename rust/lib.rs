//! LLaMA models that are ready at once: a memory-mapped GGUF engine whose kernels read the file as it lies.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use llama_rs::{Interrupt, Model, Session, SessionOptions};
//!
//! let model = Arc::new(Model::open(Path::new("model.gguf"))?); // mapped: nothing is read
//! let tokens = model.tokenizer()?.encode("Once upon a time", true, false)?;
//! let mut session = Session::new(&model, SessionOptions::default())?;
//! let logits = session.forward(&tokens, &Interrupt::never())?;
//! println!("{} logits", logits.len());
//! # Ok::<(), llama_rs::Error>(())
//! ```

pub mod arch;
pub mod checkpoint;
pub mod engine;
pub mod error;
pub mod formats;
pub mod generate;
mod hash;
pub mod kernels;
pub mod kv;
pub mod mapping;
pub mod measure;
pub mod model;
#[cfg(feature = "python")]
mod python;
pub mod quant;
pub mod sampling;
pub mod session;
pub mod tensor;
pub mod threads;
pub mod tokenizer;
pub mod weights;

pub use checkpoint::Checkpoint;
pub use error::{Error, FormatError, Result};
pub use model::Model;
pub use session::{Session, SessionOptions};
pub use threads::Interrupt;
pub use tokenizer::Tokenizer;
