//! WordPiece, BERT's: words are cut at white space, punctuation and Chinese characters, and each is made of the longest tokens
//! that there are, from left to right. A word that is not made of tokens is unknown as a whole.
//!
//! In a GGUF a token that begins a word has a `▁` before it, and one that goes on with it nothing.

use std::sync::OnceLock;

use super::added::{Added, Walk};
use super::normalize::{Normalizer, push_str};
use super::pace::{Output, Pace, reserve};
use super::pre::class::is_punctuation;
use super::space::SPACE;
use super::text_index::TextIndex;
use super::vocabulary::{Odd, Texts, Vocabulary, get_or_try_init};
use crate::checkpoint::Metadata;
use crate::error::Result;

const MAX_WORD_CHARS: &str = "llama_rs.tokenizer.max_word_chars";

/// The rules of WordPiece for one file.
pub(super) struct WordPiece {
    normalizer: Normalizer,
    max_word_chars: usize, // of a longer word nothing is known
    unknown: Option<u32>,
    index: OnceLock<Index>,
    added: Added,
}

impl WordPiece {
    /// Checks types. Does not walk the tokens.
    pub(super) fn from_metadata(metadata: &Metadata, unknown: Option<u32>) -> Result<Self> {
        let normalizer = match Normalizer::named(metadata)? {
            Some(normalizer) => normalizer,
            None => Normalizer::bert(metadata)?,
        };
        let max_word_chars = metadata.usize(MAX_WORD_CHARS)?.unwrap_or(100).min(1 << 12);
        Ok(Self { normalizer, max_word_chars, unknown, index: OnceLock::new(), added: Added::default() })
    }

    /// Appends the tokens of `text` to `out`.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        parse_special: bool,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let texts = vocabulary.texts(&mut out.pace)?;
        let index = get_or_try_init(&self.index, || Index::new(texts, &mut out.pace))?;
        let walk = Walk {
            added: &self.added,
            texts,
            parse_special,
            first_raw: 0,
            finds_own: false,
            normalize: &|text, pace| self.normalizer.normalize(text, pace),
            spell: &|text, pace| Ok(self.normalizer.normalize(&text, pace)?.into_owned()),
            expect: &|_, _| Ok(()), // a word of any length may be one token
        };
        let (mut spelt, mut pieces) = (String::new(), Vec::new());
        walk.walk(text, out, |text, _, out| {
            let mut rest = text;
            while let Some(c) = rest.chars().next() {
                let len = if c.is_whitespace() || is_punctuation_too(c) {
                    c.len_utf8()
                } else {
                    rest.find(|c: char| c.is_whitespace() || is_punctuation_too(c)).unwrap_or(rest.len())
                };
                let (word, tail) = rest.split_at(len);
                out.pace.work(len)?;
                rest = tail;
                if c.is_whitespace() {
                    continue;
                }
                let is_known = word.len() <= 4 * self.max_word_chars
                    && word.chars().count() <= self.max_word_chars
                    && index.encode(texts, word, &mut spelt, &mut pieces, &mut out.pace)?;
                match is_known {
                    true => pieces.iter().try_for_each(|&id| out.push(id))?,
                    false => out.push(texts.unknown(self.unknown, word)?)?,
                }
            }
            Ok(())
        })
    }
}

/// What is a word of its own.
fn is_punctuation_too(c: char) -> bool {
    c.is_ascii_punctuation() || is_punctuation(c)
}

/// What encoding needs to know.
struct Index {
    by_text: TextIndex,
    longest: usize, // bytes
}

impl Index {
    fn new(texts: Texts<'_>, pace: &mut Pace<'_>) -> Result<Self> {
        let vocabulary = texts.vocabulary;
        let mut by_text = TextIndex::with_capacity(vocabulary.len())?;
        let mut longest = 1;
        let mut empty = Odd::new("token without a text, which no text comes to");
        for id in vocabulary.ids() {
            let text = texts.get(id).unwrap_or_default();
            pace.work(16 + text.len())?;
            if text.is_empty() {
                empty.see(id as usize);
            } else if !texts.kind(id).is_special() && !vocabulary.is_only_added(id) {
                by_text.insert(texts, id);
                longest = longest.max(text.len());
            }
        }
        vocabulary.note(&empty);
        Ok(Self { by_text, longest })
    }

    /// Finds the tokens of `word`; false if it is not made of tokens.
    fn encode(
        &self,
        texts: Texts<'_>,
        word: &str,
        spelt: &mut String,
        pieces: &mut Vec<u32>,
        pace: &mut Pace<'_>,
    ) -> Result<bool> {
        pieces.clear();
        spelt.clear();
        push_str(spelt, SPACE)?;
        push_str(spelt, word)?;
        let mut start = 0;
        while start < spelt.len() {
            // Behind the start of a word, what has a mark begins no token.
            let is_marked = start > 0 && spelt[start..].starts_with(SPACE);
            let least = if start == 0 { SPACE.len() } else { start };
            let mut end = if is_marked { least } else { spelt.len().min(start + self.longest) };
            let found = loop {
                if end <= least {
                    break None;
                }
                if spelt.is_char_boundary(end) {
                    pace.work(1 + (end - start) / 8)?;
                    if let Some(id) = self.by_text.find(texts, &spelt.as_bytes()[start..end]) {
                        break Some(id);
                    }
                }
                end -= 1;
            };
            let Some(id) = found else { return Ok(false) };
            reserve(pieces, 1)?;
            pieces.push(id);
            start = end;
        }
        Ok(true)
    }
}

/// The bytes that a token stands for: a word has a space before it, but for what never has one.
pub(super) fn unspell(text: &[u8]) -> Vec<u8> {
    match text.strip_prefix(SPACE.as_bytes()) {
        Some(sign @ (b"." | b"," | b"!" | b"?")) => sign.to_vec(),
        Some(word) => [b" ", word].concat(),
        None => text.to_vec(),
    }
}
