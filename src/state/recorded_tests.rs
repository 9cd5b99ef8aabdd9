//! The laws of the state that outlives the process, over random histories on a disk that loses unsynced data.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::JoinSet;

use super::{
    keys::TooManyKeys,
    records::{change_record, created_record, spec_digest},
    *,
};
use crate::{
    clock::{Clock, LeaseTime, SystemClock},
    fence::Registry,
    job::{Approver, Begin, Change, Close, DoneWhen, Drain, End, Gate, Job, JobState, Join, Members, Spec},
    ledger::{
        Actor, DecisionRecord, EpochBegan, Event, Fault, Fold, Ledger, Options, ReadError, RiskRecord,
        forgetful::{Dice, Faults, Forgetful},
        verify_folded,
    },
    limits,
    name::{AttemptNumber, Digest, JobId, Outcome, SpiffeId},
    reason::Reason,
    secret::SecretDigest,
};

const LONG: Duration = Duration::from_secs(20);
const NAMES: u64 = 6;
const WINDOW: Duration = Duration::from_secs(15);

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

fn worker() -> SpiffeId {
    "spiffe://td/worker".parse().unwrap()
}

fn actor() -> Actor {
    Actor::SpiffeId(worker())
}

fn decision() -> DecisionRecord {
    DecisionRecord {
        result: "allow".into(),
        rules: Vec::new(),
        policy: Digest::ZERO,
        catalog: Digest::ZERO,
        approved: Vec::new(),
        risk: RiskRecord::default(),
    }
}

fn job(id: u128, at: LeaseTime) -> Job {
    let spec = Spec {
        name: format!("job {id}"),
        tenant: "acme".parse().unwrap(),
        purpose: "tuning".into(),
        why: "to \"see\"".into(),
        ticket: String::new(),
        rollback_to: None,
        prompt_alternative: String::new(),
        sweep: None,
        max_duration: Duration::from_secs(3_600),
        tune: None,
        read: vec!["dataset:acme/tickets@v3".parse().unwrap()],
        write: vec!["checkpoint:acme/support-lora".parse().unwrap()],
        pins: BTreeMap::new(),
        members: Members {
            start: vec![],
            join: vec!["spiffe://td/worker".parse().unwrap()],
            expect: 1,
            max: 2,
            attempts: 3,
            done_when: DoneWhen::All,
        },
        acting_for: None,
        credential_ttl: Some(Duration::from_secs(60)),
        drain: None,
    };
    Job {
        id: JobId(id),
        spec_digest: spec_digest(&spec).unwrap(),
        spec: Arc::new(spec),
        launcher: worker(),
        acting_for: None,
        idempotency_key: format!("key {id}"),
        created: at,
        ends: at.plus(Duration::from_secs(3_600)),
        inputs: Arc::new([]),
        state: JobState::Ready,
        gates: vec![],
        approvals: vec![],
        sweep_place: None,
        emergency: None,
        attempts: vec![],
        closed: None,
        detail: String::new(),
        ended_memberships: Vec::new(),
        compromised: None,
    }
}

const GATE: &str = "gate-a";

/// A job that waits until two people have approved it.
fn gated(id: u128, at: LeaseTime) -> Job {
    job(id, at).held_by(vec![Gate {
        id: GATE.into(),
        explanation: "people first".into(),
        approver_group: "owners".into(),
        approvals_needed: 2,
        approval_ttl: Duration::from_secs(3_600),
    }])
}

fn person(n: u64) -> SpiffeId {
    format!("spiffe://td/people/{n}").parse().unwrap()
}

fn lock(n: u64, now: LeaseTime) -> Lock {
    let name = if n == 0 { "identity-prefix:spiffe://td/a/".into() } else { format!("tenant:t{n}") };
    Lock {
        name: name.parse().unwrap(),
        reason: format!("reason {n}"),
        by: actor(),
        of: None,
        since: now,
        until: None,
    }
}

fn quick(dice: &mut Dice) -> Options {
    Options {
        segment_bytes: 4_000 + dice.roll(20_000),
        segment_records: 10 + dice.roll(30),
        reserve_bytes: 64 << 10,
        look: LONG,
        retry_first: Duration::from_millis(1),
        retry_max: Duration::from_millis(4),
        ..Options::default()
    }
}

/// The state that is rebuilt from all records.
fn read_all(disk: &Forgetful) -> Recorded {
    let mut all = Recorded::default();
    let each = &mut |record: crate::ledger::Record| all.take(record.index, record.event).unwrap();
    // A copy: reading takes the disk.
    let opened = Ledger::open_with(Arc::new(disk.kill()), clock(), Options::default(), each).unwrap();
    drop(opened);
    all
}

fn written(recorded: &Recorded) -> Vec<u8> {
    let mut out = Vec::new();
    recorded.write(&mut out).unwrap();
    out
}

fn text(recorded: &Recorded) -> String {
    String::from_utf8(written(recorded)).unwrap()
}

