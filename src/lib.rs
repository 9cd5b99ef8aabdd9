//! Leasehold.

pub mod clock;
pub mod fence;
#[cfg(feature = "server")]
pub mod ledger;
pub mod limits;
pub mod name;
pub mod proto;
pub mod reason;
pub mod secret;
