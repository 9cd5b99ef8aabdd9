//! The state that is computed from the ledger's records. Snapshots of this state are kept in the directory of the
//! segments. When the daemon starts, it reads the last snapshot, and only the records after that.
//!
//! The writer's thread owns one [`Fold`] and gives it every durable record, in order. `snapshot` writes copies of it.

use std::io::{self, BufRead, Read, Write};

use ring::digest::{Context, SHA256};

use super::{
    event::{Event, Snapshot},
    fault::ReadError,
    file::Disk,
    record::{self, Line},
    segment,
    segment_reader::{self, READ},
};
use crate::name::Digest;

/// State that is computed from records.
pub trait Fold: Send + 'static {
    /// Returns the version of the snapshot format. A snapshot of another version is ignored.
    fn format_version(&self) -> u32;
    /// Whether events of this `type` change the fold.
    fn takes(&self, kind: &str) -> bool;
    /// Applies the event of the record at this index. After an error, the fold must not be used.
    fn apply(&mut self, index: u64, event: Event) -> Result<(), &'static str>;
    /// Returns the approximate number of entries. It determines the cost of a snapshot.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Returns a copy that another thread can write to disk while the original changes. Both share their data, so a
    /// copy is cheap.
    fn share(&self) -> Box<dyn Fold>;
    /// Writes a snapshot. Its bytes depend only on the records that were applied, not on whether a snapshot replaced some of them.
    fn write(&self, out: &mut dyn Write) -> io::Result<()>;
    /// Replaces the state by a snapshot that `write` made. The snapshot is read in pieces. After an error, the state is
    /// unchanged.
    fn read(&mut self, text: &mut dyn BufRead) -> Result<(), String>;
}

/// Returns the digest of a fold's snapshot.
pub(super) fn digest(fold: &dyn Fold) -> io::Result<Digest> {
    let mut out = Hashed::new(io::sink());
    fold.write(&mut out)?;
    Ok(out.digest())
}

/// Counts and hashes the bytes that pass through.
pub(super) struct Hashed<T> {
    pub(super) inner: T,
    pub(super) bytes: u64,
    context: Context,
}

impl<T> Hashed<T> {
    pub(super) fn new(inner: T) -> Self {
        Hashed { inner, bytes: 0, context: Context::new(&SHA256) }
    }

    pub(super) fn digest(&self) -> Digest {
        let digest = self.context.clone().finish();
        Digest(<[u8; 32]>::try_from(digest.as_ref()).unwrap_or_default())
    }
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.context.update(bytes.get(..written).unwrap_or(bytes));
        self.bytes = self.bytes.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Searches a segment for the record that describes the snapshot taken at the segment's beginning.
pub(super) fn find_snapshot_record(disk: &dyn Disk, first: u64) -> Result<Option<Snapshot>, ReadError> {
    const MARK: &[u8] = b",\"type\":\"snapshot\",";
    let mut input = segment_reader::open(disk, first)?;
    let mut line = Vec::new();
    loop {
        input.read_line(&mut line).map_err(|e| input.failed(e))?;
        if line.pop_if(|b| *b == b'\n').is_none() {
            return Ok(None);
        }
        // The envelope has fewer than 256 bytes. Later fields may contain the mark, so they are not searched.
        let envelope = line.get(..line.len().min(256)).unwrap_or_default();
        if envelope.windows(MARK.len()).any(|w| w == MARK)
            && let Ok(Line { index, kind: record::SNAPSHOT, fields, .. }) = record::split(&line)
            && let Ok(Event::Snapshot(said)) = record::event(fields)
            && said.begins(index) == first
        {
            return Ok(Some(said));
        }
    }
}

/// Loads the snapshot of a segment's beginning into a fold. Returns false if no file matches the record.
pub(super) fn load_snapshot(disk: &dyn Disk, first: u64, said: &Snapshot, fold: &mut dyn Fold) -> bool {
    if said.form != fold.format_version() {
        return false;
    }
    let open = || disk.read(&segment::snapshot_name(first), 0).map(|file| file.take(said.bytes));
    // The file is read twice, because only a text that matches the digest is used.
    let Ok(file) = open() else { return false };
    let mut hashed = Hashed::new(io::sink());
    let is_whole = io::copy(&mut io::BufReader::with_capacity(READ, file), &mut hashed).is_ok();
    if !is_whole || hashed.digest() != said.digest {
        tracing::warn!(first, "a ledger snapshot is damaged and is not used: more records are read instead");
        return false;
    }
    let text = open().map_err(|e| e.to_string());
    match text.and_then(|file| fold.read(&mut io::BufReader::with_capacity(READ, file))) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(first, %error, "a ledger snapshot cannot be read: more records are read instead");
            false
        }
    }
}

/// Returns the first index of the last segment that has a valid snapshot, and reads that snapshot into the fold.
pub(super) fn load_last_snapshot(
    disk: &dyn Disk,
    fold: &mut dyn Fold,
) -> Result<Option<(u64, Snapshot)>, ReadError> {
    let segments = segment::list(disk)
        .map_err(|source| ReadError::Io { file: "the ledger directory".into(), source })?;
    for first in segments.into_iter().rev().map(|segment| segment.first) {
        if let Some(said) = find_snapshot_record(disk, first)?
            && load_snapshot(disk, first, &said, fold)
        {
            return Ok(Some((first, said)));
        }
    }
    Ok(None)
}
