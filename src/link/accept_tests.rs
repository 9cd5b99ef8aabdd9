use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Channel;

use super::*;
use crate::{
    identity::{
        StaticSource, SvidError, TrustBundles, client_config,
        testing::{HOUR, NOW, TestCa, at, bundles, pem, uri},
    },
    link::{
        Alpn, ConnectError, Connector, explain,
        testing::{Body, DAEMON, TestServer},
    },
    reason::Reason,
};

async fn call(channel: &mut Channel, path: &str) -> Result<Response<Body>, tonic::transport::Error> {
    channel.ready().await?;
    let uri = format!("https://daemon{path}");
    channel.call(Request::builder().method("POST").uri(uri).body(Body::empty()).unwrap()).await
}

/// A timeout for tests that would hang. A test that passes never waits this long.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), work).await.expect("it must not take this long")
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn chunk(body: &mut Body) -> Option<Bytes> {
    soon(body.frame()).await.map(|frame| frame.unwrap().into_data().unwrap())
}

#[tokio::test]
async fn each_request_carries_who_opened_its_connection() {
    let server = TestServer::start(Protocol::Grpc).await;
    let other = TestCa::new("b.example");
    server.source.replace(server.source.current().svid.clone(), bundles(&[&server.ca, &other]));
    for issued in [server.ca.svid("/tune/job-1"), other.svid("/tune/job-1")] {
        let mut channel = server.client(&issued).1.connected_channel().await.unwrap();
        for _ in 0..2 {
            let answer = text(call(&mut channel, "/who").await.unwrap()).await;
            assert_eq!(answer, issued.svid().spiffe_id().as_str());
        }
        let seen = server.last_connection();
        assert_eq!(seen.peer.x5t_s256(), &crate::secret::sha256(issued.leaf()));
        assert!(seen.remote.ip().is_loopback());
    }
}

#[tokio::test]
async fn the_observer_gets_the_reason_and_the_client_an_alert() {
    let server = TestServer::start(Protocol::Grpc).await;
    let ca = &server.ca;
    let cases = [
        (TestCa::new("b.example").svid("/x"), Reason::TrustDomainUnknown),
        (ca.issue("spiffe://b.example/x", &|_| {}), Reason::TrustDomainUnknown),
        (TestCa::new("a.example").svid("/x"), Reason::SvidUntrusted),
        (
            ca.issue("spiffe://a.example/x", &|p| {
                p.not_after = crate::identity::testing::at(NOW.plus(48 * HOUR));
            }),
            Reason::SvidInvalid,
        ),
    ];
    for (issued, reason) in cases {
        let error = server.client(&issued).1.connected_channel().await.err().unwrap();
        assert!(
            matches!(&error, ConnectError::Refused { alert, .. } if alert == "CertificateUnknown"),
            "{error:?}"
        );
        let failure = server.failure().await;
        assert_eq!(failure.reason(), Some(reason), "{}", failure.cause);
        assert!(failure.remote.ip().is_loopback());
    }
    assert!(server.seen.lock().unwrap().is_empty());
}

// Proves case B31.
#[tokio::test]
async fn a_client_without_a_certificate_reads_only_an_alert() {
    let server = TestServer::start(Protocol::Grpc).await;
    let source = Arc::new(StaticSource::new(None, bundles(&[&server.ca])));
    let config = client_config(source, server.clock.clone(), DAEMON.parse().unwrap(), &[b"h2"]);
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("daemon").unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
    let mut bytes = Vec::new();
    let error = tls.read_to_end(&mut bytes).await.unwrap_err();
    assert!(bytes.is_empty());
    assert_eq!(explain(&error).unwrap().reason(), Reason::NoClientCertificate);
    assert_eq!(server.failure().await.reason(), Some(Reason::NoClientCertificate));
}

#[tokio::test]
async fn two_uris_are_refused_at_the_door() {
    let server = TestServer::start(Protocol::Grpc).await;
    let issued = server.ca.issue("spiffe://a.example/x", &|p| {
        p.subject_alt_names.push(uri("https://a.example/x"));
    });
    // Our loader refuses such an SVID, so this client presents it without the loader.
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(issued.key.serialize_der().into());
    let source = Arc::new(StaticSource::new(None, bundles(&[&server.ca])));
    let mut config =
        (*client_config(source, server.clock.clone(), DAEMON.parse().unwrap(), &[b"h2"])).clone();
    config.client_auth_cert_resolver =
        Arc::new(rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(
            issued.chain.clone(),
            rustls::crypto::ring::sign::any_supported_type(&key).unwrap(),
        )));
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("daemon").unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    assert!(tls.read_u8().await.is_err());
    let failure = server.failure().await;
    assert_eq!(failure.cause, FailureCause::Svid(SvidError::UriRepeated { found: 2 }));
}

