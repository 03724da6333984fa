//! JSON schemas: what is enforced, what means nothing, and what is refused with the place where it stands.
//!
//! A schema that is half enforced is worse than none, since its user does not look at the answers any more. So what
//! llguidance would pass over is refused here; and where it refuses something, the smallest part that it refuses is found.
//!
//! What it gets is made anew: only keywords that mean something, and all references to one place.

use serde_json::{Map, Value, json};

use super::{Grammar, MOST_SCHEMA, check_size};
use crate::error::{Error, Result};

/// Between two tokens of JSON: one space or a few, or a line break and what a line is indented by. Without a bound a model
/// that has lost its way writes nothing else.
const WHITESPACE: &str = r"[\x20\t]{1,4}|\r?\n[\x20\t]{0,40}";

/// Keywords that hold a schema.
const ONE: [&str; 3] = ["items", "additionalItems", "additionalProperties"];
/// Keywords that hold several, in a list.
const LISTS: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
/// Keywords that hold several, by name.
const MAPS: [&str; 2] = ["properties", "patternProperties"];
/// Keywords that hold a value.
const VALUES: [&str; 17] = [
    "type",
    "const",
    "enum",
    "required",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];
/// Keywords that say something about a document which cannot be enforced while it is written.
const UNENFORCED: [&str; 19] = [
    "not",
    "if",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "extends",
    "disallow",
    "divisibleBy",
    "uniqueItems",
    "nullable",
    "x-guidance",
];
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

/// Numbers up to here are whole numbers in 64-bit floats too, which bounds are counted in.
const MOST_EXACT: f64 = 9_007_199_254_740_992.0;
/// The last digit of a number that has bounds.
const LAST_DIGIT: f64 = 1e-6;
/// The most digits after the point, and the largest number without the point, of a `multipleOf`: what llguidance 1.9 counts
/// remainders by in 32 bits.
const MOST_DECIMALS: usize = 8;
const MOST_MULTIPLE: f64 = 4e8;
/// How close a number comes to a bound that it may not reach.
const LEAST: f64 = 1e-9;
/// References that are followed, and parts that are tried when one is to blame.
const MOST_REFERENCES: usize = 1000;
const MOST_TRIES: usize = 300;

fn error(pointer: &str, what: impl Into<String>) -> Error {
    Error::Grammar { pointer: Some(pointer.into()), what: what.into() }
}

/// `name` as a part of a JSON pointer.
fn step(pointer: &str, name: impl std::fmt::Display) -> String {
    format!("{pointer}/{}", name.to_string().replace('~', "~0").replace('/', "~1"))
}

/// The constraint of a `response_format` in the form of OpenAI's API, as JSON: `text`, `json_object` (with a `schema`, as
/// llama.cpp has it, or without) or `json_schema`. `None` for text.
///
/// # Errors
/// [`Error::Grammar`] for anything else.
pub fn from_response_format(text: &str) -> Result<Option<Grammar>> {
    let wrong = |what: String| Error::Grammar { pointer: None, what: format!("response_format {what}") };
    check_size("a response_format", text.len(), MOST_SCHEMA)?;
    let format: Value = serde_json::from_str(text).map_err(|e| wrong(format!("is no JSON: {e}")))?;
    let kind = format.get("type").and_then(Value::as_str);
    let schema = |of: &Value, strict| {
        of.get("schema").filter(|s| !s.is_null()).map(|s| Grammar::JsonSchema { schema: s.clone(), strict })
    };
    match kind {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(schema(&format, false).unwrap_or(Grammar::JsonObject))),
        Some("json_schema") => {
            let of = format.get("json_schema").unwrap_or(&Value::Null);
            let strict = of.get("strict").and_then(Value::as_bool).unwrap_or(false);
            let missing = || wrong("has no json_schema with a schema in it".into());
            schema(of, strict).map(Some).ok_or_else(missing)
        }
        _ => {
            let kind = kind.unwrap_or("missing");
            Err(wrong(format!("has a type that is {kind}, it must be text, json_object or json_schema")))
        }
    }
}

/// The schema as llguidance takes it.
///
/// # Errors
/// [`Error::Grammar`] for what cannot be enforced, with the JSON pointer of the keyword.
pub fn prepare(schema: &Value, strict: bool) -> Result<Value> {
    prepare_part(schema, "", strict, None)
}

