//! The accept loop. Unlike tonic's server, it has a deadline for each connection.

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
    io::AsyncRead,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{io::InspectReader, sync::CancellationToken, task::TaskTracker};
use tower::{BoxError, Service, ServiceExt};

use super::{
    class::{ClassifiedPeer, PeerClass},
    connection::{Connection, ConnectionEnd, refusal},
    failure::{FailureCause, FailureLog, HandshakeFailure},
    handshake_queue::{HandshakePlace, HandshakeQueue},
    options::{Protocol, ServeOptions},
    room::ConnectionRoom,
    share::{Full, Share},
};
use crate::{
    clock::Clock,
    identity::{IdentitySource, Peer, Trust, server_config},
    limits,
};

/// Performs the TLS handshakes of a server. Cloning copies a few pointers.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    protocol: Protocol,
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
}

impl Acceptor {
    /// Makes an acceptor. Each handshake uses the newest SVID and bundles of the source.
    pub fn new(source: Arc<dyn IdentitySource>, clock: Arc<dyn Clock>, protocol: Protocol) -> Self {
        let config = server_config(source.clone(), clock.clone(), protocol.alpn());
        Acceptor { tls: TlsAcceptor::from(config), protocol, source, clock }
    }

    /// Performs a handshake. The returned receiver reports every change of the bundles after those that verified the peer.
    ///
    /// If the queue has no free place, this ends a handshake as soon as it stalls, and a slow one after
    /// [`limits::HANDSHAKE_CROWDED`]. It also ends a handshake if the queue gives its place to another address. So half-open
    /// handshakes cannot keep peers out, even if there are very many.
    async fn accept(&self, tcp: TcpStream, place: &mut HandshakePlace) -> Result<Accepted, FailureCause> {
        let (tcp, bytes) = counted(tcp, 0);
        let mut handshake = self.tls.accept(tcp);
        let began = self.clock.now().boot;
        let mut bytes_before = 0;
        let tls = loop {
            // The handshake is polled first. So bytes that have arrived are read before the peer counts as silent.
            tokio::select! {
                biased;
                tls = &mut handshake => break tls.map_err(|e| FailureCause::of(&e))?,
                () = place.gives_way() => return Err(FailureCause::GaveWay),
                () = self.clock.sleep(limits::HANDSHAKE_SILENCE) => {}
            }
            let took = self.clock.now().boot.since(began);
            if took >= limits::HANDSHAKE {
                return Err(FailureCause::TimedOut);
            }
            let bytes_now = bytes.load(Ordering::Relaxed);
            let is_stalled = bytes_now == bytes_before;
            if (is_stalled || took >= limits::HANDSHAKE_CROWDED) && place.is_crowded() {
                return Err(FailureCause::GaveWay);
            }
            bytes_before = bytes_now;
        };
        let mut trust = self.source.watch();
        let bundles = trust.borrow_and_update().bundles.clone();
        let peer =
            Peer::of_client(tls.get_ref().1, self.clock.now().wall, &bundles).map_err(FailureCause::Svid)?;
        Ok(Accepted { tls, peer, trust })
    }
}

/// A stream that counts the bytes that it receives.
type CountingStream<S> = InspectReader<S, Box<dyn FnMut(&[u8]) + Send>>;
type CountedTcp = CountingStream<TcpStream>;

/// Counts the bytes that a stream receives, from `first` on.
fn counted<S: AsyncRead>(stream: S, first: usize) -> (CountingStream<S>, Arc<AtomicUsize>) {
    let bytes = Arc::new(AtomicUsize::new(first));
    let counter = bytes.clone();
    let count = move |part: &[u8]| {
        counter.fetch_add(part.len(), Ordering::Relaxed);
    };
    (InspectReader::new(stream, Box::new(count)), bytes)
}

struct Accepted {
    tls: TlsStream<CountedTcp>,
    peer: Peer,
    trust: watch::Receiver<Arc<Trust>>,
}

