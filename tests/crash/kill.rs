//! `kill -9` at random moments under load, and what must be true of what is left.

use std::{collections::BTreeMap, time::Duration};

use leasehold::{
    clock::{BootTime, Clock},
    ledger::{self, Dir},
    limits::FEED_STALE,
    name::Action,
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

/// Jobs of earlier rounds that are looked at again, so that a round takes as long at the end as in the beginning.
const EARLIER_JOBS: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn law_39_law_39b_a_daemon_killed_at_random_moments_keeps_all_that_it_promised() {
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

        let report = ledger::verify(&Dir::at(place.world.file("state")), None)
            .unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
        assert_eq!(report.epoch, round + 1);
        let old = books.open().tokens[before..].to_vec();
        if stays_down {
            // The feed's last tick came before the kill: what is taken was asked for no later than it is stale. When this test
            // came to look is another matter.
            let last = soon("a stale feed", refuses_all(&verifier, &old, &*place.clock())).await;
            let took = last.map_or(Duration::ZERO, |asked| asked.since(killed));
            assert!(took <= FEED_STALE, "seed {seed}, round {round}: one was taken {took:?} after the kill");
        }
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

/// What was answered is as it was answered.
async fn holds(place: &Place, books: &Books, dice: &mut Dice, at: &str) {
    let (launcher, operator) = (place.client(LAUNCHER), place.client(OPERATOR));
    let locks = operator.operators().list_locks(v1::ListLocksRequest {}).await.unwrap().into_inner().locks;
    let locks: BTreeMap<_, _> = locks.into_iter().map(|l| (l.name, l.by)).collect();
    let (jobs, closed, attempts, fates) = {
        let book = books.open();
        let earlier = book.jobs.len().saturating_sub(60) as u64;
        let mut jobs: Vec<_> = book.jobs.clone().into_iter().collect();
        // All of the last rounds by their order of creation would need a clock: a sample of all serves as well.
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

/// No token of the life before is good, from the moment on at which a fed verifier takes one of the new life.
async fn nothing_old_is_good(place: &Place, verifier: &Verifier, old: &[(String, String)], round: u64) {
    let launcher = place.client(LAUNCHER);
    // An identity belongs to one job alone.
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

/// Waits until none is taken any more, and answers when it was asked about the last one that was.
async fn refuses_all(
    verifier: &Verifier,
    tokens: &[(String, String)],
    clock: &dyn Clock,
) -> Option<BootTime> {
    let mut last = None;
    loop {
        let asked = clock.now().boot;
        let mut any = verifier.state().is_ok();
        for (token, holder) in tokens.iter().take(4) {
            any |= accepts(verifier, token, holder).await;
        }
        if !any {
            return last;
        }
        last = Some(asked);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn accepts(verifier: &Verifier, token: &str, holder: &str) -> bool {
    let (id, tickets) = (holder.parse().unwrap(), TICKETS.parse().unwrap());
    let line = LINE.parse().unwrap();
    let presenter = Presenter::Svid { id: &id, x5t_s256: None };
    verifier.check(token, presenter, &tickets, Action::ReadDataset).await.is_ok()
        || verifier.check(token, presenter, &line, Action::WriteCheckpoint).await.is_ok()
}
