//! The state of the files in a synced folder: which files are finished, and which of them are uploaded.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{error::FolderError, objects::is_own_name, own_folder::OwnFolder, progress::files_shown};
use crate::{
    backoff::Backoff,
    clock::LeaseTime,
    limits::{SYNC_DEPTH_MAX, SYNC_FILES_MAX, SYNC_SETTLE, SYNC_TRIES},
    plain::{self, bytes_shown},
};

/// The size and times of a file. They show a change without reading the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileStamp {
    pub(super) size: u64,
    /// When the file was modified: seconds since 1970, and nanoseconds.
    pub(super) modified: (i64, i64),
    inode: u64,
}

impl FileStamp {
    pub(super) fn of(seen: &Metadata) -> Self {
        FileStamp { size: seen.len(), modified: (seen.mtime(), seen.mtime_nsec()), inode: seen.ino() }
    }

    pub(super) fn modified_ms(&self) -> i64 {
        self.modified.0.saturating_mul(1_000).saturating_add(self.modified.1 / 1_000_000)
    }
}

/// A file in the folder, by its path relative to the folder.
pub(super) type FoundFile = (String, FileStamp);

/// Whether the command still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyncPhase {
    /// The command may still write: only files that have not changed for some time are finished.
    Running,
    /// The command has ended: every file is finished.
    Finishing,
}

/// The files of one folder.
#[derive(Debug, Default)]
pub(super) struct FolderChanges {
    files: HashMap<String, FileState>,
    /// Why the folder could not be read.
    pub(super) trouble: Option<String>,
}

#[derive(Debug)]
struct FileState {
    stamp: FileStamp,
    /// Since when the file has not changed.
    since: LeaseTime,
    upload: FileUpload,
}

#[derive(Debug)]
enum FileUpload {
    Wanted {
        tries: u32,
        after: LeaseTime,
    },
    UnderWay {
        tries: u32,
    },
    Done,
    /// The gateway refuses the file. The upload is tried again if the file changes.
    Refused,
}

impl FileUpload {
    fn wanted() -> Self {
        FileUpload::Wanted { tries: 0, after: LeaseTime(0) }
    }
}

impl FolderChanges {
    /// Takes the files that were found in the folder. Forgets files that were removed.
    pub(super) fn look(&mut self, found: Vec<FoundFile>, now: LeaseTime) {
        let mut before = std::mem::take(&mut self.files);
        for (name, stamp) in found {
            let state = match before.remove(&name) {
                Some(state) if state.stamp == stamp => state,
                _ => FileState { stamp, since: now, upload: FileUpload::wanted() },
            };
            self.files.insert(name, state);
        }
    }

    /// Returns the finished files that are not uploaded, the oldest first, and marks them as under way.
    pub(super) fn take_finished(&mut self, phase: SyncPhase, now: LeaseTime, most: usize) -> Vec<FoundFile> {
        let is_due = |state: &FileState| match &state.upload {
            FileUpload::Wanted { tries, after } => {
                let rests = phase == SyncPhase::Finishing || state.since.plus(SYNC_SETTLE) <= now;
                let may_try = phase == SyncPhase::Running || *tries < SYNC_TRIES;
                rests && may_try && *after <= now
            }
            FileUpload::UnderWay { .. } | FileUpload::Done | FileUpload::Refused => false,
        };
        let due = self.files.iter().filter(|(_, state)| is_due(state));
        let mut due: Vec<FoundFile> = due.map(|(name, state)| (name.clone(), state.stamp)).collect();
        due.sort_unstable_by(|a, b| (a.1.modified, &a.0).cmp(&(b.1.modified, &b.0)));
        due.truncate(most);
        for (name, _) in &due {
            if let Some(state) = self.files.get_mut(name) {
                let tries = if let FileUpload::Wanted { tries, .. } = state.upload { tries } else { 0 };
                state.upload = FileUpload::UnderWay { tries };
            }
        }
        due
    }

