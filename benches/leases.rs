//! Leases at the size of section 11 of the design: 1,000,000 of them, or as many as the first argument says.
//!
//! `cargo bench --bench leases`, or `cargo bench --bench leases -- 100000`. Figures go to stdout; nothing is asserted, since a
//! timed test fails on somebody else's machine.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a bench measures by the machine's clock and ends where it cannot go on"
)]

use std::{
    collections::BTreeSet,
    hint::black_box,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use leasehold::{
    catalog::Catalog,
    clock::{LeaseTime, Wall},
    fence::{Registry, Seq, Stand},
    lease::{Facts, Quotas, Table, Terms},
    name::{Action, AttemptNumber, FenceName, Half, JobId, LeaseId, ResourceName, SpiffeId, TenantName},
    policy::{Bundle, Decision, Engine, Explain, Grant, Phase, PolicySource},
};

const NOW: LeaseTime = LeaseTime(1_800_000_000_000);
const TTL: Duration = Duration::from_secs(300);
const DATASET: &str = "dataset:acme/tickets@v3";
/// Leases that are stood for, decided and inserted at a time.
const BATCH: usize = 1_000;
/// Leases looked at in one turn, as the daemon does.
const TURN: usize = 2_000;
const MEMBERS: usize = 4;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let n: usize = arguments.next().map_or(1_000_000, |a| a.parse().unwrap());
    let asking = Asking::new();
    println!("{n} leases, 12 fences each, {MEMBERS} members an attempt");
    for per_attempt in [1_000, 20] {
        lease_by_lease(&asking, n, per_attempt);
    }
    lowering(&asking);
    draining(&asking, n);
}

/// The memory, and what is done with one lease at a time.
fn lease_by_lease(asking: &Asking, n: usize, per_attempt: usize) {
    println!("\n{per_attempt} leases an attempt");
    let before = resident();
    let world = World::new();
    let mut spent = Duration::ZERO;
    world.fill(
        asking,
        n,
        per_attempt,
        |i| Duration::from_millis(300_000 + i as u64 % 1_000 * 256),
        &mut spent,
    );
    each("stand and insert", n, spent);
    let bytes = resident().saturating_sub(before) as f64 / n as f64;
    println!("  {:<44} {bytes:>10.0} B", "resident memory, all structures");

    let order: Vec<LeaseId> = (0..n).map(|i| id(i.wrapping_mul(7_919) % n)).collect();
    let held = world.table.find(id(n / 2)).unwrap();
    let checks = 20_000_000;
    let from = Instant::now();
    for i in 0..checks {
        black_box(held.check(LeaseTime(NOW.0 + (i as u64 & 1)))).unwrap();
    }
    each("check, held", checks, from.elapsed());
    let from = Instant::now();
    for id in &order {
        black_box(world.table.find(*id).unwrap().check(NOW)).unwrap();
    }
    each("check, looked up at random", n, from.elapsed());
    let decided = asking.grant(world.fences.stand([FenceName::epoch()]), &world.fences);
    let from = Instant::now();
    for id in &order {
        world.table.find(*id).unwrap().renew(&decided, 1, NOW, NOW.plus(TTL)).unwrap();
    }
    each("renew, looked up at random", n, from.elapsed());

    let attempts = (n / per_attempt).min(1_000);
    let names: Vec<FenceName> = (0..attempts).map(attempt).collect();
    let from = Instant::now();
    for name in &names {
        assert_eq!(world.fences.lower(name, NOW).behind, per_attempt as u64);
    }
    each("lower an attempt", attempts, from.elapsed());
    let from = Instant::now();
    let swept: usize = names.iter().map(|name| world.table.sweep(name, NOW, "completed").len()).sum();
    each("sweep behind it, a lease", swept, from.elapsed());

    drop((held, decided));
    // All that is left goes, and the same comes again: memory does not grow by it.
    while world.table.expire(NOW.plus(TTL * 10), TURN).1 > 0 {}
    world.fences.prune(NOW.plus(TTL * 10), TTL);
    assert!(world.table.is_empty() && world.fences.is_empty());
    world.fill(asking, n, per_attempt, |_| TTL, &mut Duration::default());
    let again = resident().saturating_sub(before) as f64 / n as f64;
    println!("  {:<44} {again:>10.0} B", "resident memory, filled a second time");
}

