//! What llama.cpp does where a file names no pre-tokenizer, in steps, each within what the one before left:
//! `[\p{P}\$\+<=>\^~\|]+`, then the pattern of [`gpt2`](super::gpt2), then `\p{N}+`, then `[0-9][0-9][0-9]`.
//!
//! Falcon counts the backtick as punctuation and leaves out the third step.
//!
//! All three steps after the first look no farther than to the next punctuation, and a contraction has an apostrophe, which
//! is one: so none is ever found.

use super::class::{Class, after_space, is_number, is_punctuation, run, white_space};

/// Where the first word ends.
pub(super) fn word(text: &str) -> usize {
    let is_set_apart = |c| is_punctuation(c) || matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|');
    pattern(text, is_set_apart, true)
}

/// The same for Falcon.
pub(super) fn falcon(text: &str) -> usize {
    let is_set_apart = |c| is_punctuation(c) || matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|' | '`');
    pattern(text, is_set_apart, false)
}

#[inline]
fn pattern(text: &str, is_set_apart: impl Fn(char) -> bool + Copy, numbers_apart: bool) -> usize {
    let punctuation = run(text, is_set_apart);
    if punctuation > 0 {
        return punctuation;
    }
    let (space, c) = after_space(text);
    let (space, c) = if is_set_apart(c) { (0, ' ') } else { (space, c) };
    match Class::of(c) {
        Class::Space => white_space(text, is_set_apart),
        Class::Number if numbers_apart && space > 0 => space,
        Class::Number => threes(text, space),
        class => space + run(&text[space..], |c| Class::of(c) == class && !is_set_apart(c)),
    }
}

/// `[0-9][0-9][0-9]` set apart in the numbers that begin at `start`: where the first part ends.
fn threes(text: &str, start: usize) -> usize {
    let mut digits = 0;
    for (at, c) in text[start..].char_indices() {
        if !is_number(c) {
            return start + at;
        }
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        if digits == 3 {
            let three = start + at - 2;
            return if three == 0 { 3 } else { three };
        }
    }
    text.len()
}
