//! Exit codes: a fixed list that scripts can rely on.

use std::process::ExitCode;

use crate::reason::{Class, Reason};

/// The exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The command did what it was asked.
    Ok,
    /// A failure that has no other exit code.
    Failure,
    /// The caller may not do this.
    Denied,
    /// People must approve the job first.
    AwaitingApproval,
    /// The job, attempt or lease is over, or a newer attempt has begun.
    Ended,
    /// The change is in force but not on disk yet. Or the request was refused, because its record might not be on disk.
    NotDurable,
    /// `verify-clean` found something.
    NotClean,
    /// A check failed: a token, a ledger or a head is not genuine.
    VerificationFailed,
    /// The command line or a file that it names is wrong.
    Usage,
    /// The exit code of `run`: the exit code of its command, or 125 to 127 for failures of `run`.
    Child(u8),
}

impl Exit {
    /// The number that the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failure => 1,
            Exit::Denied => 2,
            Exit::AwaitingApproval => 3,
            Exit::Ended => 4,
            Exit::NotDurable => 5,
            Exit::NotClean => 6,
            Exit::VerificationFailed => 7,
            Exit::Usage => 64,
            Exit::Child(code) => code,
        }
    }

    /// Returns the exit code of a refusal.
    pub const fn of(reason: Reason) -> Self {
        match reason.class() {
            Class::Failure => Exit::Failure,
            Class::Denied => Exit::Denied,
            Class::AwaitingApproval => Exit::AwaitingApproval,
            Class::Ended => Exit::Ended,
            Class::NotDurable => Exit::NotDurable,
            Class::VerificationFailed => Exit::VerificationFailed,
            Class::Usage => Exit::Usage,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}
