//! JSON as Python's `json.dumps` writes it, with what `transformers` lets a template choose: nothing escaped that need not
//! be, keys in their order.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

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
            c if c < ' ' || (ascii && !c.is_ascii()) || (ascii && c == '\u{7f}') => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
