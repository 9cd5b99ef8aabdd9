//! The records that wait for the disk, in the order in which they were accepted.
//!
//! One mutex, held only briefly, orders all callers and the writer. Callers put records at the back, the writer thread takes
//! them from the front and reports here whether they are durable.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{oneshot, watch};

use super::{
    event::Coalesced,
    health::{Health, LedgerError, WriterEnd},
    record::{EventText, Head},
};
use crate::{clock::Wall, limits, name::Digest};

/// The queue that callers and the writer thread share.
pub(super) struct RecordQueue {
    state: Mutex<QueueState>,
    /// Wakes the writer, the only thread that waits on it.
    wake: Condvar,
    /// The number of calls in progress that are expected to append a record.
    expected: AtomicUsize,
    pub(super) durable: watch::Sender<u64>,
    pub(super) health: watch::Sender<Health>,
    pub(super) stopped: watch::Sender<Option<WriterEnd>>,
}

pub(super) struct QueueState {
    /// The index that the next accepted record gets.
    pub(super) next: u64,
    /// Accepted records, in order, that the writer has not taken.
    queue: VecDeque<Waiting>,
    /// The number of records in the queue and with the writer.
    pub(super) waiting: usize,
    /// The number of endings among these records.
    pub(super) deferred: usize,
    /// The bytes of these records.
    pub(super) bytes: usize,
    pub(super) head: Head,
    /// Indexes of coalesced records. They never count as durable.
    pub(super) coalesced: BTreeSet<u64>,
    /// Set while appends are refused: the reason.
    shut: Option<Arc<str>>,
    closing: bool,
    /// What the writer waits for. `None` if it does not sleep.
    sleeps: Option<Sleep>,
    pub(super) stopped: Option<WriterEnd>,
}

/// An accepted record.
pub(super) struct Waiting {
    pub(super) index: u64,
    pub(super) time: Wall,
    pub(super) body: RecordBody,
    answer: Option<oneshot::Sender<Result<u64, LedgerError>>>,
    way: Admission,
}

/// A call in progress that appends a record. The writer expects the record until this value is dropped.
pub struct ExpectedRecord(Arc<RecordQueue>);

impl ExpectedRecord {
    pub(super) fn new(queue: Arc<RecordQueue>) -> Self {
        queue.expected.fetch_add(1, Ordering::Relaxed);
        ExpectedRecord(queue)
    }
}

