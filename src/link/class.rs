//! The class of a peer, which decides how much room its connection gets.

use std::{fmt, sync::Arc};

use crate::identity::Peer;

/// What the server knows of a peer whose SVID verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerClass {
    /// The peer is not in the catalog. All such peers share a small room, and get few streams.
    Unknown,
    /// The peer is in the catalog.
    Known,
    /// The peer can end the access of others, so it has room that no other class can use.
    Operator,
}

/// Decides the class of a peer, once for each connection, after its handshake. Must not block.
#[derive(Clone)]
pub struct Classify(Arc<dyn Fn(&Peer) -> PeerClass + Send + Sync>);

impl Classify {
    /// Calls this function once for each connection.
    pub fn new(classify: impl Fn(&Peer) -> PeerClass + Send + Sync + 'static) -> Self {
        Classify(Arc::new(classify))
    }

    pub(super) fn of(&self, peer: &Peer) -> PeerClass {
        (self.0)(peer)
    }
}

/// Treats every peer with a verified SVID as known.
impl Default for Classify {
    fn default() -> Self {
        Classify::new(|_| PeerClass::Known)
    }
}

impl fmt::Debug for Classify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Classify")
    }
}