// Proves case 6.6.
#[tokio::test]
async fn a_connection_ends_with_its_svid_though_nothing_moves_on_it() {
    let server = TestServer::start(Protocol::Grpc).await;
    let (source, connector) = server.client(&server.ca.svid("/a"));
    let mut channel = connector.channel();
    let mut body = call(&mut channel, "/stream").await.unwrap().into_body();
    assert_eq!(chunk(&mut body).await.unwrap(), "first");
    let first = server.last_connection();
    server.clock.advance(HOUR - Duration::from_millis(1));
    assert_eq!(text(call(&mut channel, "/who").await.unwrap()).await, "spiffe://a.example/a");
    assert!(!first.ended.is_cancelled());
    assert_eq!(first.check(server.clock.now().wall), Ok(()));
    server.clock.advance(Duration::from_millis(1));
    assert_eq!(chunk(&mut body).await.unwrap(), "SVID_EXPIRED");
    assert!(body.collect().await.unwrap().to_bytes().is_empty());
    assert_eq!(first.ending(), ConnectionEnd::SvidExpired { not_after: NOW.plus(HOUR) });
    // The old SVID opens no other connection. Its successor does, through the same channel.
    let status = loop {
        if let Err(error) = call(&mut channel, "/who").await
            && let Some(found) = explain(&tonic::Status::from_error(Box::new(error)))
        {
            break found;
        }
    };
    assert!(matches!(status, ConnectError::OwnSvidExpired { .. }), "{status:?}");
    let next = server.ca.issue("spiffe://a.example/a", &|p| {
        p.not_after = crate::identity::testing::at(NOW.plus(2 * HOUR));
    });
    source.replace(Some(Arc::new(next.svid())), bundles(&[&server.ca]));
    assert_eq!(text(call(&mut channel, "/who").await.unwrap()).await, "spiffe://a.example/a");
    assert_eq!(server.last_connection().peer.not_after(), NOW.plus(2 * HOUR));
}

#[tokio::test]
async fn setting_the_wall_clock_prolongs_no_connection() {
    let server = TestServer::start(Protocol::Grpc).await;
    let mut channel = server.client(&server.ca.svid("/a")).1.connected_channel().await.unwrap();
    let _body = call(&mut channel, "/stream").await.unwrap().into_body();
    let connection = server.last_connection();
    server.clock.set_wall(crate::clock::Wall(NOW.0 - 5_000));
    server.clock.advance(Duration::from_secs(1));
    assert!(!connection.ended.is_cancelled());
    server.clock.set_wall(NOW.plus(HOUR));
    soon(connection.ended.cancelled()).await;
    assert_eq!(connection.ending().reason(), Reason::SvidExpired);
}

#[tokio::test]
async fn a_stream_that_does_not_stop_is_cut_after_the_grace() {
    let server = TestServer::start(Protocol::Grpc).await;
    let mut channel = server.client(&server.ca.svid("/a")).1.connected_channel().await.unwrap();
    let mut body = call(&mut channel, "/stuck").await.unwrap().into_body();
    assert_eq!(chunk(&mut body).await.unwrap(), "first");
    let connection = server.last_connection();
    server.clock.advance(HOUR);
    soon(connection.ended.cancelled()).await;
    let cut = body.frame();
    tokio::pin!(cut);
    // The grace begins when the task of the connection notices the end. So advance the clock until the cut is seen.
    let frame = soon(async {
        loop {
            tokio::select! {
                frame = &mut cut => break frame,
                () = tokio::task::yield_now() => server.clock.advance(limits::CONNECTION_GRACE),
            }
        }
    })
    .await;
    assert!(frame.is_none_or(|frame| frame.is_err()));
}

