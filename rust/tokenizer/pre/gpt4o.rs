//! `[^\r\n\p{L}\p{N}]?U*W+C?|[^\r\n\p{L}\p{N}]?U+W*C?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+` with
//! `U` = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, `W` = `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`, `C` = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`: a word
//! ends where small letters do.
//!
//! Mistral's Tekken has no `C`, and `\p{N}` for `\p{N}{1,3}`.

use unicode_general_category::{GeneralCategory, get_general_category};

use super::class::{Class, after_space, contraction, first, is_letter, is_newline, is_number, lines, run};

/// Where the first word ends.
pub(super) fn word(text: &str) -> usize {
    pattern(text, 3, true)
}

/// The same with numbers of one digit.
pub(super) fn one_digit(text: &str) -> usize {
    pattern(text, 1, true)
}

/// The same for Tekken.
pub(super) fn tekken(text: &str) -> usize {
    pattern(text, 1, false)
}

#[inline]
fn pattern(text: &str, max_numbers: usize, contractions: bool) -> usize {
    let c = first(text);
    // The optional character, and what comes if it is taken. It may be a mark, which could also begin a word.
    let prefix = if is_newline(c) || is_letter(c) || is_number(c) { 0 } else { c.len_utf8() };
    let behind = &text[prefix..];
    let after_prefix = |end: usize| prefix + end;
    let letters = (ends_small(behind).map(after_prefix))
        .or_else(|| ends_small(text))
        .or_else(|| ends_large(behind).map(after_prefix))
        .or_else(|| ends_large(text));
    if let Some(end) = letters {
        let more = if contractions { contraction(&text[end..], true) } else { None };
        return end + more.unwrap_or(0);
    }
    if is_number(c) {
        return text.chars().take(max_numbers).take_while(|&c| is_number(c)).map(char::len_utf8).sum();
    }
    let (space, c) = after_space(text);
    if Class::of(c) == Class::Other {
        let end = space + run(&text[space..], |c| Class::of(c) == Class::Other);
        return end + run(&text[end..], |c| is_newline(c) || c == '/');
    }
    lines(text, |_| false)
}

/// `U*W+` at the start of `text`: where it ends.
fn ends_small(text: &str) -> Option<usize> {
    let large = run(text, is_large);
    let small = run(&text[large..], is_small);
    if small > 0 {
        return Some(large + small);
    }
    // What is neither large nor small is both: the last of that is as small as it gets.
    text[..large].char_indices().rev().find(|&(_, c)| is_small(c)).map(|(at, c)| at + c.len_utf8())
}

/// `U+W*` at the start of `text`, where there is no `U*W+`: where it ends.
fn ends_large(text: &str) -> Option<usize> {
    Some(run(text, is_large)).filter(|&end| end > 0)
}

fn is_large(c: char) -> bool {
    use GeneralCategory::*;
    match c {
        '\0'..='\x7f' => c.is_ascii_uppercase(),
        _ => matches!(get_general_category(c), UppercaseLetter | TitlecaseLetter) || has_no_case(c),
    }
}

fn is_small(c: char) -> bool {
    match c {
        '\0'..='\x7f' => c.is_ascii_lowercase(),
        _ => get_general_category(c) == GeneralCategory::LowercaseLetter || has_no_case(c),
    }
}

fn has_no_case(c: char) -> bool {
    use GeneralCategory::*;
    matches!(get_general_category(c), ModifierLetter | OtherLetter | NonspacingMark | SpacingMark | EnclosingMark)
}
