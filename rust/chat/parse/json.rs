//! Calls as objects of JSON: `{"name": ..., "arguments": ...}`, one or several, in a list or not.

use super::{NoCall, Parser, State, Step, Stepped};

const NAMES: [&str; 4] = ["name", "tool_name", "function", "function_name"];
const ARGUMENTS: [&str; 4] = ["arguments", "parameters", "args", "input"];

/// Finds the end of a value that begins with a bracket, by counting brackets outside of strings.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scan {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// How many more bytes belong to it, and whether that is all.
    pub fn feed(&mut self, text: &str) -> (usize, bool) {
        for (i, b) in text.bytes().enumerate() {
            match b {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (i + 1, true);
                    }
                }
                _ => {}
            }
        }
        (text.len(), false)
    }
}

/// Where we are in objects that are calls.
#[derive(Debug)]
pub(super) struct Object {
    ends: &'static [&'static str],
    strict: bool, // only what is a call of one of the tools, with arguments
    in_list: bool,
    any: bool, // there was one
    part: Part,
    nested: u32, // in an object `function`
    name: Option<String>,
    id: Option<String>,
    arguments: Option<String>,
}

#[derive(Debug)]
enum Part {
    /// Between objects.
    Between,
    /// Before a key, or the end of the object.
    Key,
    /// After a key.
    Colon(String),
    /// Before the value of a key.
    Value(String),
    /// In a value that goes out as it is.
    Sent(Scan),
    /// In arguments before the name.
    Kept(Scan),
    /// In a value that says nothing.
    Skipped(Scan),
}

impl Object {
    /// Objects, and then perhaps one of `ends`. Without a mark before them it is `strict` that they are calls.
    pub fn new(ends: &'static [&'static str], strict: bool) -> Self {
        Self {
            ends,
            strict,
            in_list: false,
            any: false,
            part: Part::Between,
            nested: 0,
            name: None,
            id: None,
            arguments: None,
        }
    }
}

/// The length of the string that `text` begins with, and what it says. None if it does not end.
fn string(text: &str) -> Option<Result<(usize, String), NoCall>> {
    let mut escaped = false;
    let end = text.bytes().enumerate().skip(1).find(|&(_, b)| {
        let ends = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        ends
    });
    let n = end?.0 + 1;
    // Models write newlines as they are.
    let said = serde_json::from_str(&text[..n]).or_else(|_| serde_json::from_str(&with_escapes(&text[..n])));
    Some(said.map(|said| (n, said)).map_err(|_| NoCall))
}

fn with_escapes(text: &str) -> String {
    text.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
}

impl Parser {
    pub(super) fn objects(&mut self, mut o: Object, end: bool) -> Stepped {
        let wait = |o: Object| Ok(Step::Wait(State::Objects(o)));
        match std::mem::replace(&mut o.part, Part::Key) {
            Part::Between => return self.between(o, end),
            Part::Key => {
                let n = self.rest().len() - self.rest().trim_start_matches([' ', '\n', '\t', '\r', ',']).len();
                self.skip(n);
                let rest = self.rest();
                match rest.as_bytes().first() {
                    None => return wait(o),
                    Some(b'}') if o.nested > 0 => {
                        o.nested -= 1;
                        self.skip(1);
                    }
                    Some(b'}') => {
                        self.skip(1);
                        return self.end_of_object(o);
                    }
                    Some(b'"') => {
                        let Some(said) = string(rest) else { return wait(o) };
                        let (n, key) = said?;
                        self.skip(n);
                        o.part = Part::Colon(key);
                    }
                    // The call ends before its object does.
                    Some(_) if self.committed && o.ends.iter().any(|mark| rest.starts_with(mark)) => {
                        return Ok(Step::Go(State::Closing(o.ends)));
                    }
                    Some(_) if self.committed && !end && o.ends.iter().any(|mark| mark.starts_with(rest)) => {
                        return wait(o);
                    }
                    Some(_) => return Err(NoCall),
                }
            }
            Part::Colon(key) => {
                self.skip_space();
                match self.rest().as_bytes().first() {
                    None => {
                        o.part = Part::Colon(key);
                        return wait(o);
                    }
                    Some(b':') => self.skip(1),
                    Some(_) => return Err(NoCall),
                }
                o.part = Part::Value(key);
            }
            Part::Value(key) => return self.value(o, key, end),
            Part::Sent(mut scan) => {
                let (n, done) = scan.feed(self.rest());
                let text = self.take(n);
                self.emit_arguments(&text);
                if !done {
                    o.part = Part::Sent(scan);
                    return wait(o);
                }
            }
            Part::Kept(mut scan) => {
                let (n, done) = scan.feed(self.rest());
                let text = self.take(n);
                o.arguments.get_or_insert_default().push_str(&text);
                if !done {
                    o.part = Part::Kept(scan);
                    return wait(o);
                }
            }
            Part::Skipped(mut scan) => {
                let (n, done) = scan.feed(self.rest());
                self.skip(n);
                if !done {
                    o.part = Part::Skipped(scan);
                    return wait(o);
                }
            }
        }
        Ok(Step::Go(State::Objects(o)))
    }

