//! Which of the joined members are connected: their streams and heartbeats.

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

/// The presence of one member, from a join to its loss.
pub(super) struct Presence {
    streams: AtomicU32,
    last_beat: AtomicU64,
    /// Whether one of its tokens was bound to a certificate. If so, all later ones are.
    pinned: AtomicBool,
    /// Raised so that its streams check the state of the member.
    calls: watch::Sender<u64>,
    /// How many of its leases someone else ended one by one. That lowers no fence of the member.
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

    /// Counts a beat.
    pub(super) fn beat(&self, now: BootTime) {
        self.last_beat.fetch_max(now.0, Ordering::AcqRel);
    }

    /// Counts an ended stream, and returns whether it was the last one.
    pub(super) fn close_stream(&self) -> bool {
        self.streams.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Returns a receiver that wakes when a stream must check the state of the member.
    pub(super) fn calls(&self) -> watch::Receiver<u64> {
        self.calls.subscribe()
    }

    /// Returns how many of its leases someone else has ended one by one.
    pub(super) fn leases_ended(&self) -> u64 {
        self.leases_ended.load(Ordering::Acquire)
    }

    /// Wakes its streams, so that they check the state of the member.
    pub(super) fn call(&self) {
        self.calls.send_modify(|n| *n = n.wrapping_add(1));
    }
}

impl Presences {
    /// Returns the members whose last beat is older than the window.
    pub(super) fn silent(&self, now: BootTime, window: Duration) -> Vec<MemberKey> {
        let is_silent = |p: &Presence| now.since(BootTime(p.last_beat.load(Ordering::Acquire))) > window;
        self.0.iter().filter(|p| is_silent(p)).map(|p| p.key().clone()).collect()
    }

    /// Begins a new presence, for a member that joins or is back. Streams of an earlier presence are woken to check the state.
    pub(super) fn begin(&self, key: MemberKey, beat: BootTime) {
        if let Some(before) = self.0.insert(key, Presence::new(beat)) {
            before.call();
        }
    }

    /// Begins a presence if there is none.
    pub(super) fn take_up(&self, key: MemberKey, beat: BootTime) {
        self.0.entry(key).or_insert_with(|| Presence::new(beat));
    }

    /// Returns the presence of a member with one more stream, counted under the lock of the map's entry.
    pub(super) fn open_stream(&self, key: MemberKey, beat: BootTime) -> Arc<Presence> {
        let held = self.0.entry(key).or_insert_with(|| Presence::new(beat));
        held.streams.fetch_add(1, Ordering::AcqRel);
        held.beat(beat);
        held.clone()
    }

    pub(super) fn has(&self, key: &MemberKey) -> bool {
        self.0.contains_key(key)
    }

    /// Forgets a member that is still silent. Returns `None` if it has beaten meanwhile.
    pub(super) fn forget_silent(
        &self,
        key: &MemberKey,
        now: BootTime,
        window: Duration,
    ) -> Option<Arc<Presence>> {
        let silent = |p: &Presence| now.since(BootTime(p.last_beat.load(Ordering::Acquire))) > window;
        self.0.remove_if(key, |_, p| silent(p)).map(|(_, p)| p)
    }

    /// Forgets a member if this presence is its current one and has no stream left. Returns whether it did.
    pub(super) fn forget_gone(&self, key: &MemberKey, presence: &Arc<Presence>) -> bool {
        let gone = |p: &Arc<Presence>| Arc::ptr_eq(p, presence) && p.streams.load(Ordering::Acquire) == 0;
        self.0.remove_if(key, |_, p| gone(p)).is_some()
    }

    /// Forgets a member that has left, if this presence is its current one.
    pub(super) fn forget(&self, key: &MemberKey, presence: &Arc<Presence>) {
        self.0.remove_if(key, |_, p| Arc::ptr_eq(p, presence));
    }

    /// Wakes the streams of one member, so that they check its state.
    pub(super) fn call(&self, key: &MemberKey) {
        if let Some(presence) = self.0.get(key) {
            presence.call();
        }
    }

    /// Tells one member that someone else ended one of its leases.
    pub(super) fn lease_ended(&self, key: &MemberKey) {
        if let Some(presence) = self.0.get(key) {
            presence.leases_ended.fetch_add(1, Ordering::AcqRel);
            presence.call();
        }
    }

    /// Calls all members of an attempt.
    pub(super) fn call_attempt(&self, job: &Job, attempt: AttemptNumber) {
        let Some(a) = job.attempt(attempt) else { return };
        for (instance, _) in a.members.iter() {
            self.call(&(job.id, attempt, instance.clone()));
        }
    }

    pub(super) fn call_all(&self) {
        self.0.iter().for_each(|p| p.call());
    }

    /// Whether a new token is bound to the certificate: because the rules say so, or because an earlier token was.
    /// Remembers the answer.
    pub(super) fn pin(&self, key: &MemberKey, must: bool) -> bool {
        self.0.get(key).map_or(must, |p| p.pinned.fetch_or(must, Ordering::AcqRel) || must)
    }
}
