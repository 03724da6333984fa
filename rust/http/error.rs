//! What is said when something cannot be done: a status, a type and a code that programs know, a line for people.
//!
//! The shape and the words are OpenAI's, because clients match them; see <https://platform.openai.com/docs/guides/error-codes>.

use std::time::Duration;

use super::json::{Json, object};
use crate::error::Error;

/// What a handler gives.
pub type Answer<T> = Result<T, Refusal>;

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
    /// The JSON pointer of the field to blame.
    pub param: Option<String>,
    /// What the error object has besides.
    pub facts: Box<[(&'static str, u64)]>,
    pub retry_after: Option<Duration>,
    /// The methods that a route has, for 405.
    pub allow: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let (param, facts, retry_after, allow) = (None, Box::default(), None, None);
        Self { status, code, message: message.into(), param, facts, retry_after, allow }
    }

    /// OpenAI's `type`.
    fn kind(&self) -> &'static str {
        match (self.status, self.code) {
            (_, "context_length_exceeded") => "exceed_context_size_error",
            (401, _) => "authentication_error",
            (403, _) => "permission_error",
            (404, _) => "not_found_error",
            (429, _) => "overloaded_error",
            (503, _) => "unavailable_error",
            (500.., _) => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// A value that cannot be.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_value", message)
    }

    /// A field that we do not have.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(400, "unsupported_parameter", message)
    }

    pub fn at(mut self, pointer: &str) -> Self {
        self.param = Some(pointer.into());
        self
    }

    pub fn coded(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// A prompt that does not fit. The text says it in the words of two servers, which agents look for.
    pub fn too_long(tokens: usize, context_length: usize) -> Self {
        let message = format!(
            "the request of {tokens} tokens exceeds the available context size: this model's maximum context length is \
             {context_length} tokens; shorten the prompt"
        );
        let mut refusal = Self::new(400, "context_length_exceeded", message);
        refusal.facts = Box::new([("n_prompt_tokens", tokens as u64), ("n_ctx", context_length as u64)]);
        refusal
    }

    /// The object of the error.
    pub fn json(&self) -> Json {
        let mut error = object! {
            "message" => &self.message, "type" => self.kind(), "param" => self.param.clone(), "code" => self.code,
        };
        self.facts.iter().for_each(|&(name, value)| error.push(name, value));
        object! { "error" => error }
    }

    /// Whether another try cannot help: the OpenAI client else tries again by itself after some of these.
    pub fn is_final(&self) -> bool {
        self.status == 409 || (self.status == 500 && self.code == "numeric")
    }
}

/// What the engine says, to a client. What is none of its business is said without the paths of this machine.
impl From<&Error> for Refusal {
    fn from(e: &Error) -> Self {
        match e {
            Error::Argument(message) => Self::invalid(message),
            Error::ContextOverflow { tokens, context_length } => Self::too_long(*tokens, *context_length),
            Error::TooManyTokens { at_least, at_most } => Self::too_long(*at_least, *at_most),
            Error::Unsupported { what, .. } => Self::new(400, "unsupported", format!("not supported: {what}")),
            Error::Grammar { pointer, what } => {
                let refusal =
                    Self::new(400, if pointer.is_some() { "invalid_schema" } else { "invalid_grammar" }, what);
                match pointer {
                    Some(pointer) => refusal.at(pointer),
                    None => refusal,
                }
            }
            Error::Numeric { what, .. } => Self::new(500, "numeric", what),
            Error::Changed { what, .. } => {
                Self::new(500, "model_changed", format!("the model file changed while it was in use: {what}"))
            }
            Error::OutOfMemory { bytes, what } => {
                let message = format!("no memory for {bytes} bytes of {what}");
                Self::new(503, "out_of_memory", message).retry_after(Duration::from_secs(1))
            }
            Error::Interrupted => Self::new(503, "draining", "the server is shutting down"),
            e => Self::new(500, "internal", internal(e)),
        }
    }
}

impl From<Error> for Refusal {
    fn from(e: Error) -> Self {
        (&e).into()
    }
}

/// Without what stands before the first `: `, which is a path.
fn internal(e: &Error) -> String {
    let text = e.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, what)| what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_that_of_openai() {
        let refusal = Refusal::invalid("top_p is 2, it must be from 0 to 1").at("/top_p");
        assert_eq!(
            refusal.json().to_string(),
            r#"{"error":{"message":"top_p is 2, it must be from 0 to 1","type":"invalid_request_error","param":"/top_p","code":"invalid_value"}}"#
        );
    }

    #[test]
    fn agents_recognise_a_prompt_that_is_too_long() {
        let refusal = Refusal::from(Error::ContextOverflow { tokens: 9, context_length: 4 });
        assert!(refusal.message.contains("exceeds the available context size"));
        assert!(refusal.message.contains("maximum context length is 4 tokens"));
        assert!(refusal.json().to_string().ends_with(r#""n_prompt_tokens":9,"n_ctx":4}}"#));
        assert_eq!((refusal.status, refusal.kind()), (400, "exceed_context_size_error"));
    }

    #[test]
    fn no_path_of_this_machine_reaches_a_client() {
        let e = Error::Unsupported { path: "/secret/m.gguf".into(), what: "text by bert".into() };
        assert!(!Refusal::from(e).message.contains("secret"));
        let e = Error::SavedSession { path: "/secret/m.kv".into(), what: "not a session".into() };
        assert_eq!(Refusal::from(e).message, "not a session");
    }
}
