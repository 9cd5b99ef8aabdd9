//! Policy as code: cases that run, questions that are answered, decisions that can be made again, sets that are applied.

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
    assert!(err.contains("no case is decided by the rule `guard-disabled`"), "{err}");
    // A key that is not known is a mistake, not a case that passes.
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

/// Runs the program as somebody. Returns its exit code, stdout and stderr.
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

#[tokio::test(flavor = "multi_thread")]
async fn can_i_counts_a_lock() {
    let world = world().await;
    world.client(OPERATOR).await.lock("dataset:acme/tickets").await.unwrap();
    let args = ["can-i", "read_dataset", TICKETS, "--purpose", "support-tuning"];
    let (code, out, _) = run(&world, WORKER, &args).await;
    assert!(code == Some(2) && out.contains("is locked"), "{out}");
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
    // An identity of another tenant and one of no entry look alike.
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
    // The disabled entry and those without the role are not there.
    assert_eq!(entries(&data), [workers, "spiffe://hpc.acme.example/slurm/ml-support/*"]);
    assert_eq!(data["entries"][0]["answer"], "wait");
    assert_eq!(data["entries"][0]["gates"], serde_json::json!(["gate-sensitive-data"]));
    assert_eq!(data["entries"][0]["purposes"], serde_json::json!(["support-tuning"]));
    let revoke = list(PLATFORM, &["Revoke", "acme"]).await;
    let people = ["spiffe://people.acme.example/u/*", "spiffe://people.platform.example/ops/*"];
    assert_eq!(entries(&revoke), people);
    assert_eq!(entries(&list(OPERATOR, &["Revoke", "acme"]).await), [people[0]], "of its own tenant");
    // What is not shared does not exist.
    let ask = async |name: &str| {
        let (code, out, err) =
            run(&world, GLOBEX_OPERATOR, &["who-can", "finetune", name, "--as", "workload"]).await;
        (code, out, err.replace(name, "NAME"))
    };
    assert_eq!(ask(LIVE).await, ask("model:acme/nothing@1").await);
    let (code, _, err) = run(&world, WORKER, &["who-can", "finetune", LIVE, "--as", "workload"]).await;
    assert!(code == Some(2) && err.contains("WhoCan"), "{err}");
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
