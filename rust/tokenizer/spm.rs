//! SentencePiece's BPE: the pair of neighbours that makes the token of the highest score is merged, again and
//! again; what is no token then is spelt in byte tokens.
//!
//! A space is `▁` (U+2581) in the vocabulary, and one is put before a text so that its first word is like any
//! other. There are no words: the whole text is one list of symbols.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::OnceLock;

use super::vocabulary::{Kind, Matcher, Part, TextIndex, Texts, Vocabulary, get_or_try_init};
use crate::error::{Error, Result};
use crate::formats::Metadata;

/// What stands for a space.
const SPACE: &str = "\u{2581}";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// The rules of SentencePiece's BPE for one file.
pub(super) struct Spm {
    /// Whether a text gets a space at its start, which decoding takes away again.
    pub(super) add_space_prefix: bool,
    unknown: Option<u32>,
    index: OnceLock<Index>,
    specials: OnceLock<Matcher>,
}

impl Spm {
    /// Checks that everything is there. Does not walk the tokens.
    pub(super) fn from_metadata(metadata: &Metadata, vocabulary: &Vocabulary, unknown: Option<u32>) -> Result<Self> {
        if !vocabulary.has_kinds() {
            return Err(metadata.error("missing key", "tokenizer.ggml.token_type").into());
        }
        if !vocabulary.has_scores() {
            return Err(metadata.error("missing key", "tokenizer.ggml.scores").into());
        }
        let unsupported = |key: &str| Error::Unsupported {
            path: metadata.path().to_path_buf(),
            what: format!("{key}: text normalisation of SentencePiece models is not supported"),
        };
        let charsmap = "tokenizer.ggml.precompiled_charsmap";
        if metadata.get(charsmap).is_some() {
            return Err(unsupported(charsmap));
        }
        let extra_white_space = "tokenizer.ggml.remove_extra_whitespaces";
        if metadata.bool(extra_white_space)?.unwrap_or(false) {
            return Err(unsupported(extra_white_space));
        }
        let add_space_prefix = metadata.bool(ADD_SPACE_PREFIX)?.unwrap_or(true);
        Ok(Self { add_space_prefix, unknown, index: OnceLock::new(), specials: OnceLock::new() })
    }

    /// Appends the tokens of `text` to `ids`.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        parse_special: bool,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let texts = vocabulary.texts()?;
        let index = get_or_try_init(&self.index, || Index::new(self, vocabulary, texts))?;
        let encode_text = |text: &str, ids: &mut Vec<u32>| {
            // Each text between special tokens is a text of its own, as for sentencepiece, which knows no other.
            let prefix = if self.add_space_prefix { SPACE } else { "" };
            let escaped = format!("{prefix}{}", text.replace(' ', SPACE));
            Merger { vocabulary, texts, index, text: &escaped }.encode(self.unknown, ids)
        };
        if !parse_special {
            return if text.is_empty() { Ok(()) } else { encode_text(text, ids) };
        }
        let specials = get_or_try_init(&self.specials, || Matcher::new(texts, Kind::is_special, |text| text))?;
        specials.split(text, |part| match part {
            Part::Text(text) => encode_text(text, ids),
            Part::Token(id, _) => {
                ids.push(id);
                Ok(())
            }
        })
    }
}

/// The bytes that a token stands for, if its text is what it should be.
pub(super) fn unspell(text: &[u8], kind: Kind) -> Option<Vec<u8>> {
    match kind {
        Kind::Byte => Some(vec![byte_of(text)?]),
        _ => Some(std::str::from_utf8(text).ok()?.replace(SPACE, " ").into_bytes()),
    }
}

/// The byte that `<0xHH>` means.
fn byte_of(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let digits = std::str::from_utf8(digits).ok().filter(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()));
    u8::from_str_radix(digits?, 16).ok()
}

const NONE: u32 = u32::MAX;

/// What encoding needs to know.
struct Index {
    by_text: TextIndex, // the tokens that text is merged into
    byte_tokens: Option<[u32; 256]>,
    user_defined: Matcher, // never cut, never merged
}

impl Index {
    fn new(spm: &Spm, vocabulary: &Vocabulary, texts: Texts<'_>) -> Result<Self> {
        let mut by_text = TextIndex::with_capacity(vocabulary.len());
        let mut byte_tokens = [NONE; 256];
        for id in vocabulary.ids() {
            let text = texts.get(id).unwrap_or_default();
            if text.is_empty() {
                return Err(texts.error("empty token", id).into());
            }
            match vocabulary.check_kind(id)? {
                Kind::Normal | Kind::UserDefined | Kind::Unused => {
                    if std::str::from_utf8(text).is_err() {
                        return Err(texts.error("token is not valid UTF-8", id).into());
                    }
                    if vocabulary.score(id).is_nan() {
                        return Err(vocabulary.score_error("score is not a number", id).into());
                    }
                    by_text.insert(texts, id);
                }
                Kind::Byte => {
                    let byte =
                        byte_of(text).ok_or_else(|| texts.error("bad byte token", id).limit("<0x00> to <0xFF>"))?;
                    let token = &mut byte_tokens[byte as usize];
                    if *token != NONE {
                        return Err(texts.error("two tokens for the same byte", id).into());
                    }
                    *token = id;
                }
                Kind::Control | Kind::Unknown => {}
            }
        }
        let missing = byte_tokens.iter().position(|&token| token == NONE);
        let any = byte_tokens.iter().any(|&token| token != NONE);
        let byte_tokens = match missing {
            None => Some(byte_tokens),
            Some(byte) if any => {
                return Err(vocabulary.error("missing byte token").limit(format!("<0x{byte:02X}>")).into());
            }
            Some(_) if spm.unknown.is_none() => {
                return Err(vocabulary.error("neither byte tokens nor an unknown token").into());
            }
            Some(_) => None,
        };
        let spell = |text: String| text.replace(' ', SPACE);
        let user_defined = Matcher::new(texts, |kind| kind == Kind::UserDefined, spell)?;
        Ok(Self { by_text, byte_tokens, user_defined })
    }
}

