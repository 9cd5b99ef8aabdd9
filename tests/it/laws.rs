//! Laws of leases: what a lease id allows, what a renewal gives, what stays in an index.

use std::{collections::BTreeSet, marker::PhantomData, sync::Arc, time::Duration};

use leasehold::{
    name::{LeaseId, Outcome as Ended},
    proto::v1::{self, Half, Outcome},
};
use prost::Message;
use tonic::Code;

use crate::harness::*;

fn span(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// Issues the reading half for so many seconds.
async fn issue_for(worker: &Worker, seconds: i64) -> Token {
    let request = v1::IssueCredentialRequest {
        session: worker.session(),
        half: Half::Reading as i32,
        ttl: span(seconds),
        ..Default::default()
    };
    let answer = worker.client.members().issue_credential(request).await;
    worker.token(answer.unwrap_or_else(|e| panic!("{:?}", Refused::of(&e))).into_inner())
}

/// Advances the clock while the member beats.
async fn live_for(world: &World, worker: &mut Worker, seconds: u64) {
    for _ in 0..seconds / 5 {
        worker.beat().await;
        world.time().pass(Duration::from_secs(5)).await;
    }
    worker.beat().await;
    world.time().pass(Duration::from_secs(seconds % 5)).await;
}

async fn listed(client: &Client, behind: &str) -> BTreeSet<String> {
    let request = v1::ListLeasesRequest {
        behind: behind.into(),
        live_only: true,
        page_size: 1_000,
        ..Default::default()
    };
    let leases = client.operators().list_leases(request).await.unwrap().into_inner().leases;
    leases.into_iter().map(|l| l.id).collect()
}

async fn shown(client: &Client, lease: &str) -> v1::Lease {
    let request = v1::GetLeaseRequest { lease: lease.into() };
    client.operators().get_lease(request).await.unwrap().into_inner().lease.unwrap()
}

// ---------- what makes a lease ----------

struct Probe<T>(PhantomData<T>);
trait NotClone {
    const CLONE: bool = false;
}
impl<T> NotClone for Probe<T> {}
impl<T: Clone> Probe<T> {
    const CLONE: bool = true;
}

// Proves law 01.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_needs_a_grant_and_a_grant_is_used_once() {
    // The table takes a Grant by value, only policy makes one, and it cannot be copied.
    const { assert!(!Probe::<leasehold::internals::policy::Grant>::CLONE && Probe::<Ended>::CLONE) };
    let world = World::start().await;
    let worker = world.working().await;
    let tokens = worker.issue_both().await;
    // A job that waits for approval gets no lease.
    let launcher = world.client(LAUNCHER).await;
    let gated = v1::JobSpec { name: "gated".into(), read: vec!["dataset:acme/patients@v1".into()], ..spec() };
    let waits = v1::JobSpec { write: vec![], tune: None, ..gated };
    let job = launcher.create(waits, "gated").await.unwrap().into_inner().job.unwrap();
    assert_eq!(job.state(), v1::JobState::AwaitingApproval);
    assert!(launcher.begin(&job.id, "run-1").await.is_err());
    assert_eq!(world.daemon().broker.live_leases(), 2);
    let records = world.records().await;
    let issued = records.of("credential.issued");
    let ids: BTreeSet<_> = issued.iter().map(|r| r["lease"].as_str().unwrap()).collect();
    assert_eq!(ids, tokens.iter().map(|t| t.lease.id.as_str()).collect());
    for record in issued {
        assert_eq!(record["decision"]["result"], "allow");
        assert!(!record["decision"]["rules"].as_array().unwrap().is_empty(), "{record}");
    }
}

