//! What a model file holds, whatever its format: metadata and tensors, validated, as views of one map or of several.
//!
//! A format makes a [`Checkpoint`] (see [`formats`](crate::formats)); nobody above knows of formats, or of how many files
//! there are. Names are copies, because a file may be written over while it is mapped: what was checked is what is used.
//! Values and tensors are ranges of the maps.

mod pairs;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, FormatError, Result};
use crate::hash::hash;
use crate::mapping::{Bytes, LoadOptions, Mapping, guarded};
use crate::tensor::TensorView;
use crate::threads::Interrupt;

pub use pairs::Pairs;

/// Deepest nesting of arrays.
pub const MAX_ARRAY_DEPTH: usize = 4;

/// A model file, or all the parts of one, open: metadata and tensors, all of them views of the maps.
#[derive(Debug)]
pub struct Checkpoint {
    /// The key-value pairs.
    pub metadata: Metadata,
    tensors: Vec<TensorInfo>, // in the order of the file
    by_name: Vec<u32>,        // indices into `tensors`, by name
    maps: Vec<Arc<Mapping>>,  // at least one
    headers: Vec<usize>,      // bytes of each map before its padding and its data
    directory: Option<Directory>,
}

/// A directory of files that together are a model.
struct Directory {
    path: PathBuf,
    read_tokenizer: Box<dyn Fn() -> Result<Metadata> + Send + Sync>,
    tokenizer: OnceLock<Metadata>, // read when first asked for
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory")
            .field("path", &self.path)
            .field("tokenizer", &self.tokenizer)
            .finish_non_exhaustive()
    }
}

/// A tensor's name and view.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    name: Box<str>,
    at: Option<usize>, // where the name stands in the file, if that is one place
    /// The tensor.
    pub view: TensorView,
}

impl TensorInfo {
    /// A tensor whose name stands at the byte `at` of its file.
    pub fn new(name: Box<str>, at: impl Into<Option<usize>>, view: TensorView) -> Self {
        Self { name, at: at.into(), view }
    }

    /// The tensor's name, such as `blk.0.attn_q.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What tells a model from others: that of all copies of its files, wherever they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Bytes of all files.
    pub size: u64,
    /// [`Checkpoint::header_hash`].
    pub header: u64,
    /// The hash of a sample of every tensor: models that were trained on have the same header.
    pub weights: u64,
}

impl Checkpoint {
    /// Puts together what a format found: each map with the length of its header.
    ///
    /// # Errors
    /// [`Error::Format`] for two tensors of one name.
    ///
    /// # Panics
    /// If there is no map.
    pub fn new(metadata: Metadata, tensors: Vec<TensorInfo>, maps: Vec<(Arc<Mapping>, usize)>) -> Result<Self> {
        assert!(!maps.is_empty(), "a checkpoint has a file");
        let (maps, headers) = maps.into_iter().unzip();
        let by_name = index(&tensors, TensorInfo::name);
        if let Some((first, second)) = duplicate(&tensors, &by_name, TensorInfo::name) {
            let (file, other) = (second.view.bytes().mapping(), first.view.bytes().mapping());
            let of = if Arc::ptr_eq(file, other) { String::new() } else { format!(" of {}", other.path().display()) };
            let e = placed(FormatError::new(file.path(), "tensor name used twice"), second.at).named(&second.name);
            let at = first.at.map_or(String::new(), |at| format!(" at byte {at}"));
            return Err(e.limit(format!("only the one{at}{of}")).into());
        }
        Ok(Self { metadata, tensors, by_name, maps, headers, directory: None })
    }

    /// The same, as the files of the directory at `path`. What they say of the tokenizer, in the words of GGUF,
    /// `read_tokenizer` finds out when it is first asked for.
    pub fn in_directory(
        mut self,
        path: PathBuf,
        read_tokenizer: impl Fn() -> Result<Metadata> + Send + Sync + 'static,
    ) -> Self {
        let read_tokenizer = Box::new(read_tokenizer);
        self.directory = Some(Directory { path, read_tokenizer, tokenizer: OnceLock::new() });
        self
    }

