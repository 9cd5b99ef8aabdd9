//! The refusals of the store.

use super::{keys::TooManyKeys, size::QuotaFull};
use crate::{ledger::Actor, limits, name::JobId, reason::Reason};

/// The reasons for which a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused<E> {
    /// The transition is not legal.
    #[error(transparent)]
    Transition(E),
    #[error("there is no such job")]
    NoJob,
    /// A job with another specification was created with this idempotency key.
    #[error("the idempotency key belongs to {0}, which has another specification")]
    KeyConflict(JobId),
    #[error(transparent)]
    QuotaFull(#[from] QuotaFull),
    #[error(transparent)]
    TooManyKeys(#[from] TooManyKeys),
    #[error(
        "the limit of {} locks, or of {} for one tenant, is reached",
        limits::LOCKS_MAX,
        limits::LOCKS_PER_TENANT_MAX
    )]
    TooManyLocks,
    #[error("there is no such lock")]
    NoLock,
    /// The caller may not lift this lock.
    #[error("you may not lift this lock: {0} set it for all tenants")]
    NotTheirs(Actor),
    /// The parameter sweep already has all of its jobs.
    #[error("the sweep has all of its {0} jobs")]
    SweepFull(u32),
    /// Only one job may use the identity, and another job uses it already.
    #[error("only {0} may use your identity")]
    Bound(JobId),
    #[error("the limit of {} identities is reached", limits::IDENTITIES_MAX)]
    TooManyIdentities,
    #[error("the limit of {} logins is reached", limits::LOGINS_MAX)]
    TooManyLogins,
    /// A revocation or lock came while the login was being recorded.
    #[error("the login was ended before it began: the person was revoked or locked")]
    LoginEnded,
    /// The person has the highest number of logins, and newer logins came while this login was being recorded.
    #[error(
        "newer logins of the same person ended this one: a person has at most {}",
        limits::LOGINS_PER_PERSON_MAX
    )]
    LoginReplaced,
    #[error("the lock was set again while it was being lifted, so it is still in force")]
    SetAgain,
    /// The record could not be written, so nothing was changed.
    #[error("the record could not be written: {0}")]
    Ledger(String),
    /// A narrowing change came while the record was being written.
    #[error("the job ended meanwhile")]
    Overtaken,
    #[error("too many changes of one job at once")]
    Contended,
}

impl<E> Refused<E> {
    /// Returns the reason. `None` if the transition has its own reason.
    pub fn reason(&self) -> Option<Reason> {
        Some(match self {
            Refused::Transition(_) => return None,
            Refused::NoJob => Reason::JobNotFound,
            Refused::KeyConflict(_) => Reason::IdempotencyConflict,
            Refused::QuotaFull(_)
            | Refused::TooManyKeys(_)
            | Refused::TooManyLocks
            | Refused::TooManyLogins
            | Refused::SweepFull(_)
            | Refused::TooManyIdentities => Reason::QuotaExceeded,
            Refused::LoginEnded | Refused::LoginReplaced => Reason::LoginRequired,
            Refused::Bound(_) => Reason::IdentityBound,
            Refused::NoLock => Reason::LockNotFound,
            Refused::NotTheirs(_) => Reason::PolicyDenied,
            Refused::Ledger(_) => Reason::LedgerUnavailable,
            Refused::Overtaken => Reason::JobClosed,
            Refused::SetAgain | Refused::Contended => Reason::Contended,
        })
    }
}
