//! Damaged saved sessions: a good one, edited, its sums made right again or not. Errors are fine, panics are not.
//!
//! The sums find nearly every change by themselves, so most of what is to be tested lies behind them: the input says which of
//! them are made right again, as somebody who means harm would.

#![no_main]

#[path = "../../tests/gguf_builder.rs"]
#[allow(dead_code)]
mod gguf_builder;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use llama_rs::internals::hash::{checksum, hash};
use llama_rs::{Error, Interrupt, Model, Result, Session, SessionOptions};

#[derive(Debug, Arbitrary)]
struct Input {
    of: u8, // which good file
    edits: Vec<Edit>,
    header_is_right: bool,
    entries_are_right: bool,
    blocks_are_right: bool,
    prefix: bool,
    context_length: u8,
}

#[derive(Debug, Arbitrary)]
enum Edit {
    Byte { at: u16, value: u8 },
    Word { at: u16, value: u64 },
    Count { at: u16, value: u8 }, // a small number, aligned
    Insert { at: u16, bytes: [u8; 5] },
    Remove { at: u16, n: u8 },
    End { at: u16 },
    Longer { by: u8 },
}

struct Good {
    model: Arc<Model>,
    files: Vec<Vec<u8>>,
    path: PathBuf,
}

const FIXED_LEN: usize = 128;
const ENTRY_LEN: usize = 272;

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("llama_rs-fuzz-session-{}", std::process::id()));
    std::fs::write(&path, gguf_builder::Gguf::llama().bytes()).expect("a temporary file can be written");
    let model = Arc::new(Model::open(&path).expect("a good model"));
    let files = [0, 1, 63, 64, 65, 130].map(|n: u32| {
        let mut session = Session::new(&model, options(200)).expect("a session");
        let tokens: Vec<u32> = (0..n).map(|i| i % 256).collect();
        if n > 0 {
            session.forward(&tokens, &Interrupt::never()).expect("logits");
        }
        if n > 100 {
            session.shift(2, 5).expect("there are enough");
        }
        let saved = path.with_extension("kv");
        session.save(&saved).expect("a temporary file can be written");
        std::fs::read(&saved).expect("it was written")
    });
    Good { model, files: files.into(), path: path.with_extension("kv") }
});

fn options(context_length: usize) -> SessionOptions {
    SessionOptions { context_length, threads: 1, ..Default::default() }
}

fuzz_target!(|input: Input| {
    let good = &*GOOD;
    let mut file = good.files[input.of as usize % good.files.len()].clone();
    let n_blocks = (n_tokens(&file)).div_ceil(64) as usize;
    let block_len = (file.len() - FIXED_LEN) / 4096 * 4096 / n_blocks.max(1); // one page of tables
    for edit in &input.edits {
        edit.apply(&mut file);
    }
    make_right(&mut file, &input, block_len);
    let _ = std::fs::remove_file(&good.path);
    std::fs::write(&good.path, &file).expect("a temporary file can be written");
    if let Err(e) = use_it(&good.model, &good.path, &input) {
        assert!(!e.to_string().contains('\n'), "{e}");
        assert!(!matches!(e, Error::Interrupted), "nobody asked");
    }
});

fn n_tokens(file: &[u8]) -> u64 {
    file.get(56..64).map_or(0, |n| u64::from_le_bytes(n.try_into().expect("8 bytes")))
}

/// Computes the sums anew, from the inside out.
fn make_right(file: &mut [u8], input: &Input, block_len: usize) {
    let n_blocks = n_tokens(file).div_ceil(64).min(8) as usize;
    let blocks_at = (FIXED_LEN + n_blocks * ENTRY_LEN).next_multiple_of(4096);
    for i in 0..n_blocks {
        let at = FIXED_LEN + i * ENTRY_LEN;
        let block = file.get(blocks_at + i * block_len..blocks_at + (i + 1) * block_len).map(checksum);
        let Some(entry) = file.get_mut(at..at + ENTRY_LEN) else { break };
        if let (true, Some(sum)) = (input.blocks_are_right, block) {
            entry[256..264].copy_from_slice(&sum.to_le_bytes());
        }
        if input.entries_are_right {
            let sum = hash(&[&entry[..264], &(i as u64).to_le_bytes()].concat());
            entry[264..].copy_from_slice(&sum.to_le_bytes());
        }
    }
    if input.header_is_right && file.len() >= FIXED_LEN {
        let sum = hash(&file[..120]);
        file[120..128].copy_from_slice(&sum.to_le_bytes());
    }
}

fn use_it(model: &Arc<Model>, path: &Path, input: &Input) -> Result<()> {
    let load = if input.prefix { Session::load_prefix } else { Session::load };
    let mut session = load(model, path, options(usize::from(input.context_length).max(1)), &[])?;
    let n = session.position();
    assert!(n <= session.context_length());
    let mut other = session.fork();
    if n + 2 <= session.context_length() {
        session.forward(&[1, 2], &Interrupt::never())?;
        session.shift(n / 2, 1)?;
        session.save(&path.with_extension("again"))?;
        Session::load(model, &path.with_extension("again"), options(256), &[])?;
    }
    other.truncate(n / 2)?;
    let kept = other.keep_prefix(&[0, 1, 2, 3]);
    if kept < other.context_length() {
        other.forward(&[3], &Interrupt::never())?;
    }
    Ok(())
}

impl Edit {
    fn apply(&self, file: &mut Vec<u8>) {
        let place = |at: u16| (usize::from(at)).min(file.len());
        match *self {
            Edit::Byte { at, value } => {
                if let Some(byte) = file.get_mut(usize::from(at)) {
                    *byte = value;
                }
            }
            Edit::Word { at, value } => {
                if let Some(word) = file.get_mut(usize::from(at)..usize::from(at) + 8) {
                    word.copy_from_slice(&value.to_le_bytes());
                }
            }
            Edit::Count { at, value } => {
                let at = usize::from(at) % 128 / 8 * 8;
                if let Some(word) = file.get_mut(at..at + 8) {
                    word.copy_from_slice(&u64::from(value).to_le_bytes());
                }
            }
            Edit::Insert { at, bytes } => {
                let at = place(at);
                file.splice(at..at, bytes);
            }
            Edit::Remove { at, n } => {
                let at = place(at);
                file.drain(at..(at + usize::from(n)).min(file.len()));
            }
            Edit::End { at } => file.truncate(usize::from(at)),
            Edit::Longer { by } => file.resize(file.len() + 256 * usize::from(by), 0),
        }
    }
}
