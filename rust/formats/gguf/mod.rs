//! GGUF, versions 1 to 3, little-endian: the header is read and validated once, over a byte slice.
//!
//! Specification: `docs/gguf.md` of the ggml project. Layout of a file:
//!
//! ```text
//! "GGUF" version:u32 n_tensors:u64 n_kv:u64
//! n_kv      x  key:string type:u32 value
//! n_tensors x  name:string n_dims:u32 dims:u64[n_dims] type:u32 offset:u64
//! padding to general.alignment, then the data; offsets count from here
//! ```
//!
//! A string is a `u64` length and bytes. Names are copied before they are checked; strings, arrays and tensors are ranges
//! of the map. The element offsets of a string array are not kept; whoever needs them walks it.
//!
//! The walk over the vocabulary is most of the work of opening a file: each string's length has to be
//! read to know where the next one starts, one load after another.

#![forbid(unsafe_code)]

mod parts;
mod split;
mod v1;
mod write;

use std::path::Path;
use std::sync::Arc;

use super::Format;
use crate::checkpoint::{Array, Entry, MAX_ARRAY_DEPTH, Metadata, Pairs, TensorInfo, Value, ValueType};
use crate::error::{Error, FormatError, Result};
use crate::mapping::{Bytes, Mapping};
use crate::quant::DType;
use crate::tensor::TensorView;

pub use parts::{Limit, merge, split};
pub use write::{Planned, Sink, write};

/// The row in the table.
pub const FORMAT: Format = Format { name: "GGUF", probe: |data| data.starts_with(b"GGUF"), open: split::open };

/// Largest `general.alignment` that we accept. Real files use 32.
pub const MAX_ALIGNMENT: usize = 1 << 20;
/// Longest key, by the specification.
pub const MAX_KEY_LEN: usize = 65_535;
/// Longest tensor name; ggml itself stops at 64.
pub const MAX_NAME_LEN: usize = 1_024;
/// Most metadata keys, and most tensors. Real files have some forty and some thousands.
pub const MAX_ENTRIES: usize = 1 << 24;
/// Most dimensions of a tensor.
pub const MAX_DIMS: usize = 4;

const DEFAULT_ALIGNMENT: usize = 32;
const MIN_FILE_LEN: usize = 24; // magic, version and two counts

/// What one file holds.
pub(super) struct File {
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
    /// Bytes of the header, before the padding and the data.
    pub header: usize,
}

/// Reads and checks the header.
pub(super) fn parse(mapping: &Arc<Mapping>) -> Result<File> {
    let mut r = Reader { mapping, data: mapping.as_slice(), pos: 0, narrow: false };
    if r.version()? == 1 {
        r.narrow = true;
        return v1::parse(&mut r);
    }
    let n_tensors = r.count("tensor count", 24)?;
    let n_kv = r.count("metadata count", 13)?;
    let metadata = r.metadata(n_kv)?;
    let alignment = alignment(&metadata)?;
    r.at_most("tensor count", n_tensors)?;
    let entries = (0..n_tensors).map(|_| r.tensor_entry(alignment)).collect::<Result<Vec<_>>>()?;
    let header = r.pos;
    Ok(File { metadata, tensors: r.place(entries, alignment)?, header })
}

/// What tensors begin at a multiple of.
fn alignment(metadata: &Metadata) -> Result<usize> {
    let alignment = metadata.usize("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        let e = metadata.error("bad alignment", "general.alignment").got(alignment);
        return Err(e.limit(format!("a power of two up to {MAX_ALIGNMENT}")).into());
    }
    Ok(alignment)
}

/// The metadata and the small vectors of a model whose directory has them in another form, in memory.
pub(crate) fn made(
    pairs: &Pairs,
    vectors: &[(String, Vec<f32>)],
    path: &Path,
) -> Result<(Metadata, Vec<TensorInfo>, Arc<Mapping>)> {
    let planned = vectors.iter().map(|(name, values)| Planned {
        name: name.clone(),
        dtype: DType::F32,
        shape: vec![values.len()],
    });
    let bytes = write::to_vec(pairs, &planned.collect::<Vec<_>>(), |i| bytemuck::cast_slice(&vectors[i].1))?;
    let map = Mapping::from_vec(bytes, path);
    // Where something stands here is no place in the file.
    let File { metadata, tensors, .. } = parse(&map).map_err(|e| match e {
        Error::Format(e) => Error::Format(Box::new(FormatError { offset: None, ..*e })),
        e => e,
    })?;
    let tensors = tensors.into_iter().map(|tensor| TensorInfo::new(tensor.name().into(), None, tensor.view));
    Ok((metadata.without_places(), tensors.collect(), map))
}

