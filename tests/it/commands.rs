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
    assert!(all.lines().count() > 1 && all.contains("decision=allow"), "no row is cut in a pipe: {all}");
    let only = tail(&["--from", "1", "--type", "job.created"]).await;
    assert!(only.lines().count() == 1 && only.contains(&job), "{only}");
    assert_eq!(tail(&["--since", "1h"]).await, all);
    assert_eq!(tail(&["--since", "2100-01-01T00:00:00Z"]).await, "");
    assert_eq!(tail(&["--since", "2h", "--until", "1h"]).await, "");
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
    for role in ["workload", "launcher", "operator"] {
        assert!(out.contains(&format!("connection {role} ")), "each identity is checked: {out}");
        assert!(out.contains(&format!("catalog {role} ")), "{out}");
    }
    assert_eq!(out.matches("clock").count(), 1, "{out}");
    let (code, _, err) = ran(here, &["config", "check", "new/leasehold.toml"]).await;
    assert!(
        code == Some(0) && err.contains("server.state: a running daemon uses this folder (process "),
        "{err}"
    );
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
    // An SVID that has expired names the command that issues it again.
    let short = [
        "svid",
        "mint",
        "spiffe://acme.example/people/you",
        "--ca",
        "new/ca",
        "--out",
        "new/svid/operator",
        "--ttl",
        "1s",
    ];
    let (code, _, err) = ran(here, &short).await;
    assert_eq!(code, Some(0), "{err}");
    let hint = "issue it again: leasehold svid mint spiffe://acme.example/people/you --ca ";
    eventually("the end of the SVID", async || ran(here, &["lock", "list"]).await.2.contains(hint)).await;
    let (code, out, _) = ran(here, &["doctor"]).await;
    assert!(code == Some(1) && out.contains(hint), "{out}");
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

