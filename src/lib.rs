//! Leasehold.

#[cfg(feature = "cli")]
pub mod agent;
pub mod clock;
pub mod limits;
pub mod name;
pub mod proto;
pub mod reason;
pub mod secret;
