//! The counts match the live leases, and what was revoked is invalid for all clients at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold::proto::v1::{self, Half};
use proptest::prelude::*;

use crate::harness::*;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Issue { reading: bool, ttl: i64 },
    Renew(prop::sample::Index),
    Release(prop::sample::Index),
    RevokeLease(prop::sample::Index),
    RevokeDataset,
    RevokeLine,
    LockAndUnlockTenant,
    Pass(u64),
    Vanish,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (any::<bool>(), 5i64..400).prop_map(|(reading, ttl)| Step::Issue { reading, ttl }),
        3 => any::<prop::sample::Index>().prop_map(Step::Renew),
        2 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => any::<prop::sample::Index>().prop_map(Step::RevokeLease),
        1 => Just(Step::RevokeDataset),
        1 => Just(Step::RevokeLine),
        1 => Just(Step::LockAndUnlockTenant),
        3 => (1u64..14).prop_map(Step::Pass),
        1 => Just(Step::Vanish),
    ]
}

/// The clean-up of an expired lease comes within this time of the test's clock, in milliseconds.
const CLEAN_UP_MS: u64 = 300;

/// The naive model: which leases are live, and until when.
#[derive(Default)]
struct Model(BTreeMap<String, (Half, u64)>);

/// Counts, lists, introspection and the model agree after every step.
async fn history(steps: Vec<Step>) {
    let world = World::start().await;
    let mut worker = world.working().await;
    let (operator, gateway, launcher) =
        (world.client(OPERATOR).await, world.client(GATEWAY).await, world.client(LAUNCHER).await);
    let mut all: Vec<Token> = Vec::new();
    let mut model = Model::default();
    for step in steps {
        let now = world.clock.now().lease.0;
        match &step {
            Step::Issue { reading, ttl } => {
                let half = if *reading { Half::Reading } else { Half::Writing };
                let ask = v1::IssueCredentialRequest {
                    session: worker.session(),
                    half: half as i32,
                    ttl: Some(prost_types::Duration { seconds: *ttl, nanos: 0 }),
                    ..Default::default()
                };
                let answer = worker.client.members().issue_credential(ask).await.unwrap().into_inner();
                let token = worker.token(answer);
                model.0.insert(token.lease.id.clone(), (half, now + ttl.unsigned_abs() * 1_000));
                all.push(token);
            }
            Step::Renew(i) if !all.is_empty() => {
                let id = &i.get(&all).lease.id;
                let answer = worker.renew(id).await;
                assert_eq!(answer.is_ok(), model.0.contains_key(id), "{step:?} {id}");
                if let Some((_, until)) = model.0.get_mut(id) {
                    *until = now + 300_000;
                }
            }
            Step::Release(i) if !all.is_empty() => {
                let id = &i.get(&all).lease.id;
                worker.release(id).await.unwrap();
                model.0.remove(id);
            }
            Step::RevokeLease(i) if !all.is_empty() => {
                let id = &i.get(&all).lease.id;
                operator.revoke(&format!("lease:{id}")).await.unwrap();
                model.0.remove(id);
            }
            Step::RevokeDataset | Step::RevokeLine => {
                let (name, half) = match step {
                    Step::RevokeDataset => (TICKETS, Half::Reading),
                    _ => (LINE, Half::Writing),
                };
                let behind = operator.revoke(name).await.unwrap().into_inner().ending.unwrap().behind;
                let before = model.0.len();
                model.0.retain(|_, (h, _)| *h != half);
                // If no lease was granted behind the name since, a second revocation repeats the answer of the first.
                assert!(
                    before == model.0.len() || behind == (before - model.0.len()) as u64,
                    "{step:?}: {behind}"
                );
            }
            Step::LockAndUnlockTenant => {
                operator.lock("tenant:acme").await.unwrap();
                operator.unlock("tenant:acme").await.unwrap();
                model.0.clear();
            }
            Step::Pass(seconds) => {
                world.time().pass(Duration::from_secs(*seconds)).await;
                worker.beat().await;
            }
            Step::Vanish => {
                worker.stream = None;
                let job = &worker.job;
                eventually("the loss", async || {
                    launcher.job(job).await.attempts[0].state() == v1::AttemptState::Suspended
                })
                .await;
                model.0.clear();
                worker.rejoin().await.unwrap();
                worker.keep_alive().await;
            }
            Step::Renew(_) | Step::Release(_) | Step::RevokeLease(_) => {}
        }
        let now = world.clock.now().lease.0;
        model.0.retain(|_, (_, until)| now < *until);
        let ask = v1::ListLeasesRequest { live_only: true, page_size: 1_000, ..Default::default() };
        let listed = operator.operators().list_leases(ask).await.unwrap().into_inner().leases;
        let mut listed: Vec<String> = listed.into_iter().map(|l| l.id).collect();
        listed.sort();
        assert_eq!(listed, model.0.keys().cloned().collect::<Vec<_>>(), "{step:?}");
        let broker = &world.daemon().broker;
        let mut left = CLEAN_UP_MS;
        eventually("the clean-up", async || {
            let now = world.clock.now().lease.0;
            model.0.retain(|_, (_, until)| now < *until);
            let is_done = broker.live_leases() == model.0.len();
            if !is_done && left > 0 {
                left -= 1;
                world.time().advance(Duration::from_millis(1));
            }
            is_done
        })
        .await;
        worker.beat().await;
        assert_eq!(launcher.job(&worker.job).await.live_leases, model.0.len() as u64, "{step:?}");
    }
    for token in &all {
        // A renewed lease outlives its first token: introspection of that token may give an earlier end, never a later
        // one.
        let seen = token.seen_by(&gateway).await.active;
        assert!(!seen || model.0.contains_key(&token.lease.id), "{}", token.lease.id);
    }
    world.records().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default() })]

    // Proves law 34.
    #[test]
    fn counts_equal_the_live_set_after_any_history(steps in prop::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(history(steps));
    }
}

