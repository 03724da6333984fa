//! What is counted, in the text format of Prometheus.
//!
//! Numbers are told as they are kept: cumulative, never reset, seconds and bytes. A label never holds what a client wrote.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

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
    pub reloads: Counters,
    pub first_token: Histogram,
    pub inter_token: Histogram,
    pub per_output_token: Histogram,
    pub duration: Histogram,
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
            reloads: Counters::default(),
            first_token: Histogram::new(FIRST_TOKEN),
            inter_token: Histogram::new(PER_TOKEN),
            per_output_token: Histogram::new(PER_TOKEN),
            duration: Histogram::new(DURATION),
            prompt_size: Histogram::new(TOKENS),
            output_size: Histogram::new(TOKENS),
        }
    }
}

/// The text of a page of metrics.
pub struct Page(String);

impl Page {
    pub fn new() -> Self {
        Self(String::with_capacity(8 << 10))
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP llama_rs_{name} {help}\n# TYPE llama_rs_{name} {kind}\n");
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
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(self.0, "llama_rs_{name}{labels} {value}");
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
            let _ = writeln!(self.0, "llama_rs_{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let sum = f64::from_bits(histogram.sum.load(Ordering::Relaxed));
        let _ = write!(self.0, "llama_rs_{name}_sum {sum}\nllama_rs_{name}_count {total}\n");
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
        self.histogram("time_to_first_token_seconds", "From a request to its first token.", &m.first_token);
        self.histogram("inter_token_seconds", "Between two tokens of an answer.", &m.inter_token);
        self.histogram("time_per_output_token_seconds", "Mean of an answer after its first.", &m.per_output_token);
        self.histogram("request_duration_seconds", "From a request to the end of its answer.", &m.duration);
        self.histogram("request_prompt_tokens", "Tokens of a prompt.", &m.prompt_size);
        self.histogram("request_output_tokens", "Tokens of an answer.", &m.output_size);
        self.gauge("uptime_seconds", "Since the server began.", &[("", m.start.elapsed().as_secs_f64())]);
    }

    pub fn text(self) -> String {
        self.0
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