// Proves law 02.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_id_is_random_and_opens_nothing() {
    let world = World::start().await;
    let worker = world.working().await;
    let (mut ones, mut zeros, mut all) = (0u128, 0u128, BTreeSet::new());
    for _ in 0..64 {
        let id: LeaseId = worker.issue(Half::Reading).await.lease.id.parse().unwrap();
        assert!(all.insert(id.0));
        (ones, zeros) = (ones | id.0, zeros | !id.0);
    }
    assert_eq!((ones, zeros), (u128::MAX, u128::MAX), "some bits never change");
    // A caller that knows the id, but is no member, gets the answer for an absent lease.
    let known = worker.issue(Half::Writing).await;
    let absent = LeaseId(7).to_string();
    let thief = Worker { client: world.client(OTHER_WORKER).await, secret: vec![7; 32], ..forged(&worker) };
    for id in [&known.lease.id, &absent] {
        let mut answers = vec![refused(thief.renew(id).await), refused(thief.release(id).await)];
        answers.dedup();
        assert_eq!(answers.len(), 1);
        answers[0].is(Code::NotFound, "JOB_NOT_FOUND");
    }
    known.is_live(&world.client(GATEWAY).await).await;
}

/// A session without its secret.
fn forged(worker: &Worker) -> Worker {
    Worker {
        client: worker.client.clone(),
        job: worker.job.clone(),
        attempt: worker.attempt,
        instance: worker.instance.clone(),
        secret: Vec::new(),
        ticket: String::new(),
        joined: v1::JoinAttemptResponse::default(),
        stream: None,
    }
}

/// Issues race with reloads. An issue that fails after its lease was made leaves it in no index.
// Proves law 06, law 35.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_indexes_hold_exactly_the_leases_given() {
    let world = World::start().await;
    let worker = Arc::new(world.working().await);
    let operator = world.client(OPERATOR).await;
    let issuers: Vec<_> = (0..6)
        .map(|n| {
            let worker = worker.clone();
            tokio::spawn(async move {
                let half = if n % 2 == 0 { Half::Reading } else { Half::Writing };
                let mut got = Vec::new();
                for _ in 0..12 {
                    match worker.try_issue(half).await {
                        Ok(answer) => got.push(worker.token(answer.into_inner())),
                        Err(status) => assert_eq!(Refused::of(&status).reason, "CONTENDED"),
                    }
                }
                got
            })
        })
        .collect();
    let platform = world.client(PLATFORM).await;
    for _ in 0..12 {
        let reload = v1::ReloadCatalogRequest { dry_run: false };
        platform.operators().reload_catalog(reload).await.unwrap();
    }
    let mut tokens = Vec::new();
    for issuer in issuers {
        tokens.extend(soon("an issuer", issuer).await.unwrap());
    }
    // Some end in the ordinary ways.
    for token in tokens.iter().step_by(3) {
        worker.release(&token.lease.id).await.unwrap();
    }
    let of = |half: Option<Half>| -> BTreeSet<String> {
        let live = tokens.iter().enumerate().filter(|(n, _)| n % 3 != 0).map(|(_, t)| &t.lease);
        live.filter(|l| half.is_none_or(|h| l.half() == h)).map(|l| l.id.clone()).collect()
    };
    let (job, all) = (&worker.job, of(None));
    for (behind, expected) in [
        ("", &all),
        (&format!("job:{job}"), &all),
        (&format!("attempt:{job}/1"), &all),
        (&format!("member:{job}/1/rank-0"), &all),
        (&format!("identity:{WORKER}"), &all),
        (&format!("identity:{LAUNCHER}"), &all),
        ("tenant:acme", &all),
        ("human:ada", &all),
        (TICKETS, &of(Some(Half::Reading))),
        ("dataset:acme/tickets", &of(Some(Half::Reading))),
        (&format!("attempt:{job}/1/reading"), &of(Some(Half::Reading))),
        (LINE, &of(Some(Half::Writing))),
        ("tenant:globex", &BTreeSet::new()),
    ] {
        assert_eq!(listed(&operator, behind).await, *expected, "behind `{behind}`");
    }
    assert_eq!(world.daemon().broker.live_leases(), all.len());
    let launcher = world.client(LAUNCHER).await;
    assert_eq!(launcher.job(job).await.live_leases, all.len() as u64);
    // When the last lease ends, the last entry goes.
    launcher.end(job, 1, Outcome::Completed).await.unwrap();
    assert_eq!(listed(&operator, "").await, BTreeSet::new());
    assert_eq!(world.daemon().broker.live_leases(), 0);
    let records = world.records().await;
    let (issued, cancelled) = (records.of("credential.issued"), records.of("credential.cancelled"));
    assert_eq!(issued.len() - cancelled.len(), tokens.len());
}

