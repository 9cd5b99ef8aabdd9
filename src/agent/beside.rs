//! The sidecar: a member beside a process that it did not start.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use tokio::sync::mpsc;

use super::{
    CredentialDir, Joining, OnRevoke, RunError, RunPlace, RunSettings, Signals, Voice,
    access::{Access, is_farewell},
    begin::Begun,
    manifest::draft_name,
    meaning::Over,
    member::{Command, Member, Report},
    processes::{Process, send},
    voice::print,
};
use crate::{
    clock::Clock,
    limits::{DRAIN_GRACE_MAX, REPORT, WATCH_PID},
    proto::v1,
    reason::{Reason, Refusal},
};

/// Beside what, and with whose access.
#[derive(Debug)]
pub struct AgentOptions {
    pub joining: Joining,
    /// The directory that the credential files are in, under names that do not change; else a private one in memory.
    pub dir: Option<PathBuf>,
    /// Written once all credentials are there, in the form that a shell reads; gone when access is.
    pub ready_file: Option<PathBuf>,
    /// The process whose end is the end; else only a signal is.
    pub watch: Option<Pid>,
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEnd {
    /// As it was asked to, or with the process that it watched.
    InOrder,
    /// Access was ended from outside.
    Over,
}

/// Keeps access for processes that it did not start, until it is asked to end, until the watched one ends, or until access does.
///
/// Says on stdout what stands in the ready file. How the work ended nobody here has seen: the member leaves without a word
/// on it, its outcome is recorded as unknown, and whoever has seen it may still say.
pub async fn agent(options: AgentOptions, place: RunPlace) -> Result<AgentEnd, RunError> {
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let watched = match options.watch {
        None => None,
        Some(pid) => Some(Process::of(pid).ok_or_else(|| {
            RunError::Watch(format!(
                "there is no process {pid} to watch: start it before, or leave --watch-pid out"
            ))
        })?),
    };
    let dir = match &options.dir {
        Some(dir) => CredentialDir::at(dir)?,
        None => CredentialDir::create(None)?,
    };
    if let Some(path) = &options.ready_file {
        ReadyFile::forget_stale(path);
    }
    let access = Access::obtain(&options.joining, dir, &place, &mut signals).await?;
    let variables = lines(&access.env(options.joining.svid.as_ref()));
    let write_ready = |file: PathBuf| {
        access.dir.claim(&file, variables.as_bytes()).map_err(|e| e.to_string())?;
        ReadyFile::write(file, &variables)
    };
    let ready = match options.ready_file.map(write_ready).transpose() {
        Ok(ready) => ready,
        Err(error) => {
            access.undo(&error, &place.voice).await;
            return Err(RunError::Watch(error));
        }
    };
    place.voice.say(&access.described());
    print(&variables);
    let beside = Beside {
        signals,
        watched,
        settings: options.joining.settings,
        window: access.member.window(),
        begun: access.begun,
        dir: access.dir,
        ready,
        clock: place.clock,
        voice: place.voice,
    };
    Ok(beside.until_the_end(access.member).await)
}

struct Beside {
    signals: Signals,
    watched: Option<Process>,
    settings: RunSettings,
    window: Duration,
    begun: Begun,
    dir: Arc<CredentialDir>,
    ready: Option<ReadyFile>,
    clock: Arc<dyn Clock>,
    voice: Voice,
}

impl Beside {
    async fn until_the_end(mut self, member: Member) -> AgentEnd {
        let (commands, orders) = mpsc::channel(4);
        let (tell, mut told) = mpsc::channel(1);
        let serving = member.serve(orders, tell);
        tokio::pin!(serving);
        let mut drained = None;
        let why = loop {
            tokio::select! {
                biased;
                signal = self.signals.next() => match (is_farewell(signal), drained) {
                    (true, None) => {
                        let grace = self.settings.drain;
                        // The daemon ends it then; where it is away, we do.
                        let latest = grace.unwrap_or(DRAIN_GRACE_MAX).saturating_add(REPORT);
                        drained = Some(self.clock.now().lease.plus(latest));
                        let reason = format!("{signal} from outside");
                        let _ = commands.try_send(Command::Drain { grace, reason });
                        self.voice.say(&format!("{signal}: finishing; once more ends it now"));
                    }
                    (true, Some(_)) => break "it was asked to end",
                    (false, _) => {}
                },
                () = over(&self.watched, &*self.clock) => break "the watched process has ended",
                Some(how) = told.recv() => {
                    self.ready = None;
                    if drained.is_some() && how.reason == Reason::AttemptDraining {
                        self.voice.say(&how.message);
                        break "its drain is over";
                    }
                    return self.access_is_over(&how).await;
                }
                () = self.clock.sleep_until(drained.unwrap_or(crate::clock::LeaseTime(u64::MAX))) => break "its drain is over",
                // It ends only when it is told to.
                _ = &mut serving => {}
            }
        };
        self.dir.wipe();
        self.ready = None;
        let _ = commands.try_send(Command::Leave);
        let report = tokio::select! {
            report = &mut serving => report,
            () = self.clock.sleep(REPORT) => Report::Failed(Refusal::new(Reason::Unreachable, "no answer")),
        };
        if let Some(job) = self.begun.own_job() {
            // Nobody else would.
            let reason = format!("{why}, and nobody saw how the work ended");
            if let Err(refusal) = self.begun.close(job, v1::Outcome::Unknown, &reason).await {
                self.voice.say(&format!("{job} could not be closed ({}: {refusal})", refusal.reason));
            }
        }
        self.voice.say(&match report {
            Report::Delivered => {
                format!("{why}; outcome unknown: nobody here saw how the work ended; all access has ended")
            }
            Report::NotNeeded => format!("{why}; access had ended before"),
            Report::Failed(refusal) => format!(
                "{why}; this could not be reported ({}: {refusal}): access ends by itself within {} s",
                refusal.reason,
                self.window.as_secs()
            ),
        });
        AgentEnd::InOrder
    }

