//! `POST /v1/score`, `/v1/classify` and `/v1/rerank`: how likely texts are, rather than new ones.
//!
//! A label is as likely as its tokens are behind the prompt; prompt and label are tokenized as one text, since a label
//! often joins with what stands before it. A model likes some labels better than others whatever it is asked, so what it
//! says of inputs without content is taken off: normalised contextual calibration (arXiv 2511.14385).

use std::sync::Arc;

use super::completions::token_ids;
use super::error::{Answer, Refusal};
use super::json::{At, Fields, Json, object};
use super::limits;
use super::native::for_version;
use super::prompt::{self, to_value};
use super::runs::{Runs, Total, Whole};
use super::service::{Bytesful, Call, Reply, json};
use super::shapes::{finite, token_text};
use super::version::Version;
use crate::chat;
use crate::embedding;
use crate::generate::Options;
use crate::scheduler::{Generate, PromptLogprobs, Work};
use crate::threads::Interrupt;

/// Inputs that say nothing.
const CONTENT_FREE: [&str; 3] = ["N/A", "", "[MASK]"];

/// A text whose last tokens are scored.
struct Scored {
    ids: Vec<u32>,
    first: usize,
}

impl Scored {
    /// A prompt and what follows it, as one text.
    fn text(version: &Version, before: &str, after: &str, interrupt: &Interrupt) -> Answer<Self> {
        let prompt = version.encode(before, true, true, interrupt)?;
        Self::behind(version, before, &prompt, after, interrupt)
    }

    /// The same, where the tokens of what is before are known.
    fn behind(version: &Version, before: &str, prompt: &[u32], after: &str, interrupt: &Interrupt) -> Answer<Self> {
        let mut ids = version.encode(&format!("{before}{after}"), true, true, interrupt)?;
        let mut first = prompt.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        if first == ids.len() || first == 0 {
            (ids, first) = (prompt.to_vec(), prompt.len());
            ids.extend(version.encode(after, false, true, interrupt)?);
        }
        Self::of(version, ids, first)
    }

    fn of(version: &Version, ids: Vec<u32>, first: usize) -> Answer<Self> {
        let most = version.context_length();
        if ids.len() > most {
            return Err(Refusal::too_long(ids.len(), most));
        }
        if first == 0 || first >= ids.len() {
            return Err(Refusal::invalid("there must be a token before what is scored, and one of it"));
        }
        Ok(Self { ids, first })
    }

