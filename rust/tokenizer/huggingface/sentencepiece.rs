//! `tokenizer.model`, SentencePiece's own file: a message of protobuf, of which we read the few fields that matter.

use std::path::Path;

use super::{Entries, Entry, MAX_TOKENS, read_file};
use crate::error::{Error, FormatError, Result};

const MAX_LEN: usize = 128 << 20;

/// The kinds of models, by `trainer_spec.model_type`.
const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// Reads the file at `path`.
pub(super) fn read(path: &Path, out: &mut Entries) -> Result<()> {
    let bytes = read_file(path, MAX_LEN)?;
    let damaged = || FormatError::new(path, "not a SentencePiece model, or a damaged one");
    let model = Model::read(&bytes).ok_or_else(damaged)?;
    if model.pieces.is_empty() || model.pieces.len() > MAX_TOKENS {
        return Err(damaged().named("pieces").got(model.pieces.len()).limit(format!("1 to {MAX_TOKENS}")).into());
    }
    let is_unigram = match model.model_type {
        UNIGRAM => true,
        BPE => false,
        other => {
            let what = format!("a SentencePiece model of type {other}; supported are unigram (1) and BPE (2)");
            return Err(Error::Unsupported { path: path.to_path_buf(), what });
        }
    };
    out.set("model", Entry::Str(if is_unigram { "t5" } else { "llama" }.into()));
    out.set("tokens", Entry::Strings(model.pieces.iter().map(|piece| piece.text.to_vec()).collect()));
    out.set("scores", Entry::F32s(model.pieces.iter().map(|piece| piece.score).collect()));
    out.set("token_type", Entry::I32s(model.pieces.iter().map(|piece| piece.kind).collect()));
    out.set("add_space_prefix", Entry::Bool(model.add_dummy_prefix));
    out.set("remove_extra_whitespaces", Entry::Bool(model.remove_extra_whitespaces));
    if !model.charsmap.is_empty() {
        out.set("precompiled_charsmap", Entry::Bytes(model.charsmap.to_vec()));
    }
    for (id, key) in [
        (model.unk, "unknown_token_id"),
        (model.bos, "bos_token_id"),
        (model.eos, "eos_token_id"),
        (model.pad, "padding_token_id"),
    ] {
        if (0..model.pieces.len() as i64).contains(&id) {
            out.set(key, Entry::U32(id as u32));
        }
    }
    Ok(())
}

struct Piece<'a> {
    text: &'a [u8],
    score: f32,
    kind: i32, // GGUF numbers them as SentencePiece does
}

struct Model<'a> {
    pieces: Vec<Piece<'a>>,
    model_type: u64,
    unk: i64,
    bos: i64,
    eos: i64,
    pad: i64,
    charsmap: &'a [u8],
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
}

impl<'a> Model<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            model_type: UNIGRAM,
            unk: 0,
            bos: 1,
            eos: 2,
            pad: -1,
            charsmap: &[],
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
        };
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(bytes)) => model.pieces.push(Self::piece(bytes)?),
                (2, Value::Bytes(bytes)) => model.trainer_spec(bytes)?,
                (3, Value::Bytes(bytes)) => model.normalizer_spec(bytes)?,
                _ => {}
            }
        }
        Some(model)
    }

    fn piece(bytes: &'a [u8]) -> Option<Piece<'a>> {
        let mut piece = Piece { text: &[], score: 0.0, kind: 1 };
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(text)) => piece.text = text,
                (2, Value::Four(bytes)) => piece.score = f32::from_le_bytes(bytes),
                (3, Value::Number(kind)) => piece.kind = kind as i32,
                _ => {}
            }
        }
        Some(piece)
    }

    fn trainer_spec(&mut self, bytes: &'a [u8]) -> Option<()> {
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            let Value::Number(value) = value else { continue };
            match number {
                3 => self.model_type = value,
                40 => self.unk = value as i64,
                41 => self.bos = value as i64,
                42 => self.eos = value as i64,
                43 => self.pad = value as i64,
                _ => {}
            }
        }
        Some(())
    }

    fn normalizer_spec(&mut self, bytes: &'a [u8]) -> Option<()> {
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (2, Value::Bytes(bytes)) => self.charsmap = bytes,
                (3, Value::Number(value)) => self.add_dummy_prefix = value != 0,
                (4, Value::Number(value)) => self.remove_extra_whitespaces = value != 0,
                _ => {}
            }
        }
        Some(())
    }
}

/// The fields of a message.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    Eight,
}

impl<'a> Fields<'a> {
    /// The next field; the outer `None` if the message is damaged, the inner one if it ended.
    #[allow(clippy::should_implement_trait)] // an iterator would say one thing for two
    fn next(&mut self) -> Option<Option<(u64, Value<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Eight
            }
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Four(self.take(4)?.try_into().ok()?),
            _ => return None, // groups, which nobody writes
        };
        Some(Some((tag >> 3, value)))
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A number of seven bits a byte, the lowest first.
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}
