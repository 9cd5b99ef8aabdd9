//! A folder that the user named, held open: it stays the same folder although someone renames it, or puts another in its place.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    fcntl::OFlag,
    unistd::{Gid, Group, User, geteuid},
};

use super::error::FolderError;
use crate::limits::STAGE_WIPE_TRIES;

/// A folder of this user, which no other user may write to.
///
/// If other users may write to a folder above this folder, such as a shared project folder, they can replace this folder. So all
/// access to its files goes through an open descriptor, which clones share.
#[derive(Clone, Debug)]
pub(super) struct OwnFolder {
    path: PathBuf,
    inside: PathBuf,
    _held: Arc<File>,
}

impl OwnFolder {
    /// Makes the folder, which only its owner can enter, or opens it if it exists.
    pub(super) fn make(path: &Path) -> Result<Self, FolderError> {
        let failed = |error| FolderError::disk(path, error);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
            _ => Self::open(path),
        }
    }

    /// Opens a folder. The path must be a folder of this user, not a link.
    pub(super) fn open(path: &Path) -> Result<Self, FolderError> {
        let unfit = |why: &str| FolderError::Unfit { path: path.to_owned(), why: why.to_owned() };
        let failed = |error| FolderError::disk(path, error);
        if !fs::symlink_metadata(path).map_err(failed)?.is_dir() {
            return Err(unfit("it is not a folder, or is a link: name a folder that does not exist"));
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let folder = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
        let seen = folder.metadata().map_err(failed)?;
        if seen.uid() != geteuid().as_raw() || others_may_write(&seen) {
            return Err(unfit("other users own it or may write to it: name a folder that does not exist"));
        }
        let inside = format!("/proc/self/fd/{}", folder.as_raw_fd()).into();
        Ok(OwnFolder { path: path.to_owned(), inside, _held: Arc::new(folder) })
    }

    /// The path as the user named it, for messages and for the command.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to this folder, even after someone moved it.
    pub(super) fn inside(&self) -> &Path {
        &self.inside
    }

    /// Whether the path still leads to this folder.
    pub(super) fn is_in_place(&self) -> bool {
        let here = |seen: Metadata| (seen.dev(), seen.ino());
        let named = fs::symlink_metadata(&self.path).map(here);
        named.is_ok_and(|named| fs::metadata(&self.inside).map(here).is_ok_and(|held| held == named))
    }

    /// Whether another user can put another folder in its place.
    pub(super) fn others_can_replace(&self) -> bool {
        others_can_replace(&self.path)
    }

    /// Turns a path under `inside` into the path that the user knows, for messages.
    pub(super) fn shown(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.inside).map_or_else(|_| path.to_owned(), |below| self.path.join(below))
    }

    /// Removes everything in the folder, and the folder itself if its path still leads to it. The command may still write into the
    /// folder, so this tries a few times.
    pub(super) fn remove(&self) -> io::Result<()> {
        let mut emptied = Ok(());
        for _ in 0..STAGE_WIPE_TRIES {
            emptied = empty(&self.inside);
            if emptied.is_ok() {
                break;
            }
        }
        emptied?;
        if !self.is_in_place() {
            return Ok(());
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether another user can replace the folder at a path. The owner of a folder above the path can do this. If such a folder is not
/// sticky, every user who may write to it can do it too. If the path contains links, the folders above their targets count too.
pub(super) fn others_can_replace(path: &Path) -> bool {
    let is_safe = |folder: &Path| {
        fs::metadata(folder).is_ok_and(|seen| {
            let is_trusted = seen.uid() == 0 || seen.uid() == geteuid().as_raw();
            is_trusted && (!others_may_write(&seen) || seen.mode() & 0o1000 != 0)
        })
    };
    let Some((parent, real)) =
        path.parent().and_then(|parent| Some((parent, fs::canonicalize(parent).ok()?)))
    else {
        return true;
    };
    !parent.ancestors().chain(real.ancestors()).all(is_safe)
}

/// Whether other users may write, by the mode. A group whose only user is this user does not count: many systems make such a
/// group for each user, and let it write.
fn others_may_write(seen: &Metadata) -> bool {
    let by_group = seen.mode() & 0o020 != 0 && !has_one_user(Gid::from_raw(seen.gid()));
    by_group || seen.mode() & 0o002 != 0
}

/// Whether a group is the private one of this user: it has the user's name, and no other member.
fn has_one_user(group: Gid) -> bool {
    let (Ok(Some(user)), Ok(Some(group))) = (User::from_uid(geteuid()), Group::from_gid(group)) else {
        return false;
    };
    user.gid == group.gid && group.name == user.name && group.mem.iter().all(|member| *member == user.name)
}

/// Removes what is in a folder, and follows no link in it. Makes folders writable first, because a command may have made them
/// read-only.
fn empty(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    let mut result = Ok(());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|seen| seen.is_dir());
        let removed = match is_folder {
            true => fs::remove_dir_all(&path).or_else(|_| empty(&path).and_then(|()| fs::remove_dir(&path))),
            false => fs::remove_file(&path),
        };
        result = result.and(match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        });
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    // A command can take the right to write from its folders. The copy goes all the same.
    #[test]
    fn a_folder_without_the_right_to_write_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let own = OwnFolder::make(&base.path().join("copy")).unwrap();
        let closed = base.path().join("copy/closed/deep");
        fs::create_dir_all(&closed).unwrap();
        fs::write(closed.join("x"), "1").unwrap();
        for folder in [closed.clone(), base.path().join("copy/closed")] {
            fs::set_permissions(folder, Permissions::from_mode(0o555)).unwrap();
        }
        own.remove().unwrap();
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    // Someone moves the folder away and puts another, or a link, in its place.
    #[test]
    fn a_folder_stays_the_same_wherever_it_is() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        let own = OwnFolder::make(&at("copy")).unwrap();
        fs::write(own.inside().join("x"), "1").unwrap();
        assert!(own.is_in_place());
        assert_eq!(own.shown(&own.inside().join("x")), at("copy/x"));
        fs::rename(at("copy"), at("moved")).unwrap();
        fs::create_dir(at("theirs")).unwrap();
        fs::write(at("theirs/y"), "2").unwrap();
        std::os::unix::fs::symlink(at("theirs"), at("copy")).unwrap();
        assert!(!own.is_in_place() && OwnFolder::open(&at("copy")).is_err());
        assert_eq!(fs::read_to_string(own.inside().join("x")).unwrap(), "1");
        own.remove().unwrap();
        assert!(!at("moved/x").exists() && at("theirs/y").exists() && at("copy").exists());
    }

    #[test]
    fn a_folder_that_others_may_write_to_can_be_replaced() {
        let base = tempfile::tempdir().unwrap();
        let above = base.path().join("project");
        let own = OwnFolder::make(&above.join("out")).unwrap();
        assert!(!own.others_can_replace());
        for (mode, can) in [(0o1777, false), (0o755, false), (0o777, true)] {
            fs::set_permissions(&above, Permissions::from_mode(mode)).unwrap();
            assert_eq!(own.others_can_replace(), can, "{mode:o}");
        }
        // A link in an open folder leads to a folder that only its owner can write to.
        std::os::unix::fs::symlink(base.path(), above.join("link")).unwrap();
        assert!(others_can_replace(&above.join("link/out")));
        fs::set_permissions(&above, Permissions::from_mode(0o755)).unwrap();
        assert!(!others_can_replace(&above.join("link/out")));
    }
}
