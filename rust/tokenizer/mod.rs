//! Text to token ids and back, by the vocabulary in a file's metadata.
//!
//! Opening looks at types, lengths and special ids, and walks nothing. Decoding needs to know where each
//! token's text is, encoding needs indexes over the texts; each is built when it is first used, of numbers
//! only: the texts stay in the map.
//!
//! Two kinds of vocabulary are known, named by `tokenizer.ggml.model`: [`bpe`] (`gpt2`), whose oracle is HF's
//! `tokenizers`, and [`spm`] (`llama`), whose oracle is `sentencepiece`.

mod bpe;
mod merge;
mod pretokenize;
mod spm;
mod stream;
mod vocabulary;

use std::sync::OnceLock;

pub use stream::StreamDecoder;

use self::bpe::Bpe;
use self::spm::Spm;
use self::vocabulary::{Kind, Vocabulary, get_or_try_init, shown};
use crate::checkpoint::Metadata;
use crate::error::{Error, Result};

/// Longest text, in bytes. Symbols are counted in 32 bits, and normalising and spelling may make a text six
/// times as long.
pub const MAX_TEXT_LEN: usize = 512 << 20;

const MODEL: &str = "tokenizer.ggml.model";

/// Control tokens that end an answer by what they are called, in whichever model they occur.
const END_OF_GENERATION: [&str; 14] = [
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_utterance>",
];

