//! The files of llama.cpp before GGUF (March to August 2023): GGMF and GGJT, of LLaMA models.
//!
//! ```text
//! "fmgg" or "tjgg"  version:u32  n_vocab n_embd n_mult n_head n_layer n_rot ftype:u32
//! n_vocab  x  length:u32 bytes score:f32
//! n_dims:u32 length:u32 type:u32 dims:u32[n_dims] name, padding to 32 in GGJT, the data; until the end of the file
//! ```
//!
//! The keys of GGUF follow from these numbers and from the sizes of tensors; what the files do not say (the context, the
//! epsilon of norms) is what LLaMA had. Blocks of GGJT version 3 are those of today. Older blocks are not: such files are
//! refused by name, as are those from before March, whose vocabulary has no scores.

use std::sync::Arc;

use super::{Format, OpenPart, gguf};
use crate::checkpoint::{Checkpoint, Pairs, TensorInfo};
use crate::error::{Error, FormatError, Result};
use crate::mapping::{Bytes, Mapping};
use crate::quant::DType;
use crate::tensor::TensorView;

/// The row in the table.
pub const FORMAT: Format = Format { name: "GGJT", probe, open };

const GGMF: &[u8] = b"fmgg";
const GGJT: &[u8] = b"tjgg";
const REMEDY: &str = "take a GGUF file of the model, or convert the original again";

/// Longest name of a tensor.
const MAX_NAME_LEN: usize = 256;
/// What LLaMA was trained with.
const CONTEXT_LENGTH: u32 = 2048;
const NORM_EPS: f32 = 1e-6;

fn probe(data: &[u8]) -> bool {
    data.starts_with(GGMF) || data.starts_with(GGJT)
}

fn open(map: &Arc<Mapping>, _: &OpenPart) -> Result<Checkpoint> {
    let (pairs, tensors, header) = map.checked(|| parse(map))?;
    let (metadata, _, made) = gguf::made(&pairs, &[], map.path())?;
    Checkpoint::new(metadata, tensors, vec![(Arc::clone(map), header), (made, 0)])
}

/// The keys, the tensors, and the bytes before the first of them.
fn parse(map: &Arc<Mapping>) -> Result<(Pairs, Vec<TensorInfo>, usize)> {
    let mut r = Reader { map, data: map.as_slice(), pos: 4 };
    let is_ggjt = r.data.starts_with(GGJT);
    let version = r.u32("version")?;
    let name = if is_ggjt { "GGJT" } else { "GGMF" };
    if !(1..=if is_ggjt { 3 } else { 1 }).contains(&version) {
        return Err(r.unsupported(format!("{name} version {version}: {REMEDY}")));
    }
    let [n_vocab, dim, _, n_heads, n_layers, n_rot, _] = r.numbers::<7>("header")?;
    let limit = r.data.len() / 8;
    for (what, n) in [("vocabulary", n_vocab), ("embedding", dim), ("number of heads", n_heads)] {
        if n == 0 || n as usize > limit {
            return Err(r.error(&format!("bad {what}")).got(n).limit(format!("1 to {limit}")).into());
        }
    }
    if n_layers == 0 || n_layers as usize > r.data.len() / 64 || dim % n_heads != 0 {
        return Err(r.error("bad number of layers or heads").got(format!("{n_layers} and {n_heads}")).into());
    }
    let mut tokens = Vec::new();
    let mut scores = Vec::new();
    for _ in 0..n_vocab {
        let len = r.u32("length of a token")? as usize;
        tokens.push(r.take(len, "token")?);
        scores.push(f32::from_le_bytes(r.u32("score")?.to_le_bytes()));
    }
    let header = r.pos;
    let mut tensors = Vec::new();
    while r.pos < r.data.len() {
        tensors.push(r.tensor(is_ggjt, version)?);
    }
    let find = |name: &str| tensors.iter().find(|tensor| tensor.name() == name).map(|tensor| &tensor.view);
    let missing = |name: &str| FormatError::new(map.path(), "missing tensor").named(name);
    let hidden = find("blk.0.ffn_gate.weight").ok_or_else(|| missing("layers.0.feed_forward.w1.weight"))?.n_rows();
    let keys = find("blk.0.attn_k.weight").ok_or_else(|| missing("layers.0.attention.wk.weight"))?.n_rows();
    let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX); // a dimension of the file
    let mut pairs = Pairs::new();
    pairs.str("general.architecture", "llama");
    pairs.u32("llama.block_count", n_layers);
    pairs.u32("llama.context_length", CONTEXT_LENGTH);
    pairs.u32("llama.embedding_length", dim);
    pairs.u32("llama.feed_forward_length", narrow(hidden));
    pairs.u32("llama.attention.head_count", n_heads);
    pairs.u32("llama.attention.head_count_kv", narrow(keys / (dim / n_heads) as usize));
    pairs.u32("llama.rope.dimension_count", n_rot);
    pairs.f32("llama.attention.layer_norm_rms_epsilon", NORM_EPS);
    vocabulary(&tokens, &scores, &mut pairs);
    Ok((pairs, tensors, header))
}

