//! JSON of strangers, and ours.
//!
//! A body becomes a tree that is bounded in depth and in values, in which names keep their order (that of a schema's
//! properties is the order in which a model writes them) and none comes twice. [`At`] is a value and where it stands: what
//! is read through it is checked, and an error names the place as a JSON pointer.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt::{self, Write};
use std::ops::RangeInclusive;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::error::{Answer, Refusal};
use super::limits;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Int(i64),
    Large(u64), // beyond i64
    Float(f64),
    Text(String),
    List(Vec<Json>),
    Map(Vec<(Cow<'static, str>, Json)>),
}

/// An object of ours: `object! { "id" => id, "n" => 3 }`.
macro_rules! object {
    ($($key:literal => $value:expr),* $(,)?) => {
        $crate::http::json::Json::Map(vec![$((std::borrow::Cow::Borrowed($key), $crate::http::json::Json::from($value))),*])
    };
}
pub(super) use object;

impl Json {
    /// The value that `text` spells.
    ///
    /// # Errors
    /// In words, where and what: not JSON, too deep, too many values, a name that comes twice.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let left = Cell::new(limits::JSON_VALUES);
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let value = Values { left: &left, depth: 0 }.deserialize(&mut deserializer).map_err(|e| e.to_string())?;
        deserializer.end().map_err(|e| e.to_string())?;
        Ok(value)
    }

    /// The value called `name` of an object.
    pub fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Map(pairs) => pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn str(&self) -> Option<&str> {
        if let Json::Text(text) = self { Some(text) } else { None }
    }

    /// Adds a pair to an object.
    pub fn push(&mut self, name: &'static str, value: impl Into<Json>) {
        if let Json::Map(pairs) = self {
            pairs.push((Cow::Borrowed(name), value.into()));
        }
    }

    /// What it is, for messages.
    fn kind(&self) -> String {
        match self {
            Json::Null => "null".into(),
            Json::Bool(_) | Json::Int(_) | Json::Large(_) | Json::Float(_) => self.to_string(),
            Json::Text(text) if text.len() <= 40 => self.to_string(),
            Json::Text(_) => "a string".into(),
            Json::List(_) => "a list".into(),
            Json::Map(_) => "an object".into(),
        }
    }
}

macro_rules! from {
    ($($type:ty: $value:ident => $json:expr;)*) => {$(
        impl From<$type> for Json {
            fn from($value: $type) -> Json {
                $json
            }
        }
    )*};
}

from! {
    bool: b => Json::Bool(b);
    i64: n => Json::Int(n);
    u32: n => Json::Int(n.into());
    u64: n => i64::try_from(n).map_or(Json::Large(n), Json::Int);
    usize: n => Json::from(n as u64);
    f64: x => Json::Float(x);
    f32: x => Json::Float(x.to_string().parse().unwrap_or(f64::NAN)); // with no more digits than it has
    &str: text => Json::Text(text.into());
    String: text => Json::Text(text);
    &String: text => Json::Text(text.clone());
}

impl<T: Into<Json>> From<Vec<T>> for Json {
    fn from(list: Vec<T>) -> Self {
        Json::List(list.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<Json>> From<Option<T>> for Json {
    fn from(value: Option<T>) -> Self {
        value.map_or(Json::Null, Into::into)
    }
}

/// As JSON, without spaces.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(b) => write!(f, "{b}"),
            Json::Int(n) => write!(f, "{n}"),
            Json::Large(n) => write!(f, "{n}"),
            Json::Float(x) if !x.is_finite() => f.write_str("null"),
            Json::Float(x) if *x != 0.0 && !(1e-5..1e16).contains(&x.abs()) => write!(f, "{x:e}"),
            Json::Float(x) if x.fract() == 0.0 => write!(f, "{x:.1}"),
            Json::Float(x) => write!(f, "{x}"),
            Json::Text(text) => write_text(f, text),
            Json::List(list) => {
                f.write_char('[')?;
                for (i, value) in list.iter().enumerate() {
                    if i > 0 {
                        f.write_char(',')?;
                    }
                    write!(f, "{value}")?;
                }
                f.write_char(']')
            }
            Json::Map(pairs) => {
                f.write_char('{')?;
                for (i, (name, value)) in pairs.iter().enumerate() {
                    if i > 0 {
                        f.write_char(',')?;
                    }
                    write_text(f, name)?;
                    write!(f, ":{value}")?;
                }
                f.write_char('}')
            }
        }
    }
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    let mut from = 0;
    for (i, byte) in text.bytes().enumerate().filter(|&(_, b)| b < 0x20 || b == b'"' || b == b'\\' || b == 0x7f) {
        f.write_str(&text[from..i])?;
        from = i + 1;
        match byte {
            b'"' => f.write_str("\\\"")?,
            b'\\' => f.write_str("\\\\")?,
            b'\n' => f.write_str("\\n")?,
            b'\r' => f.write_str("\\r")?,
            b'\t' => f.write_str("\\t")?,
            byte => write!(f, "\\u{byte:04x}")?,
        }
    }
    f.write_str(&text[from..])?;
    f.write_char('"')
}

