//! Rules that change in the middle of a request: the second look checks what was decided by the old rules.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use leasehold::proto::v1::{self, AttemptState, Half, JobSpec, MemberState};
use tonic::Status;

use crate::harness::*;

/// A text in the catalog, and what replaces it.
struct Change(&'static str, &'static str);

const WORKER_DISABLED: Change = Change(
    "identity = \"job\"\nroles    = [\"trainer\"]\n[[principal]]\nmatch = \"spiffe://hpc",
    "identity = \"job\"\nroles    = [\"trainer\"]\ndisabled = true\n[[principal]]\nmatch = \"spiffe://hpc",
);
const LAUNCHER_DISABLED: Change =
    Change("kind        = \"launcher\"\n", "kind        = \"launcher\"\ndisabled    = true\n");

/// Starts a reload at one reading of the clock, and waits for it at most so long. The receiver gets how many records were on
/// disk at that moment, when the reload is done.
fn reload_at(world: &World, reading: usize, most: Duration) -> Receiver<u64> {
    let (reload, ledger) = (world.daemon().reloader(), world.daemon().broker.ledger().clone());
    let (report, received) = mpsc::channel();
    world.time().at_reading(reading, move || {
        let (done, wait) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            let durable = ledger.head().index;
            reload();
            drop(done);
            let _ = report.send(durable);
        });
        // If the reader of the clock holds a lock that the reload needs, the reader goes on first.
        let _ = wait.recv_timeout(most);
    });
    received
}

/// The result of one request during which the rules changed.
struct LateRequest {
    /// The index of its record.
    record: Option<u64>,
    answer: Result<(), Status>,
}

/// How many of the last readings of the clock in a request are tried, and how often. Other tasks read the clock too, and not
/// always as often.
const LAST: usize = 12;
const SWEEPS: usize = 5;

/// Makes a request again and again, with a reload at each of its last readings of the clock, from the last one back.
///
/// If the reload comes after the record, the decision was made before it. One of those requests must still be refused, by the
/// second look.
async fn find_late_refusal(
    what: &str,
    change: Change,
    request: impl AsyncFn(&World, usize, &dyn Fn(&str)) -> LateRequest,
) {
    let world = World::start().await;
    let good = world.read("catalog.d/acme.toml");
    assert!(good.contains(change.0), "{what}");
    let bad = good.replacen(change.0, change.1, 1);
    let readings = std::cell::Cell::new(0);
    let count = |when: &str| match when {
        "before" => readings.set(world.time().readings()),
        _ => readings.set(world.time().readings() - readings.get()),
    };
    let undisturbed = request(&world, 0, &count).await;
    assert!(undisturbed.answer.is_ok() && undisturbed.record.is_some(), "{what}: {:?}", undisturbed.answer);
    let mut longest = timed_reload(&world);
    let last = LAST.min(readings.get());
    for turn in 0..SWEEPS * last {
        let back = 1 + turn % last;
        let reloaded = std::cell::Cell::new(None);
        let arm = |when: &str| {
            if when == "before" {
                // Waits as long as a reload takes on this machine, and no longer: the request may have to go on without it.
                let most = longest.saturating_mul(8).max(Duration::from_secs(1));
                reloaded.set(Some(reload_at(&world, readings.get() - back, most)));
            }
        };
        world.write("catalog.d/acme.toml", &bad);
        let turn = request(&world, 1 + turn, &arm).await;
        let came = !world.time().call_off();
        let durable =
            reloaded.take().filter(|_| came).map(|received| received.recv_timeout(PATIENCE).unwrap());
        if turn.answer.is_err() && turn.record.zip(durable).is_some_and(|(record, durable)| record <= durable)
        {
            return;
        }
        world.write("catalog.d/acme.toml", &good);
        longest = longest.max(timed_reload(&world));
    }
    panic!("{what}: rules that changed after its record were never seen");
}

fn timed_reload(world: &World) -> Duration {
    let began = Instant::now();
    world.daemon().reload();
    began.elapsed()
}

fn own_job(turn: usize) -> JobSpec {
    JobSpec { name: format!("job-{turn}"), ..spec() }
}

/// The index of the last record of a kind that is about a job.
async fn record_of(world: &World, kind: &str, job: &str) -> Option<u64> {
    let records = world.records().await;
    records.of(kind).iter().filter(|r| r["job"] == job).filter_map(|r| r["index"].as_u64()).next_back()
}

// Proves law 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_sees_a_reload_after_its_record() {
    find_late_refusal("join", WORKER_DISABLED, async |world, turn, mark| {
        let launcher = world.client(LAUNCHER).await;
        let key = format!("turn {turn}");
        // An identity of one job may not join another.
        let worker = format!("spiffe://k8s.acme.example/ns/ml/job/turn-{turn}");
        let members = v1::Members { join: vec![worker.clone()], ..Default::default() };
        let job = JobSpec { members: Some(members), ..own_job(turn) };
        let job = launcher.create(job, &key).await.unwrap().into_inner().job.unwrap().id;
        let ticket = launcher.begin(&job, "run-1").await.unwrap().into_inner().ticket;
        let client = world.client(&worker).await;
        mark("before");
        let answer = Worker::join(client, &job, 1, "rank-0", &ticket).await.map(drop);
        mark("after");
        let attempt = launcher.job(&job).await.attempts.remove(0);
        let joined = attempt.members.iter().any(|m| m.state() == MemberState::Joined);
        assert_eq!(joined, answer.is_ok(), "{answer:?}");
        LateRequest { record: record_of(world, "member.joined", &job).await, answer }
    })
    .await;
}

