//! A TOML or JSON text as one tree in which everything knows its line. Says nothing of what the keys mean.

use std::collections::BTreeSet;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::written::{Lines, one_line};

/// A value and the line that it begins on, counted from 1.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Text(String),
    Whole(i64),
    List(Vec<Node>),
    Table(Vec<DocumentEntry>),
    /// What no specification has use for, in words.
    Other(&'static str),
}

/// One key of a table.
#[derive(Debug)]
pub(super) struct DocumentEntry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) node: Node,
}

/// What is wrong with the text itself, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxFault {
    pub(super) line: usize,
    pub(super) what: String,
}

impl Value {
    /// What it is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a text",
            Value::Whole(_) => "a whole number",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other(kind) => kind,
        }
    }
}

/// Reads TOML. All faults of the syntax are told at once.
pub(super) fn read_toml(text: &str) -> Result<Node, Vec<SyntaxFault>> {
    let lines = Lines::of(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Node { line: 1, value: table(root.into_inner(), &lines) });
    }
    Err(errors
        .iter()
        .map(|e| SyntaxFault { line: e.span().map_or(1, |s| lines.at(s.start)), what: one_line(e.message()) })
        .collect())
}

fn table(table: DeTable<'_>, lines: &Lines) -> Value {
    let entries = table.into_iter().map(|(key, value)| DocumentEntry {
        line: lines.at(key.span().start),
        key: key.into_inner().into_owned(),
        node: node(value, lines),
    });
    Value::Table(entries.collect())
}

fn node(value: Spanned<DeValue<'_>>, lines: &Lines) -> Node {
    let line = lines.at(value.span().start);
    let value = match value.into_inner() {
        DeValue::String(s) => Value::Text(s.into_owned()),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => Value::Whole(n),
            Err(_) => Value::Other("a number that is too large"),
        },
        DeValue::Float(_) => Value::Other("a number that is not whole"),
        DeValue::Boolean(_) => Value::Other("true or false"),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(list) => Value::List(list.into_iter().map(|v| node(v, lines)).collect()),
        DeValue::Table(inner) => table(inner, lines),
    };
    Node { line, value }
}

/// Reads JSON. serde_json judges the syntax and bounds the depth; what follows it only finds places in a text that is
/// known to be good, and keys that stand twice.
pub(super) fn read_json(text: &str) -> Result<Node, Vec<SyntaxFault>> {
    let fault = |line, what| vec![SyntaxFault { line, what }];
    serde_json::from_str::<serde_json::Value>(text).map_err(|e| {
        let shown = e.to_string();
        let what = shown.split(" at line ").next().unwrap_or_default();
        fault(e.line().max(1), one_line(what))
    })?;
    let mut scan = Scan { rest: text, line: 1, twice: Vec::new() };
    match scan.node() {
        Some(root) if scan.twice.is_empty() => Ok(root),
        Some(_) => Err(scan.twice),
        None => Err(fault(scan.line, "this cannot be read".to_owned())),
    }
}

struct Scan<'a> {
    rest: &'a str,
    line: usize,
    twice: Vec<SyntaxFault>,
}

impl<'a> Scan<'a> {
    /// The next byte that is not white space, still to be taken.
    fn peek(&mut self) -> Option<u8> {
        let trimmed = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.take(self.rest.len() - trimmed.len())?;
        self.rest.bytes().next()
    }

