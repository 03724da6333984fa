//! How to generate: the rows of the table that are about one answer.

use crate::sampling::{Field, Kind, SamplingParams, Value, parameters};

parameters! {
    /// How to generate.
    pub struct Options {
        max_tokens: Option<usize> = None, Kind::COUNT,
            "the most tokens to generate; by default until the model ends its answer or the context is full";
        stop: Vec<String> = Vec::new(), Kind::Texts, "strings that end the answer; they are not part of it";
        ignore_eos: bool = false, Kind::Bool, "go on when the model wants to end its answer";
        on_overflow: Overflow = Overflow::Stop, Kind::Choice(&["stop", "shift"]),
            "what to do when the context is full: stop ends the answer; shift keeps the first n_keep tokens, forgets the \
             older half of the others and goes on";
        n_keep: i64 = 4, Kind::Int { min: -1, max: i64::MAX as i128 },
            "how many tokens from the start a shift keeps; -1 for the whole prompt";
        ..sampling: SamplingParams, "How a token is chosen."
    }
}

parameters! {
    /// How text becomes a prompt.
    pub struct PromptOptions {
        add_special: bool = true, Kind::Bool,
            "put the tokens around the text that the model expects, such as a beginning-of-text";
        parse_special: bool = true, Kind::Bool,
            "read <|im_start|> and the like in the text as the special tokens that they name";
    }
}

/// What to do when the context is full and the answer has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// End the answer.
    #[default]
    Stop,
    /// Make room and go on: keep the first `n_keep` tokens, forget the older half of the others. A few tokens should be
    /// kept: models lean on them (Xiao et al., "Efficient streaming language models with attention sinks", 2023).
    Shift,
}

impl Field for Overflow {
    fn to_value(&self) -> Value {
        let word = match self {
            Overflow::Stop => "stop",
            Overflow::Shift => "shift",
        };
        Value::Text(word.into())
    }

    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Text(word) if word == "stop" => Some(Overflow::Stop),
            Value::Text(word) if word == "shift" => Some(Overflow::Shift),
            _ => None,
        }
    }
}
