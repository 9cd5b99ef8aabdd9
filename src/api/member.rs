//! The gRPC service `MemberService`.

use std::{ops::ControlFlow, pin::Pin};

use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    edge::Edge,
    fields::{read_attempt_number, read_duration, read_name, read_optional_name},
    messages::{self, at, ending, read_half, read_scopes},
};
use crate::{
    broker::{
        Attachment, Broker, Caller, CredentialKind, IssueRequest, JoinRequest, MemberSession, Notice,
        NoticeKind,
    },
    limits,
    link::Connection,
    name::{InstanceName, JobId},
    policy::Rpc,
    proto::{
        convert::{duration, timestamp},
        v1::{self, member_service_server::MemberService},
    },
    reason::{Reason, Refusal},
    secret::{Secret, SecretDigest},
};

pub(super) struct MembersService(pub Edge);

/// The number of notices and heartbeats that wait for a slow member. If more wait, heartbeats are left out, because the
/// next heartbeat says the same.
const STREAM_BUFFER: usize = 16;

fn session(wire: Option<v1::Session>) -> Result<MemberSession, Refusal> {
    let missing = || Refusal::new(Reason::FieldMissing, "`session` is required").with("field", "session");
    let wire = wire.ok_or_else(missing)?;
    let secret = Secret::from_bytes(&wire.secret).ok_or_else(|| {
        Refusal::new(Reason::FieldInvalid, "`session.secret` is not 32 bytes").with("field", "session.secret")
    })?;
    Ok(MemberSession {
        job: read_name("session.job", &wire.job)?,
        attempt: read_attempt_number(wire.attempt)?,
        instance: read_name("session.instance", &wire.instance)?,
        secret,
    })
}

fn read_kind(kind: i32) -> Result<CredentialKind, Refusal> {
    match v1::CredentialKind::try_from(kind) {
        Ok(v1::CredentialKind::Unspecified | v1::CredentialKind::Token) => Ok(CredentialKind::Token),
        Ok(v1::CredentialKind::S3) => Ok(CredentialKind::S3Key),
        Err(_) => {
            Err(Refusal::new(Reason::FieldInvalid, "`kind` is not a kind of credential")
                .with("field", "kind"))
        }
    }
}

#[tonic::async_trait]
impl MemberService for MembersService {
    async fn join_attempt(
        &self,
        request: Request<v1::JoinAttemptRequest>,
    ) -> Result<Response<v1::JoinAttemptResponse>, Status> {
        self.0
            .call(Rpc::JoinAttempt, request, |broker, caller, q| async move {
                let job: JobId = read_name("job", &q.job)?;
                let attempt = read_attempt_number(q.attempt)?;
                let instance: InstanceName = read_name("instance", &q.instance)?;
                let digest = SecretDigest::from_bytes(&q.session_digest).ok_or_else(|| {
                    Refusal::new(
                        Reason::FieldInvalid,
                        "`session_digest` is not 32 bytes, the SHA-256 of a secret",
                    )
                    .with("field", "session_digest")
                })?;
                let ticket = (!q.ticket.is_empty()).then_some(q.ticket.as_str());
                let join = JoinRequest { job, attempt, instance: &instance, session: digest, ticket };
                let joined = broker.members.join_attempt(&caller, &join).await?;
                let now = broker.clock().now();
                let settings = broker.settings();
                Ok(v1::JoinAttemptResponse {
                    member: Some(messages::member(now, &instance, &joined.member)),
                    offers: joined.offers.into_iter().map(messages::offer).collect(),
                    beat: Some(duration(settings.beat)),
                    lost_after: settings.lost_after,
                    epoch: broker.epoch(),
                    ends_at_latest: at(now, joined.job.ends),
                    rejoin: Some(duration(settings.rejoin)),
                })
            })
            .await
    }

