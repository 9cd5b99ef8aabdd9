//! The command while it runs: how it is started, followed and ended, by way of its guard.

use std::{
    ffi::OsString,
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{self, Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl,
        signal::Signal,
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, getpid},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
};

use super::{
    cgroup::JobCgroup,
    command::{self, CommandError},
    environment::ChildEnvironment,
    exit::{ChildExit, ChildStatus, asks_to_end},
    front::FrontHandle,
    guard::{GuardArgs, GuardEvent, SUBCOMMAND},
    processes::{Descendants, Survivors, reap_orphans},
    rlimits::limit_of,
    signals::SignalNumber,
    terminal,
};
use crate::{
    agent::spec::OnRevoke,
    clock::Clock,
    limits::{GUARD_PATIENCE, KILL_WAIT, TERM_GRACE_DEFAULT},
};

/// What is started.
#[derive(Clone, Debug)]
pub struct ChildSpec {
    /// The command and its arguments, at least the command.
    pub argv: Vec<OsString>,
    pub env: ChildEnvironment,
    /// From SIGTERM to SIGKILL, for what is left of the job when the wrapper is killed.
    pub grace: Duration,
    /// The directory that is wiped then.
    pub files: Option<PathBuf>,
    /// The process in front of the wrapper, whose group the command joins.
    pub(crate) front: Option<FrontHandle>,
    /// What is started to guard the command: this binary's `__guard`. A test names its own.
    pub(crate) guard: (PathBuf, Vec<OsString>),
}

impl ChildSpec {
    pub fn new(argv: Vec<OsString>, env: ChildEnvironment) -> Self {
        // Through /proc this finds the wrapper's own binary though its file was replaced since.
        let guard = (PathBuf::from("/proc/self/exe"), vec![SUBCOMMAND.into()]);
        ChildSpec { argv, env, grace: TERM_GRACE_DEFAULT, files: None, front: None, guard }
    }
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("the command could not be started")]
    Start(#[source] io::Error),
}

impl SpawnError {
    /// 127 and 126 as [`CommandError`], 125 for a failure of the wrapper's own.
    pub fn exit_code(&self) -> u8 {
        match self {
            SpawnError::Command(e) => e.exit_code(),
            SpawnError::Start(_) => 125,
        }
    }
}

/// The one command of this wrapper, below a guard: in a process group of its own, or in that of the shell at a terminal.
///
/// Everything below the wrapper counts as the job's: what loses its parent is adopted, reaped, and ended with the job. So a
/// process holds at most one `Child`, and starts nothing else while it does. Dropping it, and any end of the wrapper, SIGKILL
/// too, has the guard end all that is left: SIGTERM, and SIGKILL after the grace.
#[derive(Debug)]
pub struct Child {
    handle: ChildHandle,
    guard: process::Child,
    /// Ends with the guard.
    events: Option<Lines<BufReader<pipe::Receiver>>>,
    /// Its end tells that the wrapper is gone; a byte before, that the rest was ended in order.
    lifeline: Option<PipeWriter>,
    deaths: tokio::signal::unix::Signal,
    has_terminal: bool,
    front: Option<FrontHandle>,
    end: Option<ChildStatus>,
}

/// What becomes known of a command.
#[derive(Debug)]
pub(crate) enum ChildEvent {
    Ended(ChildExit),
    /// A signal came to the guard.
    Heard(SignalNumber),
}

/// For those who signal and end the command while another waits for it.
#[derive(Clone, Debug)]
pub struct ChildHandle {
    pid: Pid,
    /// Whether it leads a process group, which is the job's only then.
    leads: bool,
    below: Descendants,
    state: Arc<Mutex<ChildState>>,
}

#[derive(Debug, Default)]
struct ChildState {
    /// From here on the id may come to mean another process.
    is_over: bool,
    asked: Option<Signal>,
}

