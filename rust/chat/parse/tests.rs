//! Each family as it writes, in one piece and in any others.

use super::*;
use crate::chat::message::Reply;
use crate::sampling::Rng;
use minijinja::Value;

fn tools() -> Vec<Tool> {
    let typed = |kind: &str| Value::from_pairs([("type", Value::from(kind))]);
    let nullable = Value::from_pairs([("type", Value::from(vec!["string", "null"]))]);
    let properties = Value::from_pairs([
        ("city", typed("string")),
        ("days", typed("integer")),
        ("note", nullable),
        ("o", typed("object")),
    ]);
    let schema = Value::from_pairs([("type", Value::from("object")), ("properties", properties)]);
    let function = Value::from_pairs([("name", Value::from("weather")), ("parameters", schema)]);
    let wrapped = Value::from_pairs([("type", Value::from("function")), ("function", function)]);
    let plain = Value::from_pairs([("name", Value::from("now"))]);
    vec![Tool::of(&wrapped).unwrap(), Tool::of(&plain).unwrap()]
}

fn setup(prompt: &str) -> Setup<'_> {
    Setup { calls: Calls::Auto, tools: tools(), reasoning: true, prompt, seed: 7 }
}

/// The answer, whose text comes cut where `cut` says so; each piece is checked to make sense after those before.
fn parsed(format: &Format, setup: Setup<'_>, text: &str, cut_off: bool, mut cut: impl FnMut() -> bool) -> Reply {
    let mut parser = Parser::new(format, setup);
    let mut reply = Reply::default();
    let mut take = |deltas: Vec<Delta>| {
        for delta in deltas {
            match &delta {
                Delta::Call { index, .. } => assert_eq!(*index, reply.calls.len()),
                Delta::Arguments { index, text } => assert!(index + 1 == reply.calls.len() && !text.is_empty()),
                Delta::Content(text) | Delta::Reasoning(text) => assert!(!text.is_empty()),
            }
            reply.push(&delta);
        }
    };
    let mut piece = String::new();
    for c in text.chars() {
        piece.push(c);
        if cut() {
            take(parser.push(&std::mem::take(&mut piece)));
        }
    }
    take(parser.push(&piece));
    take(parser.finish(cut_off));
    reply
}

/// The answer; it is the same however it is cut.
fn read(source: &str, prompt: &str, text: &str, cut_off: bool) -> Reply {
    let format = Format::named(source, source).unwrap_or_else(|| Format::of(source));
    let whole = parsed(&format, setup(prompt), text, cut_off, || false);
    assert_eq!(parsed(&format, setup(prompt), text, cut_off, || true), whole, "{text}");
    let mut rng = Rng::new(3);
    for _ in 0..20 {
        assert_eq!(parsed(&format, setup(prompt), text, cut_off, || rng.next_u64().is_multiple_of(5)), whole, "{text}");
    }
    whole
}

/// Content, reasoning and calls in a line.
fn line(reply: &Reply) -> String {
    let calls: String = reply.calls.iter().map(|call| format!(" {}({})", call.name, call.arguments)).collect();
    let reasoning = if reply.reasoning.is_empty() { String::new() } else { format!("[{}] ", reply.reasoning) };
    format!("{reasoning}{:?}{calls}", reply.content)
}

const HERMES: &str = "<tool_call> <think></think>";

