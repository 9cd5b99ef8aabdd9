//! The descendants of this process, as `/proc` shows them, and how all of them are ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, getpid},
};

use super::cgroup::JobCgroup;
use crate::{agent::messages::MessageSink, clock::Clock, sync::run_blocking};

/// A process id with the start time of the process, because ids are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// When the process was started, in clock ticks since boot.
    pub(crate) start: u64,
}

impl Process {
    /// Returns the process that has this id now.
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        start_of(pid).map(|start| Process { pid, start })
    }

    /// Whether the process still runs. A zombie does not run.
    pub(crate) fn runs(self) -> bool {
        stat_of(self.pid).is_some_and(|stat| stat.start == self.start && !stat.is_dead)
    }
}

/// Processes that could not be ended, because they are in an uninterruptible wait. Their access has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Survivors {
    pub pids: Vec<Pid>,
}

impl Survivors {
    /// Prints the processes that are left, if there are any.
    pub(crate) fn report(&self, messages: &MessageSink) {
        if !self.pids.is_empty() {
            let pids: Vec<String> = self.pids.iter().map(ToString::to_string).collect();
            messages
                .send(&format!("processes that could not be ended, but have no access: {}", pids.join(", ")));
        }
    }
}

/// Returns when a process was started, in clock ticks since boot. `None` if there is no such process.
pub(crate) fn start_of(pid: Pid) -> Option<u64> {
    Some(stat_of(pid)?.start)
}

/// Returns the present parent of a process.
pub(crate) fn parent_of(pid: Pid) -> Option<Pid> {
    Some(stat_of(pid)?.parent)
}

struct Stat {
    parent: Pid,
    start: u64,
    is_dead: bool,
}

fn stat_of(pid: Pid) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    read_stat(&String::from_utf8_lossy(&text))
}

/// Reads the text of `proc_pid_stat(5)`. A name may contain spaces and brackets, so fields are counted from the last bracket.
fn read_stat(text: &str) -> Option<Stat> {
    let (_, after) = text.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    // The state is field 3, the parent 4, `num_threads` 20, `starttime` 22.
    let threads: u64 = fields.nth(15)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    // A process whose first thread has ended shows as a zombie, although other threads may run.
    let is_dead = matches!(state, "Z" | "X") && threads <= 1;
    Some(Stat { parent: Pid::from_raw(parent), start, is_dead })
}

/// The descendants of this process, without the processes that existed before the command was started.
///
/// The wrapper and its guard adopt orphans, because they are subreapers or the first process of a container. So every process
/// that the command started is found here, in any session. For example, torchrun starts each worker in its own session.
#[derive(Clone, Debug)]
pub(crate) struct Descendants {
    /// Children that existed before the command was started (`helper & exec leasehold run …`). These children and their
    /// descendants are not counted.
    before: BTreeSet<Process>,
    /// The guard. It does not belong to the job, but all its descendants do.
    guard: Option<Pid>,
    cgroup: Option<JobCgroup>,
}

impl Descendants {
    /// Makes a value that leaves out the present descendants.
    pub(crate) fn from_now(cgroup: Option<JobCgroup>) -> Self {
        let before = living(&BTreeSet::new(), None).into_iter().collect();
        Descendants { before, guard: None, cgroup }
    }

    /// Makes a value with all descendants. The guard uses it, because it starts without children.
    pub(crate) fn all(cgroup: Option<JobCgroup>) -> Self {
        Descendants { before: BTreeSet::new(), guard: None, cgroup }
    }

    #[cfg(test)]
    pub(crate) fn cgroup(&self) -> Option<&JobCgroup> {
        self.cgroup.as_ref()
    }

    pub(crate) fn with_guard(self, guard: Pid) -> Self {
        Descendants { guard: Some(guard), ..self }
    }

    pub(crate) fn remove_cgroup(&self) {
        self.cgroup.iter().for_each(JobCgroup::remove);
    }

    fn living(&self) -> Vec<Process> {
        living(&self.before, self.guard)
    }

