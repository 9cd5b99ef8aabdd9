//! A daemon is restarted while jobs run: what comes back, which members come back, and that thousands can at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use leasehold::proto::v1::{self, AttemptState, Half, JobState, MemberState, Outcome};
use tonic::Code;

use crate::harness::*;

fn crew_of(n: u32) -> v1::JobSpec {
    let members =
        v1::Members { join: vec![WORKER.into(), SHARED.into()], expect: n, max: n, ..Default::default() };
    v1::JobSpec { members: Some(members), ..spec() }
}

// Proves law 39a.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_keeps_its_deadlines_over_a_restart() {
    let mut world = World::start().await;
    let mut first = world.working_on(crew_of(3), WORKER).await;
    let client = first.client.clone();
    let second = Worker::join(client, &first.job, 1, "rank-1", "").await.unwrap();
    let own = first.drain_self(60).await.unwrap().into_inner();
    drop(second);
    world.restart().await;
    let launcher = world.client(LAUNCHER).await;
    let attempt = launcher.job(&first.job).await.attempts[0].clone();
    assert_eq!(attempt.state(), AttemptState::Suspended);
    assert_eq!(attempt.members[0].writing_ends, own.writing_ends);
    first.client = world.client(WORKER).await;
    first.rejoin().await.unwrap();
    first.keep_alive().await;
    refused(first.try_issue(Half::Reading).await).is(Code::FailedPrecondition, "ATTEMPT_DRAINING");
    assert_eq!(first.issue(Half::Writing).await.lease.expires, own.writing_ends);
    // The attempt drains: the drain continues, and ends when it would have ended.
    let drain = v1::DrainAttemptRequest {
        job: first.job.clone(),
        attempt: 1,
        grace: Some(prost_types::Duration { seconds: 90, nanos: 0 }),
        ..Default::default()
    };
    let all = launcher.jobs().drain_attempt(drain).await.unwrap().into_inner();
    world.time().pass(Duration::from_secs(20)).await;
    world.restart().await;
    let launcher = world.client(LAUNCHER).await;
    assert_eq!(launcher.job(&first.job).await.attempts[0].state(), AttemptState::Draining);
    first.client = world.client(WORKER).await;
    first.rejoin().await.unwrap();
    first.keep_alive().await;
    let last = first.issue(Half::Writing).await;
    assert_eq!(last.lease.expires, own.writing_ends, "the sooner of the two");
    assert!(all.writing_ends.unwrap().seconds > own.writing_ends.unwrap().seconds);
    let job = first.job.clone();
    let took = world
        .time()
        .pass_until("its end", Duration::from_secs(80), async || {
            launcher.job(&job).await.state() == JobState::Closed
        })
        .await;
    assert!(took >= Duration::from_secs(69) && took <= Duration::from_secs(72), "{took:?}");
    assert_eq!(launcher.job(&job).await.outcome(), Outcome::Interrupted);
}

// Proves law 39a.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_session_of_before_and_its_ticket_come_back_in() {
    let mut world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let job = launcher.create(crew_of(1), "shared").await.unwrap().into_inner().job.unwrap().id;
    let ticket = launcher.begin(&job, "run-1").await.unwrap().into_inner().ticket;
    let mut worker = Worker::join(world.client(SHARED).await, &job, 1, "rank-0", &ticket).await.unwrap();
    worker.keep_alive().await;
    let stream = worker.stream.take();
    world.restart().await;
    drop(stream);
    worker.client = world.client(SHARED).await;
    // The first wrapper of a crew after the restart gets the ticket with the attempt's key, even if it never had it.
    let launcher = world.client(LAUNCHER).await;
    let again = launcher.begin(&job, "run-1").await.unwrap().into_inner();
    assert_eq!((again.attempt.unwrap().number, &again.ticket), (1, &ticket));
    let thief = Worker::join(worker.client.clone(), &job, 1, "rank-0", &ticket).await.err().unwrap();
    Refused::of(&thief).is(Code::AlreadyExists, "INSTANCE_TAKEN");
    let told = std::mem::take(&mut worker.ticket);
    Refused::of(&worker.rejoin().await.err().unwrap()).is(Code::PermissionDenied, "TICKET_REQUIRED");
    worker.ticket = told;
    worker.rejoin().await.unwrap();
    worker.keep_alive().await;
    worker.issue(Half::Reading).await;
    let records = world.records().await;
    assert!(records.of("member.lost").is_empty() && records.of("member.left").is_empty());
}

