//! `POST /v1/completions`: a text, continued.
//!
//! With `echo` and `logprobs` it says how likely a text is, in the shape that evaluation harnesses read.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::error::{Answer, Refusal};
use super::generate::generate;
use super::json::{At, Json, object};
use super::registry::asked_model;
use super::runs::{Runs, Total, Whole, finish_reason};
use super::service::{Bytesful, Call, Reply, check_unknown, json, prepare, unique};
use super::shapes::{LegacyLogprobs, timings, usage};
use super::stream::{self, Dialect};
use super::version::{Version, now};
use super::{limits, options, sse};
use crate::scheduler::{Event, Form, PromptLogprobs, Work};
use crate::threads::Interrupt;

/// What OpenAI gives where nobody says how much.
const MAX_TOKENS: usize = 16;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A prompt: its tokens, and what of it is echoed.
struct Prompt {
    ids: Vec<u32>,
    text: String,
    /// Whether we put a token before it that nobody wrote.
    has_bos: bool,
}

/// What is asked.
struct Asked {
    prompts: Vec<Prompt>,
    works: Vec<Work>,
    n: usize,
    logprobs: Option<usize>,
    echo: bool,
    stream: bool,
    include_usage: bool,
}

pub async fn answer(call: Call, body: Bytesful) -> Reply {
    let shared = Arc::clone(&call.service.shared);
    let (version, asked) = prepare(move |interrupt| {
        let json = body.json()?;
        let at = At { value: &json, pointer: String::new() };
        let version = shared.registry.find(asked_model(&json)?, shared.config.strict_model)?;
        let fields = at.object()?;
        let asked = asked(&version, &fields, interrupt)?;
        check_unknown(&shared, &fields)?;
        Ok((version, asked))
    })
    .await?;
    call.record.model.replace(version.name.clone());
    let Asked { prompts, works, n, logprobs, echo, stream, include_usage } = asked;
    call.record.expect(works.len() * n);
    let runs = Runs::submit(&call, &version, works)?;
    let writer = Writer {
        id: unique("cmpl-", &NEXT),
        created: now(),
        answers: (0..prompts.len() * n).map(|_| State::default()).collect(),
        version,
        prompts: Rc::new(prompts),
        n,
        logprobs,
        echo,
        include_usage,
    };
    if stream {
        return Ok(stream::respond(&call, runs, n, writer));
    }
    Ok(json(&writer.whole(runs.collect().await?)))
}

fn asked(version: &Version, fields: &super::json::Fields<'_>, interrupt: &Interrupt) -> Answer<Asked> {
    fields.ignore(&["model", "user", "metadata", "store", "service_tier"]);
    let n = fields.get("n").map_or(Ok(1), |at| at.int(1..=limits::N as i128))? as usize;
    if let Some(at) = fields.get("best_of")
        && at.count()? != n
    {
        return Err(at.refused(format_args!("must be n, which is {n}")).coded("unsupported_parameter"));
    }
    let flag = |name| fields.get(name).map_or(Ok(false), |at| at.bool());
    let (echo, stream) = (flag("echo")?, flag("stream")?);
    let include_usage = include_usage(fields, stream)?;
    let logprobs = match fields.get("logprobs") {
        Some(At { value: Json::Bool(false), .. }) | None => None,
        Some(At { value: Json::Bool(true), .. }) => Some(1),
        Some(at) => Some(at.int(0..=limits::TOP_LOGPROBS as i128)? as usize),
    };
    let says_max = fields.first(&["max_tokens", "n_predict", "max_completion_tokens"]).is_some();
    let mut options = options::options(fields, version)?;
    if !says_max && version.defaults.max_tokens.is_none() {
        options.max_tokens = Some(MAX_TOKENS);
    }
    let add_special = fields.get("add_special_tokens").map_or(Ok(true), |at| at.bool())?;
    let mut prompts = prompts(version, &fields.need("prompt")?, add_special, interrupt)?;
    if let Some(at) = fields.get("suffix")
        && !at.str()?.is_empty()
    {
        if echo {
            return Err(at.refused("fills a gap, whose prompt cannot be echoed").coded("unsupported_parameter"));
        }
        fill_in(version, &at, &mut prompts, interrupt)?;
    }
    if let Some(top) = logprobs {
        options::ask_logprobs(&mut options, top);
    }
    let mut works = Vec::new();
    for prompt in &prompts {
        check_room(version, prompt.ids.len())?;
        let mut generate = generate(version, &prompt.ids, &options, n, Form::default(), interrupt)?;
        if let (true, Some(top)) = (echo, logprobs) {
            generate.prompt_logprobs = Some(PromptLogprobs { first: 1, top, any_end: false });
        }
        works.push(Work::Generate(generate));
    }
    Ok(Asked { prompts, works, n, logprobs, echo, stream, include_usage })
}

