//! Measures 1,000,000 leases, or another number, which is the first argument.
//!
//! `cargo bench --bench leases`, or `cargo bench --bench leases -- 100000`. Figures go to stdout, each with its target. Nothing
//! is asserted, because a test of times would fail on other machines.
//!
//! Each part runs in its own process, because memory that the allocator kept from one part would hide the use of the next.
//! Times are processor times of the working thread, so that other load of the machine has an effect only through the caches.
//! If one thread may wait for another, they are times of the clock. For comparison, the time of one load from as much memory
//! is printed too.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "a bench measures by the machine's clock and ends if it cannot go on"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    hint::black_box,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, Instant},
};

use leasehold::{
    clock::{LeaseTime, Wall},
    internals::{
        catalog::Catalog,
        fence::{Registry, Seq, Stand},
        lease::{Facts, Quotas, Table, Terms},
        policy::{Bundle, Decision, Engine, Explain, Grant, JobRisk, Phase, PolicySource, RequestFacts},
    },
    name::{
        Action, AttemptNumber, FenceName, Half, InstanceName, JobId, LeaseId, Object, ResourceName, Scope,
        SpiffeId, TenantName,
    },
};
use nix::time::{ClockId, clock_gettime};

const NOW: LeaseTime = LeaseTime(1_800_000_000_000);
const TTL: Duration = Duration::from_secs(300);
const DATASET: &str = "dataset:acme/tickets@v3";
/// How many leases get a stand, a decision and a place in the table at a time.
const BATCH: usize = 1_000;
/// How many leases one turn checks, as in the daemon.
const TURN: usize = 2_000;
const MEMBERS: usize = 4;

/// One measurement: its name, its unit, its target.
const OF_ONE: [(&str, &str, Option<[f64; 2]>); 10] = [
    ("stand and insert", "ns", None),
    ("check, held", "ns", Some([10.0, 10.0])),
    ("check, looked up at random", "ns", Some([250.0, 250.0])),
    ("  one load from as much memory, beside it", "ns", None),
    ("renew, looked up at random", "ns", None),
    ("lower an attempt", "ns", None),
    ("sweep behind it, a lease", "ns", None),
    ("memory of a lease", "B", Some([256.0, 320.0])),
    ("memory of a lease, all ended", "B", None),
    ("memory of a lease, filled a second time", "B", None),
];
const LOWERING: [(&str, &str, Option<f64>); 3] = [
    ("lower a name with 10 leases behind it", "ns", None),
    ("lower a name with 100,000", "ns", None),
    ("  ratio", "", Some(1.2)),
];
const DRAINING: [(&str, &str, Option<f64>); 7] = [
    ("drained, by the clock", "ms", Some(1_000.0)),
    ("drained, processor time", "ms", None),
    ("the longest turn, by the clock", "µs", None),
    ("late accepts", "", Some(0.0)),
    ("p99 of stand and insert, idle, by the clock", "µs", None),
    ("p99 of stand and insert, meanwhile, by the clock", "µs", None),
    ("  ratio", "", Some(2.0)),
];

fn main() {
    let mut arguments = env::args().skip(1).filter(|a| !a.starts_with("--"));
    let n: usize = arguments.next().map_or(1_000_000, |a| a.parse().unwrap());
    match arguments.next().as_deref() {
        None => table(n),
        Some("lowering") => lowering(&Asking::new()),
        Some("draining") => draining(&Asking::new(), n),
        Some(per_attempt) => lease_by_lease(&Asking::new(), n, per_attempt.parse().unwrap()),
    }
}

