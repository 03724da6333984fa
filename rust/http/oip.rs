//! `/v2`: the Open Inference Protocol, with Triton's `generate`.
//!
//! `infer` takes a tensor `text` of BYTES and gives one, continued, or `embedding` of FP32. Its input may lie in binary
//! behind the JSON, as Triton's clients send it.

use std::sync::Arc;

use super::completions::check_room;
use super::embeddings::inputs;
use super::error::{Answer, Refusal};
use super::generate::work;
use super::json::{At, Fields, Json, object};
use super::registry::{Change, Entry, Registry, State};
use super::runs::{Runs, Total, Whole, finish_reason};
use super::service::{Bytesful, Call, Reply, json, prepare};
use super::shapes::finite;
use super::stream::{self, Dialect};
use super::version::Version;
use super::{limits, options, sse};
use crate::embedding::EmbedOptions;
use crate::generate::{FinishReason, Options};
use crate::scheduler::{Event, Work};
use crate::threads::Interrupt;

/// What `generate` gives where nobody says how much.
const MAX_TOKENS: usize = 20;

/// The version that a path names.
fn version(call: &Call) -> Answer<Arc<Version>> {
    let (name, number) = (call.captures.first(), call.captures.get(1));
    let asked = match (name, number) {
        (Some(name), Some(number)) => Some(format!("{name}@{number}")),
        (name, _) => name.cloned(),
    };
    let version = call.service.shared.registry.find(asked.as_deref(), true)?;
    call.record.model.replace(version.name.clone());
    Ok(version)
}

/// `GET /v2`.
pub fn server() -> Json {
    object! {
        "name" => "llama_rs", "version" => env!("CARGO_PKG_VERSION"),
        "extensions" => vec!["generate", "model_repository", "binary_tensor_data"],
    }
}

/// `GET /v2/models/{m}`.
pub fn model(call: &Call) -> Answer<Json> {
    let version = version(call)?;
    let tensor = |name: &str, kind: &str, shape: Vec<i64>| {
        object! { "name" => name, "datatype" => kind, "shape" => shape }
    };
    Ok(object! {
        "name" => version.name.as_str(),
        "versions" => vec![version.number.as_str()],
        "platform" => "llama_rs",
        "inputs" => vec![tensor("text", "BYTES", vec![-1])],
        "outputs" => vec![tensor("text", "BYTES", vec![-1]), tensor("embedding", "FP32", vec![-1, -1])],
    })
}

/// `GET /v2/models/{m}/ready`.
pub fn ready(call: &Call) -> Answer<Json> {
    let version = version(call)?;
    Ok(object! { "name" => version.name.as_str(), "ready" => true })
}

/// `POST /v2/repository/index`.
pub fn index(registry: &Registry) -> Json {
    let entry = |entry: &Entry| {
        let state = if matches!(entry.state, State::Ready(_)) { "READY" } else { "UNAVAILABLE" };
        let reason = if let State::Failed(why) = &entry.state { why.as_str() } else { "" };
        object! {
            "name" => entry.name.as_str(), "version" => entry.number.as_str(), "state" => state, "reason" => reason,
        }
    };
    Json::List(registry.entries().iter().map(entry).collect())
}

/// `POST /v2/repository/models/{m}/load` and `unload`. A load may name the version that is to be the default.
pub async fn change(call: Call, body: Bytesful, what: Change) -> Reply {
    let json = body.json()?;
    let fields = At { value: &json, pointer: String::new() }.object()?;
    let number = match fields.get("parameters") {
        Some(at) => at.object()?.get("version").map(|at| match at.value {
            Json::Int(n) => Ok(n.to_string()),
            _ => at.str().map(String::from),
        }),
        None => None,
    };
    let name = call.captures.first().cloned().unwrap_or_default();
    let (shared, number) = (&call.service.shared, number.transpose()?);
    let result = shared.registry.order(what, name, number).await;
    let word = if result.is_ok() { "ok" } else { "failed" };
    shared.metrics.reloads.add(format!("result=\"{word}\""), 1);
    result?;
    Ok(super::service::json(&Json::Map(Vec::new())))
}

