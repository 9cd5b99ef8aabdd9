use tokio::net::TcpListener;

use super::*;
use crate::{
    identity::{
        StaticSource, SvidError, TrustBundles,
        testing::{HOUR, NOW, TestCa, bundles},
    },
    link::{
        Protocol, RotatingChannel, explain,
        testing::{Body, TestServer},
    },
    reason::Reason,
};

#[test]
fn an_endpoint_is_a_host_and_a_port() {
    let id: SpiffeId = "spiffe://a.example/daemon".parse().unwrap();
    for good in ["localhost:8443", "127.0.0.1:1", "[::1]:8443", "daemon.example.org:443"] {
        assert_eq!(Endpoint::new(good, id.clone()).unwrap().address(), good);
    }
    for bad in
        ["", "localhost", ":8443", "localhost:", "localhost:99999", "https://a:1", "a:1/x", "u@a:1", "a b:1"]
    {
        assert!(Endpoint::new(bad, id.clone()).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn after_a_rotation_the_next_call_uses_a_new_connection() {
    let server = TestServer::start(Protocol::Grpc).await;
    let (old, new) = (server.ca.svid("/a"), server.ca.svid("/a"));
    let (source, connector) = server.client(&old);
    let redial = RotatingChannel::new(connector);
    let ask = async |path: &str| {
        let request = http::Request::get(format!("https://x{path}")).body(Body::default()).unwrap();
        let mut channel = redial.channel();
        tower::ServiceExt::ready(&mut channel).await.unwrap();
        tower::Service::call(&mut channel, request).await.unwrap()
    };
    let mut under_way = ask("/stream").await;
    ask("/").await;
    let presented = || *server.last_connection().peer.x5t_s256();
    assert_eq!(presented(), old.svid().leaf().x5t_s256);
    source.replace(Some(Arc::new(new.svid())), bundles(&[&server.ca]));
    ask("/").await;
    assert_eq!(presented(), new.svid().leaf().x5t_s256);
    let first = http_body_util::BodyExt::frame(under_way.body_mut()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "first", "the old connection lives as long as its calls");
    // The SVID is removed, but the open connection is still used.
    source.replace(None, bundles(&[&server.ca]));
    ask("/").await;
    assert_eq!(presented(), new.svid().leaf().x5t_s256);
}

#[tokio::test]
async fn each_failure_to_connect_has_a_reason_and_a_fix() {
    let server = TestServer::start(Protocol::Grpc).await;
    let own = Arc::new(server.ca.svid("/a").svid());
    let connector =
        |svid: Option<Arc<crate::identity::X509Svid>>, trusted: TrustBundles, endpoint: Endpoint| {
            Connector::new(Arc::new(StaticSource::new(svid, trusted)), server.clock.clone(), endpoint)
        };
    let trusted = || bundles(&[&server.ca]);
    let here = || server.endpoint();
    let id = |text: &str| Endpoint::new(&server.address.to_string(), text.parse().unwrap()).unwrap();
    assert!(connector(Some(own.clone()), trusted(), here()).connected_channel().await.is_ok());

    // The socket is bound and does not listen, so that no other process can listen there meanwhile.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = held.local_addr().unwrap().to_string();
    let closed = Endpoint::new(&nobody, here().server_id().clone()).unwrap();
    let expired =
        server.ca.issue("spiffe://a.example/a", &|p| p.not_after = crate::identity::testing::at(NOW));
    let stranger = TestCa::new("b.example").svid("/x");
    let elsewhere = || bundles(&[&TestCa::new("b.example")]);

    type Check = fn(&ConnectError) -> bool;
    let cases: [(Connector, Reason, Check); 6] = [
        (connector(Some(own.clone()), trusted(), closed), Reason::Unreachable, |e| {
            matches!(e, ConnectError::Unreachable { .. })
        }),
        (connector(None, trusted(), here()), Reason::NoClientCertificate, |e| {
            matches!(e, ConnectError::OwnSvidAbsent)
        }),
        (connector(Some(Arc::new(expired.svid())), trusted(), here()), Reason::SvidExpired, |e| {
            matches!(e, ConnectError::OwnSvidExpired { .. })
        }),
        (connector(Some(Arc::new(stranger.svid())), trusted(), here()), Reason::SvidUntrusted, |e| {
            matches!(e, ConnectError::Refused { .. })
        }),
        (connector(Some(own.clone()), elsewhere(), here()), Reason::TrustDomainUnknown, |e| {
            matches!(e, ConnectError::ServerNotTrusted { why: SvidError::TrustDomainUnknown { .. }, .. })
        }),
        (connector(Some(own), trusted(), id("spiffe://a.example/other")), Reason::SvidUntrusted, |e| {
            matches!(e, ConnectError::ServerNotTrusted { why: SvidError::OtherServer { .. }, .. })
        }),
    ];
    for (connector, reason, is_it) in cases {
        let eager = connector.connected_channel().await.err().unwrap();
        let mut client = tonic::client::Grpc::new(connector.channel());
        let lazy = unary(&mut client).await.unwrap_err();
        let lazy = explain(&lazy).unwrap_or_else(|| panic!("{lazy:?}"));
        for error in [eager, lazy] {
            assert!(is_it(&error), "{error:?}");
            assert_eq!(error.reason(), reason, "{error}");
            let refusal = error.refusal();
            assert!(refusal.fact("fix").is_some_and(|fix| !fix.is_empty()));
            assert!(!refusal.text.contains('\n'));
        }
    }
}

/// Makes one gRPC call, as generated clients do.
async fn unary(client: &mut tonic::client::Grpc<Channel>) -> Result<(), tonic::Status> {
    client.ready().await.map_err(|e| tonic::Status::from_error(Box::new(e)))?;
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = http::uri::PathAndQuery::from_static("/leasehold.v1.Test/Call");
    client.unary(tonic::Request::new(()), path, codec).await.map(drop)
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = TestServer::start(Protocol::Grpc).await;
    let address = silent.local_addr().unwrap().to_string();
    let endpoint = Endpoint::new(&address, server.endpoint().server_id().clone()).unwrap();
    let source =
        Arc::new(StaticSource::new(Some(Arc::new(server.ca.svid("/a").svid())), bundles(&[&server.ca])));
    let connector = Connector::new(source, server.clock.clone(), endpoint);
    let connecting = connector.connect(Alpn::Http1);
    tokio::pin!(connecting);
    let error = loop {
        tokio::select! {
            done = &mut connecting => break done.err().unwrap(),
            () = tokio::task::yield_now() => server.clock.advance(limits::HANDSHAKE),
        }
    };
    assert!(matches!(&error, ConnectError::TimedOut { address: at } if *at == address), "{error:?}");
}

#[tokio::test]
async fn what_is_no_failure_to_connect_is_not_explained_as_one() {
    assert!(explain(&tonic::Status::not_found("no such job")).is_none());
    assert!(explain(&std::io::Error::other("disk")).is_none());
    let wrapped = std::io::Error::other(ConnectError::OwnSvidAbsent);
    assert!(matches!(explain(&wrapped), Some(ConnectError::OwnSvidAbsent)));
}

#[tokio::test]
async fn a_channel_takes_the_rotated_svid_at_its_next_connection() {
    let server = TestServer::start(Protocol::Grpc).await;
    let (source, connector) = server.client(&server.ca.svid("/a"));
    let x5t = |dialed: Dialed| *dialed.server.x5t_s256();
    let before = x5t(connector.connect(Alpn::Http2).await.unwrap());
    assert_eq!(before, x5t(connector.connect(Alpn::Http2).await.unwrap()));
    let next = server.ca.issue("spiffe://a.example/daemon", &|p| {
        p.not_after = crate::identity::testing::at(NOW.plus(2 * HOUR));
    });
    server.source.replace(Some(Arc::new(next.svid())), bundles(&[&server.ca]));
    assert_ne!(before, x5t(connector.connect(Alpn::Http2).await.unwrap()));
    source.replace(Some(Arc::new(server.ca.svid("/b").svid())), bundles(&[&server.ca]));
    let mut channel = connector.connected_channel().await.unwrap();
    use tower::{Service, ServiceExt};
    let request = http::Request::builder().uri("https://daemon/who").body(Body::empty()).unwrap();
    channel.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(server.last_connection().peer.spiffe_id().path(), "/b");
}
