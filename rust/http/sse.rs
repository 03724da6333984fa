//! Events of a stream, as `text/event-stream` has them.

use std::fmt::Write;

use super::json::Json;

/// Says nothing, so that whoever stands between sees that the stream lives.
pub const PING: &str = ": ping\n\n";
/// The last event of OpenAI's streams.
pub const DONE: &str = "data: [DONE]\n\n";

/// Appends an event. JSON has no line breaks, so it is one line.
pub fn write(out: &mut String, data: &Json) {
    let _ = write!(out, "data: {data}\n\n");
}

/// Appends an event with a name.
pub fn write_named(out: &mut String, name: &str, data: &Json) {
    let _ = write!(out, "event: {name}\ndata: {data}\n\n");
}