    /// Between objects.
    fn between(&mut self, mut o: Object, end: bool) -> Stepped {
        o.part = Part::Between;
        let rest = self.rest();
        let after = rest.trim_start_matches(|c: char| c.is_whitespace() || (o.any && matches!(c, ',' | ';')));
        let n = rest.len() - after.len();
        if let Some(mark) = o.ends.iter().find(|mark| after.starts_with(**mark)) {
            if !o.any {
                return Err(NoCall);
            }
            self.skip(n + mark.len());
            self.end_call();
            return Ok(Step::Go(State::Text));
        }
        match after.as_bytes().first() {
            Some(b'{') => {
                self.skip(n + 1);
                o.part = Part::Key;
                (o.name, o.id, o.arguments, o.nested) = (None, None, None, 0);
                Ok(Step::Go(State::Objects(o)))
            }
            Some(b'[') if !o.in_list && !o.any => {
                self.skip(n + 1);
                o.in_list = true;
                Ok(Step::Go(State::Objects(o)))
            }
            Some(b']') if o.in_list && o.any => {
                self.skip(n + 1);
                o.in_list = false;
                Ok(Step::Go(State::Objects(o)))
            }
            None if !end => Ok(Step::Wait(State::Objects(o))),
            Some(_) if !end && o.ends.iter().any(|mark| mark.starts_with(after)) => Ok(Step::Wait(State::Objects(o))),
            // The calls are over: what comes now is text.
            _ if o.any => {
                self.end_call();
                Ok(Step::Go(State::Text))
            }
            _ => Err(NoCall),
        }
    }

    /// After a key and a colon.
    fn value(&mut self, mut o: Object, key: String, end: bool) -> Stepped {
        self.skip_space();
        let rest = self.rest();
        let is_string = match rest.as_bytes().first() {
            None => {
                o.part = Part::Value(key);
                return Ok(Step::Wait(State::Objects(o)));
            }
            Some(first) => *first == b'"',
        };
        let said = if is_string { string(rest).transpose()? } else { None };
        if is_string && said.is_none() {
            o.part = Part::Value(key);
            return Ok(Step::Wait(State::Objects(o)));
        }
        let is_bracket = rest.starts_with(['{', '[']);
        if let (Some((n, said)), true) = (&said, o.name.is_none() && NAMES.contains(&&*key)) {
            self.skip(*n);
            o.name = Some(said.clone());
            if let Some(arguments) = o.arguments.take() {
                self.commit_object(&mut o)?;
                self.emit_arguments(&arguments);
                o.arguments = Some(String::new());
            }
        } else if key == "function" && rest.starts_with('{') && o.nested == 0 {
            self.skip(1);
            o.nested += 1;
        } else if ARGUMENTS.contains(&&*key) && o.arguments.is_none() {
            let named = o.name.is_some();
            // JSON, or JSON in a string, or nothing.
            let text = match said {
                Some(said) => Some(said),
                None if is_bracket => None,
                None => match scalar(rest, end) {
                    Some((n, word)) => Some((n, if word == "null" { "{}".into() } else { word })),
                    None => {
                        o.part = Part::Value(key);
                        return Ok(Step::Wait(State::Objects(o)));
                    }
                },
            };
            if named {
                self.commit_object(&mut o)?;
            }
            match text {
                None => o.part = if named { Part::Sent(Scan::default()) } else { Part::Kept(Scan::default()) },
                Some((n, _)) => self.skip(n),
            }
            let text = text.map(|(_, text)| text).unwrap_or_default();
            if named {
                self.emit_arguments(&text);
            }
            o.arguments = Some(if named { String::new() } else { text });
        } else if is_bracket {
            o.part = Part::Skipped(Scan::default());
        } else if let Some((n, said)) = said {
            self.skip(n);
            let is_id = key == "id" && said.len() == 9 && said.bytes().all(|b| b.is_ascii_alphanumeric());
            if is_id && o.id.is_none() {
                o.id = Some(said);
            }
        } else {
            let Some((n, _)) = scalar(rest, end) else {
                o.part = Part::Value(key);
                return Ok(Step::Wait(State::Objects(o)));
            };
            self.skip(n);
        }
        Ok(Step::Go(State::Objects(o)))
    }

    fn commit_object(&mut self, o: &mut Object) -> Result<(), NoCall> {
        let name = o.name.as_deref().filter(|name| !name.is_empty()).ok_or(NoCall)?;
        if o.strict && self.tool(name).is_none() {
            return Err(NoCall);
        }
        let (name, id) = (name.to_string(), o.id.take());
        self.commit(&name, id);
        Ok(())
    }

    fn end_of_object(&mut self, mut o: Object) -> Stepped {
        if !self.committed {
            if o.strict && o.arguments.is_none() {
                return Err(NoCall);
            }
            self.commit_object(&mut o)?;
            self.emit_arguments("{}");
        }
        self.committed = false;
        self.raw.clear();
        o.any = true;
        o.part = Part::Between;
        Ok(Step::Go(State::Objects(o)))
    }
}

/// The number or word that `text` begins with; None if it may go on.
fn scalar(text: &str, end: bool) -> Option<(usize, String)> {
    let n = text.find(|c: char| matches!(c, ',' | '}' | ']') || c.is_whitespace()).or(end.then_some(text.len()))?;
    Some((n, text[..n].to_string()))
}
