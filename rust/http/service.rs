//! A request in, a response out: who may ask, what for, and how much of it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION,
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN, RETRY_AFTER, VARY,
    WWW_AUTHENTICATE,
};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::body::Body;
use super::connection::State;
use super::error::{Answer, Refusal};
use super::json::{At, Fields, Json};
use super::limits;
use super::log::Log;
use super::metrics::Metrics;
use super::record::Record;
use super::registry::{Change, Registry};
use super::residency::residency;
use super::route::{self, Access, Found, Handler, Route};
use super::version::Version;
use super::{Config, chat, completions, embeddings, info, native, oip, responses, scores};
use crate::mapping::guarded;
use crate::scheduler::Scheduler;
use crate::threads::Interrupt;

/// What a handler gives.
pub type Reply = Answer<Response<Body>>;

/// What all threads of a server share.
pub struct Shared {
    pub config: Config,
    pub metrics: Metrics,
    pub log: Log,
    pub registry: Registry,
    /// Where requests that are over are told of, a line of JSON each, if anybody traces them.
    pub traces: Option<SyncSender<String>>,
    /// Kibibytes of bodies that there is memory for.
    pub room: Arc<Semaphore>,
}

/// How far the end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Open,
    /// Requests are answered, and those who ask whether more should be sent here are told no.
    Closing,
    /// No new connections, and no second request on one.
    Draining,
    /// What is not finished will not be.
    Over,
}

/// The service, on the thread that speaks HTTP.
pub struct Service {
    pub shared: Arc<Shared>,
    pub scheduler: Arc<Scheduler>,
    pub phase: watch::Receiver<Phase>,
}

/// A request on its way.
pub struct Call {
    pub service: Rc<Service>,
    pub record: Rc<Record>,
    pub captures: Vec<String>,
    /// Who asks: the number of a key, 0 without one.
    pub client: u64,
    pub deadline: Option<Instant>,
    pub headers: HeaderMap,
}

impl Call {
    /// Requests of one client find each other's prefixes; those of others only if that was asked for.
    pub fn salt(&self) -> u64 {
        if self.service.shared.config.share_prefixes { 0 } else { self.client }
    }

    /// The version that a request is for.
    pub fn version(&self, asked: Option<&str>) -> Answer<Arc<Version>> {
        let shared = &self.service.shared;
        let version = shared.registry.find(asked, shared.config.strict_model)?;
        self.record.model.replace(version.name.clone());
        Ok(version)
    }
}

/// A body, and the room that it takes.
pub struct Bytesful {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl Bytesful {
    pub fn json(&self) -> Answer<Json> {
        Self::object(&self.bytes)
    }

    /// JSON of so many bytes, and what lies behind it.
    pub fn split(&self, header: Option<usize>) -> Answer<(Json, &[u8])> {
        let header = header.unwrap_or(self.bytes.len());
        let what = "Inference-Header-Content-Length is more than the body has";
        let (head, rest) = self.bytes.split_at_checked(header).ok_or_else(|| Refusal::invalid(what))?;
        Ok((Self::object(head)?, rest))
    }

