//! A folder whose files are uploaded: each file when it is finished, and the rest after the command has ended.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    changes::{FileStamp, FolderChanges, FoundFile, SyncPhase, files_below},
    copy_in::{CopyIn, in_background},
    error::FolderError,
    objects::{RemoteObject, ResourceObjects},
    own_folder::{OwnFolder, others_can_replace},
    progress::{CopyProgress, files_shown},
    upload::{Uploaded, upload},
};
use crate::{
    agent::messages::MessageSink,
    clock::{Clock, LeaseTime},
    limits::{SYNC_LOOK, SYNC_UPLOADS},
    plain::{self, bytes_shown},
};

/// The end of a message: why the files of a folder are not uploaded.
const PERHAPS_OF_OTHERS: &str =
    "and other users may have put it there: name a folder below one that only you can write to";

/// A folder whose files are uploaded while this value lives.
pub(super) struct SyncedFolder {
    syncing: Arc<Syncing>,
    /// Cancelled when the command has ended.
    ended: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// The state that the task and its owner share.
struct Syncing {
    folder: Mutex<OwnFolder>,
    objects: ResourceObjects,
    clock: Arc<dyn Clock>,
    messages: MessageSink,
    changes: Mutex<FolderChanges>,
    totals: Mutex<Totals>,
}

/// Counts the files and bytes that were uploaded so far.
#[derive(Debug, Default)]
struct Totals {
    files: u64,
    bytes: u64,
    /// The last failure. It is not printed twice.
    failure: String,
}

impl SyncedFolder {
    /// Makes the folder. Copies the files that earlier attempts of the job have uploaded, unless the folder has a file of the
    /// same name.
    pub(super) async fn start(
        path: &Path,
        objects: ResourceObjects,
        clock: Arc<dyn Clock>,
        messages: MessageSink,
    ) -> Result<Self, FolderError> {
        let path = std::path::absolute(path).map_err(|error| FolderError::disk(path, error))?;
        // Files that other users put there would be uploaded with the access of the job.
        if path.exists() && others_can_replace(&path) {
            return Err(FolderError::Unfit { path, why: format!("it exists, {PERHAPS_OF_OTHERS}") });
        }
        let folder = Mutex::new(OwnFolder::make(&path)?);
        let (changes, totals) = Default::default();
        let syncing = Arc::new(Syncing { folder, objects, clock, messages, changes, totals });
        syncing.copy_earlier_files().await?;
        let ended = CancellationToken::new();
        let task = tokio::spawn(syncing.clone().upload_changes(ended.clone()));
        Ok(SyncedFolder { syncing, ended, task: AbortOnDropHandle::new(task) })
    }

    /// Uploads the remaining files. Ends when every file is uploaded or cannot be uploaded.
    pub(super) async fn finish(&mut self) {
        self.ended.cancel();
        let _ = (&mut self.task).await;
    }

    /// Ends all uploads. An incomplete upload never becomes visible.
    pub(super) fn stop(&self) {
        self.task.abort();
    }

    /// Describes the files that are not uploaded, after a last look at the folder. `None` if all files are uploaded.
    pub(super) async fn left(&self) -> Option<String> {
        self.syncing.look().await;
        let left = self.syncing.changes().left()?;
        Some(format!("{left} of {} are not uploaded", plain::path(self.syncing.folder().path())))
    }

    /// Describes what was uploaded, for people.
    pub(super) fn summary(&self) -> String {
        let (folder, resource) = (self.syncing.folder(), &self.syncing.objects.resource);
        let totals = self.syncing.totals();
        let (files, bytes) = (files_shown(totals.files), bytes_shown(totals.bytes));
        format!("uploaded {files}, {bytes}, from {} to {resource}", plain::path(folder.path()))
    }
}

impl Syncing {
    async fn copy_earlier_files(&self) -> Result<(), FolderError> {
        let listed = self.objects.list().await?;
        let here: HashMap<String, FileStamp> = self.files().await?.into_iter().collect();
        // A local file of the object's size that is not newer than the object counts as uploaded, as in other programs that
        // synchronize folders.
        let is_copied = |object: &&RemoteObject| {
            here.get(&object.name)
                .is_some_and(|stamp| stamp.size == object.size && stamp.modified_ms() <= object.modified_ms)
        };
        let mut uploaded: HashSet<String> = listed.iter().filter(is_copied).map(|o| o.name.clone()).collect();
        let missing: Vec<_> = listed.into_iter().filter(|object| !here.contains_key(&object.name)).collect();
        let bytes = missing.iter().map(|object| object.size).sum();
        let folder = self.folder();
        let what =
            format!("copying earlier files of {} to {}", self.objects.resource, plain::path(folder.path()));
        let count = missing.len() as u64;
        uploaded.extend(missing.iter().map(|object| object.name.clone()));
        let progress = CopyProgress::new(bytes);
        let (objects, clock) = (&self.objects, &self.clock);
        let copy = CopyIn { objects, folder: &folder, clock, progress: &progress };
        copy.check_room(bytes)?;
        progress.report(&what, copy.copy(missing, |_| Ok(())), &**clock, &self.messages).await?;
        if count > 0 {
            let (count, bytes) = (files_shown(count), bytes_shown(bytes));
            self.messages.send(&format!("{what}: {count}, {bytes}, are there"));
        }
        let found = self.files().await?;
        let mut changes = self.changes();
        changes.look(found.clone(), self.now());
        for (name, stamp) in found.iter().filter(|(name, _)| uploaded.contains(name)) {
            changes.mark_uploaded(name, *stamp);
        }
        Ok(())
    }

