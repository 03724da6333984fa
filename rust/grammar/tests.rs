//! What grammars let through and what not, over a vocabulary of single bytes.

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities};
use serde_json::json;

use super::*;

fn factory() -> ParserFactory {
    let env = ApproximateTokEnv::single_byte_env();
    let slices = SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices).unwrap();
    factory.quiet();
    factory
}

fn matcher(grammar: &Grammar) -> Matcher {
    try_compile(&factory(), grammar.to_llguidance().unwrap()).unwrap()
}

/// Whether the grammar lets the whole text through, and no less and no more than it.
fn accepts(matcher: &Matcher, text: &str) -> bool {
    let mut matcher = matcher.deep_clone();
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    matcher.try_consume_tokens(&tokens).unwrap() == tokens.len()
        && (matcher.is_stopped() || matcher.is_accepting().unwrap())
}

fn check(grammar: &Grammar, good: &[&str], bad: &[&str]) {
    let matcher = matcher(grammar);
    for text in good {
        assert!(accepts(&matcher, text), "{text:?} is refused by {grammar:?}");
    }
    for text in bad {
        assert!(!accepts(&matcher, text), "{text:?} is accepted by {grammar:?}");
    }
}

#[test]
fn a_regular_expression_is_about_the_whole_text() {
    for regex in ["[a-c]+x?", "^[a-c]+x?$", "^[a-c]+x?", "[a-c]+x?$"] {
        check(&Grammar::Regex(regex.into()), &["a", "abcx"], &["", "x", "axx", "ad", "a\n"]);
    }
    check(&Grammar::Regex(r"a/\d\$".into()), &["a/7$"], &["a/7", "a/x$"]);
    check(&Grammar::Regex("(?i)yes|no".into()), &["YES", "no"], &["yesno", "y"]);
}

#[test]
fn one_of_the_choices_comes_whole() {
    let choices = ["yes", "yes, but", "\"quoted\"\n", "é\u{7f}"].map(String::from).to_vec();
    let good: Vec<&str> = choices.iter().map(String::as_str).collect();
    check(&Grammar::Choices(choices.clone()), &good, &["", "no", "yes,", "yesyes", "quoted"]);
}

#[test]
fn lark_and_gbnf_are_told_apart() {
    assert!(matches!(Grammar::from_text("# x\nroot ::= \"a\""), Grammar::Gbnf(_)));
    assert!(matches!(Grammar::from_text("start: \"a ::= b\""), Grammar::Lark(_)));
    check(&Grammar::from_text("start: A\nA: /[0-9]/ \"%\""), &["7%"], &["7", "%"]);
}

#[test]
fn gbnf_means_what_it_means_in_llama_cpp() {
    let arithmetic = "root ::= (expr \"=\" term \"\\n\")+\nexpr ::= term ([-+*/] term)*\n\
                      term ::= ident | num | \"(\" expr \")\"\nident ::= [a-z] [a-z0-9_]*\nnum ::= [0-9]+";
    let json = r##"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}"##;
    for (text, good, bad) in [
        ("root ::= \"yes\" | \"no\"", &["yes", "no"][..], &["", "yesno", "maybe"][..]),
        // Not where the longest lexeme would lead: the letters and the word overlap.
        ("root ::= [a-z]* \"foo\"", &["foo", "xfoo", "fofoo", "foofoo"], &["", "fo", "foox"]),
        ("root ::= word{2,3} \"!\"?\nword ::= [a-z]+ \" \"", &["a b ", "a b c !"], &["a ", "a b c d ", "a b"]),
        ("root ::= \"a\" ( \"b\" | \"c\" root )", &["ab", "acab", "acacab"], &["a", "ac", "abb"]),
        ("root ::= \"(\" root? \")\"", &["()", "((()))"], &["(", "())", ""]),
        ("root ::= item+\nitem ::= \"- \" [^\\n]+ \"\\n\"", &["- a\n", "- a\n- b c\n"], &["- \n", "- a", "a\n"]),
        ("root ::= . [\\]\\-x] [^a-c]", &["é]d", "\n-\n", "axé"], &["a]a", "aad"]),
        ("root ::= \"\\u00e9\\x41\\U0001F600\"", &["éA😀"], &["éA"]),
        ("root ::= x x\nx ::= \"a\"*", &["", "a", "aaaa"], &["b"]),
        ("root ::= \"a\"{3} \"b\"{2,} \"c\"{,2}", &["aaabb", "aaabbbbcc"], &["aabb", "aaab", "aaabbccc"]),
        ("root ::= e\ne ::= \"n\" | e \"+\" e", &["n", "n+n+n"], &["n+", "+n", "nn"]),
        ("root ::= \"\" | \"a\" root", &["", "a", "aaa"], &["b", "ab"]),
        (arithmetic, &["a=1\n", "(a+2)*b9=c\nx-1=(2)\n"], &["a=\n", "a=1", "(a=1\n", ""]),
        (
            json,
            &["{}", "{\"a\": [1, -2.5e3, {\"b\": null}],\n  \"c\": \"\\u00e9\\n\"}", "{ }\n"],
            &["[]", "{\"a\":}", "{a:1}"],
        ),
    ] {
        check(&Grammar::Gbnf(text.into()), good, bad);
    }
}

