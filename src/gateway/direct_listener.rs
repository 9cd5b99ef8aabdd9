//! The listener for clients without an SVID: TLS with a web certificate, HTTP/1.1 only.
//!
//! Until the gateway has checked the signature of a request, it knows a connection only by its address. The number of such
//! connections is limited, and each must send a good request in time. After the first good request, a connection counts
//! against the limit of its holder instead. So unknown clients take no capacity of known clients.

use std::{
    convert::Infallible,
    net::IpAddr,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    address_room::{AddressPlace, AddressRoom},
    direct_keys::DirectKeys,
    front::Gateway,
};
use crate::{
    clock::Clock,
    limits::{
        CONNECTION_GRACE, GATEWAY_CERTIFICATE_LOOK, GATEWAY_DIRECT_CONNECTIONS_MAX,
        GATEWAY_DIRECT_CONNECTIONS_PER_HOLDER_MAX, GATEWAY_DIRECT_UNPROVEN_MAX,
        GATEWAY_DIRECT_UNPROVEN_PER_ADDRESS_MAX, GATEWAY_DIRECT_UNPROVEN_TIME, GATEWAY_HEADER_BYTES_MAX,
        HANDSHAKE,
    },
    link::{Share, Shares, WebFault, web_tls},
    name::SpiffeId,
    reason::{Reason, Refusal},
    secret::NoRandomness,
    verify::KeyResolver,
};

/// The certificate of the listener. The gateway reads its files again every [`GATEWAY_CERTIFICATE_LOOK`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebCertificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// A listener for clients without an SVID, bound but not served.
pub struct DirectListener {
    listener: TcpListener,
    certificate: WebCertificate,
    tls: TlsAcceptor,
    keys: DirectKeys,
}

/// Why the listener cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum DirectFault {
    #[error("gateway.direct_{0}")]
    Certificate(#[from] WebFault),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl DirectListener {
    /// Reads the certificate.
    ///
    /// # Errors
    ///
    /// The certificate or its key cannot be used.
    pub fn new(
        listener: TcpListener,
        certificate: WebCertificate,
        resolver: KeyResolver,
    ) -> Result<Self, DirectFault> {
        let tls = web_tls(&certificate.cert, &certificate.key)?;
        Ok(DirectListener { listener, certificate, tls, keys: DirectKeys::new(resolver)? })
    }
}

/// The state that the connections of the listener share.
struct DirectState {
    gateway: Gateway,
    keys: DirectKeys,
    clock: Arc<dyn Clock>,
    unproven: Arc<AddressRoom>,
    proven: Arc<Shares>,
    shutdown: CancellationToken,
}

