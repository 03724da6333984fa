//! `Chat`: a template of a model, and the prompts that it makes.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyMapping, PySequence, PyString};

use super::parameters::type_name;
use super::{Tokenizer, raise, run};
use crate::chat::{self, Guard, Refused, Value};
use crate::error::Error;
use crate::tokenizer;

/// Containers in containers.
const MOST_DEPTH: usize = 100;

/// A template and the vocabulary of its prompts.
#[pyclass(frozen)]
pub struct Chat {
    tokenizer: Arc<tokenizer::Tokenizer>,
    source: String,
    path: PathBuf,
    guard: OnceLock<Guard>,
}

#[pymethods]
impl Chat {
    /// Without a template it is ChatML.
    #[new]
    fn new(tokenizer: &Tokenizer, source: Option<String>, path: PathBuf) -> Self {
        let source = source.unwrap_or_else(|| chat::CHATML.into());
        Self { tokenizer: Arc::clone(tokenizer.inner()), source, path, guard: OnceLock::new() }
    }

    /// The text that the template makes, of what is trusted and what people wrote.
    fn render(
        &self,
        py: Python<'_>,
        trusted: &Bound<'_, PyDict>,
        written: &Bound<'_, PyDict>,
        now: i64,
    ) -> PyResult<String> {
        let variables = variables(trusted, written, None)?;
        run(py, |_| self.rendered(variables, now))
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
        let mut one = self.encode_each(py, trusted, written, now, at_most, vec![String::new()])?;
        Ok(one.pop().unwrap_or_default())
    }

    /// The tokens of the prompt with each of these texts after it, which is what an answer begins with.
    fn encode_each(
        &self,
        py: Python<'_>,
        trusted: &Bound<'_, PyDict>,
        written: &Bound<'_, PyDict>,
        now: i64,
        at_most: usize,
        beginnings: Vec<String>,
    ) -> PyResult<Vec<Vec<u32>>> {
        let guard = self.guard(py)?;
        let variables = variables(trusted, written, Some(guard))?;
        run(py, |interrupt| {
            let prompt = self.rendered(variables, now)?;
            let encode = |beginning: &String| {
                chat::encode(&self.tokenizer, &format!("{prompt}{}", guard.broken(beginning)?), at_most, interrupt)
            };
            beginnings.iter().map(encode).collect()
        })
    }
}

impl Chat {
    fn guard(&self, py: Python<'_>) -> PyResult<&Guard> {
        if let Some(guard) = self.guard.get() {
            return Ok(guard);
        }
        let guard = run(py, |_| Guard::new(&self.tokenizer))?;
        Ok(self.guard.get_or_init(|| guard))
    }

    fn rendered(&self, variables: Value, now: i64) -> Result<String, Error> {
        chat::render(&self.source, variables, now).map_err(|refused| match refused {
            Refused::Messages(_) => Error::Argument(refused.to_string()),
            Refused::Template(_) => Error::Unsupported { path: self.path.clone(), what: refused.to_string() },
        })
    }
}

fn variables(trusted: &Bound<'_, PyDict>, written: &Bound<'_, PyDict>, guard: Option<&Guard>) -> PyResult<Value> {
    let mut pairs = Vec::new();
    for (dict, guard) in [(trusted, None), (written, guard)] {
        for (name, value) in dict {
            pairs.push((name.extract::<String>()?, to_value(&value, guard, 0)?));
        }
    }
    Ok(Value::from_pairs(pairs))
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