fn schema(schema: Value) -> Grammar {
    Grammar::JsonSchema { schema, strict: false }
}

#[test]
fn bounds_of_numbers_hold() {
    const BOUNDS: [f64; 13] = [-12.5, -8.5, -8.0, -1.0, -0.5, 0.0, 0.05, 0.5, 1.0, 8.0, 8.25, 8.5, 100.0];
    let mut texts: Vec<String> =
        ["0", "-0", "0.0", "8", "8.0", "8.50", "-8", "-8.0", "1", "-1.0", "100"].map(String::from).into();
    for bound in BOUNDS {
        texts
            .extend([-1.0, -0.01, 0.0, 0.01, 1.0].map(|by: f64| format!("{}", ((bound + by) * 100.0).round() / 100.0)));
    }
    for (i, low) in BOUNDS.iter().enumerate() {
        for high in &BOUNDS[i + 1..] {
            for (least, most) in [
                ("minimum", "maximum"),
                ("exclusiveMinimum", "exclusiveMaximum"),
                ("minimum", "exclusiveMaximum"),
                ("exclusiveMinimum", "maximum"),
            ] {
                let matcher = matcher(&schema(json!({"type": "number", least: low, most: high})));
                for text in &texts {
                    let x: f64 = text.parse().unwrap();
                    let is_valid = (if least == "minimum" { x >= *low } else { x > *low })
                        && (if most == "maximum" { x <= *high } else { x < *high });
                    let is_accepted = accepts(&matcher, text);
                    // One that is spelt otherwise, such as -0 or 8.50, need not come.
                    let may_be_refused = *text != format!("{}", x + 0.0) || (x == 0.0 && text != "0");
                    assert!(
                        is_accepted == is_valid || (may_be_refused && !is_accepted),
                        "{text} with {least} {low} and {most} {high}"
                    );
                }
            }
        }
    }
    let whole = |bounds: Value, good: &[&str], bad: &[&str]| check(&schema(bounds), good, bad);
    whole(json!({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}), &["1", "2"], &["0", "3"]);
    whole(json!({"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 0}), &["-1", "-2"], &["0", "-3", "-0"]);
    whole(json!({"type": "number", "exclusiveMinimum": 0, "minimum": 2}), &["2", "2.5"], &["1", "0"]);
    whole(json!({"type": "number", "exclusiveMinimum": 0}), &["0.5", "7", "12.25"], &["0", "-1", "-0"]);
    whole(json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-10}), &["0.00000000001"], &["0", "0.1"]);
}

#[test]
fn numbers_end() {
    let digits = "3".repeat(40);
    let (whole, fraction) = (format!("3{digits}"), format!("3.{digits}"));
    let bounded = json!({"type": "number", "minimum": 0, "maximum": 100});
    check(&schema(bounded), &["3", "3.5", "3.123456", "100"], &[&fraction, "3.1234567", "101"]);
    check(&schema(json!({"type": "number", "minimum": 0.5})), &["0.5", "77777.25"], &[&fraction, "0.4"]);
    let most = ["9007199254740991", "-9007199254740991", "0", "-7"];
    check(&schema(json!({"type": "integer"})), &most, &[&whole, "9007199254740992", "90071992547409910"]);
    check(&schema(json!({"type": "integer", "minimum": 5})), &["5", "9007199254740991"], &["4", &whole]);
    check(&schema(json!({"type": "integer", "maximum": 5})), &["5", "-9007199254740991"], &["6", &format!("-{whole}")]);
    // What has no bounds may be of any size.
    check(&schema(json!({"type": "number"})), &["6.62607015e-34", "-1.5E10", "3"], &["e", "1.", "01"]);
    check(&schema(json!({"type": "number", "multipleOf": 0.25, "minimum": 0})), &["3.75"], &["0.3", &fraction]);
}

#[test]
fn a_schema_is_enforced() {
    let person = json!({
        "type": "object", "title": "Person", "default": {},
        "properties": {"name": {"type": "string", "minLength": 1}, "age": {"$ref": "#/$defs/a~1b%20c"}},
        "required": ["name"], "additionalProperties": false,
        "$defs": {"a/b c": {"type": "integer", "minimum": 0, "maximum": 120}}
    });
    check(
        &schema(person),
        &["{\"name\":\"Ada\"}", "{\"name\": \"Ada\", \"age\": 36}", "{\n  \"name\": \"Ada\"\n}"],
        &[
            "{}",
            "{\"age\": 36}",
            "{\"name\": \"\"}",
            "{\"name\": \"A\", \"age\": 121}",
            "{\"name\": \"A\", \"x\": 1}",
            "[]",
        ],
    );
    let tree = json!({
        "type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["children"], "additionalProperties": false
    });
    check(&schema(tree), &["{\"children\":[{\"children\":[]}]}"], &["{\"children\":[{}]}"]);
    let anchored = json!({"$id": "https://a.b/c", "anyOf": [{"$ref": "#x"}, {"$ref": "https://a.b/c#/$defs/y"}],
                          "$defs": {"x": {"$anchor": "x", "const": 1}, "y": {"const": "y"}}});
    check(&schema(anchored), &["1", "\"y\""], &["2", "\"z\""]);
    check(&schema(json!(true)), &["1", "\"x\"", "[{}]"], &["", "x"]);
    check(&Grammar::JsonObject, &["{}", "{\"a\": [1]}"], &["[]", "1"]);
    // Of two kinds of keys each has its own values, also where a property is one that the pattern means.
    let patterns = json!({"type": "object", "properties": {"n_a": {"type": "integer"}},
                          "patternProperties": {"^n_": {"minimum": 5, "type": "number"}}, "additionalProperties": false});
    check(&schema(patterns), &["{\"n_a\": 6}", "{\"n_b\": 5.5}"], &["{\"n_a\": 3}", "{\"n_a\": 6.5}", "{\"x\": 6}"]);
    let old = json!({"type": "array", "items": [{"type": "integer"}], "additionalItems": false});
    check(&schema(old), &["[]", "[1]"], &["[\"a\"]", "[1, 2]"]);
}

#[test]
fn whitespace_is_bounded() {
    let matcher = matcher(&Grammar::JsonObject);
    assert!(accepts(&matcher, "{\n    \"a\": [\r\n        1\n    ]\n}"));
    for text in ["{\n\n\"a\": 1}", &format!("{{{}}}", " ".repeat(60)), &format!("{{\n{}}}", "\t".repeat(60)), " {}"] {
        assert!(!accepts(&matcher, text), "{text:?}");
    }
}

#[test]
fn strict_closes_objects_that_say_nothing() {
    let object = json!({"type": "object", "properties": {"a": {"type": "object", "properties": {}}}});
    let strict = Grammar::JsonSchema { schema: object.clone(), strict: true };
    check(&strict, &["{}", "{\"a\": {}}"], &["{\"b\": 1}", "{\"a\": {\"b\": 1}}"]);
    check(&schema(object), &["{\"b\": 1}", "{\"a\": {\"b\": 1}}"], &["[]"]);
    let open = json!({"type": "object", "properties": {}, "additionalProperties": {"type": "null"}});
    check(&Grammar::JsonSchema { schema: open, strict: true }, &["{\"b\": null}"], &["{\"b\": 1}"]);
    let parts = json!({"allOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
                                 {"type": "object", "properties": {"b": {"const": 2}}, "required": ["b"]}]});
    check(&Grammar::JsonSchema { schema: parts, strict: true }, &["{\"a\": 1, \"b\": 2}"], &["{\"a\": 1}"]);
}

