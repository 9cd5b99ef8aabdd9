//! The HTTP and HTTPS listeners: probes, discovery and keys.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::Clock,
    limits::{HANDSHAKE, WEB_CONNECTION, WEB_CONNECTIONS_MAX, WEB_REQUEST_BYTES_MAX},
};

/// Serves a router until `shutdown`, over TLS if an acceptor is given. HTTP/1.1 only.
///
/// Accepts every connection at once. If there are too many, closes the connection that has been idle for longest, so
/// idle clients do not block others. A connection stays open for at most [`WEB_CONNECTION`].
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let open = Arc::new(WebConnections::default());
    loop {
        let tcp = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    clock.sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let place = ConnectionPlace::take(&open, shutdown.child_token());
        let (router, tls, clock) = (router.clone(), tls.clone(), clock.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = answer(tcp, tls, router, &place, &*clock) => {}
                () = clock.sleep(WEB_CONNECTION) => {}
                () = place.closed.cancelled() => {}
            }
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// Answers the requests of one connection.
async fn answer(
    tcp: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    place: &ConnectionPlace,
    clock: &dyn Clock,
) {
    let service = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(|request| {
        place.is_active();
        hyper::service::Service::call(&service, request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(WEB_REQUEST_BYTES_MAX);
    match tls {
        None => drop(http.serve_connection(TokioIo::new(tcp), service).await),
        Some(tls) => {
            let tls = tokio::select! {
                tls = tls.accept(tcp) => tls,
                () = clock.sleep(HANDSHAKE) => return,
            };
            if let Ok(tls) = tls {
                drop(http.serve_connection(TokioIo::new(tls), service).await);
            }
        }
    }
}

/// The open connections of a listener. The connection that has been idle for longest is the first.
#[derive(Default)]
struct WebConnections(Mutex<ConnectionOrder>);

#[derive(Default)]
struct ConnectionOrder {
    next: u64,
    /// The connections, by a number that grows with each new connection and request. The lowest has been idle for longest.
    by_turn: BTreeMap<u64, CancellationToken>,
}

/// The position of a connection in the order of idle time.
struct ConnectionPlace {
    open: Arc<WebConnections>,
    turn: AtomicU64,
    /// Cancelled when the connection must end.
    closed: CancellationToken,
}

impl ConnectionPlace {
    /// Takes a slot. If no slot is free, closes the connection that has been idle for longest and takes its slot.
    fn take(open: &Arc<WebConnections>, closed: CancellationToken) -> Self {
        let mut turns = open.turns();
        if turns.by_turn.len() >= WEB_CONNECTIONS_MAX
            && let Some((_, oldest)) = turns.by_turn.pop_first()
        {
            oldest.cancel();
        }
        let turn = turns.add(closed.clone());
        drop(turns);
        ConnectionPlace { open: open.clone(), turn: AtomicU64::new(turn), closed }
    }

    /// Moves the connection to the end of the order, because it has made a request.
    fn is_active(&self) {
        let mut turns = self.open.turns();
        if let Some(closed) = turns.by_turn.remove(&self.turn.load(Ordering::Relaxed)) {
            let turn = turns.add(closed);
            self.turn.store(turn, Ordering::Relaxed);
        }
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let turn = self.turn.load(Ordering::Relaxed);
        self.open.turns().by_turn.remove(&turn);
    }
}

impl WebConnections {
    fn turns(&self) -> MutexGuard<'_, ConnectionOrder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionOrder {
    fn add(&mut self, closed: CancellationToken) -> u64 {
        let turn = self.next;
        self.next = turn.wrapping_add(1);
        self.by_turn.insert(turn, closed);
        turn
    }
}
