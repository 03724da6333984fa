//! The vocabulary where it lies in the file: the texts, kinds and scores of the tokens.
//!
//! Nothing is copied. What has to be known to find a text, its offset in the map, is collected when the
//! first text is asked for; finding a token *by* its text needs a [`TextIndex`], which only encoding builds.

use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::OnceLock;

use aho_corasick::{AhoCorasick, MatchKind};
use foldhash::quality::RandomState;

use crate::checkpoint::{Metadata, StringArray, ValueType};
use crate::error::{FormatError, Result};
use crate::mapping::Bytes;

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";

/// What a token is, by the numbers of `tokenizer.ggml.token_type`, which are sentencepiece's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    fn from_number(number: i32) -> Option<Self> {
        use Kind::*;
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        [Normal, Unknown, Control, UserDefined, Unused, Byte].get(index).copied()
    }

    /// Whether it stands for something other than text.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Kind::Control | Kind::Unknown)
    }
}

/// The tokens of a file.
#[derive(Debug)]
pub(super) struct Vocabulary {
    path: PathBuf,
    tokens: StringArray,
    kinds: Option<Bytes>,        // (vocab_size) of i32; without them all tokens are normal
    scores: Option<Bytes>,       // (vocab_size) of f32
    offsets: OnceLock<Vec<u32>>, // (vocab_size + 1) of where in `tokens` the length before a text is
}

impl Vocabulary {
    /// Checks types and lengths. Does not walk the tokens.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let tokens = metadata.strings(TOKENS)?.ok_or_else(|| metadata.error("missing key", TOKENS))?;
        if tokens.len == 0 {
            return Err(metadata.error("the vocabulary is empty", TOKENS).into());
        }
        if tokens.bytes.len() > u32::MAX as usize {
            let e = metadata.error("the vocabulary is too large", TOKENS);
            return Err(e.got(format!("{} bytes", tokens.bytes.len())).limit("less than 4 GiB").into());
        }
        let beside = |key: &str, element: ValueType| -> Result<Option<Bytes>> {
            match metadata.array(key, element)? {
                Some(array) if array.len != tokens.len => {
                    let e = metadata.error("not one element for each token", key);
                    Err(e.got(array.len).limit(tokens.len).into())
                }
                array => Ok(array.map(|array| array.bytes.clone())),
            }
        };
        let kinds = beside(TOKEN_TYPE, ValueType::I32)?;
        let scores = beside(SCORES, ValueType::F32)?;
        Ok(Self { path: metadata.path().to_path_buf(), tokens, kinds, scores, offsets: OnceLock::new() })
    }

    /// Gives what `read` makes of the texts, unless the file changed meanwhile.
    pub(super) fn checked<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        self.tokens.bytes.mapping().checked(read)
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len
    }

    /// All ids.
    pub(super) fn ids(&self) -> std::ops::Range<u32> {
        0..self.len() as u32 // each token takes 8 of less than 2^32 bytes
    }

    pub(super) fn has_kinds(&self) -> bool {
        self.kinds.is_some()
    }

    pub(super) fn has_scores(&self) -> bool {
        self.scores.is_some()
    }

    /// What the token `id` is; normal if the file does not say, or says nonsense.
    pub(super) fn kind(&self, id: u32) -> Kind {
        Kind::from_number(self.kind_number(id)).unwrap_or(Kind::Normal)
    }

    /// What the token `id` is, or an error if the file says nonsense.
    pub(super) fn check_kind(&self, id: u32) -> Result<Kind> {
        let number = self.kind_number(id);
        Kind::from_number(number).ok_or_else(|| {
            let e = FormatError::new(&self.path, "unknown token type").named(format!("{TOKEN_TYPE}[{id}]"));
            e.got(number).limit("1 to 6").into()
        })
    }

    fn kind_number(&self, id: u32) -> i32 {
        self.kinds.as_ref().and_then(|kinds| element(kinds, id)).map_or(1, i32::from_le_bytes)
    }

    /// The score of the token `id`; the higher, the earlier it is merged.
    pub(super) fn score(&self, id: u32) -> f32 {
        self.scores.as_ref().and_then(|scores| element(scores, id)).map_or(0.0, f32::from_le_bytes)
    }

    /// A report about the vocabulary as a whole.
    pub(super) fn error(&self, what: &str) -> FormatError {
        FormatError::new(&self.path, what).named(TOKENS)
    }

    /// A report about the score of the token `id`.
    pub(super) fn score_error(&self, what: &str, id: u32) -> FormatError {
        FormatError::new(&self.path, what).named(format!("{SCORES}[{id}]")).got(self.score(id))
    }

    /// The texts; the first call finds where they are.
    pub(super) fn texts(&self) -> Result<Texts<'_>> {
        let offsets = get_or_try_init(&self.offsets, || {
            let mut offsets = Vec::with_capacity(self.len() + 1); // the file has 8 bytes for each
            let mut at = 0;
            offsets.push(at);
            for text in self.tokens.iter() {
                at += 8 + text.len() as u32;
                offsets.push(at);
            }
            if offsets.len() != self.len() + 1 {
                return Err(self.error("the file changed while it was in use").into());
            }
            Ok(offsets)
        })?;
        Ok(Texts { vocabulary: self, bytes: &self.tokens.bytes, offsets })
    }
}

/// The texts of the tokens, by id.
#[derive(Clone, Copy)]
pub(super) struct Texts<'v> {
    vocabulary: &'v Vocabulary,
    bytes: &'v [u8],
    offsets: &'v [u32],
}

