//! The HTTP door: many clients of one scheduler, in the dialects that they speak.
//!
//! A [`Server`] listens on an address or a socket file and has one thread that speaks HTTP, whatever the number of clients,
//! and one that prepares requests (JSON, templates, tokens). Neither computes: that is the [scheduler](crate::scheduler)'s.
//! Whatever is held for a request hangs on the future of its response, so that a client who goes away takes everything with
//! it. Everything that comes in is a stranger's: [`limits`] bounds it, and what is wrong is said in a line.
//!
//! Nothing here knows of Python.

mod body;
mod chat;
mod completions;
mod connection;
mod embeddings;
mod error;
mod generate;
mod info;
mod json;
mod limits;
mod log;
mod metrics;
mod native;
mod oip;
mod openapi;
mod options;
mod page;
pub mod perf;
mod prompt;
mod record;
mod registry;
mod residency;
mod responses;
mod route;
mod runs;
mod scores;
mod server;
mod service;
mod shapes;
mod sse;
mod stream;
mod tools;
mod version;

use std::path::PathBuf;
use std::time::Duration;

use crate::scheduler::Limits;

pub use metrics::Names as MetricsNames;
pub use registry::{Change, Order};
pub use server::Server;
pub use version::Version;

/// How to serve.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// Keys, any of which a client must have; none: everybody on this machine may ask.
    pub api_keys: Vec<String>,
    /// The key of those who may load and unload models.
    pub admin_key: Option<String>,
    /// Origins whose pages may ask, `*` for all.
    pub cors: Vec<String>,
    /// Names of this machine besides `localhost` that a client may use if there are no keys.
    pub allowed_hosts: Vec<String>,
    /// Fields that are not known are errors.
    pub strict: bool,
    /// The name of the model must be right, even where there is but one.
    pub strict_model: bool,
    /// Clients with different keys find each other's prefixes.
    pub share_prefixes: bool,
    /// A line of JSON a request on standard error.
    pub access_log: bool,
    /// Requests that are over are told of, see [`Server::next_span`].
    pub traces: bool,
    /// Whose names the metrics have beside our own.
    pub metrics_names: Vec<MetricsNames>,
    /// The longest that an answer may take.
    pub request_timeout: Option<Duration>,
    /// What the scheduler may use.
    pub limits: Limits,
}

/// Where to listen.
#[derive(Debug, Clone)]
pub enum Listen {
    /// A host and a port; 0 is any that is free.
    Tcp(String, u16),
    /// A socket file, which is removed at the end.
    Unix(PathBuf),
}