/// A part of a schema, by its pointer, as a schema; without one of its keywords.
fn prepare_part(root: &Value, pointer: &str, strict: bool, without: Option<&str>) -> Result<Value> {
    let text = root.to_string();
    check_size("a JSON schema", text.len(), MOST_SCHEMA)?;
    let has_multiples = text.contains("multipleOf");
    let mut preparer = Preparer { root, strict, has_multiples, targets: Vec::new() };
    let mut part = root.pointer(pointer).cloned().unwrap_or(Value::Bool(true));
    if let (Some(name), Value::Object(map)) = (without, &mut part) {
        map.shift_remove(name);
    }
    let mut prepared = match preparer.schema(&part, pointer, false)? {
        Value::Object(map) => map,
        Value::Bool(true) => Map::new(),
        _ => return Err(error(pointer, "nothing is valid by it: it is false")),
    };
    let mut definitions = Map::new();
    while let Some(target) = preparer.targets.get(definitions.len()).cloned() {
        let schema = preparer.root.pointer(&target).cloned().unwrap_or(Value::Bool(true));
        let schema = preparer.schema(&schema, &target, false)?;
        definitions.insert(format!("d{}", definitions.len()), schema);
    }
    if !definitions.is_empty() {
        prepared.insert("$defs".into(), Value::Object(definitions));
    }
    prepared.insert("x-guidance".into(), json!({"whitespace_pattern": WHITESPACE}));
    Ok(Value::Object(prepared))
}

struct Preparer<'a> {
    root: &'a Value,
    strict: bool,
    has_multiples: bool,  // `multipleOf` is somewhere in it
    targets: Vec<String>, // of references, as pointers; the n-th is definition `dn`
}

