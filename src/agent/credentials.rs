//! The files that credentials are handed to the child in.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Mutex,
};

use nix::{
    sys::statfs::{TMPFS_MAGIC, statfs},
    unistd::{Uid, geteuid, getpid},
};
use serde_json::json;

use super::{
    manifest::{Manifest, draft_name, open_regular},
    processes,
};
use crate::{
    clock::Wall,
    limits::CREDENTIALS_MAX,
    name::{AttemptNumber, Half, JobId, LeaseId, Scope},
    secret::{NoRandomness, Secret, SecretText},
};

/// What directories of wrappers are called: `leasehold-PID-START-RANDOM`.
const PREFIX: &str = "leasehold-";
const INDEX: &str = "credentials.json";

/// A private directory of token files, on memory where there is some.
///
/// The directory has mode 0700 and a name that nobody can guess, each file 0600. A file is replaced by rename: who reads
/// it at any moment reads one whole token, the old or the new. After [`wipe`](Self::wipe) nothing can be put any more, so
/// that a renewal that is under way cannot bring a revoked credential back. Dropping it wipes it.
///
/// While it lives the directory is locked (`flock`), which tells the next wrapper that it is not a dead one's.
#[derive(Debug)]
pub struct CredentialDir {
    path: PathBuf,
    warning: Option<String>,
    /// It was there before, and stays.
    keep: bool,
    /// Held for its lock alone.
    _lock: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    wiped: bool,
    /// Which files are ours, where somebody chose the directory: others may put files of their own there, and those are theirs.
    manifest: Option<Manifest>,
    /// File of each credential, by name.
    files: BTreeMap<String, PathBuf>,
    env: Vec<(OsString, OsString)>,
}

/// What stands in `credentials.json`. No secret is among it.
#[derive(Clone, Debug)]
pub struct Index {
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub credentials: Vec<IndexEntry>,
}

/// One credential: what it opens, and the name it was put under.
#[derive(Clone, Debug)]
pub struct IndexEntry {
    pub name: String,
    pub half: Half,
    pub audience: String,
    pub lease: LeaseId,
    /// When the token ends, if it is not renewed.
    pub expires: Wall,
    pub resources: Vec<IndexResource>,
}

/// One resource of a credential.
#[derive(Clone, Debug)]
pub struct IndexResource {
    pub scope: Scope,
    /// Where the audience serves it.
    pub location: Option<String>,
}

