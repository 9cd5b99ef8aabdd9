//! A stand: a place behind a set of fences, taken at one Seq.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use crate::{
    name::FenceName,
    sync::{AtomicBool, AtomicU64},
};

/// The count of lowerings. Goes on over restarts; 0 is before the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name and the Seq of its last lowering. Written under the registry's mutex alone, read by anyone.
#[derive(Debug)]
pub(super) struct Fence {
    pub(super) name: FenceName,
    /// The Seq of the last lowering; 0 where there was none. Stored with Release, so that whoever sees it by an Acquire load
    /// also sees the change of state that came before the lowering.
    pub(super) lowered: AtomicU64,
    /// Whether anybody took a stand here since the last lowering. Touched under the registry's mutex alone.
    pub(super) stood_since: AtomicBool,
    /// Live leases behind this fence.
    pub(super) behind: AtomicU64,
}

/// The fences of one set of names. Leases of one member, half and set of resources share one.
#[derive(Debug)]
pub(super) struct FenceSet {
    pub(super) fences: Box<[Arc<Fence>]>,
}

/// A place behind fences, taken before the decision that it is for.
///
/// Not `Clone`: it goes into one Grant and from there into one lease.
#[derive(Debug)]
#[must_use = "a stand is taken in order to be looked at again"]
pub struct Stand {
    pub(super) at: Seq,
    pub(super) set: Arc<FenceSet>,
}

impl Stand {
    /// The Seq at which it was taken.
    pub fn at(&self) -> Seq {
        self.at
    }

    /// Whether no fence was lowered since. A dozen Acquire loads, no lock.
    pub fn is_up(&self) -> bool {
        self.set.fences.iter().all(|f| f.lowered.load(Ordering::Acquire) <= self.at.0)
    }

    /// The fence lowered since with the lowest Seq, if any was.
    pub fn lowered(&self) -> Option<(&FenceName, Seq)> {
        self.set
            .fences
            .iter()
            .map(|f| (&f.name, f.lowered.load(Ordering::Acquire)))
            .filter(|(_, seq)| *seq > self.at.0)
            .min_by_key(|(_, seq)| *seq)
            .map(|(name, seq)| (name, Seq(seq)))
    }

    /// The last lowering of any of its fences, before it was taken or after.
    #[cfg(feature = "server")]
    pub(crate) fn last_lowering(&self) -> Seq {
        Seq(self.set.fences.iter().map(|f| f.lowered.load(Ordering::Acquire)).max().unwrap_or(0))
    }

    /// The same number for all stands behind the same names, as long as one of them is held.
    #[cfg(feature = "server")]
    pub(crate) fn place(&self) -> usize {
        Arc::as_ptr(&self.set).addr()
    }

    /// All names lowered since, in no order.
    pub fn lowered_names(&self) -> impl Iterator<Item = &FenceName> {
        self.set.fences.iter().filter(|f| f.lowered.load(Ordering::Acquire) > self.at.0).map(|f| &f.name)
    }

    /// The names that it stands behind.
    pub fn names(&self) -> impl Iterator<Item = &FenceName> {
        self.set.fences.iter().map(|f| &f.name)
    }

    /// Counts one live lease behind each fence.
    #[cfg(any(test, feature = "server"))]
    pub(crate) fn enter(&self) {
        for f in &self.set.fences {
            f.behind.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes one live lease off each fence's count. Once for each [`Stand::enter`].
    #[cfg(any(test, feature = "server"))]
    pub(crate) fn leave(&self) {
        for f in &self.set.fences {
            f.behind.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
