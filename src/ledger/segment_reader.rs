//! Reads the records of a segment, from its plain or its compressed file.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read},
    sync::atomic::{AtomicBool, Ordering},
};

use zstd::stream::read::Decoder;

use super::{
    fault::{Fault, ReadError, Tamper},
    file::Disk,
    segment::{self, LedgerSegment},
};
use crate::limits;

/// The number of bytes that a reader of a whole segment has in memory.
pub(super) const READ: usize = 256 << 10;

/// A segment that is read, line by line.
pub(super) struct SegmentReader {
    /// The file that is read.
    pub(super) file: String,
    pub(super) is_compressed: bool,
    first: u64,
    input: BufReader<Box<dyn Read + Send>>,
}

impl SegmentReader {
    /// Opens a segment at an offset in its records. If the plain file is gone, it was compressed, so the compressed
    /// file is opened.
    pub(super) fn open(disk: &dyn Disk, first: u64, offset: u64, capacity: usize) -> io::Result<Self> {
        let file = segment::name(first);
        match disk.read(&file, offset) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            opened => {
                let input = BufReader::with_capacity(capacity, opened?);
                return Ok(SegmentReader { file, is_compressed: false, first, input });
            }
        }
        let mut reader = Self::open_compressed(disk, first, capacity)?;
        let skipped = io::copy(&mut (&mut reader.input).take(offset), &mut io::sink())?;
        if skipped < offset {
            return Err(damaged("it ends too early"));
        }
        Ok(reader)
    }

    fn open_compressed(disk: &dyn Disk, first: u64, capacity: usize) -> io::Result<Self> {
        let file = segment::compressed_name(first);
        let input: Box<dyn Read + Send> = Box::new(Decompressed::new(disk.read(&file, 0)?)?);
        let input = BufReader::with_capacity(capacity, input);
        Ok(SegmentReader { file, is_compressed: true, first, input })
    }

    /// Reads a line with its newline. The line has no newline if the file ends, or if it is longer than any record.
    pub(super) fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<u64> {
        line.clear();
        let read = (&mut self.input).take(LINE_BYTES_MAX).read_until(b'\n', line)?;
        Ok(u64::try_from(read).unwrap_or(u64::MAX))
    }

    /// Returns the error of a read that failed. A file that cannot be decompressed was changed.
    pub(super) fn failed(&self, error: io::Error) -> ReadError {
        failed(&self.file, self.first, error)
    }
}

/// The bytes of the longest line that is read.
pub(super) const LINE_BYTES_MAX: u64 = limits::LEDGER_LINE_BYTES_MAX as u64;

fn failed(file: &str, first: u64, error: io::Error) -> ReadError {
    match error.kind() {
        ErrorKind::InvalidData => ReadError::Tamper(Tamper {
            file: file.to_owned(),
            line: 0,
            index: first,
            what: Fault::Compressed(error.to_string()),
        }),
        _ => ReadError::Io { file: file.to_owned(), source: error },
    }
}

/// Opens a segment from its beginning.
pub(super) fn open(disk: &dyn Disk, first: u64) -> Result<SegmentReader, ReadError> {
    SegmentReader::open(disk, first, 0, READ).map_err(|error| {
        let plain = segment::name(first);
        let is_here = disk.list().is_ok_and(|files| files.contains(&plain));
        let file = if is_here { plain } else { segment::compressed_name(first) };
        failed(&file, first, error)
    })
}

/// Refuses a segment whose two files have different records. Returns false if one of the files is not there, or is removed
/// meanwhile: then nothing was compared.
pub(super) fn check_both(
    disk: &dyn Disk,
    both: &LedgerSegment,
    stop: &AtomicBool,
) -> Result<bool, ReadError> {
    if !both.has_both() {
        return Ok(false);
    }
    let first = both.first;
    let absent = |e: &io::Error| e.kind() == ErrorKind::NotFound;
    let plain = segment::name(first);
    let input = match disk.read(&plain, 0) {
        Err(error) if absent(&error) => return Ok(false),
        opened => opened.map_err(|e| failed(&plain, first, e))?,
    };
    let mut reader = match SegmentReader::open_compressed(disk, first, READ) {
        Err(error) if absent(&error) => return Ok(false),
        opened => opened.map_err(|e| failed(&segment::compressed_name(first), first, e))?,
    };
    match has_same_bytes(&mut BufReader::with_capacity(READ, input), &mut reader.input, stop) {
        Ok(true) => Ok(true),
        Ok(false) => {
            let what = Fault::TwoFiles { other: reader.file };
            Err(ReadError::Tamper(Tamper { file: plain, line: 0, index: first, what }))
        }
        Err(error) => Err(reader.failed(error)),
    }
}

/// Whether a segment has the same records on two disks.
pub(super) fn has_same_records(one: &dyn Disk, other: &dyn Disk, first: u64) -> Result<bool, ReadError> {
    let (mut one, mut other) = (open(one, first)?, open(other, first)?);
    has_same_bytes(&mut one.input, &mut other.input, &AtomicBool::new(false)).map_err(|e| other.failed(e))
}

/// Whether a compressed draft has the bytes of a plain file.
pub(super) fn is_compressed_copy(
    disk: &dyn Disk,
    plain: &str,
    draft: &str,
    stop: &AtomicBool,
) -> io::Result<bool> {
    let mut draft = BufReader::with_capacity(READ, Decompressed::new(disk.read(draft, 0)?)?);
    let mut plain = BufReader::with_capacity(READ, disk.read(plain, 0)?);
    match has_same_bytes(&mut plain, &mut draft, stop) {
        Err(e) if e.kind() == ErrorKind::InvalidData => Ok(false),
        compared => compared,
    }
}

/// Whether two readers have the same bytes. Fails if it is stopped.
pub(super) fn has_same_bytes(
    one: &mut dyn BufRead,
    other: &mut dyn BufRead,
    stop: &AtomicBool,
) -> io::Result<bool> {
    loop {
        if stop.load(Ordering::Acquire) {
            return Err(io::Error::other("the ledger is being closed"));
        }
        let (a, b) = (one.fill_buf()?, other.fill_buf()?);
        let length = a.len().min(b.len());
        if length == 0 {
            return Ok(a.is_empty() && b.is_empty());
        }
        if a.get(..length) != b.get(..length) {
            return Ok(false);
        }
        one.consume(length);
        other.consume(length);
    }
}

/// The bytes of a compressed file. If the file is damaged, the error is of the kind `InvalidData`.
struct Decompressed {
    decoder: Decoder<'static, BufReader<Box<dyn Read + Send>>>,
    left: u64,
}

impl Decompressed {
    fn new(file: Box<dyn Read + Send>) -> io::Result<Self> {
        // A file is one frame of zstd. Bytes after the frame do not belong to the segment.
        let mut decoder = Decoder::new(file)?.single_frame();
        decoder.window_log_max(limits::LEDGER_WINDOW_LOG_MAX)?;
        Ok(Decompressed { decoder, left: limits::LEDGER_SEGMENT_READ_MAX })
    }
}

impl Read for Decompressed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match self.decoder.read(buf) {
            // An error of the disk, not of the content.
            Err(e) if e.raw_os_error().is_some() => return Err(e),
            Err(e) => return Err(damaged(&e.to_string())),
            Ok(read) => read,
        };
        if read == 0 && !buf.is_empty() && !self.decoder.get_mut().fill_buf()?.is_empty() {
            return Err(damaged("more bytes follow its end"));
        }
        let bytes = u64::try_from(read).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(bytes).ok_or_else(|| damaged("it is larger than any segment"))?;
        Ok(read)
    }
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why.to_owned())
}
