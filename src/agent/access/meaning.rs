//! What is left to say if access is over.

use super::advice::means;
use crate::{
    agent::messages::MessageSink,
    reason::{Reason, Refusal},
};

/// Access is over before the child is. The files were wiped before this was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccessEnd {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl AccessEnd {
    /// What happened, and whose fault it was.
    pub(crate) fn said(&self, voice: &MessageSink) {
        let what = match self.reason {
            Reason::AttemptStale => "this attempt was superseded",
            _ => "access has ended",
        };
        voice.say(&format!("{what} ({}): {}", self.reason, self.message));
        if let Some(means) = means(self.reason) {
            voice.say(&format!("what it means: {means}"));
        }
    }
}

/// Whether, where our access is over, the attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttemptStatus {
    Ended,
    Open,
}

impl AttemptStatus {
    pub(crate) fn after(reason: Reason) -> Self {
        match reason {
            Reason::JobClosed | Reason::AttemptEnded | Reason::AttemptStale => AttemptStatus::Ended,
            _ => AttemptStatus::Open,
        }
    }
}

/// Refused for good. The attempt may go on without us.
pub(crate) fn over_by(refusal: Refusal) -> (AccessEnd, AttemptStatus) {
    let attempt = AttemptStatus::after(refusal.reason);
    let fix = refusal.fact("fix").map(|fix| format!("; {fix}")).unwrap_or_default();
    (AccessEnd { reason: refusal.reason, message: format!("{}{fix}", refusal.text) }, attempt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::MemberStep;

    #[test]
    fn a_daemon_that_cannot_answer_is_waited_for_and_a_decision_is_not_argued_with() {
        for reason in Reason::ALL.iter().filter(|r| r.is_passing()) {
            assert_eq!(reason.member_step(), MemberStep::TryLater, "{reason}");
        }
        for reason in [Reason::Locked, Reason::PolicyDenied, Reason::JobClosed, Reason::AttemptStale] {
            assert_eq!(reason.member_step(), MemberStep::Stop, "{reason}");
        }
        assert_eq!(Reason::SvidExpired.member_step(), MemberStep::TryLater, "its agent may renew it yet");
    }

    #[test]
    fn a_run_that_lost_its_access_still_ends_an_attempt_that_goes_on() {
        let locked = Refusal::new(Reason::Locked, "identity:x is locked").fix("ask an operator");
        let (over, attempt) = over_by(locked);
        assert_eq!(over.message, "identity:x is locked; ask an operator");
        assert_eq!(attempt, AttemptStatus::Open);
        for reason in [Reason::JobClosed, Reason::AttemptEnded, Reason::AttemptStale] {
            assert_eq!(AttemptStatus::after(reason), AttemptStatus::Ended, "{reason}");
        }
    }
}
