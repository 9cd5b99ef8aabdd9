//! One TOML table, read key by key. Whatever is wrong is noted with its line, and reading goes on.

use std::{
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    limits::FILE_BYTES_MAX,
    secret::{looks_secret, withheld},
    written::{self, Lines, Problem, Problems, kind_of, one_line, shown},
};

/// A key that the file does not have, and the value that stands for it, as it would be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultUsed {
    /// As in `lease.beat`.
    pub key: String,
    pub value: String,
}

/// What is noted while a file is read: what is wrong with it, and what it left to us.
pub(crate) struct Notes {
    file: PathBuf,
    lines: Lines,
    problems: Vec<Problem>,
    defaults: Vec<DefaultUsed>,
}

/// A table, and which of its keys nobody asked for yet.
pub(crate) struct Table<'t> {
    /// As it is written before a key in a message: empty, or `server.`.
    prefix: String,
    line: usize,
    left: Vec<(&'t str, usize, &'t Spanned<DeValue<'t>>)>,
    known: Vec<&'static str>,
    /// The table is absent or something else, which is told once: nothing in it is missing.
    absent: bool,
}

/// Reads a path as it is written: relative to the folder of the file that it stands in.
pub(crate) fn path(text: &str, folder: &Path) -> Result<PathBuf, String> {
    if looks_secret(text) || text.contains('\n') {
        return Err(format!("{}: write the path of a file that holds it", withheld(text)));
    }
    if text.is_empty() || text.contains('\0') {
        return Err("is no path: write one".to_owned());
    }
    Ok(folder.join(text))
}

/// Reads the text of a file.
pub(crate) fn read_text(path: &Path) -> Result<String, Problems> {
    written::read_text(path, FILE_BYTES_MAX).map_err(|what| Problems::whole(path, what))
}

