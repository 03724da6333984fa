//! GGUF, versions 2 and 3, little-endian: the header is read and validated once, over a byte slice.
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
//! A string is a `u64` length and bytes. Nothing is copied: strings, arrays and tensors are ranges of
//! the map. The element offsets of a string array are not kept; whoever needs them walks it.
//!
//! The walk over the vocabulary is most of the work of opening a file: each string's length has to be
//! read to know where the next one starts, one load after another.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, FormatError, Result};
use crate::mapping::{Bytes, LoadOptions, Mapping};
use crate::quant::DType;
use crate::tensor::TensorView;
use crate::threads::Interrupt;

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
/// Deepest nesting of arrays.
pub const MAX_ARRAY_DEPTH: usize = 4;

const DEFAULT_ALIGNMENT: usize = 32;
const MIN_FILE_LEN: usize = 24; // magic, version and two counts

/// A model file, open: metadata and tensors, all of them views of the map.
#[derive(Debug)]
pub struct Checkpoint {
    /// The key-value pairs.
    pub metadata: Metadata,
    tensors: Vec<TensorInfo>, // in the order of the file
    by_name: Vec<u32>,        // indices into `tensors`, by name
    mapping: Arc<Mapping>,
}

/// A tensor's name and view.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    name: Bytes, // UTF-8, checked by the parser
    /// The tensor.
    pub view: TensorView,
}

impl TensorInfo {
    /// The tensor's name, such as `blk.0.attn_q.weight`.
    pub fn name(&self) -> &str {
        utf8(&self.name)
    }
}

impl Checkpoint {
    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorView> {
        Some(&self.tensors[self.index(name)?].view)
    }

    /// A report about the tensor called `name`, which need not be there.
    pub fn error(&self, what: &str, name: &str) -> FormatError {
        let e = FormatError::new(self.mapping.path(), what).named(name);
        match self.index(name) {
            Some(i) => e.at(self.tensors[i].name.offset()),
            None => e,
        }
    }

    /// A number for what the header says: that of all copies of the file, and of no file whose metadata or tensors differ
    /// in anything but the weights' values. The same in every version of this crate.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn header_hash(&self) -> Result<u64> {
        let end = self.tensors.iter().map(|t| t.view.bytes().offset()).min().unwrap_or(self.mapping.as_slice().len());
        self.mapping.checked(|| Ok(hash(&self.mapping.as_slice()[..end])))
    }

    fn index(&self, name: &str) -> Option<usize> {
        find(&self.by_name, name, |i| &self.tensors[i].name)
    }

    /// The mapped file.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

/// The type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// Every type, in the order of the ids.
    pub const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    /// Bytes of a value of this type; `None` for strings and arrays, which differ.
    pub fn size(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }
}

/// A metadata value.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// Not always UTF-8 in real files.
    String(Bytes),
    Array(Array),
}

/// An array in the metadata, where it lies in the file.
#[derive(Debug, Clone)]
pub struct Array {
    /// Type of the elements.
    pub element: ValueType,
    /// Number of elements.
    pub len: usize,
    /// The elements, as they lie in the file.
    pub bytes: Bytes,
}

impl Array {
    /// The elements' values, one after another (also of nested arrays).
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        let mut reader = Reader::of(&self.bytes);
        // The file may have changed since it was checked: end early rather than panic.
        (0..self.len).map_while(move |_| reader.value(self.element, 0).ok())
    }
}

/// An array of strings, where it lies in the file: `len` times a `u64` length and bytes.
#[derive(Debug, Clone)]
pub struct StringArray {
    /// Number of strings.
    pub len: usize,
    /// The strings with their lengths.
    pub bytes: Bytes,
}

impl StringArray {
    /// The strings in order. Each was checked to lie in the file; none is checked to be UTF-8.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.bytes;
        (0..self.len).map_while(move |_| {
            // The file may have changed since it was checked: end early rather than panic.
            let (len, tail) = rest.split_first_chunk::<8>()?;
            let (text, tail) = tail.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
            rest = tail;
            Some(text)
        })
    }
}

/// The key-value pairs of a file.
#[derive(Debug)]
pub struct Metadata {
    entries: Vec<(Bytes, Value)>, // in the order of the file; keys are UTF-8, checked by the parser
    by_key: Vec<u32>,             // indices into `entries`, by key
    mapping: Arc<Mapping>,
}

