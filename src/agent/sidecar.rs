//! The sidecar: a member beside a process that it did not start.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, watch};

use super::{
    access::{
        credential_dir::CredentialDir,
        folder::{Readers, is_same},
        index::DrainNote,
        join::JoinState,
        manifest::draft_name,
        meaning::AccessEnd,
        member::live::{FinalReport, LiveMember, MemberCommand, MemberStatus},
        obtain::{JoinOptions, ObtainedAccess, OnKill, RunContext, RunError, is_farewell},
    },
    messages::{MessageSink, print},
    process::{
        exit::{ToFinish, outcome_name},
        processes::send,
        signals::{SignalNumber, Signals},
        work_watch::{ReportedEnd, StopConditions, WorkEnd, WorkWatch},
    },
    spec::{OnRevoke, RunSettings},
};
use crate::{
    clock::{Clock, LeaseTime},
    limits::{AGENT_FINISH, REPORT},
    proto::v1,
    reason::{Reason, Refusal},
};

/// Beside what, and with whose access.
#[derive(Debug)]
pub struct SidecarOptions {
    pub joining: JoinOptions,
    /// The directory that the credential files are in, under names that do not change; else a private one in memory.
    pub dir: Option<PathBuf>,
    /// Who may read them.
    pub readers: Readers,
    /// Written once all credentials are there, in the form that a shell reads; gone when one of them is.
    pub ready_file: Option<PathBuf>,
    /// What ends it, beside signals.
    pub until: StopConditions,
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SidecarEnd {
    /// As it was asked to, or with the process that it watched.
    AsAsked,
    /// Access was ended from outside.
    AccessEnded,
}

/// Keeps access for processes that it did not start, until it is asked to end, until the watched one ends, or until access does.
///
/// Says on stdout what stands in the ready file. Unless the process beside it says in a file how the work ended, the member
/// leaves without a word on it: its outcome is recorded as unknown, and someone who saw it may still report it.
pub async fn run_sidecar(options: SidecarOptions, place: RunContext) -> Result<SidecarEnd, RunError> {
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let neighbour = WorkWatch::of(&options.until).map_err(RunError::Watch)?;
    let dir = match &options.dir {
        Some(dir) => CredentialDir::at(dir, options.readers)?,
        None => CredentialDir::create(None, options.readers)?,
    };
    if let Some(path) = &options.ready_file {
        ReadyFile::forget_stale(path);
    }
    let access = ObtainedAccess::obtain(&options.joining, dir, &place, &mut signals, OnKill::Rejoin).await?;
    let variables = lines(&access.env(options.joining.svid.as_ref()));
    let mut ready =
        ReadySignal { path: options.ready_file, text: variables.clone(), dir: access.dir.clone(), is: None };
    if let Err(error) = ready.set(true) {
        access.undo(&error, &place.voice).await;
        return Err(RunError::Watch(error));
    }
    place.voice.say(&access.described());
    print(&variables);
    let settings = options.joining.settings;
    let beside = Sidecar {
        signals,
        neighbour,
        drain: settings.drain.or(access.begun.drain()).unwrap_or(AGENT_FINISH),
        to_finish: ToFinish::NotAsked,
        settings,
        window: access.member.window(),
        begun: access.begun,
        dir: access.dir,
        ready,
        clock: place.clock,
        voice: place.voice,
    };
    Ok(beside.until_the_end(access.member).await)
}

struct Sidecar {
    signals: Signals,
    neighbour: WorkWatch,
    /// From the first signal that asks to finish until the end of access.
    drain: Duration,
    to_finish: ToFinish,
    settings: RunSettings,
    window: Duration,
    begun: JoinState,
    dir: Arc<CredentialDir>,
    ready: ReadySignal,
    clock: Arc<dyn Clock>,
    voice: MessageSink,
}

impl Sidecar {
    async fn until_the_end(mut self, member: LiveMember) -> SidecarEnd {
        let (commands, orders) = mpsc::channel(4);
        let (stands, mut standing) = watch::channel(MemberStatus::default());
        let serving = member.serve(orders, stands);
        tokio::pin!(serving);
        let mut ends_at = LeaseTime(u64::MAX);
        let gone = loop {
            tokio::select! {
                biased;
                signal = self.signals.next() => match (is_farewell(signal), ends_at.0) {
                    (true, u64::MAX) => ends_at = self.finish_by(signal, &commands),
                    (true, _) => break WorkEnd { what: "it was asked to end", word: None },
                    (false, _) => {}
                },
                gone = self.neighbour.over(&*self.clock) => break gone,
                Ok(()) = standing.changed() => {
                    let now = standing.borrow_and_update().clone();
                    if let Some(over) = now.over {
                        self.ready.clear();
                        if ends_at.0 == u64::MAX || !ends_with_a_drain(over.reason) {
                            return self.access_is_over(&over).await;
                        }
                        self.voice.say(&over.message);
                        break WorkEnd { what: "its drain is over", word: None };
                    }
                    self.keep_ready(now.is_complete);
                    if now.is_draining {
                        self.drained_from_outside();
                    }
                }
                // The daemon ends it before; if it is away, this does.
                () = self.clock.sleep_until(ends_at) => break WorkEnd { what: "its drain is over", word: None },
                // It ends only when it is told to.
                _ = &mut serving => {}
            }
        };
        self.ready.clear();
        self.dir.wipe();
        let said = gone.word.as_ref().and_then(|word| word.outcome(self.to_finish));
        if let Some(ReportedEnd::Other(text)) = &gone.word {
            self.voice.say(&format!(
                "the file says `{text}`, which is no exit code, and none of completed, failed, interrupted"
            ));
        }
        let command = match &said {
            Some((outcome, detail)) => MemberCommand::Finish { outcome: *outcome, detail: detail.clone() },
            None => MemberCommand::Leave,
        };
        let _ = commands.try_send(command);
        let report = tokio::select! {
            report = &mut serving => report,
            () = self.clock.sleep(REPORT) => FinalReport::Failed(Refusal::new(Reason::Unreachable, "no answer")),
        };
        self.close_own_job(&gone, said.as_ref(), &report).await;
        self.say_end(&gone, said.as_ref(), &report);
        SidecarEnd::AsAsked
    }

