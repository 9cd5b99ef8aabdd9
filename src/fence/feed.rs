//! The feed of lowerings. Every subscriber gets all lowerings in order. The feed never waits for a subscriber.

use std::sync::{Arc, OnceLock};

use tokio::sync::broadcast;

use super::Seq;
use crate::name::{FenceName, TenantName};

/// One lowering of a fence.
#[derive(Clone, Debug)]
pub struct Lowering {
    /// The position of this lowering among all lowerings.
    pub seq: Seq,
    /// The name of the lowered fence.
    pub name: FenceName,
    /// The leases that this lowering concerns. The first subscriber that needs this value computes it for all
    /// subscribers.
    concern: Arc<OnceLock<Concern>>,
}

/// The leases that a lowering concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concern {
    /// All leases: the name belongs to no tenant, or its tenant is no longer known.
    All,
    /// The leases of one tenant's jobs.
    JobsOf(TenantName),
    /// The leases for one tenant's resources, in jobs of any tenant.
    ThingsOf(TenantName),
}

impl Lowering {
    /// Makes a lowering whose concern was not computed yet.
    pub fn new(seq: Seq, name: FenceName) -> Self {
        Lowering { seq, name, concern: Arc::default() }
    }

    /// Returns the leases that the lowering concerns. `find` is called at most once for each lowering, for all
    /// subscribers.
    pub fn concern(&self, find: impl FnOnce(&FenceName) -> Concern) -> &Concern {
        self.concern.get_or_init(|| find(&self.name))
    }
}

impl PartialEq for Lowering {
    fn eq(&self, other: &Self) -> bool {
        (self.seq, &self.name) == (other.seq, &other.name)
    }
}

impl Eq for Lowering {}

/// The names lowered so far, and every later lowering. No lowering is missing between the two.
#[derive(Debug)]
pub struct Subscription {
    /// Each lowered name that is still kept, with the Seq of its last lowering.
    pub snapshot: Vec<(FenceName, Seq)>,
    /// The Seq at which the snapshot was taken.
    pub at: Seq,
    /// Later lowerings. A receiver that lags past [`crate::limits::FEED_BACKLOG`] gets `Lagged` and starts over.
    pub lowerings: broadcast::Receiver<Lowering>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::LeaseTime, fence::Registry, limits::FEED_BACKLOG, name::HumanName};

    // Proves law 37.
    #[tokio::test]
    async fn two_thousand_idle_subscribers_hold_nothing_up() {
        let registry = Registry::new(Seq(0));
        let mut idle: Vec<Subscription> = (0..2_000).map(|_| registry.subscribe()).collect();
        let mut reader = registry.subscribe();
        let missed = 100;
        for n in 1..=FEED_BACKLOG + missed {
            let name: HumanName = format!("u{n}").parse().unwrap();
            let lowered = registry.lower(&FenceName::human(name), LeaseTime(1));
            // Each lowering takes effect and reaches the reader, although two thousand other subscribers do not read.
            let heard = reader.lowerings.try_recv().unwrap();
            assert_eq!((lowered.seq, heard.seq), (Seq(n as u64), Seq(n as u64)));
        }
        for subscription in &mut idle {
            let lagged = subscription.lowerings.recv().await.unwrap_err();
            assert_eq!(lagged, broadcast::error::RecvError::Lagged(missed as u64));
        }
        // The backlog for all of them together is bounded, and a subscriber that starts over misses nothing.
        assert_eq!(idle[0].lowerings.len(), FEED_BACKLOG);
        let resubscribed = registry.subscribe();
        assert_eq!(
            (resubscribed.snapshot.len(), resubscribed.at),
            (FEED_BACKLOG + missed, Seq((FEED_BACKLOG + missed) as u64))
        );
    }

    #[test]
    fn the_concern_of_a_lowering_is_found_once_for_all() {
        let first = Lowering::new(Seq(1), FenceName::epoch());
        let second = first.clone();
        let acme = Concern::JobsOf("acme".parse().unwrap());
        assert_eq!(*first.concern(|_| acme.clone()), acme);
        assert_eq!(*second.concern(|_| panic!("it was asked twice")), acme);
    }
}