// Proves case D11.
#[tokio::test]
async fn a_root_that_goes_takes_its_connections_with_it_and_no_others() {
    let server = TestServer::start(Protocol::Grpc).await;
    let other = TestCa::new("b.example");
    let svid = server.source.current().svid.clone();
    server.source.replace(svid.clone(), bundles(&[&server.ca, &other]));
    let mut of_a = server.client(&server.ca.svid("/a")).1.connected_channel().await.unwrap();
    let _keep = call(&mut of_a, "/stream").await.unwrap();
    let a = server.last_connection();
    let mut of_b = server.client(&other.svid("/b")).1.connected_channel().await.unwrap();
    let mut body = call(&mut of_b, "/stream").await.unwrap().into_body();
    assert_eq!(chunk(&mut body).await.unwrap(), "first");
    let b = server.last_connection();
    server.source.replace(svid, bundles(&[&server.ca]));
    assert_eq!(chunk(&mut body).await.unwrap(), "TRUST_DOMAIN_UNKNOWN");
    assert!(matches!(b.ending(), ConnectionEnd::SvidUntrusted { .. }));
    assert!(b.ended.is_cancelled() && !a.ended.is_cancelled());
    assert_eq!(text(call(&mut of_a, "/who").await.unwrap()).await, "spiffe://a.example/a");
}

// Proves case D11.
#[tokio::test]
async fn no_request_passes_after_the_bundles_have_changed() {
    let server = TestServer::start(Protocol::Grpc).await;
    let mut channel = server.client(&server.ca.svid("/a")).1.connected_channel().await.unwrap();
    assert!(call(&mut channel, "/who").await.is_ok());
    let connection = server.last_connection();
    let svid = server.source.current().svid.clone();
    let (with, without) = (bundles(&[&server.ca]), bundles(&[&TestCa::new("b.example")]));
    assert_eq!(connection.check(NOW), Ok(()));
    // There is no await from here on, so the task of the connection has noticed nothing.
    server.source.replace(svid.clone(), without.clone());
    let ending = connection.check(NOW).unwrap_err();
    assert_eq!(ending.reason(), Reason::TrustDomainUnknown);
    assert!(!connection.ended.is_cancelled());
    // A root that is back before the next check ends nothing. A root that is missing at a check ends the connection.
    server.source.replace(svid.clone(), with);
    assert_eq!(connection.check(NOW), Ok(()));
    server.source.replace(svid, without);
    soon(connection.ended.cancelled()).await;
    assert_eq!(connection.check(NOW), Err(ending));
}

