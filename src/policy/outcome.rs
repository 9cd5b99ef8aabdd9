//! The outcome of the rules for one act, before it becomes a text.

use std::sync::Arc;

use super::Rule;

/// The outcome of the rules for one act.
#[derive(Debug)]
pub(super) enum Outcome {
    Allow(Vec<Arc<Rule>>),
    /// The gates, and the rules that permit the act after approval.
    Wait(Vec<Arc<Rule>>, Vec<Arc<Rule>>),
    Forbid(Vec<Arc<Rule>>),
    /// No rule permits the act.
    Nothing,
    Error(Vec<String>),
}

impl Outcome {
    /// Returns the number of rules that it names.
    pub(super) fn rules(&self) -> usize {
        match self {
            Outcome::Allow(rules) | Outcome::Forbid(rules) => rules.len(),
            Outcome::Wait(gates, permits) => gates.len().saturating_add(permits.len()),
            Outcome::Nothing | Outcome::Error(_) => 0,
        }
    }
}
