//! One table of a file, read key by key. Each mistake is noted with its line, and reading goes on.

use std::{
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use super::{
    document::{Field, Node, Parsed, Value},
    problem::{Problem, Problems},
    text::nearest,
};
use crate::{
    plain,
    secret::{looks_secret, withheld},
};

/// A key that the file leaves out, and the text of the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultUsed {
    /// The key in the file, for example `lease.beat`.
    pub key: String,
    pub value: String,
}

/// The mistakes that were found in one file, and the defaults that it uses.
pub(crate) struct Notes {
    file: PathBuf,
    problems: Vec<Problem>,
    defaults: Vec<DefaultUsed>,
}

/// One table of a file, and the keys that were read so far.
pub(crate) struct Section<'t> {
    /// The text before a key in a message: empty, `server.`, or ``dataset `tickets@v3`: ``.
    prefix: String,
    line: usize,
    fields: Vec<&'t Field>,
    asked: Vec<&'static str>,
    /// Whether the value is not a table. This is noted once, so missing keys are not noted as well.
    is_not_a_table: bool,
}

/// An item of a list, and its line.
#[derive(Clone, Debug)]
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) line: usize,
}

/// Reads a path. A relative path is relative to the folder of its file.
pub(crate) fn path(text: &str, folder: &Path) -> Result<PathBuf, String> {
    if looks_secret(text) || text.contains('\n') {
        return Err(format!("{}: write the path of a file that has it", withheld(text)));
    }
    if text.is_empty() || text.contains('\0') {
        return Err("is not a path: write one".to_owned());
    }
    Ok(folder.join(text))
}

