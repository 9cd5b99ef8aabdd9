//! The registry has all fences, and finds them by name.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use hashbrown::HashTable;
use tokio::sync::broadcast;
use triomphe::{Arc, ThinArc};

use super::{
    Lowering, Seq, Stand, Subscription,
    stand::{Fence, FenceSet},
};
use crate::{
    clock::LeaseTime,
    limits::FEED_BACKLOG,
    name::FenceName,
    sync::{AtomicU64, Mutex, MutexGuard},
};

/// A counter that is raised before each sweep of the leases, for example after a change of policy or catalog, or after a lock on
/// all SPIFFE IDs with one prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// The answer to a lowering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lowered {
    pub seq: Seq,
    /// The number of live leases behind the fence.
    pub behind: u64,
    /// False if the name was lowered before and no stand was taken since then. `seq` is then the Seq of the earlier
    /// lowering.
    pub first: bool,
}

/// The fences by name.
///
/// A mutex orders [`Registry::stand`] and [`Registry::lower`]. It is never held across an await or while another lock
/// is taken. Checks do not use the mutex: they load the fences of a [`Stand`].
///
/// A check after an acknowledged lowering cannot miss the lowering. `lower` stores with Release before it returns. A
/// thread that acts on the acknowledgement runs after the store, so the Acquire load of its check sees the store.
pub struct Registry {
    inner: Mutex<RegistryState>,
    revision: AtomicU64,
    pub(super) feed: broadcast::Sender<Lowering>,
}

#[derive(Default)]
pub(super) struct RegistryState {
    pub(super) seq: Seq,
    /// The fences by name. The name is in the fence.
    pub(super) by_name: HashTable<Arc<Fence>>,
    /// The sets of fences. All stands behind the same fences share one set. Two fences are the same if their addresses are.
    pub(super) sets: HashTable<FenceSet>,
    /// The recent lowerings, oldest first, kept until no token issued before them can be valid.
    recent: VecDeque<(LeaseTime, Arc<Fence>)>,
    /// The hash has a random key, because callers choose the names and could choose names that collide.
    hasher: RandomState,
}

impl Registry {
    /// Makes a registry that begins after the last Seq in the ledger.
    pub fn new(start: Seq) -> Self {
        Registry {
            inner: Mutex::new(RegistryState { seq: start, ..RegistryState::default() }),
            revision: AtomicU64::new(1),
            feed: broadcast::Sender::new(FEED_BACKLOG),
        }
    }

    // A panic cannot leave the state incomplete, because every change is complete before the guard is dropped.
    pub(super) fn lock(&self) -> MutexGuard<'_, RegistryState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a stand behind all of these names at one instant. The order of the names and repeated names do not matter.
    ///
    /// Take the stand before reading jobs, locks, catalog and policy. If one of them changes after it was read, the lowering
    /// that follows the change ends the stand.
    pub fn stand(&self, names: impl IntoIterator<Item = FenceName>) -> Stand {
        let names = sorted(names);
        let mut inner = self.lock();
        let stand = inner.make_stand(&names);
        for f in stand.fences() {
            f.stood_since.store(true, Ordering::Relaxed);
        }
        stand
    }

    /// Takes a stand behind the names of another stand, like [`Registry::stand`]. The other stand has the fences, so
    /// they are not looked up.
    #[cfg(any(test, feature = "server"))]
    pub fn stand_again(&self, other: &Stand) -> Stand {
        let inner = self.lock();
        for f in other.fences() {
            f.stood_since.store(true, Ordering::Relaxed);
        }
        Stand { at: inner.seq, set: other.set.clone() }
    }

    /// Returns a stand that only observes lowerings. It does not count for [`Lowered::first`].
    pub fn observe(&self, names: impl IntoIterator<Item = FenceName>) -> Stand {
        let names = sorted(names);
        self.lock().make_stand(&names)
    }

    /// Ends all leases behind a name, however many there are, with one atomic write and one event in the feed.
    ///
    /// A name without a fence gets one. If no stand was taken behind a name since its last lowering, the answer of that
    /// lowering is repeated.
    pub fn lower(&self, name: &FenceName, now: LeaseTime) -> Lowered {
        let mut inner = self.lock();
        let fence = inner.fence(name);
        let before = fence.lowered.load(Ordering::Relaxed);
        let behind = fence.behind();
        if before > 0 && !fence.stood_since.load(Ordering::Relaxed) {
            return Lowered { seq: Seq(before), behind, first: false };
        }
        let seq = Seq(inner.seq.0.saturating_add(1));
        inner.seq = seq;
        fence.stood_since.store(false, Ordering::Relaxed);
        fence.lowered.store(seq.0, Ordering::Release);
        inner.recent.push_back((now, fence));
        // Send under the mutex, so that the order of the feed is the order of Seq. A send without a receiver is not an
        // error.
        let _ = self.feed.send(Lowering::new(seq, name.clone()));
        Lowered { seq, behind, first: true }
    }

