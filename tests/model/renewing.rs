//! Renewals against endings, expiries and each other.

use leasehold::{
    clock::LeaseTime,
    internals::lease::{Lease, LeaseRefused},
    name::LeaseId,
};
use shuttle::{sync::atomic::Ordering, thread};

use super::world::{Leaves, NOW, Order, World, attempt, explore, terms};

const SOON: LeaseTime = LeaseTime(NOW.0 + 100);
const LATER: LeaseTime = LeaseTime(NOW.0 + 60_000);

fn renew(w: &World, lease: &Lease, generation: u32, now: LeaseTime) -> Result<(), LeaseRefused> {
    let decision = w.grant(w.fences.observe(w.names()), w.fences.revision());
    lease.renew(&decision, generation, now, LATER)
}

/// An attempt's fence is lowered while a renewal waits for the disk.
fn the_attempt_is_lowered(keeps_its_stand: bool) {
    explore(move || {
        let w = World::new();
        let lease = w.issue(1, Leaves::Nothing).unwrap();
        let w2 = w.clone();
        let renewal = thread::spawn(move || {
            if !w2.open.load(Ordering::SeqCst) {
                return;
            }
            thread::yield_now();
            if keeps_its_stand {
                let before = w2.acknowledged.load(Ordering::SeqCst);
                let done = renew(&w2, &lease, 1, NOW);
                assert!(!before || done.is_err(), "a renewal succeeded after the end was acknowledged");
            } else {
                // Wrong: a new stand for an old decision.
                let grant = w2.grant(w2.stand(), w2.fences.revision());
                w2.table.remove(lease.id, NOW, "renewed");
                let _ = w2.table.insert(grant, terms(2));
            }
        });
        w.open.store(false, Ordering::SeqCst);
        w.fences.lower(&attempt(), NOW);
        w.acknowledged.store(true, Ordering::SeqCst);
        w.table.sweep(&attempt(), NOW, "ended");
        renewal.join().unwrap();
        assert!(w.good().is_empty(), "a live lease of an ended attempt");
        assert!(w.table.is_empty());
    });
}

// Proves law 16.
#[test]
fn an_attempt_lowered_while_a_renewal_is_in_flight_stays_down() {
    the_attempt_is_lowered(true);
}

// Proves law 16.
#[test]
#[should_panic(expected = "a live lease of an ended attempt")]
fn a_renewal_that_takes_a_new_stand_is_caught() {
    the_attempt_is_lowered(false);
}

/// A lease is ended by its own name while it is renewed.
fn the_lease_is_ended(renew: fn(&World, &Lease) -> bool) {
    explore(move || {
        let w = World::new();
        let lease = w.issue(1, Leaves::Nothing).unwrap();
        let (w2, l2) = (w.clone(), lease.clone());
        let renewal = thread::spawn(move || renew(&w2, &l2));
        assert!(w.table.remove(lease.id, NOW, "revoked").is_some());
        renewal.join().unwrap();
        assert_eq!(lease.check(NOW), Err(LeaseRefused::Ended), "a renewal raised an ended lease");
    });
}

// Proves law 17.
#[test]
fn a_renewal_never_resurrects() {
    the_lease_is_ended(|w, l| renew(w, l, 1, NOW).is_ok());
}

// Proves law 17.
#[test]
#[should_panic(expected = "a renewal raised an ended lease")]
fn a_renewal_by_plain_store_is_caught() {
    the_lease_is_ended(|_, l| l.renew_by_plain_store(1, NOW, LATER).is_ok());
}

// Proves law 16.
#[test]
fn of_two_renewals_at_once_one_makes_the_generation() {
    explore(|| {
        let w = World::new();
        let lease = w.issue(1, Leaves::Nothing).unwrap();
        let (w2, l2) = (w.clone(), lease.clone());
        let other = thread::spawn(move || renew(&w2, &l2, 1, NOW));
        let results = [renew(&w, &lease, 1, NOW), other.join().unwrap()];
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
        assert!(results.contains(&Err(LeaseRefused::Overtaken)));
        assert_eq!(lease.generation(), 1);
    });
}

/// A deadline fires while the lease is renewed at its last moment.
fn a_deadline_fires(expire: fn(&World, LeaseId)) {
    explore(move || {
        let w = World::new();
        let grant = w.grant(w.stand(), w.fences.revision());
        let mut terms = terms(1);
        terms.deadline = SOON;
        let lease = w.table.insert(grant, terms).unwrap();
        let (w2, l2) = (w.clone(), lease.clone());
        let renewal = thread::spawn(move || renew(&w2, &l2, 1, LeaseTime(SOON.0 - 1)).is_ok());
        expire(&w, lease.id);
        let renewed = renewal.join().unwrap();
        assert_eq!(lease.check(SOON).is_ok(), renewed, "an answered renewal was undone by an expiry");
        assert_eq!(w.table.find(lease.id).is_some(), renewed, "an answered renewal was undone by an expiry");
        // It still ends at its new deadline, and that deadline is still checked.
        assert!(lease.check(LATER).is_err());
        w.table.expire(LeaseTime(LATER.0 + 1_000), 10);
        assert!(w.table.is_empty(), "law 19: a renewed lease was never looked at again");
        w.assert_in_step();
    });
}

// Proves law 18.
#[test]
fn an_answered_renewal_is_not_undone_by_an_older_expiry() {
    a_deadline_fires(|w, _| {
        w.table.expire(LeaseTime(SOON.0 + 256), 10);
    });
}

// Proves law 18.
#[test]
#[should_panic(expected = "undone by an expiry")]
fn a_fired_deadline_that_does_not_look_again_is_caught() {
    a_deadline_fires(|w, id| {
        w.table.expire_without_looking(id, SOON);
    });
}

// Proves law 09.
#[test]
fn everything_at_once_leaves_only_good_leases() {
    explore(|| {
        let w = World::new();
        let a = {
            let w = w.clone();
            thread::spawn(move || {
                if let Some(lease) = w.issue(1, Leaves::Nothing) {
                    let _ = renew(&w, &lease, 1, NOW);
                }
            })
        };
        let b = {
            let w = w.clone();
            thread::spawn(move || {
                let _ = w.table.expire(LeaseTime(NOW.0 + 120_000), 1);
                w.fences.prune(NOW, std::time::Duration::ZERO);
            })
        };
        w.end(Order::Right);
        a.join().unwrap();
        b.join().unwrap();
        assert!(w.good().is_empty() && w.table.is_empty());
        w.assert_in_step();
    });
}
