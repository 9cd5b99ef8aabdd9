//! The files that credentials are handed to the child in.

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
    folder::{LockedFolder, Readers, is_memory, look_above, remove_stale, usual_places},
    index::{CredentialIndex, DRAIN, DrainNote, INDEX},
    manifest::{Manifest, draft_name, open_regular},
};
use crate::{
    limits::{CREDENTIALS_MAX, SESSIONS_LEFT_MAX},
    secret::{NoRandomness, SecretText},
};

/// What an agent needs to be the same member after it was killed. Only its user may read it, even if others may read the credentials.
const SESSION: &str = ".leasehold-session";
const OWN_NAMES: [&str; 3] = [INDEX, DRAIN, SESSION];

/// A private directory of token files, on memory if there is some.
///
/// The directory has mode 0700, each file 0600, unless a group may read them. A file is replaced by rename: who reads
/// it at any moment reads one whole token, the old or the new. After [`wipe`](Self::wipe) nothing can be put any more, so
/// that a renewal that is under way cannot bring a revoked credential back. Dropping it wipes it.
///
/// What is in the files is kept in memory too, so that [`mend`](Self::mend) can write again what another program removed.
///
/// While it lives the directory is locked (`flock`), which tells the next wrapper that it is not a dead one's.
#[derive(Debug)]
pub struct CredentialDir {
    path: PathBuf,
    readers: Readers,
    warning: Option<String>,
    state: Mutex<DirState>,
}

#[derive(Debug)]
struct DirState {
    wiped: bool,
    folder: LockedFolder,
    /// Which files are ours, if the user named the directory: others may put files of their own there, and those are theirs.
    manifest: Option<Manifest>,
    /// What each file holds, or is to hold as soon as it can be written.
    files: BTreeMap<String, FileContent>,
    index: Option<CredentialIndex>,
    drain: Option<DrainNote>,
    env: Vec<(OsString, OsString)>,
    /// Why files could not be written at the last look.
    trouble: Option<String>,
    /// What killed agents left here.
    sessions: Vec<SecretText>,
}

#[derive(Debug)]
struct FileContent {
    text: SecretText,
    mode: u32,
    is_written: bool,
}

/// What a look at the files came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MendResult {
    /// There was nothing to do, or nothing new to say.
    Nothing,
    /// The files are there again. Says what had happened to them.
    Again(String),
    /// Some cannot be written. Says why, once for each cause.
    Failing(String),
}

