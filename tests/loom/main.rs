//! The smallest histories of fences and leases under every interleaving, and every reordering that loom knows.
//!
//! loom lets an Acquire load see only what a Release store allows, while shuttle treats every access as sequentially
//! consistent. So the orderings of the registry and of the lease's word are tested here, and the whole table in
//! `tests/model`.
//!
//! `cargo test --no-default-features --features loom --test loom`
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use leasehold::{
    clock::LeaseTime,
    internals::{
        fence::{Registry, Revision, Seq, Stand},
        lease::{Facts, LeaseRefused, Table, Terms},
        policy::Grant,
    },
    name::{AttemptNumber, FenceName, Half, JobId, LeaseId},
};
use loom::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

const NOW: LeaseTime = LeaseTime(1_000_000);
const SOON: LeaseTime = LeaseTime(NOW.0 + 100);
const LATER: LeaseTime = LeaseTime(NOW.0 + 60_000);

fn job() -> FenceName {
    FenceName::job(JobId(7))
}

fn terms() -> Terms {
    Terms {
        id: LeaseId(1),
        issued: NOW,
        deadline: SOON,
        latest: LeaseTime(NOW.0 + 600_000),
        facts: Arc::new(Facts {
            tenant: "acme".parse().unwrap(),
            job: JobId(7),
            attempt: AttemptNumber::FIRST,
            instance: "node-1".parse().unwrap(),
            holder: "spiffe://td.example/tuner".parse().unwrap(),
            half: Half::Reading,
            audience: "spiffe://td.example/files".parse().unwrap(),
            scopes: [].into(),
        }),
        s3_secret: None,
    }
}

/// Every interleaving with at most three preemptions.
fn explore(history: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(history);
}

/// How a request takes its stand.
type TakeStand = Box<dyn FnOnce(&Registry) -> Stand + Send>;

/// The first request of a lease looks its fences up.
fn by_name(_: &Registry) -> TakeStand {
    Box::new(|fences| fences.stand([job()]))
}

/// A renewal takes the stand of its lease again.
fn from_earlier(fences: &Registry) -> TakeStand {
    let earlier = fences.stand([job()]);
    Box::new(move |fences| fences.stand_again(&earlier))
}

/// The end of a job against a request. The state is `Relaxed`, because the registry's mutex orders the two.
fn asking_and_ending(prepare: fn(&Registry) -> TakeStand, stands_first: bool, changes_first: bool) {
    explore(move || {
        let fences = Arc::new(Registry::new(Seq(0)));
        let take_stand = prepare(&fences);
        let open = Arc::new(AtomicBool::new(true));
        let (f2, o2) = (fences.clone(), open.clone());
        let asker = thread::spawn(move || {
            let (stand, allowed) = if stands_first {
                let stand = take_stand(&f2);
                (stand, o2.load(Ordering::Relaxed))
            } else {
                let allowed = o2.load(Ordering::Relaxed);
                (take_stand(&f2), allowed)
            };
            allowed.then_some(stand)
        });
        if changes_first {
            open.store(false, Ordering::Relaxed);
            fences.lower(&job(), NOW);
        } else {
            fences.lower(&job(), NOW);
            open.store(false, Ordering::Relaxed);
        }
        let stand = asker.join().unwrap();
        assert!(stand.is_none_or(|s| !s.is_up()), "a live place of an ended job");
    });
}

// Proves law 10.
#[test]
fn a_stand_against_a_lowering_leaves_nothing_live() {
    asking_and_ending(by_name, true, true);
}

// Proves law 10.
#[test]
fn a_stand_taken_again_leaves_nothing_live() {
    asking_and_ending(from_earlier, true, true);
}

// Proves law 10.
#[test]
#[should_panic(expected = "a live place of an ended job")]
fn deciding_before_standing_again_is_caught() {
    asking_and_ending(from_earlier, false, true);
}

// Proves law 10.
#[test]
#[should_panic(expected = "a live place of an ended job")]
fn deciding_before_standing_is_caught() {
    asking_and_ending(by_name, false, true);
}

// Proves law 10.
#[test]
#[should_panic(expected = "a live place of an ended job")]
fn lowering_before_changing_is_caught() {
    asking_and_ending(by_name, true, false);
}

/// A sweep against a request: the rules are read after the revision, and then the revision is checked again.
fn asking_and_sweeping(looks_again: bool, changes_first: bool) {
    explore(move || {
        let fences = Arc::new(Registry::new(Seq(0)));
        let allowed = Arc::new(AtomicBool::new(true));
        // A part of the table: its mutex orders an insert and the sweep that looks for it.
        let inserted = Arc::new(Mutex::new(false));
        let (f2, a2, i2) = (fences.clone(), allowed.clone(), inserted.clone());
        let asker = thread::spawn(move || {
            let revision = f2.revision();
            let stand = f2.stand([job()]);
            if !a2.load(Ordering::Acquire) {
                return None;
            }
            *i2.lock().unwrap() = true;
            (!looks_again || f2.revision() == revision).then_some(stand)
        });
        if changes_first {
            allowed.store(false, Ordering::Release);
            fences.raise_revision();
        } else {
            fences.raise_revision();
            allowed.store(false, Ordering::Release);
        }
        let found = *inserted.lock().unwrap();
        if found {
            fences.lower(&job(), NOW);
        }
        let stand = asker.join().unwrap();
        assert!(stand.is_none_or(|s| !s.is_up()), "a live place that today's policy forbids");
    });
}

