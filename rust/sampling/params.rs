//! The table of parameters: what a caller may say about an answer is declared once.
//!
//! [`parameters!`] makes a struct out of rows, each a name, a type, a default, a range and a line of help. From the same
//! rows come the checks, [`Parameter`] for whoever shows options to people (the Python class, the command line, a
//! server), and setting a field by its name. To add a parameter, add a row.

use super::SAMPLERS;
use crate::error::{Error, Result};

/// A row of a table: what is to be known of a parameter besides its default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    /// Its name, in every language.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Whether it may be left open: [`Value::None`].
    pub optional: bool,
    /// What it does, as a phrase without a capital or a full stop.
    pub help: &'static str,
}

/// The values that a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Yes or no.
    Bool,
    /// A whole number from `min` to `max`.
    Int {
        /// The least.
        min: i128,
        /// The largest.
        max: i128,
    },
    /// A finite number from `min` to `max`.
    Float {
        /// The least.
        min: f64,
        /// The largest.
        max: f64,
        /// The least itself is out of the range.
        above: bool,
    },
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// Some of a few words, in any order.
    Words(&'static [&'static str]),
    /// A text of at least one character.
    Text,
    /// Any number of texts, none of them empty.
    Texts,
    /// JSON, as a text.
    Json,
    /// Numbers by token id; none is NaN.
    Biases,
    /// Functions of the caller, which are no data: here they are none.
    Functions,
}

impl Kind {
    /// A count: 0 or more.
    pub const COUNT: Kind = Kind::Int { min: 0, max: i64::MAX as i128 };
    /// A probability.
    pub const PROBABILITY: Kind = Kind::Float { min: 0.0, max: 1.0, above: false };
    /// Any finite number.
    pub const FINITE: Kind = Kind::Float { min: f32::MIN as f64, max: f32::MAX as f64, above: false };
    /// A finite number that is not negative.
    pub const NOT_NEGATIVE: Kind = Kind::Float { min: 0.0, max: f32::MAX as f64, above: false };
    /// A count, or -1 for all.
    pub const COUNT_OR_ALL: Kind = Kind::Int { min: -1, max: i64::MAX as i128 };
    /// A finite number above 0.
    pub const POSITIVE: Kind = Kind::Float { min: 0.0, max: f32::MAX as f64, above: true };
}

/// What is in the range, for messages: `from 0 to 1`.
impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Kind::Bool => f.write_str("true or false"),
            Kind::Int { min, max } => write!(f, "from {min} to {max}"),
            Kind::Float { min, max, .. } if min <= f64::from(f32::MIN) && max >= f64::from(f32::MAX) => {
                f.write_str("a finite number")
            }
            Kind::Float { min, max, above } if max >= f64::from(f32::MAX) => {
                write!(
                    f,
                    "{}",
                    if above { format!("above {min} and finite") } else { format!("{min} or more, and finite") }
                )
            }
            Kind::Float { min, max, above } => write!(f, "{} {min} to {max}", if above { "above" } else { "from" }),
            Kind::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                f.write_str(&words.join(" or "))
            }
            Kind::Words(words) => write!(f, "some of {}", words.join(", ")),
            Kind::Text => f.write_str("a string of at least one character"),
            Kind::Texts => f.write_str("strings of at least one character"),
            Kind::Json => f.write_str("JSON"),
            Kind::Biases => f.write_str("numbers by token id"),
            Kind::Functions => f.write_str("functions"),
        }
    }
}

/// A value of a parameter, whatever language it came from.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Left open.
    None,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// A number.
    Float(f64),
    /// A word, a text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Numbers by token id.
    Biases(Vec<(u32, f32)>),
}

