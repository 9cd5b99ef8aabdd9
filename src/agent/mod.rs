//! The wrapper and the sidecar: what `leasehold run` and `leasehold agent` do beside a training process.
//!
//! Owns the job specification file, the child process and all that descends from it, the files that credentials are
//! handed over in, and the pace of retries. Never decides anything about access, never puts a secret into an argument,
//! an environment variable or a log, and never lets an ending of access wait for the end of a process.
//!
//! | Noun | Files |
//! |---|---|
//! | access, kept: join, beat, come back, renew | `access` `begin` `member` `stream` `holdings` `held` `schedule` `work` `session` |
//! | files | `credentials` `index` `folder` `manifest` |
//! | asking, and what an answer means | `calls` `retry` `meaning` `advice` |
//! | a command, with all that it starts | `run` `front` `child` `guard` `processes` `cgroup` `command` `environment` `ending` `signals` `terminal` `rlimits` |
//! | a process that was there before | `beside` `neighbour` |

mod access;
mod advice;
mod begin;
mod beside;
mod calls;
mod cgroup;
mod child;
mod command;
mod credentials;
mod ending;
mod environment;
mod folder;
mod front;
mod guard;
mod held;
mod holdings;
mod index;
mod manifest;
mod meaning;
mod member;
mod neighbour;
mod processes;
mod retry;
mod rlimits;
mod run;
mod schedule;
mod session;
mod signals;
mod spec;
mod stream;
mod terminal;
mod voice;
mod work;

pub use access::{JoinOptions, JoinTarget, RunContext, RunError, SvidPaths};
pub use advice::explain_refusal;
pub use beside::{SidecarEnd, SidecarOptions, run_sidecar};
pub use child::{Child, ChildHandle, ChildSpec, SpawnError};
pub use command::{CommandError, resolve};
pub use credentials::{CredentialDir, CredentialError};
pub use ending::{ChildEnd, Ended};
pub use environment::ChildEnvironment;
pub use folder::Readers;
pub use front::{FrontPipes, run_in_front};
pub use guard::guard;
pub use index::{Index, IndexEntry, IndexResource};
pub use neighbour::StopConditions;
pub use processes::Left;
pub use retry::Backoff;
pub use rlimits::limit_of;
pub use run::{RunOptions, run};
pub use signals::{SignalNumber, Signals};
pub use spec::{OnRevoke, RunSettings, RunSpec};
pub use voice::MessageSink;