impl Metadata {
    /// Keys and values, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (utf8(key), value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        Some(&self.entries[self.index(key)?].1)
    }

    fn index(&self, key: &str) -> Option<usize> {
        find(&self.by_key, key, |i| &self.entries[i].0)
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        self.mapping.path()
    }

    /// A non-negative integer, of any width and sign.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) if usize::try_from(*n).is_ok() => Ok(Some(*n as usize)),
            Some(Value::Signed(n)) if usize::try_from(*n).is_ok() => Ok(Some(*n as usize)),
            Some(other) => Err(self.wrong(key, other, "a non-negative integer")),
        }
    }

    /// A float, of either width.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(x)) => Ok(Some(*x)),
            Some(Value::F64(x)) => Ok(Some(*x as f32)),
            Some(other) => Err(self.wrong(key, other, "a float")),
        }
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(key, other, "a bool")),
        }
    }

    /// A string that has to be UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => match std::str::from_utf8(s) {
                Ok(s) => Ok(Some(s)),
                Err(_) => Err(self.error("not valid UTF-8", key).at(s.offset()).into()),
            },
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<StringArray>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(a)) if a.element == ValueType::String => {
                Ok(Some(StringArray { len: a.len, bytes: a.bytes.clone() }))
            }
            Some(other) => Err(self.wrong(key, other, "an array of String")),
        }
    }

    /// An array whose elements have the type `element`.
    pub fn array(&self, key: &str, element: ValueType) -> Result<Option<&Array>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(a)) if a.element == element => Ok(Some(a)),
            Some(other) => Err(self.wrong(key, other, &format!("an array of {element:?}"))),
        }
    }

    /// A report about `key`, which need not be there.
    pub fn error(&self, what: &str, key: &str) -> FormatError {
        let e = FormatError::new(self.path(), what).named(key);
        match self.index(key) {
            Some(i) => e.at(self.entries[i].0.offset()),
            None => e,
        }
    }

    fn wrong(&self, key: &str, got: &Value, expected: &str) -> Error {
        let got = match got {
            Value::Unsigned(n) => format!("the integer {n}"),
            Value::Signed(n) => format!("the integer {n}"),
            Value::F32(x) => format!("the float {x}"),
            Value::F64(x) => format!("the float {x}"),
            Value::Bool(b) => format!("the bool {b}"),
            Value::String(_) => "a string".into(),
            Value::Array(a) => format!("an array of {:?}", a.element),
        };
        self.error("wrong value type", key).got(got).limit(expected).into()
    }
}

/// Opens the model file at `path`: maps it, reads and checks its header, and nothing else.
///
/// # Errors
/// [`Error::File`] if it cannot be mapped, [`Error::Format`] if it is not a valid GGUF file,
/// [`Error::Unsupported`] for a version, a byte order or a tensor type that we do not read, and for one
/// part of a split model.
pub fn open(path: &Path) -> Result<Checkpoint> {
    open_with(path, LoadOptions::default(), &Interrupt::never())
}

/// Opens the model file at `path`, and brings it into memory as `options` say.
///
/// # Errors
/// As for [`open`] and [`Mapping::open_with`].
pub fn open_with(path: &Path, options: LoadOptions, interrupt: &Interrupt) -> Result<Checkpoint> {
    let probe = |head: &[u8]| {
        let head = Mapping::from_vec(head.to_vec(), path);
        Reader { mapping: &head, data: head.as_slice(), pos: 0 }.magic_and_version()
    };
    let mapping = Mapping::open_if(path, options, interrupt, probe)?;
    mapping.checked(|| parse(&mapping))
}

/// Reads and checks the header.
fn parse(mapping: &Arc<Mapping>) -> Result<Checkpoint> {
    let mut r = Reader { mapping, data: mapping.as_slice(), pos: 0 };
    r.magic_and_version()?;
    let n_tensors = r.count("tensor count", 24)?;
    let n_kv = r.count("metadata count", 13)?;
    let metadata = r.metadata(n_kv)?;
    let alignment = metadata.usize("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        let e = metadata.error("bad alignment", "general.alignment").got(alignment);
        return Err(e.limit(format!("a power of two up to {MAX_ALIGNMENT}")).into());
    }
    if let Some(n @ 2..) = metadata.usize("split.count")? {
        let part = metadata.usize("split.no")?.map_or("one part".into(), |i| format!("part {}", i.saturating_add(1)));
        return Err(r.unsupported(format!("{part} of a model split in {n}; join them with llama-gguf-split --merge")));
    }

    let entries = (0..n_tensors).map(|_| r.tensor_entry(alignment)).collect::<Result<Vec<_>>>()?;
    let by_name = index(entries.len(), |i| &entries[i].name);
    if let Some((first, second)) = duplicate(&by_name, |i| &entries[i].name) {
        let e = r.error("tensor name used twice").at(entries[second].name.offset()).named(utf8(&entries[second].name));
        return Err(e.limit(format!("only the one at byte {}", entries[first].name.offset())).into());
    }
    let tensors = r.place(entries, alignment)?;
    Ok(Checkpoint { metadata, tensors, by_name, mapping: Arc::clone(mapping) })
}

