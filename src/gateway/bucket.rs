//! A store in a bucket of an object store: S3 and compatible servers, Google Cloud Storage, Azure Blob Storage.

use std::{fmt, io, sync::Arc};

use futures_util::{StreamExt, TryStreamExt};
use object_store::{
    Error, GetOptions, GetRange, ListResult, ObjectMeta, ObjectStore, ObjectStoreExt,
    list::{PaginatedListOptions, PaginatedListStore},
    multipart::MultipartStore,
    path::Path,
};
use s3s::dto;

use super::{
    bucket_upload::{BucketParts, BucketUpload},
    conditions::Conditions,
    key::ObjectPath,
    list_work::ListWork,
    listing::ListQuery,
    store::{Entries, Entry, FinalCheck, ObjectInfo, ObjectReading, StoreError},
    upload_memory::UploadMemory,
};
use crate::limits::{GATEWAY_EMPTY_PAGES_MAX, GATEWAY_LIST_MAX};

/// The clients of one bucket. A clone is a few pointers.
#[derive(Clone)]
pub(super) struct BucketStore {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) parts: Arc<dyn MultipartStore>,
    pages: Arc<dyn PaginatedListStore>,
    /// The folder of the location in the bucket. It ends in a slash, or is empty.
    root: Arc<str>,
}

impl BucketStore {
    /// Makes a store from the client of a bucket and a folder in the bucket.
    pub(super) fn new<S: ObjectStore + MultipartStore + PaginatedListStore>(client: S, root: &str) -> Self {
        let client = Arc::new(client);
        BucketStore { objects: client.clone(), parts: client.clone(), pages: client, root: root.into() }
    }

    /// Returns the name of an object in the bucket. A key that marks a folder has no name, because object stores have
    /// no folders.
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
            // The error does not say whether the range is wrong or the store failed.
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

    pub(super) async fn list(
        &self,
        folder: &str,
        query: &ListQuery,
        work: &ListWork,
    ) -> Result<Entries, StoreError> {
        let root = format!("{}{folder}", self.root);
        let by_folder = query.delimiter.as_deref() == Some("/");
        // If the previous page ended with a common prefix, go on after all keys with this prefix.
        let after = match by_folder && query.after.ends_with('/') {
            true => format!("{}\u{10ffff}", query.after),
            false => query.after.clone(),
        };
        let mut page_token = None;
        for _ in 0..GATEWAY_EMPTY_PAGES_MAX {
            let options = PaginatedListOptions {
                offset: (!after.is_empty()).then(|| format!("{root}{after}")),
                delimiter: by_folder.then(|| "/".into()),
                max_keys: Some(query.max.clamp(1, GATEWAY_LIST_MAX)),
                page_token,
                ..PaginatedListOptions::default()
            };
            work.visit(1)?;
            let prefix = format!("{root}{}", query.prefix);
            let page = self.pages.list_paginated(Some(&prefix), options).await.map_err(failed)?;
            work.visit(page.result.objects.len().saturating_add(page.result.common_prefixes.len()))?;
            page_token = page.page_token;
            let all = entries_of(&page.result, &root, query);
            // If the store's page has only the mark of the listed folder, no entry is left of it, but the next page may have keys.
            if page_token.is_none() || !all.is_empty() {
                return Ok(Entries { all, is_complete: page_token.is_none() });
            }
        }
        Err(StoreError::TooManyEntries)
    }

    pub(super) fn begin(
        &self,
        path: &ObjectPath,
        memory: &UploadMemory,
        length: Option<u64>,
    ) -> Result<BucketUpload, StoreError> {
        BucketUpload::begin(self.clone(), self.path(path)?, memory, length)
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

/// Returns the entries of a page, by their keys below a root.
fn entries_of(page: &ListResult, root: &str, query: &ListQuery) -> Vec<Entry> {
    let below = |path: &Path| AsRef::<str>::as_ref(path).strip_prefix(root).map(str::to_owned);
    let objects = page.objects.iter().filter_map(|meta| {
        // The store's client shows the mark of a folder as an object without the final slash. So the mark of the listed folder
        // does not begin with the root and the prefix, and is left out.
        let key = below(&meta.location).filter(|key| !key.is_empty() && key.starts_with(&query.prefix))?;
        Some(Entry::Object(key, info(meta)))
    });
    let prefixes =
        page.common_prefixes.iter().filter_map(|path| Some(Entry::Prefix(format!("{}/", below(path)?))));
    let mut all: Vec<Entry> = objects.chain(prefixes).collect();
    all.sort_by(|a, b| a.name().cmp(b.name()));
    all
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

/// Converts a failure of the store's client to an error.
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

#[cfg(test)]
mod tests {
    use object_store::{list::PaginatedListResult, memory::InMemory};

    use super::*;

    /// The pages of a bucket. The token of a page is its number.
    #[derive(Debug)]
    struct Pages(Vec<Vec<&'static str>>);

    #[tonic::async_trait]
    impl PaginatedListStore for Pages {
        async fn list_paginated(
            &self,
            _prefix: Option<&str>,
            options: PaginatedListOptions,
        ) -> object_store::Result<PaginatedListResult> {
            let at: usize = options.page_token.map_or(0, |token| token.parse().unwrap());
            let objects = self.0[at].iter().map(|key| ObjectMeta {
                location: Path::parse(key).unwrap(),
                last_modified: std::time::UNIX_EPOCH.into(),
                size: 1,
                e_tag: None,
                version: None,
            });
            Ok(PaginatedListResult {
                result: ListResult {
                    common_prefixes: Vec::new(),
                    objects: objects.collect(),
                    extensions: http::Extensions::default(),
                },
                page_token: (at + 1 < self.0.len()).then(|| (at + 1).to_string()),
            })
        }
    }

    async fn listed(
        pages: Vec<Vec<&'static str>>,
        work: &ListWork,
    ) -> Result<(Vec<String>, bool), StoreError> {
        let objects = Arc::new(InMemory::new());
        let store = BucketStore {
            objects: objects.clone(),
            parts: objects,
            pages: Arc::new(Pages(pages)),
            root: "out/".into(),
        };
        let query = ListQuery { max: 1, ..ListQuery::default() };
        let entries = store.list("", &query, work).await?;
        Ok((entries.all.iter().map(|entry| entry.name().to_owned()).collect(), entries.is_complete))
    }

    // After a page that has only marks of folders, the listing goes on with the next page, within its bounds.
    #[tokio::test]
    async fn a_page_of_folder_marks_is_read_over() {
        let work = || ListWork::of(1_000, Box::new(|| Ok(())));
        let marks = || vec!["out/"];
        let (names, is_complete) =
            listed(vec![marks(), marks(), vec!["out/a"], vec!["out/b"]], &work()).await.unwrap();
        assert_eq!((names, is_complete), (vec!["a".to_owned()], false));
        assert_eq!(listed(vec![marks()], &work()).await.unwrap(), (Vec::new(), true));
        let endless = listed(vec![marks(); 10_000], &work()).await;
        assert!(matches!(endless, Err(StoreError::TooManyEntries)), "{endless:?}");
    }
}
