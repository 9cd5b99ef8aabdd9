//! The terminal, where the wrapper was started from one: the child's group has it while the child runs.

use std::io;

use nix::{
    sys::signal::{SigSet, SigmaskHow, Signal, kill},
    unistd::{Pid, getpgrp, getpid, getppid, getsid, isatty, tcgetpgrp, tcsetpgrp},
};

/// Whether the wrapper has a terminal on its stdin, and is in front of it.
pub(super) fn is_ours() -> bool {
    isatty(io::stdin()).unwrap_or(false) && tcgetpgrp(io::stdin()).is_ok_and(|front| front == getpgrp())
}

/// Brings the caller's own process group to the front.
pub(super) fn take() {
    give(getpgrp());
}

/// Brings a process group to the front. From behind this would stop the caller (SIGTTOU), unless that is blocked.
pub(super) fn give(group: Pid) {
    let mut ttou = SigSet::empty();
    ttou.add(Signal::SIGTTOU);
    let Ok(before) = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK) else { return };
    // Without the terminal in front the command may be stopped when it reads from it, and says so itself.
    let _ = tcsetpgrp(io::stdin(), group);
    let _ = before.thread_set_mask();
}

/// Follows a child that was stopped from the terminal: takes the terminal back and stops too, so that the shell sees a
/// stopped job. Returns when somebody continued it, whether in front or behind.
///
/// Where no shell is above that could continue it, nothing is stopped.
pub(super) fn stop_with_child() {
    take();
    let session = getsid(None);
    let has_shell = session != Ok(getpid()) && getsid(Some(getppid())) == session;
    if has_shell {
        let _ = kill(getpid(), Signal::SIGSTOP);
    }
}
