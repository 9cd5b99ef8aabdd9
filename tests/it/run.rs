//! `leasehold run`: a real wrapper, a real child, a real daemon.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use leasehold::proto::v1::{self, AttemptState, JobState, ListJobsRequest, MemberState, Outcome};
use nix::sys::signal::Signal;

use crate::{harness::*, policy_code::NO_TICKETS};

/// Prints that it runs, and waits for the file `go`.
const UNTIL_TOLD: &str = "echo up; while [ ! -e $HERE/go ]; do sleep 0.02; done; echo down";

async fn world() -> World {
    World::with(|setup| setup.real_clock = true).await
}

/// A world whose daemon restarts at the same address.
async fn world_with_an_address() -> World {
    let mut world = World::prepared(|setup| setup.real_clock = true);
    world.stays_where_it_is();
    world.restart().await;
    world
}

fn assert_wiped(wrapper: &Wrapper) {
    assert_eq!(wrapper.directory(), None, "its directory is left: {:?}", wrapper.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn run_exits_with_its_childs_code_and_reports_the_outcome() {
    for (script, code, outcome, detail) in [
        ("cat $LEASEHOLD_TOKEN_FILE_READING; exit 0", 0, Outcome::Completed, "exit code 0"),
        ("exit 3", 3, Outcome::Failed, "exit code 3"),
        ("kill -SEGV $$", 139, Outcome::Failed, "ended by SIGSEGV"),
        ("nonesuch-command", 127, Outcome::Failed, "exit code 127"),
    ] {
        // Its identity belongs to only one job.
        let world = world().await;
        let mut wrapper = world.wrap(&job_toml("", ""), &[], script);
        assert_eq!(wrapper.exit().await, Some(code), "{script}: {}", wrapper.stderr());
        let (job, attempt) = world.client(WORKER).await.stands(&wrapper.job().await).await;
        assert_eq!((job.state(), job.outcome(), job.live_leases), (JobState::Closed, outcome, 0), "{script}");
        assert!(attempt.detail.ends_with(detail), "{script}: {}", attempt.detail);
        assert!(wrapper.stderr().contains("all access has ended"), "{}", wrapper.stderr());
        assert_wiped(&wrapper);
        // Only the child writes to stdout: here, a token.
        assert_eq!(wrapper.stdout().matches('.').count(), if code == 0 { 2 } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_writes_private_files_that_open_each_half() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let names = ["reading-gateway", "reading-gateway.header", "writing-gateway", "writing-gateway.header"];
    assert_eq!(wrapper.files(), [&["credentials.json"], &names[..]].concat());
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let directory = wrapper.directory().unwrap();
    assert_eq!(mode(directory.clone()), 0o700);
    let gateway = world.client(GATEWAY).await;
    for name in names {
        assert_eq!(mode(directory.join(name)), 0o600, "{name}");
        let text = wrapper.file(name).unwrap();
        let token = text.trim_start_matches("Authorization: Bearer ").trim_end();
        assert_eq!(name.ends_with(".header"), token.len() < text.len());
        assert!(gateway.introspect(token, WORKER).await.active, "{name}");
    }
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0));
    assert_eq!(wrapper.stdout(), "up\ndown\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_run_starts_nothing_and_leaves_nothing() {
    let world = world().await;
    let spec = job_toml("", "").replace("purpose = \"support-tuning\"", "purpose = \"demo-bot\"");
    let mut wrapper = world.wrap(&spec, &[], "touch $HERE/started");
    assert_eq!(wrapper.exit().await, Some(125));
    let said = wrapper.stderr();
    assert!(said.starts_with("leasehold: denied: this job may not read dataset:acme/tickets@v3\n"), "{said}");
    assert!(said.contains("\n  you    spiffe://k8s.acme.example/ns/ml/job/tuner"), "{said}");
    assert!(
        said.contains("\n  fix    ") && said.ends_with("Nothing was started, no access was given.\n"),
        "{said}"
    );
    assert!(!world.file("started").exists());
    assert_eq!(wrapper.stdout(), "");
    assert_wiped(&wrapper);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_join_closes_the_job_it_created() {
    let world = world().await;
    let spec = job_toml("", &format!("[members]\njoin = [\"{OTHER_WORKER}\"]\n"));
    let mut wrapper = world.wrap(&spec, &[], "touch $HERE/started");
    assert_eq!(wrapper.exit().await, Some(125));
    assert!(wrapper.stderr().contains("members.join"), "{}", wrapper.stderr());
    assert!(!world.file("started").exists());
    let jobs = world.client(OPERATOR).await.jobs().list_jobs(ListJobsRequest::default()).await.unwrap();
    let [job] = &jobs.into_inner().jobs[..] else { panic!("one job") };
    assert_eq!((job.state(), job.outcome()), (JobState::Closed, Outcome::Cancelled));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_could_not_join_uses_up_no_attempt() {
    const ANY_POD: &str = "spiffe://k8s.acme.example/ns/ml/job/*";
    let world = world().await;
    let launcher = world.client(LAUNCHER).await;
    let create = async |key: &str, join: &str| {
        let members =
            v1::Members { join: vec![join.into()], start: vec![ANY_POD.into()], ..Default::default() };
        let spec = v1::JobSpec { members: Some(members), ..spec() };
        launcher.create(spec, key).await.unwrap().into_inner().job.unwrap().id
    };
    let (by_pattern, of_other) = (create("k1", ANY_POD).await, create("k2", OTHER_WORKER).await);
    let refused = async |job: &str, said: &str| {
        let args = ["run", "--job", job, "--", "sh", "-c", "touch $HERE/started"];
        let mut wrapper = world.leasehold(WORKER, &[], &args);
        assert_eq!(wrapper.exit().await, Some(125), "{}", wrapper.stderr());
        assert!(wrapper.stderr().contains(said), "{}", wrapper.stderr());
        let (job, _) = launcher.stands(job).await;
        assert_eq!((job.state(), job.attempts.len()), (JobState::Ready, 0), "{said}");
        assert!(!world.file("started").exists());
    };
    // Only a pattern names it in members.start, so it gets no ticket.
    refused(&by_pattern, "--ticket-file FILE").await;
    refused(&of_other, "members.join").await;
    // The attempt that is left over is begun for it, and it joins that one without a ticket.
    let request = v1::BeginAttemptRequest {
        job: by_pattern.clone(),
        key: "run-1".into(),
        members: vec![WORKER.into()],
        ..Default::default()
    };
    launcher.jobs().begin_attempt(request).await.unwrap();
    let args = ["run", "--job", &by_pattern, "--running", "--", "true"];
    let mut wrapper = world.leasehold(WORKER, &[], &args);
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    // Its identity belongs to that job now.
    refused(&create("k3", WORKER).await, "belongs to only one job").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_and_agent_take_the_beginning_of_an_id() {
    let world = world().await;
    let members =
        v1::Members { start: vec![WORKER.into()], join: vec![WORKER.into()], max: 2, ..Default::default() };
    // It launched the job, so it may list it.
    let spec = v1::JobSpec { members: Some(members), acting_for: String::new(), ..spec() };
    let launcher = world.client(WORKER).await;
    let job = launcher.create(spec, "short").await.unwrap().into_inner().job.unwrap().id;
    let short = &job[..10];
    let run =
        ["run", "--job", short, "--attempt-key", "k", "--instance", "one", "--", "sh", "-c", UNTIL_TOLD];
    let mut wrapper = world.leasehold(WORKER, &[], &run);
    wrapper.child_says("up").await;
    assert_eq!(wrapper.job().await, job);
    let ready = world.file("ready");
    let attach = ["agent", "attach", short, "--instance", "two", "--ready-file", ready.to_str().unwrap()];
    let agent = world.leasehold(WORKER, &[], &attach);
    eventually("the agent's credentials", async || ready.exists()).await;
    agent.signal(Signal::SIGTERM);
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    let mut none = world.leasehold(WORKER, &[], &["run", "--job", "j-zzzzzz", "--", "true"]);
    assert_eq!(none.exit().await, Some(125), "{}", none.stderr());
    assert!(none.stderr().contains("no job that you may see"), "{}", none.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_needs_approval_names_the_approvers() {
    let world = world().await;
    let spec = job_toml("", "").replace(TICKETS, "dataset:acme/patients@v1");
    let mut wrapper = world.wrap(&spec, &[], "touch $HERE/started");
    assert_eq!(wrapper.exit().await, Some(125));
    let said = wrapper.stderr();
    assert!(said.contains("waits for approval") && said.contains("1 of data-protection"), "{said}");
    assert!(!world.file("started").exists());
    let jobs = world.client(OPERATOR).await.jobs().list_jobs(ListJobsRequest::default()).await.unwrap();
    assert_eq!(jobs.into_inner().jobs[0].state(), JobState::AwaitingApproval);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_passes_sigterm_on_and_the_attempt_drains() {
    let world = world().await;
    let script = format!("trap 'echo asked' TERM; {UNTIL_TOLD}; exit 9");
    let mut wrapper = world.wrap(&job_toml("", "[run]\ndrain = \"60s\"\n"), &[], &script);
    wrapper.child_says("up").await;
    let (client, job) = (world.client(WORKER).await, wrapper.job().await);
    wrapper.signal(Signal::SIGTERM);
    wrapper.child_says("asked").await;
    eventually("a drain", async || client.stands(&job).await.1.state() == AttemptState::Draining).await;
    wrapper.says("checkpoint writes until").await;
    assert_eq!(wrapper.files().len(), 6, "a drain begins with both halves, and a file that says so");
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(9));
    let (job, attempt) = client.stands(&job).await;
    assert_eq!((job.outcome(), job.live_leases), (Outcome::Interrupted, 0));
    assert!(attempt.detail.ends_with("exit code 9 after SIGTERM"), "{}", attempt.detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_by_a_reload_names_its_rule() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    world.write("policy/no-tickets.cedar", NO_TICKETS);
    world.daemon().reload();
    assert_eq!(wrapper.exit().await, Some(143));
    let said = wrapper.stderr();
    for part in ["(POLICY_DENIED)", "no-tickets", "the tickets are under review"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_wiped(&wrapper);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_run_removes_its_files_and_ends_the_child() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let job = wrapper.job().await;
    world.client(OPERATOR).await.revoke(&format!("job:{job}")).await.unwrap();
    assert_eq!(wrapper.exit().await, Some(143));
    let said = wrapper.stderr();
    assert!(said.contains("(REVOKED)") && said.contains("seen in the wild"), "{said}");
    assert!(said.contains("the command is ended by SIGTERM"), "{said}");
    assert_wiped(&wrapper);
    assert_eq!(world.client(WORKER).await.stands(&job).await.0.outcome(), Outcome::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_run_with_ignore_keeps_the_child_running() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &["--on-revoke", "ignore"], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let job = wrapper.job().await;
    world.client(OPERATOR).await.revoke(&format!("job:{job}")).await.unwrap();
    wrapper.says("goes on without access").await;
    assert_eq!(wrapper.files(), [""; 0]);
    assert!(wrapper.is_running());
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0));
    assert_eq!(wrapper.stdout(), "up\ndown\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_identity_names_who_and_why() {
    let mut world = world().await;
    let by = format!("by {OPERATOR}: seen in the wild");
    let mut wrapper = world.wrap(&job_toml("", "[members]\nattempts = 2\n"), &[], "echo up; exec sleep 600");
    wrapper.child_says("up").await;
    let job = wrapper.job().await;
    let operator = world.client(OPERATOR).await;
    operator.revoke(&format!("identity:{WORKER}")).await.unwrap();
    assert_eq!(wrapper.exit().await, Some(143));
    let said = wrapper.stderr();
    assert!(said.contains(&format!("its identity was revoked {by}")), "{said}");
    operator.lock(TICKETS).await.unwrap();
    drop(operator);
    // A restart does not forget it.
    for _ in 0..2 {
        let mut show = world.leasehold(OPERATOR, &[], &["job", "show", &job]);
        assert_eq!(show.exit().await, Some(0), "{}", show.stderr());
        let page = show.stdout();
        assert!(page.contains(&format!("{WORKER} lost access: its identity was revoked {by}")), "{page}");
        assert!(page.contains(&format!("{TICKETS} is locked by {OPERATOR} since ")), "{page}");
        world.restart().await;
    }
    let operator = world.client(OPERATOR).await;
    operator.revoke(&format!("job:{job}")).await.unwrap();
    assert_eq!(operator.job(&job).await.detail, by);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_a_locked_identity_ends_and_cannot_report() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &["--on-revoke", "kill"], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let job = wrapper.job().await;
    world.client(OPERATOR).await.lock(&format!("identity:{WORKER}")).await.unwrap();
    assert_eq!(wrapper.exit().await, Some(137));
    assert_wiped(&wrapper);
    let (job, _) = world.client(OPERATOR).await.stands(&job).await;
    // A locked identity cannot end an attempt: someone else must report how its work ended.
    assert_eq!((job.state(), job.live_leases), (JobState::Running, 0), "{}", wrapper.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_when_a_newer_attempt_begins() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", "[members]\nattempts = 2\n"), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let (client, job) = (world.client(WORKER).await, wrapper.job().await);
    client.begin(&job, "a requeue").await.unwrap();
    assert_eq!(wrapper.exit().await, Some(143));
    assert!(wrapper.stderr().contains("this attempt was superseded (ATTEMPT_STALE)"), "{}", wrapper.stderr());
    let (job, attempt) = client.stands(&job).await;
    assert_eq!((job.state(), attempt.number), (JobState::Running, 2), "the new attempt goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_is_noticed_within_a_second() {
    // The missing beats are not what the daemon notices: they may be late for longer than this test waits.
    let world = World::with(|setup| {
        setup.real_clock = true;
        setup.lease = "lost_after = 60".into();
    })
    .await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], "echo up; exec sleep 600");
    wrapper.child_says("up").await;
    let (client, job) = (world.client(WORKER).await, wrapper.job().await);
    let gateway = world.client(GATEWAY).await;
    let token = wrapper.file("reading-gateway").unwrap();
    assert!(gateway.introspect(&token, WORKER).await.active);
    wrapper.signal(Signal::SIGKILL);
    let killed = Stopwatch::start();
    eventually("it is away", async || {
        let (job, attempt) = client.stands(&job).await;
        job.live_leases == 0 && attempt.members[0].state() == MemberState::Away
    })
    .await;
    assert!(killed.counted() < Duration::from_secs(1), "{:?}", killed.counted());
    assert!(!gateway.introspect(&token, WORKER).await.active);
    // The streams end with the child: the kernel ended it.
    assert_eq!(wrapper.exit().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_renews_each_credential_in_place_before_it_expires() {
    let world = world().await;
    // Long enough for a renewal on a busy machine.
    let mut wrapper = world.wrap(&job_toml("credential_ttl = \"12s\"", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let gateway = world.client(GATEWAY).await;
    let (mut seen, mut leases) = (Vec::new(), Vec::new());
    while seen.len() < 3 {
        let token = wrapper.file("reading-gateway").expect("there is never no file");
        let answer = gateway.introspect(&token, WORKER).await;
        assert!(answer.active, "after {} renewals: {}", seen.len(), answer.reason);
        if !seen.contains(&token) {
            seen.push(token);
            leases.push(answer.lease.unwrap().id);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    leases.dedup();
    assert_eq!(leases.len(), 1, "one lease, renewed");
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn run_survives_a_restart_of_the_daemon() {
    let mut world = world_with_an_address().await;
    let mut wrapper = world.wrap(&job_toml("credential_ttl = \"8s\"", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let job = wrapper.job().await;
    let before = wrapper.file("reading-gateway").unwrap();
    let good_until =
        world.client(GATEWAY).await.introspect(&before, WORKER).await.lease.unwrap().expires.unwrap();
    world.stop().await;
    wrapper.says("the daemon is away").await;
    let is_there = wrapper.file("reading-gateway").is_some();
    let now = i64::try_from(world.clock.now().wall.seconds()).unwrap();
    assert!(is_there || now >= good_until.seconds, "what is good yet stays");
    wrapper.says("the credentials have expired and their files are removed").await;
    assert_eq!(wrapper.files(), ["credentials.json"]);
    assert!(wrapper.is_running());
    world.restart().await;
    wrapper.says("the daemon is back").await;
    eventually("new credentials", async || wrapper.files().len() == 5).await;
    let gateway = world.client(GATEWAY).await;
    assert!(gateway.introspect(&wrapper.file("reading-gateway").unwrap(), WORKER).await.active);
    assert!(!gateway.introspect(&before, WORKER).await.active, "nothing of the life before is good again");
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0));
    assert_eq!(wrapper.stdout(), "up\ndown\n", "the child never noticed");
    let (job, attempt) = world.client(WORKER).await.stands(&job).await;
    assert_eq!((job.outcome(), attempt.number), (Outcome::Completed, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_report_its_end_says_when_access_ends() {
    let mut world = world_with_an_address().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    world.stop().await;
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0));
    let said = wrapper.stderr();
    assert!(
        said.contains("could not be reported") && said.contains("access ends by itself within 15 s"),
        "{said}"
    );
    assert_wiped(&wrapper);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_uses_a_new_svid_without_being_away() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let gateway = world.client(GATEWAY).await;
    let before = wrapper.file("writing-gateway").unwrap();
    let lease = gateway.introspect(&before, WORKER).await.lease.unwrap().id;
    world.write_worker();
    eventually("a token of the new connection", async || {
        wrapper.file("writing-gateway").is_some_and(|now| now != before)
    })
    .await;
    let after = gateway.introspect(&wrapper.file("writing-gateway").unwrap(), WORKER).await;
    assert_eq!(after.lease.map(|l| l.id), Some(lease), "one who was away would hold another lease");
    assert!(!wrapper.stderr().contains("daemon"), "{}", wrapper.stderr());
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_says_that_its_svid_is_about_to_end() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    // A third of its life is left 10 s after it begins.
    let svid = world.authority(WORKER).issue(WORKER, world.clock.now().wall, |p| {
        p.not_after = time::OffsetDateTime::now_utc() + time::Duration::seconds(20);
    });
    world.write_worker_as(&svid);
    wrapper.says("the SVID of this run ends in").await;
    world.write_worker();
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
}

/// Runs until SIGTERM, or the named signal, and then runs `then`.
fn until_asked(signal: &str, then: &str) -> String {
    format!("trap '{then}' {signal}; echo up; while :; do sleep 0.02; done")
}

/// Returns the leases of the only job, each with its half.
async fn leases(world: &World, job: &str) -> Vec<(String, i32)> {
    let request = leasehold::proto::v1::ListLeasesRequest {
        behind: format!("job:{job}"),
        live_only: true,
        ..Default::default()
    };
    let answer = world.client(OPERATOR).await.operators().list_leases(request).await.unwrap().into_inner();
    let mut all: Vec<_> = answer.leases.into_iter().map(|l| (l.id, l.half)).collect();
    all.sort_by_key(|(_, half)| *half);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_with_0_after_sigterm_is_interrupted() {
    let world = world().await;
    let script = until_asked("TERM", "cat $LEASEHOLD_DRAIN_FILE; exit 0");
    let mut wrapper = world.wrap(&job_toml("", "[members]\nattempts = 2\n"), &[], &script);
    wrapper.child_says("up").await;
    wrapper.signal(Signal::SIGTERM);
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    assert!(wrapper.stdout().contains("writing_ends"), "the file is there first: {}", wrapper.stdout());
    let (job, attempt) = world.client(WORKER).await.stands(&wrapper.job().await).await;
    assert_eq!(
        (job.state(), attempt.outcome()),
        (JobState::Ready, Outcome::Interrupted),
        "{}",
        wrapper.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_by_an_operator_reaches_the_program_at_once() {
    for (settings, signal) in [("", "TERM"), ("[run]\ndrain_signal = \"USR1\"\n", "USR1")] {
        let world = world().await;
        let then = "cat $LEASEHOLD_DRAIN_FILE $LEASEHOLD_CREDENTIALS $LEASEHOLD_TOKEN_FILE_WRITING; exit 0";
        let spec = job_toml("", &format!("[members]\nattempts = 2\n{settings}"));
        let mut wrapper = world.wrap(&spec, &[], &until_asked(signal, then));
        wrapper.child_says("up").await;
        let job = wrapper.job().await;
        world.client(OPERATOR).await.drain(&job).await;
        assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
        let said = wrapper.stdout();
        assert_eq!(said.matches("\"writing_ends\":\"").count(), 2, "{said}");
        assert!(said.contains("maintenance") && said.contains("eyJ"), "it can still write: {said}");
        let (job, attempt) = world.client(WORKER).await.stands(&job).await;
        assert_eq!((job.state(), attempt.outcome()), (JobState::Ready, Outcome::Interrupted));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_dataset_leaves_one_lease_of_each_half() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let job = wrapper.job().await;
    let before = leases(&world, &job).await;
    let token = wrapper.file("reading-gateway");
    world.client(OPERATOR).await.revoke("dataset:acme/tickets").await.unwrap();
    eventually("another token", async || wrapper.file("reading-gateway") != token).await;
    wrapper.says("dataset:acme/tickets was revoked: seen in the wild; asking for new credentials").await;
    let after = leases(&world, &job).await;
    assert_eq!((before.len(), after.len()), (2, 2), "{after:?}");
    assert_eq!(before[1], after[1], "the writing half was not touched");
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_lease_is_replaced_at_once() {
    let world = world().await;
    let mut wrapper = world.wrap(&job_toml("", ""), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let job = wrapper.job().await;
    let (gateway, operator) = (world.client(GATEWAY).await, world.client(OPERATOR).await);
    for verb in ["revoke", "lock"] {
        let token = wrapper.file("reading-gateway").unwrap();
        let name = format!("lease:{}", leases(&world, &job).await[0].0);
        match verb {
            "revoke" => drop(operator.revoke(&name).await.unwrap()),
            _ => drop(operator.lock(&name).await.unwrap()),
        }
        assert!(!gateway.introspect(&token, WORKER).await.active);
        eventually("another token", async || wrapper.file("reading-gateway").is_some_and(|t| t != token))
            .await;
        let next = wrapper.file("reading-gateway").unwrap();
        assert!(gateway.introspect(&next, WORKER).await.active, "{verb}");
    }
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_credential_folder_is_created_again() {
    let world = world().await;
    let script = "t=$(cat $LEASEHOLD_TOKEN_FILE_READING); rm -rf $(dirname $LEASEHOLD_CREDENTIALS); \
                  until [ \"$(cat $LEASEHOLD_TOKEN_FILE_READING 2>/dev/null)\" = \"$t\" ]; do sleep 0.02; done; echo back";
    let mut wrapper = world.wrap(&job_toml("", ""), &[], script);
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    assert_eq!(wrapper.stdout(), "back\n");
    let said = wrapper.stderr();
    assert_eq!(said.matches("written again (their folder was removed)").count(), 1, "{said}");
    assert_wiped(&wrapper);
}

/// The small file system needs a separate mount namespace, which needs root.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_the_valid_token() {
    let can = std::process::Command::new("unshare").args(["--mount", "true"]).output();
    if !can.is_ok_and(|o| o.status.success()) {
        println!("not run: unshare --mount is not allowed (it wants root)");
        return;
    }
    let world = world().await;
    world.write("job.toml", &job_toml("credential_ttl = \"6s\"", ""));
    let script = "t=$(cat $LEASEHOLD_TOKEN_FILE_READING); dd if=/dev/zero of=$HERE/credentials/fill 2>/dev/null; sleep 4; \
                  [ \"$(cat $LEASEHOLD_TOKEN_FILE_READING)\" = \"$t\" ] && echo kept; rm $HERE/credentials/fill; \
                  while [ \"$(cat $LEASEHOLD_TOKEN_FILE_READING)\" = \"$t\" ]; do sleep 0.02; done; echo new";
    let (spec, dir) = (world.file("job.toml"), world.file("credentials"));
    let args =
        ["run", "--spec", spec.to_str().unwrap(), "--dir", dir.to_str().unwrap(), "--", "sh", "-c", script];
    let mount = "mount -t tmpfs -o size=256k none $HERE/credentials && exec \"$0\" \"$@\"";
    let mut wrapper = world.leasehold(WORKER, &["unshare", "--mount", "sh", "-c", mount], &args);
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    assert_eq!(wrapper.stdout(), "kept\nnew\n", "{}", wrapper.stderr());
    let said = wrapper.stderr();
    assert_eq!(said.matches("cannot be written (No space left on device").count(), 1, "{said}");
    assert_eq!(said.matches("are written again (No space left on device").count(), 1, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_inherits_no_credential_of_a_data_store() {
    let world = world().await;
    world.write("job.toml", &job_toml("", "[run]\nkeep_env = [\"HF_TOKEN\"]\nscrub = [\"WANDB_API_KEY\"]\n"));
    let (spec, dir) = (world.file("job.toml"), world.file("credentials"));
    let (spec, dir) = (spec.to_str().unwrap(), dir.to_str().unwrap());
    let set = [
        "env",
        "aws_secret_access_key=in-lower-case",
        "S3_SECRET_ACCESS_KEY=of-a-store",
        "WAREHOUSE_PASSWORD=hunter2",
        "PGPASSFILE=/home/ada/.pgpass",
        "FEATURES=postgres://ml:hunter2@db.acme.example/features",
        "ML_CREDENTIALS=/home/ada/ml.json",
        "HF_TOKEN=kept-by-the-job-file",
        "WANDB_API_KEY=removed-by-the-job-file",
        "GITHUB_TOKEN=for-the-code",
        "KUBECONFIG=/home/ada/.kube/config",
        "OPENAI_API_KEY=removed-by-the-command-line",
        "VAULT_TOKEN=kept-by-the-command-line",
        "PAD_TOKEN=<pad>",
    ];
    let run =
        ["run", "--spec", spec, "--dir", dir, "--keep-env", "VAULT_TOKEN", "--scrub", "OPENAI_API_KEY", "--"];
    let mut wrapper = world.leasehold(WORKER, &set, &[&run[..], &["env"]].concat());
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    let (said, out) = (wrapper.stderr(), wrapper.stdout());
    let has = |name: &str| out.lines().any(|line| line.split('=').next() == Some(name));
    for kept in ["HF_TOKEN", "VAULT_TOKEN", "GITHUB_TOKEN", "KUBECONFIG", "PAD_TOKEN", "PATH"] {
        assert!(has(kept), "{kept} is gone: {said}");
    }
    let removed = [
        "FEATURES",
        "ML_CREDENTIALS",
        "OPENAI_API_KEY",
        "PGPASSFILE",
        "S3_SECRET_ACCESS_KEY",
        "WANDB_API_KEY",
        "WAREHOUSE_PASSWORD",
        "aws_secret_access_key",
    ];
    for name in removed {
        assert!(!has(name), "{name} is inherited: {said}");
        assert!(said.contains(name), "{name} is not named: {said}");
    }
    let kept = said.lines().find(|line| line.contains("the command keeps standing credentials")).unwrap();
    assert!(kept.contains("GITHUB_TOKEN, KUBECONFIG"), "{kept}");
    assert!(["HF_TOKEN", "VAULT_TOKEN", "PAD_TOKEN"].iter().all(|name| !kept.contains(name)), "{kept}");
    assert!(!said.contains("hunter2"), "{said}");

    let both = ["run", "--spec", spec, "--keep-env", "A", "--scrub", "A", "--", "true"];
    let mut wrapper = world.leasehold(WORKER, &[], &both);
    assert_eq!(wrapper.exit().await, Some(125));
    assert!(wrapper.stderr().contains("--keep-env and --scrub both name A"), "{}", wrapper.stderr());
}
