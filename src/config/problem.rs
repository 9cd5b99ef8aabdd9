//! What is wrong with a configuration file.

use std::{fmt, path::PathBuf};

/// One thing that is wrong. `Display` is `FILE:LINE: what, and what to write instead`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {what}", file.display(), if *.line == 0 { String::new() } else { format!(":{line}") })]
pub struct ConfigProblem {
    pub file: PathBuf,
    /// From 1; 0 where the file could not be read at all, so that `Display` names none.
    pub line: usize,
    pub what: String,
}

/// All that is wrong with a file, in the order of its lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigProblem>);

impl ConfigErrors {
    pub(super) fn of(mut problems: Vec<ConfigProblem>) -> Self {
        problems.sort_by_key(|p| p.line);
        ConfigErrors(problems)
    }

    pub(super) fn one(problem: ConfigProblem) -> Self {
        ConfigErrors(vec![problem])
    }

    pub fn problems(&self) -> &[ConfigProblem] {
        &self.0
    }
}

/// One line per problem.
impl fmt::Display for ConfigErrors {
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

impl std::error::Error for ConfigErrors {}
