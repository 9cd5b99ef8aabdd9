//! Verifying a ledger from its files alone, as an auditor does: nothing is changed, nothing is locked.

use std::collections::BTreeMap;

use super::{
    chain::{self, Begin, End},
    event::Event,
    fault::{Fault, ReadError},
    file::Disk,
    fold::{self, Fold},
    head::read_head,
    record::Head,
};
use crate::{clock::Wall, name::Digest};

/// What a ledger holds, all of which fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub records: u64,
    pub segments: u64,
    pub bytes: u64,
    /// The first record's index and time; nothing in an empty ledger.
    pub first: Option<(u64, Wall)>,
    /// The last record's index and time.
    pub last: Option<(u64, Wall)>,
    /// The last record and the digest of its line. Keep it elsewhere, to find a cut or a rewritten ledger later.
    pub head: Head,
    /// Lives of the daemon that left a record, and the number of the last.
    pub epochs: u64,
    pub epoch: u64,
    /// Records by `type`.
    pub types: BTreeMap<String, u64>,
    /// Places that stayed empty, by write errors.
    pub refused: u64,
    /// Bytes after the last whole record: a write under way, or one that a crash cut off. They were never answered.
    pub torn: u64,
    /// Whether the ledger's own head file was there to compare with.
    pub head_file: bool,
    /// Segments that begin with a snapshot, and how many of the snapshots were found to follow from the records before.
    pub snapshots: u64,
    pub snapshots_followed: u64,
}

/// Reads the whole ledger. `expected` is a head that was kept elsewhere: the record must be there, as it was.
///
/// Without it a cut tail is found as far back as the head file beside the segments goes, and a chain that was computed
/// anew is not found at all.
pub fn verify(disk: &dyn Disk, expected: Option<Head>) -> Result<Report, ReadError> {
    walk(disk, expected, None)
}

/// The same, and each snapshot must be what the records before it give. Where those were moved away, what the first
/// snapshot file that is there says is believed.
pub fn verify_folded(
    disk: &dyn Disk,
    expected: Option<Head>,
    fold: &mut dyn Fold,
) -> Result<Report, ReadError> {
    walk(disk, expected, Some(fold))
}

fn walk(
    disk: &dyn Disk,
    expected: Option<Head>,
    mut fold: Option<&mut dyn Fold>,
) -> Result<Report, ReadError> {
    let kept = read_head(disk)?;
    let heads: Vec<Head> = kept.into_iter().chain(expected).collect();
    let mut report = Report {
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
        snapshots: 0,
        snapshots_followed: 0,
    };
    // Whether the fold is what all records so far give.
    let mut known = true;
    let walked = chain::walk(disk, &heads, Begin::Here, &mut |line| {
        let (index, kind) = (line.index, line.kind);
        let record = line.record()?;
        if let Event::Snapshot(said) = &record.event {
            report.snapshots += 1;
            known &= report.records > 0 || index == 1;
            if let Some(fold) = fold.as_deref_mut() {
                if known && said.form == fold.form() {
                    let text = fold.write().map_err(|e| Fault::Event(e.to_string()))?;
                    let (expected, found) = (Digest::of(&text), said.digest);
                    if expected != found {
                        return Err(Fault::Snapshot { expected, found });
                    }
                    report.snapshots_followed += 1;
                } else if !known {
                    known = fold::read(disk, index, said, fold);
                }
            }
        } else if known
            && let Some(fold) = fold.as_deref_mut()
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
    if let End::Torn { cut, .. } = walked.end {
        report.torn = cut;
    }
    Ok(report)
}
