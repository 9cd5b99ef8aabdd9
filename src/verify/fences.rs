//! The lowered fences that the feed reported.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::{
    clock::{BootTime, Wall},
    fence::Seq,
    limits::FEED_FENCES_MAX,
    token::FenceTag,
};

/// The number of parts of the map. Each part has a lock, so a check waits only while the part with its fence changes.
const SHARDS: usize = 64;

/// The lowered fences, each with the Seq of its last lowering.
///
/// The follower writes this map, and every check reads it. When [`Fences::lower`] has returned, every later read sees the
/// lowering, because both take the lock of the fence's shard.
pub(super) struct Fences {
    shards: Box<[RwLock<HashMap<FenceTag, LastLowering>>]>,
    hasher: RandomState,
    count: AtomicUsize,
    /// The time before which lowerings may be missing, in milliseconds of the daemon's wall clock. Tokens that were issued
    /// before this time cannot be checked.
    complete_since: AtomicU64,
}

#[derive(Clone, Copy)]
struct LastLowering {
    seq: Seq,
    received: BootTime,
}

/// The error if more fences are lowered than can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {FEED_FENCES_MAX} fences are lowered")]
pub(super) struct TooMany;

impl Fences {
    pub(super) fn new(complete_since: Wall) -> Self {
        Fences {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
            count: AtomicUsize::new(0),
            complete_since: AtomicU64::new(complete_since.0),
        }
    }

    /// Adds a lowering. If the fence has a larger Seq, that Seq stays.
    pub(super) fn lower(&self, tag: FenceTag, seq: Seq, received: BootTime) -> Result<(), TooMany> {
        let Some(shard) = self.shard(tag) else { return Err(TooMany) };
        let mut shard = write(shard);
        if let Some(known) = shard.get_mut(&tag) {
            *known = LastLowering { seq: known.seq.max(seq), received };
            return Ok(());
        }
        if self.count.load(Ordering::Relaxed) >= FEED_FENCES_MAX {
            return Err(TooMany);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        shard.insert(tag, LastLowering { seq, received });
        Ok(())
    }

    /// Finds the fence of this list that was lowered first after `stood_at`. Returns its index and Seq.
    pub(super) fn lowered_after(&self, tags: &[FenceTag], stood_at: Seq) -> Option<(usize, Seq)> {
        tags.iter()
            .enumerate()
            .filter_map(|(at, tag)| Some((at, read(self.shard(*tag)?).get(tag)?.seq)))
            .filter(|(_, seq)| *seq > stood_at)
            .min_by_key(|(_, seq)| *seq)
    }

    /// Returns the time from which every lowering is known.
    pub(super) fn complete_since(&self) -> Wall {
        Wall(self.complete_since.load(Ordering::Acquire))
    }

    /// Raises `complete_since` first, so that older tokens are refused. Then drops the lowerings that were received before
    /// `received_before`.
    pub(super) fn prune(&self, received_before: BootTime, complete_since: Wall) {
        self.complete_since.fetch_max(complete_since.0, Ordering::AcqRel);
        for shard in &self.shards {
            let mut shard = write(shard);
            let before = shard.len();
            shard.retain(|_, lowered| lowered.received >= received_before);
            self.count.fetch_sub(before.saturating_sub(shard.len()), Ordering::Relaxed);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn shard(&self, tag: FenceTag) -> Option<&RwLock<HashMap<FenceTag, LastLowering>>> {
        let hash = self.hasher.hash_one(tag);
        self.shards.get(usize::try_from(hash % SHARDS as u64).unwrap_or(0))
    }
}

// A panic elsewhere cannot leave a shard half changed, because each change is one call of the map.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    fn job(n: u8) -> FenceTag {
        FenceTag::from_bytes(&[n; 12]).unwrap()
    }

    // Proves law 11.
    #[test]
    fn the_first_lowering_after_the_stand_is_reported() {
        let fences = Fences::new(Wall(0));
        for (name, seq) in [(1, 5), (2, 9), (3, 7), (4, 3)] {
            fences.lower(job(name), Seq(seq), BootTime(0)).unwrap();
        }
        let names = [job(1), job(2), job(3), job(4), job(5)];
        let first =
            |stood_at| fences.lowered_after(&names, Seq(stood_at)).map(|(at, seq)| (names[at], seq.0));
        assert_eq!(first(0), Some((job(4), 3)));
        assert_eq!(
            first(5),
            Some((job(3), 7)),
            "a fence that was lowered at the stand's own Seq is not after it"
        );
        assert_eq!(first(8), Some((job(2), 9)));
        assert_eq!(first(9), None);
    }

    #[test]
    fn a_seq_never_goes_back() {
        let fences = Fences::new(Wall(0));
        fences.lower(job(1), Seq(9), BootTime(0)).unwrap();
        fences.lower(job(1), Seq(4), BootTime(0)).unwrap();
        assert!(fences.lowered_after(&[job(1)], Seq(8)).is_some());
        assert_eq!(fences.len(), 1);
    }

    #[test]
    fn past_the_limit_only_known_fences_are_taken() {
        let fences = Fences::new(Wall(0));
        fences.lower(job(1), Seq(1), BootTime(10)).unwrap();
        // One fence below the limit.
        fences.count.store(FEED_FENCES_MAX - 1, Ordering::Relaxed);
        assert_eq!(fences.lower(job(2), Seq(2), BootTime(20)), Ok(()));
        assert_eq!(fences.lower(job(3), Seq(3), BootTime(20)), Err(TooMany));
        assert_eq!(fences.lower(job(2), Seq(4), BootTime(20)), Ok(()));
        assert_eq!((fences.len(), fences.lowered_after(&[job(3)], Seq(0))), (FEED_FENCES_MAX, None));
        assert!(fences.lowered_after(&[job(2)], Seq(3)).is_some());
        fences.prune(BootTime(20), Wall(0));
        assert_eq!(fences.len(), FEED_FENCES_MAX - 1, "one was forgotten");
        assert_eq!(fences.lower(job(3), Seq(3), BootTime(20)), Ok(()));
    }

    #[test]
    fn forgetting_raises_the_time_since_which_all_is_known() {
        let fences = Fences::new(Wall(100));
        fences.lower(job(1), Seq(1), BootTime(10)).unwrap();
        fences.lower(job(2), Seq(2), BootTime(20)).unwrap();
        fences.prune(BootTime(20), Wall(500));
        assert_eq!((fences.len(), fences.complete_since()), (1, Wall(500)));
        assert!(fences.lowered_after(&[job(1)], Seq(0)).is_none());
        assert!(fences.lowered_after(&[job(2)], Seq(0)).is_some());
        fences.prune(BootTime(0), Wall(400));
        assert_eq!(fences.complete_since(), Wall(500), "it never goes back");
    }
}
