//! A server: listening, accepting, and the end.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use super::connection::{self, Stream};
use super::error::Refusal;
use super::log::Log;
use super::metrics::Metrics;
use super::registry::Registry;
use super::service::{CONNECTIONS, Phase, Service, Shared};
use super::version::Version;
use super::{Config, Listen, limits};
use crate::error::{Error, Result};
use crate::scheduler::Scheduler;
use crate::threads;

/// Connections that the system holds for us until they are accepted.
const BACKLOG: i32 = 1024;
/// Requests that are over and that nobody has been told of.
const SPANS: usize = 1024;
/// How long what was said last may take to be sent.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A server at work. Dropping it ends it at once.
pub struct Server {
    shared: Arc<Shared>,
    scheduler: Arc<Scheduler>,
    phase: Arc<watch::Sender<Phase>>,
    address: Address,
    done: Mutex<Receiver<()>>,
    spans: Mutex<Receiver<String>>,
    process: u32,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "http://{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Listener::Tcp(listener) => Listener::Tcp(listener.try_clone()?),
            Listener::Unix(listener) => Listener::Unix(listener.try_clone()?),
        })
    }

    /// A connection that waits already.
    fn accept_now(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                tokio::net::TcpStream::from_std(stream).map(Stream::Tcp)
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                tokio::net::UnixStream::from_std(stream).map(Stream::Unix)
            }
        }
    }
}

impl Server {
    /// Listens, and serves `versions`, the default one first.
    ///
    /// # Errors
    /// [`Error::File`], of the address, if it cannot be listened on; [`Error::Argument`] for a limit that lets nothing
    /// through; [`Error::OutOfMemory`] if no threads can be had.
    pub fn start(config: Config, versions: Vec<Version>) -> Result<Self> {
        let (listener, address) = listen(&config.listen)?;
        let scheduler = Arc::new(Scheduler::start(config.limits)?);
        let no_thread = |_| Error::OutOfMemory { bytes: 0, what: "a thread" };
        let log = Log::new(config.access_log).map_err(no_thread)?;
        let registry = Registry::new(versions.into_iter().map(Arc::new).collect());
        let room = Arc::new(Semaphore::new(limits::BODIES >> 10));
        let (traces, spans) = sync_channel(SPANS);
        let traces = Some(traces).filter(|_| config.traces);
        let shared = Arc::new(Shared { config, metrics: Metrics::default(), log, registry, traces, room });
        let (phase, watched) = watch::channel(Phase::Open);
        let (sender, done) = sync_channel(1);
        let (of_thread, engine) = (Arc::clone(&shared), Arc::clone(&scheduler));
        threads::spawn("llama_rs-http".into(), move || {
            let _sender = sender; // dropped at the end, whatever ends it
            run(listener, &of_thread, &engine, &watched);
        })
        .map_err(no_thread)?;
        let (done, spans, process) = (Mutex::new(done), Mutex::new(spans), std::process::id());
        Ok(Self { shared, scheduler, phase: Arc::new(phase), address, done, spans, process })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for the end, at most so long. Gives whether it has come.
    pub fn wait(&self, at_most: Duration) -> bool {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        !matches!(done.recv_timeout(at_most), Err(RecvTimeoutError::Timeout))
    }

    /// Begins the end: who asks whether requests should be sent here is told no; after `grace` nobody new is listened to;
    /// what is being answered is finished, if that takes no longer than `patience`.
    pub fn drain(&self, grace: Duration, patience: Duration) {
        let (phase, scheduler) = (Arc::clone(&self.phase), Arc::clone(&self.scheduler));
        let drain = move || {
            raise(&phase, Phase::Closing);
            std::thread::sleep(grace);
            raise(&phase, Phase::Draining);
            std::thread::sleep(patience);
            raise(&phase, Phase::Over);
            scheduler.stop();
        };
        if threads::spawn("llama_rs-drain".into(), drain).is_err() {
            self.stop();
        }
    }

    /// Ends it now.
    pub fn stop(&self) {
        raise(&self.phase, Phase::Over);
        self.scheduler.stop();
    }

    /// What there is to say of the next request that is over, as JSON, if one is in that time.
    pub fn next_span(&self, at_most: Duration) -> Option<String> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(at_most).ok()
    }

