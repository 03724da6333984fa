//! `Model`: immutable and shared.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::ids::token_ids;
use super::parameters::{SessionParams, int};
use super::{Checkpoint, Floats, Session, Tokenizer, raise, run};
use crate::arch::Pooling;
use crate::embedding::{self, EmbedOptions};
use crate::error::Result;
use crate::kernels::KV_TYPES;
use crate::kv::Sequence;
use crate::mapping::{Load, LoadOptions};
use crate::quant::DType;
use crate::session::{self, SessionOptions};
use crate::{adapter, model};

/// A model, immutable and shared.
#[pyclass(frozen)]
pub struct Model {
    inner: Arc<model::Model>,
    views: Arc<AtomicUsize>,
}

impl Model {
    /// The model.
    pub fn inner(&self) -> &model::Model {
        &self.inner
    }

    /// The model, to be shared.
    pub fn shared(&self) -> &Arc<model::Model> {
        &self.inner
    }
}

#[pymethods]
impl Model {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, load: &str, prefault: bool, lock: bool) -> PyResult<Self> {
        let load = match load {
            "mmap" => Load::Mmap,
            "read" => Load::Read,
            _ => return Err(PyValueError::new_err(format!("load must be \"mmap\" or \"read\", got {load:?}"))),
        };
        let options = LoadOptions { load, prefault, lock };
        let inner = run(py, |interrupt| model::Model::open_with(&path, options, interrupt))?;
        Ok(Self { inner: Arc::new(inner), views: Arc::default() })
    }

    /// The hyper-parameters by name; of those that differ by layer, the largest.
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let c = self.inner.config();
        let dict = PyDict::new(py);
        dict.set_item("architecture", &c.architecture)?;
        dict.set_item("dim", c.dim)?;
        dict.set_item("hidden_dim", c.hidden_dim())?;
        dict.set_item("n_layers", c.n_layers())?;
        dict.set_item("n_heads", c.n_heads())?;
        dict.set_item("n_kv_heads", c.n_kv_heads())?;
        dict.set_item("head_dim", c.head_dim())?;
        dict.set_item("vocab_size", c.vocab_size)?;
        dict.set_item("context_length", c.context_length)?;
        dict.set_item("norm_eps", c.norm.eps)?;
        dict.set_item("rope_theta", c.ropes.first().map_or(0.0, |rope| rope.theta))?;
        Ok(dict)
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::of(self.inner.checkpoint(), &self.views)
    }

    /// Vectors of texts or of their tokens, and how many tokens each has.
    #[allow(clippy::too_many_arguments)] // as Python has them
    fn embed(
        &self,
        py: Python<'_>,
        texts: Vec<Bound<'_, PyAny>>,
        pooling: Option<&str>,
        normalize: bool,
        dimensions: Option<usize>,
        truncate: bool,
        context_length: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
        kv_type: &str,
        lora: Vec<(PyRef<'_, Adapter>, f32)>,
    ) -> PyResult<(Floats, Vec<usize>)> {
        let lora = adapters(&lora);
        let session = self.options(py, context_length, threads, kv_type)?;
        let pooling = pooling.map(to_pooling).transpose()?;
        let options = EmbedOptions { pooling, normalize, dimensions, session };
        let longest = embedding::longest(&self.inner, &session);
        let texts = texts.iter().map(|text| self.text(text, if truncate { usize::MAX } else { longest }));
        let texts = texts.collect::<PyResult<Vec<_>>>()?;
        let (data, dim, counts) = run(py, |interrupt| {
            let ids = texts.into_iter().map(|text| match text {
                Text::Text(text) => embedding::tokens(&self.inner, &text, longest, truncate, interrupt),
                Text::Ids(mut ids) => {
                    ids.truncate(longest);
                    Ok(ids)
                }
            });
            let ids = ids.collect::<Result<Vec<_>>>()?;
            let (data, dim) = embedding::embed(&self.inner, &ids, &options, &lora, interrupt)?;
            Ok((data, dim, ids.iter().map(Vec::len).collect()))
        })?;
        let rows = data.len() / dim;
        Ok((Floats::new(data, vec![rows, dim]), counts))
    }

    /// The tokens of a query with each document, as a reranker takes them.
    fn pairs(&self, py: Python<'_>, query: &str, documents: Vec<String>) -> PyResult<Vec<Vec<u32>>> {
        run(py, |interrupt| embedding::pairs(&self.inner, query, &documents, usize::MAX, interrupt))
    }

    /// What a reranker says of texts: `(texts, n_labels)`.
    fn rank(
        &self,
        py: Python<'_>,
        texts: Vec<Bound<'_, PyAny>>,
        context_length: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
        kv_type: &str,
        lora: Vec<(PyRef<'_, Adapter>, f32)>,
    ) -> PyResult<Vec<Vec<f32>>> {
        let lora = adapters(&lora);
        let options = self.options(py, context_length, threads, kv_type)?;
        let longest = embedding::longest(&self.inner, &options);
        let vocab_size = self.inner.config().vocab_size;
        let ids = texts.iter().map(|ids| token_ids(TEXT, ids, vocab_size, longest)).collect::<PyResult<Vec<_>>>()?;
        let (scores, n) = run(py, |interrupt| embedding::rank(&self.inner, &ids, &options, &lora, interrupt))?;
        Ok(scores.chunks_exact(n).map(<[f32]>::to_vec).collect())
    }

    /// An adapter for this model.
    fn adapter(&self, py: Python<'_>, path: PathBuf) -> PyResult<Adapter> {
        let inner = run(py, |_| self.inner.adapter(&path))?;
        Ok(Adapter { inner: Arc::new(inner) })
    }

    fn tokenizer(&self, py: Python<'_>) -> PyResult<Tokenizer> {
        let inner = run(py, |_| self.inner.tokenizer())?;
        Ok(Tokenizer::of(inner, self.inner.checkpoint()))
    }

    /// Whether the tokens of two models are the same: all but one in a hundred of those that both have.
    fn has_tokens_of(&self, py: Python<'_>, other: &Self) -> PyResult<bool> {
        run(py, |_| {
            let (a, b) = (self.inner.tokenizer()?, other.inner.tokenizer()?);
            let n = a.vocab_size().min(b.vocab_size());
            let mut others = 0;
            for id in 0..n as u32 {
                others += usize::from(a.token_bytes(id)? != b.token_bytes(id)?);
            }
            Ok(others <= n / 100)
        })
    }

    /// Checks what sessions would be made with.
    fn check(
        &self,
        py: Python<'_>,
        context_length: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
        kv_type: &str,
    ) -> PyResult<()> {
        self.options(py, context_length, threads, kv_type).map(|_| ())
    }

    fn session(
        &self,
        py: Python<'_>,
        context_length: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
        kv_type: &str,
        lora: Vec<(PyRef<'_, Adapter>, f32)>,
    ) -> PyResult<Session> {
        let (options, lora) = (self.options(py, context_length, threads, kv_type)?, adapters(&lora));
        Ok(Session::of(run(py, |_| session::Session::adapted(&self.inner, options, &lora))?))
    }

    #[allow(clippy::too_many_arguments)] // as Python has them
    /// The session that was saved to `path`; with `prefix`, as much of it as fits, to start another with.
    fn load_session(
        &self,
        py: Python<'_>,
        path: PathBuf,
        context_length: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
        kv_type: &str,
        prefix: bool,
        lora: Vec<(PyRef<'_, Adapter>, f32)>,
    ) -> PyResult<Session> {
        let (options, lora) = (self.options(py, context_length, threads, kv_type)?, adapters(&lora));
        let load = if prefix { session::Session::load_prefix } else { session::Session::load };
        Ok(Session::of(run(py, |_| load(&self.inner, &path, options, &lora))?))
    }
}

/// An adapter (LoRA) of a model.
#[pyclass(frozen)]
pub struct Adapter {
    inner: Arc<adapter::Adapter>,
}

#[pymethods]
impl Adapter {
    /// Number of matrices that it changes.
    #[getter]
    fn n_matrices(&self) -> usize {
        self.inner.n_matrices()
    }
}

pub(super) fn adapters(lora: &[(PyRef<'_, Adapter>, f32)]) -> Vec<(Arc<adapter::Adapter>, f32)> {
    lora.iter().map(|(adapter, scale)| (Arc::clone(&adapter.inner), *scale)).collect()
}

/// A text, or the ids of its tokens.
enum Text {
    Text(String),
    Ids(Vec<u32>),
}

const TEXT: &str = "a text is a str or token ids";

impl Model {
    fn text(&self, text: &Bound<'_, PyAny>, room: usize) -> PyResult<Text> {
        match text.cast::<PyString>() {
            Ok(text) => text.extract().map(Text::Text),
            Err(_) => token_ids(TEXT, text, self.inner.config().vocab_size, room).map(Text::Ids),
        }
    }

    /// How sessions of it are made.
    pub fn options(
        &self,
        py: Python<'_>,
        context_length: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
        kv_type: &str,
    ) -> PyResult<SessionOptions> {
        let row = |name| SessionParams::TABLE.iter().find(|row| row.name == name).expect("a row of the table");
        let context_length = int(row("context_length"), context_length)? as usize;
        let threads = int(row("threads"), threads)? as usize;
        let kv_type = to_kv_type(kv_type)?;
        let layout = self.inner.engine().and_then(|engine| engine.layout(kv_type));
        layout.and_then(|layout| Sequence::new(&layout, context_length)).map_err(|e| raise(py, e))?;
        Ok(SessionOptions { context_length, threads, kv_type })
    }
}

/// What sessions are made with, already checked.
pub fn session_options(context_length: usize, threads: usize, kv_type: &str) -> PyResult<SessionOptions> {
    Ok(SessionOptions { context_length, threads, kv_type: to_kv_type(kv_type)? })
}

fn to_pooling(name: &str) -> PyResult<Pooling> {
    let all = [Pooling::None, Pooling::Mean, Pooling::Cls, Pooling::Last];
    all.into_iter().find(|pooling| pooling.name() == name).ok_or_else(|| {
        PyValueError::new_err(format!("pooling is {name:?}, it must be \"mean\", \"cls\", \"last\" or \"none\""))
    })
}

fn to_kv_type(name: &str) -> PyResult<DType> {
    KV_TYPES.into_iter().find(|t| t.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let names = KV_TYPES.map(|t| format!("\"{}\"", t.name().to_ascii_lowercase())).join(" or ");
        PyValueError::new_err(format!("kv_type is \"{name}\", it must be {names}"))
    })
}
