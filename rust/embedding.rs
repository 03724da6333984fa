//! Vectors of texts, pooled from those of their tokens; and what a reranker says of texts.
//!
//! Texts are spans of one pass, as many as fill a batch. Nothing of them is kept: the next ones are computed over them.
//! What a reranker is asked is a text with a query and a document, in the form that it was trained for.

use std::sync::Arc;

use crate::adapter::{self, Adapter};
use crate::arch::Pooling;
use crate::chat::{self, Guard};
use crate::engine::{BATCH, Engine, Span, Want};
use crate::error::{Error, Result};
use crate::kv::Sequence;
use crate::model::Model;
use crate::session::SessionOptions;
use crate::threads::Interrupt;

/// How to make vectors of texts.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmbedOptions {
    /// How the vectors of tokens become one: as the file says, or else their mean in an encoder and that of the last in others.
    pub pooling: Option<Pooling>,
    /// Whether vectors are made to be of length 1.
    pub normalize: bool,
    /// So many numbers of each vector, the first.
    pub dimensions: Option<usize>,
    /// Positions there is room for, and so on.
    pub session: SessionOptions,
}

/// How the vectors of tokens become one if nobody says: as the file says, or else as most models of the kind do.
pub fn pooling(model: &Model) -> Pooling {
    let config = model.config();
    config.pooling.unwrap_or(if config.is_encoder() { Pooling::Mean } else { Pooling::Last })
}

/// The most tokens of a text: those that there is room for, and that the model has positions for.
pub fn longest(model: &Model, options: &SessionOptions) -> usize {
    options.context_length.min(model.config().longest())
}

/// The tokens of a text that is to become a vector: one that is too long is cut if `truncate`, and still ends as it did.
///
/// # Errors
/// [`Error::ContextOverflow`] if it is too long; as for [`Tokenizer::encode_at_most`](crate::Tokenizer::encode_at_most).
pub fn tokens(model: &Model, text: &str, longest: usize, truncate: bool, interrupt: &Interrupt) -> Result<Vec<u32>> {
    let tokenizer = model.tokenizer()?;
    let mut ids = tokenizer.encode_at_most(usize::MAX, text, true, false, interrupt)?;
    if pooling(model) == Pooling::Last && model.config().pooling.is_some() {
        // It is what the text was made to end with in training, whether or not the file says that it is added.
        ids.extend(tokenizer.eos().filter(|eos| ids.last() != Some(eos)));
    }
    if ids.len() > longest && truncate {
        let end = ids.last().copied().filter(|&id| tokenizer.is_special(id));
        ids.truncate(longest - usize::from(end.is_some()));
        ids.extend(end);
    }
    Ok(ids)
}