// Proves case C09.
#[tokio::test]
async fn a_connection_ends_with_the_root_that_came_to_vouch_for_it() {
    let server = TestServer::start(Protocol::Grpc).await;
    let mut channel = server.client(&server.ca.svid("/a")).1.connected_channel().await.unwrap();
    assert!(call(&mut channel, "/who").await.is_ok());
    let connection = server.last_connection();
    assert_eq!(connection.peer.not_after(), NOW.plus(HOUR));
    // A new certificate of this root, for half an hour.
    let end = NOW.plus(HOUR / 2);
    let short = server.ca.intermediate_for(&server.ca, &|p| p.not_after = at(end));
    let short = TrustBundles::empty()
        .with_pem(server.ca.domain(), "bundle", pem("CERTIFICATE", &short).as_bytes(), NOW)
        .unwrap();
    let svid = server.source.current().svid.clone();
    server.source.replace(svid, short);
    assert!(call(&mut channel, "/who").await.unwrap().status().is_success());
    server.clock.advance(HOUR / 2 - Duration::from_millis(1));
    assert_eq!(connection.check(server.clock.now().wall), Ok(()));
    assert!(!connection.ended.is_cancelled());
    assert_eq!(connection.check(end), Err(ConnectionEnd::SvidExpired { not_after: end }));
    server.clock.advance(Duration::from_millis(1));
    soon(connection.ended.cancelled()).await;
    assert_eq!(connection.ending(), ConnectionEnd::SvidExpired { not_after: end });
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish_and_takes_no_new_connection() {
    let server = TestServer::start(Protocol::Grpc).await;
    let connector = server.client(&server.ca.svid("/a")).1;
    let mut channel = connector.connected_channel().await.unwrap();
    let mut waiting = channel.clone();
    let slow = tokio::spawn(async move { text(call(&mut waiting, "/gate").await.unwrap()).await });
    while server.seen.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let mut body = call(&mut channel, "/stream").await.unwrap().into_body();
    assert_eq!(chunk(&mut body).await.unwrap(), "first");
    server.shutdown.cancel();
    assert_eq!(chunk(&mut body).await.unwrap(), "SHUTTING_DOWN");
    assert!(!server.serving.is_finished());
    server.gate.notify_one();
    assert_eq!(slow.await.unwrap(), "spiffe://a.example/a");
    let address = server.address;
    server.serving.await.unwrap();
    let error = connector.connected_channel().await.err().unwrap();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()));
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let server = TestServer::start(Protocol::Grpc).await;
    let mut channel = server.client(&server.ca.svid("/a")).1.connected_channel().await.unwrap();
    let mut body = call(&mut channel, "/stuck").await.unwrap().into_body();
    assert_eq!(chunk(&mut body).await.unwrap(), "first");
    server.shutdown.cancel();
    soon(server.last_connection().ended.cancelled()).await;
    assert!(!server.serving.is_finished());
    soon(async {
        while !server.serving.is_finished() {
            server.clock.advance(limits::SHUTDOWN);
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_says_nothing_is_hung_up_on_and_who_speaks_no_tls_too() {
    let server = TestServer::start(Protocol::Grpc).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let failure = server.failure();
    tokio::pin!(failure);
    let failure = loop {
        tokio::select! {
            failure = &mut failure => break failure,
            () = tokio::task::yield_now() => server.clock.advance(limits::HANDSHAKE),
        }
    };
    assert_eq!((failure.cause.clone(), failure.reason()), (FailureCause::TimedOut, None));
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: daemon\r\n\r\n").await.unwrap();
    assert!(matches!(server.failure().await.cause, FailureCause::Protocol(_)));
    drop(TcpStream::connect(server.address).await.unwrap());
    assert_eq!(server.failure().await.cause, FailureCause::Closed);
}

#[tokio::test]
async fn connections_have_a_bound_that_is_given_back() {
    let options = ServeOptions { connections_max: 1, handshakes_max: 1, ..ServeOptions::default() };
    let server = TestServer::with(Protocol::Grpc, options).await;
    let connector = server.client(&server.ca.svid("/a")).1;
    let mut first = connector.connected_channel().await.unwrap();
    assert!(call(&mut first, "/who").await.is_ok());
    let connection = server.last_connection();
    assert!(connector.connected_channel().await.is_err());
    let failure = server.failure().await;
    assert_eq!(
        (failure.cause.clone(), failure.reason()),
        (FailureCause::Overloaded, Some(Reason::Overloaded))
    );
    drop(first);
    soon(connection.ended.cancelled()).await;
    assert_eq!(connection.ending(), ConnectionEnd::Closed);
    while connector.connected_channel().await.is_err() {}
}

#[tokio::test]
async fn http_1_is_served_where_it_is_offered_and_ends_the_same_way() {
    let server = TestServer::start(Protocol::Http).await;
    let issued = server.ca.svid("/a");
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let dialed = server.client(&issued).1.connect(alpn).await.unwrap();
        assert_eq!(dialed.server.spiffe_id().as_str(), DAEMON);
        assert_eq!(
            dialed.tls.get_ref().1.alpn_protocol(),
            Some(if alpn == Alpn::Http1 { &b"http/1.1"[..] } else { b"h2" })
        );
    }
    let dialed = server.client(&issued).1.connect(Alpn::Http1).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(dialed.tls)).await.unwrap();
    let driving = tokio::spawn(connection);
    let request = || Request::builder().uri("/who").header("host", "daemon").body(Body::empty()).unwrap();
    let answer = sender.send_request(request()).await.unwrap();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(bytes, "spiffe://a.example/a");
    server.clock.advance(HOUR);
    soon(driving).await.unwrap().unwrap();
    assert!(sender.send_request(request()).await.is_err());
}

#[tokio::test]
async fn a_refusal_is_found_in_the_error_of_an_http_1_client() {
    let server = TestServer::start(Protocol::Http).await;
    let stranger = TestCa::new("b.example").svid("/x");
    let dialed = server.client(&stranger).1.connect(Alpn::Http1).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(dialed.tls)).await.unwrap();
    let driving = tokio::spawn(connection);
    let request = Request::builder().uri("/who").header("host", "daemon").body(Body::empty()).unwrap();
    let sent = sender.send_request(request).await.map(drop);
    let errors: Vec<hyper::Error> =
        [sent.err(), driving.await.unwrap().err()].into_iter().flatten().collect();
    let found = errors.iter().find_map(|error| explain(error)).unwrap();
    assert!(matches!(found, ConnectError::Refused { .. }), "{found:?}");
    assert_eq!(server.failure().await.reason(), Some(Reason::TrustDomainUnknown));
}