impl Gateway {
    /// Serves clients without an SVID until the shutdown. [`Gateway::serve`] must run too: it watches uploads and usages.
    pub async fn serve_direct(self, direct: DirectListener, shutdown: CancellationToken) {
        let DirectListener { listener, certificate, tls, keys } = direct;
        let clock = self.sessions.clock().clone();
        let shared = Arc::new(DirectState {
            gateway: self,
            keys,
            clock: clock.clone(),
            unproven: AddressRoom::new(GATEWAY_DIRECT_UNPROVEN_MAX, GATEWAY_DIRECT_UNPROVEN_PER_ADDRESS_MAX),
            proven: Shares::new(GATEWAY_DIRECT_CONNECTIONS_MAX, GATEWAY_DIRECT_CONNECTIONS_PER_HOLDER_MAX),
            shutdown: shutdown.clone(),
        });
        let (newest, tls) = watch::channel(tls);
        // A separate task reads the certificate, because the disk with its files may hang.
        let following = tokio::spawn(follow_certificate(certificate, newest, clock.clone()));
        let _following = AbortOnDropHandle::new(following);
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, remote)) => {
                    let cut = CancellationToken::new();
                    // If there is no place for a connection, it is closed at once.
                    let Some(place) = shared.unproven.take(remote.ip(), cut.clone()) else {
                        metrics::counter!("leasehold_gateway_direct_refused_total").increment(1);
                        continue;
                    };
                    let tls = tls.borrow().clone();
                    tasks.spawn(serve_connection(tcp, remote.ip(), tls, place, cut, shared.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    clock.sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }
}

/// Reads the certificate again and again. If it cannot be used, the last good one stays.
async fn follow_certificate(
    certificate: WebCertificate,
    newest: watch::Sender<TlsAcceptor>,
    clock: Arc<dyn Clock>,
) {
    loop {
        clock.sleep(GATEWAY_CERTIFICATE_LOOK).await;
        let files = certificate.clone();
        let read = tokio::task::spawn_blocking(move || web_tls(&files.cert, &files.key)).await;
        match read {
            Ok(Ok(newer)) => drop(newest.send_replace(newer)),
            Ok(Err(error)) => {
                tracing::error!(%error, "the certificate of the gateway cannot be used: the last good one stays");
            }
            Err(_) => {}
        }
    }
}

/// The limit against which a connection counts: at first the limit for unknown clients, later the limit of its holder.
enum DirectPlace {
    Unproven(#[expect(dead_code, reason = "held until it is dropped")] AddressPlace),
    Proven(#[expect(dead_code, reason = "held until it is dropped")] Share),
}

/// Resolves if no request of a connection has a good signature within [`GATEWAY_DIRECT_UNPROVEN_TIME`].
async fn proves_nothing(clock: &dyn Clock, place: &Mutex<DirectPlace>) {
    clock.sleep(GATEWAY_DIRECT_UNPROVEN_TIME).await;
    if matches!(*place.lock().unwrap_or_else(PoisonError::into_inner), DirectPlace::Proven(_)) {
        std::future::pending::<()>().await;
    }
}

impl DirectState {
    /// Counts a connection against the limit of the first holder that sends a good request on it.
    fn prove(&self, place: &Mutex<DirectPlace>, holder: &SpiffeId) -> Result<(), Refusal> {
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*place, DirectPlace::Unproven(_)) {
            let share = self.proven.take(holder, 1).map_err(|_| {
                Refusal::new(Reason::Overloaded, "this holder has too many connections open: close some")
            })?;
            *place = DirectPlace::Proven(share);
        }
        Ok(())
    }
}

async fn serve_connection(
    tcp: TcpStream,
    remote: IpAddr,
    tls: TlsAcceptor,
    place: AddressPlace,
    cut: CancellationToken,
    shared: Arc<DirectState>,
) {
    let _ = tcp.set_nodelay(true);
    let accepted = tokio::select! {
        accepted = tls.accept(tcp) => accepted,
        () = shared.clock.sleep(HANDSHAKE) => return,
        () = cut.cancelled() => return,
        () = shared.shutdown.cancelled() => return,
    };
    let tls = match accepted {
        Ok(tls) => tls,
        Err(error) => {
            return tracing::debug!(%remote, %error, "the TLS handshake with a client without an SVID failed");
        }
    };
    let place = Arc::new(Mutex::new(DirectPlace::Unproven(place)));
    let unproven = place.clone();
    let service = service_fn(|request: http::Request<Incoming>| {
        let (shared, place, cut) = (shared.clone(), place.clone(), cut.clone());
        async move {
            let proven = |holder: &SpiffeId| shared.prove(&place, holder);
            Ok::<_, Infallible>(shared.gateway.answer_direct(request, &shared.keys, cut, proven).await)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_buf_size(usize::try_from(GATEWAY_HEADER_BYTES_MAX).unwrap_or(usize::MAX));
    let mut http = pin!(http.serve_connection(TokioIo::new(tls), service));
    tokio::select! {
        _ = http.as_mut() => return,
        () = cut.cancelled() => return,
        () = proves_nothing(&*shared.clock, &unproven) => {}
        () = shared.shutdown.cancelled() => {}
    }
    http.as_mut().graceful_shutdown();
    tokio::select! {
        _ = http => {}
        () = cut.cancelled() => {}
        () = shared.clock.sleep(CONNECTION_GRACE) => {}
    }
}
