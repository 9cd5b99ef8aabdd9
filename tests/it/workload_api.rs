//! The SPIFFE Workload API as a source: what the daemon takes from it, what it discards, and what stops the daemon.

use std::{sync::Arc, time::Duration};

use leasehold::{
    clock::Clock,
    identity::{
        IdentitySource, NoIdentity, Pick, SourceState, Trust, WorkloadOptions, WorkloadSource,
        wait_for_identity,
    },
    limits,
    link::{Connector, Endpoint},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    harness::*,
    workload::{Agent, der, entry, wire::X509svid},
};

const ID: &str = "spiffe://k8s.acme.example/ns/ml/job/tuner";
const FOREIGN: &str = "people.acme.example";
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// A source that follows its own agent, with a clock that stands still.
struct Case {
    agent: Agent,
    clock: Arc<TestClock>,
    authority: Authority,
    foreign: Authority,
    source: Arc<WorkloadSource>,
    stop: CancellationToken,
}

impl Case {
    fn start() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut WorkloadOptions)) -> Self {
        let agent = Agent::start();
        let clock = Arc::new(TestClock::new());
        let mut options = WorkloadOptions::new(agent.uri().parse().unwrap());
        change(&mut options);
        let source = Arc::new(WorkloadSource::new(options, clock.clone()));
        let stop = CancellationToken::new();
        tokio::spawn(source.clone().follow(stop.clone()));
        let (authority, foreign) = (Authority::new("k8s.acme.example", NOW), Authority::new(FOREIGN, NOW));
        Case { agent, clock, authority, foreign, source, stop }
    }

    fn entry_of(&self, id: &str) -> X509svid {
        let svid = self.authority.svid(id, self.clock.now().wall);
        entry(id, &svid.cert, &svid.key, &self.authority.pem)
    }

    fn federated(&self) -> [(&'static str, Vec<u8>); 1] {
        [("spiffe://people.acme.example", der(&self.foreign.pem))]
    }

    fn say_good(&self) {
        self.agent.say(vec![self.entry_of(ID)], &self.federated());
    }

    async fn until(&self, what: &str, is: impl Fn(&Trust) -> bool) -> Arc<Trust> {
        eventually(what, async || is(&self.source.current())).await;
        self.source.current()
    }

    /// The same, with a clock that advances.
    async fn within(&self, span: Duration, what: &str, is: impl Fn(&Trust) -> bool) -> Arc<Trust> {
        self.clock.pass_until(what, span, async || is(&self.source.current())).await;
        self.source.current()
    }

    async fn good(&self) -> Arc<Trust> {
        self.say_good();
        self.until("a first SVID", |t| t.svid.is_some() && t.standing == SourceState::Good).await
    }

    /// Waits until a message that changes nothing must have been processed.
    async fn next_is_taken(&self) -> Arc<Trust> {
        let before = self.source.current().revision;
        self.say_good();
        self.until("the next message", |t| t.revision > before).await
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn serial(trust: &Trust) -> String {
    trust.svid.as_ref().unwrap().leaf().serial.clone()
}

// Proves case H01.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_carries_the_header() {
    let case = Case::start();
    case.good().await;
    assert_eq!(case.agent.headers(), [Some("true".to_owned())]);
    for code in [Code::InvalidArgument, Code::Unimplemented] {
        let case = Case::start();
        case.agent.refuse(code, "no");
        let trust = case.until("the end", |t| matches!(t.standing, SourceState::Ended { .. })).await;
        assert!(trust.standing.why().unwrap().contains(&format!("{code:?}: no")), "{trust:?}");
        let asked = case.agent.calls();
        case.clock.pass(10 * MINUTE / 10).await;
        assert_eq!(case.agent.calls(), asked, "{code:?} is asked again");
        let now = case.clock.now().wall;
        assert!(case.source.current().check(now).is_err());
        // An operator who repaired it asks for a retry.
        case.say_good();
        case.source.reload().unwrap();
        case.until("an SVID", |t| t.check(now).is_ok()).await;
    }
}

// Proves case H01.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_is_asked_again_ever_slower() {
    for code in [Code::Unavailable, Code::PermissionDenied, Code::Internal] {
        let case = Case::start();
        case.agent.refuse(code, "not now");
        eventually("a first call", async || case.agent.calls() > 0).await;
        // Calls take real time while the clock advances, so the test waits for this many, and checks that there are not more.
        case.clock.pass_until("the first calls", 10 * MINUTE, async || case.agent.calls() >= 8).await;
        case.clock.pass(MINUTE).await;
        let first = case.agent.calls();
        case.clock.pass(MINUTE).await;
        let second = case.agent.calls() - first;
        assert!(second <= 30, "{code:?}: {second} calls in a later minute");
        case.clock.pass_until("more of them", 10 * MINUTE, async || case.agent.calls() >= first + 8).await;
        case.say_good();
        case.within(MINUTE, "an SVID", |t| t.standing == SourceState::Good && t.svid.is_some()).await;
    }
}

