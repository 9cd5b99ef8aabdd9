//! The writer: one thread that owns the files.
//!
//! All that waits is written with one write and one sync, and the next batch gathers meanwhile: under load many records
//! share a sync, and a lone one waits for nothing but its own. After an error the segment is cut back to what is durable
//! and never written again: what a failed sync left in the page cache is not to be trusted.

use std::{io, sync::Arc, thread};

use super::{
    event::{Event, Snapshot},
    file::{Disk, DiskFile, Held, is_full},
    fold::{self, Fold},
    head::write_head,
    health::{Health, Stopped},
    options::Options,
    queue::{Again, Body, Shared, Turn, Waiting},
    record::{self, Envelope, EventText, Head},
    segment,
};
use crate::clock::Wall;

pub(super) const RESERVE_FILE: &str = "reserve";
const PROBE_FILE: &str = "probe";

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Arc<dyn Disk>,
    #[expect(dead_code, reason = "it is held until the thread ends")]
    pub(super) lock: Held,
    pub(super) options: Options,
    pub(super) epoch: u64,
    /// The last durable record.
    pub(super) tip: Head,
    /// The segment that is written; none where the next record begins one.
    pub(super) segment: Option<Segment>,
    /// A good segment whose file was closed while the disk is away: an administrator may make it read-only meanwhile.
    pub(super) resting: Option<(String, u64)>,
    /// Whether the reserve has its room on the disk.
    pub(super) reserved: bool,
    /// A segment with bytes past its durable end, to be cut before anything else is written.
    pub(super) unsealed: Option<(String, u64)>,
    /// What follows from the durable records; segments begin with it where there is one.
    pub(super) fold: Option<Box<dyn Fold>>,
    /// The latest time of any durable record.
    pub(super) latest: Wall,
    /// Durable records since the last snapshot, and how many things that one held.
    pub(super) since_snapshot: u64,
    pub(super) snapshot_held: u64,
}

/// A segment that is written.
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) file: Box<dyn DiskFile>,
    /// Bytes that are durable.
    pub(super) bytes: u64,
}

/// What keeps a disk from taking everything again.
enum Stuck {
    /// It takes endings, but has no room for the reserve.
    EndingsOnly(io::Error),
    /// It is full, no ending waits, and the reserve is there for the next one.
    Full(io::Error),
    Failing(io::Error),
}

impl Writer {
    /// Starts the thread. `failing` starts it with a disk that is looked at again before anything is appended.
    pub(super) fn start(self, failing: bool) -> io::Result<thread::JoinHandle<()>> {
        thread::Builder::new().name("ledger".into()).spawn(move || {
            let noticed = Noticed(self.shared.clone());
            let mut writer = self;
            writer.run(failing);
            // The lock is given back before anybody hears that this ended.
            drop(writer);
            drop(noticed);
        })
    }

    fn run(&mut self, failing: bool) {
        if failing && !self.recover() {
            return;
        }
        while let Turn::Write(batch) = self.shared.next() {
            match self.write(&batch) {
                Ok(()) => self.shared.written(batch, self.tip),
                Err(error) => {
                    tracing::error!(%error, "the ledger cannot be written: nothing that widens access is taken until it can");
                    self.shared.failed(batch, Health::Failing { why: error.to_string().into() });
                    if !self.recover() {
                        return;
                    }
                }
            }
        }
        self.keep_head();
    }

    /// Writes a batch and makes it durable.
    fn write(&mut self, batch: &[Waiting]) -> io::Result<()> {
        let snapshot = match batch {
            [Waiting { index, body: Body::Snapshot, .. }, ..] => self.snapshot(*index),
            _ => None,
        };
        let mut lines = Vec::new();
        let mut tip = self.tip;
        let mut first = None;
        for w in batch {
            if matches!(w.body, Body::Snapshot) && snapshot.is_none() {
                continue; // its place stays empty
            }
            first.get_or_insert(w.index);
            let envelope = Envelope {
                index: w.index,
                prev: tip.digest,
                time: w.time,
                epoch: self.epoch,
                refused: w.index.saturating_sub(tip.index).saturating_sub(1),
            };
            let digest = match &w.body {
                Body::Event(text) => record::encode(&mut lines, &envelope, text),
                Body::Coalesced(coalesced) => {
                    let text = EventText::of(&Event::Coalesced((**coalesced).clone()))?;
                    record::encode(&mut lines, &envelope, &text)
                }
                Body::Snapshot => {
                    let Some(snapshot) = snapshot.clone() else { continue };
                    record::encode(&mut lines, &envelope, &EventText::of(&Event::Snapshot(snapshot))?)
                }
            };
            tip = Head { index: w.index, digest };
        }
        let Some(first) = first else { return Ok(()) };

        if let Some((name, bytes)) = &self.resting {
            let file = self.disk.append(name)?;
            self.segment = Some(Segment { name: name.clone(), file, bytes: *bytes });
            self.resting = None;
        }
        // With a fold, a segment ends where a snapshot has its place; without one, where it is full.
        let full = |s: &Segment| self.fold.is_none() && s.bytes >= self.options.segment_bytes;
        let mut segment = match self.segment.take() {
            Some(s) if snapshot.is_none() && !full(&s) => s,
            full => {
                if full.is_some() {
                    self.keep_head();
                }
                let name = segment::name(first);
                self.unsealed = Some((name.clone(), 0));
                let file = self.disk.create(&name)?;
                self.disk.sync_dir()?;
                Segment { name, file, bytes: 0 }
            }
        };
        self.unsealed = Some((segment.name.clone(), segment.bytes));
        segment.file.write(&lines)?;
        segment.file.sync()?;
        self.unsealed = None;
        segment.bytes = segment.bytes.saturating_add(u64::try_from(lines.len()).unwrap_or(u64::MAX));
        let is_full = segment.bytes >= self.options.segment_bytes;
        self.segment = Some(segment);
        self.tip = tip;
        if snapshot.is_some() {
            self.since_snapshot = 0;
            self.snapshot_held =
                self.fold.as_deref().map_or(0, |f| u64::try_from(f.len()).unwrap_or(u64::MAX));
            if let Err(error) = fold::prune(self.disk.as_ref()) {
                tracing::warn!(%error, "an old ledger snapshot cannot be removed");
            }
        }
        self.fold(batch, is_full);
        Ok(())
    }

