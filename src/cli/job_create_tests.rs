//! Tests of creating jobs against a real daemon, with the commands of a launcher.

use std::{fs, path::PathBuf, sync::Arc};

use clap::Parser;

use crate::{
    cli::{
        Cli, Exit, Failure, Session,
        daemon_tests::{Home, ledger_text},
    },
    name::PrincipalKind,
    reason::Reason,
};

/// A job file for a job on sensitive data, which people must approve.
fn gated(home: &Home) -> PathBuf {
    let text =
        fs::read_to_string(home.spec()).unwrap().replace("dataset:dev/data@v1", "dataset:dev/people@v1");
    let path = home.deployment.path("gated.toml");
    fs::write(&path, text).unwrap();
    path
}

/// Returns the jobs in the ledger.
fn jobs(home: &Home) -> Vec<String> {
    let text = ledger_text(&home.deployment.path("state"));
    let mut ids: Vec<_> = text
        .match_indices("\"j-")
        .filter_map(|(at, _)| text.get(at + 1..at + 29))
        .map(str::to_owned)
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

/// Starts `job create --wait` in the background, and lets the test go on.
fn create_and_wait(home: &Home, spec: &std::path::Path) -> tokio::task::JoinHandle<Result<Exit, Failure>> {
    let words = ["leasehold", "job", "create", "--spec", spec.to_str().unwrap(), "--wait"];
    let cli = Cli::try_parse_from(words).unwrap();
    let session = Session::of_test(Arc::clone(&home.clock), home.folder.path().join("contexts.toml"), None);
    // The command has a separate thread, as a process would.
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(cli.run_in(session)))
}

