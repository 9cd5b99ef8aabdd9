//! One command under `leasehold run`.

use std::time::{Duration, Instant};

use leasehold::proto::v1::{JobState, MemberState, Outcome};
use nix::sys::signal::{Signal, kill};

use crate::{harness::*, scene::*};

/// Checks the outcome of the job, and that no access is left.
async fn ended(world: &World, wrapper: &Wrapper, outcome: Outcome, detail: &str) {
    let (job, attempt) = world.client(WORKER).await.stands(&wrapper.job().await).await;
    assert_eq!((job.state(), job.outcome(), job.live_leases), (JobState::Closed, outcome, 0), "{detail}");
    assert!(attempt.detail.contains(detail), "`{}` has no `{detail}`", attempt.detail);
    assert_eq!(wrapper.directory(), None, "its directory is left");
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread")]
async fn each_exit_is_reported() {
    for (script, code, outcome, detail) in [
        ("exit 0", 0, Outcome::Completed, "exit code 0"),
        ("exit 1", 1, Outcome::Failed, "exit code 1"),
        ("kill -KILL $$", 137, Outcome::Failed, "ended by SIGKILL from outside"),
        ("kill -ABRT $$", 134, Outcome::Failed, "ended by SIGABRT"),
    ] {
        let world = world().await;
        let since = Instant::now();
        let mut wrapper = world.wrap(&job_toml("", ""), &[], script);
        assert_eq!(wrapper.exit().await, Some(code), "{script}: {}", wrapper.stderr());
        ended(&world, &wrapper, outcome, detail).await;
        row(&format!("run: {script}"), "command, access", since, &cause(&world).await, Some(code));
    }
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread")]
async fn each_signal_that_asks_to_end_interrupts() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1] {
        let world = world().await;
        let mut wrapper = world.wrap(&job_toml("", ""), &[], "echo up; exec sleep 600");
        wrapper.child_says("up").await;
        let since = Instant::now();
        wrapper.signal(signal);
        let code = 128 + signal as i32;
        assert_eq!(wrapper.exit().await, Some(code), "{signal}: {}", wrapper.stderr());
        let asked = signal != Signal::SIGUSR1;
        let outcome = if asked { Outcome::Interrupted } else { Outcome::Failed };
        ended(&world, &wrapper, outcome, &format!("ended by {signal}")).await;
        row(
            &format!("run: {signal} to the wrapper"),
            "command, access",
            since,
            &cause(&world).await,
            Some(code),
        );
    }
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_is_killed_ends_as_its_launcher_says() {
    let world = world().await;
    let script = format!("{} & echo up; wait $!", rank("rank", ""));
    let mut wrapper = world.wrap(&job_toml("", ""), &[], &script);
    wrapper.child_says("up").await;
    let pid = pid_in(&world, "rank").await;
    let since = Instant::now();
    send(pid, Signal::SIGKILL);
    assert_eq!(wrapper.exit().await, Some(137));
    ended(&world, &wrapper, Outcome::Failed, "exit code 137").await;
    row("run: SIGKILL to a rank", "command, access", since, &cause(&world).await, Some(137));
}

// Proves law 27, law 30.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_wrapper_leaves_nothing_behind() {
    let world = world().await;
    let script =
        format!("setsid {} & (setsid {} &); echo up; wait", rank("rank", "TERM"), rank("orphan", "HUP"));
    let mut wrapper = world.wrap(&job_toml("", "[run]\ngrace = \"1s\"\n"), &[], &script);
    wrapper.child_says("up").await;
    let (rank, orphan) = (pid_in(&world, "rank").await, pid_in(&world, "orphan").await);
    let (client, job, gateway) =
        (world.client(WORKER).await, wrapper.job().await, world.client(GATEWAY).await);
    let token = wrapper.file("reading-gateway").unwrap();
    let (since, took) = (Instant::now(), Stopwatch::start());
    wrapper.signal(Signal::SIGKILL);
    eventually("it is away", async || {
        let (job, attempt) = client.stands(&job).await;
        job.live_leases == 0 && attempt.members[0].state() == MemberState::Away
    })
    .await;
    assert!(took.counted() < Duration::from_secs(1), "access ended after {:?}", took.counted());
    assert!(!gateway.introspect(&token, WORKER).await.active);
    row("run: SIGKILL to the wrapper", "access", since, &cause(&world).await, None);
    gone(orphan).await;
    gone(rank).await;
    assert_eq!(wrapper.exit().await, None);
    eventually("its files are gone", async || wrapper.directory().is_none()).await;
    row("  its ranks, under setsid, one deaf to SIGTERM", "processes, files", since, "the guard", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_left_by_a_double_kill_go_with_the_next_run() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], "echo up; exec sleep 600");
    wrapper.child_says("up").await;
    let guard = nix::unistd::Pid::from_raw(children(wrapper.pid().as_raw())[0]);
    let command = nix::unistd::Pid::from_raw(children(guard.as_raw())[0]);
    let (client, job) = (world.client(WORKER).await, wrapper.job().await);
    // Stopped, the wrapper does not see the guard end.
    wrapper.signal(Signal::SIGSTOP);
    kill(guard, Signal::SIGKILL).unwrap();
    wrapper.signal(Signal::SIGKILL);
    eventually("access has ended", async || client.stands(&job).await.0.live_leases == 0).await;
    assert!(wrapper.directory().is_some(), "no one was left to erase the files");
    // The command holds the wrapper's streams open.
    kill(command, Signal::SIGKILL).ok();
    assert_eq!(wrapper.exit().await, None);
    // Whether this run gets access or not, it erases what it finds.
    let mut next = world.wrap(&job_toml("", ""), &[], "true");
    next.exit().await;
    assert!(wrapper.directory().is_none(), "{}", next.stderr());
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread")]
async fn a_forking_process_ends_with_a_killed_wrapper() {
    let what = "run: SIGKILL to the wrapper, without a cgroup of the job's own";
    let can =
        std::process::Command::new("unshare").args(["--mount", "umount", "-a", "-t", "cgroup2"]).status();
    if !can.is_ok_and(|s| s.success()) {
        return not_run(what, "unshare --mount is not allowed (it wants root)");
    }
    let world = world().await;
    world.write("job.toml", &job_toml("", "[run]\ngrace = \"200ms\"\n"));
    let (spec, dir) = (world.file("job.toml"), world.file("credentials"));
    let word = format!("chain-{}", std::process::id());
    let args = ["run", "--spec", spec.to_str().unwrap(), "--dir", dir.to_str().unwrap(), "--"];
    let chain =
        format!("sh -c 'f() {{ f & }}; f' {word}; sh -c 'f() {{ f & }}; f' {word}; echo up; sleep 600");
    let before = ["unshare", "--mount", "sh", "-c", "umount -a -t cgroup2; exec \"$@\"", "sh"];
    let mut wrapper = world.leasehold(WORKER, &before, &[&args[..], &["sh", "-c", &chain]].concat());
    wrapper.child_says("up").await;
    let guard = nix::unistd::Pid::from_raw(children(wrapper.pid().as_raw())[0]);
    let since = Instant::now();
    wrapper.signal(Signal::SIGKILL);
    assert_eq!(wrapper.exit().await, None);
    gone(guard).await;
    for _ in 0..40 {
        let found = std::process::Command::new("pgrep")
            .args(["-f", &format!("^[^ ]*sh -c .* {word}$")])
            .output()
            .unwrap();
        assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    row(what, "processes", since, "the guard", None);
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread")]
async fn a_memory_limit_ends_the_command_and_all_access() {
    let what = "run: memory limit exceeded";
    let Some(limit) = MemoryLimit::make(64 << 20) else {
        return not_run(what, "no cgroup with a memory controller may be written here");
    };
    let world = world().await;
    let script = format!("echo $$ > {} && exec tail /dev/zero", limit.procs().display());
    let since = Instant::now();
    let mut wrapper = world.wrap(&job_toml("", ""), &[], &script);
    assert_eq!(wrapper.exit().await, Some(137), "{}", wrapper.stderr());
    ended(&world, &wrapper, Outcome::Failed, "the kernel does that if memory is short").await;
    row(what, "command, access", since, &cause(&world).await, Some(137));
}

// Proves law 30.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrapper_comes_back_after_a_long_stop() {
    let world = world_of(SHORT).await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let (client, job, gateway) =
        (world.client(WORKER).await, wrapper.job().await, world.client(GATEWAY).await);
    let before = wrapper.file("reading-gateway").unwrap();
    let (since, took) = (Instant::now(), Stopwatch::start());
    wrapper.signal(Signal::SIGSTOP);
    eventually("it is away", async || {
        let (job, attempt) = client.stands(&job).await;
        job.live_leases == 0 && attempt.members[0].state() == MemberState::Away
    })
    .await;
    let most = WINDOW + Duration::from_secs(2);
    assert!(took.counted() < most, "access ended after {:?}, at the most {most:?}", took.counted());
    assert!(!gateway.introspect(&before, WORKER).await.active);
    row("run: SIGSTOP to the wrapper, beyond the window", "access", since, &cause(&world).await, None);
    let since = Instant::now();
    wrapper.signal(Signal::SIGCONT);
    eventually("a new credential", async || {
        let now = wrapper.file("reading-gateway").unwrap_or_default();
        now != before && gateway.introspect(&now, WORKER).await.active
    })
    .await;
    row("  and SIGCONT", "nothing: it is back, by a new lease", since, "", None);
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    assert_eq!(wrapper.stdout(), "up\ndown\n", "the command noticed nothing");
    ended(&world, &wrapper, Outcome::Completed, "exit code 0").await;
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread")]
async fn ranks_in_other_sessions_end_with_the_job() {
    let world = world().await;
    let script = format!(
        "setsid {} & (setsid {} &); until [ -e $HERE/rank ] && [ -e $HERE/orphan ]; do sleep 0.02; done; exit 0",
        rank("rank", ""),
        rank("orphan", "TERM")
    );
    let since = Instant::now();
    let mut wrapper = world.wrap(&job_toml("", "[run]\ngrace = \"500ms\"\n"), &[], &script);
    let (rank, orphan) = (pid_in(&world, "rank").await, pid_in(&world, "orphan").await);
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    assert!(!runs(rank) && !runs(orphan), "the wrapper ends last");
    ended(&world, &wrapper, Outcome::Completed, "exit code 0").await;
    row(
        "run: ranks under setsid, orphaned grandchildren",
        "processes, access",
        since,
        &cause(&world).await,
        Some(0),
    );
}

// Proves law 10, law 27.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ignores_sigterm_is_killed() {
    let world = world().await;
    let script = format!("trap '' TERM; {UNTIL_TOLD}");
    const GRACE: Duration = Duration::from_secs(5);
    let mut wrapper = world.wrap(&job_toml("", "[run]\ngrace = \"5s\"\n"), &[], &script);
    wrapper.child_says("up").await;
    let (job, gateway, operator) =
        (wrapper.job().await, world.client(GATEWAY).await, world.client(OPERATOR).await);
    let token = wrapper.file("reading-gateway").unwrap();
    let (since, took) = (Instant::now(), Stopwatch::start());
    operator.revoke(&format!("job:{job}")).await.unwrap();
    assert!(!gateway.introspect(&token, WORKER).await.active);
    assert!(took.counted() < Duration::from_millis(500), "{:?}", took.counted());
    wrapper.says("the credential files are wiped").await;
    assert!(wrapper.files().is_empty(), "{:?}", wrapper.files());
    // This fails only if the machine stood still for the whole grace.
    let is_early = since.elapsed() < GRACE;
    assert!(took.counted() < Duration::from_secs(1), "{:?}", took.counted());
    assert!(wrapper.is_running() || !is_early, "it has a grace");
    row("run: revoked, and deaf to SIGTERM", "access", since, &cause(&world).await, None);
    assert_eq!(wrapper.exit().await, Some(137));
    assert!(since.elapsed() >= GRACE, "it had its grace");
    row("  after its grace of 5 s", "command", since, "SIGKILL", Some(137));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_run_does_not_look_like_success() {
    let polite = "trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done";
    for (more, script, wanted) in [
        (&[][..], polite, 4),
        (&["--on-revoke", "ignore"], UNTIL_TOLD, 0),
        (&[], "trap 'exit 3' TERM; echo up; while :; do sleep 0.02; done", 3),
    ] {
        let world = world().await;
        let mut wrapper = world.wrap(&job_toml("", ""), more, script);
        wrapper.child_says("up").await;
        let job = wrapper.job().await;
        let since = Instant::now();
        world.client(OPERATOR).await.revoke(&format!("job:{job}")).await.unwrap();
        wrapper.says("access has ended (REVOKED)").await;
        world.write("go", "");
        assert_eq!(wrapper.exit().await, Some(wanted), "{more:?}: {}", wrapper.stderr());
        let what = format!("run: revoked, then its command's own end {}", more.join(" "));
        row(&what, "access", since, &cause(&world).await, Some(wanted));
    }
    // A drain gives the command time to save its work, so its 0 stays.
    let world = world().await;
    let mut drained = world.wrap(&job_toml("", ""), &[], polite);
    drained.child_says("up").await;
    drained.signal(Signal::SIGTERM);
    assert_eq!(drained.exit().await, Some(0), "{}", drained.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapper_can_be_the_first_process_of_a_container() {
    let what = "run: as PID 1 of a PID namespace";
    let can =
        std::process::Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    if !can.is_ok_and(|o| o.status.success()) {
        return not_run(what, "unshare --pid is not allowed (it wants root)");
    }
    let world = world().await;
    world.write("job.toml", &job_toml("", ""));
    let (spec, dir) = (world.file("job.toml"), world.file("credentials"));
    let (spec, dir) = (spec.to_str().unwrap(), dir.to_str().unwrap());
    let script = "trap 'exit 7' TERM; echo up $PPID; while :; do sleep 0.02; done";
    let args = ["run", "--spec", spec, "--dir", dir, "--", "sh", "-c", script];
    let before = ["unshare", "--pid", "--fork", "--mount-proc"];
    let mut wrapper = world.leasehold(WORKER, &before, &args);
    wrapper.child_says("up").await;
    let first = children(wrapper.pid().as_raw())[0];
    // The first process adopts the orphans of other processes in the container.
    let target = first.to_string();
    let left = std::process::Command::new("nsenter")
        .args(["--target", &target, "--pid", "--mount", "sh", "-c", "(sleep 0.05 &) ; (sh -c 'exit 3' &)"])
        .status()
        .unwrap();
    assert!(left.success());
    // Only its guard is left. An orphan that was not reaped would be left too.
    eventually("no zombie of it", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        matches!(children(first)[..], [guard] if runs(nix::unistd::Pid::from_raw(guard)))
    })
    .await;
    let since = Instant::now();
    send(nix::unistd::Pid::from_raw(first), Signal::SIGTERM);
    assert_eq!(wrapper.exit().await, Some(7), "{}", wrapper.stderr());
    row(what, "command, namespace, access", since, &cause(&world).await, Some(7));
}

/// The children of a process.
pub fn children(parent: i32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after = stat.rsplit_once(')').map(|(_, after)| after.to_owned()).unwrap_or_default();
            after.split_ascii_whitespace().nth(1) == Some(parent.to_string().as_str())
        })
        .collect()
}
