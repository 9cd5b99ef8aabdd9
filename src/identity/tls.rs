//! The two TLS configurations: TLS 1.3 only, an SVID on both sides, and a full handshake for every connection.
//!
//! Sessions are never resumed. On resumption, rustls returns the chain of the first handshake without a call of the
//! verifier. So an expired SVID or an SVID of a removed root would be accepted again.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, SignatureScheme, WantsVerifier,
    client::{ResolvesClientCert, Resumption},
    crypto::ring,
    pki_types::UnixTime,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
    time_provider::TimeProvider,
    version::TLS13,
};

use super::{
    source::IdentitySource,
    verifier::{ClientSvidVerifier, ServerSvidVerifier},
};
use crate::{clock::Clock, name::SpiffeId};

/// Makes the configuration of a server: it presents the newest SVID of the source and requires an SVID of the client.
/// `alpn` is in order of preference.
pub fn server_config(
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    alpn: &[&[u8]],
) -> Arc<ServerConfig> {
    let verifier = Arc::new(ClientSvidVerifier::new(source.clone(), clock));
    presenting(source, verifier, alpn)
}

/// Makes the configuration of a server for clients that have no SVID yet: it presents the newest SVID of the source and asks for
/// no certificate.
#[cfg(feature = "server")]
pub(crate) fn login_server_config(source: Arc<dyn IdentitySource>) -> Arc<ServerConfig> {
    presenting(source, Arc::new(rustls::server::NoClientAuth), &[b"http/1.1"])
}

/// Makes the configuration of a server that presents the newest SVID of the source, and keeps no session.
fn presenting(
    source: Arc<dyn IdentitySource>,
    verifier: Arc<dyn ClientCertVerifier>,
    alpn: &[&[u8]],
) -> Arc<ServerConfig> {
    #[expect(
        clippy::expect_used,
        reason = "ring's provider has suites for TLS 1.3; a test builds both configurations"
    )]
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("ring speaks TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(NewestSvid(source)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Makes the configuration of a client: it presents the newest SVID of the source and requires the SPIFFE ID `server_id`.
pub fn client_config(
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    server_id: SpiffeId,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let verifier = Arc::new(ServerSvidVerifier::new(source.clone(), clock, server_id));
    let mut config = tls13_client()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(NewestSvid(source)));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Makes the configuration for fetching a bundle over `https_spiffe`: the server must be `server_id` under the roots of the
/// source. The client presents no certificate.
pub(super) fn bundle_config_spiffe(
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    server_id: SpiffeId,
) -> Arc<ClientConfig> {
    let verifier = Arc::new(ServerSvidVerifier::new(source, clock, server_id));
    let config = tls13_client().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    bundle_config(config)
}

/// Makes the configuration for fetching a bundle over `https_web`: the server is authenticated by its host name and web
/// roots. The client presents no certificate.
pub(super) fn bundle_config_web(roots: RootCertStore, clock: Arc<dyn Clock>) -> Arc<ClientConfig> {
    let mut config = tls13_client().with_root_certificates(roots).with_no_client_auth();
    config.time_provider = Arc::new(RustlsClock(clock));
    bundle_config(config)
}

fn bundle_config(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

fn tls13_client() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    #[expect(
        clippy::expect_used,
        reason = "ring's provider has suites for TLS 1.3; a test builds both configurations"
    )]
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("ring speaks TLS 1.3")
}

/// Our clock, for the verifiers of rustls.
struct RustlsClock(Arc<dyn Clock>);

impl TimeProvider for RustlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.now().wall.seconds())))
    }
}

impl fmt::Debug for RustlsClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RustlsClock")
    }
}

/// Presents the SVID that the source has at the time of the handshake.
struct NewestSvid(Arc<dyn IdentitySource>);

impl NewestSvid {
    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.0.current().svid.as_ref().map(|svid| svid.certified())
    }
}

impl ResolvesServerCert for NewestSvid {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

impl ResolvesClientCert for NewestSvid {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        self.0.current().svid.is_some()
    }
}

impl fmt::Debug for NewestSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewestSvid")
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