    /// Keeps a saved session for all prompts that begin with it, see [`Scheduler::pin`]; whoever has a key finds it. It is
    /// one of the model that is served, of which there is one. Gives how many tokens it has.
    ///
    /// # Errors
    /// As for [`Scheduler::pin`].
    pub fn pin(&self, path: &Path) -> Result<usize> {
        let config = &self.shared.config;
        let clients = if config.share_prefixes { 0 } else { config.api_keys.len() as u64 };
        let mut tokens = 0;
        for version in self.shared.registry.versions() {
            for salt in clients.min(1)..=clients {
                tokens = self.scheduler.pin(&version.model, version.session, path, salt)?;
            }
        }
        Ok(tokens)
    }

    /// Whether the engine has ended because of a bug of ours.
    pub fn has_crashed(&self) -> bool {
        self.scheduler.has_crashed()
    }

    /// What is served, to be changed.
    pub fn registry(&self) -> &Registry {
        &self.shared.registry
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return; // its threads are those of the process that this one was forked from
        }
        self.stop();
        let _ = self.wait(2 * LAST_WORDS);
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Phases only go on.
fn raise(phase: &watch::Sender<Phase>, to: Phase) {
    phase.send_if_modified(|phase| {
        let is_later = to > *phase;
        *phase = to.max(*phase);
        is_later
    });
}

fn listen(to: &Listen) -> Result<(Listener, Address)> {
    match to {
        Listen::Tcp(host, port) => {
            let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            let failed = |source| Error::File { path: shown.clone().into(), source };
            let addresses = (host.as_str(), *port).to_socket_addrs().map_err(failed)?;
            let listener = TcpListener::bind(addresses.collect::<Vec<_>>().as_slice()).map_err(failed)?;
            set_backlog(&listener);
            listener.set_nonblocking(true).map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            Ok((Listener::Tcp(listener), Address::Tcp(address)))
        }
        Listen::Unix(path) => {
            let failed = |source| Error::File { path: path.clone(), source };
            // One that nobody listens on is left over from a process that was killed.
            let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
            if is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
                let _ = std::fs::remove_file(path);
            }
            let listener = UnixListener::bind(path).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            Ok((Listener::Unix(listener), Address::Unix(path.clone())))
        }
    }
}

/// The standard library asks for 128, which a burst of clients fills.
fn set_backlog(listener: &TcpListener) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is that of an open socket that listens; to ask again only changes the length of its queue.
    unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) };
}

/// What the thread does.
fn run(listener: Listener, shared: &Arc<Shared>, scheduler: &Arc<Scheduler>, phase: &watch::Receiver<Phase>) {
    let mut builder = runtime::Builder::new_current_thread();
    // One thread prepares requests, in their order.
    let runtime = builder.enable_io().enable_time().max_blocking_threads(1).thread_name("llama_rs-prepare").build();
    let Ok(runtime) = runtime else { return };
    let service =
        Rc::new(Service { shared: Arc::clone(shared), scheduler: Arc::clone(scheduler), phase: phase.clone() });
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        if accept(listener, &service).await.is_ok() {
            finish(&service).await;
        }
    });
    drop(local); // and with it whatever connections there still are
    runtime.shutdown_timeout(LAST_WORDS);
}

