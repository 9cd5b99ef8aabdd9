//! What a job says of itself, and what makes it risky: required, computed, shown and recorded.

use leasehold::proto::v1::{self, Half, JobState};
use serde_json::{Value, json};
use tonic::Code;

use crate::{approvals::*, harness::*};

/// Changes a request.
type Alteration = fn(&mut v1::JobSpec);

const LIVE: &str = "model:acme/live-7b@2026.10";

/// A job that only reads the production model.
fn reading_live() -> v1::JobSpec {
    v1::JobSpec {
        name: "reads".into(),
        read: vec![LIVE.into()],
        write: Vec::new(),
        tune: None,
        ..production()
    }
}

/// A daemon with one more policy file.
async fn world_with(rules: &str) -> World {
    let mut world = World::prepared(|_| {});
    world.write("policy/site.cedar", rules);
    world.restart().await;
    world
}

/// Control 32 and control 37: a refusal names each field that a change of a production model lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_missing_field_of_a_production_job_is_named() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let bare = v1::JobSpec {
        why: String::new(),
        ticket: String::new(),
        rollback_to: String::new(),
        prompt_alternative: String::new(),
        ..production()
    };
    let no = refused(launcher.create(bare, "bare").await);
    no.is(Code::PermissionDenied, "POLICY_DENIED");
    let said = format!("{no:?}");
    for rule in ["guard-change-ticket", "guard-change-why", "guard-change-rollback", "guard-change-prompt"] {
        assert!(said.contains(rule), "{rule}: {said}");
    }
    let alterations: [(&str, Alteration); 4] = [
        ("guard-change-ticket", |s| s.ticket.clear()),
        ("guard-change-why", |s| s.why.clear()),
        ("guard-change-rollback", |s| s.rollback_to.clear()),
        ("guard-change-prompt", |s| s.prompt_alternative.clear()),
    ];
    for (rule, alter) in alterations {
        let mut spec = production();
        alter(&mut spec);
        let no = refused(launcher.create(spec, rule).await);
        assert!(no.reason == "POLICY_DENIED" && no.facts["rule"].contains(rule), "{rule}: {no:?}");
    }
    // A lab model asks for none of them.
    launcher.create(v1::JobSpec { why: String::new(), ..spec() }, "lab").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_back_must_exist_and_be_a_model() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let to = |name: &str| v1::JobSpec { rollback_to: name.into(), ..production() };
    for name in ["model:acme/live-7b@2020.01", "model:globex/base@1"] {
        let no = refused(launcher.create(to(name), name).await);
        no.is(Code::NotFound, "RESOURCE_NOT_FOUND");
        assert_eq!(no.facts["field"], "rollback_to");
    }
    for name in ["model:acme/live-7b", TICKETS, "live-7b"] {
        refused(launcher.create(to(name), name).await).is(Code::InvalidArgument, "FIELD_INVALID");
    }
}

/// Control 13 and control 28: to read a production model, or untrusted data, meets a gate too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_only_reads_meets_the_gates_of_tuning() {
    let world = World::with(|setup| {
        let acme = setup.catalog.get_mut("acme.toml").unwrap();
        *acme = acme.replacen("source_trust   = \"curated\"", "source_trust   = \"untrusted\"", 1);
    })
    .await;
    let job = created(&world, reading_live()).await;
    assert_eq!(waits_at(&job), [PRODUCTION]);
    let untrusted = v1::JobSpec { read: vec![TICKETS.into()], write: Vec::new(), tune: None, ..spec() };
    let job = created(&world, v1::JobSpec { name: "forum".into(), ..untrusted }).await;
    assert_eq!(waits_at(&job), ["gate-untrusted-source"]);
    approved_by(&world, &job, &[PIA]).await;
    running(&world, &job).await.issue(Half::Reading).await;
}

