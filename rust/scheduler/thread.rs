//! The thread of a scheduler, and what others see of it.
//!
//! The thread owns all that is computed. Others put requests into its inbox and look at what it shows; neither ever waits
//! for a step to end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::core::{Core, Job, Pin};
use super::request::{Finish, Limits, Rejected, Request, Stats};
use super::ticket::{self, Ticket};
use crate::error::{Error, Result};
use crate::mapping::guarded;
use crate::model::Model;
use crate::session::SessionOptions;
use crate::threads::{self, Interrupt};

/// A second panic within so long is one too many.
const CALM: Duration = Duration::from_secs(60);

/// How often others are shown how it is doing, while it is busy: it takes a walk through all that is kept.
const SHOW: Duration = Duration::from_millis(20);

/// Computes requests on a thread of its own. When it is dropped, what has not ended is cancelled.
///
/// A child of `fork` has the scheduler and not the thread: there it takes no requests.
pub struct Scheduler(Arc<Shared>);

/// What the thread and the others share.
pub(super) struct Shared {
    limits: Limits,
    process: u32, // that has the thread
    inbox: Mutex<Inbox>,
    posted: Condvar,
    stats: Mutex<Stats>,
    load: Load,
}

#[derive(Default)]
struct Inbox {
    jobs: Vec<Job>,
    pins: Vec<Pin>,
    changed: bool, // a ticket was dropped, or a reader has made room
    phase: Phase,
    ended: bool, // the thread has
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Default)]
enum Phase {
    #[default]
    Open,
    Draining,
    Stopping,
}

/// What waits, and how quickly it goes.
#[derive(Default)]
pub(super) struct Load {
    /// Answers that wait.
    pub waiting: AtomicUsize,
    /// Tokens of their prompts.
    pub queued_tokens: AtomicUsize,
    /// Time from one answer's end to the next while some wait, in microseconds.
    pub interval: AtomicU64,
    rejected_queue: AtomicU64,
    rejected_tokens: AtomicU64,
    has_crashed: AtomicBool,
}

impl Load {
    /// So many answers with so many tokens wait no longer.
    pub fn leave(&self, n: usize, tokens: usize) {
        self.waiting.fetch_sub(n, Ordering::SeqCst);
        self.queued_tokens.fetch_sub(tokens, Ordering::SeqCst);
    }

    /// They wait again.
    pub fn enter(&self, n: usize, tokens: usize) {
        self.waiting.fetch_add(n, Ordering::SeqCst);
        self.queued_tokens.fetch_add(tokens, Ordering::SeqCst);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread look again.
    fn wake(&self) {
        // In a child of `fork` there is no thread, and the lock may be one that it held.
        if process::id() == self.process {
            self.lock().changed = true;
            self.posted.notify_all();
        }
    }
}

impl Scheduler {
    /// Starts one.
    ///
    /// # Errors
    /// [`Error::Argument`] for a limit that lets nothing through, [`Error::OutOfMemory`] if no thread can be had.
    pub fn start(limits: Limits) -> Result<Self> {
        limits.check()?;
        let shared = Arc::new(Shared {
            limits,
            process: process::id(),
            inbox: Mutex::default(),
            posted: Condvar::new(),
            stats: Mutex::default(),
            load: Load::default(),
        });
        let of_thread = Arc::clone(&shared);
        threads::spawn("llama_rs-engine".into(), move || run(&of_thread))
            .map_err(|_| Error::OutOfMemory { bytes: 0, what: "a thread" })?;
        Ok(Self(shared))
    }

    /// Puts a request into the queue; never waits.
    ///
    /// # Errors
    /// See [`Rejected`].
    pub fn submit(&self, request: Request) -> Result<Ticket, Rejected> {
        let Shared { limits, load, .. } = &*self.0;
        if process::id() != self.0.process {
            let what = "the engine was started before this process was forked: start another one";
            return Err(Rejected::Invalid(Error::Argument(what.into())));
        }
        if self.0.lock().phase != Phase::Open {
            return Err(Rejected::Stopping);
        }
        request.check(limits).map_err(Rejected::Invalid)?;
        let n = request.work.n();
        let tokens = request.prompt_tokens();
        // One that is alone may be of any size.
        let take = |of: &AtomicUsize, n: usize, most: usize| {
            let fits = |now: usize| now.checked_add(n).filter(|&sum| now == 0 || sum <= most);
            of.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok()
        };
        if !take(&load.waiting, n, limits.max_queue) {
            load.rejected_queue.fetch_add(1, Ordering::Relaxed);
            return Err(Rejected::QueueFull { retry_after: self.retry_after() });
        }
        if !take(&load.queued_tokens, tokens, limits.max_queued_tokens) {
            load.waiting.fetch_sub(n, Ordering::SeqCst);
            load.rejected_tokens.fetch_add(1, Ordering::Relaxed);
            return Err(Rejected::TokensFull { retry_after: self.retry_after() });
        }
        let shared = Arc::downgrade(&self.0);
        let wake = move || shared.upgrade().into_iter().for_each(|shared| shared.wake());
        let (sink, ticket) = ticket::ring(n, Box::new(wake));
        let mut inbox = self.0.lock();
        if inbox.phase != Phase::Open || inbox.ended {
            drop(inbox);
            load.waiting.fetch_sub(n, Ordering::SeqCst);
            load.queued_tokens.fetch_sub(tokens, Ordering::SeqCst);
            return Err(Rejected::Stopping);
        }
        inbox.jobs.push(Job { request, sink, arrival: Instant::now() });
        drop(inbox);
        self.0.posted.notify_all();
        Ok(ticket)
    }

