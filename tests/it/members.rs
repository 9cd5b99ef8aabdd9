//! The members of one attempt: who is a member, how each of them ends, and that none speaks for another.

use std::time::Duration;

use leasehold::{
    internals::broker::{Caller, MemberSession, NoticeKind},
    link::{Acceptor, Alpn, Connector, Endpoint, Protocol, ServeOptions, serve},
    name::AttemptNumber,
    proto::v1::{self, AttemptState, Half, JobState, MemberState, Outcome, notice::Kind},
    reason::Reason,
    secret::Secret,
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::harness::*;

/// Several members of one attempt, each with a stream and a credential of each half. Members with an odd number have
/// another identity.
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

    /// Asserts that both credentials of a member are valid, or that neither is.
    async fn lives(&self, i: usize, live: bool) {
        for token in &self.tokens[i] {
            let seen = token.seen_by(&self.gateway).await;
            assert_eq!(seen.active, live, "rank-{i}, {}: {}", token.lease.half, seen.reason);
        }
    }

    /// Advances the clock while all members beat.
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
async fn the_last_member_to_end_completes_the_job() {
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
async fn a_failure_is_of_all_and_an_interruption_of_one() {
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

/// Processes that share a SPIFFE ID, in one attempt or in two jobs, are distinguished only by their sessions.
// Proves law 31b.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_proves_its_session_to_end_or_drain_itself() {
    let c = crew(crew_of(4), 3).await;
    // rank-2 has the SVID of rank-0.
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
    // It may not speak for all members either, only for itself.
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

/// A caller that calls the broker directly, as a connection of this identity would.
async fn caller(world: &World, id: &str) -> Caller {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::new(&listener.local_addr().unwrap().to_string(), id.parse().unwrap()).unwrap();
    let source = || world.svid(id).source(world.authority(id), world.clock.now().wall);
    let acceptor = Acceptor::new(source(), world.clock.clone(), Protocol::Grpc);
    let nothing = tower::service_fn(async |_: http::Request<hyper::body::Incoming>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
    });
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, acceptor, nothing, ServeOptions::default(), stop.clone()));
    let connector = Connector::new(source(), world.clock.clone(), endpoint);
    let peer = connector.connect(Alpn::Http2).await.unwrap().server;
    stop.cancel();
    soon("the end of the listener", serving).await.unwrap();
    world.daemon().broker.access.caller(&peer).unwrap()
}

/// A stream may end a moment after another process has joined in its member's place.
// Proves law 31b.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_member_does_not_end_the_one_in_its_place() {
    let mut c = crew(crew_of(3), 2).await;
    let (broker, before) = (c.world.daemon().broker.clone(), &c.workers[0]);
    let session = MemberSession {
        job: before.job.parse().unwrap(),
        attempt: AttemptNumber::FIRST,
        instance: before.instance.parse().unwrap(),
        secret: Secret::from_bytes(&before.secret).unwrap(),
    };
    let caller = caller(&c.world, WORKER).await;
    let [leaving, mut waiting] = [(), ()].map(|()| broker.members.attach(&caller, &session).unwrap());
    before.end_self(Outcome::Interrupted).await.unwrap();
    let (client, job) = (c.world.client(WORKER).await, before.job.clone());
    c.workers[0] = Worker::join(client, &job, 1, "rank-0", "").await.unwrap();
    c.workers[0].keep_alive().await;
    c.tokens[0] = c.workers[0].issue_both().await;
    // It hears that its session is over, and its later messages count only for itself.
    let notice = soon("a notice", waiting.notice()).await;
    assert_eq!((notice.kind, notice.reason), (NoticeKind::Revoked, Reason::NotJoined));
    leaving.goodbye();
    drop(waiting);
    for i in 0..2 {
        c.lives(i, true).await;
    }
    assert_eq!(c.world.records().await.of("member.left").len(), 1);
}