/// The answers that were given.
#[derive(Default)]
struct Promised {
    created: BTreeSet<JobId>,
    attempts: BTreeMap<JobId, AttemptNumber>,
    closed: BTreeSet<JobId>,
    /// By number: how often the lock was changed, and whether it is in force, if that is known.
    locks: BTreeMap<u64, (u64, Option<bool>)>,
    /// By job and approver, as for locks.
    approvals: BTreeMap<(JobId, SpiffeId), (u64, Option<bool>)>,
    /// Answers from now on do not count, because the process is gone.
    over: bool,
}

#[derive(Clone, Default)]
struct Book(Arc<Mutex<Promised>>);

impl Book {
    fn write(&self, what: impl FnOnce(&mut Promised)) {
        let mut book = self.0.lock().unwrap();
        if !book.over {
            what(&mut book);
        }
    }

    fn touch(&self, lock: u64) -> u64 {
        let mut turn = 0;
        self.write(|b| {
            let entry = b.locks.entry(lock).or_default();
            *entry = (entry.0 + 1, None);
            turn = entry.0;
        });
        turn
    }

    fn touch_approval(&self, of: &(JobId, SpiffeId)) -> u64 {
        let mut turn = 0;
        self.write(|b| {
            let entry = b.approvals.entry(of.clone()).or_default();
            *entry = (entry.0 + 1, None);
            turn = entry.0;
        });
        turn
    }

    fn settle_approval(&self, of: (JobId, SpiffeId), turn: u64, stands: bool) {
        self.write(|b| {
            let entry = b.approvals.entry(of).or_default();
            if entry.0 == turn {
                entry.1 = Some(stands);
            }
        });
    }

    fn settle(&self, lock: u64, turn: u64, stands: bool) {
        self.write(|b| {
            let entry = b.locks.entry(lock).or_default();
            if entry.0 == turn {
                entry.1 = Some(stands);
            }
        });
    }

    fn holds(&self, found: &Rebuilt, at: &str) {
        let book = self.0.lock().unwrap();
        let jobs: BTreeMap<JobId, &Job> = found.jobs.iter().map(|j| (j.id, j)).collect();
        for id in &book.created {
            assert!(jobs.contains_key(id), "{at}: {id} was answered and is gone");
        }
        for (id, number) in &book.attempts {
            assert!(jobs[id].attempts.iter().any(|a| a.number == *number), "{at}: {id} lost an attempt");
        }
        for id in &book.closed {
            assert!(jobs[id].is_closed(), "{at}: {id} answered closed and is {:?}", jobs[id].state);
        }
        for ((id, by), (_, stands)) in &book.approvals {
            let found = jobs.get(id).is_some_and(|job| job.approvals.iter().any(|a| a.by == *by));
            if let Some(stands) = stands {
                assert_eq!(found, *stands, "{at}: the approval of {id} by {by}");
            }
        }
        for (n, (_, stands)) in &book.locks {
            let name = lock(*n, LeaseTime(0)).name;
            let found = found.locks.iter().any(|l| l.name == name);
            if let Some(stands) = stands {
                assert_eq!(found, *stands, "{at}: {name}");
            }
        }
    }
}

/// One run: a store on a ledger, and random steps.
struct DaemonLife {
    store: Arc<Store>,
    ledger: Ledger,
    clock: Arc<dyn Clock>,
    known: Vec<JobId>,
    next: u128,
    work: JoinSet<()>,
}

impl DaemonLife {
    fn begin(disk: &Forgetful, options: Options, at: &str) -> (Self, Rebuilt) {
        let clock = clock();
        let all = read_all(disk);
        let (opened, recorded) =
            Ledger::open_folded_on::<Recorded>(Arc::new(disk.clone()), clock.clone(), options)
                .unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_eq!(
            text(&recorded),
            text(&all),
            "{at}: a snapshot and what follows is not what all records give"
        );
        let rebuilt = recorded.rebuilt(clock.now().lease);
        let again = recorded.rebuilt(clock.now().lease);
        let known: Vec<JobId> = rebuilt.jobs.iter().map(|j| j.id).collect();
        let fences = Arc::new(Registry::new(rebuilt.seq));
        let store = Store::new(rebuilt, fences, opened.ledger.clone(), clock.clone());
        let next = known.iter().map(|id| id.0).max().unwrap_or(0) + 1_000;
        let (store, work) = (Arc::new(store), JoinSet::new());
        (DaemonLife { store, ledger: opened.ledger, clock, known, next, work }, again)
    }

