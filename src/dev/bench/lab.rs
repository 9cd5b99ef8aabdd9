//! The processes of a benchmark: the daemon, the echo, and the members that send requests to both. The echo answers like the
//! daemon and does only a part of its work. Its speed is the limit for the daemon, which `figure` explains.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::{
    process::{Child, Command},
    sync::OnceCell,
};
use tonic::transport::Channel;

use super::{
    crowd::let_crowd_in,
    echo::ANSWERS,
    echo_work::{EchoWork, RECORD, last_issued},
    figure::{Figure, Sample},
    load::Load,
    machine::{processor_time, resident},
    peers::unused_ports,
    plan::{BenchPlan, MIX, Workload},
    revocations::Revoker,
    work::{OfflineCheck, UnseenTokens, Work},
};
use crate::{
    dev::{
        Role, Running,
        demo::{DemoMember, Stage, describe},
        deployment::TENANT,
    },
    identity::Leaf,
    limits,
    link::{Connector, Endpoint},
    name::Object,
    proto::{
        convert::duration,
        v1::{
            self, member_service_client::MemberServiceClient, verifier_service_client::VerifierServiceClient,
        },
    },
    secret::SecretText,
    verify::Verifier,
};

/// How many jobs have members that send requests at once. One job can have 100,000 leases, and would be full in seconds.
const JOBS: usize = 8;
/// How many requests are in flight at once while [`UnseenTokens`] are issued.
const UNSEEN_AT_ONCE: usize = 64;
/// The longest that the echo may take to start.
const ECHO_START: Duration = Duration::from_secs(15);

/// The server that answers.
#[derive(Clone, Copy)]
pub(super) enum Server<'a> {
    Daemon,
    /// The echo that makes one signature for each issue and renewal. Its speed is the limit for the daemon.
    Echo,
    /// An echo that does more, or less, of the daemon's work than `Echo`.
    Other(&'a EchoProcess),
}

/// A process that answers like the daemon, and the connections to it.
pub(super) struct EchoProcess {
    process: Child,
    connections: Connections,
}

/// The processes to measure: a daemon with a ledger on disk, an echo, and a verifier on the daemon's feed.
pub(super) struct BenchLab<'a> {
    stage: &'a Stage,
    daemon: Child,
    echo: EchoProcess,
    running: Running,
    holder: Leaf,
    members: Vec<DemoMember>,
    /// The lease that each worker renews, and the token of that lease. The leases are shared out evenly to the members.
    leases: Vec<(String, SecretText)>,
    /// Connections to the daemon.
    connections: Connections,
    /// The number of crowds that were opened.
    crowds: AtomicUsize,
    /// Tokens that the daemon does not remember. They are issued when a workload first needs them.
    unseen: OnceCell<Arc<UnseenTokens>>,
}

/// Connections to one server, of members and of the verifier.
struct Connections {
    member: Vec<Channel>,
    verifier: Vec<Channel>,
}

impl<'a> BenchLab<'a> {
    /// Starts the processes and joins the members.
    pub(super) async fn open(stage: &'a Stage, plan: &BenchPlan) -> Result<Self, String> {
        allow_any_rate(stage).map_err(|e| format!("the configuration cannot be written: {e}"))?;
        let_crowd_in(stage).map_err(|e| format!("the catalog cannot be written: {e}"))?;
        let daemon = stage.start_daemon().await?;
        let running =
            Running::start(&stage.deployment, stage.clock.clone()).await.map_err(|e| e.to_string())?;
        running.verifier.ready().await;
        let mut members = Vec::with_capacity(JOBS);
        for n in 0..JOBS {
            members.push(join_new_job(stage, n).await?);
        }
        let mut leases = Vec::new();
        for n in 0..plan.workers() {
            let Some(member) = members.get_mut(n % JOBS) else { break };
            let issued = member.issue(Some(limits::LEASE_TTL_MAX)).await;
            let (lease, token) = issued.map_err(|s| describe(&s))?;
            leases.push((lease.id, token));
        }
        let holder = stage.trainer()?;
        keep_answers(stage, &mut members, &leases, &holder).await?;
        let echo = start_echo(stage, EchoWork::Signature, plan).await?;
        let connections = connect(stage, plan, stage.deployment.ports.grpc)?;
        let (crowds, unseen) = (AtomicUsize::new(0), OnceCell::new());
        Ok(BenchLab { stage, daemon, echo, running, holder, members, leases, connections, crowds, unseen })
    }

