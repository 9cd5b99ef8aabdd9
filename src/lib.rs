//! Leasehold.

#[cfg(feature = "cli")]
pub mod agent;
#[cfg(feature = "server")]
pub mod catalog;
#[cfg(feature = "cli")]
pub mod cli;
pub mod clock;
#[cfg(feature = "server")]
pub mod config;
pub mod fence;
pub mod identity;
pub mod job;
#[cfg(feature = "server")]
pub mod ledger;
pub mod limits;
pub mod link;
pub mod name;
#[cfg(feature = "server")]
pub mod policy;
pub mod proto;
pub mod reason;
pub mod secret;
pub mod token;
