//! The tokenizer of a Hugging Face directory, as the entries that a GGUF of the same model would have.
//!
//! Whatever a directory has, `tokenizer.json`, Mistral's `tekken.json` or SentencePiece's `tokenizer.model`, becomes
//! `tokenizer.ggml.*`, so there is one tokenizer and one set of rules above. What GGUF has no words for, `tokenizer.json`
//! says with keys of our own, which begin with [`OWN`]. A rule that we do not know is an error that shows it: a text cut by
//! other rules than the model was trained with gives answers that are merely worse.

mod chat;
mod json;
mod patterns;
mod sentencepiece;
mod tekken;
mod tokenizer_json;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use self::json::Json;
use crate::error::{Error, FormatError, Result};

/// What our own keys begin with.
pub const OWN: &str = "llama_rs.tokenizer.";

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Entry {
    Bool(bool),
    U32(u32),
    F32(f32),
    Str(String),
    /// An array of strings, which need not be UTF-8.
    Strings(Vec<Vec<u8>>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    /// An array of U8.
    Bytes(Vec<u8>),
}

/// The entries that say how the model in `directory` makes tokens of text: `tokenizer.ggml.*`,
/// `tokenizer.chat_template` and its variants, and our own.
///
/// # Errors
/// [`Error::File`] if a file cannot be read; [`Error::Format`] if one is not what it should be, or is too large;
/// [`Error::Unsupported`] if there is none of the files, or for a rule that we do not know.
pub fn entries(directory: &Path) -> Result<Vec<(String, Entry)>> {
    let mut out = Entries::default();
    let here = |name: &str| Some(directory.join(name)).filter(|path| path.exists());
    if let Some(path) = here("tokenizer.json") {
        tokenizer_json::read(&path, &mut out)?;
    } else if let Some(path) = here("tekken.json") {
        tekken::read(&path, &mut out)?;
    } else if let Some(path) = here("tokenizer.model") {
        sentencepiece::read(&path, &mut out)?;
    } else {
        return Err(Error::Unsupported {
            path: directory.to_path_buf(),
            what: "a directory without tokenizer.json, tekken.json or tokenizer.model".into(),
        });
    }
    chat::read(directory, &mut out)?;
    if here("tokenizer.json").is_some() {
        out.say_in_gguf();
    }
    Ok(out.0)
}

/// Entries, each key once.
#[derive(Default)]
struct Entries(Vec<(String, Entry)>);

impl Entries {
    /// Sets `tokenizer.ggml.NAME`.
    fn set(&mut self, name: &str, entry: Entry) {
        self.insert(format!("tokenizer.ggml.{name}"), entry);
    }

    /// Sets one of our own keys.
    fn set_own(&mut self, name: &str, entry: Entry) {
        self.insert(format!("{OWN}{name}"), entry);
    }

    fn insert(&mut self, key: String, entry: Entry) {
        match self.0.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = entry,
            None => self.0.push((key, entry)),
        }
    }

    /// Says with GGUF's keys, as far as those can, what `tokenizer.json` puts before a text and after it. The other files
    /// leave that to the kind of their vocabulary.
    fn say_in_gguf(&mut self) {
        let ids = |out: &Self, name: &str| match out.0.iter().find(|(key, _)| key.strip_prefix(OWN) == Some(name)) {
            Some((_, Entry::I32s(ids))) => Some(ids.iter().map(|&id| id as u32).collect::<Vec<_>>()),
            _ => None,
        };
        let is_bert = self.get("model") == Some(&Entry::Str("bert".into()));
        let (bos, sep) = if is_bert { ("cls", "sep") } else { ("bos", "eos") };
        let (before, after) = (ids(self, "prefix_token_ids"), ids(self, "suffix_token_ids"));
        for (ids, name, adds) in [(before, bos, "bos"), (after, sep, sep)] {
            let key = if name == "sep" { "seperator_token_id".into() } else { format!("{name}_token_id") };
            let add = match ids.as_deref() {
                Some(&[id]) if self.get(&key).is_none_or(|known| *known == Entry::U32(id)) => {
                    self.set(&key, Entry::U32(id));
                    true
                }
                Some(_) => false,
                None if self.get(&format!("add_{adds}_token")).is_some() => continue,
                None => false,
            };
            self.set(&format!("add_{adds}_token"), Entry::Bool(add));
        }
    }

    fn get(&self, name: &str) -> Option<&Entry> {
        self.0.iter().find(|(key, _)| key.strip_prefix("tokenizer.ggml.") == Some(name)).map(|(_, entry)| entry)
    }

    /// The first token that is called `name`.
    fn token(&self, name: &str) -> Option<u32> {
        let Some(Entry::Strings(tokens)) = self.get("tokens") else { return None };
        tokens.iter().position(|token| token == name.as_bytes()).map(|id| id as u32)
    }
}

/// Most tokens, and so the first id that is too large. Real vocabularies have fewer than 300,000.
const MAX_TOKENS: usize = 1 << 24;

/// Reads a file of at most `limit` bytes. What is no regular file is not waited for.
fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let error = |source| Error::File { path: path.to_path_buf(), source };
    let kind = std::fs::metadata(path).map_err(error)?;
    if !kind.is_file() {
        return Err(FormatError::new(path, "not a regular file").into());
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes)).map_err(error)?;
    if bytes.len() > limit {
        let e = FormatError::new(path, "the file is too large").limit(format!("at most {limit} bytes"));
        return Err(e.got(format!("{} bytes", kind.len())).into());
    }
    Ok(bytes)
}

/// The JSON in `bytes`, which were read from `path`.
fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<Json<'a>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    Json::parse(bytes).map_err(|e| FormatError::new(path, "not valid JSON").got(one_line(&e.to_string())).into())
}

/// A text of a file as it can stand in a message.
fn one_line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(300)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect();
    if text.chars().nth(300).is_some() {
        line.push_str("...");
    }
    line
}
