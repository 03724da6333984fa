//! SentencePiece's Unigram: of all ways to cut a text into tokens, the one whose scores have the largest sum.
//!
//! One pass over the text keeps, for each place in it, the best way to come there. Which tokens begin at a place, a table of
//! all starts of tokens tells; it has a hash for each and no text. As in [`spm`](super::spm), a text falls apart before a `▁`
//! that no token reaches over, so what is kept is no more than a word, as a rule. Sums are of 64 bits, as those of HF's
//! `tokenizers` and llama.cpp are: of SentencePiece's, which have 32, rounding may prefer another of two that are equal.
//!
//! A user-defined token of the model itself scores more than any other of its length; those that were added to it
//! afterwards cut the text before all this.

use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

use super::added::{Added, Walk};
use super::normalize::Normalizer;
use super::pace::{Output, Pace, reserve};
use super::space::{ByteTokens, Cuts, NONE, Prefix, SPACE, first_normal};
use super::vocabulary::{Kind, Odd, Texts, Vocabulary, get_or_try_init};
use crate::checkpoint::Metadata;
use crate::error::Result;

const SCORES: &str = "tokenizer.ggml.scores";
const METASPACE_SPLIT: &str = "llama_rs.tokenizer.metaspace_split";
const WHITESPACE_SPLIT: &str = "llama_rs.tokenizer.whitespace_split";

/// How much less than the worst token an unknown character scores.
const UNKNOWN_PENALTY: f64 = 10.0;

/// Longest token that text comes to, in bytes.
const MAX_LEN: usize = 1 << 12;

/// The rules of Unigram for one file.
pub(super) struct Unigram {
    pub(super) prefix: Prefix,
    splits_words: bool,      // at each `▁`
    splits_whitespace: bool, // before the rest, and throws it away
    normalizer: Normalizer,
    unknown: Option<u32>,
    index: OnceLock<Index>,
    added: Added,
}

impl Unigram {
    /// Checks that everything is there. Does not walk the tokens.
    pub(super) fn from_metadata(metadata: &Metadata, vocabulary: &Vocabulary, unknown: Option<u32>) -> Result<Self> {
        if !vocabulary.has_scores() {
            return Err(metadata.error("missing key", SCORES).into());
        }
        let normalizer = match Normalizer::named(metadata)? {
            Some(normalizer) => normalizer,
            None => Normalizer::sentencepiece(metadata, false)?,
        };
        Ok(Self {
            prefix: Prefix::from_metadata(metadata, true)?,
            splits_words: metadata.bool(METASPACE_SPLIT)?.unwrap_or(false),
            splits_whitespace: metadata.bool(WHITESPACE_SPLIT)?.unwrap_or(false),
            normalizer,
            unknown,
            index: OnceLock::new(),
            added: Added::default(),
        })
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
        let mut encoder =
            Encoder { unknown: self.unknown, texts, index, best: Vec::new(), path: Vec::new(), in_unknown: false };
        let walk = Walk {
            added: &self.added,
            texts,
            parse_special,
            first_raw: index.first_normal,
            finds_own: false,
            normalize: &|text, pace| self.normalizer.normalize(text, pace),
            spell: &|text, pace| Ok(self.normalizer.normalize(&text, pace)?.into_owned()),
            expect: &|text, out| match self.normalizer.shrinks() {
                Some(shrinks) if !self.splits_whitespace => index.expect(text.len().div_ceil(shrinks), out),
                _ => Ok(()),
            },
        };
        walk.walk(text, out, |text, is_start, out| {
            if !self.splits_whitespace {
                return self.encode_text(text, is_start, &mut encoder, out);
            }
            let mut is_start = is_start;
            for word in text.split(char::is_whitespace) {
                out.pace.work(1)?;
                if !word.is_empty() {
                    self.encode_text(word, is_start && text.starts_with(word), &mut encoder, out)?;
                    is_start = false;
                }
            }
            Ok(())
        })
    }

    fn encode_text(&self, text: &str, is_start: bool, encoder: &mut Encoder<'_>, out: &mut Output<'_>) -> Result<()> {
        let text = self.prefix.spell(text, is_start, &mut out.pace)?;
        encoder.index.expect(text.len(), out)?;
        encoder.in_unknown = false;
        if !self.splits_words {
            return encoder.index.cuts.words(&text).try_for_each(|word| encoder.encode(word, out));
        }
        let mut rest = &*text;
        while !rest.is_empty() {
            let end = rest.match_indices(SPACE).map(|(at, _)| at).find(|&at| at > 0).unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            rest = tail;
            encoder.in_unknown = false;
            encoder.index.cuts.words(word).try_for_each(|word| encoder.encode(word, out))?;
        }
        Ok(())
    }
}