    fn step(&mut self, dice: &mut Dice, book: &Book) {
        let now = self.clock.now().lease;
        let (store, book) = (self.store.clone(), book.clone());
        let picked = usize::try_from(dice.roll(self.known.len() as u64)).unwrap();
        let id = self.known.get(picked).copied();
        match (dice.roll(15), id) {
            (0 | 1, _) | (_, None) => {
                self.next += 1;
                // Every second job waits for two people.
                let job =
                    if self.next.is_multiple_of(2) { job(self.next, now) } else { gated(self.next, now) };
                let new = NewJob { job, decision: decision() };
                let id = new.job.id;
                self.known.push(id);
                self.work.spawn(async move {
                    if store.create(new).await.is_ok() {
                        book.write(|b| {
                            let _ = b.created.insert(id);
                        });
                    }
                });
            }
            (2..=4, Some(id)) => {
                let key = format!("run {}", dice.roll(5));
                self.work.spawn(async move {
                    let ticket = SecretDigest([1; 32]);
                    let begun = store.widen(id, actor(), Some(decision()), |j: &Job| {
                        j.begin(&key, true, ticket, &[], now).map(|b| match b {
                            Begin::New(change) => Some(change),
                            Begin::Existing(_) => None,
                        })
                    });
                    if let Ok(done) = begun.await
                        && let Some(last) = done.job.attempts.last().map(|a| a.number)
                    {
                        book.write(|b| {
                            let _ = b.attempts.insert(id, last);
                        });
                    }
                });
            }
            (5, Some(id)) => {
                let instance = format!("rank-{}", dice.roll(2)).parse().unwrap();
                self.work.spawn(async move {
                    let joined = store.widen(id, actor(), None, |j: &Job| {
                        let Some(number) = j.current().map(|a| a.number) else { return Ok(None) };
                        j.join(number, &instance, &worker(), SecretDigest([2; 32]), WINDOW, now).map(|join| {
                            match join {
                                Join::New(change) => Some(change),
                                Join::Same => None,
                            }
                        })
                    });
                    let _ = joined.await;
                });
            }
            (6 | 7, Some(id)) => {
                let outcome = [Outcome::Completed, Outcome::Failed][usize::try_from(dice.roll(2)).unwrap()];
                let ended = store.narrow(id, &actor(), |j: &Job| {
                    let Some(a) = j.current() else { return Ok(Vec::new()) };
                    j.end_attempt(a.number, outcome, "by chance", now).map(|end| match end {
                        End::Now(changes) => changes,
                        End::Already | End::Conflict(_) => Vec::new(),
                    })
                });
                self.promise_closed(id, ended.ok(), book);
            }
            (8, Some(id)) => {
                let closed = store.narrow(id, &actor(), |j: &Job| {
                    Ok::<_, std::convert::Infallible>(match j.close(Outcome::Cancelled, "by chance", now) {
                        Close::Now(change) => vec![change],
                        Close::Already | Close::Conflict(_) => Vec::new(),
                    })
                });
                self.promise_closed(id, closed.ok(), book);
            }
            (11 | 12, Some(id)) => {
                let by = person(dice.roll(3));
                self.work.spawn(async move {
                    let of = (id, by.clone());
                    let turn = book.touch_approval(&of);
                    let approved = store.widen(id, actor(), None, |j: &Job| {
                        let approver = Approver { by: &by, human: None, reason: "by chance" };
                        j.approve(approver, &[GATE.to_owned()], Digest::ZERO, now)
                    });
                    if approved.await.is_ok() {
                        book.settle_approval(of, turn, true);
                    }
                });
            }
            (13, Some(id)) => {
                let by = person(dice.roll(3));
                let of = (id, by.clone());
                let turn = book.touch_approval(&of);
                let done =
                    store.narrow(id, &actor(), |j: &Job| j.withdraw_approval(&by, None, "by chance", now));
                if let Ok(Committed { record: Some(record), .. }) = done {
                    self.work.spawn(async move {
                        if record.durable().await.is_ok() {
                            book.settle_approval(of, turn, false);
                        }
                    });
                }
            }
            (9 | 10, _) => {
                let n = dice.roll(NAMES);
                let turn = book.touch(n);
                let (done, _) = store.lock(lock(n, now)).unwrap();
                let record = done.record.unwrap();
                self.work.spawn(async move {
                    if record.durable().await.is_ok() {
                        book.settle(n, turn, true);
                    }
                });
            }
            (_, Some(_)) => {
                let n = dice.roll(NAMES);
                let name = lock(n, now).name;
                self.work.spawn(async move {
                    // Now: its record is accepted at the first poll.
                    let turn = book.touch(n);
                    if store.unlock(&name, actor(), "by chance", |_| true).await.is_ok() {
                        book.settle(n, turn, false);
                    }
                });
            }
        }
    }

    fn promise_closed(&mut self, id: JobId, done: Option<Committed<Arc<Job>>>, book: Book) {
        if let Some(Committed { value, record: Some(record), .. }) = done
            && value.is_closed()
        {
            self.work.spawn(async move {
                if record.durable().await.is_ok() {
                    book.write(|b| {
                        let _ = b.closed.insert(id);
                    });
                }
            });
        }
    }

    async fn rest(&mut self) {
        while self.work.join_next().await.is_some() {}
    }
}

/// `LEASEHOLD_CRASHES` is the number of histories, each of four runs; `LEASEHOLD_SEED` is the seed of the first one.
fn seeds() -> std::ops::Range<u64> {
    let number = |name, otherwise| std::env::var(name).map_or(otherwise, |n| n.parse().unwrap());
    let (first, count) = (number("LEASEHOLD_SEED", 0), number("LEASEHOLD_CRASHES", 10));
    first..first + count
}

