//! The directory of credential files, through which the child gets its credentials.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use super::{
    folder::{LockedFolder, Readers, check_ancestors, default_places, is_in_memory, remove_stale},
    index::{CredentialIndex, DRAIN, DrainNote, INDEX},
    manifest::{Manifest, draft_name, open_regular},
};
use crate::{
    agent::forward::Callers,
    limits::{CREDENTIALS_MAX, SESSIONS_LEFT_MAX},
    plain,
    secret::{NoRandomness, SecretText},
};

/// The file with the session of a sidecar. With this file, a sidecar that was killed and restarted is
/// the same member as before. Only the sidecar's user may read the file, even if others may read the credentials.
pub(super) const SESSION: &str = ".leasehold-session";
const OWN_NAMES: [&str; 3] = [INDEX, DRAIN, SESSION];

/// A private directory of token files, in memory if possible.
///
/// The directory has mode 0700 and each file 0600, unless a group may read them. A file is replaced by rename, so a reader gets
/// one complete token, the old or the new. After [`wipe`](Self::wipe) nothing can be written, so that a renewal in flight cannot
/// bring a revoked credential back. Dropping the value wipes the directory.
///
/// This type also keeps the content of the files, so that [`mend`](Self::mend) can write again what another program removed.
///
/// While the value exists, the directory is locked (`flock`), so that the next wrapper knows that it is in use.
#[derive(Debug)]
pub struct CredentialDir {
    path: PathBuf,
    readers: Readers,
    warning: Option<String>,
    state: Mutex<DirState>,
}

#[derive(Debug)]
struct DirState {
    is_wiped: bool,
    folder: LockedFolder,
    /// Lists the files that the wrapper wrote. Exists only if the user named the directory, because other programs may put
    /// their files into such a directory.
    manifest: Option<Manifest>,
    /// The content of each file, including files that could not be written yet.
    files: BTreeMap<String, FileContent>,
    index: Option<CredentialIndex>,
    drain: Option<DrainNote>,
    env: Vec<(OsString, OsString)>,
    /// Why files could not be written at the last check.
    trouble: Option<String>,
    /// The sessions of killed sidecars.
    sessions: Vec<SecretText>,
}

#[derive(Debug)]
struct FileContent {
    text: SecretText,
    mode: u32,
    is_written: bool,
}

/// The result of a check of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MendResult {
    /// No file was missing, or there is nothing new to report.
    Nothing,
    /// The files were written again. The text says why.
    Again(String),
    /// Some files cannot be written. The text says why, once for each cause.
    Failing(String),
}

