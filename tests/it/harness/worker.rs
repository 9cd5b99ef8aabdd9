//! A member of an attempt, with its session and its keep-alive stream.

use std::collections::{HashMap, VecDeque};

use leasehold::{
    proto::v1::{self, Half, notice::Kind},
    secret::Secret,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::{Client, GATEWAY, LAUNCHER, LINE, MODEL, Refused, TICKETS, WORKER, World, soon};

/// The container image that the usual job names.
pub const IMAGE: &str = "sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

/// The usual job: a dataset and a model to read, a checkpoint line to write, one member.
pub fn spec() -> v1::JobSpec {
    v1::JobSpec {
        name: "support-lora".into(),
        purpose: "support-tuning".into(),
        why: "CHG-1412 weekly refresh".into(),
        max_duration: Some(seconds(2 * 3_600)),
        tune: Some(v1::Tuning {
            method: v1::Method::Lora as i32,
            params_digest: format!("sha256:{}", "ab".repeat(32)),
            free_params: vec!["seed".into()],
            prompts: vec!["prompts:/support-sys/12".into()],
        }),
        read: vec![TICKETS.into(), MODEL.into()],
        write: vec![LINE.into()],
        members: Some(v1::Members { join: vec![WORKER.into()], ..Default::default() }),
        acting_for: "human:ada".into(),
        image: IMAGE.into(),
        pins: HashMap::new(),
        ..Default::default()
    }
}

pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

impl Client {
    /// Creates a job under a key.
    pub async fn create(
        &self,
        spec: v1::JobSpec,
        key: &str,
    ) -> Result<Response<v1::CreateJobResponse>, Status> {
        let request = v1::CreateJobRequest { spec: Some(spec), idempotency_key: key.into(), dry_run: false };
        self.jobs().create_job(request).await
    }

    pub async fn begin(&self, job: &str, key: &str) -> Result<Response<v1::BeginAttemptResponse>, Status> {
        let request = v1::BeginAttemptRequest {
            job: job.into(),
            key: key.into(),
            supersede: false,
            ..Default::default()
        };
        self.jobs().begin_attempt(request).await
    }

    pub async fn end(
        &self,
        job: &str,
        attempt: u64,
        outcome: v1::Outcome,
    ) -> Result<Response<v1::EndAttemptResponse>, Status> {
        let request = v1::EndAttemptRequest {
            job: job.into(),
            attempt,
            outcome: outcome as i32,
            detail: "as the test says".into(),
            ..Default::default()
        };
        self.jobs().end_attempt(request).await
    }

    pub async fn job(&self, job: &str) -> v1::Job {
        let answer = self.jobs().get_job(v1::GetJobRequest { job: job.into() }).await.unwrap();
        answer.into_inner().job.unwrap()
    }

    pub async fn revoke(&self, name: &str) -> Result<Response<v1::RevokeResponse>, Status> {
        let request = v1::RevokeRequest {
            name: name.into(),
            reason: "seen in the wild".into(),
            dry_run: false,
            ahead: true,
            cause: 0,
        };
        self.operators().revoke(request).await
    }

    pub async fn lock(&self, name: &str) -> Result<Response<v1::LockResponse>, Status> {
        let request = v1::LockRequest {
            name: name.into(),
            reason: "under investigation".into(),
            ahead: true,
            ..Default::default()
        };
        self.operators().lock(request).await
    }

    pub async fn unlock(&self, name: &str) -> Result<Response<v1::UnlockResponse>, Status> {
        self.operators()
            .unlock(v1::UnlockRequest { name: name.into(), reason: "it was nothing".into() })
            .await
    }

    /// Whether a token is valid now, and otherwise why not.
    pub async fn introspect(&self, token: &str, presenter: &str) -> v1::IntrospectResponse {
        let request =
            v1::IntrospectRequest { token: token.into(), presenter: presenter.into(), ..Default::default() };
        self.verifiers().introspect(request).await.unwrap().into_inner()
    }
}

/// A token and the rest of its response.
#[derive(Clone)]
pub struct Token {
    pub text: String,
    pub lease: v1::Lease,
    pub holder: String,
    pub answer: v1::IssueCredentialResponse,
}

/// A member of an attempt. Dropping it loses its stream, as a crash does.
pub struct Worker {
    pub client: Client,
    pub job: String,
    pub attempt: u64,
    pub instance: String,
    pub secret: Vec<u8>,
    pub ticket: String,
    pub joined: v1::JoinAttemptResponse,
    pub stream: Option<KeepAlive>,
}

/// A keep-alive stream.
pub struct KeepAlive {
    pub tx: mpsc::Sender<v1::KeepAliveRequest>,
    pub rx: Streaming<v1::KeepAliveResponse>,
    beats: u64,
    /// Notices that came while a beat was waited for.
    noticed: VecDeque<v1::Notice>,
}

impl World {
    /// Creates the usual job, with a first attempt and a live member.
    pub async fn working(&self) -> Worker {
        self.working_on(spec(), WORKER).await
    }

    /// Creates a job, with a first attempt and one live member.
    pub async fn working_on(&self, spec: v1::JobSpec, worker: &str) -> Worker {
        let launcher = self.client(LAUNCHER).await;
        let key = format!("key of {}", spec.name);
        let job = launcher.create(spec, &key).await.unwrap().into_inner().job.unwrap();
        let began = launcher.begin(&job.id, "run-1").await.unwrap().into_inner();
        let client = self.client(worker).await;
        let mut worker =
            Worker::join(client, &job.id, 1, "rank-0", &began.ticket).await.unwrap_or_else(|e| panic!("{e}"));
        worker.keep_alive().await;
        worker
    }
}

impl Worker {
    /// Joins an attempt with a new session.
    pub async fn join(
        client: Client,
        job: &str,
        attempt: u64,
        instance: &str,
        ticket: &str,
    ) -> Result<Self, Status> {
        let secret = Secret::random().unwrap();
        let mut worker = Worker {
            client,
            job: job.into(),
            attempt,
            instance: instance.into(),
            secret: secret.expose().to_vec(),
            ticket: ticket.into(),
            joined: v1::JoinAttemptResponse::default(),
            stream: None,
        };
        worker.rejoin().await?;
        Ok(worker)
    }

    /// Joins again with the same session.
    pub async fn rejoin(&mut self) -> Result<(), Status> {
        let digest = Secret::from_bytes(&self.secret).unwrap().digest();
        let request = v1::JoinAttemptRequest {
            job: self.job.clone(),
            attempt: self.attempt,
            instance: self.instance.clone(),
            session_digest: digest.0.to_vec(),
            ticket: self.ticket.clone(),
        };
        self.joined = self.client.members().join_attempt(request).await?.into_inner();
        Ok(())
    }

    pub fn session(&self) -> Option<v1::Session> {
        Some(v1::Session {
            job: self.job.clone(),
            attempt: self.attempt,
            instance: self.instance.clone(),
            secret: self.secret.clone(),
        })
    }

    /// Opens a keep-alive stream and waits for its first beat.
    pub async fn keep_alive(&mut self) {
        self.stream = Some(self.open_stream().await.unwrap());
    }

    pub async fn open_stream(&self) -> Result<KeepAlive, Status> {
        let (tx, rx) = mpsc::channel(8);
        let first = v1::KeepAliveRequest { session: self.session(), beat: 1, goodbye: false };
        tx.send(first).await.unwrap();
        let answer = self.client.members().keep_alive(ReceiverStream::new(rx)).await?;
        let mut stream = KeepAlive { tx, rx: answer.into_inner(), beats: 1, noticed: VecDeque::new() };
        let beat = soon("a first beat", stream.rx.message()).await?.expect("a first beat");
        assert_eq!((beat.beat, beat.notice), (1, None));
        Ok(stream)
    }

    /// Beats, and waits for the echo.
    pub async fn beat(&mut self) {
        self.stream.as_mut().expect("a stream").beat().await;
    }

    /// Asks for a credential for everything that the job has in one half.
    pub async fn try_issue(&self, half: Half) -> Result<Response<v1::IssueCredentialResponse>, Status> {
        let request =
            v1::IssueCredentialRequest { session: self.session(), half: half as i32, ..Default::default() };
        self.client.members().issue_credential(request).await
    }

    pub async fn issue(&self, half: Half) -> Token {
        let answer =
            self.try_issue(half).await.unwrap_or_else(|e| panic!("{:?}", Refused::of(&e))).into_inner();
        self.token(answer)
    }

    pub fn token(&self, answer: v1::IssueCredentialResponse) -> Token {
        Token {
            text: answer.token.clone(),
            lease: answer.lease.clone().unwrap(),
            holder: self.client.id.clone(),
            answer,
        }
    }

    /// Both halves.
    pub async fn issue_both(&self) -> [Token; 2] {
        [self.issue(Half::Reading).await, self.issue(Half::Writing).await]
    }

    pub async fn renew(&self, lease: &str) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        let request = v1::RenewLeaseRequest { session: self.session(), lease: lease.into(), ttl: None };
        self.client.members().renew_lease(request).await
    }

    pub async fn release(&self, lease: &str) -> Result<Response<v1::ReleaseLeaseResponse>, Status> {
        let request = v1::ReleaseLeaseRequest { session: self.session(), lease: lease.into() };
        self.client.members().release_lease(request).await
    }

    /// Drains only itself.
    pub async fn drain_self(&self, grace: i64) -> Result<Response<v1::DrainAttemptResponse>, Status> {
        let request = v1::DrainAttemptRequest {
            job: self.job.clone(),
            attempt: self.attempt,
            grace: Some(seconds(grace)),
            reason: "SIGTERM".into(),
            instance: self.instance.clone(),
            session_secret: self.secret.clone(),
        };
        self.client.jobs().drain_attempt(request).await
    }

    /// Reports its own end.
    pub async fn end_self(&self, outcome: v1::Outcome) -> Result<Response<v1::EndAttemptResponse>, Status> {
        let request = v1::EndAttemptRequest {
            job: self.job.clone(),
            attempt: self.attempt,
            outcome: outcome as i32,
            instance: self.instance.clone(),
            detail: "exit code 0".into(),
            session_secret: self.secret.clone(),
        };
        self.client.jobs().end_attempt(request).await
    }
}

