//! Any text, over a vocabulary of any words: what is encoded comes back when it is decoded, at once and piece by piece.
//!
//! Errors are fine where the vocabulary is odd, panics are not.

#![no_main]

#[path = "../../tests/gguf_builder.rs"]
#[allow(dead_code)]
mod gguf_builder;

use std::path::PathBuf;
use std::sync::LazyLock;

use gguf_builder::{Gguf, array, string, strings, u32};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use llama_rs::{Error, Result, Tokenizer};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    pre: u8,
    is_spm: bool,
    adds_bos: Option<bool>,
    words: Vec<Word<'a>>,
    merges: Vec<(u8, u8)>,
    text: &'a str,
    ids: Vec<u16>,
    parse_special: bool,
}

#[derive(Debug, Arbitrary)]
struct Word<'a> {
    bytes: &'a [u8],
    kind: u8,
    score: f32,
}

const PRE: [&str; 12] = [
    "default", "gpt-2", "smollm", "llama-bpe", "dbrx", "glm4", "qwen2", "qwen35", "gpt-4o", "tekken", "deepseek-v3", "falcon",
];

static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("llama_rs-fuzz-tokenizer-{}.gguf", std::process::id())));

fuzz_target!(|input: Input| {
    std::fs::write(&*PATH, vocabulary(&input)).expect("a temporary file can be written");
    if let Err(e) = use_it(&input) {
        assert!(!e.to_string().contains('\n'), "{e}");
        assert!(!matches!(e, Error::Interrupted), "nobody asked");
    }
});

/// The bytes of a small vocabulary that spells everything, and the words of the input after them.
fn vocabulary(input: &Input) -> Vec<u8> {
    let mut file = if input.is_spm { Gguf::llama_with_spm() } else { Gguf::llama() };
    file.tensors.clear();
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let letters: Vec<String> = (0..=255)
        .map(|b| if printable(b) { b.into() } else { others.next().expect("endless") })
        .map(|c: u32| char::from_u32(c).expect("a letter").to_string())
        .collect();
    let (mut tokens, mut kinds, mut scores): (Vec<Vec<u8>>, Vec<i32>, Vec<f32>) = if input.is_spm {
        let bytes = (0..=255).map(|b| format!("<0x{b:02X}>").into_bytes());
        let tokens = ["<unk>", "<s>", "</s>"].map(|t| t.as_bytes().to_vec()).into_iter().chain(bytes);
        (tokens.collect(), [2, 3, 3].into_iter().chain([6; 256]).collect(), vec![0.0; 259])
    } else {
        (letters.iter().map(|l| l.clone().into_bytes()).collect(), vec![1; 256], vec![0.0; 256])
    };
    for word in &input.words {
        // Of BPE in its alphabet, so that they are met.
        let spelt = |b: &[u8]| b.iter().flat_map(|&b| letters[usize::from(b)].bytes()).collect();
        tokens.push(if input.is_spm || word.kind > 200 { word.bytes.to_vec() } else { spelt(word.bytes) });
        kinds.push(i32::from(word.kind % 8));
        scores.push(word.score);
    }
    let n = tokens.len() as u64;
    let word = |i: u8| tokens[256.min(tokens.len() - 1)..].get(usize::from(i)).unwrap_or(&tokens[usize::from(i)]);
    let merges: Vec<Vec<u8>> = input.merges.iter().map(|&(a, b)| [word(a), &b" "[..], word(b)].concat()).collect();
    if !input.is_spm {
        file.set("tokenizer.ggml.pre", string(PRE[usize::from(input.pre) % PRE.len()]));
        file.set("tokenizer.ggml.merges", strings(merges));
        file.set("tokenizer.ggml.bos_token_id", u32(n as u32 - 1));
        file.set("tokenizer.ggml.eos_token_id", u32(n as u32 - 1));
    }
    if let Some(adds) = input.adds_bos {
        file.set("tokenizer.ggml.add_bos_token", gguf_builder::bool(adds.into()));
    }
    file.set("tokenizer.ggml.tokens", strings(tokens));
    file.set("tokenizer.ggml.token_type", array(5, n, kinds.into_iter().flat_map(i32::to_le_bytes).collect()));
    file.set("tokenizer.ggml.scores", array(6, n, scores.into_iter().flat_map(f32::to_le_bytes).collect()));
    file.bytes()
}

fn use_it(input: &Input) -> Result<()> {
    let checkpoint = llama_rs::open(&PATH)?;
    let tokenizer = Tokenizer::from_metadata(&checkpoint.metadata)?;
    tokenizer.end_tokens()?;
    tokenizer.special_tokens(input.text)?;
    let ids: Vec<u32> = input.ids.iter().map(|&id| id.into()).collect();
    if let Ok(text) = tokenizer.decode(&ids, false) {
        let mut decoder = tokenizer.decoder(false);
        let mut pieces = String::new();
        for &id in &ids {
            pieces += &decoder.push(id)?;
        }
        pieces += &decoder.finish();
        assert_eq!(pieces, text, "in pieces and at once");
    }
    let ids = tokenizer.encode(input.text, true, input.parse_special)?;
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    tokenizer.decode(&ids, true)?;
    Ok(())
}
