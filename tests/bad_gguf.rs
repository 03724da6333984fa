//! Damaged files: whatever the damage, an error of one line or a model that runs; nothing panics.
//!
//! The ways for a file to be bad that can be listed are in `bad_gguf.py`, each with what its message has to say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use llama_rs::internals::arch::Config;
use llama_rs::internals::checkpoint::Value;
use llama_rs::internals::formats;
use llama_rs::internals::quant::DType;
use llama_rs::internals::sampling::{Rng, Sampler, SamplingParams};
use llama_rs::internals::weights::Weights;
use llama_rs::{Error, Interrupt, Model, Result, Session, SessionOptions, Tokenizer};

use crate::gguf_builder::{Gguf, Tensor};

/// A file that is gone when the test is over.
pub struct TempFile(pub PathBuf);

impl TempFile {
    pub fn new(bytes: &[u8]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("llama_rs-{}-{n}.gguf", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens a file and looks at all that is in it, as far as it goes.
fn load(path: &Path) -> Result<()> {
    let checkpoint = formats::open(path)?;
    for (key, value) in checkpoint.metadata.iter() {
        assert!(checkpoint.metadata.get(key).is_some());
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len);
        }
    }
    for tensor in checkpoint.tensors() {
        assert!(checkpoint.tensor(tensor.name()).is_some());
        let view = &tensor.view;
        assert_eq!(view.row(view.n_rows() - 1).len(), view.row_bytes());
    }
    let model = Config::from_checkpoint(&checkpoint).and_then(|config| Weights::from_checkpoint(&checkpoint, &config));
    let tokenizer = Tokenizer::from_metadata(&checkpoint.metadata).and_then(use_tokenizer);
    model.and(tokenizer)
}

/// Makes the tokenizer read all of its vocabulary.
fn use_tokenizer(tokenizer: Tokenizer) -> Result<()> {
    for (add_special, parse_special) in [(false, false), (true, true)] {
        let ids = tokenizer.encode("Hello, hell! <|endoftext|> é\u{1f980}\0", add_special, parse_special)?;
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        tokenizer.decode(&ids, false)?;
    }
    for id in 0..tokenizer.vocab_size() as u32 {
        tokenizer.token_bytes(id)?;
    }
    tokenizer.end_tokens()?;
    Ok(())
}

fn load_bytes(bytes: &[u8]) -> Result<()> {
    load(&TempFile::new(bytes).0)
}

fn one_line(e: &Error) -> String {
    let text = e.to_string();
    assert!(!text.contains('\n') && text.len() < 1000, "{text}");
    text
}

#[test]
fn the_files_of_these_tests_are_good() {
    for file in [Gguf::llama(), Gguf::llama_with_spm()] {
        load_bytes(&file.bytes()).unwrap();
    }
}

/// Damages up to three of the first `range` bytes.
fn flip(bytes: &mut [u8], range: usize, rng: &mut Rng) {
    for _ in 0..1 + rng.next_u64() % 3 {
        let at = rng.next_u64() as usize % range;
        bytes[at] = match rng.next_u64() % 4 {
            0 => bytes[at] ^ 1 << (rng.next_u64() % 8),
            1 => 0,
            2 => 0xff,
            _ => rng.next_u64() as u8,
        };
    }
}

#[test]
fn no_flipped_byte_makes_it_panic() {
    let (bpe, bpe_header) = (Gguf::llama().bytes(), Gguf::llama().header().len());
    let (spm, spm_header) = (Gguf::llama_with_spm().bytes(), Gguf::llama_with_spm().header().len());
    let (mut rng, mut refused) = (Rng::new(1), 0);
    for i in 0..4000 {
        let (good, header) = if i % 3 == 0 { (&spm, spm_header) } else { (&bpe, bpe_header) };
        let mut bytes = good.clone();
        flip(&mut bytes, header, &mut rng);
        let file = TempFile::new(&bytes); // a new one each time: ext4 is slow to write over an old one
        match load(&file.0) {
            Ok(()) if i % 10 == 0 => drop(run(&file.0)), // a session may still be refused, for a lack of memory
            Ok(()) => {}
            Err(e) => {
                one_line(&e);
                refused += 1;
            }
        }
    }
    assert!(refused > 1000, "only {refused} of 4000 were refused: are the flips where they matter?");
}

#[test]
fn no_truncation_is_taken_for_a_whole_file() {
    let good = Gguf::llama().bytes();
    let header = Gguf::llama().header().len();
    let mut rng = Rng::new(2);
    let in_data = (0..200).map(|_| header + rng.next_u64() as usize % (good.len() - header));
    for n in (0..header).step_by(3).chain(in_data) {
        one_line(&load_bytes(&good[..n]).unwrap_err());
    }
}

/// Runs a model for a few tokens; what it says is as may be.
fn run(path: &Path) -> Result<()> {
    let model = Arc::new(Model::open(path)?);
    let mut session = Session::new(&model, SessionOptions { context_length: 8, threads: 1, ..Default::default() })?;
    for params in [SamplingParams::greedy(), SamplingParams { seed: Some(1), ..Default::default() }] {
        let mut sampler = Sampler::new(params)?;
        session.truncate(0)?;
        let mut tokens = vec![1, 2, 3];
        while session.position() + tokens.len() <= session.context_length() {
            let logits = session.forward(&tokens, &Interrupt::never())?;
            let Some(token) = sampler.sample(logits, &tokens) else { break };
            assert!((token as usize) < model.config().vocab_size);
            tokens = vec![token];
        }
    }
    Ok(())
}

#[test]
fn any_bytes_can_be_weights() {
    for &dtype in DType::ALL.iter().filter(|dtype| dtype.is_supported()) {
        let file = TempFile::new(&Gguf::llama_of(dtype).bytes());
        run(&file.0).unwrap_or_else(|e| panic!("{dtype}: {e}"));
    }
    let mut floats = Gguf::llama();
    for (i, x) in
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE / 2.0].into_iter().enumerate()
    {
        for tensor in &mut floats.tensors {
            tensor.data[4 * i..4 * i + 4].copy_from_slice(&x.to_le_bytes());
            let file = TempFile::new(&llama_file(tensor));
            run(&file.0).unwrap();
        }
    }
}

/// The llama of these tests with one tensor replaced.
fn llama_file(tensor: &Tensor) -> Vec<u8> {
    let mut file = Gguf::llama();
    file.tensors.iter_mut().find(|t| t.name == tensor.name).unwrap().data.clone_from(&tensor.data);
    file.bytes()
}
