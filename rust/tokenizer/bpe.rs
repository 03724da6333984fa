//! Byte-level BPE: text is split into words, and within a word the pair of neighbours that was learnt
//! first is merged, again and again.
//!
//! The tokens of a file are spelt in an alphabet that gives each byte a printable character (a space is
//! `Ġ`), and so is a word before it is merged. A merge's place in `tokenizer.ggml.merges` is its rank.

use std::collections::HashMap;

use super::IGNORE_MERGES;
use super::added::{Added, Walk};
use super::merge::Merger;
use super::normalize::{Normalizer, push_str};
use super::pace::{Output, Pace, no_memory, reserve};
use super::parts::{Indexes, Parts};
use super::pre::{self, PreTokenizer};
use super::ranks::{self, Ranks};
use super::space;
use super::text_index::TextIndex;
use super::vocabulary::{Odd, Texts, Vocabulary, shown};
use crate::checkpoint::{Metadata, StringArray};
use crate::error::{Error, Result};

const PRE: &str = "tokenizer.ggml.pre";

/// The rules of byte-level BPE for one file.
pub(super) struct Bpe {
    pre: &'static PreTokenizer,
    takes_whole_words: bool,
    adds_space: bool, // before a text, unless there is one
    normalizer: Normalizer,
    merges: StringArray,
    indexes: Indexes<Index>,
    added: Added,
}

impl Bpe {
    /// Checks types and lengths. Does not walk the merges.
    pub(super) fn from_metadata(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Self> {
        let pre = match metadata.str(PRE)? {
            Some(name) => pre::find(name.as_bytes()).ok_or_else(|| Error::Unsupported {
                path: metadata.path().to_path_buf(),
                what: format!("pre-tokenizer {} ({PRE}); supported are {}", shown(name.as_bytes()), pre::names()),
            })?,
            None => {
                // Files from before there was a key. llama.cpp goes on with its default, and warns.
                let e = metadata.error("no pre-tokenizer is named, so text is split as by \"default\"", PRE);
                vocabulary.note_line(format!("{e}: the model may have been trained with another, and answer worse"));
                pre::default()
            }
        };
        let default = || if pre.normalizes { Normalizer::nfc() } else { Normalizer::none() };
        Ok(Self {
            pre,
            takes_whole_words: metadata.bool(IGNORE_MERGES)?.unwrap_or(pre.takes_whole_words),
            adds_space: space::Prefix::named(metadata)?.is_some_and(|prefix| prefix != space::Prefix::Never),
            normalizer: Normalizer::named(metadata)?.unwrap_or_else(default),
            merges: ranks::merges(metadata)?,
            indexes: Indexes::default(),
            added: Added::default(),
        })
    }

    /// Whether a text begins with BOS where the file does not say. Llama 3 files often do not say.
    pub(super) fn adds_bos_by_default(&self) -> bool {
        self.pre.adds_bos
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
        // With what may be put before it.
        let index = self.index(texts, text, |text| spell(&[b" ", text.as_bytes()].concat()), &mut out.pace)?;
        let mut words = Words { bpe: self, texts, merger: Merger::default(), spelt: String::new() };
        let walk = Walk {
            added: &self.added,
            texts,
            parse_special,
            first_raw: 0,
            finds_own: false,
            normalize: &|text, pace| self.normalizer.normalize(text, pace),
            spell: &|text, pace| Ok(self.normalizer.normalize(&text, pace)?.into_owned()),
            expect: &|text, out| match self.normalizer.shrinks() {
                Some(shrinks) => index.expect(text.as_bytes(), shrinks, out),
                None => Ok(()),
            },
        };
        walk.walk(text, out, |text, _, out| {
            if self.adds_space && !text.starts_with(' ') {
                let mut spaced = String::from(" ");
                push_str(&mut spaced, text)?;
                return words.encode(&spaced, out);
            }
            words.encode(text, out)
        })
    }

    /// What is known of the tokens of `text`.
    fn index(
        &self,
        texts: Texts<'_>,
        text: &str,
        spell: impl FnOnce(&str) -> String,
        pace: &mut Pace<'_>,
    ) -> Result<&Index> {
        self.indexes.of(text, pace, |text, _| Ok(spell(text)), |parts, pace| Index::new(self, texts, parts, pace))
    }
}

/// Encodes text without special tokens, in buffers that it keeps.
struct Words<'a> {
    bpe: &'a Bpe,
    texts: Texts<'a>,
    merger: Merger,
    spelt: String,
}

