//! What a member asks of the daemon while it does other things.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::LocalBoxFuture};

use super::stream::{Connected, MemberSession, connect};
use crate::{
    agent::access::calls::{Calls, timed},
    clock::Clock,
    limits::{CALL, DRAIN_GRACE_DEFAULT, REPORT},
    name::LeaseId,
    proto::v1,
    reason::Refusal,
};

/// What was asked, with its answer. `at` is the place of the credential among those that are held.
pub(crate) enum MemberAnswer {
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
    /// A lease was given back, or ends by itself.
    GivenBack,
}

/// A question under way.
pub(crate) type PendingAnswer = LocalBoxFuture<'static, MemberAnswer>;

pub(crate) fn issue(calls: Calls, at: usize, request: v1::IssueCredentialRequest) -> PendingAnswer {
    async move {
        let answer = calls.answer(calls.members().issue_credential(timed(CALL, request))).await;
        MemberAnswer::Issued { at, answer }
    }
    .boxed_local()
}

pub(crate) fn renew(calls: Calls, at: usize, lease: LeaseId, session: v1::Session) -> PendingAnswer {
    let request = v1::RenewLeaseRequest { session: Some(session), lease: lease.to_string(), ttl: None };
    async move {
        let answer = calls.answer(calls.members().renew_lease(timed(CALL, request))).await;
        MemberAnswer::Renewed { at, lease, answer }
    }
    .boxed_local()
}

/// Gives back a lease that is not used. Once: it ends by itself if that fails.
pub(crate) fn give_back(calls: Calls, lease: LeaseId, session: v1::Session) -> PendingAnswer {
    let request = v1::ReleaseLeaseRequest { session: Some(session), lease: lease.to_string() };
    async move {
        if let Err(refusal) = calls.answer(calls.members().release_lease(timed(CALL, request))).await {
            tracing::debug!(%lease, reason = %refusal.reason, "a lease could not be given back");
        }
        MemberAnswer::GivenBack
    }
    .boxed_local()
}

/// Joins over a connection that is not in use yet.
pub(crate) fn join(calls: Calls, who: MemberSession, clock: Arc<dyn Clock>) -> PendingAnswer {
    async move { MemberAnswer::Connected(connect(calls, &who, || clock.now()).await) }.boxed_local()
}

/// Asks to drain this member alone, for as long as a drain could last.
pub(crate) fn drain(
    calls: Calls,
    who: &MemberSession,
    grace: Option<Duration>,
    reason: String,
) -> PendingAnswer {
    let request = v1::DrainAttemptRequest {
        job: who.job.to_string(),
        attempt: who.attempt.value(),
        grace: grace.and_then(|g| g.try_into().ok()),
        reason,
        instance: who.instance.to_string(),
        session_secret: who.secret.expose().to_vec(),
    };
    async move {
        let patience = grace.unwrap_or(DRAIN_GRACE_DEFAULT);
        let ask =
            async |span| calls.within(span, calls.jobs().drain_attempt(timed(span, request.clone()))).await;
        let answer = calls.persist(patience, ask).await;
        MemberAnswer::Drained { answer, reason: request.reason }
    }
    .boxed_local()
}

/// Tells how the child ended, within [`REPORT`].
pub(crate) async fn report(
    calls: &Calls,
    who: &MemberSession,
    outcome: v1::Outcome,
    detail: String,
) -> Result<(), Refusal> {
    let request = v1::EndAttemptRequest {
        job: who.job.to_string(),
        attempt: who.attempt.value(),
        outcome: outcome.into(),
        instance: who.instance.to_string(),
        detail,
        session_secret: who.secret.expose().to_vec(),
    };
    let ask = async |span| calls.within(span, calls.jobs().end_attempt(timed(span, request.clone()))).await;
    calls.persist(REPORT, ask).await.map(drop)
}
