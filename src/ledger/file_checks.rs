//! Checks that records are still in the files that should hold them.

use std::io::{self, Read};

use super::{
    Head, ReadError, file::Disk, head::HEAD_FILE, record, segment, segment_reader, signed_head::KEY_FILE,
};
use crate::{limits, name::Digest};

/// Checks that the record with this digest ends at this offset. Its `prev` hash covers all earlier records.
pub(super) fn check_last_record(disk: &dyn Disk, name: &str, bytes: u64, digest: Digest) -> io::Result<()> {
    let longest = u64::try_from(limits::LEDGER_LINE_BYTES_MAX).unwrap_or(u64::MAX);
    let from = bytes.saturating_sub(longest);
    let mut text = Vec::new();
    let file = disk.read(name, from).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            io::Error::other(format!("{name} was removed or renamed: put that file back"))
        }
        _ => e,
    })?;
    file.take(bytes.saturating_sub(from)).read_to_end(&mut text)?;
    let is_whole = u64::try_from(text.len()).is_ok_and(|read| read == bytes.saturating_sub(from));
    let line = text.strip_suffix(b"\n").and_then(|t| t.rsplit(|b| *b == b'\n').next());
    match line {
        Some(line) if is_whole && Digest::of(line) == digest => Ok(()),
        _ => {
            Err(io::Error::other(format!("{name} does not hold the last durable record: put that file back")))
        }
    }
}

/// Whether a segment begins with the first record of the chain. Its index may be above 1: records to which the writer
/// gave lower indexes may never have reached the disk.
pub(super) fn begins_chain(disk: &dyn Disk, first: u64) -> Result<bool, ReadError> {
    let mut line = Vec::new();
    let mut input = segment_reader::open(disk, first)?;
    input.read_line(&mut line).map_err(|e| input.failed(e))?;
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    Ok(record::split(line).is_ok_and(|record| record.prev == Head::START.digest))
}

/// Returns the files that exist only if the ledger has had records.
pub(super) fn ledger_traces(disk: &dyn Disk) -> io::Result<Vec<String>> {
    let files = disk.list()?;
    let mut found: Vec<String> =
        files.iter().filter(|f| *f == KEY_FILE || *f == HEAD_FILE).cloned().collect();
    found.extend(segment::snapshots_of(files).into_iter().map(|(_, file)| file));
    found.sort();
    Ok(found)
}
