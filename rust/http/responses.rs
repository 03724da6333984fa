//! `POST /v1/responses`: OpenAI's Responses API, as far as it needs no memory of what was before.
//!
//! A stream is named events with a counter; each part of an answer is opened, filled and closed.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::chat::Asked;
use super::error::{Answer, Refusal};
use super::json::{At, Fields, Json, object};
use super::native::for_version;
use super::prompt;
use super::runs::{Runs, Total, finish_reason};
use super::service::{Bytesful, Call, Reply, json, unique};
use super::stream::{self, Dialect};
use super::version::{Version, now};
use super::{limits, options, sse};
use crate::chat::{Delta, Parser};
use crate::generate::FinishReason;
use crate::scheduler::Event;
use crate::threads::Interrupt;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// What a response repeats of its request.
struct Echoed {
    instructions: Json,
    max_output_tokens: Json,
    metadata: Json,
    tools: Json,
    tool_choice: Json,
    temperature: f32,
    top_p: f32,
}

pub async fn answer(call: Call, body: Bytesful) -> Reply {
    let (version, (asked, work, stream, echoed)) = for_version(&call, body, |version, fields, interrupt| {
        let (asked, stream, echoed) = asked(version, fields, interrupt)?;
        let work = asked.work(version, interrupt)?;
        Ok((asked, work, stream, echoed))
    })
    .await?;
    call.record.expect(1);
    let runs = Runs::submit(&call, &version, vec![work])?;
    let mut writer = Writer {
        id: unique("resp_", &NEXT),
        created: now(),
        version,
        echoed,
        parser: asked.parser(0),
        sequence: 0,
        items: Vec::new(),
        finish: None,
    };
    if stream {
        return Ok(stream::respond(&call, runs, 1, writer));
    }
    let mut total = Total::default();
    let whole = runs.collect().await?.pop().unwrap_or_default();
    total.add(&whole.usage(), true);
    for delta in writer.deltas(&whole.event) {
        writer.take(&delta);
    }
    if writer.items.is_empty() {
        writer.items.push(Item::message());
    }
    Ok(json(&writer.response(writer.status(), Some(&total))))
}

fn asked(version: &Version, fields: &Fields<'_>, interrupt: &Interrupt) -> Answer<(Asked, bool, Echoed)> {
    for name in ["previous_response_id", "conversation", "prompt"] {
        if let Some(at) = fields.get(name) {
            return Err(at.refused("is not supported: nothing is kept").coded("unsupported_parameter"));
        }
    }
    if let Some(at) = fields.get("background")
        && at.bool()?
    {
        return Err(at.refused("is not supported").coded("unsupported_parameter"));
    }
    fields.ignore(&[
        "user",
        "store",
        "service_tier",
        "include",
        "truncation",
        "prompt_cache_key",
        "safety_identifier",
        "stream_options",
        "top_logprobs",
        "max_tool_calls",
    ]);
    let stream = fields.get("stream").map_or(Ok(false), |at| at.bool())?;
    let mut options = options::options(fields, version)?;
    if let Some(at) = fields.get("text")
        && let Some(format) = at.object()?.get("format")
    {
        // As a chat has it, but that the schema is not in an object of its own.
        let is_schema = format.object()?.need("type")?.word(&["text", "json_object", "json_schema"])? == "json_schema";
        let given = format.value.clone();
        let normal = if is_schema {
            object! { "type" => "json_schema", "json_schema" => given }
        } else {
            given
        };
        let text = crate::sampling::Value::Text(normal.to_string());
        options.set("response_format", text).map_err(|e| Refusal::from(e).at(&format.pointer))?;
    }
    let instructions = fields.get("instructions").map(|at| at.str()).transpose()?;
    let mut messages = Vec::new();
    if let Some(text) = instructions {
        messages.push(object! { "role" => "system", "content" => text });
    }
    let input = fields.need("input")?;
    if input.is_text() {
        messages.push(object! { "role" => "user", "content" => input.str()? });
    } else {
        for item in input.list(limits::MESSAGES)? {
            messages.extend(self::item(&item)?);
        }
    }
    let mut given = object! { "messages" => Json::List(messages) };
    if let Some(at) = fields.get("reasoning")
        && let Some(effort) = at.object()?.get("effort")
    {
        given.push("reasoning_effort", effort.str()?);
    }
    if let Some(at) = fields.get("tools") {
        given.push("tools", tools(&at)?);
    }
    for name in ["tool_choice", "parallel_tool_calls"] {
        if let Some(at) = fields.get(name) {
            given.push(name, at.value.clone());
        }
    }
    let echoed = Echoed {
        instructions: instructions.into(),
        max_output_tokens: options.max_tokens.into(),
        metadata: fields.get("metadata").map_or(Json::Map(Vec::new()), |at| at.value.clone()),
        tools: fields.get("tools").map_or(Json::List(Vec::new()), |at| at.value.clone()),
        tool_choice: fields.get("tool_choice").map_or("auto".into(), |at| at.value.clone()),
        temperature: options.sampling.temperature,
        top_p: options.sampling.top_p,
    };
    let inner = At { value: &given, pointer: String::new() }.object()?;
    let asked = Asked::of(version, &inner, options, 1, interrupt).map_err(|e| match &e.param {
        Some(param) if param.starts_with("/messages") => Refusal { param: Some("/input".into()), ..e },
        _ => e,
    })?;
    Ok((asked, stream, echoed))
}

