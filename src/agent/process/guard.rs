//! The guard: a small process between the wrapper and the command. It survives a wrapper that is killed.
//!
//! ```text
//! leasehold run ── leasehold __guard ── python train.py ── its ranks, in any session
//!       └── lifeline ──▶ │ ── events ──▶ the wrapper
//! ```
//!
//! The guard starts the command, adopts and reaps orphans, and reports to the wrapper what happens to the command. When the
//! lifeline closes, the wrapper has ended. Then the guard wipes the credential files, ends the job's processes until none is left,
//! and removes the copies of resources. The guard has no secret and no connection to the daemon, and only SIGKILL ends it. It
//! also reports to the wrapper which signals it receives. A signal that both of them receive was sent to all processes, so the
//! command has it too, and the wrapper does not pass it on. If the guard is killed, the wrapper adopts its children.
//!
//! The guard does not help if both are killed at the same time. If the kernel kills a whole cgroup, that ends the job's
//! processes too. In any case the daemon ends the access by itself.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::OpenOptionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{self, Command, ExitStatus},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        prctl,
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::{Pid, close, getppid},
};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    runtime::{self, Runtime},
    signal::unix::{SignalKind, signal},
};

use super::{
    cgroup::JobCgroup,
    processes::{Descendants, reap_orphans},
    signals::{Signals, with_unblocked},
    terminal,
};
use crate::{
    agent::{access::credential_dir, folders::ForeignCopy, messages::MessageSink},
    clock::SystemClock,
    limits::GUARD_PATIENCE,
    plain,
};

/// The name of the hidden subcommand.
pub(crate) const SUBCOMMAND: &str = "__guard";

/// The arguments of the guard. They contain no secret.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GuardArgs {
    /// The parent of the guard, which must still exist.
    pub(crate) wrapper: Pid,
    /// The end of a pipe that closes when the wrapper ends.
    pub(crate) lifeline: i32,
    /// The end of the pipe for events.
    pub(crate) events: i32,
    pub(crate) takes_terminal: bool,
    /// The process group that the command joins; 0 for a new one.
    pub(crate) group: Pid,
    /// The time from SIGTERM to SIGKILL, if the wrapper has ended.
    pub(crate) grace: Duration,
    /// The directory to wipe if the wrapper has ended.
    pub(crate) files: Option<PathBuf>,
    /// The folders with copies of resources, to remove after the job if the wrapper has ended.
    pub(crate) copies: Vec<PathBuf>,
    pub(crate) cgroup: Option<JobCgroup>,
    /// The path of the command.
    pub(crate) program: PathBuf,
    /// The name by which the command was called, and its arguments.
    pub(crate) argv: Vec<OsString>,
}

impl GuardArgs {
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let path = |path: Option<&Path>| path.map(Into::into).unwrap_or_default();
        let [own, cgroup] = self.cgroup.as_ref().map_or([None, None], |l| l.paths().map(Some));
        let mut args: Vec<OsString> = vec![
            self.wrapper.to_string().into(),
            self.lifeline.to_string().into(),
            self.events.to_string().into(),
            if self.takes_terminal { "terminal" } else { "-" }.into(),
            self.group.to_string().into(),
            self.grace.as_millis().to_string().into(),
            path(self.files.as_deref()),
            path(own),
            path(cgroup),
        ];
        args.extend(self.copies.iter().map(OsString::from));
        args.extend(["--".into(), self.program.clone().into()]);
        args.extend(self.argv.iter().cloned());
        args
    }

    fn from_args(args: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut args = args.into_iter();
        let mut word = || args.next()?.into_string().ok();
        let wrapper = Pid::from_raw(word()?.parse().ok()?);
        let (lifeline, events) = (word()?.parse().ok()?, word()?.parse().ok()?);
        let takes_terminal = word()? == "terminal";
        let group = Pid::from_raw(word()?.parse().ok()?);
        let grace = Duration::from_millis(word()?.parse().ok()?);
        let mut path = || args.next().map(|p| Some(PathBuf::from(p)).filter(|p| !p.as_os_str().is_empty()));
        let (files, own, cgroup) = (path()?, path()?, path()?);
        let cgroup = own.zip(cgroup).map(|(own, path)| JobCgroup::new(own, path));
        // Each copy has an absolute path.
        let mut copies = Vec::new();
        loop {
            match args.next()? {
                end if end.as_bytes() == b"--" => break,
                copy if copy.as_bytes().starts_with(b"/") => copies.push(copy.into()),
                _ => return None,
            }
        }
        let program = args.next()?.into();
        let argv: Vec<_> = args.collect();
        let args = GuardArgs {
            wrapper,
            lifeline,
            events,
            takes_terminal,
            group,
            grace,
            files,
            copies,
            cgroup,
            program,
            argv,
        };
        (!args.argv.is_empty()).then_some(args)
    }
}

