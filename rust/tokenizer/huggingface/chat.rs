//! What lies beside the vocabulary: which tokens begin and end, and the templates of a chat.

use std::path::Path;

use super::json::Json;
use super::{Entries, Entry, parse, read_file};
use crate::error::{FormatError, Result};

/// Largest of these files. Real ones have some hundred kB, most of it token names.
const MAX_LEN: usize = 16 << 20;

/// The names of special tokens in `tokenizer_config.json`, and in GGUF.
const SPECIAL: [(&str, &str); 7] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("sep_token", "seperator_token_id"), // that is how GGUF spells it
    ("pad_token", "padding_token_id"),
    ("cls_token", "cls_token_id"),
    ("mask_token", "mask_token_id"),
];

/// Adds what the files of `directory` say, to the entries that the vocabulary gave.
pub(super) fn read(directory: &Path, out: &mut Entries) -> Result<()> {
    let file = |name: &str| -> Result<Option<(std::path::PathBuf, Vec<u8>)>> {
        let path = directory.join(name);
        if path.exists() { read_file(&path, MAX_LEN).map(|bytes| Some((path, bytes))) } else { Ok(None) }
    };
    // The later has the last word: special_tokens_map.json is what older versions wrote.
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some((path, bytes)) = file(name)? else { continue };
        let config = parse(&path, &bytes)?;
        for (theirs, ours) in SPECIAL {
            // A string, or a token with its attributes.
            let token = config.get(theirs);
            let text = token.str().or_else(|| token.get("content").str());
            if let Some(id) = text.and_then(|text| out.token(text)) {
                out.set(ours, Entry::U32(id));
            }
        }
        // Where the tokenizer itself says what comes before a text and after it, that holds.
        for which in ["bos", "eos"] {
            let key = format!("add_{which}_token");
            if let (Some(add), None) = (config.get(&key).bool(), out.get(&key)) {
                out.set(&key, Entry::Bool(add));
            }
        }
        templates(&path, config.get("chat_template"), out)?;
    }
    if let Some((path, bytes)) = file("generation_config.json")? {
        let config = parse(&path, &bytes)?;
        ends(config.get("eos_token_id"), out);
    }
    if let Some((path, bytes)) = file("chat_template.json")? {
        let config = parse(&path, &bytes)?;
        templates(&path, config.get("chat_template"), out)?;
    }
    if let Some((path, bytes)) = file("chat_template.jinja")? {
        let text = String::from_utf8(bytes).map_err(|_| FormatError::new(&path, "not valid UTF-8"))?;
        out.insert("tokenizer.chat_template".into(), Entry::Str(text));
    }
    Ok(())
}

/// The tokens that end an answer: the first is what GGUF calls EOS unless a name says otherwise, all of them end.
fn ends(ids: &Json<'_>, out: &mut Entries) {
    let n = match out.get("tokens") {
        Some(Entry::Strings(tokens)) => tokens.len() as u32,
        _ => 0,
    };
    let ids: Vec<u32> = match ids {
        Json::List(list) => list.iter().filter_map(Json::u32).collect(),
        one => one.u32().into_iter().collect(),
    };
    let ids: Vec<u32> = ids.into_iter().filter(|&id| id < n).collect();
    if let (Some(&id), None) = (ids.first(), out.get("eos_token_id")) {
        out.set("eos_token_id", Entry::U32(id));
    }
    if !ids.is_empty() {
        out.set_own("end_token_ids", Entry::I32s(ids.iter().map(|&id| id as i32).collect()));
    }
}

/// A template, or a list of named ones, of which the one called `default` is what is used.
fn templates(path: &Path, value: &Json<'_>, out: &mut Entries) -> Result<()> {
    match value {
        Json::Null => {}
        Json::Text(text) => out.insert("tokenizer.chat_template".into(), Entry::Str(text.to_string())),
        Json::List(list) => {
            let mut names = Vec::new();
            for template in list {
                let (Some(name), Some(text)) = (template.get("name").str(), template.get("template").str()) else {
                    return Err(FormatError::new(path, "a template without a name or a text")
                        .named("chat_template")
                        .into());
                };
                if name == "default" {
                    out.insert("tokenizer.chat_template".into(), Entry::Str(text.into()));
                } else {
                    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
                    out.insert(format!("tokenizer.chat_template.{name}"), Entry::Str(text.into()));
                    names.push(name.into_bytes());
                }
            }
            if !names.is_empty() {
                out.insert("tokenizer.chat_templates".into(), Entry::Strings(names));
            }
        }
        other => {
            let e = FormatError::new(path, "wrong type").named("chat_template").got(other.kind());
            return Err(e.limit("a string or a list of named templates").into());
        }
    }
    Ok(())
}
