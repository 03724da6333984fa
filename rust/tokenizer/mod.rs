//! Text to token ids and back, by the vocabulary in a file's metadata.
//!
//! Opening looks at types, lengths and special ids, and walks nothing. Decoding needs to know where each
//! token's text is, encoding needs indexes over the texts; each is built when it is first used, of numbers
//! only: the texts stay in the map.
//!
//! Two kinds of vocabulary are known, named by `tokenizer.ggml.model`: [`bpe`] (`gpt2`), whose oracle is HF's
//! `tokenizers`, and [`spm`] (`llama`), whose oracle is `sentencepiece`.

//!
//! What no text comes to makes no file useless: entries that are odd are noted ([`Tokenizer::take_notes`]) and left out.

mod bpe;
mod ends;
mod matcher;
mod merge;
mod pace;
mod pre;
mod spm;
mod stream;
mod text_index;
mod vocabulary;

use std::sync::OnceLock;

pub use stream::StreamDecoder;

use self::bpe::Bpe;
use self::pace::{Output, Pace};
use self::spm::Spm;
use self::vocabulary::{Kind, Texts, Vocabulary, get_or_try_init, shown};
use crate::checkpoint::{Metadata, Value};
use crate::error::{Error, Result};
use crate::threads::Interrupt;

/// Longest text, in bytes. Symbols are counted in 32 bits, and normalising and spelling may make a text six
/// times as long.
pub const MAX_TEXT_LEN: usize = 512 << 20;

const MODEL: &str = "tokenizer.ggml.model";

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
    add_bos: Option<u32>, // what to put before a text
    add_eos: Option<u32>, // and after it
    end_tokens: OnceLock<Vec<u32>>,
}

enum Model {
    Bpe(Bpe),
    Spm(Spm),
}

impl Tokenizer {
    /// Reads what the metadata says about the vocabulary; neither walks nor indexes it.
    ///
    /// # Errors
    /// [`Error::Format`] if a key is missing or has the wrong type or length; [`Error::Unsupported`] for a kind of
    /// vocabulary or a pre-tokenizer that we do not know.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let unsupported = |what| Error::Unsupported { path: metadata.path().to_path_buf(), what };
        let name = metadata.str(MODEL)?.ok_or_else(|| metadata.error("missing key", MODEL))?;
        if !matches!(&*name, "gpt2" | "llama") {
            let name = shown(name.as_bytes());
            return Err(unsupported(format!("vocabulary of type {name} ({MODEL}); supported are gpt2 and llama")));
        }
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
        let (bos, eos, unknown) = (special("bos")?, special("eos")?, special("unknown")?);
        let mut other_ends = Vec::new();
        for name in OTHER_ENDS {
            other_ends.extend(special(name)?);
        }
        let (model, adds_bos_by_default) = if name == "llama" {
            (Model::Spm(Spm::from_metadata(metadata, &vocabulary, unknown)?), true)
        } else {
            let bpe = Bpe::from_metadata(metadata, &vocabulary)?;
            let adds_bos = bpe.adds_bos_by_default();
            (Model::Bpe(bpe), adds_bos)
        };
        let added = |which: &str, id: Option<u32>, default: bool| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.add_{which}_token");
            let add = metadata.bool(&key)?;
            if (add, id) == (Some(true), None) {
                let e = metadata.error("a token is to be added that the file does not name, so none is", &key);
                vocabulary.note_line(e.limit(format!("tokenizer.ggml.{which}_token_id")).to_string());
            }
            Ok(id.filter(|_| add.unwrap_or(default)))
        };
        let (add_bos, add_eos) = (added("bos", bos, adds_bos_by_default)?, added("eos", eos, false)?);
        Ok(Self { vocabulary, model, bos, eos, other_ends, add_bos, add_eos, end_tokens: OnceLock::new() })
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
        let (before, after) = (self.add_bos.filter(|_| add_special), self.add_eos.filter(|_| add_special));
        let mut out = Output::new(at_most, interrupt);
        before.into_iter().try_for_each(|id| out.push(id))?;
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
            }
        })?;
        after.into_iter().try_for_each(|id| out.push(id))?;
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
            (Model::Spm(_), kind) => spm::unspell(text, kind),
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
        };
        write!(f, "Tokenizer({model}, {} tokens)", self.vocab_size())
    }
}
