//! The policy and the catalog that decisions are made by.

use crate::{catalog::Catalog, policy::Engine};

/// Policy and the catalog that it was loaded with. A decision never mixes two loads.
pub struct Rules {
    /// Decides by both.
    pub engine: Engine,
}

impl Rules {
    /// The catalog that the engine decides over.
    pub fn catalog(&self) -> &Catalog {
        self.engine.catalog()
    }
}
