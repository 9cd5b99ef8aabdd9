//! A cgroup for the processes of the job, if we may create cgroups. One write ends all its processes, however fast they fork.
//!
//! Supports only cgroup v2. Finds its mount in `/proc/self/mountinfo`, because it is not always `/sys/fs/cgroup`. If there is
//! no mount, or we may not write to it, the processes are ended one by one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::unistd::getpid;

use crate::secret::random_u128;

/// A cgroup inside the wrapper's cgroup. It contains only the processes of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobCgroup {
    /// The cgroup of the wrapper.
    own: PathBuf,
    path: PathBuf,
}

impl JobCgroup {
    /// Creates the cgroup. `None` if we may not write to our cgroup, or if it has no `cgroup.kill` (before Linux 5.14).
    pub(crate) fn create() -> Option<Self> {
        let read = |name| fs::read_to_string(format!("/proc/self/{name}")).ok();
        let own = own_cgroup(&read("mountinfo")?, &read("cgroup")?)?;
        remove_stale(&own);
        let path =
            own.join(format!("{PREFIX}{}-{:08x}", getpid(), random_u128().ok()? & u128::from(u32::MAX)));
        if let Err(error) = fs::create_dir(&path) {
            tracing::debug!(home = %own.display(), %error, "the job's cgroup could not be created");
            return None;
        }
        let cgroup = JobCgroup { own, path };
        // Moving a process into the cgroup may still fail. In that case, the processes are ended one by one.
        let can_kill = cgroup.path.join("cgroup.kill").exists();
        if !can_kill {
            cgroup.remove();
        }
        can_kill.then_some(cgroup)
    }

    /// Makes the value from the two [`paths`](Self::paths) that another process passed on.
    pub(crate) fn new(own: PathBuf, path: PathBuf) -> Self {
        JobCgroup { own, path }
    }

    pub(crate) fn paths(&self) -> [&Path; 2] {
        [&self.own, &self.path]
    }

    /// Runs `start` while this process is in the cgroup, so that the new child is in it too.
    pub(crate) fn start_inside<T>(&self, start: impl FnOnce() -> T) -> T {
        let is_inside = self.move_self(&self.path);
        let started = start();
        if is_inside && !self.move_self(&self.own) {
            tracing::debug!("this process stays in the cgroup of the job and will be ended with it");
        }
        started
    }

    fn move_self(&self, to: &Path) -> bool {
        fs::write(to.join("cgroup.procs"), "0").is_ok()
    }

    /// Kills all processes in the cgroup.
    pub(crate) fn kill(&self) {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %self.path.display(), %error, "the cgroup of the job could not be ended at once");
            }
            _ => {}
        }
    }

    /// Removes the cgroup and the cgroups that the command created in it, if they contain no process. Does nothing if the
    /// cgroup is already removed.
    pub(crate) fn remove(&self) {
        for _ in 0..REMOVAL_TRIES {
            if remove_tree(&self.path, DEPTH_MAX).is_ok() || !self.path.exists() {
                return;
            }
            // A dead process still counts for a moment.
            thread::sleep(Duration::from_millis(5));
        }
        tracing::debug!(folder = %self.path.display(), "the job's cgroup could not be removed");
    }
}

/// The part of the job cgroup's name before the wrapper's process id.
const PREFIX: &str = "leasehold-";
/// How often a removal is tried. The pause between two tries is 5 ms.
const REMOVAL_TRIES: u32 = 100;
/// How many levels of nested cgroups are removed.
const DEPTH_MAX: u32 = 8;

/// Removes a cgroup and the cgroups inside it. The kernel refuses this if one of them contains processes.
fn remove_tree(folder: &Path, depth: u32) -> io::Result<()> {
    if depth > 0 {
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                let _ = remove_tree(&entry.path(), depth - 1);
            }
        }
    }
    fs::remove_dir(folder)
}

/// Removes the empty cgroups of wrappers that were killed together with their guards.
fn remove_stale(own: &Path) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = remove_tree(&entry.path(), DEPTH_MAX);
        }
    }
}

/// Returns the path of this process's cgroup: the mount of the unified hierarchy, joined with our path in it.
fn own_cgroup(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let own = cgroup.lines().find_map(|l| l.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        // proc_pid_mountinfo(5): six fields or more, a dash, the type.
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then_some(())?;
        let mut fields = before.split(' ').skip(3);
        let (root, mounted) = (unescape(fields.next()?), unescape(fields.next()?));
        let below = Path::new(own).strip_prefix(&root).ok()?;
        Some(Path::new(&mounted).join(below))
    })
}

/// Replaces escapes such as `\040` for a space.
fn unescape(field: &str) -> String {
    let mut out = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match (code, after.get(3..)) {
            (Some(code), Some(left)) => {
                out.push(char::from(code));
                rest = left;
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_mount_is_found_anywhere() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw\n";
        let found = own_cgroup(hybrid, "4:memory:/x\n0::/user.slice/a b\n").unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/unified/user.slice/a b"));
        let inside = "41 31 0:38 /pod/x /my\\040cgroups rw - cgroup2 cgroup2 rw\n";
        assert_eq!(own_cgroup(inside, "0::/pod/x/y\n").unwrap(), Path::new("/my cgroups/y"));
        assert_eq!(own_cgroup(inside, "0::/elsewhere\n"), None, "our place is not below this mount");
        assert_eq!(own_cgroup("", "0::/\n"), None);
        assert_eq!(own_cgroup(hybrid, "4:memory:/x\n"), None, "only version 1");
    }

    #[test]
    fn the_cgroup_of_a_killed_wrapper_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let make = |name: String| {
            let path = home.path().join(name);
            fs::create_dir_all(path.join("made/by the command")).unwrap();
            path
        };
        let left = make(format!("{PREFIX}{}-0000abcd", i32::MAX));
        let live = make(format!("{PREFIX}{}-0000abcd", getpid()));
        let other = make("system.slice".into());
        remove_stale(home.path());
        assert!(!left.exists() && live.exists() && other.exists());
        JobCgroup::new(home.path().into(), live.clone()).remove();
        assert!(!live.exists());
    }

    #[test]
    fn escapes_in_mountinfo_are_replaced() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\0"), r"/a\0");
    }
}
