//! Many wrappers in one attempt.

use std::time::{Duration, Instant};

use leasehold::proto::v1::{AttemptState, JobState, MemberState, Members, Outcome};
use nix::sys::signal::Signal;

use crate::{harness::*, scene::*};

fn wrapper_of(world: &World, job: &str, key: &str, instance: &str, more: &[&str], script: &str) -> Wrapper {
    let dir = world.file("credentials");
    let args =
        ["run", "--job", job, "--attempt-key", key, "--instance", instance, "--dir", dir.to_str().unwrap()];
    world.leasehold(WORKER, &[], &[&args, more, &["--", "sh", "-c", script]].concat())
}

// Proves law 31b.
#[tokio::test(flavor = "multi_thread")]
async fn eight_wrappers_with_one_key_are_one_attempt() {
    let world = world().await;
    let job = crew(&world, 8).await;
    let script =
        |i: u32| format!("echo up; while [ ! -e $HERE/go-{i} ] && [ ! -e $HERE/go ]; do sleep 0.05; done");
    let mut all: Vec<Wrapper> =
        (0..8).map(|i| wrapper_of(&world, &job, "k-1", &format!("node-{i}"), &[], &script(i))).collect();
    for wrapper in &all {
        wrapper.child_says("up").await;
    }
    let client = world.client(LAUNCHER).await;
    let (_, attempt) = client.stands(&job).await;
    assert_eq!((attempt.number, attempt.members.len()), (1, 8));

    let mut ninth = wrapper_of(&world, &job, "k-1", "node-8", &[], "touch $HERE/started");
    assert_eq!(ninth.exit().await, Some(125));
    let said = ninth.stderr();
    assert!(said.contains("allows fewer members than have come; the others go on"), "{said}");
    assert!(!world.file("started").exists());

    let since = Instant::now();
    world.write("go-0", "");
    assert_eq!(all[0].exit().await, Some(0));
    let (stands, attempt) = client.stands(&job).await;
    assert_eq!((stands.state(), attempt.state()), (JobState::Running, AttemptState::Running));
    assert!(all[1..].iter_mut().all(Wrapper::is_running), "the others go on");
    row("run x 8: the first of one attempt ends", "its access alone", since, &cause(&world).await, Some(0));

    // One node is taken away: only it drains.
    let since = Instant::now();
    all[1].signal(Signal::SIGTERM);
    assert_eq!(all[1].exit().await, Some(143), "{}", all[1].stderr());
    let (_, attempt) = client.stands(&job).await;
    assert_eq!(attempt.state(), AttemptState::Running);
    assert_eq!(attempt.members.iter().filter(|m| m.state() == MemberState::Joined).count(), 6);
    assert!(all[2..].iter_mut().all(Wrapper::is_running));
    assert!(world.records().await.of("attempt.draining").is_empty(), "no other member was asked to finish");
    row("run x 8: SIGTERM to one wrapper", "its access alone", since, &cause(&world).await, Some(143));

    let since = Instant::now();
    world.write("go", "");
    for wrapper in &mut all[2..] {
        assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    }
    let (stands, _) = client.stands(&job).await;
    assert_eq!(stands.live_leases, 0);
    row("run x 8: the others end", "all access", since, &cause(&world).await, Some(0));
}

