use std::io;

use rustls::{
    ClientConnection, HandshakeKind, ServerConnection,
    crypto::ring::sign::any_supported_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    sign::{Signer, SigningKey},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::{
    clock::manual::ManualClock,
    identity::{
        Peer, StaticSource, SvidError, TrustBundles,
        testing::{HOUR, IssuedCertificate, NOW, TestCa, bundles},
    },
    reason::Reason,
};

const DAEMON: &str = "spiffe://a.example/daemon";

/// A server of the trust domain `a.example` and its clock.
struct Server {
    clock: Arc<ManualClock>,
    source: Arc<StaticSource>,
    config: Arc<ServerConfig>,
    ca: TestCa,
}

impl Server {
    fn new(trusted: impl Fn(&TestCa) -> TrustBundles) -> Self {
        let ca = TestCa::new("a.example");
        let clock = Arc::new(ManualClock::new(NOW));
        let source = Arc::new(StaticSource::new(Some(Arc::new(ca.svid("/daemon").svid())), trusted(&ca)));
        let config = server_config(source.clone(), clock.clone(), &[]);
        Server { clock, source, config, ca }
    }

    /// The configuration of a client that trusts this server and presents these certificates.
    fn client(&self, issued: &IssuedCertificate) -> Arc<ClientConfig> {
        let source = StaticSource::new(Some(Arc::new(issued.svid())), bundles(&[&self.ca]));
        client_config(Arc::new(source), self.clock.clone(), DAEMON.parse().unwrap(), &[])
    }

    /// One handshake over loopback and one byte from the server: what each side saw.
    async fn meet(&self, client: Arc<ClientConfig>) -> Met {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(self.config.clone());
        let serving = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut tls = acceptor.accept(tcp).await?;
            tls.write_all(b"!").await?;
            tls.shutdown().await?;
            io::Result::Ok(tls.into_inner().1)
        };
        let calling = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("ignored.invalid").unwrap();
            let mut tls = TlsConnector::from(client).connect(name, tcp).await?;
            let mut bytes = Vec::new();
            let _ = tls.read_to_end(&mut bytes).await?;
            assert_eq!(bytes, b"!");
            io::Result::Ok(tls.into_inner().1)
        };
        let (server, client) = tokio::join!(serving, calling);
        Met { server, client }
    }

    async fn refusal_of(&self, client: Arc<ClientConfig>) -> SvidError {
        let met = self.meet(client).await;
        let alert = met.client.expect_err("the client must not read a byte");
        assert!(alert.to_string().contains("received fatal alert"), "{alert}");
        SvidError::in_io(&met.server.err().unwrap()).unwrap()
    }
}

struct Met {
    server: io::Result<ServerConnection>,
    client: io::Result<ClientConnection>,
}