/// Measures each part in its own process, and prints all results.
fn table(n: usize) {
    println!("{n} leases, 12 fences each, {MEMBERS} members an attempt\n");
    println!("{:<50} {:>14} {:>14}   {:>12}", "", "1,000 an att.", "20 an att.", "target");
    let shapes = [measured(n, "1000"), measured(n, "20")];
    for (what, unit, targets) in OF_ONE {
        let [many, few] = shapes.each_ref().map(|s| s.get(what).copied().unwrap_or(f64::NAN));
        let verdict = targets.map_or_else(String::new, |[a, b]| {
            let target = if a == b { format!("≤ {a} {unit}") } else { format!("≤ {a}, {b} {unit}") };
            let (many, few) = (verdict(many, a), verdict(few, b));
            let both = if many == few { many } else { format!("{many}; {few}") };
            format!("{target:>14}   {both}")
        });
        println!("{what:<50} {:>14} {:>14}   {verdict}", shown(many, unit), shown(few, unit));
    }
    for (part, figures) in [("lowering", &LOWERING[..]), ("draining", &DRAINING[..])] {
        println!();
        let measured = measured(n, part);
        for (what, unit, target) in figures {
            let figure = measured.get(*what).copied().unwrap_or(f64::NAN);
            let verdict = target.map_or_else(String::new, |t| {
                format!("{:>14}   {}", format!("≤ {t} {unit}"), verdict(figure, t))
            });
            println!("{what:<50} {:>14} {:>14}   {verdict}", shown(figure, unit), "");
        }
    }
}

fn shown(figure: f64, unit: &str) -> String {
    let digits = if figure < 10.0 { 2 } else { 0 };
    format!("{figure:.digits$} {unit}").trim_end().to_owned()
}

fn verdict(figure: f64, target: f64) -> String {
    if figure <= target {
        "met".to_owned()
    } else {
        format!("missed by {:.0} %", (figure / target - 1.0) * 100.0)
    }
}

/// The output of a process of this bench about one part.
fn measured(n: usize, part: &str) -> BTreeMap<String, f64> {
    let child = Command::new(env::current_exe().unwrap())
        .args([&n.to_string(), part])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(child.status.success(), "{part}: {}", child.status);
    let text = String::from_utf8(child.stdout).unwrap();
    text.lines().filter_map(|l| l.split_once('\t')).map(|(w, f)| (w.to_owned(), f.parse().unwrap())).collect()
}

fn say(what: &str, figure: f64) {
    println!("{what}\t{figure}");
}

/// The memory, and the operations on one lease.
fn lease_by_lease(asking: &Asking, n: usize, per_attempt: usize) {
    let [
        (insert, ..),
        (check_held, ..),
        (check, ..),
        (load, ..),
        (renew, ..),
        (lower, ..),
        (sweep, ..),
        (memory, ..),
        (ended, ..),
        (second, ..),
    ] = OF_ONE;
    let order: Vec<LeaseId> = (0..n).map(|i| id(i.wrapping_mul(7_919) % n)).collect();
    let before = resident();
    let bytes = || resident().saturating_sub(before) as f64 / n as f64;
    let world = World::new();
    let mut spent = Duration::ZERO;
    let spread = |i| Duration::from_millis(300_000 + i as u64 % 1_000 * 256);
    world.fill(asking, n, per_attempt, spread, &mut spent);
    say(insert, each(n, spent));
    say(memory, bytes());

    let held = world.table.find(id(n / 2)).unwrap();
    let checks = 20_000_000;
    let from = busy();
    for i in 0..checks {
        black_box(held.check(LeaseTime(NOW.0 + (i as u64 & 1)))).unwrap();
    }
    say(check_held, each(checks, busy() - from));
    let from = busy();
    for id in &order {
        black_box(world.table.find(*id).unwrap().check(NOW)).unwrap();
    }
    say(check, each(n, busy() - from));
    say(load, one_load(n));
    let decided = asking.grant(world.fences.stand([FenceName::epoch()]), &world.fences);
    let from = busy();
    for id in &order {
        world.table.find(*id).unwrap().renew(&decided, 1, NOW, NOW.plus(TTL)).unwrap();
    }
    say(renew, each(n, busy() - from));

    let attempts = (n / per_attempt).min(1_000);
    let names: Vec<FenceName> = (0..attempts).map(attempt).collect();
    let from = busy();
    for name in &names {
        assert_eq!(world.fences.lower(name, NOW).behind, per_attempt as u64);
    }
    say(lower, each(attempts, busy() - from));
    let from = busy();
    let swept: usize = names.iter().map(|name| world.table.sweep(name, NOW, "completed").len()).sum();
    say(sweep, each(swept, busy() - from));

    drop((held, decided));
    // All leases are removed, and the same number is made again: memory does not grow.
    while world.table.expire(NOW.plus(TTL * 10), TURN).1 > 0 {}
    world.fences.prune(NOW.plus(TTL * 10), TTL);
    assert!(world.table.is_empty() && world.fences.is_empty());
    say(ended, bytes());
    world.fill(asking, n, per_attempt, spread, &mut Duration::default());
    say(second, bytes());
}

