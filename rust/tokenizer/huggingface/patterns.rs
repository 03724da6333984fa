//! The patterns that cut text in `tokenizer.json`, by the names that GGUF has for them.

use std::borrow::Cow;

/// The pattern that is built into ByteLevel.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const NUMBER: &str = r"\p{N}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU: &str = r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+";
const YOUTU2: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KANA_HAN: &str = r"[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const EASTERN: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";

/// Patterns that are applied in turn, and what GGUF calls them where words may be taken whole, and where not.
const TABLE: &[(&[&str], Option<&str>, Option<&str>)] = &[
    (&[GPT2], None, Some("gpt-2")),
    (&[NUMBER, GPT2], None, Some("smollm")),
    (&[LLAMA3], Some("llama-bpe"), Some("dbrx")),
    (&[QWEN2], None, Some("qwen2")),
    (&[QWEN35], None, Some("qwen35")),
    (&[SEED], None, Some("seed-coder")),
    (&[r"\p{N}{1,3}", MINICPM5], Some("minicpm5"), None),
    (&[GPT4O], Some("granite-embed-multi-97m"), Some("gpt-4o")),
    (&[TEKKEN], Some("tekken"), None),
    (&[YOUTU, YOUTU2], Some("youtu"), None),
    (&[r"\p{N}{1,3}", KANA_HAN, DEEPSEEK3], None, Some("deepseek-v3")),
    (&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EASTERN, NUMBER], None, Some("deepseek-coder")),
];

/// The name of patterns that are [canonical]. Both names say the same of words: whether they may be taken whole,
/// our own key says.
pub(super) fn find(patterns: &[Cow<'_, str>], takes_whole_words: bool) -> Option<&'static str> {
    let row = TABLE.iter().find(|(row, ..)| row.iter().eq(patterns.iter()))?;
    if takes_whole_words { row.1.or(row.2) } else { row.2.or(row.1) }
}

/// All names, for messages.
pub(super) fn names() -> String {
    TABLE.iter().flat_map(|row| [row.1, row.2]).flatten().collect::<Vec<_>>().join(", ")
}

/// One of the ways in which the same pattern is written.
pub(super) fn canonical(regex: &str) -> String {
    let contractions = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    let mut regex = regex.replace('\r', r"\r").replace('\n', r"\n");
    for (from, to) in [
        (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", contractions),
        (r"'(?i:[sdmt]|ll|ve|re)", contractions),
        (r"(?i:[sdmt]|ll|ve|re)", contractions),
        ("]++", "]+"), // nothing that comes after could take what it gives back
        ("]?+", "]?"),
        ("}++", "}+"),
        (r"\p{N}{1}", r"\p{N}"),
        (r"|\s*[\r\n]|", r"|\s*[\r\n]+|"), // the last newline either way
        ("\\\"", "\""),
        (r"\u3040", "\u{3040}"),
        (r"\u309f", "\u{309f}"),
        (r"\u30a0", "\u{30a0}"),
        (r"\u30ff", "\u{30ff}"),
    ] {
        regex = regex.replace(from, to);
    }
    // A whole pattern in brackets is the same without them.
    match regex.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) if TABLE.iter().any(|row| row.0.contains(&inner)) => inner.to_owned(),
        _ => regex,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::pre;

    #[test]
    fn every_name_is_one_that_there_is() {
        for (patterns, whole, merged) in TABLE {
            for name in [whole, merged].into_iter().flatten() {
                assert!(pre::find(name.as_bytes()).is_some(), "{name}");
            }
            assert!(patterns.iter().all(|&pattern| canonical(pattern) == pattern), "{patterns:?}");
        }
    }

    #[test]
    fn spellings_of_one_pattern_are_one() {
        let cl100k = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
        assert_ne!(canonical(cl100k), LLAMA3, "tiktoken's newest is not ours to guess");
        let older = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
        assert_eq!(canonical(older), LLAMA3);
        assert_eq!(canonical(&LLAMA3.replace(r"\r\n", "\r\n")), LLAMA3);
    }
}
