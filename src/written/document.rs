//! A file as one tree in which every value has its line. This module does not know the meaning of keys.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
    value::Datetime,
};

use super::text::{Lines, one_line};
use crate::plain;

/// A tree, or every mistake of the syntax with its line.
pub(crate) type Parsed = Result<Node, Vec<(usize, String)>>;

/// A value, and the line on which it begins, counted from 1.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    Text(String),
    Whole(i64),
    Truth(bool),
    Date(Datetime),
    List(Vec<Node>),
    Table(Vec<Field>),
    /// A value of a kind that our files do not use. The text names the kind, for messages.
    Other(&'static str),
}

/// One key of a table.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) node: Node,
}

impl Value {
    /// Returns the kind of the value, in words.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a text",
            Value::Whole(_) => "a whole number",
            Value::Truth(_) => "true or false",
            Value::Date(_) => "a date",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other(kind) => kind,
        }
    }

    pub(crate) fn text(&self) -> Result<&str, String> {
        match self {
            Value::Text(text) => Ok(text),
            other => Err(other.instead_of("a text in quotes")),
        }
    }

    pub(crate) fn truth(&self) -> Result<bool, String> {
        match self {
            Value::Truth(is_true) => Ok(*is_true),
            other => Err(other.instead_of("true or false")),
        }
    }

    /// Returns the error for a value of another kind than its key requires.
    pub(crate) fn instead_of(&self, wanted: &str) -> String {
        format!("this is {}: write {wanted}", self.kind())
    }
}

/// Reads TOML. A message about the syntax quotes no value, because it may be a secret that was pasted without quotes.
pub(crate) fn parse_toml(text: &str) -> Parsed {
    let lines = Lines::of(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Node { line: 1, value: table(root.into_inner(), &lines) });
    }
    let mistakes = errors.iter().map(|e| {
        let what = one_line(e.message());
        let key = e.span().filter(|_| what == "duplicate key").and_then(|s| text.get(s));
        let key = key.map(|key| format!(" `{}`", plain::value(key))).unwrap_or_default();
        (e.span().map_or(1, |s| lines.at(s.start)), format!("it is not TOML: {what}{key}"))
    });
    Err(mistakes.collect())
}

fn table(table: DeTable<'_>, lines: &Lines) -> Value {
    let fields = table.into_iter().map(|(key, value)| Field {
        line: lines.at(key.span().start),
        key: key.into_inner().into_owned(),
        node: node(value, lines),
    });
    Value::Table(fields.collect())
}

fn node(value: Spanned<DeValue<'_>>, lines: &Lines) -> Node {
    let line = lines.at(value.span().start);
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix())
            .map_or(Value::Other("a number that is too large"), Value::Whole),
        DeValue::Float(_) => Value::Other("a number that is not whole"),
        DeValue::Boolean(is_true) => Value::Truth(is_true),
        DeValue::Datetime(date) => Value::Date(date),
        DeValue::Array(list) => Value::List(list.into_iter().map(|v| node(v, lines)).collect()),
        DeValue::Table(inner) => table(inner, lines),
    };
    Node { line, value }
}
