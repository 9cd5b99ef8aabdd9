//! The local S3 endpoint for programs that know nothing of Leasehold.
//!
//! Programs send plain HTTP to a port on 127.0.0.1 and sign with a local key, which stays the same for the whole attempt. The
//! forwarder passes each request to the gateway over mutual TLS, with the present tokens. So the key of a program never changes. A
//! stolen key gives no access from another machine, to another user or after the end of the attempt.
//!
//! The forwarder never reads a body. If a body is cut, its reader gets an error. The gateway decides about access, not the
//! forwarder.
//!
//! | What | File |
//! |---|---|
//! | accepts connections of this user, within bounds | `listener` |
//! | open connections, and which of them wait for a request | `open_connections` |
//! | which user a connection comes from | `owner` |
//! | the local key, and the key that a request is signed with | `local_key` |
//! | one request of a program, and the copy of it for a gateway | `local_request` |
//! | passes one request on, waits while the member is away | `relay` |
//! | the connections to a gateway, which are used again | `upstream` |
//! | bodies that are cut when access ends | `cut_body` |
//! | refusals in the words of S3 and of the Hugging Face Hub | `refused` |
//! | the files and variables that lead programs to this endpoint | `leading` |
//! | the wrapper's own client of this endpoint | `own_client` |

mod cut_body;
mod leading;
mod listener;
mod local_key;
mod local_request;
mod open_connections;
mod own_client;
mod owner;
mod refused;
mod relay;
mod upstream;

pub use leading::read_local_key;
pub(super) use leading::{CLEARED, LeadingFiles};
pub(super) use listener::{Callers, Forwarder};
