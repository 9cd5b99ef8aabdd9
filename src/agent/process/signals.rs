//! The signals that come to the wrapper: which of them it takes, and which of them are for its command.
//!
//! | Signal | What becomes of it |
//! |---|---|
//! | SIGKILL, SIGSTOP, 32 and 33 (the C library's own) | the kernel's; a guard ends the job if the wrapper is killed |
//! | SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS | end the wrapper as a fault of it would (Rust lets one SIGSEGV or SIGBUS pass that is no fault); the guard does not take them and ends the job |
//! | SIGCHLD, SIGPIPE, SIGURG | not taken |
//! | SIGTTIN, SIGTTOU | blocked: the terminal stops a command, and never the process that keeps its access |
//! | SIGXFSZ | taken and not passed on: the write that was too long says so itself |
//! | all others, those of real time too | taken, and passed on to the command unless it was sent the signal as well |
//!
//! What the wrapper was started to ignore (`nohup`, a shell's `&`) stays ignored, by it and by the command; only SIGTERM is always
//! taken.

use std::{
    collections::{BTreeMap, BTreeSet},
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

use super::front::Front;
use crate::{
    clock::LeaseTime,
    limits::{SIGNAL_LATE, SIGNAL_TOGETHER},
};

/// A signal by its number: also one of real time, which has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SignalNumber(pub(crate) i32);

impl SignalNumber {
    pub fn named(self) -> Option<Signal> {
        Signal::try_from(self.0).ok()
    }

    /// Sends it to one process.
    pub(crate) fn send_to(self, pid: Pid) -> Result<(), Errno> {
        let (pid, signal) = self.of_rustix(pid)?;
        kill_process(pid, signal).map_err(|e| Errno::from_raw(e.raw_os_error()))
    }

    /// Sends it to a process group.
    pub(crate) fn send_to_group(self, group: Pid) -> Result<(), Errno> {
        let (group, signal) = self.of_rustix(group)?;
        kill_process_group(group, signal).map_err(|e| Errno::from_raw(e.raw_os_error()))
    }

    /// nix has no signals of real time.
    fn of_rustix(self, pid: Pid) -> Result<(rustix::process::Pid, rustix::process::Signal), Errno> {
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

/// Faults. A handler would return into the same fault again, without end.
const FAULTS: [Signal; 6] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP, Signal::SIGSYS];

/// Sent by a terminal to the one who reads or writes behind another's back.
const OF_THE_TERMINAL: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// Never taken, beside [`FAULTS`] and [`OF_THE_TERMINAL`].
const NOT_TAKEN: [Signal; 5] =
    [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGCHLD, Signal::SIGPIPE, Signal::SIGURG];

/// All signals that can be taken, in order.
fn taken() -> impl Iterator<Item = SignalNumber> {
    let never = FAULTS.into_iter().chain(OF_THE_TERMINAL).chain(NOT_TAKEN);
    let never: BTreeSet<i32> = never.map(|s| s as i32).collect();
    // Those that the C library keeps for itself stand between the two ranges.
    let named = Signal::iterator().map(|s| s as i32).filter(move |n| !never.contains(n));
    let mut all: Vec<i32> = named.chain(libc::SIGRTMIN()..=libc::SIGRTMAX()).collect();
    all.sort_unstable();
    all.into_iter().map(SignalNumber)
}

/// Which of our processes a signal came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SignalReceiver {
    /// The one that a shell started, if the wrapper is behind it.
    Front,
    Wrapper,
    Guard,
}

/// One arrival of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignalArrival {
    pub(crate) signal: SignalNumber,
    pub(crate) by: SignalReceiver,
}

/// What came to the wrapper and is for the child. From its making on, none of these signals ends the wrapper.
#[derive(Debug)]
pub struct Signals {
    own: Vec<(SignalNumber, Stream)>,
    front: Option<Front>,
}

impl Signals {
    /// Begins to listen. Made before the child is started, so that no signal is lost in between; needs a tokio runtime, on whose
    /// thread it is called.
    pub fn listen() -> io::Result<Self> {
        Signals::listen_behind(None)
    }

    /// Listens for what comes to the process in front of this one too.
    pub(crate) fn listen_behind(front: Option<Front>) -> io::Result<Self> {
        block(&OF_THE_TERMINAL);
        let ignored = ignored_now();
        let own = taken()
            .filter(|s| *s == Signal::SIGTERM || !is_in(ignored, *s))
            .map(|s| Ok((s, signal(SignalKind::from_raw(s.0))?)))
            .collect::<io::Result<_>>()?;
        Ok(Signals { own, front })
    }

    /// Takes what a guard takes: faults that somebody sends do not end it either.
    pub(crate) fn listen_as_guard() -> io::Result<Self> {
        block(&FAULTS);
        Signals::listen()
    }