/// The pointer and the reason with which a schema is refused.
fn refusal(value: &Value) -> (String, String) {
    let factory = factory();
    let try_schema = |schema| try_compile(&factory, TopLevelGrammar::from_json_schema(schema));
    let e = match schema::prepare(value, false).map(try_schema) {
        Err(e) => e,
        Ok(Err(what)) => schema::located(value, false, what, |schema| try_schema(schema).err()),
        Ok(Ok(_)) => panic!("{value} is not refused"),
    };
    match e {
        Error::Grammar { pointer: Some(pointer), what } => (pointer, what),
        e => panic!("{e}"),
    }
}

#[test]
fn what_cannot_be_enforced_is_refused_with_its_place() {
    let at = |inner: Value| json!({"type": "object", "properties": {"a/b": {"items": inner}}});
    for (inner, keyword) in [
        (json!({"not": {"type": "null"}}), "not"),
        (json!({"if": {}, "then": {}}), "if"),
        (json!({"uniqueItems": true}), "uniqueItems"),
        (json!({"contains": {}}), "contains"),
        (json!({"propertyNames": {"maxLength": 3}}), "propertyNames"),
        (json!({"dependentRequired": {"a": ["b"]}}), "dependentRequired"),
        (json!({"unevaluatedProperties": false}), "unevaluatedProperties"),
        (json!({"type": "string", "nullable": true}), "nullable"),
        (json!({"x-guidance": {"lenient": true}}), "x-guidance"),
        (json!({"$ref": "https://example.com/schema.json"}), "$ref"),
        (json!({"$ref": "#/nowhere"}), "$ref"),
        (json!({"type": "strnig"}), "type"),
        (json!({"type": []}), "type"),
        (json!({"enum": []}), "enum"),
        (json!({"const": 9007199254740993_u64}), "const"),
        (json!({"type": "string", "format": "no-such-format"}), "format"),
        (json!({"type": "string", "pattern": "(?=a)b"}), "pattern"),
        (json!({"type": "string", "pattern": "(a"}), "pattern"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (json!({"prefixItems": [{}], "items": [{}]}), "items"),
        (json!({"allOf": {}}), "allOf"),
        (json!({"properties": []}), "properties"),
        (json!({"required": "a"}), "required"),
    ] {
        let (pointer, what) = refusal(&at(inner.clone()));
        assert_eq!(pointer, format!("/properties/a~1b/items/{keyword}"), "{inner}: {what}");
        assert!(!what.contains('\n') && !what.contains("panic") && !what.is_empty(), "{what}");
    }
    for harmless in [json!({"uniqueItems": false}), json!({"nullable": false}), json!({"description": "x", "x-y": 1})] {
        assert!(schema::prepare(&at(harmless), false).is_ok());
    }
    // Where it need not come it is no error that nothing is valid: here an empty array is.
    assert!(schema::prepare(&at(json!({"type": "integer", "minimum": 5, "maximum": 3})), false).is_ok());
    assert_eq!(refusal(&json!({"type": "integer", "minimum": 5, "maximum": 3})).0, "/maximum");
    assert_eq!(refusal(&json!(7)).0, "");
    assert_eq!(refusal(&json!({"properties": {"a": 7}})).0, "/properties/a");
    assert_eq!(refusal(&json!(false)).0, "");
    let e = Grammar::from_schema_text("{\"type\": ", false).unwrap_err();
    assert!(e.to_string().starts_with("the schema is no JSON: EOF"), "{e}");
}

#[test]
fn what_is_too_large_is_refused() {
    let many: serde_json::Map<String, Value> =
        (0..20_000).map(|i| (format!("a{i}"), json!({"type": "string"}))).collect();
    let e = schema(json!({"properties": many})).to_llguidance().unwrap_err();
    assert!(e.to_string().contains("is too long, at most 262144 are taken"), "{e}");
    let long = "a".repeat(70_000);
    for grammar in [Grammar::Regex(long.clone()), Grammar::Lark(format!("start: \"{long}\"")), Grammar::Gbnf(long)] {
        assert!(grammar.to_llguidance().unwrap_err().to_string().contains("is too long, at most 65536 are taken"));
    }
    // Small to write, and large to build.
    for grammar in [
        Grammar::Regex("((a{1,1000}){1,1000}){1,1000}".into()),
        Grammar::Lark("start: A{1,100000}\nA: /(x{1,500}y){1,500}/".into()),
        schema(json!({"type": "string", "pattern": "^(([a-z]{1,900}){1,900}){1,900}$"})),
    ] {
        let compiled = try_compile(&factory(), grammar.to_llguidance().unwrap());
        assert!(compiled.is_err() || compiled.is_ok()); // but it ends
    }
}

#[test]
fn a_response_format_is_that_of_openai() {
    let of = |format: Value| from_response_format(&format.to_string());
    assert_eq!(of(json!({"type": "text"})).unwrap(), None);
    assert_eq!(of(json!({"type": "json_object"})).unwrap(), Some(Grammar::JsonObject));
    assert_eq!(of(json!({"type": "json_object", "schema": {"const": 1}})).unwrap(), Some(schema(json!({"const": 1}))));
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 1}, "strict": true}});
    assert_eq!(of(format).unwrap(), Some(Grammar::JsonSchema { schema: json!({"const": 1}), strict: true }));
    for wrong in [json!({}), json!({"type": "xml"}), json!({"type": "json_schema"}), json!(3)] {
        assert!(of(wrong).unwrap_err().to_string().starts_with("response_format has"));
    }
}

