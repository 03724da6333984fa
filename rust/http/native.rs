//! What llama.cpp's server has: `/completion` and what is about tokens.

use std::sync::Arc;

use super::completions::check_room;
use super::error::{Answer, Refusal};
use super::generate::work;
use super::json::{At, Fields, Json, object};
use super::registry::asked_model;
use super::runs::{Runs, Total, finish_reason};
use super::service::{Bytesful, Call, Reply, check_unknown, json, prepare};
use super::shapes::{finite, timings, token_text};
use super::stream::{self, Dialect};
use super::version::Version;
use super::{limits, options, prompt, sse, tools};
use crate::generate::{FinishReason, Options};
use crate::scheduler::{Choice, Event, TokenLogprob};
use crate::threads::Interrupt;

/// Has `work` prepare what a request asks of its version.
pub async fn for_version<T: Send + 'static>(
    call: &Call,
    body: Bytesful,
    work: impl FnOnce(&Arc<Version>, &Fields<'_>, &Interrupt) -> Answer<T> + Send + 'static,
) -> Answer<(Arc<Version>, T)> {
    let shared = Arc::clone(&call.service.shared);
    let (version, result) = prepare(move |interrupt| {
        let json = body.json()?;
        let version = shared.registry.find(asked_model(&json)?, shared.config.strict_model)?;
        let fields = At { value: &json, pointer: String::new() }.object()?;
        fields.ignore(&["model"]);
        let result = work(&version, &fields, interrupt)?;
        check_unknown(&shared, &fields)?;
        Ok((version, result))
    })
    .await?;
    call.record.model.replace(version.name.clone());
    Ok((version, result))
}

/// `POST /completion`.
pub async fn completion(call: Call, body: Bytesful) -> Reply {
    let (version, (work, mut writer, stream)) = for_version(&call, body, |version, fields, interrupt| {
        fields.ignore(&[
            "cache_prompt",
            "id_slot",
            "n_indent",
            "samplers",
            "t_max_predict_ms",
            "t_max_prompt_ms",
            "timings_per_token",
            "return_progress",
            "post_sampling_probs",
            "n_keep",
            "n_discard",
            "n_cmpl",
            "lora",
        ]);
        let flag = |name| fields.get(name).map_or(Ok(false), |at| at.bool());
        let (stream, return_tokens) = (flag("stream")?, flag("return_tokens")?);
        let n_probs = fields.get("n_probs").map_or(Ok(0), |at| at.int(0..=limits::TOP_LOGPROBS as i128))? as usize;
        let mut options = options::options(fields, version)?;
        if n_probs > 0 {
            options::ask_logprobs(&mut options, n_probs);
        }
        let fields_wanted = match fields.get("response_fields") {
            Some(at) => at.list(64)?.map(|at| at.str().map(String::from)).collect::<Answer<Vec<_>>>()?,
            None => Vec::new(),
        };
        let ids = ids(version, &fields.need("prompt")?, interrupt)?;
        check_room(version, ids.len())?;
        let prompt = version.tokenizer()?.decode_interruptibly(&ids, false, interrupt)?;
        let work = work(version, &ids, &options, 1, interrupt)?;
        let writer = Writer {
            version: Arc::clone(version),
            options,
            prompt,
            n_probs,
            return_tokens,
            fields: fields_wanted,
            text: String::new(),
            ids: Vec::new(),
            logprobs: Vec::new(),
            sent: 0,
        };
        Ok((work, writer, stream))
    })
    .await?;
    call.record.expect(1);
    let runs = Runs::submit(&call, &version, vec![work])?;
    if stream {
        return Ok(stream::respond(&call, runs, 1, writer));
    }
    let answer = runs.collect().await?.pop().unwrap_or_default();
    writer.take(&answer.event);
    Ok(json(&writer.last(&answer.event, std::mem::take(&mut writer.text.clone()))))
}

/// A text, ids, or texts and ids in turns.
fn ids(version: &Version, at: &At<'_>, interrupt: &Interrupt) -> Answer<Vec<u32>> {
    let mut ids = if let Json::List(list) = at.value {
        let most = version.context_length();
        if list.len() > most {
            return Err(Refusal::too_long(list.len(), most));
        }
        let last = version.model.config().vocab_size as i128 - 1;
        let mut ids = Vec::new();
        for (i, part) in at.list(most)?.enumerate() {
            if part.is_text() {
                ids.extend(version.encode(part.str()?, i == 0, true, interrupt)?);
            } else {
                ids.push(part.int(0..=last)? as u32);
            }
        }
        ids
    } else {
        version.encode(at.str()?, true, true, interrupt)?
    };
    if ids.is_empty() {
        // A model that has no token to begin with has to be given one.
        ids.extend(version.tokenizer()?.bos());
    }
    if ids.is_empty() { Err(at.refused("is empty, it must have at least one token")) } else { Ok(ids) }
}