impl<'v> Texts<'v> {
    /// The text of the token `id`, if there is one.
    pub(super) fn get(self, id: u32) -> Option<&'v [u8]> {
        let start = *self.offsets.get(id as usize)? as usize + 8;
        let end = *self.offsets.get(id as usize + 1)? as usize;
        self.bytes.get(start..end)
    }

    /// A report about the text of the token `id`.
    pub(super) fn error(self, what: &str, id: u32) -> FormatError {
        let at = self.vocabulary.tokens.bytes.offset() + self.offsets[id as usize] as usize;
        let text = shown(self.get(id).unwrap_or_default());
        FormatError::new(&self.vocabulary.path, what).named(format!("{TOKENS}[{id}]")).got(text).at(at)
    }
}

/// How a text of the file is shown in a message: quoted, escaped, and no more than its start.
pub(super) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let dots = if text.chars().nth(40).is_some() { "..." } else { "" };
    format!("{:?}{dots}", text.chars().take(40).collect::<String>())
}

/// Finds a token by its text. The table holds ids and bits of hashes; the texts stay where they are.
///
/// Open addressing with linear probing. A slot is the upper half of the hash and the id plus one, so a
/// look-up that finds nothing touches one cache line, and no text. The hash is keyed at random for each table:
/// a file cannot choose texts that fall on one another.
pub(super) struct TextIndex {
    slots: Vec<u64>, // (a power of two); 0 where there is nothing
    hasher: RandomState,
    /// Whether two tokens have the same text; the first is found.
    pub(super) has_duplicates: bool,
}

impl TextIndex {
    /// An index with room for `capacity` tokens, which are fewer than 2^29.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let slots = vec![0; (capacity + capacity / 2 + 1).next_power_of_two()];
        Self { slots, hasher: RandomState::default(), has_duplicates: false }
    }

    /// Adds the token `id`, unless there is one with the same text.
    pub(super) fn insert(&mut self, texts: Texts<'_>, id: u32) {
        let Some(text) = texts.get(id) else { return };
        let hash = self.hash(text);
        match self.probe(hash, |other| texts.get(other) == Some(text)) {
            Ok(_) => self.has_duplicates = true,
            Err(free) => self.slots[free] = hash >> 32 << 32 | u64::from(id + 1),
        }
    }

    /// The token that has this text.
    pub(super) fn find(&self, texts: Texts<'_>, text: &[u8]) -> Option<u32> {
        self.probe(self.hash(text), |id| texts.get(id) == Some(text)).ok()
    }

    /// Whether there is a token with this text, by its hash alone: wrongly yes for one text in four thousand million.
    pub(super) fn may_have(&self, text: &[u8]) -> bool {
        self.probe(self.hash(text), |_| true).is_ok()
    }

    /// The id in a slot of this hash that `is_it`, or else the free slot where it would be.
    fn probe(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Result<u32, usize> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            match self.slots[at] {
                0 => return Err(at), // comes to be: a third of the slots are free
                slot if slot >> 32 == hash >> 32 && is_it(slot as u32 - 1) => return Ok(slot as u32 - 1),
                _ => at = (at + 1) & mask,
            }
        }
    }

    fn hash(&self, text: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(text);
        hasher.finish()
    }
}

/// Finds tokens of a few kinds in raw text: the leftmost first, and of those the longest.
pub(super) struct Matcher {
    automaton: Option<AhoCorasick>, // None when there is nothing to find
    ids: Vec<u32>,
}

/// A part of a text: as it is, or a token that was spelt out.
pub(super) enum Part<'t> {
    Text(&'t str),
    Token(u32, &'t str),
}

impl Matcher {
    /// Looks for the tokens that `wanted` chooses, spelt as `spell` says.
    pub(super) fn new(texts: Texts<'_>, wanted: fn(Kind) -> bool, spell: fn(String) -> String) -> Result<Self> {
        let (mut ids, mut patterns) = (Vec::new(), Vec::new());
        for id in texts.vocabulary.ids().filter(|&id| wanted(texts.vocabulary.kind(id))) {
            // A copy first: what was checked stays what it is, whatever becomes of the file.
            let text = String::from_utf8(texts.get(id).unwrap_or_default().to_vec());
            let text = text.map_err(|_| texts.error("special token is not valid UTF-8", id))?;
            if text.is_empty() {
                return Err(texts.error("empty token", id).into());
            }
            ids.push(id);
            patterns.push(spell(text));
        }
        if patterns.is_empty() {
            return Ok(Self { automaton: None, ids });
        }
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&patterns);
        let automaton = automaton.map_err(|e| texts.vocabulary.error("too many special tokens").got(e))?;
        Ok(Self { automaton: Some(automaton), ids })
    }

    /// Cuts `text` at the tokens that it spells out. No part is empty.
    pub(super) fn split<'t>(&self, text: &'t str, mut part: impl FnMut(Part<'t>) -> Result<()>) -> Result<()> {
        let mut start = 0;
        if let Some(automaton) = &self.automaton {
            for found in automaton.find_iter(text) {
                if start < found.start() {
                    part(Part::Text(&text[start..found.start()]))?;
                }
                part(Part::Token(self.ids[found.pattern().as_usize()], &text[found.range()]))?;
                start = found.end();
            }
        }
        if start < text.len() { part(Part::Text(&text[start..])) } else { Ok(()) }
    }
}

fn element(array: &[u8], id: u32) -> Option<[u8; 4]> {
    array.as_chunks::<4>().0.get(id as usize).copied()
}

/// The value of `cell`, made by the first who asks. Two threads may both make it; one of the two stays.
pub(super) fn get_or_try_init<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = make()?;
    Ok(cell.get_or_init(|| value))
}
