//! SentencePiece's BPE: the pair of neighbours that makes the token of the highest score is merged, again and
//! again; what is no token then is spelt in byte tokens.
//!
//! A space is `▁` (U+2581) in the vocabulary, and one is put before a text so that its first word is like any
//! other. There are no words: a text is merged as a whole. But where no token has a `▁` after the character that is
//! before it, no merge reaches over, and what is on both sides can be merged apart.
//!
//! User-defined tokens are of two kinds. Those of the SentencePiece model itself come before its normal tokens; text goes
//! on around them. Those that were added to it afterwards come behind; each ends a text, and another begins after it, as
//! it is with control tokens. HF's tokenizers keeps the two apart in the same way, and llama.cpp knows the second alone.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::matcher::{Matcher, Part};
use super::merge::Merger;
use super::pace::{Output, Pace, no_memory};
use super::text_index::TextIndex;
use super::vocabulary::{Kind, Odd, Texts, Vocabulary, get_or_try_init};
use crate::checkpoint::Metadata;
use crate::error::{Error, Result};

/// What stands for a space.
const SPACE: &str = "\u{2581}";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const SCORES: &str = "tokenizer.ggml.scores";

/// The rules of SentencePiece's BPE for one file.
pub(super) struct Spm {
    /// Whether a text gets a space at its start, which decoding takes away again.
    pub(super) add_space_prefix: bool,
    unknown: Option<u32>,
    index: OnceLock<Index>,
    specials: OnceLock<Matcher>,
    added: OnceLock<Matcher>,
}

impl Spm {
    /// Checks that everything is there. Does not walk the tokens.
    pub(super) fn from_metadata(metadata: &Metadata, vocabulary: &Vocabulary, unknown: Option<u32>) -> Result<Self> {
        if !vocabulary.has_kinds() {
            return Err(metadata.error("missing key", "tokenizer.ggml.token_type").into());
        }
        if !vocabulary.has_scores() {
            return Err(metadata.error("missing key", SCORES).into());
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
        let (index, specials, added) = Default::default();
        Ok(Self { add_space_prefix, unknown, index, specials, added })
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
        let is_added = |id, kind| kind == Kind::UserDefined && id > index.first_normal;
        let (cell, with_special) = if parse_special { (&self.specials, true) } else { (&self.added, false) };
        let wanted = |id, kind: Kind| is_added(id, kind) || with_special && kind.is_special();
        let matcher = get_or_try_init(cell, || Matcher::new(texts, &mut out.pace, wanted, |text| text))?;
        let mut encoder = Encoder { spm: self, texts, index, merger: Merger::default(), in_unknown: false };
        let mut parts = matcher.split(text);
        while let Some(part) = parts.next(&mut out.pace)? {
            match part {
                Part::Token(id) => out.push(id)?,
                Part::Text(text) => encoder.encode(text, out)?,
            }
        }
        Ok(())
    }
}

/// Encodes texts without special tokens, in buffers that it keeps.
struct Encoder<'a> {
    spm: &'a Spm,
    texts: Texts<'a>,
    index: &'a Index,
    merger: Merger,
    in_unknown: bool, // a run of unknown characters is one unknown token
}

