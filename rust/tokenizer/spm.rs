//! SentencePiece's BPE: the pair of neighbours that makes the token of the highest score is merged, again and
//! again; what is no token then is spelt in byte tokens.
//!
//! A space is `▁` (U+2581) in the vocabulary, and one is put before a text so that its first word is like any
//! other. There are no words: a text is merged as a whole. But where no token has a `▁` after the character that is
//! before it, no merge reaches over, and what is on both sides can be merged apart.
//!
//! HF's tokenizers has the same vocabularies with a list of merges instead, which goes by rank as in byte-level BPE, and so
//! has Gemma 4's GGUF; there a run of newlines is a text of its own.
//!
//! User-defined tokens are of two kinds. Those of the SentencePiece model itself come before its normal tokens; text goes
//! on around them. Those that were added to it afterwards come behind; each ends a text, and another begins after it, as
//! it is with control tokens. HF's tokenizers keeps the two apart in the same way, and llama.cpp knows the second alone.

use std::borrow::Cow;
use std::collections::HashMap;

use super::added::{Added, Walk};
use super::merge::Merger;
use super::normalize::Normalizer;
use super::pace::{Output, Pace, reserve};
use super::parts::{Indexes, Parts};
use super::ranks::{self, Ranks};
use super::space::{ByteTokens, Cuts, Prefix, byte_of, first_normal};
use super::text_index::TextIndex;
use super::vocabulary::{Kind, Odd, Texts, Vocabulary};
use super::{FUSE_UNKNOWN, IGNORE_MERGES};
use crate::checkpoint::{Metadata, StringArray};
use crate::error::{Error, Result};

const SCORES: &str = "tokenizer.ggml.scores";
const MERGES_BY_RANK: &str = "llama_rs.tokenizer.merges_by_rank";

/// The rules of SentencePiece's BPE for one file.
pub(super) struct Spm {
    pub(super) prefix: Prefix,
    /// Whether a byte token may be of any type: its name tells.
    names_bytes: bool,
    lines: bool, // whether runs of newlines are texts of their own
    fuses_unknown: bool,
    takes_whole_texts: bool,
    normalizer: Normalizer,
    merges: Option<StringArray>, // by rank; else the scores lead
    unknown: Option<u32>,
    indexes: Indexes<Index>,
    added: Added,
}

impl Spm {
    /// Checks that everything is there. Does not walk the tokens.
    pub(super) fn from_metadata(
        metadata: &Metadata,
        vocabulary: &Vocabulary,
        unknown: Option<u32>,
        is_gemma4: bool,
    ) -> Result<Self> {
        let by_rank = is_gemma4 || metadata.bool(MERGES_BY_RANK)?.unwrap_or(false);
        if !vocabulary.has_kinds() {
            return Err(metadata.error("missing key", "tokenizer.ggml.token_type").into());
        }
        if !by_rank && !vocabulary.has_scores() {
            return Err(metadata.error("missing key", SCORES).into());
        }
        let normalizer = match Normalizer::named(metadata)? {
            Some(normalizer) => normalizer,
            None if is_gemma4 => Normalizer::none(),
            None => Normalizer::sentencepiece(metadata, false)?,
        };
        Ok(Self {
            prefix: Prefix::from_metadata(metadata, !is_gemma4)?,
            names_bytes: is_gemma4,
            lines: is_gemma4,
            fuses_unknown: metadata.bool(FUSE_UNKNOWN)?.unwrap_or(true),
            takes_whole_texts: by_rank && metadata.bool(IGNORE_MERGES)?.unwrap_or(false),
            normalizer,
            merges: if by_rank { Some(ranks::merges(metadata)?) } else { None },
            unknown,
            indexes: Indexes::default(),
            added: Added::default(),
        })
    }

    /// What a token of this text and kind is.
    pub(super) fn kind(&self, text: &[u8], kind: Kind) -> Kind {
        if self.names_bytes && kind == Kind::Normal && byte_of(text).is_some() { Kind::Byte } else { kind }
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
        let index = self.index(texts, text, false, &mut out.pace)?;
        let mut encoder = Encoder { spm: self, texts, index, merger: Merger::default(), in_unknown: false };
        // With a prefix that every text gets, spelling is a step of the normaliser; else it comes after the cuts.
        let spells_early = matches!(self.prefix, Prefix::Dummy | Prefix::Never);
        let walk = Walk {
            added: &self.added,
            texts,
            parse_special,
            first_raw: if self.names_bytes { 0 } else { index.first_normal },
            finds_own: true,
            normalize: &|text, pace| {
                let text = self.normalizer.normalize(text, pace)?;
                if !spells_early || text.is_empty() {
                    return Ok(text);
                }
                Ok(self.prefix.spell(&text, true, pace)?.into_owned().into())
            },
            spell: &|text, pace| {
                let text = self.normalizer.normalize(&text, pace)?;
                // HF's tokenizers puts the prefix before the name, too.
                let prefix = if texts.vocabulary.has_flags() { self.prefix } else { Prefix::Never };
                if spells_early {
                    prefix.spell(&text, true, pace).map(|text| text.into_owned())
                } else {
                    Ok(text.into_owned())
                }
            },
            expect: &|text, out| match self.normalizer.shrinks() {
                Some(shrinks) => index.expect(text.len().div_ceil(shrinks), out),
                None => Ok(()),
            },
        };
        walk.walk(text, out, |text, is_start, out| {
            if spells_early {
                return encoder.encode(text, out);
            }
            let text = self.prefix.spell(text, is_start, &mut out.pace)?;
            encoder.encode(&text, out)
        })
    }