// Proves case H01.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_refuses_slowly_is_asked_less_often() {
    let case = Case::start();
    let mut took = Duration::ZERO;
    for turn in 1..=8 {
        case.agent.hesitate();
        took = case.clock.pass_until("a call", MINUTE, async || case.agent.calls() == turn).await;
        case.clock.advance(Duration::from_secs(1));
        let why = format!("not now, {turn}");
        case.agent.refuse(Code::Unavailable, &why);
        case.until("the refusal", |t| t.standing.why().is_some_and(|said| said.contains(&why))).await;
    }
    assert!(took >= Duration::from_secs(2), "asked again after {took:?}");
}

// Proves case H03.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_message_leaves_out_is_withdrawn() {
    let case = Case::start();
    let trust = case.good().await;
    let domain = FOREIGN.parse().unwrap();
    assert_eq!(trust.bundles.root_count(&domain), Some(1));
    let revision = trust.bundles.revision();
    case.agent.say(vec![case.entry_of(ID)], &[]);
    let trust = case.until("the redaction", |t| t.bundles.root_count(&domain).is_none()).await;
    assert!(trust.bundles.revision() > revision, "live connections must be looked at again");
    assert!(trust.svid.is_some());
}

// Proves case H03.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_ends_is_opened_again_at_once() {
    let case = Case::start();
    let first = serial(&*case.good().await);
    case.clock.pass(Duration::from_secs(2)).await;
    let asked = case.agent.calls();
    case.agent.close_streams();
    // The clock stands still, so no waiting time passes.
    eventually("another call", async || case.agent.calls() > asked).await;
    case.say_good();
    case.until("the next state", |t| serial(t) != first).await;
}

// Proves case H03, case 6.7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hangs_up_silently_is_away() {
    let case = Case::with(|options| options.outage_max = MINUTE);
    let first = serial(&*case.good().await);
    case.agent.hang_up();
    let trust = case.within(MINUTE, "the outage", |t| matches!(t.standing, SourceState::Stale { .. })).await;
    assert_eq!(serial(&trust), first, "its last state is used for a while");
    assert!(trust.standing.why().unwrap().contains("sent nothing"), "{trust:?}");
    let trust =
        case.within(2 * MINUTE, "the limit", |t| matches!(t.standing, SourceState::GivenUp { .. })).await;
    assert_eq!((trust.svid.is_none(), trust.bundles.domains().count()), (true, 0));
    case.say_good();
    case.within(MINUTE, "an answer", |t| t.check(case.clock.now().wall).is_ok()).await;
}

// Proves case H03.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_agent_is_asked_again_before_our_svid_ends() {
    let case = Case::start();
    let trust = case.good().await;
    let (first, end) = (serial(&trust), trust.svid.as_ref().unwrap().not_after());
    // Another agent takes the first one's place at the socket. The first one hangs, and still has our stream.
    let next = Agent::start();
    std::fs::remove_file(case.agent.socket()).unwrap();
    std::os::unix::fs::symlink(next.socket(), case.agent.socket()).unwrap();
    let left = end.since(case.clock.now().wall);
    let say = |case: &Case| next.say(vec![case.entry_of(ID)], &case.federated());
    say(&case);
    case.clock.advance(left / 2);
    case.clock.pass(Duration::from_secs(5)).await;
    assert_eq!(next.calls(), 0, "half of its life is left: an issuer renews it about now");
    case.clock.advance(left / 4);
    let trust = case.within(MINUTE, "the next SVID", |t| serial(t) != first).await;
    assert_eq!(trust.standing, SourceState::Good);
    // It is late again, and the source does not ask without end while an agent answers.
    let left = trust.svid.as_ref().unwrap().not_after().since(case.clock.now().wall);
    let asked = next.calls();
    case.clock.advance(left * 7 / 8);
    case.clock.pass(MINUTE).await;
    assert!(next.calls() <= asked + 2, "{} calls", next.calls());
    assert!(trust.check(case.clock.now().wall).is_ok());
}

