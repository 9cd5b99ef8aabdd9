//! The limits on requests and streams of callers, and on the bytes that are buffered for them.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;

use crate::{
    clock::{BootTime, Clock},
    limits,
    link::{ClassifiedPeer, Connection, Full, PeerClass, Share, Shares},
    policy::Rpc,
    reason::{Reason, Refusal},
};

/// The limits of the gRPC server. The defaults are in [`limits`].
#[derive(Clone, Copy, Debug)]
pub struct EdgeRoom {
    /// The highest number of requests in progress. Requests that end access are counted separately, with the same
    /// bound.
    pub requests_max: usize,
    /// The highest number of requests of one SPIFFE ID in progress.
    pub requests_per_peer_max: usize,
    /// The highest number of bytes that are buffered for all known callers, in and out.
    pub buffered_bytes_max: usize,
    /// The highest number of bytes that are buffered for one known SPIFFE ID.
    pub buffered_bytes_per_peer_max: usize,
}

impl Default for EdgeRoom {
    fn default() -> Self {
        EdgeRoom {
            requests_max: limits::REQUESTS_MAX,
            requests_per_peer_max: limits::REQUESTS_PER_PEER_MAX,
            buffered_bytes_max: limits::BUFFERED_BYTES_MAX,
            buffered_bytes_per_peer_max: limits::BUFFERED_BYTES_PER_PEER_MAX,
        }
    }
}

/// The shares of capacity for each kind of call, so that one kind cannot use the capacity of another kind.
pub(super) struct Rooms {
    work: Arc<Shares>,
    /// For calls that end access, so that they do not wait behind calls that wait for the disk.
    endings: Arc<Shares>,
    /// For operators who end access or restore it.
    operators: Arc<Shares>,
    /// For `WaitDurable`, because it waits for a long time while the disk fails.
    waits: Arc<Shares>,
    /// For the streams of members and resource servers. Each of them has one small stream.
    feeds: Arc<Shares>,
    /// For lists, because they use processor time. A flood of lists must not delay an operator's revocation.
    lists: Arc<Shares>,
    /// For all other streams.
    watches: Arc<Shares>,
    /// For all calls of callers that no catalog entry matches.
    unknown: Arc<Shares>,
    bytes: Arc<Shares>,
    bytes_operators: Arc<Shares>,
    bytes_unknown: Arc<Shares>,
    clock: Arc<dyn Clock>,
    /// All requests in progress, for the check for clients that do not read their answers.
    held: DashMap<u64, Weak<RequestRoom>>,
    next: AtomicU64,
}

impl Rooms {
    pub(super) fn new(room: EdgeRoom, clock: Arc<dyn Clock>) -> Arc<Self> {
        let requests = || Shares::new(room.requests_max, room.requests_per_peer_max);
        let alike = |all| Shares::new(all, all);
        Arc::new(Rooms {
            work: requests(),
            endings: requests(),
            operators: alike(limits::REQUESTS_OPERATORS_MAX),
            waits: Shares::new(limits::DURABLE_WAITS_MAX, limits::DURABLE_WAITS_PER_PEER_MAX),
            feeds: alike(limits::FEEDS_MAX),
            lists: Shares::new(
                limits::LISTS_MAX.min(room.requests_max),
                limits::LISTS_PER_PEER_MAX.min(room.requests_per_peer_max),
            ),
            watches: Shares::new(limits::WATCHES_MAX, limits::WATCHES_PER_PEER_MAX),
            unknown: Shares::new(limits::REQUESTS_UNKNOWN_MAX, limits::REQUESTS_UNKNOWN_PER_PEER_MAX),
            bytes: Shares::new(room.buffered_bytes_max, room.buffered_bytes_per_peer_max),
            bytes_operators: alike(limits::BUFFERED_BYTES_OPERATORS_MAX),
            bytes_unknown: Shares::new(
                limits::BUFFERED_BYTES_UNKNOWN_MAX,
                limits::BUFFERED_BYTES_UNKNOWN_PER_PEER_MAX,
            ),
            clock,
            held: DashMap::new(),
            next: AtomicU64::new(0),
        })
    }