// Proves law 39a.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_to_which_no_member_returns_is_lost() {
    let mut world = World::with(|s| s.lease = "rejoin = \"30s\"".into()).await;
    let worker = world.working().await;
    let job = worker.job.clone();
    drop(worker);
    world.restart().await;
    let launcher = world.client(LAUNCHER).await;
    assert_eq!(launcher.job(&job).await.attempts[0].state(), AttemptState::Suspended);
    let took = world
        .time()
        .pass_until("its loss", Duration::from_secs(60), async || {
            launcher.job(&job).await.state() == JobState::Closed
        })
        .await;
    assert!(took > Duration::from_secs(29) && took < Duration::from_secs(33), "{took:?}");
    assert_eq!(launcher.job(&job).await.outcome(), Outcome::Lost);
}

/// How many members come back to one job at once. `LEASEHOLD_MANY` sets another number for measurements.
const MANY: usize = 300;
/// How many members share a connection, as the ranks of a node may.
const BESIDE: usize = 50;
/// How many members come back at the same time.
const AT_ONCE: usize = 200;

// Proves law 39a.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_come_back_at_once_and_new_work_goes_on_meanwhile() {
    let mut world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let many = std::env::var("LEASEHOLD_MANY").map_or(MANY, |n| n.parse().unwrap());
    let job = launcher
        .create(crew_of(u32::try_from(many).unwrap()), "many")
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap()
        .id;
    launcher.begin(&job, "run-1").await.unwrap();
    let began = Instant::now();
    let mut workers = come(&world, &job, (0..many).map(|_| None).collect(), Arc::default(), true).await;
    let (came, streams) = (began.elapsed(), workers.iter_mut().map(|w| w.stream.take()).collect::<Vec<_>>());
    world.restart().await;
    drop(streams);
    let launcher = world.client(LAUNCHER).await;
    assert_eq!(launcher.job(&job).await.attempts[0].state(), AttemptState::Suspended);

    let (back, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let served = AtomicBool::new(false);
    // Members that are back come back again and again until the new work is served, so that it is not served merely because
    // they are done.
    let storm = async {
        let (mut workers, mut all_back) = (workers, None);
        loop {
            let who = workers.into_iter().map(Some).collect();
            workers = come(&world, &job, who, back.clone(), all_back.is_none()).await;
            all_back.get_or_insert(began.elapsed());
            if served.load(Ordering::SeqCst) {
                return (workers, all_back.unwrap());
            }
        }
    };
    let fresh = async {
        eventually("the first to come back", async || back.load(Ordering::SeqCst) > 0).await;
        let members = v1::Members { join: vec![OTHER_WORKER.into()], ..Default::default() };
        let spec = v1::JobSpec { name: "fresh".into(), members: Some(members), ..spec() };
        let fresh = async { world.working_on(spec, OTHER_WORKER).await.issue(Half::Reading).await };
        soon("new work, while all the others come back", fresh).await;
        served.store(true, Ordering::SeqCst);
        (back.load(Ordering::SeqCst), began.elapsed())
    };
    let ((workers, all_back), (meanwhile, fresh)) = tokio::join!(storm, fresh);
    println!(
        "{many} members joined in {came:?} and were back in {all_back:?}; a new job began in {fresh:?}, after {meanwhile} had come back"
    );
    let attempt = launcher.job(&job).await.attempts[0].clone();
    assert_eq!(attempt.state(), AttemptState::Running);
    assert!(attempt.members.iter().all(|m| m.state() == MemberState::Joined));
    assert_eq!(launcher.job(&job).await.live_leases, 2 * many as u64);
    drop(workers);
    world.records().await;
}

/// All join, each with its stream, and get credentials of both halves, which they keep or release.
async fn come(
    world: &World,
    job: &str,
    who: Vec<Option<Worker>>,
    back: Arc<AtomicUsize>,
    keep: bool,
) -> Vec<Worker> {
    let mut coming = Vec::new();
    let room = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut who = who.into_iter().enumerate().peekable();
    while who.peek().is_some() {
        let client = world.client(WORKER).await;
        for (n, worker) in who.by_ref().take(BESIDE) {
            let (client, job, back, room) = (client.clone(), job.to_owned(), back.clone(), room.clone());
            coming.push(tokio::spawn(async move {
                let _place = room.acquire_owned().await.unwrap();
                let mut worker = match worker {
                    Some(mut worker) => {
                        worker.client = client;
                        worker.rejoin().await.unwrap();
                        worker
                    }
                    None => Worker::join(client, &job, 1, &format!("rank-{n}"), "").await.unwrap(),
                };
                worker.keep_alive().await;
                let held = worker.issue_both().await;
                for token in held.iter().filter(|_| !keep) {
                    worker.release(&token.lease.id).await.unwrap();
                }
                back.fetch_add(1, Ordering::SeqCst);
                worker
            }));
        }
    }
    let mut all = Vec::new();
    for worker in coming {
        all.push(worker.await.unwrap());
    }
    all
}
