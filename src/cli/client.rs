//! Calls to the daemon: one connection, a deadline for each call, retries of streams.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use super::{
    Exit, Failure, Session,
    failure::{CODE, Effect},
    output::note,
    svid::mint_command,
};
use crate::{
    backoff::Backoff,
    clock::Clock,
    identity::{self, IdentitySource, NoIdentity},
    limits::{CALL, PAGE_MAX},
    link::{Connector, RotatingChannel, explain},
    name::SpiffeId,
    proto::{
        DaemonRefusal, transport_refusal,
        v1::{
            self, approval_service_client::ApprovalServiceClient, job_service_client::JobServiceClient,
            member_service_client::MemberServiceClient, operator_service_client::OperatorServiceClient,
            verifier_service_client::VerifierServiceClient,
        },
    },
    reason::{Reason, Refusal},
};

/// The deadline that we send to the daemon is this much later than our own deadline. At our own deadline we reset the call,
/// which also ends it in the daemon. The later deadline is for a daemon that does not see the reset.
const SENT_DEADLINE_LATER: Duration = Duration::from_secs(60);

/// A connection to the daemon of a context.
pub struct Client {
    daemon: RotatingChannel,
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    /// How long to wait for a first SVID.
    identity_wait: Duration,
    /// The file of our certificate, if the certificate comes from a file.
    certificate: Option<PathBuf>,
}

/// Whether a call changes anything. If the answer to a call that changes something is lost, the change may have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallKind {
    Reads,
    Changes,
}

impl CallKind {
    /// Returns the kind of a call that may be a dry run. A dry run changes nothing.
    pub(super) fn of_dry_run(dry_run: bool) -> Self {
        if dry_run { CallKind::Reads } else { CallKind::Changes }
    }
}

impl Client {
    pub(super) fn new(
        connector: Connector,
        source: Arc<dyn IdentitySource>,
        clock: Arc<dyn Clock>,
        identity_wait: Duration,
    ) -> Self {
        Client { daemon: RotatingChannel::new(connector), source, clock, identity_wait, certificate: None }
    }

    /// Sets the file of our certificate, so that an error can say how to issue it again.
    pub(super) fn with_certificate(self, file: PathBuf) -> Self {
        Client { certificate: Some(file), ..self }
    }

