//! Values as Python writes them.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

/// As `str(value)`.
pub(super) fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        _ => repr(value),
    }
}

/// As the filter `indent` of Jinja2: `width` is a number of spaces, or text.
pub(super) fn indent(text: &Value, width: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let width = match width {
        Some(width) => width,
        None => options.get::<Option<Value>>("width")?.unwrap_or(Value::from(4)),
    };
    let flag = |name| Ok::<_, Error>(options.get::<Option<bool>>(name)?.unwrap_or(false));
    let (first, blank) = (flag("first")?, flag("blank")?);
    options.assert_all_used()?;
    let space = match width.as_str() {
        Some(space) => space.to_string(),
        None => " ".repeat(width.as_usize().unwrap_or(4).min(1 << 10)),
    };
    let mut out = if first { space.clone() } else { String::new() };
    for (i, line) in lines(&(str(text) + "\n")).into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
            out.push_str(if blank || !line.is_empty() { &space } else { "" });
        }
        out.push_str(line);
    }
    Ok(out)
}

/// As `text.splitlines()`.
fn lines(text: &str) -> Vec<&str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ENDS) {
        lines.push(&rest[..at]);
        let end = rest[at..].chars().next().map_or(0, char::len_utf8);
        rest = rest[at..].strip_prefix("\r\n").unwrap_or(&rest[at + end..]);
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// As `repr(value)`.
fn repr(value: &Value) -> String {
    let joined = |parts: Vec<String>, open: &str, close: &str| format!("{open}{}{close}", parts.join(", "));
    match value.kind() {
        ValueKind::String => repr_of_text(value.as_str().unwrap_or_default()),
        ValueKind::Number => float(value).map_or_else(|| value.to_string(), repr_of_float),
        ValueKind::Seq => match value.try_iter() {
            Ok(items) => joined(items.map(|item| repr(&item)).collect(), "[", "]"),
            Err(_) => value.to_string(),
        },
        ValueKind::Map => match value.try_iter() {
            Ok(keys) => {
                let pair =
                    |key: Value| format!("{}: {}", repr(&key), repr(&value.get_item(&key).unwrap_or(Value::UNDEFINED)));
                joined(keys.map(pair).collect(), "{", "}")
            }
            Err(_) => value.to_string(),
        },
        _ => value.to_string(), // None, True, False
    }
}

/// The number, if it is a float.
pub(super) fn float(value: &Value) -> Option<f64> {
    if value.kind() == ValueKind::Number && !value.is_integer() { f64::try_from(value.clone()).ok() } else { None }
}

/// As the filter `float` of Jinja2 reads it; None where that gives its default.
pub(super) fn to_float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::String => value.as_str()?.trim().parse().ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// As the filter `int` of Jinja2 reads it: without what comes after the point.
pub(super) fn to_int(value: &Value) -> Option<i128> {
    let whole = match value.kind() {
        ValueKind::String => value.as_str()?.trim().parse().ok(),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    };
    whole.or_else(|| to_float(value).filter(|x| x.is_finite()).map(|x| x as i128))
}

/// The shortest digits that mean this number; with an exponent from 1e16 on and below 1e-4.
fn repr_of_float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = x.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

fn repr_of_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c < ' ' || ('\u{7f}'..'\u{a0}').contains(&c) || c == '\u{ad}' => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_look_as_in_python() {
        for (value, text) in [
            (Value::from(()), "None"),
            (Value::from(true), "True"),
            (Value::from(1), "1"),
            (Value::from(1.0), "1.0"),
            (Value::from(0.1), "0.1"),
            (Value::from(1e16), "1e+16"),
            (Value::from(1.5e-7), "1.5e-07"),
            (Value::from(123456789.125), "123456789.125"),
            (Value::from(-0.0), "-0.0"),
            (Value::from("it's"), "it's"),
            (Value::from(vec![Value::from("a\n"), Value::from("it's"), Value::from(())]), "['a\\n', \"it's\", None]"),
            (Value::from_pairs([("b", Value::from(1)), ("a", Value::from(vec![2.5]))]), "{'b': 1, 'a': [2.5]}"),
        ] {
            assert_eq!(str(&value), text);
        }
    }
}