// Proves case H04.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_svid_is_ours_unless_another_is_picked() {
    let ids = ["spiffe://k8s.acme.example/a", "spiffe://k8s.acme.example/b", "spiffe://k8s.acme.example/c"];
    for (pick, wanted) in [
        (Pick::First, Some(ids[0])),
        (Pick::Hint("internal".into()), Some(ids[1])),
        (Pick::Id(ids[2].parse().unwrap()), Some(ids[2])),
        (Pick::Hint("external".into()), None),
    ] {
        let case = Case::with(|options| options.pick = pick.clone());
        let mut entries: Vec<_> = ids.iter().map(|id| case.entry_of(id)).collect();
        for entry in &mut entries[1..] {
            entry.hint = "internal".into();
        }
        case.agent.say(entries, &[]);
        let trust = case.until("an answer", |t| t.revision > 1).await;
        assert_eq!(trust.svid.as_ref().map(|s| s.spiffe_id().as_str()), wanted, "{pick:?}");
        if wanted.is_none() {
            let why = trust.standing.why().unwrap();
            assert!(why.contains("hint `external`") && why.contains("/b (hint internal)"), "{why}");
        }
    }
}

// Proves case H05.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incomplete_message_is_discarded() {
    let case = Case::start();
    let before = serial(&*case.good().await);
    let other = Authority::new("other.example", NOW);
    type Change = fn(&mut X509svid);
    let changes: [(&str, Change); 8] = [
        ("spiffe_id", |e| e.spiffe_id.clear()),
        ("x509_svid", |e| e.x509_svid.clear()),
        ("x509_svid_key", |e| e.x509_svid_key.clear()),
        ("bundle", |e| e.bundle.clear()),
        ("x509_svid", |e| e.x509_svid.truncate(40)),
        ("the key of another", |e| {
            let other = Authority::new("k8s.acme.example", NOW).svid(ID, NOW);
            e.x509_svid_key = entry(ID, &other.cert, &other.key, "").x509_svid_key;
        }),
        ("the id of another", |e| e.spiffe_id = "spiffe://k8s.acme.example/somebody/else".into()),
        ("bundle", |e| e.bundle = vec![0x30, 0x03, 0x02, 0x01, 0x01]),
    ];
    let revision = case.source.current().revision;
    for (what, change) in changes {
        let mut bad = case.entry_of(ID);
        change(&mut bad);
        // After a good entry, too, because the message counts as a whole.
        let svids = if what == "spiffe_id" { vec![case.entry_of(ID), bad] } else { vec![bad] };
        case.agent.say(svids, &[("spiffe://other.example", der(&other.pem))]);
        // A stream is read in order, so the next good message below shows that none of these is still waiting.
        let trust = case.until("the discarding", |t| matches!(t.standing, SourceState::Stale { .. })).await;
        assert_eq!((serial(&trust), trust.revision), (before.clone(), revision), "{what}");
        assert!(matches!(trust.standing, SourceState::Stale { .. }), "{what}: {trust:?}");
        assert_eq!(trust.bundles.root_count(&"other.example".parse().unwrap()), None, "{what}");
    }
    case.agent.say(Vec::new(), &[]);
    let trust = case.next_is_taken().await;
    assert_eq!(trust.revision, revision + 1, "only the good message changed anything");
    assert_eq!(case.agent.calls(), 1, "the stream went on through all of it");
}

