//! Reads the end of the ledger as it grows.
//!
//! A reader reads durable records from the files, at its own pace. It has no queue and the writer does not know it, so
//! even a slow reader loses no record. Each line says how many durable records come after it.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    sync::Arc,
};

use futures_util::{Stream, stream};
use tokio::sync::watch;

use super::{
    fault::Fault,
    file::Disk,
    health::WriterEnd,
    record::{self, Record},
    segment,
    segment_reader::SegmentReader,
};
use crate::{limits, name::Digest};

/// A reader of durable records, in order.
pub struct Tail {
    disk: Arc<dyn Disk>,
    durable: watch::Receiver<u64>,
    stopped: watch::Receiver<Option<WriterEnd>>,
    /// The next index to read.
    next: u64,
    /// The segment that is read, and the offset of the next line in it.
    place: Option<TailPlace>,
    ready: VecDeque<(u64, String)>,
}

struct TailPlace {
    first: u64,
    offset: u64,
    /// A compressed segment, at this offset. It stays open, because each opening would decompress it from its beginning.
    open: Option<SegmentReader>,
}

impl TailPlace {
    fn begin(first: u64) -> Self {
        TailPlace { first, offset: 0, open: None }
    }
}

/// The number of bytes that a reader reads at once.
const READ: usize = 64 << 10;

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailLine {
    pub index: u64,
    /// The line on disk, without the newline.
    pub line: String,
    /// The lag of this reader: the number of durable indexes after this line when it was returned.
    pub behind: u64,
}

impl TailLine {
    /// Reads the record and the hash of the line. Refuses a line that does not match its hash.
    pub fn read(&self) -> Result<(Record, Digest), TailError> {
        let unreadable = |fault| TailError::Unreadable { index: self.index, fault };
        let line = record::split(self.line.as_bytes()).map_err(unreadable)?;
        let hash = line.hash;
        Ok((line.record().map_err(unreadable)?, hash))
    }
}

/// The reasons for which a reader cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error("a ledger segment cannot be read")]
    Io(#[source] io::Error),
    #[error("ledger file {file} is damaged, or has a line that is not a record: see `audit verify`")]
    Damaged { file: String },
    #[error("record {index} cannot be read: see `audit verify`")]
    Unreadable {
        index: u64,
        #[source]
        fault: Fault,
    },
    #[error("record {index} is no longer in the ledger's files: see `audit verify`")]
    Missing { index: u64 },
    #[error("the task that reads the ledger was cancelled")]
    Cancelled,
}

impl Tail {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        durable: watch::Receiver<u64>,
        stopped: watch::Receiver<Option<WriterEnd>>,
        from: u64,
    ) -> Self {
        let next = if from == 0 { durable.borrow().saturating_add(1) } else { from };
        Tail { disk, durable, stopped, next, place: None, ready: VecDeque::new() }
    }

    /// Waits for the next line. Returns `None` when the ledger is closed and all lines were read.
    pub async fn next(&mut self) -> Option<Result<TailLine, TailError>> {
        loop {
            // This is read before the files, so that records from before the end are still read.
            let over = self.stopped.borrow().is_some();
            if let Some(line) = self.next_present().await {
                return Some(line);
            }
            if over {
                return None;
            }
            let next = self.next;
            tokio::select! {
                _ = self.stopped.wait_for(Option::is_some) => {}
                _ = self.durable.wait_for(|d| *d >= next) => {}
            }
        }
    }

    /// Returns the next line that is durable now. `None` if all were read.
    pub async fn next_present(&mut self) -> Option<Result<TailLine, TailError>> {
        if self.ready.is_empty() {
            let durable = *self.durable.borrow();
            if durable < self.next {
                return None;
            }
            let (disk, place, next) = (self.disk.clone(), self.place.take(), self.next);
            let read = tokio::task::spawn_blocking(move || read(disk.as_ref(), place, next, durable)).await;
            match read.unwrap_or(Err(TailError::Cancelled)) {
                // Durable records exist, so if none is found, they were removed.
                Ok((_, lines)) if lines.is_empty() => return Some(Err(TailError::Missing { index: next })),
                Ok((place, lines)) => {
                    self.place = place;
                    self.ready = lines;
                }
                Err(error) => return Some(Err(error)),
            }
        }
        let (index, line) = self.ready.pop_front()?;
        self.next = index.saturating_add(1);
        let behind = self.durable.borrow().saturating_sub(index);
        Some(Ok(TailLine { index, line, behind }))
    }

    /// Returns the lines as a stream. It ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<TailLine, TailError>> + Send {
        stream::unfold(Some(self), |tail| async move {
            let mut tail = tail?;
            let item = tail.next().await?;
            let rest = item.is_ok().then_some(tail);
            Some((item, rest))
        })
    }
}

type Chunk = (Option<TailPlace>, VecDeque<(u64, String)>);

/// Reads a bounded number of lines from a position on. Bytes past the durable end are not read, because they may be cut
/// off.
fn read(disk: &dyn Disk, place: Option<TailPlace>, next: u64, durable: u64) -> Result<Chunk, TailError> {
    let segments = segment::list(disk).map_err(TailError::Io)?;
    let mut place = match place {
        Some(place) => place,
        None => {
            let start = segments.iter().rev().find(|s| s.first <= next).or(segments.first());
            let Some(start) = start else { return Ok((None, VecDeque::new())) };
            TailPlace::begin(start.first)
        }
    };
    let mut lines = VecDeque::new();
    let mut bytes = 0;
    loop {
        let mut input = match place.open.take() {
            Some(open) => open,
            None => open(disk, &place, next)?,
        };
        loop {
            let mut line = Vec::new();
            let read = input.read_line(&mut line).map_err(|error| match error.kind() {
                ErrorKind::InvalidData => TailError::Damaged { file: input.file.clone() },
                _ => TailError::Io(error),
            })?;
            if line.pop_if(|b| *b == b'\n').is_none() {
                break;
            }
            let damaged = || TailError::Damaged { file: input.file.clone() };
            let index = record::index_of(&line).ok_or_else(damaged)?;
            if index > durable {
                return Ok((Some(place), lines));
            }
            if index >= next {
                bytes += line.len();
                lines.push_back((index, String::from_utf8(line).map_err(|_| damaged())?));
            }
            place.offset = place.offset.saturating_add(read);
            if index == durable
                || lines.len() >= limits::LEDGER_TAIL_CHUNK
                || bytes >= limits::LEDGER_BATCH_BYTES_MAX
            {
                place.open = input.is_compressed.then_some(input);
                return Ok((Some(place), lines));
            }
        }
        // A segment past the durable end may be removed again.
        match segments.iter().find(|s| s.first > place.first && s.first <= durable) {
            Some(next) => place = TailPlace::begin(next.first),
            None => return Ok((Some(place), lines)),
        }
    }
}

/// Opens the segment of a position. Its file is gone if the segment was archived after the last read.
fn open(disk: &dyn Disk, place: &TailPlace, next: u64) -> Result<SegmentReader, TailError> {
    SegmentReader::open(disk, place.first, place.offset, READ).map_err(|error| match error.kind() {
        ErrorKind::NotFound => TailError::Missing { index: next },
        ErrorKind::InvalidData => TailError::Damaged { file: segment::compressed_name(place.first) },
        _ => TailError::Io(error),
    })
}
