//! Requests against endings: names, stand, state, decision, insert, second look.

use std::sync::Arc;

use leasehold::internals::lease::Lease;
use shuttle::{sync::atomic::Ordering, thread};

use super::world::{JOB, Leaves, NOW, Order, World, attempt, explore, holder, job, name};

/// Two issues while the job ends, and a check.
fn the_job_ends(leaves: Leaves, order: Order) {
    explore(move || {
        let w = World::new();
        let issuers: Vec<_> = [1, 2]
            .map(|id| {
                let w = w.clone();
                thread::spawn(move || drop(w.issue(id, leaves)))
            })
            .into();
        let checker = {
            let w = w.clone();
            thread::spawn(move || {
                for _ in 0..3 {
                    let over = w.acknowledged.load(Ordering::SeqCst);
                    let good = w.good().len();
                    assert!(!over || good == 0, "a use began after the end was acknowledged");
                }
            })
        };
        w.end(order);
        for t in issuers {
            t.join().unwrap();
        }
        checker.join().unwrap();
        assert!(w.good().is_empty(), "a live lease of an ended job");
        assert!(w.table.is_empty(), "a dead lease was left in the table");
        w.assert_in_step();
    });
}

// Proves law 10.
#[test]
fn no_use_begins_once_the_end_of_a_job_is_acknowledged() {
    the_job_ends(Leaves::Nothing, Order::Right);
}

// Proves law 10.
#[test]
#[should_panic(expected = "after the end was acknowledged")]
fn deciding_before_standing_is_caught() {
    // The schedule decides which of the two shows it first; both are the same lease.
    the_job_ends_while_it_is_read(Leaves::StandingFirst, Order::Right);
}

// Proves law 10.
#[test]
#[should_panic(expected = "after the end was acknowledged")]
fn lowering_before_the_state_is_changed_is_caught() {
    the_job_ends_while_it_is_read(Leaves::Nothing, Order::LowersBeforeChanging);
}

// Proves law 06.
#[test]
#[should_panic(expected = "a dead lease was left in the table")]
fn an_insert_without_a_second_look_at_the_fences_is_caught() {
    the_job_ends(Leaves::SecondLookAtFences, Order::Right);
}

/// As above, but checked after all threads have ended.
fn the_job_ends_while_it_is_read(leaves: Leaves, order: Order) {
    explore(move || {
        let w = World::new();
        let w2 = w.clone();
        let issuer = thread::spawn(move || drop(w2.issue(1, leaves)));
        w.end(order);
        issuer.join().unwrap();
        assert!(w.good().is_empty(), "a lease is good after the end was acknowledged");
    });
}

/// The catalog says that the job reads another version. A lease that is not behind that version is no longer allowed.
fn the_catalog_is_reloaded(leaves: Leaves, order: Order) {
    explore(move || {
        let w = World::new();
        let w2 = w.clone();
        let issuer = thread::spawn(move || drop(w2.issue(1, leaves)));
        let reader = name("dataset:acme/tickets@v2");
        let allows = |l: &Lease| l.stand().names().any(|n| *n == reader);
        w.change(order, |w| w.version.store(1, Ordering::SeqCst), allows);
        issuer.join().unwrap();
        for lease in w.good() {
            assert!(allows(&lease), "a live lease stands on the names of the old catalog");
        }
        // A name from the present catalog ends it.
        w.fences.lower(&reader, NOW);
        assert!(w.good().is_empty(), "a lowering missed a lease");
    });
}

// Proves law 20.
#[test]
fn names_are_those_of_the_catalog_that_is_in_force() {
    the_catalog_is_reloaded(Leaves::Nothing, Order::Right);
}

// Proves law 20.
#[test]
#[should_panic(expected = "the names of the old catalog")]
fn names_from_before_a_reload_are_caught() {
    the_catalog_is_reloaded(Leaves::RevisionBeforeNames, Order::Right);
}

/// A lock on a prefix of the holder's SPIFFE ID, while an issue waits for the disk.
fn a_prefix_is_locked(leaves: Leaves, order: Order) {
    explore(move || {
        let w = World::new();
        let w2 = w.clone();
        let issuer = thread::spawn(move || drop(w2.issue(1, leaves)));
        w.change(order, |w| w.locked.store(true, Ordering::SeqCst), |_| false);
        issuer.join().unwrap();
        assert!(w.good().is_empty(), "a live lease behind a locked prefix");
    });
}

// Proves law 31.
#[test]
fn a_prefix_lock_while_an_issue_waits_for_the_disk() {
    a_prefix_is_locked(Leaves::Nothing, Order::Right);
}

// Proves law 31.
#[test]
#[should_panic(expected = "a live lease behind a locked prefix")]
fn an_issue_that_does_not_look_at_the_revision_again_is_caught() {
    a_prefix_is_locked(Leaves::SecondLookAtRevision, Order::Right);
}

