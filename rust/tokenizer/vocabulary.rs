//! The vocabulary where it lies in the file: the texts, kinds and scores of the tokens.
//!
//! Nothing is copied. What has to be known to find a text, its offset in the map, is collected when the
//! first text is asked for; finding a token *by* its text needs a [`TextIndex`](super::text_index::TextIndex), which only
//! encoding builds.
//!
//! Another process may write to the file at any time. So texts are compared where they lie, and copied before anything
//! is made of them that a check has to hold for.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::added::flag;
use super::ends;
use super::pace::{Pace, reserve};
use crate::checkpoint::{Metadata, StringArray, ValueType};
use crate::error::{FormatError, Result};
use crate::mapping::Bytes;

/// The pairs of tokens that byte-level BPE merges.
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const TOKEN_FLAGS: &str = "llama_rs.tokenizer.token_flags";

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
    /// Normal for what is no such number: a token of an unknown type has a text all the same.
    fn from_number(number: i32) -> Self {
        use Kind::*;
        match number {
            2 => Unknown,
            3 => Control,
            4 => UserDefined,
            5 => Unused,
            6 => Byte,
            _ => Normal,
        }
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
    kinds: Option<Bytes>,  // (vocab_size) of i32; without them all tokens are normal
    scores: Option<Bytes>, // (vocab_size) of f32
    flags: Option<Bytes>,  // (vocab_size) of u8: what `tokenizer.json` says of added tokens
    merges: Option<StringArray>,
    walked: OnceLock<Walked>,
    notes: Mutex<Vec<String>>, // that nobody has taken yet
}

/// What a walk over the tokens finds.
#[derive(Debug)]
struct Walked {
    offsets: Vec<u32>,    // (vocab_size + 1) of where in `tokens` the length before a text is
    named_ends: Vec<u32>, // the few tokens that end an answer by their names, in ascending order
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
        // Rows of the model beyond them have none.
        let flags = metadata.array(TOKEN_FLAGS, ValueType::U8)?.map(|array| array.bytes.clone());
        let (path, merges) = (metadata.path().to_path_buf(), metadata.strings(MERGES).ok().flatten());
        Ok(Self { path, tokens, kinds, scores, flags, merges, walked: OnceLock::new(), notes: Mutex::default() })
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

    fn kind_number(&self, id: u32) -> i32 {
        self.kinds.as_ref().and_then(|kinds| element(kinds, id)).map_or(1, i32::from_le_bytes)
    }

    /// Whether there is a merge that makes `name`.
    fn has_merge_into(&self, name: &str) -> bool {
        let merges = self.merges.iter().flat_map(StringArray::iter);
        merges.filter(|merge| merge.len() == name.len() + 1).any(|merge| {
            let halves = merge.iter().position(|&b| b == b' ').map(|at| (&merge[..at], &merge[at + 1..]));
            halves.is_some_and(|(left, right)| name.as_bytes().strip_prefix(left) == Some(right))
        })
    }

    /// The score of the token `id`; the higher, the earlier it is merged.
    pub(super) fn score(&self, id: u32) -> f32 {
        self.scores.as_ref().and_then(|scores| element(scores, id)).map_or(0.0, f32::from_le_bytes)
    }

    /// Whether the file says more of added tokens than their types.
    pub(super) fn has_flags(&self) -> bool {
        self.flags.is_some()
    }

    /// What it says of the token `id`, see `added::flag`.
    pub(super) fn flags(&self, id: u32) -> u8 {
        self.flags.as_ref().and_then(|flags| flags.get(id as usize)).copied().unwrap_or(0)
    }

    /// Whether the token `id` was only added, so that it comes of its name alone.
    pub(super) fn is_only_added(&self, id: u32) -> bool {
        self.flags(id) & (flag::ADDED | flag::OF_THE_MODEL) == flag::ADDED
    }

    /// A report about the vocabulary as a whole.
    pub(super) fn error(&self, what: &str) -> FormatError {
        FormatError::new(&self.path, what).named(TOKENS)
    }

