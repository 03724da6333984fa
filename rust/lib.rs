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

mod adapter;
mod arch;
mod chat;
mod checkpoint;
mod classify;
mod convert;
mod embedding;
mod engine;
mod error;
mod formats;
mod generate;
mod grammar;
mod hash;
mod http;
mod kernels;
mod kv;
mod likelihood;
mod mapping;
mod measure;
mod model;
#[cfg(feature = "python")]
mod python;
mod quant;
mod quantize;
mod sampling;
mod scheduler;
mod session;
mod tensor;
mod threads;
mod tokenizer;
mod weights;

pub use adapter::Adapter;
pub use arch::{Config, Pooling};
pub use checkpoint::{Checkpoint, Metadata, Value};
pub use convert::convert;
pub use embedding::{EmbedOptions, embed, rank};
pub use error::{Error, FormatError, Result};
pub use formats::open;
pub use generate::{Answer, Event, FinishReason, LogitsProcessor, Options, TokenLogprobs};
pub use grammar::{Constraint, Grammar};
pub use mapping::{Load, LoadOptions};
pub use model::Model;
pub use quant::DType;
pub use sampling::{Sampler, SamplingParams};
pub use session::{Session, SessionOptions};
pub use tensor::TensorView;
pub use threads::Interrupt;
pub use tokenizer::{StreamDecoder, Tokenizer};

/// What the benches and the tests of this crate look at. Not part of its interface: it changes without notice.
#[doc(hidden)]
#[allow(missing_docs)]
pub mod internals {
    macro_rules! rooms {
        ($($room:ident)*) => { $(pub mod $room { pub use crate::$room::*; })* };
    }
    rooms! {
        arch chat checkpoint classify embedding engine formats generate grammar hash http kv likelihood mapping measure quant quantize
        sampling scheduler tensor threads tokenizer weights
    }

    pub mod kernels {
        pub use crate::kernels::*;

        pub mod activations {
            pub use crate::kernels::activations::*;
        }
        pub mod matmul {
            pub use crate::kernels::matmul::*;
        }
    }
}