    fn work(&self, version: &Version) -> Answer<Work> {
        let options = Options { max_tokens: Some(0), ..Options::default() };
        let mut generate = Generate::new(&version.model, self.ids.clone(), options, 1)?;
        generate.prompt_logprobs = Some(PromptLogprobs { first: self.first, top: 0 });
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
    inputs: usize,
    /// Of inputs without content, as many rows of labels after those of the inputs.
    baselines: usize,
    by_batch: bool,
    by_sum: bool,
    multi_label: bool,
}

/// `POST /v1/classify`: which of some labels fits a text.
pub async fn classify(call: Call, body: Bytesful) -> Reply {
    let (version, (asked, works)) = for_version(&call, body, |version, fields, interrupt| {
        let asked = fields.need("input")?;
        let inputs: Vec<&str> = if asked.is_list() {
            asked.list(limits::INPUTS)?.map(|at| at.str()).collect::<Answer<_>>()?
        } else {
            vec![asked.str()?]
        };
        if inputs.is_empty() {
            return Err(asked.refused("is empty, there must be at least one text"));
        }
        let (labels, verbalisers) = labels(fields)?;
        let calibration =
            fields.get("calibration").map_or(Ok("content_free"), |at| at.word(&["content_free", "none", "batch"]))?;
        let normalize = fields.get("normalize").map_or(Ok("mean"), |at| at.word(&["mean", "sum"]))?;
        let multi_label = fields.get("multi_label").map_or(Ok(false), |at| at.bool())?;
        let template = fields.get("template").map(|at| at.str()).transpose()?;
        let instructions = fields.get("instructions").map(|at| at.str()).transpose()?;
        let baselines: &[&str] = if calibration == "content_free" { &CONTENT_FREE } else { &[] };
        if (inputs.len() + baselines.len()) * labels.len() > limits::INPUTS {
            return Err(asked.refused(format_args!("times the labels are more than {}", limits::INPUTS)));
        }
        let mut scored = Vec::new();
        for input in inputs.iter().chain(baselines) {
            let question = Question { version, input, names: &verbalisers, instructions, template };
            scored.extend(question.scored(interrupt)?);
        }
        let works = works(version, &scored)?;
        let (inputs, baselines) = (inputs.len(), baselines.len());
        let (by_batch, by_sum) = (calibration == "batch", normalize == "sum");
        Ok((Classified { labels, inputs, baselines, by_batch, by_sum, multi_label }, works))
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
    Ok(pairs.into_iter().unzip())
}

/// One input.
struct Question<'a> {
    version: &'a Version,
    input: &'a str,
    names: &'a [String],
    instructions: Option<&'a str>,
    template: Option<&'a str>,
}

impl Question<'_> {
    /// A text a label. The end of the answer counts as part of it, so that "no" and "none" compare.
    fn scored(&self, interrupt: &Interrupt) -> Answer<Vec<Scored>> {
        let tokenizer = self.version.tokenizer()?;
        let end = tokenizer.eos().or(tokenizer.end_tokens()?.first().copied());
        let names = self.names.join(", ");
        let instructions = self.instructions.map_or_else(
            || format!("Classify the text. Answer with one of these and nothing else: {names}."),
            String::from,
        );
        // What is asked is the same for all labels; where it is no message, it is a text that joins with them.
        let (prompt, text) = match (self.template, self.version.template()) {
            (None, Ok(template)) => {
                let guard = template.guard()?;
                let text = format!("{instructions}\n\n{}", self.input);
                let messages = Json::List(vec![object! { "role" => "user", "content" => text }]);
                let messages = to_value(&messages, Some(guard))?;
                let question = chat::Question { messages, add_generation_prompt: true, ..chat::Question::default() };
                (prompt::prompt(template, &question, self.version.context_length(), interrupt)?.ids, None)
            }
            (template, _) => {
                let template = template.unwrap_or("{instructions}\n\nText: {input}\nLabel: ");
                let filled = template.replace("{instructions}", &instructions).replace("{labels}", &names);
                let before = filled.replace("{input}", self.input);
                // A space joins with the label behind it.
                let text = before.trim_end_matches(' ').to_string();
                let space = if text.len() < before.len() { " " } else { "" };
                (self.version.encode(&text, true, true, interrupt)?, Some((text, space)))
            }
        };
        let scored = |name: &String| {
            let mut scored = match &text {
                None => {
                    let name = self.version.encode(name, false, false, interrupt)?;
                    Scored::of(self.version, [prompt.as_slice(), &name].concat(), prompt.len())?
                }
                Some((text, space)) => {
                    Scored::behind(self.version, text, &prompt, &format!("{space}{name}"), interrupt)?
                }
            };
            scored.ids.extend(end);
            Scored::of(self.version, scored.ids, scored.first)
        };
        self.names.iter().map(scored).collect()
    }
}

impl Classified {
    fn data(&self, answers: &[Whole]) -> Vec<Json> {
        let n = self.labels.len();
        let score = |answer: &Whole| {
            let logprobs = logprobs(answer);
            let sum: f64 = logprobs.iter().map(|&x| f64::from(x)).sum();
            if self.by_sum { sum } else { sum / logprobs.len().max(1) as f64 }
        };
        let rows: Vec<Vec<f64>> = answers.chunks_exact(n).map(|row| row.iter().map(score).collect()).collect();
        let (inputs, baselines) = rows.split_at(self.inputs.min(rows.len()));
        debug_assert_eq!(baselines.len(), self.baselines);
        let of = if self.by_batch { inputs } else { baselines };
        let bias: Vec<f64> = (0..n)
            .map(|label| {
                let mean = of.iter().map(|row| softmax(row)[label]).sum::<f64>() / of.len().max(1) as f64;
                if of.is_empty() { 0.0 } else { mean.max(f64::MIN_POSITIVE).ln() }
            })
            .collect();
        inputs.iter().enumerate().map(|(i, row)| self.row(i, row, &bias)).collect()
    }

    fn row(&self, index: usize, row: &[f64], bias: &[f64]) -> Json {
        let scores: Vec<f64> = row.iter().zip(bias).map(|(score, bias)| score - bias).collect();
        let probs: Vec<f64> = if self.multi_label {
            // Each against the mean of the others.
            let (p, others) = (softmax(&scores), scores.len() as f64 - 1.0);
            p.iter().map(|p| p * others / (p * others + 1.0 - p)).collect()
        } else {
            softmax(&scores)
        };
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

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mass: Vec<f64> = scores.iter().map(|x| (x - max).exp()).collect();
    let total: f64 = mass.iter().sum();
    mass.iter().map(|x| x / total).collect()
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