/// Tools as a chat has them: what is said of a function is in an object of its own.
fn tools(at: &At<'_>) -> Answer<Json> {
    let mut tools = Vec::new();
    for tool in at.list(limits::TOOLS)? {
        let kind = tool.object()?.need("type")?;
        kind.word(&["function"]).map_err(|e| e.coded("unsupported_parameter"))?;
        tools.push(object! { "type" => "function", "function" => tool.value.clone() });
    }
    Ok(Json::List(tools))
}

/// A message out of an item; none for what a template has no place for.
fn item(at: &At<'_>) -> Answer<Option<Json>> {
    let fields = at.object()?;
    let kind = fields.get("type").map_or(Ok("message"), |at| {
        let kinds = ["message", "function_call", "function_call_output", "reasoning"];
        at.word(&kinds).map_err(|e| e.coded("unsupported_parameter"))
    })?;
    Ok(Some(match kind {
        "message" => {
            let content = prompt::text_of(&fields.need("content")?)?;
            object! { "role" => fields.need("role")?.str()?, "content" => content }
        }
        "function_call" => {
            let name = fields.need("name")?.str()?;
            let arguments = fields.get("arguments").map_or(Ok("{}"), |at| at.str())?;
            let call = object! {
                "id" => fields.need("call_id")?.str()?, "type" => "function",
                "function" => object! { "name" => name, "arguments" => arguments },
            };
            object! { "role" => "assistant", "tool_calls" => vec![call] }
        }
        "function_call_output" => object! {
            "role" => "tool", "tool_call_id" => fields.need("call_id")?.str()?,
            "content" => prompt::text_of(&fields.need("output")?)?,
        },
        _ => return Ok(None),
    }))
}

/// A part of the answer.
enum Item {
    Message { id: String, text: String },
    Call { id: String, call_id: String, name: String, arguments: String },
}

impl Item {
    fn message() -> Self {
        Item::Message { id: unique("msg_", &NEXT), text: String::new() }
    }

    fn id(&self) -> &str {
        match self {
            Item::Message { id, .. } | Item::Call { id, .. } => id,
        }
    }

    fn json(&self, status: &'static str) -> Json {
        match self {
            Item::Message { id, text } => object! {
                "id" => id, "type" => "message", "status" => status, "role" => "assistant", "content" => vec![part(text)],
            },
            Item::Call { id, call_id, name, arguments } => object! {
                "id" => id, "type" => "function_call", "status" => status, "call_id" => call_id, "name" => name,
                "arguments" => arguments,
            },
        }
    }
}

