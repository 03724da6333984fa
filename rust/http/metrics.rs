//! What is counted, in the text format of Prometheus.
//!
//! Numbers are told as they are kept: cumulative, never reset, seconds and bytes. A label never holds what a client wrote.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::scheduler::Stats;

/// vLLM's buckets, which dashboards are drawn for, and some below them, for small models.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0,
];
const PER_TOKEN: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
const DURATION: &[f64] = &[0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0];
const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0];

/// A number that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number for each value of some labels, which are few.
#[derive(Default)]
pub struct Counters(Mutex<BTreeMap<String, u64>>);

impl Counters {
    pub fn get(&self, labels: &str) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(labels).copied().unwrap_or(0)
    }

    /// `labels` as they are written: `route="/health",status="200"`.
    pub fn add(&self, labels: String, n: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(labels).or_default() += n;
    }
}

/// How many of some values were at most so large.
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<AtomicU64>, // one more than bounds
    sum: AtomicU64,         // the bits of an f64
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }

    pub fn record(&self, value: f64) {
        let i = self.bounds.partition_point(|&bound| bound < value);
        self.counts[i].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

/// All that is counted.
pub struct Metrics {
    pub start: Instant,
    pub requests: Counters,
    pub finished: Counters,
    pub rejected: Counters,
    pub unknown_fields: Counter,
    pub prompt_tokens: Counter,
    pub cached_tokens: Counter,
    pub generated_tokens: Counter,
    pub log_lines_dropped: Counter,
    pub spans_dropped: Counter,
    pub reloads: Counters,
    pub first_token: Histogram,
    pub inter_token: Histogram,
    pub per_output_token: Histogram,
    pub duration: Histogram,
    pub queued: Histogram,
    pub prefill: Histogram,
    pub decode: Histogram,
    pub prompt_size: Histogram,
    pub output_size: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            requests: Counters::default(),
            finished: Counters::default(),
            rejected: Counters::default(),
            unknown_fields: Counter::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            log_lines_dropped: Counter::default(),
            spans_dropped: Counter::default(),
            reloads: Counters::default(),
            first_token: Histogram::new(FIRST_TOKEN),
            inter_token: Histogram::new(PER_TOKEN),
            per_output_token: Histogram::new(PER_TOKEN),
            duration: Histogram::new(DURATION),
            queued: Histogram::new(FIRST_TOKEN),
            prefill: Histogram::new(FIRST_TOKEN),
            decode: Histogram::new(FIRST_TOKEN),
            prompt_size: Histogram::new(TOKENS),
            output_size: Histogram::new(TOKENS),
        }
    }
}

/// The text of a page of metrics.
pub struct Page {
    text: String,
    prefix: &'static str,
    labels: String, // of every line
}

impl Page {
    pub fn new() -> Self {
        Self { text: String::with_capacity(8 << 10), prefix: "llama_rs_", labels: String::new() }
    }

    /// From here on, names begin with `prefix`, and all lines have these labels.
    pub fn begin(&mut self, prefix: &'static str, labels: String) {
        (self.prefix, self.labels) = (prefix, labels);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let prefix = self.prefix;
        let _ = write!(self.text, "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let comma = if labels.is_empty() || self.labels.is_empty() { "" } else { "," };
        let all = format!("{}{comma}{labels}", self.labels);
        let all = if all.is_empty() { all } else { format!("{{{all}}}") };
        let _ = writeln!(self.text, "{}{name}{all} {value}", self.prefix);
    }

    pub fn gauge(&mut self, name: &str, help: &str, values: &[(&str, f64)]) {
        self.values(name, "gauge", help, values);
    }

    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.values(name, "counter", help, &[("", value as f64)]);
    }

    /// A counter of seconds.
    pub fn seconds(&mut self, name: &str, help: &str, value: f64) {
        self.values(name, "counter", help, &[("", value)]);
    }

    fn values(&mut self, name: &str, kind: &str, help: &str, values: &[(&str, f64)]) {
        self.head(name, kind, help);
        for (labels, value) in values {
            self.line(name, labels, value);
        }
    }

