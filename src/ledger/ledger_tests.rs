//! The laws of the ledger, on a disk that forgets, fills up and fails.

use std::{collections::BTreeMap, io::ErrorKind, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, future::join_all};

use super::{
    forgetful::{Dice, Faults, Forgetful},
    *,
};
use crate::clock::{Clock, LeaseTime, Now, SystemClock};

pub(super) const LONG: Duration = Duration::from_secs(120);

pub(super) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

pub(super) fn quick() -> Options {
    Options {
        reserve_bytes: 64 << 10,
        // No check of the files while a test counts writes or blocks the disk.
        look: LONG,
        retry_first: Duration::from_millis(1),
        retry_max: Duration::from_millis(4),
        ..Options::default()
    }
}

pub(super) fn open(disk: &Forgetful, options: Options) -> Ledger {
    Ledger::open_on(Arc::new(disk.clone()), clock(), options).unwrap().ledger
}

/// An event to record, identified by a number.
pub(super) fn said(n: u64) -> Event {
    Event::EpochEnded { reason: format!("said {n}") }
}

fn number(record: &Record) -> u64 {
    match &record.event {
        Event::EpochEnded { reason } => reason.strip_prefix("said ").unwrap().parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Fails if the future does not resolve soon.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("in time")
}

fn read_all(disk: &Forgetful) -> Vec<Record> {
    let opened = Ledger::open_on(Arc::new(disk.clone()), clock(), quick()).unwrap();
    opened.entries
}

async fn until(ledger: &Ledger, what: impl Fn(&Health) -> bool) {
    let mut health = ledger.watch_health();
    soon(health.wait_for(|h| what(h))).await.unwrap();
}

#[tokio::test]
async fn records_read_back_in_order_and_each_life_is_one_epoch_more() {
    let disk = Forgetful::default();
    let clock = clock();
    let options = Options { segment_bytes: 2_000, ..quick() };
    let before = clock.now().wall;
    for life in 1..=3u64 {
        let opened = Ledger::open_on(Arc::new(disk.clone()), clock.clone(), options.clone()).unwrap();
        assert_eq!((opened.epoch, opened.ledger.epoch()), (life, life));
        assert_eq!(opened.entries.len() as u64, (life - 1) * 10);
        assert_eq!(opened.latest.is_some(), life > 1);
        assert!(opened.warnings.is_empty(), "{:?}", opened.warnings);
        for n in 0..10 {
            assert_eq!(opened.ledger.append(&said(n)).await, Ok((life - 1) * 10 + n + 1));
        }
        let head = opened.ledger.head();
        assert_eq!(opened.ledger.close(LONG).await, Ok(head));
        assert_eq!(opened.ledger.close(LONG).await, Ok(head), "closing twice is the same");
    }
    let entries = read_all(&disk);
    for (i, record) in entries.iter().enumerate() {
        assert_eq!(record.index, i as u64 + 1);
        assert_eq!(record.epoch, i as u64 / 10 + 1);
        assert_eq!(number(record), i as u64 % 10);
        assert!(record.time >= before && record.time <= clock.now().wall);
    }
    assert!(verify(&disk, None).unwrap().segments > 3);
}

// Proves law 05.
#[tokio::test]
async fn no_append_answers_before_its_record_is_synced() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    disk.hold();
    let mut appending = ledger.append(&said(1));
    disk.wait_for_sync();
    assert!((&mut appending).now_or_never().is_none(), "written, not synced");
    assert!(!ledger.is_durable(1));
    assert_eq!(disk.durable_text(), "");
    disk.release();
    assert_eq!(appending.await, Ok(1));
    assert!(disk.durable_text().contains("said 1"));
    assert!(ledger.is_durable(1));

    for n in 2..200 {
        assert_eq!(ledger.append(&said(n)).await, Ok(n));
        assert!(disk.durable_text().contains(&format!("\"said {n}\"")), "answered and not durable");
        assert_eq!(ledger.head().index, n);
    }
}

