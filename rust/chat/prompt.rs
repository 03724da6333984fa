//! Messages to the prompt of a model.
//!
//! A template wants messages in its own way, and nobody says which that is. So they are made ready for it by what its source
//! mentions, and where that leaves a choice by what comes out: the first form that the template takes, and that does not
//! come out as Python writes its values, is the one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use minijinja::Value;
use minijinja::value::ValueKind;

use super::family::Format;
use super::guard::{Guard, encode};
use super::template::{Refused, render};
use super::{CHATML, json, python};
use crate::error::{Error, Result};
use crate::threads::Interrupt;
use crate::tokenizer::Tokenizer;

/// What a model is asked.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// A list of messages: maps with `role` and `content`, as OpenAI has them. Names of control tokens in them have to be
    /// [broken](Guard::broken).
    pub messages: Value,
    /// A list of descriptions of tools, broken too; undefined if there are none.
    pub tools: Value,
    /// Other variables of the template, which are trusted.
    pub variables: Vec<(String, Value)>,
    /// Whether the prompt ends where an answer begins.
    pub add_generation_prompt: bool,
    /// Whether the last message is the beginning of the answer, and is gone on with.
    pub continue_final: bool,
    /// The time that the template is told, in seconds since 1970.
    pub now: i64,
}

/// A prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// What a parser of the answer has to see of it: its end.
    pub end: String,
}

