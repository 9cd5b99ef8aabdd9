//! Every ending that needs no process. Each ends all access behind its name at once, and no other access.

use std::time::Duration;

use leasehold::{
    name::{JobId, LeaseId},
    proto::v1::{self, Half, JobState, Outcome, notice::Kind},
};
use tonic::Code;

use crate::harness::*;

/// A member with a credential of each half, and a member of another job.
struct Scene {
    world: World,
    launcher: Client,
    gateway: Client,
    worker: Worker,
    tokens: [Token; 2],
    other: Worker,
    others: Token,
}

async fn scene() -> Scene {
    scene_with(World::start().await, spec()).await
}

async fn scene_with(world: World, spec: v1::JobSpec) -> Scene {
    let (launcher, gateway) = (world.client(LAUNCHER).await, world.client(GATEWAY).await);
    let worker = world.working_on(spec, WORKER).await;
    let tokens = worker.issue_both().await;
    let other = beside(&world).await;
    let others = other.issue(Half::Reading).await;
    Scene { world, launcher, gateway, worker, tokens, other, others }
}

/// A job of another launcher, without members and with other data.
async fn beside(world: &World) -> Worker {
    let spec = v1::JobSpec {
        name: "beside".into(),
        read: vec!["dataset:acme/fading@v1".into()],
        write: vec![],
        tune: None,
        acting_for: String::new(),
        members: Some(v1::Members { join: vec![OTHER_WORKER.into()], ..Default::default() }),
        ..spec()
    };
    let launcher = world.client(NIGHTLY).await;
    let job = launcher.create(spec, "beside").await.unwrap().into_inner().job.unwrap();
    launcher.begin(&job.id, "run-1").await.unwrap();
    let mut worker = Worker::join(world.client(OTHER_WORKER).await, &job.id, 1, "rank-0", "").await.unwrap();
    worker.keep_alive().await;
    worker
}

impl Scene {
    async fn all_dead(&self) {
        // Until then, the revocation may be given as the reason why a token is invalid.
        self.counted(0).await;
        for token in &self.tokens {
            token.is_dead(&self.gateway, "LEASE_ENDED").await;
        }
    }

    /// If no client waits for an answer, an ended lease leaves the count a moment later.
    async fn counted(&self, live: u64) {
        let count = async || self.launcher.job(&self.worker.job).await.live_leases;
        eventually("the count of those that live", async || count().await == live).await;
    }

    async fn other_lives(&self) {
        self.others.is_live(&self.gateway).await;
    }

    async fn notice(&mut self) -> v1::Notice {
        self.worker.stream.as_mut().unwrap().notice().await
    }

    /// New credentials and renewals are both refused, for this reason.
    async fn nothing_more(&self, reason: &str) {
        let issue = refused(self.worker.try_issue(Half::Reading).await);
        let renew = refused(self.worker.renew(&self.tokens[0].lease.id).await);
        assert_eq!((issue.reason.as_str(), renew.reason.as_str()), (reason, reason), "{}", issue.text);
    }

    /// Each lease of the job has exactly one record of its end.
    async fn recorded_once(&self) -> Records {
        let named = |records: &Records, token: &Token| {
            let names = |r: &&serde_json::Value| {
                r["leases"].as_array().is_some_and(|l| l.iter().any(|id| *id == token.lease.id.as_str()))
            };
            records.of("leases.ended").into_iter().filter(names).count()
        };
        let all = |records: &Records| self.tokens.iter().all(|token| named(records, token) > 0);
        let records = self.world.recorded("the end of each lease", all).await;
        for token in &self.tokens {
            assert_eq!(named(&records, token), 1, "{}", token.lease.id);
        }
        records
    }
}

// ---------- reports ----------

// Proves law 27.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_of_any_outcome_ends_every_credential_of_the_job() {
    for outcome in [Outcome::Completed, Outcome::Failed, Outcome::Interrupted, Outcome::Lost] {
        let mut s = scene().await;
        let answer = s.launcher.end(&s.worker.job, 1, outcome).await.unwrap().into_inner();
        assert_eq!(answer.ending.unwrap().behind, 2);
        let job = answer.job.unwrap();
        assert_eq!((job.state(), job.outcome()), (JobState::Closed, outcome));
        s.all_dead().await;
        s.other_lives().await;
        assert_eq!(s.notice().await.kind(), Kind::Revoked);
        s.nothing_more("JOB_CLOSED").await;
        let records = s.recorded_once().await;
        let ended = records.one("attempt.ended");
        assert_eq!(ended["outcome"], outcome.as_str_name().trim_start_matches("OUTCOME_").to_lowercase());
        assert_eq!(ended["ending"]["behind"], 2);
    }
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_job_ends_with_all_of_its_credentials() {
    let mut s = scene().await;
    let request =
        v1::CloseJobRequest { job: s.worker.job.clone(), outcome: 0, reason: "no longer wanted".into() };
    let answer = s.launcher.jobs().close_job(request).await.unwrap().into_inner();
    assert_eq!(answer.job.unwrap().outcome(), Outcome::Cancelled);
    s.all_dead().await;
    s.other_lives().await;
    assert!(s.notice().await.message.contains("no longer wanted"));
    s.nothing_more("JOB_CLOSED").await;
    s.recorded_once().await;
}