/// What a file that is not GGUF starts with, and what it is then.
const LOOK_ALIKES: &[(&[u8], &str)] = &[
    (b"version https://git-lfs", "a Git LFS pointer and not the model that it points to: run git lfs pull"),
    (b"<!doctype", "a web page, most likely an error or login page: download the file itself"),
    (b"<html", "a web page, most likely an error or login page: download the file itself"),
    (b"<?xml", "an XML document, most likely an error message: download the file itself"),
    (b"{", "a JSON document"),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint: convert or unpack it first"),
    (b"\x80\x02", "a Python pickle, perhaps a PyTorch checkpoint: convert it first"),
    (b"\x80\x03", "a Python pickle, perhaps a PyTorch checkpoint: convert it first"),
    (b"\x80\x04", "a Python pickle, perhaps a PyTorch checkpoint: convert it first"),
    (b"\x80\x05", "a Python pickle, perhaps a PyTorch checkpoint: convert it first"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"\xfd7zXZ\0", "xz-compressed: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "Zstandard-compressed: unpack it first"),
    (b"BZh", "bzip2-compressed: unpack it first"),
    (b"lmgg", "a GGML file from before August 2023: convert it to GGUF first"),
    (b"fmgg", "a GGMF file from before August 2023: convert it to GGUF first"),
    (b"tjgg", "a GGJT file from before August 2023: convert it to GGUF first"),
    (b"algg", "a GGLA adapter: it is no model"),
    (b"24ka", "a llama2.c checkpoint: convert it to GGUF first"),
    (b"MZqFpD", "a llamafile: extract the GGUF from it first (unzip)"),
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a Linux program, perhaps a llamafile: extract the GGUF from it first (unzip)"),
    (b"\0\0\0\0", "zeros where the header belongs, perhaps an unfinished download"),
];

/// Says what the file is instead of GGUF.
fn look_alike(data: &[u8]) -> Option<&'static str> {
    if let Some((len, [b'{', ..])) = data.split_first_chunk::<8>()
        && u64::from_le_bytes(*len) < data.len() as u64
    {
        return Some("a safetensors file: convert it to GGUF first");
    }
    let text = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data); // a byte-order mark
    let text = text[..text.len().min(64)].trim_ascii_start();
    let starts = |data: &[u8], magic: &[u8]| data.get(..magic.len()).is_some_and(|d| d.eq_ignore_ascii_case(magic));
    LOOK_ALIKES.iter().find(|(magic, _)| starts(data, magic) || starts(text, magic)).map(|(_, name)| *name)
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
        40 => "NVFP4",
        41 => "Q1_0",
        42 => "Q2_0",
        _ => return None,
    })
}

/// A hash that will be the same for ever: it is written to files. Not against malice.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(bytes.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let hash = rest.iter().fold(hash, |hash, &byte| mix(hash, u64::from(byte)));
    mix(mix(hash, 0), 0)
}

fn utf8(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("?") // checked by the parser; the file may have changed since
}

/// The indices `0..n`, by name and then by place.
fn index<'a>(n: usize, name: impl Fn(usize) -> &'a Bytes) -> Vec<u32> {
    let mut sorted: Vec<u32> = (0..n as u32).collect(); // at most MAX_ENTRIES
    // By copies: sorting may panic where the names change meanwhile.
    sorted.sort_by_cached_key(|&i| name(i as usize).to_vec());
    sorted
}

/// The entry called `wanted`.
fn find<'a>(sorted: &[u32], wanted: &str, name: impl Fn(usize) -> &'a Bytes) -> Option<usize> {
    let at = sorted.binary_search_by(|&i| name(i as usize)[..].cmp(wanted.as_bytes())).ok()?;
    Some(sorted[at] as usize)
}

