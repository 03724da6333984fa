//! `POST /v1/embeddings`: vectors of texts; and llama.cpp's `/embedding`.

use std::fmt::Write;
use std::sync::Arc;

use super::completions::token_ids;
use super::error::{Answer, Refusal};
use super::json::{At, Fields, Json, object};
use super::limits;
use super::registry::asked_model;
use super::route::Handler;
use super::runs::{Runs, Total};
use super::service::{Bytesful, Call, Reply, check_unknown, json, prepare};
use super::version::Version;
use crate::arch::Pooling;
use crate::embedding::{self, EmbedOptions};
use crate::error::Error;
use crate::scheduler::{Vectors, Work};
use crate::threads::Interrupt;

struct Asked {
    texts: Vec<Vec<u32>>,
    options: EmbedOptions,
    as_base64: bool,
}

pub async fn answer(call: Call, body: Bytesful, handler: Handler) -> Reply {
    let shared = Arc::clone(&call.service.shared);
    let is_native = handler == Handler::Embedding;
    let (version, asked) = prepare(move |interrupt| {
        let json = body.json()?;
        let version = shared.registry.find(asked_model(&json)?, shared.config.strict_model)?;
        let fields = At { value: &json, pointer: String::new() }.object()?;
        let asked = asked(&version, &fields, is_native, interrupt)?;
        check_unknown(&shared, &fields)?;
        Ok((version, asked))
    })
    .await?;
    call.record.model.replace(version.name.clone());
    call.record.expect(1);
    let Asked { texts, options, as_base64 } = asked;
    let runs = Runs::submit(&call, &version, vec![Work::Embed { texts, options }])?;
    let mut answers = runs.collect().await?;
    let answer = answers.pop().unwrap_or_default();
    let usage = answer.usage();
    let Some(Vectors { data, dim }) = answer.event.vectors else {
        return Err(Refusal::new(500, "internal", "there are no vectors"));
    };
    let rows = data.chunks_exact(dim).enumerate();
    if is_native {
        let row = |(i, row): (usize, &[f32])| object! { "index" => i, "embedding" => vec![floats(row)] };
        return Ok(json(&Json::List(rows.map(row).collect())));
    }
    let row = |(i, row): (usize, &[f32])| {
        let vector = if as_base64 { Json::Text(base64(row)) } else { floats(row) };
        object! { "object" => "embedding", "index" => i, "embedding" => vector }
    };
    let data = rows.map(row).collect::<Vec<_>>();
    let mut total = Total::default();
    total.add(&usage, true);
    Ok(json(&object! {
        "object" => "list", "data" => data, "model" => version.name.as_str(),
        "usage" => object! { "prompt_tokens" => total.prompt, "total_tokens" => total.prompt },
    }))
}

fn asked(version: &Version, fields: &Fields<'_>, is_native: bool, interrupt: &Interrupt) -> Answer<Asked> {
    fields.ignore(&["model", "user"]);
    let as_base64 = match fields.get("encoding_format") {
        Some(at) => at.word(&["float", "base64"])? == "base64",
        None => false,
    };
    let truncate = fields.get("truncate").map_or(Ok(false), |at| at.bool())?;
    let most = version.model.config().dim.max(1 << 16) as i128;
    let dimensions = fields.get("dimensions").map(|at| at.int(1..=most)).transpose()?.map(|n| n as usize);
    let pooling = match fields.get("pooling") {
        Some(at) => {
            let word = at.word(&["mean", "cls", "last"])?;
            [Pooling::Mean, Pooling::Cls, Pooling::Last].into_iter().find(|pooling| pooling.name() == word)
        }
        None => None,
    };
    let normalize = match fields.get("embd_normalize") {
        Some(at) => at.int(-1..=2)? == 2,
        None => fields.get("normalize").map_or(Ok(true), |at| at.bool())?,
    };
    let input = if is_native { fields.first(&["content", "input"]) } else { None };
    let input = input.map_or_else(|| fields.need("input"), Ok)?;
    let texts = inputs(version, &input, truncate, interrupt)?;
    let options = EmbedOptions { pooling, normalize, dimensions, session: version.session };
    Ok(Asked { texts, options, as_base64 })
}

/// A text, texts, ids, or lists of ids, as tokens.
pub fn inputs(version: &Version, at: &At<'_>, truncate: bool, interrupt: &Interrupt) -> Answer<Vec<Vec<u32>>> {
    let longest = version.context_length();
    let one = |at: &At<'_>| -> Answer<Vec<u32>> {
        let ids = if at.is_list() {
            token_ids(version, at)?
        } else {
            embedding::tokens(&version.model, at.str()?, longest, truncate, interrupt).map_err(too_large)?
        };
        if ids.len() > longest {
            return Err(too_large(Error::ContextOverflow { tokens: ids.len(), context_length: longest }));
        }
        if ids.is_empty() {
            return Err(at.refused("is empty, it must have at least one token"));
        }
        Ok(ids)
    };
    match at.value {
        Json::List(items) => match items.first() {
            None => Err(at.refused("is empty, there must be at least one text")),
            Some(Json::Text(_) | Json::List(_)) => at.list(limits::INPUTS)?.map(|at| one(&at)).collect(),
            Some(_) => Ok(vec![one(at)?]),
        },
        _ => Ok(vec![one(at)?]),
    }
}

/// In the words that clients of embeddings look for.
fn too_large(e: Error) -> Refusal {
    let mut refusal = Refusal::from(e);
    if refusal.code == "context_length_exceeded" {
        refusal.message = format!("input is too large to process: {}", refusal.message);
    }
    refusal
}

fn floats(row: &[f32]) -> Json {
    Json::List(row.iter().map(|&x| x.into()).collect())
}

/// The bytes of the numbers, little-endian.
fn base64(row: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0, |word, &b| word << 8 | u32::from(b)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let digit = char::from(DIGITS[(word >> (18 - 6 * i)) as usize & 63]);
            let _ = out.write_char(if i <= three.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_bytes() {
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[0.1, 0.2, 0.3]), "zczMPc3MTD6amZk+");
        assert_eq!(base64(&[]), "");
    }
}
