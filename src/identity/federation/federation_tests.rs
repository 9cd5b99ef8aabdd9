use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    clock::manual::ManualClock,
    identity::{
        load::LoadError,
        source::{IdentitySource, Trust},
        source_state::SourceState,
        testing::{IssuedCertificate, NOW, TestCa, at},
    },
    limits,
    name::TrustDomain,
};

const FOREIGN: &str = "foreign.example";
const SERVER: &str = "spiffe://foreign.example/bundle-server";

fn foreign() -> TrustDomain {
    FOREIGN.parse().unwrap()
}

/// The longest real time that a step may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The certificate and the answers of the server, and the number of requests.
#[derive(Clone)]
struct Server {
    answer: Arc<Mutex<(StatusCode, String)>>,
    tls: Arc<Mutex<Arc<ServerConfig>>>,
    asked: Arc<AtomicUsize>,
    /// The number of open connections.
    open: Arc<AtomicUsize>,
    port: u16,
}

impl Server {
    async fn start(tls: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server {
            answer: Arc::new(Mutex::new((StatusCode::OK, "{}".into()))),
            tls: Arc::new(Mutex::new(tls)),
            asked: Arc::default(),
            open: Arc::default(),
            port: listener.local_addr().unwrap().port(),
        };
        let served = server.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let server = served.clone();
                server.open.fetch_add(1, Ordering::SeqCst);
                let ends = Ends(server.open.clone());
                tokio::spawn(async move {
                    let _ends = ends;
                    let tls = server.tls.lock().unwrap().clone();
                    let Ok(stream) = TlsAcceptor::from(tls).accept(tcp).await else { return };
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        server.asked.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(request.headers()[header::ACCEPT], "application/json");
                        let (status, body) = server.answer.lock().unwrap().clone();
                        let answer = Response::builder()
                            .status(status)
                            .header(header::LOCATION, format!("https://localhost:{}/elsewhere", server.port));
                        let answer = answer.body(Full::new(Bytes::from(body))).unwrap();
                        std::future::ready(Ok::<_, std::convert::Infallible>(answer))
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        server
    }

    /// Sends these bytes to each client, repeatedly or once, then stays silent with the connection open.
    async fn raw(tls: Arc<ServerConfig>, said: Vec<u8>, again: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, said) = (tls.clone(), said.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = TlsAcceptor::from(tls).accept(tcp).await else { return };
                    let mut asked = [0; 1_024];
                    let _ = stream.read(&mut asked).await;
                    while stream.write_all(&said).await.is_ok() && stream.flush().await.is_ok() && again {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    let _ = stream.read(&mut asked).await;
                });
            }
        });
        let tls = tls_of(&TestCa::new(FOREIGN).svid("/unused"));
        Server {
            answer: Arc::new(Mutex::new((StatusCode::OK, String::new()))),
            tls: Arc::new(Mutex::new(tls)),
            asked: Arc::default(),
            // The test does not wait for these connections: they end when time has passed.
            open: Arc::default(),
            port,
        }
    }

    fn says(&self, status: StatusCode, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    fn presents(&self, tls: Arc<ServerConfig>) {
        *self.tls.lock().unwrap() = tls;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// Counts the end of a connection.
struct Ends(Arc<AtomicUsize>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tls(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

fn tls_of(issued: &IssuedCertificate) -> Arc<ServerConfig> {
    tls(issued.chain.clone(), &issued.key)
}

/// A public web certificate for a name, valid for a day, and the authority that signed it.
fn web(name: &str) -> (Arc<ServerConfig>, String) {
    let for_long = |mut params: CertificateParams| {
        params.not_before = at(NOW);
        params.not_after = at(NOW.plus(Duration::from_secs(24 * 3_600)));
        params
    };
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut root = for_long(CertificateParams::default());
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let leaf = for_long(CertificateParams::new([name.to_owned()]).unwrap());
    let cert = leaf.signed_by(&key, &rcgen::Issuer::from_params(&root, &root_key)).unwrap();
    (tls(vec![cert.der().clone()], &key), root_pem)
}

fn document(cas: &[&TestCa], sequence: u64, hint: u64) -> String {
    let keys: Vec<_> = cas
        .iter()
        .map(|ca| json!({ "kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(&ca.der)] }))
        .collect();
    json!({ "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": hint }).to_string()
}

struct Case {
    server: Server,
    clock: Arc<ManualClock>,
    source: Arc<BundleSource>,
    folder: TempDir,
    stop: CancellationToken,
}

impl Case {
    /// A source over `https_spiffe`, with a server that presents this certificate and a bundle file with these roots.
    async fn spiffe(presented: &IssuedCertificate, configured: &[&TestCa]) -> Self {
        Self::spiffe_at(Server::start(tls_of(presented)).await, configured)
    }

    fn spiffe_at(server: Server, configured: &[&TestCa]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("initial.pem");
        fs::write(&bundle, configured.iter().map(|ca| ca.pem()).collect::<String>()).unwrap();
        let profile = EndpointProfile::Spiffe { id: SERVER.parse().unwrap(), bundle };
        Self::new(server, folder, profile, "127.0.0.1").unwrap()
    }

    async fn web(tls: Arc<ServerConfig>, ca: &str) -> Self {
        let server = Server::start(tls).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.pem");
        fs::write(&path, ca).unwrap();
        Self::new(server, folder, EndpointProfile::Web { ca: path }, "localhost").unwrap()
    }

    fn new(server: Server, folder: TempDir, profile: EndpointProfile, host: &str) -> Result<Self, LoadError> {
        let url = format!("https://{host}:{}/bundle?x=1", server.port).parse().unwrap();
        let clock = Arc::new(ManualClock::new(NOW));
        let endpoint = BundleEndpoint { trust_domain: foreign(), url, profile };
        let (life, outage) = (limits::SVID_LIFE_MAX, Duration::from_secs(1_800));
        let source = Arc::new(BundleSource::open(endpoint, life, outage, clock.clone())?);
        Ok(Case { server, clock, source, folder, stop: CancellationToken::new() })
    }

    fn follow(&self) {
        tokio::spawn(self.source.clone().follow(self.stop.clone()));
    }

    async fn until(&self, what: &str, is: impl Fn(&Trust) -> bool) -> Arc<Trust> {
        let mut watch = self.source.watch();
        let seen = tokio::time::timeout(PATIENCE, watch.wait_for(|trust| is(trust)));
        let seen = seen.await.map(|trust| trust.unwrap().clone());
        seen.unwrap_or_else(|_| panic!("{what}: {:?}", self.source.current()))
    }

    async fn good(&self) -> Arc<Trust> {
        self.until("a document", |t| t.standing == SourceState::Good).await
    }

    async fn refused(&self) -> String {
        let says = |t: &Trust| t.standing.why().is_some_and(|why| why.contains("bundle endpoint"));
        self.until("a refusal", says).await.standing.why().unwrap().to_owned()
    }

    /// Advances the clock in steps until the server was asked this many more times. The earlier answers were checked by
    /// then.
    async fn asked_again(&self, times: usize, step: Duration) {
        let wanted = self.server.asked() + times;
        let asking = async {
            while self.server.asked() < wanted {
                self.clock.advance(step);
                let before = self.server.asked();
                for _ in 0..200 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    if self.server.asked() > before {
                        break;
                    }
                }
                self.at_rest().await;
            }
        };
        let asked = tokio::time::timeout(PATIENCE, asking).await;
        asked.unwrap_or_else(|_| panic!("asked {} times, not {wanted}", self.server.asked()));
    }

    /// Waits until no answer is in flight, because otherwise the advancing clock could pass its deadline.
    async fn at_rest(&self) {
        let ends = async {
            while self.server.open() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ends).await.expect("each connection ends");
    }

    /// Advances the clock in steps until the source shows this.
    async fn passes_until(&self, step: Duration, what: &str, is: impl Fn(&Trust) -> bool) -> Arc<Trust> {
        for _ in 0..60 {
            self.clock.advance(step);
            for _ in 0..40 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let trust = self.source.current();
                if is(&trust) {
                    return trust;
                }
            }
            self.at_rest().await;
        }
        panic!("{what}: {:?}", self.source.current());
    }

    fn roots(&self) -> Option<usize> {
        self.source.current().bundles.root_count(&foreign())
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

// Proves case F01.
#[tokio::test]
async fn a_document_counts_only_for_its_configured_domain() {
    // The server and its roots are in another trust domain than the bundle.
    let (other, ours) = (TestCa::new("other.example"), TestCa::new(FOREIGN));
    let server = Server::start(tls_of(&other.svid("/pages"))).await;
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("initial.pem");
    fs::write(&bundle, other.pem()).unwrap();
    let profile = EndpointProfile::Spiffe { id: "spiffe://other.example/pages".parse().unwrap(), bundle };
    server.says(StatusCode::OK, &document(&[&ours], 1, 300));
    let case = Case::new(server, folder, profile, "127.0.0.1").unwrap();
    assert_eq!(case.roots(), None, "the server's roots are for no other domain");
    case.follow();
    let trust = case.good().await;
    assert_eq!(trust.bundles.domains().collect::<Vec<_>>(), [&foreign()]);
    assert_eq!(case.roots(), Some(1));
}

// Proves case F02.
#[test]
fn an_endpoint_is_https_and_names_no_user() {
    use EndpointUrlFault as F;
    let fault = |text: &str| text.parse::<EndpointUrl>().unwrap_err();
    for text in ["http://a.example/b", "HTTP://a.example/", "spiffe://a.example/b", "a.example"] {
        assert_eq!(fault(text), F::NotHttps, "{text}");
    }
    for text in ["https://u@a.example/b", "https://u:p@a.example/b", "https://@a.example/"] {
        assert_eq!(fault(text), F::User, "{text}");
    }
    for text in ["", "/b", "https://", "https:///b", "https://a.example:0/", "https://a.example:x/"] {
        assert_eq!(fault(text), F::NotAUrl, "{text}");
    }
    assert_eq!(fault("https://a.example/b#c"), F::Fragment);
    let url: EndpointUrl = "https://a.example".parse().unwrap();
    assert_eq!((url.host.as_str(), url.port, url.target.as_str()), ("a.example", 443, "/"));
    let url: EndpointUrl = "https://[::1]:8443/b?c=d".parse().unwrap();
    assert_eq!((url.host.as_str(), url.port, url.target.as_str()), ("[::1]", 8443, "/b?c=d"));
}

// Proves case F03.
#[tokio::test]
async fn over_https_web_the_server_is_known_by_its_host_name() {
    let (tls, pem) = web("localhost");
    let ours = TestCa::new(FOREIGN);
    let case = Case::web(tls.clone(), &pem).await;
    case.server.says(StatusCode::OK, &document(&[&ours], 1, 300));
    case.follow();
    case.good().await;
    assert_eq!(case.roots(), Some(1));

    let (other_name, other_pem) = web("other.example");
    let case = Case::web(other_name, &other_pem).await;
    case.follow();
    assert!(case.refused().await.contains("refused"), "a certificate of another name");
    let (_, unrelated) = web("localhost");
    let case = Case::web(tls, &unrelated).await;
    case.follow();
    assert!(case.refused().await.contains("refused"), "a certificate of an unknown authority");
    assert_eq!((case.roots(), case.server.asked()), (None, 0), "nothing was asked of it");
    // Its certificate expires by the manual clock, which everything here uses.
    let (tls, pem) = web("localhost");
    let case = Case::web(tls, &pem).await;
    case.clock.advance(Duration::from_secs(24 * 3_600 + 1));
    case.follow();
    let why = case.refused().await;
    assert!(why.contains("expired") && case.server.asked() == 0, "{why}");
}

// Proves case F04.
#[tokio::test]
async fn over_https_spiffe_the_server_is_known_by_its_spiffe_id() {
    let ca = TestCa::new(FOREIGN);
    let case = Case::spiffe(&ca.svid("/bundle-server"), &[&ca]).await;
    case.server.says(StatusCode::OK, &document(&[&ca, &TestCa::new(FOREIGN)], 1, 300));
    case.follow();
    case.good().await;
    assert_eq!(case.roots(), Some(2), "the address is in no certificate");

    let impostor = TestCa::new(FOREIGN);
    for (presented, why) in [
        (ca.svid("/somebody-else"), "but `spiffe://foreign.example/bundle-server` is configured"),
        (impostor.svid("/bundle-server"), "refused"),
        (TestCa::new("other.example").svid("/bundle-server"), "refused"),
    ] {
        let case = Case::spiffe(&presented, &[&ca]).await;
        case.follow();
        let found = case.refused().await;
        assert!(found.contains(why), "{found}");
        assert_eq!((case.roots(), case.server.asked()), (Some(1), 0), "the configured bundle stays");
    }
}

// Proves case F05.
#[tokio::test]
async fn one_profile_never_stands_in_for_the_other() {
    let ca = TestCa::new(FOREIGN);
    // A web certificate, with its root in the bundle, is still not an SVID with that ID.
    let (tls, _) = web("localhost");
    let case = Case::spiffe(&ca.svid("/bundle-server"), &[&ca]).await;
    case.server.presents(tls);
    case.follow();
    assert!(case.refused().await.contains("refused"));
    // The right SVID, with its root among the web roots, still does not have that host name.
    let case = Case::web(tls_of(&ca.svid("/bundle-server")), &ca.pem()).await;
    case.follow();
    assert!(case.refused().await.contains("refused"));
    assert_eq!(case.server.asked(), 0);
}

// Proves case F06.
#[tokio::test]
async fn no_redirect_is_followed() {
    let ca = TestCa::new(FOREIGN);
    for status in [301, 302, 303, 307, 308] {
        let case = Case::spiffe(&ca.svid("/bundle-server"), &[&ca]).await;
        case.server.says(StatusCode::from_u16(status).unwrap(), &document(&[], 1, 300));
        case.follow();
        let why = case.refused().await;
        assert!(why.contains("redirects to another URL"), "{why}");
        assert_eq!((case.server.asked(), case.roots()), (1, Some(1)), "{status}");
    }
}

// Proves case F07.
#[tokio::test]
async fn an_endpoint_is_asked_as_often_as_it_says() {
    let (ca, next) = (TestCa::new(FOREIGN), TestCa::new(FOREIGN));
    let case = Case::spiffe(&ca.for_a_day(), &[&ca]).await;
    case.server.says(StatusCode::OK, &document(&[&ca], 1, 60));
    case.follow();
    case.good().await;
    case.clock.advance(Duration::from_secs(59));
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(case.server.asked(), 1);
    for (status, body, why) in [
        (StatusCode::INTERNAL_SERVER_ERROR, String::new(), "it answered 500"),
        (StatusCode::OK, "{\"keys\": 5}".to_owned(), "`keys` is not a list"),
        (StatusCode::OK, "x".repeat(2 << 20), "larger than"),
        (StatusCode::OK, document(&[&ca.svid_as_ca()], 2, 60), "certificate 1 cannot be used"),
    ] {
        case.server.says(status, &body);
        let is =
            |t: &Trust| matches!(&t.standing, SourceState::Stale { why: found, .. } if found.contains(why));
        case.passes_until(Duration::from_secs(60), why, is).await;
        assert_eq!(case.roots(), Some(1), "the last good one stays");
    }
    case.server.says(StatusCode::OK, &document(&[&next, &ca], 2, 60));
    case.passes_until(Duration::from_secs(60), "the next", |t| t.standing == SourceState::Good).await;
    assert_eq!(case.roots(), Some(2));
    // A lower sequence is an old document. The test waits for two requests, because the first answer was checked before
    // the second one.
    case.server.says(StatusCode::OK, &document(&[&ca], 1, 60));
    case.asked_again(2, Duration::from_secs(60)).await;
    assert_eq!(case.roots(), Some(2), "identity_e05: an older one is ignored");
    // Without a hint: five minutes, as in the standard.
    case.server.says(StatusCode::OK, &json!({ "keys": [], "spiffe_sequence": 3 }).to_string());
    let revoked = |t: &Trust| t.bundles.root_count(&foreign()) == Some(0);
    case.passes_until(Duration::from_secs(60), "the revocation of all", revoked).await;
    let asked = case.server.asked();
    case.clock.advance(Duration::from_secs(239));
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(case.server.asked(), asked);
}

/// Keeps the lines of the log.
struct Kept(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_endpoint_with_new_faults_does_not_fill_the_log() {
    let ca = TestCa::new(FOREIGN);
    let case = Case::spiffe(&ca.for_a_day(), &[&ca]).await;
    let log = Arc::new(Mutex::new(Vec::new()));
    let lines =
        || String::from_utf8(log.lock().unwrap().clone()).unwrap().matches("a fault of a flood").count();
    let kept = log.clone();
    let logging = tracing_subscriber::fmt().with_writer(move || Kept(kept.clone())).finish();
    tracing::subscriber::with_default(logging, || {
        (0..1_000).for_each(|n| case.source.failed(format!("a fault of a flood, the {n}th")));
    });
    assert_eq!(lines(), limits::IDENTITY_LINES_LOGGED as usize);
}

// Proves case F07.
#[tokio::test]
async fn any_other_answer_is_no_bundle_and_takes_one_call_at_most() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let ca = TestCa::new(FOREIGN);
    let good = document(&[&ca, &TestCa::new(FOREIGN)], 1, 300);
    let whole = |head: &str, body: &[u8]| {
        let length = format!("content-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), length.as_bytes(), body].concat()
    };
    let gzip =
        whole(&format!("{HEAD}content-encoding: gzip\r\n"), b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xab\xae\x05\0");
    let cut = format!("{HEAD}content-length: 999999\r\n\r\n{good}");
    let chunks = format!("{HEAD}transfer-encoding: chunked\r\n\r\n{:x}\r\n{}", 2 << 20, "x".repeat(2 << 20));
    let cases: Vec<(&str, Vec<u8>, bool, &str)> = vec![
        ("says nothing", Vec::new(), false, "did not answer in time"),
        ("drips an endless head", b"a".to_vec(), true, ""),
        ("goes on to go on", b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), true, ""),
        ("never ends its body", cut.into_bytes(), false, "did not answer in time"),
        ("has a body without an end", chunks.into_bytes(), false, "larger than"),
        ("has packed it", gzip, false, "is not UTF-8"),
        (
            "answers a part",
            whole("HTTP/1.1 206 Partial Content\r\n", good.as_bytes()),
            false,
            "it answered 206",
        ),
        (
            "has a page for people",
            whole(HEAD, b"<html>log in</html>"),
            false,
            "is not a SPIFFE bundle document",
        ),
        ("speaks something else", b"SSH-2.0-x\r\n\r\n".to_vec(), false, "does not speak HTTP/1.1"),
    ];
    for (what, said, again, why) in cases {
        let server = Server::raw(tls_of(&ca.for_a_day()), said, again).await;
        let case = Case::spiffe_at(server, &[&ca]);
        case.follow();
        let told =
            |t: &Trust| t.standing.why().is_some_and(|w| w.contains("bundle endpoint") && w.contains(why));
        case.passes_until(limits::CALL, what, told).await;
        assert_eq!(case.roots(), Some(1), "{what}: the configured bundle stays");
    }
    // And a bundle with another content type is accepted.
    let plain = whole("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n", good.as_bytes());
    let case = Case::spiffe_at(Server::raw(tls_of(&ca.for_a_day()), plain, false).await, &[&ca]);
    case.follow();
    case.good().await;
    assert_eq!(case.roots(), Some(2));
}

// Proves case F07.
#[tokio::test]
async fn a_bundle_that_cannot_be_fetched_loses_its_trust() {
    let ca = TestCa::new(FOREIGN);
    let case = Case::spiffe(&ca.for_a_day(), &[&ca]).await;
    case.server.says(StatusCode::OK, &document(&[&ca], 1, 300));
    case.follow();
    case.good().await;
    case.server.says(StatusCode::BAD_GATEWAY, "");
    let step = Duration::from_secs(300);
    case.passes_until(step, "the outage", |t| matches!(t.standing, SourceState::Stale { .. })).await;
    assert_eq!(case.roots(), Some(1));
    case.passes_until(step, "the limit", |t| matches!(t.standing, SourceState::GivenUp { .. })).await;
    assert_eq!(case.roots(), None);
    case.server.says(StatusCode::OK, &document(&[&ca], 2, 300));
    case.passes_until(step, "a document", |t| t.standing == SourceState::Good).await;
    assert_eq!(case.roots(), Some(1));
}

// Proves case F08.
#[tokio::test]
async fn a_self_serving_endpoint_is_known_by_its_last_bundle() {
    let (old, new) = (TestCa::new(FOREIGN), TestCa::new(FOREIGN));
    let case = Case::spiffe(&old.svid("/bundle-server"), &[&old]).await;
    assert_eq!(case.roots(), Some(1), "trusted from the start");
    case.server.says(StatusCode::OK, &document(&[&old, &new], 1, 60));
    case.follow();
    case.good().await;
    // It changes to the new root, which the configured bundle does not have.
    case.server.presents(tls_of(&new.svid("/bundle-server")));
    case.server.says(StatusCode::OK, &document(&[&new], 2, 60));
    let one = |t: &Trust| t.bundles.root_count(&foreign()) == Some(1);
    case.passes_until(Duration::from_secs(60), "the next document", one).await;
    // And back: the bundle that it served last does not have the old root.
    case.server.presents(tls_of(&old.svid("/bundle-server")));
    let refused = |t: &Trust| t.standing.why().is_some_and(|why| why.contains("refused"));
    case.passes_until(Duration::from_secs(60), "the refusal", refused).await;
    // After a reload by an operator, the configured bundle counts again.
    fs::write(case.folder.path().join("initial.pem"), old.pem()).unwrap();
    case.server.says(StatusCode::OK, &document(&[&old], 3, 60));
    case.source.reload().unwrap();
    case.passes_until(Duration::from_secs(60), "a document", |t| t.standing == SourceState::Good).await;
}

#[tokio::test]
async fn an_unusable_bundle_file_is_reported_at_the_start() {
    let ca = TestCa::new(FOREIGN);
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(tls_of(&ca.svid("/bundle-server"))).await;
    let bundle = folder.path().join("none.pem");
    let profile = EndpointProfile::Spiffe { id: SERVER.parse().unwrap(), bundle };
    let error = Case::new(server, folder, profile, "127.0.0.1").err().unwrap();
    assert!(error.to_string().contains("none.pem"), "{error}");
}

impl TestCa {
    /// The server's SVID, which is valid for longer than any test advances the clock.
    fn for_a_day(&self) -> IssuedCertificate {
        self.issue(SERVER, &|params| params.not_after = at(NOW.plus(Duration::from_secs(20 * 3_600))))
    }

    /// An authority whose certificate may not sign.
    fn svid_as_ca(&self) -> TestCa {
        TestCa::with(FOREIGN, &|params| params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature])
    }
}
