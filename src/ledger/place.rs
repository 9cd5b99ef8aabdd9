//! Whether records are still where the directory says.

use std::io::{self, Read};

use super::{file::Disk, head::HEAD_FILE, segment, witness::KEY_FILE};
use crate::{limits, name::Digest};

/// Fails unless a file has, right before this place, the line of this digest. Its `prev` vouches for all lines before it.
pub(super) fn ends_with(disk: &dyn Disk, name: &str, bytes: u64, digest: Digest) -> io::Result<()> {
    let longest = u64::try_from(limits::LEDGER_LINE_BYTES_MAX).unwrap_or(u64::MAX);
    let from = bytes.saturating_sub(longest);
    let mut text = Vec::new();
    disk.read(name, from)?.take(bytes.saturating_sub(from)).read_to_end(&mut text)?;
    let is_whole = u64::try_from(text.len()).is_ok_and(|read| read == bytes.saturating_sub(from));
    let line = text.strip_suffix(b"\n").and_then(|t| t.rsplit(|b| *b == b'\n').next());
    match line {
        Some(line) if is_whole && Digest::of(line) == digest => Ok(()),
        _ => {
            Err(io::Error::other(format!("{name} does not hold the last durable record: put that file back")))
        }
    }
}

/// Files that are made only beside a ledger that has records.
pub(super) fn traces(disk: &dyn Disk) -> io::Result<Vec<String>> {
    let files = disk.list()?;
    let mut found: Vec<String> =
        files.iter().filter(|f| *f == KEY_FILE || *f == HEAD_FILE).cloned().collect();
    found.extend(segment::snapshots_of(files).into_iter().map(|(_, file)| file));
    found.sort();
    Ok(found)
}
