//! JSON as Python's `json.dumps` writes it, with what `transformers` lets a template choose: nothing escaped that need not
//! be, keys in their order; and JSON that others wrote as values for templates.

use std::fmt;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde::de::{self, DeserializeSeed, Visitor};

use super::guard::{Guard, MARK};
use super::python;

/// Containers in containers.
const MOST_DEPTH: usize = 200;

struct Style {
    ascii: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
    sorted: bool,
}

/// `value` as JSON. Options: `ensure_ascii`, `indent`, `separators`, `sort_keys`.
pub(super) fn dumps(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(v) if v.is_none() => None,
        Some(v) => match (v.as_str(), v.as_i64()) {
            (Some(text), _) => Some(text.to_string()),
            (_, Some(n)) => Some(" ".repeat(n.clamp(0, 64) as usize)),
            _ => return Err(Error::new(ErrorKind::InvalidOperation, "indent must be a number or a string")),
        },
        None => None,
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (between, after_key) = match separators.as_deref() {
        Some([between, after_key]) => (between.clone(), after_key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two strings")),
        None => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
    };
    let flag = |name| Ok::<_, Error>(options.get::<Option<bool>>(name)?.unwrap_or(false));
    let style = Style { ascii: flag("ensure_ascii")?, sorted: flag("sort_keys")?, indent, between, after_key };
    let mut out = String::new();
    write(&mut out, value, &style, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    let refuse = |what: &str| Err(Error::new(ErrorKind::BadSerialization, what.to_string()));
    if depth > MOST_DEPTH {
        return refuse("too deep to be written as JSON");
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&match python::float(value) {
            Some(x) if x.is_nan() => "NaN".into(),
            Some(x) if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
            _ => python::str(value),
        }),
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.collect::<Vec<_>>();
            container(out, style, depth, ('[', ']'), &items, |out, item| write(out, item, style, depth + 1))?;
        }
        ValueKind::Map => {
            let mut keys = value.try_iter()?.collect::<Vec<_>>();
            if style.sorted {
                keys.sort_by_key(|key| key.to_string());
            }
            container(out, style, depth, ('{', '}'), &keys, |out, key| {
                let name = match key.kind() {
                    ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
                    ValueKind::None => "null".into(),
                    _ => python::str(key),
                };
                write_string(out, &name, style.ascii);
                out.push_str(&style.after_key);
                write(out, &value.get_item(key)?, style, depth + 1)
            })?;
        }
        kind => return refuse(&format!("{kind} cannot be written as JSON")),
    }
    Ok(())
}

fn container(
    out: &mut String,
    style: &Style,
    depth: usize,
    (open, close): (char, char),
    items: &[Value],
    mut write: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(&style.between);
        }
        line(out, depth + 1);
        write(out, item)?;
    }
    if !items.is_empty() {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn write_string(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            MARK => out.push(c), // it is not there for long
            c if c < ' ' || (ascii && !c.is_ascii()) || (ascii && c == '\u{7f}') => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `value` as `json.dumps(value, ensure_ascii=False)` writes it.
pub(super) fn plain(value: &Value) -> Result<String, Error> {
    let style = Style { ascii: false, indent: None, between: ", ".into(), after_key: ": ".into(), sorted: false };
    let mut out = String::new();
    write(&mut out, value, &style, 0)?;
    Ok(out)
}

/// JSON as a value for templates, its keys in their order; with a guard, names of control tokens in it are broken.
///
/// # Errors
/// [`crate::Error::Argument`] if it is no JSON, is too deep, or has what a guard refuses.
pub fn parse(text: &str, guard: Option<&Guard>) -> crate::error::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Guarded(guard).deserialize(&mut deserializer);
    let value = value.and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|e| crate::error::Error::Argument(e.to_string()))
}

/// Reads a value, see [`parse`]. Its depth is that of `serde_json`, 128.
struct Guarded<'a>(Option<&'a Guard>);

impl Guarded<'_> {
    fn text<E: de::Error>(&self, text: &str) -> Result<Value, E> {
        match self.0 {
            Some(guard) => guard.broken(text).map(Value::from).map_err(E::custom),
            None => Ok(Value::from(text)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Guarded<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Guarded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::from(()))
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::from(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        self.text(text)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(Guarded(self.0))? {
            out.push(item);
        }
        Ok(Value::from(out))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(key) = entries.next_key_seed(Guarded(self.0))? {
            out.push((key, entries.next_value_seed(Guarded(self.0))?));
        }
        Ok(Value::from_pairs(out))
    }
}
