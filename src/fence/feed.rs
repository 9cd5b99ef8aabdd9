//! The feed of lowerings: each in order, to whoever listens. Nobody who listens is ever waited for.

use tokio::sync::broadcast;

use super::Seq;
use crate::name::FenceName;

/// One lowering, as it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lowering {
    pub seq: Seq,
    pub name: FenceName,
}

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