/// Why credentials could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("no private directory for credentials could be made in {}: name another with --dir", tried.display())]
    NoDirectory { tried: PathBuf, source: io::Error },
    #[error("{} cannot hold credentials: {why}", path.display())]
    Unfit { path: PathBuf, why: &'static str },
    #[error("the credential file {} could not be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "`{0}` cannot name a credential file: use letters, digits, `.`, `_` and `-`, a letter or digit first"
    )]
    Name(String),
    #[error("a member holds at most {CREDENTIALS_MAX} credentials")]
    TooMany,
    #[error("the credentials of this run were wiped: its access has ended")]
    Wiped,
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl CredentialDir {
    /// Makes the directory below `base` (`--dir`), or else in the first of `$XDG_RUNTIME_DIR`, `/dev/shm` and
    /// `/run/user/UID` that is memory, or else in the temporary directory, with a [`warning`](Self::warning).
    ///
    /// Directories that dead wrappers of the same user left in the same place are removed first.
    pub fn create(base: Option<&Path>) -> Result<Self, CredentialError> {
        let places = match base {
            Some(base) => vec![base.to_owned()],
            None => usual_places(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)),
        };
        let mut refused = None;
        for base in places {
            remove_stale(&base);
            match make(&base)? {
                Ok((path, lock)) => {
                    let warning = (!is_memory(&base)).then(|| {
                        format!(
                            "credentials are on disk, in {}: name a directory on tmpfs with --dir",
                            path.display()
                        )
                    });
                    return Ok(CredentialDir {
                        path,
                        warning,
                        keep: false,
                        _lock: lock,
                        state: Mutex::default(),
                    });
                }
                Err(e) => refused = Some((base, e)),
            }
        }
        let (tried, source) =
            refused.unwrap_or_else(|| (PathBuf::new(), io::Error::from(io::ErrorKind::NotFound)));
        Err(CredentialError::NoDirectory { tried, source })
    }

    /// A directory that somebody chose, so that others find the files there under names that do not change. Made where it is
    /// not there. What a killed wrapper provably left in it is removed first; where anything else is in it, nothing is touched,
    /// and it is refused.
    pub fn at(path: &Path) -> Result<Self, CredentialError> {
        let unfit = |why| CredentialError::Unfit { path: path.to_owned(), why };
        let failed = |source| CredentialError::NoDirectory { tried: path.to_owned(), source };
        let made = match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(failed(e)),
        };
        let path = fs::canonicalize(path).map_err(failed)?;
        let lock = File::open(&path).map_err(failed)?;
        if !lock.metadata().map_err(failed)?.is_dir() {
            return Err(unfit("it is no directory"));
        }
        if lock.try_lock().is_err() {
            return Err(unfit("another wrapper or agent keeps its credentials there; name another"));
        }
        let left = Manifest::left_in(&path);
        for entry in fs::read_dir(&path).map_err(failed)? {
            if !left.proves(&entry.map_err(failed)?.file_name()) {
                return Err(unfit("there are other files in it; name an empty one"));
            }
        }
        left.proven().iter().for_each(|file| erase(file));
        let others = lock.metadata().is_ok_and(|m| m.mode() & 0o022 != 0);
        let warning = match (others, is_memory(&path)) {
            (true, _) => Some("others may rename the files in it; give it mode 0700"),
            (false, false) => Some("it is on disk; a directory on tmpfs would be better"),
            (false, true) => None,
        };
        let warning = warning.map(|w| format!("credentials are in {}: {w}", path.display()));
        let state = State { manifest: Some(Manifest::empty(path.clone())), ..State::default() };
        Ok(CredentialDir { path, warning, keep: !made, _lock: lock, state: Mutex::new(state) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One line for stderr where the files are not on memory.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Writes or replaces the token file of a credential.
    pub fn put(&self, name: &str, token: &SecretText) -> Result<PathBuf, CredentialError> {
        if !is_file_name(name) || name == INDEX {
            return Err(CredentialError::Name(
                name.chars().take(80).flat_map(char::escape_default).collect(),
            ));
        }
        let mut state = self.state();
        if state.files.len() >= CREDENTIALS_MAX && !state.files.contains_key(name) {
            return Err(CredentialError::TooMany);
        }
        let path = self.write(&mut state, name, token.expose().as_bytes())?;
        state.files.insert(name.to_owned(), path.clone());
        Ok(path)
    }

    /// Wipes one credential: its lease has ended, others go on.
    pub fn remove(&self, name: &str) {
        let mut state = self.state();
        if let Some(path) = state.files.remove(name) {
            erase(&path);
        }
    }

    /// Notes a file that this process is about to write beside the credentials, so that the next one knows whose it was.
    /// Nothing where it will be elsewhere.
    pub(super) fn claim(&self, file: &Path, bytes: &[u8]) -> Result<(), CredentialError> {
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let is_here = fs::canonicalize(folder).is_ok_and(|folder| folder == self.path);
        let name = file.file_name().and_then(OsStr::to_str);
        match (&mut self.state().manifest, name) {
            (Some(manifest), Some(name)) if is_here => manifest
                .note(name, bytes)
                .map_err(|source| CredentialError::Write { path: file.to_owned(), source }),
            _ => Ok(()),
        }
    }

    /// Writes or replaces `credentials.json`. Every entry names a credential that was put.
    pub fn write_index(&self, index: &Index) -> Result<PathBuf, CredentialError> {
        let mut state = self.state();
        let mut entries = Vec::with_capacity(index.credentials.len());
        for entry in &index.credentials {
            let path =
                state.files.get(&entry.name).ok_or_else(|| CredentialError::Name(entry.name.clone()))?;
            let resources: Vec<_> = entry
                .resources
                .iter()
                .map(|r| json!({ "resource": r.scope.resource, "actions": r.scope.actions, "location": r.location }))
                .collect();
            entries.push(json!({
                "half": entry.half,
                "audience": entry.audience,
                "path": path,
                "expires": entry.expires.to_string(),
                "lease": entry.lease,
                "resources": resources,
            }));
        }
        let text = json!({ "job": index.job, "attempt": index.attempt, "credentials": entries }).to_string();
        let path = self.write(&mut state, INDEX, text.as_bytes())?;
        state.env = variables(index, &path, &state.files);
        Ok(path)
    }

    /// The variables of the child, after the last index that was written. They name files and hold no secret.
    ///
    /// `LEASEHOLD_JOB`, `LEASEHOLD_ATTEMPT`, `LEASEHOLD_CREDENTIALS` (the index), and `LEASEHOLD_TOKEN_FILE_READING` and
    /// `LEASEHOLD_TOKEN_FILE_WRITING` where that half has one credential.
    pub fn env(&self) -> Vec<(OsString, OsString)> {
        self.state().env.clone()
    }

    /// Takes all files away, for good: what is put later is refused. Best effort against what the medium keeps.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.wiped = true;
        match &state.manifest {
            Some(manifest) => {
                state.files.values().for_each(|path| erase(path));
                manifest.proven().iter().for_each(|path| erase(path));
            }
            None => erase_all(&self.path),
        }
    }

    fn write(&self, state: &mut State, name: &str, bytes: &[u8]) -> Result<PathBuf, CredentialError> {
        if state.wiped {
            return Err(CredentialError::Wiped);
        }
        let path = self.path.join(name);
        if let Some(manifest) = &mut state.manifest {
            let failed = |source| CredentialError::Write { path: path.clone(), source };
            if !manifest.names(name) && fs::symlink_metadata(&path).is_ok() {
                return Err(failed(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "somebody else's file is there",
                )));
            }
            manifest.note(name, bytes).map_err(failed)?;
        }
        let next = self.path.join(draft_name()?);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&next)
            .and_then(|mut f| f.write_all(bytes))
            .and_then(|()| fs::rename(&next, &path));
        match written {
            Ok(()) => Ok(path),
            Err(source) => {
                erase(&next);
                Err(CredentialError::Write { path, source })
            }
        }
    }

    /// Poisoned or not: to wipe matters more than how another thread ended.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for CredentialDir {
    fn drop(&mut self) {
        self.wipe();
        if !self.keep
            && let Err(e) = fs::remove_dir(&self.path)
            // The guard of the command may have been first, or somebody else's files are in it.
            && !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty)
        {
            tracing::warn!(path = %self.path.display(), error = %e, "the directory for credentials could not be removed");
        }
    }
}

