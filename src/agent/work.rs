//! What a member asks of the daemon while it does other things.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::LocalBoxFuture};

use super::{
    calls::{Calls, timed},
    stream::{Connected, Membership, connect},
};
use crate::{
    clock::Clock,
    limits::{CALL, DRAIN_GRACE_DEFAULT, REPORT},
    name::LeaseId,
    proto::v1,
    reason::Refusal,
};

/// What was asked, with its answer. `at` is the place of the credential among those that are held.
pub(super) enum Work {
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
pub(super) type Pending = LocalBoxFuture<'static, Work>;

pub(super) fn issue(calls: Calls, at: usize, request: v1::IssueCredentialRequest) -> Pending {
    async move {
        let answer = calls.answer(calls.members().issue_credential(timed(CALL, request))).await;
        Work::Issued { at, answer }
    }
    .boxed_local()
}

pub(super) fn renew(calls: Calls, at: usize, lease: LeaseId, session: v1::Session) -> Pending {
    let request = v1::RenewLeaseRequest { session: Some(session), lease: lease.to_string(), ttl: None };
    async move {
        let answer = calls.answer(calls.members().renew_lease(timed(CALL, request))).await;
        Work::Renewed { at, lease, answer }
    }
    .boxed_local()
}

/// Gives back a lease that is not used. Once: it ends by itself if that fails.
pub(super) fn give_back(calls: Calls, lease: LeaseId, session: v1::Session) -> Pending {
    let request = v1::ReleaseLeaseRequest { session: Some(session), lease: lease.to_string() };
    async move {
        if let Err(refusal) = calls.answer(calls.members().release_lease(timed(CALL, request))).await {
            tracing::debug!(%lease, reason = %refusal.reason, "a lease could not be given back");
        }
        Work::GivenBack
    }
    .boxed_local()
}

/// Joins over a connection that is not in use yet.
pub(super) fn join(calls: Calls, who: Membership, clock: Arc<dyn Clock>) -> Pending {
    async move { Work::Connected(connect(calls, &who, || clock.now()).await) }.boxed_local()
}

/// Asks to drain this member alone, for as long as a drain could last.
pub(super) fn drain(calls: Calls, who: &Membership, grace: Option<Duration>, reason: String) -> Pending {
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
        Work::Drained { answer, reason: request.reason }
    }
    .boxed_local()
}

/// Tells how the child ended, within [`REPORT`].
pub(super) async fn report(
    calls: &Calls,
    who: &Membership,
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