    /// Whether an upload is running or may still be tried. After the command has ended, the sync waits for it.
    pub(super) fn has_wanted(&self) -> bool {
        let is_wanted = |state: &FileState| {
            matches!(&state.upload, FileUpload::Wanted { tries, .. } if *tries < SYNC_TRIES)
                || matches!(state.upload, FileUpload::UnderWay { .. })
        };
        self.files.values().any(is_wanted)
    }

    /// Notes that the content with this stamp is uploaded. If the file was changed meanwhile, the next look finds the change.
    pub(super) fn mark_uploaded(&mut self, name: &str, stamp: FileStamp) {
        self.set(name, stamp, FileUpload::Done);
    }

    /// Notes that the gateway refuses this content, so that it is not tried again.
    pub(super) fn mark_refused(&mut self, name: &str, stamp: FileStamp) {
        self.set(name, stamp, FileUpload::Refused);
    }

    /// Notes that an upload failed and is to be tried again later.
    pub(super) fn mark_failed(&mut self, name: &str, stamp: FileStamp, now: LeaseTime) {
        let earlier = match self.files.get(name).map(|state| &state.upload) {
            Some(FileUpload::UnderWay { tries }) => *tries,
            _ => 0,
        };
        let mut backoff = Backoff::default();
        let wait = (0..=earlier.min(SYNC_TRIES)).map(|_| backoff.next_wait()).last().unwrap_or_default();
        self.set(name, stamp, FileUpload::Wanted { tries: earlier.saturating_add(1), after: now.plus(wait) });
    }

    fn set(&mut self, name: &str, stamp: FileStamp, upload: FileUpload) {
        if let Some(state) = self.files.get_mut(name).filter(|state| state.stamp == stamp) {
            state.upload = upload;
        }
    }

    /// Describes the files that are not uploaded, for people. `None` if all files are uploaded.
    pub(super) fn left(&self) -> Option<String> {
        if let Some(trouble) = &self.trouble {
            return Some(trouble.clone());
        }
        let is_left = |state: &&FileState| !matches!(state.upload, FileUpload::Done);
        let count = self.files.values().filter(is_left).count() as u64;
        let bytes = self.files.values().filter(is_left).map(|state| state.stamp.size).sum();
        let example = self.files.iter().filter(|(_, state)| is_left(state)).map(|(name, _)| name).min()?;
        let shown = plain::value(example);
        Some(format!("{} ({}), such as `{shown}`", files_shown(count), bytes_shown(bytes)))
    }
}

/// Lists the regular files below a folder. Does not follow links, and leaves out leasehold's files. Blocks.
pub(super) fn files_below(own: &OwnFolder) -> Result<Vec<FoundFile>, FolderError> {
    let root = own.inside();
    let failed = |error| FolderError::disk(own.path(), error);
    let too_many = || FolderError::TooManyFiles(own.path().to_owned());
    let (mut found, mut folders) = (Vec::new(), vec![(root.to_owned(), 0)]);
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            // The command may remove a folder at any time.
            Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => continue,
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let seen = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                seen => seen.map_err(failed)?,
            };
            if seen.is_dir() {
                if depth >= SYNC_DEPTH_MAX || folders.len() >= SYNC_FILES_MAX {
                    return Err(too_many());
                }
                folders.push((path, depth.saturating_add(1)));
                continue;
            }
            let name = name_below(root, &path);
            if seen.is_file() && !is_own_name(&name) {
                if found.len() >= SYNC_FILES_MAX {
                    return Err(too_many());
                }
                found.push((name, FileStamp::of(&seen)));
            }
        }
    }
    Ok(found)
}

