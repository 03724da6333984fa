//! `POST /v1/score`, `/v1/classify` and `/v1/rerank`: how likely texts are, rather than new ones.
//!
//! What is asked of labels and what follows from their scores is that of every other way to classify: `classify`.

use std::sync::Arc;

use super::completions::token_ids;
use super::error::{Answer, Refusal};
use super::json::{At, Fields, Json, object};
use super::limits;
use super::native::for_version;
use super::prompt::to_value;
use super::runs::{Runs, Total, Whole};
use super::service::{Bytesful, Call, Reply, json};
use super::shapes::{finite, token_text};
use super::version::Version;
use crate::classify::{self, Asked, Asking, CONTENT_FREE};
use crate::generate::Options;
use crate::likelihood::Choices;
use crate::scheduler::{Generate, PromptLogprobs, Work};
use crate::threads::Interrupt;
use crate::{chat, embedding};

/// A text whose last tokens are scored.
struct Scored {
    ids: Vec<u32>,
    first: usize,
    any_end: bool, // the last one stands for all that end an answer
}

impl Scored {
    /// A prompt and what follows it: one text, if its tokens then begin with those of the prompt.
    fn text(version: &Version, before: &str, after: &str, interrupt: &Interrupt) -> Answer<Self> {
        let mut prompt = version.encode(before, true, true, interrupt)?;
        let (whole, first) = (version.encode(&format!("{before}{after}"), true, true, interrupt)?, prompt.len());
        if whole.starts_with(&prompt) {
            return Self::of(version, whole, first);
        }
        prompt.extend(version.encode(after, false, true, interrupt)?);
        Self::of(version, prompt, first)
    }

    fn of(version: &Version, ids: Vec<u32>, first: usize) -> Answer<Self> {
        let most = version.context_length();
        if ids.len() > most {
            return Err(Refusal::too_long(ids.len(), most));
        }
        if first == 0 || first >= ids.len() {
            return Err(Refusal::invalid("there must be a token before what is scored, and one of it"));
        }
        Ok(Self { ids, first, any_end: false })
    }

    fn work(&self, version: &Version) -> Answer<Work> {
        let options = Options { max_tokens: Some(0), ..Options::default() };
        let mut generate = Generate::new(&version.model, self.ids.clone(), options, 1)?;
        generate.prompt_logprobs = Some(PromptLogprobs { first: self.first, top: 0, any_end: self.any_end });
        Ok(Work::Generate(generate))
    }
}

/// The logprobs of the tokens that were scored.
fn logprobs(answer: &Whole) -> Vec<f32> {
    answer.event.prompt_logprobs.iter().map(|token| token.chosen.logprob).collect()
}

fn works(version: &Version, scored: &[Scored]) -> Answer<Vec<Work>> {
    scored.iter().map(|one| one.work(version)).collect()
}

async fn run(call: &Call, version: &Arc<Version>, works: Vec<Work>) -> Answer<(Vec<Whole>, Total)> {
    call.record.expect(works.len());
    let answers = Runs::submit(call, version, works)?.collect().await?;
    let mut total = Total::default();
    answers.iter().for_each(|answer| total.add(&answer.usage(), true));
    Ok((answers, total))
}

fn usage(total: &Total) -> Json {
    object! {
        "prompt_tokens" => total.prompt, "total_tokens" => total.prompt,
        "prompt_tokens_details" => object! { "cached_tokens" => total.cached },
    }
}

/// `POST /v1/score`: how likely completions are after a prompt.
pub async fn score(call: Call, body: Bytesful) -> Reply {
    let (version, (scored, works)) = for_version(&call, body, |version, fields, interrupt| {
        let (prompt, completion) = (fields.need("prompt")?, fields.need("completion")?);
        let one = |completion: &At<'_>| -> Answer<Scored> {
            if prompt.is_text() {
                return Scored::text(version, prompt.str()?, completion.str()?, interrupt);
            }
            let mut ids = token_ids(version, &prompt)?;
            let first = ids.len();
            ids.extend(token_ids(version, completion)?);
            Scored::of(version, ids, first)
        };
        let has_several = match completion.value {
            Json::List(list) => matches!(list.first(), Some(Json::Text(_) | Json::List(_))),
            _ => false,
        };
        let scored = if has_several {
            completion.list(limits::PROMPTS)?.map(|at| one(&at)).collect::<Answer<Vec<_>>>()?
        } else {
            vec![one(&completion)?]
        };
        let works = works(version, &scored)?;
        Ok((scored, works))
    })
    .await?;
    let (answers, total) = run(&call, &version, works).await?;
    let data = scored.iter().zip(&answers).enumerate().map(|(i, (scored, answer))| {
        let (ids, logprobs) = (&scored.ids[scored.first..], logprobs(answer));
        let sum: f64 = logprobs.iter().map(|&x| f64::from(x)).sum();
        object! {
            "object" => "score",
            "index" => i,
            "score" => sum,
            "tokens" => ids.iter().map(|&id| token_text(&version, id)).collect::<Vec<_>>(),
            "token_ids" => ids.to_vec(),
            "logprobs" => logprobs.iter().map(|&x| finite(x)).collect::<Vec<_>>(),
        }
    });
    Ok(json(&object! {
        "object" => "list", "data" => data.collect::<Vec<_>>(), "model" => version.name.as_str(), "usage" => usage(&total),
    }))
}

