//! Opens a file without waiting for a disk, if the system has the names of its path in memory.

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, FsWord, Mode, OFlags, ResolveFlags, StatxFlags, fstatfs, makedev, openat2, statx},
    io::Errno,
};

use super::{
    folder::{OpenFolder, opened_file},
    store::ObjectInfo,
};

/// File systems on a disk of this machine, or in its memory. On any other file system, opening a file may wait for a network.
/// `statfs(2)` has the numbers: ext2 to ext4, XFS, Btrfs and tmpfs.
const LOCAL: [FsWord; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];
/// The number of file systems that are remembered.
const DEVICES_MAX: usize = 64;

/// The known file systems, and whether each is local.
#[derive(Debug, Default)]
pub(super) struct LocalDevices(Mutex<BTreeMap<u64, bool>>);

impl LocalDevices {
    /// Remembers whether the file system of a folder is local. Blocks.
    pub(super) fn learn(&self, folder: &OpenFolder) {
        let device = folder.device();
        if self.known().contains_key(&device) {
            return;
        }
        // A network file system asks its server, so the map is not locked meanwhile: async threads wait for the lock.
        let is_local = fstatfs(folder).is_ok_and(|seen| LOCAL.contains(&seen.f_type));
        let mut known = self.known();
        if known.len() < DEVICES_MAX {
            known.insert(device, is_local);
        }
    }

    fn has(&self, device: u64) -> bool {
        self.known().get(&device).is_some_and(|is_local| *is_local)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a file of a local file system. Returns `None` if the file may not be served, if its file system is not known to be
    /// local, or if to open it would wait for a disk. Then the caller opens the file on a thread that may block.
    ///
    /// `folder` and `key` are relative paths without `.` and `..`. No name in them may be a link, and everything below
    /// the folder must be on the folder's file system.
    pub(super) fn open(&self, root: &Path, folder: &str, key: &str) -> Option<(File, ObjectInfo)> {
        let root = look_up(CWD, root, ResolveFlags::empty()).ok()?;
        let confined = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let folder = match folder.trim_matches('/') {
            "" => root,
            folder => look_up(&root, folder, confined).ok()?,
        };
        let device = cached_device(&folder).ok().filter(|device| self.has(*device))?;
        let how = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let confined = confined | ResolveFlags::NO_XDEV | ResolveFlags::CACHED;
        let file = openat2(&folder, key, how, Mode::empty(), confined).ok()?;
        opened_file(file, device).ok()
    }
}

/// Looks a folder up in memory, without opening it in its file system.
fn look_up(at: impl AsFd, path: impl rustix::path::Arg, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(at, path, how, Mode::empty(), resolve | ResolveFlags::CACHED)
}

/// Returns the device of a folder, as far as the system knows it without asking a server.
fn cached_device(folder: &OwnedFd) -> Result<u64, Errno> {
    let seen = statx(folder, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
    Ok(makedev(seen.stx_dev_major, seen.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read,
        os::unix::fs::{MetadataExt, symlink},
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn only_plain_files_below_the_folder_are_opened() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("data/sub")).unwrap();
        fs::create_dir(at("secret")).unwrap();
        for name in ["data/sub/file", "secret/file"] {
            fs::write(at(name), name).unwrap();
        }
        symlink("../secret", at("data/link")).unwrap();
        symlink("../../secret/file", at("data/sub/link")).unwrap();
        symlink("data", at("alias")).unwrap();
        mkfifo(&at("data/pipe"), Mode::S_IRWXU).unwrap();
        let local = LocalDevices::default();
        let open = |folder: &str, key: &str| {
            let (mut file, info) = local.open(root.path(), folder, key)?;
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(info.size, text.len() as u64);
            Some(text)
        };
        assert_eq!(open("data", "sub/file"), None, "the file system is not known yet");
        local.known().insert(root.path().metadata().unwrap().dev(), true);
        assert_eq!(open("data", "sub/file").unwrap(), "data/sub/file");
        assert_eq!(open("/data/sub/", "file").unwrap(), "data/sub/file");
        assert_eq!(open("", "data/sub/file").unwrap(), "data/sub/file");
        for (folder, key) in [
            ("data", "sub"),
            ("data", "absent"),
            ("data", "pipe"),
            ("data", "link/file"),
            ("data", "sub/link"),
            ("data", "../secret/file"),
            ("data", "/etc/passwd"),
            ("alias", "sub/file"),
            ("data/link", "file"),
            ("../..", "etc/passwd"),
        ] {
            assert_eq!(open(folder, key), None, "{folder} {key}");
        }
    }

    // `/dev/shm` is another file system than `/dev`.
    #[test]
    fn no_other_file_system_is_entered() {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let name = file.path().file_name().unwrap().to_str().unwrap();
        let local = LocalDevices::default();
        let devices = ["/dev", "/dev/shm"].map(|path| Path::new(path).metadata().unwrap().dev());
        assert_ne!(devices[0], devices[1]);
        local.known().extend(devices.map(|device| (device, true)));
        let dev = Path::new("/dev");
        assert!(local.open(dev, "", &format!("shm/{name}")).is_none());
        assert!(local.open(dev, "shm", name).is_some(), "a location may be on another file system");
    }
}