// Proves law 20.
#[test]
fn a_sweep_or_the_second_look_at_the_revision_finds_every_lease() {
    asking_and_sweeping(true, true);
}

// Proves law 20.
#[test]
#[should_panic(expected = "today's policy forbids")]
fn no_second_look_at_the_revision_is_caught() {
    asking_and_sweeping(false, true);
}

// Proves law 20.
#[test]
#[should_panic(expected = "today's policy forbids")]
fn raising_before_changing_is_caught() {
    asking_and_sweeping(true, false);
}

/// A client that heard of the lowering, and uses the lease.
fn acknowledged(with: (Ordering, Ordering)) {
    explore(move || {
        let fences = Arc::new(Registry::new(Seq(0)));
        let stand = fences.stand([job()]);
        let answered = Arc::new(AtomicBool::new(false));
        let (f2, a2) = (fences, answered.clone());
        let operator = thread::spawn(move || {
            f2.lower(&job(), NOW);
            a2.store(true, with.0);
        });
        if answered.load(with.1) {
            assert!(!stand.is_up(), "a use began after the answer");
        }
        operator.join().unwrap();
    });
}

// Proves law 10.
#[test]
fn an_answer_that_synchronises_is_enough() {
    acknowledged((Ordering::Release, Ordering::Acquire));
}

// Proves law 10.
#[test]
#[should_panic(expected = "a use began after the answer")]
fn an_answer_that_does_not_is_not() {
    acknowledged((Ordering::Relaxed, Ordering::Relaxed));
}

// Proves law 10.
#[test]
fn a_thread_that_sees_the_fence_down_sees_the_change() {
    explore(|| {
        let fences = Arc::new(Registry::new(Seq(0)));
        let stand = fences.stand([job()]);
        let cause = Arc::new(AtomicU64::new(0));
        let (f2, c2) = (fences, cause.clone());
        let operator = thread::spawn(move || {
            c2.store(9, Ordering::Relaxed);
            f2.lower(&job(), NOW);
        });
        if !stand.is_up() {
            assert_eq!(cause.load(Ordering::Relaxed), 9);
        }
        operator.join().unwrap();
    });
}

// Proves law 25.
#[test]
fn two_lowerings_at_once_are_one() {
    explore(|| {
        let fences = Arc::new(Registry::new(Seq(0)));
        let stand = fences.stand([job()]);
        let f2 = fences.clone();
        let other = thread::spawn(move || f2.lower(&job(), NOW));
        let mine = fences.lower(&job(), NOW);
        let other = other.join().unwrap();
        assert_eq!((mine.seq, other.seq), (Seq(1), Seq(1)));
        assert!(mine.first != other.first && !stand.is_up());
    });
}

/// An entry is pruned while one thread holds a stand and another drops one.
fn pruning(prune: fn(&Registry)) {
    explore(move || {
        let fences = Arc::new(Registry::new(Seq(0)));
        let mine = fences.stand([job()]);
        let f2 = fences.clone();
        let pruner = thread::spawn(move || prune(&f2));
        drop(fences.stand([job()]));
        pruner.join().unwrap();
        fences.lower(&job(), NOW);
        assert!(!mine.is_up(), "a lowering missed a place");
    });
}

// Proves law 10.
#[test]
fn a_fence_that_is_held_is_not_pruned() {
    pruning(|f| {
        f.prune(NOW, std::time::Duration::ZERO);
    });
}

// Proves law 10.
#[test]
#[should_panic(expected = "a lowering missed a place")]
fn pruning_by_the_count_of_leases_is_caught() {
    pruning(|f| f.prune_by_lease_count());
}

/// A renewal at the last moment, while the deadline fires and an operator ends the lease.
// Proves law 17, law 18.
#[test]
fn a_renewal_an_expiry_and_an_end_of_one_lease_have_one_order() {
    explore(|| {
        let fences = Registry::new(Seq(0));
        let table = Arc::new(Table::default());
        let grant = Grant::for_test(fences.stand([job()]), Revision(1));
        let decided = Grant::for_test(fences.stand([job()]), Revision(1));
        let lease = table.insert(grant, terms()).unwrap();
        let (l2, t2) = (lease.clone(), table.clone());
        let renewal = thread::spawn(move || l2.renew(&decided, 1, LeaseTime(SOON.0 - 1), LATER));
        let ending = thread::spawn(move || t2.remove(LeaseId(1), NOW, "revoked").is_some());
        assert!(ending.join().unwrap());
        assert_eq!(lease.check(NOW), Err(LeaseRefused::Ended), "a renewal raised an ended lease");
        let _ = renewal.join().unwrap();
        assert_eq!(lease.check(NOW), Err(LeaseRefused::Ended), "a renewal raised an ended lease");
    });
}

// Proves law 17.
#[test]
#[should_panic(expected = "a renewal raised an ended lease")]
fn a_renewal_by_plain_store_is_caught() {
    explore(|| {
        let fences = Registry::new(Seq(0));
        let table = Table::default();
        let lease = table.insert(Grant::for_test(fences.stand([job()]), Revision(1)), terms()).unwrap();
        let l2 = lease.clone();
        let renewal = thread::spawn(move || l2.renew_by_plain_store(1, NOW, LATER));
        assert!(table.remove(LeaseId(1), NOW, "revoked").is_some());
        let _ = renewal.join().unwrap();
        assert_eq!(lease.check(NOW), Err(LeaseRefused::Ended), "a renewal raised an ended lease");
    });
}
