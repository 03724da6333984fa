//! `tokenizer.json`, as HF's `tokenizers` writes it: a model, and what is done to a text before and after.

use std::borrow::Cow;
use std::path::Path;

use super::json::Json;
use super::{Entries, Entry, MAX_TOKENS, one_line, parse, patterns, read_file};
use crate::error::{Error, FormatError, Result};
use crate::tokenizer::added::flag;

/// Largest file. Gemma's has 33 MB.
const MAX_LEN: usize = 128 << 20;
/// The step that makes a space of the text what it is in the vocabulary.
const SPACE: &str = "▁";
/// What there is in place of no steps.
pub(super) const NO_STEPS: &str = "None";

/// Types of tokens, by GGUF's numbers.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Reads the file at `path`.
pub(super) fn read(path: &Path, out: &mut Entries) -> Result<()> {
    let bytes = read_file(path, MAX_LEN)?;
    let json = parse(path, &bytes)?;
    let file = Reader { path, json: &json };
    let model = json.get("model");
    let kind = match model.get("type").str() {
        Some(kind) => kind,
        // Files from before it was written.
        None if !model.get("merges").is_null() => "BPE",
        None if matches!(model.get("vocab"), Json::List(_)) => "Unigram",
        None => "WordPiece",
    };
    match kind {
        "BPE" => file.bpe(out),
        "Unigram" => file.unigram(out),
        "WordPiece" => file.wordpiece(out),
        other => Err(file.unsupported(&format!("a model of type {}", one_line(other)), "BPE, Unigram and WordPiece")),
    }
}

struct Reader<'f> {
    path: &'f Path,
    json: &'f Json<'f>,
}

/// The tokens by their ids.
struct Tokens {
    texts: Vec<Vec<u8>>,
    kinds: Vec<i32>,
    flags: Vec<u8>,
}

impl<'f> Reader<'f> {
    fn model(&self) -> &'f Json<'f> {
        self.json.get("model")
    }

    fn unsupported(&self, what: &str, supported: &str) -> Error {
        Error::Unsupported { path: self.path.to_path_buf(), what: format!("{what}; supported are {supported}") }
    }

    fn error(&self, what: &str, name: &str) -> FormatError {
        FormatError::new(self.path, what).named(name)
    }

    /// The vocabulary: a map from texts to ids, or a list of texts with scores.
    fn pieces(&self) -> Result<Vec<(&'f str, u32)>> {
        let vocab = self.model().get("vocab");
        let pieces: Option<Vec<(&str, u32)>> = match vocab {
            Json::Map(pairs) => pairs.iter().map(|(text, id)| Some((&**text, id.u32()?))).collect(),
            Json::List(list) => {
                list.iter().zip(0..).map(|(piece, id)| Some((piece.list().first()?.str()?, id))).collect()
            }
            _ => None,
        };
        let pieces =
            pieces.ok_or_else(|| self.error("a vocabulary that is not one of texts and numbers", "model.vocab"))?;
        if pieces.is_empty() {
            return Err(self.error("the vocabulary is empty", "model.vocab").into());
        }
        Ok(pieces)
    }