    /// Lets the work beside it finish, for as long as the drain lasts. Answers when to end at the latest.
    fn finish_by(&mut self, signal: SignalNumber, commands: &mpsc::Sender<MemberCommand>) -> LeaseTime {
        self.to_finish = ToFinish::Asked;
        let now = self.clock.now();
        let reason = format!("{signal} from outside");
        let writing_ends = Some(now.wall.plus(self.drain));
        let _ = self.dir.note_drain(DrainNote { reason: reason.clone(), reading_ends: None, writing_ends });
        let _ = commands.try_send(MemberCommand::Drain { grace: Some(self.drain), reason });
        self.voice.say(&format!("{signal}: finishing; once more ends it now"));
        now.lease.plus(self.drain.saturating_add(REPORT))
    }

    /// An operator drains the job: the watched process is asked to finish, if there is one.
    fn drained_from_outside(&mut self) {
        if std::mem::replace(&mut self.to_finish, ToFinish::Asked) == ToFinish::Asked {
            return;
        }
        let signal = match (self.settings.drain_signal, self.settings.on_revoke) {
            (None, OnRevoke::Ignore) => return,
            (signal, _) => signal.unwrap_or(Signal::SIGTERM),
        };
        if let Some(process) = self.neighbour.process {
            self.voice.say(&format!("process {} is asked to finish by {signal}", process.pid));
            send(process, signal);
            send(process, Signal::SIGCONT);
        }
    }

    fn keep_ready(&mut self, is_complete: bool) {
        if let Err(error) = self.ready.set(is_complete) {
            self.voice.say(&error);
        }
    }