// Proves law 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listing_and_showing_reveal_no_secret() {
    let world = World::start().await;
    let mut worker = world.working().await;
    let tokens = worker.issue_both().await;
    let renewed = worker.renew(&tokens[0].lease.id).await.unwrap().into_inner().token;
    let (operator, launcher) = (world.client(OPERATOR).await, world.client(LAUNCHER).await);
    let ticket = launcher.begin(&worker.job, "run-1").await.unwrap().into_inner().ticket;
    worker.beat().await;
    worker.release(&tokens[1].lease.id).await.unwrap();

    let mut told: Vec<(&str, Vec<u8>, String)> = Vec::new();
    macro_rules! tell {
        ($what:literal, $answer:expr) => {{
            let answer = $answer.await.unwrap().into_inner();
            told.push(($what, answer.encode_to_vec(), format!("{answer:?}")));
        }};
    }
    let page = v1::ListLeasesRequest { page_size: 100, ..Default::default() };
    tell!("ListLeases", operator.operators().list_leases(page));
    for token in &tokens {
        let lease = token.lease.id.clone();
        tell!("GetLease", operator.operators().get_lease(v1::GetLeaseRequest { lease }));
    }
    tell!("GetJob", operator.jobs().get_job(v1::GetJobRequest { job: worker.job.clone() }));
    tell!("ListJobs", operator.jobs().list_jobs(v1::ListJobsRequest::default()));
    tell!("WhoAmI", operator.operators().who_am_i(v1::WhoAmIRequest {}));
    tell!("ListLocks", operator.operators().list_locks(v1::ListLocksRequest::default()));
    let ledger = world.records().await.text;
    told.push(("the ledger", ledger.clone().into_bytes(), ledger));

    let digest = leasehold::secret::Secret::from_bytes(&worker.secret).unwrap().digest();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let secrets = [
        ("a token", tokens[0].text.clone()),
        ("a token's signature", tokens[0].text.rsplit('.').next().unwrap().to_owned()),
        ("a released token", tokens[1].text.clone()),
        ("a renewed token", renewed),
        ("a ticket", ticket),
        ("a session", hex(&worker.secret)),
    ];
    for (what, bytes, text) in &told {
        for (name, secret) in &secrets {
            assert!(!secret.is_empty() && !text.contains(secret.as_str()), "{what} shows {name}");
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{what} holds {name}");
        }
        assert!(!bytes.windows(32).any(|w| w == worker.secret), "{what} holds the session's bytes");
        let spelled = format!("{:?}", worker.secret);
        assert!(!text.contains(spelled.trim_matches(['[', ']'])), "{what} spells the session out");
        assert!(
            *what == "the ledger" || !bytes.windows(32).any(|w| w == digest.0),
            "{what} holds its digest"
        );
    }
}

// ---------- renewal ----------