// ---------- drain of one ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_drains_and_the_others_go_on() {
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
async fn when_the_last_member_drains_the_attempt_drains() {
    let mut c = crew(crew_of(2), 2).await;
    c.workers[0].drain_self(40).await.unwrap();
    assert_eq!(c.attempt().await.state(), AttemptState::Running);
    c.live_for(4).await;
    c.workers[1].drain_self(20).await.unwrap();
    assert_eq!(c.attempt().await.state(), AttemptState::Draining);
    // The next attempt waits for it, as for any member that drains.
    let job = c.workers[0].job.clone();
    refused(c.launcher.begin(&job, "run-2").await).is(Code::FailedPrecondition, "ATTEMPT_DRAINING");
    // Each drain has its own time: the second is over before the first.
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

// ---------- whose an identity is ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_of_one_job_joins_no_other() {
    let mut world = World::start().await;
    let worker = world.working().await;
    let other = async |world: &World, name: &str| {
        let launcher = world.client(LAUNCHER).await;
        let job = launcher.create(v1::JobSpec { name: name.into(), ..spec() }, name).await.unwrap();
        let job = job.into_inner().job.unwrap().id;
        launcher.begin(&job, "run-1").await.unwrap();
        let joined = Worker::join(world.client(WORKER).await, &job, 1, "rank-0", "").await;
        joined.map_err(|e| Refused::of(&e))
    };
    let bound = |no: Refused, to: &str| {
        no.is(Code::PermissionDenied, "IDENTITY_BOUND");
        assert!(no.text.contains(to), "{}", no.text);
    };
    bound(other(&world, "second").await.err().unwrap(), &worker.job);
    let seen = world.counted("leasehold_identities_in_several_jobs_total", "kind=\"job\"").await;
    assert!(seen >= 1.0, "{seen}");
    world.restart().await;
    bound(other(&world, "third").await.err().unwrap(), &worker.job);
    // Its job is over, but an SVID from that time may still be in use.
    world.client(LAUNCHER).await.end(&worker.job, 1, Outcome::Completed).await.unwrap();
    bound(other(&world, "fourth").await.err().unwrap(), &worker.job);
    world.restart().await;
    world.time().advance(Duration::from_secs(25 * 3_600));
    world.rotate();
    bound(other(&world, "fifth").await.err().unwrap(), &worker.job);
    world.time().advance(Duration::from_secs(1));
    let joined = other(&world, "sixth").await.unwrap_or_else(|no| panic!("{}", no.text));
    // Now the identity belongs to that job.
    bound(other(&world, "seventh").await.err().unwrap(), &joined.job);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_asking_for_two_jobs_at_once_gets_one() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let mut tries = Vec::new();
    for n in 0..6 {
        let name = format!("job-{n}");
        let job = launcher.create(v1::JobSpec { name: name.clone(), ..spec() }, &name).await.unwrap();
        let job = job.into_inner().job.unwrap().id;
        launcher.begin(&job, "run-1").await.unwrap();
        let client = world.client(WORKER).await;
        tries.push(tokio::spawn(async move { Worker::join(client, &job, 1, "rank-0", "").await.is_ok() }));
    }
    let mut joined = 0;
    for one in tries {
        joined += usize::from(one.await.unwrap());
    }
    assert_eq!(joined, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_in_two_open_jobs_is_reported() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let before = world.counted("leasehold_identities_in_several_jobs_total", "kind=\"shared\"").await;
    let mut jobs = Vec::new();
    for name in ["first", "second"] {
        let members = v1::Members { join: vec![SHARED.into()], ..Default::default() };
        let spec = v1::JobSpec { name: name.into(), members: Some(members), ..spec() };
        let job = launcher.create(spec, name).await.unwrap().into_inner().job.unwrap().id;
        let ticket = launcher.begin(&job, "run-1").await.unwrap().into_inner().ticket;
        let worker = Worker::join(world.client(SHARED).await, &job, 1, "rank-0", &ticket).await.unwrap();
        jobs.push((job, ticket, worker));
    }
    let after = world.counted("leasehold_identities_in_several_jobs_total", "kind=\"shared\"").await;
    assert!(after > before);
    assert!(logged().contains("an identity is in several open jobs"));
    for (own, other) in [(0, 1), (1, 0)] {
        let notes = launcher.job(&jobs[own].0).await.notes;
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains(SHARED) && notes[0].contains(&jobs[other].0), "{notes:?}");
    }
    // The ticket of one job does not work for the other.
    let no =
        Worker::join(world.client(SHARED).await, &jobs[0].0, 1, "rank-1", &jobs[1].1).await.err().unwrap();
    Refused::of(&no).is(Code::PermissionDenied, "TICKET_REQUIRED");
    launcher.end(&jobs[1].0, 1, Outcome::Completed).await.unwrap();
    assert!(launcher.job(&jobs[0].0).await.notes.is_empty());
}

