//! A folder with the copy of a resource. It is made before the command starts, and removed at the end.
//!
//! The journal is a file in the folder. It names the resource, is locked while the run lives, and lists the complete files. So
//! another run recognizes a folder that was left behind when a machine stopped. The other run keeps the files that are complete and
//! unchanged, and removes the rest.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::{Flock, FlockArg, OFlag};
use serde_json::{Value, json};

use super::{
    copy_in::{CopiedObject, CopyIn, in_background, sha256_of},
    error::FolderError,
    objects::{RemoteObject, ResourceObjects},
    own_folder::OwnFolder,
    progress::{CopyProgress, files_shown},
};
use crate::{
    agent::messages::MessageSink,
    clock::Clock,
    limits::STAGE_JOURNAL_BYTES_MAX,
    plain::{self, bytes_shown},
};

/// The name of the journal, which marks a folder as ours.
pub(super) const JOURNAL: &str = ".leasehold-stage";

/// A folder with the copy of a resource. It is removed when the value is dropped.
#[derive(Debug)]
pub(super) struct StagedFolder {
    folder: OwnFolder,
    /// The locked journal. No other run can use the folder.
    journal: Flock<File>,
    /// The objects that an earlier run has copied, by name.
    left: HashMap<String, CopiedObject>,
}

impl StagedFolder {
    /// Takes a folder that does not exist, is empty, or was left behind by another run.
    pub(super) fn claim(path: &Path, objects: &ResourceObjects) -> Result<Self, FolderError> {
        let path = std::path::absolute(path).map_err(|error| FolderError::disk(path, error))?;
        let unfit = |why: &str| FolderError::Unfit { path: path.clone(), why: why.to_owned() };
        let failed = |error| FolderError::disk(&path, error);
        let folder = OwnFolder::make(&path)?;
        let is_new = fs::read_dir(folder.inside()).map_err(failed)?.next().is_none();
        let name = folder.inside().join(JOURNAL);
        if !is_new && fs::symlink_metadata(&name).is_err() {
            return Err(unfit("it contains other files: name a folder that does not exist"));
        }
        let file = open_journal(&name, is_new).map_err(failed)?;
        let journal = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| unfit("another run uses it: name another folder"))?;
        let head = json!({ "resource": objects.resource });
        let mut staged = StagedFolder { folder, journal, left: HashMap::new() };
        match read_journal(&staged.journal, &head) {
            Some(left) if !is_new => staged.left = left,
            _ => {
                staged.empty().and_then(|()| staged.journal.set_len(0)).map_err(failed)?;
                staged.note(&head).map_err(failed)?;
            }
        }
        Ok(staged)
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Copies all objects into the folder, except the objects that are already there.
    pub(super) async fn fill(
        &mut self,
        objects: &ResourceObjects,
        clock: &Arc<dyn Clock>,
        messages: &MessageSink,
    ) -> Result<(), FolderError> {
        let began = clock.now().lease;
        let listed = objects.list().await?;
        let missing = self.keep_what_fits(listed.clone()).await?;
        let bytes = |objects: &[RemoteObject]| objects.iter().map(|object| object.size).sum::<u64>();
        let (all, wanted) = (bytes(&listed), bytes(&missing));
        let progress = CopyProgress::new(wanted);
        let folder = self.folder.clone();
        let path = folder.path();
        let copy = CopyIn { objects, folder: &folder, clock, progress: &progress };
        copy.check_room(wanted)?;
        let what = format!("copying {} to {}", objects.resource, plain::path(path));
        let copied = copy.copy(missing, |copied| self.note_copied(&copied));
        progress.report(&what, copied, &**clock, messages).await?;
        let kept = match all.saturating_sub(wanted) {
            0 => String::new(),
            kept => format!("; {} were there already", bytes_shown(kept)),
        };
        messages.send(&format!(
            "copied {} to {}: {}, {} in {} s{kept}",
            objects.resource,
            plain::path(path),
            files_shown(listed.len() as u64),
            bytes_shown(all),
            clock.now().lease.since(began).as_secs()
        ));
        Ok(())
    }

    /// Removes every file that is not a complete copy of a listed object. Returns the missing objects.
    async fn keep_what_fits(&mut self, listed: Vec<RemoteObject>) -> Result<Vec<RemoteObject>, FolderError> {
        let left = std::mem::take(&mut self.left);
        if left.is_empty() {
            self.empty().map_err(|error| FolderError::disk(self.path(), error))?;
            return Ok(listed);
        }
        let folder = self.folder.inside().to_owned();
        let compared = in_background(move || {
            let (mut kept, mut missing) = (Vec::new(), Vec::new());
            for object in listed {
                let copied = left.get(&object.name).filter(|copied| copied.object == object);
                match copied.filter(|copied| is_whole(&folder.join(&object.name), copied)) {
                    Some(copied) => kept.push(copied.clone()),
                    None => missing.push(object),
                }
            }
            remove_others(&folder, &kept)?;
            Ok(missing)
        });
        compared.await.map_err(|error| FolderError::disk(self.path(), error))
    }