/// Types that are not in the table of [`DType`], but have a name.
fn unsupported_type(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2, which ggml dropped in 2023",
        5 => "Q4_3, which ggml dropped in 2023",
        31 => "Q4_0_4_4, which ggml dropped in 2024 (use Q4_0)",
        32 => "Q4_0_4_8, which ggml dropped in 2024 (use Q4_0)",
        33 => "Q4_0_8_8, which ggml dropped in 2024 (use Q4_0)",
        36 => "IQ4_NL_4_4, which ggml dropped in 2024 (use IQ4_NL)",
        37 => "IQ4_NL_4_8, which ggml dropped in 2024 (use IQ4_NL)",
        38 => "IQ4_NL_8_8, which ggml dropped in 2024 (use IQ4_NL)",
        _ => return None,
    })
}

/// What the header says of a tensor: all of it checked but that the data is there.
struct TensorEntry {
    name: Box<str>,
    at: usize, // where the name stands
    dtype: DType,
    shape: Vec<usize>,
    offset: usize, // from the start of the data
    size: usize,
}

/// A position in the file, and checked steps forward from it.
struct Reader<'a> {
    mapping: &'a Arc<Mapping>,
    data: &'a [u8], // from the start of the file, so that `pos` is an offset in it
    pos: usize,
    narrow: bool, // counts, lengths and dimensions have 32 bits
}

impl<'a> Reader<'a> {
    fn error(&self, what: &str) -> FormatError {
        FormatError::new(self.mapping.path(), what)
    }

    /// A report that the header wants `n` of something and the file ends. If that many could be, the file may be
    /// cut short; a number larger than any file is a lie.
    fn past_end(&self, what: &str, n: u64) -> FormatError {
        let hint = if n < 1 << 40 { " (is the download complete?)" } else { "" };
        self.error(&format!("{what}{hint}"))
    }

