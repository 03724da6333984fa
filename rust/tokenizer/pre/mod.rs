//! Splits text into the words that byte-level BPE merges within: a file per family of patterns, and the table of names.
//!
//! Model authors state these rules as a regular expression, or as several that are applied in turn; here each is a
//! function that finds the end of the first word of a text, so there is no engine to build, no backtracking and no stack
//! to overflow. It looks at little more than that word: the pattern of a step that goes on where another cut the text must
//! be told where that is. Where steps have little to do with one another, each is a function of its own instead.

use std::ops::Range;

pub(super) mod class;
mod deepseek;
mod deepseek_coder;
mod default;
mod gpt2;
mod gpt4o;
mod llama3;
mod youtu;

use self::Split::{Steps, Word};

/// How a family of models splits text.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// What it is called in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    split: Split,
    /// Whether a word that is a token is that token, whether merges lead there or not.
    pub(super) takes_whole_words: bool,
    /// Whether a text begins with BOS where the file does not say.
    pub(super) adds_bos: bool,
    /// Whether text is brought into NFC first.
    pub(super) normalizes: bool,
}

/// How words are found.
#[derive(Debug, Clone, Copy)]
enum Split {
    /// Where the first word of a text ends, which is not empty.
    Word(fn(&str) -> usize),
    /// Steps that are applied in turn, at most [`MAX_STEPS`].
    Steps(&'static [Step]),
}

/// The first match in a text, which is not empty. It is a word, and so is what is before it.
type Step = fn(&str) -> Option<Range<usize>>;

const MAX_STEPS: usize = 6;

/// One without peculiarities.
const fn plain(names: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer {
        names,
        split: Split::Word(default::word),
        takes_whole_words: false,
        adds_bos: false,
        normalizes: false,
    }
}

/// Every pre-tokenizer. The first is the one of files that name none.
#[rustfmt::skip] // a row is a line, or two
static TABLE: &[PreTokenizer] = &[
    PreTokenizer { split: Word(default::word), ..plain(&["default"]) },
    PreTokenizer { split: Word(gpt2::word), ..plain(&["gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "mpt",
        "olmo", "modern-bert", "exaone4", "gigachat", "trillion", "mellum", "granite-docling", "a.x-4.0", "jais",
        "roberta-bpe", "jina-v1-en", "jina-v2-code"]) },
    PreTokenizer { split: Word(gpt2::numbers_apart), ..plain(&["smollm", "starcoder", "refact", "command-r", "codeshell",
        "exaone", "minerva-7b", "mellum2"]) },
    PreTokenizer { split: Word(llama3::word), takes_whole_words: true, adds_bos: true, ..plain(&["llama-bpe", "llama3",
        "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"]) },
    PreTokenizer { split: Word(llama3::word), ..plain(&["dbrx", "smaug-bpe", "chatglm-bpe"]) },
    PreTokenizer { split: Word(llama3::word), takes_whole_words: true, ..plain(&["glm4", "glm5"]) },
    PreTokenizer { split: Word(llama3::qwen2), normalizes: true, ..plain(&["qwen2"]) },
    PreTokenizer { split: Word(llama3::qwen2), ..plain(&["deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo",
        "f2llmv2", "solar-open", "grok-2", "bailingmoe", "bailingmoe2", "llada-moe"]) },
    PreTokenizer { split: Word(llama3::qwen35), normalizes: true, ..plain(&["qwen35"]) },
    PreTokenizer { split: Word(llama3::seed_coder), ..plain(&["seed-coder"]) },
    PreTokenizer { split: Word(llama3::minicpm5), takes_whole_words: true, ..plain(&["minicpm5"]) },
    PreTokenizer { split: Word(gpt4o::word), ..plain(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"]) },
    PreTokenizer { split: Word(gpt4o::word), takes_whole_words: true, ..plain(&["granite-embed-multi-97m"]) },
    PreTokenizer { split: Word(gpt4o::tekken), takes_whole_words: true, adds_bos: true, ..plain(&["tekken"]) },
    PreTokenizer { split: Steps(youtu::STEPS), takes_whole_words: true, ..plain(&["youtu"]) },
    PreTokenizer { split: Word(deepseek::v3), ..plain(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"]) },
    PreTokenizer { split: Steps(deepseek_coder::CODER), ..plain(&["deepseek-coder"]) },
    PreTokenizer { split: Steps(deepseek_coder::LLM), ..plain(&["deepseek-llm"]) },
    PreTokenizer { split: Word(default::falcon), ..plain(&["falcon"]) },
];

/// The pre-tokenizer that is called `name`.
pub(super) fn find(name: &[u8]) -> Option<&'static PreTokenizer> {
    TABLE.iter().find(|pre| pre.names.iter().any(|n| n.as_bytes() == name))
}

/// The pre-tokenizer of files that name none.
pub(super) fn default() -> &'static PreTokenizer {
    &TABLE[0]
}

/// A name of each, for messages.
pub(super) fn names() -> String {
    TABLE.iter().map(|pre| pre.names[0]).collect::<Vec<_>>().join(", ")
}

impl PreTokenizer {
    /// The words of `text`, in order and without gaps.
    pub(super) fn split<'t>(&self, text: &'t str) -> Pieces<'t> {
        match self.split {
            Split::Word(word) => Pieces::Words { word, text },
            Split::Steps(steps) => {
                let mut left = [Left::default(); MAX_STEPS + 1];
                left[0] = Left { text, found: None };
                Pieces::Steps { steps, left, depth: 0 }
            }
        }
    }
}

/// The words of a text.
#[allow(clippy::large_enum_variant)] // there is one at a time, on the stack
pub(super) enum Pieces<'t> {
    Words {
        word: fn(&str) -> usize,
        text: &'t str,
    },
    /// For each step what it has yet to cut; the innermost that has something is `depth`.
    Steps {
        steps: &'static [Step],
        left: [Left<'t>; MAX_STEPS + 1],
        depth: usize,
    },
}

/// What a step has yet to cut, and how long the match is that this begins with.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Left<'t> {
    text: &'t str,
    found: Option<usize>,
}

