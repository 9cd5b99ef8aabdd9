//! The upload of one file, which becomes visible only as a whole.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use nix::fcntl::OFlag;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart, path::Path as Key};

use super::{
    changes::{FileStamp, FoundFile},
    copy_in::in_background,
    objects::{ResourceObjects, is_passing, shown},
};
use crate::limits::{SYNC_PART, SYNC_PARTS_MAX};

/// The result of an upload.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Uploaded {
    Whole,
    /// The file was changed or removed meanwhile. No part of it is visible.
    Changed,
    /// The upload failed, and may work later.
    Failed(String),
    /// The upload was refused, and cannot work later.
    Refused(String),
}

/// Why an upload stopped.
#[derive(Debug)]
enum Stop {
    Changed,
    Disk(io::Error),
    Store(object_store::Error),
}

impl From<object_store::Error> for Stop {
    fn from(error: object_store::Error) -> Self {
        Stop::Store(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Stop::Changed,
            _ => Stop::Disk(error),
        }
    }
}

/// Uploads a file of this folder.
pub(super) async fn upload(objects: &ResourceObjects, folder: &Path, file: &FoundFile) -> Uploaded {
    let (name, stamp) = file;
    let key = match objects.key(name) {
        Ok(key) => key,
        Err(why) => return Uploaded::Refused(why),
    };
    match send(&objects.store, &key, &folder.join(name), *stamp).await {
        Ok(()) => Uploaded::Whole,
        Err(Stop::Changed) => Uploaded::Changed,
        Err(Stop::Disk(error)) => Uploaded::Failed(error.to_string()),
        Err(Stop::Store(error)) if is_passing(&error) => Uploaded::Failed(shown(&error)),
        Err(Stop::Store(error)) => Uploaded::Refused(shown(&error)),
    }
}

async fn send(store: &Arc<dyn ObjectStore>, key: &Key, path: &Path, stamp: FileStamp) -> Result<(), Stop> {
    let opening = path.to_owned();
    let file = Arc::new(in_background(move || open(&opening)).await?);
    check_unchanged(&file, stamp)?;
    let part = stamp.size.div_ceil(SYNC_PARTS_MAX).max(SYNC_PART);
    if stamp.size <= part {
        let whole = read_part(&file, part).await?;
        if whole.len() as u64 != stamp.size {
            return Err(Stop::Changed);
        }
        check_unchanged(&file, stamp)?;
        store.put(key, PutPayload::from(whole)).await?;
        return Ok(());
    }
    let upload = store.put_multipart(key).await?;
    let mut parts = WriteMultipart::new_with_chunk_size(upload, usize::try_from(part).unwrap_or(usize::MAX));
    match send_parts(&mut parts, &file, stamp, part).await {
        Ok(()) => parts.finish().await.map(drop).map_err(Stop::from),
        Err(stop) => {
            // If this fails too, the gateway removes the parts after some time without use.
            let _ = parts.abort().await;
            Err(stop)
        }
    }
}

async fn send_parts(
    parts: &mut WriteMultipart,
    file: &Arc<File>,
    stamp: FileStamp,
    part: u64,
) -> Result<(), Stop> {
    let mut sent = 0_u64;
    loop {
        parts.wait_for_capacity(1).await?;
        let piece = read_part(file, part).await?;
        if piece.is_empty() {
            break;
        }
        sent = sent.saturating_add(piece.len() as u64);
        parts.put(piece.into());
    }
    // Check the file once more before the object becomes visible.
    if sent == stamp.size { check_unchanged(file, stamp) } else { Err(Stop::Changed) }
}

/// Opens a file, unless it is a link. Does not wait for the writer of a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

fn check_unchanged(file: &File, stamp: FileStamp) -> Result<(), Stop> {
    if FileStamp::of(&file.metadata()?) == stamp { Ok(()) } else { Err(Stop::Changed) }
}

async fn read_part(file: &Arc<File>, most: u64) -> io::Result<Vec<u8>> {
    let file = file.clone();
    in_background(move || {
        let mut bytes = Vec::new();
        (&*file).take(most).read_to_end(&mut bytes).map(|_| bytes)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::fs;

    use object_store::memory::InMemory;

    use super::*;

    fn file(folder: &Path, name: &str, bytes: &[u8]) -> FoundFile {
        fs::write(folder.join(name), bytes).unwrap();
        (name.to_owned(), FileStamp::of(&fs::metadata(folder.join(name)).unwrap()))
    }

    // Files of all sizes arrive whole, also files that are sent in parts.
    #[tokio::test]
    async fn a_file_is_uploaded_whole() {
        let (folder, store) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
        let objects = ResourceObjects::of_test(store.clone(), "out");
        for size in [0, 1, SYNC_PART, SYNC_PART + 1, 2 * SYNC_PART + 5] {
            let bytes: Vec<u8> = (0..size).map(|n| u8::try_from(n % 253).unwrap()).collect();
            let file = file(folder.path(), "x", &bytes);
            assert_eq!(upload(&objects, folder.path(), &file).await, Uploaded::Whole, "{size}");
            let stored = store.get(&Key::from("out/x")).await.unwrap().bytes().await.unwrap();
            assert!(stored == bytes, "{size}");
        }
    }

    // A file that changed after it was found is not uploaded. The next look finds it again.
    #[tokio::test]
    async fn a_changed_file_is_not_uploaded() {
        let (folder, store) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
        let objects = ResourceObjects::of_test(store.clone(), "out");
        let found = file(folder.path(), "x", b"1");
        fs::write(folder.path().join("x"), "12").unwrap();
        assert_eq!(upload(&objects, folder.path(), &found).await, Uploaded::Changed);
        fs::remove_file(folder.path().join("x")).unwrap();
        assert_eq!(upload(&objects, folder.path(), &found).await, Uploaded::Changed);
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("x")).unwrap();
        assert!(matches!(upload(&objects, folder.path(), &found).await, Uploaded::Failed(_)));
        let unnamed = file(folder.path(), "y.leasehold-part", b"1");
        assert!(matches!(upload(&objects, folder.path(), &unnamed).await, Uploaded::Refused(_)));
        assert!(store.get(&Key::from("out/x")).await.is_err());
    }
}
