//! The daemon as a separate process under bad conditions: killed at random moments under load, stopped by signals at
//! every moment, on a disk that fills up. Clients and connections are real; nothing is simulated.
//!
//! `LEASEHOLD_CRASHES=100 cargo test --test crash -- --nocapture` kills it a hundred times instead of ten;
//! `LEASEHOLD_SEED=N` sets the seed, which each run prints. `LEASEHOLD_IDLE=10000` makes the crowd larger.
#![allow(clippy::restriction, clippy::disallowed_methods, reason = "a test that cannot go on has failed")]

#[path = "../it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the other tests from the outside use all of it")]
mod harness;

mod crowd;
mod dice;
mod disk;
mod fleet;
mod kill;
mod load;
mod loss;
#[allow(dead_code, reason = "the hostile clients use all of it")]
mod process;
mod restart;
mod runs;
mod stop;
mod tenants;
