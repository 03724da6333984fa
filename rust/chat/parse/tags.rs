//! Calls in tags: a name, and each argument between tags of its own, as text.
//!
//! They become JSON as they come. What a value is, the tool says: text goes out while it comes, and what is something else
//! when it is whole.

use super::literal::{Style, escaped, quoted};
use super::{LONGEST_NAME, NoCall, Parser, State, Step, Stepped, is_name};
use crate::chat::family::Tags;
use crate::chat::message::Kind;

/// Where we are in a call.
#[derive(Debug)]
pub(super) struct Tagged {
    tags: &'static Tags,
    ends: &'static [&'static str],
    name: String,
    part: Part,
    n: usize, // arguments so far
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Name,
    /// After the name, where the arguments may be in JSON.
    First,
    /// Between arguments.
    Between,
    Key,
    /// Before a value in tags of its own.
    Open(Kind),
    /// Where a value may begin with a newline that does not belong to it.
    Line(Kind),
    /// In a value.
    Value(Kind),
}

impl Tagged {
    pub fn new(tags: &'static Tags, ends: &'static [&'static str]) -> Self {
        Self { tags, ends, name: String::new(), part: Part::Name, n: 0 }
    }
}

/// Whether what `text` begins with may become `mark`, and is not yet.
fn may_be(text: &str, mark: &str) -> bool {
    text.len() < mark.len() && mark.starts_with(text)
}

impl Parser {
    pub(super) fn tagged(&mut self, mut t: Tagged, end: bool) -> Stepped {
        let wait = |t: Tagged| Ok(Step::Wait(State::Tagged(t)));
        let tags = t.tags;
        match t.part {
            Part::Name => {
                let rest = self.rest();
                let n = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                let after = &rest[n..];
                if n > LONGEST_NAME || (n == 0 && !after.is_empty()) {
                    return Err(NoCall);
                }
                if after.is_empty() || may_be(after, tags.name_end) {
                    return if end { Err(NoCall) } else { wait(t) };
                }
                if !after.starts_with(tags.name_end) {
                    return Err(NoCall);
                }
                t.name = self.take(n);
                self.skip(tags.name_end.len());
                t.part = Part::First;
            }
            Part::First => {
                let after = self.rest().trim_start();
                let n = self.rest().len() - after.len();
                let known = [tags.key, tags.end];
                if after.is_empty() || known.iter().any(|mark| may_be(after, mark)) {
                    return if end { Err(NoCall) } else { wait(t) };
                }
                let is_json = after.starts_with('{');
                if !is_json && !known.iter().any(|mark| after.starts_with(mark)) {
                    return Err(NoCall);
                }
                self.skip(n);
                self.commit(&t.name, None);
                if is_json {
                    let ends: &'static [&'static str] = std::slice::from_ref(&tags.end);
                    return Ok(Step::Go(State::Arguments(super::json::Scan::default(), ends)));
                }
                self.emit_arguments("{");
                t.part = Part::Between;
            }
            Part::Between => {
                let after = self.rest().trim_start();
                let n = self.rest().len() - after.len();
                if after.starts_with(tags.key) {
                    self.skip(n + tags.key.len());
                    t.part = Part::Key;
                } else if after.starts_with(tags.end) {
                    self.skip(n + tags.end.len());
                    self.emit_arguments("}");
                    return Ok(Step::Go(State::Closing(t.ends)));
                } else if !end && [tags.key, tags.end].iter().any(|mark| may_be(after, mark)) {
                    return wait(t);
                } else if end && after.is_empty() {
                    return wait(t); // cut off between arguments, or nearly whole: see finish_tagged
                } else {
                    self.emit_arguments("}");
                    return Err(NoCall); // the call stands
                }
            }
            Part::Key => {
                let Some(n) = self.rest().find(tags.key_end) else {
                    return if self.rest().len() > LONGEST_NAME { self.malformed(t) } else { wait(t) };
                };
                let said = self.take(n);
                self.skip(tags.key_end.len());
                let (key, attributes) = said.split_once('"').unwrap_or((&said, ""));
                let key = key.trim();
                let kind = match () {
                    () if attributes.contains("string=\"true\"") => Kind::Text,
                    () if attributes.contains("string=\"false\"") => Kind::Other,
                    () => self.tool(&t.name).map_or(Kind::Unknown, |tool| tool.kind(key)),
                };
                let kind = match kind {
                    Kind::Unknown if tags.may_be_json => Kind::Other,
                    Kind::Unknown => Kind::Text,
                    kind => kind,
                };
                let comma = if t.n > 0 { ", " } else { "" };
                self.emit_arguments(&format!("{comma}{}: ", quoted(key)));
                t.n += 1;
                t.part = if tags.value.is_empty() { Part::Line(kind) } else { Part::Open(kind) };
            }
            Part::Open(kind) => {
                self.skip_space();
                if may_be(self.rest(), tags.value) {
                    return wait(t);
                }
                if !self.rest().starts_with(tags.value) {
                    return self.malformed(t);
                }
                self.skip(tags.value.len());
                t.part = Part::Line(kind);
            }
            Part::Line(kind) => {
                let rest = self.rest();
                if tags.in_lines {
                    if rest.is_empty() || rest == "\r" {
                        return wait(t);
                    }
                    let newline = usize::from(rest.starts_with('\n')) + 2 * usize::from(rest.starts_with("\r\n"));
                    self.skip(newline);
                }
                if kind == Kind::Text {
                    self.emit_arguments("\"");
                }
                t.part = Part::Value(kind);
            }
            Part::Value(kind) => return self.tagged_value(t, kind, end),
        }
        Ok(Step::Go(State::Tagged(t)))
    }

