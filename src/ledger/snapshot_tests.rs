//! Snapshots, and the records that are written meanwhile.

use std::{
    io::{self, BufRead, Write},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use super::{forgetful::Forgetful, ledger_tests::*, *};

/// Counts events. Writing it waits for the test.
#[derive(Clone, Default)]
pub(super) struct Slow {
    pub(super) count: u64,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

#[derive(Default)]
struct Gate {
    held: bool,
    writing: u64,
}

impl Slow {
    fn hold(&self, held: bool) {
        self.gate.0.lock().unwrap().held = held;
        self.gate.1.notify_all();
    }

    fn writing(&self) -> u64 {
        self.gate.0.lock().unwrap().writing
    }
}

impl Fold for Slow {
    fn format_version(&self) -> u32 {
        1
    }
    fn takes(&self, kind: &str) -> bool {
        kind == "epoch.ended"
    }
    fn apply(&mut self, _: u64, _: Event) -> Result<(), &'static str> {
        self.count += 1;
        Ok(())
    }
    fn len(&self) -> usize {
        1
    }
    fn share(&self) -> Box<dyn Fold> {
        Box::new(self.clone())
    }
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut gate = self.gate.0.lock().unwrap();
        gate.writing += 1;
        drop(self.gate.1.wait_while(gate, |g| g.held).unwrap());
        out.write_all(format!("{}\n", self.count).as_bytes())
    }
    fn read(&mut self, text: &mut dyn BufRead) -> Result<(), String> {
        let mut line = String::new();
        text.read_line(&mut line).map_err(|e| e.to_string())?;
        self.count = line.trim().parse().map_err(|e| format!("{e}"))?;
        Ok(())
    }
}

fn files(disk: &Forgetful, prefix: &str) -> usize {
    disk.list().unwrap().iter().filter(|f| f.starts_with(prefix)).count()
}

pub(super) async fn until(what: impl Fn() -> bool) {
    let waiting = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("in time");
}

#[tokio::test]
async fn records_go_on_while_a_snapshot_is_written() {
    let disk = Forgetful::default();
    let fold = Slow::default();
    let options = Options { segment_records: 10, ..quick() };
    let opened = Ledger::open_with_fold(Arc::new(disk.clone()), clock(), options, &mut fold.clone()).unwrap();
    let ledger = opened.ledger;
    fold.hold(true);
    for n in 1..=11 {
        ledger.append(&said(n)).await.unwrap();
    }
    until(|| fold.writing() == 1).await;
    // Records for many segments, each answered, and no second snapshot shortly after the first.
    for n in 12..=100 {
        assert_eq!(ledger.append(&said(n)).await, Ok(n), "a record waits for a snapshot");
    }
    assert_eq!((fold.writing(), files(&disk, "ledger-"), files(&disk, "state-")), (1, 2, 0));
    fold.hold(false);
    until(|| disk.durable_text().contains("\"type\":\"snapshot\",\"before\":11,")).await;
    ledger.close(LONG).await.unwrap();
    let report = verify_folded(&disk, None, &mut Slow::default()).unwrap();
    assert_eq!((report.snapshots, report.snapshots_followed), (1, 1));
    let (again, read) = Ledger::open_folded_on::<Slow>(Arc::new(disk.kill()), clock(), quick()).unwrap();
    assert_eq!(read.count, 100, "ten from the snapshot, 90 read");
    drop(again);
}

#[tokio::test]
async fn a_snapshot_past_its_bound_is_never_half_there() {
    let disk = Forgetful::default();
    let options = Options { segment_records: 10, snapshot_bytes_max: 1, ..quick() };
    let opened =
        Ledger::open_with_fold(Arc::new(disk.clone()), clock(), options, &mut Slow::default()).unwrap();
    // Segments go on without a snapshot. A segment ends when the snapshot before it has been given up.
    let mut records = 0;
    let more_segments = async {
        while files(&disk, "ledger-") <= 2 || records < 40 {
            records += 1;
            assert_eq!(opened.ledger.append(&said(records)).await, Ok(records));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, more_segments).await.expect("in time");
    opened.ledger.close(LONG).await.unwrap();
    assert_eq!((files(&disk, "state-"), files(&disk, "snapshot.new")), (0, 0));
    verify_folded(&disk, None, &mut Slow::default()).unwrap();
    let (_, read) = Ledger::open_folded_on::<Slow>(Arc::new(disk.kill()), clock(), quick()).unwrap();
    assert_eq!(read.count, records);
}

#[tokio::test]
async fn what_verify_calls_good_is_what_a_start_takes() {
    let disk = Forgetful::default();
    let fold = Slow::default();
    let options = Options { segment_records: 10, ..quick() };
    let opened = Ledger::open_with_fold(Arc::new(disk.clone()), clock(), options, &mut fold.clone()).unwrap();
    for n in 1..=60 {
        opened.ledger.append(&said(n)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    opened.ledger.close(LONG).await.unwrap();
    let names: Vec<String> = {
        let mut names = disk.list().unwrap();
        names.retain(|f| f.starts_with("ledger-") || f.starts_with("state-"));
        names.sort();
        names
    };
    assert!(names.len() > 6, "{names:?}");
    // Every prefix of the segments moved away, with and without each of the snapshots.
    let (segments, snapshots): (Vec<_>, Vec<_>) = names.iter().partition(|f| f.starts_with("ledger-"));
    for cut in 0..segments.len() {
        for lost in 0..=snapshots.len() {
            let copy = disk.kill();
            let away = segments[..cut].iter().chain(&snapshots[..lost]);
            away.for_each(|file| copy.remove(file).unwrap());
            let verified = verify_folded(&copy, None, &mut Slow::default());
            let started = Ledger::open_folded_on::<Slow>(Arc::new(copy.kill()), clock(), quick());
            assert_eq!(verified.is_ok(), started.is_ok(), "{cut} {lost}: {verified:?}, {:?}", started.err());
            if let Ok((_, read)) = started {
                assert_eq!(read.count, 60, "{cut} {lost}");
            }
        }
    }
}
