//! The turns of the listings of directories. Each listing uses the disk and takes memory, so few run at once.
//!
//! One holder or one tenant can have only some of the turns. When a listing ends, the tenant with the fewest listings is next. So
//! a tenant that lists large folders over and over delays another tenant only until one listing ends.

use std::sync::Arc;

use super::{list_work::ListWork, store::StoreError};
use crate::{
    limits::{
        GATEWAY_LISTINGS_MAX, GATEWAY_WALKS_IN_ALL_MAX, GATEWAY_WALKS_IN_ALL_PER_TENANT_MAX,
        GATEWAY_WALKS_MAX, GATEWAY_WALKS_PER_HOLDER_MAX, GATEWAY_WALKS_PER_TENANT_MAX,
    },
    link::{TurnLimits, TurnPlace, TurnQueue, WhenFull},
    name::{SpiffeId, TenantName},
};

/// The turns in one directory, and those in all directories of the gateway. A clone is a few pointers.
#[derive(Clone, Debug)]
pub(super) struct WalkTurns {
    holders: Arc<TurnQueue<SpiffeId>>,
    here: Arc<TurnQueue<TenantName>>,
    everywhere: Arc<TurnQueue<TenantName>>,
}

/// The turn of one listing. The turn ends when this value is dropped.
#[derive(Debug)]
pub(super) struct WalkPermit {
    _holder: TurnPlace<SpiffeId>,
    _here: TurnPlace<TenantName>,
    _everywhere: TurnPlace<TenantName>,
}

impl Default for WalkTurns {
    fn default() -> Self {
        WalkTurns {
            // A holder with many listings must not delay the other holders of its tenant.
            holders: TurnQueue::new(turns(GATEWAY_LISTINGS_MAX, GATEWAY_WALKS_PER_HOLDER_MAX)),
            here: Self::in_a_directory(),
            everywhere: TurnQueue::new(turns(GATEWAY_WALKS_IN_ALL_MAX, GATEWAY_WALKS_IN_ALL_PER_TENANT_MAX)),
        }
    }
}

impl WalkTurns {
    /// Returns the turns of one more directory of the same gateway.
    pub(super) fn in_one_more_directory(&self) -> Self {
        WalkTurns { here: Self::in_a_directory(), ..self.clone() }
    }

    fn in_a_directory() -> Arc<TurnQueue<TenantName>> {
        TurnQueue::new(turns(GATEWAY_WALKS_MAX, GATEWAY_WALKS_PER_TENANT_MAX))
    }

    /// Waits for the turn of a listing.
    ///
    /// # Errors
    ///
    /// Too many listings wait already.
    pub(super) async fn take(&self, work: &ListWork) -> Result<WalkPermit, StoreError> {
        // All listings enter the three queues in this order, so two listings never wait for each other.
        Ok(WalkPermit {
            _holder: turn(&self.holders, &work.holder).await?,
            _here: turn(&self.here, &work.tenant).await?,
            _everywhere: turn(&self.everywhere, &work.tenant).await?,
        })
    }
}

/// Returns the limits of a queue. At most [`GATEWAY_LISTINGS_MAX`] listings wait, because no more are under way at once.
fn turns(used_max: usize, used_per_key_max: usize) -> TurnLimits {
    TurnLimits {
        used_max,
        used_per_key_max,
        waiting_max: GATEWAY_LISTINGS_MAX,
        per_key_max: GATEWAY_LISTINGS_MAX,
        when_full: WhenFull::Waits,
    }
}

async fn turn<K: Clone + Ord + std::hash::Hash>(
    queue: &Arc<TurnQueue<K>>,
    key: &K,
) -> Result<TurnPlace<K>, StoreError> {
    let mut place = queue.enter(key.clone()).map_err(|_| StoreError::TooManyListings)?;
    place.turn().await.map_err(|_| StoreError::TooManyListings)?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn work(holder: &str, tenant: &str) -> ListWork {
        let mut work = ListWork::of(1, Box::new(|| Ok(())));
        work.holder = format!("spiffe://a.example/{holder}").parse().unwrap();
        work.tenant = tenant.parse().unwrap();
        work
    }

    // There is one limit for a holder, one for its tenant in each directory, and one for its tenant in all directories. Other
    // tenants get the rest.
    #[test]
    fn holders_and_tenants_have_shares_of_the_turns() {
        let turns = WalkTurns::default();
        let take = |turns: &WalkTurns, holder: &str, tenant: &str| {
            let work = work(holder, tenant);
            turns.take(&work).now_or_never().map(Result::unwrap)
        };
        let held: Vec<_> = (0..4).filter_map(|_| take(&turns, "one", "acme")).collect();
        assert_eq!(held.len(), GATEWAY_WALKS_PER_HOLDER_MAX);
        assert!(take(&turns, "two", "acme").is_none(), "the tenant has its share of this directory");
        let mut more: Vec<_> = (0..20)
            .filter_map(|n| take(&turns.in_one_more_directory(), &format!("more-{n}"), "acme"))
            .collect();
        assert_eq!(held.len() + more.len(), GATEWAY_WALKS_IN_ALL_PER_TENANT_MAX);
        let _globex = take(&turns, "one-of-globex", "globex").unwrap();
        more.pop();
        assert!(take(&turns.in_one_more_directory(), "last", "acme").is_some());
    }

    // A tenant without listings is next, although others have waited longer. Within a tenant, a holder without listings is next,
    // although another holder has waited longer.
    #[tokio::test]
    async fn a_newcomer_is_the_next_to_list() {
        let turns = WalkTurns::default();
        let (acme, globex) = (work("one", "acme"), work("one-of-globex", "globex"));
        let mut held = vec![turns.take(&acme).await.unwrap(), turns.take(&acme).await.unwrap()];
        let of_globex = [turns.take(&globex).await.unwrap(), turns.take(&globex).await.unwrap()];
        let (order, mut done) = tokio::sync::mpsc::unbounded_channel();
        for (holder, tenant) in [("one", "acme"), ("one", "acme"), ("two", "acme"), ("three", "initech")] {
            let (turns, order, work) = (turns.clone(), order.clone(), work(holder, tenant));
            tokio::spawn(async move {
                let permit = turns.take(&work).await.unwrap();
                order.send((holder, permit)).unwrap();
            });
            tokio::task::yield_now().await;
        }
        held.pop();
        let (first, _first) = done.recv().await.unwrap();
        held.pop();
        let (second, _second) = done.recv().await.unwrap();
        assert_eq!((first, second), ("three", "two"));
        drop(of_globex);
        assert_eq!(done.recv().await.unwrap().0, "one");
    }
}
