//! The view of a token's holder: buckets, and the prefixes in them that the token opens.

use std::sync::Arc;

use s3s::dto;

use super::{
    conditions::Conditions,
    key::{KeyFault, ObjectPath, SubKey},
    pins::PinnedTo,
    store::{LocationStore, ObjectInfo, ObjectReading, StoreError},
    stores::{NoStore, Place, Stores},
};
use crate::{
    catalog::Catalog,
    name::{Action, Digest, Object, ResourceKind, SpiffeId},
};

/// The bucket in which each resource has a name that does not change with its location.
pub(super) const STABLE_BUCKET: &str = "leasehold";

/// The kind of access to a key that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Read,
    Write,
    Delete,
}

impl Need {
    /// Returns the action that allows this access on a resource. `None` if there is no such action.
    pub(super) fn action(self, kind: ResourceKind) -> Option<Action> {
        match (self, kind) {
            (Need::Read, ResourceKind::Dataset) => Some(Action::ReadDataset),
            (Need::Read, ResourceKind::Model) => Some(Action::ReadModel),
            (Need::Read, ResourceKind::Checkpoint) => Some(Action::ReadCheckpoint),
            (Need::Write, ResourceKind::Checkpoint) => Some(Action::WriteCheckpoint),
            (Need::Delete, ResourceKind::Checkpoint) => Some(Action::DeleteCheckpoint),
            (Need::Write | Need::Delete, ResourceKind::Dataset | ResourceKind::Model) => None,
        }
    }
}

/// A prefix in a bucket, and the object that is found below it: a dataset, a model, or the folder of a job in a checkpoint line.
/// The token opens this object.
#[derive(Clone, Debug)]
pub(super) struct Mount {
    pub(super) bucket: String,
    /// The prefix. It ends in a slash, or is empty if a location is a whole bucket.
    pub(super) prefix: String,
    pub(super) object: Object,
    /// The place of the object's bytes, or the reason for which there is none.
    pub(super) place: Result<Place, NoStore>,
}

/// All objects that one token opens, as one version of the catalog describes them.
#[derive(Debug)]
pub(super) struct TokenView {
    /// The digest of the catalog.
    pub(super) catalog: Digest,
    /// The mounts, sorted by bucket and prefix.
    mounts: Vec<Mount>,
}

impl TokenView {
    /// Looks up the objects of a token. Leaves out an object that the catalog does not have, or that belongs to another
    /// audience.
    pub(super) fn new(
        objects: impl IntoIterator<Item = Object>,
        audience: &SpiffeId,
        catalog: &Catalog,
        stores: &Stores,
    ) -> Self {
        let mut mounts = Vec::new();
        for object in objects {
            let Some(resource) = catalog.resource(object.resource()) else { continue };
            if resource.audience != *audience {
                continue;
            }
            let location = location_of(&object, &resource.location);
            let place = stores.place(&location, &resource.pin);
            for (bucket, prefix) in prefixes_of(&object, &location) {
                mounts.push(Mount { bucket, prefix, object: object.clone(), place: place.clone() });
            }
        }
        mounts.sort_by(|a, b| (&a.bucket, &a.prefix).cmp(&(&b.bucket, &b.prefix)));
        TokenView { catalog: catalog.digest(), mounts }
    }

    /// Returns the mounts of a bucket, by prefix.
    pub(super) fn mounts_of(&self, bucket: &str) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(move |mount| mount.bucket == bucket)
    }

    /// Returns the names of all buckets, with repetitions.
    pub(super) fn buckets(&self) -> impl Iterator<Item = &str> {
        self.mounts.iter().map(|mount| mount.bucket.as_str())
    }

    /// Returns the mounts that contain a key, the longest prefix first. The key is compared byte by byte.
    pub(super) fn find<'a>(&'a self, bucket: &str, key: &'a str) -> Vec<(&'a Mount, &'a str)> {
        let mut found: Vec<_> = self
            .mounts_of(bucket)
            .filter_map(|mount| Some((mount, key.strip_prefix(mount.prefix.as_str())?)))
            .collect();
        found.reverse();
        found
    }
}

/// Returns the location of an object: the location of its resource, or the folder of the job below that.
fn location_of(object: &Object, location: &str) -> String {
    let line = object.resource().as_str();
    match object.to_string().strip_prefix(line).and_then(|rest| rest.strip_prefix('/')) {
        Some(job) => format!("{location}{job}/"),
        None => location.to_owned(),
    }
}

/// Returns the buckets and prefixes of an object: its stable name, and its location if that is in a bucket.
fn prefixes_of(object: &Object, location: &str) -> Vec<(String, String)> {
    let stable = object.to_string().replacen(':', "/", 1);
    let mut all = vec![(STABLE_BUCKET.to_owned(), format!("{stable}/"))];
    if let Some((bucket, prefix)) = bucket_and_prefix(location)
        && bucket != STABLE_BUCKET
    {
        all.push((bucket.to_owned(), prefix.to_owned()));
    }
    all
}

/// Splits the URL of a folder in a bucket. Returns `None` if the folder is not in a bucket.
pub(super) fn bucket_and_prefix(location: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = location.split_once("://")?;
    matches!(scheme, "s3" | "gs" | "az").then(|| rest.split_once('/')).flatten()
}

/// An object of a request, found in a mount.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) store: Arc<LocationStore>,
    pub(super) path: ObjectPath,
    pub(super) object: Object,
    pin: Option<PinnedTo>,
}

impl Found {
    /// Describes the object.
    pub(super) async fn head(&self) -> Result<ObjectInfo, StoreError> {
        match &self.pin {
            Some(pin) => pin.head(&self.store, &self.path).await,
            None => self.store.head(&self.path).await,
        }
    }

    /// Opens the object, or a range of it. If the object is pinned, its bytes are compared with the pin before any are
    /// returned.
    pub(super) async fn read(
        &self,
        range: Option<dto::Range>,
        conditions: &Conditions,
    ) -> Result<ObjectReading, StoreError> {
        match &self.pin {
            Some(pin) => pin.read(&self.store, &self.path, range, conditions).await,
            None => self.store.read(&self.path, range, conditions).await,
        }
    }
}

/// The reason for which a key in a mount cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UnusableKey {
    Key(KeyFault),
    Store(NoStore),
}

impl Mount {
    /// Returns the object that the rest of a key names in this mount.
    pub(super) fn found(&self, rest: &str) -> Result<Found, UnusableKey> {
        let key = SubKey::parse(rest).map_err(UnusableKey::Key)?;
        let Place { store, folder, pin } = self.place.clone().map_err(UnusableKey::Store)?;
        Ok(Found { store, path: ObjectPath { folder, key }, object: self.object.clone(), pin })
    }
}

/// A view that several requests share.
pub(super) type SharedView = Arc<TokenView>;

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
