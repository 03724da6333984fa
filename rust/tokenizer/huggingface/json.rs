//! JSON of strangers: a tree that borrows from the text, bounded in depth and in size, in which no name comes twice.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use foldhash::fast::RandomState;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Map(Vec<(Cow<'a, str>, Json<'a>)>),
}

/// Most values of a file: each takes 32 bytes, and the largest real vocabulary has two million.
const MAX_VALUES: usize = 1 << 23;

impl<'a> Json<'a> {
    /// The value that `text` spells. Nesting is bounded by serde_json.
    pub(super) fn parse(text: &'a [u8]) -> Result<Self, serde_json::Error> {
        let left = Cell::new(MAX_VALUES);
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let value = Values { left: &left }.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(value)
    }

    /// The value called `name`; null if there is none, or if this is no map.
    pub(super) fn get(&self, name: &str) -> &Json<'a> {
        match self {
            Json::Map(pairs) => pairs.iter().find(|(key, _)| key == name).map_or(&Json::Null, |(_, value)| value),
            _ => &Json::Null,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Json::Null)
    }

    pub(super) fn str(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn bool(&self) -> Option<bool> {
        match self {
            Json::Bool(b) => Some(*b),
            _ => None,
        }
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Json::Number(x) => Some(*x),
            _ => None,
        }
    }

    /// A whole number of 32 bits.
    pub(super) fn u32(&self) -> Option<u32> {
        self.number().filter(|x| x.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(x)).map(|x| x as u32)
    }

    /// The elements; none if this is no list.
    pub(super) fn list(&self) -> &[Json<'a>] {
        match self {
            Json::List(list) => list,
            _ => &[],
        }
    }

    /// What kind of value it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Json::Null => "nothing",
            Json::Bool(_) => "a bool",
            Json::Number(_) => "a number",
            Json::Text(_) => "a string",
            Json::List(_) => "a list",
            Json::Map(_) => "a map",
        }
    }
}

/// Makes values, as many as are `left`.
#[derive(Clone, Copy)]
struct Values<'c> {
    left: &'c Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| D::Error::custom(format_args!("more than {MAX_VALUES} values")))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(b))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(n as f64))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(n as f64))
    }

    fn visit_f64<E>(self, x: f64) -> Result<Json<'de>, E> {
        Ok(Json::Number(x))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(name) = map.next_key_seed(Name)? {
            pairs.push((name, map.next_value_seed(self)?));
        }
        let mut names = HashSet::with_capacity_and_hasher(pairs.len(), RandomState::default());
        match pairs.iter().find(|(name, _)| !names.insert(&**name)) {
            Some((name, _)) => Err(A::Error::custom(format_args!("the name {name:.80?} comes twice in one map"))),
            None => Ok(Json::Map(pairs)),
        }
    }
}

/// Makes a name, borrowed if it can be.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_what_the_text_says() {
        let json = Json::parse(br#"{"a": [1, -2.5, true, null], "b\n": {"c": "\u00e9"}}"#).unwrap();
        assert_eq!(json.get("a").list()[1], Json::Number(-2.5));
        assert_eq!(json.get("b\n").get("c").str(), Some("é"));
        assert!(json.get("x").get("y").is_null());
        assert_eq!(Json::Number(4294967296.0).u32(), None);
        assert_eq!(Json::Number(-1.0).u32(), None);
    }

    #[test]
    fn what_is_made_to_hurt_is_an_error() {
        let nested = "[".repeat(1 << 20);
        let many = format!("[{}1]", "1,".repeat(MAX_VALUES));
        for text in ["", "{", r#"{"a": 1, "a": 1}"#, "[1] x", "nul", r#""\ud800""#, "[1e999]", &nested, &many] {
            let e = Json::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(!e.contains('\n'), "{e}");
        }
        assert!(Json::parse(b"\"\xff\"").is_err());
        assert!(Json::parse(r#"{"a": {"a": 1}}"#.as_bytes()).is_ok());
    }
}
