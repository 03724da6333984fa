//! Byte-level BPE: text is split into words, and within a word the pair of neighbours that was learnt
//! first is merged, again and again.
//!
//! The tokens of a file are spelt in an alphabet that gives each byte a printable character (a space is
//! `Ġ`), and so is a word before it is merged. A merge's place in `tokenizer.ggml.merges` is its rank.

use std::sync::OnceLock;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::matcher::{Matcher, Part};
use super::merge::Merger;
use super::pace::{Output, Pace, no_memory, reserve};
use super::pre::{self, PreTokenizer};
use super::text_index::TextIndex;
use super::vocabulary::{Kind, MERGES, Odd, Texts, Vocabulary, get_or_try_init, shown};
use crate::checkpoint::{Metadata, StringArray};
use crate::error::{Error, Result};

const PRE: &str = "tokenizer.ggml.pre";
/// Most merges that we accept. Real files have fewer than 600,000.
const MAX_MERGES: usize = 1 << 22;

/// The rules of byte-level BPE for one file.
pub(super) struct Bpe {
    pre: &'static PreTokenizer,
    merges: StringArray,
    index: OnceLock<Index>,
    specials: OnceLock<Matcher>,
    user_defined: OnceLock<Matcher>,
}

impl Bpe {
    /// Checks types and lengths. Does not walk the merges.
    pub(super) fn from_metadata(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Self> {
        let pre = match metadata.str(PRE)? {
            Some(name) => pre::find(name.as_bytes()).ok_or_else(|| Error::Unsupported {
                path: metadata.path().to_path_buf(),
                what: format!("pre-tokenizer {} ({PRE}); supported are {}", shown(name.as_bytes()), pre::names()),
            })?,
            None => {
                // Files from before there was a key. llama.cpp goes on with its default, and warns.
                let e = metadata.error("no pre-tokenizer is named, so text is split as by \"default\"", PRE);
                vocabulary.note_line(format!("{e}: the model may have been trained with another, and answer worse"));
                pre::default()
            }
        };
        let merges = metadata.strings(MERGES)?.ok_or_else(|| metadata.error("missing key", MERGES))?;
        if merges.len > MAX_MERGES {
            let e = metadata.error("too many merges", MERGES);
            return Err(e.got(merges.len).limit(format!("at most {MAX_MERGES}")).into());
        }
        Ok(Self { pre, merges, index: OnceLock::new(), specials: OnceLock::new(), user_defined: OnceLock::new() })
    }

    /// Whether a text begins with BOS where the file does not say. Llama 3 files often do not say.
    pub(super) fn adds_bos_by_default(&self) -> bool {
        self.pre.adds_bos
    }

    /// Appends the tokens of `text` to `out`.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        parse_special: bool,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let texts = vocabulary.texts(&mut out.pace)?;
        let index = get_or_try_init(&self.index, || Index::new(self, texts, &mut out.pace))?;
        let (cell, with_special) = if parse_special { (&self.specials, true) } else { (&self.user_defined, false) };
        let wanted = |_, kind: Kind| kind == Kind::UserDefined || with_special && kind.is_special();
        let matcher = get_or_try_init(cell, || Matcher::new(texts, &mut out.pace, wanted, |text| text))?;
        let mut words = Words { pre: self.pre, texts, index, merger: Merger::default(), spelt: String::new() };
        let mut parts = matcher.split(text);
        while let Some(part) = parts.next(&mut out.pace)? {
            match part {
                Part::Token(id) => out.push(id)?,
                Part::Text(text) if self.pre.normalizes && !text.is_ascii() => {
                    // A composed character takes no less than a quarter of the bytes that it was composed of.
                    index.expect(text.as_bytes(), 4, out)?;
                    match composed(text, &mut out.pace)? {
                        Some(text) => words.encode(&text, out)?,
                        None => words.encode(text, out)?,
                    }
                }
                Part::Text(text) => words.encode(text, out)?,
            }
        }
        Ok(())
    }
}

/// The NFC of `text`, unless it is that already.
fn composed(text: &str, pace: &mut Pace<'_>) -> Result<Option<String>> {
    let mut interrupted = Ok(());
    let chars = text.chars().take_while(|_| {
        interrupted = pace.work(1);
        interrupted.is_ok()
    });
    let is_composed = is_nfc_quick(chars) == IsNormalized::Yes;
    interrupted?;
    if is_composed {
        return Ok(None);
    }
    let mut composed = String::new();
    for c in text.nfc() {
        pace.work(1)?;
        push_str(&mut composed, c)?;
    }
    Ok(Some(composed))
}

