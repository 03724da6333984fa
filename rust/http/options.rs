//! The parameters of an answer, as a request spells them.
//!
//! Each row of the engine's own table of parameters is a field of every dialect, under its own name and those that other
//! servers have for it; so a parameter that is added there is known here.

use super::error::{Answer, Refusal};
use super::json::{At, Fields, Json};
use super::limits;
use super::version::Version;
use crate::error::Error;
use crate::generate::Options;
use crate::sampling::{Kind, Parameter, SamplingParams, Value};

/// Other names of parameters, by whoever has them.
const ALIASES: [(&str, &[&str]); 4] = [
    ("max_tokens", &["max_completion_tokens", "max_tokens", "n_predict", "max_output_tokens"]),
    ("repeat_penalty", &["repeat_penalty", "repetition_penalty"]),
    ("temperature", &["temperature", "temp"]),
    ("typical_p", &["typical_p", "typ_p"]),
];

/// Rows that dialects spell in ways of their own.
const OWN: [&str; 3] = ["logprobs", "top_logprobs", "logits_processor"];

/// The options of a request: what it says, else what the version has.
pub fn options(fields: &Fields<'_>, version: &Version) -> Answer<Options> {
    let mut options = version.defaults.clone();
    for row in Options::TABLE.iter().chain(SamplingParams::TABLE).filter(|row| !OWN.contains(&row.name)) {
        let names = ALIASES.iter().find(|(name, _)| *name == row.name);
        let Some(at) = names.map_or_else(|| fields.get(row.name), |(_, names)| fields.first(names)) else { continue };
        set(&mut options, row, &at, version)?;
    }
    // vLLM's form of the same.
    if let Some(at) = fields.get("structured_outputs") {
        let inner = at.object()?;
        for (name, row) in [("json", "json_schema"), ("regex", "regex"), ("choice", "choices"), ("grammar", "grammar")]
        {
            if let (Some(at), Some(row)) = (inner.get(name), Options::TABLE.iter().find(|known| known.name == row)) {
                set(&mut options, row, &at, version)?;
            }
        }
    }
    Ok(options)
}

fn set(options: &mut Options, row: &Parameter, at: &At<'_>, version: &Version) -> Answer<()> {
    if let Some(value) = value(row, at, version)? {
        options.set(row.name, value).map_err(|e| Refusal::from(e).at(&at.pointer))?;
    }
    Ok(())
}

/// What a field is to a parameter; none where it says nothing.
fn value(row: &Parameter, at: &At<'_>, version: &Version) -> Answer<Option<Value>> {
    Ok(Some(match row.kind {
        Kind::Bool => Value::Bool(at.bool()?),
        Kind::Int { .. } => {
            let n = at.int(i128::from(i64::MIN)..=i128::from(u64::MAX))?;
            match (row.name, n) {
                ("max_tokens", -1) => return Ok(None), // no limit
                ("seed", -1) => Value::None,
                ("seed", n) => Value::Int((n as u64).into()),
                (_, n) => Value::Int(n),
            }
        }
        Kind::Float { .. } => Value::Float(at.number()?),
        Kind::Choice(words) => Value::Text(at.word(words)?.into()),
        Kind::Words(words) => {
            let words = at.list(words.len())?.map(|at| at.word(words).map(String::from));
            Value::Texts(words.collect::<Answer<_>>()?)
        }
        Kind::Text => match at.str()? {
            "" => return Ok(None), // llama.cpp's clients send empty grammars
            text if text.len() > limits::GRAMMAR => {
                let what = format!("has {} bytes, at most {}", text.len(), limits::GRAMMAR);
                return Err(at.refused(what).coded("invalid_grammar"));
            }
            text => Value::Text(text.into()),
        },
        Kind::Json => {
            let text = if at.is_text() { at.str()?.to_string() } else { at.value.to_string() };
            if text.len() > limits::SCHEMA {
                let what = format!("is larger than {} bytes", limits::SCHEMA);
                return Err(at.refused(what).coded("invalid_schema"));
            }
            Value::Text(text)
        }
        Kind::Texts => Value::Texts(texts(at)?),
        Kind::Biases => Value::Biases(biases(at, version)?),
        Kind::Functions => return Ok(None),
    }))
}

/// One string, or several.
fn texts(at: &At<'_>) -> Answer<Vec<String>> {
    let one = |at: &At<'_>| {
        let text = at.str()?;
        match text.len() {
            0 => Err(at.refused("is empty, it must have at least one character")),
            1..=limits::STOP => Ok(text.to_string()),
            n => Err(at.refused(format_args!("has {n} bytes, at most {}", limits::STOP))),
        }
    };
    if at.is_list() { at.list(limits::STOPS)?.map(|at| one(&at)).collect() } else { Ok(vec![one(at)?]) }
}

/// `{"15043": 1.5, "Hello": -100}`, or llama.cpp's `[[15043, 1.5], ["Hello", false]]`.
fn biases(at: &At<'_>, version: &Version) -> Answer<Vec<(u32, f32)>> {
    let bias = |at: &At<'_>| match at.value {
        Json::Bool(false) => Ok(f32::NEG_INFINITY),
        _ => at.number_from(-1e6..=1e6).map(|x| if x <= -100.0 { f32::NEG_INFINITY } else { x as f32 }),
    };
    if at.is_list() {
        let pairs = at.list(limits::LOGIT_BIAS)?.map(|pair| {
            let [token, value] = &pair.list(2)?.collect::<Vec<_>>()[..] else {
                return Err(pair.must_be("a pair of a token and a number"));
            };
            let id = match token.value {
                Json::Text(text) => token_of(token, text, version)?,
                _ => token.int(0..=version.model.config().vocab_size as i128 - 1)? as u32,
            };
            Ok((id, bias(value)?))
        });
        return pairs.collect();
    }
    let Json::Map(pairs) = at.value else { return Err(at.must_be("numbers by token id")) };
    if pairs.len() > limits::LOGIT_BIAS {
        return Err(at.refused(format_args!("has {} tokens, at most {}", pairs.len(), limits::LOGIT_BIAS)));
    }
    let pair = |(name, value): &(std::borrow::Cow<'static, str>, Json)| {
        let at = At { value, pointer: format!("{}/{name}", at.pointer) };
        Ok((token_of(&at, name, version)?, bias(&at)?))
    };
    pairs.iter().map(pair).collect()
}

/// The token that a text stands for: its id in digits, or all of its text.
fn token_of(at: &At<'_>, text: &str, version: &Version) -> Answer<u32> {
    let vocab_size = version.model.config().vocab_size;
    if let Ok(id) = text.parse::<u64>() {
        if id < vocab_size as u64 {
            return Ok(id as u32);
        }
        return Err(at.refused(format_args!("names token {id}, the vocabulary has {vocab_size}")));
    }
    match version.tokenizer()?.encode_at_most(16, text, false, true, &crate::threads::Interrupt::never()) {
        Ok(ids) if ids.len() == 1 => Ok(ids[0]),
        Ok(_) | Err(Error::TooManyTokens { .. }) => Err(at.refused("names a text that is not one token")),
        Err(e) => Err(e.into()),
    }
}

/// Has the answer say how likely its tokens were, and so many others.
pub fn ask_logprobs(options: &mut Options, top: usize) {
    (options.logprobs, options.top_logprobs) = (true, top);
}