/// A client that presents this chain and signs with this key, and accepts any certificate of the server.
fn presenting(server: &Server, issued: &IssuedCertificate, key: &rcgen::KeyPair) -> Arc<ClientConfig> {
    #[derive(Debug)]
    struct Fixed(Arc<CertifiedKey>);
    impl ResolvesClientCert for Fixed {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let certified = CertifiedKey::new(issued.chain.clone(), any_supported_type(&key).unwrap());
    let mut config = (*server.client(&server.ca.svid("/x"))).clone();
    config.client_auth_cert_resolver = Arc::new(Fixed(Arc::new(certified)));
    Arc::new(config)
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let server = Server::new(|ca| bundles(&[ca]));
    // A second revision of the bundles.
    server
        .source
        .replace(server.source.current().svid.clone(), bundles(&[&server.ca, &TestCa::new("b.example")]));
    let issued = server.ca.svid("/tune/job-1");
    let met = server.meet(server.client(&issued)).await;
    let trust = server.source.current();
    let client = Peer::of_client(&met.server.unwrap(), NOW, &trust.bundles).unwrap();
    assert_eq!(client.spiffe_id().as_str(), "spiffe://a.example/tune/job-1");
    assert_eq!(client.not_after(), NOW.plus(HOUR));
    assert_eq!(client.x5t_s256(), &crate::secret::sha256(issued.leaf()));
    assert_eq!(client.serial(), crate::identity::Leaf::parse(issued.leaf()).unwrap().serial);
    assert_eq!(client.bundle_revision(), trust.bundles.revision());
    assert_eq!(
        format!("{client:?}"),
        format!("Peer(spiffe://a.example/tune/job-1, until {})", NOW.plus(HOUR))
    );
    let seen = met.client.unwrap();
    assert_eq!(seen.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let daemon = Peer::of_server(&seen, NOW, &trust.bundles).unwrap();
    assert_eq!(daemon.spiffe_id().as_str(), DAEMON);
}

// Proves case D11.
#[tokio::test]
async fn a_peer_is_verified_again_when_the_bundles_change() {
    let server = Server::new(|ca| bundles(&[ca]));
    let met = server.meet(server.client(&server.ca.svid("/a"))).await;
    let trust = server.source.current();
    let peer = Peer::of_client(&met.server.unwrap(), NOW, &trust.bundles).unwrap();
    assert!(peer.is_current(NOW, &trust.bundles));
    assert_eq!(
        peer.check(NOW.plus(HOUR), &trust.bundles),
        Err(SvidError::Expired { not_after: NOW.plus(HOUR) })
    );
    let other = TestCa::new("b.example");
    server.source.replace(None, bundles(&[&server.ca, &other]));
    assert!(peer.is_current(NOW, &server.source.current().bundles));
    server.source.replace(None, bundles(&[&other]));
    let error = peer.check(NOW, &server.source.current().bundles).unwrap_err();
    assert_eq!(error, SvidError::TrustDomainUnknown { domain: server.ca.domain() });
    assert!(!peer.is_current(NOW, &server.source.current().bundles));
}

// Proves case C09.
#[tokio::test]
async fn a_peer_ends_with_the_first_certificate_of_its_chain() {
    let server = Server::new(|ca| bundles(&[ca]));
    let met = server.meet(server.client(&server.ca.svid("/a"))).await;
    let trust = server.source.current();
    let peer = Peer::of_client(&met.server.unwrap(), NOW, &trust.bundles).unwrap();
    assert_eq!(peer.check(NOW, &trust.bundles), Ok(NOW.plus(HOUR)));
    // The same root, issued again with another end: one that comes before the SVID's counts, a later one does not.
    for (life, ends) in [(HOUR / 2, HOUR / 2), (2 * HOUR, HOUR)] {
        let root = server
            .ca
            .intermediate_for(&server.ca, &|p| p.not_after = crate::identity::testing::at(NOW.plus(life)));
        let text = crate::identity::testing::pem("CERTIFICATE", &root);
        let other =
            TrustBundles::empty().with_pem(server.ca.domain(), "bundle", text.as_bytes(), NOW).unwrap();
        server.source.replace(None, other);
        assert_eq!(peer.check(NOW, &server.source.current().bundles), Ok(NOW.plus(ends)));
    }
}

// Proves case D02.
#[tokio::test]
async fn the_roots_of_another_domain_do_not_vouch_in_a_handshake() {
    let other = TestCa::new("b.example");
    let server = Server::new(|ca| bundles(&[ca, &other]));
    assert!(server.meet(server.client(&other.svid("/x"))).await.server.is_ok());
    let forged = server.ca.issue("spiffe://b.example/x", &|_| {});
    let error = server.refusal_of(server.client(&forged)).await;
    assert_eq!(error, SvidError::IssuerUnknown { domain: other.domain() });
}

// Proves case B30.
#[tokio::test]
async fn a_stolen_certificate_without_its_key_is_refused() {
    let server = Server::new(|ca| bundles(&[ca]));
    let (victim, thief) = (server.ca.svid("/victim"), server.ca.svid("/thief"));
    assert!(server.meet(presenting(&server, &victim, &victim.key)).await.server.is_ok());
    let met = server.meet(presenting(&server, &victim, &thief.key)).await;
    // RFC 8446 section 4.4.3.
    assert_eq!(met.client.unwrap_err().to_string(), "received fatal alert: DecryptError");
    let error = SvidError::in_io(&met.server.err().unwrap()).unwrap();
    assert_eq!(error, SvidError::NotPossessed);
    assert_eq!(error.reason(), Reason::SvidUntrusted);
}

#[tokio::test]
async fn a_signature_scheme_that_was_not_offered_is_illegal() {
    #[derive(Debug)]
    struct Unoffered(Arc<dyn SigningKey>);
    impl SigningKey for Unoffered {
        fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            Some(Box::new(SaysP521(self.0.choose_scheme(offered)?)))
        }
        fn algorithm(&self) -> rustls::SignatureAlgorithm {
            self.0.algorithm()
        }
    }
    #[derive(Debug)]
    struct SaysP521(Box<dyn Signer>);
    impl Signer for SaysP521 {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
            self.0.sign(message)
        }
        fn scheme(&self) -> SignatureScheme {
            SignatureScheme::ECDSA_NISTP521_SHA512
        }
    }
    let server = Server::new(|ca| bundles(&[ca]));
    let issued = server.ca.svid("/a");
    let key = any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.key.serialize_der())));
    let certified = CertifiedKey::new(issued.chain.clone(), Arc::new(Unoffered(key.unwrap())));
    let mut config = (*server.client(&issued)).clone();
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    let met = server.meet(Arc::new(config)).await;
    assert_eq!(met.client.unwrap_err().to_string(), "received fatal alert: IllegalParameter");
}