// Proves law 29.
#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_waits_for_a_drain_or_supersedes() {
    let world = world().await;
    let job = crew(&world, 1).await;
    let deaf = format!("trap '' TERM; {UNTIL_TOLD}");
    let mut first = wrapper_of(&world, &job, "k-1", "a", &[], &deaf);
    first.child_says("up").await;
    first.signal(Signal::SIGTERM);
    first.says("reading goes on").await;
    let mut early = wrapper_of(&world, &job, "k-2", "a", &[], "true");
    assert_eq!(early.exit().await, Some(125));
    assert!(early.stderr().contains("--supersede"), "{}", early.stderr());
    assert!(first.is_running(), "a begin that was refused leaves it alone");
    let writing = first.files().into_iter().find(|name| name.starts_with("writing-")).unwrap();
    let writing = first.file(&writing).unwrap();
    let gateway = world.client(GATEWAY).await;
    assert!(gateway.introspect(&writing, WORKER).await.active, "what drains can still write its checkpoints");

    let since = Instant::now();
    let mut second = wrapper_of(&world, &job, "k-2", "a", &["--supersede"], UNTIL_TOLD);
    second.child_says("up").await;
    first.says("this attempt was superseded (ATTEMPT_STALE)").await;
    let records = world.records().await;
    let began = records.of("attempt.began").last().unwrap()["attempt"].clone();
    row(
        "run: a requeue with --supersede",
        "access of attempt 1",
        since,
        &format!("attempt.began ({began})"),
        None,
    );
    world.write("go", "");
    assert_eq!(second.exit().await, Some(0), "{}", second.stderr());
    let mut third = wrapper_of(&world, &job, "k-1", "a", &[], "true");
    assert_eq!(third.exit().await, Some(125), "its key is used");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_identity_joins_by_a_ticket_from_a_file() {
    let world = world().await;
    let members = Members { join: vec![SHARED.into()], expect: 2, max: 2, ..members() };
    let job = crew_with(&world, members).await;
    let began = world.client(LAUNCHER).await.begin(&job, "slurm-7-0").await.unwrap().into_inner();
    let run = |more: &[&str]| {
        let args =
            [&["run", "--job", &job, "--instance", "n1"], more, &["--", "sh", "-c", "echo up"]].concat();
        world.leasehold(SHARED, &[], &args)
    };
    let file = |name: &str, text: &str| {
        world.write(name, text);
        world.file(name).to_str().unwrap().to_owned()
    };
    let wrong = file("wrong", &"A".repeat(43));
    let mut refused = run(&["--ticket-file", &wrong]);
    assert_eq!(refused.exit().await, Some(125));
    assert!(refused.stderr().contains("several jobs share your identity"), "{}", refused.stderr());
    let garbage = file("garbage", "ticket: soon");
    let mut refused = run(&["--ticket-file", &garbage]);
    assert_eq!(refused.exit().await, Some(125));
    let said = refused.stderr();
    assert!(said.contains("this file has no ticket") && !said.contains("soon"), "{said}");
    let good = file("good", &format!("{}\n", began.ticket));
    let mut joined = run(&["--ticket-file", &good]);
    assert_eq!(joined.exit().await, Some(0), "{}", joined.stderr());
    assert!(!joined.stderr().contains(&began.ticket));
    let attempt = world.client(LAUNCHER).await.stands(&job).await.1;
    assert_eq!((attempt.number, attempt.members[0].outcome()), (1, Outcome::Completed));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_daemon_that_is_down_back_off_until_rejoin() {
    let mut world = world_with_an_address().await;
    let address = world.daemon().grpc;
    let mut wrapper = world.wrap(&job_toml("", "[run]\nrejoin = \"8s\"\n"), &[], UNTIL_TOLD);
    wrapper.child_says("up").await;
    let since = Instant::now();
    world.stop().await;
    // A listener accepts each connection and closes it.
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = calls.clone();
    let hang_up = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            drop(socket);
        }
    });
    wrapper.says("no longer trying to reconnect").await;
    assert!(since.elapsed() >= Duration::from_secs(8), "{:?}", since.elapsed());
    let said = wrapper.stderr();
    assert!(said.contains("your program goes on; trying to reconnect"), "{said}");
    // Connections are accepted in order: when this one is, all of the wrapper's were.
    let mut mine = tokio::net::TcpStream::connect(address).await.unwrap();
    let end = tokio::io::AsyncReadExt::read(&mut mine, &mut [0]).await;
    assert!(matches!(end, Ok(0) | Err(_)), "it hangs up");
    let asked = calls.load(std::sync::atomic::Ordering::Relaxed);
    // Without this one.
    assert!((3..=13).contains(&(asked - 1)), "{} calls", asked - 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), asked, "it has given up");
    assert!(wrapper.is_running(), "the command goes on without access");
    row(
        "run: the daemon away for longer than `rejoin`",
        &format!("trying, after {} calls", asked - 1),
        since,
        "",
        None,
    );
    hang_up.abort();
    world.write("go", "");
    assert_eq!(wrapper.exit().await, Some(0));
}