    /// Access was ended from outside; the files are wiped already.
    async fn access_is_over(&self, over: &Over) -> AgentEnd {
        let grace = self.settings.grace;
        let then = match (self.watched, self.settings.on_revoke) {
            (None, _) | (_, OnRevoke::Ignore) => "what runs beside it goes on without access".to_owned(),
            (Some(p), OnRevoke::Term) => {
                format!("process {} is ended by SIGTERM, and by SIGKILL after {} s", p.pid, grace.as_secs())
            }
            (Some(p), OnRevoke::Kill) => format!("process {} is ended by SIGKILL", p.pid),
        };
        over.said(&self.voice);
        self.voice.say(&format!("the credential files are wiped; {then}"));
        if let (Some(process), OnRevoke::Term) = (self.watched, self.settings.on_revoke) {
            send(process, Signal::SIGTERM);
            send(process, Signal::SIGCONT);
            let ended = self::over(&self.watched, &*self.clock);
            tokio::select! {
                () = ended => return AgentEnd::Over,
                () = self.clock.sleep(grace) => {}
            }
        }
        if let (Some(process), OnRevoke::Term | OnRevoke::Kill) = (self.watched, self.settings.on_revoke) {
            send(process, Signal::SIGKILL);
        }
        AgentEnd::Over
    }
}

/// Until the watched process is over; without one, for ever.
async fn over(watched: &Option<Process>, clock: &dyn Clock) {
    let Some(process) = watched else { return std::future::pending().await };
    while process.runs() {
        clock.sleep(WATCH_PID).await;
    }
}

/// How each ready file begins.
const READY_BEGINS: &str = "export LEASEHOLD_JOB=";

/// Says that all is there, to whoever waits for a file. Dropping it takes the file away, where it is still this one.
#[derive(Debug)]
struct ReadyFile {
    path: PathBuf,
    /// Kept open, so that nothing else has its number.
    file: File,
}

impl ReadyFile {
    /// What an agent that was killed left: nobody is to take it for the word of the one that starts now. Any other file stays.
    fn forget_stale(path: &Path) {
        if !fs::symlink_metadata(path).is_ok_and(|m| m.is_file()) {
            return;
        }
        let mut text = String::new();
        let read = File::open(path).and_then(|f| f.take(READY_BEGINS.len() as u64).read_to_string(&mut text));
        if read.is_ok() && text == READY_BEGINS {
            // One that cannot be taken away is replaced when all is there.
            let _ = fs::remove_file(path);
        }
    }

