//! What a model writes, taken apart: what it thinks, what it says, which tools it calls.
//!
//! One parser for text that comes in pieces and for text that is there as a whole, of all families. It holds back what may
//! still become a mark, and decides only what more text cannot change: so how the text is cut makes no difference.
//! Arguments in JSON go out as the model writes them, by a scanner that counts brackets; arguments in tags or in Python
//! become JSON as they come. Nothing is lost: what looked like a call and is none goes where it was found, mark and all.
//! Only marks are left out, and the white space beside them.
//!
//! Control tokens come to it as text, by their names ([`Format::marks`]): some vocabularies have a mark as a control token,
//! some as an ordinary one, some as several, and models spell out what they should not. To the parser all are the same.

mod json;
mod literal;
mod pairs;
mod tags;

use std::mem::take;

use self::json::Object;
use self::pairs::Pairs;
use self::tags::Tagged;
use super::family::{ARG_KEY, FUNCTION, Form, Format, Messages};
use super::message::{Delta, Tool};

/// Bytes of a name with what belongs to it. A longer one is none.
const LONGEST_NAME: usize = 256;
/// Bytes of a header of a message.
const LONGEST_HEADER: usize = 512;

/// Which calls a parser looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Calls {
    /// None: what looks like one is text.
    #[default]
    None,
    /// Those of the family, where the model makes them.
    Auto,
    /// The whole answer is calls in JSON, `{"name": ..., "arguments": ...}` or a list of them: it was made so.
    Json,
}

/// What a parser has to know of the question.
#[derive(Debug, Clone, Default)]
pub struct Setup<'a> {
    /// Which calls to look for.
    pub calls: Calls,
    /// The tools that there are.
    pub tools: Vec<Tool>,
    /// Whether what the model thinks is kept apart from what it says; else it is part of that, marks and all.
    pub reasoning: bool,
    /// The prompt as text, or its end: it may have begun to think for the model.
    pub prompt: &'a str,
    /// What ids of calls are made from: the same, the same ids.
    pub seed: u64,
}

/// Takes apart what a model writes.
#[derive(Debug)]
pub struct Parser {
    format: Format,
    calls: Calls,
    tools: Vec<Tool>,
    reasoning: bool,
    seed: u64,
    held: String, // what is not yet decided, from `at` on
    at: usize,
    state: State,
    channel: Channel,
    after_mark: bool,   // nothing yet since the last mark
    begun: bool,        // something is, or a mark was
    written: [bool; 2], // whether there is reasoning, and content
    raw: String,        // what has been read since the mark of a call that may still turn out to be none
    committed: bool,    // it is one
    n_calls: usize,
    out: Vec<Delta>,
}

#[derive(Debug)]
enum State {
    /// Text, in the channel.
    Text,
    /// A header of a message.
    Header,
    /// After the mark of a call: what it is.
    Any(&'static [&'static str]),
    /// A name, and arguments in JSON.
    Named(&'static [&'static str]),
    /// Arguments in JSON.
    Arguments(json::Scan, &'static [&'static str]),
    /// Objects of JSON.
    Objects(Object),
    /// A name, and arguments in tags.
    Tagged(Tagged),
    /// Calls of Python, or Gemma's.
    Pairs(Pairs),
    /// After a call.
    Closing(&'static [&'static str]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    Reasoning,
    Content,
    Arguments,
}

/// What a mark in a text means.
#[derive(Debug, Clone, Copy)]
enum Mark {
    Think,
    Answer,
    Drop,
    Call(Form),
    Header,
    EndOfMessage,
}

/// What a step did.
enum Step {
    /// Something; go on in this state.
    Go(State),
    /// Nothing can be decided without more text.
    Wait(State),
}

/// It was no call.
struct NoCall;

type Stepped = Result<Step, NoCall>;

impl Parser {
    /// A parser of an answer in this format.
    pub fn new(format: &Format, setup: Setup<'_>) -> Self {
        let calls = if setup.tools.is_empty() && setup.calls == Calls::Auto { Calls::None } else { setup.calls };
        let mut parser = Self {
            format: format.clone(),
            calls,
            tools: setup.tools,
            reasoning: setup.reasoning,
            seed: setup.seed,
            held: String::new(),
            at: 0,
            state: State::Text,
            channel: Channel::Content,
            after_mark: false,
            begun: false,
            written: [false; 2],
            raw: String::new(),
            committed: false,
            n_calls: 0,
            out: Vec::new(),
        };
        parser.start(setup.prompt);
        parser
    }

