//! The stores that the configuration names, and which of them has a location.

use std::sync::Arc;

use super::store::LocationStore;
use crate::plain;

/// All stores of a gateway, each with the locations that it has.
#[derive(Debug, Default)]
pub struct Stores {
    /// The URL of a folder, which ends in a slash, and its store.
    all: Vec<(String, Arc<LocationStore>)>,
}

/// A folder in a store.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) store: Arc<LocationStore>,
    /// Below the root of the store. Ends in a slash, or is empty for the root itself.
    pub(super) folder: String,
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
        Stores { all: all.into_iter().collect() }
    }

    /// Returns the place of a location: in the store with the longest folder that the location lies in.
    pub(super) fn place(&self, location: &str) -> Result<Place, NoStore> {
        self.all
            .iter()
            .filter_map(|(root, store)| Some((root, store, location.strip_prefix(root.as_str())?)))
            .max_by_key(|(root, ..)| root.len())
            .map(|(_, store, folder)| Place { store: store.clone(), folder: folder.to_owned() })
            .ok_or_else(|| NoStore { location: plain::value(location) })
    }

    /// The stores, each once.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<LocationStore>> {
        self.all.iter().map(|(_, store)| store)
    }
}
