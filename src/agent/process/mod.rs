//! Processes: the command with all its descendants, the terminal and signals around it, and work that another program started.
//!
//! | What | Files |
//! |---|---|
//! | the command: how it is found, started, followed and ended | `command` `environment` `standing` `child` `exit` `rlimits` |
//! | the small process that ends everything if the wrapper is killed | `guard` |
//! | the descendants of the command, and how all of them are ended | `processes` `cgroup` |
//! | signals; and, at a terminal, the process that the shell started and that stands for the wrapper in its job control | `signals` `arrivals` `front` `terminal` |
//! | work that another program started | `work_watch` |

pub(super) mod arrivals;
pub(super) mod cgroup;
pub(super) mod child;
pub(super) mod command;
pub(super) mod environment;
pub(super) mod exit;
pub(super) mod front;
pub(super) mod guard;
pub(super) mod processes;
pub(super) mod rlimits;
pub(super) mod signals;
pub(super) mod standing;
pub(super) mod terminal;
pub(super) mod work_watch;
