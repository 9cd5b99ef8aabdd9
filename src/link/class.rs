//! How much room a connection gets, by what the server knows of its peer.

use std::{fmt, sync::Arc};

use tokio::sync::Semaphore;

use super::{
    accept::ServeOptions,
    share::{Full, Share, Shares},
};
use crate::{identity::Peer, limits, name::SpiffeId};

/// What the server knows of a peer whose SVID verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerClass {
    /// Nothing. It gets a small room that all such peers share, few streams, and small windows.
    Unknown,
    /// It may call.
    Known,
    /// It ends the access of others: it gets room that no other class can take.
    Operator,
}

/// Asked once for each connection, after its handshake. Must not wait.
#[derive(Clone)]
pub struct Classify(Arc<dyn Fn(&Peer) -> CallerClass + Send + Sync>);

impl Classify {
    pub fn new(classify: impl Fn(&Peer) -> CallerClass + Send + Sync + 'static) -> Self {
        Classify(Arc::new(classify))
    }

    pub(super) fn of(&self, peer: &Peer) -> CallerClass {
        (self.0)(peer)
    }
}

/// Everyone whose SVID verifies is known.
impl Default for Classify {
    fn default() -> Self {
        Classify::new(|_| CallerClass::Known)
    }
}

impl fmt::Debug for Classify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Classify")
    }
}

/// The open connections of one listener, of each class and of each identity.
pub(super) struct ConnectionRoom {
    known: Arc<Shares>,
    unknown: Arc<Shares>,
    operators: Arc<Shares>,
    /// Those that only hear that they have their share.
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

    /// A place for one connection.
    pub(super) fn take(&self, class: CallerClass, id: &SpiffeId) -> Result<Share, Full> {
        match class {
            CallerClass::Unknown => self.unknown.take(id, 1),
            CallerClass::Known => self.known.take(id, 1),
            CallerClass::Operator => self.operators.take(id, 1).or_else(|_| self.known.take(id, 1)),
        }
    }
}
