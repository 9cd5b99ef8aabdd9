//! Words for values of the wire format.

use std::collections::BTreeMap;

use crate::{cli::table::TableSize, proto::v1};

/// Returns the word for a value of the wire: `awaiting-approval` for `JOB_STATE_AWAITING_APPROVAL`.
pub(super) fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => String::new(),
        word => word.to_ascii_lowercase().replace('_', "-"),
    }
}

pub(in crate::cli) fn job_state(job: &v1::Job) -> String {
    word(job.state().as_str_name(), "JOB_STATE_")
}

pub(super) fn outcome(outcome: v1::Outcome) -> String {
    word(outcome.as_str_name(), "OUTCOME_")
}

/// Returns the word for a method, such as `lora`. Empty if the job tunes nothing.
pub(in crate::cli) fn method(method: v1::Method) -> String {
    word(method.as_str_name(), "METHOD_")
}

pub(super) fn half(half: v1::Half) -> String {
    word(half.as_str_name(), "HALF_")
}

pub(super) fn attempt_state(attempt: &v1::Attempt) -> String {
    match outcome(attempt.outcome()) {
        o if o.is_empty() => word(attempt.state().as_str_name(), "ATTEMPT_STATE_"),
        o => o,
    }
}

/// Returns `joined`, `away` or `draining`, or how the member left and its outcome.
pub(super) fn member_state(member: &v1::Member) -> String {
    let state = word(member.state().as_str_name(), "MEMBER_STATE_");
    match outcome(member.outcome()) {
        o if !o.is_empty() => format!("{state}, {o}"),
        _ if member.writing_ends.is_some() && state == "joined" => "draining".to_owned(),
        _ => state,
    }
}

/// Returns the state of an open job, such as `running`, or the outcome of a closed job.
pub(in crate::cli) fn job_state_or_outcome(job: &v1::Job) -> String {
    match outcome(job.outcome()) {
        o if o.is_empty() => job_state(job),
        o => o,
    }
}

pub(super) fn shown_id(id: &str, short: &BTreeMap<&str, &str>, size: TableSize) -> String {
    match short.get(id) {
        Some(short) if !size.is_wide => (*short).to_owned(),
        _ => id.to_owned(),
    }
}

/// Returns `None` for empty text.
pub(in crate::cli) fn none_if_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_values_become_plain_words() {
        assert_eq!(word("JOB_STATE_AWAITING_APPROVAL", "JOB_STATE_"), "awaiting-approval");
        assert_eq!(word("OUTCOME_UNSPECIFIED", "OUTCOME_"), "");
        let job = v1::Job {
            state: v1::JobState::Closed.into(),
            outcome: v1::Outcome::Interrupted.into(),
            ..Default::default()
        };
        assert_eq!(
            (job_state(&job).as_str(), job_state_or_outcome(&job).as_str()),
            ("closed", "interrupted")
        );
    }

    #[test]
    fn a_member_that_drains_or_left_says_so() {
        let joined = v1::Member { state: v1::MemberState::Joined.into(), ..Default::default() };
        let drains = v1::Member { writing_ends: Some(Default::default()), ..joined.clone() };
        let outcome = v1::Outcome::Interrupted.into();
        let left = v1::Member { state: v1::MemberState::Left.into(), outcome, ..drains.clone() };
        assert_eq!([&joined, &drains, &left].map(member_state), ["joined", "draining", "left, interrupted"]);
    }
}
