//! Moves sealed segments to another directory, the archive.
//!
//! What moves is always the beginning of the ledger, so what stays has no gaps. A segment is removed after its copy is
//! durable and was compared, oldest first. [`archive`] may run beside a daemon. The daemon's compressor must not
//! work on the same segments at the same time, so both take one lock.

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read, Write},
    sync::{Arc, atomic::AtomicBool},
};

use super::{
    chain::{self, WalkStart},
    draft::Draft,
    fault::{Fault, ReadError, Tamper},
    file::{DirectoryLock, Disk, DiskFile, LockError},
    file_checks,
    fold::{self, Fold},
    head::read_head,
    segment::{self, LedgerSegment, SEGMENT_DRAFT},
    segment_reader::{READ, check_both, has_same_bytes, has_same_records},
    snapshot::KEPT,
};
use crate::{clock::Wall, limits};

/// The segments that [`archive`] should leave, although the daemon does not need them when it starts.
#[derive(Clone, Copy, Debug, Default)]
pub struct ArchiveOptions {
    /// Leave at least this many segments.
    pub keep: usize,
    /// Leave segments with a record from this time or later.
    pub before: Option<Wall>,
    /// Only check which segments would be moved.
    pub dry_run: bool,
}

/// A segment that was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedSegment {
    /// The name of the file.
    pub file: String,
    /// The index and time of the first and of the last record.
    pub first: (u64, Wall),
    pub last: (u64, Wall),
    pub records: u64,
}

/// The result of [`archive`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveReport {
    /// The segments that were moved, oldest first.
    pub moved: Vec<ArchivedSegment>,
    /// The first record that stays.
    pub stays_from: u64,
    /// The number of segments that stay.
    pub stay: usize,
    /// The number of segments that the daemon needs when it starts.
    pub needed: usize,
}

/// The reasons for which segments are not archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the directory has no ledger")]
    NoLedger,
    #[error("the sealed segments are in use: another archive runs, or the daemon compresses a segment")]
    Busy,
    #[error("{file} cannot be {what}")]
    Io { what: &'static str, file: String, source: io::Error },
    #[error("the archive has a file {file} with other content")]
    Differs { file: String },
}

/// Moves to another directory the sealed segments that the daemon does not need when it starts. First verifies the chain:
/// from the last archived segment, over these segments, to the last record.
///
/// # Errors
///
/// Nothing more is moved after an error. What was moved is in the archive, and the next call goes on.
pub fn archive(
    from: &Arc<dyn Disk>,
    to: &Arc<dyn Disk>,
    fold: &dyn Fold,
    options: ArchiveOptions,
) -> Result<ArchiveReport, ArchiveError> {
    // A dry run changes nothing, so it makes no lock files.
    let _locks = match options.dry_run {
        true => None,
        false => Some((lock(from.as_ref())?, lock(to.as_ref())?)),
    };
    let segments = list(from.as_ref())?;
    let first = segments.first().ok_or(ArchiveError::NoLedger)?.first;
    let needed_from = first_needed(from.as_ref(), &segments, fold)?.unwrap_or(first);
    let (measured, archived) = verify_chain(from, to, first)?;
    let is_needed = |segment: &&LedgerSegment| segment.first >= needed_from;
    let needed = segments.iter().filter(is_needed).count();
    let movable = segments.len().saturating_sub(needed.max(options.keep));
    let mut report = ArchiveReport { moved: Vec::new(), stays_from: first, stay: segments.len(), needed };
    for (position, segment) in segments.iter().take(movable).enumerate() {
        let Some(records) = measured.get(&segment.first) else { break };
        if options.before.is_some_and(|before| records.last.1 >= before) {
            break;
        }
        if archived.contains(&segment.first) && !has_same_records(from.as_ref(), to.as_ref(), segment.first)?
        {
            return Err(ArchiveError::Differs { file: segment.file() });
        }
        if !options.dry_run {
            move_segment(from.as_ref(), to.as_ref(), segment)?;
        }
        report.moved.push(ArchivedSegment { file: smaller_file(segment), ..records.clone() });
        report.stays_from = segments.get(position.saturating_add(1)).map_or(first, |next| next.first);
        report.stay = report.stay.saturating_sub(1);
    }
    Ok(report)
}

fn lock(disk: &dyn Disk) -> Result<DirectoryLock, ArchiveError> {
    disk.lock_segments().map_err(|error| match error {
        LockError::Held { .. } => ArchiveError::Busy,
        LockError::Io(source) => {
            ArchiveError::Io { what: "locked", file: "the directory of segments".into(), source }
        }
    })
}