/// A token of a shared identity is valid with one certificate. A renewal binds the new token to the certificate that asks
/// for it, and never leaves it unbound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_token_is_pinned_again_at_each_renewal() {
    let world = World::start().await;
    let (launcher, gateway) = (world.client(LAUNCHER).await, world.client(GATEWAY).await);
    let members = v1::Members { join: vec![SHARED.into()], ..Default::default() };
    let job = launcher.create(v1::JobSpec { members: Some(members), ..spec() }, "k").await.unwrap();
    let job = job.into_inner().job.unwrap().id;
    let ticket = launcher.begin(&job, "run-1").await.unwrap().into_inner().ticket;
    let mut worker = Worker::join(world.client(SHARED).await, &job, 1, "rank-0", &ticket).await.unwrap();
    worker.keep_alive().await;
    let first = worker.issue(Half::Reading).await;
    assert_eq!(first.answer.binding(), v1::Binding::Certificate);
    let good_with = async |token: &str, certificate: Vec<u8>| {
        let ask = v1::IntrospectRequest {
            token: token.into(),
            presenter: SHARED.into(),
            presenter_sha256: certificate,
        };
        gateway.verifiers().introspect(ask).await.unwrap().into_inner().active
    };
    let before = worker.client.credentials.sha256().to_vec();
    worker.client = world.client(SHARED).await;
    let after = worker.client.credentials.sha256().to_vec();
    let renewed = worker.renew(&first.lease.id).await.unwrap().into_inner().token;
    assert!(good_with(&renewed, after.clone()).await && !good_with(&renewed, before).await);
    // From now on, the catalog says that the identity is for one job: an existing binding stays.
    let catalog = world.read("catalog.d/acme.toml");
    let shared = "match = \"spiffe://hpc.acme.example/slurm/ml-support/*\"\nkind  = \"workload\"";
    let changed = catalog.replace(shared, &format!("{shared}\nidentity = \"job\""));
    assert_ne!(changed, catalog);
    world.write("catalog.d/acme.toml", &changed);
    world
        .client(PLATFORM)
        .await
        .operators()
        .reload_catalog(v1::ReloadCatalogRequest::default())
        .await
        .unwrap();
    let renewed = worker.renew(&first.lease.id).await.unwrap().into_inner().token;
    assert!(good_with(&renewed, after.clone()).await);
    assert!(!good_with(&renewed, vec![7; 32]).await, "a renewal took the pin away");
    let another = worker.issue(Half::Writing).await;
    assert_eq!(another.answer.binding(), v1::Binding::Certificate);
}