#[tokio::test]
async fn many_appends_share_a_sync_and_a_lone_one_waits_for_no_other() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    ledger.append(&said(0)).await.unwrap();
    let (before, _) = disk.counts();
    disk.hold();
    let first = ledger.append(&said(1));
    disk.wait_for_sync();
    let rest: Vec<_> = (2..=64).map(|n| ledger.append(&said(n))).collect();
    disk.release();
    first.await.unwrap();
    for (n, answer) in join_all(rest).await.into_iter().enumerate() {
        assert_eq!(answer, Ok(n as u64 + 3));
    }
    let (after, _) = disk.counts();
    assert_eq!(after - before, 2, "64 records, two syncs: the first one's and all others'");
}

#[tokio::test]
async fn a_sync_waits_for_many_callers_and_not_for_a_few() {
    // Eight callers are too few. If the writer waited for them, it would wait as long as the test does.
    let ledger = open(&Forgetful::default(), Options { gather: LONG * 2, ..quick() });
    let few: Vec<_> = (0..8).map(|_| ledger.expect_record()).collect();
    soon(ledger.append(&said(1))).await.unwrap();
    drop(few);

    let disk = Forgetful::default();
    let ledger = open(&disk, Options { gather: Duration::from_millis(500), ..quick() });
    soon(ledger.append(&said(1))).await.unwrap();
    let (before, _) = disk.counts();
    let many: Vec<_> = (0..9).map(|_| ledger.expect_record()).collect();
    let first = ledger.append(&said(2));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = ledger.append(&said(3));
    soon(join_all([first, second])).await;
    assert_eq!(disk.counts().0 - before, 1, "two records, one sync");
    drop(many);
    soon(ledger.append(&said(4))).await.unwrap();
    assert_eq!(disk.counts().0 - before, 2);
}

