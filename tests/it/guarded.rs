//! Attacks on the two orders, on locks and on the ledger that must gain nothing.

use std::{sync::mpsc, time::Duration};

use leasehold::proto::v1::{self, Half};
use tonic::Code;

use crate::harness::*;

async fn lock_for(operator: &Client, name: &str, ttl: Option<i64>) -> v1::Lock {
    let request = v1::LockRequest {
        name: name.into(),
        reason: if ttl.is_some() { "the second".into() } else { "the first".into() },
        ttl: ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    operator.operators().lock(request).await.unwrap().into_inner().lock.unwrap()
}

// Proves law 31.
#[tokio::test]
async fn a_second_lock_never_shortens_the_first() {
    let world = World::start().await;
    let operator = world.client(OPERATOR).await;
    lock_for(&operator, "dataset:acme/tickets", None).await;
    let again = lock_for(&operator, "dataset:acme/tickets", Some(1)).await;
    assert_eq!(again.until, None);
    world.time().advance(std::time::Duration::from_secs(3_600));
    let locks =
        operator.operators().list_locks(v1::ListLocksRequest::default()).await.unwrap().into_inner().locks;
    assert_eq!(locks.len(), 1);
}

// Proves law 31.
#[tokio::test]
async fn a_locked_identity_cannot_unlock_itself() {
    let world = World::start().await;
    let (operator, platform) = (world.client(OPERATOR).await, world.client(PLATFORM).await);
    let name = format!("identity:{OPERATOR}");
    platform.lock(&name).await.unwrap();
    refused(operator.unlock(&name).await).is(Code::PermissionDenied, "LOCKED");
    let reload = operator.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run: false }).await;
    refused(reload).is(Code::PermissionDenied, "LOCKED");
    assert!(operator.operators().who_am_i(v1::WhoAmIRequest {}).await.is_ok(), "it may still ask who it is");
    platform.unlock(&name).await.unwrap();
    assert!(operator.operators().list_locks(v1::ListLocksRequest::default()).await.is_ok());
}

// Proves law 11.
#[tokio::test]
async fn a_lease_stands_behind_the_model_that_its_job_tunes() {
    let world = World::start().await;
    let (operator, gateway) = (world.client(OPERATOR).await, world.client(GATEWAY).await);
    let spec = v1::JobSpec { read: vec![TICKETS.into()], ..spec() };
    let worker = world.working_on(spec, WORKER).await;
    let token = worker.issue(Half::Writing).await;
    token.is_live(&gateway).await;
    operator.lock("model:acme/base-7b").await.unwrap();
    assert!(!token.seen_by(&gateway).await.active);
    refused(worker.try_issue(Half::Writing).await).is(Code::PermissionDenied, "LOCKED");
}

#[tokio::test]
async fn a_second_revocation_has_a_receipt_to_wait_for() {
    let world = World::start().await;
    let operator = world.client(OPERATOR).await;
    let worker = world.working().await;
    let name = format!("job:{}", worker.job);
    let first = operator.revoke(&name).await.unwrap().into_inner().ending.unwrap();
    let again = operator.revoke(&name).await.unwrap().into_inner().ending.unwrap();
    for ending in [first, again] {
        let wait = v1::WaitDurableRequest { receipt: ending.receipt };
        operator.operators().wait_durable(wait).await.unwrap();
    }
}

/// A member joins in the middle of the revocation of its identity, at each reading of the clock.
// Proves law 23.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_membership_outlives_a_later_revocation() {
    let world = World::start().await;
    let (launcher, operator) = (world.client(LAUNCHER).await, world.client(OPERATOR).await);
    // Other jobs, so that the revocation takes longer.
    for n in 0..6 {
        launcher
            .create(v1::JobSpec { name: format!("beside-{n}"), ..spec() }, &format!("beside {n}"))
            .await
            .unwrap();
    }
    let (mut readings, mut joined) = (None, 0);
    for turn in 0.. {
        // An identity of one job may not join another.
        let id = format!("spiffe://k8s.acme.example/ns/ml/job/turn-{turn}");
        let members = v1::Members { join: vec![id.clone()], max: 4, ..Default::default() };
        let spec = v1::JobSpec { name: format!("job-{turn}"), members: Some(members), ..spec() };
        let worker = world.working_on(spec, &id).await;
        let (report, received) = mpsc::channel();
        if let Some(all) = readings {
            if turn > all {
                break;
            }
            let runtime = tokio::runtime::Handle::current();
            let (client, job, ticket) = (worker.client.clone(), worker.job.clone(), worker.ticket.clone());
            world.time().at_reading(turn - 1, move || {
                let (done, wait) = mpsc::channel::<()>();
                // On a separate thread: a task that is spawned here would wait for the reader of the clock, who waits below.
                std::thread::spawn(move || {
                    let joined = runtime.block_on(Worker::join(client, &job, 1, "in-the-middle", &ticket));
                    drop(done);
                    let _ = report.send(joined.is_ok());
                });
                // If the reader of the clock holds a lock that the join needs, the reader goes on first.
                let _ = wait.recv_timeout(Duration::from_secs(1));
            });
        }
        let before = world.time().readings();
        let name = format!("identity:{id}");
        operator.revoke(&name).await.unwrap();
        readings.get_or_insert(world.time().readings() - before);
        if !world.time().call_off() && turn > 0 {
            joined += usize::from(received.recv_timeout(PATIENCE).unwrap());
        }
        let records = world.records().await;
        let place = |kind: &str, key: &str, value: &str| {
            let of_it = records.of(kind).into_iter().filter(|r| r[key] == value);
            of_it.filter_map(|r| r["index"].as_u64()).next_back()
        };
        let revoked = place("revoked", "name", &name).unwrap();
        let attempt = launcher.job(&worker.job).await.attempts.remove(0);
        for member in attempt.members.iter().filter(|m| m.state() == v1::MemberState::Joined) {
            let began = place("member.joined", "member", &id).unwrap();
            assert!(
                began > revoked,
                "turn {turn}: {} outlived the revocation: {began}, {revoked}",
                member.instance
            );
        }
        launcher.end(&worker.job, 1, v1::Outcome::Cancelled).await.ok();
        launcher.end(&worker.job, 1, v1::Outcome::Completed).await.ok();
    }
    assert!(readings.is_some_and(|all| all > 6), "the clock was hardly read: {readings:?}");
    assert!(joined > 0, "no one joined in the middle");
}