#[test]
fn hermes_and_qwen_call_in_json() {
    for (text, expected) in [
        ("plain  text\n", r#""plain  text\n""#),
        ("  \n", r#""  \n""#),
        ("<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>", r#""" now({})"#),
        (
            "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"a}\\\"{\", \"days\": [1, {}]}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\"}\n</tool_call>\n",
            r#""Let me see." weather({"city": "a}\"{", "days": [1, {}]}) now({})"#,
        ),
        // Arguments first, in a string, or inside of `function`; other keys.
        (
            r#"<tool_call>{"arguments": {"city": 1}, "x": [1], "y": 2, "name": "weather"}</tool_call>"#,
            r#""" weather({"city": 1})"#,
        ),
        (r#"<tool_call>{"name": "weather", "arguments": "{\"city\": 1}"}</tool_call>"#, r#""" weather({"city": 1})"#),
        (r#"<tool_call>{"type":"function","function":{"name":"now","arguments":null}}</tool_call>"#, r#""" now({})"#),
        // Its last bracket is forgotten.
        ("<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": 1}\n</tool_call>after", r#""after" now({"a": 1})"#),
        // What is no call is text, all of it.
        ("Use <tool_call> to call.", r#""Use <tool_call> to call.""#),
        ("a <tool_call>\n{\"no\": 1}\n</tool_call> b", r#""a <tool_call>\n{\"no\": 1}\n</tool_call> b""#),
        ("a\n\n<tool_call>", r#""a\n\n<tool_call>""#),
        ("<tool_call>{\"name\": \"weather\", \"argu", r#""<tool_call>{\"name\": \"weather\", \"argu""#),
        ("<tool", r#""<tool""#),
        // Between calls and after them.
        (
            "one <tool_call>{\"name\":\"now\"}</tool_call>\ntwo <tool_call>{\"name\":\"now\"}</tool_call> \n",
            r#""one\ntwo" now({}) now({})"#,
        ),
        // Thoughts.
        ("<think>\nwhy\n</think>\n\nbecause", r#"[why] "because""#),
        ("\n <think>why", r#"[why] """#),
        ("no <think>x</think> y", r#""no <think>x y""#),
        ("a closer </think> alone", r#""a closer alone""#),
        ("<think>a</think><tool_call>{\"name\":\"now\"}</tool_call>\n<think>b</think>c", r#"[ab] "c" now({})"#),
        ("<think>I call <tool_call>{\"name\":\"now\"}</tool_call> done", r#"[I call] "done" now({})"#),
        ("<think>the <tool_call> mark</think>x", r#"[the <tool_call> mark] "x""#),
    ] {
        assert_eq!(line(&read(HERMES, "assistant\n", text, false)), expected, "{text}");
    }
    assert_eq!(line(&read(HERMES, "assistant\n<think>\n", "why</think>so", false)), r#"[why] "so""#);
    assert_eq!(line(&read(HERMES, "assistant\n<think>\n", "\nwhy", true)), r#"[why] """#);
    assert_eq!(line(&read(HERMES, "<think>\n\n</think>\n\n", "so", true)), r#""so""#);
    let cut = read(HERMES, "", r#"<tool_call>{"name": "weather", "arguments": {"city": "ab"#, true);
    assert_eq!(line(&cut), r#""" weather({"city": "ab)"#);
}

#[test]
fn qwen_coder_glm_and_minimax_call_in_tags() {
    let coder = "<tool_call>\n<function=weather>\n<parameter=city>\nNew\n\"York\"\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";
    assert_eq!(line(&read(HERMES, "", coder, false)), r#""" weather({"city": "New\n\"York\"", "days": 3})"#);
    for (text, expected) in [
        // Without the first tag; a tag in a value; nothing, and a word of Python.
        (
            "<function=weather>\n<parameter=city>\na </parameter> b\n\n</parameter>\n<parameter=note>\nnull\n</parameter>\n<parameter=o>\n{'a': True}\n</parameter>\n</function>\n</tool_call>ok",
            r#""ok" weather({"city": "a </parameter> b\n", "note": null, "o": {"a": true}})"#,
        ),
        ("<tool_call>\n<function=now>\n</function>\n</tool_call>", r#""" now({})"#),
        ("<function=weather>{\"city\": \"x\"}</function>", r#""" weather({"city": "x"})"#),
        ("<function=weather> is a tag", r#""<function=weather> is a tag""#),
        ("<function=weather>\n<parameter=city>\n5", r#""" weather({"city": "5"})"#),
        ("<function=weather>\n<parameter=days>\n5\n</parameter>\n", r#""" weather({"days": 5})"#),
        (
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>5</arg_value>\n<arg_key>z</arg_key>\n<arg_value>[1]</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
            r#""" weather({"city": "5", "z": [1]}) now({})"#,
        ),
    ] {
        assert_eq!(line(&read(HERMES, "", text, false)), expected, "{text}");
    }
    let cut = read(HERMES, "", "<function=weather>\n<parameter=city>\nNew", true);
    assert_eq!(line(&cut), r#""" weather({"city": "New)"#);
    let minimax = "Yes.\n<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">a\n</parameter>\n<parameter name=\"days\">2</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>";
    let expected = r#""Yes." weather({"city": "a\n", "days": 2}) now({})"#;
    assert_eq!(line(&read("<minimax:tool_call>", "", minimax, false)), expected);
}

#[test]
fn llama_calls_without_a_mark() {
    for (text, expected) in [
        (r#"{"name": "weather", "parameters": {"city": "x"}}"#, r#""" weather({"city": "x"})"#),
        (r#"{"name": "now", "parameters": {}}; {"name": "now", "arguments": {}}"#, r#""" now({}) now({})"#),
        (r#"<|python_tag|>{"name": "weather", "parameters": {"city": "x"}}"#, r#""" weather({"city": "x"})"#),
        (r#"<|python_tag|>brave_search.call(query="a, (b)")"#, r#""" brave_search({"query": "a, (b)"})"#),
        (r#"<function=weather>{"city": "x"}</function>"#, r#""" weather({"city": "x"})"#),
        ("[weather(city='x', days=2), now()]", r#""" weather({"city": "x", "days": 2}) now({})"#),
        // Of no tool, without arguments, or not at the start: text.
        (r#"{"name": "x", "parameters": {}} is"#, r#""{\"name\": \"x\", \"parameters\": {}} is""#),
        (r#"{"name": "now"}"#, r#""{\"name\": \"now\"}""#),
        (r#"{"a": {"b": [1]}}"#, r#""{\"a\": {\"b\": [1]}}""#),
        (r#"Use {"name": "now", "parameters": {}}"#, r#""Use {\"name\": \"now\", \"parameters\": {}}""#),
        ("[1, 2]", r#""[1, 2]""#),
        ("[x(1)]", r#""[x(1)]""#),
        ("{", r#""{""#),
        ("[", r#""[""#),
    ] {
        assert_eq!(line(&read("llama3", "", text, false)), expected, "{text}");
    }
}

#[test]
fn calls_in_python() {
    for (text, expected) in [
        (
            "[weather(city=\"it's, (x)\", days=3, o={'a': [1, None]}), now()]",
            r#""" weather({"city": "it's, (x)", "days": 3, "o": {"a": [1, null]}}) now({})"#,
        ),
        ("[weather('x', 2)]", r#""" weather({"city": "x", "days": 2})"#),
        ("<|tool_call_start|>[weather(city=\"x\")]<|tool_call_end|>Checking.", r#""Checking." weather({"city": "x"})"#),
        ("<|tool_call_start|>[{\"name\": \"now\", \"arguments\": {}}]<|tool_call_end|>", r#""" now({})"#),
    ] {
        assert_eq!(line(&read("lfm2", "", text, false)), expected, "{text}");
    }
    assert_eq!(line(&read("llama4", "", "<|python_start|>[now()]<|python_end|>", false)), r#""" now({})"#);
    assert_eq!(line(&read("lfm2", "", "[weather(city='x', days=1", true)), r#""" weather({"city": "x", "days": 1)"#);
}

#[test]
fn mistral_in_both_forms() {
    for (text, expected) in [
        (
            r#"[TOOL_CALLS][{"name": "weather", "arguments": {"city": "x"}, "id": "abcdefghi"}, {"name": "now", "arguments": {}}]"#,
            r#""" weather({"city": "x"}) now({})"#,
        ),
        (r#"[TOOL_CALLS]weather{"city": "x"}"#, r#""" weather({"city": "x"})"#),
        (r#"ok[TOOL_CALLS]weather[ARGS]{"city": 1}[TOOL_CALLS]now[ARGS]{}"#, r#""ok" weather({"city": 1}) now({})"#),
        ("[THINK]why[/THINK]so", r#"[why] "so""#),
        ("[TOOL_CALLS] what", r#""[TOOL_CALLS] what""#),
    ] {
        assert_eq!(line(&read("[TOOL_CALLS] [/THINK]", "", text, false)), expected, "{text}");
    }
    let reply = read("mistral", "", r#"[TOOL_CALLS]now[CALL_ID]a1B2c3D4e[ARGS]{}"#, false);
    assert_eq!((reply.calls[0].id.as_str(), reply.calls[0].name.as_str()), ("a1B2c3D4e", "now"));
    let made = read("mistral", "", r#"[TOOL_CALLS][{"name": "now", "arguments": {}}]"#, false).calls[0].id.clone();
    assert!(made.len() == 9 && made.bytes().all(|b| b.is_ascii_alphanumeric()), "{made}");
}

#[test]
fn deepseek_and_kimi_between_marks() {
    let deepseek = "<｜tool▁calls▁begin｜>";
    for (text, expected) in [
        (
            "why</think>Ok.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"x\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            r#"[why] "Ok." weather({"city": "x"}) now({})"#,
        ),
        (
            "</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"x\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            r#""" weather({"city": "x"})"#,
        ),
        (
            "</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">5</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">5</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
            r#""" weather({"city": "5", "days": 5})"#,
        ),
    ] {
        let source = format!("{deepseek}<｜tool▁call▁begin｜></think>");
        assert_eq!(line(&read(&source, "<｜Assistant｜><think>\n", text, false)), expected, "{text}");
    }
    let kimi = "Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"city\": \"x\"}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>";
    let reply = read("kimi_k2", "", kimi, false);
    assert_eq!(line(&reply), r#""Hm." weather({"city": "x"}) now({})"#);
    assert_eq!(reply.calls[1].id, "functions.now:1");
}

#[test]
fn messages_in_channels() {
    let begin = "<|start|>assistant";
    for (text, expected) in [
        (
            "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>so<|return|>",
            r#"[why] "so""#,
        ),
        (
            "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"x\"}",
            r#"[why] "I look." weather({"city": "x"})"#,
        ),
        (
            " to=functions.now<|channel|>commentary json<|message|>{}<|call|><|start|>assistant to=functions.now<|channel|>commentary<|message|>{}",
            r#""" now({}) now({})"#,
        ),
        ("plain", r#""plain""#),
        ("<|channel|>final", r#""<|channel|>final""#),
    ] {
        assert_eq!(line(&read("gpt_oss", begin, text, false)), expected, "{text}");
    }
    let begun = "<|start|>assistant<|channel|>final<|message|>";
    assert_eq!(line(&read("gpt_oss", begun, "so", false)), r#""so""#);
    let functionary = "all\nI look.\n>>>weather\n{\"city\": \"x\"}\n>>>now\n{}";
    assert_eq!(line(&read("functionary", ">>>", functionary, false)), r#""I look." weather({"city": "x"}) now({})"#);
    assert_eq!(line(&read("functionary", ">>>", "all\nIt is\n>>> 1 + 1\n2", false)), r#""It is\n>>> 1 + 1\n2""#);
}

#[test]
fn the_other_families() {
    for (family, text, expected) in [
        (
            "command_r7b",
            "<|START_ACTION|>[\n {\"tool_call_id\": \"0\", \"tool_name\": \"weather\", \"parameters\": {\"city\": \"x\"}}\n]<|END_ACTION|>",
            r#""" weather({"city": "x"})"#,
        ),
        ("command_r7b", "<|START_RESPONSE|>Hi.<|END_RESPONSE|>", r#""Hi.""#),
        ("granite", "<|tool_call|>[{\"name\": \"now\", \"arguments\": {}}]", r#""" now({})"#),
        ("granite", "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>", r#""" now({})"#),
        ("phi4_mini", "<|tool_call|>[{\"name\": \"now\", \"arguments\": {}}]<|/tool_call|>", r#""" now({})"#),
        ("phi4_mini", "functools[{\"name\": \"now\", \"arguments\": {}}]", r#""" now({})"#),
        (
            "minimax",
            "<tool_calls>\n{\"name\": \"now\", \"arguments\": {}}\n{\"name\": \"now\"}\n</tool_calls>",
            r#""" now({}) now({})"#,
        ),
        (
            "gemma",
            "<start_function_call>call:weather{city:<escape>a, \"b\"}<escape>,days:2}<end_function_call>",
            r#""" weather({"city": "a, \"b\"}", "days": 2})"#,
        ),
        (
            "gemma",
            "<|tool_call>call:weather{city:<|\"|>x<|\"|>,o:{a:[1,<|\"|>y<|\"|>]}}<tool_call|><|tool_call>call:now{}<tool_call|>",
            r#""" weather({"city": "x", "o": {"a": [1, "y"]}}) now({})"#,
        ),
    ] {
        assert_eq!(line(&read(family, "", text, false)), expected, "{text}");
    }
    assert_eq!(
        line(&read(
            "<|START_ACTION|> <|END_THINKING|>",
            "",
            "<|START_THINKING|>w<|END_THINKING|><|START_RESPONSE|>s",
            false
        )),
        r#"[w] "s""#
    );
    assert_eq!(line(&read("<|tool_call> <channel|>", "", "<|channel>thought\nw\n<channel|>s", false)), r#"[w] "s""#);
    assert_eq!(
        line(&read("<response></response><think></think>", "", "<think>w</think>\n<response>s</response>", false)),
        r#"[w] "s""#
    );
}

#[test]
fn an_answer_that_was_made_of_calls() {
    let format = Format::of("</think>");
    let json = |text: &str| {
        let setup = || Setup { calls: Calls::Json, tools: vec![], reasoning: true, prompt: "", seed: 1 };
        let whole = parsed(&format, setup(), text, false, || false);
        assert_eq!(parsed(&format, setup(), text, false, || true), whole);
        line(&whole)
    };
    assert_eq!(json(r#"{"name": "f", "arguments": {"a": 1}}"#), r#""" f({"a": 1})"#);
    assert_eq!(json(r#"<think>w</think> [{"name": "f", "parameters": {}}, {"name": "g"}]"#), r#"[w] "" f({}) g({})"#);
    assert_eq!(json("no"), r#""no""#);
}

/// All that is not white space or a mark that means something.
fn letters(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

#[test]
fn nothing_is_lost_however_an_answer_is_cut_and_whatever_is_in_it() {
    let mut rng = Rng::new(11);
    let mut random = move |n: usize| (rng.next_u64() % n as u64) as usize;
    let families: std::collections::BTreeSet<_> =
        Format::names().map(|name| Format::named(name, "").unwrap().family()).collect();
    for family in families {
        let format = Format::named(family, "<think></think>").unwrap();
        let marks = format.marks();
        let bits = [
            " ",
            "\n",
            "x",
            "é",
            "a b",
            "{",
            "}",
            "[",
            "]",
            "\"",
            ":",
            ",",
            "(",
            ")",
            "=",
            "name",
            "\"name\": \"now\"",
            "\"arguments\": {",
            "now",
            "weather",
            "city",
            "to=",
            "all\n",
            ">",
            "```",
            "'",
            "\\",
            "<",
            "call:",
            "null",
        ];
        for _ in 0..250 {
            let text: String = (0..random(14))
                .map(|_| {
                    if random(2) == 0 {
                        marks.get(random(marks.len().max(1))).copied().unwrap_or("y")
                    } else {
                        bits[random(bits.len())]
                    }
                })
                .collect();
            let cut_off = random(2) == 0;
            let whole = parsed(&format, setup(""), &text, cut_off, || false);
            assert_eq!(parsed(&format, setup(""), &text, cut_off, || true), whole, "{family}: {text:?}");
            assert_eq!(parsed(&format, setup(""), &text, cut_off, || random(3) == 0), whole, "{family}: {text:?}");
            if whole.calls.is_empty() {
                // All of it is there, in its order, but for marks.
                let mut said = letters(&(whole.reasoning.clone() + &whole.content));
                let mut rest = letters(&text);
                if whole.reasoning.is_empty() || whole.content.is_empty() {
                    for mark in marks.iter().chain(&["all", "assistant", "to="]) {
                        let mark = letters(mark);
                        (said, rest) = (said.replace(&mark, ""), rest.replace(&mark, ""));
                    }
                    if format.family.messages.is_none() {
                        assert_eq!(said, rest, "{family}: {text:?}");
                    }
                }
            }
        }
    }
}
