//! The class of a peer, which decides which limits apply to its connections.

use std::{fmt, sync::Arc};

use crate::{identity::Peer, name::SpiffeId};

/// The class of a peer whose SVID was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerClass {
    /// The peer is not in the catalog. All such peers share a small number of slots, and get few streams.
    Unknown,
    /// The peer is in the catalog.
    Known,
    /// The peer can end the access of others, so it has slots that no other class can use.
    Operator,
}

/// The class of a peer, and the name under which its connections are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifiedPeer {
    /// The class, which decides which limits apply to the peer.
    pub class: PeerClass,
    /// The peer's SPIFFE ID, or a name for several identities that are counted as one, such as the identities of one person.
    pub counted_as: SpiffeId,
}

/// Classifies a peer. It is called once for each connection, after the handshake, and must not block.
#[derive(Clone)]
pub struct Classify(Arc<dyn Fn(&Peer) -> ClassifiedPeer + Send + Sync>);

impl Classify {
    /// Makes a classifier from a function. The function is called once for each connection.
    pub fn new(classify: impl Fn(&Peer) -> ClassifiedPeer + Send + Sync + 'static) -> Self {
        Classify(Arc::new(classify))
    }

    pub(super) fn of(&self, peer: &Peer) -> ClassifiedPeer {
        (self.0)(peer)
    }
}

/// Makes a classifier that treats every peer with a verified SVID as known.
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
