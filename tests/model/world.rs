//! A broker in a few lines: one job with one member, one rule, one prefix lock, over the real registry and table.

use std::sync::Arc;

use leasehold::{
    clock::LeaseTime,
    internals::{
        fence::{Registry, Revision, Seq, Stand},
        lease::{Facts, Lease, Table, Terms},
        policy::Grant,
    },
    name::{AttemptNumber, FenceName, Half, JobId, LeaseId},
};
use shuttle::{
    Config, Runner,
    scheduler::{PctScheduler, RandomScheduler},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

pub const NOW: LeaseTime = LeaseTime(1_000_000);
pub const JOB: JobId = JobId(7);
/// Before the reload, and after it.
const RESOURCE: [&str; 2] = ["dataset:acme/tickets@v1", "dataset:acme/tickets@v2"];

/// Runs a history under random schedules, and under schedules that favour some threads. There are enough of them to detect
/// even the wrong history that a thousand schedules miss one time in twelve. The schedules are the same in every run, so that
/// a fault that was detected once is always detected. `LEASEHOLD_SEED` explores others.
pub fn explore(history: impl Fn() + Send + Sync + 'static) {
    let seed = std::env::var("LEASEHOLD_SEED").map_or(2_026, |n| n.parse().unwrap());
    let history = Arc::new(history);
    let h = history.clone();
    let random = RandomScheduler::new_from_seed(seed, 3_000);
    Runner::new(random, Config::default()).run(move || h());
    let favouring = PctScheduler::new_from_seed(seed, 3, 2_000);
    Runner::new(favouring, Config::default()).run(move || history());
}

pub fn name(text: &str) -> FenceName {
    text.parse().unwrap()
}

pub fn job() -> FenceName {
    FenceName::job(JOB)
}

pub fn attempt() -> FenceName {
    FenceName::attempt(JOB, AttemptNumber::FIRST)
}

pub fn member() -> FenceName {
    FenceName::member(JOB, AttemptNumber::FIRST, "node-1".parse().unwrap())
}

pub fn holder() -> FenceName {
    FenceName::identity(facts().holder.clone())
}

pub fn facts() -> Arc<Facts> {
    Arc::new(Facts {
        tenant: "acme".parse().unwrap(),
        job: JOB,
        attempt: AttemptNumber::FIRST,
        instance: "node-1".parse().unwrap(),
        holder: "spiffe://td.example/ns/ml/tuner".parse().unwrap(),
        half: Half::Reading,
        audience: "spiffe://td.example/files".parse().unwrap(),
        scopes: [].into(),
    })
}

pub fn terms(id: u128) -> Terms {
    Terms {
        id: LeaseId(id),
        issued: NOW,
        deadline: LeaseTime(NOW.0 + 60_000),
        latest: LeaseTime(NOW.0 + 600_000),
        facts: facts(),
        s3_secret: None,
    }
}

/// The rule that an issue leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    Nothing,
    /// Decides, and takes the stand afterwards.
    StandingFirst,
    /// Names its fences, and reads the revision afterwards.
    RevisionBeforeNames,
    /// Hands out the lease without checking the revision.
    SecondLookAtRevision,
    /// Hands out the lease without checking the fences.
    SecondLookAtFences,
}

/// What a reload, a lock on a prefix or an ending does in the wrong order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Right,
    /// Raises the revision, and changes the rules afterwards.
    RaisesBeforeChanging,
    /// Sweeps, and raises the revision afterwards.
    SweepsBeforeRaising,
    /// Lowers, and changes the state afterwards.
    LowersBeforeChanging,
}