/// Names with ten leases behind them against such with a hundred thousand.
fn lowering(asking: &Asking) {
    const NAMES: usize = 101;
    let world = World::new();
    let mut i = 0;
    for (size, behind) in [("few", 10), ("many", 100_000)] {
        let names: Vec<FenceName> =
            (0..NAMES).map(|k| format!("human:{size}-{k}").parse().unwrap()).collect();
        for _ in 0..behind {
            let grant = asking.grant(world.fences.stand(names.iter().cloned()), &world.fences);
            world.table.insert(grant, terms(i, facts(i / 1_000, 0), TTL)).unwrap();
            i += 1;
        }
    }
    println!("\nlowering, median of {NAMES}");
    let mut ratio = 1.0;
    for (size, behind) in [("few", 10), ("many", 100_000)] {
        let mut took: Vec<Duration> = (0..NAMES)
            .map(|k| {
                let name: FenceName = format!("human:{size}-{k}").parse().unwrap();
                let from = Instant::now();
                let lowered = world.fences.lower(&name, NOW);
                let took = from.elapsed();
                assert_eq!(lowered.behind, behind);
                took
            })
            .collect();
        took.sort_unstable();
        let median = took.get(NAMES / 2).copied().unwrap();
        println!("  {:<44} {:>10} ns", format!("{behind} leases behind the name"), median.as_nanos());
        ratio = median.as_nanos() as f64 / ratio;
    }
    println!("  {:<44} {:>10.2}", "ratio", ratio);
}

/// All leases have one deadline.
fn draining(asking: &Asking, n: usize) {
    println!("\n{n} leases with one deadline");
    let world = Arc::new(World::new());
    world.fill(asking, n, 1_000, |_| TTL, &mut Duration::default());
    let idle = issuing(asking, &world, n, 50_000, || true);
    let held = world.table.find(id(n / 2)).unwrap();
    let late = NOW.plus(TTL);
    assert!(held.check(late).is_err(), "a late accept");
    let w = world.clone();
    let drain = thread::spawn(move || {
        let now = late.plus(Duration::from_millis(256));
        let (mut worst, from) = (Duration::ZERO, Instant::now());
        let mut gone = 0;
        loop {
            let turn = Instant::now();
            let (ended, looked) = w.table.expire(now, TURN);
            if looked == 0 {
                return (gone, from.elapsed(), worst);
            }
            gone += ended.len();
            worst = worst.max(turn.elapsed());
            thread::yield_now();
        }
    });
    let meanwhile = issuing(asking, &world, n + 50_000, 200_000, || !drain.is_finished());
    let (gone, took, worst) = drain.join().unwrap();
    println!("  {:<44} {:>10.0} ms", format!("{gone} drained in turns of {TURN}"), took.as_secs_f64() * 1e3);
    println!("  {:<44} {:>10.0} µs", "the longest turn", worst.as_secs_f64() * 1e6);
    println!("  {:<44} {:>10.1} µs", "p99 of stand and insert, idle", idle.as_secs_f64() * 1e6);
    println!("  {:<44} {:>10.1} µs", "p99 of stand and insert, meanwhile", meanwhile.as_secs_f64() * 1e6);
}

