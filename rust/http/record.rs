//! What is remembered of a request while it is answered, for metrics and the access log.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hyper::header::HeaderMap;

use super::json::{Json, object};
use super::runs::milliseconds;
use super::service::Shared;
use crate::scheduler::{Event, Finish};

/// A request. When the last owner drops it, it is over: it is counted, and a line is logged.
pub struct Record {
    shared: Arc<Shared>,
    pub id: String,
    pub start: Instant,
    pub route: Cell<&'static str>,
    pub status: Cell<u16>,
    pub model: RefCell<String>,
    pub code: Cell<&'static str>, // of an error
    peer: Option<std::net::IpAddr>,
    trace: Trace,
    stages: Cell<[f64; 3]>, // seconds in the queue, of the prompt, of the answer that took longest
    first: Cell<Option<Instant>>,
    last: Cell<Option<Instant>>,
    prompt_tokens: Cell<usize>,
    cached_tokens: Cell<usize>,
    generated_tokens: Cell<usize>,
    seen: RefCell<Vec<usize>>, // tokens of each answer that were counted as they came
    finish: Cell<Option<&'static str>>,
    computes: Cell<bool>,
    open: Cell<usize>, // answers that have not ended
}

impl Record {
    pub fn new(shared: &Arc<Shared>, id: String, peer: Option<std::net::IpAddr>, headers: &HeaderMap) -> Self {
        Self {
            shared: Arc::clone(shared),
            id,
            start: Instant::now(),
            route: Cell::new("other"),
            status: Cell::new(0),
            model: RefCell::default(),
            code: Cell::new(""),
            peer,
            trace: if shared.traces.is_some() { Trace::of(headers) } else { Trace::default() },
            stages: Cell::default(),
            first: Cell::default(),
            last: Cell::default(),
            prompt_tokens: Cell::default(),
            cached_tokens: Cell::default(),
            generated_tokens: Cell::default(),
            seen: RefCell::default(),
            finish: Cell::default(),
            computes: Cell::default(),
            open: Cell::default(),
        }
    }

    /// So many answers are being made for it.
    pub fn expect(&self, answers: usize) {
        self.computes.set(true);
        self.open.set(answers);
    }

    /// Takes note of an event.
    pub fn event(&self, event: &Event) {
        let (now, metrics) = (Instant::now(), &self.shared.metrics);
        let n = event.token_ids.len();
        if n > 0 || event.vectors.is_some() {
            match self.last.get() {
                None => {
                    self.first.set(Some(now));
                    metrics.first_token.record((now - self.start).as_secs_f64());
                }
                // Of several tokens that came together each took its share.
                Some(last) => {
                    let each = (now - last).as_secs_f64() / n.max(1) as f64;
                    (0..n).for_each(|_| metrics.inter_token.record(each));
                }
            }
            self.last.set(Some(now));
        }
        let Some(end) = &event.end else { return self.generated(event.index, n) };
        let usage = &end.usage;
        let seen = self.seen.borrow().get(event.index).copied().unwrap_or(0);
        self.generated(event.index, usage.generated_tokens.saturating_sub(seen));
        self.open.set(self.open.get().saturating_sub(1));
        self.prompt_tokens.set(self.prompt_tokens.get() + usage.prompt_tokens);
        self.cached_tokens.set(self.cached_tokens.get() + usage.cached_tokens);
        metrics.prompt_tokens.add(usage.prompt_tokens as u64);
        metrics.cached_tokens.add(usage.cached_tokens as u64);
        metrics.prompt_size.record(usage.prompt_tokens as f64);
        metrics.output_size.record(usage.generated_tokens as f64);
        metrics.queued.record(usage.queued.as_secs_f64());
        metrics.prefill.record(usage.prompt.as_secs_f64());
        metrics.decode.record(usage.generation.as_secs_f64());
        if usage.generated_tokens > 1 {
            let each = usage.generation.as_secs_f64() / (usage.generated_tokens - 1) as f64;
            metrics.per_output_token.record(each);
        }
        let stages = [usage.queued, usage.prompt, usage.generation].map(|stage| stage.as_secs_f64());
        let sum = |stages: [f64; 3]| stages.iter().sum::<f64>();
        if sum(stages) >= sum(self.stages.get()) {
            self.stages.set(stages);
        }
        self.finished(match &end.finish {
            Finish::Done(reason) => reason.as_str(),
            Finish::Cancelled => "cancelled",
            Finish::Deadline => "deadline",
            Finish::SlowReader => "slow_client",
            Finish::Failed(_) | Finish::Crashed => "error",
        });
    }

