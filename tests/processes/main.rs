//! Real processes under `leasehold run` and `leasehold agent`: how each can end, and what ends with it.
//!
//! `cargo test --test processes -- --nocapture` prints a row for each case: what ended, when, the cause in the ledger, and the exit
//! code. A case that this machine does not support is printed as not run.
#![allow(clippy::restriction, clippy::disallowed_methods, reason = "a test that cannot go on has failed")]

#[path = "../it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the other tests from the outside use all of it")]
mod harness;

mod agents;
mod crews;
mod people;
mod runs;
mod scene;
mod signals;
mod terminals;
mod threads;
