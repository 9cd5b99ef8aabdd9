//! The signals that the wrapper passes on.

use std::{fs, future::poll_fn, io, task::Poll};

use nix::sys::signal::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Passed on to the child, all of them. Never SIGCHLD, SIGPIPE or SIGURG: those are the wrapper's own.
const PASSED_ON: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// What came to the wrapper and is for the child. From its making on, none of these signals ends the wrapper.
#[derive(Debug)]
pub struct Signals(Vec<(Signal, Stream)>);

impl Signals {
    /// Begins to listen. Made before the child is started, so that no signal is lost in between; needs a tokio runtime.
    ///
    /// What the wrapper was told to ignore (`nohup`, a shell's `&`) stays ignored, by it and by the child.
    pub fn listen() -> io::Result<Self> {
        let ignored = fs::read_to_string("/proc/self/status").map_or(0, |status| ignored_mask(&status));
        PASSED_ON
            .into_iter()
            .filter(|s| *s == Signal::SIGTERM || ignored & (1 << (*s as i32 - 1)) == 0)
            .map(|s| Ok((s, signal(SignalKind::from_raw(s as i32))?)))
            .collect::<io::Result<_>>()
            .map(Signals)
    }

    /// The next one. Cancel safe: nothing is lost. Several of one kind that come together are one, as with any process.
    pub async fn next(&mut self) -> Signal {
        poll_fn(|cx| {
            for (number, stream) in &mut self.0 {
                if let Poll::Ready(Some(())) = stream.poll_recv(cx) {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Bit n − 1 stands for signal n, proc_pid_status(5).
fn ignored_mask(status: &str) -> u64 {
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
        assert_eq!(ignored_mask("Name:\tx\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored_mask(""), 0);
    }
}