/// What is asked of a classifier.
struct Classified {
    labels: Vec<String>,
    inputs: usize, // as many rows of labels, and then those of inputs without content
    by_batch: bool,
    by_sum: bool,
    multi_label: bool,
}

/// `POST /v1/classify`: which of some labels fits a text.
pub async fn classify(call: Call, body: Bytesful) -> Reply {
    let (version, (asked, works)) = for_version(&call, body, |version, fields, interrupt| {
        let at = fields.need("input")?;
        let inputs: Vec<&str> = if at.is_list() {
            at.list(limits::INPUTS)?.map(|at| at.str()).collect::<Answer<_>>()?
        } else {
            vec![at.str()?]
        };
        if inputs.is_empty() {
            return Err(at.refused("is empty, there must be at least one text"));
        }
        let (labels, answers) = labels(fields)?;
        let calibration =
            fields.get("calibration").map_or(Ok("content_free"), |at| at.word(&["content_free", "none", "batch"]))?;
        let normalize = fields.get("normalize").map_or(Ok("mean"), |at| at.word(&["mean", "sum"]))?;
        let multi_label = fields.get("multi_label").map_or(Ok(false), |at| at.bool())?;
        let baselines: &[&str] = if calibration == "content_free" { &CONTENT_FREE } else { &[] };
        if (inputs.len() + baselines.len()) * labels.len() > limits::INPUTS {
            return Err(at.refused(format_args!("times the labels are more than {}", limits::INPUTS)));
        }
        let template = match fields.get("chat").map(|at| at.bool()).transpose()? {
            Some(false) => None,
            Some(true) => Some(version.template()?),
            None => version.template().ok(),
        };
        let asking = asking(fields, &labels, answers, template)?;
        let mut scored = Vec::new();
        for input in inputs.iter().chain(baselines) {
            scored.extend(one(version, &asking, template, input, interrupt)?);
        }
        let (by_batch, by_sum) = (calibration == "batch", normalize == "sum");
        let classified = Classified { labels, inputs: inputs.len(), by_batch, by_sum, multi_label };
        Ok((classified, works(version, &scored)?))
    })
    .await?;
    let (answers, total) = run(&call, &version, works).await?;
    let data = asked.data(&answers);
    Ok(json(&object! {
        "object" => "list", "data" => data, "model" => version.name.as_str(), "usage" => usage(&total),
    }))
}

/// The labels, and what the model would write for each.
fn labels(fields: &Fields<'_>) -> Answer<(Vec<String>, Vec<String>)> {
    let at = fields.need("labels")?;
    let pairs: Vec<(String, String)> = match at.value {
        Json::Map(pairs) => pairs
            .iter()
            .map(|(name, value)| {
                let at = At { value, pointer: format!("{}/{name}", at.pointer) };
                Ok((name.to_string(), at.str()?.to_string()))
            })
            .collect::<Answer<_>>()?,
        _ => {
            at.list(256)?.map(|at| at.str().map(|name| (name.to_string(), name.to_string()))).collect::<Answer<_>>()?
        }
    };
    if !(2..=256).contains(&pairs.len()) || pairs.iter().any(|(_, text)| text.trim().is_empty()) {
        return Err(at.must_be("2 to 256 labels, none of them empty"));
    }
    let is_twice = |i: usize| pairs[..i].iter().any(|(name, text)| *name == pairs[i].0 || *text == pairs[i].1);
    if let Some(i) = (0..pairs.len()).find(|&i| is_twice(i)) {
        return Err(at.refused(format_args!("has the label {:?} twice", pairs[i].0)));
    }
    Ok(pairs.into_iter().unzip())
}

/// What the model is asked, as the fields say.
fn asking(
    fields: &Fields<'_>,
    labels: &[String],
    answers: Vec<String>,
    template: Option<&chat::Template>,
) -> Answer<Asking> {
    let text = |name| fields.get(name).map(|at| at.str().map(String::from)).transpose();
    let mut examples = Vec::new();
    if let Some(at) = fields.get("examples") {
        for at in at.list(limits::INPUTS)? {
            let example = at.object()?;
            let label = example.need("label")?;
            let Some(i) = labels.iter().position(|name| Some(name.as_str()) == label.value.str()) else {
                return Err(label.must_be("one of the labels"));
            };
            examples.push((example.need("text")?.str()?.to_string(), answers[i].clone()));
        }
    }
    let mut variables = Vec::new();
    if let Some(at) = fields.get("chat_template_kwargs") {
        let Json::Map(pairs) = at.value else { return Err(at.must_be("an object")) };
        for (name, value) in pairs {
            variables.push((name.to_string(), to_value(value, None)?));
        }
    }
    let (instructions, question) = (text("instructions")?, text("template")?);
    let asked = Asked { answers, instructions, template: question, examples, variables };
    Asking::new(asked, template.is_some()).map_err(|e| Refusal::from(e).at("/template"))
}

