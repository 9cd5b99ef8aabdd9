//! Notices when a task has lowered fences for so long that the feed must get a turn, for example because it closes many jobs.

use std::cell::Cell;

use tokio::task;

use crate::{clock::LeaseTime, limits};

thread_local! {
    /// The task that lowered a fence last on this thread, and the time at which its run began.
    static RUN: Cell<Option<(task::Id, LeaseTime)>> = const { Cell::new(None) };
}

/// Notes a lowering by the present task. The first lowering of a task on this thread begins a run. Returns true if the run has
/// lasted for [`limits::LOWERING_RUN_MAX`]. In that case, this lowering begins the next run.
///
/// Each thread keeps its own run, because each worker thread of Tokio has its own place for the task that it woke last, and
/// `release_woken_task` empties only the place of the present thread.
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
