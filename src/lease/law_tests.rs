//! Laws that need more leases than a client can request.

use std::sync::Arc;

use super::{Facts, Lease, Table, Terms, Unborn};
use crate::{
    clock::LeaseTime,
    fence::{Registry, Seq},
    limits::{LEASES_ENDED_MAX, LEASES_PER_JOB_MAX},
    name::{AttemptNumber, FenceName, Half, JobId, LeaseId},
    policy::Grant,
};

const JOB: JobId = JobId(7);
const NOW: LeaseTime = LeaseTime(1_000_000);
const DUE: LeaseTime = LeaseTime(2_000_000);

struct QuotaScene {
    fences: Registry,
    table: Table,
    next: u128,
}

impl QuotaScene {
    fn new() -> Self {
        QuotaScene { fences: Registry::new(Seq(0)), table: Table::default(), next: 0 }
    }

    /// A lease of a job, of one of a hundred holders and tenants, so that only the limit of the job is reached.
    fn insert(&mut self, job: JobId) -> Result<Arc<Lease>, Unborn> {
        self.next += 1;
        let n = self.next % 100;
        let facts = Facts {
            tenant: format!("t{n}").parse().unwrap(),
            job,
            attempt: AttemptNumber::FIRST,
            instance: "rank-0".parse().unwrap(),
            holder: format!("spiffe://td.example/w/{n}").parse().unwrap(),
            half: Half::Reading,
            audience: "spiffe://td.example/files".parse().unwrap(),
            scopes: [].into(),
        };
        let stand = self.fences.stand([FenceName::job(job)]);
        let terms = Terms {
            id: LeaseId(self.next),
            issued: NOW,
            deadline: DUE,
            latest: DUE,
            facts: Arc::new(facts),
            s3_secret: None,
        };
        self.table.insert(Grant::for_test(stand, self.fences.revision()), terms)
    }
}

// Proves law 07.
#[test]
fn the_quota_of_a_job_is_freed_by_an_ending() {
    let mut s = QuotaScene::new();
    for _ in 0..LEASES_PER_JOB_MAX {
        s.insert(JOB).unwrap();
    }
    assert!(matches!(s.insert(JOB), Err(Unborn::Quota(_))));
    assert_eq!((s.table.len(), s.table.of_job_count(JOB)), (LEASES_PER_JOB_MAX, LEASES_PER_JOB_MAX));
    assert!(s.table.find(LeaseId(s.next)).is_none(), "what was refused is there");
    // Others are unharmed, and each way to end frees a slot.
    s.insert(JobId(8)).unwrap();
    s.table.remove(LeaseId(1), NOW, "released").unwrap();
    s.insert(JOB).unwrap();
    assert!(s.insert(JOB).is_err());
    s.fences.lower(&FenceName::job(JOB), NOW);
    assert_eq!(s.table.sweep(&FenceName::job(JOB), NOW, "revoked").len(), LEASES_PER_JOB_MAX);
    assert_eq!((s.table.len(), s.table.of_job_count(JOB)), (1, 0));
    s.insert(JOB).unwrap();
}

// Proves law 33.
#[test]
fn one_turn_of_the_clean_up_is_bounded_work() {
    const ALL: usize = 5_000;
    const TURN: usize = 700;
    let mut s = QuotaScene::new();
    let leases: Vec<_> = (0..ALL).map(|_| s.insert(JOB).unwrap()).collect();
    assert!(leases.iter().all(|l| l.check(LeaseTime(DUE.0 - 1)).is_ok()));
    // All have ended at the deadline, before they are removed.
    assert!(leases.iter().all(|l| l.check(DUE).is_err()));
    assert_eq!(s.table.len(), ALL);
    let late = LeaseTime(DUE.0 + 1_000);
    let (mut left, mut turns) = (ALL, 0);
    while left > 0 {
        let (gone, looked) = s.table.expire(late, TURN);
        assert!(looked <= TURN && !gone.is_empty(), "a turn looked at {looked}");
        left -= gone.len();
        turns += 1;
        assert_eq!(s.table.len(), left);
    }
    assert_eq!(turns, ALL.div_ceil(TURN));
}

// Proves law 36.
#[test]
fn the_oldest_ended_leases_are_dropped_first() {
    let mut s = QuotaScene::new();
    let more = 10;
    for _ in 0..LEASES_ENDED_MAX + more {
        let lease = s.insert(JOB).unwrap();
        s.table.remove(lease.id, NOW, "released").unwrap();
    }
    assert_eq!(s.table.ended().len(), LEASES_ENDED_MAX);
    assert!(s.table.find_ended(LeaseId(more as u128)).is_none());
    assert_eq!(s.table.find_ended(LeaseId(more as u128 + 1)).unwrap().cause.as_ref(), "released");
    assert!(s.table.is_empty());
}
