//! `GET /openapi.json`: the routes, for programs. It is made of the table of routes, so that it cannot say otherwise.

use super::json::{Json, object};
use super::limits;
use super::route::{Access, Handler, ROUTES, Route};

pub fn openapi() -> Json {
    let mut paths: Vec<(std::borrow::Cow<'static, str>, Json)> = Vec::new();
    for route in ROUTES {
        for path in [route.path].iter().chain(route.aliases) {
            let method = (route.method.to_ascii_lowercase().into(), operation(route, path));
            match paths.iter_mut().find(|(known, _)| known == path) {
                Some((_, Json::Map(methods))) => methods.push(method),
                _ => paths.push(((*path).into(), Json::Map(vec![method]))),
            }
        }
    }
    object! {
        "openapi" => "3.1.0",
        "info" => object! { "title" => "llama_rs", "version" => env!("CARGO_PKG_VERSION") },
        "paths" => Json::Map(paths),
        "components" => object! {
            "securitySchemes" => object! { "key" => object! { "type" => "http", "scheme" => "bearer" } },
            "schemas" => object! { "Error" => error_schema() },
        },
    }
}

fn operation(route: &Route, path: &str) -> Json {
    let parameters = path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}')).map(|name| {
        object! {
            "name" => name, "in" => "path", "required" => true,
            "schema" => object! { "type" => "string", "minLength" => 1u32 },
        }
    });
    let error = object! {
        "description" => "What is wrong",
        "content" => object! {
            "application/json" => object! { "schema" => object! { "$ref" => "#/components/schemas/Error" } },
        },
    };
    let mut content = vec![(kind_of(route.handler).into(), object! { "schema" => answer(route.handler) })];
    if can_stream(route.handler) {
        content.push(("text/event-stream".into(), object! { "schema" => event() }));
    }
    let mut operation = object! {
        "summary" => route.summary,
        "operationId" => format!("{}{}", route.method.to_ascii_lowercase(), path.replace(['/', '{', '}', '.'], "_")),
        "parameters" => parameters.collect::<Vec<_>>(),
        "responses" => object! {
            "200" => object! { "description" => "The answer", "content" => Json::Map(content) },
            "4XX" => error.clone(),
            "5XX" => error,
        },
    };
    if route.access != Access::Everybody {
        operation.push("security", vec![object! { "key" => Json::List(Vec::new()) }, Json::Map(Vec::new())]);
    }
    if let Some(schema) = body(route.handler) {
        operation.push(
            "requestBody",
            object! {
                "required" => schema.get("required") != Some(&Json::List(Vec::new())),
                "content" => object! { "application/json" => object! { "schema" => schema } },
            },
        );
    }
    operation
}

fn kind_of(handler: Handler) -> &'static str {
    match handler {
        Handler::Page => "text/html",
        Handler::Metrics => "text/plain",
        Handler::GenerateStream => "text/event-stream",
        _ => "application/json",
    }
}

fn can_stream(handler: Handler) -> bool {
    matches!(handler, Handler::ChatCompletions | Handler::Completions | Handler::Completion | Handler::Responses)
}

/// What an answer has at least.
fn answer(handler: Handler) -> Json {
    shape(match handler {
        Handler::Health | Handler::Ready => "status:string",
        Handler::Models => "object:string data:array",
        Handler::Model => "id:string object:string created:integer owned_by:string versions:array status:object",
        Handler::ChatCompletions | Handler::Completions => {
            "id:string object:string created:integer model:string system_fingerprint:string choices:array usage:object \
             timings:object"
        }
        Handler::Completion => {
            "content:string tokens:array stop:boolean stop_type:string model:string timings:object \
             tokens_evaluated:integer tokens_cached:integer truncated:boolean generation_settings:object prompt:string"
        }
        Handler::Embeddings => "object:string data:array model:string usage:object",
        Handler::Tokenize => "tokens:array count:integer max_model_len:integer",
        Handler::Detokenize => "content:string prompt:string",
        Handler::TokenizerInfo => "vocab_size:integer model_max_length:integer",
        Handler::ApplyTemplate => "prompt:string",
        Handler::InputTokens => "object:string input_tokens:integer",
        Handler::Props => "default_generation_settings:object total_slots:integer model_alias:string build_info:string",
        Handler::Residency => {
            "model:string version:string bytes:integer resident:integer is_known:boolean processes:integer layers:array"
        }
        Handler::OpenApi => "openapi:string info:object paths:object components:object",
        Handler::Responses => {
            "id:string object:string created_at:number status:string model:string output:array usage:object"
        }
        Handler::Score | Handler::Classify => "object:string data:array model:string usage:object",
        Handler::Rerank => "object:string results:array model:string usage:object",
        Handler::V2Server => "name:string version:string extensions:array",
        Handler::V2Live => "live:boolean",
        Handler::V2Ready => "ready:boolean",
        Handler::V2Model => "name:string versions:array platform:string inputs:array outputs:array",
        Handler::V2ModelReady => "name:string ready:boolean",
        Handler::Infer => "model_name:string model_version:string outputs:array",
        Handler::Generate => "text_output:string model_name:string model_version:string",
        Handler::Slots | Handler::RepositoryIndex | Handler::Embedding => return typed("array"),
        Handler::GenerateStream => return event(),
        Handler::Page | Handler::Metrics => return typed("string"),
        Handler::RepositoryLoad | Handler::RepositoryUnload => "",
    })
}

