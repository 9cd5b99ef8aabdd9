//! The presence of joined members: their streams and heartbeats.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use tokio::sync::watch;

use crate::{
    clock::BootTime,
    job::Job,
    name::{AttemptNumber, InstanceName, JobId},
};

pub(super) type MemberKey = (JobId, AttemptNumber, InstanceName);

/// The presences of joined members. A member without one is away.
#[derive(Default)]
pub(super) struct Presences(DashMap<MemberKey, Arc<Presence>>);

/// The presence of one member, from a join until the member is away or has left.
pub(super) struct Presence {
    streams: AtomicU32,
    last_beat: AtomicU64,
    /// Whether a token of the member was bound to a certificate. If so, all later tokens are bound too.
    pinned: AtomicBool,
    /// A counter. When it is raised, the streams check the state of the member.
    calls: watch::Sender<u64>,
    /// The number of the member's leases that other callers ended one by one. The streams compare it, because the end of
    /// a single lease lowers no fence of the member.
    leases_ended: AtomicU64,
}

impl Presence {
    fn new(beat: BootTime) -> Arc<Self> {
        Arc::new(Presence {
            streams: AtomicU32::new(0),
            last_beat: AtomicU64::new(beat.0),
            pinned: AtomicBool::new(false),
            calls: watch::Sender::new(0),
            leases_ended: AtomicU64::new(0),
        })
    }

    /// Notes the time of a heartbeat.
    pub(super) fn beat(&self, now: BootTime) {
        self.last_beat.fetch_max(now.0, Ordering::AcqRel);
    }

    /// Counts an ended stream, and returns whether it was the last stream.
    pub(super) fn close_stream(&self) -> bool {
        self.streams.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Returns a receiver that wakes when a stream must check the state of the member.
    pub(super) fn calls(&self) -> watch::Receiver<u64> {
        self.calls.subscribe()
    }

    /// Returns the number of the member's leases that others ended one by one.
    pub(super) fn leases_ended(&self) -> u64 {
        self.leases_ended.load(Ordering::Acquire)
    }

    /// Wakes the streams, so that they check the state of the member.
    pub(super) fn call(&self) {
        self.calls.send_modify(|n| *n = n.wrapping_add(1));
    }
}

impl Presences {
    /// Returns the members whose last heartbeat is older than the window.
    pub(super) fn silent(&self, now: BootTime, window: Duration) -> Vec<MemberKey> {
        let is_silent = |p: &Presence| now.since(BootTime(p.last_beat.load(Ordering::Acquire))) > window;
        self.0.iter().filter(|p| is_silent(p)).map(|p| p.key().clone()).collect()
    }

    /// Begins a new presence for a member that joins or returns. Wakes the streams of an earlier presence, so that they
    /// check the state.
    pub(super) fn begin(&self, key: MemberKey, beat: BootTime) {
        if let Some(before) = self.0.insert(key, Presence::new(beat)) {
            before.call();
        }
    }

    /// Begins a presence if the member has none.
    pub(super) fn take_up(&self, key: MemberKey, beat: BootTime) {
        self.0.entry(key).or_insert_with(|| Presence::new(beat));
    }

    /// Adds a stream to the presence of a member, and returns the presence. The map's entry is locked while the stream
    /// is counted, so that no other task removes the presence meanwhile.
    pub(super) fn open_stream(&self, key: MemberKey, beat: BootTime) -> Arc<Presence> {
        let held = self.0.entry(key).or_insert_with(|| Presence::new(beat));
        held.streams.fetch_add(1, Ordering::AcqRel);
        held.beat(beat);
        held.clone()
    }

    pub(super) fn has(&self, key: &MemberKey) -> bool {
        self.0.contains_key(key)
    }

    /// Forgets a member that is still silent. Returns `None` if the member has sent a heartbeat meanwhile.
    pub(super) fn forget_silent(
        &self,
        key: &MemberKey,
        now: BootTime,
        window: Duration,
    ) -> Option<Arc<Presence>> {
        let silent = |p: &Presence| now.since(BootTime(p.last_beat.load(Ordering::Acquire))) > window;
        self.0.remove_if(key, |_, p| silent(p)).map(|(_, p)| p)
    }

    /// Forgets a member if this is its current presence and has no stream left. Returns whether the member was
    /// forgotten.
    pub(super) fn forget_gone(&self, key: &MemberKey, presence: &Arc<Presence>) -> bool {
        let gone = |p: &Arc<Presence>| Arc::ptr_eq(p, presence) && p.streams.load(Ordering::Acquire) == 0;
        self.0.remove_if(key, |_, p| gone(p)).is_some()
    }

    /// Forgets a member that has left, if this is its current presence.
    pub(super) fn forget(&self, key: &MemberKey, presence: &Arc<Presence>) {
        self.0.remove_if(key, |_, p| Arc::ptr_eq(p, presence));
    }

    /// Wakes the streams of one member, so that they check its state.
    pub(super) fn call(&self, key: &MemberKey) {
        if let Some(presence) = self.0.get(key) {
            presence.call();
        }
    }

    /// Notifies a member that another caller ended one of its leases.
    pub(super) fn lease_ended(&self, key: &MemberKey) {
        if let Some(presence) = self.0.get(key) {
            presence.leases_ended.fetch_add(1, Ordering::AcqRel);
            presence.call();
        }
    }

    /// Wakes the streams of all members of an attempt.
    pub(super) fn call_attempt(&self, job: &Job, attempt: AttemptNumber) {
        let Some(a) = job.attempt(attempt) else { return };
        for (instance, _) in a.members.iter() {
            self.call(&(job.id, attempt, instance.clone()));
        }
    }

    pub(super) fn call_all(&self) {
        self.0.iter().for_each(|p| p.call());
    }

    /// Whether a new token is bound to the certificate: the rules require it (`must`), or an earlier token of the
    /// member was bound. Remembers that a token was bound.
    pub(super) fn pin(&self, key: &MemberKey, must: bool) -> bool {
        self.0.get(key).map_or(must, |p| p.pinned.fetch_or(must, Ordering::AcqRel) || must)
    }
}