// Proves case H06.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permission_denied_ends_the_use_of_the_svid() {
    let case = Case::with(|options| options.outage_max = 10 * MINUTE);
    case.good().await;
    case.agent.refuse(Code::PermissionDenied, "no identity issued");
    let trust = case.until("the withdrawal", |t| t.svid.is_none()).await;
    let SourceState::Ended { why, .. } = &trust.standing else { panic!("{trust:?}") };
    assert!(why.contains("registration entry") && why.contains("uid "), "{why}");
    assert!(trust.check(case.clock.now().wall).is_err());
    assert_eq!(trust.bundles.domains().count(), 2, "who is connected is still known");
    let trust = case
        .within(11 * MINUTE, "the end of the roots", |t| matches!(t.standing, SourceState::GivenUp { .. }))
        .await;
    assert_eq!(trust.bundles.domains().count(), 0, "old roots are not kept for ever");
    case.say_good();
    case.within(MINUTE, "a new identity", |t| t.check(case.clock.now().wall).is_ok()).await;
}

// Proves case H07.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_handshake_uses_a_rotated_svid_and_bundle() {
    let agent = Agent::start();
    let mut world = World::prepared(|_| {});
    world.identity_from(&agent.uri());
    let say = |world: &World, domains: &[&str]| {
        let svid = world.svid(DAEMON);
        let federated: Vec<_> = domains
            .iter()
            .map(|d| (format!("spiffe://{d}"), der(&world.authority(&format!("spiffe://{d}/x")).pem)))
            .collect();
        let federated: Vec<_> = federated.iter().map(|(id, der)| (id.as_str(), der.clone())).collect();
        agent.say(vec![entry(DAEMON, &svid.cert, &svid.key, &world.authority(DAEMON).pem)], &federated);
        svid.sha256()
    };
    let first = say(&world, &["k8s.acme.example", "people.acme.example"]);
    world.restart().await;
    let presented = async |world: &World| {
        let worker = world.svid(WORKER);
        let endpoint = Endpoint::new(&world.daemon().grpc.to_string(), DAEMON.parse().unwrap()).unwrap();
        let connector = Connector::new(world.source(&worker), world.clock.clone(), endpoint);
        let dialed = connector.connect(leasehold::link::Alpn::Http2).await.unwrap();
        *dialed.server.x5t_s256()
    };
    assert_eq!(presented(&world).await, first);
    let operator = world.client(OPERATOR).await;
    let worker = world.working().await;

    // After a rotation, the people's trust domain is no longer federated: its live connection ends, the others stay.
    let second = say(&world, &["k8s.acme.example"]);
    assert_ne!(first, second);
    eventually("the rotation", async || presented(&world).await == second).await;
    soon("the end of the foreign connection", async {
        while operator.operators().who_am_i(leasehold::proto::v1::WhoAmIRequest {}).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let credentials = world.svid(OPERATOR);
    assert!(world.connector(&credentials).connected_channel().await.is_err());
    worker.issue(leasehold::proto::v1::Half::Reading).await;
}

// Proves case H08.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_foreign_bundle_costs_only_its_domain() {
    let case = Case::start();
    let pem = der(&case.foreign.pem);
    let (a, b, c, d) = (
        "a.example".parse().unwrap(),
        "b.example".parse().unwrap(),
        "c.example".parse().unwrap(),
        "d.example".parse().unwrap(),
    );
    let both = [pem.clone(), der(&Authority::new("a.example", NOW).pem)].concat();
    let leaf = case.authority.svid(ID, NOW);
    case.agent.say(
        vec![case.entry_of(ID)],
        &[
            ("spiffe://a.example", both),
            ("b.example", pem.clone()),
            ("spiffe://B.example", pem.clone()),
            ("spiffe://b.example/", pem.clone()),
            ("spiffe://c.example", case.foreign.pem.clone().into_bytes()),
            ("spiffe://d.example", [der(&leaf.cert), pem.clone()].concat()),
            // Our own bundle is the one that came with our SVID.
            ("spiffe://k8s.acme.example", [pem.clone(), pem].concat()),
        ],
    );
    let trust = case.until("a state", |t| t.svid.is_some()).await;
    let count = |domain| trust.bundles.root_count(domain);
    assert_eq!(count(&a), Some(2), "concatenated DER");
    assert_eq!(count(&b), None, "no other spelling of the key");
    assert_eq!(count(&c), Some(0), "PEM is no DER: no peer of it is trusted");
    assert_eq!(count(&d), Some(1), "what is no signing certificate is left out");
    assert_eq!(count(&"k8s.acme.example".parse().unwrap()), Some(1));
}