struct Writer {
    version: Arc<Version>,
    options: Options,
    prompt: String,
    n_probs: usize,
    return_tokens: bool,
    fields: Vec<String>,
    text: String,
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprob>, // that were not sent
    sent: usize,                 // tokens that were
}

impl Writer {
    /// Takes note of an event.
    fn take(&mut self, event: &Event) {
        self.text.push_str(&event.text);
        self.ids.extend(&event.token_ids);
        self.logprobs.extend(event.logprobs.iter().cloned());
    }

    fn piece(&mut self, content: String, is_last: bool) -> Json {
        let ids = if self.return_tokens { self.ids[self.sent..].to_vec() } else { Vec::new() };
        self.sent = self.ids.len();
        let mut json = object! {
            "index" => 0u32, "content" => content, "tokens" => ids, "id_slot" => 0u32, "stop" => is_last,
            "model" => self.version.name.as_str(),
        };
        if self.n_probs > 0 {
            let tokens = std::mem::take(&mut self.logprobs);
            json.push("completion_probabilities", Json::List(tokens.iter().map(|token| self.probs(token)).collect()));
        }
        json
    }

    fn probs(&self, token: &TokenLogprob) -> Json {
        let entry = |choice: &Choice| {
            let bytes = self.version.token_bytes(choice.token_id);
            object! {
                "id" => choice.token_id,
                "token" => String::from_utf8_lossy(&bytes).into_owned(),
                "bytes" => bytes.iter().map(|&b| u32::from(b)).collect::<Vec<_>>(),
                "logprob" => finite(choice.logprob),
            }
        };
        let mut json = entry(&token.chosen);
        json.push("top_logprobs", token.top.iter().take(self.n_probs).map(entry).collect::<Vec<_>>());
        json
    }

    /// The last object, which says all that there is to say.
    fn last(&mut self, event: &Event, content: String) -> Json {
        let usage = event.end.as_ref().map(|end| end.usage).unwrap_or_default();
        let (stop_type, word) = self.stopped(event);
        let has_new_line = self.text.contains('\n');
        let settings = self.settings(event);
        let mut json = self.piece(content, true);
        json.push("tokens_predicted", usage.generated_tokens);
        json.push("tokens_evaluated", usage.prompt_tokens);
        json.push("tokens_cached", usage.cached_tokens);
        json.push("generation_settings", settings);
        json.push("prompt", self.prompt.as_str());
        json.push("has_new_line", has_new_line);
        json.push("truncated", false);
        json.push("stop_type", stop_type);
        json.push("stopping_word", word);
        json.push("timings", timings(&usage));
        if !self.fields.is_empty()
            && let Json::Map(pairs) = &mut json
        {
            pairs.retain(|(name, _)| self.fields.iter().any(|field| field == name));
        }
        json
    }

    /// Why it ended. A stop string is in the tokens, and not in the text.
    fn stopped(&self, event: &Event) -> (&'static str, String) {
        match finish_reason(event) {
            Some(FinishReason::Stop) => {}
            Some(_) => return ("limit", String::new()),
            None => return ("none", String::new()),
        }
        let all = self.version.tokenizer().ok().and_then(|tokenizer| tokenizer.decode(&self.ids, true).ok());
        let all = all.unwrap_or_default();
        let rest = all.get(self.text.len().min(all.len())..).unwrap_or_default();
        let word = self.options.stop.iter().find(|stop| rest.contains(stop.as_str()));
        word.map_or(("eos", String::new()), |word| ("word", word.clone()))
    }

    fn settings(&self, event: &Event) -> Json {
        let s = &self.options.sampling;
        object! {
            "n_predict" => self.options.max_tokens.map_or(Json::Int(-1), Json::from),
            "seed" => event.end.as_ref().map_or(0, |end| end.seed),
            "temperature" => s.temperature,
            "top_k" => s.top_k,
            "top_p" => s.top_p,
            "min_p" => s.min_p,
            "repeat_last_n" => s.repeat_last_n,
            "repeat_penalty" => s.repeat_penalty,
            "presence_penalty" => s.presence_penalty,
            "frequency_penalty" => s.frequency_penalty,
            "stop" => self.options.stop.clone(),
            "ignore_eos" => self.options.ignore_eos,
            "n_probs" => self.n_probs,
        }
    }
}

impl Dialect for Writer {
    fn event(&mut self, event: Event, out: &mut String) -> Answer<()> {
        self.take(&event);
        if event.end.is_some() {
            let text = event.text.clone();
            sse::write(out, &self.last(&event, text));
        } else if !event.text.is_empty() {
            sse::write(out, &self.piece(event.text, false));
        }
        Ok(())
    }