    /// Returns the number of live leases behind a name.
    pub fn behind(&self, name: &FenceName) -> u64 {
        self.lock().find(name).map_or(0, |f| f.behind())
    }

    /// Returns the present count of lowerings.
    pub fn seq(&self) -> Seq {
        self.lock().seq
    }

    /// Returns the present revision. The code that issues credentials reads the revision before it computes the names of a
    /// request, and compares the revision after it has inserted the lease.
    pub fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    /// Raises the revision. Call it after a change and before the sweep for that change.
    pub fn raise_revision(&self) -> Revision {
        Revision(self.revision.fetch_add(1, Ordering::AcqRel).saturating_add(1))
    }

    /// Returns every lowering from now on, without earlier lowerings.
    pub fn listen(&self) -> broadcast::Receiver<Lowering> {
        self.feed.subscribe()
    }

    /// Returns all lowered names that are kept, and every later lowering.
    pub fn subscribe(&self) -> Subscription {
        let inner = self.lock();
        let snapshot = inner
            .by_name
            .iter()
            .filter_map(|f| {
                let seq = f.lowered.load(Ordering::Relaxed);
                (seq > 0).then(|| (f.name.clone(), Seq(seq)))
            })
            .collect();
        Subscription { snapshot, at: inner.seq, lowerings: self.feed.subscribe() }
    }

    /// Drops the fences that no stand uses and whose lowering is older than any token can be. Returns their number.
    ///
    /// `retention` is the longest token life in this epoch, plus a margin.
    pub fn prune(&self, now: LeaseTime, retention: Duration) -> usize {
        let mut inner = self.lock();
        while inner.recent.front().is_some_and(|(at, _)| now.since(*at) > retention) {
            inner.recent.pop_front();
        }
        // The map's own reference counts as one, and new references are made only under this mutex. So a count of one
        // means that nothing else uses the set or fence, and that nothing can begin to use it now.
        inner.sets.retain(|set| ThinArc::strong_count(set) > 1);
        let before = inner.by_name.len();
        inner.by_name.retain(|fence| Arc::strong_count(fence) > 1);
        before.saturating_sub(inner.by_name.len())
    }

    /// Returns the number of names that are kept.
    pub fn len(&self) -> usize {
        self.lock().by_name.len()
    }