/// The template of a model, and the vocabulary of its prompts.
pub struct Template {
    tokenizer: Arc<Tokenizer>,
    path: PathBuf,
    source: String,
    for_tools: Option<String>, // where there is another one for them
    special: [(&'static str, String); 2],
    guard: OnceLock<Guard>,
    wants_parts: [OnceLock<bool>; 2],
}

/// Bytes of a prompt's end. More than the longest header or mark.
const END: usize = 1024;

impl Template {
    /// The template `source` of the model file at `path`, and the one that it has for tools; without one it is ChatML, if the
    /// vocabulary has its tokens.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is none.
    pub fn new(
        tokenizer: &Arc<Tokenizer>,
        source: Option<String>,
        for_tools: Option<String>,
        path: &Path,
    ) -> Result<Self> {
        let source = match source {
            Some(source) => source,
            None if tokenizer.encode("<|im_start|>", false, true)?.len() == 1 => CHATML.into(),
            None => {
                let what = "conversations: the model has no chat template (tokenizer.chat_template): write the prompt \
                            yourself, for generate";
                return Err(Error::Unsupported { path: path.into(), what: what.into() });
            }
        };
        let name = |id: Option<u32>| -> Result<String> {
            let bytes = id.map(|id| tokenizer.token_bytes(id)).transpose()?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let special = [("bos_token", name(tokenizer.bos())?), ("eos_token", name(tokenizer.eos())?)];
        Ok(Self {
            tokenizer: Arc::clone(tokenizer),
            path: path.into(),
            source,
            for_tools,
            special,
            guard: OnceLock::new(),
            wants_parts: Default::default(),
        })
    }

    /// What breaks the names of control tokens.
    ///
    /// # Errors
    /// As [`Guard::new`].
    pub fn guard(&self) -> Result<&Guard> {
        if self.guard.get().is_none() {
            let guard = Guard::new(&self.tokenizer)?;
            return Ok(self.guard.get_or_init(|| guard));
        }
        Ok(self.guard.get().expect("it is there"))
    }

    /// Its text.
    pub fn source(&self, with_tools: bool) -> &str {
        self.for_tools.as_deref().filter(|_| with_tools).unwrap_or(&self.source)
    }

    /// How the model marks its calls and its thoughts: as its template has it, or as the family that is named.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such family.
    pub fn format(&self, with_tools: bool, family: Option<&str>) -> Result<Format> {
        let source = self.source(with_tools);
        match family {
            Some(name) => Format::named(name, source).ok_or_else(|| {
                let names = Format::names().collect::<Vec<_>>().join(", ");
                Error::Argument(format!("chat_family is {name:?}, it must be one of {names}"))
            }),
            // It was told how, in words: see `described`.
            None if with_tools && !knows_tools(source) => Ok(Format::named("hermes", source).expect("it is known")),
            None => Ok(Format::of(source)),
        }
    }

    /// The text of a prompt, in which names of control tokens that people wrote are broken.
    ///
    /// # Errors
    /// [`Error::Argument`] if the template refuses the messages, or if they have something other than text;
    /// [`Error::Unsupported`] if the template cannot be used.
    pub fn text(&self, question: &Question) -> Result<String> {
        let tools = Some(&question.tools).filter(|tools| tools.kind() == ValueKind::Seq);
        let source = self.source(tools.is_some());
        let form = Form {
            source,
            parts: self.wants_parts[usize::from(tools.is_some())].get_or_init(|| wants_parts(source)),
            tools: tools.filter(|_| !knows_tools(source)),
        };
        let rendered = |form: &Form<'_>, how: How| -> Result<std::result::Result<String, Refused>> {
            let messages = form.fitted(&question.messages, how)?;
            let add = question.add_generation_prompt && !question.continue_final;
            let mut variables =
                vec![("messages".to_string(), messages.clone()), ("add_generation_prompt".into(), Value::from(add))];
            variables.extend(self.special.iter().map(|(name, token)| (name.to_string(), Value::from(token.as_str()))));
            if let Some(tools) = tools.filter(|_| form.tools.is_none()) {
                variables.push(("tools".into(), tools.clone()));
            }
            variables.extend(question.variables.iter().cloned());
            let text = render(source, Value::from_pairs(variables), question.now);
            Ok(if question.continue_final { text.map(|text| continued(text, &messages)) } else { text })
        };
        let mut refused = None;
        let mut best: Option<(usize, String)> = None;
        for how in How::all().filter(|how| form.matters(&question.messages, *how)) {
            match rendered(&form, how)? {
                Ok(text) => {
                    let odd = form.oddities(&question.messages, &text);
                    if best.as_ref().is_none_or(|(least, _)| odd < *least) {
                        best = Some((odd, text));
                    }
                    if odd == 0 {
                        break;
                    }
                }
                Err(Refused::Template(why)) if why.contains("fuel") => {
                    refused = Some(Refused::Template(why)); // once takes long enough
                    break;
                }
                Err(why) => _ = refused.get_or_insert(why),
            }
        }
        let refused = match (best, refused) {
            (Some((_, text)), _) => return Ok(text),
            (None, refused) => refused.expect("one or the other"),
        };
        Err(self.error(&refused))
    }

    /// The text that the template makes of these variables, as they are.
    ///
    /// # Errors
    /// As [`Template::text`].
    pub fn rendered(&self, variables: Value, now: i64) -> Result<String> {
        render(&self.source, variables, now).map_err(|refused| self.error(&refused))
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn error(&self, refused: &Refused) -> Error {
        match refused {
            Refused::Messages(_) => Error::Argument(refused.to_string()),
            Refused::Template(_) => Error::Unsupported { path: self.path.clone(), what: refused.to_string() },
        }
    }

    /// The prompt, if it has no more tokens than `at_most`. Nothing that people wrote is a control token in it.
    ///
    /// # Errors
    /// As [`Template::text`] and [`Tokenizer::encode_at_most`].
    pub fn prompt(&self, question: &Question, at_most: usize, interrupt: &Interrupt) -> Result<Prompt> {
        let text = self.text(question)?;
        let ids = encode(&self.tokenizer, &text, at_most, interrupt)?;
        let from = (text.len().saturating_sub(END)..=text.len()).find(|&at| text.is_char_boundary(at));
        Ok(Prompt { ids, end: text[from.unwrap_or(0)..].to_string() })
    }

    /// The control tokens that have to come as text for a parser of `format`: see [`Format::marks`].
    ///
    /// # Errors
    /// As [`Tokenizer::token_bytes`].
    pub fn marks(&self, format: &Format) -> Result<Vec<u32>> {
        let marks = format.marks();
        let mut ids = Vec::new();
        if marks.is_empty() {
            return Ok(ids);
        }
        for id in (0..self.tokenizer.vocab_size() as u32).filter(|&id| self.tokenizer.is_special(id)) {
            let name = self.tokenizer.token_bytes(id)?;
            if marks.iter().any(|mark| mark.as_bytes() == name) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

/// Whether a template does something with tools.
fn knows_tools(source: &str) -> bool {
    source.contains("tools")
}

/// Whether a template overlooks messages that are plain text, and not those in parts.
fn wants_parts(source: &str) -> bool {
    const PROBE: &str = "a text to be found";
    let shows = |content: Value| {
        let message = Value::from_pairs([("role", Value::from("user")), ("content", content)]);
        let variables = Value::from_pairs([("messages", Value::from(vec![message]))]);
        render(source, variables, 0).is_ok_and(|text| text.contains(PROBE))
    };
    !shows(Value::from(PROBE)) && shows(parts_of(Value::from(PROBE)))
}

fn parts_of(text: Value) -> Value {
    Value::from(vec![Value::from_pairs([("type", Value::from("text")), ("text", text)])])
}

/// The text as far as its last message goes.
fn continued(mut text: String, messages: &Value) -> String {
    let last = messages.try_iter().ok().and_then(Iterator::last).unwrap_or_default();
    let content = last.get_attr("content").unwrap_or_default();
    if let Some(content) = content.as_str().map(str::trim).filter(|content| !content.is_empty())
        && let Some(at) = text.rfind(content)
    {
        text.truncate(at + content.len());
    }
    text
}

/// What is done to messages where a template may want it so or otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct How {
    /// Arguments of calls are text.
    text_arguments: bool,
    /// Content that is null is empty.
    no_null: bool,
    /// Content in parts is one text.
    joined: bool,
    /// Of several calls each is a message, with its result after it.
    one_call: bool,
    /// What the system says is at the beginning of what the user says.
    no_system: bool,
}

impl How {
    /// All that there are, as they are first.
    fn all() -> impl Iterator<Item = Self> {
        (0..32u8).map(|bits| {
            let [text_arguments, no_null, joined, one_call, no_system] = [1, 2, 4, 8, 16].map(|bit| bits & bit != 0);
            Self { text_arguments, no_null, joined, one_call, no_system }
        })
    }
}

/// The form that a template wants.
struct Form<'a> {
    source: &'a str,
    parts: &'a bool,
    tools: Option<&'a Value>, // that it does not know
}

/// A message: its pairs, in their order.
type Pairs = Vec<(Value, Value)>;

fn pairs_of(map: &Value) -> Pairs {
    let keys = map.try_iter().into_iter().flatten();
    keys.map(|key| (key.clone(), map.get_item(&key).unwrap_or_default())).collect()
}

fn get<'a>(pairs: &'a Pairs, name: &str) -> Option<&'a Value> {
    pairs.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}

fn set(pairs: &mut Pairs, name: &str, value: Value) {
    match pairs.iter_mut().find(|(key, _)| key.as_str() == Some(name)) {
        Some((_, old)) => *old = value,
        None => pairs.push((Value::from(name), value)),
    }
}

fn calls_of(message: &Value) -> Vec<Value> {
    let calls = message.get_attr("tool_calls").ok().filter(|calls| calls.kind() == ValueKind::Seq);
    calls.and_then(|calls| calls.try_iter().ok().map(Iterator::collect)).unwrap_or_default()
}

fn arguments_of(call: &Value) -> Option<Value> {
    call.get_attr("function").ok()?.get_attr("arguments").ok().filter(|arguments| !arguments.is_undefined())
}

fn role(message: &Value) -> String {
    message.get_attr("role").ok().and_then(|role| role.as_str().map(String::from)).unwrap_or_default()
}

impl Form<'_> {
    /// Whether it makes a difference for these messages.
    fn matters(&self, messages: &Value, how: How) -> bool {
        let all = || messages.try_iter().into_iter().flatten();
        let has_arguments = || all().any(|m| calls_of(&m).iter().any(|call| arguments_of(call).is_some()));
        let has_null = || all().any(|m| m.get_attr("content").is_ok_and(|c| c.is_none() || c.is_undefined()));
        let has_parts = || all().any(|m| !texts_of(&m).is_empty());
        let has_calls = || all().any(|m| calls_of(&m).len() > 1);
        let has_system =
            || all().next().is_some_and(|m| matches!(&*role(&m), "system" | "developer")) || self.tools.is_some();
        (!how.text_arguments || has_arguments())
            && (!how.no_null || has_null())
            && (!how.joined || has_parts())
            && (!how.one_call || has_calls())
            && (!how.no_system || has_system())
    }

    /// How much of the text looks as if it was not meant: values as Python writes them, JSON in a string of JSON, something
    /// overlooked.
    fn oddities(&self, messages: &Value, text: &str) -> usize {
        let mut odd = 0;
        for message in messages.try_iter().into_iter().flatten() {
            if message.get_attr("content").is_ok_and(|c| c.is_none() || c.is_undefined()) {
                odd += usize::from(text.contains("None"));
            }
            odd += texts_of(&message).iter().filter(|part| !text.contains(part.trim())).count();
            for arguments in calls_of(&message).iter().filter_map(arguments_of) {
                let object = as_object(&arguments);
                let as_python = python::str(&object);
                let as_text = plain_json(&object);
                let looks_odd = as_python != as_text && as_python.len() > 2 && text.contains(&as_python);
                let in_a_string = arguments.as_str().map(|text| plain_json(&Value::from(text)));
                let in_a_string = in_a_string.into_iter().chain([plain_json(&Value::from(as_text))]);
                odd += usize::from(looks_odd || in_a_string.into_iter().any(|quoted| text.contains(&quoted)));
            }
        }
        odd
    }

    /// The messages as the template wants them.
    fn fitted(&self, messages: &Value, how: How) -> Result<Value> {
        let mut fitted = Vec::new();
        let mut names: Vec<(String, Value)> = Vec::new(); // of the tools that were called, by the ids of the calls
        for (i, message) in messages.try_iter().into_iter().flatten().enumerate() {
            let mut pairs = pairs_of(&message);
            let role = role(&message);
            if role == "developer" && !self.source.contains("developer") {
                set(&mut pairs, "role", Value::from("system"));
            }
            let content = match get(&pairs, "content").cloned().unwrap_or_default() {
                content if content.kind() == ValueKind::Seq => Some(self.content_of(i, &content, how.joined)?),
                content if content.as_str().is_some() && *self.parts => Some(parts_of(content)),
                content if how.no_null && (content.is_none() || content.is_undefined()) => Some(Value::from("")),
                _ => None,
            };
            if let Some(content) = content {
                set(&mut pairs, "content", content);
            }
            self.name_reasoning(&mut pairs);
            let calls = calls_of(&message);
            if !calls.is_empty() {
                let mut fitted_calls = Vec::new();
                for call in &calls {
                    let name = call.get_attr("function").ok().and_then(|f| f.get_attr("name").ok()).unwrap_or_default();
                    if let Some(id) = call.get_attr("id").ok().and_then(|id| id.as_str().map(String::from)) {
                        names.push((id, name));
                    }
                    fitted_calls.push(fitted_call(call, how.text_arguments));
                }
                set(&mut pairs, "tool_calls", Value::from(fitted_calls));
            }
            if role == "tool" && get(&pairs, "name").is_none() {
                let id = get(&pairs, "tool_call_id").and_then(|id| id.as_str().map(String::from));
                if let Some((_, name)) = id.and_then(|id| names.iter().rev().find(|(of, _)| *of == id)) {
                    set(&mut pairs, "name", name.clone());
                }
            }
            fitted.push(pairs);
        }
        if let Some(tools) = self.tools {
            fitted = described(fitted, tools);
        }
        if how.one_call {
            fitted = one_by_one(fitted);
        }
        if how.no_system && fitted.len() > 1 && get(&fitted[0], "role").and_then(Value::as_str) == Some("system") {
            let system = fitted.remove(0);
            let text =
                |pairs: &Pairs| get(pairs, "content").and_then(|c| c.as_str().map(String::from)).unwrap_or_default();
            let both = format!("{}\n\n{}", text(&system), text(&fitted[0]));
            set(&mut fitted[0], "content", Value::from(both));
        }
        Ok(Value::from(fitted.into_iter().map(Value::from_pairs).collect::<Vec<_>>()))
    }

    /// Content in parts: as it is where the template knows of them, else as one text.
    fn content_of(&self, i: usize, parts: &Value, joined: bool) -> Result<Value> {
        let mut texts = Vec::new();
        for part in parts.try_iter().into_iter().flatten() {
            let kind = part.get_attr("type").ok().and_then(|kind| kind.as_str().map(String::from));
            let text = part.get_attr("text").ok().filter(|text| text.kind() == ValueKind::String);
            match (kind.as_deref(), text) {
                (None | Some("text" | "input_text" | "output_text"), Some(text)) => texts.push(text.to_string()),
                (kind, _) => {
                    let kind = kind.unwrap_or("without a type");
                    let what = format!("message {i} has a part of type {kind}: this model is given text only");
                    return Err(Error::Argument(what));
                }
            }
        }
        let knows_parts = *self.parts || ["'text'", "\"text\"", ".text"].iter().any(|sign| self.source.contains(sign));
        if knows_parts && !joined {
            return Ok(Value::from(
                texts
                    .into_iter()
                    .map(|text| Value::from_pairs([("type", Value::from("text")), ("text", Value::from(text))]))
                    .collect::<Vec<_>>(),
            ));
        }
        Ok(Value::from(texts.join("\n\n")))
    }

    /// What the model thought, by the name that the template has for it.
    fn name_reasoning(&self, pairs: &mut Pairs) {
        const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
        let Some(thought) = NAMES.iter().find_map(|name| get(pairs, name).filter(|t| t.as_str().is_some()).cloned())
        else {
            return;
        };
        for name in NAMES {
            let signs = [format!(".{name}"), format!("'{name}'"), format!("\"{name}\"")];
            if get(pairs, name).is_none() && signs.iter().any(|sign| self.source.contains(sign)) {
                set(pairs, name, thought.clone());
            }
        }
    }
}

/// The texts of a message in parts.
fn texts_of(message: &Value) -> Vec<String> {
    let parts = message.get_attr("content").ok().filter(|content| content.kind() == ValueKind::Seq);
    let parts = parts.and_then(|parts| parts.try_iter().ok().map(Iterator::collect::<Vec<_>>)).unwrap_or_default();
    parts.iter().filter_map(|part| part.get_attr("text").ok()?.as_str().map(String::from)).collect()
}

/// Each call as a message of its own, with its result after it.
fn one_by_one(messages: Vec<Pairs>) -> Vec<Pairs> {
    let calls = |pairs: &Pairs| {
        get(pairs, "tool_calls").map(|calls| calls.try_iter().into_iter().flatten().collect::<Vec<_>>())
    };
    let text = |value: Option<&Value>| value.and_then(|value| value.as_str().map(String::from));
    let mut out: Vec<Pairs> = Vec::new();
    let mut rest = messages.into_iter().peekable();
    while let Some(pairs) = rest.next() {
        let Some(calls) = calls(&pairs).filter(|calls| calls.len() > 1) else {
            out.push(pairs);
            continue;
        };
        let mut results = Vec::new();
        while let Some(result) = rest.next_if(|next| get(next, "role").and_then(Value::as_str) == Some("tool")) {
            results.push(result);
        }
        for (i, call) in calls.into_iter().enumerate() {
            let id = call.get_attr("id").ok();
            let mut one = pairs.clone();
            set(&mut one, "tool_calls", Value::from(vec![call]));
            if i > 0 {
                set(&mut one, "content", Value::from(""));
            }
            out.push(one);
            let of_it = |result: &Pairs| id.is_some() && text(get(result, "tool_call_id")) == text(id.as_ref());
            let at = results.iter().position(of_it).or(Some(0).filter(|_| !results.is_empty()));
            out.extend(at.map(|at| results.remove(at)));
        }
        out.extend(results);
    }
    out
}

/// Arguments as an object, if they are one in a string of JSON.
fn as_object(arguments: &Value) -> Value {
    let object = arguments.as_str().and_then(|text| json::parse(text, None).ok());
    object.filter(|object| object.kind() == ValueKind::Map).unwrap_or_else(|| arguments.clone())
}

fn plain_json(value: &Value) -> String {
    json::plain(value).unwrap_or_default()
}

fn fitted_call(call: &Value, text_arguments: bool) -> Value {
    let mut pairs = pairs_of(call);
    if let Some(arguments) = arguments_of(call) {
        let mut function = pairs_of(&call.get_attr("function").unwrap_or_default());
        let arguments = match (text_arguments, arguments.as_str()) {
            (true, Some(_)) => arguments,
            (true, None) => Value::from(plain_json(&arguments)),
            (false, _) => as_object(&arguments),
        };
        set(&mut function, "arguments", arguments);
        set(&mut pairs, "function", Value::from_pairs(function));
    }
    Value::from_pairs(pairs)
}

/// For a template that knows nothing of tools: they are described in words, and calls and results are texts of messages.
fn described(messages: Vec<Pairs>, tools: &Value) -> Vec<Pairs> {
    let text_of = |pairs: &Pairs| get(pairs, "content").and_then(|c| c.as_str().map(String::from)).unwrap_or_default();
    let message = |role: &str, content: String| -> Pairs {
        vec![("role".into(), Value::from(role)), ("content".into(), Value::from(content))]
    };
    let list: Vec<String> = tools.try_iter().into_iter().flatten().map(|tool| plain_json(&tool)).collect();
    let mut said = format!(
        "You can call functions. These are there, in JSON:\n{}\nTo call one, answer with nothing but its name and its \
         arguments, in this form:\n<tool_call>\n{{\"name\": \"name of the function\", \"arguments\": {{\"name of an argument\": \
         \"its value\"}}}}\n</tool_call>\nThe result comes between <tool_response> and </tool_response>. Call a function \
         only if you need it to answer.",
        list.join("\n")
    );
    let mut out: Vec<Pairs> = Vec::new();
    let mut messages = messages.into_iter().peekable();
    if messages.peek().is_some_and(|first| get(first, "role").and_then(Value::as_str) == Some("system")) {
        let system = messages.next().map(|system| text_of(&system)).unwrap_or_default();
        said = format!("{system}\n\n{said}");
    }
    out.push(message("system", said));
    let mut after_result = false;
    for pairs in messages {
        let calls = get(&pairs, "tool_calls").map(|calls| calls.try_iter().into_iter().flatten().collect::<Vec<_>>());
        let is_result = get(&pairs, "role").and_then(Value::as_str) == Some("tool");
        if let Some(calls) = calls.filter(|calls| !calls.is_empty()) {
            let mut content = text_of(&pairs);
            for call in calls {
                let function = call.get_attr("function").unwrap_or_default();
                let name = function.get_attr("name").unwrap_or_default();
                let arguments = as_object(&function.get_attr("arguments").unwrap_or_default());
                let call = Value::from_pairs([("name", name), ("arguments", arguments)]);
                let newline = if content.is_empty() { "" } else { "\n" };
                content.push_str(&format!("{newline}<tool_call>\n{}\n</tool_call>", plain_json(&call)));
            }
            out.push(message("assistant", content));
        } else if is_result {
            let content = format!("<tool_response>\n{}\n</tool_response>", text_of(&pairs));
            match out.last_mut().filter(|_| after_result) {
                // The results of several calls are one message.
                Some(last) => {
                    let both = format!("{}\n{content}", text_of(last));
                    set(last, "content", Value::from(both));
                }
                None => out.push(message("user", content)),
            }
        } else {
            out.push(pairs);
        }
        after_result = is_result;
    }
    out
}
