//! Tokens that text comes to by their names: which they are, and where in a text they are looked for.
//!
//! Some are looked for in the text as it came, before anything else is done to it, and some in the text that was
//! normalised, spelt as normalising makes them. `tokenizer.json` says which, and what else of the text belongs to them; of a
//! GGUF each kind of vocabulary knows it by the types of the tokens.

use std::borrow::Cow;
use std::sync::OnceLock;

use super::matcher::{Matcher, Part};
use super::pace::{Output, Pace};
use super::vocabulary::{Kind, Texts, get_or_try_init};
use crate::error::Result;

/// What a token is, in bits of the byte that `llama_rs.tokenizer.token_flags` has for it.
pub(super) mod flag {
    /// It was added to the vocabulary: text comes to it by its name.
    pub(in crate::tokenizer) const ADDED: u8 = 1;
    /// It is looked for in normalised text.
    pub(in crate::tokenizer) const NORMALIZED: u8 = 2;
    /// It is not found within a word.
    pub(in crate::tokenizer) const SINGLE_WORD: u8 = 4;
    /// White space to its left belongs to it.
    pub(in crate::tokenizer) const LSTRIP: u8 = 8;
    /// White space to its right belongs to it.
    pub(in crate::tokenizer) const RSTRIP: u8 = 16;
    /// The vocabulary had it before it was added.
    pub(in crate::tokenizer) const OF_THE_MODEL: u8 = 32;
}

/// Where tokens are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The text as it came.
    Raw,
    /// Normalised text.
    Normalized,
}

/// The tokens of a file that text comes to by their names.
#[derive(Default)]
pub(super) struct Added {
    matchers: [OnceLock<Matcher>; 4], // for each place, without special tokens and with them
}

/// How the tokens of a text are found that come of their names, and what is between them.
pub(super) struct Walk<'a> {
    pub(super) added: &'a Added,
    pub(super) texts: Texts<'a>,
    pub(super) parse_special: bool,
    /// Of a file that says no more than types: the first user-defined token that is not looked for in normalised text.
    pub(super) first_raw: u32,
    /// Whether those before it are looked for in that.
    pub(super) finds_own: bool,
    /// What is done to a text.
    pub(super) normalize: &'a Normalize<'a>,
    /// What is done to a token that is looked for in normalised text.
    pub(super) spell: &'a dyn Fn(String, &mut Pace<'_>) -> Result<String>,
    /// Ends it all if a text, before it is normalised, is sure to have too many tokens.
    pub(super) expect: &'a dyn Fn(&str, &mut Output<'_>) -> Result<()>,
}

pub(super) type Normalize<'a> = dyn for<'t> Fn(&'t str, &mut Pace<'_>) -> Result<Cow<'t, str>> + 'a;

impl Walk<'_> {
    /// Appends to `out` the tokens that come of their names; `encode` those of normalised text between them, and is told
    /// whether that is where it all begins.
    pub(super) fn walk(
        &self,
        text: &str,
        out: &mut Output<'_>,
        mut encode: impl FnMut(&str, bool, &mut Output<'_>) -> Result<()>,
    ) -> Result<()> {
        let Self { normalize, expect, .. } = self;
        let raw = self.matcher(Place::Raw, &mut out.pace)?;
        let normalized = self.matcher(Place::Normalized, &mut out.pace)?;
        let mut is_start = true;
        let mut parts = raw.split(text);
        while let Some(part) = parts.next(&mut out.pace)? {
            match part {
                Part::Token(id) => out.push(id)?,
                Part::Text(text) => {
                    // A token in between may be of any length, with the white space that it takes.
                    if normalized.is_empty() || !self.texts.vocabulary.has_flags() {
                        expect(text, out)?;
                    }
                    let text = normalize(text, &mut out.pace)?;
                    let mut parts = normalized.split(&text);
                    while let Some(part) = parts.next(&mut out.pace)? {
                        match part {
                            Part::Token(id) => out.push(id)?,
                            Part::Text(text) => encode(text, is_start, out)?,
                        }
                        is_start = false;
                    }
                }
            }
            is_start = false;
        }
        Ok(())
    }

    /// What finds the tokens of `place`; special ones only where they are asked for. A file that says no more than the types
    /// of its tokens has user-defined ones from `first_raw` on in the raw text, and those before it, if `finds_own`, in the
    /// normalised one.
    fn matcher(&self, place: Place, pace: &mut Pace<'_>) -> Result<&Matcher> {
        let Self { texts, parse_special: with_special, first_raw, finds_own, .. } = *self;
        let cell = &self.added.matchers[2 * usize::from(place == Place::Normalized) + usize::from(with_special)];
        let vocabulary = texts.vocabulary;
        let wanted = |id, kind: Kind| {
            let flags = vocabulary.flags(id);
            let place_of_it = match (vocabulary.has_flags(), kind) {
                (true, _) if flags & flag::ADDED == 0 && !kind.is_special() => return false,
                (true, _) if flags & flag::NORMALIZED != 0 => Place::Normalized,
                (false, Kind::UserDefined) if id < first_raw => Place::Normalized,
                (false, Kind::UserDefined) => Place::Raw,
                (false, _) if !kind.is_special() => return false,
                _ => Place::Raw,
            };
            place_of_it == place && (with_special || !kind.is_special())
        };
        // Most files have none there: that is known without a walk.
        let end = match (place, vocabulary.has_flags()) {
            (Place::Normalized, false) if !finds_own => 0,
            (Place::Normalized, false) => first_raw.min(vocabulary.len() as u32),
            _ => vocabulary.len() as u32,
        };
        get_or_try_init(cell, || {
            let spell = |text, pace: &mut Pace<'_>| match place {
                Place::Raw => Ok(text),
                Place::Normalized => (self.spell)(text, pace),
            };
            Matcher::new(texts, pace, 0..end, wanted, spell)
        })
    }
}
