//! `Server`: an HTTP server at work.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::model::{Model, session_options};
use super::parameters::from_settings;
use super::run;
use crate::error::Error;
use crate::http::{self, Config, Listen, MetricsNames, Version};
use crate::model;
use crate::scheduler::Limits;
use crate::session::SessionOptions;

/// How often a thread that waits looks whether it is over.
const LOOK: Duration = Duration::from_millis(100);

/// An HTTP server at work.
#[pyclass(frozen)]
pub struct Server(http::Server);

#[pymethods]
impl Server {
    /// Listens, and serves `models`: each its name, its number, the model, and what its sessions are made with.
    #[new]
    #[pyo3(signature = (
        models, *, host, port, unix, api_keys, admin_key, cors, allowed_hosts, strict, strict_model, share_prefixes, access_log,
        metrics_names, traces, request_timeout, parallel, max_queue, max_queued_tokens, kv_bytes, step, defaults
    ))]
    #[allow(clippy::too_many_arguments)] // as Python has them
    fn new(
        py: Python<'_>,
        models: Vec<(String, String, PyRef<'_, Model>, usize, usize, String)>,
        host: String,
        port: u16,
        unix: Option<PathBuf>,
        api_keys: Vec<String>,
        admin_key: Option<String>,
        cors: Vec<String>,
        allowed_hosts: Vec<String>,
        strict: bool,
        strict_model: bool,
        share_prefixes: bool,
        access_log: bool,
        metrics_names: Vec<String>,
        traces: bool,
        request_timeout: Option<f64>,
        parallel: usize,
        max_queue: usize,
        max_queued_tokens: usize,
        kv_bytes: u64,
        step: f64,
        defaults: &Bound<'_, PyDict>,
    ) -> PyResult<Self> {
        let defaults = from_settings(defaults)?;
        let seconds = |x: f64| Duration::try_from_secs_f64(x).unwrap_or(Duration::MAX);
        let limits =
            Limits { parallel, max_queue, max_queued_tokens, kv_bytes, step: seconds(step), ..Limits::default() };
        let listen = unix.map_or(Listen::Tcp(host, port), Listen::Unix);
        let config = Config {
            listen,
            api_keys,
            admin_key,
            cors,
            allowed_hosts,
            strict,
            strict_model,
            share_prefixes,
            access_log,
            traces,
            metrics_names: metrics_names.iter().map(|name| names(name)).collect::<PyResult<_>>()?,
            request_timeout: request_timeout.map(seconds),
            limits,
        };
        let mut opened: Vec<(String, String, Arc<model::Model>, SessionOptions)> = Vec::new();
        for (name, number, model, context_length, threads, kv_type) in &models {
            let session = session_options(*context_length, *threads, kv_type)?;
            opened.push((name.clone(), number.clone(), Arc::clone(model.shared()), session));
        }
        let start = || {
            let versions = opened
                .into_iter()
                .map(|(name, number, model, session)| Version::of(&name, &number, model, session, &defaults));
            let versions = versions.collect::<crate::Result<Vec<_>>>()?;
            http::Server::start(config, versions)
        };
        let started = run(py, |_| match start() {
            Err(Error::File { path, source }) => Ok(Err((path, source))), // of the address
            other => other.map(Ok),
        })?;
        started.map(Self).map_err(|(path, e)| match e.raw_os_error() {
            Some(errno) => PyOSError::new_err((errno, io_text(&e), path.display().to_string())),
            None => PyOSError::new_err((0, e.to_string(), path.display().to_string())),
        })
    }

    /// Where it listens: a URL, or `unix:` and a path.
    #[getter]
    fn address(&self) -> String {
        self.0.address().to_string()
    }

    /// Waits for the end, at most so many seconds. Gives whether it has come. Handlers of signals run meanwhile.
    fn wait(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let mut left = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        run(py, |interrupt| {
            while !left.is_zero() {
                let now = left.min(LOOK);
                left -= now;
                if self.0.wait(now) {
                    return Ok(true);
                }
                if interrupt.poll(0) {
                    return Err(Error::Interrupted);
                }
            }
            Ok(self.0.wait(Duration::ZERO))
        })
    }

    /// Begins the end, see `http::Server::drain`.
    fn drain(&self, grace: f64, patience: f64) {
        let seconds = |x: f64| Duration::try_from_secs_f64(x).unwrap_or(Duration::MAX);
        self.0.drain(seconds(grace), seconds(patience));
    }

    /// Ends it now.
    fn stop(&self) {
        self.0.stop();
    }

    /// Adds a version of a model; with `is_default` its name means it from now on.
    #[allow(clippy::too_many_arguments)] // as Python has them
    fn put(
        &self,
        py: Python<'_>,
        name: &str,
        number: &str,
        model: &Model,
        context_length: usize,
        threads: usize,
        kv_type: &str,
        defaults: &Bound<'_, PyDict>,
        is_default: bool,
    ) -> PyResult<()> {
        let (session, defaults) = (session_options(context_length, threads, kv_type)?, from_settings(defaults)?);
        let model = Arc::clone(model.shared());
        let version = run(py, |_| Version::of(name, number, model, session, &defaults))?;
        self.0.registry().put(Arc::new(version), is_default);
        Ok(())
    }

    /// Takes a version out, or all of a model; answers that hold it go on.
    #[pyo3(signature = (name, number))]
    fn remove(&self, name: &str, number: Option<&str>) -> bool {
        self.0.registry().remove(name, number)
    }

    /// Says why a version cannot be used.
    fn fail(&self, name: &str, number: &str, why: String) {
        self.0.registry().fail(name, number, why);
    }

    /// What somebody asks over HTTP to be changed, if somebody does in so many seconds.
    fn next_order(&self, py: Python<'_>, seconds: f64) -> PyResult<Option<Order>> {
        let at_most = Duration::try_from_secs_f64(seconds).unwrap_or(LOOK);
        let order = run(py, |_| Ok(self.0.registry().next_order(at_most)))?;
        Ok(order.map(|order| Order {
            load: order.what == http::Change::Load,
            model: order.model.clone(),
            number: order.number.clone(),
            done: Mutex::new(Some(order)),
        }))
    }

    /// What there is to say of the next request that is over, as JSON, if one is in so many seconds.
    fn next_span(&self, py: Python<'_>, seconds: f64) -> PyResult<Option<String>> {
        let at_most = Duration::try_from_secs_f64(seconds).unwrap_or(LOOK);
        run(py, |_| Ok(self.0.next_span(at_most)))
    }

    /// Keeps a saved session for all prompts that begin with it. Gives how many tokens it has.
    fn pin(&self, py: Python<'_>, path: PathBuf) -> PyResult<usize> {
        run(py, |_| self.0.pin(&path))
    }

    /// Whether the engine has ended because of a bug of ours.
    #[getter]
    fn has_crashed(&self) -> bool {
        self.0.has_crashed()
    }
}

fn names(name: &str) -> PyResult<MetricsNames> {
    MetricsNames::parse(name).ok_or_else(|| {
        PyValueError::new_err(format!("metrics_names has {name:?}, there are the names of vllm and of llamacpp"))
    })
}

/// What somebody asks over HTTP to be changed.
#[pyclass(frozen)]
pub struct Order {
    /// Whether a model is to be loaded, or taken out.
    #[pyo3(get)]
    load: bool,
    #[pyo3(get)]
    model: String,
    #[pyo3(get)]
    number: Option<String>,
    done: Mutex<Option<http::Order>>,
}

#[pymethods]
impl Order {
    /// Tells who asked that it is done, or why not.
    #[pyo3(signature = (error))]
    fn done(&self, error: Option<String>) {
        let order = self.done.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(order) = order {
            let _ = order.done.send(error.map_or(Ok(()), Err));
        }
    }
}

/// What the system says, without the number that Python says too.
fn io_text(e: &std::io::Error) -> String {
    let text = e.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(text, _)| text.into())
}
