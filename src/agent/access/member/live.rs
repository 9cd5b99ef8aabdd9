//! The running member: it sends beats, renews its credentials, reconnects, and ends on a command.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, watch};

use super::{
    connection::{MemberConnection, certificate_digest},
    handle::{FinalReport, MemberCommand, MemberStatus},
    requests::{self, PendingAnswer},
    stream::{AttemptSession, Connected},
};
use crate::{
    agent::{
        access::{
            access_end::{AccessEnd, AttemptStatus},
            calls::{Calls, timed},
            credential_dir::{CredentialDir, CredentialError},
            credential_set::{CredentialSet, Granted},
            present::PresentAccess,
        },
        messages::MessageSink,
    },
    clock::{Clock, LeaseTime, Wall},
    identity::{IdentitySource, Trust},
    limits::CREDENTIAL_LOOK,
    proto::v1,
    reason::{Reason, Refusal},
    secret::Secret,
};

/// The parts of the process that a member uses.
pub(crate) struct MemberContext {
    pub(crate) dir: Arc<CredentialDir>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) identity: Arc<dyn IdentitySource>,
    pub(crate) messages: MessageSink,
    /// How long to retry after the connection was lost.
    pub(crate) rejoin_window: Duration,
}

/// One member with its credentials. It acts only while [`serve`](Self::serve) is polled. If the value is dropped without a
/// report, the daemon counts the member as away and ends its leases.
pub(crate) struct LiveMember {
    pub(super) context: MemberContext,
    pub(super) session: AttemptSession,
    pub(super) calls: Calls,
    pub(super) connection: MemberConnection,
    /// A request to join is in flight: after an outage, or to use a renewed SVID.
    pub(super) is_connecting: bool,
    /// When to replace the connection by one that uses the renewed SVID.
    pub(super) replace_at: Option<LeaseTime>,
    pub(super) epoch: u64,
    pub(super) lead_ms: i64,
    pub(super) credentials: CredentialSet,
    /// When a drain ends reading, on the lease clock.
    pub(super) reading_ends: Option<LeaseTime>,
    /// When a drain ends writing, on the daemon's wall clock. `None` if there is no drain.
    pub(super) writing_ends: Option<Wall>,
    /// The status of the attempt, if access has ended.
    pub(super) ended: Option<AttemptStatus>,
    /// When to check the files next.
    check_files_at: LeaseTime,
    /// The digest of the certificate of the present connection, or of the next one.
    pub(super) svid_digest: Option<[u8; 32]>,
    window: Duration,
    /// The access that the local S3 endpoint may use, with the number of the last change that it contains.
    present: watch::Sender<PresentAccess>,
    shown_change: u64,
}

type PendingAnswers = FuturesUnordered<PendingAnswer>;

/// How long to wait for the daemon to acknowledge that the member leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the first credentials could not be obtained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObtainError {
    #[error("{0}")]
    Refused(Refusal),
    #[error(transparent)]
    Files(#[from] CredentialError),
}

impl LiveMember {
    /// Makes a member from its first connection. The member has no token yet.
    pub(crate) fn new(
        session: AttemptSession,
        connected: Connected,
        context: MemberContext,
    ) -> Result<Self, Refusal> {
        let now = context.clock.now().lease;
        let (dir, messages) = (context.dir.clone(), context.messages.clone());
        Ok(LiveMember {
            session,
            calls: connected.calls,
            is_connecting: false,
            replace_at: None,
            epoch: connected.epoch,
            lead_ms: connected.stream.lead_ms,
            window: connected.stream.window(),
            connection: MemberConnection::Up(connected.stream),
            credentials: CredentialSet::from_offers(connected.offers, now, dir, messages)?,
            reading_ends: None,
            writing_ends: None,
            ended: None,
            check_files_at: now.plus(CREDENTIAL_LOOK),
            svid_digest: certificate_digest(&context.identity.current()),
            present: watch::Sender::new(PresentAccess::Away),
            shown_change: 0,
            context,
        })
    }

