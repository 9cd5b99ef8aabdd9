//! The inconsistencies of a ledger, with file, line and record.

use std::{fmt, io};

use crate::name::Digest;

/// An inconsistency of a ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("this is not a record: {0}")]
    Malformed(&'static str),
    #[error("its event cannot be read: {0}")]
    Event(String),
    #[error("it is of version {0}, which this build does not read: use the build that wrote it")]
    Version(u64),
    #[error("it does not match its own hash: it was changed after it was written")]
    Hash,
    #[error("it has index {found}, but {expected} comes next: records were removed, inserted or moved")]
    Index { expected: u64, found: u64 },
    #[error(
        "it does not follow the record before it: its `prev` is {found}, that record's digest is {expected}"
    )]
    Prev { expected: Digest, found: Digest },
    #[error("it is of epoch {found}, after one of epoch {before}")]
    Epoch { before: u64, found: u64 },
    #[error(
        "the file begins with record {found}, but {expected} comes next: the records from {expected} on are missing, and no snapshot \
         here replaces them"
    )]
    SegmentMissing { expected: u64, found: u64 },
    #[error("the file's name says that it begins with record {named}, but it begins with {found}")]
    SegmentName { named: u64, found: u64 },
    #[error("the file is empty, although its segment is sealed")]
    SegmentEmpty,
    #[error("the line is cut off, although the segment is sealed")]
    CutInside,
    #[error("the file is no whole zstd file of a segment: {0}")]
    Compressed(String),
    #[error(
        "the segment is also in {other}, which has other records: keep both, and compare them with a copy of the ledger"
    )]
    TwoFiles { other: String },
    #[error(
        "the archive has other records of this segment: keep both, and compare them with a copy of the ledger"
    )]
    ArchiveDiffers,
    #[error("the record is whole, but its newline was changed")]
    Newline,
    #[error("the ledger ends here, but it once had record {expected}: its tail was cut off")]
    TailCut { expected: u64 },
    #[error("its digest is {found}, but the known head says {expected}: the ledger was rewritten")]
    HeadDigest { expected: Digest, found: Digest },
    #[error("the head file was changed: {0}")]
    HeadFile(&'static str),
    #[error("it does not fit the records before it: {0}")]
    Misfit(&'static str),
    #[error("the records before it give a state of digest {expected}, but it says {found}")]
    Snapshot { expected: Digest, found: Digest },
    #[error("it is of the state before record {0}, and no segment begins there")]
    SnapshotPlace(u64),
    #[error(
        "the known head is of record {kept}, but the records before {first} are not here: verify them with the copy that has them"
    )]
    HeadGone { kept: u64, first: u64 },
}

/// A line of the ledger that is not consistent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}", place = TamperPlace { file, line: *line, index: *index })]
pub struct Tamper {
    pub file: String,
    /// The line, counted from 1. 0 means the file as a whole.
    pub line: u64,
    /// The index that the record has or should have.
    pub index: u64,
    pub what: Fault,
}

struct TamperPlace<'a> {
    file: &'a str,
    line: u64,
    index: u64,
}

impl fmt::Display for TamperPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ledger file {}", self.file)?;
        if self.line > 0 {
            write!(f, ", line {}", self.line)?;
        }
        write!(f, " (record {})", self.index)
    }
}

/// The reasons for which a ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Tamper(#[from] Tamper),
    #[error("{file} cannot be read")]
    Io { file: String, source: io::Error },
}
