//! Spaces as SentencePiece has them: `▁` (U+2581) in the vocabulary, one put before a text, and texts cut before them.

use std::borrow::Cow;

use super::normalize::push_str;
use super::pace::Pace;
use super::vocabulary::{Kind, Texts, shown};
use crate::checkpoint::Metadata;
use crate::error::{Error, Result};

/// What stands for a space.
pub(super) const SPACE: &str = "\u{2581}";

const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const PREPEND_SCHEME: &str = "llama_rs.tokenizer.prepend_scheme";

/// Whether a text gets a space before it, so that its first word is like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    Never,
    /// Whatever it begins with.
    Dummy,
    /// Unless it begins with one.
    Always,
    /// The same, and only where it all begins: not behind a special token.
    First,
}

impl Prefix {
    /// What the file says, in our own words.
    pub(super) fn named(metadata: &Metadata) -> Result<Option<Self>> {
        let Some(name) = metadata.str(PREPEND_SCHEME)? else { return Ok(None) };
        Ok(Some(match name.as_str() {
            "never" => Self::Never,
            "dummy" => Self::Dummy,
            "always" => Self::Always,
            "first" => Self::First,
            other => {
                let what = format!("the prepend scheme {} ({PREPEND_SCHEME})", shown(other.as_bytes()));
                return Err(Error::Unsupported { path: metadata.path().to_path_buf(), what });
            }
        }))
    }

    /// What the file says.
    pub(super) fn from_metadata(metadata: &Metadata, default: bool) -> Result<Self> {
        let adds = metadata.bool(ADD_SPACE_PREFIX)?.unwrap_or(default);
        Ok(Self::named(metadata)?.unwrap_or(if adds { Self::Dummy } else { Self::Never }))
    }

    /// `text` as the vocabulary spells it. `is_start` says that it all begins here.
    pub(super) fn spell<'t>(self, text: &'t str, is_start: bool, pace: &mut Pace<'_>) -> Result<Cow<'t, str>> {
        let begins_with_one = text.starts_with([' ', '▁']);
        let adds = match self {
            Self::Never => false,
            Self::Dummy => true,
            Self::Always => !begins_with_one,
            Self::First => is_start && !begins_with_one,
        };
        let mut spelt = String::new();
        for (i, piece) in text.split(' ').enumerate() {
            pace.work(1 + piece.len())?;
            if i > 0 || adds {
                push_str(&mut spelt, SPACE)?;
            }
            push_str(&mut spelt, piece)?;
        }
        Ok(Cow::Owned(spelt))
    }
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
pub(super) fn byte_of(text: &[u8]) -> Option<u8> {
    let &[b'<', b'0', b'x', high, low, b'>'] = text else { return None };
    let digit = |c: u8| char::from(c).to_digit(16);
    Some((digit(high)? << 4 | digit(low)?) as u8)
}

/// No token.
pub(super) const NONE: u32 = u32::MAX;

/// The tokens that stand for bytes, by those.
pub(super) struct ByteTokens(Box<[u32; 256]>);

impl Default for ByteTokens {
    fn default() -> Self {
        Self(Box::new([NONE; 256]))
    }
}

impl ByteTokens {
    /// Adds the token `id` called `text`; false if that is no byte. The first of two is used.
    pub(super) fn add(&mut self, id: u32, text: &[u8]) -> bool {
        let Some(byte) = byte_of(text) else { return false };
        let token = &mut self.0[byte as usize];
        *token = if *token == NONE { id } else { *token };
        true
    }

    /// Whether there is one for every byte.
    pub(super) fn are_complete(&self) -> bool {
        !self.0.contains(&NONE)
    }

    /// Those of the bytes of `text`, if there is one for each.
    pub(super) fn of<'t>(&self, text: &'t str) -> Option<impl Iterator<Item = u32> + use<'t, '_>> {
        let ids = text.bytes().map(|byte| self.0[byte as usize]);
        ids.clone().all(|id| id != NONE).then_some(ids)
    }
}

/// Where a text can be cut: before a `▁`, if no token has one after the character that is before it.
pub(super) struct Cuts {
    before_space: Box<[bool; 256]>, // last bytes of characters that a token has before a `▁`
}

impl Default for Cuts {
    fn default() -> Self {
        Self { before_space: Box::new([false; 256]) }
    }
}

impl Cuts {
    /// Takes note of a token.
    pub(super) fn see(&mut self, text: &[u8]) {
        for at in text.windows(SPACE.len()).skip(1).zip(text).filter(|(w, _)| *w == SPACE.as_bytes()) {
            self.before_space[*at.1 as usize] = true;
        }
    }

    /// Cuts `text`.
    pub(super) fn words<'t>(&self, mut text: &'t str) -> impl Iterator<Item = &'t str> {
        std::iter::from_fn(move || {
            let is_cut = |&(at, _): &(usize, &str)| at > 0 && !self.before_space[text.as_bytes()[at - 1] as usize];
            let end = text.match_indices(SPACE).find(is_cut).map_or(text.len(), |(at, _)| at);
            let (word, rest) = text.split_at(end);
            text = rest;
            (!word.is_empty()).then_some(word)
        })
    }
}

/// The id of the first normal token: user-defined ones before it are of a SentencePiece model itself.
pub(super) fn first_normal(texts: Texts<'_>) -> u32 {
    texts.vocabulary.ids().find(|&id| texts.kind(id) == Kind::Normal).unwrap_or(NONE)
}
