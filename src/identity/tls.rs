//! The two TLS configurations: TLS 1.3 alone, both sides with an SVID, every connection verified from the start.
//!
//! Sessions are never resumed: rustls would hand back the chain of the first handshake without asking a verifier, and so
//! revive an SVID that has expired or a root that was removed.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::ring,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};

use super::{
    IdentitySource,
    verifier::{ClientSvidVerifier, ServerSvidVerifier},
};
use crate::{clock::Clock, name::SpiffeId};

/// For servers: presents the newest SVID of the source, demands one of the client. `alpn` in order of preference.
pub fn server_config(
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    alpn: &[&[u8]],
) -> Arc<ServerConfig> {
    let verifier = Arc::new(ClientSvidVerifier::new(source.clone(), clock));
    #[expect(
        clippy::expect_used,
        reason = "ring's provider has suites for TLS 1.3; a test builds both configurations"
    )]
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("ring speaks TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Newest(source)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// For clients: presents the newest SVID of the source, demands the SPIFFE ID `server_id` of the server.
pub fn client_config(
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    server_id: SpiffeId,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let verifier = Arc::new(ServerSvidVerifier::new(source.clone(), clock, server_id));
    #[expect(
        clippy::expect_used,
        reason = "ring's provider has suites for TLS 1.3; a test builds both configurations"
    )]
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("ring speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Newest(source)));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Presents whatever SVID the source has at the moment of the handshake.
struct Newest(Arc<dyn IdentitySource>);

impl Newest {
    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.0.current().svid.as_ref().map(|svid| svid.certified())
    }
}

impl ResolvesServerCert for Newest {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

impl ResolvesClientCert for Newest {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        self.0.current().svid.is_some()
    }
}

impl fmt::Debug for Newest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Newest")
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
