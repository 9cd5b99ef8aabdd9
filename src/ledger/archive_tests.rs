//! The archive: what moves, what stays, and what a crash leaves.

use std::sync::{Arc, atomic::AtomicBool};

use super::{
    archive::Joined,
    compressor::compress,
    compressor_tests::FaultyDisk,
    forgetful::{Dice, Forgetful},
    ledger_tests::*,
    segment,
    snapshot_tests::{Slow, until},
    *,
};
use crate::clock::Wall;

/// Appends records until a ledger with snapshots has this many more, and compresses every other sealed segment.
async fn grow(disk: &Forgetful, records: u64) -> Head {
    let options = Options { segment_records: 10, ..quick() };
    let opened =
        Ledger::open_with_fold(Arc::new(disk.clone()), clock(), options, &mut Slow::default()).unwrap();
    for n in 1..=records {
        opened.ledger.append(&said(n)).await.unwrap();
        // While a snapshot is written, no other segment begins.
        let last = segment::list(disk).unwrap().last().unwrap().first;
        let record = format!("\"type\":\"snapshot\",\"before\":{last},");
        until(|| last == 1 || disk.durable_text().contains(&record)).await;
    }
    let head = opened.ledger.close(LONG).await.unwrap();
    let all = segment::list(disk).unwrap();
    for found in all[..all.len() - 1].iter().step_by(2).filter(|found| found.is_plain) {
        compress(disk, found, &AtomicBool::new(false)).unwrap();
    }
    head
}

async fn sample() -> (Forgetful, Head) {
    let disk = Forgetful::default();
    let head = grow(&disk, 90).await;
    assert!(segment::list(&disk).unwrap().len() > 6);
    (disk, head)
}

fn shared(disk: &Forgetful) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

fn move_all(from: &Forgetful, to: &Forgetful) -> Result<ArchiveReport, ArchiveError> {
    archive(&shared(from), &shared(to), &Slow::default(), ArchiveOptions::default())
}

fn verify_both(from: &Forgetful, to: &Forgetful, head: Head) -> Result<VerifyReport, ReadError> {
    verify_with_archive(shared(from), shared(to), Some(head), &mut Slow::default())
}

/// Checks that a start has all records, also if the last snapshot is damaged.
fn check_start(disk: &Forgetful, records: u64, at: &str) {
    let snapshots = segment::snapshots_of(disk.list().unwrap());
    assert_eq!(snapshots.len(), 2, "{at}");
    for lost in [None, Some(&snapshots[1].1)] {
        let copy = disk.kill();
        lost.into_iter().for_each(|file| copy.remove(file).unwrap());
        let (_, read) = Ledger::open_folded_on::<Slow>(Arc::new(copy.kill()), clock(), quick())
            .unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_eq!(read.count, records, "{at}");
        verify_folded(&copy, None, &mut Slow::default()).unwrap_or_else(|e| panic!("{at}: {e}"));
    }
}

