//! Splits text into the words that byte-level BPE merges within.
//!
//! Model authors state these rules as a regular expression; here each is a function that finds the end
//! of the first word of a text, so there is no engine to build, no backtracking and no stack to overflow.
//! The only look-ahead is one character: a run of white space leaves its last character to the next word.
//!
//! Letters, numbers and white space are Unicode's `\p{L}`, `\p{N}` and `\s` (White_Space). The tables are of
//! Unicode 16, as are those of HF's `tokenizers`; `tests/test_tokenizer.py` compares the two on every character.

use unicode_general_category::{GeneralCategory, get_general_category};

/// How a family of models splits text, named as in `tokenizer.ggml.pre`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Splitter {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Every `\p{N}` apart, and what is between them as [`Splitter::Gpt2`] does it.
    Smollm,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3,
    /// The same with `\p{N}` instead of `\p{N}{1,3}`.
    Qwen2,
}

impl Splitter {
    /// The names that [`Self::from_name`] knows, for messages.
    pub(super) const NAMES: &str = "gpt-2, smollm, llama-bpe, qwen2";

    /// The splitter of `tokenizer.ggml.pre`. `default` is the plain one, as is none at all.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" | "default" => Self::Gpt2,
            "smollm" => Self::Smollm,
            "llama-bpe" | "llama3" | "llama-v3" => Self::Llama3,
            "qwen2" => Self::Qwen2,
            _ => return None,
        })
    }

    /// The words of `text`, in order and without gaps.
    pub(super) fn split(self, mut text: &str) -> impl Iterator<Item = &str> {
        std::iter::from_fn(move || {
            let first = text.chars().next()?;
            let end = match self {
                Self::Gpt2 => gpt2(text, first, false),
                Self::Smollm => gpt2(text, first, true),
                Self::Llama3 => llama3(text, first, 3),
                Self::Qwen2 => llama3(text, first, 1),
            };
            let (word, rest) = text.split_at(end);
            text = rest;
            Some(word)
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

impl Class {
    fn of(c: char) -> Self {
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

/// Where the first word of `text` ends; `first` is its first character.
fn gpt2(text: &str, first: char, numbers_apart: bool) -> usize {
    if first == '\''
        && let Some(end) = contraction(text, false)
    {
        return end;
    }
    let (space, c) = after_space(text, first);
    match Class::of(c) {
        Class::Number if numbers_apart && space == 0 => c.len_utf8(),
        Class::Number if numbers_apart => space, // which is the end of a text between numbers
        Class::Space => white_space(text, numbers_apart),
        class => space + run(&text[space..], |c| Class::of(c) == class),
    }
}

/// As [`gpt2`]; a word has at most `max_numbers` numbers.
fn llama3(text: &str, first: char, max_numbers: usize) -> usize {
    if first == '\''
        && let Some(end) = contraction(text, true)
    {
        return end;
    }
    let is_letter = |c| Class::of(c) == Class::Letter;
    let is_newline = |c| matches!(c, '\r' | '\n');
    match Class::of(first) {
        Class::Letter => return run(text, is_letter),
        Class::Number => {
            let numbers = text.chars().take(max_numbers).take_while(|&c| Class::of(c) == Class::Number);
            return numbers.map(char::len_utf8).sum();
        }
        Class::Space | Class::Other => {}
    }
    if !is_newline(first) {
        let rest = &text[first.len_utf8()..];
        let letters = run(rest, is_letter);
        if letters > 0 {
            return first.len_utf8() + letters;
        }
    }
    let (space, c) = after_space(text, first);
    if Class::of(c) == Class::Other {
        let end = space + run(&text[space..], |c| Class::of(c) == Class::Other);
        return end + run(&text[end..], is_newline);
    }
    let spaces = &text[..run(text, char::is_whitespace)];
    match spaces.rfind(is_newline) {
        Some(last) => last + 1,
        None => white_space(text, false),
    }
}

/// `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll`, `'d` at the start of `text`.
fn contraction(text: &str, any_case: bool) -> Option<usize> {
    let mut chars = text.chars().skip(1).map(|c| match c {
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

/// ` ?` in front of something: the length of the space, and the character after it.
fn after_space(text: &str, first: char) -> (usize, char) {
    match text.strip_prefix(' ').and_then(|rest| rest.chars().next()) {
        Some(c) => (1, c),
        None => (0, first),
    }
}

/// `\s+(?!\S)|\s+`: a run of white space, but for its last character if a word comes that may take it.
fn white_space(text: &str, numbers_apart: bool) -> usize {
    let end = run(text, char::is_whitespace);
    match text[end..].chars().next() {
        None => end,
        Some(c) if numbers_apart && Class::of(c) == Class::Number => end,
        Some(_) => match text[..end].char_indices().next_back() {
            Some((last, _)) if last > 0 => last,
            _ => end,
        },
    }
}

/// Length of the characters at the start of `text` that are all `like` this.
fn run(text: &str, like: impl Fn(char) -> bool) -> usize {
    text.find(|c| !like(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(splitter: Splitter, text: &str) -> Vec<&str> {
        splitter.split(text).collect()
    }

    #[test]
    fn words_take_the_space_before_them() {
        let text = "It's  2024,\tok?\n\n  x";
        assert_eq!(words(Splitter::Gpt2, text), ["It", "'s", " ", " 2024", ",", "\t", "ok", "?", "\n\n ", " x"]);
        assert_eq!(
            words(Splitter::Smollm, text),
            ["It", "'s", "  ", "2", "0", "2", "4", ",", "\t", "ok", "?", "\n\n ", " x"]
        );
        assert_eq!(words(Splitter::Llama3, text), ["It", "'s", " ", " ", "202", "4", ",", "\tok", "?\n\n", " ", " x"]);
        assert_eq!(
            words(Splitter::Qwen2, text),
            ["It", "'s", " ", " ", "2", "0", "2", "4", ",", "\tok", "?\n\n", " ", " x"]
        );
    }

    #[test]
    fn contractions_have_any_case_where_the_pattern_says_so() {
        assert_eq!(words(Splitter::Gpt2, "he'LL've"), ["he", "'", "LL", "'ve"]);
        assert_eq!(words(Splitter::Llama3, "he'LL'vE"), ["he", "'LL", "'vE"]);
        assert_eq!(words(Splitter::Llama3, "it'ſo"), ["it", "'ſ", "o"]);
        assert_eq!(words(Splitter::Llama3, "'l'x'"), ["'l", "'x", "'"]);
    }

    #[test]
    fn white_space_ends_at_its_last_newline() {
        assert_eq!(words(Splitter::Llama3, "a \r\n \n  b"), ["a", " \r\n \n", " ", " b"]);
        assert_eq!(words(Splitter::Llama3, "a\u{a0}\u{3000}b  "), ["a", "\u{a0}", "\u{3000}b", "  "]);
    }
}
