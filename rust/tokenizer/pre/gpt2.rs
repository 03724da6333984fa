//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
//!
//! StarCoder and those after it first set each number apart (`\p{N}`), and cut what is between them so.

use super::class::{Class, after_space, contraction, is_number, run, white_space};

/// Where the first word ends.
pub(super) fn word(text: &str) -> usize {
    let (space, c) = after_space(text);
    match Class::of(c) {
        Class::Space => white_space(text, |_| false),
        class => contraction(text, false).unwrap_or_else(|| space + run(&text[space..], |c| Class::of(c) == class)),
    }
}

/// The same where numbers are set apart.
pub(super) fn numbers_apart(text: &str) -> usize {
    let (space, c) = after_space(text);
    match Class::of(c) {
        Class::Number if space == 0 => c.len_utf8(),
        Class::Number => space, // which is the end of a text between numbers
        Class::Space => white_space(text, is_number),
        _ => word(text),
    }
}
