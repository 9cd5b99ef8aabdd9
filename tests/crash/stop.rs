//! Signals at every moment of a daemon's run.

use std::{fs, time::Duration};

use leasehold::{
    internals::ledger::{self, Dir},
    limits,
    proto::v1,
};
use nix::sys::{
    resource::{Resource, getrlimit},
    signal::Signal,
};

use super::{
    dice::Dice,
    process::{Place, Process},
};
use crate::harness::*;

pub async fn working(place: &Place) -> Worker {
    let launcher = place.client(LAUNCHER);
    let job = launcher.create(spec(), "a job").await.unwrap().into_inner().job.unwrap().id;
    let began = launcher.begin(&job, "run-1").await.unwrap().into_inner();
    let mut worker = Worker::join(place.client(WORKER), &job, 1, "rank-0", &began.ticket).await.unwrap();
    worker.keep_alive().await;
    worker
}

fn kinds(place: &Place) -> Vec<String> {
    let records = Records::read(&place.world.file("state"));
    records.kinds().into_iter().map(str::to_owned).collect()
}

// Proves law 40.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains_within_its_deadline_and_tells_streams_why() {
    let place = Place::new();
    let mut process = place.serve().await;
    let mut worker = working(&place).await;
    let token = worker.issue(v1::Half::Reading).await;
    let verifier = place.verifier();
    soon("a verifier", verifier.ready()).await;
    let began = place.clock().now().boot;
    process.signal(Signal::SIGTERM);
    let why = worker.stream.as_mut().unwrap().refused().await;
    assert_eq!(why.reason, "SHUTTING_DOWN", "{}", why.text);
    assert_eq!(process.ended().await.code(), Some(0), "{}", process.log());
    let took = place.clock().now().boot.since(began);
    let deadline = limits::SHUTDOWN + limits::CONNECTION_GRACE + limits::LEDGER_WAIT;
    assert!(took < deadline, "{took:?}");
    let kinds = kinds(&place);
    assert_eq!(kinds.last().map(String::as_str), Some("epoch.ended"));
    assert!(kinds.contains(&"credential.issued".to_owned()));
    drop(token);
}

// Proves law 41.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_twice_is_stopping_once() {
    let place = Place::new();
    let mut process = place.serve().await;
    let worker = working(&place).await;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM] {
        process.signal(signal);
    }
    assert_eq!(process.ended().await.code(), Some(0), "{}", process.log());
    let ends = kinds(&place).iter().filter(|k| *k == "epoch.ended").count();
    assert_eq!(ends, 1);
    drop(worker);
}

// Proves law 41.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_while_starting_leaves_a_ledger_that_starts() {
    let place = Place::new();
    let mut dice = Dice::new(41);
    for round in 0..8 {
        let mut process = place.start();
        let moment = Duration::from_millis(dice.roll(250));
        tokio::time::sleep(moment).await;
        process.signal(Signal::SIGTERM);
        let status = process.ended().await;
        // Before the daemon handles signals, the signal kills it; afterwards the daemon stops gracefully.
        let how = (status.code(), std::os::unix::process::ExitStatusExt::signal(&status));
        assert!(
            matches!(how, (Some(0), None) | (None, Some(15))),
            "round {round}, after {moment:?}: {status:?}\n{}",
            process.log()
        );
        if place.world.file("state").exists() {
            ledger::verify(&Dir::at(place.world.file("state")), None).unwrap();
        }
    }
    let process = place.serve().await;
    working(&place).await;
    process.stop().await;
}

/// A daemon that starts with a low limit on open files, as in a shell, raises the limit to what its settings need. If it may
/// not, it says so.
// Proves law 43.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_limit_of_open_files_is_raised_or_reported() {
    let place = Place::new();
    let soft = |process: &Process| -> u64 {
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
        let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
        line.split_whitespace().nth(3).unwrap().parse().unwrap()
    };
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let mut process = place.start_by(&["sh", "-c", "ulimit -Sn 300; exec \"$@\"", "sh"]);
    process.ready().await;
    assert_eq!(
        soft(&process),
        most.min(limits::CONNECTIONS_MAX as u64 + 3 * 256 + 512 + 4_096 + 2 * 1_024 + 256)
    );
    process.stop().await;

    let mut process = place.start_by(&["sh", "-c", "ulimit -n 300; exec \"$@\"", "sh"]);
    let warning = process.says("raise the hard limit").await;
    assert!(warning.contains("limit=300"), "{warning}");
    process.ready().await;
    assert_eq!(soft(&process), 300);
    process.stop().await;
}

// Proves law 39.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_means_rebuilt_and_the_log_says_what_the_last_life_left() {
    let place = Place::new();
    let process = place.serve().await;
    let worker = working(&place).await;
    let operator = place.client(OPERATOR);
    let locked = operator.lock("dataset:acme/patients@v1").await.unwrap().into_inner().ending.unwrap();
    assert!(super::process::durable(&operator, &locked).await);
    process.kill().await;

    let mut process = place.start();
    eventually("readiness", async || place.probe("/readyz").await == Some(200)).await;
    // It must hold from the first moment, so there is no retry here.
    let job = place.client(LAUNCHER).job(&worker.job).await;
    assert_eq!(job.attempts[0].state(), v1::AttemptState::Suspended);
    assert_eq!(process.ready().await, 2);
    let left = process.says("the previous run left").await;
    for what in ["jobs=1", "suspended=1", "draining=0", "locks=1", "in_order=false"] {
        assert!(left.contains(what), "{what}: {left}");
    }
    process.stop().await;
    let mut process = place.start();
    assert!(process.says("the previous run left").await.contains("in_order=true"));
    process.ready().await;
    process.stop().await;
}
