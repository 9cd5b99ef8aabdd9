//! The mistakes in a file.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::plain;

/// A mistake in a file. `Display` is `FILE:LINE: MISTAKE AND CORRECTION`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{}{}: {what}", plain::path(file), if *.line == 0 { String::new() } else { format!(":{line}") })]
pub struct Problem {
    pub file: PathBuf,
    /// The line, counted from 1. 0 if the mistake has no line, and `Display` then shows none.
    pub line: usize,
    pub what: String,
}

/// All mistakes in a file, in the order of its lines. Never empty. `Display` has a line for each mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn of(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| p.line);
        Problems(problems)
    }

    /// Makes the problem of a whole file.
    pub(crate) fn whole(file: &Path, what: String) -> Self {
        Problems(vec![Problem { file: file.to_owned(), line: 0, what }])
    }

    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
