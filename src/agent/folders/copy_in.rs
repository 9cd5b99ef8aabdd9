//! Copies objects into a folder, with several requests at once. After a broken transfer, a copy goes on after the last byte that
//! arrived.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read, SeekFrom},
    ops::Range,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use ring::digest::{Context, SHA256};
use tokio::{
    io::{AsyncSeekExt, AsyncWriteExt},
    sync::Semaphore,
    task::spawn_blocking,
};

use super::{
    error::FolderError,
    objects::{RemoteObject, ResourceObjects, is_passing, shown},
    own_folder::OwnFolder,
    progress::CopyProgress,
};
use crate::{
    backoff::Backoff,
    clock::Clock,
    limits::{STAGE_CHUNK, STAGE_REQUESTS, STAGE_TRIES},
};

/// The end of the name of a file that is not complete yet.
pub(super) const PART: &str = ".leasehold-part";

/// A copy of some objects into a folder.
pub(super) struct CopyIn<'a> {
    pub(super) objects: &'a ResourceObjects,
    pub(super) folder: &'a OwnFolder,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) progress: &'a CopyProgress,
}

/// An object that is complete in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CopiedObject {
    pub(super) object: RemoteObject,
    /// The SHA-256 of the content, in hexadecimal digits.
    pub(super) sha256: String,
}

impl CopyIn<'_> {
    /// Fails if the disk has too little space for this many bytes.
    pub(super) fn check_room(&self, needed: u64) -> Result<(), FolderError> {
        let stat = nix::sys::statvfs::statvfs(self.folder.inside())
            .map_err(|error| FolderError::disk(self.folder.path(), error.into()))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if needed > free {
            let (path, resource) = (self.folder.path().to_owned(), self.objects.resource.clone());
            return Err(FolderError::NoRoom { path, resource, needed, free });
        }
        Ok(())
    }

    /// Copies these objects. Each file gets its final name when it is complete. Then `done` is called.
    pub(super) async fn copy(
        &self,
        wanted: Vec<RemoteObject>,
        mut done: impl FnMut(CopiedObject) -> Result<(), FolderError>,
    ) -> Result<(), FolderError> {
        let requests = Semaphore::new(STAGE_REQUESTS);
        let mut files = stream::iter(wanted)
            .map(|object| self.copy_object(object, &requests))
            .buffer_unordered(STAGE_REQUESTS);
        while let Some(copied) = files.next().await {
            done(copied?)?;
        }
        Ok(())
    }

    async fn copy_object(
        &self,
        object: RemoteObject,
        requests: &Semaphore,
    ) -> Result<CopiedObject, FolderError> {
        self.objects.key(&object.name).map_err(|why| self.objects.fault(&object.name, why))?;
        let target = self.folder.inside().join(&object.name);
        let part = part_of(&target);
        let shown_target = self.folder.shown(&target);
        let failed = |error| FolderError::disk(&shown_target, error);
        make_file(self.folder.inside(), &part, object.size).map_err(failed)?;
        let chunks = stream::iter(chunks_of(object.size)).map(Ok::<_, FolderError>);
        chunks
            .try_for_each_concurrent(STAGE_REQUESTS, |range| self.copy_chunk(&object, &part, range, requests))
            .await?;
        let sha256 = in_background({
            let (part, target) = (part.clone(), target.clone());
            move || {
                let sha256 = sha256_of(&part)?;
                fs::rename(&part, &target).map(|()| sha256)
            }
        })
        .await
        .map_err(failed)?;
        Ok(CopiedObject { object, sha256 })
    }

    /// Copies a range of an object. Goes on after a broken transfer. Fails after [`STAGE_TRIES`] tries in a row that brought no
    /// byte, or if a retry cannot help.
    async fn copy_chunk(
        &self,
        object: &RemoteObject,
        part: &Path,
        range: Range<u64>,
        requests: &Semaphore,
    ) -> Result<(), FolderError> {
        let _turn = requests.acquire().await;
        let shown_part = self.folder.shown(part);
        let failed = |error| FolderError::disk(&shown_part, error);
        let mut file = tokio::fs::OpenOptions::new().write(true).open(part).await.map_err(failed)?;
        file.seek(SeekFrom::Start(range.start)).await.map_err(failed)?;
        let (mut left, mut backoff, mut tries) = (range, Backoff::default(), 0_u32);
        while !left.is_empty() {
            let before = left.start;
            let why = match self.read_on(object, &mut left, &mut file).await {
                Ok(()) => continue,
                Err(Broken::Disk(error)) => return Err(failed(error)),
                Err(Broken::Store(why)) => why,
            };
            tries = if left.start > before { 0 } else { tries.saturating_add(1) };
            if !is_passing(&why) || tries >= STAGE_TRIES {
                return Err(self.objects.fault(&object.name, shown(&why)));
            }
            tracing::debug!(object = object.name, at = left.start, %why, "a copy goes on after a broken transfer");
            self.clock.sleep(backoff.next_wait()).await;
        }
        file.flush().await.map_err(failed)
    }

    /// Writes the bytes that arrive to the file, and shortens the range that is left.
    async fn read_on(
        &self,
        object: &RemoteObject,
        left: &mut Range<u64>,
        file: &mut tokio::fs::File,
    ) -> Result<(), Broken> {
        let mut pieces = self.objects.read(object, left.clone()).await?;
        while let Some(bytes) = pieces.try_next().await? {
            let after = left.start.saturating_add(bytes.len() as u64);
            if after > left.end {
                return Err(broken("the object is longer than its size in the listing").into());
            }
            file.write_all(&bytes).await.map_err(Broken::Disk)?;
            left.start = after;
            self.progress.add(bytes.len() as u64);
        }
        if left.is_empty() { Ok(()) } else { Err(broken("the transfer ended before its last byte").into()) }
    }
}

