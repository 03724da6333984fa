//! Byte-level BPE: text is split into words, and within a word the pair of neighbours that was learnt
//! first is merged, again and again.
//!
//! The tokens of a file are spelt in an alphabet that gives each byte a printable character (a space is
//! `Ġ`). Here that spelling is met only when the index is built and when a token is decoded: a word starts
//! as the tokens of its bytes, and from then on all is pairs of ids. A merge is known by its place in
//! `tokenizer.ggml.merges`, which is its rank.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;
use std::path::PathBuf;
use std::sync::OnceLock;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::pretokenize::Splitter;
use super::vocabulary::{Kind, Matcher, Part, TextIndex, Texts, Vocabulary, get_or_try_init};
use crate::error::{Error, FormatError, Result};
use crate::formats::{Metadata, StringArray};

const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";
/// Most merges that we accept. Real files have fewer than 600,000.
const MAX_MERGES: usize = 1 << 22;

/// The rules of byte-level BPE for one file.
pub(super) struct Bpe {
    path: PathBuf,
    splitter: Splitter,
    merges: StringArray,
    index: OnceLock<Index>,
    specials: OnceLock<Matcher>,
    user_defined: OnceLock<Matcher>,
}

impl Bpe {
    /// Checks types and lengths. Does not walk the merges.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Self> {
        // Files without the key are from before there was one.
        let pre = metadata.str(PRE)?.unwrap_or("default");
        let splitter = Splitter::from_name(pre).ok_or_else(|| Error::Unsupported {
            path: metadata.path().to_path_buf(),
            what: format!("pre-tokenizer {pre:.80?} ({PRE}); supported are {}", Splitter::NAMES),
        })?;
        let merges = metadata.strings(MERGES)?.ok_or_else(|| metadata.error("missing key", MERGES))?;
        if merges.len > MAX_MERGES {
            let e = metadata.error("too many merges", MERGES);
            return Err(e.got(merges.len).limit(format!("at most {MAX_MERGES}")).into());
        }
        Ok(Self {
            path: metadata.path().to_path_buf(),
            splitter,
            merges,
            index: OnceLock::new(),
            specials: OnceLock::new(),
            user_defined: OnceLock::new(),
        })
    }

    /// Whether a text begins with BOS where the file does not say. Llama 3 files often do not say.
    pub(super) fn adds_bos_by_default(&self) -> bool {
        self.splitter == Splitter::Llama3
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
        let matcher = if parse_special {
            let wanted = |kind: Kind| kind.is_special() || kind == Kind::UserDefined;
            get_or_try_init(&self.specials, || Matcher::new(texts, wanted, |text| text))?
        } else {
            let wanted = |kind| kind == Kind::UserDefined;
            get_or_try_init(&self.user_defined, || Matcher::new(texts, wanted, |text| text))?
        };
        let mut merger = Merger { index, symbols: Vec::new(), queue: BinaryHeap::new() };
        let mut spelling = Vec::new();
        let mut encode_text = |text: &str, ids: &mut Vec<u32>| {
            for word in self.splitter.split(text) {
                // Llama 3: a word that is a token is that token, whether merges lead there or not.
                let whole = index.words.as_ref().and_then(|words| {
                    spell(word.as_bytes(), &mut spelling);
                    words.find(texts, &spelling).filter(|&id| !vocabulary.kind(id).is_special())
                });
                match whole {
                    Some(id) => ids.push(id),
                    None => merger.merge(word.as_bytes(), ids),
                }
            }
        };
        matcher.split(text, |part| {
            match part {
                Part::Token(id, _) => ids.push(id),
                Part::Text(text) if self.splitter == Splitter::Qwen2 && !text.is_ascii() && !is_nfc(text) => {
                    encode_text(&text.nfc().collect::<String>(), ids);
                }
                Part::Text(text) => encode_text(text, ids),
            }
            Ok(())
        })
    }

    fn merge_error(&self, what: &str, rank: usize, merge: &[u8]) -> Error {
        let text = String::from_utf8_lossy(merge);
        let shown = text.chars().take(40).collect::<String>();
        FormatError::new(&self.path, what).named(format!("{MERGES}[{rank}]")).got(format!("{shown:?}")).into()
    }
}

/// The bytes that a token spelt `text` stands for, or `None` if it is not in the alphabet.
pub(super) fn unspell(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    text.chars().map(|c| BYTE_OF.get(c as usize).copied().flatten()).collect()
}

