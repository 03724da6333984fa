//! `perf`: a client that measures a server.

use std::time::Duration;

use pyo3::prelude::*;

use super::run;
use crate::error::Error;
use crate::http::perf::{Load, Plan, run as measure};

/// What became of a request: when it was to be sent, when pieces of its answer came, when it ended, all in seconds; status,
/// tokens of its prompt, those of them that were cached, tokens of the answer, whether its client went away, and what went
/// wrong.
type Sample = (f64, Vec<f64>, f64, u16, usize, usize, usize, bool, Option<String>);

/// Asks a server as planned.
#[pyfunction]
#[pyo3(signature = (host, port, path, key, bodies, requests, *, clients, rate, cancel, timeout, seed))]
#[allow(clippy::too_many_arguments)] // as Python has them
pub fn perf(
    py: Python<'_>,
    host: String,
    port: u16,
    path: String,
    key: Option<String>,
    bodies: Vec<String>,
    requests: usize,
    clients: Option<usize>,
    rate: Option<f64>,
    cancel: f64,
    timeout: f64,
    seed: u64,
) -> PyResult<Vec<Sample>> {
    let load = rate.map_or(Load::Closed(clients.unwrap_or(1)), Load::Open);
    let timeout = Duration::try_from_secs_f64(timeout).unwrap_or(Duration::MAX);
    let plan = Plan { host, port, path, key, bodies, requests, load, cancel, timeout, seed };
    let samples = run(py, |interrupt| {
        if plan.bodies.is_empty() || plan.requests == 0 {
            return Err(Error::Argument("there is nothing to ask".into()));
        }
        measure(&plan, interrupt)
    })?;
    let sample = |s: crate::http::perf::Sample| {
        let tokens = (s.prompt_tokens, s.cached_tokens, s.tokens);
        (s.intended, s.pieces, s.end, s.status, tokens.0, tokens.1, tokens.2, s.is_cancelled, s.error)
    };
    Ok(samples.into_iter().map(sample).collect())
}
