//! The wrapper and the sidecar: what `leasehold run` and `leasehold agent` do beside a training process.
//!
//! This module owns the job specification file, the credential files, the child process with all its descendants, and the
//! timing of retries. It never decides about access. It never puts a secret into an argument, an environment variable or a log.
//! The end of access never waits for the end of a process.
//!
//! | What | Where |
//! |---|---|
//! | joins the attempt, sends beats, renews leases, writes the credential files | `access/` |
//! | the local S3 endpoint for programs that know nothing of Leasehold | `forward/` |
//! | copies resources to local folders, and uploads the files that a command writes | `folders/` |
//! | starts a command, passes signals on, ends all its descendants; watches a process that it did not start | `process/` |
//! | reads the job specification file | `spec/` |
//! | `leasehold run`: access and a command | `run` `starting` |
//! | `leasehold agent`: access for a process that runs already, and its ready file | `sidecar` `ready_file` |
//! | the messages of both | `messages` |

mod access;
mod folders;
mod forward;
mod messages;
mod process;
mod ready_file;
mod run;
mod sidecar;
mod spec;
mod starting;

pub use access::{
    advice::explain_refusal,
    folder::Readers,
    obtain::{JoinOptions, JoinTarget, RunContext, RunError, SvidPaths},
    session::session_in,
};
pub use forward::read_local_key;
pub use messages::MessageSink;
pub use process::{
    front::{FrontPipes, run_in_front},
    guard::guard,
    rlimits::limit_of,
    work_watch::StopConditions,
};
pub use run::{RunOptions, run};
pub use sidecar::{SidecarEnd, SidecarOptions, run_sidecar};
pub use spec::{OnRevoke, RunSettings, RunSpec, variable_name};