    pub fn counters(&mut self, name: &str, help: &str, counters: &Counters) {
        let counters = counters.0.lock().unwrap_or_else(PoisonError::into_inner);
        let values: Vec<(&str, f64)> = counters.iter().map(|(labels, n)| (labels.as_str(), *n as f64)).collect();
        self.values(name, "counter", help, &values);
    }

    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut total = 0;
        let bounds = histogram.bounds.iter().map(f64::to_string).chain(["+Inf".into()]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            total += count.load(Ordering::Relaxed);
            self.line(&format!("{name}_bucket"), &format!("le=\"{bound}\""), total);
        }
        self.line(&format!("{name}_sum"), "", histogram.sum());
        self.line(&format!("{name}_count"), "", total);
    }

    /// All that is counted here.
    pub fn add(&mut self, m: &Metrics) {
        self.counters("requests_total", "Requests by route and status.", &m.requests);
        self.counters("requests_finished_total", "Answers by the reason for their end.", &m.finished);
        self.counters("rejected_total", "Requests refused because too many wait.", &m.rejected);
        self.counters("reloads_total", "Models loaded while serving, by result.", &m.reloads);
        self.counter("unknown_fields_total", "Fields of requests that mean nothing here.", m.unknown_fields.get());
        self.counter("prompt_tokens_total", "Tokens of prompts.", m.prompt_tokens.get());
        self.counter("prompt_tokens_cached_total", "Of these, tokens found in the cache.", m.cached_tokens.get());
        self.counter("generated_tokens_total", "Tokens generated.", m.generated_tokens.get());
        self.counter("log_lines_dropped_total", "Lines of the access log not written.", m.log_lines_dropped.get());
        self.counter("spans_dropped_total", "Spans of traces that nobody took in time.", m.spans_dropped.get());
        self.histogram("time_to_first_token_seconds", "From a request to its first token.", &m.first_token);
        self.histogram("inter_token_seconds", "Between two tokens of an answer.", &m.inter_token);
        self.histogram("time_per_output_token_seconds", "Mean of an answer after its first.", &m.per_output_token);
        self.histogram("request_duration_seconds", "From a request to the end of its answer.", &m.duration);
        self.histogram("queue_time_seconds", "Until it was an answer's turn.", &m.queued);
        self.histogram("prefill_time_seconds", "From then on until its prompt was computed.", &m.prefill);
        self.histogram("decode_time_seconds", "From then on to its end.", &m.decode);
        self.histogram("request_prompt_tokens", "Tokens of a prompt.", &m.prompt_size);
        self.histogram("request_output_tokens", "Tokens of an answer.", &m.output_size);
        self.gauge("uptime_seconds", "Since the server began.", &[("", m.start.elapsed().as_secs_f64())]);
    }

    /// The same numbers by the names of others, which gateways and dashboards know.
    pub fn add_names(&mut self, names: Names, m: &Metrics, stats: &Stats, model: &str) {
        match names {
            Names::Vllm => self.add_vllm(m, stats, model),
            Names::LlamaCpp => self.add_llama_cpp(m, stats),
        }
    }

    fn add_vllm(&mut self, m: &Metrics, stats: &Stats, model: &str) {
        self.begin("vllm:", format!("engine=\"0\",model_name=\"{model}\""));
        self.gauge("num_requests_running", "Answers that are being made.", &[("", stats.running as f64)]);
        self.gauge("num_requests_waiting", "Answers that wait for their turn.", &[("", stats.waiting as f64)]);
        let usage = (stats.kv_used + stats.kv_cached) as f64 / (stats.kv_budget as f64).max(1.0);
        self.gauge("kv_cache_usage_perc", "Share of the memory of keys and values, 1 for all.", &[("", usage)]);
        self.counter("prefix_cache_queries_total", "Tokens of prompts that were looked for.", m.prompt_tokens.get());
        self.counter("prefix_cache_hits_total", "Tokens of prompts that were found.", m.cached_tokens.get());
        self.counter("num_preemptions_total", "Answers that made room for others.", stats.preemptions);
        self.counter("prompt_tokens_total", "Tokens of prompts.", m.prompt_tokens.get());
        self.counter("generation_tokens_total", "Tokens generated.", m.generated_tokens.get());
        let ended = |reason| m.finished.get(reason) as f64;
        let ended = [
            ("finished_reason=\"stop\"", ended("reason=\"stop\"")),
            ("finished_reason=\"length\"", ended("reason=\"length\"")),
        ];
        self.values("request_success_total", "counter", "Answers that were completed.", &ended);
        self.histogram("time_to_first_token_seconds", "From a request to its first token.", &m.first_token);
        self.histogram("inter_token_latency_seconds", "Between two tokens of an answer.", &m.inter_token);
        self.histogram("time_per_output_token_seconds", "The same, by its older name.", &m.inter_token);
        let per_output = &m.per_output_token;
        self.histogram("request_time_per_output_token_seconds", "Mean of an answer after its first.", per_output);
        self.histogram("e2e_request_latency_seconds", "From a request to the end of its answer.", &m.duration);
        self.histogram("request_queue_time_seconds", "Until it was an answer's turn.", &m.queued);
        self.histogram("request_prefill_time_seconds", "Until its prompt was computed.", &m.prefill);
        self.histogram("request_decode_time_seconds", "From then on to its end.", &m.decode);
        self.histogram("request_prompt_tokens", "Tokens of a prompt.", &m.prompt_size);
        self.histogram("request_generation_tokens", "Tokens of an answer.", &m.output_size);
    }

    fn add_llama_cpp(&mut self, m: &Metrics, stats: &Stats) {
        self.begin("llamacpp:", String::new());
        let computed = m.prompt_tokens.get().saturating_sub(m.cached_tokens.get());
        let (prefill, decode) = (m.prefill.sum(), m.decode.sum());
        let rate = |n: u64, seconds: f64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        self.counter("prompt_tokens_total", "Tokens of prompts that were computed.", computed);
        self.seconds("prompt_seconds_total", "Time for them.", prefill);
        self.counter("tokens_predicted_total", "Tokens generated.", m.generated_tokens.get());
        self.seconds("tokens_predicted_seconds_total", "Time for them.", decode);
        self.counter("n_decode_total", "Steps of the engine.", stats.steps);
        self.gauge("prompt_tokens_seconds", "Tokens of prompts per second.", &[("", rate(computed, prefill))]);
        let predicted = rate(m.generated_tokens.get(), decode);
        self.gauge("predicted_tokens_seconds", "Tokens generated per second.", &[("", predicted)]);
        self.gauge("requests_processing", "Answers that are being made.", &[("", stats.running as f64)]);
        self.gauge("requests_deferred", "Answers that wait for their turn.", &[("", stats.waiting as f64)]);
    }

    pub fn text(self) -> String {
        self.text
    }
}

/// Whose names numbers can have beside our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// vLLM's.
    Vllm,
    /// Those of llama.cpp's server.
    LlamaCpp,
}

impl Names {
    /// Those called so on a command line: `vllm`, `llamacpp`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "vllm" => Some(Self::Vllm),
            "llamacpp" => Some(Self::LlamaCpp),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_what_is_at_most_their_bound() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        [0.5, 1.0, 1.5, 7.0].iter().for_each(|&x| histogram.record(x));
        let mut page = Page::new();
        page.histogram("h", "H.", &histogram);
        assert_eq!(
            page.text(),
            "# HELP llama_rs_h H.\n# TYPE llama_rs_h histogram\nllama_rs_h_bucket{le=\"1\"} 2\nllama_rs_h_bucket{le=\"2\"} \
             3\nllama_rs_h_bucket{le=\"+Inf\"} 4\nllama_rs_h_sum 10\nllama_rs_h_count 4\n"
        );
    }

    #[test]
    fn what_was_never_counted_is_zero_or_absent() {
        let mut page = Page::new();
        page.add(&Metrics::default());
        let text = page.text();
        assert!(
            text.contains("llama_rs_generated_tokens_total 0\n") && text.contains("# TYPE llama_rs_requests_total")
        );
    }
}