fn part(text: &str) -> Json {
    object! {
        "type" => "output_text", "text" => text, "annotations" => Json::List(Vec::new()),
        "logprobs" => Json::List(Vec::new()),
    }
}

struct Writer {
    id: String,
    created: u64,
    version: Arc<Version>,
    echoed: Echoed,
    parser: Parser,
    sequence: u64,
    items: Vec<Item>,
    finish: Option<FinishReason>,
}

impl Writer {
    /// The pieces that an event adds.
    fn deltas(&mut self, event: &Event) -> Vec<Delta> {
        let mut deltas = self.parser.push(&event.text);
        if event.end.is_some() {
            self.finish = finish_reason(event);
            deltas.extend(self.parser.finish(self.finish == Some(FinishReason::Length)));
        }
        deltas
    }

    /// Adds a piece; gives whether it began an item.
    fn take(&mut self, delta: &Delta) -> bool {
        match (delta, self.items.last_mut()) {
            (Delta::Content(more), Some(Item::Message { text, .. })) => text.push_str(more),
            (Delta::Content(more), _) => {
                let mut item = Item::message();
                if let Item::Message { text, .. } = &mut item {
                    text.push_str(more);
                }
                self.items.push(item);
                return true;
            }
            (Delta::Call { id, name, .. }, _) => {
                let (call_id, name) = (id.clone(), name.clone());
                self.items.push(Item::Call { id: unique("fc_", &NEXT), call_id, name, arguments: String::new() });
                return true;
            }
            (Delta::Arguments { text, .. }, Some(Item::Call { arguments, .. })) => arguments.push_str(text),
            (Delta::Arguments { .. } | Delta::Reasoning(_), _) => {}
        }
        false
    }

    fn status(&self) -> &'static str {
        if self.finish == Some(FinishReason::Length) { "incomplete" } else { "completed" }
    }

    fn response(&self, status: &'static str, total: Option<&Total>) -> Json {
        let output =
            if total.is_some() { self.items.iter().map(|item| item.json(status)).collect() } else { Vec::new() };
        let incomplete = (status == "incomplete").then(|| object! { "reason" => "max_output_tokens" });
        let usage = total.map(|total| {
            object! {
                "input_tokens" => total.prompt,
                "input_tokens_details" => object! { "cached_tokens" => total.cached },
                "output_tokens" => total.generated,
                "output_tokens_details" => object! { "reasoning_tokens" => 0u32 },
                "total_tokens" => total.prompt + total.generated,
            }
        });
        object! {
            "id" => self.id.as_str(),
            "object" => "response",
            "created_at" => self.created,
            "status" => status,
            "background" => false,
            "error" => Json::Null,
            "incomplete_details" => incomplete,
            "instructions" => self.echoed.instructions.clone(),
            "max_output_tokens" => self.echoed.max_output_tokens.clone(),
            "model" => self.version.name.as_str(),
            "output" => output,
            "parallel_tool_calls" => true,
            "previous_response_id" => Json::Null,
            "reasoning" => object! { "effort" => Json::Null, "summary" => Json::Null },
            "store" => false,
            "temperature" => self.echoed.temperature,
            "text" => object! { "format" => object! { "type" => "text" } },
            "tool_choice" => self.echoed.tool_choice.clone(),
            "tools" => self.echoed.tools.clone(),
            "top_p" => self.echoed.top_p,
            "truncation" => "disabled",
            "usage" => usage,
            "metadata" => self.echoed.metadata.clone(),
        }
    }

    fn send(&mut self, name: &'static str, mut data: Json, out: &mut String) {
        if let Json::Map(pairs) = &mut data {
            pairs.insert(0, ("type".into(), name.into()));
            pairs.insert(1, ("sequence_number".into(), self.sequence.into()));
        }
        self.sequence += 1;
        sse::write_named(out, name, &data);
    }

    /// What says where in the response something is.
    fn place(&self) -> Json {
        let index = self.items.len().saturating_sub(1);
        let mut place = object! { "item_id" => self.items[index].id(), "output_index" => index };
        if let Item::Message { .. } = &self.items[index] {
            place.push("content_index", 0u32);
        }
        place
    }

    /// Says that the last item has begun.
    fn open(&mut self, out: &mut String) {
        let index = self.items.len() - 1;
        let empty = match &self.items[index] {
            Item::Message { id, .. } => Item::Message { id: id.clone(), text: String::new() },
            Item::Call { id, call_id, name, .. } => {
                let (id, call_id, name) = (id.clone(), call_id.clone(), name.clone());
                Item::Call { id, call_id, name, arguments: String::new() }
            }
        };
        let mut item = empty.json("in_progress");
        let is_message = matches!(empty, Item::Message { .. });
        if let (true, Json::Map(pairs)) = (is_message, &mut item) {
            let content = pairs.iter_mut().filter(|(name, _)| name == "content");
            content.for_each(|(_, content)| *content = Json::List(Vec::new()));
        }
        self.send("response.output_item.added", object! { "output_index" => index, "item" => item }, out);
        if is_message {
            let mut data = self.place();
            data.push("part", part(""));
            self.send("response.content_part.added", data, out);
        }
    }

    /// Says that the last item is complete.
    fn close(&mut self, out: &mut String) {
        let Some(item) = self.items.last() else { return };
        let (mut data, done) = (self.place(), item.json(self.status()));
        match item {
            Item::Message { text, .. } => {
                let text = text.clone();
                data.push("text", text.as_str());
                data.push("logprobs", Json::List(Vec::new()));
                self.send("response.output_text.done", data, out);
                let mut data = self.place();
                data.push("part", part(&text));
                self.send("response.content_part.done", data, out);
            }
            Item::Call { name, arguments, .. } => {
                data.push("name", name.as_str());
                data.push("arguments", arguments.as_str());
                self.send("response.function_call_arguments.done", data, out);
            }
        }
        let data = object! { "output_index" => self.items.len() - 1, "item" => done };
        self.send("response.output_item.done", data, out);
    }
}