    /// All tokens, those that were added included.
    fn tokens(&self) -> Result<Tokens> {
        let pieces = self.pieces()?;
        let mut known =
            std::collections::HashMap::with_capacity_and_hasher(pieces.len(), foldhash::fast::RandomState::default());
        known.extend(pieces.iter().copied());
        let mut added = Vec::new();
        for token in self.json.get("added_tokens").list() {
            let (Some(text), Some(id)) = (token.get("content").str(), token.get("id").u32()) else {
                return Err(self.error("a token without a text or an id", "added_tokens").into());
            };
            let is = |name: &str| token.get(name).bool().unwrap_or(false);
            let mut flags = flag::ADDED;
            for (name, bit) in [
                ("normalized", flag::NORMALIZED),
                ("single_word", flag::SINGLE_WORD),
                ("lstrip", flag::LSTRIP),
                ("rstrip", flag::RSTRIP),
            ] {
                flags |= if is(name) { bit } else { 0 };
            }
            let in_model = known.get(text).copied();
            flags |= if in_model.is_some() { flag::OF_THE_MODEL } else { 0 };
            added.push((text, in_model.unwrap_or(id), flags, is("special")));
        }
        let ids = || pieces.iter().map(|piece| piece.1).chain(added.iter().map(|token| token.1));
        let n_pieces = pieces.len() + added.len();
        let mut n = 1 + ids().max().unwrap_or(0) as usize;
        if n > MAX_TOKENS {
            return Err(self
                .error("an id that is too large", "model.vocab")
                .got(n - 1)
                .limit(format!("less than {MAX_TOKENS}"))
                .into());
        }
        // Ids that stand for nothing are of some use: rows of a matrix are made a round number.
        let most = 2 * n_pieces + (1 << 16);
        if n > most {
            let e = self.error("the ids have more gaps than tokens", "model.vocab").got(format!("the id {}", n - 1));
            return Err(e.limit(format!("{n_pieces} tokens")).into());
        }
        n = self.rows(n, most)?;
        let mut tokens = Tokens { texts: vec![Vec::new(); n], kinds: vec![UNUSED; n], flags: vec![0; n] };
        let mut set = |id: u32, text: &str, kind: i32, flags: u8| -> Result<()> {
            let at = id as usize;
            if tokens.kinds[at] != UNUSED && tokens.texts[at] != text.as_bytes() {
                return Err(self.error("an id that two tokens have", "model.vocab").got(id).into());
            }
            tokens.texts[at] = text.into();
            (tokens.kinds[at], tokens.flags[at]) = (kind, flags);
            Ok(())
        };
        for &(text, id) in &pieces {
            set(id, text, NORMAL, 0)?;
        }
        for &(text, id, flags, special) in &added {
            set(id, text, if special { CONTROL } else { USER_DEFINED }, flags)?;
        }
        for (id, text) in tokens.texts.iter_mut().enumerate().filter(|(id, _)| tokens.kinds[*id] == UNUSED) {
            *text = format!("[PAD{id}]").into();
        }
        Ok(tokens)
    }

    /// Rows of the model's matrix of tokens, if they are more than the `n` tokens.
    fn rows(&self, n: usize, most: usize) -> Result<usize> {
        let path = self.path.with_file_name("config.json");
        if !path.exists() {
            return Ok(n);
        }
        let bytes = read_file(&path, 16 << 20)?;
        let config = parse(&path, &bytes)?;
        let nested = config.get("text_config").get("vocab_size");
        let rows = nested.u32().or_else(|| config.get("vocab_size").u32()).unwrap_or(0) as usize;
        Ok(if (n..=most.min(MAX_TOKENS)).contains(&rows) { rows } else { n })
    }

    fn set_tokens(&self, tokens: Tokens, out: &mut Entries) {
        out.set("tokens", Entry::Strings(tokens.texts));
        out.set("token_type", Entry::I32s(tokens.kinds));
        out.set_own("token_flags", Entry::Bytes(tokens.flags));
    }

    /// The token that the model has for what it does not know.
    fn unknown(&self, tokens: &mut Tokens, out: &mut Entries) -> Result<()> {
        let model = self.model();
        let id = match (model.get("unk_token").str(), model.get("unk_id").u32()) {
            (Some(""), _) | (None, None) => return Ok(()),
            (Some(text), _) => tokens.texts.iter().position(|token| token == text.as_bytes()),
            (None, Some(id)) => Some(id as usize).filter(|&id| id < tokens.texts.len()),
        };
        let Some(id) = id else { return Err(self.error("no such token", "model.unk_token").into()) };
        tokens.kinds[id] = UNKNOWN;
        out.set("unknown_token_id", Entry::U32(id as u32));
        Ok(())
    }

