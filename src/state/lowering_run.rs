//! A run of lowerings: one task lowers many fences, for example because it closes many jobs.

use std::cell::Cell;

use tokio::task;

use crate::{clock::LeaseTime, limits};

thread_local! {
    /// The task that lowered a fence last on this thread, and the time at which its run began.
    static RUN: Cell<Option<(task::Id, LeaseTime)>> = const { Cell::new(None) };
}

/// Notes a lowering by the present task. Returns true if the run of this task has lasted for
/// [`limits::LOWERING_RUN_MAX`]. The next lowering then belongs to a new run.
///
/// A run is kept for each thread, because a thread has the place for a woken task that `release_woken_task` empties. A task that
/// lowers its first fence begins a run, so the result is false.
pub(super) fn is_long(now: LeaseTime) -> bool {
    let Some(task) = task::try_id() else { return false };
    match RUN.get() {
        Some((of, began)) if of == task && now.since(began) < limits::LOWERING_RUN_MAX => false,
        run => {
            RUN.set(Some((task, now)));
            run.is_some_and(|(of, _)| of == task)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_is_long_after_five_ms_in_one_task() {
        let note = |ms| is_long(LeaseTime(ms));
        let times = [1_000, 1_000, 1_004, 1_005, 1_006, 1_010, 1_030, 1_031];
        let noted = tokio::spawn(async move { times.map(note) }).await.unwrap();
        assert_eq!(noted, [false, false, false, true, false, true, true, false]);
        let other = tokio::spawn(async move { note(1_040) }).await.unwrap();
        assert!(!other, "it is the first lowering of this task");
    }
}
