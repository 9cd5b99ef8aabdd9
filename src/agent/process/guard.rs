//! The guard: a small process between the wrapper and the command, which outlives a wrapper that is killed.
//!
//! ```text
//! leasehold run ── leasehold __guard ── python train.py ── its ranks, in sessions of their own or not
//!       └── lifeline ──▶ │ ── events ──▶ the wrapper
//! ```
//!
//! It starts the command, adopts and reaps what loses its parent below, and tells the wrapper what becomes of the command.
//! When the lifeline ends, the wrapper is gone, by whatever signal: the guard wipes the credential files and ends all that is
//! left of the job, until it has no child at all. It holds no secret, speaks to no daemon, and only SIGKILL ends it. It says which
//! signals came to it: what came to the wrapper too was sent to everything, and so to the command. A guard that is killed costs
//! nothing but itself: what it had adopted falls to the wrapper.
//!
//! Not held: that both are killed in one moment, by a kernel that ends a whole cgroup or a machine that goes. The first ends
//! the job's processes with them; in either case the daemon ends the access by itself.

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
    signals::{Signals, unblocked},
    terminal,
};
use crate::{
    agent::{access::credential_dir, messages::MessageSink},
    clock::SystemClock,
    limits::GUARD_PATIENCE,
};

/// The hidden subcommand.
pub(crate) const SUBCOMMAND: &str = "__guard";

/// What the guard is told, in its arguments. Nothing of it is secret.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GuardArgs {
    /// Who must still be there.
    pub(crate) wrapper: Pid,
    /// The end of a pipe that nobody writes to: it ends with the wrapper.
    pub(crate) lifeline: i32,
    /// The end of a pipe on which events are told.
    pub(crate) events: i32,
    pub(crate) takes_terminal: bool,
    /// The process group that the command joins; 0 for a new one.
    pub(crate) group: Pid,
    /// From the polite signal to SIGKILL, once the wrapper is gone.
    pub(crate) grace: Duration,
    /// The credential files, to be wiped when the wrapper is gone.
    pub(crate) files: Option<PathBuf>,
    pub(crate) leaf: Option<JobCgroup>,
    /// Where the command is, and how it was called, with its arguments.
    pub(crate) program: PathBuf,
    pub(crate) argv: Vec<OsString>,
}

impl GuardArgs {
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let path = |path: Option<&Path>| path.map(Into::into).unwrap_or_default();
        let [home, leaf] = self.leaf.as_ref().map_or([None, None], |l| l.paths().map(Some));
        let mut args: Vec<OsString> = vec![
            self.wrapper.to_string().into(),
            self.lifeline.to_string().into(),
            self.events.to_string().into(),
            if self.takes_terminal { "terminal" } else { "-" }.into(),
            self.group.to_string().into(),
            self.grace.as_millis().to_string().into(),
            path(self.files.as_deref()),
            path(home),
            path(leaf),
            "--".into(),
            self.program.clone().into(),
        ];
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
        let (files, home, leaf) = (path()?, path()?, path()?);
        let leaf = home.zip(leaf).map(|(home, leaf)| JobCgroup::of(home, leaf));
        (args.next()?.as_bytes() == b"--").then_some(())?;
        let program = args.next()?.into();
        let argv: Vec<_> = args.collect();
        let orders =
            GuardArgs { wrapper, lifeline, events, takes_terminal, group, grace, files, leaf, program, argv };
        (!orders.argv.is_empty()).then_some(orders)
    }
}

/// What becomes of the command, one line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuardEvent {
    /// It runs. Always the first, or the other one of the two.
    Started(Pid),
    /// It could not be run, with the error's number.
    NotRun(i32),
    /// It was stopped, by this signal.
    Stopped(i32),
    /// It goes on after a stop.
    Continued,
    /// This signal came to the guard.
    Heard(i32),
    /// It is over, with the status as wait(2) tells it.
    Ended(i32),
}