impl Parameter {
    /// Checks a value against the range.
    ///
    /// # Errors
    /// [`Error::Argument`] with the name, the value and the range.
    pub fn check(&self, value: &Value) -> Result<()> {
        let fits = match (self.kind, value) {
            (_, Value::None) => self.optional,
            (Kind::Bool, Value::Bool(_)) => true,
            (Kind::Int { min, max }, Value::Int(n)) => (min..=max).contains(n),
            (Kind::Float { min, max, above }, &Value::Float(x)) => (min..=max).contains(&x) && !(above && x == min),
            (Kind::Choice(words), Value::Text(word)) => words.contains(&word.as_str()),
            (Kind::Words(words), Value::Texts(texts)) => texts.iter().all(|text| words.contains(&text.as_str())),
            (Kind::Text | Kind::Json, Value::Text(text)) => !text.is_empty(),
            (Kind::Texts, Value::Texts(texts)) => !texts.iter().any(String::is_empty),
            (Kind::Biases, Value::Biases(biases)) => !biases.iter().any(|(_, bias)| bias.is_nan()),
            _ => false,
        };
        match (fits, value) {
            (true, _) => Ok(()),
            (false, Value::Texts(_)) if self.kind == Kind::Texts => {
                Err(Error::Argument(format!("a {} string is empty: it must have at least one character", self.name)))
            }
            (false, _) => Err(self.out_of_range(value)),
        }
    }

    /// The error for a value that is not in the range.
    pub fn out_of_range(&self, value: impl std::fmt::Display) -> Error {
        Error::Argument(format!("{} is {value}, it must be {}", self.name, self.kind))
    }
}

/// As it stands in messages.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::None => f.write_str("none"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Int(n) => write!(f, "{n}"),
            // Not with three hundred zeros.
            Value::Float(x) if *x != 0.0 && !(1e-5..1e16).contains(&x.abs()) => write!(f, "{x:e}"),
            Value::Float(x) => write!(f, "{x}"),
            Value::Text(text) => write!(f, "'{}'", text.escape_debug()),
            Value::Texts(texts) => write!(f, "{texts:?}"),
            Value::Biases(biases) => write!(f, "{biases:?}"),
        }
    }
}

/// A type that a field of a table may have.
pub trait Field: Sized {
    /// Whether it may be left open.
    const OPTIONAL: bool = false;
    /// The value as data.
    fn to_value(&self) -> Value;
    /// The field that `value` stands for; `None` if it is of another type.
    fn from_value(value: Value) -> Option<Self>;
}

impl Field for bool {
    fn to_value(&self) -> Value {
        Value::Bool(*self)
    }
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Bool(b) = value { Some(b) } else { None }
    }
}

impl Field for f32 {
    /// The number that one writes for it: 0.8, and not the 0.800000011920929 that it is in 64 bits.
    fn to_value(&self) -> Value {
        Value::Float(self.to_string().parse().unwrap_or(f64::from(*self)))
    }
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Float(x) = value { Some(x as f32) } else { None }
    }
}

macro_rules! whole_numbers {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn to_value(&self) -> Value {
                Value::Int(*self as i128)
            }
            fn from_value(value: Value) -> Option<Self> {
                if let Value::Int(n) = value { Self::try_from(n).ok() } else { None }
            }
        }
    )*};
}

whole_numbers!(u64, i64, usize);

impl<T: Field> Field for Option<T> {
    const OPTIONAL: bool = true;
    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::None, T::to_value)
    }
    fn from_value(value: Value) -> Option<Self> {
        if value == Value::None { Some(None) } else { T::from_value(value).map(Some) }
    }
}

impl Field for String {
    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Text(text) = value { Some(text) } else { None }
    }
}

impl Field for Vec<String> {
    fn to_value(&self) -> Value {
        Value::Texts(self.clone())
    }
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Texts(texts) = value { Some(texts) } else { None }
    }
}

impl Field for Vec<(u32, f32)> {
    fn to_value(&self) -> Value {
        Value::Biases(self.clone())
    }
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Biases(biases) = value { Some(biases) } else { None }
    }
}