/// The parameters of an answer, in an object of their own.
fn parameters(version: &Version, fields: &Fields<'_>) -> Answer<(Options, bool)> {
    let Some(at) = fields.get("parameters") else {
        return Ok((Options { max_tokens: Some(MAX_TOKENS), ..version.defaults.clone() }, false));
    };
    let fields = at.object()?;
    let mut options = options::options(&fields, version)?;
    options.max_tokens = options.max_tokens.or(Some(MAX_TOKENS));
    let details = fields.get("details").map_or(Ok(false), |at| at.bool())?;
    if fields.get("logprob").map_or(Ok(false), |at| at.bool())? {
        options::ask_logprobs(&mut options, 0);
    }
    Ok((options, details))
}

/// `POST /v2/models/{m}/generate` and `generate_stream`.
pub async fn generate(call: Call, body: Bytesful, is_stream: bool) -> Reply {
    let version = version(&call)?;
    let of_task = Arc::clone(&version);
    let (todo, details) = prepare(move |interrupt| {
        let json = body.json()?;
        let fields = At { value: &json, pointer: String::new() }.object()?;
        let text = fields.need("text_input")?;
        let (options, details) = parameters(&of_task, &fields)?;
        let ids = of_task.encode(text.str()?, true, true, interrupt)?;
        if ids.is_empty() {
            return Err(text.refused("is empty, it must have at least one token"));
        }
        Ok((work(&of_task, &ids, &options, 1, interrupt)?, details))
    })
    .await?;
    call.record.expect(1);
    let runs = Runs::submit(&call, &version, vec![todo])?;
    let writer = Writer { version, details };
    if is_stream {
        return Ok(stream::respond(&call, runs, 1, writer));
    }
    let answer = runs.collect().await?.pop().unwrap_or_default();
    Ok(json(&writer.object(&answer.event)))
}

struct Writer {
    version: Arc<Version>,
    details: bool,
}

impl Writer {
    fn object(&self, event: &Event) -> Json {
        let mut json = object! {
            "text_output" => event.text.as_str(), "model_name" => self.version.name.as_str(),
            "model_version" => self.version.number.as_str(),
        };
        let reason = finish_reason(event);
        if self.details && reason.is_some() {
            let mut details = object! {
                "finish_reason" => match reason {
                    Some(FinishReason::Length) => "length",
                    _ => "eos_token",
                },
            };
            if !event.logprobs.is_empty() {
                let logprobs = event.logprobs.iter().map(|token| finite(token.chosen.logprob)).collect::<Vec<_>>();
                details.push("logprobs", logprobs);
            }
            json.push("details", details);
        }
        json
    }
}

impl Dialect for Writer {
    fn event(&mut self, event: Event, out: &mut String) -> Answer<()> {
        if !event.text.is_empty() || event.end.is_some() {
            sse::write(out, &self.object(&event));
        }
        Ok(())
    }

    fn end(&mut self, _: &Total, _: &mut String) {}

    fn error(&mut self, refusal: &Refusal, out: &mut String) {
        sse::write(out, &object! { "error" => refusal.message.as_str() });
    }
}

/// What `infer` is asked for.
enum Wanted {
    Text,
    Embedding,
}

/// `POST /v2/models/{m}/infer`.
pub async fn infer(call: Call, body: Bytesful) -> Reply {
    let version = version(&call)?;
    let of_task = Arc::clone(&version);
    let header = call.headers.get("inference-header-content-length").and_then(|n| n.to_str().ok()?.parse().ok());
    let (id, n, wanted, works) = prepare(move |interrupt| {
        let (head, binary) = body.split(header)?;
        let fields = At { value: &head, pointer: String::new() }.object()?;
        let texts = texts(&fields.need("inputs")?, binary)?;
        let (options, _) = parameters(&of_task, &fields)?;
        let wanted = wanted(&fields)?;
        let works = match wanted {
            Wanted::Text => {
                texts.iter().map(|text| continued(&of_task, text, &options, interrupt)).collect::<Answer<_>>()?
            }
            Wanted::Embedding => {
                let json = Json::from(texts.clone());
                let texts = inputs(&of_task, &At { value: &json, pointer: "/inputs/0/data".into() }, false, interrupt)?;
                let options = EmbedOptions { normalize: true, session: of_task.session, ..EmbedOptions::default() };
                vec![Work::Embed { texts, options }]
            }
        };
        let id = fields.get("id").map(|at| at.str().map(String::from)).transpose()?;
        Ok((id, texts.len(), wanted, works))
    })
    .await?;
    call.record.expect(works.len());
    let answers = Runs::submit(&call, &version, works)?.collect().await?;
    let output = match wanted {
        Wanted::Text => {
            let data = answers.into_iter().map(|answer| answer.event.text).collect::<Vec<_>>();
            object! { "name" => "text", "datatype" => "BYTES", "shape" => vec![n], "data" => data }
        }
        Wanted::Embedding => {
            let vectors = answers.into_iter().next().and_then(|Whole { event }| event.vectors);
            let Some(vectors) = vectors else { return Err(Refusal::new(500, "internal", "there are no vectors")) };
            let shape = vec![n, vectors.dim];
            object! { "name" => "embedding", "datatype" => "FP32", "shape" => shape, "data" => vectors.data }
        }
    };
    let mut response = object! {
        "model_name" => version.name.as_str(), "model_version" => version.number.as_str(), "outputs" => vec![output],
    };
    if let Some(id) = id {
        response.push("id", id);
    }
    Ok(json(&response))
}