impl KeepAlive {
    pub async fn beat(&mut self) {
        self.beats += 1;
        let beat = v1::KeepAliveRequest { session: None, beat: self.beats, goodbye: false };
        self.tx.send(beat).await.unwrap();
        soon("a beat", async {
            loop {
                let message = self.rx.message().await.unwrap().expect("a beat");
                match message.notice {
                    Some(notice) => self.noticed.push_back(notice),
                    None if message.beat == self.beats => return,
                    None => {}
                }
            }
        })
        .await;
    }

    /// Beats many times without reading one echo, until the daemon can send no more.
    pub async fn flood(&mut self, beats: u64) {
        for _ in 0..beats {
            self.beats += 1;
            let beat = v1::KeepAliveRequest { session: None, beat: self.beats, goodbye: false };
            soon("room for a beat", self.tx.send(beat)).await.unwrap();
        }
    }

    /// Reads all that is left, to the end of the stream.
    pub async fn drained(mut self) {
        soon("the end of the stream", async { while let Ok(Some(_)) = self.rx.message().await {} }).await;
    }

    /// Leaves, and waits until the daemon has closed the stream.
    pub async fn goodbye(mut self) {
        let bye = v1::KeepAliveRequest { session: None, beat: self.beats + 1, goodbye: true };
        self.tx.send(bye).await.unwrap();
        soon("the end of the stream", async { while let Ok(Some(_)) = self.rx.message().await {} }).await;
    }

