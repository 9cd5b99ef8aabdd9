//! Recalls, offboardings, revocations for a compromise, and the check that nothing is left.

use leasehold::proto::v1::{self, Half};
use tonic::{Code, Response, Status};

use crate::harness::*;

const REASON: &str = "consent withdrawn, DP-88";

impl Client {
    async fn recall(&self, name: &str, dry_run: bool) -> Result<v1::RecallDatasetResponse, Status> {
        let request =
            v1::RecallDatasetRequest { name: name.into(), reason: REASON.into(), dry_run, ahead: false };
        self.operators().recall_dataset(request).await.map(Response::into_inner)
    }

    async fn offboard(&self, name: &str, dry_run: bool) -> Result<v1::OffboardResponse, Status> {
        let request =
            v1::OffboardRequest { name: name.into(), reason: REASON.into(), dry_run, ..Default::default() };
        self.operators().offboard(request).await.map(Response::into_inner)
    }

    async fn compromised(&self, name: &str, dry_run: bool) -> Result<v1::RevokeResponse, Status> {
        let request = v1::RevokeRequest {
            name: name.into(),
            reason: "key seen in a paste".into(),
            dry_run,
            ahead: false,
            cause: v1::RevokeCause::Compromise as i32,
        };
        self.operators().revoke(request).await.map(Response::into_inner)
    }

    /// What is left behind a name, as `kind name`.
    async fn left(&self, name: &str) -> Vec<String> {
        let request = v1::VerifyCleanRequest { name: name.into() };
        let answer = self.operators().verify_clean(request).await.unwrap().into_inner();
        assert_eq!(answer.left_total, answer.left.len() as u64);
        answer.left.into_iter().map(|r| format!("{} {}", r.kind, r.name)).collect()
    }
}

fn reading(name: &str, worker: &str, read: &[&str]) -> v1::JobSpec {
    let members = v1::Members { join: vec![worker.into()], ..Default::default() };
    let read = read.iter().map(ToString::to_string).collect();
    v1::JobSpec { name: name.into(), read, members: Some(members), ..spec() }
}

