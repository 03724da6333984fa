//! Text to token ids and back, by the vocabulary in a file's metadata.
//!
//! Opening looks at types, lengths and special ids, and walks nothing. Decoding needs to know where each
//! token's text is, encoding needs indexes over the texts; each is built when it is first used, of numbers
//! only: the texts stay in the map. The first text to encode gets an index of what it needs ([`parts`]).
//!
//! Kinds of vocabularies are named by `tokenizer.ggml.model`: [`bpe`] (`gpt2`) and [`wordpiece`] (`bert`), whose oracle is HF's
//! `tokenizers`, [`spm`] (`llama`, `gemma4`) and [`unigram`] (`t5`), whose oracle is `sentencepiece`. What a directory of
//! Hugging Face says, [`huggingface`] turns into the same entries.
//!
//! What no text comes to makes no file useless: entries that are odd are noted ([`Tokenizer::take_notes`]) and left out.

mod added;
mod bpe;
mod charsmap;
mod ends;
mod fim;
pub mod huggingface;
mod matcher;
mod merge;
mod normalize;
mod pace;
mod parts;
mod pre;
mod ranks;
mod space;
mod spm;
mod stream;
mod text_index;
mod unigram;
mod vocabulary;
mod wordpiece;

use std::sync::OnceLock;

pub use stream::StreamDecoder;

use self::bpe::Bpe;
use self::pace::{Output, Pace};
use self::space::Prefix;
use self::spm::Spm;
use self::unigram::Unigram;
use self::vocabulary::{Kind, Texts, Vocabulary, get_or_try_init, shown};
use self::wordpiece::WordPiece;
use crate::checkpoint::{Metadata, Value, ValueType};
use crate::error::{Error, Result};
use crate::threads::Interrupt;

/// Longest text, in bytes. Symbols are counted in 32 bits, and normalising and spelling may make a text six
/// times as long.
pub const MAX_TEXT_LEN: usize = 512 << 20;

const MODEL: &str = "tokenizer.ggml.model";

// What GGUF has no key for, in our own.
const IGNORE_MERGES: &str = "llama_rs.tokenizer.ignore_merges";
const FUSE_UNKNOWN: &str = "llama_rs.tokenizer.fuse_unknown";
const PREFIX_TOKENS: &str = "llama_rs.tokenizer.prefix_token_ids";
const SUFFIX_TOKENS: &str = "llama_rs.tokenizer.suffix_token_ids";
const END_TOKENS: &str = "llama_rs.tokenizer.end_token_ids";

/// Most tokens that our own keys put somewhere.
const MAX_SPECIAL: usize = 1 << 10;

/// Keys of tokens that end an answer besides EOS: of a turn, of a message, and where code was to be filled in.
const OTHER_ENDS: [&str; 5] = ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"];

/// The tokenizer of a model file.
///
/// ```no_run
/// let checkpoint = llama_rs::open("model.gguf".as_ref())?;
/// let tokenizer = llama_rs::Tokenizer::from_metadata(&checkpoint.metadata)?;
/// let ids = tokenizer.encode("Once upon a time", true, false)?;
/// assert_eq!(tokenizer.decode(&ids, true)?, "Once upon a time");
/// # Ok::<(), llama_rs::Error>(())
/// ```
pub struct Tokenizer {
    vocabulary: Vocabulary,
    model: Model,
    bos: Option<u32>,
    eos: Option<u32>,
    other_ends: Vec<u32>,
    before: Vec<u32>, // what to put before a text
    after: Vec<u32>,  // and after it
    end_tokens: OnceLock<Vec<u32>>,
    fim: [Option<u32>; 3], // as the file names them
    fim_tokens: OnceLock<Option<[u32; 3]>>,
}

enum Model {
    Bpe(Bpe),
    Spm(Spm),
    WordPiece(WordPiece),
    Unigram(Unigram),
}

/// The kinds of vocabularies, by their names in files.
const KINDS: [(&str, KindOfModel); 5] = [
    ("gpt2", KindOfModel::Bpe),
    ("llama", KindOfModel::Spm),
    ("gemma4", KindOfModel::Gemma4),
    ("bert", KindOfModel::WordPiece),
    ("t5", KindOfModel::Unigram),
];

#[derive(Clone, Copy, PartialEq)]
enum KindOfModel {
    Bpe,
    Spm,
    Gemma4,
    WordPiece,
    Unigram,
}

