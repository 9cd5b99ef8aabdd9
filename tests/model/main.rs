//! The rules of fences and leases under every interleaving that a few thousand random and priority schedules find.
//!
//! The registry and the table are the real ones, on shuttle's primitives; the broker's order is modelled by the few lines of
//! `world.rs`. Each history stands here twice: by the rules, and with one of them left out, which must be caught.
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
