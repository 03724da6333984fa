//! `Asking`: what a model is asked about a text, with its labels as the answers; and what follows from their scores.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::chat::{Chat, variables};
use super::{Tokenizer, raise, run};
use crate::classify::{self, Asked, CONTENT_FREE};
use crate::likelihood::Choices;
use crate::tokenizer;

/// What a model is asked: the same before and behind each text.
#[pyclass(frozen)]
pub struct Asking {
    asking: classify::Asking,
    tokenizer: Arc<tokenizer::Tokenizer>,
    chat: Option<Py<Chat>>,
}

#[pymethods]
impl Asking {
    /// With a template as a conversation.
    #[new]
    #[allow(clippy::too_many_arguments)] // as Python has them
    fn new(
        py: Python<'_>,
        tokenizer: &Tokenizer,
        chat: Option<Py<Chat>>,
        answers: Vec<String>,
        instructions: Option<String>,
        template: Option<String>,
        examples: Vec<(String, String)>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Self> {
        let asked = Asked { answers, instructions, template, examples, variables: variables(options, None)? };
        let asking = classify::Asking::new(asked, chat.is_some()).map_err(|e| raise(py, e))?;
        Ok(Self { asking, tokenizer: Arc::clone(tokenizer.inner()), chat })
    }

    #[getter]
    fn is_chat(&self) -> bool {
        self.chat.is_some()
    }

    /// The tokens of the prompt, and those of each answer after it.
    fn choices(&self, py: Python<'_>, text: &str) -> PyResult<(Vec<u32>, Vec<Vec<u32>>)> {
        let template = self.chat.as_ref().map(|chat| chat.get().template());
        let choices = run(py, |interrupt| {
            self.asking.choices(&self.tokenizer, template, text, usize::MAX, interrupt) // Python says which is too long
        });
        choices.map(|Choices { prompt, continuations }| (prompt, continuations))
    }
}

/// Texts that say nothing.
#[pyfunction]
pub fn content_free() -> [&'static str; 3] {
    CONTENT_FREE
}

/// See `classify::prior`.
#[pyfunction]
pub fn label_prior(rows: Vec<Vec<f64>>) -> Vec<f64> {
    classify::prior(&rows)
}

/// See `classify::probabilities`, of each row.
#[pyfunction]
pub fn label_probabilities(rows: Vec<Vec<f64>>, prior: Vec<f64>, multi_label: bool) -> Vec<Vec<f64>> {
    rows.iter().map(|row| classify::probabilities(row, &prior, multi_label)).collect()
}