fn tampered<T: std::fmt::Debug>(found: Result<T, ReadError>) -> Tamper {
    match found {
        Err(ReadError::Tamper(tamper)) => tamper,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_archive_takes_what_a_start_does_not_need() {
    let ((disk, head), to) = (sample().await, Forgetful::default());
    let names = |disk: &Forgetful| disk.list().unwrap();
    let (before, all) = (names(&disk), segment::list(&disk).unwrap());
    let whole = verify(&disk, Some(head)).unwrap();

    let dry = ArchiveOptions { dry_run: true, ..ArchiveOptions::default() };
    let said = archive(&shared(&disk), &shared(&to), &Slow::default(), dry).unwrap();
    assert_eq!((names(&disk), names(&to)), (before, Vec::new()));
    let done = move_all(&disk, &to).unwrap();
    assert_eq!(done, said);
    assert!(done.moved.len() > 3 && done.stay == done.needed, "{done:?}");
    assert_eq!(done.moved.len() + done.stay, all.len());
    assert_eq!(done.moved[0].first.0, 1);
    assert_eq!(done.moved.last().unwrap().last.0 + 1, done.stays_from);
    assert_eq!(done.stays_from, segment::list(&disk).unwrap()[0].first);

    check_start(&disk, 90, "archived");
    let report = verify_folded(&disk, Some(head), &mut Slow::default()).unwrap();
    assert_eq!((report.first.unwrap().0, report.archived), (done.stays_from, 0));
    let both = verify_both(&disk, &to, head).unwrap();
    assert_eq!((both.records, both.first, both.segments), (whole.records, whole.first, whole.segments));
    assert_eq!((both.archived, both.snapshots_followed), (done.moved.len() as u64, both.snapshots));

    let again = move_all(&disk, &to).unwrap();
    assert_eq!((again.moved, again.stays_from), (Vec::new(), done.stays_from));
    // The next archive continues the chain.
    let head = grow(&disk, 90).await;
    assert!(move_all(&disk, &to).unwrap().moved.len() > 3);
    check_start(&disk, 180, "archived twice");
    let both = verify_both(&disk, &to, head).unwrap();
    assert_eq!((both.first.unwrap().0, both.head), (1, head));
}

#[tokio::test]
async fn an_archive_leaves_what_it_should_leave() {
    let (disk, _) = sample().await;
    let with =
        |options| archive(&shared(&disk.kill()), &shared(&Forgetful::default()), &Slow::default(), options);
    let usual = with(ArchiveOptions::default()).unwrap();
    let total = usual.moved.len() + usual.stay;
    for keep in 0..total + 2 {
        let kept = with(ArchiveOptions { keep, ..ArchiveOptions::default() }).unwrap();
        assert_eq!(kept.stay, usual.needed.max(keep).min(total));
        assert_eq!(kept.moved, usual.moved[..kept.moved.len()]);
    }
    for (at, moved) in [(Wall(0), 0), (Wall(u64::MAX), usual.moved.len())] {
        let kept = with(ArchiveOptions { before: Some(at), ..ArchiveOptions::default() }).unwrap();
        assert_eq!(kept.moved.len(), moved);
    }
    // Without two snapshots a start may need everything.
    let few = disk.kill();
    few.remove(&segment::snapshots_of(few.list().unwrap())[0].1).unwrap();
    assert_eq!(move_all(&few, &Forgetful::default()).unwrap().moved, []);
    let none = move_all(&Forgetful::default(), &Forgetful::default());
    assert!(matches!(none, Err(ArchiveError::NoLedger)), "{none:?}");
    for held in [&disk, &Forgetful::default()] {
        let to = if held.list().unwrap().is_empty() { held.clone() } else { Forgetful::default() };
        let _lock = held.lock_segments().ok().unwrap();
        assert!(matches!(move_all(&disk, &to), Err(ArchiveError::Busy)));
    }
}

// Proves law 39b.
#[tokio::test]
async fn a_crash_while_archiving_leaves_every_record() {
    let (sample, head) = sample().await;
    let whole = verify(&sample, Some(head)).unwrap().records;
    let mut points = 0;
    loop {
        let (disk, to) = (sample.kill(), Forgetful::default());
        let dying = FaultyDisk::dying_after(&disk, points);
        let dying_to = dying.with_disk(&to);
        let (from_arc, to_arc): (Arc<dyn Disk>, Arc<dyn Disk>) = (Arc::new(dying), Arc::new(dying_to));
        let done = archive(&from_arc, &to_arc, &Slow::default(), ArchiveOptions::default());
        let mut dice = Dice(points as u64);
        let states = [(disk.kill(), to.kill()), (disk.kill().crash(&mut dice), to.kill().crash(&mut dice))];
        for (disk, to) in states {
            let at = format!("after {points} changes");
            check_start(&disk, 90, &at);
            let both = verify_both(&disk, &to, head).unwrap_or_else(|e| panic!("{at}: {e}"));
            assert_eq!(both.records, whole, "{at}");
            move_all(&disk, &to).unwrap_or_else(|e| panic!("{at}: {e}"));
            check_start(&disk, 90, &at);
            assert_eq!(verify_both(&disk, &to, head).unwrap().records, whole, "{at}");
            assert!(to.file(segment::SEGMENT_DRAFT).is_none(), "{at}");
            // What the second call removed is durable in the archive, also if the first call had made the copy.
            for seed in 0..4 {
                let mut dice = Dice(seed);
                let (disk, to) = (disk.kill().crash(&mut dice), to.kill().crash(&mut dice));
                assert_eq!(verify_both(&disk, &to, head).unwrap().records, whole, "{at}, then lost power");
            }
        }
        if done.is_ok() {
            break;
        }
        points += 1;
    }
    assert!(points > 30, "{points}");
}

#[tokio::test]
async fn other_records_are_never_archived_and_never_lost() {
    let (disk, head) = sample().await;
    let to = Forgetful::default();
    let found = segment::list(&disk).unwrap()[1];
    let (file, bytes) = (found.file(), disk.file(&found.file()).unwrap().0);
    let forged = String::from_utf8(bytes.clone()).unwrap().replacen("\"said ", "\"sold ", 1);
    assert!(found.is_plain && forged.as_bytes() != bytes);
    let kept = |disk: &Forgetful, to: &Forgetful| {
        let before = (disk.list().unwrap(), to.list().unwrap());
        let refused = move_all(disk, to).unwrap_err();
        assert_eq!((disk.list().unwrap(), to.list().unwrap()), before, "{refused}");
        refused
    };
    // A changed record in the ledger.
    let changed = disk.kill();
    changed.put(&file, forged.clone().into_bytes());
    let ArchiveError::Read(ReadError::Tamper(tamper)) = kept(&changed, &to) else { panic!() };
    assert_eq!((tamper.file, tamper.what), (file.clone(), Fault::Hash));
    // The archive of another ledger.
    let other = Forgetful::default();
    move_all(&sample().await.0, &other).unwrap();
    assert!(matches!(
        kept(&disk, &other),
        ArchiveError::Differs { .. } | ArchiveError::Read(ReadError::Tamper(_))
    ));
    let rest = disk.kill();
    move_all(&rest, &to).unwrap();
    assert!(matches!(kept(&rest, &other), ArchiveError::Read(ReadError::Tamper(_))));
    // Another file of a segment is in the archive already.
    let clash = to.kill();
    clash.put(&file, forged.clone().into_bytes());
    let ledger = disk.kill();
    ledger.remove(&segment::list(&ledger).unwrap()[0].file()).unwrap();
    assert!(matches!(move_all(&ledger, &clash), Err(ArchiveError::Differs { .. })));
    assert_eq!(disk.file(&file).unwrap().0, bytes);

    // A verification of both finds a changed, a missing and a doubly different segment.
    assert_eq!(tampered(verify_both(&rest, &clash, head)).what, Fault::Hash);
    let gap = to.kill();
    gap.remove(&file).unwrap();
    let tamper = tampered(verify_both(&rest, &gap, head));
    assert!(matches!(tamper.what, Fault::SegmentMissing { .. }), "{tamper}");
    assert_eq!(tampered(verify_both(&disk, &clash, head)).what, Fault::ArchiveDiffers);
    let joined = Joined { ledger: shared(&disk), archive: shared(&to) };
    assert_eq!(joined.check_shared().unwrap(), 0);
    assert!(joined.remove(&file).is_err() && joined.create("x").is_err());
}

#[tokio::test]
async fn a_reader_of_an_archived_segment_gets_a_clear_error() {
    let disk = Forgetful::default();
    // A reader takes fewer lines at once than a segment has.
    let ledger = open(&disk, Options { segment_bytes: 100_000, ..quick() });
    for n in 1..=1_000 {
        let appending = ledger.append(&said(n));
        // A segment begins only with a batch.
        if n % 500 == 0 {
            appending.await.unwrap();
        }
    }
    ledger.append(&said(1_001)).await.unwrap();
    let stays_from = segment::list(&disk).unwrap()[1].first;
    let mut tail = ledger.tail(1);
    assert_eq!(tail.next().await.unwrap().unwrap().index, 1);
    disk.remove(&segment::name(1)).unwrap();
    let missing = loop {
        match tokio::time::timeout(LONG, tail.next()).await.unwrap().unwrap() {
            Ok(_) => {}
            Err(TailError::Missing { index }) => break index,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(missing > 2 && missing < stays_from, "{missing}");
    assert_eq!(tail.next().await.unwrap().unwrap().index, stays_from);
}

#[tokio::test]
async fn a_copy_that_reads_back_differently_removes_nothing() {
    let ((disk, _), to) = (sample().await, Forgetful::default());
    let before = disk.list().unwrap();
    let lying: Arc<dyn Disk> = Arc::new(FaultyDisk::lying_about(&to, &(segment::name(1) + ".zst")));
    let refused = archive(&shared(&disk), &lying, &Slow::default(), ArchiveOptions::default()).unwrap_err();
    assert!(matches!(refused, ArchiveError::Read(ReadError::Tamper(_))), "{refused}");
    assert_eq!(disk.list().unwrap(), before);
}