    type KeepAliveStream = Pin<Box<dyn Stream<Item = Result<v1::KeepAliveResponse, Status>> + Send>>;

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let connection = self.0.connection(&request)?;
        let caller = self.0.caller(Rpc::KeepAlive, &connection)?;
        let refuse = |r: Refusal| self.0.refuse(Rpc::KeepAlive, &connection, &r);
        let mut beats = request.into_inner();
        let first = tokio::time::timeout(limits::HANDSHAKE, beats.next()).await;
        let first = match first {
            Ok(Some(first)) => first,
            Ok(None) => {
                return Err(refuse(Refusal::new(
                    Reason::FieldMissing,
                    "the first message must name the session",
                )));
            }
            // If thousands of members return at once, the message may still be on its way. So the member may try again.
            Err(_) => {
                let late = "the stream's first message did not come in time: try again";
                return Err(refuse(Refusal::new(Reason::Overloaded, late)));
            }
        };
        let first = first?;
        let session = session(first.session).map_err(refuse)?;
        let attachment = self.0.broker.members.attach(&caller, &session).map_err(refuse)?;
        let (tx, rx) = mpsc::channel(STREAM_BUFFER);
        let _ = tx.try_send(Ok(beat(&self.0.broker, first.beat)));
        let stream = KeepAlive {
            broker: self.0.broker.clone(),
            edge: self.0.clone(),
            job: session.job,
            connection,
            attachment,
            beats,
            tx,
        };
        tokio::spawn(stream.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn issue_credential(
        &self,
        request: Request<v1::IssueCredentialRequest>,
    ) -> Result<Response<v1::IssueCredentialResponse>, Status> {
        self.0
            .call(Rpc::IssueCredential, request, |broker, caller, q| async move {
                let request = IssueRequest {
                    session: session(q.session)?,
                    half: read_half(q.half)?,
                    audience: read_optional_name("audience", &q.audience)?,
                    scopes: read_scopes(&q.scopes)?,
                    ttl: read_duration("ttl", q.ttl.as_ref(), limits::JOB_DURATION_MAX)?,
                    kind: read_kind(q.kind)?,
                };
                let issued = broker.credentials.issue(&caller, &request).await?;
                let now = broker.clock().now();
                Ok(v1::IssueCredentialResponse {
                    lease: Some(messages::lease(now, &issued.lease)),
                    token: issued.token.expose().to_owned(),
                    token_expires: Some(timestamp(issued.token_expires)),
                    revocation_bound: Some(v1::RevocationBound {
                        at_most: Some(duration(issued.bound.at_most)),
                        by: issued.bound.by.to_owned(),
                    }),
                    binding: messages::binding(issued.binding) as i32,
                    shortened_by: issued.shortened_by,
                    locations: issued.locations.into_iter().map(|(n, l)| (n.to_string(), l)).collect(),
                    s3_key: issued.s3_secret.map(|secret| v1::S3Key {
                        access_key: issued.lease.id.to_access_key(),
                        secret_key: secret.expose().to_owned(),
                    }),
                })
            })
            .await
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        self.0
            .call(Rpc::RenewLease, request, |broker, caller, q| async move {
                let session = session(q.session)?;
                let ttl = read_duration("ttl", q.ttl.as_ref(), limits::JOB_DURATION_MAX)?;
                let renewed =
                    broker.credentials.renew(&caller, &session, read_name("lease", &q.lease)?, ttl).await?;
                let now = broker.clock().now();
                Ok(v1::RenewLeaseResponse {
                    lease: Some(messages::lease(now, &renewed.lease)),
                    token: renewed.token.expose().to_owned(),
                    token_expires: Some(timestamp(renewed.token_expires)),
                    shortened_by: renewed.shortened_by,
                })
            })
            .await
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Result<Response<v1::ReleaseLeaseResponse>, Status> {
        self.0
            .call(Rpc::ReleaseLease, request, |broker, caller, q| async move {
                let session = session(q.session)?;
                let done = broker.credentials.release(&caller, &session, read_name("lease", &q.lease)?)?;
                Ok(v1::ReleaseLeaseResponse { ending: Some(ending(&broker, done)) })
            })
            .await
    }
}

/// The stream of one member, until the member, the connection or the daemon ends. If the attachment is dropped without
/// a goodbye, the member is away and its leases end.
struct KeepAlive {
    broker: std::sync::Arc<Broker>,
    edge: Edge,
    job: JobId,
    connection: Connection,
    attachment: Attachment,
    beats: Streaming<v1::KeepAliveRequest>,
    tx: mpsc::Sender<Result<v1::KeepAliveResponse, Status>>,
}

impl KeepAlive {
    async fn run(mut self) {
        let (edge, connection, job) = (self.edge.clone(), self.connection.clone(), self.job);
        let may = |broker: &Broker, caller: &Caller| broker.members.may_keep_alive(caller, job);
        let over = edge.stream_over(Rpc::KeepAlive, &connection, may);
        tokio::pin!(over);
        loop {
            tokio::select! {
                biased;
                // A notice comes first, because it tells the member more than the end of the stream does.
                notice = self.attachment.notice() => {
                    if self.send(&notice).await.is_break() {
                        return;
                    }
                }
                why = &mut over => {
                    if why.reason == Reason::Locked && self.sends_last_notice().await {
                        return;
                    }
                    return self.end(&why).await;
                }
                message = self.beats.next() => match message {
                    Some(Ok(m)) if m.goodbye => return self.attachment.goodbye(),
                    Some(Ok(m)) => {
                        if let Err(ending) = self.connection.check(self.broker.clock().now().wall) {
                            return self.end(&Refusal::new(ending.reason(), ending.to_string())).await;
                        }
                        self.attachment.beat();
                        let _ = self.tx.try_send(Ok(beat(&self.broker, m.beat)));
                    }
                    Some(Err(_)) | None => return,
                },
            }
        }
    }

    /// Sends a notice. Returns `Break` if this notice is the last one, or if the member does not read.
    async fn send(&self, notice: &Notice) -> ControlFlow<()> {
        let last = matches!(notice.kind, NoticeKind::Revoked | NoticeKind::Reconnect);
        // Do not wait for a member that does not read, because its access is over in any case.
        let sent =
            tokio::time::timeout(limits::CONNECTION_GRACE, self.tx.send(Ok(self.notice(notice)))).await;
        if last || !matches!(sent, Ok(Ok(()))) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Waits for the last notice after a lock, and sends it. A lock takes effect first and ends the membership afterwards, so
    /// the stream can notice the lock before this notice exists. Returns whether the last notice came in time.
    async fn sends_last_notice(&mut self) -> bool {
        let last = async {
            loop {
                let notice = self.attachment.notice().await;
                if self.send(&notice).await.is_break() {
                    return;
                }
            }
        };
        tokio::time::timeout(limits::LAST_NOTICE, last).await.is_ok()
    }

    async fn end(self, why: &Refusal) {
        let send = self.tx.send(Err(why.status()));
        let _ = tokio::time::timeout(limits::CONNECTION_GRACE, send).await;
    }

    fn notice(&self, n: &Notice) -> v1::KeepAliveResponse {
        use v1::notice::Kind;
        let now = self.broker.clock().now();
        let (kind, reading, writing) = match n.kind {
            NoticeKind::Revoked => (Kind::Revoked, None, None),
            NoticeKind::Drain(drain) => {
                (Kind::Drain, at(now, drain.reading_ends), at(now, drain.writing_ends))
            }
            NoticeKind::Reconnect => (Kind::Reconnect, None, None),
            NoticeKind::Reissue => (Kind::Reissue, None, None),
        };
        v1::KeepAliveResponse {
            beat: 0,
            time: Some(timestamp(now.wall)),
            notice: Some(v1::Notice {
                kind: kind as i32,
                reason: n.reason.code().to_owned(),
                message: n.message.clone(),
                reading_ends: reading,
                writing_ends: writing,
            }),
        }
    }
}

fn beat(broker: &Broker, beat: u64) -> v1::KeepAliveResponse {
    v1::KeepAliveResponse { beat, time: Some(timestamp(broker.clock().now().wall)), notice: None }
}