impl Child {
    /// Starts the command with stdin, stdout and stderr inherited. Needs a tokio runtime. Blocks for as long as an exec takes.
    ///
    /// If the wrapper is in front of a terminal and no process is in front of the wrapper, the command is put in front in its place.
    pub fn spawn(spec: &ChildSpec) -> Result<Self, SpawnError> {
        let path = search_path(&spec.env);
        let called = spec.argv.first().cloned().unwrap_or_default();
        let program = command::resolve(&called, path.as_deref())?;
        let leaf = JobCgroup::make();
        let started = Self::start(spec, program, leaf.clone());
        if let (Err(_), Some(leaf)) = (&started, leaf) {
            leaf.remove();
        }
        started
    }

    fn start(spec: &ChildSpec, program: PathBuf, leaf: Option<JobCgroup>) -> Result<Self, SpawnError> {
        // Its guard's adopted ones fall to the wrapper where the guard is killed.
        if let Err(e) = prctl::set_child_subreaper(true) {
            tracing::warn!(error = %e, "what loses its parent and its guard is not ended with the job");
        }
        let deaths = signal(SignalKind::child()).map_err(SpawnError::Start)?;
        let below = Descendants::new(leaf.clone());
        let has_terminal = spec.front.is_none() && terminal::is_ours();
        let (guard, mut events, lifeline) =
            guarded(spec, &program, leaf, has_terminal).map_err(SpawnError::Start)?;
        let pid = match first_event(&mut events).map_err(SpawnError::Start)? {
            Some(GuardEvent::Started(pid)) => pid,
            Some(GuardEvent::NotRun(errno)) => {
                let error = Errno::from_raw(errno).into();
                // A limit of the machine is not the command's fault.
                return Err(match limit_of(&error) {
                    Some(_) => SpawnError::Start(error),
                    None => command::not_started(&program, &error).into(),
                });
            }
            _ => return Err(SpawnError::Start(io::Error::other("its guard ended at once"))),
        };
        let below = below.guarded_by(Pid::from_raw(guard.id().cast_signed()));
        let events = pipe::Receiver::from_owned_fd(OwnedFd::from(events)).map_err(SpawnError::Start)?;
        Ok(Child {
            handle: ChildHandle { pid, leads: spec.front.is_none(), below, state: Arc::default() },
            guard,
            events: Some(BufReader::new(events).lines()),
            lifeline: Some(lifeline),
            deaths,
            has_terminal,
            front: spec.front.clone(),
            end: None,
        })
    }

    pub fn handle(&self) -> ChildHandle {
        self.handle.clone()
    }

    /// Waits for the command's end. Cancel safe; after the end, the same answer again.
    pub async fn wait(&mut self) -> io::Result<ChildExit> {
        loop {
            if let ChildEvent::Ended(ended) = self.next().await? {
                return Ok(ended);
            }
        }
    }

    /// Waits for what becomes known next. Cancel safe; after the end, the same answer again.
    pub(crate) async fn next(&mut self) -> io::Result<ChildEvent> {
        loop {
            if let Some(end) = self.end {
                return Ok(ChildEvent::Ended(ChildExit { end, asked: self.handle.state().asked }));
            }
            let Some(events) = &mut self.events else {
                self.look()?;
                if self.end.is_none() && self.deaths.recv().await.is_none() {
                    return Err(io::Error::other("the runtime no longer tells of signals"));
                }
                continue;
            };
            tokio::select! {
                line = events.next_line() => match line?.as_deref().map(GuardEvent::of_line) {
                    Some(Some(GuardEvent::Ended(status))) => self.is_over(ExitStatus::from_raw(status).into()),
                    Some(Some(GuardEvent::Stopped(signal))) => self.follow_stop(signal),
                    Some(Some(GuardEvent::Continued)) => self.front.iter().for_each(FrontHandle::resume),
                    Some(Some(GuardEvent::Heard(signal))) => return Ok(ChildEvent::Heard(SignalNumber(signal))),
                    Some(_) => {}
                    None => self.unguarded()?,
                },
                // As the first process of a container, the wrapper is where all orphans go.
                _ = self.deaths.recv() => reap_orphans(Some(self.guard_pid())),
            }
        }
    }

