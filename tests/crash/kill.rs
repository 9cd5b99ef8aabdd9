//! `kill -9` at random moments under load, and what must be true afterwards.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use leasehold::{
    clock::BootTime,
    internals::ledger::{self, Dir},
    limits::FEED_STALE,
    name::{Action, Object},
    proto::v1,
    token::Presenter,
    verify::Verifier,
};

use super::{
    dice::{Dice, number},
    load::{self, Books, Fate},
    process::Place,
};
use crate::harness::*;

/// The number of jobs of earlier rounds that are checked again. It is fixed, so that later rounds take no longer than
/// earlier ones.
const EARLIER_JOBS: u64 = 20;

// Proves law 39, law 39b.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_at_random_moments_keeps_all_that_it_promised() {
    let (rounds, seed) = (number("LEASEHOLD_CRASHES", 10), number("LEASEHOLD_SEED", 2_026));
    let place = Place::new();
    let books = Books::default();
    let verifier = place.verifier();
    let mut dice = Dice::new(seed);
    let mut process = place.serve().await;
    soon("a verifier", verifier.ready()).await;
    for round in 0..rounds {
        let moment = Duration::from_millis(20 + dice.roll(700));
        let stays_down = dice.roll(4) == 0;
        println!("seed {seed}, round {round}: killed after {moment:?}, stays down: {stays_down}");
        let before = { books.open().tokens.len() };
        let mut work = load::begin(&place, &books, round, &mut dice);
        tokio::time::sleep(moment).await;
        process.kill().await;
        let killed = place.clock().now().boot;
        soon("the clients to notice", async { while work.join_next().await.is_some() {} }).await;

        let old = books.open().tokens[before..].to_vec();
        if stays_down {
            // The feed's last tick was sent before the kill, and its age counts from then, however busy this machine is.
            let last = soon("a stale feed", last_use(&place, &verifier, &old)).await;
            let late = last.map(|began| began.since(killed)).filter(|after| *after > FEED_STALE);
            assert_eq!(late, None, "seed {seed}, round {round}: a use began so long after the kill");
        }
        let report = ledger::verify(&Dir::at(place.world.file("state")), None)
            .unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
        assert_eq!(report.epoch, round + 1);
        all_recorded(&place, &old, &format!("seed {seed}, round {round}"));
        process = place.serve().await;
        holds(&place, &books, &mut dice, &format!("seed {seed}, round {round}")).await;
        nothing_old_is_good(&place, &verifier, &old, round).await;
    }
    process.stop().await;
    let report = ledger::verify(&Dir::at(place.world.file("state")), None).unwrap();
    assert_eq!(report.epoch, rounds + 1);
    let book = books.open();
    println!(
        "{} jobs, {} ended durably, {} locks, {} tokens, {} renewals, {} records in {} segments",
        book.jobs.len(),
        book.closed.len(),
        book.locks.len(),
        book.tokens.len(),
        book.renewed,
        report.records,
        report.segments
    );
    assert!(!book.closed.is_empty() && !book.tokens.is_empty() && book.locks.len() > 1, "nothing was done");
    assert!(book.locks.values().any(|f| *f == Fate::Stands), "no lock answered durable");
}

/// Each token that was handed out has a record on disk, because the record was written first.
fn all_recorded(place: &Place, tokens: &[(String, String)], at: &str) {
    let ledger = ledger_text(&place.world.file("state"));
    for (token, holder) in tokens {
        let claims = claims_of(token);
        let record = format!("\"jti\":{}", claims["jti"]);
        assert!(ledger.contains(&record), "{at}: {holder} has a token that no record tells of: {claims}");
    }
}

