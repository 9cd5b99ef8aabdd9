//! What one tenant can learn of another, and do to it.

use leasehold::{
    name::{JobId, LeaseId},
    proto::v1::{self, Half, notice::Kind},
};
use tonic::Code;

use crate::{
    decided::{globex_worker, sharing_world},
    harness::*,
};

const REVIEWS: &str = "dataset:globex/reviews@v1";

/// A refusal without the names that the caller chose itself.
fn without(mut no: Refused, names: &[&str]) -> (Code, String, String, String) {
    no.facts.remove("field");
    let mut text = format!("{:?}", no.facts);
    for name in names {
        no.text = no.text.replace(name, "NAME");
        text = text.replace(name, "NAME");
    }
    (no.code, no.reason, no.text, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_over_what_is_foreign_or_unknown_gets_one_answer() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let ask = async |spec: v1::JobSpec, dry_run: bool| {
        let request = v1::CreateJobRequest { spec: Some(spec), idempotency_key: "x".into(), dry_run };
        refused(launcher.jobs().create_job(request).await)
    };
    let (unknown, member) = ("dataset:globex/nothing@v1", "spiffe://k8s.globex.example/ns/none/job/1");
    let reading = |name: &str| v1::JobSpec { read: vec![name.into()], write: vec![], tune: None, ..spec() };
    let joined = |id: &str| {
        let members = v1::Members { join: vec![id.into()], ..Default::default() };
        v1::JobSpec { members: Some(members), ..spec() }
    };
    let every = "spiffe://k8s.globex.example/**";
    let none = "spiffe://k8s.nowhere.example/**";
    for dry_run in [true, false] {
        let nothing = without(ask(reading(unknown), dry_run).await, &[unknown]);
        assert_eq!(without(ask(reading(REVIEWS), dry_run).await, &[REVIEWS]), nothing);
        // A lock on it, or on its tenant, does not show that it exists.
        let platform = world.client(PLATFORM).await;
        for locked in [REVIEWS, "tenant:globex"] {
            platform.lock(locked).await.unwrap();
            assert_eq!(without(ask(reading(REVIEWS), dry_run).await, &[REVIEWS]), nothing, "{locked}");
            platform.unlock(locked).await.unwrap();
        }
        let nobody = without(ask(joined(member), dry_run).await, &[member]);
        assert_eq!(nobody.1, "PRINCIPAL_UNKNOWN");
        assert_eq!(without(ask(joined(GLOBEX_WORKER), dry_run).await, &[GLOBEX_WORKER]), nobody);
        assert_eq!(without(ask(joined(every), dry_run).await, &[every]), nobody);
        assert_eq!(without(ask(joined(none), dry_run).await, &[none]), nobody);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_of_what_is_foreign_or_unknown_gets_one_answer() {
    let world = World::start().await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let operator = world.client(GLOBEX_OPERATOR).await;
    let pairs = [
        (format!("identity:{WORKER}"), "identity:spiffe://nowhere.example/x".to_owned()),
        (format!("job:{}", worker.job), format!("job:{}", JobId(7))),
        (format!("attempt:{}/1", worker.job), format!("attempt:{}/1", JobId(7))),
        (format!("lease:{}", token.lease.id), format!("lease:{}", LeaseId(7))),
        ("tenant:acme".into(), "tenant:nosuch".into()),
        (TICKETS.into(), "dataset:acme/nothing@v1".into()),
        ("human:ada".into(), "human:nobody".into()),
        ("domain:k8s.acme.example".into(), "domain:nowhere.example".into()),
    ];
    for (foreign, unknown) in &pairs {
        let names = |name: &str| name.split_once(':').unwrap().1.to_owned();
        for dry_run in [true, false] {
            let revoke = async |name: &str| {
                let reason = "looking".into();
                let request = v1::RevokeRequest { name: name.into(), reason, dry_run, ..Default::default() };
                without(refused(operator.operators().revoke(request).await), &[&names(name)])
            };
            assert_eq!(revoke(foreign).await, revoke(unknown).await, "{foreign}");
        }
        let lock = async |name: &str| {
            let request = v1::LockRequest {
                name: name.into(),
                reason: "looking".into(),
                dry_run: true,
                ..Default::default()
            };
            without(refused(operator.operators().lock(request).await), &[&names(name)])
        };
        assert_eq!(lock(foreign).await, lock(unknown).await, "{foreign}");
    }
    worker.issue(Half::Reading).await;
}

/// What one tenant writes into its file changes nothing that another tenant sees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tenant_sees_that_another_changed_its_file() {
    let world = sharing_world().await;
    let worker = globex_worker(&world, vec![REVIEWS.into(), TICKETS.into()], "k").await;
    worker.issue(Half::Reading).await;
    let globex = world.client(GLOBEX_OPERATOR).await;
    let platform = world.client(PLATFORM).await;
    let reload = async || {
        platform.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run: false }).await.unwrap()
    };
    let seen = async |client: &Client| {
        let question = v1::EvaluatePolicyRequest { action: "Revoke".into(), ..Default::default() };
        let answer = client.operators().evaluate_policy(question).await.unwrap().into_inner();
        let explain = v1::ExplainJobRequest { job: worker.job.clone(), ..Default::default() };
        let explained = client.operators().explain_job(explain).await.unwrap().into_inner();
        let recorded: Vec<_> = explained.decisions.iter().map(|d| d.catalog.clone()).collect();
        (answer.catalog, explained.catalog, recorded)
    };
    let all = seen(&platform).await;
    let before = seen(&globex).await;
    assert!(before.0.starts_with("sha256:") && before.0 == before.1, "{before:?}");
    assert!(before.2.iter().all(String::is_empty) && all.2.iter().all(|d| *d == all.0), "{all:?}");
    let acme = world.read("catalog.d/acme.toml");
    world
        .write("catalog.d/acme.toml", &format!("# another line\n{}", acme.replace("docs@acme", "help@acme")));
    reload().await;
    assert_eq!(seen(&globex).await, before);
    assert_ne!(seen(&platform).await.0, all.0);
    // What is shared with it is its own concern.
    let acme = world.read("catalog.d/acme.toml");
    world.write("catalog.d/acme.toml", &acme.replace("data-tickets@acme", "others@acme"));
    reload().await;
    let shared = seen(&globex).await;
    assert_ne!(shared.0, before.0);
    let own = world.read("catalog.d/globex.toml");
    world.write("catalog.d/globex.toml", &format!("# another line\n{own}"));
    reload().await;
    assert_ne!(seen(&globex).await.0, shared.0);
}

