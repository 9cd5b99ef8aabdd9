//! A ledger with the exact bytes of version 1 is in `tests/fixtures/ledger-v1`. Every later version must read it.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc, time::Duration};

use super::*;
use crate::{
    clock::{Clock, LeaseTime, SystemClock},
    fence::Seq,
    job::{AttemptState, JobState},
    ledger::{Dir, Event, Head, Ledger, Options, verify, verify_folded},
    name::{AttemptNumber, JobId, Outcome},
};

/// The last record of the fixture. It never changes, and the bytes before it never change.
const HEAD: &str = "sha256:b7ef52812619c03efd9ff5e25550bf34f60525749ebd774d7c7cf6c6ed5ec372";
const LAST: u64 = 36;
/// Two indexes before it have no record.
const RECORDS: u64 = LAST - 2;

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

/// A copy, because opening a ledger writes to it.
fn copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ledger-v1");
    for file in fs::read_dir(fixture).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

/// Every kind of record has its line in the fixture. A kind that is added later does not compile without an entry here, which
/// is the empty text.
fn in_version_one(event: &Event) -> &'static str {
    match event {
        Event::EpochBegan(_) => "epoch.began",
        Event::EpochEnded { .. } => "epoch.ended",
        Event::CatalogLoaded { .. } => "catalog.loaded",
        Event::PolicyApplied { .. }
        | Event::PolicyNotApplied { .. }
        | Event::ChangeProposed { .. }
        | Event::ChangeApproved { .. }
        | Event::ChangeClosed { .. } => "",
        Event::JobCreated(_) => "job.created",
        Event::JobClosed { .. } => "job.closed",
        Event::JobConflict { .. } => "job.conflict",
        Event::JobApproved { .. }
        | Event::JobApprovalWithdrawn { .. }
        | Event::JobGlassBroken { .. }
        | Event::ReviewDone { .. } => "",
        Event::AttemptBegan { .. } => "attempt.began",
        Event::AttemptDraining { .. } => "attempt.draining",
        Event::AttemptEnded { .. } => "attempt.ended",
        Event::MemberJoined { .. } => "member.joined",
        Event::MemberDraining { .. } => "member.draining",
        Event::MemberAway { .. } => "member.away",
        Event::MemberLeft { .. } => "member.left",
        Event::MemberLost { .. } => "member.lost",
        Event::CredentialIssued(_) => "credential.issued",
        Event::CredentialCancelled { .. } => "credential.cancelled",
        Event::CredentialRenewed { .. } => "credential.renewed",
        Event::LeasesEnded { .. } => "leases.ended",
        Event::Withdrawn { .. } => "withdrawn",
        Event::Lowered { .. } => "lowered",
        Event::Revoked { .. } => "revoked",
        Event::LockSet { .. } => "lock.set",
        Event::LockLifted { .. } => "lock.lifted",
        Event::DatasetRecalled { .. }
        | Event::DatasetUnrecalled { .. }
        | Event::OutputsQuarantined { .. }
        | Event::JobUsed { .. }
        | Event::UseLost { .. } => "",
        Event::PersonLoggedIn(_) | Event::PersonLoggedOut { .. } => "",
        Event::Denied { .. } => "denied",
        Event::Snapshot(_) => "snapshot",
        Event::Coalesced(_) => "records.coalesced",
    }
}
const KINDS: usize = 26;

/// The state from the fixture's records, for each way to read them.
fn reads_the_same_state(recorded: &Recorded) {
    let found = recorded.rebuilt(LeaseTime(1_800_000_000_000));
    assert_eq!((found.seq, found.in_order), (Seq(19), true));
    let jobs: Vec<_> = found.jobs.iter().map(|j| (j.id, j.state)).collect();
    assert_eq!(jobs, [(JobId(2), JobState::Closed(Outcome::Rejected)), (JobId(1), JobState::Running)]);
    let job = &found.jobs[1];
    assert_eq!(spec_digest(&job.spec).unwrap(), job.spec_digest, "its digest is another today");
    assert_eq!((job.spec.name.as_str(), job.idempotency_key.as_str()), ("support-lora", "key 1"));
    assert_eq!((job.inputs.len(), job.spec.pins.len()), (2, 1));
    let attempts: Vec<_> = job.attempts.iter().map(|a| (a.number, a.state)).collect();
    let (first, second) = (AttemptNumber::FIRST, AttemptNumber::FIRST.next());
    let expected = [(first, AttemptState::Ended(Outcome::Failed)), (second, AttemptState::Suspended)];
    assert_eq!(attempts, expected);
    let joined: Vec<_> = job.attempts[0].members.iter().map(|(i, m)| format!("{i} {:?}", m.state)).collect();
    assert_eq!(joined.len(), 2, "{joined:?}");
    let locks: Vec<_> =
        found.locks.iter().map(|l| (l.name.to_string(), l.reason.as_str(), l.until)).collect();
    let prefix = "identity-prefix:spiffe://td.example/ns/ml/".to_owned();
    assert_eq!(locks, [(prefix, "INC-7", Some(LeaseTime(1_900_000_000_000)))]);
}

// Proves law 39.
#[test]
fn a_ledger_of_version_one_is_read_to_the_letter() {
    let copy = copy();
    let dir = Dir::at(copy.path());
    let kept = Head { index: LAST, digest: HEAD.parse().unwrap() };
    let report = verify(&dir, Some(kept)).unwrap();
    assert_eq!((report.records, report.head, report.epochs), (RECORDS, kept, 2));
    verify_folded(&dir, None, &mut Recorded::default()).unwrap();

    let (mut all, mut kinds) = (Recorded::default(), BTreeSet::new());
    let opened = Ledger::open_with(Arc::new(dir), clock(), Options::default(), &mut |record| {
        kinds.insert(in_version_one(&record.event));
        all.take(record.index, record.event).unwrap();
    });
    drop(opened.unwrap());
    let counted: BTreeSet<&str> = report.types.keys().map(String::as_str).collect();
    assert_eq!((kinds.len(), &kinds), (KINDS, &counted));
    reads_the_same_state(&all);
}

// Proves law 39.
#[tokio::test]
async fn a_ledger_of_version_one_is_gone_on_with() {
    let copy = copy();
    let (opened, recorded) =
        Ledger::open_folded::<Recorded>(copy.path(), clock(), Options::default()).unwrap();
    reads_the_same_state(&recorded);
    let next = opened.ledger.append(&Event::EpochEnded { reason: "the next".into() }).await.unwrap();
    assert!(next > LAST);
    opened.ledger.close(Duration::from_secs(20)).await.unwrap();
    let report = verify_folded(&Dir::at(copy.path()), None, &mut Recorded::default()).unwrap();
    assert_eq!(report.last.unwrap().0, next);
}