impl Tokenizer {
    /// Reads what the metadata says about the vocabulary; neither walks nor indexes it.
    ///
    /// # Errors
    /// [`Error::Format`] if a key is missing or has the wrong type or length; [`Error::Unsupported`] for a kind of
    /// vocabulary or a pre-tokenizer that we do not know.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let name = metadata.str(MODEL)?.ok_or_else(|| metadata.error("missing key", MODEL))?;
        let Some((_, kind)) = KINDS.into_iter().find(|(known, _)| *known == name) else {
            let (name, known) = (shown(name.as_bytes()), KINDS.map(|kind| kind.0).join(", "));
            return Err(Error::Unsupported {
                path: metadata.path().to_path_buf(),
                what: format!("vocabulary of type {name} ({MODEL}); supported are {known}"),
            });
        };
        let vocabulary = Vocabulary::from_metadata(metadata)?;
        // A special token that does not exist is none; -1 is how some files say so.
        let special = |name: &str| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = match metadata.get(&key) {
                Some(&Value::Signed(id @ ..0)) => Err(id.to_string()),
                _ => match metadata.usize(&key)? {
                    Some(id) if id >= vocabulary.len() => Err(id.to_string()),
                    id => Ok(id.map(|id| id as u32)),
                },
            };
            Ok(id.unwrap_or_else(|id| {
                let e = metadata.error("no such token, so there is none", &key).got(id);
                let e = e.limit(format!("less than the {} tokens of the vocabulary", vocabulary.len()));
                vocabulary.note_line(e.to_string());
                None
            }))
        };
        // What llama.cpp takes where a file does not say, as converters do not for what all models have.
        let or_usual = |id: Option<u32>, usual: u32| id.or(Some(usual).filter(|&id| (id as usize) < vocabulary.len()));
        let (mut bos, mut eos, mut unknown, mut sep) = (special("bos")?, special("eos")?, special("unknown")?, None);
        match kind {
            KindOfModel::Bpe | KindOfModel::Spm | KindOfModel::Gemma4 => {}
            KindOfModel::WordPiece => {
                bos = or_usual(special("cls")?.or(bos), 101);
                sep = or_usual(special("seperator")?, 102); // that is how it is spelt
                unknown = or_usual(unknown, 100);
            }
            KindOfModel::Unigram => (eos, unknown) = (or_usual(eos, 1), or_usual(unknown, 2)),
        }
        let mut other_ends = Vec::new();
        for name in OTHER_ENDS {
            other_ends.extend(special(name)?);
        }
        let ids = |key: &str| -> Result<Option<Vec<u32>>> {
            let Some(array) = metadata.array(key, ValueType::I32)? else { return Ok(None) };
            let mut ids = Vec::new();
            for number in array.bytes.as_chunks::<4>().0.iter().take(MAX_SPECIAL) {
                ids.push(u32::from_le_bytes(*number));
            }
            ids.retain(|&id| (id as usize) < vocabulary.len());
            Ok(Some(ids))
        };
        other_ends.extend(ids(END_TOKENS)?.unwrap_or_default());
        let model = match kind {
            KindOfModel::Bpe => Model::Bpe(Bpe::from_metadata(metadata, &vocabulary)?),
            KindOfModel::Spm => Model::Spm(Spm::from_metadata(metadata, &vocabulary, unknown, false)?),
            KindOfModel::Gemma4 => Model::Spm(Spm::from_metadata(metadata, &vocabulary, unknown, true)?),
            KindOfModel::WordPiece => Model::WordPiece(WordPiece::from_metadata(metadata, unknown)?),
            KindOfModel::Unigram => Model::Unigram(Unigram::from_metadata(metadata, &vocabulary, unknown)?),
        };
        let added = |which: &str, id: Option<u32>, default: bool| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.add_{which}_token");
            let add = metadata.bool(&key)?;
            if (add, id) == (Some(true), None) {
                let id_key = if which == "sep" { "seperator" } else { which };
                let e = metadata.error("a token is to be added that the file does not name, so none is", &key);
                vocabulary.note_line(e.limit(format!("tokenizer.ggml.{id_key}_token_id")).to_string());
            }
            Ok(id.filter(|_| add.unwrap_or(default)))
        };
        let (adds_bos, adds_eos) = match &model {
            Model::Bpe(bpe) => (bpe.adds_bos_by_default(), false),
            Model::Spm(_) | Model::WordPiece(_) => (true, false),
            Model::Unigram(_) => (false, true),
        };
        let mut before: Vec<u32> = added("bos", bos, adds_bos)?.into_iter().collect();
        let mut after: Vec<u32> = added("eos", eos, adds_eos)?.into_iter().collect();
        match kind {
            KindOfModel::WordPiece => after.extend(added("sep", sep, true)?),
            // Files say it has none, and llama.cpp knows better.
            KindOfModel::Gemma4 => before = bos.into_iter().collect(),
            KindOfModel::Bpe | KindOfModel::Spm | KindOfModel::Unigram => {}
        }
        if let Some(ids) = ids(PREFIX_TOKENS)? {
            before = ids;
        }
        if let Some(ids) = ids(SUFFIX_TOKENS)? {
            after = ids;
        }
        let mut named = [None; 3];
        for (id, keys) in named.iter_mut().zip(fim::KEYS) {
            for key in keys {
                *id = id.or(special(key)?);
            }
        }
        let (end_tokens, fim_tokens) = (OnceLock::new(), OnceLock::new());
        Ok(Self { vocabulary, model, bos, eos, other_ends, before, after, end_tokens, fim: named, fim_tokens })
    }

    /// The tokens of `text`.
    ///
    /// `add_special` puts BOS before it and EOS after it, if the file wants that. `parse_special` makes special
    /// tokens of their names in the text, such as `<|im_start|>`; without it, text from a stranger stays text.
    ///
    /// # Errors
    /// As [`Self::encode_at_most`].
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        self.encode_at_most(usize::MAX, text, add_special, parse_special, &Interrupt::never())
    }

    /// The tokens of `text` if there are no more than `at_most`, those that are added included.
    ///
    /// It ends as soon as it is certain that there are more: for a text that is far too long, before it is read.
    ///
    /// # Errors
    /// [`Error::TooManyTokens`] if there are more. [`Error::Interrupted`]. [`Error::OutOfMemory`]. [`Error::Format`] if a text has what a damaged vocabulary cannot spell. [`Error::Argument`] for a text
    /// longer than [`MAX_TEXT_LEN`]. [`Error::Changed`], as everywhere here.
    pub fn encode_at_most(
        &self,
        at_most: usize,
        text: &str,
        add_special: bool,
        parse_special: bool,
        interrupt: &Interrupt<'_>,
    ) -> Result<Vec<u32>> {
        let around = |ids| if add_special { ids } else { &[][..] };
        let mut out = Output::new(at_most, interrupt);
        around(&self.before).iter().try_for_each(|&id| out.push(id))?;
        self.vocabulary.checked(|| {
            if text.len() > MAX_TEXT_LEN {
                let got = text.len();
                return Err(Error::Argument(format!(
                    "the text is too long: {got} bytes, at most {MAX_TEXT_LEN} can be encoded"
                )));
            }
            match &self.model {
                Model::Bpe(bpe) => bpe.encode(&self.vocabulary, text, parse_special, &mut out),
                Model::Spm(spm) => spm.encode(&self.vocabulary, text, parse_special, &mut out),
                Model::WordPiece(words) => words.encode(&self.vocabulary, text, parse_special, &mut out),
                Model::Unigram(unigram) => unigram.encode(&self.vocabulary, text, parse_special, &mut out),
            }
        })?;
        around(&self.after).iter().try_for_each(|&id| out.push(id))?;
        Ok(out.ids)
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// As [`Self::decode_interruptibly`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.decode_interruptibly(ids, skip_special, &Interrupt::never())
    }

    /// The same, for as many tokens as one likes.
    ///
    /// # Errors
    /// As [`Self::token_bytes`]; [`Error::Interrupted`].
    pub fn decode_interruptibly(&self, ids: &[u32], skip_special: bool, interrupt: &Interrupt<'_>) -> Result<String> {
        let mut decoder = StreamDecoder::at_start(self, skip_special);
        let mut text = String::new();
        let mut pace = Pace::new(interrupt);
        self.vocabulary.checked(|| {
            let texts = self.vocabulary.texts(&mut pace)?;
            ids.iter().try_for_each(|&id| {
                let (bytes, kind) = self.piece(texts, id)?;
                pace.work(1 + bytes.len())?;
                decoder.accept(&mut text, &bytes, kind)
            })
        })?;
        decoder.finish_to(&mut text);
        Ok(text)
    }

    /// A decoder that is fed one token after another.
    pub fn decoder(&self, skip_special: bool) -> StreamDecoder<&Self> {
        StreamDecoder::new(self, skip_special)
    }

    /// What the token `id` stands for: not always whole characters. A special token stands for its name.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such token.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>> {
        self.vocabulary.checked(|| Ok(self.piece(self.texts()?, id)?.0))
    }

    /// Whether a text begins with a space that encoding put there.
    fn begins_with_a_space(&self) -> bool {
        match &self.model {
            Model::Bpe(_) => false,
            Model::Spm(spm) => spm.prefix != Prefix::Never,
            Model::Unigram(unigram) => unigram.prefix != Prefix::Never,
            Model::WordPiece(_) => true,
        }
    }

    /// The texts, for short work.
    fn texts(&self) -> Result<Texts<'_>> {
        self.vocabulary.texts(&mut Pace::new(&Interrupt::never()))
    }

    /// What the token `id` stands for, and its kind.
    fn piece(&self, texts: Texts<'_>, id: u32) -> Result<(Vec<u8>, Kind)> {
        let text = texts.get(id).ok_or_else(|| {
            Error::Argument(format!("no token {id}: the vocabulary has {} tokens", self.vocab_size()))
        })?;
        let kind = texts.kind(id);
        let bytes = match (&self.model, kind) {
            (_, Kind::Control | Kind::Unknown) => text.to_vec(),
            // A token that is not spelt in the alphabet stands for what it says, as in HF's tokenizers.
            (Model::Bpe(_), Kind::Normal) => bpe::unspell(text).unwrap_or_else(|| text.to_vec()),
            (Model::Bpe(_), _) => text.to_vec(),
            (Model::Spm(spm), kind) => space::unspell(text, spm.kind(text, kind)),
            (Model::Unigram(_), kind) => space::unspell(text, kind),
            (Model::WordPiece(_), Kind::Normal) => wordpiece::unspell(text),
            (Model::WordPiece(_), _) => text.to_vec(),
        };
        Ok((bytes, kind))
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The tokens that end an answer: those that the file says do, and those that are called like one that does.
    ///
    /// # Errors
    /// [`Error::Format`] if the file changed while it was in use.
    pub fn end_tokens(&self) -> Result<&[u32]> {
        let ids = get_or_try_init(&self.end_tokens, || self.vocabulary.checked(|| self.find_end_tokens()))?;
        Ok(ids)
    }

    fn find_end_tokens(&self) -> Result<Vec<u32>> {
        let mut ids = self.texts()?.named_ends().to_vec();
        ids.extend(self.eos.iter().chain(&self.other_ends));
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// The tokens whose whole text is `name` and that do not come out as text: for a stop string, which is else looked for
    /// in the text of an answer. As a rule none or one.
    ///
    /// # Errors
    /// [`Error::Format`] if the file changed while it was in use.
    pub fn special_tokens(&self, name: &str) -> Result<Vec<u32>> {
        self.vocabulary.checked(|| {
            let texts = self.texts()?;
            let is_it = |&id: &u32| texts.kind(id).is_special() && texts.get(id) == Some(name.as_bytes());
            Ok(self.vocabulary.ids().filter(is_it).collect())
        })
    }

    /// The tokens that are written before what comes before a gap, before what comes after it, and before what is to fill it;
    /// `None` if the model has not learnt to fill gaps (FIM).
    ///
    /// # Errors
    /// [`Error::Format`] if the file changed while it was in use.
    pub fn fim_tokens(&self) -> Result<Option<[u32; 3]>> {
        if let Some(known) = self.fim_tokens.get() {
            return Ok(*known);
        }
        let mut found = match self.fim {
            [Some(before), Some(after), Some(middle)] => Some([before, after, middle]),
            _ => None,
        };
        for names in fim::NAMES {
            if found.is_none() {
                let mut ids = Vec::new();
                for name in names {
                    ids.extend(self.special_tokens(name)?.first());
                }
                found = ids.try_into().ok();
            }
        }
        Ok(*self.fim_tokens.get_or_init(|| found))
    }

    /// What a user should know about the vocabulary, in a line each: what was found odd since the last call. Opening finds
    /// some, and so does the first call of each method that encodes.
    pub fn take_notes(&self) -> Vec<String> {
        self.vocabulary.take_notes()
    }

    /// Whether the token `id` ends an answer.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_tokens().is_ok_and(|ids| ids.contains(&id))
    }

    /// Whether the token `id` stands for something other than text. One that ends an answer by its name does, of whatever
    /// type it is.
    pub fn is_special(&self, id: u32) -> bool {
        self.texts().is_ok_and(|texts| texts.kind(id).is_special())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let model = match self.model {
            Model::Bpe(_) => "gpt2",
            Model::Spm(_) => "llama",
            Model::WordPiece(_) => "bert",
            Model::Unigram(_) => "t5",
        };
        write!(f, "Tokenizer({model}, {} tokens)", self.vocab_size())
    }
}
