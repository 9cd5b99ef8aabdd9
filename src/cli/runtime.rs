//! The threads on which a command runs.

use std::{
    io,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

use super::{Exit, Failure};
use crate::{
    agent::limit_of,
    limits::{SPARE_THREADS, WORKER_THREADS_MAX},
};

/// The threads that a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// One thread is enough.
    OneThread,
    /// The command serves many clients at once.
    Workers,
}

/// Builds the runtime of a command. If a limit of the machine prevents that, the failure names the limit.
///
/// Tokio panics if a worker thread cannot start. So this function first tries how many threads can start.
pub(super) fn build(needs: Needs) -> Result<Runtime, Failure> {
    let built = match needs {
        Needs::OneThread => Builder::new_current_thread().enable_all().build(),
        Needs::Workers => {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            // With two threads, the feed can go on while one request works long, also on one core.
            let (workers, refused) = try_workers(cores.clamp(2, WORKER_THREADS_MAX));
            match refused.filter(|_| workers == 0) {
                Some(error) => Err(error),
                None => Builder::new_multi_thread().worker_threads(workers.max(1)).enable_all().build(),
            }
        }
    };
    let runtime = built.map_err(|error| cannot_start(&error))?;
    survive_limits(&runtime, needs);
    Ok(runtime)
}

/// Handles SIGXFSZ, and also SIGXCPU in a command that serves, so that they do not end this process silently. A write beyond the
/// limit on the size of a file then fails with an error.
fn survive_limits(runtime: &Runtime, needs: Needs) {
    let _inside = runtime.enter();
    // The handler stays installed after this value is dropped.
    let _ = signal(SignalKind::from_raw(Signal::SIGXFSZ as i32));
    if needs == Needs::Workers
        && let Ok(mut used_up) = signal(SignalKind::from_raw(Signal::SIGXCPU as i32))
    {
        runtime.spawn(async move {
            while used_up.recv().await.is_some() {
                tracing::error!(
                    "the processor time of RLIMIT_CPU (ulimit -t) is used up: the kernel ends this daemon at the hard limit"
                );
            }
        });
    }
}

fn cannot_start(error: &io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("this process cannot start: {error}")).saying("Nothing was done.")
}

/// Adds the limit of the platform to a failure, if a system error in it comes from a limit.
pub(super) fn name_limit(failure: Failure) -> Failure {
    let facts = failure.facts.iter().map(|(_, value)| value.as_str());
    let texts = std::iter::once(failure.text.as_ref()).chain(facts);
    let number = |text: &str| text.split_once("(os error ")?.1.split_once(')')?.0.parse().ok();
    let limit = texts.filter_map(number).find_map(|n| limit_of(&io::Error::from_raw_os_error(n)));
    match limit {
        Some(limit) => failure.with("limit", limit),
        None => failure,
    }
}

/// Returns how many of the wanted workers can start, and the error if not all can. Leaves [`SPARE_THREADS`] for the ledger and
/// for blocking work.
fn try_workers(wanted: usize) -> (usize, Option<io::Error>) {
    let gate = Mutex::new(());
    let mut refused = None;
    let started = thread::scope(|scope| {
        let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        let mut held = Vec::new();
        while held.len() < wanted.saturating_add(SPARE_THREADS) {
            match thread::Builder::new().spawn_scoped(scope, wait) {
                Ok(thread) => held.push(thread),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        drop(closed);
        let started = held.len();
        held.into_iter().for_each(|thread| drop(thread.join()));
        started
    });
    if refused.is_some() {
        // The kernel still counts a thread for a moment after it was joined.
        thread::sleep(Duration::from_millis(20));
    }
    (started.saturating_sub(SPARE_THREADS).min(wanted), refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_workers_start_as_threads_can() {
        assert_eq!(try_workers(2).0, 2);
        assert!(try_workers(2).1.is_none());
    }

    #[test]
    fn a_thread_that_cannot_start_names_the_limit() {
        let text = name_limit(cannot_start(&io::Error::from_raw_os_error(11))).render();
        assert!(text.contains("ulimit -u") && text.contains("pids"), "{text}");
        let other = Failure::new(Exit::Failure, "x".to_owned()).with("cause", "no (os error 2)");
        assert_eq!(name_limit(other.clone()).render(), other.render());
    }
}
