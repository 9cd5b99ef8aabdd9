//! The stores in the configuration, and the look-up of the store for a location.

use std::{path::PathBuf, sync::Arc};

use super::{
    list_work::ListWork,
    listing::ListQuery,
    pins::{PinnedTo, Pins},
    store::{Entries, LocationStore, StoreError},
};
use crate::{name::Pin, plain};

/// All stores of a gateway, each with the URL of its root folder.
#[derive(Debug, Default)]
pub struct Stores {
    /// The URL of a folder, ending in a slash, and its store.
    all: Vec<(String, Arc<LocationStore>)>,
    pins: Pins,
}

/// A folder in a store.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) store: Arc<LocationStore>,
    /// The folder below the root of the store. It ends in a slash, or is empty for the root itself.
    pub(super) folder: String,
    /// The manifest with which the objects are compared.
    pub(super) pin: Option<PinnedTo>,
}

impl Place {
    /// Lists entries. Returns at least one entry, if there is one.
    pub(super) async fn list(&self, query: &ListQuery, work: &ListWork) -> Result<Entries, StoreError> {
        match &self.pin {
            Some(pin) => pin.list(&self.store, &self.folder, query, work).await,
            None => self.store.list(&self.folder, query, work).await,
        }
    }
}

/// The gateway has no store for a location.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this gateway has no store for `{location}`: its operator adds a [[gateway.store]] whose location is that folder \
     or one above it"
)]
pub(super) struct NoStore {
    location: String,
}

impl Stores {
    /// Makes the stores of a gateway. Each store comes with the URL of its root folder.
    pub(super) fn new(all: impl IntoIterator<Item = (String, Arc<LocationStore>)>) -> Self {
        Stores { all: all.into_iter().collect(), pins: Pins::default() }
    }

    /// Compares pinned objects with the manifests in this folder.
    #[must_use]
    pub(super) fn with_manifests(self, folder: Option<PathBuf>) -> Self {
        Stores { pins: Pins::new(folder), ..self }
    }

    /// Returns the folder in a store that contains a location. `pin` is the pin of the resource at this location. If several
    /// stores contain the location, takes the store whose root folder has the longest URL.
    pub(super) fn place(&self, location: &str, pin: &Pin) -> Result<Place, NoStore> {
        self.all
            .iter()
            .filter_map(|(root, store)| Some((root, store, location.strip_prefix(root.as_str())?)))
            .max_by_key(|(root, ..)| root.len())
            .map(|(_, store, folder)| Place {
                store: store.clone(),
                folder: folder.to_owned(),
                pin: self.pins.of(pin),
            })
            .ok_or_else(|| NoStore { location: plain::value(location) })
    }

    /// Returns each store once.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<LocationStore>> {
        self.all.iter().map(|(_, store)| store)
    }
}
