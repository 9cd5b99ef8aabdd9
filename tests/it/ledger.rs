//! The content of the ledger: each ending once and with its cause, heads that others keep, and time across restarts.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use leasehold::{
    clock::{Clock, Wall},
    internals::{
        daemon::Daemon,
        ledger::{self, Dir, HeadPublic, SignedHead},
    },
    proto::v1::{self, Half, Outcome},
    verify::{Verifier, VerifierSettings},
};
use serde_json::Value;

use crate::harness::*;

/// A seeded source of numbers (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % 1_000_003).unwrap() % below.max(1)
    }
}

async fn member(world: &World, n: usize) -> Worker {
    let holder = format!("spiffe://k8s.acme.example/ns/ml/job/member-{n}");
    let members = v1::Members { join: vec![holder.clone()], attempts: 3, ..Default::default() };
    let spec = v1::JobSpec { name: format!("job-{n}"), members: Some(members), ..spec() };
    world.working_on(spec, &holder).await
}

/// One random step of one of the members. It may be refused, and it may end leases.
async fn step(world: &World, workers: &mut [Worker], operator: &Client, dice: &mut Dice) {
    let launcher = world.client(LAUNCHER).await;
    let n = workers.len();
    let worker = &mut workers[dice.roll(n)];
    let live = launcher.job(&worker.job).await;
    let lease = async || {
        let request = v1::ListLeasesRequest { live_only: true, ..Default::default() };
        let leases = operator.operators().list_leases(request).await.unwrap().into_inner().leases;
        leases.into_iter().next().map(|l| l.id)
    };
    match dice.roll(16) {
        0..=4 => drop(worker.try_issue([Half::Reading, Half::Writing][dice.roll(2)]).await),
        5 => {
            if let Some(id) = lease().await {
                drop(worker.renew(&id).await);
                drop(worker.release(&id).await);
            }
        }
        6 => {
            if let Some(id) = lease().await {
                operator.revoke(&format!("lease:{id}")).await.unwrap();
                drop(operator.revoke(&format!("lease:{id}")).await);
            }
        }
        7 => {
            let outcome = [Outcome::Completed, Outcome::Failed, Outcome::Lost][dice.roll(3)];
            drop(launcher.end(&worker.job, worker.attempt, outcome).await);
        }
        8 => drop(operator.revoke(&format!("job:{}", worker.job)).await.unwrap()),
        9 => drop(operator.revoke(&format!("identity:{}", worker.client.id)).await.unwrap()),
        10 => drop(operator.revoke(["dataset:acme/tickets", TICKETS, LINE][dice.roll(3)]).await.unwrap()),
        11 => {
            let platform = world.client(PLATFORM).await;
            let (by, name) = match (dice.roll(3), lease().await) {
                (0, _) => (&platform, "identity-prefix:spiffe://k8s.acme.example/ns/ml/".to_owned()),
                (1, Some(id)) => (operator, format!("lease:{id}")),
                _ => (operator, format!("identity:{}", worker.client.id)),
            };
            by.lock(&name).await.unwrap();
            by.unlock(&name).await.unwrap();
        }
        12 => drop(worker.stream.take()),
        13 => {
            // A separate stream, which is known to be open.
            worker.stream = None;
            if let Ok(stream) = worker.open_stream().await {
                stream.goodbye().await;
            }
        }
        14 => {
            let next = live.attempts.len() as u64 + 1;
            if launcher.begin(&worker.job, &format!("run-{next}")).await.is_ok() {
                let ticket = worker.ticket.clone();
                let client = worker.client.clone();
                if let Ok(newer) = Worker::join(client, &worker.job, next, "rank-0", &ticket).await {
                    *worker = newer;
                }
            }
        }
        // Leases run out, and members that do not beat go away.
        _ => world.time().pass(Duration::from_secs(20)).await,
    }
    // The member comes back if it was away.
    drop(worker.rejoin().await);
}

