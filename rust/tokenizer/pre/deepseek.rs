//! DeepSeek V3, in steps: `\p{N}{1,3}`, then `[一-龥぀-ゟ゠-ヿ]+`, then in what is left
//! ``[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+``.
//!
//! The last matches not everything: what it leaves, control characters for instance, is a word up to the next match.

use super::class::{
    after_space, first, is_letter, is_mark, is_newline, is_number, is_punctuation, is_symbol, lines, run,
};

/// Where the first word ends.
pub(super) fn v3(text: &str) -> usize {
    let c = first(text);
    if is_number(c) {
        return text.chars().take(3).take_while(|&c| is_number(c)).map(char::len_utf8).sum();
    }
    if is_east_asian(c) {
        return run(text, is_east_asian);
    }
    let is_gap = |&(at, c): &(usize, char)| at == 0 || !is_set_apart(c) && matched(&text[at..]).is_none();
    matched(text).unwrap_or_else(|| text.char_indices().find(|at| !is_gap(at)).map_or(text.len(), |(at, _)| at))
}

fn is_east_asian(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}')
}

/// What the first two steps take.
fn is_set_apart(c: char) -> bool {
    is_number(c) || is_east_asian(c)
}

/// What the last step matches at the start of `text`.
fn matched(text: &str) -> Option<usize> {
    let c = first(text);
    let is_word = |c| (is_letter(c) || is_mark(c)) && !is_set_apart(c);
    let is_sign = |c| is_punctuation(c) || is_symbol(c);
    if c.is_ascii_punctuation() {
        let letters = run(&text[1..], |c| c.is_ascii_alphabetic());
        if letters > 0 {
            return Some(1 + letters);
        }
    }
    if is_word(c) {
        return Some(run(text, is_word));
    }
    if !is_newline(c) && !is_sign(c) {
        let letters = run(&text[c.len_utf8()..], is_word);
        if letters > 0 {
            return Some(c.len_utf8() + letters);
        }
    }
    let (space, c) = after_space(text);
    if is_sign(c) {
        let end = space + run(&text[space..], is_sign);
        return Some(end + run(&text[end..], is_newline));
    }
    first(text).is_whitespace().then(|| lines(text, is_set_apart))
}
