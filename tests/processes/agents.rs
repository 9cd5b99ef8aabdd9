//! `leasehold agent` for processes that it did not start.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Child, Command},
    time::{Duration, Instant},
};

use leasehold::proto::v1::{JobState, MemberState, Outcome};
use nix::{sys::signal::Signal, unistd::Pid};

use crate::{harness::*, scene::*};

/// A process that the test started. It is killed when this is dropped.
struct Beside(Child);

impl Beside {
    fn start(script: &str) -> Self {
        Beside(Command::new("sh").args(["-c", script]).spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().try_into().unwrap())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts an agent for a job of one member, with its files in a named directory. Waits until it is ready.
async fn ready(world: &World, more: &[&str]) -> Wrapper {
    let job = crew(world, 1).await;
    let (dir, ready) = (world.file("creds"), world.file(READY));
    let files = ["--dir", dir.to_str().unwrap(), "--ready-file", ready.to_str().unwrap()];
    let begin = ["agent", "--job", &job, "--attempt-key", "pod-1", "--instance", "pod"];
    let agent = world.leasehold(WORKER, &[], &[&begin, &files[..], more].concat());
    eventually("it is ready", async || ready.exists()).await;
    agent
}

/// In the directory of the credentials, as in the shared volume of a pod.
const READY: &str = "creds/ready";

fn token(world: &World) -> Option<String> {
    fs::read_to_string(world.file("creds/reading-gateway")).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_leaves_by_sigterm_with_an_unknown_outcome() {
    let world = world().await;
    let mut agent = ready(&world, &[]).await;
    let variables = world.read(READY);
    agent.child_says("LEASEHOLD_CREDENTIALS").await;
    assert_eq!(agent.stdout(), variables, "stdout and the ready file say the same");
    let creds = fs::canonicalize(world.file("creds")).unwrap();
    assert!(
        variables
            .contains(&format!("export LEASEHOLD_TOKEN_FILE_READING='{}/reading-gateway'", creds.display()))
    );
    let gateway = world.client(GATEWAY).await;
    assert!(gateway.introspect(&token(&world).unwrap(), WORKER).await.active);

    let since = Instant::now();
    agent.signal(Signal::SIGTERM);
    agent.says("checkpoint writes until").await;
    assert!(token(&world).is_some(), "a drain begins with both halves");
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
    let (job, attempt) = world.client(LAUNCHER).await.stands(&agent.job().await).await;
    assert_eq!(job.live_leases, 0);
    let member = &attempt.members[0];
    assert_eq!((member.state(), member.outcome()), (MemberState::Left, Outcome::Unknown));
    assert!(agent.stderr().contains("outcome unknown"), "{}", agent.stderr());
    assert_eq!(fs::read_dir(world.dir.path().join("creds")).map_or(0, Iterator::count), 0);
    assert!(!world.file(READY).exists());
    row("agent: SIGTERM, twice", "access, files", since, &cause(&world).await, Some(0));
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_loses_its_access_to_the_next_one() {
    let world = world_of(SHORT).await;
    let mut agent = ready(&world, &[]).await;
    let (job, client, gateway) =
        (agent.job().await, world.client(LAUNCHER).await, world.client(GATEWAY).await);
    let before = token(&world).unwrap();
    let (since, took) = (Instant::now(), Stopwatch::start());
    agent.signal(Signal::SIGKILL);
    eventually("it is away", async || {
        let (job, attempt) = client.stands(&job).await;
        job.live_leases == 0 && attempt.members[0].state() == MemberState::Away
    })
    .await;
    assert!(took.counted() < Duration::from_secs(1), "{:?}", took.counted());
    assert!(!gateway.introspect(&before, WORKER).await.active);
    assert_eq!(agent.exit().await, None);
    row("agent: SIGKILL", "access", since, &cause(&world).await, None);

    // Its place is free after it was away for longer than the window.
    tokio::time::sleep(WINDOW + Duration::from_millis(200)).await;
    let since = Instant::now();
    let (dir, ready) = (world.file("creds"), world.file(READY));
    assert!(ready.exists(), "what was killed leaves its files");
    let args = [
        "agent",
        "--job",
        &job,
        "--attempt-key",
        "pod-1",
        "--instance",
        "pod",
        "--dir",
        dir.to_str().unwrap(),
        "--ready-file",
        ready.to_str().unwrap(),
    ];
    let mut next = world.leasehold(WORKER, &[], &args);
    next.child_says("LEASEHOLD_JOB").await;
    let now = token(&world).unwrap();
    assert!(now != before && gateway.introspect(&now, WORKER).await.active);
    row("  and another in its place", "nothing: it goes on", since, "", None);
    next.signal(Signal::SIGTERM);
    next.says("finishing").await;
    next.signal(Signal::SIGINT);
    assert_eq!(next.exit().await, Some(0), "{}", next.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_ends_with_the_process_that_it_watches() {
    let world = world().await;
    let mut beside = Beside::start("exec sleep 600");
    let mut agent = ready(&world, &["--watch-pid", &beside.pid().to_string()]).await;
    let (since, took) = (Instant::now(), Stopwatch::start());
    beside.0.kill().unwrap();
    assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
    assert!(took.counted() < Duration::from_secs(2), "{:?}", took.counted());
    let (job, attempt) = world.client(LAUNCHER).await.stands(&agent.job().await).await;
    assert_eq!((job.live_leases, attempt.members[0].outcome()), (0, Outcome::Unknown));
    assert!(token(&world).is_none());
    row("agent: the watched process ends", "access, files", since, &cause(&world).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_wipes_its_files_and_acts_on_the_process() {
    for (how, survives) in [("term", false), ("kill", false), ("ignore", true)] {
        let world = world().await;
        let beside = Beside::start("trap '' HUP; exec sleep 600");
        let more = ["--watch-pid", &beside.pid().to_string(), "--on-revoke", how];
        let mut agent = ready(&world, &more).await;
        let since = Instant::now();
        let job = agent.job().await;
        world.client(OPERATOR).await.revoke(&format!("job:{job}")).await.unwrap();
        assert_eq!(agent.exit().await, Some(4), "{}", agent.stderr());
        assert!(token(&world).is_none() && !world.file(READY).exists());
        assert!(agent.stderr().contains("someone has ended this access on purpose"), "{}", agent.stderr());
        if survives {
            assert!(runs(beside.pid()));
        } else {
            gone(beside.pid()).await;
        }
        let ended = if survives { "access, files" } else { "access, files, watched process" };
        row(&format!("agent: revoked, --on-revoke {how}"), ended, since, &cause(&world).await, Some(4));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_attaches_to_a_running_attempt() {
    let world = world().await;
    let job = crew(&world, 2).await;
    let mut early = world.leasehold(WORKER, &[], &["agent", "attach", &job]);
    assert_eq!(early.exit().await, Some(1));
    assert!(early.stderr().contains("no attempt of"), "{}", early.stderr());
    let dir = world.file("credentials");
    let run = ["run", "--job", &job, "--attempt-key", "k", "--instance", "a", "--dir", dir.to_str().unwrap()];
    let mut run = world.leasehold(WORKER, &[], &[&run[..], &["--", "sh", "-c", UNTIL_TOLD]].concat());
    run.child_says("up").await;
    let ready = world.file("ready");
    let attach = ["agent", "attach", &job, "--instance", "b", "--ready-file", ready.to_str().unwrap()];
    let mut agent = world.leasehold(WORKER, &[], &attach);
    agent.child_says("LEASEHOLD_CREDENTIALS").await;
    assert_eq!(world.read("ready"), agent.stdout());
    let attempt = world.client(LAUNCHER).await.stands(&job).await.1;
    assert_eq!((attempt.number, attempt.members.len()), (1, 2));
    agent.signal(Signal::SIGTERM);
    agent.says("finishing").await;
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
    assert!(!ready.exists(), "it goes with its agent, wherever it is");
    assert!(run.is_running(), "who goes is one of two");
    world.write("go", "");
    assert_eq!(run.exit().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_closes_its_own_job_with_an_unknown_outcome() {
    let world = world().await;
    world.write("job.toml", &job_toml("", ""));
    let spec = world.file("job.toml");
    let mut agent = world.leasehold(WORKER, &[], &["agent", "--spec", spec.to_str().unwrap()]);
    agent.child_says("LEASEHOLD_CREDENTIALS").await;
    let since = Instant::now();
    agent.signal(Signal::SIGINT);
    agent.says("finishing").await;
    agent.signal(Signal::SIGINT);
    assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
    let (job, _) = world.client(WORKER).await.stands(&agent.job().await).await;
    assert_eq!((job.state(), job.outcome()), (JobState::Closed, Outcome::Unknown));
    assert!(job.detail.contains("no one saw how the work ended"), "{}", job.detail);
    // What an auditor reads.
    let records = world.records().await;
    assert_eq!(records.of("job.closed").last().unwrap()["outcome"], "unknown");
    row("agent: Ctrl-C, twice, in a notebook", "access, job", since, &cause(&world).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_other_files_is_not_taken() {
    let world = world().await;
    let job = crew(&world, 1).await;
    fs::create_dir(world.file("mine")).unwrap();
    world.write("mine/thesis.tex", "x");
    let dir = world.file("mine");
    let mut agent = world.leasehold(WORKER, &[], &["agent", "--job", &job, "--dir", dir.to_str().unwrap()]);
    assert_eq!(agent.exit().await, Some(1));
    assert!(agent.stderr().contains("there are other files in it"), "{}", agent.stderr());
    assert_eq!(world.read("mine/thesis.tex"), "x");
}

// An agent that was killed leaves a manifest, which names its draft. A file that looks like a draft, but is not in the manifest,
// belongs to another program.
#[tokio::test(flavor = "multi_thread")]
async fn a_draft_of_another_program_is_not_erased() {
    let world = world().await;
    let job = crew(&world, 1).await;
    let dir = world.file("creds");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let draft = |digit: &str| format!(".leasehold-{}.new", digit.repeat(32));
    let (ours, theirs) = (draft("a"), draft("b"));
    world.write("creds/.leasehold", &format!("draft {ours}\n"));
    world.write(&format!("creds/{ours}"), "half a tok");
    world.write(&format!("creds/{theirs}"), "mine");
    let mut agent = world.leasehold(WORKER, &[], &["agent", "--job", &job, "--dir", dir.to_str().unwrap()]);
    assert_eq!(agent.exit().await, Some(1), "{}", agent.stderr());
    assert!(agent.stderr().contains(&theirs), "{}", agent.stderr());
    assert_eq!(world.read(&format!("creds/{theirs}")), "mine");
    fs::remove_file(dir.join(&theirs)).unwrap();
    let mut agent = of_a_new_job(&world, "[run]\ndrain = \"2s\"\n", &[]).await;
    assert!(!dir.join(&ours).exists(), "the draft of the agent is erased");
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
}

/// Starts an agent for a new job with these settings. Waits until it is ready.
async fn of_a_new_job(world: &World, settings: &str, more: &[&str]) -> Wrapper {
    world.write("job.toml", &job_toml("", settings));
    let (spec, dir, ready) = (world.file("job.toml"), world.file("creds"), world.file(READY));
    let files = ["--dir", dir.to_str().unwrap(), "--ready-file", ready.to_str().unwrap()];
    let args = [&["agent", "--spec", spec.to_str().unwrap()], &files[..], more].concat();
    let agent = world.leasehold(WORKER, &[], &args);
    agent.child_says("LEASEHOLD_JOB").await;
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sigterm_ends_an_agent_in_order_and_in_time() {
    let world = world().await;
    let mut agent = of_a_new_job(&world, "[run]\ndrain = \"2s\"\n", &[]).await;
    let since = Instant::now();
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
    // By the clock, and not by a stopwatch that leaves out the time of a busy machine: a drain of 30 s must never pass.
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    let records = world.records().await;
    let drain =
        records.of("attempt.draining").into_iter().chain(records.of("member.draining")).next().unwrap();
    let began = humantime::parse_rfc3339(drain["time"].as_str().unwrap()).unwrap();
    let began = began.duration_since(std::time::UNIX_EPOCH).unwrap();
    let ends = Duration::from_millis(drain["writing_ends"].as_u64().unwrap());
    assert!(ends.saturating_sub(began) <= Duration::from_secs(3), "the daemon drains for {:?}", ends - began);
    assert!(token(&world).is_none() && !world.file(READY).exists());
    row("agent: SIGTERM, once", "access, files", since, &cause(&world).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_ends_by_default_before_kubernetes_kills_it() {
    let world = world().await;
    let mut agent = of_a_new_job(&world, "", &[]).await;
    agent.signal(Signal::SIGTERM);
    agent.says("checkpoint writes until").await;
    let note: serde_json::Value = serde_json::from_str(&world.read("creds/drain.json")).unwrap();
    let ends = humantime::parse_rfc3339(note["writing_ends"].as_str().unwrap()).unwrap();
    let left = ends.duration_since(std::time::SystemTime::now()).unwrap_or_default();
    assert!(left <= Duration::from_secs(20), "{left:?}");
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_is_the_same_member_again() {
    let world = world().await;
    let mut agent = of_a_new_job(&world, "", &[]).await;
    let (job, before) = (agent.job().await, token(&world).unwrap());
    agent.signal(Signal::SIGKILL);
    assert_eq!(agent.exit().await, None);
    // Within the window, in which another process could not take its place.
    let since = Instant::now();
    let mut next = of_a_new_job(&world, "", &[]).await;
    assert_eq!(next.job().await, job, "{}", next.stderr());
    let now = token(&world).unwrap();
    assert!(now != before && world.client(GATEWAY).await.introspect(&now, WORKER).await.active);
    row("agent: SIGKILL, and started again", "nothing: the same member", since, "", None);
    next.signal(Signal::SIGTERM);
    next.says("finishing").await;
    next.signal(Signal::SIGTERM);
    assert_eq!(next.exit().await, Some(0), "{}", next.stderr());
    let (job, attempt) = world.client(WORKER).await.stands(&job).await;
    assert_eq!((job.state(), attempt.members.len()), (JobState::Closed, 1));
    assert_eq!(fs::read_dir(world.file("creds")).map_or(0, Iterator::count), 0, "its session is wiped too");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ready_file_exists_only_while_the_credentials_do() {
    for place in ["ready", READY] {
        let mut world = world_with_an_address().await;
        world.write("job.toml", &job_toml("credential_ttl = \"3s\"", ""));
        let (spec, dir, ready) = (world.file("job.toml"), world.file("creds"), world.file(place));
        let [spec, dir, path] = [&spec, &dir, &ready].map(|p| p.to_str().unwrap());
        let args = ["agent", "--spec", spec, "--dir", dir, "--ready-file", path];
        let mut agent = world.leasehold(WORKER, &[], &args);
        agent.child_says("LEASEHOLD_JOB").await;
        assert!(ready.exists());
        world.stop().await;
        eventually("the token is gone", async || token(&world).is_none()).await;
        eventually("and the ready file with it", async || !ready.exists()).await;
        world.restart().await;
        eventually("all is there again", async || ready.exists() && token(&world).is_some()).await;
        agent.signal(Signal::SIGTERM);
        agent.says("finishing").await;
        agent.signal(Signal::SIGTERM);
        assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_ends_an_agent_and_says_the_outcome() {
    for (text, outcome) in [
        ("0\n", Outcome::Completed),
        ("3\n", Outcome::Failed),
        ("interrupted\n", Outcome::Interrupted),
        ("", Outcome::Unknown),
    ] {
        let world = world().await;
        let file = world.file("ended");
        let mut agent = of_a_new_job(&world, "", &["--until-file", file.to_str().unwrap()]).await;
        let (since, job) = (Instant::now(), agent.job().await);
        world.write("ended", text);
        assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
        let (job, _) = world.client(WORKER).await.stands(&job).await;
        assert_eq!((job.state(), job.outcome(), job.live_leases), (JobState::Closed, outcome, 0), "{text}");
        row(
            &format!("agent: its neighbour wrote {text:?}"),
            "access, files",
            since,
            &cause(&world).await,
            Some(0),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_release_of_a_lock_ends_an_agent() {
    let world = world().await;
    let lock = world.file("lock");
    let mut beside = Beside::start(&format!("exec flock {} sleep 600", lock.display()));
    eventually("it has the lock", async || fs::File::open(&lock).is_ok_and(|f| f.try_lock_shared().is_err()))
        .await;
    let mut agent = of_a_new_job(&world, "", &["--while-locked", lock.to_str().unwrap()]).await;
    assert!(agent.is_running());
    // The kernel releases it, however the process ends.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", beside.pid())).unwrap();
    beside.0.kill().unwrap();
    for child in children.split_whitespace() {
        send(Pid::from_raw(child.parse().unwrap()), Signal::SIGKILL);
    }
    assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
    assert!(agent.stderr().contains("the lock was released"), "{}", agent.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_by_an_operator_reaches_the_watched_process() {
    let world = world().await;
    let mark = world.file("asked");
    let script = format!(
        "trap 'cp {} {}; exit 0' TERM; while :; do sleep 0.02; done",
        world.file("creds/drain.json").display(),
        mark.display()
    );
    let beside = Beside::start(&script);
    let mut agent = ready(&world, &["--watch-pid", &beside.pid().to_string()]).await;
    world.client(OPERATOR).await.drain(&agent.job().await).await;
    assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
    assert!(fs::read_to_string(mark).unwrap().contains("writing_ends"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_may_read_the_files_but_not_every_user() {
    use std::os::unix::fs::PermissionsExt;
    let world = world().await;
    let group = nix::unistd::getegid().to_string();
    let mut agent = ready(&world, &["--group", &group, "--mode", "0640"]).await;
    let mode = |name: &str| fs::metadata(world.file(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("creds"), mode("creds/reading-gateway")), (0o750, 0o640));
    assert_eq!(mode("creds/.leasehold-session"), 0o600);
    agent.signal(Signal::SIGTERM);
    agent.says("finishing").await;
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.exit().await, Some(0), "{}", agent.stderr());
    let mut open = world.leasehold(WORKER, &[], &["agent", "--job", &agent.job().await, "--mode", "0644"]);
    assert_eq!(open.exit().await, Some(64));
    assert!(open.stderr().contains("lets every user of the machine"), "{}", open.stderr());
}
