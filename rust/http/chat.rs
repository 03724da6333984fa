//! `POST /v1/chat/completions`: an answer to a conversation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::completions::include_usage;
use super::error::{Answer, Refusal};
use super::generate::{compile, generate};
use super::json::{At, Fields, Json, object};
use super::prompt;
use super::registry::asked_model;
use super::runs::{Runs, Total, Whole, finish_reason};
use super::service::{Bytesful, Call, Reply, check_unknown, json, prepare, unique};
use super::shapes::{chat_logprobs, timings, usage};
use super::stream::{self, Dialect};
use super::tools::{Tools, tools};
use super::version::{Version, now};
use super::{limits, options, sse};
use crate::chat::{self, Delta, Format, Parser, Prompt, Setup};
use crate::generate::{FinishReason, Options};
use crate::scheduler::{Event, Form, TokenLogprob, Work};
use crate::threads::Interrupt;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// What is asked.
pub struct Asked {
    pub prompt: Prompt,
    pub options: Options,
    pub n: usize,
    /// Alternatives beside each token, if the logprobs are wanted at all.
    pub logprobs: Option<usize>,
    pub stream: bool,
    pub include_usage: bool,
    format: Format,
    keeping: Vec<u32>,
    tools: Tools,
    reasoning: bool,
}

impl Asked {
    /// What fields say about the conversation, and about the answer to it.
    pub fn of(
        version: &Version,
        fields: &Fields<'_>,
        options: Options,
        n: usize,
        interrupt: &Interrupt,
    ) -> Answer<Self> {
        let template = version.template()?;
        let guard = template.guard()?;
        let tools = tools(fields, guard)?;
        let has_tools = !tools.known.is_empty();
        let question = prompt::question(fields, Some(guard), tools.described.clone())?;
        let prompt = prompt::prompt(template, &question, version.context_length(), interrupt)?;
        let (format, keeping) = version.format(has_tools)?.clone();
        let reasoning = match fields.get("reasoning_format") {
            Some(at) => at.word(&["auto", "none", "deepseek"])? != "none",
            None => true,
        };
        let (logprobs, stream, include_usage) = (None, false, false);
        Ok(Self { prompt, options, n, logprobs, stream, include_usage, format, keeping, tools, reasoning })
    }

    /// What the scheduler has to do.
    pub fn work(&self, version: &Version, interrupt: &Interrupt) -> Answer<Work> {
        // Where the model thinks first, the form of the answer begins behind its thoughts.
        let after = self.format.answer_mark().filter(|_| self.parser(0).in_reasoning());
        let constraint = self.tools.grammar.as_ref().map(|grammar| compile(version, grammar, after, interrupt));
        let (keeping, constraint) = (self.keeping.clone(), constraint.transpose()?);
        let form = Form { keeping, constraint, after: after.map(String::from) };
        generate(version, &self.prompt.ids, &self.options, self.n, form, interrupt).map(Work::Generate)
    }

    /// What makes pieces of the text of an answer.
    pub fn parser(&self, index: usize) -> Parser {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let seed = now().rotate_left(32) ^ CALLS.fetch_add(1, Ordering::Relaxed) ^ index as u64;
        let (calls, tools) = (self.tools.calls, self.tools.known.clone());
        Parser::new(&self.format, Setup { calls, tools, reasoning: self.reasoning, prompt: &self.prompt.end, seed })
    }
}

pub async fn answer(call: Call, body: Bytesful) -> Reply {
    let shared = Arc::clone(&call.service.shared);
    let (version, asked, work) = prepare(move |interrupt| {
        let json = body.json()?;
        let version = shared.registry.find(asked_model(&json)?, shared.config.strict_model)?;
        let fields = At { value: &json, pointer: String::new() }.object()?;
        let asked = asked(&version, &fields, interrupt)?;
        check_unknown(&shared, &fields)?;
        let work = asked.work(&version, interrupt)?;
        Ok((version, asked, work))
    })
    .await?;
    call.record.model.replace(version.name.clone());
    call.record.expect(asked.n);
    let runs = Runs::submit(&call, &version, vec![work])?;
    let writer = Writer {
        id: unique("chatcmpl-", &NEXT),
        created: now(),
        answers: (0..asked.n).map(|i| State::new(asked.parser(i))).collect(),
        version,
        logprobs: asked.logprobs,
        include_usage: asked.include_usage,
    };
    if asked.stream {
        return Ok(stream::respond(&call, runs, asked.n, writer));
    }
    Ok(json(&writer.whole(runs.collect().await?)))
}