/// A tenant does not see how much is recorded, or how much other tenants do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tenant_learns_how_much_the_others_do() {
    let world = World::start().await;
    let operator = world.client(GLOBEX_OPERATOR).await;
    let whoami =
        async |client: &Client| client.operators().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!(whoami(&operator).await.ledger_head, "");
    assert!(!whoami(&world.client(PLATFORM).await).await.ledger_head.is_empty());
    let ending = operator.revoke("tenant:globex").await.unwrap().into_inner().ending.unwrap();
    let wait = v1::WaitDurableRequest { receipt: ending.receipt };
    let waited = operator.operators().wait_durable(wait).await.unwrap().into_inner();
    assert_eq!(waited.ledger_head, "");
    let made_up = v1::WaitDurableRequest { receipt: vec![0; 36] };
    refused(operator.operators().wait_durable(made_up).await).is(Code::FailedPrecondition, "EPOCH_CHANGED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_operator_does_not_reload_what_is_all_tenants() {
    let world = World::start().await;
    world.write("catalog.d/acme.toml", "[tenant.acme\n");
    let reload = async |id: &str| {
        let client = world.client(id).await;
        client.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run: true }).await
    };
    let no = refused(reload(GLOBEX_OPERATOR).await);
    no.is(Code::PermissionDenied, "KIND_NOT_ALLOWED");
    assert!(!format!("{no:?}").contains("acme"), "{no:?}");
    let seen = reload(PLATFORM).await.unwrap().into_inner();
    assert!(seen.not_taken.iter().any(|m| m.starts_with("acme.toml:")), "{:?}", seen.not_taken);
}

/// A broken file of one tenant does not prevent the removal of another from taking effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_of_one_tenant_holds_no_other_back() {
    let world = World::start().await;
    let mut worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let acme = world.read("catalog.d/acme.toml");
    let trainers = "match    = \"spiffe://k8s.acme.example/ns/ml/job/*\"";
    assert!(acme.contains(trainers));
    world.write("catalog.d/acme.toml", &acme.replacen(trainers, &trainers.replace("/ml/", "/elsewhere/"), 1));
    world.write("catalog.d/globex.toml", "this is no TOML");
    let platform = world.client(PLATFORM).await;
    let reload = v1::ReloadCatalogRequest { dry_run: false };
    let done = platform.operators().reload_catalog(reload).await.unwrap().into_inner();
    assert!(done.not_taken.iter().all(|m| m.starts_with("globex.toml")), "{:?}", done.not_taken);
    assert!(done.ended >= 1, "{done:?}");
    assert!(!world.client(GATEWAY).await.introspect(&token.text, WORKER).await.active);
    worker.stream = None;
    // Globex is as it was.
    let globex = world.client(GLOBEX_OPERATOR).await;
    let seen = globex.operators().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!(seen.tenant, "globex");
}

