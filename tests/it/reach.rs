//! Locks that reach the future: on a person with all of their rights, on what an identity launches, on versions that do not
//! exist yet.

use leasehold::proto::v1::{self, Half};
use tonic::Code;

use crate::harness::*;

/// A person who launches jobs, whatever their specifications say.
const ADA_LAUNCHES: &str = "spiffe://people.acme.example/l/ada";
/// A person who works in a notebook.
const ADA_WORKS: &str = "spiffe://people.acme.example/n/ada";

/// A world in which ada is an operator, a launcher and a workload.
async fn world_of_ada() -> World {
    World::with(|setup| {
        let acme = setup.catalog.get_mut("acme.toml").unwrap();
        acme.push_str(
            "\n[[principal]]\nmatch = \"spiffe://people.acme.example/l/*\"\nkind = \"launcher\"\nhuman = \"segment:2\"\n\
             [[principal]]\nmatch = \"spiffe://people.acme.example/n/*\"\nkind = \"workload\"\nidentity = \"job\"\n\
             roles = [\"trainer\"]\nhuman = \"segment:2\"\n",
        );
    })
    .await
}

fn without_human(name: &str, worker: &str) -> v1::JobSpec {
    let members = v1::Members { join: vec![worker.into()], ..Default::default() };
    v1::JobSpec { name: name.into(), acting_for: String::new(), members: Some(members), ..spec() }
}

/// A job of a launcher, with a member that works.
async fn working_for(world: &World, launcher: &Client, spec: v1::JobSpec) -> Worker {
    let worker = spec.members.as_ref().unwrap().join[0].clone();
    let name = spec.name.clone();
    let job = launcher.create(spec, &name).await.unwrap().into_inner().job.unwrap().id;
    launcher.begin(&job, "run-1").await.unwrap();
    let mut worker = Worker::join(world.client(&worker).await, &job, 1, "rank-0", "").await.unwrap();
    worker.keep_alive().await;
    worker
}

