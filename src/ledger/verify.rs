//! Verifies a ledger only from its files, as an auditor does. Changes and locks nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::AtomicBool},
};

use super::{
    archive::Joined,
    chain::{self, SegmentEnd, WalkStart},
    event::{Event, Snapshot},
    fault::{Fault, ReadError},
    file::Disk,
    file_checks,
    fold::{self, Fold},
    head::read_head,
    record::Head,
    segment,
    segment_reader::check_both,
};
use crate::clock::Wall;

/// The contents of a consistent ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// The number of complete records in all segments.
    pub records: u64,
    /// The number of segments. The last segment may have no record yet.
    pub segments: u64,
    /// The size of their records. A compressed file is smaller.
    pub bytes: u64,
    /// The index and time of the first record. `None` in an empty ledger.
    pub first: Option<(u64, Wall)>,
    /// The index and time of the last record.
    pub last: Option<(u64, Wall)>,
    /// The last record and the digest of its line. Keep it on another machine, to detect a cut or rewritten ledger
    /// later.
    pub head: Head,
    /// The number of runs of the daemon that left a record.
    pub epochs: u64,
    /// The number of the last run of the daemon.
    pub epoch: u64,
    /// The number of records by `type`.
    pub types: BTreeMap<String, u64>,
    /// The number of indexes that stayed empty after write errors.
    pub refused: u64,
    /// The number of bytes after the last complete record: a write under way, or a write that a crash cut off. These
    /// bytes were never confirmed.
    pub torn: u64,
    /// Whether the ledger has a head file for the comparison.
    pub head_file: bool,
    /// The number of segments that are only in the archive, and were read from there.
    pub archived: u64,
    /// The number of snapshots in the directory.
    pub snapshots: u64,
    /// The number of snapshots that match the records before them.
    pub snapshots_followed: u64,
}

/// Reads the whole ledger. `expected` is a head from another machine: the ledger must have this record unchanged.
///
/// Without `expected`, a cut tail is detected only if the record that the head file names was cut off. A chain that was computed
/// again is not detected.
///
/// # Errors
///
/// The first change, or the first line that cannot be read.
pub fn verify(disk: &dyn Disk, expected: Option<Head>) -> Result<VerifyReport, ReadError> {
    walk(disk, expected, None)
}

/// Reads the whole ledger, and compares each snapshot with the state after the records before it. If the oldest records
/// were moved away, the first snapshot that exists is trusted. A ledger from which a daemon could not start is an
/// error.
pub fn verify_folded(
    disk: &dyn Disk,
    expected: Option<Head>,
    fold: &mut dyn Fold,
) -> Result<VerifyReport, ReadError> {
    walk(disk, expected, Some(fold))
}

/// Verifies a ledger together with the segments that were moved to an archive, as one chain. A segment that is in both
/// must have the same records in both.
pub fn verify_with_archive(
    ledger: Arc<dyn Disk>,
    archive: Arc<dyn Disk>,
    expected: Option<Head>,
    fold: &mut dyn Fold,
) -> Result<VerifyReport, ReadError> {
    let joined = Joined { ledger, archive };
    let archived = joined.check_shared()?;
    let report = walk(&joined, expected, Some(fold))?;
    Ok(VerifyReport { archived, ..report })
}

/// The highest number of kept states, one for the beginning of each recent segment. Few are enough, because the record of
/// a snapshot comes soon after the beginning of its segment.
const BEGINNINGS_MAX: usize = 64;

/// The state after the records so far, to compare with the snapshots.
struct SnapshotCheck<'a> {
    fold: &'a mut dyn Fold,
    /// Whether the fold has the state after all records so far.
    known: bool,
    /// The segment from whose snapshot the state was read. The earlier records are not here, so this snapshot cannot be compared.
    believed: Option<u64>,
    beginnings: VecDeque<(u64, Box<dyn Fold>)>,
}

