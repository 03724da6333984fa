//! What the patterns are made of: classes of characters, and the few pieces that most families share.
//!
//! Letters, numbers, marks, punctuation, symbols and white space are Unicode's `\p{L}`, `\p{N}`, `\p{M}`, `\p{P}`, `\p{S}`
//! and `\s` (White_Space). The tables are of Unicode 16, as are those of HF's `tokenizers`; `tests/test_tokenizer.py`
//! compares the two on every character.

use unicode_general_category::{GeneralCategory, get_general_category};

/// What most patterns ask of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Letter,
    Number,
    Space,
    Other,
}

impl Class {
    pub(super) fn of(c: char) -> Self {
        use GeneralCategory::*;
        match c {
            'a'..='z' | 'A'..='Z' => Self::Letter,
            '0'..='9' => Self::Number,
            _ if c.is_whitespace() => Self::Space,
            '\0'..='\x7f' => Self::Other,
            _ => match get_general_category(c) {
                UppercaseLetter | LowercaseLetter | TitlecaseLetter | ModifierLetter | OtherLetter => Self::Letter,
                DecimalNumber | LetterNumber | OtherNumber => Self::Number,
                _ => Self::Other,
            },
        }
    }
}

pub(super) fn is_letter(c: char) -> bool {
    Class::of(c) == Class::Letter
}

pub(super) fn is_number(c: char) -> bool {
    Class::of(c) == Class::Number
}

/// Whether it is a capital or a small letter, or looks like both.
pub(super) fn is_cased(c: char) -> bool {
    use GeneralCategory::*;
    match c {
        '\0'..='\x7f' => c.is_ascii_alphabetic(),
        _ => matches!(get_general_category(c), UppercaseLetter | LowercaseLetter | TitlecaseLetter),
    }
}

pub(super) fn is_mark(c: char) -> bool {
    use GeneralCategory::*;
    !c.is_ascii() && matches!(get_general_category(c), NonspacingMark | SpacingMark | EnclosingMark)
}

pub(in crate::tokenizer) fn is_punctuation(c: char) -> bool {
    use GeneralCategory::*;
    match c {
        '$' | '+' | '<' | '=' | '>' | '^' | '`' | '|' | '~' => false,
        '\0'..='\x7f' => c.is_ascii_punctuation(),
        _ => matches!(
            get_general_category(c),
            ConnectorPunctuation
                | DashPunctuation
                | OpenPunctuation
                | ClosePunctuation
                | InitialPunctuation
                | FinalPunctuation
                | OtherPunctuation
        ),
    }
}

pub(super) fn is_symbol(c: char) -> bool {
    use GeneralCategory::*;
    match c {
        '\0'..='\x7f' => c.is_ascii_punctuation() && !is_punctuation(c),
        _ => matches!(get_general_category(c), MathSymbol | CurrencySymbol | ModifierSymbol | OtherSymbol),
    }
}

/// `\w`.
pub(in crate::tokenizer) fn is_of_word(c: char) -> bool {
    use GeneralCategory::*;
    c.is_alphabetic()
        || matches!(c, '\u{200c}' | '\u{200d}')
        || matches!(
            get_general_category(c),
            NonspacingMark | SpacingMark | EnclosingMark | DecimalNumber | ConnectorPunctuation
        )
}

pub(super) fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

/// Length of the characters at the start of `text` that are all `like` this.
pub(super) fn run(text: &str, like: impl Fn(char) -> bool) -> usize {
    text.find(|c| !like(c)).unwrap_or(text.len())
}

/// The first character of a text that is not empty.
pub(super) fn first(text: &str) -> char {
    text.chars().next().unwrap_or_default()
}

/// ` ?` in front of something: the length of the space, and the character after it.
pub(super) fn after_space(text: &str) -> (usize, char) {
    match text.strip_prefix(' ').and_then(|rest| rest.chars().next()) {
        Some(c) => (1, c),
        None => (0, first(text)),
    }
}

/// `\s+(?!\S)|\s+` where white space begins: a run of it, but for its last character if something comes that may take it.
/// What `ends` the text, as far as the pattern sees, does not.
pub(super) fn white_space(text: &str, ends: impl Fn(char) -> bool) -> usize {
    let end = run(text, char::is_whitespace);
    match text[end..].chars().next() {
        None => end,
        Some(c) if ends(c) => end,
        Some(_) => match text[..end].char_indices().next_back() {
            Some((last, _)) if last > 0 => last,
            _ => end,
        },
    }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+` where white space begins.
pub(super) fn lines(text: &str, ends: impl Fn(char) -> bool) -> usize {
    let spaces = &text[..run(text, char::is_whitespace)];
    match spaces.rfind(is_newline) {
        Some(last) => last + 1,
        None => white_space(text, ends),
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d` at the start of `text`.
pub(super) fn contraction(text: &str, any_case: bool) -> Option<usize> {
    let mut chars = text.strip_prefix('\'')?.chars().map(|c| match c {
        'ſ' if any_case => 's', // the long s, which Unicode folds to s
        c if any_case => c.to_ascii_lowercase(),
        c => c,
    });
    let letters = match (chars.next()?, chars.next()) {
        ('r', Some('e')) | ('v', Some('e')) | ('l', Some('l')) => 2,
        ('s' | 't' | 'm' | 'd', _) => 1,
        _ => return None,
    };
    Some(text.chars().take(1 + letters).map(char::len_utf8).sum())
}
