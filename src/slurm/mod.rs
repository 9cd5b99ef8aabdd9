//! What the prologs and epilogs of Slurm report to the daemon.
//!
//! Owns how a run of a Slurm job becomes an attempt, what an epilog's environment says, and the spool that keeps reports while
//! the daemon is away. Never asks Slurm anything: `squeue` and `scontrol` wait for the slurmctld that waits for the script.
//!
//! | File | Noun |
//! |---|---|
//! | `allocation` | [`Allocation`]: one run of a Slurm job, as the environment of a script describes it |
//! | `report` | [`RunReport`]: one event in a run |
//! | `spool` | [`Spool`]: reports and notes on disk |
//! | `reporter` | [`Reporter`]: sends reports to the daemon |
//!
//! What was measured on slurmctld 22.05 (2026-11), and is relied on:
//! - `EpilogSlurmctld` runs at `scancel`, at a requeue and at the time limit. The processes live for another `KillWait` then, and
//!   the exit code is 0:0. So 0:0 does not mean success, and an attempt with a joined member is drained, not ended.
//!   The node's Epilog runs when its processes are gone.
//! - After a requeue both epilogs of the run that ended have the restart count of the next run. So the prolog notes the
//!   count of each run, and the epilog reads it there.

mod allocation;
mod report;
mod reporter;
mod spool;

pub use allocation::{Allocation, SlurmEnvError, SlurmRun};
pub use report::{NotedRun, RunEvent, RunReport};
pub use reporter::{CallError, Delivery, Reporter, Scheduler};
pub use spool::{Spool, SpoolError};

#[cfg(test)]
pub use {allocation::SlurmExit, reporter::not_theirs};