impl Encoder<'_> {
    /// Appends the tokens of a whole text.
    fn encode(&mut self, text: &str, out: &mut Output<'_>) -> Result<()> {
        self.index.expect(text.len(), out)?;
        let spelt = spell(text, self.spm.add_space_prefix, &mut out.pace)?;
        let mut parts = self.index.user_defined.split(&spelt);
        while let Some(part) = parts.next(&mut out.pace)? {
            self.in_unknown = false;
            match part {
                Part::Token(id) => out.push(id)?,
                Part::Text(text) => {
                    self.index.expect(text.len(), out)?;
                    let before = out.ids.len();
                    if !self.encode_words(text, out)? {
                        out.ids.truncate(before);
                        self.in_unknown = false;
                        self.merge(text, &mut HashMap::new(), out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Appends the tokens of what lies between user-defined tokens, word by word. False if an unused token comes up: which
    /// two halves it is taken apart into, another word may have decided.
    fn encode_words(&mut self, text: &str, out: &mut Output<'_>) -> Result<bool> {
        let mut unused = HashMap::new();
        for word in self.index.words(text) {
            out.pace.work(word.len())?;
            self.merge(word, &mut unused, out)?;
            if !unused.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Appends the tokens of a text that is merged as a whole. `unused` tells how an unused token came to be, by its text:
    /// it is taken apart again.
    fn merge<'t>(&mut self, text: &'t str, unused: &mut HashMap<&'t str, usize>, out: &mut Output<'_>) -> Result<()> {
        let Self { spm, texts, index, merger, in_unknown } = self;
        let find = |text: &str| index.by_text.find(*texts, text.as_bytes());
        merger.merge(text, &mut out.pace, |joint, left_len| {
            let id = find(joint)?;
            if texts.kind(id) == Kind::Unused {
                unused.insert(joint, left_len);
            }
            descending(texts.vocabulary.score(id))
        })?;

        let mut parts = Vec::new();
        for symbol in merger.symbols(text) {
            parts.push(symbol);
            while let Some(part) = parts.pop() {
                out.pace.work(1)?;
                let found = find(part);
                let is_unused = found.is_some_and(|id| texts.kind(id) == Kind::Unused);
                match (found, unused.get(part)) {
                    (_, Some(&left_len)) if is_unused => {
                        parts.extend([&part[left_len..], &part[..left_len]]); // the left one is next
                        continue;
                    }
                    (Some(id), _) => out.push(id)?,
                    (None, _) if part.bytes().all(|byte| index.byte_tokens[byte as usize] != NONE) => {
                        part.bytes().try_for_each(|byte| out.push(index.byte_tokens[byte as usize]))?;
                    }
                    (None, _) => {
                        if !std::mem::replace(in_unknown, true) {
                            out.push(spm.unknown.ok_or_else(|| {
                                let e = "a text has what is no token, and there are neither byte tokens for it nor an unknown token";
                                texts.vocabulary.error(e).got(format!("{part:?}"))
                            })?)?;
                        }
                        continue;
                    }
                }
                *in_unknown = false;
            }
        }
        Ok(())
    }
}

/// `text` as the vocabulary spells it, with a space before it if `prefix`.
fn spell(text: &str, prefix: bool, pace: &mut Pace<'_>) -> Result<String> {
    let mut spelt = String::new();
    for (i, piece) in text.split(' ').enumerate() {
        pace.work(1 + piece.len())?;
        spelt.try_reserve(SPACE.len() + piece.len()).map_err(|_| no_memory(text.len()))?;
        if i > 0 || prefix {
            spelt.push_str(SPACE);
        }
        spelt.push_str(piece);
    }
    Ok(spelt)
}

/// The bytes that a token stands for. The byte of `<0xHH>`, and otherwise the text with spaces for `▁`.
pub(super) fn unspell(text: &[u8], kind: Kind) -> Vec<u8> {
    if kind == Kind::Byte
        && let Some(byte) = byte_of(text)
    {
        return vec![byte];
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        match rest.strip_prefix(SPACE.as_bytes()) {
            Some(tail) => {
                bytes.push(b' ');
                rest = tail;
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

/// The byte that `<0xHH>` means.
fn byte_of(text: &[u8]) -> Option<u8> {
    let &[b'<', b'0', b'x', high, low, b'>'] = text else { return None };
    let digit = |c: u8| char::from(c).to_digit(16);
    Some((digit(high)? << 4 | digit(low)?) as u8)
}

const NONE: u32 = u32::MAX;

/// What encoding needs to know.
struct Index {
    by_text: TextIndex, // the tokens that text is merged into
    byte_tokens: Box<[u32; 256]>,
    longest: usize, // bytes of spelt text that a token stands for, at most; 0 if one stands for any number
    before_space: Box<[bool; 256]>, // last bytes of characters that a token has before a `▁`
    first_normal: u32,
    user_defined: Matcher, // those of the model itself: never cut, never merged
}

impl Index {
    fn new(texts: Texts<'_>, pace: &mut Pace<'_>) -> Result<Self> {
        let vocabulary = texts.vocabulary;
        let mut by_text = TextIndex::with_capacity(vocabulary.len())?;
        let mut byte_tokens = Box::new([NONE; 256]);
        let mut longest = 1;
        let mut before_space = Box::new([false; 256]);
        let mut first_normal = NONE;
        let mut empty = Odd::new("token without a text, which no text comes to");
        let mut not_a_byte = Odd::new("byte token that is not called <0x00> to <0xFF>, which no text comes to");
        let mut no_score = Odd::of(SCORES, "score that is not a number, so that nothing is merged into its token");
        for id in vocabulary.ids() {
            let text = texts.get(id).unwrap_or_default();
            pace.work(16 + text.len())?;
            if text.is_empty() {
                empty.see(id as usize);
                continue;
            }
            match texts.kind(id) {
                kind @ (Kind::Normal | Kind::UserDefined | Kind::Unused) => {
                    if kind == Kind::Normal {
                        first_normal = first_normal.min(id);
                    }
                    if vocabulary.score(id).is_nan() {
                        no_score.see(id as usize);
                    }
                    by_text.insert(texts, id);
                    longest = longest.max(text.len());
                    for at in text.windows(SPACE.len()).skip(1).zip(text).filter(|(w, _)| *w == SPACE.as_bytes()) {
                        before_space[*at.1 as usize] = true;
                    }
                }
                Kind::Byte => match byte_of(text) {
                    Some(byte) if byte_tokens[byte as usize] == NONE => byte_tokens[byte as usize] = id,
                    Some(_) => {} // the first of two is used
                    None => not_a_byte.see(id as usize),
                },
                Kind::Control | Kind::Unknown => {}
            }
        }
        [empty, not_a_byte, no_score].iter().for_each(|odd| vocabulary.note(odd));
        if byte_tokens.contains(&NONE) {
            longest = 0;
        }
        let is_of_the_model = |id, kind| kind == Kind::UserDefined && id < first_normal;
        let user_defined = Matcher::new(texts, pace, is_of_the_model, |text| text.replace(' ', SPACE))?;
        Ok(Self { by_text, byte_tokens, longest, before_space, first_normal, user_defined })
    }

    /// Ends it all if a text of `len` bytes is sure to have too many tokens.
    fn expect(&self, len: usize, out: &Output<'_>) -> Result<()> {
        if self.longest == 0 { Ok(()) } else { out.expect(len.div_ceil(self.longest)) }
    }

    /// Cuts `text` where no merge reaches over.
    fn words<'t>(&self, mut text: &'t str) -> impl Iterator<Item = &'t str> {
        std::iter::from_fn(move || {
            let is_cut = |&(at, _): &(usize, &str)| at > 0 && !self.before_space[text.as_bytes()[at - 1] as usize];
            let end = text.match_indices(SPACE).find(is_cut).map_or(text.len(), |(at, _)| at);
            let (word, rest) = text.split_at(end);
            text = rest;
            (!word.is_empty()).then_some(word)
        })
    }
}

/// A number that is the smaller, the higher the score.
fn descending(score: f32) -> Option<u32> {
    let bits = (score + 0.0).to_bits(); // -0 is 0
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    (!score.is_nan()).then_some(!ascending)
}
