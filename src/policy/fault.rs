//! The mistakes of a policy set, with their files and lines.

use std::fmt;

/// One mistake, with its file and line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyFault {
    /// The file's name within the policy directory, or the directory.
    pub file: String,
    /// The line, counted from 1. 0 if the mistake has no line.
    pub line: usize,
    /// The id of the policy, if the mistake is in one policy.
    pub policy: Option<String>,
    /// The mistake, and how to correct it.
    pub what: String,
}

impl fmt::Display for PolicyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        match &self.policy {
            Some(id) => write!(f, ": policy `{id}`: {}", self.what),
            None => write!(f, ": {}", self.what),
        }
    }
}

/// All mistakes in a policy set, by file and line. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy set has {} mistake(s): {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct PolicyErrors(Vec<PolicyFault>);

impl PolicyErrors {
    pub(super) fn of(mut faults: Vec<PolicyFault>) -> Option<Self> {
        faults.sort();
        faults.dedup();
        (!faults.is_empty()).then_some(PolicyErrors(faults))
    }

    pub(super) fn one(file: impl Into<String>, what: impl Into<String>) -> Self {
        PolicyErrors(vec![PolicyFault { file: file.into(), line: 0, policy: None, what: what.into() }])
    }

    pub fn iter(&self) -> impl Iterator<Item = &PolicyFault> {
        self.0.iter()
    }
}