fn variables(index: &Index, path: &Path, files: &BTreeMap<String, PathBuf>) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = vec![
        ("LEASEHOLD_JOB".into(), index.job.to_string().into()),
        ("LEASEHOLD_ATTEMPT".into(), index.attempt.to_string().into()),
        ("LEASEHOLD_CREDENTIALS".into(), path.into()),
    ];
    for (half, variable) in
        [(Half::Reading, "LEASEHOLD_TOKEN_FILE_READING"), (Half::Writing, "LEASEHOLD_TOKEN_FILE_WRITING")]
    {
        let mut of_half = index.credentials.iter().filter(|c| c.half == half);
        if let (Some(only), None) = (of_half.next(), of_half.next())
            && let Some(file) = files.get(&only.name)
        {
            env.push((variable.into(), file.into()));
        }
    }
    env
}

fn is_file_name(name: &str) -> bool {
    name.len() <= 200
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Where the directory goes unless somebody says.
fn usual_places(runtime: Option<PathBuf>) -> Vec<PathBuf> {
    let uid = geteuid();
    let owned = |p: &PathBuf| is_memory(p) && fs::metadata(p).is_ok_and(|m| Uid::from_raw(m.uid()) == uid);
    let shared = PathBuf::from("/dev/shm");
    let user = PathBuf::from(format!("/run/user/{uid}"));
    let memory = runtime
        .into_iter()
        .filter(owned)
        .chain(Some(shared).filter(|p| is_memory(p)))
        .chain(Some(user).filter(owned));
    memory.chain([std::env::temp_dir()]).collect()
}

fn is_memory(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == TMPFS_MAGIC)
}