/// The tokenizer of a model file.
///
/// ```no_run
/// let checkpoint = llama_rs::formats::open("model.gguf".as_ref())?;
/// let tokenizer = llama_rs::tokenizer::Tokenizer::from_metadata(&checkpoint.metadata)?;
/// let ids = tokenizer.encode("Once upon a time", true, false)?;
/// assert_eq!(tokenizer.decode(&ids, true)?, "Once upon a time");
/// # Ok::<(), llama_rs::Error>(())
/// ```
pub struct Tokenizer {
    vocabulary: Vocabulary,
    model: Model,
    bos: Option<u32>,
    eos: Option<u32>,
    other_ends: [Option<u32>; 2], // of a turn, of a message
    add_bos: Option<u32>,         // what to put before a text
    add_eos: Option<u32>,         // and after it
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
    /// [`Error::Format`] if a key is missing, has the wrong type or length, or names a token that does not
    /// exist; [`Error::Unsupported`] for a kind of vocabulary or a pre-tokenizer that we do not know.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let unsupported = |what| Error::Unsupported { path: metadata.path().to_path_buf(), what };
        let name = metadata.str(MODEL)?.ok_or_else(|| metadata.error("missing key", MODEL))?;
        if !matches!(&*name, "gpt2" | "llama") {
            let name = shown(name.as_bytes());
            return Err(unsupported(format!("vocabulary of type {name} ({MODEL}); supported are gpt2 and llama")));
        }
        let vocabulary = Vocabulary::from_metadata(metadata)?;
        let special = |name: &str| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match metadata.usize(&key)? {
                Some(id) if id >= vocabulary.len() => {
                    let e = metadata.error("no such token", &key).got(id);
                    Err(e.limit(format!("less than the {} tokens of the vocabulary", vocabulary.len())).into())
                }
                id => Ok(id.map(|id| id as u32)),
            }
        };
        let (bos, eos, unknown) = (special("bos")?, special("eos")?, special("unknown")?);
        let other_ends = [special("eot")?, special("eom")?];
        let (model, adds_bos_by_default) = if name == "llama" {
            (Model::Spm(Spm::from_metadata(metadata, &vocabulary, unknown)?), true)
        } else {
            let bpe = Bpe::from_metadata(metadata)?;
            let adds_bos = bpe.adds_bos_by_default();
            (Model::Bpe(bpe), adds_bos)
        };
        let added = |which: &str, id: Option<u32>, default: bool| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.add_{which}_token");
            match (metadata.bool(&key)?, id) {
                (Some(true), None) => {
                    let e = metadata.error("a token is to be added that the file does not name", &key).got(true);
                    Err(e.limit(format!("tokenizer.ggml.{which}_token_id")).into())
                }
                (add, id) => Ok(id.filter(|_| add.unwrap_or(default))),
            }
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
    /// [`Error::Format`] if the vocabulary is damaged: its contents are checked when they are first used.
    /// [`Error::Argument`] for a text longer than [`MAX_TEXT_LEN`]. [`Error::Changed`], as everywhere here.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT_LEN {
            let got = text.len();
            return Err(Error::Argument(format!(
                "the text is too long: {got} bytes, at most {MAX_TEXT_LEN} can be encoded"
            )));
        }
        let mut ids = Vec::new();
        ids.extend(self.add_bos.filter(|_| add_special));
        self.vocabulary.checked(|| match &self.model {
            Model::Bpe(bpe) => bpe.encode(&self.vocabulary, text, parse_special, &mut ids),
            Model::Spm(spm) => spm.encode(&self.vocabulary, text, parse_special, &mut ids),
        })?;
        ids.extend(self.add_eos.filter(|_| add_special));
        Ok(ids)
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// As [`Self::token_bytes`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut decoder = StreamDecoder::at_start(self, skip_special);
        let mut text = String::new();
        self.vocabulary.checked(|| ids.iter().try_for_each(|&id| decoder.push_to(&mut text, id)))?;
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
    /// [`Error::Argument`] if there is no such token, [`Error::Format`] if its text is damaged.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>> {
        self.vocabulary.checked(|| self.bytes_of(id))
    }

    fn bytes_of(&self, id: u32) -> Result<Vec<u8>> {
        let texts = self.vocabulary.texts()?;
        let text = texts.get(id).ok_or_else(|| {
            Error::Argument(format!("no token {id}: the vocabulary has {} tokens", self.vocab_size()))
        })?;
        let kind = self.vocabulary.kind(id);
        let (bytes, damage) = match (&self.model, kind) {
            (_, Kind::Control | Kind::Unknown) => (None, ""),
            (Model::Bpe(_), Kind::Normal) => (bpe::unspell(text), "token is not spelt in the byte-level alphabet"),
            (Model::Bpe(_), _) => (None, ""),
            (Model::Spm(_), kind) => (spm::unspell(text, kind), "token is neither UTF-8 nor a byte"),
        };
        match bytes {
            Some(bytes) => Ok(bytes),
            None if damage.is_empty() => Ok(text.to_vec()),
            None => Err(texts.error(damage, id).into()),
        }
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

    /// The tokens that end an answer: of a text, of a turn, of a message, and control tokens that are known to.
    ///
    /// # Errors
    /// [`Error::Format`] if the file changed while it was in use.
    pub fn end_tokens(&self) -> Result<&[u32]> {
        let ids = get_or_try_init(&self.end_tokens, || self.vocabulary.checked(|| self.find_end_tokens()))?;
        Ok(ids)
    }

    fn find_end_tokens(&self) -> Result<Vec<u32>> {
        let texts = self.vocabulary.texts()?;
        let is_end = |id: u32| {
            let text = texts.get(id).unwrap_or_default();
            END_OF_GENERATION.iter().any(|end| end.as_bytes() == text)
        };
        let control = self.vocabulary.ids().filter(|&id| self.vocabulary.kind(id) == Kind::Control);
        let mut ids: Vec<u32> = control.filter(|&id| is_end(id)).collect();
        ids.extend(self.eos.into_iter().chain(self.other_ends.into_iter().flatten()));
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Whether the token `id` ends an answer.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_tokens().is_ok_and(|ids| ids.contains(&id))
    }

    /// Whether the token `id` stands for something other than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.kind(id).is_special()
    }

    fn is_byte(&self, id: u32) -> bool {
        self.vocabulary.kind(id) == Kind::Byte
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