    /// Where the prompt left off.
    fn start(&mut self, prompt: &str) {
        if let Some(messages) = self.format.family.messages {
            let begin = messages.begin.iter().filter_map(|mark| prompt.rfind(mark)).max().unwrap_or(0);
            let end = messages.end.iter().filter_map(|mark| prompt.rfind(mark)).max().unwrap_or(0);
            self.state = State::Header;
            // The header may be whole: then what comes is the message.
            let header = &prompt[begin..];
            if begin >= end && header.len() <= LONGEST_HEADER && header.contains(messages.header_end) {
                self.held.push_str(header);
                self.run(false);
                self.out.clear();
            }
            return;
        }
        let prompt = prompt.trim_end();
        if self.reasoning && self.format.reasoning.is_some_and(|(open, _)| prompt.ends_with(open)) {
            self.channel = Channel::Reasoning;
            (self.after_mark, self.begun) = (true, true);
        }
    }

    /// Takes more text; gives what is now certain.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        self.run(false);
        take(&mut self.out)
    }

    /// Ends the answer; gives the rest. It was cut off if it ended before the model ended it.
    pub fn finish(&mut self, cut_off: bool) -> Vec<Delta> {
        loop {
            self.run(true);
            match std::mem::replace(&mut self.state, State::Text) {
                State::Text => break,
                _ if !self.committed => self.give_up(),
                state => self.finish_call(state, cut_off),
            }
        }
        take(&mut self.out)
    }

    /// Whether the model thinks, as far as the text has come.
    pub fn in_reasoning(&self) -> bool {
        self.channel == Channel::Reasoning || matches!(self.state, State::Header)
    }

    /// How many calls there are so far.
    pub fn n_calls(&self) -> usize {
        self.n_calls
    }

    fn run(&mut self, end: bool) {
        loop {
            let stepped = match std::mem::replace(&mut self.state, State::Text) {
                State::Text => Ok(self.text(end)),
                State::Header => self.header(end),
                State::Any(ends) => self.any(ends, end),
                State::Named(ends) => self.named(ends, end),
                State::Arguments(scan, ends) => Ok(self.arguments_in_json(scan, ends)),
                State::Objects(object) => self.objects(object, end),
                State::Tagged(tagged) => self.tagged(tagged, end),
                State::Pairs(pairs) => self.pairs(pairs, end),
                State::Closing(ends) => Ok(self.closing(ends, end)),
            };
            match stepped {
                Ok(Step::Go(state)) => self.state = state,
                Ok(Step::Wait(state)) => {
                    self.state = state;
                    break;
                }
                Err(NoCall) => self.give_up(),
            }
        }
        self.held.drain(..self.at);
        self.at = 0;
    }

    // What was read

    fn rest(&self) -> &str {
        &self.held[self.at..]
    }

    /// Reads `n` bytes.
    fn take(&mut self, n: usize) -> String {
        let taken = self.held[self.at..self.at + n].to_string();
        if !self.committed {
            self.raw.push_str(&taken);
        }
        self.at += n;
        taken
    }

    fn skip(&mut self, n: usize) {
        if !self.committed {
            self.raw.push_str(&self.held[self.at..self.at + n]);
        }
        self.at += n;
    }

    fn skip_space(&mut self) {
        self.skip(self.rest().len() - self.rest().trim_start().len());
    }

    /// It was no call: it is text, where it was found.
    fn give_up(&mut self) {
        let raw = take(&mut self.raw);
        if self.committed {
            // The call stands, and what comes after it is text.
            self.end_call();
            return;
        }
        self.emit(&raw);
    }

    // What goes out

    /// Text in the channel.
    fn emit(&mut self, text: &str) {
        let which = usize::from(self.channel != Channel::Reasoning);
        // White space after a mark goes, unless it is between two parts of a text.
        let is_first = self.channel == Channel::Arguments || !self.written[which];
        let text = if self.after_mark && is_first { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        (self.after_mark, self.begun) = (false, true);
        match self.channel {
            Channel::Arguments => return self.emit_arguments(text),
            _ => self.written[which] = true,
        }
        match (self.out.last_mut(), self.channel) {
            (Some(Delta::Content(all)), Channel::Content) | (Some(Delta::Reasoning(all)), Channel::Reasoning) => {
                all.push_str(text);
            }
            (_, Channel::Reasoning) => self.out.push(Delta::Reasoning(text.into())),
            _ => self.out.push(Delta::Content(text.into())),
        }
    }

    /// A call begins, beyond doubt.
    fn commit(&mut self, name: &str, id: Option<String>) {
        let index = self.n_calls;
        self.n_calls += 1;
        let id = id.unwrap_or_else(|| made_id(self.seed, index as u64));
        self.out.push(Delta::Call { index, id, name: name.into() });
        self.committed = true;
        self.begun = true;
        self.raw.clear();
    }

    /// More arguments of the call.
    fn emit_arguments(&mut self, text: &str) {
        let Some(index) = self.n_calls.checked_sub(1) else { return };
        if text.is_empty() {
            return;
        }
        match self.out.last_mut() {
            Some(Delta::Arguments { text: all, .. }) => all.push_str(text),
            _ => self.out.push(Delta::Arguments { index, text: text.into() }),
        }
    }

    /// The call is over.
    fn end_call(&mut self) {
        self.committed = false;
        self.raw.clear();
        self.after_mark = true;
        // Who calls has thought.
        self.channel = Channel::Content;
    }

    fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().find(|tool| tool.name() == name)
    }

    // States

    /// Looks for marks.
    fn text(&mut self, end: bool) -> Step {
        if let Some(step) = self.bare(end) {
            return step;
        }
        let marks = self.marks();
        let rest = self.rest();
        let (mut found, mut perhaps) = (None::<(usize, usize, Mark)>, rest.len());
        for &(name, mark) in &marks {
            // Who thinks does so before the answer, or between calls: not amid a text that mentions the mark.
            let first = rest.len() - rest.trim_start().len();
            let in_place =
                |at: usize| !matches!(mark, Mark::Think) || (at == first && (self.after_mark || !self.begun));
            if let Some(at) = rest.find(name).filter(|&at| in_place(at))
                && found.is_none_or(|(before, length, _)| at < before || (at == before && name.len() > length))
            {
                found = Some((at, name.len(), mark));
            }
            if !end && let Some(at) = partial(rest, name).filter(|&at| in_place(at)) {
                perhaps = perhaps.min(at);
            }
        }
        match found {
            Some((at, length, mark)) if at <= perhaps => {
                let text = self.held[self.at..self.at + at].trim_end();
                let n = text.len();
                let text = text.to_string();
                self.at += n;
                self.emit(&text);
                self.raw.clear();
                match mark {
                    Mark::Header => {
                        self.skip(at - n); // the mark is part of it
                        return Step::Go(State::Header);
                    }
                    _ => self.skip(at - n + length),
                }
                self.pass(mark)
            }
            _ => {
                let text = &rest[..perhaps];
                let kept = match end {
                    true if self.after_mark && text.trim().is_empty() => 0,
                    true if self.channel == Channel::Arguments => text.trim_end().len(),
                    true => text.len(),
                    false if marks.is_empty() => text.len(),
                    false => text.trim_end().len(),
                };
                let text = text[..kept].to_string();
                self.at += if end { perhaps } else { kept };
                self.emit(&text);
                Step::Wait(State::Text)
            }
        }
    }

    /// A mark was read, with the white space before it.
    fn pass(&mut self, mark: Mark) -> Step {
        if let Mark::Call(form) = mark {
            // Until it is one for certain, nothing else has changed.
            return Step::Go(match form {
                Form::Any(ends) => State::Any(ends),
                Form::Named(ends) => State::Named(ends),
                Form::Tagged(tags, ends) => State::Tagged(Tagged::new(tags, ends)),
                Form::Gemma(quote, ends) => State::Pairs(Pairs::gemma(quote, ends)),
            });
        }
        self.raw.clear();
        (self.after_mark, self.begun) = (true, true);
        match mark {
            Mark::Think => self.channel = Channel::Reasoning,
            Mark::Answer => self.channel = Channel::Content,
            Mark::EndOfMessage => {
                self.channel = Channel::Content;
                return Step::Go(State::Header);
            }
            Mark::Drop | Mark::Call(_) | Mark::Header => {}
        }
        Step::Go(State::Text)
    }

    /// What to look for.
    fn marks(&self) -> Vec<(&'static str, Mark)> {
        let mut marks = Vec::new();
        let format = &self.format;
        if let Some(messages) = format.family.messages {
            marks.extend(messages.end.iter().map(|name| (*name, Mark::EndOfMessage)));
            marks.extend(messages.begin.iter().map(|name| (*name, Mark::Header)));
            return marks;
        }
        if let Some((open, close)) = format.reasoning.filter(|_| self.reasoning) {
            if self.channel == Channel::Content {
                marks.push((open, Mark::Think));
            }
            marks.push((close, Mark::Answer));
        }
        if self.channel == Channel::Content {
            marks.extend(format.dropped.iter().map(|name| (*name, Mark::Drop)));
        }
        if self.calls == Calls::Auto {
            marks.extend(format.family.calls.iter().map(|(name, form)| (*name, Mark::Call(*form))));
        }
        marks
    }

    /// Looks whether an answer is a call without a mark.
    fn bare(&mut self, end: bool) -> Option<Step> {
        let (json, auto) = (self.calls == Calls::Json, self.calls == Calls::Auto && self.format.family.bare);
        let at_start = !self.written[1] && self.n_calls == 0 && (!self.begun || self.after_mark);
        if !(json || auto) || !at_start || self.channel != Channel::Content {
            return None;
        }
        let rest = self.rest().trim_start();
        let state = match rest.as_bytes() {
            [b'{', ..] => State::Objects(Object::new(&[], auto)),
            [b'[', ..] => match rest[1..].trim_start().chars().next() {
                None if end => return None,
                None => return Some(Step::Wait(State::Text)),
                Some('{') => State::Objects(Object::new(&[], auto)),
                Some(c) if auto && is_name(c) => State::Pairs(Pairs::python(&[], true)),
                Some(_) => return None,
            },
            _ => return None,
        };
        self.raw.clear();
        Some(Step::Go(state))
    }

    /// Tells what follows the mark of a call.
    fn any(&mut self, ends: &'static [&'static str], end: bool) -> Stepped {
        self.skip_space();
        let rest = self.rest();
        let wait = || if end { Err(NoCall) } else { Ok(Step::Wait(State::Any(ends))) };
        let state = match rest.as_bytes() {
            [] => return wait(),
            [b'{', ..] => State::Objects(Object::new(ends, false)),
            [b'[', ..] => match rest[1..].trim_start().chars().next() {
                None => return wait(),
                Some('{' | ']') => State::Objects(Object::new(ends, false)),
                Some(c) if is_name(c) => State::Pairs(Pairs::python(ends, false)),
                Some(_) => return Err(NoCall),
            },
            [b'<', ..] => {
                const TAG: &str = "<function=";
                if rest.len() < TAG.len() && TAG.starts_with(rest) {
                    return wait();
                }
                if !rest.starts_with(TAG) {
                    return Err(NoCall);
                }
                self.skip(TAG.len());
                State::Tagged(Tagged::new(&FUNCTION, ends))
            }
            _ => {
                let name = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                let after = rest[name..].trim_start();
                if name == 0 || name > LONGEST_NAME {
                    return Err(NoCall);
                }
                let follows = |mark: &str| after.starts_with(mark);
                let may_follow = |mark: &str| after.len() < mark.len() && mark.starts_with(after);
                match after.as_bytes() {
                    [] => return wait(),
                    [b'(', ..] => State::Pairs(Pairs::python(ends, false)),
                    [b'{' | b'[', ..] => State::Named(ends),
                    _ if follows(ARG_KEY.key) || follows(ARG_KEY.end) => State::Tagged(Tagged::new(&ARG_KEY, &[])),
                    _ if may_follow(ARG_KEY.key) || may_follow(ARG_KEY.end) => return wait(),
                    _ => return Err(NoCall),
                }
            }
        };
        Ok(Step::Go(state))
    }

    /// A name with what belongs to it, up to the arguments.
    fn named(&mut self, ends: &'static [&'static str], end: bool) -> Stepped {
        let rest = self.rest();
        let at = rest.find('{');
        let closed = ends.iter().filter_map(|mark| rest.find(mark)).min();
        if let Some(closed) = closed.filter(|&closed| at.is_none_or(|at| closed < at)) {
            // Without arguments.
            let (name, id) = name_of(&rest[..closed]).ok_or(NoCall)?;
            self.skip(closed);
            self.commit(&name, id);
            self.emit_arguments("{}");
            return Ok(Step::Go(State::Closing(ends)));
        }
        let Some(at) = at else {
            let too_long = rest.len() > LONGEST_NAME;
            return if end || too_long { Err(NoCall) } else { Ok(Step::Wait(State::Named(ends))) };
        };
        let (name, id) = name_of(&rest[..at]).filter(|_| at <= LONGEST_NAME).ok_or(NoCall)?;
        self.skip(at);
        self.commit(&name, id);
        Ok(Step::Go(State::Arguments(json::Scan::default(), ends)))
    }

    /// Arguments as they are.
    fn arguments_in_json(&mut self, mut scan: json::Scan, ends: &'static [&'static str]) -> Step {
        let (n, done) = scan.feed(self.rest());
        let text = self.take(n);
        self.emit_arguments(&text);
        if done { Step::Go(State::Closing(ends)) } else { Step::Wait(State::Arguments(scan, ends)) }
    }

    /// Reads what ends a call, if that is there.
    fn closing(&mut self, ends: &'static [&'static str], end: bool) -> Step {
        let rest = self.rest();
        // DeepSeek writes its arguments as a block of code.
        let fence = rest.trim_start().strip_prefix("```").map(str::trim_start);
        let after = fence.unwrap_or(rest.trim_start());
        let n = rest.len() - after.len();
        let may_be = |mark: &str| after.len() < mark.len() && mark.starts_with(after);
        if let Some(mark) = ends.iter().find(|mark| after.starts_with(**mark)) {
            self.skip(n + mark.len());
        } else if !end
            && (ends.iter().any(|mark| may_be(mark)) || (fence.is_none() && !ends.is_empty() && may_be("```")))
        {
            return Step::Wait(State::Closing(ends));
        } else if fence.is_some() && !ends.is_empty() {
            self.skip(n);
        }
        self.end_call();
        Step::Go(State::Text)
    }

    /// Reads the header of a message: to whom it goes, and in which channel.
    fn header(&mut self, end: bool) -> Stepped {
        let Some(Messages { header_end, begin, .. }) = self.format.family.messages else { return Err(NoCall) };
        let rest = self.rest();
        // Between messages.
        if self.raw.is_empty() && rest.trim_start().is_empty() {
            return if end { Ok(Step::Wait(State::Text)) } else { Ok(Step::Wait(State::Header)) };
        }
        let is_header = |text: &str| {
            let text = text.trim_start();
            let known = begin.iter().copied().chain(["<|constrain|>", header_end, "to=", "assistant", ">>>"]);
            known.into_iter().any(|mark| text.starts_with(mark) || (text.len() < mark.len() && mark.starts_with(text)))
        };
        let one_line = *header_end == "\n";
        if !one_line && !is_header(rest) {
            return self.no_header();
        }
        let from = if one_line { rest.len() - rest.trim_start().len() } else { 0 };
        let Some(at) = rest[from..].find(header_end).map(|at| from + at) else {
            let too_long =
                rest.len() > LONGEST_HEADER || (one_line && !is_recipient(rest.trim_start().trim_start_matches('>')));
            return if end || too_long { self.no_header() } else { Ok(Step::Wait(State::Header)) };
        };
        let header = rest[..at].to_string();
        let (to, channel) = if one_line {
            let to = header.trim().trim_start_matches('>').trim();
            // What is neither is text, such as a prompt of Python.
            if to != "all" && self.tool(to).is_none() {
                return self.no_header();
            }
            (Some(to).filter(|to| *to != "all"), Channel::Content)
        } else {
            let to = header.split("to=").nth(1).map(|to| to.split(|c: char| c.is_whitespace() || c == '<').next());
            let named = header.rsplit("<|channel|>").next().unwrap_or_default().trim_start();
            let thinks = named.starts_with("analysis") && self.reasoning;
            (to.flatten(), if thinks { Channel::Reasoning } else { Channel::Content })
        };
        let to = to.map(|to| to.strip_prefix("functions.").unwrap_or(to)).filter(|to| !to.is_empty());
        let (to, n) = (to.map(String::from), at + header_end.len());
        self.skip(n);
        self.raw.clear();
        (self.after_mark, self.begun, self.channel) = (true, true, channel);
        if let Some(name) = to.filter(|_| self.calls == Calls::Auto) {
            self.commit(&name, None);
            self.committed = false; // what follows is text, up to a mark
            self.channel = Channel::Arguments;
        }
        Ok(Step::Go(State::Text))
    }
}

