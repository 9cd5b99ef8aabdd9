//! The connections to one gateway. A connection carries one request at a time, and is used again for later requests.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Either, Empty};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;

use super::cut_body::CutBody;
use crate::{
    clock::{Clock, LeaseTime},
    limits::{FORWARD_IDLE, FORWARD_IDLE_MAX},
    link::{Alpn, ConnectError, Connector, explain},
};

/// The body of a request to a gateway: the body of the program's request, or no body.
pub(super) type UpstreamBody = Either<CutBody, Empty<Bytes>>;

/// Opens and keeps connections to one gateway. Each connection uses the SVID that was newest when it was opened.
pub(super) struct Upstream {
    connector: Connector,
    clock: Arc<dyn Clock>,
    /// The open connections without a request. The connection that was used last is at the end.
    idle: Mutex<Vec<IdleConnection>>,
}

struct IdleConnection {
    sender: SendRequest<UpstreamBody>,
    svid: Option<[u8; 32]>,
    since: LeaseTime,
}

/// A connection with a request in flight. Dropping the value closes the connection.
pub(super) struct BusyConnection {
    sender: SendRequest<UpstreamBody>,
    svid: Option<[u8; 32]>,
    upstream: Arc<Upstream>,
}

/// Why a request got no answer.
pub(super) enum SendError {
    /// There is no connection, so the gateway did not get the request. It can be sent again.
    NotConnected(ConnectError, Request<UpstreamBody>),
    /// The connection broke during the request.
    Broken(String),
}

impl Upstream {
    pub(super) fn new(connector: Connector, clock: Arc<dyn Clock>) -> Self {
        Upstream { connector, clock, idle: Mutex::default() }
    }

    /// Sends a request, and returns the head of the answer with its connection.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut request: Request<UpstreamBody>,
    ) -> Result<(Response<Incoming>, BusyConnection), SendError> {
        while let Some(mut connection) = self.take_idle() {
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut error) => match error.take_message() {
                    // The gateway had closed the connection, so nothing was sent.
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Broken(broken(error.into_error()))),
                },
            }
        }
        let mut connection = match self.connect().await {
            Ok(connection) => connection,
            Err(error) => return Err(SendError::NotConnected(error, request)),
        };
        match connection.sender.try_send_request(request).await {
            Ok(response) => Ok((response, connection)),
            Err(mut error) => {
                let unsent = error.take_message();
                let error = error.into_error();
                // A gateway that refuses our SVID sends the refusal as its first bytes.
                match (explain(&error), unsent) {
                    (Some(connect), Some(unsent)) => Err(SendError::NotConnected(connect, unsent)),
                    _ => Err(SendError::Broken(broken(error))),
                }
            }
        }
    }

    async fn connect(self: &Arc<Self>) -> Result<BusyConnection, ConnectError> {
        let svid = self.connector.own_svid_digest();
        let dialed = self.connector.connect(Alpn::Http1).await?;
        let (sender, connection) = handshake(TokioIo::new(dialed.tls)).await.map_err(|e| {
            explain(&e).unwrap_or_else(|| ConnectError::Protocol {
                address: self.connector.endpoint().address().to_owned(),
                found: e.to_string(),
            })
        })?;
        tokio::spawn(async move {
            // If the connection fails, the request or the body on it fails too and reports the failure.
            let _ = connection.await;
        });
        Ok(BusyConnection { sender, svid, upstream: self.clone() })
    }

    /// Takes the open connection that was used last, and closes the connections that are too old.
    fn take_idle(self: &Arc<Self>) -> Option<BusyConnection> {
        let (now, svid) = (self.clock.now().lease, self.connector.own_svid_digest());
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|c| now.since(c.since) < FORWARD_IDLE && c.svid == svid && !c.sender.is_closed());
        let at = idle.iter().rposition(|c| c.sender.is_ready())?;
        let IdleConnection { sender, svid, .. } = idle.remove(at);
        Some(BusyConnection { sender, svid, upstream: self.clone() })
    }
}

impl BusyConnection {
    /// Keeps the connection for the next request, unless enough connections are kept.
    pub(super) fn give_back(self) {
        let BusyConnection { sender, svid, upstream } = self;
        let since = upstream.clock.now().lease;
        let mut idle = upstream.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < FORWARD_IDLE_MAX && !sender.is_closed() {
            idle.push(IdleConnection { sender, svid, since });
        }
    }
}

/// Makes one line from the error and its causes.
fn broken(error: hyper::Error) -> String {
    match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
