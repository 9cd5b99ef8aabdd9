//! The writer: the only thread that changes the files.
//!
//! All waiting records are written with one write and one sync, while the next batch collects. Under load, many records
//! share a sync. A single record waits only for its own sync. After an error, the segment is cut back to its durable
//! records and never written again, because the page cache cannot be trusted after a failed sync.
//!
//! A sync counts only if the file still has its name afterwards. A removed, renamed or replaced file is an error like
//! all others. Records are not reported as durable until the name leads to the same records again.

use std::{io, sync::Arc, thread};

use super::{
    compressor::Compressor,
    draft::absent_is_fine,
    event::Event,
    file::{DirectoryLock, Disk, DiskFile, is_full},
    file_checks,
    fold::Fold,
    head::write_head,
    health::{Health, WriterEnd},
    open::Options,
    queue::{Again, RecordBody, RecordQueue, Waiting, WriterTurn},
    record::{self, Envelope, EventText, Head},
    segment,
    snapshot::Snapshots,
};
use crate::{
    backoff::Backoff,
    clock::{BootTime, Clock, Wall},
};

pub(super) const RESERVE_FILE: &str = "reserve";
const PROBE_FILE: &str = "probe";

pub(super) struct Writer {
    pub(super) shared: Arc<RecordQueue>,
    pub(super) disk: Arc<dyn Disk>,
    /// The snapshots. They are dropped before the lock, because their thread writes into the directory.
    pub(super) snapshots: Snapshots,
    /// The thread that compresses sealed segments, if it is switched on. It is dropped before the lock, too.
    pub(super) compressor: Option<Compressor>,
    #[expect(dead_code, reason = "it is held until the thread ends")]
    pub(super) lock: DirectoryLock,
    pub(super) options: Options,
    pub(super) epoch: u64,
    /// The last durable record.
    pub(super) tip: Head,
    /// The open segment, to which records are appended. `None` if the next record begins a segment.
    pub(super) segment: Option<OpenSegment>,
    /// A valid segment whose file is closed while the disk fails, so that an administrator can make the disk read-only
    /// meanwhile.
    pub(super) resting: Option<(String, u64)>,
    /// Whether the reserve has its space on the disk.
    pub(super) reserved: bool,
    /// A segment with bytes past its durable end. It must be cut before the next write.
    pub(super) unsealed: Option<(String, u64)>,
    /// The state after the durable records. `None` if no snapshots are made.
    pub(super) fold: Option<Box<dyn Fold>>,
    /// The latest time in the durable records.
    pub(super) latest: Wall,
    /// The number and bytes of durable records since the last snapshot began.
    pub(super) since_snapshot: Size,
    /// The size of the last snapshot.
    pub(super) snapshot: Size,
    pub(super) clock: Arc<dyn Clock>,
    /// The head that was written last, and the time.
    pub(super) kept: (Head, BootTime),
}

/// A number of records or entries, and their size in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    pub(super) count: u64,
    pub(super) bytes: u64,
}

/// A segment to which records are appended.
pub(super) struct OpenSegment {
    pub(super) name: String,
    pub(super) file: Box<dyn DiskFile>,
    /// The number of durable bytes.
    pub(super) bytes: u64,
}

/// The reason for which the disk cannot store all records yet.
enum Stuck {
    /// The disk stores endings, but has no space for the reserve.
    EndingsOnly(io::Error),
    /// The disk is full, no ending waits, and the reserve is available for the next ending.
    Full(io::Error),
    Failing(io::Error),
}

impl Writer {
    /// Starts the thread. If `failing`, the thread retries the disk before records are appended.
    pub(super) fn start(self, failing: bool) -> io::Result<thread::JoinHandle<()>> {
        thread::Builder::new().name("ledger".into()).spawn(move || {
            let noticed = Noticed(self.shared.clone());
            let mut writer = self;
            writer.run(failing);
            // The lock is released before the end is reported.
            drop(writer);
            drop(noticed);
        })
    }