/// Encodes words, in buffers that it keeps.
struct Encoder<'a> {
    unknown: Option<u32>,
    texts: Texts<'a>,
    index: &'a Index,
    best: Vec<Best>,
    path: Vec<(usize, usize, u32)>,
    in_unknown: bool, // a run of unknown characters is one unknown token
}

/// The best way to come to a place in a text.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    start: u32, // where its last token begins, `NONE` where there is no way
    id: u32,    // that token, `NONE` for an unknown character
}

impl Encoder<'_> {
    fn encode(&mut self, text: &str, out: &mut Output<'_>) -> Result<()> {
        let Self { unknown, texts, index, best, path, in_unknown } = self;
        out.pace.work(text.len())?;
        best.clear();
        reserve(best, text.len() + 1)?;
        best.resize(text.len() + 1, Best { score: 0.0, start: NONE, id: NONE });
        for (start, c) in text.char_indices() {
            let so_far = best[start].score;
            let next = start + c.len_utf8();
            let mut come = |end: usize, score: f64, id: u32| {
                let place = &mut best[end];
                if place.start == NONE || score > place.score {
                    *place = Best { score, start: start as u32, id };
                }
            };
            let mut has_single = false;
            let mut hash = index.starts.hasher();
            for (at, c) in text[start..].char_indices() {
                out.pace.work(1)?;
                let end = start + at + c.len_utf8();
                let Some(id) = index.starts.go_on(&mut hash, &text[start + at..end]) else { break };
                if id != NONE && texts.get(id) == Some(&text.as_bytes()[start..end]) {
                    has_single |= end == next;
                    let score = match texts.kind(id) {
                        Kind::UserDefined if !texts.vocabulary.has_flags() => {
                            (end - start) as f64 * index.best_score - 0.1
                        }
                        _ => f64::from(texts.vocabulary.score(id)),
                    };
                    come(end, so_far + score, id);
                }
            }
            if !has_single {
                come(next, so_far + index.unknown_score, NONE);
            }
        }
        path.clear();
        let mut end = text.len();
        while end > 0 {
            let Best { start, id, .. } = best[end];
            reserve(path, 1)?;
            path.push((start as usize, end, id));
            end = start as usize; // which is less: each place was come to from one before it
        }
        for &(start, end, id) in path.iter().rev() {
            out.pace.work(1)?;
            if id != NONE {
                *in_unknown = false;
                out.push(id)?;
                continue;
            }
            let part = &text[start..end];
            match index.byte_tokens.of(part) {
                Some(mut ids) => ids.try_for_each(|id| out.push(id))?,
                None => {
                    if !std::mem::replace(in_unknown, true) {
                        out.push(texts.unknown(*unknown, part)?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What encoding needs to know.
struct Index {
    starts: Starts,
    byte_tokens: ByteTokens,
    cuts: Cuts,
    unknown_score: f64,
    best_score: f64, // of normal tokens
    longest: usize,  // bytes of spelt text that a token stands for, at most; 0 if one stands for any number
    first_normal: u32,
}

impl Index {
    fn new(texts: Texts<'_>, pace: &mut Pace<'_>) -> Result<Self> {
        let vocabulary = texts.vocabulary;
        let mut starts = Starts::new(vocabulary.len())?;
        let (mut byte_tokens, mut cuts) = (ByteTokens::default(), Cuts::default());
        let (mut longest, mut worst, mut best_score) = (1, f64::INFINITY, f64::NEG_INFINITY);
        let mut empty = Odd::new("token without a text, which no text comes to");
        let mut too_long = Odd::new("token of more than 4 KiB, which no text comes to");
        let mut not_a_byte = Odd::new("byte token that is not called <0x00> to <0xFF>, which no text comes to");
        let mut no_score = Odd::of(SCORES, "score that is not a finite number, so that no text comes to its token");
        for id in vocabulary.ids() {
            let text = texts.get(id).unwrap_or_default();
            pace.work(16 + 2 * text.len())?;
            let score = vocabulary.score(id);
            match texts.kind(id) {
                _ if text.is_empty() => empty.see(id as usize),
                Kind::Byte if byte_tokens.add(id, text) => {}
                Kind::Byte => not_a_byte.see(id as usize),
                Kind::Normal | Kind::UserDefined if vocabulary.is_only_added(id) => {}
                Kind::Normal | Kind::UserDefined if !score.is_finite() => no_score.see(id as usize),
                Kind::Normal | Kind::UserDefined if text.len() > MAX_LEN => too_long.see(id as usize),
                Kind::Normal | Kind::UserDefined => {
                    // A copy: what was checked stays what it is. One that is not UTF-8 is in no text.
                    let Ok(text) = String::from_utf8(text.to_vec()) else { continue };
                    starts.insert(&text, id)?;
                    longest = longest.max(text.len());
                    cuts.see(text.as_bytes());
                    if texts.kind(id) == Kind::Normal {
                        (worst, best_score) = (worst.min(f64::from(score)), best_score.max(f64::from(score)));
                    }
                }
                Kind::Control | Kind::Unknown | Kind::Unused => {}
            }
        }
        [empty, too_long, not_a_byte, no_score].iter().for_each(|odd| vocabulary.note(odd));
        if !byte_tokens.are_complete() {
            longest = 0;
        }
        let or_nothing = |score: f64| if score.is_finite() { score } else { 0.0 };
        let (unknown_score, best_score) = (or_nothing(worst) - UNKNOWN_PENALTY, or_nothing(best_score));
        Ok(Self { starts, byte_tokens, cuts, unknown_score, best_score, longest, first_normal: first_normal(texts) })
    }

    /// Ends it all if a text of `len` bytes is sure to have too many tokens.
    fn expect(&self, len: usize, out: &Output<'_>) -> Result<()> {
        if self.longest == 0 { Ok(()) } else { out.expect(len.div_ceil(self.longest)) }
    }
}

/// The starts of tokens, by their hashes: those that are tokens, and those that only lead to some.
///
/// Open addressing with linear probing; the hash is keyed at random for each table. A start that is not there and has the hash
/// of one that is makes a search a step longer.
struct Starts {
    slots: Vec<Slot>, // (a power of two), of which a third is free
    len: usize,
    state: foldhash::quality::RandomState,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u64, // 0 where there is nothing
    id: u32,   // `NONE` if no token ends here
}

const FREE: Slot = Slot { hash: 0, id: NONE };

/// The hash of a start, which grows.
#[derive(Clone, Copy)]
struct Growing {
    key: u64,
    hash: u64,
}

impl Starts {
    fn new(capacity: usize) -> Result<Self> {
        let mut slots = Vec::new();
        let len = (2 * capacity + 2).next_power_of_two();
        reserve(&mut slots, len)?;
        slots.resize(len, FREE);
        Ok(Self { slots, len: 0, state: foldhash::quality::RandomState::default() })
    }

    /// The hash of nothing.
    fn hasher(&self) -> Growing {
        let mut hasher = self.state.build_hasher();
        hasher.write_u64(0);
        let key = hasher.finish() | 1;
        Growing { key, hash: key.rotate_left(32) }
    }

    /// Adds a token and all its starts. The first of two tokens is found.
    fn insert(&mut self, text: &str, id: u32) -> Result<()> {
        let mut hash = self.hasher();
        for (at, c) in text.char_indices() {
            if self.slots.len() - self.len <= self.slots.len() / 3 {
                self.grow()?;
            }
            let end = at + c.len_utf8();
            hash.write(&text[at..end]);
            let slot = self.probe(hash.value());
            if self.slots[slot].hash == 0 {
                self.slots[slot] = Slot { hash: hash.value(), id: NONE };
                self.len += 1;
            }
            if end == text.len() && self.slots[slot].id == NONE {
                self.slots[slot].id = id;
            }
        }
        Ok(())
    }

    fn grow(&mut self) -> Result<()> {
        let mut slots = Vec::new();
        reserve(&mut slots, 2 * self.slots.len())?;
        slots.resize(2 * self.slots.len(), FREE);
        let old = std::mem::replace(&mut self.slots, slots);
        for slot in old.into_iter().filter(|slot| slot.hash != 0) {
            let at = self.probe(slot.hash);
            self.slots[at] = slot;
        }
        Ok(())
    }

    /// Makes the start longer by `more`: the token that it is, or `NONE` if it is just a start; nothing if it is none.
    fn go_on(&self, hash: &mut Growing, more: &str) -> Option<u32> {
        hash.write(more);
        let slot = self.slots[self.probe(hash.value())];
        (slot.hash != 0).then_some(slot.id)
    }

    /// Where this hash is, or would be.
    fn probe(&self, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at].hash != hash && self.slots[at].hash != 0 {
            at = (at + 1) & mask;
        }
        at
    }
}

impl Growing {
    fn write(&mut self, text: &str) {
        for &byte in text.as_bytes() {
            let product = u128::from(self.hash ^ u64::from(byte)) * u128::from(self.key);
            self.hash = product as u64 ^ (product >> 64) as u64;
        }
    }

    fn value(self) -> u64 {
        self.hash.max(1)
    }
}
