//! A client that measures: so many requests of a server, and when what came.
//!
//! One thread, whatever the number of clients, since it shares the machine with what it measures. Closed, a number of
//! clients each ask again when they have their answer; open, requests come at times that do not depend on the answers, and
//! what is late counts from when it should have been sent.

use std::cell::RefCell;
use std::net::ToSocketAddrs;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::runtime;
use tokio::task::LocalSet;
use tokio::time::{sleep_until, timeout};

use super::json::Json;
use crate::error::{Error, Result};
use crate::sampling::Rng;
use crate::threads::Interrupt;

/// What to ask, of whom, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of the server.
    pub host: String,
    /// Of the server.
    pub port: u16,
    /// Of the route.
    pub path: String,
    /// The API key to send.
    pub key: Option<String>,
    /// What is asked, in turns.
    pub bodies: Vec<String>,
    /// How often in all.
    pub requests: usize,
    /// When.
    pub load: Load,
    /// The share of requests whose client goes away when half of its answer has come.
    pub cancel: f64,
    /// The most that an answer may take.
    pub timeout: Duration,
    /// Of the times of an open loop, and of who goes away.
    pub seed: u64,
}

/// How requests come.
#[derive(Debug, Clone, Copy)]
pub enum Load {
    /// So many clients, each with one request at a time.
    Closed(usize),
    /// So many a second, at random times.
    Open(f64),
}

/// What became of a request. Times are seconds since the beginning.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// When it was to be sent.
    pub intended: f64,
    /// When what came of the answer came, of each piece of text.
    pub pieces: Vec<f64>,
    /// When there was nothing more.
    pub end: f64,
    /// 0 if there was no answer.
    pub status: u16,
    /// As the server counts them.
    pub prompt_tokens: usize,
    /// Of these, tokens that it had already.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Whether its client went away.
    pub is_cancelled: bool,
    /// What went wrong.
    pub error: Option<String>,
}

/// Does what is planned.
///
/// # Errors
/// [`Error::File`] if the host is not known, [`Error::Interrupted`], [`Error::OutOfMemory`].
pub fn run(plan: &Plan, interrupt: &Interrupt) -> Result<Vec<Sample>> {
    let name = format!("{}:{}", plan.host, plan.port);
    let failed = |source| Error::File { path: name.clone().into(), source };
    let address = (plan.host.as_str(), plan.port).to_socket_addrs().map_err(failed)?.next();
    let address = address.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async {
        let all = Rc::new(All {
            plan: plan.clone(),
            address,
            start: Instant::now(),
            next: RefCell::new((0, Rng::new(plan.seed))),
            samples: RefCell::default(),
        });
        let clients: Vec<_> = match plan.load {
            Load::Closed(n) => (0..n).map(|_| tokio::task::spawn_local(closed(Rc::clone(&all)))).collect(),
            Load::Open(rate) => vec![tokio::task::spawn_local(open(Rc::clone(&all), rate))],
        };
        while clients.iter().any(|client| !client.is_finished()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if interrupt.poll(0) {
                return Err(Error::Interrupted);
            }
        }
        Ok(all.samples.take())
    });
    drop(local);
    result
}

struct All {
    plan: Plan,
    address: std::net::SocketAddr,
    start: Instant,
    next: RefCell<(usize, Rng)>,
    samples: RefCell<Vec<Sample>>,
}

