//! `Chat`: a template of a model, the prompts that it makes, and parsers of the answers.

use std::path::PathBuf;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyMapping, PySequence, PyString};

use super::lend::Lent;
use super::parameters::type_name;
use super::{Tokenizer, raise, run};
use crate::chat::{self, Calls, Delta, Guard, Parser, Prompt, Question, Setup, Template, Tool, Value};

/// Containers in containers.
const MOST_DEPTH: usize = 100;

/// A template and the vocabulary of its prompts.
#[pyclass(frozen)]
pub struct Chat {
    template: Template,
}

impl Chat {
    pub fn template(&self) -> &Template {
        &self.template
    }
}

#[pymethods]
impl Chat {
    /// Of a template, and of another one for tools if there is one. Without a template it is ChatML.
    #[new]
    #[pyo3(signature = (tokenizer, source, path, for_tools = None))]
    fn new(
        py: Python<'_>,
        tokenizer: &Tokenizer,
        source: Option<String>,
        path: PathBuf,
        for_tools: Option<String>,
    ) -> PyResult<Self> {
        let template = run(py, |_| Template::new(tokenizer.inner(), source, for_tools, &path))?;
        Ok(Self { template })
    }

    /// The text that the template makes of what is trusted and of what people wrote, as it is.
    fn render(
        &self,
        py: Python<'_>,
        trusted: &Bound<'_, PyDict>,
        written: &Bound<'_, PyDict>,
        now: i64,
    ) -> PyResult<String> {
        let variables = of_both(trusted, written, None)?;
        run(py, |_| self.template.rendered(variables, now))
    }

    /// Its tokens, if there are no more than `at_most`; nothing that people wrote is a control token.
    fn encode(
        &self,
        py: Python<'_>,
        trusted: &Bound<'_, PyDict>,
        written: &Bound<'_, PyDict>,
        now: i64,
        at_most: usize,
    ) -> PyResult<Vec<u32>> {
        let guard = run(py, |_| self.template.guard())?;
        let variables = of_both(trusted, written, Some(guard))?;
        run(py, |interrupt| {
            let prompt = self.template.rendered(variables, now)?;
            chat::encode(self.template.tokenizer(), &prompt, at_most, interrupt)
        })
    }

    /// The tokens of a prompt, if there are no more than `at_most`, and the end of its text. Nothing that people wrote is a
    /// control token.
    #[allow(clippy::too_many_arguments)]
    fn prompt(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        tools: Option<&Bound<'_, PyAny>>,
        variables: &Bound<'_, PyDict>,
        now: i64,
        at_most: usize,
        add_generation_prompt: bool,
        continue_final: bool,
    ) -> PyResult<(Vec<u32>, String)> {
        let guard = run(py, |_| self.template.guard())?;
        let question = Question {
            messages: to_value(messages, Some(guard), 0)?,
            tools: tools.map_or(Ok(Value::UNDEFINED), |tools| to_value(tools, Some(guard), 0))?,
            variables: self::variables(variables, None)?,
            add_generation_prompt,
            continue_final,
            now,
        };
        let Prompt { ids, end } = run(py, |interrupt| self.template.prompt(&question, at_most, interrupt))?;
        Ok((ids, end))
    }

    /// A parser of the answer to a prompt that ended so. `calls` are those to look for: `none`, `auto` or `json`.
    #[allow(clippy::too_many_arguments)]
    fn parser(
        &self,
        py: Python<'_>,
        tools: Option<&Bound<'_, PyAny>>,
        calls: &str,
        reasoning: bool,
        family: Option<&str>,
        end: &str,
        seed: u64,
    ) -> PyResult<ChatParser> {
        let format = self.template.format(tools.is_some(), family).map_err(|e| raise(py, e))?;
        let tools = tools.map_or(Ok(Value::UNDEFINED), |tools| to_value(tools, None, 0))?;
        let tools: Vec<Tool> = tools.try_iter().into_iter().flatten().filter_map(|tool| Tool::of(&tool)).collect();
        let calls = match calls {
            "auto" => Calls::Auto,
            "json" => Calls::Json,
            _ => Calls::None,
        };
        let parser = Parser::new(&format, Setup { calls, tools, reasoning, prompt: end, seed });
        Ok(ChatParser { parser: Lent::new(parser) })
    }

