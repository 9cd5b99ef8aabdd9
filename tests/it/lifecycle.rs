//! Start and stop of the daemon, and how connections end.

use std::{collections::BTreeSet, time::Duration};

use leasehold::{
    internals::daemon::{StartError, Stopped},
    proto::v1::{self, Half},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_named_and_no_file_is_touched() {
    let world = World::start().await;
    for key in ["server]\ngrpc", "probe", "issuer]\nurl = \"https://leasehold.example\"\nlisten"] {
        let mut second = World::prepared(|_| {});
        let taken = world.daemon().grpc;
        let text = second.read("leasehold.toml");
        second.write(
            "leasehold.toml",
            &text.replacen(&format!("{key} = \"127.0.0.1:0\""), &format!("{key} = \"{taken}\""), 1),
        );
        match second.try_start().await {
            Err(StartError::Listen { address, .. }) => assert_eq!(address, taken),
            other => panic!("{key}: {:?}", other.err()),
        }
        assert!(!second.file("state").exists(), "a daemon that cannot listen must not touch the ledger");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_cannot_open_the_ledger() {
    let world = World::start().await;
    let mut second = World::prepared(|_| {});
    let text = second.read("leasehold.toml");
    let state = world.file("state").display().to_string();
    second.write("leasehold.toml", &text.replace("state = \"state\"", &format!("state = \"{state}\"")));
    let before = world.snapshot().await;
    match second.try_start().await {
        Err(StartError::Ledger(why)) => assert!(!why.to_string().is_empty()),
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(world.snapshot().await, before);
    world.working().await.issue(Half::Reading).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_faults_of_a_catalog_are_reported_at_start() {
    let mut world = World::prepared(|s| {
        s.catalog.insert(
            "platform.toml",
            "[tenant.platform]\n[[principal]]\nmatch = \"x\"\nkind = \"wrokload\"\n[[datasett]]\n".into(),
        );
    });
    let why = world.try_start().await.expect_err("it does not start").to_string();
    for (line, what) in
        [("platform.toml:3", "match"), ("platform.toml:4", "wrokload"), ("platform.toml:5", "datasett")]
    {
        assert!(why.contains(line) && why.contains(what), "{line} {what}: {why}");
    }
    assert!(!world.file("state").exists());
}

// Proves law 40.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_every_stream_with_a_retryable_reason() {
    let mut world = World::start().await;
    let mut worker = world.working().await;
    let launcher = world.client(LAUNCHER).await;
    let job = worker.job.clone();
    let mut watch = launcher.jobs().watch_job(v1::WatchJobRequest { job }).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let platform = world.client(PLATFORM).await;
    let ask = v1::TailLedgerRequest { from_index: 0, no_follow: false, after: String::new() };
    let mut tail = platform.operators().tail_ledger(ask).await.unwrap().into_inner();
    let (tx, rx) = mpsc::channel(1);
    tx.send(v1::WatchFencesRequest { audience: GATEWAY.into(), tick: 1 }).await.unwrap();
    let gateway = world.client(GATEWAY).await;
    let mut feed = gateway.verifiers().watch_fences(ReceiverStream::new(rx)).await.unwrap().into_inner();
    feed.message().await.unwrap().unwrap();

    let mut stream = worker.stream.take().unwrap();
    let endings = async {
        stream.refused().await.is(Code::Unavailable, "SHUTTING_DOWN");
        async fn last<T>(stream: &mut tonic::Streaming<T>) -> Refused {
            loop {
                match stream.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("it ended without a status"),
                    Err(status) => return Refused::of(&status),
                }
            }
        }
        last(&mut watch).await.is(Code::Unavailable, "SHUTTING_DOWN");
        last(&mut tail).await.is(Code::Unavailable, "SHUTTING_DOWN");
        last(&mut feed).await.is(Code::Unavailable, "SHUTTING_DOWN");
    };
    let (stopped, ()) = tokio::join!(world.stop(), soon("the endings", endings));
    assert_eq!(stopped, Some(Stopped::InOrder));
    let records = world.records().await;
    assert_eq!(records.kinds().last(), Some(&"epoch.ended"));
    assert!(records.report.head_file);
    // The daemon no longer answers, and the next run goes on with the ledger.
    assert!(launcher.jobs().list_jobs(v1::ListJobsRequest::default()).await.is_err());
    world.restart().await;
    assert_eq!(world.client(LAUNCHER).await.job(&worker.job).await.state(), v1::JobState::Running);
}

/// A stop comes at each reading of the clock in a request. Requests in work are finished and answered, and no other begins.
// Proves law 40.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_finishes_the_requests_in_work() {
    let mut world = World::start().await;
    let mut worker = world.working().await;
    let mut answered = BTreeSet::from([worker.issue(Half::Reading).await.lease.id]);
    // Stops the daemon at each reading of the clock in turn, until one request ends before that reading.
    for at in 0.. {
        world.restart().await;
        // Without a stream: when a stream ends, its member is away, and its requests are refused for that.
        worker.stream = None;
        worker.client = world.client(WORKER).await;
        worker.rejoin().await.unwrap();
        let stopper = world.daemon().stopper();
        world.time().at_reading(at, move || stopper.cancel());
        if let Ok(answer) = worker.try_issue(Half::Reading).await {
            answered.insert(answer.into_inner().lease.unwrap().id);
        }
        if world.time().call_off() {
            assert!(at > 5, "an issue reads the clock {at} times");
            break;
        }
        assert!(worker.try_issue(Half::Reading).await.is_err(), "reading {at}: it issues while it stops");
        assert_eq!(world.stop().await, Some(Stopped::InOrder), "reading {at}");
        let records = world.records().await;
        let leases = |kind: &str| -> BTreeSet<String> {
            records.of(kind).iter().map(|r| r["lease"].as_str().unwrap().to_owned()).collect()
        };
        let given = &leases("credential.issued") - &leases("credential.cancelled");
        assert_eq!(given, answered, "reading {at}: the leases on disk are not the leases that were answered");
    }
    assert!(answered.len() > 2, "no request was finished");
}

// Proves law 41.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_at_once_and_twice_is_safe() {
    let mut world = World::prepared(|_| {});
    for epoch in 1..=3u64 {
        world.try_start().await.unwrap();
        let stopper = world.daemon().stopper();
        stopper.cancel();
        stopper.cancel();
        assert_eq!(world.stop().await, Some(Stopped::InOrder));
        assert_eq!(world.stop().await, None);
        assert_eq!(world.records().await.report.epoch, epoch);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_with_the_svid_that_opened_it() {
    let world = World::start().await;
    let now = world.clock.now().wall;
    let short =
        world.authority(WORKER).issue(WORKER, now, |p| p.not_after = at(now.plus(Duration::from_secs(30))));
    let channel = world.connector(&short).connected_channel().await.unwrap();
    let client = Client::new(WORKER, short, channel);
    let launcher = world.client(LAUNCHER).await;
    let job = launcher.create(spec(), "k").await.unwrap().into_inner().job.unwrap().id;
    launcher.begin(&job, "run-1").await.unwrap();
    let mut worker = Worker::join(client, &job, 1, "rank-0", "").await.unwrap();
    worker.keep_alive().await;
    let token = worker.issue(Half::Reading).await;
    // A token never outlives the SVID that asked for it, and the answer says so.
    let life = token.answer.token_expires.unwrap().seconds - i64::try_from(now.seconds()).unwrap();
    assert_eq!(life, 30);
    assert!(token.answer.shortened_by.iter().any(|w| w.contains("SVID")), "{:?}", token.answer.shortened_by);

    // The next stream opens under a rotated SVID before the first connection ends: the lease lives on, and is renewed.
    let mut first = worker.stream.take().unwrap();
    worker.client = world.client(WORKER).await;
    worker.keep_alive().await;
    world.time().advance(Duration::from_secs(30));
    first.refused().await.is(Code::Unauthenticated, "SVID_EXPIRED");
    let renewed = worker.renew(&token.lease.id).await.unwrap().into_inner();
    let gateway = world.client(GATEWAY).await;
    assert!(gateway.introspect(&renewed.token, WORKER).await.active);
    assert!(world.records().await.of("member.away").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_goes_on_with_its_own_rotated_svid() {
    let world = World::start().await;
    world.time().advance(Duration::from_secs(20 * 3_600));
    world.rotate();
    world.time().advance(Duration::from_secs(5 * 3_600));
    world.client(LAUNCHER).await.create(spec(), "k").await.unwrap();
}

/// With the clocks of this machine, as in production.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_works_with_the_clocks_of_this_machine() {
    let world = World::with(|s| s.real_clock = true).await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let gateway = world.client(GATEWAY).await;
    token.is_live(&gateway).await;
    world.client(LAUNCHER).await.end(&worker.job, 1, v1::Outcome::Completed).await.unwrap();
    token.is_dead(&gateway, "LEASE_ENDED").await;
}