// Proves law 26.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_ending_is_in_exactly_one_record() {
    for seed in [26, 1_026, 2_026] {
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let world = World::start().await;
        let operator = world.client(OPERATOR).await;
        let mut workers = Vec::new();
        for n in 0..4 {
            workers.push(member(&world, n).await);
        }
        for turn in 0..60 {
            for (n, worker) in workers.iter_mut().enumerate() {
                if world.daemon().broker.open_jobs() < 3 && worker.rejoin().await.is_err() {
                    *worker = member(&world, 10 + turn * 4 + n).await;
                } else if dice.roll(3) == 0 {
                    drop(worker.try_issue([Half::Reading, Half::Writing][dice.roll(2)]).await);
                }
            }
            step(&world, &mut workers, &operator, &mut dice).await;
        }
        operator.revoke("tenant:acme").await.unwrap();
        eventually("all to be over", async || world.daemon().broker.live_leases() == 0).await;
        let records = world.recorded("the end of each lease", ends_all).await;
        let issued: Vec<&Value> = records.of("credential.issued");
        assert!(issued.len() > 10, "seed {seed}: {} leases", issued.len());

        let mut endings: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for record in &records.all {
            let leases = match record["type"].as_str().unwrap() {
                "leases.ended" => record["leases"].as_array().unwrap().iter().collect(),
                "credential.cancelled" => vec![&record["lease"]],
                // If the lease itself was revoked, locked or released, that is its record, unless it had ended before.
                kind @ ("revoked" | "lowered" | "lock.set") => {
                    let lease = record["name"].as_str().unwrap().strip_prefix("lease:");
                    if let Some(id) = lease.filter(|id| !endings.contains_key(id)) {
                        match kind {
                            "revoked" | "lock.set" => {
                                assert_eq!(record["by"]["spiffe_id"], OPERATOR, "{record}");
                            }
                            _ => assert_eq!(record["because"], "released", "{record}"),
                        }
                        assert_eq!(record["ending"]["behind"], 1, "{record}");
                        endings.entry(id).or_default().push(record);
                    }
                    continue;
                }
                _ => continue,
            };
            for id in leases {
                endings.entry(id.as_str().unwrap()).or_default().push(record);
            }
        }
        for lease in issued {
            let id = lease["lease"].as_str().unwrap();
            let ended = endings.remove(id).unwrap_or_default();
            if ended.len() != 1 {
                // The event of its job, as people see it.
                let job = lease["job"].as_str().unwrap();
                let said = |r: &&Value| {
                    let text = r.to_string();
                    text.contains(job) || text.contains(id) || r["type"] == "revoked"
                };
                let show = |r: &Value| {
                    format!(
                        "{} {} {} {} {} {}",
                        r["index"], r["type"], r["lease"], r["leases"], r["name"], r["cause"]
                    )
                };
                let lines: Vec<String> = records.all.iter().filter(said).map(show).collect();
                panic!("seed {seed}: {id} ended in {ended:?}\n{}", lines.join("\n"));
            }
            because(&records, ended[0], seed);
        }
        assert!(endings.is_empty(), "seed {seed}: {endings:?} were never issued");
    }
}

/// Each lease that was issued has a record of its end. The clean-up writes its records after it has run.
fn ends_all(records: &Records) -> bool {
    let mut ended = std::collections::BTreeSet::new();
    for record in &records.all {
        ended.extend(record["leases"].as_array().into_iter().flatten().filter_map(Value::as_str));
        ended.extend(record["name"].as_str().and_then(|name| name.strip_prefix("lease:")));
        if record["type"] == "credential.cancelled" {
            ended.extend(record["lease"].as_str());
        }
    }
    records.of("credential.issued").iter().all(|r| r["lease"].as_str().is_some_and(|id| ended.contains(id)))
}

/// A lowering that ended leases is recorded before their ends, with its name, who did it, and why.
fn because(records: &Records, ended: &Value, seed: u64) {
    if ended["type"] != "leases.ended" {
        return;
    }
    let lowered = &ended["cause"]["lowered"];
    let Some(name) = lowered["name"].as_str() else {
        assert!(
            ["expired", "released"].contains(&ended["cause"].as_str().unwrap_or("released")),
            "seed {seed}: {ended}"
        );
        return;
    };
    let seq = lowered["seq"].as_u64().unwrap();
    assert!(seq > 0, "seed {seed}: {ended}");
    // A change of a job lowers up to two names, and its record has the greater Seq.
    let cause = records.all.iter().find(|r| {
        let said = r["ending"]["seq"].as_u64().unwrap_or(0);
        said >= seq && said <= seq + 1 && speaks_of(r, name)
    });
    let cause = cause.unwrap_or_else(|| panic!("seed {seed}: no record of what ended {ended}"));
    assert!(cause["index"].as_u64() < ended["index"].as_u64(), "seed {seed}: {cause} {ended}");
    let why =
        ["detail", "reason", "because"].iter().any(|k| cause[*k].as_str().is_some_and(|t| !t.is_empty()));
    assert!(why, "seed {seed}: {cause} does not say why");
    if ["revoked", "lock.set", "job.closed", "attempt.ended"].contains(&cause["type"].as_str().unwrap()) {
        assert!(cause["by"].is_object(), "seed {seed}: {cause} does not say who");
    }
}