/// Makes and locks a directory. Under its final name it is never seen without its lock.
fn make(base: &Path) -> Result<io::Result<(PathBuf, File)>, NoRandomness> {
    let random = Secret::random()?.to_text();
    let pid = getpid();
    let start = processes::start_of(pid).unwrap_or(0);
    let name = format!("{PREFIX}{pid}-{start}-{}", random.expose());
    let (early, path) = (base.join(format!(".{name}")), base.join(name));
    let made = DirBuilder::new().mode(0o700).create(&early).and_then(|()| {
        let lock = File::open(&early)?;
        lock.try_lock()?;
        fs::rename(&early, &path)?;
        Ok((path, lock))
    });
    if made.is_err() {
        // Nothing is in it; where it was never made, there is nothing to remove.
        let _ = fs::remove_dir(&early);
    }
    Ok(made)
}

/// Removes the directories whose wrapper is dead: no such process is there, and nobody holds the lock. The lock alone
/// would do on one machine; the process is looked for as well, in case a file system does not lock.
fn remove_stale(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let ours = entry.metadata().is_ok_and(|m| m.is_dir() && Uid::from_raw(m.uid()) == geteuid());
        let Some((pid, start)) = named_process(&name).filter(|_| ours) else { continue };
        if processes::start_of(pid) == Some(start) {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_ok() {
            erase_all(&path);
            let removed = fs::remove_dir(&path);
            tracing::info!(path = %path.display(), ok = removed.is_ok(), "removed the credential files of a wrapper that is gone");
        }
    }
}

/// The process and its start that a directory's name carries.
fn named_process(name: &OsStr) -> Option<(nix::unistd::Pid, u64)> {
    let mut parts = name.to_str()?.strip_prefix(PREFIX)?.splitn(3, '-');
    let (pid, start, _random) = (parts.next()?, parts.next()?, parts.next()?);
    Some((nix::unistd::Pid::from_raw(pid.parse().ok()?), start.parse().ok()?))
}

/// Takes away a directory whose wrapper was killed.
pub(super) fn erase_left(folder: &Path) {
    erase_all(folder);
    // Gone already, where the wrapper did it.
    let _ = fs::remove_dir(folder);
}

fn erase_all(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        erase(&entry.path());
    }
}

/// Takes a file's name away, then overwrites what it held: who opens it later finds nothing, who has it open reads zeros.
fn erase(path: &Path) {
    let opened = open_regular(OpenOptions::new().write(true), path);
    if let Err(e) = fs::remove_file(path)
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::error!(path = %path.display(), error = %e, "a credential file could not be removed");
    }
    if let Ok(mut file) = opened {
        let length = file.metadata().map_or(0, |m| m.len());
        let zeros = io::copy(&mut io::Read::take(io::repeat(0), length), &mut file);
        if let Err(e) = zeros.and_then(|_| file.sync_data()) {
            tracing::warn!(path = %path.display(), error = %e, "a credential file was removed, but not overwritten");
        }
    }
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
