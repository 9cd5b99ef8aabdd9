//! Opening a ledger: take it for this process, read all of it, repair what a crash left, start the writer.

use std::{io, path::Path, sync::Arc};

use super::{
    accept::Ledger,
    chain::{self, Begin, Each, End, Walked},
    fault::{Fault, ReadError, Tamper},
    file::{Dir, Disk, Held, LockError, is_full},
    fold::{self, Fold},
    head::read_head,
    options::Options,
    queue::Shared,
    record::Record,
    writer::{RESERVE_FILE, Segment, Writer},
};
use crate::clock::{Clock, Wall};

/// A ledger that was opened.
#[derive(Debug)]
pub struct Opened {
    pub ledger: Ledger,
    /// All records, in order; empty where they were handed out one by one.
    pub entries: Vec<Record>,
    /// One more than the last epoch in the ledger. It counts once its own record is durable.
    pub epoch: u64,
    /// The latest time of any record: the present is not before it.
    pub latest: Option<Wall>,
    /// What was repaired or is wrong, for people.
    pub warnings: Vec<String>,
}

/// Why a ledger cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the ledger cannot be taken: {0}")]
    Lock(#[from] LockError),
    #[error(
        "the ledger was tampered with or damaged, and is not used: {0}; restore it from a copy, or see `audit verify`"
    )]
    Tamper(#[from] Tamper),
    #[error("the ledger cannot be {what}")]
    Io { what: &'static str, source: io::Error },
}

/// Something that was read, one by one or folded, on opening.
struct Past {
    begin: Begin,
    latest: Option<Wall>,
    /// What is written on with.
    fold: Option<Box<dyn Fold>>,
    since_snapshot: u64,
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
    /// Opens the ledger in a directory, made where it is not there. Blocks until all of it is read.
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

    /// Opens the ledger on a disk and hands out its records one by one, as they are read. Where this fails, what was
    /// handed out is void.
    pub fn open_with(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
        each: &mut dyn FnMut(Record),
    ) -> Result<Opened, OpenError> {
        let lock = disk.lock()?;
        let mut latest = None;
        let walked = read(disk.as_ref(), Begin::First, &mut |line| {
            latest = latest.max(Some(line.time));
            each(line.record()?);
            Ok(())
        })?;
        let past = Past { begin: Begin::First, latest, fold: None, since_snapshot: 0 };
        Self::begin(disk, clock, options, lock, walked, past)
    }

    /// Opens the ledger in a directory and folds its records: those after the last snapshot, or all where there is none
    /// that fits. Segments begin with a snapshot from then on. Blocks until all of it is read.
    pub fn open_folded<F: Fold + Clone + Default>(
        dir: &Path,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<(Opened, F), OpenError> {
        let dir = Dir::create(dir).map_err(|source| OpenError::Io { what: "made", source })?;
        Self::open_folded_on(Arc::new(dir), clock, options)
    }

    /// The same on a disk.
    pub fn open_folded_on<F: Fold + Clone + Default>(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<(Opened, F), OpenError> {
        let lock = disk.lock()?;
        let mut folded = F::default();
        let found = fold::begin(disk.as_ref(), &mut folded)
            .map_err(|source| OpenError::Io { what: "read", source })?;
        let mut latest = found.as_ref().map(|(_, s)| s.latest);
        let begin = found.map_or(Begin::First, |(first, _)| Begin::At(first));
        let mut records = 0u64;
        let walked = read(disk.as_ref(), begin, &mut |line| {
            latest = latest.max(Some(line.time));
            records = records.saturating_add(1);
            if folded.takes(line.kind) {
                folded.apply(line.index, super::record::event(line.fields)?).map_err(Fault::Misfit)?;
            }
            Ok(())
        })?;
        let fold: Box<dyn Fold> = Box::new(folded.clone());
        let past = Past { begin, latest, fold: Some(fold), since_snapshot: records };
        Ok((Self::begin(disk, clock, options, lock, walked, past)?, folded))
    }

    fn begin(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
        lock: Held,
        walked: Walked,
        past: Past,
    ) -> Result<Opened, OpenError> {
        let Past { begin, latest, fold, since_snapshot } = past;
        if let Begin::At(first) = begin {
            tracing::debug!(first, records = since_snapshot, "the ledger was read from its last snapshot on");
        }
        let mut warnings = Vec::new();
        repair(disk.as_ref(), &walked.end, &mut warnings)
            .map_err(|source| OpenError::Io { what: "repaired", source })?;
        // What a killed process left may be in memory only: it counts from here on.
        let segment = walked
            .last
            .map(|(name, bytes)| {
                let mut file = disk.append(&name)?;
                file.sync()?;
                Ok(Segment { name, file, bytes })
            })
            .transpose()
            .and_then(|segment| disk.sync_dir().map(|()| segment))
            .map_err(|source| OpenError::Io { what: "synced", source })?;

        let reserve = match options.reserve_bytes {
            0 => Ok(()),
            bytes => disk.reserve(RESERVE_FILE, bytes),
        };
        let shut = reserve.as_ref().err().map(|error| {
            warnings.push(format!(
                "the ledger's reserve cannot be taken, nothing is appended until it is: {error}"
            ));
            if is_full(error) {
                // A part of it would only take room from the endings.
                let _ = disk.remove(RESERVE_FILE);
            }
            error.to_string().into()
        });
        let failing = shut.is_some();
        let epoch = walked.epoch.saturating_add(1);
        let shared = Arc::new(Shared::new(walked.head, shut));
        // What took long to read now is a snapshot the next time.
        shared.lock().rotate = fold.is_some() && since_snapshot >= options.segment_records;
        let deferred_max = options.deferred_max;
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
            since_snapshot,
            snapshot_held: 0,
        };
        let thread =
            writer.start(failing).map_err(|source| OpenError::Io { what: "given a thread", source })?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let ledger = Ledger::new(shared, clock, disk, epoch, deferred_max, thread);
        Ok(Opened { ledger, entries: Vec::new(), epoch, latest, warnings })
    }
}

fn read(disk: &dyn Disk, begin: Begin, each: Each<'_>) -> Result<Walked, ReadError> {
    let kept = read_head(disk)?;
    chain::walk(disk, kept.as_slice(), begin, each)
}

fn repair(disk: &dyn Disk, end: &End, warnings: &mut Vec<String>) -> io::Result<()> {
    match end {
        End::Whole => Ok(()),
        End::Torn { file, keep, cut } => {
            warnings.push(format!(
                "ledger file {file} ended in {cut} bytes of a record that was never answered: they were cut off"
            ));
            if *keep > 0 {
                return disk.truncate(file, *keep);
            }
            disk.remove(file)?;
            disk.sync_dir()
        }
        End::Empty { file } => {
            disk.remove(file)?;
            disk.sync_dir()
        }
    }
}