impl Parser {
    /// What looked like a header is text, with its mark.
    fn no_header(&mut self) -> Stepped {
        let begin = self.format.family.messages.map_or(&[][..], |messages| messages.begin);
        let rest = self.rest();
        let space = rest.len() - rest.trim_start().len();
        let mark = begin.iter().find(|mark| rest.trim_start().starts_with(**mark));
        self.skip(mark.map_or(0, |mark| space + mark.len()));
        Err(NoCall)
    }

    /// Ends a call that the text ended in.
    fn finish_call(&mut self, state: State, cut_off: bool) {
        match state {
            State::Tagged(tagged) => self.finish_tagged(tagged, cut_off),
            State::Pairs(pairs) => self.finish_pairs(pairs, cut_off),
            _ => self.at = self.held.len(), // the end of an object
        }
        self.end_call();
    }
}

/// Where `text` ends with a part of `mark`, from its start on, but not with all of it.
fn partial(text: &str, mark: &str) -> Option<usize> {
    let from = text.len().saturating_sub(mark.len() - 1);
    let from = (from..text.len()).find(|&at| text.is_char_boundary(at))?;
    text[from..].char_indices().map(|(at, _)| from + at).find(|&at| mark.starts_with(&text[at..]))
}

/// Whether it may be part of the name of a tool.
fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Whether a line may begin so that says who is spoken to.
fn is_recipient(text: &str) -> bool {
    text.trim().chars().all(is_name)
}

