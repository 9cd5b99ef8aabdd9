//! The end of a member's access before its work ends, and how it is reported.

use super::advice::meaning_for_people;
use crate::{
    agent::messages::MessageSink,
    reason::{Reason, Refusal},
};

/// Why access has ended while the work goes on. The files are wiped before this is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccessEnd {
    pub(crate) reason: Reason,
    pub(crate) message: String,
    /// Whether the attempt has ended too.
    pub(crate) attempt: AttemptStatus,
}

impl AccessEnd {
    /// The end of access after a final refusal. The attempt may go on without this member.
    pub(crate) fn of_refusal(refusal: Refusal) -> Self {
        let rule = refusal.fact("rule").map(|rule| format!(" (rule {rule})")).unwrap_or_default();
        let fix = refusal.fact("fix").map(|fix| format!("; {fix}")).unwrap_or_default();
        let attempt = AttemptStatus::from_reason(refusal.reason);
        AccessEnd { reason: refusal.reason, message: format!("{}{rule}{fix}", refusal.text), attempt }
    }

    /// Prints what happened, whose fault it was, and what happens to the work.
    pub(crate) fn report(&self, messages: &MessageSink, then: &str) {
        let what = match self.reason {
            Reason::AttemptStale => "this attempt was superseded",
            _ => "access has ended",
        };
        messages.send(&format!("{what} ({}): {}", self.reason, self.message));
        if let Some(means) = meaning_for_people(self.reason) {
            messages.send(&format!("what it means: {means}"));
        }
        messages.send(&format!("the credential files are wiped; {then}"));
    }
}

/// Whether an attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttemptStatus {
    Ended,
    Open,
}

impl AttemptStatus {
    pub(crate) fn from_reason(reason: Reason) -> Self {
        match reason {
            Reason::JobClosed | Reason::AttemptEnded | Reason::AttemptStale => AttemptStatus::Ended,
            _ => AttemptStatus::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::MemberStep;

    #[test]
    fn only_a_decision_of_the_daemon_is_final() {
        for reason in Reason::ALL.iter().filter(|r| r.is_passing()) {
            assert_eq!(reason.member_step(), MemberStep::TryLater, "{reason}");
        }
        for reason in [Reason::Locked, Reason::PolicyDenied, Reason::JobClosed, Reason::AttemptStale] {
            assert_eq!(reason.member_step(), MemberStep::Stop, "{reason}");
        }
        assert_eq!(Reason::SvidExpired.member_step(), MemberStep::TryLater, "it may be renewed");
    }

    #[test]
    fn an_attempt_may_outlive_the_access_of_one_member() {
        let locked = Refusal::new(Reason::Locked, "identity:x is locked").fix("ask an operator");
        let end = AccessEnd::of_refusal(locked);
        assert_eq!(end.message, "identity:x is locked; ask an operator");
        assert_eq!(end.attempt, AttemptStatus::Open);
        let denied =
            Refusal::new(Reason::PolicyDenied, "not for you").with("rule", "no-tickets: under review");
        assert_eq!(AccessEnd::of_refusal(denied).message, "not for you (rule no-tickets: under review)");
        for reason in [Reason::JobClosed, Reason::AttemptEnded, Reason::AttemptStale] {
            assert_eq!(AttemptStatus::from_reason(reason), AttemptStatus::Ended, "{reason}");
        }
    }
}