#[tokio::test]
async fn a_request_on_an_ended_connection_has_its_reason() {
    let server = TestServer::start(Protocol::Grpc).await;
    let mut channel = server.client(&server.ca.svid("/a")).1.connected_channel().await.unwrap();
    assert!(call(&mut channel, "/who").await.is_ok());
    let connection = server.last_connection();
    let ending = connection.check(connection.peer.not_after()).unwrap_err();
    let grpc = Request::builder().header("content-type", "application/grpc+proto").body(()).unwrap();
    let response: Response<Body> = refusal(&grpc, &ending);
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    let info = tonic_types::StatusExt::get_details_error_info(&status).unwrap();
    assert_eq!(info.reason, "SVID_EXPIRED");
    let plain: Response<Body> = refusal(&Request::new(()), &ending);
    assert_eq!(
        (plain.status().as_u16(), &plain.headers()["leasehold-reason"]),
        (401, &"SVID_EXPIRED".parse().unwrap())
    );
    let plain: Response<Body> = refusal(&Request::new(()), &ConnectionEnd::ShuttingDown);
    assert_eq!(plain.status().as_u16(), 503);
    // The first cause is kept.
    connection.end(ConnectionEnd::ShuttingDown);
    connection.end(ending);
    assert_eq!(connection.check(NOW), Err(ConnectionEnd::ShuttingDown));
}

#[tokio::test]
async fn a_server_without_an_svid_or_bundles_accepts_no_one() {
    let server = TestServer::start(Protocol::Grpc).await;
    let connector: Connector = server.client(&server.ca.svid("/a")).1;
    let svid = server.source.current().svid.clone();
    server.source.replace(svid, TrustBundles::empty());
    assert!(connector.connected_channel().await.is_err());
    assert_eq!(server.failure().await.reason(), Some(Reason::TrustDomainUnknown));
    server.source.replace(None, bundles(&[&server.ca]));
    let error = connector.connected_channel().await.err().unwrap();
    assert!(matches!(error, ConnectError::Refused { .. } | ConnectError::Protocol { .. }), "{error:?}");
    assert!(server.seen.lock().unwrap().is_empty());
}

/// Returns the first bytes that a client of this server sends in its handshake.
fn client_hello(server: &TestServer) -> Vec<u8> {
    let source = Arc::new(StaticSource::new(None, bundles(&[&server.ca])));
    let config = client_config(source, server.clock.clone(), DAEMON.parse().unwrap(), &[b"h2"]);
    let name = rustls::pki_types::ServerName::try_from("daemon").unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

/// Raises the limit of open files for a flood, because both ends of every socket are in this process.
fn allow_files(wanted: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).unwrap();
    }
}