    /// Notes something that a user should know of, though the file is used all the same.
    pub(super) fn note(&self, odd: &Odd) {
        if odd.count > 0 {
            let more = if odd.count > 1 { format!(", and {} more", odd.count - 1) } else { String::new() };
            let e = FormatError::new(&self.path, odd.what).named(format!("{}[{}]{more}", odd.key, odd.first));
            self.note_line(e.to_string());
        }
    }

    /// Notes `line`.
    pub(super) fn note_line(&self, line: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if !notes.contains(&line) {
            notes.push(line);
        }
    }

    /// The notes since the last call.
    pub(super) fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The texts; the first call finds where they are.
    pub(super) fn texts(&self, pace: &mut Pace<'_>) -> Result<Texts<'_>> {
        let walked = get_or_try_init(&self.walked, || {
            let (mut offsets, mut named_ends) = (Vec::new(), ends::Found::default());
            reserve(&mut offsets, self.len() + 1)?; // the file has 8 bytes for each
            let mut at = 0;
            offsets.push(at);
            for (id, text) in self.ids().zip(self.tokens.iter()) {
                named_ends.look(id, text);
                at += 8 + text.len() as u32;
                offsets.push(at);
                pace.work(8)?;
            }
            if offsets.len() != self.len() + 1 {
                return Err(self.error("the file changed while it was in use").into());
            }
            let is_normal = |id| Kind::from_number(self.kind_number(id)) == Kind::Normal;
            Ok(Walked { offsets, named_ends: named_ends.ids(is_normal, |name| self.has_merge_into(name)) })
        })?;
        Ok(Texts { vocabulary: self, bytes: &self.tokens.bytes, walked })
    }
}

/// Something about a vocabulary that is odd, and harmless as long as no text comes to it.
pub(super) struct Odd {
    key: &'static str,
    what: &'static str,
    first: usize,
    count: usize,
}

impl Odd {
    /// What may be odd with tokens.
    pub(super) fn new(what: &'static str) -> Self {
        Self::of(TOKENS, what)
    }

    /// What may be odd with elements of the array `key`.
    pub(super) fn of(key: &'static str, what: &'static str) -> Self {
        Self { key, what, first: 0, count: 0 }
    }

    /// Counts the element `index`.
    pub(super) fn see(&mut self, index: usize) {
        if self.count == 0 {
            self.first = index;
        }
        self.count += 1;
    }
}

/// The texts of the tokens, by id.
#[derive(Clone, Copy)]
pub(super) struct Texts<'v> {
    pub(super) vocabulary: &'v Vocabulary,
    bytes: &'v [u8],
    walked: &'v Walked,
}

impl<'v> Texts<'v> {
    /// The text of the token `id`, if there is one, where it lies.
    pub(super) fn get(self, id: u32) -> Option<&'v [u8]> {
        let start = *self.walked.offsets.get(id as usize)? as usize + 8;
        let end = *self.walked.offsets.get(id as usize + 1)? as usize;
        self.bytes.get(start..end)
    }

    /// What the token `id` is. One that ends an answer by its name is a control token, whatever the file says.
    pub(super) fn kind(self, id: u32) -> Kind {
        if self.named_ends().binary_search(&id).is_ok() {
            return Kind::Control;
        }
        Kind::from_number(self.vocabulary.kind_number(id))
    }

    /// The unknown token, for `part` of a text; an error where there is none.
    pub(super) fn unknown(self, unknown: Option<u32>, part: &str) -> Result<u32> {
        Ok(unknown.ok_or_else(|| {
            let e = "a text has what is no token, and there are neither byte tokens for it nor an unknown token";
            self.vocabulary.error(e).got(shown(part.as_bytes()))
        })?)
    }

    /// The tokens that end an answer by their names.
    pub(super) fn named_ends(self) -> &'v [u32] {
        &self.walked.named_ends
    }
}

/// How a text of the file is shown in a message: quoted, escaped, and no more than its start.
pub(super) fn shown(text: &[u8]) -> String {
    // A copy first, of as much as 41 characters can take: it may lie in the file.
    let start = text[..text.len().min(4 * 41)].to_vec();
    let text = String::from_utf8_lossy(&start);
    let dots = if text.chars().nth(40).is_some() { "..." } else { "" };
    format!("{:?}{dots}", text.chars().take(40).collect::<String>())
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
