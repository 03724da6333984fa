//! The one error type of the crate.
//!
//! A variant per cause that a caller can act on, with the facts inside. The message is one line:
//! what is wrong, where, and what to do if we know. Panics are for our own bugs only.

use std::io;
use std::path::PathBuf;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what a caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system would not open, read or map the file.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// The file was cut short, written over or could not be read while it was in use. What was computed from it is
    /// lost, and the map of it is of no more use.
    #[error(
        "{}: the file changed while it was in use: {what}; replace models by renaming, not by copying over them",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },

    /// The file is not a valid model file: truncated, damaged or made to deceive.
    #[error(transparent)]
    Format(Box<FormatError>),

    /// The file is valid, but holds something that this version cannot run.
    #[error("{}: not supported: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is, and what is supported.
        what: String,
    },

    /// The tokens do not fit in the context.
    #[error(
        "{tokens} tokens do not fit in a context of {context_length}: shorten the prompt or raise the context length"
    )]
    ContextOverflow {
        /// Tokens there would be, those already in the cache included.
        tokens: usize,
        /// Tokens that there is room for.
        context_length: usize,
    },

    /// A text has more tokens than its caller has room for; it was not read to its end.
    #[error("the text has at least {at_least} tokens, and at most {at_most} are wanted: shorten it")]
    TooManyTokens {
        /// Tokens that there are for certain.
        at_least: usize,
        /// Tokens that there may be.
        at_most: usize,
    },

    /// The file is not a saved session, or not one of this model.
    #[error("{}: {what}", path.display())]
    SavedSession {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },

    /// A grammar or a JSON schema that cannot be enforced.
    #[error("{}{what}", pointer.as_ref().map_or(String::new(), |at| format!("the schema at #{at}: ")))]
    Grammar {
        /// The JSON pointer of what is to blame in a schema; that of the schema itself is empty.
        pointer: Option<String>,
        /// What is wrong.
        what: String,
    },

    /// An argument is out of its range.
    #[error("{0}")]
    Argument(String),

    /// The session is in use by another call, or was used for something else while an answer was being made with it.
    #[error("{0}")]
    SessionBusy(&'static str),

    /// The session was closed, or its model.
    #[error("{}", match model {
        None => "the session is closed".into(),
        Some(path) => format!("{}: the model is closed", path.display()),
    })]
    Closed {
        /// The file of the model, if it is that which was closed.
        model: Option<PathBuf>,
    },

    /// Memory that is needed cannot be had.
    #[error("no memory for {bytes} bytes of {what}")]
    OutOfMemory {
        /// How much.
        bytes: u128,
        /// What for.
        what: &'static str,
    },

    /// The numbers of the model make no sense (NaN logits): a damaged weight, most likely.
    #[error("{}{what}", if path.as_os_str().is_empty() { String::new() } else { format!("{}: ", path.display()) })]
    Numeric {
        /// The model file; empty if it is not known.
        path: PathBuf,
        /// What was found.
        what: String,
    },

    /// The caller's interrupt check asked us to stop.
    #[error("interrupted")]
    Interrupted,
}

/// A fact about a bad file: what, where, which value, which limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, as a lower-case phrase without a full stop.
    pub what: String,
    /// Byte offset in the file, where one place is to blame.
    pub offset: Option<u64>,
    /// The metadata key or the tensor to blame.
    pub name: Option<String>,
    /// The value found.
    pub got: Option<String>,
    /// What would have been right.
    pub limit: Option<String>,
}

impl FormatError {
    /// Starts a report: `what` is wrong with the file at `path`.
    pub fn new(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self { path: path.into(), what: what.into(), offset: None, name: None, got: None, limit: None }
    }

    /// Adds the byte offset in the file.
    pub fn at(mut self, offset: usize) -> Self {
        self.offset = Some(offset as u64);
        self
    }

    /// Adds the key or tensor name; long or unprintable names are cut and escaped.
    pub fn named(mut self, name: impl AsRef<str>) -> Self {
        let mut short: String = name.as_ref().chars().take(80).flat_map(char::escape_debug).collect();
        if name.as_ref().chars().nth(80).is_some() {
            short.push_str("...");
        }
        self.name = Some(short);
        self
    }

    /// Adds the value found.
    pub fn got(mut self, got: impl ToString) -> Self {
        self.got = Some(got.to_string());
        self
    }

    /// Adds what would have been right.
    pub fn limit(mut self, limit: impl ToString) -> Self {
        self.limit = Some(limit.to_string());
        self
    }
}

impl std::fmt::Display for FormatError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        match (&self.got, &self.limit) {
            (Some(got), Some(limit)) => write!(f, ": got {got}, expected {limit}"),
            (Some(got), None) => write!(f, ": got {got}"),
            (None, Some(limit)) => write!(f, ": expected {limit}"),
            (None, None) => Ok(()),
        }
    }
}

impl std::error::Error for FormatError {}

impl From<FormatError> for Error {
    fn from(e: FormatError) -> Self {
        Error::Format(Box::new(e))
    }
}
