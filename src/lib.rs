//! Leasehold.

#[cfg(feature = "server")]
pub mod catalog;
pub mod clock;
pub mod fence;
pub mod limits;
pub mod name;
#[cfg(feature = "server")]
pub mod policy;
pub mod proto;
pub mod reason;
pub mod secret;
