//! Messages to a prompt, by the template of the model.

use std::time::{SystemTime, UNIX_EPOCH};

use super::error::{Answer, Refusal};
use super::json::{At, Fields, Json};
use super::limits;
use crate::chat::{Guard, Question, Template, Value};
use crate::error::Error;
use crate::model::Model;
use crate::threads::Interrupt;

const TEMPLATE: &str = "tokenizer.chat_template";

/// The template of a model.
pub fn template(model: &Model) -> Answer<Template> {
    let metadata = &model.checkpoint().metadata;
    let for_tools = metadata.str(&format!("{TEMPLATE}.tool_use"))?;
    let path = model.checkpoint().path();
    Template::new(model.tokenizer()?, metadata.str(TEMPLATE)?, for_tools, path).map_err(of_template)
}

/// What a template says against a request is the request's, and not ours.
fn of_template(e: Error) -> Refusal {
    match e {
        Error::Argument(_) | Error::Unsupported { .. } => Refusal { code: "template_error", ..Refusal::from(e) },
        e => e.into(),
    }
}

/// The prompt of a question, and what a parser of the answer has to see of it.
pub fn prompt(
    template: &Template,
    question: &Question,
    at_most: usize,
    interrupt: &Interrupt,
) -> Answer<crate::chat::Prompt> {
    template.prompt(question, at_most, interrupt).map_err(of_template)
}

/// The text of the prompt.
pub fn text(template: &Template, question: &Question) -> Answer<String> {
    template.text(question).map_err(of_template)
}

/// What a value is to a template; with a guard, nothing in it is a control token.
pub fn to_value(json: &Json, guard: Option<&Guard>) -> Answer<Value> {
    let text = |text: &str| -> Answer<Value> {
        Ok(guard.map_or_else(|| Ok(Value::from(text)), |guard| guard.broken(text).map(Value::from))?)
    };
    Ok(match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Int(n) => Value::from(*n),
        Json::Large(n) => Value::from(*n),
        Json::Float(x) => Value::from(*x),
        Json::Text(t) => text(t)?,
        Json::List(list) => Value::from(list.iter().map(|item| to_value(item, guard)).collect::<Answer<Vec<Value>>>()?),
        Json::Map(pairs) => {
            let pairs = pairs.iter().map(|(name, value)| Ok((text(name)?, to_value(value, guard)?)));
            Value::from_pairs(pairs.collect::<Answer<Vec<(Value, Value)>>>()?)
        }
    })
}

/// The conversation of a request: `messages` and what is about the template. For a prompt that is only shown, names of
/// control tokens need not be broken.
pub fn question(fields: &Fields<'_>, guard: Option<&Guard>, tools: Value) -> Answer<Question> {
    let given = fields.need("messages")?;
    let mut messages = Vec::new();
    for message in given.list(limits::MESSAGES)? {
        check_message(&message)?;
        messages.push(to_value(message.value, guard).map_err(|e| e.at(&message.pointer))?);
    }
    let Json::List(list) = given.value else { return Err(given.must_be("a list")) };
    let Some(last) = list.last() else { return Err(given.refused("is empty, there must be at least one message")) };
    let flag = |name| fields.get(name).map(|at| at.bool()).transpose();
    let (add, go_on) = (flag("add_generation_prompt")?, flag("continue_final_message")?);
    if add == Some(true) && go_on == Some(true) {
        let what = "add_generation_prompt and continue_final_message are both true, only one can be";
        return Err(Refusal::invalid(what).at("/continue_final_message"));
    }
    let is_answer = last.get("role").and_then(Json::str) == Some("assistant")
        && last.get("tool_calls").is_none()
        && last.get("content").and_then(Json::str).is_some_and(|text| !text.is_empty());
    let continue_final = go_on.unwrap_or(is_answer && add != Some(true));
    let mut variables = Vec::new();
    if let Some(at) = fields.get("chat_template_kwargs") {
        let Json::Map(pairs) = at.value else { return Err(at.must_be("an object")) };
        for (name, value) in pairs {
            variables.push((name.to_string(), to_value(value, guard)?));
        }
    }
    if let Some(at) = fields.get("reasoning_effort") {
        variables.push(("reasoning_effort".into(), Value::from(at.str()?)));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let add_generation_prompt = !continue_final && add.unwrap_or(true);
    Ok(Question { messages: Value::from(messages), tools, variables, add_generation_prompt, continue_final, now })
}

/// Whether it is a message that a template can be given.
fn check_message(at: &At<'_>) -> Answer<()> {
    let fields = at.object()?;
    let role = fields.need("role")?.word(&["system", "developer", "user", "assistant", "tool"])?;
    if let Some(calls) = fields.get("tool_calls") {
        for call in calls.list(limits::TOOLS)? {
            let function = call.object()?.need("function")?;
            let fields = function.object()?;
            fields.need("name")?.str()?;
            if let Some(arguments) = fields.get("arguments")
                && !arguments.is_object()
            {
                arguments.str()?;
            }
        }
    }
    match fields.get("content") {
        Some(content) => text_of(&content).map(|_| ()),
        None if role == "assistant" && fields.get("tool_calls").is_some() => Ok(()),
        None if role == "assistant" => Err(at.refused("has neither content nor tool_calls")),
        None => Err(at.refused("has no content")),
    }
}

/// The text of a content: a string, or parts of text.
pub fn text_of(at: &At<'_>) -> Answer<String> {
    if !at.is_list() {
        return at.str().map(String::from);
    }
    let mut parts = Vec::new();
    for part in at.list(limits::MESSAGES)? {
        let fields = part.object()?;
        let kind = fields.need("type")?;
        if !["text", "input_text", "output_text"].contains(&kind.str()?) {
            return Err(kind.must_be("\"text\": other parts are not supported").coded("unsupported_parameter"));
        }
        parts.push(fields.need("text")?.str()?);
    }
    Ok(parts.join("\n\n"))
}
