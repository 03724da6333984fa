//! Tokens to text, one at a time: only whole characters come out.

use std::borrow::Borrow;

use super::pace::no_memory;
use super::vocabulary::Kind;
use super::{Model, Tokenizer};
use crate::error::Result;

/// Turns token ids into text as they come. A character whose bytes are spread over several tokens
/// comes with the last of them; bytes that are not UTF-8 become U+FFFD.
///
/// It goes on with a text that began elsewhere: unlike [`Tokenizer::decode`], it keeps the space that a
/// SentencePiece token begins with.
#[derive(Debug)]
pub struct StreamDecoder<T> {
    tokenizer: T,
    skip_special: bool,
    at_start: bool,   // of a text, whose first space is one that encoding put there
    pending: Vec<u8>, // the start of a character
    kept: Vec<u32>,   // special tokens that come as text all the same
}

impl<T: Borrow<Tokenizer>> StreamDecoder<T> {
    /// A decoder that leaves out special tokens if `skip_special`. The tokenizer may be lent or shared.
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, at_start: false, pending: Vec::new(), kept: Vec::new() }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer.borrow()
    }

    /// A decoder for a whole text.
    pub(super) fn at_start(tokenizer: T, skip_special: bool) -> Self {
        let at_start = tokenizer.borrow().begins_with_a_space();
        Self { tokenizer, skip_special, at_start, pending: Vec::new(), kept: Vec::new() }
    }

    /// The same, in which these special tokens come as text, by their names: what parses an answer has to see them.
    pub fn keeping(mut self, ids: Vec<u32>) -> Self {
        self.kept = ids;
        self
    }

    /// The text that the token `id` completes: whole characters only, and often nothing.
    ///
    /// # Errors
    /// As [`Tokenizer::token_bytes`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        let (bytes, kind) = {
            let tokenizer = self.tokenizer.borrow();
            tokenizer.vocabulary.checked(|| tokenizer.piece(tokenizer.texts()?, id))?
        };
        let mut text = String::new();
        if kind.is_special() && self.kept.contains(&id) {
            self.drain(&mut text, true); // what was the start of a character is one no more
            text.push_str(&String::from_utf8_lossy(&bytes));
            return Ok(text);
        }
        self.accept(&mut text, &bytes, kind)?;
        Ok(text)
    }

    /// Appends to `text` what a token of this kind, which stands for `bytes`, completes.
    pub(super) fn accept(&mut self, text: &mut String, mut bytes: &[u8], kind: Kind) -> Result<()> {
        if kind.is_special() {
            if self.skip_special {
                return Ok(());
            }
        } else if std::mem::take(&mut self.at_start) && kind != Kind::Byte {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        let longest = 3 * (self.pending.len() + bytes.len()); // if each byte is replaced
        text.try_reserve(longest).map_err(|_| no_memory(text.len() + longest))?;
        self.pending.extend_from_slice(bytes);
        self.drain(text, false);
        Ok(())
    }

    /// What is left when no more tokens come: U+FFFD for the start of a character.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.finish_to(&mut text);
        text
    }

    pub(super) fn finish_to(&mut self, text: &mut String) {
        self.drain(text, true);
    }

    fn drain(&mut self, text: &mut String, to_the_end: bool) {
        // The oracles differ: sentencepiece replaces each byte, HF's tokenizers what could have been the start
        // of one character.
        let replaces_each = matches!(self.tokenizer.borrow().model, Model::Spm(_) | Model::Unigram(_));
        let mut rest = self.pending.len();
        let mut kept = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            rest -= chunk.valid().len() + invalid.len();
            let may_go_on = matches!(std::str::from_utf8(invalid), Err(e) if e.error_len().is_none());
            if rest == 0 && may_go_on && !to_the_end {
                kept = invalid.len();
            } else {
                let replaced = if replaces_each { invalid.len() } else { invalid.len().min(1) };
                text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, replaced));
            }
        }
        self.pending.drain(..self.pending.len() - kept);
    }
}
