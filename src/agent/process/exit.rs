//! How a child ended, and which outcome its attempt gets.

use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;

use crate::proto::v1;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildStatus {
    /// The process exited with this code.
    Exited(i32),
    /// A signal with this number ended the process.
    Signalled(i32),
}

impl ChildStatus {
    /// The exit code for the wrapper: the code of the child, or 128 plus the signal, as in a shell.
    pub fn exit_code(self) -> u8 {
        let code = match self {
            ChildStatus::Exited(code) => code,
            ChildStatus::Signalled(signal) => signal.saturating_add(128),
        };
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

impl From<std::process::ExitStatus> for ChildStatus {
    fn from(status: std::process::ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => ChildStatus::Exited(code),
            (None, signal) => ChildStatus::Signalled(signal.unwrap_or(0)),
        }
    }
}

/// Returns the name of an outcome for messages.
pub(crate) fn outcome_name(outcome: v1::Outcome) -> &'static str {
    match outcome {
        v1::Outcome::Completed => "completed",
        v1::Outcome::Interrupted => "interrupted",
        _ => "failed",
    }
}

/// Whether the work was asked to finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FinishRequest {
    Asked,
    NotAsked,
}

impl FinishRequest {
    /// Records a request. Returns whether this is the first request.
    pub(crate) fn mark_asked(&mut self) -> bool {
        std::mem::replace(self, FinishRequest::Asked) == FinishRequest::NotAsked
    }
}

/// The end of a child, and the request before it.
#[derive(Debug)]
pub struct ChildExit {
    pub status: ChildStatus,
    /// The first signal by which the wrapper asked the child to end.
    pub asked: Option<Signal>,
}

/// The exit code of `run` if its access was ended from outside and the command then exits with 0. Other commands also use it
/// when access has ended.
pub(crate) const ACCESS_ENDED: i32 = 4;

/// Signals that ask a process to end.
const ASKING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// Whether a signal asks a process to end.
pub(crate) fn asks_to_end(signal: Signal) -> bool {
    ASKING.contains(&signal)
}

impl ChildExit {
    pub fn exit_code(&self) -> u8 {
        self.status.exit_code()
    }

    /// Returns the end that the caller of the wrapper sees, if access was ended from outside before the command ended. A
    /// command that was cut off has not done its work, even if it exits with 0. So a scheduler must not take its 0 for success.
    pub(crate) fn after_access_end(self) -> Self {
        match self.status {
            ChildStatus::Exited(0) => ChildExit { status: ChildStatus::Exited(ACCESS_ENDED), ..self },
            _ => self,
        }
    }

    /// Returns the outcome for the attempt, if no platform and no drain asked the work to finish.
    ///
    /// | The child | Outcome |
    /// |---|---|
    /// | exits with 0 | completed |
    /// | ends otherwise after a signal from the wrapper | interrupted: trainers differ in their codes (torchrun exits with 1 after SIGTERM) |
    /// | is ended by SIGTERM, SIGINT or SIGHUP, or exits with 143, 130 or 129 | interrupted: someone else sent the signal |
    /// | ends in another way, for example by SIGKILL from outside (out of memory) | failed |
    pub fn outcome(&self) -> v1::Outcome {
        const BY_CONVENTION: [i32; 3] =
            [Signal::SIGTERM as i32, Signal::SIGINT as i32, Signal::SIGHUP as i32];
        let interrupted = match self.status {
            ChildStatus::Exited(0) => return v1::Outcome::Completed,
            _ if self.asked.is_some() => true,
            ChildStatus::Exited(code) => BY_CONVENTION.iter().any(|s| s + 128 == code),
            ChildStatus::Signalled(signal) => BY_CONVENTION.contains(&signal),
        };
        if interrupted { v1::Outcome::Interrupted } else { v1::Outcome::Failed }
    }

    /// Returns the outcome for the attempt. If the platform or a drain asked the work to finish, the attempt is interrupted,
    /// even if the child exits with 0. Many trainers save their work in this case, and the next attempt continues it.
    pub(crate) fn outcome_after(&self, request: FinishRequest) -> v1::Outcome {
        match request {
            FinishRequest::Asked => v1::Outcome::Interrupted,
            FinishRequest::NotAsked => self.outcome(),
        }
    }

    /// One line for messages and the ledger, for example `exit code 1 after SIGTERM`.
    pub fn detail(&self) -> String {
        let mut text = match self.status {
            ChildStatus::Exited(code) => format!("exit code {code}"),
            ChildStatus::Signalled(n) => match Signal::try_from(n) {
                Ok(Signal::SIGKILL) if self.asked.is_none() => {
                    "ended by SIGKILL from outside; the kernel does that if memory is short".to_owned()
                }
                Ok(signal) => format!("ended by {signal}"),
                Err(_) => format!("ended by signal {n}"),
            },
        };
        if let Some(asked) = self.asked.filter(|s| self.status != ChildStatus::Signalled(*s as i32)) {
            text.push_str(&format!(" after {asked}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exit_has_its_outcome_code_and_detail() {
        use v1::Outcome::{Completed, Failed, Interrupted};
        let term = Some(Signal::SIGTERM);
        for (end, asked, outcome, code, detail) in [
            (ChildStatus::Exited(0), None, Completed, 0, "exit code 0"),
            (ChildStatus::Exited(0), term, Completed, 0, "exit code 0 after SIGTERM"),
            (ChildStatus::Exited(3), None, Failed, 3, "exit code 3"),
            (ChildStatus::Exited(1), term, Interrupted, 1, "exit code 1 after SIGTERM"),
            (ChildStatus::Exited(143), None, Interrupted, 143, "exit code 143"),
            (ChildStatus::Exited(130), None, Interrupted, 130, "exit code 130"),
            (ChildStatus::Exited(137), None, Failed, 137, "exit code 137"),
            (ChildStatus::Exited(127), None, Failed, 127, "exit code 127"),
            (ChildStatus::Signalled(15), None, Interrupted, 143, "ended by SIGTERM"),
            (ChildStatus::Signalled(15), term, Interrupted, 143, "ended by SIGTERM"),
            (ChildStatus::Signalled(2), None, Interrupted, 130, "ended by SIGINT"),
            (ChildStatus::Signalled(1), None, Interrupted, 129, "ended by SIGHUP"),
            (
                ChildStatus::Signalled(9),
                None,
                Failed,
                137,
                "ended by SIGKILL from outside; the kernel does that if memory is short",
            ),
            (ChildStatus::Signalled(9), term, Interrupted, 137, "ended by SIGKILL after SIGTERM"),
            (ChildStatus::Signalled(11), None, Failed, 139, "ended by SIGSEGV"),
            (ChildStatus::Signalled(40), None, Failed, 168, "ended by signal 40"),
        ] {
            let ended = ChildExit { status: end, asked };
            assert_eq!(
                (ended.outcome(), ended.exit_code(), ended.detail().as_str()),
                (outcome, code, detail),
                "{end:?} {asked:?}"
            );
            assert_eq!(ended.outcome_after(FinishRequest::NotAsked), outcome, "{end:?}");
            assert_eq!(ended.outcome_after(FinishRequest::Asked), Interrupted, "{end:?}");
            let cut = if code == 0 { 4 } else { code };
            assert_eq!(ended.after_access_end().exit_code(), cut, "only success is replaced");
        }
    }
}
