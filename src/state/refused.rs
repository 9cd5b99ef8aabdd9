//! Why the store refuses a change.

use super::{keys::TooManyKeys, size::QuotaFull};
use crate::{ledger::Actor, limits, name::JobId, reason::Reason};

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused<E> {
    /// The transition is not legal.
    #[error(transparent)]
    Move(E),
    #[error("there is no such job")]
    NoJob,
    /// This idempotency key made a job with another specification.
    #[error("the idempotency key belongs to {0}, which has another specification")]
    KeyConflict(JobId),
    #[error(transparent)]
    QuotaFull(#[from] QuotaFull),
    #[error(transparent)]
    TooManyKeys(#[from] TooManyKeys),
    #[error(
        "as many locks are set as there may be: {} in all, {} by one tenant",
        limits::LOCKS_MAX,
        limits::LOCKS_PER_TENANT_MAX
    )]
    TooManyLocks,
    #[error("there is no such lock")]
    NoLock,
    /// The caller may not lift this lock.
    #[error("{0} set this lock for all tenants")]
    NotTheirs(Actor),
    /// The identity may be used by one job only, and another job has it.
    #[error("your identity belongs to {0} alone")]
    Bound(JobId),
    #[error("there are {} identities, as many as there may be", limits::IDENTITIES_MAX)]
    TooManyIdentities,
    #[error("the lock was set again while it was being lifted, and stands")]
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
    /// The reason. None if the transition has its own.
    pub fn reason(&self) -> Option<Reason> {
        Some(match self {
            Refused::Move(_) => return None,
            Refused::NoJob => Reason::JobNotFound,
            Refused::KeyConflict(_) => Reason::IdempotencyConflict,
            Refused::QuotaFull(_)
            | Refused::TooManyKeys(_)
            | Refused::TooManyLocks
            | Refused::TooManyIdentities => Reason::QuotaExceeded,
            Refused::Bound(_) => Reason::IdentityBound,
            Refused::NoLock => Reason::LockNotFound,
            Refused::NotTheirs(_) => Reason::PolicyDenied,
            Refused::Ledger(_) => Reason::LedgerUnavailable,
            Refused::Overtaken => Reason::JobClosed,
            Refused::SetAgain | Refused::Contended => Reason::Contended,
        })
    }
}