    /// Ends all descendants, also those that are started meanwhile. Sends the `first` signal to each process once, and SIGKILL
    /// after the grace. Then waits for at most `patience` until they have ended.
    pub(crate) async fn end(
        &self,
        first: Option<(Signal, Duration)>,
        patience: Duration,
        clock: &dyn Clock,
    ) -> Survivors {
        let mut signalled = BTreeSet::new();
        if let Some((signal, grace)) = first {
            let deadline = clock.now().lease.plus(grace);
            let mut pause = Duration::from_millis(5);
            loop {
                let Some(living) = self.scan().await else { return Survivors { pids: Vec::new() } };
                for process in living.into_iter().filter(|p| signalled.insert(*p)) {
                    send(process, signal);
                    // A stopped process acts only on SIGKILL until it is continued.
                    send(process, Signal::SIGCONT);
                }
                let left = deadline.since(clock.now().lease);
                if left.is_zero() {
                    break;
                }
                clock.sleep(left.min(pause)).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
        }
        let deadline = clock.now().lease.plus(patience);
        loop {
            let Some(living) = self.scan().await else { return Survivors { pids: Vec::new() } };
            if deadline.since(clock.now().lease).is_zero() {
                return Survivors { pids: living.into_iter().map(|p| p.pid).collect() };
            }
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
            }
            for process in living {
                send(process, Signal::SIGKILL);
            }
            self.kill_orphans();
            clock.sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills orphans as they arrive, for a moment. A process that forks and exits faster than `/proc` can be read becomes a
    /// child of this process each time. The list of children can be read in microseconds.
    fn kill_orphans(&self) {
        for _ in 0..ORPHAN_ROUNDS {
            if self.guard.is_none() {
                reap_orphans(None);
            }
            let Some(children) = children_of(getpid()) else { return };
            let orphans: Vec<Pid> = children.into_iter().filter(|pid| !self.is_foreign(*pid)).collect();
            if orphans.is_empty() {
                return;
            }
            for orphan in orphans {
                // A child keeps its id until it is reaped.
                let _ = kill(orphan, Signal::SIGKILL);
            }
        }
    }

    /// Whether a child of this process is not part of the job.
    fn is_foreign(&self, child: Pid) -> bool {
        Some(child) == self.guard || self.before.iter().any(|before| before.pid == child)
    }

    /// Finds the descendants that are alive. Returns `None` only if it is proven that there are none.
    ///
    /// Reading `/proc` takes milliseconds on a busy host, so it is done on another thread.
    async fn scan(&self) -> Option<Vec<Process>> {
        let descendants = self.clone();
        let scan = move || {
            let living = descendants.living();
            (!living.is_empty() || !descendants.is_proven_empty()).then_some(living)
        };
        // A scan that did not finish proves nothing.
        run_blocking(scan).await.unwrap_or_else(|| Some(Vec::new()))
    }

    /// Whether it is certain that no descendant is left. An empty scan is not enough: it may miss a process that forks and
    /// exits all the time. But an orphan becomes a child of the subreaper when its parent dies. So while a descendant lives,
    /// the subreaper has a child, and its list of children is the proof.
    fn is_proven_empty(&self) -> bool {
        if self.guard.is_none() && self.before.is_empty() {
            return has_no_child();
        }
        // If the guard has ended, its children are now children of this process.
        let guard = self.guard.filter(|guard| start_of(*guard).is_some());
        match (children_of(getpid()), guard.map_or(Some(Vec::new()), children_of)) {
            (Some(own), Some(guarded)) => {
                guarded.is_empty() && own.into_iter().all(|pid| self.is_foreign(pid))
            }
            // The kernel has no such lists, so an empty scan must be enough. A process that the scan missed is left to the guard,
            // which waits for its last child.
            _ => self.living().is_empty(),
        }
    }
}

/// How often the list of children is read in one call. Each read takes some microseconds.
const ORPHAN_ROUNDS: u32 = 500;

/// Returns the children of a process, including zombies. `None` if the kernel has no such list (`CONFIG_PROC_CHILDREN`).
fn children_of(pid: Pid) -> Option<Vec<Pid>> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        match fs::read_to_string(task.path().join("children")) {
            Ok(list) => {
                all.extend(list.split_ascii_whitespace().filter_map(|p| p.parse().ok().map(Pid::from_raw)));
            }
            // A thread that has just ended has passed its children on.
            Err(_) if !task.path().exists() => {}
            Err(_) => return None,
        }
    }
    Some(all)
}