/// Compares names with ten leases behind them and names with a hundred thousand.
fn lowering(asking: &Asking) {
    const NAMES: usize = 101;
    let world = World::new();
    let name = |size: &str, k: usize| format!("human:{size}-{k}").parse::<FenceName>().unwrap();
    let sizes = [("few", 10), ("many", 100_000)];
    let mut i = 0;
    for (size, behind) in sizes {
        let names: Vec<FenceName> = (0..NAMES).map(|k| name(size, k)).collect();
        for _ in 0..behind {
            let grant = asking.grant(world.fences.stand(names.iter().cloned()), &world.fences);
            world.table.insert(grant, terms(i, facts(i / 1_000, 0), TTL)).unwrap();
            i += 1;
        }
    }
    let [few, many] = sizes.map(|(size, behind)| {
        let mut took: Vec<Duration> = (0..NAMES)
            .map(|k| {
                let name = name(size, k);
                let from = busy();
                let lowered = world.fences.lower(&name, NOW);
                let took = busy() - from;
                assert_eq!(lowered.behind, behind);
                took
            })
            .collect();
        took.sort_unstable();
        took.get(NAMES / 2).copied().unwrap().as_nanos() as f64
    });
    let [(of_few, ..), (of_many, ..), (ratio, ..)] = LOWERING;
    say(of_few, few);
    say(of_many, many);
    say(ratio, many / few);
}

/// All leases have one deadline.
fn draining(asking: &Asking, n: usize) {
    let [
        (clock, ..),
        (processor, ..),
        (longest, ..),
        (late_accepts, ..),
        (idle, ..),
        (meanwhile, ..),
        (ratio, ..),
    ] = DRAINING;
    let world = Arc::new(World::new());
    world.fill(asking, n, 1_000, |_| TTL, &mut Duration::default());
    let p99_idle = issuing(asking, &world, n, 50_000, || true);
    let late = NOW.plus(TTL);
    let accepted = (0..n).filter(|i| world.table.find(id(*i)).is_some_and(|l| l.check(late).is_ok())).count();
    say(late_accepts, accepted as f64);
    let w = world.clone();
    let drain = thread::spawn(move || {
        let now = late.plus(Duration::from_millis(256));
        let (mut worst, from, busy_from) = (Duration::ZERO, Instant::now(), busy());
        let mut gone = 0;
        loop {
            let turn = Instant::now();
            let (ended, looked) = w.table.expire(now, TURN);
            if looked == 0 {
                return (gone, from.elapsed(), busy() - busy_from, worst);
            }
            gone += ended.len();
            worst = worst.max(turn.elapsed());
            thread::yield_now();
        }
    });
    let p99 = issuing(asking, &world, n + 50_000, 200_000, || !drain.is_finished());
    let (gone, took, spent, worst) = drain.join().unwrap();
    assert_eq!(gone, n);
    say(clock, took.as_secs_f64() * 1e3);
    say(processor, spent.as_secs_f64() * 1e3);
    say(longest, worst.as_secs_f64() * 1e6);
    say(idle, p99_idle.as_secs_f64() * 1e6);
    say(meanwhile, p99.as_secs_f64() * 1e6);
    say(ratio, p99.as_secs_f64() / p99_idle.as_secs_f64());
}

/// The 99th percentile of at most `max` stands with inserts.
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
        // After the common deadline, so that the drain does not remove it.
        world.table.insert(grant, terms(i, facts, TTL * 3)).unwrap();
        took.push(stood + start.elapsed());
    }
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

