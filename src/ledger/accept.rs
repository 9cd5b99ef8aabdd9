//! The ledger as its callers have it: records are accepted here, in order, and wait for the writer.
//!
//! One short mutex orders all callers and the writer. Nothing waits for the disk under it, so a caller may hold a lock of
//! its own meanwhile. The writer thread takes from the front what callers put at the back.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{oneshot, watch};

use super::{
    event::{Coalesced, Event},
    file::Disk,
    record::{EventText, Head},
    tail::Tail,
};
use crate::{
    clock::{Clock, Wall},
    limits,
    name::Digest,
};

/// The open ledger. Clones are the same one; when the last is dropped, what waits is written and the thread ends.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    disk: Arc<dyn Disk>,
    epoch: u64,
    deferred_max: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Why a record is not, or not known to be, durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    #[error("the ledger cannot be written now: {why}")]
    Unavailable { why: Arc<str> },
    #[error("too many records wait for the disk: try again in a moment")]
    QueueFull,
    #[error("the record has {bytes} bytes, and {} are allowed", limits::LEDGER_RECORD_BYTES_MAX)]
    TooLarge { bytes: usize },
    #[error("the record cannot be written as JSON")]
    Unwritable,
    #[error("the ledger is closed")]
    Closed,
    #[error(
        "too many endings waited for the disk: this one is kept as a count and a digest, not as a record of its own"
    )]
    Coalesced,
    #[error("no record {index} was accepted in this epoch")]
    NoSuchIndex { index: u64 },
}

/// How the ledger is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Takes everything.
    Good,
    /// The disk is full: the reserve was given up for endings, and nothing else is taken.
    EndingsOnly { why: Arc<str> },
    /// Writing fails. Endings are kept in memory, nothing else is taken.
    Failing { why: Arc<str> },
    /// Closed, or its thread died.
    Stopped,
}

/// How the writer thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It was asked to.
    Closed,
    /// It panicked: the daemon must go down.
    Died,
}

/// Why a close is not a clean one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    #[error("{records} records could not be written before the ledger was closed")]
    Unwritten { records: usize },
    #[error("the disk did not answer within the deadline; {records} records wait")]
    Deadline { records: usize },
    #[error("the ledger's thread died")]
    Died,
}

/// An appended record. Resolves to its index when it is durable.
#[must_use = "what widens access waits for its record"]
pub struct Appending {
    state: AppendingState,
}

enum AppendingState {
    Refused(LedgerError),
    Waiting { index: u64, answer: oneshot::Receiver<Result<u64, LedgerError>> },
}

/// A deferred record: accepted, in order, and durable sooner or later.
pub struct Deferred {
    /// Its place in the ledger.
    pub index: u64,
    answer: Result<oneshot::Receiver<Result<u64, LedgerError>>, LedgerError>,
}

impl Ledger {
    pub(super) fn new(
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        disk: Arc<dyn Disk>,
        epoch: u64,
        deferred_max: usize,
        thread: JoinHandle<()>,
    ) -> Self {
        let thread = Mutex::new(Some(thread));
        Ledger { inner: Arc::new(Inner { shared, clock, disk, epoch, deferred_max, thread }) }
    }

    /// The epoch that this life of the daemon writes.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// Accepts a record of something that may be done once the record is durable. Its place in the order is fixed when
    /// this returns; never blocks. Refused at once where the disk is away, endings wait for it, or too much waits.
    pub fn append(&self, event: &Event) -> Appending {
        let refused = |e| Appending { state: AppendingState::Refused(e) };
        let text = match EventText::of(event) {
            Ok(text) if text.as_str().len() > limits::LEDGER_RECORD_BYTES_MAX => {
                return refused(LedgerError::TooLarge { bytes: text.as_str().len() });
            }
            Ok(text) => text,
            Err(error) => {
                tracing::error!(%error, "a record cannot be written as JSON");
                return refused(LedgerError::Unwritable);
            }
        };
        let mut state = self.inner.shared.lock();
        if let Err(e) = state.admits(text.as_str().len()) {
            return refused(e);
        }
        let (sender, answer) = oneshot::channel();
        let index = state.accept(self.inner.clock.now().wall, Body::Event(text), Some(sender), Way::Append);
        drop(state);
        self.inner.shared.wake.notify_one();
        Appending { state: AppendingState::Waiting { index, answer } }
    }

