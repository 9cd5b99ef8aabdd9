//! The terminal of this process's session. It is found by `/dev/tty`: stdin may be a pipe, and a command reads passwords there.

use std::fs::File;

use nix::{
    fcntl::OFlag,
    sys::signal::{SigSet, SigmaskHow, Signal},
    unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp},
};

fn terminal() -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // Reading is not asked for: it is never read here.
    File::options().write(true).custom_flags(OFlag::O_NOCTTY.bits()).open("/dev/tty").ok()
}

/// Whether there is one.
pub(crate) fn is_there() -> bool {
    terminal().is_some()
}

/// Whether there is one, and the caller is in front of it.
pub(crate) fn is_ours() -> bool {
    terminal().is_some_and(|t| tcgetpgrp(&t).is_ok_and(|front| front == getpgrp()))
}

/// Brings the caller's own process group to the front.
pub(crate) fn take() {
    give(getpgrp());
}

/// Brings a process group to the front. From behind this would stop the caller (SIGTTOU), unless that is blocked.
pub(crate) fn give(group: Pid) {
    let Some(terminal) = terminal() else { return };
    let mut ttou = SigSet::empty();
    ttou.add(Signal::SIGTTOU);
    let Ok(before) = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK) else { return };
    // Without the terminal in front the command may be stopped when it reads from it, and says so itself.
    let _ = tcsetpgrp(&terminal, group);
    let _ = before.thread_set_mask();
}
