//! `POST /v1/responses`: OpenAI's Responses API, as far as it needs no memory of what was before.
//!
//! A stream is named events with a counter; each part of an answer is opened, filled and closed.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::chat::{Asked, Delta, Parser};
use super::error::{Answer, Refusal};
use super::json::{At, Fields, Json, object};
use super::native::for_version;
use super::prompt;
use super::runs::{Runs, Total, finish_reason};
use super::service::{Bytesful, Call, Reply, json, unique};
use super::stream::{self, Dialect};
use super::version::{Version, now};
use super::{limits, options, sse};
use crate::generate::FinishReason;
use crate::scheduler::Event;
use crate::threads::Interrupt;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// What a response repeats of its request.
struct Echoed {
    instructions: Json,
    max_output_tokens: Json,
    metadata: Json,
    temperature: f32,
    top_p: f32,
}

pub async fn answer(call: Call, body: Bytesful) -> Reply {
    let (version, (asked, work, echoed)) = for_version(&call, body, |version, fields, interrupt| {
        let (asked, echoed) = asked(version, fields, interrupt)?;
        let work = asked.work(version)?;
        Ok((asked, work, echoed))
    })
    .await?;
    call.record.expect(1);
    let runs = Runs::submit(&call, &version, vec![work])?;
    let mut writer = Writer {
        id: unique("resp_", &NEXT),
        message: unique("msg_", &NEXT),
        created: now(),
        version,
        echoed,
        parser: asked.parser(),
        sequence: 0,
        text: String::new(),
        is_open: false,
        finish: None,
    };
    if asked.stream {
        return Ok(stream::respond(&call, runs, 1, writer));
    }
    let mut total = Total::default();
    let whole = runs.collect().await?.pop().unwrap_or_default();
    total.add(&whole.usage(), true);
    writer.take(&whole.event);
    Ok(json(&writer.response(writer.status(), Some(&total))))
}

fn asked(version: &Version, fields: &Fields<'_>, interrupt: &Interrupt) -> Answer<(Asked, Echoed)> {
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
    if let Some(at) = fields.get("tools")
        && at.value != &Json::List(Vec::new())
    {
        return Err(at.refused("is not supported").coded("unsupported_parameter"));
    }
    if let Some(at) = fields.get("text")
        && let Some(format) = at.object()?.get("format")
    {
        format.object()?.need("type")?.word(&["text"]).map_err(|e| e.coded("unsupported_parameter"))?;
    }
    fields.ignore(&[
        "user",
        "store",
        "service_tier",
        "include",
        "truncation",
        "tool_choice",
        "parallel_tool_calls",
        "text",
        "prompt_cache_key",
        "safety_identifier",
        "stream_options",
        "top_logprobs",
        "max_tool_calls",
    ]);
    let stream = fields.get("stream").map_or(Ok(false), |at| at.bool())?;
    let options = options::options(fields, version)?;
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
    let chat = version.chat()?;
    let conversation = prompt::conversation(&At { value: &given, pointer: String::new() }.object()?, chat.source())
        .map_err(|e| Refusal { param: Some("/input".into()), ..e })?;
    let prompt = chat.encode(&conversation, version.context_length(), interrupt)?;
    let echoed = Echoed {
        instructions: instructions.into(),
        max_output_tokens: options.max_tokens.into(),
        metadata: fields.get("metadata").map_or(Json::Map(Vec::new()), |at| at.value.clone()),
        temperature: options.sampling.temperature,
        top_p: options.sampling.top_p,
    };
    Ok((Asked { prompt, options, n: 1, logprobs: None, stream, include_usage: false }, echoed))
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
            let content = prompt::text(&fields.need("content")?)?;
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
            "content" => prompt::text(&fields.need("output")?)?,
        },
        _ => return Ok(None),
    }))
}