// Proves case 6.7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_survived_until_the_svids_end() {
    let case = Case::start();
    let first = serial(&*case.good().await);
    case.agent.die();
    case.within(MINUTE, "the outage", |t| matches!(t.standing, SourceState::Stale { .. })).await;
    let step = async |span: Duration| {
        case.clock.advance(span);
        tokio::time::sleep(Duration::from_millis(20)).await;
        case.source.current()
    };
    let trust = step(20 * HOUR).await;
    assert!(trust.check(case.clock.now().wall).is_ok(), "{trust:?}");
    assert_eq!((serial(&trust), trust.bundles.domains().count()), (first, 2));
    let trust = step(4 * HOUR + MINUTE).await;
    assert!(trust.check(case.clock.now().wall).unwrap_err().to_string().contains("expired at"), "{trust:?}");
    step(HOUR + MINUTE).await;
    let trust = case.within(MINUTE, "the limit", |t| matches!(t.standing, SourceState::GivenUp { .. })).await;
    assert_eq!((trust.svid.is_none(), trust.bundles.domains().count()), (true, 0));
    case.agent.live();
    case.say_good();
    case.within(MINUTE, "the agent's return", |t| t.check(case.clock.now().wall).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_identity_is_waited_for() {
    let case = Case::start();
    case.agent.refuse(Code::PermissionDenied, "no identity issued");
    let (source, clock) = (case.source.clone(), case.clock.clone());
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let waiting = tokio::spawn(async move {
        wait_for_identity(&*source, &*clock, MINUTE, |why| told.send(why.to_owned()).unwrap()).await
    });
    let why = soon("what is waited for", hears.recv()).await.unwrap();
    assert!(
        why.contains("registration entry") && why.contains(&format!("pid {}", std::process::id())),
        "{why}"
    );
    case.clock.pass(Duration::from_secs(5)).await;
    case.say_good();
    case.clock.pass_until("its identity", MINUTE, async || waiting.is_finished()).await;
    assert_eq!(waiting.await.unwrap().unwrap().svid.as_ref().unwrap().spiffe_id().as_str(), ID);

    let case = Case::start();
    case.agent.refuse(Code::PermissionDenied, "no identity issued");
    let (source, clock) = (case.source.clone(), case.clock.clone());
    let waiting = tokio::spawn(async move { wait_for_identity(&*source, &*clock, MINUTE, |_| {}).await });
    case.clock.pass_until("the end of its patience", 2 * MINUTE, async || waiting.is_finished()).await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, NoIdentity::NotInTime { waited: MINUTE, .. }), "{error:?}");
}

const UNTIL_TOLD: &str = "echo up; while [ ! -e $HERE/go ]; do sleep 0.02; done; echo down";

