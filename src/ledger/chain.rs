//! The chain: reads all segments in order, and compares each record with the previous record.
//!
//! Opening and verifying a ledger use this walk. It changes no file and keeps only one line in memory.

use super::{
    fault::{Fault, ReadError, Tamper},
    file::Disk,
    record::{self, Head, Line},
    segment::{self, LedgerSegment},
    segment_reader::{self, LINE_BYTES_MAX},
};
use crate::name::Digest;

/// The result of a walk through the chain.
#[derive(Debug)]
pub(super) struct Walked {
    pub(super) head: Head,
    pub(super) epoch: u64,
    pub(super) segments: u64,
    pub(super) bytes: u64,
    /// The last segment that has a record, and its length up to the end of the last complete record. `None` if that
    /// segment is compressed, because a compressed segment is never written again.
    pub(super) last: Option<(String, u64)>,
    pub(super) end: SegmentEnd,
}

/// The end of the last segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SegmentEnd {
    Whole,
    /// A line without a newline: a write that was not completed and never confirmed.
    Torn {
        file: String,
        keep: u64,
        cut: u64,
    },
    /// A segment that was created but has no record.
    Empty {
        file: String,
    },
}

/// The position at which reading begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WalkStart {
    /// The first record of the chain.
    First,
    /// The first segment that is still in the directory. Older segments were moved away, and a snapshot has their
    /// state.
    Here,
    /// The segment that begins with this record. A snapshot has the state before it.
    At(u64),
}

/// The function that is called with each record. An error ends the reading.
pub(super) type Each<'a> = &'a mut dyn FnMut(Line<'_>) -> Result<(), Fault>;

/// Reads everything from a position on. Calls `each` with every line that fits the chain.
pub(super) fn walk(
    disk: &dyn Disk,
    heads: &[Head],
    begin: WalkStart,
    each: Each<'_>,
) -> Result<Walked, ReadError> {
    let mut segments = segment::list(disk)
        .map_err(|source| ReadError::Io { file: "the ledger directory".into(), source })?;
    if let WalkStart::At(first) = begin {
        segments.retain(|segment| segment.first >= first);
    }
    let mut walk = Walk {
        heads,
        begin,
        file: String::new(),
        line: 0,
        walked: Walked {
            head: Head::START,
            epoch: 0,
            segments: u64::try_from(segments.len()).unwrap_or(u64::MAX),
            bytes: 0,
            last: None,
            end: SegmentEnd::Whole,
        },
    };
    let mut left = segments.len();
    for segment in segments {
        left = left.saturating_sub(1);
        walk.file = segment.file();
        walk.line = 0;
        walk.segment(disk, &segment, left == 0, each)?;
    }
    walk.finish()
}

struct Walk<'a> {
    heads: &'a [Head],
    begin: WalkStart,
    file: String,
    line: u64,
    walked: Walked,
}

