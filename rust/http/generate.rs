//! Answers, ready for the scheduler: sampling, stop strings, the form that an answer must have.

use super::error::{Answer, Refusal};
use super::version::Version;
use crate::generate::Options;
use crate::grammar::{self, Constraint, Grammar};
use crate::scheduler::{Form, Generate, Work};
use crate::threads::Interrupt;

/// `n` answers to a prompt. With a seed, answer `i` has the seed `seed + i`.
pub fn generate(
    version: &Version,
    prompt: &[u32],
    options: &Options,
    n: usize,
    form: Form,
    interrupt: &Interrupt,
) -> Answer<Generate> {
    if form.constraint.is_some() && options.grammar()?.is_some() {
        let what = "tool_choice demands a call, and the answer has another form: it can have one";
        return Err(Refusal::invalid(what));
    }
    Ok(Generate::formed(&version.model, prompt.to_vec(), options.clone(), n, form, interrupt)?)
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