/// The wrapper of a member that only `join` names reports for itself.
// Proves law 27.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_ends_itself_and_with_it_an_attempt_of_one() {
    let s = scene().await;
    let answer = s.worker.end_self(Outcome::Completed).await.unwrap().into_inner();
    assert_eq!(answer.job.unwrap().outcome(), Outcome::Completed);
    s.all_dead().await;
    s.other_lives().await;
    s.recorded_once().await;
}

// Proves law 31b.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_cannot_end_another_or_the_attempt_or_the_job() {
    let world = World::start().await;
    let two = v1::Members { join: vec![WORKER.into(), OTHER_WORKER.into()], expect: 2, ..Default::default() };
    let first = world.working_on(v1::JobSpec { members: Some(two), ..spec() }, WORKER).await;
    let second = Worker::join(world.client(OTHER_WORKER).await, &first.job, 1, "rank-1", "").await.unwrap();
    let token = first.issue(Half::Reading).await;
    let report = |instance: &str| v1::EndAttemptRequest {
        job: first.job.clone(),
        attempt: 1,
        outcome: Outcome::Failed as i32,
        instance: instance.into(),
        session_secret: second.secret.clone(),
        ..Default::default()
    };
    let mut jobs = second.client.jobs();
    for instance in ["rank-0", ""] {
        let no = refused(jobs.end_attempt(report(instance)).await);
        assert_eq!(no.code, Code::PermissionDenied, "{instance}: {no:?}");
    }
    let close = v1::CloseJobRequest { job: first.job.clone(), outcome: 0, reason: "mine".into() };
    refused(jobs.close_job(close).await).is(Code::PermissionDenied, "POLICY_DENIED");
    let drain = v1::DrainAttemptRequest { job: first.job.clone(), attempt: 1, ..Default::default() };
    refused(jobs.drain_attempt(drain).await).is(Code::PermissionDenied, "POLICY_DENIED");
    token.is_live(&world.client(GATEWAY).await).await;
    // It may report its own end, and the other member goes on.
    let done = second.end_self(Outcome::Completed).await.unwrap().into_inner();
    assert_eq!(done.job.unwrap().state(), JobState::Running);
    token.is_live(&world.client(GATEWAY).await).await;
}

// ---------- loss ----------

// Proves law 30.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_stream_ends_leases_and_the_member_may_return() {
    let mut s = scene().await;
    s.worker.stream = None;
    eventually("the loss", async || !s.tokens[0].seen_by(&s.gateway).await.active).await;
    s.all_dead().await;
    s.other_lives().await;
    let attempt = &s.launcher.job(&s.worker.job).await.attempts[0];
    assert_eq!(attempt.state(), v1::AttemptState::Suspended);
    assert_eq!(attempt.members[0].state(), v1::MemberState::Away);
    s.nothing_more("NOT_JOINED").await;
    // No other process can come back in its place. It comes back itself, and gets new leases, never the old ones.
    let thief = Worker::join(s.worker.client.clone(), &s.worker.job, 1, "rank-0", "").await.err().unwrap();
    Refused::of(&thief).is(Code::AlreadyExists, "INSTANCE_TAKEN");
    s.worker.rejoin().await.unwrap();
    s.worker.keep_alive().await;
    let fresh = s.worker.issue(Half::Reading).await;
    fresh.is_live(&s.gateway).await;
    s.all_dead_but_one().await;
    assert_eq!(s.launcher.job(&s.worker.job).await.attempts[0].state(), v1::AttemptState::Running);
    s.recorded_once().await;
}

impl Scene {
    async fn all_dead_but_one(&self) {
        self.counted(1).await;
        for token in &self.tokens {
            token.is_dead(&self.gateway, "LEASE_ENDED").await;
        }
    }
}

// Proves law 30.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stream_before_the_first_is_dropped_costs_nothing() {
    let mut s = scene().await;
    let second = s.worker.open_stream().await.unwrap();
    s.worker.stream = Some(second);
    // If the second is still answered after the first was lost, the daemon has seen that loss.
    for _ in 0..20 {
        s.worker.beat().await;
    }
    for token in &s.tokens {
        token.is_live(&s.gateway).await;
    }
    let records = s.world.records().await;
    assert!(records.of("member.away").is_empty());
}