fn push_str(text: &mut String, c: char) -> Result<()> {
    if text.capacity() - text.len() < c.len_utf8() {
        text.try_reserve(c.len_utf8()).map_err(|_| no_memory(text.len()))?;
    }
    text.push(c);
    Ok(())
}

/// Encodes text without special tokens, in buffers that it keeps.
struct Words<'a> {
    pre: &'static PreTokenizer,
    texts: Texts<'a>,
    index: &'a Index,
    merger: Merger,
    spelt: String,
}

impl Words<'_> {
    fn encode(&mut self, text: &str, out: &mut Output<'_>) -> Result<()> {
        let Self { pre, texts, index, merger, spelt } = self;
        index.expect(text.as_bytes(), 1, out)?;
        for word in pre.split(text) {
            out.pace.work(word.len())?;
            spelt.clear();
            for chunk in word.as_bytes().chunks(1 << 14) {
                out.pace.work(chunk.len())?;
                spelt.try_reserve(2 * chunk.len()).map_err(|_| no_memory(2 * word.len()))?;
                // A byte that is no token is left out, as HF's tokenizers does. Some vocabularies, SmolLM2's
                // for one, lack bytes that their training text never had.
                let known = chunk.iter().filter(|&&byte| index.has_byte[byte as usize]);
                spelt.extend(known.map(|&byte| CHAR_OF[byte as usize]));
            }
            if pre.takes_whole_words
                && let Some(id) = index.by_text.find(*texts, spelt.as_bytes())
            {
                out.push(id)?;
                continue;
            }
            merger.merge(spelt, &mut out.pace, |joint, left_len| index.rank(*texts, joint, left_len))?;
            for symbol in merger.symbols(spelt) {
                out.pace.work(1)?;
                if let Some(id) = index.by_text.find(*texts, symbol.as_bytes()) {
                    out.push(id)?;
                }
            }
        }
        Ok(())
    }
}

/// The bytes that a token spelt `text` stands for, or `None` if it is not in the alphabet.
pub(super) fn unspell(text: &[u8]) -> Option<Vec<u8>> {
    spelt(text).collect()
}

/// The bytes that `text` spells, `None` for what is not in the alphabet. All of that has one or two bytes of UTF-8: decoding
/// just those takes half the time of a check and a decoder for all of it.
fn spelt(text: &[u8]) -> impl Iterator<Item = Option<u8>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (code, len) = match *rest {
            [] => return None,
            [a @ 0..=0x7f, ..] => (usize::from(a), 1),
            [a @ 0xc2..=0xdf, b @ 0x80..=0xbf, ..] => (usize::from(a & 0x1f) << 6 | usize::from(b & 0x3f), 2),
            _ => (usize::MAX, 1),
        };
        rest = &rest[len..];
        Some(BYTE_OF.get(code).copied().flatten())
    })
}

/// The byte that `text` spells, if it is one.
fn only_byte(text: &[u8]) -> Option<u8> {
    let mut bytes = spelt(text);
    match (bytes.next().flatten(), bytes.next()) {
        (Some(byte), None) => Some(byte),
        _ => None,
    }
}

/// Number of characters of a text, as it should be in UTF-8.
fn n_chars(text: &[u8]) -> usize {
    text.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

/// The alphabet: printable characters of Latin-1 stand for themselves, the other bytes for the
/// characters from U+0100 on, in order.
const CHAR_OF: [char; 256] = {
    let mut chars = ['\0'; 256];
    let (mut byte, mut others) = (0, 0);
    while byte < 256 {
        let code = match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u32,
            _ => {
                others += 1;
                0xff + others
            }
        };
        chars[byte] = char::from_u32(code).expect("below the surrogates");
        byte += 1;
    }
    chars
};