#[test]
fn records_are_written_in_the_order_of_acceptance() {
    let disk = Forgetful::default();
    let ledger = open(&disk, Options { segment_bytes: 50_000, ..quick() });
    // The caller's mutex gives the order: the records are in the order in which the state is changed.
    let order = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..16u64 {
            let (ledger, order) = (&ledger, &order);
            scope.spawn(move || {
                for n in 0..200 {
                    let id = thread * 1_000 + n;
                    let mut order = order.lock().unwrap();
                    let index = if id % 3 == 0 {
                        ledger.defer(&said(id)).index
                    } else {
                        ledger.append(&said(id)).index().unwrap()
                    };
                    order.push(id);
                    assert_eq!(order.len() as u64, index, "the index is fixed at acceptance");
                }
            });
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(ledger.close(LONG)).unwrap();
    let on_disk: Vec<u64> = read_all(&disk).iter().map(number).collect();
    assert_eq!(on_disk, order.into_inner().unwrap());
}

// Proves law 39b.
#[tokio::test]
async fn durable_records_survive_the_loss_of_unsynced_bytes() {
    for seed in 0..100 {
        let mut dice = Dice(seed);
        let mut disk = Forgetful::default();
        // The events that were reported as durable: index and number.
        let mut promised: BTreeMap<u64, u64> = BTreeMap::new();
        let mut n = 0;
        for life in 1..=4 {
            let compress = dice.roll(2) == 0;
            let options = Options { segment_bytes: 1_000 + dice.roll(4_000), compress, ..quick() };
            let opened = Ledger::open_on(Arc::new(disk.clone()), clock(), options)
                .unwrap_or_else(|e| panic!("seed {seed}, life {life}: {e}"));
            let found: BTreeMap<u64, u64> = opened.entries.iter().map(|r| (r.index, number(r))).collect();
            for (index, number) in &promised {
                assert_eq!(found.get(index), Some(number), "seed {seed}, life {life}, record {index}");
            }
            let ledger = opened.ledger;
            let mut waiting: Vec<(u64, BoxFuture<'static, Result<u64, LedgerError>>)> = Vec::new();
            for _ in 0..dice.roll(60) {
                n += 1;
                match dice.roll(12) {
                    0..=5 => waiting.push((n, ledger.append(&said(n)).boxed())),
                    6..=8 => waiting.push((n, ledger.defer(&said(n)).durable().boxed())),
                    9 => disk.set(Faults { sync: Some(ErrorKind::Other), ..Faults::default() }),
                    10 => disk.set(Faults { write: Some(ErrorKind::Other), ..Faults::default() }),
                    _ => {
                        disk.set(Faults::default());
                        if dice.roll(2) == 0 {
                            until(&ledger, |h| *h == Health::Good).await;
                        }
                    }
                }
                if dice.roll(4) == 0 {
                    tokio::task::yield_now().await;
                }
                // Answers that came meanwhile.
                waiting.retain_mut(|(n, answer)| match answer.now_or_never() {
                    Some(Ok(index)) => {
                        promised.insert(index, *n);
                        false
                    }
                    Some(Err(_)) => false,
                    None => true,
                });
            }
            disk = disk.crash(&mut dice);
            // An answer from before the power failed counts, even if it is read only now.
            ledger.close(LONG).await.ok();
            for (n, answer) in waiting {
                if let Some(Ok(index)) = answer.now_or_never() {
                    promised.insert(index, n);
                }
            }
        }
        let report = verify(&disk, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(report.head.index >= promised.keys().last().copied().unwrap_or(0), "seed {seed}");
    }
}

#[tokio::test]
async fn unsynced_records_of_a_killed_process_are_synced_first() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    ledger.append(&said(1)).await.unwrap();
    disk.hold();
    let lost = ledger.append(&said(2));
    disk.wait_for_sync();
    let left = disk.kill();
    disk.release();
    drop(lost);
    assert!(!left.durable_text().contains("said 2"));
    let next = open(&left, quick());
    assert_eq!(next.head().index, 2, "it was written whole, though never answered");
    assert!(next.is_durable(2));
    assert!(left.durable_text().contains("said 2"));
}

#[tokio::test]
async fn a_write_error_refuses_appends_and_keeps_endings_and_indexes() {
    for fault in [
        Faults { sync: Some(ErrorKind::Other), ..Faults::default() },
        Faults { write: Some(ErrorKind::Other), ..Faults::default() },
    ] {
        let disk = Forgetful::default();
        let ledger = open(&disk, quick());
        ledger.append(&said(1)).await.unwrap();
        disk.hold();
        let first = ledger.append(&said(2));
        disk.wait_for_sync();
        // All of these are in one batch after the batch that is being synced.
        let second = ledger.append(&said(3));
        let ending = ledger.defer(&said(4));
        let third = ledger.append(&said(5));
        assert_eq!((second.index(), ending.index, third.index()), (Some(3), 4, Some(5)));
        disk.set(fault);
        disk.release();
        let _ = first.await;
        for refused in [second, third] {
            assert!(matches!(refused.await, Err(LedgerError::Unavailable { .. })));
        }
        until(&ledger, |h| matches!(h, Health::Failing { .. })).await;
        assert!(matches!(ledger.append(&said(6)).await, Err(LedgerError::Unavailable { .. })));
        assert!(!ledger.is_durable(4));
        let later = ledger.defer(&said(7));
        assert_eq!(later.index, 5, "places behind the last ending are given anew");
        assert_eq!(ledger.waiting(), (2, 2));

        disk.set(Faults::default());
        assert_eq!(soon(ending.durable()).await, Ok(4));
        assert_eq!(soon(later.durable()).await, Ok(5));
        until(&ledger, |h| *h == Health::Good).await;
        assert_eq!(ledger.append(&said(8)).await, Ok(6));
        ledger.close(LONG).await.unwrap();

        let entries = read_all(&disk);
        let shape: Vec<_> = entries.iter().map(|r| (r.index, number(r), r.refused)).collect();
        let report = verify(&disk, None).unwrap();
        assert!(report.segments >= 2, "the segment that failed is not written again");
        if fault.sync.is_some() {
            assert_eq!(shape, [(1, 1, 0), (4, 4, 2), (5, 7, 0), (6, 8, 0)]);
            assert_eq!(report.refused, 2);
        } else {
            assert_eq!(shape, [(1, 1, 0), (2, 2, 0), (4, 4, 1), (5, 7, 0), (6, 8, 0)]);
        }
    }
}

#[tokio::test]
async fn on_a_read_only_disk_nothing_widens_and_endings_wait() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    ledger.append(&said(1)).await.unwrap();
    disk.set(Faults { read_only: true, ..Faults::default() });
    assert!(matches!(ledger.append(&said(2)).await, Err(LedgerError::Unavailable { .. })));
    until(&ledger, |h| matches!(h, Health::Failing { .. })).await;
    let endings: Vec<_> = (3..20).map(|n| ledger.defer(&said(n))).collect();
    assert_eq!(endings[0].index, 2);
    assert!(ledger.wait_durable(2).now_or_never().is_none());
    assert_eq!(ledger.wait_durable(500).await, Err(LedgerError::NoSuchIndex { index: 500 }));
    disk.set(Faults::default());
    assert!(ledger.wait_durable(18).await.unwrap() >= 18);
    until(&ledger, |h| *h == Health::Good).await;
    ledger.append(&said(20)).await.unwrap();
    let order: Vec<u64> = std::iter::once(1).chain(3..=20).collect();
    ledger.close(LONG).await.unwrap();
    assert_eq!(read_all(&disk).iter().map(number).collect::<Vec<_>>(), order);
}

#[tokio::test]
async fn a_full_disk_takes_endings_into_the_reserve_and_no_appends() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    ledger.append(&said(1)).await.unwrap();
    let full = Faults { capacity: Some(disk.used() + 100), ..Faults::default() };
    disk.set(full);
    assert!(matches!(ledger.append(&said(2)).await, Err(LedgerError::Unavailable { .. })));
    until(&ledger, |h| matches!(h, Health::Failing { .. })).await;
    // Endings are durable although the disk is full, one by one.
    for n in 3..20 {
        let ending = ledger.defer(&said(n));
        assert_eq!(soon(ending.durable()).await, Ok(n - 1));
        assert!(matches!(ledger.append(&said(0)).await, Err(LedgerError::Unavailable { .. })));
    }
    until(&ledger, |h| matches!(h, Health::EndingsOnly { .. })).await;
    assert!(disk.file("reserve").is_none());
    disk.set(Faults::default());
    until(&ledger, |h| *h == Health::Good).await;
    assert!(disk.file("reserve").is_some(), "the reserve is taken back before anything is appended");
    assert_eq!(ledger.append(&said(20)).await, Ok(19));
    ledger.close(LONG).await.unwrap();
    let order: Vec<u64> = std::iter::once(1).chain(3..=20).collect();
    assert_eq!(read_all(&disk).iter().map(number).collect::<Vec<_>>(), order);
}

