//! Exit codes: a closed list that scripts may rely on.

use std::process::ExitCode;

use crate::reason::Reason;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// Anything that no other code says.
    Failure,
    Denied,
    AwaitingApproval,
    /// A job, attempt or lease that is over, or a newer attempt has begun.
    Ended,
    /// In force but not on disk, or refused because it could not be known to be safe.
    NotDurable,
    /// Something that was checked is not what it says that it is.
    VerificationFailed,
    Usage,
    /// What `run` passes on: its child's code, or 125 to 127 for itself.
    Child(u8),
}

impl Exit {
    pub const fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failure => 1,
            Exit::Denied => 2,
            Exit::AwaitingApproval => 3,
            Exit::Ended => 4,
            Exit::NotDurable => 5,
            Exit::VerificationFailed => 7,
            Exit::Usage => 64,
            Exit::Child(code) => code,
        }
    }

    /// The code of a refusal.
    pub const fn of(reason: Reason) -> Self {
        match reason {
            Reason::NoClientCertificate
            | Reason::SvidInvalid
            | Reason::SvidExpired
            | Reason::TrustDomainUnknown
            | Reason::SvidUntrusted
            | Reason::PrincipalUnknown
            | Reason::KindNotAllowed
            | Reason::PinMismatch
            | Reason::PolicyDenied
            | Reason::PolicyError
            | Reason::Locked
            | Reason::OperatorsLockedOut
            | Reason::NotAMember
            | Reason::SessionMismatch
            | Reason::TicketRequired
            | Reason::IdentityBound => Exit::Denied,

            Reason::ApprovalRequired => Exit::AwaitingApproval,

            Reason::JobClosed
            | Reason::AttemptStale
            | Reason::AttemptEnded
            | Reason::AttemptKeyUsed
            | Reason::AttemptsExhausted
            | Reason::NotJoined
            | Reason::LeaseExpired
            | Reason::LeaseEnded
            | Reason::Revoked
            | Reason::EpochChanged => Exit::Ended,

            Reason::LedgerUnavailable | Reason::FeedStale | Reason::ClockDifference => Exit::NotDurable,

            Reason::TokenMalformed
            | Reason::TokenKeyUnknown
            | Reason::TokenSignature
            | Reason::TokenIssuer
            | Reason::TokenAudience
            | Reason::TokenExpired
            | Reason::TokenNotYetValid
            | Reason::TokenPresenter
            | Reason::TokenCertificate
            | Reason::TokenEpoch
            | Reason::TokenScope => Exit::VerificationFailed,

            Reason::FieldInvalid | Reason::FieldMissing | Reason::TtlInvalid => Exit::Usage,

            Reason::MessageTooLarge
            | Reason::NotSupported
            | Reason::JobNotFound
            | Reason::AttemptNotFound
            | Reason::LeaseNotFound
            | Reason::ResourceNotFound
            | Reason::LockNotFound
            | Reason::NameUnknown
            | Reason::AudienceUnknown
            | Reason::IdempotencyConflict
            | Reason::AttemptDraining
            | Reason::StateConflict
            | Reason::InstanceTaken
            | Reason::MembersFull
            | Reason::QuotaExceeded
            | Reason::FellBehind
            | Reason::IdentityUnavailable
            | Reason::CatalogInvalid
            | Reason::Contended
            | Reason::Overloaded
            | Reason::ShuttingDown
            | Reason::Unreachable
            | Reason::Internal => Exit::Failure,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}
