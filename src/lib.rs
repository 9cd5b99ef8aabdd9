//! Leasehold.

pub mod clock;
#[cfg(feature = "cli")]
pub mod dev;
pub mod fence;
pub mod identity;
pub mod job;
pub mod limits;
pub mod link;
pub mod name;
pub mod proto;
pub mod reason;
pub mod secret;
pub mod token;
#[cfg(feature = "verify")]
pub mod verify;
