//! What a command prints: data on stdout, everything else on stderr.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::Value;

use super::{Exit, Failure};

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: one JSON value, or one per line where they keep coming.
    Json,
}

/// Rows under their headings, without borders, so that a cell can be copied.
pub(super) fn columns(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    tidy(table)
}

/// Names and their values, one to a line. Empty values are left out.
pub(super) fn fields(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([name.to_owned(), printable(&value)]);
    }
    tidy(table)
}

fn tidy(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// What comes from elsewhere must not speak to the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Writes to stdout. Whoever closed it wants no more, which is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Failure::new(Exit::Ok, "stdout was closed")),
        Err(e) => Err(Failure::new(Exit::Failure, format!("stdout cannot be written: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// One JSON value, indented.
pub(super) fn print_json(value: &Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

/// One JSON value on one line.
pub(super) fn print_json_line(value: &Value) -> Result<(), Failure> {
    print(&format!("{value}\n"))
}

/// Says something beside the data.
pub(super) fn note(text: &str) {
    // At once, so that no other process writes in the middle. Nobody is left to be told where stderr cannot be written.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_borders_and_no_blanks_at_the_end_of_a_line() {
        let shown = columns(
            &["ID", "STATE"],
            [vec!["j-1".into(), "ready".into()], vec!["j-22".into(), "x\u{1b}".into()]],
        );
        assert_eq!(shown, "ID    STATE\nj-1   ready\nj-22  x\u{fffd}\n");
        let shown = fields([("id", "j-1".into()), ("why", String::new()), ("purpose", "p".into())]);
        assert_eq!(shown, "id       j-1\npurpose  p\n");
    }
}
