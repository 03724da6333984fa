//! GBNF, the grammars of llama.cpp, as Lark.
//!
//! GBNF is about characters; llguidance first finds lexemes, the longest there are, and then parses those. So that nothing
//! that a grammar allows is lost between the two, whatever a regular expression can say becomes one lexeme: a rule that does
//! not lead to itself, and in the others each run of such things. What is left to the parser is recursion.

use std::collections::HashMap;
use std::fmt::Write;

use crate::error::{Error, Result};

/// Parentheses in each other.
const MOST_DEPTH: usize = 64;
/// How often something may come again: each repetition is a state.
const MOST_REPEATS: u32 = 10_000;

/// A part of a rule.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Literal(String),
    /// A set of characters, as the regular expression for one of them.
    Class(String),
    Rule(usize),
    /// A token by its name or number, in Lark's form.
    Token(String),
    Sequence(Vec<Node>),
    Either(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

struct Rule {
    name: String,
    body: Option<Node>, // None until it is defined
    is_regular: bool,
    is_nullable: bool,
}

/// The same grammar in Lark.
///
/// # Errors
/// [`Error::Grammar`] with the line.
pub fn to_lark(text: &str) -> Result<String> {
    let mut parser = Parser { text, at: 0, rules: Vec::new(), by_name: HashMap::new() };
    parser.grammar()?;
    let mut rules = parser.rules;
    let Some(&root) = parser.by_name.get("root") else {
        return Err(Error::Grammar { pointer: None, what: "the grammar has no rule called root".into() });
    };
    find_nullable(&mut rules);
    find_regular(&mut rules);
    let mut writer = Writer { rules: &rules, terminals: String::new(), runs: HashMap::new() };
    let mut lines = String::new();
    let start = writer.rule_expression(&Node::Rule(root));
    let _ = writeln!(lines, "start: {start}");
    for (i, rule) in rules.iter().enumerate() {
        let Some(body) = &rule.body else { continue };
        if rule.is_regular {
            let body = writer.terminal_expression(body);
            let _ = writeln!(lines, "T{i}: {body}");
        } else {
            let body = writer.rule_expression(body);
            let _ = writeln!(lines, "r{i}: {body}");
        }
    }
    Ok(lines + &writer.terminals)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    rules: Vec<Rule>,
    by_name: HashMap<String, usize>,
}

impl Parser<'_> {
    fn error(&self, what: impl std::fmt::Display) -> Error {
        let line = self.text[..self.at].matches('\n').count() + 1;
        Error::Grammar { pointer: None, what: format!("line {line} of the grammar: {what}") }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn eat(&mut self, token: &str) -> bool {
        let is_it = self.rest().starts_with(token);
        if is_it {
            self.at += token.len();
        }
        is_it
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Goes to what comes after blanks and comments, and line breaks if these do not count here.
    fn skip(&mut self, lines: bool) {
        loop {
            let rest = self.rest();
            if rest.starts_with('#') {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if rest.starts_with([' ', '\t']) || (lines && rest.starts_with(['\r', '\n'])) {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let rest = self.rest();
        let is_end = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_');
        let len = rest.find(is_end).unwrap_or(rest.len());
        let name = rest[..len].to_string();
        self.at += len;
        (len > 0).then_some(name)
    }

    fn rule(&mut self, name: String) -> usize {
        let new = Rule { name: name.clone(), body: None, is_regular: false, is_nullable: false };
        *self.by_name.entry(name).or_insert_with(|| {
            self.rules.push(new);
            self.rules.len() - 1
        })
    }

    fn grammar(&mut self) -> Result<()> {
        self.skip(true);
        while !self.rest().is_empty() {
            let Some(name) = self.name() else { return Err(self.error("a rule must begin with its name")) };
            let rule = self.rule(name);
            self.skip(false);
            if !self.eat("::=") {
                return Err(self.error(format!("::= must come after {:?}", self.rules[rule].name)));
            }
            if self.rules[rule].body.is_some() {
                return Err(self.error(format!("there are two rules called {:?}", self.rules[rule].name)));
            }
            self.skip(true);
            let body = self.either(0)?;
            self.rules[rule].body = Some(body);
            let rest = self.rest();
            if !rest.is_empty() && !rest.starts_with(['\r', '\n']) {
                let c = rest.chars().next().unwrap_or_default();
                return Err(self.error(format!("{c:?} does not belong here")));
            }
            self.skip(true);
        }
        match self.rules.iter().find(|rule| rule.body.is_none()) {
            Some(rule) => {
                let what = format!("the grammar has no rule called {:?}", rule.name);
                Err(Error::Grammar { pointer: None, what })
            }
            None => Ok(()),
        }
    }

    fn either(&mut self, depth: usize) -> Result<Node> {
        if depth > MOST_DEPTH {
            return Err(self.error(format!("more than {MOST_DEPTH} parentheses in each other")));
        }
        let mut options = vec![self.sequence(depth)?];
        while self.eat("|") {
            self.skip(true);
            options.push(self.sequence(depth)?);
        }
        Ok(if options.len() == 1 { options.remove(0) } else { Node::Either(options) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Node> {
        let mut nodes = Vec::new();
        loop {
            self.skip(depth > 0);
            let rest = self.rest();
            let Some(first) = rest.chars().next() else { break };
            let mut node = match first {
                '"' => self.literal()?,
                '[' => self.class()?,
                '.' => {
                    self.at += 1;
                    Node::Class("(?s:.)".into())
                }
                '(' => {
                    self.at += 1;
                    let inner = self.either(depth + 1)?;
                    self.skip(true);
                    if !self.eat(")") {
                        return Err(self.error("a parenthesis is not closed"));
                    }
                    inner
                }
                '<' => self.token()?,
                '!' => return Err(self.error("all tokens but one (!<token>) are not supported")),
                c if c.is_ascii_alphanumeric() || c == '-' || c == '_' => {
                    let name = self.name().unwrap_or_default();
                    Node::Rule(self.rule(name))
                }
                _ => break,
            };
            self.skip(depth > 0);
            while let Some((least, most)) = self.repetition()? {
                node = Node::Repeat(Box::new(node), least, most);
                self.skip(depth > 0);
            }
            nodes.push(node);
        }
        nodes.retain(|node| *node != Node::Literal(String::new()));
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Sequence(nodes) })
    }

    /// How often what came before may come.
    fn repetition(&mut self) -> Result<Option<(u32, Option<u32>)>> {
        for (sign, times) in [("*", (0, None)), ("+", (1, None)), ("?", (0, Some(1)))] {
            if self.eat(sign) {
                return Ok(Some(times));
            }
        }
        if !self.eat("{") {
            return Ok(None);
        }
        let number = |parser: &mut Self| {
            parser.skip(false);
            let rest = parser.rest();
            let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let number = rest[..len].parse::<u32>().ok();
            parser.at += len;
            parser.skip(false);
            number
        };
        let least = number(self);
        let most = if self.eat(",") { number(self) } else { least };
        if !self.eat("}") || (least.is_none() && most.is_none()) {
            return Err(self.error("a repetition is {n}, {n,}, {,m} or {n,m}"));
        }
        let least = least.unwrap_or(0);
        if most.is_some_and(|most| most < least) || most.unwrap_or(0).max(least) > MOST_REPEATS {
            return Err(self.error(format!("a repetition goes from few to more, and to {MOST_REPEATS} at most")));
        }
        Ok(Some((least, most)))
    }

    /// A character, escaped or not.
    fn character(&mut self) -> Result<char> {
        let unfinished = "a literal or a set of characters is not closed";
        let c = self.next().ok_or_else(|| self.error(unfinished))?;
        if c != '\\' {
            return Ok(c);
        }
        let c = self.next().ok_or_else(|| self.error(unfinished))?;
        let digits = match c {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            '\\' | '"' | '[' | ']' | '-' | '^' | '/' => return Ok(c),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return Err(self.error(format!("there is no escape \\{c}"))),
        };
        let hex = self.rest().get(..digits).unwrap_or_default();
        let code = u32::from_str_radix(hex, 16).ok().and_then(char::from_u32);
        let c = code.ok_or_else(|| self.error(format!("\\{c} needs {digits} digits that are a character")))?;
        self.at += digits;
        Ok(c)
    }

    fn literal(&mut self) -> Result<Node> {
        self.at += 1;
        let mut text = String::new();
        while !self.eat("\"") {
            text.push(self.character()?);
        }
        Ok(Node::Literal(text))
    }

    fn class(&mut self) -> Result<Node> {
        self.at += 1;
        let mut class = String::from("[");
        if self.eat("^") {
            class.push('^');
        }
        let mut is_empty = true;
        while !self.eat("]") {
            let first = self.character()?;
            let rest = self.rest();
            let last = if rest.starts_with('-') && !rest.starts_with("-]") {
                self.at += 1;
                self.character()?
            } else {
                first
            };
            if last < first {
                return Err(self.error(format!("{first:?}-{last:?} is no range of characters")));
            }
            let _ = write!(class, "\\u{{{:x}}}-\\u{{{:x}}}", u32::from(first), u32::from(last));
            is_empty = false;
        }
        if is_empty {
            return Err(self.error("a set of characters is empty"));
        }
        class.push(']');
        Ok(Node::Class(class))
    }

    /// `<name>` or `<[number]>`.
    fn token(&mut self) -> Result<Node> {
        let rest = self.rest();
        let end = rest.find('>').filter(|end| *end > 1 && !rest[1..*end].contains(['<', ' ', '\n']));
        let end = end.ok_or_else(|| self.error("a token is <name> or <[number]>"))?;
        let token = rest[..=end].to_string();
        self.at += end + 1;
        Ok(Node::Token(token))
    }
}

impl Node {
    fn is_nullable(&self, rules: &[Rule]) -> bool {
        match self {
            Node::Literal(text) => text.is_empty(),
            Node::Class(_) | Node::Token(_) => false,
            Node::Rule(i) => rules[*i].is_nullable,
            Node::Sequence(nodes) => nodes.iter().all(|node| node.is_nullable(rules)),
            Node::Either(nodes) => nodes.iter().any(|node| node.is_nullable(rules)),
            Node::Repeat(node, least, _) => *least == 0 || node.is_nullable(rules),
        }
    }

    fn is_regular(&self, rules: &[Rule]) -> bool {
        match self {
            Node::Literal(_) | Node::Class(_) => true,
            Node::Token(_) => false,
            Node::Rule(i) => rules[*i].is_regular,
            Node::Sequence(nodes) | Node::Either(nodes) => nodes.iter().all(|node| node.is_regular(rules)),
            Node::Repeat(node, _, _) => node.is_regular(rules),
        }
    }

    /// Whether it stands for the empty text alone.
    fn is_empty(&self) -> bool {
        match self {
            Node::Literal(text) => text.is_empty(),
            Node::Class(_) | Node::Token(_) | Node::Rule(_) => false,
            Node::Sequence(nodes) | Node::Either(nodes) => nodes.iter().all(Node::is_empty),
            Node::Repeat(node, _, most) => *most == Some(0) || node.is_empty(),
        }
    }
}

/// A rule is nullable, or regular, if its body is; from none on, until no rule is found any more.
fn find_nullable(rules: &mut [Rule]) {
    grow(rules, |rules, body| body.is_nullable(rules), |rule| &mut rule.is_nullable);
}

fn find_regular(rules: &mut [Rule]) {
    grow(rules, |rules, body| body.is_regular(rules), |rule| &mut rule.is_regular);
}

fn grow(rules: &mut [Rule], is_so: impl Fn(&[Rule], &Node) -> bool, flag: impl Fn(&mut Rule) -> &mut bool) {
    loop {
        let new = |rules: &mut [Rule], i: usize| {
            let known = *flag(&mut rules[i]);
            !known && rules[i].body.as_ref().is_some_and(|body| is_so(rules, body))
        };
        let found: Vec<usize> = (0..rules.len()).filter(|&i| new(rules, i)).collect();
        if found.is_empty() {
            return;
        }
        found.into_iter().for_each(|i| *flag(&mut rules[i]) = true);
    }
}

struct Writer<'a> {
    rules: &'a [Rule],
    terminals: String,
    runs: HashMap<String, usize>, // terminals by what they say
}

impl Writer<'_> {
    /// A regular node, in a terminal.
    fn terminal_expression(&mut self, node: &Node) -> String {
        match node {
            Node::Literal(text) => super::lark_string(text),
            Node::Class(class) => format!("/{class}/"),
            Node::Rule(i) => format!("T{i}"),
            Node::Token(token) => token.clone(), // is not regular
            Node::Sequence(nodes) if nodes.is_empty() => "\"\"".into(),
            Node::Sequence(nodes) => {
                let parts: Vec<String> = nodes.iter().map(|node| self.terminal_expression(node)).collect();
                format!("({})", parts.join(" "))
            }
            Node::Either(nodes) => {
                let parts: Vec<String> = nodes.iter().map(|node| self.terminal_expression(node)).collect();
                format!("({})", parts.join(" | "))
            }
            Node::Repeat(node, least, most) => repeated(&self.terminal_expression(node), *least, *most),
        }
    }

    /// Any node, in a rule.
    fn rule_expression(&mut self, node: &Node) -> String {
        if node.is_regular(self.rules) {
            return self.run(std::slice::from_ref(node));
        }
        match node {
            Node::Rule(i) => format!("r{i}"),
            Node::Token(token) => token.clone(),
            Node::Either(nodes) => {
                let parts: Vec<String> = nodes.iter().map(|node| self.rule_expression(node)).collect();
                format!("({})", parts.join(" | "))
            }
            Node::Repeat(node, least, most) => repeated(&self.rule_expression(node), *least, *most),
            Node::Sequence(nodes) => {
                let rules = self.rules;
                let runs = nodes.chunk_by(|a, b| a.is_regular(rules) && b.is_regular(rules));
                let part = |run: &[Node]| {
                    if run[0].is_regular(rules) { self.run(run) } else { self.rule_expression(&run[0]) }
                };
                let parts: Vec<String> = runs.map(part).collect();
                format!("({})", parts.join(" "))
            }
            Node::Literal(_) | Node::Class(_) => unreachable!("they are regular"),
        }
    }

    /// Regular nodes one after the other, as one lexeme. A lexeme is never empty, so where it may be it is left out.
    fn run(&mut self, nodes: &[Node]) -> String {
        if nodes.iter().all(Node::is_empty) {
            return "\"\"".into();
        }
        let is_nullable = nodes.iter().all(|node| node.is_nullable(self.rules));
        let parts: Vec<String> = nodes.iter().map(|node| self.terminal_expression(node)).collect();
        let mut body = parts.join(" ");
        if is_nullable {
            body = format!("({body}) & /(?s:.+)/");
        }
        let next = self.runs.len();
        let n = *self.runs.entry(body.clone()).or_insert(next);
        if n == next {
            let _ = writeln!(self.terminals, "X{n}: {body}");
        }
        if is_nullable { format!("(X{n})?") } else { format!("X{n}") }
    }
}

/// Something several times, in Lark.
fn repeated(what: &str, least: u32, most: Option<u32>) -> String {
    let times = match (least, most) {
        (0, None) => "*".into(),
        (1, None) => "+".into(),
        (0, Some(1)) => "?".into(),
        (least, None) => format!("{{{least},}}"),
        (least, Some(most)) => format!("{{{least},{most}}}"),
    };
    format!("({what}){times}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_regular_is_one_lexeme_and_what_is_not_a_rule() {
        let lark = to_lark(
            "root ::= \"a\" word | item+ # either\nword ::= [a-z]* \"foo\"\n\nitem ::= \"(\" root ws \")\"\nws ::= \" \"?",
        );
        let expected = "start: r0\nr0: (X0 | (r2)+)\nT1: ((/[\\u{61}-\\u{7a}]/)* \"foo\")\nr2: (X1 r0 X2)\nT3: (\" \")?\n\
                        X0: (\"a\" T1)\nX1: \"(\"\nX2: T3 \")\"\n";
        assert_eq!(lark.unwrap(), expected);
    }

    #[test]
    fn a_wrong_grammar_is_refused_with_the_line() {
        for (text, message) in [
            ("", "the grammar has no rule called root"),
            ("start ::= \"a\"", "the grammar has no rule called root"),
            ("root ::= a\nb ::= \"b\"", "the grammar has no rule called \"a\""),
            ("root ::= \"a\"\nroot ::= \"b\"", "line 2 of the grammar: there are two rules called \"root\""),
            ("root ::=\n  \"a\"\n\n%x", "line 4 of the grammar: a rule must begin with its name"),
            ("root = \"a\"", "line 1 of the grammar: ::= must come after \"root\""),
            ("root ::= \"a", "line 1 of the grammar: a literal or a set of characters is not closed"),
            ("root ::= [a-", "line 1 of the grammar: a literal or a set of characters is not closed"),
            ("root ::= []", "line 1 of the grammar: a set of characters is empty"),
            ("root ::= [z-a]", "line 1 of the grammar: 'z'-'a' is no range of characters"),
            ("root ::= (\"a\"", "line 1 of the grammar: a parenthesis is not closed"),
            ("root ::= \"a\")", "line 1 of the grammar: ')' does not belong here"),
            ("root ::= \"\\q\"", "line 1 of the grammar: there is no escape \\q"),
            ("root ::= \"\\ud800\"", "line 1 of the grammar: \\u needs 4 digits that are a character"),
            ("root ::= \"a\"{3,2}", "line 1 of the grammar: a repetition goes from few to more, and to 10000 at most"),
            ("root ::= \"a\"{,}", "line 1 of the grammar: a repetition is {n}, {n,}, {,m} or {n,m}"),
            ("root ::= !<[5]>", "line 1 of the grammar: all tokens but one (!<token>) are not supported"),
        ] {
            assert_eq!(to_lark(text).unwrap_err().to_string(), message);
        }
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(5000), ")".repeat(5000));
        assert!(to_lark(&deep).unwrap_err().to_string().contains("more than 64 parentheses"));
    }
}
