//! The table against a naive model, its quotas, its memory, its events.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use tokio::sync::broadcast::error::TryRecvError;

use super::*;
use crate::{
    fence::{Registry, Revision, Seq},
    lease::LeaseRefused,
    name::{AttemptNumber, Half},
};

const START: LeaseTime = LeaseTime(1_000_000);

/// The holder of a lease: one of two members of one of three jobs. Two of the jobs belong to one tenant. All jobs have the same
/// two members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LeaseHolder {
    job: u8,
    member: u8,
}

impl LeaseHolder {
    fn tenant(self) -> &'static str {
        if self.job == 0 { "globex" } else { "acme" }
    }

    fn holder(self) -> String {
        format!("spiffe://td.example/ns/ml/m{}", self.member)
    }

    fn facts(self) -> Arc<Facts> {
        Arc::new(Facts {
            tenant: self.tenant().parse().unwrap(),
            job: JobId(self.job.into()),
            attempt: AttemptNumber::FIRST,
            instance: format!("m{}", self.member).parse().unwrap(),
            holder: self.holder().parse().unwrap(),
            half: Half::Reading,
            audience: "spiffe://td.example/files".parse().unwrap(),
            scopes: [].into(),
        })
    }

    fn names(self) -> Vec<FenceName> {
        let (job, first) = (JobId(self.job.into()), AttemptNumber::FIRST);
        vec![
            FenceName::tenant(self.tenant().parse().unwrap()),
            FenceName::job(job),
            FenceName::attempt(job, first),
            FenceName::member(job, first, format!("m{}", self.member).parse().unwrap()),
            FenceName::identity(self.holder().parse().unwrap()),
            format!("dataset:acme/d{}", self.job % 2).parse().unwrap(),
        ]
    }
}

fn everybody() -> impl Iterator<Item = LeaseHolder> {
    (0..3).flat_map(|job| (0..2).map(move |member| LeaseHolder { job, member }))
}

fn grant(fences: &Registry, who: LeaseHolder) -> Grant {
    Grant::for_test(fences.stand(who.names()), Revision(1))
}

fn terms(id: u128, who: LeaseHolder, now: LeaseTime, ttl: u64) -> Terms {
    let deadline = now.plus(Duration::from_millis(ttl));
    Terms {
        id: LeaseId(id),
        issued: now,
        deadline,
        latest: now.plus(Duration::from_secs(60)),
        facts: who.facts(),
        s3_secret: None,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Issue {
        job: u8,
        member: u8,
        ttl: u64,
    },
    Renew {
        lease: usize,
        ttl: u64,
    },
    Remove {
        lease: usize,
    },
    /// Lowers one name of a holder, and sweeps the name now or later.
    Lower {
        job: u8,
        member: u8,
        which: usize,
        sweep: bool,
    },
    Pass {
        ms: u64,
    },
    Expire {
        max: usize,
    },
    Prune,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3u8, 0..2u8, 1..5_000u64).prop_map(|(job, member, ttl)| Step::Issue { job, member, ttl }),
        2 => (any::<usize>(), 1..5_000u64).prop_map(|(lease, ttl)| Step::Renew { lease, ttl }),
        1 => any::<usize>().prop_map(|lease| Step::Remove { lease }),
        2 => (0..3u8, 0..2u8, 0..6usize, any::<bool>())
            .prop_map(|(job, member, which, sweep)| Step::Lower { job, member, which, sweep }),
        2 => (0..3_000u64).prop_map(|ms| Step::Pass { ms }),
        2 => (0..6usize).prop_map(|max| Step::Expire { max }),
        1 => Just(Step::Prune),
    ]
}

/// One lease in the list.
#[derive(Debug)]
struct Known {
    who: LeaseHolder,
    deadline: LeaseTime,
    lowered: bool,
}

/// A naive model: a list of leases, which is counted again at each query.
struct Naive {
    now: LeaseTime,
    /// All leases in the table, including ended ones.
    there: BTreeMap<LeaseId, Known>,
    unswept: BTreeSet<FenceName>,
}

