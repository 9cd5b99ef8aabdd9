//! Leasehold.

#[cfg(feature = "server")]
pub mod catalog;
pub mod clock;
pub mod fence;
pub mod limits;
pub mod name;
pub mod proto;
pub mod reason;
pub mod secret;
