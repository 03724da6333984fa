//! One connection: bytes to requests, responses to bytes, and how long that may take.
//!
//! hyper speaks HTTP/1.1. What it leaves to us is who waits too long: a client between two requests, one that sends a head
//! byte by byte, one that does not read what it is sent; and one that is gone, which hyper does not notice while it has
//! the beginning of another request in its hands.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::Body;
use super::error::Refusal;
use super::limits;

/// How often a client that waits is looked after.
const TICK: Duration = Duration::from_millis(100);
/// What is read and thrown away after a last answer, so that it arrives: a system that gets bytes for a closed connection
/// tells the client, which then forgets what it has not read yet.
const LINGER_BYTES: usize = 64 << 20;
const LINGER: Duration = Duration::from_secs(2);
/// How long the first request of a connection may take when no more are wanted.
const FIRST: Duration = Duration::from_secs(1);
/// What is read at once.
const READ: usize = 8 << 10;

/// The other end.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Calls a method of either.
macro_rules! either {
    ($stream:expr, $method:ident($($argument:expr),*)) => {
        match $stream {
            Stream::Tcp(stream) => stream.$method($($argument),*),
            Stream::Unix(stream) => stream.$method($($argument),*),
        }
    };
}

impl Stream {
    fn fd(&self) -> RawFd {
        either!(self, as_raw_fd())
    }

    /// The address of the client; none on a socket file.
    pub fn peer(&self) -> Option<IpAddr> {
        if let Stream::Tcp(stream) = self { stream.peer_addr().ok().map(|peer| peer.ip()) } else { None }
    }

    /// Says that nothing more will be sent.
    fn shut_down(&self) {
        // SAFETY: the descriptor is open for as long as the stream.
        unsafe { libc::shutdown(self.fd(), libc::SHUT_WR) };
    }

