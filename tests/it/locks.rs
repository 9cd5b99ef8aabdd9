//! Locks on every kind of name and on prefixes of identities, with a time and a message, over restarts.

use std::{collections::BTreeSet, time::Duration};

use leasehold::{
    name::{FenceKind, FenceName},
    proto::v1::{self, Half},
};
use tonic::{Code, Response, Status};

use crate::harness::*;

const MESSAGE: &str = "INC-2203: under investigation, ask #sec-oncall";

/// A request that a lock can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Refusable {
    Create,
    Begin,
    Join,
    Reading,
    Writing,
}
use Refusable::{Begin, Create, Join, Reading, Writing};

/// One lock: its name, and the requests that it refuses. A lock that refuses a half ends the leases of that half.
struct Row {
    name: String,
    shuts: &'static [Refusable],
}

/// One row for each kind of name, and more if a kind has more than one place in a lease.
fn rows(job: &str) -> Vec<Row> {
    let row = |name: &str, shuts| Row { name: name.replace("JOB", job), shuts };
    let all = &[Create, Begin, Join, Reading, Writing][..];
    let of_job = &[Begin, Join, Reading, Writing][..];
    let of_reading = &[Create, Begin, Join, Reading][..];
    vec![
        row("epoch", all),
        row("domain:k8s.acme.example", all),
        row("tenant:acme", all),
        row("job:JOB", of_job),
        row("attempt:JOB/1", &[Join, Reading, Writing]),
        row("attempt:JOB/2", &[Begin]),
        row("attempt:JOB/1/reading", &[Reading]),
        row("member:JOB/1/rank-0", &[Join, Reading, Writing]),
        row("member:JOB/1/rank-0/reading", &[Reading]),
        row(&format!("identity:{WORKER}"), &[Join, Reading, Writing]),
        row(&format!("identity:{LAUNCHER}"), all),
        row("human:ada", all),
        row(&format!("image:{IMAGE}"), all),
        row("dataset:acme/tickets@v3", of_reading),
        row("dataset:acme/tickets", of_reading),
        // It refuses the writing half too, which tunes that model.
        row("model:acme/base-7b@2026.10", all),
        row("checkpoint:acme/support-lora", &[Create, Begin, Join, Writing]),
        row("identity-prefix:spiffe://k8s.acme.example/ns/ml/", &[Join, Reading, Writing]),
        row("identity-prefix:spiffe://k8s.acme.example/ns/ml/job/", &[Join, Reading, Writing]),
        row("identity-prefix:spiffe://k8s.acme.example/ns/ci/", all),
        row("identity-prefix:spiffe://k8s.acme.example/", all),
    ]
}

/// Every kind has a row, or a reason to have none: a new kind does not compile without one.
fn has_row(kind: &FenceKind) -> &'static str {
    match kind {
        FenceKind::Epoch => "epoch",
        FenceKind::Domain(_) => "domain",
        FenceKind::Tenant(_) => "tenant",
        FenceKind::Job(_) => "job",
        FenceKind::Attempt(..) => "attempt",
        FenceKind::AttemptReading(..) => "attempt reading",
        FenceKind::Member(..) => "member",
        FenceKind::MemberReading(..) => "member reading",
        FenceKind::Identity(_) => "identity",
        FenceKind::Human(_) => "human",
        FenceKind::Image(_) => "image",
        FenceKind::Resource(_) => "resource",
        // Nothing new ever stands behind the name of a lease: see the test of it below.
        FenceKind::Lease(_) => "lease",
    }
}

#[test]
fn every_kind_of_name_is_locked_in_these_tests() {
    let job = leasehold::name::JobId(7).to_string();
    let names = rows(&job).into_iter().filter_map(|r| r.name.parse::<FenceName>().ok());
    let kinds: BTreeSet<&str> = names.map(|n| has_row(&n.kind())).collect();
    assert_eq!(kinds.len(), 12, "{kinds:?}");
}

/// A job with one joined member, which may have two attempts and eight members.
struct Scene {
    world: World,
    platform: Client,
    launcher: Client,
    gateway: Client,
    worker: Worker,
    turn: u32,
}

async fn scene() -> Scene {
    let world = World::start().await;
    let members = v1::Members { join: vec![WORKER.into()], attempts: 2, max: 8, ..Default::default() };
    let worker = world.working_on(v1::JobSpec { members: Some(members), ..spec() }, WORKER).await;
    let (platform, launcher) = (world.client(PLATFORM).await, world.client(LAUNCHER).await);
    let gateway = world.client(GATEWAY).await;
    Scene { world, platform, launcher, gateway, worker, turn: 0 }
}

