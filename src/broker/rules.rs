//! What a decision is made by.

use crate::{catalog::Catalog, policy::Engine};

/// Policy and the catalog that it was made with, always of one load: a decision never mixes two.
pub struct Rules {
    pub engine: Engine,
}

impl Rules {
    pub fn catalog(&self) -> &Catalog {
        self.engine.catalog()
    }
}