fn speaks_of(record: &Value, name: &str) -> bool {
    let about = |key: &str| record[key].as_str().is_some_and(|v| name.contains(v));
    record["name"] == name || (record["name"].is_null() && about("job"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signed_heads_show_a_cut_ledger() {
    // A head shows how many records all tenants have, so it is sent only while there is one tenant.
    let mut world = World::with(|setup| setup.catalog.retain(|file, _| *file == "acme.toml")).await;
    let verifier = Verifier::start(VerifierSettings {
        connector: world.connector(&world.svid(GATEWAY)),
        audience: GATEWAY.parse().unwrap(),
        clock: world.clock.clone(),
    });
    soon("a verifier", verifier.ready()).await;
    let worker = world.working().await;
    worker.issue(Half::Reading).await;
    let known = world.client(WORKER).await.operators();
    let seen = known.clone().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    let key = HeadPublic::from_pem(&seen.ledger_key).unwrap();
    let answered: SignedHead = seen.ledger_head.parse().unwrap();
    key.verify(&answered).unwrap();
    assert_eq!((answered.head, answered.epoch), (world.daemon().broker.ledger().head(), 1));
    assert_eq!(world.records().await.all[0]["head_key"], key.id().to_string());
    let nobody = world.client(NOBODY).await.operators().who_am_i(v1::WhoAmIRequest {}).await;
    let nobody = nobody.unwrap().into_inner();
    assert!(nobody.ledger_head.is_empty() && nobody.ledger_key.is_empty());

    // The verifier keeps the last head that came with a tick.
    let mut kept = None;
    world
        .time()
        .pass_slowly_until("a head by the feed", async || {
            kept = verifier.ledger_head().map(|head| head.parse::<SignedHead>().unwrap());
            kept.as_ref().is_some_and(|k| k.head.index >= answered.head.index)
        })
        .await;
    let kept = kept.unwrap();
    key.verify(&kept).unwrap();
    drop(verifier);
    drop(worker);
    world.stop().await;

    let state = world.file("state");
    ledger::verify(&Dir::at(&state), Some(kept.head)).unwrap();
    // If someone who can write the files cuts off the tail and the head file, the kept head reveals it.
    let segment = state.join("ledger-00000000000000000001.jsonl");
    let text = std::fs::read_to_string(&segment).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let left = usize::try_from(kept.head.index - 1).unwrap();
    std::fs::write(&segment, lines[..left].join("\n") + "\n").unwrap();
    std::fs::remove_file(state.join("head")).unwrap();
    ledger::verify(&Dir::at(&state), None).unwrap();
    let found = ledger::verify(&Dir::at(&state), Some(kept.head)).unwrap_err();
    assert!(found.to_string().contains("its tail was cut off"), "{found}");
}

// Proves law 12, law 39.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_went_back_over_a_restart_lengthens_nothing() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let mut world = World::start().await;
    let worker = world.working().await;
    let launcher = world.client(LAUNCHER).await;
    let job = launcher.job(&worker.job).await;
    // The job has only two hours. Just before their end a record is written.
    world.time().advance(2 * HOUR - Duration::from_secs(1));
    let operator = world.client(OPERATOR).await;
    operator.lock("dataset:acme/patients@v1").await.unwrap();
    world.stop().await;
    drop(worker);

    // The machine starts again with a wall clock that is an hour behind, and all three clocks begin there.
    let back = Wall(NOW.0 + 3_600_000);
    let clock = Arc::new(TestClock::new());
    clock.set_wall(back);
    assert_eq!(clock.now().lease.0, back.0);
    let raise = clock.clone();
    let not_before = move |latest: Wall| {
        assert!(latest.0 >= NOW.0 + 2 * 3_600_000 - 1_000, "the last record's time is {latest}");
        // Like the system's clock: the lease timeline is advanced, and the wall clock is unchanged.
        raise.set_wall(latest);
        raise.set_wall(back);
    };
    let daemon = Daemon::start_with(&world.config(), clock.clone(), not_before).await.unwrap();
    let broker = daemon.broker.clone();
    let (stop, running) = (daemon.stopper(), tokio::spawn(daemon.run()));
    assert_eq!(broker.open_jobs(), 1, "a second is left to it");
    clock.advance(Duration::from_secs(2));
    eventually("the end of the job", async || broker.open_jobs() == 0).await;
    stop.cancel();
    soon("a stop", running).await.unwrap();
    let records = Records::read(&world.file("state"));
    assert_eq!(records.one("job.closed")["job"], job.id.as_str());
}