    /// Returns the next notice, and skips beats.
    pub async fn notice(&mut self) -> v1::Notice {
        if let Some(notice) = self.noticed.pop_front() {
            return notice;
        }
        soon("a notice", async {
            loop {
                match self.rx.message().await {
                    Ok(Some(v1::KeepAliveResponse { notice: Some(notice), .. })) => return notice,
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the stream ended without a notice"),
                    Err(status) => panic!("the stream ended: {status:?}"),
                }
            }
        })
        .await
    }

    /// Asserts that the next notice has this kind and this reason.
    pub async fn told(&mut self, kind: Kind, reason: &str) -> v1::Notice {
        let notice = self.notice().await;
        assert_eq!((notice.kind(), notice.reason.as_str()), (kind, reason), "{}", notice.message);
        notice
    }

    /// The error that the stream ends with.
    pub async fn refused(&mut self) -> Refused {
        soon("an end", async {
            loop {
                match self.rx.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the stream ended without saying why"),
                    Err(status) => return Refused::of(&status),
                }
            }
        })
        .await
    }
}

impl Token {
    /// Introspects as the gateway does.
    pub async fn seen_by(&self, gateway: &Client) -> v1::IntrospectResponse {
        assert_eq!(gateway.id, GATEWAY);
        gateway.introspect(&self.text, &self.holder).await
    }

    pub async fn is_live(&self, gateway: &Client) {
        let seen = self.seen_by(gateway).await;
        assert!(seen.active, "{} is dead: {}", self.lease.id, seen.reason);
    }

    /// Asserts that the token is invalid for this reason.
    pub async fn is_dead(&self, gateway: &Client, reason: &str) {
        let seen = self.seen_by(gateway).await;
        assert_eq!((seen.active, seen.reason.as_str()), (false, reason), "{}", self.lease.id);
        assert!(
            seen.lease.is_none() && seen.subject.is_empty(),
            "a dead token told more than that it is dead"
        );
    }
}
