//! Byte-level BPE: text is split into words, and within a word the pair of neighbours that was learnt
//! first is merged, again and again.
//!
//! The tokens of a file are spelt in an alphabet that gives each byte a printable character (a space is
//! `Ġ`), and so is a word before it is merged. A merge's place in `tokenizer.ggml.merges` is its rank.

use std::path::PathBuf;
use std::sync::OnceLock;

use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::merge::Merger;
use super::pretokenize::Splitter;
use super::vocabulary::{Kind, Matcher, Part, TextIndex, Texts, Vocabulary, get_or_try_init, shown};
use crate::checkpoint::{Metadata, StringArray};
use crate::error::{Error, FormatError, Result};

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
        let pre = metadata.str(PRE)?.unwrap_or("default".into());
        let splitter = Splitter::from_name(&pre).ok_or_else(|| Error::Unsupported {
            path: metadata.path().to_path_buf(),
            what: format!("pre-tokenizer {} ({PRE}); supported are {}", shown(pre.as_bytes()), Splitter::NAMES),
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
        let mut merger = Merger::default();
        let mut spelt = String::new();
        let mut encode_text = |text: &str, ids: &mut Vec<u32>| {
            for word in self.splitter.split(text) {
                // A byte that is no token is left out, as HF's tokenizers does. Some vocabularies, SmolLM2's
                // for one, lack bytes that their training text never had.
                spelt.clear();
                let known = word.bytes().filter(|&byte| index.has_byte[byte as usize]);
                spelt.extend(known.map(|byte| CHAR_OF[byte as usize]));
                if self.splitter == Splitter::Llama3 {
                    // A word that is a token is that token, whether merges lead there or not.
                    let whole = index.by_text.find(texts, spelt.as_bytes());
                    if let Some(id) = whole.filter(|&id| !vocabulary.kind(id).is_special()) {
                        ids.push(id);
                        continue;
                    }
                }
                merger.clear();
                spelt.chars().for_each(|c| merger.push(c.len_utf8(), None));
                merger.merge(&spelt, |joint, left_len| index.rank(texts, joint, left_len));
                ids.extend(
                    merger.symbols().filter_map(|symbol| index.by_text.find(texts, symbol.of(&spelt).as_bytes())),
                );
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
        FormatError::new(&self.path, what).named(format!("{MERGES}[{rank}]")).got(shown(merge)).into()
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
    by_text: TextIndex,
    has_byte: Box<[bool; 256]>,
    merges: Vec<Merge>, // (n_merges) in the order of the file: by rank
    first: Vec<u32>,    // (vocab_size) of each token, the rank of a merge that makes it, or `NONE`
}

struct Merge {
    left_len: u32, // bytes of the left half's text
    next: u32,     // rank of another merge that makes the same token, or `NONE`
}

const NONE: u32 = u32::MAX;

impl Index {
    fn new(bpe: &Bpe, vocabulary: &Vocabulary, texts: Texts<'_>) -> Result<Self> {
        let mut has_byte = Box::new([false; 256]);
        let mut by_text = TextIndex::with_capacity(vocabulary.len());
        for id in vocabulary.ids() {
            let text = texts.get(id).unwrap_or_default();
            if text.is_empty() {
                return Err(texts.error("empty token", id).into());
            }
            let mut bytes = spelt(text);
            let (first, second) = (bytes.next().flatten(), bytes.next());
            if let (Some(byte), None) = (first, second) {
                has_byte[byte as usize] = true;
            }
            let is_spelt = first.is_some() && second.is_none_or(|byte| byte.is_some()) && bytes.all(|b| b.is_some());
            if vocabulary.check_kind(id)? == Kind::Normal && !is_spelt {
                return Err(texts.error("token is not spelt in the byte-level alphabet", id).into());
            }
            by_text.insert(texts, id);
        }

        let mut merges: Vec<Merge> = Vec::with_capacity(bpe.merges.len); // the file has 8 bytes for each
        let mut first = vec![NONE; vocabulary.len()];
        let mut joint = Vec::new();
        let mut guess = 0;
        for (rank, text) in bpe.merges.iter().enumerate() {
            let Some(space) = text.iter().position(|&b| b == b' ') else {
                return Err(bpe.merge_error("merge without a space", rank, text));
            };
            let (left, right) = (&text[..space], &text[space + 1..]);
            if !by_text.may_have(left) || !by_text.may_have(right) {
                return Err(bpe.merge_error("merge of something that is not a token", rank, text));
            }
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
                return Err(bpe.merge_error("merge makes something that is not a token", rank, text));
            };
            guess = id;
            let merge = Merge { left_len: space as u32, next: first[id as usize] };
            if rank_of(&merges, merge.next, merge.left_len).is_some() {
                return Err(bpe.merge_error("merge listed twice", rank, text));
            }
            first[id as usize] = rank as u32; // at most `MAX_MERGES`
            merges.push(merge);
        }
        Ok(Self { by_text, has_byte, merges, first })
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
