//! The gRPC calls that the demo makes.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use super::{Stage, watch::Observed};
use crate::{
    dev::{Authority, Role, deployment::TENANT},
    identity::{IdentitySource, StaticSource, TrustBundles, X509Svid},
    link::Connector,
    name::SpiffeId,
    proto::{
        DaemonRefusal,
        convert::duration,
        v1::{
            self, approval_service_client::ApprovalServiceClient, job_service_client::JobServiceClient,
            member_service_client::MemberServiceClient, operator_service_client::OperatorServiceClient,
            verifier_service_client::VerifierServiceClient,
        },
    },
    secret::{Secret, SecretText, random_u128},
};

/// The lifetime of an SVID that is issued for one call of a story.
const SVID_LIFE: Duration = Duration::from_secs(600);

/// Describes an error of a call.
pub(in crate::dev) fn describe(status: &Status) -> String {
    match crate::link::explain(status) {
        Some(connect) => connect.to_string(),
        None => format!("{} ({})", status.message(), reason(status)),
    }
}

/// Returns the reason of a refusal.
pub(super) fn reason(status: &Status) -> String {
    DaemonRefusal::of(status)
        .map_or_else(|| format!("{:?}", status.code()), |daemon_refusal| daemon_refusal.code)
}

impl Stage {
    pub(super) fn connector(&self, role: Role) -> Observed<Connector> {
        self.deployment.connector(role, self.clock.clone()).map_err(|e| e.to_string())
    }

    /// Makes a connector to the daemon with an SVID that is issued for this call.
    pub(super) fn connector_as(&self, authority: &Authority, id: &SpiffeId) -> Observed<Connector> {
        self.connector_with(self.new_svid(authority, id, SVID_LIFE)?)
    }

    /// Issues an SVID.
    pub(in crate::dev) fn new_svid(
        &self,
        authority: &Authority,
        id: &SpiffeId,
        life: Duration,
    ) -> Observed<X509Svid> {
        let now = self.clock.now().wall;
        let pem = authority.issue(id, &[], now, life).map_err(|e| e.to_string())?;
        X509Svid::from_pem(pem.cert.as_bytes(), pem.key.as_bytes()).map_err(|e| e.to_string())
    }

    /// Makes a connector to the daemon with this SVID.
    pub(in crate::dev) fn connector_with(&self, svid: X509Svid) -> Observed<Connector> {
        let (deployment, now) = (&self.deployment, self.clock.now().wall);
        let domain = deployment.domain().map_err(|e| e.to_string())?;
        let bundles = TrustBundles::empty()
            .with_pem(domain, "bundle", deployment.authority().bundle().as_bytes(), now)
            .map_err(|e| e.to_string())?;
        let source: Arc<dyn IdentitySource> = Arc::new(StaticSource::new(Some(Arc::new(svid)), bundles));
        let endpoint = self.connector(Role::Trainer)?.endpoint().clone();
        Ok(Connector::new(source, self.clock.clone(), endpoint))
    }

    pub(in crate::dev) fn job_client(&self, role: Role) -> Observed<JobServiceClient<Channel>> {
        Ok(JobServiceClient::new(self.connector(role)?.channel()))
    }

    pub(in crate::dev) fn operator_client(&self, role: Role) -> Observed<OperatorServiceClient<Channel>> {
        Ok(OperatorServiceClient::new(self.connector(role)?.channel()))
    }

    pub(super) fn approval_client(&self) -> Observed<ApprovalServiceClient<Channel>> {
        Ok(ApprovalServiceClient::new(self.connector(Role::Operator)?.channel()))
    }

    pub(in crate::dev) fn verifier_client(&self) -> Observed<VerifierServiceClient<Channel>> {
        Ok(VerifierServiceClient::new(self.connector(Role::Files)?.channel()))
    }

    /// Returns the specification of the sample job.
    pub(in crate::dev) fn spec(&self, attempts: u32) -> v1::JobSpec {
        v1::JobSpec {
            name: "demo".into(),
            purpose: "trying-out".into(),
            max_duration: Some(duration(Duration::from_secs(600))),
            tune: Some(v1::Tuning { method: v1::Method::Lora as i32, ..Default::default() }),
            read: vec![format!("dataset:{TENANT}/data@v1"), format!("model:{TENANT}/base@1")],
            write: vec![format!("checkpoint:{TENANT}/tuned")],
            members: Some(v1::Members { attempts, ..Default::default() }),
            ..Default::default()
        }
    }