/// Reads a text, hands its outermost table to `read`, and answers what that made of it where nothing was wrong, with the
/// defaults that were used. No message quotes a value that is not TOML: a key may have been pasted without quotes.
pub(crate) fn read<T>(
    file: &Path,
    text: &str,
    read: impl FnOnce(&mut Table<'_>, &mut Notes) -> Option<T>,
) -> Result<(T, Vec<DefaultUsed>), Problems> {
    let lines = Lines::of(text);
    let mut notes = Notes { file: file.to_owned(), lines, problems: Vec::new(), defaults: Vec::new() };
    let (root, errors) = DeTable::parse_recoverable(text);
    for e in &errors {
        let line = e.span().map_or(1, |s| notes.lines.at(s.start));
        let what = one_line(e.message());
        let key = e.span().filter(|_| what == "duplicate key").and_then(|s| text.get(s));
        let key = key.map(|key| format!(" `{}`", shown(key))).unwrap_or_default();
        notes.problem(line, format!("it is not TOML: {what}{key}"));
    }
    let mut made = None;
    if errors.is_empty() {
        let mut table = Table::of(String::new(), 1, root.get_ref(), &notes);
        made = read(&mut table, &mut notes);
        table.finish(&mut notes);
    }
    match (made, notes.problems.is_empty()) {
        (Some(made), true) => Ok((made, notes.defaults)),
        (None, true) => {
            // A reader answers nothing only after it noted why.
            notes.problem(1, "cannot be used");
            Err(Problems::of(notes.problems))
        }
        (_, false) => Err(Problems::of(notes.problems)),
    }
}

impl Notes {
    pub(crate) fn problem(&mut self, line: usize, what: impl Into<String>) {
        self.problems.push(Problem { file: self.file.clone(), line, what: what.into() });
    }

    /// Takes out what was noted while `read` ran, so that it does not spoil the rest of the file.
    pub(crate) fn apart<T>(&mut self, read: impl FnOnce(&mut Notes) -> T) -> (T, Option<Problems>) {
        let before = std::mem::take(&mut self.problems);
        let made = read(self);
        let noted = std::mem::replace(&mut self.problems, before);
        (made, if noted.is_empty() { None } else { Some(Problems::of(noted)) })
    }

    pub(crate) fn default_used(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.defaults.push(DefaultUsed { key: key.into(), value: value.into() });
    }
}

impl<'t> Table<'t> {
    fn of(prefix: String, line: usize, table: &'t DeTable<'t>, notes: &Notes) -> Self {
        let left = table.iter().map(|(key, value)| {
            let name: &str = key.get_ref();
            (name, notes.lines.at(key.span().start), value)
        });
        Table { prefix, line, left: left.collect(), known: Vec::new(), absent: false }
    }

    fn nothing(prefix: String, line: usize) -> Self {
        Table { prefix, line, left: Vec::new(), known: Vec::new(), absent: true }
    }

    /// The line that it begins on.
    pub(crate) fn line(&self) -> usize {
        self.line
    }

    pub(crate) fn is_absent(&self) -> bool {
        self.absent
    }

    fn take(&mut self, key: &'static str) -> Option<(usize, &'t Spanned<DeValue<'t>>)> {
        self.known.push(key);
        let at = self.left.iter().position(|(name, ..)| *name == key)?;
        let (_, line, value) = self.left.swap_remove(at);
        Some((line, value))
    }

    /// A table below this one. Absent, it reads as empty, and what it needs is missing.
    pub(crate) fn table(&mut self, key: &'static str, notes: &mut Notes) -> Table<'t> {
        let prefix = format!("{}{key}.", self.prefix);
        match self.take(key) {
            Some((line, value)) => self.below(prefix, line, value, notes),
            None => Table { absent: false, ..Table::nothing(prefix, self.line) },
        }
    }

    /// A table below this one, where there is one.
    pub(crate) fn table_if_there(&mut self, key: &'static str, notes: &mut Notes) -> Option<Table<'t>> {
        let (line, value) = self.take(key)?;
        Some(self.below(format!("{}{key}.", self.prefix), line, value, notes))
    }

    /// The tables of a list, `[[key]]`, each read from its own line. None where there is no such list.
    pub(crate) fn list_of_tables(&mut self, key: &'static str, notes: &mut Notes) -> Vec<Table<'t>> {
        let Some((line, value)) = self.take(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let (name, what) = (format!("{}{key}", self.prefix), kind_of(value.get_ref()));
            notes.problem(line, format!("{name}: {what} stands here: write [[{name}]] before each"));
            return Vec::new();
        };
        items
            .iter()
            .map(|item| {
                let line = notes.lines.at(item.span().start);
                self.below(format!("{}{key}.", self.prefix), line, item, notes)
            })
            .collect()
    }

    /// All that is left, as tables by their names: for keys that are names, as those of contexts.
    #[cfg(feature = "cli")]
    pub(crate) fn tables(&mut self, notes: &mut Notes) -> Vec<(&'t str, Table<'t>)> {
        let left = std::mem::take(&mut self.left);
        let below = left.into_iter().map(|(name, line, value)| {
            (name, self.below(format!("{}{}.", self.prefix, shown(name)), line, value, notes))
        });
        below.collect()
    }

    /// All that is left, as texts by their names, each with its line: for keys that are names.
    pub(crate) fn texts(&mut self, notes: &mut Notes) -> Vec<(&'t str, usize, &'t str)> {
        let mut out = Vec::new();
        for (name, line, value) in std::mem::take(&mut self.left) {
            match value.get_ref() {
                DeValue::String(text) => out.push((name, line, text.as_ref())),
                other => notes.problem(
                    line,
                    format!(
                        "{}{}: {} stands here: write a text in quotes",
                        self.prefix,
                        shown(name),
                        kind_of(other)
                    ),
                ),
            }
        }
        out
    }

    fn below(
        &self,
        prefix: String,
        line: usize,
        value: &'t Spanned<DeValue<'t>>,
        notes: &mut Notes,
    ) -> Table<'t> {
        match value.get_ref() {
            DeValue::Table(table) => Table::of(prefix, line, table, notes),
            other => {
                let name = prefix.trim_end_matches('.');
                notes.problem(
                    line,
                    format!("{name}: {} stands here: write a table, [{name}]", kind_of(other)),
                );
                Table::nothing(prefix, line)
            }
        }
    }

    /// A text that may be there.
    pub(crate) fn text<T, E: Display>(
        &mut self,
        key: &'static str,
        notes: &mut Notes,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let (line, value) = self.take(key)?;
        let read = match value.get_ref() {
            DeValue::String(text) => parse(text).map_err(|e| e.to_string()),
            other => Err(format!("{} stands here: write a text in quotes", kind_of(other))),
        };
        read.map_err(|why| notes.problem(line, format!("{}{key}: {why}", self.prefix))).ok()
    }

    /// A text that must be there.
    pub(crate) fn need<T, E: Display>(
        &mut self,
        key: &'static str,
        example: &str,
        notes: &mut Notes,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.has(key) {
            self.known.push(key);
            self.missing(key, example, notes);
            return None;
        }
        self.text(key, notes, parse)
    }

    /// A text, or the one that stands for it where it is absent, which is noted.
    pub(crate) fn or<T, E: Display>(
        &mut self,
        key: &'static str,
        default: &str,
        notes: &mut Notes,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if self.has(key) {
            return self.text(key, notes, parse);
        }
        self.known.push(key);
        notes.default_used(format!("{}{key}", self.prefix), format!("{default:?}"));
        parse(default)
            .map_err(|e| notes.problem(self.line, format!("{}{key}: its default: {e}", self.prefix)))
            .ok()
    }

    /// A whole number within bounds, or the one that stands for it where it is absent, which is noted.
    pub(crate) fn count_or(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u32>,
        default: u32,
        notes: &mut Notes,
    ) -> Option<u32> {
        let Some((line, value)) = self.take(key) else {
            notes.default_used(format!("{}{key}", self.prefix), default.to_string());
            return Some(default);
        };
        let number = match value.get_ref() {
            DeValue::Integer(n) => u32::from_str_radix(n.as_str(), n.radix()).ok(),
            _ => None,
        };
        let number = number.filter(|n| bounds.contains(n));
        if number.is_none() {
            let what = match value.get_ref() {
                DeValue::Integer(n) => format!("`{}` is out of bounds", shown(n.as_str())),
                other => format!("{} stands here", kind_of(other)),
            };
            let (least, most) = (bounds.start(), bounds.end());
            notes.problem(
                line,
                format!("{}{key}: {what}: write a whole number from {least} to {most}", self.prefix),
            );
        }
        number
    }

    /// [`Table::count_or`] of what a machine has room for.
    pub(crate) fn room_or(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u32>,
        default: usize,
        notes: &mut Notes,
    ) -> Option<usize> {
        let default = u32::try_from(default).unwrap_or(u32::MAX);
        self.count_or(key, bounds, default, notes).and_then(|n| usize::try_from(n).ok())
    }

    /// A list of texts that may be there, with its line.
    pub(crate) fn list<T, E: Display>(
        &mut self,
        key: &'static str,
        notes: &mut Notes,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<(usize, Vec<T>)> {
        let (line, value) = self.take(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            let what = kind_of(value.get_ref());
            notes.problem(line, format!("{}{key}: {what} stands here: write [\"…\", \"…\"]", self.prefix));
            return None;
        };
        let mut out = Vec::new();
        for item in items.iter() {
            let read = match item.get_ref() {
                DeValue::String(text) => parse(text).map_err(|e| e.to_string()),
                other => Err(format!("{} stands here: write a text in quotes", kind_of(other))),
            };
            match read {
                Ok(it) => out.push(it),
                Err(why) => {
                    let line = notes.lines.at(item.span().start);
                    notes.problem(line, format!("{}{key}: {why}", self.prefix));
                }
            }
        }
        Some((line, out))
    }

    /// Refuses a key by its name.
    pub(crate) fn refuse(&mut self, key: &'static str, why: &str, notes: &mut Notes) {
        let known = self.known.len();
        if let Some((line, _)) = self.take(key) {
            notes.problem(line, format!("{}{key} {why}", self.prefix));
        }
        // What is refused is not offered in the place of a misspelt key.
        self.known.truncate(known);
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.left.iter().any(|(name, ..)| *name == key)
    }

    /// The line of a key that nobody asked for yet, or of the table.
    pub(crate) fn line_of(&self, key: &str) -> usize {
        self.left.iter().find(|(name, ..)| *name == key).map_or(self.line, |(_, line, _)| *line)
    }

    /// Notes that a key is missing, with what to write.
    pub(crate) fn missing(&self, key: &str, example: &str, notes: &mut Notes) {
        if !self.absent {
            notes.problem(self.line, format!("{}{key} is missing: write {key} = {example}", self.prefix));
        }
    }

    /// Notes every key that nobody asked for.
    pub(crate) fn finish(&self, notes: &mut Notes) {
        for (name, line, _) in &self.left {
            let known = self.known.join(", ");
            notes.problem(
                *line,
                format!("{}{} is not a key: write one of {known}, or remove it", self.prefix, shown(name)),
            );
        }
    }
}
