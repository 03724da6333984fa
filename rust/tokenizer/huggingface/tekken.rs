//! `tekken.json`, as Mistral writes it: byte strings by rank behind a thousand special tokens.

use std::path::Path;

use super::{Entries, Entry, MAX_TOKENS, one_line, parse, patterns, read_file, tokenizer_json};
use crate::error::{Error, FormatError, Result};
use crate::tokenizer::bpe;

const MAX_LEN: usize = 128 << 20;

/// Special tokens of files that do not list them.
const SPECIAL: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// Reads the file at `path`.
pub(super) fn read(path: &Path, out: &mut Entries) -> Result<()> {
    let bytes = read_file(path, MAX_LEN)?;
    let json = parse(path, &bytes)?;
    let error = |what: &str, name: &str| FormatError::new(path, what).named(name);
    let config = json.get("config");
    let regex =
        patterns::canonical(config.get("pattern").str().ok_or_else(|| error("missing name", "config.pattern"))?);
    let Some(pre) = patterns::find(&[regex.as_str().into()], true) else {
        let what =
            format!("text that is cut by {}; supported are the patterns of {}", one_line(&regex), patterns::names());
        return Err(Error::Unsupported { path: path.to_path_buf(), what });
    };
    let number = |name: &str| config.get(name).u32().map(|n| n as usize);
    let n_special = number("default_num_special_tokens")
        .ok_or_else(|| error("missing name", "config.default_num_special_tokens"))?;
    let vocab = json.get("vocab").list();
    let n = number("default_vocab_size").unwrap_or(vocab.len() + n_special);
    // The rest of the list is for larger vocabularies.
    if n <= n_special || n > MAX_TOKENS || n - n_special > vocab.len() {
        let e = error("a size of the vocabulary that does not fit its tokens", "config.default_vocab_size").got(n);
        return Err(e.limit(format!("{n_special} special tokens and at most {} others", vocab.len())).into());
    }
    let mut texts = Vec::with_capacity(n);
    let listed = json.get("special_tokens").list();
    for rank in 0..n_special {
        let name = match listed.iter().find(|token| token.get("rank").u32() == Some(rank as u32)) {
            Some(token) => token.get("token_str").str(),
            None if listed.is_empty() => SPECIAL.get(rank).copied(),
            None => None,
        };
        texts.push(name.map_or_else(|| format!("<SPECIAL_{rank}>").into_bytes(), |name| name.as_bytes().to_vec()));
    }
    let mut ranks = Vec::with_capacity(n - n_special);
    for (rank, token) in vocab[..n - n_special].iter().enumerate() {
        if token.get("rank").u32() != Some(rank as u32) {
            return Err(error("tokens that are not in the order of their ranks", "vocab")
                .got(format!("element {rank}"))
                .into());
        }
        let bytes = token.get("token_bytes").str().and_then(base64);
        ranks.push(
            bytes
                .filter(|b| !b.is_empty())
                .ok_or_else(|| error("a token that is not base64", "vocab").got(format!("element {rank}")))?,
        );
    }
    texts.extend(ranks.iter().map(|bytes| bpe::spell(bytes).into_bytes()));
    let merges = bpe::merges_of_ranks(&ranks)
        .ok_or_else(|| error("a token that no two others make, or that is too long", "vocab"))?;

    let kinds = (0..n).map(|id| if id < n_special { 3 } else { 1 }).collect();
    out.set("model", Entry::Str("gpt2".into()));
    out.set("pre", Entry::Str(pre.into()));
    out.set("tokens", Entry::Strings(texts));
    out.set("token_type", Entry::I32s(kinds));
    out.set("merges", Entry::Strings(merges));
    for (name, key) in [
        ("<s>", "bos_token_id"),
        ("</s>", "eos_token_id"),
        ("<unk>", "unknown_token_id"),
        ("<pad>", "padding_token_id"),
    ] {
        if let Some(id) = out.token(name) {
            out.set(key, Entry::U32(id));
        }
    }
    out.set("add_bos_token", Entry::Bool(true));
    out.set("add_eos_token", Entry::Bool(false));
    out.set_own("ignore_merges", Entry::Bool(true));
    out.set_own("normalizers", Entry::Strings(vec![tokenizer_json::NO_STEPS.into()]));
    Ok(())
}

/// The bytes that a text of base64 stands for.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    for group in text.chunks(4) {
        let mut bits = 0;
        for (i, &c) in group.iter().enumerate() {
            let digit = match c {
                b'A'..=b'Z' => c - b'A',
                b'a'..=b'z' => c - b'a' + 26,
                b'0'..=b'9' => c - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits |= u32::from(digit) << (18 - 6 * i);
        }
        if group.len() == 1 {
            return None;
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read() {
        for (text, bytes) in
            [("", &b""[..]), ("AA==", b"\0"), ("INA=", b" \xd0"), ("YWJj", b"abc"), ("//+/", b"\xff\xff\xbf")]
        {
            assert_eq!(base64(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["A", "AA*A", "AA=A", "é"] {
            assert_eq!(base64(text), None, "{text}");
        }
    }
}
