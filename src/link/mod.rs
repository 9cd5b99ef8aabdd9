//! Connections: mutual TLS between X.509-SVIDs, for servers and for clients.
//!
//! This module owns the accept loop, with a deadline for every connection, and the client's connector. A connection ends at the
//! NotAfter of the SVID that opened it, when a change of the bundles removes the SVID's root, or at shutdown. The module does
//! not look at the requests on a connection.
//!
//! | File | Contains |
//! |---|---|
//! | `accept` | [`serve`]: the accept loop, the handshakes, the deadlines |
//! | `listen` | [`listen()`]: a listener with capacity for a burst |
//! | `options` | [`ServeOptions`]: the limits of one listener |
//! | `class` | [`PeerClass`]: the class of a peer, which decides which limits apply |
//! | `handshake_queue` | the queue of handshakes: fair turns by address |
//! | `turn_queue` | [`TurnQueue`]: a queue for places, with fair turns by key |
//! | `room` | the slots for the connections of one listener |
//! | `share` | [`Shares`]: how much of a resource each identity uses at once |
//! | `connection` | [`Connection`]: the connection of a request, and the [`ConnectionEnd`] |
//! | `failure` | [`HandshakeFailure`]: who was refused and why, counted and logged within limits |
//! | `connect` | [`Connector`]: connects a client to a server with a known SPIFFE ID |
//! | `rotating_channel` | [`RotatingChannel`]: a channel that is replaced after our SVID is rotated |
//! | `connect_error` | [`ConnectError`]: why there is no connection, and what to do |
//! | `web_tls` | TLS with a web certificate, for clients without an SVID |
//! | `primed` | a stream whose first bytes have been read ahead |

mod accept;
mod class;
mod connect;
mod connect_error;
mod connection;
mod failure;
mod handshake_queue;
mod listen;
mod options;
mod primed;
mod room;
mod rotating_channel;
mod share;
#[cfg(test)]
mod testing;
mod turn_queue;
#[cfg(feature = "server")]
mod web_tls;

pub use accept::{Acceptor, serve};
pub use class::{ClassifiedPeer, Classify, PeerClass};
pub use connect::{Alpn, Connector, Dialed, Endpoint, EndpointError};
pub use connect_error::{ConnectError, explain};
pub use connection::{Connection, ConnectionEnd};
pub use failure::{FailureCause, HandshakeFailure, HandshakeObserver};
#[cfg(feature = "server")]
pub(crate) use handshake_queue::network;
pub use listen::listen;
pub use options::{Protocol, ServeOptions};
pub use rotating_channel::RotatingChannel;
#[cfg(feature = "server")]
pub(crate) use share::{Full, Share, Shares};
#[cfg(feature = "server")]
pub(crate) use turn_queue::{TurnLimits, TurnPlace, TurnQueue, WhenFull};
#[cfg(feature = "server")]
pub(crate) use web_tls::{WebFault, web_tls};