    /// The control tokens that the parser has to see, as text; and what comes before an answer if the model thinks first.
    fn marks(&self, py: Python<'_>, with_tools: bool, family: Option<&str>) -> PyResult<(Vec<u32>, Option<&str>)> {
        run(py, |_| {
            let format = self.template.format(with_tools, family)?;
            Ok((self.template.marks(&format)?, format.answer_mark()))
        })
    }
}

/// A parser of an answer.
#[pyclass(frozen)]
pub struct ChatParser {
    parser: Lent<Parser>,
}

/// A piece of an answer: its kind, the index of a call, then text, or an id and a name.
type Piece = (&'static str, usize, String, String);

#[pymethods]
impl ChatParser {
    /// Takes more text; gives what is now certain.
    fn push(&self, py: Python<'_>, text: &str) -> PyResult<Vec<Piece>> {
        let mut parser = self.parser.lend().map_err(|e| raise(py, e))?;
        Ok(parser.push(text).into_iter().map(piece).collect())
    }

    /// Ends the answer; gives the rest.
    fn finish(&self, py: Python<'_>, cut_off: bool) -> PyResult<Vec<Piece>> {
        let mut parser = self.parser.lend().map_err(|e| raise(py, e))?;
        Ok(parser.finish(cut_off).into_iter().map(piece).collect())
    }

    /// Whether the model thinks.
    #[getter]
    fn in_reasoning(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.parser.lend().map_err(|e| raise(py, e))?.in_reasoning())
    }
}

fn piece(delta: Delta) -> Piece {
    match delta {
        Delta::Reasoning(text) => ("reasoning", 0, text, String::new()),
        Delta::Content(text) => ("content", 0, text, String::new()),
        Delta::Call { index, id, name } => ("call", index, id, name),
        Delta::Arguments { index, text } => ("arguments", index, text, String::new()),
    }
}

fn of_both(trusted: &Bound<'_, PyDict>, written: &Bound<'_, PyDict>, guard: Option<&Guard>) -> PyResult<Value> {
    let mut pairs = variables(trusted, None)?;
    pairs.extend(variables(written, guard)?);
    Ok(Value::from_pairs(pairs))
}

/// Variables of a template; with a guard, nothing in them is a control token.
pub fn variables(dict: &Bound<'_, PyDict>, guard: Option<&Guard>) -> PyResult<Vec<(String, Value)>> {
    dict.iter().map(|(name, value)| Ok((name.extract()?, to_value(&value, guard, 0)?))).collect()
}

/// What a Python value is to a template.
fn to_value(value: &Bound<'_, PyAny>, guard: Option<&Guard>, depth: usize) -> PyResult<Value> {
    if depth > MOST_DEPTH {
        return Err(PyValueError::new_err("a message is too deep: lists or dicts in each other"));
    }
    if value.is_none() {
        return Ok(Value::from(()));
    }
    if let Ok(text) = value.cast::<PyString>() {
        let text = text.to_str()?;
        return match guard {
            Some(guard) => guard.broken(text).map(Value::from).map_err(|e| raise(value.py(), e)),
            None => Ok(Value::from(text)),
        };
    }
    if let Ok(flag) = value.cast::<PyBool>() {
        return Ok(Value::from(flag.is_true()));
    }
    if value.is_instance_of::<PyInt>() {
        return Ok(Value::from(value.extract::<i128>()?));
    }
    if value.is_instance_of::<PyFloat>() {
        return Ok(Value::from(value.extract::<f64>()?));
    }
    if let Ok(mapping) = value.cast::<PyMapping>() {
        let mut pairs = Vec::new();
        for item in mapping.items()? {
            let (key, item): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            pairs.push((to_value(&key, guard, depth + 1)?, to_value(&item, guard, depth + 1)?));
        }
        return Ok(Value::from_pairs(pairs));
    }
    if let Ok(sequence) = value.cast::<PySequence>() {
        let items = sequence.try_iter()?.map(|item| to_value(&item?, guard, depth + 1));
        return items.collect::<PyResult<Vec<Value>>>().map(Value::from);
    }
    let got = type_name(value);
    Err(PyTypeError::new_err(format!(
        "a message has a value of type {got}, it must be text, a number, a list or a dict"
    )))
}