// Proves law 31.
#[test]
#[should_panic(expected = "a live lease behind a locked prefix")]
fn a_lock_that_sweeps_before_it_raises_the_revision_is_caught() {
    a_prefix_is_locked(Leaves::Nothing, Order::SweepsBeforeRaising);
}

/// A policy that forbids what is being issued.
fn a_policy_is_applied(leaves: Leaves, order: Order) {
    explore(move || {
        let w = World::new();
        let issuers: Vec<_> = [1, 2]
            .map(|id| {
                let w = w.clone();
                thread::spawn(move || drop(w.issue(id, leaves)))
            })
            .into();
        w.change(order, |w| w.allowed.store(false, Ordering::SeqCst), |_| false);
        for t in issuers {
            t.join().unwrap();
        }
        assert!(w.good().is_empty(), "a live lease that today's policy forbids");
        assert!(w.table.is_empty(), "a dead lease was left in the table");
        w.assert_in_step();
    });
}

// Proves law 20.
#[test]
fn a_policy_applied_while_issuing_is_seen() {
    a_policy_is_applied(Leaves::Nothing, Order::Right);
}

// Proves law 20.
#[test]
#[should_panic(expected = "today's policy forbids")]
fn a_revision_raised_before_its_policy_is_caught() {
    a_policy_is_applied(Leaves::Nothing, Order::RaisesBeforeChanging);
}

// Proves law 20.
#[test]
#[should_panic(expected = "today's policy forbids")]
fn a_policy_applied_without_a_second_look_is_caught() {
    a_policy_is_applied(Leaves::SecondLookAtRevision, Order::Right);
}

/// Entries are pruned while an issue holds a stand and has no lease yet.
fn fences_are_pruned(prune: fn(&World)) {
    explore(move || {
        let w = World::new();
        let stand = w.stand();
        let w2 = w.clone();
        let pruner = thread::spawn(move || prune(&w2));
        let w3 = w.clone();
        let other = thread::spawn(move || {
            w3.fences.lower(&attempt(), NOW);
        });
        pruner.join().unwrap();
        other.join().unwrap();
        assert!(!stand.is_up(), "a lowering missed a stand whose fence was pruned");
    });
}

// Proves law 10.
#[test]
fn a_fence_that_an_issue_holds_is_not_pruned() {
    fences_are_pruned(|w| {
        w.fences.prune(NOW, std::time::Duration::ZERO);
    });
}

// Proves law 10.
#[test]
#[should_panic(expected = "a stand whose fence was pruned")]
fn pruning_by_the_count_of_leases_is_caught() {
    fences_are_pruned(|w| w.fences.prune_by_lease_count());
}

// Proves law 10.
#[test]
fn stands_end_together_while_fences_are_pruned() {
    explore(|| {
        let w = World::new();
        let (w2, w3) = (w.clone(), w.clone());
        let pruner = thread::spawn(move || {
            w2.fences.prune(NOW, std::time::Duration::ZERO);
        });
        let passer = thread::spawn(move || drop(w3.stand()));
        let mine = w.stand();
        pruner.join().unwrap();
        passer.join().unwrap();
        assert!(mine.is_up());
        w.fences.lower(&holder(), NOW);
        assert!(!mine.is_up(), "a lowering missed a stand");
    });
}

/// Two operators revoke the same name at once.
fn lowered_twice(lower: fn(&World)) {
    explore(move || {
        let w = World::new();
        let stand = w.stand();
        let mut heard = w.fences.subscribe().lowerings;
        let both: Vec<_> = [1, 2]
            .map(|_| {
                let w = w.clone();
                thread::spawn(move || lower(&w))
            })
            .into();
        for t in both {
            t.join().unwrap();
        }
        assert!(!stand.is_up());
        assert!(heard.try_recv().is_ok());
        assert!(heard.try_recv().is_err(), "one ending became two");
        assert_eq!(w.fences.seq().0, 1, "one ending became two");
    });
}

// Proves law 25.
#[test]
fn two_revocations_of_one_thing_at_once_are_one_ending() {
    lowered_twice(|w| {
        w.fences.lower(&job(), NOW);
    });
}

// Proves law 25.
#[test]
#[should_panic(expected = "one ending became two")]
fn lowering_what_is_down_already_is_caught() {
    lowered_twice(|w| {
        w.fences.lower_in_any_case(&job(), NOW);
    });
}

// Proves law 29.
#[test]
fn a_second_lowering_ends_stands_since_the_first() {
    explore(|| {
        let w = World::new();
        w.fences.lower(&job(), NOW);
        let w2: Arc<World> = w.clone();
        let stander = thread::spawn(move || w2.stand());
        let second = w.fences.lower(&job(), NOW);
        let stand = stander.join().unwrap();
        // It took its stand before the second lowering and is down, or after it and is up.
        assert_eq!(stand.is_up(), stand.at() >= second.seq, "a lowering and a stand disagree on their order");
        assert_eq!(w.table.of_job_count(JOB), 0);
    });
}
