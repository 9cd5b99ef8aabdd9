//! A small server for tests: real TCP, real TLS, a manual clock.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    accept::{Acceptor, serve},
    connect::{Connector, Endpoint},
    connection::Connection,
    failure::{HandshakeFailure, HandshakeObserver},
    options::{Protocol, ServeOptions},
};
use crate::{
    clock::manual::ManualClock,
    identity::{
        StaticSource,
        testing::{IssuedCertificate, NOW, TestCa, bundles},
    },
};

pub(super) const DAEMON: &str = "spiffe://a.example/daemon";
pub(super) type Body = tonic::body::Body;

/// A server of the trust domain `a.example`, with a record of its connections and failures.
pub(super) struct TestServer {
    pub(super) clock: Arc<ManualClock>,
    pub(super) source: Arc<StaticSource>,
    pub(super) ca: TestCa,
    pub(super) address: SocketAddr,
    pub(super) shutdown: CancellationToken,
    pub(super) serving: JoinHandle<()>,
    pub(super) failures: Arc<Mutex<Vec<HandshakeFailure>>>,
    pub(super) failed: Arc<Notify>,
    /// The connections on which requests arrived, in order.
    pub(super) seen: Arc<Mutex<Vec<Connection>>>,
    /// Notify it to let `/gate` respond.
    pub(super) gate: Arc<Notify>,
}

impl TestServer {
    pub(super) async fn start(protocol: Protocol) -> Self {
        Self::with(protocol, ServeOptions::default()).await
    }

    pub(super) async fn with(protocol: Protocol, mut options: ServeOptions) -> Self {
        let ca = TestCa::new("a.example");
        let clock = Arc::new(ManualClock::new(NOW));
        let daemon = ca.issue(DAEMON, &|p| {
            p.not_after = crate::identity::testing::at(NOW.plus(Duration::from_secs(6 * 3600)));
        });
        let source = Arc::new(StaticSource::new(Some(Arc::new(daemon.svid())), bundles(&[&ca])));
        let (failures, failed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let (noted, notify) = (failures.clone(), failed.clone());
        options.observer = HandshakeObserver::new(move |failure| {
            noted.lock().unwrap().push(failure.clone());
            notify.notify_one();
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Notify::new());
        let (connections, opened) = (seen.clone(), gate.clone());
        let service = tower::service_fn(move |request: Request<Incoming>| {
            let connection = request.extensions().get::<Connection>().unwrap().clone();
            connections.lock().unwrap().push(connection.clone());
            answer(request.uri().path().to_owned(), connection, opened.clone())
        });
        let acceptor = Acceptor::new(source.clone(), clock.clone(), protocol);
        let serving = tokio::spawn(serve(listener, acceptor, service, options, shutdown.clone()));
        TestServer { clock, source, ca, address, shutdown, serving, failures, failed, seen, gate }
    }

    /// Returns the source and the connector of a client with this SVID.
    pub(super) fn client(&self, issued: &IssuedCertificate) -> (Arc<StaticSource>, Connector) {
        let source = Arc::new(StaticSource::new(Some(Arc::new(issued.svid())), bundles(&[&self.ca])));
        (source.clone(), Connector::new(source, self.clock.clone(), self.endpoint()))
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::new(&self.address.to_string(), DAEMON.parse().unwrap()).unwrap()
    }

    /// Waits for the next failed handshake, and returns it.
    pub(super) async fn failure(&self) -> HandshakeFailure {
        loop {
            if let Some(failure) = self.failures.lock().unwrap().pop() {
                return failure;
            }
            self.failed.notified().await;
        }
    }

    pub(super) fn last_connection(&self) -> Connection {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

/// Answers a request. `/stream`: a first chunk, then the end of the connection. `/stuck`: a first chunk, and no end. `/gate`: a
/// response when the gate is opened. Any other path: the SPIFFE ID of the client.
async fn answer(
    path: String,
    connection: Connection,
    gate: Arc<Notify>,
) -> Result<Response<Body>, Infallible> {
    let id = connection.peer.spiffe_id().to_string();
    let first =
        futures_util::stream::once(async { Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"first"))) });
    let body = match path.as_str() {
        "/stream" => {
            let end = futures_util::stream::once(async move {
                connection.ended.cancelled().await;
                Ok(Frame::data(Bytes::from_static(connection.ending().reason().code().as_bytes())))
            });
            Body::new(BodyExt::map_err(StreamBody::new(first.chain(end)), |never| match never {}))
        }
        "/stuck" => {
            let stuck = first.chain(futures_util::stream::pending());
            Body::new(BodyExt::map_err(StreamBody::new(stuck), |never| match never {}))
        }
        "/gate" => {
            gate.notified().await;
            Body::new(http_body_util::Full::from(id))
        }
        _ => Body::new(http_body_util::Full::from(id)),
    };
    Ok(Response::new(body))
}