    fn unsupported(&self, what: String) -> Error {
        Error::Unsupported { path: self.mapping.path().to_path_buf(), what }
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let rest = &self.data[self.pos..];
        let Some(taken) = rest.get(..n) else {
            let e = self.past_end(&format!("{what} reaches past the end of the file"), n as u64).at(self.pos);
            return Err(e.got(format!("{n} bytes")).limit(format!("at most {}", rest.len())).into());
        };
        self.pos += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N, what)?.try_into().expect("took N"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count, a length or a dimension.
    fn length(&mut self, what: &str) -> Result<u64> {
        if self.narrow { self.u32(what).map(u64::from) } else { self.u64(what) }
    }

    /// A number of things of at least `min_size` bytes each: no more than fit in what is left.
    fn count(&mut self, what: &str, min_size: usize) -> Result<usize> {
        let at = self.pos;
        let n = self.length(what)?;
        let limit = (self.data.len() - self.pos) / min_size;
        match usize::try_from(n) {
            Ok(n) if n <= limit => Ok(n),
            _ => {
                let e = self.past_end(&format!("{what} is more than the file has room for"), n).at(at);
                Err(e.got(signed(n)).limit(format!("at most {limit}")).into())
            }
        }
    }

    fn string(&mut self, what: &str) -> Result<Bytes> {
        let n = self.count(what, 1)?;
        let start = self.pos;
        self.take(n, what)?;
        Ok(Bytes::new(self.mapping, start..self.pos).expect("taken from the map"))
    }

    /// A key or a tensor name, short text, and where its characters stand. It is copied, then checked: the file may change.
    fn name(&mut self, what: &str, max_len: usize) -> Result<(Box<str>, usize)> {
        let at = self.pos;
        let n = self.count(what, 1)?;
        let bad = |r: &Self, why: &str| r.error(&format!("{what} {why}")).at(at);
        if !(1..=max_len).contains(&n) {
            return Err(bad(self, "of a bad length").got(n).limit(format!("1 to {max_len} bytes")).into());
        }
        let start = self.pos;
        match String::from_utf8(self.take(n, what)?.to_vec()) {
            Ok(name) if name.contains('\0') => Err(bad(self, "holds a zero byte").named(name).into()),
            Ok(name) => Ok((name.into(), start)),
            Err(e) => Err(bad(self, "is not valid UTF-8").named(String::from_utf8_lossy(e.as_bytes())).into()),
        }
    }

    /// The version, behind the magic bytes that the file begins with.
    fn version(&mut self) -> Result<u32> {
        let len = self.data.len();
        let short = |r: &Self, least: usize| -> Result<u32> {
            let e = r.error("the file is shorter than a header (is the download complete?)");
            Err(e.got(format!("{len} bytes")).limit(format!("at least {least}")).into())
        };
        let version = self.data.get(4..).and_then(|rest| rest.first_chunk());
        let Some(version) = version else { return short(self, MIN_FILE_LEN) };
        self.pos = 8;
        match u32::from_le_bytes(*version) {
            1 if len < MIN_FILE_LEN - 8 => short(self, MIN_FILE_LEN - 8),
            2 | 3 if len < MIN_FILE_LEN => short(self, MIN_FILE_LEN),
            version @ 1..=3 => Ok(version),
            0 => Err(self.error("bad version").at(4).got(0).limit("1 to 3").into()),
            v if v.swap_bytes() <= 0xff => {
                let v = v.swap_bytes();
                Err(self.unsupported(format!("a big-endian GGUF file (version {v}); little-endian is supported")))
            }
            v => Err(self.unsupported(format!("GGUF version {v}; versions 1 to 3 are supported"))),
        }
    }

    fn metadata(&mut self, n: usize) -> Result<Metadata> {
        self.at_most("metadata count", n)?;
        let mut entries = Vec::new();
        for _ in 0..n {
            let (key, at) = self.name("metadata key", MAX_KEY_LEN)?;
            let value = self.value_type().and_then(|kind| Ok((kind, self.value(kind, 0)?)));
            let (kind, value) = value.map_err(|e| blame(e, &key))?;
            entries.push(Entry { key, at: Some(at), kind, value });
        }
        Metadata::new(self.mapping.path(), entries)
    }

    fn at_most(&self, what: &str, n: usize) -> Result<()> {
        if n > MAX_ENTRIES {
            return Err(self.error(&format!("bad {what}")).got(n).limit(format!("at most {MAX_ENTRIES}")).into());
        }
        Ok(())
    }

    fn value_type(&mut self) -> Result<ValueType> {
        let at = self.pos;
        let id = self.u32("value type")?;
        let kind = ValueType::ALL.get(id as usize).copied();
        kind.ok_or_else(|| self.error("unknown value type").at(at).got(id).limit("0 to 12").into())
    }

    fn value(&mut self, kind: ValueType, depth: usize) -> Result<Value> {
        let at = self.pos;
        if let Some(size) = kind.size() {
            let bytes = self.take(size, "value")?;
            return Value::scalar(kind, bytes)
                .ok_or_else(|| self.error("bad bool").at(at).got(bytes[0]).limit("0 or 1").into());
        }
        if kind == ValueType::String {
            return Ok(Value::String(self.string("string value")?));
        }
        if depth >= MAX_ARRAY_DEPTH {
            let e = self.error("arrays nested too deep").at(at);
            return Err(e.limit(format!("at most {MAX_ARRAY_DEPTH} levels")).into());
        }
        let element = self.value_type()?;
        let len = self.count("array length", element.size().unwrap_or(8))?;
        let start = self.pos;
        match element.size() {
            Some(size) => {
                let bytes = self.take(len * size, "array")?; // `count` knows that the product is in the file
                if element == ValueType::Bool
                    && let Some(i) = bytes.iter().position(|&b| b > 1)
                {
                    return Err(self.error("bad bool").at(start + i).got(bytes[i]).limit("0 or 1").into());
                }
            }
            None if element == ValueType::String => self.skip_strings(len)?,
            None => (0..len).try_for_each(|_| self.value(ValueType::Array, depth + 1).map(drop))?,
        }
        let bytes = Bytes::new(self.mapping, start..self.pos).expect("taken from the map");
        Ok(Value::Array(Array { element, len, bytes }))
    }

    /// Steps over `n` strings. The vocabulary is most of a header, so this loop is most of `open`.
    fn skip_strings(&mut self, n: usize) -> Result<()> {
        let mut rest = &self.data[self.pos..];
        for _ in 0..n {
            let next = rest
                .split_first_chunk::<8>()
                .and_then(|(len, tail)| tail.get(usize::try_from(u64::from_le_bytes(*len)).ok()?..));
            let Some(tail) = next else {
                let at = self.data.len() - rest.len();
                let n = rest.first_chunk().map_or(0, |len| u64::from_le_bytes(*len));
                return Err(self.past_end("string of an array reaches past the end of the file", n).at(at).into());
            };
            rest = tail;
        }
        self.pos = self.data.len() - rest.len();
        Ok(())
    }

    fn tensor_entry(&mut self, alignment: usize) -> Result<TensorEntry> {
        let (name, at) = self.name("tensor name", MAX_NAME_LEN)?;
        self.tensor_entry_named(name.clone(), at, alignment).map_err(|e| blame(e, &name))
    }

    fn tensor_entry_named(&mut self, name: Box<str>, name_at: usize, alignment: usize) -> Result<TensorEntry> {
        let at = self.pos;
        let n_dims = self.u32("number of dimensions")? as usize;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            let e = self.error("bad number of dimensions").at(at).got(n_dims);
            return Err(e.limit(format!("1 to {MAX_DIMS}")).into());
        }
        let dims_at = self.pos;
        let mut shape = Vec::with_capacity(n_dims);
        for _ in 0..n_dims {
            let at = self.pos;
            let n = self.length("dimension")?;
            match usize::try_from(n) {
                Ok(n) if n > 0 && signed(n as u64) > 0 => shape.push(n),
                _ => return Err(self.error("bad dimension").at(at).got(signed(n)).limit("at least 1").into()),
            }
        }

        let at = self.pos;
        let id = self.u32("tensor type")?;
        let Some(dtype) = DType::from_id(id) else {
            return Err(match unsupported_type(id) {
                Some(dtype) => self.unsupported(format!("tensor {} of type {dtype}", name.escape_debug())),
                None => {
                    self.error("unknown tensor type (the file is damaged or newer than this)").at(at).got(id).into()
                }
            });
        };
        if !shape[0].is_multiple_of(dtype.block_len()) {
            let e = self.error("row is not a whole number of blocks").at(dims_at).got(shape[0]);
            return Err(e.limit(format!("a multiple of {} for {dtype}", dtype.block_len())).into());
        }
        let size = dtype.row_bytes(shape[0]);
        let size = size.and_then(|row| shape[1..].iter().try_fold(row, |n, &d| n.checked_mul(d)));
        let size =
            size.ok_or_else(|| self.error("tensor larger than any file").at(dims_at).got(format!("{shape:?}")))?;

        let at = self.pos;
        let offset = self.u64("tensor offset")?;
        match usize::try_from(offset) {
            Ok(offset) if offset.is_multiple_of(alignment) => {
                Ok(TensorEntry { name, at: name_at, dtype, shape, offset, size })
            }
            _ => {
                let e = self.error("unaligned tensor offset").at(at).got(signed(offset));
                Err(e.limit(format!("a multiple of {alignment}")).into())
            }
        }
    }

