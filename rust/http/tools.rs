//! The tools of a request, and whether the model may, must or must not call them.

use super::error::{Answer, Refusal};
use super::json::{At, Fields, Json, object};
use super::limits;
use super::prompt::to_value;
use crate::chat::{Calls, Guard, Tool, Value};
use crate::grammar::Grammar;

/// The tools of a request.
#[derive(Default)]
pub struct Tools {
    /// As the template is given them; undefined if there are none.
    pub described: Value,
    /// As the parser is.
    pub known: Vec<Tool>,
    /// Which calls the parser looks for.
    pub calls: Calls,
    /// What the answer must be, if it must be a call.
    pub grammar: Option<Grammar>,
}

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
pub fn tools(fields: &Fields<'_>, guard: &Guard) -> Answer<Tools> {
    let choice = fields.get("tool_choice");
    let parallel = fields.get("parallel_tool_calls").map_or(Ok(true), |at| at.bool())?;
    let Some(given) = fields.get("tools") else { return none(choice) };
    let mut listed = Vec::new();
    for at in given.list(limits::TOOLS)? {
        let tool = at.object()?;
        let kind = tool.get("type").map_or(Ok("function"), |at| at.word(&["function"]));
        kind.map_err(|e| e.coded("unsupported_parameter"))?;
        let function = tool.need("function")?;
        let inner = function.object()?;
        let name = inner.need("name")?;
        if !(1..=128).contains(&name.str()?.len()) {
            return Err(name.must_be("a name of 1 to 128 bytes"));
        }
        if let Some(at) = inner.get("parameters") {
            at.object()?;
            if at.value.to_string().len() > limits::SCHEMA {
                return Err(at
                    .refused(format_args!("is larger than {} bytes", limits::SCHEMA))
                    .coded("invalid_schema"));
            }
        }
        let normal = object! { "type" => "function", "function" => function.value.clone() };
        listed.push((name.str()?.to_string(), normal));
    }
    if listed.is_empty() {
        return none(choice);
    }
    let wanted = match &choice {
        None => Wanted::Auto,
        Some(at) if at.is_text() => match at.word(&["none", "auto", "required"])? {
            "none" => return Ok(Tools::default()),
            "auto" => Wanted::Auto,
            _ => Wanted::Any,
        },
        Some(at) => {
            let choice = at.object()?;
            choice.need("type")?.word(&["function"])?;
            let name = match choice.get("name") {
                Some(name) => name, // as Responses have it
                None => choice.need("function")?.object()?.need("name")?,
            };
            if !listed.iter().any(|(known, _)| Some(known.as_str()) == name.value.str()) {
                return Err(name.refused("names no tool of the request"));
            }
            Wanted::Named(name.str()?.to_string())
        }
    };
    let described = Json::List(listed.iter().map(|(_, tool)| tool.clone()).collect());
    let known = listed.iter().filter_map(|(_, tool)| Tool::of(&to_value(tool, None).ok()?)).collect();
    let schemas = |wanted: &dyn Fn(&str) -> bool| {
        let calls = listed.iter().filter(|(name, _)| wanted(name)).map(|(name, tool)| call_schema(name, tool));
        calls.collect::<Vec<_>>()
    };
    let (calls, schemas) = match &wanted {
        Wanted::Auto => (Calls::Auto, None),
        Wanted::Any => (Calls::Json, Some(schemas(&|_| true))),
        Wanted::Named(name) => (Calls::Json, Some(schemas(&|known| known == name))),
    };
    let grammar = schemas.map(|calls| {
        let one = object! { "anyOf" => calls };
        let schema = if parallel && wanted == Wanted::Any {
            object! { "type" => "array", "items" => one, "minItems" => 1u32, "maxItems" => 16u32 }
        } else {
            one
        };
        Grammar::from_schema_text(&schema.to_string(), false)
    });
    Ok(Tools { described: to_value(&described, Some(guard))?, known, calls, grammar: grammar.transpose()? })
}

#[derive(PartialEq)]
enum Wanted {
    Auto,
    Any,
    Named(String),
}

/// Without tools there is nothing to call.
fn none(choice: Option<At<'_>>) -> Answer<Tools> {
    match choice {
        Some(at) if at.value.str() != Some("none") && at.value.str() != Some("auto") => {
            Err(Refusal { code: "invalid_value", ..at.refused("is given, and no tools are") })
        }
        _ => Ok(Tools::default()),
    }
}

/// What a call of a tool is, in JSON.
fn call_schema(name: &str, tool: &Json) -> Json {
    let parameters = tool.get("function").and_then(|function| function.get("parameters")).cloned();
    let parameters = parameters.unwrap_or_else(|| object! { "type" => "object" });
    object! {
        "type" => "object",
        "properties" => object! { "name" => object! { "const" => name }, "arguments" => parameters },
        "required" => vec!["name", "arguments"],
        "additionalProperties" => false,
    }
}
