//! Compresses sealed segments, one after the other, on a separate thread of low priority.
//!
//! The compressed file is written under a name that no reader knows, synced, read back and compared with the plain
//! file. Only then does it get its name, and the plain file is removed after that name is durable. So a crash leaves
//! the plain file, or the compressed file, or both with the same records.
//!
//! A segment is sealed as soon as the next segment has a durable record. The writer never opens it again.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{
    draft::{Draft, absent_is_fine},
    fault::ReadError,
    file::{Disk, LockError},
    segment::{self, LedgerSegment, SEGMENT_DRAFT},
    segment_reader::{READ, check_both, is_compressed_copy},
};
use crate::limits;

/// The level of zstd.
const LEVEL: i32 = 3;
/// How much lower than usual the priority of the thread is.
const NICE: i32 = 10;

/// The thread that compresses.
pub(super) struct Compressor {
    shared: Arc<CompressorState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct CompressorState {
    /// Segments that begin before this record are sealed.
    sealed_before: Mutex<u64>,
    wake: Condvar,
    stop: AtomicBool,
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compressed {
    /// Only the compressed file is left. It has this many bytes fewer than the plain file.
    Done { saved: u64 },
    /// The files do not have the same records, so both stay as they are.
    Differs,
    /// Another process moves segments.
    Busy,
}

impl Compressor {
    /// Starts the thread. Segments that begin before this record are sealed.
    pub(super) fn start(disk: Arc<dyn Disk>, sealed_before: u64) -> Self {
        let shared =
            Arc::new(CompressorState { sealed_before: Mutex::new(sealed_before), ..Default::default() });
        let work = {
            let shared = shared.clone();
            move || shared.run(disk.as_ref())
        };
        let thread = thread::Builder::new().name("ledger-compress".into()).spawn(work);
        if let Err(error) = &thread {
            tracing::warn!(%error, "no thread can be started to compress ledger segments");
        }
        Compressor { shared, thread: thread.ok() }
    }

    /// Handles the first durable record of a segment: all segments before it are sealed.
    pub(super) fn sealed_before(&self, first: u64) {
        *self.shared.sealed_before.lock().unwrap_or_else(PoisonError::into_inner) = first;
        self.shared.wake.notify_all();
    }
}

impl Drop for Compressor {
    /// Stops the thread, because the directory may belong to another process after the end of the writer.
    fn drop(&mut self) {
        {
            let _held = self.shared.sealed_before.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.stop.store(true, Ordering::Release);
        }
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl CompressorState {
    fn run(&self, disk: &dyn Disk) {
        // If the priority cannot be lowered, the thread works all the same.
        let _ = rustix::process::nice(NICE);
        let mut left_plain = BTreeSet::new();
        let mut done_before = 0;
        while let Some(sealed_before) = self.next(done_before) {
            match self.compress_before(disk, sealed_before, &mut left_plain) {
                Ok(true) => done_before = sealed_before,
                Ok(false) => done_before = 0,
                Err(_) if self.stop.load(Ordering::Acquire) => return,
                Err(error) => {
                    tracing::warn!(%error, "ledger segments cannot be compressed now: they stay as they are until the next try");
                    done_before = 0;
                }
            }
            if left_plain.len() >= limits::LEDGER_SEGMENTS_LEFT_PLAIN_MAX {
                tracing::error!(
                    "several ledger segments could not be compressed, so no more segments are compressed until the daemon is restarted"
                );
                return;
            }
            if done_before == 0 && !self.pause() {
                return;
            }
        }
    }

    /// Waits until more segments are sealed. `None` if the thread must end.
    fn next(&self, done_before: u64) -> Option<u64> {
        let sealed = self.sealed_before.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |sealed: &mut u64| *sealed <= done_before && !self.stop.load(Ordering::Acquire);
        let sealed = self.wake.wait_while(sealed, is_idle).unwrap_or_else(PoisonError::into_inner);
        (!self.stop.load(Ordering::Acquire)).then_some(*sealed)
    }

    /// Waits before the next try. Returns false if the thread must end.
    fn pause(&self) -> bool {
        let sealed = self.sealed_before.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |_: &mut u64| !self.stop.load(Ordering::Acquire);
        drop(self.wake.wait_timeout_while(sealed, limits::LEDGER_COMPRESS_RETRY, goes_on));
        !self.stop.load(Ordering::Acquire)
    }

    /// Compresses the plain segments before a record. Returns false if another process keeps it from that. Leaves out segments that
    /// differ from their copy or cannot be read, and adds them to `left_plain`.
    fn compress_before(
        &self,
        disk: &dyn Disk,
        sealed_before: u64,
        left_plain: &mut BTreeSet<u64>,
    ) -> io::Result<bool> {
        for found in segment::list(disk)? {
            if found.first >= sealed_before || !found.is_plain || left_plain.contains(&found.first) {
                continue;
            }
            if self.stop.load(Ordering::Acquire) {
                return Ok(true);
            }
            let compressed = match compress(disk, &found, &self.stop) {
                Err(error) if is_unreadable(&error) => {
                    let file = found.file();
                    tracing::error!(%error, file, "a ledger segment cannot be read, so it is not compressed: run `audit verify`");
                    left_plain.insert(found.first);
                    continue;
                }
                // Another fault may concern the other segments too, and may pass.
                done => done?,
            };
            match compressed {
                Compressed::Done { saved } => {
                    metrics::counter!("leasehold_ledger_segments_compressed_total").increment(1);
                    metrics::counter!("leasehold_ledger_saved_bytes_total").increment(saved);
                    tracing::debug!(first = found.first, saved, "a ledger segment was compressed");
                }
                Compressed::Differs => {
                    tracing::error!(
                        file = found.file(),
                        "the compressed copy of a ledger segment has other records than the segment, so the segment stays: run `audit verify`"
                    );
                    left_plain.insert(found.first);
                }
                Compressed::Busy => return Ok(false),
            }
            if left_plain.len() >= limits::LEDGER_SEGMENTS_LEFT_PLAIN_MAX {
                break;
            }
        }
        Ok(true)
    }
}

/// The reader of a plain segment. It marks its faults as [`Unreadable`], so that they differ from faults of the draft.
struct SegmentSource<R>(R);

/// The fault of a file that could be opened, but not be read to its end.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be read: {0}")]
struct Unreadable(io::Error);

impl<R: Read> Read for SegmentSource<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => io::Error::other(Unreadable(error)),
        })
    }
}

