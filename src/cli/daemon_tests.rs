//! Tests of operator and launcher commands against a real daemon.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Parser;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Cli, Context, Contexts, Exit, Failure, Session, SvidFiles};
use crate::{
    clock::{Clock, LeaseTime, Now, SystemClock},
    daemon::{Daemon, Stopped},
    dev::{DevDeployment, FreePorts, Role, free_ports},
    ledger::{self, Dir, Head},
    name::{JobId, PrincipalKind},
    reason::Reason,
};

/// A deployment with a running daemon, and a context for it.
pub(super) struct Home {
    pub(super) folder: tempfile::TempDir,
    pub(super) deployment: DevDeployment,
    pub(super) clock: Arc<dyn Clock>,
    stop: CancellationToken,
    running: JoinHandle<Stopped>,
    _ports: FreePorts,
}

/// The system clock with timers that are twelve times as long. When many tests share two processors, a healthy daemon may need
/// that long to answer.
pub(super) struct Patient(SystemClock);

impl Patient {
    pub(super) fn clock() -> Arc<dyn Clock> {
        Arc::new(Patient(SystemClock::new()))
    }
}

impl Clock for Patient {
    fn now(&self) -> Now {
        self.0.now()
    }

    fn sleep_until(&self, deadline: LeaseTime) -> BoxFuture<'static, ()> {
        let now = self.0.now().lease;
        self.0.sleep_until(now.plus(deadline.since(now).saturating_mul(12)))
    }
}

impl Home {
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let root = folder.path().join("dev");
        let ports = free_ports().unwrap();
        let deployment = DevDeployment::set_up(&root, None, ports.ports, clock.clone()).unwrap();
        let daemon = Daemon::start(&deployment.config().unwrap()).await.unwrap();
        let files = |role| SvidFiles { cert: deployment.cert(role), key: deployment.key(role) }.into();
        let context = Context {
            server: daemon.grpc.to_string(),
            server_id: deployment.id(Role::Daemon).unwrap(),
            bundles: BTreeMap::from([(deployment.domain().unwrap(), deployment.bundle())]),
            issuer: None,
            login: None,
            identities: BTreeMap::from([
                (PrincipalKind::Workload, files(Role::Trainer)),
                (PrincipalKind::Launcher, files(Role::Launcher)),
                (PrincipalKind::Operator, files(Role::Operator)),
                (PrincipalKind::Verifier, files(Role::Files)),
            ]),
        };
        let path = folder.path().join("contexts.toml");
        Contexts::with("dev", context).save(&path).unwrap();
        let (stop, running) = (daemon.stopper(), tokio::spawn(daemon.run()));
        Home { folder, deployment, clock, stop, running, _ports: ports }
    }

    pub(super) fn spec(&self) -> PathBuf {
        self.deployment.path("job.toml")
    }

    pub(super) async fn run_as(&self, role: Option<PrincipalKind>, words: &[&str]) -> Result<Exit, Failure> {
        let cli = Cli::try_parse_from(std::iter::once(&"leasehold").chain(words)).unwrap();
        let contexts = self.folder.path().join("contexts.toml");
        cli.run_in(Session::of_test(Patient::clock(), contexts, role)).await
    }

    pub(super) async fn run(&self, words: &[&str]) -> Result<Exit, Failure> {
        self.run_as(None, words).await
    }

    /// Creates a job, and reads its id from the ledger.
    pub(super) async fn job(&self, key: &str) -> String {
        let spec = self.spec();
        let spec = spec.to_str().unwrap();
        let create = ["job", "create", "--spec", spec, "--idempotency-key", key];
        assert_eq!(self.run(&create).await.unwrap(), Exit::Ok);
        assert_eq!(
            self.run(&create).await.unwrap(),
            Exit::Ok,
            "the same key and specification are the same job"
        );
        let text = ledger_text(&self.deployment.path("state"));
        let id = text.match_indices("\"j-").filter_map(|(at, _)| text.get(at + 1..at + 29)).last().unwrap();
        id.parse::<JobId>().unwrap().to_string()
    }

    /// Stops the daemon, and keeps its files.
    pub(super) async fn halt(&mut self) {
        self.stop.cancel();
        assert_eq!((&mut self.running).await.unwrap(), Stopped::InOrder);
    }

    /// Starts a new daemon with the same folder and ports.
    pub(super) async fn revive(&mut self) {
        let daemon = Daemon::start(&self.deployment.config().unwrap()).await.unwrap();
        (self.stop, self.running) = (daemon.stopper(), tokio::spawn(daemon.run()));
    }

    pub(super) async fn stop(self) -> (tempfile::TempDir, PathBuf) {
        self.stop.cancel();
        assert_eq!(self.running.await.unwrap(), Stopped::InOrder);
        (self.folder, self.deployment.path("state"))
    }
}

