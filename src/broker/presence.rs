//! Who of the joined members is there: their streams and beats.

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
    name::{AttemptNumber, InstanceName, JobId},
};

pub(super) type MemberKey = (JobId, AttemptNumber, InstanceName);

/// The connections of joined members. A member is away when it has none.
#[derive(Default)]
pub(super) struct Sessions(DashMap<MemberKey, Arc<Presence>>);

/// One member being there, from a join to its loss.
pub(super) struct Presence {
    streams: AtomicU32,
    last_beat: AtomicU64,
    /// Whether a token of it was bound to a certificate: none that comes later is bound to less.
    pinned: AtomicBool,
    /// Raised to have its streams look at what has become of it.
    calls: watch::Sender<u64>,
    /// Leases of it that someone else ended, one by one: no fence of the member was lowered for them.
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

    /// It lives.
    pub(super) fn beat(&self, now: BootTime) {
        self.last_beat.fetch_max(now.0, Ordering::AcqRel);
    }

    /// Counts a stream out that has ended; whether it was the last one.
    pub(super) fn close_stream(&self) -> bool {
        self.streams.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Hears each call to look.
    pub(super) fn calls(&self) -> watch::Receiver<u64> {
        self.calls.subscribe()
    }

    /// How many of its leases someone else has ended, each by itself.
    pub(super) fn leases_ended(&self) -> u64 {
        self.leases_ended.load(Ordering::Acquire)
    }

    /// Has its streams look.
    pub(super) fn call(&self) {
        self.calls.send_modify(|n| *n = n.wrapping_add(1));
    }
}

impl Sessions {
    /// Members whose last beat is older than the window.
    pub(super) fn silent(&self, now: BootTime, window: Duration) -> Vec<MemberKey> {
        let is_silent = |p: &Presence| now.since(BootTime(p.last_beat.load(Ordering::Acquire))) > window;
        self.0.iter().filter(|p| is_silent(p)).map(|p| p.key().clone()).collect()
    }

    /// Begins a presence anew: a member that joins, or is back. What is left of an earlier one has no say any more.
    pub(super) fn begin(&self, key: MemberKey, beat: BootTime) {
        if let Some(before) = self.0.insert(key, Presence::new(beat)) {
            before.call();
        }
    }

    /// Makes sure that there is one.
    pub(super) fn take_up(&self, key: MemberKey, beat: BootTime) {
        self.0.entry(key).or_insert_with(|| Presence::new(beat));
    }

    /// The present one, with one stream more. Counted while the map's entry is held, so that nobody forgets it in between.
    pub(super) fn open_stream(&self, key: MemberKey, beat: BootTime) -> Arc<Presence> {
        let held = self.0.entry(key).or_insert_with(|| Presence::new(beat));
        held.streams.fetch_add(1, Ordering::AcqRel);
        held.beat(beat);
        held.clone()
    }

    pub(super) fn has(&self, key: &MemberKey) -> bool {
        self.0.contains_key(key)
    }

    /// Forgets a member that is still silent. None where it has beaten meanwhile.
    pub(super) fn forget_silent(
        &self,
        key: &MemberKey,
        now: BootTime,
        window: Duration,
    ) -> Option<Arc<Presence>> {
        let silent = |p: &Presence| now.since(BootTime(p.last_beat.load(Ordering::Acquire))) > window;
        self.0.remove_if(key, |_, p| silent(p)).map(|(_, p)| p)
    }

    /// Forgets a member whose last stream this presence saw. False where the member is there by another presence, having come
    /// back since, or by another stream.
    pub(super) fn forget_gone(&self, key: &MemberKey, presence: &Arc<Presence>) -> bool {
        let gone = |p: &Arc<Presence>| Arc::ptr_eq(p, presence) && p.streams.load(Ordering::Acquire) == 0;
        self.0.remove_if(key, |_, p| gone(p)).is_some()
    }

    /// Forgets a member that has left, by the presence that it was seen by.
    pub(super) fn forget(&self, key: &MemberKey, presence: &Arc<Presence>) {
        self.0.remove_if(key, |_, p| Arc::ptr_eq(p, presence));
    }

    /// Has one member look.
    pub(super) fn call(&self, key: &MemberKey) {
        if let Some(presence) = self.0.get(key) {
            presence.call();
        }
    }

    /// Tells one member that someone else has ended a lease of it.
    pub(super) fn lease_ended(&self, key: &MemberKey) {
        if let Some(presence) = self.0.get(key) {
            presence.leases_ended.fetch_add(1, Ordering::AcqRel);
            presence.call();
        }
    }

    pub(super) fn call_all(&self) {
        self.0.iter().for_each(|p| p.call());
    }

    /// Whether a token that is issued now is bound to the certificate: where it must be, or where one before it was.
    pub(super) fn pin(&self, key: &MemberKey, must: bool) -> bool {
        self.0.get(key).map_or(must, |p| p.pinned.fetch_or(must, Ordering::AcqRel) || must)
    }
}