/// Checks that the answer is the lock, with its message.
fn locked<T>(name: &str, what: &str, answer: Result<Response<T>, Status>) {
    let Err(status) = answer else { panic!("{name}: {what} was not refused") };
    let no = Refused::of(&status);
    assert_eq!((no.code, no.reason.as_str()), (Code::PermissionDenied, "LOCKED"), "{name}: {what}: {no:?}");
    assert_eq!(no.facts["why"], MESSAGE, "{name}: {what}");
    assert!(no.facts["fix"].contains(&format!("leasehold unlock {name}")), "{name}: {what}: {no:?}");
    assert!(no.facts.contains_key("since"), "{name}: {what}");
}

async fn lock(platform: &Client, name: &str, ttl: Option<i64>) -> v1::LockResponse {
    let ttl = ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
    let request =
        v1::LockRequest { name: name.into(), reason: MESSAGE.into(), ttl, ahead: true, ..Default::default() };
    let answer = platform.operators().lock(request).await;
    answer.unwrap_or_else(|e| panic!("{name}: {:?}", Refused::of(&e))).into_inner()
}

impl Scene {
    /// Tries each request: refused by this lock, or allowed as before.
    async fn try_each(&mut self, row: &Row) {
        let name = &row.name;
        self.turn += 1;
        let shut = |request| row.shuts.contains(&request);
        let create = v1::CreateJobRequest {
            spec: Some(spec()),
            idempotency_key: format!("turn {}", self.turn),
            dry_run: true,
        };
        let created = self.launcher.jobs().create_job(create).await;
        match shut(Create) {
            true => locked(name, "create", created),
            false => drop(created.unwrap_or_else(|e| panic!("{name}: create: {e}"))),
        }
        // An allowed begin would end the attempt that the other requests are about.
        if shut(Begin) {
            locked(name, "begin", self.launcher.begin(&self.worker.job, "run-2").await);
        }
        match shut(Join) {
            true => locked(name, "join", self.worker.rejoin().await.map(Response::new)),
            false => self.worker.rejoin().await.unwrap_or_else(|e| panic!("{name}: join: {e}")),
        }
        for (request, half) in [(Reading, Half::Reading), (Writing, Half::Writing)] {
            let issued = self.worker.try_issue(half).await;
            match shut(request) {
                true => locked(name, "issue", issued),
                false => drop(issued.unwrap_or_else(|e| panic!("{name}: issue {half:?}: {e}"))),
            }
        }
    }

    /// Makes sure that there is a joined member: an identity that was locked is no longer one.
    async fn member_again(&mut self) {
        self.turn += 1;
        if self.worker.try_issue(Half::Reading).await.is_ok() {
            return;
        }
        let instance = format!("rank-{}", self.turn);
        let job = self.worker.job.clone();
        self.worker = Worker::join(self.world.client(WORKER).await, &job, 1, &instance, "").await.unwrap();
        self.worker.keep_alive().await;
    }

    /// Asks as the platform, which no lock of these tests shuts out. A lock on a domain shuts out its verifiers too.
    async fn is_live(&self, token: &Token) -> bool {
        let request = v1::GetLeaseRequest { lease: token.lease.id.clone() };
        let answer = self.platform.operators().get_lease(request).await.unwrap().into_inner();
        answer.lease.unwrap().state == "live"
    }

    /// Connects to a restarted daemon.
    async fn reconnect(&mut self) {
        self.platform = self.world.client(PLATFORM).await;
        self.launcher = self.world.client(LAUNCHER).await;
        self.gateway = self.world.client(GATEWAY).await;
        self.worker.client = self.world.client(WORKER).await;
    }

    async fn locks(&self) -> Vec<v1::Lock> {
        let request = v1::ListLocksRequest::default();
        self.platform.operators().list_locks(request).await.unwrap().into_inner().locks
    }
}

