//! The access of one member: how it is obtained, kept and ended. The credential files never outlive their lease.
//!
//! | What | Files |
//! |---|---|
//! | creates the job, begins the attempt, joins it; undoes that if the start fails | `obtain` `join` `session` |
//! | calls to the daemon, what a refusal means to people, how the end of access is reported | `calls` `advice` `access_end` |
//! | the member while it runs | `member/` |
//! | its credentials and when each is renewed | `credential_set` `schedule` |
//! | what the forwarder may use now | `present` |
//! | the files of the credentials | `credential_dir` `index` `folder` `manifest` |

pub(super) mod access_end;
pub(super) mod advice;
pub(super) mod calls;
pub(super) mod credential_dir;
pub(super) mod credential_set;
pub(super) mod folder;
pub(super) mod index;
pub(super) mod join;
pub(super) mod manifest;
pub(super) mod member;
pub(super) mod obtain;
pub(super) mod present;
pub(super) mod schedule;
pub(super) mod session;
