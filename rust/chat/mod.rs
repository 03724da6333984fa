//! Chat: conversations as the text that a model was trained for.
//!
//! A model file has a template that makes text of messages, in the language of Jinja2 as the `transformers` package sets it
//! up; what that package gives for a template, this gives to the byte. A template is untrusted: it is limited in its
//! length, its steps, its depth and its output, and it reaches nothing but what it is given.
//!
//! What people write must not become control tokens: see [`Guard`].

mod guard;
mod json;
mod python;
mod template;
mod time;

pub use guard::{Guard, encode};
pub use template::{Refused, render};

/// A value that a template can use.
pub use minijinja::Value;

/// ChatML, for a model that has its tokens and no template.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                          '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' \
                          }}{% endif %}";
