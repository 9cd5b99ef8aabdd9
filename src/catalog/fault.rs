//! What is wrong with a catalog, and where.

use std::{collections::BTreeSet, fmt};

use crate::written::Lines;

/// One mistake, with its place and the way out of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file's name within the catalog's directory, or the directory.
    pub file: String,
    /// From 1; 0 where no line is to blame.
    pub line: usize,
    pub what: String,
    /// What to write instead.
    pub instead: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}; {}", self.file, self.what, self.instead),
            line => write!(f, "{}:{line}: {}; {}", self.file, self.what, self.instead),
        }
    }
}

/// All that is wrong with a catalog, by file and line. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the catalog has {} mistake(s): {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct CatalogErrors(Vec<Fault>);

impl CatalogErrors {
    /// Sorts by place. `None` where there is nothing wrong.
    pub(super) fn of(mut faults: Vec<Fault>) -> Option<Self> {
        faults.sort();
        faults.dedup();
        (!faults.is_empty()).then_some(CatalogErrors(faults))
    }

    /// Takes mistakes that are there already.
    pub(super) fn noted(faults: BTreeSet<Fault>) -> Self {
        CatalogErrors(faults.into_iter().collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

/// Collects the mistakes of one file.
pub(super) struct Faults<'f> {
    file: &'f str,
    lines: Lines,
    found: Vec<Fault>,
}

impl<'f> Faults<'f> {
    pub(super) fn new(file: &'f str, text: &str) -> Self {
        Faults { file, lines: Lines::of(text), found: Vec::new() }
    }

    pub(super) fn file(&self) -> &'f str {
        self.file
    }

    /// The line, from 1, of a byte offset.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.at(at)
    }

    /// Notes a mistake at a byte offset.
    pub(super) fn add(&mut self, at: usize, what: impl Into<String>, instead: impl Into<String>) {
        let line = self.line(at);
        self.add_at_line(line, what, instead);
    }

    pub(super) fn add_at_line(&mut self, line: usize, what: impl Into<String>, instead: impl Into<String>) {
        self.found.push(Fault {
            file: self.file.to_owned(),
            line,
            what: what.into(),
            instead: instead.into(),
        });
    }

    pub(super) fn into_found(self) -> Vec<Fault> {
        self.found
    }
}
