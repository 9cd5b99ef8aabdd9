//! What a request knows of the connection it came on.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use tokio_util::sync::CancellationToken;
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    clock::Wall,
    identity::{Peer, SvidError},
    reason::Reason,
};

/// The `domain` of the `ErrorInfo` in which link refuses requests on a connection that has ended.
const ERROR_DOMAIN: &str = "leasehold";

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    #[error("the SVID that opened this connection ended at {not_after}: connect again with its successor")]
    SvidExpired { not_after: Wall },
    #[error("the SVID that opened this connection is no longer trusted: connect again with another")]
    SvidUntrusted { why: SvidError },
    #[error(
        "this identity has {max} connections open, as many as one may: close some, or try again in a moment"
    )]
    PeerFull { max: usize },
    #[error("the server is stopping: connect again")]
    ShuttingDown,
    #[error("the connection is closed")]
    Closed,
}

impl Ending {
    pub fn reason(&self) -> Reason {
        match self {
            Ending::SvidExpired { .. } => Reason::SvidExpired,
            Ending::SvidUntrusted { why } => why.reason(),
            Ending::PeerFull { .. } => Reason::Overloaded,
            Ending::ShuttingDown => Reason::ShuttingDown,
            Ending::Closed => Reason::Unreachable,
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
    ending: Arc<OnceLock<Ending>>,
    pub(super) cut: CancellationToken,
}

impl Connection {
    pub(super) fn new(peer: Peer, remote: SocketAddr) -> Self {
        let (ended, cut) = (CancellationToken::new(), CancellationToken::new());
        Connection { peer, ended, remote, ending: Arc::new(OnceLock::new()), cut }
    }

    /// Whether requests on it are served now. For each use; costs two loads and a comparison.
    pub fn check(&self, now: Wall) -> Result<(), Ending> {
        if self.ended.is_cancelled() {
            return Err(self.ending());
        }
        let not_after = self.peer.not_after();
        if now >= not_after {
            return Err(Ending::SvidExpired { not_after });
        }
        Ok(())
    }

    /// Why it ended. Means something once [`Connection::ended`] is cancelled.
    pub fn ending(&self) -> Ending {
        self.ending.get().cloned().unwrap_or(Ending::Closed)
    }

    /// Closes it at once, with all that is under way on it: the last resort against a client that reads no more, whose
    /// transfer nothing else can stop.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// The first cause stays. The cause is there before anybody is woken.
    pub(super) fn end(&self, ending: Ending) {
        let _ = self.ending.set(ending);
        self.ended.cancel();
    }
}

/// The answer to a request on a connection that has ended: gRPC's UNAUTHENTICATED, RESOURCE_EXHAUSTED where the identity has
/// its share, or UNAVAILABLE at shutdown, with the Reason; to other HTTP 401, 429 or 503 with nothing in it.
pub(super) fn refusal<A, B: Default>(request: &Request<A>, ending: &Ending) -> Response<B> {
    let reason = ending.reason();
    let (code, status) = match ending {
        Ending::SvidExpired { .. } | Ending::SvidUntrusted { .. } => {
            (tonic::Code::Unauthenticated, StatusCode::UNAUTHORIZED)
        }
        Ending::PeerFull { .. } => (tonic::Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS),
        Ending::ShuttingDown | Ending::Closed => (tonic::Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
    };
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        let details = ErrorDetails::with_error_info(
            reason.code(),
            ERROR_DOMAIN,
            std::collections::HashMap::<String, String>::new(),
        );
        return tonic::Status::with_error_details(code, ending.to_string(), details).into_http();
    }
    let mut response = Response::new(B::default());
    *response.status_mut() = status;
    response.headers_mut().insert("leasehold-reason", HeaderValue::from_static(reason.code()));
    response
}