/// Vectors of texts, given as their tokens: `(texts, dim)`, and of [`Pooling::None`] `(tokens, dim)`; and `dim`. Each text's
/// has the same bits in any company.
///
/// # Errors
/// [`Error::Argument`] for a text without tokens or with one that is not in the vocabulary, or too many dimensions,
/// [`Error::Unsupported`] if the model is a reranker and no pooling is given, [`Error::ContextOverflow`],
/// [`Error::Interrupted`], [`Error::Changed`], [`Error::OutOfMemory`], [`Error::Numeric`].
pub fn embed(
    model: &Arc<Model>,
    texts: &[Vec<u32>],
    options: &EmbedOptions,
    adapters: &[(Arc<Adapter>, f32)],
    interrupt: &Interrupt,
) -> Result<(Vec<f32>, usize)> {
    let pooling = options.pooling.unwrap_or(pooling(model));
    if pooling == Pooling::Rank {
        let what =
            "vectors of texts by a reranker, which scores documents (rerank); say how to pool to have some".into();
        return Err(Error::Unsupported { path: model.checkpoint().path().into(), what });
    }
    let engine = model.engine()?;
    let full = engine.projected_dim();
    let dim = options.dimensions.unwrap_or(full);
    if dim == 0 || dim > full {
        return Err(Error::Argument(format!("dimensions is {dim}, it must be 1 to the model's {full}")));
    }
    let rows = pooled(model, engine, texts, pooling, &options.session, adapters, interrupt)?;
    let mut rows = engine.project(rows, options.session.threads, interrupt)?;
    if dim < full {
        rows = rows.chunks_exact(full).flat_map(|row| &row[..dim]).copied().collect();
    }
    for row in rows.chunks_exact_mut(dim) {
        let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if !length.is_finite() {
            let what = "the vectors are not numbers: a weight is damaged".into();
            return Err(Error::Numeric { path: model.checkpoint().path().into(), what });
        }
        if options.normalize && length > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
    Ok((rows, dim))
}

/// What a reranker says of texts that hold a query and a document, given as their tokens: the scores of its labels,
/// `(texts, n_labels)`, of which the first says how well the document answers; and `n_labels`.
///
/// # Errors
/// [`Error::Unsupported`] if the model is no reranker; as for [`embed`].
pub fn rank(
    model: &Arc<Model>,
    texts: &[Vec<u32>],
    options: &SessionOptions,
    adapters: &[(Arc<Adapter>, f32)],
    interrupt: &Interrupt,
) -> Result<(Vec<f32>, usize)> {
    let engine = model.engine()?;
    if !engine.has_classifier() {
        let what = "scores of documents by a model that is no reranker: it has no classifier (cls)".into();
        return Err(Error::Unsupported { path: model.checkpoint().path().into(), what });
    }
    let rows = pooled(model, engine, texts, model.config().ranking.pooling, options, adapters, interrupt)?;
    let scores = engine.classify(rows, options.threads, interrupt)?;
    if !scores.iter().all(|score| score.is_finite()) {
        let what = "the scores are not numbers: a weight is damaged".into();
        return Err(Error::Numeric { path: model.checkpoint().path().into(), what });
    }
    let n_labels = engine.n_labels();
    Ok((scores, n_labels))
}

/// The key of a reranker's own template, which has `{query}` and `{document}` in it.
const RERANK_TEMPLATE: &str = "tokenizer.chat_template.rerank";

/// What Qwen3's rerankers were trained with.
const QWEN3: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
                     Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n\
                     <Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: \
                     {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// The tokens of `query` with each of `documents`, in the form that a reranker was trained for: a template, the file's or
/// that of Qwen3's; or else as BERT has two texts, `[CLS] query [SEP] document [SEP]`. Nothing in them becomes a control
/// token.
///
/// # Errors
/// [`Error::ContextOverflow`] if one has more than `at_most`; as for
/// [`Tokenizer::encode_at_most`](crate::Tokenizer::encode_at_most).
pub fn pairs(
    model: &Model,
    query: &str,
    documents: &[String],
    at_most: usize,
    interrupt: &Interrupt,
) -> Result<Vec<Vec<u32>>> {
    let tokenizer = model.tokenizer()?;
    let template = model.checkpoint().metadata.str(RERANK_TEMPLATE)?;
    let template = template.or_else(|| (model.config().architecture == "qwen3").then(|| QWEN3.into()));
    if let Some(template) = template {
        // The names of control tokens are those of the template; in what fills it they are broken.
        let guard = Guard::new(tokenizer)?;
        let query = guard.broken(query)?;
        let one = |document: &String| {
            let document = guard.broken(document)?;
            chat::encode(tokenizer, &fill(&template, &query, &document), at_most, interrupt)
        };
        return documents.iter().map(one).collect();
    }
    let encode = |text: &str| tokenizer.encode_at_most(at_most, text, true, false, interrupt);
    let mut first = encode(query)?;
    let begin = encode("")?;
    let bos = tokenizer.bos().filter(|bos| begin.first() == Some(bos));
    if let Some(bos) = bos
        && tokenizer.token_bytes(bos)? == b"<s>"
    {
        first.extend(first.last().copied()); // RoBERTa has two ends there
    }
    let one = |document: &String| {
        let second = encode(document)?;
        let ids: Vec<u32> = first.iter().chain(&second[usize::from(bos.is_some())..]).copied().collect();
        match ids.len() > at_most {
            true => Err(Error::ContextOverflow { tokens: ids.len(), context_length: at_most }),
            false => Ok(ids),
        }
    };
    documents.iter().map(one).collect()
}

/// In one go: what is filled in may have braces.
fn fill(template: &str, query: &str, document: &str) -> String {
    let (mut out, mut rest) = (String::new(), template);
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let found = [("{query}", query), ("{document}", document)].into_iter().find(|(name, _)| rest.starts_with(name));
        let (name, text) = found.unwrap_or(("{", "{"));
        out.push_str(text);
        rest = &rest[name.len()..];
    }
    out + rest
}

/// The pooled vectors of texts, `(texts, dim)`, or those of their tokens, `(tokens, dim)`.
fn pooled(
    model: &Model,
    engine: &Engine,
    texts: &[Vec<u32>],
    pooling: Pooling,
    options: &SessionOptions,
    adapters: &[(Arc<Adapter>, f32)],
    interrupt: &Interrupt,
) -> Result<Vec<f32>> {
    model.checkpoint().check()?;
    let (adapters, _) = adapter::resolved(adapters, model.checkpoint())?;
    engine.expect_cold();
    if let Some(i) = texts.iter().position(Vec::is_empty) {
        return Err(Error::Argument(format!("text {i} is empty: it has no tokens")));
    }
    let (layout, dim, longest) = (engine.layout(options.kv_type)?, engine.dim(), longest(model, options));
    if let Some(tokens) = texts.iter().map(Vec::len).find(|&n| n > longest) {
        return Err(Error::ContextOverflow { tokens, context_length: longest }); // before any is computed
    }
    let want = match pooling {
        Pooling::Last => Want::LastHidden,
        Pooling::None | Pooling::Mean | Pooling::Cls | Pooling::Rank => Want::Hidden,
    };
    let (mut out, mut hidden, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = 0;
    while at < texts.len() {
        let (mut end, mut n_tokens) = (at + 1, texts[at].len());
        while end < texts.len() && n_tokens + texts[end].len() <= BATCH {
            n_tokens += texts[end].len();
            end += 1;
        }
        while sequences.len() < end - at {
            sequences.push(Sequence::new(&layout, options.context_length)?);
        }
        let spans = sequences.iter_mut().zip(&texts[at..end]).map(|(sequence, tokens)| Span {
            sequence,
            tokens,
            want,
            adapters: &adapters,
        });
        let mut spans: Vec<Span> = spans.collect();
        let n = spans.iter().map(Span::n_wanted).sum::<usize>() * dim;
        grow(&mut hidden, n)?;
        engine.pass(&mut spans, &mut hidden[..n], options.threads, interrupt)?;
        let mut rest = &hidden[..n];
        for span in &spans {
            let (rows, others) = rest.split_at(span.n_wanted() * dim);
            rest = others;
            reserve(&mut out, rows.len())?;
            match pooling {
                Pooling::None | Pooling::Last => out.extend_from_slice(rows),
                Pooling::Cls | Pooling::Rank => out.extend_from_slice(&rows[..dim]),
                Pooling::Mean => out.extend(mean(rows, dim)),
            }
        }
        sequences.iter_mut().try_for_each(|sequence| sequence.truncate(0))?;
        at = end;
    }
    Ok(out)
}

/// The mean of rows of `dim`.
fn mean(rows: &[f32], dim: usize) -> impl Iterator<Item = f32> {
    let mut sum = vec![0.0f64; dim];
    for row in rows.chunks_exact(dim) {
        sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let n = (rows.len() / dim) as f64;
    sum.into_iter().map(move |sum| (sum / n) as f32)
}

fn grow(buffer: &mut Vec<f32>, n: usize) -> Result<()> {
    reserve(buffer, n.saturating_sub(buffer.len()))?;
    buffer.resize(n.max(buffer.len()), 0.0);
    Ok(())
}

fn reserve(buffer: &mut Vec<f32>, more: usize) -> Result<()> {
    let bytes = (buffer.len() + more) as u128 * size_of::<f32>() as u128;
    buffer.try_reserve(more).map_err(|_| Error::OutOfMemory { bytes, what: "vectors of texts" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_is_not_filled_again() {
        assert_eq!(fill("a {query} {x} {document}.", "{document}", "{query}"), "a {document} {x} {query}.");
    }
}