// Proves law 15, law 19.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_counts_from_now_up_to_the_maximum() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let short = v1::JobSpec { max_duration: span(100), ..spec() };
    let mut worker = world.working_on(short, WORKER).await;
    let first = issue_for(&worker, 60).await;
    let began = first.lease.issued.unwrap().seconds;
    let expires = |l: &v1::Lease| l.expires.unwrap().seconds - began;
    assert_eq!((expires(&first.lease), first.answer.shortened_by.len()), (60, 0));
    assert_eq!(first.lease.expires_at_latest.unwrap().seconds - began, 100);

    live_for(&world, &mut worker, 20).await;
    let ask = |seconds| v1::RenewLeaseRequest {
        session: worker.session(),
        lease: first.lease.id.clone(),
        ttl: span(seconds),
    };
    let (first_ask, capped_ask) = (ask(60), ask(60));
    let mut members = worker.client.members();
    let second = members.renew_lease(first_ask).await.unwrap().into_inner();
    assert_eq!(expires(second.lease.as_ref().unwrap()), 80, "60 from now, not 60 from the old end");
    assert_eq!(second.shortened_by, [""; 0]);

    // Past the first deadline the lease lives, but its first token does not.
    live_for(&world, &mut worker, 40).await;
    first.is_dead(&gateway, "TOKEN_EXPIRED").await;
    assert!(gateway.introspect(&second.token, WORKER).await.active);
    let third = members.renew_lease(capped_ask).await.unwrap().into_inner();
    assert_eq!(expires(third.lease.as_ref().unwrap()), 100, "a renewal went past the latest end");
    assert!(third.shortened_by.iter().any(|w| w.contains("the end of the job")), "{:?}", third.shortened_by);

    // The second token ended at its own deadline. The last one ends at the latest end.
    live_for(&world, &mut worker, 20).await;
    assert!(!gateway.introspect(&second.token, WORKER).await.active);
    live_for(&world, &mut worker, 15).await;
    world.time().advance(Duration::from_millis(4_999));
    assert!(gateway.introspect(&third.token, WORKER).await.active);
    world.time().advance(Duration::from_millis(1));
    assert!(!gateway.introspect(&third.token, WORKER).await.active, "it was good at its deadline");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_renewal_leaves_the_older_token_its_stated_life() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let mut worker = world.working().await;
    let first = issue_for(&worker, 300).await;
    let ask =
        v1::RenewLeaseRequest { session: worker.session(), lease: first.lease.id.clone(), ttl: span(30) };
    let second = worker.client.members().renew_lease(ask).await.unwrap().into_inner();
    assert_eq!(
        second.lease.as_ref().unwrap().expires,
        first.lease.expires,
        "the lease is as long as its tokens"
    );
    live_for(&world, &mut worker, 40).await;
    assert_eq!(gateway.introspect(&second.token, WORKER).await.reason, "TOKEN_EXPIRED");
    assert!(gateway.introspect(&first.text, WORKER).await.active, "it was promised until its token_expires");
    live_for(&world, &mut worker, 260).await;
    first.is_dead(&gateway, "TOKEN_EXPIRED").await;
}

// Proves law 21.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_same_identity_renews_a_lease() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let mut worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let absent = LeaseId(7).to_string();

    // Another certificate and another key of the same identity, on another connection.
    let old = worker.client.clone();
    worker.client = world.client(WORKER).await;
    assert_ne!(old.credentials.cert, worker.client.credentials.cert);
    let renewed = worker.renew(&token.lease.id).await.unwrap().into_inner();
    assert_eq!(renewed.lease.unwrap().generation, 1);

    // Other identities that know all but the SVID; and the same SVID without the session.
    for (id, reason) in [
        (OTHER_WORKER, "JOB_NOT_FOUND"),
        (GLOBEX_WORKER, "JOB_NOT_FOUND"),
        (LAUNCHER, "SESSION_MISMATCH"),
        (OPERATOR, "JOB_NOT_FOUND"),
    ] {
        let thief =
            Worker { client: world.client(id).await, secret: worker.secret.clone(), ..forged(&worker) };
        let (known, unknown) =
            (refused(thief.renew(&token.lease.id).await), refused(thief.renew(&absent).await));
        assert_eq!(known, unknown, "{id} learns whether there is such a lease");
        assert_eq!(known.reason, reason, "{id}: {known:?}");
    }
    let guess = Worker { secret: vec![9; 32], ..forged(&worker) };
    refused(guess.renew(&token.lease.id).await).is(Code::PermissionDenied, "SESSION_MISMATCH");
    // An absent lease is not found.
    let no = refused(worker.renew(&absent).await);
    no.is(Code::NotFound, "LEASE_NOT_FOUND");
    assert_eq!(shown(&world.client(OPERATOR).await, &token.lease.id).await.generation, 1);
    assert!(gateway.introspect(&renewed.token, WORKER).await.active);
}

