//! The signals that the wrapper receives: which signals it handles, and which signals it passes on to its command.
//!
//! | Signal | What happens to it |
//! |---|---|
//! | SIGKILL, SIGSTOP, 32 and 33 (for the C library) | cannot be handled; the guard (see `guard`) ends the job if the wrapper is killed |
//! | SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS | end the wrapper, whether a fault or a sender caused them; Rust ignores the first SIGSEGV or SIGBUS that was sent; the guard blocks these signals, survives, and ends the job |
//! | SIGCHLD, SIGPIPE, SIGURG | not handled |
//! | SIGTTIN, SIGTTOU | blocked: the terminal may stop the command, but not the process that keeps its access |
//! | SIGXFSZ | handled and not passed on: the write that was too long returns an error |
//! | all others, also real-time signals | handled, and passed on to the command unless it got the signal too |
//!
//! Signals that were ignored when the wrapper started (`nohup`, a shell's `&`) stay ignored, in the wrapper and in the command.
//! Only SIGTERM is always handled.

use std::{
    collections::BTreeSet,
    fmt, fs,
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use nix::{
    errno::Errno,
    libc,
    sys::signal::{SigSet, SigmaskHow, Signal},
    unistd::Pid,
};
use rustix::process::{kill_process, kill_process_group};
use rustix_libc_wrappers::process::SignalExt;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::front::FrontSignals;

/// The number of a signal. Real-time signals have no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SignalNumber(pub(crate) i32);

impl SignalNumber {
    pub fn named(self) -> Option<Signal> {
        Signal::try_from(self.0).ok()
    }

    /// Sends the signal to one process.
    pub(crate) fn send_to(self, pid: Pid) -> Result<(), Errno> {
        let (pid, signal) = self.to_rustix(pid)?;
        kill_process(pid, signal).map_err(|e| Errno::from_raw(e.raw_os_error()))
    }

    /// Sends the signal to a process group.
    pub(crate) fn send_to_group(self, group: Pid) -> Result<(), Errno> {
        let (group, signal) = self.to_rustix(group)?;
        kill_process_group(group, signal).map_err(|e| Errno::from_raw(e.raw_os_error()))
    }

    /// Converts to rustix types, because nix cannot send real-time signals.
    fn to_rustix(self, pid: Pid) -> Result<(rustix::process::Pid, rustix::process::Signal), Errno> {
        let signal = rustix::process::Signal::from_raw(self.0).ok_or(Errno::EINVAL)?;
        let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(Errno::ESRCH)?;
        Ok((pid, signal))
    }
}

impl From<Signal> for SignalNumber {
    fn from(signal: Signal) -> Self {
        SignalNumber(signal as i32)
    }
}

impl PartialEq<Signal> for SignalNumber {
    fn eq(&self, other: &Signal) -> bool {
        self.0 == *other as i32
    }
}

impl fmt::Display for SignalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.named() {
            Some(named) => f.write_str(named.as_str()),
            None if self.0 >= libc::SIGRTMIN() => write!(f, "SIGRTMIN+{}", self.0 - libc::SIGRTMIN()),
            None => write!(f, "signal {}", self.0),
        }
    }
}

/// Signals for faults. A handler would return to the same fault again and again.
const FAULTS: [Signal; 6] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP, Signal::SIGSYS];

/// Signals from the terminal to a background process that reads from it or writes to it.
const TERMINAL_SIGNALS: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// Signals that are never handled, in addition to [`FAULTS`] and [`TERMINAL_SIGNALS`].
const NOT_HANDLED: [Signal; 5] =
    [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGCHLD, Signal::SIGPIPE, Signal::SIGURG];

/// Returns all signals that the wrapper handles, in order.
fn handled_signals() -> impl Iterator<Item = SignalNumber> {
    let never = FAULTS.into_iter().chain(TERMINAL_SIGNALS).chain(NOT_HANDLED);
    let never: BTreeSet<i32> = never.map(|s| s as i32).collect();
    // The signals of the C library are between the two ranges.
    let named = Signal::iterator().map(|s| s as i32).filter(move |n| !never.contains(n));
    let mut all: Vec<i32> = named.chain(libc::SIGRTMIN()..=libc::SIGRTMAX()).collect();
    all.sort_unstable();
    all.into_iter().map(SignalNumber)
}

/// Which of our processes received a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SignalReceiver {
    /// The process that the shell started, if it in turn started the wrapper as its child (see `front`).
    Front,
    Wrapper,
    Guard,
}

/// One arrival of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignalArrival {
    pub(crate) signal: SignalNumber,
    pub(crate) receiver: SignalReceiver,
}

/// Receives the signals of the wrapper. While the value exists, these signals do not end the wrapper.
#[derive(Debug)]
pub struct Signals {
    own: Vec<(SignalNumber, Stream)>,
    front: Option<FrontSignals>,
}

impl Signals {
    /// Begins to listen. Call it on a thread of the tokio runtime, before the child is started, so that no signal is lost.
    pub fn listen() -> io::Result<Self> {
        Signals::listen_behind(None)
    }