/// Until the last connection is closed, or the time is up.
async fn finish(service: &Service) {
    while CONNECTIONS.get() > 0 && *service.phase.borrow() < Phase::Over {
        sleep(Duration::from_millis(10)).await;
    }
    let closed = async {
        while CONNECTIONS.get() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = timeout(LAST_WORDS, closed).await;
}

/// Accepts connections until no more are wanted.
async fn accept(listener: Listener, service: &Rc<Service>) -> io::Result<()> {
    enum Accepting {
        Tcp(tokio::net::TcpListener),
        Unix(tokio::net::UnixListener),
    }
    let accepting = match listener.try_clone()? {
        Listener::Tcp(listener) => Accepting::Tcp(tokio::net::TcpListener::from_std(listener)?),
        Listener::Unix(listener) => Accepting::Unix(tokio::net::UnixListener::from_std(listener)?),
    };
    let by_address: Rc<std::cell::RefCell<HashMap<IpAddr, usize>>> = Rc::default();
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let mut draining = pin!(reached(service, Phase::Draining));
    let mut is_draining = false;
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            let stream = match &accepting {
                Accepting::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
                Accepting::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
            };
            (place, stream)
        };
        let mut next = pin!(next);
        let next = poll_fn(|cx| {
            is_draining = is_draining || draining.as_mut().poll(cx).is_ready();
            if is_draining { Poll::Ready(None) } else { next.as_mut().poll(cx).map(Some) }
        });
        let (place, stream) = match next.await {
            Some(next) => next,
            // Whose connection the system has taken is answered, too.
            None => match (Arc::clone(&places).try_acquire_owned(), listener.accept_now()) {
                (Ok(place), Ok(stream)) => (Ok(place), Ok(stream)),
                _ => return Ok(()),
            },
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(_) => {
                // Out of descriptors, most likely: those who are connected will leave some.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Stream::Tcp(stream) = &stream {
            let _ = stream.set_nodelay(true);
        }
        let peer = stream.peer();
        if let Some(peer) = peer
            && CONNECTIONS.get() >= limits::CONNECTIONS / 2
            && by_address.borrow().get(&peer).is_some_and(|n| *n >= limits::PER_ADDRESS)
        {
            tokio::task::spawn_local(async move {
                refuse(&stream);
                let _ = timeout(LAST_WORDS, stream.leave()).await;
                drop(place);
            });
            continue;
        }
        if let Some(peer) = peer {
            *by_address.borrow_mut().entry(peer).or_default() += 1;
        }
        let (service, by_address) = (Rc::clone(service), Rc::clone(&by_address));
        CONNECTIONS.set(CONNECTIONS.get() + 1);
        tokio::task::spawn_local(async move {
            let handled = Rc::clone(&service);
            let handle = move |request, state| Rc::clone(&handled).handle(request, state);
            let over = reached(&service, Phase::Over);
            let mut serving = pin!(connection::serve(stream, handle, reached(&service, Phase::Draining)));
            // Those that stream say so at the end; others are cut off.
            let mut cut = pin!(async {
                over.await;
                sleep(LAST_WORDS / 2).await;
            });
            poll_fn(|cx| match serving.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => cut.as_mut().poll(cx),
            })
            .await;
            if let Some(peer) = peer
                && let Some(n) = by_address.borrow_mut().get_mut(&peer)
            {
                *n -= 1;
            }
            if let Some(peer) = peer
                && by_address.borrow().get(&peer) == Some(&0)
            {
                by_address.borrow_mut().remove(&peer);
            }
            CONNECTIONS.set(CONNECTIONS.get() - 1);
            drop(place);
        });
    }
}

/// Done when the end is that far.
async fn reached(service: &Service, phase: Phase) {
    let mut watched = service.phase.clone();
    let _ = watched.wait_for(|now| *now >= phase).await;
}

/// Tells a client that it has too many connections.
fn refuse(stream: &Stream) {
    let body = Refusal::new(503, "too_many_connections", "too many connections from this address").json().to_string();
    let text = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\nRetry-After: \
         1\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    if let Stream::Tcp(stream) = stream {
        let _ = stream.try_write(text.as_bytes());
    }
}
