//! What a model answers with: text, what it thought before that, and calls of tools; whole, and piece by piece.

use minijinja::Value;
use minijinja::value::ValueKind;

/// A piece of an answer. All pieces of a kind, joined, are what the answer has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// More of what the model thinks before it answers.
    Reasoning(String),
    /// More of the answer itself.
    Content(String),
    /// A call of a tool begins. It comes once for each, in the order of `index`, and its arguments follow.
    Call {
        /// Counts the calls of this answer from 0.
        index: usize,
        /// Nine letters and digits, which every family's template takes; Kimi's own are kept as they are.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of the arguments of a call: JSON, as the model wrote it where it writes JSON.
    Arguments {
        /// Which call.
        index: usize,
        /// The piece.
        text: String,
    },
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ToolCall {
    /// What the answer to it refers to.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON; not valid if the answer was cut off in it, or if the model errs.
    pub arguments: String,
}

/// An answer, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// What the model thought.
    pub reasoning: String,
    /// What it says.
    pub content: String,
    /// The tools that it calls.
    pub calls: Vec<ToolCall>,
}

impl Reply {
    /// Adds a piece.
    pub fn push(&mut self, delta: &Delta) {
        match delta {
            Delta::Reasoning(text) => self.reasoning.push_str(text),
            Delta::Content(text) => self.content.push_str(text),
            Delta::Call { id, name, .. } => {
                self.calls.push(ToolCall { id: id.clone(), name: name.clone(), arguments: String::new() });
            }
            Delta::Arguments { index, text } => {
                if let Some(call) = self.calls.get_mut(*index) {
                    call.arguments.push_str(text);
                }
            }
        }
    }
}

/// What a parser has to know of a tool: arguments that a model writes as plain text get their types from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    name: String,
    parameters: Vec<(String, Kind)>,
}

/// What a parameter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text, whatever it looks like.
    Text,
    /// Text, or nothing.
    TextOrNull,
    /// Something else.
    Other,
    /// Nobody says.
    Unknown,
}

impl Tool {
    /// A tool out of its description, in OpenAI's form (`{"type": "function", "function": {...}}`) or the inner part alone.
    /// None if it has no name.
    pub fn of(description: &Value) -> Option<Self> {
        let inner = description.get_attr("function").ok().filter(|inner| inner.kind() == ValueKind::Map);
        let inner = inner.unwrap_or_else(|| description.clone());
        let name = inner.get_attr("name").ok()?.as_str()?.to_string();
        let schema = ["parameters", "input_schema"].into_iter().filter_map(|key| inner.get_attr(key).ok());
        let mut properties = schema.filter_map(|schema| schema.get_attr("properties").ok());
        let Some(properties) = properties.find(|p| p.kind() == ValueKind::Map) else {
            return Some(Self { name, parameters: Vec::new() });
        };
        let of_key = |key: Value| {
            let schema = properties.get_item(&key).unwrap_or_default();
            Some((key.as_str()?.to_string(), Kind::of(&schema, 0)))
        };
        let parameters = properties.try_iter().map(|keys| keys.filter_map(of_key).collect()).unwrap_or_default();
        Some(Self { name, parameters })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its parameter of this name may be.
    pub(super) fn kind(&self, parameter: &str) -> Kind {
        self.parameters.iter().find(|(name, _)| name == parameter).map_or(Kind::Unknown, |(_, kind)| *kind)
    }

    /// The name of a parameter that is given by its place.
    pub(super) fn nth(&self, i: usize) -> Option<&str> {
        self.parameters.get(i).map(|(name, _)| name.as_str())
    }
}

impl Kind {
    fn of(schema: &Value, depth: usize) -> Self {
        let get = |key: &str| schema.get_attr(key).ok().filter(|v| !v.is_undefined());
        let list = |key: &str| get(key).and_then(|v| v.try_iter().ok().map(Iterator::collect::<Vec<_>>));
        let any = |kinds: Vec<Self>| {
            let text = |kind: &Self| matches!(kind, Self::Text | Self::TextOrNull);
            match kinds.iter().any(text) {
                true if kinds.iter().all(|kind| *kind == Self::Text) => Self::Text,
                true => Self::TextOrNull,
                false => Self::Other,
            }
        };
        let word = |kind: &Value| if kind.as_str() == Some("string") { Self::Text } else { Self::Other };
        if let Some(kind) = get("type") {
            return match kind.kind() {
                ValueKind::Seq => any(list("type").unwrap_or_default().iter().map(word).collect()),
                _ => word(&kind),
            };
        }
        if let Some(values) = list("enum") {
            let of = |v: &Value| if v.kind() == ValueKind::String { Self::Text } else { Self::Other };
            return any(values.iter().map(of).collect());
        }
        match list("anyOf").or_else(|| list("oneOf")) {
            Some(schemas) if depth < 8 => any(schemas.iter().map(|s| Self::of(s, depth + 1)).collect()),
            _ => Self::Unknown,
        }
    }
}
