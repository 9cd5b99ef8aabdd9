//! The certificate verifiers for rustls, which apply our rules.

use std::{fmt, sync::Arc};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::verify_tls13_signature,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::{
    algorithm::algorithms,
    leaf::{Side, VerifiedLeaf},
    path,
    source::IdentitySource,
    svid_error::SvidError,
};
use crate::{clock::Clock, name::SpiffeId};

/// Verifies chains with the newest bundles of a source, by our clock.
struct ChainVerifier {
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
}

impl ChainVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        side: Side,
    ) -> Result<VerifiedLeaf, SvidError> {
        // Check the count before copying the certificates.
        if above.len() >= crate::limits::CHAIN_MAX {
            return Err(SvidError::ChainTooLong { found: above.len().saturating_add(1) });
        }
        let chain: Vec<CertificateDer<'_>> = std::iter::once(leaf).chain(above).cloned().collect();
        let (now, trust) = (self.clock.now().wall, self.source.current());
        let verified = path::verify(&chain, side, now, &trust.bundles)?;
        trust.bundles.handshakes().keep(&chain, side, now, &verified);
        Ok(verified)
    }
}

/// The methods that check that the peer has the private key of its leaf. Both verifiers have these methods, only for
/// TLS 1.3.
macro_rules! tls_1_3_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _leaf: &CertificateDer<'_>,
            _signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("tls 1.2 is not supported".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, leaf, signed, &algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            algorithms().supported_schemes()
        }
    };
}

/// The verifier for servers: the client must present an SVID with a path to a root in the bundle of its trust domain.
pub(super) struct ClientSvidVerifier(ChainVerifier);

impl ClientSvidVerifier {
    pub(super) fn new(source: Arc<dyn IdentitySource>, clock: Arc<dyn Clock>) -> Self {
        ClientSvidVerifier(ChainVerifier { source, clock })
    }
}

impl ClientCertVerifier for ClientSvidVerifier {
    /// Returns no hints, because they would show every client which roots we trust.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _rustls_time: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.verify(leaf, above, Side::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    tls_1_3_signatures!();
}

/// The verifier for clients: the server must present an SVID with the configured SPIFFE ID. Host names are ignored.
pub(super) struct ServerSvidVerifier {
    rules: ChainVerifier,
    wanted: SpiffeId,
}

impl ServerSvidVerifier {
    pub(super) fn new(source: Arc<dyn IdentitySource>, clock: Arc<dyn Clock>, wanted: SpiffeId) -> Self {
        ServerSvidVerifier { rules: ChainVerifier { source, clock }, wanted }
    }
}

impl ServerCertVerifier for ServerSvidVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp: &[u8],
        _rustls_time: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = self.rules.verify(leaf, above, Side::Server)?.leaf.spiffe_id;
        if found != self.wanted {
            return Err(SvidError::OtherServer { wanted: self.wanted.clone(), found }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    tls_1_3_signatures!();
}

impl fmt::Debug for ClientSvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSvidVerifier")
    }
}

impl fmt::Debug for ServerSvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerSvidVerifier({})", self.wanted)
    }
}

#[cfg(test)]
#[path = "verifier_tests.rs"]
mod tests;
