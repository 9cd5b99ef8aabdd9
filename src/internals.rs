//! Items for this package's own program, tests and benches that are not part of the API.
//!
//! They may change in every version. A name that is used only inside `src/` does not belong here.

/// The wrapper.
#[cfg(feature = "cli")]
pub mod agent {
    pub use crate::agent::{
        JoinOptions, JoinTarget, MessageSink, RunContext, RunOptions, RunSpec, guard, run,
    };
}

/// Waits between retries.
pub mod backoff {
    pub use crate::backoff::Backoff;
}

/// The use cases.
pub mod broker {
    pub use crate::broker::{Caller, MemberSession, NoticeKind, Rules};
}

/// The catalog of callers and resources.
pub mod catalog {
    pub use crate::catalog::Catalog;
}

/// The commands.
#[cfg(feature = "cli")]
pub mod cli {
    pub use crate::cli::{Cli, Context, Contexts, Exit, SvidFiles};
}

/// The daemon's configuration.
pub mod config {
    pub use crate::config::Config;
}

/// The daemon, started inside a test.
pub mod daemon {
    pub use crate::daemon::{Daemon, StartError, Stopped};
}

/// A trust domain and a daemon for a trial.
#[cfg(feature = "cli")]
pub mod dev {
    pub use crate::dev::{
        Authority, DevDeployment, Role,
        bench::{AllocationFigure, count_allocations},
        demo::Stage,
        free_ports,
    };
}

/// Fences, which the model checkers explore.
pub mod fence {
    pub use crate::fence::{Lowering, Registry, Revision, Seq, Stand, Subscription};
}

/// Leases, which the model checkers explore.
pub mod lease {
    pub use crate::lease::{Facts, Lease, LeaseRefused, QuotaExceeded, Quotas, Table, Terms, Unborn};
}

/// The ledger, as an auditor reads it.
pub mod ledger {
    pub use crate::ledger::{Actor, Dir, HeadPublic, SignedHead, VerifyReport, verify};
}

/// Text that is safe to show.
pub mod plain {
    pub use crate::plain::is_plain;
}

/// Decisions.
pub mod policy {
    pub use crate::policy::{
        Bundle, Decision, Engine, Explain, Grant, JobRisk, Phase, PolicySource, RequestFacts, Rpc,
    };
}
