//! The members of one attempt: who is one, how each goes, and that none speaks for another.

use std::time::Duration;

use leasehold::proto::v1::{self, AttemptState, Half, JobState, MemberState, Outcome, notice::Kind};
use tonic::Code;

use crate::harness::*;

/// Several members of one attempt, each with a stream and a credential of each half. Odd ones carry another identity.
struct Crew {
    world: World,
    launcher: Client,
    gateway: Client,
    workers: Vec<Worker>,
    tokens: Vec<[Token; 2]>,
}

fn crew_of(n: u32) -> v1::Members {
    let join = vec![WORKER.into(), OTHER_WORKER.into(), SHARED.into()];
    v1::Members { join, expect: n, max: n, attempts: 3, ..Default::default() }
}

async fn crew(members: v1::Members, n: usize) -> Crew {
    crew_in(World::start().await, members, n).await
}

async fn crew_in(world: World, members: v1::Members, n: usize) -> Crew {
    let (launcher, gateway) = (world.client(LAUNCHER).await, world.client(GATEWAY).await);
    let spec = v1::JobSpec { members: Some(members), ..spec() };
    let job = launcher.create(spec, "crew").await.unwrap().into_inner().job.unwrap().id;
    launcher.begin(&job, "run-1").await.unwrap();
    let mut crew = Crew { world, launcher, gateway, workers: Vec::new(), tokens: Vec::new() };
    for i in 0..n {
        let id = if i % 2 == 0 { WORKER } else { OTHER_WORKER };
        let client = crew.world.client(id).await;
        let mut worker = Worker::join(client, &job, 1, &format!("rank-{i}"), "").await.unwrap();
        worker.keep_alive().await;
        crew.tokens.push(worker.issue_both().await);
        crew.workers.push(worker);
    }
    crew
}

impl Crew {
    async fn attempt(&self) -> v1::Attempt {
        self.launcher.job(&self.workers[0].job).await.attempts[0].clone()
    }

    async fn job(&self) -> v1::Job {
        self.launcher.job(&self.workers[0].job).await
    }

    /// Both credentials of a member are good, or neither is.
    async fn lives(&self, i: usize, live: bool) {
        for token in &self.tokens[i] {
            let seen = token.seen_by(&self.gateway).await;
            assert_eq!(seen.active, live, "rank-{i}, {}: {}", token.lease.half, seen.reason);
        }
    }

    /// All members beat while time passes.
    async fn live_for(&mut self, seconds: u64) {
        let mut left = seconds;
        while left > 0 {
            let step = left.min(4);
            self.world.time().pass(Duration::from_secs(step)).await;
            for worker in self.workers.iter_mut().filter(|w| w.stream.is_some()) {
                worker.beat().await;
            }
            left -= step;
        }
    }
}

