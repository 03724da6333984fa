//! What answers of OpenAI's dialects have in common: usage, timings, logprobs.

use super::json::{Json, object};
use super::runs::Total;
use super::version::Version;
use crate::scheduler::{Choice, TokenLogprob, Usage};

/// `usage` of a chat or a completion.
pub fn usage(total: &Total) -> Json {
    object! {
        "prompt_tokens" => total.prompt,
        "completion_tokens" => total.generated,
        "total_tokens" => total.prompt + total.generated,
        "prompt_tokens_details" => object! { "cached_tokens" => total.cached },
    }
}

/// llama.cpp's `timings`. The rate of generation is that after the first token, which came with the prompt.
pub fn timings(usage: &Usage) -> Json {
    let ms = |d: std::time::Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
    let rate = |n: usize, ms: f64| if ms > 0.0 { (n as f64 * 1e6 / ms).round() / 1e3 } else { 0.0 };
    let computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
    let (prompt, generation) = (ms(usage.prompt), ms(usage.generation));
    let later = usage.generated_tokens.saturating_sub(1);
    object! {
        "cache_n" => usage.cached_tokens,
        "prompt_n" => computed,
        "prompt_ms" => prompt,
        "prompt_per_token_ms" => if computed > 0 { prompt / computed as f64 } else { 0.0 },
        "prompt_per_second" => rate(computed, prompt),
        "predicted_n" => usage.generated_tokens,
        "predicted_ms" => generation,
        "predicted_per_token_ms" => if later > 0 { generation / later as f64 } else { 0.0 },
        "predicted_per_second" => rate(later, generation),
        "queued_ms" => ms(usage.queued),
    }
}

/// The text of a token, as far as it is text.
pub fn token_text(version: &Version, id: u32) -> String {
    String::from_utf8_lossy(&version.token_bytes(id)).into_owned()
}

fn entry(version: &Version, choice: &Choice) -> Json {
    let bytes = version.token_bytes(choice.token_id);
    object! {
        "token" => String::from_utf8_lossy(&bytes).into_owned(),
        "logprob" => finite(choice.logprob),
        "bytes" => bytes.iter().map(|&b| u32::from(b)).collect::<Vec<_>>(),
    }
}

/// JSON has no minus infinity; -9999 is what OpenAI writes.
pub fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// `logprobs.content` of a chat.
pub fn chat_logprobs(version: &Version, tokens: &[TokenLogprob], top: usize) -> Json {
    let token = |token: &TokenLogprob| {
        let mut json = entry(version, &token.chosen);
        let tops = token.top.iter().take(top).map(|choice| entry(version, choice)).collect::<Vec<_>>();
        json.push("top_logprobs", tops);
        json
    };
    Json::List(tokens.iter().map(token).collect())
}

/// `logprobs` of a completion, which grows with its tokens.
#[derive(Default)]
pub struct LegacyLogprobs {
    tokens: Vec<Json>,
    logprobs: Vec<Json>,
    tops: Vec<Json>,
    offsets: Vec<Json>,
}

impl LegacyLogprobs {
    /// Adds a token that begins at `offset`, in characters of the text; nothing is known of how likely the first was.
    pub fn push(&mut self, version: &Version, id: u32, known: Option<(&TokenLogprob, usize)>, offset: &mut usize) {
        let text = token_text(version, id);
        self.offsets.push((*offset).into());
        *offset += text.chars().count();
        self.tokens.push(text.into());
        self.logprobs.push(known.map(|(token, _)| finite(token.chosen.logprob)).into());
        self.tops.push(known.map_or(Json::Null, |(token, top)| {
            // An object by text: of tokens that look the same, the likeliest.
            let mut pairs: Vec<(std::borrow::Cow<'static, str>, Json)> = Vec::new();
            for choice in token.top.iter().take(top).chain([&token.chosen]) {
                let text = token_text(version, choice.token_id);
                if !pairs.iter().any(|(known, _)| *known == text) {
                    pairs.push((text.into(), finite(choice.logprob).into()));
                }
            }
            Json::Map(pairs)
        }));
    }

    pub fn take(&mut self) -> Json {
        let LegacyLogprobs { tokens, logprobs, tops, offsets } = std::mem::take(self);
        object! {
            "tokens" => Json::List(tokens), "token_logprobs" => Json::List(logprobs),
            "top_logprobs" => Json::List(tops), "text_offset" => Json::List(offsets),
        }
    }
}