    /// Stops the processes.
    pub(super) async fn close(mut self) -> Result<(), String> {
        self.running.stop().await;
        self.echo.process.kill().await.map_err(|e| e.to_string())?;
        self.stage.stop_daemon(self.daemon).await
    }

    /// Measures one workload and its limit in turns.
    pub(super) async fn measure(
        &self,
        plan: &BenchPlan,
        workload: Workload,
        in_flight: usize,
    ) -> Result<Figure, String> {
        let load = Load { in_flight, time: plan.part(), rate: plan.rate };
        // This warms up connections, caches and allocators.
        let warm_up = Load { time: load.time / 4, rate: None, ..load };
        for server in [Server::Daemon, Server::Echo] {
            self.apply(workload, server, warm_up).await?;
        }
        let (mut ours, mut limit) = (Sample::new()?, Sample::new()?);
        for _ in 0..plan.rounds {
            self.measure_part(workload, Server::Echo, load, &mut limit).await?;
            self.measure_part(workload, Server::Daemon, load, &mut ours).await?;
        }
        Ok(Figure { workload, in_flight, ours: ours.measured(), limit: limit.measured() })
    }

    /// Puts a load on a server.
    pub(super) async fn apply(
        &self,
        workload: Workload,
        server: Server<'_>,
        load: Load,
    ) -> Result<Sample, String> {
        let object: Object = format!("dataset:{TENANT}/data@v1").parse().map_err(|_| "no such name")?;
        if workload == Workload::IntrospectFirst {
            self.unseen.get_or_try_init(|| self.issue_unseen()).await?;
        }
        let works = (0..load.in_flight).map(|worker| self.work(workload, server, worker, object.clone()));
        load.apply(works).await
    }

    /// Issues twice as many tokens as the daemon remembers.
    async fn issue_unseen(&self) -> Result<Arc<UnseenTokens>, String> {
        let issue = |n: usize| {
            let channel = self.connections.member.get(n % self.connections.member.len().max(1)).cloned();
            let session = self.members.get(n % JOBS).map(|member| member.session.clone());
            async move {
                let mut at = MemberServiceClient::new(channel.ok_or("there is no connection")?);
                let issued = at.issue_credential(issue_request(session)).await.map_err(|s| describe(&s))?;
                let token = SecretText::new(issued.into_inner().token);
                Ok::<_, String>(introspect_request(&token, &self.holder))
            }
        };
        let all =
            stream::iter((0..2 * limits::VERIFIED_TOKENS_MAX).map(issue)).buffer_unordered(UNSEEN_AT_ONCE);
        let requests = all.try_collect().await?;
        Ok(Arc::new(UnseenTokens { requests, next: AtomicUsize::new(0) }))
    }

    /// Measures one part, and adds it to a sample.
    pub(super) async fn measure_part(
        &self,
        workload: Workload,
        server: Server<'_>,
        load: Load,
        all: &mut Sample,
    ) -> Result<(), String> {
        let before = self.processor_time(workload, server);
        let part = self.apply(workload, server, load).await?;
        all.add(&part)?;
        all.time = all.time.saturating_add(part.time);
        let taken = self.processor_time(workload, server).saturating_sub(before);
        all.processor = all.processor.saturating_add(taken);
        Ok(())
    }

    /// Starts an echo that does this much of the daemon's work. It ends when it is dropped.
    pub(super) async fn start_echo(&self, work: EchoWork, plan: &BenchPlan) -> Result<EchoProcess, String> {
        start_echo(self.stage, work, plan).await
    }

    /// Returns the processor time of the process that answers. Zero for a check, which this process does itself.
    fn processor_time(&self, workload: Workload, server: Server<'_>) -> Duration {
        self.process(workload, server).and_then(processor_time).unwrap_or_default()
    }

    /// Returns the id of the process that answers. `None` for a check, which this process does itself.
    pub(super) fn process(&self, workload: Workload, server: Server<'_>) -> Option<u32> {
        match (workload, server) {
            (Workload::Check, _) => None,
            (_, Server::Daemon) => self.daemon.id(),
            (_, Server::Echo) => self.echo.process.id(),
            (_, Server::Other(echo)) => echo.process.id(),
        }
    }

