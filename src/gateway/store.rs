//! A store: it keeps the bytes of resources. The location of a resource in the catalog decides which store that is.

use std::{io, ops::Range, time::SystemTime};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use s3s::dto;

use super::{
    bucket::BucketStore,
    conditions::Conditions,
    directory::DirectoryStore,
    key::ObjectPath,
    list_work::ListWork,
    listing::ListQuery,
    upload::{MultipartUpload, Upload},
    upload_memory::UploadMemory,
};
use crate::reason::Refusal;

/// A store, which keeps the bytes of resources: a directory of this machine, or a bucket.
#[derive(Debug)]
pub(super) enum LocationStore {
    Directory(DirectoryStore),
    Bucket(BucketStore),
}

/// The facts about an object in listings and answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObjectInfo {
    pub(super) size: u64,
    /// The `ETag` without quotation marks.
    pub(super) e_tag: String,
    pub(super) modified: SystemTime,
}

/// An entry of a listing, with its key below the leased prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Object(String, ObjectInfo),
    /// A common prefix of keys. It ends in the delimiter.
    Prefix(String),
}

/// Entries in ascending order of their keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    pub(super) all: Vec<Entry>,
    /// Whether these are the last entries.
    pub(super) is_complete: bool,
}

/// An object that is being read.
pub(super) struct ObjectReading {
    pub(super) info: ObjectInfo,
    /// The range of bytes that is read.
    pub(super) range: Range<u64>,
    pub(super) chunks: BoxStream<'static, Result<Bytes, StoreError>>,
}

/// The reasons for which a store did not do an operation.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("there is no such object")]
    NotFound,
    #[error("a condition of the request is not met")]
    Precondition,
    #[error("the object did not change")]
    NotModified,
    #[error("the range is outside of the object, which has {0} bytes")]
    Range(u64),
    #[error("the key is a folder: name an object below it")]
    FolderInTheWay,
    #[error("an object has this name, so nothing can be stored below it")]
    ObjectInTheWay,
    #[error("the folder has more entries than can be listed")]
    TooManyEntries,
    #[error("the object changed while it was read")]
    Changed,
    #[error("the part is too large for the store behind the gateway: at most {0} bytes")]
    PartTooLarge(u64),
    #[error("the store behind the gateway needs parts that are numbered 1, 2, 3 … without gaps")]
    PartsMissing,
    /// The access ended before the change was made.
    #[error("{0}")]
    Ended(Refusal),
    #[error("the memory for uploads is in use: try again, with fewer at once")]
    NoMemory,
    #[error("too many listings wait for the disk: try again, with fewer at once")]
    TooManyListings,
    /// The store could not be reached, or has no capacity now.
    #[error("{0}")]
    Unavailable(String),
    /// The object differs from the pin in the catalog.
    #[error("{0}")]
    NotAsPinned(Refusal),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Checks that the access has not ended. This is the last check before a change becomes visible.
pub(super) type FinalCheck = Box<dyn Fn() -> Result<(), Refusal> + Send + Sync>;

impl LocationStore {
    /// Describes an object.
    pub(super) async fn head(&self, path: &ObjectPath) -> Result<ObjectInfo, StoreError> {
        match self {
            LocationStore::Directory(directory) => directory.head(path).await,
            LocationStore::Bucket(bucket) => bucket.head(path).await,
        }
    }

    /// Opens an object, or a range of it.
    pub(super) async fn read(
        &self,
        path: &ObjectPath,
        range: Option<dto::Range>,
        conditions: &Conditions,
    ) -> Result<ObjectReading, StoreError> {
        match self {
            LocationStore::Directory(directory) => directory.read(path, range, conditions).await,
            LocationStore::Bucket(bucket) => bucket.read(path, range, conditions).await,
        }
    }

    /// Lists entries below a folder. Returns at least one entry, if there is one. Uses the delimiter only if it is a
    /// slash.
    pub(super) async fn list(
        &self,
        folder: &str,
        query: &ListQuery,
        work: &ListWork,
    ) -> Result<Entries, StoreError> {
        match self {
            LocationStore::Directory(directory) => directory.list(folder, query, work).await,
            LocationStore::Bucket(bucket) => bucket.list(folder, query, work).await,
        }
    }

    /// Begins an upload. `length` is given if it is known.
    pub(super) async fn begin(
        &self,
        path: &ObjectPath,
        memory: &UploadMemory,
        length: Option<u64>,
    ) -> Result<Upload, StoreError> {
        match self {
            LocationStore::Directory(directory) => directory.begin(path).await.map(Upload::Directory),
            LocationStore::Bucket(bucket) => bucket.begin(path, memory, length).map(Upload::Bucket),
        }
    }

    /// Begins an upload in parts.
    pub(super) async fn begin_parts(&self, path: &ObjectPath) -> Result<MultipartUpload, StoreError> {
        match self {
            LocationStore::Directory(directory) => {
                directory.begin_parts(path).await.map(MultipartUpload::Directory)
            }
            LocationStore::Bucket(bucket) => bucket.begin_parts(path).await.map(MultipartUpload::Bucket),
        }
    }

    /// Removes an object. An absent object is not an error.
    pub(super) async fn delete(&self, path: &ObjectPath, final_check: FinalCheck) -> Result<(), StoreError> {
        match self {
            LocationStore::Directory(directory) => directory.delete(path, final_check).await,
            LocationStore::Bucket(bucket) => bucket.delete(path, final_check).await,
        }
    }

    /// Makes a folder, if the store has folders.
    pub(super) async fn make_folder(
        &self,
        path: &ObjectPath,
        final_check: FinalCheck,
    ) -> Result<ObjectInfo, StoreError> {
        match self {
            LocationStore::Directory(directory) => directory.make_folder(path, final_check).await,
            // Object stores have no folders, so no folder is made.
            LocationStore::Bucket(_) => {
                Ok(ObjectInfo { size: 0, e_tag: FOLDER_TAG.to_owned(), modified: SystemTime::UNIX_EPOCH })
            }
        }
    }

    /// Removes the unfinished uploads of an earlier gateway.
    pub(super) async fn clear_staging(&self) -> Result<(), StoreError> {
        match self {
            LocationStore::Directory(directory) => directory.clear_staging().await,
            LocationStore::Bucket(_) => Ok(()),
        }
    }
}

/// The entity tag of a folder in a store that has no folders.
const FOLDER_TAG: &str = "folder-0";

impl Entry {
    /// Returns the key or the common prefix.
    pub(super) fn name(&self) -> &str {
        match self {
            Entry::Object(name, _) | Entry::Prefix(name) => name,
        }
    }
}