#[test]
fn text_is_free_up_to_a_marker() {
    let bytes = |text: &str| text.bytes().collect::<Vec<u8>>();
    let constraint = Constraint::new(matcher(&Grammar::Choices(vec!["yes".into(), "no".into()])));
    let mut constraint = constraint.after(&["</think>".into(), "ANSWER:".into()], false);
    let mut logits = vec![0.0; 262];
    constraint.mask(&mut logits, &[261]).unwrap();
    assert_eq!((logits.iter().filter(|x| **x == 0.0).count(), logits[261]), (261, f32::NEG_INFINITY));
    assert!(!constraint.can_end());
    for text in ["Well. </thi", "nk", "AN", "no</", "think"] {
        assert_eq!(constraint.accept(0, &bytes(text)).unwrap(), Accepted::Going);
    }
    // A token that goes on after the marker with what the grammar does not allow; then one that does.
    assert_eq!(constraint.accept(0, &bytes(">x")).unwrap(), Accepted::Refused);
    assert!(constraint.is_waiting());
    assert_eq!(constraint.accept(0, &bytes(">ye")).unwrap(), Accepted::Going);
    assert!(!constraint.is_waiting());
    let mut logits = vec![0.0; 300];
    constraint.mask(&mut logits, &[261]).unwrap();
    let left: Vec<usize> = (0..300).filter(|&i| logits[i] == 0.0).collect();
    assert_eq!(left, [usize::from(b's')]);
    assert_eq!(constraint.accept(u32::from(b'x'), b"x").unwrap(), Accepted::Refused);
    let mut other = constraint.clone();
    assert_eq!(constraint.accept(u32::from(b's'), b"s").unwrap(), Accepted::Complete);
    assert_eq!(other.accept(u32::from(b's'), b"s").unwrap(), Accepted::Complete);
}

#[test]
fn an_answer_ends_only_where_the_grammar_can() {
    let mut constraint = Constraint::new(matcher(&Grammar::Regex("[ab]{2,3}".into())));
    let end = 261; // of the vocabulary of single bytes
    for (token, can_end) in [(b'a', false), (b'b', true)] {
        let mut logits = vec![0.0; 262];
        constraint.mask(&mut logits, &[end]).unwrap();
        assert_eq!(logits[end as usize], f32::NEG_INFINITY);
        assert_eq!(constraint.accept(u32::from(token), &[token]).unwrap(), Accepted::Going);
        assert_eq!(constraint.can_end(), can_end);
    }
    let mut logits = vec![0.0; 262];
    constraint.mask(&mut logits, &[end]).unwrap();
    let left: Vec<usize> = (0..262).filter(|&i| logits[i] == 0.0).collect();
    assert_eq!(left, [usize::from(b'a'), usize::from(b'b'), end as usize]);
    assert_eq!(constraint.accept(u32::from(b'a'), b"a").unwrap(), Accepted::Complete);
}
