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

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, FormatError, Result};
use crate::mapping::{Bytes, Mapping};
use crate::quant::DType;
use crate::tensor::TensorView;

/// Largest `general.alignment` that we accept. Real files use 32.
pub const MAX_ALIGNMENT: usize = 1 << 20;
/// Longest key, by the specification.
pub const MAX_KEY_LEN: usize = 65_535;
/// Longest tensor name; ggml itself stops at 64.
pub const MAX_NAME_LEN: usize = 1_024;
/// Most dimensions of a tensor.
pub const MAX_DIMS: usize = 4;
/// Deepest nesting of arrays.
pub const MAX_ARRAY_DEPTH: usize = 4;

const DEFAULT_ALIGNMENT: usize = 32;

/// A model file, open: metadata and tensors, all of them views of the map.
#[derive(Debug)]
pub struct Checkpoint {
    /// The key-value pairs.
    pub metadata: Metadata,
    tensors: Vec<TensorInfo>, // in the order of the file
    by_name: Vec<u32>,        // indices into `tensors`, sorted by name
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

    fn index(&self, name: &str) -> Option<usize> {
        let at = self.by_name.binary_search_by(|&i| self.tensors[i as usize].name().cmp(name)).ok()?;
        Some(self.by_name[at] as usize)
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
    const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64] // in the order of the ids
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
        (0..self.len).map(move |_| reader.value(self.element, 0).expect("validated when the file was opened"))
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
    mapping: Arc<Mapping>,
}

impl Metadata {
    /// Keys and values, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (utf8(key), value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(k, _)| **k == *key.as_bytes()).map(|(_, v)| v)
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
            Some(other) => Err(self.wrong(key, other, "an array of strings")),
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

    /// A report about `key`.
    pub fn error(&self, what: &str, key: &str) -> FormatError {
        FormatError::new(self.path(), what).named(key)
    }

    fn wrong(&self, key: &str, got: &Value, expected: &str) -> Error {
        let got = match got {
            Value::Array(a) => format!("an array of {:?}", a.element),
            Value::String(_) => "a string".into(),
            other => format!("{other:?}"),
        };
        self.error("wrong value type", key).got(got).limit(expected).into()
    }
}