/// Returns the stdout and stderr of a command that exits with 0.
async fn said(world: &World, id: &str, args: &[&str]) -> (String, String) {
    let mut command = world.leasehold(id, &[], args);
    assert_eq!(command.exit().await, Some(0), "{args:?}: {}", command.stderr());
    (command.stdout(), command.stderr())
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_tail_finds_revoked_jobs_and_says_if_nothing_matches() {
    let world = world().await;
    let job = created(&world, spec(), "k").await;
    let reason = "a reason of many words that a narrow table would cut ".repeat(4);
    let ends = ["revoke", &job, "--reason", reason.trim(), "--as", "workload"];
    shown(&world, OPERATOR, &ends).await;
    let tail = async |more: &[&str]| {
        let args = ["audit", "tail", "--from", "1", "--no-follow", "--as", "workload"];
        said(&world, PLATFORM, &[&args[..], more].concat()).await
    };
    let (rows, notes) = tail(&["--type", "revoked"]).await;
    assert!(rows.contains("job.closed") && rows.contains(&job) && notes.is_empty(), "{rows}{notes}");
    assert!(rows.contains(reason.trim()) && !rows.contains('…'), "not cut in a pipe: {rows}");
    // The times of the JSON have one form.
    let (json, _) = tail(&["-o", "json", "--type", "job.created,job.closed"]).await;
    let records: Vec<serde_json::Value> = json.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(records.len(), 2);
    for record in &records {
        for key in ["time", "at"] {
            let at = record["record"][key].as_str().unwrap_or_default();
            assert!(at.len() == "2026-11-20T10:02:11.402Z".len() && at.ends_with('Z'), "{key}: {record}");
        }
    }
    for (about, nothing) in [
        ("dataset:acme/tikets", "The nearest name is dataset:acme/tickets."),
        ("j-0000000000000000000000000z", "knows no job"),
        ("tenant:nosuch", "is about tenant:nosuch"),
        ("human:nosuch", "is about human:nosuch. Compare the name."),
    ] {
        let (rows, notes) = tail(&["--about", about]).await;
        assert!(rows.is_empty() && notes.contains(nothing), "{about}: {rows}{notes}");
    }
    let (rows, notes) = tail(&["--about", TICKETS, "--type", "lock.set"]).await;
    assert!(rows.is_empty() && notes.contains("none of the type lock.set"), "{rows}{notes}");
    // `-f` is the short form of following.
    let follow = ["audit", "tail", "-f", "--from", "1", "--as", "workload"];
    let follower = world.leasehold(PLATFORM, &[], &follow);
    follower.child_says("job.closed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_create_names_the_keys_that_stay_with_the_file() {
    let world = world().await;
    let members = format!("[members]\njoin = [\"{WORKER}\"]\n");
    let plain = job_toml("", &format!("{members}[run]\ndrain = \"20s\"\ngrace = \"10s\"\n"));
    let run =
        "[run]\nkeep_env = [\"HF_TOKEN\"]\nscrub = [\"FOO\"]\non_revoke = \"ignore\"\ngrace = \"77s\"\n";
    let full = job_toml("", &format!("sync = \"out\"\n{members}{run}"))
        .replace(&format!("resource = \"{MODEL}\""), &format!("resource = \"{MODEL}\"\nstage = \"base\""));
    world.write("plain.toml", &plain);
    world.write("full.toml", &full);
    let create = async |file: &str, more: &[&str]| {
        let file = world.file(file).to_str().unwrap().to_owned();
        let args = [&["job", "create", "--spec", &file, "--as", "workload"], more].concat();
        said(&world, LAUNCHER, &args).await
    };
    // These keys go with the job, or change nothing.
    let (_, notes) = create("plain.toml", &[]).await;
    assert_eq!(notes, "");
    for more in [&[][..], &["-o", "json"]] {
        let (_, notes) = create("full.toml", more).await;
        let keys = "read.stage, write.sync, run.on_revoke, run.grace, run.keep_env and run.scrub";
        assert!(notes.contains(keys), "{notes}");
        assert!(notes.contains("give --spec FILE to run too"), "{notes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_take_short_ids_and_say_until_when() {
    let world = world().await;
    let job = created(&world, spec(), "k").await;
    let short = format!("job:{}", &job[..10]);
    let (rows, notes) =
        said(&world, OPERATOR, &["lock", &short, "--reason", "x", "--ttl", "8h", "--as", "workload"]).await;
    assert!(rows.contains(&job), "{rows}");
    assert!(notes.contains("(in 7h 59m)") || notes.contains("(in 8h)"), "{notes}");
    assert!(notes.contains(&format!("before then: leasehold unlock job:{job}")), "{notes}");
    let (rows, _) =
        said(&world, OPERATOR, &["unlock", &job[..10], "--reason", "x", "--as", "workload"]).await;
    assert!(rows.contains(&format!("job:{job} is unlocked")), "{rows}");
    let (_, notes) = said(&world, OPERATOR, &["lock", &short, "--reason", "x", "--as", "workload"]).await;
    assert!(notes.contains("refused until you run: leasehold unlock"), "{notes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_job_was_closed_before() {
    let world = world().await;
    let job = created(&world, spec(), "k").await;
    let revoke = ["revoke", &job, "--reason", "x", "--as", "workload"];
    assert!(shown(&world, OPERATOR, &revoke).await.contains("ended"), "the first time");
    for more in [&[][..], &["--dry-run"]] {
        let (rows, notes) = said(&world, OPERATOR, &[&revoke[..], more].concat()).await;
        assert!(rows.starts_with("closed before"), "{rows}");
        assert!(notes.contains(&format!("{job} was closed already: revoked")), "{notes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_that_it_changed_nothing() {
    let world = world().await;
    for args in [
        &["revoke", TICKETS, "--reason", "x", "--dry-run", "--as", "workload"][..],
        &["lock", TICKETS, "--reason", "x", "--dry-run", "--as", "workload"],
        &["dataset", "recall", "acme/tickets@v3", "--reason", "x", "--dry-run", "--as", "workload"],
    ] {
        let (_, notes) = said(&world, OPERATOR, args).await;
        assert!(notes.contains("Dry run: nothing was changed."), "{args:?}: {notes}");
    }
    let list = shown(&world, OPERATOR, &["lock", "list", "--as", "workload"]).await;
    assert!(!list.contains(TICKETS), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_oneself_is_not_the_fault_of_a_disk() {
    let world = world().await;
    let own = format!("identity:{OPERATOR}");
    let lock = ["lock", &own, "--locks-out", OPERATOR, "--reason", "x", "--as", "workload"];
    let (code, said) = refused(&world, OPERATOR, &lock).await;
    // The record may be on disk at once.
    if code != Some(0) {
        assert_eq!(code, Some(5), "{said}");
        assert!(said.contains("it shuts you out too") && !said.contains("the daemon's disk"), "{said}");
    }
    let (code, said) = refused(&world, OPERATOR, &["job", "list", "--as", "workload"]).await;
    assert!(code == Some(2) && said.contains("  code   LOCKED"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_context_if_another_server_answers() {
    let world = world().await;
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let (code, _, err) = ran(here, &["init", "new", "--port", "1"]).await;
    assert_eq!(code, Some(0), "{err}");
    let contexts = here.join("new/contexts.toml");
    let text = std::fs::read_to_string(&contexts).unwrap();
    let address = world.daemon().grpc.to_string();
    std::fs::write(&contexts, text.replace("localhost:1", &address)).unwrap();
    let (code, out, _) = ran(here, &["doctor"]).await;
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("init (the current one): "), "{out}");
    let advice = format!("this is the context init of {}", contexts.display());
    assert!(out.contains(&advice) && out.contains("context use NAME"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn config_check_counts_its_warnings_and_reads_a_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let port = three_ports();
    let (code, _, err) = ran(here, &["init", "new", "--port", &port.to_string()]).await;
    assert_eq!(code, Some(0), "{err}");
    let check = ["config", "check", "new/leasehold.toml"];
    let (code, _, err) = ran(here, &check).await;
    assert!(code == Some(0) && err.ends_with("The configuration is good.\n"), "{err}");
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (code, _, err) = ran(here, &check).await;
    assert!(code == Some(0) && err.ends_with("is good, with 1 warning: see above.\n"), "{err}");
    assert!(err.contains("a second one can start only when the first has stopped"), "{err}");
    drop(taken);

    let gateway = format!(
        "[daemon]\naddress = \"localhost:{port}\"\nspiffe_id = \"spiffe://leasehold.test/daemon\"\n\
         [identity]\ncert = \"svid/daemon.pem\"\nkey = \"svid/daemon.key\"\nbundles = {{ \"leasehold.test\" = \"ca/bundle.pem\" }}\n\
         [gateway]\nlisten = \"127.0.0.1:{port}\"\naudience = \"spiffe://leasehold.test/files\"\ncatalog = \"catalog.d\"\n"
    );
    std::fs::write(here.join("new/gateway.toml"), &gateway).unwrap();
    let check = ["config", "check", "new/gateway.toml"];
    let (code, out, err) = ran(here, &check).await;
    assert!(code == Some(0) && out.contains("gateway.audience"), "{out}{err}");
    assert!(err.contains("is not among the verifiers of spiffe://leasehold.test/files"), "{err}");
    assert!(err.contains("no [[gateway.store]] has"), "{err}");
    std::fs::write(here.join("new/gateway.toml"), gateway.replace("catalog.d", "catalog.e")).unwrap();
    let (code, _, err) = ran(here, &check).await;
    assert!(code == Some(1) && err.contains("so `leasehold gateway` would not start"), "{err}");
    assert_eq!(err.matches("catalog.e").count(), 1, "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn catalog_check_counts_entries_and_names_people() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let (code, _, err) = ran(here, &["init", "new"]).await;
    assert_eq!(code, Some(0), "{err}");
    let (_, out, err) = ran(here, &["catalog", "check", "new/catalog.d"]).await;
    let count = |what: &str| {
        let row = out.lines().find(|line| line.starts_with(what)).unwrap_or_default();
        row.split_whitespace().last().unwrap_or_default().to_owned()
    };
    assert_eq!((count("principals").as_str(), count("verifiers").as_str()), ("3", "1"), "{out}");
    assert!(!err.contains("has no `human`"), "{err}");
    let platform = here.join("new/catalog.d/platform.toml");
    let text = std::fs::read_to_string(&platform).unwrap();
    std::fs::write(&platform, text.replace("human  = \"segment:2\"\n", "")).unwrap();
    let (code, _, err) = ran(here, &["catalog", "check", "new/catalog.d"]).await;
    assert!(code == Some(0) && err.contains("has no `human`"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_revocation_warns_of_nothing() {
    let world = world().await;
    let foreign = ["revoke", "dataset:globex/reviews@v1", "--reason", "x", "--as", "workload"];
    for args in [foreign, ["revoke", "dataset:acme/tikets", "--reason", "x", "--as", "workload"]] {
        let (code, said) = refused(&world, OPERATOR, &args).await;
        assert_ne!(code, Some(0), "{said}");
        assert!(!said.contains("ask for new access"), "{said}");
    }
    let (_, notes) = said(&world, OPERATOR, &["revoke", TICKETS, "--reason", "x", "--as", "workload"]).await;
    assert!(notes.contains("ask for new access"), "{notes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_name_is_answered_in_plain_words() {
    let world = world().await;
    for (name, hint) in [
        ("tickets", "dataset:acme/tickets@v3"),
        ("volume:x", "there is no such kind: write job:, lease:"),
        ("tenant:Acme", "such as tenant:acme"),
        ("identity:ada", "such as identity:spiffe://"),
    ] {
        let (code, said) = refused(&world, OPERATOR, &["revoke", name, "--reason", "x"]).await;
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains(hint) && !said.contains("grammar"), "{said}");
    }
    // A job file is answered with the nearest name that its tenant may use, and with no other.
    let nearest = async |read: &str| {
        let mistyped = v1::JobSpec { read: vec![read.into()], ..spec() };
        let no = world.client(LAUNCHER).await.create(mistyped, "k").await.unwrap_err();
        Refused::of(&no).facts.get("nearest").cloned()
    };
    assert_eq!(nearest("dataset:acme/tikets@v3").await.as_deref(), Some(TICKETS));
    assert_eq!(nearest("model:acme/base-7c@2026.10").await.as_deref(), Some(MODEL));
    assert_eq!(nearest("dataset:globex/reviws@v1").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_each_fault_once_and_names_the_path() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let (code, _, err) = ran(here, &["init", "new", "--port", "1"]).await;
    assert_eq!(code, Some(0), "{err}");
    let key = here.join("new/svid/operator.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let about = |out: &str| out.lines().filter(|line| line.contains("SVID operator")).count();
    let (_, out, _) = ran(here, &["doctor"]).await;
    assert!(about(&out) == 1 && out.contains("(mode 0644)") && out.contains("fix: chmod 600 "), "{out}");
    assert_eq!(
        out.matches("FAIL  connection").count(),
        1,
        "no daemon is one fault, not one for each role: {out}"
    );
    std::fs::remove_file(&key).unwrap();
    let (_, out, _) = ran(here, &["doctor"]).await;
    assert!(about(&out) == 1 && out.contains("svid/operator.key"), "{out}");
    // It judges a certificate as the daemon does: this one is of another authority with the same name.
    let (code, _, err) = ran(here, &["init", "other", "--port", "1"]).await;
    assert_eq!(code, Some(0), "{err}");
    for name in ["svid/operator.pem", "svid/operator.key"] {
        std::fs::copy(here.join("other").join(name), here.join("new").join(name)).unwrap();
    }
    let (_, out, _) = ran(here, &["doctor"]).await;
    assert!(about(&out) == 1 && out.contains("a daemon would refuse spiffe://"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_that_cannot_work_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let (code, out, err) = ran(here, &["context", "list"]).await;
    assert!(
        code == Some(0) && err.contains("There is no contexts file") && err.contains("context add"),
        "{out}{err}"
    );
    let add = [
        "context",
        "add",
        "prod",
        "--server",
        "localhost:1",
        "--server-id",
        "spiffe://td.example/daemon",
        "--bundle",
        "td.example=no-bundle.pem",
        "--identity",
        "operator=no.pem,no.key",
    ];
    let (code, _, err) = ran(here, &add).await;
    assert_eq!(code, Some(0), "{err}");
    for missing in ["bundle td.example: `", "operator certificate: `", "operator key: `"] {
        assert!(err.contains(&format!("leasehold: warning: {missing}")), "{missing}: {err}");
    }
    assert!(err.contains("no-bundle.pem` cannot be read") && err.contains("no.key` cannot be read"), "{err}");
    for args in [&["whoami", "--context", "prd"][..], &["context", "use", "prd"], &["context", "show", "prd"]]
    {
        let (code, _, err) = ran(here, args).await;
        assert_eq!(code, Some(64), "a mistake in the command line: {err}");
    }
}

// A job has no credential when it is created, so a rule that demands one binding in every question refuses every job.
#[tokio::test(flavor = "multi_thread")]
async fn policy_check_warns_of_a_rule_that_refuses_every_job() {
    let folder = tempfile::tempdir().unwrap();
    for (conditions, is_warned) in [
        ("unless { context.binding == \"certificate\" }", true),
        ("when { context.binding != \"certificate\" }", true),
        ("when { context.binding == \"bearer\" }", false),
        ("when { context.binding != \"\" } unless { context.binding == \"certificate\" }", false),
    ] {
        let rule = format!(
            "@id(\"guard-binding\")\n@explain(\"x\")\nforbid (principal is Leasehold::Workload, \
             action == Leasehold::Action::\"read_dataset\", resource is Leasehold::Dataset)\n{conditions};\n"
        );
        std::fs::write(folder.path().join("rules.cedar"), rule).unwrap();
        let (code, out, err) = ran(folder.path(), &["policy", "check", "."]).await;
        assert_eq!(code, Some(0), "{out}{err}");
        let warns = err.contains("warning: rules.cedar:1: the rule `guard-binding` refuses every job")
            && err.contains("add when { context.binding != \"\" } to the rule");
        assert_eq!(warns, is_warned, "{conditions}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_stops_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let contexts = folder.path().join("contexts.toml");
    let mut dev = plain(env!("CARGO_BIN_EXE_leasehold"))
        .args(["dev", "--port", "0", "--dir"])
        .arg(folder.path().join("dev"))
        .env("LEASEHOLD_CONTEXTS", &contexts)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // It writes the contexts when it serves.
    eventually("the context of dev", async || contexts.exists()).await;
    let whoami = async || {
        let mut command = plain(env!("CARGO_BIN_EXE_leasehold"));
        command.arg("whoami").env("LEASEHOLD_CONTEXTS", &contexts).output().await.unwrap().status.success()
    };
    eventually("the daemon of dev", whoami).await;
    let pid = nix::unistd::Pid::from_raw(dev.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let mut said = String::new();
    tokio::io::AsyncReadExt::read_to_string(dev.stderr.as_mut().unwrap(), &mut said).await.unwrap();
    let status = soon("the end of dev", dev.wait()).await.unwrap();
    assert!(status.success() && !said.contains("WARN"), "{status}: {said}");
}

// A locked person learns it from the commands that look for what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_the_caller_is_shown_by_each_command() {
    let world = world().await;
    let lock = v1::LockRequest {
        name: format!("identity:{OPERATOR}"),
        reason: "CASE-9".into(),
        ..Default::default()
    };
    world.client(PLATFORM).await.operators().lock(lock).await.unwrap();
    let who = shown(&world, OPERATOR, &["whoami", "--as", "workload"]).await;
    assert!(who.lines().any(|l| l.starts_with("LOCKED") && l.contains("CASE-9")), "{who}");
    let mut doctor = world.leasehold(OPERATOR, &[], &["doctor"]);
    assert_eq!(doctor.exit().await, Some(1));
    let report = doctor.stdout();
    assert!(report.lines().any(|l| l.starts_with("FAIL  lock") && l.contains("CASE-9")), "{report}");
    let (code, said) = refused(&world, OPERATOR, &["status", "--as", "workload"]).await;
    assert!(code == Some(2) && said.contains("LOCKED") && said.contains("CASE-9"), "{code:?} {said}");
    let who = shown(&world, PLATFORM, &["whoami", "--as", "workload"]).await;
    assert!(!who.contains("LOCKED"), "{who}");
}
