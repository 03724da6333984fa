//! SentencePiece's BPE: the pair of neighbours that makes the token of the highest score is merged, again and
//! again; what is no token then is spelt in byte tokens.
//!
//! A space is `▁` (U+2581) in the vocabulary, and one is put before a text so that its first word is like any
//! other. There are no words: the whole text is one list of symbols.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::merge::Merger;
use super::vocabulary::{Kind, Matcher, Part, TextIndex, Texts, Vocabulary, get_or_try_init};
use crate::checkpoint::Metadata;
use crate::error::{Error, Result};

/// What stands for a space.
const SPACE: &str = "\u{2581}";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// The rules of SentencePiece's BPE for one file.
pub(super) struct Spm {
    /// Whether a text gets a space at its start, which decoding takes away again.
    pub(super) add_space_prefix: bool,
    unknown: Option<u32>,
    index: OnceLock<Index>,
    specials: OnceLock<Matcher>,
}

impl Spm {
    /// Checks that everything is there. Does not walk the tokens.
    pub(super) fn from_metadata(metadata: &Metadata, vocabulary: &Vocabulary, unknown: Option<u32>) -> Result<Self> {
        if !vocabulary.has_kinds() {
            return Err(metadata.error("missing key", "tokenizer.ggml.token_type").into());
        }
        if !vocabulary.has_scores() {
            return Err(metadata.error("missing key", "tokenizer.ggml.scores").into());
        }
        let unsupported = |key: &str| Error::Unsupported {
            path: metadata.path().to_path_buf(),
            what: format!("{key}: text normalisation of SentencePiece models is not supported"),
        };
        let charsmap = "tokenizer.ggml.precompiled_charsmap";
        if metadata.get(charsmap).is_some() {
            return Err(unsupported(charsmap));
        }
        let extra_white_space = "tokenizer.ggml.remove_extra_whitespaces";
        if metadata.bool(extra_white_space)?.unwrap_or(false) {
            return Err(unsupported(extra_white_space));
        }
        let add_space_prefix = metadata.bool(ADD_SPACE_PREFIX)?.unwrap_or(true);
        Ok(Self { add_space_prefix, unknown, index: OnceLock::new(), specials: OnceLock::new() })
    }

    /// Appends the tokens of `text` to `ids`.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        parse_special: bool,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let texts = vocabulary.texts()?;
        let index = get_or_try_init(&self.index, || Index::new(self, vocabulary, texts))?;
        let encode_text = |text: &str, ids: &mut Vec<u32>| self.encode_text(vocabulary, texts, index, text, ids);
        if !parse_special {
            return if text.is_empty() { Ok(()) } else { encode_text(text, ids) };
        }
        let specials = get_or_try_init(&self.specials, || Matcher::new(texts, Kind::is_special, |text| text))?;
        specials.split(text, |part| match part {
            Part::Text(text) => encode_text(text, ids),
            Part::Token(id, _) => {
                ids.push(id);
                Ok(())
            }
        })
    }

    /// Appends the tokens of a text in which only user-defined tokens are special.
    fn encode_text(
        &self,
        vocabulary: &Vocabulary,
        texts: Texts<'_>,
        index: &Index,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        // Each text between special tokens is a text of its own, as for sentencepiece, which knows no other.
        let prefix = if self.add_space_prefix { SPACE } else { "" };
        let text = &format!("{prefix}{}", text.replace(' ', SPACE));
        let mut merger = Merger::default();
        index.user_defined.split(text, |part| {
            match part {
                Part::Text(text) => text.chars().for_each(|c| merger.push(c.len_utf8(), None)),
                Part::Token(id, text) => merger.push(text.len(), Some(id)),
            }
            Ok(())
        })?;
        let find = |text: &str| index.by_text.find(texts, text.as_bytes());
        // How an unused token came to be, by its text: it is taken apart again.
        let mut unused: HashMap<&str, usize> = HashMap::new();
        merger.merge(text, |joint, left_len| {
            let id = find(joint)?;
            if vocabulary.kind(id) == Kind::Unused {
                unused.insert(joint, left_len);
            }
            Some(descending(vocabulary.score(id)))
        });

        let mut in_unknown = false; // a run of unknown characters is one unknown token
        let mut parts = Vec::new();
        for symbol in merger.symbols() {
            if let Some(id) = symbol.fixed {
                ids.push(id);
                in_unknown = false;
                continue;
            }
            parts.push(symbol.of(text));
            while let Some(part) = parts.pop() {
                let found = find(part);
                let is_unused = found.is_some_and(|id| vocabulary.kind(id) == Kind::Unused);
                match (found, unused.get(part), &index.byte_tokens) {
                    (_, Some(&left_len), _) if is_unused => {
                        parts.extend([&part[left_len..], &part[..left_len]]); // the left one is next
                        continue;
                    }
                    (Some(id), ..) => ids.push(id),
                    (None, _, Some(byte_tokens)) => ids.extend(part.bytes().map(|byte| byte_tokens[byte as usize])),
                    (None, _, None) if !in_unknown => ids.extend(self.unknown),
                    (None, _, None) => {}
                }
                in_unknown = found.is_none() && index.byte_tokens.is_none();
            }
        }
        Ok(())
    }
}