/// Opens the model file at `path`: maps it, reads and checks its header, and nothing else.
///
/// # Errors
/// [`Error::File`] if it cannot be mapped, [`Error::Format`] if it is not a valid GGUF file,
/// [`Error::Unsupported`] for a version, byte order or tensor type that we do not know.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let mapping = Mapping::open(path)?;
    let mut r = Reader { mapping: &mapping, data: mapping.as_slice(), base: 0, pos: 0 };

    if r.take(4, "magic")? != b"GGUF" {
        return Err(r.error("not a GGUF file").at(0).into());
    }
    let version = r.u32("version")?;
    if !(2..=3).contains(&version) {
        return Err(Error::Unsupported {
            path: path.to_path_buf(),
            what: format!("GGUF version {version}; versions 2 and 3 are supported"),
        });
    }
    let n_tensors = r.count("tensor count", 24)?;
    let n_kv = r.count("metadata count", 13)?;

    let mut entries: Vec<(Bytes, Value)> = Vec::new();
    for _ in 0..n_kv {
        let at = r.pos;
        let key = r.string("metadata key")?;
        if key.is_empty() || key.len() > MAX_KEY_LEN || std::str::from_utf8(&key).is_err() {
            return Err(r.error("bad metadata key").at(at).got(key.len()).limit("1 to 65535 bytes of UTF-8").into());
        }
        let element = r.value_type()?;
        let value = r.value(element, 0)?;
        entries.push((key, value));
    }
    let metadata = Metadata { entries, mapping: Arc::clone(&mapping) };
    let alignment = metadata.usize("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        let e = metadata.error("bad alignment", "general.alignment").got(alignment);
        return Err(e.limit(format!("a power of two up to {MAX_ALIGNMENT}")).into());
    }

    struct Entry {
        name: Bytes,
        dtype: DType,
        shape: Vec<usize>,
        offset: usize,
    }
    let mut infos = Vec::new();
    for _ in 0..n_tensors {
        let at = r.pos;
        let name = r.string("tensor name")?;
        if name.is_empty() || name.len() > MAX_NAME_LEN || std::str::from_utf8(&name).is_err() {
            return Err(r.error("bad tensor name").at(at).got(name.len()).limit("1 to 1024 bytes of UTF-8").into());
        }
        let at = r.pos;
        let n_dims = r.u32("number of dimensions")? as usize;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return Err(r
                .error("bad number of dimensions")
                .at(at)
                .named(utf8(&name))
                .got(n_dims)
                .limit("1 to 4")
                .into());
        }
        let mut shape = Vec::with_capacity(n_dims);
        for _ in 0..n_dims {
            let at = r.pos;
            let n = r.u64("dimension")?;
            match usize::try_from(n) {
                Ok(n) if n > 0 => shape.push(n),
                _ => return Err(r.error("bad dimension").at(at).named(utf8(&name)).got(n).limit("at least 1").into()),
            }
        }
        let at = r.pos;
        let id = r.u32("tensor type")?;
        let dtype =
            DType::from_id(id).ok_or_else(|| r.error("unknown tensor type").at(at).named(utf8(&name)).got(id))?;
        let offset = r.u64("tensor offset")?;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        infos.push(Entry { name, dtype, shape, offset });
    }

    let data_start = r.pos.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let mut tensors = Vec::with_capacity(infos.len());
    for Entry { name, dtype, shape, offset } in infos {
        let bad = |what: &str| r.error(what).named(utf8(&name));
        if !offset.is_multiple_of(alignment) {
            return Err(bad("unaligned tensor offset").got(offset).limit(format!("a multiple of {alignment}")).into());
        }
        let row = dtype.row_bytes(shape[0]).ok_or_else(|| {
            bad("row is not a whole number of blocks")
                .got(shape[0])
                .limit(format!("a multiple of {}", dtype.block_len()))
        })?;
        let size = shape[1..].iter().try_fold(row, |n, &d| n.checked_mul(d));
        let start = data_start.checked_add(offset);
        let range = size.zip(start).and_then(|(size, start)| Some(start..start.checked_add(size)?));
        let bytes = range.and_then(|range| Bytes::new(&mapping, range)).ok_or_else(|| {
            bad("tensor reaches past the end of the file")
                .at(start.unwrap_or(0))
                .limit(format!("{} bytes", r.data.len()))
        })?;
        tensors.push(TensorInfo { name, view: TensorView { bytes, dtype, shape } });
    }
    let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
    by_name.sort_unstable_by(|&a, &b| tensors[a as usize].name().cmp(tensors[b as usize].name()));
    Ok(Checkpoint { metadata, tensors, by_name, mapping })
}

fn utf8(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("?") // checked by the parser; the file may have changed since
}

/// A position in the file, and checked steps forward from it.
struct Reader<'a> {
    mapping: &'a Arc<Mapping>,
    data: &'a [u8],
    base: usize, // offset of `data` in the file
    pos: usize,
}

impl<'a> Reader<'a> {
    fn of(bytes: &'a Bytes) -> Self {
        Self { mapping: bytes.mapping(), data: bytes, base: bytes.offset(), pos: 0 }
    }

