//! Resolves the access keys of S3 clients at the daemon.

use std::{fmt, sync::Arc};

use super::introspect::unanswered;
use crate::{
    clock::Clock,
    limits::INTROSPECT_WAIT,
    link::{Connector, RotatingChannel},
    name::SpiffeId,
    proto::v1::{ResolveKeyRequest, verifier_service_client::VerifierServiceClient},
    reason::{Reason, Refusal},
    secret::{DateKey, Secret},
};

/// Resolves access keys of leases of one audience, over mutual TLS. It never sees the secret of a key.
#[derive(Clone)]
pub(crate) struct KeyResolver {
    daemon: Arc<RotatingChannel>,
    audience: SpiffeId,
    clock: Arc<dyn Clock>,
}

impl KeyResolver {
    /// Connects at the first key. Must be called inside a Tokio runtime.
    pub(crate) fn new(connector: &Connector, audience: SpiffeId, clock: Arc<dyn Clock>) -> Self {
        KeyResolver { daemon: Arc::new(RotatingChannel::new(connector.clone())), audience, clock }
    }

    /// Returns the key for the signatures of one day, `YYYYMMDD`.
    ///
    /// # Errors
    ///
    /// The access key is of no live lease of the audience, or the daemon does not answer within [`INTROSPECT_WAIT`].
    pub(crate) async fn resolve(&self, access_key: &str, date: &str) -> Result<DateKey, Refusal> {
        let (audience, access_key, date) =
            (self.audience.to_string(), access_key.to_owned(), date.to_owned());
        let request = ResolveKeyRequest { audience, access_key, date };
        let mut daemon = VerifierServiceClient::new(self.daemon.channel());
        let answer = tokio::select! {
            answer = daemon.resolve_key(request) => answer,
            () = self.clock.sleep(INTROSPECT_WAIT) => {
                return Err(Refusal::new(Reason::Unreachable, "leasehold did not answer in time"));
            }
        };
        let answer =
            answer.map_err(|status| unanswered(&status, "leasehold does not resolve the access key"))?;
        let key = Secret::from_bytes(&answer.into_inner().date_key).map(DateKey::new);
        key.ok_or_else(|| Refusal::new(Reason::Internal, "the answer of leasehold contains no valid key"))
    }
}

impl fmt::Debug for KeyResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyResolver({})", self.audience)
    }
}