impl GuardEvent {
    fn to_line(self) -> String {
        match self {
            GuardEvent::Started(pid) => format!("started {pid}\n"),
            GuardEvent::NotRun(errno) => format!("not-run {errno}\n"),
            GuardEvent::Stopped(signal) => format!("stopped {signal}\n"),
            GuardEvent::Continued => "continued 0\n".to_owned(),
            GuardEvent::Heard(signal) => format!("heard {signal}\n"),
            GuardEvent::Ended(status) => format!("ended {status}\n"),
        }
    }

    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let (what, number) = line.trim_end().split_once(' ')?;
        let number = number.parse().ok()?;
        Some(match what {
            "started" => GuardEvent::Started(Pid::from_raw(number)),
            "not-run" => GuardEvent::NotRun(number),
            "stopped" => GuardEvent::Stopped(number),
            "continued" => GuardEvent::Continued,
            "heard" => GuardEvent::Heard(number),
            "ended" => GuardEvent::Ended(number),
            _ => return None,
        })
    }
}

/// Guards a command: the body of the hidden subcommand, given what follows `__guard`. `main` calls it before it parses
/// anything and before it starts a thread. Exits when the wrapper is gone, or done, and nothing of the job is left.
pub fn guard(args: impl IntoIterator<Item = OsString>) -> ! {
    let Some(orders) = GuardArgs::from_args(args) else {
        MessageSink::stderr().say("`__guard` is for the wrapper alone: use `leasehold run -- CMD`");
        process::exit(64);
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let code = match runtime.and_then(|runtime| begin(&runtime, orders)) {
        Ok(()) => 0,
        Err(error) => {
            MessageSink::stderr().say(&format!("the command could not be guarded: {error}"));
            125
        }
    };
    process::exit(code)
}

fn begin(runtime: &Runtime, orders: GuardArgs) -> io::Result<()> {
    runtime.block_on(async {
        match CommandGuard::begin(orders)? {
            Some(guard) => guard.watch().await,
            None => Ok(()),
        }
    })
}

struct CommandGuard {
    orders: GuardArgs,
    lifeline: pipe::Receiver,
    deaths: tokio::signal::unix::Signal,
    events: File,
    command: process::Child,
    is_over: bool,
    /// Listened for and never acted upon: nothing that is meant for the job or for the wrapper ends its guard.
    signals: Signals,
}

impl CommandGuard {
    /// Starts the command. None where it could not be run, which was told.
    fn begin(orders: GuardArgs) -> io::Result<Option<Self>> {
        let signals = Signals::listen_as_guard()?;
        let deaths = signal(SignalKind::child())?;
        let lifeline = take_over(orders.lifeline, OpenOptions::new().read(true))?;
        let mut events = take_over(orders.events, OpenOptions::new().write(true))?;
        // Had it died before its end of the lifeline was looked at, the end would not show.
        if getppid() != orders.wrapper {
            return Err(io::Error::other("the wrapper is gone"));
        }
        if let Err(e) = prctl::set_child_subreaper(true) {
            MessageSink::stderr().say(&format!("what loses its parent is not ended with the job: {e}"));
        }
        let mut argv = orders.argv.iter();
        let mut command = Command::new(&orders.program);
        if let Some(name) = argv.next() {
            command.arg0(name);
        }
        command.args(argv).process_group(orders.group.as_raw());
        let started = unblocked(|| match &orders.leaf {
            Some(leaf) => leaf.start_inside(|| command.spawn()),
            None => command.spawn(),
        });
        let command = match started {
            Ok(command) => command,
            Err(error) => {
                events
                    .write_all(GuardEvent::NotRun(error.raw_os_error().unwrap_or(0)).to_line().as_bytes())?;
                if let Some(leaf) = &orders.leaf {
                    leaf.remove();
                }
                return Ok(None);
            }
        };
        let guard = CommandGuard {
            lifeline: pipe::Receiver::from_file(lifeline)?,
            orders,
            deaths,
            events,
            command,
            is_over: false,
            signals,
        };
        if guard.orders.takes_terminal {
            terminal::give(guard.pid());
            // It may have asked for the terminal before it had it, and been stopped for that.
            let _ = killpg(guard.pid(), Signal::SIGCONT);
        }
        guard.tell(GuardEvent::Started(guard.pid()));
        Ok(Some(guard))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.command.id().cast_signed())
    }

    /// Until the wrapper is gone and nothing of the job is left.
    async fn watch(mut self) -> io::Result<()> {
        // What died before the signal was listened for.
        self.look();
        let mut byte = [0u8];
        let is_done = loop {
            tokio::select! {
                // One byte says that the wrapper has ended politely what there was; an end alone, that it is gone.
                read = self.lifeline.read(&mut byte) => break matches!(read, Ok(1)),
                _ = self.deaths.recv() => self.look(),
                signal = self.signals.next() => self.tell(GuardEvent::Heard(signal.0)),
            }
        };
        // In this order: access first.
        if let Some(files) = &self.orders.files {
            credential_dir::erase_left(files);
        }
        let below = Descendants::all(self.orders.leaf.clone());
        let polite = (!is_done).then_some((Signal::SIGTERM, self.orders.grace));
        let left = below.end(polite, GUARD_PATIENCE, &SystemClock::new()).await;
        left.say(&MessageSink::stderr());
        reap_orphans(None);
        if let Some(leaf) = &self.orders.leaf {
            leaf.remove();
        }
        Ok(())
    }

    /// Takes the statuses of what has died or stopped below.
    fn look(&mut self) {
        if self.is_over {
            return reap_orphans(None);
        }
        let pid = self.pid();
        while let Some(event) = stopped_or_continued(pid) {
            self.tell(event);
        }
        reap_orphans(Some(pid));
        if let Some(status) = self.ended() {
            self.is_over = true;
            self.tell(GuardEvent::Ended(status.into_raw()));
            // Orphans that stood in line behind it.
            reap_orphans(None);
        }
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.pid()), peek) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => None,
            // EINVAL is a signal without a name. Whatever it is, it is over, and std takes the status.
            Ok(_) | Err(_) => self.command.wait().ok(),
        }
    }

    fn tell(&self, event: GuardEvent) {
        // A wrapper that is gone is told nothing; the lifeline says so.
        let _ = (&self.events).write_all(event.to_line().as_bytes());
    }
}