struct Writer {
    id: String,
    message: String,
    created: u64,
    version: Arc<Version>,
    echoed: Echoed,
    parser: Parser,
    sequence: u64,
    text: String,
    is_open: bool,
    finish: Option<FinishReason>,
}

impl Writer {
    /// Takes note of an event; gives the text that it adds.
    fn take(&mut self, event: &Event) -> String {
        let mut deltas = self.parser.push(&event.text);
        if event.end.is_some() {
            deltas.extend(self.parser.finish());
            self.finish = finish_reason(event);
        }
        let mut added = String::new();
        for delta in deltas {
            match delta {
                Delta::Content(text) => added.push_str(&text),
            }
        }
        self.text.push_str(&added);
        added
    }

    fn status(&self) -> &'static str {
        if self.finish == Some(FinishReason::Length) { "incomplete" } else { "completed" }
    }

    fn part(&self) -> Json {
        object! {
            "type" => "output_text", "text" => self.text.as_str(), "annotations" => Json::List(Vec::new()),
            "logprobs" => Json::List(Vec::new()),
        }
    }

    fn message(&self, status: &'static str, content: Vec<Json>) -> Json {
        object! {
            "id" => self.message.as_str(), "type" => "message", "status" => status, "role" => "assistant",
            "content" => content,
        }
    }

    fn response(&self, status: &'static str, total: Option<&Total>) -> Json {
        let output = if total.is_some() { vec![self.message(status, vec![self.part()])] } else { Vec::new() };
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
            "id" => self.id.as_str(), "object" => "response", "created_at" => self.created, "status" => status,
            "background" => false, "error" => Json::Null, "incomplete_details" => incomplete,
            "instructions" => self.echoed.instructions.clone(),
            "max_output_tokens" => self.echoed.max_output_tokens.clone(),
            "model" => self.version.name.as_str(), "output" => output, "parallel_tool_calls" => true,
            "previous_response_id" => Json::Null, "reasoning" => object! { "effort" => Json::Null, "summary" => Json::Null },
            "store" => false, "temperature" => self.echoed.temperature,
            "text" => object! { "format" => object! { "type" => "text" } }, "tool_choice" => "auto",
            "tools" => Json::List(Vec::new()), "top_p" => self.echoed.top_p, "truncation" => "disabled",
            "usage" => usage, "metadata" => self.echoed.metadata.clone(),
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
        object! { "item_id" => self.message.as_str(), "output_index" => 0u32, "content_index" => 0u32 }
    }

    fn open(&mut self, out: &mut String) {
        if std::mem::replace(&mut self.is_open, true) {
            return;
        }
        let item = self.message("in_progress", Vec::new());
        self.send("response.output_item.added", object! { "output_index" => 0u32, "item" => item }, out);
        let mut place = self.place();
        let mut part = self.part();
        if let Json::Map(pairs) = &mut part {
            pairs.iter_mut().filter(|(name, _)| name == "text").for_each(|(_, text)| *text = "".into());
        }
        place.push("part", part);
        self.send("response.content_part.added", place, out);
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
        let added = self.take(&event);
        if !added.is_empty() {
            let before = self.text.len() - added.len();
            if before == 0 {
                self.open(out);
            }
            let mut data = self.place();
            data.push("delta", added);
            data.push("logprobs", Json::List(Vec::new()));
            self.send("response.output_text.delta", data, out);
        }
        Ok(())
    }

    fn end(&mut self, total: &Total, out: &mut String) {
        self.open(out); // an empty answer is one, too
        let mut data = self.place();
        data.push("text", self.text.as_str());
        data.push("logprobs", Json::List(Vec::new()));
        self.send("response.output_text.done", data, out);
        let mut data = self.place();
        data.push("part", self.part());
        self.send("response.content_part.done", data, out);
        let status = self.status();
        let item = self.message(status, vec![self.part()]);
        self.send("response.output_item.done", object! { "output_index" => 0u32, "item" => item }, out);
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
