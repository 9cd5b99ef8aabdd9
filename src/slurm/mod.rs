//! Reports from the prologs and epilogs of Slurm to the daemon.
//!
//! This module decides how a run of a Slurm job becomes an attempt, and reads the environment of an epilog. It also owns the
//! spool that keeps reports while the daemon cannot be reached. It never calls `squeue` or `scontrol`: they wait for the
//! slurmctld that waits for the script.
//!
//! | File | Contains |
//! |---|---|
//! | `allocation` | [`Allocation`]: one run of a Slurm job, read from the environment of a script |
//! | `report` | [`RunReport`]: one event in a run |
//! | `spool` | [`Spool`]: reports and notes on disk |
//! | `reporter` | [`Reporter`]: sends reports to the daemon |
//!
//! The code relies on these measurements of slurmctld 22.05 (2026-11):
//!
//! - `EpilogSlurmctld` runs at `scancel`, at a requeue and at the time limit. The processes then live for another `KillWait`,
//!   and the exit code is 0:0. So 0:0 does not mean success, and an attempt with a joined member is drained, not ended.
//!   The node's Epilog runs when all processes on the node have ended.
//! - After a requeue, both epilogs of the run that ended have the restart count of the next run. So the prolog notes the
//!   count of each run, and the epilog reads the note.

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
