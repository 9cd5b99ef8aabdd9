//! The folder of the credential files: its owner, its readers, its lock.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    sys::statfs::{TMPFS_MAGIC, statfs},
    unistd::{Gid, Pid, Uid, geteuid, getpid},
};

use super::credential_dir::{CredentialError, erase_files};
use crate::{
    agent::process::processes,
    plain,
    secret::{NoRandomness, Secret},
};

/// The first part of a folder's name, `leasehold-PID-START-RANDOM`.
const PREFIX: &str = "leasehold-";

/// Who may read the credential files: their owner, and a group if the user names one. Never other users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readers {
    group: Option<Gid>,
    group_may_read: bool,
}

impl Readers {
    /// Parses a mode in the form that `chmod` accepts. Without a mode, a named group may read.
    ///
    /// # Errors
    /// Fails if the mode is anything but 0600 or 0640.
    pub fn new(group: Option<Gid>, mode: Option<&str>) -> Result<Self, String> {
        let group_may_read = match mode.map(|m| (m, u32::from_str_radix(m, 8))) {
            None => group.is_some(),
            Some((_, Ok(0o600))) => false,
            Some((_, Ok(0o640))) => true,
            Some((m, Ok(bits))) if bits & 0o007 != 0 => {
                return Err(format!(
                    "{m} lets every user of the machine use the credentials: write 0600 or 0640"
                ));
            }
            Some((m, _)) => return Err(format!("{m} is not a mode for credentials: write 0600 or 0640")),
        };
        Ok(Readers { group, group_may_read })
    }

    /// Whether users other than the owner may read the files.
    pub(crate) fn are_several(self) -> bool {
        self.group_may_read
    }

    fn folder_mode(self) -> u32 {
        if self.group_may_read { 0o750 } else { 0o700 }
    }

    /// The mode of a file with a credential.
    pub(crate) fn file_mode(self) -> u32 {
        if self.group_may_read { 0o640 } else { 0o600 }
    }

    /// Sets the group and mode of an open file or folder, independently of the umask.
    pub(crate) fn apply(self, file: &File, mode: u32) -> io::Result<()> {
        if let Some(group) = self.group {
            fchown(file, None, Some(group.as_raw()))?;
        }
        if self.group_may_read || mode != 0o600 {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// A folder that this process has locked (`flock`), so that the next wrapper knows that it is in use.
#[derive(Debug)]
pub(crate) struct LockedFolder {
    path: PathBuf,
    readers: Readers,
    lock: File,
    /// Whether the folder existed before. If it did, it is not removed at the end.
    pub(crate) is_kept: bool,
}

impl LockedFolder {
    /// Creates a folder in `base` with a random name. The folder is locked before it gets its final name.
    pub(crate) fn create(base: &Path, readers: Readers) -> Result<io::Result<Self>, NoRandomness> {
        let random = Secret::random()?.to_text();
        let pid = getpid();
        let start = processes::start_of(pid).unwrap_or(0);
        let name = format!("{PREFIX}{pid}-{start}-{}", random.expose());
        let (early, path) = (base.join(format!(".{name}")), base.join(name));
        let created = create_locked(&early, readers).and_then(|lock| {
            fs::rename(&early, &path)?;
            Ok(LockedFolder { path, readers, lock, is_kept: false })
        });
        if created.is_err() {
            // The folder is empty, or was not created.
            let _ = fs::remove_dir(&early);
        }
        Ok(created)
    }

    /// Opens the folder that the user named, or creates it.
    ///
    /// # Errors
    /// Fails if the folder belongs to another user, if others may write to it, or if another process has locked it.
    pub(crate) fn open(path: &Path, readers: Readers) -> Result<Self, CredentialError> {
        let unfit = |why: &str| CredentialError::Unfit { path: path.to_owned(), why: why.to_owned() };
        let failed = |source| CredentialError::NoDirectory { tried: path.to_owned(), source };
        match create_locked(path, readers) {
            Ok(lock) => {
                let path = fs::canonicalize(path).map_err(failed)?;
                return Ok(LockedFolder { path, readers, lock, is_kept: false });
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e)),
        }
        let path = fs::canonicalize(path).map_err(failed)?;
        let lock = open_folder(&path).map_err(|e| match e.raw_os_error() {
            Some(code) if code == nix::errno::Errno::ENOTDIR as i32 => unfit("it is not a directory"),
            _ => failed(e),
        })?;
        let is = lock.metadata().map_err(failed)?;
        if Uid::from_raw(is.uid()) != geteuid() {
            return Err(unfit(&format!(
                "it belongs to user {}, who could read or replace what is in it; name a new folder in it, or one that belongs to you",
                is.uid()
            )));
        }
        if is.mode() & 0o022 != 0 {
            return Err(unfit(&format!(
                "others may write to it (mode {:04o}), and so replace what is in it; give it mode {:04o}",
                is.mode() & 0o7777,
                readers.folder_mode()
            )));
        }
        if readers.group_may_read && is.mode() & 0o050 != 0o050 {
            return Err(unfit(
                "its group is not allowed to enter it; give it mode 0750, or name a folder that does not exist",
            ));
        }
        if lock.try_lock().is_err() {
            return Err(unfit("another wrapper or agent keeps its credentials there; name another folder"));
        }
        Ok(LockedFolder { path, readers, lock, is_kept: true })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn readers(&self) -> Readers {
        self.readers
    }

    /// Whether the path still leads to the locked folder.
    pub(crate) fn is_there(&self) -> bool {
        is_same(&self.lock, &self.path)
    }

    /// Creates the folder again after it was removed.
    ///
    /// # Errors
    /// Fails if another user has created something with this name, or the parent folder was removed too.
    pub(crate) fn recreate(&mut self) -> io::Result<()> {
        self.lock = match create_locked(&self.path, self.readers) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let found = open_folder(&self.path)?;
                let is = found.metadata()?;
                if Uid::from_raw(is.uid()) != geteuid() || is.mode() & 0o022 != 0 {
                    let text = format!("user {} made another folder in its place", is.uid());
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
                }
                found.try_lock()?;
                found
            }
            created => created?,
        };
        Ok(())
    }

    /// Removes the folder if this process created it and it is empty.
    pub(crate) fn remove(&self) {
        if !self.is_kept
            && self.is_there()
            && let Err(e) = fs::remove_dir(&self.path)
            // The guard may have removed the folder, or it contains files of other programs.
            && !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty)
        {
            tracing::warn!(path = %self.path.display(), error = %e, "the directory for credentials could not be removed");
        }
    }

