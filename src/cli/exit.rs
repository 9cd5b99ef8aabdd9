//! Exit codes: a closed list that scripts may rely on.

use std::process::ExitCode;

use crate::reason::{Class, Reason};

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// Anything that no other code says.
    Failure,
    Denied,
    AwaitingApproval,
    /// A job, attempt or lease that is over, or a newer attempt has begun.
    Ended,
    /// In force but not on disk, or refused because it could not be known to be safe.
    NotDurable,
    /// Something that was checked is not what it says that it is.
    VerificationFailed,
    Usage,
    /// What `run` passes on: its child's code, or 125 to 127 for itself.
    Child(u8),
}

impl Exit {
    pub const fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failure => 1,
            Exit::Denied => 2,
            Exit::AwaitingApproval => 3,
            Exit::Ended => 4,
            Exit::NotDurable => 5,
            Exit::VerificationFailed => 7,
            Exit::Usage => 64,
            Exit::Child(code) => code,
        }
    }

    /// The exit of a command that was refused for this reason.
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