    fn bpe(&self, out: &mut Entries) -> Result<()> {
        let model = self.model();
        for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model.get(name).str().is_some_and(|text| !text.is_empty()) {
                return Err(self.unsupported(&format!("BPE with {name}"), "byte-level and SentencePiece-like BPE"));
            }
        }
        let mut tokens = self.tokens()?;
        let steps = flatten(self.json.get("pre_tokenizer"), "pretokenizers");
        let is_byte_level = steps.iter().any(|step| kind(step) == "ByteLevel");
        let merges = self.merges()?;
        let ignore_merges = model.get("ignore_merges").bool().unwrap_or(false);
        if is_byte_level {
            let (normalizers, spaces) = self.normalizers()?;
            if spaces.is_some() {
                return Err(self.unsupported("byte-level BPE with spaces that are replaced", "spaces as they are"));
            }
            out.set("model", Entry::Str("gpt2".into()));
            let (pre, prefix) = self.pre_tokenizer(&steps, ignore_merges)?;
            out.set("pre", Entry::Str(pre.into()));
            out.set_own("normalizers", Entry::Strings(normalizers));
            out.set_own("ignore_merges", Entry::Bool(ignore_merges));
            out.set_own("prepend_scheme", Entry::Str(if prefix { "always" } else { "never" }.into()));
        } else {
            let byte_fallback = model.get("byte_fallback").bool().unwrap_or(false);
            self.unknown(&mut tokens, out)?;
            if byte_fallback {
                for (text, kind) in tokens.texts.iter().zip(&mut tokens.kinds) {
                    if matches!(**text, [b'<', b'0', b'x', a, b, b'>'] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
                    {
                        *kind = BYTE;
                    }
                }
            }
            let (normalizers, spaces) = self.normalizers()?;
            let metaspace = self.metaspace(&steps)?;
            let prepend = match (spaces, metaspace) {
                (Some(Spaces { prepend: true }), None) => "dummy",
                (Some(Spaces { prepend: false }), None) => "never",
                (None, Some(Metaspace { prepend, .. })) => prepend,
                _ => {
                    return Err(self.unsupported(
                        "BPE whose spaces are not replaced once by ▁",
                        "byte-level BPE, and one whose are",
                    ));
                }
            };
            out.set("scores", Entry::F32s(scores(&tokens, &merges)));
            // Gemma 4 is what llama.cpp merges by ranks, too.
            let is_gemma4 = out_has(&tokens, "<|tool_response>") && prepend == "never";
            out.set("model", Entry::Str(if is_gemma4 { "gemma4" } else { "llama" }.into()));
            out.set("add_space_prefix", Entry::Bool(prepend != "never"));
            out.set_own("prepend_scheme", Entry::Str(prepend.into()));
            out.set_own("normalizers", Entry::Strings(normalizers));
            out.set_own("merges_by_rank", Entry::Bool(true));
            out.set_own("ignore_merges", Entry::Bool(ignore_merges));
            out.set_own("fuse_unknown", Entry::Bool(model.get("fuse_unk").bool().unwrap_or(false)));
        }
        out.set("merges", Entry::Strings(merges));
        self.set_tokens(tokens, out);
        self.around(out)
    }