async fn lock_dry(by: &Client, name: &str) -> v1::LockResponse {
    let request = v1::LockRequest {
        name: name.into(),
        reason: "r".into(),
        dry_run: true,
        ahead: true,
        ..Default::default()
    };
    by.operators().lock(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_a_person_covers_their_operator_rights() {
    let mut world = world_of_ada().await;
    let (mut ada, platform) = (world.client(OPERATOR).await, world.client(PLATFORM).await);
    let colleague = "spiffe://people.acme.example/u/bob";
    let mut bob = world.client(colleague).await;
    let job = world.working().await.job;
    let mut stream =
        ada.jobs().watch_job(v1::WatchJobRequest { job: job.clone() }).await.unwrap().into_inner();
    stream.message().await.unwrap();
    platform.lock("human:ada").await.unwrap();
    let ended = soon("the end of the stream", async {
        loop {
            if let Err(status) = stream.message().await {
                return Refused::of(&status);
            }
        }
    });
    ended.await.is(Code::PermissionDenied, "LOCKED");
    for turn in ["live", "after a restart"] {
        let no = refused(ada.operators().list_leases(v1::ListLeasesRequest::default()).await);
        assert_eq!(no.reason, "LOCKED", "{turn}: {no:?}");
        assert!(no.facts["fix"].contains("leasehold unlock human:ada"), "{turn}: {no:?}");
        refused(ada.revoke(TICKETS).await).is(Code::PermissionDenied, "LOCKED");
        refused(ada.unlock("human:ada").await).is(Code::PermissionDenied, "LOCKED");
        bob.operators().list_leases(v1::ListLeasesRequest::default()).await.unwrap();
        let seen = ada.operators().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
        assert_eq!(seen.kind, "operator", "{turn}: a locked person may still ask who they are");
        if turn == "live" {
            world.restart().await;
            (ada, bob) = (world.client(OPERATOR).await, world.client(colleague).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_a_person_ends_what_they_launched_and_hold() {
    let world = world_of_ada().await;
    let (platform, gateway) = (world.client(PLATFORM).await, world.client(GATEWAY).await);
    let (ada, ci) = (world.client(ADA_LAUNCHES).await, world.client(NIGHTLY).await);
    let launched = working_for(&world, &ada, without_human("launched", WORKER)).await;
    let held = working_for(&world, &ci, without_human("held", ADA_WORKS)).await;
    let other = working_for(&world, &ci, without_human("other", OTHER_WORKER)).await;
    let tokens = [launched.issue(Half::Reading).await, held.issue(Half::Reading).await];
    let kept = other.issue(Half::Reading).await;
    assert_eq!(lock_dry(&platform, "human:ada").await.ending.unwrap().behind, 2);
    assert_eq!(platform.lock("human:ada").await.unwrap().into_inner().ending.unwrap().behind, 2);
    for token in &tokens {
        assert!(!token.seen_by(&gateway).await.active, "{}", token.lease.holder);
    }
    kept.is_live(&gateway).await;
    refused(launched.try_issue(Half::Reading).await).is(Code::PermissionDenied, "LOCKED");
    refused(held.try_issue(Half::Reading).await).is(Code::PermissionDenied, "LOCKED");
    refused(ada.create(without_human("next", WORKER), "next").await).is(Code::PermissionDenied, "LOCKED");
    platform.unlock("human:ada").await.unwrap();
    launched.issue(Half::Reading).await.is_live(&gateway).await;
    assert!(!tokens[0].seen_by(&gateway).await.active, "it came back with the unlock");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_the_last_operator_as_a_person_is_refused() {
    let world = World::with(|setup| {
        let platform = setup.catalog.get_mut("platform.toml").unwrap();
        *platform = platform.replace("/ops/*", "/ops/root");
    })
    .await;
    let platform = world.client(PLATFORM).await;
    let no = refused(platform.lock("human:root").await);
    no.is(Code::FailedPrecondition, "OPERATORS_LOCKED_OUT");
    assert!(no.text.contains("no operator who could lift it"), "{no:?}");
    // If another operator could lift it, the caller confirms that it locks itself out.
    let world = World::start().await;
    let platform = world.client(PLATFORM).await;
    let no = refused(platform.lock("human:root").await);
    assert_eq!((no.reason.as_str(), no.facts["locked out"].as_str()), ("OPERATORS_LOCKED_OUT", PLATFORM));
    platform.lock("human:mallory").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_launcher_launches_nothing_and_its_jobs_end() {
    let mut world = world_of_ada().await;
    let ada = world.client(OPERATOR).await;
    let (mut launcher, mut nightly) = (world.client(LAUNCHER).await, world.client(NIGHTLY).await);
    let gateway = world.client(GATEWAY).await;
    let name = format!("launcher:{LAUNCHER}");
    let ours = working_for(&world, &launcher, without_human("ours", WORKER)).await;
    let theirs = working_for(&world, &nightly, without_human("theirs", OTHER_WORKER)).await;
    let (ended, kept) = (ours.issue(Half::Reading).await, theirs.issue(Half::Reading).await);
    let dry = lock_dry(&ada, &name).await;
    assert_eq!((dry.ending.unwrap().behind, dry.jobs_closed), (1, vec![ours.job.clone()]));
    let set = ada.lock(&name).await.unwrap().into_inner();
    assert_eq!((set.ending.unwrap().behind, set.jobs_closed), (1, vec![ours.job.clone()]));
    assert!(!ended.seen_by(&gateway).await.active);
    kept.is_live(&gateway).await;
    let job = launcher.job(&ours.job).await;
    assert_eq!(
        (job.outcome(), job.detail.as_str()),
        (v1::Outcome::Revoked, "its launcher was locked: under investigation")
    );
    for turn in ["live", "after a restart"] {
        let no = refused(launcher.create(without_human("next", WORKER), turn).await);
        assert_eq!(
            (no.reason.as_str(), no.facts["why"].as_str()),
            ("LOCKED", "under investigation"),
            "{turn}"
        );
        nightly.create(without_human("next", WORKER), turn).await.unwrap();
        if turn == "live" {
            world.restart().await;
            (launcher, nightly) = (world.client(LAUNCHER).await, world.client(NIGHTLY).await);
        }
    }
    let (ada, platform) = (world.client(OPERATOR).await, world.client(PLATFORM).await);
    // A second lock ends nothing more, and the tenant that set it lifts it.
    assert_eq!(ada.lock(&name).await.unwrap().into_inner().jobs_closed, [""; 0]);
    assert_eq!(ada.unlock(&name).await.unwrap().into_inner().lifted.unwrap().name, name);
    launcher.create(without_human("again", WORKER), "again").await.unwrap();
    // A lock of the platform is lifted by the platform only.
    platform.lock(&name).await.unwrap();
    refused(ada.unlock(&name).await).is(Code::PermissionDenied, "POLICY_DENIED");
    platform.unlock(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_a_launcher_has_a_time_and_finds_mistakes() {
    let world = world_of_ada().await;
    let (ada, bob) = (world.client(OPERATOR).await, world.client(GLOBEX_OPERATOR).await);
    let launcher = world.client(LAUNCHER).await;
    let name = format!("launcher:{LAUNCHER}");
    let request =
        |name: &str| v1::LockRequest { name: name.into(), reason: "r".into(), ..Default::default() };
    let mistyped = name.replace("sa/launcher", "sa/launchr");
    let platform = world.client(PLATFORM).await;
    let no = refused(platform.operators().lock(request(&mistyped)).await);
    assert_eq!((no.reason.as_str(), no.facts["nearest"].as_str()), ("NAME_UNKNOWN", name.as_str()));
    // Another tenant's launcher and one that does not exist get the same answer.
    let nowhere = "launcher:spiffe://nowhere.example/x";
    let (foreign, absent) = (
        refused(bob.operators().lock(request(&name)).await),
        refused(bob.operators().lock(request(nowhere)).await),
    );
    assert_eq!((foreign.reason, foreign.code), (absent.reason, absent.code));
    let ttl = Some(prost_types::Duration { seconds: 10, nanos: 0 });
    ada.operators().lock(v1::LockRequest { ttl, ..request(&name) }).await.unwrap();
    refused(launcher.create(spec(), "one").await).is(Code::PermissionDenied, "LOCKED");
    let listed =
        ada.operators().list_locks(v1::ListLocksRequest::default()).await.unwrap().into_inner().locks;
    assert_eq!((listed[0].name.as_str(), listed[0].reason.as_str()), (name.as_str(), "r"));
    world.time().advance(std::time::Duration::from_secs(10));
    launcher.create(spec(), "one").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_without_a_version_covers_versions_to_come() {
    for (lock, old, new) in [
        ("dataset:acme/tickets", "name           = \"tickets@v3\"", "name           = \"tickets@v4\""),
        ("model:acme/base-7b", "name        = \"base-7b@2026.10\"", "name        = \"base-7b@2026.11\""),
    ] {
        let world = World::start().await;
        let (ada, launcher) = (world.client(OPERATOR).await, world.client(LAUNCHER).await);
        ada.lock(lock).await.unwrap();
        // The catalog gets a version that did not exist when the lock was set.
        let text = world.read("catalog.d/acme.toml");
        let at = text.find(old).unwrap();
        let start = text[..at].rfind("[[").unwrap();
        let end = text[at..].find("[[").map_or(text.len(), |end| at + end);
        let entry = text[start..end].replace(old, new);
        world.write("catalog.d/acme.toml", &format!("{text}\n{entry}"));
        world
            .client(PLATFORM)
            .await
            .operators()
            .reload_catalog(v1::ReloadCatalogRequest { dry_run: false })
            .await
            .unwrap();
        let version = new.split('@').nth(1).unwrap().trim_end_matches('"');
        let later = format!("{lock}@{version}");
        let reads = match lock.starts_with("dataset") {
            true => vec![later.clone(), MODEL.into()],
            false => vec![TICKETS.into(), later.clone()],
        };
        let wanted = v1::JobSpec { read: reads, write: Vec::new(), tune: None, ..spec() };
        let no = refused(launcher.create(wanted.clone(), "one").await);
        assert_eq!((no.reason.as_str(), no.text.as_str()), ("LOCKED", format!("{lock} is locked").as_str()));
        ada.unlock(lock).await.unwrap();
        launcher.create(wanted, "one").await.unwrap();
    }
}