    fn run(&mut self, failing: bool) {
        if failing && !self.recover() {
            return;
        }
        loop {
            let (batch, done) = match self.shared.next(self.options.look, self.options.gather) {
                WriterTurn::Write(batch) => {
                    let done = self.write(&batch);
                    (batch, done)
                }
                WriterTurn::Look => (Vec::new(), self.segment.as_ref().map_or(Ok(()), |s| s.file.in_place())),
                WriterTurn::Close => break,
            };
            match done {
                Ok(()) if batch.is_empty() => {}
                Ok(()) => self.shared.written(batch, self.tip),
                Err(error) => {
                    tracing::error!(%error, "the ledger cannot be written: requests that widen access are refused until it can");
                    self.shared.failed(batch, Health::Failing { why: error.to_string().into() });
                    if !self.recover() {
                        return;
                    }
                }
            }
            if self.clock.now().boot.0.saturating_sub(self.kept.1.0) >= millis(self.options.look) {
                self.keep_head();
            }
        }
        self.keep_head();
    }

    /// Writes a batch and makes it durable.
    fn write(&mut self, batch: &[Waiting]) -> io::Result<()> {
        let (lines, tip) = self.encode(batch)?;
        let Some(first) = batch.first().map(|w| w.index) else { return Ok(()) };
        if let Some((name, bytes)) = &self.resting {
            let file = self.disk.append(name)?;
            self.segment = Some(OpenSegment { name: name.clone(), file, bytes: *bytes });
            self.resting = None;
        }
        let is_free = !self.snapshots.under_way(self.tip.index);
        let is_due = is_free && self.is_snapshot_due();
        if let Some(s) = &self.segment
            && is_free
            && (is_due || s.bytes >= self.options.segment_bytes)
        {
            s.file.in_place()?;
            self.keep_head();
            self.segment = None;
        }
        let begins_segment = self.segment.is_none();
        // The state before the batch, if a segment begins with it.
        let before = match self.segment {
            Some(_) => None,
            None => {
                self.begin_segment(first)?;
                self.fold.as_deref().filter(|_| is_due).map(Fold::share)
            }
        };
        let Some(segment) = &mut self.segment else { return Ok(()) };
        self.unsealed = Some((segment.name.clone(), segment.bytes));
        segment.file.write(&lines)?;
        segment.file.sync()?;
        segment.file.in_place()?;
        self.unsealed = None;
        let bytes = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        segment.bytes = segment.bytes.saturating_add(bytes);
        self.tip = tip;
        if begins_segment && let Some(compressor) = &self.compressor {
            compressor.sealed_before(first);
        }
        if let Some(state) = before {
            // Now it is certain that a segment begins with this record.
            self.since_snapshot = Size::default();
            self.snapshot.count = u64::try_from(state.len()).unwrap_or(u64::MAX);
            self.snapshots.begin(first, self.latest, state);
        }
        self.since_snapshot.bytes = self.since_snapshot.bytes.saturating_add(bytes);
        self.fold(batch);
        Ok(())
    }

    /// Returns the lines of a batch, and the head after it.
    fn encode(&self, batch: &[Waiting]) -> io::Result<(Vec<u8>, Head)> {
        let mut lines = Vec::new();
        let mut tip = self.tip;
        for w in batch {
            let envelope = Envelope {
                index: w.index,
                prev: tip.digest,
                time: w.time,
                epoch: self.epoch,
                refused: w.index.saturating_sub(tip.index).saturating_sub(1),
            };
            let digest = match &w.body {
                RecordBody::Event(text) => record::encode(&mut lines, &envelope, text),
                RecordBody::Coalesced(coalesced) => {
                    let text = EventText::of(&Event::Coalesced((**coalesced).clone()))?;
                    record::encode(&mut lines, &envelope, &text)
                }
            };
            tip = Head { index: w.index, digest };
        }
        Ok((lines, tip))
    }