    /// Uploads finished files until the command has ended and no file is left to try.
    async fn upload_changes(self: Arc<Self>, ended: CancellationToken) {
        let mut uploads: FuturesUnordered<BoxFuture<'_, (FoundFile, Uploaded)>> = FuturesUnordered::new();
        let (mut next_look, mut last_look_is_over) = (self.now(), false);
        loop {
            let phase = if ended.is_cancelled() { SyncPhase::Finishing } else { SyncPhase::Running };
            if self.now() >= next_look {
                self.look().await;
                last_look_is_over = phase == SyncPhase::Finishing;
                next_look = self.now().plus(SYNC_LOOK);
            }
            let room = SYNC_UPLOADS.saturating_sub(uploads.len());
            for file in self.changes().take_finished(phase, self.now(), room) {
                let (syncing, folder) = (&self, self.folder());
                uploads.push(Box::pin(async move {
                    let uploaded = upload(&syncing.objects, folder.inside(), &file).await;
                    (file, uploaded)
                }));
            }
            if last_look_is_over && uploads.is_empty() && !self.changes().has_wanted() {
                return;
            }
            tokio::select! {
                Some((file, uploaded)) = uploads.next(), if !uploads.is_empty() => self.note(&file, uploaded),
                () = self.clock.sleep_until(next_look) => {}
                () = ended.cancelled(), if phase == SyncPhase::Running => next_look = self.now(),
            }
        }
    }

    fn note(&self, file: &FoundFile, uploaded: Uploaded) {
        let (name, stamp) = file;
        let why = match uploaded {
            Uploaded::Whole => {
                self.changes().mark_uploaded(name, *stamp);
                let mut totals = self.totals();
                totals.files = totals.files.saturating_add(1);
                totals.bytes = totals.bytes.saturating_add(stamp.size);
                return;
            }
            // The next look finds the new content of the file.
            Uploaded::Changed => return self.changes().mark_failed(name, *stamp, self.now()),
            Uploaded::Failed(why) => {
                self.changes().mark_failed(name, *stamp, self.now());
                why
            }
            Uploaded::Refused(why) => {
                self.changes().mark_refused(name, *stamp);
                why
            }
        };
        if std::mem::replace(&mut self.totals().failure, why.clone()) != why {
            let shown = plain::path(&self.folder().path().join(name));
            self.messages.send(&format!("{shown} could not be uploaded: {why}"));
        }
    }

    /// Looks for changes in the folder. If that fails, prints the failure once.
    async fn look(&self) {
        let found = self.files().await;
        let mut changes = self.changes();
        match found {
            Ok(found) => {
                changes.look(found, self.now());
                changes.trouble = None;
            }
            Err(error) => {
                let trouble = error.to_string();
                if changes.trouble.as_ref() != Some(&trouble) {
                    self.messages.send(&format!("nothing is uploaded: {trouble}"));
                }
                changes.trouble = Some(trouble);
            }
        }
    }

    async fn files(&self) -> Result<Vec<FoundFile>, FolderError> {
        self.follow_command()?;
        let folder = self.folder();
        let path = folder.path().to_owned();
        let found = in_background(move || Ok(files_below(&folder))).await;
        found.map_err(|error| FolderError::disk(&path, error))?
    }

    /// Uses the new folder from now on if the command has replaced the old folder by another one. Fails if another user could
    /// have made the new folder.
    fn follow_command(&self) -> Result<(), FolderError> {
        let folder = self.folder();
        if folder.is_in_place() || !folder.path().exists() {
            return Ok(());
        }
        if folder.others_can_replace() {
            let why = format!("another folder is in its place, {PERHAPS_OF_OTHERS}");
            return Err(FolderError::Unfit { path: folder.path().to_owned(), why });
        }
        *self.folder.lock().unwrap_or_else(PoisonError::into_inner) = OwnFolder::open(folder.path())?;
        Ok(())
    }