    fn object(bytes: &[u8]) -> Answer<Json> {
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
        let json =
            Json::parse(bytes).map_err(|e| Refusal::new(400, "invalid_json", format!("the body is no JSON: {e}")))?;
        match json {
            Json::Map(_) => Ok(json),
            other => Err(At { value: &other, pointer: String::new() }.must_be("an object").coded("invalid_json")),
        }
    }
}

impl Service {
    /// Answers a request. Dropping the future, or the body of its response, cancels whatever was begun for it.
    pub async fn handle(self: Rc<Self>, request: Request<Incoming>, state: Rc<State>) -> Response<Body> {
        let (head, mut body) = request.into_parts();
        let id = request_id(&head.headers);
        let record = Rc::new(Record::new(&self.shared, id, state.peer(), &head.headers));
        let error_as_text = head.uri.path().starts_with("/v2");
        let result = Rc::clone(&self).answer(&head, &mut body, &state, &record).await;
        let mut response = result.unwrap_or_else(|refusal| {
            record.code.set(refusal.code);
            if refusal.code == "model_changed" {
                self.shared.registry.fail_changed();
            }
            refused(&refusal, error_as_text)
        });
        if !body.is_end_stream() {
            state.leave_unread();
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if *self.phase.borrow() >= Phase::Draining {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        record.status.set(response.status().as_u16());
        if let Ok(id) = HeaderValue::from_str(&record.id) {
            response.headers_mut().insert("x-request-id", id);
        }
        response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        self.cors(&head.headers, response.headers_mut());
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, body.guarded_by(record))
    }

    async fn answer(self: Rc<Self>, head: &Parts, body: &mut Incoming, state: &State, record: &Rc<Record>) -> Reply {
        self.check_origin(&head.headers, state.peer().is_none())?;
        let (method, path) = (head.method.as_str(), head.uri.path());
        let (route, captures) = match (method, route::find(method, path)) {
            (_, Found::Route(route, captures)) => (route, captures),
            ("OPTIONS", Found::Methods(allow)) => return Ok(options(allow)),
            (_, Found::Methods(allow)) => {
                let mut refusal = Refusal::new(405, "method_not_allowed", format!("{method} is not for this path"));
                refusal.allow = Some(allow);
                return Err(refusal);
            }
            (_, Found::Nothing) => return Err(Refusal::new(404, "not_found", "there is no such path")),
        };
        record.route.set(route.path);
        let client = self.client(route, &head.headers)?;
        if route.access == Access::Admin {
            self.check_admin(&head.headers)?;
        }
        if route.computes {
            self.check_load()?;
        }
        let deadline = self.deadline(&head.headers)?;
        let (service, record) = (Rc::clone(&self), Rc::clone(record));
        let call = Call { service, record, captures, client, deadline, headers: head.headers.clone() };
        if route.handler == Handler::Residency {
            // Of a large file the kernel has much to say.
            let version = call.version(None)?;
            return prepare(move |_| Ok(residency(&version))).await.map(|found| json(&found));
        }
        if route.method == "GET" {
            return info::answer(route.handler, &call);
        }
        check_encoding(&head.headers)?;
        if route.handler != Handler::Infer {
            check_type(&head.headers)?; // that may be binary
        }
        let body = self.read(&head.headers, body).await?;
        match route.handler {
            Handler::ChatCompletions => chat::answer(call, body).await,
            Handler::Completions => completions::answer(call, body).await,
            Handler::Completion => native::completion(call, body).await,
            Handler::Embeddings | Handler::Embedding => embeddings::answer(call, body, route.handler).await,
            Handler::Tokenize => native::tokenize(call, body).await,
            Handler::Detokenize => native::detokenize(call, body).await,
            Handler::ApplyTemplate => native::apply_template(call, body).await,
            Handler::InputTokens => native::input_tokens(call, body).await,
            Handler::Responses => responses::answer(call, body).await,
            Handler::Score => scores::score(call, body).await,
            Handler::Classify => scores::classify(call, body).await,
            Handler::Rerank => scores::rerank(call, body).await,
            Handler::Generate => oip::generate(call, body, false).await,
            Handler::GenerateStream => oip::generate(call, body, true).await,
            Handler::Infer => oip::infer(call, body).await,
            Handler::RepositoryIndex => Ok(json(&oip::index(&self.shared.registry))),
            Handler::RepositoryLoad => oip::change(call, body, Change::Load).await,
            Handler::RepositoryUnload => oip::change(call, body, Change::Unload).await,
            Handler::Residency
            | Handler::OpenApi
            | Handler::V2Server
            | Handler::V2Live
            | Handler::V2Ready
            | Handler::V2Model
            | Handler::V2ModelReady
            | Handler::Page
            | Handler::Health
            | Handler::Ready
            | Handler::Models
            | Handler::Model
            | Handler::TokenizerInfo
            | Handler::Props
            | Handler::Slots
            | Handler::Metrics => info::answer(route.handler, &call),
        }
    }

    /// Without keys, a page that somebody is looking at must not be able to ask: neither one of another origin, nor one
    /// whose name was made to lead here.
    fn check_origin(&self, headers: &HeaderMap, is_socket_file: bool) -> Answer<()> {
        let config = &self.shared.config;
        if !config.api_keys.is_empty() {
            return Ok(());
        }
        let text = |value: Option<&HeaderValue>| value.map(|value| value.to_str().unwrap_or("?").to_ascii_lowercase());
        let host = text(headers.get(HOST));
        if let Some(host) = &host
            && !is_socket_file
            && !is_ours(host, &config.allowed_hosts)
        {
            let what =
                "the host that the request names is not known here: allow it with --allow-host, or set --api-key";
            return Err(Refusal::new(403, "host_not_allowed", what));
        }
        if let Some(origin) = text(headers.get(ORIGIN))
            && origin.split_once("://").map(|(_, rest)| rest) != host.as_deref()
            && !self.allows(&origin)
        {
            let what = "pages of other origins may not ask: allow this one with --cors, or set --api-key";
            return Err(Refusal::new(403, "origin_not_allowed", what));
        }
        Ok(())
    }

    fn allows(&self, origin: &str) -> bool {
        self.shared.config.cors.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    }

    fn cors(&self, asked: &HeaderMap, headers: &mut HeaderMap) {
        let Some(origin) = asked.get(ORIGIN) else { return };
        if !origin.to_str().is_ok_and(|origin| self.allows(origin)) {
            return;
        }
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(VARY, HeaderValue::from_static("Origin"));
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("X-Request-Id, Retry-After"));
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
        let wanted = asked.get("access-control-request-headers").cloned();
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.unwrap_or_else(|| HeaderValue::from_static("*")));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }

