//! Uploads into a directory. Temporary files in the staging folder are moved to their names when they are complete.

use std::{fs::File, io, io::Write, sync::Arc};

use bytes::Bytes;
use nix::errno::Errno;
use tokio::task::JoinHandle;

use super::{
    conditions::Conditions,
    directory::{DirectoryStore, absent, errno, in_the_way},
    folder::{Existing, Missing, OpenFolder},
    key::ObjectPath,
    store::{FinalCheck, ObjectInfo, StoreError},
    upload::StoredPart,
};
use crate::{
    limits::{GATEWAY_CHUNK, GATEWAY_JOIN_STEP, GATEWAY_SYNC_STEP},
    secret::random_u128,
};

/// An upload into a temporary file. The file is removed if the upload is dropped before it is published.
#[derive(Debug)]
pub(super) struct DirectoryUpload {
    store: DirectoryStore,
    path: ObjectPath,
    temporary: Arc<TemporaryFile>,
    /// Received bytes that are not written yet.
    waiting: Vec<Bytes>,
    waiting_bytes: u64,
    /// The number of bytes that were written since the last sync began, and the number at which the next sync begins. Parts are
    /// never synced, because their bytes are copied into the file of the object, which is synced.
    unsynced: u64,
    unsynced_max: u64,
    /// The sync of earlier bytes, if one was begun.
    syncing: Option<JoinHandle<Result<(), StoreError>>>,
}

/// A file in the staging folder.
#[derive(Debug)]
struct TemporaryFile {
    staging: OpenFolder,
    name: String,
    file: File,
}

/// The file is removed, unless it was moved to its name.
impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Err(error) = self.staging.remove_file(&self.name)
            && errno(&error) != Some(Errno::ENOENT)
        {
            tracing::error!(%error, "an unfinished upload could not be removed");
        }
    }
}

impl TemporaryFile {
    fn create(staging: OpenFolder) -> Result<Self, StoreError> {
        let name = format!("{:032x}", random_u128().map_err(io::Error::other)?);
        let file = staging.create(&name).map_err(in_the_way)?;
        Ok(TemporaryFile { staging, name, file })
    }

    fn write(&self, waiting: Vec<Bytes>) -> Result<(), StoreError> {
        let mut file = &self.file;
        for bytes in waiting {
            file.write_all(&bytes).map_err(in_the_way)?;
        }
        Ok(())
    }
}

impl DirectoryUpload {
    pub(super) async fn begin(store: DirectoryStore, path: ObjectPath) -> Result<Self, StoreError> {
        let (opener, staged) = (store.clone(), store.clone());
        let temporary =
            opener.run(move || TemporaryFile::create(staged.open_staging().map_err(in_the_way)?)).await?;
        Ok(Self::into_file(store, path, temporary, GATEWAY_SYNC_STEP))
    }

    fn into_file(
        store: DirectoryStore,
        path: ObjectPath,
        temporary: TemporaryFile,
        unsynced_max: u64,
    ) -> Self {
        DirectoryUpload {
            store,
            path,
            temporary: Arc::new(temporary),
            waiting: Vec::new(),
            waiting_bytes: 0,
            unsynced: 0,
            unsynced_max,
            syncing: None,
        }
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes.len() as u64);
        self.waiting.push(bytes);
        if self.waiting_bytes >= GATEWAY_CHUNK { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), StoreError> {
        let (temporary, waiting) = (self.temporary.clone(), std::mem::take(&mut self.waiting));
        self.unsynced = self.unsynced.saturating_add(std::mem::take(&mut self.waiting_bytes));
        self.store.run(move || temporary.write(waiting)).await?;
        if self.unsynced >= self.unsynced_max { self.begin_sync().await } else { Ok(()) }
    }

    /// Begins a sync of the written bytes, which goes on while more bytes arrive. So the end of a large upload waits only for
    /// the last bytes. An error of the previous sync ends the upload, because the system reports each error only once.
    async fn begin_sync(&mut self) -> Result<(), StoreError> {
        self.end_sync().await?;
        self.unsynced = 0;
        let (store, temporary) = (self.store.clone(), self.temporary.clone());
        let sync = async move { store.run(move || Ok(temporary.file.sync_data()?)).await };
        self.syncing = Some(tokio::spawn(sync));
        Ok(())
    }

    /// Waits for the sync that was begun last.
    async fn end_sync(&mut self) -> Result<(), StoreError> {
        match self.syncing.take() {
            Some(syncing) => syncing.await.map_err(io::Error::other)?,
            None => Ok(()),
        }
    }

    pub(super) async fn publish(
        mut self,
        conditions: &Conditions,
        final_check: FinalCheck,
    ) -> Result<ObjectInfo, StoreError> {
        self.flush().await?;
        self.end_sync().await?;
        let conditions = conditions.clone();
        let DirectoryUpload { store, path, temporary, .. } = self;
        store
            .clone()
            .run(move || {
                temporary.file.sync_all()?;
                let target = UploadTarget { store: &store, path: &path, conditions: &conditions };
                target.move_in(&temporary.staging, &temporary.name, &final_check)
            })
            .await
    }
}

/// The final name of an upload.
struct UploadTarget<'a> {
    store: &'a DirectoryStore,
    path: &'a ObjectPath,
    conditions: &'a Conditions,
}