/// The 99th percentile of a stand and an insert, at most `max` of them.
fn issuing(asking: &Asking, world: &World, from: usize, max: usize, go_on: impl Fn() -> bool) -> Duration {
    let mut took = Vec::new();
    for i in from..from + max {
        if !go_on() {
            break;
        }
        let (names, facts) = (names(i / 1_000, i % MEMBERS), facts(i / 1_000, i % MEMBERS));
        let start = Instant::now();
        let stand = world.fences.stand(names);
        let stood = start.elapsed();
        let grant = asking.grant(stand, &world.fences);
        let start = Instant::now();
        // Past the one deadline, so that the drain leaves it alone.
        world.table.insert(grant, terms(i, facts, TTL * 3)).unwrap();
        took.push(stood + start.elapsed());
    }
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

struct World {
    fences: Registry,
    table: Table,
}

impl World {
    fn new() -> Self {
        // The bench has one tenant and few holders.
        let quotas = Quotas { tenant: usize::MAX, holder: usize::MAX, job: usize::MAX, daemon: usize::MAX };
        World { fences: Registry::new(Seq(0)), table: Table::new(quotas) }
    }

    fn fill(
        &self,
        asking: &Asking,
        n: usize,
        per_attempt: usize,
        ttl: impl Fn(usize) -> Duration,
        spent: &mut Duration,
    ) {
        for batch in (0..n).step_by(BATCH) {
            let batch = batch..(batch + BATCH).min(n);
            let wanted: Vec<_> = batch.clone().map(|i| names(i / per_attempt, i % MEMBERS)).collect();
            let from = Instant::now();
            let stands: Vec<Stand> = wanted.into_iter().map(|names| self.fences.stand(names)).collect();
            *spent += from.elapsed();
            let ready: Vec<_> = batch
                .zip(stands)
                .map(|(i, stand)| {
                    let terms = terms(i, facts(i / per_attempt, i % MEMBERS), ttl(i));
                    (asking.grant(stand, &self.fences), terms)
                })
                .collect();
            let from = Instant::now();
            for (grant, terms) in ready {
                self.table.insert(grant, terms).unwrap();
            }
            *spent += from.elapsed();
        }
    }
}

/// The shipped policies over the example catalog, and one question that they allow.
struct Asking {
    engine: Engine,
    holder: SpiffeId,
    tenant: TenantName,
    parts: Vec<(Action, ResourceName)>,
    approved: BTreeSet<String>,
}

impl Asking {
    fn new() -> Self {
        let catalog = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/catalog.d");
        let catalog = Catalog::load(&catalog).unwrap();
        let engine = Engine::load(&PolicySource::Default, &catalog, Explain::Requester).unwrap();
        Asking {
            engine,
            holder: holder(0, 0),
            tenant: "acme".parse().unwrap(),
            parts: vec![(Action::ReadDataset, DATASET.parse().unwrap())],
            // Tickets hold personal data: their gate is open.
            approved: ["gate-sensitive-data".to_owned()].into(),
        }
    }

    fn grant(&self, stand: Stand, fences: &Registry) -> Grant {
        let bundle = Bundle {
            job: "j-00000000000000000000000001",
            tenant: &self.tenant,
            attempt: 1,
            phase: Phase::Running,
            purpose: "support-tuning",
            method: None,
            ttl: TTL,
            now: Wall(NOW.0),
            approved: &self.approved,
            own_checkpoint: true,
            parts: &self.parts,
        };
        match self.engine.decide(&self.holder, &bundle, stand, fences.revision()) {
            Decision::Grant(grant) => grant,
            other => panic!("the example policies do not allow it: {other:?}"),
        }
    }
}

fn id(i: usize) -> LeaseId {
    // Spread as random ids are, and found again by their number.
    let low = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let high = (low ^ (low >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    LeaseId(u128::from(high ^ (high >> 32)) << 64 | u128::from(low ^ (low >> 31)))
}

fn job(j: usize) -> JobId {
    JobId(u128::from((j as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | j as u128)
}

fn attempt(j: usize) -> FenceName {
    FenceName::attempt(job(j), AttemptNumber::FIRST)
}

fn holder(j: usize, member: usize) -> SpiffeId {
    format!("spiffe://k8s.acme.example/ns/ml/job/j{j}-m{member}").parse().unwrap()
}

/// What a reading lease of a job that one person launched stands behind.
fn names(j: usize, member: usize) -> Vec<FenceName> {
    let (job, n) = (job(j), AttemptNumber::FIRST);
    let instance: leasehold::name::InstanceName = format!("node-{member}").parse().unwrap();
    let holder = holder(j, member);
    let dataset: ResourceName = DATASET.parse().unwrap();
    vec![
        FenceName::epoch(),
        FenceName::tenant("acme".parse().unwrap()),
        FenceName::identity("spiffe://k8s.acme.example/ns/ci/sa/launcher".parse().unwrap()),
        FenceName::domain(holder.trust_domain()),
        FenceName::resource(dataset.unversioned()),
        FenceName::resource(dataset),
        FenceName::job(job),
        FenceName::attempt(job, n),
        FenceName::attempt_reading(job, n),
        FenceName::member(job, n, instance.clone()),
        FenceName::member_reading(job, n, instance),
        FenceName::identity(holder),
    ]
}

fn facts(j: usize, member: usize) -> Arc<Facts> {
    Arc::new(Facts {
        tenant: "acme".parse().unwrap(),
        job: job(j),
        attempt: AttemptNumber::FIRST,
        instance: format!("node-{member}").parse().unwrap(),
        holder: holder(j, member),
        half: Half::Reading,
        audience: "spiffe://k8s.acme.example/ns/data/sa/gateway".parse().unwrap(),
        scopes: vec![leasehold::name::Scope::whole(DATASET.parse().unwrap())],
    })
}

fn terms(i: usize, facts: Arc<Facts>, ttl: Duration) -> Terms {
    Terms { id: id(i), issued: NOW, deadline: NOW.plus(ttl), latest: NOW.plus(TTL * 100), facts }
}

fn each(what: &str, times: usize, took: Duration) {
    println!("  {what:<44} {:>10.1} ns", took.as_nanos() as f64 / times as f64);
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * 4_096
}
