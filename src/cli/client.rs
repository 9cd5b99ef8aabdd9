//! Asking the daemon: one connection, a deadline on each call, answers or a [`Failure`].

use std::{sync::Arc, time::Duration};

use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use super::{Exit, Failure, Session, failure::Effect, output::note};
use crate::{
    agent::Backoff,
    clock::Clock,
    identity::{IdentitySource, NoIdentity, first_identity},
    limits::CALL,
    link::{Connector, Redial, explain},
    name::SpiffeId,
    proto::{
        Told, unspoken,
        v1::{
            job_service_client::JobServiceClient, operator_service_client::OperatorServiceClient,
            verifier_service_client::VerifierServiceClient,
        },
    },
    reason::{Reason, Refusal},
};

/// By how much the deadline that the daemon is told of lies behind ours. Whoever gives up before it resets the call, which ends it
/// there; it is for a daemon that never hears of that.
const TOLD_MORE: Duration = Duration::from_secs(60);

/// A connection to the daemon of a context.
pub struct Client {
    daemon: Redial,
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    /// How long to wait for a first SVID.
    identity_wait: Duration,
}

/// Whether a call that failed on its way may have changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallKind {
    Reads,
    Changes,
}

impl Client {
    pub(super) fn new(
        connector: Connector,
        source: Arc<dyn IdentitySource>,
        clock: Arc<dyn Clock>,
        identity_wait: Duration,
    ) -> Self {
        Client { daemon: Redial::new(connector), source, clock, identity_wait }
    }

    pub(super) fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.daemon.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn operator(&self) -> OperatorServiceClient<Channel> {
        OperatorServiceClient::new(self.daemon.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn verifier(&self) -> VerifierServiceClient<Channel> {
        VerifierServiceClient::new(self.daemon.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Who we are on this connection.
    pub(super) fn you(&self) -> Option<SpiffeId> {
        self.source.current().svid.as_ref().map(|svid| svid.spiffe_id().clone())
    }

    /// Asks once, within [`CALL`].
    pub(super) async fn ask<M, T>(
        &self,
        kind: CallKind,
        message: M,
        call: impl AsyncFnOnce(Request<M>) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        self.ask_within(CALL, kind, message, call).await
    }

    pub(super) async fn ask_within<M, T>(
        &self,
        deadline: Duration,
        kind: CallKind,
        message: M,
        call: impl AsyncFnOnce(Request<M>) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        identified(&*self.source, &*self.clock, self.identity_wait).await?;
        let mut request = Request::new(message);
        // It is our clock that gives up first, and says so.
        request.set_timeout(deadline.saturating_add(TOLD_MORE));
        let answer = tokio::select! {
            answer = call(request) => answer,
            () = self.clock.sleep(deadline) => Err(Status::deadline_exceeded("no answer")),
        };
        answer.map(Response::into_inner).map_err(|status| self.failure(&status, kind))
    }

    /// Opens a stream; only its opening has a deadline.
    pub(super) async fn follow<M, T>(
        &self,
        message: M,
        call: impl AsyncFnOnce(Request<M>) -> Result<Response<Streaming<T>>, Status>,
    ) -> Result<Streaming<T>, Failure> {
        identified(&*self.source, &*self.clock, self.identity_wait).await?;
        let answer = tokio::select! {
            answer = call(Request::new(message)) => answer,
            () = self.clock.sleep(CALL) => Err(Status::deadline_exceeded("no answer")),
        };
        answer.map(Response::into_inner).map_err(|status| self.failure(&status, CallKind::Reads))
    }

    pub(super) fn failure(&self, status: &Status, kind: CallKind) -> Failure {
        let failure = of_status(status, kind, self.daemon.connector().endpoint().address());
        match self.you() {
            Some(you) if failure.facts.iter().all(|(label, _)| label != "you") => {
                failure.with("you", you.to_string())
            }
            _ => failure,
        }
    }
}

/// Waits for a first SVID, and says so. Files have theirs from the start.
pub(super) async fn identified(
    source: &dyn IdentitySource,
    clock: &dyn Clock,
    wait: Duration,
) -> Result<(), Failure> {
    let say =
        |why: &str| note(&format!("leasehold: waiting up to {} s for an identity: {why}", wait.as_secs()));
    let failed = |e: NoIdentity| {
        Failure::from(Refusal::new(Reason::IdentityUnavailable, e.to_string()).fix(
            "see that the SPIFFE agent runs and has an entry for this process; --identity-wait waits longer",
        ))
    };
    first_identity(source, clock, wait, say).await.map(drop).map_err(failed)
}

/// The largest answer that is read: a job of many attempts with thousands of members each.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Reads what the daemon, or the way to it, answered instead of an answer.
pub(super) fn of_status(status: &Status, kind: CallKind, address: &str) -> Failure {
    // Without a connection nothing was asked.
    if let Some(error) = explain(status) {
        return error.refusal().into();
    }
    let mut failure = match Told::of(status) {
        Some(Told { reason: None, code, .. }) => {
            Failure::new(Exit::of(Reason::of_code(status.code())), status.message().to_owned())
                .with("reason", code)
                .fix("this daemon is newer: update leasehold")
        }
        Some(told @ Told { reason: Some(reason), .. }) => told.into_refusal(reason).into(),
        None => unspoken(status, address).map_or_else(|| unknown(status), Failure::from),
    };
    if kind == CallKind::Changes && may_have_happened(status.code(), failure.reason) {
        failure.effect = Effect::Unknown;
    }
    failure
}

/// Whether work may have begun when this was answered.
fn may_have_happened(code: Code, reason: Option<Reason>) -> bool {
    match reason {
        Some(reason) => matches!(reason, Reason::Unreachable | Reason::Internal),
        None => !matches!(code, Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied),
    }
}

/// What neither the daemon nor its code explains.
fn unknown(status: &Status) -> Failure {
    Failure::new(Exit::of(Reason::of_code(status.code())), format!("the daemon answered {}", status.code()))
        .with("said", status.message())
}

/// One thing that is followed: whether the daemon has answered yet, and how long to wait before it is asked again.
pub(super) struct Retries {
    has_answered: bool,
    waits: Backoff,
    said: String,
}

impl Retries {
    pub(super) fn new() -> Self {
        Retries { has_answered: false, waits: Backoff::default(), said: String::new() }
    }

    /// The daemon answers: the next loss is waited out from the beginning.
    pub(super) fn answered(&mut self) {
        self.has_answered = true;
        self.waits = Backoff::default();
        self.said.clear();
    }

    /// Waits after a stream or a call ended, if asking again may help. A first call that fails is not repeated.
    pub(super) async fn wait(
        &mut self,
        ended: Result<(), Failure>,
        session: &Session,
    ) -> Result<(), Failure> {
        if let Err(failure) = ended {
            // Without a reason: our own files are being replaced at this moment.
            let may_pass = failure.is_passing() || matches!(failure.reason, None | Some(Reason::SvidExpired));
            if !self.has_answered || !may_pass || failure.exit == Exit::Ok {
                return Err(failure);
            }
            if failure.text != self.said {
                note(&format!("leasehold: {}. It is tried again until the daemon answers.", failure.text));
                self.said = failure.text.into_owned();
            }
        }
        session.clock.sleep(self.waits.next().unwrap_or(CALL)).await;
        Ok(())
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
