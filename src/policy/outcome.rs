//! The outcome of the rules for one act, before it is put into words.

use std::sync::Arc;

use super::Rule;

/// The outcome of the rules for one act.
#[derive(Debug)]
pub(super) enum Outcome {
    Allow(Vec<Arc<Rule>>),
    /// Gates, and what permits it once they are open.
    Wait(Vec<Arc<Rule>>, Vec<Arc<Rule>>),
    Forbid(Vec<Arc<Rule>>),
    /// Nothing permits it.
    Nothing,
    Error(Vec<String>),
}