// Proves law 30.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missed_beats_end_leases_within_the_window() {
    let mut s = scene().await;
    let took = s
        .world
        .time()
        .pass_until("the loss of a member without beats", Duration::from_secs(60), async || {
            !s.tokens[0].seen_by(&s.gateway).await.active
        })
        .await;
    assert!(took > Duration::from_secs(15) && took <= Duration::from_secs(17), "{took:?}");
    s.all_dead().await;
    assert_eq!(s.notice().await.kind(), Kind::Reconnect);
    // The other one missed its beats too.
    let records = s.world.recorded("both losses", |r| r.of("member.away").len() >= 2).await;
    assert_eq!(records.of("member.away").len(), 2);
    assert!(records.of("member.away")[0]["detail"].as_str().unwrap().contains("beats"));
}

/// A daemon that was stopped, or whose machine was, sees its clock jump, and has read no beats meanwhile.
// Proves law 30.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_stood_still_calls_nobody_lost_for_it() {
    let mut s = scene().await;
    for _ in 0..3 {
        s.world.time().advance(Duration::from_secs(60));
        // The reaper checks before any beat is read, because it wakes first.
        s.world.time().settled().await;
        s.worker.beat().await;
        s.other.beat().await;
        s.world.time().pass(Duration::from_secs(3)).await;
    }
    s.worker.beat().await;
    for token in &s.tokens {
        token.is_live(&s.gateway).await;
    }
    assert!(s.world.records().await.of("member.away").is_empty());
    // The stall is subtracted only once: a member that is silent afterwards is lost as usual.
    let took = s
        .world
        .time()
        .pass_until("the loss of a member without beats", Duration::from_secs(60), async || {
            !s.tokens[0].seen_by(&s.gateway).await.active
        })
        .await;
    assert!(took <= Duration::from_secs(17), "{took:?}");
}

/// A stream that its client does not read outlives the loss of its member. Its late end does not count as the loss of
/// the next stream.
// Proves law 30.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_late_end_of_an_old_stream_harms_no_returned_member() {
    let mut s = scene().await;
    s.worker.client = s.world.narrow_client(WORKER).await;
    s.worker.keep_alive().await;
    let mut stuck = s.worker.stream.take().unwrap();
    stuck.flood(600).await;
    s.world
        .time()
        .pass_until("its loss", Duration::from_secs(60), async || {
            !s.tokens[0].seen_by(&s.gateway).await.active
        })
        .await;
    s.worker.client = s.world.client(WORKER).await;
    s.worker.rejoin().await.unwrap();
    s.worker.keep_alive().await;
    let fresh = s.worker.issue(Half::Reading).await;
    stuck.drained().await;
    for _ in 0..20 {
        s.worker.beat().await;
    }
    fresh.is_live(&s.gateway).await;
    // It is watched like any other member: without beats it is lost again.
    s.world
        .time()
        .pass_until("its second loss", Duration::from_secs(60), async || {
            !fresh.seen_by(&s.gateway).await.active
        })
        .await;
}

// Proves law 30.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_beats_is_not_lost() {
    let mut s = scene().await;
    for _ in 0..12 {
        s.worker.beat().await;
        s.world.time().pass(Duration::from_secs(4)).await;
    }
    s.worker.beat().await;
    s.tokens[0].is_live(&s.gateway).await;
}

// Proves law 30.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stays_away_is_lost_with_its_attempt() {
    let world = World::with(|s| s.lease = "rejoin = \"30s\"".into()).await;
    let mut s = scene_with(world, spec()).await;
    s.worker.stream = None;
    eventually("the loss", async || !s.tokens[0].seen_by(&s.gateway).await.active).await;
    let job = s.worker.job.clone();
    s.world
        .time()
        .pass_until("its loss", Duration::from_secs(60), async || {
            s.launcher.job(&job).await.state() == JobState::Closed
        })
        .await;
    assert_eq!(s.launcher.job(&job).await.outcome(), Outcome::Lost);
    Refused::of(&s.worker.rejoin().await.unwrap_err()).is(Code::FailedPrecondition, "JOB_CLOSED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_goodbye_leaves_and_ends_the_members_leases() {
    let mut s = scene().await;
    s.worker.stream.take().unwrap().goodbye().await;
    eventually("the goodbye", async || !s.tokens[0].seen_by(&s.gateway).await.active).await;
    s.all_dead().await;
    s.nothing_more("NOT_JOINED").await;
    let records = s.recorded_once().await;
    assert!(records.of("member.away").is_empty());
    records.one("member.left");
}

// ---------- time ----------

// Proves law 09.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_at_its_deadline_however_late_the_clean_up_is() {
    let s = scene().await;
    let life = Duration::from_secs(300);
    s.world.time().advance(life - Duration::from_millis(1));
    // The beats are late as well. Send one, so that the member is not the reason.
    s.tokens[0].is_live(&s.gateway).await;
    s.world.time().advance(Duration::from_millis(1));
    let seen = s.tokens[0].seen_by(&s.gateway).await;
    assert!(!seen.active, "a lease was good at its deadline");
    assert!(
        ["TOKEN_EXPIRED", "LEASE_EXPIRED", "LEASE_ENDED"].contains(&seen.reason.as_str()),
        "{}",
        seen.reason
    );
    let listed = v1::GetLeaseRequest { lease: s.tokens[0].lease.id.clone() };
    let operator = s.world.client(OPERATOR).await;
    let lease = operator.operators().get_lease(listed).await.unwrap().into_inner().lease.unwrap();
    assert_eq!(lease.state, "ended", "an expired lease is shown as live");
}

