//! A bucket of an object store as a store: S3 and servers that speak its protocol, Google Cloud Storage, Azure Blob Storage.

use std::{fmt, io, sync::Arc};

use futures_util::{StreamExt, TryStreamExt};
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt,
    list::{PaginatedListOptions, PaginatedListStore},
    multipart::MultipartStore,
    path::Path,
};
use s3s::dto;
use tokio::sync::Semaphore;

use super::{
    bucket_upload::{BucketParts, BucketUpload},
    conditions::Conditions,
    key::ObjectPath,
    listing::ListQuery,
    store::{Entries, Entry, FinalCheck, ObjectInfo, ObjectReading, StoreError},
};
use crate::limits::GATEWAY_PART_BUFFERS_KIB;

/// The clients of one bucket. A clone is a few pointers.
#[derive(Clone)]
pub(super) struct BucketStore {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) parts: Arc<dyn MultipartStore>,
    pages: Arc<dyn PaginatedListStore>,
    /// The folder of the location in the bucket. It ends in a slash, or is empty.
    root: Arc<str>,
    /// The memory, in kibibytes, for parts that are being received.
    pub(super) memory: Arc<Semaphore>,
}

impl BucketStore {
    /// Takes a client of a bucket, and the folder in it.
    pub(super) fn new<S: ObjectStore + MultipartStore + PaginatedListStore>(client: S, root: &str) -> Self {
        let client = Arc::new(client);
        BucketStore {
            objects: client.clone(),
            parts: client.clone(),
            pages: client,
            root: root.into(),
            memory: Arc::new(Semaphore::new(GATEWAY_PART_BUFFERS_KIB)),
        }
    }

    /// The name of an object in the bucket. A key that marks a folder has no name, because object stores have no folders.
    pub(super) fn path(&self, path: &ObjectPath) -> Result<Path, StoreError> {
        let ObjectPath { folder, key } = path;
        if key.is_folder() {
            return Err(StoreError::NotFound);
        }
        Path::parse(format!("{}{folder}{}", self.root, key.as_str())).map_err(|_| StoreError::NotFound)
    }

    pub(super) async fn head(&self, path: &ObjectPath) -> Result<ObjectInfo, StoreError> {
        let meta = self.objects.head(&self.path(path)?).await.map_err(failed)?;
        Ok(info(&meta))
    }

    pub(super) async fn read(
        &self,
        path: &ObjectPath,
        range: Option<dto::Range>,
        conditions: &Conditions,
    ) -> Result<ObjectReading, StoreError> {
        let path = self.path(path)?;
        let range = range.map(|range| match range {
            dto::Range::Int { first, last: None } => GetRange::Offset(first),
            dto::Range::Int { first, last: Some(last) } => GetRange::Bounded(first..last.saturating_add(1)),
            dto::Range::Suffix { length } => GetRange::Suffix(length),
        });
        let has_range = range.is_some();
        let found = match self.objects.get_opts(&path, GetOptions { range, ..GetOptions::default() }).await {
            Ok(found) => found,
            // The error does not say whether the range or the store is at fault.
            Err(error) if has_range => {
                let meta = self.objects.head(&path).await.map_err(failed)?;
                conditions.check_read(&info(&meta))?;
                tracing::debug!(%error, "a range could not be read");
                return Err(StoreError::Range(meta.size));
            }
            Err(error) => return Err(failed(error)),
        };
        let info = info(&found.meta);
        conditions.check_read(&info)?;
        let range = found.range.clone();
        let chunks = found.into_stream().map_err(failed).boxed();
        Ok(ObjectReading { info, range, chunks })
    }

    pub(super) async fn list(&self, folder: &str, query: &ListQuery) -> Result<Entries, StoreError> {
        let root = format!("{}{folder}", self.root);
        let by_folder = query.delimiter.as_deref() == Some("/");
        // If the page before ended with a common prefix, go on after all of its keys.
        let after = match by_folder && query.after.ends_with('/') {
            true => format!("{}\u{10ffff}", query.after),
            false => query.after.clone(),
        };
        let options = PaginatedListOptions {
            offset: (!after.is_empty()).then(|| format!("{root}{after}")),
            delimiter: by_folder.then(|| "/".into()),
            max_keys: Some(query.max.max(1)),
            ..PaginatedListOptions::default()
        };
        let page = self
            .pages
            .list_paginated(Some(&format!("{root}{}", query.prefix)), options)
            .await
            .map_err(failed)?;
        let below = |path: &Path| AsRef::<str>::as_ref(path).strip_prefix(root.as_str()).map(str::to_owned);
        let objects = page.result.objects.iter().filter_map(|meta| {
            // The mark of a folder comes without its slash, so it looks like an object. It is left out.
            let key =
                below(&meta.location).filter(|key| !key.is_empty() && key.starts_with(&query.prefix))?;
            Some(Entry::Object(key, info(meta)))
        });
        let prefixes = page
            .result
            .common_prefixes
            .iter()
            .filter_map(|path| Some(Entry::Prefix(format!("{}/", below(path)?))));
        let mut all: Vec<Entry> = objects.chain(prefixes).collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        let is_complete = page.page_token.is_none();
        if all.is_empty() && !is_complete {
            return Err(StoreError::Unavailable(
                "the store listed nothing, but says that there is more".to_owned(),
            ));
        }
        Ok(Entries { all, is_complete })
    }

    pub(super) fn begin(&self, path: &ObjectPath) -> Result<BucketUpload, StoreError> {
        Ok(BucketUpload::new(self.clone(), self.path(path)?))
    }

    pub(super) async fn begin_parts(&self, path: &ObjectPath) -> Result<BucketParts, StoreError> {
        BucketParts::begin(self.clone(), self.path(path)?).await
    }

    pub(super) async fn delete(&self, path: &ObjectPath, final_check: FinalCheck) -> Result<(), StoreError> {
        let Ok(path) = self.path(path) else { return Ok(()) };
        final_check().map_err(StoreError::Ended)?;
        match self.objects.delete(&path).await.map_err(failed) {
            Err(StoreError::NotFound) => Ok(()),
            deleted => deleted,
        }
    }
}

impl fmt::Debug for BucketStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketStore({})", self.root)
    }
}

/// Describes an object.
pub(super) fn info(meta: &ObjectMeta) -> ObjectInfo {
    let e_tag = meta.e_tag.as_deref().map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned());
    ObjectInfo {
        size: meta.size,
        e_tag: e_tag
            .unwrap_or_else(|| format!("{:x}-{:x}", meta.last_modified.timestamp_millis(), meta.size)),
        modified: meta.last_modified.into(),
    }
}

/// Returns the error that a failure of the store's client means.
pub(super) fn failed(error: Error) -> StoreError {
    match error {
        Error::NotFound { .. } => StoreError::NotFound,
        Error::AlreadyExists { .. } | Error::Precondition { .. } => StoreError::Precondition,
        Error::NotModified { .. } => StoreError::NotModified,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            StoreError::Io(io::Error::other("the store refuses the gateway's own credentials"))
        }
        error => StoreError::Unavailable(error.to_string()),
    }
}