/// Hands the outermost table of a file to `read`, and returns the result and the defaults that were used.
///
/// # Errors
/// Every mistake in the syntax, and every mistake that `read` noted.
pub(crate) fn read_document<T>(
    file: &Path,
    parsed: Parsed,
    read: impl FnOnce(&mut Section<'_>, &mut Notes) -> Option<T>,
) -> Result<(T, Vec<DefaultUsed>), Problems> {
    let mut notes = Notes::new(file);
    let made = notes.read(parsed, read).flatten();
    if made.is_none() && notes.problems.is_empty() {
        // `read` should have noted why it returns nothing. This line is for a `read` that did not.
        notes.problem(1, "cannot be used");
    }
    match made {
        Some(made) if notes.problems.is_empty() => Ok((made, notes.defaults)),
        _ => Err(Problems::of(notes.problems)),
    }
}

impl Notes {
    pub(crate) fn new(file: &Path) -> Self {
        Notes { file: file.to_owned(), problems: Vec::new(), defaults: Vec::new() }
    }

    /// Hands the outermost table to `read`. If the syntax is broken, does not call `read`, because further mistakes
    /// would be guesses.
    pub(crate) fn read<T>(
        &mut self,
        parsed: Parsed,
        read: impl FnOnce(&mut Section<'_>, &mut Notes) -> T,
    ) -> Option<T> {
        let root = parsed.map_err(|mistakes| {
            for (line, what) in mistakes {
                self.problem(line, what);
            }
        });
        let root = root.ok()?;
        let mut section = Section::of(String::new(), root.line, &root.value, "a table", self);
        let made = read(&mut section, self);
        section.finish(self);
        Some(made)
    }

    pub(crate) fn problem(&mut self, line: usize, what: impl Into<String>) {
        self.problems.push(Problem { file: self.file.clone(), line, what: what.into() });
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Takes out the mistakes that were noted while `read` ran, so that they do not affect the rest of the file.
    pub(crate) fn apart<T>(&mut self, read: impl FnOnce(&mut Notes) -> T) -> (T, Option<Problems>) {
        let before = std::mem::take(&mut self.problems);
        let made = read(self);
        let noted = std::mem::replace(&mut self.problems, before);
        (made, if noted.is_empty() { None } else { Some(Problems::of(noted)) })
    }

    fn default_used(&mut self, key: String, value: String) {
        self.defaults.push(DefaultUsed { key, value });
    }
}

impl<'t> Section<'t> {
    fn of(prefix: String, line: usize, value: &'t Value, wanted: &str, notes: &mut Notes) -> Self {
        let (fields, is_not_a_table) = match value {
            Value::Table(fields) => (fields.iter().collect(), false),
            other => {
                let name = prefix.trim_end_matches('.');
                let name = if name.is_empty() { "the file" } else { name };
                notes.problem(line, format!("{name}: {}", other.instead_of(wanted)));
                (Vec::new(), true)
            }
        };
        Section { prefix, line, fields, asked: Vec::new(), is_not_a_table }
    }

    /// Returns the line on which the table begins.
    pub(crate) fn line(&self) -> usize {
        self.line
    }

    pub(crate) fn is_not_a_table(&self) -> bool {
        self.is_not_a_table
    }

    /// Names the table in messages by the text of one of its keys, for example ``dataset `tickets@v3`: owner is missing``.
    pub(crate) fn name_by(&mut self, key: &str) {
        let named = self.fields.iter().find(|field| field.key == key).map(|field| field.node.value.text());
        let kind = self.prefix.trim_end_matches('.');
        self.prefix = match named {
            Some(Ok(name)) => format!("{kind} `{}`: ", plain::value(name)),
            _ => format!("this {kind}: "),
        };
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.fields.iter().any(|field| field.key == key)
    }

    /// Returns the line of a key, or of the table if the key is absent.
    pub(crate) fn line_of(&self, key: &str) -> usize {
        self.fields.iter().find(|field| field.key == key).map_or(self.line, |field| field.line)
    }

    fn take(&mut self, key: &'static str) -> Option<&'t Field> {
        self.asked.push(key);
        self.fields.iter().copied().find(|field| field.key == key)
    }

    /// Notes that the value of a key is wrong.
    pub(crate) fn wrong(&self, key: &str, why: impl Display, notes: &mut Notes) {
        self.wrong_at(self.line_of(key), key, why, notes);
    }

    fn wrong_at(&self, line: usize, key: &str, why: impl Display, notes: &mut Notes) {
        notes.problem(line, format!("{}{key}: {why}", self.prefix));
    }

    /// Notes that a key is missing, with an example.
    pub(crate) fn missing(&self, key: &str, example: &str, notes: &mut Notes) {
        if !self.is_not_a_table {
            notes.problem(self.line, format!("{}{key} is missing: write {key} = {example}", self.prefix));
        }
    }

    /// Whether a required key is present. Notes a missing key.
    fn requires(&mut self, key: &'static str, example: &str, notes: &mut Notes) -> bool {
        let is_there = self.has(key);
        if !is_there {
            self.asked.push(key);
            self.missing(key, example, notes);
        }
        is_there
    }

    /// Refuses a key by its name. This key is never suggested as the correction of another.
    pub(crate) fn refuse(&mut self, key: &str, why: &str, notes: &mut Notes) {
        if self.has(key) {
            notes.problem(self.line_of(key), format!("{}{key} {why}", self.prefix));
            self.fields.retain(|field| field.key != key);
        }
    }

    /// Notes every unknown key, with the most similar known key.
    pub(crate) fn finish(&self, notes: &mut Notes) {
        for field in self.fields.iter().filter(|field| !self.asked.contains(&field.key.as_str())) {
            let known = self.asked.join(", ");
            let (prefix, name) = (&self.prefix, plain::value(&field.key));
            let what = match nearest(&field.key, self.asked.iter().copied()) {
                Some(near) => format!("write `{near}`, or remove it; the keys here are {known}"),
                None => format!("write one of {known}, or remove it"),
            };
            notes.problem(field.line, format!("{prefix}{name} is not a key: {what}"));
        }
    }

    // ---------- values ----------

    /// Reads an optional value.
    pub(crate) fn value<T, E: Display>(
        &mut self,
        key: &'static str,
        notes: &mut Notes,
        read: impl FnOnce(&'t Value) -> Result<T, E>,
    ) -> Option<T> {
        let field = self.take(key)?;
        read(&field.node.value).map_err(|why| self.wrong_at(field.line, key, why, notes)).ok()
    }

    /// Reads a required value.
    pub(crate) fn need_value<T, E: Display>(
        &mut self,
        key: &'static str,
        example: &str,
        notes: &mut Notes,
        read: impl FnOnce(&'t Value) -> Result<T, E>,
    ) -> Option<T> {
        if !self.requires(key, example, notes) {
            return None;
        }
        self.value(key, notes, |value| read(value).map_err(|why| with_example(&why, key, example)))
    }

    /// Reads an optional text.
    pub(crate) fn text<T, E: Display>(
        &mut self,
        key: &'static str,
        notes: &mut Notes,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.value(key, notes, |value| parse(value.text()?).map_err(|e| e.to_string()))
    }

    /// Reads a required text.
    pub(crate) fn need<T, E: Display>(
        &mut self,
        key: &'static str,
        example: &str,
        notes: &mut Notes,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.need_value(key, example, notes, |value| parse(value.text()?).map_err(|e| e.to_string()))
    }

    /// Reads a text, or its default if it is absent.
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
        self.asked.push(key);
        notes.default_used(format!("{}{key}", self.prefix), format!("{default:?}"));
        parse(default).map_err(|e| self.wrong(key, format!("its default: {e}"), notes)).ok()
    }

    /// Reads an optional whole number within bounds.
    pub(crate) fn count(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u32>,
        notes: &mut Notes,
    ) -> Option<u32> {
        let (least, most) = (bounds.start(), bounds.end());
        self.value(key, notes, |value| match value {
            Value::Whole(n) => u32::try_from(*n).ok().filter(|n| bounds.contains(n)).ok_or_else(|| {
                format!("`{n}` is out of bounds: write a whole number from {least} to {most}")
            }),
            other => Err(other.instead_of(&format!("a whole number from {least} to {most}"))),
        })
    }

    /// Reads a whole number within bounds, or its default if it is absent.
    pub(crate) fn count_or(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u32>,
        default: u32,
        notes: &mut Notes,
    ) -> Option<u32> {
        if self.has(key) {
            return self.count(key, bounds, notes);
        }
        self.asked.push(key);
        notes.default_used(format!("{}{key}", self.prefix), default.to_string());
        Some(default)
    }

    /// Reads true or false, or its default if it is absent.
    pub(crate) fn truth_or(&mut self, key: &'static str, default: bool, notes: &mut Notes) -> Option<bool> {
        if self.has(key) {
            return self.value(key, notes, Value::truth);
        }
        self.asked.push(key);
        notes.default_used(format!("{}{key}", self.prefix), default.to_string());
        Some(default)
    }

    /// Reads an optional list of texts. Items that `parse` refuses are noted and left out.
    pub(crate) fn list<T, E: Display>(
        &mut self,
        key: &'static str,
        items_max: usize,
        notes: &mut Notes,
        mut parse: impl FnMut(&str) -> Result<T, E>,
    ) -> Vec<Placed<T>> {
        let items = self.items(key, "a list of texts, [\"…\", \"…\"]", items_max, notes);
        let mut out = Vec::with_capacity(items.len());
        for item in items {
            let read = item.value.text().and_then(|text| parse(text).map_err(|e| e.to_string()));
            match read {
                Ok(value) => out.push(Placed { value, line: item.line }),
                Err(why) => self.wrong_at(item.line, key, why, notes),
            }
        }
        out
    }

    /// Reads a required list of texts. It may be empty.
    pub(crate) fn need_list<T, E: Display>(
        &mut self,
        key: &'static str,
        example: &str,
        items_max: usize,
        notes: &mut Notes,
        parse: impl FnMut(&str) -> Result<T, E>,
    ) -> Vec<Placed<T>> {
        if self.requires(key, example, notes) { self.list(key, items_max, notes, parse) } else { Vec::new() }
    }

    fn items(&mut self, key: &'static str, wanted: &str, items_max: usize, notes: &mut Notes) -> &'t [Node] {
        let Some(field) = self.take(key) else { return &[] };
        match &field.node.value {
            Value::List(items) if items.len() > items_max => {
                let why = format!("{} entries: write at most {items_max}", items.len());
                self.wrong_at(field.line, key, why, notes);
                &[]
            }
            Value::List(items) => items,
            other => {
                self.wrong_at(field.line, key, other.instead_of(wanted), notes);
                &[]
            }
        }
    }

    /// Reads every key as a name, and its value as a text. Returns each with its line.
    pub(crate) fn named_texts(&self, notes: &mut Notes) -> Vec<(&'t str, usize, &'t str)> {
        let mut out = Vec::new();
        for field in &self.fields {
            match field.node.value.text() {
                Ok(text) => out.push((field.key.as_str(), field.line, text)),
                Err(why) => self.wrong_at(field.line, &plain::value(&field.key), why, notes),
            }
        }
        out
    }

    // ---------- tables below ----------

    /// Returns a table inside this table. An absent table reads as an empty table, so each required key is noted as
    /// missing.
    pub(crate) fn section(&mut self, key: &'static str, notes: &mut Notes) -> Section<'t> {
        self.section_if_there(key, notes).unwrap_or_else(|| Section {
            prefix: format!("{}{key}.", self.prefix),
            line: self.line,
            fields: Vec::new(),
            asked: Vec::new(),
            is_not_a_table: false,
        })
    }

    /// Returns a table inside this table, if it exists.
    pub(crate) fn section_if_there(&mut self, key: &'static str, notes: &mut Notes) -> Option<Section<'t>> {
        let field = self.take(key)?;
        Some(self.subsection(field, notes))
    }

    /// Returns the tables of a list, `[[key]]`, each with its own line.
    pub(crate) fn list_of_sections(
        &mut self,
        key: &'static str,
        items_max: usize,
        notes: &mut Notes,
    ) -> Vec<Section<'t>> {
        let prefix = format!("{}{key}", self.prefix);
        let wanted = format!("[[{prefix}]] above each entry");
        let items = self.items(key, &wanted, items_max, notes);
        items.iter().map(|i| Section::of(format!("{prefix}."), i.line, &i.value, &wanted, notes)).collect()
    }

    /// Reads every key as a name, and its value as a table.
    pub(crate) fn named_sections(&self, notes: &mut Notes) -> Vec<(&'t str, Section<'t>)> {
        self.fields.iter().map(|field| (field.key.as_str(), self.subsection(field, notes))).collect()
    }

    fn subsection(&self, field: &'t Field, notes: &mut Notes) -> Section<'t> {
        let name = format!("{}{}", self.prefix, plain::value(&field.key));
        let wanted = format!("a table, [{name}]");
        Section::of(format!("{name}."), field.line, &field.node.value, &wanted, notes)
    }
}

/// Adds an example to a reason, unless the reason itself says what to write.
fn with_example(why: &impl Display, key: &str, example: &str) -> String {
    let why = why.to_string();
    if why.contains("write ") { why } else { format!("{why}; write {key} = {example}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::written::parse_toml;

    /// The mistakes of a text, as `LINE: what`.
    fn mistakes(text: &str, read: impl FnOnce(&mut Section<'_>, &mut Notes)) -> Vec<String> {
        let mut notes = Notes::new(Path::new("file.toml"));
        notes.read(parse_toml(text), read);
        notes.into_problems().iter().map(|p| format!("{}: {}", p.line, p.what)).collect()
    }

    fn read(root: &mut Section<'_>, notes: &mut Notes) {
        root.need("port", "8443", notes, str::parse::<u16>);
        root.list("hosts", 2, notes, |t| if t == "bad" { Err("bad host: write a good one") } else { Ok(()) });
        for mut table in root.list_of_sections("user", 2, notes) {
            table.name_by("name");
            table.need("name", "\"ada\"", notes, str::parse::<String>);
            table.value("admin", notes, Value::truth);
            table.finish(notes);
        }
    }

    #[test]
    fn every_mistake_is_noted_with_its_line_and_what_to_write() {
        let text = "prot = 1\nport = \"x\"\nhosts = [\"bad\",\n7]\n[[user]]\nname = \"bob\"\nadmin = 1\ncolour = 2\n[[user]]\n";
        insta::assert_snapshot!(mistakes(text, read).join("\n"), @r#"
        2: port: invalid digit found in string; write port = 8443
        3: hosts: bad host: write a good one
        4: hosts: this is a whole number: write a text in quotes
        7: user `bob`: admin: this is a whole number: write true or false
        8: user `bob`: colour is not a key: write one of name, admin, or remove it
        9: this user: name is missing: write name = "ada"
        1: prot is not a key: write `port`, or remove it; the keys here are port, hosts, user
        "#);
    }

    #[test]
    fn long_lists_and_values_of_another_kind_are_refused() {
        let text = "port = \"1\"\nhosts = [\"a\", \"b\", \"c\"]\nuser = 1\n";
        insta::assert_snapshot!(mistakes(text, read).join("\n"), @"
        2: hosts: 3 entries: write at most 2
        3: user: this is a whole number: write [[user]] above each entry
        ");
    }

    #[test]
    fn a_secret_is_never_quoted_as_a_key_or_a_name() {
        let secret = "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9v0123";
        let text = format!("\"{secret}\" = 1\nport = \"1\"\n[[user]]\nname = \"{secret}\"\n{secret} = 1\n");
        let all = mistakes(&text, read);
        assert_eq!(all.len(), 2, "{all:?}");
        assert!(all.iter().all(|line| !line.contains(secret)), "{all:?}");
    }
}
