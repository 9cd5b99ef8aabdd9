//! The child process: how it is started, followed and ended.

use std::{
    ffi::OsString,
    io::{self, PipeReader, PipeWriter, Read},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::PathBuf,
    process::{self, Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        prctl,
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::{Pid, getpid},
};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    ChildEnvironment, OnRevoke,
    command::{self, CommandError, Orders},
    ending::{ChildEnd, Ended, asks_to_end},
    processes::{Below, Left, reap_orphans},
    terminal,
};
use crate::clock::Clock;

/// What is started.
#[derive(Clone, Debug)]
pub struct ChildSpec {
    /// The command and its arguments, at least the command.
    pub argv: Vec<OsString>,
    pub env: ChildEnvironment,
    /// What the kernel sends the child when the wrapper dies.
    pub on_wrapper_death: Signal,
    /// What is started to become the command: this binary's `__exec`. A test names its own.
    pub(super) shim: (PathBuf, Vec<OsString>),
}

impl ChildSpec {
    pub fn new(argv: Vec<OsString>, env: ChildEnvironment) -> Self {
        // Through /proc this finds the wrapper's own binary though its file was replaced since.
        let shim = (PathBuf::from("/proc/self/exe"), vec![command::SUBCOMMAND.into()]);
        ChildSpec { argv, env, on_wrapper_death: Signal::SIGTERM, shim }
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

/// The one child of this wrapper, in a process group of its own.
///
/// Everything below the wrapper counts as the job's: the wrapper adopts orphans, reaps them and ends what remains. So a
/// process holds at most one `Child`, and starts nothing else while it does. Dropping it sends the child's group the
/// death signal. Where the wrapper itself is killed, the kernel sends that to the child alone: what the child started has
/// lost its access, and ends with the child or not.
#[derive(Debug)]
pub struct Child {
    handle: ChildHandle,
    child: process::Child,
    deaths: tokio::signal::unix::Signal,
    report: (PipeReader, PipeWriter),
    program: PathBuf,
    has_terminal: bool,
    on_drop: Signal,
    status: Option<ExitStatus>,
    /// The thread that started the child, and waits for this to go: the kernel sends the death signal when the *thread*
    /// that started a process ends, and a runtime's threads come and go.
    _keeper: mpsc::Sender<()>,
}

/// For those who signal and end the child while another waits for it.
#[derive(Clone, Debug)]
pub struct ChildHandle {
    pid: Pid,
    below: Below,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Once the status was taken, the id may come to mean another process.
    reaped: bool,
    asked: Option<Signal>,
}

impl Child {
    /// Starts the command with stdin, stdout and stderr inherited. Needs a tokio runtime.
    ///
    /// Where the wrapper is in front of a terminal, the child is put in front in its place.
    pub fn spawn(spec: &ChildSpec) -> Result<Self, SpawnError> {
        let path = search_path(&spec.env);
        let called = spec.argv.first().cloned().unwrap_or_default();
        let program = command::resolve(&called, path.as_deref())?;
        Self::start(spec, program).map_err(SpawnError::Start)
    }

    fn start(spec: &ChildSpec, program: PathBuf) -> io::Result<Self> {
        if let Err(e) = prctl::set_child_subreaper(true) {
            tracing::warn!(error = %e, "what loses its parent goes past the wrapper and is not ended with the job");
        }
        let deaths = signal(SignalKind::child())?;
        let report = io::pipe()?;
        fcntl(&report.0, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let has_terminal = terminal::is_ours();
        let orders = Orders {
            wrapper: getpid(),
            report: report.1.as_raw_fd(),
            death: spec.on_wrapper_death,
            takes_terminal: has_terminal,
            program: program.clone(),
            argv: spec.argv.clone(),
        };
        let mut command = Command::new(&spec.shim.0);
        command.arg0("leasehold").args(&spec.shim.1).args(orders.to_args()).process_group(0);
        for name in &spec.env.removed {
            command.env_remove(name);
        }
        command.envs(spec.env.set.iter().map(|(name, value)| (name, value)));
        let below = Below::new();
        let (keeper, child) = start_on_its_own_thread(command)?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let handle = ChildHandle { pid, below, state: Arc::default() };
        Ok(Child {
            handle,
            child,
            deaths,
            report,
            program,
            has_terminal,
            on_drop: spec.on_wrapper_death,
            status: None,
            _keeper: keeper,
        })
    }

    pub fn handle(&self) -> ChildHandle {
        self.handle.clone()
    }

    /// Waits for the child's end, and reaps what was orphaned below it meanwhile. Cancel safe; after the end, the same
    /// answer again.
    pub async fn wait(&mut self) -> io::Result<Ended> {
        loop {
            if let Some(status) = self.look()? {
                return Ok(self.ended(status));
            }
            if self.deaths.recv().await.is_none() {
                return Err(io::Error::other("the runtime no longer tells of signals"));
            }
        }
    }

    /// Ends what the child left behind: SIGTERM, and SIGKILL after the grace. Called after [`wait`](Self::wait), when the
    /// end has been reported: no ending of access waits for this.
    pub async fn end_rest(&mut self, grace: Duration, clock: &dyn Clock) -> Left {
        let handle = self.handle();
        let end = handle.below.end(Some((Signal::SIGTERM, grace)), clock);
        tokio::pin!(end);
        loop {
            // Each dead one tells, and must be taken before its parent's end shows.
            reap_orphans(None);
            tokio::select! {
                left = &mut end => {
                    reap_orphans(None);
                    return left;
                }
                _ = self.deaths.recv() => {}
            }
        }
    }

    /// Takes what there is to take, without waiting.
    fn look(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_some() {
            return Ok(self.status);
        }
        let pid = self.handle.pid;
        if self.has_terminal {
            self.follow_stop();
        }
        reap_orphans(Some(pid));
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(pid), peek) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => return Ok(None),
            // EINVAL is a signal without a name. Whatever it is, it is over, and std takes the status.
            Ok(_) | Err(_) => {}
        }
        let status = {
            let mut state = self.handle.state();
            state.reaped = true;
            self.child.wait()?
        };
        if self.has_terminal {
            terminal::take();
        }
        // Orphans that stood in line behind it.
        reap_orphans(None);
        self.status = Some(status);
        Ok(self.status)
    }

    fn ended(&mut self, status: ExitStatus) -> Ended {
        let mut bytes = [0u8; 4];
        let failed = self.report.0.read_exact(&mut bytes).is_ok();
        Ended {
            end: ChildEnd::from(status),
            asked: self.handle.state().asked,
            not_run: failed.then(|| command::reported(bytes, &self.program)),
        }
    }

    /// A child that was stopped from the terminal (Ctrl-Z) stops the wrapper too; both go on together.
    fn follow_stop(&self) {
        let stops = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        let Ok(WaitStatus::Stopped(_, signal)) = waitid(Id::Pid(self.handle.pid), stops) else { return };
        if matches!(signal, Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU) {
            terminal::stop_with_child();
            if terminal::is_ours() {
                terminal::give(self.handle.pid);
            }
            self.handle.send(Signal::SIGCONT);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.handle.send(self.on_drop);
    }
}

impl ChildHandle {
    /// The child's process id, which is also its group's.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Passes a signal on to the child's process group. After the child's end it goes nowhere.
    pub fn forward(&self, signal: Signal) {
        if asks_to_end(signal) {
            self.asked(signal);
        }
        self.send(signal);
    }

    /// Ends everything below the wrapper as the run's settings say for a revocation: SIGTERM and, after the grace,
    /// SIGKILL; SIGKILL at once; or nothing.
    ///
    /// Runs beside [`Child::wait`], which takes the statuses. The revocation is in force before this begins.
    pub async fn terminate(&self, how: OnRevoke, grace: Duration, clock: &dyn Clock) -> Left {
        let polite = match how {
            OnRevoke::Term => Some((Signal::SIGTERM, grace)),
            OnRevoke::Kill => None,
            OnRevoke::Ignore => return Left { pids: Vec::new() },
        };
        self.asked(polite.map_or(Signal::SIGKILL, |(signal, _)| signal));
        self.below.end(polite, clock).await
    }

    fn asked(&self, signal: Signal) {
        self.state().asked.get_or_insert(signal);
    }

    fn send(&self, signal: Signal) {
        // Held while sending: the id is the child's for as long as its status was not taken.
        let state = self.state();
        if !state.reaped
            && let Err(e) = killpg(self.pid, signal)
            && e != Errno::ESRCH
        {
            tracing::warn!(%signal, error = %e, "a signal could not be passed on to the command");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn search_path(env: &ChildEnvironment) -> Option<OsString> {
    let set = env.set.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    set.or_else(|| std::env::var_os("PATH"))
}

/// Starts a process from a thread that lives until the sender is dropped.
fn start_on_its_own_thread(mut command: Command) -> io::Result<(mpsc::Sender<()>, process::Child)> {
    let (keeper, dropped) = mpsc::channel::<()>();
    let (started, start) = mpsc::sync_channel(1);
    thread::Builder::new().name("child-keeper".to_owned()).spawn(move || {
        let child = command.spawn();
        let alive = child.is_ok();
        if started.send(child).is_ok() && alive {
            // Nothing is ever sent: this waits for the drop.
            let _ = dropped.recv();
        }
    })?;
    let child = start.recv().map_err(io::Error::other)??;
    Ok((keeper, child))
}

#[cfg(test)]
#[path = "child_tests.rs"]
mod tests;
