//! Access is decided again after a lock, a disabled or removed principal, and a change of policy. No workload widens its
//! access.

use std::time::Duration;

use leasehold::{
    limits,
    proto::v1::{self, Half, notice::Kind},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::*;

const LAUNCHER_ENTRY: &str = "[[principal]]\nmatch       = \"spiffe://k8s.acme.example/ns/ci/sa/launcher\"\nkind        = \"launcher\"\n";

/// Changes the catalog of acme, and returns the answer to the reload.
async fn change(world: &World, from: &str, to: &str, dry_run: bool) -> v1::ReloadCatalogResponse {
    let before = world.read("catalog.d/acme.toml");
    assert!(before.contains(from), "{from}");
    world.write("catalog.d/acme.toml", &before.replacen(from, to, 1));
    let platform = world.client(PLATFORM).await;
    platform.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run }).await.unwrap().into_inner()
}

/// Returns how a stream ended. The clock does not move meanwhile, so only the change can have ended it.
async fn end<T>(stream: &mut Streaming<T>) -> Refused {
    soon("the end of the stream", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a status"),
                Err(status) => return Refused::of(&status),
            }
        }
    })
    .await
}

async fn feed(gateway: &Client) -> Result<Streaming<v1::WatchFencesResponse>, Status> {
    let (tx, rx) = mpsc::channel(4);
    tx.send(v1::WatchFencesRequest { audience: GATEWAY.into(), tick: 1 }).await.unwrap();
    let stream = gateway.verifiers().watch_fences(ReceiverStream::new(rx)).await?.into_inner();
    // The client keeps its half open, so only the daemon can end the feed.
    std::mem::forget(tx);
    Ok(stream)
}

async fn tail(reader: &Client) -> Streaming<v1::TailLedgerResponse> {
    let request = v1::TailLedgerRequest { from_index: 1, no_follow: false, after: String::new() };
    reader.operators().tail_ledger(request).await.unwrap().into_inner()
}

async fn watch(client: &Client, job: &str) -> Streaming<v1::WatchJobResponse> {
    client.jobs().watch_job(v1::WatchJobRequest { job: job.into() }).await.unwrap().into_inner()
}

