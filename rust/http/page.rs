//! `GET /`: a page to talk with the model, and to see what the machine is doing. One file, without anything from elsewhere.

use hyper::Response;
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY};

use super::body::Body;

const PAGE: &str = include_str!("page.html");

/// What the page may do: run its own script, and ask this server. The hashes are those of its script and its style, which
/// `tests/test_server.py` compares.
const POLICY: &str = "default-src 'none'; script-src 'sha256-CldbEQNCkSZHpRO/ONt0cv9BKNqZgdE3SOQ3ugMo9d8='; style-src 'sha256-iNaUM1E/TyvomzbN6r/qATtC2QwP/RpQYscBb23bSzM='; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn page() -> Response<Body> {
    let mut response = Response::new(Body::whole(PAGE));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