#[tokio::test]
async fn a_ledger_opened_on_a_full_disk_takes_endings_and_warns() {
    let disk = Forgetful::default();
    disk.set(Faults { capacity: Some(10_000), ..Faults::default() });
    let opened = Ledger::open_on(Arc::new(disk.clone()), clock(), quick()).unwrap();
    assert_eq!(opened.warnings.len(), 1);
    assert!(opened.warnings[0].contains("reserve"), "{:?}", opened.warnings);
    let ledger = opened.ledger;
    assert!(matches!(ledger.append(&said(1)).await, Err(LedgerError::Unavailable { .. })));
    assert_eq!(ledger.defer(&said(2)).durable().await, Ok(1));
    disk.set(Faults::default());
    until(&ledger, |h| *h == Health::Good).await;
    assert_eq!(ledger.append(&said(3)).await, Ok(2));
}

#[tokio::test]
async fn endings_past_the_bound_are_counted_and_never_durable() {
    let disk = Forgetful::default();
    let ledger = open(&disk, Options { deferred_max: 3, ..quick() });
    ledger.append(&said(1)).await.unwrap();
    disk.set(Faults { read_only: true, ..Faults::default() });
    let _ = ledger.append(&said(2)).await;
    until(&ledger, |h| matches!(h, Health::Failing { .. })).await;
    let kept: Vec<_> = (3..6).map(|n| ledger.defer(&said(n))).collect();
    let lost: Vec<_> = (6..16).map(|n| ledger.defer(&said(n))).collect();
    assert!(lost.iter().all(|d| d.index == 5), "one place for all of them");
    disk.set(Faults::default());
    for (ending, index) in kept.into_iter().zip(2..) {
        assert_eq!(soon(ending.durable()).await, Ok(index));
    }
    for ending in lost {
        assert_eq!(soon(ending.durable()).await, Err(LedgerError::Coalesced));
    }
    until(&ledger, |h| *h == Health::Good).await;
    assert_eq!(ledger.append(&said(16)).await, Ok(6));
    assert!(!ledger.is_durable(5));
    assert_eq!(ledger.wait_durable(5).await, Err(LedgerError::Coalesced));
    assert_eq!(ledger.waiting(), (0, 0));
    ledger.close(LONG).await.unwrap();
    let entries = read_all(&disk);
    let Event::Coalesced(coalesced) = &entries[4].event else { panic!("{:?}", entries[4]) };
    assert_eq!(coalesced.records, 10);
    assert_eq!(coalesced.types.clone().into_iter().collect::<Vec<_>>(), [("epoch.ended".to_owned(), 10)]);
    assert!(coalesced.last >= entries[4].time);
}