impl Naive {
    fn assert_same(&self, table: &Table, fences: &Registry) {
        let ids: BTreeSet<LeaseId> = self.there.keys().copied().collect();
        let found = |leases: Vec<Arc<Lease>>| leases.iter().map(|l| l.id).collect::<BTreeSet<_>>();
        let count = |pass: &dyn Fn(&Known) -> bool| self.there.values().filter(|k| pass(k)).count();
        assert_eq!(found(table.live(None)), ids);
        assert_eq!(table.len(), ids.len());
        let mut places = BTreeSet::new();
        for who in everybody() {
            assert_eq!(table.of_job_count(JobId(who.job.into())), count(&|k| k.who.job == who.job));
            let holder = who.holder().parse().unwrap();
            assert_eq!(table.of_holder_count(&holder), count(&|k| k.who.member == who.member));
            let tenant = who.tenant().parse().unwrap();
            assert_eq!(table.of_tenant_count(&tenant), count(&|k| k.who.tenant() == who.tenant()));
            for name in who.names() {
                let behind: BTreeSet<LeaseId> = self
                    .there
                    .iter()
                    .filter(|(_, k)| k.who.names().contains(&name))
                    .map(|(id, _)| *id)
                    .collect();
                assert_eq!(fences.behind(&name), behind.len() as u64, "{name}");
                assert_eq!(found(table.live(Some(&name))), behind, "{name}");
            }
        }
        for (id, known) in &self.there {
            let lease = table.find(*id).unwrap();
            let good = !known.lowered && self.now < known.deadline;
            assert_eq!(lease.check(self.now).is_ok(), good);
            assert_eq!(lease.deadline(), known.deadline);
            places.insert(known.who);
        }
        let jobs: BTreeSet<u8> = places.iter().map(|w| w.job).collect();
        assert_eq!(
            table.by_job.sizes(),
            (jobs.len(), places.len()),
            "law 35: an index entry without a lease"
        );
        let holders: BTreeSet<u8> = places.iter().map(|w| w.member).collect();
        let tenants: BTreeSet<&str> = places.iter().map(|w| w.tenant()).collect();
        assert_eq!((table.holders.len(), table.tenants.len()), (holders.len(), tenants.len()));
    }