    /// Who asks. Every key is compared whole, so that the time tells nothing.
    fn client(&self, route: &Route, headers: &HeaderMap) -> Answer<u64> {
        let keys = &self.shared.config.api_keys;
        if keys.is_empty() {
            return Ok(0);
        }
        let given = given_key(headers);
        let mut found = 0;
        for (i, key) in keys.iter().enumerate() {
            if is_equal(key, given) {
                found = i as u64 + 1;
            }
        }
        if found == 0 && route.access != Access::Everybody && !self.is_admin(headers) {
            let what = "the API key is missing or wrong: send Authorization: Bearer KEY";
            return Err(Refusal::new(401, "invalid_api_key", what));
        }
        Ok(found)
    }

    fn is_admin(&self, headers: &HeaderMap) -> bool {
        self.shared.config.admin_key.as_ref().is_some_and(|key| is_equal(key, given_key(headers)))
    }

    /// What is served may be changed by who has the key for that; where there are no keys at all, by whoever may ask.
    fn check_admin(&self, headers: &HeaderMap) -> Answer<()> {
        let config = &self.shared.config;
        if self.is_admin(headers) || (config.admin_key.is_none() && config.api_keys.is_empty()) {
            return Ok(());
        }
        Err(Refusal::new(403, "not_allowed", "this needs the key that was set with --admin-key"))
    }

    /// Refuses before anything is read when too many wait already.
    fn check_load(&self) -> Answer<()> {
        if *self.phase.borrow() >= Phase::Draining {
            return Err(Refusal::draining());
        }
        let (stats, limits) = (self.scheduler.stats(), &self.shared.config.limits);
        if stats.waiting >= limits.max_queue && stats.waiting > 0 {
            self.shared.metrics.rejected.add("reason=\"queue_full\"".into(), 1);
            let what = "too many requests wait: try again later";
            return Err(Refusal::new(429, "queue_full", what).retry_after(self.scheduler.retry_after()));
        }
        Ok(())
    }

