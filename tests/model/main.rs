//! The rules of fences and leases under the interleavings that a few thousand random and priority schedules find.
//!
//! The registry and the table are the real ones, on shuttle's primitives; `world.rs` models the broker's order in a few
//! lines. Each history is here twice: with all rules, and with one of them left out, which must be detected.
//!
//! `cargo test --no-default-features --features shuttle --test model`
#![allow(clippy::restriction, reason = "a test that cannot go on has failed")]

mod asking;
mod bookkeeping;
mod checking;
mod feed;
mod renewing;
mod restart;
mod world;
