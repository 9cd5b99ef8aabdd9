//! A store in a directory of this machine. Work on the disk runs on a bounded number of threads that may block.

use std::{
    collections::hash_map::DefaultHasher,
    fs::File,
    hash::{Hash, Hasher},
    io,
    os::fd::AsFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use nix::{errno::Errno, unistd::Whence, unistd::lseek};
use s3s::dto;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    conditions::Conditions,
    directory_upload::{DirectoryParts, DirectoryUpload},
    folder::{Missing, OpenFolder},
    key::{ObjectPath, STAGING, SubKey},
    list_work::ListWork,
    listing::ListQuery,
    store::{Entries, FinalCheck, ObjectInfo, ObjectReading, StoreError},
    walk,
};
use crate::limits::{GATEWAY_CHUNK, GATEWAY_DISK_WORK_MAX, GATEWAY_WALKS_MAX};

/// A directory, and the bound on work in it. A clone is a few pointers.
#[derive(Clone, Debug)]
pub(super) struct DirectoryStore {
    root: Arc<PathBuf>,
    work: Arc<Semaphore>,
    /// Permits for listings. A listing also takes a permit of `work`, so that listings leave permits to reads and
    /// writes.
    walks: Arc<Semaphore>,
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
            walks: Arc::new(Semaphore::new(GATEWAY_WALKS_MAX)),
            names: Arc::new(std::array::from_fn(|_| Mutex::new(()))),
        }
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
        let (store, path, conditions) = (self.clone(), path.clone(), conditions.clone());
        let (file, info, range) = self
            .run(move || {
                let (parent, name) = store.open_parent(&path, Missing::Fails).map_err(absent)?;
                if path.key.is_folder() {
                    let marked = parent.enter(name, Missing::Fails).map_err(absent)?;
                    let info = marked.own_info()?;
                    conditions.check_read(&info)?;
                    return Ok((None, info, 0..0));
                }
                let (file, info) = parent.file(name).map_err(absent)?;
                conditions.check_read(&info)?;
                let range = match range {
                    None => 0..info.size,
                    Some(range) => range.check(info.size).map_err(|_| StoreError::Range(info.size))?,
                };
                if range.start > 0 {
                    let start = i64::try_from(range.start).map_err(|_| StoreError::Range(info.size))?;
                    lseek(file.as_fd(), start, Whence::SeekSet).map_err(io::Error::from)?;
                }
                Ok((Some(file), info, range))
            })
            .await?;
        let left = range.end.saturating_sub(range.start);
        let chunks = match file {
            None => stream::empty().boxed(),
            Some(file) => self.clone().chunks(file, left),
        };
        Ok(ObjectReading { info, range, chunks })
    }

    /// Streams the next bytes of a file.
    fn chunks(self, file: File, left: u64) -> stream::BoxStream<'static, Result<Bytes, StoreError>> {
        let state = (self, Arc::new(file), left);
        stream::try_unfold(state, |(store, file, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let (reader, most) = (file.clone(), left.min(GATEWAY_CHUNK));
            let chunk = store.run(move || read_chunk(&reader, most)).await?;
            let left = left.saturating_sub(chunk.len() as u64);
            Ok(Some((chunk, (store, file, left))))
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
        let walk = self.walks.clone().acquire_owned().await.map_err(io::Error::other)?;
        let gone = CancellationToken::new();
        let _client = gone.clone().drop_guard();
        self.run(move || {
            // The walk keeps its permit until it ends, also if its client disconnects.
            let _walk = walk;
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
            walk::list(open, &query, &go_on)
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

/// Reads the next bytes of a file into uninitialized memory.
fn read_chunk(file: &File, most: u64) -> Result<Bytes, StoreError> {
    use io::Read;
    let mut chunk = Vec::with_capacity(usize::try_from(most).unwrap_or(usize::MAX));
    let read = file.take(most).read_to_end(&mut chunk)?;
    if read == 0 { Err(StoreError::Changed) } else { Ok(Bytes::from(chunk)) }
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
