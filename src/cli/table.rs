//! Lists that fit the terminal: long cells are cut, and columns that still do not fit are left out.

use comfy_table::{ColumnConstraint, ContentArrangement, Row, Table, Width, presets::NOTHING};

use super::output::{Page, TableCell, render_table};

/// How much of a list to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableSize {
    /// Whether `-o wide` is set: all columns and whole ids are shown, and nothing is cut.
    pub(super) is_wide: bool,
    /// The width of the terminal. `None` if stdout is not a terminal, so that nothing is cut.
    pub(super) columns: Option<usize>,
}

/// One column of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    heading: &'static str,
    /// The smallest width to which cells are cut. `None` if cells are never cut.
    floor: Option<usize>,
    is_extra: bool,
    /// The rank of the column. If the columns do not fit, the columns with the highest rank are left out first.
    rank: u8,
}

impl Column {
    /// Makes a column whose cells are not cut.
    pub(super) const fn whole(heading: &'static str, rank: u8) -> Self {
        Column { heading, floor: None, is_extra: false, rank }
    }

    /// Makes a column whose cells keep at least `floor` characters when they are cut.
    pub(super) const fn cut(heading: &'static str, floor: usize, rank: u8) -> Self {
        Column { heading, floor: Some(floor), is_extra: false, rank }
    }

    /// Makes a column that only `-o wide` shows.
    pub(super) const fn extra(heading: &'static str) -> Self {
        Column { heading, floor: None, is_extra: true, rank: 0 }
    }

    fn least(&self, widest: usize) -> usize {
        self.floor.map_or(widest, |floor| floor.min(widest)).max(self.heading.len())
    }
}

const GAP: usize = 2;

/// Renders rows below their headings, in the width that `size` allows.
pub(super) fn list<C: Into<TableCell>>(
    columns: &[Column],
    rows: impl IntoIterator<Item = Vec<C>>,
    size: TableSize,
) -> Page {
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|row| row.into_iter().map(|c| c.into().into_text()).collect()).collect();
    let widest = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0)
    };
    let mut shown: Vec<(usize, &Column)> =
        columns.iter().enumerate().filter(|(_, c)| size.is_wide || !c.is_extra).collect();
    let width = size.columns.filter(|_| !size.is_wide);
    if let Some(width) = width {
        let least = |shown: &[(usize, &Column)]| {
            shown.iter().map(|(at, c)| c.least(widest(*at)).saturating_add(GAP)).sum::<usize>()
        };
        while shown.len() > 1 && least(&shown) > width.saturating_add(GAP) {
            let last = shown.iter().enumerate().max_by_key(|(_, (_, c))| c.rank).map(|(place, _)| place);
            shown.remove(last.unwrap_or(0));
        }
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(shown.iter().map(|(_, c)| c.heading));
    table.set_truncation_indicator("…");
    for row in &rows {
        let mut cells = Row::from(shown.iter().map(|(at, _)| row.get(*at).map_or("", String::as_str)));
        if width.is_some() {
            cells.max_height(1);
        }
        table.add_row(cells);
    }
    match width.and_then(|width| u16::try_from(width.saturating_add(GAP)).ok()) {
        None => {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        Some(width) => {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
            for (column, (at, c)) in table.column_iter_mut().zip(&shown) {
                let least = c.least(widest(*at)).saturating_add(GAP);
                column.set_constraint(match c.floor {
                    None => ColumnConstraint::ContentWidth,
                    Some(_) => ColumnConstraint::LowerBoundary(Width::Fixed(
                        u16::try_from(least).unwrap_or(u16::MAX),
                    )),
                });
            }
        }
    }
    render_table(table)
}

/// Cuts a line to the width of the terminal.
pub(super) fn cut(line: &str, size: TableSize) -> String {
    match size.columns.filter(|_| !size.is_wide) {
        Some(width) if line.chars().count() > width => {
            line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] = [
        Column::whole("ID", 0),
        Column::cut("HOLDER", 8, 2),
        Column::cut("OPENS", 6, 1),
        Column::extra("AUDIENCE"),
    ];

    fn shown(size: TableSize) -> String {
        let row = [
            "l-0123456789",
            "spiffe://td.example/ns/ml/job/7",
            "dataset:acme/tickets@v3",
            "spiffe://td/files",
        ];
        list(&COLUMNS, [row.to_vec()], size).to_string()
    }

    #[test]
    fn a_list_fits_its_terminal() {
        for columns in 20..120 {
            let text = shown(TableSize { is_wide: false, columns: Some(columns) });
            let widest = text.lines().map(|l| l.chars().count()).max().unwrap();
            assert!(widest <= columns, "{columns}: {widest}\n{text}");
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(text.contains("l-0123456789"), "{text}");
        }
        assert!(!shown(TableSize { is_wide: false, columns: Some(25) }).contains("HOLDER"));
    }

    // A row of `audit tail` takes one line of its terminal.
    #[test]
    fn a_row_is_cut_to_its_terminal() {
        let size = |is_wide, columns| TableSize { is_wide, columns };
        let row = "é".repeat(300);
        let shown = cut(&row, size(false, Some(60)));
        assert!(shown.chars().count() == 60 && shown.ends_with('…'), "{shown}");
        assert_eq!(cut("short", size(false, Some(60))), "short");
        assert_eq!((cut(&row, size(false, None)), cut(&row, size(true, Some(60)))), (row.clone(), row));
    }

    #[test]
    fn nothing_is_cut_in_a_pipe_or_a_wide_list() {
        let text = shown(TableSize { is_wide: false, columns: None });
        assert!(text.contains("dataset:acme/tickets@v3") && !text.contains("AUDIENCE"), "{text}");
        let text = shown(TableSize { is_wide: true, columns: Some(20) });
        assert!(text.contains("AUDIENCE") && text.contains("spiffe://td/files"), "{text}");
    }
}