    fn deadline(&self, headers: &HeaderMap) -> Answer<Option<Instant>> {
        let asked = match headers.get("x-request-timeout-ms") {
            None => None,
            Some(value) => {
                let ms = value.to_str().ok().and_then(|text| text.trim().parse::<u32>().ok());
                let what = "X-Request-Timeout-Ms must be a number of milliseconds";
                Some(Duration::from_millis(ms.ok_or_else(|| Refusal::invalid(what))?.into()))
            }
        };
        let most = self.shared.config.request_timeout;
        let timeout = asked.into_iter().chain(most).min();
        Ok(timeout.map(|timeout| Instant::now() + timeout))
    }

    /// The body, if it comes in time and is not too large.
    async fn read(&self, headers: &HeaderMap, body: &mut Incoming) -> Answer<Bytesful> {
        let too_large =
            || Refusal::new(413, "body_too_large", format!("the body has more than {} bytes", limits::BODY));
        let declared = headers.get(CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
        if declared.is_some_and(|n| n > limits::BODY) {
            return Err(too_large());
        }
        let room = |bytes: usize| {
            let kibibytes = (bytes >> 10) as u32 + 1;
            Arc::clone(&self.shared.room).try_acquire_many_owned(kibibytes).map_err(|_| {
                let what = "too many bodies are being read: try again later";
                Refusal::new(429, "overloaded", what).retry_after(Duration::from_secs(1))
            })
        };
        let mut taken = room(declared.unwrap_or(0))?;
        let mut bytes = Vec::with_capacity(declared.unwrap_or(0));
        let reading = async {
            while let Some(chunk) = next_chunk(body).await? {
                if chunk.len() > limits::BODY - bytes.len() {
                    return Err(too_large());
                }
                if declared.is_none() {
                    taken.merge(room(chunk.len())?);
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(())
        };
        match tokio::time::timeout(limits::BODY_TIME, reading).await {
            Ok(result) => result?,
            Err(_) => return Err(Refusal::new(408, "request_timeout", "the body of the request took too long")),
        }
        Ok(Bytesful { bytes, _room: taken })
    }

    /// Done when what is not finished will not be.
    pub async fn is_over(&self) {
        let mut phase = self.phase.clone();
        let _ = phase.wait_for(|phase| *phase == Phase::Over).await;
    }
}

/// The key that a client sends, by either header.
fn given_key(headers: &HeaderMap) -> &[u8] {
    let bearer = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
        let (scheme, key) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes)).unwrap_or_default()
}

/// Compares all of it, so that the time does not tell how much was right.
fn is_equal(key: &str, given: &[u8]) -> bool {
    let differs = |(i, byte): (usize, u8)| usize::from(byte ^ given.get(i).copied().unwrap_or_default());
    key.bytes().enumerate().map(differs).fold(key.len() ^ given.len(), |all, one| all | one) == 0
}

async fn next_chunk(body: &mut Incoming) -> Answer<Option<Bytes>> {
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await;
        return match frame {
            None => Ok(None),
            Some(Err(_)) => Err(Refusal::new(400, "incomplete_body", "the body of the request is not complete")),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => Ok(Some(bytes)),
                Err(_) => continue, // trailers
            },
        };
    }
}

/// Whether a host is an address, or a name that only leads here.
fn is_ours(host: &str, allowed: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => return rest.split_once(']').is_some_and(|(ip, _)| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<std::net::Ipv4Addr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || allowed.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(name))
}

/// JSON it is, whatever a form calls it: `curl -d` does not say otherwise unless told to.
fn check_type(headers: &HeaderMap) -> Answer<()> {
    let Some(kind) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or("?").split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"));
    if is_json || kind == "application/x-www-form-urlencoded" || kind.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(415, "unsupported_media_type", "the body must be JSON: Content-Type: application/json"))
}