impl Words<'_> {
    fn encode(&mut self, text: &str, out: &mut Output<'_>) -> Result<()> {
        let Self { bpe: Bpe { pre, takes_whole_words, .. }, texts, merger, spelt } = self;
        let index = self.bpe.index(*texts, text, |text| spell(text.as_bytes()), &mut out.pace)?;
        index.expect(text.as_bytes(), 1, out)?;
        for word in pre.split(text) {
            out.pace.work(word.len())?;
            spelt.clear();
            for chunk in word.as_bytes().chunks(1 << 14) {
                out.pace.work(chunk.len())?;
                spelt.try_reserve(2 * chunk.len()).map_err(|_| no_memory(2 * word.len()))?;
                // A byte that is no token is left out, as HF's tokenizers does. Some vocabularies, SmolLM2's
                // for one, lack bytes that their training text never had.
                let known = chunk.iter().filter(|&&byte| index.has_byte[byte as usize]);
                spelt.extend(known.map(|&byte| CHAR_OF[byte as usize]));
            }
            if *takes_whole_words && let Some(id) = index.by_text.find(*texts, spelt.as_bytes()) {
                out.push(id)?;
                continue;
            }
            merger.merge(spelt, &mut out.pace, |joint, left_len| {
                index.ranks.find(&index.by_text, *texts, joint, left_len)
            })?;
            for symbol in merger.symbols(spelt) {
                out.pace.work(1)?;
                if let Some(id) = index.by_text.find(*texts, symbol.as_bytes()) {
                    out.push(id)?;
                }
            }
        }
        Ok(())
    }
}

/// How a token that stands for `bytes` is spelt.
pub(super) fn spell(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| CHAR_OF[byte as usize]).collect()
}

/// The merges of tokens that are merged by their own ranks: every way to make one of two others, in the order of ranks.
/// `None` if they are absurdly many or long.
pub(super) fn merges_of_ranks(tokens: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    const MAX_LEN: usize = 1 << 12;
    let hasher = foldhash::fast::RandomState::default();
    let mut ranks = HashMap::with_capacity_and_hasher(tokens.len(), hasher);
    for (rank, token) in tokens.iter().enumerate() {
        ranks.entry(token.as_slice()).or_insert(rank);
    }
    let (mut merges, mut halves) = (Vec::new(), Vec::new());
    let mut left = MAX_MERGES_LEN;
    for token in tokens {
        if token.len() > MAX_LEN {
            return None;
        }
        halves.clear();
        halves.extend((1..token.len()).filter_map(|at| Some((ranks.get(&token[..at])?, ranks.get(&token[at..])?, at))));
        halves.sort_unstable();
        for &(_, _, at) in &halves {
            let merge = format!("{} {}", spell(&token[..at]), spell(&token[at..])).into_bytes();
            left = left.checked_sub(merge.len())?;
            merges.push(merge);
        }
        if merges.len() > ranks::MAX_MERGES {
            return None;
        }
    }
    Some(merges)
}

/// Bytes of all merges that are made of ranks, at most.
const MAX_MERGES_LEN: usize = 1 << 28;

/// The bytes that a token spelt `text` stands for, or `None` if it is not in the alphabet.
pub(super) fn unspell(text: &[u8]) -> Option<Vec<u8>> {
    spelt(text).collect()
}