    /// The key-value pairs that the tokenizer is made of: the metadata, unless that is another file's matter.
    ///
    /// # Errors
    /// What is wrong with that file, of a directory.
    pub fn tokenizer_metadata(&self) -> Result<&Metadata> {
        let Some(directory) = &self.directory else { return Ok(&self.metadata) };
        if let Some(metadata) = directory.tokenizer.get() {
            return Ok(metadata);
        }
        let metadata = (directory.read_tokenizer)()?;
        Ok(directory.tokenizer.get_or_init(|| metadata))
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorView> {
        Some(&self.find(name)?.view)
    }

    /// A report about the tensor called `name`, which need not be there.
    pub fn error(&self, what: &str, name: &str) -> FormatError {
        match self.find(name) {
            Some(tensor) => placed(FormatError::new(tensor.view.bytes().mapping().path(), what).named(name), tensor.at),
            None => FormatError::new(self.path(), what).named(name),
        }
    }

    /// Which of [`Checkpoint::tensors`] is called `name`.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        find(&self.tensors, &self.by_name, TensorInfo::name, name)
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        Some(&self.tensors[self.index_of(name)?])
    }

    /// The file, or the first of its parts, or the directory that they are in if it was opened as one.
    pub fn path(&self) -> &Path {
        self.directory.as_ref().map_or_else(|| self.maps[0].path(), |directory| &directory.path)
    }

    /// The mapped files, in the order of the parts. There is at least one.
    pub fn maps(&self) -> &[Arc<Mapping>] {
        &self.maps
    }

    /// Whether all files are still what they were, see [`Mapping::check`].
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check(&self) -> Result<()> {
        self.maps.iter().try_for_each(|map| map.check())
    }

    /// The same only for pages that could not be read, see [`Mapping::check_pages`].
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check_pages(&self) -> Result<()> {
        self.maps.iter().try_for_each(|map| map.check_pages())
    }