/// Makes the name of the object for a file. If the file's name is not UTF-8, its invalid bytes are replaced. The upload
/// then finds no file of that name, fails, and is reported.
fn name_below(root: &Path, path: &Path) -> String {
    let below: PathBuf = path.strip_prefix(root).unwrap_or(path).to_owned();
    below.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(n: i64) -> FileStamp {
        FileStamp { size: 10, modified: (n, 0), inode: 1 }
    }

    fn names(files: Vec<FoundFile>) -> Vec<String> {
        files.into_iter().map(|(name, _)| name).collect()
    }

    // A file is finished when it has not changed for some time, or when the command has ended. Each content is uploaded once.
    #[test]
    fn a_file_that_rests_is_finished() {
        let (mut changes, start) = (FolderChanges::default(), LeaseTime(1_000_000));
        let later = |spans: u32| start.plus(SYNC_SETTLE * spans);
        changes.look(vec![("b".into(), stamp(2)), ("a".into(), stamp(3))], start);
        assert!(changes.take_finished(SyncPhase::Running, start, 9).is_empty());
        changes.look(vec![("b".into(), stamp(2)), ("a".into(), stamp(4))], later(1));
        assert_eq!(names(changes.take_finished(SyncPhase::Running, later(1), 9)), ["b"], "`a` was changed");
        assert!(changes.take_finished(SyncPhase::Running, later(1), 9).is_empty(), "it is under way");
        changes.mark_uploaded("b", stamp(2));
        assert!(changes.left().unwrap().contains("1 file (10 bytes), such as `a`"));
        assert_eq!(names(changes.take_finished(SyncPhase::Finishing, later(1), 9)), ["a"]);
        changes.mark_uploaded("a", stamp(4));
        assert_eq!(changes.left(), None);
        changes.look(vec![("a".into(), stamp(5))], later(2));
        changes.mark_uploaded("a", stamp(4));
        assert_eq!(
            names(changes.take_finished(SyncPhase::Finishing, later(2), 9)),
            ["a"],
            "its new content is not there"
        );
    }

    // A refused file is not tried again. A failed file is tried again a few times at the end.
    #[test]
    fn a_failed_upload_is_tried_again() {
        let (mut changes, mut now) = (FolderChanges::default(), LeaseTime(1_000_000));
        changes.look(vec![("x".into(), stamp(1)), ("y".into(), stamp(1))], now);
        for _ in 0..SYNC_TRIES {
            now = now.plus(std::time::Duration::from_secs(60));
            let due = changes.take_finished(SyncPhase::Finishing, now, 9);
            for file in due {
                match file.0.as_str() {
                    "x" => changes.mark_failed(&file.0, file.1, now),
                    _ => changes.mark_refused(&file.0, file.1),
                }
            }
            let again = changes.take_finished(SyncPhase::Finishing, now, 9);
            assert!(again.is_empty(), "it waits before the next try");
        }
        now = now.plus(std::time::Duration::from_secs(60));
        assert!(changes.take_finished(SyncPhase::Finishing, now, 9).is_empty() && !changes.has_wanted());
        assert_eq!(changes.left().as_deref(), Some("2 files (20 bytes), such as `x`"));
    }

    // Links, pipes and our own files are not uploaded, and no link leads out of the folder.
    #[test]
    fn only_regular_files_are_found() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("deep")).unwrap();
        for name in ["deep/x", "y", ".leasehold-stage", "z.leasehold-part"] {
            fs::write(at(name), "1").unwrap();
        }
        fs::write(outside.path().join("secret"), "1").unwrap();
        std::os::unix::fs::symlink(outside.path(), at("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), at("file-link")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let own = OwnFolder::open(folder.path()).unwrap();
        let mut found = names(files_below(&own).unwrap());
        found.sort();
        assert_eq!(found, ["deep/x", "y"]);
        let deep = (0..=SYNC_DEPTH_MAX).fold(at("deep"), |path, _| path.join("d"));
        fs::create_dir_all(deep).unwrap();
        assert!(matches!(files_below(&own), Err(FolderError::TooManyFiles(_))));
    }
}
