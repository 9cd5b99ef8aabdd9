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
    link::{Full, Share},
    name::{SpiffeId, TenantName},
    reason::{Reason, Refusal},
};

/// A listing of a caller. It keeps its slots until it is dropped.
pub(super) struct Listing {
    left: Arc<AtomicUsize>,
    holder: SpiffeId,
    _place: Share,
    _place_of_tenant: Option<Share<TenantName>>,
}

impl Listing {
    /// Takes two slots for a listing: a slot of the caller, and a slot of the tenant of the caller's job.
    ///
    /// # Errors
    ///
    /// The caller, its tenant, or all callers together, have too many listings under way.
    pub(super) fn begin(caller: &GatewayCaller) -> S3Result<Self> {
        let full = |_: Full| {
            let text = "too many listings are under way: try again, with fewer at once";
            refused(&Refusal::new(Reason::Overloaded, text))
        };
        let rooms = &caller.rooms;
        let tenant = caller.session.tokens.first().map(|token| &token.access.claims().lh.tenant);
        Ok(Listing {
            _place: rooms.listings.take(&caller.holder, 1).map_err(full)?,
            _place_of_tenant: match tenant {
                Some(tenant) => Some(rooms.listings_of_tenants.take(tenant, 1).map_err(full)?),
                None => None,
            },
            left: Arc::new(AtomicUsize::new(GATEWAY_WALK_ENTRIES_MAX)),
            holder: caller.holder.clone(),
        })
    }

    /// Returns the part of the work that needs this access. All parts share one bound.
    pub(super) fn with(&self, access: &LiveAccess) -> ListWork {
        let checked = access.clone();
        ListWork {
            left: self.left.clone(),
            look: Arc::new(Box::new(move || checked.check())),
            holder: self.holder.clone(),
            tenant: access.access().claims().lh.tenant.clone(),
        }
    }
}

/// The remaining work that a store may do for a listing.
#[derive(Clone)]
pub(super) struct ListWork {
    left: Arc<AtomicUsize>,
    look: Arc<FinalCheck>,
    pub(super) holder: SpiffeId,
    /// The tenant of the holder's job.
    pub(super) tenant: TenantName,
}

impl ListWork {
    /// Checks that the listing may go on, and counts entries.
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
        ListWork {
            left: Arc::new(AtomicUsize::new(entries)),
            look: Arc::new(look),
            holder: "spiffe://a.example/worker".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
        }
    }
}

impl fmt::Debug for ListWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ListWork({} entries left)", self.left.load(Ordering::Relaxed))
    }
}