/// Sixty-four clients use a lease, each in one of the possible ways, and an operator revokes it. A use that begins after
/// the answer to the revocation gets nothing.
// Proves law 10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_a_revocation_is_acknowledged_no_use_begins() {
    let world = World::start().await;
    let worker = world.working().await;
    let operator = world.client(OPERATOR).await;
    let mut gateways = Vec::new();
    for _ in 0..56 {
        gateways.push(world.client(GATEWAY).await);
    }
    let names = [
        "dataset:acme/tickets@v3",
        "dataset:acme/tickets",
        "tenant:acme",
        "identity:LAUNCHER",
        "member:JOB/1/rank-0",
    ];
    for name in names {
        let name = name.replace("LAUNCHER", LAUNCHER).replace("JOB", &worker.job);
        let token = worker.issue(Half::Reading).await;
        let acknowledged = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicU64::new(0));
        let mut lookers: Vec<_> = gateways
            .iter()
            .map(|gateway| {
                let (gateway, token) = (gateway.clone(), token.clone());
                let (acknowledged, looks) = (acknowledged.clone(), looks.clone());
                tokio::spawn(async move {
                    loop {
                        let after = acknowledged.load(Ordering::SeqCst);
                        let active = token.seen_by(&gateway).await.active;
                        looks.fetch_add(1, Ordering::SeqCst);
                        assert!(!(after && active), "a use began after the acknowledgement");
                        if after {
                            return;
                        }
                    }
                })
            })
            .collect();
        // The holder renews the lease on eight connections, and uses what it gets.
        for gateway in gateways.iter().take(8) {
            let (gateway, client, acknowledged) =
                (gateway.clone(), worker.client.clone(), acknowledged.clone());
            let (session, lease) = (worker.session(), token.lease.id.clone());
            lookers.push(tokio::spawn(async move {
                loop {
                    let after = acknowledged.load(Ordering::SeqCst);
                    let ask = v1::RenewLeaseRequest {
                        session: session.clone(),
                        lease: lease.clone(),
                        ttl: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
                    };
                    let renewed = client.members().renew_lease(ask).await.map(|r| r.into_inner().token);
                    assert!(!(after && renewed.is_ok()), "it was renewed after the acknowledgement");
                    let after = acknowledged.load(Ordering::SeqCst);
                    if let Ok(text) = renewed {
                        let active = gateway.introspect(&text, WORKER).await.active;
                        assert!(!(after && active), "a renewed token was used after the acknowledgement");
                    }
                    if after {
                        return;
                    }
                }
            }));
        }
        eventually("some looks", async || looks.load(Ordering::SeqCst) > 128).await;
        operator.revoke(&name).await.unwrap();
        acknowledged.store(true, Ordering::SeqCst);
        for looker in lookers {
            soon("a looker", looker).await.unwrap();
        }
    }
}

/// Issues race with a lock. A token that is handed out after the lock was acknowledged is invalid, and no lease behind the
/// locked name is live.
// Proves law 10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_issue_that_races_with_a_lock_leaves_a_live_lease_behind() {
    let world = World::start().await;
    let worker = Arc::new(world.working().await);
    let (operator, gateway) = (world.client(OPERATOR).await, world.client(GATEWAY).await);
    for name in [TICKETS, "identity-prefix:spiffe://k8s.acme.example/ns/ml/"] {
        let who = if name.contains("prefix") { world.client(PLATFORM).await } else { operator.clone() };
        let issuers: Vec<_> = (0..8)
            .map(|_| {
                let worker = worker.clone();
                tokio::spawn(async move {
                    let mut got = Vec::new();
                    for _ in 0..12 {
                        if let Ok(answer) = worker.try_issue(Half::Reading).await {
                            got.push(worker.token(answer.into_inner()));
                        }
                    }
                    got
                })
            })
            .collect();
        tokio::task::yield_now().await;
        who.lock(name).await.unwrap();
        for issuer in issuers {
            for token in soon("an issuer", issuer).await.unwrap() {
                assert!(!token.seen_by(&gateway).await.active, "a lease got past the lock on {name}");
            }
        }
        let broker = &world.daemon().broker;
        eventually("the clean-up", async || broker.live_leases() == 0).await;
        who.unlock(name).await.unwrap();
    }
}