/// The vocabulary of LLaMA: one unknown and two control tokens, the 256 bytes, then text with spaces as they are.
fn vocabulary(tokens: &[&[u8]], scores: &[f32], pairs: &mut Pairs) {
    const BYTES: std::ops::Range<usize> = 3..259;
    let is_byte = |id: usize, text: &[u8]| BYTES.contains(&id) && text.len() <= 1;
    let texts = tokens.iter().enumerate().map(|(id, text)| match id {
        0 => b"<unk>".to_vec(),
        1 => b"<s>".to_vec(),
        2 => b"</s>".to_vec(),
        _ if is_byte(id, text) => format!("<0x{:02X}>", id - BYTES.start).into_bytes(),
        _ => text
            .iter()
            .flat_map(|&b| if b == b' ' { "\u{2581}".as_bytes() } else { std::slice::from_ref(&b) }.to_vec())
            .collect(),
    });
    let kinds: Vec<i32> = tokens
        .iter()
        .enumerate()
        .map(|(id, text)| match id {
            0 => 2,
            1 | 2 => 3,
            _ if is_byte(id, text) => 6,
            _ => 1,
        })
        .collect();
    pairs.str("tokenizer.ggml.model", "llama");
    pairs.strs("tokenizer.ggml.tokens", texts);
    pairs.f32s("tokenizer.ggml.scores", scores);
    pairs.i32s("tokenizer.ggml.token_type", &kinds);
    pairs.u32("tokenizer.ggml.unknown_token_id", 0);
    pairs.u32("tokenizer.ggml.bos_token_id", 1);
    pairs.u32("tokenizer.ggml.eos_token_id", 2);
}

