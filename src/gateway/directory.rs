//! A store in a directory of this machine. Work on the disk runs on a bounded number of threads that may block.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    io,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use nix::errno::Errno;
use s3s::dto;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    cached_open::LocalDevices,
    conditions::Conditions,
    directory_upload::{DirectoryParts, DirectoryUpload},
    file_chunks::FileChunks,
    folder::{Missing, OpenFolder},
    key::{ObjectPath, STAGING, SubKey},
    list_work::ListWork,
    listing::ListQuery,
    store::{Entries, FinalCheck, ObjectInfo, ObjectReading, StoreError},
    walk::{self, WalkBounds},
    walk_turns::WalkTurns,
};
use crate::limits::{GATEWAY_DISK_WORK_MAX, GATEWAY_WALK_NAMES_BYTES};

/// A directory, and the bound on work in it. A clone is a few pointers.
#[derive(Clone, Debug)]
pub(super) struct DirectoryStore {
    root: Arc<PathBuf>,
    work: Arc<Semaphore>,
    /// The turns of listings. A listing needs a turn, and then a permit of `work`. There are fewer turns than permits, so reads
    /// and writes can get a permit too.
    walks: WalkTurns,
    local: Arc<LocalDevices>,
    /// Each name has one of these locks. The request that holds the lock may check and change the name.
    names: Arc<[Mutex<()>; NAME_LOCKS]>,
}

const NAME_LOCKS: usize = 64;

impl DirectoryStore {
    /// Makes a store in a directory. Does not open the directory.
    pub(super) fn new(root: PathBuf) -> Self {
        DirectoryStore {
            root: Arc::new(root),
            work: Arc::new(Semaphore::new(GATEWAY_DISK_WORK_MAX)),
            walks: WalkTurns::default(),
            local: Arc::default(),
            names: Arc::new(std::array::from_fn(|_| Mutex::new(()))),
        }
    }

    /// Makes the listings of this directory share their turns with the listings of other directories.
    #[must_use]
    pub(super) fn sharing_walks(self, all: &WalkTurns) -> Self {
        DirectoryStore { walks: all.in_one_more_directory(), ..self }
    }

