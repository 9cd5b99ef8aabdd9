//! The next attempt: who begins it, when it is refused, and what happens to the one before.

use std::{sync::Arc, time::Duration};

use leasehold::proto::v1::{self, AttemptState, Half, JobState, Outcome, notice::Kind};
use tonic::{Code, Response, Status};

use crate::harness::*;

/// A job that a scheduler may requeue, and a member of its first attempt.
struct Queue {
    world: World,
    launcher: Client,
    scheduler: Client,
    gateway: Client,
    worker: Worker,
    tokens: [Token; 2],
}

fn again(attempts: u32) -> v1::JobSpec {
    let members = v1::Members {
        start: vec![SCHEDULER.into()],
        join: vec![WORKER.into(), SHARED.into()],
        max: 4,
        attempts,
        ..Default::default()
    };
    v1::JobSpec { members: Some(members), max_duration: seconds(8 * 86_400), ..spec() }
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

async fn queue(attempts: u32) -> Queue {
    let world = World::start().await;
    let (launcher, gateway) = (world.client(LAUNCHER).await, world.client(GATEWAY).await);
    let scheduler = world.client(SCHEDULER).await;
    let worker = world.working_on(again(attempts), WORKER).await;
    let tokens = worker.issue_both().await;
    Queue { world, launcher, scheduler, gateway, worker, tokens }
}

impl Queue {
    async fn lives(&self, live: bool) {
        for token in &self.tokens {
            let seen = token.seen_by(&self.gateway).await;
            assert_eq!(seen.active, live, "{}: {}", token.lease.half, seen.reason);
        }
    }

    /// Checks that the first attempt is unchanged and the only one.
    async fn is_unharmed(&mut self) {
        self.lives(true).await;
        self.worker.beat().await;
        self.worker.issue(Half::Reading).await.is_live(&self.gateway).await;
        let job = self.launcher.job(&self.worker.job).await;
        assert_eq!((job.attempts.len(), job.attempts[0].state()), (1, AttemptState::Running));
        assert_eq!(self.world.records().await.of("attempt.began").len(), 1);
    }
}

async fn begin(
    client: &Client,
    job: &str,
    key: &str,
    supersede: bool,
) -> Result<Response<v1::BeginAttemptResponse>, Status> {
    client
        .jobs()
        .begin_attempt(v1::BeginAttemptRequest {
            job: job.into(),
            key: key.into(),
            supersede,
            ..Default::default()
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_controls_only_jobs_that_name_it() {
    let mut q = queue(3).await;
    let job = q.worker.job.clone();
    let began = begin(&q.scheduler, &job, "cluster/7/1", false).await.unwrap().into_inner();
    assert_eq!(began.attempt.unwrap().number, 2);
    q.lives(false).await;
    assert_eq!(q.worker.stream.as_mut().unwrap().notice().await.reason, "ATTEMPT_STALE");
    let drain = v1::DrainAttemptRequest { job: job.clone(), attempt: 2, ..Default::default() };
    q.scheduler.jobs().drain_attempt(drain).await.unwrap();
    let ended = q.scheduler.end(&job, 2, Outcome::Interrupted).await.unwrap().into_inner();
    assert_eq!(ended.job.unwrap().state(), JobState::Ready);
    // It may not close, join or create jobs.
    let close = v1::CloseJobRequest { job: job.clone(), outcome: 0, reason: String::new() };
    refused(q.scheduler.jobs().close_job(close).await).is(Code::PermissionDenied, "POLICY_DENIED");
    let join = Worker::join(q.scheduler.clone(), &job, 2, "rank-0", "").await.err().unwrap();
    Refused::of(&join).is(Code::PermissionDenied, "KIND_NOT_ALLOWED");
    let create = q.scheduler.create(v1::JobSpec { acting_for: String::new(), ..again(1) }, "own").await;
    assert_eq!(refused(create).code, Code::PermissionDenied);

    // A job of another cluster does not exist for it.
    let members = v1::Members { join: vec![OTHER_WORKER.into()], ..Default::default() };
    let elsewhere = v1::JobSpec { name: "elsewhere".into(), members: Some(members), ..spec() };
    let other = q.world.working_on(elsewhere, OTHER_WORKER).await;
    let token = other.issue(Half::Reading).await;
    refused(begin(&q.scheduler, &other.job, "x", true).await).is(Code::NotFound, "JOB_NOT_FOUND");
    refused(q.scheduler.end(&other.job, 1, Outcome::Failed).await).is(Code::NotFound, "JOB_NOT_FOUND");
    let drain = v1::DrainAttemptRequest { job: other.job.clone(), attempt: 1, ..Default::default() };
    refused(q.scheduler.jobs().drain_attempt(drain).await).is(Code::NotFound, "JOB_NOT_FOUND");
    let get = v1::GetJobRequest { job: other.job.clone() };
    refused(q.scheduler.jobs().get_job(get).await).is(Code::NotFound, "JOB_NOT_FOUND");
    token.is_live(&q.gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_one_attempt_for_the_life_of_the_job() {
    let mut q = queue(4).await;
    let job = q.worker.job.clone();
    let second = begin(&q.scheduler, &job, "cluster/7/1", false).await.unwrap().into_inner();
    let same = begin(&q.scheduler, &job, "cluster/7/1", false).await.unwrap().into_inner();
    assert_eq!((same.attempt.unwrap().number, &same.ticket), (2, &second.ticket));
    q.scheduler.end(&job, 2, Outcome::Interrupted).await.unwrap();
    refused(begin(&q.scheduler, &job, "cluster/7/1", true).await)
        .is(Code::FailedPrecondition, "ATTEMPT_KEY_USED");
    // A caller's own keys expire after a day; those of a run do not.
    q.world.time().advance(Duration::from_secs(2 * 86_400));
    q.world.rotate();
    q.world.restart().await;
    let scheduler = q.world.client(SCHEDULER).await;
    for key in ["run-1", "cluster/7/1"] {
        refused(begin(&scheduler, &job, key, true).await).is(Code::FailedPrecondition, "ATTEMPT_KEY_USED");
    }
    let third = begin(&scheduler, &job, "cluster/7/2", false).await.unwrap().into_inner();
    assert_eq!(third.attempt.unwrap().number, 3);
    q.world.restart().await;
    let scheduler = q.world.client(SCHEDULER).await;
    let same = begin(&scheduler, &job, "cluster/7/2", false).await.unwrap().into_inner();
    assert_eq!(same.attempt.unwrap().number, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_begin_leaves_the_attempt_before_unharmed() {
    let mut q = queue(3).await;
    let job = q.worker.job.clone();
    let stranger = q.world.client(NIGHTLY).await;
    refused(begin(&stranger, &job, "run-2", true).await).is(Code::NotFound, "JOB_NOT_FOUND");
    let member = begin(&q.worker.client, &job, "run-2", true).await;
    refused(member).is(Code::PermissionDenied, "POLICY_DENIED");
    q.world.client(OPERATOR).await.lock(&format!("attempt:{job}/2")).await.unwrap();
    refused(begin(&q.scheduler, &job, "run-2", true).await).is(Code::PermissionDenied, "LOCKED");
    q.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_surplus_begin_leaves_the_last_attempt_unharmed() {
    let mut q = queue(1).await;
    let job = q.worker.job.clone();
    for supersede in [false, true] {
        refused(begin(&q.scheduler, &job, "run-2", supersede).await)
            .is(Code::FailedPrecondition, "ATTEMPTS_EXHAUSTED");
    }
    q.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attempt_begins_during_a_drain_unless_it_supersedes() {
    let mut q = queue(3).await;
    let job = q.worker.job.clone();
    q.worker.drain_self(60).await.unwrap();
    q.worker.stream.as_mut().unwrap().told(Kind::Drain, "ATTEMPT_DRAINING").await;
    refused(begin(&q.scheduler, &job, "run-2", false).await).is(Code::FailedPrecondition, "ATTEMPT_DRAINING");
    q.lives(true).await;
    let began = begin(&q.scheduler, &job, "run-2", true).await.unwrap().into_inner();
    assert_eq!(began.attempt.unwrap().number, 2);
    q.lives(false).await;
}

/// A request of attempt 1 that is in flight when attempt 2 begins succeeds or is refused, and gives nothing that is valid later.
// Proves law 29.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_give_a_superseded_attempt_nothing() {
    let q = queue(40).await;
    let job = q.worker.job.clone();
    let mut client = q.worker.client.clone();
    for n in 1..=6u64 {
        let worker = match n {
            1 => Worker::join(client.clone(), &job, 1, "rank-1", "").await.unwrap(),
            n => Worker::join(client.clone(), &job, n, "rank-1", "").await.unwrap(),
        };
        let held = worker.issue(Half::Reading).await;
        let worker = Arc::new(worker);
        let mut tries = Vec::new();
        for i in 0..24u32 {
            let (worker, lease) = (worker.clone(), held.lease.id.clone());
            tries.push(tokio::spawn(async move {
                match i % 3 {
                    0 => worker.try_issue(Half::Writing).await.ok().map(|a| a.into_inner().token),
                    1 => worker.renew(&lease).await.ok().map(|a| a.into_inner().token),
                    _ => {
                        let name = format!("late-{i}");
                        match Worker::join(worker.client.clone(), &worker.job, n, &name, "").await {
                            Ok(late) => {
                                late.try_issue(Half::Reading).await.ok().map(|a| a.into_inner().token)
                            }
                            Err(_) => None,
                        }
                    }
                }
            }));
        }
        begin(&q.scheduler, &job, &format!("race-{n}"), true).await.unwrap();
        assert_eq!(q.launcher.job(&job).await.attempts.len() as u64, n + 1);
        for answer in tries {
            if let Some(token) = answer.await.unwrap() {
                let seen = q.gateway.introspect(&token, WORKER).await;
                assert!(!seen.active, "a token of attempt {n} is good after attempt {} began", n + 1);
            }
        }
        assert_eq!(q.launcher.job(&job).await.live_leases, 0, "attempt {n} left a lease");
        client = q.world.client(WORKER).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_reads_checkpoints_only_of_its_own_job() {
    let q = queue(3).await;
    let first = &q.tokens[1];
    begin(&q.scheduler, &q.worker.job, "run-2", false).await.unwrap();
    let next = Worker::join(q.worker.client.clone(), &q.worker.job, 2, "rank-0", "").await.unwrap();
    let second = next.issue(Half::Writing).await;
    assert_eq!(second.answer.locations, first.answer.locations);
    assert_eq!(second.answer.locations[LINE], format!("s3://acme-models/out/support-lora/{}/", q.worker.job));
    let scope = &second.lease.scopes[0];
    assert_eq!(scope.resource, LINE);
    assert!(scope.actions.contains(&(v1::Action::ReadCheckpoint as i32)), "{scope:?}");
    // Another job of the same line has its own place.
    let members = v1::Members { join: vec![OTHER_WORKER.into()], ..Default::default() };
    let other = v1::JobSpec { name: "other".into(), members: Some(members), ..spec() };
    let other = q.world.working_on(other, OTHER_WORKER).await.issue(Half::Writing).await;
    assert_ne!(other.answer.locations[LINE], second.answer.locations[LINE]);
}

/// Like eight nodes of one `srun`, each with the scheduler's key and its own instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_wrappers_with_one_key_are_one_attempt() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let members = v1::Members {
        start: vec![SHARED.into()],
        join: vec![SHARED.into()],
        expect: 8,
        ..Default::default()
    };
    let job = launcher.create(v1::JobSpec { members: Some(members), ..spec() }, "k").await.unwrap();
    let job = job.into_inner().job.unwrap().id;
    let mut nodes = Vec::new();
    for n in 0..8 {
        let (client, job) = (world.client(SHARED).await, job.clone());
        nodes.push(tokio::spawn(async move {
            let began = begin(&client, &job, "cluster/7/0", false).await.unwrap().into_inner();
            let number = began.attempt.unwrap().number;
            let mut worker =
                Worker::join(client, &job, number, &format!("node-{n}"), &began.ticket).await.unwrap();
            worker.keep_alive().await;
            worker
        }));
    }
    let mut workers = Vec::new();
    for node in nodes {
        workers.push(node.await.unwrap());
    }
    assert!(workers.iter().all(|w| w.attempt == 1));
    let full = Worker::join(workers[0].client.clone(), &job, 1, "node-8", &workers[0].ticket).await;
    Refused::of(&full.err().unwrap()).is(Code::ResourceExhausted, "MEMBERS_FULL");
    for (n, worker) in workers.iter().enumerate() {
        let answer = worker.end_self(Outcome::Completed).await.unwrap().into_inner().job.unwrap();
        assert_eq!(answer.state() == JobState::Closed, n == 7, "after {n}");
    }
    assert_eq!(world.records().await.of("attempt.began").len(), 1);
}