/// A name, and perhaps an id, out of what comes before the arguments in JSON.
fn name_of(header: &str) -> Option<(String, Option<String>)> {
    const PARTS: [&str; 4] = ["<｜tool▁sep｜>", "[ARGS]", "<|tool_call_argument_begin|>", "```json"];
    let mut parts: Vec<&str> = vec![header];
    for mark in PARTS {
        parts = parts.iter().flat_map(|part| part.split(mark)).collect();
    }
    let mut parts: Vec<&str> = parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.len() == 2 && parts[0] == "function" {
        parts.remove(0); // the type of what DeepSeek calls
    }
    let [name] = parts[..] else { return None };
    let (name, id) = match name.split_once("[CALL_ID]") {
        Some((name, id)) => (name.trim(), Some(id.trim())),
        None => (name, None),
    };
    let id = id.filter(|id| id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()));
    // Kimi's ids say which tool it is, and its template wants them back.
    let (name, id) = match name.split_once(':').filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit())) {
        Some((tool, _)) => (tool, Some(name)),
        None => (name, id),
    };
    let name = name.strip_prefix("functions.").unwrap_or(name);
    (!name.is_empty() && name.chars().all(is_name)).then(|| (name.to_string(), id.map(String::from)))
}

/// An id: nine letters and digits.
fn made_id(seed: u64, index: u64) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    // The finalizer of splitmix64.
    let mut x = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    let digit = |i: u32| DIGITS[(x / 62u64.pow(i) % 62) as usize] as char;
    (0..9).map(digit).collect()
}

#[cfg(test)]
mod tests;