/// An event of the command. Each event is one line on the pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuardEvent {
    /// The command runs. This or `NotStarted` is the first event.
    Started(Pid),
    /// The command could not be started, with the number of the error.
    NotStarted(i32),
    /// This signal stopped the command.
    Stopped(i32),
    /// The command goes on after a stop.
    Continued,
    /// The guard received this signal.
    Signal(i32),
    /// The command has ended, with the status of wait(2).
    Ended(i32),
}

impl GuardEvent {
    fn to_line(self) -> String {
        match self {
            GuardEvent::Started(pid) => format!("started {pid}\n"),
            GuardEvent::NotStarted(errno) => format!("not-run {errno}\n"),
            GuardEvent::Stopped(signal) => format!("stopped {signal}\n"),
            GuardEvent::Continued => "continued 0\n".to_owned(),
            GuardEvent::Signal(signal) => format!("heard {signal}\n"),
            GuardEvent::Ended(status) => format!("ended {status}\n"),
        }
    }

    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let (what, number) = line.trim_end().split_once(' ')?;
        let number = number.parse().ok()?;
        Some(match what {
            "started" => GuardEvent::Started(Pid::from_raw(number)),
            "not-run" => GuardEvent::NotStarted(number),
            "stopped" => GuardEvent::Stopped(number),
            "continued" => GuardEvent::Continued,
            "heard" => GuardEvent::Signal(number),
            "ended" => GuardEvent::Ended(number),
            _ => return None,
        })
    }
}