    /// Removes all files in the folder, except the journal.
    fn empty(&self) -> io::Result<()> {
        remove_others(self.folder.inside(), &[])
    }

    fn note_copied(&self, copied: &CopiedObject) -> Result<(), FolderError> {
        let CopiedObject { object, sha256 } = copied;
        let line = json!({
            "name": object.name, "size": object.size, "e_tag": object.e_tag, "modified_ms": object.modified_ms, "sha256": sha256,
        });
        self.note(&line).map_err(|error| FolderError::disk(self.path(), error))
    }

    fn note(&self, line: &Value) -> io::Result<()> {
        (&*self.journal).write_all(format!("{line}\n").as_bytes())
    }

    /// Removes the folder and everything in it, wherever it is.
    pub(super) fn wipe(&self) -> io::Result<()> {
        self.folder.remove()
    }

    /// Whether the path still leads to the folder.
    pub(super) fn is_in_place(&self) -> bool {
        self.folder.is_in_place()
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        if let Err(error) = self.wipe() {
            tracing::error!(path = %self.path().display(), %error, "a copy of a resource could not be removed");
        }
    }
}

/// The copy of another process. This process removes the copy if the other process is killed.
#[derive(Debug)]
pub(in crate::agent) struct ForeignCopy(OwnFolder);

impl ForeignCopy {
    /// Opens the folder, so that it is found later although it was moved.
    pub(in crate::agent) fn open(path: &Path) -> Result<Self, FolderError> {
        OwnFolder::open(path).map(ForeignCopy)
    }

    pub(in crate::agent) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Removes the copy that a killed wrapper left. Leaves a folder that another run has taken since.
    pub(in crate::agent) fn remove(&self) -> io::Result<()> {
        let journal = match open_journal(&self.0.inside().join(JOURNAL), false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        match Flock::lock(journal, FlockArg::LockExclusiveNonblock) {
            Ok(_lock) => self.0.remove(),
            Err(_) => Ok(()),
        }
    }
}

fn open_journal(name: &Path, is_new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create_new(is_new).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    options.open(name)
}

/// Reads the complete objects from the journal. `None` if the journal is about another resource or cannot be read: then no file
/// is kept.
fn read_journal(journal: &File, head: &Value) -> Option<HashMap<String, CopiedObject>> {
    let mut lines = BufReader::new(journal.take(STAGE_JOURNAL_BYTES_MAX)).lines();
    let first: Value = serde_json::from_str(&lines.next()?.ok()?).ok()?;
    if first != *head {
        return None;
    }
    let copied = |line: String| {
        let line: Value = serde_json::from_str(&line).ok()?;
        let text = |key: &str| line.get(key).and_then(Value::as_str).map(str::to_owned);
        let size = line.get("size").and_then(Value::as_u64)?;
        let modified_ms = line.get("modified_ms").and_then(Value::as_i64)?;
        let object = RemoteObject { name: text("name")?, size, e_tag: text("e_tag"), modified_ms };
        Some((object.name.clone(), CopiedObject { object, sha256: text("sha256")? }))
    };
    // The last line may be incomplete.
    Some(lines.map_while(|line| copied(line.ok()?)).collect())
}

fn is_whole(path: &Path, copied: &CopiedObject) -> bool {
    let is_file = fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() == copied.object.size);
    // Without an ETag, the object may be another one of the same size by now. So the copy does not count as whole.
    is_file && copied.object.e_tag.is_some() && sha256_of(path).is_ok_and(|sha256| sha256 == copied.sha256)
}