    /// Ends what the command left behind: SIGTERM, and SIGKILL after the grace; then the guard, which ends when nothing of the job
    /// is left. Called after [`wait`](Self::wait), when the end has been reported: no ending of access waits for this.
    pub async fn end_rest(&mut self, grace: Duration, clock: &dyn Clock) -> Survivors {
        let handle = self.handle();
        let end = handle.below.end(Some((Signal::SIGTERM, grace)), KILL_WAIT, clock);
        tokio::pin!(end);
        let guard = self.guard_pid();
        let mut left = loop {
            // Each dead one tells, and must be taken before its parent's end shows.
            reap_orphans(Some(guard));
            tokio::select! {
                left = &mut end => break left,
                _ = self.deaths.recv() => {}
            }
        };
        reap_orphans(Some(guard));
        if let Some(mut lifeline) = self.lifeline.take() {
            // A guard that is gone has left the rest to us.
            let _ = lifeline.write_all(b".");
        }
        let patience = clock.sleep(GUARD_PATIENCE.saturating_add(KILL_WAIT));
        tokio::pin!(patience);
        while let Ok(None) = self.guard.try_wait() {
            tokio::select! {
                _ = self.deaths.recv() => {}
                () = &mut patience => {
                    left.pids.push(guard);
                    break;
                }
            }
        }
        reap_orphans(None);
        handle.below.remove_leaf();
        left
    }

    fn guard_pid(&self) -> Pid {
        Pid::from_raw(self.guard.id().cast_signed())
    }

    fn is_over(&mut self, end: ChildStatus) {
        self.handle.state().is_over = true;
        if self.has_terminal {
            terminal::take();
        }
        self.end = Some(end);
    }

    /// The guard was killed: what it had adopted, the command among it, is the wrapper's own from here on.
    fn unguarded(&mut self) -> io::Result<()> {
        tracing::warn!(
            "the guard of the command was killed: where the wrapper is killed too, what it started may go on"
        );
        self.events = None;
        self.guard.wait().map(drop)
    }

    /// Takes what there is to take, without waiting, of a command that has no guard.
    fn look(&mut self) -> io::Result<()> {
        let pid = self.handle.pid;
        reap_orphans(Some(pid));
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let end = match waitid(Id::Pid(pid), peek) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => return Ok(()),
            // It ended together with its guard, which had taken the status.
            Err(Errno::ECHILD) => return Err(io::Error::other("its guard was killed as it ended")),
            Ok(_) | Err(_) => match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => ChildStatus::Exited(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => ChildStatus::Signalled(signal as i32),
                // By a signal that has no name.
                _ => ChildStatus::Signalled(0),
            },
        };
        self.is_over(end);
        reap_orphans(None);
        Ok(())
    }

    /// Has the shell see that its job stopped. Without a shell nothing could continue what the terminal stopped, so we do.
    fn follow_stop(&self, signal: i32) {
        let is_from_terminal = Signal::try_from(signal)
            .is_ok_and(|s| [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].contains(&s));
        match &self.front {
            Some(front) if front.stop() => return,
            Some(front) if is_from_terminal => terminal::give(front.group()),
            None if is_from_terminal && self.has_terminal => terminal::give(self.handle.pid),
            _ => return,
        }
        self.handle.send(Signal::SIGCONT.into());
    }
}

