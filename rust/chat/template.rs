//! Renders a template.

use std::fmt;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{json, python, time};

/// Bytes of a template. The longest that we know of have twenty thousand.
const MOST_SOURCE: usize = 1 << 20;
/// Steps of the machine that runs it, and bytes of the texts that it makes: a message takes some hundred and some times its
/// length. They take two seconds at most.
const MOST_STEPS: u64 = 1 << 26;
/// Calls within calls.
const MOST_DEPTH: usize = 200;
/// Bytes of a prompt.
const MOST_OUTPUT: usize = 1 << 28;

/// Why there is no prompt.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The template cannot be used with these messages, and says why (`raise_exception`).
    Messages(String),
    /// The template itself is wrong, or takes too much.
    Template(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Messages(why) => write!(f, "the chat template refuses the messages: {why}"),
            Refused::Template(why) => write!(f, "the chat template cannot be used: {why}"),
        }
    }
}

/// The text that the template `source` makes of `variables`: `messages`, `add_generation_prompt`, `bos_token` and so on.
/// `now` is the time that it is told, in seconds since 1970.
///
/// # Errors
/// [`Refused`].
pub fn render(source: &str, variables: Value, now: i64) -> Result<String, Refused> {
    render_within(MOST_STEPS, source, variables, now)
}

fn render_within(steps: u64, source: &str, variables: Value, now: i64) -> Result<String, Refused> {
    if source.len() > MOST_SOURCE {
        return Err(Refused::Template(format!("it has {} bytes, at most {MOST_SOURCE} are read", source.len())));
    }
    let source = without_generation_tags(source);
    let environment = environment(steps, now);
    let template = environment.template_from_named_str("chat_template", &source).map_err(|e| refused(&e))?;
    let mut out = Limited(Vec::new());
    template.render_captured_to(variables, &mut out).map_err(|e| refused(&e))?;
    String::from_utf8(out.0).map_err(|_| Refused::Template("its output is not UTF-8".into()))
}

/// As `transformers` has it: blocks leave no lines behind, and a few functions more.
fn environment(steps: u64, now: i64) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are those of Jinja"));
    environment.set_fuel(Some(steps));
    environment.set_recursion_limit(MOST_DEPTH);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_formatter(|out, _, value| {
        if !value.is_undefined() {
            out.write_str(&python::str(value)).map_err(Error::from)?;
        }
        Ok(())
    });
    environment.add_function("raise_exception", |why: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, why).with_source(Raised))
    });
    environment.add_function("strftime_now", move |format: String| time::strftime(&format, now));
    environment.add_filter("tojson", |value: &Value, options: Kwargs| -> Result<Value, Error> {
        let text = json::dumps(value, &options)?;
        options.assert_all_used()?;
        Ok(Value::from(text))
    });
    environment.add_filter("string", |value: &Value| python::str(value));
    environment.add_filter("indent", python::indent);
    // To Python text and maps are sequences, None is nothing to go through, and what is not there is an empty list.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment.add_filter("int", |value: &Value, default: Option<Value>| {
        python::to_int(value).map_or(default.unwrap_or(Value::from(0)), Value::from)
    });
    environment.add_filter("float", |value: &Value, default: Option<Value>| {
        python::to_float(value).map_or(default.unwrap_or(Value::from(0.0)), Value::from)
    });
    environment
}

/// What an error is called that a template raised itself.
#[derive(Debug)]
struct Raised;

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Raised {}

fn refused(e: &Error) -> Refused {
    let mut source = std::error::Error::source(e);
    while let Some(inner) = source {
        if inner.is::<Raised>() {
            return Refused::Messages(e.detail().unwrap_or_default().to_string());
        }
        source = inner.source();
    }
    let line = e.line().map_or(String::new(), |line| format!(" in line {line}"));
    let detail = e.detail().map_or(String::new(), |detail| format!(": {detail}"));
    Refused::Template(format!("{}{detail}{line}", e.kind()))
}

/// Without `{% generation %}`, which marks what to train on and prints nothing; Jinja2 knows it from an extension alone.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + len];
        let (left, inner) = tag.strip_prefix('-').map_or(("", tag), |inner| ("-", inner));
        let (right, inner) = inner.strip_suffix('-').map_or(("", inner), |inner| ("-", inner));
        out.push_str(&rest[..start]);
        match inner.trim() {
            "generation" => out.push_str(&format!("{{%{left} if true {right}%}}")),
            "endgeneration" => out.push_str(&format!("{{%{left} endif {right}%}}")),
            _ => out.push_str(&rest[start..start + len + 2]),
        }
        rest = &rest[start + len + 2..];
    }
    out + rest
}

/// An output with an end.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MOST_OUTPUT - self.0.len() {
            return Err(io::Error::other("its output is too long"));
        }
        self.0.try_reserve(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str) -> Result<String, Refused> {
        let message = Value::from_pairs([("role", "user"), ("content", " Hi\u{e9} ")]);
        render_within(1 << 16, source, Value::from_pairs([("messages", Value::from(vec![message]))]), 0)
    }

    #[test]
    fn blocks_leave_no_lines_behind() {
        let source = "{% for m in messages %}\n  {% if m.role == 'user' %}\n[{{ m['content'] | trim }}]\n  {% endif %}\n{% endfor %}\n";
        assert_eq!(rendered(source).unwrap(), "[Hi\u{e9}]\n");
        assert_eq!(rendered("a{%- generation %}b{% endgeneration -%} c").unwrap(), "abc");
    }

    #[test]
    fn what_is_no_number_is_what_jinja_makes_of_it() {
        let source = "{{ ['x'|int, '3.7'|int, ' 12 '|int, 'x'|int(5), none|int, true|int, 2.9|int] }} \
                      {{ ['x'|float, '1.5'|float, 'x'|float(2), 3|float, ''|float] }}";
        assert_eq!(rendered(source).unwrap(), "[0, 3, 12, 5, 0, 1, 2] [0.0, 1.5, 2, 3.0, 0.0]");
    }

    #[test]
    fn a_template_may_refuse_and_says_why() {
        let e = rendered("{% if messages %}{{ raise_exception('no ' ~ messages[0].role) }}{% endif %}").unwrap_err();
        assert_eq!(e, Refused::Messages("no user".into()));
        let e = rendered("{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{{ f() }}").unwrap_err();
        assert_eq!(e, Refused::Messages("deep".into()));
    }

    #[test]
    fn a_bad_template_is_an_error_with_its_line_and_ends_in_time() {
        for (source, says) in [
            ("a\n{% if %}", "line 2"),
            ("{{ messages.a.b }}", "undefined"),
            ("{{ nothing() }}", "nothing"),
            ("{% for i in range(10000) %}{% for j in range(10000) %}{{ i * j }}{% endfor %}{% endfor %}", "fuel"),
            ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "fuel"),
            ("{{ 'a' * 999999999999 }}", "fuel"),
            ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
            ("{{ messages | tojson(nonsense=1) }}", "nonsense"),
        ] {
            match rendered(source) {
                Err(Refused::Template(what)) => assert!(what.contains(says) && !what.contains('\n'), "{what}"),
                other => panic!("{source}: {other:?}"),
            }
        }
        assert!(rendered(&" ".repeat(MOST_SOURCE + 1)).unwrap_err().to_string().contains("1048577 bytes"));
    }

    #[test]
    fn the_time_is_the_one_that_is_given() {
        assert!(["01 Jan 1970", "31 Dec 1969"].contains(&&*rendered("{{ strftime_now('%d %b %Y') }}").unwrap()));
    }
}