/// Removes everything in a folder, except the journal and these files.
fn remove_others(root: &Path, kept: &[CopiedObject]) -> io::Result<()> {
    let names: std::collections::HashSet<PathBuf> =
        kept.iter().map(|copied| root.join(&copied.object.name)).collect();
    let above: std::collections::HashSet<&Path> = names.iter().flat_map(|name| name.ancestors()).collect();
    let mut folders = vec![root.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next)? {
            let entry = entry?;
            let (path, is_folder) = (entry.path(), entry.file_type()?.is_dir());
            match is_folder {
                true if above.contains(path.as_path()) => folders.push(path),
                true => fs::remove_dir_all(path)?,
                false if names.contains(&path) || path == root.join(JOURNAL) => {}
                false => fs::remove_file(path)?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt, sync::Mutex};

    use object_store::{ObjectStoreExt, PutPayload, memory::InMemory, path::Path as Key};

    use super::*;
    use crate::clock::SystemClock;

    async fn objects() -> ResourceObjects {
        let store = InMemory::new();
        for (name, text) in [("a", "one"), ("deep/b", "two"), ("deep/c", "three")] {
            store.put(&Key::from(format!("m/{name}")), PutPayload::from(text)).await.unwrap();
        }
        ResourceObjects::of_test(Arc::new(store), "m")
    }

    /// Fills a folder, and returns the messages.
    async fn fill(staged: &mut StagedFolder, objects: &ResourceObjects) -> String {
        let said = Arc::new(Mutex::new(String::new()));
        let lines = said.clone();
        let messages = MessageSink::new(move |line| lines.lock().unwrap().push_str(line));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        staged.fill(objects, &clock, &messages).await.unwrap();
        said.lock().unwrap().clone()
    }

    fn read(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).unwrap()
    }

    // The copy is complete, no other user can enter it, and it is removed with the run.
    #[tokio::test]
    async fn a_copy_goes_with_its_run() {
        let (base, objects) = (tempfile::tempdir().unwrap(), objects().await);
        let path = base.path().join("above/copy");
        let mut staged = StagedFolder::claim(&path, &objects).unwrap();
        let said = fill(&mut staged, &objects).await;
        assert!(said.contains("3 files, 11 bytes in"), "{said}");
        assert_eq!((read(&path, "a"), read(&path, "deep/c")), ("one".into(), "three".into()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let second = StagedFolder::claim(&path, &objects).unwrap_err();
        assert!(second.to_string().contains("another run uses it"), "{second}");
        let foreign = ForeignCopy::open(&path).unwrap();
        foreign.remove().unwrap();
        assert!(path.exists(), "the guard leaves a folder that is in use");
        fs::write(path.join("of-the-command"), "x").unwrap();
        drop(staged);
        assert!(!path.exists());
        foreign.remove().unwrap();
    }

    // Complete files that a stopped machine left behind are used again. The rest is replaced.
    #[tokio::test]
    async fn a_copy_that_was_left_is_used_again() {
        let (base, objects) = (tempfile::tempdir().unwrap(), objects().await);
        let (path, left) = (base.path().join("copy"), base.path().join("left"));
        let mut staged = StagedFolder::claim(&path, &objects).unwrap();
        fill(&mut staged, &objects).await;
        // A second folder with the same content, because the first folder is locked.
        fs::create_dir_all(left.join("deep")).unwrap();
        for name in [JOURNAL, "a", "deep/b"] {
            fs::copy(path.join(name), left.join(name)).unwrap();
        }
        fs::write(left.join("deep/b"), "TWO").unwrap();
        fs::write(left.join("deep/part.leasehold-part"), "x").unwrap();
        let mut again = StagedFolder::claim(&left, &objects).unwrap();
        let said = fill(&mut again, &objects).await;
        assert!(said.contains("; 3 bytes were there already"), "{said}");
        assert_eq!((read(&left, "deep/b"), read(&left, "deep/c")), ("two".into(), "three".into()));
        assert!(!left.join("deep/part.leasehold-part").exists());
    }

    // A folder with files of others, or behind a link, is refused. A folder that a run left with another resource is emptied and
    // used.
    #[tokio::test]
    async fn a_folder_of_others_is_refused() {
        let (base, objects) = (tempfile::tempdir().unwrap(), objects().await);
        let at = |name: &str| base.path().join(name);
        fs::create_dir(at("theirs")).unwrap();
        fs::write(at("theirs/x"), "1").unwrap();
        std::os::unix::fs::symlink(at("theirs"), at("link")).unwrap();
        for (name, why) in
            [("theirs", "it contains other files"), ("link", "is a link"), ("theirs/x", "not a folder")]
        {
            let refused = StagedFolder::claim(&at(name), &objects).unwrap_err();
            assert!(refused.to_string().contains(why), "{name}: {refused}");
        }
        assert_eq!(read(base.path(), "theirs/x"), "1");
        fs::create_dir(at("old")).unwrap();
        fs::write(at("old").join(JOURNAL), "{\"resource\":\"model:acme/other@1\"}\n").unwrap();
        fs::write(at("old/left"), "1").unwrap();
        let staged = StagedFolder::claim(&at("old"), &objects).unwrap();
        assert!(!at("old/left").exists(), "a copy of another resource is removed");
        drop(staged);
    }
}