/// The labels of one input, each behind what is asked of it.
fn one(
    version: &Version,
    asking: &Asking,
    template: Option<&chat::Template>,
    input: &str,
    interrupt: &Interrupt,
) -> Answer<Vec<Scored>> {
    let tokenizer = version.tokenizer()?;
    let Choices { prompt, continuations } =
        asking.choices(tokenizer, template, input, version.context_length(), interrupt)?;
    let end = tokenizer.end_tokens()?.first().filter(|_| template.is_some());
    let scored = |answer: Vec<u32>| {
        let ids = prompt.iter().copied().chain(answer).chain(end.copied()).collect();
        Ok(Scored { any_end: end.is_some(), ..Scored::of(version, ids, prompt.len())? })
    };
    continuations.into_iter().map(scored).collect()
}

impl Classified {
    fn data(&self, answers: &[Whole]) -> Vec<Json> {
        let score = |answer: &Whole| classify::score(&logprobs(answer), self.by_sum);
        let rows = answers.chunks_exact(self.labels.len()).map(|row| row.iter().map(score).collect());
        let rows: Vec<Vec<f64>> = rows.collect();
        let (inputs, baselines) = rows.split_at(self.inputs.min(rows.len()));
        let prior = classify::prior(if self.by_batch { inputs } else { baselines });
        inputs.iter().enumerate().map(|(i, row)| self.row(i, row, &prior)).collect()
    }

    fn row(&self, index: usize, row: &[f64], prior: &[f64]) -> Json {
        let probs = classify::probabilities(row, prior, self.multi_label);
        let mut order: Vec<usize> = (0..probs.len()).collect();
        order.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]));
        let entropy: f64 = -probs.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>();
        let by_label = |values: &[f64]| {
            let pairs = self.labels.iter().zip(values).map(|(name, &x)| (name.clone().into(), Json::Float(x)));
            Json::Map(pairs.collect())
        };
        object! {
            "index" => index,
            "label" => self.labels[order[0]].as_str(),
            "probs" => by_label(&probs),
            "scores" => by_label(row),
            "entropy" => entropy,
            "margin" => probs[order[0]] - probs[order[1]],
        }
    }
}

/// `POST /v1/rerank`: documents by how well they answer a query.
pub async fn rerank(call: Call, body: Bytesful) -> Reply {
    let (version, (documents, texts, top_n)) = for_version(&call, body, |version, fields, interrupt| {
        fields.ignore(&["max_chunks_per_doc", "rank_fields"]);
        let query = fields.need("query")?.str()?;
        let at = match fields.first(&["documents", "texts"]) {
            Some(at) => at,
            None => fields.need("documents")?,
        };
        let documents = at.list(limits::INPUTS)?.map(|at| document(&at)).collect::<Answer<Vec<String>>>()?;
        if documents.is_empty() {
            return Err(at.refused("is empty, there must be at least one document"));
        }
        let returns = fields.get("return_documents").map_or(Ok(false), |at| at.bool())?;
        let top_n = fields.get("top_n").map_or(Ok(documents.len()), |at| at.count())?;
        let texts = embedding::pairs(&version.model, query, &documents, version.context_length(), interrupt)?;
        Ok((documents.into_iter().map(|text| returns.then_some(text)).collect::<Vec<_>>(), texts, top_n))
    })
    .await?;
    let (mut answers, total) = run(&call, &version, vec![Work::Rank { texts }]).await?;
    let Some(vectors) = answers.pop().and_then(|answer| answer.event.vectors) else {
        return Err(Refusal::new(500, "internal", "there are no scores"));
    };
    let mut scores: Vec<(usize, f32)> = vectors.data.chunks_exact(vectors.dim).map(|row| row[0]).enumerate().collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let results = scores.into_iter().take(top_n).map(|(i, score)| {
        let mut result = object! { "index" => i, "relevance_score" => score };
        if let Some(text) = &documents[i] {
            result.push("document", object! { "text" => text.as_str() });
        }
        result
    });
    Ok(json(&object! {
        "object" => "list", "model" => version.name.as_str(), "results" => results.collect::<Vec<_>>(),
        "usage" => usage(&total),
    }))
}

/// A text, or an object that has one.
fn document(at: &At<'_>) -> Answer<String> {
    if at.is_object() { at.object()?.need("text")?.str().map(String::from) } else { at.str().map(String::from) }
}