// Proves law 26.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expiry_is_recorded_and_frees_its_place() {
    let mut s = scene().await;
    let job = s.worker.job.clone();
    for _ in 0..62 {
        s.worker.beat().await;
        s.other.beat().await;
        s.world.time().pass(Duration::from_secs(5)).await;
    }
    eventually("the expiry", async || s.launcher.job(&job).await.live_leases == 0).await;
    let records = s.recorded_once().await;
    let causes: Vec<_> = records.of("leases.ended").iter().map(|r| r["cause"].clone()).collect();
    assert!(causes.iter().all(|c| *c == "expired"), "{causes:?}");
    // The member is still there and asks again.
    s.worker.issue(Half::Reading).await.is_live(&s.gateway).await;
}

// Proves law 12.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stepping_the_wall_clock_lengthens_no_lease() {
    let s = scene().await;
    let hour = Duration::from_secs(3_600);
    let now = s.world.clock.now().wall;
    s.world.time().set_wall(leasehold::clock::Wall(now.0 - 3_600_000));
    s.world.time().advance(Duration::from_secs(301));
    assert!(
        !s.tokens[0].seen_by(&s.gateway).await.active,
        "a wall clock that was set back lengthened a lease"
    );
    let s = scene().await;
    s.world.time().set_wall(s.world.clock.now().wall.plus(hour));
    assert!(
        !s.tokens[0].seen_by(&s.gateway).await.active,
        "a lease outlived a wall clock that was set forward"
    );
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_at_its_maximum_duration() {
    let world = World::start().await;
    let short = v1::JobSpec { max_duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }), ..spec() };
    let mut s = scene_with(world, short).await;
    assert!(s.tokens[0].answer.shortened_by.iter().any(|w| w.contains("end of the job")));
    let job = s.worker.job.clone();
    for _ in 0..12 {
        s.worker.beat().await;
        s.other.beat().await;
        s.world.time().pass(Duration::from_secs(5)).await;
    }
    s.world.time().advance(Duration::from_secs(1));
    eventually("the end", async || s.launcher.job(&job).await.state() == JobState::Closed).await;
    assert_eq!(s.launcher.job(&job).await.outcome(), Outcome::Interrupted);
    s.all_dead_for_time().await;
    s.other_lives().await;
    s.nothing_more("JOB_CLOSED").await;
}

impl Scene {
    async fn all_dead_for_time(&self) {
        for token in &self.tokens {
            assert!(!token.seen_by(&self.gateway).await.active);
        }
    }
}

// Proves law 04.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_ends_a_lease_and_says_so() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let other = beside(&world).await;
    let token = other.issue(Half::Reading).await;
    assert!(
        token.answer.shortened_by.iter().any(|w| w.contains("retention")),
        "{:?}",
        token.answer.shortened_by
    );
    world.time().advance(Duration::from_secs(120));
    assert!(!token.seen_by(&gateway).await.active);
}

// ---------- revocation ----------

/// Which part of the scene a revocation ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ends {
    reading: bool,
    writing: bool,
    other: bool,
}
const BOTH: Ends = Ends { reading: true, writing: true, other: false };
const READING: Ends = Ends { reading: true, writing: false, other: false };
const WRITING: Ends = Ends { reading: false, writing: true, other: false };
const ALL: Ends = Ends { reading: true, writing: true, other: true };

