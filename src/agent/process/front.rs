//! The process that a shell started, in front of a wrapper at a terminal.
//!
//! ```text
//! shell ── leasehold run (front) ── leasehold __behind (wrapper) ── leasehold __guard ── python train.py
//!          └──────────── the process group that the shell made ──┘                       └ in it too
//! ```
//!
//! A shell gets its terminal back from a job when the process that it started stops or ends (Ctrl-Z, `fg`, `bg`). A wrapper that
//! stopped would lose its access, and one that did not would keep the terminal. So there are two: the front stops and ends as
//! the command does, and the wrapper goes on. The command is in the shell's own group, as without a wrapper: it reads the
//! terminal, is stopped and interrupted by it, together with the rest of its pipeline and with the script around it.
//!
//! The front knows nothing but the wrapper's process id. It says which signals came to it. If it is killed, the wrapper ends.

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
    child::inherited,
    exit::ChildStatus,
    guard::take_over,
    processes::parent_of,
    signals::{self, SignalNumber},
    terminal,
};

/// The hidden word that the arguments of a wrapper behind a front begin with, before the usual ones.
const BEHIND: &str = "__behind";

// ---------- the front ----------

/// Stands in front of a wrapper if there is a terminal with job control, and answers what to exit with. `None`: there is
/// none, and this process is to be the wrapper itself. Called before any thread is started.
///
/// `args` are all of this process's.
pub fn run_in_front(args: &[OsString]) -> Option<u8> {
    // The leader of a session has no shell above it.
    if !terminal::is_there() || getsid(None) == Ok(getpid()) {
        return None;
    }
    // Without room for another process, the wrapper says so when it starts its command.
    FrontProcess::begin(args).ok().map(FrontProcess::until_the_end)
}

struct FrontProcess {
    wrapper: process::Child,
    came: SignalFd,
    tells: PipeWriter,
    end: PipeReader,
}

impl FrontProcess {
    fn begin(args: &[OsString]) -> io::Result<Self> {
        let (hears, tells) = io::pipe()?;
        let (end, says) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("leasehold").arg(BEHIND);
        command.arg(inherited(&hears)?.to_string()).arg(inherited(&says)?.to_string());
        let wrapper = command.args(args.iter().skip(1)).spawn()?;
        // After the start, since a mask is inherited.
        let taken = signals::taken_by_front();
        taken.thread_block()?;
        let came = SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC)?;
        Ok(FrontProcess { wrapper, came, tells, end })
    }

    fn until_the_end(mut self) -> u8 {
        loop {
            match self.wrapper.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return self.end_as(status),
                Err(_) => return 125,
            }
            if let Ok(Some(came)) = self.came.read_signal()
                && let Ok(number @ 1..) = u8::try_from(came.ssi_signo)
                && i32::from(number) != Signal::SIGCHLD as i32
            {
                // A wrapper that is gone shows at the next look.
                let _ = self.tells.write_all(&[number]);
            }
        }
    }

    /// Ends as the command ended: a shell that sees an interrupt in the status stops its loop, as without a wrapper.
    fn end_as(mut self, wrapper: ExitStatus) -> u8 {
        let mut signal = [0u8];
        let told = matches!(self.end.read(&mut signal), Ok(1));
        if let Some(signal) = Signal::try_from(i32::from(signal[0])).ok().filter(|_| told) {
            // The core that there may be is the command's.
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            let _ = SigSet::all().thread_unblock();
            let _ = kill(getpid(), signal);
        }
        ChildStatus::from(wrapper).exit_code()
    }
}

// ---------- the wrapper behind it ----------

/// What a front passes to its wrapper, as arguments.
#[derive(Clone, Copy, Debug)]
pub struct FrontPipes {
    hears: i32,
    says: i32,
}

impl FrontPipes {
    /// Takes the words of a front out of the arguments, if this process was started by one.
    pub fn take(args: &mut Vec<OsString>) -> Option<Self> {
        let number = |at: usize| args.get(at)?.to_str()?.parse().ok();
        let behind = FrontPipes { hears: number(2)?, says: number(3)? };
        (args.get(1)? == BEHIND).then(|| args.drain(1..4))?;
        Some(behind)
    }

    /// Opens both ways to the front.
    pub(crate) fn open(self) -> io::Result<(Front, FrontHandle)> {
        let hears = take_over(self.hears, OpenOptions::new().read(true))?;
        let says = take_over(self.says, OpenOptions::new().write(true))?;
        let way = FrontHandle { front: getppid(), says: Arc::new(says) };
        Ok((Front(pipe::Receiver::from_file(hears)?), way))
    }
}

/// What the front says.
#[derive(Debug)]
pub(crate) struct Front(pipe::Receiver);

impl Front {
    /// The next signal that came to it. `None`: it is gone.
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

/// What is done to the front.
#[derive(Clone, Debug)]
pub(crate) struct FrontHandle {
    front: Pid,
    says: Arc<File>,
}

impl FrontHandle {
    /// The shell's group, which the command is in.
    pub(crate) fn group(&self) -> Pid {
        getpgrp()
    }

    /// Stops the front, so that the shell sees a stopped job. False if no shell would: then nothing could continue it.
    pub(crate) fn stop(&self) -> bool {
        is_watched(self.front) && self.send(Signal::SIGSTOP)
    }

    pub(crate) fn resume(&self) {
        self.send(Signal::SIGCONT);
    }

    /// Has the front end as the command did. Said last, before the wrapper exits.
    pub(crate) fn end_as(&self, end: ChildStatus) {
        if let ChildStatus::Signalled(signal) = end
            && let Ok(signal @ 1..) = u8::try_from(signal)
        {
            let _ = (&*self.says).write_all(&[signal]);
        }
        // It may be stopped.
        self.resume();
    }

    fn send(&self, signal: Signal) -> bool {
        // One that is gone has left us to another parent, and its id may be another's.
        getppid() == self.front && kill(self.front, signal).is_ok()
    }
}

/// Whether a process of the same session and of another group started this one's group: a shell, which continues what stopped.
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
    fn the_words_of_a_front_are_taken_out() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let mut args = words("leasehold __behind 5 8 run -- x");
        let behind = FrontPipes::take(&mut args).unwrap();
        assert_eq!((behind.hears, behind.says, args), (5, 8, words("leasehold run -- x")));
        for other in ["leasehold run 5 8", "leasehold __behind x 8 run", "leasehold __behind"] {
            let mut args = words(other);
            assert!(FrontPipes::take(&mut args).is_none());
            assert_eq!(args, words(other));
        }
    }
}
