//! The process in front of a wrapper at a terminal: the one that the shell started.
//!
//! ```text
//! shell ── leasehold run (front) ── leasehold __behind (wrapper) ── leasehold __guard ── python train.py
//!          └──────────── the process group that the shell made ──┘                       └ in it too
//! ```
//!
//! A shell gets its terminal back from a job when the process that it started stops or ends (Ctrl-Z, `fg`, `bg`). A wrapper that
//! stopped would lose its access, and a wrapper that did not stop would keep the terminal. So there are two processes: the front
//! stops and ends as the command does, and the wrapper goes on. The command is in the process group that the shell made, as
//! without a wrapper. So the command can read the terminal, and the terminal's signals reach it together with the rest of its
//! pipeline.
//!
//! The front has no secret. It reports the signals that it receives. If the front is killed, the wrapper ends.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::unix::process::CommandExt,
    pin::Pin,
    process::{self, Command, ExitStatus},
    sync::Arc,
    task::{Context, Poll},
};

use nix::{
    sys::{
        resource::{Resource, setrlimit},
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{Pid, getpgid, getpgrp, getpid, getppid, getsid},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::unix::pipe,
};

use super::{
    child::make_inheritable,
    exit::ChildStatus,
    guard::take_over,
    processes::parent_of,
    signals::{self, SignalNumber},
    terminal,
};

/// The first argument of a wrapper that is behind a front. The usual arguments follow the numbers of the pipes.
const BEHIND: &str = "__behind";

// ---------- the front ----------

/// Starts a wrapper and stays in front of it, if there is a terminal with job control. Returns the exit code, or `None` if this
/// process is to be the wrapper. Call it before any thread is started.
///
/// `args` are all arguments of this process.
pub fn run_in_front(args: &[OsString]) -> Option<u8> {
    // A session leader was not started by a shell with job control.
    if !terminal::exists() || getsid(None) == Ok(getpid()) {
        return None;
    }
    // If the wrapper cannot be started, this process becomes the wrapper, and reports the same fault when it starts the
    // command.
    FrontProcess::start(args).ok().map(FrontProcess::run)
}

struct FrontProcess {
    wrapper: process::Child,
    signals: SignalFd,
    /// The pipe for the number of each signal that the front receives.
    to_wrapper: PipeWriter,
    /// The pipe for the number of the signal that ended the command, if a signal ended it.
    end_signal: PipeReader,
}

impl FrontProcess {
    fn start(args: &[OsString]) -> io::Result<Self> {
        let (signals_in, to_wrapper) = io::pipe()?;
        let (end_signal, end_out) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("leasehold").arg(BEHIND);
        command.arg(make_inheritable(&signals_in)?.to_string());
        command.arg(make_inheritable(&end_out)?.to_string());
        let wrapper = command.args(args.iter().skip(1)).spawn()?;
        // This comes after the start, because a child inherits the mask.
        let taken = signals::signals_of_front();
        taken.thread_block()?;
        let signals = SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC)?;
        Ok(FrontProcess { wrapper, signals, to_wrapper, end_signal })
    }

    fn run(mut self) -> u8 {
        loop {
            match self.wrapper.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return self.end_as(status),
                Err(_) => return 125,
            }
            if let Ok(Some(signal)) = self.signals.read_signal()
                && let Ok(number @ 1..) = u8::try_from(signal.ssi_signo)
                && i32::from(number) != Signal::SIGCHLD as i32
            {
                // If the wrapper has ended, the next `try_wait` shows it.
                let _ = self.to_wrapper.write_all(&[number]);
            }
        }
    }

    /// Ends in the same way as the command, so that a loop in a shell stops when its command was interrupted.
    fn end_as(mut self, wrapper: ExitStatus) -> u8 {
        let mut signal = [0u8];
        let is_signalled = matches!(self.end_signal.read(&mut signal), Ok(1));
        if let Some(signal) = Signal::try_from(i32::from(signal[0])).ok().filter(|_| is_signalled) {
            // Only the command may dump a core.
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            let _ = SigSet::all().thread_unblock();
            let _ = kill(getpid(), signal);
        }
        ChildStatus::from(wrapper).exit_code()
    }
}

