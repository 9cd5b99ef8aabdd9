//! `leasehold slurm`: what Slurm's prologs and epilogs tell the daemon.
//!
//! Owns how a run of a Slurm job becomes an attempt, what an epilog's environment says and does not say, and the spool
//! that keeps reports while the daemon is away. Never fails a prolog or an epilog: Slurm would drain the node or requeue the
//! job. Never asks Slurm anything: `squeue` and `scontrol` wait for the slurmctld that waits for the script.
//!
//! | File | Noun |
//! |---|---|
//! | `args` | [`SlurmArgs`]: the subcommands |
//! | `allocation` | `Allocation`: one run of a Slurm job, as a script's environment describes it |
//! | `report` | `Report`: what is to be told of a run |
//! | `spool` | `Spool`: reports and runs on disk |
//! | `teller` | `Teller`: telling the daemon |
//!
//! What was measured on slurmctld 22.05, and is built on (2026-11):
//! - EpilogSlurmctld runs at the moment of `scancel`, of a requeue and of the time limit, with the processes alive for another
//!   KillWait, and with exit code 0:0. So 0:0 is no completion, and a member that is still joined is drained, not cut.
//!   The node's Epilog runs when its processes are gone.
//! - After a requeue both epilogs of the run that ended have the restart count of the run that comes. So the prolog notes the
//!   count of each run, and the epilog reads it there.

mod allocation;
mod args;
mod report;
mod spool;
mod teller;

pub use args::SlurmArgs;

#[cfg(test)]
mod slurm_tests;
