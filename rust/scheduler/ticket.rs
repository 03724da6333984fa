//! A ticket: the reader's end of what a request gives.
//!
//! Between the engine and a reader lies one pending event an answer: what is not taken in time is added to it. So a slow
//! reader gets larger pieces, not a longer queue; and an answer that is too far ahead of its reader pauses.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::request::{Event, TokenLogprob};
use crate::error::{Error, Result};
use crate::threads::Interrupt;

/// How often a reader that waits looks whether it is interrupted.
const LOOK: Duration = Duration::from_millis(20);

/// What the two ends share.
pub(super) struct Ring {
    pending: Mutex<Pending>,
    filled: Condvar,
    cancelled: AtomicBool,
    bytes: AtomicUsize,    // that were not taken
    is_waited: AtomicBool, // the engine waits for room
    wake_engine: Box<dyn Fn() + Send + Sync>,
}

struct Pending {
    events: Vec<Option<Event>>, // by answer
    left: usize,                // answers that have not ended
    next: usize,                // whose turn it is
    waker: Option<Waker>,
}

/// The engine's end.
#[derive(Clone)]
pub(super) struct Sink(Arc<Ring>);

/// What a request gives, for whoever asked. Dropping it cancels the request: the engine stops computing it with the step
/// that it is in, or before its turn.
pub struct Ticket(Arc<Ring>);

/// The two ends of what a request with `n` answers gives.
pub(super) fn ring(n: usize, wake_engine: Box<dyn Fn() + Send + Sync>) -> (Sink, Ticket) {
    let pending = Pending { events: (0..n).map(|_| None).collect(), left: n, next: 0, waker: None };
    let ring = Arc::new(Ring {
        pending: Mutex::new(pending),
        filled: Condvar::new(),
        cancelled: AtomicBool::new(false),
        bytes: AtomicUsize::new(0),
        is_waited: AtomicBool::new(false),
        wake_engine,
    });
    (Sink(Arc::clone(&ring)), Ticket(ring))
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// The event of the answer whose turn it is; `Some(None)` when all answers have ended.
    fn take(&mut self) -> Option<Option<Event>> {
        let n = self.events.len();
        for i in (0..n).map(|i| (self.next + i) % n) {
            if let Some(event) = self.events[i].take() {
                self.next = (i + 1) % n;
                self.left -= usize::from(event.end.is_some());
                return Some(Some(event));
            }
        }
        (self.left == 0).then_some(None)
    }
}

impl Sink {
    /// Adds to what an answer gives.
    pub fn push(&self, event: Event) {
        self.0.bytes.fetch_add(weight(&event), Ordering::SeqCst);
        let mut pending = self.0.lock();
        let index = event.index;
        match &mut pending.events[index] {
            Some(earlier) => merge(earlier, event),
            none => *none = Some(event),
        }
        let waker = pending.waker.take();
        drop(pending);
        self.0.filled.notify_one();
        waker.into_iter().for_each(Waker::wake);
    }

    /// Whether so many bytes were not taken yet; if so, the engine is woken when some are.
    pub fn is_full(&self, bytes: usize) -> bool {
        let is_full = || self.0.bytes.load(Ordering::SeqCst) >= bytes;
        if !is_full() {
            return false;
        }
        self.0.is_waited.store(true, Ordering::SeqCst);
        is_full() // the reader may have taken them just before it could know
    }

    /// Whether nobody wants it any more.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Relaxed)
    }
}

impl Ticket {
    /// The next event; `None` after the last one. Waits for it.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; then it may be called again.
    pub fn next(&mut self, interrupt: &Interrupt) -> Result<Option<Event>> {
        let mut pending = self.0.lock();
        loop {
            if let Some(event) = pending.take() {
                drop(pending);
                return Ok(self.taken(event));
            }
            (pending, _) = self.0.filled.wait_timeout(pending, LOOK).unwrap_or_else(PoisonError::into_inner);
            if pending.events.iter().all(Option::is_none) && pending.left > 0 {
                // Not under the lock: the check may run anything.
                drop(pending);
                if interrupt.poll(0) {
                    return Err(Error::Interrupted);
                }
                pending = self.0.lock();
            }
        }
    }

    /// The next event if there is one; `Some(None)` after the last one.
    pub fn try_next(&mut self) -> Option<Option<Event>> {
        let event = self.0.lock().take()?;
        Some(self.taken(event))
    }

    /// The same for a task, which is woken when there is one.
    pub fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut pending = self.0.lock();
        match pending.take() {
            Some(event) => {
                drop(pending);
                Poll::Ready(self.taken(event))
            }
            None => {
                pending.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Has the next event wake `waker`, at once if it is there.
    pub fn wake(&mut self, waker: &Waker) {
        let mut pending = self.0.lock();
        if pending.left == 0 || pending.events.iter().any(Option::is_some) {
            drop(pending);
            waker.wake_by_ref();
        } else {
            pending.waker = Some(waker.clone());
        }
    }

    /// What [`Ticket::next`] waits for, for an `async` block.
    pub async fn next_async(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Cancels the request, as dropping does, but lets the last events be taken.
    pub fn cancel(&self) {
        if !self.0.cancelled.swap(true, Ordering::Relaxed) {
            (self.0.wake_engine)();
        }
    }

    fn taken(&self, event: Option<Event>) -> Option<Event> {
        if let Some(event) = &event {
            self.0.bytes.fetch_sub(weight(event), Ordering::SeqCst);
            if self.0.is_waited.swap(false, Ordering::SeqCst) {
                (self.0.wake_engine)();
            }
        }
        event
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("left", &self.0.lock().left).finish_non_exhaustive()
    }
}

/// Adds a later event to one that was not taken.
fn merge(earlier: &mut Event, later: Event) {
    let Event { index: _, text, token_ids, logprobs, prompt_logprobs, vectors, end } = later;
    earlier.text.push_str(&text);
    earlier.token_ids.extend(token_ids);
    earlier.logprobs.extend(logprobs);
    earlier.prompt_logprobs.extend(prompt_logprobs);
    earlier.vectors = vectors.or(earlier.vectors.take());
    earlier.end = end.or(earlier.end.take());
}

/// Bytes that an event holds on to.
fn weight(event: &Event) -> usize {
    let of = |all: &[TokenLogprob]| all.iter().map(|one| 32 + 8 * one.top.len()).sum::<usize>();
    event.text.len() + 4 * event.token_ids.len() + of(&event.logprobs)
}
