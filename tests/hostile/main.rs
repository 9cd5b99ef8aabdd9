//! Clients that attack the daemon with frames that no honest client sends: half messages, closed windows, floods.
//!
//! The daemon is a separate process, so that its memory can be measured; attackers speak HTTP/2 over real TLS. Each test is
//! one attack. Meanwhile a well-behaved client and an operator work as usual, and `siege` measures their calls.
//!
//! | File | Contains |
//! |---|---|
//! | `siege` | [`siege::Siege`]: a daemon, its well-behaved client and operator, and the measurements |
//! | `attacker` | [`attacker::Attacker`]: one connection on which anything can be sent |
//! | `bodies` `readers` | attacks by requests that do not end, and by responses that are not read |
//! | `work` | attacks by valid calls that take the daemon's time |
//! | `rooms` `plain` | attacks on connections and waiting places, and on the listeners without mutual TLS |
#![allow(clippy::restriction, clippy::disallowed_methods, reason = "a test that cannot go on has failed")]

#[path = "../it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the other tests from the outside use all of it")]
mod harness;
#[path = "../crash/process.rs"]
#[allow(dead_code, reason = "the tests that kill the daemon use all of it")]
mod process;

mod attacker;
mod bodies;
mod plain;
mod readers;
mod rooms;
mod siege;
mod work;
