//! `Engine`, `Ticket` and `Bell`: many answers at once; and `generate_batch`, the same on the caller's thread.
//!
//! The engine's thread never attaches to the interpreter. What it has to say goes into tickets, and that there is something
//! goes to a bell: a pipe whose other end an event loop watches. So nobody waits for anybody: the loop reads what is there,
//! the engine computes on.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::ids::token_ids;
use super::model::{Adapter, adapters};
use super::parameters::{functions, to_options};
use super::{Model, raise, raise_ref, run};
use crate::error::{Error, Result};
use crate::generate::Options;
use crate::scheduler::{
    Choice, End, Event, Finish, Form, Generate, Inline, Limits, Rejected, Request, Scheduler, TokenLogprob, Usage,
    Work, available_memory,
};
use crate::session::SessionOptions;
use crate::{model, scheduler};

const PROMPT: &str = "a prompt is text or token ids";

/// Token ids and options of one answer, from Python.
fn asked(
    py: Python<'_>,
    model: &model::Model,
    prompt: &Bound<'_, PyAny>,
    options: &Bound<'_, PyDict>,
    session: &SessionOptions,
) -> PyResult<(Vec<u32>, Options)> {
    let vocab_size = model.config().vocab_size;
    let prompt = token_ids(PROMPT, prompt, vocab_size, session.context_length)?;
    if let Some(value) = options.get_item("logits_processor")?
        && !functions(&value)?.is_empty()
    {
        // The threads that sample never wait for the interpreter.
        let what = "logits_processor is for answers that are made one by one, by generate and stream";
        return Err(PyValueError::new_err(what));
    }
    let options = to_options(py, options)?;
    if let Some((id, _)) = options.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab_size) {
        let what = format!("logit_bias has token {id}, which is not in the vocabulary of {vocab_size}");
        return Err(PyValueError::new_err(what));
    }
    Ok((prompt, options))
}