fn stopped_or_continued(pid: Pid) -> Option<GuardEvent> {
    let looks = WaitPidFlag::WSTOPPED | WaitPidFlag::WCONTINUED | WaitPidFlag::WNOHANG;
    match waitid(Id::Pid(pid), looks) {
        Ok(WaitStatus::Stopped(_, signal)) => Some(GuardEvent::Stopped(signal as i32)),
        Ok(WaitStatus::Continued(_)) => Some(GuardEvent::Continued),
        _ => None,
    }
}

/// A pipe's end that was inherited by its number, so that nothing which is started from here inherits it too.
pub(crate) fn take_over(number: i32, how: &OpenOptions) -> io::Result<File> {
    let ours = how.clone().custom_flags(OFlag::O_NONBLOCK.bits()).open(format!("/proc/self/fd/{number}"))?;
    close(number)?;
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_read_back_as_they_were_given() {
        let bare = || GuardArgs {
            wrapper: Pid::from_raw(7),
            lifeline: 5,
            events: 6,
            takes_terminal: true,
            group: Pid::from_raw(3),
            grace: Duration::from_millis(1_500),
            files: None,
            leaf: None,
            program: "/bin/sh".into(),
            argv: ["sh", "-c", "--", "exit 3"].map(OsString::from).into(),
        };
        let leaf = Some(JobCgroup::of("/cg".into(), "/cg/leaf".into()));
        for orders in [bare(), GuardArgs { files: Some("/dev/shm/x".into()), leaf, ..bare() }] {
            assert_eq!(GuardArgs::from_args(orders.to_args()), Some(orders));
        }
        let whole = ["7", "5", "6", "-", "0", "10", "", "", "", "--", "/bin/sh", "sh"];
        assert!(GuardArgs::from_args(whole.map(OsString::from)).is_some());
        for missing in 0..whole.len() {
            let bad = whole.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, a)| OsString::from(a));
            assert_eq!(GuardArgs::from_args(bad), None, "without {}", whole[missing]);
        }
    }

    #[test]
    fn events_read_back_as_they_were_told() {
        for event in [
            GuardEvent::Started(Pid::from_raw(7)),
            GuardEvent::NotRun(8),
            GuardEvent::Stopped(20),
            GuardEvent::Continued,
            GuardEvent::Heard(64),
            GuardEvent::Ended(139),
        ] {
            assert_eq!(GuardEvent::of_line(&event.to_line()), Some(event));
        }
        assert_eq!(GuardEvent::of_line("started"), None);
        assert_eq!(GuardEvent::of_line("else 1"), None);
    }
}
