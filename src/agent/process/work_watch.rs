//! A process beside an agent, which the agent did not start: how its end is seen, by its id or on a volume that both share.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::Read,
    path::PathBuf,
};

use nix::unistd::Pid;

use super::{
    exit::{ChildExit, ChildStatus, ToFinish},
    processes::Process,
};
use crate::{
    agent::access::manifest::open_regular,
    clock::{Clock, LeaseTime},
    limits::{WATCH_PID, WORD_BYTES_MAX, WORD_SETTLES},
    proto::v1,
};

/// What ends an agent, beside signals. The first of these does.
#[derive(Clone, Debug, Default)]
pub struct StopConditions {
    /// This process ends.
    pub process: Option<Pid>,
    /// This file appears. It may say how the work ended.
    pub file: Option<PathBuf>,
    /// The lock (`flock`) on this file is released, after another process had it.
    pub lock: Option<PathBuf>,
}

/// How a neighbour ended, if it said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkEnd {
    /// For people: what was seen.
    pub(crate) what: &'static str,
    pub(crate) word: Option<ReportedEnd>,
}

/// What stands in the file of a neighbour that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReportedEnd {
    /// `completed`, `failed` or `interrupted`.
    Outcome(v1::Outcome),
    /// An exit code, as `echo $?` writes it.
    Code(u8),
    /// Neither. Shown to people.
    Other(String),
}

impl ReportedEnd {
    /// The outcome that is reported, with a line about it. An exit code counts as that of a command under `run` does.
    pub(crate) fn outcome(&self, request: ToFinish) -> Option<(v1::Outcome, String)> {
        match self {
            ReportedEnd::Outcome(outcome) => {
                Some((*outcome, "as the program beside the agent said".to_owned()))
            }
            ReportedEnd::Code(code) => {
                let end = ChildStatus::Exited(i32::from(*code));
                let ended = ChildExit { end, asked: None };
                Some((ended.outcome_after(request), ended.detail()))
            }
            ReportedEnd::Other(_) => None,
        }
    }

    fn of(text: &str) -> Option<Self> {
        let text = text.trim();
        Some(match text {
            "" => return None,
            "completed" => ReportedEnd::Outcome(v1::Outcome::Completed),
            "failed" => ReportedEnd::Outcome(v1::Outcome::Failed),
            "interrupted" => ReportedEnd::Outcome(v1::Outcome::Interrupted),
            _ => match text.parse() {
                Ok(code) => ReportedEnd::Code(code),
                Err(_) => ReportedEnd::Other(text.chars().flat_map(char::escape_default).collect()),
            },
        })
    }
}

/// A neighbour that is looked at.
#[derive(Debug)]
pub(crate) struct WorkWatch {
    pub(crate) process: Option<Process>,
    file: Option<PathBuf>,
    lock: Option<PathBuf>,
    /// Another process was seen to have the lock.
    was_locked: bool,
    /// Since when the file is there.
    file_since: Option<LeaseTime>,
}

impl WorkWatch {
    /// Begins to look.
    ///
    /// # Errors
    /// The process is not there, or the file is there already: nothing could be read from them.
    pub(crate) fn of(until: &StopConditions) -> Result<Self, String> {
        let process = match until.process {
            None => None,
            Some(pid) => Some(Process::of(pid).ok_or_else(|| {
                format!("there is no process {pid} to watch: start it before, or leave --watch-pid out")
            })?),
        };
        if let Some(file) = until.file.as_ref().filter(|f| f.symlink_metadata().is_ok()) {
            return Err(format!(
                "{} is there already, as if the work had ended: remove it before the work begins",
                file.display()
            ));
        }
        let StopConditions { file, lock, .. } = until.clone();
        Ok(WorkWatch { process, file, lock, was_locked: false, file_since: None })
    }

    /// Until it is over. Without anything to look at, for as long as it is polled. Cancel safe.
    pub(crate) async fn over(&mut self, clock: &dyn Clock) -> WorkEnd {
        if self.process.is_none() && self.file.is_none() && self.lock.is_none() {
            return std::future::pending().await;
        }
        loop {
            // What says how the work ended comes before what only says that it did.
            if let Some(word) = self.word(clock.now().lease) {
                return WorkEnd { what: "the file of its end is there", word };
            }
            if self.process.is_some_and(|process| !process.runs()) {
                return WorkEnd { what: "the watched process has ended", word: None };
            }
            if self.is_released() {
                return WorkEnd { what: "the lock was released", word: None };
            }
            clock.sleep(WATCH_PID).await;
        }
    }

    /// What the file says, once it is there and whole.
    fn word(&mut self, now: LeaseTime) -> Option<Option<ReportedEnd>> {
        let mut text = String::new();
        let mut file = open_regular(OpenOptions::new().read(true), self.file.as_ref()?).ok()?;
        let read = Read::take(&mut file, WORD_BYTES_MAX).read_to_string(&mut text);
        let since = *self.file_since.get_or_insert(now);
        let is_whole = read.is_ok() && text.ends_with('\n');
        (is_whole || now.since(since) >= WORD_SETTLES).then(|| ReportedEnd::of(&text))
    }

    /// Whether another process had the lock and has it no more. The lock is taken for a moment to see that.
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
            let word = ReportedEnd::of(text).unwrap();
            let outcome = |request| word.outcome(request).map(|(outcome, _)| outcome);
            assert_eq!(
                (outcome(ToFinish::NotAsked), outcome(ToFinish::Asked)),
                (calm, finishing),
                "{text:?}"
            );
        }
        assert_eq!(ReportedEnd::of(" \n"), None);
        assert_eq!(ReportedEnd::of("\u{1b}[2J"), Some(ReportedEnd::Other("\\u{1b}[2J".into())));
    }

    #[test]
    fn a_file_counts_once_it_is_whole_or_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("done");
        let until = StopConditions { file: Some(file.clone()), ..StopConditions::default() };
        let mut neighbour = WorkWatch::of(&until).unwrap();
        let now = LeaseTime(1_000_000);
        assert_eq!(neighbour.word(now), None);
        fs::write(&file, "13").unwrap();
        assert_eq!(neighbour.word(now), None, "its writer is not done");
        fs::write(&file, "137\n").unwrap();
        assert_eq!(neighbour.word(now), Some(Some(ReportedEnd::Code(137))));
        fs::write(&file, "").unwrap();
        assert_eq!(neighbour.word(now), None);
        assert_eq!(neighbour.word(now.plus(Duration::from_secs(1))), Some(None), "it says nothing");
        let refused = WorkWatch::of(&until).unwrap_err();
        assert!(refused.contains("is there already"), "{refused}");
    }

    #[test]
    fn a_lock_counts_once_it_was_taken_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let mut neighbour =
            WorkWatch::of(&StopConditions { lock: Some(path.clone()), ..StopConditions::default() }).unwrap();
        assert!(!neighbour.is_released(), "no file yet");
        let theirs = File::create(&path).unwrap();
        assert!(!neighbour.is_released(), "no one had it yet");
        theirs.lock().unwrap();
        assert!(!neighbour.is_released());
        theirs.unlock().unwrap();
        assert!(neighbour.is_released());
    }
}
