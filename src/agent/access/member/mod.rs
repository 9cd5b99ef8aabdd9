//! The member while it runs.

pub(crate) mod live;
pub(crate) mod requests;
pub(crate) mod stream;