/// The entry of a worker, with the bundle of the daemon's domain.
fn say_worker(agent: &Agent, world: &World) {
    let svid = world.svid(WORKER);
    let entry = entry(WORKER, &svid.cert, &svid.key, &world.authority(WORKER).pem);
    agent.say(vec![entry], &[("spiffe://leasehold.example", der(&world.authority(DAEMON).pem))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_takes_its_identity_from_an_agent() {
    let world = World::with(|setup| setup.real_clock = true).await;
    let agent = Agent::start();
    agent.refuse(Code::PermissionDenied, "no identity issued");
    let identity = format!("[context.it.identity.workload]\nworkload_api = \"{}\"\n", agent.uri());
    let mut wrapper = world.wrap_with(&identity, &job_toml("", ""), &["--identity-wait", "20s"], UNTIL_TOLD);
    wrapper.says("waiting up to 20 s for an identity: the SPIFFE agent at unix://").await;
    wrapper.says("ask the operators of SPIRE for a registration entry").await;
    say_worker(&agent, &world);
    wrapper.child_says("up").await;
    let job = wrapper.job().await;
    let operator = world.client(OPERATOR).await;
    for _ in 0..3 {
        say_worker(&agent, &world);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    let (job, attempt) = operator.stands(&job).await;
    assert_eq!((attempt.members.len(), job.live_leases), (1, 0));
    assert!(world.records().await.of("member.away").is_empty(), "a rotation is no absence");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_without_an_identity_says_whom_to_ask_and_starts_nothing() {
    let world = World::with(|setup| setup.real_clock = true).await;
    let agent = Agent::start();
    agent.refuse(Code::PermissionDenied, "no identity issued");
    let identity = format!("[context.it.identity.workload]\nworkload_api = \"{}\"\n", agent.uri());
    let mut wrapper =
        world.wrap_with(&identity, &job_toml("", ""), &["--identity-wait", "300ms"], "touch $HERE/started");
    assert_eq!(wrapper.exit().await, Some(125));
    let said = wrapper.stderr();
    assert!(said.contains("no identity was issued within") && said.contains("Nothing was started"), "{said}");
    assert!(!world.file("started").exists());
}

// Proves case 6.7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_without_its_identity_is_not_ready() {
    let agent = Agent::start();
    let mut world = World::prepared(|_| {});
    world.identity_from(&agent.uri());
    let say = |world: &World| {
        let svid = world.svid(DAEMON);
        let entry = entry(DAEMON, &svid.cert, &svid.key, &world.authority(DAEMON).pem);
        agent.say(vec![entry], &[("spiffe://k8s.acme.example", der(&world.authority(WORKER).pem))]);
    };
    say(&world);
    world.restart().await;
    let probe = world.daemon().probe;
    assert_eq!(world.http(probe, "/readyz").await, (200, "ok\n".to_owned()));
    let worker = world.working().await;
    agent.refuse(Code::PermissionDenied, "no identity issued");
    eventually("not ready", async || world.http(probe, "/readyz").await.0 == 503).await;
    let (_, body) = world.http(probe, "/readyz").await;
    assert!(body.starts_with("IDENTITY_UNAVAILABLE\n") && body.contains("registration entry"), "{body}");
    assert_eq!(world.http(probe, "/livez").await.0, 200);
    // A connected worker stays connected: its SVID is valid and its roots are known. No new peer can connect.
    worker.issue(leasehold::proto::v1::Half::Reading).await;
    let launcher = world.svid(LAUNCHER);
    assert!(world.connector(&launcher).connected_channel().await.is_err());
    // After the limit, no peer is trusted any more.
    world.time().pass(Duration::from_secs(3)).await;
    world.time().advance(26 * HOUR);
    world.time().pass(Duration::from_secs(3)).await;
    let (code, body) = world.http(probe, "/readyz").await;
    assert!(code == 503 && body.contains("longer than the limit"), "{code} {body}");
    say(&world);
    let ready = async || world.http(probe, "/readyz").await.0 == 200;
    world.time().pass_until("readiness", MINUTE, ready).await;
    let launcher = world.svid(LAUNCHER);
    world.connector(&launcher).connected_channel().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_repeats_itself_does_not_fill_the_log() {
    capture();
    let case = Case::start();
    let id = "spiffe://k8s.acme.example/ns/ml/repeated";
    let good = case.entry_of(id);
    case.agent.say(vec![good.clone()], &[]);
    case.until("a first SVID", |t| t.svid.is_some()).await;
    for turn in 1..=100 {
        let bad = format!("not-an-id-{turn}-of-a-flood");
        let unusable = X509svid { spiffe_id: bad.clone(), ..good.clone() };
        case.agent.say(vec![unusable], &[]);
        case.until("the discarding", |t| t.standing.why().is_some_and(|why| why.contains(&bad))).await;
        case.agent.say(vec![good.clone()], &[]);
        case.until("the SVID again", |t| t.standing == SourceState::Good).await;
    }
    let log = logged();
    let given = log.lines().filter(|line| line.contains("gave us our SVID") && line.contains(id)).count();
    assert_eq!(given, 1, "the same SVID is logged once");
    let discarded = log.lines().filter(|line| line.contains("-of-a-flood")).count();
    let most = limits::IDENTITY_LINES_LOGGED as usize;
    assert!((1..=most).contains(&discarded), "{discarded} lines");
}
