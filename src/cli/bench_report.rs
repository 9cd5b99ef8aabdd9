//! The results of a bench as a report: its tables and lines are printed, and can be written into a page of the documentation.

use super::output::{Page, columns};

/// Tables and lines, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BenchReport(Vec<ReportPart>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum ReportPart {
    Table { headings: Vec<&'static str>, rows: Vec<Vec<String>> },
    Lines(Vec<String>),
}

impl BenchReport {
    /// Makes a report with one table. Without rows, the report is empty.
    pub(super) fn table(headings: &[&'static str], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        let rows: Vec<_> = rows.into_iter().collect();
        match rows.is_empty() {
            true => BenchReport::default(),
            false => BenchReport(vec![ReportPart::Table { headings: headings.to_vec(), rows }]),
        }
    }

    /// Makes a report with these lines. Without lines, the report is empty.
    pub(super) fn lines(lines: Vec<String>) -> Self {
        if lines.is_empty() { BenchReport::default() } else { BenchReport(vec![ReportPart::Lines(lines)]) }
    }

    /// Adds another report at the end.
    #[must_use]
    pub(super) fn then(mut self, next: BenchReport) -> Self {
        self.0.extend(next.0);
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the report for a terminal.
    pub(super) fn to_page(&self) -> Page {
        let parts = self.0.iter().map(|part| match part {
            ReportPart::Table { headings, rows } => columns(headings, rows.iter().cloned()),
            ReportPart::Lines(lines) => Page::lines(lines),
        });
        parts.reduce(|all, part| all.below(&part)).unwrap_or_default()
    }

    /// Returns the report in Markdown.
    pub(super) fn to_markdown(&self) -> String {
        let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let parts = self.0.iter().map(|part| match part {
            ReportPart::Table { headings, rows } => {
                let heading: Vec<_> = headings.iter().map(|text| (*text).to_owned()).collect();
                let rule = vec!["---".to_owned(); headings.len()];
                [heading, rule].iter().chain(rows).map(|cells| row(cells)).collect::<String>()
            }
            ReportPart::Lines(lines) => lines.iter().map(|line| format!("- {line}\n")).collect(),
        });
        parts.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_printed_and_written_as_markdown() {
        let rows = [["issue", "0.8"], ["renew", "0.9"]].map(|row| row.map(str::to_owned).to_vec());
        let table = BenchReport::table(&["WHAT", "RATIO"], rows);
        let report = table.then(BenchReport::lines(vec!["one".to_owned(), "two".to_owned()]));
        let page = "WHAT   RATIO\nissue  0.8\nrenew  0.9\n\none\ntwo\n";
        assert_eq!(report.to_page().to_string(), page);
        let markdown = "| WHAT | RATIO |\n| --- | --- |\n| issue | 0.8 |\n| renew | 0.9 |\n\n- one\n- two\n";
        assert_eq!(report.to_markdown(), markdown);
        assert!(BenchReport::table(&["WHAT"], []).then(BenchReport::lines(Vec::new())).is_empty());
    }
}
