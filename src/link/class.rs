//! How much room a connection gets, by what the server knows of its peer.

use std::{fmt, sync::Arc};

use crate::identity::Peer;

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