/// Guards a command, as the hidden subcommand. `args` are the arguments after `__guard`. `main` calls this function before it
/// parses its arguments and before it starts a thread. The process exits when the wrapper has finished or ended and no process
/// of the job is left.
pub fn guard(args: impl IntoIterator<Item = OsString>) -> ! {
    let Some(args) = GuardArgs::from_args(args) else {
        MessageSink::stderr().send("`__guard` is only for the wrapper: use `leasehold run -- CMD`");
        process::exit(64);
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let code = match runtime.and_then(|runtime| guard_command(&runtime, args)) {
        Ok(()) => 0,
        Err(error) => {
            MessageSink::stderr().send(&format!("the command could not be guarded: {error}"));
            125
        }
    };
    process::exit(code)
}

fn guard_command(runtime: &Runtime, args: GuardArgs) -> io::Result<()> {
    runtime.block_on(async {
        match CommandGuard::start(args)? {
            Some(guard) => guard.run().await,
            None => Ok(()),
        }
    })
}

struct CommandGuard {
    args: GuardArgs,
    lifeline: pipe::Receiver,
    deaths: tokio::signal::unix::Signal,
    events: File,
    command: process::Child,
    /// The folders with copies of resources. They were opened before the command started, so the guard finds them even if the
    /// command has moved them.
    copies: Vec<ForeignCopy>,
    has_ended: bool,
    /// The signals, which are received and only reported. No signal for the job or the wrapper ends the guard.
    signals: Signals,
}

/// Opens the copies that can be opened. Each of the others is reported.
fn open_copies(paths: &[PathBuf]) -> Vec<ForeignCopy> {
    let opened = paths.iter().filter_map(|path| {
        ForeignCopy::open(path)
            .inspect_err(|error| {
                let path = plain::path(path);
                let text = format!("if this wrapper is killed, the copy in {path} stays: {error}");
                MessageSink::stderr().send(&text);
            })
            .ok()
    });
    opened.collect()
}

impl CommandGuard {
    /// Starts the command. Returns `None` if that fails, after the failure was reported.
    fn start(args: GuardArgs) -> io::Result<Option<Self>> {
        let signals = Signals::listen_as_guard()?;
        let deaths = signal(SignalKind::child())?;
        let lifeline = take_over(args.lifeline, OpenOptions::new().read(true))?;
        let mut events = take_over(args.events, OpenOptions::new().write(true))?;
        // If the wrapper ended before the lifeline was opened here, the guard would never see it close.
        if getppid() != args.wrapper {
            return Err(io::Error::other("the wrapper is gone"));
        }
        if let Err(e) = prctl::set_child_subreaper(true) {
            MessageSink::stderr()
                .send(&format!("a process that loses its parent is not ended with the job: {e}"));
        }
        let copies = open_copies(&args.copies);
        let mut argv = args.argv.iter();
        let mut command = Command::new(&args.program);
        if let Some(name) = argv.next() {
            command.arg0(name);
        }
        command.args(argv).process_group(args.group.as_raw());
        let started = with_unblocked(|| match &args.cgroup {
            Some(cgroup) => cgroup.start_inside(|| command.spawn()),
            None => command.spawn(),
        });
        let command = match started {
            Ok(command) => command,
            Err(error) => {
                events.write_all(
                    GuardEvent::NotStarted(error.raw_os_error().unwrap_or(0)).to_line().as_bytes(),
                )?;
                if let Some(cgroup) = &args.cgroup {
                    cgroup.remove();
                }
                return Ok(None);
            }
        };
        let guard = CommandGuard {
            lifeline: pipe::Receiver::from_file(lifeline)?,
            args,
            deaths,
            events,
            command,
            copies,
            has_ended: false,
            signals,
        };
        if guard.args.takes_terminal {
            terminal::give_foreground(guard.pid());
            // If the command used the terminal before it was in the foreground, the terminal may have stopped it. So continue
            // it.
            let _ = killpg(guard.pid(), Signal::SIGCONT);
        }
        guard.send(GuardEvent::Started(guard.pid()));
        Ok(Some(guard))
    }

    /// Removes the copies of resources, because the wrapper has ended and cannot remove them.
    fn remove_copies(&self) {
        for copy in &self.copies {
            if let Err(error) = copy.remove() {
                MessageSink::stderr().send(&format!(
                    "the copy in {} could not be removed: {error}; remove it yourself",
                    plain::path(copy.path())
                ));
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.command.id().cast_signed())
    }

    /// Runs until the wrapper has finished or ended and no process of the job is left.
    async fn run(mut self) -> io::Result<()> {
        // The command may have died before SIGCHLD was listened for.
        self.poll_children();
        let mut byte = [0u8];
        let is_done = loop {
            tokio::select! {
                // A byte means that the wrapper has ended all descendants. If the pipe closes without a byte, the wrapper has
                // ended.
                read = self.lifeline.read(&mut byte) => break matches!(read, Ok(1)),
                _ = self.deaths.recv() => self.poll_children(),
                signal = self.signals.next() => self.send(GuardEvent::Signal(signal.0)),
            }
        };
        // Access ends first.
        if let Some(files) = &self.args.files {
            credential_dir::erase_dir(files);
        }
        let descendants = Descendants::all(self.args.cgroup.clone());
        let first = (!is_done).then_some((Signal::SIGTERM, self.args.grace));
        let survivors = descendants.end(first, GUARD_PATIENCE, &SystemClock::new()).await;
        survivors.report(&MessageSink::stderr());
        if !is_done {
            self.remove_copies();
        }
        reap_orphans(None);
        if let Some(cgroup) = &self.args.cgroup {
            cgroup.remove();
        }
        Ok(())
    }

    /// Reads the statuses of children that died or stopped.
    fn poll_children(&mut self) {
        if self.has_ended {
            return reap_orphans(None);
        }
        let pid = self.pid();
        while let Some(event) = next_stop_or_continue(pid) {
            self.send(event);
        }
        reap_orphans(Some(pid));
        if let Some(status) = self.poll_command() {
            self.has_ended = true;
            self.send(GuardEvent::Ended(status.into_raw()));
            // Reap the orphans whose status came after this one.
            reap_orphans(None);
        }
    }

    fn poll_command(&mut self) -> Option<ExitStatus> {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.pid()), peek) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => None,
            // EINVAL means a signal without a name. The command has ended, and std reads the status.
            Ok(_) | Err(_) => self.command.wait().ok(),
        }
    }

    fn send(&self, event: GuardEvent) {
        // This fails if the wrapper has ended, which the lifeline shows.
        let _ = (&self.events).write_all(event.to_line().as_bytes());
    }
}