    /// Throws away what still comes, until the client has read what it was sent and closes.
    pub async fn leave(&self) {
        self.shut_down();
        let mut bytes = [0; READ];
        while poll_fn(|cx| either!(self, poll_read_ready(cx))).await.is_ok() {
            match either!(self, try_read(&mut bytes)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Whether the client has closed its side, whatever of it is still to be read.
    fn is_closed(&self) -> bool {
        #[cfg(target_os = "linux")]
        const CLOSED: libc::c_short = libc::POLLRDHUP;
        #[cfg(not(target_os = "linux"))]
        const CLOSED: libc::c_short = libc::POLLHUP;
        let mut asked = libc::pollfd { fd: self.fd(), events: CLOSED, revents: 0 };
        // SAFETY: one `pollfd`, which lives through the call; it does not wait.
        let found = unsafe { libc::poll(&raw mut asked, 1, 0) };
        found > 0 && asked.revents & (CLOSED | libc::POLLHUP | libc::POLLERR) != 0
    }
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Nothing has come since the last answer.
    Idle(Instant),
    /// A head is coming.
    Head(Instant),
    /// A request is answered.
    Busy,
    /// All is said; what still comes is thrown away.
    Lingering(Instant),
}

/// What a connection and its requests tell each other.
pub struct State {
    stream: Stream,
    phase: Cell<Phase>,
    blocked: Cell<Option<Instant>>, // since when nothing of what is sent was taken
    unread: Cell<usize>,            // bytes that may be thrown away at the end
    has_read: Cell<bool>,           // anything
    closing: Cell<Option<Instant>>, // since when no more requests are wanted
}

impl State {
    /// Says that what the client still sends will not be read.
    pub fn leave_unread(&self) {
        self.unread.set(LINGER_BYTES);
    }

    /// The client.
    pub fn peer(&self) -> Option<IpAddr> {
        self.stream.peer()
    }

    /// Whether the client is out of time, or when to look again.
    fn look(&self, now: Instant) -> Result<Instant, ()> {
        let until = |end: Instant| if now < end { Ok(end) } else { Err(()) };
        if let Some(since) = self.closing.get()
            && !self.has_read.get()
        {
            return until(since + FIRST);
        }
        match self.phase.get() {
            Phase::Idle(since) => until(since + limits::KEEP_ALIVE),
            Phase::Head(since) => until(since + limits::HEAD_TIME),
            Phase::Lingering(since) => until(since + LINGER),
            Phase::Busy if self.stream.is_closed() => Err(()),
            Phase::Busy => {
                self.blocked.get().map_or(Ok(now), |since| until(since + limits::SLOW_READER))?;
                Ok(now + TICK)
            }
        }
    }
}

/// Serves a connection until it is closed. `handle` answers a request. `closing` is done when no more are wanted: the one
/// that is being answered still is.
pub async fn serve<H, F>(stream: Stream, handle: H, closing: impl Future<Output = ()>)
where
    H: Fn(Request<Incoming>, Rc<State>) -> F,
    F: Future<Output = Response<Body>>,
{
    let phase = Cell::new(Phase::Head(Instant::now()));
    let (blocked, unread, has_read, closing_since) = Default::default();
    let state = Rc::new(State { stream, phase, blocked, unread, has_read, closing: closing_since });
    let service = service_fn(|request| {
        state.phase.set(Phase::Busy);
        let answered = Answered(Rc::clone(&state));
        let response = handle(request, Rc::clone(&state));
        async move {
            let (parts, body) = response.await.into_parts();
            Ok::<_, Infallible>(Response::from_parts(parts, Sent { body, _answered: answered }))
        }
    });
    let mut builder = http1::Builder::new();
    builder.max_buf_size(limits::HEAD).half_close(false).header_read_timeout(None);
    let mut connection = pin!(builder.serve_connection(Watched(Rc::clone(&state)), service));
    let mut closing = pin!(closing);
    let mut is_told = false;
    let mut timer = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        if state.closing.get().is_none() && closing.as_mut().poll(cx).is_ready() {
            state.closing.set(Some(Instant::now()));
        }
        // What goes wrong is the client's doing, which hyper has told it if it could.
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // After that, since a request may be there already; and not before anything has come, when hyper would not look.
        if !is_told && state.closing.get().is_some() && state.has_read.get() {
            is_told = true;
            connection.as_mut().graceful_shutdown();
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        wait(&state, timer.as_mut(), cx)
    })
    .await;
    if let Phase::Head(since) = state.phase.get()
        && since.elapsed() >= limits::HEAD_TIME
    {
        let body = Refusal::new(408, "request_timeout", "the head of the request took too long").json().to_string();
        let text = format!(
            "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: \
             close\r\n\r\n{body}",
            body.len()
        );
        let _ = either!(&state.stream, try_write(text.as_bytes()));
    }
}

/// Ready when the client is gone or out of time.
fn wait(state: &State, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        let Ok(next) = state.look(Instant::now()) else { return Poll::Ready(()) };
        timer.as_mut().reset(next);
        ready!(timer.as_mut().poll(cx));
    }
}

/// Marks a request as answered when it is dropped.
struct Answered(Rc<State>);

impl Drop for Answered {
    fn drop(&mut self) {
        self.0.phase.set(Phase::Idle(Instant::now()));
    }
}

/// A body; its request is answered when it has been sent, or is dropped.
struct Sent {
    body: Body,
    _answered: Answered,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The stream as hyper sees it, watched.
struct Watched(Rc<State>);

impl Read for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ];
        let room = buffer.remaining().min(READ);
        let n = ready!(self.read(cx, &mut bytes[..room]))?;
        self.0.has_read.set(self.0.has_read.get() || n > 0);
        if n > 0 && matches!(self.0.phase.get(), Phase::Idle(_)) {
            self.0.phase.set(Phase::Head(Instant::now()));
        }
        buffer.put_slice(&bytes[..n]);
        Poll::Ready(Ok(()))
    }
}

impl Watched {
    fn read(&self, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(either!(&self.0.stream, poll_read_ready(cx)))?;
            match either!(&self.0.stream, try_read(bytes)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl Write for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let state = &self.0;
        loop {
            if either!(&state.stream, poll_write_ready(cx))?.is_pending() {
                state.blocked.set(state.blocked.get().or_else(|| Some(Instant::now())));
                return Poll::Pending;
            }
            match either!(&state.stream, try_write(bytes)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    state.blocked.set(None);
                    return Poll::Ready(result);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &self.0;
        if !matches!(state.phase.get(), Phase::Lingering(_)) {
            state.stream.shut_down();
            state.phase.set(Phase::Lingering(Instant::now()));
        }
        let mut bytes = [0; READ];
        while state.unread.get() > 0 {
            match ready!(self.read(cx, &mut bytes)) {
                Ok(0) | Err(_) => break,
                Ok(n) => state.unread.set(state.unread.get().saturating_sub(n)),
            }
        }
        Poll::Ready(Ok(()))
    }
}
