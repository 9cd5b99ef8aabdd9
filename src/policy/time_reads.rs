//! How the policies of a slice use the time of a decision.

use std::{cmp::Ordering, collections::BTreeSet};

use serde_json::Value as Json;

use super::decision_cache::DecisionKey;
use crate::{clock::Wall, limits};

/// Cedar's operators that compare two values and give true or false.
const COMPARISONS: [&str; 6] = ["<", "<=", ">", ">=", "==", "!="];

/// What the policies of a slice compare `context.now` with.
///
/// If they only compare it with fixed moments, the answer changes only when one of these moments passes. So the decision stays
/// the same from one second to the next, and a lease that is renewed after minutes needs no new evaluation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TimeReads {
    /// The fixed moments in the text of the policies.
    moments: BTreeSet<Wall>,
    /// Set if the policies compare `context.now` with `resource.retain_until`.
    retention: bool,
    /// Set if the policies use `context.now` in another way, so that each second may have another answer.
    otherwise: bool,
}

impl TimeReads {
    #[cfg(test)]
    pub(super) fn any() -> Self {
        TimeReads { otherwise: true, ..TimeReads::default() }
    }

    /// Whether each second may have another answer.
    pub(super) fn needs_seconds(&self) -> bool {
        self.otherwise || self.moments.len() > limits::POLICY_MOMENTS_MAX
    }

    /// Returns the fixed moments in the text of the policies.
    pub(super) fn moments(&self) -> impl Iterator<Item = Wall> {
        self.moments.iter().copied()
    }

    /// Notes that the time is used in another way than a comparison.
    pub(super) fn add_other_use(&mut self) {
        self.otherwise = true;
    }

    /// Notes a comparison of `context.now` with a fixed moment or with `resource.retain_until`, in Cedar's JSON form. Returns
    /// false for any other expression.
    pub(super) fn add_comparison(&mut self, operator: &str, operands: &Json) -> bool {
        let (left, right) = (operands.get("left"), operands.get("right"));
        let other = match (left, right) {
            _ if !COMPARISONS.contains(&operator) => return false,
            (Some(now), Some(other)) | (Some(other), Some(now)) if is_field(now, "context", "now") => other,
            _ => return false,
        };
        if is_field(other, "resource", "retain_until") {
            self.retention = true;
            return true;
        }
        let Some(moment) = moment(other) else { return false };
        self.moments.insert(moment);
        true
    }

    /// Adds to a key which of these moments have passed. `retain_until` is the time until which the resource may be kept.
    pub(super) fn add_to_key(&self, now: Wall, retain_until: Option<Wall>, question: &mut DecisionKey) {
        // Policies see whole seconds.
        let now = Wall::from_seconds(now.seconds());
        if self.needs_seconds() {
            question.add_number(now.seconds());
            return;
        }
        let until = retain_until.filter(|_| self.retention);
        for moment in self.moments.iter().copied().chain(until) {
            question.add_number(match now.cmp(&moment) {
                Ordering::Less => 0,
                Ordering::Equal => 1,
                Ordering::Greater => 2,
            });
        }
    }
}

/// Whether this is `VARIABLE.FIELD`.
fn is_field(json: &Json, variable: &str, field: &str) -> bool {
    json.get(".").is_some_and(|access| {
        access.get("attr").and_then(Json::as_str) == Some(field)
            && access.get("left").and_then(|left| left.get("Var")).and_then(Json::as_str) == Some(variable)
    })
}

/// Reads `datetime("…")`.
fn moment(json: &Json) -> Option<Wall> {
    let [literal] = json.get("datetime")?.as_array()?.as_slice() else { return None };
    let text = literal.get("Value")?.as_str()?;
    // Cedar also accepts a date without a time.
    if text.len() == "2027-01-31".len() {
        Wall::parse(&format!("{text}T00:00:00Z"))
    } else {
        Wall::parse(text)
    }
}