/// Why credentials could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error(
        "no private directory for credentials could be created in {}: name another with --dir",
        plain::path(tried)
    )]
    NoDirectory { tried: PathBuf, source: io::Error },
    #[error("{} cannot hold credentials: {why}", plain::path(path))]
    Unfit { path: PathBuf, why: String },
    #[error("the credential file {} could not be written", plain::path(path))]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "`{0}` cannot name a credential file: use letters, digits, `.`, `_` and `-`, a letter or digit first"
    )]
    Name(String),
    #[error("a member has at most {CREDENTIALS_MAX} credentials")]
    TooMany,
    #[error("the credentials of this run were wiped: its access has ended")]
    Wiped,
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl CredentialDir {
    /// Creates the directory in `base` (`--dir`). Without `base` it takes the first of `/dev/shm`, `$XDG_RUNTIME_DIR` and
    /// `/run/user/UID` that is in memory, otherwise the temporary directory, with a [`warning`](Self::warning).
    ///
    /// First removes the directories of dead wrappers of the same user.
    pub fn create(base: Option<&Path>, readers: Readers) -> Result<Self, CredentialError> {
        let (places, above) = match base {
            Some(base) => {
                let failed = |source| CredentialError::NoDirectory { tried: base.to_owned(), source };
                let base = fs::canonicalize(base).map_err(failed)?;
                let above = check_ancestors(&base)?;
                (vec![base], above)
            }
            None => (default_places(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)), None),
        };
        let (mut refused, mut sessions) = (None, Vec::new());
        for base in places {
            remove_stale(&base, |left| {
                sessions.extend(Manifest::read_own_text(&left.join(SESSION)).map(SecretText::new));
                sessions.truncate(SESSIONS_LEFT_MAX);
            });
            match LockedFolder::create(&base, readers)? {
                Ok(folder) => {
                    let on_disk = (!is_in_memory(&base)).then(|| {
                        // The folder in `base` has a random name, so the log would withhold it.
                        format!(
                            "credentials are on disk, in a folder of {}: name a directory on tmpfs with --dir",
                            plain::path(&base)
                        )
                    });
                    return Ok(Self::new(folder, above.or(on_disk), None, sessions));
                }
                Err(e) => refused = Some((base, e)),
            }
        }
        let (tried, source) =
            refused.unwrap_or_else(|| (PathBuf::new(), io::Error::from(io::ErrorKind::NotFound)));
        Err(CredentialError::NoDirectory { tried, source })
    }

    /// Takes a directory that the user named, so each file has the same path in every run. Creates the directory if it does not
    /// exist.
    ///
    /// First removes the files that a killed wrapper provably left in it. If it contains any other file, it is refused and nothing
    /// is removed.
    pub fn at(path: &Path, readers: Readers) -> Result<Self, CredentialError> {
        let failed = |source| CredentialError::NoDirectory { tried: path.to_owned(), source };
        let above = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        check_ancestors(&fs::canonicalize(above).map_err(failed)?)?;
        let folder = LockedFolder::open(path, readers)?;
        // The name may be a link, with other folders above its target.
        let above = check_ancestors(folder.path().parent().unwrap_or(Path::new("/")))?;
        let left = Manifest::load(folder.path());
        for entry in fs::read_dir(folder.path()).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if !left.is_written_by_wrapper(&name) {
                let name = plain::ascii_value(&name.to_string_lossy());
                let why = format!("there are other files in it (`{name}`); name an empty directory");
                return Err(CredentialError::Unfit { path: path.to_owned(), why });
            }
        }
        let session =
            left.lists(SESSION).then(|| Manifest::read_own_text(&folder.path().join(SESSION))).flatten();
        left.proven_files().iter().for_each(|file| erase(file));
        let on_disk = (!is_in_memory(folder.path()))
            .then(|| "it is on disk; a directory on tmpfs would be better".into());
        let warning =
            above.or(on_disk).map(|w| format!("credentials are in {}: {w}", plain::path(folder.path())));
        let manifest = Manifest::new(folder.path().to_owned())?;
        let sessions = session.map(SecretText::new).into_iter().collect();
        Ok(Self::new(folder, warning, Some(manifest), sessions))
    }

    fn new(
        folder: LockedFolder,
        warning: Option<String>,
        manifest: Option<Manifest>,
        sessions: Vec<SecretText>,
    ) -> Self {
        let (path, readers) = (folder.path().to_owned(), folder.readers());
        let state = DirState {
            is_wiped: false,
            folder,
            manifest,
            files: BTreeMap::new(),
            index: None,
            drain: None,
            env: Vec::new(),
            trouble: None,
            sessions,
        };
        CredentialDir { path, readers, warning, state: Mutex::new(state) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who may use the local endpoint and the keys that the files contain.
    pub(crate) fn callers(&self) -> Callers {
        if self.readers.are_several() { Callers::WhoHasTheKey } else { Callers::SameUser }
    }

    /// A warning if the files are not in memory, or if other users could replace the directory.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Writes or replaces the token file of a credential. If that fails, [`mend`](Self::mend) tries again.
    pub fn put(&self, name: &str, token: &SecretText) -> Result<PathBuf, CredentialError> {
        if !is_file_name(name) || OWN_NAMES.contains(&name) {
            return Err(CredentialError::Name(plain::ascii_value(name)));
        }
        let mut state = self.state();
        let credentials = state.files.keys().filter(|n| !OWN_NAMES.contains(&n.as_str())).count();
        if credentials >= CREDENTIALS_MAX && !state.files.contains_key(name) {
            return Err(CredentialError::TooMany);
        }
        self.store(&mut state, name, token.clone(), self.readers.file_mode())
    }

    /// Removes and overwrites one file.
    pub fn remove(&self, name: &str) {
        let mut state = self.state();
        if state.files.remove(name).is_some() && state.folder.is_there() {
            erase(&self.path.join(name));
        }
    }

    /// Writes a file that any user may read, and returns its name. Does nothing and returns `None` if the path is not in this
    /// directory.
    pub(crate) fn put_open(&self, file: &Path, text: &str) -> Result<Option<String>, CredentialError> {
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let is_here = fs::canonicalize(folder).is_ok_and(|folder| folder == self.path);
        let Some(name) = file.file_name().and_then(OsStr::to_str).filter(|_| is_here) else {
            return Ok(None);
        };
        if !is_file_name(name) || OWN_NAMES.contains(&name) {
            return Err(CredentialError::Name(name.to_owned()));
        }
        self.store(&mut self.state(), name, SecretText::new(text.to_owned()), 0o644)?;
        Ok(Some(name.to_owned()))
    }

    /// Writes or replaces `credentials.json`. Each entry must name a file that was written with [`put`](Self::put).
    pub fn write_index(&self, index: &CredentialIndex) -> Result<PathBuf, CredentialError> {
        let mut state = self.state();
        if state.is_wiped {
            return Err(CredentialError::Wiped);
        }
        let unknown = index.credentials.iter().find(|entry| !state.files.contains_key(&entry.name));
        if let Some(entry) = unknown {
            return Err(CredentialError::Name(entry.name.clone()));
        }
        state.index = Some(index.clone());
        state.env = index.variables(&self.path);
        self.write_present_index(&mut state)
    }

    /// Writes the time until which the program may finish. Call it before the program is asked to finish.
    pub(crate) fn note_drain(&self, note: DrainNote) -> Result<(), CredentialError> {
        let mut state = self.state();
        let text = note.text();
        state.drain = Some(note);
        let noted = self.store(&mut state, DRAIN, SecretText::new(text), self.readers.file_mode());
        self.write_present_index(&mut state)?;
        noted.map(drop)
    }

    /// Saves the session for the next process. No other user may read it.
    pub(crate) fn keep_session(&self, session: SecretText) -> Result<(), CredentialError> {
        self.store(&mut self.state(), SESSION, session, 0o600).map(drop)
    }

    /// Takes the sessions that killed sidecars left here. The next call returns none.
    pub(crate) fn take_sessions(&self) -> Vec<SecretText> {
        std::mem::take(&mut self.state().sessions)
    }

    fn write_present_index(&self, state: &mut DirState) -> Result<PathBuf, CredentialError> {
        let Some(index) = &state.index else { return Ok(self.path.join(INDEX)) };
        let text = index.text(&self.path, state.drain.as_ref());
        self.store(state, INDEX, SecretText::new(text), self.readers.file_mode())
    }

    /// The variables for the child, from the last index that was written. They name files and contain no secret.
    ///
    /// They are `LEASEHOLD_JOB`, `LEASEHOLD_ATTEMPT`, `LEASEHOLD_CREDENTIALS` (the index), `LEASEHOLD_DRAIN_FILE` (which appears
    /// when the program is to finish), and `LEASEHOLD_TOKEN_FILE_READING` and `LEASEHOLD_TOKEN_FILE_WRITING` if that half has
    /// exactly one credential.
    pub fn env(&self) -> Vec<(OsString, OsString)> {
        self.state().env.clone()
    }

    /// Writes missing files and folders again. Another program may have removed them, or an earlier write may have failed.
    pub fn mend(&self) -> MendResult {
        let mut state = self.state();
        if state.is_wiped {
            return MendResult::Nothing;
        }
        let had_folder = state.folder.is_there();
        for (name, content) in &mut state.files {
            content.is_written &= had_folder && fs::symlink_metadata(self.path.join(name)).is_ok();
        }
        let missing: Vec<String> =
            state.files.iter().filter(|(_, c)| !c.is_written).map(|(name, _)| name.clone()).collect();
        if missing.is_empty() && had_folder {
            // A renewal may have written the last of the missing files.
            return state.trouble.take().map_or(MendResult::Nothing, MendResult::Again);
        }
        match self.write_missing(&mut state, had_folder, &missing) {
            Ok(()) => {
                let cause = if had_folder { "they were removed" } else { "their folder was removed" };
                MendResult::Again(state.trouble.take().unwrap_or_else(|| cause.to_owned()))
            }
            Err(cause) if state.trouble.as_ref() == Some(&cause) => MendResult::Nothing,
            Err(cause) => {
                state.trouble = Some(cause.clone());
                MendResult::Failing(cause)
            }
        }
    }

    fn write_missing(
        &self,
        state: &mut DirState,
        had_folder: bool,
        missing: &[String],
    ) -> Result<(), String> {
        if !had_folder {
            state.folder.recreate().map_err(|e| e.to_string())?;
            if state.manifest.is_some() {
                let manifest = Manifest::new(self.path.clone()).map_err(|e| e.to_string())?;
                state.manifest = Some(manifest);
            }
        }
        for name in missing {
            self.write(state, name).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Removes and overwrites all files, permanently: later writes are refused. Whether a disk keeps old data is not known.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.is_wiped = true;
        // The path may lead to another folder by now. Do not erase that folder.
        if !state.folder.is_there() {
            return;
        }
        match &state.manifest {
            Some(manifest) => {
                state.files.keys().for_each(|name| erase(&self.path.join(name)));
                manifest.proven_files().iter().for_each(|path| erase(path));
            }
            None => erase_files(&self.path),
        }
        state.files.clear();
    }

    fn store(
        &self,
        state: &mut DirState,
        name: &str,
        text: SecretText,
        mode: u32,
    ) -> Result<PathBuf, CredentialError> {
        let path = self.path.join(name);
        if state.is_wiped {
            return Err(CredentialError::Wiped);
        }
        if let Some(manifest) = &state.manifest
            && !manifest.lists(name)
            && fs::symlink_metadata(&path).is_ok()
        {
            let source = io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file of this name that leasehold did not write",
            );
            return Err(CredentialError::Write { path, source });
        }
        state.files.insert(name.to_owned(), FileContent { text, mode, is_written: false });
        match self.write(state, name) {
            Ok(()) => Ok(path),
            Err(source) => Err(CredentialError::Write { path, source }),
        }
    }

    /// Writes one file under a draft name, then renames it, so that a reader never sees a part of it.
    fn write(&self, state: &mut DirState, name: &str) -> io::Result<()> {
        let Some(content) = state.files.get_mut(name) else { return Ok(()) };
        let text = content.text.expose().as_bytes();
        let draft = match &mut state.manifest {
            Some(manifest) => {
                manifest.record(name, text)?;
                manifest.draft().to_owned()
            }
            None => draft_name().map_err(io::Error::other)?,
        };
        let next = self.path.join(draft);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
            self.readers.apply(&file, content.mode)?;
            file.write_all(text)?;
            fs::rename(&next, self.path.join(name))
        };
        write().inspect_err(|_| erase(&next))?;
        content.is_written = true;
        Ok(())
    }

    /// Locks the state and ignores poisoning: the wipe must happen even if another thread panicked.
    fn state(&self) -> std::sync::MutexGuard<'_, DirState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for CredentialDir {
    fn drop(&mut self) {
        self.wipe();
        self.state().folder.remove();
    }
}

fn is_file_name(name: &str) -> bool {
    name.len() <= 200
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Removes the directory of a wrapper that was killed.
pub(crate) fn erase_dir(folder: &Path) {
    erase_files(folder);
    // The folder may be gone already.
    let _ = fs::remove_dir(folder);
}

pub(crate) fn erase_files(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        erase(&entry.path());
    }
}

/// Removes a file, then overwrites its content: a process that has it open reads zeros.
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
#[path = "credential_dir_tests.rs"]
mod tests;
