//! The file layer: the operations that the ledger needs from a disk, and their implementation for a directory.
//!
//! All durable bytes go through this layer, so tests can use a disk that fills up, fails, and loses bytes that were not
//! synced.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg, posix_fallocate};

const LOCK_FILE: &str = "lock";
const SEGMENTS_LOCK_FILE: &str = "segments.lock";
/// The highest number of bytes of the lock file that are shown.
const LOCK_NOTE_BYTES_MAX: u64 = 64;

/// A directory of files. Names are plain file names. A change of names is durable after [`sync_dir`](Disk::sync_dir).
pub trait Disk: Send + Sync + 'static {
    /// Locks the directory for this process, until the returned lock is dropped.
    fn lock(&self) -> Result<DirectoryLock, LockError>;
    /// Locks the sealed segments for this thread, until the returned lock is dropped: the compressor and the archive
    /// change them, one at a time.
    fn lock_segments(&self) -> Result<DirectoryLock, LockError>;
    /// Returns the names of the files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Reads a file from an offset on.
    fn read(&self, file: &str, offset: u64) -> io::Result<Box<dyn Read + Send>>;
    /// Whether a file is a symbolic link. Only a directory of a file system has links.
    fn is_link(&self, _file: &str) -> io::Result<bool> {
        Ok(false)
    }
    /// Makes a new, empty file. Fails if the file exists.
    fn create(&self, file: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file to write at its end.
    fn append(&self, file: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Truncates a file. The change is durable when this returns.
    fn truncate(&self, file: &str, bytes: u64) -> io::Result<()>;
    /// Renames a file. It replaces a file with the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, file: &str) -> io::Result<()>;
    /// Makes sure that a file exists and has this much disk space. The change is durable when this returns.
    fn reserve(&self, file: &str, bytes: u64) -> io::Result<()>;
    /// Makes created, renamed and removed names durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// A file that is written at its end.
pub trait DiskFile: Send {
    /// Writes all bytes. After an error, the file contains an unknown part of the bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes all written bytes durable. After an error, they may or may not be durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Fails if the file no longer has the name by which it was opened. After a restart, bytes that were written to
    /// such a file cannot be found.
    fn in_place(&self) -> io::Result<()>;
}

/// The exclusive lock on a directory, released when dropped.
pub struct DirectoryLock(#[expect(dead_code, reason = "it is held, not used")] Box<dyn Send + Sync>);

impl DirectoryLock {
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        DirectoryLock(Box::new(guard))
    }
}

/// The reasons for which a directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another process uses it{}: stop that process first", .by.as_ref().map(|b| format!(", {b}")).unwrap_or_default())]
    Held {
        /// The note of the other process about itself, if it is readable.
        by: Option<String>,
    },
    #[error("its lock file cannot be made")]
    Io(#[source] io::Error),
}

/// A directory of a local file system. On a network file system, `flock` and `fdatasync` guarantee little.
#[derive(Clone, Debug)]
pub struct Dir {
    path: PathBuf,
}

impl Dir {
    /// Opens a directory. If it is missing, makes it, private to this user.
    ///
    /// # Errors
    ///
    /// The directory cannot be made, or its entry cannot be written to disk.
    pub fn create(path: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = Dir { path: path.into() };
        if dir.path.is_dir() {
            return Ok(dir);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&dir.path)?;
        if let Some(parent) = dir.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        Ok(dir)
    }

    /// Makes a value for an existing directory, to read it.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Dir { path: path.into() }
    }

    /// Returns the path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the note of the process that has locked this directory, if there is one. Writes nothing.
    pub fn holder(&self) -> Option<String> {
        let file = File::open(self.file(LOCK_FILE)).ok()?;
        // The shared lock is held only during this call. A daemon that starts in this moment fails to get its own lock.
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => None,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                Some(read_note(file).unwrap_or_else(|| "another process".to_owned()))
            }
            Err(_) => None,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Disk for Dir {
    fn lock(&self) -> Result<DirectoryLock, LockError> {
        let path = self.file(LOCK_FILE);
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        // The lock uses a handle that cannot write, so that an administrator can make the file system read-only
        // meanwhile. If the file system is read-only already, the file of an earlier run is enough.
        let file = match (File::open(&path), made) {
            (Ok(file), _) => file,
            (Err(_), Err(error)) | (Err(error), Ok(_)) => return Err(LockError::Io(error)),
        };
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, errno)| {
            if errno == nix::errno::Errno::EWOULDBLOCK {
                LockError::Held { by: read_note(file) }
            } else {
                LockError::Io(errno.into())
            }
        })?;
        // A note for the next process that tries to lock. It cannot be written to a full or read-only disk, but the
        // lock works without it.
        let _ = fs::write(&path, format!("process {}\n", std::process::id()));
        Ok(DirectoryLock::new(lock))
    }

    fn lock_segments(&self) -> Result<DirectoryLock, LockError> {
        let path = self.file(SEGMENTS_LOCK_FILE);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(LockError::Io)?;
        give_to_owner(&file, &self.path).map_err(LockError::Io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(DirectoryLock::new(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(LockError::Held { by: None }),
            Err((_, errno)) => Err(LockError::Io(errno.into())),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?
            .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn is_link(&self, file: &str) -> io::Result<bool> {
        Ok(fs::symlink_metadata(self.file(file))?.is_symlink())
    }

    fn read(&self, file: &str, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut file = File::open(self.file(file))?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Box::new(file))
    }

    fn create(&self, file: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.file(file);
        let opened = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Box::new(AppendFile { file: opened, path }))
    }

    fn append(&self, file: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.file(file);
        Ok(Box::new(AppendFile { file: OpenOptions::new().append(true).open(&path)?, path }))
    }

    fn truncate(&self, file: &str, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.file(file))?;
        file.set_len(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.file(from), self.file(to))
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        fs::remove_file(self.file(file))
    }

    fn reserve(&self, file: &str, bytes: u64) -> io::Result<()> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.file(file))?;
        posix_fallocate(&file, 0, i64::try_from(bytes).unwrap_or(i64::MAX))?;
        file.sync_all()?;
        self.sync_dir()
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// Gives a file to the owner of its directory. If root makes a file that a daemon needs, the daemon can still open it.
fn give_to_owner(file: &File, directory: &Path) -> io::Result<()> {
    let (owner, now) = (fs::metadata(directory)?, file.metadata()?);
    if (owner.uid(), owner.gid()) == (now.uid(), now.gid()) || now.uid() != nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    match fchown(file, Some(owner.uid()), Some(owner.gid())) {
        // Only root may give files away. If another user runs this, the file stays that user's.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        given => given,
    }
}

struct AppendFile {
    file: File,
    path: PathBuf,
}

impl DiskFile for AppendFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn in_place(&self) -> io::Result<()> {
        let own = self.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(named) if (named.dev(), named.ino()) == (own.dev(), own.ino()) => Ok(()),
            Ok(_) => Err(io::Error::other(format!(
                "{} was replaced: it is no longer the file that the daemon writes",
                self.path.display()
            ))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(io::Error::other(format!("{} was removed or renamed", self.path.display())))
            }
            Err(e) => Err(e),
        }
    }
}

fn read_note(mut file: File) -> Option<String> {
    file.seek(SeekFrom::Start(0)).ok()?;
    let mut note = String::new();
    file.take(LOCK_NOTE_BYTES_MAX).read_to_string(&mut note).ok()?;
    let note: String = note.trim().chars().filter(|c| !c.is_control()).collect();
    (!note.is_empty()).then_some(note)
}

/// Whether an error means that the disk is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