// ---------- ends ----------

// Proves law 24.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_one_lowering_for_any_lease_count() {
    let world = World::start().await;
    let worker = world.working().await;
    let (operator, gateway) = (world.client(OPERATOR).await, world.client(GATEWAY).await);
    let fences = world.daemon().broker.fences();
    for leases in [1u64, 120] {
        let mut tokens = Vec::new();
        for _ in 0..leases {
            tokens.push(worker.issue(Half::Reading).await);
        }
        let (before, mut told) = (fences.seq(), fences.subscribe().lowerings);
        let ending = operator.revoke(TICKETS).await.unwrap().into_inner().ending.unwrap();
        assert_eq!((ending.behind, ending.seq), (leases, before.0 + 1));
        assert_eq!(fences.seq().0, before.0 + 1, "{leases} leases took more than one lowering");
        assert_eq!(told.try_recv().unwrap().name.as_str(), TICKETS);
        assert!(told.try_recv().is_err(), "{leases} leases took more than one event");
        for token in tokens.iter().step_by(17) {
            assert!(!token.seen_by(&gateway).await.active);
        }
    }
}

/// Many leases share one deadline. At the deadline none is live, even before the clean-up, and none costs a timer.
// Proves law 32, law 33.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_at_their_deadline_without_timers() {
    const LEASES: usize = 150;
    let world = World::start().await;
    let mut worker = world.working().await;
    let gateway = world.client(GATEWAY).await;
    worker.beat().await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let first = issue_for(&worker, 5).await;
    first.is_live(&gateway).await;
    let tasks = metrics.num_alive_tasks();
    let mut tokens = vec![first];
    for _ in 1..LEASES {
        tokens.push(issue_for(&worker, 5).await);
    }
    eventually("as few tasks as with one lease", async || metrics.num_alive_tasks() <= tasks).await;
    world.time().advance(Duration::from_millis(4_999));
    tokens[0].is_live(&gateway).await;
    tokens[LEASES - 1].is_live(&gateway).await;
    world.time().advance(Duration::from_millis(1));
    // Issuing goes on during the clean-up.
    let (fresh, seen) = tokio::join!(issue_for(&worker, 5), async {
        for token in &tokens {
            assert!(!token.seen_by(&gateway).await.active, "late accept");
        }
    });
    let () = seen;
    fresh.is_live(&gateway).await;
    let broker = &world.daemon().broker;
    eventually("the clean-up", async || {
        world.time().advance(Duration::from_millis(10));
        broker.live_leases() <= 1
    })
    .await;
}

// Proves law 36.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_lease_stays_visible_with_its_cause() {
    let world = World::start().await;
    let worker = world.working().await;
    let operator = world.client(OPERATOR).await;
    let [reading, writing] = worker.issue_both().await;
    worker.release(&reading.lease.id).await.unwrap();
    world.time().advance(Duration::from_millis(1));
    operator.revoke(LINE).await.unwrap();
    for (token, cause) in [(&reading, "released"), (&writing, "revoked")] {
        let lease = shown(&operator, &token.lease.id).await;
        assert_eq!(lease.state, "ended");
        assert!(lease.cause.contains(cause), "{}", lease.cause);
        assert_eq!((lease.job, lease.stood_at), (worker.job.clone(), token.lease.stood_at));
    }
    assert_eq!(listed(&operator, "").await, BTreeSet::new());
    let page = v1::ListLeasesRequest { page_size: 100, ..Default::default() };
    let all = operator.operators().list_leases(page).await.unwrap().into_inner().leases;
    let ids: Vec<_> = all.iter().map(|l| l.id.as_str()).collect();
    assert_eq!(ids, [writing.lease.id.as_str(), reading.lease.id.as_str()], "the last to end comes first");
}