/// Has the answer fill the gap between each prompt and the text of `at`, for models that have learnt to.
fn fill_in(version: &Version, at: &At<'_>, prompts: &mut [Prompt], interrupt: &Interrupt) -> Answer<()> {
    let tokenizer = version.tokenizer()?;
    let Some([before, after, middle]) = tokenizer.fim_tokens()? else {
        let what = "is not possible: this model has no tokens for what is to be filled in (FIM)";
        return Err(at.refused(what).coded("unsupported_parameter"));
    };
    let suffix = version.encode(at.str()?, false, false, interrupt)?;
    for prompt in prompts {
        let ids = std::mem::take(&mut prompt.ids);
        let (bos, text) = ids.split_at(usize::from(prompt.has_bos));
        prompt.ids = [bos, &[before], text, &[after], &suffix, &[middle]].concat();
    }
    Ok(())
}

/// `stream_options.include_usage`.
pub fn include_usage(fields: &super::json::Fields<'_>, stream: bool) -> Answer<bool> {
    let Some(at) = fields.get("stream_options") else { return Ok(false) };
    if !stream {
        return Err(at.refused("is only for stream: true"));
    }
    at.object()?.get("include_usage").map_or(Ok(false), |at| at.bool())
}

/// A prompt that leaves no room is refused here, in the words that clients know.
pub fn check_room(version: &Version, tokens: usize) -> Answer<()> {
    let most = version.context_length();
    if tokens > most { Err(Refusal::too_long(tokens, most)) } else { Ok(()) }
}

/// A text, texts, ids, or lists of ids.
fn prompts(version: &Version, at: &At<'_>, add_special: bool, interrupt: &Interrupt) -> Answer<Vec<Prompt>> {
    let Json::List(items) = at.value else { return Ok(vec![prompt(version, at, add_special, interrupt)?]) };
    let most = version.context_length();
    match items.first() {
        None => Err(at.refused("is empty, it must have at least one prompt")),
        Some(Json::Text(_) | Json::List(_)) => {
            at.list(limits::PROMPTS)?.map(|at| prompt(version, &at, add_special, interrupt)).collect()
        }
        Some(_) if items.len() > most => Err(Refusal::too_long(items.len(), most)),
        Some(_) => Ok(vec![prompt(version, at, add_special, interrupt)?]),
    }
}

fn prompt(version: &Version, at: &At<'_>, add_special: bool, interrupt: &Interrupt) -> Answer<Prompt> {
    let tokenizer = version.tokenizer()?;
    let prompt = if at.is_list() {
        let ids = token_ids(version, at)?;
        let text = tokenizer.decode_interruptibly(&ids, false, interrupt)?;
        Prompt { ids, text, has_bos: false }
    } else {
        let text = at.str()?.to_string();
        let ids = version.encode(&text, add_special, true, interrupt)?;
        let has_bos = tokenizer.bos().is_some_and(|bos| ids.first() == Some(&bos))
            && tokenizer.encode("", add_special, false)?.first() == tokenizer.bos().as_ref()
            && !text.starts_with(&super::shapes::token_text(version, ids[0]));
        Prompt { ids, text, has_bos }
    };
    if prompt.ids.is_empty() {
        return Err(at.refused("is empty, it must have at least one token"));
    }
    Ok(prompt)
}