/// Serves a listener until `shutdown`. Then drains its connections, and returns when the last connection has ended.
///
/// Each request has its [`Connection`] in its extensions. A connection ends at its SVID's NotAfter, when a change of the
/// bundles removes its root, or at shutdown. At its end, [`Connection::ended`] is cancelled, GOAWAY is sent to the client, and
/// further requests are refused. The connection is closed after a grace period.
///
/// One task runs the loop, and one task serves each connection. The failure of a connection ends only that connection.
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
    let sockets_max = options.handshakes_max.saturating_add(options.waiting_max);
    let sockets = Arc::new(Semaphore::new(sockets_max.saturating_add(limits::HANDSHAKES_ENDING_MAX)));
    let shared = Arc::new(ListenerState {
        http: http_server(acceptor.protocol, &options, options.streams_max),
        http_unknown: http_server(acceptor.protocol, &options, limits::STREAMS_UNKNOWN_MAX),
        queue: HandshakeQueue::new(&options),
        room: ConnectionRoom::new(&options),
        failures: FailureLog::new(acceptor.clock.clone(), options.observer.clone()),
        acceptor,
        options,
        shutdown: shutdown.clone(),
    });
    let accept = async {
        loop {
            // The queue closes the connections beyond its limit, so this waits only until their tasks have run. Connections
            // must be accepted soon: while a connection waits in the kernel, its address is not known, so the queue cannot give
            // it a turn.
            let Ok(socket) = sockets.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((tcp, remote)) => {
                    tasks.spawn(serve_connection(tcp, remote, socket, shared.clone(), service.clone()));
                }
                Err(error) => {
                    // Usually the process is out of file descriptors, so other connections must close first.
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

/// The state that the connections of one listener share.
struct ListenerState {
    http: auto::Builder<TokioExecutor>,
    http_unknown: auto::Builder<TokioExecutor>,
    acceptor: Acceptor,
    options: ServeOptions,
    queue: HandshakeQueue,
    room: ConnectionRoom,
    failures: FailureLog,
    shutdown: CancellationToken,
}

/// Builds the HTTP server of a connection. HTTP/2 buffers at most one connection window of received bytes, and
/// `SEND_BUFFER_BYTES` of bytes to send for each stream.
fn http_server(protocol: Protocol, options: &ServeOptions, streams_max: u32) -> auto::Builder<TokioExecutor> {
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

/// Serves one connection, from its handshake to its end.
async fn serve_connection<S, B>(
    tcp: TcpStream,
    remote: SocketAddr,
    socket: OwnedSemaphorePermit,
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
    let Admitted { accepted: Accepted { tls, peer, trust }, class, share } = tokio::select! {
        admitted = admit(tcp, remote, &shared) => match admitted {
            Ok(admitted) => admitted,
            Err(cause) => return refused(cause),
        },
        () = shared.shutdown.cancelled() => return,
    };
    drop(socket);
    let connection = Connection::new(peer, remote, trust.clone());
    let _ended_at_last = connection.ended.clone().drop_guard();
    if let Err((max, _)) = share {
        refused(FailureCause::PeerFull { id: connection.peer.spiffe_id().clone(), max });
        connection.end(ConnectionEnd::PeerFull { max });
    }
    let clock = &shared.acceptor.clock;
    let guarded = GuardedService { service, connection: connection.clone(), clock: clock.clone() };
    let http = match class {
        PeerClass::Unknown => shared.http_unknown.clone(),
        PeerClass::Known | PeerClass::Operator => shared.http.clone(),
    };
    // Only the negotiated protocol is accepted. A bad HTTP/2 preface is not treated as HTTP/1.1.
    let is_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2") && http.is_http1_available();
    let http = if is_h2 { http.http2_only() } else { http };
    let (tls, preface_bytes) = counted(tls, 0);
    let http = http.serve_connection(TokioIo::new(tls), guarded);
    tokio::pin!(http);
    let end = tokio::select! {
        closed = http.as_mut() => {
            if let Err(error) = closed {
                tracing::debug!(%remote, %error, "connection lost");
            }
            return;
        }
        end = connection_end(&connection, trust, clock, &shared.shutdown) => end,
        // A refused client stays connected long enough to send one request and read the reason.
        () = clock.sleep(shared.options.grace), if share.is_err() => connection.ending(),
        () = connection.ended.cancelled(), if share.is_ok() => connection.ending(),
        () = connection.cut.cancelled() => return,
        () = preface_timeout(&**clock, preface_bytes) => return refused(FailureCause::Silent),
    };
    tracing::debug!(%remote, peer = ?connection.peer, ending = %end, "connection ends");
    let grace = if end == ConnectionEnd::ShuttingDown { shared.options.drain } else { shared.options.grace };
    connection.end(end);
    http.as_mut().graceful_shutdown();
    tokio::select! {
        _ = http => {}
        () = clock.sleep(grace) => {}
        () = connection.cut.cancelled() => {}
    }
}

/// An accepted connection with its slot. A peer that has reached its limit gets a slot only to read the refusal. In that case,
/// `share` contains the number of its other connections, and this slot.
struct Admitted {
    accepted: Accepted,
    class: PeerClass,
    share: Result<Share, (usize, OwnedSemaphorePermit)>,
}

/// Waits for the turn of the connection's address, performs the handshake, and takes a slot for the connection.
async fn admit(tcp: TcpStream, remote: SocketAddr, shared: &ListenerState) -> Result<Admitted, FailureCause> {
    let _ = tcp.set_nodelay(true);
    let mut place = shared.queue.enter(remote.ip())?;
    tokio::select! {
        turn = place.turn() => turn?,
        () = shared.acceptor.clock.sleep(limits::HANDSHAKE) => return Err(FailureCause::GaveWay),
    }
    let accepted = shared.acceptor.accept(tcp, &mut place).await?;
    drop(place);
    let ClassifiedPeer { class, counted_as } = shared.options.classify.of(&accepted.peer);
    let share = match shared.room.take(class, &counted_as) {
        Ok(share) => Ok(share),
        Err(Full::Identity { has }) => match shared.room.refused.clone().try_acquire_owned() {
            Ok(place) => Err((has, place)),
            Err(_) => return Err(FailureCause::Overloaded),
        },
        Err(Full::All { .. }) => return Err(FailureCause::Overloaded),
    };
    Ok(Admitted { accepted, class, share })
}

/// The length of the preface that every HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;

/// Resolves if a peer has not sent as many bytes as the preface in time. Pings, which detect a dead peer, are sent only after
/// the preface. Without ALPN, these bytes decide between HTTP/2 and HTTP/1.1, and the deadline for headers begins after them. A
/// request of HTTP/1.1 is longer, because it names its host.
async fn preface_timeout(clock: &dyn Clock, bytes: Arc<AtomicUsize>) {
    clock.sleep(limits::HANDSHAKE).await;
    if bytes.load(Ordering::Relaxed) >= PREFACE_BYTES {
        std::future::pending::<()>().await;
    }
}

/// Waits until a connection must end, and returns the reason.
async fn connection_end(
    connection: &Connection,
    mut trust: watch::Receiver<Arc<Trust>>,
    clock: &Arc<dyn Clock>,
    shutdown: &CancellationToken,
) -> ConnectionEnd {
    loop {
        // The mark comes before the check. So if the bundles change during the check, the loop checks again.
        trust.mark_unchanged();
        let now = clock.now();
        let until = match connection.valid_until(now.wall) {
            Ok(until) => until,
            Err(end) => return end,
        };
        let changed = async {
            if trust.changed().await.is_err() {
                std::future::pending::<()>().await; // the source is gone, so nothing changes any more
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return ConnectionEnd::ShuttingDown,
            () = clock.sleep_until(now.lease_at(until)) => {}
            () = changed => {}
        }
    }
}

/// The service of one connection: puts the [`Connection`] into each request, and refuses requests after its end.
struct GuardedService<S> {
    service: S,
    connection: Connection,
    clock: Arc<dyn Clock>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for GuardedService<S>
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
        if let Err(end) = self.connection.check(self.clock.now().wall) {
            return Either::Left(ready(Ok(refusal(&request, &end))));
        }
        request.extensions_mut().insert(self.connection.clone());
        let answer = self.service.clone().oneshot(request);
        Either::Right(Box::pin(async move { answer.await.map_err(Into::into) }))
    }
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
