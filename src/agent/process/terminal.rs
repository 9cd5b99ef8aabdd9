//! The terminal of this session. It is opened as `/dev/tty`, because stdin may be a pipe. Commands also read passwords from
//! `/dev/tty`.

use std::fs::File;

use nix::{
    fcntl::OFlag,
    sys::signal::{SigSet, SigmaskHow, Signal},
    unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp},
};

fn terminal() -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // Opened only for writing, because it is never read here.
    File::options().write(true).custom_flags(OFlag::O_NOCTTY.bits()).open("/dev/tty").ok()
}

/// Whether the session has a terminal.
pub(crate) fn exists() -> bool {
    terminal().is_some()
}

/// Whether the caller's process group is in the foreground of a terminal.
pub(crate) fn is_foreground() -> bool {
    terminal().is_some_and(|t| tcgetpgrp(&t).is_ok_and(|group| group == getpgrp()))
}

/// Brings the caller's process group to the foreground.
pub(crate) fn take_foreground() {
    give_foreground(getpgrp());
}

/// Brings a process group to the foreground. Blocks SIGTTOU, which would stop a caller in the background.
pub(crate) fn give_foreground(group: Pid) {
    let Some(terminal) = terminal() else { return };
    let mut ttou = SigSet::empty();
    ttou.add(Signal::SIGTTOU);
    let Ok(before) = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK) else { return };
    // If this fails, the terminal may stop the command when it reads. The user sees that.
    let _ = tcsetpgrp(&terminal, group);
    let _ = before.thread_set_mask();
}