/// The catalog with a second version of the dataset.
async fn two_versions() -> World {
    World::with(|setup| {
        let acme = setup.catalog.get_mut("acme.toml").unwrap();
        let at = acme.find("[[dataset]]\nname           = \"tickets@v3\"").unwrap();
        let entry = acme[at..].split("\n[[dataset]]").next().unwrap().replace("tickets@v3", "tickets@v4");
        acme.push_str(&format!("\n{entry}\n"));
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_closes_the_jobs_that_read_and_survives_a_restart() {
    let mut world = two_versions().await;
    let (ada, platform) = (world.client(OPERATOR).await, world.client(PLATFORM).await);
    let (launcher, gateway) = (world.client(LAUNCHER).await, world.client(GATEWAY).await);
    let reader = world.working_on(reading("reader", WORKER, &[TICKETS, MODEL]), WORKER).await;
    let v4 = reading("newer", OTHER_WORKER, &["dataset:acme/tickets@v4", MODEL]);
    let newer = world.working_on(v4, OTHER_WORKER).await;
    let mut waiting = launcher.create(reading("idle", WORKER, &[TICKETS]), "idle").await.unwrap();
    let idle = waiting.get_mut().job.take().unwrap().id;
    let tokens = reader.issue_both().await;
    let kept = newer.issue(Half::Reading).await;

    let before = world.snapshot().await;
    let dry = ada.recall(TICKETS, true).await.unwrap();
    assert_eq!(world.snapshot().await, before, "a dry run changed something");
    let done = ada.recall(TICKETS, false).await.unwrap();
    for answer in [&dry, &done] {
        assert_eq!(answer.ending.as_ref().unwrap().behind, 2);
        let mut closed = answer.jobs_closed.clone();
        closed.sort();
        let mut wanted = vec![reader.job.clone(), idle.clone()];
        wanted.sort();
        assert_eq!((closed, answer.jobs_closed_total), (wanted, 2));
        let holder = &answer.holders[0];
        assert_eq!(
            (answer.holders_total, holder.spiffe_id.as_str(), holder.instance.as_str()),
            (1, WORKER, "rank-0")
        );
        let output = &answer.outputs[0];
        assert_eq!((answer.outputs_total, output.line.as_str(), &output.job), (1, LINE, &reader.job));
        assert!(answer.notes.iter().any(|n| n.contains("not recalled")), "{:?}", answer.notes);
    }
    for token in &tokens {
        token.is_dead(&gateway, "LEASE_ENDED").await;
    }
    kept.is_live(&gateway).await;
    let job = launcher.job(&reader.job).await;
    assert_eq!(job.outcome(), v1::Outcome::Revoked);
    assert_eq!(job.detail, format!("{TICKETS} was recalled: {REASON}"));
    assert!(job.quarantined.contains("revoked"), "{job:?}");
    assert_eq!(launcher.job(&newer.job).await.quarantined, "");

    for turn in ["live", "after a restart"] {
        let ada = world.client(OPERATOR).await;
        let launcher = world.client(LAUNCHER).await;
        let no = refused(launcher.create(reading("again", WORKER, &[TICKETS]), turn).await);
        no.is(Code::PermissionDenied, "LOCKED");
        assert!(no.text.contains("was recalled") && no.facts["why"] == REASON, "{turn}: {no:?}");
        assert!(no.facts["fix"].contains("dataset unrecall"), "{turn}: {no:?}");
        let request = v1::ListResourcesRequest { name: TICKETS.into(), ..Default::default() };
        let shown = launcher.jobs().list_resources(request).await.unwrap().into_inner().resources;
        assert_eq!(shown[0].recalled, REASON, "{turn}");
        assert_eq!(ada.left(TICKETS).await, [""; 0], "{turn}");
        // A second recall finds nothing more.
        let again = ada.recall(TICKETS, false).await.unwrap();
        assert_eq!((again.ending.unwrap().behind, again.jobs_closed_total), (0, 0), "{turn}");
        // No tenant takes it back, and no `unlock` does.
        let request = v1::UnrecallDatasetRequest { name: TICKETS.into(), reason: "r".into() };
        refused(ada.operators().unrecall_dataset(request).await).is(Code::PermissionDenied, "POLICY_DENIED");
        let platform = world.client(PLATFORM).await;
        refused(platform.unlock(&format!("recall:{TICKETS}")).await)
            .is(Code::InvalidArgument, "FIELD_INVALID");
        refused(platform.lock(&format!("recall:{TICKETS}")).await).is(Code::InvalidArgument, "FIELD_INVALID");
        let no = refused(ada.unlock(TICKETS).await);
        no.is(Code::NotFound, "LOCK_NOT_FOUND");
        assert_eq!(no.facts["recalled"], REASON, "{turn}: {no:?}");
        assert!(no.facts["fix"].contains(&format!("dataset unrecall {TICKETS}")), "{turn}: {no:?}");
        if turn == "live" {
            world.restart().await;
        }
    }
    drop((ada, platform));
    let platform = world.client(PLATFORM).await;
    let request = |name: &str| v1::UnrecallDatasetRequest { name: name.into(), reason: "by mistake".into() };
    let no = refused(platform.operators().unrecall_dataset(request("dataset:acme/tickets@v2")).await);
    assert_eq!(
        (no.reason.as_str(), no.facts["nearest"].as_str()),
        ("LOCK_NOT_FOUND", "recall:dataset:acme/tickets@v3")
    );
    platform.operators().unrecall_dataset(request(TICKETS)).await.unwrap();
    world.client(LAUNCHER).await.create(reading("after", WORKER, &[TICKETS]), "after").await.unwrap();
    world.restart().await;
    world.client(LAUNCHER).await.create(reading("later", WORKER, &[TICKETS]), "later").await.unwrap();
    let records = world.records().await;
    assert_eq!(records.of("dataset.recalled").len(), 3);
    assert_eq!(records.one("dataset.unrecalled")["name"], TICKETS);
    assert!(records.of("outputs.quarantined").iter().any(|r| r["jobs"].to_string().contains(&reader.job)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_without_a_version_covers_all_versions() {
    let world = two_versions().await;
    let (ada, launcher) = (world.client(OPERATOR).await, world.client(LAUNCHER).await);
    let old = world.working_on(reading("old", WORKER, &[TICKETS]), WORKER).await;
    let v4 = "dataset:acme/tickets@v4";
    let new = world.working_on(reading("new", OTHER_WORKER, &[v4]), OTHER_WORKER).await;
    old.issue(Half::Reading).await;
    new.issue(Half::Reading).await;
    let done = ada.recall("dataset:acme/tickets", false).await.unwrap();
    assert_eq!((done.ending.unwrap().behind, done.jobs_closed_total), (2, 2));
    for version in [TICKETS, v4] {
        refused(launcher.create(reading("next", WORKER, &[version]), version).await)
            .is(Code::PermissionDenied, "LOCKED");
        assert_eq!(ada.left(version).await, [""; 0]);
    }
    // A job that had ended before is marked as well.
    let job = launcher.job(&old.job).await;
    assert!(!job.quarantined.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_of_failed_revoked_and_tainted_jobs_are_marked() {
    let world = World::start().await;
    let (ada, launcher) = (world.client(OPERATOR).await, world.client(LAUNCHER).await);
    let run = async |name: &str, outcome: v1::Outcome| {
        let worker = format!("spiffe://k8s.acme.example/ns/ml/job/{name}");
        let w = world.working_on(reading(name, &worker, &[TICKETS, MODEL]), &worker).await;
        launcher.end(&w.job, 1, outcome).await.unwrap();
        w.job.clone()
    };
    let (good, bad) = (run("good", v1::Outcome::Completed).await, run("bad", v1::Outcome::Failed).await);
    assert_eq!(launcher.job(&good).await.quarantined, "");
    assert_eq!(launcher.job(&bad).await.quarantined, "the job ended as failed");
    let done = ada.recall(TICKETS, false).await.unwrap();
    assert_eq!((done.jobs_closed_total, done.outputs_total), (0, 2), "closed jobs are descendants too");
    assert_eq!(launcher.job(&good).await.quarantined, format!("{TICKETS} was recalled"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_of_what_is_foreign_or_unknown_is_refused() {
    let world = World::start().await;
    let (ada, bob) = (world.client(OPERATOR).await, world.client(GLOBEX_OPERATOR).await);
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let no = Refused::of(&ada.recall("dataset:acme/ticket@v3", false).await.unwrap_err());
    assert_eq!((no.reason.as_str(), no.facts["nearest"].as_str()), ("NAME_UNKNOWN", TICKETS));
    Refused::of(&ada.recall(MODEL, false).await.unwrap_err()).is(Code::InvalidArgument, "FIELD_INVALID");
    let of = async |name: &str| {
        let no = Refused::of(&bob.recall(name, false).await.unwrap_err());
        (no.code, no.reason, no.text.replace(name, "NAME"))
    };
    assert_eq!(of(TICKETS).await, of("dataset:acme/nothing@v1").await);
    let clean = async |name: &str| {
        let request = v1::VerifyCleanRequest { name: name.into() };
        let no = refused(bob.operators().verify_clean(request).await);
        (no.code, no.reason)
    };
    assert_eq!(clean(TICKETS).await, clean("dataset:acme/nothing@v1").await);
    token.is_live(&world.client(GATEWAY).await).await;
}

/// A job is created at each reading of the clock during a recall: none of them is left open.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_job_slips_past_a_recall() {
    let world = World::start().await;
    let (ada, launcher) = (world.client(OPERATOR).await, world.client(LAUNCHER).await);
    for turn in 0..20 {
        let creating = {
            let launcher = launcher.clone();
            tokio::spawn(async move {
                launcher.create(reading("racer", WORKER, &[TICKETS]), &format!("race {turn}")).await.map(drop)
            })
        };
        ada.recall(TICKETS, false).await.unwrap();
        let _ = creating.await.unwrap();
        assert_eq!(ada.left(TICKETS).await, [""; 0], "turn {turn}");
        assert_eq!(world.daemon().broker.open_jobs(), 0, "turn {turn}");
        let request = v1::UnrecallDatasetRequest { name: TICKETS.into(), reason: "again".into() };
        world.client(PLATFORM).await.operators().unrecall_dataset(request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromised_job_locks_its_holders_and_its_launcher() {
    let world = World::start().await;
    let (ada, gateway) = (world.client(OPERATOR).await, world.client(GATEWAY).await);
    let launcher = world.client(LAUNCHER).await;
    let bad = world.working_on(reading("bad", WORKER, &[TICKETS]), WORKER).await;
    let beside = world.working_on(reading("beside", OTHER_WORKER, &[TICKETS]), OTHER_WORKER).await;
    let tokens = [bad.issue(Half::Reading).await, beside.issue(Half::Reading).await];
    let name = format!("job:{}", bad.job);
    let before = world.snapshot().await;
    let dry = ada.compromised(&name, true).await.unwrap();
    assert_eq!(world.snapshot().await, before, "a dry run changed something");
    let done = ada.compromised(&name, false).await.unwrap();
    for answer in [&dry, &done] {
        assert_eq!(answer.ending.as_ref().unwrap().behind, 2);
        let locks: Vec<_> = answer.locks.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(locks, [format!("identity:{WORKER}"), format!("launcher:{LAUNCHER}")]);
        let mut closed = answer.jobs_closed.clone();
        closed.sort();
        let mut wanted = [bad.job.clone(), beside.job.clone()];
        wanted.sort();
        assert_eq!(closed, wanted);
    }
    assert!(
        !done.notes.iter().any(|note| note.contains("closed already")),
        "it closed them: {:?}",
        done.notes
    );
    for token in &tokens {
        assert!(!token.seen_by(&gateway).await.active);
    }
    refused(launcher.create(reading("next", OTHER_WORKER, &[TICKETS]), "next").await)
        .is(Code::PermissionDenied, "LOCKED");
    assert_eq!(ada.left(&name).await, [""; 0]);
    assert_eq!(ada.left(&format!("identity:{WORKER}")).await, [""; 0]);
    assert_eq!(ada.left(&format!("launcher:{LAUNCHER}")).await, [""; 0]);
    // A name without a holder is refused: there a lock on the name itself is meant.
    Refused::of(&ada.compromised(TICKETS, false).await.unwrap_err())
        .is(Code::InvalidArgument, "FIELD_INVALID");
}

/// The job completed before anyone knew. What it wrote is as suspect as that of a job that was ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_of_a_compromised_job_are_quarantined() {
    let mut world = World::start().await;
    let ada = world.client(OPERATOR).await;
    let launcher = world.client(LAUNCHER).await;
    let run = async |name: &str, of: &str| {
        let worker = format!("spiffe://k8s.acme.example/ns/ml/job/{of}");
        let w = world.working_on(reading(name, &worker, &[TICKETS, MODEL]), &worker).await;
        launcher.end(&w.job, 1, v1::Outcome::Completed).await.unwrap();
        assert_eq!(launcher.job(&w.job).await.quarantined, "", "{name}");
        w.job.clone()
    };
    let (bad, beside, third) = (run("bad", "a").await, run("beside", "b").await, run("third", "c").await);
    let by_job = format!("job:{bad}");
    let by_identity = "identity:spiffe://k8s.acme.example/ns/ml/job/b";
    for name in [by_job.as_str(), by_identity] {
        let before = world.snapshot().await;
        let dry = ada.compromised(name, true).await.unwrap();
        assert_eq!(world.snapshot().await, before, "a dry run changed something");
        let done = ada.compromised(name, false).await.unwrap();
        for answer in [&dry, &done] {
            let said = |n: &String| n.contains("1 job(s)") && n.contains("quarantined");
            assert!(answer.notes.iter().any(said), "{name}: {:?}", answer.notes);
        }
    }
    drop((ada, launcher));
    for turn in ["live", "after a restart"] {
        let ada = world.client(OPERATOR).await;
        assert_eq!(ada.job(&bad).await.quarantined, format!("{by_job} was compromised"), "{turn}");
        assert_eq!(ada.job(&beside).await.quarantined, format!("{by_identity} was compromised"), "{turn}");
        assert_eq!(ada.job(&third).await.quarantined, "", "{turn}");
        drop(ada);
        if turn == "live" {
            world.restart().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromised_lease_locks_its_holder() {
    let world = World::start().await;
    let ada = world.client(OPERATOR).await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let done = ada.compromised(&format!("lease:{}", token.lease.id), false).await.unwrap();
    let locks: Vec<_> = done.locks.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(locks, [format!("identity:{WORKER}"), format!("launcher:{LAUNCHER}")]);
    assert!(done.locks[0].reason.contains("key seen in a paste"), "{:?}", done.locks);
    refused(worker.try_issue(Half::Reading).await).is(Code::PermissionDenied, "LOCKED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offboarded_identity_holds_and_launches_nothing() {
    let mut world = World::start().await;
    let (ada, gateway) = (world.client(OPERATOR).await, world.client(GATEWAY).await);
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let name = format!("identity:{LAUNCHER}");
    let before = world.snapshot().await;
    let dry = ada.offboard(&name, true).await.unwrap();
    assert_eq!(world.snapshot().await, before, "a dry run changed something");
    let done = ada.offboard(&name, false).await.unwrap();
    for answer in [&dry, &done] {
        assert_eq!(
            (answer.ending.as_ref().unwrap().behind, &answer.jobs_closed),
            (1, &vec![worker.job.clone()])
        );
        let kinds: Vec<_> = answer.stays.iter().map(|r| r.kind.as_str()).collect();
        assert_eq!(kinds, ["catalog entry", "svid", "output"], "{:?}", answer.stays);
    }
    assert!(!token.seen_by(&gateway).await.active);
    for turn in ["live", "after a restart"] {
        let launcher = world.client(LAUNCHER).await;
        refused(launcher.create(spec(), turn).await).is(Code::PermissionDenied, "LOCKED");
        assert_eq!(world.client(OPERATOR).await.left(&name).await, [""; 0], "{turn}");
        if turn == "live" {
            world.restart().await;
        }
    }
    let ada = world.client(OPERATOR).await;
    let again = ada.offboard(&name, false).await.unwrap();
    assert_eq!((again.ending.unwrap().behind, again.jobs_closed_total), (0, 0));
    let platform = world.client(PLATFORM).await;
    let no =
        Refused::of(&platform.offboard(&name.replace("sa/launcher", "sa/launchr"), false).await.unwrap_err());
    assert_eq!((no.reason.as_str(), no.facts["nearest"].as_str()), ("NAME_UNKNOWN", name.as_str()));
    Refused::of(&ada.offboard(TICKETS, false).await.unwrap_err()).is(Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_platform_offboards_a_tenant() {
    let world = World::start().await;
    let (ada, platform) = (world.client(OPERATOR).await, world.client(PLATFORM).await);
    let launcher = world.client(LAUNCHER).await;
    let worker = world.working().await;
    worker.issue_both().await;
    Refused::of(&ada.offboard("tenant:acme", false).await.unwrap_err())
        .is(Code::PermissionDenied, "POLICY_DENIED");
    let dry = platform.offboard("tenant:acme", true).await.unwrap();
    let done = platform.offboard("tenant:acme", false).await.unwrap();
    for answer in [&dry, &done] {
        assert_eq!(
            (answer.ending.as_ref().unwrap().behind, &answer.jobs_closed),
            (2, &vec![worker.job.clone()])
        );
        let named: Vec<_> = answer.stays.iter().map(|r| r.name.as_str()).collect();
        assert!(named.contains(&"acme.toml") && named.contains(&TICKETS), "{named:?}");
    }
    refused(launcher.create(spec(), "next").await).is(Code::PermissionDenied, "LOCKED");
    assert_eq!(platform.left("tenant:acme").await, [""; 0]);
    refused(ada.unlock("tenant:acme").await).is(Code::PermissionDenied, "POLICY_DENIED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_clean_lists_all_that_is_left() {
    let world = World::start().await;
    let (ada, auditor) = (world.client(OPERATOR).await, world.client(AUDITOR).await);
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let platform = world.client(PLATFORM).await;
    let whole =
        [format!("lease {}", token.lease.id), "member rank-0".to_owned(), format!("job {}", worker.job)];
    let job = format!("job:{}", worker.job);
    let worker_name = format!("identity:{WORKER}");
    for name in [&job, TICKETS, MODEL, "dataset:acme/tickets", "tenant:acme", worker_name.as_str()] {
        assert_eq!(ada.left(name).await, whole, "{name}");
        assert_eq!(auditor.left(name).await, whole, "{name}");
    }
    assert_eq!(platform.left("human:ada").await, whole);
    assert_eq!(ada.left("dataset:acme/patients@v1").await, [""; 0]);
    // A lock ends the lease and stops the job. The member stays joined.
    ada.lock(TICKETS).await.unwrap();
    assert_eq!(ada.left(TICKETS).await, ["member rank-0"]);
    ada.revoke(&job).await.unwrap();
    assert_eq!(ada.left(TICKETS).await, [""; 0]);
    let request = v1::VerifyCleanRequest { name: TICKETS.into() };
    assert_eq!(ada.operators().verify_clean(request).await.unwrap().into_inner().locked_by, TICKETS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_clean_knows_what_is_locked_ahead_and_the_caller() {
    let world = World::start().await;
    let platform = world.client(PLATFORM).await;
    let request = || v1::VerifyCleanRequest { name: "human:nemo".into() };
    refused(platform.operators().verify_clean(request()).await).is(Code::NotFound, "NAME_UNKNOWN");
    platform.lock("human:nemo").await.unwrap();
    assert_eq!(platform.left("human:nemo").await, [""; 0]);
    // The catalog matches the caller by a pattern, and nothing else names this person.
    assert_eq!(platform.left("human:root").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_job_says_that_its_identity_is_taken() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let first = world.working_on(reading("first", WORKER, &[TICKETS]), WORKER).await;
    let next = |key: &'static str, worker: &str| launcher.create(reading(key, worker, &[TICKETS]), key);
    let notes = |answer: v1::CreateJobResponse| answer.job.unwrap().notes;
    let busy = notes(next("busy", WORKER).await.unwrap().into_inner());
    assert!(
        busy.iter().any(|n| n.contains(WORKER) && n.contains(&first.job) && n.contains("25 h")),
        "{busy:?}"
    );
    assert_eq!(notes(next("other", OTHER_WORKER).await.unwrap().into_inner()), [""; 0]);
    // Its SVID may be valid after the end.
    world.client(OPERATOR).await.revoke(&format!("job:{}", first.job)).await.unwrap();
    let over = notes(next("over", WORKER).await.unwrap().into_inner());
    assert!(over.iter().any(|n| n.contains(&first.job)), "{over:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_clean_lists_jobs_that_an_identity_may_join() {
    let world = World::start().await;
    let (ada, platform) = (world.client(OPERATOR).await, world.client(PLATFORM).await);
    let launcher = world.client(LAUNCHER).await;
    let mut jobs = Vec::new();
    for (name, join) in [("exact", WORKER), ("pattern", "spiffe://k8s.acme.example/ns/ml/job/*")] {
        let created = launcher.create(reading(name, join, &[TICKETS]), name).await.unwrap();
        jobs.push(format!("job {}", created.into_inner().job.unwrap().id));
    }
    let pattern = jobs[1].clone();
    jobs.sort();
    let sorted = |mut left: Vec<String>| {
        left.sort();
        left
    };
    let worker = format!("identity:{WORKER}");
    let prefix = "identity-prefix:spiffe://k8s.acme.example/ns/ml/job/";
    assert_eq!(sorted(ada.left(&worker).await), jobs);
    assert_eq!(sorted(platform.left(prefix).await), jobs);
    assert_eq!(ada.left(&format!("identity:{OTHER_WORKER}")).await, std::slice::from_ref(&pattern));
    // A lock on the one identity that a job names keeps that job shut. A pattern stays open to others.
    ada.lock(&worker).await.unwrap();
    assert_eq!(ada.left(&worker).await, [""; 0]);
    assert_eq!(platform.left(prefix).await, [pattern]);
    platform.lock("identity-prefix:spiffe://k8s.acme.example/ns/ml/").await.unwrap();
    assert_eq!(platform.left(prefix).await, [""; 0], "a wider prefix is locked");
}

/// The catalog has dropped the identity, and a job still names it: the check must look, and not call it unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_clean_finds_an_identity_that_only_a_job_names() {
    let world = World::start().await;
    let (platform, launcher) = (world.client(PLATFORM).await, world.client(LAUNCHER).await);
    let start = v1::Members { start: vec![SHARED.into()], join: vec![WORKER.into()], ..Default::default() };
    let named = v1::JobSpec { members: Some(start), ..reading("named", WORKER, &[TICKETS]) };
    let job = launcher.create(named, "named").await.unwrap().into_inner().job.unwrap().id;
    let acme = world.read("catalog.d/acme.toml");
    let gone = acme.replacen(
        "spiffe://hpc.acme.example/slurm/ml-support/*",
        "spiffe://hpc.acme.example/slurm/x/*",
        1,
    );
    world.write("catalog.d/acme.toml", &gone);
    world.daemon().reload();
    let unknown = async || {
        let request = v1::VerifyCleanRequest { name: format!("identity:{SHARED}-typo") };
        refused(platform.operators().verify_clean(request).await)
    };
    eventually("the catalog without it", async || !world.records().await.of("catalog.loaded").is_empty())
        .await;
    assert_eq!(platform.left(&format!("identity:{SHARED}")).await, [format!("job {job}")]);
    assert_eq!(unknown().await.reason, "NAME_UNKNOWN");
}

/// A server that only reads `/keys` accepts the token of an ended lease for a while: that is not clean.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_clean_counts_tokens_that_are_still_accepted() {
    let world = World::start().await;
    let ada = world.client(OPERATOR).await;
    let handbook = "dataset:acme/handbook@v1";
    let worker = world.working_on(reading("web", WORKER, &[handbook]), WORKER).await;
    let token = worker.issue(Half::Reading).await;
    let done = ada.recall(handbook, false).await.unwrap();
    assert!(done.notes.iter().any(|n| n.contains("/keys")), "{:?}", done.notes);
    assert_eq!(ada.left(handbook).await, [format!("token {}", token.lease.id)]);
    world.time().advance(leasehold::limits::OFFLINE_TOKEN_TTL_MAX);
    assert_eq!(ada.left(handbook).await, [""; 0]);
}