#[tokio::test]
async fn a_lock_is_kept_among_endings_that_are_only_counted() {
    let disk = Forgetful::default();
    let ledger = open(&disk, Options { deferred_max: 3, ..quick() });
    ledger.append(&said(1)).await.unwrap();
    disk.set(Faults { read_only: true, ..Faults::default() });
    let _ = ledger.append(&said(2)).await;
    until(&ledger, |h| matches!(h, Health::Failing { .. })).await;
    for n in 3..10 {
        drop(ledger.defer(&said(n)));
    }
    let lock = Event::LockLifted {
        name: "tenant:acme".into(),
        by: crate::ledger::Actor::Daemon("test".into()),
        reason: "r".into(),
    };
    let lifted = ledger.defer(&lock);
    drop(ledger.defer(&said(11)));
    disk.set(Faults::default());
    assert!(soon(lifted.durable()).await.is_ok());
    ledger.close(LONG).await.unwrap();
    assert!(read_all(&disk).iter().any(|e| matches!(e.event, Event::LockLifted { .. })));
}

#[tokio::test]
async fn an_append_past_the_queue_or_record_size_is_refused_at_once() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    let large = Event::EpochEnded { reason: "x".repeat(crate::limits::LEDGER_RECORD_BYTES_MAX) };
    assert!(matches!(ledger.append(&large).await, Err(LedgerError::TooLarge { .. })));
    disk.hold();
    let kept: Vec<_> = (0..crate::limits::LEDGER_QUEUE_MAX as u64).map(|n| ledger.append(&said(n))).collect();
    assert!(kept.iter().all(|a| a.index().is_some()));
    assert_eq!(ledger.append(&said(0)).now_or_never(), Some(Err(LedgerError::QueueFull)));
    let ending = ledger.defer(&said(1));
    disk.release();
    assert_eq!(soon(ending.durable()).await, Ok(crate::limits::LEDGER_QUEUE_MAX as u64 + 1));
    ledger.append(&said(2)).await.unwrap();
}

