//! Calls with their arguments in brackets: `[f(a=1, b="x"), g()]` as in Python, and Gemma's `call:f{a:1}`.

use super::literal::{Style, quoted};
use super::{LONGEST_NAME, NoCall, Parser, State, Step, Stepped, is_name};

/// Where we are in calls.
#[derive(Debug)]
pub(super) struct Pairs {
    ends: &'static [&'static str],
    style: Style,
    prefix: &'static str, // of a name
    open: char,
    is: char, // between a name and a value
    close: char,
    strict: bool, // only the tools that there are
    in_list: bool,
    any: bool, // there was one
    part: Part,
    tool: String,
    n: usize, // arguments so far
}

#[derive(Debug)]
enum Part {
    Between,
    Name,
    Argument,
    Value,
}

impl Pairs {
    /// Calls in Python, and then perhaps one of `ends`. Without a mark before them it is `strict` that they are calls.
    pub fn python(ends: &'static [&'static str], strict: bool) -> Self {
        Self {
            ends,
            style: Style { quote: None },
            prefix: "",
            open: '(',
            is: '=',
            close: ')',
            strict,
            in_list: false,
            any: false,
            part: Part::Between,
            tool: String::new(),
            n: 0,
        }
    }

    /// A call as Gemma writes it, whose texts are between `quote`s.
    pub fn gemma(quote: &'static str, ends: &'static [&'static str]) -> Self {
        let style = Style { quote: Some(quote) };
        Self { style, prefix: "call:", open: '{', is: ':', close: '}', ..Self::python(ends, false) }
    }
}

impl Parser {
    pub(super) fn pairs(&mut self, mut p: Pairs, end: bool) -> Stepped {
        let wait = |p: Pairs| Ok(Step::Wait(State::Pairs(p)));
        match p.part {
            Part::Between => {
                let rest = self.rest();
                let after = rest.trim_start_matches(|c: char| c.is_whitespace() || (p.any && matches!(c, ',' | ';')));
                let n = rest.len() - after.len();
                if let Some(mark) = p.ends.iter().find(|mark| p.any && after.starts_with(**mark)) {
                    self.skip(n + mark.len());
                    self.end_call();
                    return Ok(Step::Go(State::Text));
                }
                let may_end = p.ends.iter().any(|mark| after.len() < mark.len() && mark.starts_with(after));
                match after.chars().next() {
                    None if !end => return wait(p),
                    Some('[') if !p.in_list && !p.any => {
                        self.skip(n + 1);
                        p.in_list = true;
                    }
                    Some(']') if p.in_list && p.any => {
                        self.skip(n + 1);
                        p.in_list = false;
                    }
                    Some(_) if !end && may_end => return wait(p),
                    Some(c) if is_name(c) && (p.in_list || !p.any) => {
                        self.skip(n);
                        p.part = Part::Name;
                    }
                    _ if p.any => {
                        self.end_call();
                        return Ok(Step::Go(State::Text));
                    }
                    _ => return Err(NoCall),
                }
            }
            Part::Name => {
                let rest = self.rest();
                let at = rest.find(p.open);
                let name = rest[..at.unwrap_or(rest.len())].trim_end();
                let inner = name.strip_prefix(p.prefix).unwrap_or(if p.prefix.starts_with(name) { "" } else { "?" });
                if name.len() > LONGEST_NAME || !inner.trim_start().chars().all(is_name) {
                    return Err(NoCall);
                }
                let Some(at) = at else { return if end { Err(NoCall) } else { wait(p) } };
                // What Llama has built in, it calls so.
                let inner = inner.trim_start();
                let tool = if p.open == '(' { inner.strip_suffix(".call").unwrap_or(inner) } else { inner };
                if tool.is_empty() || (p.strict && self.tool(tool).is_none()) {
                    return Err(NoCall);
                }
                p.tool = tool.to_string();
                self.skip(at + p.open.len_utf8());
                self.commit(&p.tool, None);
                self.emit_arguments("{");
                (p.part, p.n) = (Part::Argument, 0);
            }
            Part::Argument => {
                let rest = self.rest();
                let after = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
                let n = rest.len() - after.len();
                if after.is_empty() {
                    return wait(p);
                }
                if after.starts_with(p.close) {
                    self.skip(n + p.close.len_utf8());
                    self.emit_arguments("}");
                    self.committed = false;
                    self.raw.clear();
                    (p.part, p.any) = (Part::Between, true);
                    return Ok(Step::Go(State::Pairs(p)));
                }
                // A name, unless it is a value in its place.
                let key = after.find(|c| !is_name(c));
                let comma = if p.n > 0 { ", " } else { "" };
                let is_quoted = p.style.begins_a_string(after);
                let (key, n) = if is_quoted && p.is == ':' {
                    let Some(length) = p.style.string(after) else { return wait(p) };
                    let Some(colon) = after[length..].find(p.is) else { return wait(p) };
                    (p.style.to_json(&after[..length]), n + length + colon + 1)
                } else {
                    let Some(key) = key.or(is_quoted.then_some(0)) else { return wait(p) };
                    let is = after[key..].trim_start();
                    if is.is_empty() && key > 0 {
                        return wait(p);
                    }
                    if key > 0 && is.starts_with(p.is) {
                        (quoted(&after[..key]), rest.len() - is.len() + p.is.len_utf8())
                    } else {
                        let place = self.tool(&p.tool).and_then(|tool| tool.nth(p.n)).map(String::from);
                        (quoted(&place.unwrap_or_else(|| format!("arg{}", p.n))), n)
                    }
                };
                self.skip(n);
                self.emit_arguments(&format!("{comma}{key}: "));
                p.n += 1;
                p.part = Part::Value;
            }
            Part::Value => {
                let Some(n) = p.style.end_of_value(self.rest(), &[',', p.close]) else { return wait(p) };
                let value = self.take(n);
                self.emit_arguments(&p.style.to_json(&value));
                p.part = Part::Argument;
            }
        }
        Ok(Step::Go(State::Pairs(p)))
    }

    /// Ends a call that the text ended in.
    pub(super) fn finish_pairs(&mut self, p: Pairs, cut_off: bool) {
        let rest = self.rest().to_string();
        self.at = self.held.len();
        match p.part {
            Part::Value if !cut_off => self.emit_arguments(&(p.style.to_json(&rest) + "}")),
            Part::Argument if !cut_off => self.emit_arguments("}"),
            _ => self.emit_arguments(rest.trim()),
        }
    }
}