    /// Gives the fold what is durable now, and asks for a snapshot where it is time.
    fn fold(&mut self, batch: &[Waiting], is_full: bool) {
        for w in batch {
            self.latest = self.latest.max(w.time);
            self.since_snapshot = self.since_snapshot.saturating_add(1);
            let Some(fold) = &mut self.fold else { continue };
            if let Body::Event(text) = &w.body
                && fold.takes(text.kind())
                && let Err(what) = record::event(text.as_str())
                    .map_err(|_| "it cannot be read")
                    .and_then(|e| fold.apply(w.index, e))
            {
                tracing::error!(index = w.index, what, "a record does not fit: no more snapshots are made");
                self.fold = None;
            }
        }
        // Large states less often: a snapshot costs what it holds.
        let enough = self.options.segment_records.max(self.snapshot_held.saturating_mul(2));
        if self.fold.is_some() && (is_full || self.since_snapshot >= enough) {
            self.shared.lock().rotate = true;
        }
    }

    /// Writes the snapshot for a place. A disk that fails here is only reported: records matter more.
    fn snapshot(&mut self, index: u64) -> Option<Snapshot> {
        let fold = self.fold.as_deref()?;
        match fold::write(self.disk.as_ref(), index, fold) {
            Ok(snapshot) => Some(Snapshot { latest: self.latest, ..snapshot }),
            Err(error) => {
                tracing::warn!(%error, "a ledger snapshot cannot be written: the segment goes on");
                None
            }
        }
    }

    /// Tries until the disk takes everything again. Endings go first. False where the ledger was closed before it did.
    fn recover(&mut self) -> bool {
        let mut delay = self.options.retry_first;
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
            if let Some(Segment { name, bytes, .. }) = self.segment.take() {
                self.resting = Some((name, bytes));
            }
            match self.shared.again(delay, eager) {
                Again::Time => delay = delay.saturating_mul(2).min(self.options.retry_max),
                Again::Ending => {}
                Again::Close => last = true,
            }
        }
    }

    /// One try: cut off what is not durable, write the endings, take the reserve back, see whether a write goes through.
    fn attempt(&mut self) -> Result<(), Stuck> {
        self.seal().map_err(Stuck::Failing)?;
        while let Some(batch) = self.shared.next_endings() {
            match self.write(&batch) {
                Ok(()) => self.shared.written(batch, self.tip),
                Err(error) => {
                    self.shared.failed(batch, Health::Failing { why: error.to_string().into() });
                    if !is_full(&error) || !self.give_up_reserve() {
                        return Err(Stuck::Failing(error));
                    }
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

    /// Cuts the segment that failed back to its durable end. It is not written again.
    fn seal(&mut self) -> io::Result<()> {
        if let Some((name, bytes)) = &self.unsealed {
            if *bytes > 0 {
                self.disk.truncate(name, *bytes)?;
            } else {
                absent_is_fine(self.disk.remove(name))?;
                self.disk.sync_dir()?;
            }
            tracing::warn!(file = name, bytes, "a ledger segment was cut back to its durable end and closed");
            self.unsealed = None;
        }
        Ok(())
    }

    fn take_reserve(&mut self) -> io::Result<()> {
        if self.options.reserve_bytes > 0
            && let Err(error) = self.disk.reserve(RESERVE_FILE, self.options.reserve_bytes)
        {
            // A part of it would only take room from the endings.
            let _ = self.disk.remove(RESERVE_FILE);
            return Err(error);
        }
        self.reserved = true;
        Ok(())
    }

    /// Gives the reserve's room back to the disk; false where there is none.
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

    /// Whether a write and a sync go through, apart from the ledger's own files.
    fn probe(&self) -> io::Result<()> {
        absent_is_fine(self.disk.remove(PROBE_FILE))?;
        let mut file = self.disk.create(PROBE_FILE)?;
        file.write(&[b'\n'; 4_096])?;
        file.sync()?;
        drop(file);
        self.disk.remove(PROBE_FILE)
    }

    /// Writes the head file. It is a second witness, so that a disk that fails here is only reported.
    fn keep_head(&self) {
        if self.tip.index > 0
            && let Err(error) = write_head(self.disk.as_ref(), self.tip)
        {
            tracing::warn!(%error, "the ledger's head file cannot be written");
        }
    }
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// Says how the thread ended, also where it panicked.
struct Noticed(Arc<Shared>);

impl Drop for Noticed {
    fn drop(&mut self) {
        self.0.stop(if thread::panicking() { Stopped::Died } else { Stopped::Closed });
    }
}
