//! Opens a ledger: locks and reads it, repairs the effects of a crash, and starts the writer.

use std::{
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};

use super::{
    chain::{self, Each, SegmentEnd, WalkStart, Walked},
    compressor::Compressor,
    event::Snapshot,
    fault::{Fault, ReadError, Tamper},
    file::{Dir, DirectoryLock, Disk, LockError, is_full},
    file_checks,
    fold::{self, Fold},
    handle::Ledger,
    head::read_head,
    queue::RecordQueue,
    record::{Head, Record},
    segment::{self, LedgerSegment, SEGMENT_DRAFT},
    signed_head::KEY_FILE,
    snapshot::Snapshots,
    writer::{OpenSegment, RESERVE_FILE, Size, Writer},
};
use crate::{
    clock::{Clock, Wall},
    limits,
};

/// Settings of a ledger. The defaults are in [`limits`].
#[derive(Clone, Debug)]
pub struct Options {
    /// A new segment begins after this many bytes.
    pub segment_bytes: u64,
    /// A new segment begins after this many records, if segments begin with snapshots.
    pub segment_records: u64,
    /// Whether sealed segments are compressed. Compressed segments are read in any case.
    pub compress: bool,
    /// The number of bytes that are reserved for endings on a full disk. 0 reserves none.
    pub reserve_bytes: u64,
    /// The first backoff after a write error. It is doubled up to `retry_max`.
    pub retry_first: Duration,
    pub retry_max: Duration,
    /// The number of endings that are kept one by one while the disk fails.
    pub deferred_max: usize,
    /// The interval between two checks that the files still exist. The head is written at the same interval.
    pub look: Duration,
    /// How long the writer waits for more records if many are expected. If zero, it does not wait.
    pub gather: Duration,
    /// The highest number of bytes of a snapshot.
    pub snapshot_bytes_max: u64,
    /// The head that is kept outside this directory. A ledger that ends before the record of this head is refused.
    pub kept: Option<Head>,
    /// What to do if the directory has traces of a ledger, but no ledger.
    pub lost: Lost,
}

/// What [`Ledger::open`] does if the directory has traces of a ledger, but no ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lost {
    /// Opening fails, because the locks, jobs and decisions of that ledger are not known.
    #[default]
    Refuse,
    /// Opening begins a new ledger, because an operator asked for it. Opening fails if a ledger exists.
    BeginNew,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_bytes: limits::LEDGER_SEGMENT_BYTES,
            segment_records: limits::LEDGER_SEGMENT_RECORDS,
            compress: false,
            reserve_bytes: limits::LEDGER_RESERVE_BYTES,
            retry_first: limits::LEDGER_RETRY_FIRST,
            retry_max: limits::LEDGER_RETRY_MAX,
            deferred_max: limits::LEDGER_DEFERRED_MAX,
            look: limits::LEDGER_LOOK,
            gather: limits::LEDGER_GATHER,
            snapshot_bytes_max: limits::LEDGER_SNAPSHOT_BYTES_MAX,
            kept: None,
            lost: Lost::Refuse,
        }
    }
}

/// A ledger that was opened.
#[derive(Debug)]
pub struct Opened {
    pub ledger: Ledger,
    /// All records in order. Empty if they were handed out one by one, or folded.
    pub entries: Vec<Record>,
    /// The new epoch: one more than the last epoch in the ledger. It counts when its record is durable.
    pub epoch: u64,
    /// The latest time in the records. It has passed, so the daemon raises its lease timeline to at least this time.
    pub latest: Option<Wall>,
    /// Repairs and problems, for people.
    pub warnings: Vec<String>,
    /// The last known record of a lost ledger, if this ledger replaces it.
    pub replaces: Option<Head>,
}

