//! The work of a listing. It takes a slot, ends with its access, and visits a bounded number of entries.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use s3s::S3Result;

use super::{
    caller::GatewayCaller,
    live_access::LiveAccess,
    refusal::refused,
    store::{FinalCheck, StoreError},
};
use crate::{
    limits::GATEWAY_WALK_ENTRIES_MAX,
    link::Share,
    reason::{Reason, Refusal},
};

/// A listing of a caller. It keeps its slot until it is dropped.
pub(super) struct Listing {
    left: Arc<AtomicUsize>,
    _place: Share,
}

impl Listing {
    /// Takes a slot for a listing.
    ///
    /// # Errors
    ///
    /// The caller, or all callers together, have too many listings under way.
    pub(super) fn begin(caller: &GatewayCaller) -> S3Result<Self> {
        let place = caller.rooms.listings.take(&caller.holder, 1).map_err(|_| {
            let text = "too many listings are under way: try again, with fewer at once";
            refused(&Refusal::new(Reason::Overloaded, text))
        })?;
        Ok(Listing { left: Arc::new(AtomicUsize::new(GATEWAY_WALK_ENTRIES_MAX)), _place: place })
    }

    /// Returns the part of the work that needs this access. All parts share one bound.
    pub(super) fn with(&self, access: &LiveAccess) -> ListWork {
        let access = access.clone();
        ListWork { left: self.left.clone(), look: Arc::new(Box::new(move || access.check())) }
    }
}

/// The remaining work that a store may do for a listing.
#[derive(Clone)]
pub(super) struct ListWork {
    left: Arc<AtomicUsize>,
    look: Arc<FinalCheck>,
}

impl ListWork {
    /// Checks that the listing may go on, and counts the entries that it visits next.
    ///
    /// # Errors
    ///
    /// The access ended, or the listing has visited too many entries.
    pub(super) fn visit(&self, entries: usize) -> Result<(), StoreError> {
        (self.look)().map_err(StoreError::Ended)?;
        let less = |left: usize| left.checked_sub(entries);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::TooManyEntries),
        }
    }

    #[cfg(test)]
    pub(super) fn of(entries: usize, look: FinalCheck) -> Self {
        ListWork { left: Arc::new(AtomicUsize::new(entries)), look: Arc::new(look) }
    }
}

impl fmt::Debug for ListWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ListWork({} entries left)", self.left.load(Ordering::Relaxed))
    }
}
