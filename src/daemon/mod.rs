//! The daemon: the start from a configuration, and the orderly stop after a signal.
//!
//! This module has the order of start and stop, the listeners and the background work. The daemon is ready only when
//! the state is rebuilt and the first record of this run is durable. If a task ends by itself, the daemon shuts down
//! gracefully.
//!
//! | File | Contains |
//! |---|---|
//! | `start` | [`Daemon`]: the order of start and stop, and all tasks in one list |
//! | `failure` | [`StartError`] |
//! | `ledger` | opening the ledger, and keeping copies of its head |
//! | `identity` `rules` | the identity, policy and catalog that a configuration names |
//! | `gateway_process` | [`GatewayProcess`]: a gateway without a daemon |
//! | `inspect` | [`inspect()`]: checks everything that the daemon reads when it starts |
//! | `listeners` | HTTP: issuer, probes and logins |
//! | `notices` | the webhooks that a configuration names |
//! | `telemetry` | logs, and the recorder of metrics |
//! | `metrics` | every metric, with its help |
//! | `free_space` | the check of the free space on the disk |
//! | `open_files` | the limit on open files |

mod failure;
mod free_space;
mod gateway_process;
mod identity;
mod inspect;
mod ledger;
mod listeners;
mod metrics;
mod notices;
mod open_files;
mod rules;
mod start;
mod telemetry;

pub use failure::StartError;
pub use gateway_process::GatewayProcess;
pub use inspect::{ConfigFaults, Inspection, Look, inspect, inspect_gateway};
pub use open_files::{BoundFrom, allow_open_files};
pub use start::{Daemon, Stopped};
pub use telemetry::{init_logging, init_metrics};