fn asked(version: &Version, fields: &Fields<'_>, interrupt: &Interrupt) -> Answer<Asked> {
    fields.ignore(&["model", "user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier"]);
    refuse_unsupported(fields)?;
    let n = fields.get("n").map_or(Ok(1), |at| at.int(1..=limits::N as i128))? as usize;
    let flag = |name| fields.get(name).map_or(Ok(false), |at| at.bool());
    let stream = flag("stream")?;
    let include_usage = include_usage(fields, stream)?;
    let wants_logprobs = flag("logprobs")?;
    let mut logprobs = wants_logprobs.then_some(0);
    if let Some(at) = fields.get("top_logprobs") {
        let top = at.int(0..=limits::TOP_LOGPROBS as i128)? as usize;
        if top > 0 && !wants_logprobs {
            return Err(at.refused("is only for logprobs: true"));
        }
        logprobs = logprobs.map(|_| top);
    }
    let mut options = options::options(fields, version)?;
    if let Some(top) = logprobs {
        options::ask_logprobs(&mut options, top);
    }
    let asked = Asked::of(version, fields, options, n, interrupt)?;
    Ok(Asked { logprobs, stream, include_usage, ..asked })
}

/// What we cannot do is not done otherwise in silence.
fn refuse_unsupported(fields: &Fields<'_>) -> Answer<()> {
    for name in ["functions", "function_call", "audio", "web_search_options", "prediction"] {
        if let Some(at) = fields.get(name) {
            return Err(at.refused("is not supported").coded("unsupported_parameter"));
        }
    }
    if let Some(at) = fields.get("modalities") {
        for modality in at.list(8)? {
            modality.word(&["text"]).map_err(|e| e.coded("unsupported_parameter"))?;
        }
    }
    Ok(())
}

/// What is known of an answer while it comes.
struct State {
    parser: Parser,
    logprobs: Vec<TokenLogprob>, // that wait for their text
}

impl State {
    fn new(parser: Parser) -> Self {
        Self { parser, logprobs: Vec::new() }
    }
}

struct Writer {
    id: String,
    created: u64,
    answers: Vec<State>,
    version: Arc<Version>,
    logprobs: Option<usize>,
    include_usage: bool,
}

impl Writer {
    fn object(&self, kind: &str) -> Json {
        object! {
            "id" => self.id.as_str(), "object" => kind, "created" => self.created,
            "model" => self.version.name.as_str(), "system_fingerprint" => self.version.fingerprint.as_str(),
        }
    }

    fn chunk(&self, choices: Vec<Json>, out: &mut String) {
        let mut json = self.object("chat.completion.chunk");
        json.push("choices", choices);
        sse::write(out, &json);
    }

    /// The pieces that an event adds to an answer; at its end, what was held back too.
    fn deltas(&mut self, event: &mut Event) -> Vec<Delta> {
        let state = &mut self.answers[event.index];
        state.logprobs.append(&mut event.logprobs);
        let mut deltas = state.parser.push(&event.text);
        if event.end.is_some() {
            deltas.extend(state.parser.finish(finish_reason(event) == Some(FinishReason::Length)));
        }
        deltas
    }