    /// Finds the tensors in the data that follows: none overlaps another, and all are there.
    fn place(&self, entries: Vec<TensorEntry>, alignment: usize) -> Result<Vec<TensorInfo>> {
        let past_end = |entry: &TensorEntry| -> Error {
            let e = self.error("tensor reaches past the end of the file").at(entry.at);
            let e = e.named(&entry.name).got(format!("{} bytes from {} of the data", entry.size, entry.offset));
            e.limit(format!("a file of {} bytes", self.data.len())).into()
        };
        let mut order: Vec<&TensorEntry> = entries.iter().collect();
        order.sort_by_key(|entry| entry.offset);
        let mut end = 0; // of the data so far
        let mut padded = 0usize; // what the tensors need if they lie without gaps
        for (i, entry) in order.iter().enumerate() {
            if entry.offset < end {
                let e = self.error("tensors overlap").at(entry.at).named(&entry.name);
                let e = e.got(format!("offset {}", entry.offset));
                return Err(e.limit(format!("at least {end}, where {} ends", order[i - 1].name.escape_debug())).into());
            }
            end = entry.offset.checked_add(entry.size).ok_or_else(|| past_end(entry))?;
            padded = padded.saturating_add(entry.size.saturating_add(alignment - 1) / alignment * alignment);
        }

        let data_start = self.pos.checked_next_multiple_of(alignment).expect("far smaller than a usize");
        let (have, needed) = (self.data.len(), data_start.saturating_add(end));
        if let Some(last) = order.last()
            && needed > have
        {
            if end > padded {
                return Err(past_end(last)); // a hole: the offset lies
            }
            let percent = have as u128 * 100 / needed as u128;
            let what = format!("the file has {have} of {needed} bytes ({percent} %)");
            return Err(self.error(&format!("{what}: the download is incomplete, fetch it again")).into());
        }
        let place = |TensorEntry { name, at, dtype, shape, offset, size }| {
            let start = data_start + offset;
            let bytes = Bytes::new(self.mapping, start..start + size).expect("before the end of the last");
            TensorInfo::new(name, at, TensorView::new(bytes, dtype, &shape).expect("sizes were compared"))
        };
        Ok(entries.into_iter().map(place).collect())
    }
}

/// A 64-bit number as people write it: what was meant as -1 is not 18446744073709551615.
fn signed(n: u64) -> i64 {
    n as i64
}

/// Says which key or tensor a report is about.
fn blame(e: Error, name: &str) -> Error {
    match e {
        Error::Format(e) if e.name.is_none() => e.named(name).into(),
        e => e,
    }
}