    /// What is known of the tokens of `text`, which may have been spelt as they are.
    fn index(&self, texts: Texts<'_>, text: &str, is_spelt: bool, pace: &mut Pace<'_>) -> Result<&Index> {
        let spell = |text, pace: &mut Pace<'_>| match is_spelt {
            true => Ok(Cow::Borrowed(text)),
            false => self.prefix.spell(text, true, pace),
        };
        self.indexes.of(text, pace, spell, |parts, pace| Index::new(self, texts, parts, pace))
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
    /// Appends the tokens of a text that is spelt as the vocabulary is.
    fn encode(&mut self, text: &str, out: &mut Output<'_>) -> Result<()> {
        self.in_unknown = false;
        self.index = self.spm.index(self.texts, text, true, &mut out.pace)?;
        self.index.expect(text.len(), out)?;
        if !self.spm.lines {
            return self.encode_text(text, out);
        }
        let mut rest = text;
        while !rest.is_empty() {
            let is_newline = rest.starts_with('\n');
            let (line, tail) = rest.split_at(rest.find(|c| (c == '\n') != is_newline).unwrap_or(rest.len()));
            out.pace.work(line.len())?;
            rest = tail;
            match self.index.by_text.find(self.texts, line.as_bytes()).filter(|_| is_newline) {
                Some(id) => out.push(id)?,
                None => self.encode_text(line, out)?,
            }
        }
        Ok(())
    }

    fn encode_text(&mut self, text: &str, out: &mut Output<'_>) -> Result<()> {
        if self.spm.takes_whole_texts
            && let Some(id) = self.index.by_text.find(self.texts, text.as_bytes())
        {
            return out.push(id);
        }
        let before = out.ids.len();
        let done = match self.encode_words(text, out) {
            // As a whole, it may have fewer.
            Err(Error::TooManyTokens { .. }) if self.index.has_unused => false,
            done => done?,
        };
        if !done {
            out.ids.truncate(before);
            self.in_unknown = false;
            self.merge(text, &mut HashMap::new(), out)?;
        }
        Ok(())
    }
    /// Appends the tokens of what lies between user-defined tokens, word by word. False if an unused token comes up: which
    /// two halves it is taken apart into, another word may have decided.
    fn encode_words(&mut self, text: &str, out: &mut Output<'_>) -> Result<bool> {
        let mut unused = HashMap::new();
        for word in self.index.cuts.words(text) {
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
            if let Some(ranks) = &index.ranks {
                return ranks.find(&index.by_text, *texts, joint, left_len);
            }
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
                    (None, _) => match index.byte_tokens.of(part) {
                        Some(mut ids) => ids.try_for_each(|id| out.push(id))?,
                        None => {
                            if !std::mem::replace(in_unknown, spm.fuses_unknown) {
                                out.push(texts.unknown(spm.unknown, part)?)?;
                            }
                            continue;
                        }
                    },
                }
                *in_unknown = false;
            }
        }
        Ok(())
    }
}

/// What encoding needs to know.
struct Index {
    by_text: TextIndex, // the tokens that text is merged into
    ranks: Option<Ranks>,
    byte_tokens: ByteTokens,
    longest: usize, // bytes of spelt text that a token stands for, at most; 0 if one stands for any number
    cuts: Cuts,
    first_normal: u32,
    has_unused: bool, // tokens that are taken apart again
}

impl Index {
    /// An index of the tokens that may be among `parts`, or of all.
    fn new(spm: &Spm, texts: Texts<'_>, parts: Option<&Parts>, pace: &mut Pace<'_>) -> Result<Self> {
        let vocabulary = texts.vocabulary;
        let mut ids = Vec::new();
        let (mut byte_tokens, mut cuts) = (ByteTokens::default(), Cuts::default());
        let (mut longest, mut has_unused) = (1, false);
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
            let kind = spm.kind(text, texts.kind(id));
            match kind {
                Kind::Normal | Kind::UserDefined | Kind::Unused if vocabulary.is_only_added(id) => {}
                Kind::Normal | Kind::UserDefined | Kind::Unused => {
                    if spm.merges.is_none() && vocabulary.score(id).is_nan() {
                        no_score.see(id as usize);
                    }
                    if parts.is_some_and(|parts| !parts.may_have(text)) {
                        continue;
                    }
                    reserve(&mut ids, 1)?;
                    ids.push(id);
                    has_unused |= kind == Kind::Unused;
                    longest = longest.max(text.len());
                    cuts.see(text);
                }
                Kind::Byte if byte_tokens.add(id, text) => {}
                Kind::Byte => not_a_byte.see(id as usize),
                Kind::Control | Kind::Unknown => {}
            }
        }
        [empty, not_a_byte, no_score].iter().for_each(|odd| vocabulary.note(odd));
        if !byte_tokens.are_complete() {
            longest = 0;
        }
        let by_text = TextIndex::of(texts, &ids, pace)?;
        let ranks = match &spm.merges {
            Some(merges) => Some(Ranks::new(merges, &by_text, texts, parts, pace)?),
            None => None,
        };
        Ok(Self { by_text, ranks, byte_tokens, longest, cuts, first_normal: first_normal(texts), has_unused })
    }

    /// Ends it all if a text of `len` bytes is sure to have too many tokens.
    fn expect(&self, len: usize, out: &Output<'_>) -> Result<()> {
        if self.longest == 0 { Ok(()) } else { out.expect(len.div_ceil(self.longest)) }
    }
}

/// A number that is the smaller, the higher the score.
fn descending(score: f32) -> Option<u32> {
    let bits = (score + 0.0).to_bits(); // -0 is 0
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    (!score.is_nan()).then_some(!ascending)
}
