//! Snapshots: a separate thread writes the state with which a segment begins, while the writer goes on.
//!
//! When a segment begins and a snapshot is due, the writer hands over a copy of its fold: the state after all records before
//! the segment. The thread writes the state in pieces and syncs each piece, so that the sync of a record never waits for
//! the whole file. When the file is complete, its digest is appended as a record of that segment. Until then, or if the
//! thread fails, the daemon reads the previous segment too when it starts.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{
    draft::Draft,
    event::{Event, Snapshot},
    file::Disk,
    fold::{Fold, Hashed},
    queue::{Admission, RecordBody, RecordQueue},
    record::EventText,
    segment,
};
use crate::{
    clock::{Clock, Wall},
    limits,
};

/// The number of snapshot files that are kept: the last, and the previous in case the last is damaged.
pub(super) const KEPT: usize = 2;

/// The snapshot that is being written, if there is one.
pub(super) struct Snapshots {
    pub(super) shared: Arc<RecordQueue>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) bytes_max: u64,
    stop: Arc<AtomicBool>,
    /// The thread that writes. It returns the index of the snapshot's record, if the record was accepted.
    thread: Option<JoinHandle<Option<u64>>>,
    accepted: Option<u64>,
    /// The last segments whose snapshots have a durable record.
    recorded: Vec<u64>,
}

impl Snapshots {
    pub(super) fn new(
        shared: Arc<RecordQueue>,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        bytes_max: u64,
        begun_with: Option<u64>,
    ) -> Self {
        let recorded = begun_with.into_iter().collect();
        Snapshots {
            shared,
            disk,
            clock,
            bytes_max,
            stop: Arc::default(),
            thread: None,
            accepted: None,
            recorded,
        }
    }

    /// Whether a snapshot or its record is being written. If so, no other segment begins, because the record belongs in
    /// the present segment. When the durable records have passed the record's index, the record was written or refused.
    pub(super) fn under_way(&mut self, durable: u64) -> bool {
        if let Some(thread) = self.thread.take_if(|t| t.is_finished()) {
            self.accepted = thread.join().unwrap_or_default();
        }
        self.accepted.take_if(|index| *index <= durable);
        self.accepted.is_some() || self.thread.is_some()
    }

    /// Starts to write the state before the segment that begins with record `before`.
    pub(super) fn begin(&mut self, before: u64, latest: Wall, fold: Box<dyn Fold>) {
        let (shared, disk, clock) = (self.shared.clone(), self.disk.clone(), self.clock.clone());
        let (bytes_max, stop) = (self.bytes_max, self.stop.clone());
        let work = move || {
            let draft = Draft::create(disk.as_ref(), segment::SNAPSHOT_DRAFT, bytes_max, &stop);
            match draft.and_then(|draft| write(disk.as_ref(), draft, before, latest, fold.as_ref())) {
                Ok(said) => record(&shared, clock.as_ref(), said),
                Err(_) if stop.load(Ordering::Acquire) => None,
                Err(error) => {
                    tracing::warn!(%error, before, "a ledger snapshot cannot be written: the next start reads more records");
                    None
                }
            }
        };
        match thread::Builder::new().name("ledger-snapshot".into()).spawn(work) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => {
                tracing::warn!(%error, before, "no thread can be started to write a ledger snapshot");
            }
        }
    }

    /// Handles the durable record of a snapshot: removes the files of older snapshots.
    pub(super) fn recorded(&mut self, before: u64) {
        self.recorded.push(before);
        let from = self.recorded.len().saturating_sub(KEPT);
        self.recorded.drain(..from);
        if let Err(error) = self.prune() {
            tracing::warn!(%error, "an old ledger snapshot cannot be removed");
        }
    }

    fn prune(&self) -> io::Result<()> {
        for (before, file) in segment::snapshots_of(self.disk.list()?) {
            if !self.recorded.contains(&before) {
                self.disk.remove(&file)?;
            }
        }
        Ok(())
    }
}

impl Drop for Snapshots {
    /// Stops writing, because the directory may belong to another process after the end of the writer.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Appends the record of a snapshot. If the ledger refuses the record, the snapshot is not used, and the next snapshot
/// replaces it.
fn record(shared: &RecordQueue, clock: &dyn Clock, said: Snapshot) -> Option<u64> {
    let text = EventText::of(&Event::Snapshot(said)).ok()?;
    let mut state = shared.lock();
    state.admits(text.as_str().len()).ok()?;
    let index = state.accept(clock.now().wall, RecordBody::Event(text), None, Admission::Append);
    shared.wake_writer(state);
    Some(index)
}

/// Writes a snapshot into a draft, and gives the draft its name.
fn write(
    disk: &dyn Disk,
    draft: Draft<'_>,
    before: u64,
    latest: Wall,
    fold: &dyn Fold,
) -> io::Result<Snapshot> {
    let out = io::BufWriter::with_capacity(limits::LEDGER_SNAPSHOT_PIECE, draft);
    let mut out = Hashed::new(out);
    let written = fold.write(&mut out).and_then(|()| out.flush());
    let (digest, bytes) = (out.digest(), out.bytes);
    let (draft, _) = out.inner.into_parts();
    if let Err(error) = written.and_then(|()| draft.finish()) {
        // A partial file would only use space that the records need.
        let _ = disk.remove(segment::SNAPSHOT_DRAFT);
        return Err(error);
    }
    disk.rename(segment::SNAPSHOT_DRAFT, &segment::snapshot_name(before))?;
    disk.sync_dir()?;
    Ok(Snapshot { before, form: fold.format_version(), digest, bytes, latest })
}
