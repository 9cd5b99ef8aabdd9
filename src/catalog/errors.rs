//! The mistakes in a catalog.

use std::collections::BTreeSet;

use crate::written::Problem;

/// All mistakes in a catalog, by file and line. Never empty. File names are relative to the catalog directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the catalog has {} mistake(s): {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct CatalogErrors(Vec<Problem>);

impl CatalogErrors {
    /// Sorts mistakes by file and line. `None` if there is none.
    pub(super) fn of(problems: Vec<Problem>) -> Option<Self> {
        (!problems.is_empty()).then(|| Self::sorted(problems.into_iter().collect()))
    }

    pub(super) fn sorted(problems: BTreeSet<Problem>) -> Self {
        CatalogErrors(problems.into_iter().collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}