// Proves case B31.
#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let server = Server::new(|ca| bundles(&[ca]));
    let mut config = (*server.client(&server.ca.svid("/a"))).clone();
    let nothing = Arc::new(StaticSource::new(None, TrustBundles::empty()));
    config.client_auth_cert_resolver = Arc::new(NewestSvid(nothing));
    let error = server.refusal_of(Arc::new(config)).await;
    assert_eq!(error, SvidError::NotPresented);
    assert_eq!(error.reason(), Reason::NoClientCertificate);
}

#[tokio::test]
async fn every_reason_of_this_floor_is_reached_in_a_handshake() {
    let server = Server::new(|ca| bundles(&[ca]));
    let ca = &server.ca;
    let two_uris = ca.issue("spiffe://a.example/x", &|p| {
        p.subject_alt_names.push(crate::identity::testing::uri("spiffe://a.example/y"));
    });
    let expired = ca.issue("spiffe://a.example/x", &|p| {
        p.not_after = crate::identity::testing::at(NOW);
    });
    let cases = [
        (two_uris, Reason::SvidInvalid),
        (expired, Reason::SvidExpired),
        (TestCa::new("b.example").svid("/x"), Reason::TrustDomainUnknown),
        (TestCa::new("a.example").svid("/x"), Reason::SvidUntrusted),
    ];
    for (issued, reason) in cases {
        let error = server.refusal_of(presenting(&server, &issued, &issued.key)).await;
        assert_eq!(error.reason(), reason, "{error}");
    }
}

#[tokio::test]
async fn a_client_refuses_a_server_that_is_not_the_one_it_wants() {
    let server = Server::new(|ca| bundles(&[ca]));
    let own = Arc::new(server.ca.svid("/a").svid());
    let config = |trusted: &TestCa, wanted: &str| {
        let source = Arc::new(StaticSource::new(Some(own.clone()), bundles(&[trusted])));
        client_config(source, server.clock.clone(), wanted.parse().unwrap(), &[])
    };
    assert!(server.meet(config(&server.ca, DAEMON)).await.client.is_ok());
    let met = server.meet(config(&server.ca, "spiffe://a.example/other")).await;
    let error = SvidError::in_io(&met.client.err().unwrap()).unwrap();
    assert!(matches!(error, SvidError::OtherServer { .. }), "{error}");
    let met = server.meet(config(&TestCa::new("b.example"), DAEMON)).await;
    let error = SvidError::in_io(&met.client.err().unwrap()).unwrap();
    assert_eq!(error, SvidError::TrustDomainUnknown { domain: server.ca.domain() });
}