    fn finish(&self, event: &Event) -> Option<&'static str> {
        let reason = finish_reason(event)?.as_str();
        Some(if reason == "stop" && self.answers[event.index].parser.n_calls() > 0 { "tool_calls" } else { reason })
    }

    /// The logprobs that there are, if they are wanted.
    fn take_logprobs(&mut self, index: usize) -> Json {
        let Some(top) = self.logprobs else { return Json::Null };
        let tokens = std::mem::take(&mut self.answers[index].logprobs);
        object! { "content" => chat_logprobs(&self.version, &tokens, top), "refusal" => Json::Null }
    }

    fn whole(mut self, answers: Vec<Whole>) -> Json {
        let (mut total, mut choices) = (Total::default(), Vec::new());
        for (i, mut answer) in answers.into_iter().enumerate() {
            total.add(&answer.usage(), i == 0);
            let mut reply = chat::Reply::default();
            self.deltas(&mut answer.event).iter().for_each(|delta| reply.push(delta));
            let message = message(&reply);
            let finish = self.finish(&answer.event);
            let logprobs = self.take_logprobs(i);
            choices.push(object! {
                "index" => i, "message" => message, "logprobs" => logprobs, "finish_reason" => finish,
            });
        }
        let mut json = self.object("chat.completion");
        json.push("choices", choices);
        json.push("usage", usage(&total));
        json.push("timings", timings(&total.longest));
        json
    }
}

/// A whole message.
fn message(reply: &chat::Reply) -> Json {
    let says_nothing = reply.content.is_empty() && !(reply.calls.is_empty() && reply.reasoning.is_empty());
    let content = (!says_nothing).then_some(reply.content.as_str());
    let mut message = object! { "role" => "assistant", "content" => content, "refusal" => Json::Null };
    if !reply.reasoning.is_empty() {
        message.push("reasoning_content", reply.reasoning.as_str());
    }
    if !reply.calls.is_empty() {
        let calls = reply.calls.iter().map(|call| {
            let function = object! { "name" => call.name.as_str(), "arguments" => call.arguments.as_str() };
            object! { "id" => call.id.as_str(), "type" => "function", "function" => function }
        });
        message.push("tool_calls", calls.collect::<Vec<_>>());
    }
    message
}

/// A piece of a message. What clients join comes once: the id and the name of a call.
fn piece(delta: Delta) -> Json {
    match delta {
        Delta::Content(text) => object! { "content" => text },
        Delta::Reasoning(text) => object! { "reasoning_content" => text },
        Delta::Call { index, id, name } => {
            let function = object! { "name" => name, "arguments" => "" };
            let call = object! { "index" => index, "id" => id, "type" => "function", "function" => function };
            object! { "tool_calls" => vec![call] }
        }
        Delta::Arguments { index, text } => {
            let call = object! { "index" => index, "function" => object! { "arguments" => text } };
            object! { "tool_calls" => vec![call] }
        }
    }
}

fn choice(index: usize, delta: Json, logprobs: Json, finish: Option<&'static str>) -> Json {
    object! { "index" => index, "delta" => delta, "logprobs" => logprobs, "finish_reason" => finish }
}

impl Dialect for Writer {
    fn begin(&mut self, out: &mut String) {
        // Once: clients join what they get of a field.
        for index in 0..self.answers.len() {
            let delta = object! { "role" => "assistant", "content" => Json::Null };
            self.chunk(vec![choice(index, delta, Json::Null, None)], out);
        }
    }

    fn event(&mut self, mut event: Event, out: &mut String) -> Answer<()> {
        let index = event.index;
        for delta in self.deltas(&mut event) {
            let logprobs = self.take_logprobs(index);
            self.chunk(vec![choice(index, piece(delta), logprobs, None)], out);
        }
        if let Some(finish) = self.finish(&event) {
            let logprobs = if self.answers[index].logprobs.is_empty() { Json::Null } else { self.take_logprobs(index) };
            self.chunk(vec![choice(index, Json::Map(Vec::new()), logprobs, Some(finish))], out);
        }
        Ok(())
    }

    fn end(&mut self, total: &Total, out: &mut String) {
        if self.include_usage {
            let mut json = self.object("chat.completion.chunk");
            json.push("choices", Json::List(Vec::new()));
            json.push("usage", usage(total));
            json.push("timings", timings(&total.longest));
            sse::write(out, &json);
        }
        out.push_str(sse::DONE);
    }

    fn error(&mut self, refusal: &Refusal, out: &mut String) {
        sse::write(out, &refusal.json());
    }
}
