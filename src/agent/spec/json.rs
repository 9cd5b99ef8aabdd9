//! Parses JSON into a tree in which each value has its line.

use std::collections::BTreeSet;

use crate::{
    plain,
    written::{Field, Node, Parsed, Value, one_line},
};

/// Parses JSON. `serde_json` checks the syntax and limits the depth. Then [`Scan`] reads the valid text again, to find the line
/// of each value and duplicate keys.
pub(super) fn parse_json(text: &str) -> Parsed {
    let mistake = |line, what: &str| vec![(line, format!("it is not JSON: {what}"))];
    serde_json::from_str::<serde_json::Value>(text).map_err(|e| {
        let shown = e.to_string();
        let what = shown.split(" at line ").next().unwrap_or_default();
        mistake(e.line().max(1), &one_line(what))
    })?;
    let mut scan = Scan { rest: text, line: 1, twice: Vec::new() };
    match scan.node() {
        Some(root) if scan.twice.is_empty() => Ok(root),
        Some(_) => Err(scan.twice),
        None => Err(mistake(scan.line, "this cannot be read")),
    }
}

struct Scan<'a> {
    rest: &'a str,
    line: usize,
    twice: Vec<(usize, String)>,
}

impl<'a> Scan<'a> {
    /// Skips white space, and returns the next byte without taking it.
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

    /// Takes the next byte if it is `byte`, and returns whether it was. `None` at the end of the text.
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
                    "true" => Value::Truth(true),
                    "false" => Value::Truth(false),
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
                self.twice.push((line, format!("`{}` is written twice: remove one", plain::value(&key))));
            }
            entries.push(Field { key, line, node });
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
    use crate::written::parse_toml;

    /// Returns the tree without line numbers.
    fn plain(node: &Node) -> serde_json::Value {
        match &node.value {
            Value::Text(t) => t.as_str().into(),
            Value::Whole(n) => (*n).into(),
            Value::List(l) => l.iter().map(plain).collect(),
            Value::Table(t) => {
                serde_json::Value::Object(t.iter().map(|e| (e.key.clone(), plain(&e.node))).collect())
            }
            Value::Truth(is_true) => (*is_true).into(),
            Value::Date(_) | Value::Other(_) => format!("<{}>", node.value.kind()).into(),
        }
    }

    #[test]
    fn json_with_places_is_the_json_that_serde_reads() {
        let text = r#" { "a" : [ 1, -2, "x\"]}\\" , [] , {} ], "\u00e9\n": { "d": "é,:" } } "#;
        assert_eq!(
            plain(&parse_json(text).unwrap()),
            serde_json::from_str::<serde_json::Value>(text).unwrap()
        );
    }

    #[test]
    fn toml_and_json_of_the_same_content_are_one_tree() {
        let toml = parse_toml("a = [1, \"x\"]\n[b]\nc = 0x10\nd = 1.5\n").unwrap();
        let json = parse_json(r#"{"a": [1, "x"], "b": {"c": 16, "d": 1.5}}"#).unwrap();
        assert_eq!(plain(&toml), plain(&json));
    }

    #[test]
    fn everything_knows_its_line() {
        let Value::Table(t) = parse_json("{\n\"a\":\n[\n1,\n2],\n\"b\": 3}").unwrap().value else { panic!() };
        assert_eq!((t[0].line, t[0].node.line, t[1].line), (2, 3, 6));
        let Value::List(l) = &t[0].node.value else { panic!() };
        assert_eq!((l[0].line, l[1].line), (4, 5));
        let Value::Table(t) = parse_toml("\n\nx = 1\n[[read]]\nresource = 2\n").unwrap().value else {
            panic!()
        };
        let of = |k: &str| t.iter().find(|e| e.key == k).unwrap();
        assert_eq!((of("x").line, of("read").line), (3, 4));
    }

    #[test]
    fn broken_text_is_reported_with_its_line() {
        assert_eq!(parse_json("{\n\"a\": 1,\n}").unwrap_err()[0].0, 3);
        assert_eq!(
            parse_toml("a = 1\nb = \nc = ]\n").unwrap_err().iter().map(|(line, _)| *line).max(),
            Some(3)
        );
        assert!(parse_json(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn a_key_that_stands_twice_is_an_error_in_both_forms() {
        let json = parse_json("{\"a\": 1,\n\"a\": 2}").unwrap_err();
        assert_eq!(json, [(2, "`a` is written twice: remove one".to_owned())]);
        assert_eq!(parse_toml("a = 1\na = 2\n").unwrap_err()[0].0, 2);
    }
}