/// The claims of a token.
fn claims_of(token: &str) -> serde_json::Value {
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

/// Every lock with the operator who set it, read page by page.
async fn all_locks(operator: &Client) -> BTreeMap<String, String> {
    let (mut all, mut page_token) = (BTreeMap::new(), String::new());
    loop {
        let request = v1::ListLocksRequest { page_size: 1_000, page_token };
        let page = operator.operators().list_locks(request).await.unwrap().into_inner();
        all.extend(page.locks.into_iter().map(|l| (l.name, l.by)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// The state is as the daemon has answered before.
async fn holds(place: &Place, books: &Books, dice: &mut Dice, at: &str) {
    let (launcher, operator) = (place.client(LAUNCHER), place.client(OPERATOR));
    let locks = all_locks(&operator).await;
    let (jobs, closed, attempts, fates) = {
        let book = books.open();
        let earlier = book.jobs.len().saturating_sub(60) as u64;
        let mut jobs: Vec<_> = book.jobs.clone().into_iter().collect();
        // Choosing the jobs of the last rounds would need a clock, so a sample of all jobs is checked.
        while jobs.len() as u64 > 60 + EARLIER_JOBS.min(earlier) {
            jobs.swap_remove(usize::try_from(dice.roll(jobs.len() as u64)).unwrap());
        }
        (jobs, book.closed.clone(), book.attempts.clone(), book.locks.clone())
    };
    for (name, fate) in &fates {
        match fate {
            Fate::Stands => assert_eq!(locks.get(name).map(String::as_str), Some(OPERATOR), "{at}: {name}"),
            Fate::Lifted => assert!(!locks.contains_key(name), "{at}: {name} was lifted and is back"),
            Fate::Open => {}
        }
    }
    for (key, id) in jobs {
        let job = launcher.job(&id).await;
        if closed.contains(&id) {
            assert_eq!(job.state(), v1::JobState::Closed, "{at}: {id} answered closed");
        }
        let began = attempts.get(&id).copied().unwrap_or(0);
        assert!(job.attempts.len() as u64 >= began, "{at}: {id} had {began} attempts");
        assert_eq!(job.live_leases, 0, "{at}: a lease survived the process");
        for attempt in &job.attempts {
            assert_ne!(attempt.state(), v1::AttemptState::Running, "{at}: {id} has access without a member");
        }
        // The caller's key is still that job's.
        let members = job.spec.as_ref().unwrap().members.clone();
        let again = launcher.create(v1::JobSpec { members, ..spec() }, &key).await.unwrap().into_inner();
        assert_eq!((again.created, again.job.unwrap().id), (false, id), "{at}: key {key}");
    }
}

/// No token of the previous run is valid from the moment at which a verifier with the feed accepts one of the new run.
async fn nothing_old_is_good(place: &Place, verifier: &Verifier, old: &[(String, String)], round: u64) {
    let launcher = place.client(LAUNCHER);
    // An identity belongs to only one job.
    let holder = &*format!("spiffe://k8s.acme.example/ns/ml/job/after-{round}");
    let members = v1::Members { join: vec![holder.into()], ..Default::default() };
    let spec = v1::JobSpec { members: Some(members), ..spec() };
    let job = launcher.create(spec, &format!("after {round}")).await.unwrap().into_inner().job.unwrap().id;
    let began = launcher.begin(&job, "run-1").await.unwrap().into_inner();
    let mut worker = Worker::join(place.client(holder), &job, 1, "rank-0", &began.ticket).await.unwrap();
    worker.keep_alive().await;
    let new = worker.issue(v1::Half::Reading).await;
    soon("the new life at the verifier", async {
        while !accepts(verifier, &new.text, holder).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for (token, holder) in old {
        assert!(!accepts(verifier, token, holder).await, "round {round}: a token of an older epoch is taken");
    }
    let gateway = place.client(GATEWAY);
    for (token, holder) in old.iter().take(3) {
        assert!(!gateway.introspect(token, holder).await.active, "round {round}");
    }
    launcher.end(&job, 1, v1::Outcome::Completed).await.unwrap();
}

/// Waits until all of these are refused. Returns when the last accepted use began.
async fn last_use(place: &Place, verifier: &Verifier, tokens: &[(String, String)]) -> Option<BootTime> {
    let mut last = None;
    loop {
        let began = place.clock().now().boot;
        let mut any = verifier.state().is_ok();
        for (token, holder) in tokens.iter().take(4) {
            any |= accepts(verifier, token, holder).await;
        }
        if !any {
            return last;
        }
        last = Some(began);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The folder of a token's job in the checkpoint line.
fn folder(token: &str) -> Object {
    let job = claims_of(token)["lh"]["job"].as_str().unwrap().to_owned();
    format!("{LINE}/{job}").parse().unwrap()
}

pub async fn accepts(verifier: &Verifier, token: &str, holder: &str) -> bool {
    let (id, tickets) = (holder.parse().unwrap(), TICKETS.parse().unwrap());
    let folder = folder(token);
    let presenter = Presenter::Svid { id: &id, x5t_s256: None };
    verifier.check(token, presenter, &tickets, Action::ReadDataset).await.is_ok()
        || verifier.check(token, presenter, &folder, Action::WriteCheckpoint).await.is_ok()
}