    /// Accepts a record of something that has taken effect already. Never refused, never blocks; kept in memory until
    /// the disk takes it.
    pub fn defer(&self, event: &Event) -> Deferred {
        let text = EventText::of(event);
        let mut state = self.inner.shared.lock();
        let now = self.inner.clock.now().wall;
        if state.stopped.is_some() {
            tracing::error!(?event, "an ending came after the ledger was closed and is not recorded");
            return Deferred { index: 0, answer: Err(LedgerError::Closed) };
        }
        let full =
            state.deferred >= self.inner.deferred_max || state.bytes >= limits::LEDGER_QUEUE_BYTES_MAX * 2;
        let deferred = match text {
            Ok(text) if !full => {
                if text.as_str().len() > limits::LEDGER_RECORD_BYTES_MAX {
                    tracing::error!(
                        bytes = text.as_str().len(),
                        kind = text.kind(),
                        "an ending's record is too large and is written all the same: it should be cut into several"
                    );
                }
                let (sender, answer) = oneshot::channel();
                let index = state.accept(now, Body::Event(text), Some(sender), Way::Defer);
                Deferred { index, answer: Ok(answer) }
            }
            text => {
                let text = text.as_ref().map_or("", EventText::as_str);
                let kind = text.split('"').nth(3).unwrap_or("unwritable");
                let index = state.coalesce(now, kind, text);
                Deferred { index, answer: Err(LedgerError::Coalesced) }
            }
        };
        drop(state);
        self.inner.shared.wake.notify_one();
        deferred
    }

    /// The greatest index up to which all is durable, as it grows.
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

    /// The last durable record.
    pub fn head(&self) -> Head {
        self.inner.shared.lock().head
    }

    /// How the ledger is now.
    pub fn health(&self) -> Health {
        self.inner.shared.health.borrow().clone()
    }

    /// How the ledger is, as it changes.
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.inner.shared.health.subscribe()
    }

    /// Records that wait for the disk: all, and those of them that are endings.
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.inner.shared.lock();
        (state.waiting, state.deferred)
    }

    /// Reads durable records from an index on, and follows. From 0: only what comes. Nothing waits for this reader.
    pub fn tail(&self, from: u64) -> Tail {
        let shared = &self.inner.shared;
        Tail::new(self.inner.disk.clone(), shared.durable.subscribe(), shared.stopped.subscribe(), from)
    }

    /// Resolves when the writer thread has ended, for whatever cause.
    pub fn stopped(&self) -> impl Future<Output = Stopped> + Send + 'static {
        let mut stopped = self.inner.shared.stopped.subscribe();
        async move {
            match stopped.wait_for(Option::is_some).await {
                Ok(how) => how.unwrap_or(Stopped::Died),
                Err(_) => Stopped::Closed,
            }
        }
    }

    /// Takes no more appends, writes what waits, and ends the thread. Closing twice is the same.
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
        // It has said that it ends: this does not wait for a disk.
        let joined = thread.is_none_or(|t| t.join().is_ok());
        match (how, self.waiting().0) {
            (Stopped::Died, _) => Err(CloseError::Died),
            _ if !joined => Err(CloseError::Died),
            (Stopped::Closed, 0) => Ok(self.head()),
            (Stopped::Closed, records) => Err(CloseError::Unwritten { records }),
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

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Appending {
    /// The place that it has if it becomes durable; nothing where it was refused.
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
    /// Resolves to the index when the record is durable. It may be dropped: the record is written all the same.
    pub async fn durable(self) -> Result<u64, LedgerError> {
        self.answer?.await.unwrap_or(Err(LedgerError::Closed))
    }
}

/// What callers and the writer thread share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes the writer. Nobody else waits on it.
    wake: Condvar,
    durable: watch::Sender<u64>,
    health: watch::Sender<Health>,
    stopped: watch::Sender<Option<Stopped>>,
}

struct State {
    /// The index that the next accepted record gets.
    next: u64,
    /// Accepted, in order, and not with the writer.
    queue: VecDeque<Waiting>,
    /// Records in the queue and with the writer; of them endings; bytes of all.
    waiting: usize,
    deferred: usize,
    bytes: usize,
    head: Head,
    /// Places that hold coalesced records: they are durable for nobody.
    coalesced: BTreeSet<u64>,
    /// Why appends are refused.
    shut: Option<Arc<str>>,
    closing: bool,
    stopped: Option<Stopped>,
}

/// An accepted record.
pub(super) struct Waiting {
    pub(super) index: u64,
    pub(super) time: Wall,
    pub(super) body: Body,
    answer: Option<oneshot::Sender<Result<u64, LedgerError>>>,
    way: Way,
}

/// What an accepted record says.
pub(super) enum Body {
    Event(EventText),
    Coalesced(Box<Coalesced>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Append,
    Defer,
}

/// Why the writer thread was woken.
pub(super) enum Turn {
    Write(Vec<Waiting>),
    Close,
}

/// Why the writer thread looks at a disk that failed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    Time,
    Ending,
    Close,
}

/// Places of coalesced records that are remembered. Each is one more burst past the bound.
const COALESCED_MAX: usize = 1_024;

