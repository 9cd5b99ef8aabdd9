//! One table, read key by key. Whatever is wrong is noted with its line, and reading goes on.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use super::document::{DocumentEntry, Node, Value};
use crate::written::shown;

/// What is wrong, and on which line.
pub(super) type Noted = Vec<(usize, String)>;

/// The keys of one table that were not asked for yet.
pub(super) struct Fields {
    /// As it is written before a key in a message: empty, or `run.`.
    prefix: &'static str,
    /// Where the table begins: what is missing is told here.
    line: usize,
    left: Vec<DocumentEntry>,
    known: Vec<&'static str>,
    held: Vec<&'static str>,
    /// Something else stood where the table was wanted, which is told: nothing more is missing.
    no_table: bool,
}

/// A value and its line.
#[derive(Clone, Debug)]
pub(super) struct AtLine<T> {
    pub(super) line: usize,
    pub(super) value: T,
}

impl Fields {
    pub(super) fn of(prefix: &'static str, node: Node, noted: &mut Noted) -> Self {
        let (left, no_table) = match node.value {
            Value::Table(entries) => (entries, false),
            other => {
                let name = if prefix.is_empty() { "a specification" } else { prefix.trim_end_matches('.') };
                noted.push((node.line, format!("{name} is {}: write a table", other.kind())));
                (Vec::new(), true)
            }
        };
        Fields { prefix, line: node.line, left, known: Vec::new(), held: Vec::new(), no_table }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<DocumentEntry> {
        self.known.push(key);
        let at = self.left.iter().position(|e| e.key == key)?;
        self.held.push(key);
        Some(self.left.swap_remove(at))
    }

    /// Whether a key that was asked for is there, right or wrong.
    pub(super) fn held(&self, key: &str) -> bool {
        self.no_table || self.held.contains(&key)
    }

    /// Notes that a key is missing, with what to write.
    pub(super) fn missing(&self, key: &str, write: &str, noted: &mut Noted) {
        noted.push((self.line, format!("{}{key} is missing: write {write}", self.prefix)));
    }

    fn wrong(&self, line: usize, key: &str, what: impl Display, noted: &mut Noted) {
        noted.push((line, format!("{}{key}: {what}", self.prefix)));
    }

    /// Refuses a key by its name.
    pub(super) fn refuse(&mut self, key: &'static str, why: &str, noted: &mut Noted) {
        if let Some(entry) = self.left.iter().position(|e| e.key == key).map(|i| self.left.swap_remove(i)) {
            noted.push((entry.line, format!("{}{key} {why}", self.prefix)));
        }
    }

    /// A text that `read` makes something of.
    pub(super) fn text<T, E: Display>(
        &mut self,
        key: &'static str,
        noted: &mut Noted,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<AtLine<T>> {
        let entry = self.take(key)?;
        let line = entry.node.line;
        let Value::Text(text) = &entry.node.value else {
            let what = format!("{} stands here: write a text in quotes", entry.node.value.kind());
            self.wrong(line, key, what, noted);
            return None;
        };
        read(text).map_err(|e| self.wrong(line, key, e, noted)).ok().map(|value| AtLine { line, value })
    }

    /// A list of texts. Those that `read` refuses are noted and left out.
    pub(super) fn texts<T, E: Display>(
        &mut self,
        key: &'static str,
        most: usize,
        noted: &mut Noted,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        let Some(entry) = self.take(key) else { return Vec::new() };
        let Value::List(nodes) = entry.node.value else {
            let what = format!("{} stands here: write a list of texts", entry.node.value.kind());
            self.wrong(entry.node.line, key, what, noted);
            return Vec::new();
        };
        if nodes.len() > most {
            self.wrong(entry.line, key, format!("{} entries: write at most {most}", nodes.len()), noted);
            return Vec::new();
        }
        let mut out = Vec::with_capacity(nodes.len());
        for node in nodes {
            match &node.value {
                Value::Text(text) => match read(text) {
                    Ok(value) => out.push(value),
                    Err(e) => self.wrong(node.line, key, e, noted),
                },
                other => {
                    let what = format!("{} stands here: write a text in quotes", other.kind());
                    self.wrong(node.line, key, what, noted);
                }
            }
        }
        out
    }

    /// A whole number within bounds.
    pub(super) fn count(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u32>,
        noted: &mut Noted,
    ) -> Option<AtLine<u32>> {
        let entry = self.take(key)?;
        let line = entry.node.line;
        let read = match entry.node.value {
            Value::Whole(n) => u32::try_from(n).ok().filter(|n| bounds.contains(n)).ok_or(n.to_string()),
            other => Err(other.kind().to_owned()),
        };
        match read {
            Ok(value) => Some(AtLine { line, value }),
            Err(is) => {
                let what = format!(
                    "{is} stands here: write a whole number from {} to {}",
                    bounds.start(),
                    bounds.end()
                );
                self.wrong(line, key, what, noted);
                None
            }
        }
    }

    /// A span of time within bounds, as people write it: `8d`, `120s`.
    pub(super) fn span(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<Duration>,
        noted: &mut Noted,
    ) -> Option<AtLine<Duration>> {
        self.text(key, noted, |text| {
            let (least, most) =
                (humantime::format_duration(*bounds.start()), humantime::format_duration(*bounds.end()));
            humantime::parse_duration(text).ok().filter(|d| bounds.contains(d)).ok_or_else(|| {
                format!(
                    "`{}` stands here: write a time from \"{least}\" to \"{most}\", as in \"90s\" or \"8h\"",
                    shown(text)
                )
            })
        })
    }

    /// A table below this one.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        prefix: &'static str,
        noted: &mut Noted,
    ) -> Option<Fields> {
        let entry = self.take(key)?;
        let mut fields = Fields::of(prefix, entry.node, noted);
        fields.line = entry.line;
        Some(fields)
    }

    /// The tables of a list below this one.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
        prefix: &'static str,
        most: usize,
        noted: &mut Noted,
    ) -> Vec<Fields> {
        let Some(entry) = self.take(key) else { return Vec::new() };
        match entry.node.value {
            Value::List(nodes) if nodes.len() > most => {
                self.wrong(entry.line, key, format!("{} entries: write at most {most}", nodes.len()), noted);
                Vec::new()
            }
            Value::List(nodes) => nodes.into_iter().map(|n| Fields::of(prefix, n, noted)).collect(),
            other => {
                let what = format!("{} stands here: write [[{key}]] with resource = \"…\"", other.kind());
                self.wrong(entry.node.line, key, what, noted);
                Vec::new()
            }
        }
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self, noted: &mut Noted) {
        for entry in &self.left {
            noted.push((
                entry.line,
                format!(
                    "{}{} is not a key: write one of {}, or remove it",
                    self.prefix,
                    shown(&entry.key),
                    self.known.join(", ")
                ),
            ));
        }
    }
}
