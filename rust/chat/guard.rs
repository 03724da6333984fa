//! What people write must not become control tokens.
//!
//! A prompt is text with control tokens spelt out (`<|im_end|>`), and a message may spell them out, too. So before a
//! template sees a message, each such name in it is broken: a character that no text has ([`MARK`]) is put into it. In what
//! the template makes of it whole names are those of the template. There the prompt is cut, and the mark is left out.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::error::{Error, Result};
use crate::threads::Interrupt;
use crate::tokenizer::Tokenizer;

/// A noncharacter: Unicode promises that no text has it.
pub const MARK: char = '\u{fdd0}';

/// Finds the control tokens of a vocabulary in what people write.
pub struct Guard(Option<AhoCorasick>);

impl Guard {
    /// The guard of a vocabulary.
    ///
    /// # Errors
    /// As [`Tokenizer::token_bytes`].
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let mut names = Vec::new();
        for id in (0..tokenizer.vocab_size() as u32).filter(|&id| tokenizer.is_special(id)) {
            // One of a single character cannot be broken.
            let name = String::from_utf8(tokenizer.token_bytes(id)?).ok();
            names.extend(name.filter(|name| name.chars().nth(1).is_some()));
        }
        if names.is_empty() {
            return Ok(Self(None));
        }
        // Overlapping ones too: of `<|a|>` in `<<|a|>` and the like each is to be found.
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(&names);
        automaton.map(|a| Self(Some(a))).map_err(|e| Error::Argument(format!("too many special tokens: {e}")))
    }

    /// The text with its names of control tokens broken.
    ///
    /// # Errors
    /// [`Error::Argument`] if it has the character that breaks them.
    pub fn broken(&self, text: &str) -> Result<String> {
        if text.contains(MARK) {
            return Err(Error::Argument("a message has the noncharacter U+FDD0, which is no text".into()));
        }
        let Some(automaton) = &self.0 else { return Ok(text.into()) };
        let after_first = |start: usize| start + text[start..].chars().next().map_or(0, char::len_utf8);
        let mut cuts: Vec<usize> = automaton.find_overlapping_iter(text).map(|m| after_first(m.start())).collect();
        if cuts.is_empty() {
            return Ok(text.into());
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut out = String::with_capacity(text.len() + 3 * cuts.len());
        let mut from = 0;
        for cut in cuts {
            out.push_str(&text[from..cut]);
            out.push(MARK);
            from = cut;
        }
        out.push_str(&text[from..]);
        Ok(out)
    }

    /// Where the last name of a control token ends that is not broken; 0 if there is none.
    pub fn last_end(&self, text: &str) -> usize {
        let found = self.0.as_ref().and_then(|automaton| automaton.find_overlapping_iter(text).map(|m| m.end()).max());
        found.unwrap_or(0)
    }
}

/// The tokens of a prompt out of a template: whole names are control tokens, broken ones are text. What a text begins with,
/// if the vocabulary wants that, is there once, whether the template writes it or not.
///
/// # Errors
/// As [`Tokenizer::encode_at_most`].
pub fn encode(tokenizer: &Tokenizer, prompt: &str, at_most: usize, interrupt: &Interrupt) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for part in prompt.split(MARK).filter(|part| !part.is_empty()) {
        let room = at_most.saturating_sub(ids.len());
        ids.extend(tokenizer.encode_at_most(room, part, false, true, interrupt)?);
    }
    let begin = tokenizer.encode("", true, false)?;
    if let Some(&bos) = begin.first()
        && tokenizer.bos() == Some(bos)
        && ids.first() != Some(&bos)
    {
        ids.insert(0, bos);
    }
    Ok(ids)
}
