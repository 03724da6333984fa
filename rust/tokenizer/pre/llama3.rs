//! `C|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+` with
//! `C` = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`, which is how GPT-4 cuts text.
//!
//! Qwen 2 has `\p{N}` for `\p{N}{1,3}`; Qwen 3.5 has `[\p{L}\p{M}]` for `\p{L}` as well, but for the optional character.
//! Seed-Coder is as Qwen 2, but newlines are never of the word before them. MiniCPM 5 first sets `\p{N}{1,3}` apart.

use super::class::{Class, after_space, contraction, first, is_mark, is_newline, is_number, lines, run};

/// Where the first word ends.
pub(super) fn word(text: &str) -> usize {
    pattern(text, 3, is_newline, |_| false, |_| false)
}

/// The same with numbers of one digit.
pub(super) fn qwen2(text: &str) -> usize {
    pattern(text, 1, is_newline, |_| false, |_| false)
}

/// The same with marks that are part of words.
pub(super) fn qwen35(text: &str) -> usize {
    pattern(text, 1, is_newline, is_mark, |_| false)
}

/// The same without newlines behind punctuation.
pub(super) fn seed_coder(text: &str) -> usize {
    pattern(text, 1, |_| false, |_| false, |_| false)
}

/// The same where numbers are set apart before.
pub(super) fn minicpm5(text: &str) -> usize {
    pattern(text, 3, is_newline, |_| false, is_number)
}

#[inline]
fn pattern(
    text: &str,
    max_numbers: usize,
    may_end_others: impl Fn(char) -> bool,
    is_letter_too: impl Fn(char) -> bool + Copy,
    ends: impl Fn(char) -> bool,
) -> usize {
    let c = first(text);
    if c == '\''
        && let Some(end) = contraction(text, true)
    {
        return end;
    }
    let is_letter = |c| Class::of(c) == Class::Letter || is_letter_too(c);
    let is_other = |c| Class::of(c) == Class::Other && !is_letter_too(c);
    if is_letter(c) {
        return run(text, is_letter);
    }
    if Class::of(c) == Class::Number {
        let numbers = text.chars().take(max_numbers).take_while(|&c| Class::of(c) == Class::Number);
        return numbers.map(char::len_utf8).sum();
    }
    if !is_newline(c) {
        let letters = run(&text[c.len_utf8()..], is_letter);
        if letters > 0 {
            return c.len_utf8() + letters;
        }
    }
    let (space, c) = after_space(text);
    if is_other(c) {
        let end = space + run(&text[space..], is_other);
        return end + run(&text[end..], may_end_others);
    }
    lines(text, ends)
}