impl Preparer<'_> {
    /// A schema with nothing in it but what is enforced. `is_part` of an `allOf`, where others say what is open.
    fn schema(&mut self, schema: &Value, at: &str, is_part: bool) -> Result<Value> {
        let map = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(map) => map,
            _ => return Err(error(at, "a schema is an object, true or false")),
        };
        let mut out = Map::new();
        for (name, value) in map {
            let name = name.as_str();
            let here = || step(at, name);
            if UNENFORCED.contains(&name) {
                if matches!(name, "uniqueItems" | "nullable") && *value == false {
                    continue;
                }
                return Err(error(
                    &here(),
                    match name {
                        "nullable" => "nullable is no keyword of JSON Schema: add \"null\" to the type",
                        "x-guidance" => "x-guidance is not taken from a schema",
                        _ => "it cannot be enforced",
                    },
                ));
            }
            let new = match value {
                Value::Array(items) if LISTS.contains(&name) => {
                    let mut schemas = Vec::new();
                    for (i, item) in items.iter().enumerate() {
                        schemas.push(self.schema(item, &step(&here(), i), is_part || name == "allOf")?);
                    }
                    Value::Array(schemas)
                }
                _ if ONE.contains(&name) => self.schema(value, &here(), false)?,
                _ if LISTS.contains(&name) => return Err(error(&here(), "it must be an array of schemas")),
                Value::Object(members) if MAPS.contains(&name) => {
                    let mut schemas = Map::new();
                    for (key, member) in members {
                        schemas.insert(key.clone(), self.schema(member, &step(&here(), key), false)?);
                    }
                    Value::Object(schemas)
                }
                _ if MAPS.contains(&name) => return Err(error(&here(), "it must be an object of schemas")),
                Value::String(reference) if name == "$ref" => self.reference(reference, &here())?,
                _ if VALUES.contains(&name) => {
                    check(name, value, &here())?;
                    value.clone()
                }
                _ => continue, // says nothing about a document
            };
            out.insert(name.into(), new);
        }
        self.bound_numbers(&mut out, is_part);
        // Where the form of older drafts and of newer ones are mixed, llguidance goes by one of them.
        let is_old = matches!(out.get("items"), Some(Value::Array(_)));
        if is_old && out.contains_key("prefixItems") {
            return Err(error(&step(at, "items"), "beside prefixItems it must be one schema"));
        }
        if !is_old {
            out.shift_remove("additionalItems");
        }
        let is_open = !["additionalProperties", "patternProperties"].iter().any(|name| out.contains_key(*name));
        if self.strict && !is_part && is_open && out.contains_key("properties") {
            out.insert("additionalProperties".into(), Value::Bool(false));
        }
        Ok(Value::Object(out))
    }

    /// Bounds as llguidance 1.9 takes them, and numbers that end: a model that has lost its way writes digit after digit.
    fn bound_numbers(&self, schema: &mut Map<String, Value>, is_part: bool) {
        let of = |name: &str| schema.get(name).and_then(Value::as_f64);
        let largest = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
        let smallest = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::min);
        let low = largest(of("minimum"), of("exclusiveMinimum"));
        let high = smallest(of("maximum"), of("exclusiveMaximum"));
        let gap = low.zip(high).map_or(f64::INFINITY, |(low, high)| high - low);
        // A bound that may not be reached becomes one that may. Beside one less than 1 away a whole number comes through that
        // is excluded, such as 8 by an `exclusiveMinimum` of 8.
        let least = LEAST.min(gap / 1000.0);
        let is_whole = |bound: &f64| bound.fract() == 0.0 && least > 0.0;
        let above = of("exclusiveMinimum").filter(|bound| is_whole(bound) && *bound >= 0.0);
        let below = of("exclusiveMaximum").filter(|bound| is_whole(bound) && *bound <= 0.0);
        let above = above.map(|bound| (bound + least).max(bound.next_up()));
        let below = below.map(|bound| (bound - least).min(bound.next_down()));
        let (above, below) =
            (above.map(|x| largest(Some(x), of("minimum"))), below.map(|x| smallest(Some(x), of("maximum"))));
        if let Some(Some(bound)) = above {
            schema.shift_remove("exclusiveMinimum");
            schema.insert("minimum".into(), json!(bound));
        }
        if let Some(Some(bound)) = below {
            schema.shift_remove("exclusiveMaximum");
            schema.insert("maximum".into(), json!(bound));
        }
        // What may be put together with other parts is left alone.
        let is_alone =
            !is_part && !["allOf", "anyOf", "oneOf", "$ref", "const", "enum"].iter().any(|n| schema.contains_key(*n));
        let kind = schema.get("type").and_then(Value::as_str);
        if is_alone && kind == Some("integer") {
            // Whole numbers that all programs read the same.
            for (name, bound, other) in [("minimum", -MOST_EXACT + 1.0, high), ("maximum", MOST_EXACT - 1.0, low)] {
                let is_open = if name == "minimum" { low.is_none() } else { high.is_none() };
                if is_open && other.is_none_or(|other| other.abs() < MOST_EXACT / 2.0) {
                    schema.insert(name.into(), json!(bound as i64));
                }
            }
        } else if is_alone && kind == Some("number") && !self.has_multiples {
            // Without bounds a number may have an exponent, and stays as it is.
            if (low.is_some() || high.is_some()) && gap >= 1000.0 * LAST_DIGIT {
                schema.insert("multipleOf".into(), json!(LAST_DIGIT));
            }
        }
    }

    /// A reference to a place in the schema, as one to a definition.
    fn reference(&mut self, reference: &str, at: &str) -> Result<Value> {
        let own = ["$id", "id"].iter().find_map(|name| self.root.get(*name)?.as_str()).unwrap_or("");
        let local = reference.strip_prefix(own.trim_end_matches('#')).unwrap_or(reference);
        let Some(fragment) = local.strip_prefix('#') else {
            return Err(error(at, format!("{reference:?} is outside of the schema: what it refers to must be inside")));
        };
        let target = if fragment.is_empty() || fragment.starts_with('/') {
            Some(percent_decoded(fragment)).filter(|pointer| self.root.pointer(pointer).is_some())
        } else {
            anchor(self.root, fragment, String::new())
        };
        let Some(target) = target else {
            return Err(error(at, format!("{reference:?} is nowhere in the schema")));
        };
        let known = self.targets.iter().position(|known| *known == target);
        let n = known.unwrap_or(self.targets.len());
        if known.is_none() {
            if n == MOST_REFERENCES {
                return Err(error(at, format!("more than {MOST_REFERENCES} parts are referred to")));
            }
            self.targets.push(target);
        }
        Ok(Value::String(format!("#/$defs/d{n}")))
    }
}