/// The reasons for which a ledger cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the ledger cannot be locked: {0}")]
    Lock(#[from] LockError),
    #[error(
        "the ledger was tampered with or damaged, and is not used: {0}; restore it from a copy, or see `audit verify`"
    )]
    Tamper(#[from] Tamper),
    #[error(
        "this directory had a ledger, and the ledger is missing ({} without a record): its locks, jobs and decisions are not known, so nothing is \
         served. Put the files back (ledger-*.jsonl, state-*.snapshot). Only if they are permanently lost, run `leasehold serve \
         --new-ledger` once: earlier locks and jobs are then no longer in force, and the new ledger's first record says so", found.join(", ")
    )]
    Gone { found: Vec<String> },
    #[error(
        "`--new-ledger` is only for a directory whose ledger is lost, and {file} is here: start without it, or move that ledger's \
         files away first"
    )]
    NotGone { file: String },
    #[error("the ledger cannot be {what}")]
    Io { what: &'static str, source: io::Error },
}

/// The records that were read on opening, one by one or folded.
struct Past {
    begin: WalkStart,
    latest: Option<Wall>,
    /// The fold with which the writer continues.
    fold: Option<Box<dyn Fold>>,
    snapshot: Option<Snapshot>,
    records: u64,
    replaces: Option<Head>,
}

impl From<ReadError> for OpenError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Tamper(t) => OpenError::Tamper(t),
            ReadError::Io { source, .. } => OpenError::Io { what: "read", source },
        }
    }
}

