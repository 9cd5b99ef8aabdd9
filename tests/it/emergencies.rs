//! Gates that one person opens in an emergency, and the review that stays due.

use std::time::Duration;

use leasehold::proto::v1::{self, Half, JobState, Outcome};
use serde_json::json;
use tonic::{Code, Response, Status};

use crate::{approvals::*, harness::*};

/// On call at acme: in the group break-glass.
const ONCALL: &str = "spiffe://people.acme.example/emergency/olga";
/// The person of the usual job, on call.
const ADA_ONCALL: &str = "spiffe://people.acme.example/emergency/ada";
/// The person on call, as an operator.
const OLGA: &str = "spiffe://people.acme.example/u/olga";

impl Client {
    async fn break_glass(
        &self,
        job: &v1::Job,
        lasting: Option<i64>,
    ) -> Result<Response<v1::BreakGlassResponse>, Status> {
        let request = v1::BreakGlassRequest {
            job: job.id.clone(),
            request_digest: job.request_digest.clone(),
            reason: "INC-7".into(),
            lasting: lasting.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        };
        self.approvals().break_glass(request).await
    }

    async fn due(&self) -> Vec<v1::Review> {
        let request = v1::ListReviewsRequest::default();
        self.approvals().list_reviews(request).await.unwrap().into_inner().reviews
    }

    async fn finish_review(&self, job: &str) -> Result<Response<v1::FinishReviewResponse>, Status> {
        let request = v1::FinishReviewRequest { job: job.into(), reason: "looked at".into() };
        self.approvals().finish_review(request).await
    }
}