impl State {
    fn admits(&self, bytes: usize) -> Result<(), LedgerError> {
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

    fn accept(
        &mut self,
        time: Wall,
        body: Body,
        answer: Option<oneshot::Sender<Result<u64, LedgerError>>>,
        way: Way,
    ) -> u64 {
        let index = self.next;
        self.next = index.saturating_add(1);
        let waiting = Waiting { index, time, body, answer, way };
        self.count(&waiting, true);
        self.queue.push_back(waiting);
        index
    }

    fn coalesce(&mut self, now: Wall, kind: &str, text: &str) -> u64 {
        if let Some(Waiting { index, body: Body::Coalesced(coalesced), .. }) = self.queue.back_mut() {
            coalesced.add(now, kind, text);
            return *index;
        }
        let mut coalesced = Coalesced { records: 0, types: BTreeMap::new(), last: now, digest: Digest::ZERO };
        coalesced.add(now, kind, text);
        let index = self.accept(now, Body::Coalesced(Box::new(coalesced)), None, Way::Defer);
        if self.coalesced.len() >= COALESCED_MAX {
            self.coalesced.pop_first();
        }
        self.coalesced.insert(index);
        tracing::error!(
            index,
            kind,
            "more endings wait for the disk than memory keeps: from here on they are counted, not kept one by one"
        );
        index
    }

    fn count(&mut self, w: &Waiting, comes: bool) {
        let bytes = match &w.body {
            Body::Event(text) => text.as_str().len(),
            Body::Coalesced(_) => 0,
        };
        let endings = usize::from(w.way == Way::Defer);
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

    /// As much from the front as is written at once.
    fn take(&mut self) -> Vec<Waiting> {
        let mut bytes = 0usize;
        let mut batch = Vec::new();
        while bytes < limits::LEDGER_BATCH_BYTES_MAX
            && let Some(w) = self.queue.pop_front()
        {
            bytes += match &w.body {
                Body::Event(text) => text.as_str().len(),
                Body::Coalesced(_) => 0,
            };
            batch.push(w);
        }
        batch
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

impl Shared {
    /// `shut` is why appends are refused from the start.
    pub(super) fn new(head: Head, shut: Option<Arc<str>>) -> Self {
        let health = shut.clone().map_or(Health::Good, |why| Health::Failing { why });
        Shared {
            state: Mutex::new(State {
                next: head.index.saturating_add(1),
                queue: VecDeque::new(),
                waiting: 0,
                deferred: 0,
                bytes: 0,
                head,
                coalesced: BTreeSet::new(),
                shut,
                closing: false,
                stopped: None,
            }),
            wake: Condvar::new(),
            durable: watch::Sender::new(head.index),
            health: watch::Sender::new(health),
            stopped: watch::Sender::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this mutex leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    /// Waits for records. All that wait by now are one batch; the last one comes before the end.
    pub(super) fn next(&self) -> Turn {
        let mut state = self.lock();
        loop {
            if !state.queue.is_empty() {
                return Turn::Write(state.take());
            }
            if state.closing {
                return Turn::Close;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes the endings that wait, where any do.
    pub(super) fn next_endings(&self) -> Option<Vec<Waiting>> {
        let mut state = self.lock();
        (!state.queue.is_empty()).then(|| state.take())
    }

    /// A batch is durable: says so to all who wait for it.
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
                // Whoever asked may be gone.
                let _ = answer.send(Ok(w.index));
            }
        }
    }

    /// Writing failed: shuts appends, refuses those that were accepted, keeps the endings in their order.
    pub(super) fn failed(&self, batch: Vec<Waiting>, health: Health) {
        let why: Arc<str> = match &health {
            Health::EndingsOnly { why } | Health::Failing { why } => why.clone(),
            Health::Good | Health::Stopped => "it is stopped".into(),
        };
        let mut state = self.lock();
        state.shut = Some(why.clone());
        self.health.send_replace(health);
        let mut all: VecDeque<Waiting> = batch.into();
        all.append(&mut state.queue);
        let mut refused = Vec::new();
        for w in all {
            match w.way {
                Way::Defer => state.queue.push_back(w),
                Way::Append => {
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

    /// Opens appends again, unless endings wait still.
    pub(super) fn healed(&self) -> bool {
        let mut state = self.lock();
        if !state.queue.is_empty() {
            return false;
        }
        state.shut = None;
        self.health.send_replace(Health::Good);
        true
    }

    /// Waits until a failed disk is worth another try. `eager`: an ending is a reason.
    pub(super) fn again(&self, delay: Duration, eager: bool) -> Again {
        let state = self.lock();
        let idle = |s: &mut State| !s.closing && !(eager && !s.queue.is_empty());
        let (state, _) =
            self.wake.wait_timeout_while(state, delay, idle).unwrap_or_else(PoisonError::into_inner);
        if state.closing {
            Again::Close
        } else if eager && !state.queue.is_empty() {
            Again::Ending
        } else {
            Again::Time
        }
    }

    /// The thread ends. Who waits still is told; what waits still is lost with the process.
    pub(super) fn stop(&self, how: Stopped) {
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
