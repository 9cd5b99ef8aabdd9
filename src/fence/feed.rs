//! The feed of lowerings: each in order, to whoever listens. Nobody who listens is ever waited for.

use std::sync::{Arc, OnceLock};

use tokio::sync::broadcast;

use super::Seq;
use crate::name::{FenceName, TenantName};

/// One lowering, as it happened.
#[derive(Clone, Debug)]
pub struct Lowering {
    pub seq: Seq,
    pub name: FenceName,
    /// Found out once, by the first of those who listen, for all of them.
    concern: Arc<OnceLock<Concern>>,
}

/// Whom a lowering concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Everybody: its name is no tenant's, or whose it is cannot be known any more.
    All,
    /// The leases of one tenant.
    Tenant(TenantName),
}

impl Lowering {
    pub fn new(seq: Seq, name: FenceName) -> Self {
        Lowering { seq, name, concern: Arc::default() }
    }

    /// Whom it concerns. `find` is asked at most once for each lowering, however many listen.
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

/// The names lowered so far, and every lowering from there on. Nothing lies between the two.
#[derive(Debug)]
pub struct Subscription {
    /// Each lowered name that is still kept, with the Seq of its last lowering.
    pub snapshot: Vec<(FenceName, Seq)>,
    /// The Seq at which the snapshot was taken.
    pub at: Seq,
    /// What comes after it. A receiver that lags past [`crate::limits::FEED_BACKLOG`] gets `Lagged` and starts over.
    pub lowerings: broadcast::Receiver<Lowering>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_lowering_concerns_is_found_out_once_for_all_who_listen() {
        let first = Lowering::new(Seq(1), FenceName::epoch());
        let second = first.clone();
        let acme = Concern::Tenant("acme".parse().unwrap());
        assert_eq!(*first.concern(|_| acme.clone()), acme);
        assert_eq!(*second.concern(|_| panic!("it was asked twice")), acme);
    }
}
