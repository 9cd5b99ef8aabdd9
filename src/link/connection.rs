//! The connection of a request.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderValue, Request, Response, header};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Wall,
    identity::{Peer, SvidError, Trust},
    reason::{Reason, Refusal},
};

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionEnd {
    /// The NotAfter of the SVID, or of a certificate above it, has passed.
    #[error("the SVID that opened this connection ended at {not_after}: connect again with its successor")]
    SvidExpired {
        /// The earliest NotAfter of the path.
        not_after: Wall,
    },
    /// The bundles have changed, and the chain does not verify with the new bundles.
    #[error("the SVID that opened this connection is no longer trusted: connect again with another")]
    SvidUntrusted {
        /// The rule that the chain breaks now.
        why: SvidError,
    },
    /// The identity has opened more connections than it may have.
    #[error(
        "this identity has {max} connections open, which is the limit for one identity now: close some, or try again later"
    )]
    PeerFull {
        /// How many connections the identity may have open now.
        max: usize,
    },
    /// The client stopped reading a response: see [`Connection::end_unread`].
    #[error(
        "a response was not read for {waited} s, so the connection is closed: read faster, or request less"
    )]
    NotRead {
        /// How long the server waited, in seconds.
        waited: u64,
    },
    /// The server was asked to stop.
    #[error("the server is stopping: connect again")]
    ShuttingDown,
    /// The client closed the connection, or the network failed.
    #[error("the connection is closed")]
    Closed,
}

impl ConnectionEnd {
    /// Returns the code of the refusal for requests that arrive after the end.
    pub fn reason(&self) -> Reason {
        match self {
            ConnectionEnd::SvidExpired { .. } => Reason::SvidExpired,
            ConnectionEnd::SvidUntrusted { why } => why.reason(),
            ConnectionEnd::PeerFull { .. } => Reason::Overloaded,
            ConnectionEnd::NotRead { .. } => Reason::FellBehind,
            ConnectionEnd::ShuttingDown => Reason::ShuttingDown,
            ConnectionEnd::Closed => Reason::Unreachable,
        }
    }
}

/// The connection of a request. `link` puts it into the extensions of each request. Cloning copies a few pointers.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The verified peer.
    pub peer: Peer,
    /// Cancelled when the connection ends for any reason. After that, streams and transfers stop.
    pub ended: CancellationToken,
    /// The address of the peer, for logs only. No decision depends on it.
    pub remote: SocketAddr,
    ending: Arc<OnceLock<ConnectionEnd>>,
    validity: Arc<PeerValidity>,
    pub(super) cut: CancellationToken,
}

impl Connection {
    /// Makes the connection of a peer. `trust` must come from the source that verified the peer.
    pub(super) fn new(peer: Peer, remote: SocketAddr, trust: watch::Receiver<Arc<Trust>>) -> Self {
        let (ended, cut) = (CancellationToken::new(), CancellationToken::new());
        let validity = Arc::new(PeerValidity::new(&peer, trust));
        Connection { peer, ended, remote, ending: Arc::new(OnceLock::new()), validity, cut }
    }

    /// Checks that requests may be served now: the connection is open, and its SVID is valid by the current bundles. The
    /// check is cheap enough for each use. The first check after a change of the bundles verifies the signatures of the chain.
    ///
    /// # Errors
    ///
    /// Returns why the connection has ended, or must end now.
    pub fn check(&self, now: Wall) -> Result<(), ConnectionEnd> {
        if self.ended.is_cancelled() {
            return Err(self.ending());
        }
        self.valid_until(now).map(drop)
    }

    /// Returns when the SVID stops being valid by the current bundles, or why it is not valid.
    pub(super) fn valid_until(&self, now: Wall) -> Result<Wall, ConnectionEnd> {
        let until = self.validity.until(&self.peer, now).map_err(|why| match why {
            SvidError::Expired { not_after } => ConnectionEnd::SvidExpired { not_after },
            why => ConnectionEnd::SvidUntrusted { why },
        })?;
        if now >= until {
            return Err(ConnectionEnd::SvidExpired { not_after: until });
        }
        Ok(until)
    }

    /// Returns why the connection ended. It is only meaningful after [`Connection::ended`] is cancelled.
    pub fn ending(&self) -> ConnectionEnd {
        self.ending.get().cloned().unwrap_or(ConnectionEnd::Closed)
    }

    /// Closes the connection at once, with all its requests. Use it as the last resort if a client stopped reading in the
    /// middle of a transfer.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Returns a token. When it is cancelled, the connection is closed at once.
    pub fn cutter(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Ends the connection because the client does not read its responses: sends GOAWAY, and closes the connection after the
    /// grace period.
    pub fn end_unread(&self, waited: std::time::Duration) {
        self.end(ConnectionEnd::NotRead { waited: waited.as_secs() });
    }

    /// Ends the connection. The first cause stays, and it is set before any waiting task wakes.
    pub(super) fn end(&self, ending: ConnectionEnd) {
        let _ = self.ending.set(ending);
        self.ended.cancel();
    }
}

/// The time until which a peer is valid by the newest bundles. The result is kept. So the chain is verified once for each
/// revision of the bundles, by a request or by the task of the connection. There is no lock: if two checks run at the same
/// time, both verify, with the same result.
struct PeerValidity {
    trust: watch::Receiver<Arc<Trust>>,
    /// The revision of the bundles in the last verification.
    revision: AtomicU64,
    /// The earliest end of validity that a verification found, in milliseconds. It is written before the revision and read after
    /// it.
    until: AtomicU64,
}

impl PeerValidity {
    fn new(peer: &Peer, trust: watch::Receiver<Arc<Trust>>) -> Self {
        let (revision, until) = (peer.bundle_revision(), peer.not_after().0);
        PeerValidity { trust, revision: AtomicU64::new(revision), until: AtomicU64::new(until) }
    }

    fn until(&self, peer: &Peer, now: Wall) -> Result<Wall, SvidError> {
        let newest = self.trust.borrow().bundles.revision();
        if self.revision.load(Ordering::Acquire) != newest {
            let bundles = self.trust.borrow().bundles.clone();
            let until = peer.check(now, &bundles)?;
            self.until.fetch_min(until.0, Ordering::Relaxed);
            self.revision.store(bundles.revision(), Ordering::Release);
        }
        Ok(Wall(self.until.load(Ordering::Relaxed)))
    }
}

impl fmt::Debug for PeerValidity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerValidity(until {})", Wall(self.until.load(Ordering::Relaxed)))
    }
}

/// Makes the response to a request on a connection that has ended. For gRPC it has the Reason and is `UNAUTHENTICATED`,
/// `RESOURCE_EXHAUSTED` if the identity has reached its limit, or `UNAVAILABLE` at shutdown. For other HTTP it is an empty 401,
/// 429 or 503.
pub(super) fn refusal<A, B: Default>(request: &Request<A>, ending: &ConnectionEnd) -> Response<B> {
    let reason = ending.reason();
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return Refusal::new(reason, ending.to_string()).status().into_http();
    }
    let mut response = Response::new(B::default());
    *response.status_mut() = reason.http_status();
    response.headers_mut().insert("leasehold-reason", HeaderValue::from_static(reason.code()));
    response
}