    /// Requests all credentials, and writes their files and the index.
    pub(crate) async fn obtain(&mut self, patience: Duration) -> Result<(), ObtainError> {
        for at in 0..self.credentials.len() {
            let request = self.credentials.get(at).map(|c| c.issue_request(&self.session));
            let Some(request) = request else { continue };
            let calls = self.calls.clone();
            let issue = async |span| {
                calls.within(span, calls.members().issue_credential(timed(span, request.clone()))).await
            };
            let granted = self.calls.retry(patience, issue).await.and_then(Granted::from_issue);
            let granted = granted.map_err(ObtainError::Refused)?;
            self.credentials.put(at, granted, self.context.clock.now(), self.lead_ms)?;
        }
        self.show_access(None);
        Ok(self.credentials.write_index(&self.session)?)
    }

    /// Returns the access that the local S3 endpoint may use. It changes while the member is served.
    pub(crate) fn present(&self) -> watch::Receiver<PresentAccess> {
        self.present.subscribe()
    }

    /// The session secret, from which this process makes the keys for the programs. It stays the same for the whole attempt.
    pub(crate) fn session_secret(&self) -> &Secret {
        &self.session.secret
    }

    /// Describes the resources that each credential opens.
    pub(crate) fn opens(&self) -> Vec<String> {
        self.credentials.opens()
    }

    /// How long a member may be silent before the daemon ends its access.
    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// Runs until a command to finish or leave comes, and reports that to the daemon. Publishes its status in the meantime.
    pub(super) async fn serve(
        mut self,
        mut commands: mpsc::Receiver<MemberCommand>,
        status: watch::Sender<MemberStatus>,
    ) -> FinalReport {
        let mut pending = PendingAnswers::new();
        let mut trust = self.context.identity.watch();
        self.on_identity(&self.context.identity.current());
        loop {
            self.start_due_requests(&mut pending);
            let timer = self.context.clock.sleep_until(self.wake_at());
            let end = tokio::select! {
                command = commands.recv() => match command {
                    Some(MemberCommand::Finish { outcome, detail }) => return self.finish(outcome, detail).await,
                    Some(MemberCommand::Leave) => return self.leave().await,
                    Some(MemberCommand::Drain { grace, reason }) => {
                        pending.push(requests::drain(self.calls.clone(), &self.session, grace, reason));
                        None
                    }
                    // The handle was dropped, so no caller waits for the report.
                    None => return FinalReport::NotNeeded,
                },
                message = self.connection.next_message() => self.on_message(message),
                Some(answer) = pending.next(), if !pending.is_empty() => self.on_answer(answer),
                () = trust_changed(&mut trust) => {
                    self.on_identity(&trust.borrow().clone());
                    None
                }
                () = timer => {
                    self.on_timer();
                    None
                }
            };
            let end = end.filter(|_| self.ended.is_none());
            if let Some(end) = &end {
                self.ended = Some(end.attempt);
                self.credentials.wipe();
            }
            self.publish_status(&status, end);
        }
    }

    /// Publishes the access that the local S3 endpoint may use, if it changed.
    fn show_access(&mut self, end: Option<&AccessEnd>) {
        let changes = self.credentials.changes();
        let has_ended = matches!(*self.present.borrow(), PresentAccess::Ended(_));
        let is_open = matches!(*self.present.borrow(), PresentAccess::Open(_));
        let next = match (end, &self.connection) {
            _ if has_ended => return,
            (Some(end), _) => PresentAccess::Ended(end.clone()),
            (None, MemberConnection::Down(_)) if is_open => PresentAccess::Away,
            (None, MemberConnection::Down(_)) => return,
            (None, MemberConnection::Up(_)) if is_open && changes == self.shown_change => return,
            (None, MemberConnection::Up(_)) => PresentAccess::Open(Arc::new(self.credentials.gateways())),
        };
        self.shown_change = changes;
        self.present.send_replace(next);
    }

    fn publish_status(&mut self, status: &watch::Sender<MemberStatus>, end: Option<AccessEnd>) {
        self.show_access(end.as_ref());
        let is_draining = self.writing_ends.is_some();
        let is_complete = self.ended.is_none() && self.credentials.is_complete();
        status.send_if_modified(|s| {
            let end = end.or_else(|| s.end.take());
            let before = std::mem::replace(s, MemberStatus { end, is_draining, is_complete });
            *s != before
        });
    }

    // ---------- what is due ----------