fn next_stop_or_continue(pid: Pid) -> Option<GuardEvent> {
    let looks = WaitPidFlag::WSTOPPED | WaitPidFlag::WCONTINUED | WaitPidFlag::WNOHANG;
    match waitid(Id::Pid(pid), looks) {
        Ok(WaitStatus::Stopped(_, signal)) => Some(GuardEvent::Stopped(signal as i32)),
        Ok(WaitStatus::Continued(_)) => Some(GuardEvent::Continued),
        _ => None,
    }
}

/// Opens an inherited end of a pipe again, so that children of this process do not inherit it.
pub(crate) fn take_over(number: i32, how: &OpenOptions) -> io::Result<File> {
    let ours = how.clone().custom_flags(OFlag::O_NONBLOCK.bits()).open(format!("/proc/self/fd/{number}"))?;
    close(number)?;
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_arguments_read_back() {
        let bare = || GuardArgs {
            wrapper: Pid::from_raw(7),
            lifeline: 5,
            events: 6,
            takes_terminal: true,
            group: Pid::from_raw(3),
            grace: Duration::from_millis(1_500),
            files: None,
            copies: Vec::new(),
            cgroup: None,
            program: "/bin/sh".into(),
            argv: ["sh", "-c", "--", "exit 3"].map(OsString::from).into(),
        };
        let cgroup = Some(JobCgroup::new("/cg".into(), "/cg/leaf".into()));
        for args in [
            bare(),
            GuardArgs {
                files: Some("/dev/shm/x".into()),
                copies: vec!["/scratch/a".into(), "/b".into()],
                cgroup,
                ..bare()
            },
        ] {
            assert_eq!(GuardArgs::from_args(args.to_args()), Some(args));
        }
        let whole = ["7", "5", "6", "-", "0", "10", "", "", "", "--", "/bin/sh", "sh"];
        assert!(GuardArgs::from_args(whole.map(OsString::from)).is_some());
        for missing in 0..whole.len() {
            let bad = whole.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, a)| OsString::from(a));
            assert_eq!(GuardArgs::from_args(bad), None, "without {}", whole[missing]);
        }
    }

    #[test]
    fn guard_events_read_back() {
        for event in [
            GuardEvent::Started(Pid::from_raw(7)),
            GuardEvent::NotStarted(8),
            GuardEvent::Stopped(20),
            GuardEvent::Continued,
            GuardEvent::Signal(64),
            GuardEvent::Ended(139),
        ] {
            assert_eq!(GuardEvent::from_line(&event.to_line()), Some(event));
        }
        assert_eq!(GuardEvent::from_line("started"), None);
        assert_eq!(GuardEvent::from_line("else 1"), None);
    }
}
