//! The accept loop: what tonic's own server cannot do, a deadline for each connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, Either, Ready, ready};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{io::InspectReader, sync::CancellationToken, task::TaskTracker};
use tower::{BoxError, Service, ServiceExt};

use super::{
    class::CallerClass,
    connection::{Connection, ConnectionEnd, refusal},
    failure::{FailureCause, FailureLog, HandshakeFailure},
    options::{Protocol, ServeOptions},
    room::ConnectionRoom,
    share::Full,
};
use crate::{
    clock::Clock,
    identity::{IdentitySource, Peer, Trust, server_config},
    limits,
};

/// Turns TCP connections into attested ones. A clone is a few pointers.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    protocol: Protocol,
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
}

impl Acceptor {
    pub fn new(source: Arc<dyn IdentitySource>, clock: Arc<dyn Clock>, protocol: Protocol) -> Self {
        let config = server_config(source.clone(), clock.clone(), protocol.alpn());
        Acceptor { tls: TlsAcceptor::from(config), protocol, source, clock }
    }

    /// The handshake. The receiver has seen the very trust that the peer was verified by, so that no change is missed.
    ///
    /// Where others wait for its place, one that stands still is given up at once, and one that goes on sooner than
    /// else: half-open handshakes, however many, keep nobody out.
    async fn accept(&self, tcp: TcpStream, places: &Semaphore) -> Result<Accepted, FailureCause> {
        let bytes = Arc::new(AtomicUsize::new(0));
        let heard_by = bytes.clone();
        let count = move |heard: &[u8]| {
            heard_by.fetch_add(heard.len(), Ordering::Relaxed);
        };
        let mut handshake = self.tls.accept(CountedTcp::new(tcp, Box::new(count)));
        let began = self.clock.now().boot;
        let mut heard = 0;
        let tls = loop {
            // The handshake comes first: what has arrived is read before it counts as silence, however busy we are.
            tokio::select! {
                biased;
                tls = &mut handshake => break tls.map_err(|e| FailureCause::of(&e))?,
                () = self.clock.sleep(limits::HANDSHAKE_SILENCE) => {}
            }
            let took = self.clock.now().boot.since(began);
            if took >= limits::HANDSHAKE {
                return Err(FailureCause::TimedOut);
            }
            let so_far = bytes.load(Ordering::Relaxed);
            let stands_still = so_far == heard;
            if places.available_permits() == 0 && (stands_still || took >= limits::HANDSHAKE_CROWDED) {
                return Err(FailureCause::GaveWay);
            }
            heard = so_far;
        };
        let mut trust = self.source.watch();
        let bundles = trust.borrow_and_update().bundles.clone();
        let peer =
            Peer::of_client(tls.get_ref().1, self.clock.now().wall, &bundles).map_err(FailureCause::Svid)?;
        Ok(Accepted { tls, peer, trust })
    }
}

/// Counts the bytes that come in.
type CountingStream<S> = InspectReader<S, Box<dyn FnMut(&[u8]) + Send>>;
type CountedTcp = CountingStream<TcpStream>;

struct Accepted {
    tls: TlsStream<CountedTcp>,
    peer: Peer,
    trust: watch::Receiver<Arc<Trust>>,
}

