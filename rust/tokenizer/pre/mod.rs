//! Splits text into the words that byte-level BPE merges within: a file per family of patterns, and the table of names.
//!
//! Model authors state these rules as a regular expression, or as several that are applied in turn; here each is a
//! function that finds the end of the first word of a text, so there is no engine to build, no backtracking and no stack
//! to overflow. It looks at little more than that word: the pattern of a step that goes on where another cut the text must
//! be told where that is.

mod class;
mod deepseek;
mod default;
mod gpt2;
mod gpt4o;
mod llama3;

/// How a family of models splits text.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// What it is called in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Where the first word of a text ends, which is not empty.
    word: fn(&str) -> usize,
    /// Whether a word that is a token is that token, whether merges lead there or not.
    pub(super) takes_whole_words: bool,
    /// Whether a text begins with BOS where the file does not say.
    pub(super) adds_bos: bool,
    /// Whether text is brought into NFC first.
    pub(super) normalizes: bool,
}

/// One without peculiarities.
const fn plain(names: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { names, word: default::word, takes_whole_words: false, adds_bos: false, normalizes: false }
}

/// Every pre-tokenizer. The first is the one of files that name none.
#[rustfmt::skip] // a row is a line, or two
static TABLE: [PreTokenizer; 14] = [
    PreTokenizer { word: default::word, ..plain(&["default"]) },
    PreTokenizer { word: gpt2::word, ..plain(&["gpt-2", "phi-2", "mpt", "olmo", "exaone4", "gigachat", "trillion", "mellum",
        "granite-docling", "a.x-4.0"]) },
    PreTokenizer { word: gpt2::numbers_apart, ..plain(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone",
        "minerva-7b", "mellum2"]) },
    PreTokenizer { word: llama3::word, takes_whole_words: true, adds_bos: true, ..plain(&["llama-bpe", "llama3", "llama-v3",
        "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"]) },
    PreTokenizer { word: llama3::word, ..plain(&["dbrx", "smaug-bpe", "chatglm-bpe"]) },
    PreTokenizer { word: llama3::word, takes_whole_words: true, ..plain(&["glm4", "glm5"]) },
    PreTokenizer { word: llama3::qwen2, normalizes: true, ..plain(&["qwen2"]) },
    PreTokenizer { word: llama3::qwen2, ..plain(&["deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo", "f2llmv2",
        "solar-open", "grok-2", "bailingmoe", "bailingmoe2", "llada-moe"]) },
    PreTokenizer { word: llama3::qwen35, normalizes: true, ..plain(&["qwen35"]) },
    PreTokenizer { word: llama3::seed_coder, ..plain(&["seed-coder"]) },
    PreTokenizer { word: gpt4o::word, ..plain(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"]) },
    PreTokenizer { word: gpt4o::tekken, takes_whole_words: true, adds_bos: true, ..plain(&["tekken"]) },
    PreTokenizer { word: deepseek::v3, ..plain(&["deepseek-v3", "hunyuan-dense", "joyai-llm"]) },
    PreTokenizer { word: default::falcon, ..plain(&["falcon"]) },
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
    pub(super) fn split<'t>(&self, mut text: &'t str) -> impl Iterator<Item = &'t str> + use<'t> {
        let word = self.word;
        std::iter::from_fn(move || {
            if text.is_empty() {
                return None;
            }
            let (word, rest) = text.split_at(word(text));
            text = rest;
            Some(word)
        })
    }
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
            assert!(rows.contains(&format!("word: {family}::")), "{family}");
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