// Proves law 40.
#[tokio::test]
async fn closing_writes_accepted_records_and_takes_no_more() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    disk.hold();
    let mut all: Vec<_> = (0..50).map(|n| ledger.append(&said(n))).collect();
    disk.wait_for_sync();
    let closing = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.close(LONG).await }
    });
    while ledger.append(&said(50)).now_or_never() != Some(Err(LedgerError::Closed)) {
        tokio::task::yield_now().await;
    }
    disk.release();
    let head = closing.await.unwrap().unwrap();
    for (n, answer) in join_all(all.drain(..)).await.into_iter().enumerate() {
        assert_eq!(answer, Ok(n as u64 + 1));
    }
    assert!(head.index >= 50);
    assert_eq!(soon(ledger.stopped()).await, WriterEnd::Closed);
    assert_eq!(ledger.health(), Health::Stopped);
    assert_eq!(ledger.defer(&said(1)).durable().await, Err(LedgerError::Closed));
    assert_eq!(verify(&disk, Some(head)).unwrap().head, head);
    open(&disk, quick());
}

#[tokio::test]
async fn closing_without_a_disk_reports_how_many_records_were_lost() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    disk.set(Faults { read_only: true, ..Faults::default() });
    let _ = ledger.append(&said(1)).await;
    let ending = ledger.defer(&said(2));
    assert_eq!(ledger.close(LONG).await, Err(CloseError::Unwritten { records: 1 }));
    assert_eq!(soon(ending.durable()).await, Err(LedgerError::Closed));
}

/// A clock on which every deadline has passed.
struct Late;

impl Clock for Late {
    fn now(&self) -> Now {
        SystemClock::new().now()
    }
    fn sleep_until(&self, _: LeaseTime) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

#[tokio::test]
async fn closing_does_not_wait_for_a_disk_past_its_deadline() {
    let disk = Forgetful::default();
    let ledger = Ledger::open_on(Arc::new(disk.clone()), Arc::new(Late), quick()).unwrap().ledger;
    disk.hold();
    let appending = ledger.append(&said(1));
    disk.wait_for_sync();
    assert_eq!(ledger.close(LONG).await, Err(CloseError::Deadline { records: 1 }));
    disk.release();
    assert_eq!(appending.await, Ok(1));
    assert_eq!(soon(ledger.stopped()).await, WriterEnd::Closed);
}

// Proves law 38.
#[tokio::test]
async fn a_writer_that_dies_is_noticed_and_no_caller_waits() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    ledger.append(&said(1)).await.unwrap();
    let stopped = ledger.stopped();
    disk.set(Faults { panic: true, ..Faults::default() });
    assert_eq!(ledger.append(&said(2)).await, Err(LedgerError::Closed));
    assert_eq!(soon(stopped).await, WriterEnd::Died);
    assert_eq!(ledger.health(), Health::Stopped);
    assert_eq!(ledger.append(&said(3)).await, Err(LedgerError::Closed));
    assert_eq!(ledger.wait_durable(2).await, Err(LedgerError::Closed));
    assert_eq!(ledger.close(LONG).await, Err(CloseError::Died));
}