/// Writes how `bytes` are spelt in the alphabet.
fn spell(bytes: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for &byte in bytes {
        out.extend_from_slice(CHAR_OF[byte as usize].encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// Whether all of `text` is in the alphabet.
fn is_spelling(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_graphic) || unspell(text).is_some()
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

const NONE: u32 = u32::MAX;

/// What encoding needs to know.
struct Index {
    byte_tokens: [u32; 256], // `NONE` where the vocabulary has none
    merges: Vec<Merge>,      // in the order of the file: by rank
    by_pair: HashTable<u32>, // ranks
    hasher: DefaultHashBuilder,
    words: Option<TextIndex>, // where a word that is a token needs no merges
}

#[derive(Clone, Copy)]
struct Merge {
    left: u32,
    right: u32,
    merged: u32,
}

impl Merge {
    fn pair(self) -> u64 {
        pair(self.left, self.right)
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Index {
    fn new(bpe: &Bpe, vocabulary: &Vocabulary, texts: Texts<'_>) -> Result<Self> {
        let mut byte_tokens = [NONE; 256];
        let mut by_text = TextIndex::with_capacity(vocabulary.len());
        for id in vocabulary.ids() {
            let text = texts.get(id).unwrap_or_default();
            if text.is_empty() {
                return Err(texts.error("empty token", id).into());
            }
            if vocabulary.check_kind(id)? == Kind::Normal && !is_spelling(text) {
                return Err(texts.error("token is not spelt in the byte-level alphabet", id).into());
            }
            if let Some([byte]) = (text.len() <= 2).then(|| unspell(text)).flatten().as_deref() {
                let token = &mut byte_tokens[*byte as usize];
                *token = id.min(*token);
            }
            by_text.insert(texts, id);
        }

        let hasher = DefaultHashBuilder::default();
        let mut merges: Vec<Merge> = Vec::with_capacity(bpe.merges.len); // the file has 8 bytes for each
        let mut by_pair = HashTable::with_capacity(bpe.merges.len);
        let mut joined = Vec::new();
        let mut guess = 0;
        for (rank, text) in bpe.merges.iter().enumerate() {
            let Some(space) = text.iter().position(|&b| b == b' ') else {
                return Err(bpe.merge_error("merge without a space", rank, text));
            };
            let halves = (&text[..space], &text[space + 1..]);
            let (Some(left), Some(right)) = (by_text.find(texts, halves.0), by_text.find(texts, halves.1)) else {
                return Err(bpe.merge_error("merge of something that is not a token", rank, text));
            };
            // Files list merges in the order of what they make: most make the next token, or the same once
            // more. Looking there first saves a third of the look-ups, and it is only a guess.
            let is_joined = |&id: &u32| texts.get(id).is_some_and(|t| t.strip_prefix(halves.0) == Some(halves.1));
            let merged = if by_text.has_duplicates { None } else { [guess, guess + 1].into_iter().find(is_joined) };
            let merged = merged.or_else(|| {
                joined.clear();
                joined.extend_from_slice(halves.0);
                joined.extend_from_slice(halves.1);
                by_text.find(texts, &joined)
            });
            let Some(merged) = merged else {
                return Err(bpe.merge_error("merge makes something that is not a token", rank, text));
            };
            guess = merged;

            let merge = Merge { left, right, merged };
            let same = |&rank: &u32| merges[rank as usize].pair() == merge.pair();
            match by_pair.entry(hasher.hash_one(merge.pair()), same, |&r| hasher.hash_one(merges[r as usize].pair())) {
                Entry::Occupied(_) => return Err(bpe.merge_error("merge listed twice", rank, text)),
                Entry::Vacant(slot) => drop(slot.insert(rank as u32)), // at most `MAX_MERGES`
            }
            merges.push(merge);
        }
        let words = (bpe.splitter == Splitter::Llama3).then_some(by_text);
        Ok(Self { byte_tokens, merges, by_pair, hasher, words })
    }

    fn rank(&self, left: u32, right: u32) -> Option<u32> {
        let pair = pair(left, right);
        self.by_pair.find(self.hasher.hash_one(pair), |&rank| self.merges[rank as usize].pair() == pair).copied()
    }
}

/// Merges words, one after another, in buffers that it keeps.
///
/// The symbols of a word are a linked list, and its possible merges a heap: a word of a million letters
/// takes n log n steps, and no recursion.
struct Merger<'i> {
    index: &'i Index,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<(u32, u32)>>, // rank, index of the left symbol
}

#[derive(Clone, Copy)]
struct Symbol {
    token: u32, // `NONE` once it was merged into its left neighbour
    prev: u32,
    next: u32,
}

impl Merger<'_> {
    fn merge(&mut self, word: &[u8], ids: &mut Vec<u32>) {
        let Self { index, symbols, queue } = self;
        symbols.clear();
        // A byte that is no token is left out, as HF's tokenizers does. Some vocabularies, SmolLM2's for
        // one, lack bytes that their training text never had.
        for token in word.iter().map(|&byte| index.byte_tokens[byte as usize]).filter(|&token| token != NONE) {
            let at = symbols.len() as u32; // `Tokenizer::encode` takes less than 2^32 bytes
            symbols.push(Symbol { token, prev: at.wrapping_sub(1), next: at + 1 });
        }
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;

        let offer = |symbols: &[Symbol], queue: &mut BinaryHeap<_>, left: u32, right: u32| {
            if left != NONE && right != NONE {
                let rank = index.rank(symbols[left as usize].token, symbols[right as usize].token);
                queue.extend(rank.map(|rank| Reverse((rank, left))));
            }
        };
        for left in 0..symbols.len() as u32 - 1 {
            offer(symbols, queue, left, left + 1);
        }
        while let Some(Reverse((rank, left))) = queue.pop() {
            let merge = index.merges[rank as usize];
            let Symbol { token, prev, next: right } = symbols[left as usize];
            // Out of date if one of the two has been merged since.
            if token != merge.left || right == NONE || symbols[right as usize].token != merge.right {
                continue;
            }
            let next = symbols[right as usize].next;
            symbols[right as usize].token = NONE;
            symbols[left as usize] = Symbol { token: merge.merged, prev, next };
            if next != NONE {
                symbols[next as usize].prev = left;
            }
            offer(symbols, queue, prev, left);
            offer(symbols, queue, left, next);
        }
        ids.extend(symbols.iter().map(|symbol| symbol.token).filter(|&token| token != NONE));
    }
}