    /// The next one. Cancel safe: nothing is lost. Several of one kind that come together are one, as with any process.
    pub async fn next(&mut self) -> SignalNumber {
        self.heard().await.signal
    }

    /// The next one, and to which process it came. SIGKILL by [`SignalReceiver::Front`] says that this process is gone.
    pub(crate) async fn heard(&mut self) -> SignalArrival {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SignalArrival> {
        for (signal, stream) in &mut self.own {
            if let Poll::Ready(Some(())) = stream.poll_recv(cx) {
                return Poll::Ready(SignalArrival { signal: *signal, by: SignalReceiver::Wrapper });
            }
        }
        if let Some(front) = &mut self.front
            && let Poll::Ready(number) = front.poll_next(cx)
        {
            let signal = number.unwrap_or(Signal::SIGKILL.into());
            if number.is_none() {
                self.front = None;
            }
            return Poll::Ready(SignalArrival { signal, by: SignalReceiver::Front });
        }
        Poll::Pending
    }
}

/// What a front reads from its descriptor: everything but faults and what it was started to ignore.
pub(crate) fn taken_by_front() -> SigSet {
    let ignored = ignored_now();
    let mut set = SigSet::all();
    let left = Signal::iterator().filter(|s| {
        FAULTS.contains(s) || *s == Signal::SIGPIPE || (*s != Signal::SIGCHLD && is_in(ignored, (*s).into()))
    });
    left.for_each(|signal| set.remove(signal));
    set
}

/// Starts something with the signals unblocked that a wrapper or a guard blocks: a mask is inherited.
pub(crate) fn unblocked<T>(start: impl FnOnce() -> T) -> T {
    let set: SigSet = FAULTS.into_iter().chain(OF_THE_TERMINAL).collect();
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
        tracing::debug!(%error, "signals that cannot be blocked");
    }
}

/// What this process ignores, bit n − 1 for signal n.
fn ignored_now() -> u64 {
    fs::read_to_string("/proc/self/status").map_or(0, |status| ignored_mask(&status))
}

fn is_in(mask: u64, signal: SignalNumber) -> bool {
    u32::try_from(signal.0 - 1).is_ok_and(|bit| mask.checked_shr(bit).is_some_and(|m| m & 1 == 1))
}

