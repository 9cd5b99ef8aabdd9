//! Policy as code: running cases, answering questions, repeating decisions, and applying policy sets.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::harness::*;

fn config(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(path)
}

/// Runs the program without a daemon. Returns its exit code, stdout and stderr.
async fn offline(args: &[&str]) -> (Option<i32>, String, String) {
    let run = plain(env!("CARGO_BIN_EXE_leasehold")).args(args).stdin(Stdio::null()).output();
    let done = soon("a command", run).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_test_runs_the_cases_of_a_directory() {
    let (policy, catalog) = (config("policy"), config("catalog.d"));
    let (policy, catalog) = (policy.to_str().unwrap(), catalog.to_str().unwrap());
    let (code, out, err) = offline(&["policy", "test", policy, "--catalog", catalog, "-o", "json"]).await;
    assert_eq!(code, Some(0), "{err}");
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(value["cases"].as_u64().unwrap() >= 80, "{value}");
    assert_eq!((&value["failed"], &value["untried"]), (&serde_json::json!([]), &serde_json::json!([])));
    let (code, out, err) = offline(&["policy", "test", policy]).await;
    assert!(code == Some(64) && err.contains("--catalog"), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_test_names_each_failed_case_and_untried_rule() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    fs::copy(config("policy/leasehold.cedar"), folder.path().join("leasehold.cedar")).unwrap();
    let cases = "[defaults]\npurpose = \"support-tuning\"\n\n\
         [[case]]\nname = \"trainers read\"\nas = \"spiffe://k8s.acme.example/ns/ml/job/j1\"\ndo = \"read_dataset\"\n\
         on = \"dataset:acme/corpus@2026-10\"\nexpect = \"deny\"\nrule = \"guard-tll\"\n";
    fs::write(folder.path().join("tests.toml"), cases).unwrap();
    let catalog = config("catalog.d");
    let args = ["policy", "test", dir, "--catalog", catalog.to_str().unwrap()];
    let (code, out, err) = offline(&args).await;
    assert_eq!(code, Some(1), "{out}{err}");
    for said in [
        "tests.toml:4: trainers read",
        "deny by guard-tll",
        "allow by trainer-reads-own-or-shared-data",
        "write `guard-ttl`?",
    ] {
        assert!(out.contains(said), "{said}: {out}");
    }
    let untried: Vec<_> = err.lines().filter(|l| l.contains("no test case tests")).collect();
    assert!(
        matches!(&untried[..], [one] if one.contains(" rules: ") && one.contains("`guard-disabled`")),
        "{err}"
    );
    // An unknown key is a mistake, and the case does not pass.
    fs::write(folder.path().join("tests.toml"), cases.replace("expect", "expects")).unwrap();
    let (code, out, err) = offline(&args).await;
    assert!(code == Some(1) && err.contains("tests.toml:9") && err.contains("write `expect`"), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_test_takes_both_directories_from_the_configuration() {
    let world = World::prepared(|_| {});
    world.write("policy/tests.toml", "[[case]]\nas = \"spiffe://k8s.acme.example/ns/ml/job/tuner\"\ndo = \"WhoAmI\"\non = \"acme\"\nexpect = \"allow\"\nrule = \"anyone-asks-who-they-are\"\n");
    let file = world.file("leasehold.toml");
    let (code, out, err) = offline(&["policy", "test", "--config", file.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.lines().any(|l| l.starts_with("passed") && l.ends_with(" 1")), "{out}");
}

// ---------- questions ----------

/// A daemon with the system clock, and with people who approve.
async fn world() -> World {
    World::with(|setup| setup.real_clock = true).await
}

/// Runs the program with an identity. Returns its exit code, stdout and stderr.
async fn run(world: &World, id: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = world.leasehold(id, &[], args);
    let code = command.exit().await;
    (code, command.stdout(), command.stderr())
}

const LIVE: &str = "model:acme/live-7b@2026.10";
const PATIENTS: &str = "dataset:acme/patients@v1";

#[tokio::test(flavor = "multi_thread")]
async fn can_i_says_yes_no_or_needs_approval() {
    let world = world().await;
    let purpose = ["--purpose", "support-tuning"];
    let ask = async |args: &[&str]| run(&world, WORKER, &[&["can-i"], args].concat()).await;
    let (code, out, err) = ask(&[&["read_dataset", TICKETS], &purpose[..]].concat()).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.starts_with("yes\n") && out.contains("trainer-reads-own-or-shared-data"), "{out}");
    let (code, out, err) = ask(&["read_dataset", TICKETS, "--purpose", "demo-bot"]).await;
    assert_eq!(code, Some(2), "{out}{err}");
    for said in ["no\n", "support-eval", "set purpose", "data-tickets@acme.example"] {
        assert!(out.contains(said), "{said}: {out}");
    }
    let (code, out, err) = ask(&["finetune", LIVE]).await;
    assert_eq!(code, Some(3), "{out}{err}");
    assert!(out.starts_with("needs approval\n") && out.contains("2 of group model-owners"), "{out}");
    // A call, with the kinds that make it.
    assert_eq!(ask(&["Revoke"]).await.0, Some(2));
    let launcher = ["can-i", "CreateJob", "-o", "json"];
    let (code, out, err) = run(&world, LAUNCHER, &launcher).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&value["answer"], &value["tenant"]), (&"allow".into(), &"acme".into()));
    let (code, _, err) = ask(&["read_datasets", TICKETS]).await;
    assert!(code == Some(64) && err.contains("write `read_dataset`?"), "{err}");
}

/// What the daemon refuses to the operator of one of several tenants, `can-i` does not promise.
#[tokio::test(flavor = "multi_thread")]
async fn can_i_knows_what_is_for_all_tenants() {
    let world = world().await;
    let reload = ["catalog", "reload", "--dry-run", "--as", "workload"];
    for call in ["ReloadCatalog", "ApplyPolicy", "ListPolicies"] {
        let (code, out, err) = run(&world, OPERATOR, &["can-i", call]).await;
        assert_eq!(code, Some(2), "{call}: {out}{err}");
        let (code, out, err) = run(&world, PLATFORM, &["can-i", call]).await;
        assert_eq!(code, Some(0), "{call}: {out}{err}");
    }
    let (code, out, err) = run(&world, OPERATOR, &reload).await;
    assert_eq!(code, Some(2), "{out}{err}");
    let asked = ["who-can", "ReloadCatalog", "acme", "-o", "json", "--as", "workload"];
    let (_, out, err) = run(&world, OPERATOR, &asked).await;
    let listed: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!(listed["entries"], serde_json::json!([]), "{listed}");
    // The operator of the only tenant may.
    let world = World::with(|setup| {
        setup.real_clock = true;
        setup.catalog.retain(|name, _| *name == "acme.toml");
    })
    .await;
    let (code, out, err) = run(&world, OPERATOR, &["can-i", "ReloadCatalog"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, out, err) = run(&world, OPERATOR, &reload).await;
    assert_eq!(code, Some(0), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn can_i_counts_a_lock() {
    let world = world().await;
    world.client(OPERATOR).await.lock("dataset:acme/tickets").await.unwrap();
    let args = ["can-i", "read_dataset", TICKETS, "--purpose", "support-tuning"];
    let (code, out, _) = run(&world, WORKER, &args).await;
    assert!(code == Some(2) && out.contains("is locked"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn can_i_counts_a_lock_on_a_launcher() {
    let world = world().await;
    world.client(OPERATOR).await.lock(&format!("launcher:{LAUNCHER}")).await.unwrap();
    let questions: [&[&str]; 2] =
        [&["can-i", "CreateJob"], &["can-i", "BeginAttempt", "--relation", "launcher"]];
    for args in questions {
        let (code, out, err) = run(&world, LAUNCHER, args).await;
        assert!(code == Some(2) && out.contains("locked as a launcher"), "{args:?} {out}{err}");
        let (code, out, err) = run(&world, NIGHTLY, args).await;
        assert_eq!(code, Some(0), "{args:?} {out}{err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn can_i_shows_no_lock_of_another_tenant() {
    let world = world().await;
    world.client(PLATFORM).await.lock("tenant:globex").await.unwrap();
    let ask = async |tenant: &str| {
        let (code, out, err) = run(&world, LAUNCHER, &["can-i", "CreateJob", "--tenant", tenant]).await;
        (code, out.replace(tenant, "NAME"), err.replace(tenant, "NAME"))
    };
    let foreign = ask("globex").await;
    assert_eq!(foreign, ask("nosuch").await);
    assert_eq!(foreign.0, Some(2), "{}{}", foreign.1, foreign.2);
    assert!(foreign.1.contains("may not call CreateJob"), "{}", foreign.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn can_i_for_others_is_for_who_oversees_their_tenant() {
    let world = world().await;
    let ask = async |id: &str, whom: &str| {
        let args = ["can-i", "finetune", LIVE, "--for", whom, "--as", "workload"];
        let (code, out, err) = run(&world, id, &args).await;
        (code, out, err.replace(whom, "WHOM"))
    };
    for id in [OPERATOR, AUDITOR, PLATFORM] {
        let (code, out, err) = ask(id, WORKER).await;
        assert!(code == Some(3) && out.contains(WORKER), "{id}: {out}{err}");
    }
    let (code, out, err) = ask(OTHER_WORKER, WORKER).await;
    assert!(code == Some(2) && err.contains("EvaluatePolicy"), "{out}{err}");
    // An identity of another tenant and one without an entry get the same answer.
    let said = |answer: (Option<i32>, String, String)| (answer.0, answer.1, answer.2);
    let foreign = said(ask(OPERATOR, GLOBEX_WORKER).await);
    assert_eq!(foreign, said(ask(OPERATOR, NOBODY).await));
    assert_eq!(foreign.0, Some(2));
    assert!(foreign.2.contains("that you may see"), "{}", foreign.2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_lists_entries_with_their_gates() {
    let world = world().await;
    let list = async |id: &str, args: &[&str]| {
        let all = [&["who-can"], args, &["-o", "json", "--as", "workload"]].concat();
        let (code, out, err) = run(&world, id, &all).await;
        assert_eq!(code, Some(0), "{args:?} {err}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap()
    };
    let entries = |value: &serde_json::Value| {
        let entry = |e: &serde_json::Value| e["match"].as_str().unwrap().to_owned();
        value["entries"].as_array().unwrap().iter().map(entry).collect::<Vec<_>>()
    };
    let workers = "spiffe://k8s.acme.example/ns/ml/job/*";
    let data = list(OPERATOR, &["read_dataset", PATIENTS]).await;
    // The disabled entry and the entries without the role are not listed.
    assert_eq!(entries(&data), [workers, "spiffe://hpc.acme.example/slurm/ml-support/*"]);
    assert_eq!(data["entries"][0]["answer"], "wait");
    assert_eq!(data["entries"][0]["gates"], serde_json::json!(["gate-sensitive-data"]));
    assert_eq!(data["entries"][0]["purposes"], serde_json::json!(["support-tuning"]));
    let revoke = list(PLATFORM, &["Revoke", "acme"]).await;
    let people = ["spiffe://people.acme.example/u/*", "spiffe://people.platform.example/ops/*"];
    assert_eq!(entries(&revoke), people);
    assert_eq!(entries(&list(OPERATOR, &["Revoke", "acme"]).await), [people[0]], "of its own tenant");
    // A resource that is not shared does not exist for the caller.
    let ask = async |name: &str| {
        let (code, out, err) =
            run(&world, GLOBEX_OPERATOR, &["who-can", "finetune", name, "--as", "workload"]).await;
        (code, out, err.replace(name, "NAME"))
    };
    assert_eq!(ask(LIVE).await, ask("model:acme/nothing@1").await);
    let (code, _, err) = run(&world, WORKER, &["who-can", "finetune", LIVE, "--as", "workload"]).await;
    assert!(code == Some(2) && err.contains("WhoCan"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_counts_locks() {
    let world = World::start().await;
    let ada = world.client(OPERATOR).await;
    let list = async |action: &str, resource: &str| {
        let request = leasehold::proto::v1::WhoCanRequest {
            action: action.into(),
            resource: resource.into(),
            ..Default::default()
        };
        let answer = ada.operators().who_can(request).await.unwrap().into_inner();
        answer.entries.into_iter().map(|e| e.r#match).collect::<Vec<_>>()
    };
    let mut creators = list("CreateJob", "acme").await;
    assert!([LAUNCHER, NIGHTLY].iter().all(|id| creators.iter().any(|c| c == id)), "{creators:?}");
    ada.lock(&format!("launcher:{LAUNCHER}")).await.unwrap();
    creators.retain(|id| id != LAUNCHER);
    assert_eq!(list("CreateJob", "acme").await, creators);
    ada.lock(&format!("identity:{NIGHTLY}")).await.unwrap();
    creators.retain(|id| id != NIGHTLY);
    assert_eq!(list("CreateJob", "acme").await, creators);
    assert_ne!(list("read_dataset", TICKETS).await, [""; 0]);
    ada.lock("dataset:acme/tickets").await.unwrap();
    assert_eq!(list("read_dataset", TICKETS).await, [""; 0]);
}

#[tokio::test]
async fn who_can_is_cut_into_pages() {
    let world = World::start().await;
    let client = world.client(PLATFORM).await;
    let (mut token, mut seen, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let request = leasehold::proto::v1::WhoCanRequest {
            action: "read_dataset".into(),
            resource: TICKETS.into(),
            page_size: 3,
            page_token: token,
            ..Default::default()
        };
        let page = client.operators().who_can(request).await.unwrap().into_inner();
        seen.extend(page.entries.into_iter().map(|e| e.r#match));
        (token, pages) = (page.next_page_token, pages + 1);
        if token.is_empty() {
            break;
        }
    }
    assert!(pages > 2, "{pages}");
    assert_eq!(seen.len(), 2, "{seen:?}");
    let request = leasehold::proto::v1::WhoCanRequest {
        action: "read_dataset".into(),
        resource: TICKETS.into(),
        page_token: "spiffe://k8s.acme.example/gone".into(),
        ..Default::default()
    };
    let no = refused(client.operators().who_can(request).await);
    assert_eq!(no.reason, "FIELD_INVALID");
}

// ---------- decisions again ----------

pub const NO_TICKETS: &str = "@id(\"no-tickets\")\n@explain(\"the tickets are under review\")\n\
     forbid (principal is Leasehold::Workload, action == Leasehold::Action::\"read_dataset\", resource)\n\
     when { resource == Leasehold::Dataset::\"dataset:acme/tickets@v3\" };\n";

#[tokio::test(flavor = "multi_thread")]
async fn policy_explain_decides_again_and_replays() {
    let world = world().await;
    let worker = world.working().await;
    let token = worker.issue(leasehold::proto::v1::Half::Reading).await;
    let explain = async |id: &str, args: &[&str]| {
        run(&world, id, &[&["policy", "explain"], args, &["--as", "workload"]].concat()).await
    };
    let (code, out, err) = explain(OPERATOR, &[&worker.job]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    for said in ["job.created", "attempt.began", "credential.issued", "the same: allow"] {
        assert!(out.contains(said), "{said}: {out}");
    }
    assert!(!out.contains("differs"), "{out}");
    let (code, out, err) = explain(LAUNCHER, &[&token.lease.id]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains(&token.lease.id) && !out.contains("job.created"), "{out}");

    // Policy has changed: an old decision is explained by the policy that decided it.
    world.write("policy/no-tickets.cedar", NO_TICKETS);
    world.daemon().reload();
    let (code, out, err) = explain(OPERATOR, &[&worker.job]).await;
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(
        out.contains("differs: deny") && out.contains("no-tickets: the tickets are under review"),
        "{out}"
    );
    let (code, out, err) = explain(OPERATOR, &[&worker.job, "--replay"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("the same: allow") && !out.contains("no-tickets"), "{out}");

    // If that policy is not kept, the explanation does not guess.
    for file in fs::read_dir(world.file("state/policies")).unwrap().map(Result::unwrap) {
        fs::remove_file(file.path()).unwrap();
    }
    let (code, out, _) = explain(OPERATOR, &[&worker.job, "--replay"]).await;
    assert!(code == Some(1) && out.contains("is not kept"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_explain_replays_at_the_moment_of_the_decision() {
    let world = World::start().await;
    let read = vec!["dataset:acme/fading@v1".into()];
    let spec = leasehold::proto::v1::JobSpec { read, write: Vec::new(), ..spec() };
    let worker = world.working_on(spec, WORKER).await;
    // The dataset may not be read any more.
    world.time().advance(std::time::Duration::from_secs(3_600));
    let client = world.client(OPERATOR).await;
    let explain = async |replay: bool| {
        let request =
            leasehold::proto::v1::ExplainJobRequest { job: worker.job.clone(), replay, ..Default::default() };
        client.operators().explain_job(request).await.unwrap().into_inner().decisions
    };
    let now = explain(false).await;
    assert!(now.iter().all(|d| d.result_again == "deny" && d.why.contains("guard-retention")), "{now:?}");
    let then = explain(true).await;
    assert!(then.iter().all(|d| d.again() == leasehold::proto::v1::DecidedAgain::Same), "{then:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_and_an_absent_job_are_not_explained_alike() {
    let world = world().await;
    let worker = world.working().await;
    let token = worker.issue(leasehold::proto::v1::Half::Reading).await;
    let ask = async |id: &str| {
        let (code, out, err) =
            run(&world, GLOBEX_OPERATOR, &["policy", "explain", id, "--as", "workload"]).await;
        (code, out, err.replace(id, "ID"))
    };
    let absent = leasehold::name::JobId(7).to_string();
    assert_eq!(ask(&worker.job).await, ask(&absent).await);
    let absent = leasehold::name::LeaseId(7).to_string();
    assert_eq!(ask(&token.lease.id).await, ask(&absent).await);
}

// ---------- changes ----------

/// Another policy directory, with the rules of a test and their cases.
pub fn policy_dir(world: &World, name: &str, more: &str, expect: &str) -> String {
    let dir = world.file(name);
    fs::create_dir_all(&dir).unwrap();
    for file in ["leasehold.cedar", "dev.cedar"] {
        fs::copy(world.file("policy").join(file), dir.join(file)).unwrap();
    }
    if !more.is_empty() {
        fs::write(dir.join("more.cedar"), more).unwrap();
    }
    let case = format!(
        "[[case]]\nname = \"tickets\"\nas = \"{WORKER}\"\ndo = \"read_dataset\"\non = \"{TICKETS}\"\n\
         purpose = \"support-tuning\"\nexpect = \"{expect}\"\nrule = \"{}\"\n",
        if expect == "allow" { "trainer-reads-own-or-shared-data" } else { "no-tickets" }
    );
    fs::write(dir.join("tests.toml"), case).unwrap();
    dir.to_str().unwrap().to_owned()
}

async fn applying() -> World {
    World::with(|setup| {
        setup.real_clock = true;
        setup.policy = "source = \"applied\"".into();
    })
    .await
}

pub async fn policy(world: &World, id: &str, args: &[&str]) -> (Option<i32>, String, String) {
    run(world, id, &[&["policy"], args, &["--as", "workload"]].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_diff_shows_rules_leases_and_waiting_jobs() {
    let world = world().await;
    let worker = world.working().await;
    worker.issue_both().await;
    let patients = leasehold::proto::v1::JobSpec { read: vec![PATIENTS.into()], write: Vec::new(), ..spec() };
    let launcher = world.client(LAUNCHER).await;
    let waiting = launcher.create(patients, "waits").await.unwrap().into_inner().job.unwrap().id;
    let same = policy_dir(&world, "same", "", "allow");
    let (code, out, err) = policy(&world, PLATFORM, &["diff", &same]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let next = policy_dir(&world, "next", NO_TICKETS, "deny");
    // The gate no longer asks for health data, and the guard still knows the class.
    let text = world.read("next/leasehold.cedar");
    let gate = r#"containsAny(["pii", "phi", "#;
    assert_eq!(text.matches(gate).count(), 1);
    world.write("next/leasehold.cedar", &text.replace(gate, r#"containsAny(["pii", "#));
    let (code, out, err) = policy(&world, PLATFORM, &["diff", &next]).await;
    assert_eq!(code, Some(1), "{out}{err}");
    for said in
        ["no-tickets (added)", "gate-sensitive-data (changed)", "\n-", "\n+", &waiting, "waits for no one"]
    {
        assert!(out.contains(said), "{said}: {out}");
    }
    assert!(out.lines().any(|l| l.starts_with("leases that would end") && l.ends_with(" 2")), "{out}");
    assert_eq!(world.daemon().broker.live_leases(), 2, "nothing was changed");
    let (code, _, err) = policy(&world, OPERATOR, &["diff", &next]).await;
    assert_eq!(code, Some(2), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_apply_takes_effect_is_recorded_and_lasts() {
    let mut world = applying().await;
    let worker = world.working().await;
    worker.issue_both().await;
    let first = world.daemon().broker.rules.in_force().engine.digest().to_string();
    let next = policy_dir(&world, "next", NO_TICKETS, "deny");
    let apply = ["apply", &next, "--reason", "CHG-1412"];
    let (code, out, err) = policy(&world, PLATFORM, &apply).await;
    assert!(
        code == Some(64) && err.contains("2 lease(s) end at once") && err.contains("--yes"),
        "{out}{err}"
    );
    let (code, out, err) = policy(&world, PLATFORM, &[&apply[..], &["--dry-run"]].concat()).await;
    assert_eq!((code, world.daemon().broker.live_leases()), (Some(0), 2), "{out}{err}");
    let (code, out, err) = policy(&world, PLATFORM, &[&apply[..], &["--yes"]].concat()).await;
    assert_eq!((code, world.daemon().broker.live_leases()), (Some(0), 0), "{out}{err}");
    let records = world.records().await;
    let record = records.one("policy.applied");
    assert_eq!(
        (&record["before"], &record["reason"], &record["would_end"]),
        (&first.as_str().into(), &"CHG-1412".into(), &2.into())
    );
    assert_eq!(record["by"]["spiffe_id"], PLATFORM);
    let kinds = records.kinds();
    let at = |kind: &str| kinds.iter().position(|k| *k == kind).unwrap();
    assert!(at("policy.applied") < at("lowered"), "the record is before what it ends: {kinds:?}");
    assert!(worker.try_issue(leasehold::proto::v1::Half::Reading).await.is_err());

    // A restart keeps it, and a reload of the files does not bring the old one back.
    drop(worker);
    world.restart().await;
    world.daemon().reload();
    let second = world.daemon().broker.rules.in_force().engine.digest().to_string();
    assert_eq!(record["policy"], second.as_str());
    let (code, out, err) = policy(&world, PLATFORM, &["history", "-o", "json"]).await;
    assert_eq!(code, Some(0), "{err}");
    let history: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&history["in_force"], history["policies"].as_array().unwrap().len()),
        (&second.as_str().into(), 2)
    );
    assert_eq!(history["policies"][0]["reason"], "CHG-1412");

    // Back to the first policy.
    let (code, out, err) = policy(&world, PLATFORM, &["rollback", "--reason", "too strict", "--yes"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(world.daemon().broker.rules.in_force().engine.digest().to_string(), first);
    let (code, _, err) = policy(&world, PLATFORM, &["rollback", &second, "--reason", "again", "--yes"]).await;
    assert_eq!(code, Some(0), "{err}");
    world.restart().await;
    assert_eq!(world.daemon().broker.rules.in_force().engine.digest().to_string(), second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_policy_changes_nothing() {
    let world = applying().await;
    let before = world.daemon().broker.rules.in_force().engine.digest();
    let apply = async |world: &World, id: &str, dir: &str| {
        policy(world, id, &["apply", dir, "--reason", "CHG-1", "--yes"]).await
    };
    let typo = policy_dir(&world, "typo", &NO_TICKETS.replace("resource ==", "resource.teir =="), "deny");
    let (code, _, err) = apply(&world, PLATFORM, &typo).await;
    assert!(code == Some(1) && err.contains("more.cedar:4"), "{err}");
    let failing = policy_dir(&world, "failing", NO_TICKETS, "allow");
    let (code, _, err) = apply(&world, PLATFORM, &failing).await;
    assert!(code == Some(1) && err.contains("tests.toml:1: tickets: expected allow"), "{err}");
    let good = policy_dir(&world, "good", NO_TICKETS, "deny");
    let (code, _, err) = apply(&world, OPERATOR, &good).await;
    assert_eq!(code, Some(2), "an operator of one tenant: {err}");
    let (code, _, err) = policy(&world, PLATFORM, &["rollback", "--reason", "x"]).await;
    assert!(code == Some(1) && err.contains("no policy was applied before"), "{err}");
    assert_eq!(world.daemon().broker.rules.in_force().engine.digest(), before);
    assert!(world.records().await.of("policy.applied").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_files_is_not_applied() {
    let world = world().await;
    let dir = policy_dir(&world, "next", NO_TICKETS, "deny");
    let (code, _, err) = policy(&world, PLATFORM, &["apply", &dir, "--reason", "x", "--yes"]).await;
    assert_eq!(code, Some(1), "{err}");
    for said in [world.file("policy").to_str().unwrap(), "catalog reload", "source = \"applied\""] {
        assert!(err.contains(said), "{said}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_saw_another_policy_is_refused() {
    let world = applying().await;
    let client = world.client(PLATFORM).await;
    let worker = world.working().await;
    worker.issue_both().await;
    let file = |file: &str, text: String| leasehold::proto::v1::PolicyFile { file: file.into(), text };
    let policies = vec![
        file("leasehold.cedar", world.read("policy/leasehold.cedar")),
        file("more.cedar", NO_TICKETS.into()),
    ];
    let order =
        leasehold::proto::v1::ApplyPolicyRequest { policies, reason: "x".into(), ..Default::default() };
    let stale = leasehold::proto::v1::ApplyPolicyRequest {
        in_force: format!("sha256:{}", "0".repeat(64)),
        ..order.clone()
    };
    assert_eq!(refused(client.operators().apply_policy(stale).await).reason, "STATE_CONFLICT");
    let fewer = leasehold::proto::v1::ApplyPolicyRequest { ends_at_most: Some(1), ..order.clone() };
    let no = refused(client.operators().apply_policy(fewer).await);
    assert!(no.reason == "STATE_CONFLICT" && no.text.contains("2 leases"), "{no:?}");
    assert_eq!(world.daemon().broker.live_leases(), 2);
    let done = client.operators().apply_policy(order).await.unwrap().into_inner();
    assert!(done.applied && done.ended == 2, "{done:?}");
}