/// A pattern of one tenant's job covers an identity of another tenant in the same trust domain: that identity has no part in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wide_pattern_reaches_no_identity_of_another_tenant() {
    let world = World::prepared(|_| {});
    let foreign = "spiffe://k8s.acme.example/ns/globex/job/tuner";
    let claims = world.read("catalog.d/platform.toml");
    let more = "[[claim]]\ntenant = \"globex\"\nmatch = [\"spiffe://k8s.acme.example/ns/globex/**\"]\n";
    world.write("catalog.d/platform.toml", &format!("{claims}{more}"));
    let globex = world.read("catalog.d/globex.toml");
    let entry = format!("[[principal]]\nmatch = \"{foreign}\"\nkind = \"workload\"\nroles = [\"trainer\"]\n");
    world.write("catalog.d/globex.toml", &format!("{globex}\n{entry}"));
    let mut world = world;
    world.try_start().await.unwrap();
    let launcher = world.client(LAUNCHER).await;
    let members = v1::Members { join: vec!["spiffe://k8s.acme.example/**".into()], ..Default::default() };
    let wide = v1::JobSpec { members: Some(members), ..spec() };
    let job = launcher.create(wide, "wide").await.unwrap().into_inner().job.unwrap().id;
    let began = launcher.begin(&job, "run-1").await.unwrap().into_inner();
    let stranger = world.client(foreign).await;
    let request = v1::GetJobRequest { job: job.clone() };
    refused(stranger.jobs().get_job(request).await).is(Code::NotFound, "JOB_NOT_FOUND");
    let no = Worker::join(stranger, &job, 1, "rank-0", &began.ticket).await.err().expect("it is refused");
    Refused::of(&no).is(Code::NotFound, "JOB_NOT_FOUND");
    // The same pattern lets the tenant's own identity in.
    Worker::join(world.client(WORKER).await, &job, 1, "rank-0", &began.ticket).await.unwrap();
}

/// A start goes on without the file of one tenant. Its jobs stay in the ledger, and its identities may do nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_goes_on_without_the_broken_file_of_one_tenant() {
    let mut world = World::start().await;
    let mut worker = world.working().await;
    let before = worker.issue(Half::Reading).await;
    let good = world.read("catalog.d/acme.toml");
    world.stop().await;
    worker.stream = None;
    world.write("catalog.d/acme.toml", &format!("{good}\n[[broken]]\n"));
    world.try_start().await.unwrap();
    let mistake = "acme.toml:";
    assert!(logged().lines().any(|l| l.contains("ERROR") && l.contains(mistake)), "no error is logged");

    // What people and monitors see. The operator of another tenant sees nothing of it, and is not the only tenant.
    let whoami = async |id: &str| {
        let client = world.client(id).await;
        client.operators().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner()
    };
    assert!(whoami(PLATFORM).await.catalog_mistakes.iter().any(|m| m.starts_with(mistake)));
    assert_eq!(whoami(GLOBEX_OPERATOR).await.catalog_mistakes, [""; 0]);
    let globex = world.client(GLOBEX_OPERATOR).await;
    let reload = v1::ReloadCatalogRequest { dry_run: true };
    refused(globex.operators().reload_catalog(reload).await).is(Code::PermissionDenied, "KIND_NOT_ALLOWED");
    let (status, body) = world.http(world.daemon().probe, "/readyz").await;
    assert!(status == 200 && body.contains("not in force") && !body.contains("acme"), "{status} {body}");
    // Daemons of other tests share the metrics of this process.
    eventually("a metric", async || world.counted("leasehold_catalog_mistakes", "").await >= 1.0).await;

    // Its identities are unknown, and nothing of its state is lost.
    let unknown = |no: Refused| no.is(Code::PermissionDenied, "PRINCIPAL_UNKNOWN");
    let launcher = world.client(LAUNCHER).await;
    unknown(refused(launcher.create(spec(), "more").await));
    worker.client = world.client(WORKER).await;
    unknown(Refused::of(&worker.rejoin().await.unwrap_err()));
    let platform = world.client(PLATFORM).await;
    platform.lock("tenant:acme").await.unwrap();
    platform.unlock("tenant:acme").await.unwrap();
    assert_eq!(platform.job(&worker.job).await.state(), v1::JobState::Running);

    world.write("catalog.d/acme.toml", &good);
    let reload = v1::ReloadCatalogRequest { dry_run: false };
    let done = platform.operators().reload_catalog(reload).await.unwrap().into_inner();
    assert_eq!(done.not_taken, [""; 0]);
    worker.rejoin().await.unwrap();
    worker.keep_alive().await;
    let gateway = world.client(GATEWAY).await;
    worker.issue(Half::Reading).await.is_live(&gateway).await;
    assert!(!gateway.introspect(&before.text, WORKER).await.active);
    let (_, body) = world.http(world.daemon().probe, "/readyz").await;
    assert_eq!(body, "ok\n");
}