    fn start_due_requests(&mut self, pending: &mut PendingAnswers) {
        if self.ended.is_some() {
            return;
        }
        let now = self.context.clock.now().lease;
        let connect_at = match &self.connection {
            MemberConnection::Up(_) => self.replace_at,
            MemberConnection::Down(outage) => outage.retry_at,
        };
        if !self.is_connecting && connect_at.is_some_and(|at| at <= now) {
            self.is_connecting = true;
            let calls = self.calls.new_connection();
            pending.push(requests::join(calls, self.session.clone(), self.context.clock.clone()));
        }
        if matches!(self.connection, MemberConnection::Down(_)) {
            return;
        }
        for lease in self.credentials.take_unused_leases() {
            pending.push(requests::release(self.calls.clone(), lease, self.session.to_wire()));
        }
        for (at, credential) in self.credentials.due(now) {
            credential.schedule.mark_requested();
            pending.push(match credential.lease {
                Some(lease) => requests::renew(self.calls.clone(), at, lease, self.session.to_wire()),
                None => requests::issue(self.calls.clone(), at, credential.issue_request(&self.session)),
            });
        }
    }

    fn wake_at(&self) -> LeaseTime {
        let may_connect = !self.is_connecting && self.ended.is_none();
        let (beat, connect, due) = match &self.connection {
            MemberConnection::Up(stream) => {
                (Some(stream.next_beat()), self.replace_at, self.credentials.next_due())
            }
            // The credentials are requested when the connection is up again.
            MemberConnection::Down(outage) => (None, outage.retry_at, None),
        };
        let check = Some(self.check_files_at).filter(|_| self.ended.is_none());
        let expiry = self.credentials.next_expiry();
        let all = [beat, connect.filter(|_| may_connect), due, expiry, self.reading_ends, check];
        all.into_iter().flatten().min().unwrap_or(LeaseTime(u64::MAX))
    }

    fn on_timer(&mut self) {
        let now = self.context.clock.now().lease;
        if let MemberConnection::Up(stream) = &mut self.connection
            && !stream.beat(now)
        {
            self.lose_connection(now);
        }
        if self.reading_ends.is_some_and(|at| at <= now) {
            self.reading_ends = None;
            self.credentials.end_reading();
            self.credentials.refresh_index(&self.session);
        }
        self.remove_expired(now);
        if self.check_files_at <= now {
            self.check_files_at = now.plus(CREDENTIAL_LOOK);
            self.credentials.mend();
        }
    }

    fn remove_expired(&mut self, now: LeaseTime) {
        let lines = self.credentials.remove_expired(now);
        if lines.is_empty() {
            return;
        }
        self.credentials.refresh_index(&self.session);
        match self.connection {
            MemberConnection::Up(_) => lines.iter().for_each(|line| self.context.messages.send(line)),
            MemberConnection::Down(_) if self.credentials.last_expiry().is_none() => self.context.messages.send(
                "the credentials have expired and their files are removed; your program goes on, and the files come back when the daemon does",
            ),
            MemberConnection::Down(_) => {}
        }
    }

    // ---------- the end ----------

    /// Reports the outcome within [`REPORT`](crate::limits::REPORT), and leaves.
    async fn finish(self, outcome: v1::Outcome, detail: String) -> FinalReport {
        if self.ended == Some(AttemptStatus::Ended) {
            return FinalReport::NotNeeded;
        }
        let report = match requests::report(&self.calls, &self.session, outcome, detail).await {
            Ok(()) => FinalReport::Delivered,
            Err(refusal) if AttemptStatus::from_reason(refusal.reason) == AttemptStatus::Ended => {
                FinalReport::NotNeeded
            }
            // A lock has ended all access, and the daemon accepts no report from a locked identity.
            Err(refusal) if refusal.reason == Reason::Locked => FinalReport::NotNeeded,
            Err(refusal) => FinalReport::Failed(refusal),
        };
        // If the report failed, this ends the leases. Otherwise it changes nothing.
        self.leave().await;
        report
    }

    async fn leave(self) -> FinalReport {
        let MemberConnection::Up(stream) = self.connection else {
            return match self.ended {
                Some(_) => FinalReport::NotNeeded,
                None => FinalReport::Failed(Refusal::new(Reason::Unreachable, "the daemon is away")),
            };
        };
        tokio::select! {
            () = stream.leave() => {}
            () = self.context.clock.sleep(LEAVE_TIMEOUT) => {}
        }
        if self.ended.is_some() { FinalReport::NotNeeded } else { FinalReport::Delivered }
    }
}

async fn trust_changed(trust: &mut watch::Receiver<Arc<Trust>>) {
    if trust.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