// Proves case 6.5.
#[tokio::test]
async fn no_session_is_resumed_and_none_outlives_its_svid_or_its_root() {
    let server = Server::new(|ca| bundles(&[ca]));
    let mut client = (*server.client(&server.ca.svid("/a"))).clone();
    client.resumption = Resumption::in_memory_sessions(8); // a client that would resume if it were let
    let client = Arc::new(client);
    for _ in 0..2 {
        let met = server.meet(client.clone()).await;
        let seen = met.client.unwrap();
        assert_eq!((seen.handshake_kind(), seen.tls13_tickets_received()), (Some(HandshakeKind::Full), 0));
        assert_eq!(met.server.unwrap().handshake_kind(), Some(HandshakeKind::Full));
    }
    let trust = server.source.current();
    let other = TestCa::new("b.example");
    server.source.replace(trust.svid.clone(), bundles(&[&other]));
    let error = server.refusal_of(client.clone()).await;
    assert_eq!(error, SvidError::TrustDomainUnknown { domain: server.ca.domain() });
    server.source.replace(trust.svid.clone(), (*trust.bundles).clone());
    assert!(server.meet(client.clone()).await.server.is_ok());
    let lasting = server.ca.issue(DAEMON, &|p| {
        p.not_after = crate::identity::testing::at(NOW.plus(2 * HOUR));
    });
    server.source.replace(Some(Arc::new(lasting.svid())), (*trust.bundles).clone());
    server.clock.advance(HOUR);
    let error = server.refusal_of(client).await;
    assert_eq!(error, SvidError::Expired { not_after: NOW.plus(HOUR) });
}

// Proves case H07.
#[tokio::test]
async fn a_rotated_svid_is_presented_without_a_restart() {
    let server = Server::new(|ca| bundles(&[ca]));
    let x5t = |met: Met| {
        let chain = met.client.unwrap().peer_certificates().unwrap().to_vec();
        crate::secret::sha256(&chain[0])
    };
    let client = server.client(&server.ca.svid("/a"));
    let before = x5t(server.meet(client.clone()).await);
    let next = server.ca.svid("/daemon");
    server.source.replace(Some(Arc::new(next.svid())), bundles(&[&server.ca]));
    let after = x5t(server.meet(client).await);
    assert_ne!(before, after);
    assert_eq!(after, crate::secret::sha256(next.leaf()));
}

// Proves case B30.
#[tokio::test]
async fn tls_1_2_is_answered_by_an_alert_and_nothing_else() {
    let server = Server::new(|ca| bundles(&[ca]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(server.config.clone());
    let serving = async {
        let (tcp, _) = listener.accept().await.unwrap();
        acceptor.accept(tcp).await.err().unwrap()
    };
    let calling = async {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(&client_hello_1_2()).await.unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let (error, answer) = tokio::join!(serving, calling);
    assert!(SvidError::in_io(&error).is_none(), "{error}");
    // An alert record of two bytes: fatal (2), protocol_version (70).
    assert_eq!((answer.len(), answer[0], &answer[5..]), (7, 0x15, &[2u8, 70][..]), "{answer:?}");
}

/// A `ClientHello` of TLS 1.2 (RFC 5246 section 7.4.1.2).
fn client_hello_1_2() -> Vec<u8> {
    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }
    let extension = |id: u16, body: Vec<u8>| [&id.to_be_bytes()[..], &sized(&body)].concat();
    let extensions = [
        extension(10, sized(&[0x00, 0x17, 0x00, 0x1d])), // groups: P-256, X25519
        extension(11, vec![1, 0]),                       // uncompressed points
        extension(13, sized(&[0x04, 0x03, 0x08, 0x04])), // ECDSA P-256, RSA-PSS, with SHA-256
        extension(23, vec![]),                           // extended master secret
    ]
    .concat();
    let body = [
        &[0x03, 0x03][..],
        &[7; 32],
        &[0],
        &sized(&[0xc0, 0x2b, 0xc0, 0x2f]), // ECDHE with AES-128-GCM
        &[1, 0],
        &sized(&extensions),
    ]
    .concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let handshake = [&[1][..], &length[1..], &body].concat();
    [&[0x16, 0x03, 0x01][..], &sized(&handshake)].concat()
}

#[test]
fn no_configuration_names_a_trust_domain_or_keeps_sessions() {
    let server = Server::new(|ca| bundles(&[ca]));
    assert_eq!(server.config.send_tls13_tickets, 0);
    assert!(!server.config.session_storage.can_cache());
    assert_eq!(server.config.max_early_data_size, 0);
    let verifier = ClientSvidVerifier::new(server.source.clone(), server.clock.clone());
    use rustls::server::danger::ClientCertVerifier;
    assert!(verifier.root_hint_subjects().is_empty());
    assert!(verifier.offer_client_auth() && verifier.client_auth_mandatory());
    assert!(!server.client(&server.ca.svid("/a")).enable_sni);
}
