//! The first DeepSeek models, in steps. Coder: `[\r\n]`, `\s?\p{L}+`, `\s?\p{P}+`, `[一-龥ࠀ-一가-퟿]+`, `\p{N}`. Its
//! sister for prose: `[\r\n]`, `\s?` and cased letters of old, `\s?[!-/:-~！-／：-～‘-‟　-。]+`, `\s+$`, the same fourth,
//! `\p{N}+`.

use super::class::{is_cased, is_letter, is_newline, is_number, is_punctuation};
use super::{Step, find_one, find_run};

/// The steps of DeepSeek Coder.
pub(super) const CODER: &[Step] = &[
    |text| find_one(text, is_newline),
    |text| after_any_space(text, is_letter),
    |text| after_any_space(text, is_punctuation),
    |text| find_run(text, is_eastern),
    |text| find_one(text, is_number),
];

/// The steps of DeepSeek LLM.
pub(super) const LLM: &[Step] = &[
    |text| find_one(text, is_newline),
    |text| after_any_space(text, is_old_cased),
    |text| after_any_space(text, is_sign),
    |text| Some(text.trim_end().len()..text.len()).filter(|spaces| !spaces.is_empty()),
    |text| find_run(text, is_eastern),
    |text| find_run(text, is_number),
];

/// `\s?` and a run of what is `like` this.
fn after_any_space(text: &str, like: impl Fn(char) -> bool) -> Option<std::ops::Range<usize>> {
    let mut space = None; // where the character before begins, if it is white space
    for (at, c) in text.char_indices() {
        if like(c) {
            let start = space.unwrap_or(at);
            let len = text[at..].find(|c| !like(c)).unwrap_or(text.len() - at);
            return Some(start..at + len);
        }
        space = Some(at).filter(|_| c.is_whitespace());
    }
    None
}

fn is_eastern(c: char) -> bool {
    matches!(c, '\u{800}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7ff}')
}

fn is_sign(c: char) -> bool {
    matches!(c, '!'..='/' | ':'..='~' | '！'..='／' | '：'..='～' | '‘'..='‟' | '\u{3000}'..='。')
}

/// Cased letters, as far as they were thought of.
fn is_old_cased(c: char) -> bool {
    is_cased(c)
        && !matches!(c, '\u{560}'..='\u{588}' | '\u{10c7}'..='\u{10ff}' | '\u{1c80}'..='\u{1c8a}'
            | '\u{2d00}'..='\u{2d2d}' | '\u{a790}'..='\u{a7fa}' | '\u{ab30}'..='\u{ab68}' | '\u{10570}'..='\u{105bc}'
            | '\u{10d50}'..='\u{10d85}' | '\u{16e40}'..='\u{16e7f}' | '\u{1d400}'..='\u{1d7cb}' | '\u{1df00}'..)
        && !matches!(c, '\u{2c7c}' | '\u{2c7d}')
}
