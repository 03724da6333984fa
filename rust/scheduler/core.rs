//! The steps: what a scheduler computes, one after another. For now first come, first served.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::request::{AnyAnswer, End, Event, Finish, Generate, Limits, Request, Stats, Usage, Vectors, Work};
use super::thread::Load;
use super::ticket::Sink;
use crate::embedding;
use crate::engine::{Engine, Span, Want};
use crate::error::{Error, Result};
use crate::generate;
use crate::kv::Sequence;
use crate::model::Model;
use crate::session::SessionOptions;
use crate::threads::Interrupt;

/// A request that was taken, and where its events go.
pub(super) struct Job {
    pub request: Request,
    pub sink: Sink,
    pub arrival: Instant,
}

struct Running {
    model: Arc<Model>,
    engine: Arc<Engine>,
    session: SessionOptions,
    answer: AnyAnswer,
    sequence: Sequence,
    sink: Sink,
    index: usize,
}

pub(super) struct Core {
    limits: Limits,
    waiting: VecDeque<Job>,
    running: Vec<Running>,
    stats: Stats,
}

impl Core {
    pub fn new(limits: Limits) -> Self {
        Self { limits, waiting: VecDeque::new(), running: Vec::new(), stats: Stats::default() }
    }

    pub fn add(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    pub fn is_busy(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        !self.is_busy()
    }

    pub fn wait_until(&self) -> Option<Instant> {
        None
    }

    pub fn stats(&self) -> Stats {
        Stats { running: self.running.len(), kv_budget: self.limits.kv_bytes, ..self.stats.clone() }
    }

    pub fn cancel_all(&mut self) {
        self.end_all(&Finish::Cancelled);
    }

    pub fn crashed(&mut self) {
        self.end_all(&Finish::Crashed);
    }

    fn end_all(&mut self, finish: &Finish) {
        for running in self.running.drain(..) {
            end(&running.sink, running.index, finish.clone(), Usage::default(), String::new());
        }
    }

    pub fn step(&mut self, stop: &(dyn Fn() -> bool + Sync), load: &Load) {
        while self.running.len() < self.limits.parallel
            && let Some(job) = self.waiting.pop_front()
        {
            load.waiting.fetch_sub(job.request.n(), Ordering::SeqCst);
            load.queued_tokens.fetch_sub(job.request.prompt_tokens(), Ordering::SeqCst);
            let sink = job.sink.clone();
            if let Err(error) = self.admit(job) {
                end(&sink, 0, Finish::Failed(Arc::new(error)), Usage::default(), String::new());
            }
        }
        self.running.retain(|running| !running.sink.is_cancelled());
        let interrupt = Interrupt::new(stop);
        for mut running in std::mem::take(&mut self.running) {
            let sink = running.sink.clone();
            let usage = Usage {
                prompt_tokens: running.answer.prompt().len(),
                generated_tokens: running.answer.generated().len(),
                ..Usage::default()
            };
            match running.advance(&interrupt) {
                Ok(true) => self.running.push(running),
                Ok(false) => {}
                Err(error) => end(&sink, running.index, Finish::Failed(Arc::new(error)), usage, String::new()),
            }
        }
        self.stats.steps += 1;
    }

    fn admit(&mut self, job: Job) -> Result<()> {
        let Job { request: Request { model, session, work, .. }, sink, arrival: _ } = job;
        let interrupt = Interrupt::never();
        let vectors = match work {
            Work::Generate(Generate { answers, .. }) => {
                let engine = model.engine()?;
                for (index, answer) in answers.into_iter().enumerate() {
                    let sequence = Sequence::new(&engine.layout(session.kv_type)?, session.context_length)?;
                    let (model, engine, sink) = (Arc::clone(&model), Arc::clone(engine), sink.clone());
                    self.running.push(Running { model, engine, session, answer, sequence, sink, index });
                }
                return Ok(());
            }
            Work::Embed { texts, options } => embedding::embed(&model, &texts, &options, &interrupt)?,
            Work::Rank { texts } => embedding::rank(&model, &texts, &session, &interrupt)?,
        };
        sink.push(Event { vectors: Some(Vectors { data: vectors.0, dim: vectors.1 }), ..Event::default() });
        end(&sink, 0, Finish::Done(generate::FinishReason::Stop), Usage::default(), String::new());
        Ok(())
    }
}

impl Running {
    fn advance(&mut self, interrupt: &Interrupt) -> Result<bool> {
        let mut logits = vec![0.0; self.model.config().vocab_size];
        if self.answer.finish_reason().is_none() {
            if self.answer.wants().len() > self.sequence.context_length() - self.sequence.position() {
                let text = self.answer.end(generate::FinishReason::Length);
                self.done(text, Vec::new());
                return Ok(false);
            }
            let span = Span { sequence: &mut self.sequence, tokens: self.answer.wants(), want: Want::Last };
            match self.engine.pass(&mut [span], &mut logits, self.session.threads, interrupt) {
                Err(Error::Interrupted) => return Ok(true),
                result => result?,
            }
            let before = self.answer.generated().len();
            let (text, is_end) = match self.answer.accept(&logits)? {
                generate::Event::Piece(text) => (text, false),
                generate::Event::Silent => (String::new(), false),
                generate::Event::End { text, .. } => (text, true),
            };
            let token_ids = self.answer.generated()[before..].to_vec();
            if is_end {
                self.done(text, token_ids);
                return Ok(false);
            }
            self.sink.push(Event { index: self.index, text, token_ids, ..Event::default() });
            return Ok(true);
        }
        self.done(String::new(), Vec::new());
        Ok(false)
    }

    fn done(&self, text: String, token_ids: Vec<u32>) {
        let reason = self.answer.finish_reason().expect("it has ended");
        let usage = Usage {
            prompt_tokens: self.answer.prompt().len(),
            generated_tokens: self.answer.generated().len(),
            ..Usage::default()
        };
        let end = End { finish: Finish::Done(reason), usage, seed: self.answer.seed() };
        self.sink.push(Event { index: self.index, text, token_ids, end: Some(end), ..Event::default() });
    }
}

fn end(sink: &Sink, index: usize, finish: Finish, usage: Usage, text: String) {
    sink.push(Event { index, text, end: Some(End { finish, usage, seed: 0 }), ..Event::default() });
}