impl Dialect for Writer {
    fn begin(&mut self, out: &mut String) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.response("in_progress", None);
            self.send(name, object! { "response" => response }, out);
        }
    }

    fn event(&mut self, event: Event, out: &mut String) -> Answer<()> {
        for delta in self.deltas(&event) {
            let begins = match (&delta, self.items.last()) {
                (Delta::Content(_), Some(Item::Message { .. }))
                | (Delta::Arguments { .. } | Delta::Reasoning(_), _) => false,
                (Delta::Content(_) | Delta::Call { .. }, _) => true,
            };
            if begins {
                self.close(out);
            }
            if self.take(&delta) {
                self.open(out);
            }
            match delta {
                Delta::Content(text) => {
                    let mut data = self.place();
                    data.push("delta", text);
                    data.push("logprobs", Json::List(Vec::new()));
                    self.send("response.output_text.delta", data, out);
                }
                Delta::Arguments { text, .. } => {
                    let mut data = self.place();
                    data.push("delta", text);
                    self.send("response.function_call_arguments.delta", data, out);
                }
                Delta::Call { .. } | Delta::Reasoning(_) => {}
            }
        }
        Ok(())
    }

    fn end(&mut self, total: &Total, out: &mut String) {
        if self.items.is_empty() {
            self.items.push(Item::message()); // an empty answer is one, too
            self.open(out);
        }
        self.close(out);
        let status = self.status();
        let response = self.response(status, Some(total));
        let name = if status == "completed" { "response.completed" } else { "response.incomplete" };
        self.send(name, object! { "response" => response }, out);
    }

    fn error(&mut self, refusal: &Refusal, out: &mut String) {
        let mut response = self.response("failed", None);
        if let Json::Map(pairs) = &mut response {
            let error = object! { "code" => "server_error", "message" => refusal.message.as_str() };
            pairs.iter_mut().filter(|(name, _)| name == "error").for_each(|(_, value)| *value = error.clone());
        }
        self.send("response.failed", object! { "response" => response }, out);
    }
}