// Proves case C12.
#[tokio::test]
async fn half_open_handshakes_keep_no_other_client_out() {
    const FLOOD: usize = 1_000;
    allow_files(4_096);
    let server = TestServer::start(Protocol::Grpc).await;
    let connector = server.client(&server.ca.svid("/a")).1;
    let mut inside = connector.connected_channel().await.unwrap();
    let hello = client_hello(&server);
    let mut half_open = Vec::new();
    for n in 0..FLOOD {
        let mut tcp = TcpStream::connect(server.address).await.unwrap();
        let said = [&[][..], &hello[..hello.len() / 2], &hello][n % 3];
        tcp.write_all(said).await.unwrap();
        half_open.push(tcp);
    }
    // These clients were accepted. Each gets every answer, without a step of the clock and without the end of a handshake.
    for _ in 0..100 {
        let answer = soon(call(&mut inside, "/who")).await.unwrap();
        assert_eq!(text(answer).await, "spiffe://a.example/a");
    }
    // An honest client that comes last waits behind all of these clients.
    let given_up = || {
        let failures = server.failures.lock().unwrap();
        failures.iter().filter(|failure| failure.cause == FailureCause::GaveWay).count()
    };
    let honest = tokio::spawn(async move { connector.connected_channel().await.map(drop) });
    let mut waited = Duration::ZERO;
    while given_up() <= FLOOD - limits::HANDSHAKES_PER_ADDRESS_MAX {
        server.clock.advance(limits::HANDSHAKE_SILENCE);
        waited += limits::HANDSHAKE_SILENCE;
        assert!(waited < limits::HANDSHAKE, "it got in by no deadline: {} gave way", given_up());
        // This step takes real time, and more time on a busy machine.
        let mut before = usize::MAX;
        while before != given_up() {
            before = given_up();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    soon(honest).await.unwrap().unwrap();
    let answer = soon(call(&mut inside, "/who")).await.unwrap();
    assert_eq!(text(answer).await, "spiffe://a.example/a");
    assert!(waited <= limits::HANDSHAKE_CROWDED, "it waited {waited:?}");
}

/// Opens a connection from this address and sends the first bytes of a handshake.
async fn half_open(server: &TestServer, from: [u8; 4], said: &[u8]) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut tcp = socket.connect(server.address).await.unwrap();
    tcp.write_all(said).await.unwrap();
    tcp
}

/// Tests the fair turns with a clock that stands still: no handshake ends by a deadline, so only a fair turn lets the newcomer
/// in.
#[tokio::test]
async fn half_handshakes_of_many_addresses_keep_no_newcomer_out() {
    let options = ServeOptions { handshakes_max: 32, waiting_max: 64, ..ServeOptions::default() };
    let server = TestServer::with(Protocol::Grpc, options).await;
    let hello = client_hello(&server);
    let mut held = Vec::new();
    for n in 0..240 {
        let said = [&[][..], &hello[..hello.len() / 2], &hello][usize::from(n) % 3];
        held.push(half_open(&server, [127, 0, 9, n % 24], said).await);
    }
    let connector = server.client(&server.ca.svid("/a")).1;
    for _ in 0..5 {
        let mut inside = soon(connector.connected_channel()).await.unwrap();
        assert_eq!(text(call(&mut inside, "/who").await.unwrap()).await, "spiffe://a.example/a");
    }
    let failures = server.failures.lock().unwrap();
    assert!(failures.iter().all(|failure| failure.cause == FailureCause::GaveWay), "{failures:?}");
    assert!(failures.iter().all(|failure| !failure.remote.ip().to_string().ends_with(".0.0.1")));
    drop(held);
}

#[tokio::test]
async fn a_stalled_handshake_stays_while_there_is_room() {
    let server = TestServer::start(Protocol::Grpc).await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    let mut waited = Duration::ZERO;
    while waited + limits::HANDSHAKE_SILENCE < limits::HANDSHAKE {
        server.clock.advance(limits::HANDSHAKE_SILENCE);
        waited += limits::HANDSHAKE_SILENCE;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(server.failures.lock().unwrap().is_empty());
    }
    // The client may still send its hello, and gets an answer.
    slow.write_all(&client_hello(&server)).await.unwrap();
    assert_eq!(soon(slow.read_u8()).await.unwrap(), 0x16);
}

#[tokio::test]
async fn an_endless_handshake_gives_way_when_others_wait() {
    let options = ServeOptions { handshakes_max: 1, ..ServeOptions::default() };
    let server = TestServer::with(Protocol::Grpc, options).await;
    let hello = client_hello(&server);
    let mut trickle = TcpStream::connect(server.address).await.unwrap();
    let mut waited = Duration::ZERO;
    for byte in hello {
        let _ = trickle.write_all(&[byte]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        if !server.failures.lock().unwrap().is_empty() {
            break;
        }
        server.clock.advance(limits::HANDSHAKE_SILENCE);
        waited += limits::HANDSHAKE_SILENCE;
    }
    assert_eq!(server.failure().await.cause, FailureCause::GaveWay);
    assert!(waited >= limits::HANDSHAKE_SILENCE && waited <= limits::HANDSHAKE_CROWDED * 2, "{waited:?}");
}

#[tokio::test]
async fn an_identity_at_its_limit_of_connections_gets_the_reason() {
    let options = ServeOptions { connections_per_peer_max: 1, ..ServeOptions::default() };
    let server = TestServer::with(Protocol::Grpc, options).await;
    let connector = server.client(&server.ca.svid("/a")).1;
    let mut first = connector.connected_channel().await.unwrap();
    assert!(call(&mut first, "/who").await.is_ok());
    let connection = server.last_connection();
    let mut second = connector.connected_channel().await.unwrap();
    let answer = call(&mut second, "/who").await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["leasehold-reason"]),
        (429, &"OVERLOADED".parse().unwrap())
    );
    let request = Request::builder()
        .method("POST")
        .uri("https://daemon/who")
        .header("content-type", "application/grpc")
        .body(Body::empty())
        .unwrap();
    second.ready().await.unwrap();
    let answer = second.call(request).await.unwrap();
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(tonic_types::StatusExt::get_details_error_info(&status).unwrap().reason, "OVERLOADED");
    assert!(status.message().contains("1 connections open"), "{}", status.message());
    let failure = server.failure().await;
    assert_eq!(failure.reason(), Some(Reason::Overloaded));
    assert!(failure.cause.to_string().contains("spiffe://a.example/a"), "{}", failure.cause);
    // Another identity has a separate share. This identity gets its share again when the first connection is closed.
    let other = server.client(&server.ca.svid("/b")).1;
    assert_eq!(
        text(call(&mut other.connected_channel().await.unwrap(), "/who").await.unwrap()).await,
        "spiffe://a.example/b"
    );
    assert_eq!(text(call(&mut first, "/who").await.unwrap()).await, "spiffe://a.example/a");
    drop((first, second));
    soon(connection.ended.cancelled()).await;
    soon(async {
        loop {
            let mut again = connector.connected_channel().await.unwrap();
            if call(&mut again, "/who").await.unwrap().status().is_success() {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_beyond_the_share_stays_no_longer_than_the_grace() {
    let options = ServeOptions { connections_per_peer_max: 0, ..ServeOptions::default() };
    let server = TestServer::with(Protocol::Grpc, options).await;
    let dialed = server.client(&server.ca.svid("/a")).1.connect(Alpn::Http2).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(dialed.tls)).await.unwrap();
    let driving = tokio::spawn(connection);
    let request = Request::builder().uri("https://daemon/who").body(Body::empty()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status().as_u16(), 429);
    soon(async {
        while !driving.is_finished() {
            server.clock.advance(limits::CONNECTION_GRACE);
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn after_alpn_h2_a_bad_preface_is_not_answered_in_http_1() {
    let server = TestServer::start(Protocol::Http).await;
    let svid = Arc::new(server.ca.svid("/a").svid());
    let source = Arc::new(StaticSource::new(Some(svid), bundles(&[&server.ca])));
    let config = client_config(source, server.clock.clone(), DAEMON.parse().unwrap(), &[b"h2"]);
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("daemon").unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
    tls.write_all(b"GET /who HTTP/1.1\r\nhost: daemon\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(tls.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP/1"), "{}", String::from_utf8_lossy(&answer));
}

// If there is no ALPN, the server waits for the bytes that distinguish HTTP/2 from HTTP/1.1.
#[tokio::test]
async fn a_client_that_sends_no_request_does_not_stay() {
    let server = TestServer::start(Protocol::Http).await;
    let cases: [(&[&[u8]], &[u8]); 3] = [(&[], b""), (&[], b"PRI "), (&[b"http/1.1"], b"")];
    for (alpn, sent) in cases {
        let source =
            Arc::new(StaticSource::new(Some(Arc::new(server.ca.svid("/a").svid())), bundles(&[&server.ca])));
        let config = client_config(source, server.clock.clone(), DAEMON.parse().unwrap(), alpn);
        let tcp = TcpStream::connect(server.address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("daemon").unwrap();
        let mut tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
        tls.write_all(sent).await.unwrap();
        tls.flush().await.unwrap();
        let mut answer = Vec::new();
        let closed = tls.read_to_end(&mut answer);
        tokio::pin!(closed);
        soon(async {
            loop {
                tokio::select! {
                    _ = &mut closed => return,
                    () = tokio::task::yield_now() => server.clock.advance(limits::HANDSHAKE),
                }
            }
        })
        .await;
        assert!(answer.is_empty(), "{alpn:?}, {sent:?}");
    }
}