    fn end(&mut self, _: &Total, _: &mut String) {}

    fn error(&mut self, refusal: &Refusal, out: &mut String) {
        // As that server has it.
        sse::write(out, &refusal.json());
    }
}

/// `POST /tokenize`, in the words of llama.cpp (`content`) and of vLLM (`prompt`, `messages`).
pub async fn tokenize(call: Call, body: Bytesful) -> Reply {
    let (version, (ids, with_pieces)) = for_version(&call, body, |version, fields, interrupt| {
        let flag = |name, default| fields.get(name).map_or(Ok(default), |at| at.bool());
        let is_native = fields.get("content").is_some();
        let add_special = match fields.first(&["add_special", "add_special_tokens"]) {
            Some(at) => at.bool()?,
            None => !is_native,
        };
        let with_pieces = fields.first(&["with_pieces", "return_token_strs"]).map_or(Ok(false), |at| at.bool())?;
        let parse_special = flag("parse_special", true)?;
        let ids = if fields.get("messages").is_some() {
            conversation(version, fields, interrupt)?
        } else {
            let text = match fields.first(&["content", "prompt"]) {
                Some(at) => at.str()?,
                None => fields.need("content")?.str()?,
            };
            let tokenizer = version.tokenizer()?;
            tokenizer.encode_at_most(usize::MAX, text, add_special, parse_special, interrupt)?
        };
        Ok((ids, with_pieces))
    })
    .await?;
    let count = ids.len();
    let tokens = if with_pieces {
        let piece = |id: &u32| {
            let bytes = version.token_bytes(*id);
            let piece = match String::from_utf8(bytes) {
                Ok(text) => Json::Text(text),
                Err(e) => Json::List(e.into_bytes().into_iter().map(|b| u32::from(b).into()).collect()),
            };
            object! { "id" => *id, "piece" => piece }
        };
        Json::List(ids.iter().map(piece).collect())
    } else {
        ids.into()
    };
    Ok(json(&object! {
        "tokens" => tokens, "count" => count, "max_model_len" => version.context_length(),
    }))
}

/// The tokens of the prompt that a conversation becomes.
fn conversation(version: &Version, fields: &Fields<'_>, interrupt: &Interrupt) -> Answer<Vec<u32>> {
    let template = version.template()?;
    let guard = template.guard()?;
    let tools = tools::tools(fields, guard)?;
    let question = prompt::question(fields, Some(guard), tools.described)?;
    Ok(prompt::prompt(template, &question, usize::MAX, interrupt)?.ids)
}

/// `POST /detokenize`.
pub async fn detokenize(call: Call, body: Bytesful) -> Reply {
    let (_, text) = for_version(&call, body, |version, fields, interrupt| {
        let last = version.model.config().vocab_size as i128 - 1;
        let ids = fields.need("tokens")?.list(limits::JSON_VALUES)?;
        let ids = ids.map(|id| id.int(0..=last).map(|id| id as u32)).collect::<Answer<Vec<u32>>>()?;
        Ok(version.tokenizer()?.decode_interruptibly(&ids, false, interrupt)?)
    })
    .await?;
    Ok(json(&object! { "content" => text.as_str(), "prompt" => text.as_str() }))
}

/// `POST /apply-template`.
pub async fn apply_template(call: Call, body: Bytesful) -> Reply {
    let (_, text) = for_version(&call, body, |version, fields, _| {
        let template = version.template()?;
        // Only shown: what people wrote may stay as it is.
        let tools = tools::tools(fields, template.guard()?)?;
        prompt::text(template, &prompt::question(fields, None, tools.described)?)
    })
    .await?;
    Ok(json(&object! { "prompt" => text }))
}

/// `POST /v1/chat/completions/input_tokens`.
pub async fn input_tokens(call: Call, body: Bytesful) -> Reply {
    let (_, n) =
        for_version(&call, body, |version, fields, interrupt| Ok(conversation(version, fields, interrupt)?.len()))
            .await?;
    Ok(json(&object! { "object" => "response.input_tokens", "input_tokens" => n }))
}

/// What `/tokenizer_info` says.
pub fn tokenizer_info(version: &Version) -> Answer<Json> {
    let tokenizer = version.tokenizer()?;
    let text = |id: Option<u32>| id.map(|id| token_text(version, id));
    Ok(object! {
        "tokenizer_class" => "PreTrainedTokenizerFast",
        "bos_token" => text(tokenizer.bos()),
        "eos_token" => text(tokenizer.eos()),
        "pad_token" => text(tokenizer.eos()),
        "chat_template" => version.template().ok().map(|template| template.source(false).to_string()),
        "vocab_size" => tokenizer.vocab_size(),
        "model_max_length" => version.context_length(),
    })
}