// Proves law 31.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_ends_access_and_refuses_it_until_unlocked() {
    for at in 0..rows("").len() {
        let mut s = scene().await;
        let row = rows(&s.worker.job).swap_remove(at);
        let name = row.name.clone();
        let tokens = s.worker.issue_both().await;
        let set = lock(&s.platform, &name, None).await;
        let dead = [row.shuts.contains(&Reading), row.shuts.contains(&Writing)];
        let behind = dead.iter().filter(|d| **d).count() as u64;
        assert_eq!(set.ending.unwrap().behind, behind, "{name}");
        for (token, dead) in tokens.iter().zip(dead) {
            assert_eq!(s.is_live(token).await, !dead, "{name}: {:?}", token.lease.half());
            let renewed = s.worker.renew(&token.lease.id).await;
            match dead {
                true => locked(&name, "renew", renewed),
                false => drop(renewed.unwrap_or_else(|e| panic!("{name}: renew: {e}"))),
            }
        }
        s.try_each(&row).await;

        let lifted = s.platform.unlock(&name).await.unwrap().into_inner().lifted.unwrap();
        assert_eq!((lifted.name.as_str(), lifted.reason.as_str()), (name.as_str(), MESSAGE));
        s.member_again().await;
        s.try_each(&Row { name: name.clone(), shuts: &[] }).await;
        for (token, dead) in tokens.iter().zip(dead) {
            assert_eq!(s.is_live(token).await, !dead, "{name}: it came back with the unlock");
            assert_eq!(token.seen_by(&s.gateway).await.active, !dead, "{name}: its token did");
        }
    }
}

// Proves law 31.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_with_a_ttl_ends_by_itself() {
    for at in 0..rows("").len() {
        let mut s = scene().await;
        let row = rows(&s.worker.job).swap_remove(at);
        let tokens = s.worker.issue_both().await;
        let set = lock(&s.platform, &row.name, Some(10)).await.lock.unwrap();
        assert_eq!(set.until.unwrap().seconds - set.since.unwrap().seconds, 10);
        s.world.time().advance(Duration::from_millis(9_999));
        s.try_each(&row).await;
        s.world.time().advance(Duration::from_millis(1));
        s.member_again().await;
        s.try_each(&Row { name: row.name.clone(), shuts: &[] }).await;
        assert_eq!(s.locks().await, []);
        for (token, request) in tokens.iter().zip([Reading, Writing]) {
            let live = s.is_live(token).await;
            assert_eq!(live, !row.shuts.contains(&request), "{}: it came back with time", row.name);
        }
    }
}

// Proves law 31, law 39.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_survives_a_restart() {
    for at in 0..rows("").len() {
        let mut s = scene().await;
        let row = rows(&s.worker.job).swap_remove(at);
        let name = row.name.as_str();
        lock(&s.platform, name, Some(600)).await;
        let before = s.locks().await;
        s.world.restart().await;
        s.reconnect().await;
        assert_eq!(s.locks().await, before, "{name}");
        assert_eq!((before[0].reason.as_str(), before[0].by.as_str()), (MESSAGE, PLATFORM));
        if !row.shuts.contains(&Join) {
            s.worker.rejoin().await.unwrap_or_else(|e| panic!("{name}: join: {e}"));
            s.try_each(&row).await;
        } else {
            locked(name, "join", s.worker.rejoin().await.map(Response::new));
        }
        if row.shuts.contains(&Create) {
            locked(name, "create", s.launcher.create(spec(), "after").await);
        }
        s.world.time().advance(Duration::from_secs(600));
        // The beats stopped meanwhile, so it joins as a new member.
        let job = s.worker.job.clone();
        let again = Worker::join(s.worker.client.clone(), &job, 1, "rank-1", "").await.unwrap();
        again.issue(Half::Reading).await.is_live(&s.gateway).await;
        again.issue(Half::Writing).await.is_live(&s.gateway).await;
    }
}