impl SnapshotCheck<'_> {
    /// Handles the beginning of a segment.
    fn begin(&mut self, disk: &dyn Disk, first: u64) {
        if !self.known
            && let Ok(Some(said)) = fold::find_snapshot_record(disk, first)
        {
            self.known = fold::load_snapshot(disk, first, &said, self.fold);
            self.believed = self.known.then_some(first);
        } else if self.known {
            self.beginnings.push_back((first, self.fold.share()));
            if self.beginnings.len() > BEGINNINGS_MAX {
                self.beginnings.pop_front();
            }
        }
    }

    /// Compares a snapshot with the expected state. Returns whether the comparison was possible.
    fn compare(&mut self, index: u64, said: &Snapshot) -> Result<bool, Fault> {
        let before = said.begins(index);
        if self.believed == Some(before) {
            return Ok(false);
        }
        while self.beginnings.front().is_some_and(|(first, _)| *first < before) {
            self.beginnings.pop_front();
        }
        let Some((_, fold)) = self.beginnings.front().filter(|(first, _)| *first == before) else {
            return if self.known && before != index { Err(Fault::SnapshotPlace(before)) } else { Ok(false) };
        };
        if said.form != fold.format_version() {
            return Ok(false);
        }
        let expected = fold::digest(fold.as_ref()).map_err(|e| Fault::Event(e.to_string()))?;
        let found = said.digest;
        if expected == found { Ok(true) } else { Err(Fault::Snapshot { expected, found }) }
    }
}

/// Returns the position at which reading begins. Older segments may be on another machine if the daemon can start
/// without them. Then reading begins at the first segment that is here.
fn beginning(disk: &dyn Disk, firsts: &[u64], fold: Option<&dyn Fold>) -> Result<WalkStart, ReadError> {
    match firsts.first() {
        None | Some(1) => Ok(WalkStart::First),
        Some(first) if file_checks::begins_chain(disk, *first)? => Ok(WalkStart::First),
        Some(first) => {
            let startable = match fold {
                Some(fold) => fold::load_last_snapshot(disk, fold.share().as_mut())?.is_some(),
                None => fold::find_snapshot_record(disk, *first)?.is_some(),
            };
            Ok(if startable { WalkStart::Here } else { WalkStart::First })
        }
    }
}

fn walk(
    disk: &dyn Disk,
    expected: Option<Head>,
    fold: Option<&mut dyn Fold>,
) -> Result<VerifyReport, ReadError> {
    let kept = read_head(disk)?;
    let heads: Vec<Head> = kept.into_iter().chain(expected).collect();
    let mut report = VerifyReport {
        records: 0,
        segments: 0,
        bytes: 0,
        first: None,
        last: None,
        head: Head::START,
        epochs: 0,
        epoch: 0,
        types: BTreeMap::new(),
        refused: 0,
        torn: 0,
        head_file: kept.is_some(),
        archived: 0,
        snapshots: 0,
        snapshots_followed: 0,
    };
    let segments = segment::list(disk)
        .map_err(|source| ReadError::Io { file: "the ledger directory".into(), source })?;
    for both in &segments {
        check_both(disk, both, &AtomicBool::new(false))?;
    }
    let firsts: Vec<u64> = segments.iter().map(|segment| segment.first).collect();
    let begin = beginning(disk, &firsts, fold.as_deref())?;
    let known = begin == WalkStart::First;
    let mut following =
        fold.map(|fold| SnapshotCheck { fold, known, believed: None, beginnings: VecDeque::new() });
    let walked = chain::walk(disk, &heads, begin, &mut |line| {
        let (index, kind) = (line.index, line.kind);
        let record = line.record()?;
        if let Some(following) = &mut following
            && firsts.binary_search(&index).is_ok()
        {
            following.begin(disk, index);
        }
        if let Event::Snapshot(said) = &record.event {
            report.snapshots += 1;
            if let Some(following) = &mut following {
                report.snapshots_followed += u64::from(following.compare(index, said)?);
            }
        } else if let Some(SnapshotCheck { fold, known: true, .. }) = &mut following
            && fold.takes(kind)
        {
            fold.apply(index, record.event.clone()).map_err(Fault::Misfit)?;
        }
        report.records += 1;
        report.first.get_or_insert((record.index, record.time));
        report.last = Some((record.index, record.time));
        report.refused = report.refused.saturating_add(record.refused);
        if record.epoch > report.epoch {
            report.epochs += 1;
            report.epoch = record.epoch;
        }
        match report.types.get_mut(kind) {
            Some(count) => *count += 1,
            None => {
                report.types.insert(kind.to_owned(), 1);
            }
        }
        Ok(())
    })?;
    report.segments = walked.segments;
    report.bytes = walked.bytes;
    report.head = walked.head;
    if let SegmentEnd::Torn { cut, .. } = walked.end {
        report.torn = cut;
    }
    Ok(report)
}