/// Serves a listener until `shutdown`, then drains its connections, and returns when the last is gone.
///
/// Each request carries a [`Connection`] in its extensions. A connection ends at its SVID's NotAfter, or when a change of
/// the bundles leaves it without a root, or at shutdown: its [`Connection::ended`] is cancelled, the client is told to
/// go (GOAWAY), requests that still come on it are refused, and after a grace it is cut.
///
/// One task for the loop and one for each connection. A connection's failure ends that connection alone.
pub async fn serve<S, B>(
    listener: TcpListener,
    acceptor: Acceptor,
    service: S,
    options: ServeOptions,
    shutdown: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Default + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let tasks = TaskTracker::new();
    let waiting = Arc::new(Semaphore::new(options.waiting_max));
    let shared = Arc::new(ListenerState {
        http: http(acceptor.protocol, &options, options.streams_max),
        http_unknown: http(acceptor.protocol, &options, limits::STREAMS_UNKNOWN_MAX),
        handshakes: Arc::new(Semaphore::new(options.handshakes_max)),
        room: ConnectionRoom::new(&options),
        failures: FailureLog::new(acceptor.clock.clone(), options.observer.clone()),
        acceptor,
        options,
        shutdown: shutdown.clone(),
    });
    let accept = async {
        loop {
            // Who has no place here waits in the kernel, whose queue is short: past it, connecting itself takes seconds.
            let Ok(place) = waiting.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((tcp, remote)) => {
                    tasks.spawn(attend(tcp, remote, place, shared.clone(), service.clone()));
                }
                Err(error) => {
                    // Out of files, most often: others must close first.
                    tracing::warn!(%error, "a connection could not be accepted");
                    shared.acceptor.clock.sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = accept => {}
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// What the connections of one listener share.
struct ListenerState {
    http: auto::Builder<TokioExecutor>,
    http_unknown: auto::Builder<TokioExecutor>,
    acceptor: Acceptor,
    options: ServeOptions,
    handshakes: Arc<Semaphore>,
    room: ConnectionRoom,
    failures: FailureLog,
    shutdown: CancellationToken,
}

/// What HTTP/2 buffers for one connection: what arrives up to the window of the connection, and what waits to be sent up to
/// `SEND_BUFFER_BYTES` for each stream.
fn http(protocol: Protocol, options: &ServeOptions, streams_max: u32) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::PING)
        .keep_alive_timeout(limits::PING)
        .max_concurrent_streams(streams_max)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(limits::SEND_BUFFER_BYTES)
        .max_header_list_size(options.header_bytes_max);
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HANDSHAKE)
        .max_buf_size(usize::try_from(options.header_bytes_max).unwrap_or(usize::MAX).max(8 << 10));
    match protocol {
        Protocol::Grpc => http.http2_only(),
        Protocol::Http => http,
    }
}

/// One connection, from its handshake to its end.
async fn attend<S, B>(
    tcp: TcpStream,
    remote: SocketAddr,
    waiting: OwnedSemaphorePermit,
    shared: Arc<ListenerState>,
    service: S,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Default + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let refused = |cause| shared.failures.note(&HandshakeFailure { remote, cause });
    let _ = tcp.set_nodelay(true);
    let handshake = tokio::select! {
        place = shared.handshakes.acquire() => place,
        () = shared.acceptor.clock.sleep(limits::HANDSHAKE) => return refused(FailureCause::GaveWay),
        () = shared.shutdown.cancelled() => return,
    };
    drop(waiting);
    let accepted = tokio::select! {
        accepted = shared.acceptor.accept(tcp, &shared.handshakes) => accepted,
        () = shared.shutdown.cancelled() => return,
    };
    let Accepted { tls, peer, trust } = match accepted {
        Ok(accepted) => accepted,
        Err(cause) => return refused(cause),
    };
    let class = shared.options.classify.of(&peer);
    let share = match shared.room.take(class, peer.spiffe_id()) {
        Ok(share) => Ok(share),
        Err(Full::Identity { has }) => match shared.room.refused.clone().try_acquire_owned() {
            Ok(place) => Err((has, place)),
            Err(_) => return refused(FailureCause::Overloaded),
        },
        Err(Full::All { .. }) => return refused(FailureCause::Overloaded),
    };
    drop(handshake);
    let connection = Connection::new(peer, remote, trust.clone());
    let _ended_at_last = connection.ended.clone().drop_guard();
    if let Err((max, _)) = share {
        refused(FailureCause::PeerFull { id: connection.peer.spiffe_id().clone(), max });
        connection.end(ConnectionEnd::PeerFull { max });
    }
    let clock = &shared.acceptor.clock;
    let guarded = Guarded { service, connection: connection.clone(), clock: clock.clone() };
    let http = match class {
        CallerClass::Unknown => shared.http_unknown.clone(),
        CallerClass::Known | CallerClass::Operator => shared.http.clone(),
    };
    // What was agreed on is spoken: a bad preface is no HTTP/1.1.
    let is_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2") && http.is_http1_available();
    let http = if is_h2 { http.http2_only() } else { http };
    let (tls, greeted) = greeting(tls);
    let http = http.serve_connection(TokioIo::new(tls), guarded);
    tokio::pin!(http);
    let ending = tokio::select! {
        closed = http.as_mut() => {
            if let Err(error) = closed {
                tracing::debug!(%remote, %error, "connection lost");
            }
            return;
        }
        ending = ending(&connection, trust, clock, &shared.shutdown) => ending,
        // Stays as long as a client needs to ask once and to be told why not.
        () = clock.sleep(shared.options.grace), if share.is_err() => connection.ending(),
        () = connection.ended.cancelled(), if share.is_ok() => connection.ending(),
        () = connection.cut.cancelled() => return,
        () = silent(greeted) => return refused(FailureCause::Silent),
    };
    tracing::debug!(%remote, peer = ?connection.peer, %ending, "connection ends");
    let grace =
        if ending == ConnectionEnd::ShuttingDown { shared.options.drain } else { shared.options.grace };
    connection.end(ending);
    http.as_mut().graceful_shutdown();
    tokio::select! {
        _ = http => {}
        () = clock.sleep(grace) => {}
        () = connection.cut.cancelled() => {}
    }
}

/// The bytes with which every HTTP/2 client begins (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;

/// Counts what a peer says after its handshake. HTTP/1.1 has its own deadline: the one for a request's headers.
fn greeting(tls: TlsStream<CountedTcp>) -> (CountingStream<TlsStream<CountedTcp>>, Arc<AtomicUsize>) {
    let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let heard = Arc::new(AtomicUsize::new(if is_http2 { 0 } else { PREFACE_BYTES }));
    let counter = heard.clone();
    let count = move |bytes: &[u8]| {
        counter.fetch_add(bytes.len(), Ordering::Relaxed);
    };
    (InspectReader::new(tls, Box::new(count)), heard)
}

/// Resolves if a peer has not even begun to speak HTTP/2 in time. Pings, which find a dead peer, are sent only after that.
async fn silent(heard: Arc<AtomicUsize>) {
    tokio::time::sleep(limits::HANDSHAKE).await;
    if heard.load(Ordering::Relaxed) >= PREFACE_BYTES {
        std::future::pending::<()>().await;
    }
}

/// Resolves when a connection must end, and says why.
async fn ending(
    connection: &Connection,
    mut trust: watch::Receiver<Arc<Trust>>,
    clock: &Arc<dyn Clock>,
    shutdown: &CancellationToken,
) -> ConnectionEnd {
    loop {
        // Seen first and judged then: what changes in between is seen again.
        trust.mark_unchanged();
        let now = clock.now();
        let until = match connection.holds(now.wall) {
            Ok(until) => until,
            Err(ending) => return ending,
        };
        let changed = async {
            if trust.changed().await.is_err() {
                std::future::pending::<()>().await; // the source is gone: nothing changes any more
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return ConnectionEnd::ShuttingDown,
            () = clock.sleep_until(now.lease_at(until)) => {}
            () = changed => {}
        }
    }
}

/// The service of one connection: puts the [`Connection`] into each request, and refuses those that come after its end.
struct Guarded<S> {
    service: S,
    connection: Connection,
    clock: Arc<dyn Clock>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Guarded<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Default + Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future =
        Either<Ready<Result<Response<B>, BoxError>>, BoxFuture<'static, Result<Response<B>, BoxError>>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if let Err(ending) = self.connection.check(self.clock.now().wall) {
            return Either::Left(ready(Ok(refusal(&request, &ending))));
        }
        request.extensions_mut().insert(self.connection.clone());
        let answer = self.service.clone().oneshot(request);
        Either::Right(Box::pin(async move { answer.await.map_err(Into::into) }))
    }
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