fn list(disk: &dyn Disk) -> Result<Vec<LedgerSegment>, ReadError> {
    segment::list(disk).map_err(|source| ReadError::Io { file: "the ledger directory".into(), source })
}

/// Returns the segments of an archive. A dry run does not make its directory.
fn list_archive(disk: &dyn Disk) -> Result<Vec<LedgerSegment>, ReadError> {
    match segment::list(disk) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|source| ReadError::Io { file: "the archive".into(), source }),
    }
}

/// Returns the first record of the segments that the daemon needs when it starts: those from the last snapshot but one. It
/// reads that snapshot if the last one is damaged. `None` if there are fewer snapshots.
fn first_needed(
    disk: &dyn Disk,
    segments: &[LedgerSegment],
    fold: &dyn Fold,
) -> Result<Option<u64>, ReadError> {
    let mut found = 0;
    for first in segments.iter().rev().map(|segment| segment.first) {
        if let Some(said) = fold::find_snapshot_record(disk, first)?
            && fold::load_snapshot(disk, first, &said, fold.share().as_mut())
        {
            found += 1;
            if found == KEPT {
                return Ok(Some(first));
            }
        }
    }
    Ok(None)
}

type MeasuredSegments = BTreeMap<u64, ArchivedSegment>;

/// Verifies the chain from the last archived segment to the last record, and measures its segments. Returns the
/// archived segments, too.
fn verify_chain(
    from: &Arc<dyn Disk>,
    to: &Arc<dyn Disk>,
    first: u64,
) -> Result<(MeasuredSegments, Vec<u64>), ReadError> {
    let archived: Vec<u64> = list_archive(to.as_ref())?.iter().map(|segment| segment.first).collect();
    let joined = Joined { ledger: from.clone(), archive: to.clone() };
    for both in &list(from.as_ref())? {
        check_both(from.as_ref(), both, &AtomicBool::new(false))?;
    }
    let begin = match archived.iter().rev().find(|archived| **archived < first) {
        Some(last) => WalkStart::At(*last),
        None if file_checks::begins_chain(&joined, first)? => WalkStart::First,
        None => WalkStart::At(first),
    };
    let head: Vec<_> = read_head(from.as_ref())?.into_iter().collect();
    let mut measured = MeasuredSegments::new();
    let firsts: Vec<u64> = list(&joined)?.iter().map(|segment| segment.first).collect();
    let mut now = 0;
    chain::walk(&joined, &head, begin, &mut |line| {
        let place = (line.index, line.time);
        if firsts.binary_search(&line.index).is_ok() {
            now = line.index;
        }
        measured
            .entry(now)
            .and_modify(|segment| {
                segment.records = segment.records.saturating_add(1);
                segment.last = (place.0, place.1.max(segment.last.1));
            })
            .or_insert(ArchivedSegment { file: String::new(), first: place, last: place, records: 1 });
        Ok(())
    })?;
    Ok((measured, archived))
}

/// Moves one segment, and the snapshot with which it begins, if there is one.
fn move_segment(from: &dyn Disk, to: &dyn Disk, segment: &LedgerSegment) -> Result<(), ArchiveError> {
    let archived = list_archive(to)?.into_iter().find(|archived| archived.first == segment.first);
    if archived.is_none() {
        copy(from, to, &smaller_file(segment))?;
        if !has_same_records(from, to, segment.first)? {
            return Err(ArchiveError::Differs { file: segment.file() });
        }
    }
    let snapshot = segment::snapshot_name(segment.first);
    let has = |disk: &dyn Disk, what| {
        let listed = disk.list().map(|files| files.contains(&snapshot));
        listed.map_err(|source| ArchiveError::Io { what, file: snapshot.clone(), source })
    };
    let has_snapshot = has(from, "looked for")?;
    if has_snapshot {
        if !has(to, "looked for in the archive")? {
            copy(from, to, &snapshot)?;
        }
        if !is_same_file(from, to, &snapshot)? {
            return Err(ArchiveError::Differs { file: snapshot });
        }
    }
    // An earlier call may have been cut off before its copy was durable.
    make_durable(to, segment.first, has_snapshot)?;
    // The segment goes last, so that a snapshot never stays without its segment.
    for file in has_snapshot.then_some(snapshot).into_iter().chain(segment.files()) {
        let removed = from.remove(&file).and_then(|()| from.sync_dir());
        removed.map_err(|source| ArchiveError::Io { what: "removed", file, source })?;
    }
    Ok(())
}