    fn take(&mut self, bytes: usize) -> Option<&'a str> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        self.line += taken.bytes().filter(|b| *b == b'\n').count();
        Some(taken)
    }

    /// Takes one byte where it is the next.
    fn eat(&mut self, byte: u8) -> Option<bool> {
        let is = self.peek()? == byte;
        if is {
            self.take(1)?;
        }
        Some(is)
    }

    fn node(&mut self) -> Option<Node> {
        let first = self.peek()?;
        let line = self.line;
        let value = match first {
            b'{' => self.table()?,
            b'[' => self.list()?,
            b'"' => Value::Text(self.text()?),
            _ => {
                let end = self.rest.find([',', ']', '}', ' ', '\t', '\r', '\n']).unwrap_or(self.rest.len());
                match self.take(end)? {
                    "true" | "false" => Value::Other("true or false"),
                    "null" => Value::Other("null"),
                    n => n.parse().map_or(Value::Other("a number that is not whole"), Value::Whole),
                }
            }
        };
        Some(Node { line, value })
    }

    fn table(&mut self) -> Option<Value> {
        self.take(1)?;
        let mut entries = Vec::new();
        let mut seen = BTreeSet::new();
        while !self.eat(b'}')? {
            self.eat(b',')?;
            self.peek()?;
            let line = self.line;
            let key = self.text()?;
            self.eat(b':')?;
            let node = self.node()?;
            if !seen.insert(key.clone()) {
                self.twice.push(SyntaxFault {
                    line,
                    what: format!("`{}` stands twice: remove one", key.escape_debug()),
                });
            }
            entries.push(DocumentEntry { key, line, node });
        }
        Some(Value::Table(entries))
    }

    fn list(&mut self) -> Option<Value> {
        self.take(1)?;
        let mut nodes = Vec::new();
        while !self.eat(b']')? {
            self.eat(b',')?;
            nodes.push(self.node()?);
        }
        Some(Value::List(nodes))
    }

    fn text(&mut self) -> Option<String> {
        self.peek()?;
        let mut escaped = false;
        let quote = self.rest.bytes().enumerate().skip(1).find_map(|(i, b)| {
            let ends = b == b'"' && !escaped;
            escaped = b == b'\\' && !escaped;
            ends.then_some(i)
        })?;
        serde_json::from_str(self.take(quote + 1)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree without its places.
    fn plain(node: &Node) -> serde_json::Value {
        match &node.value {
            Value::Text(t) => t.as_str().into(),
            Value::Whole(n) => (*n).into(),
            Value::List(l) => l.iter().map(plain).collect(),
            Value::Table(t) => {
                serde_json::Value::Object(t.iter().map(|e| (e.key.clone(), plain(&e.node))).collect())
            }
            Value::Other(kind) => format!("<{kind}>").into(),
        }
    }

    #[test]
    fn json_with_places_is_the_json_that_serde_reads() {
        let text = r#" { "a" : [ 1, -2, "x\"]}\\" , [] , {} ], "\u00e9\n": { "d": "é,:" } } "#;
        assert_eq!(
            plain(&read_json(text).unwrap()),
            serde_json::from_str::<serde_json::Value>(text).unwrap()
        );
    }

    #[test]
    fn toml_and_json_of_the_same_content_are_one_tree() {
        let toml = read_toml("a = [1, \"x\"]\n[b]\nc = 0x10\nd = 1.5\n").unwrap();
        let json = read_json(r#"{"a": [1, "x"], "b": {"c": 16, "d": 1.5}}"#).unwrap();
        assert_eq!(plain(&toml), plain(&json));
    }

    #[test]
    fn everything_knows_its_line() {
        let Value::Table(t) = read_json("{\n\"a\":\n[\n1,\n2],\n\"b\": 3}").unwrap().value else { panic!() };
        assert_eq!((t[0].line, t[0].node.line, t[1].line), (2, 3, 6));
        let Value::List(l) = &t[0].node.value else { panic!() };
        assert_eq!((l[0].line, l[1].line), (4, 5));
        let Value::Table(t) = read_toml("\n\nx = 1\n[[read]]\nresource = 2\n").unwrap().value else {
            panic!()
        };
        let of = |k: &str| t.iter().find(|e| e.key == k).unwrap();
        assert_eq!((of("x").line, of("read").line), (3, 4));
    }

    #[test]
    fn broken_text_is_told_with_its_line() {
        assert_eq!(read_json("{\n\"a\": 1,\n}").unwrap_err()[0].line, 3);
        assert_eq!(read_toml("a = 1\nb = \nc = ]\n").unwrap_err().iter().map(|f| f.line).max(), Some(3));
        assert!(read_json(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn a_key_that_stands_twice_is_an_error_in_both_forms() {
        let json = read_json("{\"a\": 1,\n\"a\": 2}").unwrap_err();
        assert_eq!(json, [SyntaxFault { line: 2, what: "`a` stands twice: remove one".into() }]);
        assert_eq!(read_toml("a = 1\na = 2\n").unwrap_err()[0].line, 2);
    }
}
