//! Arrivals of signals: whether a signal was sent only to the wrapper, or to the command too.

use std::collections::BTreeMap;

use super::signals::{SignalArrival, SignalNumber, SignalReceiver};
use crate::{
    clock::LeaseTime,
    limits::{SIGNAL_LATE, SIGNAL_TOGETHER},
};

/// Collects signals for a moment, to decide to which processes each signal was sent.
///
/// systemd, Slurm and Ctrl-C send a signal to every process of a unit, a step or a group. The command has then got the signal,
/// and would get it twice if the wrapper passed it on. So the wrapper waits for [`SIGNAL_TOGETHER`]. If two of our processes
/// (the wrapper, its guard, the process in front) get the signal in that time, the command got it too, and the wrapper does
/// not pass it on. After `pkill -f leasehold` that is a mistake: our processes get the signal, but the command does not.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(Vec<SentSignal>);

#[derive(Debug)]
struct SentSignal {
    signal: SignalNumber,
    at: LeaseTime,
    /// When each of our processes got the signal.
    to: BTreeMap<SignalReceiver, LeaseTime>,
    is_decided: bool,
}

/// The processes to which a signal was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SentTo {
    /// Only the wrapper got the signal, and passes it on to the command.
    Wrapper,
    /// The wrapper's process group or cgroup got the signal, so the command has got it.
    All,
}

impl Arrivals {
    /// Notes an arrival. Returns whether it is the first arrival of a signal at the wrapper or at the process in front.
    pub(crate) fn add(&mut self, arrival: SignalArrival, now: LeaseTime) -> bool {
        self.0.retain(|sent| now.since(sent.at) < 2 * SIGNAL_LATE);
        let is_same = |sent: &&mut SentSignal| {
            let is_late = now.since(sent.at) >= SIGNAL_LATE;
            sent.signal == arrival.signal && !sent.to.contains_key(&arrival.receiver) && !is_late
        };
        if let Some(sent) = self.0.iter_mut().rev().find(is_same) {
            let is_first = sent.to.keys().all(|p| *p == SignalReceiver::Guard);
            sent.to.insert(arrival.receiver, now);
            return is_first;
        }
        let again = |sent: &SentSignal| sent.signal == arrival.signal && now.since(sent.at) < SIGNAL_TOGETHER;
        if self.0.iter().any(again) {
            // Two signals of one kind at the same time count as one, as with any process.
            return false;
        }
        let mut to = self.take_late(arrival.signal, now);
        let is_first = to.keys().all(|p| *p == SignalReceiver::Guard);
        to.insert(arrival.receiver, now);
        self.0.push(SentSignal { signal: arrival.signal, at: now, to, is_decided: false });
        is_first && arrival.receiver != SignalReceiver::Guard
    }

    /// Takes recent arrivals from an earlier signal, because they belong to the signal that begins now.
    fn take_late(&mut self, signal: SignalNumber, now: LeaseTime) -> BTreeMap<SignalReceiver, LeaseTime> {
        let mut taken = BTreeMap::new();
        for sent in self.0.iter_mut().filter(|sent| sent.signal == signal && sent.is_decided) {
            let began = sent.at;
            let is_late =
                |at: LeaseTime| at.since(began) >= SIGNAL_TOGETHER && now.since(at) < SIGNAL_TOGETHER;
            taken.extend(sent.to.extract_if(.., |_, at| is_late(*at)));
        }
        taken
    }

    /// When the next decision about a signal is due.
    pub(crate) fn due(&self) -> LeaseTime {
        let open = self.0.iter().filter(|sent| !sent.is_decided);
        open.map(|sent| sent.at.plus(SIGNAL_TOGETHER)).min().unwrap_or(LeaseTime(u64::MAX))
    }

    /// Takes the signals that are decided by now. Leaves out signals that only the guard got.
    pub(crate) fn take_decided(&mut self, now: LeaseTime) -> Vec<(SignalNumber, SentTo)> {
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

    use nix::{libc, sys::signal::Signal};

    use super::*;

    #[test]
    fn a_signal_to_two_processes_reached_the_command() {
        let mut arrivals = Arrivals::default();
        let term = SignalNumber::from(Signal::SIGTERM);
        let (at, by) = (
            |ms| LeaseTime(0).plus(Duration::from_millis(ms)),
            |receiver| SignalArrival { signal: term, receiver },
        );
        assert!(arrivals.add(by(SignalReceiver::Wrapper), at(0)));
        assert_eq!(arrivals.take_decided(at(50)), []);
        assert!(!arrivals.add(by(SignalReceiver::Guard), at(50)));
        assert_eq!(arrivals.due(), at(100));
        assert_eq!(arrivals.take_decided(at(100)), [(term, SentTo::All)]);
        assert_eq!((arrivals.take_decided(at(101)), arrivals.due()), (vec![], LeaseTime(u64::MAX)));
        // The next signal may reach the guard before the wrapper.
        assert!(!arrivals.add(by(SignalReceiver::Guard), at(300)));
        assert!(arrivals.add(by(SignalReceiver::Wrapper), at(301)));
        assert_eq!(arrivals.take_decided(at(400)), [(term, SentTo::All)]);
    }

    #[test]
    fn a_signal_to_the_wrapper_is_passed_on_each_time() {
        let mut arrivals = Arrivals::default();
        let signal = SignalNumber(libc::SIGRTMIN());
        let (at, by) = (
            |ms| LeaseTime(0).plus(Duration::from_millis(ms)),
            |receiver| SignalArrival { signal, receiver },
        );
        for round in [0, 500] {
            assert!(arrivals.add(by(SignalReceiver::Wrapper), at(round)));
            assert_eq!(arrivals.take_decided(at(round + 100)), [(signal, SentTo::Wrapper)]);
        }
        // A second signal, which is sent to all processes soon after, reaches the guard first.
        assert!(!arrivals.add(by(SignalReceiver::Guard), at(750)));
        assert!(arrivals.add(by(SignalReceiver::Wrapper), at(751)));
        assert_eq!(arrivals.take_decided(at(851)), [(signal, SentTo::All)]);
        // Either a slow sender reached the guard late, or only the guard got the signal. In both cases nothing is passed on.
        assert!(!arrivals.add(by(SignalReceiver::Guard), at(1_400)));
        assert!(!arrivals.add(by(SignalReceiver::Guard), at(5_000)));
        assert_eq!(arrivals.take_decided(at(6_000)), []);
    }
}