/// Control 17: the risk is computed, shown to everyone who decides, and recorded with its reasons.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn risk_is_computed_shown_and_recorded() {
    let world = World::start().await;
    let reasons = ["personal-data", "unpinned-input"];
    let launcher = world.client(LAUNCHER).await;
    let request = v1::CreateJobRequest { spec: Some(sensitive()), dry_run: true, ..Default::default() };
    let checked = launcher.jobs().create_job(request).await.unwrap().into_inner().job.unwrap();
    let risk = checked.risk.unwrap();
    assert_eq!((risk.score, risk.reasons.as_slice()), (4, &reasons.map(String::from)[..]));
    let job = created(&world, sensitive()).await;
    let pia = world.client(PIA).await;
    let listed = pia.approvals().list_approvals(v1::ListApprovalsRequest::default()).await.unwrap();
    let shown = listed.into_inner().waiting[0].job.clone().unwrap();
    assert_eq!(shown.risk.unwrap().reasons, reasons);
    assert_eq!(pia.job(&job.id).await.risk.unwrap().score, 4);
    approved_by(&world, &job, &[PIA]).await;
    running(&world, &job).await.issue(Half::Reading).await;
    let records = world.records().await;
    let recorded = json!({ "score": 4, "reasons": reasons });
    for kind in ["job.created", "attempt.began", "credential.issued"] {
        assert_eq!(records.one(kind)["decision"]["risk"], recorded, "{kind}");
    }
    assert_eq!(records.one("credential.issued")["decision"]["approved"], json!([SENSITIVE]));
}

/// Rules of a site: what it asks of risky jobs.
const SITE: &str = r#"
@id("guard-for-someone")
@explain("a job on personal data says for whom it is done")
@fix("write acting_for = \"human:NAME\" into the job file")
forbid (principal is Leasehold::Workload, action == Leasehold::Action::"read_dataset", resource is Leasehold::Dataset)
when { context.risk_reasons.contains("personal-data") && context.acting_for == "" };

@id("gate-much-risk")
@gate("approval") @approver_group("model-owners") @approvals("1") @approval_ttl("1h")
@explain("a job with a risk of 5 or more needs a model owner")
forbid (principal is Leasehold::Workload, action in Leasehold::Action::"tune_part", resource)
when { context.risk >= 5 }
unless { context.approved.contains("gate-much-risk") };
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_decides_by_risk_and_requires_acting_for() {
    let world = world_with(SITE).await;
    let launcher = world.client(LAUNCHER).await;
    let nameless = v1::JobSpec { acting_for: String::new(), ..sensitive() };
    let no = refused(launcher.create(nameless, "nameless").await);
    assert!(no.facts["rule"].contains("guard-for-someone"), "{no:?}");
    let job = created(&world, sensitive()).await;
    assert_eq!(waits_at(&job), [SENSITIVE], "a risk of 4");
    // The same work by an identity that several jobs carry has more risk.
    let members = v1::Members {
        join: vec!["spiffe://hpc.acme.example/slurm/ml-support/node7".into()],
        ..Default::default()
    };
    let shared = v1::JobSpec { name: "shared".into(), members: Some(members), ..sensitive() };
    let job = created(&world, shared).await;
    assert_eq!(waits_at(&job), ["gate-much-risk", SENSITIVE]);
}