    pub(in crate::dev) async fn create_job(&self, spec: v1::JobSpec) -> Result<v1::Job, Status> {
        self.create_job_as(Role::Trainer, spec).await
    }

    pub(super) async fn create_job_as(&self, role: Role, spec: v1::JobSpec) -> Result<v1::Job, Status> {
        self.create_job_by(&self.connector(role).map_err(Status::internal)?, spec).await
    }

    /// Creates a job with the identity of a connector.
    pub(in crate::dev) async fn create_job_by(
        &self,
        launcher: &Connector,
        spec: v1::JobSpec,
    ) -> Result<v1::Job, Status> {
        let key = random_u128().map_err(|e| Status::internal(e.to_string()))?;
        let request = v1::CreateJobRequest {
            spec: Some(spec),
            idempotency_key: format!("demo-{key:032x}"),
            dry_run: false,
        };
        let mut jobs = JobServiceClient::new(launcher.channel());
        Ok(jobs.create_job(request).await?.into_inner().job.unwrap_or_default())
    }

    /// Begins an attempt, joins it, and keeps the membership alive.
    pub(in crate::dev) async fn join(&self, job: &str, key: &str) -> Result<DemoMember, Status> {
        self.join_by(&self.connector(Role::Trainer).map_err(Status::internal)?, job, key).await
    }

    /// Begins an attempt, joins it with the identity of a connector, and keeps the membership alive.
    pub(in crate::dev) async fn join_by(
        &self,
        member: &Connector,
        job: &str,
        key: &str,
    ) -> Result<DemoMember, Status> {
        let mut jobs = JobServiceClient::new(member.channel());
        let began = jobs
            .begin_attempt(v1::BeginAttemptRequest {
                job: job.into(),
                key: key.into(),
                supersede: true,
                ..Default::default()
            })
            .await?
            .into_inner();
        let attempt = began.attempt.unwrap_or_default().number;
        let secret = Secret::random().map_err(|e| Status::internal(e.to_string()))?;
        let session = v1::Session {
            job: job.into(),
            attempt,
            instance: "story".into(),
            secret: secret.expose().to_vec(),
        };
        let mut members = MemberServiceClient::new(member.channel());
        members
            .join_attempt(v1::JoinAttemptRequest {
                job: job.into(),
                attempt,
                instance: "story".into(),
                session_digest: secret.digest().0.to_vec(),
                ticket: began.ticket,
            })
            .await?;
        let (beats, stream) = mpsc::channel(4);
        let hello = v1::KeepAliveRequest { session: Some(session.clone()), beat: 1, goodbye: false };
        beats.send(hello).await.map_err(|e| Status::internal(e.to_string()))?;
        let notices = members.keep_alive(ReceiverStream::new(stream)).await?.into_inner();
        let beating = beats.clone();
        let beater = tokio::spawn(async move {
            for beat in 2u64.. {
                tokio::time::sleep(crate::limits::BEAT / 2).await;
                if beating.send(v1::KeepAliveRequest { session: None, beat, goodbye: false }).await.is_err() {
                    return;
                }
            }
        });
        Ok(DemoMember {
            session,
            members,
            _beats: beats,
            _notices: notices,
            beater: Arc::new(AbortOnDrop(beater)),
        })
    }
}

/// A member that sends heartbeats.
pub(in crate::dev) struct DemoMember {
    pub session: v1::Session,
    pub members: MemberServiceClient<Channel>,
    _beats: mpsc::Sender<v1::KeepAliveRequest>,
    _notices: tonic::Streaming<v1::KeepAliveResponse>,
    #[expect(dead_code, reason = "dropping it stops the beats")]
    beater: Arc<AbortOnDrop>,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl DemoMember {
    /// Asks the daemon for a credential to read.
    pub(in crate::dev) async fn issue(
        &mut self,
        ttl: Option<Duration>,
    ) -> Result<(v1::Lease, SecretText), Status> {
        let request = v1::IssueCredentialRequest {
            session: Some(self.session.clone()),
            half: v1::Half::Reading as i32,
            ttl: ttl.map(duration),
            ..Default::default()
        };
        let issued = self.members.issue_credential(request).await?.into_inner();
        Ok((issued.lease.unwrap_or_default(), SecretText::new(issued.token)))
    }
}