    /// Gives what `read` makes of the files, unless one changed meanwhile.
    ///
    /// # Errors
    /// [`Error::Changed`], and those of `read`.
    pub fn checked<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        let _guarded = guarded();
        let result = read();
        self.check()?;
        result
    }

    /// Brings all files into memory, as `prefault` and `lock` of the options say.
    ///
    /// # Errors
    /// As for [`Mapping::read_in`] and [`Mapping::lock`].
    pub fn bring_in(&self, options: LoadOptions, interrupt: &Interrupt) -> Result<()> {
        for map in self.maps.iter().filter(|_| options.prefault || options.lock) {
            map.read_in(0..map.as_slice().len(), interrupt)?;
            if options.lock {
                map.lock()?;
            }
        }
        Ok(())
    }

    /// Bytes of all files.
    pub fn size(&self) -> usize {
        self.maps.iter().map(|map| map.as_slice().len()).sum()
    }

    /// Where bytes lie in the files one after another, of [`Checkpoint::size`] bytes in all; `None` if they are not
    /// of this checkpoint.
    pub fn position(&self, bytes: &Bytes) -> Option<usize> {
        let i = self.maps.iter().position(|map| Arc::ptr_eq(map, bytes.mapping()))?;
        Some(self.maps[..i].iter().map(|map| map.as_slice().len()).sum::<usize>() + bytes.offset())
    }

    /// Which bytes of which map are `range` of the files one after another. What reaches past the end is left out.
    pub fn pieces(
        &self,
        range: std::ops::Range<usize>,
    ) -> impl Iterator<Item = (&Arc<Mapping>, std::ops::Range<usize>)> {
        let mut start = 0;
        self.maps.iter().filter_map(move |map| {
            let (before, len) = (start, map.as_slice().len());
            start += len;
            let piece = range.start.saturating_sub(before).min(len)..range.end.saturating_sub(before).min(len);
            (piece.start < piece.end).then_some((map, piece))
        })
    }

    /// A number for what the headers say: that of all copies of the files, and of no files whose metadata or tensors differ
    /// in anything but the weights' values. The same in every version of this crate.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn header_hash(&self) -> Result<u64> {
        self.checked(|| {
            let hashes = self.maps.iter().zip(&self.headers).map(|(map, &len)| hash(&map.as_slice()[..len]));
            // One file's is its own.
            Ok(hashes
                .reduce(|all, one| hash(bytemuck::bytes_of(&[all.to_le(), one.to_le()])))
                .expect("there is a file"))
        })
    }

    /// Reads the headers and a sample of the weights: the start, the middle and the end of every tensor.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        const SAMPLE: usize = 64;
        let spots = |bytes: &Bytes| {
            let last = bytes.len().saturating_sub(SAMPLE);
            [0, last / 2, last].map(|at| at..(at + SAMPLE).min(bytes.len()))
        };
        let header = self.header_hash()?;
        // Of a cold file the disk gives many pages at once in a fraction of the time that it takes one by one.
        for bytes in self.tensors.iter().map(|tensor| tensor.view.bytes()) {
            for spot in spots(bytes) {
                bytes.mapping().will_need(bytes.offset() + spot.start..bytes.offset() + spot.end);
            }
        }
        self.checked(|| {
            let mut sample = Vec::new();
            for bytes in self.tensors.iter().map(|tensor| tensor.view.bytes()) {
                spots(bytes).into_iter().for_each(|spot| sample.extend_from_slice(&bytes[spot]));
            }
            Ok(Fingerprint { size: self.size() as u64, header, weights: hash(&sample) })
        })
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
    /// Every type, in the order of GGUF's ids.
    pub const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    /// The id in a GGUF file.
    pub fn id(self) -> u32 {
        Self::ALL.iter().position(|kind| *kind == self).expect("it has all") as u32
    }

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
    /// Not always UTF-8 in real files. To be copied before it is checked.
    String(Bytes),
    Array(Array),
}

impl Value {
    /// A number or a bool of its little-endian bytes; `None` if there are not exactly so many, if a bool is neither 0 nor
    /// 1, and for strings and arrays.
    pub fn scalar(kind: ValueType, bytes: &[u8]) -> Option<Self> {
        use ValueType::*;
        Some(match kind {
            U8 => Value::Unsigned(u8::from_le_bytes(bytes.try_into().ok()?).into()),
            I8 => Value::Signed(i8::from_le_bytes(bytes.try_into().ok()?).into()),
            U16 => Value::Unsigned(u16::from_le_bytes(bytes.try_into().ok()?).into()),
            I16 => Value::Signed(i16::from_le_bytes(bytes.try_into().ok()?).into()),
            U32 => Value::Unsigned(u32::from_le_bytes(bytes.try_into().ok()?).into()),
            I32 => Value::Signed(i32::from_le_bytes(bytes.try_into().ok()?).into()),
            F32 => Value::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
            U64 => Value::Unsigned(u64::from_le_bytes(bytes.try_into().ok()?)),
            I64 => Value::Signed(i64::from_le_bytes(bytes.try_into().ok()?)),
            F64 => Value::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
            Bool => match bytes {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return None,
            },
            String | Array => return None,
        })
    }
}

/// An array in the metadata, where it lies in the file, packed as GGUF has it: numbers little-endian, a string as a `u64`
/// length and bytes, an array as a `u32` type, a `u64` length and its elements.
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
    /// The elements one after another. The file may have changed since it was checked: then they may end early.
    pub fn iter(&self) -> Elements {
        Elements { array: self.clone(), next: 0, at: 0 }
    }
}

/// The elements of an [`Array`], each read when it is asked for.
#[derive(Debug, Clone)]
pub struct Elements {
    array: Array,
    next: usize,
    at: usize, // of the next one, in the array's bytes
}

impl Elements {
    /// Which element comes next.
    pub fn position(&self) -> usize {
        self.next
    }
}