/// Reaps the dead children, and returns whether no living child is left.
fn has_no_child() -> bool {
    reap_orphans(None);
    let any = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::All, any), Err(Errno::ECHILD))
}

fn living(except: &BTreeSet<Process>, skipped: Option<Pid>) -> Vec<Process> {
    let mut children: BTreeMap<Pid, Vec<(Pid, Stat)>> = BTreeMap::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|e| e.file_name().to_str()?.parse().ok().map(Pid::from_raw)) {
        if let Some(stat) = stat_of(pid) {
            children.entry(stat.parent).or_default().push((pid, stat));
        }
    }
    let (mut found, mut next) = (Vec::new(), vec![getpid()]);
    while let Some(parent) = next.pop() {
        for (pid, stat) in children.remove(&parent).unwrap_or_default() {
            let process = Process { pid, start: stat.start };
            if except.contains(&process) {
                continue;
            }
            next.push(pid);
            if !stat.is_dead && Some(pid) != skipped {
                found.push(process);
            }
        }
    }
    found
}

/// Sends a signal to a process, unless another process has its id by now.
pub(crate) fn send(process: Process, signal: Signal) {
    if start_of(process.pid) == Some(process.start)
        && let Err(e) = kill(process.pid, signal)
        && e != Errno::ESRCH
    {
        tracing::warn!(pid = %process.pid, %signal, error = %e, "a process of the job could not be signalled");
    }
}

/// Reaps the dead children that this process has adopted, but not `own`. This process must start no other children, because
/// they would be reaped here too.
pub(crate) fn reap_orphans(own: Option<Pid>) {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::StillAlive) => return,
            Ok(status) if status.pid().is_some() && status.pid() == own => return,
            Ok(status) => {
                let _ = waitpid(status.pid(), Some(WaitPidFlag::WNOHANG));
            }
            Err(Errno::EINTR) => {}
            // The signal has no name in nix, and the status has no process id, so the zombies are looked up one by one.
            Err(Errno::EINVAL) => return reap_one_by_one(own),
            Err(_) => return,
        }
    }
}

fn reap_one_by_one(own: Option<Pid>) {
    let me = getpid();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|e| e.file_name().to_str()?.parse().ok().map(Pid::from_raw)) {
        if Some(pid) != own && stat_of(pid).is_some_and(|s| s.is_dead && s.parent == me) {
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = read_stat("7 (a) b (c) Z 4 7 7 0 -1 1 2 3 4 5 6 7 8 9 20 0 1 0 12345 0 0").unwrap();
        assert_eq!((stat.parent.as_raw(), stat.start, stat.is_dead), (4, 12345, true));
        let threads = read_stat("7 (a) Z 4 7 7 0 -1 1 2 3 4 5 6 7 8 9 20 0 2 0 12345 0 0").unwrap();
        assert!(!threads.is_dead, "one of its threads lives");
        assert!(read_stat("7 (a").is_none() && read_stat("").is_none());
    }

    #[test]
    fn a_child_is_in_the_list_until_it_is_reaped() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert!(children_of(getpid()).unwrap().contains(&pid));
        child.wait().unwrap();
        assert!(!children_of(getpid()).unwrap().contains(&pid));
    }

    #[test]
    fn this_process_has_a_start_and_no_process_has_none() {
        assert!(start_of(getpid()).is_some_and(|s| s > 0));
        assert_eq!(start_of(Pid::from_raw(i32::MAX)), None);
    }
}
