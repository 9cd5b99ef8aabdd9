//! The command: the wrapper starts, follows and ends it through a guard.

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

/// The command to start.
#[derive(Clone, Debug)]
pub struct ChildSpec {
    /// The command and its arguments. Contains at least the command.
    pub argv: Vec<OsString>,
    pub env: ChildEnvironment,
    /// The time from SIGTERM to SIGKILL, if the guard ends the job because the wrapper was killed.
    pub grace: Duration,
    /// The directory that the guard wipes if it ends the job.
    pub files: Option<PathBuf>,
    /// The folders with copies of resources. The guard removes them if it ends the job.
    pub copies: Vec<PathBuf>,
    /// The process in front of the wrapper, whose group the command joins.
    pub(crate) front: Option<FrontHandle>,
    /// The program of the guard: this binary with `__guard`. Tests use another program.
    pub(crate) guard: (PathBuf, Vec<OsString>),
}

impl ChildSpec {
    pub fn new(argv: Vec<OsString>, env: ChildEnvironment) -> Self {
        // This path finds the wrapper's binary even if its file was replaced in the meantime.
        let guard = (PathBuf::from("/proc/self/exe"), vec![SUBCOMMAND.into()]);
        ChildSpec {
            argv,
            env,
            grace: TERM_GRACE_DEFAULT,
            files: None,
            copies: Vec::new(),
            front: None,
            guard,
        }
    }
}

/// Why the command was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("the command could not be started")]
    Start(#[source] io::Error),
}

impl SpawnError {
    /// The exit status: 127 or 126 for a [`CommandError`], 125 if the wrapper failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            SpawnError::Command(e) => e.exit_code(),
            SpawnError::Start(_) => 125,
        }
    }
}

/// The command of this wrapper, as a child of its guard. If there is a process in front of the wrapper, the command is in the
/// process group of the shell's job. If there is none, the command has its own process group.
///
/// All descendants of the wrapper belong to the job: orphans are adopted, reaped, and ended with the job. So a process has at
/// most one `Child`, and starts no other process meanwhile. If the `Child` is dropped, or the wrapper ends in any way, the
/// guard ends the remaining descendants. They get SIGTERM, and SIGKILL after the grace.
#[derive(Debug)]
pub struct Child {
    handle: ChildHandle,
    guard: process::Child,
    /// The events of the guard. The pipe closes when the guard ends.
    events: Option<Lines<BufReader<pipe::Receiver>>>,
    /// If this pipe closes, the guard knows that the wrapper has ended. A byte before that means that the wrapper has ended all
    /// descendants.
    lifeline: Option<PipeWriter>,
    deaths: tokio::signal::unix::Signal,
    has_terminal: bool,
    front: Option<FrontHandle>,
    status: Option<ChildStatus>,
}

/// An event of a command.
#[derive(Debug)]
pub(crate) enum ChildEvent {
    Ended(ChildExit),
    /// The guard received a signal.
    Signal(SignalNumber),
}

/// Signals and ends the command while another task waits for it.
#[derive(Clone, Debug)]
pub struct ChildHandle {
    pid: Pid,
    /// Whether the command leads its own process group.
    is_leader: bool,
    descendants: Descendants,
    state: Arc<Mutex<ChildState>>,
}

#[derive(Debug, Default)]
struct ChildState {
    /// Whether the command has ended. After that, another process may get its process id.
    has_ended: bool,
    asked: Option<Signal>,
}

impl Child {
    /// Starts the command with inherited stdin, stdout and stderr. Needs a tokio runtime. Blocks until the exec.
    ///
    /// If the wrapper is in the foreground of a terminal, and not behind a front process, the command gets the foreground.
    pub fn spawn(spec: &ChildSpec) -> Result<Self, SpawnError> {
        let path = search_path(&spec.env);
        let name = spec.argv.first().cloned().unwrap_or_default();
        let program = command::resolve(&name, path.as_deref())?;
        let cgroup = JobCgroup::create();
        let started = Self::start(spec, program, cgroup.clone());
        if let (Err(_), Some(cgroup)) = (&started, cgroup) {
            cgroup.remove();
        }
        started
    }

    fn start(spec: &ChildSpec, program: PathBuf, cgroup: Option<JobCgroup>) -> Result<Self, SpawnError> {
        // If the guard is killed, the wrapper adopts its children.
        if let Err(e) = prctl::set_child_subreaper(true) {
            tracing::warn!(error = %e, "a process that loses its parent and its guard is not ended with the job");
        }
        let deaths = signal(SignalKind::child()).map_err(SpawnError::Start)?;
        let descendants = Descendants::from_now(cgroup.clone());
        let has_terminal = spec.front.is_none() && terminal::is_foreground();
        let (guard, mut events, lifeline) =
            start_guard(spec, &program, cgroup, has_terminal).map_err(SpawnError::Start)?;
        let pid = match read_first_event(&mut events).map_err(SpawnError::Start)? {
            Some(GuardEvent::Started(pid)) => pid,
            Some(GuardEvent::NotStarted(errno)) => {
                let error = Errno::from_raw(errno).into();
                // A limit that was reached is not the fault of the command.
                return Err(match limit_of(&error) {
                    Some(_) => SpawnError::Start(error),
                    None => command::start_error(&program, &error).into(),
                });
            }
            _ => return Err(SpawnError::Start(io::Error::other("the guard of the command ended at once"))),
        };
        let descendants = descendants.with_guard(Pid::from_raw(guard.id().cast_signed()));
        let events = pipe::Receiver::from_owned_fd(OwnedFd::from(events)).map_err(SpawnError::Start)?;
        Ok(Child {
            handle: ChildHandle { pid, is_leader: spec.front.is_none(), descendants, state: Arc::default() },
            guard,
            events: Some(BufReader::new(events).lines()),
            lifeline: Some(lifeline),
            deaths,
            has_terminal,
            front: spec.front.clone(),
            status: None,
        })
    }

