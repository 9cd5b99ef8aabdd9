//! The objects of one resource, as the wrapper sees them through the local S3 endpoint.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{Error, GetOptions, ObjectStore, aws::AmazonS3, path::Path};

use super::{copy_in::PART, error::FolderError, staged::JOURNAL};
use crate::{
    limits::STAGE_OBJECTS_MAX,
    name::{JobId, Object},
};

/// The objects of one resource.
#[derive(Clone, Debug)]
pub(super) struct ResourceObjects {
    pub(super) resource: Object,
    pub(super) store: Arc<dyn ObjectStore>,
    prefix: Path,
}

/// One object of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteObject {
    /// The part of the object's key after the resource.
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) e_tag: Option<String>,
    /// When the object was changed, in milliseconds since 1970.
    pub(super) modified_ms: i64,
}

impl ResourceObjects {
    /// Returns the objects of a resource under its stable name. For a checkpoint line, these are the objects in the folder
    /// of `job`.
    pub(super) fn new(store: AmazonS3, resource: &Object, job: JobId) -> Self {
        let opened = match resource.job() {
            None => Object::of_job(resource.resource().clone(), job),
            Some(_) => resource.clone(),
        };
        let folder = opened.to_string().replacen(':', "/", 1);
        Self::below(Arc::new(store), resource, &folder)
    }

    fn below(store: Arc<dyn ObjectStore>, resource: &Object, folder: &str) -> Self {
        // Every part of a resource name is also valid in a key.
        let prefix = Path::parse(folder).unwrap_or_default();
        ResourceObjects { resource: resource.clone(), store, prefix }
    }

    /// Returns the objects in the store of a test.
    #[cfg(test)]
    pub(super) fn of_test(store: Arc<dyn ObjectStore>, folder: &str) -> Self {
        Self::below(store, &"model:acme/base@1".parse().unwrap(), folder)
    }

    /// Returns the key of an object, or the reason why the name cannot be a key.
    pub(super) fn key(&self, name: &str) -> Result<Path, String> {
        let refused = || "its name cannot be the key of an object".to_owned();
        if is_own_name(name) {
            return Err("leasehold uses this name itself".to_owned());
        }
        if name.is_empty() || name.ends_with('/') || name.starts_with('/') {
            return Err(refused());
        }
        Path::parse(format!("{}/{name}", self.prefix)).map_err(|_| refused())
    }

    pub(super) fn fault(&self, object: &str, why: impl Into<String>) -> FolderError {
        FolderError::Object { resource: self.resource.clone(), object: object.to_owned(), why: why.into() }
    }

    /// Lists all objects, sorted by name. Leaves out folder marks.
    pub(super) async fn list(&self) -> Result<Vec<RemoteObject>, FolderError> {
        let mut found: Vec<RemoteObject> = Vec::new();
        let mut listed = self.store.list(Some(&self.prefix));
        while let Some(meta) = listed.try_next().await.map_err(|e| self.fault("", shown(&e)))? {
            let parts: Option<Vec<_>> = meta
                .location
                .prefix_match(&self.prefix)
                .map(|parts| parts.map(|p| p.as_ref().to_owned()).collect());
            let name = parts.unwrap_or_default().join("/");
            if name.is_empty() {
                continue;
            }
            if found.len() >= STAGE_OBJECTS_MAX {
                return Err(FolderError::TooManyObjects(self.resource.clone()));
            }
            let modified_ms = meta.last_modified.timestamp_millis();
            found.push(RemoteObject { name, size: meta.size, e_tag: meta.e_tag, modified_ms });
        }
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(without_folder_marks(found))
    }

    /// Streams a part of an object. Fails if the object was replaced after it was listed.
    pub(super) async fn read(
        &self,
        object: &RemoteObject,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, object_store::Result<Bytes>>, Error> {
        let key = Path::parse(format!("{}/{}", self.prefix, object.name))?;
        let options =
            GetOptions { if_match: object.e_tag.clone(), range: Some(range.into()), ..GetOptions::default() };
        Ok(self.store.get_opts(&key, options).await?.into_stream().boxed())
    }
}

/// Leaves out empty objects that stand for a folder with other objects. Stores that are made of directories list them.
fn without_folder_marks(found: Vec<RemoteObject>) -> Vec<RemoteObject> {
    let is_mark = |object: &RemoteObject| {
        let below = format!("{}/", object.name);
        // The position of the first name that could begin with this name and a slash.
        let at = found.partition_point(|other| other.name < below);
        object.size == 0 && found.get(at).is_some_and(|next| next.name.starts_with(&below))
    };
    let kept: Vec<bool> = found.iter().map(|object| !is_mark(object)).collect();
    found.into_iter().zip(kept).filter_map(|(object, keep)| keep.then_some(object)).collect()
}

/// Whether the wrapper uses this name for a file of leasehold.
pub(super) fn is_own_name(name: &str) -> bool {
    name == JOURNAL || name.ends_with(PART)
}

/// Whether the error may pass, so that a request may succeed later.
pub(super) fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Generic { .. } | Error::JoinError { .. })
}

/// One line for people: the cause that the gateway names, without the text of the client library.
pub(super) fn shown(error: &Error) -> String {
    if matches!(error, Error::Precondition { .. }) {
        return "it was changed while it was copied: start again".to_owned();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    message_of(&text).unwrap_or(&text).to_owned()
}

/// Finds the `Message` of an S3 error.
fn message_of(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Message>")?;
    rest.split_once("</Message>").map(|(message, _)| message)
}

#[cfg(test)]
mod tests {
    use object_store::{ObjectStoreExt, PutPayload, memory::InMemory};

    use super::*;

    // The names are those below the resource. Folder marks are not files.
    #[tokio::test]
    async fn the_objects_of_a_resource_are_listed_by_name() {
        let store = Arc::new(InMemory::new());
        for (key, text) in
            [("m/b/w", "12345"), ("m/b", ""), ("m/b.txt", "x"), ("m/empty", ""), ("other/x", "1")]
        {
            store.put(&Path::from(key), PutPayload::from_static(text.as_bytes())).await.unwrap();
        }
        let objects = ResourceObjects::of_test(store, "m");
        let names: Vec<_> = objects.list().await.unwrap().into_iter().map(|o| (o.name, o.size)).collect();
        assert_eq!(names, [("b.txt".to_owned(), 1), ("b/w".to_owned(), 5), ("empty".to_owned(), 0)]);
        assert_eq!(objects.key("b/ä w").unwrap().as_ref(), "m/b/ä w");
        for bad in ["../x", "a//b", "/a", "a/", ".", ""] {
            assert!(objects.key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_message_of_the_gateway_is_shown() {
        let text = "Server returned 403: <Error><Code>ExpiredToken</Code><Message>access has ended</Message></Error>";
        let refused = Error::PermissionDenied { path: "k".into(), source: text.into() };
        assert_eq!(shown(&refused), "access has ended");
        assert!(!is_passing(&refused));
        assert!(is_passing(&Error::Generic { store: "S3", source: "reset".into() }));
        let changed = Error::Precondition { path: "k".into(), source: "x".into() };
        assert!(shown(&changed).contains("changed"));
    }
}