/// Checks the value of a keyword, as far as llguidance would take it in another sense.
fn check(name: &str, value: &Value, at: &str) -> Result<()> {
    match name {
        "type" => {
            let types = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let is_known = |t: &Value| t.as_str().is_some_and(|t| TYPES.contains(&t));
            if types.is_empty() || !types.iter().all(is_known) {
                return Err(error(at, format!("it must be one of {}, or several in an array", TYPES.join(", "))));
            }
        }
        "enum" if value.as_array().is_none_or(Vec::is_empty) => {
            return Err(error(at, "it must be an array of at least one value"));
        }
        "multipleOf" if !value.as_f64().is_some_and(is_countable) => {
            let what =
                "it must be a number above 0, with at most 8 digits after the point and below 400000000 without it";
            return Err(error(at, what));
        }
        "required" if !value.as_array().is_some_and(|names| names.iter().all(Value::is_string)) => {
            return Err(error(at, "it must be an array of names"));
        }
        _ => {}
    }
    if is_inexact(value) {
        return Err(error(at, "a number beyond 9007199254740992 cannot be enforced"));
    }
    Ok(())
}

/// Whether remainders by it can be counted.
fn is_countable(multiple: f64) -> bool {
    let (mut multiple, mut decimals) = (multiple, 0);
    while multiple.fract() != 0.0 && decimals <= MOST_DECIMALS {
        (multiple, decimals) = (multiple * 10.0, decimals + 1); // as llguidance does
    }
    multiple > 0.0 && decimals <= MOST_DECIMALS && multiple < MOST_MULTIPLE
}

fn is_inexact(value: &Value) -> bool {
    match value {
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => n.unsigned_abs() > MOST_EXACT as u64,
            (None, x) => x.is_none_or(|x| x.abs() >= MOST_EXACT),
        },
        Value::Array(values) => values.iter().any(is_inexact),
        Value::Object(map) => map.values().any(is_inexact),
        _ => false,
    }
}

/// Where an anchor is, as a pointer.
fn anchor(value: &Value, name: &str, at: String) -> Option<String> {
    match value {
        Value::Object(map) => {
            let is_it = |key: &str, text: &str| map.get(key).and_then(Value::as_str) == Some(text);
            let id = format!("#{name}");
            if is_it("$anchor", name) || is_it("$id", &id) || is_it("id", &id) {
                return Some(at);
            }
            map.iter().find_map(|(key, value)| anchor(value, name, step(&at, key)))
        }
        Value::Array(values) => values.iter().enumerate().find_map(|(i, value)| anchor(value, name, step(&at, i))),
        _ => None,
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Why a schema is refused, and where: in the smallest part that is refused alone, at the keyword without which it is not.
/// `refuses` says why it does, if it does.
pub fn located(schema: &Value, strict: bool, what: String, refuses: impl Fn(Value) -> Option<String>) -> Error {
    let mut parts = Vec::new();
    collect(schema, String::new(), &mut parts);
    let mut tries = 0;
    let mut try_part = |pointer: &str, without: Option<&str>| {
        tries += 1;
        let part = prepare_part(schema, pointer, strict, without).ok().filter(|_| tries <= MOST_TRIES)?;
        refuses(part)
    };
    for pointer in &parts {
        let Some(what) = try_part(pointer, None) else { continue };
        let names = schema.pointer(pointer).and_then(Value::as_object).into_iter().flat_map(Map::keys);
        let names =
            names.filter(|name| [&VALUES[..], &LISTS, &ONE, &MAPS, &["$ref"]].concat().contains(&name.as_str()));
        // The last one, where each is to blame: a bound that is below another, say.
        let blamed = names.rev().find(|name| try_part(pointer, Some(name)).is_none());
        return error(&blamed.map_or(pointer.clone(), |name| step(pointer, name)), what);
    }
    error("", what)
}

/// The pointers of all parts of a schema that are schemas, the innermost first.
fn collect(schema: &Value, at: String, parts: &mut Vec<String>) {
    let Value::Object(map) = schema else { return };
    for (name, value) in map {
        let here = step(&at, name);
        match value {
            Value::Array(items) if LISTS.contains(&name.as_str()) => {
                items.iter().enumerate().for_each(|(i, item)| collect(item, step(&here, i), parts));
            }
            Value::Object(members) if MAPS.contains(&name.as_str()) || matches!(&**name, "$defs" | "definitions") => {
                members.iter().for_each(|(key, member)| collect(member, step(&here, key), parts));
            }
            _ if ONE.contains(&name.as_str()) => collect(value, here, parts),
            _ => {}
        }
    }
    parts.push(at);
}