    pub fn handle(&self) -> ChildHandle {
        self.handle.clone()
    }

    /// Waits for the end of the command. Cancel safe. Later calls return the same status.
    #[cfg(test)]
    pub async fn wait(&mut self) -> io::Result<ChildExit> {
        loop {
            if let ChildEvent::Ended(exit) = self.next_event().await? {
                return Ok(exit);
            }
        }
    }

    /// Waits for the next event. Cancel safe. After the end of the command, each call returns the end.
    pub(crate) async fn next_event(&mut self) -> io::Result<ChildEvent> {
        loop {
            if let Some(status) = self.status {
                return Ok(ChildEvent::Ended(ChildExit { status, asked: self.handle.state().asked }));
            }
            let Some(events) = &mut self.events else {
                self.poll_status()?;
                if self.status.is_none() && self.deaths.recv().await.is_none() {
                    return Err(io::Error::other("the runtime no longer reports signals"));
                }
                continue;
            };
            tokio::select! {
                line = events.next_line() => match line?.as_deref().map(GuardEvent::from_line) {
                    Some(Some(GuardEvent::Ended(status))) => self.set_status(ExitStatus::from_raw(status).into()),
                    Some(Some(GuardEvent::Stopped(signal))) => self.follow_stop(signal),
                    Some(Some(GuardEvent::Continued)) => self.front.iter().for_each(FrontHandle::resume),
                    Some(Some(GuardEvent::Signal(signal))) => return Ok(ChildEvent::Signal(SignalNumber(signal))),
                    Some(_) => {}
                    None => self.on_guard_lost()?,
                },
                // As the first process of a container, the wrapper adopts all orphans.
                _ = self.deaths.recv() => reap_orphans(Some(self.guard_pid())),
            }
        }
    }

    /// Ends the processes that the command left behind, by SIGTERM, and by SIGKILL after the grace. Then ends the guard, which
    /// waits for the last descendant. Call it after the end of the command. Also call it after the report, because the end of
    /// access does not wait for this. Only if files are still to be uploaded, call it before the upload, so that no process changes
    /// them.
    pub async fn end_descendants(&mut self, grace: Duration, clock: &dyn Clock) -> Survivors {
        let handle = self.handle();
        let end = handle.descendants.end(Some((Signal::SIGTERM, grace)), KILL_WAIT, clock);
        tokio::pin!(end);
        let guard = self.guard_pid();
        let mut left = loop {
            // First reap dead processes, because their parent counts as alive until then.
            reap_orphans(Some(guard));
            tokio::select! {
                left = &mut end => break left,
                _ = self.deaths.recv() => {}
            }
        };
        reap_orphans(Some(guard));
        if let Some(mut lifeline) = self.lifeline.take() {
            // If the guard has ended, it needs no message.
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
        handle.descendants.remove_cgroup();
        left
    }

    fn guard_pid(&self) -> Pid {
        Pid::from_raw(self.guard.id().cast_signed())
    }

    fn set_status(&mut self, status: ChildStatus) {
        self.handle.state().has_ended = true;
        if self.has_terminal {
            terminal::take_foreground();
        }
        self.status = Some(status);
    }

    /// Goes on without the guard, which was killed. The wrapper adopts the guard's children, and so the command.
    fn on_guard_lost(&mut self) -> io::Result<()> {
        tracing::warn!(
            "the guard of the command was killed: if the wrapper is killed too, what it started may go on"
        );
        self.events = None;
        self.guard.wait().map(drop)
    }

    /// Reads the status of a command that has no guard, if it has ended. Does not wait.
    fn poll_status(&mut self) -> io::Result<()> {
        let pid = self.handle.pid;
        reap_orphans(Some(pid));
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = match waitid(Id::Pid(pid), peek) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => return Ok(()),
            // The guard read the status just before it was killed.
            Err(Errno::ECHILD) => return Err(io::Error::other("its guard was killed while it ended")),
            Ok(_) | Err(_) => match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => ChildStatus::Exited(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => ChildStatus::Signalled(signal as i32),
                // The signal has no name.
                _ => ChildStatus::Signalled(0),
            },
        };
        self.set_status(status);
        reap_orphans(None);
        Ok(())
    }