impl Ledger {
    /// Opens the ledger in a directory, and makes the directory if it is missing. Blocks until all of it is read.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>, options: Options) -> Result<Opened, OpenError> {
        let dir = Dir::create(dir).map_err(|source| OpenError::Io { what: "made", source })?;
        Self::open_on(Arc::new(dir), clock, options)
    }

    /// Opens the ledger on a disk.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<Opened, OpenError> {
        let mut entries = Vec::new();
        let mut opened = Self::open_with(disk, clock, options, &mut |record| entries.push(record))?;
        opened.entries = entries;
        Ok(opened)
    }

    /// Opens the ledger on a disk and hands out its records one by one, as they are read. If this fails, the records
    /// that were handed out are void.
    pub fn open_with(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
        each: &mut dyn FnMut(Record),
    ) -> Result<Opened, OpenError> {
        let lock = disk.lock()?;
        let replaces = clear_lost(disk.as_ref(), &options)?;
        let mut latest = None;
        let walked = read(disk.as_ref(), &options, WalkStart::First, &mut |line| {
            latest = latest.max(Some(line.time));
            each(line.record()?);
            Ok(())
        })?;
        let past = Past { begin: WalkStart::First, latest, fold: None, snapshot: None, records: 0, replaces };
        Self::start(disk, clock, options, lock, walked, past)
    }

    /// Opens the ledger in a directory and folds its records: those after the last snapshot, or all if no
    /// snapshot fits. From then on, the writer also makes snapshots. Blocks until all of it is read.
    pub fn open_folded<F: Fold + Clone + Default>(
        dir: &Path,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<(Opened, F), OpenError> {
        let dir = Dir::create(dir).map_err(|source| OpenError::Io { what: "made", source })?;
        Self::open_folded_on(Arc::new(dir), clock, options)
    }

    /// Opens the ledger on a disk and folds its records.
    pub fn open_folded_on<F: Fold + Clone + Default>(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<(Opened, F), OpenError> {
        let mut folded = F::default();
        let opened = Self::open_with_fold(disk, clock, options, &mut folded)?;
        Ok((opened, folded))
    }

    /// Opens the ledger on a disk and folds its records into this fold.
    pub(super) fn open_with_fold<F: Fold + Clone>(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
        folded: &mut F,
    ) -> Result<Opened, OpenError> {
        let lock = disk.lock()?;
        let replaces = clear_lost(disk.as_ref(), &options)?;
        let found = fold::load_last_snapshot(disk.as_ref(), folded)?;
        let mut latest = found.as_ref().map(|(_, s)| s.latest);
        let begin = found.as_ref().map_or(WalkStart::First, |(first, _)| WalkStart::At(*first));
        let mut records = 0u64;
        let walked = read(disk.as_ref(), &options, begin, &mut |line| {
            latest = latest.max(Some(line.time));
            records = records.saturating_add(1);
            if folded.takes(line.kind) {
                folded.apply(line.index, super::record::event(line.fields)?).map_err(Fault::Misfit)?;
            }
            Ok(())
        })?;
        let fold: Box<dyn Fold> = Box::new(folded.clone());
        let snapshot = found.map(|(_, said)| said);
        let past = Past { begin, latest, fold: Some(fold), snapshot, records, replaces };
        Self::start(disk, clock, options, lock, walked, past)
    }

    /// Repairs what a crash left, and starts the writer.
    fn start(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
        lock: DirectoryLock,
        walked: Walked,
        past: Past,
    ) -> Result<Opened, OpenError> {
        let Past { begin, latest, fold, snapshot, records, replaces } = past;
        let begun_with = match begin {
            WalkStart::At(first) => Some(first),
            WalkStart::First | WalkStart::Here => None,
        };
        if let Some(first) = begun_with {
            tracing::debug!(first, records, "the ledger was read from its last snapshot on");
        }
        let kept = read_head(disk.as_ref())?.unwrap_or(Head::START);
        let mut warnings = Vec::new();
        repair(disk.as_ref(), &walked.end, &mut warnings)
            .map_err(|source| OpenError::Io { what: "repaired", source })?;
        // A crash may have left a draft, which only uses space.
        let _ = disk.remove(SEGMENT_DRAFT);
        let sealed_before = walked
            .last
            .as_ref()
            .and_then(|(file, _)| segment::first(file))
            .unwrap_or(walked.head.index.saturating_add(1));
        let segment = open_last(disk.as_ref(), walked.last)
            .map_err(|source| OpenError::Io { what: "synced", source })?;
        let shut = take_reserve(disk.as_ref(), options.reserve_bytes, &mut warnings);
        let failing = shut.is_some();
        let epoch = walked.epoch.saturating_add(1);
        let shared = Arc::new(RecordQueue::new(walked.head, shut));
        let deferred_max = options.deferred_max;
        let held = snapshot.as_ref().and(fold.as_deref()).map_or(0, Fold::len);
        let snapshots = Snapshots::new(
            shared.clone(),
            disk.clone(),
            clock.clone(),
            options.snapshot_bytes_max,
            begun_with,
        );
        let compressor = options.compress.then(|| Compressor::start(disk.clone(), sealed_before));
        let writer = Writer {
            shared: shared.clone(),
            disk: disk.clone(),
            lock,
            options,
            epoch,
            tip: walked.head,
            segment,
            resting: None,
            reserved: !failing,
            unsealed: None,
            fold,
            latest: latest.unwrap_or(Wall(0)),
            // The records that were read count too. If they are many, a snapshot is due soon, so the daemon reads fewer of
            // them at its next start.
            since_snapshot: Size { count: records, bytes: walked.bytes },
            snapshot: Size {
                count: u64::try_from(held).unwrap_or(u64::MAX),
                bytes: snapshot.map_or(0, |said| said.bytes),
            },
            snapshots,
            compressor,
            kept: (kept, clock.now().boot),
            clock: clock.clone(),
        };
        let thread =
            writer.start(failing).map_err(|source| OpenError::Io { what: "given a thread", source })?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let ledger = Ledger::new(shared, clock, disk, epoch, deferred_max, thread);
        Ok(Opened { ledger, entries: Vec::new(), epoch, latest, warnings, replaces })
    }
}

fn read(disk: &dyn Disk, options: &Options, begin: WalkStart, each: Each<'_>) -> Result<Walked, OpenError> {
    let own = read_head(disk)?;
    let kept = options.kept.filter(|_| options.lost == Lost::Refuse);
    let heads: Vec<Head> = own.into_iter().chain(kept).collect();
    let walked = chain::walk(disk, &heads, begin, each);
    let is_empty = match &walked {
        Ok(walked) => walked.head == Head::START,
        // There is a head, but no record.
        Err(ReadError::Tamper(Tamper { index: 0, what: Fault::TailCut { .. }, .. })) => true,
        Err(_) => false,
    };
    let is_lost = is_empty && options.lost == Lost::Refuse;
    let mut found = if is_lost { find_traces(disk)? } else { Vec::new() };
    if is_lost && kept.is_some() {
        found.push("a copy of its head".to_owned());
    }
    if found.is_empty() { Ok(walked?) } else { Err(OpenError::Gone { found }) }
}

fn find_traces(disk: &dyn Disk) -> Result<Vec<String>, OpenError> {
    file_checks::ledger_traces(disk).map_err(|source| OpenError::Io { what: "looked for", source })
}

/// Removes the remains of a lost ledger, if an operator asked for that. Returns the last known record of that ledger.
/// Keeps the key.
fn clear_lost(disk: &dyn Disk, options: &Options) -> Result<Option<Head>, OpenError> {
    if options.lost == Lost::Refuse {
        return Ok(None);
    }
    let failed = |what| move |source| OpenError::Io { what, source };
    let segments = segment::list(disk).map_err(failed("looked for"))?;
    for file in segments.iter().flat_map(LedgerSegment::files) {
        let mut byte = [0; 1];
        let is_empty = disk.read(&file, 0).and_then(|mut f| f.read(&mut byte)).map_err(failed("read"))? == 0;
        if !is_empty {
            return Err(OpenError::NotGone { file });
        }
    }
    let own = read_head(disk).unwrap_or_default();
    let last = own.into_iter().chain(options.kept).max_by_key(|head| head.index).unwrap_or(Head::START);
    for file in find_traces(disk)?.iter().filter(|f| *f != KEY_FILE) {
        disk.remove(file).map_err(failed("cleared"))?;
    }
    disk.sync_dir().map_err(failed("cleared"))?;
    tracing::warn!(index = last.index, "a new ledger begins in place of a lost one, as an operator asked");
    Ok(Some(last))
}

fn repair(disk: &dyn Disk, end: &SegmentEnd, warnings: &mut Vec<String>) -> io::Result<()> {
    match end {
        SegmentEnd::Whole => Ok(()),
        SegmentEnd::Torn { file, keep, cut } => {
            warnings.push(format!(
                "ledger file {file} ended in {cut} bytes of a record that was never confirmed: they were cut off"
            ));
            if *keep > 0 {
                return disk.truncate(file, *keep);
            }
            disk.remove(file)?;
            disk.sync_dir()
        }
        SegmentEnd::Empty { file } => {
            disk.remove(file)?;
            disk.sync_dir()
        }
    }
}

/// Opens the last segment. Bytes of a killed process may only be in memory, so the file is synced first.
fn open_last(disk: &dyn Disk, last: Option<(String, u64)>) -> io::Result<Option<OpenSegment>> {
    let segment = last.map(|(name, bytes)| {
        let mut file = disk.append(&name)?;
        file.sync()?;
        Ok::<_, io::Error>(OpenSegment { name, file, bytes })
    });
    let segment = segment.transpose()?;
    disk.sync_dir()?;
    Ok(segment)
}

/// Allocates the reserve. If that fails, returns the reason for which appends are refused.
fn take_reserve(disk: &dyn Disk, bytes: u64, warnings: &mut Vec<String>) -> Option<Arc<str>> {
    let reserve = if bytes == 0 { Ok(()) } else { disk.reserve(RESERVE_FILE, bytes) };
    let error = reserve.err()?;
    warnings.push(format!("the ledger's reserve cannot be taken, nothing is appended until it is: {error}"));
    if is_full(&error) {
        // A partial reserve would only use space that endings need.
        let _ = disk.remove(RESERVE_FILE);
    }
    Some(error.to_string().into())
}