// Proves law 39, law 39b.
#[tokio::test]
async fn unsynced_bytes_hold_no_promise() {
    let (mut snapshots, mut promises) = (0, 0);
    for seed in seeds() {
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let mut disk = Forgetful::default();
        let book = Book::default();
        for life in 0..4 {
            let at = format!("seed {seed}, life {life}");
            let (mut running, found) = DaemonLife::begin(&disk, quick(&mut dice), &at);
            book.holds(&found, &at);
            book.0.lock().unwrap().over = false;
            for _ in 0..dice.roll(120) {
                match dice.roll(14) {
                    0 => disk.hold(),
                    1 | 2 => disk.release(),
                    3 => disk.set(Faults { sync: Some(ErrorKind::Other), ..Faults::default() }),
                    4 | 5 => disk.set(Faults::default()),
                    _ => running.step(&mut dice, &book),
                }
                for _ in 0..dice.roll(4) {
                    tokio::task::yield_now().await;
                }
            }
            if dice.roll(3) == 0 {
                // A clean shutdown: the state in memory is the one that is rebuilt from the records.
                disk.set(Faults::default());
                disk.release();
                tokio::time::timeout(LONG, running.rest()).await.expect("all is answered");
                let ended = running.ledger.defer(&Event::EpochEnded { reason: "stopped".into() });
                ended.durable().await.unwrap();
                running.ledger.close(LONG).await.unwrap();
                let told = read_all(&disk).rebuilt(running.clock.now().lease);
                assert!(told.in_order, "{at}");
                for job in &told.jobs {
                    let seen = running.store.job(job.id).unwrap_or_else(|| panic!("{at}: {} is new", job.id));
                    assert_eq!(
                        seen.is_closed(),
                        job.is_closed(),
                        "{at}: {} {:?} {:?}",
                        job.id,
                        seen.state,
                        job.state
                    );
                    let last = |j: &Job| j.attempts.last().map(|a| (a.number, a.is_ended()));
                    assert!(seen.is_closed() || last(&seen) == last(job), "{at}: {}", job.id);
                    assert_eq!((&seen.approvals, seen.ends), (&job.approvals, job.ends), "{at}: {}", job.id);
                }
                let names = |locks: Vec<Lock>| locks.into_iter().map(|l| l.name).collect::<BTreeSet<_>>();
                assert_eq!(
                    names(running.store.locks(None, usize::MAX)),
                    names(told.locks.iter().cloned().collect()),
                    "{at}"
                );
                continue;
            }
            let left = if dice.roll(2) == 0 {
                book.0.lock().unwrap().over = true;
                let left = disk.kill();
                disk.release();
                left
            } else {
                let left = disk.crash(&mut dice);
                // Answers that were given before the power failed are read now.
                running.ledger.close(LONG).await.ok();
                tokio::time::timeout(LONG, running.rest()).await.expect("all is answered");
                left
            };
            running.work.shutdown().await;
            disk = left;
        }
        let report = verify_folded(&disk, None, &mut Recorded::default())
            .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(report.snapshots_followed, report.snapshots, "seed {seed}");
        snapshots += report.snapshots;
        let book = book.0.lock().unwrap();
        promises += book.closed.len() + book.locks.len();
    }
    assert!(snapshots > 0 && promises > 0, "nothing was tried");
}

/// A ledger of some runs, and the state that is rebuilt from its records.
async fn lived(disk: &Forgetful, segment_records: u64, jobs: u128) -> String {
    let options = Options { segment_records, reserve_bytes: 0, ..Options::default() };
    let (opened, mut recorded) =
        Ledger::open_folded_on::<Recorded>(Arc::new(disk.clone()), clock(), options).unwrap();
    let first = recorded.len() as u128;
    let mut all = Vec::new();
    for n in 0..jobs {
        let job = job(1 + first + n, LeaseTime(1_000_000));
        all.push(created_record(&job, decision()));
        let change = Change::Closed { outcome: Outcome::Completed, at: job.created, detail: "done".into() };
        all.push(change_record(job.id, &change, actor(), None, Default::default()));
    }
    for event in all {
        let index = opened.ledger.append(&event).await.unwrap();
        recorded.take(index, event).unwrap();
    }
    last_snapshot(disk).await;
    opened.ledger.close(LONG).await.unwrap();
    text(&recorded)
}

