//! Tokens around what is to be filled into a text, for models that have learnt to: where it says what comes before, where it
//! says what comes after, and where the answer begins. Files name them by their ids, or not; then they are known by what they
//! are called, as llama.cpp knows them.

/// Keys of metadata, the older spelling second: before, after, between.
pub(super) const KEYS: [[&str; 2]; 3] = [["fim_pre", "prefix"], ["fim_suf", "suffix"], ["fim_mid", "middle"]];

/// What they are called, in the same order.
pub(super) const NAMES: [[&str; 3]; 7] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], // Qwen 2.5 Coder, CodeGemma
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],       // StarCoder
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],       // Granite
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"], // DeepSeek
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],                         // Code Llama
    ["<PRE>", "<SUF>", "<MID>"],
    ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"], // GLM
];
