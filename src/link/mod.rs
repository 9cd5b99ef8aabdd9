//! Connections: mutual TLS between X.509-SVIDs, for servers and for clients.
//!
//! Owns the accept loop, with a deadline for every connection, and the client's connector. A connection does not outlive
//! the SVID that opened it: it ends at the SVID's NotAfter, when a change of the bundles removes its root, or at
//! shutdown. Knows nothing of the requests on it.
//!
//! | File | Noun |
//! |---|---|
//! | `accept` | [`serve`]: the accept loop, the handshakes, the deadlines |
//! | `options` | [`ServeOptions`]: the bounds of one listener |
//! | `class` | [`PeerClass`]: what the server knows of a peer, which decides its room |
//! | `handshake_queue` | the queue of handshakes: fair turns by address |
//! | `room` | the room for the connections of one listener |
//! | `share` | [`Shares`]: what each identity has under way at once |
//! | `connection` | [`Connection`]: what a request knows of its connection, and the [`ConnectionEnd`] |
//! | `failure` | [`HandshakeFailure`]: who was refused and why, counted and logged within bounds |
//! | `connect` | [`Connector`]: from a client to a server of a known SPIFFE ID |
//! | `rotating_channel` | [`RotatingChannel`]: a channel that is replaced after our SVID is rotated |
//! | `connect_error` | [`ConnectError`]: why there is no connection, and what to do |
//! | `primed` | a stream whose first bytes have been read ahead |

mod accept;
mod class;
mod connect;
mod connect_error;
mod connection;
mod failure;
mod handshake_queue;
mod options;
mod primed;
mod room;
mod rotating_channel;
mod share;
#[cfg(test)]
mod testing;

pub use accept::{Acceptor, serve};
pub use class::{ClassifiedPeer, Classify, PeerClass};
pub use connect::{Alpn, Connector, Dialed, Endpoint, EndpointError};
pub use connect_error::{ConnectError, explain};
pub use connection::{Connection, ConnectionEnd};
pub use failure::{FailureCause, HandshakeFailure, HandshakeObserver};
pub use options::{Protocol, ServeOptions};
pub use rotating_channel::RotatingChannel;
#[cfg(feature = "server")]
pub(crate) use share::{Full, Share, Shares};