impl Walk<'_> {
    fn segment(
        &mut self,
        disk: &dyn Disk,
        found: &LedgerSegment,
        is_last: bool,
        each: Each<'_>,
    ) -> Result<(), ReadError> {
        let mut input = segment_reader::open(disk, found.first)?;
        self.file.clone_from(&input.file);
        // A compressed segment is sealed, even if the next segment is missing.
        let is_compressed = found.is_compressed || input.is_compressed;
        let is_sealed = is_compressed || !is_last;
        let mut line = Vec::new();
        let mut at = 0u64;
        loop {
            let read = match input.read_line(&mut line) {
                Ok(read) => read,
                Err(error) => return Err(self.unreadable(input.failed(error))),
            };
            if read == 0 {
                break;
            }
            self.line += 1;
            if line.pop_if(|b| *b == b'\n').is_none() {
                if read == LINE_BYTES_MAX {
                    return Err(self.fault(Fault::Malformed("it is longer than any record")));
                }
                return self.torn(&line, at, is_sealed);
            }
            self.record(&line, found.first, each)?;
            at = at.saturating_add(read);
            self.walked.bytes = self.walked.bytes.saturating_add(read);
        }
        if at == 0 {
            if is_sealed {
                return Err(self.fault(Fault::SegmentEmpty));
            }
            self.walked.end = SegmentEnd::Empty { file: self.file.clone() };
        } else {
            self.walked.last = (!is_compressed).then(|| (self.file.clone(), at));
        }
        Ok(())
    }

    /// Adds the line and the index to the error of a file that cannot be decompressed.
    fn unreadable(&self, error: ReadError) -> ReadError {
        match error {
            ReadError::Tamper(Tamper { what, .. }) => self.fault(what),
            io @ ReadError::Io { .. } => io,
        }
    }

    fn record(&mut self, line: &[u8], named: u64, each: Each<'_>) -> Result<(), ReadError> {
        let record = record::split(line).map_err(|what| self.fault(what))?;
        if self.begin != WalkStart::First && self.walked.head == Head::START && record.index > 1 {
            self.begin_at(&record)?;
        }
        let Head { index: before, digest } = self.walked.head;
        let expected = before.saturating_add(1).saturating_add(record.refused);
        let found = record.index;
        if self.line == 1 && found > expected {
            return Err(self.fault(Fault::SegmentMissing { expected, found }));
        }
        if found != expected {
            return Err(self.fault(Fault::Index { expected, found }));
        }
        if self.line == 1 && named != found {
            return Err(self.fault(Fault::SegmentName { named, found }));
        }
        if record.prev != digest {
            return Err(self.fault(Fault::Prev { expected: digest, found: record.prev }));
        }
        if record.epoch < self.walked.epoch {
            return Err(self.fault(Fault::Epoch { before: self.walked.epoch, found: record.epoch }));
        }
        let head = Head { index: found, digest: Digest::of(line) };
        for kept in self.heads.iter().filter(|kept| kept.index > before && kept.index <= found) {
            if kept.digest != head.digest {
                return Err(self.fault(Fault::HeadDigest { expected: kept.digest, found: head.digest }));
            }
        }
        let epoch = record.epoch;
        each(record).map_err(|what| self.fault(what))?;
        self.walked.head = head;
        self.walked.epoch = epoch;
        Ok(())
    }

    /// Begins at the first record that is read. This record contains the digest of its predecessor, which is not read.
    fn begin_at(&mut self, record: &Line<'_>) -> Result<(), ReadError> {
        let index = record.index.saturating_sub(1).saturating_sub(record.refused);
        self.walked.head = Head { index, digest: record.prev };
        self.walked.epoch = record.epoch;
        for kept in self.heads {
            if kept.index == index && kept.digest != record.prev {
                return Err(self.fault(Fault::HeadDigest { expected: kept.digest, found: record.prev }));
            }
            if kept.index < index && self.begin == WalkStart::Here {
                return Err(self.fault(Fault::HeadGone { kept: kept.index, first: record.index }));
            }
        }
        Ok(())
    }

    /// Handles a last line without a newline.
    fn torn(&mut self, line: &[u8], keep: u64, is_sealed: bool) -> Result<(), ReadError> {
        if is_sealed {
            return Err(self.fault(Fault::CutInside));
        }
        // A crash leaves a part of a record, or blocks that were never written. A crash does not leave a
        // complete record and one more byte.
        if let Some([changed, rest @ ..]) = record::after_whole_record(line)
            && (*changed != 0 || rest.is_empty())
        {
            return Err(self.fault(Fault::Newline));
        }
        let cut = u64::try_from(line.len()).unwrap_or(u64::MAX);
        self.walked.end = SegmentEnd::Torn { file: self.file.clone(), keep, cut };
        if keep > 0 {
            self.walked.last = Some((self.file.clone(), keep));
        }
        Ok(())
    }

    fn finish(self) -> Result<Walked, ReadError> {
        match self.heads.iter().map(|h| h.index).max() {
            Some(expected) if expected > self.walked.head.index => {
                Err(self.fault(Fault::TailCut { expected }))
            }
            _ => Ok(self.walked),
        }
    }

    fn fault(&self, what: Fault) -> ReadError {
        let index = match &what {
            Fault::Index { found, .. }
            | Fault::SegmentMissing { found, .. }
            | Fault::SegmentName { found, .. } => *found,
            Fault::TailCut { .. } => self.walked.head.index,
            _ => self.walked.head.index.saturating_add(1),
        };
        ReadError::Tamper(Tamper { file: self.file.clone(), line: self.line, index, what })
    }
}
