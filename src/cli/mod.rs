//! The command line: one file per subcommand.
//!
//! Owns how a command is written, how answers and refusals read, and the exit codes. Data goes to stdout, the rest to
//! stderr. Decides nothing: what can be known offline is read by the floor that owns it, everything else is asked of the
//! daemon of the chosen context, under one of our own SVIDs.
//!
//! | File | Noun |
//! |---|---|
//! | `args` | [`Cli`]: what can be written, and who does it |
//! | `session` | [`Session`]: the surroundings of one command |
//! | `contexts` | [`Contexts`]: which daemon, as whom; `dev` writes one |
//! | `client` | [`Client`]: asking, with deadlines |
//! | `failure`, `exit` | [`Failure`], [`Exit`]: how refusals read, and the code for each |
//! | `output`, `grid`, `view`, `when`, `words` | what is printed, lists that fit the terminal, answers, moments, and the words that become values |
//! | `ids`, `follow` | ids and their beginnings; following over restarts of the daemon |
//! | `record` | a record of the ledger as one row, and whether it is about a name |
//! | `settle` | waiting until an ending is on disk |
//! | `threads` | what a command runs on |
//! | all others | a subcommand each |

mod args;
mod client;
mod contexts;
mod exit;
mod failure;
mod follow;
mod grid;
mod ids;
mod output;
mod session;
mod settle;
mod threads;
mod view;
mod when;
mod words;

mod agent;
mod audit;
mod begin;
mod catalog;
mod completions;
mod config;
mod context;
mod demo;
mod dev;
mod doctor;
mod init;
mod job;
mod job_list;
mod lease;
mod lock;
mod policy;
mod record;
mod revoke;
mod run;
mod serve;
mod slurm;
mod status;
mod svid;
mod tail;
mod token;
mod unlock;
mod version;
mod whoami;

pub use agent::AgentArgs;
pub use args::Cli;
pub use client::Client;
pub use contexts::{Context, Contexts, NoPlace, SvidFiles, SvidFrom};
pub use demo::DemoArgs;
pub use dev::DevArgs;
pub use exit::Exit;
pub use failure::{Effect, Failure};
pub use output::Format;
pub use run::{JoinArgs, MemberArgs, RunArgs};
pub use serve::ServeArgs;
pub use session::{Chosen, Session};
pub use slurm::SlurmArgs;

#[cfg(test)]
mod daemon_tests;