// ---------- locks and revocations of another tenant ----------

/// Everything that a refusal says, in one text.
fn all_of(no: &Refused) -> String {
    format!("{} {:?}", no.text, no.facts)
}

/// Fails if a text shows who set a lock, why, when, or its own name.
fn shows_nothing_of_the_lock(text: &str, lock: &str) {
    for hidden in ["under investigation", "people.", "since", "unlock"] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
    // The version that was asked for contains the name of a lock without one.
    let text = text.replace(TICKETS, "ASKED");
    assert!(!text.contains(lock), "{lock}: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_lock_shows_no_name_reason_or_person() {
    let world = sharing_world().await;
    let (ada, platform) = (world.client(OPERATOR).await, world.client(PLATFORM).await);
    for (turn, (by, lock)) in
        [(&ada, "dataset:acme/tickets"), (&ada, TICKETS), (&platform, "tenant:acme")].into_iter().enumerate()
    {
        let key = format!("k{turn}");
        let worker = globex_worker(&world, vec![TICKETS.into()], &key).await;
        let mut stream = worker.open_stream().await.unwrap();
        worker.issue(Half::Reading).await;
        by.lock(lock).await.unwrap();
        let wanted = format!("{TICKETS} is locked by its owner");
        let told = stream.told(Kind::Reissue, "REVOKED").await;
        assert_eq!(told.message, wanted, "{lock}");
        let no = refused(worker.try_issue(Half::Reading).await);
        assert_eq!((no.reason.as_str(), no.text.as_str()), ("LOCKED", wanted.as_str()), "{lock}");
        shows_nothing_of_the_lock(&all_of(&no), lock);

        let launcher = world.client(GLOBEX_LAUNCHER).await;
        let members = v1::Members { join: vec![GLOBEX_WORKER.into()], ..Default::default() };
        let reading = v1::JobSpec {
            read: vec![TICKETS.into()],
            write: Vec::new(),
            tune: None,
            acting_for: String::new(),
            members: Some(members),
            ..spec()
        };
        let no = refused(launcher.create(reading, &format!("again {turn}")).await);
        assert_eq!((no.reason.as_str(), no.text.as_str()), ("LOCKED", wanted.as_str()), "{lock}");
        shows_nothing_of_the_lock(&all_of(&no), lock);

        let question = v1::EvaluatePolicyRequest {
            action: "read_dataset".into(),
            resource: TICKETS.into(),
            purpose: spec().purpose,
            ..Default::default()
        };
        let foreign = world.client(GLOBEX_WORKER).await;
        let answer = foreign.operators().evaluate_policy(question.clone()).await.unwrap().into_inner();
        let text = format!("{answer:?}");
        assert!(text.contains(&wanted), "{lock}: {text}");
        shows_nothing_of_the_lock(&text, lock);
        // The owner's own people learn which lock it is, and so does the platform.
        let own = world.client(WORKER).await;
        let answer = own.operators().evaluate_policy(question.clone()).await.unwrap().into_inner();
        assert!(answer.fix.contains(&format!("leasehold unlock {lock}")), "{lock}: {answer:?}");
        let question = v1::EvaluatePolicyRequest { identity: GLOBEX_WORKER.into(), ..question };
        let answer = platform.operators().evaluate_policy(question).await.unwrap().into_inner();
        assert!(answer.fix.contains(&format!("leasehold unlock {lock}")), "{lock}: {answer:?}");
        by.unlock(lock).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_dataset_tells_its_own_tenant_why() {
    let world = sharing_world().await;
    let ada = world.client(OPERATOR).await;
    let own = world.working().await;
    let foreign = globex_worker(&world, vec![TICKETS.into()], "foreign").await;
    let (mut own_stream, mut stream) =
        (own.open_stream().await.unwrap(), foreign.open_stream().await.unwrap());
    for worker in [&own, &foreign] {
        worker.issue(Half::Reading).await;
    }
    ada.revoke(TICKETS).await.unwrap();
    let told = own_stream.told(Kind::Reissue, "REVOKED").await;
    assert_eq!(told.message, format!("{TICKETS} was revoked: seen in the wild"));
    let told = stream.told(Kind::Reissue, "REVOKED").await;
    assert_eq!(told.message, format!("{TICKETS} was revoked by its owner"));
}