fn continued(version: &Version, text: &str, options: &Options, interrupt: &Interrupt) -> Answer<Work> {
    let ids = version.encode(text, true, true, interrupt)?;
    if ids.is_empty() {
        return Err(Refusal::invalid("an element of text is empty, it must have at least one token"));
    }
    check_room(version, ids.len())?;
    work(version, &ids, options, 1, interrupt)
}

fn wanted(fields: &Fields<'_>) -> Answer<Wanted> {
    let Some(at) = fields.get("outputs") else { return Ok(Wanted::Text) };
    let names =
        at.list(2)?.map(|at| at.object()?.need("name")?.word(&["text", "embedding"])).collect::<Answer<Vec<_>>>()?;
    match names[..] {
        [] | ["text"] => Ok(Wanted::Text),
        ["embedding"] => Ok(Wanted::Embedding),
        _ => Err(at.must_be("one output, text or embedding")),
    }
}

/// The elements of the input `text`: in the JSON, or in binary, each behind its length.
fn texts(at: &At<'_>, binary: &[u8]) -> Answer<Vec<String>> {
    let [tensor] = &at.list(16)?.collect::<Vec<_>>()[..] else { return Err(at.must_be("one tensor, text")) };
    let fields = tensor.object()?;
    fields.need("name")?.word(&["text", "text_input"])?;
    fields.need("datatype")?.word(&["BYTES"])?;
    let shape = fields.need("shape")?;
    let n: i128 = shape.list(8)?.map(|at| at.int(0..=limits::PROMPTS as i128)).product::<Answer<i128>>()?;
    if !(1..=limits::PROMPTS as i128).contains(&n) {
        return Err(shape.must_be(format_args!("of 1 to {} elements", limits::PROMPTS)));
    }
    let texts = if let Some(data) = fields.get("data") {
        let mut texts = Vec::new();
        flatten(&data, &mut texts)?;
        texts
    } else {
        let size = fields.need("parameters")?.object()?.need("binary_data_size")?.count()?;
        let bytes = binary.get(..size).ok_or_else(|| at.refused("have more binary data than there is"))?;
        elements(bytes)
            .ok_or_else(|| at.refused("have binary data that is not text, each element behind its length"))?
    };
    if texts.len() as i128 != n {
        return Err(shape.refused(format_args!("says {n} elements, the data has {}", texts.len())));
    }
    Ok(texts)
}

fn flatten(at: &At<'_>, texts: &mut Vec<String>) -> Answer<()> {
    if at.is_list() {
        return at.list(limits::PROMPTS)?.try_for_each(|at| flatten(&at, texts));
    }
    texts.push(at.str()?.into());
    Ok(())
}

fn elements(mut bytes: &[u8]) -> Option<Vec<String>> {
    let mut texts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        texts.push(String::from_utf8(text.to_vec()).ok()?);
        bytes = rest;
    }
    bytes.is_empty().then_some(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_elements_lie_behind_their_lengths() {
        assert_eq!(elements(b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c").unwrap(), ["ab", "", "c"]);
        for bad in [&b"\x02\0\0\0a"[..], b"\x01\0\0", b"\x01\0\0\0\xff", b"\xff\xff\xff\xffa"] {
            assert_eq!(elements(bad), None);
        }
    }
}
