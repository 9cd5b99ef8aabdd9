//! The slots for the connections of one listener.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{
    class::PeerClass,
    options::ServeOptions,
    share::{Full, Share, Shares},
};
use crate::{limits, name::SpiffeId};

/// Counts the open connections of one listener, by class and identity.
pub(super) struct ConnectionRoom {
    known: Arc<Shares>,
    unknown: Arc<Shares>,
    operators: Arc<Shares>,
    /// Slots for connections that stay open only to refuse requests, because their identity has reached its limit.
    pub(super) refused: Arc<Semaphore>,
}

impl ConnectionRoom {
    pub(super) fn new(options: &ServeOptions) -> Self {
        ConnectionRoom {
            known: Shares::new(options.connections_max, options.connections_per_peer_max),
            unknown: Shares::new(options.connections_unknown_max, options.connections_unknown_per_peer_max),
            operators: Shares::new(options.connections_operators_max, options.connections_operators_max),
            refused: Arc::new(Semaphore::new(limits::CONNECTIONS_REFUSED_MAX)),
        }
    }

    /// Takes the slot of one connection.
    pub(super) fn take(&self, class: PeerClass, id: &SpiffeId) -> Result<Share, Full> {
        match class {
            PeerClass::Unknown => self.unknown.take(id, 1),
            PeerClass::Known => self.known.take(id, 1),
            PeerClass::Operator => self.operators.take(id, 1).or_else(|_| self.known.take(id, 1)),
        }
    }
}
