//! The names of segments: `ledger-` and the index of the first record, in 20 digits, so that names sort as records do.
//! A compressed segment has `.zst` behind its name. A snapshot's file has the index of the first record after its
//! state: `state-`, 20 digits, `.snapshot`.

use std::{collections::BTreeMap, io};

use super::file::Disk;

const PREFIX: &str = "ledger-";
const SUFFIX: &str = ".jsonl";
const COMPRESSED_SUFFIX: &str = ".jsonl.zst";
const DIGITS: usize = 20;

const SNAPSHOT_PREFIX: &str = "state-";
const SNAPSHOT_SUFFIX: &str = ".snapshot";
/// The name of a snapshot while it is written.
pub(super) const SNAPSHOT_DRAFT: &str = "snapshot.new";
/// The name of a compressed or archived segment while it is written.
pub(super) const SEGMENT_DRAFT: &str = "segment.new";

/// A segment in a directory. A crash may leave both of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LedgerSegment {
    /// The index of the first record.
    pub(super) first: u64,
    pub(super) is_plain: bool,
    pub(super) is_compressed: bool,
}

impl LedgerSegment {
    /// Whether the segment has two files.
    pub(super) fn has_both(&self) -> bool {
        self.is_plain && self.is_compressed
    }

    /// Returns the name of the file that is read: the plain file, if both are there.
    pub(super) fn file(&self) -> String {
        if self.is_plain { name(self.first) } else { compressed_name(self.first) }
    }

    /// Returns the names of its files.
    pub(super) fn files(&self) -> impl Iterator<Item = String> {
        let plain = self.is_plain.then(|| name(self.first));
        plain.into_iter().chain(self.is_compressed.then(|| compressed_name(self.first)))
    }
}

/// Returns the name of the segment that begins with this index.
pub(super) fn name(first: u64) -> String {
    format!("{PREFIX}{first:020}{SUFFIX}")
}

/// Returns the name of the compressed segment that begins with this index.
pub(super) fn compressed_name(first: u64) -> String {
    format!("{PREFIX}{first:020}{COMPRESSED_SUFFIX}")
}

/// Returns the first index of a plain segment from its name. `None` if the file is not one.
pub(super) fn first(name: &str) -> Option<u64> {
    number(name, PREFIX, SUFFIX)
}

/// Returns the first index of a compressed segment from its name. `None` if the file is not one.
fn compressed_first(name: &str) -> Option<u64> {
    number(name, PREFIX, COMPRESSED_SUFFIX)
}

fn number(name: &str, prefix: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    (digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit())).then_some(())?;
    digits.parse().ok()
}

/// Returns the name of the snapshot of the state before this record.
pub(super) fn snapshot_name(index: u64) -> String {
    format!("{SNAPSHOT_PREFIX}{index:020}{SNAPSHOT_SUFFIX}")
}

/// Returns the snapshots among the files of a directory, in order.
pub(super) fn snapshots_of(files: Vec<String>) -> Vec<(u64, String)> {
    let index = |f: &str| number(f, SNAPSHOT_PREFIX, SNAPSHOT_SUFFIX);
    let mut all: Vec<_> = files.into_iter().filter_map(|f| Some((index(&f)?, f))).collect();
    all.sort();
    all
}

/// Returns the segments of a directory, in order.
///
/// The directory is listed twice. While another process compresses a segment, one listing of a large directory may
/// contain no plain file, because it is gone, and no compressed file, because it was not there yet.
pub(super) fn list(disk: &dyn Disk) -> io::Result<Vec<LedgerSegment>> {
    let mut files = disk.list()?;
    files.extend(disk.list()?);
    Ok(of(&files))
}

fn of(files: &[String]) -> Vec<LedgerSegment> {
    let mut found: BTreeMap<u64, LedgerSegment> = BTreeMap::new();
    let mut of = |first: u64, is_compressed: bool| {
        let segment =
            found.entry(first).or_insert(LedgerSegment { first, is_plain: false, is_compressed: false });
        segment.is_plain |= !is_compressed;
        segment.is_compressed |= is_compressed;
    };
    for file in files {
        if let Some(first) = first(file) {
            of(first, false);
        } else if let Some(first) = compressed_first(file) {
            of(first, true);
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segments_name_reads_back_and_nothing_else_is_one() {
        assert_eq!(name(42), "ledger-00000000000000000042.jsonl");
        assert_eq!(compressed_name(42), "ledger-00000000000000000042.jsonl.zst");
        assert_eq!(first(&name(42)), Some(42));
        assert_eq!(first(&name(u64::MAX)), Some(u64::MAX));
        assert_eq!(compressed_first(&compressed_name(42)), Some(42));
        assert_eq!((first(&compressed_name(42)), compressed_first(&name(42))), (None, None));
        for other in [
            "ledger-42.jsonl",
            "head",
            SEGMENT_DRAFT,
            "ledger-00000000000000000042.jsonl.zst.new",
            "ledger-+0000000000000000042.jsonl",
            "ledger-99999999999999999999.jsonl",
        ] {
            assert_eq!((first(other), compressed_first(other)), (None, None), "{other}");
        }
    }

    #[test]
    fn the_two_files_of_a_segment_are_one_segment() {
        let files = [compressed_name(7), name(9), name(7), "head".into(), compressed_name(1)];
        let one = |first, is_plain, is_compressed| LedgerSegment { first, is_plain, is_compressed };
        let found = of(&files);
        assert_eq!(found, [one(1, false, true), one(7, true, true), one(9, true, false)]);
        assert_eq!(
            found.iter().map(LedgerSegment::file).collect::<Vec<_>>(),
            [compressed_name(1), name(7), name(9)]
        );
        assert_eq!(found[1].files().collect::<Vec<_>>(), [name(7), compressed_name(7)]);
    }
}