/// Why credentials could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("no private directory for credentials could be made in {}: name another with --dir", tried.display())]
    NoDirectory { tried: PathBuf, source: io::Error },
    #[error("{} cannot hold credentials: {why}", path.display())]
    Unfit { path: PathBuf, why: String },
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
    /// Makes the directory below `base` (`--dir`), or else in the first of `/dev/shm`, `$XDG_RUNTIME_DIR` and
    /// `/run/user/UID` that is memory, or else in the temporary directory, with a [`warning`](Self::warning).
    ///
    /// Directories that dead wrappers of the same user left in the same place are removed first.
    pub fn create(base: Option<&Path>, readers: Readers) -> Result<Self, CredentialError> {
        let (places, above) = match base {
            Some(base) => {
                let failed = |source| CredentialError::NoDirectory { tried: base.to_owned(), source };
                let base = fs::canonicalize(base).map_err(failed)?;
                let above = look_above(&base)?;
                (vec![base], above)
            }
            None => (usual_places(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)), None),
        };
        let (mut refused, mut sessions) = (None, Vec::new());
        for base in places {
            remove_stale(&base, |left| {
                sessions.extend(Manifest::own_text(&left.join(SESSION)).map(SecretText::new));
                sessions.truncate(SESSIONS_LEFT_MAX);
            });
            match LockedFolder::make(&base, readers)? {
                Ok(folder) => {
                    let on_disk = (!is_memory(&base)).then(|| {
                        format!(
                            "credentials are on disk, in {}: name a directory on tmpfs with --dir",
                            folder.path().display()
                        )
                    });
                    return Ok(Self::of(folder, above.or(on_disk), None, sessions));
                }
                Err(e) => refused = Some((base, e)),
            }
        }
        let (tried, source) =
            refused.unwrap_or_else(|| (PathBuf::new(), io::Error::from(io::ErrorKind::NotFound)));
        Err(CredentialError::NoDirectory { tried, source })
    }

    /// A directory that the user named, so that others find the files there under names that do not change. Made if it is
    /// not there. What a killed wrapper provably left in it is removed first; if anything else is in it, nothing is touched,
    /// and it is refused.
    pub fn at(path: &Path, readers: Readers) -> Result<Self, CredentialError> {
        let failed = |source| CredentialError::NoDirectory { tried: path.to_owned(), source };
        let above = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        look_above(&fs::canonicalize(above).map_err(failed)?)?;
        let folder = LockedFolder::named(path, readers)?;
        // The name may be a link, which leads through other folders.
        let above = look_above(folder.path().parent().unwrap_or(Path::new("/")))?;
        let left = Manifest::left_in(folder.path());
        for entry in fs::read_dir(folder.path()).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if !left.proves(&name) {
                let name: String =
                    name.to_string_lossy().chars().take(80).flat_map(char::escape_default).collect();
                let why = format!("there are other files in it (`{name}`); name an empty one");
                return Err(CredentialError::Unfit { path: path.to_owned(), why });
            }
        }
        let session = left.names(SESSION).then(|| Manifest::own_text(&folder.path().join(SESSION))).flatten();
        left.proven().iter().for_each(|file| erase(file));
        let on_disk =
            (!is_memory(folder.path())).then(|| "it is on disk; a directory on tmpfs would be better".into());
        let warning =
            above.or(on_disk).map(|w| format!("credentials are in {}: {w}", folder.path().display()));
        let manifest = Manifest::empty(folder.path().to_owned())?;
        let sessions = session.map(SecretText::new).into_iter().collect();
        Ok(Self::of(folder, warning, Some(manifest), sessions))
    }

    fn of(
        folder: LockedFolder,
        warning: Option<String>,
        manifest: Option<Manifest>,
        sessions: Vec<SecretText>,
    ) -> Self {
        let (path, readers) = (folder.path().to_owned(), folder.readers());
        let state = DirState {
            wiped: false,
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

    /// One line for stderr if the files are not on memory.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Writes or replaces the token file of a credential. If it cannot be written, it is kept for [`mend`](Self::mend).
    pub fn put(&self, name: &str, token: &SecretText) -> Result<PathBuf, CredentialError> {
        if !is_file_name(name) || OWN_NAMES.contains(&name) {
            return Err(CredentialError::Name(
                name.chars().take(80).flat_map(char::escape_default).collect(),
            ));
        }
        let mut state = self.state();
        let credentials = state.files.keys().filter(|n| !OWN_NAMES.contains(&n.as_str())).count();
        if credentials >= CREDENTIALS_MAX && !state.files.contains_key(name) {
            return Err(CredentialError::TooMany);
        }
        self.keep(&mut state, name, token.clone(), self.readers.file_mode())
    }

    /// Whether a file holds what was put last.
    pub fn holds(&self, name: &str) -> bool {
        self.state().files.get(name).is_some_and(|kept| kept.is_written)
    }

    /// Wipes one credential: its lease has ended, others go on.
    pub fn remove(&self, name: &str) {
        let mut state = self.state();
        if state.files.remove(name).is_some() && state.folder.is_there() {
            erase(&self.path.join(name));
        }
    }

    /// Writes a file that any user may read, in this directory or elsewhere. Answers the name of it if it is in here: then it
    /// is one of this directory's files.
    pub(crate) fn put_open(&self, file: &Path, text: &str) -> Result<Option<String>, CredentialError> {
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let is_here = fs::canonicalize(folder).is_ok_and(|folder| folder == self.path);
        let Some(name) = file.file_name().and_then(OsStr::to_str).filter(|_| is_here) else {
            return Ok(None);
        };
        if !is_file_name(name) || OWN_NAMES.contains(&name) {
            return Err(CredentialError::Name(name.to_owned()));
        }
        self.keep(&mut self.state(), name, SecretText::new(text.to_owned()), 0o644)?;
        Ok(Some(name.to_owned()))
    }

    /// Writes or replaces `credentials.json`. Every entry names a credential that was put.
    pub fn write_index(&self, index: &CredentialIndex) -> Result<PathBuf, CredentialError> {
        let mut state = self.state();
        if state.wiped {
            return Err(CredentialError::Wiped);
        }
        let unknown = index.credentials.iter().find(|entry| !state.files.contains_key(&entry.name));
        if let Some(entry) = unknown {
            return Err(CredentialError::Name(entry.name.clone()));
        }
        state.index = Some(index.clone());
        state.env = index.variables(&self.path);
        self.write_state(&mut state)
    }

    /// Says in the files until when the program may finish. They are there before it is asked to.
    pub(crate) fn note_drain(&self, note: DrainNote) -> Result<(), CredentialError> {
        let mut state = self.state();
        let text = note.text();
        state.drain = Some(note);
        let noted = self.keep(&mut state, DRAIN, SecretText::new(text), self.readers.file_mode());
        self.write_state(&mut state)?;
        noted.map(drop)
    }

    /// Keeps what the next process needs to be the same member. No other user reads it.
    pub(crate) fn keep_session(&self, session: SecretText) -> Result<(), CredentialError> {
        self.keep(&mut self.state(), SESSION, session, 0o600).map(drop)
    }

    /// Takes what killed agents left in this place, each once.
    pub(crate) fn take_sessions(&self) -> Vec<SecretText> {
        std::mem::take(&mut self.state().sessions)
    }

    fn write_state(&self, state: &mut DirState) -> Result<PathBuf, CredentialError> {
        let Some(index) = &state.index else { return Ok(self.path.join(INDEX)) };
        let text = index.text(&self.path, state.drain.as_ref());
        self.keep(state, INDEX, SecretText::new(text), self.readers.file_mode())
    }

    /// The variables of the child, after the last index that was written. They name files and hold no secret.
    ///
    /// `LEASEHOLD_JOB`, `LEASEHOLD_ATTEMPT`, `LEASEHOLD_CREDENTIALS` (the index), `LEASEHOLD_DRAIN_FILE` (there once the
    /// program is to finish), and `LEASEHOLD_TOKEN_FILE_READING` and `LEASEHOLD_TOKEN_FILE_WRITING` if that half has one
    /// credential.
    pub fn env(&self) -> Vec<(OsString, OsString)> {
        self.state().env.clone()
    }

    /// Writes again what is not there: a folder or a file that another program removed, or what had no space before. Takes
    /// nothing away.
    pub fn mend(&self) -> MendResult {
        let mut state = self.state();
        if state.wiped {
            return MendResult::Nothing;
        }
        let had_folder = state.folder.is_there();
        for (name, kept) in &mut state.files {
            kept.is_written &= had_folder && fs::symlink_metadata(self.path.join(name)).is_ok();
        }
        let missing: Vec<String> =
            state.files.iter().filter(|(_, k)| !k.is_written).map(|(name, _)| name.clone()).collect();
        if missing.is_empty() && had_folder {
            state.trouble = None;
            return MendResult::Nothing;
        }
        match self.write_missing(&mut state, had_folder, &missing) {
            Ok(()) => {
                let was = state.trouble.take();
                let gone = if had_folder { "they were removed" } else { "their folder was removed" };
                MendResult::Again(was.unwrap_or_else(|| gone.to_owned()))
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
            state.folder.make_again().map_err(|e| e.to_string())?;
            if state.manifest.is_some() {
                let manifest = Manifest::empty(self.path.clone()).map_err(|e| e.to_string())?;
                state.manifest = Some(manifest);
            }
        }
        for name in missing {
            self.write(state, name).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Takes all files away, for good: what is put later is refused. Best effort against what the medium keeps.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.wiped = true;
        // What has taken the place of our folder is not ours to erase.
        if !state.folder.is_there() {
            return;
        }
        match &state.manifest {
            Some(manifest) => {
                state.files.keys().for_each(|name| erase(&self.path.join(name)));
                manifest.proven().iter().for_each(|path| erase(path));
            }
            None => erase_all(&self.path),
        }
        state.files.clear();
    }

    fn keep(
        &self,
        state: &mut DirState,
        name: &str,
        text: SecretText,
        mode: u32,
    ) -> Result<PathBuf, CredentialError> {
        let path = self.path.join(name);
        if state.wiped {
            return Err(CredentialError::Wiped);
        }
        if let Some(manifest) = &state.manifest
            && !manifest.names(name)
            && fs::symlink_metadata(&path).is_ok()
        {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, "it belongs to someone else");
            return Err(CredentialError::Write { path, source });
        }
        state.files.insert(name.to_owned(), FileContent { text, mode, is_written: false });
        match self.write(state, name) {
            Ok(()) => Ok(path),
            Err(source) => Err(CredentialError::Write { path, source }),
        }
    }

    /// Writes one file whole: a draft first, which then takes its name.
    fn write(&self, state: &mut DirState, name: &str) -> io::Result<()> {
        let Some(kept) = state.files.get_mut(name) else { return Ok(()) };
        let text = kept.text.expose().as_bytes();
        let draft = match &mut state.manifest {
            Some(manifest) => {
                manifest.note(name, text)?;
                manifest.draft().to_owned()
            }
            None => draft_name().map_err(io::Error::other)?,
        };
        let next = self.path.join(draft);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
            self.readers.admit(&file, kept.mode)?;
            file.write_all(text)?;
            fs::rename(&next, self.path.join(name))
        };
        write().inspect_err(|_| erase(&next))?;
        kept.is_written = true;
        Ok(())
    }

    /// Poisoned or not: to wipe matters more than how another thread ended.
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

/// Takes away a directory whose wrapper was killed.
pub(crate) fn erase_left(folder: &Path) {
    erase_all(folder);
    // Gone already, where the wrapper did it.
    let _ = fs::remove_dir(folder);
}

pub(crate) fn erase_all(folder: &Path) {
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
#[path = "credential_dir_tests.rs"]
mod tests;
