//! Counts, quotas and indices under interleavings.

use std::sync::Arc;

use leasehold::internals::{
    fence::{Registry, Seq},
    lease::{QuotaExceeded, Quotas, Table, Unborn},
    policy::Grant,
};
use shuttle::thread;

use super::world::{JOB, Leaves, NOW, Order, World, attempt, explore, facts, job, terms};

// Proves law 07.
#[test]
fn a_quota_is_never_exceeded_by_concurrent_requests() {
    explore(|| {
        let quotas = Quotas { job: 2, ..Quotas::default() };
        let fences = Arc::new(Registry::new(Seq(0)));
        let table = Arc::new(Table::new(quotas));
        let threads: Vec<_> = [1, 2, 3]
            .map(|id| {
                let (fences, table) = (fences.clone(), table.clone());
                thread::spawn(move || {
                    let grant = Grant::for_test(fences.stand([job(), attempt()]), fences.revision());
                    table.insert(grant, terms(id))
                })
            })
            .into();
        let results: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 2);
        let full = QuotaExceeded::Job(2);
        assert!(results.iter().any(|r| matches!(r, Err(Unborn::Quota(q)) if *q == full)));
        assert_eq!((table.len(), table.of_job_count(JOB)), (2, 2));
    });
}

// Proves law 07.
#[test]
fn a_lowering_frees_places_before_its_sweep() {
    explore(|| {
        let quotas = Quotas { daemon: 2, ..Quotas::default() };
        let fences = Arc::new(Registry::new(Seq(0)));
        let table = Arc::new(Table::new(quotas));
        let insert = |id| {
            let grant = Grant::for_test(fences.stand([job(), attempt()]), fences.revision());
            table.insert(grant, terms(id)).map(drop)
        };
        assert_eq!((insert(1), insert(2)), (Ok(()), Ok(())));
        fences.lower(&attempt(), NOW);
        let t2 = table.clone();
        let sweeper = thread::spawn(move || t2.sweep(&attempt(), NOW, "ended").len());
        assert_eq!((insert(3), insert(4)), (Ok(()), Ok(())), "a dead lease took a place");
        let told = sweeper.join().unwrap() + table.sweep(&attempt(), NOW, "ended").len();
        assert_eq!(told, 2, "law 26: each ending is told once");
        assert_eq!((table.len(), table.of_job_count(JOB), table.of_holder_count(&facts().holder)), (2, 2, 2));
    });
}

// Proves law 34.
#[test]
fn counts_and_indices_match_the_live_set() {
    explore(|| {
        let w = World::new();
        let threads = [
            thread::spawn({
                let w = w.clone();
                move || drop((w.issue(1, Leaves::Nothing), w.issue(2, Leaves::Nothing)))
            }),
            thread::spawn({
                let w = w.clone();
                move || {
                    w.table.remove(leasehold::name::LeaseId(1), NOW, "released");
                    w.table.expire(leasehold::clock::LeaseTime(NOW.0 + 90_000), 1);
                }
            }),
            thread::spawn({
                let w = w.clone();
                move || w.end(Order::Right)
            }),
        ];
        for t in threads {
            t.join().unwrap();
        }
        w.assert_in_step();
        assert!(w.table.is_empty());
        let ended = w.table.ended();
        let mut ids: Vec<_> = ended.iter().map(|e| e.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ended.len(), "law 26: a lease ended twice");
    });
}
