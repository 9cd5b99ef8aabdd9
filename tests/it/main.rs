//! Leasehold from the outside: each test starts the real daemon, with its own authorities, files and clock, and talks to it
//! over mutual TLS. No test shares anything with another, and none waits for time: the clock is moved by hand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

mod harness;

mod bad_input;
mod endings;
mod ledger;
mod matrix;
mod path;