    pub(super) fn stage(&self) -> &Stage {
        self.stage
    }

    /// Returns the resident memory of the daemon, in bytes.
    pub(super) fn daemon_memory(&self) -> Result<u64, String> {
        resident(self.daemon.id().ok_or("the daemon has ended")?)
    }

    /// Returns the verifier that follows the daemon's feed.
    pub(super) fn verifier(&self) -> &Verifier {
        &self.running.verifier
    }

    /// Returns the jobs that this lab created for its members.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.session.job.as_str())
    }

    /// Returns the number of the next crowd.
    pub(super) fn next_crowd(&self) -> usize {
        self.crowds.fetch_add(1, Ordering::Relaxed)
    }

    /// Revokes the job of each member with all its leases, and gives the member a new job. So a bench can issue more credentials
    /// than the daemon holds at once.
    pub(super) async fn replace_members(&mut self) -> Result<(), String> {
        let mut revoker = Revoker::connect(self).await?;
        for (n, member) in self.members.iter_mut().enumerate() {
            revoker.revoke(format!("job:{}", member.session.job)).await?;
            *member = join_new_job(self.stage, n).await?;
        }
        Ok(())
    }

    /// Returns the check of a token by the verifier that follows the daemon's feed.
    pub(super) fn offline_check(&self, token: SecretText) -> Result<OfflineCheck, String> {
        let object = format!("dataset:{TENANT}/data@v1").parse().map_err(|_| "no such name")?;
        Ok(OfflineCheck {
            verifier: self.running.verifier.clone(),
            holder: self.holder.clone(),
            token,
            object,
        })
    }

    fn work(&self, workload: Workload, server: Server<'_>, worker: usize, object: Object) -> Work {
        let connections = match server {
            Server::Daemon => &self.connections,
            Server::Echo => &self.echo.connections,
            Server::Other(echo) => &echo.connections,
        };
        let turn = |all: &[Channel]| all.get(worker % all.len().max(1)).cloned();
        let member = self.members.get(worker % JOBS).map(|member| member.session.clone());
        let (lease, token) = match self.leases.get(worker) {
            Some((lease, token)) => (lease.clone(), token.clone()),
            None => (String::new(), SecretText::new(String::new())),
        };
        let channels = (turn(&connections.member), turn(&connections.verifier));
        match (workload, channels) {
            (Workload::Issue, (Some(channel), _)) => {
                Work::Issue { at: MemberServiceClient::new(channel), request: issue_request(member) }
            }
            (Workload::Renew, (Some(channel), _)) => Work::Renew {
                at: MemberServiceClient::new(channel),
                request: v1::RenewLeaseRequest {
                    session: member,
                    lease,
                    ttl: Some(duration(limits::LEASE_TTL_MAX)),
                },
            },
            (Workload::IntrospectFirst, (_, Some(channel))) if matches!(server, Server::Daemon) => {
                Work::IntrospectFirst {
                    at: VerifierServiceClient::new(channel),
                    tokens: self.unseen.get().cloned().unwrap_or_default(),
                }
            }
            (Workload::Introspect | Workload::IntrospectFirst, (_, Some(channel))) => Work::Introspect {
                at: VerifierServiceClient::new(channel),
                request: introspect_request(&token, &self.holder),
            },
            (Workload::Mixed, _) => {
                let turns = MIX.map(|one| self.work(one, server, worker, object.clone()));
                Work::Mixed { turns: turns.into(), next: worker }
            }
            _ if !matches!(server, Server::Daemon) => Work::Digest(token),
            _ => Work::Check(Box::new(OfflineCheck {
                verifier: self.running.verifier.clone(),
                holder: self.holder.clone(),
                token,
                object,
            })),
        }
    }
}

/// Creates a job and joins its first attempt.
async fn join_new_job(stage: &Stage, n: usize) -> Result<DemoMember, String> {
    let job = stage.create_job(stage.spec(1)).await.map_err(|s| describe(&s))?;
    stage.join(&job.id, &format!("bench-{n}")).await.map_err(|s| describe(&s))
}

pub(super) fn issue_request(session: Option<v1::Session>) -> v1::IssueCredentialRequest {
    v1::IssueCredentialRequest { session, half: v1::Half::Reading as i32, ..Default::default() }
}

