//! Tokens that end an answer by what they are called, in whichever model and of whatever type they are.
//!
//! Converters have written such tokens as control tokens, as user-defined and as normal ones, and files name but one
//! or two of them by their ids. llama.cpp goes by the same names.
//!
//! The last of them end what was to be filled into code, or begin another file.

/// What the tokens are called.
const NAMES: [&str; 33] = [
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<|tool_response>",
    "<end_of_turn>",
    "<turn|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Names that end nothing where all of these others are: there the token ends a part of an answer. In gpt-oss
/// or Solar Open a message of several, in Gemma 4 nothing.
const EXCEPTIONS: [(&str, &[&str]); 5] = [
    ("<|end|>", &["<|return|>", "<|call|>"]),
    ("<|end|>", &["<|return|>", "<|calls|>"]),
    ("<|end|>", &["<|flush|>", "<|call|>"]),
    ("<|end|>", &["<|flush|>", "<|calls|>"]),
    ("</s>", &["<|tool_response>"]),
];

/// Collects the tokens of a vocabulary that are called so.
#[derive(Default)]
pub(super) struct Found(Vec<(u32, &'static str)>);

impl Found {
    /// Looks at the token `id`. Tokens come in the order of their ids.
    pub(super) fn look(&mut self, id: u32, text: &[u8]) {
        if matches!(text.first(), Some(b'<' | b'[' | b'_'))
            && let Some(name) = NAMES.into_iter().find(|name| name.as_bytes() == text)
        {
            self.0.push((id, name));
        }
    }

    /// The ids, in ascending order. A token that `is_normal` and has a name that `is_learnt` is text: Qwen 2 has learnt
    /// `</s>` from web pages.
    pub(super) fn ids(self, is_normal: impl Fn(u32) -> bool, is_learnt: impl Fn(&str) -> bool) -> Vec<u32> {
        let first_normal = |name| self.0.iter().find(|&&(id, n)| n == name && is_normal(id));
        let learnt = NAMES.map(|name| first_normal(name).is_some() && is_learnt(name));
        let is_text = |id, name| is_normal(id) && NAMES.into_iter().zip(learnt).any(|pair| pair == (name, true));
        let ends: Vec<_> = self.0.iter().filter(|&&(id, name)| !is_text(id, name)).collect();
        let is_there = |name: &&str| ends.iter().any(|(_, there)| there == name);
        let excepted = EXCEPTIONS.map(|(name, others)| (name, others.iter().all(is_there)));
        ends.iter().filter(|(_, name)| !excepted.contains(&(name, true))).map(|&&(id, _)| id).collect()
    }
}
