//! The processes below this one, as `/proc` shows them: who descends from whom, and how they are ended.

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
use crate::{agent::messages::MessageSink, clock::Clock, sync::aside};

/// One process, and when it was started: an id alone may come to mean another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// In clock ticks since the machine was started.
    pub(crate) start: u64,
}

impl Process {
    /// The one that has this id now.
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        start_of(pid).map(|start| Process { pid, start })
    }

    /// Whether it still runs. One that is dead and that nobody has asked about is over.
    pub(crate) fn runs(self) -> bool {
        stat_of(self.pid).is_some_and(|stat| stat.start == self.start && !stat.dead)
    }
}

/// What could not be ended: processes in an uninterruptible wait. Their access has ended all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Survivors {
    pub pids: Vec<Pid>,
}

impl Survivors {
    /// Says which processes are left.
    pub(crate) fn say(&self, voice: &MessageSink) {
        if !self.pids.is_empty() {
            let pids: Vec<String> = self.pids.iter().map(ToString::to_string).collect();
            voice.say(&format!("processes that could not be ended, without access: {}", pids.join(", ")));
        }
    }
}

/// When a process was started, in clock ticks since the machine was; None where there is no such process.
pub(crate) fn start_of(pid: Pid) -> Option<u64> {
    Some(stat_of(pid)?.start)
}

/// The parent of a process, as it is now.
pub(crate) fn parent_of(pid: Pid) -> Option<Pid> {
    Some(stat_of(pid)?.parent)
}

struct Stat {
    parent: Pid,
    start: u64,
    dead: bool,
}

fn stat_of(pid: Pid) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    read_stat(&String::from_utf8_lossy(&text))
}

/// proc_pid_stat(5). A name may hold spaces and brackets, so fields count from the last bracket.
fn read_stat(text: &str) -> Option<Stat> {
    let (_, after) = text.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    // The state is field 3, the parent 4, `num_threads` 20, `starttime` 22.
    let threads: u64 = fields.nth(15)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    // A first thread that has ended shows as dead though others of its process live on.
    let dead = matches!(state, "Z" | "X") && threads <= 1;
    Some(Stat { parent: Pid::from_raw(parent), start, dead })
}

/// All that lives below this process and was not there before it began.
///
/// The wrapper and its guard adopt what loses its parent (they are subreapers, or the first process), so that whatever the
/// command started, in sessions of its own or not, is found here: torchrun starts every worker in its own session.
#[derive(Clone, Debug)]
pub(crate) struct Descendants {
    /// What somebody else put below this process before (`helper & exec leasehold run …`), with what descends from it.
    before: BTreeSet<Process>,
    /// Not of the job itself, though all below it is.
    guard: Option<Pid>,
    leaf: Option<JobCgroup>,
}

impl Descendants {
    /// From now on.
    pub(crate) fn new(leaf: Option<JobCgroup>) -> Self {
        let before = living(&BTreeSet::new(), None).into_iter().collect();
        Descendants { before, guard: None, leaf }
    }

    /// All that there is: for the guard, which begins with nothing.
    pub(crate) fn all(leaf: Option<JobCgroup>) -> Self {
        Descendants { before: BTreeSet::new(), guard: None, leaf }
    }

    #[cfg(test)]
    pub(crate) fn leaf(&self) -> Option<&JobCgroup> {
        self.leaf.as_ref()
    }

    pub(crate) fn guarded_by(self, guard: Pid) -> Self {
        Descendants { guard: Some(guard), ..self }
    }

    pub(crate) fn remove_leaf(&self) {
        self.leaf.iter().for_each(JobCgroup::remove);
    }

    fn living(&self) -> Vec<Process> {
        living(&self.before, self.guard)
    }