/// The time of one load from an unpredictable place, in as much memory as `n` leases use.
fn one_load(n: usize) -> f64 {
    const WORDS: usize = 12;
    let mut next: Vec<[usize; WORDS]> = (0..n).map(|i| [i; WORDS]).collect();
    // One cycle through all places.
    for i in (1..n).rev() {
        let j = id(i).0 as usize % i;
        let (a, b) = (next[i][0], next[j][0]);
        next[i][0] = b;
        next[j][0] = a;
    }
    let from = busy();
    let mut at = 0;
    for _ in 0..n {
        at = next[at][0];
    }
    black_box(at);
    each(n, busy() - from)
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
            let from = busy();
            let stands: Vec<Stand> = wanted.into_iter().map(|names| self.fences.stand(names)).collect();
            *spent += busy() - from;
            let ready: Vec<_> = batch
                .zip(stands)
                .map(|(i, stand)| {
                    let terms = terms(i, facts(i / per_attempt, i % MEMBERS), ttl(i));
                    (asking.grant(stand, &self.fences), terms)
                })
                .collect();
            let from = busy();
            for (grant, terms) in ready {
                self.table.insert(grant, terms).unwrap();
            }
            *spent += busy() - from;
        }
    }
}

/// The shipped policies with the example catalog, and one request that they allow.
struct Asking {
    engine: Engine,
    holder: SpiffeId,
    tenant: TenantName,
    parts: Vec<(Action, Object)>,
    approved: BTreeSet<String>,
    risk: JobRisk,
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
            // Tickets contain personal data, so their gate is approved here.
            approved: ["gate-sensitive-data".to_owned()].into(),
            risk: JobRisk::default(),
        }
    }

    fn grant(&self, stand: Stand, fences: &Registry) -> Grant {
        let bundle = Bundle {
            job: "j-00000000000000000000000001",
            tenant: &self.tenant,
            attempt: 1,
            phase: Phase::Running,
            purpose: "support-tuning",
            facts: RequestFacts::default(),
            risk: &self.risk,
            method: None,
            ttl: TTL,
            now: Wall(NOW.0),
            approved: &self.approved,
            own_checkpoint: true,
            binding: "",
            parts: &self.parts,
        };
        match self.engine.decide(&self.holder, &bundle, stand, fences.revision()) {
            Decision::Grant(grant) => grant,
            other => panic!("the example policies do not allow it: {other:?}"),
        }
    }
}

fn id(i: usize) -> LeaseId {
    // The ids are spread like random ones, and can be computed from a number.
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

/// The names behind which a reading lease is, if one person launched its job.
fn names(j: usize, member: usize) -> Vec<FenceName> {
    let (job, n) = (job(j), AttemptNumber::FIRST);
    let instance: InstanceName = format!("node-{member}").parse().unwrap();
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

/// As the broker makes them: tenant, audience and resource come from the catalog, instance and holder from the
/// connection.
fn facts(j: usize, member: usize) -> Arc<Facts> {
    static CATALOG: LazyLock<(TenantName, SpiffeId, ResourceName)> = LazyLock::new(|| {
        let audience = "spiffe://k8s.acme.example/ns/data/sa/gateway";
        ("acme".parse().unwrap(), audience.parse().unwrap(), DATASET.parse().unwrap())
    });
    let (tenant, audience, dataset) = CATALOG.clone();
    Arc::new(Facts {
        tenant,
        job: job(j),
        attempt: AttemptNumber::FIRST,
        instance: format!("node-{member}").parse().unwrap(),
        holder: holder(j, member),
        half: Half::Reading,
        audience,
        scopes: [Scope::whole(dataset)].into(),
    })
}

fn terms(i: usize, facts: Arc<Facts>, ttl: Duration) -> Terms {
    Terms {
        id: id(i),
        issued: NOW,
        deadline: NOW.plus(ttl),
        latest: NOW.plus(TTL * 100),
        facts,
        s3_secret: None,
    }
}

fn each(times: usize, took: Duration) -> f64 {
    took.as_nanos() as f64 / times as f64
}

/// Processor time of this thread.
fn busy() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// The resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * 4_096
}