const BYTE_OF: [Option<u8>; 0x144] = {
    let mut bytes = [None; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHAR_OF[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

/// What encoding needs to know.
///
/// A merge is found by the text that it makes: the token of that text, then those of the token's merges
/// that cut it where its two halves meet. So the halves need no look-up and the pairs no table, which
/// would be most of the time and most of the memory.
struct Index {
    by_text: TextIndex, // the tokens that text comes to by itself
    has_byte: Box<[bool; 256]>,
    longest: usize,     // bytes of text that a token stands for, at most
    merges: Vec<Merge>, // (n_merges) by rank
    first: Vec<u32>,    // (vocab_size) of each token, the rank of a merge that makes it, or `NONE`
}

struct Merge {
    left_len: u32, // bytes of the left half's text
    next: u32,     // rank of another merge that makes the same token, or `NONE`
}

const NONE: u32 = u32::MAX;

impl Index {
    fn new(bpe: &Bpe, texts: Texts<'_>, pace: &mut Pace<'_>) -> Result<Self> {
        let vocabulary = texts.vocabulary;
        let mut has_byte = Box::new([false; 256]);
        let mut by_text = TextIndex::with_capacity(vocabulary.len())?;
        let mut longest = 1;
        let mut empty = Odd::new("token without a text, which no text comes to");
        for id in vocabulary.ids() {
            let text = texts.get(id).unwrap_or_default();
            pace.work(16 + text.len())?;
            if text.is_empty() {
                empty.see(id as usize);
                continue;
            }
            // A token that is not spelt in the alphabet is here too, and never found.
            let byte = if text.len() <= 2 { only_byte(text) } else { None };
            match byte {
                Some(byte) => has_byte[byte as usize] = true,
                // Text is never what only its name, asked for, stands for.
                None if texts.kind(id).is_special() => continue,
                None => {}
            }
            by_text.insert(texts, id);
            longest = longest.max(n_chars(text));
        }
        vocabulary.note(&empty);

        let (mut merges, mut first) = (Vec::new(), Vec::new());
        reserve(&mut merges, bpe.merges.len)?; // the file has 8 bytes for each
        reserve(&mut first, vocabulary.len())?;
        first.resize(vocabulary.len(), NONE);
        // llama.cpp keeps such merges and never comes to them, or to what no token is made of; HF's tokenizers refuses.
        let mut odd = Odd::of(MERGES, "merge that is not one of two tokens into a third, and is left out");
        let mut joint = Vec::new();
        let mut guess = 0;
        for (at, text) in bpe.merges.iter().enumerate() {
            pace.work(16 + text.len())?;
            let halves = text.iter().position(|&b| b == b' ').map(|space| (&text[..space], &text[space + 1..]));
            let Some((left, right)) = halves.filter(|&(left, right)| by_text.may_have(left) && by_text.may_have(right))
            else {
                odd.see(at);
                continue;
            };
            // Files list merges in the order of what they make: most make the next token, or the same once
            // more. Looking there first saves most of the look-ups, and it is only a guess.
            let is_joint = |&id: &u32| texts.get(id).and_then(|text| text.strip_prefix(left)) == Some(right);
            let guessed = if by_text.has_duplicates { None } else { [guess, guess + 1].into_iter().find(is_joint) };
            let found = guessed.or_else(|| {
                joint.clear();
                joint.extend_from_slice(left);
                joint.extend_from_slice(right);
                by_text.find(texts, &joint)
            });
            let Some(id) = found else {
                odd.see(at);
                continue;
            };
            guess = id;
            let merge = Merge { left_len: left.len() as u32, next: first[id as usize] };
            if rank_of(&merges, merge.next, merge.left_len).is_some() {
                continue; // listed twice: the first has the rank
            }
            first[id as usize] = merges.len() as u32; // at most `MAX_MERGES`
            merges.push(merge);
        }
        vocabulary.note(&odd);
        Ok(Self { by_text, has_byte, longest, merges, first })
    }

    /// Ends it all if `text`, which may become `shrinks` times shorter, is sure to have too many tokens.
    fn expect(&self, text: &[u8], shrinks: usize, out: &mut Output<'_>) -> Result<()> {
        let at_least = |bytes: usize| bytes.div_ceil(self.longest * shrinks);
        if out.expect(at_least(text.len())).is_ok() {
            return Ok(());
        }
        // Bytes that are no token make none.
        let mut known = 0;
        for chunk in text.chunks(1 << 14) {
            out.pace.work(chunk.len())?;
            known += chunk.iter().filter(|&&byte| self.has_byte[byte as usize]).count();
        }
        out.expect(at_least(known))
    }

    /// The rank of the merge that makes `joint` of two tokens, the left one `left_len` long.
    fn rank(&self, texts: Texts<'_>, joint: &str, left_len: usize) -> Option<u32> {
        let id = self.by_text.find(texts, joint.as_bytes())?;
        rank_of(&self.merges, self.first[id as usize], left_len as u32)
    }
}

/// The merge with this left half among those that make the same token, beginning with `rank`.
fn rank_of(merges: &[Merge], mut rank: u32, left_len: u32) -> Option<u32> {
    while let Some(merge) = merges.get(rank as usize) {
        if merge.left_len == left_len {
            return Some(rank);
        }
        rank = merge.next;
    }
    None
}