/// The bytes that a token stands for, if its text is what it should be.
pub(super) fn unspell(text: &[u8], kind: Kind) -> Option<Vec<u8>> {
    match kind {
        Kind::Byte => Some(vec![byte_of(text)?]),
        _ => Some(std::str::from_utf8(text).ok()?.replace(SPACE, " ").into_bytes()),
    }
}

/// The byte that `<0xHH>` means.
fn byte_of(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let digits = std::str::from_utf8(digits).ok().filter(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()));
    u8::from_str_radix(digits?, 16).ok()
}

const NONE: u32 = u32::MAX;

/// What encoding needs to know.
struct Index {
    by_text: TextIndex, // the tokens that text is merged into
    byte_tokens: Option<Box<[u32; 256]>>,
    user_defined: Matcher, // never cut, never merged
}

impl Index {
    fn new(spm: &Spm, vocabulary: &Vocabulary, texts: Texts<'_>) -> Result<Self> {
        let mut by_text = TextIndex::with_capacity(vocabulary.len());
        let mut byte_tokens = [NONE; 256];
        for id in vocabulary.ids() {
            let text = texts.get(id).unwrap_or_default();
            if text.is_empty() {
                return Err(texts.error("empty token", id).into());
            }
            match vocabulary.check_kind(id)? {
                Kind::Normal | Kind::UserDefined | Kind::Unused => {
                    if std::str::from_utf8(text).is_err() {
                        return Err(texts.error("token is not valid UTF-8", id).into());
                    }
                    if vocabulary.score(id).is_nan() {
                        return Err(vocabulary.score_error("score is not a number", id).into());
                    }
                    by_text.insert(texts, id);
                }
                Kind::Byte => {
                    let byte =
                        byte_of(text).ok_or_else(|| texts.error("bad byte token", id).limit("<0x00> to <0xFF>"))?;
                    let token = &mut byte_tokens[byte as usize];
                    if *token != NONE {
                        return Err(texts.error("two tokens for the same byte", id).into());
                    }
                    *token = id;
                }
                Kind::Control | Kind::Unknown => {}
            }
        }
        let missing = byte_tokens.iter().position(|&token| token == NONE);
        let any = byte_tokens.iter().any(|&token| token != NONE);
        let byte_tokens = match missing {
            None => Some(Box::new(byte_tokens)),
            Some(byte) if any => {
                return Err(vocabulary.error("missing byte token").limit(format!("<0x{byte:02X}>")).into());
            }
            Some(_) if spm.unknown.is_none() => {
                return Err(vocabulary.error("neither byte tokens nor an unknown token").into());
            }
            Some(_) => None,
        };
        let spell = |text: String| text.replace(' ', SPACE);
        let user_defined = Matcher::new(texts, |kind| kind == Kind::UserDefined, spell)?;
        Ok(Self { by_text, byte_tokens, user_defined })
    }
}

/// A number that is the smaller, the higher the score.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0 is 0
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}