/// Two entries of the same name.
fn duplicate<'a>(sorted: &[u32], name: impl Fn(usize) -> &'a Bytes) -> Option<(usize, usize)> {
    let pairs = sorted.windows(2).map(|pair| (pair[0] as usize, pair[1] as usize));
    pairs.into_iter().find(|&(a, b)| name(a)[..] == name(b)[..])
}

/// What the header says of a tensor: all of it checked but that the data is there.
struct TensorEntry {
    name: Bytes,
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
}

impl<'a> Reader<'a> {
    fn of(bytes: &'a Bytes) -> Self {
        let end = bytes.offset() + bytes.len();
        Self { mapping: bytes.mapping(), data: &bytes.mapping().as_slice()[..end], pos: bytes.offset() }
    }

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

    /// A number of things of at least `min_size` bytes each: no more than fit in what is left.
    fn count(&mut self, what: &str, min_size: usize) -> Result<usize> {
        let at = self.pos;
        let n = self.u64(what)?;
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

    /// A key or a tensor name: short text.
    fn name(&mut self, what: &str, max_len: usize) -> Result<Bytes> {
        let at = self.pos;
        let name = self.string(what)?;
        let bad = |why: &str| self.error(&format!("{what} {why}")).at(at);
        if name.is_empty() || name.len() > max_len {
            return Err(bad("of a bad length").got(name.len()).limit(format!("1 to {max_len} bytes")).into());
        }
        if std::str::from_utf8(&name).is_err() {
            return Err(bad("is not valid UTF-8").named(String::from_utf8_lossy(&name)).into());
        }
        if name.contains(&0) {
            return Err(bad("holds a zero byte").named(utf8(&name)).into());
        }
        Ok(name)
    }

    fn magic_and_version(&mut self) -> Result<()> {
        let len = self.data.len();
        if len == 0 {
            return Err(self.error("the file is empty").into());
        }
        if !self.data.starts_with(b"GGUF") {
            let is = look_alike(self.data).map_or("not a GGUF file".into(), |is| format!("not a GGUF file, but {is}"));
            return Err(self.error(&is).into());
        }
        if len < MIN_FILE_LEN {
            let e = self.error("the file is shorter than a header (is the download complete?)");
            return Err(e.got(format!("{len} bytes")).limit(format!("at least {MIN_FILE_LEN}")).into());
        }
        self.pos = 4;
        match self.u32("version")? {
            2 | 3 => Ok(()),
            0 => Err(self.error("bad version").at(4).got(0).limit("2 or 3").into()),
            1 => Err(self.unsupported("GGUF version 1 (of August 2023); convert the model again".into())),
            v if v.swap_bytes() <= 0xff => {
                let v = v.swap_bytes();
                Err(self.unsupported(format!("a big-endian GGUF file (version {v}); little-endian is supported")))
            }
            v => Err(self.unsupported(format!("GGUF version {v}; versions 2 and 3 are supported"))),
        }
    }

    fn metadata(&mut self, n: usize) -> Result<Metadata> {
        self.at_most("metadata count", n)?;
        let mut entries: Vec<(Bytes, Value)> = Vec::new();
        for _ in 0..n {
            let key = self.name("metadata key", MAX_KEY_LEN)?;
            let value = self.value_type().and_then(|kind| self.value(kind, 0)).map_err(|e| blame(e, &key))?;
            entries.push((key, value));
        }
        let by_key = index(n, |i| &entries[i].0);
        if let Some((first, second)) = duplicate(&by_key, |i| &entries[i].0) {
            let (first, second) = (&entries[first].0, &entries[second].0);
            let e = self.error("metadata key used twice").at(second.offset()).named(utf8(second));
            return Err(e.limit(format!("only the one at byte {}", first.offset())).into());
        }
        Ok(Metadata { entries, by_key, mapping: Arc::clone(self.mapping) })
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
        use ValueType::*;
        let at = self.pos;
        Ok(match kind {
            U8 => Value::Unsigned(u8::from_le_bytes(self.array("value")?).into()),
            I8 => Value::Signed(i8::from_le_bytes(self.array("value")?).into()),
            U16 => Value::Unsigned(u16::from_le_bytes(self.array("value")?).into()),
            I16 => Value::Signed(i16::from_le_bytes(self.array("value")?).into()),
            U32 => Value::Unsigned(u32::from_le_bytes(self.array("value")?).into()),
            I32 => Value::Signed(i32::from_le_bytes(self.array("value")?).into()),
            F32 => Value::F32(f32::from_le_bytes(self.array("value")?)),
            U64 => Value::Unsigned(u64::from_le_bytes(self.array("value")?)),
            I64 => Value::Signed(i64::from_le_bytes(self.array("value")?)),
            F64 => Value::F64(f64::from_le_bytes(self.array("value")?)),
            Bool => match self.take(1, "value")?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                b => return Err(self.error("bad bool").at(at).got(b).limit("0 or 1").into()),
            },
            String => Value::String(self.string("string value")?),
            Array if depth >= MAX_ARRAY_DEPTH => {
                let e = self.error("arrays nested too deep").at(at);
                return Err(e.limit(format!("at most {MAX_ARRAY_DEPTH} levels")).into());
            }
            Array => {
                let element = self.value_type()?;
                let len = self.count("array length", element.size().unwrap_or(8))?;
                let start = self.pos;
                match element.size() {
                    Some(size) => {
                        let bytes = self.take(len * size, "array")?; // `count` knows that the product is in the file
                        if element == Bool
                            && let Some(i) = bytes.iter().position(|&b| b > 1)
                        {
                            let e = self.error("bad bool").at(start + i);
                            return Err(e.got(bytes[i]).limit("0 or 1").into());
                        }
                    }
                    None if element == String => self.skip_strings(len)?,
                    None => {
                        for _ in 0..len {
                            self.value(Array, depth + 1)?;
                        }
                    }
                }
                let bytes = Bytes::new(self.mapping, start..self.pos).expect("taken from the map");
                Value::Array(self::Array { element, len, bytes })
            }
        })
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
        let name = self.name("tensor name", MAX_NAME_LEN)?;
        self.tensor_entry_named(name.clone(), alignment).map_err(|e| blame(e, &name))
    }

