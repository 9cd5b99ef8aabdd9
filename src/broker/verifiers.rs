//! What all verifiers get: the keys.

use std::sync::Arc;

use super::{access::AccessControl, context::BrokerContext, use_reports::UseReporters};

/// What the verifiers of tokens ask.
pub struct VerifierUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) reporters: UseReporters,
}

impl VerifierUseCases {
    /// The public keys as a JWK Set.
    pub fn jwks(&self) -> String {
        self.context.key.public().to_jwks()
    }
}
