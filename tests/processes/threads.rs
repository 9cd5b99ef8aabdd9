//! Few threads, few files, little memory: a command runs or says why it cannot. Nothing hangs.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use crate::{harness::*, scene::*};

/// Runs the program as a separate user with a limit of processes and threads, with a timeout.
async fn limited(world: &World, limit: &str, args: &[&str]) -> Option<Output> {
    // The limits do not apply to root, and each of these users has its own processes.
    let user = (60_000 + std::process::id() % 5_000).to_string();
    let binary = env!("CARGO_BIN_EXE_leasehold");
    let script = format!("ulimit {limit} && exec \"$@\"");
    let mut command = plain("setpriv");
    command.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "bash",
        "-c",
        &script,
        "bash",
        binary,
    ]);
    command.args(args).env("LEASEHOLD_CONTEXTS", world.contexts_of_worker()).stdin(Stdio::null());
    command.env("SLURM_JOB_ID", "1").env("SLURM_CLUSTER_NAME", "c").kill_on_drop(true);
    for name in ["", "worker.pem", "worker.key", "contexts.toml", "leasehold.example.pem"] {
        let path = world.file(name);
        let id = Some(user.parse().unwrap());
        std::os::unix::fs::chown(&path, id, id).ok()?;
    }
    Some(tokio::time::timeout(Duration::from_secs(60), command.output()).await.expect("it hangs").unwrap())
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_on_a_single_thread() {
    if !is_root() {
        return not_run("few threads", "another user's limits want root");
    }
    let world = world().await;
    for limit in ["-u 1", "-n 16", "-u 1 && ulimit -n 16"] {
        let out = limited(&world, limit, &["whoami"]).await.unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        assert_eq!(out.status.code(), Some(0), "{limit}: {text}");
        assert!(text.contains(WORKER) && !text.contains("panicked"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_start_names_the_limit() {
    if !is_root() {
        return not_run("few threads", "another user's limits want root");
    }
    let world = world().await;
    world.write("job.toml", &job_toml("", ""));
    let spec = world.file("job.toml");
    let (spec, config) = (spec.to_str().unwrap(), "/no/such/config");
    for (limit, args, code, words) in [
        ("-u 1", vec!["run", "--spec", spec, "--", "true"], 125, "ulimit -u"),
        ("-n 8", vec!["run", "--spec", spec, "--", "true"], 125, "ulimit -n"),
        ("-u 1", vec!["serve", "--config", config], 1, "ulimit -u"),
        ("-u 1", vec!["slurm", "node-epilog", "--spool", "/no/such/spool"], 0, ""),
    ] {
        let out = limited(&world, limit, &args).await.unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{limit} {args:?}: {text}");
        assert!(text.contains(words) && !text.contains("panicked"), "{limit} {args:?}: {text}");
    }
}

// Small commands work with one thread as with many. So do the hooks of Slurm, whose failure would drain a node.
#[tokio::test(flavor = "multi_thread")]
async fn each_small_command_needs_one_thread() {
    if !is_root() {
        return not_run("few threads", "another user's limits want root");
    }
    let world = world().await;
    world.write("job.toml", &job_toml("", ""));
    let (spec, state) = (world.file("job.toml"), world.file("state"));
    let (spec, state) = (spec.to_str().unwrap(), state.to_str().unwrap());
    let of_slurm: [&[&str]; 5] = [
        &["slurm", "prolog", "--spool", "/no/such/spool", "--runs-as", WORKER],
        &["slurm", "epilog", "--spool", "/no/such/spool"],
        &["slurm", "node-epilog", "--spool", "/no/such/spool"],
        &["slurm", "resend", "--spool", "/no/such/spool"],
        &["slurm", "key"],
    ];
    let others: [&[&str]; 19] = [
        &["status"],
        &["doctor"],
        &["job", "check", spec],
        &["job", "list"],
        &["lease", "list"],
        &["lock", "list"],
        &["can-i", "read_dataset", TICKETS],
        &["who-can", "read_dataset", TICKETS],
        &["revoke", TICKETS, "--reason", "r"],
        &["approvals"],
        &["waivers"],
        &["audit", "verify", state],
        &["audit", "tail", "--from", "1", "--no-follow"],
        &["context", "list"],
        &["catalog", "list"],
        &["policy", "check"],
        &["policy", "show"],
        &["completions", "bash"],
        &["version"],
    ];
    for args in of_slurm.iter().chain(&others) {
        let many = limited(&world, "-c 0", args).await.unwrap();
        let one = limited(&world, "-u 1", args).await.unwrap();
        let text = String::from_utf8_lossy(&one.stderr).into_owned() + &String::from_utf8_lossy(&one.stdout);
        assert_eq!(one.status.code(), many.status.code(), "{args:?}: {text}");
        assert!(one.status.code().is_some(), "{args:?}: {text}");
        assert!(!text.contains("panicked") && !text.contains("ulimit -u"), "{args:?}: {text}");
    }
}

// A command that serves many clients needs more than one thread. Without them, it fails at once and says why.
#[tokio::test(flavor = "multi_thread")]
async fn each_large_command_that_cannot_start_says_so() {
    if !is_root() {
        return not_run("few threads", "another user's limits want root");
    }
    let world = world().await;
    let large: [&[&str]; 4] = [
        &["serve", "--config", "/none"],
        &["gateway", "--config", "/none"],
        &["demo"],
        &["dev", "--port", "0"],
    ];
    for args in large {
        let out = limited(&world, "-u 1", args).await.unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains("ulimit -u") && text.contains("Nothing was done."), "{args:?}: {text}");
    }
}
