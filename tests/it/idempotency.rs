//! Repeated requests: the same request gets the same answer, a different one is a conflict.

use leasehold::proto::v1::{self, JobState, Outcome};
use tonic::Code;

use crate::harness::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_and_one_specification_are_one_job() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let asks: Vec<_> = (0..12)
        .map(|_| {
            let launcher = launcher.clone();
            tokio::spawn(async move { launcher.create(spec(), "k").await.unwrap().into_inner() })
        })
        .collect();
    let mut answers = Vec::new();
    for ask in asks {
        answers.push(ask.await.unwrap());
    }
    assert_eq!(answers.iter().filter(|a| a.created).count(), 1);
    let first = answers[0].job.as_ref().unwrap().id.clone();
    assert!(answers.iter().all(|a| a.job.as_ref().unwrap().id == first));
    assert_eq!(world.records().await.of("job.created").len(), 1);
    // A key belongs to its caller.
    let nightly = world.client(NIGHTLY).await;
    let other = v1::JobSpec { acting_for: String::new(), ..spec() };
    let theirs = nightly.create(other, "k").await.unwrap().into_inner();
    assert!(theirs.created && theirs.job.unwrap().id != first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_and_two_specifications_are_a_conflict() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let job = launcher.create(spec(), "k").await.unwrap().into_inner().job.unwrap();
    let before = world.snapshot().await;
    let others = [
        v1::JobSpec { why: "another".into(), ..spec() },
        v1::JobSpec { read: vec![TICKETS.into()], ..spec() },
        v1::JobSpec { max_duration: Some(prost_types::Duration { seconds: 1, nanos: 0 }), ..spec() },
    ];
    for other in others {
        let no = refused(launcher.create(other, "k").await);
        no.is(Code::AlreadyExists, "IDEMPOTENCY_CONFLICT");
        assert!(no.text.contains(&job.id), "{}", no.text);
    }
    assert_eq!(world.snapshot().await, before);
    assert_eq!(launcher.job(&job.id).await, job);
    // Neither the order of a set nor an explicit default makes a different specification.
    let spelled = v1::JobSpec {
        tenant: "acme".into(),
        members: Some(v1::Members {
            expect: 1,
            max: 1,
            attempts: 1,
            done_when: "all".into(),
            ..spec().members.unwrap()
        }),
        ..spec()
    };
    let same = launcher.create(spelled, "k").await.unwrap().into_inner();
    assert_eq!((same.created, same.job.unwrap().id), (false, job.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_begins_one_attempt() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let members = v1::Members { attempts: 3, ..spec().members.unwrap() };
    let job = launcher.create(v1::JobSpec { members: Some(members), ..spec() }, "k").await.unwrap();
    let job = job.into_inner().job.unwrap().id;
    let asks: Vec<_> = (0..8)
        .map(|_| {
            let (launcher, job) = (launcher.clone(), job.clone());
            tokio::spawn(async move { launcher.begin(&job, "run-1").await.unwrap().into_inner() })
        })
        .collect();
    let mut tickets = std::collections::BTreeSet::new();
    for ask in asks {
        let answer = ask.await.unwrap();
        assert_eq!(answer.attempt.unwrap().number, 1);
        tickets.insert(answer.ticket);
    }
    tickets.remove(""); // where the first answer was still on its way
    assert_eq!(tickets.len(), 1);
    assert_eq!(world.records().await.of("attempt.began").len(), 1);
    assert_eq!(launcher.begin(&job, "run-2").await.unwrap().into_inner().attempt.unwrap().number, 2);
    refused(launcher.begin(&job, "run-1").await).is(Code::FailedPrecondition, "ATTEMPT_KEY_USED");
    assert_eq!(launcher.begin(&job, "run-3").await.unwrap().into_inner().attempt.unwrap().number, 3);
    refused(launcher.begin(&job, "run-4").await).is(Code::FailedPrecondition, "ATTEMPTS_EXHAUSTED");
    assert_eq!(launcher.job(&job).await.attempts[2].state(), v1::AttemptState::Running);
}

// Proves law 28.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_report_of_an_end_counts() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let worker = world.working().await;
    let first = launcher.end(&worker.job, 1, Outcome::Failed).await.unwrap().into_inner();
    let before = world.snapshot().await;
    let again = launcher.end(&worker.job, 1, Outcome::Failed).await.unwrap().into_inner();
    assert!(!first.conflict && !again.conflict);
    assert_eq!(first.job, again.job);
    assert_eq!(world.snapshot().await, before, "the same report twice is no second record");

    let other = launcher.end(&worker.job, 1, Outcome::Completed).await.unwrap().into_inner();
    assert!(other.conflict);
    let job = other.job.unwrap();
    assert_eq!((job.state(), job.outcome()), (JobState::Closed, Outcome::Failed));
    let mine = worker.end_self(Outcome::Completed).await.unwrap().into_inner();
    assert!(mine.conflict);
    let records = world.records().await;
    let conflicts = records.of("job.conflict");
    assert_eq!(conflicts.len(), 2);
    assert_eq!((&conflicts[0]["stands"], &conflicts[0]["reported"]), (&"failed".into(), &"completed".into()));
    assert_eq!(records.of("attempt.ended").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_closed_twice_keeps_its_first_outcome() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let job = launcher.create(spec(), "k").await.unwrap().into_inner().job.unwrap().id;
    let close = |outcome: Outcome| v1::CloseJobRequest {
        job: job.clone(),
        outcome: outcome as i32,
        reason: "r".into(),
    };
    for outcome in [Outcome::Cancelled, Outcome::Cancelled, Outcome::Completed] {
        let closed = launcher.jobs().close_job(close(outcome)).await.unwrap().into_inner().job.unwrap();
        assert_eq!(closed.outcome(), Outcome::Cancelled);
    }
    let records = world.records().await;
    assert_eq!((records.of("job.closed").len(), records.of("job.conflict").len()), (1, 1));
    // The key with which it was created still names it: it does not come back to life.
    let same = launcher.create(spec(), "k").await.unwrap().into_inner();
    assert_eq!((same.created, same.job.unwrap().state()), (false, JobState::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_again_with_the_same_session_is_the_same_member() {
    let world = World::start().await;
    let mut worker = world.working().await;
    let gateway = world.client(GATEWAY).await;
    let token = worker.issue(v1::Half::Reading).await;
    worker.rejoin().await.unwrap();
    token.is_live(&gateway).await;
    let thief = Worker::join(worker.client.clone(), &worker.job, 1, "rank-0", "").await.err().unwrap();
    Refused::of(&thief).is(Code::AlreadyExists, "INSTANCE_TAKEN");
    let another = Worker::join(worker.client.clone(), &worker.job, 1, "rank-1", "").await.err().unwrap();
    Refused::of(&another).is(Code::ResourceExhausted, "MEMBERS_FULL");
    token.is_live(&gateway).await;
    assert_eq!(world.records().await.of("member.joined").len(), 1);
}
