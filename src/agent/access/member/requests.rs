//! The requests of a member to the daemon. Each is a future that runs while the member does other things.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::LocalBoxFuture};

use super::stream::{AttemptSession, Connected, connect};
use crate::{
    agent::access::calls::{Calls, timed},
    clock::Clock,
    limits::{CALL, DRAIN_GRACE_DEFAULT, REPORT},
    name::LeaseId,
    proto::v1,
    reason::Refusal,
};

/// A response, and the request that it answers. `at` is the position of the credential in its set.
pub(super) enum MemberAnswer {
    Issued {
        at: usize,
        answer: Result<v1::IssueCredentialResponse, Refusal>,
    },
    Renewed {
        at: usize,
        lease: LeaseId,
        answer: Result<v1::RenewLeaseResponse, Refusal>,
    },
    Connected(Result<Connected, Refusal>),
    Drained {
        answer: Result<v1::DrainAttemptResponse, Refusal>,
        reason: String,
    },
    /// The lease was released, or it ends at its deadline.
    Released,
}

/// A request in flight.
pub(super) type PendingAnswer = LocalBoxFuture<'static, MemberAnswer>;

pub(super) fn issue(calls: Calls, at: usize, request: v1::IssueCredentialRequest) -> PendingAnswer {
    async move {
        let answer = calls.await_answer(calls.members().issue_credential(timed(CALL, request))).await;
        MemberAnswer::Issued { at, answer }
    }
    .boxed_local()
}

pub(super) fn renew(calls: Calls, at: usize, lease: LeaseId, session: v1::Session) -> PendingAnswer {
    let request = v1::RenewLeaseRequest { session: Some(session), lease: lease.to_string(), ttl: None };
    async move {
        let answer = calls.await_answer(calls.members().renew_lease(timed(CALL, request))).await;
        MemberAnswer::Renewed { at, lease, answer }
    }
    .boxed_local()
}

/// Releases a lease that is not used. Tries once: if the call fails, the lease ends at its deadline.
pub(super) fn release(calls: Calls, lease: LeaseId, session: v1::Session) -> PendingAnswer {
    let request = v1::ReleaseLeaseRequest { session: Some(session), lease: lease.to_string() };
    async move {
        if let Err(refusal) = calls.await_answer(calls.members().release_lease(timed(CALL, request))).await {
            tracing::debug!(%lease, reason = %refusal.reason, "a lease could not be released");
        }
        MemberAnswer::Released
    }
    .boxed_local()
}

/// Joins over a new connection.
pub(super) fn join(calls: Calls, session: AttemptSession, clock: Arc<dyn Clock>) -> PendingAnswer {
    async move { MemberAnswer::Connected(connect(calls, &session, || clock.now()).await) }.boxed_local()
}

/// Drains only this member. Retries for as long as the drain could last.
pub(super) fn drain(
    calls: Calls,
    session: &AttemptSession,
    grace: Option<Duration>,
    reason: String,
) -> PendingAnswer {
    let request = v1::DrainAttemptRequest {
        job: session.job.to_string(),
        attempt: session.attempt.value(),
        grace: grace.and_then(|g| g.try_into().ok()),
        reason,
        instance: session.instance.to_string(),
        session_secret: session.secret.expose().to_vec(),
    };
    async move {
        let patience = grace.unwrap_or(DRAIN_GRACE_DEFAULT);
        let ask =
            async |span| calls.within(span, calls.jobs().drain_attempt(timed(span, request.clone()))).await;
        let answer = calls.retry(patience, ask).await;
        MemberAnswer::Drained { answer, reason: request.reason }
    }
    .boxed_local()
}

/// Reports how the work ended, within [`REPORT`].
pub(super) async fn report(
    calls: &Calls,
    session: &AttemptSession,
    outcome: v1::Outcome,
    detail: String,
) -> Result<(), Refusal> {
    let request = v1::EndAttemptRequest {
        job: session.job.to_string(),
        attempt: session.attempt.value(),
        outcome: outcome.into(),
        instance: session.instance.to_string(),
        detail,
        session_secret: session.secret.expose().to_vec(),
    };
    let ask = async |span| calls.within(span, calls.jobs().end_attempt(timed(span, request.clone()))).await;
    calls.retry(REPORT, ask).await.map(drop)
}