    /// Reserves capacity for one request before its body is read. `rpc` is `None` for health and reflection.
    pub(super) fn take(
        self: &Arc<Self>,
        peer: &ClassifiedPeer,
        rpc: Option<Rpc>,
        connection: &Connection,
        header_bytes: usize,
    ) -> Result<Arc<RequestRoom>, Refusal> {
        let (room, bytes) = self.of(peer.class, rpc);
        let id = &peer.counted_as;
        let place = room.take(id, 1).map_err(|full| requests_full(&full))?;
        let first = header_bytes.saturating_add(limits::REQUEST_BYTES);
        let bytes = bytes.take(id, first).map_err(|full| bytes_full(&full))?;
        let held = Arc::new(RequestRoom {
            _place: place,
            bytes,
            request: AtomicUsize::new(first),
            always_answers: rpc.is_some_and(ends_access),
            connection: connection.clone(),
            unsent: AtomicUsize::new(0),
            moves: AtomicU64::new(1),
            seen_moves: AtomicU64::new(0),
            seen_at: AtomicU64::new(0),
            key: self.next.fetch_add(1, Ordering::Relaxed),
            rooms: Arc::downgrade(self),
        });
        self.held.insert(held.key, Arc::downgrade(&held));
        Ok(held)
    }

    fn of(&self, class: PeerClass, rpc: Option<Rpc>) -> (&Arc<Shares>, &Arc<Shares>) {
        let restores_or_ends = |rpc| ends_access(rpc) || matches!(rpc, Rpc::Unlock | Rpc::UnrecallDataset);
        match (class, rpc) {
            (PeerClass::Unknown, _) => (&self.unknown, &self.bytes_unknown),
            (PeerClass::Operator, Some(rpc)) if restores_or_ends(rpc) => {
                (&self.operators, &self.bytes_operators)
            }
            (_, Some(rpc)) if ends_access(rpc) => (&self.endings, &self.bytes),
            (_, Some(Rpc::WaitDurable)) => (&self.waits, &self.bytes),
            (_, Some(Rpc::KeepAlive | Rpc::WatchFences)) => (&self.feeds, &self.bytes),
            (
                _,
                Some(
                    Rpc::ListJobs
                    | Rpc::ListLeases
                    | Rpc::ListLocks
                    | Rpc::ListApprovals
                    | Rpc::ListPolicies
                    | Rpc::ListResources
                    | Rpc::ListReviews
                    | Rpc::ListWaivers
                    | Rpc::WhoCan
                    | Rpc::VerifyClean
                    | Rpc::ExplainJob,
                ),
            ) => (&self.lists, &self.bytes),
            (_, Some(Rpc::WatchJob | Rpc::TailLedger) | None) => (&self.watches, &self.bytes),
            _ => (&self.work, &self.bytes),
        }
    }

    /// Ends the connections of clients that do not read their answers.
    pub(super) fn end_unread(&self) {
        let now = self.clock.now().boot;
        let unread = |held: &RequestRoom| held.unread_for(now) >= limits::READER_STALL;
        let unread: Vec<_> = self.held.iter().filter_map(|e| e.upgrade()).filter(|h| unread(h)).collect();
        for held in unread {
            if !held.connection.ended.is_cancelled() {
                tracing::info!(peer = %held.connection.peer.spiffe_id(), "a client does not read its answers: its connection is closed");
            }
            held.connection.end_unread(limits::READER_STALL);
        }
    }
}

/// The reserved capacity of one request, from its headers until its answer is sent. The capacity is freed when the last
/// clone is dropped.
pub(super) struct RequestRoom {
    _place: Share,
    bytes: Share,
    /// The number of reserved bytes that the request itself uses.
    request: AtomicUsize,
    /// Whether the answer is sent even if the buffers are full, because access has ended and the caller must know.
    always_answers: bool,
    connection: Connection,
    /// The number of bytes of the answer that HTTP/2 has but has not sent.
    unsent: AtomicUsize,
    /// The number of times that bytes were given to HTTP/2 or sent. It is counted without a clock, because HTTP/2 holds
    /// a lock meanwhile.
    moves: AtomicU64,
    /// The value of `moves` when a check last found a change. `seen_at` is the time of that check.
    seen_moves: AtomicU64,
    seen_at: AtomicU64,
    key: u64,
    rooms: Weak<Rooms>,
}

