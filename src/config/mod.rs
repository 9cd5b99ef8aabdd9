//! The daemon's configuration: the file `leasehold.toml`.
//!
//! This module reads the file strictly. Unknown keys are errors. All mistakes are reported at once as
//! [`Problems`](crate::written::Problems), each with its line and a correction. Every default that was used can be
//! listed. The module opens no other file, reads no clock and starts nothing: [`Config`] names files and addresses, and
//! the daemon opens them.
//!
//! | File | Contains |
//! |---|---|
//! | `settings` | [`Config`]: always valid once it exists |
//! | `file` | the reading of the file, section by section |
//! | `gateway_file` | [`GatewayConfig`]: the file of a gateway without a daemon |
//! | `federation` | the sections about bundle endpoints |
//! | `identity` | the section about the daemon's identity and the trust domains that it accepts |
//! | `notify` | the sections about webhooks |
//! | `people` | the section about people who log in |
//! | `paths` | [`ConfiguredPath`]: the paths in the configuration, for `config check` |

mod federation;
mod file;
mod gateway_file;
mod identity;
mod notify;
mod paths;
mod people;
mod settings;

pub use file::Loaded;
pub use gateway_file::GatewayConfig;
pub use paths::{ConfiguredPath, PathFault, PathUse};
pub use settings::{
    Config, IdentityConfig, IdentityFrom, IssuerConfig, IssuerListen, LeaseConfig, LedgerConfig, LogConfig,
    LogFormat, PeopleConfig, PolicyConfig, PolicyFrom, RoomConfig, ServerConfig,
};

pub use crate::written::DefaultUsed;

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