impl<'t> Iterator for Pieces<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        match self {
            Self::Words { text: "", .. } => None,
            Self::Words { word, text } => {
                let (word, rest) = text.split_at(word(text));
                *text = rest;
                Some(word)
            }
            Self::Steps { steps, left, depth } => loop {
                let Left { text, found } = &mut left[*depth];
                if text.is_empty() {
                    *depth = depth.checked_sub(1)?;
                    continue;
                }
                let Some(step) = steps.get(*depth) else { return Some(std::mem::take(text)) };
                let end = match found.take() {
                    Some(len) => len,
                    None => match step(text) {
                        Some(Range { start: 0, end }) => end,
                        Some(Range { start, end }) => {
                            *found = Some(end - start);
                            start
                        }
                        None => text.len(),
                    },
                };
                let (piece, rest) = text.split_at(end);
                *text = rest;
                *depth += 1;
                left[*depth] = Left { text: piece, found: None };
            },
        }
    }
}

/// The first character that is `like` this.
fn find_one(text: &str, like: impl Fn(char) -> bool) -> Option<Range<usize>> {
    text.char_indices().find(|&(_, c)| like(c)).map(|(at, c)| at..at + c.len_utf8())
}

/// The first run of characters that are `like` this.
fn find_run(text: &str, like: impl Fn(char) -> bool) -> Option<Range<usize>> {
    let start = text.find(&like)?;
    Some(start..start + class::run(&text[start..], like))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        find(name.as_bytes()).unwrap().split(text).collect()
    }

    #[test]
    fn every_name_is_there_once_and_every_family_has_a_row() {
        let mut names: Vec<&str> = TABLE.iter().flat_map(|pre| pre.names).copied().collect();
        let len = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), len);
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/rust/tokenizer/pre")).unwrap();
        let rows = include_str!("mod.rs");
        let families = files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
        for family in families.filter(|family| !["mod", "class"].contains(&family.as_str())) {
            assert!(rows.contains(&format!("({family}::")), "{family}");
        }
    }

    #[test]
    fn words_take_the_space_before_them() {
        let text = "It's  2024,\tok?\n\n  x";
        assert_eq!(words("gpt-2", text), ["It", "'s", " ", " 2024", ",", "\t", "ok", "?", "\n\n ", " x"]);
        assert_eq!(words("smollm", text), ["It", "'s", "  ", "2", "0", "2", "4", ",", "\t", "ok", "?", "\n\n ", " x"]);
        assert_eq!(words("llama-bpe", text), ["It", "'s", " ", " ", "202", "4", ",", "\tok", "?\n\n", " ", " x"]);
        assert_eq!(words("qwen2", text), ["It", "'s", " ", " ", "2", "0", "2", "4", ",", "\tok", "?\n\n", " ", " x"]);
    }

    #[test]
    fn contractions_have_any_case_where_the_pattern_says_so() {
        assert_eq!(words("gpt-2", "he'LL've"), ["he", "'", "LL", "'ve"]);
        assert_eq!(words("llama-bpe", "he'LL'vE"), ["he", "'LL", "'vE"]);
        assert_eq!(words("llama-bpe", "it'ſo"), ["it", "'ſ", "o"]);
        assert_eq!(words("llama-bpe", "'l'x'"), ["'l", "'x", "'"]);
    }

    #[test]
    fn white_space_ends_at_its_last_newline() {
        assert_eq!(words("llama-bpe", "a \r\n \n  b"), ["a", " \r\n \n", " ", " b"]);
        assert_eq!(words("llama-bpe", "a\u{a0}\u{3000}b  "), ["a", "\u{a0}", "\u{3000}b", "  "]);
    }
}
