//! What is sent back: bytes, or a stream of them that is computed as it is read.
//!
//! A stream is a future that [sends](Sender::send) chunks. It goes on only when the connection has taken what it sent, so a
//! slow reader holds it up and nothing piles up here; and it is dropped with the connection, with all that it holds: that
//! is how a client that goes away cancels what it asked for.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};

/// The body of a response.
pub struct Body {
    kind: Kind,
    /// What lives as long as the body, and learns by being dropped that it is over.
    guard: Option<Box<dyn std::any::Any>>,
}

enum Kind {
    Whole(Option<Bytes>),
    Stream { future: Option<Pin<Box<dyn Future<Output = ()>>>>, chunk: Rc<RefCell<Option<Bytes>>> },
}

impl Body {
    pub fn empty() -> Self {
        Self { kind: Kind::Whole(None), guard: None }
    }

    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Whole(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty())), guard: None }
    }

    /// What `future` sends.
    pub fn stream<F: Future<Output = ()> + 'static>(future: impl FnOnce(Sender) -> F) -> Self {
        let chunk = Rc::default();
        let future = Box::pin(future(Sender(Rc::clone(&chunk))));
        Self { kind: Kind::Stream { future: Some(future), chunk }, guard: None }
    }

    pub fn guarded_by(mut self, guard: impl std::any::Any) -> Self {
        self.guard = Some(Box::new(guard));
        self
    }

    /// The next chunk; `None` at the end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let (future, chunk) = match &mut self.kind {
            Kind::Whole(bytes) => return Poll::Ready(bytes.take()),
            Kind::Stream { future, chunk } => (future, chunk),
        };
        if let Some(running) = future
            && running.as_mut().poll(cx).is_ready()
        {
            *future = None;
        }
        match chunk.borrow_mut().take() {
            Some(bytes) => Poll::Ready(Some(bytes)),
            None if future.is_none() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.get_mut().poll_chunk(cx).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Stream { .. } => SizeHint::default(),
        }
    }
}

/// Where a stream sends its chunks.
pub struct Sender(Rc<RefCell<Option<Bytes>>>);

impl Sender {
    /// Sends a chunk; done when it was taken.
    pub async fn send(&self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return;
        }
        *self.0.borrow_mut() = Some(bytes);
        // Whoever polls takes it when this is pending, and polls again when there is room for more.
        poll_fn(|_| if self.0.borrow().is_some() { Poll::Pending } else { Poll::Ready(()) }).await;
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_stream_goes_on_when_what_it_sent_was_taken() {
        let reached = Rc::new(RefCell::new(0));
        let seen = Rc::clone(&reached);
        let mut body = Body::stream(|sender| async move {
            for text in ["a", "", "b"] {
                sender.send(text).await;
                *seen.borrow_mut() += 1;
            }
        });
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(*reached.borrow(), 0);
        assert_eq!(body.poll_chunk(&mut cx), Poll::Ready(Some("a".into())));
        assert_eq!(*reached.borrow(), 0);
        assert_eq!(body.poll_chunk(&mut cx), Poll::Ready(Some("b".into())));
        assert_eq!(*reached.borrow(), 2);
        assert_eq!(body.poll_chunk(&mut cx), Poll::Ready(None));
        assert_eq!(*reached.borrow(), 3);
    }

    #[test]
    fn a_stream_that_is_dropped_drops_what_it_holds() {
        let held = Rc::new(());
        let inside = Rc::clone(&held);
        let mut body = Body::stream(|sender| async move {
            sender.send("a").await;
            drop(inside);
        });
        let _ = body.poll_chunk(&mut Context::from_waker(Waker::noop()));
        assert_eq!(Rc::strong_count(&held), 2);
        drop(body);
        assert_eq!(Rc::strong_count(&held), 1);
    }
}
