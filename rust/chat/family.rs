//! How models write what is more than text: which marks a family of models uses, as data.
//!
//! A family is found by what its template mentions: that is where a model file says how it was trained. What follows a mark
//! tells itself what it is (JSON, tags, a call in Python), so that the table is one of marks; see [`super::parse`].

/// How calls, and what a model thinks, are marked in what it writes.
#[derive(Debug, Clone)]
pub struct Format {
    pub(super) family: &'static Family,
    pub(super) reasoning: Option<(&'static str, &'static str)>,
    pub(super) dropped: Vec<&'static str>,
}

/// A family of models that mark their calls alike.
#[derive(Debug)]
pub(super) struct Family {
    /// What people call it; the first is its own name.
    names: &'static [&'static str],
    /// Any of them in a template is a sign of it.
    signs: &'static [&'static str],
    /// What begins a call.
    pub calls: &'static [(&'static str, Form)],
    /// What goes around calls and texts, and says nothing.
    dropped: &'static [&'static str],
    /// Whether the whole answer may be calls without any mark.
    pub bare: bool,
    /// Where an answer is several messages, each with a header.
    pub messages: Option<&'static Messages>,
    /// Other names in what it writes.
    more: &'static [&'static str],
}

/// What follows the mark of a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// Whatever it looks like: objects of JSON, a name and tags, calls in Python. Then one of these.
    Any(&'static [&'static str]),
    /// A name and what belongs to it, the arguments in JSON, and then one of these.
    Named(&'static [&'static str]),
    /// A name, and arguments in tags; or in JSON. Then perhaps one of these.
    Tagged(&'static Tags, &'static [&'static str]),
    /// `call:name{key:value}`; texts are between these.
    Gemma(&'static str, &'static [&'static str]),
}

/// The tags of a call.
#[derive(Debug)]
pub(super) struct Tags {
    /// After the name.
    pub name_end: &'static str,
    /// Before the name of a parameter.
    pub key: &'static str,
    /// After it; there may be attributes before that.
    pub key_end: &'static str,
    /// Before its value, if that does not follow at once.
    pub value: &'static str,
    /// After its value.
    pub value_end: &'static str,
    /// After the call.
    pub end: &'static str,
    /// Whether a value stands in lines of its own.
    pub in_lines: bool,
    /// Whether a value that has no type is JSON if it can be.
    pub may_be_json: bool,
}

/// An answer of several messages.
#[derive(Debug)]
pub(super) struct Messages {
    /// What begins a header. It is part of it.
    pub begin: &'static [&'static str],
    /// What ends a message.
    pub end: &'static [&'static str],
    /// What ends a header.
    pub header_end: &'static str,
}

/// The tags after `<function=`.
pub(super) const FUNCTION: Tags = Tags {
    name_end: ">",
    key: "<parameter=",
    key_end: ">",
    value: "",
    value_end: "</parameter>",
    end: "</function>",
    in_lines: true,
    may_be_json: false,
};
const INVOKE: Tags = Tags {
    name_end: "\">",
    key: "<parameter name=\"",
    key_end: ">",
    value: "",
    value_end: "</parameter>",
    end: "</invoke>",
    in_lines: false,
    may_be_json: false,
};
const DSML: Tags = Tags {
    name_end: "\">",
    key: "<｜DSML｜parameter name=\"",
    key_end: ">",
    value: "",
    value_end: "</｜DSML｜parameter>",
    end: "</｜DSML｜invoke>",
    in_lines: false,
    may_be_json: false,
};
/// The tags after `<tool_call>name`.
pub(super) const ARG_KEY: Tags = Tags {
    name_end: "",
    key: "<arg_key>",
    key_end: "</arg_key>",
    value: "<arg_value>",
    value_end: "</arg_value>",
    end: "</tool_call>",
    in_lines: false,
    may_be_json: true,
};

const NONE: Family =
    Family { names: &["none"], signs: &[], calls: &[], dropped: &[], bare: false, messages: None, more: &[] };

/// The families, those with the plainest signs first.
const FAMILIES: &[Family] = &[
    Family {
        names: &["gpt_oss", "harmony"],
        signs: &["<|channel|>"],
        messages: Some(&Messages {
            begin: &["<|start|>", "<|channel|>"],
            end: &["<|end|>", "<|call|>", "<|return|>"],
            header_end: "<|message|>",
        }),
        more: &["<|constrain|>"],
        ..NONE
    },
    Family {
        names: &["functionary"],
        signs: &[">>>all"],
        messages: Some(&Messages { begin: &[">>>"], end: &[], header_end: "\n" }),
        ..NONE
    },
    Family {
        names: &["deepseek", "deepseek_v3", "deepseek_r1"],
        signs: &["<｜tool▁call▁begin｜>", "｜DSML｜"],
        calls: &[
            ("<｜tool▁call▁begin｜>", Form::Named(&["<｜tool▁call▁end｜>"])),
            ("<｜DSML｜invoke name=\"", Form::Tagged(&DSML, &[])),
        ],
        dropped: &[
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜DSML｜function_calls>",
            "</｜DSML｜function_calls>",
            "<｜DSML｜tool_calls>",
            "</｜DSML｜tool_calls>",
        ],
        more: &["<｜tool▁sep｜>", "｜DSML｜"],
        ..NONE
    },
    Family {
        names: &["kimi_k2"],
        signs: &["<|tool_call_begin|>"],
        calls: &[("<|tool_call_begin|>", Form::Named(&["<|tool_call_end|>"]))],
        dropped: &["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"],
        more: &["<|tool_call_argument_begin|>"],
        ..NONE
    },
    Family {
        names: &["mistral"],
        signs: &["[TOOL_CALLS]"],
        calls: &[("[TOOL_CALLS]", Form::Any(&[]))],
        more: &["[CALL_ID]", "[ARGS]"],
        ..NONE
    },
    Family {
        names: &["command_r7b"],
        signs: &["<|START_ACTION|>"],
        calls: &[("<|START_ACTION|>", Form::Any(&["<|END_ACTION|>"]))],
        dropped: &["<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"],
        ..NONE
    },
    Family {
        names: &["minimax"],
        signs: &["<minimax:tool_call>", "<tool_calls>"],
        calls: &[("<invoke name=\"", Form::Tagged(&INVOKE, &[])), ("<tool_calls>", Form::Any(&["</tool_calls>"]))],
        dropped: &["<minimax:tool_call>", "</minimax:tool_call>"],
        ..NONE
    },
    Family {
        names: &["lfm2"],
        signs: &["<|tool_call_start|>"],
        calls: &[("<|tool_call_start|>", Form::Any(&["<|tool_call_end|>"]))],
        bare: true,
        ..NONE
    },
    Family {
        names: &["gemma"],
        signs: &["<start_function_call>", "<|tool_call>"],
        calls: &[
            ("<start_function_call>", Form::Gemma("<escape>", &["<end_function_call>"])),
            ("<|tool_call>", Form::Gemma("<|\"|>", &["<tool_call|>"])),
        ],
        ..NONE
    },
    Family {
        names: &["granite", "phi4_mini"],
        signs: &["<|tool_call|>", "<|tool|>", "functools["],
        calls: &[
            ("<|tool_call|>", Form::Any(&["<|/tool_call|>", "<|end_of_tool_call|>"])),
            ("<tool_call>", Form::Any(&["</tool_call>"])),
            ("functools", Form::Any(&[])),
        ],
        ..NONE
    },
    Family {
        names: &["llama4"],
        signs: &["<|python_start|>", "<|header_start|>"],
        calls: &[("<|python_start|>", Form::Any(&["<|python_end|>"]))],
        dropped: &["<|python_end|>"],
        bare: true,
        ..NONE
    },
    Family {
        names: &["llama3"],
        signs: &["<|python_tag|>", "Environment: ipython"],
        calls: &[("<|python_tag|>", Form::Any(&[])), ("<function=", Form::Tagged(&FUNCTION, &[]))],
        bare: true,
        ..NONE
    },
    Family {
        names: &["hermes", "qwen", "qwen3_coder", "glm", "smollm3", "nemotron"],
        signs: &["<tool_call>", "<function=", "<arg_key>"],
        calls: &[
            ("<tool_call>", Form::Any(&["</tool_call>"])),
            ("<function=", Form::Tagged(&FUNCTION, &["</tool_call>"])),
        ],
        more: &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</function>", "</parameter>"],
        ..NONE
    },
    NONE,
];

/// What models mark their thoughts with.
const REASONING: [(&str, &str); 9] = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<mm:think>", "</mm:think>"),
    ("◁think▷", "◁/think▷"),
];

