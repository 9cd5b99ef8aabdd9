//! What a refusal means for a member that runs, and what is left to say where access is over.

use super::advice::means;
use crate::{
    agent::messages::MessageSink,
    reason::{Reason, Refusal},
};

/// What to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Nothing was decided, or our own identity is at fault, which its agent renews: try again.
    Later,
    /// The daemon does not see us joined: join again.
    Join,
    /// The lease is over: ask for another.
    Anew,
    /// This half is over for the attempt.
    Drained,
    /// Decided, and against us.
    Over,
}

/// Without a wildcard: a new reason must be thought about here.
pub(crate) fn meaning(reason: Reason) -> Meaning {
    use Reason as R;
    match reason {
        R::NotJoined | R::SessionMismatch => Meaning::Join,
        R::LeaseNotFound | R::LeaseExpired | R::LeaseEnded | R::Revoked | R::EpochChanged => Meaning::Anew,
        R::AttemptDraining => Meaning::Drained,

        R::PrincipalUnknown
        | R::KindNotAllowed
        | R::JobNotFound
        | R::AttemptNotFound
        | R::ResourceNotFound
        | R::AudienceUnknown
        | R::PinMismatch
        | R::PolicyDenied
        | R::PolicyError
        | R::ApprovalRequired
        | R::Locked
        | R::JobClosed
        | R::AttemptStale
        | R::AttemptEnded
        | R::NotAMember
        | R::InstanceTaken
        | R::TicketRequired
        | R::IdentityBound
        | R::MembersFull => Meaning::Over,

        R::NoClientCertificate
        | R::SvidInvalid
        | R::SvidExpired
        | R::TrustDomainUnknown
        | R::SvidUntrusted
        | R::FieldInvalid
        | R::FieldMissing
        | R::TtlInvalid
        | R::MessageTooLarge
        | R::NotSupported
        | R::LockNotFound
        | R::NameUnknown
        | R::OperatorsLockedOut
        | R::IdempotencyConflict
        | R::AttemptKeyUsed
        | R::AttemptsExhausted
        | R::StateConflict
        | R::QuotaExceeded
        | R::TokenMalformed
        | R::TokenKeyUnknown
        | R::TokenSignature
        | R::TokenIssuer
        | R::TokenAudience
        | R::TokenExpired
        | R::TokenNotYetValid
        | R::TokenPresenter
        | R::TokenCertificate
        | R::TokenEpoch
        | R::TokenScope
        | R::FeedStale
        | R::ClockDifference
        | R::FellBehind
        | R::IdentityUnavailable
        | R::LedgerUnavailable
        | R::CatalogInvalid
        | R::Contended
        | R::Overloaded
        | R::ShuttingDown
        | R::Unreachable
        | R::Internal => Meaning::Later,
    }
}

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

    #[test]
    fn a_daemon_that_cannot_answer_is_waited_for_and_a_decision_is_not_argued_with() {
        for reason in Reason::ALL.iter().filter(|r| super::super::calls::is_passing(**r)) {
            assert_eq!(meaning(*reason), Meaning::Later, "{reason}");
        }
        for reason in [Reason::Locked, Reason::PolicyDenied, Reason::JobClosed, Reason::AttemptStale] {
            assert_eq!(meaning(reason), Meaning::Over, "{reason}");
        }
        assert_eq!(meaning(Reason::SvidExpired), Meaning::Later, "its agent may renew it yet");
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