/// Starts the guard, which starts the command. Answers it with our ends of the two pipes.
fn guarded(
    spec: &ChildSpec,
    program: &std::path::Path,
    leaf: Option<JobCgroup>,
    takes_terminal: bool,
) -> io::Result<(process::Child, PipeReader, PipeWriter)> {
    let (events, tells) = io::pipe()?;
    let (hears, lifeline) = io::pipe()?;
    let orders = GuardArgs {
        wrapper: getpid(),
        lifeline: inherited(&hears)?,
        events: inherited(&tells)?,
        takes_terminal,
        group: spec.front.as_ref().map_or(Pid::from_raw(0), FrontHandle::group),
        grace: spec.grace,
        files: spec.files.clone(),
        leaf,
        program: program.to_owned(),
        argv: spec.argv.clone(),
    };
    let mut command = Command::new(&spec.guard.0);
    // In a group of its own: who ends the wrapper's whole group leaves the guard to end what is below it.
    command.arg0("leasehold").args(&spec.guard.1).args(orders.to_args()).process_group(0);
    for name in &spec.env.removed {
        command.env_remove(name);
    }
    command.envs(spec.env.set.iter().map(|(name, value)| (name, value)));
    let guard = command.spawn()?;
    Ok((guard, events, lifeline))
}

/// The number of a pipe's end that the guard gets under the same one.
pub(crate) fn inherited(end: &(impl AsFd + AsRawFd)) -> io::Result<i32> {
    fcntl(end, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(end.as_raw_fd())
}

/// Waits for what the guard says first.
fn first_event(events: &mut PipeReader) -> io::Result<Option<GuardEvent>> {
    let (mut line, mut byte) = (String::new(), [0u8]);
    while events.read(&mut byte)? == 1 && byte != *b"\n" {
        line.extend(byte.map(char::from));
    }
    Ok(GuardEvent::of_line(&line))
}

impl ChildHandle {
    /// The child's process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Passes a signal on to the child's process group, or to the child if that is in a shell's group. After the child's end it
    /// goes nowhere.
    pub fn forward(&self, signal: impl Into<SignalNumber>) {
        let signal = signal.into();
        self.note(signal);
        self.send(signal);
        self.wake(signal);
    }

    /// Remembers a signal that asks to end, whether it is passed on or the child has it by itself.
    pub(crate) fn note(&self, signal: SignalNumber) {
        if let Some(signal) = signal.named().filter(|s| asks_to_end(*s)) {
            self.asked(signal);
        }
    }

    /// Continues a stopped child that was asked to end: it cannot act on that before.
    pub(crate) fn wake(&self, signal: SignalNumber) {
        if signal.named().is_some_and(asks_to_end) {
            self.send(Signal::SIGCONT.into());
        }
    }

    /// Asks the child to finish, by the signal that its job names for that.
    pub(crate) fn ask_to_finish(&self, signal: Signal) {
        self.asked(signal);
        self.send(signal.into());
        self.send(Signal::SIGCONT.into());
    }

    /// Ends everything below the wrapper as the run's settings say for a revocation: SIGTERM and, after the grace,
    /// SIGKILL; SIGKILL at once; or nothing.
    ///
    /// Runs beside [`Child::wait`], which takes the statuses. The revocation is in force before this begins.
    pub async fn terminate(&self, how: OnRevoke, grace: Duration, clock: &dyn Clock) -> Survivors {
        let polite = match how {
            OnRevoke::Term => Some((Signal::SIGTERM, grace)),
            OnRevoke::Kill => None,
            OnRevoke::Ignore => return Survivors { pids: Vec::new() },
        };
        self.asked(polite.map_or(Signal::SIGKILL, |(signal, _)| signal));
        self.below.end(polite, KILL_WAIT, clock).await
    }

    fn asked(&self, signal: Signal) {
        self.state().asked.get_or_insert(signal);
    }

    fn send(&self, signal: SignalNumber) {
        // Held while sending: what is over is not signalled by its id.
        let state = self.state();
        if state.is_over {
            return;
        }
        let sent = if self.leads { signal.send_to_group(self.pid) } else { signal.send_to(self.pid) };
        if let Err(e) = sent
            && e != Errno::ESRCH
        {
            tracing::warn!(%signal, error = %e, "a signal could not be passed on to the command");
        }
    }

    fn state(&self) -> MutexGuard<'_, ChildState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn search_path(env: &ChildEnvironment) -> Option<OsString> {
    let set = env.set.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    set.or_else(|| std::env::var_os("PATH"))
}

#[cfg(test)]
#[path = "child_tests.rs"]
mod tests;
