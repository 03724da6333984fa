//! What a client may ask for at most. Each is tested at both sides.

use std::time::Duration;

/// Bytes of a request's line and headers.
pub const HEAD: usize = 16 << 10;
/// Bytes of a body.
pub const BODY: usize = 16 << 20;
/// Bytes of all bodies that are in memory.
pub const BODIES: usize = 256 << 20;
/// Containers in each other.
pub const JSON_DEPTH: usize = 64;
/// Values of a body: each takes 24 bytes, and the longest list of token ids has a million.
pub const JSON_VALUES: usize = 1 << 21;
/// Bytes of a string.
pub const STRING: usize = 8 << 20;
pub const MESSAGES: usize = 2048;
pub const TOOLS: usize = 128;
/// Bytes of a JSON schema, and of a grammar.
pub const SCHEMA: usize = 256 << 10;
pub const GRAMMAR: usize = 64 << 10;
/// Stop strings, and bytes of one.
pub const STOPS: usize = 16;
pub const STOP: usize = 1 << 10;
pub const LOGIT_BIAS: usize = 1024;
/// Answers to one prompt.
pub const N: usize = 8;
/// Alternatives beside a token.
pub const TOP_LOGPROBS: usize = 20;
/// Prompts of a completion, and texts to embed, score or classify.
pub const PROMPTS: usize = 64;
pub const INPUTS: usize = 2048;
/// Connections, and those of one address while more than half of all are taken: a proxy has many clients.
pub const CONNECTIONS: usize = 512;
pub const PER_ADDRESS: usize = 64;
/// How long a client may take: between requests, for a head, for a body, to read what it is sent.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);
pub const HEAD_TIME: Duration = Duration::from_secs(10);
pub const BODY_TIME: Duration = Duration::from_secs(60);
pub const SLOW_READER: Duration = Duration::from_secs(60);
/// A stream that has had nothing to say for so long says that it is alive.
pub const PING: Duration = Duration::from_secs(15);
