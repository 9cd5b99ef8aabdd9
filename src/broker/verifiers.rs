//! The use cases of verifiers, and the public keys that verifiers get.

use std::sync::Arc;

use super::{access::AccessControl, context::BrokerContext, use_reports::UseReporters};

/// The use cases of verifiers of tokens.
pub struct VerifierUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) reporters: UseReporters,
}

impl VerifierUseCases {
    /// Returns the public keys as a JWK Set.
    pub fn jwks(&self) -> String {
        self.context.key.public().to_jwks()
    }
}