// ---------- open streams end at once ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_a_caller_ends_its_open_streams_at_once() {
    let world = World::start().await;
    let platform = world.client(PLATFORM).await;
    let worker = world.working().await;
    let (root, launcher) = ("spiffe://people.platform.example/ops/second", world.client(LAUNCHER).await);
    let mut tail = tail(&world.client(root).await).await;
    let mut feed = feed(&world.client(GATEWAY).await).await.unwrap();
    let mut watch = watch(&launcher, &worker.job).await;
    let mut alive = worker.stream.unwrap();
    // The worker comes before its launcher, whose lock ends the worker's leases too.
    for id in [root, GATEWAY, WORKER, LAUNCHER] {
        platform.lock(&format!("identity:{id}")).await.unwrap();
    }
    end(&mut tail).await.is(Code::PermissionDenied, "LOCKED");
    end(&mut feed).await.is(Code::PermissionDenied, "LOCKED");
    end(&mut watch).await.is(Code::PermissionDenied, "LOCKED");
    // The member gets the reason before its stream ends. A notice that its leases ended may come first.
    let mut notice = alive.notice().await;
    if notice.kind() == Kind::Reissue {
        notice = alive.notice().await;
    }
    assert_eq!((notice.kind(), notice.reason.as_str()), (Kind::Revoked, "LOCKED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_ends_the_streams_of_a_caller_that_it_refuses() {
    let world = World::start().await;
    let mut worker = world.working().await;
    let mut alive = worker.stream.take().unwrap();
    let mut watch = watch(&world.client(LAUNCHER).await, &worker.job).await;
    let mut feed = feed(&world.client(GATEWAY).await).await.unwrap();
    let verifies = "verifiers = [\"spiffe://k8s.acme.example/ns/data/sa/gateway\"]";
    change(&world, verifies, "verifiers = [\"spiffe://k8s.acme.example/ns/data/sa/next\"]", true).await;
    let workload = "identity = \"job\"\nroles    = [\"trainer\"]\n[[principal]]\nmatch = \"spiffe://hpc";
    let disabled = workload.replace("[\"trainer\"]\n", "[\"trainer\"]\ndisabled = true\n");
    change(&world, workload, &disabled, true).await;
    let launcher = LAUNCHER_ENTRY.replace("kind  ", "disabled = true\nkind  ");
    change(&world, LAUNCHER_ENTRY, &launcher, false).await;
    end(&mut feed).await.is(Code::NotFound, "AUDIENCE_UNKNOWN");
    end(&mut watch).await.is(Code::PermissionDenied, "POLICY_DENIED");
    end(&mut alive.rx).await.is(Code::PermissionDenied, "POLICY_DENIED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_is_decided_again_within_a_second() {
    assert!(limits::REAUTHORIZE <= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_caller_may_ask_who_it_is_and_nothing_else() {
    let world = World::start().await;
    let worker = world.working().await;
    let (platform, launcher) = (world.client(PLATFORM).await, world.client(LAUNCHER).await);
    let gateway = world.client(GATEWAY).await;
    let token = worker.issue(Half::Writing).await;
    for id in [LAUNCHER, GATEWAY, WORKER] {
        platform.lock(&format!("identity:{id}")).await.unwrap();
    }
    let locked =
        |answer: Result<(), Status>| Refused::of(&answer.unwrap_err()).is(Code::PermissionDenied, "LOCKED");
    locked(launcher.jobs().list_jobs(v1::ListJobsRequest::default()).await.map(drop));
    locked(launcher.jobs().get_job(v1::GetJobRequest { job: worker.job.clone() }).await.map(drop));
    locked(launcher.end(&worker.job, 1, v1::Outcome::Completed).await.map(drop));
    let close = v1::CloseJobRequest { job: worker.job.clone(), outcome: 0, reason: String::new() };
    locked(launcher.jobs().close_job(close).await.map(drop));
    locked(worker.end_self(v1::Outcome::Failed).await.map(drop));
    locked(feed(&gateway).await.map(drop));
    let ask = v1::IntrospectRequest { token: token.text.clone(), ..Default::default() };
    locked(gateway.verifiers().introspect(ask).await.map(drop));
    locked(gateway.verifiers().get_keys(v1::GetKeysRequest {}).await.map(drop));
    locked(launcher.operators().wait_durable(v1::WaitDurableRequest::default()).await.map(drop));
    for client in [&launcher, &gateway, &worker.client] {
        client.operators().who_am_i(v1::WhoAmIRequest {}).await.unwrap();
    }
}

// ---------- jobs of a refused launcher ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_ends_with_the_catalog_entry_of_the_launcher() {
    let cases = [
        ("disabled", LAUNCHER_ENTRY.replace("kind  ", "disabled = true\nkind  ")),
        ("removed", LAUNCHER_ENTRY.replace("ci/sa/launcher", "ci/sa/other")),
    ];
    for (what, to) in cases {
        let world = World::start().await;
        let gateway = world.client(GATEWAY).await;
        let mut worker = world.working().await;
        let token = worker.issue(Half::Reading).await;
        let good = world.read("catalog.d/acme.toml");
        let would = change(&world, LAUNCHER_ENTRY, &to, true).await;
        assert_eq!(would.ended, 1, "{what}: the dry run");
        token.is_live(&gateway).await;
        world.write("catalog.d/acme.toml", &good);
        let did = change(&world, LAUNCHER_ENTRY, &to, false).await;
        assert_eq!(did.ended, 1, "{what}");
        assert!(!token.seen_by(&gateway).await.active, "{what}");
        let no = refused(worker.try_issue(Half::Reading).await);
        no.is(Code::PermissionDenied, "POLICY_DENIED");
        assert!(no.text.contains(LAUNCHER), "{what}: {no:?}");
        Refused::of(&worker.rejoin().await.unwrap_err()).is(Code::PermissionDenied, "POLICY_DENIED");
        // When the change is undone, the worker may ask again, and the old token stays dead.
        world.write("catalog.d/acme.toml", &good);
        world.daemon().reload();
        worker.issue(Half::Reading).await.is_live(&gateway).await;
        assert!(!token.seen_by(&gateway).await.active, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_ends_if_the_launcher_may_not_act_for_the_human() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let ended = change(&world, "may_act_for = [\"human:*\"]", "may_act_for = [\"human:bob\"]", false).await;
    assert_eq!(ended.ended, 1);
    assert!(!token.seen_by(&gateway).await.active);
}

/// The count of a dry run is judged from the live leases, for each kind of change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_of_a_reload_counts_the_leases_that_would_end() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let worker = world.working().await;
    let tokens = worker.issue_both().await;
    let purposes = "purposes       = [\"support-tuning\", \"support-eval\"]";
    let would = change(&world, purposes, "purposes = [\"support-eval\"]", true).await;
    assert_eq!(would.ended, 2);
    for token in &tokens {
        token.is_live(&gateway).await;
    }
    let operator = world.client(PLATFORM).await;
    let ask = v1::ReloadCatalogRequest { dry_run: false };
    assert_eq!(operator.operators().reload_catalog(ask).await.unwrap().into_inner().ended, would.ended);
    let ask = v1::ReloadCatalogRequest { dry_run: true };
    assert_eq!(
        operator.operators().reload_catalog(ask).await.unwrap().into_inner().ended,
        0,
        "nothing is left"
    );
}

// ---------- a workload does not widen its access ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_process_creates_no_job() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let members = v1::Members { join: vec![SHARED.into()], ..Default::default() };
    let job = v1::JobSpec { members: Some(members), ..spec() };
    let worker = world.working_on(job.clone(), SHARED).await;
    let own = |name: &str| v1::JobSpec { name: name.into(), acting_for: String::new(), ..job.clone() };
    let no = refused(worker.client.create(own("wider"), "k").await);
    no.is(Code::PermissionDenied, "POLICY_DENIED");
    assert!(no.text.contains(&worker.job), "{no:?}");
    // It may not begin its earlier job either, as long as it is a member of someone else's.
    launcher.end(&worker.job, 1, v1::Outcome::Completed).await.unwrap();
    let before = worker.client.create(own("before"), "k2").await.unwrap().into_inner().job.unwrap().id;
    worker.client.begin(&before, "run-1").await.unwrap();
    let next = world.working_on(v1::JobSpec { name: "next".into(), ..job.clone() }, SHARED).await;
    refused(next.client.begin(&before, "run-1").await).is(Code::PermissionDenied, "POLICY_DENIED");
}

/// A job that a workload creates opens no more than the workload itself could open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_launches_no_job_that_it_could_not_hold() {
    let world = World::start().await;
    let narrow = "[[principal]]\nmatch = \"spiffe://hpc.acme.example/slurm/ml-support/narrow\"\nkind = \"workload\"\nroles = [\"creator\"]\n";
    let text = world.read("catalog.d/acme.toml");
    world.write("catalog.d/acme.toml", &text.replacen("[[principal]]", &format!("{narrow}[[principal]]"), 1));
    let rule = "@id(\"creators\") permit (principal is Leasehold::Workload, action == Leasehold::Action::\"CreateJob\", resource)\n\
                when { principal.roles.contains(\"creator\") };";
    world.write("policy/creators.cedar", rule);
    world.daemon().reload();
    let client = world.client("spiffe://hpc.acme.example/slurm/ml-support/narrow").await;
    let no = refused(client.create(v1::JobSpec { acting_for: String::new(), ..spec() }, "k").await);
    no.is(Code::PermissionDenied, "POLICY_DENIED");
}

/// The access of a job that a workload launched ends when the workload could no longer hold it itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_ends_if_its_launcher_could_not_hold_it() {
    const CREATOR: &str = "spiffe://hpc.acme.example/slurm/ml-support/creator";
    let world = World::start().await;
    let entry = format!(
        "[[principal]]\nmatch = \"{CREATOR}\"\nkind = \"workload\"\nroles = [\"trainer\", \"creator\"]\n"
    );
    let text = world.read("catalog.d/acme.toml");
    world.write("catalog.d/acme.toml", &text.replacen("[[principal]]", &format!("{entry}[[principal]]"), 1));
    world.daemon().reload();
    let (creator, gateway) = (world.client(CREATOR).await, world.client(GATEWAY).await);
    let job = v1::JobSpec { acting_for: String::new(), ..spec() };
    let job = creator.create(job, "k").await.unwrap().into_inner().job.unwrap().id;
    let ticket = creator.begin(&job, "run-1").await.unwrap().into_inner().ticket;
    let mut worker = Worker::join(world.client(WORKER).await, &job, 1, "rank-0", &ticket).await.unwrap();
    worker.keep_alive().await;
    let token = worker.issue(Half::Reading).await;
    token.is_live(&gateway).await;
    // The member itself may read on.
    let rule = "@id(\"no-creators\") forbid (principal is Leasehold::Workload, action == Leasehold::Action::\"read_dataset\", resource)\n\
                when { principal.roles.contains(\"creator\") };";
    world.write("policy/creators.cedar", rule);
    world.daemon().reload();
    assert!(!token.seen_by(&gateway).await.active);
    let no = refused(worker.try_issue(Half::Reading).await);
    no.is(Code::PermissionDenied, "POLICY_DENIED");
    assert!(no.text.contains(CREATOR), "{no:?}");
}

// ---------- who may join ----------

const ANY_POD: &str = "spiffe://k8s.acme.example/ns/ml/job/*";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_named_by_a_pattern_joins_with_a_ticket() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let members = v1::Members { join: vec![ANY_POD.into()], max: 3, ..Default::default() };
    let job = v1::JobSpec { members: Some(members), ..spec() };
    let job = launcher.create(job, "k").await.unwrap().into_inner().job.unwrap().id;
    let ticket = launcher.begin(&job, "run-1").await.unwrap().into_inner().ticket;
    let stranger = world.client(OTHER_WORKER).await;
    let no = Worker::join(stranger.clone(), &job, 1, "rank-0", "").await.err().unwrap();
    Refused::of(&no).is(Code::PermissionDenied, "TICKET_REQUIRED");
    Worker::join(world.client(WORKER).await, &job, 1, "rank-0", &ticket).await.unwrap();
    // A refusal does not bind the identity to the job.
    let own = v1::Members { join: vec![OTHER_WORKER.into()], ..Default::default() };
    let own = v1::JobSpec { name: "own".into(), members: Some(own), ..spec() };
    let own = launcher.create(own, "k2").await.unwrap().into_inner().job.unwrap().id;
    launcher.begin(&own, "run-1").await.unwrap();
    Worker::join(stranger, &own, 1, "rank-0", "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_named_by_a_pattern_gets_no_ticket() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let start = vec!["spiffe://hpc.acme.example/slurm/*".into(), ANY_POD.into(), SHARED.into()];
    let members = v1::Members { join: vec![ANY_POD.into(), SHARED.into()], start, ..Default::default() };
    let job = v1::JobSpec { members: Some(members), ..spec() };
    let job = launcher.create(job, "k").await.unwrap().into_inner().job.unwrap().id;
    for unnamed in [SCHEDULER, WORKER] {
        let began = world.client(unnamed).await.begin(&job, "run-1").await.unwrap().into_inner();
        assert_eq!((began.attempt.unwrap().number, began.ticket.as_str()), (1, ""), "{unnamed}");
    }
    for named in [LAUNCHER, SHARED] {
        let began = world.client(named).await.begin(&job, "run-1").await.unwrap().into_inner();
        assert!(!began.ticket.is_empty(), "{named}");
    }
}

// ---------- locks of the platform, leases on shared data ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_platform_lifts_a_lock_of_the_platform() {
    let mut world = World::start().await;
    let (ada, platform) = (world.client(OPERATOR).await, world.client(PLATFORM).await);
    platform.lock(TICKETS).await.unwrap();
    let refuses = async |ada: &Client| {
        let no = refused(ada.unlock(TICKETS).await);
        no.is(Code::PermissionDenied, "POLICY_DENIED");
        assert!(no.text.contains("platform") || no.facts.values().any(|v| v.contains(PLATFORM)), "{no:?}");
    };
    refuses(&ada).await;
    // Locking it again does not make the lock theirs, and shortens nothing.
    let request = v1::LockRequest {
        name: TICKETS.into(),
        reason: "ours".into(),
        ttl: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let lock = ada.operators().lock(request).await.unwrap().into_inner().lock.unwrap();
    assert_eq!((lock.by.as_str(), lock.until), (PLATFORM, None));
    refuses(&ada).await;
    world.restart().await;
    refuses(&world.client(OPERATOR).await).await;
    world.client(PLATFORM).await.unlock(TICKETS).await.unwrap();
    // They lift their own lock, and so does the platform.
    let ada = world.client(OPERATOR).await;
    ada.lock(TICKETS).await.unwrap();
    ada.unlock(TICKETS).await.unwrap();
    ada.lock(TICKETS).await.unwrap();
    world.client(PLATFORM).await.unlock(TICKETS).await.unwrap();
}

/// A world in which globex may read acme's tickets.
pub async fn sharing_world() -> World {
    World::with(share_tickets).await
}

/// Shares acme's tickets with globex, and lets acme's gateway serve globex.
pub fn share_tickets(setup: &mut Setup) {
    let acme = setup.catalog.get_mut("acme.toml").unwrap();
    *acme = acme
        .replacen(
            "owner          = \"data-tickets@acme.example\"\n",
            "owner = \"data-tickets@acme.example\"\nshared_with = [\"globex\"]\n",
            1,
        )
        .replacen("checks    = \"feed\"", "serves = [\"acme\", \"globex\"]\nchecks    = \"feed\"", 1);
    let globex = setup.catalog.get_mut("globex.toml").unwrap();
    *globex = globex.replace(
        "audience       = \"spiffe://k8s.globex.example/ns/data/sa/gateway\"",
        &format!("audience = \"{GATEWAY}\""),
    );
}

/// A worker of globex in a job that reads these datasets.
pub async fn globex_worker(world: &World, read: Vec<String>, key: &str) -> Worker {
    let launcher = world.client(GLOBEX_LAUNCHER).await;
    let id = format!("{GLOBEX_WORKER}-{key}");
    let members = v1::Members { join: vec![id.clone()], ..Default::default() };
    let job = v1::JobSpec {
        name: key.into(),
        read,
        write: Vec::new(),
        tune: None,
        acting_for: String::new(),
        members: Some(members),
        ..spec()
    };
    let job = launcher.create(job, key).await.unwrap().into_inner().job.unwrap().id;
    launcher.begin(&job, "run-1").await.unwrap();
    Worker::join(world.client(&id).await, &job, 1, "rank-0", "").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_sees_foreign_leases_on_its_shared_data() {
    let world = sharing_world().await;
    let worker = globex_worker(&world, vec![TICKETS.into(), "dataset:globex/reviews@v1".into()], "k").await;
    let (job, token) = (worker.job.clone(), worker.issue(Half::Reading).await);
    let ada = world.client(OPERATOR).await;
    let dry =
        v1::RevokeRequest { name: TICKETS.into(), reason: "r".into(), dry_run: true, ..Default::default() };
    assert_eq!(ada.operators().revoke(dry).await.unwrap().into_inner().ending.unwrap().behind, 1);
    for behind in [TICKETS, "dataset:acme/tickets", "tenant:acme"] {
        let request = v1::ListLeasesRequest { behind: behind.into(), ..Default::default() };
        let seen = ada.operators().list_leases(request).await.unwrap().into_inner().leases;
        assert_eq!(seen.len(), 1, "{behind}");
        assert_eq!((seen[0].id.as_str(), seen[0].tenant.as_str()), (token.lease.id.as_str(), "globex"));
        // The owner sees only its own data among the scopes.
        assert_eq!(
            seen[0].scopes.iter().map(|s| s.resource.as_str()).collect::<Vec<_>>(),
            [TICKETS],
            "{behind}"
        );
        assert_eq!((seen[0].holder.as_str(), seen[0].stood_at), (worker.client.id.as_str(), 0));
        assert!(seen[0].issued.is_some() && seen[0].expires.is_some());
    }
    for none in ["", "tenant:globex", "dataset:globex/reviews@v1", &format!("job:{job}")] {
        let request = v1::ListLeasesRequest { behind: none.into(), ..Default::default() };
        assert_eq!(ada.operators().list_leases(request).await.unwrap().into_inner().leases, [], "{none}");
    }
}

// ---------- operators who lock themselves out ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lock_shuts_out_the_operators_by_mistake() {
    let world = World::start().await;
    let platform = world.client(PLATFORM).await;
    for name in [
        "domain:people.platform.example",
        "identity-prefix:spiffe://people.platform.example/",
        "identity-prefix:spiffe://people.platform.example/ops/",
        &format!("identity:{PLATFORM}"),
        "domain:people.acme.example",
    ] {
        let no = refused(platform.lock(name).await);
        assert_eq!(no.reason, "OPERATORS_LOCKED_OUT", "{name}: {no:?}");
    }
    let locks =
        platform.operators().list_locks(v1::ListLocksRequest::default()).await.unwrap().into_inner().locks;
    assert_eq!(locks, []);
}

/// An operator in the catalog of the platform. Only the daemon's configuration gives it more rights.
const BREAK_GLASS: &str = "spiffe://people.platform.example/ops/break-glass";

async fn guarded_world() -> World {
    World::with(|setup| setup.policy = format!("break_glass = [\"{BREAK_GLASS}\"]")).await
}

async fn lock_out(by: &Client, name: &str, locks_out: &[&str]) -> Result<(), Status> {
    let locks_out = locks_out.iter().map(ToString::to_string).collect();
    let request = v1::LockRequest { name: name.into(), reason: "r".into(), locks_out, ..Default::default() };
    by.operators().lock(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_operators_is_confirmed_by_their_names() {
    let world = guarded_world().await;
    let platform = world.client(PLATFORM).await;
    let ops = "spiffe://people.platform.example/ops/*";
    for (name, wanted) in [
        ("domain:people.platform.example", ops),
        ("identity-prefix:spiffe://people.platform.example/", ops),
        ("domain:people.acme.example", "spiffe://people.acme.example/u/*"),
        (&format!("identity:{PLATFORM}"), PLATFORM),
    ] {
        for wrong in [&[][..], &["spiffe://people.platform.example/other/*"][..]] {
            let no = Refused::of(&lock_out(&platform, name, wrong).await.unwrap_err());
            no.is(Code::FailedPrecondition, "OPERATORS_LOCKED_OUT");
            assert!(no.facts["locked out"].contains(wanted), "{name}: {no:?}");
        }
    }
    let people = ["u", "models", "privacy", "emergency"]
        .map(|group| format!("spiffe://people.acme.example/{group}/*"));
    let people: Vec<&str> = people.iter().map(String::as_str).collect();
    lock_out(&platform, "domain:people.acme.example", &people).await.unwrap();
    // A lock on one operator needs no confirmation: it names the operator already.
    lock_out(&platform, "identity:spiffe://people.platform.example/ops/other", &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_break_glass_identity_lifts_every_lock() {
    let mut world = guarded_world().await;
    let platform = world.client(PLATFORM).await;
    let domain = "domain:people.platform.example";
    let locks = [domain, "identity-prefix:spiffe://people.platform.example/ops/", "tenant:acme"];
    for name in locks {
        let people = ["spiffe://people.platform.example/ops/*", "spiffe://people.platform.example/review/*"];
        lock_out(&platform, name, &people).await.ok();
    }
    let own = format!("identity:{BREAK_GLASS}");
    refused(platform.unlock(domain).await).is(Code::PermissionDenied, "LOCKED");
    world.restart().await;
    // It needs no catalog entry, and no change of the catalog takes its right away.
    let text = world.read("catalog.d/platform.toml");
    world.write("catalog.d/platform.toml", &text.replace("ops/*", "ops/root"));
    world.daemon().reload();
    let glass = world.client(BREAK_GLASS).await;
    let seen =
        glass.operators().list_locks(v1::ListLocksRequest::default()).await.unwrap().into_inner().locks;
    let seen: Vec<_> = seen.iter().map(|l| l.name.as_str()).collect();
    assert!(seen.contains(&domain), "{seen:?}");
    for name in seen {
        glass.unlock(name).await.unwrap();
    }
    // It may do nothing else than lift and list locks.
    for name in ["tenant:acme", own.as_str()] {
        assert!(glass.lock(name).await.is_err(), "{name}");
    }
    world.client(PLATFORM).await.lock("tenant:acme").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lock_is_taken_that_no_one_could_lift() {
    let world = World::start().await;
    let platform = world.client(PLATFORM).await;
    let confirmed = ["spiffe://people.platform.example/ops/*"];
    let no =
        Refused::of(&lock_out(&platform, "domain:people.platform.example", &confirmed).await.unwrap_err());
    no.is(Code::FailedPrecondition, "OPERATORS_LOCKED_OUT");
    assert!(
        no.text.contains("no operator who could lift it") && no.facts["fix"].contains("break_glass"),
        "{no:?}"
    );
}

// ---------- names that nothing has ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistyped_name_is_refused_with_the_nearest() {
    let world = World::start().await;
    let worker = world.working().await;
    let platform = world.client(PLATFORM).await;
    let cases = [
        ("dataset:acme/tikcets@v3", "dataset:acme/tickets@v3"),
        ("dataset:acme/ticket", "dataset:acme/tickets"),
        ("model:acme/base-7b@2026.1", "model:acme/base-7b@2026.10"),
        ("tenant:amce", "tenant:acme"),
        ("domain:k8s.acne.example", "domain:k8s.acme.example"),
        (
            "identity:spiffe://k8s.acme.example/ns/ci/sa/lancher",
            "identity:spiffe://k8s.acme.example/ns/ci/sa/launcher",
        ),
        ("human:ade", "human:ada"),
        (
            "identity-prefix:spiffe://k8s.acme.example/ns/m1/job/",
            "identity-prefix:spiffe://k8s.acme.example/ns/ml/job/",
        ),
        ("tenant:nosuchtenant", ""),
        (&format!("attempt:{}/7", worker.job), ""),
        (&format!("member:{}/1/rank-9", worker.job), ""),
    ];
    for (wrong, right) in cases {
        for dry_run in [true, false] {
            let request =
                v1::LockRequest { name: wrong.into(), reason: "r".into(), dry_run, ..Default::default() };
            let mut answers = vec![platform.operators().lock(request).await.map(drop)];
            if !wrong.starts_with("identity-prefix") {
                let request = v1::RevokeRequest {
                    name: wrong.into(),
                    reason: "r".into(),
                    dry_run,
                    ..Default::default()
                };
                answers.push(platform.operators().revoke(request).await.map(drop));
            }
            for answer in answers {
                let no = Refused::of(&answer.unwrap_err());
                no.is(Code::NotFound, "NAME_UNKNOWN");
                assert_eq!(no.facts.get("nearest").map_or("", String::as_str), right, "{wrong}");
            }
        }
        // With `ahead`, the name is accepted.
        platform.lock(wrong).await.unwrap();
        platform.unlock(wrong).await.unwrap();
    }
    platform.lock("tenant:acme").await.unwrap();
    let no = refused(platform.unlock("tenant:amce").await);
    no.is(Code::NotFound, "LOCK_NOT_FOUND");
    assert_eq!(no.facts["nearest"], "tenant:acme");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistyped_name_reveals_nothing_of_other_tenants() {
    let world = World::start().await;
    let bob = world.client(GLOBEX_OPERATOR).await;
    let request =
        |name: &str| v1::RevokeRequest { name: name.into(), reason: "r".into(), ..Default::default() };
    let no = refused(bob.operators().revoke(request("dataset:globex/reviews@v2")).await);
    assert_eq!(no.facts["nearest"], "dataset:globex/reviews@v1");
    let of_acme = refused(bob.operators().revoke(request("dataset:acme/tickets@v3")).await);
    let of_none = refused(bob.operators().revoke(request("dataset:acme/nothing@v3")).await);
    assert_eq!((of_acme.reason, of_acme.facts.get("nearest")), (of_none.reason, None));
}

// ---------- members that the scheduler vouches for ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_vouched_for_joins_without_a_ticket() {
    let mut world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let start = vec![SCHEDULER.into(), ANY_POD.into()];
    let members =
        v1::Members { join: vec![ANY_POD.into()], start, max: 3, attempts: 3, ..Default::default() };
    let job = v1::JobSpec { members: Some(members), ..spec() };
    let job = launcher.create(job, "k").await.unwrap().into_inner().job.unwrap().id;
    let begin = async |by: &str, key: &str, members: &[&str]| {
        let members = members.iter().map(ToString::to_string).collect();
        let request =
            v1::BeginAttemptRequest { job: job.clone(), key: key.into(), members, ..Default::default() };
        world.client(by).await.jobs().begin_attempt(request).await
    };
    // A pod may not vouch for itself.
    refused(begin(WORKER, "run-1", &[WORKER]).await).is(Code::PermissionDenied, "NOT_A_MEMBER");
    begin(SCHEDULER, "run-1", &[WORKER]).await.unwrap();
    // The same members again mean the same attempt. Other members are a conflict.
    begin(SCHEDULER, "run-1", &[WORKER]).await.unwrap();
    refused(begin(SCHEDULER, "run-1", &[ANY_POD]).await).is(Code::FailedPrecondition, "STATE_CONFLICT");
    Worker::join(world.client(WORKER).await, &job, 1, "rank-0", "").await.unwrap();
    let no = Worker::join(world.client(OTHER_WORKER).await, &job, 1, "rank-1", "").await.err().unwrap();
    Refused::of(&no).is(Code::PermissionDenied, "TICKET_REQUIRED");
    // The vouching is kept over a restart, but only for that attempt.
    world.restart().await;
    let (worker, launcher) = (world.client(WORKER).await, world.client(LAUNCHER).await);
    Worker::join(worker.clone(), &job, 1, "rank-2", "").await.unwrap();
    launcher.begin(&job, "run-2").await.unwrap();
    let no = Worker::join(worker, &job, 2, "rank-0", "").await.err().unwrap();
    Refused::of(&no).is(Code::PermissionDenied, "TICKET_REQUIRED");
}
