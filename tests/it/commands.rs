//! The commands of the real program against a real daemon.

use std::{net::TcpListener, path::Path, process::Stdio};

use leasehold::proto::v1;

use crate::harness::*;

/// A daemon with the system clock, which the program uses as well.
async fn world() -> World {
    World::with(|setup| setup.real_clock = true).await
}

/// Returns the stdout of a command. It must exit with 0.
async fn shown(world: &World, id: &str, args: &[&str]) -> String {
    let mut command = world.leasehold(id, &[], args);
    assert_eq!(command.exit().await, Some(0), "{args:?}: {}", command.stderr());
    command.stdout()
}

/// Returns the exit code of a command and its stderr.
async fn refused(world: &World, id: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut command = world.leasehold(id, &[], args);
    let code = command.exit().await;
    (code, command.stderr())
}

async fn created(world: &World, spec: v1::JobSpec, key: &str) -> String {
    world.client(LAUNCHER).await.create(spec, key).await.unwrap().into_inner().job.unwrap().id
}

fn is_safe(text: &str) -> bool {
    text.chars().all(|c| c == '\n' || leasehold::internals::plain::is_plain(c))
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_text_is_escaped_before_it_reaches_a_terminal() {
    let world = world().await;
    let hostile = "ticket 7\nstate    completed\u{202e}gpj.exe";
    let members = v1::Members { join: vec![WORKER.into()], start: vec![WORKER.into()], ..Default::default() };
    let hostile_spec = v1::JobSpec { why: hostile.into(), members: Some(members), ..spec() };
    let job = created(&world, hostile_spec, "k").await;
    let reason = "wrong \u{202e}\u{2066}data\u{200b}";
    let lock = v1::LockRequest { name: TICKETS.into(), reason: reason.into(), ..Default::default() };
    world.client(OPERATOR).await.operators().lock(lock).await.unwrap();
    let commands: [&[&str]; 7] = [
        &["job", "show", &job],
        &["job", "show", &job, "-o", "json"],
        &["job", "show", &job, "-o", "yaml"],
        &["job", "list", "-o", "wide"],
        &["lock", "list", "--as", "workload"],
        &["lock", "list", "--as", "workload", "-o", "json"],
        &["audit", "tail", "--from", "1", "--no-follow", "-o", "wide", "--as", "workload"],
    ];
    for args in commands {
        let id = if args[0] == "audit" { PLATFORM } else { OPERATOR };
        let text = shown(&world, id, args).await;
        assert!(is_safe(&text), "{args:?}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("state    completed")), "{args:?}: {text}");
    }
    let text = shown(&world, OPERATOR, &["job", "show", &job]).await;
    assert!(text.contains(r"ticket 7\nstate    completed\u{202e}gpj.exe"), "{text}");
    let value = shown(&world, OPERATOR, &["job", "show", &job, "-o", "json"]).await;
    let value: serde_json::Value = serde_json::from_str(&value).unwrap();
    assert_eq!(value["why"], hostile, "a program reads the text as it was written");
    // The message of the wrapper about the lock that refuses it.
    let (code, said) = refused(&world, WORKER, &["run", "--job", &job, "--", "true"]).await;
    assert_eq!(code, Some(125), "{said}");
    assert!(is_safe(&said) && said.contains(r"\u{202e}"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_jobs_is_filtered_over_all_pages() {
    let world = world().await;
    let first = created(&world, spec(), "first").await;
    let gated = created(&world, v1::JobSpec { read: vec![MODEL.into()], ..spec() }, "gated").await;
    world.client(OPERATOR).await.revoke(&format!("job:{first}")).await.unwrap();
    let ids = async |args: &[&str]| {
        let all = [&["job", "list", "--ids"], args].concat();
        shown(&world, OPERATOR, &all).await.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(ids(&[]).await, [gated.clone(), first.clone()]);
    assert_eq!(ids(&["--open"]).await, std::slice::from_ref(&gated));
    for args in [
        &["--state", "revoked"][..],
        &["--state", "closed"],
        &["--state", "running,revoked"],
        &["--dataset", "acme/tickets"],
        &["--dataset", "dataset:acme/tickets@v3", "--model", "acme/base-7b"],
    ] {
        assert_eq!(ids(args).await, std::slice::from_ref(&first), "{args:?}");
    }
    for args in [
        &["--tenant", "acme"][..],
        &["--launcher", LAUNCHER],
        &["--model", "acme/base-7b@2026.10"],
        &["--since", "1h"],
    ] {
        assert_eq!(ids(args).await.len(), 2, "{args:?}");
    }
    for args in [
        &["--tenant", "globex"][..],
        &["--launcher", NIGHTLY],
        &["--dataset", "acme/tickets@v4"],
        &["--since", "2100-01-01T00:00:00Z"],
        &["--state", "failed"],
    ] {
        assert_eq!(ids(args).await, Vec::<String>::new(), "{args:?}");
    }
    for bad in [["--state", "done"], ["--since", "yesterday"], ["--dataset", "x"], ["--launcher", "ada"]] {
        let (code, said) = refused(&world, OPERATOR, &[&["job", "list"], &bad[..]].concat()).await;
        assert_eq!(code, Some(64), "{bad:?}: {said}");
        assert!(said.contains(bad[1]), "{said}");
    }
    let launcher = world.client(LAUNCHER).await;
    for n in 0..110 {
        launcher.create(spec(), &format!("many-{n}")).await.unwrap();
    }
    assert_eq!(ids(&["--open"]).await.len(), 111, "more than a page");
    assert_eq!(ids(&["--open", "--limit", "3"]).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_beginning_of_an_id_is_enough() {
    let world = world().await;
    let job = created(&world, spec(), "k").await;
    let short = &job[..10];
    let table = shown(&world, OPERATOR, &["job", "list"]).await;
    assert!(table.contains(short) && !table.contains(&job), "{table}");
    assert!(shown(&world, OPERATOR, &["job", "show", short]).await.contains(&job));
    let (code, said) = refused(&world, OPERATOR, &["job", "show", "j-zzzzzzzz"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("j-zzzzzzzz") && said.contains("job list"), "{said}");
    shown(&world, OPERATOR, &["revoke", short, "--reason", "x", "--as", "workload"]).await;
    assert_eq!(world.client(OPERATOR).await.job(&job).await.state(), v1::JobState::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_names_are_revoked_at_once() {
    let world = world().await;
    for key in ["a", "b"] {
        created(&world, spec(), key).await;
    }
    let ids = shown(&world, OPERATOR, &["job", "list", "--open", "--ids"]).await;
    let ids: Vec<&str> = ids.lines().collect();
    // As a shell splits `job:$(leasehold job list --open --ids)`.
    let first = format!("job:{}", ids[0]);
    let args = ["revoke", &first, ids[1], "--reason", "wrong data", "--as", "workload"];
    let dry = shown(&world, OPERATOR, &[&args[..], &["--dry-run"]].concat()).await;
    assert!(ids.iter().all(|id| dry.contains(id)), "{dry}");
    shown(&world, OPERATOR, &args).await;
    assert_eq!(shown(&world, OPERATOR, &["job", "list", "--open", "--ids"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launcher_sees_the_leases_of_its_own_jobs_only() {
    let world = world().await;
    let worker = world.working().await;
    let token = worker.issue(leasehold::proto::v1::Half::Reading).await;
    let leases = shown(&world, LAUNCHER, &["lease", "list", "-o", "wide"]).await;
    assert!(
        leases.contains(&token.lease.id) && leases.contains(TICKETS) && leases.contains(WORKER),
        "{leases}"
    );
    assert!(
        shown(&world, LAUNCHER, &["lease", "show", &token.lease.id[..12]]).await.contains(&token.lease.id)
    );
    let (code, said) = refused(&world, NIGHTLY, &["lease", "list"]).await;
    assert_eq!(code, Some(2), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_tail_goes_on_after_a_restart() {
    let mut world = World::prepared(|setup| setup.real_clock = true);
    world.stays_where_it_is();
    world.restart().await;
    let first = created(&world, spec(), "first").await;
    let mut tail =
        world.leasehold(PLATFORM, &[], &["audit", "tail", "--from", "1", "-o", "json", "--as", "workload"]);
    tail.child_says(&first).await;
    world.restart().await;
    let second = created(&world, spec(), "second").await;
    tail.child_says(&second).await;
    assert!(tail.is_running());
    let said = tail.stdout();
    let indexes: Vec<u64> = said
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["index"].as_u64())
        .collect();
    assert!(indexes.windows(2).all(|two| two[0] < two[1]), "each record once: {indexes:?}");
    assert_eq!(said.matches("\"job.created\"").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn job_show_watch_goes_on_after_a_restart() {
    let mut world = World::prepared(|setup| setup.real_clock = true);
    world.stays_where_it_is();
    world.restart().await;
    let job = created(&world, spec(), "k").await;
    let mut watch = world.leasehold(OPERATOR, &[], &["job", "show", &job, "--watch"]);
    watch.child_says("ready").await;
    world.restart().await;
    world.client(OPERATOR).await.revoke(&format!("job:{job}")).await.unwrap();
    assert_eq!(watch.exit().await, Some(4), "{}", watch.stderr());
    assert!(watch.stdout().contains("revoked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_tail_filters_by_type_and_time() {
    let world = world().await;
    let job = created(&world, spec(), "k").await;
    let tail = async |args: &[&str]| {
        let all = [&["audit", "tail", "--no-follow", "--as", "workload"], args].concat();
        shown(&world, PLATFORM, &all).await
    };
    let all = tail(&["--from", "1"]).await;
    assert!(all.lines().count() > 1 && all.lines().all(|row| row.chars().count() <= 120), "{all}");
    let only = tail(&["--from", "1", "--type", "job.created"]).await;
    assert!(only.lines().count() == 1 && only.contains(&job), "{only}");
    assert_eq!(tail(&["--since", "1h"]).await, all);
    assert_eq!(tail(&["--since", "2100-01-01T00:00:00Z"]).await, "");
    assert_eq!(tail(&["--from", "1", "--until", "1h"]).await, "");
    let (code, said) = refused(&world, PLATFORM, &["audit", "tail", "--type", "job"]).await;
    assert_eq!(code, Some(64));
    assert!(said.contains("job.created"), "it names the types: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_counts_what_the_caller_may_see() {
    let world = world().await;
    created(&world, spec(), "k").await;
    let text = shown(&world, OPERATOR, &["status"]).await;
    assert!(text.contains("jobs ready") && text.contains("live leases"), "{text}");
    let value = shown(&world, LAUNCHER, &["status", "-o", "json"]).await;
    let value: serde_json::Value = serde_json::from_str(&value).unwrap();
    assert_eq!(value["jobs"]["ready"]["count"], 1);
    assert_eq!(value["locks"], serde_json::Value::Null, "a launcher does not see locks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_only_its_part_of_the_catalog() {
    let world = world().await;
    let acme = shown(&world, LAUNCHER, &["catalog", "list"]).await;
    assert!(acme.contains(TICKETS) && acme.contains(MODEL) && acme.contains(LINE), "{acme}");
    let page = shown(&world, LAUNCHER, &["catalog", "show", "dataset:acme/tickets"]).await;
    assert!(page.contains("support-tuning") && page.contains("data-tickets@acme.example"), "{page}");
    let globex = shown(&world, GLOBEX_LAUNCHER, &["catalog", "list", "-o", "wide"]).await;
    assert!(!globex.contains(TICKETS), "what is not shared is not there: {globex}");
    let (code, said) = refused(&world, GLOBEX_LAUNCHER, &["catalog", "show", TICKETS]).await;
    assert!(code == Some(1) && said.contains(TICKETS), "{said}");
    let everything = shown(&world, PLATFORM, &["catalog", "list", "--as", "workload", "-o", "json"]).await;
    let everything: Vec<serde_json::Value> = serde_json::from_str(&everything).unwrap();
    let tenants: std::collections::BTreeSet<_> = everything.iter().map(|r| r["tenant"].to_string()).collect();
    assert!(tenants.len() > 1, "{tenants:?}");
}

/// Returns the first of three consecutive ports that are free at this moment.
fn three_ports() -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if first < 65_000 && (first..first + 3).all(free) {
            return first;
        }
    }
    panic!("no three free ports in a row");
}

/// Runs the program in a folder with one contexts file.
async fn ran(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let run = plain(env!("CARGO_BIN_EXE_leasehold"))
        .args(args)
        .current_dir(folder)
        .env("LEASEHOLD_CONTEXTS", folder.join("new/contexts.toml"))
        .stdin(Stdio::null())
        .output();
    let done = soon("a command", run).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_deployment_serves_and_runs_a_job() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let port = three_ports().to_string();
    let (code, out, err) =
        ran(here, &["init", "new", "--port", &port, "--trust-domain", "acme.example"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("leasehold serve --config"), "{out}");
    let (code, _, err) = ran(here, &["init", "new"]).await;
    assert!(code == Some(1) && err.contains("`new` is not empty"), "{err}");

    let serve = plain(env!("CARGO_BIN_EXE_leasehold"))
        .args(["serve", "--config", "new/leasehold.toml"])
        .current_dir(here)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("the daemon", async || ran(here, &["whoami"]).await.0 == Some(0)).await;
    let (code, out, err) = ran(here, &["doctor"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, job, err) = ran(here, &["job", "create", "--spec", "new/job.toml"]).await;
    assert_eq!(code, Some(0), "{err}");
    let (code, out, err) = ran(here, &["run", "--job", job.trim(), "--", "printenv", "LEASEHOLD_JOB"]).await;
    assert_eq!((code, out), (Some(0), job), "{err}");

    let mint = |id| ["svid", "mint", id, "--ca", "new/ca", "--out", "new/svid/ada"];
    let (code, _, err) = ran(here, &mint("spiffe://acme.example/people/ada")).await;
    assert_eq!(code, Some(0), "{err}");
    let server = format!("localhost:{port}");
    let add = [
        "context",
        "add",
        "ada",
        "--server",
        &server,
        "--server-id",
        "spiffe://acme.example/daemon",
        "--bundle",
        "acme.example=new/ca/bundle.pem",
        "--identity",
        "operator=new/svid/ada.pem,new/svid/ada.key",
    ];
    let (code, _, err) = ran(here, &add).await;
    assert_eq!(code, Some(0), "{err}");
    let (code, out, err) = ran(here, &["whoami", "--context", "ada"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("spiffe://acme.example/people/ada") && out.contains("operator"), "{out}");
    let (code, _, err) = ran(here, &mint("spiffe://other.example/ada")).await;
    assert!(code == Some(1) && err.contains("other.example"), "{err}");
    drop(serve);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_contexts_file_is_named_in_the_error() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, err) = ran(folder.path(), &["whoami"]).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("does not exist") && err.contains("LEASEHOLD_CONTEXTS"), "{err}");
    assert!(err.contains("new/contexts.toml"), "{err}");
}