    fn error(&self, what: &str) -> FormatError {
        FormatError::new(self.mapping.path(), what)
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], FormatError> {
        let rest = &self.data[self.pos..];
        let Some(taken) = rest.get(..n) else {
            let e = self.error(&format!("{what} reaches past the end of the file")).at(self.base + self.pos);
            return Err(e.got(format!("{n} bytes")).limit(format!("at most {}", rest.len())));
        };
        self.pos += n;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("took 4")))
    }

    fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("took 8")))
    }

    /// A number of things of at least `min_size` bytes each: no more than fit in what is left.
    fn count(&mut self, what: &str, min_size: usize) -> Result<usize, FormatError> {
        let at = self.pos;
        let n = self.u64(what)?;
        let limit = (self.data.len() - self.pos) / min_size;
        match usize::try_from(n) {
            Ok(n) if n <= limit => Ok(n),
            _ => {
                let e = self.error(&format!("{what} is more than the file has room for")).at(self.base + at);
                Err(e.got(n).limit(format!("at most {limit}")))
            }
        }
    }

    fn string(&mut self, what: &str) -> Result<Bytes, FormatError> {
        let n = self.count(what, 1)?;
        let start = self.base + self.pos;
        self.take(n, what)?;
        Ok(Bytes::new(self.mapping, start..start + n).expect("taken from the map"))
    }

    fn value_type(&mut self) -> Result<ValueType, FormatError> {
        let at = self.base + self.pos;
        let id = self.u32("value type")?;
        ValueType::ALL
            .get(id as usize)
            .copied()
            .ok_or_else(|| self.error("unknown value type").at(at).got(id).limit("0 to 12"))
    }

    fn value(&mut self, kind: ValueType, depth: usize) -> Result<Value, FormatError> {
        use ValueType::*;
        let at = self.base + self.pos;
        Ok(match kind {
            U8 => Value::Unsigned(self.take(1, "value")?[0].into()),
            I8 => Value::Signed((self.take(1, "value")?[0] as i8).into()),
            U16 => Value::Unsigned(u16::from_le_bytes(self.take(2, "value")?.try_into().expect("took 2")).into()),
            I16 => Value::Signed(i16::from_le_bytes(self.take(2, "value")?.try_into().expect("took 2")).into()),
            U32 => Value::Unsigned(self.u32("value")?.into()),
            I32 => Value::Signed((self.u32("value")? as i32).into()),
            F32 => Value::F32(f32::from_bits(self.u32("value")?)),
            U64 => Value::Unsigned(self.u64("value")?),
            I64 => Value::Signed(self.u64("value")? as i64),
            F64 => Value::F64(f64::from_bits(self.u64("value")?)),
            Bool => match self.take(1, "value")?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                b => return Err(self.error("bad bool").at(at).got(b).limit("0 or 1")),
            },
            String => Value::String(self.string("string value")?),
            Array if depth >= MAX_ARRAY_DEPTH => {
                return Err(self
                    .error("arrays nested too deep")
                    .at(at)
                    .limit(format!("at most {MAX_ARRAY_DEPTH} levels")));
            }
            Array => {
                let element = self.value_type()?;
                let len = self.count("array length", element.size().unwrap_or(8))?;
                let start = self.base + self.pos;
                match element.size() {
                    // `count` has checked that `len * size` is within the file.
                    Some(size) => drop(self.take(len * size, "array")?),
                    None if element == String => self.skip_strings(len)?,
                    None => {
                        for _ in 0..len {
                            self.value(Array, depth + 1)?;
                        }
                    }
                }
                let bytes = Bytes::new(self.mapping, start..self.base + self.pos).expect("taken from the map");
                Value::Array(self::Array { element, len, bytes })
            }
        })
    }

    /// Steps over `n` strings. The vocabulary is most of a header, so this loop is most of `open`.
    fn skip_strings(&mut self, n: usize) -> Result<(), FormatError> {
        let mut rest = &self.data[self.pos..];
        for _ in 0..n {
            let next = rest
                .split_first_chunk::<8>()
                .and_then(|(len, tail)| tail.get(usize::try_from(u64::from_le_bytes(*len)).ok()?..));
            let Some(tail) = next else {
                let at = self.base + self.data.len() - rest.len();
                return Err(self.error("string of an array reaches past the end of the file").at(at));
            };
            rest = tail;
        }
        self.pos = self.data.len() - rest.len();
        Ok(())
    }
}