    /// Keeps a saved session (`Session::save`, a prompt cache) for all prompts of this salt that begin with it, for good. It
    /// is mapped: its pages are in memory once for all processes that do the same. Gives how many tokens it has.
    ///
    /// # Errors
    /// As for [`Session::load_prefix`](crate::Session::load_prefix); what is damaged is found here.
    pub fn pin(&self, model: &Arc<Model>, session: SessionOptions, path: &Path, salt: u64) -> Result<usize> {
        let pin = Pin::load(model, session, path, salt)?;
        model.engine()?.layout(session.kv_type)?;
        let n = pin.sequence.position();
        if process::id() == self.0.process {
            let mut inbox = self.0.lock();
            inbox.pins.push(pin);
            inbox.changed = true;
            self.0.posted.notify_all();
        }
        Ok(n)
    }

    /// When a request may be taken that is not taken now.
    pub fn retry_after(&self) -> Duration {
        let load = &self.0.load;
        let interval = Duration::from_micros(load.interval.load(Ordering::Relaxed));
        // Half of the queue: who comes back when one place is free finds it taken.
        let ahead = load.waiting.load(Ordering::Relaxed).max(2) as u32 / 2;
        (interval * ahead).clamp(Duration::from_millis(100), Duration::from_secs(60))
    }

    /// How it was doing after the last step. Never waits for one.
    pub fn stats(&self) -> Stats {
        if process::id() != self.0.process {
            return Stats::default();
        }
        let load = &self.0.load;
        let mut stats = self.0.stats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stats.waiting = load.waiting.load(Ordering::Relaxed);
        stats.queued_tokens = load.queued_tokens.load(Ordering::Relaxed);
        stats.rejected_queue = load.rejected_queue.load(Ordering::Relaxed);
        stats.rejected_tokens = load.rejected_tokens.load(Ordering::Relaxed);
        stats
    }

    /// Whether nothing is computed and nothing waits.
    pub fn is_idle(&self) -> bool {
        let stats = self.stats();
        stats.running == 0 && stats.waiting == 0
    }

    /// Whether it has stopped because of bugs of ours.
    pub fn has_crashed(&self) -> bool {
        self.0.load.has_crashed.load(Ordering::Relaxed)
    }

    /// Takes no new requests from now on; what it has goes on.
    pub fn drain(&self) {
        self.to_phase(Phase::Draining);
    }

    /// Takes no new requests and cancels those that it has.
    pub fn stop(&self) {
        self.to_phase(Phase::Stopping);
    }

    fn to_phase(&self, phase: Phase) {
        if process::id() == self.0.process {
            let mut inbox = self.0.lock();
            if inbox.phase < phase {
                inbox.phase = phase;
            }
            inbox.changed = true;
            self.0.posted.notify_all();
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

/// What the thread does.
fn run(shared: &Shared) {
    let _guarded = guarded();
    let mut core = Core::new(shared.limits);
    let mut last_panic: Option<Instant> = None;
    let mut shown = Instant::now();
    loop {
        let mut inbox = shared.lock();
        while inbox.jobs.is_empty() && !inbox.changed && !core.is_busy() {
            inbox = match core.wait_until() {
                None => shared.posted.wait(inbox).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    let timeout = time.saturating_duration_since(Instant::now());
                    inbox.changed = true; // look again then
                    shared.posted.wait_timeout(inbox, timeout).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        inbox.changed = false;
        let (jobs, pins, phase) = (std::mem::take(&mut inbox.jobs), std::mem::take(&mut inbox.pins), inbox.phase);
        drop(inbox);
        for pin in pins {
            let _ = core.pin(pin); // that the model can be computed with is known
        }
        jobs.into_iter().for_each(|job| core.add(job, &shared.load));
        if phase == Phase::Stopping {
            core.end_all(&Finish::Cancelled, &shared.load);
        }
        let stop = || shared.lock().phase == Phase::Stopping;
        let step = catch_unwind(AssertUnwindSafe(|| core.step(&Interrupt::new(&stop), &shared.load)));
        if step.is_err() {
            core.crashed();
            let again = last_panic.replace(Instant::now()).is_some_and(|last| last.elapsed() < CALM);
            if again {
                shared.load.has_crashed.store(true, Ordering::Relaxed);
                shared.lock().phase = Phase::Stopping;
            }
        }
        if !core.is_busy() || shown.elapsed() >= SHOW {
            *shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = core.stats();
            shown = Instant::now();
        }
        let mut inbox = shared.lock();
        if inbox.phase == Phase::Stopping && inbox.jobs.is_empty() && core.is_empty() {
            inbox.ended = true;
            return;
        }
    }
}

impl Limits {
    /// # Errors
    /// [`Error::Argument`].
    pub(super) fn check(&self) -> Result<()> {
        let limits = [
            ("parallel", self.parallel as u64),
            ("kv_bytes", self.kv_bytes),
            ("max_rows", self.max_rows as u64),
            ("ring_bytes", self.ring_bytes as u64),
        ];
        for (name, value) in limits {
            if value == 0 {
                return Err(Error::Argument(format!("{name} is 0, it must be 1 or more")));
            }
        }
        Ok(())
    }
}
