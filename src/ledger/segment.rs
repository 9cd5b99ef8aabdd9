//! The names of segments: `ledger-` and the index of the first record, in 20 digits, so that names sort as records do.
//! A snapshot's file has the index of the record that holds its digest: `state-`, 20 digits, `.snapshot`.

const PREFIX: &str = "ledger-";
const SUFFIX: &str = ".jsonl";
const DIGITS: usize = 20;

const SNAPSHOT_PREFIX: &str = "state-";
const SNAPSHOT_SUFFIX: &str = ".snapshot";
/// The name of a snapshot while it is written.
pub(super) const SNAPSHOT_DRAFT: &str = "snapshot.new";

/// Returns the name of the segment that begins with this index.
pub(super) fn name(first: u64) -> String {
    format!("{PREFIX}{first:020}{SUFFIX}")
}

/// Returns the first index of a segment from its name. `None` if the file is not a segment.
pub(super) fn first(name: &str) -> Option<u64> {
    number(name, PREFIX, SUFFIX)
}

fn number(name: &str, prefix: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    (digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit())).then_some(())?;
    digits.parse().ok()
}

/// Returns the name of the snapshot whose record has this index.
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

/// Returns the segments among the files of a directory, in order.
pub(super) fn of(files: Vec<String>) -> Vec<(u64, String)> {
    let mut segments: Vec<_> = files.into_iter().filter_map(|f| Some((first(&f)?, f))).collect();
    segments.sort();
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segments_name_reads_back_and_nothing_else_is_one() {
        assert_eq!(name(42), "ledger-00000000000000000042.jsonl");
        assert_eq!(first(&name(42)), Some(42));
        assert_eq!(first(&name(u64::MAX)), Some(u64::MAX));
        for other in [
            "ledger-42.jsonl",
            "head",
            "ledger-+0000000000000000042.jsonl",
            "ledger-99999999999999999999.jsonl",
        ] {
            assert_eq!(first(other), None, "{other}");
        }
    }
}
