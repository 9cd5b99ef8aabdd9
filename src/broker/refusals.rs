//! Refusals that several use cases share. The answer is the same if a job or lease does not exist and if it
//! belongs to another tenant.

use std::convert::Infallible;

use crate::{
    job::Illegal,
    limits,
    name::JobId,
    reason::{ASK_APPROVERS, Reason, Refusal},
    state::Refused,
};

pub(super) fn job_not_found() -> Refusal {
    Refusal::new(Reason::JobNotFound, "there is no such job, or none that you may see")
        .fix("list those that you may see: leasehold job list")
}

pub(super) fn lease_not_found() -> Refusal {
    Refusal::new(Reason::LeaseNotFound, "there is no such lease, or none of yours")
}

pub(super) fn no_random() -> Refusal {
    Refusal::new(Reason::Internal, "the system gave no random bytes")
}

/// Turns a refusal of the state into a refusal for the caller.
pub(super) fn state_refusal<E>(refused: Refused<E>, of_move: impl FnOnce(E) -> Refusal) -> Refusal
where
    E: std::fmt::Display + std::fmt::Debug,
{
    match refused {
        Refused::Transition(e) => of_move(e),
        Refused::NoJob => job_not_found(),
        Refused::KeyConflict(job) => key_conflict(job),
        Refused::Ledger(why) => ledger_unavailable(&why),
        Refused::Bound(job) => identity_bound(job),
        Refused::TooManyKeys(full) => Refusal::new(Reason::QuotaExceeded, full.to_string())
            .fix("wait until the oldest key is a day old; or begin the next attempt of a job that exists, instead of a new job"),
        other => {
            let reason = other.reason().unwrap_or(Reason::Internal);
            Refusal::new(reason, other.to_string())
        }
    }
}

/// Refuses a request for access whose record cannot be written.
pub(super) fn ledger_unavailable(why: &str) -> Refusal {
    tracing::debug!(why, "a record could not be written");
    Refusal::new(Reason::LedgerUnavailable, "the ledger cannot be written, so nothing was given")
        .fix("try again; if it lasts, the operator finds the cause in the daemon's log")
}

/// Returns the refusal for an identity that is bound to another job.
pub(super) fn identity_bound(job: JobId) -> Refusal {
    Refusal::new(
        Reason::IdentityBound,
        format!("your identity belongs to only one job, and that is {job}"),
    )
    .fix(format!(
        "go on with that job while it is open (--job {job}); or run each job under its own SPIFFE ID, or have the catalog say identity = \"shared\"; this identity is free {} h after {job} has ended",
        limits::IDENTITY_BOUND.as_secs() / 3600
    ))
}

/// Turns a refusal into one for the caller, as [`state_refusal`] does, for an operation that moves no job to another state.
pub(super) fn plain_refusal(refused: Refused<Infallible>) -> Refusal {
    state_refusal(refused, |never| match never {})
}

pub(super) fn key_conflict(job: JobId) -> Refusal {
    Refusal::new(
        Reason::IdempotencyConflict,
        format!("this idempotency key belongs to {job}, which has another specification"),
    )
    .fix("use another key for another job, or send the same specification")
}

/// Turns an illegal change of a job's state into a refusal for the caller.
pub(super) fn move_refusal(illegal: Illegal) -> Refusal {
    let refusal = Refusal::new(illegal.reason(), illegal.to_string());
    match illegal {
        Illegal::Stale(..) => {
            refusal.fix("this run was replaced by a newer one: stop, it no longer has access")
        }
        Illegal::KeyUsed(_) => {
            refusal.fix("a new run needs a new key: use the scheduler's restart count in it")
        }
        Illegal::AttemptsExhausted(_) => {
            refusal.fix("create another job, or allow more with members.attempts")
        }
        Illegal::AwaitingApproval => refusal.fix(ASK_APPROVERS),
        Illegal::SameHuman(..) => refusal.fix("someone else in the group must approve it"),
        Illegal::Begun => {
            refusal.fix("take your approval back (leasehold unapprove), or have an operator revoke the job")
        }
        _ => refusal,
    }
}
