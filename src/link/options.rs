//! The options of one listener.

use std::time::Duration;

use super::{class::Classify, failure::HandshakeObserver};
use crate::limits;

/// The protocol inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Only HTTP/2.
    Grpc,
    /// HTTP/1.1 or HTTP/2, as the client prefers.
    Http,
}

impl Protocol {
    pub(super) fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Protocol::Grpc => &[b"h2"],
            Protocol::Http => &[b"h2", b"http/1.1"],
        }
    }
}

/// The limits of one listener. The defaults are in `limits`.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The number of handshakes at once. Further connections wait.
    pub handshakes_max: usize,
    /// The number of connections that wait for a handshake. If more connections come, the address with the most waiting
    /// connections loses one.
    pub waiting_max: usize,
    /// The number of open connections of known peers. Further connections are closed after their handshake.
    pub connections_max: usize,
    /// The number of open connections of one known SPIFFE ID. On further connections, every request is refused.
    pub connections_per_peer_max: usize,
    /// The number of open connections of unknown peers.
    pub connections_unknown_max: usize,
    /// The number of open connections of one unknown SPIFFE ID.
    pub connections_unknown_per_peer_max: usize,
    /// The number of connections that are reserved for operators. If all are taken, an operator uses a slot of the known peers.
    pub connections_operators_max: usize,
    /// The number of streams on one HTTP/2 connection of a known peer.
    pub streams_max: u32,
    /// The function that decides the class of a peer.
    pub classify: Classify,
    /// The size limit of a request's headers, in bytes.
    pub header_bytes_max: u32,
    /// The time from the end of a connection, such as the NotAfter of its SVID, until it is closed. For a shutdown, see `drain`.
    pub grace: Duration,
    /// The time from the beginning of a shutdown until connections are closed.
    pub drain: Duration,
    /// The function that is called for every failed handshake.
    pub observer: HandshakeObserver,
}

impl Default for ServeOptions {
    fn default() -> Self {
        ServeOptions {
            handshakes_max: limits::HANDSHAKES_MAX,
            waiting_max: limits::HANDSHAKES_WAITING_MAX,
            connections_max: limits::CONNECTIONS_MAX,
            connections_per_peer_max: limits::CONNECTIONS_PER_PEER_MAX,
            connections_unknown_max: limits::CONNECTIONS_UNKNOWN_MAX,
            connections_unknown_per_peer_max: limits::CONNECTIONS_UNKNOWN_PER_PEER_MAX,
            connections_operators_max: limits::CONNECTIONS_OPERATORS_MAX,
            classify: Classify::default(),
            streams_max: limits::STREAMS_PER_CONNECTION_MAX,
            header_bytes_max: limits::HEADER_BYTES_MAX,
            grace: limits::CONNECTION_GRACE,
            drain: limits::SHUTDOWN,
            observer: HandshakeObserver::default(),
        }
    }
}
