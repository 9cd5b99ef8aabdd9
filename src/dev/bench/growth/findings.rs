//! What the bench finds out about a growing daemon.

use std::time::Duration;

use crate::dev::bench::{Measured, StormFigure};

/// One result, or the progress towards it.
#[derive(Clone, Debug)]
pub enum GrowthFinding {
    /// The number of leases now, on the way to the next step.
    Progress {
        leases: usize,
        wanted: usize,
    },
    Step(GrowthStep),
    Feed(FeedFigure),
    /// The bench stopped before the largest number. The text says what stopped it.
    Stopped(String),
}

/// What was measured at one number of live leases.
#[derive(Clone, Debug)]
pub struct GrowthStep {
    /// The number of live leases.
    pub leases: usize,
    /// The resident memory of the daemon, in bytes.
    pub memory: u64,
    /// The issues of the last leases, with 64 in flight.
    pub issue: Measured,
    /// Introspections of tokens that the daemon has seen before, one after the other.
    pub look_up: Measured,
    /// What happened when many leases ended together. `None` if the bench stopped before that.
    pub storm: Option<StormFigure>,
    /// The revocation of one job.
    pub revocation: JobRevocation,
}

/// The revocation of one job.
#[derive(Clone, Copy, Debug)]
pub struct JobRevocation {
    /// The number of leases of the job.
    pub leases: usize,
    /// The time of the call.
    pub call: Duration,
    /// The time from the beginning of the call until a verifier on the feed refuses a token of the job.
    pub refused: Duration,
}

/// How long it takes until all verifiers have heard of a revocation.
#[derive(Clone, Debug)]
pub struct FeedFigure {
    /// The number of verifiers, each with its own connection. All are in the process of the bench.
    pub verifiers: usize,
    /// The time from the beginning of the call that revokes until the last verifier refuses the token. Its rate has no meaning.
    pub heard: Measured,
}