/// Merges one text.
struct Merger<'a> {
    vocabulary: &'a Vocabulary,
    texts: Texts<'a>,
    index: &'a Index,
    text: &'a str,
}

#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32, // 0 once it was merged into its left neighbour
    prev: u32,
    next: u32,
    frozen: u32, // the token, if it may not be merged; or `NONE`
}

/// A possible merge. The greatest is next: of the highest score, then the leftmost.
type Candidate = Reverse<(u32, u32, u32)>; // descending(score), index of the left symbol, bytes of both

impl<'a> Merger<'a> {
    fn encode(&self, unknown: Option<u32>, ids: &mut Vec<u32>) -> Result<()> {
        if u32::try_from(self.text.len()).is_err() {
            return Err(Error::Argument("the text is too long: it must be less than 4 GiB".into()));
        }
        let mut symbols = self.symbols()?;
        // How an unused token came to be, by its text: it is taken apart again.
        let mut unused: HashMap<&str, usize> = HashMap::new();
        let mut queue: BinaryHeap<Candidate> = BinaryHeap::new();
        let mut offer = |symbols: &[Symbol], queue: &mut BinaryHeap<Candidate>, left: u32, right: u32| {
            if left == NONE || right == NONE {
                return;
            }
            let (l, r) = (symbols[left as usize], symbols[right as usize]);
            if l.frozen != NONE || r.frozen != NONE {
                return;
            }
            let text = self.slice(l.start, l.len + r.len);
            let Some(id) = self.index.by_text.find(self.texts, text.as_bytes()) else { return };
            queue.push(Reverse((descending(self.vocabulary.score(id)), left, l.len + r.len)));
            if self.vocabulary.kind(id) == Kind::Unused {
                unused.insert(text, l.len as usize);
            }
        };
        for right in 1..symbols.len() as u32 {
            offer(&symbols, &mut queue, right - 1, right);
        }
        while let Some(Reverse((_, left, len))) = queue.pop() {
            let Symbol { next: right, prev, len: left_len, .. } = symbols[left as usize];
            // Out of date if one of the two has been merged since.
            if left_len == 0 || right == NONE || left_len + symbols[right as usize].len != len {
                continue;
            }
            let next = symbols[right as usize].next;
            symbols[right as usize].len = 0;
            symbols[left as usize].len = len;
            symbols[left as usize].next = next;
            if next != NONE {
                symbols[next as usize].prev = left;
            }
            offer(&symbols, &mut queue, prev, left);
            offer(&symbols, &mut queue, left, next);
        }

        let mut after_unknown = false;
        let mut parts = Vec::new();
        for symbol in symbols.iter().filter(|symbol| symbol.len != 0) {
            if symbol.frozen != NONE {
                ids.push(symbol.frozen);
                after_unknown = false;
                continue;
            }
            parts.push(self.slice(symbol.start, symbol.len));
            while let Some(part) = parts.pop() {
                let found = self.index.by_text.find(self.texts, part.as_bytes());
                match (found, unused.get(part), &self.index.byte_tokens) {
                    (Some(id), Some(&left), _) if self.vocabulary.kind(id) == Kind::Unused => {
                        parts.extend([&part[left..], &part[..left]]);
                        continue;
                    }
                    (Some(id), ..) => ids.push(id),
                    (None, _, Some(byte_tokens)) => ids.extend(part.bytes().map(|byte| byte_tokens[byte as usize])),
                    // A run of unknown characters is one unknown token.
                    (None, _, None) if !after_unknown => ids.extend(unknown),
                    (None, ..) => {}
                }
                after_unknown = found.is_none() && self.index.byte_tokens.is_none();
            }
        }
        Ok(())
    }

    /// The text as it is before any merge: its characters, and the user-defined tokens in it.
    fn symbols(&self) -> Result<Vec<Symbol>> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(self.text.len());
        let mut start = 0;
        let mut push = |len: usize, frozen| {
            let at = symbols.len() as u32; // no more than bytes of text
            symbols.push(Symbol { start, len: len as u32, prev: at.wrapping_sub(1), next: at + 1, frozen });
            start += len as u32;
        };
        self.index.user_defined.split(self.text, |part| {
            match part {
                Part::Text(text) => text.chars().for_each(|c| push(c.len_utf8(), NONE)),
                Part::Token(id, text) => push(text.len(), id),
            }
            Ok(())
        })?;
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        Ok(symbols)
    }

    fn slice(&self, start: u32, len: u32) -> &'a str {
        &self.text[start as usize..(start + len) as usize]
    }
}

/// A number that is the smaller, the higher the score.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0 is 0
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}