/// What Python gets of an answer that has ended: text, token ids, finish reason, timings as those of a `Generation`, seed,
/// log-probabilities.
type Done = (String, Vec<u32>, &'static str, (usize, f64, usize, f64, usize), u64, Logprobs);

/// Of each token its id and logarithm of the probability, and those of the most likely ones.
type Logprobs = Vec<(u32, f32, Vec<(u32, f32)>)>;

fn to_logprobs(tokens: &[TokenLogprob]) -> Logprobs {
    let pair = |choice: &Choice| (choice.token_id, choice.logprob);
    let token = |token: &TokenLogprob| {
        let (id, logprob) = pair(&token.chosen);
        (id, logprob, token.top.iter().map(pair).collect())
    };
    tokens.iter().map(token).collect()
}

/// As those of a `Generation`: prompt tokens, seconds for them, generated tokens, seconds for them, cached tokens.
fn timings(usage: &Usage) -> (usize, f64, usize, f64, usize) {
    let seconds = [usage.prompt, usage.generation].map(|time| time.as_secs_f64());
    (usage.prompt_tokens, seconds[0], usage.generated_tokens, seconds[1], usage.cached_tokens)
}

/// Answers to several prompts, computed together on this thread; the first error ends all.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // as Python has them
pub fn generate_batch<'py>(
    py: Python<'py>,
    model: &Model,
    prompts: Vec<Bound<'py, PyAny>>,
    options: Vec<Bound<'py, PyDict>>,
    context_length: &Bound<'py, PyAny>,
    threads: &Bound<'py, PyAny>,
    kv_type: &str,
    parallel: usize,
    lora: Vec<(PyRef<'py, Adapter>, f32)>,
) -> PyResult<Vec<Done>> {
    let lora = adapters(&lora);
    let session = model.options(py, context_length, threads, kv_type)?;
    let model = model.shared();
    let asked = prompts.iter().zip(&options).map(|(prompt, options)| asked(py, model, prompt, options, &session));
    let asked = asked.collect::<PyResult<Vec<_>>>()?;
    let done = run(py, |interrupt| {
        // Nobody waits for the next token: all goes into throughput.
        let limits =
            Limits { parallel, step: Duration::ZERO, ring_bytes: usize::MAX, kv_bytes: memory(), ..Limits::default() };
        let mut engine = Inline::new(limits)?;
        let mut tickets = Vec::with_capacity(asked.len());
        for (prompt, options) in asked {
            let work = Work::Generate(Generate::new(model, prompt, options, 1)?);
            let adapters = lora.clone();
            tickets.push(engine.submit(Request { adapters, ..Request::new(model, session, work) })?);
        }
        while engine.step(interrupt)? {}
        // An error may be one of several answers.
        Ok(tickets.iter_mut().map(done).collect::<Result<Vec<_>, Arc<Error>>>())
    })?;
    done.map_err(|error| raise_ref(py, &error))
}

/// The whole answer of a ticket whose request has ended.
fn done(ticket: &mut scheduler::Ticket) -> Result<Done, Arc<Error>> {
    let (mut text, mut token_ids, mut logprobs) = (String::new(), Vec::new(), Vec::new());
    while let Some(Some(event)) = ticket.try_next() {
        text.push_str(&event.text);
        token_ids.extend(event.token_ids);
        logprobs.extend(to_logprobs(&event.logprobs));
        match event.end {
            Some(End { finish: Finish::Done(reason), usage, seed }) => {
                return Ok((text, token_ids, reason.as_str(), timings(&usage), seed, logprobs));
            }
            Some(End { finish: Finish::Failed(error), .. }) => return Err(error),
            Some(_) | None => {}
        }
    }
    unreachable!("what was neither cancelled nor too late is done or has failed")
}

/// Half of the memory that is to be had.
fn memory() -> u64 {
    (available_memory() / 2).max(64 << 20)
}

/// Many answers at once, made on a thread of its own.
#[pyclass(frozen)]
pub struct Engine {
    scheduler: Scheduler,
}

#[pymethods]
impl Engine {
    #[new]
    fn new(
        py: Python<'_>,
        parallel: usize,
        max_queue: usize,
        max_queued_tokens: usize,
        kv_memory: Option<u64>,
        step_ms: f64,
    ) -> PyResult<Self> {
        let step = Duration::try_from_secs_f64(step_ms / 1e3)
            .map_err(|_| PyValueError::new_err(format!("step_ms is {step_ms}, it must be 0 or more: milliseconds")))?;
        let limits = Limits {
            parallel,
            max_queue,
            max_queued_tokens,
            kv_bytes: kv_memory.unwrap_or_else(memory),
            step,
            slow_reader: Duration::from_secs(365 * 24 * 3600), // it pauses for as long as its task does
            ..Limits::default()
        };
        let scheduler = Scheduler::start(limits).map_err(|e| raise(py, e))?;
        Ok(Self { scheduler })
    }

    /// Asks for an answer; `bell` rings with the number `id` when there is something of it. Control tokens that are in
    /// `marks` come as text; a grammar leaves the text free up to the marker `free_until`.
    #[allow(clippy::too_many_arguments)] // as Python has them
    fn submit(
        &self,
        py: Python<'_>,
        model: &Model,
        prompt: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
        context_length: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
        kv_type: &str,
        client: u64,
        priority: i8,
        timeout: Option<f64>,
        bell: &Bell,
        id: u64,
        lora: Vec<(PyRef<'_, Adapter>, f32)>,
        marks: Vec<u32>,
        free_until: Option<String>,
    ) -> PyResult<Ticket> {
        let adapters = adapters(&lora);
        let session = model.options(py, context_length, threads, kv_type)?;
        let model = model.shared();
        let (prompt, options) = asked(py, model, prompt, options, &session)?;
        let deadline = timeout.and_then(|seconds| {
            let timeout = Duration::try_from_secs_f64(seconds.max(0.0)).ok()?;
            Instant::now().checked_add(timeout)
        });
        let submitted = run(py, |interrupt| {
            let form = Form { keeping: marks, after: free_until, ..Form::default() };
            let work = Work::Generate(Generate::formed(model, prompt, options, 1, form, interrupt)?);
            let request = Request { client, priority, deadline, adapters, ..Request::new(model, session, work) };
            Ok(self.scheduler.submit(request))
        })?;
        match submitted {
            Ok(mut ticket) => {
                let waker = Waker::from(Arc::new(Ringer { bell: Arc::clone(&bell.inner), id }));
                ticket.wake(&waker);
                Ok(Ticket { inner: Mutex::new(ticket), waker, process: process::id() })
            }
            Err(Rejected::Invalid(error)) => Err(raise(py, error)),
            Err(Rejected::Stopping) => Err(full(py, "the engine is closed", None)?),
            Err(rejected @ (Rejected::QueueFull { retry_after } | Rejected::TokensFull { retry_after })) => {
                let message = Error::from(rejected).to_string();
                Err(full(py, &message, Some(retry_after.as_secs_f64()))?)
            }
        }
    }

    /// Numbers by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.scheduler.stats();
        let dict = PyDict::new(py);
        dict.set_item("running", stats.running)?;
        dict.set_item("waiting", stats.waiting)?;
        dict.set_item("queued_tokens", stats.queued_tokens)?;
        dict.set_item("kv_used", stats.kv_used)?;
        dict.set_item("kv_cached", stats.kv_cached)?;
        dict.set_item("kv_budget", stats.kv_budget)?;
        dict.set_item("prompt_tokens", stats.prompt_tokens)?;
        dict.set_item("cached_tokens", stats.cached_tokens)?;
        dict.set_item("generated_tokens", stats.generated_tokens)?;
        dict.set_item("preemptions", stats.preemptions)?;
        dict.set_item("steps", stats.steps)?;
        dict.set_item("step_seconds", stats.step_seconds)?;
        Ok(dict)
    }

    /// Cancels all and takes nothing more.
    fn close(&self) {
        self.scheduler.stop();
    }
}

/// The error of an engine that takes no request.
fn full(py: Python<'_>, message: &str, retry_after: Option<f64>) -> PyResult<PyErr> {
    let class = py.import("llama_rs.errors")?.getattr("EngineFullError")?;
    Ok(PyErr::from_value(class.call1((message, retry_after))?))
}

/// What was asked for.
#[pyclass(frozen)]
pub struct Ticket {
    inner: Mutex<scheduler::Ticket>, // locked for a moment, and never while Python code can run
    waker: Waker,
    process: u32, // in which it was asked
}

#[pymethods]
impl Ticket {
    /// What there is: text, token ids, log-probabilities, and at the end how it ended; None if there is nothing yet. Then the bell rings when
    /// there is.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        if self.process != process::id() {
            // The lock may be one that the engine's thread held when the process was forked.
            return Err(PyRuntimeError::new_err("this answer was asked for before this process was forked"));
        }
        let mut ticket = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let event = ticket.try_next();
        if event.is_none() {
            ticket.wake(&self.waker);
        }
        drop(ticket);
        let Some(Some(Event { text, token_ids, logprobs, end, .. })) = event else { return Ok(None) };
        let end = end.map(|End { finish, usage, seed }| {
            let (how, error) = match finish {
                Finish::Done(reason) => (reason.as_str(), None),
                Finish::Cancelled => ("cancelled", None),
                Finish::Deadline => ("deadline", None),
                Finish::SlowReader => ("slow", None),
                Finish::Failed(error) => ("failed", Some(raise_ref(py, &error).into_value(py))),
                Finish::Crashed => ("crashed", None),
            };
            (how, error, timings(&usage), seed)
        });
        (text, token_ids, to_logprobs(&logprobs), end).into_pyobject(py).map(Some)
    }

    /// Frees what it uses, with the step that is being computed.
    fn cancel(&self) {
        if self.process == process::id() {
            self.inner.lock().unwrap_or_else(PoisonError::into_inner).cancel();
        }
    }
}