// Proves law 37.
#[tokio::test]
async fn a_slow_reader_of_the_tail_gets_all_and_its_lag() {
    let disk = Forgetful::default();
    let ledger = open(&disk, Options { segment_bytes: 20_000, ..quick() });
    for n in 1..=10 {
        ledger.append(&said(n)).await.unwrap();
    }
    let mut slow = ledger.tail(1);
    let only_new = ledger.tail(0);
    let middle: Vec<_> = ledger.tail(4).into_stream().take(3).collect().await;
    assert_eq!(middle.into_iter().map(|l| l.unwrap().index).collect::<Vec<_>>(), [4, 5, 6]);

    let first = slow.next().await.unwrap().unwrap();
    assert_eq!((first.index, first.behind), (1, 9));
    // The writer goes on without it, over many segments.
    for n in 11..=1_000 {
        ledger.append(&said(n)).await.unwrap();
    }
    for n in 2..=1_000 {
        let line = slow.next().await.unwrap().unwrap();
        assert_eq!((line.index, line.behind), (n, 1_000 - n));
        assert!(line.line.ends_with('}') && line.line.contains(&format!("\"said {n}\"")));
    }
    assert!(slow.next_present().await.is_none());
    // It follows: later records wake it.
    let (next, _) = tokio::join!(slow.next(), ledger.append(&said(1_001)));
    assert_eq!(next.unwrap().unwrap().index, 1_001);

    ledger.close(LONG).await.unwrap();
    assert!(slow.next().await.is_none(), "it ends with the ledger");
    let new: Vec<u64> = only_new.into_stream().map(|l| l.unwrap().index).collect().await;
    assert_eq!(new, (11..=1_001).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_tail_never_shows_a_record_that_is_not_durable() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    ledger.append(&said(1)).await.unwrap();
    let mut tail = ledger.tail(1);
    disk.hold();
    let appending = ledger.append(&said(2));
    disk.wait_for_sync();
    let seen = String::from_utf8(disk.file(&segment::name(1)).unwrap().0).unwrap();
    assert!(seen.contains("said 2"), "it is in the file");
    assert_eq!(tail.next().await.unwrap().unwrap().index, 1);
    assert!(tail.next_present().await.is_none());
    disk.set(Faults { sync: Some(ErrorKind::Other), ..Faults::default() });
    disk.release();
    appending.await.unwrap_err();
    disk.set(Faults::default());
    until(&ledger, |h| *h == Health::Good).await;
    assert_eq!(ledger.append(&said(3)).await, Ok(2));
    let line = tail.next().await.unwrap().unwrap();
    assert!(line.index == 2 && line.line.contains("said 3"), "{line:?}");
}

#[tokio::test]
async fn a_directory_has_one_ledger_process_and_its_lock_names_it() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("state/ledger");
    let opened = Ledger::open(&path, clock(), quick()).unwrap();
    for n in 1..=20 {
        assert_eq!(opened.ledger.append(&said(n)).await, Ok(n));
    }
    let refused = Ledger::open(&path, clock(), quick()).unwrap_err();
    let mine = format!("process {}", std::process::id());
    assert!(
        matches!(&refused, OpenError::Lock(LockError::Held { by: Some(by) }) if *by == mine),
        "{refused}"
    );
    assert!(refused.to_string().contains(&mine), "{refused}");

    assert_eq!(std::fs::metadata(path.join("reserve")).unwrap().len(), quick().reserve_bytes);
    let head = opened.ledger.close(LONG).await.unwrap();
    let report = verify(&Dir::at(&path), Some(head)).unwrap();
    assert_eq!((report.records, report.head_file), (20, true));
    use std::os::unix::fs::PermissionsExt;
    for file in std::fs::read_dir(&path).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
    }

    let again = Ledger::open(&path, clock(), quick()).unwrap();
    assert_eq!((again.epoch, again.entries.len()), (2, 20));
    assert_eq!(again.ledger.append(&said(21)).await, Ok(21));
}

#[tokio::test]
async fn dropping_the_last_handle_writes_and_unlocks_the_ledger() {
    let disk = Forgetful::default();
    let ledger = open(&disk, quick());
    let stopped = ledger.stopped();
    let ending = ledger.defer(&said(1));
    drop(ledger);
    assert_eq!(soon(ending.durable()).await, Ok(1));
    assert_eq!(soon(stopped).await, WriterEnd::Closed);
    assert_eq!(read_all(&disk).len(), 1);
}