impl Drop for ExpectedRecord {
    fn drop(&mut self) {
        self.0.expected.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a sleeping writer waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sleep {
    UntilRecord,
    /// More records for the next sync.
    UntilBatch,
}

/// The content of an accepted record.
pub(super) enum RecordBody {
    Event(EventText),
    Coalesced(Box<Coalesced>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Append,
    Defer,
}

/// The reason for which the writer thread was woken.
pub(super) enum WriterTurn {
    Write(Vec<Waiting>),
    /// No record came for a while. The writer checks the files.
    Look,
    Close,
}

/// The reason for which the writer thread retries a failed disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    Time,
    Ending,
    Close,
}

/// If at least this many records are in the queue, the writer does not wait for more.
const BATCH_ENOUGH: usize = 16;
/// If at least this many more records are expected, the writer waits for them.
const GATHER_FROM: usize = 8;

/// The highest number of indexes of coalesced records that are remembered. Each index stands for one time in which too many
/// records waited.
const COALESCED_MAX: usize = 1_024;

impl QueueState {
    pub(super) fn admits(&self, bytes: usize) -> Result<(), LedgerError> {
        if self.closing || self.stopped.is_some() {
            return Err(LedgerError::Closed);
        }
        if let Some(why) = &self.shut {
            return Err(LedgerError::Unavailable { why: why.clone() });
        }
        if self.waiting >= limits::LEDGER_QUEUE_MAX
            || self.bytes.saturating_add(bytes) > limits::LEDGER_QUEUE_BYTES_MAX
        {
            return Err(LedgerError::QueueFull);
        }
        Ok(())
    }

    pub(super) fn accept(
        &mut self,
        time: Wall,
        body: RecordBody,
        answer: Option<oneshot::Sender<Result<u64, LedgerError>>>,
        way: Admission,
    ) -> u64 {
        let index = self.next;
        self.next = index.saturating_add(1);
        let waiting = Waiting { index, time, body, answer, way };
        self.count(&waiting, true);
        self.queue.push_back(waiting);
        index
    }

    pub(super) fn coalesce(&mut self, now: Wall, kind: &str, text: &str) -> u64 {
        if let Some(Waiting { index, body: RecordBody::Coalesced(coalesced), .. }) = self.queue.back_mut() {
            coalesced.add(now, kind, text);
            return *index;
        }
        let mut coalesced = Coalesced { records: 0, types: BTreeMap::new(), last: now, digest: Digest::ZERO };
        coalesced.add(now, kind, text);
        let index = self.accept(now, RecordBody::Coalesced(Box::new(coalesced)), None, Admission::Defer);
        if self.coalesced.len() >= COALESCED_MAX {
            self.coalesced.pop_first();
        }
        self.coalesced.insert(index);
        tracing::error!(
            index,
            kind,
            "too many records wait for the disk: from now on, records of events that have happened are counted, not kept one by one"
        );
        index
    }

    fn count(&mut self, w: &Waiting, comes: bool) {
        let bytes = w.body.bytes();
        let endings = usize::from(w.way == Admission::Defer);
        if comes {
            self.waiting += 1;
            self.deferred += endings;
            self.bytes += bytes;
        } else {
            self.waiting = self.waiting.saturating_sub(1);
            self.deferred = self.deferred.saturating_sub(endings);
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }

    /// Takes from the front the records that are written together.
    fn take(&mut self) -> Vec<Waiting> {
        let mut bytes = 0usize;
        let mut batch = Vec::new();
        while bytes < limits::LEDGER_BATCH_BYTES_MAX
            && let Some(w) = self.queue.pop_front()
        {
            bytes += w.body.bytes();
            batch.push(w);
        }
        batch
    }
}

impl RecordBody {
    fn bytes(&self) -> usize {
        match self {
            RecordBody::Event(text) => text.as_str().len(),
            RecordBody::Coalesced(_) => 0,
        }
    }
}

impl Coalesced {
    fn add(&mut self, now: Wall, kind: &str, text: &str) {
        self.records = self.records.saturating_add(1);
        let of_kind = self.types.entry(kind.to_owned()).or_default();
        *of_kind = of_kind.saturating_add(1);
        self.last = now;
        self.digest = Digest::of(&[&self.digest.0, text.as_bytes()].concat());
    }
}

impl RecordQueue {
    /// Makes a queue. `shut` is the reason if appends are refused from the start.
    pub(super) fn new(head: Head, shut: Option<Arc<str>>) -> Self {
        let health = shut.clone().map_or(Health::Good, |why| Health::Failing { why });
        RecordQueue {
            state: Mutex::new(QueueState {
                next: head.index.saturating_add(1),
                queue: VecDeque::new(),
                waiting: 0,
                deferred: 0,
                bytes: 0,
                head,
                coalesced: BTreeSet::new(),
                shut,
                closing: false,
                sleeps: None,
                stopped: None,
            }),
            wake: Condvar::new(),
            expected: AtomicUsize::new(0),
            durable: watch::Sender::new(head.index),
            health: watch::Sender::new(health),
            stopped: watch::Sender::new(None),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, QueueState> {
        // A panic under this mutex never leaves the state incomplete.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        self.wake_writer(state);
    }

    /// Waits for records, at most for `idle`. Returns the waiting records as one batch, up to the limit on its bytes. The last
    /// batch comes before `Close`.
    ///
    /// If many callers are about to append a record, the writer waits for their records, at most for `gather`, so that more records
    /// share the next sync. A record of an ending waits for no other record.
    pub(super) fn next(&self, idle: Duration, gather: Duration) -> WriterTurn {
        let mut state = self.lock();
        loop {
            if !state.queue.is_empty() {
                if self.expected(&state) >= GATHER_FROM {
                    let gathers = |state: &mut QueueState| self.gathers(state);
                    state.sleeps = Some(Sleep::UntilBatch);
                    let waited = self.wake.wait_timeout_while(state, gather, gathers);
                    (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                    state.sleeps = None;
                }
                return WriterTurn::Write(state.take());
            }
            if state.closing {
                return WriterTurn::Close;
            }
            state.sleeps = Some(Sleep::UntilRecord);
            let waited = self.wake.wait_timeout(state, idle);
            let (mut woken, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            woken.sleeps = None;
            if waited.timed_out() && woken.queue.is_empty() && !woken.closing {
                return WriterTurn::Look;
            }
            state = woken;
        }
    }

    /// The number of records that callers are about to append.
    fn expected(&self, state: &QueueState) -> usize {
        self.expected.load(Ordering::Relaxed).saturating_sub(state.waiting)
    }

    /// Whether the next sync waits for more records.
    fn gathers(&self, state: &QueueState) -> bool {
        !state.closing && state.deferred == 0 && state.queue.len() < BATCH_ENOUGH && self.expected(state) > 0
    }

    /// Wakes the writer if it waits for this change of the state. To wake it is a system call, so it is not woken without need.
    pub(super) fn wake_writer(&self, state: MutexGuard<'_, QueueState>) {
        let wakes = match state.sleeps {
            None => false,
            Some(Sleep::UntilRecord) => true,
            Some(Sleep::UntilBatch) => !self.gathers(&state),
        };
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Takes the waiting endings, if there are any.
    pub(super) fn next_endings(&self) -> Option<Vec<Waiting>> {
        let mut state = self.lock();
        (!state.queue.is_empty()).then(|| state.take())
    }

    /// Marks a batch as durable, and answers the callers that wait for it.
    pub(super) fn written(&self, batch: Vec<Waiting>, head: Head) {
        let mut state = self.lock();
        state.head = head;
        for w in &batch {
            state.count(w, false);
        }
        drop(state);
        self.durable.send_replace(head.index);
        for w in batch {
            if let Some(answer) = w.answer {
                // The caller may be gone.
                let _ = answer.send(Ok(w.index));
            }
        }
    }

    /// Handles a failed write: stops appends, refuses the accepted appends, and keeps the endings in order.
    pub(super) fn failed(&self, batch: Vec<Waiting>, health: Health) {
        let why: Arc<str> = match &health {
            Health::EndingsOnly { why } | Health::Failing { why } => why.clone(),
            Health::Good | Health::Stopped => "it is stopped".into(),
        };
        let mut state = self.lock();
        state.shut = Some(why.clone());
        self.health.send_if_modified(|h| (*h != health).then(|| *h = health.clone()).is_some());
        let mut all: VecDeque<Waiting> = batch.into();
        all.append(&mut state.queue);
        let mut refused = Vec::new();
        for w in all {
            match w.way {
                Admission::Defer => state.queue.push_back(w),
                Admission::Append => {
                    state.count(&w, false);
                    refused.extend(w.answer);
                }
            }
        }
        let last = state.queue.back().map_or(state.head.index, |w| w.index);
        state.next = last.saturating_add(1);
        drop(state);
        for answer in refused {
            let _ = answer.send(Err(LedgerError::Unavailable { why: why.clone() }));
        }
    }

    /// Allows appends again, unless endings still wait.
    pub(super) fn healed(&self) -> bool {
        let mut state = self.lock();
        if !state.queue.is_empty() {
            return false;
        }
        state.shut = None;
        self.health.send_replace(Health::Good);
        true
    }

    /// Waits until the next retry of a failed disk. If `eager`, a waiting ending is a reason for a retry.
    pub(super) fn again(&self, delay: Duration, eager: bool) -> Again {
        let mut state = self.lock();
        let idle = |s: &mut QueueState| !s.closing && (!eager || s.queue.is_empty());
        state.sleeps = Some(Sleep::UntilRecord);
        let (mut state, _) =
            self.wake.wait_timeout_while(state, delay, idle).unwrap_or_else(PoisonError::into_inner);
        state.sleeps = None;
        if state.closing {
            Again::Close
        } else if eager && !state.queue.is_empty() {
            Again::Ending
        } else {
            Again::Time
        }
    }

    /// Marks the end of the thread. Waiting callers get an error. Waiting records are lost with the process.
    pub(super) fn stop(&self, how: WriterEnd) {
        let mut state = self.lock();
        state.stopped = Some(how);
        state.closing = true;
        let left: VecDeque<_> = std::mem::take(&mut state.queue);
        let lost = state.waiting;
        drop(state);
        if lost > 0 {
            tracing::error!(records = lost, "the ledger stopped with records that were not written");
        }
        for answer in left.into_iter().filter_map(|w| w.answer) {
            let _ = answer.send(Err(LedgerError::Closed));
        }
        self.health.send_replace(Health::Stopped);
        self.stopped.send_replace(Some(how));
    }
}