/// Control 11: what looks like a secret is refused before it is recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn free_texts_that_look_like_a_secret_are_refused() {
    const SECRET: &str = "ghp_0123456789abcdefABCDEF0123456789abcd";
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let alterations: [fn(&mut v1::JobSpec, String); 4] = [
        |s, text| s.why = text,
        |s, text| s.ticket = text,
        |s, text| s.prompt_alternative = text,
        |s, text| s.tune.as_mut().unwrap().prompts = vec![text],
    ];
    for (turn, alter) in alterations.into_iter().enumerate() {
        let mut spec = production();
        alter(&mut spec, format!("see {SECRET}"));
        let no = refused(launcher.create(spec, &turn.to_string()).await);
        no.is(Code::InvalidArgument, "FIELD_INVALID");
        assert!(no.text.contains("looks like a key") && !format!("{no:?}").contains(SECRET), "{no:?}");
    }
    let job = created(&world, production()).await;
    let mona = world.client(MONA).await;
    let request = v1::ApproveRequest {
        job: job.id.clone(),
        request_digest: job.request_digest.clone(),
        reason: SECRET.into(),
        ..Default::default()
    };
    refused(mona.approvals().approve(request).await).is(Code::InvalidArgument, "FIELD_INVALID");
    let request = v1::RejectRequest { job: job.id.clone(), reason: SECRET.into() };
    refused(mona.approvals().reject(request).await).is(Code::InvalidArgument, "FIELD_INVALID");
    let platform = world.client(PLATFORM).await;
    let request = v1::LockRequest { name: TICKETS.into(), reason: SECRET.into(), ..Default::default() };
    refused(platform.operators().lock(request).await).is(Code::InvalidArgument, "FIELD_INVALID");
    let long = v1::JobSpec { ticket: "x".repeat(200), ..production() };
    refused(launcher.create(long, "long").await).is(Code::InvalidArgument, "FIELD_INVALID");
    assert!(!world.records().await.text.contains(SECRET));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn can_i_counts_the_approvals_of_a_job() {
    let world = World::start().await;
    let job = created(&world, production()).await;
    let operator = world.client(OPERATOR).await;
    let ask = async || {
        let request = v1::EvaluatePolicyRequest {
            action: "finetune".into(),
            resource: LIVE.into(),
            identity: WORKER.into(),
            job: job.id.clone(),
            ..Default::default()
        };
        operator.operators().evaluate_policy(request).await.unwrap().into_inner().answer()
    };
    assert_eq!(ask().await, v1::PolicyAnswer::Wait);
    approved_by(&world, &job, &[MONA, MILO]).await;
    assert_eq!(ask().await, v1::PolicyAnswer::Allow);
    world.client(PLATFORM).await.lock("human:mona").await.unwrap();
    assert_eq!(ask().await, v1::PolicyAnswer::Wait);
    // It is asked for what the job does, and by who may see the job.
    let other = v1::EvaluatePolicyRequest {
        action: "read_dataset".into(),
        resource: "dataset:acme/patients@v1".into(),
        job: job.id.clone(),
        identity: WORKER.into(),
        ..Default::default()
    };
    refused(operator.operators().evaluate_policy(other.clone()).await)
        .is(Code::InvalidArgument, "FIELD_INVALID");
    let foreign = v1::EvaluatePolicyRequest { identity: String::new(), ..other };
    let globex = world.client(GLOBEX_OPERATOR).await;
    refused(globex.operators().evaluate_policy(foreign).await).is(Code::NotFound, "JOB_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_lock_counts_what_its_void_approvals_end() {
    let world = World::start().await;
    let job = created(&world, production()).await;
    approved_by(&world, &job, &[MONA, MILO]).await;
    let worker = running(&world, &job).await;
    worker.issue_both().await;
    let platform = world.client(PLATFORM).await;
    let lock = async |name: &str, dry_run: bool| {
        let request = v1::LockRequest {
            name: name.into(),
            reason: "left".into(),
            dry_run,
            ahead: true,
            ..Default::default()
        };
        platform.operators().lock(request).await.unwrap().into_inner().ending.unwrap().behind
    };
    assert_eq!(lock("human:nobody", true).await, 0);
    assert_eq!(lock(&format!("identity:{MONA}"), true).await, 2);
    assert_eq!(lock("human:mona", true).await, 2);
    assert_eq!(lock("human:mona", false).await, 2, "as many as the dry run said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_and_diff_count_the_approvals_of_a_job() {
    let world = World::start().await;
    let job = created(&world, production()).await;
    approved_by(&world, &job, &[MONA, MILO]).await;
    assert_eq!(world.client(OPERATOR).await.job(&job.id).await.state(), JobState::Ready);
    let worker = running(&world, &job).await;
    worker.issue(Half::Reading).await;
    let operator = world.client(OPERATOR).await;
    let explain = async |replay: bool| {
        let request = v1::ExplainJobRequest { job: job.id.clone(), replay, ..Default::default() };
        operator.operators().explain_job(request).await.unwrap().into_inner().decisions
    };
    for replay in [false, true] {
        let decisions = explain(replay).await;
        assert!(decisions.iter().all(|d| d.again() == v1::DecidedAgain::Same), "{replay}: {decisions:#?}");
        let issued = decisions.iter().find(|d| d.record == "credential.issued").unwrap();
        assert_eq!(issued.approved, [PRODUCTION]);
        assert_eq!(issued.risk, issued.risk_again);
        assert!(issued.risk.as_ref().unwrap().reasons.contains(&"production-model".to_owned()));
    }
    // An approver is locked: decided by what is in force now, people are missing. The replay still has them.
    world.client(PLATFORM).await.lock("human:mona").await.unwrap();
    let issued = |decisions: Vec<v1::RecordedDecision>| {
        decisions.into_iter().find(|d| d.record == "credential.issued").unwrap()
    };
    assert_eq!(issued(explain(false).await).result_again, "wait");
    assert_eq!(issued(explain(true).await).again(), v1::DecidedAgain::Same);
}

/// A policy change is shown for a waiting job with the approvals that it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_diff_counts_approvals_of_waiting_jobs() {
    let world = World::start().await;
    let job = created(&world, production()).await;
    approved_by(&world, &job, &[MONA]).await;
    let platform = world.client(PLATFORM).await;
    let change = async |from: &str, to: &str| {
        let text = world.read("policy/leasehold.cedar");
        assert!(text.contains(from), "{from}");
        let policies =
            vec![v1::PolicyFile { file: "leasehold.cedar".into(), text: text.replacen(from, to, 1) }];
        let request =
            v1::ApplyPolicyRequest { policies, reason: "x".into(), dry_run: true, ..Default::default() };
        platform.operators().apply_policy(request).await.unwrap().into_inner().jobs
    };
    let group = "@approver_group(\"model-owners\") @approvals(\"2\")";
    let jobs = change(group, "@approver_group(\"model-owners\") @approvals(\"1\")").await;
    assert_eq!((jobs[0].job.as_str(), jobs[0].change.as_str()), (job.id.as_str(), "waits for no one"));
    assert_eq!(change(group, "@approver_group(\"model-owners\") @approvals(\"3\")").await, []);
}

/// The commands show what a job says of itself, and its risk.
#[tokio::test(flavor = "multi_thread")]
async fn job_check_and_show_print_the_risk_and_the_fields() {
    let world = World::with(|setup| setup.real_clock = true).await;
    let job = created(&world, production()).await;
    let shown = async |args: &[&str]| {
        let mut command = world.leasehold(OPERATOR, &[], args);
        assert_eq!(command.exit().await, Some(0), "{}", command.stderr());
        command.stdout()
    };
    let text = shown(&["job", "show", &job.id, "--as", "workload"]).await;
    for said in ["CHG-1412", LIVE, "the longer prompt", "production-model"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let value: Value =
        serde_json::from_str(&shown(&["job", "show", &job.id, "--as", "workload", "-o", "json"]).await)
            .unwrap();
    assert_eq!(value["spec"]["ticket"], "CHG-1412");
    assert!(value["risk"]["score"].as_u64().unwrap() >= 3, "{value}");
}

/// A disabled identity, a tier in other case and a class of data that no rule knows never pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_unknown_word_and_no_disabled_identity_passes() {
    let mut world = World::with(|setup| {
        let acme = setup.catalog.get_mut("acme.toml").unwrap();
        *acme = acme.replacen("data_classes   = [\"phi\"]", "data_classes   = [\"phy\"]", 1);
    })
    .await;
    let launcher = world.client(LAUNCHER).await;
    let no = refused(launcher.create(sensitive(), "misspelled").await);
    assert!(no.reason == "POLICY_DENIED" && no.facts["rule"].contains("guard-known-classes"), "{no:?}");
    let members = v1::Members { join: vec![DISABLED.into()], ..Default::default() };
    let no = refused(launcher.create(v1::JobSpec { members: Some(members), ..spec() }, "disabled").await);
    no.is(Code::PermissionDenied, "NOT_A_MEMBER");
    // Words of closed lists are refused when the catalog is read: nothing of that file comes into force.
    let good = world.read("catalog.d/acme.toml");
    let words =
        [("tier        = \"production\"", "tier        = \"Production\""), ("\"restricted\"", "\"secret\"")];
    for (word, other) in words.into_iter().filter(|(word, _)| good.contains(word)) {
        let before = world.daemon().broker.rules.in_force().catalog().digest();
        world.write("catalog.d/acme.toml", &good.replacen(word, other, 1));
        world.daemon().reload();
        assert_eq!(world.daemon().broker.rules.in_force().catalog().digest(), before, "{other}");
        world.restart().await;
        // A start leaves the file out, so no one of it has access.
        let launcher = world.client(LAUNCHER).await;
        refused(launcher.create(spec(), "unknown").await).is(Code::PermissionDenied, "PRINCIPAL_UNKNOWN");
        world.write("catalog.d/acme.toml", &good);
        world.restart().await;
    }
    assert!(good.contains(words[0].0), "the catalog has a production model");
}

/// Control 12: a site names the images that may train, and a lock on one keeps out and ends the jobs that name it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_and_locks_see_the_image_of_a_job() {
    let rule = format!(
        r#"
@id("guard-known-image")
@explain("a job names a container image that was reviewed")
@fix("write image = \"sha256:…\" into the job file")
forbid (principal is Leasehold::Workload, action in Leasehold::Action::"tune_part", resource)
unless {{ ["{IMAGE}"].contains(context.image) }};
"#
    );
    let world = world_with(&rule).await;
    let launcher = world.client(LAUNCHER).await;
    let other = format!("sha256:{}", "0b".repeat(32));
    for image in ["", &other] {
        let no = refused(launcher.create(v1::JobSpec { image: image.into(), ..spec() }, "other").await);
        assert!(no.reason == "POLICY_DENIED" && no.facts["rule"].contains("guard-known-image"), "{no:?}");
    }
    for image in ["trainer:latest", "registry.example/trainer@sha256:00", &IMAGE.to_uppercase()] {
        let no = refused(launcher.create(v1::JobSpec { image: image.into(), ..spec() }, "bad").await);
        no.is(Code::InvalidArgument, "FIELD_INVALID");
        assert!(no.text.contains("a tag can be moved") || no.text.contains("64 hexadecimal"), "{no:?}");
    }
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let gateway = world.client(GATEWAY).await;
    token.is_live(&gateway).await;
    assert_eq!(world.records().await.one("credential.issued")["image"], IMAGE);
    let image = format!("image:{IMAGE}");
    // An image belongs to no tenant, so only the platform locks it. A name that no job has is a typing error.
    refused(world.client(OPERATOR).await.lock(&image).await).is(Code::PermissionDenied, "POLICY_DENIED");
    let platform = world.client(PLATFORM).await;
    let mistyped =
        v1::LockRequest { name: format!("image:{other}"), reason: "x".into(), ..Default::default() };
    let no = refused(platform.operators().lock(mistyped).await);
    no.is(Code::NotFound, "NAME_UNKNOWN");
    let ended = platform.lock(&image).await.unwrap().into_inner().ending.unwrap();
    assert_eq!(ended.behind, 1);
    assert!(!gateway.introspect(&token.text, WORKER).await.active);
    refused(launcher.create(spec(), "again").await).is(Code::PermissionDenied, "LOCKED");
}
