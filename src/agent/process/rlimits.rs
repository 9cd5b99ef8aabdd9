//! Resource limits: finds the limit that caused an error or a signal, so that a message can name it.

use std::{io, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        resource::{RLIM_INFINITY, Resource, UsageWho, getrlimit, getrusage, setrlimit},
        signal::Signal,
        time::TimeValLike,
    },
};

/// Returns the limit that caused a system error, under the name that a shell uses.
pub fn limit_of(error: &io::Error) -> Option<&'static str> {
    Some(match Errno::from_raw(error.raw_os_error()?) {
        Errno::EAGAIN => {
            "processes and threads: RLIMIT_NPROC (ulimit -u) of this user, or the pids limit of the cgroup"
        }
        Errno::EMFILE => "open files of this process: RLIMIT_NOFILE (ulimit -n)",
        Errno::ENFILE => "open files of this machine: fs.file-max",
        Errno::EFBIG => "the size of a file: RLIMIT_FSIZE (ulimit -f)",
        Errno::ENOMEM => "memory: RLIMIT_AS (ulimit -v), or the memory limit of the cgroup",
        Errno::EDQUOT => "this user's quota on that disk",
        Errno::ENOSPC => "the space of that disk",
        _ => return None,
    })
}

/// Returns the limit that may have caused the signal that ended a command. The command has the limits of the wrapper, unless it
/// changed them.
pub(crate) fn limit_behind_signal(signal: i32) -> Option<String> {
    let limits_of = |resource| getrlimit(resource).ok().filter(|(soft, _)| *soft != RLIM_INFINITY);
    match Signal::try_from(signal).ok()? {
        Signal::SIGXCPU => Some(match limits_of(Resource::RLIMIT_CPU) {
            Some((soft, _)) => format!("its limit of processor time is {soft} s, RLIMIT_CPU (ulimit -t)"),
            None => "a limit of processor time (ulimit -t) or a scheduler sends this signal".to_owned(),
        }),
        Signal::SIGXFSZ => Some(match limits_of(Resource::RLIMIT_FSIZE) {
            Some((soft, _)) => {
                format!("its limit for the size of a file is {soft} bytes, RLIMIT_FSIZE (ulimit -f)")
            }
            None => "a limit for the size of a file (ulimit -f) sends this signal".to_owned(),
        }),
        Signal::SIGKILL => {
            let (_, hard) = limits_of(Resource::RLIMIT_CPU).filter(|(_, hard)| *hard != RLIM_INFINITY)?;
            Some(format!(
                "the kernel also sends this signal after {hard} s of processor time: RLIMIT_CPU (ulimit -H -t)"
            ))
        }
        _ => None,
    }
}

/// Raises the wrapper's soft limit of processor time to the hard limit, if the wrapper itself has used up the soft limit. So
/// the wrapper can go on renewing its leases. The command keeps its limit. Returns whether the wrapper has used it up.
pub(crate) fn raise_own_cpu_limit() -> bool {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_CPU) else { return false };
    let Ok(used) = getrusage(UsageWho::RUSAGE_SELF) else { return false };
    let used = used.user_time() + used.system_time();
    let used = Duration::from_micros(used.num_microseconds().try_into().unwrap_or(0));
    // The kernel counts ticks, so its count may be a little higher than this sum.
    let is_own = soft != RLIM_INFINITY && used.as_secs_f64() + 0.1 >= soft as f64;
    if is_own && let Err(error) = setrlimit(Resource::RLIMIT_CPU, hard, hard) {
        tracing::warn!(%error, "the limit of processor time could not be raised");
    }
    is_own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_named_as_in_a_shell() {
        for (errno, word) in [
            (Errno::EAGAIN, "ulimit -u"),
            (Errno::EMFILE, "ulimit -n"),
            (Errno::EFBIG, "ulimit -f"),
            (Errno::ENOMEM, "ulimit -v"),
        ] {
            let limit = limit_of(&errno.into()).unwrap();
            assert!(limit.contains(word), "{limit}");
        }
        assert_eq!(limit_of(&Errno::EPERM.into()), None);
        assert_eq!(limit_of(&io::Error::other("x")), None);
    }

    #[test]
    fn a_signal_names_no_limit_that_is_not_set() {
        assert_eq!(limit_behind_signal(Signal::SIGTERM as i32), None);
        assert!(limit_behind_signal(Signal::SIGXCPU as i32).unwrap().contains("ulimit -t"));
        assert!(!raise_own_cpu_limit());
    }
}
