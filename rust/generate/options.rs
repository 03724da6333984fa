//! How to generate: the rows of the table that are about one answer.

use crate::error::{Error, Result};
use crate::grammar::{self, Grammar};
use crate::sampling::{Field, Kind, SamplingParams, Value, parameters};

/// How many alternatives `top_logprobs` may ask for; OpenAI's API has 20.
const MOST_LOGPROBS: i128 = 100;

parameters! {
    /// How to generate.
    pub struct Options {
        max_tokens: Option<usize> = None, Kind::COUNT,
            "the most tokens to generate; by default until the model ends its answer or the context is full";
        stop: Vec<String> = Vec::new(), Kind::Texts, "strings that end the answer; they are not part of it";
        ignore_eos: bool = false, Kind::Bool, "go on when the model wants to end its answer";
        logprobs: bool = false, Kind::Bool,
            "keep the logarithm of the probability of each token of the answer, as the model has it, before any penalty, \
             temperature or grammar";
        top_logprobs: usize = 0, Kind::Int { min: 0, max: MOST_LOGPROBS },
            "keep those of so many of the most likely tokens beside each, too";
        response_format: Option<String> = None, Kind::Json,
            "the form of the answer, as OpenAI's API has it: of the type text, json_object or json_schema";
        json_schema: Option<String> = None, Kind::Json, "the answer is JSON that is valid by this schema";
        grammar: Option<String> = None, Kind::Text,
            "the answer follows this grammar, in llama.cpp's GBNF or in Lark as llguidance has it";
        regex: Option<String> = None, Kind::Text, "the whole answer matches this regular expression";
        choices: Vec<String> = Vec::new(), Kind::Texts, "the answer is one of these";
        on_overflow: Overflow = Overflow::Stop, Kind::Choice(&["stop", "shift"]),
            "what to do when the context is full: stop ends the answer; shift keeps the first n_keep tokens, forgets the \
             older half of the others and goes on";
        n_keep: i64 = 4, Kind::Int { min: -1, max: i64::MAX as i128 },
            "how many tokens from the start a shift keeps; -1 for the whole prompt";
        ..sampling: SamplingParams, "How a token is chosen."
    }
}

impl Options {
    /// The grammar of the answer, if it has one.
    ///
    /// # Errors
    /// [`Error::Argument`] if it has two; [`Error::Grammar`] if a schema is no JSON.
    pub fn grammar(&self) -> Result<Option<Grammar>> {
        let given = [
            ("response_format", self.response_format.is_some()),
            ("json_schema", self.json_schema.is_some()),
            ("grammar", self.grammar.is_some()),
            ("regex", self.regex.is_some()),
            ("choices", !self.choices.is_empty()),
        ];
        let mut given = given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name);
        if let (Some(one), Some(two)) = (given.next(), given.next()) {
            return Err(Error::Argument(format!("{one} and {two} are both given: an answer has one form")));
        }
        if let Some(format) = &self.response_format {
            return grammar::from_response_format(format);
        }
        if let Some(schema) = &self.json_schema {
            return Grammar::from_schema_text(schema, false).map(Some);
        }
        let text = self.grammar.as_deref().map(Grammar::from_text);
        let regex = || self.regex.clone().map(Grammar::Regex);
        let choices = || (!self.choices.is_empty()).then(|| Grammar::Choices(self.choices.clone()));
        Ok(text.or_else(regex).or_else(choices))
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
