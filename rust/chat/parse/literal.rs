//! Values as Python and Gemma write them, to JSON.

/// How values are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// What texts are between, if not between quotes.
    pub quote: Option<&'static str>,
}

/// Containers in containers.
const MOST_DEPTH: usize = 64;

impl Style {
    /// The length of the text that `text` begins with, quotes and all. None if it does not end.
    pub fn string(self, text: &str) -> Option<usize> {
        if let Some(quote) = self.quote.filter(|quote| text.starts_with(quote)) {
            return text[quote.len()..].find(quote).map(|n| n + 2 * quote.len());
        }
        let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let mut escaped = false;
        let end = text.char_indices().skip(1).find(|&(_, c)| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        end.map(|(at, _)| at + 1)
    }

    /// Whether `text` begins with a text, or may with more of it.
    pub fn begins_a_string(self, text: &str) -> bool {
        match self.quote {
            Some(quote) => text.starts_with(quote) || (text.len() < quote.len() && quote.starts_with(text)),
            None => text.starts_with(['"', '\'']),
        }
    }

    /// Where the value ends that `text` begins with: before one of `ends`, outside of brackets and texts. None if it does not
    /// end.
    pub fn end_of_value(self, text: &str, ends: &[char]) -> Option<usize> {
        let mut depth = 0usize;
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            if self.begins_a_string(&text[at..]) {
                at += self.string(&text[at..])?;
                continue;
            }
            match c {
                c if depth == 0 && ends.contains(&c) => return Some(at),
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            at += c.len_utf8();
        }
        None
    }

    /// The value as JSON. What is no literal is text.
    pub fn to_json(self, text: &str) -> String {
        let text = text.trim();
        let mut out = String::new();
        match self.value(text, &mut out, 0) {
            Some(rest) if rest.trim().is_empty() => out,
            _ => quoted(text),
        }
    }

    /// Writes the value that `text` begins with; gives what follows.
    fn value<'a>(self, text: &'a str, out: &mut String, depth: usize) -> Option<&'a str> {
        let text = text.trim_start();
        if depth > MOST_DEPTH {
            return None;
        }
        if self.begins_a_string(text) {
            let n = self.string(text)?;
            out.push_str(&quoted(&self.said(&text[..n])?));
            return Some(&text[n..]);
        }
        match text.chars().next()? {
            open @ ('[' | '(') => {
                let close = if open == '[' { ']' } else { ')' };
                out.push('[');
                let rest = self.items(&text[1..], close, out, |text, out| self.value(text, out, depth + 1))?;
                out.push(']');
                Some(rest)
            }
            '{' => {
                out.push('{');
                let rest = self.items(&text[1..], '}', out, |text, out| {
                    let key = text.find(':').map(|n| text[..n].trim());
                    let rest = if self.begins_a_string(text) {
                        let n = self.string(text)?;
                        out.push_str(&quoted(&self.said(&text[..n])?));
                        &text[n..]
                    } else {
                        let key = key.filter(|key| !key.is_empty() && !key.contains(['{', '}', '[', ']', ',']))?;
                        out.push_str(&quoted(key));
                        &text[text.find(':')?..]
                    };
                    out.push_str(": ");
                    self.value(rest.trim_start().strip_prefix(':')?, out, depth + 1)
                })?;
                out.push('}');
                Some(rest)
            }
            _ => {
                let n = text.find([',', ']', '}', ')']).unwrap_or(text.len());
                let word = text[..n].trim_end();
                out.push_str(match word {
                    "True" | "true" => "true",
                    "False" | "false" => "false",
                    "None" | "null" => "null",
                    number if is_number(number) => number,
                    _ => return None,
                });
                Some(&text[n..])
            }
        }
    }

    fn items<'a>(
        self,
        mut text: &'a str,
        close: char,
        out: &mut String,
        mut item: impl FnMut(&'a str, &mut String) -> Option<&'a str>,
    ) -> Option<&'a str> {
        let mut first = true;
        loop {
            text = text.trim_start();
            if let Some(rest) = text.strip_prefix(close) {
                return Some(rest);
            }
            if !first {
                text = text.strip_prefix(',')?.trim_start();
                if let Some(rest) = text.strip_prefix(close) {
                    return Some(rest); // a comma at the end
                }
                out.push_str(", ");
            }
            first = false;
            text = item(text, out)?;
        }
    }

    /// What a text between quotes says.
    fn said(self, text: &str) -> Option<String> {
        if let Some(inner) = self.quote.and_then(|quote| text.strip_prefix(quote)?.strip_suffix(quote)) {
            return Some(inner.into());
        }
        let mut out = String::with_capacity(text.len());
        let mut chars = text.get(1..text.len() - 1)?.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                out.push(c);
                continue;
            }
            match chars.next()? {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                'x' => out.push(code_of(&mut chars, 2)?),
                'u' => out.push(code_of(&mut chars, 4)?),
                'U' => out.push(code_of(&mut chars, 8)?),
                '\n' => {}
                c @ ('\\' | '\'' | '"') => out.push(c),
                c => out.extend(['\\', c]),
            }
        }
        Some(out)
    }
}

fn code_of(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let hex: String = chars.by_ref().take(digits).collect();
    u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32)
}

fn is_number(text: &str) -> bool {
    serde_json::from_str::<f64>(text).is_ok()
}

/// Text as a string of JSON.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

/// What is between its quotes.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_of_python_become_json() {
        let python = Style { quote: None };
        for (text, json) in [
            ("True", "true"),
            ("None", "null"),
            ("-1.5e3", "-1.5e3"),
            ("'it\\'s'", "\"it's\""),
            ("\"a\\nb\\x41\\u00e9\"", "\"a\\nbA\u{e9}\""),
            ("['a', (1, 2), {'k': None, \"l\": [],}]", "[\"a\", [1, 2], {\"k\": null, \"l\": []}]"),
            ("nonsense(1)", "\"nonsense(1)\""),
            ("1.", "\"1.\""),
            ("", "\"\""),
        ] {
            assert_eq!(python.to_json(text), json);
        }
        let gemma = Style { quote: Some("<escape>") };
        let text = "{city:<escape>San \"F\", {<escape>,n:3,list:[<escape>a<escape>,true]}";
        assert_eq!(gemma.to_json(text), r#"{"city": "San \"F\", {", "n": 3, "list": ["a", true]}"#);
    }
}