// ---------- each for itself ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_to_end_does_not_end_the_others_and_the_last_completes_the_job() {
    let mut c = crew(crew_of(3), 3).await;
    for i in 0..2 {
        let answer = c.workers[i].end_self(Outcome::Completed).await.unwrap().into_inner();
        assert_eq!(answer.job.unwrap().state(), JobState::Running, "rank-{i} ended the job");
        c.lives(i, false).await;
        c.lives(2, true).await;
    }
    c.workers[2].beat().await;
    let answer = c.workers[2].end_self(Outcome::Completed).await.unwrap().into_inner();
    let job = answer.job.unwrap();
    assert_eq!((job.state(), job.outcome()), (JobState::Closed, Outcome::Completed));
    c.lives(2, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_one_is_that_of_all_and_an_interruption_is_its_own() {
    let mut c = crew(crew_of(3), 3).await;
    let answer = c.workers[0].end_self(Outcome::Interrupted).await.unwrap().into_inner();
    assert_eq!(answer.job.unwrap().state(), JobState::Running);
    c.lives(0, false).await;
    c.lives(1, true).await;
    c.workers[1].end_self(Outcome::Failed).await.unwrap();
    c.lives(2, false).await;
    let attempt = c.attempt().await;
    assert_eq!((attempt.state(), attempt.outcome()), (AttemptState::Ended, Outcome::Failed));
    assert!(attempt.detail.contains("rank-1"), "{}", attempt.detail);
    assert_eq!(c.workers[2].stream.as_mut().unwrap().notice().await.kind(), Kind::Revoked);
    assert_eq!(c.job().await.state(), JobState::Ready, "there are attempts left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_interruption_of_a_whole_attempt_ends_it() {
    let c = crew(crew_of(2), 2).await;
    c.workers[0].end_self(Outcome::Completed).await.unwrap();
    c.workers[1].end_self(Outcome::Interrupted).await.unwrap();
    let attempt = c.attempt().await;
    assert_eq!((attempt.state(), attempt.outcome()), (AttemptState::Ended, Outcome::Interrupted));
}

/// Processes that share a SPIFFE ID, of one attempt or of two jobs, are told apart by their sessions alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn law_31b_a_member_proves_its_session_to_end_or_drain_itself() {
    let c = crew(crew_of(4), 3).await;
    // rank-2 carries the SVID of rank-0.
    let (thief, victim) = (&c.workers[2], &c.workers[0]);
    assert_eq!(thief.client.id, victim.client.id);
    let mut jobs = thief.client.jobs();
    for secret in [vec![], thief.secret.clone(), vec![7; 32]] {
        let end = v1::EndAttemptRequest {
            job: victim.job.clone(),
            attempt: 1,
            outcome: Outcome::Failed as i32,
            instance: victim.instance.clone(),
            session_secret: secret.clone(),
            ..Default::default()
        };
        refused(jobs.end_attempt(end).await).is(Code::PermissionDenied, "SESSION_MISMATCH");
        let drain = v1::DrainAttemptRequest {
            job: victim.job.clone(),
            attempt: 1,
            instance: victim.instance.clone(),
            session_secret: secret,
            ..Default::default()
        };
        refused(jobs.drain_attempt(drain).await).is(Code::PermissionDenied, "SESSION_MISMATCH");
    }
    // Nor does it speak for all, though it may speak for itself.
    let all = v1::EndAttemptRequest { job: victim.job.clone(), attempt: 1, outcome: 2, ..Default::default() };
    assert_eq!(refused(jobs.end_attempt(all).await).code, Code::PermissionDenied);
    let all = v1::DrainAttemptRequest { job: victim.job.clone(), attempt: 1, ..Default::default() };
    assert_eq!(refused(jobs.drain_attempt(all).await).code, Code::PermissionDenied);
    let short = v1::EndAttemptRequest {
        job: victim.job.clone(),
        attempt: 1,
        outcome: 1,
        instance: thief.instance.clone(),
        session_secret: vec![1; 31],
        ..Default::default()
    };
    refused(jobs.end_attempt(short).await).is(Code::InvalidArgument, "FIELD_INVALID");
    for i in 0..3 {
        c.lives(i, true).await;
    }
    assert!(c.world.records().await.of("member.left").is_empty());
    thief.end_self(Outcome::Completed).await.unwrap();
    c.lives(0, true).await;
}

// ---------- drain of one ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_drains_alone_reading_first_then_writing_and_the_others_go_on() {
    let mut c = crew(crew_of(3), 3).await;
    let answer = c.workers[0].drain_self(30).await.unwrap().into_inner();
    let now = i64::try_from(NOW.seconds()).unwrap();
    assert_eq!(answer.reading_ends.unwrap().seconds - now, 10);
    assert_eq!(answer.writing_ends.unwrap().seconds - now, 30);
    let notice = c.workers[0].stream.as_mut().unwrap().told(Kind::Drain, "ATTEMPT_DRAINING").await;
    assert_eq!((notice.reading_ends, notice.writing_ends), (answer.reading_ends, answer.writing_ends));
    refused(c.workers[0].try_issue(Half::Reading).await).is(Code::FailedPrecondition, "ATTEMPT_DRAINING");
    let last = c.workers[0].issue(Half::Writing).await;
    assert_eq!(last.lease.expires, answer.writing_ends);
    // The attempt runs, and shows who is leaving.
    let attempt = c.attempt().await;
    assert_eq!(attempt.state(), AttemptState::Running);
    assert_eq!(attempt.members[0].writing_ends, answer.writing_ends);
    assert_eq!(attempt.members[1].writing_ends, None);

    c.live_for(11).await;
    let reading = &c.tokens[0][0];
    eventually("the end of its reading", async || !reading.seen_by(&c.gateway).await.active).await;
    assert!(c.tokens[0][1].seen_by(&c.gateway).await.active && last.seen_by(&c.gateway).await.active);
    c.lives(1, true).await;
    c.workers[1].issue(Half::Reading).await.is_live(&c.gateway).await;
    // A second, longer drain prolongs nothing.
    let again = c.workers[0].drain_self(60).await.unwrap().into_inner();
    assert_eq!(again.writing_ends, answer.writing_ends);

    c.live_for(18).await;
    c.world.time().pass(Duration::from_secs(2)).await;
    eventually("the end of its writing", async || !last.seen_by(&c.gateway).await.active).await;
    c.lives(0, false).await;
    c.lives(1, true).await;
    let attempt = c.attempt().await;
    assert_eq!((attempt.state(), attempt.members[0].state()), (AttemptState::Running, MemberState::Left));
    assert_eq!(attempt.members[0].outcome(), Outcome::Interrupted);
    let records = c.world.records().await;
    assert_eq!(records.one("member.draining")["instance"], "rank-0");
    assert!(records.of("attempt.draining").is_empty() && records.of("attempt.ended").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_last_of_a_whole_attempt_drains_it_is_the_attempt_that_drains() {
    let mut c = crew(crew_of(2), 2).await;
    c.workers[0].drain_self(40).await.unwrap();
    assert_eq!(c.attempt().await.state(), AttemptState::Running);
    c.live_for(4).await;
    c.workers[1].drain_self(20).await.unwrap();
    assert_eq!(c.attempt().await.state(), AttemptState::Draining);
    // The next attempt waits for it, as for any that drains.
    let job = c.workers[0].job.clone();
    refused(c.launcher.begin(&job, "run-2").await).is(Code::FailedPrecondition, "ATTEMPT_DRAINING");
    // Each has its own time: the second is over before the first.
    c.live_for(19).await;
    c.workers[1].stream = None;
    c.world.time().pass(Duration::from_secs(2)).await;
    eventually("the end of one", async || c.attempt().await.members[1].state() == MemberState::Left).await;
    assert!(c.tokens[0][1].seen_by(&c.gateway).await.active, "the first was cut with the second");
    assert_eq!(c.attempt().await.state(), AttemptState::Draining);
    c.live_for(12).await;
    c.world.time().pass(Duration::from_secs(4)).await;
    eventually("the end of both", async || c.attempt().await.state() == AttemptState::Ended).await;
    assert_eq!(c.attempt().await.outcome(), Outcome::Interrupted);
    assert_eq!(c.job().await.state(), JobState::Ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_drains_and_comes_back_is_still_draining() {
    let mut c = crew(crew_of(2), 2).await;
    let told = c.workers[0].drain_self(60).await.unwrap().into_inner();
    c.workers[0].stream = None;
    eventually("its loss", async || c.attempt().await.members[0].state() == MemberState::Away).await;
    c.workers[0].rejoin().await.unwrap();
    c.workers[0].keep_alive().await;
    let notice = c.workers[0].stream.as_mut().unwrap().told(Kind::Drain, "ATTEMPT_DRAINING").await;
    assert_eq!(notice.writing_ends, told.writing_ends);
    refused(c.workers[0].try_issue(Half::Reading).await).is(Code::FailedPrecondition, "ATTEMPT_DRAINING");
    let last = c.workers[0].issue(Half::Writing).await;
    assert_eq!(last.lease.expires, told.writing_ends);
}
