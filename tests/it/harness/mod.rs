//! What a test needs to use the daemon as its callers do.
//!
//! | File | Contains |
//! |---|---|
//! | `clock` | [`TestClock`]: all three clocks, moved by the test |
//! | `authority` | [`Authority`]: a trust domain that makes valid and invalid SVIDs |
//! | `world` | [`World`]: a daemon with its files, started, stopped and started again |
//! | `client` | [`Client`]: an identity on a connection, and refusals as it sees them |
//! | `worker` | [`Worker`]: a member of an attempt, with its session and its keep-alive stream |
//! | `wrapper` | [`Wrapper`]: a real `leasehold run` with a real child |
//! | `log` | what the daemons have logged |
//! | `port` | [`Port`]: an address that no other process uses while a test runs |
//! | `stopwatch` | [`Stopwatch`]: how long something took, without the time in which this process could not run |
//! | `records` | the ledger, read from its files as an auditor does |

mod authority;
mod client;
mod clock;
mod log;
mod port;
mod records;
mod stopwatch;
mod worker;
mod world;
mod wrapper;

pub use authority::{Authority, Credentials, at, uri};
pub use client::{Client, Refused, refused};
pub use clock::{NOW, TestClock};
#[allow(unused_imports, reason = "not all tests look into the log")]
pub use log::{capture, logged};
pub use port::Port;
pub use records::Records;
#[allow(unused_imports, reason = "not every test reads the plain text")]
pub use records::ledger_text;
pub use stopwatch::Stopwatch;
pub use worker::{IMAGE, Token, Worker, spec};
pub use world::{Setup, World};
#[allow(unused_imports, reason = "for tests that start programs")]
pub use wrapper::plain;
pub use wrapper::{Wrapper, job_toml};

use std::{future::Future, time::Duration};

/// The real time after which a test gives up. It is long because the machine may be busy. No test waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Returns the output of a future. Fails the test if it takes too long.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Checks again and again until the condition is true.
pub async fn eventually(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

// ---------- the cast ----------

pub const DAEMON: &str = "spiffe://leasehold.example/daemon";
pub const LAUNCHER: &str = "spiffe://k8s.acme.example/ns/ci/sa/launcher";
/// Another launcher of the same tenant.
pub const NIGHTLY: &str = "spiffe://k8s.acme.example/ns/ci/sa/nightly";
/// A workload whose identity belongs to one job.
pub const WORKER: &str = "spiffe://k8s.acme.example/ns/ml/job/tuner";
/// A workload of the same tenant that belongs to another job.
pub const OTHER_WORKER: &str = "spiffe://k8s.acme.example/ns/ml/job/other";
/// A workload whose identity several jobs share.
pub const SHARED: &str = "spiffe://hpc.acme.example/slurm/ml-support/node";
/// The daemon of one cluster.
pub const SCHEDULER: &str = "spiffe://hpc.acme.example/slurm/controller";
pub const DISABLED: &str = "spiffe://k8s.acme.example/ns/old/job/tuner";
pub const OPERATOR: &str = "spiffe://people.acme.example/u/ada";
pub const AUDITOR: &str = "spiffe://people.acme.example/audit/eve";
pub const PLATFORM: &str = "spiffe://people.platform.example/ops/root";
pub const GLOBEX_LAUNCHER: &str = "spiffe://k8s.globex.example/ns/ci/sa/launcher";
pub const GLOBEX_WORKER: &str = "spiffe://k8s.globex.example/ns/ml/job/tuner";
pub const GLOBEX_OPERATOR: &str = "spiffe://k8s.globex.example/u/bob";
/// The resource server of acme, which follows the feed.
pub const GATEWAY: &str = "spiffe://k8s.acme.example/ns/data/sa/gateway";
/// An audience of acme that uses only `/keys`.
pub const WEB: &str = "spiffe://k8s.acme.example/ns/data/sa/web";
/// An identity in a trusted domain, without a catalog entry.
pub const NOBODY: &str = "spiffe://k8s.acme.example/ns/default/sa/nobody";

pub const TICKETS: &str = "dataset:acme/tickets@v3";
pub const MODEL: &str = "model:acme/base-7b@2026.10";
pub const LINE: &str = "checkpoint:acme/support-lora";
