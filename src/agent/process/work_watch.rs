//! Work that another program started: a sidecar detects the end of the work by a process id, a file or a lock.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::Read,
    path::PathBuf,
};

use nix::unistd::Pid;

use super::{
    exit::{ChildExit, ChildStatus, FinishRequest},
    processes::Process,
};
use crate::{
    agent::access::manifest::open_regular,
    clock::{Clock, LeaseTime},
    limits::{END_FILE_SETTLE_TIME, WATCH_INTERVAL, WORD_BYTES_MAX},
    plain,
    proto::v1,
};

/// Conditions that end a sidecar, besides signals. The first condition that occurs ends it.
#[derive(Clone, Debug, Default)]
pub struct StopConditions {
    /// The process whose end is the condition.
    pub process: Option<Pid>,
    /// The file whose creation is the condition. Its content may report how the work ended.
    pub file: Option<PathBuf>,
    /// The file whose lock (`flock`) is watched. The condition is that another process releases the lock.
    pub lock: Option<PathBuf>,
}

/// How the work ended, if the sidecar could detect that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkEnd {
    /// The event that the sidecar detected, for messages.
    pub(crate) what: &'static str,
    pub(crate) reported: Option<ReportedEnd>,
}

/// The report in the file about the end of the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReportedEnd {
    /// `completed`, `failed` or `interrupted`.
    Outcome(v1::Outcome),
    /// An exit code, as `echo $?` writes it.
    Code(u8),
    /// Other text, with its control characters escaped.
    Other(String),
}

impl ReportedEnd {
    /// Returns the outcome to report, and a line that explains it. An exit code is treated like the exit code of a command of
    /// `leasehold run`.
    pub(crate) fn outcome(&self, request: FinishRequest) -> Option<(v1::Outcome, String)> {
        match self {
            ReportedEnd::Outcome(outcome) => {
                Some((*outcome, "as the program beside the agent said".to_owned()))
            }
            ReportedEnd::Code(code) => {
                let exit = ChildExit { status: ChildStatus::Exited(i32::from(*code)), asked: None };
                Some((exit.outcome_after(request), exit.detail()))
            }
            ReportedEnd::Other(_) => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        Some(match text {
            "" => return None,
            "completed" => ReportedEnd::Outcome(v1::Outcome::Completed),
            "failed" => ReportedEnd::Outcome(v1::Outcome::Failed),
            "interrupted" => ReportedEnd::Outcome(v1::Outcome::Interrupted),
            _ => match text.parse() {
                Ok(code) => ReportedEnd::Code(code),
                Err(_) => ReportedEnd::Other(plain::value(text)),
            },
        })
    }
}

/// Watches for the end of the work.
#[derive(Debug)]
pub(crate) struct WorkWatch {
    pub(crate) process: Option<Process>,
    file: Option<PathBuf>,
    lock: Option<PathBuf>,
    /// Whether another process had the lock at an earlier check.
    was_locked: bool,
    /// When the file was first seen.
    file_since: Option<LeaseTime>,
}

impl WorkWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// Fails if the process does not exist, or the file exists already.
    pub(crate) fn start(until: &StopConditions) -> Result<Self, String> {
        let process = match until.process {
            None => None,
            Some(pid) => Some(Process::of(pid).ok_or_else(|| {
                format!("there is no process {pid} to watch: start it before, or leave --watch-pid out")
            })?),
        };
        if let Some(file) = until.file.as_ref().filter(|f| f.symlink_metadata().is_ok()) {
            return Err(format!(
                "{} is there already, as if the work had ended: remove it before the work begins",
                plain::path(file)
            ));
        }
        let StopConditions { file, lock, .. } = until.clone();
        Ok(WorkWatch { process, file, lock, was_locked: false, file_since: None })
    }

