//! The stores that the configuration names, and which of them has a location.

use std::{path::PathBuf, sync::Arc};

use super::{
    list_work::ListWork,
    listing::ListQuery,
    pins::{PinnedTo, Pins},
    store::{Entries, LocationStore, StoreError},
};
use crate::{name::Pin, plain};

/// All stores of a gateway, each with the locations that it has.
#[derive(Debug, Default)]
pub struct Stores {
    /// The URL of a folder, which ends in a slash, and its store.
    all: Vec<(String, Arc<LocationStore>)>,
    pins: Pins,
}

/// A folder in a store.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) store: Arc<LocationStore>,
    /// Below the root of the store. Ends in a slash, or is empty for the root itself.
    pub(super) folder: String,
    /// What its objects are compared with.
    pub(super) pin: Option<PinnedTo>,
}

impl Place {
    /// Lists entries, at least one if there is one.
    pub(super) async fn list(&self, query: &ListQuery, work: &ListWork) -> Result<Entries, StoreError> {
        match &self.pin {
            Some(pin) => pin.list(&self.store, &self.folder, query, work).await,
            None => self.store.list(&self.folder, query, work).await,
        }
    }
}

/// No store has a location.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this gateway has no store for `{location}`: its operator adds a [[gateway.store]] whose location is that folder \
     or one above it"
)]
pub(super) struct NoStore {
    location: String,
}

impl Stores {
    /// Takes the stores, each with the URL of the folder that its root is.
    pub(super) fn new(all: impl IntoIterator<Item = (String, Arc<LocationStore>)>) -> Self {
        Stores { all: all.into_iter().collect(), pins: Pins::default() }
    }

    /// Compares pinned objects with the manifests in this folder.
    #[must_use]
    pub(super) fn with_manifests(self, folder: Option<PathBuf>) -> Self {
        Stores { pins: Pins::new(folder), ..self }
    }

    /// Returns the place of a location with this pin: in the store with the longest folder that the location lies in.
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

    /// The stores, each once.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<LocationStore>> {
        self.all.iter().map(|(_, store)| store)
    }
}
