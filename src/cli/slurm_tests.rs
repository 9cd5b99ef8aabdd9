//! Tests of prologs and epilogs against a real daemon, with the environments of slurmctld 22.05.

use std::{collections::BTreeMap, fs, sync::Arc};

use futures_util::future::BoxFuture;

use super::*;
use crate::{
    cli::{
        Context, Contexts, SvidFiles,
        daemon_tests::{Home, Patient},
    },
    clock::{Clock, LeaseTime, Now, Wall},
    limits::SPOOL_BEGIN_LATEST,
    name::{JobId, SpiffeId},
    proto::v1::{job_service_client::JobServiceClient, member_service_client::MemberServiceClient},
    reason::Refusal,
    slurm::{SlurmExit, not_theirs},
};

const RUNS_AS: &str = "spiffe://dev.leasehold/{user}";

/// A cluster whose controller has an entry in the catalog.
struct Cluster {
    home: Home,
    session: Session,
    to: SpoolArgs,
}

impl Cluster {
    async fn start() -> Self {
        let home = Home::start().await;
        let catalog = home.deployment.path("catalog.d/platform.toml");
        let text = fs::read_to_string(&catalog).unwrap();
        let more = "\n[[principal]]\nmatch = \"spiffe://dev.leasehold/slurm/*\"\nkind = \"scheduler\"\n";
        fs::write(&catalog, text + more).unwrap();
        home.run_as(Some(PrincipalKind::Operator), &["catalog", "reload"]).await.unwrap();
        let session = Self::session_of(&home, "controller");
        let to = SpoolArgs { spool: home.folder.path().join("spool"), timeout: Duration::from_secs(20) };
        Cluster { home, session, to }
    }

    /// Makes a context with one identity, `spiffe://dev.leasehold/slurm/NAME`.
    fn session_of(home: &Home, name: &str) -> Session {
        let deployment = &home.deployment;
        let id = deployment.authority().id_at(&format!("/slurm/{name}")).unwrap();
        let life = Duration::from_secs(3600);
        let pem = deployment.authority().issue(&id, &[], home.clock.now().wall, life).unwrap();
        let path = |end: &str| home.folder.path().join(format!("{name}.{end}"));
        fs::write(path("pem"), &pem.cert).unwrap();
        fs::write(path("key"), &pem.key).unwrap();
        let dev = Contexts::load(&home.folder.path().join("contexts.toml")).unwrap();
        let Context { server, server_id, bundles, issuer, login, .. } = dev.contexts["dev"].clone();
        let svid = SvidFiles { cert: path("pem"), key: path("key") }.into();
        let identities = BTreeMap::from([(PrincipalKind::Scheduler, svid)]);
        let context = Context { server, server_id, bundles, issuer, login, identities };
        let contexts = BTreeMap::from([("dev".to_owned(), context)]);
        Contexts { current: Some("dev".into()), contexts, ..Default::default() }.save(&path("toml")).unwrap();
        Session::of_test(Still::after(&home.clock, Duration::ZERO), path("toml"), None)
    }

    /// Creates a job of the trainer that may have three attempts.
    async fn job(&self, starters: &str) -> String {
        let text = fs::read_to_string(self.home.spec()).unwrap();
        let spec = self.home.deployment.path("slurm.toml");
        fs::write(&spec, format!("{text}\n[members]\nstart = [{starters}]\nattempts = 3\n")).unwrap();
        let client = self.home_session().client(&[PrincipalKind::Workload]).unwrap();
        let spec = crate::agent::RunSpec::load(&spec).unwrap().job;
        let idempotency_key = format!("{:x}", crate::secret::random_u128().unwrap());
        let request = v1::CreateJobRequest { spec: Some(spec), idempotency_key, dry_run: false };
        client.jobs().create_job(request).await.unwrap().into_inner().job.unwrap().id
    }

    fn home_session(&self) -> Session {
        let path = self.home.folder.path().join("contexts.toml");
        Session::of_test(Patient::clock(), path, None)
    }

    async fn seen(&self, job: &str) -> v1::Job {
        let client = self.home_session().client(&[PrincipalKind::Workload]).unwrap();
        let request = v1::GetJobRequest { job: job.to_owned() };
        client.jobs().get_job(request).await.unwrap().into_inner().job.unwrap()
    }