    /// Whole from its first moment on. Made anew under a name that nobody foresees: the folder may be one that others write to.
    fn write(path: PathBuf, text: &str) -> Result<Self, String> {
        let write = || -> io::Result<File> {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let next = folder.join(draft_name().map_err(io::Error::other)?);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&next)?;
            let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&next, &path));
            written.inspect_err(|_| drop(fs::remove_file(&next)))?;
            Ok(file)
        };
        match write() {
            Ok(file) => Ok(ReadyFile { path, file }),
            Err(e) => Err(format!("the ready file {} could not be written: {e}", path.display())),
        }
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        let there = fs::symlink_metadata(&self.path);
        let is_ours =
            |m: fs::Metadata| self.file.metadata().is_ok_and(|o| (o.dev(), o.ino()) == (m.dev(), m.ino()));
        if there.is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// `export NAME='value'`, one to a line, as `. FILE` reads it. No value is a secret.
fn lines(variables: &[(std::ffi::OsString, std::ffi::OsString)]) -> String {
    let text = |t: &OsStr| String::from_utf8_lossy(t.as_bytes()).replace('\'', r"'\''");
    variables.iter().map(|(name, value)| format!("export {}='{}'\n", text(name), text(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_reads_is_what_was_meant() {
        let set = [("A".into(), "/run/x".into()), ("B".into(), "it's $HOME".into())];
        let script = format!("{}printf '%s|%s' \"$A\" \"$B\"", lines(&set));
        let said = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "/run/x|it's $HOME");
    }

    #[test]
    fn a_link_that_waits_for_the_ready_file_leads_it_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mine) = (folder.path().join("ready"), folder.path().join("mine"));
        fs::write(&mine, "mine").unwrap();
        let draft = folder.path().join(format!(".leasehold-ready-{}", std::process::id()));
        for link in [draft, path.clone()] {
            std::os::unix::fs::symlink(&mine, link).unwrap();
        }
        let ready = ReadyFile::write(path.clone(), "x\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\n");
        drop(ready);
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    }

    #[test]
    fn a_ready_file_that_a_killed_agent_left_is_taken_away_and_no_other_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let (stale, mine, gone) =
            (folder.path().join("ready"), folder.path().join("job.toml"), folder.path().join("gone"));
        fs::write(&stale, "export LEASEHOLD_JOB='j-1'\nexport LEASEHOLD_ATTEMPT='1'\n").unwrap();
        fs::write(&mine, "name = 'mine'\n").unwrap();
        for path in [&stale, &mine, &gone] {
            ReadyFile::forget_stale(path);
        }
        assert!(!stale.exists());
        assert_eq!(fs::read_to_string(&mine).unwrap(), "name = 'mine'\n");
    }

    #[test]
    fn a_ready_file_is_there_whole_and_goes_with_its_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready");
        let ready = ReadyFile::write(path.clone(), "x\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\n");
        drop(ready);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // Where an agent that came later says it too, that stays.
        let before = ReadyFile::write(path.clone(), "x\n").unwrap();
        let after = ReadyFile::write(path.clone(), "y\n").unwrap();
        drop(before);
        assert_eq!(fs::read_to_string(&path).unwrap(), "y\n");
        drop(after);
        assert!(!path.exists());
        assert!(ReadyFile::write("/no/such/folder/ready".into(), "x").unwrap_err().contains("/no/such"));
    }
}
