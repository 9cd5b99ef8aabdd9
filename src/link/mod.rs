//! Connections: mutual TLS between X.509-SVIDs, both ways of making one.
//!
//! Owns the accept loop, with a deadline for every connection, and the client's connector. A connection lives no longer
//! than the SVID that opened it: it ends at its NotAfter, when a change of the bundles leaves it without a root, and at
//! shutdown. Knows nothing of what is served or asked over it.
//!
//! | File | Noun |
//! |---|---|
//! | `accept` | [`serve`]: the loop, the handshakes, the deadlines |
//! | `connection` | [`Connection`]: what a request knows of where it came from, and the [`Ending`] of it |
//! | `failure` | [`HandshakeFailure`]: who was turned away and why, counted and logged within bounds |
//! | `connect` | [`Connector`]: from a client to a server of a known SPIFFE ID |
//! | `redial` | [`Redial`]: a channel that is made anew when our SVID was rotated |
//! | `connect_error` | [`ConnectError`]: what can be wrong with that, and what to do |
//! | `primed` | a stream whose first bytes were waited for |
//! | `share` | [`Shares`]: what each identity has under way at once |
//! | `class` | [`CallerClass`]: how much room a connection gets, by what the server knows of its peer |

mod accept;
mod class;
mod connect;
mod connect_error;
mod connection;
mod failure;
mod primed;
mod redial;
mod share;
#[cfg(test)]
mod testing;

pub use accept::{Acceptor, Protocol, ServeOptions, serve};
pub use class::{CallerClass, Classify};
pub use connect::{Alpn, Connector, Dialed, Endpoint, EndpointError};
pub use connect_error::{ConnectError, explain};
pub use connection::{Connection, Ending};
pub use failure::{FailureCause, HandshakeFailure, HandshakeObserver};
pub use redial::Redial;
pub use share::{Full, Share, Shares};