impl All {
    fn now(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// The number of the next request, and whether its client goes away.
    fn next(&self) -> Option<(usize, bool)> {
        let (n, rng) = &mut *self.next.borrow_mut();
        if *n == self.plan.requests {
            return None;
        }
        *n += 1;
        Some((*n - 1, rng.next_f64() < self.plan.cancel))
    }
}

/// A client that asks again when it has its answer.
async fn closed(all: Rc<All>) {
    let mut connection = None;
    while let Some((i, cancels)) = all.next() {
        let intended = all.now();
        let sample = ask(&all, i, cancels, intended, &mut connection).await;
        all.samples.borrow_mut().push(sample);
    }
}

/// Clients that come at random times.
async fn open(all: Rc<All>, rate: f64) {
    let mut at = 0.0;
    let mut running = Vec::new();
    while let Some((i, cancels)) = all.next() {
        let wait = -(1.0 - all.next.borrow_mut().1.next_f64()).ln() / rate;
        at += wait;
        sleep_until((all.start + Duration::from_secs_f64(at)).into()).await;
        let (of_task, intended) = (Rc::clone(&all), at);
        running.push(tokio::task::spawn_local(async move {
            let sample = ask(&of_task, i, cancels, intended, &mut None).await;
            of_task.samples.borrow_mut().push(sample);
        }));
    }
    for task in running {
        let _ = task.await;
    }
}

async fn ask(all: &All, i: usize, cancels: bool, intended: f64, connection: &mut Option<Connection>) -> Sample {
    let mut sample = Sample { intended, is_cancelled: cancels, ..Sample::default() };
    let result = timeout(all.plan.timeout, exchange(all, i, cancels, connection, &mut sample)).await;
    let error = match result {
        Ok(Ok(())) => None,
        Ok(Err(e)) => Some(e),
        Err(_) => Some("the answer took too long".into()),
    };
    if error.is_some() || cancels {
        *connection = None;
    }
    sample.error = sample.error.take().or(error);
    sample.end = all.now();
    sample
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn write(&self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// More bytes into the buffer; gives whether there are any.
    async fn read(&mut self) -> std::io::Result<bool> {
        let mut block = [0; 16 << 10];
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut block) {
                Ok(n) => {
                    self.buffer.extend_from_slice(&block[..n]);
                    return Ok(n > 0);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The bytes up to `mark`, which are taken with it.
    async fn until(&mut self, mark: &[u8]) -> Result<Vec<u8>, String> {
        let mut from = 0;
        loop {
            if let Some(at) = self.buffer[from..].windows(mark.len()).position(|w| w == mark) {
                let rest = self.buffer.split_off(from + at + mark.len());
                let mut found = std::mem::replace(&mut self.buffer, rest);
                found.truncate(from + at);
                return Ok(found);
            }
            from = self.buffer.len().saturating_sub(mark.len() - 1);
            if !self.read().await.map_err(|e| e.to_string())? {
                return Err("the connection was closed in the answer".into());
            }
        }
    }

    async fn exactly(&mut self, n: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() < n {
            if !self.read().await.map_err(|e| e.to_string())? {
                return Err("the connection was closed in the answer".into());
            }
        }
        let rest = self.buffer.split_off(n);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }
}

async fn exchange(
    all: &All,
    i: usize,
    cancels: bool,
    slot: &mut Option<Connection>,
    sample: &mut Sample,
) -> Result<(), String> {
    let plan = &all.plan;
    let body = &plan.bodies[i % plan.bodies.len()];
    let key = plan.key.as_ref().map_or(String::new(), |key| format!("Authorization: Bearer {key}\r\n"));
    let text = format!(
        "POST {} HTTP/1.1\r\nHost: {}:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{key}\r\n{body}",
        plan.path,
        plan.host,
        plan.port,
        body.len()
    );
    if slot.is_none() {
        let stream = TcpStream::connect(all.address).await.map_err(|e| e.to_string())?;
        let _ = stream.set_nodelay(true);
        *slot = Some(Connection { stream, buffer: Vec::new() });
    }
    let Some(connection) = slot else { return Err("no connection".into()) };
    connection.write(text.as_bytes()).await.map_err(|e| e.to_string())?;
    let head = String::from_utf8_lossy(&connection.until(b"\r\n\r\n").await?).to_ascii_lowercase();
    sample.status = head.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let is_chunked = head.lines().any(|line| line.starts_with("transfer-encoding:") && line.contains("chunked"));
    let closes = head.lines().any(|line| line.starts_with("connection:") && line.contains("close"));
    if let Some(length) = length {
        let body = connection.exactly(length).await?;
        if sample.status != 200 {
            let said =
                Json::parse(&body).ok().and_then(|json| Some(json.get("error")?.get("message")?.str()?.to_string()));
            sample.error = Some(said.unwrap_or_else(|| format!("status {}", sample.status)));
        }
    } else if is_chunked {
        let mut rest = Vec::new();
        loop {
            let size = connection.until(b"\r\n").await?;
            let size = std::str::from_utf8(&size)
                .ok()
                .and_then(|s| usize::from_str_radix(s.split(';').next()?.trim(), 16).ok());
            let size = size.ok_or("the answer is not in chunks as it says")?;
            let chunk = connection.exactly(size + 2).await?;
            if size == 0 {
                break;
            }
            rest.extend_from_slice(&chunk[..size]);
            take_events(&mut rest, all.now(), sample);
            if cancels && sample.pieces.len() > 1 {
                return Ok(());
            }
        }
    } else {
        return Err("the answer says neither how long it is nor that it comes in chunks".into());
    }
    if closes {
        *slot = None;
    }
    Ok(())
}

/// Takes note of whole events.
fn take_events(rest: &mut Vec<u8>, now: f64, sample: &mut Sample) {
    while let Some(at) = rest.windows(2).position(|w| w == b"\n\n") {
        let tail = rest.split_off(at + 2);
        let event = std::mem::replace(rest, tail);
        for line in event.split(|&b| b == b'\n') {
            let Some(data) = line.strip_prefix(b"data: ") else { continue };
            let Ok(json) = Json::parse(data) else { continue }; // [DONE]
            if let Some(error) = json.get("error") {
                sample.error = error.get("message").and_then(Json::str).map(String::from);
            }
            if let Some(usage) = json.get("usage").filter(|usage| **usage != Json::Null) {
                let count = |of: &Json, name: &str| match of.get(name) {
                    Some(Json::Int(n)) => usize::try_from(*n).unwrap_or(0),
                    _ => 0,
                };
                sample.prompt_tokens = count(usage, "prompt_tokens");
                sample.tokens = count(usage, "completion_tokens");
                sample.cached_tokens = usage.get("prompt_tokens_details").map_or(0, |d| count(d, "cached_tokens"));
            }
            if has_text(&json) {
                sample.pieces.push(now);
            }
        }
    }
}

/// Whether an event has some of the answer.
fn has_text(json: &Json) -> bool {
    let Some(Json::List(choices)) = json.get("choices") else { return false };
    let is_text = |value: Option<&Json>| value.and_then(Json::str).is_some_and(|text| !text.is_empty());
    choices.iter().any(|choice| {
        let delta = choice.get("delta");
        let of_delta = |name| is_text(delta.and_then(|delta| delta.get(name)));
        is_text(choice.get("text")) || of_delta("content") || of_delta("reasoning_content")
    })
}
