//! The member while it runs: `live` is its loop, `handle` is for the run or sidecar that it belongs to.

mod answers;
mod connection;
pub(crate) mod handle;
pub(crate) mod live;
mod notices;
mod requests;
pub(crate) mod stream;