/// Waits until the snapshot of the last segment has its record.
async fn last_snapshot(disk: &Forgetful) {
    let last = segments(disk).pop().unwrap();
    let first: u64 = last.trim_start_matches("ledger-").trim_end_matches(".jsonl").parse().unwrap();
    let waiting = async {
        while first > 1 && !disk.durable_text().contains(&format!("\"before\":{first},")) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("a snapshot is made");
}

fn segments(disk: &Forgetful) -> Vec<String> {
    use crate::ledger::Disk;
    let mut names = disk.list().unwrap();
    names.retain(|n| n.starts_with("ledger-"));
    names.sort();
    names
}

#[tokio::test]
async fn a_start_reads_only_the_last_snapshot_and_what_follows() {
    use crate::ledger::Disk;
    let disk = Forgetful::default();
    let said = lived(&disk, 10, 40).await;
    let names = segments(&disk);
    assert!(names.len() > 3, "{names:?}");
    // Moved away, as an administrator may: nothing but the last segment and its snapshot is read.
    for old in &names[..names.len() - 1] {
        disk.remove(old).unwrap();
    }
    let opened = Ledger::open_folded_on::<Recorded>(Arc::new(disk.kill()), clock(), Options::default());
    assert_eq!(text(&opened.unwrap().1), said);
    let report = verify_folded(&disk, None, &mut Recorded::default()).unwrap();
    assert!(report.first.unwrap().0 > 1);
    assert_eq!((report.snapshots, report.snapshots_followed), (1, 0), "what it says is believed, not proved");
    // A head of records that were moved away cannot be compared, and the result reports that.
    let old = crate::ledger::Head { index: 2, digest: Digest::ZERO };
    let Err(ReadError::Tamper(t)) = verify_folded(&disk, Some(old), &mut Recorded::default()) else {
        panic!()
    };
    assert!(matches!(t.what, Fault::HeadGone { kept: 2, .. }), "{t}");
}

#[tokio::test]
async fn an_old_ledger_without_snapshots_opens_and_gets_them() {
    let disk = Forgetful::default();
    let said = lived(&disk, u64::MAX, 30).await;
    assert_eq!(segments(&disk).len(), 1);
    let options = Options { segment_records: 10, reserve_bytes: 0, ..Options::default() };
    let (opened, recorded) =
        Ledger::open_folded_on::<Recorded>(Arc::new(disk.clone()), clock(), options).unwrap();
    assert_eq!(text(&recorded), said);
    let began = EpochBegan {
        nonce: "0".into(),
        version: "0".into(),
        catalog: Digest::ZERO,
        policy: Digest::ZERO,
        seq: 7,
        head_key: None,
        replaces: None,
    };
    assert_eq!(opened.ledger.append(&Event::EpochBegan(began)).await, Ok(61));
    last_snapshot(&disk).await;
    opened.ledger.close(LONG).await.unwrap();
    assert_eq!(segments(&disk).len(), 2);
    let report = verify_folded(&disk, None, &mut Recorded::default()).unwrap();
    assert_eq!((report.snapshots, report.snapshots_followed), (1, 1));
}

#[tokio::test]
async fn more_records_are_read_if_a_snapshot_is_damaged() {
    let disk = Forgetful::default();
    let said = lived(&disk, 10, 40).await;
    let last = segments(&disk).pop().unwrap();
    let name = last.replace("ledger-", "state-").replace(".jsonl", ".snapshot");
    let (mut bytes, _) = disk.file(&name).unwrap();
    bytes[40] ^= 1;
    disk.put(&name, bytes);
    let opened = Ledger::open_folded_on::<Recorded>(Arc::new(disk.kill()), clock(), Options::default());
    assert_eq!(text(&opened.unwrap().1), said);
    verify_folded(&disk, None, &mut Recorded::default()).unwrap();
}

/// A state whose snapshots are false: closed jobs never end in it.
#[derive(Clone, Default)]
struct Liar(Recorded);

impl Fold for Liar {
    fn format_version(&self) -> u32 {
        self.0.format_version()
    }
    fn takes(&self, kind: &str) -> bool {
        self.0.takes(kind)
    }
    fn apply(&mut self, index: u64, event: Event) -> Result<(), &'static str> {
        match event {
            Event::JobClosed { .. } => Ok(()), // "it never ended"
            event => self.0.take(index, event),
        }
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn share(&self) -> Box<dyn Fold> {
        Box::new(self.clone())
    }
    fn write(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        self.0.write(out)
    }
    fn read(&mut self, text: &mut dyn std::io::BufRead) -> Result<(), String> {
        self.0.read(text)
    }
}

#[tokio::test]
async fn a_snapshot_that_contradicts_its_records_is_found() {
    let disk = Forgetful::default();
    let options = Options { segment_records: 4, reserve_bytes: 0, ..Options::default() };
    let (opened, _) = Ledger::open_folded_on::<Liar>(Arc::new(disk.clone()), clock(), options).unwrap();
    for n in 1..=3 {
        let job = job(n, LeaseTime(1_000_000));
        opened.ledger.append(&created_record(&job, decision())).await.unwrap();
        let change = Change::Closed { outcome: Outcome::Revoked, at: job.created, detail: "ended".into() };
        let closed = change_record(job.id, &change, actor(), None, Default::default());
        opened.ledger.append(&closed).await.unwrap();
    }
    last_snapshot(&disk).await;
    opened.ledger.close(LONG).await.unwrap();
    // The chain by itself is good.
    crate::ledger::verify(&disk, None).unwrap();
    let Err(ReadError::Tamper(t)) = verify_folded(&disk, None, &mut Recorded::default()) else {
        panic!("a lie was believed")
    };
    assert!(matches!(t.what, Fault::Snapshot { .. }), "{t}");
}

// Proves law 39.
#[test]
fn the_key_of_a_dropped_job_is_remembered() {
    let mut recorded = Recorded::default();
    let max = limits::JOBS_CLOSED_MAX as u128;
    let at = LeaseTime(1_000_000);
    for n in 1..=max + 3 {
        let job = job(n, at);
        recorded.take(1, created_record(&job, decision())).unwrap();
        let change = Change::Closed { outcome: Outcome::Failed, at, detail: String::new() };
        recorded.take(2, change_record(job.id, &change, actor(), None, Default::default())).unwrap();
    }
    let mut again = Recorded::default();
    again.read(&mut written(&recorded).as_slice()).unwrap();
    assert_eq!(text(&again), text(&recorded));
    let rebuilt = again.rebuilt(at);
    assert_eq!(rebuilt.jobs.len() as u128, max);
    let mut forgotten: Vec<_> = rebuilt.keys.iter().map(|((_, key), k)| (key.as_str(), k.job.0)).collect();
    forgotten.sort_unstable();
    assert_eq!(forgotten, [("key 1", 1), ("key 2", 2), ("key 3", 3)]);
    // A day later they no longer count.
    recorded.take(1, created_record(&job(max + 9, at.plus(limits::IDEMPOTENCY)), decision())).unwrap();
    assert!(recorded.rebuilt(at).keys.is_empty());
}

// Proves law 39.
#[test]
fn a_completion_during_a_begin_closes_the_job() {
    let at = LeaseTime(1_000_000);
    let job = job(1, at);
    let began = |n| Change::AttemptBegan {
        attempt: AttemptNumber::new(n).unwrap(),
        key: format!("run {n}"),
        at,
        ticket: SecretDigest([1; 32]),
        vouched: Vec::new(),
    };
    let (attempt, detail) = (AttemptNumber::FIRST, "done".to_owned());
    let completed = Change::AttemptEnded { attempt, outcome: Outcome::Completed, at, detail };
    let mut recorded = Recorded::default();
    recorded.take(1, created_record(&job, decision())).unwrap();
    // In memory the second begin was never made: the completion came before its record was durable.
    for change in [began(1), began(2), completed] {
        recorded.take(2, change_record(job.id, &change, actor(), None, Default::default())).unwrap();
    }
    let found = recorded.rebuilt(at);
    assert_eq!(found.jobs[0].state, JobState::Closed(Outcome::Completed));
}

// Proves law 31.
#[tokio::test]
async fn a_lock_set_again_during_its_lifting_stays() {
    let disk = Forgetful::default();
    let mut dice = Dice(31);
    let (life, _) = DaemonLife::begin(&disk, quick(&mut dice), "the first life");
    let now = life.clock.now().lease;
    life.store.lock(lock(1, now)).unwrap().0.record.unwrap().durable().await.unwrap();
    disk.hold();
    let name = lock(1, now).name;
    let store = life.store.clone();
    let lifting = tokio::spawn(async move { store.unlock(&name, actor(), "mended", |_| true).await });
    tokio::task::yield_now().await;
    disk.wait_for_sync();
    let (again, _) = life.store.lock(lock(1, now)).unwrap();
    disk.release();
    // The operator who lifted it learns that it is still in force.
    assert_eq!(lifting.await.unwrap().unwrap_err(), Refused::SetAgain);
    again.record.unwrap().durable().await.unwrap();
    assert_eq!(life.store.locks(None, usize::MAX).len(), 1, "the lifting took the newer lock with it");
    assert_eq!(read_all(&disk).rebuilt(now).locks.len(), 1);
}

// Proves law 31.
#[tokio::test]
async fn a_refused_unlock_has_no_effect_after_a_restart() {
    let disk = Forgetful::default();
    let mut dice = Dice(31);
    let (life, _) = DaemonLife::begin(&disk, quick(&mut dice), "the first life");
    let set = Lock { until: Some(life.clock.now().lease.plus(LONG * 60)), ..lock(1, life.clock.now().lease) };
    let record = life.store.lock(set.clone()).unwrap().0.record.unwrap();
    assert!(record.durable().await.is_ok());
    disk.hold();
    // The disk stands still for longer than the request may wait.
    let refused =
        life.store.unlock_within(Duration::ZERO, &set.name, actor(), "mended", |_| true).await.unwrap_err();
    assert!(matches!(refused, Refused::Ledger(_)), "{refused:?}");
    assert_eq!(
        life.store.locks(None, usize::MAX),
        std::slice::from_ref(&set),
        "it stands, for as long as before"
    );
    disk.release();
    // The one behind it is durable, so it is.
    life.store
        .revoke(&"tenant:other".parse().unwrap(), actor(), "at last")
        .record
        .unwrap()
        .durable()
        .await
        .unwrap();
    assert!(disk.durable_text().contains("lock.lifted"), "the disk had no time to take it");
    let found: Vec<Lock> = read_all(&disk).rebuilt(set.since).locks.iter().cloned().collect();
    assert_eq!(found, std::slice::from_ref(&set), "a later life has lost the lock");
    // A second try lifts it, in every run.
    life.store.unlock(&set.name, actor(), "mended", |_| true).await.unwrap();
    assert!(
        life.store.locks(None, usize::MAX).is_empty() && read_all(&disk).rebuilt(set.since).locks.is_empty()
    );
}

// Proves law 39.
#[test]
fn a_withdrawn_record_has_no_effect_after_a_restart() {
    let at = LeaseTime(1_000_000);
    let (kept, never) = (job(1, at), job(2, at));
    let (attempt, ticket) = (AttemptNumber::FIRST, SecretDigest([1; 32]));
    let began = Change::AttemptBegan { attempt, key: "run 1".into(), at, ticket, vouched: Vec::new() };
    let draining = Change::AttemptDraining {
        attempt,
        drain: Drain { reading_ends: at, writing_ends: at },
        detail: "by hand".into(),
    };
    let joined = |instance: &str, session| Change::MemberJoined {
        attempt,
        instance: instance.parse().unwrap(),
        member: worker(),
        session: SecretDigest([session; 32]),
        at,
    };
    let record = |change: &Change| change_record(kept.id, change, actor(), None, Default::default());
    let withdrawn = |index, job| Event::Withdrawn { index, job, why: "overtaken".into() };
    let events = [
        created_record(&kept, decision()),
        created_record(&never, decision()),
        record(&began),
        withdrawn(2, never.id),
        // Joins are recorded independently: if one is withdrawn, later ones stay.
        record(&joined("rank-0", 2)),
        record(&joined("rank-1", 3)),
        record(&joined("rank-1", 4)),
        record(&draining),
        withdrawn(5, kept.id),
        withdrawn(7, kept.id),
    ];
    // A snapshot at any point changes nothing.
    for cut in 0..=events.len() {
        let mut recorded = Recorded::default();
        for (n, event) in events.iter().enumerate() {
            if n == cut {
                let mut again = Recorded::default();
                again.read(&mut written(&recorded).as_slice()).unwrap();
                assert_eq!(text(&again), text(&recorded));
                recorded = again;
            }
            recorded.take(n as u64 + 1, event.clone()).unwrap();
        }
        let found = recorded.rebuilt(at).jobs;
        assert_eq!(found.len(), 1, "a job that was withdrawn is there, cut at {cut}");
        assert_eq!(found[0].attempts.len(), 1);
        let members: Vec<_> =
            found[0].attempts[0].members.iter().map(|(i, m)| (i.to_string(), m.session)).collect();
        assert_eq!(members, [("rank-1".to_owned(), SecretDigest([3; 32]))], "cut at {cut}");
        assert_eq!(found[0].attempts[0].detail, "by hand", "what came after it is lost, cut at {cut}");
    }
    // And a begin that was withdrawn leaves a job without an attempt.
    let mut recorded = Recorded::default();
    let events = [created_record(&kept, decision()), record(&began), withdrawn(2, kept.id)];
    for (n, event) in events.into_iter().enumerate() {
        recorded.take(n as u64 + 1, event).unwrap();
    }
    assert!(recorded.rebuilt(at).jobs[0].attempts.is_empty());
    // A begin from long before another widening counts as made, and can no longer be withdrawn.
    let late = at.plus(limits::LEDGER_WAIT * 20);
    let second = Change::AttemptBegan {
        attempt: attempt.next(),
        key: "run 2".into(),
        at: late,
        ticket: SecretDigest([1; 32]),
        vouched: Vec::new(),
    };
    let mut recorded = Recorded::default();
    let events = [
        created_record(&kept, decision()),
        record(&began),
        record(&second),
        withdrawn(2, kept.id),
        withdrawn(3, kept.id),
    ];
    for (n, event) in events.into_iter().enumerate() {
        recorded.take(n as u64 + 1, event).unwrap();
    }
    assert_eq!(recorded.rebuilt(at).jobs[0].attempts.len(), 1);
}

// Proves law 39.
#[test]
fn a_dropped_job_still_binds_its_identity() {
    let at = LeaseTime(1_000_000);
    let mut recorded = Recorded::default();
    let max = limits::JOBS_CLOSED_MAX as u128;
    let id = |n: u128| -> SpiffeId { format!("spiffe://td/job/{n}").parse().unwrap() };
    let attempt = AttemptNumber::FIRST;
    for n in 1..=max + 2 {
        let job = job(n, at);
        recorded.take(1, created_record(&job, decision())).unwrap();
        let began = Change::AttemptBegan {
            attempt,
            key: "run 1".into(),
            at,
            ticket: SecretDigest([1; 32]),
            vouched: Vec::new(),
        };
        let joined = Change::MemberJoined {
            attempt,
            instance: "rank-0".parse().unwrap(),
            member: id(n),
            session: SecretDigest([2; 32]),
            at,
        };
        let closed = Change::Closed { outcome: Outcome::Completed, at, detail: String::new() };
        for change in [began, joined, closed] {
            recorded.take(2, change_record(job.id, &change, actor(), None, Default::default())).unwrap();
        }
    }
    let mut again = Recorded::default();
    again.read(&mut written(&recorded).as_slice()).unwrap();
    assert_eq!(text(&again), text(&recorded));
    let kept = again.rebuilt(at).identities;
    let own = |n| Use { job: JobId(n), first: at, closed: Some(at) };
    assert_eq!(kept, [(id(1), own(1)), (id(2), own(2))]);
    // And no longer than an SVID from that time can be valid.
    let late = LeaseTime(at.plus(limits::IDENTITY_BOUND).0 + 1);
    recorded.take(3, created_record(&job(max + 9, late), decision())).unwrap();
    assert!(recorded.rebuilt(late).identities.is_empty());
}

#[tokio::test]
async fn past_its_keys_a_caller_makes_no_job_but_finds_its_own() {
    const MAX: usize = limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX;
    let disk = Forgetful::default();
    let clock = clock();
    let (opened, _) =
        Ledger::open_folded_on::<Recorded>(Arc::new(disk.clone()), clock.clone(), Options::default())
            .unwrap();
    let at = clock.now().lease;
    let used = |n: usize| {
        let (job, tenant) = (JobId(1_000_000 + n as u128), "acme".parse().unwrap());
        let made = KeyedJob { job, tenant, spec: Digest::ZERO, at };
        ((worker(), format!("used {n}")), made)
    };
    // One is of a job that exists, all others are of jobs that were forgotten.
    let rebuilt =
        Rebuilt { jobs: vec![job(1, at)], keys: (1..MAX).map(used).collect(), ..Rebuilt::default() };
    let fences = Arc::new(Registry::new(rebuilt.seq));
    let store = Store::new(rebuilt, fences, opened.ledger.clone(), clock);
    let create = async |job| store.create(NewJob { job, decision: decision() }).await;
    let full = create(job(2, at)).await.unwrap_err();
    assert_eq!(full, Refused::TooManyKeys(TooManyKeys::Caller(MAX)));
    assert_eq!(full.reason(), Some(Reason::QuotaExceeded));
    // A client that sends a key again gets the same answer: no key was dropped, so no request makes two jobs.
    assert!(matches!(create(job(1, at)).await, Ok(Created::Existing(j)) if j.id == JobId(1)));
    let again = Job { idempotency_key: "used 7".into(), ..job(3, at) };
    assert_eq!(create(again).await.unwrap_err(), Refused::KeyConflict(JobId(1_000_007)));
    assert!(!disk.durable_text().contains("job.created"));
    // Others are unharmed, and after a day so is this one.
    let other = Job { launcher: "spiffe://td/other".parse().unwrap(), ..job(4, at) };
    assert!(matches!(create(other).await, Ok(Created::New(_))));
    store.prune(at.plus(limits::IDEMPOTENCY));
    assert!(matches!(create(job(2, at)).await, Ok(Created::New(_))));
}

/// A login in force, from one moment on.
fn logged_in(at: u64, human: &str) -> Event {
    Event::PersonLoggedIn(Box::new(crate::ledger::PersonLoggedIn {
        person: format!("spiffe://people.example/human/{human}").parse().unwrap(),
        human: human.parse().unwrap(),
        issuer: "https://id.example".into(),
        sub: human.into(),
        groups: vec!["ml".into()],
        amr: vec!["mfa".into()],
        certificate: Digest::of(human.as_bytes()),
        serial: "01".into(),
        at: LeaseTime(at),
        until: LeaseTime(at + 1_000),
    }))
}

#[test]
fn a_snapshot_keeps_logins_until_they_end() {
    let mut recorded = Recorded::default();
    for (index, human) in ["ada", "bob", "eve"].into_iter().enumerate() {
        recorded.take(index as u64, logged_in(10, human)).unwrap();
    }
    let mut again = Recorded::default();
    again.read(&mut text(&recorded).as_bytes()).unwrap();
    assert_eq!(text(&again), text(&recorded));
    let left = |recorded: &Recorded, now| recorded.rebuilt(LeaseTime(now)).logins.len();
    assert_eq!((left(&again, 1_009), left(&again, 1_010)), (3, 0));
    let by = || Actor::Daemon("test".into());
    let (name, reason) = ("human:ada".parse().unwrap(), "left".to_owned());
    again
        .take(4, Event::Revoked { name, by: by(), reason, ending: crate::ledger::Ending::default() })
        .unwrap();
    let out = Event::PersonLoggedOut {
        person: "spiffe://people.example/human/bob".parse().unwrap(),
        human: "bob".parse().unwrap(),
        certificate: Digest::of(b"bob"),
        serial: "01".into(),
        by: by(),
        at: LeaseTime(20),
    };
    again.take(5, out).unwrap();
    assert_eq!(left(&again, 30), 1);
}