// Proves law 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_sees_a_reload_after_its_record() {
    find_late_refusal("begin", LAUNCHER_DISABLED, async |world, turn, mark| {
        let (launcher, operator) = (world.client(LAUNCHER).await, world.client(OPERATOR).await);
        let key = format!("turn {turn}");
        let job = launcher.create(own_job(turn), &key).await.unwrap().into_inner().job.unwrap().id;
        mark("before");
        let answer = launcher.begin(&job, "run-1").await.map(drop);
        mark("after");
        let attempts = operator.job(&job).await.attempts;
        let runs = attempts.iter().any(|a| a.state() != AttemptState::Ended);
        assert_eq!(runs, answer.is_ok(), "{answer:?} {attempts:?}");
        LateRequest { record: record_of(world, "attempt.began", &job).await, answer }
    })
    .await;
}

const DATA_GONE: Change = Change("name           = \"tickets@v3\"", "name           = \"tickets-gone@v3\"");
const MAY_NOT_ACT: Change = Change("may_act_for = [\"human:*\"]", "may_act_for = [\"human:bob\"]");
const NOW_GATED: Change = Change(
    "classification = \"internal\"\ndata_classes   = []",
    "classification = \"internal\"\ndata_classes   = [\"pii\"]",
);

/// Creates jobs one after the other until `stop` is set.
async fn keep_creating(launcher: Client, task: usize, stop: Arc<AtomicBool>) {
    for turn in 0.. {
        if stop.load(Ordering::Acquire) {
            return;
        }
        // Some are refused: the test finds them in the ledger.
        drop(launcher.create(spec(), &format!("{task} {turn}")).await);
    }
}

/// The clock is not read between the record of a creation and the second look, so here the rules change under many creations.
/// A job that was recorded after the change must be closed if the new rules refuse it.
// Proves law 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_sees_a_reload_after_its_record() {
    const TASKS: usize = 8;
    const ROUNDS: usize = 40;
    for (what, change) in [
        ("the launcher disabled", LAUNCHER_DISABLED),
        ("it may not act for the human", MAY_NOT_ACT),
        ("the data gone", DATA_GONE),
        ("a gate", NOW_GATED),
    ] {
        let world = World::start().await;
        let (launcher, operator) = (world.client(LAUNCHER).await, world.client(OPERATOR).await);
        let good = world.read("catalog.d/acme.toml");
        let bad = good.replacen(change.0, change.1, 1);
        assert_ne!(good, bad, "{what}");
        let reload = async |text: &str| {
            world.write("catalog.d/acme.toml", text);
            let reload = world.daemon().reloader();
            tokio::task::spawn_blocking(move || reload()).await.unwrap();
        };
        let mut caught = 0;
        for round in 0..ROUNDS {
            let stop = Arc::new(AtomicBool::new(false));
            let creating: Vec<_> = (0..TASKS)
                .map(|task| tokio::spawn(keep_creating(launcher.clone(), TASKS * round + task, stop.clone())))
                .collect();
            reload(&bad).await;
            stop.store(true, Ordering::Release);
            for task in creating {
                soon("a creator", task).await.unwrap();
            }
            let records = world.records().await;
            let index = |r: &serde_json::Value| r["index"].as_u64().unwrap();
            let changed = records.of("catalog.loaded").iter().map(|r| index(r)).next_back().unwrap();
            for record in records.of("job.created").into_iter().filter(|r| index(r) > changed) {
                let job = operator.job(record["job"].as_str().unwrap()).await;
                assert_ne!(job.state(), v1::JobState::Ready, "{what}: {job:?}");
                caught += usize::from(job.state() == v1::JobState::Closed);
            }
            if caught > 0 {
                break;
            }
            reload(&good).await;
        }
        assert!(caught > 0, "{what}: no record of a creation came after the change");
    }
}

// Proves law 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_starts_over_if_the_revision_rises() {
    let world = World::start().await;
    let worker = world.working().await;
    // Tries each of the last readings, from the last one back.
    for back in (1..=LAST).cycle().take(SWEEPS * LAST) {
        let id = worker.issue(Half::Reading).await.lease.id;
        let start = world.time().readings();
        worker.renew(&id).await.unwrap();
        let readings = world.time().readings() - start;
        if back > readings {
            continue;
        }
        let daemon = world.daemon().broker.clone();
        world.time().at_reading(readings - back, move || {
            daemon.fences().raise_revision();
        });
        let renewed = worker.renew(&id).await.unwrap().into_inner();
        // Another task read the clock this time.
        if world.time().call_off() {
            continue;
        }
        let records = world.records().await;
        let of_it = |kind| records.of(kind).into_iter().filter(|r| r["lease"] == *id).collect::<Vec<_>>();
        if let [cancelled] = of_it("credential.cancelled")[..] {
            // The credential that the old rules allowed was not handed out. The one that was handed out was decided again.
            assert_eq!(cancelled["reason"], "CONTENDED");
            let generations: Vec<_> =
                of_it("credential.renewed").iter().map(|r| r["generation"].clone()).collect();
            assert_eq!(
                generations.last(),
                Some(&renewed.lease.unwrap().generation.into()),
                "{generations:?}"
            );
            assert_eq!(generations.len(), 3, "{generations:?}");
            return;
        }
    }
    panic!("rules that changed after its record were never seen");
}