    /// Ends the job that this process created: no other process would.
    async fn close_own_job(
        &self,
        gone: &WorkEnd,
        said: Option<&(v1::Outcome, String)>,
        report: &FinalReport,
    ) {
        let Some(job) = self.begun.own_job().filter(|_| !matches!(report, FinalReport::NotNeeded)) else {
            return;
        };
        let (outcome, reason) = match said {
            Some((outcome, detail)) => (*outcome, detail.clone()),
            None => (v1::Outcome::Unknown, format!("{}, and nobody saw how the work ended", gone.what)),
        };
        if let Err(refusal) = self.begun.close(job, outcome, &reason).await {
            self.voice.say(&format!("{job} could not be closed ({}: {refusal})", refusal.reason));
        }
    }

    fn say_end(&self, gone: &WorkEnd, said: Option<&(v1::Outcome, String)>, report: &FinalReport) {
        let why = gone.what;
        let outcome = match said {
            Some((outcome, detail)) => format!("{}: {detail}", outcome_name(*outcome)),
            None => "outcome unknown: nobody here saw how the work ended".to_owned(),
        };
        self.voice.say(&match report {
            FinalReport::Delivered => format!("{why}; {outcome}; all access has ended"),
            FinalReport::NotNeeded => format!("{why}; access had ended before"),
            FinalReport::Failed(refusal) => format!(
                "{why}; this could not be reported ({}: {refusal}): access ends by itself within {} s",
                refusal.reason,
                self.window.as_secs()
            ),
        });
    }

    /// Access was ended from outside; the files are wiped already.
    async fn access_is_over(mut self, over: &AccessEnd) -> SidecarEnd {
        let (watched, on_revoke, grace) =
            (self.neighbour.process, self.settings.on_revoke, self.settings.grace);
        let then = match (watched, on_revoke) {
            (None, _) | (_, OnRevoke::Ignore) => "what runs beside it goes on without access".to_owned(),
            (Some(p), OnRevoke::Term) => {
                format!("process {} is ended by SIGTERM, and by SIGKILL after {} s", p.pid, grace.as_secs())
            }
            (Some(p), OnRevoke::Kill) => format!("process {} is ended by SIGKILL", p.pid),
        };
        over.said(&self.voice);
        self.voice.say(&format!("the credential files are wiped; {then}"));
        if let (Some(process), OnRevoke::Term) = (watched, on_revoke) {
            send(process, Signal::SIGTERM);
            send(process, Signal::SIGCONT);
            tokio::select! {
                _ = self.neighbour.over(&*self.clock) => return SidecarEnd::AccessEnded,
                () = self.clock.sleep(grace) => {}
            }
        }
        if let (Some(process), OnRevoke::Term | OnRevoke::Kill) = (watched, on_revoke) {
            send(process, Signal::SIGKILL);
        }
        SidecarEnd::AccessEnded
    }
}

/// Whether access that ends for this reason, after a request to finish, ended as it was asked to.
fn ends_with_a_drain(reason: Reason) -> bool {
    use Reason::{AttemptDraining, AttemptEnded, AttemptStale, JobClosed, NotJoined};
    matches!(reason, AttemptDraining | AttemptEnded | AttemptStale | JobClosed | NotJoined)
}

/// The ready file, if one was asked for: there for as long as all credentials are.
struct ReadySignal {
    path: Option<PathBuf>,
    text: String,
    dir: Arc<CredentialDir>,
    is: Option<ReadyPlace>,
}

enum ReadyPlace {
    /// Beside the credentials, and kept as they are.
    Inside(String),
    Outside(#[expect(dead_code, reason = "held for its drop, which takes the file away")] ReadyFile),
}

impl ReadySignal {
    fn set(&mut self, is_complete: bool) -> Result<(), String> {
        let Some(path) = self.path.clone().filter(|_| is_complete) else {
            self.clear();
            return Ok(());
        };
        if self.is.is_none() {
            let inside = self.dir.put_open(&path, &self.text).map_err(|e| e.to_string())?;
            self.is = Some(match inside {
                Some(name) => ReadyPlace::Inside(name),
                None => ReadyPlace::Outside(ReadyFile::write(path, &self.text)?),
            });
        }
        Ok(())
    }

    fn clear(&mut self) {
        if let Some(ReadyPlace::Inside(name)) = self.is.take() {
            self.dir.remove(&name);
        }
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
        if is_same(&self.file, &self.path) {
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