    fn nth(&self, n: usize) -> Option<LeaseId> {
        self.there.keys().nth(n.checked_rem(self.there.len())?).copied()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    // Proves law 34, law 35.
    #[test]
    fn counts_and_indexes_equal_the_live_set(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let fences = Registry::new(Seq(0));
        let table = Table::default();
        let mut naive = Naive { now: START, there: BTreeMap::new(), unswept: BTreeSet::new() };
        let mut generations: BTreeMap<LeaseId, u32> = BTreeMap::new();
        for (id, step) in (1u128..).zip(steps) {
            match step {
                Step::Issue { job, member, ttl } => {
                    let who = LeaseHolder { job, member };
                    let lease = table.insert(grant(&fences, who), terms(id, who, naive.now, ttl)).unwrap();
                    naive.there.insert(lease.id, Known { who, deadline: lease.deadline(), lowered: false });
                }
                Step::Renew { lease, ttl } => {
                    let Some(id) = naive.nth(lease) else { continue };
                    let lease = table.find(id).unwrap();
                    let next = generations.get(&id).copied().unwrap_or(0) + 1;
                    let wanted = naive.now.plus(Duration::from_millis(ttl));
                    let known = naive.there.get_mut(&id).unwrap();
                    let decided = Grant::for_test(fences.observe([FenceName::epoch()]), Revision(1));
                    let done = lease.renew(&decided, next, naive.now, wanted);
                    if known.lowered {
                        prop_assert_eq!(done, Err(LeaseRefused::Lowered));
                    } else if naive.now >= known.deadline {
                        prop_assert_eq!(done, Err(LeaseRefused::Expired));
                    } else {
                        prop_assert_eq!(done, Ok(()));
                        known.deadline = wanted.min(lease.latest);
                        generations.insert(id, next);
                    }
                }
                Step::Remove { lease } => {
                    let Some(id) = naive.nth(lease) else { continue };
                    prop_assert!(table.remove(id, naive.now, "released").is_some());
                    prop_assert!(table.remove(id, naive.now, "released").is_none());
                    prop_assert_eq!(table.find_ended(id).map(|e| e.cause), Some("released".into()));
                    naive.there.remove(&id);
                }
                Step::Lower { job, member, which, sweep } => {
                    let name = LeaseHolder { job, member }.names().swap_remove(which);
                    fences.lower(&name, naive.now);
                    for known in naive.there.values_mut().filter(|k| k.who.names().contains(&name)) {
                        known.lowered = true;
                    }
                    naive.unswept.insert(name);
                    if sweep {
                        for name in std::mem::take(&mut naive.unswept) {
                            let gone = table.sweep(&name, naive.now, "revoked");
                            for lease in gone {
                                let known = naive.there.remove(&lease.id);
                                prop_assert!(known.is_some_and(|k| k.lowered), "law 23: the sweep took a live lease");
                            }
                        }
                        prop_assert!(naive.there.values().all(|k| !k.lowered), "the sweep left a dead lease");
                    }
                }
                Step::Pass { ms } => naive.now = naive.now.plus(Duration::from_millis(ms)),
                Step::Expire { max } => {
                    let (gone, looked) = table.expire(naive.now, max);
                    prop_assert!(gone.len() <= looked && looked <= max, "law 33: more than one turn's work");
                    for lease in gone {
                        let known = naive.there.remove(&lease.id).unwrap();
                        prop_assert!(known.deadline <= naive.now, "a lease was ended before its deadline");
                    }
                }
                Step::Prune => {
                    fences.prune(naive.now, Duration::from_secs(1));
                    table.prune(naive.now);
                }
            }
            naive.assert_same(&table, &fences);
        }
        // At last all reach their deadlines, and no entry is left.
        naive.now = naive.now.plus(Duration::from_secs(120));
        while table.expire(naive.now, 7).1 > 0 {}
        naive.there.clear();
        naive.assert_same(&table, &fences);
        prop_assert_eq!(table.next_deadline(), None);
        fences.prune(naive.now.plus(Duration::from_secs(60)), Duration::from_secs(1));
        prop_assert!(fences.is_empty(), "a fence outlived all that stood behind it");
    }
}

fn quotas() -> Quotas {
    Quotas { job: 2, holder: 3, tenant: 4, daemon: 5 }
}

// Proves law 07.
#[test]
fn each_quota_counts_and_an_ending_frees_a_place() {
    let fences = Registry::new(Seq(0));
    let table = Table::new(quotas());
    let insert = |id, job, member| {
        let who = LeaseHolder { job, member };
        let room = table.room(&who.facts(), START);
        let made = table.insert(grant(&fences, who), terms(id, who, START, 100));
        assert_eq!(room.is_ok(), made.is_ok(), "the question before minting has the same answer");
        made.map(drop)
    };
    assert_eq!((insert(1, 1, 0), insert(2, 1, 0)), (Ok(()), Ok(())));
    assert_eq!(insert(3, 1, 0), Err(QuotaExceeded::Job(2).into()));
    assert_eq!(insert(3, 2, 0), Ok(()));
    assert_eq!(insert(4, 2, 0), Err(QuotaExceeded::Holder(3).into()));
    assert_eq!(insert(4, 2, 1), Ok(()));
    assert_eq!(insert(5, 1, 1), Err(QuotaExceeded::Tenant(4).into()));
    assert_eq!(insert(5, 0, 1), Ok(()));
    assert_eq!(insert(6, 0, 1), Err(QuotaExceeded::Daemon(5).into()));
    table.remove(LeaseId(4), START, "released").unwrap();
    assert_eq!(insert(6, 0, 1), Ok(()));
    assert_eq!(table.len(), 5, "a refused lease takes no place");
}

// Proves law 07.
#[test]
fn a_lowering_frees_places_before_its_sweep() {
    let fences = Registry::new(Seq(0));
    let table = Table::new(quotas());
    let who = LeaseHolder { job: 1, member: 0 };
    for id in [1, 2] {
        table.insert(grant(&fences, who), terms(id, who, START, 100)).unwrap();
    }
    let attempt = FenceName::attempt(JobId(1), AttemptNumber::FIRST);
    fences.lower(&attempt, START);
    assert_eq!(table.room(&who.facts(), START), Ok(()));
    table.insert(grant(&fences, who), terms(3, who, START, 100)).unwrap();
    table.insert(grant(&fences, who), terms(4, who, START, 100)).unwrap();
    assert_eq!(table.room(&who.facts(), START), Err(QuotaExceeded::Job(2)));
    assert_eq!(table.find_ended(LeaseId(1)).map(|e| e.cause), Some(format!("{attempt} was revoked").into()));
    let swept: BTreeSet<u128> = table.sweep(&attempt, START, "ended").iter().map(|l| l.id.0).collect();
    assert_eq!(swept, [1, 2].into());
    assert!(table.sweep(&attempt, START, "ended").is_empty(), "law 26: an ending is reported once");
    assert_eq!(table.len(), 2);
}

// Proves law 06.
#[test]
fn a_lease_born_dead_is_in_no_index() {
    let fences = Registry::new(Seq(0));
    let table = Table::default();
    let who = LeaseHolder { job: 1, member: 0 };
    let late = grant(&fences, who);
    let name = FenceName::job(JobId(1));
    fences.lower(&name, START);
    assert_eq!(table.insert(late, terms(1, who, START, 100)).unwrap_err(), Unborn::Lowered(name.clone()));
    assert!(table.is_empty() && table.find(LeaseId(1)).is_none() && fences.behind(&name) == 0);
    let first = table.insert(grant(&fences, who), terms(2, who, START, 100)).unwrap();
    let twice = table.insert(grant(&fences, who), terms(2, who, START, 900)).unwrap_err();
    assert_eq!(twice, Unborn::IdTaken(LeaseId(2)));
    assert_eq!((table.len(), fences.behind(&name)), (1, 1));
    assert!(Arc::ptr_eq(&table.find(LeaseId(2)).unwrap(), &first));
}

// Proves law 32.
#[test]
fn many_leases_with_one_deadline_end_in_turns() {
    const MANY: u128 = 20_000;
    let fences = Registry::new(Seq(0));
    let table = Table::default();
    let who = LeaseHolder { job: 1, member: 0 };
    let mut held = None;
    for id in 0..MANY {
        held = Some(table.insert(grant(&fences, who), terms(id << 64 | id, who, START, 5_000)).unwrap());
    }
    let deadline = START.plus(Duration::from_secs(5));
    assert_eq!(held.unwrap().check(deadline), Err(LeaseRefused::Expired), "none is cleaned up yet");
    let mut turns = 0;
    // The slot of the deadline is over a moment later.
    let late = deadline.plus(Duration::from_millis(256));
    loop {
        let (gone, looked) = table.expire(late, 1_000);
        assert!(looked <= 1_000);
        if looked == 0 {
            break;
        }
        turns += 1;
        assert_eq!(gone.len(), looked);
        assert!(table.live(None).iter().all(|l| l.check(late).is_err()), "a late accept");
    }
    assert_eq!(turns, 20);
    assert!(table.is_empty() && fences.behind(&FenceName::job(JobId(1))) == 0);
}

// Proves law 36.
#[test]
fn ended_leases_are_kept_for_a_bounded_time_and_number() {
    let fences = Registry::new(Seq(0));
    let table = Table::default();
    let who = LeaseHolder { job: 1, member: 0 };
    let many = limits::LEASES_ENDED_MAX as u128 + 10;
    for id in 0..many {
        table.insert(grant(&fences, who), terms(id, who, START, 5_000)).unwrap();
        table.remove(LeaseId(id), START, "released").unwrap();
    }
    let ended = table.ended();
    assert_eq!(ended.len(), limits::LEASES_ENDED_MAX);
    assert_eq!(ended.first().map(|e| e.id), Some(LeaseId(many - 1)), "newest first");
    assert!(table.find_ended(LeaseId(9)).is_none(), "the oldest went");
    assert!(table.find_ended(LeaseId(10)).is_some());
    table.prune(START.plus(limits::LEASES_ENDED_KEPT));
    assert_eq!(table.ended().len(), limits::LEASES_ENDED_MAX, "they are kept for exactly this long");
    table.prune(START.plus(limits::LEASES_ENDED_KEPT).plus(Duration::from_millis(1)));
    assert!(table.ended().is_empty() && table.find_ended(LeaseId(many - 1)).is_none());
}

// Proves law 36.
#[test]
fn a_second_fill_takes_no_more_room() {
    const MANY: u128 = 30_000;
    let fences = Registry::new(Seq(0));
    let table = Table::default();
    let mut room = Vec::new();
    for fill in 0..3 {
        for n in 0..MANY {
            // The ids differ each time, and are spread evenly over the parts.
            let id = fill * MANY.next_multiple_of(256) + n;
            let who = LeaseHolder { job: u8::try_from(n % 3).unwrap(), member: u8::try_from(n % 2).unwrap() };
            table.insert(grant(&fences, who), terms(id << 64 | id, who, START, 5_000)).unwrap();
        }
        assert_eq!(table.len() as u128, MANY);
        room.push((table.by_id.bytes(), table.by_job.sizes(), table.deadlines.len(), fences.len()));
        while table.expire(START.plus(Duration::from_secs(60)), 1_000).1 > 0 {}
        fences.prune(START, Duration::from_secs(1));
        assert!(table.is_empty() && table.by_job.sizes() == (0, 0) && fences.is_empty());
        assert_eq!((table.deadlines.len(), table.ended().len()), (0, limits::LEASES_ENDED_MAX));
    }
    assert_eq!((&room[1], &room[2]), (&room[0], &room[0]));
}

// Proves law 37.
#[test]
fn a_watcher_that_does_not_read_learns_what_it_lost() {
    let fences = Registry::new(Seq(0));
    let table = Table::default();
    let who = LeaseHolder { job: 1, member: 0 };
    let mut slow = table.watch();
    let pairs = limits::LEASE_EVENTS_BACKLOG as u128 / 2 + 3;
    for id in 0..pairs {
        table.insert(grant(&fences, who), terms(id, who, START, 5_000)).unwrap();
        table.remove(LeaseId(id), START, "released").unwrap();
    }
    assert!(matches!(slow.try_recv(), Err(TryRecvError::Lagged(6))));
    assert!(matches!(slow.try_recv(), Ok(LeaseEvent::Made(l)) if l.id == LeaseId(3)));
    assert!(
        matches!(slow.try_recv(), Ok(LeaseEvent::Ended(e)) if e.id == LeaseId(3) && &*e.cause == "released")
    );
}

#[test]
fn leases_of_one_holder_share_their_facts() {
    let fences = Registry::new(Seq(0));
    let table = Table::default();
    let (one, other) = (LeaseHolder { job: 1, member: 0 }, LeaseHolder { job: 1, member: 1 });
    let a = table.insert(grant(&fences, one), terms(1, one, START, 100)).unwrap();
    let b = table.insert(grant(&fences, one), terms(2, one, START, 100)).unwrap();
    let c = table.insert(grant(&fences, other), terms(3, other, START, 100)).unwrap();
    assert!(Arc::ptr_eq(&a.facts, &b.facts) && !Arc::ptr_eq(&a.facts, &c.facts));
}