pub struct World {
    pub fences: Registry,
    pub table: Table,
    pub open: AtomicBool,
    /// The version of the resource that the job reads, as in the catalog.
    pub version: AtomicU64,
    pub allowed: AtomicBool,
    pub locked: AtomicBool,
    pub acknowledged: AtomicBool,
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::new(World {
            fences: Registry::new(Seq(0)),
            table: Table::default(),
            open: AtomicBool::new(true),
            version: AtomicU64::new(0),
            allowed: AtomicBool::new(true),
            locked: AtomicBool::new(false),
            acknowledged: AtomicBool::new(false),
        })
    }

    pub fn names(&self) -> Vec<FenceName> {
        let version = usize::try_from(self.version.load(Ordering::SeqCst)).unwrap();
        vec![FenceName::epoch(), job(), attempt(), member(), holder(), name(RESOURCE[version])]
    }

    fn permitted(&self) -> bool {
        self.open.load(Ordering::SeqCst)
            && self.allowed.load(Ordering::SeqCst)
            && !self.locked.load(Ordering::SeqCst)
    }

    pub fn stand(&self) -> Stand {
        self.fences.stand(self.names())
    }

    pub fn grant(&self, stand: Stand, revision: Revision) -> Grant {
        Grant::for_test(stand, revision)
    }

    /// Issues one lease as `broker/issue.rs` does.
    pub fn issue(&self, id: u128, leaves: Leaves) -> Option<Arc<Lease>> {
        for turn in 0..3 {
            let id = id + 100 * turn;
            let early_names = (leaves == Leaves::RevisionBeforeNames).then(|| self.names());
            let early = (leaves == Leaves::StandingFirst).then(|| self.permitted());
            let revision = self.fences.revision();
            let names = early_names.unwrap_or_else(|| self.names());
            let stand = self.fences.stand(names);
            if !early.unwrap_or_else(|| self.permitted()) {
                return None;
            }
            let grant = self.grant(stand, revision);
            // Here the record is written to the disk.
            thread::yield_now();
            let lease = if leaves == Leaves::SecondLookAtFences {
                self.table.insert_without_looking(grant, terms(id)).ok()?
            } else {
                self.table.insert(grant, terms(id)).ok()?
            };
            if leaves != Leaves::SecondLookAtRevision && self.fences.revision() != revision {
                self.table.remove(lease.id, NOW, "rules changed while it was issued");
                continue;
            }
            return Some(lease);
        }
        None
    }

    /// Ends the job, as `Store::narrow` does.
    pub fn end(&self, order: Order) {
        if order == Order::LowersBeforeChanging {
            self.fences.lower(&job(), NOW);
            self.open.store(false, Ordering::SeqCst);
        } else {
            self.open.store(false, Ordering::SeqCst);
            self.fences.lower(&job(), NOW);
        }
        self.acknowledged.store(true, Ordering::SeqCst);
        self.table.sweep(&job(), NOW, "completed");
    }

    /// Makes a change that ends leases by a sweep, as `RuleUseCases::replace_rules` and a lock on a prefix do. The sweep
    /// lowers the member's name if the change no longer allows its lease.
    pub fn change(&self, order: Order, change: impl Fn(&World), allows: impl Fn(&Lease) -> bool) {
        let sweep = || {
            if self.table.live(None).iter().any(|l| !allows(l)) {
                self.fences.lower(&member(), NOW);
                self.table.sweep(&member(), NOW, "no longer allowed");
            }
        };
        match order {
            Order::RaisesBeforeChanging => {
                self.fences.raise_revision();
                change(self);
                sweep();
            }
            Order::SweepsBeforeRaising => {
                change(self);
                sweep();
                self.fences.raise_revision();
            }
            Order::Right | Order::LowersBeforeChanging => {
                change(self);
                self.fences.raise_revision();
                sweep();
            }
        }
        self.acknowledged.store(true, Ordering::SeqCst);
    }

    /// The leases that a check accepts.
    pub fn good(&self) -> Vec<Arc<Lease>> {
        self.table.live(None).into_iter().filter(|l| l.check(NOW).is_ok()).collect()
    }

    /// Asserts that counts and indices match the leases.
    pub fn assert_in_step(&self) {
        let live = self.table.live(None);
        assert_eq!(self.table.len(), live.len(), "the count is not that of the live set");
        assert_eq!(self.table.of_job_count(JOB), live.len(), "the job's count is not that of the live set");
        assert_eq!(self.table.of_tenant_count(&facts().tenant), live.len(), "the tenant's count is off");
        assert_eq!(self.table.of_holder_count(&facts().holder), live.len(), "the holder's count is off");
        assert_eq!(self.table.live(Some(&job())).len(), live.len(), "the index by place is off");
        assert_eq!(self.fences.behind(&job()), live.len() as u64, "the fence's count is off");
        assert!(live.iter().all(|l| self.table.find(l.id).is_some()), "the index by id is off");
    }
}