// ---------- a name that the scheduler gives again ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_takes_the_instance_of_a_lost_member() {
    let mut c = crew(crew_of(2), 2).await;
    let job = c.workers[0].job.clone();
    let again = async |world: &World| Worker::join(world.client(WORKER).await, &job, 1, "rank-0", "").await;
    // It is joined, and away for a moment: the name stays its own.
    let taken = again(&c.world).await.err().unwrap();
    Refused::of(&taken).is(Code::AlreadyExists, "INSTANCE_TAKEN");
    c.workers[0].stream = None;
    eventually("its loss", async || c.attempt().await.members[0].state() == MemberState::Away).await;
    c.live_for(14).await;
    let taken = again(&c.world).await.err().unwrap();
    Refused::of(&taken).is(Code::AlreadyExists, "INSTANCE_TAKEN");
    c.live_for(4).await;
    let fresh = again(&c.world).await.unwrap_or_else(|e| panic!("{:?}", Refused::of(&e)));
    fresh.issue(Half::Reading).await.is_live(&c.gateway).await;
    // The previous process is no longer a member: it gets no credential and cannot join again.
    refused(c.workers[0].try_issue(Half::Reading).await).is(Code::PermissionDenied, "SESSION_MISMATCH");
    Refused::of(&c.workers[0].rejoin().await.err().unwrap()).is(Code::AlreadyExists, "INSTANCE_TAKEN");
    c.lives(0, false).await;
    c.lives(1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_leaver_is_unknown_until_its_end_is_reported() {
    let mut c = crew(crew_of(2), 2).await;
    let stream = c.workers[0].stream.take().unwrap();
    stream.goodbye().await;
    eventually("the goodbye", async || c.attempt().await.members[0].state() == MemberState::Left).await;
    assert_eq!(c.attempt().await.members[0].outcome(), Outcome::Unknown);
    c.lives(0, false).await;
    c.lives(1, true).await;
    let said = c.workers[0].end_self(Outcome::Completed).await.unwrap().into_inner();
    assert!(!said.conflict, "nothing was said before");
    let again = c.workers[0].end_self(Outcome::Failed).await.unwrap().into_inner();
    assert!(again.conflict, "what is said stands");
    assert_eq!(c.attempt().await.members[0].outcome(), Outcome::Completed);
    c.workers[1].end_self(Outcome::Completed).await.unwrap();
    assert_eq!(c.attempt().await.outcome(), Outcome::Completed, "it counts as any other");
}

/// If a draining process is killed, a process in its place would have more time than the drain gave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_place_of_a_draining_member_is_not_free() {
    let mut c = crew(crew_of(2), 2).await;
    c.workers[0].drain_self(60).await.unwrap();
    c.workers[0].stream = None;
    eventually("its loss", async || c.attempt().await.members[0].state() == MemberState::Away).await;
    c.live_for(20).await;
    let job = c.workers[0].job.clone();
    let again = async |world: &World| Worker::join(world.client(WORKER).await, &job, 1, "rank-0", "").await;
    let taken = again(&c.world).await.err().unwrap();
    Refused::of(&taken).is(Code::AlreadyExists, "INSTANCE_TAKEN");
    assert!(taken.message().contains("is draining: its name is free"), "{}", taken.message());
    c.live_for(45).await;
    eventually("its end", async || c.attempt().await.members[0].state() == MemberState::Left).await;
    assert_eq!(c.attempt().await.members[0].outcome(), Outcome::Interrupted);
    let fresh = again(&c.world).await.unwrap_or_else(|e| panic!("{:?}", Refused::of(&e)));
    assert_eq!(fresh.joined.member.as_ref().unwrap().writing_ends, None);
    fresh.issue(Half::Reading).await.is_live(&c.gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_all_left_silently_ends_in_time() {
    let world = World::with(|s| s.lease = "rejoin = \"30s\"".into()).await;
    let mut c = crew_in(world, crew_of(1), 1).await;
    c.workers[0].stream.take().unwrap().goodbye().await;
    eventually("the goodbye", async || c.attempt().await.members[0].state() == MemberState::Left).await;
    assert_eq!(c.attempt().await.state(), AttemptState::Suspended);
    let took = c
        .world
        .time()
        .pass_until("its end", Duration::from_secs(60), async || {
            c.attempt().await.state() == AttemptState::Ended
        })
        .await;
    assert!(took > Duration::from_secs(29) && took < Duration::from_secs(33), "{took:?}");
    let attempt = c.attempt().await;
    assert_eq!((attempt.outcome(), c.job().await.state()), (Outcome::Unknown, JobState::Ready));
    assert_eq!(attempt.members[0].outcome(), Outcome::Unknown);
    let records = c.world.records().await;
    for kind in ["member.left", "attempt.ended"] {
        assert_eq!(records.one(kind)["outcome"], "unknown");
    }
}