    /// Returns the key and the state or outcome of each attempt.
    async fn attempts(&self, job: &str) -> Vec<String> {
        let attempts = self.seen(job).await.attempts;
        attempts
            .iter()
            .map(|a| match a.outcome() {
                v1::Outcome::Unspecified => format!("{} {}", a.key, a.state().as_str_name()),
                outcome => format!("{} {}", a.key, outcome.as_str_name()),
            })
            .collect()
    }

    async fn prolog(&self, run: &Environment) {
        prolog(run.read(), &self.to, RUNS_AS, &self.session).await.unwrap();
    }

    async fn epilog(&self, run: &Environment) {
        epilog(run.read(), &self.to, &self.session).await.unwrap();
    }

    /// Opens the spool of a node.
    fn to_node(&self) -> SpoolArgs {
        SpoolArgs { spool: self.home.folder.path().join("node-spool"), timeout: self.to.timeout }
    }

    /// Makes a session whose clock is ahead by a span.
    fn later(&self, name: &str, span: Duration) -> Session {
        let contexts = self.home.folder.path().join(format!("{name}.toml"));
        Session::of_test(Still::after(&self.home.clock, span), contexts, None)
    }

    fn kept(&self) -> usize {
        Spool::open(&self.to.spool, note).unwrap().pending().unwrap().len()
    }
}

/// A clock that stands still, with timers that are twelve times as long. So the age of a report does not depend on how busy the
/// machine is, and a healthy daemon answers in time.
struct Still(Arc<dyn Clock>, Now);

impl Still {
    fn after(clock: &Arc<dyn Clock>, span: Duration) -> Arc<Self> {
        let now = clock.now();
        let at = Now { wall: now.wall.plus(span), lease: now.lease.plus(span), boot: now.boot.plus(span) };
        Arc::new(Still(clock.clone(), at))
    }
}

impl Clock for Still {
    fn now(&self) -> Now {
        self.1
    }

    fn sleep_until(&self, deadline: LeaseTime) -> BoxFuture<'static, ()> {
        self.0.sleep(deadline.since(self.1.lease).saturating_mul(12))
    }
}

const CONTROLLER: &str = "\"spiffe://dev.leasehold/slurm/controller\", \"spiffe://dev.leasehold/slurm/node\"";

/// Returns the environment that slurmctld sets.
#[derive(Clone)]
struct Environment {
    job: String,
    user: &'static str,
    restarts: u32,
    exit: &'static str,
}

impl Environment {
    fn of(job: &str) -> Self {
        Environment { job: job.to_owned(), user: "trainer", restarts: 0, exit: "0:0" }
    }

    fn read(&self) -> Result<Option<Allocation>, SlurmEnvError> {
        Allocation::read(|name| {
            Some(match name {
                "SLURM_CLUSTER_NAME" => "hpc".to_owned(),
                "SLURM_JOB_ID" => "4".to_owned(),
                "SLURM_JOB_COMMENT" => format!("leasehold:{}", self.job),
                "SLURM_JOB_USER" => self.user.to_owned(),
                "SLURM_JOB_RESTART_COUNT" => self.restarts.to_string(),
                "SLURM_JOB_EXIT_CODE2" => self.exit.to_owned(),
                "SLURMD_NODENAME" => "n1".to_owned(),
                _ => return None,
            })
        })
    }
}

/// Joins the attempt of a run as a member on a node.
async fn join(cluster: &Cluster, job: &str, key: &str, instance: &str) {
    let client = cluster.home_session().client(&[PrincipalKind::Workload]).unwrap();
    let request = v1::BeginAttemptRequest {
        job: job.to_owned(),
        key: key.to_owned(),
        supersede: false,
        ..Default::default()
    };
    let mut jobs: JobServiceClient<_> = client.jobs();
    let began = jobs.begin_attempt(request).await.unwrap().into_inner();
    let secret = crate::secret::Secret::random().unwrap();
    let request = v1::JoinAttemptRequest {
        job: job.to_owned(),
        attempt: began.attempt.unwrap().number,
        instance: instance.to_owned(),
        session_digest: secret.digest().0.to_vec(),
        ticket: began.ticket,
    };
    let session = cluster.home_session();
    let chosen = session.choose(&[PrincipalKind::Workload]).unwrap();
    let channel = session.connector(&chosen).unwrap().0.channel();
    MemberServiceClient::new(channel).join_attempt(request).await.unwrap();
}