impl Iterator for Elements {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let Array { element, len, bytes } = &self.array;
        if self.next == *len {
            return None;
        }
        let (value, end) = read(*element, bytes, self.at, 0)?;
        (self.next, self.at) = (self.next + 1, end);
        Some(value)
    }

    fn nth(&mut self, n: usize) -> Option<Value> {
        // All elements before it have this size: no need to look at them.
        if let Some(size) = self.array.element.size() {
            let n = n.min(self.array.len - self.next);
            (self.next, self.at) = (self.next + n, self.at + n * size);
            return self.next();
        }
        self.take(n).for_each(drop);
        self.next()
    }
}

/// The value at `at`, and where it ends; `None` if it does not lie in `bytes`.
fn read(kind: ValueType, bytes: &Bytes, at: usize, depth: usize) -> Option<(Value, usize)> {
    let number = |at: usize| usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok();
    let part = |start: usize, end: usize| {
        Bytes::new(bytes.mapping(), bytes.offset() + start..bytes.offset() + end).filter(|_| end <= bytes.len())
    };
    if let Some(size) = kind.size() {
        let end = at.checked_add(size)?;
        return Some((Value::scalar(kind, bytes.get(at..end)?)?, end));
    }
    if kind == ValueType::String {
        let start = at.checked_add(8)?;
        let end = start.checked_add(number(at)?)?;
        return Some((Value::String(part(start, end)?), end));
    }
    if depth == MAX_ARRAY_DEPTH {
        return None;
    }
    let id = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
    let element = *ValueType::ALL.get(id as usize)?;
    let (len, start) = (number(at.checked_add(4)?)?, at.checked_add(12)?);
    let end = match element.size() {
        Some(size) => start.checked_add(len.checked_mul(size)?)?,
        None => (0..len).try_fold(start, |at, _| Some(read(element, bytes, at, depth + 1)?.1))?,
    };
    Some((Value::Array(Array { element, len, bytes: part(start, end)? }), end))
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

/// A key and its value.
#[derive(Debug)]
pub struct Entry {
    /// The key.
    pub key: Box<str>,
    /// Where it stands in the file; nowhere if the file says it in other words.
    pub at: Option<usize>,
    /// The type of the value, which says how wide an integer is.
    pub kind: ValueType,
    /// The value.
    pub value: Value,
}

impl Entry {
    fn key(&self) -> &str {
        &self.key
    }
}

/// The key-value pairs of a file.
#[derive(Debug)]
pub struct Metadata {
    entries: Vec<Entry>, // in the order of the file
    by_key: Vec<u32>,    // indices into `entries`, by key
    path: PathBuf,
}

impl Metadata {
    /// The pairs of the file at `path`, in its order.
    ///
    /// # Errors
    /// [`Error::Format`] for two of the same key.
    pub fn new(path: &Path, entries: Vec<Entry>) -> Result<Self> {
        let by_key = index(&entries, Entry::key);
        if let Some((first, second)) = duplicate(&entries, &by_key, Entry::key) {
            let e = placed(FormatError::new(path, "metadata key used twice"), second.at).named(&second.key);
            return Err(e.limit(format!("only the one at byte {}", first.at.unwrap_or(0))).into());
        }
        Ok(Self { entries, by_key, path: path.into() })
    }

    /// The same of which no report says where it stands: what the file has in other words.
    pub fn without_places(mut self) -> Self {
        self.entries.iter_mut().for_each(|entry| entry.at = None);
        self
    }

    /// Keys and values, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|entry| (&*entry.key, &entry.value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        Some(&self.find(key)?.value)
    }

    fn find(&self, key: &str) -> Option<&Entry> {
        Some(&self.entries[find(&self.entries, &self.by_key, Entry::key, key)?])
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
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

    /// A string that has to be UTF-8; a copy, which nobody can write over.
    pub fn str(&self, key: &str) -> Result<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => match String::from_utf8(s.to_vec()) {
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
        match self.find(key) {
            Some(entry) => placed(e, entry.at),
            None => e,
        }
    }

    /// A report that `key` has a value of another type than `expected`.
    pub fn wrong(&self, key: &str, got: &Value, expected: &str) -> Error {
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

/// The report with the place, if there is one.
fn placed(e: FormatError, at: Option<usize>) -> FormatError {
    match at {
        Some(at) => e.at(at),
        None => e,
    }
}

/// The indices of `entries`, by name and then by place.
fn index<T>(entries: &[T], name: impl Fn(&T) -> &str) -> Vec<u32> {
    let mut sorted: Vec<u32> = (0..entries.len() as u32).collect(); // formats allow far fewer
    sorted.sort_by(|&a, &b| name(&entries[a as usize]).cmp(name(&entries[b as usize])));
    sorted
}

/// The entry called `wanted`.
fn find<T>(entries: &[T], sorted: &[u32], name: impl Fn(&T) -> &str, wanted: &str) -> Option<usize> {
    let at = sorted.binary_search_by(|&i| name(&entries[i as usize]).cmp(wanted)).ok()?;
    Some(sorted[at] as usize)
}

/// Two entries of the same name.
fn duplicate<'a, T>(entries: &'a [T], sorted: &[u32], name: impl Fn(&T) -> &str) -> Option<(&'a T, &'a T)> {
    let mut pairs = sorted.windows(2).map(|pair| (&entries[pair[0] as usize], &entries[pair[1] as usize]));
    pairs.find(|(a, b)| name(a) == name(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::DType;

    /// Two files of a header of eight bytes and a tensor of 16 numbers.
    fn in_two_files(change: impl Fn(&mut [u8; 144])) -> Checkpoint {
        let mut bytes = std::array::from_fn(|i| i as u8);
        change(&mut bytes);
        let (first, second) = bytes.split_at(72);
        let maps = [first, second].map(|part| Mapping::from_vec(part.to_vec(), Path::new("part")));
        let tensor = |name: &str, map| {
            let bytes = Bytes::new(map, 8..72).unwrap();
            TensorInfo::new(name.into(), 0, TensorView::new(bytes, DType::F32, &[16]).unwrap())
        };
        let tensors = vec![tensor("a", &maps[0]), tensor("b", &maps[1])];
        let metadata = Metadata::new(Path::new("part"), Vec::new()).unwrap();
        Checkpoint::new(metadata, tensors, maps.into_iter().map(|map| (map, 8)).collect()).unwrap()
    }

    #[test]
    fn positions_count_through_the_files() {
        let checkpoint = in_two_files(|_| {});
        assert_eq!(checkpoint.size(), 144);
        let positions = checkpoint.tensors().iter().map(|t| checkpoint.position(t.view.bytes()).unwrap());
        assert!(positions.eq([8, 80]));
        let pieces = |range| -> Vec<_> {
            let piece = |(map, range): (&Arc<Mapping>, std::ops::Range<usize>)| map.as_slice()[range].to_vec();
            checkpoint.pieces(range).map(piece).collect()
        };
        assert_eq!(pieces(70..74), [vec![70, 71], vec![72, 73]]);
        assert_eq!(pieces(72..73), [vec![72]]);
        assert_eq!(pieces(143..1000), [vec![143]]);
        assert_eq!(pieces(0..144).concat(), (0..144).collect::<Vec<u8>>());
        assert!(pieces(5..5).is_empty() && pieces(144..200).is_empty());
    }

    #[test]
    fn a_fingerprint_feels_headers_and_every_tensor() {
        let ours = in_two_files(|_| {}).fingerprint().unwrap();
        assert_eq!(ours, in_two_files(|_| {}).fingerprint().unwrap());
        for (at, in_header) in [(0, true), (79, true), (8, false), (71, false), (80, false), (143, false)] {
            let other = in_two_files(|bytes| bytes[at] ^= 1).fingerprint().unwrap();
            assert_eq!((other.header != ours.header, other.weights != ours.weights), (in_header, !in_header), "{at}");
        }
    }
}