/// Control 35: an emergency is named, reasoned, alarmed and short, and its review stays due over a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emergency_opens_gates_shortly_and_must_be_reviewed() {
    let mut world = World::start().await;
    let job = created(&world, production()).await;
    let opened = world.client(ONCALL).await.break_glass(&job, Some(1_800)).await.unwrap().into_inner();
    let opened = opened.job.unwrap();
    assert_eq!((opened.state(), waits_at(&opened)), (JobState::Ready, vec![]));
    let emergency = opened.emergency.clone().unwrap();
    assert_eq!((emergency.by.as_str(), emergency.human.as_str()), (ONCALL, "human:olga"));
    assert_eq!((emergency.gates.as_slice(), emergency.review_due), (&[PRODUCTION.to_owned()][..], true));
    let worker = running(&world, &job).await;
    let token = worker.issue(Half::Reading).await;
    token.is_live(&world.client(GATEWAY).await).await;
    let records = world.records().await;
    let broken = records.one("job.glass_broken");
    assert_eq!(broken["emergency"]["reason"], "INC-7");
    assert_eq!(broken["request_digest"], job.request_digest.as_str());
    let issued = records.one("credential.issued");
    assert_eq!(issued["emergency"]["by"], ONCALL);
    assert_eq!(issued["decision"]["approved"], json!([PRODUCTION]));
    assert!(world.counted("leasehold_emergencies_total", "").await >= 1.0);
    // Its time is half an hour, whatever the job asked for.
    let ends = opened.ends_at_latest.unwrap().seconds - emergency.at.unwrap().seconds;
    assert_eq!(ends, 1_800);
    assert_eq!(world.client(LAUNCHER).await.job(&job.id).await.ends_at_latest, opened.ends_at_latest);
    world.time().advance(Duration::from_secs(1_801));
    eventually("the end of the job", async || {
        world.client(OPERATOR).await.job(&job.id).await.outcome() == Outcome::Interrupted
    })
    .await;
    // The review outlives the job and the daemon.
    world.restart().await;
    let operator = world.client(OPERATOR).await;
    let due = operator.due().await;
    assert_eq!((due.len(), due[0].job.as_str(), due[0].reason.as_str()), (1, job.id.as_str(), "INC-7"));
    assert_eq!(world.client(AUDITOR).await.due().await.len(), 1);
    assert_eq!(world.client(GLOBEX_OPERATOR).await.due().await, []);
    let pia = world.client(PIA).await;
    let done = pia.finish_review(&job.id).await.unwrap().into_inner().review.unwrap();
    assert_eq!(done.by, ONCALL);
    assert_eq!(operator.due().await, []);
    refused(pia.finish_review(&job.id).await).is(Code::FailedPrecondition, "STATE_CONFLICT");
    world.restart().await;
    assert_eq!(world.client(OPERATOR).await.due().await, []);
    let records = world.records().await;
    let reviewed = records.one("review.done");
    assert_eq!((&reviewed["reason"], &reviewed["by"]["human"]), (&json!("looked at"), &json!("pia")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_group_opens_gates_and_only_others_review() {
    let world = World::start().await;
    let job = created(&world, production()).await;
    for id in [OPERATOR, PLATFORM, MONA, LAUNCHER] {
        let no = refused(world.client(id).await.break_glass(&job, None).await);
        no.is(Code::PermissionDenied, "POLICY_DENIED");
    }
    refused(world.client(WORKER).await.break_glass(&job, None).await)
        .is(Code::PermissionDenied, "KIND_NOT_ALLOWED");
    let stranger = world.client(GLOBEX_OPERATOR).await;
    refused(stranger.break_glass(&job, None).await).is(Code::NotFound, "JOB_NOT_FOUND");
    let oncall = world.client(ONCALL).await;
    let other = v1::Job { request_digest: format!("sha256:{}", "00".repeat(32)), ..job.clone() };
    refused(oncall.break_glass(&other, None).await).is(Code::FailedPrecondition, "REQUEST_MISMATCH");
    refused(oncall.break_glass(&job, Some(5 * 3_600)).await).is(Code::InvalidArgument, "TTL_INVALID");
    let free = world.client(LAUNCHER).await.create(spec(), "free").await.unwrap().into_inner().job.unwrap();
    refused(oncall.break_glass(&free, None).await).is(Code::FailedPrecondition, "STATE_CONFLICT");
    assert_eq!(world.client(OPERATOR).await.due().await, [], "nothing was opened");

    oncall.break_glass(&job, None).await.unwrap();
    // The same again changes nothing, and does not prolong it.
    oncall.break_glass(&job, Some(4 * 3_600)).await.unwrap();
    let seen = world.client(OPERATOR).await.job(&job.id).await.emergency.unwrap();
    assert_eq!(seen.until.unwrap().seconds - seen.at.unwrap().seconds, 3_600);
    for id in [OLGA, OPERATOR] {
        // The person who opened the gates, and the one that the job is for.
        let no = refused(world.client(id).await.finish_review(&job.id).await);
        no.is(Code::PermissionDenied, "APPROVER_INVOLVED");
    }
    refused(stranger.finish_review(&job.id).await).is(Code::NotFound, "JOB_NOT_FOUND");
    world.client(PIA).await.finish_review(&job.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_or_a_reload_ends_what_an_emergency_opened() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let platform = world.client(PLATFORM).await;
    let job = created(&world, sensitive()).await;
    world.client(ADA_ONCALL).await.break_glass(&job, None).await.unwrap();
    let worker = running(&world, &job).await;
    let token = worker.issue(Half::Reading).await;
    token.is_live(&gateway).await;
    let lock = |dry_run| v1::LockRequest {
        name: format!("identity:{ADA_ONCALL}"),
        reason: "left".into(),
        dry_run,
        ahead: true,
        ..Default::default()
    };
    let dry = platform.operators().lock(lock(true)).await.unwrap().into_inner().ending.unwrap();
    assert_eq!(dry.behind, 1);
    platform.operators().lock(lock(false)).await.unwrap();
    token.is_dead(&gateway, "LEASE_ENDED").await;
    let no = refused(worker.try_issue(Half::Reading).await);
    no.is(Code::FailedPrecondition, "APPROVAL_REQUIRED");
    let seen = platform.job(&job.id).await.emergency.unwrap();
    assert!(seen.void_because.contains("is locked"), "{seen:?}");
    platform.unlock(&format!("identity:{ADA_ONCALL}")).await.unwrap();
    let token = worker.issue(Half::Reading).await;
    // Without the group, nothing is open.
    let acme = world.read("catalog.d/acme.toml");
    world.write("catalog.d/acme.toml", &acme.replace("\"break-glass\"", "\"operators\""));
    let request = v1::ReloadCatalogRequest { dry_run: false };
    platform.operators().reload_catalog(request).await.unwrap();
    token.is_dead(&gateway, "LEASE_ENDED").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_emergencies_without_review_are_refused() {
    let world = World::start().await;
    let oncall = world.client(ONCALL).await;
    let mut last = None;
    for turn in 0..=32 {
        let spec = v1::JobSpec { name: format!("live-{turn}"), ..production() };
        let job = created(&world, spec).await;
        match oncall.break_glass(&job, None).await {
            Ok(_) if turn < 32 => {}
            Err(no) if turn == 32 => Refused::of(&no).is(Code::ResourceExhausted, "QUOTA_EXCEEDED"),
            other => panic!("{turn}: {other:?}"),
        }
        last = Some(job);
    }
    let due = world.client(PIA).await.due().await;
    assert_eq!(due.len(), 32);
    world.client(PIA).await.finish_review(&due[0].job).await.unwrap();
    oncall.break_glass(&last.unwrap(), None).await.unwrap();
}

/// The commands, as a person types them.
#[tokio::test(flavor = "multi_thread")]
async fn reviews_due_and_done_are_commands() {
    let world = World::with(|setup| {
        setup.real_clock = true;
        let acme = setup.catalog.get_mut("acme.toml").unwrap();
        *acme = acme.replacen(
            "may_act_for = [\"human:*\"]",
            "may_act_for = [\"human:*\"]\ngroups = [\"break-glass\"]",
            1,
        );
    })
    .await;
    let run = async |id: &str, args: &[&str]| {
        let mut command = world.leasehold(id, &[], args);
        (command.exit().await, command.stdout(), command.stderr())
    };
    world.write(
        "patients.toml",
        &job_toml("", &format!("[members]\njoin = [\"{WORKER}\"]\n"))
            .replace(TICKETS, "dataset:acme/patients@v1"),
    );
    let file = world.file("patients.toml");
    let create = ["job", "create", "--spec", file.to_str().unwrap(), "--as", "workload"];
    let emergency = ["--break-glass", "--reason", "INC-7", "--lasting", "30m"];
    let (code, out, err) = run(LAUNCHER, &[&create[..], &emergency[..]].concat()).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(err.contains("A review is due") && err.contains("(in 29m 5"), "{err}");
    let id = out.lines().next().unwrap().to_owned();
    let (code, out, err) = run(PIA, &["reviews", "due", "--as", "workload"]).await;
    assert_eq!(code, Some(6), "{out}{err}");
    assert!(out.contains(&id) && out.contains("INC-7"), "{out}");
    let done = ["reviews", "done", &id[..10], "--reason", "looked at", "--as", "workload"];
    let (code, out, err) = run(PIA, &done).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, _, err) = run(PIA, &["reviews", "due", "--as", "workload"]).await;
    assert!(code == Some(0) && err.contains("No review is due"), "{err}");
    // No review is due, so no beginning of an id means one.
    let (code, _, err) = run(PIA, &done).await;
    assert!(code == Some(1) && err.contains("no review is due of a job whose id begins with"), "{err}");
}

/// A person with a part in something open is known by name, also if only a pattern of the catalog matches them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_who_opened_gates_can_be_locked_by_name() {
    let world = World::start().await;
    let platform = world.client(PLATFORM).await;
    let locks = async |name: &str| {
        let (name, reason) = (name.to_owned(), "looking".to_owned());
        let request = v1::LockRequest { name, reason, dry_run: true, ..Default::default() };
        platform.operators().lock(request).await
    };
    refused(locks("human:olga").await).is(Code::NotFound, "NAME_UNKNOWN");
    let job = created(&world, production()).await;
    world.client(ONCALL).await.break_glass(&job, Some(1_800)).await.unwrap();
    locks("human:olga").await.unwrap();
    // Her review stays due after the end of the job.
    world.time().advance(Duration::from_secs(1_801));
    world.recorded("the end of the job", |records| !records.of("job.closed").is_empty()).await;
    locks("human:olga").await.unwrap();
    // Someone who approved is known too.
    let other = created(&world, v1::JobSpec { name: "other".into(), ..production() }).await;
    refused(locks("human:mona").await).is(Code::NotFound, "NAME_UNKNOWN");
    approved_by(&world, &other, &[MONA]).await;
    locks("human:mona").await.unwrap();
}