impl RequestRoom {
    /// Reserves capacity for a message that will be read.
    pub(super) fn read(&self, bytes: usize) -> Result<(), Refusal> {
        self.bytes.grow(bytes).map_err(|full| bytes_full(&full))
    }

    /// Keeps the capacity of [`RequestRoom::read`] until the call returns.
    pub(super) fn keep(&self, bytes: usize) {
        self.request.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Frees the capacity of [`RequestRoom::read`].
    pub(super) fn forget(&self, bytes: usize) {
        self.bytes.shrink(bytes);
    }

    /// Frees the capacity of the request itself, after the call has returned.
    pub(super) fn answered(&self) {
        self.bytes.shrink(self.request.swap(0, Ordering::Relaxed));
    }

    /// Reserves capacity for bytes of an answer that wait to be sent.
    pub(super) fn write(&self, bytes: usize) -> Result<(), Refusal> {
        match self.bytes.grow(bytes) {
            Ok(()) => {}
            Err(_) if self.always_answers => self.bytes.grow_past(bytes),
            Err(full) => return Err(bytes_full(&full)),
        }
        self.unsent.fetch_add(bytes, Ordering::AcqRel);
        self.moves.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Frees the capacity of bytes that were sent or dropped.
    pub(super) fn sent(&self, bytes: usize) {
        self.moves.fetch_add(1, Ordering::Relaxed);
        self.unsent.fetch_sub(bytes, Ordering::AcqRel);
        self.bytes.shrink(bytes);
    }

    /// Returns the time for which no waiting byte was sent, according to the checks.
    fn unread_for(&self, now: BootTime) -> Duration {
        let moves = self.moves.load(Ordering::Relaxed);
        let has_moved = self.seen_moves.swap(moves, Ordering::Relaxed) != moves;
        if has_moved || self.unsent.load(Ordering::Acquire) == 0 {
            self.seen_at.store(now.0, Ordering::Relaxed);
        }
        now.since(BootTime(self.seen_at.load(Ordering::Relaxed)))
    }
}

impl Drop for RequestRoom {
    fn drop(&mut self) {
        if let Some(rooms) = self.rooms.upgrade() {
            rooms.held.remove(&self.key);
        }
    }
}

/// Whether a call only reduces access.
pub(super) fn ends_access(rpc: Rpc) -> bool {
    matches!(
        rpc,
        Rpc::CloseJob
            | Rpc::DrainAttempt
            | Rpc::EndAttempt
            | Rpc::ReleaseLease
            | Rpc::Revoke
            | Rpc::Lock
            | Rpc::RecallDataset
            | Rpc::Offboard
            | Rpc::Reject
            | Rpc::WithdrawApproval
            | Rpc::LogOut
    )
}

fn requests_full(full: &Full) -> Refusal {
    match full {
        Full::Identity { has } => Refusal::new(
            Reason::Overloaded,
            format!("this identity has {has} requests in progress, which is the limit for one identity now"),
        )
        .fix("try again in a moment, with fewer at once"),
        Full::All { .. } => {
            Refusal::new(Reason::Overloaded, "too many requests at once: try again in a moment")
        }
    }
}

fn bytes_full(full: &Full) -> Refusal {
    match full {
        Full::Identity { has } => Refusal::new(
            Reason::Overloaded,
            format!("{has} bytes are buffered for this identity, which is the limit for one identity now"),
        )
        .fix("read answers as they come, and try again with fewer requests at once"),
        Full::All { .. } => {
            Refusal::new(Reason::Overloaded, "too many bytes are buffered at once: try again in a moment")
        }
    }
}
