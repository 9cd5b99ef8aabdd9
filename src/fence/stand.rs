//! A stand: a set of fences, and the Seq at the moment when the stand was taken.

use std::sync::atomic::Ordering;

use triomphe::{Arc, ThinArc};

use super::seq::Seq;
use crate::{
    name::FenceName,
    sync::{AtomicBool, AtomicU32, AtomicU64},
};

/// A name and the Seq of its last lowering. The Seq is written only under the registry's mutex. All threads may read it.
///
/// There are about three fences for each member. A fence takes 40 bytes with the reference counts of its `Arc`, and the text of
/// the name.
#[derive(Debug)]
pub(super) struct Fence {
    pub(super) name: FenceName,
    /// The Seq of the last lowering. 0 if there was none. Stored with Release, so that a thread that sees it by an
    /// Acquire load also sees the change of state that came before the lowering.
    pub(super) lowered: AtomicU64,
    /// The number of live leases behind this fence. It cannot overflow, because no machine has memory for so many
    /// leases.
    pub(super) behind: AtomicU32,
    /// Whether a stand was taken behind this fence since the last lowering. Used only under the registry's mutex.
    pub(super) stood_since: AtomicBool,
}

impl Fence {
    /// Makes a fence that has no stand yet.
    pub(super) fn new(name: FenceName) -> Self {
        Fence {
            name,
            lowered: AtomicU64::new(0),
            behind: AtomicU32::new(0),
            stood_since: AtomicBool::new(false),
        }
    }

    pub(super) fn behind(&self) -> u64 {
        self.behind.load(Ordering::Relaxed).into()
    }
}

/// The fences of one set of names, sorted by name. Leases with the same member, half and resources share one set. The
/// fences are stored in the set itself, because each further pointer would be one more wait for memory in a check.
pub(super) type FenceSet = ThinArc<(), Arc<Fence>>;

/// A set of fences, and the Seq at the moment when the stand was taken. A stand is taken before the decision that needs it.
///
/// It is not `Clone`, because it moves into one Grant and from there into one lease.
#[derive(Debug)]
#[must_use = "a stand is taken in order to be checked later"]
pub struct Stand {
    pub(super) at: Seq,
    pub(super) set: FenceSet,
}

impl Stand {
    pub(super) fn fences(&self) -> &[Arc<Fence>] {
        &self.set.slice
    }

    /// Returns the Seq at which the stand was taken.
    pub fn at(&self) -> Seq {
        self.at
    }

    /// Whether no fence was lowered since the stand was taken. Takes about a dozen Acquire loads and no lock.
    pub fn is_up(&self) -> bool {
        self.fences().iter().all(|f| f.lowered.load(Ordering::Acquire) <= self.at.0)
    }

    /// Returns the fence that was lowered first since the stand was taken, if a fence was lowered.
    pub fn lowered(&self) -> Option<(&FenceName, Seq)> {
        self.fences()
            .iter()
            .map(|f| (&f.name, f.lowered.load(Ordering::Acquire)))
            .filter(|(_, seq)| *seq > self.at.0)
            .min_by_key(|(_, seq)| *seq)
            .map(|(name, seq)| (name, Seq(seq)))
    }

    /// Returns the last lowering of all fences of the stand, before or after it was taken.
    #[cfg(feature = "server")]
    pub(crate) fn last_lowering(&self) -> Seq {
        Seq(self.fences().iter().map(|f| f.lowered.load(Ordering::Acquire)).max().unwrap_or(0))
    }

    /// Returns a number that is equal for all stands behind the same names, as long as one of these stands exists.
    #[cfg(feature = "server")]
    pub(crate) fn place(&self) -> usize {
        self.set.as_ptr().addr()
    }

    /// Returns all names that were lowered since the stand was taken, in no order.
    pub fn lowered_names(&self) -> impl Iterator<Item = &FenceName> {
        self.fences().iter().filter(|f| f.lowered.load(Ordering::Acquire) > self.at.0).map(|f| &f.name)
    }

    /// Returns the names of the stand's fences.
    pub fn names(&self) -> impl Iterator<Item = &FenceName> {
        self.fences().iter().map(|f| &f.name)
    }

    /// Whether the stand is behind a name.
    #[cfg(feature = "server")]
    pub fn is_behind(&self, name: &FenceName) -> bool {
        self.names().any(|n| n == name)
    }

    /// Counts one live lease behind each fence.
    #[cfg(any(test, feature = "server"))]
    pub(crate) fn enter(&self) {
        for f in self.fences() {
            f.behind.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Subtracts leases from the count of each fence. Call it once for each [`Stand::enter`].
    #[cfg(any(test, feature = "server"))]
    pub(crate) fn leave(&self, leases: usize) {
        let leases = u32::try_from(leases).unwrap_or(u32::MAX);
        for f in self.fences() {
            f.behind.fetch_sub(leases, Ordering::Relaxed);
        }
    }
}