    /// Begins the segment with this first record.
    fn begin_segment(&mut self, first: u64) -> io::Result<()> {
        let name = segment::name(first);
        self.unsealed = Some((name.clone(), 0));
        let file = self.disk.create(&name)?;
        self.segment = Some(OpenSegment { name, file, bytes: 0 });
        self.disk.sync_dir()
    }

    /// Whether the next segment begins with a snapshot. Large states have fewer snapshots, because the cost of a
    /// snapshot grows with its size.
    fn is_snapshot_due(&self) -> bool {
        let Size { count, bytes } = self.since_snapshot;
        let records = self.options.segment_records.max(self.snapshot.count.saturating_mul(2));
        let size = self.options.segment_bytes.max(self.snapshot.bytes.saturating_mul(2));
        self.fold.is_some() && (count >= records || bytes >= size)
    }

    /// Applies the durable records to the fold.
    fn fold(&mut self, batch: &[Waiting]) {
        for w in batch {
            self.latest = self.latest.max(w.time);
            self.since_snapshot.count = self.since_snapshot.count.saturating_add(1);
            let (Some(fold), RecordBody::Event(text)) = (&mut self.fold, &w.body) else { continue };
            if text.kind() == record::SNAPSHOT {
                if let Ok(Event::Snapshot(said)) = record::event(text.as_str()) {
                    self.snapshot.bytes = said.bytes;
                    self.snapshots.recorded(said.before);
                }
            } else if fold.takes(text.kind())
                && let Err(what) = record::event(text.as_str())
                    .map_err(|_| "it cannot be read")
                    .and_then(|e| fold.apply(w.index, e))
            {
                tracing::error!(index = w.index, what, "a record does not fit: no more snapshots are made");
                self.fold = None;
            }
        }
    }

    /// Retries until the disk stores all records again. Endings are written first. Returns false if the ledger was
    /// closed before that.
    fn recover(&mut self) -> bool {
        let mut backoff = Backoff::new(self.options.retry_first, self.options.retry_max);
        let mut delay = backoff.next_wait();
        let mut last = false;
        loop {
            let stuck = match self.attempt() {
                Ok(()) if self.shared.healed() => {
                    tracing::warn!(index = self.tip.index, "the ledger is written again");
                    return true;
                }
                Ok(()) => continue,
                Err(stuck) => stuck,
            };
            if last {
                return false;
            }
            let (eager, health) = match &stuck {
                Stuck::EndingsOnly(e) => (true, Health::EndingsOnly { why: e.to_string().into() }),
                Stuck::Full(e) => (true, Health::Failing { why: e.to_string().into() }),
                Stuck::Failing(e) => (false, Health::Failing { why: e.to_string().into() }),
            };
            self.shared.failed(Vec::new(), health);
            self.rest();
            match self.shared.again(delay, eager) {
                Again::Time => delay = backoff.next_wait(),
                Again::Ending => {}
                Again::Close => last = true,
            }
        }
    }

    /// Closes the segment's file while the disk fails. A file that lost its name stays open, because it may be the only
    /// copy.
    fn rest(&mut self) {
        if let Some(OpenSegment { name, bytes, .. }) = self.segment.take_if(|s| s.file.in_place().is_ok())
            && self.unsealed.is_none()
        {
            self.resting = Some((name, bytes));
        }
    }

    /// Checks that the last durable record is in the file with the segment's name. A restored copy is accepted.
    fn find_tip(&mut self) -> io::Result<()> {
        let displaced = match &self.segment {
            Some(s) if s.file.in_place().is_ok() => return Ok(()),
            Some(s) => Some((s.name.clone(), s.bytes)),
            None => None,
        };
        let place = displaced.clone().or_else(|| self.resting.clone()).or_else(|| self.unsealed.clone());
        if let Some((name, bytes)) = place.filter(|(_, bytes)| *bytes > 0) {
            file_checks::check_last_record(self.disk.as_ref(), &name, bytes, self.tip.digest)?;
        }
        if let Some(found) = displaced {
            self.segment = None;
            if self.unsealed.is_none() {
                self.resting = Some(found);
            }
        }
        Ok(())
    }

