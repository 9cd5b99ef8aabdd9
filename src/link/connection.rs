//! What a request knows of the connection it came on.

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
    #[error("the SVID that opened this connection ended at {not_after}: connect again with its successor")]
    SvidExpired { not_after: Wall },
    #[error("the SVID that opened this connection is no longer trusted: connect again with another")]
    SvidUntrusted { why: SvidError },
    #[error(
        "this identity has {max} connections open, as many as one may now: close some, or try again in a moment"
    )]
    PeerFull { max: usize },
    #[error(
        "an answer was not read for {waited} s, so the connection is closed: read faster, or ask for less"
    )]
    NotRead { waited: u64 },
    #[error("the server is stopping: connect again")]
    ShuttingDown,
    #[error("the connection is closed")]
    Closed,
}

impl ConnectionEnd {
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

/// Where a request came from: link puts one into the extensions of each. A clone is a few pointers.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who it is, verified.
    pub peer: Peer,
    /// Cancelled when the connection ends, whatever ended it. Streams and transfers watch it and stop.
    pub ended: CancellationToken,
    /// For logs. Nothing is decided by it.
    pub remote: SocketAddr,
    ending: Arc<OnceLock<ConnectionEnd>>,
    hold: Arc<PeerValidity>,
    pub(super) cut: CancellationToken,
}

impl Connection {
    /// `trust` is of the source that the peer was verified by.
    pub(super) fn new(peer: Peer, remote: SocketAddr, trust: watch::Receiver<Arc<Trust>>) -> Self {
        let (ended, cut) = (CancellationToken::new(), CancellationToken::new());
        let hold = Arc::new(PeerValidity::new(&peer, trust));
        Connection { peer, ended, remote, ending: Arc::new(OnceLock::new()), hold, cut }
    }

    /// Whether requests on it are served now: its SVID holds, by the bundles of this very moment. For each use; costs a few
    /// loads, and the signatures of the chain at the first use after a change of the bundles.
    pub fn check(&self, now: Wall) -> Result<(), ConnectionEnd> {
        if self.ended.is_cancelled() {
            return Err(self.ending());
        }
        self.holds(now).map(drop)
    }

    /// Until when the SVID holds, as far as is known now; why it does not.
    pub(super) fn holds(&self, now: Wall) -> Result<Wall, ConnectionEnd> {
        let until = self.hold.until(&self.peer, now).map_err(|why| match why {
            SvidError::Expired { not_after } => ConnectionEnd::SvidExpired { not_after },
            why => ConnectionEnd::SvidUntrusted { why },
        })?;
        if now >= until {
            return Err(ConnectionEnd::SvidExpired { not_after: until });
        }
        Ok(until)
    }

    /// Why it ended. Means something once [`Connection::ended`] is cancelled.
    pub fn ending(&self) -> ConnectionEnd {
        self.ending.get().cloned().unwrap_or(ConnectionEnd::Closed)
    }

    /// Closes it at once, with all that is under way on it: the last resort against a client that reads no more, whose
    /// transfer nothing else can stop.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Ends it because the client does not read what it asked for: it is asked to go, and cut after the grace.
    pub fn end_unread(&self, waited: std::time::Duration) {
        self.end(ConnectionEnd::NotRead { waited: waited.as_secs() });
    }

    /// The first cause stays. The cause is there before anybody is woken.
    pub(super) fn end(&self, ending: ConnectionEnd) {
        let _ = self.ending.set(ending);
        self.ended.cancel();
    }
}

/// What the newest bundles say of a peer, kept so that its chain is verified once for each of them, whoever asks first: a
/// request, or the connection's own task. No lock across it: two that ask at once both verify, and come to the same.
struct PeerValidity {
    trust: watch::Receiver<Arc<Trust>>,
    /// The revision of the bundles that the chain was verified against last.
    revision: AtomicU64,
    /// The first end that any of them gave, in milliseconds. Written before the revision, and read after it.
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

/// The answer to a request on a connection that has ended: gRPC's UNAUTHENTICATED, RESOURCE_EXHAUSTED where the identity has
/// its share, or UNAVAILABLE at shutdown, with the Reason; to other HTTP 401, 429 or 503 with nothing in it.
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