    #[cfg(test)]
    pub(crate) fn unlock(&self) {
        self.lock.unlock().unwrap();
    }
}

/// Whether a path leads to the open file directly, not through a link.
pub(crate) fn is_same(open: &File, path: &Path) -> bool {
    let there = fs::symlink_metadata(path);
    there.is_ok_and(|t| open.metadata().is_ok_and(|o| (o.dev(), o.ino()) == (t.dev(), t.ino())))
}

fn create_locked(path: &Path, readers: Readers) -> io::Result<File> {
    DirBuilder::new().mode(0o700).create(path)?;
    let lock = open_folder(path)?;
    lock.try_lock()?;
    readers.apply(&lock, readers.folder_mode())?;
    Ok(lock)
}

fn open_folder(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// Checks each parent folder of a path, as `sshd` does with StrictModes, because its owner could replace our folder. Returns a
/// warning if others could replace our folder.
///
/// # Errors
/// Fails if a parent folder belongs to a user other than root and this user.
pub(crate) fn check_ancestors(path: &Path) -> Result<Option<String>, CredentialError> {
    let mut warning = None;
    for folder in path.ancestors() {
        let is = fs::metadata(folder)
            .map_err(|source| CredentialError::NoDirectory { tried: folder.to_owned(), source })?;
        if is.uid() != 0 && Uid::from_raw(is.uid()) != geteuid() {
            return Err(CredentialError::Unfit {
                path: path.to_owned(),
                why: format!(
                    "{} belongs to user {}, who could put another folder in its place; name a folder elsewhere",
                    plain::path(folder),
                    is.uid()
                ),
            });
        }
        // Only a warning: Kubernetes mounts each emptyDir like this, and the containers that share the volume trust one another.
        if is.mode() & 0o022 != 0 && is.mode() & 0o1000 == 0 {
            warning = Some(format!("others may rename what is in {}", plain::path(folder)));
        }
    }
    Ok(warning)
}

/// The places for a folder if the user names no directory: in memory first. `/dev/shm` comes before the directories of the
/// user. logind removes those at logout, and then the folder could not be created again.
pub(crate) fn default_places(runtime: Option<PathBuf>) -> Vec<PathBuf> {
    let uid = geteuid();
    let owned = |p: &PathBuf| is_in_memory(p) && fs::metadata(p).is_ok_and(|m| Uid::from_raw(m.uid()) == uid);
    let shared = Some(PathBuf::from("/dev/shm")).filter(|p| is_in_memory(p));
    let user = PathBuf::from(format!("/run/user/{uid}"));
    let own = runtime.into_iter().chain(Some(user)).filter(owned);
    shared.into_iter().chain(own).chain([std::env::temp_dir()]).collect()
}

pub(crate) fn is_in_memory(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == TMPFS_MAGIC)
}

/// Removes the folders of dead wrappers: the process does not exist and the folder is not locked. Calls `before_removal` for
/// each folder. The check of the process is for file systems without locks.
pub(crate) fn remove_stale(base: &Path, mut before_removal: impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let (name, path): (OsString, PathBuf) = (entry.file_name(), entry.path());
        let ours = entry.metadata().is_ok_and(|m| m.is_dir() && Uid::from_raw(m.uid()) == geteuid());
        let Some((pid, start)) = process_in_name(&name).filter(|_| ours) else { continue };
        if processes::start_of(pid) == Some(start) {
            continue;
        }
        let Ok(lock) = open_folder(&path) else { continue };
        if lock.try_lock().is_ok() {
            before_removal(&path);
            erase_files(&path);
            let removed = fs::remove_dir(&path);
            tracing::info!(path = %path.display(), ok = removed.is_ok(), "removed the credential files of a wrapper that is gone");
        }
    }
}

/// Reads the process and its start time from the name of a folder.
fn process_in_name(name: &OsStr) -> Option<(Pid, u64)> {
    let mut parts = name.to_str()?.strip_prefix(PREFIX)?.splitn(3, '-');
    let (pid, start, _random) = (parts.next()?, parts.next()?, parts.next()?);
    Some((Pid::from_raw(pid.parse().ok()?), start.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_that_lets_everyone_read_is_refused() {
        for (mode, group, file_mode) in [
            (None, None, 0o600),
            (None, Some(7), 0o640),
            (Some("0640"), None, 0o640),
            (Some("600"), Some(7), 0o600),
        ] {
            let readers = Readers::new(group.map(Gid::from_raw), mode).unwrap();
            assert_eq!(readers.file_mode(), file_mode, "{mode:?} {group:?}");
        }
        for mode in ["0644", "0604", "0777", "0601"] {
            assert!(Readers::new(None, Some(mode)).unwrap_err().contains("every user"), "{mode}");
        }
        for mode in ["0660", "0200", "u=rw", "", "-600"] {
            assert!(Readers::new(None, Some(mode)).unwrap_err().contains("0600 or 0640"), "{mode}");
        }
    }
}