/// Declares a struct of parameters by their rows: `name: type = default, kind, "help";`. With `..name: Type` it holds
/// another such struct too, whose parameters count as its own.
macro_rules! parameters {
    (
        $(#[$doc:meta])* $vis:vis struct $name:ident {
            $($field:ident: $type:ty = $default:expr, $kind:expr, $help:literal;)*
            $(..$inner:ident: $inner_type:ty, $inner_doc:literal)?
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name {
            $(#[doc = $help] pub $field: $type,)*
            $(#[doc = $inner_doc] pub $inner: $inner_type,)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* $($inner: Default::default(),)? }
            }
        }

        #[allow(dead_code)] // not every table is set by name and checked
        impl $name {
            /// The rows, in the order in which they are declared.
            pub const TABLE: &'static [$crate::sampling::Parameter] = &[$($crate::sampling::Parameter {
                name: stringify!($field),
                kind: $kind,
                optional: <$type as $crate::sampling::Field>::OPTIONAL,
                help: $help,
            },)*];

            /// The value of the parameter called `name`; `None` if there is no such parameter.
            pub fn get(&self, name: &str) -> Option<$crate::sampling::Value> {
                $(if name == stringify!($field) {
                    return Some($crate::sampling::Field::to_value(&self.$field));
                })*
                $(if let Some(value) = self.$inner.get(name) {
                    return Some(value);
                })?
                None
            }

            /// Sets the parameter called `name`; gives whether there is one.
            ///
            /// # Errors
            /// [`Error::Argument`](crate::Error::Argument) for a value that is out of range.
            pub fn set(&mut self, name: &str, value: $crate::sampling::Value) -> $crate::Result<bool> {
                let mut rows = Self::TABLE.iter();
                $(
                    let row = rows.next().expect("a row per field");
                    if name == row.name {
                        row.check(&value)?;
                        let shown = value.to_string();
                        self.$field = $crate::sampling::Field::from_value(value).ok_or_else(|| row.out_of_range(shown))?;
                        return Ok(true);
                    }
                )*
                $(if self.$inner.set(name, value)? {
                    return Ok(true);
                })?
                Ok(false)
            }

            /// Checks all of them.
            ///
            /// # Errors
            /// [`Error::Argument`](crate::Error::Argument) for the first that is out of range.
            pub fn check(&self) -> $crate::Result<()> {
                let mut rows = Self::TABLE.iter();
                $(
                    let row = rows.next().expect("a row per field");
                    row.check(&$crate::sampling::Field::to_value(&self.$field))?;
                )*
                $(self.$inner.check()?;)?
                Ok(())
            }
        }
    };
}
pub(crate) use parameters;

parameters! {
    /// How a token is chosen. The defaults are those of llama.cpp.
    pub struct SamplingParams {
        temperature: f32 = 0.8, Kind::NOT_NEGATIVE,
            "divides the logits: below 1 the choice is more predictable, above 1 more varied; 0 always takes the most \
             likely token";
        dynatemp_range: f32 = 0.0, Kind::NOT_NEGATIVE,
            "the temperature goes this far down where the model is sure of the next token, and this far up where it is \
             not; 0 keeps it";
        dynatemp_exponent: f32 = 1.0, Kind::POSITIVE,
            "how a dynamic temperature follows from how unsure the model is, a number from 0 to 1: as its power";
        top_k: usize = 40, Kind::COUNT, "choose among this many of the most likely tokens; 0 for all";
        top_p: f32 = 0.95, Kind::PROBABILITY,
            "choose among the most likely tokens whose probabilities add up to this; 1 for all";
        min_p: f32 = 0.05, Kind::PROBABILITY,
            "choose among tokens that are at least this likely relative to the most likely one; 0 for all";
        typical_p: f32 = 1.0, Kind::PROBABILITY,
            "choose among the tokens that are about as surprising as is to be expected, whose probabilities add up to \
             this; 1 for all";
        top_n_sigma: f32 = -1.0, Kind::FINITE,
            "choose among tokens whose logit is at most this many standard deviations below the largest; 0 or less for all";
        xtc_probability: f32 = 0.0, Kind::PROBABILITY,
            "how often the most likely tokens are left out, where others are likely enough; 0 for never";
        xtc_threshold: f32 = 0.1, Kind::PROBABILITY,
            "how likely is likely enough for that: of the tokens that are, all but the least likely are left out; above 0.5 \
             never";
        repeat_penalty: f32 = 1.0, Kind::POSITIVE,
            "divides the logits of tokens already seen, or multiplies them if negative: above 1 they become less likely";
        repeat_last_n: i64 = 64, Kind::COUNT_OR_ALL,
            "how many of the last tokens the penalties look at; 0 for none, -1 for all";
        presence_penalty: f32 = 0.0, Kind::FINITE, "subtracted from the logit of each token already seen";
        frequency_penalty: f32 = 0.0, Kind::FINITE,
            "subtracted from the logit of each token already seen, once per occurrence";
        dry_multiplier: f32 = 0.0, Kind::NOT_NEGATIVE,
            "the DRY penalty of a token that goes on with a sequence which was there before: this, times dry_base to the \
             power of how much longer than dry_allowed_length the sequence is; 0 for none";
        dry_base: f32 = 1.75, Kind::Float { min: 1.0, max: f32::MAX as f64, above: false },
            "what the DRY penalty is multiplied by for each token of the sequence";
        dry_allowed_length: usize = 2, Kind::COUNT, "how long such a sequence may be without a DRY penalty";
        dry_penalty_last_n: i64 = 64, Kind::COUNT_OR_ALL,
            "how many of the last tokens are searched for such sequences; 0 for none, -1 for all";
        dry_sequence_breakers: Vec<String> = ["\n", ":", "\"", "*"].map(String::from).to_vec(), Kind::Texts,
            "strings that such a sequence does not go across";
        mirostat: usize = 0, Kind::Int { min: 0, max: 2 },
            "version 1 or 2 of Mirostat, which keeps the text as surprising as mirostat_tau says, instead of top_k, top_p \
             and the like; 0 for none";
        mirostat_tau: f32 = 5.0, Kind::NOT_NEGATIVE, "the surprise that Mirostat keeps, in bits a token";
        mirostat_eta: f32 = 0.1, Kind::NOT_NEGATIVE, "how fast Mirostat corrects itself";
        samplers: Vec<String> = SAMPLERS.map(String::from).to_vec(), Kind::Words(&SAMPLERS),
            "which steps choose a token, in which order; each does what its own parameters say";
        logit_bias: Vec<(u32, f32)> = Vec::new(), Kind::Biases,
            "added to the logits of these token ids before anything else; minus infinity rules a token out";
        seed: Option<u64> = None, Kind::Int { min: 0, max: u64::MAX as i128 },
            "where the random numbers start: the same seed gives the same answer; by default a new one is drawn each time";
    }
}

