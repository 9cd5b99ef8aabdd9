//! A member while it runs. `live` is its loop. `leasehold run` or the sidecar controls it through `handle`.

mod answers;
mod connection;
pub(crate) mod handle;
pub(crate) mod live;
mod notices;
mod requests;
pub(crate) mod stream;
