//! Verifying a ledger from its files alone, as an auditor does: nothing is changed, nothing is locked.

use std::collections::BTreeMap;

use super::{
    chain::{self, End, ReadError},
    file::Disk,
    open::read_head,
    record::Head,
};
use crate::clock::Wall;

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
}

/// Reads the whole ledger. `expected` is a head that was kept elsewhere: the record must be there, as it was.
///
/// Without it a cut tail is found as far back as the head file beside the segments goes, and a chain that was computed
/// anew is not found at all.
pub fn verify(disk: &dyn Disk, expected: Option<Head>) -> Result<Report, ReadError> {
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
    };
    let walked = chain::walk(disk, &heads, &mut |record, kind| {
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
    })?;
    report.segments = walked.segments;
    report.bytes = walked.bytes;
    report.head = walked.head;
    if let End::Torn { cut, .. } = walked.end {
        report.torn = cut;
    }
    Ok(report)
}