/// Bodies that were packed are not unpacked: how large they become is the client's to say.
fn check_encoding(headers: &HeaderMap) -> Answer<()> {
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(Refusal::new(415, "unsupported_encoding", "the body must not be compressed: send no Content-Encoding"))
        }
        _ => Ok(()),
    }
}

/// The id of the client's, if it is one that can be written anywhere; else one of ours.
fn request_id(headers: &HeaderMap) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let is_plain = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b))
    };
    given.filter(is_plain).map_or_else(|| unique("req_", &NEXT), String::from)
}

/// An id that no other answer has.
pub fn unique(prefix: &str, next: &AtomicU64) -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64);
    format!("{prefix}{time:x}{:04x}", next.fetch_add(1, Ordering::Relaxed) & 0xffff)
}

fn options(allow: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = hyper::StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// A response of JSON.
pub fn json(value: &Json) -> Response<Body> {
    let mut response = Response::new(Body::whole(value.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response of events.
pub fn events(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The response that says what is wrong.
pub fn refused(refusal: &Refusal, as_text: bool) -> Response<Body> {
    let body = if as_text {
        super::json::object! { "error" => refusal.message.as_str() }
    } else {
        refusal.json()
    };
    let mut response = json(&body);
    *response.status_mut() = hyper::StatusCode::from_u16(refusal.status).unwrap_or_default();
    let headers = response.headers_mut();
    if let Some(delay) = refusal.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(delay.as_secs_f64().ceil() as u64));
        headers.insert("retry-after-ms", HeaderValue::from(delay.as_millis() as u64));
    }
    if let Some(allow) = refusal.allow {
        headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    if refusal.status == 401 {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if refusal.is_final() {
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    response
}

/// Does what may take longer than a moment (JSON, templates, tokens) on a thread of its own, one after the other. Whoever
/// drops this has it stop.
pub async fn prepare<T: Send + 'static>(work: impl FnOnce(&Interrupt) -> Answer<T> + Send + 'static) -> Answer<T> {
    struct Stop(Arc<AtomicBool>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = Stop(Arc::default());
    let asked = Arc::clone(&stop.0);
    let task = tokio::task::spawn_blocking(move || {
        let _guarded = guarded(); // it may read the mapped vocabulary
        let check = || asked.load(Ordering::Relaxed);
        if check() {
            return Err(Refusal::draining()); // nobody waits for it
        }
        work(&Interrupt::new(&check))
    });
    let result = task.await;
    drop(stop);
    result.unwrap_or_else(|_| Err(Refusal::new(500, "internal", "something went wrong in the server")))
}

/// What every request may say, whatever its dialect: nothing else may be left over if the server is strict.
pub fn check_unknown(call: &Shared, fields: &Fields<'_>) -> Answer<()> {
    let unknown = fields.unknown();
    let Some(first) = unknown.first() else { return Ok(()) };
    call.metrics.unknown_fields.add(unknown.len() as u64);
    if call.config.strict {
        let pointer = format!("{}/{first}", fields.pointer());
        return Err(Refusal::unsupported(format!("{first} is not a parameter that is known here")).at(&pointer));
    }
    Ok(())
}

thread_local! {
    /// Connections that are open.
    pub static CONNECTIONS: Cell<usize> = const { Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_can_be_made_to_lead_here_is_not_ours() {
        for host in
            ["127.0.0.1:8080", "127.0.0.1", "localhost", "localhost:80", "a.localhost:1", "[::1]:8080", "10.0.0.7"]
        {
            assert!(is_ours(host, &[]), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "[x]", ""]
        {
            assert!(!is_ours(host, &[]), "{host}");
        }
        assert!(is_ours("llama:8080", &["llama".into()]) && is_ours("any", &["*".into()]));
    }
}