impl SamplingParams {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_in_its_range_and_can_be_set() {
        let defaults = SamplingParams::default();
        defaults.check().unwrap();
        for row in SamplingParams::TABLE {
            let value = defaults.get(row.name).unwrap();
            let mut params = SamplingParams::default();
            assert!(params.set(row.name, value).unwrap());
            assert_eq!(params, defaults);
            assert!(row.help.starts_with(char::is_lowercase) && !row.help.ends_with('.'), "{}", row.help);
        }
        assert!(!SamplingParams::default().set("no such name", Value::Int(1)).unwrap());
        assert_eq!(defaults.get("top_p"), Some(Value::Float(0.95)));
    }

    #[test]
    fn numbers_of_any_size_are_refused_with_name_value_and_range() {
        let mut params = SamplingParams::default();
        for (name, value, message) in [
            ("top_k", Value::Int(-1), "top_k is -1, it must be from 0 to 9223372036854775807"),
            ("seed", Value::Int(1 << 64), "seed is 18446744073709551616, it must be from 0 to 18446744073709551615"),
            ("temperature", Value::Float(f64::NAN), "temperature is NaN, it must be 0 or more, and finite"),
            ("temperature", Value::Float(1e39), "temperature is 1e39, it must be"),
            ("top_p", Value::Float(1.5), "top_p is 1.5, it must be from 0 to 1"),
            ("repeat_penalty", Value::Float(0.0), "repeat_penalty is 0, it must be above 0 and finite"),
            ("presence_penalty", Value::Float(f64::INFINITY), "presence_penalty is inf, it must be a finite number"),
            ("logit_bias", Value::Biases(vec![(0, f32::NAN)]), "logit_bias is [(0, NaN)], it must be numbers"),
            ("top_k", Value::Float(1.0), "top_k is 1, it must be"),
            ("top_k", Value::None, "top_k is none, it must be"),
            (
                "samplers",
                Value::Texts(vec!["top".into()]),
                "samplers is [\"top\"], it must be some of penalties, dry, top_n",
            ),
            ("mirostat", Value::Int(3), "mirostat is 3, it must be from 0 to 2"),
            ("dry_base", Value::Float(0.5), "dry_base is 0.5, it must be 1 or more, and finite"),
        ] {
            let e = params.set(name, value).unwrap_err().to_string();
            assert!(e.starts_with(message), "{e}");
        }
        assert_eq!(params, SamplingParams::default());
    }
}
