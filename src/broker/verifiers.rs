//! What all verifiers get: the keys.

use std::sync::Arc;

use super::{access::AccessControl, context::BrokerContext};

/// What the verifiers of tokens ask.
pub struct VerifierUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
}

impl VerifierUseCases {
    /// The public keys as a JWK Set.
    pub fn jwks(&self) -> String {
        self.context.key.public().to_jwks()
    }
}