/// The bytes that `text` spells, `None` for what is not in the alphabet. All of that has one or two bytes of UTF-8: decoding
/// just those takes half the time of a check and a decoder for all of it.
fn spelt(text: &[u8]) -> impl Iterator<Item = Option<u8>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (code, len) = match *rest {
            [] => return None,
            [a @ 0..=0x7f, ..] => (usize::from(a), 1),
            [a @ 0xc2..=0xdf, b @ 0x80..=0xbf, ..] => (usize::from(a & 0x1f) << 6 | usize::from(b & 0x3f), 2),
            _ => (usize::MAX, 1),
        };
        rest = &rest[len..];
        Some(BYTE_OF.get(code).copied().flatten())
    })
}

/// The byte that `text` spells, if it is one.
fn only_byte(text: &[u8]) -> Option<u8> {
    let mut bytes = spelt(text);
    match (bytes.next().flatten(), bytes.next()) {
        (Some(byte), None) => Some(byte),
        _ => None,
    }
}

/// Number of characters of a text, as it should be in UTF-8.
fn n_chars(text: &[u8]) -> usize {
    text.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

/// The alphabet: printable characters of Latin-1 stand for themselves, the other bytes for the
/// characters from U+0100 on, in order.
const CHAR_OF: [char; 256] = {
    let mut chars = ['\0'; 256];
    let (mut byte, mut others) = (0, 0);
    while byte < 256 {
        let code = match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u32,
            _ => {
                others += 1;
                0xff + others
            }
        };
        chars[byte] = char::from_u32(code).expect("below the surrogates");
        byte += 1;
    }
    chars
};

const BYTE_OF: [Option<u8>; 0x144] = {
    let mut bytes = [None; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHAR_OF[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

/// What encoding needs to know.
struct Index {
    by_text: TextIndex, // the tokens that text comes to by itself
    has_byte: Box<[bool; 256]>,
    longest: usize, // bytes of text that a token stands for, at most
    ranks: Ranks,
}

impl Index {
    /// An index of the tokens that may be among `parts`, or of all.
    fn new(bpe: &Bpe, texts: Texts<'_>, parts: Option<&Parts>, pace: &mut Pace<'_>) -> Result<Self> {
        let vocabulary = texts.vocabulary;
        let mut has_byte = Box::new([false; 256]);
        let mut ids = Vec::new();
        let mut longest = 1;
        let mut empty = Odd::new("token without a text, which no text comes to");
        for id in vocabulary.ids() {
            let text = texts.get(id).unwrap_or_default();
            pace.work(16 + text.len())?;
            if text.is_empty() {
                empty.see(id as usize);
                continue;
            }
            if parts.is_some_and(|parts| !parts.may_have(text)) {
                continue;
            }
            // A token that is not spelt in the alphabet is here too, and never found.
            let byte = if text.len() <= 2 { only_byte(text) } else { None };
            match byte {
                Some(byte) => has_byte[byte as usize] = true,
                // Text is never what only its name, asked for, stands for.
                None if texts.kind(id).is_special() || vocabulary.is_only_added(id) => continue,
                None => {}
            }
            reserve(&mut ids, 1)?;
            ids.push(id);
            longest = longest.max(n_chars(text));
        }
        vocabulary.note(&empty);

        let by_text = TextIndex::of(texts, &ids, pace)?;
        let ranks = Ranks::new(&bpe.merges, &by_text, texts, parts, pace)?;
        Ok(Self { by_text, has_byte, longest, ranks })
    }

    /// Ends it all if `text`, which may become `shrinks` times shorter, is sure to have too many tokens.
    fn expect(&self, text: &[u8], shrinks: usize, out: &mut Output<'_>) -> Result<()> {
        let at_least = |bytes: usize| bytes.div_ceil(self.longest * shrinks);
        if out.expect(at_least(text.len())).is_ok() {
            return Ok(());
        }
        // Bytes that are no token make none.
        let mut known = 0;
        for chunk in text.chunks(1 << 14) {
            out.pace.work(chunk.len())?;
            known += chunk.iter().filter(|&&byte| self.has_byte[byte as usize]).count();
        }
        out.expect(at_least(known))
    }
}