// Proves law 29.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_epilog_does_not_end_the_requeued_run() {
    let cluster = Cluster::start().await;
    let job = cluster.job(CONTROLLER).await;
    let first = Environment::of(&job);
    cluster.prolog(&first).await;
    cluster.prolog(&first).await;
    assert_eq!(
        cluster.attempts(&job).await,
        ["slurm:hpc:4:0 ATTEMPT_STATE_RUNNING"],
        "a prolog that runs twice begins one attempt"
    );
    // As measured, the environment of the epilog of run 0 has the count of the next run.
    let second = Environment { restarts: 1, ..first.clone() };
    cluster.epilog(&second).await;
    assert_eq!(cluster.attempts(&job).await, ["slurm:hpc:4:0 OUTCOME_INTERRUPTED"]);
    cluster.prolog(&second).await;
    let both = ["slurm:hpc:4:0 OUTCOME_INTERRUPTED", "slurm:hpc:4:1 ATTEMPT_STATE_RUNNING"];
    assert_eq!(cluster.attempts(&job).await, both);
    // The report about the end of run 0 was kept, and is sent now.
    let noted = NotedRun { job: job.parse().unwrap(), key: "slurm:hpc:4:0".into(), restarts: 0 };
    let late = RunReport::ended(&second.read().unwrap().unwrap(), Some(&noted), cluster.session.now().wall);
    let spool = Spool::open(&cluster.to.spool, note).unwrap();
    spool.keep(late.unwrap()).unwrap();
    assert!(send_all(&spool, None, &cluster.session).await.unwrap());
    assert_eq!(cluster.attempts(&job).await, both);
    let end = Environment { exit: "3:0", ..second };
    cluster.epilog(&end).await;
    cluster.epilog(&end).await;
    assert_eq!(cluster.attempts(&job).await[1], "slurm:hpc:4:1 OUTCOME_FAILED");
    assert_eq!(cluster.seen(&job).await.attempts[1].detail, "Slurm job 4 on hpc, restart 1: exit code 3");
    assert_eq!(cluster.kept(), 0);
    cluster.home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_of_zero_drains_the_attempt() {
    let cluster = Cluster::start().await;
    let job = cluster.job(CONTROLLER).await;
    let run = Environment::of(&job);
    cluster.prolog(&run).await;
    join(&cluster, &job, "slurm:hpc:4:0", "n1.0").await;
    cluster.epilog(&run).await;
    assert_eq!(cluster.attempts(&job).await, ["slurm:hpc:4:0 ATTEMPT_STATE_DRAINING"]);
    // The node is released, so no process is left on it.
    let node = Cluster::session_of(&cluster.home, "node");
    node_epilog(run.read(), &cluster.to_node(), &node).await.unwrap();
    let seen = cluster.seen(&job).await;
    assert_eq!(seen.attempts[0].outcome(), v1::Outcome::Interrupted);
    assert!(seen.attempts[0].detail.contains("n1 is released and nothing runs there"), "{seen:?}");
    assert_eq!(seen.state(), v1::JobState::Ready, "it may be requeued");
    cluster.home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_ends_only_its_own_members() {
    let cluster = Cluster::start().await;
    let job = cluster.job(CONTROLLER).await;
    let run = Environment::of(&job);
    cluster.prolog(&run).await;
    join(&cluster, &job, "slurm:hpc:4:0", "n10").await;
    let node = Cluster::session_of(&cluster.home, "node");
    node_epilog(run.read(), &cluster.to_node(), &node).await.unwrap();
    assert_eq!(cluster.attempts(&job).await, ["slurm:hpc:4:0 ATTEMPT_STATE_RUNNING"]);
    cluster.home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_and_a_comment_move_only_their_own_jobs() {
    let cluster = Cluster::start().await;
    let elsewhere = cluster.job("\"spiffe://dev.leasehold/slurm/other\"").await;
    cluster.prolog(&Environment::of(&elsewhere)).await;
    assert_eq!(cluster.attempts(&elsewhere).await, Vec::<String>::new());
    assert_eq!(cluster.kept(), 0, "it is not sent again");

    let job = cluster.job(CONTROLLER).await;
    let run = Environment::of(&job);
    cluster.prolog(&Environment { user: "mallory", ..run.clone() }).await;
    assert_eq!(cluster.attempts(&job).await, Vec::<String>::new(), "anyone can read a comment and copy it");
    cluster.prolog(&run).await;
    assert_eq!(cluster.attempts(&job).await, ["slurm:hpc:4:0 ATTEMPT_STATE_RUNNING"]);
    cluster.home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_reports_are_sent_when_the_daemon_is_back() {
    let mut cluster = Cluster::start().await;
    let (lost, ran) = (cluster.job(CONTROLLER).await, cluster.job(CONTROLLER).await);
    cluster.prolog(&Environment::of(&ran)).await;
    let folder: PathBuf = cluster.to.spool.clone();
    cluster.home.halt().await;
    let ended = Environment { exit: "0:9", ..Environment::of(&ran) };
    cluster.epilog(&ended).await;
    assert_eq!(cluster.kept(), 1);
    // This is another Slurm job, which ends before the daemon is back.
    cluster.prolog(&Environment::of(&lost)).await;
    cluster.epilog(&Environment { exit: "1:0", ..Environment::of(&lost) }).await;
    assert_eq!(cluster.kept(), 2, "two ends, no beginning");
    cluster.home.revive().await;
    let spool = Spool::open(&folder, note).unwrap();
    let lock = spool.lock();
    assert!(!send_all(&spool, None, &cluster.session).await.unwrap(), "another script has the lock");
    drop(lock);
    // One run began no attempt. Its begin could still be under way, so its end is sent again for a while.
    assert!(!send_all(&spool, None, &cluster.session).await.unwrap());
    assert_eq!(cluster.kept(), 1);
    let later = cluster.later("controller", SPOOL_BEGIN_LATEST + Duration::from_secs(1));
    assert!(send_all(&spool, None, &later).await.unwrap());
    assert_eq!(cluster.kept(), 0);
    assert_eq!(cluster.attempts(&ran).await, ["slurm:hpc:4:0 OUTCOME_FAILED"]);
    assert_eq!(cluster.seen(&ran).await.attempts[0].detail, "Slurm job 4 on hpc: ended by signal 9");
    assert_eq!(cluster.attempts(&lost).await, Vec::<String>::new());
    cluster.home.stop().await;
}

/// Lets `leasehold slurm resend` send a begin at the moment when the epilog of that run sends its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_begin_after_its_end_is_ended_or_not_sent() {
    let cluster = Cluster::start().await;
    let (under_way, not_sent) = (cluster.job(CONTROLLER).await, cluster.job(CONTROLLER).await);
    let spool = Spool::open(&cluster.to.spool, note).unwrap();
    for job in [&under_way, &not_sent] {
        let allocation = Environment::of(job).read().unwrap().unwrap();
        let id = "spiffe://dev.leasehold/trainer".parse().unwrap();
        spool.keep(RunReport::began(&allocation, id, cluster.session.now().wall)).unwrap();
    }
    let read = spool.pending().unwrap();
    for job in [&under_way, &not_sent] {
        cluster.epilog(&Environment { exit: "3:0", ..Environment::of(job) }).await;
    }
    assert_eq!(cluster.kept(), 2, "only the ends");
    // The pending call is answered now.
    let late = read.iter().find(|s| s.report.job.to_string() == under_way).unwrap();
    let reporter = reporter(&cluster.session).unwrap();
    reporter.send(&late.report).await;
    assert_eq!(cluster.attempts(&under_way).await, ["slurm:hpc:4:0 ATTEMPT_STATE_RUNNING"]);
    reporter.send_each(&read).await;
    assert_eq!(cluster.attempts(&not_sent).await, Vec::<String>::new());
    send_all(&spool, None, &cluster.session).await.unwrap();
    assert_eq!(cluster.attempts(&under_way).await, ["slurm:hpc:4:0 OUTCOME_FAILED"]);
    let later = cluster.later("controller", SPOOL_BEGIN_LATEST + Duration::from_secs(1));
    assert!(send_all(&spool, None, &later).await.unwrap());
    assert_eq!(cluster.kept(), 0);
    cluster.home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_report_of_a_node_ends_no_member_of_the_next_run() {
    let mut cluster = Cluster::start().await;
    let (left, requeued) = (cluster.job(CONTROLLER).await, cluster.job(CONTROLLER).await);
    for job in [&left, &requeued] {
        cluster.prolog(&Environment::of(job)).await;
        join(&cluster, job, "slurm:hpc:4:0", "n1").await;
    }
    let node = Cluster::session_of(&cluster.home, "node");
    cluster.home.halt().await;
    for job in [&left, &requeued] {
        let run = Environment { exit: "0:9", ..Environment::of(job) };
        node_epilog(run.read(), &cluster.to_node(), &node).await.unwrap();
    }
    let spool = Spool::open(&cluster.to_node().spool, note).unwrap();
    assert_eq!(spool.pending().unwrap().len(), 2, "one of each run");
    cluster.home.revive().await;
    // The next run already works on the same node when the report is sent.
    let next = Environment { restarts: 1, ..Environment::of(&requeued) };
    cluster.prolog(&next).await;
    join(&cluster, &requeued, "slurm:hpc:4:1", "n1").await;
    let is_away = async || cluster.seen(&left).await.attempts[0].members[0].state() == v1::MemberState::Away;
    let waits = async {
        while !is_away().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waits).await.unwrap();
    let later = cluster.later("node", 2 * SLURM_BUDGET + Duration::from_secs(1));
    assert!(send_all(&spool, None, &later).await.unwrap());
    assert!(spool.pending().unwrap().is_empty());
    assert_eq!(cluster.attempts(&left).await, ["slurm:hpc:4:0 OUTCOME_FAILED"]);
    let seen = cluster.seen(&requeued).await;
    let last = seen.attempts.last().unwrap();
    assert_eq!((last.key.as_str(), last.state()), ("slurm:hpc:4:1", v1::AttemptState::Running));
    assert!(last.members.iter().all(|m| m.outcome() == v1::Outcome::Unspecified), "{last:?}");
    cluster.home.stop().await;
}

fn allocation(exit: &str) -> Allocation {
    Allocation {
        job: JobId(4),
        run: SlurmRun { cluster: "hpc".into(), slurm_job: 4, restarts: 0, sluid: None },
        user: "ada".into(),
        account: None,
        node: None,
        exit: SlurmExit::parse(exit).unwrap(),
    }
}

#[test]
fn syslog_gets_a_line_for_success_and_the_reason_of_a_failure() {
    let id: SpiffeId = "spiffe://hpc.acme.example/slurm/ml-support/mallory".parse().unwrap();
    let began = RunReport::began(&allocation("0:0"), id.clone(), Wall(0));
    let ended = RunReport::ended(&allocation("3:0"), None, Wall(0)).unwrap();
    let job = v1::Job {
        id: JobId(7).to_string(),
        launcher: "spiffe://hpc.acme.example/slurm/ml-support/ada".into(),
        ..Default::default()
    };
    let away = Refusal::new(Reason::Unreachable, "cannot reach `leasehold.acme.example:8443`")
        .fix("check that the daemon runs, and the way to it");
    let lines = [
        log_page(&began, &Delivery::Done("attempt 1 of j-7 has begun".into())),
        log_page(&began, &Delivery::NotTheirs(not_theirs(&job, &id))),
        log_page(&ended, &Delivery::Kept(away.into())),
    ];
    insta::assert_snapshot!(lines.map(|page| page.to_string()).concat(), @r"
    leasehold: Slurm job 4 on hpc: attempt 1 of j-7 has begun
    leasehold: Slurm job 4 on hpc: its start is not reported: denied: the Slurm job's comment names j-00000000000000000000000007, which is not a job of spiffe://hpc.acme.example/slurm/ml-support/mallory
      code      NOT_A_MEMBER
      launcher  spiffe://hpc.acme.example/slurm/ml-support/ada
      fix       submit as the user who launched that job, or add this identity to members.join of its job file
    No attempt was begun. The Slurm job runs without access.
    leasehold: Slurm job 4 on hpc: its end could not be reported: error: cannot reach `leasehold.acme.example:8443`
      code   UNREACHABLE
      fix    check that the daemon runs, and the way to it
    The report stays in the spool: `leasehold slurm resend` sends it again.
    ");
}
