//! Snapshots of the state: the reads of a start, and the findings of a verification.

use std::{sync::Arc, time::Duration};

use super::{
    Recorded,
    records::{change_record, created_record},
    testing::{LONG, actor, clock, decision, job, text},
};
use crate::{
    clock::LeaseTime,
    job::Change,
    ledger::{
        Actor, EpochBegan, Event, Fault, Fold, Ledger, Options, ReadError, forgetful::Forgetful,
        verify_folded,
    },
    name::{Digest, Outcome},
};

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
        // While a snapshot is written, no other segment begins.
        last_snapshot(disk).await;
    }
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
    // The chain without the snapshots is valid.
    crate::ledger::verify(&disk, None).unwrap();
    let Err(ReadError::Tamper(t)) = verify_folded(&disk, None, &mut Recorded::default()) else {
        panic!("a lie was believed")
    };
    assert!(matches!(t.what, Fault::Snapshot { .. }), "{t}");
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
        terms: Some(Digest::of(b"terms")),
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