    /// All that a tracer wants to know, with times in nanoseconds since 1970.
    fn span(&self) -> Json {
        let (now, unix) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let time = |then: Instant| unix.saturating_sub(now - then).as_nanos() as u64;
        let [queue, prefill, decode] = self.stages.get();
        object! {
            "traceparent" => self.trace.parent.as_str(),
            "tracestate" => self.trace.state.as_str(),
            "id" => self.id.as_str(),
            "route" => self.route.get(),
            "status" => u64::from(self.status.get()),
            "model" => self.model.borrow().as_str(),
            "start" => time(self.start),
            "first_token" => self.first.get().map(time),
            "end" => time(now),
            "queue" => queue, "prefill" => prefill, "decode" => decode,
            "prompt_tokens" => self.prompt_tokens.get(),
            "cached_tokens" => self.cached_tokens.get(),
            "tokens" => self.generated_tokens.get(),
            "finish" => self.finish.get(),
            "error" => self.code.get(),
        }
    }

    /// Counts tokens as they come, so that those of an answer that is cancelled count as well.
    fn generated(&self, index: usize, n: usize) {
        let mut seen = self.seen.borrow_mut();
        if seen.len() <= index {
            seen.resize(index + 1, 0);
        }
        seen[index] += n;
        self.generated_tokens.set(self.generated_tokens.get() + n);
        self.shared.metrics.generated_tokens.add(n as u64);
    }

    fn finished(&self, reason: &'static str) {
        self.finish.set(Some(reason));
        self.shared.metrics.finished.add(format!("reason=\"{reason}\""), 1);
    }
}

/// The trace that a request is a part of, as the W3C has it in headers.
#[derive(Default)]
struct Trace {
    parent: String,
    state: String,
}

impl Trace {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| text.len() <= 512);
        let text = |name| text(name).unwrap_or_default().to_string();
        Self { parent: text("traceparent"), state: text("tracestate") }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.open.get() > 0 && self.code.get().is_empty() {
            self.finished("cancelled"); // the client went away
        }
        let (metrics, log) = (&self.shared.metrics, &self.shared.log);
        let (route, status) = (self.route.get(), self.status.get());
        metrics.requests.add(format!("route=\"{route}\",status=\"{status}\""), 1);
        if self.computes.get() {
            metrics.duration.record(self.start.elapsed().as_secs_f64());
        }
        if let Some(traces) = self.shared.traces.as_ref().filter(|_| self.computes.get())
            && traces.try_send(self.span().to_string()).is_err()
        {
            metrics.spans_dropped.add(1);
        }
        if !log.is_wanted() {
            return;
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let mut line = object! {
            "time" => (time * 1e3).round() / 1e3,
            "id" => self.id.as_str(),
            "peer" => self.peer.map_or_else(|| "unix".into(), |peer| peer.to_string()),
            "route" => route,
            "status" => u64::from(status),
            "ms" => milliseconds(self.start),
        };
        if let Some(first) = self.first.get() {
            line.push("first_token_ms", ((first - self.start).as_secs_f64() * 1e6).round() / 1e3);
        }
        if self.prompt_tokens.get() > 0 || self.generated_tokens.get() > 0 {
            line.push("model", self.model.borrow().as_str());
            line.push("prompt_tokens", self.prompt_tokens.get());
            line.push("cached_tokens", self.cached_tokens.get());
            line.push("tokens", self.generated_tokens.get());
        }
        if let Some(finish) = self.finish.get() {
            line.push("finish", finish);
        }
        if !self.code.get().is_empty() {
            line.push("error", self.code.get());
        }
        if !log.line(&line) {
            metrics.log_lines_dropped.add(1);
        }
    }
}
