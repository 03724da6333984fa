//! A scheduler without a thread: it computes on the thread of whoever calls it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::core::{Core, Job, Pin};
use super::request::{Limits, Request, Stats};
use super::thread::Load;
use super::ticket::{self, Ticket};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::session::SessionOptions;
use crate::threads::Interrupt;

/// Many requests at once, a step at a time. Of the limits those on what waits are not looked at.
pub struct Inline {
    core: Core,
    load: Load,
    limits: Limits,
}

impl Inline {
    /// One that has nothing to do.
    ///
    /// # Errors
    /// [`Error::Argument`] for a limit that lets nothing through.
    pub fn new(limits: Limits) -> Result<Self> {
        limits.check()?;
        Ok(Self { core: Core::new(limits), load: Load::default(), limits })
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn submit(&mut self, request: Request) -> Result<Ticket> {
        request.check(&self.limits)?;
        let n = request.work.n();
        self.load.enter(n, request.prompt_tokens());
        let (sink, ticket) = ticket::ring(n, Box::new(|| ()));
        self.core.add(Job { request, sink, arrival: Instant::now() }, &self.load);
        Ok(ticket)
    }

    /// See [`Scheduler::pin`](super::Scheduler::pin).
    ///
    /// # Errors
    /// As there.
    pub fn pin(&mut self, model: &Arc<Model>, session: SessionOptions, path: &Path, salt: u64) -> Result<usize> {
        let pin = Pin::load(model, session, path, salt)?;
        let n = pin.sequence.position();
        self.core.pin(pin)?;
        Ok(n)
    }

    /// Computes a step. Gives whether anything is left.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; then it may be called again.
    pub fn step(&mut self, interrupt: &Interrupt) -> Result<bool> {
        self.core.step(interrupt, &self.load);
        if interrupt.poll(0) { Err(Error::Interrupted) } else { Ok(!self.core.is_empty()) }
    }

    /// How it is doing.
    pub fn stats(&self) -> Stats {
        let queued_tokens = self.load.queued_tokens.load(Ordering::Relaxed);
        Stats { queued_tokens, ..self.core.stats() }
    }
}
