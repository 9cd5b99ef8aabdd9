//! The names of segments: `ledger-` and the index of the first record, in 20 digits, so that names sort as records do.

const PREFIX: &str = "ledger-";
const SUFFIX: &str = ".jsonl";
const DIGITS: usize = 20;

/// The name of the segment that begins with this index.
pub(super) fn name(first: u64) -> String {
    format!("{PREFIX}{first:020}{SUFFIX}")
}

/// The first index of a segment by its name; nothing where the file is no segment.
pub(super) fn first(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    (digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit())).then_some(())?;
    digits.parse().ok()
}

/// The segments among the files of a directory, in order.
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