    /// Stops the process in front too, so that the shell sees a stopped job. If there is no shell, nothing else could continue
    /// a command that the terminal stopped, so the wrapper continues it.
    fn follow_stop(&self, signal: i32) {
        let is_from_terminal = Signal::try_from(signal)
            .is_ok_and(|s| [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].contains(&s));
        match &self.front {
            Some(front) if front.stop() => return,
            Some(front) if is_from_terminal => terminal::give_foreground(front.group()),
            None if is_from_terminal && self.has_terminal => terminal::give_foreground(self.handle.pid),
            _ => return,
        }
        self.handle.send(Signal::SIGCONT.into());
    }
}

/// Starts the guard, which starts the command. Returns the guard, and our ends of the two pipes.
fn start_guard(
    spec: &ChildSpec,
    program: &std::path::Path,
    cgroup: Option<JobCgroup>,
    takes_terminal: bool,
) -> io::Result<(process::Child, PipeReader, PipeWriter)> {
    let (events, guard_events) = io::pipe()?;
    let (guard_lifeline, lifeline) = io::pipe()?;
    let orders = GuardArgs {
        wrapper: getpid(),
        lifeline: make_inheritable(&guard_lifeline)?,
        events: make_inheritable(&guard_events)?,
        takes_terminal,
        group: spec.front.as_ref().map_or(Pid::from_raw(0), FrontHandle::group),
        grace: spec.grace,
        files: spec.files.clone(),
        copies: spec.copies.clone(),
        cgroup,
        program: program.to_owned(),
        argv: spec.argv.clone(),
    };
    let mut command = Command::new(&spec.guard.0);
    // The guard gets its own group: if someone ends the whole group of the wrapper, the guard is left to end the job.
    command.arg0("leasehold").args(&spec.guard.1).args(orders.to_args()).process_group(0);
    for name in &spec.env.removed {
        command.env_remove(name);
    }
    command.envs(spec.env.set.iter().map(|(name, value)| (name, value)));
    let guard = command.spawn()?;
    Ok((guard, events, lifeline))
}

/// Lets the next child inherit a descriptor. Returns the number of the descriptor, which is the same in the child.
pub(crate) fn make_inheritable(end: &(impl AsFd + AsRawFd)) -> io::Result<i32> {
    fcntl(end, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(end.as_raw_fd())
}

/// Waits for the first event of the guard.
fn read_first_event(events: &mut PipeReader) -> io::Result<Option<GuardEvent>> {
    let (mut line, mut byte) = (String::new(), [0u8]);
    while events.read(&mut byte)? == 1 && byte != *b"\n" {
        line.extend(byte.map(char::from));
    }
    Ok(GuardEvent::from_line(&line))
}

impl ChildHandle {
    /// Returns the process id of the child.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Passes a signal on to the child's process group, or only to the child if it is in a shell's group. Does nothing after the
    /// child's end.
    pub fn forward(&self, signal: impl Into<SignalNumber>) {
        let signal = signal.into();
        self.note_request(signal);
        self.send(signal);
        self.wake(signal);
    }

    /// Notes a signal that asks the child to end. The wrapper passes it on, or the child has got it already.
    pub(crate) fn note_request(&self, signal: SignalNumber) {
        if let Some(signal) = signal.named().filter(|s| asks_to_end(*s)) {
            self.set_asked(signal);
        }
    }

    /// Continues a child that was asked to end and may be stopped, because a stopped child cannot react.
    pub(crate) fn wake(&self, signal: SignalNumber) {
        if signal.named().is_some_and(asks_to_end) {
            self.send(Signal::SIGCONT.into());
        }
    }

    /// Asks the child to finish by this signal.
    pub(crate) fn ask_to_finish(&self, signal: Signal) {
        self.set_asked(signal);
        self.send(signal.into());
        self.send(Signal::SIGCONT.into());
    }

    /// Ends all descendants of the wrapper as the settings say for a revocation: by SIGTERM, and by SIGKILL after the grace; by
    /// SIGKILL at once; or not at all.
    ///
    /// [`Child::next_event`] must run at the same time, because it reaps the processes. The access has ended before this
    /// begins.
    pub async fn terminate(&self, how: OnRevoke, grace: Duration, clock: &dyn Clock) -> Survivors {
        let first = match how {
            OnRevoke::Term => Some((Signal::SIGTERM, grace)),
            OnRevoke::Kill => None,
            OnRevoke::Ignore => return Survivors { pids: Vec::new() },
        };
        self.set_asked(first.map_or(Signal::SIGKILL, |(signal, _)| signal));
        self.descendants.end(first, KILL_WAIT, clock).await
    }

    fn set_asked(&self, signal: Signal) {
        self.state().asked.get_or_insert(signal);
    }

    fn send(&self, signal: SignalNumber) {
        // The lock is held while the signal is sent, so that the signal never goes to a process id that was reused.
        let state = self.state();
        if state.has_ended {
            return;
        }
        let sent = if self.is_leader { signal.send_to_group(self.pid) } else { signal.send_to(self.pid) };
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