    /// The merges, as GGUF has them: two texts with a space between.
    fn merges(&self) -> Result<Vec<Vec<u8>>> {
        let merge = |merge: &Json<'_>| -> Option<Vec<u8>> {
            match merge {
                Json::Text(text) => Some(text.as_bytes().to_vec()),
                Json::List(halves) => match halves.as_slice() {
                    [Json::Text(left), Json::Text(right)] if !left.contains(' ') && !right.contains(' ') => {
                        Some([left.as_bytes(), b" ", right.as_bytes()].concat())
                    }
                    _ => None,
                },
                _ => None,
            }
        };
        let merges: Option<_> = self.model().get("merges").list().iter().map(merge).collect();
        merges.ok_or_else(|| self.error("a merge that is not one of two tokens without spaces", "model.merges").into())
    }

    /// What cuts a text for byte-level BPE, by GGUF's name, and whether a text gets a space before it.
    fn pre_tokenizer(&self, steps: &[&Json<'_>], ignore_merges: bool) -> Result<(&'static str, bool)> {
        let mut found: Vec<Cow<'_, str>> = Vec::new();
        let mut prefix = false;
        for (i, step) in steps.iter().enumerate() {
            match kind(step) {
                "ByteLevel" => {
                    // What comes after it would cut bytes.
                    if i + 1 != steps.len() {
                        return Err(self.unsupported("a pre-tokenizer after ByteLevel", "ByteLevel as the last"));
                    }
                    prefix = step.get("add_prefix_space").bool().unwrap_or(true);
                    if prefix && i > 0 {
                        return Err(self.unsupported("ByteLevel that adds a space to each word", "one to each text"));
                    }
                    if step.get("use_regex").bool().unwrap_or(true) {
                        found.push(patterns::GPT2.into());
                    }
                }
                "Digits" => {
                    let each = step.get("individual_digits").bool().unwrap_or(false);
                    found.push(if each { r"\p{N}" } else { r"\p{N}+" }.into());
                }
                "Split" => {
                    let pattern = step.get("pattern");
                    let behavior = step.get("behavior").str().unwrap_or_default();
                    let inverted = step.get("invert").bool().unwrap_or(false);
                    let Some(regex) = pattern.get("Regex").str() else {
                        return Err(self.unsupported("a text that is cut at a string", "regular expressions"));
                    };
                    let regex = patterns::canonical(regex);
                    // What is between matches, cut away, is nothing where the pattern matches everything.
                    let removes_nothing = behavior == "Removed" && inverted && regex.ends_with(r"|\s+");
                    if !(behavior == "Isolated" && !inverted || removes_nothing) {
                        let what = format!("a pattern with the behavior {} ({})", one_line(behavior), one_line(&regex));
                        return Err(self.unsupported(&what, "Isolated"));
                    }
                    found.push(regex.into());
                }
                other => {
                    let what = format!("the pre-tokenizer {} beside ByteLevel", one_line(other));
                    return Err(self.unsupported(&what, "Split, Digits"));
                }
            }
        }
        patterns::find(&found, ignore_merges).map(|name| (name, prefix)).ok_or_else(|| {
            let shown = found.iter().map(|regex| one_line(regex)).collect::<Vec<_>>().join("  then  ");
            self.unsupported(&format!("text that is cut by {shown}"), &format!("the patterns of {}", patterns::names()))
        })
    }

    /// The steps that normalise a text, in words of our own, and what is done to its spaces.
    fn normalizers(&self) -> Result<(Vec<Vec<u8>>, Option<Spaces>)> {
        let mut steps = Vec::new();
        let mut spaces = None;
        let mut prepend = false;
        for step in flatten(self.json.get("normalizer"), "normalizers") {
            let is = |name: &str, default: bool| step.get(name).bool().unwrap_or(default);
            let text = |name: &str| step.get(name).str().unwrap_or_default();
            let step = match kind(step) {
                name @ ("NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" | "StripAccents" | "Nmt") => name.to_owned(),
                "BertNormalizer" => {
                    let lowercase = is("lowercase", true);
                    let accents = step.get("strip_accents").bool().unwrap_or(lowercase);
                    let mut step = String::from("Bert");
                    for (name, set) in [
                        (" clean", is("clean_text", true)),
                        (" chinese", is("handle_chinese_chars", true)),
                        (" accents", accents),
                        (" lowercase", lowercase),
                    ] {
                        step.push_str(if set { name } else { "" });
                    }
                    step
                }
                "Strip" => match (is("strip_left", true), is("strip_right", true)) {
                    (true, true) => "Strip left right".to_owned(),
                    (true, false) => "Strip left".to_owned(),
                    (false, true) => "Strip right".to_owned(),
                    (false, false) => continue,
                },
                "Precompiled" => "Precompiled".to_owned(),
                "Prepend" if text("prepend") == SPACE => {
                    prepend = true;
                    continue;
                }
                "Replace" => {
                    let content = text("content");
                    match (step.get("pattern").get("String").str(), step.get("pattern").get("Regex").str()) {
                        (Some(" "), _) if content == SPACE => {
                            spaces = Some(Spaces { prepend });
                            continue;
                        }
                        (Some(from), _) if !from.is_empty() && !from.contains('\0') => {
                            format!("Replace {from}\0{content}")
                        }
                        (_, Some(" {2,}")) => format!("Collapse {content}"),
                        (_, Some(regex)) => {
                            let what = format!("a text in which {} is replaced", one_line(regex));
                            return Err(self.unsupported(&what, "strings and runs of spaces"));
                        }
                        _ => return Err(self.error("a Replace without a pattern", "normalizer").into()),
                    }
                }
                other => {
                    let what = format!("the normalizer {}", one_line(other));
                    return Err(self.unsupported(&what, "NFC, NFD, NFKC, NFKD, Nmt, Lowercase, StripAccents, BertNormalizer, Strip, Precompiled, Prepend ▁, Replace"));
                }
            };
            if spaces.is_some() || prepend {
                return Err(self.unsupported("a normalizer after spaces became ▁", "that as the last step"));
            }
            steps.push(step.into_bytes());
        }
        if prepend && spaces.is_none() {
            return Err(self.unsupported("a ▁ that is prepended where spaces stay", "both or none"));
        }
        if steps.is_empty() {
            steps.push(NO_STEPS.into()); // not every writer of GGUF has empty lists
        }
        Ok((steps, spaces))
    }

    /// What a Metaspace among `steps` does; they may have no others but what does nothing.
    fn metaspace(&self, steps: &[&'f Json<'f>]) -> Result<Option<Metaspace<'f>>> {
        let mut found = None;
        let mut whitespace_split = false;
        for step in steps {
            match kind(step) {
                "WhitespaceSplit" if found.is_none() => whitespace_split = true,
                "Metaspace" if found.is_none() && step.get("replacement").str().unwrap_or(SPACE) == SPACE => {
                    let adds = step.get("add_prefix_space").bool().unwrap_or(true);
                    let prepend = match step.get("prepend_scheme").str() {
                        None => {
                            if adds {
                                "always"
                            } else {
                                "never"
                            }
                        }
                        Some(scheme @ ("always" | "first" | "never")) => scheme,
                        Some(other) => {
                            return Err(self.unsupported(
                                &format!("the prepend_scheme {}", one_line(other)),
                                "always, first and never",
                            ));
                        }
                    };
                    found =
                        Some(Metaspace { prepend, split: step.get("split").bool().unwrap_or(true), whitespace_split });
                }
                // No spaces are left where Gemma cuts at them.
                "Split"
                    if step.get("pattern").get("String").str() == Some(" ")
                        && step.get("behavior").str() == Some("MergedWithPrevious") => {}
                other => {
                    let what = format!("the pre-tokenizer {}", one_line(other));
                    return Err(self.unsupported(&what, "ByteLevel, and Metaspace after WhitespaceSplit or alone"));
                }
            }
        }
        if whitespace_split && found.is_none() {
            return Err(self.unsupported("WhitespaceSplit alone", "WhitespaceSplit before Metaspace"));
        }
        Ok(found)
    }

    fn unigram(&self, out: &mut Entries) -> Result<()> {
        let mut tokens = self.tokens()?;
        self.unknown(&mut tokens, out)?;
        let mut scores = vec![0.0; tokens.texts.len()];
        for (score, piece) in scores.iter_mut().zip(self.model().get("vocab").list()) {
            *score = piece
                .list()
                .get(1)
                .and_then(Json::number)
                .ok_or_else(|| self.error("a token without a score", "model.vocab"))? as f32;
        }
        let (normalizers, spaces) = self.normalizers()?;
        if spaces.is_some() {
            return Err(self.unsupported("a Unigram model whose normalizer replaces spaces", "Metaspace"));
        }
        let steps = flatten(self.json.get("pre_tokenizer"), "pretokenizers");
        let Some(metaspace) = self.metaspace(&steps)? else {
            return Err(self.unsupported("a Unigram model without Metaspace", "one with it"));
        };
        let byte_fallback = self.model().get("byte_fallback").bool().unwrap_or(false);
        if byte_fallback {
            for (text, kind) in tokens.texts.iter().zip(&mut tokens.kinds) {
                if matches!(**text, [b'<', b'0', b'x', a, b, b'>'] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()) {
                    *kind = BYTE;
                }
            }
        }
        out.set("model", Entry::Str("t5".into()));
        for step in flatten(self.json.get("normalizer"), "normalizers") {
            if let Some(base64) = step.get("precompiled_charsmap").str() {
                let bytes = super::tekken::base64(base64)
                    .ok_or_else(|| self.error("not valid base64", "precompiled_charsmap"))?;
                out.set("precompiled_charsmap", Entry::Bytes(bytes));
            }
        }
        let collapses = normalizers.iter().any(|step| step.starts_with(b"Collapse")) || metaspace.whitespace_split;
        out.set("scores", Entry::F32s(scores));
        out.set("add_space_prefix", Entry::Bool(metaspace.prepend != "never"));
        out.set("remove_extra_whitespaces", Entry::Bool(collapses));
        out.set_own("normalizers", Entry::Strings(normalizers));
        out.set_own("prepend_scheme", Entry::Str(metaspace.prepend.into()));
        out.set_own("metaspace_split", Entry::Bool(metaspace.split));
        out.set_own("whitespace_split", Entry::Bool(metaspace.whitespace_split));
        self.set_tokens(tokens, out);
        self.around(out)
    }

    fn wordpiece(&self, out: &mut Entries) -> Result<()> {
        let model = self.model();
        if model.get("continuing_subword_prefix").str().unwrap_or("##") != "##" {
            return Err(self.unsupported("WordPiece with a prefix of its own", "##"));
        }
        let steps = flatten(self.json.get("pre_tokenizer"), "pretokenizers");
        if steps.iter().map(|step| kind(step)).ne(["BertPreTokenizer"]) {
            let names = steps.iter().map(|step| one_line(kind(step))).collect::<Vec<_>>().join(", ");
            return Err(self.unsupported(&format!("WordPiece with the pre-tokenizer {names}"), "BertPreTokenizer"));
        }
        let (normalizers, spaces) = self.normalizers()?;
        if spaces.is_some() {
            return Err(self.unsupported("WordPiece whose spaces are replaced", "spaces as they are"));
        }
        let mut tokens = self.tokens()?;
        self.unknown(&mut tokens, out)?;
        let has = |name: &str| {
            normalizers.iter().any(|step| String::from_utf8_lossy(step).split(' ').any(|word| word == name))
        };
        let (lowercase, accents) = (has("lowercase") || has("Lowercase"), has("accents") || has("StripAccents"));
        out.set("model", Entry::Str("bert".into()));
        out.set("normalizer.lowercase", Entry::Bool(lowercase));
        out.set("normalizer.strip_accents", Entry::Bool(accents));
        out.set_own("normalizers", Entry::Strings(normalizers));
        out.set_own("max_word_chars", Entry::U32(model.get("max_input_chars_per_word").u32().unwrap_or(100)));
        // GGUF marks where words begin, and not where they go on.
        for ((text, &kind), &flags) in tokens.texts.iter_mut().zip(&tokens.kinds).zip(&tokens.flags) {
            if kind == NORMAL && flags == 0 {
                *text = match text.strip_prefix(b"##") {
                    Some(rest) if !rest.is_empty() => rest.to_vec(),
                    _ => [SPACE.as_bytes(), text].concat(),
                };
            }
        }
        self.set_tokens(tokens, out);
        self.around(out)
    }

    /// The tokens that come before a text and after it.
    fn around(&self, out: &mut Entries) -> Result<()> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for step in flatten(self.json.get("post_processor"), "processors") {
            match kind(step) {
                "TemplateProcessing" => {
                    let mut seen_text = false;
                    for part in step.get("single").list() {
                        let special = part.get("SpecialToken").get("id").str();
                        match special {
                            None => seen_text = true,
                            Some(name) => {
                                let ids = step.get("special_tokens").get(name).get("ids").list();
                                let to = if seen_text { &mut after } else { &mut before };
                                for id in ids {
                                    to.push(
                                        id.u32().ok_or_else(|| self.error("an id that is none", "post_processor"))?,
                                    );
                                }
                            }
                        }
                    }
                }
                "BertProcessing" | "RobertaProcessing" => {
                    for (name, to) in [("cls", &mut before), ("sep", &mut after)] {
                        let id = step.get(name).list().get(1).and_then(Json::u32);
                        to.push(id.ok_or_else(|| self.error("a token without an id", "post_processor"))?);
                    }
                }
                "ByteLevel" => {}
                other => {
                    let what = format!("the post-processor {}", one_line(other));
                    return Err(self.unsupported(&what, "TemplateProcessing, BertProcessing, RobertaProcessing"));
                }
            }
        }
        let n = match out.get("tokens") {
            Some(Entry::Strings(tokens)) => tokens.len(),
            _ => 0,
        };
        if let Some(&id) = before.iter().chain(&after).find(|&&id| id as usize >= n) {
            let e = self.error("no such token", "post_processor").got(id);
            return Err(e.limit(format!("less than the {n} tokens of the vocabulary")).into());
        }
        if !before.is_empty() || !after.is_empty() {
            let ids = |ids: Vec<u32>| Entry::I32s(ids.into_iter().map(|id| id as i32).collect());
            out.set_own("prefix_token_ids", ids(before));
            out.set_own("suffix_token_ids", ids(after));
        }
        Ok(())
    }
}

