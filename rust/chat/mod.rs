//! Chat: conversations as the text that a model was trained for.
//!
//! A model file has a template that makes text of messages, in the language of Jinja2 as the `transformers` package sets it
//! up; what that package gives for a template, this gives to the byte. A template is untrusted: it is limited in its
//! length, its steps, its depth and its output, and it reaches nothing but what it is given.
//!
//! What people write must not become control tokens: see [`Guard`]. What the model writes then is taken apart by a
//! [`Parser`]: thoughts, text, calls of tools.
//!
//! ```no_run
//! # use llama_rs::internals::chat::{Calls, Delta, Parser, Question, Setup, Template, Tool, value_of_json};
//! # fn ask(template: &Template, generated: &[&str]) -> llama_rs::Result<()> {
//! let messages = value_of_json(r#"[{"role": "user", "content": "Hello"}]"#, Some(template.guard()?))?;
//! let question = Question { messages, add_generation_prompt: true, ..Question::default() };
//! let prompt = template.prompt(&question, 4096, &llama_rs::Interrupt::never())?; // prompt.ids to the model
//!
//! let format = template.format(false, None)?;
//! // The decoder of the answer keeps these tokens as text: StreamDecoder::new(..).keeping(ids)
//! let ids = template.marks(&format)?;
//! let setup = Setup { calls: Calls::None, reasoning: true, prompt: &prompt.end, ..Setup::default() };
//! let mut parser = Parser::new(&format, setup);
//! for piece in generated {
//!     for delta in parser.push(piece) {
//!         if let Delta::Content(text) = delta { /* send it */ }
//!     }
//! }
//! let rest = parser.finish(false);
//! # Ok(()) }
//! ```

mod family;
mod guard;
mod json;
mod message;
mod parse;
mod prompt;
mod python;
mod template;
mod time;

pub use family::Format;
pub use guard::{Guard, MARK, encode};
pub use json::parse as value_of_json;
pub use message::{Delta, Reply, Tool, ToolCall};
pub use parse::{Calls, Parser, Setup};
pub use prompt::{Prompt, Question, Template};
pub use template::{Refused, render};

/// A value that a template can use.
pub use minijinja::Value;

/// ChatML, for a model that has its tokens and no template.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                          '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' \
                          }}{% endif %}";
