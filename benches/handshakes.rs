//! The cost of our verifier for a server: whole TLS 1.3 handshakes in memory, alternating in one run with handshakes of rustls'
//! own `WebPkiClientVerifier` and the same certificates.
//!
//! `cargo bench --bench handshakes`, or `cargo bench --bench handshakes -- 5000` for 5,000 of each. Figures go to stdout.
//! Nothing is asserted, because a test of times would fail on other machines.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a bench measures by the machine's clock and ends if it cannot go on"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use leasehold::{
    clock::{Clock, SystemClock, Wall},
    identity::{IdentitySource, Peer, StaticSource, TrustBundles, X509Svid, client_config, server_config},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use time::OffsetDateTime;

const DAEMON: &str = "spiffe://example.org/daemon";
/// The number of handshakes of one kind before the other kind's turn.
const TURN: usize = 50;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let n: usize = arguments.next().map_or(2_000, |a| a.parse().unwrap());
    println!("{n} handshakes of each kind, P-256, both sides with an SVID");
    for intermediates in [0, 1] {
        compare(n, intermediates);
    }
}

/// The time that one side or both spent on handshakes of one kind.
#[derive(Default)]
struct Spent {
    server: Duration,
    both: Duration,
}

impl Spent {
    fn say(&self, what: &str, n: usize) {
        let each = |spent: Duration| spent.as_secs_f64() * 1e6 / n as f64;
        println!("  {what:<48} {:>8.1} µs {:>8.1} µs", each(self.server), each(self.both));
    }
}

fn compare(n: usize, intermediates: usize) {
    let world = World::new(intermediates);
    let source = world.source(&world.server);
    let (ours, theirs, client) = (world.ours(source.clone()), world.theirs(), world.client());
    // As `link` does: makes a `Peer` with the present bundles.
    let peer = |tls: &ServerConnection| {
        let bundles = source.current().bundles.clone();
        drop(Peer::of_client(tls, world.clock.now().wall, &bundles).unwrap());
    };
    let (mut with_ours, mut with_theirs, mut with_peer) =
        (Spent::default(), Spent::default(), Spent::default());
    for _ in 0..n.div_ceil(TURN) {
        for _ in 0..TURN {
            shake(&theirs, &client, &mut with_theirs, |_| {});
        }
        for _ in 0..TURN {
            shake(&ours, &client, &mut with_ours, |_| {});
        }
        for _ in 0..TURN {
            shake(&ours, &client, &mut with_peer, peer);
        }
    }
    let n = n.div_ceil(TURN) * TURN;
    println!("\n{intermediates} intermediates{:>47} {:>11}", "server", "both sides");
    with_theirs.say("WebPkiClientVerifier", n);
    with_ours.say("ours", n);
    with_peer.say("ours, and the Peer made of it", n);
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    println!(
        "  {:<48} {:>8.3}    {:>8.3}   (target 1.15)",
        "ratio, ours",
        ratio(with_ours.server, with_theirs.server),
        ratio(with_ours.both, with_theirs.both)
    );
    println!(
        "  {:<48} {:>8.3}    {:>8.3}",
        "ratio, with the Peer",
        ratio(with_peer.server, with_theirs.server),
        ratio(with_peer.both, with_theirs.both)
    );
}

/// One handshake, and the server's work after it.
fn shake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
    spent: &mut Spent,
    then: impl Fn(&ServerConnection),
) {
    let began = Instant::now();
    let name = ServerName::try_from("ignored.invalid").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let mut bytes = Vec::with_capacity(8 << 10);
    while client.is_handshaking() || server.is_handshaking() {
        bytes.clear();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let from = Instant::now();
        let mut said = bytes.as_slice();
        while !said.is_empty() {
            server.read_tls(&mut said).unwrap();
            server.process_new_packets().unwrap();
        }
        let mut answer = Vec::with_capacity(8 << 10);
        while server.wants_write() {
            server.write_tls(&mut answer).unwrap();
        }
        spent.server += from.elapsed();
        let mut said = answer.as_slice();
        while !said.is_empty() {
            client.read_tls(&mut said).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    let from = Instant::now();
    then(&server);
    spent.server += from.elapsed();
    spent.both += began.elapsed();
}

/// A trust domain with a root, perhaps an intermediate authority, a server and a client.
struct World {
    clock: Arc<SystemClock>,
    root: CertificateDer<'static>,
    root_pem: String,
    /// Chain and key, as PEM.
    server: (String, String),
    client: (String, String),
}

impl World {
    fn new(intermediates: usize) -> Self {
        let clock = Arc::new(SystemClock::new());
        let now = clock.now().wall;
        let mut params = authority(now, "root");
        let mut key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let mut above = String::new();
        for n in 0..intermediates {
            let (lower, lower_key) =
                (authority(now, &format!("authority {n}")), KeyPair::generate().unwrap());
            let cert = lower.signed_by(&lower_key, &Issuer::from_params(&params, &key)).unwrap();
            above = format!("{}{above}", cert.pem());
            (params, key) = (lower, lower_key);
        }
        let svid = |id: &str| {
            let own = KeyPair::generate().unwrap();
            let cert = leaf(now, id).signed_by(&own, &Issuer::from_params(&params, &key)).unwrap();
            (format!("{}{above}", cert.pem()), own.serialize_pem())
        };
        World {
            server: svid(DAEMON),
            client: svid("spiffe://example.org/tune/job-1"),
            root: root.der().clone(),
            root_pem: root.pem(),
            clock,
        }
    }

    fn bundles(&self) -> TrustBundles {
        let now = self.clock.now().wall;
        let domain = "example.org".parse().unwrap();
        TrustBundles::empty().with_pem(domain, "bundle", self.root_pem.as_bytes(), now).unwrap()
    }

    fn source(&self, (cert, key): &(String, String)) -> Arc<StaticSource> {
        let svid = X509Svid::from_pem(cert.as_bytes(), key.as_bytes()).unwrap();
        Arc::new(StaticSource::new(Some(Arc::new(svid)), self.bundles()))
    }

    fn client(&self) -> Arc<ClientConfig> {
        client_config(self.source(&self.client), self.clock.clone(), DAEMON.parse().unwrap(), &[b"h2"])
    }

    fn ours(&self, source: Arc<StaticSource>) -> Arc<ServerConfig> {
        server_config(source, self.clock.clone(), &[b"h2"])
    }

    /// The same server with rustls' verifier.
    fn theirs(&self) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(self.server.0.as_bytes()).collect::<Result<_, _>>().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(self.server.1.as_bytes()).unwrap())
            .unwrap();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

fn valid(params: &mut CertificateParams, now: Wall, hours: u64) {
    let at = |seconds: u64| OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap();
    params.not_before = at(now.seconds() - 60);
    params.not_after = at(now.seconds() + hours * 3_600);
}

fn authority(now: Wall, name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    valid(&mut params, now, 24);
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(now: Wall, id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    valid(&mut params, now, 1);
    params.distinguished_name.push(DnType::OrganizationName, "SPIRE");
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}