    /// Waits for the end of the work. Does not return if there is nothing to watch. Cancel safe.
    pub(crate) async fn ended(&mut self, clock: &dyn Clock) -> WorkEnd {
        if self.process.is_none() && self.file.is_none() && self.lock.is_none() {
            return std::future::pending().await;
        }
        loop {
            // The file comes first, because it says how the work ended.
            if let Some(reported) = self.read_file(clock.now().lease) {
                return WorkEnd { what: "the file that reports the end of the work exists", reported };
            }
            if self.process.is_some_and(|process| !process.runs()) {
                return WorkEnd { what: "the watched process has ended", reported: None };
            }
            if self.is_released() {
                return WorkEnd { what: "the lock was released", reported: None };
            }
            clock.sleep(WATCH_INTERVAL).await;
        }
    }

    /// Reads the file, if it exists and is complete.
    fn read_file(&mut self, now: LeaseTime) -> Option<Option<ReportedEnd>> {
        let mut text = String::new();
        let mut file = open_regular(OpenOptions::new().read(true), self.file.as_ref()?).ok()?;
        let read = Read::take(&mut file, WORD_BYTES_MAX).read_to_string(&mut text);
        let since = *self.file_since.get_or_insert(now);
        let is_complete = read.is_ok() && text.ends_with('\n');
        (is_complete || now.since(since) >= END_FILE_SETTLE_TIME).then(|| ReportedEnd::parse(&text))
    }

    /// Whether another process had the lock and has released it. To check this, takes the lock for a moment.
    fn is_released(&mut self) -> bool {
        let Some(path) = &self.lock else { return false };
        let Ok(file) = open_regular(OpenOptions::new().read(true), path) else { return false };
        match File::try_lock_shared(&file) {
            Ok(()) => self.was_locked,
            Err(TryLockError::WouldBlock) => {
                self.was_locked = true;
                false
            }
            Err(TryLockError::Error(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn a_file_says_how_the_work_ended() {
        use v1::Outcome::{Completed, Failed, Interrupted};
        for (text, calm, finishing) in [
            ("0\n", Some(Completed), Some(Interrupted)),
            ("1\n", Some(Failed), Some(Interrupted)),
            ("143\n", Some(Interrupted), Some(Interrupted)),
            ("completed\n", Some(Completed), Some(Completed)),
            ("failed", Some(Failed), Some(Failed)),
            (" interrupted \n", Some(Interrupted), Some(Interrupted)),
            ("256\n", None, None),
            ("all is well\n", None, None),
        ] {
            let word = ReportedEnd::parse(text).unwrap();
            let outcome = |request| word.outcome(request).map(|(outcome, _)| outcome);
            assert_eq!(
                (outcome(FinishRequest::NotAsked), outcome(FinishRequest::Asked)),
                (calm, finishing),
                "{text:?}"
            );
        }
        assert_eq!(ReportedEnd::parse(" \n"), None);
        assert_eq!(ReportedEnd::parse("\u{1b}[2J"), Some(ReportedEnd::Other("\\u{1b}[2J".into())));
    }

    #[test]
    fn a_file_counts_once_it_is_complete_or_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("done");
        let until = StopConditions { file: Some(file.clone()), ..StopConditions::default() };
        let mut watch = WorkWatch::start(&until).unwrap();
        let now = LeaseTime(1_000_000);
        assert_eq!(watch.read_file(now), None);
        fs::write(&file, "13").unwrap();
        assert_eq!(watch.read_file(now), None, "its writer is not done");
        fs::write(&file, "137\n").unwrap();
        assert_eq!(watch.read_file(now), Some(Some(ReportedEnd::Code(137))));
        fs::write(&file, "").unwrap();
        assert_eq!(watch.read_file(now), None);
        assert_eq!(watch.read_file(now.plus(Duration::from_secs(1))), Some(None), "it says nothing");
        let refused = WorkWatch::start(&until).unwrap_err();
        assert!(refused.contains("is there already"), "{refused}");
    }

    #[test]
    fn a_lock_counts_once_it_was_taken_and_released() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let mut watch =
            WorkWatch::start(&StopConditions { lock: Some(path.clone()), ..StopConditions::default() })
                .unwrap();
        assert!(!watch.is_released(), "no file yet");
        let theirs = File::create(&path).unwrap();
        assert!(!watch.is_released(), "no one had it yet");
        theirs.lock().unwrap();
        assert!(!watch.is_released());
        theirs.unlock().unwrap();
        assert!(watch.is_released());
    }
}
