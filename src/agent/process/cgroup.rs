//! A cgroup of the job's own, where one is delegated to us: one write ends all that is in it, however fast it forks.
//!
//! cgroup v2 alone, found by `/proc/self/mountinfo`: the mount is not always `/sys/fs/cgroup`, and beside version 1 it is
//! somewhere below. Where none is there, or it may not be written, nothing is missing but the one write.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::unistd::getpid;

use crate::secret::random_u128;

/// A leaf below the wrapper's own cgroup, for the job's processes alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobCgroup {
    /// Where the wrapper is.
    home: PathBuf,
    folder: PathBuf,
}

impl JobCgroup {
    /// Makes one. None where there is no cgroup v2 of ours that may be written, or no `cgroup.kill` in it (Linux 5.14).
    pub(crate) fn make() -> Option<Self> {
        let read = |name| fs::read_to_string(format!("/proc/self/{name}")).ok();
        let home = home(&read("mountinfo")?, &read("cgroup")?)?;
        remove_left(&home);
        let folder = home.join(format!("{PREFIX}{}-{:08x}", getpid(), random_u128().ok()? as u32));
        if let Err(error) = fs::create_dir(&folder) {
            tracing::debug!(home = %home.display(), %error, "no cgroup of the job's own");
            return None;
        }
        let leaf = JobCgroup { home, folder };
        // Whether processes can be moved shows when the first one is; what is missing then is one write at the end.
        let whole = leaf.folder.join("cgroup.kill").exists();
        if !whole {
            leaf.remove();
        }
        whole.then_some(leaf)
    }

    /// From the two paths that another process was told.
    pub(crate) fn of(home: PathBuf, folder: PathBuf) -> Self {
        JobCgroup { home, folder }
    }

    pub(crate) fn paths(&self) -> [&Path; 2] {
        [&self.home, &self.folder]
    }

    /// Starts something inside: the caller goes in, and comes back out when it is started.
    pub(crate) fn start_inside<T>(&self, start: impl FnOnce() -> T) -> T {
        let inside = self.go(&self.folder);
        let started = start();
        if inside && !self.go(&self.home) {
            tracing::debug!("in the cgroup of the job for good: what ends it ends its keeper too");
        }
        started
    }

    fn go(&self, to: &Path) -> bool {
        fs::write(to.join("cgroup.procs"), "0").is_ok()
    }

    /// Ends all that is inside, at once.
    pub(crate) fn kill(&self) {
        match fs::write(self.folder.join("cgroup.kill"), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %self.folder.display(), %error, "the cgroup of the job could not be ended at once");
            }
            _ => {}
        }
    }

    /// Takes it away with what the command made inside, if no process is left there. Another may have done it.
    pub(crate) fn remove(&self) {
        for _ in 0..REMOVAL_TRIES {
            if remove_tree(&self.folder, DEPTH_MAX).is_ok() || !self.folder.exists() {
                return;
            }
            // A process that is dead still counts for a moment.
            thread::sleep(Duration::from_millis(5));
        }
        tracing::debug!(folder = %self.folder.display(), "the cgroup of the job stays");
    }
}

/// How the name of a leaf begins; the wrapper's process id follows.
const PREFIX: &str = "leasehold-";
/// Tries to remove a leaf, five milliseconds apart.
const REMOVAL_TRIES: u32 = 100;
/// How deep a command may nest cgroups.
const DEPTH_MAX: u32 = 8;

/// Removes a cgroup and those below it: the kernel removes one that has no processes and no cgroups inside.
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

/// Removes the empty leaves of wrappers that were killed together with their guards.
fn remove_left(home: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = remove_tree(&entry.path(), DEPTH_MAX);
        }
    }
}

/// The folder of this process's cgroup: the mount of the one unified hierarchy, and our place in it.
fn home(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let ours = cgroup.lines().find_map(|l| l.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        // proc_pid_mountinfo(5): six fields and more, a dash, the type.
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then_some(())?;
        let mut fields = before.split(' ').skip(3);
        let (root, mounted) = (unescaped(fields.next()?), unescaped(fields.next()?));
        let below = Path::new(ours).strip_prefix(&root).ok()?;
        Some(Path::new(&mounted).join(below))
    })
}

/// Spaces and the like stand as `\040`.
fn unescaped(field: &str) -> String {
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
    fn the_mount_is_found_wherever_it_is() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw\n";
        let found = home(hybrid, "4:memory:/x\n0::/user.slice/a b\n").unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/unified/user.slice/a b"));
        let inside = "41 31 0:38 /pod/x /my\\040cgroups rw - cgroup2 cgroup2 rw\n";
        assert_eq!(home(inside, "0::/pod/x/y\n").unwrap(), Path::new("/my cgroups/y"));
        assert_eq!(home(inside, "0::/elsewhere\n"), None, "our place is not below this mount");
        assert_eq!(home("", "0::/\n"), None);
        assert_eq!(home(hybrid, "4:memory:/x\n"), None, "version 1 alone");
    }

    #[test]
    fn a_leaf_that_a_killed_wrapper_left_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let make = |name: String| {
            let path = home.path().join(name);
            fs::create_dir_all(path.join("made/by the command")).unwrap();
            path
        };
        let left = make(format!("{PREFIX}{}-0000abcd", i32::MAX));
        let live = make(format!("{PREFIX}{}-0000abcd", getpid()));
        let other = make("system.slice".into());
        remove_left(home.path());
        assert!(!left.exists() && live.exists() && other.exists());
        JobCgroup::of(home.path().into(), live.clone()).remove();
        assert!(!live.exists());
    }

    #[test]
    fn what_is_escaped_reads_as_it_was() {
        assert_eq!(unescaped(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescaped(r"/a\0"), r"/a\0");
    }
}