    /// In a value: what comes goes out, if it is text for certain.
    fn tagged_value(&mut self, mut t: Tagged, kind: Kind, end: bool) -> Stepped {
        let tags = t.tags;
        let rest = self.rest();
        let mut from = 0;
        // The tag may be in the value: it ends that only where another tag follows.
        let ends_at = loop {
            let Some(at) = rest[from..].find(tags.value_end).map(|at| from + at) else { break None };
            let after = rest[at + tags.value_end.len()..].trim_start();
            let marks = [tags.key, tags.end];
            let mut marks = marks.iter().chain(t.ends);
            let may_follow = marks.clone().any(|mark| may_be(after, mark));
            if marks.any(|mark| after.starts_with(mark)) || (end && may_follow) {
                break Some((at, true));
            }
            if may_follow {
                break Some((at, false));
            }
            from = at + tags.value_end.len();
        };
        if let Some((at, true)) = ends_at {
            let value = self.take(at);
            self.skip(tags.value_end.len());
            let value = match value.strip_suffix('\n').filter(|_| tags.in_lines) {
                Some(line) => line.strip_suffix('\r').unwrap_or(line),
                None => &value,
            };
            match kind {
                Kind::Text => self.emit_arguments(&format!("{}\"", escaped(value))),
                _ => self.emit_arguments(&value_in_json(value, kind)),
            }
            t.part = Part::Between;
            return Ok(Step::Go(State::Tagged(t)));
        }
        if kind == Kind::Text {
            // All but what may be the end, with the newline before it.
            let mut safe = ends_at.map_or(rest.len(), |(at, _)| at);
            if ends_at.is_none()
                && let Some(at) = super::partial(rest, tags.value_end)
            {
                safe = at.max(from);
            }
            if tags.in_lines {
                safe = rest[..safe].strip_suffix('\n').map_or(safe, str::len).max(from);
                safe = rest[..safe].strip_suffix('\r').map_or(safe, str::len).max(from);
            }
            let text = self.take(safe);
            self.emit_arguments(&escaped(&text));
        }
        Ok(Step::Wait(State::Tagged(t)))
    }

    /// It is a call, and not as it should be: what comes is text.
    fn malformed(&mut self, _: Tagged) -> Stepped {
        self.emit_arguments("null}");
        Err(NoCall)
    }

    /// Ends a call that the text ended in.
    pub(super) fn finish_tagged(&mut self, t: Tagged, cut_off: bool) {
        let rest = self.rest().to_string();
        self.at = self.held.len();
        match t.part {
            Part::Value(Kind::Text) => {
                self.emit_arguments(&escaped(&rest));
                if !cut_off {
                    self.emit_arguments("\"}");
                }
            }
            Part::Value(kind) if !cut_off => {
                let text = value_in_json(&rest, kind);
                self.emit_arguments(&(text + "}"));
            }
            Part::Between if !cut_off => self.emit_arguments("}"),
            _ => self.emit_arguments(&rest),
        }
    }
}

/// A value that is not text, or that may be nothing.
fn value_in_json(value: &str, kind: Kind) -> String {
    let trimmed = value.trim();
    if kind == Kind::TextOrNull {
        return if matches!(trimmed, "null" | "None") { "null".into() } else { quoted(value) };
    }
    if serde_json::from_str::<serde::de::IgnoredAny>(trimmed).is_ok() {
        return trimmed.into();
    }
    Style { quote: None }.to_json(value)
}