/// Makes values, as many as are `left`.
#[derive(Clone, Copy)]
struct Values<'c> {
    left: &'c Cell<usize>,
    depth: usize,
}

impl Values<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == limits::JSON_DEPTH {
            return Err(E::custom(format_args!("more than {} containers in each other", limits::JSON_DEPTH)));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| D::Error::custom(format_args!("more than {} values", limits::JSON_VALUES)))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Json, E> {
        Ok(Json::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Json, E> {
        Ok(Json::Int(n))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Json, E> {
        Ok(n.into())
    }

    fn visit_f64<E>(self, x: f64) -> Result<Json, E> {
        Ok(Json::Float(x))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let deeper = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(deeper)? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let deeper = self.deeper()?;
        let (mut pairs, mut names) = (Vec::<(Cow<'static, str>, Json)>::new(), HashSet::new());
        while let Some(name) = map.next_key::<String>()? {
            let twice = match pairs.len() {
                0..16 => pairs.iter().any(|(known, _)| *known == name),
                16 => {
                    names = pairs.iter().map(|(name, _)| name.to_string()).collect();
                    !names.insert(name.clone())
                }
                _ => !names.insert(name.clone()),
            };
            if twice {
                let name: String = name.chars().take(40).flat_map(char::escape_debug).collect();
                return Err(A::Error::custom(format_args!("the name \"{name}\" comes twice")));
            }
            pairs.push((name.into(), map.next_value_seed(deeper)?));
        }
        Ok(Json::Map(pairs))
    }
}

/// A value, and where in a body it stands.
#[derive(Debug, Clone)]
pub struct At<'a> {
    pub value: &'a Json,
    /// As RFC 6901 has it; empty for the body.
    pub pointer: String,
}

impl<'a> At<'a> {
    /// The error that says that it must be something else.
    pub fn must_be(&self, what: impl fmt::Display) -> Refusal {
        self.refused(format_args!("is {}, it must be {what}", self.value.kind()))
    }

    /// An error about it: its name, and what is said of it.
    pub fn refused(&self, says: impl fmt::Display) -> Refusal {
        let name = if self.pointer.is_empty() { "the body" } else { &self.pointer[1..] };
        Refusal::invalid(format!("{name} {says}")).at(&self.pointer)
    }

    pub fn bool(&self) -> Answer<bool> {
        if let Json::Bool(b) = self.value { Ok(*b) } else { Err(self.must_be("true or false")) }
    }

    /// A whole number in a range; 3.0 is one, too.
    pub fn int(&self, range: RangeInclusive<i128>) -> Answer<i128> {
        let number = match *self.value {
            Json::Int(n) => Some(i128::from(n)),
            Json::Large(n) => Some(i128::from(n)),
            Json::Float(x) if x.fract() == 0.0 && x.abs() < 9e15 => Some(x as i128),
            _ => None,
        };
        number.filter(|n| range.contains(n)).ok_or_else(|| {
            let (min, max) = range.into_inner();
            self.must_be(match max {
                max if max >= i128::from(i64::MAX) => format!("a whole number, {min} or more"),
                max => format!("a whole number from {min} to {max}"),
            })
        })
    }

    pub fn count(&self) -> Answer<usize> {
        self.int(0..=i128::from(i64::MAX)).map(|n| n as usize)
    }

    /// A finite number.
    pub fn number(&self) -> Answer<f64> {
        match *self.value {
            Json::Int(n) => Ok(n as f64),
            Json::Large(n) => Ok(n as f64),
            Json::Float(x) if x.is_finite() => Ok(x),
            _ => Err(self.must_be("a number")),
        }
    }

    pub fn number_from(&self, range: RangeInclusive<f64>) -> Answer<f64> {
        let x = self.number()?;
        if range.contains(&x) {
            return Ok(x);
        }
        Err(self.must_be(format_args!("from {} to {}", range.start(), range.end())))
    }

    pub fn str(&self) -> Answer<&'a str> {
        let Json::Text(text) = self.value else { return Err(self.must_be("a string")) };
        if text.len() > limits::STRING {
            return Err(self.refused(format_args!("has {} bytes, at most {}", text.len(), limits::STRING)));
        }
        Ok(text)
    }

    /// The elements, which are at most `most`.
    pub fn list(&self, most: usize) -> Answer<impl Iterator<Item = At<'a>> + use<'a>> {
        let Json::List(list) = self.value else { return Err(self.must_be("a list")) };
        if list.len() > most {
            return Err(self.refused(format_args!("has {} elements, at most {most}", list.len())));
        }
        let pointer = self.pointer.clone();
        Ok(list.iter().enumerate().map(move |(i, value)| At { value, pointer: format!("{pointer}/{i}") }))
    }

    pub fn is_list(&self) -> bool {
        matches!(self.value, Json::List(_))
    }

    pub fn is_object(&self) -> bool {
        matches!(self.value, Json::Map(_))
    }

    pub fn is_text(&self) -> bool {
        matches!(self.value, Json::Text(_))
    }

    /// One of a few words.
    pub fn word(&self, words: &[&'static str]) -> Answer<&'static str> {
        let given = self.value.str();
        words.iter().find(|&&word| given == Some(word)).copied().ok_or_else(|| {
            let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
            self.must_be(words.join(" or "))
        })
    }

    pub fn object(&self) -> Answer<Fields<'a>> {
        let Json::Map(pairs) = self.value else { return Err(self.must_be("an object")) };
        Ok(Fields { pairs, pointer: self.pointer.clone(), known: RefCell::default() })
    }
}

/// The fields of an object; those that were asked for are known.
pub struct Fields<'a> {
    pairs: &'a [(Cow<'static, str>, Json)],
    pointer: String,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Fields<'a> {
    /// The field called `name`; null is none.
    pub fn get(&self, name: &'static str) -> Option<At<'a>> {
        self.known.borrow_mut().push(name);
        let (_, value) = self.pairs.iter().find(|(key, value)| key == name && *value != Json::Null)?;
        Some(At { value, pointer: format!("{}/{name}", self.pointer) })
    }

    /// The first of several names for one thing.
    pub fn first(&self, names: &[&'static str]) -> Option<At<'a>> {
        // All of them, so that all are known.
        let mut found = names.iter().filter_map(|name| self.get(name)).collect::<Vec<_>>();
        (!found.is_empty()).then(|| found.swap_remove(0))
    }

    /// # Errors
    /// If it is not there.
    pub fn need(&self, name: &'static str) -> Answer<At<'a>> {
        self.get(name).ok_or_else(|| {
            let pointer = format!("{}/{name}", self.pointer);
            Refusal::invalid(format!("{} is missing", &pointer[1..])).at(&pointer)
        })
    }

    /// Fields that may stand there and mean nothing here.
    pub fn ignore(&self, names: &[&'static str]) {
        self.known.borrow_mut().extend_from_slice(names);
    }

    /// The names that nobody has asked for.
    pub fn unknown(&self) -> Vec<String> {
        let known = self.known.borrow();
        let names = self.pairs.iter().filter(|(name, value)| *value != Json::Null && !known.iter().any(|k| k == name));
        names.map(|(name, _)| name.to_string()).collect()
    }

    /// Where the object stands.
    pub fn pointer(&self) -> &str {
        &self.pointer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_parsed_is_what_is_written() {
        for text in [
            r#"{"b":1,"a":[true,false,null,-3,18446744073709551615,0.5,1e-7,2.0],"":"x"}"#,
            r#""\"\\\n\r\t\u0001 é 𝄞""#,
        ] {
            assert_eq!(Json::parse(text.as_bytes()).unwrap().to_string(), text);
        }
        assert_eq!(Json::from(0.1f32).to_string(), "0.1");
        assert_eq!(Json::from(f64::NAN).to_string(), "null");
    }

    #[test]
    fn what_is_not_json_is_refused_and_says_where() {
        let deep = |n| "[".repeat(n) + &"]".repeat(n);
        assert!(Json::parse(deep(limits::JSON_DEPTH).as_bytes()).is_ok());
        for (text, says) in [
            (deep(limits::JSON_DEPTH + 1), "containers in each other"),
            (deep(100_000), "containers in each other"),
            (r#"{"a":1,"a":2}"#.into(), "\"a\" comes twice"),
            (r#""\ud800""#.into(), "column"),
            ("NaN".into(), "column"),
            ("1e999".into(), "number out of range"),
            ("\u{feff}{}".into(), "column 1"),
            ("{} {}".into(), "trailing"),
            (String::new(), "EOF"),
            (format!("[{}0]", "0,".repeat(limits::JSON_VALUES)), "values"),
        ] {
            let e = Json::parse(text.as_bytes()).unwrap_err();
            assert!(e.contains(says), "{e}");
        }
        assert!(Json::parse(b"\"\xff\"").is_err());
        let many: String = (0..40).map(|i| format!("\"n{}\":0,", i % 39)).collect();
        assert!(Json::parse(format!("{{{}\"z\":1}}", many).as_bytes()).unwrap_err().contains("\"n0\" comes twice"));
    }

    #[test]
    fn errors_name_the_place_the_value_and_the_range() {
        let json = Json::parse(br#"{"a":{"b":[1,"x",2.5]},"n":null,"odd":1}"#).unwrap();
        let body = At { value: &json, pointer: String::new() }.object().unwrap();
        let b = body.get("a").unwrap().object().unwrap().get("b").unwrap();
        let items: Vec<At> = b.list(3).unwrap().collect();
        assert_eq!(items[0].int(0..=5).unwrap(), 1);
        let e = items[1].int(0..=5).unwrap_err();
        assert_eq!(
            (e.message.as_str(), e.param.as_deref()),
            ("a/b/1 is \"x\", it must be a whole number from 0 to 5", Some("/a/b/1"))
        );
        assert!(items[2].int(0..=5).is_err() && items[2].number().is_ok() && b.list(2).is_err());
        assert!(body.get("n").is_none());
        assert_eq!(body.unknown(), ["odd"]);
        assert_eq!(body.need("messages").err().unwrap().message, "messages is missing");
    }
}