// Proves law 23.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_ends_what_is_behind_its_name() {
    let cases: [(&str, &str, Ends, u64); 14] = [
        ("job:JOB", OPERATOR, BOTH, 2),
        ("attempt:JOB/1", OPERATOR, BOTH, 2),
        ("attempt:JOB/1/reading", OPERATOR, READING, 1),
        ("member:JOB/1/rank-0", OPERATOR, BOTH, 2),
        ("lease:LEASE", OPERATOR, READING, 1),
        ("identity:spiffe://k8s.acme.example/ns/ml/job/tuner", OPERATOR, BOTH, 2),
        ("identity:spiffe://k8s.acme.example/ns/ci/sa/launcher", OPERATOR, BOTH, 2),
        ("dataset:acme/tickets@v3", OPERATOR, READING, 1),
        ("dataset:acme/tickets", OPERATOR, READING, 1),
        // The writing half too: it tunes that model.
        ("model:acme/base-7b@2026.10", OPERATOR, BOTH, 2),
        ("checkpoint:acme/support-lora", OPERATOR, WRITING, 1),
        ("tenant:acme", OPERATOR, ALL, 3),
        ("domain:k8s.acme.example", PLATFORM, ALL, 3),
        ("human:ada", PLATFORM, BOTH, 2),
    ];
    for (name, who, ends, behind) in cases {
        let s = scene().await;
        let name = name.replace("JOB", &s.worker.job).replace("LEASE", &s.tokens[0].lease.id);
        let operator = s.world.client(who).await;
        let dry = v1::RevokeRequest {
            name: name.clone(),
            reason: "what if".into(),
            dry_run: true,
            ..Default::default()
        };
        let dry = operator.operators().revoke(dry).await.unwrap().into_inner();
        assert_eq!(dry.ending.unwrap().behind, behind, "{name}: dry run");
        s.tokens[0].is_live(&s.gateway).await;

        let done = operator.revoke(&name).await.unwrap().into_inner();
        let ending = done.ending.unwrap();
        assert_eq!(ending.behind, behind, "{name}");
        assert!(ending.seq > 0, "{name}");
        let now = Ends {
            reading: !s.tokens[0].seen_by(&s.gateway).await.active,
            writing: !s.tokens[1].seen_by(&s.gateway).await.active,
            other: !s.others.seen_by(&s.gateway).await.active,
        };
        assert_eq!(now, ends, "{name}");
        let waited = v1::WaitDurableRequest { receipt: ending.receipt };
        operator.operators().wait_durable(waited).await.unwrap();
        let records = s.world.records().await;
        let told = records.all.iter().filter(|r| r["by"]["spiffe_id"] == who).count();
        assert!(told >= 1, "{name}: nobody is named in the ledger");
        // A second revocation changes nothing, and gets an answer.
        if !name.starts_with("lease:") {
            operator.revoke(&name).await.unwrap();
        }
    }
}

// Proves law 22.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_is_idempotent_and_the_unknown_is_not_found() {
    let s = scene().await;
    let operator = s.world.client(OPERATOR).await;
    let first = operator.revoke(TICKETS).await.unwrap().into_inner().ending.unwrap();
    let again = operator.revoke(TICKETS).await.unwrap().into_inner().ending.unwrap();
    assert_eq!(first.seq, again.seq);
    let lease = format!("lease:{}", s.tokens[1].lease.id);
    let first = operator.revoke(&lease).await.unwrap().into_inner().ending.unwrap();
    let again = operator.revoke(&lease).await.unwrap().into_inner().ending.unwrap();
    assert_eq!((first.seq, first.behind), (again.seq, 1));
    let records = s.world.records().await;
    assert_eq!(records.of("revoked").len(), 2);
    let (job, lease) = (format!("job:{}", JobId(7)), format!("lease:{}", LeaseId(7)));
    for (name, reason) in [(job.as_str(), "JOB_NOT_FOUND"), (lease.as_str(), "LEASE_NOT_FOUND")] {
        let first = refused(operator.revoke(name).await);
        assert_eq!(refused(operator.revoke(name).await), first);
        assert_eq!(first.reason, reason, "{}", first.text);
    }
    // Every other valid name is lowered, although no lease is behind it yet.
    let done = operator.revoke("dataset:acme/not-yet@v1").await.unwrap().into_inner().ending.unwrap();
    assert_eq!(done.behind, 0);
}