/// Syncs the archived files of a segment. Refuses links, because a link to the ledger's own file would be no copy.
fn make_durable(to: &dyn Disk, first: u64, has_snapshot: bool) -> Result<(), ArchiveError> {
    let archived = list_archive(to)?.into_iter().find(|archived| archived.first == first);
    let snapshot = has_snapshot.then(|| segment::snapshot_name(first));
    for file in archived.iter().flat_map(LedgerSegment::files).chain(snapshot) {
        let synced = to.is_link(&file).and_then(|is_link| match is_link {
            true => Err(io::Error::other("it is a link; put a copy in its place")),
            false => to.append(&file)?.sync(),
        });
        synced.map_err(|source| ArchiveError::Io { what: "synced in the archive", file, source })?;
    }
    let file = "the archive".to_owned();
    to.sync_dir().map_err(|source| ArchiveError::Io { what: "synced", file, source })
}

fn smaller_file(segment: &LedgerSegment) -> String {
    if segment.is_compressed { segment::compressed_name(segment.first) } else { segment::name(segment.first) }
}

/// Copies a file durably.
fn copy(from: &dyn Disk, to: &dyn Disk, file: &str) -> Result<(), ArchiveError> {
    let never = AtomicBool::new(false);
    let copied = || {
        let mut draft = Draft::create(to, SEGMENT_DRAFT, limits::LEDGER_SEGMENT_READ_MAX, &never)?;
        let mut input = BufReader::with_capacity(READ, from.read(file, 0)?);
        io::copy(&mut input, &mut draft)?;
        draft.flush()?;
        draft.finish()?;
        to.rename(SEGMENT_DRAFT, file)?;
        to.sync_dir()
    };
    copied().map_err(|source| ArchiveError::Io { what: "copied", file: file.to_owned(), source })
}

fn is_same_file(from: &dyn Disk, to: &dyn Disk, file: &str) -> Result<bool, ArchiveError> {
    let compared = || {
        let mut one = BufReader::with_capacity(READ, from.read(file, 0)?);
        let mut other = BufReader::with_capacity(READ, to.read(file, 0)?);
        has_same_bytes(&mut one, &mut other, &AtomicBool::new(false))
    };
    compared().map_err(|source| ArchiveError::Io { what: "compared", file: file.to_owned(), source })
}

/// A ledger and its archive, to read the segments of both. All other files are those of the ledger.
pub(super) struct Joined {
    pub(super) ledger: Arc<dyn Disk>,
    pub(super) archive: Arc<dyn Disk>,
}

impl Joined {
    /// Refuses a segment that has other records in the ledger than in the archive. Returns the number of segments that
    /// are only in the archive.
    pub(super) fn check_shared(&self) -> Result<u64, ReadError> {
        let archived = list_archive(self.archive.as_ref())?;
        let here: Vec<u64> = list(self.ledger.as_ref())?.iter().map(|segment| segment.first).collect();
        let mut only_there = 0u64;
        for segment in &archived {
            if here.binary_search(&segment.first).is_err() {
                only_there = only_there.saturating_add(1);
            } else if !has_same_records(self.ledger.as_ref(), self.archive.as_ref(), segment.first)? {
                let (file, what) = (segment.file(), Fault::ArchiveDiffers);
                return Err(ReadError::Tamper(Tamper { file, line: 0, index: segment.first, what }));
            }
        }
        Ok(only_there)
    }
}

impl Disk for Joined {
    fn lock(&self) -> Result<DirectoryLock, LockError> {
        Err(LockError::Io(read_only()))
    }

    fn lock_segments(&self) -> Result<DirectoryLock, LockError> {
        Err(LockError::Io(read_only()))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut files = self.ledger.list()?;
        match self.archive.list() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            listed => files.extend(listed?.into_iter().filter(|file| is_segment(file))),
        }
        Ok(files)
    }

    fn read(&self, file: &str, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        match self.ledger.read(file, offset) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && is_segment(file) => {
                self.archive.read(file, offset)
            }
            opened => opened,
        }
    }

    fn create(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
        Err(read_only())
    }

    fn append(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
        Err(read_only())
    }

    fn truncate(&self, _: &str, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn reserve(&self, _: &str, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Err(read_only())
    }
}

/// Whether a file is a segment, plain or compressed.
fn is_segment(file: &str) -> bool {
    segment::first(file.strip_suffix(".zst").unwrap_or(file)).is_some()
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "a ledger that is joined with its archive can only be read")
}