    /// Like [`Signals::listen`], but the value also reports the signals that the front process receives.
    pub(crate) fn listen_behind(front: Option<FrontSignals>) -> io::Result<Self> {
        block(&TERMINAL_SIGNALS);
        let ignored = ignored_signals();
        let own = handled_signals()
            .filter(|s| *s == Signal::SIGTERM || !is_in(ignored, *s))
            .map(|s| Ok((s, signal(SignalKind::from_raw(s.0))?)))
            .collect::<io::Result<_>>()?;
        Ok(Signals { own, front })
    }

    /// Like [`Signals::listen`], but also blocks the signals for faults: someone may send them, and they must not end a guard.
    pub(crate) fn listen_as_guard() -> io::Result<Self> {
        block(&FAULTS);
        Signals::listen()
    }

    /// Waits for the next signal. Cancel safe. If the same signal is sent several times before it is read, it is reported once,
    /// as usual on Unix.
    pub async fn next(&mut self) -> SignalNumber {
        self.next_arrival().await.signal
    }

    /// Waits for the next signal, and returns it with the process that received it. SIGKILL with [`SignalReceiver::Front`]
    /// means that the process in front has ended.
    pub(crate) async fn next_arrival(&mut self) -> SignalArrival {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SignalArrival> {
        for (signal, stream) in &mut self.own {
            if let Poll::Ready(Some(())) = stream.poll_recv(cx) {
                return Poll::Ready(SignalArrival { signal: *signal, receiver: SignalReceiver::Wrapper });
            }
        }
        if let Some(front) = &mut self.front
            && let Poll::Ready(number) = front.poll_next(cx)
        {
            let signal = number.unwrap_or(Signal::SIGKILL.into());
            if number.is_none() {
                self.front = None;
            }
            return Poll::Ready(SignalArrival { signal, receiver: SignalReceiver::Front });
        }
        Poll::Pending
    }
}

/// Returns the signals that a front process handles: all except faults and signals that were ignored when it started.
pub(crate) fn signals_of_front() -> SigSet {
    let ignored = ignored_signals();
    let mut set = SigSet::all();
    let left = Signal::iterator().filter(|s| {
        FAULTS.contains(s) || *s == Signal::SIGPIPE || (*s != Signal::SIGCHLD && is_in(ignored, (*s).into()))
    });
    left.for_each(|signal| set.remove(signal));
    set
}

/// Calls `start`. Meanwhile the signals that a wrapper or guard blocks are not blocked, because a child that `start`
/// makes inherits the mask.
pub(crate) fn with_unblocked<T>(start: impl FnOnce() -> T) -> T {
    let set: SigSet = FAULTS.into_iter().chain(TERMINAL_SIGNALS).collect();
    let before = set.thread_swap_mask(SigmaskHow::SIG_UNBLOCK);
    let started = start();
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
    started
}

fn block(signals: &[Signal]) {
    let set: SigSet = signals.iter().copied().collect();
    if let Err(error) = set.thread_block() {
        tracing::debug!(%error, "signals could not be blocked");
    }
}

/// Returns the signals that this process ignores: bit n − 1 is for signal n.
fn ignored_signals() -> u64 {
    fs::read_to_string("/proc/self/status").map_or(0, |status| read_ignored(&status))
}

fn is_in(mask: u64, signal: SignalNumber) -> bool {
    u32::try_from(signal.0 - 1).is_ok_and(|bit| mask.checked_shr(bit).is_some_and(|m| m & 1 == 1))
}

/// Reads the mask of ignored signals from the text of `proc_pid_status(5)`.
fn read_ignored(status: &str) -> u64 {
    status
        .lines()
        .find_map(|l| l.strip_prefix("SigIgn:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ignored_signals_are_read_from_the_status() {
        assert_eq!(read_ignored("Name:\tx\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(read_ignored(""), 0);
        assert!(is_in(0x1001, Signal::SIGHUP.into()) && is_in(0x1001, Signal::SIGPIPE.into()));
        assert!(!is_in(0x1001, Signal::SIGTERM.into()) && !is_in(0x1001, SignalNumber(64)));
        assert!(is_in(1 << 63, SignalNumber(64)));
    }

    #[test]
    fn the_unhandled_signals_are_the_documented_ones() {
        let handled: BTreeSet<i32> = handled_signals().map(|s| s.0).collect();
        let not: Vec<i32> = (1..=64).filter(|n| !handled.contains(n)).collect();
        // KILL, STOP; ILL, TRAP, BUS, FPE, SEGV, SYS; PIPE, CHLD, URG; TTIN, TTOU; the C library's two.
        assert_eq!(not, [4, 5, 7, 8, 9, 11, 13, 17, 19, 21, 22, 23, 31, 32, 33]);
    }

    #[test]
    fn a_signal_is_named_as_kill_names_it() {
        assert_eq!(SignalNumber::from(Signal::SIGXCPU).to_string(), "SIGXCPU");
        assert_eq!(SignalNumber(libc::SIGRTMIN() + 3).to_string(), "SIGRTMIN+3");
    }
}
