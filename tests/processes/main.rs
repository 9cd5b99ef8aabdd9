//! Real processes under `leasehold run` and `leasehold agent`: how each can end, and what ends with it.
//!
//! `cargo test --test processes -- --nocapture` prints a line for each: what ended, when, by which cause in the ledger, and
//! with which exit code. What this machine cannot do is named as not run.
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
