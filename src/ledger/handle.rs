//! The handle of the ledger. `append` and `defer` never wait for the disk, so callers may hold a lock.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{oneshot, watch};

use super::{
    event::Event,
    file::Disk,
    health::{CloseError, Health, LedgerError, WriterEnd},
    queue::{Admission, ExpectedRecord, RecordBody, RecordQueue},
    record::{EventText, Head},
    signed_head::{HeadKey, HeadPublic, SignedHead},
    tail::Tail,
};
use crate::{clock::Clock, limits};

/// The open ledger. Clones share it. When the last clone is dropped, the writer thread writes the waiting records and ends.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<LedgerParts>,
}

struct LedgerParts {
    shared: Arc<RecordQueue>,
    clock: Arc<dyn Clock>,
    disk: Arc<dyn Disk>,
    epoch: u64,
    deferred_max: usize,
    signing: OnceLock<Signing>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The key that signs heads, and the last head that it signed.
struct Signing {
    key: HeadKey,
    last: Mutex<Option<SignedHead>>,
}

/// An appended record. Resolves to the index of the record when the record is durable.
#[must_use = "await the record before you give access"]
pub struct Appending {
    state: AppendingState,
}

enum AppendingState {
    Refused(LedgerError),
    Waiting { index: u64, answer: oneshot::Receiver<Result<u64, LedgerError>> },
}

/// A deferred record. It has its place in the ledger, but it may not be on disk yet.
pub struct Deferred {
    /// The record's index in the ledger.
    pub index: u64,
    answer: Result<oneshot::Receiver<Result<u64, LedgerError>>, LedgerError>,
}

impl Ledger {
    pub(super) fn new(
        shared: Arc<RecordQueue>,
        clock: Arc<dyn Clock>,
        disk: Arc<dyn Disk>,
        epoch: u64,
        deferred_max: usize,
        thread: JoinHandle<()>,
    ) -> Self {
        let thread = Mutex::new(Some(thread));
        let signing = OnceLock::new();
        Ledger { inner: Arc::new(LedgerParts { shared, clock, disk, epoch, deferred_max, signing, thread }) }
    }

    /// Returns the epoch of this run of the daemon.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// Writes an event as JSON, for [`Ledger::append_text`].
    ///
    /// # Errors
    ///
    /// The event is larger than the largest record, or cannot be written as JSON.
    pub fn text(&self, event: &Event) -> Result<EventText, LedgerError> {
        let text = EventText::of(event).map_err(|error| {
            tracing::error!(%error, "a record cannot be written as JSON");
            LedgerError::Unwritable
        })?;
        match text.bytes() {
            bytes if bytes > limits::LEDGER_RECORD_BYTES_MAX => Err(LedgerError::TooLarge { bytes }),
            _ => Ok(text),
        }
    }

    /// Queues a record that must be durable before its action takes effect. Gives the record its index, and never
    /// blocks. Refuses the record if the disk is unavailable, if deferred records still wait for a failed disk, or if
    /// the queue is full.
    pub fn append(&self, event: &Event) -> Appending {
        match self.text(event) {
            Ok(text) => self.append_text(text),
            Err(error) => Appending { state: AppendingState::Refused(error) },
        }
    }

    /// Makes the writer expect a record until the returned value is dropped. If the writer expects many records, it waits a
    /// moment, so that more of them share a sync.
    pub fn expect_record(&self) -> ExpectedRecord {
        ExpectedRecord::new(self.inner.shared.clone())
    }

    /// Queues a record like [`Ledger::append`].
    pub fn append_text(&self, text: EventText) -> Appending {
        let refused = |e| Appending { state: AppendingState::Refused(e) };
        let mut state = self.inner.shared.lock();
        if let Err(e) = state.admits(text.as_str().len()) {
            return refused(e);
        }
        let (sender, answer) = oneshot::channel();
        let index = state.accept(
            self.inner.clock.now().wall,
            RecordBody::Event(text),
            Some(sender),
            Admission::Append,
        );
        self.inner.shared.wake_writer(state);
        Appending { state: AppendingState::Waiting { index, answer } }
    }

    /// Queues a record of an action that has taken effect already. Never blocks. The record is in memory until it is on
    /// disk. If too many records wait, or the event cannot be written as JSON, only a count and a digest are kept
    /// (`Coalesced`). If the ledger is closed, the record is lost and its loss is logged.
    pub fn defer(&self, event: &Event) -> Deferred {
        let text = EventText::of(event);
        let mut state = self.inner.shared.lock();
        let now = self.inner.clock.now().wall;
        if state.stopped.is_some() {
            let kind = text.as_ref().map_or("", EventText::kind);
            tracing::error!(kind, "an event happened after the ledger was closed, so its record is lost");
            return Deferred { index: 0, answer: Err(LedgerError::Closed) };
        }
        let room = match event {
            Event::LockSet { .. }
            | Event::LockLifted { .. }
            | Event::DatasetRecalled { .. }
            | Event::DatasetUnrecalled { .. } => limits::LEDGER_DEFERRED_LOCKS_MAX,
            _ => 0,
        };
        let full = state.deferred >= self.inner.deferred_max.saturating_add(room)
            || state.bytes >= limits::LEDGER_QUEUE_BYTES_MAX * 2;
        let deferred = match text {
            Ok(text) if !full => {
                if text.as_str().len() > limits::LEDGER_RECORD_BYTES_MAX {
                    tracing::error!(
                        bytes = text.as_str().len(),
                        kind = text.kind(),
                        "a deferred record is larger than the limit, but is written: the event should be split into several records"
                    );
                }
                let (sender, answer) = oneshot::channel();
                let index = state.accept(now, RecordBody::Event(text), Some(sender), Admission::Defer);
                Deferred { index, answer: Ok(answer) }
            }
            text => {
                let text = text.as_ref().map_or("", EventText::as_str);
                let kind = text.split('"').nth(3).unwrap_or("unwritable");
                let index = state.coalesce(now, kind, text);
                Deferred { index, answer: Err(LedgerError::Coalesced) }
            }
        };
        self.inner.shared.wake_writer(state);
        deferred
    }