/// What GGUF calls a tensor.
fn name_in_gguf(name: &str) -> Option<String> {
    const WHOLE: &[(&str, &str)] = &[
        ("tok_embeddings.weight", "token_embd.weight"),
        ("norm.weight", "output_norm.weight"),
        ("output.weight", "output.weight"),
    ];
    const IN_LAYERS: &[(&str, &str)] = &[
        ("attention_norm.weight", "attn_norm.weight"),
        ("attention.wq.weight", "attn_q.weight"),
        ("attention.wk.weight", "attn_k.weight"),
        ("attention.wv.weight", "attn_v.weight"),
        ("attention.wo.weight", "attn_output.weight"),
        ("ffn_norm.weight", "ffn_norm.weight"),
        ("feed_forward.w1.weight", "ffn_gate.weight"),
        ("feed_forward.w2.weight", "ffn_down.weight"),
        ("feed_forward.w3.weight", "ffn_up.weight"),
    ];
    let of =
        |table: &[(&str, &'static str)], name: &str| table.iter().find(|(from, _)| *from == name).map(|(_, to)| *to);
    match name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        None => of(WHOLE, name).map(String::from),
        Some((layer, part)) => {
            let layer: u32 = layer.parse().ok()?;
            of(IN_LAYERS, part).map(|part| format!("blk.{layer}.{part}"))
        }
    }
}

/// A position in the file, and checked steps forward from it.
struct Reader<'a> {
    map: &'a Arc<Mapping>,
    data: &'a [u8],
    pos: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, what: &str) -> FormatError {
        FormatError::new(self.map.path(), what)
    }

    fn unsupported(&self, what: String) -> Error {
        Error::Unsupported { path: self.map.path().into(), what }
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let rest = &self.data[self.pos..];
        let Some(taken) = rest.get(..n) else {
            let what = format!("{what} reaches past the end of the file (is the download complete?)");
            let e = self.error(&what).at(self.pos).got(format!("{n} bytes"));
            return Err(e.limit(format!("at most {}", rest.len())).into());
        };
        self.pos += n;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("took four")))
    }

    fn numbers<const N: usize>(&mut self, what: &str) -> Result<[u32; N]> {
        let mut numbers = [0; N];
        for n in &mut numbers {
            *n = self.u32(what)?;
        }
        Ok(numbers)
    }

    fn tensor(&mut self, is_ggjt: bool, version: u32) -> Result<TensorInfo> {
        let at = self.pos;
        let [n_dims, name_len, id] = self.numbers::<3>("tensor")?;
        if !(1..=2).contains(&n_dims) {
            return Err(self.error("bad number of dimensions").at(at).got(n_dims).limit("1 or 2").into());
        }
        if name_len as usize > MAX_NAME_LEN {
            let e = self.error("tensor name too long").at(at).got(name_len);
            return Err(e.limit(format!("at most {MAX_NAME_LEN} bytes")).into());
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            shape.push(self.u32("dimension")? as usize);
        }
        let name_at = self.pos;
        let name = String::from_utf8_lossy(self.take(name_len as usize, "tensor name")?).into_owned(); // a copy
        let Some(dtype) = DType::from_id(id) else {
            return Err(self.error("unknown tensor type").at(at).named(&name).got(id).into());
        };
        let is_of_today = is_ggjt && version == 3 || matches!(dtype, DType::F32 | DType::F16);
        if !is_of_today {
            let what = format!("blocks of {dtype} as they were before June 2023: {REMEDY}");
            return Err(self.unsupported(what));
        }
        if is_ggjt {
            self.pos = self.pos.next_multiple_of(32).min(self.data.len());
        }
        let rows = shape[1..].iter().product::<usize>(); // one dimension of 32 bits at most
        let size = dtype.row_bytes(shape[0]).and_then(|row| row.checked_mul(rows)).filter(|&size| size > 0);
        let bad = || self.error("rows that are no whole number of blocks").named(&name).got(format!("{shape:?}"));
        let size = size.ok_or_else(bad)?;
        let start = self.pos;
        self.take(size, "tensor")?;
        let Some(in_gguf) = name_in_gguf(&name) else {
            let name: String = name.chars().take(80).flat_map(char::escape_debug).collect();
            return Err(self
                .unsupported(format!("tensor {name}: LLaMA has none, and other models of these files are no LLaMA")));
        };
        let bytes = Bytes::new(self.map, start..self.pos).expect("taken from the map");
        let view = TensorView::new(bytes, dtype, &shape).expect("sizes were compared");
        Ok(TensorInfo::new(in_gguf.into(), name_at, view))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A model of one layer with two heads of two numbers and six hidden ones, whose weights count up.
    fn model(magic: &[u8], version: u32, dtype: DType) -> Vec<u8> {
        let dim = dtype.block_len().max(4) as u32;
        let mut out = magic.to_vec();
        out.extend([version, 261, dim, 256, 2, 1, dim / 2, 0].map(u32::to_le_bytes).concat());
        for id in 0..261u32 {
            let text = match id {
                0..3 => b" x".to_vec(),
                3..259 => vec![(id - 3) as u8],
                _ => " a b".as_bytes().to_vec(),
            };
            out.extend([&(text.len() as u32).to_le_bytes()[..], &text, &(-(id as f32)).to_le_bytes()].concat());
        }
        let hidden = 2 * dim;
        let whole = [("tok_embeddings", dim, 261), ("output", dim, 261), ("norm", dim, 1)];
        let layer = [("wq", dim, dim), ("wk", dim, dim / 2), ("wv", dim, dim / 2), ("wo", dim, dim)];
        let layer = layer.map(|(name, columns, rows)| (format!("layers.0.attention.{name}"), columns, rows));
        let ffn = [("w1", dim, hidden), ("w2", hidden, dim), ("w3", dim, hidden)];
        let ffn = ffn.map(|(name, columns, rows)| (format!("layers.0.feed_forward.{name}"), columns, rows));
        let norms = ["attention_norm", "ffn_norm"].map(|name| (format!("layers.0.{name}"), dim, 1));
        let whole = whole.map(|(name, columns, rows)| (name.to_string(), columns, rows));
        for (name, columns, rows) in whole.into_iter().chain(layer).chain(ffn).chain(norms) {
            let name = format!("{name}.weight");
            let dtype = if rows == 1 { DType::F32 } else { dtype };
            let dims: &[u32] = if rows == 1 { &[columns] } else { &[columns, rows] };
            out.extend([dims.len() as u32, name.len() as u32, dtype.id()].map(u32::to_le_bytes).concat());
            dims.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(name.as_bytes());
            if magic == GGJT {
                out.resize(out.len().next_multiple_of(32), 0);
            }
            let size = dtype.row_bytes(columns as usize).unwrap() * rows as usize;
            out.extend((0..size).map(|i| i as u8));
        }
        out
    }

    fn read(bytes: Vec<u8>) -> Result<Checkpoint> {
        open(&Mapping::from_vec(bytes, Path::new("old.bin")), &|_| unreachable!())
    }

    #[test]
    fn it_has_the_keys_and_names_of_gguf() {
        for (magic, version, dtype) in [(GGJT, 3, DType::Q4_0), (GGJT, 1, DType::F16), (GGMF, 1, DType::F32)] {
            let file = read(model(magic, version, dtype)).unwrap();
            let dim = dtype.block_len().max(4);
            let number = |key: &str| file.metadata.usize(&format!("llama.{key}")).unwrap().unwrap();
            assert_eq!(number("embedding_length"), dim);
            assert_eq!(number("feed_forward_length"), 2 * dim);
            assert_eq!((number("attention.head_count"), number("attention.head_count_kv")), (2, 1));
            let names: Vec<_> = file.tensors().iter().map(TensorInfo::name).collect();
            assert_eq!(names[..4], ["token_embd.weight", "output.weight", "output_norm.weight", "blk.0.attn_q.weight"]);
            let down = file.tensor("blk.0.ffn_down.weight").unwrap();
            assert_eq!((down.dtype(), down.shape()), (dtype, &[2 * dim, dim][..]));
            assert!(down.bytes().iter().enumerate().all(|(i, &b)| b == i as u8));
            let tokens = file.metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap();
            let tokens: Vec<_> = tokens.iter().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect();
            assert_eq!(tokens[..5], ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>"]);
            assert_eq!(tokens[258..], ["<0xFF>", "\u{2581}a\u{2581}b", "\u{2581}a\u{2581}b"]);
        }
    }

    #[test]
    fn what_we_do_not_read_is_said_by_name() {
        let good = || model(GGJT, 3, DType::F32);
        let changed = |at: usize, to: u32| {
            let mut bytes = good();
            bytes[at..at + 4].copy_from_slice(&to.to_le_bytes());
            bytes
        };
        let renamed = |from: &str, to: &str| {
            let mut bytes = good();
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            bytes
        };
        for (bytes, expected) in [
            (changed(4, 4), "not supported: GGJT version 4: take a GGUF file of the model"),
            (model(GGMF, 2, DType::F32), "not supported: GGMF version 2"),
            (model(GGJT, 2, DType::Q4_0), "blocks of Q4_0 as they were before June 2023: take a GGUF file"),
            (model(GGMF, 1, DType::Q4_0), "blocks of Q4_0 as they were before June 2023"),
            (changed(8, 0), "bad vocabulary: got 0"),
            (changed(8, u32::MAX), "bad vocabulary: got 4294967295"),
            (changed(12, u32::MAX), "bad embedding: got 4294967295"),
            (changed(20, 3), "bad number of layers or heads: got 1 and 3"),
            (changed(24, u32::MAX), "bad number of layers or heads: got 4294967295 and 2"),
            (changed(36, u32::MAX), "token reaches past the end of the file"),
            (
                good()[..good().len() - 1].to_vec(),
                "tensor reaches past the end of the file (is the download complete?)",
            ),
            (renamed("layers.0.ffn_norm", "layers.0.ffn_gnom"), "tensor layers.0.ffn_gnom.weight: LLaMA has none"),
            (renamed("layers.0.feed_forward.w1", "layers.1"), "missing tensor (layers.0.feed_forward.w1.weight)"),
            (b"tjgg".to_vec(), "version reaches past the end of the file"),
        ] {
            let e = read(bytes).err().unwrap_or_else(|| panic!("{expected}")).to_string();
            assert!(e.contains(expected), "{expected}: {e}");
        }
    }
}
