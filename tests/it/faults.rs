//! Faults of the daemon: a panic in a request, or in a background task.

use std::sync::Arc;

use leasehold::{internals::daemon::Stopped, proto::v1::Half};
use tonic::{Code, Status};

use crate::harness::*;

/// Makes a new request each time it is called.
async fn ask(
    what: &str,
    worker: &Worker,
    operator: &Client,
    launcher: &Client,
    turn: usize,
) -> Result<(), Status> {
    match what {
        "issue" => worker.try_issue(Half::Reading).await.map(drop),
        "revoke" => operator.revoke(TICKETS).await.map(drop),
        "lock" => operator.lock(&format!("human:u{turn}")).await.map(drop),
        _ => launcher.create(spec(), &format!("turn {turn}")).await.map(drop),
    }
}

// Proves law 38.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_request_poisons_nothing() {
    let world = World::start().await;
    let (mut operator, mut launcher) = (world.client(OPERATOR).await, world.client(LAUNCHER).await);
    let gateway = world.client(GATEWAY).await;
    let mut worker = world.working().await;
    for what in ["issue", "revoke", "lock", "create"] {
        // Another task may take the reading at which a fault was meant for the request: then all of it is tried again.
        let (mut reported, mut turn, mut rounds) = (0, 0, 0);
        loop {
            assert!(turn < 200 && rounds < 20, "{what}: no fault came within the use case");
            world.time().at_reading(turn, || panic!("a fault that a test makes"));
            let answer = soon(what, ask(what, &worker, &operator, &launcher, rounds * 1_000 + turn)).await;
            if world.time().call_off() {
                // The request ended before that reading of the clock.
                if let Err(status) = answer {
                    assert_ne!(status.code(), Code::Internal, "{what}: {status:?}");
                }
                if reported > 0 {
                    break;
                }
                (turn, rounds) = (0, rounds + 1);
                continue;
            }
            turn += 1;
            match answer.err().and_then(|status| Refused::read(&status)) {
                Some(no) if no.reason == "INTERNAL" => reported += 1,
                // The panic was outside of the use case. It may have ended a stream or a connection, whose clients come
                // back.
                _ => {
                    (operator, launcher) = (world.client(OPERATOR).await, world.client(LAUNCHER).await);
                    worker.client = world.client(WORKER).await;
                    worker.rejoin().await.unwrap();
                    worker.keep_alive().await;
                }
            }
            // All other clients go on, with the same mutexes and tables, and the counts match the live leases.
            let token = worker.issue(Half::Reading).await;
            token.is_live(&gateway).await;
            worker.release(&token.lease.id).await.unwrap();
            operator.revoke("tenant:acme").await.unwrap();
            let broker = &world.daemon().broker;
            eventually("the clean-up", async || broker.live_leases() == 0).await;
        }
    }
    assert!(logged().contains("a use case did not finish"));
    world.records().await;
}

/// Panics at the next reading of the clock by a task. The check of the identity files reads it too, on a thread of another
/// name: it survives a panic and tries again, so the daemon goes on.
fn panic_in_a_task(time: &Arc<TestClock>) {
    let again = time.clone();
    time.at_reading(0, move || match std::thread::current().name() {
        Some("blocking") => panic_in_a_task(&again),
        _ => panic!("a fault that a test makes"),
    });
}

// Proves law 38.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_a_part_stops_the_daemon_in_order() {
    let mut world = World::start().await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let job = worker.job.clone();
    drop(worker);
    let launcher = world.client(LAUNCHER).await;
    eventually("the loss", async || {
        launcher.job(&job).await.attempts[0].state() == leasehold::proto::v1::AttemptState::Suspended
    })
    .await;
    drop(launcher);
    // The task that wakes first reads the clock: the reaper, the expiry, the pruning or the check of the disk.
    panic_in_a_task(&world.shared_time());
    world.time().advance(std::time::Duration::from_secs(10));
    assert_eq!(world.ends_by_itself().await, Stopped::Failed);
    assert!(!world.time().call_off() && logged().contains("a task of the daemon failed: the daemon stops"));
    // The ledger was closed in order, and the next run of the daemon has the job and not the lease.
    assert_eq!(world.records().await.kinds().last(), Some(&"epoch.ended"));
    world.restart().await;
    let (launcher, gateway) = (world.client(LAUNCHER).await, world.client(GATEWAY).await);
    assert_eq!(launcher.job(&job).await.attempts.len(), 1);
    token.is_dead(&gateway, "TOKEN_EPOCH").await;
}