/// Token ids of the vocabulary.
pub fn token_ids(version: &Version, at: &At<'_>) -> Answer<Vec<u32>> {
    let last = version.model.config().vocab_size as i128 - 1;
    let most = version.context_length();
    if let Json::List(list) = at.value
        && list.len() > most
    {
        return Err(Refusal::too_long(list.len(), most));
    }
    at.list(most)?.map(|id| id.int(0..=last).map(|id| id as u32)).collect()
}

/// What is known of an answer while it comes.
#[derive(Default)]
struct State {
    has_begun: bool,
    offset: usize, // of the next token, in characters
    logprobs: LegacyLogprobs,
    finish: Option<&'static str>,
}

struct Writer {
    id: String,
    created: u64,
    answers: Vec<State>,
    version: Arc<Version>,
    prompts: Rc<Vec<Prompt>>,
    n: usize,
    logprobs: Option<usize>,
    echo: bool,
    include_usage: bool,
}

impl Writer {
    fn object(&self) -> Json {
        object! {
            "id" => self.id.as_str(), "object" => "text_completion", "created" => self.created,
            "model" => self.version.name.as_str(), "system_fingerprint" => self.version.fingerprint.as_str(),
        }
    }

    /// The choice that an event becomes; none if it says nothing.
    fn choice(&mut self, event: &Event) -> Option<Json> {
        let state = &mut self.answers[event.index];
        let prompt = &self.prompts[event.index / self.n];
        let mut text = String::new();
        if self.echo && !std::mem::replace(&mut state.has_begun, true) {
            text.push_str(&prompt.text);
            if let Some(top) = self.logprobs {
                for (i, &id) in prompt.ids.iter().enumerate().skip(usize::from(prompt.has_bos)) {
                    let known = i.checked_sub(1).and_then(|i| event.prompt_logprobs.get(i));
                    state.logprobs.push(&self.version, id, known.map(|known| (known, top)), &mut state.offset);
                }
            }
        }
        text.push_str(&event.text);
        if let Some(top) = self.logprobs {
            for token in &event.logprobs {
                let known = Some((token, top));
                state.logprobs.push(&self.version, token.chosen.token_id, known, &mut state.offset);
            }
        }
        let finish = finish_reason(event).map(|reason| reason.as_str());
        state.finish = finish;
        if text.is_empty() && finish.is_none() {
            return None; // logprobs wait for their text
        }
        let logprobs = self.logprobs.map(|_| state.logprobs.take());
        Some(object! {
            "text" => text, "index" => event.index, "logprobs" => logprobs, "finish_reason" => finish,
        })
    }

    fn whole(mut self, answers: Vec<Whole>) -> Json {
        let mut total = Total::default();
        answers.iter().enumerate().for_each(|(i, answer)| total.add(&answer.usage(), i.is_multiple_of(self.n)));
        let choices = answers.iter().filter_map(|answer| self.choice(&answer.event)).collect::<Vec<_>>();
        let mut json = self.object();
        json.push("choices", choices);
        json.push("usage", usage(&total));
        json.push("timings", timings(&total.longest));
        json
    }
}

impl Dialect for Writer {
    fn event(&mut self, event: Event, out: &mut String) -> Answer<()> {
        if let Some(choice) = self.choice(&event) {
            let mut json = self.object();
            json.push("choices", vec![choice]);
            sse::write(out, &json);
        }
        Ok(())
    }

    fn end(&mut self, total: &Total, out: &mut String) {
        if self.include_usage {
            let mut json = self.object();
            json.push("choices", Json::List(Vec::new()));
            json.push("usage", usage(total));
            json.push("timings", timings(&total.longest));
            sse::write(out, &json);
        }
        out.push_str(sse::DONE);
    }
}
