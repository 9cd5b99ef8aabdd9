//! The laws of the state that outlives the process, over random histories on a disk that loses unsynced data.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::JoinSet;

use super::{
    Committed, Lock, NewJob, Rebuilt, Recorded, Refused, Store,
    testing::{GATE, LONG, actor, clock, decision, gated, job, lock, person, quick, read_all, text, worker},
};
use crate::{
    clock::{Clock, LeaseTime},
    fence::Registry,
    job::{Approver, Begin, Close, End, Job, Join},
    ledger::{
        Event, Ledger, Options,
        forgetful::{Dice, Faults, Forgetful},
        verify_folded,
    },
    name::{AttemptNumber, Digest, JobId, Outcome, SpiffeId},
    secret::SecretDigest,
};

const NAMES: u64 = 6;
const WINDOW: Duration = Duration::from_secs(15);

/// The answers that were given.
#[derive(Default)]
struct Promised {
    created: BTreeSet<JobId>,
    attempts: BTreeMap<JobId, AttemptNumber>,
    closed: BTreeSet<JobId>,
    /// For each number, how often the lock was changed, and whether it is in force, if that is known.
    locks: BTreeMap<u64, (u64, Option<bool>)>,
    /// The facts of approvals, by job and approver.
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
                // After a clean shutdown, the state in memory is equal to the state that is rebuilt from the records.
                disk.set(Faults::default());
                disk.release();
                tokio::time::timeout(LONG, running.rest()).await.expect("all is answered");
                let ended = running.ledger.defer(&Event::EpochEnded { reason: "stopped".into() });
                ended.durable().await.unwrap();
                running.ledger.close(LONG).await.unwrap();
                let rebuilt = read_all(&disk).rebuilt(running.clock.now().lease);
                assert!(rebuilt.in_order, "{at}");
                for job in &rebuilt.jobs {
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
                    names(rebuilt.locks.iter().cloned().collect()),
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
    // The operator who lifted the lock learns that it is still in force.
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
    // A later record is durable, so this record is durable too.
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
    // A second attempt lifts the lock, in every run.
    life.store.unlock(&set.name, actor(), "mended", |_| true).await.unwrap();
    assert!(
        life.store.locks(None, usize::MAX).is_empty() && read_all(&disk).rebuilt(set.since).locks.is_empty()
    );
}
