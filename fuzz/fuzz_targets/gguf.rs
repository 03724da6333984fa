//! Any bytes as a model file: open it, check it, use its vocabulary, run it. Errors are fine, panics are not.
//!
//! A good start for the corpus is what `tests/tiny_model.py` and `tests/bad_gguf.py` write:
//! `python tests/bad_gguf.py fuzz/corpus/gguf`.

#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use llama_rs::internals::formats;
use llama_rs::{Error, Interrupt, Model, Result, Session, SessionOptions, Tokenizer};

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("llama_rs-fuzz-{}.gguf", std::process::id()));
    std::fs::write(&path, bytes).expect("a temporary file can be written");
    let report = |e: Error| assert!(!e.to_string().contains('\n'), "{e}");
    tokenize(&path).unwrap_or_else(report);
    run(&path).unwrap_or_else(report);
});

fn tokenize(path: &Path) -> Result<()> {
    let checkpoint = formats::open(path)?;
    let tokenizer = Tokenizer::from_metadata(&checkpoint.metadata)?;
    let ids = tokenizer.encode("Hello, world! <|im_start|> é\u{1f980}\0 12345", true, true)?;
    tokenizer.decode(&ids, false)?;
    tokenizer.end_tokens()?;
    Ok(())
}

fn run(path: &Path) -> Result<()> {
    let model = Arc::new(Model::open(path)?);
    let mut session = Session::new(&model, SessionOptions { context_length: 4, threads: 1, ..Default::default() })?;
    session.forward(&[0, 1], &Interrupt::never())?;
    session.forward(&[0], &Interrupt::never())?;
    Ok(())
}