// Proves law 25.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_revocations_at_once_produce_one_ending_and_one_record() {
    let s = scene().await;
    let (a, b) = (s.world.client(OPERATOR).await, s.world.client(PLATFORM).await);
    let (one, two) = tokio::join!(a.revoke(TICKETS), b.revoke(TICKETS));
    let (one, two) = (one.unwrap().into_inner().ending.unwrap(), two.unwrap().into_inner().ending.unwrap());
    assert_eq!(one.seq, two.seq);
    let records = s.world.records().await;
    assert_eq!(records.of("revoked").len(), 1);
    assert_eq!(records.of("leases.ended").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_identity_may_come_back_and_a_locked_one_may_not() {
    let mut s = scene().await;
    let operator = s.world.client(OPERATOR).await;
    let name = format!("identity:{WORKER}");
    let notes = operator.revoke(&name).await.unwrap().into_inner().notes.join(" ");
    assert!(notes.contains("only a lock keeps it out"), "{notes}");
    assert_eq!(s.notice().await.kind(), Kind::Revoked);
    s.nothing_more("NOT_JOINED").await;
    let back = Worker::join(s.worker.client.clone(), &s.worker.job, 1, "rank-0-again", "").await.unwrap();
    let fresh = back.issue(Half::Reading).await;
    fresh.is_live(&s.gateway).await;

    operator.lock(&name).await.unwrap();
    assert!(!fresh.seen_by(&s.gateway).await.active);
    let no = Worker::join(s.worker.client.clone(), &s.worker.job, 1, "rank-0-third", "").await.err().unwrap();
    Refused::of(&no).is(Code::PermissionDenied, "LOCKED");
}

// ---------- leases ----------

// Proves law 16.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_over_cannot_be_renewed_and_says_how_it_ended() {
    let mut s = scene().await;
    let operator = s.world.client(OPERATOR).await;
    operator.revoke(TICKETS).await.unwrap();
    let no = refused(s.worker.renew(&s.tokens[0].lease.id).await);
    no.is(Code::FailedPrecondition, "LEASE_ENDED");
    assert!(no.text.contains("revoked"), "{}", no.text);
    let shown = |l: &Token| v1::GetLeaseRequest { lease: l.lease.id.clone() };
    let before = operator.operators().get_lease(shown(&s.tokens[0])).await.unwrap().into_inner();
    refused(s.worker.renew(&s.tokens[0].lease.id).await).is(Code::FailedPrecondition, "LEASE_ENDED");
    let after = operator.operators().get_lease(shown(&s.tokens[0])).await.unwrap().into_inner();
    assert_eq!(before, after, "a refused renewal changed the lease");
    for _ in 0..61 {
        s.worker.beat().await;
        s.world.time().pass(Duration::from_secs(5)).await;
    }
    refused(s.worker.renew(&s.tokens[1].lease.id).await).is(Code::FailedPrecondition, "LEASE_EXPIRED");
    // About the lease of another member it learns nothing, whether that lease is live, has ended or never existed.
    let absent = refused(s.worker.renew(&LeaseId(7).to_string()).await);
    absent.is(Code::NotFound, "LEASE_NOT_FOUND");
    assert_eq!(refused(s.worker.renew(&s.others.lease.id).await), absent);
    s.other.release(&s.others.lease.id).await.ok();
    assert_eq!(refused(s.worker.renew(&s.others.lease.id).await), absent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_given_back_is_over_and_twice_is_once() {
    let s = scene().await;
    let first = s.worker.release(&s.tokens[0].lease.id).await.unwrap().into_inner().ending.unwrap();
    s.tokens[0].is_dead(&s.gateway, "LEASE_ENDED").await;
    s.tokens[1].is_live(&s.gateway).await;
    assert_eq!(first.behind, 1);
    assert!(!first.receipt.is_empty(), "nobody can wait until it is on disk");
    let operator = s.world.client(OPERATOR).await;
    let wait = v1::WaitDurableRequest { receipt: first.receipt.clone() };
    operator.operators().wait_durable(wait).await.unwrap();
    let again = s.worker.release(&s.tokens[0].lease.id).await.unwrap().into_inner().ending.unwrap();
    assert_eq!((again.seq, again.behind), (first.seq, first.behind));
    let records = s.world.records().await;
    let name = format!("lease:{}", s.tokens[0].lease.id);
    assert_eq!(records.of("lowered").iter().filter(|r| r["name"] == name).count(), 1);
    refused(s.worker.release(&s.others.lease.id).await).is(Code::NotFound, "LEASE_NOT_FOUND");
    s.others.is_live(&s.gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_one_lease_reaches_its_member_at_once() {
    let mut s = scene().await;
    let operator = s.world.client(OPERATOR).await;
    operator.revoke(&format!("lease:{}", s.tokens[0].lease.id)).await.unwrap();
    assert_eq!(s.notice().await.kind(), Kind::Reissue);
    s.tokens[1].is_live(&s.gateway).await;
    operator.lock(&format!("lease:{}", s.tokens[1].lease.id)).await.unwrap();
    assert_eq!(s.notice().await.kind(), Kind::Reissue);
    s.worker.issue_both().await;
}

// ---------- locks ----------

// Proves law 13.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_from_before_a_lock_stays_dead_after_the_unlock() {
    let mut s = scene().await;
    let operator = s.world.client(OPERATOR).await;
    let locked = operator.lock(TICKETS).await.unwrap().into_inner();
    assert_eq!((locked.ending.unwrap().behind, locked.lock.unwrap().by), (1, OPERATOR.to_owned()));
    s.tokens[0].is_dead(&s.gateway, "LEASE_ENDED").await;
    s.tokens[1].is_live(&s.gateway).await;
    assert_eq!(s.notice().await.kind(), Kind::Reissue);
    let no = refused(s.worker.try_issue(Half::Reading).await);
    no.is(Code::PermissionDenied, "LOCKED");
    assert!(no.facts["why"].contains("under investigation") && no.facts["fix"].contains("unlock"), "{no:?}");
    // A job with the locked data can neither be created nor begun.
    let no = refused(s.launcher.create(v1::JobSpec { name: "next".into(), ..spec() }, "next").await);
    no.is(Code::PermissionDenied, "LOCKED");

    operator.unlock(TICKETS).await.unwrap();
    s.tokens[0].is_dead(&s.gateway, "LEASE_ENDED").await;
    s.worker.issue(Half::Reading).await.is_live(&s.gateway).await;
    s.tokens[0].is_dead(&s.gateway, "LEASE_ENDED").await;
    refused(operator.unlock(TICKETS).await).is(Code::NotFound, "LOCK_NOT_FOUND");
}

// Proves law 31.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_lock_ends_what_is_below_it() {
    let mut s = scene().await;
    let platform = s.world.client(PLATFORM).await;
    let prefix = "identity-prefix:spiffe://k8s.acme.example/ns/ml/";
    let dry =
        v1::LockRequest { name: prefix.into(), reason: "r".into(), dry_run: true, ..Default::default() };
    let would = platform.operators().lock(dry).await.unwrap().into_inner().ending.unwrap().behind;
    let did = platform.lock(prefix).await.unwrap().into_inner().ending.unwrap().behind;
    assert_eq!((would, did), (3, 3));
    assert!(!s.tokens[0].seen_by(&s.gateway).await.active);
    assert!(!s.others.seen_by(&s.gateway).await.active);
    refused(s.worker.try_issue(Half::Reading).await).is(Code::PermissionDenied, "LOCKED");
    platform.unlock(prefix).await.unwrap();
    // Its stream ended with the lock, so it was away.
    s.worker.rejoin().await.unwrap();
    s.worker.issue(Half::Reading).await.is_live(&s.gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_with_a_time_lifts_itself_and_raises_nothing() {
    let s = scene().await;
    let operator = s.world.client(OPERATOR).await;
    let request = v1::LockRequest {
        name: TICKETS.into(),
        reason: "for a minute".into(),
        ttl: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        ..Default::default()
    };
    operator.operators().lock(request).await.unwrap();
    s.world.time().advance(Duration::from_millis(9_999));
    refused(s.worker.try_issue(Half::Reading).await).is(Code::PermissionDenied, "LOCKED");
    s.world.time().advance(Duration::from_millis(1));
    s.worker.issue(Half::Reading).await.is_live(&s.gateway).await;
    s.tokens[0].is_dead(&s.gateway, "LEASE_ENDED").await;
}

// ---------- attempts ----------

fn twice() -> v1::JobSpec {
    let members = v1::Members { join: vec![WORKER.into()], attempts: 2, ..Default::default() };
    v1::JobSpec { members: Some(members), ..spec() }
}

// Proves law 29.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_attempt_ends_the_one_before() {
    let mut s = scene_with(World::start().await, twice()).await;
    let began = s.launcher.begin(&s.worker.job, "run-2").await.unwrap().into_inner();
    assert_eq!(began.attempt.unwrap().number, 2);
    s.all_dead().await;
    s.other_lives().await;
    assert_eq!(s.notice().await.reason, "ATTEMPT_STALE");
    s.nothing_more("ATTEMPT_STALE").await;
    let late = refused(s.worker.end_self(Outcome::Completed).await);
    late.is(Code::FailedPrecondition, "ATTEMPT_STALE");
    assert!(late.facts["fix"].contains("stop"));
    let again = refused(s.launcher.end(&s.worker.job, 1, Outcome::Completed).await);
    again.is(Code::FailedPrecondition, "ATTEMPT_STALE");
    assert_eq!(s.launcher.job(&s.worker.job).await.state(), JobState::Running);
    let next = Worker::join(s.worker.client.clone(), &s.worker.job, 2, "rank-0", "").await.unwrap();
    next.issue(Half::Reading).await.is_live(&s.gateway).await;
    s.recorded_once().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_failed_attempt_closes_the_job() {
    let s = scene_with(World::start().await, twice()).await;
    let answer = s.launcher.end(&s.worker.job, 1, Outcome::Failed).await.unwrap().into_inner();
    assert_eq!(answer.job.unwrap().state(), JobState::Ready);
    s.all_dead().await;
    s.nothing_more("ATTEMPT_ENDED").await;
    refused(s.launcher.begin(&s.worker.job, "run-1").await).is(Code::FailedPrecondition, "ATTEMPT_KEY_USED");
    s.launcher.begin(&s.worker.job, "run-2").await.unwrap();
    let answer = s.launcher.end(&s.worker.job, 2, Outcome::Failed).await.unwrap().into_inner();
    assert_eq!(answer.job.unwrap().outcome(), Outcome::Failed);
    refused(s.launcher.begin(&s.worker.job, "run-3").await).is(Code::FailedPrecondition, "JOB_CLOSED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_reading_then_writing_then_the_attempt() {
    let mut s = scene().await;
    let request = v1::DrainAttemptRequest {
        job: s.worker.job.clone(),
        attempt: 1,
        grace: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        reason: "spot notice".into(),
        ..Default::default()
    };
    let answer = s.launcher.jobs().drain_attempt(request.clone()).await.unwrap().into_inner();
    let now = i64::try_from(NOW.seconds()).unwrap();
    assert_eq!(answer.reading_ends.unwrap().seconds - now, 10);
    assert_eq!(answer.writing_ends.unwrap().seconds - now, 30);
    let notice = s.notice().await;
    assert_eq!((notice.kind(), notice.writing_ends), (Kind::Drain, answer.writing_ends));
    // It gets nothing new to read, and can write checkpoints only until the end of the grace.
    refused(s.worker.try_issue(Half::Reading).await).is(Code::FailedPrecondition, "ATTEMPT_DRAINING");
    let last = s.worker.issue(Half::Writing).await;
    assert_eq!(last.lease.expires, answer.writing_ends);
    assert!(last.answer.shortened_by.iter().any(|w| w.contains("drain")), "{:?}", last.answer.shortened_by);
    refused(s.launcher.begin(&s.worker.job, "run-2").await);

    let time = s.world.time();
    let reading_ended = time
        .pass_until("the end of reading", Duration::from_secs(20), async || {
            !s.tokens[0].seen_by(&s.gateway).await.active
        })
        .await;
    assert!(reading_ended <= Duration::from_secs(11), "{reading_ended:?}");
    assert!(s.tokens[1].seen_by(&s.gateway).await.active && last.seen_by(&s.gateway).await.active);
    s.worker.beat().await;
    let time = s.world.time();
    time.pass(Duration::from_secs(10)).await;
    s.worker.beat().await;
    let time = s.world.time();
    let job = s.worker.job.clone();
    time.pass_until("the end of the attempt", Duration::from_secs(20), async || {
        s.launcher.job(&job).await.state() == JobState::Closed
    })
    .await;
    let ended = s.launcher.job(&s.worker.job).await;
    assert_eq!(ended.outcome(), Outcome::Interrupted);
    assert!(!s.tokens[1].seen_by(&s.gateway).await.active && !last.seen_by(&s.gateway).await.active);
    s.recorded_once().await;
}

// ---------- the daemon ----------

// Proves law 39, law 39a.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_never_widens_access_and_the_member_goes_on() {
    let mut s = scene().await;
    let operator = s.world.client(OPERATOR).await;
    operator.lock("dataset:acme/patients@v1").await.unwrap();
    drop(operator);
    let stream = s.worker.stream.take().unwrap();
    s.world.restart().await;
    drop(stream);
    // The leases are invalid: the key and the epoch are new.
    let gateway = s.world.client(GATEWAY).await;
    for token in &s.tokens {
        token.is_dead(&gateway, "TOKEN_EPOCH").await;
    }
    // The job is there, but suspended: the member gets nothing until it has joined again.
    let launcher = s.world.client(LAUNCHER).await;
    let job = launcher.job(&s.worker.job).await;
    assert_eq!((job.state(), job.attempts[0].state()), (JobState::Running, v1::AttemptState::Suspended));
    assert_eq!(job.live_leases, 0);
    s.worker.client = s.world.client(WORKER).await;
    refused(s.worker.try_issue(Half::Reading).await).is(Code::FailedPrecondition, "NOT_JOINED");
    s.worker.rejoin().await.unwrap();
    s.worker.keep_alive().await;
    assert_eq!(s.worker.joined.epoch, 2);
    s.worker.issue(Half::Reading).await.is_live(&gateway).await;
    for token in &s.tokens {
        token.is_dead(&gateway, "TOKEN_EPOCH").await;
    }
    // The lock is still there, and so are the objects that were created with the caller's keys.
    let operator = s.world.client(OPERATOR).await;
    let locks =
        operator.operators().list_locks(v1::ListLocksRequest::default()).await.unwrap().into_inner().locks;
    assert_eq!(locks.len(), 1);
    assert_eq!((locks[0].name.as_str(), locks[0].by.as_str()), ("dataset:acme/patients@v1", OPERATOR));
    let same = launcher.create(spec(), "key of support-lora").await.unwrap().into_inner();
    assert_eq!((same.created, same.job.unwrap().id), (false, s.worker.job.clone()));
    let again = launcher.begin(&s.worker.job, "run-1").await.unwrap().into_inner();
    assert_eq!(again.attempt.unwrap().number, 1);
    let records = s.world.records().await;
    assert_eq!(records.report.epochs, 2);
}

// Proves law 39.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_over_before_a_restart_is_over_after_it() {
    let mut s = scene_with(World::start().await, twice()).await;
    s.launcher.end(&s.worker.job, 1, Outcome::Failed).await.unwrap();
    let seq_before = s.world.daemon().broker.fences().seq();
    s.world.restart().await;
    assert!(s.world.daemon().broker.fences().seq() >= seq_before, "the count of lowerings went back");
    let launcher = s.world.client(LAUNCHER).await;
    refused(launcher.begin(&s.worker.job, "run-1").await).is(Code::FailedPrecondition, "ATTEMPT_KEY_USED");
    let began = launcher.begin(&s.worker.job, "run-2").await.unwrap().into_inner();
    assert_eq!(began.attempt.unwrap().number, 2);
    launcher.end(&s.worker.job, 2, Outcome::Completed).await.unwrap();
    s.world.restart().await;
    let launcher = s.world.client(LAUNCHER).await;
    let job = launcher.job(&s.worker.job).await;
    assert_eq!((job.state(), job.outcome()), (JobState::Closed, Outcome::Completed));
    refused(launcher.begin(&s.worker.job, "run-3").await).is(Code::FailedPrecondition, "JOB_CLOSED");
}