/// Why a transfer stopped.
#[derive(Debug)]
enum Broken {
    Store(object_store::Error),
    Disk(io::Error),
}

impl From<object_store::Error> for Broken {
    fn from(error: object_store::Error) -> Self {
        Broken::Store(error)
    }
}

fn broken(why: &'static str) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: why.into() }
}

/// Splits an object into the ranges that are requested one by one.
fn chunks_of(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(STAGE_CHUNK)).map(move |n| {
        let start = n.saturating_mul(STAGE_CHUNK);
        start..start.saturating_add(STAGE_CHUNK).min(size)
    })
}

/// Returns the name of a file until it is complete.
pub(super) fn part_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(PART);
    name.into()
}

/// Makes a file of this size that only its owner can read, and its parent folders. Does not follow links.
fn make_file(root: &Path, path: &Path, size: u64) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_folders(root, parent)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.set_len(size)
}

/// Makes the folders from an existing root down to this folder. Fails if a link or a file has the name of one of them.
fn make_folders(root: &Path, folder: &Path) -> io::Result<()> {
    let mut path = root.to_owned();
    for part in folder.strip_prefix(root).unwrap_or(Path::new("")).components() {
        path.push(part);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&path)?.is_dir() {
                    return Err(io::Error::other("a file or a link is in the place of a folder"));
                }
            }
            made => made?,
        }
    }
    Ok(())
}

/// Returns the SHA-256 of a file, in hexadecimal digits.
pub(super) fn sha256_of(path: &Path) -> io::Result<String> {
    let (mut file, mut digest) = (fs::File::open(path)?, Context::new(&SHA256));
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        digest.update(buffer.get(..read).unwrap_or_default());
    }
}

/// Runs blocking work on another thread.
pub(super) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, sync::Mutex};

    use object_store::{ObjectStoreExt, PutPayload, path::Path as Key};

    use super::*;
    use crate::{agent::folders::testing::BreakingStore, clock::SystemClock};

    /// Makes a resource with these objects. Each transfer of more than 1 MiB breaks before its end.
    async fn objects(content: &[(&str, Vec<u8>)]) -> ResourceObjects {
        let store = BreakingStore::default();
        for (name, bytes) in content {
            store.put(&Key::from(format!("m/{name}")), PutPayload::from(bytes.clone())).await.unwrap();
        }
        ResourceObjects::of_test(Arc::new(store), "m")
    }

    // Files of several chunks and empty files arrive whole, although each transfer breaks. Each file has its name only when it
    // is complete.
    #[tokio::test]
    async fn objects_are_copied_whole() {
        let large: Vec<u8> = (0..2 * STAGE_CHUNK + 7).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let objects = objects(&[("a/b/large", large.clone()), ("empty", Vec::new())]).await;
        let folder = tempfile::tempdir().unwrap();
        let (clock, progress): (Arc<dyn Clock>, _) = (Arc::new(SystemClock::new()), CopyProgress::new(0));
        let own = OwnFolder::open(folder.path()).unwrap();
        let copy = CopyIn { objects: &objects, folder: &own, clock: &clock, progress: &progress };
        let done = Mutex::new(Vec::new());
        let listed = objects.list().await.unwrap();
        copy.check_room(large.len() as u64).unwrap();
        copy.copy(listed, |copied| {
            done.lock().unwrap().push(copied);
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(fs::read(folder.path().join("a/b/large")).unwrap(), large);
        assert_eq!(fs::read(folder.path().join("empty")).unwrap(), b"");
        assert!(!folder.path().join("a/b/large.leasehold-part").exists());
        let mode = fs::metadata(folder.path().join("a/b/large")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let mut done = done.into_inner().unwrap();
        done.sort_by(|a, b| a.object.name.cmp(&b.object.name));
        assert_eq!(done.len(), 2);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(done[1].sha256, empty);
        assert!(matches!(copy.check_room(u64::MAX), Err(FolderError::NoRoom { .. })));
    }

    // If an object changes after it was listed, its new bytes are not mixed with its old bytes.
    #[tokio::test]
    async fn an_object_that_changes_is_not_copied() {
        let objects = objects(&[("x", vec![1; 10])]).await;
        let listed = objects.list().await.unwrap();
        objects.store.put(&Key::from("m/x"), PutPayload::from(vec![2; 10])).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (clock, progress): (Arc<dyn Clock>, _) = (Arc::new(SystemClock::new()), CopyProgress::new(0));
        let own = OwnFolder::open(folder.path()).unwrap();
        let copy = CopyIn { objects: &objects, folder: &own, clock: &clock, progress: &progress };
        let error = copy.copy(listed, |_| Ok(())).await.unwrap_err();
        assert!(error.to_string().contains("it was changed"), "{error}");
        assert!(!folder.path().join("x").exists());
    }

    // A link in the folder does not lead a copy out of the folder.
    #[tokio::test]
    async fn a_copy_follows_no_link() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), folder.path().join("a")).unwrap();
        let error = make_file(folder.path(), &folder.path().join("a/x.leasehold-part"), 1).unwrap_err();
        assert!(error.to_string().contains("a link"), "{error}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
