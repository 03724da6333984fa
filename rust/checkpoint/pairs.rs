//! Key-value pairs that are being written, packed as GGUF has them.
//!
//! Whoever makes metadata that no file has (a converter, a directory whose configuration is JSON) adds pairs here; the
//! bytes are the body of a GGUF header, to be written to a file or to be read as if they had been in one.

use std::collections::HashSet;

use super::{Array, Metadata, Value, ValueType};

/// Pairs in the order in which they were added. A key is added once.
#[derive(Debug, Clone, Default)]
pub struct Pairs {
    bytes: Vec<u8>,
    keys: HashSet<Box<str>>,
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident, $names:ident: $Type:ty, $Kind:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(&mut self, key: &str, value: $Type) {
            self.scalar(key, ValueType::$Kind, &value.to_le_bytes());
        }

        /// An array of the same.
        pub fn $names(&mut self, key: &str, values: &[$Type]) {
            self.begin(key, ValueType::Array);
            self.array_head(ValueType::$Kind, values.len());
            values.iter().for_each(|value| self.bytes.extend_from_slice(&value.to_le_bytes()));
        }
    )*};
}

impl Pairs {
    /// No pairs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether `key` has been added.
    pub fn contains(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// The pairs, one after another: each a key as a `u64` length and bytes, a `u32` type, and a value.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    numbers! {
        /// An unsigned 8-bit integer.
        u8, u8s: u8, U8;
        /// A 16-bit integer without a sign.
        u16, u16s: u16, U16;
        /// A 32-bit integer without a sign: what nearly all integers are.
        u32, u32s: u32, U32;
        /// A 32-bit integer with a sign.
        i32, i32s: i32, I32;
        /// A 64-bit integer without a sign.
        u64, u64s: u64, U64;
        /// A 32-bit float.
        f32, f32s: f32, F32;
    }

    /// A truth value.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.scalar(key, ValueType::Bool, &[u8::from(value)]);
    }

    /// An array of truth values.
    pub fn bools(&mut self, key: &str, values: &[bool]) {
        self.begin(key, ValueType::Array);
        self.array_head(ValueType::Bool, values.len());
        self.bytes.extend(values.iter().map(|&value| u8::from(value)));
    }

    /// A text, or bytes that should be one.
    pub fn str(&mut self, key: &str, value: impl AsRef<[u8]>) {
        self.begin(key, ValueType::String);
        self.text(value.as_ref());
    }

    /// An array of texts.
    pub fn strs<T: AsRef<[u8]>>(&mut self, key: &str, values: impl ExactSizeIterator<Item = T>) {
        self.begin(key, ValueType::Array);
        self.array_head(ValueType::String, values.len());
        values.for_each(|value| self.text(value.as_ref()));
    }

    /// An array whose elements, packed as GGUF has them, are `bytes`.
    pub fn array(&mut self, key: &str, element: ValueType, len: usize, bytes: &[u8]) {
        self.begin(key, ValueType::Array);
        self.array_head(element, len);
        self.bytes.extend_from_slice(bytes);
    }

    /// The pair that `key` has in `metadata`, in the type that it has there; nothing if it has none. What the file holds
    /// is copied, not checked again.
    pub fn copy(&mut self, metadata: &Metadata, key: &str) {
        let Some(entry) = metadata.find(key) else { return };
        match &entry.value {
            Value::Array(Array { element, len, bytes }) => self.array(key, *element, *len, bytes),
            Value::String(text) => self.str(key, &**text),
            Value::Unsigned(n) => self.integer(key, entry.kind, &n.to_le_bytes()),
            Value::Signed(n) => self.integer(key, entry.kind, &n.to_le_bytes()),
            Value::F32(x) => self.f32(key, *x),
            Value::F64(x) => self.scalar(key, ValueType::F64, &x.to_le_bytes()),
            Value::Bool(b) => self.bool(key, *b),
        }
    }

    /// All pairs of `metadata` whose keys `wanted` likes, in their order.
    pub fn copy_all(&mut self, metadata: &Metadata, wanted: impl Fn(&str) -> bool) {
        metadata.iter().map(|(key, _)| key).filter(|key| wanted(key)).for_each(|key| self.copy(metadata, key));
    }

    /// All pairs of `other`, none of whose keys may be here.
    ///
    /// # Panics
    /// If one is.
    pub fn append(&mut self, other: &Pairs) {
        for key in &other.keys {
            assert!(self.keys.insert(key.clone()), "{key} is set twice");
        }
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// An integer whose first bytes, as many as its type has, say what it is.
    fn integer(&mut self, key: &str, kind: ValueType, bytes: &[u8; 8]) {
        self.scalar(key, kind, &bytes[..kind.size().expect("an integer")]);
    }

    /// A number or a truth value of these little-endian bytes, as many as its type has.
    pub fn scalar(&mut self, key: &str, kind: ValueType, bytes: &[u8]) {
        self.begin(key, kind);
        self.bytes.extend_from_slice(bytes);
    }

    /// # Panics
    /// If the key is there.
    fn begin(&mut self, key: &str, kind: ValueType) {
        assert!(self.keys.insert(key.into()), "{key} is set twice");
        self.text(key.as_bytes());
        self.bytes.extend_from_slice(&kind.id().to_le_bytes());
    }

    fn array_head(&mut self, element: ValueType, len: usize) {
        self.bytes.extend_from_slice(&element.id().to_le_bytes());
        self.bytes.extend_from_slice(&(len as u64).to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(text);
    }
}
