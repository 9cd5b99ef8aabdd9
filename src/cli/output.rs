//! The output of a command: data on stdout, everything else on stderr.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Write},
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::Value;

use super::{Exit, Failure};
use crate::plain;

/// The format of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people. Fits the terminal.
    Table,
    /// For people, with all columns and whole ids.
    Wide,
    /// For programs: one JSON value, or one value on each line if there are several.
    Json,
    /// For programs: one YAML document, or several documents.
    Yaml,
}

/// Text that is safe to print: each line and cell was escaped when it was added.
///
/// Only pages reach stdout and stderr, so no command can forget to escape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page(String);

impl Page {
    /// Makes one line. A line break in `text` is shown as `\n`.
    pub(super) fn line(text: &str) -> Self {
        Page(format!("{}\n", plain::line(text)))
    }

    /// Makes one line of a message. Withholds parts that look like secrets.
    pub(super) fn message(text: &str) -> Self {
        Page(format!("{}\n", plain::message(text)))
    }

    /// Makes one line from each message.
    pub(super) fn messages<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Self {
        texts.into_iter().fold(Page::default(), |page, text| page.then(&Page::message(text.as_ref())))
    }

    /// Makes one line from each text.
    pub(super) fn lines<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Self {
        texts.into_iter().fold(Page::default(), |page, text| page.then(&Page::line(text.as_ref())))
    }

    /// Makes a page from text that this program has made or escaped.
    pub(super) fn verbatim(text: impl Into<String>) -> Self {
        Page(text.into())
    }

    #[must_use]
    pub(super) fn then(mut self, next: &Page) -> Self {
        self.0.push_str(&next.0);
        self
    }

    /// Adds `next` after an empty line.
    #[must_use]
    pub(super) fn below(mut self, next: &Page) -> Self {
        self.0.push('\n');
        self.then(next)
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A cell of a table: one line, or a list with a line for each item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TableCell(String);

impl TableCell {
    pub(super) fn list<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> Self {
        let lines: Vec<_> = items.into_iter().map(|item| plain::line(item.as_ref()).into_owned()).collect();
        TableCell(lines.join("\n"))
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

impl From<String> for TableCell {
    fn from(text: String) -> Self {
        TableCell(plain::line(&text).into_owned())
    }
}

impl From<&str> for TableCell {
    fn from(text: &str) -> Self {
        TableCell(plain::line(text).into_owned())
    }
}

/// Renders rows below their headings, without borders, so that people can copy a cell.
pub(super) fn columns<C: Into<TableCell>>(headings: &[&str], rows: impl IntoIterator<Item = Vec<C>>) -> Page {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    for row in rows {
        table.add_row(row.into_iter().map(|cell| cell.into().0));
    }
    render_table(table)
}

/// Renders names and values, one pair on each line. Leaves out empty values.
pub(super) fn fields<C: Into<TableCell>>(rows: impl IntoIterator<Item = (&'static str, C)>) -> Page {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in rows {
        let TableCell(value) = value.into();
        if !value.is_empty() {
            table.add_row([name.to_owned(), value]);
        }
    }
    render_table(table)
}

/// Renders a table without borders and without blanks at the ends of lines.
pub(super) fn render_table(mut table: Table) -> Page {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    Page(table.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

/// Writes to stdout. If the reader has closed it, the command ends without an error.
pub(super) fn print(page: &Page) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(page.0.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Failure::new(Exit::Ok, "stdout was closed")),
        Err(e) => Err(Failure::new(Exit::Failure, format!("stdout cannot be written: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// Writes one line to stdout.
pub(super) fn print_line(text: &str) -> Result<(), Failure> {
    print(&Page::line(text))
}

/// Renders one JSON value, indented.
pub(super) fn json(value: &Value) -> Page {
    Page(format!("{}\n", plain::json(&format!("{value:#}"))))
}

/// Renders one JSON value on one line.
pub(super) fn json_line(value: &Value) -> Page {
    Page(format!("{}\n", plain::json(&value.to_string())))
}

/// Renders one YAML document. Text with special characters is escaped as in JSON, which YAML can read.
pub(super) fn yaml(value: &Value) -> Page {
    match serde_saphyr::to_string(value) {
        Ok(text) if matches!(plain::json(&text), Cow::Borrowed(_)) => Page(text),
        _ => json(value),
    }
}

/// Writes one line to stderr. Withholds parts that look like secrets.
pub(super) fn note(text: &str) {
    note_page(&Page::message(text));
}

/// Writes several lines to stderr.
pub(super) fn note_page(page: &Page) {
    // One write, so that no other process can write in the middle. If stderr is closed, the failure cannot be reported.
    let _ = io::stderr().lock().write_all(page.0.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_borders_and_no_blanks_at_line_ends() {
        let shown = columns(
            &["ID", "STATE"],
            [vec!["j-1".into(), "ready".into()], vec!["j-22".into(), "x\u{1b}".into()]] as [Vec<String>; 2],
        );
        assert_eq!(shown.to_string(), "ID    STATE\nj-1   ready\nj-22  x\\u{1b}\n");
        let shown = fields([("id", "j-1"), ("why", ""), ("purpose", "p")]);
        assert_eq!(shown.to_string(), "id       j-1\npurpose  p\n");
    }

    #[test]
    fn yaml_keeps_the_value_and_escapes_control_characters() {
        let value = serde_json::json!({
            "id": "j-1", "why": "it's: \"x\"\n- y", "none": null, "list": [1, true, "yes", "1.0", "", "# no"],
            "nested": { "a": [], "b": {}, "at": "2026-11-20T04:13:15.000Z" },
        });
        let text = yaml(&value).to_string();
        assert!(!text.starts_with('{') && text.lines().any(|line| line == "id: j-1"), "{text}");
        // Text that YAML would read as another type is quoted.
        assert!(!text.lines().any(|line| ["- yes", "- 1.0", "- # no"].contains(&line.trim())), "{text}");
        assert_eq!(yaml(&serde_json::json!("x\u{202e}")).to_string(), "\"x\\u202e\"\n");
    }

    #[test]
    fn foreign_text_cannot_make_new_lines() {
        let hostile = "wrong data\nstate  completed\u{202e}";
        let escaped = r"wrong data\nstate  completed\u{202e}";
        assert_eq!(Page::line(hostile).to_string(), format!("{escaped}\n"));
        assert_eq!(fields([("why", hostile)]).to_string(), format!("why  {escaped}\n"));
        assert_eq!(columns(&["WHY"], [vec![hostile]]).to_string(), format!("WHY\n{escaped}\n"));
        let list = fields([("reads", TableCell::list(["a", hostile]))]);
        assert_eq!(list.to_string(), format!("reads  a\n       {escaped}\n"));
    }
}