    fn folder(&self) -> OwnFolder {
        self.folder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now(&self) -> LeaseTime {
        self.clock.now().lease
    }

    fn changes(&self) -> MutexGuard<'_, FolderChanges> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

    use object_store::{ObjectStore, ObjectStoreExt, PutPayload, memory::InMemory, path::Path as Key};

    use super::*;
    use crate::clock::SystemClock;

    struct Scene {
        folder: tempfile::TempDir,
        store: Arc<InMemory>,
        said: Arc<Mutex<Vec<String>>>,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Scene { folder, store: Arc::new(InMemory::new()), said: Arc::default() }
        }

        async fn start(&self) -> SyncedFolder {
            self.start_in(self.folder.path()).await
        }

        async fn start_in(&self, folder: &Path) -> SyncedFolder {
            let store: Arc<dyn ObjectStore> = self.store.clone();
            let objects = ResourceObjects::of_test(store, "out");
            let said = self.said.clone();
            let messages = MessageSink::new(move |line| said.lock().unwrap().push(line.to_owned()));
            let clock = Arc::new(SystemClock::new());
            SyncedFolder::start(folder, objects, clock, messages).await.unwrap()
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        async fn stored(&self, name: &str) -> Option<String> {
            let stored = self.store.get(&Key::from(format!("out/{name}"))).await.ok()?;
            Some(String::from_utf8(stored.bytes().await.unwrap().to_vec()).unwrap())
        }
    }

    // A finished file is uploaded while the command runs, and the rest after its end.
    #[tokio::test]
    async fn finished_files_are_uploaded_and_the_rest_at_the_end() {
        let scene = Scene::new();
        let mut synced = scene.start().await;
        scene.write("step-1/weights", "one");
        while scene.stored("step-1/weights").await.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        scene.write("step-2/weights", "two");
        scene.write("step-1/weights", "changed");
        assert!(synced.left().await.unwrap().contains("2 files"));
        synced.finish().await;
        assert_eq!(scene.stored("step-2/weights").await.as_deref(), Some("two"));
        assert_eq!(scene.stored("step-1/weights").await.as_deref(), Some("changed"));
        assert_eq!(synced.left().await, None);
        assert!(synced.summary().starts_with("uploaded 3 files, 13 bytes"), "{}", synced.summary());
    }

    // The next attempt finds the files that earlier attempts have uploaded, and keeps newer files on its disk.
    #[tokio::test]
    async fn earlier_files_are_copied_back() {
        let scene = Scene::new();
        for (name, text) in [("step-1/weights", "one"), ("log", "old")] {
            scene.store.put(&Key::from(format!("out/{name}")), PutPayload::from(text)).await.unwrap();
        }
        scene.write("log", "newer");
        let mut synced = scene.start().await;
        assert_eq!(fs::read_to_string(scene.folder.path().join("step-1/weights")).unwrap(), "one");
        assert_eq!(fs::read_to_string(scene.folder.path().join("log")).unwrap(), "newer");
        assert!(scene.said.lock().unwrap().iter().any(|line| line.contains("1 file, 3 bytes, are there")));
        synced.finish().await;
        assert_eq!(scene.stored("log").await.as_deref(), Some("newer"));
        assert!(synced.summary().starts_with("uploaded 1 file, 5 bytes"), "{}", synced.summary());
    }

    // A script may remove its output folder and make it again. What another user puts in its place is not uploaded.
    #[tokio::test]
    async fn a_folder_that_is_replaced_is_uploaded_only_if_it_is_ours() {
        let (base, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("private"), "secret").unwrap();
        let above = base.path().join("project");
        let out = above.join("out");
        for (mode, stored) in [(0o755, Some("new")), (0o777, None)] {
            let _ = fs::remove_dir_all(&out);
            let scene = Scene::new();
            let mut synced = scene.start_in(&out).await;
            fs::set_permissions(&above, fs::Permissions::from_mode(mode)).unwrap();
            fs::write(out.join("old"), "old").unwrap();
            fs::remove_dir_all(&out).unwrap();
            fs::create_dir(&out).unwrap();
            fs::write(out.join("new"), "new").unwrap();
            synced.finish().await;
            assert_eq!(scene.stored("new").await.as_deref(), stored, "{mode:o}");
            assert_eq!(synced.left().await.is_some(), stored.is_none(), "{mode:o}");
        }
        let (clock, messages) = (Arc::new(SystemClock::new()), MessageSink::new(|_| {}));
        let objects = ResourceObjects::of_test(Arc::new(InMemory::new()), "out");
        let refused = SyncedFolder::start(&out, objects, clock, messages).await.err().unwrap();
        assert!(refused.to_string().contains("it exists, and other users"), "{refused}");
        fs::remove_dir_all(&out).unwrap();
        let scene = Scene::new();
        let mut synced = scene.start_in(&out).await;
        fs::rename(&out, above.join("moved")).unwrap();
        std::os::unix::fs::symlink(outside.path(), &out).unwrap();
        synced.finish().await;
        assert_eq!(scene.stored("private").await, None);
        assert!(synced.left().await.unwrap().contains("another folder is in its place"));
    }

    // If uploads are ended, their files stay behind and are named.
    #[tokio::test]
    async fn what_is_left_behind_is_named() {
        let scene = Scene::new();
        let synced = scene.start().await;
        synced.stop();
        scene.write("x", "1");
        let left = synced.left().await.unwrap();
        assert!(left.starts_with("1 file (1 bytes), such as `x` of "), "{left}");
    }
}