    /// Waits for a permit, and runs work on a thread that may block. The work keeps the permit until it ends, even if
    /// its caller is dropped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self.work.clone().acquire_owned().await.map_err(io::Error::other)?;
        let turned = move || {
            let done = work();
            drop(turn);
            done
        };
        tokio::task::spawn_blocking(turned).await.map_err(io::Error::other)?
    }

    /// Locks a name, so that other requests cannot change it between a check and the change. Blocks.
    pub(super) fn lock_name(&self, path: &ObjectPath) -> Option<MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        (&path.folder, path.key.as_str()).hash(&mut hasher);
        let at = usize::try_from(hasher.finish().checked_rem(NAME_LOCKS as u64)?).ok()?;
        Some(self.names.get(at)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens the folder of a location. Blocks.
    pub(super) fn open_location(&self, folder: &str, missing: Missing) -> io::Result<OpenFolder> {
        let mut open = OpenFolder::root(&self.root)?;
        for name in folder.split('/').filter(|name| !name.is_empty()) {
            open = open.enter_location(name, missing)?;
        }
        Ok(open)
    }

    /// Opens the folder of a key, and returns the last name of the key. Blocks.
    pub(super) fn open_parent<'a>(
        &self,
        path: &'a ObjectPath,
        missing: Missing,
    ) -> io::Result<(OpenFolder, &'a str)> {
        let mut open = self.open_location(&path.folder, missing)?;
        let key = path.key.as_str();
        let (parents, name) = key.rsplit_once('/').unwrap_or(("", key));
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            open = open.enter(parent, missing)?;
        }
        Ok((open, name))
    }

    /// Opens the staging folder. Blocks.
    pub(super) fn open_staging(&self) -> io::Result<OpenFolder> {
        OpenFolder::root(&self.root)?.enter(STAGING, Missing::IsMade)
    }

    pub(super) async fn head(&self, path: &ObjectPath) -> Result<ObjectInfo, StoreError> {
        let (store, path) = (self.clone(), path.clone());
        self.run(move || {
            let (parent, name) = store.open_parent(&path, Missing::Fails).map_err(absent)?;
            if path.key.is_folder() {
                let marked = parent.enter(name, Missing::Fails).map_err(absent)?;
                return Ok(marked.own_info()?);
            }
            parent.info(name).map_err(absent)
        })
        .await
    }

    pub(super) async fn read(
        &self,
        path: &ObjectPath,
        range: Option<dto::Range>,
        conditions: &Conditions,
    ) -> Result<ObjectReading, StoreError> {
        if let Some(reading) = self.read_memory(path, range.as_ref(), conditions) {
            return Ok(reading);
        }
        let (store, path, conditions) = (self.clone(), path.clone(), conditions.clone());
        let (info, range, first, rest) = self
            .run(move || {
                let (parent, name) = store.open_parent(&path, Missing::Fails).map_err(absent)?;
                if path.key.is_folder() {
                    let marked = parent.enter(name, Missing::Fails).map_err(absent)?;
                    let info = marked.own_info()?;
                    conditions.check_read(&info)?;
                    return Ok((info, 0..0, None, None));
                }
                store.local.learn(&parent);
                let (file, info) = parent.file(name).map_err(absent)?;
                conditions.check_read(&info)?;
                let range = range_of(range.as_ref(), &info)?;
                let mut rest = FileChunks::new(file, range.clone());
                // Most ranges that clients read are one chunk, which needs no second permit.
                let first = if rest.is_over() { None } else { Some(rest.read()?) };
                Ok((info, range, first, Some(rest)))
            })
            .await?;
        Ok(self.reading(info, range, first, rest))
    }

    /// Opens an object and reads its first bytes at once, without a thread that may block. Returns `None` if the system does not
    /// have them in memory, or if the request must be refused. Then the caller reads on a thread that may block, and refuses
    /// there.
    fn read_memory(
        &self,
        path: &ObjectPath,
        range: Option<&dto::Range>,
        conditions: &Conditions,
    ) -> Option<ObjectReading> {
        if path.key.is_folder() {
            return None;
        }
        let (file, info) = self.local.open(&self.root, &path.folder, path.key.as_str())?;
        conditions.check_read(&info).ok()?;
        let range = range_of(range, &info).ok()?;
        let mut rest = FileChunks::new(file, range.clone());
        let first = if rest.is_over() { None } else { Some(rest.read_memory()?) };
        Some(self.reading(info, range, first, Some(rest)))
    }

    fn reading(
        &self,
        info: ObjectInfo,
        range: Range<u64>,
        first: Option<Bytes>,
        rest: Option<FileChunks>,
    ) -> ObjectReading {
        let rest = rest.filter(|rest| !rest.is_over());
        let rest = rest.map_or_else(|| stream::empty().boxed(), |rest| self.clone().chunks(rest));
        let chunks = stream::iter(first.map(Ok)).chain(rest).boxed();
        ObjectReading { info, range, chunks }
    }

    /// Streams the next bytes of a file. What the system has in memory is read at once, and anything else by a thread that may
    /// block.
    fn chunks(self, file: FileChunks) -> stream::BoxStream<'static, Result<Bytes, StoreError>> {
        stream::try_unfold((self, file), |(store, mut file)| async move {
            if file.is_over() {
                return Ok(None);
            }
            if let Some(chunk) = file.read_memory() {
                // Lets other tasks run between two chunks, above all the task that follows the fence feed.
                tokio::task::yield_now().await;
                return Ok(Some((chunk, (store, file))));
            }
            let read = move || {
                let chunk = file.read()?;
                Ok((chunk, file))
            };
            let (chunk, file) = store.run(read).await?;
            Ok(Some((chunk, (store, file))))
        })
        .boxed()
    }

    pub(super) async fn list(
        &self,
        folder: &str,
        query: &ListQuery,
        work: &ListWork,
    ) -> Result<Entries, StoreError> {
        let (store, folder, query, work) = (self.clone(), folder.to_owned(), query.clone(), work.clone());
        let permit = self.walks.take(&work).await?;
        let gone = CancellationToken::new();
        let _client = gone.clone().drop_guard();
        self.run(move || {
            // The listing keeps its turn until the walk ends, even if the client disconnects.
            let _permit = permit;
            // A job that has not written yet has no folder.
            let open = match store.open_location(&folder, Missing::Fails).map_err(absent) {
                Ok(open) => open,
                Err(StoreError::NotFound) => return Ok(Entries { is_complete: true, ..Entries::default() }),
                Err(error) => return Err(error),
            };
            let go_on = |entries| match gone.is_cancelled() {
                true => Err(io::Error::other("the client of a listing disconnected").into()),
                false => work.visit(entries),
            };
            let bounds = WalkBounds { go_on: &go_on, name_bytes: GATEWAY_WALK_NAMES_BYTES };
            walk::list(open, &query, bounds)
        })
        .await
    }

    pub(super) async fn begin(&self, path: &ObjectPath) -> Result<DirectoryUpload, StoreError> {
        DirectoryUpload::begin(self.clone(), path.clone()).await
    }

    pub(super) async fn begin_parts(&self, path: &ObjectPath) -> Result<DirectoryParts, StoreError> {
        DirectoryParts::begin(self.clone(), path.clone()).await
    }

    pub(super) async fn delete(&self, path: &ObjectPath, final_check: FinalCheck) -> Result<(), StoreError> {
        let (store, path) = (self.clone(), path.clone());
        self.run(move || {
            let _turn = store.lock_name(&path);
            final_check().map_err(StoreError::Ended)?;
            match store.delete_now(&path).map_err(absent) {
                Err(StoreError::NotFound) => Ok(()),
                deleted => deleted,
            }
        })
        .await
    }

    /// Removes a file. Then removes the empty folders above the file, up to the folder of the location.
    fn delete_now(&self, path: &ObjectPath) -> io::Result<()> {
        let (parent, name) = self.open_parent(path, Missing::Fails)?;
        if path.key.is_folder() {
            return match parent.remove_folder(name) {
                // Keys below a marked folder stay when its mark is removed.
                Err(error) if matches!(errno(&error), Some(Errno::ENOTEMPTY | Errno::EEXIST)) => Ok(()),
                removed => removed,
            };
        }
        parent.remove_file(name)?;
        let mut emptied = path.clone();
        while let Some((above, _)) = emptied.key.as_str().rsplit_once('/') {
            let Ok(key) = SubKey::parse(above) else { break };
            emptied.key = key;
            let Ok((parent, name)) = self.open_parent(&emptied, Missing::Fails) else { break };
            if parent.remove_folder(name).is_err() {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn make_folder(
        &self,
        path: &ObjectPath,
        final_check: FinalCheck,
    ) -> Result<ObjectInfo, StoreError> {
        let (store, path) = (self.clone(), path.clone());
        self.run(move || {
            final_check().map_err(StoreError::Ended)?;
            let (parent, name) = store.open_parent(&path, Missing::IsMade).map_err(in_the_way)?;
            Ok(parent.enter(name, Missing::IsMade).map_err(in_the_way)?.own_info()?)
        })
        .await
    }

    pub(super) async fn clear_staging(&self) -> Result<(), StoreError> {
        let store = self.clone();
        self.run(move || match OpenFolder::root(&store.root)?.enter(STAGING, Missing::Fails) {
            Ok(staging) => Ok(staging.clear()?),
            Err(error) => match absent(error) {
                StoreError::NotFound => Ok(()),
                error => Err(error),
            },
        })
        .await
    }
}

/// Returns the bytes of an object that a request asks for.
fn range_of(range: Option<&dto::Range>, info: &ObjectInfo) -> Result<Range<u64>, StoreError> {
    let Some(range) = range else { return Ok(0..info.size) };
    range.check(info.size).map_err(|_| StoreError::Range(info.size))
}

pub(super) fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// Converts the error of a look-up. Links, devices and other file systems are not served, so they count as absent.
pub(super) fn absent(error: io::Error) -> StoreError {
    match errno(&error) {
        Some(
            Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::ELOOP
            | Errno::ENXIO
            | Errno::EXDEV
            | Errno::EISDIR
            | Errno::ENAMETOOLONG,
        ) => StoreError::NotFound,
        _ => error.into(),
    }
}

/// Converts the error of a write.
pub(super) fn in_the_way(error: io::Error) -> StoreError {
    match errno(&error) {
        Some(Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => StoreError::ObjectInTheWay,
        Some(Errno::EISDIR | Errno::ENOTEMPTY) => StoreError::FolderInTheWay,
        Some(Errno::EEXIST) => StoreError::Precondition,
        Some(Errno::ENOSPC | Errno::EDQUOT) => StoreError::Unavailable("the store is full".to_owned()),
        _ => error.into(),
    }
}