impl UploadTarget<'_> {
    /// Moves a complete file to its name. Blocks.
    fn move_in(
        &self,
        from: &OpenFolder,
        name: &str,
        final_check: &FinalCheck,
    ) -> Result<ObjectInfo, StoreError> {
        final_check().map_err(StoreError::Ended)?;
        let _turn = self.store.lock_name(self.path);
        let (parent, last) = self.store.open_parent(self.path, Missing::IsMade).map_err(in_the_way)?;
        let present = match parent.info(last).map_err(absent) {
            Ok(info) => Some(info),
            Err(StoreError::NotFound) => None,
            Err(error) => return Err(error),
        };
        self.conditions.check_write(present.as_ref())?;
        final_check().map_err(StoreError::Ended)?;
        let existing = if self.conditions.must_be_new() { Existing::Fails } else { Existing::IsReplaced };
        from.move_file(name, &parent, last, existing).map_err(in_the_way)?;
        parent.info(last).map_err(absent)
    }
}

/// A folder of parts in the staging folder.
#[derive(Debug)]
pub(super) struct DirectoryParts {
    store: DirectoryStore,
    path: ObjectPath,
    name: String,
}

impl DirectoryParts {
    pub(super) async fn begin(store: DirectoryStore, path: ObjectPath) -> Result<Self, StoreError> {
        let name = format!("parts-{:032x}", random_u128().map_err(io::Error::other)?);
        let parts = DirectoryParts { store, path, name };
        let (store, name) = (parts.store.clone(), parts.name.clone());
        let maker = parts.store.clone();
        maker
            .run(move || {
                let staging = store.open_staging().map_err(in_the_way)?;
                staging.enter(&name, Missing::IsMade).map(drop).map_err(in_the_way)
            })
            .await?;
        Ok(parts)
    }

    fn open(store: &DirectoryStore, name: &str) -> io::Result<OpenFolder> {
        store.open_staging()?.enter(name, Missing::Fails)
    }

    pub(super) async fn begin_part(&self) -> Result<DirectoryUpload, StoreError> {
        let (store, name) = (self.store.clone(), self.name.clone());
        let temporary =
            self.store.run(move || TemporaryFile::create(Self::open(&store, &name).map_err(absent)?)).await?;
        Ok(DirectoryUpload::into_file(self.store.clone(), self.path.clone(), temporary, u64::MAX))
    }

    pub(super) async fn store_part(
        &self,
        number: u16,
        mut upload: DirectoryUpload,
    ) -> Result<StoredPart, StoreError> {
        upload.flush().await?;
        let temporary = upload.temporary;
        self.store
            .run(move || {
                let (staging, name) = (&temporary.staging, part_name(number));
                staging
                    .move_file(&temporary.name, staging, &name, Existing::IsReplaced)
                    .map_err(in_the_way)?;
                let info = staging.info(&name)?;
                Ok(StoredPart { size: info.size, e_tag: info.e_tag })
            })
            .await
    }

    pub(super) async fn complete(
        &self,
        wanted: &[(u16, StoredPart)],
        conditions: &Conditions,
        final_check: FinalCheck,
    ) -> Result<ObjectInfo, StoreError> {
        let (store, path, name) = (self.store.clone(), self.path.clone(), self.name.clone());
        let (conditions, wanted) = (conditions.clone(), wanted.to_vec());
        self.store
            .run(move || {
                let whole = TemporaryFile::create(Self::open(&store, &name).map_err(absent)?)?;
                join(&whole, &wanted, &final_check)?;
                let target = UploadTarget { store: &store, path: &path, conditions: &conditions };
                target.move_in(&whole.staging, &whole.name, &final_check)
            })
            .await
    }

    pub(super) async fn remove(&self) -> Result<(), StoreError> {
        let (store, name) = (self.store.clone(), self.name.clone());
        self.store
            .run(move || {
                let staging = store.open_staging()?;
                match staging.enter(&name, Missing::Fails).map_err(absent) {
                    Ok(parts) => parts.clear()?,
                    Err(StoreError::NotFound) => return Ok(()),
                    Err(error) => return Err(error),
                }
                Ok(staging.remove_folder(&name)?)
            })
            .await
    }
}

fn part_name(number: u16) -> String {
    format!("{number:05}")
}

/// Copies parts into a new file that only this request uses. Checks that the parts are unchanged since they were
/// stored. Blocks.
fn join(
    whole: &TemporaryFile,
    wanted: &[(u16, StoredPart)],
    final_check: &FinalCheck,
) -> Result<(), StoreError> {
    use io::Read;
    let mut file = &whole.file;
    let mut total = 0u64;
    for (number, noted) in wanted {
        let (part, found) = whole.staging.file(&part_name(*number)).map_err(absent)?;
        if found.e_tag != noted.e_tag {
            return Err(StoreError::Changed);
        }
        total = total.saturating_add(noted.size);
        let mut left = noted.size;
        while left > 0 {
            final_check().map_err(StoreError::Ended)?;
            let mut step = (&part).take(left.min(GATEWAY_JOIN_STEP));
            let copied = io::copy(&mut step, &mut file).map_err(in_the_way)?;
            if copied == 0 {
                return Err(StoreError::Changed);
            }
            left = left.saturating_sub(copied);
        }
    }
    file.sync_all()?;
    if file.metadata()?.len() == total { Ok(()) } else { Err(StoreError::Changed) }
}