/// Tells an event loop that tickets have something.
#[pyclass(frozen)]
pub struct Bell {
    inner: Arc<Rung>,
    reader: PipeReader,
}

struct Rung {
    ids: Mutex<Vec<u64>>, // locked for a moment, and never while Python code can run
    writer: PipeWriter,
}

struct Ringer {
    bell: Arc<Rung>,
    id: u64,
}

impl Wake for Ringer {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut ids = self.bell.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.push(self.id);
        if ids.len() == 1 {
            // One byte is in the pipe at most. If nobody has the other end any more, nobody has to know.
            let _ = (&self.bell.writer).write(&[1]);
        }
    }
}

#[pymethods]
impl Bell {
    #[new]
    fn new() -> PyResult<Self> {
        let (reader, writer) = std::io::pipe()?;
        for fd in [reader.as_raw_fd(), writer.as_raw_fd()] {
            // SAFETY: it changes a flag of a descriptor that is ours.
            unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
        }
        Ok(Self { inner: Arc::new(Rung { ids: Mutex::default(), writer }), reader })
    }

    /// To be watched: there is something to read when it has rung.
    fn fileno(&self) -> i32 {
        self.reader.as_raw_fd()
    }

    /// The numbers that it has rung with since it was asked last.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let mut ids = self.inner.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let mut byte = [0];
        match (&self.reader).read(&mut byte) {
            Err(e) if e.kind() != ErrorKind::WouldBlock && e.kind() != ErrorKind::Interrupted => return Err(e.into()),
            _ => {}
        }
        let rung = std::mem::take(&mut *ids);
        drop(ids);
        PyList::new(py, rung)
    }
}
