//! Messages to a prompt, by the template of the model.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::{Answer, Refusal};
use super::json::{At, Fields, Json, object};
use super::limits;
use crate::chat::{self, Guard, Refused, Value};
use crate::model::Model;
use crate::threads::Interrupt;
use crate::tokenizer::Tokenizer;

const TEMPLATE: &str = "tokenizer.chat_template";

/// The chat template of a model.
pub struct Chat {
    tokenizer: Arc<Tokenizer>,
    source: String,
    with_tools: Option<String>,
    special: [(&'static str, String); 2],
    guard: Guard,
}

/// What becomes a prompt.
pub struct Conversation {
    /// As the template is given them.
    pub messages: Json,
    pub tools: Option<Json>,
    /// Further variables of the template.
    pub variables: Vec<(String, Json)>,
    /// Whether the template begins an answer.
    pub add_generation_prompt: bool,
    /// The text of the last message, if the answer is to go on with it.
    pub go_on: Option<String>,
}

impl Chat {
    /// Reads the template. Without one it is ChatML, if the vocabulary has its tokens.
    pub fn new(model: &Model) -> Answer<Self> {
        let tokenizer = Arc::clone(model.tokenizer()?);
        let metadata = &model.checkpoint().metadata;
        let with_tools = metadata.str(&format!("{TEMPLATE}.tool_use"))?;
        let source = match metadata.str(TEMPLATE)? {
            Some(source) => source,
            None if tokenizer.encode("<|im_start|>", false, true)?.len() == 1 => chat::CHATML.into(),
            None => {
                let what = "the model has no chat template: write the prompt yourself, for /v1/completions";
                return Err(Refusal::new(400, "template_error", what));
            }
        };
        let text = |id: Option<u32>| -> Answer<String> {
            let bytes = id.map_or(Ok(Vec::new()), |id| tokenizer.token_bytes(id))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let special = [("bos_token", text(tokenizer.bos())?), ("eos_token", text(tokenizer.eos())?)];
        let guard = Guard::new(&tokenizer)?;
        Ok(Self { tokenizer, source, with_tools, special, guard })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The tokens of the prompt. Nothing that a message says is a control token.
    pub fn encode(&self, conversation: &Conversation, at_most: usize, interrupt: &Interrupt) -> Answer<Vec<u32>> {
        let prompt = self.rendered(conversation, Some(&self.guard))?;
        Ok(chat::encode(&self.tokenizer, &prompt, at_most, interrupt)?)
    }

    /// The text of the prompt.
    pub fn render(&self, conversation: &Conversation) -> Answer<String> {
        self.rendered(conversation, None)
    }

    fn rendered(&self, conversation: &Conversation, guard: Option<&Guard>) -> Answer<String> {
        let mut variables = vec![
            ("add_generation_prompt".to_string(), Value::from(conversation.add_generation_prompt)),
            ("messages".to_string(), to_value(&conversation.messages, guard)?),
        ];
        for (name, text) in &self.special {
            variables.push(((*name).into(), Value::from(text.as_str())));
        }
        if let Some(tools) = &conversation.tools {
            variables.push(("tools".into(), to_value(tools, guard)?));
        }
        for (name, value) in &conversation.variables {
            variables.push((name.clone(), to_value(value, guard)?));
        }
        let source = self.with_tools.as_ref().filter(|_| conversation.tools.is_some()).unwrap_or(&self.source);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let mut prompt = chat::render(source, Value::from_pairs(variables), now).map_err(|refused| match refused {
            Refused::Messages(_) | Refused::Template(_) => Refusal::new(400, "template_error", refused.to_string()),
        })?;
        if let Some(last) = &conversation.go_on {
            // Up to the end of the last message, without what the template writes after it.
            let last = guard.map_or_else(|| Ok(last.clone()), |guard| guard.broken(last))?;
            let (at, len) = match (prompt.rfind(&last), prompt.rfind(last.trim())) {
                (Some(at), _) => (at, last.len()),
                (None, Some(at)) => (at, last.trim().len()),
                (None, None) => {
                    let what = "the chat template does not write the last message as it is: it cannot be continued";
                    return Err(Refusal::new(400, "template_error", what));
                }
            };
            prompt.truncate(at + len);
        }
        Ok(prompt)
    }
}

/// What a value is to a template; with a guard, nothing in it is a control token.
fn to_value(json: &Json, guard: Option<&Guard>) -> Answer<Value> {
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

/// The conversation of a request: `messages`, `tools` and what is about the template.
pub fn conversation(fields: &Fields<'_>, template: &str) -> Answer<Conversation> {
    let given = fields.need("messages")?;
    let mut messages = Vec::new();
    for message in given.list(limits::MESSAGES)? {
        messages.push(self::message(&message, template)?);
    }
    let Some(last) = messages.last() else { return Err(given.refused("is empty, there must be at least one message")) };
    let flag = |name| fields.get(name).map(|at| at.bool()).transpose();
    let (add, go_on) = (flag("add_generation_prompt")?, flag("continue_final_message")?);
    if add == Some(true) && go_on == Some(true) {
        let what = "add_generation_prompt and continue_final_message are both true, only one can be";
        return Err(Refusal::invalid(what).at("/continue_final_message"));
    }
    let is_answer = last.get("role").and_then(Json::str) == Some("assistant") && last.get("tool_calls").is_none();
    let go_on = go_on.unwrap_or(is_answer && add != Some(true));
    let go_on = if go_on { last.get("content").and_then(Json::str).map(String::from) } else { None };
    let mut variables = Vec::new();
    if let Some(at) = fields.get("chat_template_kwargs") {
        let Json::Map(pairs) = at.value else { return Err(at.must_be("an object")) };
        variables.extend(pairs.iter().map(|(name, value)| (name.to_string(), value.clone())));
    }
    if let Some(at) = fields.get("reasoning_effort") {
        variables.push(("reasoning_effort".into(), at.str()?.into()));
    }
    Ok(Conversation {
        messages: Json::List(messages),
        tools: None,
        variables,
        add_generation_prompt: go_on.is_none() && add.unwrap_or(true),
        go_on,
    })
}

/// A message as templates know them: content is one text, arguments of calls are objects.
fn message(at: &At<'_>, template: &str) -> Answer<Json> {
    let fields = at.object()?;
    let role = fields.need("role")?.word(&["system", "developer", "user", "assistant", "tool"])?;
    let role = if role == "developer" && !template.contains("developer") { "system" } else { role };
    let content = match fields.get("content") {
        Some(content) => Json::Text(text(&content)?),
        None if role == "assistant" => Json::Null,
        None => return Err(at.refused("has no content")),
    };
    let mut message = object! { "role" => role, "content" => content };
    for name in ["name", "tool_call_id", "reasoning_content", "reasoning"] {
        if let Some(at) = fields.get(name) {
            message.push(name, at.str()?);
        }
    }
    if let Some(calls) = fields.get("tool_calls") {
        let calls = calls.list(limits::TOOLS)?.map(|call| tool_call(&call)).collect::<Answer<Vec<Json>>>()?;
        if !calls.is_empty() {
            message.push("tool_calls", Json::List(calls));
        }
    }
    if message.get("content") == Some(&Json::Null) && message.get("tool_calls").is_none() {
        return Err(at.refused("has neither content nor tool_calls"));
    }
    Ok(message)
}

/// A call in the history. Templates go through its arguments, which clients send as text.
fn tool_call(at: &At<'_>) -> Answer<Json> {
    let function = at.object()?.need("function")?;
    let fields = function.object()?;
    let name = fields.need("name")?.str()?;
    let arguments = match fields.get("arguments") {
        Some(at) if at.is_object() => at.value.clone(),
        Some(at) => {
            let text = at.str()?;
            Json::parse(text.as_bytes()).unwrap_or_else(|_| Json::Text(text.into()))
        }
        None => Json::Map(Vec::new()),
    };
    let mut call = object! { "type" => "function", "function" => object! { "name" => name, "arguments" => arguments } };
    if let Some(id) = at.value.get("id").and_then(Json::str) {
        call.push("id", id);
    }
    Ok(call)
}

/// The text of a content: a string, or parts of text.
pub fn text(at: &At<'_>) -> Answer<String> {
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