/// An object with these fields, `name:type` each, and perhaps others.
fn shape(fields: &'static str) -> Json {
    let fields: Vec<(&str, &str)> = fields.split_whitespace().filter_map(|field| field.split_once(':')).collect();
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let properties = fields.into_iter().map(|(name, kind)| (name.into(), typed(kind))).collect();
    object! { "type" => "object", "required" => required, "properties" => Json::Map(properties) }
}

/// An event of a stream.
fn event() -> Json {
    object! { "type" => "object", "required" => vec!["data"], "properties" => object! { "data" => typed("string") } }
}

/// A text that is not empty.
fn words() -> Json {
    object! { "type" => "string", "minLength" => 1u32 }
}

fn typed(kind: &str) -> Json {
    object! { "type" => kind }
}

fn list(items: Json, most: usize) -> Json {
    object! { "type" => "array", "items" => items, "minItems" => 1u32, "maxItems" => most }
}

fn any(of: Vec<Json>) -> Json {
    object! { "anyOf" => of }
}

/// What a body must have, and the fields that most clients set.
fn body(handler: Handler) -> Option<Json> {
    let text = || typed("string");
    let empty = || typed("null");
    let ids = || list(object! { "type" => "integer", "minimum" => 0u32 }, limits::JSON_VALUES);
    let texts = |most: usize| any(vec![words(), list(words(), most)]);
    let part = object! {
        "type" => "object",
        "required" => vec!["type", "text"],
        "properties" => object! { "type" => object! { "enum" => vec!["text"] }, "text" => text() },
    };
    let message = object! {
        "type" => "object",
        "required" => vec!["role", "content"],
        "properties" => object! {
            "role" => object! { "enum" => vec!["system", "developer", "user", "assistant", "tool"] },
            "content" => any(vec![text(), list(part, limits::MESSAGES)]),
        },
    };
    // A call of a tool may have no content.
    let call = object! {
        "type" => "object",
        "required" => vec!["role", "tool_calls"],
        "properties" => object! {
            "role" => object! { "enum" => vec!["assistant"] },
            "content" => any(vec![text(), empty()]),
            "tool_calls" => list(typed("object"), limits::TOOLS),
        },
    };
    let messages = || list(any(vec![message.clone(), call.clone()]), limits::MESSAGES);
    let prompt = any(vec![words(), list(words(), limits::PROMPTS), ids(), list(ids(), limits::PROMPTS)]);
    let (required, mut properties) = match handler {
        Handler::ChatCompletions | Handler::ApplyTemplate | Handler::InputTokens => {
            (vec!["messages"], vec![("messages", messages())])
        }
        Handler::Completions => (vec!["prompt"], vec![("prompt", prompt)]),
        Handler::Completion => (
            vec!["prompt"],
            vec![("prompt", any(vec![words(), list(any(vec![words(), typed("integer")]), limits::JSON_VALUES)]))],
        ),
        Handler::Embeddings => {
            let input = any(vec![words(), list(words(), limits::INPUTS), ids(), list(ids(), limits::INPUTS)]);
            let format = object! { "enum" => vec!["float", "base64"] };
            (vec!["input"], vec![("input", input), ("encoding_format", format)])
        }
        Handler::Embedding => (vec![], vec![("content", texts(limits::INPUTS)), ("input", texts(limits::INPUTS))]),
        Handler::Tokenize => (vec![], vec![("content", text()), ("prompt", text()), ("messages", messages())]),
        Handler::Detokenize => {
            (vec!["tokens"], vec![("tokens", object! { "type" => "array", "items" => typed("integer") })])
        }
        Handler::Responses => {
            (vec!["input"], vec![("input", any(vec![words(), list(typed("object"), limits::MESSAGES)]))])
        }
        Handler::Score => (
            vec!["prompt", "completion"],
            vec![("prompt", any(vec![words(), ids()])), ("completion", texts(limits::PROMPTS))],
        ),
        Handler::Classify => {
            let named = object! {
                "type" => "object", "additionalProperties" => words(), "minProperties" => 2u32, "maxProperties" => 256u32,
            };
            let plain = object! {
                "type" => "array", "items" => words(), "minItems" => 2u32, "maxItems" => 256u32, "uniqueItems" => true,
            };
            let labels = any(vec![plain, named]);
            let shown = object! { "text" => text(), "label" => words() };
            let example = object! { "type" => "object", "required" => vec!["text", "label"], "properties" => shown };
            let fields = vec![
                ("input", texts(limits::INPUTS)),
                ("labels", labels),
                ("instructions", text()),
                ("template", text()),
                ("examples", list(example, limits::INPUTS)),
                ("chat", typed("boolean")),
                ("multi_label", typed("boolean")),
            ];
            (vec!["input", "labels"], fields)
        }
        Handler::Rerank => {
            let document = object! { "type" => "object", "required" => vec!["text"], "properties" => object! { "text" => words() } };
            let documents = list(any(vec![words(), document]), limits::INPUTS);
            (vec!["query", "documents"], vec![("query", words()), ("documents", documents)])
        }
        Handler::Infer => (vec!["inputs"], vec![("inputs", list(typed("object"), 1))]),
        Handler::Generate | Handler::GenerateStream => {
            (vec!["text_input"], vec![("text_input", words()), ("parameters", typed("object"))])
        }
        Handler::RepositoryIndex => (vec![], vec![("ready", typed("boolean"))]),
        Handler::RepositoryLoad | Handler::RepositoryUnload => (vec![], vec![("parameters", typed("object"))]),
        _ => return None,
    };
    if matches!(handler, Handler::ChatCompletions | Handler::Completions | Handler::Completion) {
        let number = |min: f64, max: f64| object! { "type" => "number", "minimum" => min, "maximum" => max };
        let count = |min: i64, max: usize| object! { "type" => "integer", "minimum" => min, "maximum" => max };
        properties.extend([
            ("max_tokens", object! { "type" => "integer", "minimum" => Json::Int(-1) }),
            ("temperature", object! { "type" => "number", "minimum" => 0.0f64 }),
            ("top_p", number(0.0, 1.0)),
            ("min_p", number(0.0, 1.0)),
            ("top_k", object! { "type" => "integer", "minimum" => 0u32 }),
            ("n", count(1, limits::N)),
            ("seed", typed("integer")),
            (
                "stop",
                any(vec![words(), object! { "type" => "array", "items" => words(), "maxItems" => limits::STOPS }]),
            ),
            ("stream", typed("boolean")),
        ]);
    }
    properties.push(("model", text()));
    // What need not be there may be null, which says the same.
    let or_null = |name: &str, schema| if required.contains(&name) { schema } else { any(vec![schema, empty()]) };
    let properties = properties.into_iter().map(|(name, schema)| (name.into(), or_null(name, schema))).collect();
    let properties = Json::Map(properties);
    let required = Json::List(required.into_iter().map(Json::from).collect());
    Some(object! { "type" => "object", "required" => required, "properties" => properties })
}

fn error_schema() -> Json {
    object! {
        "type" => "object",
        "required" => vec!["error"],
        "properties" => object! {
            "error" => any(vec![
                typed("string"),
                object! {
                    "type" => "object",
                    "required" => vec!["message", "type", "code"],
                    "properties" => object! { "message" => typed("string"), "type" => typed("string") },
                },
            ]),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_there_and_says_what_its_body_is() {
        let json = openapi();
        let paths = json.get("paths").unwrap();
        for route in ROUTES {
            for path in [route.path].iter().chain(route.aliases) {
                let operation = paths.get(path).and_then(|p| p.get(&route.method.to_ascii_lowercase()));
                let operation = operation.unwrap_or_else(|| panic!("{path}"));
                assert_eq!(operation.get("requestBody").is_some(), route.method == "POST", "{path}");
            }
        }
        assert_eq!(Json::parse(json.to_string().as_bytes()).unwrap(), json);
    }
}
