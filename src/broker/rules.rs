//! The policy and the catalog with which the daemon decides.

use crate::{
    catalog::Catalog,
    policy::{Engine, SignedBundle},
};

/// Policy and the catalog that it was loaded with. A decision never mixes two loads.
pub struct Rules {
    /// Decides with both.
    pub engine: Engine,
    /// The signatures of the policy, if it came with some.
    pub signed: Option<SignedBundle>,
}

impl Rules {
    /// The engine's catalog.
    pub fn catalog(&self) -> &Catalog {
        self.engine.catalog()
    }
}
