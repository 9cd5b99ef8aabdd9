//! The class of a peer, which decides how much room its connection gets.

use std::{fmt, sync::Arc};

use crate::{identity::Peer, name::SpiffeId};

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

/// The class of a peer, and the name under which its share is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifiedPeer {
    /// Decides which room the peer uses.
    pub class: PeerClass,
    /// The peer's SPIFFE ID, or a name for several identities that share one share, such as those of one person.
    pub counted_as: SpiffeId,
}

/// Classifies a peer, once for each connection, after its handshake. Must not block.
#[derive(Clone)]
pub struct Classify(Arc<dyn Fn(&Peer) -> ClassifiedPeer + Send + Sync>);

impl Classify {
    /// Calls this function once for each connection.
    pub fn new(classify: impl Fn(&Peer) -> ClassifiedPeer + Send + Sync + 'static) -> Self {
        Classify(Arc::new(classify))
    }

    pub(super) fn of(&self, peer: &Peer) -> ClassifiedPeer {
        (self.0)(peer)
    }
}

/// Treats every peer with a verified SVID as known.
impl Default for Classify {
    fn default() -> Self {
        Classify::new(|peer| ClassifiedPeer { class: PeerClass::Known, counted_as: peer.spiffe_id().clone() })
    }
}

impl fmt::Debug for Classify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Classify")
    }
}