pub(super) fn introspect_request(token: &SecretText, holder: &Leaf) -> v1::IntrospectRequest {
    v1::IntrospectRequest {
        token: token.expose().to_owned(),
        presenter: holder.spiffe_id.to_string(),
        presenter_sha256: holder.x5t_s256.to_vec(),
    }
}

/// Removes the daemon's limits on request rates. They protect the disk, but a bench must be able to load the disk fully.
pub(super) fn allow_any_rate(stage: &Stage) -> std::io::Result<()> {
    let max = limits::ROOM_MAX;
    let file = stage.deployment.path("leasehold.toml");
    let rates = format!("[ledger]\nrate_per_identity = {max}\nrate_per_tenant = {max}\n");
    let text = std::fs::read_to_string(&file)?;
    // A bench of several things starts the daemon several times.
    if text.contains(&rates) { Ok(()) } else { std::fs::write(&file, text.replace("[ledger]\n", &rates)) }
}

/// Writes one answer of each kind into the folder, for the echo.
async fn keep_answers(
    stage: &Stage,
    members: &mut [DemoMember],
    leases: &[(String, SecretText)],
    holder: &Leaf,
) -> Result<(), String> {
    let (Some(member), Some((lease, token))) = (members.first_mut(), leases.first()) else {
        return Err("there is no member".to_owned());
    };
    let session = Some(member.session.clone());
    let failed = |status: tonic::Status| describe(&status);
    let issued = member.members.issue_credential(issue_request(session.clone())).await.map_err(failed)?;
    let renew = v1::RenewLeaseRequest { session, lease: lease.clone(), ttl: None };
    let renewed = member.members.renew_lease(renew).await.map_err(failed)?;
    let mut verifier = stage.verifier_client()?;
    let seen = verifier.introspect(introspect_request(token, holder)).await.map_err(failed)?;
    let answers = [
        issued.into_inner().encode_to_vec(),
        renewed.into_inner().encode_to_vec(),
        seen.into_inner().encode_to_vec(),
    ];
    for (name, bytes) in ANSWERS.iter().zip(answers) {
        std::fs::write(stage.deployment.path(name), bytes).map_err(|e| format!("{name}: {e}"))?;
    }
    let record = last_issued(&stage.deployment.path("state"))?;
    std::fs::write(stage.deployment.path(RECORD), record).map_err(|e| format!("{RECORD}: {e}"))
}

/// Starts the echo on a free port.
async fn start_echo(stage: &Stage, work: EchoWork, plan: &BenchPlan) -> Result<EchoProcess, String> {
    let [port] = unused_ports()?;
    let log = std::fs::OpenOptions::new().create(true).append(true).open(stage.deployment.path("echo.log"));
    let mut process = Command::new(&stage.program)
        .args(["bench", "--echo-port", &port.to_string(), "--echo-work", work.as_str(), "--echo-folder"])
        .arg(stage.deployment.root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.map_err(|e| format!("echo.log: {e}"))?)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| e.to_string())?;
    let listening = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if let Ok(Some(status)) = process.try_wait() {
                let log = std::fs::read_to_string(stage.deployment.path("echo.log")).unwrap_or_default();
                return Err(format!("the echo ended with {status}: {log}"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    tokio::time::timeout(ECHO_START, listening).await.map_err(|_| "the echo did not start")??;
    Ok(EchoProcess { process, connections: connect(stage, plan, port)? })
}

/// Prepares the connections to a server on this port.
fn connect(stage: &Stage, plan: &BenchPlan, port: u16) -> Result<Connections, String> {
    let channels = |role| -> Result<Vec<Channel>, String> {
        let connector = connector(stage, role, port)?;
        Ok((0..plan.connections).map(|_| connector.channel()).collect())
    };
    Ok(Connections { member: channels(Role::Trainer)?, verifier: channels(Role::Files)? })
}

fn connector(stage: &Stage, role: Role, port: u16) -> Result<Connector, String> {
    let deployment = &stage.deployment;
    let daemon = deployment.id(Role::Daemon).map_err(|e| e.to_string())?;
    let endpoint = Endpoint::new(&format!("localhost:{port}"), daemon).map_err(|e| e.to_string())?;
    let identity = deployment.identity(role).map_err(|e| e.to_string())?;
    Ok(Connector::new(identity, stage.clock.clone(), endpoint))
}
