//! What the scheduler computes for one HTTP request: one ticket or several, as one sequence of events.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::error::{Answer, Refusal};
use super::record::Record;
use super::service::Call;
use super::version::Version;
use crate::generate::FinishReason;
use crate::scheduler::{Event, Finish, Rejected, Request, Ticket, Usage, Work};

/// What is computed. Dropping it cancels all of it.
pub struct Runs {
    tickets: Vec<(usize, Option<Ticket>)>, // and the index of its first answer
    next: usize,                           // whose turn it is
    record: Rc<Record>,
}

impl Runs {
    /// Submits what there is to do, in order: all of it or nothing.
    pub fn submit(call: &Call, version: &Arc<Version>, works: Vec<Work>) -> Answer<Self> {
        let (mut tickets, mut index) = (Vec::new(), 0);
        for work in works {
            let n = if let Work::Generate(generate) = &work { generate.answers.len() } else { 1 };
            let mut request = Request::new(&version.model, version.session, work);
            (request.client, request.salt) = (call.client, call.salt());
            request.deadline = call.deadline;
            let ticket = call.service.scheduler.submit(request).map_err(|rejected| {
                let refusal = Refusal::from(rejected);
                if refusal.status == 429 {
                    call.service.shared.metrics.rejected.add(format!("reason=\"{}\"", refusal.code), 1);
                }
                refusal
            })?;
            tickets.push((index, Some(ticket)));
            index += n;
        }
        Ok(Self { tickets, next: 0, record: Rc::clone(&call.record) })
    }

    /// The next event of any answer; `None` when all have ended. What went wrong with one ends all.
    pub async fn next(&mut self) -> Option<Answer<Event>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// An event that is there already.
    pub async fn ready(&mut self) -> Option<Answer<Event>> {
        poll_fn(|cx| match self.poll_next(cx) {
            Poll::Ready(event) => Poll::Ready(event),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Answer<Event>>> {
        let n = self.tickets.len();
        let mut is_over = true;
        for i in (0..n).map(|i| (self.next + i) % n) {
            let (first, slot) = &mut self.tickets[i];
            let Some(ticket) = slot else { continue };
            match Pin::new(ticket).poll_next(cx) {
                Poll::Ready(Some(mut event)) => {
                    event.index += *first;
                    self.next = i + 1;
                    self.record.event(&event);
                    return Poll::Ready(Some(match event.end.as_ref().map(|end| &end.finish) {
                        None | Some(Finish::Done(_)) => Ok(event),
                        Some(finish) => Err(Refusal::from(finish)),
                    }));
                }
                Poll::Ready(None) => *slot = None,
                Poll::Pending => is_over = false,
            }
        }
        if is_over { Poll::Ready(None) } else { Poll::Pending }
    }

    /// All answers, whole.
    pub async fn collect(mut self) -> Answer<Vec<Whole>> {
        let mut answers: Vec<Whole> = Vec::new();
        while let Some(event) = self.next().await {
            let event = event?;
            while answers.len() <= event.index {
                answers.push(Whole::default());
            }
            answers[event.index].add(event);
        }
        Ok(answers)
    }
}

/// An answer, whole.
#[derive(Default)]
pub struct Whole {
    pub event: Event,
}

impl Whole {
    fn add(&mut self, later: Event) {
        let e = &mut self.event;
        e.index = later.index;
        e.text.push_str(&later.text);
        e.token_ids.extend(later.token_ids);
        e.logprobs.extend(later.logprobs);
        e.prompt_logprobs.extend(later.prompt_logprobs);
        e.vectors = later.vectors.or(e.vectors.take());
        e.end = later.end.or(e.end.take());
    }

    pub fn usage(&self) -> Usage {
        self.event.end.as_ref().map_or_else(Usage::default, |end| end.usage)
    }
}

/// `stop` or `length`.
pub fn finish_reason(event: &Event) -> Option<FinishReason> {
    match event.end.as_ref()?.finish {
        Finish::Done(reason) => Some(reason),
        _ => None,
    }
}

impl From<Rejected> for Refusal {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::QueueFull { retry_after } => {
                Self::new(429, "queue_full", "too many requests wait: try again later").retry_after(retry_after)
            }
            Rejected::TokensFull { retry_after } => {
                let message = "the prompts that wait are too long together: try again later";
                Self::new(429, "queue_tokens_full", message).retry_after(retry_after)
            }
            Rejected::Stopping => Self::draining(),
            Rejected::Invalid(error) => error.into(),
        }
    }
}

impl From<&Finish> for Refusal {
    fn from(finish: &Finish) -> Self {
        match finish {
            Finish::Done(_) | Finish::Cancelled => Self::draining(),
            Finish::Deadline => Self::new(504, "deadline_exceeded", "the answer was not complete in time"),
            Finish::SlowReader => Self::new(408, "slow_client", "the answer was not read for too long"),
            Finish::Failed(error) => (&**error).into(),
            Finish::Crashed => Self::new(500, "internal", "something went wrong in the server while this was computed"),
        }
    }
}

impl Refusal {
    /// The server takes no new requests.
    pub fn draining() -> Self {
        Self::new(503, "draining", "the server is shutting down").retry_after(Duration::from_secs(1))
    }
}

/// How much is to be computed for how many, as clients are told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Total {
    pub prompt: usize,
    pub cached: usize,
    pub generated: usize,
    /// Of the answer that took longest.
    pub longest: Usage,
}

impl Total {
    /// Adds an answer; the tokens of a prompt count once for all of its answers.
    pub fn add(&mut self, usage: &Usage, is_first_of_prompt: bool) {
        if is_first_of_prompt {
            self.prompt += usage.prompt_tokens;
            self.cached += usage.cached_tokens;
        }
        self.generated += usage.generated_tokens;
        if usage.generation >= self.longest.generation {
            self.longest = *usage;
        }
    }
}

/// Milliseconds since a request came.
pub fn milliseconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 1e6).round() / 1e3
}