/// What a normalizer does to spaces.
struct Spaces {
    prepend: bool,
}

/// What a pre-tokenizer does to spaces.
struct Metaspace<'f> {
    prepend: &'f str,
    split: bool,
    whitespace_split: bool,
}

/// The steps of a sequence of sequences.
fn flatten<'j>(json: &'j Json<'j>, name: &str) -> Vec<&'j Json<'j>> {
    let mut steps = Vec::new();
    let mut left = vec![json];
    while let Some(json) = left.pop() {
        match json.get("type").str() {
            Some("Sequence") => left.extend(json.get(name).list().iter().rev()),
            Some(_) => steps.push(json),
            None if json.is_null() => {}
            None => steps.push(json), // of no kind, which is refused
        }
    }
    steps
}

fn kind<'j>(step: &'j Json<'_>) -> &'j str {
    step.get("type").str().unwrap_or("without a type")
}

fn out_has(tokens: &Tokens, text: &str) -> bool {
    tokens.texts.iter().any(|token| token == text.as_bytes())
}

/// Scores that lead to the same merges: the earlier a token is made, the higher. For those who merge by scores.
fn scores(tokens: &Tokens, merges: &[Vec<u8>]) -> Vec<f32> {
    let mut first =
        std::collections::HashMap::with_capacity_and_hasher(merges.len(), foldhash::fast::RandomState::default());
    for (rank, merge) in merges.iter().enumerate() {
        let joint: Vec<u8> = merge.iter().copied().filter(|&byte| byte != b' ').collect();
        first.entry(joint).or_insert(rank);
    }
    let score = |text: &Vec<u8>| first.get(text).map_or(-1e9, |&rank| -(rank as f32));
    tokens.texts.iter().zip(&tokens.kinds).map(|(text, &kind)| if kind == NORMAL { score(text) } else { 0.0 }).collect()
}