    /// Ends all of them: the polite signal first, each once, SIGKILL when the grace is over, and then for `patience` more until
    /// they are gone. Processes that are started meanwhile are found and ended too.
    pub(crate) async fn end(
        &self,
        polite: Option<(Signal, Duration)>,
        patience: Duration,
        clock: &dyn Clock,
    ) -> Survivors {
        let mut told = BTreeSet::new();
        if let Some((signal, grace)) = polite {
            let deadline = clock.now().lease.plus(grace);
            let mut pause = Duration::from_millis(5);
            loop {
                let Some(living) = self.scan().await else { return Survivors { pids: Vec::new() } };
                for process in living.into_iter().filter(|p| told.insert(*p)) {
                    send(process, signal);
                    // A stopped process acts on nothing but SIGKILL until it is continued.
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
            if let Some(leaf) = &self.leaf {
                leaf.kill();
            }
            for process in living {
                send(process, Signal::SIGKILL);
            }
            self.strike();
            clock.sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGKILLs orphans as they come, for a moment. A process that forks and exits faster than all of `/proc` can be read falls to
    /// this one each time: its own short list of children is read in microseconds.
    fn strike(&self) {
        for _ in 0..STRIKES {
            if self.guard.is_none() {
                reap_orphans(None);
            }
            let Some(children) = children_of(getpid()) else { return };
            let orphans: Vec<Pid> = children.into_iter().filter(|pid| !self.is_known(*pid)).collect();
            if orphans.is_empty() {
                return;
            }
            for orphan in orphans {
                // A child of ours keeps its id until we reap it.
                let _ = kill(orphan, Signal::SIGKILL);
            }
        }
    }

    /// Whether a child of this process is not of the job.
    fn is_known(&self, child: Pid) -> bool {
        Some(child) == self.guard || self.before.iter().any(|before| before.pid == child)
    }

    /// What lives. `None` only if it is proven that nothing does.
    ///
    /// Reading `/proc` takes milliseconds on a busy host: not on a thread that beats.
    async fn scan(&self) -> Option<Vec<Process>> {
        let below = self.clone();
        let look = move || {
            let living = below.living();
            (!living.is_empty() || !below.is_proven_empty()).then_some(living)
        };
        // A look that did not finish has proven nothing.
        aside(look).await.unwrap_or_else(|| Some(Vec::new()))
    }

    /// An empty scan proves nothing: a process that forks and exits is always elsewhere than where it is looked for. An orphan
    /// becomes a child of the subreaper above it in the same moment in which its parent dies. So as long as anything lives, the
    /// subreaper has a child, and one look at its own list is the proof.
    fn is_proven_empty(&self) -> bool {
        if self.guard.is_none() && self.before.is_empty() {
            return has_no_child();
        }
        // What a guard had that is gone is ours.
        let guard = self.guard.filter(|guard| start_of(*guard).is_some());
        match (children_of(getpid()), guard.map_or(Some(Vec::new()), children_of)) {
            (Some(own), Some(guarded)) => guarded.is_empty() && own.into_iter().all(|pid| self.is_known(pid)),
            // A kernel without these lists: the guard, which ends after us, waits for its last child.
            _ => self.living().is_empty(),
        }
    }
}

/// Looks at a list of children in one go. Each takes some microseconds, so all of them the time of some scans.
const STRIKES: u32 = 500;

/// The children of a process, dead ones that were not reaped among them. `None` if there is no such list (CONFIG_PROC_CHILDREN).
fn children_of(pid: Pid) -> Option<Vec<Pid>> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        match fs::read_to_string(task.path().join("children")) {
            Ok(list) => {
                all.extend(list.split_ascii_whitespace().filter_map(|p| p.parse().ok().map(Pid::from_raw)))
            }
            // A thread that has just ended has handed its children on.
            Err(_) if !task.path().exists() => {}
            Err(_) => return None,
        }
    }
    Some(all)
}

/// Whether this process has no child at all, after it took the statuses of the dead ones.
fn has_no_child() -> bool {
    reap_orphans(None);
    let any = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::All, any), Err(Errno::ECHILD))
}

fn living(except: &BTreeSet<Process>, passed: Option<Pid>) -> Vec<Process> {
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
            if !stat.dead && Some(pid) != passed {
                found.push(process);
            }
        }
    }
    found
}

pub(crate) fn send(process: Process, signal: Signal) {
    // Looked at once more, so that a process that took over the id is not hit.
    if start_of(process.pid) == Some(process.start)
        && let Err(e) = kill(process.pid, signal)
        && e != Errno::ESRCH
    {
        tracing::warn!(pid = %process.pid, %signal, error = %e, "a process of the job could not be signalled");
    }
}

/// Takes the statuses of dead children of this process, all but `own`'s: those were orphaned and adopted. Nothing else
/// may be started by it, or its status is taken here.
pub(crate) fn reap_orphans(own: Option<Pid>) {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::StillAlive) => return,
            Ok(status) if status.pid().is_some() && status.pid() == own => return,
            Ok(status) => {
                let _ = waitpid(status.pid(), Some(WaitPidFlag::WNOHANG));
            }
            Err(Errno::EINTR) => {}
            // A signal that nix has no name for: the status says no pid, so the dead are looked up one by one.
            Err(Errno::EINVAL) => return reap_by_name(own),
            Err(_) => return,
        }
    }
}

fn reap_by_name(own: Option<Pid>) {
    let me = getpid();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|e| e.file_name().to_str()?.parse().ok().map(Pid::from_raw)) {
        if Some(pid) != own && stat_of(pid).is_some_and(|s| s.dead && s.parent == me) {
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = read_stat("7 (a) b (c) Z 4 7 7 0 -1 1 2 3 4 5 6 7 8 9 20 0 1 0 12345 0 0").unwrap();
        assert_eq!((stat.parent.as_raw(), stat.start, stat.dead), (4, 12345, true));
        let threads = read_stat("7 (a) Z 4 7 7 0 -1 1 2 3 4 5 6 7 8 9 20 0 2 0 12345 0 0").unwrap();
        assert!(!threads.dead, "one of its threads lives");
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