    /// Watches the index of the last durable record.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.inner.shared.durable.subscribe()
    }

    /// Whether the record and all before it are durable.
    pub fn is_durable(&self, index: u64) -> bool {
        let reached = *self.inner.shared.durable.borrow() >= index;
        reached && !self.inner.shared.lock().coalesced.contains(&index)
    }

    /// Waits until the record and all before it are durable, and returns the greatest durable index.
    pub async fn wait_durable(&self, index: u64) -> Result<u64, LedgerError> {
        {
            let state = self.inner.shared.lock();
            if index >= state.next {
                return Err(LedgerError::NoSuchIndex { index });
            }
            if state.coalesced.contains(&index) {
                return Err(LedgerError::Coalesced);
            }
        }
        let mut durable = self.durable();
        let mut stopped = self.inner.shared.stopped.subscribe();
        tokio::select! {
            biased;
            reached = durable.wait_for(|d| *d >= index) => reached.map(|d| *d).map_err(|_| LedgerError::Closed),
            _ = stopped.wait_for(Option::is_some) => Err(LedgerError::Closed),
        }
    }

    /// Returns the head: the index and digest of the last durable record.
    pub fn head(&self) -> Head {
        self.inner.shared.lock().head
    }

    /// Signs heads with this key from now on. Only the first call counts.
    pub fn sign_with(&self, key: HeadKey) {
        // A second call is a mistake of the caller, and changes nothing.
        let _ = self.inner.signing.set(Signing { key, last: Mutex::new(None) });
    }

    /// Returns the signed head: the index and digest of the last durable record, with a signature. `None` if there is
    /// no key, or before the first record. Each head is signed only once.
    pub fn signed_head(&self) -> Option<SignedHead> {
        let Signing { key, last } = self.inner.signing.get()?;
        let head = self.head();
        if head == Head::START {
            return None;
        }
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|signed| signed.head != head) {
            *last = Some(key.sign(self.inner.epoch, head, self.inner.clock.now().wall));
        }
        last.clone()
    }

    /// Returns the public half of the key that signs heads.
    pub fn head_public(&self) -> Option<HeadPublic> {
        self.inner.signing.get().map(|s| s.key.public())
    }

    /// Returns the health of the ledger.
    pub fn health(&self) -> Health {
        self.inner.shared.health.borrow().clone()
    }

    /// Watches the health of the ledger.
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.inner.shared.health.subscribe()
    }

    /// Returns the number of records that wait for the disk, and how many of them are deferred.
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.inner.shared.lock();
        (state.waiting, state.deferred)
    }

    /// Streams durable records from `from` on, then new records. 0 streams only new records. A slow reader delays
    /// nothing.
    pub fn tail(&self, from: u64) -> Tail {
        let shared = &self.inner.shared;
        Tail::new(self.inner.disk.clone(), shared.durable.subscribe(), shared.stopped.subscribe(), from)
    }

    /// Resolves when the writer thread has ended, for any reason.
    pub fn stopped(&self) -> impl Future<Output = WriterEnd> + Send + 'static {
        let mut stopped = self.inner.shared.stopped.subscribe();
        async move {
            match stopped.wait_for(Option::is_some).await {
                Ok(how) => how.unwrap_or(WriterEnd::Died),
                Err(_) => WriterEnd::Closed,
            }
        }
    }

    /// Refuses further appends, writes the waiting records, and ends the thread. May be called twice.
    pub async fn close(&self, deadline: Duration) -> Result<Head, CloseError> {
        self.inner.shared.close();
        let how = tokio::select! {
            biased;
            how = self.stopped() => how,
            () = self.inner.clock.sleep(deadline) => {
                return Err(CloseError::Deadline { records: self.waiting().0 });
            }
        };
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The thread has reported its end, so this does not wait for a disk.
        let joined = thread.is_none_or(|t| t.join().is_ok());
        match (how, self.waiting().0) {
            (WriterEnd::Died, _) => Err(CloseError::Died),
            _ if !joined => Err(CloseError::Died),
            (WriterEnd::Closed, 0) => Ok(self.head()),
            (WriterEnd::Closed, records) => Err(CloseError::Unwritten { records }),
        }
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("epoch", &self.inner.epoch)
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

impl Drop for LedgerParts {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Appending {
    /// Returns the index that the record has if it becomes durable. `None` if the record was refused.
    pub fn index(&self) -> Option<u64> {
        match &self.state {
            AppendingState::Refused(_) => None,
            AppendingState::Waiting { index, .. } => Some(*index),
        }
    }
}

impl Future for Appending {
    type Output = Result<u64, LedgerError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            AppendingState::Refused(error) => Poll::Ready(Err(error.clone())),
            AppendingState::Waiting { answer, .. } => {
                Pin::new(answer).poll(cx).map(|a| a.unwrap_or(Err(LedgerError::Closed)))
            }
        }
    }
}

impl Deferred {
    /// Resolves to the index when the record is durable. If the future is dropped, the record is still written.
    pub async fn durable(self) -> Result<u64, LedgerError> {
        self.answer?.await.unwrap_or(Err(LedgerError::Closed))
    }
}
