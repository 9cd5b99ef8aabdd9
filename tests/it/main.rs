//! Leasehold from the outside: each test starts the real daemon, with its own authorities, files and clock, and talks to it
//! over mutual TLS. No test shares anything with another, and none waits for real time, because the test moves the clock.
#![allow(
    clippy::restriction,
    clippy::err_expect,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed"
)]

mod guarded;
mod harness;

mod accounting;
mod approvals;
mod archived;
mod audit;
mod bad_input;
mod bench;
mod checkpoints;
mod commands;
mod configuration;
mod controls;
mod decided;
mod direct_keys;
mod emergencies;
mod endings;
mod exceptions;
mod faults;
mod feed;
mod foreign;
mod gateway;
mod governed;
mod idempotency;
mod laws;
mod ledger;
mod lifecycle;
mod local_folders;
mod locks;
mod login;
mod login_command;
mod matrix;
mod members;
mod mistakes;
mod moved;
mod notices;
mod own_history;
mod param_sweeps;
mod pasted_keys;
mod pasted_tokens;
mod path;
mod policy_changes;
mod policy_code;
mod reach;
mod recall;
mod renewal;
mod requeue;
mod restart;
mod room;
mod rotations;
mod run;
mod samples;
mod second_look;
mod sizes;
mod stories;
mod surfaces;
mod tenants;
mod workload_api;

#[path = "../workload/mod.rs"]
mod workload;
