//! An answer as a stream of events, in whatever dialect.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use hyper::Response;
use tokio::time::timeout;

use super::body::{Body, Sender};
use super::error::{Answer, Refusal};
use super::limits;
use super::runs::{Runs, Total};
use super::service::{Call, Service, events};
use super::sse;
use crate::scheduler::Event;

/// How a dialect writes a stream. Each appends to what is sent next; what it appends in one go arrives together.
pub trait Dialect {
    /// Before anything else.
    fn begin(&mut self, _out: &mut String) {}
    /// What became of an answer.
    fn event(&mut self, event: Event, out: &mut String) -> Answer<()>;
    /// After the end of all answers.
    fn end(&mut self, total: &Total, out: &mut String);
    /// Instead of the rest.
    fn error(&mut self, refusal: &Refusal, out: &mut String) {
        sse::write(out, &refusal.json());
    }
}

/// The response that streams `runs`. `per_prompt` answers belong to one prompt.
pub fn respond(call: &Call, runs: Runs, per_prompt: usize, dialect: impl Dialect + 'static) -> Response<Body> {
    let (service, record) = (Rc::clone(&call.service), Rc::clone(&call.record));
    events(Body::stream(move |sender| async move {
        let (mut dialect, mut out) = (dialect, String::new());
        if let Err(refusal) = stream(&service, &sender, runs, per_prompt, &mut dialect, &mut out).await {
            record.code.set(refusal.code);
            if refusal.code == "model_changed" {
                service.shared.registry.fail_changed();
            }
            dialect.error(&refusal, &mut out);
        }
        sender.send(out).await;
    }))
}

async fn stream(
    service: &Service,
    sender: &Sender,
    mut runs: Runs,
    per_prompt: usize,
    dialect: &mut impl Dialect,
    out: &mut String,
) -> Answer<()> {
    dialect.begin(out);
    sender.send(std::mem::take(out)).await;
    let mut total = Total::default();
    let mut over = pin!(service.is_over());
    loop {
        let next = {
            let mut next = pin!(timeout(limits::PING, runs.next()));
            poll_fn(|cx| match next.as_mut().poll(cx) {
                Poll::Ready(next) => Poll::Ready(Ok(next)),
                Poll::Pending => over.as_mut().poll(cx).map(|()| Err(Refusal::draining())),
            })
            .await?
        };
        let Ok(next) = next else {
            sender.send(sse::PING).await;
            continue;
        };
        let Some(mut event) = next else { break };
        loop {
            let this = event?;
            if let Some(end) = &this.end {
                total.add(&end.usage, this.index.is_multiple_of(per_prompt));
            }
            dialect.event(this, out)?;
            // What has come in the meantime goes with it.
            match runs.ready().await {
                Some(next) => event = next,
                None => break,
            }
        }
        sender.send(std::mem::take(out)).await;
    }
    dialect.end(&total, out);
    Ok(())
}