/// Waits until the job is on disk and the daemon shows it. The record comes first.
async fn recorded(home: &Home) -> String {
    loop {
        if let [id] = &jobs(home)[..]
            && home.run_as(Some(PrincipalKind::Operator), &["job", "show", id]).await.is_ok()
        {
            return id.clone();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_job_does_not_wait_and_a_denied_one_is_not_created() {
    let home = Home::start().await;
    let spec = home.spec();
    let create = ["job", "create", "--spec", spec.to_str().unwrap(), "--wait"];
    assert_eq!(home.run(&create).await.unwrap(), Exit::Ok);
    assert_eq!(jobs(&home).len(), 1);
    let other = home.deployment.path("other.toml");
    fs::write(&other, fs::read_to_string(&spec).unwrap().replace("trying-out", "other-things")).unwrap();
    let create = ["job", "create", "--spec", other.to_str().unwrap(), "--wait"];
    let refused = home.run(&create).await.unwrap_err();
    assert_eq!(
        (refused.reason, refused.exit.code()),
        (Some(Reason::PolicyDenied), 2),
        "{}",
        refused.render()
    );
    assert!(refused.render().ends_with("No job was created, no access was given."));
    assert_eq!(jobs(&home).len(), 1);
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_shows_the_decision_and_creates_nothing() {
    let home = Home::start().await;
    let (spec, gated) = (home.spec(), gated(&home));
    let check = async |path: &std::path::Path| home.run(&["job", "check", path.to_str().unwrap()]).await;
    assert_eq!(check(&spec).await.unwrap().code(), 0);
    assert_eq!(check(&gated).await.unwrap().code(), 3, "people would be asked");
    let other = home.deployment.path("other.toml");
    fs::write(&other, fs::read_to_string(&spec).unwrap().replace("trying-out", "other-things")).unwrap();
    let refused = check(&other).await.unwrap_err();
    assert_eq!((refused.reason, refused.exit.code()), (Some(Reason::PolicyDenied), 2));
    assert_eq!(jobs(&home), Vec::<String>::new());
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gated_job_exits_with_3_without_wait() {
    let home = Home::start().await;
    let gated = gated(&home);
    let create = ["job", "create", "--spec", gated.to_str().unwrap()];
    assert_eq!(home.run(&create).await.unwrap().code(), 3);
    assert_eq!(jobs(&home).len(), 1, "it stays, for those who approve it");
    home.stop().await;
}

// Proves law 39.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_approval_survives_a_restart() {
    let mut home = Home::start().await;
    let gated = gated(&home);
    let waiting = create_and_wait(&home, &gated);
    let id = recorded(&home).await;
    home.halt().await;
    home.revive().await;
    assert!(!waiting.is_finished(), "it waits on");
    let close = ["job", "close", &id, "--outcome", "cancelled", "--reason", "not this one"];
    assert_eq!(home.run_as(Some(PrincipalKind::Operator), &close).await.unwrap(), Exit::Ok);
    let refused = waiting.await.unwrap().unwrap_err();
    assert_eq!(refused.exit.code(), 4, "as its help says: {}", refused.render());
    assert!(refused.render().contains("not this one"), "{}", refused.render());
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_job_ends_the_wait_and_can_be_unapproved() {
    let home = Home::start().await;
    let waiting = create_and_wait(&home, &gated(&home));
    let id = recorded(&home).await;
    let operator = Some(PrincipalKind::Operator);
    let asked = ["approve", &id, "--reason", "seen", "-o", "json"];
    let refused = home.run_as(operator, &asked).await.unwrap_err();
    assert_eq!(refused.exit, Exit::Usage, "there is no terminal: {}", refused.render());
    let approve = ["approve", &id[..12], "--reason", "seen", "--yes"];
    for _ in 0..2 {
        assert_eq!(home.run_as(operator, &approve).await.unwrap(), Exit::Ok, "twice is once");
    }
    assert_eq!(waiting.await.unwrap().unwrap(), Exit::Ok);
    for words in
        [&["approvals"][..], &["approvals", "--needs-me", "-o", "json"], &["approvals", "-o", "yaml"]]
    {
        assert_eq!(home.run_as(operator, words).await.unwrap(), Exit::Ok, "{words:?}");
    }
    let unapprove = ["unapprove", &id, "--reason", "a doubt"];
    assert_eq!(home.run_as(operator, &unapprove).await.unwrap(), Exit::Ok);
    let rejected = home.run_as(operator, &["reject", &id, "--reason", "no"]).await;
    assert_eq!(rejected.unwrap(), Exit::Ok, "it waited again");
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_job_ends_the_wait_with_two() {
    let home = Home::start().await;
    let waiting = create_and_wait(&home, &gated(&home));
    let id = recorded(&home).await;
    let reject = ["reject", &id, "--reason", "not cleared"];
    assert_eq!(home.run_as(Some(PrincipalKind::Operator), &reject).await.unwrap(), Exit::Ok);
    let refused = waiting.await.unwrap().unwrap_err();
    assert_eq!(refused.exit.code(), 2, "{}", refused.render());
    assert!(refused.render().contains("not cleared"), "{}", refused.render());
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_is_over_leaves_the_job_waiting() {
    let home = Home::start().await;
    let spec = gated(&home);
    let create = ["job", "create", "--spec", spec.to_str().unwrap(), "--wait", "--timeout", "1s"];
    assert_eq!(home.run(&create).await.unwrap(), Exit::AwaitingApproval);
    let id = recorded(&home).await;
    let approve = ["approve", &id, "--reason", "late", "--yes"];
    assert_eq!(home.run_as(Some(PrincipalKind::Operator), &approve).await.unwrap(), Exit::Ok);
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_is_checked_and_created_with_other_values() {
    let home = Home::start().await;
    let sweep = home.deployment.path("sweep.toml");
    let text = fs::read_to_string(home.spec()).unwrap();
    let tune = "method = \"lora\"\n";
    assert!(text.contains(tune));
    let free = "free_params = [\"learning_rate\", \"seed\"]\n";
    let values = "[sweep]\njobs = 2\nvalues = [\"learning_rate=1e-4\"]\n";
    fs::write(&sweep, format!("{}\n{values}", text.replace(tune, &format!("{tune}{free}")))).unwrap();
    let sweep = sweep.to_str().unwrap();
    // The file has no seed, so `--set` gives the seed. This also works if nothing is created.
    for (dry, set, is_good) in [
        (vec!["job", "check", sweep], vec![], false),
        (vec!["job", "check", sweep], vec!["--set", "seed=7"], true),
        (vec!["job", "create", "--dry-run", "--spec", sweep], vec![], false),
        (vec!["job", "create", "--dry-run", "--spec", sweep], vec!["--set", "seed=7"], true),
        (vec!["job", "create", "--dry-run", "--spec", sweep], vec!["--set", "batch=7"], false),
    ] {
        let words = [dry, set].concat();
        match home.run(&words).await {
            Ok(exit) => assert!(is_good && exit == Exit::Ok, "{words:?}: {exit:?}"),
            Err(no) => {
                let says = no.render();
                assert!(!is_good && says.contains("sweep.values"), "{words:?}: {says}");
            }
        }
    }
    assert_eq!(jobs(&home), Vec::<String>::new());
    for seed in ["seed=7", "seed=8"] {
        let create = ["job", "create", "--spec", sweep, "--set", seed, "--set", "learning_rate=3e-4"];
        assert_eq!(home.run(&create).await.unwrap(), Exit::Ok, "{seed}");
    }
    let ledger = ledger_text(&home.deployment.path("state"));
    for value in ["\"seed\":\"7\"", "\"seed\":\"8\"", "\"learning_rate\":\"3e-4\""] {
        assert!(ledger.contains(value), "{value}");
    }
    let full = ["job", "create", "--spec", sweep, "--set", "seed=9"];
    assert_eq!(home.run(&full).await.unwrap_err().reason, Some(Reason::QuotaExceeded));
    // A value for a file without a sweep is refused by every command.
    let spec = home.spec();
    let spec = spec.to_str().unwrap();
    for words in [
        &["job", "create", "--spec", spec, "--set", "seed=1"][..],
        &["job", "create", "--dry-run", "--spec", spec, "--set", "seed=1"],
        &["job", "check", spec, "--set", "seed=1"],
    ] {
        let refused = home.run(words).await.unwrap_err();
        assert_eq!(refused.exit, Exit::Usage, "{words:?}");
    }
    home.stop().await;
}