/// Nothing new stands behind the name of a lease: a lock on it refuses only its renewal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_a_lease_ends_only_that_lease_and_says_why() {
    let s = scene().await;
    let [reading, writing] = s.worker.issue_both().await;
    let name = format!("lease:{}", reading.lease.id);
    let dry = v1::LockRequest { name: name.clone(), reason: "r".into(), dry_run: true, ..Default::default() };
    let would = s.platform.operators().lock(dry).await.unwrap().into_inner().ending.unwrap().behind;
    let did = lock(&s.platform, &name, None).await.ending.unwrap().behind;
    assert_eq!((would, did), (1, 1));
    // A second lock ends nothing more, and the ledger says what each one ended.
    assert_eq!(lock(&s.platform, &name, None).await.ending.unwrap().behind, 0);
    let records = s.world.records().await;
    let told: Vec<_> = records.of("lock.set").iter().map(|r| r["ending"]["behind"].clone()).collect();
    assert_eq!(told, [1, 0]);
    reading.is_dead(&s.gateway, "LEASE_ENDED").await;
    writing.is_live(&s.gateway).await;
    locked(&name, "renew", s.worker.renew(&reading.lease.id).await);
    s.worker.issue(Half::Reading).await.is_live(&s.gateway).await;
    s.platform.unlock(&name).await.unwrap();
    reading.is_dead(&s.gateway, "LEASE_ENDED").await;
    let no = refused(s.worker.renew(&reading.lease.id).await);
    assert_eq!(no.reason, "LEASE_ENDED", "{no:?}");
    let absent = format!("lease:{}", leasehold::name::LeaseId(9));
    refused(s.platform.lock(&absent).await).is(Code::NotFound, "LEASE_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_lock_never_shortens_the_first_over_a_restart() {
    let mut s = scene().await;
    let until = |l: &v1::LockResponse| l.lock.as_ref().unwrap().until.map(|u| u.seconds);
    let long = lock(&s.platform, "tenant:acme", Some(600)).await;
    let short = lock(&s.platform, "tenant:acme", Some(10)).await;
    assert_eq!(until(&short), until(&long));
    s.world.time().advance(Duration::from_secs(11));
    locked("tenant:acme", "create", s.launcher.create(spec(), "next").await);
    assert_eq!(until(&lock(&s.platform, "tenant:acme", None).await), None);
    lock(&s.platform, "tenant:acme", Some(10)).await;
    s.world.restart().await;
    s.reconnect().await;
    s.world.time().advance(Duration::from_secs(3_600));
    locked("tenant:acme", "create", s.launcher.create(spec(), "next").await);
    assert_eq!(s.locks().await.len(), 1);
}

/// A tenant's operator who revokes and locks in a loop is slowed down. The platform's never is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_operator_ends_access_within_a_rate() {
    let s = scene().await;
    let ada = s.world.client(OPERATOR).await;
    let most = leasehold::limits::OPERATOR_CALLS * leasehold::limits::OPERATOR_BURST_SECONDS;
    for n in 0..most {
        ada.revoke(TICKETS).await.unwrap_or_else(|no| panic!("call {n}: {no}"));
    }
    for answer in [
        ada.revoke(TICKETS).await.map(drop),
        ada.lock(TICKETS).await.map(drop),
        ada.unlock(TICKETS).await.map(drop),
    ] {
        let no = Refused::of(&answer.unwrap_err());
        assert_eq!((no.code, no.reason.as_str()), (Code::ResourceExhausted, "OVERLOADED"));
        assert_eq!(no.facts["retry_after"], "1s");
    }
    for _ in 0..=most {
        s.platform.revoke(TICKETS).await.unwrap();
    }
    s.world.time().advance(Duration::from_secs(1));
    ada.lock(TICKETS).await.unwrap();
}

/// An operator of one tenant does not lift a lock of another tenant's operator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_unlocks_only_what_it_may_lock() {
    let s = scene().await;
    let (ada, bob) = (s.world.client(OPERATOR).await, s.world.client(GLOBEX_OPERATOR).await);
    let names = ["tenant:acme", TICKETS, "epoch", "human:ada", "identity-prefix:spiffe://k8s.acme.example/"];
    for name in names {
        for answer in [bob.lock(name).await.map(drop), bob.unlock(name).await.map(drop)] {
            let no = Refused::of(&answer.unwrap_err());
            assert_eq!((no.code, no.reason.as_str()), (Code::PermissionDenied, "POLICY_DENIED"), "{name}");
        }
    }
    assert_eq!(s.locks().await, []);
    ada.lock("tenant:acme").await.unwrap();
    refused(bob.unlock("tenant:acme").await).is(Code::PermissionDenied, "POLICY_DENIED");
    for beyond in ["epoch", "human:ada", "domain:k8s.acme.example"] {
        refused(ada.lock(beyond).await).is(Code::PermissionDenied, "POLICY_DENIED");
    }
    // Each sees only its own locks.
    let seen = |l: Response<v1::ListLocksResponse>| l.into_inner().locks.len();
    assert_eq!(seen(ada.operators().list_locks(v1::ListLocksRequest::default()).await.unwrap()), 1);
    assert_eq!(seen(bob.operators().list_locks(v1::ListLocksRequest::default()).await.unwrap()), 0);
}
