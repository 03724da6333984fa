//! The one integration test binary of the crate. Each module is a file beside this one.

#![allow(missing_docs)]

mod bad_gguf;
mod engine;
mod forward;
mod gguf_builder;
mod scheduler;
mod tokenizer;
