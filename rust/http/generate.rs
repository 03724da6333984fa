//! Answers, ready for the scheduler: sampling, stop strings, the form that an answer must have.

use std::sync::Arc;

use super::error::{Answer, Refusal};
use super::version::Version;
use crate::generate::{self, Decode, Options};
use crate::grammar::{self, Constraint, Grammar};
use crate::scheduler::{Generate, Work};
use crate::threads::Interrupt;
use crate::tokenizer::StreamDecoder;

/// What of an answer is not among its options.
#[derive(Default)]
pub struct Form {
    /// Control tokens that come as text, because a parser has to see them.
    pub keeping: Vec<u32>,
    /// What the answer must be, instead of what its options say.
    pub constraint: Option<Constraint>,
    /// What ends thoughts, before which the answer has no form.
    pub after: Option<String>,
}

/// `n` answers to a prompt. With a seed, answer `i` has the seed `seed + i`.
pub fn generate(
    version: &Version,
    prompt: &[u32],
    options: &Options,
    n: usize,
    form: Form,
    interrupt: &Interrupt,
) -> Answer<Generate> {
    let tokenizer = version.tokenizer()?;
    let mut options = options.clone();
    let constraint = match (form.constraint, options.grammar()?) {
        (Some(_), Some(_)) => {
            return Err(Refusal::invalid(
                "tool_choice demands a call, and the answer has another form: it can have one",
            ));
        }
        (Some(constraint), None) => Some(constraint),
        (None, Some(grammar)) => Some(compile(version, &grammar, form.after.as_deref(), interrupt)?),
        (None, None) => None,
    };
    let stops = options.stop.iter().map(|text| tokenizer.special_tokens(text)).collect::<crate::Result<Vec<_>>>()?;
    let seed = options.sampling.seed;
    let mut answers = Vec::new();
    for i in 0..n {
        options.sampling.seed = seed.map(|seed| seed.wrapping_add(i as u64));
        let decoder = StreamDecoder::new(Arc::clone(tokenizer), true).keeping(form.keeping.clone());
        let decoder: Box<dyn Decode + Send> = Box::new(decoder);
        let mut answer = generate::Answer::new(prompt.to_vec(), tokenizer.end_tokens()?, decoder, options.clone())?;
        stops.iter().for_each(|tokens| answer.stop_at(tokens));
        if let Some(constraint) = &constraint {
            answer.constrain(constraint.clone());
        }
        answers.push(answer);
    }
    let n_keep = usize::try_from(options.n_keep).unwrap_or(prompt.len());
    Ok(Generate { answers, prompt_logprobs: None, on_overflow: options.on_overflow, n_keep })
}

/// The same, to be computed.
pub fn work(version: &Version, prompt: &[u32], options: &Options, n: usize, interrupt: &Interrupt) -> Answer<Work> {
    generate(version, prompt, options, n, Form::default(), interrupt).map(Work::Generate)
}

/// What an answer must be; behind `after`, if that is given.
pub fn compile(version: &Version, grammar: &Grammar, after: Option<&str>, interrupt: &Interrupt) -> Answer<Constraint> {
    let constraint = grammar::compile(version.tokenizer()?, grammar, interrupt)?;
    Ok(match after {
        Some(marker) => constraint.after(&[marker.to_string()], false),
        None => constraint,
    })
}