    fn tensor_entry_named(&mut self, name: Bytes, alignment: usize) -> Result<TensorEntry> {
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
            let n = self.u64("dimension")?;
            match usize::try_from(n) {
                Ok(n) if n > 0 && signed(n as u64) > 0 => shape.push(n),
                _ => return Err(self.error("bad dimension").at(at).got(signed(n)).limit("at least 1").into()),
            }
        }

        let at = self.pos;
        let id = self.u32("tensor type")?;
        let Some(dtype) = DType::from_id(id) else {
            return Err(match unsupported_type(id) {
                Some(dtype) => self.unsupported(format!("tensor {} of type {dtype}", utf8(&name))),
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
            Ok(offset) if offset.is_multiple_of(alignment) => Ok(TensorEntry { name, dtype, shape, offset, size }),
            _ => {
                let e = self.error("unaligned tensor offset").at(at).got(signed(offset));
                Err(e.limit(format!("a multiple of {alignment}")).into())
            }
        }
    }

    /// Finds the tensors in the data that follows: none overlaps another, and all are there.
    fn place(&self, entries: Vec<TensorEntry>, alignment: usize) -> Result<Vec<TensorInfo>> {
        let past_end = |entry: &TensorEntry| -> Error {
            let e = self.error("tensor reaches past the end of the file").at(entry.name.offset());
            let e = e.named(utf8(&entry.name)).got(format!("{} bytes from {} of the data", entry.size, entry.offset));
            e.limit(format!("a file of {} bytes", self.data.len())).into()
        };
        let mut order: Vec<&TensorEntry> = entries.iter().collect();
        order.sort_by_key(|entry| entry.offset);
        let mut end = 0; // of the data so far
        let mut padded = 0usize; // what the tensors need if they lie without gaps
        for (i, entry) in order.iter().enumerate() {
            if entry.offset < end {
                let e = self.error("tensors overlap").at(entry.name.offset()).named(utf8(&entry.name));
                let e = e.got(format!("offset {}", entry.offset));
                return Err(e.limit(format!("at least {end}, where {} ends", utf8(&order[i - 1].name))).into());
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
        let place = |TensorEntry { name, dtype, shape, offset, size }| {
            let start = data_start + offset;
            let bytes = Bytes::new(self.mapping, start..start + size).expect("before the end of the last");
            TensorInfo { name, view: TensorView::new(bytes, dtype, &shape).expect("sizes were compared") }
        };
        Ok(entries.into_iter().map(place).collect())
    }
}

/// A 64-bit number as people write it: what was meant as -1 is not 18446744073709551615.
fn signed(n: u64) -> i64 {
    n as i64
}

/// Says which key or tensor a report is about.
fn blame(e: Error, name: &Bytes) -> Error {
    match e {
        Error::Format(e) if e.name.is_none() => e.named(utf8(name)).into(),
        e => e,
    }
}