// ---------- the wrapper behind it ----------

/// The pipes between a front and its wrapper, as numbers in the wrapper's arguments.
#[derive(Clone, Copy, Debug)]
pub struct FrontPipes {
    signals: i32,
    end_signal: i32,
}

impl FrontPipes {
    /// Removes the arguments of a front, if this process was started by one.
    pub fn take(args: &mut Vec<OsString>) -> Option<Self> {
        let number = |at: usize| args.get(at)?.to_str()?.parse().ok();
        let pipes = FrontPipes { signals: number(2)?, end_signal: number(3)? };
        (args.get(1)? == BEHIND).then(|| args.drain(1..4))?;
        Some(pipes)
    }

    /// Opens both pipes.
    pub(crate) fn open(self) -> io::Result<(FrontSignals, FrontHandle)> {
        let signals = take_over(self.signals, OpenOptions::new().read(true))?;
        let end_signal = take_over(self.end_signal, OpenOptions::new().write(true))?;
        let handle = FrontHandle { front: getppid(), end_signal: Arc::new(end_signal) };
        Ok((FrontSignals(pipe::Receiver::from_file(signals)?), handle))
    }
}

/// The signals that the front receives.
#[derive(Debug)]
pub(crate) struct FrontSignals(pipe::Receiver);

impl FrontSignals {
    /// Polls for the next signal. `None` if the front has ended.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<SignalNumber>> {
        let mut byte = [0u8];
        let mut buffer = ReadBuf::new(&mut byte);
        match Pin::new(&mut self.0).poll_read(cx, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                Poll::Ready(buffer.filled().first().map(|number| SignalNumber(i32::from(*number))))
            }
            Poll::Ready(Err(_)) => Poll::Ready(None),
        }
    }
}

/// Stops, continues and ends the front.
#[derive(Clone, Debug)]
pub(crate) struct FrontHandle {
    front: Pid,
    end_signal: Arc<File>,
}

impl FrontHandle {
    /// The process group that the shell made for this job. The command joins it.
    pub(crate) fn group(&self) -> Pid {
        getpgrp()
    }

    /// Stops the front, so that the shell sees a stopped job. Returns `false` if there is no shell that could continue it.
    pub(crate) fn stop(&self) -> bool {
        is_watched(self.front) && self.send(Signal::SIGSTOP)
    }

    pub(crate) fn resume(&self) {
        self.send(Signal::SIGCONT);
    }

    /// Sends the front how the command ended, so that it ends in the same way. Call it last, before the wrapper exits.
    pub(crate) fn end_as(&self, end: ChildStatus) {
        if let ChildStatus::Signalled(signal) = end
            && let Ok(signal @ 1..) = u8::try_from(signal)
        {
            let _ = (&*self.end_signal).write_all(&[signal]);
        }
        // The front may be stopped.
        self.resume();
    }

    fn send(&self, signal: Signal) -> bool {
        // If the front has ended, this process has another parent, and the id may belong to another process.
        getppid() == self.front && kill(self.front, signal).is_ok()
    }
}

/// Whether an ancestor in this session is in another process group. Such an ancestor is a shell, which can continue a stopped
/// job.
fn is_watched(front: Pid) -> bool {
    let (session, group) = (getsid(None), getpgrp());
    let mut next = front;
    while let Some(parent) = parent_of(next).filter(|p| p.as_raw() > 0 && getsid(Some(*p)) == session) {
        if getpgid(Some(parent)) != Ok(group) {
            return true;
        }
        next = parent;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_of_a_front_are_removed() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let mut args = words("leasehold __behind 5 8 run -- x");
        let pipes = FrontPipes::take(&mut args).unwrap();
        assert_eq!((pipes.signals, pipes.end_signal, args), (5, 8, words("leasehold run -- x")));
        for other in ["leasehold run 5 8", "leasehold __behind x 8 run", "leasehold __behind"] {
            let mut args = words(other);
            assert!(FrontPipes::take(&mut args).is_none());
            assert_eq!(args, words(other));
        }
    }
}