/// What some of them put around their answer when they have thought.
const ANSWER: [(&str, &str); 2] = [("<response>", "</response>"), ("<answer>", "</answer>")];

impl Format {
    /// The format of models with the template `source`.
    pub fn of(source: &str) -> Self {
        let family = FAMILIES.iter().find(|family| family.signs.iter().any(|sign| source.contains(sign)));
        Self::with(family.unwrap_or(&NONE), source)
    }

    /// The same, of the family that is called so: one of [`Format::names`].
    pub fn named(name: &str, source: &str) -> Option<Self> {
        let family = FAMILIES.iter().find(|family| family.names.contains(&name))?;
        Some(Self::with(family, source))
    }

    /// What the families are called.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().flat_map(|family| family.names.iter().copied())
    }

    fn with(family: &'static Family, source: &str) -> Self {
        let pair = REASONING.into_iter().find(|(_, close)| source.contains(close));
        let reasoning = pair.filter(|_| family.messages.is_none());
        let mut dropped = family.dropped.to_vec();
        if reasoning.is_some() {
            let answer = ANSWER.into_iter().filter(|(open, _)| source.contains(open));
            dropped.extend(answer.flat_map(|(open, close)| [open, close]));
        }
        Self { family, reasoning, dropped }
    }

    /// The name of the family.
    pub fn family(&self) -> &'static str {
        self.family.names[0]
    }

    /// What a model writes before it calls a tool, any of these; nothing if it writes calls without a mark.
    pub fn call_marks(&self) -> Vec<&'static str> {
        self.family.calls.iter().map(|(mark, _)| *mark).collect()
    }

    /// What comes before the answer where a model thinks first: the end of its thoughts, or the header of the message that is
    /// the answer.
    pub fn answer_mark(&self) -> Option<&'static str> {
        let header =
            || self.family.messages.filter(|m| m.header_end == "<|message|>").map(|_| "<|channel|>final<|message|>");
        self.reasoning.map(|(_, close)| close).or_else(header)
    }

    /// All names of tokens that mean something in what a model writes. Where a vocabulary has them as control tokens, which
    /// else are left out, they have to come as text (`StreamDecoder::keeping`).
    pub fn marks(&self) -> Vec<&'static str> {
        let family = self.family;
        let mut marks: Vec<&str> = self.reasoning.iter().flat_map(|(open, close)| [*open, *close]).collect();
        marks.extend(&self.dropped);
        marks.extend(family.more);
        for (mark, form) in family.calls {
            marks.push(mark);
            match form {
                Form::Any(ends) | Form::Named(ends) => marks.extend(*ends),
                Form::Gemma(quote, ends) => marks.extend(ends.iter().chain([quote])),
                Form::Tagged(tags, ends) => marks.extend(ends.iter().chain([&tags.value_end, &tags.end])),
            }
        }
        if let Some(messages) = family.messages {
            marks.extend(messages.begin.iter().chain(messages.end).chain([&messages.header_end]));
        }
        // One of two tokens: `<|channel>` and a word.
        marks.extend(marks.contains(&"<|channel>thought").then_some("<|channel>"));
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_says_of_which_family_a_model_is() {
        for (source, family, reasoning) in [
            ("<|im_start|>{{ message.content }}", "none", None),
            ("..'<tool_call>\\n{\"name\": \"' .. '</think>'", "hermes", Some("<think>")),
            ("<tool_call>\n<function=example>", "hermes", None),
            ("{{ '[TOOL_CALLS] [' }} [THINK] [/THINK]", "mistral", Some("[THINK]")),
            ("<|start_header_id|> Environment: ipython", "llama3", None),
            ("<|header_start|>", "llama4", None),
            ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜> </think>", "deepseek", Some("<think>")),
            ("<|start|>assistant<|channel|>final<|message|>", "gpt_oss", None),
            ("<|tool_call> <|channel>thought\\n<channel|>", "gemma", Some("<|channel>thought")),
        ] {
            let format = Format::of(source);
            assert_eq!((format.family(), format.reasoning.map(|r| r.0)), (family, reasoning), "{source}");
        }
        assert!(Format::names().all(|name| Format::named(name, "").is_some()));
        assert!(Format::named("nonsense", "").is_none());
    }
}