    /// Makes one attempt: checks that durable records exist, cuts off the rest, writes the endings, allocates the
    /// reserve again, and probes the disk.
    fn attempt(&mut self) -> Result<(), Stuck> {
        self.find_tip().map_err(Stuck::Failing)?;
        self.seal().map_err(Stuck::Failing)?;
        while let Some(batch) = self.shared.next_endings() {
            match self.write(&batch) {
                Ok(()) => self.shared.written(batch, self.tip),
                Err(error) => {
                    self.shared.failed(batch, Health::Failing { why: error.to_string().into() });
                    if !is_full(&error) || !self.give_up_reserve() {
                        return Err(Stuck::Failing(error));
                    }
                    self.find_tip().map_err(Stuck::Failing)?;
                    self.seal().map_err(Stuck::Failing)?;
                }
            }
        }
        if !self.reserved {
            self.take_reserve()
                .map_err(|e| if is_full(&e) { Stuck::EndingsOnly(e) } else { Stuck::Failing(e) })?;
        }
        self.probe().map_err(|e| if is_full(&e) { Stuck::Full(e) } else { Stuck::Failing(e) })
    }

    /// Cuts the failed segment back to its durable end. It is not written again.
    fn seal(&mut self) -> io::Result<()> {
        if let Some((name, bytes)) = &self.unsealed {
            if *bytes > 0 {
                self.disk.truncate(name, *bytes)?;
            } else {
                absent_is_fine(self.disk.remove(name))?;
                self.disk.sync_dir()?;
            }
            tracing::warn!(file = name, bytes, "a ledger segment was cut back to its durable end and closed");
            (self.unsealed, self.segment) = (None, None);
        }
        Ok(())
    }

    fn take_reserve(&mut self) -> io::Result<()> {
        if self.options.reserve_bytes > 0
            && let Err(error) = self.disk.reserve(RESERVE_FILE, self.options.reserve_bytes)
        {
            // A partial reserve would only use space that the endings need.
            let _ = self.disk.remove(RESERVE_FILE);
            return Err(error);
        }
        self.reserved = true;
        Ok(())
    }

    /// Frees the reserve on the disk. Returns false if there is no reserve.
    fn give_up_reserve(&mut self) -> bool {
        if !self.reserved || self.options.reserve_bytes == 0 {
            return false;
        }
        let gone = absent_is_fine(self.disk.remove(RESERVE_FILE)).and_then(|()| self.disk.sync_dir());
        if let Err(error) = &gone {
            tracing::error!(%error, "the ledger's reserve cannot be given up");
        } else {
            tracing::warn!("the disk is full: the ledger's reserve was given up for endings");
        }
        self.reserved = gone.is_err();
        gone.is_ok()
    }

    /// Checks with a separate file that a write and a sync work.
    fn probe(&self) -> io::Result<()> {
        absent_is_fine(self.disk.remove(PROBE_FILE))?;
        let mut file = self.disk.create(PROBE_FILE)?;
        file.write(&[b'\n'; 4_096])?;
        file.sync()?;
        drop(file);
        self.disk.remove(PROBE_FILE)
    }

    /// Writes the head file. It only confirms the ledger, so an error is only logged.
    fn keep_head(&mut self) {
        let is_new = self.tip != self.kept.0;
        self.kept = (self.tip, self.clock.now().boot);
        if is_new && let Err(error) = write_head(self.disk.as_ref(), self.tip) {
            tracing::warn!(%error, "the ledger's head file cannot be written");
        }
    }
}

fn millis(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Reports the end of the thread, even after a panic.
struct Noticed(Arc<RecordQueue>);

impl Drop for Noticed {
    fn drop(&mut self) {
        self.0.stop(if thread::panicking() { WriterEnd::Died } else { WriterEnd::Closed });
    }
}
