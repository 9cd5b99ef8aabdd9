//! A server that judges presented chains for tests: a whole TLS 1.3 handshake in memory, and the server's verdict.
//!
//! A client finishes before the server checks the client's certificate, so the client's result proves nothing.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, ServerConfig, ServerConnection, SignatureScheme,
    client::ResolvesClientCert,
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    sign::CertifiedKey,
    time_provider::TimeProvider,
};

use super::{
    bundle::TrustBundles,
    peer::Peer,
    source::StaticSource,
    svid_error::SvidError,
    testing::{IssuedCertificate, NOW, TestCa, at, before, bundles},
    tls::{client_config, server_config},
};
use crate::clock::{Wall, manual::ManualClock};

const JUDGE: &str = "spiffe://judge.invalid/server";
const AGES: Duration = Duration::from_secs(40 * 365 * 24 * 3600);

/// A clock for the verifiers of rustls, which use a clock trait of rustls.
#[derive(Debug, Default)]
pub(crate) struct SetTime(AtomicU64);

impl SetTime {
    pub(crate) fn set(&self, now: Wall) {
        self.0.store(now.seconds(), Ordering::Relaxed);
    }
}

impl TimeProvider for SetTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::Relaxed))))
    }
}

/// Returns the server's verdict on a chain and the holder of a key, with these bundles and at this time.
pub(crate) fn judged(issued: &IssuedCertificate, trust: &TrustBundles, now: Wall) -> Result<Peer, SvidError> {
    let own = Arc::new(own().1.svid());
    let source = Arc::new(StaticSource::new(Some(own), trust.clone()));
    let config = server_config(source.clone(), Arc::new(ManualClock::new(now)), &[]);
    let tls = shaken(config, presenting(issued)).map_err(|error| {
        SvidError::in_tls(&error).unwrap_or_else(|| panic!("refused by no rule of ours: {error}"))
    })?;
    assert_eq!(tls.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    Peer::of_client(&tls, now, trust)
}

/// Returns the server's side of a valid handshake, and the identity source with which the server checked the client.
pub(crate) fn judged_by(
    trust: &TrustBundles,
    client: Arc<ClientConfig>,
) -> (ServerConnection, Arc<StaticSource>) {
    let source = Arc::new(StaticSource::new(Some(Arc::new(own().1.svid())), trust.clone()));
    let config = server_config(source.clone(), Arc::new(ManualClock::new(NOW)), &[]);
    (shaken(config, client).unwrap(), source)
}

/// Runs a handshake, from the first byte to the server's last message.
pub(crate) fn shaken(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
) -> Result<ServerConnection, rustls::Error> {
    let name = ServerName::try_from("ignored.invalid").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut said = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut said).unwrap();
        }
        let mut said = said.as_slice();
        while !said.is_empty() {
            server.read_tls(&mut said).unwrap();
            server.process_new_packets()?;
        }
        let mut answered = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answered).unwrap();
        }
        let mut answered = answered.as_slice();
        while !answered.is_empty() {
            client.read_tls(&mut answered).unwrap();
            client.process_new_packets().expect("the client accepts this server");
        }
    }
    Ok(server)
}

/// Returns a client that presents a chain without checks and signs with its key.
pub(crate) fn presenting(issued: &IssuedCertificate) -> Arc<ClientConfig> {
    let trust = bundles(&[&own().0]).with_svid_life_max(AGES);
    let source = Arc::new(StaticSource::new(None, trust));
    let clock = Arc::new(ManualClock::new(NOW));
    let mut config = (*client_config(source, clock, JUDGE.parse().unwrap(), &[])).clone();
    config.client_auth_cert_resolver = Arc::new(Fixed::new(issued.chain.clone(), &issued.key));
    Arc::new(config)
}

/// Returns the server's own authority and SVID. No test trusts their domain. They are valid at any time, because the
/// oracle's source uses the clock of this machine.
pub(crate) fn own() -> &'static (TestCa, IssuedCertificate) {
    static OWN: OnceLock<(TestCa, IssuedCertificate)> = OnceLock::new();
    OWN.get_or_init(|| {
        let lasting = |p: &mut rcgen::CertificateParams| {
            p.not_before = at(before(NOW, AGES / 2));
            p.not_after = at(NOW.plus(AGES / 2));
        };
        let ca = TestCa::with("judge.invalid", &lasting);
        let issued = ca.issue(JUDGE, &lasting);
        (ca, issued)
    })
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl Fixed {
    fn new(chain: Vec<CertificateDer<'static>>, key: &rcgen::KeyPair) -> Self {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Fixed(Arc::new(CertifiedKey::new(chain, any_supported_type(&key).unwrap())))
    }
}

impl ResolvesClientCert for Fixed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        (!self.0.cert.is_empty()).then(|| self.0.clone())
    }

    fn has_certs(&self) -> bool {
        !self.0.cert.is_empty()
    }
}