fn is_unreadable(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Unreadable>)
}

/// Compresses a sealed segment whose plain file is there.
pub(super) fn compress(disk: &dyn Disk, found: &LedgerSegment, stop: &AtomicBool) -> io::Result<Compressed> {
    let _moving = match disk.lock_segments() {
        Ok(lock) => lock,
        Err(LockError::Held { .. }) => return Ok(Compressed::Busy),
        Err(LockError::Io(error)) => return Err(error),
    };
    let (plain, compressed) = (segment::name(found.first), segment::compressed_name(found.first));
    let saved = if found.is_compressed {
        // A crash came before the plain file was removed. The files are compared again.
        match check_both(disk, found, stop) {
            Ok(true) => 0,
            // One of them is gone, so the next pass sees which.
            Ok(false) => return Ok(Compressed::Busy),
            Err(ReadError::Tamper(_)) => return Ok(Compressed::Differs),
            Err(ReadError::Io { source, .. }) => return Err(source),
        }
    } else {
        let written = write_draft(disk, &plain, stop)
            .and_then(|saved| Ok(is_compressed_copy(disk, &plain, SEGMENT_DRAFT, stop)?.then_some(saved)));
        match written {
            Ok(Some(saved)) => {
                disk.rename(SEGMENT_DRAFT, &compressed)?;
                saved
            }
            failed => {
                // A draft would only use space that records need.
                absent_is_fine(disk.remove(SEGMENT_DRAFT))?;
                return failed.map(|_| Compressed::Differs);
            }
        }
    };
    disk.sync_dir()?;
    disk.remove(&plain)?;
    disk.sync_dir()?;
    Ok(Compressed::Done { saved })
}

/// Writes the compressed draft of a segment. Returns by how many bytes the draft is smaller.
fn write_draft(disk: &dyn Disk, plain: &str, stop: &AtomicBool) -> io::Result<u64> {
    let draft = Draft::create(disk, SEGMENT_DRAFT, limits::LEDGER_SEGMENT_READ_MAX, stop)?;
    let out = io::BufWriter::with_capacity(READ, draft);
    let mut encoder = zstd::stream::write::Encoder::new(out, LEVEL)?;
    encoder.include_checksum(true)?;
    let mut input = io::BufReader::with_capacity(READ, SegmentSource(disk.read(plain, 0)?));
    let before = io::copy(&mut input, &mut encoder)?;
    let draft = encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(before.saturating_sub(draft.finish()?))
}