    pub(super) fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.daemon.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn members(&self) -> MemberServiceClient<Channel> {
        MemberServiceClient::new(self.daemon.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn operator(&self) -> OperatorServiceClient<Channel> {
        OperatorServiceClient::new(self.daemon.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn approvals(&self) -> ApprovalServiceClient<Channel> {
        ApprovalServiceClient::new(self.daemon.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn verifier(&self) -> VerifierServiceClient<Channel> {
        VerifierServiceClient::new(self.daemon.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Returns our identity on this connection.
    pub(super) fn you(&self) -> Option<SpiffeId> {
        self.source.current().svid.as_ref().map(|svid| svid.spiffe_id().clone())
    }

    /// Makes one call with the deadline [`CALL`].
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
        wait_for_identity(&*self.source, &*self.clock, self.identity_wait).await?;
        let mut request = Request::new(message);
        // Our deadline comes before the deadline that we send, so that this command reports it.
        request.set_timeout(deadline.saturating_add(SENT_DEADLINE_LATER));
        let answer = tokio::select! {
            answer = call(request) => answer,
            () = self.clock.sleep(deadline) => Err(Status::deadline_exceeded("no answer")),
        };
        answer.map(Response::into_inner).map_err(|status| self.failure(&status, kind))
    }

    /// Asks the daemon for our identity, and for information about the daemon.
    pub(super) async fn who_am_i(&self) -> Result<v1::WhoAmIResponse, Failure> {
        self.ask(CallKind::Reads, v1::WhoAmIRequest {}, async |r| self.operator().who_am_i(r).await).await
    }

    /// Opens a stream. The deadline is only for the opening.
    pub(super) async fn follow<M, T>(
        &self,
        message: M,
        call: impl AsyncFnOnce(Request<M>) -> Result<Response<Streaming<T>>, Status>,
    ) -> Result<Streaming<T>, Failure> {
        wait_for_identity(&*self.source, &*self.clock, self.identity_wait).await?;
        let answer = tokio::select! {
            answer = call(Request::new(message)) => answer,
            () = self.clock.sleep(CALL) => Err(Status::deadline_exceeded("no answer")),
        };
        answer.map(Response::into_inner).map_err(|status| self.failure(&status, CallKind::Reads))
    }

    pub(super) fn failure(&self, status: &Status, kind: CallKind) -> Failure {
        let mut failure = status_failure(status, kind, self.daemon.connector().endpoint().address());
        if failure.reason == Some(Reason::SvidExpired)
            && let (Some(file), Some(you)) = (&self.certificate, self.you())
            && let Some(mint) = mint_command(file, &you)
        {
            failure = failure.fix_instead(mint);
        }
        match self.you() {
            Some(you) if failure.facts.iter().all(|(label, _)| label != "you") => {
                failure.with("you", you.to_string())
            }
            _ => failure,
        }
    }
}

/// Waits for a first SVID, and prints a note about the wait. SVIDs in files exist from the start.
pub(super) async fn wait_for_identity(
    source: &dyn IdentitySource,
    clock: &dyn Clock,
    wait: Duration,
) -> Result<(), Failure> {
    let say =
        |why: &str| note(&format!("leasehold: waiting up to {} s for an identity: {why}", wait.as_secs()));
    let failed = |e: NoIdentity| {
        Failure::from(Refusal::new(Reason::IdentityUnavailable, e.to_string()).fix(
            "check that the SPIFFE agent runs and has an entry for this process; --identity-wait waits longer",
        ))
    };
    identity::wait_for_identity(source, clock, wait, say).await.map(drop).map_err(failed)
}

/// The largest answer that is read. A job may have many attempts, each with thousands of members.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Makes a failure from an error of the daemon, or of the connection to the daemon.
pub(super) fn status_failure(status: &Status, kind: CallKind, address: &str) -> Failure {
    // If there was no connection, the daemon got no request.
    if let Some(error) = explain(status) {
        return error.refusal().into();
    }
    let mut failure = match DaemonRefusal::of(status) {
        Some(DaemonRefusal { reason: None, code, .. }) => {
            Failure::new(Exit::of(Reason::of_code(status.code())), status.message().to_owned())
                .with(CODE, code)
                .fix("this daemon is newer: update leasehold")
        }
        Some(daemon_refusal @ DaemonRefusal { reason: Some(reason), .. }) => {
            daemon_refusal.into_refusal(reason).into()
        }
        None => transport_refusal(status, address).map_or_else(|| unknown(status), Failure::from),
    };
    if kind == CallKind::Changes && may_have_happened(status.code(), failure.reason) {
        failure.effect = Effect::Unknown;
    }
    failure
}

/// Whether the daemon may have begun to work before this error.
fn may_have_happened(code: Code, reason: Option<Reason>) -> bool {
    match reason {
        Some(reason) => matches!(reason, Reason::Unreachable | Reason::Internal),
        None => !matches!(code, Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied),
    }
}

/// Makes a failure from an error that the daemon does not explain.
fn unknown(status: &Status) -> Failure {
    Failure::new(Exit::of(Reason::of_code(status.code())), format!("the daemon answered {}", status.code()))
        .with("said", status.message())
}

/// Fetches pages until there are `limit` items or no page is left. Returns the items, and whether there are more.
///
/// `fetch` takes the size and the token of a page. It returns the items and the token of the next page. The token is empty
/// after the last page.
pub(super) async fn fetch_pages<T>(
    limit: usize,
    mut fetch: impl AsyncFnMut(u32, String) -> Result<(Vec<T>, String), Failure>,
) -> Result<(Vec<T>, bool), Failure> {
    let (mut items, mut page_token) = (Vec::new(), String::new());
    loop {
        let page_size = u32::try_from(limit.saturating_sub(items.len()).min(PAGE_MAX)).unwrap_or(0);
        if page_size == 0 {
            return Ok((items, !page_token.is_empty()));
        }
        let (page, next) = fetch(page_size, page_token).await?;
        items.extend(page);
        page_token = next;
        if page_token.is_empty() {
            return Ok((items, false));
        }
    }
}

/// The retries of a stream or a repeated call, over restarts of the daemon and rotations of our SVID.
pub(super) struct Retries {
    has_answered: bool,
    waits: Backoff,
    last_note: String,
}

impl Retries {
    pub(super) fn new() -> Self {
        Retries { has_answered: false, waits: Backoff::default(), last_note: String::new() }
    }

    /// Notes an answer of the daemon. After the next lost connection, the wait is short again.
    pub(super) fn answered(&mut self) {
        self.has_answered = true;
        self.waits.reset();
        self.last_note.clear();
    }

    /// Waits after the end of a stream or a call, if a retry may help. A first call that fails is not retried.
    pub(super) async fn wait(
        &mut self,
        ended: Result<(), Failure>,
        session: &Session,
    ) -> Result<(), Failure> {
        if let Err(failure) = ended {
            // A failure without a reason means that our files cannot be used. They may just be in the middle of a replacement.
            let may_pass = failure.is_passing() || matches!(failure.reason, None | Some(Reason::SvidExpired));
            if !self.has_answered || !may_pass || failure.exit == Exit::Ok {
                return Err(failure);
            }
            if failure.text != self.last_note {
                note(&format!("leasehold: {}. Trying again until the daemon answers.", failure.text));
                self.last_note = failure.text.into_owned();
            }
        }
        session.clock.sleep(self.waits.next_wait()).await;
        Ok(())
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
