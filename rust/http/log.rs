//! The access log: a line of JSON a request, on standard error.
//!
//! A thread of its own writes it, so that whoever reads it slowly, or not at all, holds nobody up: lines that find the queue
//! full are dropped and counted.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::json::Json;
use crate::threads;

/// Lines that wait to be written.
const WAITING: usize = 1024;

/// Where lines go.
pub struct Log(Option<SyncSender<String>>);

impl Log {
    /// # Errors
    /// If there is no thread to be had.
    pub fn new(is_wanted: bool) -> std::io::Result<Self> {
        if !is_wanted {
            return Ok(Self(None));
        }
        let (sender, receiver) = sync_channel(WAITING);
        threads::spawn("llama-log".into(), move || write(&receiver))?;
        Ok(Self(Some(sender)))
    }

    /// Whether anybody wants lines.
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Gives whether the line will be written.
    pub fn line(&self, line: &Json) -> bool {
        self.0.as_ref().is_none_or(|sender| sender.try_send(format!("{line}\n")).is_ok())
    }
}

fn write(lines: &Receiver<String>) {
    let mut out = std::io::stderr();
    while let Ok(mut line) = lines.recv() {
        // Those that wait go with it, in one call.
        while line.len() < 1 << 16
            && let Ok(next) = lines.try_recv()
        {
            line.push_str(&next);
        }
        if out.write_all(line.as_bytes()).is_err() {
            return; // nobody reads it any more
        }
    }
}
