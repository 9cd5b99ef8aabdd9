//! The command line: one file for each subcommand.
//!
//! This module owns the arguments, the form of answers and errors, and the exit codes. Data goes to stdout, and everything else
//! to stderr. The module decides nothing: it reads files with the module that owns them, and asks the daemon of the chosen
//! context.
//!
//! | File | Contains |
//! |---|---|
//! | `args` | [`Cli`]: the command line |
//! | `session` | [`Session`]: the output format, context, identity and clock of one command |
//! | `contexts_file` | [`Contexts`]: the daemons that the user knows, and the user's identity at each |
//! | `client` | [`Client`]: calls with deadlines, and their retries |
//! | `failure`, `exit` | [`Failure`], [`Exit`]: the text of errors, and the exit code of each |
//! | `output`, `table`, `render`, `timestamp` | what is printed: pages, lists that fit the terminal, answers, times |
//! | `parse`, `ids` | values of arguments; ids and their beginnings |
//! | `record` | a record of the ledger as one row, and whether it is about a name |
//! | `stage` | a deployment in a folder, for `demo` and `bench` |
//! | `watch` | a list that is shown again and again |
//! | `confirm` | the question before something large ends |
//! | `wait_durable` | waiting until the record of an ending is on disk |
//! | `approval_request` | a job's request as its approver reads it |
//! | `login_call` `login_files` | the calls of a login to the daemon; its files |
//! | `runtime` | the threads on which a command runs |
//! | `bench_growth` | the results of `bench growth` as reports and values |
//! | `bench_leases` | the results of `bench revoke` and `bench storm` as reports and values |
//! | `bench_gateway` | the results of `bench gateway` as reports and values |
//! | `bench_report` | `BenchReport`: tables and lines, for a terminal or in Markdown |
//! | `bench_results` | the results of `bench`, as reports for people and as a value for programs |
//! | `bench_vault` | the results of `bench vault` as reports and values |
//! | all others | one subcommand in each |

#![allow(clippy::doc_markdown, reason = "clap prints doc comments as help, without Markdown")]

mod args;
mod client;
mod contexts_file;
mod exit;
mod failure;
mod ids;
mod output;
mod parse;
mod render;
mod runtime;
mod session;
mod table;
mod text_diff;
mod timestamp;
mod wait_durable;
mod waivers;
mod watch;

mod agent;
mod approval_request;
mod approvals;
mod approve;
mod audit;
mod audit_tail;
mod bench;
mod bench_gateway;
mod bench_growth;
mod bench_leases;
mod bench_report;
mod bench_results;
mod bench_vault;
mod can_i;
mod catalog;
mod completions;
mod config;
mod confirm;
mod context;
mod controls;
mod dataset;
mod demo;
mod dev;
mod doctor;
mod gateway;
mod init;
mod job;
mod job_begin;
mod job_create;
mod job_list;
mod lease;
mod ledger;
mod lock;
mod login;
mod login_call;
mod login_files;
mod offboard;
mod people;
mod policy;
mod policy_apply;
mod policy_close;
mod policy_explain;
mod policy_sign;
mod policy_test;
mod record;
mod reviews;
mod revoke;
mod run;
mod s3_key;
mod serve;
mod slurm;
mod stage;
mod status;
mod svid;
mod token;
mod verify_clean;
mod version;

pub use args::Cli;
pub use client::Client;
pub use contexts_file::{Context, Contexts, SvidFiles};
pub use exit::Exit;
pub use failure::{Effect, Failure};
pub use output::Format;
pub use session::Session;

#[cfg(test)]
mod daemon_tests;
#[cfg(test)]
mod recall_tests;
