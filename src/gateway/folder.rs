//! A folder on disk, opened name by name. Names must not be links, so a path cannot be redirected between a check and
//! its use. Every call blocks.

use std::{
    fs::File,
    io,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat, renameat},
    libc,
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat},
    unistd::{LinkatFlags, UnlinkatFlags, linkat, unlinkat},
};

use super::{key::STAGING, store::ObjectInfo};
use crate::limits::GATEWAY_FOLDER_ENTRIES_MAX;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// An open folder. Everything below the folder must be on the same file system.
#[derive(Debug)]
pub(super) struct OpenFolder {
    fd: OwnedFd,
    device: libc::dev_t,
}

/// The action if a folder on the way is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Fails,
    IsMade,
}

/// The action if an object exists already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    IsReplaced,
    Fails,
}

impl OpenFolder {
    /// Opens the root of a store. An operator configured its path, which may contain links.
    pub(super) fn root(path: &Path) -> io::Result<Self> {
        Self::of(open(path, DIRECTORY, Mode::empty())?)
    }

    fn of(fd: OwnedFd) -> io::Result<Self> {
        let device = fstat(&fd)?.st_dev;
        Ok(OpenFolder { fd, device })
    }

    /// Opens a folder of a location. It may be on another file system, because the catalog names it.
    pub(super) fn enter_location(&self, name: &str, missing: Missing) -> io::Result<Self> {
        self.make_if(name, missing)?;
        Self::of(openat(&self.fd, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?)
    }

    /// Opens a folder that a key names. It must be on this file system.
    pub(super) fn enter(&self, name: &str, missing: Missing) -> io::Result<Self> {
        let inner = self.enter_location(name, missing)?;
        if inner.device == self.device { Ok(inner) } else { Err(Errno::EXDEV.into()) }
    }

    fn make_if(&self, name: &str, missing: Missing) -> io::Result<()> {
        if missing == Missing::Fails {
            return Ok(());
        }
        match mkdirat(&self.fd, name, Mode::S_IRWXU | Mode::S_IRGRP | Mode::S_IXGRP) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a file to read it. Does not block on a pipe.
    pub(super) fn file(&self, name: &str) -> io::Result<(File, ObjectInfo)> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        opened_file(openat(&self.fd, name, flags, Mode::empty())?, self.device)
    }

    /// Returns the number of the folder's file system.
    pub(super) fn device(&self) -> libc::dev_t {
        self.device
    }

    /// Describes a file.
    pub(super) fn info(&self, name: &str) -> io::Result<ObjectInfo> {
        let seen = fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind(&seen) != SFlag::S_IFREG || seen.st_dev != self.device {
            return Err(Errno::ENOENT.into());
        }
        Ok(info(&seen))
    }

    /// Describes this folder as the empty object that marks it.
    pub(super) fn own_info(&self) -> io::Result<ObjectInfo> {
        let seen = fstat(&self.fd)?;
        Ok(ObjectInfo { size: 0, ..info(&seen) })
    }

    /// Shows the names of files and folders, in no order, until `see` breaks. The name of a folder ends in a slash, so that names
    /// have the same order as the keys below them. Leaves out links, devices and names that cannot be in a key. Returns the
    /// number of names.
    pub(super) fn visit(&self, see: &mut dyn FnMut(&str) -> ControlFlow<()>) -> io::Result<usize> {
        let mut open = Dir::from_fd(openat(&self.fd, ".", DIRECTORY, Mode::empty())?)?;
        let (mut seen, mut folder) = (0_usize, String::new());
        for entry in open.iter() {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | ".." | STAGING) {
                continue;
            }
            let shown = match entry.file_type().or_else(|| self.kind_of(name)) {
                Some(Type::File) => name,
                Some(Type::Directory) => {
                    folder.clear();
                    folder.extend([name, "/"]);
                    folder.as_str()
                }
                _ => continue,
            };
            if seen >= GATEWAY_FOLDER_ENTRIES_MAX {
                return Err(Errno::E2BIG.into());
            }
            seen = seen.saturating_add(1);
            if see(shown).is_break() {
                break;
            }
        }
        Ok(seen)
    }

    /// Returns the kind of a name, for file systems whose listings do not have it.
    fn kind_of(&self, name: &str) -> Option<Type> {
        let seen = fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        match kind(&seen) {
            SFlag::S_IFREG => Some(Type::File),
            SFlag::S_IFDIR => Some(Type::Directory),
            _ => None,
        }
    }

    /// Creates a file. Fails if it exists.
    pub(super) fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.fd, name, flags, Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IRGRP)?.into())
    }

    /// Moves a file into another folder. When this returns, the name is on disk. The bytes must be on disk before the call.
    pub(super) fn move_file(
        &self,
        name: &str,
        to: &OpenFolder,
        new: &str,
        existing: Existing,
    ) -> io::Result<()> {
        match existing {
            Existing::IsReplaced => renameat(&self.fd, name, &to.fd, new)?,
            Existing::Fails => {
                // On all file systems, this makes the new name only if it does not exist yet.
                linkat(&self.fd, name, &to.fd, new, LinkatFlags::empty())?;
                unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)?;
            }
        }
        Ok(nix::unistd::fsync(&to.fd)?)
    }

    /// Removes a file.
    pub(super) fn remove_file(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes an empty folder.
    pub(super) fn remove_folder(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)?)
    }

    /// Removes everything in this folder. Follows no link.
    pub(super) fn clear(&self) -> io::Result<()> {
        let mut open = Dir::from_fd(openat(self.fd.as_fd(), ".", DIRECTORY, Mode::empty())?)?;
        for entry in open.iter() {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            if self.remove_file(name).is_err() {
                let inner = self.enter(name, Missing::Fails)?;
                inner.clear()?;
                self.remove_folder(name)?;
            }
        }
        Ok(())
    }
}

impl AsFd for OpenFolder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Describes an open file. If it is not a plain file, or is on another file system than `device`, it counts as absent.
pub(super) fn opened_file(fd: OwnedFd, device: libc::dev_t) -> io::Result<(File, ObjectInfo)> {
    let seen = fstat(&fd)?;
    if kind(&seen) != SFlag::S_IFREG || seen.st_dev != device {
        return Err(Errno::ENOENT.into());
    }
    Ok((fd.into(), info(&seen)))
}

fn kind(seen: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(seen.st_mode) & SFlag::S_IFMT
}

/// Describes a file. The entity tag changes with each version: a new version is another file, or has another time or length.
/// The time of the last change of the status counts too, because a program can set the time of the content.
fn info(seen: &FileStat) -> ObjectInfo {
    let size = u64::try_from(seen.st_size).unwrap_or(0);
    let seconds = u64::try_from(seen.st_mtime).unwrap_or(0);
    let nanos = u32::try_from(seen.st_mtime_nsec).unwrap_or(0);
    let modified = UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).unwrap_or(SystemTime::UNIX_EPOCH);
    // The dashes show clients that this is not the MD5 of the bytes.
    let (changed, changed_nanos) = (seen.st_ctime, seen.st_ctime_nsec);
    let e_tag = format!("{seconds:x}{nanos:08x}-{size:x}-{:x}-{changed:x}{changed_nanos:08x}", seen.st_ino);
    ObjectInfo { size, e_tag, modified }
}