    /// Whether no name is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn sorted(names: impl IntoIterator<Item = FenceName>) -> Vec<FenceName> {
    let mut names: Vec<FenceName> = names.into_iter().collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl RegistryState {
    fn make_stand(&mut self, names: &[FenceName]) -> Stand {
        let fences: Vec<Arc<Fence>> = names.iter().map(|name| self.fence(name)).collect();
        let RegistryState { seq, sets, hasher, .. } = self;
        let hash_of = |fences: &[Arc<Fence>]| {
            let mut state = hasher.build_hasher();
            fences.iter().for_each(|f| Arc::as_ptr(f).hash(&mut state));
            state.finish()
        };
        let is_this = |set: &FenceSet| {
            set.slice.len() == fences.len() && set.slice.iter().zip(&fences).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        let entry = sets.entry(hash_of(&fences), is_this, |set| hash_of(&set.slice));
        let set = entry.or_insert_with(|| ThinArc::from_header_and_iter((), fences.iter().cloned()));
        Stand { at: *seq, set: set.get().clone() }
    }

    fn find(&self, name: &FenceName) -> Option<&Arc<Fence>> {
        self.by_name.find(self.hasher.hash_one(name), |f| f.name == *name)
    }

    pub(super) fn fence(&mut self, name: &FenceName) -> Arc<Fence> {
        let RegistryState { by_name, hasher, .. } = self;
        let entry = by_name.entry(hasher.hash_one(name), |f| f.name == *name, |f| hasher.hash_one(&f.name));
        entry.or_insert_with(|| Arc::new(Fence::new(name.clone()))).get().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: LeaseTime = LeaseTime(1_000_000);

    fn name(text: &str) -> FenceName {
        text.parse().unwrap()
    }

    #[test]
    fn a_stand_lists_exactly_the_names_lowered_since() {
        let r = Registry::new(Seq(0));
        r.lower(&name("tenant:before"), NOW);
        let s = r.stand([name("tenant:before"), name("tenant:a"), name("tenant:b"), name("tenant:c")]);
        assert_eq!(s.lowered_names().count(), 0);
        #[cfg(feature = "server")]
        assert_eq!(s.last_lowering(), Seq(1), "before it was taken");
        let seq = r.lower(&name("tenant:a"), NOW).seq;
        let last = r.lower(&name("tenant:c"), NOW).seq;
        #[cfg(feature = "server")]
        assert_eq!(s.last_lowering(), last);
        assert_eq!(last, Seq(3));
        let lowered: Vec<&FenceName> = s.lowered_names().collect();
        assert_eq!(lowered, [&name("tenant:a"), &name("tenant:c")]);
        assert_eq!(seq.to_string(), "2");
    }

    // Proves law 11.
    #[test]
    fn the_fence_that_was_lowered_first_is_named() {
        let r = Registry::new(Seq(0));
        let s = r.stand([name("tenant:a"), name("tenant:b"), name("tenant:c")]);
        // The name that is lowered first is in the middle of the name order.
        for (lowered, seq) in [("tenant:b", 1), ("tenant:c", 2), ("tenant:a", 3)] {
            assert_eq!(r.lower(&name(lowered), NOW).seq, Seq(seq));
            assert_eq!(s.lowered(), Some((&name("tenant:b"), Seq(1))));
        }
        // A lowering before a stand is not the cause of its end.
        let later = r.stand([name("tenant:a"), name("tenant:b"), name("tenant:c")]);
        assert_eq!(later.lowered(), None);
        r.lower(&name("tenant:c"), NOW);
        assert_eq!(later.lowered(), Some((&name("tenant:c"), Seq(4))));
    }

    #[test]
    fn an_observer_makes_no_second_lowering() {
        let r = Registry::new(Seq(0));
        let name = FenceName::epoch();
        let first = r.lower(&name, LeaseTime(1));
        let seen = r.observe([name.clone()]);
        assert!(seen.is_up());
        assert_eq!(r.lower(&name, LeaseTime(2)), Lowered { first: false, ..first });
        let stand = r.stand([name.clone()]);
        assert!(r.lower(&name, LeaseTime(3)).first && !stand.is_up() && !seen.is_up());
    }

    #[test]
    fn a_stand_ends_with_any_of_its_names_and_with_no_other() {
        let r = Registry::new(Seq(0));
        let s = r.stand([name("tenant:acme"), name("dataset:acme/d@v1")]);
        r.lower(&name("tenant:other"), NOW);
        assert!(s.is_up());
        let lowered = r.lower(&name("dataset:acme/d@v1"), NOW);
        assert!(!s.is_up());
        assert_eq!(s.lowered(), Some((&name("dataset:acme/d@v1"), lowered.seq)));
    }

    #[test]
    fn a_new_stand_is_good_and_the_old_one_stays_dead() {
        let r = Registry::new(Seq(0));
        let old = r.stand([name("tenant:acme")]);
        r.lower(&name("tenant:acme"), NOW);
        let new = r.stand([name("tenant:acme")]);
        assert!(new.is_up() && !old.is_up());
        r.lower(&name("tenant:acme"), NOW);
        assert!(!new.is_up() && !old.is_up());
    }

    // A stand behind the names of another stand is equal to a stand that was taken by name, also after a pruning.
    #[test]
    fn a_stand_is_taken_again_behind_the_same_fences() {
        let r = Registry::new(Seq(0));
        let old = r.stand([name("tenant:acme"), name("tenant:other")]);
        let first = r.lower(&name("tenant:acme"), NOW);
        r.prune(NOW.plus(Duration::from_secs(3_600)), Duration::from_secs(60));
        let again = r.stand_again(&old);
        assert!(again.is_up() && !old.is_up());
        assert_eq!((again.at(), again.place()), (first.seq, old.place()));
        let second = r.lower(&name("tenant:acme"), NOW);
        assert!(second.first && second.seq > first.seq && !again.is_up());
    }

    #[test]
    fn lowering_twice_is_one_lowering_until_the_next_stand() {
        let r = Registry::new(Seq(0));
        let first = r.lower(&name("tenant:acme"), NOW);
        let second = r.lower(&name("tenant:acme"), NOW);
        assert!(first.first && !second.first);
        assert_eq!(first.seq, second.seq);
        let _s = r.stand([name("tenant:acme")]);
        assert!(r.lower(&name("tenant:acme"), NOW).seq > first.seq);
    }

    #[test]
    fn a_new_name_is_lowered_and_sent_to_subscribers() {
        let r = Registry::new(Seq(41));
        let mut sub = r.subscribe();
        assert_eq!((sub.snapshot.len(), sub.at), (0, Seq(41)));
        r.lower(&name("tenant:acme"), NOW);
        assert_eq!(sub.lowerings.try_recv().unwrap(), Lowering::new(Seq(42), name("tenant:acme")));
        assert_eq!(r.subscribe().snapshot, [(name("tenant:acme"), Seq(42))]);
    }

    #[test]
    fn a_fence_is_pruned_without_holders_and_after_its_time() {
        let r = Registry::new(Seq(0));
        let keep = Duration::from_secs(60);
        let late = NOW.plus(Duration::from_secs(3_600));
        let s = r.stand([name("tenant:acme"), name("tenant:other")]);
        r.lower(&name("tenant:acme"), NOW);
        assert_eq!(r.prune(NOW, keep), 0, "a stand holds both");
        drop(s);
        assert_eq!(r.prune(NOW, keep), 1, "the one never lowered goes, the recent lowering stays");
        assert_eq!(r.prune(late, keep), 1);
        let s = r.stand([name("tenant:acme")]);
        r.lower(&name("tenant:acme"), NOW);
        assert_eq!(r.prune(late, keep), 0, "a stand holds it, however old its lowering is");
        assert!(!s.is_up());
        drop(s);
        assert_eq!(r.prune(late, keep), 1);
        assert!(r.is_empty());
    }

    #[test]
    fn a_fence_that_was_lowered_again_is_kept_by_its_last_lowering() {
        let r = Registry::new(Seq(0));
        let (keep, acme) = (Duration::from_secs(60), name("tenant:acme"));
        r.lower(&acme, NOW);
        drop(r.stand([acme.clone()]));
        let again = NOW.plus(Duration::from_secs(50));
        let last = r.lower(&acme, again).seq;
        assert_eq!(
            r.prune(NOW.plus(Duration::from_secs(61)), keep),
            0,
            "the first lowering is old, the last is not"
        );
        assert_eq!(r.subscribe().snapshot, [(acme, last)]);
        assert_eq!(r.prune(again.plus(Duration::from_secs(61)), keep), 1);
    }

    #[test]
    fn a_snapshot_names_only_lowered_fences() {
        let r = Registry::new(Seq(6));
        let s = r.stand([name("tenant:acme"), name("tenant:other")]);
        assert_eq!((r.subscribe().snapshot.len(), r.seq(), s.at()), (0, Seq(6), Seq(6)));
        r.lower(&name("tenant:acme"), NOW);
        assert_eq!(r.subscribe().snapshot, [(name("tenant:acme"), Seq(7))]);
        assert_eq!(r.seq(), Seq(7));
    }

    #[test]
    fn stands_on_the_same_names_share_one_set() {
        let r = Registry::new(Seq(0));
        let a = r.stand([name("tenant:a"), name("tenant:b")]);
        let b = r.stand([name("tenant:b"), name("tenant:a"), name("tenant:b")]);
        assert_eq!(a.place(), b.place());
        let c = r.stand([name("tenant:a")]);
        assert_eq!(a.place(), b.place());
        assert_ne!(a.place(), c.place());
        assert_eq!(b.names().collect::<Vec<_>>(), [&name("tenant:a"), &name("tenant:b")]);
    }

    #[test]
    fn pruning_drops_only_sets_without_a_stand() {
        let r = Registry::new(Seq(0));
        let keep = Duration::from_secs(60);
        let a = r.stand([name("tenant:a"), name("tenant:b")]);
        drop(r.stand([name("tenant:c")]));
        assert_eq!((r.prune(NOW, keep), r.len(), r.lock().sets.len()), (1, 2, 1));
        assert!(!r.is_empty());
        let b = r.stand([name("tenant:a"), name("tenant:b")]);
        assert_eq!(a.place(), b.place(), "who stands there still shares it");
        drop((a, b));
        assert_eq!((r.prune(NOW, keep), r.len(), r.lock().sets.len()), (2, 0, 0));
    }

    #[test]
    fn behind_counts_the_live_leases_of_all_stands() {
        let r = Registry::new(Seq(0));
        let s = r.stand([name("tenant:a"), name("tenant:b")]);
        s.enter();
        s.enter();
        assert_eq!(r.behind(&name("tenant:a")), 2);
        s.leave(1);
        assert_eq!(r.lower(&name("tenant:b"), NOW).behind, 1);
        assert_eq!(r.behind(&name("tenant:c")), 0);
    }
}