/// Bit n − 1 stands for signal n, proc_pid_status(5).
fn ignored_mask(status: &str) -> u64 {
    status
        .lines()
        .find_map(|l| l.strip_prefix("SigIgn:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// Tells a signal that was sent to the wrapper from one that was sent to everything.
///
/// systemd, Slurm and Ctrl-C send one signal to every process of a unit, a step or a group. The command has it then, and would
/// get it twice if it were passed on. So a signal is held back for [`SIGNAL_TOGETHER`]: if it came to two of our processes in
/// that time, it came to the command too. `pkill -f leasehold` looks the same, and the command does not get it.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(Vec<SentSignal>);

#[derive(Debug)]
struct SentSignal {
    signal: SignalNumber,
    at: LeaseTime,
    /// When it came to each.
    to: BTreeMap<SignalReceiver, LeaseTime>,
    is_decided: bool,
}

/// To whom a signal was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SentTo {
    /// To the wrapper: the command is to get it.
    Wrapper,
    /// To the wrapper's process group, or its cgroup: the command has it.
    All,
}

impl Arrivals {
    /// Takes note of an arrival. True if it is the first of one signal that the wrapper, or who is in front of it, got.
    pub(crate) fn heard(&mut self, heard: SignalArrival, now: LeaseTime) -> bool {
        self.0.retain(|sent| now.since(sent.at) < 2 * SIGNAL_LATE);
        let same = |sent: &&mut SentSignal| {
            let is_late = now.since(sent.at) >= SIGNAL_LATE;
            sent.signal == heard.signal && !sent.to.contains_key(&heard.by) && !is_late
        };
        if let Some(sent) = self.0.iter_mut().rev().find(same) {
            let is_first = sent.to.keys().all(|p| *p == SignalReceiver::Guard);
            sent.to.insert(heard.by, now);
            return is_first;
        }
        let again = |sent: &SentSignal| sent.signal == heard.signal && now.since(sent.at) < SIGNAL_TOGETHER;
        if self.0.iter().any(again) {
            // Two of one kind that come together are one, as with any process.
            return false;
        }
        let mut to = self.taken_for_late(heard.signal, now);
        let is_first = to.keys().all(|p| *p == SignalReceiver::Guard);
        to.insert(heard.by, now);
        self.0.push(SentSignal { signal: heard.signal, at: now, to, is_decided: false });
        is_first && heard.by != SignalReceiver::Guard
    }

    /// Takes back the arrivals of this moment that looked like late ones of a signal before: they belong to the one that begins.
    fn taken_for_late(
        &mut self,
        signal: SignalNumber,
        now: LeaseTime,
    ) -> BTreeMap<SignalReceiver, LeaseTime> {
        let mut taken = BTreeMap::new();
        for sent in self.0.iter_mut().filter(|sent| sent.signal == signal && sent.is_decided) {
            let began = sent.at;
            let is_late =
                |at: LeaseTime| at.since(began) >= SIGNAL_TOGETHER && now.since(at) < SIGNAL_TOGETHER;
            taken.extend(sent.to.extract_if(.., |_, at| is_late(*at)));
        }
        taken
    }

    /// When the next one is decided.
    pub(crate) fn due(&self) -> LeaseTime {
        let open = self.0.iter().filter(|sent| !sent.is_decided);
        open.map(|sent| sent.at.plus(SIGNAL_TOGETHER)).min().unwrap_or(LeaseTime(u64::MAX))
    }

    /// What is decided by now. What came to the guard only is nobody's.
    pub(crate) fn decided(&mut self, now: LeaseTime) -> Vec<(SignalNumber, SentTo)> {
        let mut decided = Vec::new();
        for sent in self.0.iter_mut().filter(|s| !s.is_decided && now.since(s.at) >= SIGNAL_TOGETHER) {
            sent.is_decided = true;
            if sent.to.len() > 1 {
                decided.push((sent.signal, SentTo::All));
            } else if !sent.to.contains_key(&SignalReceiver::Guard) {
                decided.push((sent.signal, SentTo::Wrapper));
            }
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_ignored_signals_are_read_from_the_status() {
        assert_eq!(ignored_mask("Name:\tx\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored_mask(""), 0);
        assert!(is_in(0x1001, Signal::SIGHUP.into()) && is_in(0x1001, Signal::SIGPIPE.into()));
        assert!(!is_in(0x1001, Signal::SIGTERM.into()) && !is_in(0x1001, SignalNumber(64)));
        assert!(is_in(1 << 63, SignalNumber(64)));
    }

    #[test]
    fn each_signal_of_the_platform_is_decided() {
        let taken: BTreeSet<i32> = taken().map(|s| s.0).collect();
        let not: Vec<i32> = (1..=64).filter(|n| !taken.contains(n)).collect();
        // KILL, STOP; ILL, TRAP, BUS, FPE, SEGV, SYS; PIPE, CHLD, URG; TTIN, TTOU; the C library's two.
        assert_eq!(not, [4, 5, 7, 8, 9, 11, 13, 17, 19, 21, 22, 23, 31, 32, 33]);
    }

    #[test]
    fn a_signal_is_named_as_kill_names_it() {
        assert_eq!(SignalNumber::from(Signal::SIGXCPU).to_string(), "SIGXCPU");
        assert_eq!(SignalNumber(libc::SIGRTMIN() + 3).to_string(), "SIGRTMIN+3");
    }

    #[test]
    fn what_came_to_two_of_ours_came_to_the_command() {
        let mut together = Arrivals::default();
        let term = SignalNumber::from(Signal::SIGTERM);
        let (at, by) =
            (|ms| LeaseTime(0).plus(Duration::from_millis(ms)), |by| SignalArrival { signal: term, by });
        assert!(together.heard(by(SignalReceiver::Wrapper), at(0)));
        assert_eq!(together.decided(at(50)), []);
        assert!(!together.heard(by(SignalReceiver::Guard), at(50)));
        assert_eq!(together.due(), at(100));
        assert_eq!(together.decided(at(100)), [(term, SentTo::All)]);
        assert_eq!((together.decided(at(101)), together.due()), (vec![], LeaseTime(u64::MAX)));
        // The next one may reach the guard first.
        assert!(!together.heard(by(SignalReceiver::Guard), at(300)));
        assert!(together.heard(by(SignalReceiver::Wrapper), at(301)));
        assert_eq!(together.decided(at(400)), [(term, SentTo::All)]);
    }

    #[test]
    fn what_came_to_the_wrapper_is_passed_on_each_time() {
        let mut together = Arrivals::default();
        let signal = SignalNumber(libc::SIGRTMIN());
        let (at, by) = (|ms| LeaseTime(0).plus(Duration::from_millis(ms)), |by| SignalArrival { signal, by });
        for round in [0, 500] {
            assert!(together.heard(by(SignalReceiver::Wrapper), at(round)));
            assert_eq!(together.decided(at(round + 100)), [(signal, SentTo::Wrapper)]);
        }
        // One to all, soon after, reaches the guard first.
        assert!(!together.heard(by(SignalReceiver::Guard), at(750)));
        assert!(together.heard(by(SignalReceiver::Wrapper), at(751)));
        assert_eq!(together.decided(at(851)), [(signal, SentTo::All)]);
        // The guard is reached late by a slow sender, or by itself: neither is for the command.
        assert!(!together.heard(by(SignalReceiver::Guard), at(1_400)));
        assert!(!together.heard(by(SignalReceiver::Guard), at(5_000)));
        assert_eq!(together.decided(at(6_000)), []);
    }
}