pub(super) fn ledger_text(state: &Path) -> String {
    let mut files: Vec<_> = fs::read_dir(state).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "jsonl"));
    files.sort();
    files.iter().map(|f| fs::read_to_string(f).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn can_i_asks_for_others_as_someone_who_may() {
    let home = Home::start().await;
    let trainer = home.deployment.id(Role::Trainer).unwrap().to_string();
    let launcher = home.deployment.id(Role::Launcher).unwrap().to_string();
    let ask = ["can-i", "CreateJob", "dev", "--for", &launcher];
    assert_eq!(home.run(&ask).await.unwrap(), Exit::Ok);
    let ask = ["can-i", "CreateJob", "dev", "--for", &trainer];
    assert_eq!(home.run_as(Some(PrincipalKind::Operator), &ask).await.unwrap(), Exit::Ok);
    let ask = ["can-i", "CreateJob", "dev", "--for", &launcher];
    let refused = home.run_as(Some(PrincipalKind::Workload), &ask).await.unwrap_err().render();
    assert!(refused.contains("--as operator"), "{refused}");
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_reads_revokes_locks_and_unlocks() {
    let home = Home::start().await;
    for words in [
        &["whoami"][..],
        &["whoami", "-o", "json"],
        &["doctor"],
        &["job", "list"],
        &["lease", "list", "--all"],
        &["lock", "list"],
        &["catalog", "reload", "--dry-run"],
        &["catalog", "reload"],
    ] {
        assert_eq!(home.run(words).await.unwrap(), Exit::Ok, "{words:?}");
    }
    let spec = home.spec();
    assert_eq!(home.run(&["job", "check", spec.to_str().unwrap()]).await.unwrap(), Exit::Ok);
    let job = home.job("first").await;
    assert_eq!(home.run(&["job", "show", &job]).await.unwrap(), Exit::Ok);

    let revoke = ["revoke", &job, "--reason", "wrong data"];
    assert_eq!(home.run(&[&revoke[..], &["--dry-run"]].concat()).await.unwrap(), Exit::Ok);
    assert_eq!(home.run(&revoke).await.unwrap(), Exit::Ok);
    assert_eq!(
        home.run(&["job", "show", &job, "--watch"]).await.unwrap(),
        Exit::Ended,
        "a revoked job is closed"
    );

    let lock = ["lock", "dataset:dev/data@v1", "--reason", "recalled"];
    assert_eq!(home.run(&lock).await.unwrap(), Exit::Ok);
    let refused = home.run(&["job", "create", "--spec", spec.to_str().unwrap()]).await.unwrap_err();
    assert_eq!((refused.reason, refused.exit), (Some(Reason::Locked), Exit::Denied), "{}", refused.render());
    assert!(refused.render().ends_with("No job was created, no access was given."));
    let mistyped = home.run(&["lock", "dataset:dev/dta", "--reason", "recalled"]).await.unwrap_err();
    assert_eq!((mistyped.reason, mistyped.exit), (Some(Reason::NameUnknown), Exit::Failure));
    assert!(mistyped.render().contains("dataset:dev/data"), "{}", mistyped.render());
    let all = home.run(&["lock", "domain:dev.leasehold", "--reason", "incident"]).await.unwrap_err();
    assert_eq!((all.reason, all.exit), (Some(Reason::OperatorsLockedOut), Exit::Denied));
    assert!(all.render().contains("--locks-out 'spiffe://dev.leasehold/people/*'"), "{}", all.render());
    let unlock = ["unlock", "dataset:dev/data@v1", "--reason", "good again"];
    assert_eq!(home.run(&unlock).await.unwrap(), Exit::Ok);
    assert_eq!(home.run(&unlock).await.unwrap_err().reason, Some(Reason::LockNotFound));
    home.job("second").await;
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launcher_begins_an_attempt_and_gets_a_ticket_file() {
    let home = Home::start().await;
    let launcher = Some(PrincipalKind::Launcher);
    let spec = home.deployment.path("launched.toml");
    let text = fs::read_to_string(home.spec()).unwrap();
    fs::write(&spec, format!("{text}\n[members]\njoin = [\"spiffe://dev.leasehold/*\"]\n")).unwrap();
    let create = ["job", "create", "--spec", spec.to_str().unwrap()];
    assert_eq!(home.run_as(launcher, &create).await.unwrap(), Exit::Ok);
    let ledger = ledger_text(&home.deployment.path("state"));
    let at = ledger.rfind("\"j-").unwrap();
    let (job, file) = (&ledger[at + 1..at + 29], home.folder.path().join("ticket"));
    let file = file.to_str().unwrap();
    let member = "spiffe://dev.leasehold/trainer";
    let begin = ["job", "begin", job, "--attempt-key", "run-1", "--member", member, "--ticket-to", file];
    assert_eq!(home.run_as(launcher, &begin).await.unwrap(), Exit::Ok);
    let text = fs::read_to_string(file).unwrap();
    assert!(crate::secret::Secret::from_text(text.trim()).is_some(), "it is no ticket");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // An existing file is not overwritten.
    let refused = home.run_as(launcher, &begin).await.unwrap_err();
    assert!(refused.render().contains("cannot be written"), "{}", refused.render());
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_command_is_refused_with_its_reason() {
    let home = Home::start().await;
    let launcher = Some(PrincipalKind::Launcher);
    let refused = home.run_as(launcher, &["lock", "tenant:dev", "--reason", "x"]).await.unwrap_err();
    assert_eq!(refused.exit, Exit::Denied, "{}", refused.render());
    let you = refused.facts.iter().filter(|(label, _)| label == "you").count();
    assert_eq!(you, 1, "{}", refused.render());
    let absent = JobId(7).to_string();
    let refused = home.run(&["job", "show", &absent]).await.unwrap_err();
    assert_eq!((refused.reason, refused.exit), (Some(Reason::JobNotFound), Exit::Failure));
    let refused = home.run(&["revoke", &absent, "--reason", "x"]).await.unwrap_err();
    assert_eq!(refused.reason, Some(Reason::JobNotFound));
    let token = home.folder.path().join("token");
    fs::write(&token, "a.b.c").unwrap();
    let check = ["token", "check", token.to_str().unwrap(), "--audience", "spiffe://dev.leasehold/files"];
    let refused = home.run(&check).await.unwrap_err();
    assert_eq!(refused.exit, Exit::VerificationFailed, "{}", refused.render());
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_verify_finds_a_flipped_byte() {
    let home = Home::start().await;
    let job = home.job("first").await;
    assert_eq!(home.run(&["job", "close", &job, "--reason", "done looking"]).await.unwrap(), Exit::Ok);
    assert_eq!(home.run(&["audit", "tail", "--from", "1", "--no-follow"]).await.unwrap(), Exit::Ok);
    let contexts = home.folder.path().join("contexts.toml");
    let clock = home.clock.clone();
    let (_folder, state) = home.stop().await;
    let verify = async |head: Option<&str>| {
        let mut words = vec!["leasehold", "audit", "verify", state.to_str().unwrap()];
        words.extend(head.into_iter().flat_map(|h| ["--head", h]));
        Cli::try_parse_from(words)
            .unwrap()
            .run_in(Session::of_test(clock.clone(), contexts.clone(), None))
            .await
    };
    assert_eq!(verify(None).await.unwrap(), Exit::Ok);
    let Head { index, digest } = ledger::verify(&Dir::at(&state), None).unwrap().head;
    assert_eq!(verify(Some(&format!("{index}:{digest}"))).await.unwrap(), Exit::Ok);
    let later = format!("{}:{digest}", index + 1);
    assert_eq!(
        verify(Some(&later)).await.unwrap_err().exit,
        Exit::VerificationFailed,
        "the tail was cut off"
    );

    let segment = fs::read_dir(&state).unwrap().map(|e| e.unwrap().path());
    let segment = segment.into_iter().find(|f| f.extension().is_some_and(|e| e == "jsonl")).unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).unwrap();
    assert_eq!(verify(None).await.unwrap_err().exit, Exit::VerificationFailed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_daemon_is_unreachable() {
    let home = Home::start().await;
    home.stop.cancel();
    while !home.running.is_finished() {
        tokio::task::yield_now().await;
    }
    let failure = home.run(&["whoami"]).await.unwrap_err();
    assert_eq!((failure.reason, failure.exit), (Some(Reason::Unreachable), Exit::Failure));
    assert_eq!(home.run(&["doctor"]).await.unwrap(), Exit::Failure);
}
