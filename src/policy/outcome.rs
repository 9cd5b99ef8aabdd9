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
